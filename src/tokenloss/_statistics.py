"""Tails of distributions, for tests of significance and intervals."""

from __future__ import annotations

import math

import numpy as np

_EXACT = 2000  # trials up to which integers are summed


def binomial_tail(k: int, n: int) -> float:
    """Probability of at most k heads among n throws of a fair coin."""
    if n <= _EXACT:
        chosen = all_chosen = 1  # of i heads, and of at most i
        for i in range(k):
            chosen = chosen * (n - i) // (i + 1)
            all_chosen += chosen
        return all_chosen / (1 << n)  # integers divide with a single rounding
    if k >= n / 2:
        return 1.0 if k >= n else 1 - binomial_tail(n - k - 1, n)
    # Loader's form of the probability of k, by Stirling's series, whose error matters only where the tail is 0 anyway
    d = (n - 2 * k) / n
    if d > 0.9:
        return 0.0
    deviance = n / 2 * ((1 - d) * math.log1p(-d) + (1 + d) * math.log1p(d))
    series = _stirling(n) - _stirling(k) - _stirling(n - k)
    term = total = 1.0
    for i in range(k, 0, -1):
        term *= i / (n - i + 1)
        total += term
        if term < 1e-18 * total:
            break
    return total * math.exp(series - deviance) * math.sqrt(n / (2 * math.pi * k * (n - k)))


def quantile_ranks(n: int, fraction: float) -> tuple[int, int]:
    """Ranks, from 1, of the ordered values that bound a quantile of what n values were drawn from.

    It lies below the first, or above the second, with a probability of at most 2.5 % each: how many values lie below
    the quantile is binomial. A rank is 0, or n + 1, where no value bounds that end.
    """
    mean = n * fraction
    width = 20 + 10 * math.sqrt(mean * (1 - fraction))  # what lies beyond is less than a rounding error
    first = max(0, math.floor(mean - width))
    counts = np.arange(first, min(n, math.ceil(mean + width)))
    steps = np.log((n - counts) / (counts + 1) * (fraction / (1 - fraction)))  # from each probability to the next
    logs = np.concatenate([[0.0], np.cumsum(steps)])
    tails = np.cumsum(np.exp(logs - logs.max()))  # of at most so many
    low, high = np.searchsorted(tails, tails[-1] * np.array([0.025, 0.975])).tolist()
    return first + low, first + high + 1


def _stirling(n: int) -> float:
    """Error of Stirling's approximation of log(n!)."""
    return (1 - (1 - 2 / 7 / n**2) / 30 / n**2) / 12 / n


def student_tail(t: float, dof: int) -> float:
    """Probability that Student's t of so many degrees of freedom is above t."""
    if t < 0:
        return 1 - student_tail(-t, dof)
    if math.isinf(t):
        return 0.0
    square = t * t
    below, above = dof / (dof + square), square / (dof + square)
    if below < (dof + 2) / (dof + 5):
        return _incomplete_beta(dof / 2, 0.5, below, above) / 2
    return 0.5 - _incomplete_beta(0.5, dof / 2, above, below) / 2


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """Regularised incomplete beta function for an x below its mean, by the continued fraction; `rest` is 1 - x."""
    if not x:
        return 0.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))  # Lentz's algorithm
    fraction = d
    for m in range(1, 100_000):
        before = fraction
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            c, d = 1 + numerator / c, 1 / (1 + numerator * d)
            fraction *= c * d
        if abs(fraction - before) < 1e-16 * fraction:
            break
    return math.exp(log_front) * fraction / a


def student_quantile(tail: float, dof: int) -> float:
    """The t above which Student's t has this probability, a small one."""
    low, high = 0.0, 1.0
    while student_tail(high, dof) > tail:
        high *= 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if student_tail(middle, dof) > tail else (low, middle)
    return high
