"""What the package computes, in the plainest way: the oracle of the tests.

Every score is exact in float64. From there on exponentials and logarithms are taken in long double, or by mpmath where
long double is no wider than double, and rounded to float64 once. Sums are exact.
"""

import math
from fractions import Fraction

import mpmath
import numpy as np

if np.finfo(np.longdouble).nmant >= 63:

    def wide(values):
        return np.asarray(values, np.longdouble)

    exp, log, log1p = np.exp, np.log, np.log1p
else:
    _mp = mpmath.MPContext()
    _mp.prec = 113

    def wide(values):
        return np.array([_mp.mpf(float(value)) for value in np.ravel(values)], object).reshape(np.shape(values))

    exp, log, log1p = (np.frompyfunc(function, 1, 1) for function in (_mp.exp, _mp.log, _mp.log1p))


def float64(values):
    with np.errstate(invalid="ignore"):  # signalling nan
        return np.asarray(values).astype(np.float64)


def cross_entropy_loss(
    y_true,
    y_pred,
    *,
    epsilon=1e-12,
    axis=-1,
    weight=None,
    ignore_index=-100,
    where=None,
    reduction="mean",
    workers=None,
):
    def losses_of(row):
        return -log(wide(np.clip(row, epsilon, 1 - epsilon)))

    return _score(losses_of, y_pred, y_true, axis, weight, ignore_index, where, reduction)


def nll_loss(
    log_probs, targets, *, axis=-1, weight=None, ignore_index=-100, where=None, reduction="mean", workers=None
):
    return _score(lambda row: -wide(row), log_probs, targets, axis, weight, ignore_index, where, reduction)


def cross_entropy(
    logits, targets, *, axis=-1, weight=None, ignore_index=-100, where=None, reduction="mean", workers=None
):
    return _score(_losses_of_logits, logits, targets, axis, weight, ignore_index, where, reduction)


def logsumexp(logits, *, axis=-1, out=None, workers=None):
    logits = np.moveaxis(float64(logits), axis, -1)
    result = np.empty(logits.shape[:-1]) if out is None else out
    for position in np.ndindex(result.shape):
        row = logits[position]
        if np.isnan(row).any() or np.isposinf(row).any():
            result[position] = math.nan
        elif np.isneginf(row).all():
            result[position] = -math.inf
        else:
            maximum = wide([row.max()])
            result[position] = (maximum + log(exp(wide(row) - maximum).sum()))[0]
    return result


def _losses_of_logits(row):
    """Return -log(softmax(row)), where the likeliest class has its own term left out of the sum."""
    if row.size == 0:
        return row
    if np.isnan(row).any() or np.isposinf(row).any() or np.isneginf(row).all():
        return np.full(row.size, math.nan)
    best = row.argmax()
    below = wide(row) - wide(row[best : best + 1])
    powers = exp(below)
    losses = log(powers.sum()) - below
    losses[best] = log1p(np.delete(powers, best).sum())
    return losses


def _score(losses_of, scores, targets, axis, weight, ignore_index, where, reduction):
    scores, targets = np.moveaxis(float64(scores), axis, -1), np.asarray(targets)
    batch, classes = scores.shape[:-1], scores.shape[-1]
    by_class = targets.ndim < scores.ndim
    if not by_class:
        targets = np.moveaxis(float64(targets), axis, -1)
    weight = np.ones(classes) if weight is None else float64(weight)
    where = np.broadcast_to(True if where is None else where, batch)
    losses, divisors = np.zeros(batch), []
    for position in np.ndindex(batch):
        if not where[position] or (by_class and targets[position] == ignore_index):
            continue
        terms = losses_of(scores[position])
        with np.errstate(over="ignore", invalid="ignore"):  # 0 * inf, inf - inf
            if by_class:
                k = int(targets[position])
                losses[position] = weight[k] * float(terms[k])
                divisors.append(weight[k])
            else:
                kept = np.flatnonzero(targets[position])
                shares = wide(targets[position][kept]) * wide(weight[kept])
                losses[position] = float((shares * terms[kept]).sum())
                divisors.append(1.0)
    if reduction == "none":
        return losses
    total = exact_sum(losses.ravel())
    return total if reduction == "sum" else divide(total, exact_sum(divisors))


def exact_sum(values):
    """Return the sum of floats, rounded once."""
    values = [float(value) for value in values]
    special = [value for value in values if not math.isfinite(value)]
    if special:
        return sum(special)
    try:
        return math.fsum(values)
    except OverflowError:
        return rounded(sum(map(Fraction, values)))


def divide(dividend, divisor):
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(dividend) / np.float64(divisor))


def rounded(fraction):
    """Return the float nearest to a fraction."""
    try:
        return float(fraction)
    except OverflowError:
        return math.inf if fraction > 0 else -math.inf


def square_root(fraction):
    """Return the float nearest to the root of a fraction, near enough: at least 128 bits are taken of it."""
    if fraction == 0:
        return 0.0
    shift = max(0, 256 - fraction.numerator.bit_length() + fraction.denominator.bit_length()) // 2
    return rounded(Fraction(math.isqrt((fraction.numerator << 2 * shift) // fraction.denominator), 1 << shift))


class LossMeter:
    """A list of losses, and their statistics in rational numbers."""

    def __init__(self):
        self.losses, self.n_bytes, self.n_words = [], 0, 0

    def update(self, nll, where=None, n_bytes=0, n_words=0):
        nll = float64(nll)
        where = np.broadcast_to(True if where is None else where, nll.shape)
        self.losses += [float(nll[position]) for position in np.ndindex(nll.shape) if where[position]]
        self.n_bytes += n_bytes
        self.n_words += n_words

    @property
    def count(self):
        return len(self.losses)

    @property
    def total(self):
        return exact_sum(self.losses)

    @property
    def loss(self):
        return self.total / self.count if self.count else math.nan

    @property
    def stderr(self):
        if self.count < 2 or not all(map(math.isfinite, self.losses)):
            return math.nan
        losses = [Fraction(loss) for loss in self.losses]
        mean = sum(losses) / self.count
        return square_root(sum((loss - mean) ** 2 for loss in losses) / (self.count - 1) / self.count)

    @property
    def perplexity(self):
        return self._exp(self.loss)

    @property
    def bits_per_token(self):
        return self.loss / math.log(2)

    @property
    def bits_per_byte(self):
        return self.total / math.log(2) / self.n_bytes if self.n_bytes else math.nan

    @property
    def word_perplexity(self):
        return self._exp(self.total / self.n_words) if self.n_words else math.nan

    @staticmethod
    def _exp(x):
        with np.errstate(over="ignore"):
            return float(np.exp(np.float64(x)))
