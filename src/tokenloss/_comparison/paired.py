"""Statistics of two models from the losses of the same tokens: means, paired errors, quantiles and sequences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tokenloss._comparison.compared_tokens import ComparedTokens, included
from tokenloss._comparison.parity import COLUMNS, with_noise
from tokenloss._core.advice import void_of
from tokenloss._core.errors import raise_error
from tokenloss._core.estimate import Errors, Estimate
from tokenloss._core.exact import ExactMoments
from tokenloss._core.files import identity
from tokenloss._statistics.distributions import TAIL, quantile_ranks, student_quantile
from tokenloss._statistics.estimates import Measure, Method, Reach, needed_count
from tokenloss._statistics.gates import GatedResult, independent_note, verdict_on
from tokenloss._statistics.power import detectable
from tokenloss._statistics.ratio import ExactRatio
from tokenloss._statistics.sequences import sums_by_segment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenloss._core.types import Array, BoolArray, Columns, Float64Array, IntArray
    from tokenloss._statistics.gates import Limit, Verdict

KL_QUANTILES = (1.0, 0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001, 0.0)
DELTA_P_QUANTILES = (1.0, 0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0.0)

# the gates that `check` takes, and how their statistics are estimated
_METHODS: dict[str, Method] = {
    "max_kl": "mean", "max_kl_quantile": "mean", "min_same_top": "share", "max_perplexity_ratio": "exp signed"
}  # fmt: skip
_COUNTED = {"max_decisive_flips": "decisive_flips", "max_abs_logprob": "max_abs_logprob"}  # without an interval
_PARTS = 1_000_000  # fractions of quantiles are multiples of one of these parts of 1


def why_void(comparison: Any, gate: str) -> str:
    """Why the metric of a gate is meaningless; "" if it is not."""
    facts = comparison._about | comparison._signed | {"n_sentinels": getattr(comparison, "n_sentinels", 0)}
    return same_file_note(comparison._about) or void_of(facts, gate)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class PairedLosses(ComparedTokens, GatedResult):
    """Statistics that every comparison of two models' losses has.

    Attributes
    ----------
    perplexity, base_perplexity : Estimate
        exp of the mean loss, of the model and of its base.
    correlation : float
        Correlation of the two models' losses; nan if one model's loss is the same for all tokens.
    log_perplexity_ratio, perplexity_ratio, perplexity_difference : Estimate
        ``log(perplexity / base_perplexity)``, ``perplexity / base_perplexity`` and ``perplexity - base_perplexity``.
        Their errors come from the paired differences of the tokens' losses: the interval of `perplexity_ratio` is
        ``exp(log_perplexity_ratio ± interval_factor * log_perplexity_ratio.stderr)``.
    mean_delta_p, rms_delta_p : Estimate
        Mean and root mean square of the change in the tokens' probabilities.
    delta_p_quantiles : dict
        By fraction of the tokens: 1.0 (the maximum), 0.999, 0.99, 0.95, 0.9, 0.75, 0.5 (the median), 0.25, 0.1, 0.05,
        0.01, 0.001 and 0.0 (the minimum), interpolated linearly. Their errors are unknown.
    same_top : Estimate
        Fraction of the tokens at which both models have the same most likely class, among tokens where this is known.
    nll, base_nll : array of float64
        Loss of each token in nats, under the model and under its base.
    delta_p : array of float64
        Change in the probability of each token.
    is_same_top, kept : array of bool
        Whether both models have the same most likely class, and whether the token is compared: neither ignored nor
        masked, and with a log-probability in both files of responses. Where it is not, arrays of floats are nan and
        other arrays of bool False.
    n_identical : int
        Number of positions at which both models' scores are bitwise equal, compared as float64; with a sketch, the
        scores of its classes and the sums over all classes; for responses, the listed log-probabilities.
    max_abs_logprob : float
        Largest absolute difference of a token's log-probability; nan without targets.
    tied_flips, decisive_flips, unknown_flips : int
        Numbers of positions at which the models' most likely classes differ. Such a flip is a tie if `base_margin` is
        at most the largest change in it due to rounding, or to `noise` if given; it is decisive if the margin is
        larger, and unknown if the margin is nan, as when a server lists fewer than two classes.
    parity, parity_reason : str
        "same bits" at all positions; "within noise", without decisive flips; "drift"; or "broken"; and why. "" without
        positions, or if unknown flips would decide.
    base_margin, margin : array of float64
        Logit of the base's most likely class minus the logit of its second, in the base's scores and in the model's, in
        nats.
    is_identical : array of bool
        Whether both models' scores are bitwise identical.
    """

    GATES = (*_METHODS, *_COUNTED)
    _why_no_gate = "does not apply to scores of all classes or to responses"
    _of_base: ClassVar[tuple[str, ...]] = ("base", "by")
    _divergence: ClassVar[str] = "kl"  # the array that has it
    _quantity: ClassVar[str] = "KL divergence"
    _unit: ClassVar[str] = "sequences"  # what errors take as independent

    perplexity: Estimate
    base_perplexity: Estimate
    correlation: float
    log_perplexity_ratio: Estimate
    perplexity_ratio: Estimate
    perplexity_difference: Estimate
    mean_delta_p: Estimate
    delta_p_quantiles: dict[float, Estimate]
    rms_delta_p: Estimate
    same_top: Estimate
    nll: Float64Array
    base_nll: Float64Array
    delta_p: Float64Array
    is_same_top: BoolArray
    kept: BoolArray
    n_identical: int
    max_abs_logprob: float
    tied_flips: int
    decisive_flips: int
    unknown_flips: int
    parity: str
    parity_reason: str
    base_margin: Float64Array
    margin: Float64Array
    is_identical: BoolArray

    @property
    def detectable(self) -> float:
        """The smallest `log_perplexity_ratio` that a two-sided test at 5 % finds in 80 % of samples like this one."""
        return detectable(self.log_perplexity_ratio)

    def _statistics(self) -> dict[str, Any]:
        return super()._statistics() | {"detectable": self.detectable}

    @property
    def _kl(self) -> Float64Array:
        """The divergence of each token, or its lower bound."""
        array: Float64Array = vars(self)[self._divergence]
        return array

    def _grouped(self) -> dict[str, Array]:
        with np.errstate(invalid="ignore"):  # infinite losses
            difference = self.nll - self.base_nll
        losses = {"loss": self.nll, "base_loss": self.base_nll, "loss_difference": difference}
        return losses | {self._divergence: self._kl, "delta_p": self.delta_p, "same_top": self.is_same_top}

    @property
    def _is_lower_bound(self) -> bool:
        """Whether the divergence is only a lower bound."""
        return self._divergence != "kl"

    def _parity_columns(self) -> Columns:
        """The columns from which parity is determined."""
        columns = {name: getattr(self, name).reshape(-1) for name in COLUMNS}
        return columns | ({} if self._segment_ids is None else {"segment_ids": self._segment_ids})

    def _beside(self, noise: Any) -> Any:
        return with_noise(self, noise)

    def _why_unknown(self, limit: Limit) -> str:
        """Why the statistic of a gate is unknown; "" if it is known."""
        return ""

    @property
    def _equals_base(self) -> bool:
        """Whether the model has the base's loss at every token, and no divergence from it."""
        kl, nll, base_nll = (array[self.kept] for array in (self._kl, self.nll, self.base_nll))
        return bool(kl.size) and not kl.any() and np.array_equal(nll, base_nll, equal_nan=True)

    def _rank(self) -> tuple[bool, float]:
        """Sort key: the mean divergence."""
        return nan_last(vars(self)[f"mean_{self._divergence}"])

    @property
    def _has_sequences(self) -> bool:
        return self.n_sequences > 0 and super()._has_sequences

    def _verdict(self, limit: Limit, tail: float) -> Verdict:
        gate = limit.gate
        if gate in ("max_perplexity_ratio", "max_abs_logprob") and not getattr(self, "has_targets", True):
            raise_error("not for", name=gate, fits="limits losses, which need targets, and these scores have none")
        void = why_void(self, gate) or self._why_unknown(limit)
        mask = getattr(self, "is_top_known", self.kept) if gate == "min_same_top" else self.kept
        index, ids = included(mask.reshape(-1), self._segment_ids)
        kl, nll, base_nll, is_same_top = (
            vars(self)[name].reshape(-1)[index] for name in (self._divergence, "nll", "base_nll", "is_same_top")
        )
        mean, method = Mean(kl, ids), _METHODS.get(gate, "mean")
        if gate == "min_same_top":
            mean = Mean(is_same_top, ids)
        elif gate == "max_perplexity_ratio":
            with np.errstate(invalid="ignore"):  # infinite losses
                mean = Mean(nll - base_nll, ids)
        measure = mean.measure(method, self._unit)
        reach = measure.reach(tail, limit.value)
        if limit.fraction is not None:
            reach = _quantile_reach(kl, limit.fraction, ids, mean, limit.value, tail)
        notes, is_lower_bound = independent_note(measure, tail), gate.startswith("max_kl") and self._is_lower_bound
        is_equal = self._equals_base and not is_lower_bound and math.isfinite(reach.value)
        if is_equal:  # other texts would change nothing
            reach, notes = Reach(*[reach.value] * 3), ["identical to the base at every token"]
        if field := _COUNTED.get(gate):
            value, unknown = float(getattr(self, field)), self.unknown_flips if field == "decisive_flips" else 0
            reach, notes, is_equal = Reach(value, value, value + unknown), ["counted in these texts"], True
            notes += [f"{unknown:,} flips at which the base lists no margin"] * bool(unknown)
        verdict = verdict_on(
            limit, reach, measure, notes=notes, is_lower_bound=is_lower_bound, void=void
        )  # fmt: skip
        return verdict._replace(interval=(math.nan, math.nan)) if is_equal else verdict


