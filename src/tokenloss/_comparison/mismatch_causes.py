"""Possible causes of differences between a trainer's and a sampler's log-probabilities: sentences with evidence.

Each is given only if the numbers clearly show it, so a correct pair gets none. A gate on metrics that a sentence voids
is inconclusive.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tokenloss._comparison.paired import Mean
from tokenloss._core.text import count_of
from tokenloss.formats.rounding import Rounding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._core.types import BoolArray, Float64Array, IntArray

SURE = 1e-4  # the probability of a statement by chance
_LEAST_ROUNDED = 10  # numbers that show how numbers are rounded
_LEAST_PAIRS = 30  # the fewest neighbors from which a shift is diagnosed
_MOST_PAIRS = 50_000  # more of them are not needed
LEAST_FITTED = 50  # the fewest tokens from which a temperature is estimated
_CERTAIN = -1e-6  # log-probabilities above this are too near 0 for log-odds
_LEAST_K1 = -0.01  # nats; rounding of all numbers may bias k1 by less
_LEAST_RUN = 8  # of one number in both, which shows padding
_LEAST_LOGPROB = -1000.0  # of a token that was sampled
_MOST_CUT = -0.7  # log of what a cut keeps: that of half of the probabilities
_MOST_RATIO = 0.995  # rounding of all numbers may take less from 1
_MOST_ENTROPY = 7.0  # nats of the other classes; the line of a truncation would need more


class Cause(NamedTuple):
    """A sentence with its evidence, and whether it voids the metrics, which then say nothing about the mismatch."""

    text: str
    voids: bool = False


class Tokens(NamedTuple):
    """Log-probabilities of tokens by the trainer and the sampler, in the order of their sequences."""

    logprobs: Float64Array
    base: Float64Array
    ids: IntArray | None

    @property
    def difference(self) -> Float64Array:
        """The trainer's minus the sampler's."""
        return self.logprobs - self.base

    def of(self, index: slice | BoolArray) -> Tokens:
        """Some of the tokens."""
        return Tokens(self.logprobs[index], self.base[index], None if self.ids is None else self.ids[index])

    def follows(self) -> BoolArray:
        """Whether each token, except the first, follows a token of the same sequence."""
        if self.ids is None:
            return np.ones(max(self.base.size - 1, 0), np.bool_)
        is_same: BoolArray = (self.ids[1:] == self.ids[:-1]) & (self.ids[1:] >= 0)
        return is_same


def causes(logprobs: Float64Array, base: Float64Array, ids: IntArray | None) -> tuple[list[Cause], float | None]:
    """The causes that these differences suggest, and the temperature that explains them, or None."""
    impossible = int(np.count_nonzero(base == -math.inf))
    possible = [_nan_in_one(logprobs, base)]
    if impossible:
        number = count_of(impossible, "token")
        possible.append(Cause(f"{number} cannot have been sampled: the sampler's log-probability is minus infinity"))
    temperature = None
    tokens = Tokens(logprobs, base, ids).of(np.isfinite(logprobs) & np.isfinite(base))
    if tokens.base.size and not tokens.difference.any():
        number = count_of(tokens.base.size, "token")
        possible.append(None if impossible else Cause(f"equal: both have the same number for each of {number}"))
    else:
        for filler in (_padded, _sentinels, _zeros_of_one):  # numbers that are no log-probabilities
            words, is_filler = filler(tokens)
            possible.append(Cause(words, voids=True) if words else None)
            tokens = tokens.of(~is_filler) if words else tokens
        other_causes, temperature = _causes_of(tokens)
        possible += other_causes
    return [*filter(None, possible)], temperature


def _causes_of(tokens: Tokens) -> tuple[Sequence[Cause | None], float | None]:
    """Causes that log-probabilities themselves show, and the temperature."""
    if not tokens.difference.any():
        return [], None
    line = _line(tokens)
    for cause in (_rounded(tokens), _shifted(tokens), _unrelated(tokens), _scaled(tokens, line)):
        if cause:  # it explains all differences
            return [cause], None
    temperature, tempered = _tempered(line)
    return [_truncated(tokens, line) or _below_one(tokens), tempered, _not_drawn(tokens)], temperature


# -- numbers that are no log-probabilities -----------------------------------------------------------------------------


def _nan_in_one(logprobs: Float64Array, base: Float64Array) -> Cause | None:
    """A sentence about tokens that are nan on only one side. Metrics are then nan, which fails gates."""
    is_alone = np.isnan(logprobs) != np.isnan(base)
    if not is_alone.any():
        return None
    others = np.where(np.isnan(base), logprobs, base)[is_alone]
    words = f"{count_of(others.size, 'token')} with nan on only one side, which makes metrics nan"
    if (others == others[0]).all():
        words += f": the other side is {others[0]:.6g} there, as in padding"
    return Cause(f"{words}; make them nan on both sides, or leave them out with `where`")


def _padded(tokens: Tokens) -> tuple[str, BoolArray]:
    """A sentence, and a mask of padding or prompts: sequences begin or end in one number, or it has many long runs."""
    none = np.zeros(tokens.base.size, np.bool_)
    values, counts = np.unique(tokens.base[tokens.base == tokens.logprobs], return_counts=True)
    if not values.size or counts.max() < _LEAST_RUN:
        return "", none
    value = float(values[counts.argmax()]) + 0.0  # which is not -0.0
    is_value = (tokens.logprobs == value) & (tokens.base == value)
    ids = none.astype(np.int64) if tokens.ids is None else tokens.ids
    is_new = np.diff(ids, prepend=ids[0] - 1) != 0  # sequence
    starts = np.flatnonzero(is_new | (np.diff(is_value, prepend=~is_value[:1]) != 0))
    lengths = np.diff(starts, append=ids.size)
    is_run, n_sequences = is_value[starts], int(np.count_nonzero(is_new))
    at_ends = is_run & (is_new[starts] | np.append(is_new, True)[starts + lengths])
    is_batch = n_sequences > 1 and len({*np.diff(np.flatnonzero(is_new), append=ids.size).tolist()}) == 1
    is_long = is_run & (lengths >= _LEAST_RUN)
    is_at_ends = is_batch and np.count_nonzero(at_ends & (lengths >= 2)) >= n_sequences / 2
    runs = at_ends if is_at_ends else is_long
    number = int(lengths.sum(where=runs))
    # numbers near 0 come beside those of tokens that are certain, and not beside padding
    near = 0 if is_at_ends else np.count_nonzero(np.any([(side > -1e-3) & (side < 0) for side in tokens[:2]], axis=0))
    left = np.count_nonzero(is_value) - number
    is_sure = np.count_nonzero(runs & is_long) >= 3 and 20 * number >= ids.size
    if not is_sure or 10 * near > number or left > 0.1 * (ids.size - number):
        return "", none
    words = f"{number:,} tokens are {value!r} on both sides, in {np.count_nonzero(runs):,} runs of up to "
    words += f"{lengths.max(where=runs, initial=0):,}; leave them out, with `where` or as nan"
    return f"looks like padding or prompts that are counted: {words}", np.repeat(runs, lengths)


def _sentinels(tokens: Tokens) -> tuple[str, BoolArray]:
    """A sentence, and a mask of numbers that engines write in place of minus infinity."""
    lowest = np.minimum(*tokens[:2])
    is_filler: BoolArray = lowest < _LEAST_LOGPROB
    words = f"{count_of(int(np.count_nonzero(is_filler)), 'token')} below {_LEAST_LOGPROB:g} on one side, down to "
    words += f"{lowest.min(initial=0):.6g}: no sampled token is this unlikely, but engines write such numbers "
    words += "in place of minus infinity (vLLM: -9999); leave them out"
    return words if is_filler.any() else "", is_filler


def _zeros_of_one(tokens: Tokens) -> tuple[str, BoolArray]:
    """A sentence, and a mask of zeros on one side where the other is far from certain."""
    logprobs, base, _ = tokens
    for ours, theirs, name in ((logprobs, base, "trainer"), (base, logprobs, "sampler")):
        is_zero = ours == 0
        number = int(np.count_nonzero(is_zero & (theirs <= -1)))
        if number >= max(10, 0.01 * is_zero.size):
            words = f"{number:,} numbers of the {name} are 0.0 where the other's are at most -1, as if a prompt or "
            words += "padding were counted, for which one side has no numbers"
            return words + ", or tokens were drawn greedily" * (name == "sampler"), is_zero
    return "", np.zeros(base.size, np.bool_)


# -- log-probabilities -------------------------------------------------------------------------------------------------


def _rounded(tokens: Tokens) -> Cause | None:
    """The cause if both agree except for the rounding that their numbers show."""
    roundings = [Rounding.of(values) for values in tokens[:2]]
    if min(rounding.total for rounding in roundings) < _LEAST_ROUNDED:
        return None
    steps = [rounding.half_steps(values) for rounding, values in zip(roundings, tokens[:2], strict=True)]
    noise = 1e-6 * (1 - tokens.base)  # of numbers that were computed in float32
    largest = np.abs(tokens.difference)
    if (largest > steps[0] + steps[1] + noise).any():
        return None
    words = f"the trainer's values are rounded to {roundings[0]}, the sampler's to {roundings[1]}"
    return Cause(f"agree except for rounding: {words}, and no two differ by more than {largest.max():.2g}")


def _shifted(tokens: Tokens) -> Cause | None:
    """The cause if the trainer's numbers fit the sampler's at the next position, or at the one before."""
    tokens = tokens.of(slice(_MOST_PAIRS))
    follows = tokens.follows()
    if np.count_nonzero(follows) < _LEAST_PAIRS:
        return None
    for ours, theirs, place in ((slice(-1), slice(1, None), "t + 1"), (slice(1, None), slice(-1), "t - 1")):
        fit, same = (
            _rank_correlation(tokens.logprobs[ours][follows], tokens.base[side][follows]) for side in (theirs, ours)
        )
        if fit > 0.8 and same < 0.5:
            words = f"the trainer's values at position t fit the sampler's at {place}"
            words += f" (rank correlation {fit:.3f}, but {same:.3f} at t)"
            return Cause(f"looks shifted by one: {words}", voids=True)
    return None


def _rank_correlation(one: Float64Array, other: Float64Array) -> float:
    """Spearman's correlation; nan if one of the two is constant."""
    ranks = []
    for values in (one, other):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - counts / 2)[inverse])
        ranks[-1] -= ranks[-1].mean()
    norm = math.sqrt(float((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1])))
    return float(ranks[0] @ ranks[1]) / norm if norm else math.nan


