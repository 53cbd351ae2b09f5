"""The tails of rows: their classes without some given ones, and classes drawn from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tokenloss._core import _core, jobs
from tokenloss._core.validation import without_targets

if TYPE_CHECKING:
    from tokenloss._core.types import Array, BoolArray, Float64Array, IntArray

WORDS_PER_BLOCK = 4  # of Philox


class Tails(NamedTuple):
    """The tails of rows."""

    log_masses: Float64Array  # their logsumexps; -inf without a class, 0 of rows that the mask leaves out
    supports: IntArray  # classes whose logit is not -inf
    drawn: IntArray  # (n, s), in ascending order; -1 without a class


def tails_of(
    scores: _core.Scores, excluded: IntArray, maxima: Float64Array, uniforms: Float64Array, epsilon: float,
    mask: BoolArray | None, workers: int | None,
) -> Tails:  # fmt: skip
    """The tails of rows (n, V): classes without the excluded ones (n, k); negative ids exclude nothing.

    `maxima` are at least the largest logits of the tails. Draw i of s is at (i + uniform) / s of the cumulative sum,
    over ascending classes, of (p + epsilon T / N): p is the probability, T its sum over the tail, N the support.
    """
    n = len(excluded)
    tails = Tails(np.zeros(n), np.zeros(n, np.int64), np.full(uniforms.shape, -1, np.int64))
    ordered: Array = np.sort(excluded.astype(np.int64), axis=1)
    job = _core.TailDraws(
        scores, without_targets(scores, mask), tails.log_masses, ordered, maxima, uniforms, epsilon,
        tails.supports, tails.drawn,
    )  # fmt: skip
    jobs.run(job, workers)
    return tails


def uniforms_of(seed: int, sequences: IntArray, positions: IntArray, count: int) -> Float64Array:
    """Uniforms (n, count) that depend only on positions in sequences: counter-based, from Philox 4x64-10."""
    key = np.array([seed, 0], np.uint64)
    n_blocks = -(-count // WORDS_PER_BLOCK)
    uniforms = np.empty((len(positions), count))
    goes_on = (np.diff(sequences) == 0) & (np.diff(positions) == 1)
    first = np.flatnonzero(np.append(True, ~goes_on)[: len(positions)])
    for start, stop in zip(first.tolist(), np.append(first[1:], len(positions)).tolist(), strict=True):
        counter = np.array([int(positions[start]) * n_blocks, int(sequences[start]) % 2**64, 0, 0], np.uint64)
        words = np.random.Philox(key=key, counter=counter).random_raw(WORDS_PER_BLOCK * n_blocks * (stop - start))
        uniforms[start:stop] = (words.reshape(stop - start, -1)[:, :count] >> np.uint64(11)) * 2.0**-53
    return uniforms
