"""Checks of scores while they are read: their kind, whether targets are distributions, whether a norm is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokenloss._core import _core
from tokenloss._core.errors import named, raise_error, with_file_names
from tokenloss._core.validation import UNNORMALIZED, UNNORMALIZED_HALF, as_scores, without_targets
from tokenloss._scores.softmax import logsumexp
from tokenloss.formats.mapped import check_map

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from tokenloss._core.types import Array
    from tokenloss._evaluation.shards import Shard
    from tokenloss.formats.scores_file import FileSpec, ScoresFile

_CACHED = 1 << 16  # numbers that fit in a core's cache
_FIRST_ROWS = 16  # the kind of scores is guessed from so many rows
_FIRST_ELEMENTS = 1 << 24  # and from at most so many scores
_PROBABILITY_SLACK = 1e-3  # by which a probability may be outside [0, 1]
_SUM_SLACK = 1e-2  # by which the sum of a distribution may differ from 1
_NORM_SAMPLE = 64  # the root mean squares of so many hidden states of a file are compared
_MIN_NORM_SAMPLE = 16
_MIN_NORM_WEIGHT = 1e-2  # of the largest weight; features of smaller weights are left out
_MAX_NORM_SPREAD = 0.1  # 0.02 was the most after the final norm of trained models, 0.2 the least before it


def check_normalized(logsumexps: Array, itemsize: int, is_believed: bool) -> None:
    """Refuse rows whose logsumexp shows that they are no natural log-probabilities.

    A row that was cut to its likeliest classes has a negative one, which is accepted if the user gave the kind.
    """
    slack = UNNORMALIZED if itemsize > 2 else UNNORMALIZED_HALF
    wrong = logsumexps[(logsumexps > slack) | (logsumexps < (-np.inf if is_believed else -slack))]  # nan is not
    if wrong.size:
        fits = "natural log-probabilities have 0: is it base 2, or logits, or cut? "
        fits += f"{named('kind', 'log_probs')} accepts rows that were cut"
        raise_error("unnormalized", name="log_probs", got=wrong[0], fits=fits)


class FirstRows:
    """Checks the first rows of a file that count to be of its kind; of hidden states, samples the norms.

    `option` is the argument that gives the kind. A kind that the user gave is believed.
    """

    def __init__(self, file: ScoresFile, spec: FileSpec, option: str) -> None:
        self.is_given = spec.given_kind is not None
        self.itemsize = spec.row_bytes // (spec.classes or 1)  # of stored scores, which may be read as wider ones
        self._file, self._option, self._are_checked = file, option, False
        self.rms: tuple[float, ...] = ()  # root mean squares of hidden states

    def check(self, rows: Array, kept: Array) -> None:
        """Check the next rows, of which those of the mask count."""
        head = self._file.lm_head
        if head is not None:
            check_map(head.weight)
            self.rms += root_mean_squares(rows, kept, _NORM_SAMPLE - len(self.rms), head.norm_weights)
        elif not self._are_checked:
            self._are_checked = self._check_kind(rows, kept)

    def _check_kind(self, block: Array, kept: Array) -> bool:
        """Refuse scores of another kind, judged by the first kept rows of a block; return whether there were any."""
        max_rows = min(_FIRST_ROWS, _FIRST_ELEMENTS // max(1, block.shape[1]))
        rows = block[np.flatnonzero(kept)[:max_rows]]
        with np.errstate(invalid="ignore"):  # signaling nan
            rows = rows.astype(np.float64)
        if self._file.kind == "log_probs":
            with with_file_names(self._file.path):
                check_normalized(logsumexp(rows), self.itemsize, self.is_given)
        rows = rows[rows.any(-1) & ~np.isnan(rows).any(-1)]  # rows of zeros or with nan may be of any kind
        if self._file.kind == "logits" and not self.is_given and _seem_probs(rows):
            got = "looks like probabilities, since rows add up to 1"
            probs, logits = (named(self._option, kind) for kind in ("probs", "logits"))
            fits = f"come with {probs} and its array's name, or with {logits} if it holds logits"
            raise_error("content", path=self._file.path, got=got, fits=fits)
        return len(rows) > 0 or max_rows == 0


def _seem_probs(rows: Array) -> bool:
    """Whether all rows of (N, V) look like probabilities."""
    scores = as_scores("rows", rows, -1)
    return _core.look_like_probs(scores, without_targets(scores), len(rows))


def distribution_argmax(shard: Shard, start: int, rows: Array, mask: Array | None) -> Array:
    """First maximum of each target distribution (N, V), -1 without classes; refuses rows that are no distributions.

    `start` is the position of the first row in the shard; rows that the mask leaves out may hold anything.
    """
    argmax = np.full(len(rows), -1)
    # NumPy copies what is read-only, and compares float16 one by one: small pieces that are copied as float32 stay in a
    # core's cache, and are ten times as fast
    dtype = np.float32 if rows.itemsize < 4 else rows.dtype
    step = max(1, _CACHED // (rows.shape[1] or 1))
    for first in range(0, len(rows) if rows.size else 0, step):
        part = rows[first : first + step].astype(dtype)
        wrong = ~_are_distributions(part)
        if mask is not None:
            wrong &= mask[first : first + step]
        for row in np.flatnonzero(wrong)[:1].tolist():
            _refuse_distribution(shard, start + first + row, part[row])
        argmax[first : first + step] = part.argmax(-1)
    return argmax


def log(probs: Array) -> Array:
    """Logarithms in float64, so that different probabilities have different logarithms."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs: Array = np.log(probs, dtype=np.float64)
    return logs