def _unrelated(tokens: Tokens) -> Cause | None:
    """The cause if the numbers belong to different tokens, so that the two sides cannot be compared."""
    logprobs, base, _ = tokens.of(slice(_MOST_PAIRS))
    if np.mean(np.abs(logprobs - base)) < 0.3 or np.var(logprobs - base) < (np.var(logprobs) + np.var(base)) / 2:
        return None
    correlation = _rank_correlation(logprobs, base)
    if not correlation < 0.5 - 4 / math.sqrt(base.size):
        return None
    words = f"their rank correlation is {correlation:.2f}, as if rows were in a different order or tokens differed"
    return Cause(f"the two do not seem to belong together: {words}", voids=True)


def _scaled(tokens: Tokens, line: _Line | None) -> Cause | None:
    """The cause if the trainer's numbers are the sampler's times a factor, apart from noise."""
    logprobs, base, _ = tokens
    power = float(base @ base)
    if base.size < _LEAST_PAIRS or not power or np.std(base) < 0.1 * np.abs(base).mean():
        return None
    squares = tokens.difference**2
    if np.sum(squares) ** 2 < 5 * np.sum(squares**2):  # a few tokens would decide it
        return None
    factor = float(base @ logprobs) / power
    rest = float(np.sum((logprobs - factor * base) ** 2) / np.sum(squares))
    is_noisy_copy = rest < 0.05 and line is not None and rest < 1 - line.explained  # than a temperature of logits
    if not (rest <= 4e-4 or is_noisy_copy) or abs(factor - 1) < 0.01:
        return None
    words = f"looks scaled: the trainer's values are {factor:.4g} times the sampler's, which explains "
    words += f"{100 - 100 * rest:.4g} % of the squared differences, as if log-probabilities, "
    words += "not logits, were divided by a temperature"
    return Cause(words, voids=True)


