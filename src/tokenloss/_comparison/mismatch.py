"""How far a trainer's log-probabilities are from those of the engine that sampled the tokens, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tokenloss._comparison.compared_tokens import About, ComparedTokens, included
from tokenloss._comparison.mismatch_causes import SURE, causes
from tokenloss._comparison.mismatch_tables import mismatch_shown
from tokenloss._comparison.paired import Mean, nan_last, quantiles, same_file_note
from tokenloss._core.dtypes import as_float_array, without_bfloat16
from tokenloss._core.errors import raise_error
from tokenloss._core.estimate import Errors, Estimate
from tokenloss._core.exact import exp
from tokenloss._core.result import formatted
from tokenloss._core.validation import check_log_probs, check_mask, check_number
from tokenloss._statistics.distributions import TAIL
from tokenloss._statistics.estimates import Measure, Method, Reach, needed_count
from tokenloss._statistics.gates import CANNOT_TELL, HOLDS, GatedResult, independent_note, verdict_on
from tokenloss._statistics.ratio import interval_above_0
from tokenloss._statistics.sequences import check_segment_ids

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenloss._core.result import Shown
    from tokenloss._core.types import Array, ArrayLike, BoolArray, Float64Array, IntArray
    from tokenloss._statistics.gates import Limit, Verdict

_LARGEST = 700.0  # whose exponential is a float
_LEAST_LEFT = 1e-9  # of v without one sequence: less than this part may be rounding
_TERMS = 19  # of the series of k3, for differences up to 1


def k3_of(difference: Float64Array) -> Float64Array:
    """``expm1(d) - d`` without cancellation: by its series up to 1, as d**2 / 2 * (1 + d / 3 * (1 + d / 4 * ...))."""
    is_small = np.abs(difference) <= 1
    d = np.where(is_small, difference, 0.0)
    series = np.ones_like(d)
    for n in range(_TERMS, 2, -1):
        series = 1 + d / n * series
    with np.errstate(over="ignore", invalid="ignore"):
        large = np.where(difference == math.inf, math.inf, np.expm1(difference) - difference)
    return np.where(is_small, d * d / 2 * series, large)


def token_metrics(
    difference: Float64Array, ratio: Float64Array, ids: IntArray | None, epsilon: float
) -> tuple[dict[str, Any], Mean]:
    """Statistics of tokens with their errors and intervals, and the mean of k1."""
    outside = np.where(np.isnan(ratio), np.nan, (ratio < 1 - epsilon) | (ratio > 1 + epsilon))
    values = {
        "k1": 0.0 - difference,
        "k2": difference**2 / 2,
        "k3": k3_of(difference),
        "mean_abs_difference": np.abs(difference),
        "outside": outside,
    }
    metrics: dict[str, Any] = {}
    means = {name: Mean(array, ids) for name, array in values.items()}
    for name, mean in means.items():
        metrics[name] = mean.measure(_METHODS.get(name, "mean")).estimate()
    metrics["mean_ratio"], _ = _mean_of_exp(difference, ids)
    k3 = np.sort(values["k3"])
    total, top = float(k3.sum()), float(k3[k3.size - -(-k3.size // 100) :].sum())
    metrics["top_k3_share"] = top / total if 0 < total < math.inf else math.nan
    return metrics | {"ess": _effective_share(difference, ids)}, means["k1"]


def sequence_table(difference: Float64Array, ids: IntArray) -> dict[str, Array]:
    """Columns of the table of sequences."""
    sums, k3 = Mean(difference, ids).sequences, Mean(k3_of(difference), ids).sequences
    ratios = {"ratio": np.exp(sums.nll), "geometric_ratio": np.exp(sums.loss)}
    columns = {"sequence": sums.sequence, "count": sums.count, "difference": sums.loss, "k3": k3.loss}
    return columns | {"log_ratio": sums.nll} | ratios


def sequence_metrics(log_ratios: Float64Array, counts: Array) -> dict[str, Any]:
    """Statistics of sequences, which are treated as independent; nan without sequences."""
    ratio, log = _mean_of_exp(log_ratios, None, "sequences")
    geometric_ratio, _ = _mean_of_exp(log_ratios / counts, None, "sequences")
    return {
        "mean_sequence_ratio": ratio,
        "log_mean_sequence_ratio": log,
        "mean_geometric_ratio": geometric_ratio,
        "sequence_ess": _effective_share(log_ratios, None, "sequences"),
    }


def _mean_of_exp(logs: Float64Array, ids: IntArray | None, unit: str = "tokens") -> tuple[Estimate, float]:
    """The mean of exponentials, and its logarithm."""
    top = float(logs.max(initial=0.0))
    shift = top if _LARGEST < top < math.inf else 0.0  # else they are as exact as their sum
    mean, factor = Mean(np.exp(logs - shift), ids), exp(shift)
    measure, value = mean.measure(), mean.mean * factor

    def errors() -> Errors:
        stderr = measure.stderr * factor
        ends = interval_above_0(value, stderr, measure.independent.factor())
        return Errors(stderr, ends, measure.unit if mean.is_clustered else unit)

    return Estimate(value, errors), (math.log(mean.mean) if mean.mean else -math.inf) + shift


def effective(logs: Float64Array, ids: IntArray | None, limit: float | None, tail: float) -> tuple[Reach, Mean]:
    """The estimate of the effective sample size of weights ``exp(logs)``, as a fraction of their number.

    It is 1 / (1 + v) with v their variance over the square of their mean. The mean that comes with it is v, as the mean
    of what each weight adds to it and to its error. The interval is by the jackknife of log v, over sequences.
    """
    weights = np.exp(logs - logs.max(initial=-math.inf))
    weights /= Mean(weights, None).mean
    squares = (weights - 1) ** 2
    variance = Mean(squares, None).mean
    mean = Mean(squares - 2 * variance * (weights - 1), ids)
    variance_limit = variance if limit is None else 1 / limit - 1 if limit else math.inf
    estimate = Measure(variance, mean._independent).reach(tail, variance_limit)
    values = _pseudo_values(weights - 1, squares, variance, ids if mean.is_clustered else None)
    if values is not None:
        jackknifed, whole = Mean(values, None), math.log(variance)
        radius = mean.factor(tail) * jackknifed.stderr
        ends = exp(min(jackknifed.mean, whole) - radius), exp(max(jackknifed.mean, whole) + radius)
        distance = abs((math.log(variance_limit) if variance_limit else -math.inf) - whole)
        needed = needed_count(mean._independent.count, radius, distance, tail)
        estimate = Reach(variance, *ends, needed)
    share, high, low = (1 / (1 + value) for value in estimate[:3])
    return estimate._replace(value=share, low=low, high=high), mean


def _pseudo_values(
    changes: Float64Array, squares: Float64Array, variance: float, ids: IntArray | None
) -> Float64Array | None:
    """The pseudo-value of log v for each sequence (or token), by the jackknife of Miller, Ann. Math. Stat. 39, 1968.

    None if one sequence has all of v, or if v is not finite.
    """
    numbers = np.arange(changes.size)
    groups = numbers if ids is None else np.unique(np.where(ids < 0, -1 - numbers, ids), return_inverse=True)[1]
    counts, sums, square_sums = (np.bincount(groups, weights) for weights in (None, changes, squares))
    if counts.size < 2 or not 0 < variance < math.inf:
        return None
    left = counts.sum() - counts
    shift = (math.fsum(sums) - sums) / left
    without = ((math.fsum(square_sums) - square_sums) / left - shift**2) / (1 + shift) ** 2
    if not without.min() > _LEAST_LEFT * variance:
        return None
    values: Float64Array = counts.size * math.log(variance) - (counts.size - 1) * np.log(without)
    return values


def _effective_share(logs: Float64Array, ids: IntArray | None, unit: str = "tokens") -> Estimate:
    """The effective sample size as a fraction."""
    reach, mean = effective(logs, ids, None, TAIL)
    unit = mean.measure().unit if mean.is_clustered else unit
    return Estimate(reach.value, (reach.value**2 * mean.stderr, (reach.low, reach.high), unit))


_METHODS: dict[str, Method] = {"k1": "signed", "outside": "share"}  # of other means "mean"
EPSILON = 0.2  # by which PPO lets ratios differ from 1
_QUANTILES = (1.0, 0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0.0)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Mismatch(ComparedTokens, GatedResult):
    """Result of `mismatch`: how far a trainer's log-probabilities are from those of the engine that sampled.

    With d = logprobs - base_logprobs of a token, the importance ratio is r = exp(d). Errors are clustered by sequence
    if there are at least two, and nan for fewer than two tokens. Intervals are as in `Comparison.check`: for a
    divergence and a mean ratio, they are computed on the logarithm; for a fraction, they are binomial; and for an
    effective sample size, they come from the jackknife.

    Attributes
    ----------
    epsilon : float
        Half the width of the range of ratios for `outside`.
    n_without_number : int
        Number of tokens without a number on either side, which are left out: padding.
    n_nan, n_infinite : int
        Number of compared tokens whose d is nan, since one side is, or infinite. They make the means nan or infinite.
    k1, k2, k3 : Estimate
        Means of -d, of d**2 / 2 and of exp(d) - 1 - d, in nats: estimates of the KL divergence of the trainer's
        distribution from the sampler's.
    top_k3_share : float
        Part of the sum of k3 that comes from the 1 % of the tokens with the largest k3; nan if the sum is 0 or not
        finite.
    mean_abs_difference : Estimate
        Mean of abs(d).
    mean_ratio : Estimate
        Mean of r, which is 1 except for chance if tokens were drawn from the sampler's probabilities and both sides are
        over the same classes.
    outside : Estimate
        Fraction of the tokens with r outside [1 - epsilon, 1 + epsilon].
    ess : Estimate
        Effective sample size of the tokens, weighted by r, as a fraction of their number.
    mean_sequence_ratio : Estimate
        Mean over the sequences of the product of their tokens' ratios, inf if that is too large for a float. This and
        the next three are nan without sequences.
    log_mean_sequence_ratio : float
        Its logarithm.
    mean_geometric_ratio : Estimate
        Mean over the sequences of the geometric mean of their tokens' ratios.
    sequence_ess : Estimate
        Effective sample size of the sequences, weighted by the products, as a fraction of their number.
    difference_quantiles, ratio_quantiles : dict
        Quantiles of d and of r by fraction of the tokens: 1.0 (the maximum), 0.999, 0.99, 0.95, 0.9, 0.75, 0.5 (the
        median), 0.25, 0.1, 0.05, 0.01, 0.001 and 0.0 (the minimum), interpolated linearly.
    diagnosis : list of str
        What the differences look like, each with its evidence; empty if nothing is certain.
    void : str
        The sentences of the diagnosis that make the metrics meaningless, such as padding that is counted. No gate can
        hold or fail then. "" if there are no such sentences.
    temperature : float or None
        The approximate temperature at which the sampler's logits would give the trainer's log-probabilities, if the
        diagnosis names one.
    logprobs, base_logprobs, difference, ratio : arrays of float64
        The values of each token; nan if it is not compared.
    kept : array of bool
        Whether the token is compared.
    sequences : dict of 1-D arrays or None
        Columns of a table that has a row for each sequence with any compared token: "sequence" (its number), "count",
        "difference" (the mean of d), "k3", "log_ratio" (the sum of d), "ratio" (the product of r), "geometric_ratio",
        and of files of responses "line". None without sequences.

    Examples
    --------
    >>> from tokenloss import mismatch
    >>> mismatch([[-0.5, -1.0], [-0.25, -2.0]], [[-0.5, -1.1], [-0.3, -1.9]])
    Mismatch(k3=0.002820 ± 0.000234, count=4, n_sequences=2, mean_ratio=1.01532 ± 0.0373, ess=0.9947)
    """

    GATES: ClassVar[tuple[str, ...]] = ("max_k3", "min_ess")
    _why_no_gate = "does not apply to log-probabilities of tokens"
    _errors_in_files = dict.fromkeys(
        ("k1", "k2", "k3", "mean_abs_difference", "mean_ratio", "outside", "ess", "sequence_ess"),
        ("stderr", "interval"),
    )
    _divergence = "abs_difference"
    _quantity = "absolute difference"  # what `_kl` has

    epsilon: float
    n_without_number: int
    n_nan: int
    n_infinite: int
    k1: Estimate
    k2: Estimate
    k3: Estimate
    top_k3_share: float
    mean_abs_difference: Estimate
    mean_ratio: Estimate
    outside: Estimate
    ess: Estimate
    mean_sequence_ratio: Estimate
    log_mean_sequence_ratio: float
    mean_geometric_ratio: Estimate
    sequence_ess: Estimate
    difference_quantiles: dict[float, Estimate]
    ratio_quantiles: dict[float, Estimate]
    diagnosis: list[str]
    void: str
    temperature: float | None
    logprobs: Float64Array
    base_logprobs: Float64Array
    difference: Float64Array
    ratio: Float64Array
    kept: BoolArray

    @staticmethod
    def _shown_of(comparisons: Mapping[str, Any]) -> Shown:
        return mismatch_shown(comparisons)

    def _signature_fields(self) -> dict[str, Any]:
        return super()._signature_fields() | {"kind": "logprobs", "part": self._about.get("part")}

    def _grouped(self) -> dict[str, Array]:
        return {"difference": self.difference, "k3": k3_of(self.difference)}

    def _verdict(self, limit: Limit, tail: float) -> Verdict:
        index, ids = included(self.kept.reshape(-1), self._segment_ids)
        difference = self.difference.reshape(-1)[index]
        with np.errstate(all="ignore"):
            measure = Mean(k3_of(difference), ids).measure()
            reach = measure.reach(tail, limit.value)
            if limit.gate == "min_ess":
                reach, mean = effective(difference, ids, limit.value, tail)
                measure = mean.measure()
        notes, void = independent_note(measure, tail), same_file_note(self._about) or self.void
        bias = abs(self.mean_ratio - 1)  # of k3, compared with k1
        is_biased = limit.gate == "max_k3" and bias > 0.1 * limit.value
        is_biased = is_biased and bias > measure.independent.factor(SURE) * self.mean_ratio.stderr
        if is_biased:
            ratio = formatted(self.mean_ratio, self.mean_ratio.stderr, 4)
            words = f"k3 is k1 + mean ratio - 1, and the mean ratio is {ratio}, not 1: "
            if self.mean_ratio < 1:
                notes.append(f"{words}read k1, {self.k1:.4g}")
            else:
                void = void or f"{words}these tokens cannot show a divergence"
        verdict = verdict_on(limit, reach, measure, notes=notes, void=void)
        cannot_hold = is_biased and verdict.verdict == HOLDS and reach.high + bias > limit.value
        return verdict._replace(verdict=CANNOT_TELL) if cannot_hold else verdict

    @property
    def _equals_base(self) -> bool:
        """Whether both sides have the same log-probability for every token."""
        return bool(self.count) and not self.difference[self.kept].any()

    @property
    def _kl(self) -> Float64Array:
        """The values that plots draw for each token."""
        return np.abs(self.difference)

    def _rank(self) -> tuple[bool, float]:
        """Sort key: the divergence."""
        return nan_last(self.k3)

    def _main(self) -> dict[str, str]:
        main = {"k3": formatted(self.k3, self.k3.stderr, 4), "count": str(self.count)}
        main |= {"n_sequences": str(self.n_sequences)} if self.sequences is not None else {}
        return main | {
            "mean_ratio": formatted(self.mean_ratio, self.mean_ratio.stderr), "ess": formatted(self.ess, digits=4)
        }  # fmt: skip


Mismatch.__module__ = "tokenloss.results"


def mismatch(
    logprobs: ArrayLike,
    base_logprobs: ArrayLike,
    *,
    where: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    epsilon: float = EPSILON,
) -> Mismatch:
    """Compare a trainer's log-probabilities of sampled tokens with the sampling engine's.

    `logprobs` belong to the policy pi that is trained, and `base_logprobs` to the policy mu from which the tokens were
    drawn. With d = logprobs - base_logprobs, the importance ratio pi / mu of a token is r = exp(d), and `k1`, `k2` and
    `k3` are estimates of the divergence KL(mu || pi), of pi from mu.

    Parameters
    ----------
    logprobs, base_logprobs : arrays of floats of one shape (..., T)
        Log-probability of each token in nats, under the trainer and under the sampler: float16, bfloat16, float32 or
        float64. Each row along the last axis is a sequence, unless `segment_ids` say otherwise; in one dimension,
        tokens are assumed independent. A token that is nan in both is left out, as by `where`.
    where : array of bool, optional
        Mask of the tokens to compare, broadcast over the batch: True for generated tokens, False for prompts and
        padding.
    epsilon : float, default 0.2
        Ratios outside [1 - epsilon, 1 + epsilon] are counted in `Mismatch.outside`; PPO clips these.
    segment_ids
        As in `compare`.

    Returns
    -------
    Mismatch
        The divergence by three estimators, ratios of tokens and of sequences, effective sample sizes, and a diagnosis
        of what the differences look like.

    Raises
    ------
    TypeError, ValueError
        As in `compare`, or if a log-probability is above 0 by more than rounding.

    See Also
    --------
    compare : Two models compared by all their logits, which give the divergence itself.
    compare_files : The same for files, as ``tokenloss compare TRAINER.npy ROLLOUT.jsonl``.

    Notes
    -----
    The estimators are from Schulman's note "Approximating KL divergence" (2020, http://joschu.net/blog/kl-approx.html),
    for tokens drawn by mu: the mean of ``k1 = -d`` is the divergence, and so is the mean of ``k3 = exp(d) - 1 - d`` if
    both policies are over the same classes; k3 is never negative, and the mean of ``k2 = d**2 / 2`` is close to the
    divergence if that is small. The mean of k3 is the mean of k1, plus the mean ratio, minus 1: k3 varies less than k1,
    but is unbiased only if the mean ratio is 1 (within its error). With top-p or top-k in the sampler, the mean ratio
    is below 1, and k3 may be 20 times too small: use k1 instead. Because the terms of its formula nearly cancel, k3 is
    computed by a series, to a relative 1e-14 for any d; in float32, the formula has no correct digit at d = 1e-4.

    Intervals are too narrow if a few very large ratios, which most samples miss, dominate a metric (`top_k3_share`):
    with samples of 64 sequences, 82 to 92 % of the 95 % intervals of k3 and of the mean ratio then contained the truth.

    PPO clips the ratios of tokens (Schulman et al. 2017, arXiv 1707.06347); GSPO takes the geometric mean over each
    sequence (Zheng et al. 2025, arXiv 2507.18071). The effective sample size is ``sum(r)**2 / sum(r**2)`` (Kong 1992;
    Owen, Monte Carlo theory, methods and examples, 2013, chapter 9), and its error is by the delta method. Its interval
    is for log(1 / ESS - 1), by the jackknife over sequences (Miller, Ann. Math. Stat. 39, 1968), or by the delta method
    where one sequence has all the variance of the ratios. In simulations with sequences of 50 tokens, a gate on it at
    the true value holds in about 5 % of samples; if half of the noise is shared by the tokens of a sequence, in 15, 11,
    8 and 5 % with 5, 10, 20 and 64 sequences. Means of ratios that are too large for a float are computed from their
    logarithms. Sums are exact.

    A diagnosis is made only if chance would hardly ever produce it. For numbers that are not log-probabilities: nan on
    only one side, "looks like padding or prompts", numbers below -1000, and zeros on one side where the other is far
    from certain. For the rest: "equal"; "N tokens cannot have been sampled", where the sampler has minus infinity;
    "agree except for rounding"; "looks shifted by one"; "the two do not seem to belong together"; "looks scaled", where
    log-probabilities and not logits were divided by a temperature; "looks like raw versus processed log-probabilities",
    where one side is normalized over only the classes that top-p, top-k or min-p kept, and some tokens were the only
    class kept; "the mean ratio is significantly below 1"; "looks like a temperature"; and "tokens were not drawn from
    the sampler's numbers", where k1 is negative, as after learning from these very tokens. One log-probability per
    token does not determine a temperature: the reported one assumes that the other classes share the remaining
    probability in the same way at every token. On logits of three small models, it was within 5 % for temperatures from
    0.7 to 1.2, and within 22 % at 0.5.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import mismatch
    >>> rng = np.random.default_rng(0)
    >>> base = -rng.exponential(size=(8, 100))  # of 8 answers, by the engine
    >>> result = mismatch(base * rng.normal(1, 0.01, size=base.shape), base)
    >>> print(f"{result.k3:.1e}, {result.outside:.1%} clipped, {result.sequence_ess:.1%} effective, {result.diagnosis}")
    1.4e-04, 0.1% clipped, 98.4% effective, []
    >>> (sentence,) = mismatch(1.25 * base, base).diagnosis
    >>> print(sentence[:63])
    looks scaled: the trainer's values are 1.25 times the sampler's
    """
    ours, theirs = (as_logprobs(*named) for named in (("logprobs", logprobs), ("base_logprobs", base_logprobs)))
    if not ours.shape:
        raise_error("shape", name="logprobs", got=(), fits="(..., T)")
    if theirs.shape != ours.shape:
        raise_error("shape", name="base_logprobs", got=theirs.shape, fits=f"{ours.shape}, as logprobs")
    mask = np.ones(ours.shape, np.bool_) if where is None else check_mask(where, ours.shape)
    epsilon = check_number("epsilon", epsilon, "a number between 0 and 1", most=1.0)
    ids = None if segment_ids is None else check_segment_ids(segment_ids, ours.shape).flatten()
    for name, array in ("logprobs", ours), ("base_logprobs", theirs):
        check_log_probs(name, array, mask)
    return mismatch_of(ours, theirs, mask, ids, epsilon)


def as_logprobs(name: str, value: Any) -> Float64Array:
    """Log-probabilities as float64."""
    array, code = as_float_array(name, value)
    with np.errstate(invalid="ignore"):  # a nan that signals is a nan
        return without_bfloat16(array, code).astype(np.float64)


def mismatch_of(
    logprobs: Float64Array, base: Float64Array, mask: Array, segment_ids: IntArray | None, epsilon: float,
    about: About | None = None,
) -> Mismatch:  # fmt: skip
    """The result for checked arrays of one shape."""
    kept = mask & ~(np.isnan(logprobs) & np.isnan(base))
    if segment_ids is None and kept.ndim > 1:  # each row along the last axis is a sequence
        segment_ids = np.repeat(np.arange(math.prod(kept.shape[:-1])), kept.shape[-1])
    index, ids = included(kept.reshape(-1), segment_ids)
    with np.errstate(all="ignore"):  # of infinite and of very different numbers
        difference = np.where(kept, logprobs - base, np.nan)
        ratio = np.exp(difference)
        ours, theirs, d, r = (array.reshape(-1)[index] for array in (logprobs, base, difference, ratio))
        metrics, mean = token_metrics(d, r, ids, epsilon)
        sequences = None if ids is None else sequence_table(d, ids)
        ratios_and_counts = np.empty((2, 0)) if sequences is None else (sequences["log_ratio"], sequences["count"])
        metrics |= sequence_metrics(*ratios_and_counts)
        reasons, temperature = causes(ours, theirs, ids)
    return Mismatch(
        count=d.size,
        is_clustered=mean.is_clustered,
        interval_factor=mean.factor(),
        epsilon=epsilon,
        n_without_number=int(np.count_nonzero(mask & ~kept)),
        n_nan=int(np.count_nonzero(np.isnan(d))),
        n_infinite=int(np.count_nonzero(np.isinf(d))),
        **metrics,
        difference_quantiles=quantiles(np.sort(d), _QUANTILES),
        ratio_quantiles=quantiles(np.sort(r), _QUANTILES),
        diagnosis=[one.text for one in reasons],
        void="; ".join(one.text for one in reasons if one.voids),
        temperature=temperature,
        logprobs=np.where(kept, logprobs, np.nan),
        base_logprobs=np.where(kept, base, np.nan),
        difference=difference,
        ratio=ratio,
        kept=kept,
        sequences=sequences,
        _segment_ids=segment_ids,
        _about=about or About(),
    )
