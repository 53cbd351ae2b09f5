"""Figures of two models from the losses of the same tokens: means, paired errors, quantiles, a table of sequences."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core.exact import ExactMoments, exp
from tokenloss._statistics.distributions import quantile_ranks
from tokenloss._statistics.ratio import ExactRatio
from tokenloss._statistics.sequences import sums_by_segment

if TYPE_CHECKING:
    from tokenloss._core.types import Array, Float64Array, IntArray

KL_QUANTILES = (1.0, 0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001, 0.0)
_DELTA_P_QUANTILES = (1.0, 0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0.0)


class Mean:
    """The mean of a quantity that each token has, its standard error, and the mean of each sequence."""

    def __init__(self, values: Array, segment_ids: IntArray | None) -> None:
        values = values.astype(np.float64, copy=False)
        self._independent = tokens = ExactRatio.of_mean(ExactMoments.of(values))  # what errors take as independent
        self.mean = tokens.ratio
        self.stderr = self.stderr_of_tokens = tokens.stderr
        self.is_clustered = False
        if segment_ids is None:
            return
        self.sequences = sums_by_segment(values, None, segment_ids)
        groups = ExactRatio.of(self.sequences.nll, self.sequences.count.astype(np.float64))
        groups += ExactRatio.of_mean(ExactMoments.of(values, segment_ids < 0))
        if self.sequences.ids.size and groups.count > 1:
            self._independent = groups
            self.stderr = groups.stderr
            self.is_clustered = True

    @property
    def interval_factor(self) -> float:
        """The number of standard errors from the mean to each end of its 95 % confidence interval."""
        return self._independent.interval_factor


def paired_figures(
    nll: Float64Array, base_nll: Float64Array, delta_p: Float64Array, ids: IntArray | None
) -> tuple[dict[str, Any], dict[str, Mean]]:
    """Figures of the losses of two models for the same tokens, and their means, which are of each sequence, too."""
    loss, base_loss = Mean(nll, ids), Mean(base_nll, ids)
    perplexity, base_perplexity = exp(loss.mean), exp(base_loss.mean)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite losses
        log_ratio = Mean(nll - base_nll, ids)
        difference = Mean(perplexity * nll - base_perplexity * base_nll, ids)
    change, square = Mean(delta_p, ids), Mean(delta_p**2, ids)
    ratio, rms = exp(log_ratio.mean), math.sqrt(square.mean)
    figures = {
        "count": nll.size,
        "n_sequences": 0 if ids is None else loss.sequences.ids.size,
        "is_clustered": loss.is_clustered,
        "interval_factor": loss.interval_factor,
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
        "delta_p_quantiles": quantiles(np.sort(delta_p), _DELTA_P_QUANTILES),
        "rms_delta_p": rms,
        "rms_delta_p_stderr": square.stderr / (2 * rms) if rms else square.stderr,
    }
    return figures, {"loss": loss, "base_loss": base_loss, "loss_difference": log_ratio, "delta_p": change}


def sequence_table(means: dict[str, Mean]) -> dict[str, Array]:
    """Columns of a table of sequences: their number, their tokens, and these means."""
    of = means["loss"].sequences
    columns: dict[str, Array] = {"sequence": of.ids, "tokens": of.count}
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
    found = {}
    for fraction in fractions:
        below, rest = divmod(round(1000 * fraction) * (ordered.size - 1), 1000)
        low, high = float(ordered[below]), float(ordered[below + (rest > 0)])
        found[fraction] = low if low == high else low * (1 - rest / 1000) + high * (rest / 1000)
    return found


def quantile_intervals(
    values: Float64Array, fractions: tuple[float, ...], segment_ids: IntArray | None, mean: Mean
) -> dict[float, tuple[float, float]]:
    """Intervals of 95 % of quantiles between 0 and 1 of values that are not negative, by order statistics.

    Their ranks are binomial. With sequences they are at least as far apart as the interval of the fraction of values up
    to the quantile (Woodruff, Journal of the American Statistical Association 47, 1952). `mean` is that of the values,
    which come in the order of their sequences.
    """
    ordered = np.sort(values)
    inner = [fraction for fraction in fractions if 0 < fraction < 1]
    if not ordered.size or np.isnan(ordered[-1]):
        return dict.fromkeys(inner, (math.nan, math.nan))
    found, radii = {}, {}
    if segment_ids is not None and mean.is_clustered:
        radii = _clustered_radii(values, quantiles(ordered, (*inner,)), segment_ids, mean.interval_factor)
    for fraction in inner:
        low, high = quantile_ranks(ordered.size, fraction)
        if fraction in radii:
            low = min(low, max(0, math.floor(ordered.size * (fraction - radii[fraction]))))
            high = max(high, min(ordered.size, math.ceil(ordered.size * (fraction + radii[fraction]))) + 1)
        found[fraction] = (
            float(ordered[low - 1]) if low else min(0.0, float(ordered[0])),  # rounding may make a 0 negative
            float(ordered[high - 1]) if high <= ordered.size else math.inf,
        )
    return found


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
    """Key by which numbers are sorted, nan after all others."""
    return math.isnan(value), value


def as_json_figures(comparison: Any) -> dict[str, Any]:
    """All figures of a comparison, without the arrays of positions, as JSON can hold them."""
    figures: dict[str, Any] = {}
    for field in fields(comparison):
        value = getattr(comparison, field.name)
        if field.name == "sequences" or field.name.startswith("_"):
            continue
        if isinstance(value, dict):
            figures[field.name] = {
                f"{fraction:g}": list(found) if isinstance(found, tuple) else found for fraction, found in value.items()
            }
        elif not isinstance(value, np.ndarray):
            figures[field.name] = value
    if comparison.sequences is not None and comparison.n_sequences:
        figures["sequences"] = rows_of(comparison.sequences)
    return figures


def rows_of(table: dict[str, Array]) -> list[dict[str, Any]]:
    """The rows of a table of columns."""
    rows = zip(*(column.tolist() for column in table.values()), strict=True)
    return [dict(zip(table, row, strict=True)) for row in rows]