class _Line(NamedTuple):
    """A line through the trainer's log-odds of tokens over the sampler's, whose slope shows a temperature."""

    slope: float
    offset: float
    is_sure: bool  # whether the slope is not 1
    explained: float  # the part of the squared differences that the line explains
    needs_slope: bool  # whether a shift of all log-odds, as learning from these tokens makes, explains far less


def _line(tokens: Tokens) -> _Line | None:
    """Fit a line to log-odds, weighted so that its errors are in log-probabilities; None for few tokens."""
    size = np.abs(tokens.difference)
    is_usual = size <= 10 * np.quantile(size, 0.95)  # a few outliers would decide the slope
    logprobs, base, ids = tokens.of(is_usual & (tokens.logprobs < _CERTAIN) & (tokens.base < _CERTAIN))
    if base.size < LEAST_FITTED:
        return None
    x, y = (values - np.log(-np.expm1(values)) for values in (base, logprobs))
    weight = np.expm1(base) * np.expm1(logprobs)
    weight /= weight.mean()
    x_mean, y_mean = float(np.mean(weight * x)), float(np.mean(weight * y))
    pull = weight * (x - x_mean) / max(float(np.mean(weight * (x - x_mean) ** 2)), 1e-300)
    slope = float(np.mean(pull * (y - y_mean)))
    offset = y_mean - slope * x_mean
    error = Mean(pull * (y - offset - slope * x), ids)
    total = float(np.sum((logprobs - base) ** 2))
    rest, rest_of_shift = (
        float(np.sum((logprobs + np.logaddexp(0, -y)) ** 2)) for y in (offset + slope * x, x + y_mean - x_mean)
    )
    is_sure = abs(slope - 1) > error.factor(SURE) * error.stderr
    return _Line(slope, offset, is_sure, 1 - rest / total if total else 0.0, rest < rest_of_shift / 2)


