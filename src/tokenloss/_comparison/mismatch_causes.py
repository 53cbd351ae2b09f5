"""What may be behind the differences of a trainer's and a sampler's log-probabilities: sentences with their evidence.

Each is said only where the numbers surely show it, so that a correct pair gets none of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tokenloss._comparison.paired import Mean
from tokenloss._core.text import count_of
from tokenloss._statistics.rounding import Rounding

if TYPE_CHECKING:
    from tokenloss._core.types import BoolArray, Float64Array, IntArray

SURE = 1e-4  # the probability of a statement by chance
_LEAST_ROUNDED = 10  # numbers that show how numbers are rounded
_LEAST_PAIRS = 30  # neighbours that show a shift
_MOST_PAIRS = 50_000  # so many of them are enough
_LEAST_FITTED = 50  # tokens that show a temperature
_CERTAIN = -1e-6  # log-probabilities above this have lost their digits
_LEAST_K1 = -0.01  # nats; rounding of all numbers may bias k1 by less
_MOST_ENTROPY = 7.0  # nats of the other classes; the line of a truncation would need more


class Tokens(NamedTuple):
    """Log-probabilities of tokens by the trainer and the sampler, in the order of their sequences."""

    logprobs: Float64Array
    base: Float64Array
    ids: IntArray | None

    @property
    def difference(self) -> Float64Array:
        """The trainer's less the sampler's."""
        return self.logprobs - self.base

    def of(self, index: slice | BoolArray) -> Tokens:
        """Some of the tokens."""
        return Tokens(self.logprobs[index], self.base[index], None if self.ids is None else self.ids[index])

    def follows(self) -> BoolArray:
        """Whether the token before each one, but for the first, is of the same sequence."""
        if self.ids is None:
            return np.ones(max(self.base.size - 1, 0), np.bool_)
        is_same: BoolArray = (self.ids[1:] == self.ids[:-1]) & (self.ids[1:] >= 0)
        return is_same


def causes(logprobs: Float64Array, base: Float64Array, ids: IntArray | None) -> tuple[list[str], float | None]:
    """Sentences about what these differences look like, and the temperature that explains them, if one does."""
    impossible = int(np.count_nonzero(base == -math.inf))
    found = []
    if impossible:
        number = count_of(impossible, "token")
        found.append(f"{number} cannot have been sampled: the sampler's log-probability is minus infinity")
    tokens = Tokens(logprobs, base, ids).of(np.isfinite(logprobs) & np.isfinite(base))
    if not tokens.base.size:
        return found, None
    if not tokens.difference.any():
        if not impossible:
            found.append(f"equal: both have the same number for each of {count_of(tokens.base.size, 'token')}")
        return found, None
    for cause in (_rounded, _shifted, _scaled):  # each of which explains all differences
        if sentence := cause(tokens):
            return [*found, sentence], None
    line = _line(tokens)
    temperature, sentence = _tempered(line)
    found += filter(None, [_padded(tokens), _truncated(tokens, line), sentence, _not_drawn(tokens)])
    return found, temperature


def _rounded(tokens: Tokens) -> str:
    """Whether both agree but for the rounding that their numbers show."""
    roundings = [Rounding.of(values) for values in tokens[:2]]
    if min(rounding.total for rounding in roundings) < _LEAST_ROUNDED:
        return ""
    steps = [rounding.half_steps(values) for rounding, values in zip(roundings, tokens[:2], strict=True)]
    noise = 1e-6 * (1 - tokens.base)  # of numbers that were computed in float32
    largest = np.abs(tokens.difference)
    if (largest > steps[0] + steps[1] + noise).any():
        return ""
    words = f"the trainer's are of {roundings[0]}, the sampler's of {roundings[1]}"
    return f"agree but for rounding: {words}, and no two differ by more than {largest.max():.2g}"


def _shifted(tokens: Tokens) -> str:
    """Whether the trainer's fit those of the sampler at the next position, or at the one before."""
    tokens = tokens.of(slice(_MOST_PAIRS))
    follows = tokens.follows()
    if np.count_nonzero(follows) < _LEAST_PAIRS:
        return ""
    for ours, theirs, place in ((slice(-1), slice(1, None), "t + 1"), (slice(1, None), slice(-1), "t - 1")):
        fit, same = (
            _rank_correlation(tokens.logprobs[ours][follows], tokens.base[side][follows]) for side in (theirs, ours)
        )
        if fit > 0.8 and same < 0.5:
            words = f"the trainer's at position t fit the sampler's at {place}"
            return f"looks shifted by one: {words} (rank correlation {fit:.3f}, but {same:.3f} at t)"
    return ""


def _rank_correlation(one: Float64Array, other: Float64Array) -> float:
    """Spearman's correlation; nan if one of them is the same everywhere."""
    ranks = []
    for values in (one, other):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - counts / 2)[inverse])
        ranks[-1] -= ranks[-1].mean()
    norm = math.sqrt(float((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1])))
    return float(ranks[0] @ ranks[1]) / norm if norm else math.nan


def _scaled(tokens: Tokens) -> str:
    """Whether the trainer's are those of the sampler, multiplied by a number."""
    logprobs, base, _ = tokens
    power = float(base @ base)
    if base.size < _LEAST_PAIRS or not power or np.std(base) < 0.1 * np.abs(base).mean():
        return ""
    factor = float(base @ logprobs) / power
    rest = float(np.sum((logprobs - factor * base) ** 2) / np.sum(tokens.difference**2))
    if rest > 4e-4 or abs(factor - 1) < 0.01:
        return ""
    words = "log-probabilities were divided by a temperature, in place of logits"
    return f"looks scaled: the trainer's are {factor:.4g} times the sampler's at every token, as where {words}"


