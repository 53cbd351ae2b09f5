"""Figures of two models from the losses of the same tokens: means, paired errors, quantiles, a table of sequences."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tokenloss._core.advice import void_of
from tokenloss._core.errors import raise_error
from tokenloss._core.exact import ExactMoments, exp
from tokenloss._core.files import identity
from tokenloss._core.result import Result, places_in, rows_of
from tokenloss._core.signature import signature_of
from tokenloss._statistics.distributions import TAIL, quantile_ranks, student_quantile
from tokenloss._statistics.estimates import Measure, Reach, needed_count
from tokenloss._statistics.gates import (
    Verdicts,
    beside_noise,
    checked_limits,
    checked_tail,
    independent_note,
    verdict_on,
)
from tokenloss._statistics.ratio import ExactRatio
from tokenloss._statistics.sequences import places_of, sums_by_segment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenloss._core.result import Shown
    from tokenloss._core.types import Array, BoolArray, Float64Array, IntArray
    from tokenloss._statistics.gates import Verdict

KL_QUANTILES = (1.0, 0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001, 0.0)
DELTA_P_QUANTILES = (1.0, 0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0.0)

_PARTS = 1_000_000  # fractions of quantiles are multiples of one of these parts of 1


@dataclass(frozen=True, eq=False, repr=False)
class PairedLosses(Result):
    """Figures that every comparison of two models' losses has. The docstrings of its subclasses get its attributes.

    Attributes
    ----------
    count : int
        Number of tokens that are compared.
    n_sequences : int
        Number of sequences with any such token; 0 without sequences.
    is_clustered : bool
        Whether standard errors are clustered by sequence: not without sequences, and not of a single one.
    interval_factor : float
        Number of standard errors from a mean to each end of its 95 % confidence interval, as of
        `LossMeter.interval_factor`: the interval of `perplexity_ratio` is ``exp(log_perplexity_ratio ±
        interval_factor * log_perplexity_ratio_stderr)``.
    perplexity, perplexity_stderr, base_perplexity, base_perplexity_stderr : float
        exp of the mean loss, of the model and of its base.
    correlation : float
        Correlation of the two models' losses; nan where one of them is the same for all tokens.
    log_perplexity_ratio, perplexity_ratio, perplexity_difference : float
        ``log(perplexity / base_perplexity)``, ``perplexity / base_perplexity`` and ``perplexity - base_perplexity``.
    log_perplexity_ratio_stderr, perplexity_ratio_stderr, perplexity_difference_stderr : float
        Standard errors from the paired differences of the tokens' losses.
    mean_delta_p, mean_delta_p_stderr, rms_delta_p, rms_delta_p_stderr : float
        Mean and root mean square of the change of the tokens' probabilities.
    delta_p_quantiles : dict
        By fraction of the tokens: 1.0 (the maximum), 0.999, 0.99, 0.95, 0.9, 0.75, 0.5 (the median), 0.25, 0.1, 0.05,
        0.01, 0.001 and 0.0 (the minimum), interpolated linearly.
    same_top, same_top_stderr : float
        Fraction of the tokens at which both models have the same most likely class, of those where this is known.
    nll, base_nll : array of float64
        Loss of each token in nats, by the model and by its base.
    delta_p : array of float64
        Change of the probability of each token.
    is_same_top, kept : array of bool
        Whether both models have the same most likely class, and whether the token is compared: neither ignored nor
        masked, and with a log-probability in both files of responses. Where it is not, arrays of floats are nan and
        other arrays of bool False.
    """

    GATES = ("max_kl", "max_kl_quantile", "min_same_top", "max_perplexity_ratio")  # that `check` takes
    _of_base: ClassVar[tuple[str, ...]] = ("base",)  # figures that are the same for all candidates of one base
    _divergence: ClassVar[str] = "kl"  # the array that has it
    _quantity: ClassVar[str] = "KL divergence"
    _unit: ClassVar[str] = "sequence"  # what errors take as independent

    count: int
    n_sequences: int
    is_clustered: bool
    interval_factor: float
    perplexity: float
    perplexity_stderr: float
    base_perplexity: float
    base_perplexity_stderr: float
    correlation: float
    log_perplexity_ratio: float
    log_perplexity_ratio_stderr: float
    perplexity_ratio: float
    perplexity_ratio_stderr: float
    perplexity_difference: float
    perplexity_difference_stderr: float
    mean_delta_p: float
    mean_delta_p_stderr: float
    delta_p_quantiles: dict[float, float]
    rms_delta_p: float
    rms_delta_p_stderr: float
    same_top: float
    same_top_stderr: float
    nll: Float64Array
    base_nll: Float64Array
    delta_p: Float64Array
    is_same_top: BoolArray
    kept: BoolArray
    sequences: dict[str, Array] | None
    _segment_ids: IntArray | None = field(default=None, kw_only=True)  # of all positions
    # what files say of the comparison, such as their names: more figures, which `==` does not compare
    _about: dict[str, Any] = field(default_factory=dict, compare=False, kw_only=True)
    _signed: dict[str, Any] = field(default_factory=dict, compare=False, kw_only=True)  # fields of the signature

    def __init_subclass__(cls) -> None:
        """Put the attributes of this class into the docstring of a subclass, before its own."""
        line = "-" * len("Attributes") + "\n"
        shared = (PairedLosses.__doc__ or "").partition(line)[2].rstrip()
        cls.__doc__ = (cls.__doc__ or "").replace(line, f"{line}{shared}\n", 1)

    @property
    def signature(self) -> str:
        """How the figures were computed, as far as it is known, in a line that can be published with them."""
        return signature_of(**self._signature_fields())

    def _signature_fields(self) -> dict[str, Any]:
        """Fields of its signature."""
        unit = "sequence" if self.is_clustered else "token"
        return {"unit": unit, "tokens": self.count, "sequences": self.n_sequences or None} | self._signed

    @property
    def _kl(self) -> Float64Array:
        """The divergence of each token, or its lower bound."""
        array: Float64Array = vars(self)[self._divergence]
        return array

    @property
    def _mean_kl(self) -> tuple[float, float]:
        """The mean divergence, or its lower bound, and its standard error."""
        mean, stderr = (vars(self)[f"mean_{self._divergence}{suffix}"] for suffix in ("", "_stderr"))
        return mean, stderr

    def _void(self, gate: str) -> str:
        """Why the metric of a gate means nothing; "" if it means something."""
        figures = self._about | self._signed | {"n_sentinels": getattr(self, "n_sentinels", 0)}
        return same_file_note(self._about) or void_of(figures, gate)

    @property
    def _equals_base(self) -> bool:
        """Whether the model has the base's loss at every token, and no divergence from it."""
        kl, nll, base_nll = (array[self.kept] for array in (self._kl, self.nll, self.base_nll))
        return bool(kl.size) and not kl.any() and np.array_equal(nll, base_nll, equal_nan=True)

    @staticmethod
    @abstractmethod
    def _shown_of(comparisons: Mapping[str, Any]) -> Shown:
        """What people see of one or several comparisons of this type, by the name of the candidate."""

    def _shown(self) -> Shown:
        """Tables of the figures."""
        return self._shown_of({self._about.get("name", "model"): self})

    def _rank(self) -> tuple[bool, float]:
        """Sort key: the mean divergence."""
        return nan_last(self._mean_kl[0])

    def _rows(self) -> list[dict[str, Any]]:
        """The figures, as the one row of a table."""
        return [self._figures()]

    def _figures(self) -> dict[str, Any]:
        """All figures; quantiles and their intervals are by fraction, as text: "1", "0.999" and so on."""
        figures: dict[str, Any] = {}
        for name, value in vars(self).items():
            if name == "sequences" or name.startswith("_"):
                continue
            if isinstance(value, dict):
                figures[name] = {
                    f"{fraction:g}": list(one) if isinstance(one, tuple) else one for fraction, one in value.items()
                }
            elif not isinstance(value, np.ndarray):
                figures[name] = value
        if self.sequences is not None and self.n_sequences:
            figures["sequences"] = rows_of(self.sequences)
        return self._about | figures | {"signature": self.signature} | self._about

    def check(
        self,
        *,
        max_kl: float | None = None,
        max_kl_quantile: Mapping[float, float] | None = None,
        min_same_top: float | None = None,
        max_perplexity_ratio: float | None = None,
        confidence: float = 0.95,
        noise: PairedLosses | None = None,
    ) -> Verdicts:
        """Tell whether figures keep to limits, for all texts of this kind and not for these alone.

        A gate holds where the whole interval of its figure does, and fails where the interval lies beyond the limit;
        else these texts cannot tell. A value that is nan or infinite fails; without any token, the gate cannot tell.

        Parameters
        ----------
        max_kl : float, optional
            The largest mean KL divergence in nats. Of responses, a lower bound is known, which can fail this gate and
            the next one, but never hold it.
        max_kl_quantile : mapping of float to float, optional
            The largest quantiles of the divergence, by fraction of the tokens: ``{0.99: 0.3}``.
        min_same_top : float, optional
            The smallest fraction of the tokens at which both models have the same most likely class.
        max_perplexity_ratio : float, optional
            The largest ``perplexity / base_perplexity``.
        confidence : float, default 0.95
            The confidence of the two-sided intervals: if the limit is the true value, a gate is meant to hold with a
            probability of 2.5 %, and to fail with the same probability.
        noise : Comparison, optional
            A second run of the base, compared with it in the same way: a note says which gates it does not pass itself.

        Returns
        -------
        Verdicts
            Its `verdict` is "holds", "fails" or "cannot tell", and `gates` has that of each gate.

        Raises
        ------
        TypeError, ValueError
            If a limit or `confidence` is invalid, if no gate is given, or `max_perplexity_ratio` without targets.

        Notes
        -----
        Intervals come from standard errors that are clustered by sequence. For a mean divergence, which is skewed, and
        for a ratio, they are intervals of the logarithm; for a quantile, see `kl_quantile_intervals`. For a fraction,
        the interval is binomial, with the number of independent tokens that would have its standard error (Korn and
        Graubard, Survey Methodology 24, 1998), and its ends are at least ``(1 - 0.025 ** (1 / G)) / 2`` from 0 and 1,
        which allows for a kind of text that does not occur in the G sequences. A model that equals its base at every
        token needs no interval.

        Examples
        --------
        >>> import numpy as np
        >>> from tokenloss import compare
        >>> base = np.random.default_rng(0).normal(size=(40, 50, 8))  # 40 documents
        >>> comparison = compare(base, 0.9 * base, np.zeros((40, 50), int), segment_ids=np.arange(40)[:, None])
        >>> print(comparison.check(max_kl=0.01, max_kl_quantile={0.99: 0.01}, min_same_top=0.9).summary())
        gates  holds
        <BLANKLINE>
          gate                  limit     figure           95 % interval  verdict  note
          max_kl                 0.01  0.0029001  0.0028399 to 0.0029616  holds
          max_kl_quantile 0.99   0.01  0.0077102  0.0073774 to 0.0083003  holds
          min_same_top            0.9          1            0.95595 to 1  holds
        """
        given = {
            "max_kl": max_kl, "max_kl_quantile": max_kl_quantile, "min_same_top": min_same_top,
            "max_perplexity_ratio": max_perplexity_ratio,
        }  # fmt: skip
        limits, tail = checked_limits(**given), checked_tail(confidence)
        if not isinstance(noise, type(self) | None):
            raise_error("type", name="noise", got=type(noise).__name__, fits=f"a {type(self).__name__}, or None")
        if "max_perplexity_ratio" in limits and not getattr(self, "has_targets", True):
            fits = "is for losses, which need targets, and there are none"
            raise_error("not for", name="max_perplexity_ratio", fits=fits)
        verdicts = [self._verdict(gate, *limit, tail) for gate, limit in limits.items()]
        if noise is not None:
            verdicts = beside_noise(verdicts, [noise._verdict(gate, *limit, tail) for gate, limit in limits.items()])
        return Verdicts(verdicts, float(confidence))

    def _verdict(self, gate: str, fraction: float | None, limit: float, tail: float) -> Verdict:
        """The verdict on a gate, which is that of a quantile if a fraction is given."""
        mask = getattr(self, "is_top_known", self.kept) if gate == "min_same_top" else self.kept
        index, ids = included(mask.reshape(-1), self._segment_ids)
        kl, nll, base_nll, is_same_top = (
            vars(self)[name].reshape(-1)[index] for name in (self._divergence, "nll", "base_nll", "is_same_top")
        )
        if gate == "min_same_top":
            mean = Mean(is_same_top, ids)
            estimate = Measure(mean.mean, mean._independent, "", "share", kl.size).reach(tail, limit)
        elif gate == "max_perplexity_ratio":
            with np.errstate(invalid="ignore"):  # infinite losses
                mean = Mean(nll - base_nll, ids)
            estimate = Measure(mean.mean, mean._independent, method="exp signed").reach(tail, limit)
        else:
            mean = Mean(kl, ids)
            estimate = Measure(mean.mean, mean._independent).reach(tail, limit)
            if fraction is not None:
                estimate = _quantile_estimate(kl, fraction, ids, mean, limit, tail)
        count, unit = mean._independent.count, self._unit if mean.is_clustered else "token"
        notes = independent_note(count, unit, mean.factor(tail))
        is_lower_bound = gate.startswith("max_kl") and self._divergence != "kl"
        void = self._void(gate)
        is_equal = self._equals_base and not is_lower_bound and math.isfinite(estimate.value)
        if is_equal:  # other texts would change nothing
            estimate = estimate._replace(low=estimate.value, high=estimate.value)
            notes = ["identical to the base at every token"]
        verdict = verdict_on(gate, limit, estimate, count, unit, notes=notes, is_lower_bound=is_lower_bound, void=void)
        return verdict._replace(interval=(math.nan, math.nan)) if is_equal else verdict

    def columns(self) -> dict[str, Array]:
        """Columns of a table that has a row for each token.

        Returns
        -------
        dict of 1-D arrays
            By name, as the attributes. First come `sequence` and `position`, where sequences were given: the number of
            the sequence, and the place in it, from 0; -1 outside of any. Else, if the batch has several axes, they are
            the index along its first axis, and the place in the others in C order.
        """
        ids, arrays = self._segment_ids, {name: value for name, value in vars(self).items() if name[0] != "_"}
        places = places_in(self.kept.shape) if ids is None else places_of(ids)
        return places | {name: array.reshape(-1) for name, array in arrays.items() if isinstance(array, np.ndarray)}