def root_mean_squares(hidden: Array, kept: Array, most: int, norm: Sequence[Array] = ()) -> tuple[float, ...]:
    """Root mean squares of the first kept hidden states, divided by the weight of their final norm if it is known.

    After that norm they are 1, whether it divides by root mean squares or by standard deviations. Some models add 1 to
    the weight: whichever fits better is taken.
    """
    rows = hidden[np.flatnonzero(kept)[: max(0, most)]]
    if not rows.size:
        return ()
    with np.errstate(all="ignore"):
        rows = rows.astype(np.float64)
        if not norm:
            return tuple(np.sqrt(np.square(rows).mean(-1)).tolist())
        weight, *bias = norm
        found = []
        for divisor in weight, 1 + weight:
            is_large = abs(divisor) >= _MIN_NORM_WEIGHT * abs(divisor).max()  # others have few digits in half precision
            normal = ((rows - (bias[0] if bias else 0)) / np.where(is_large, divisor, 1))[:, is_large]
            found.append(np.sqrt(np.square(normal).mean(-1)))
        return tuple(min(found, key=lambda rms: abs(np.log(np.median(rms)))).tolist())


def norm_seems_missing(sample: Sequence[float], is_known: bool = False) -> bool:
    """True if hidden states seem to lack the final norm, after which their root mean squares are nearly the same.

    The spread is half of the distance between their logarithms at 16 % and 84 %: a standard deviation without outliers.
    Where the weight of the norm is known, they are 1.
    """
    rms = np.array(sample)
    rms = rms[np.isfinite(rms) & (rms > 0)]
    if len(rms) < _MIN_NORM_SAMPLE:
        return False
    low, high = np.quantile(np.log(rms), [0.16, 0.84])
    is_off = is_known and abs(np.log(np.median(rms))) > _MAX_NORM_SPREAD
    return bool(is_off or high - low > 2 * _MAX_NORM_SPREAD)


def _are_distributions(rows: Array) -> Array:
    """Mask of the rows of (N, V) that are probability distributions: values in [0, 1] and sum 1, nearly."""
    with np.errstate(invalid="ignore", over="ignore"):
        adds_up = abs(rows.sum(-1, dtype=np.float64) - 1) <= _SUM_SLACK
    fits: Array = adds_up & (rows.min(-1) >= -_PROBABILITY_SLACK) & (rows.max(-1) <= 1 + _PROBABILITY_SLACK)
    return fits


def _refuse_distribution(shard: Shard, row: int, probs: Array) -> NoReturn:
    """Raise an error that says why a row of targets is no distribution."""
    position = [int(i) for i in np.unravel_index(row, shard.shape[:-1])] or ""
    got, fits = f"adds up to {probs.sum(dtype=np.float64):.4g}", "add up to 1, as a distribution does"
    for prob in (probs.min(), probs.max()):
        if not -_PROBABILITY_SLACK <= prob <= 1 + _PROBABILITY_SLACK:
            got, fits = f"has a probability of {prob:.4g}", "have probabilities from 0 to 1"
    fits += "; class ids are integers"
    if len(shard.shape) == 1:  # of samples, not of classes
        fits += "; of probabilities of class 1 alone, save both classes: np.stack([1 - p, p], -1)"
    raise_error("content", path=shard.targets_path, got=f"targets{position} {got}", fits=fits)
