"""Tails of distributions, for tests of significance and intervals."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenloss._core.types import Float64Array

TAIL = 0.025  # the probability beyond each end of a 95 % interval
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


def mcnemar_p(lost: int, won: int) -> float:
    """The two-sided p-value of McNemar's exact test, given how many samples only one of the models gets right."""
    return min(1.0, 2 * binomial_tail(min(lost, won), lost + won))


def quantile_ranks(n: int, fraction: float, tail: float = TAIL) -> tuple[int, int]:
    """Ranks, from 1, of the ordered values that bound a quantile of the distribution from which n values were drawn.

    It is below the first, or above the second, with a probability of at most `tail` each: how many values are below
    the quantile is binomial. A rank is 0, or n + 1, where no value bounds that end.
    """
    mean = n * fraction
    width = 20 + 10 * math.sqrt(mean * (1 - fraction))  # the probability beyond is less than a rounding error
    first = max(0, math.floor(mean - width))
    counts = np.arange(first, min(n, math.ceil(mean + width)))
    steps = np.log((n - counts) / (counts + 1) * (fraction / (1 - fraction)))  # from each probability to the next
    logs = np.concatenate([[0.0], np.cumsum(steps)])
    tails = np.cumsum(np.exp(logs - logs.max()))  # of at most this count
    low, high = np.searchsorted(tails, tails[-1] * np.array([tail, 1 - tail])).tolist()
    return first + low, first + high + 1


def _stirling(n: int) -> float:
    """Error of Stirling's approximation of log(n!)."""
    return (1 - (1 - 2 / 7 / n**2) / 30 / n**2) / 12 / n


def student_tail(t: float, dof: float) -> float:
    """Probability that Student's t with `dof` degrees of freedom is above t."""
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
    """Regularized incomplete beta function for an x below its mean, by the continued fraction; `rest` is 1 - x."""
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


def binomial_interval(share: float, n: float, tail: float) -> tuple[float, float]:
    """Ends of an interval of a probability, given the share of successes in n trials, which need not be an integer.

    The true one is above, and below, with a probability of at most `tail` each (Clopper and Pearson, Biometrika 26,
    1934).
    """
    return _least_probability(share, n, tail), 1 - _least_probability(1 - share, n, tail)


def _least_probability(share: float, n: float, tail: float) -> float:
    """The probability at which at least this share of n trials succeeds as rarely as `tail`: a quantile of a beta."""
    a, b = share * n, n - share * n + 1
    low, high = 0.0, share
    for _ in range(60 if share else 0):
        middle = (low + high) / 2
        if middle < (a + 1) / (a + b + 2):
            below = _incomplete_beta(a, b, middle, 1 - middle)
        else:
            below = 1 - _incomplete_beta(b, a, 1 - middle, middle)
        low, high = (middle, high) if below < tail else (low, middle)
    return low


def _student_quantile(tail: float, dof: float) -> float:
    """The t that Student's t exceeds with this small probability."""
    low, high = 0.0, 1.0
    while student_tail(high, dof) > tail:
        high *= 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if student_tail(middle, dof) > tail else (low, middle)
    return high


student_quantile = functools.lru_cache(maxsize=1000)(_student_quantile)  # stubtest sees no arguments of decorated ones


# -- ratios of sums over sequences -------------------------------------------------------------------------------------

Lengths = tuple[tuple[float, float], ...]  # lengths, the largest 1.0, and how many sequences have each


def equivalent_lengths(n: int, *rests: float) -> Lengths:
    """At most three lengths, among them the largest, with the sums of the powers 0 to 4 of the lengths of n sequences.

    They are the nodes of Gauss-Radau quadrature (Golub, SIAM Review 15, 1973); how many sequences have each need not be
    an integer. `rests` are sums over the sequences of (1 - u) * u**k, for k from 0 to 3 and u the length over the
    largest.
    """
    r0, r1, r2, r3 = rests
    if r0 <= 1e-12 * n:
        return ((1.0, n),)
    spread = r0 * r2 - r1 * r1
    if spread <= r0 * max(1e-9 * r2, 1e-15 * n):  # all others have one length, up to the rounding of sums
        shorter = [(r1 / r0, r0)]
    else:
        middle, product = (r0 * r3 - r1 * r2) / spread / 2, (r1 * r3 - r2 * r2) / spread
        half = math.sqrt(max(middle * middle - product, 0.0))
        low, high = max(middle - half, 0.0), middle + half
        rest_high = (r1 - r0 * low) / (high - low)
        shorter = [(low, r0 - rest_high), (high, rest_high)]
    shorter = [(length, rest / (1 - length)) for length, rest in shorter]
    return (*shorter, (1.0, n - sum(number for _, number in shorter)))


def ratio_tail(t: float, lengths: Lengths) -> float:
    """Probability that a ratio of sums over sequences is more than t standard errors above the true one.

    It is exact where the means of sequences are normal with one variance, as random effects are, and the error is that
    of `ExactRatio.stderr`. For n equal lengths it is that of Student's t with n - 1 degrees of freedom. Others are the
    working model of Imbens and Kolesar (Review of Economics and Statistics 98, 2016), but instead of Satterthwaite's
    approximation, the ratio of the squares of the error and of its estimate is taken as the quadratic form that it is:
    one of its eigenvalues is negative, so its distribution is a proper integral over an angle (Craig, MILCOM 1991).
    """
    n = sum(number for _, number in lengths)
    if len(lengths) == 1:
        return student_tail(t, n - 1)
    if t <= 0 or math.isinf(t):
        return 1 - ratio_tail(-t, lengths) if t < 0 else 0.5 if t == 0 else 0.0
    x, number = np.array(lengths).T
    weight = x / (number @ x)
    square = t * t * n / (n - 1)
    # the form t**2 * error**2 - mean**2 of the sums of lengths: within a length, and between the lengths
    within = square * weight**2
    root = np.sqrt(number)
    spread = np.eye(len(x)) - np.outer(weight * root, root) - np.outer(root, weight * root)
    spread += number @ weight**2 * np.outer(root, root)
    between = np.outer(weight, weight) * (square * spread - np.outer(root, root))
    negative, *positive = np.linalg.eigvalsh(between)
    squared_sines, weights = _angles()
    log = np.zeros_like(weights)
    for value, dof in (*zip(within, number - 1, strict=True), *((value, 1.0) for value in positive)):
        log -= dof / 2 * np.log1p(max(value, 0.0) / (-negative * squared_sines))
    return float(weights @ np.exp(log)) / 2


def _gauss_legendre() -> tuple[Float64Array, Float64Array]:
    """Squared sines of angles between 0 and pi / 2, and the weights that make a mean an integral, by Gauss-Legendre."""
    nodes, weights = np.polynomial.legendre.leggauss(100)
    return np.sin((nodes + 1) * (math.pi / 4)) ** 2, weights / 2


_angles = functools.cache(_gauss_legendre)


def _ratio_quantile(tail: float, lengths: Lengths) -> float:
    """The t whose `ratio_tail` is this small probability; inf if all but one length are 0."""
    if len(lengths) == 1:
        return student_quantile(tail, lengths[0][1] - 1)
    low, high = 0.0, 1.0
    while ratio_tail(high, lengths) > tail:
        low, high = high, 2 * high
        if high > 1e15:
            return math.inf
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if ratio_tail(middle, lengths) > tail else (low, middle)
    return high


ratio_quantile = functools.lru_cache(maxsize=256)(_ratio_quantile)