def same_file_note(about: Mapping[str, Any]) -> str:
    """Why gates of a comparison say nothing if both models are one file; "" if they are not."""
    files = [identity(about[key]) for key in ("base", "file", "trainer", "sampler") if key in about]
    return "the base is compared with itself" if len(files) == 2 and files[0] == files[1] else ""


def included(mask: BoolArray, segment_ids: IntArray | None) -> tuple[Array, IntArray | None]:
    """Index of the positions of the mask, in the order of their sequences if these are given, and their numbers."""
    if segment_ids is None:
        return mask, None
    index = np.flatnonzero(mask)
    index = index[np.argsort(segment_ids[index], kind="stable")]  # sorted once, instead of for each sum
    return index, segment_ids[index]


class Mean:
    """The mean of a quantity that each token has, its standard error, and the mean of each sequence."""

    def __init__(self, values: Array, segment_ids: IntArray | None) -> None:
        values = values.astype(np.float64, copy=False)
        self._independent = tokens = ExactRatio.of_mean(ExactMoments.of(values))  # tokens, or sequences
        self.mean = tokens.ratio
        self.stderr = self.stderr_of_tokens = tokens.stderr
        self.is_clustered = False
        if segment_ids is None:
            return
        self.sequences = sums_by_segment(values, None, segment_ids)
        groups = ExactRatio.of(self.sequences.nll, self.sequences.count.astype(np.float64))
        groups += ExactRatio.of_mean(ExactMoments.of(values, segment_ids < 0))
        if self.sequences.sequence.size and groups.count > 1:
            self._independent = groups
            self.stderr = groups.stderr
            self.is_clustered = True

    def factor(self, tail: float = TAIL) -> float:
        """The number of standard errors from the mean to each end of its interval, by default of 95 %."""
        return self._independent.factor(tail)