def same_file_note(about: Mapping[str, Any]) -> str:
    """Why gates of a comparison say nothing if both models are the same file; "" if they are not."""
    files = [identity(about[key]) for key in ("base", "file", "trainer", "sampler") if key in about]
    return "the base is compared with itself" if len(files) == 2 and files[0] == files[1] else ""


class Mean:
    """The mean of a quantity that each token has, its standard error, and the mean of each sequence."""

    def __init__(self, values: Array, segment_ids: IntArray | None) -> None:
        values = values.astype(np.float64, copy=False)
        self._independent = tokens = ExactRatio.from_mean(ExactMoments.of(values))  # tokens, or sequences
        self.mean = tokens.ratio
        self.stderr = self.stderr_of_tokens = tokens.stderr
        self.n_tokens = values.size
        self.is_clustered = False
        if segment_ids is None:
            return
        self.sequences = sums_by_segment(values, None, segment_ids)
        groups = ExactRatio.of(self.sequences.nll, self.sequences.count.astype(np.float64))
        groups += ExactRatio.from_mean(ExactMoments.of(values, segment_ids < 0))
        if self.sequences.sequence.size and groups.count > 1:
            self._independent = groups
            self.stderr = groups.stderr
            self.is_clustered = True

    def measure(self, method: Method = "mean", unit: str = "sequences", mean: float | None = None) -> Measure:
        """The measure of the mean, or of another statistic with the same errors, whose value is `mean`."""
        value = self.mean if mean is None else mean
        return Measure(value, self._independent, unit if self.is_clustered else "tokens", method, self.n_tokens)

    def factor(self, tail: float = TAIL) -> float:
        """The number of standard errors from the mean to each end of its interval, by default the 95 % interval."""
        return self._independent.factor(tail)