def _truncated(tokens: Tokens, line: _Line | None) -> Cause | None:
    """The cause if one side is normalized over the classes that top-k, top-p or min-p left, and the other over all.

    Where the sampler's probabilities are those that tokens were drawn by, and both are over the same classes, the mean
    ratio is 1, whatever the policies are: tokens that got likelier outweigh those that got less likely.
    """
    if line is None or abs(line.slope - 1) > 0.15:  # of another temperature, few tokens may outweigh many
        return None
    for is_trainer, difference in ((False, tokens.difference), (True, -tokens.difference)):
        change = np.expm1(difference)
        mean = Mean(change, tokens.ids)
        gain, loss = float(np.maximum(change, 0).sum()), float(-np.minimum(change, 0).sum())
        is_sure = mean.mean + mean.factor(SURE) * mean.stderr < 0
        certain = int(np.count_nonzero((tokens[not is_trainer] == 0) & (difference < -0.01)))
        is_bounded = np.quantile(difference, 0.01) > _MOST_CUT  # as top-p bounds it, and learning does not
        if not (certain >= 5 and is_bounded and is_sure and loss > 10 * gain and np.mean(difference > 0.02) < 0.1):
            continue
        whole, part = ("the sampler's", "the trainer's") if is_trainer else ("the trainer's", "the sampler's")
        words = f"looks like raw versus processed log-probabilities: {part} are hardly ever smaller, and "
        words += f"{whole} keep {100 * (1 + mean.mean):.3g} % of their probabilities on average, as if {part} were "
        words += f"over only the classes that top-p, top-k or min-p kept, and {whole} over all"
        words += f"; for {count_of(certain, 'token')}, no other class was kept"
        return Cause(words, voids=is_trainer)  # tokens were then not drawn from the sampler's numbers
    return None


def _below_one(tokens: Tokens) -> Cause | None:
    """The cause if the mean ratio is below 1 by more than the tokens that were not drawn can explain.

    Where both are over the same classes, those that were not drawn have a ratio of (1 - pi) / (1 - mu) in the mean. Of
    a token that was nearly certain to be drawn, the tokens that are there do not show it, and it may be large.
    """
    ratio = Mean(np.exp(tokens.difference), tokens.ids)
    logprobs, base, ids = tokens.of(tokens.base < _CERTAIN)
    if base.size < LEAST_FITTED or not ratio.mean < _MOST_RATIO:
        return None
    change = Mean(np.expm1(logprobs - base), ids)
    moved = np.exp(logprobs) - np.exp(base)
    unseen = math.sqrt(float(np.sum(moved**2 / -np.expm1(base) / np.exp(base)))) / base.size
    error = 1.5 * change.factor(SURE) * math.hypot(change.stderr, unseen)  # ratios are skewed
    if not change.mean + error < 0:
        return None
    words = f"the mean ratio is significantly below 1 ({ratio.mean:.3f} ± {ratio.stderr:.2g})"
    words += ", as if the sampler's log-probabilities were over fewer classes (top-p, top-k, min-p)"
    return Cause(f"{words}, tokens were drawn from other probabilities, or the trainer has already learned from them")


def _tempered(line: _Line | None) -> tuple[float | None, Cause | None]:
    """The temperature at which the sampler's model would give the trainer's log-probabilities, if that fits.

    With p the probability of a token, and the others sharing 1 - p in the same way at all tokens, a temperature T makes
    its log-odds ``log(p / (1 - p)) / T + (1 / T - 1) * h`` of them, where h is about the entropy of the others: a line.
    """
    if line is None or not (
        line.is_sure and abs(line.slope - 1) > 0.03 and line.slope > 0 and line.explained > 0.5 and line.needs_slope
    ):
        return None, None
    if not 0 < line.offset / (line.slope - 1) < _MOST_ENTROPY:
        return None, None
    temperature = round(1 / line.slope, 3)  # a fit has no more digits, and further ones depend on the machine
    words = "looks like a temperature: the trainer's values are close to the sampler's at a temperature of "
    words += f"{temperature:.2g}, which explains {100 * line.explained:.0f} % of the squared differences (a fit, "
    words += "which assumes that the other classes share the rest in the same way everywhere)"
    return temperature, Cause(words)


def _not_drawn(tokens: Tokens) -> Cause | None:
    """The cause if tokens were drawn from other probabilities, since the divergence k1 is negative."""
    k1 = Mean(-tokens.difference, tokens.ids)
    if not k1.mean + k1.factor(SURE) * k1.stderr < _LEAST_K1:
        return None
    words = f"k1 is {k1.mean:.3g} ± {k1.stderr:.2g}, and a divergence is never negative"
    words += "; are these raw, or from other weights, or has the trainer already learned from these tokens?"
    return Cause(f"tokens were not drawn from the sampler's numbers: {words}", voids=True)