def paired_figures(
    nll: Float64Array, base_nll: Float64Array, delta_p: Float64Array, ids: IntArray | None
) -> tuple[dict[str, Any], dict[str, Mean]]:
    """Fields of `PairedLosses`, and the means that they come from, which know the mean of each sequence."""
    loss, base_loss = Mean(nll, ids), Mean(base_nll, ids)
    perplexity, base_perplexity = exp(loss.mean), exp(base_loss.mean)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite losses
        log_ratio = Mean(nll - base_nll, ids)
        difference = Mean(perplexity * nll - base_perplexity * base_nll, ids)
    change, square = Mean(delta_p, ids), Mean(delta_p**2, ids)
    ratio, rms = exp(log_ratio.mean), math.sqrt(square.mean)
    figures = {
        "count": nll.size,
        "n_sequences": 0 if ids is None else loss.sequences.sequence.size,
        "is_clustered": loss.is_clustered,
        "interval_factor": loss.factor(),
        "perplexity": perplexity,
        "perplexity_stderr": perplexity * loss.stderr,
        "base_perplexity": base_perplexity,
        "base_perplexity_stderr": base_perplexity * base_loss.stderr,
        "correlation": _correlation(loss.stderr_of_tokens, base_loss.stderr_of_tokens, log_ratio.stderr_of_tokens),
        "log_perplexity_ratio": log_ratio.mean,
        "log_perplexity_ratio_stderr": log_ratio.stderr,
        "perplexity_ratio": ratio,
        "perplexity_ratio_stderr": ratio * log_ratio.stderr,
        "perplexity_difference": perplexity - base_perplexity,
        "perplexity_difference_stderr": difference.stderr,
        "mean_delta_p": change.mean,
        "mean_delta_p_stderr": change.stderr,
        "delta_p_quantiles": quantiles(np.sort(delta_p), DELTA_P_QUANTILES),
        "rms_delta_p": rms,
        "rms_delta_p_stderr": square.stderr / (2 * rms) if rms else square.stderr,
    }
    return figures, {"loss": loss, "base_loss": base_loss, "loss_difference": log_ratio, "delta_p": change}