def paired_metrics(
    nll: Float64Array, base_nll: Float64Array, delta_p: Float64Array, ids: IntArray | None, unit: str = "sequences"
) -> tuple[dict[str, Any], dict[str, Mean]]:
    """Fields of `PairedLosses`, and the means that they come from, with the mean of each sequence."""
    loss, base_loss = Mean(nll, ids), Mean(base_nll, ids)
    perplexity, base_perplexity = (one.measure("exp", unit).estimate() for one in (loss, base_loss))
    with np.errstate(invalid="ignore", over="ignore"):  # infinite losses
        log_ratio = Mean(nll - base_nll, ids)
        difference = Mean(perplexity * nll - base_perplexity * base_nll, ids)
    change, square = Mean(delta_p, ids), Mean(delta_p**2, ids)
    metrics = {
        "count": nll.size,
        "is_clustered": loss.is_clustered,
        "interval_factor": loss.factor(),
        "perplexity": perplexity,
        "base_perplexity": base_perplexity,
        "correlation": _correlation(loss.stderr_of_tokens, base_loss.stderr_of_tokens, log_ratio.stderr_of_tokens),
        "log_perplexity_ratio": log_ratio.measure("signed", unit).estimate(),
        "perplexity_ratio": log_ratio.measure("exp signed", unit).estimate(),
        "perplexity_difference": difference.measure("signed", unit, perplexity - base_perplexity).estimate(),
        "mean_delta_p": change.measure("signed", unit).estimate(),
        "delta_p_quantiles": quantiles(np.sort(delta_p), DELTA_P_QUANTILES),
        "rms_delta_p": _root_of(square.measure("mean", unit)),
    }
    return metrics, {"loss": loss, "base_loss": base_loss, "loss_difference": log_ratio, "delta_p": change}


def _root_of(square: Measure) -> Estimate:
    """The root of a mean square."""
    root = math.sqrt(square.mean)

    def errors() -> Errors:
        stderr, (low, high) = square.stderr, square.interval
        return Errors(stderr / (2 * root) if root else stderr, (math.sqrt(low), math.sqrt(high)), square.unit)

    return Estimate(root, errors)


def sequence_table(means: dict[str, Mean]) -> dict[str, Array]:
    """Columns of a table of sequences: their number, their count of tokens, and these means."""
    sequences = means["loss"].sequences
    columns: dict[str, Array] = {"sequence": sequences.sequence, "count": sequences.count}
    return columns | {name: mean.sequences.loss for name, mean in means.items()}


