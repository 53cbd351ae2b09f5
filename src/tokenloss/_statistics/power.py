"""Power: the differences that a sample can detect, the sample that a difference needs, and Holm's correction."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from tokenloss._statistics.distributions import TAIL, student_quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._core.estimate import Estimate

POWER = 0.8  # the probability with which a detectable difference is found
_MANY = 1e6  # degrees of freedom from which Student's t is the normal distribution
_NORMAL = 2.8015851  # standard errors that are detectable then
_MOST = 10**12  # texts


def detectable(estimate: Estimate) -> float:
    """The smallest difference that a two-sided 5 % test detects with a probability of 80 %, given one with its errors.

    It is about 2.8 standard errors, and more for few sequences: exact for Student's t, whose degrees of freedom follow
    from the width of the interval.
    """
    stderr, (low, high) = estimate.stderr, estimate.interval
    if not stderr > 0 or not high > low:
        return math.nan
    return stderr * _standard_errors(_dof_of((high - low) / 2 / stderr))


def needed_for(estimate: Estimate, count: int, difference: float) -> int | None:
    """How many sequences would detect a difference, if they vary as these do; None if that is not known."""
    spread = estimate.stderr * math.sqrt(count)
    if not spread > 0 or (_NORMAL * spread / difference) ** 2 > _MOST:
        return None
    number = max(2, math.ceil((_NORMAL * spread / difference) ** 2 - 1e-3))
    while _standard_errors(number - 1.0) * spread / math.sqrt(number) > difference:
        number += 1
    return number


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        adjusted[i] = largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
    return adjusted


def _dof_of(factor: float) -> float:
    """The degrees of freedom with which a 95 % interval by Student's t reaches this many standard errors."""
    low, high = 0.05, _MANY
    if factor <= student_quantile(TAIL, high):
        return high
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if student_quantile(TAIL, middle) > factor else (low, middle)
    return high


def _noncentrality(dof: float) -> float:
    """The detectable number of standard errors: the noncentrality at which Student's t exceeds its limit that often."""
    if dof >= _MANY:
        return _NORMAL
    limit = student_quantile(TAIL, dof)
    # logarithms of the ratio of the estimated error to the true one, the square root of a chi-squared over its mean;
    # its density falls so fast on both sides that a plain sum is the integral
    logs = np.linspace(-37 / dof - 9 / math.sqrt(dof), 9 / math.sqrt(dof), 200 + int(3000 / dof))
    weights = np.exp(dof * (logs - np.expm1(2 * logs) / 2))
    reach = limit * np.exp(logs[weights > 0])
    weights = weights[weights > 0] / weights.sum()
    low, high = 0.0, 3 * limit + 5
    while low < (middle := (low + high) / 2) < high and high - low > 1e-10 * high:
        beyond = [math.erfc((one - middle) / math.sqrt(2)) + math.erfc((one + middle) / math.sqrt(2)) for one in reach]
        low, high = (middle, high) if weights @ np.array(beyond) / 2 < POWER else (low, middle)
    return high


_standard_errors = functools.lru_cache(maxsize=256)(_noncentrality)