def sequence_table(means: dict[str, Mean]) -> dict[str, Array]:
    """Columns of a table of sequences: their number, their count of tokens, and these means."""
    sequences = means["loss"].sequences
    columns: dict[str, Array] = {"sequence": sequences.sequence, "count": sequences.count}
    return columns | {name: mean.sequences.loss for name, mean in means.items()}


def _correlation(stderr: float, base_stderr: float, stderr_of_difference: float) -> float:
    """Correlation of two means: the variance of their difference is that of both less twice the covariance."""
    errors = stderr, base_stderr, stderr_of_difference
    exponent = math.frexp(max(errors))[1]  # a power of two, which leaves their squares finite
    stderr, base_stderr, stderr_of_difference = (math.ldexp(error, -exponent) for error in errors)
    product = 2 * stderr * base_stderr
    if not product > 0:
        return math.nan
    return max(-1.0, min(1.0, (stderr**2 + base_stderr**2 - stderr_of_difference**2) / product))


def quantiles(ordered: Float64Array, fractions: tuple[float, ...]) -> dict[float, float]:
    """Quantiles of sorted values by linear interpolation; nan without values, or with a nan among them."""
    if not ordered.size or np.isnan(ordered[-1]):
        return dict.fromkeys(fractions, math.nan)
    values = {}
    for fraction in fractions:
        below, rest = divmod(round(_PARTS * fraction) * (ordered.size - 1), _PARTS)
        low, high = float(ordered[below]), float(ordered[below + (rest > 0)])
        values[fraction] = low if low == high else low * (1 - rest / _PARTS) + high * (rest / _PARTS)
    return values


