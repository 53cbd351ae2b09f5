"""Figures of a mismatch: the divergence by three estimators, means of ratios, effective sample sizes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.paired import Mean
from tokenloss._core.exact import exp
from tokenloss._statistics.distributions import TAIL
from tokenloss._statistics.gates import Estimate, mean_estimate, needed_count, share_estimate
from tokenloss._statistics.ratio import interval_above_0

if TYPE_CHECKING:
    from tokenloss._core.types import Array, Float64Array, IntArray

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


def token_figures(
    difference: Float64Array, ratio: Float64Array, ids: IntArray | None, epsilon: float
) -> tuple[dict[str, Any], Mean]:
    """Figures of tokens with their errors and intervals, and the mean of k1."""
    outside = np.where(np.isnan(ratio), np.nan, (ratio < 1 - epsilon) | (ratio > 1 + epsilon))
    values = {
        "k1": 0.0 - difference,
        "k2": difference**2 / 2,
        "k3": k3_of(difference),
        "mean_abs_difference": np.abs(difference),
        "outside": outside,
    }
    figures: dict[str, Any] = {}
    means = {name: Mean(array, ids) for name, array in values.items()}
    for name, mean in means.items():
        radius = mean.factor() * mean.stderr
        ends = mean.mean - radius, mean.mean + radius
        if name == "outside":
            ends = share_estimate(mean.mean, difference.size, mean._independent, mean.mean, TAIL)[1:3]
        elif name != "k1":
            ends = mean_estimate(mean.mean, mean._independent, mean.mean, TAIL)[1:3]
        figures |= {name: mean.mean, f"{name}_stderr": mean.stderr, f"{name}_interval": ends}
    value, stderr, _, factor = _mean_of_exp(difference, ids)
    figures |= {"mean_ratio": value, "mean_ratio_stderr": stderr}
    figures["mean_ratio_interval"] = interval_above_0(value, stderr, factor)
    k3 = np.sort(values["k3"])
    total, top = float(k3.sum()), float(k3[k3.size - -(-k3.size // 100) :].sum())
    figures["top_k3_share"] = top / total if 0 < total < math.inf else math.nan
    return figures | _effective_figures("ess", difference, ids), means["k1"]


def sequence_table(difference: Float64Array, ids: IntArray) -> dict[str, Array]:
    """Columns of the table of sequences."""
    sums, k3 = Mean(difference, ids).sequences, Mean(k3_of(difference), ids).sequences
    ratios = {"ratio": np.exp(sums.nll), "geometric_ratio": np.exp(sums.loss)}
    columns = {"sequence": sums.sequence, "count": sums.count, "difference": sums.loss, "k3": k3.loss}
    return columns | {"log_ratio": sums.nll} | ratios


def sequence_figures(log_ratios: Float64Array, counts: Array) -> dict[str, Any]:
    """Figures of sequences, which are independent; nan without any."""
    value, stderr, log, _ = _mean_of_exp(log_ratios, None)
    figures: dict[str, Any] = {"mean_sequence_ratio": value, "mean_sequence_ratio_stderr": stderr}
    figures["log_mean_sequence_ratio"] = log
    value, stderr, *_ = _mean_of_exp(log_ratios / counts, None)
    figures |= {"mean_geometric_ratio": value, "mean_geometric_ratio_stderr": stderr}
    return figures | _effective_figures("sequence_ess", log_ratios, None)


def _mean_of_exp(logs: Float64Array, ids: IntArray | None) -> tuple[float, float, float, float]:
    """The mean of exponentials, its error, its logarithm, and how many errors its interval reaches."""
    top = float(logs.max(initial=0.0))
    shift = top if _LARGEST < top < math.inf else 0.0  # else they are as exact as their sum
    mean = Mean(np.exp(logs - shift), ids)
    log = (math.log(mean.mean) if mean.mean else -math.inf) + shift
    factor = exp(shift)
    return mean.mean * factor, mean.stderr * factor, log, mean.factor()


def effective(logs: Float64Array, ids: IntArray | None, limit: float | None, tail: float) -> tuple[Estimate, Mean]:
    """The estimate of the effective sample size of weights ``exp(logs)``, as a fraction of their number.

    It is 1 / (1 + v) with v their variance over the square of their mean. The mean that comes with it is v, as the mean
    of what each weight adds to it and to its error. The interval is by the jackknife of log v, over sequences.
    """
    weights = np.exp(logs - logs.max(initial=-math.inf))
    weights /= Mean(weights, None).mean
    squares = (weights - 1) ** 2
    variance = Mean(squares, None).mean
    mean = Mean(squares - 2 * variance * (weights - 1), ids)
    of_variance = variance if limit is None else 1 / limit - 1 if limit else math.inf
    estimate = mean_estimate(variance, mean._independent, of_variance, tail)
    values = _pseudo_values(weights - 1, squares, variance, ids if mean.is_clustered else None)
    if values is not None:
        jackknifed, whole = Mean(values, None), math.log(variance)
        radius = mean.factor(tail) * jackknifed.stderr
        ends = exp(min(jackknifed.mean, whole) - radius), exp(max(jackknifed.mean, whole) + radius)
        distance = abs((math.log(of_variance) if of_variance else -math.inf) - whole)
        needed = needed_count(mean._independent.count, radius, distance, tail)
        estimate = Estimate(variance, *ends, needed)
    figure, high, low = (1 / (1 + value) for value in estimate[:3])
    return estimate._replace(figure=figure, low=low, high=high), mean


def _pseudo_values(
    changes: Float64Array, squares: Float64Array, variance: float, ids: IntArray | None
) -> Float64Array | None:
    """The pseudo-value of log v for each sequence (or token), by the jackknife of Miller, Ann. Math. Stat. 39, 1968.

    None if one sequence has all of v, or if v is not finite.
    """
    numbers = np.arange(changes.size)
    groups = numbers if ids is None else np.unique(np.where(ids < 0, -1 - numbers, ids), return_inverse=True)[1]
    counts, sums, of_squares = (np.bincount(groups, weights) for weights in (None, changes, squares))
    if counts.size < 2 or not 0 < variance < math.inf:
        return None
    left = counts.sum() - counts
    shift = (math.fsum(sums) - sums) / left
    without = ((math.fsum(of_squares) - of_squares) / left - shift**2) / (1 + shift) ** 2
    if not without.min() > _LEAST_LEFT * variance:
        return None
    values: Float64Array = counts.size * math.log(variance) - (counts.size - 1) * np.log(without)
    return values


def _effective_figures(name: str, logs: Float64Array, ids: IntArray | None) -> dict[str, Any]:
    """The effective sample size as a fraction, its error and its interval."""
    estimate, mean = effective(logs, ids, None, TAIL)
    interval, stderr = (estimate.low, estimate.high), estimate.figure**2 * mean.stderr
    return {name: estimate.figure, f"{name}_stderr": stderr, f"{name}_interval": interval}