def _correlation(stderr: float, base_stderr: float, stderr_of_difference: float) -> float:
    """Correlation of two means: the variance of their difference is the sum of both minus twice their covariance."""
    errors = stderr, base_stderr, stderr_of_difference
    exponent = math.frexp(max(errors))[1]  # a power of two, which leaves their squares finite
    stderr, base_stderr, stderr_of_difference = (math.ldexp(error, -exponent) for error in errors)
    product = 2 * stderr * base_stderr
    if not product > 0:
        return math.nan
    return max(-1.0, min(1.0, (stderr**2 + base_stderr**2 - stderr_of_difference**2) / product))


def quantiles(ordered: Float64Array, fractions: tuple[float, ...]) -> dict[float, Estimate]:
    """Quantiles of sorted values by linear interpolation; nan without values, or with a nan among them."""
    if not ordered.size or np.isnan(ordered[-1]):
        return dict.fromkeys(fractions, Estimate(math.nan))
    values = {}
    for fraction in fractions:
        below, rest = divmod(round(_PARTS * fraction) * (ordered.size - 1), _PARTS)
        low, high = float(ordered[below]), float(ordered[below + (rest > 0)])
        values[fraction] = Estimate(low if low == high else low * (1 - rest / _PARTS) + high * (rest / _PARTS))
    return values


def quantile_intervals(
    values: Float64Array, ordered: Float64Array, fractions: tuple[float, ...], segment_ids: IntArray | None, mean: Mean,
    tail: float = TAIL,
) -> dict[float, tuple[float, float]]:  # fmt: skip
    """Confidence intervals of quantiles of values >= 0, also given sorted, for fractions between 0 and 1.

    The true quantile lies below, and above, with a probability of at most `tail` each; by default they are of 95 %.
    Each end is an ordered value, by a binomial rank, or the estimate if that is farther out. With sequences, ranks are
    at least as far apart as the interval of the fraction of values below it (Woodruff, Journal of the American
    Statistical Association 47, 1952). `mean` is that of the values, which come in the order of their sequences.
    """
    inner = [fraction for fraction in fractions if 0 < fraction < 1]
    if not ordered.size or np.isnan(ordered[-1]):
        return dict.fromkeys(inner, (math.nan, math.nan))
    intervals, radii, estimates = {}, {}, quantiles(ordered, (*inner,))
    if segment_ids is not None and mean.is_clustered:
        radii = _clustered_radii(values, estimates, segment_ids, mean.factor(tail))
    for fraction, estimate in estimates.items():
        low, high = quantile_ranks(ordered.size, fraction, tail)
        if fraction in radii:
            low = min(low, max(0, math.floor(ordered.size * (fraction - radii[fraction]))))
            high = max(high, min(ordered.size, math.ceil(ordered.size * (fraction + radii[fraction]))) + 1)
        intervals[fraction] = (
            # rounding may make a 0 negative
            min(estimate, float(ordered[low - 1])) if low else min(0.0, float(ordered[0])),
            max(estimate, float(ordered[high - 1])) if high <= ordered.size else math.inf,
        )
    return intervals


def _quantile_reach(
    values: Float64Array, fraction: float, ids: IntArray | None, mean: Mean, limit: float, tail: float
) -> Reach:
    """The reach of a quantile; the number of texts needed is for the fraction of tokens within the limit."""
    n, below, ordered = values.size, Mean(values <= limit, ids), np.sort(values)
    low, high = quantile_intervals(values, ordered, (fraction,), ids, mean, tail)[fraction]
    radius = student_quantile(tail, max(n - 1, 1)) * math.sqrt(fraction * (1 - fraction) / max(n, 1))
    radius = max(radius, below.stderr * mean.factor(tail))
    needed = needed_count(mean._independent.count, radius, abs(below.mean - fraction), tail)
    return Reach(quantiles(ordered, (fraction,))[fraction], low, high, needed)


def _clustered_radii(
    values: Float64Array, limits: Mapping[float, float], segment_ids: IntArray, factor: float
) -> dict[float, float]:
    """Half the width of the interval of the fraction of values up to each limit, clustered by sequence."""
    groups = np.cumsum((np.diff(segment_ids, prepend=-1) != 0) | (segment_ids < 0)) - 1
    counts, radii = np.bincount(groups), {}
    for fraction, limit in limits.items():
        is_smaller = values <= limit
        residuals = np.bincount(groups, is_smaller) - is_smaller.mean() * counts
        variance = counts.size / (counts.size - 1) * float(residuals @ residuals)
        radii[fraction] = factor * math.sqrt(variance) / values.size
    return radii


def nan_last(value: float) -> tuple[bool, float]:
    """Sort key that puts nan after all numbers."""
    return math.isnan(value), value