def quantile_intervals(
    values: Float64Array, fractions: tuple[float, ...], segment_ids: IntArray | None, mean: Mean, tail: float = TAIL
) -> dict[float, tuple[float, float]]:
    """Confidence intervals of quantiles of values of at least 0, for the fractions that are neither 0 nor 1.

    The true quantile lies below, and above, with a probability of at most `tail` each; by default they are of 95 %.
    Each end is an ordered value, by a binomial rank, or the estimate if that is farther out. With sequences, ranks are
    at least as far apart as the interval of the fraction of values below it (Woodruff, Journal of the American
    Statistical Association 47, 1952). `mean` is that of the values, which come in the order of their sequences.
    """
    ordered = np.sort(values)
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


def _quantile_estimate(
    values: Float64Array, fraction: float, ids: IntArray | None, mean: Mean, limit: float, tail: float
) -> Reach:
    """The estimate of a quantile, which more texts tell from a limit as they tell what fraction of tokens it bounds."""
    n, below = values.size, Mean(values <= limit, ids)
    low, high = quantile_intervals(values, (fraction,), ids, mean, tail)[fraction]
    radius = student_quantile(tail, max(n - 1, 1)) * math.sqrt(fraction * (1 - fraction) / max(n, 1))
    radius = max(radius, below.stderr * mean.factor(tail))
    needed = needed_count(mean._independent.count, radius, abs(below.mean - fraction), tail)
    return Reach(quantiles(np.sort(values), (fraction,))[fraction], low, high, needed)


def _clustered_radii(
    values: Float64Array, limits: dict[float, float], segment_ids: IntArray, factor: float
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