def _padded(tokens: Tokens) -> str:
    """Whether rows end in zeros that are padding, and not tokens that are certain."""
    ids = tokens.ids
    if ids is None or ids[0] == ids[-1]:
        return ""
    starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 1))
    ends = np.append(starts[1:], ids.size)
    is_zero = (tokens.logprobs == 0) & (tokens.base == 0)
    last = np.maximum.reduceat(np.where(is_zero, -1, np.arange(ids.size)), starts)
    runs = ends - 1 - np.maximum(last, starts - 1)
    lengths, inner = ends - starts, is_zero.sum() - runs.sum()
    is_batch = lengths.min() == lengths.max() and runs.max() >= 8 and np.mean(runs >= 2) >= 0.5
    if not is_batch or inner > 0.1 * (ids.size - runs.sum()):
        return ""
    words = f"the last numbers of {np.count_nonzero(runs):,} of {runs.size:,} sequences are 0.0 in both"
    return (
        f"looks like padding that is counted: {words}, {int(runs.sum()):,} in all; leave them out, by `where` or as nan"
    )


class _Line(NamedTuple):
    """A line through the log-odds of tokens, by the trainer over those by the sampler; slopes tell temperatures."""

    slope: float
    offset: float
    is_sure: bool  # whether the slope is not 1
    explained: float  # the part of the squared differences that the line explains


def _line(tokens: Tokens) -> _Line | None:
    """Fit a line to log-odds, with weights that make its errors those of log-probabilities; None of few tokens."""
    logprobs, base, ids = tokens.of((tokens.logprobs < _CERTAIN) & (tokens.base < _CERTAIN))
    if base.size < _LEAST_FITTED:
        return None
    x, y = (values - np.log(-np.expm1(values)) for values in (base, logprobs))
    weight = np.expm1(base) * np.expm1(logprobs)
    weight /= weight.mean()
    x_mean, y_mean = float(np.mean(weight * x)), float(np.mean(weight * y))
    pull = weight * (x - x_mean) / max(float(np.mean(weight * (x - x_mean) ** 2)), 1e-300)
    slope = float(np.mean(pull * (y - y_mean)))
    offset = y_mean - slope * x_mean
    error = Mean(pull * (y - offset - slope * x), ids)
    rest = logprobs + np.logaddexp(0, -(offset + slope * x))
    explained = 1 - float(np.sum(rest**2) / np.sum((logprobs - base) ** 2))
    return _Line(slope, offset, abs(slope - 1) > error.factor(SURE) * error.stderr, explained)


def _truncated(tokens: Tokens, line: _Line | None) -> str:
    """Whether one side is normalised over the classes that top-k, top-p or min-p left, and the other over all.

    Where the sampler's probabilities are those that tokens were drawn by, and both are over the same classes, the mean
    ratio is 1, whatever the policies are: tokens that got likelier outweigh those that got less likely.
    """
    if line is None or abs(line.slope - 1) > 0.15:  # of another temperature, few tokens may outweigh many
        return ""
    for is_trainer, difference in ((False, tokens.difference), (True, -tokens.difference)):
        change = np.expm1(difference)
        mean = Mean(change, tokens.ids)
        gain, loss = float(np.maximum(change, 0).sum()), float(-np.minimum(change, 0).sum())
        is_sure = mean.mean + mean.factor(SURE) * mean.stderr < 0
        if not (is_sure and loss > 10 * gain and np.mean(difference > 0.02) < 0.1):
            continue
        whole, part = ("the sampler's", "the trainer's") if is_trainer else ("the trainer's", "the sampler's")
        certain = int(np.count_nonzero((tokens[not is_trainer] == 0) & (difference < -0.01)))
        words = f"looks like raw against processed log-probabilities: {part} are hardly ever the smaller ones, and "
        words += f"{whole} keep {100 * (1 + mean.mean):.3g} % of their probabilities in the mean, as where {part} are "
        words += f"over the classes that top-p, top-k or min-p left, and {whole} over all"
        return words + (f"; {count_of(certain, 'token')} had no other class left" if certain else "")
    return ""


def _tempered(line: _Line | None) -> tuple[float | None, str]:
    """The temperature at which the sampler's model would give the trainer's log-probabilities, if that fits.

    With p the probability of a token, and the others sharing 1 - p in the same way at all tokens, a temperature T makes
    its log-odds ``log(p / (1 - p)) / T + (1 / T - 1) * h`` of them, where h is about the entropy of the others: a line.
    """
    if line is None or not (line.is_sure and abs(line.slope - 1) > 0.03 and line.slope > 0 and line.explained > 0.5):
        return None, ""
    if not 0 < line.offset / (line.slope - 1) < _MOST_ENTROPY:
        return None, ""
    temperature = round(1 / line.slope, 3)  # a fit has no more digits, and further ones depend on the machine
    words = f"looks like a temperature: the trainer's are about the sampler's at a temperature of {temperature:.2g}, "
    words += f"which explains {100 * line.explained:.0f} % of the squared differences (a fit: it takes the other "
    words += "classes to share what a token leaves in the same way everywhere)"
    return temperature, words


def _not_drawn(tokens: Tokens) -> str:
    """Whether tokens were drawn by other probabilities, since the divergence by k1 is negative."""
    k1 = Mean(-tokens.difference, tokens.ids)
    if not k1.mean + k1.factor(SURE) * k1.stderr < _LEAST_K1:
        return ""
    words = f"k1 is {k1.mean:.3g} ± {k1.stderr:.2g}, and a divergence is never negative"
    return f"tokens were not drawn by the sampler's numbers: {words}; are these raw, or of other weights?"
