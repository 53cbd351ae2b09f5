"""The acceptance of a draft at each position, from the scores of two models, which may have other classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.columns import join, pair_columns
from tokenloss._core import _core, jobs
from tokenloss._core.dtypes import CheckedArray, as_float_array, without_bfloat16
from tokenloss._core.errors import raise_error
from tokenloss._core.validation import as_scores, check_kinds, check_mask, without_targets
from tokenloss._scores.losses import cross_entropy_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._core.types import Array, BoolArray, Columns, Float64Array

OF_DRAFTS = ("tv",)  # the divergences that the acceptance is found from
_BLOCK = 1 << 23  # scores that are copied at a time


def acceptance(columns: Columns, temperature: float) -> Float64Array:
    """The probability that a drafted token is accepted at each position, given the columns at this temperature."""
    if temperature:
        return 1 - columns["tv"]
    return np.where(np.isnan(columns["tv"]), np.nan, columns["is_same_top"])  # masked, or of a score that is nan


def draft_columns(
    base_logits: Any, logits: Any, temperature: float, *, kind: Any = None, base_kind: Any = None, axis: Any = -1,
    where: Any = None, workers: Any = None,
) -> tuple[Columns, tuple[int, ...]]:  # fmt: skip
    """Columns from which the acceptance is found, flat, without targets; and the batch.

    Classes that one of the models lacks have a probability of 0 there, so that each is normalised over its own.
    """
    kinds = check_kinds(base_kind, kind)
    values = {"base_logits": base_logits, "logits": logits}
    arrays = [CheckedArray(*as_float_array(*one)) for one in values.items()]
    sides = [as_scores(*one, axis, own) for one, own in zip(zip(values, arrays, strict=True), kinds, strict=True)]
    base, draft = sides
    if draft.batch != base.batch:
        raise_error("shape", name="logits", got=draft.shape, fits=f"{base.shape}, but for the number of classes")
    for side in sides:
        if not side.classes:
            raise_error("shape", name=side.name, got=side.shape, fits="that of one class or more at each position")
    jobs.warn_of_probs(without_targets(base, where), base, base_kind, kind)
    jobs.warn_of_probs(without_targets(draft, where), draft, kind)
    if base.classes == draft.classes and (temperature in (0, 1) or kinds == ("logits", "logits")):
        return _columns(arrays, kinds, axis, where, temperature, workers), base.batch
    mask = np.atleast_1d(check_mask(True if where is None else where, base.batch))
    for side, own in zip(sides, kinds, strict=True):
        if own != "logits":
            # a comparison with itself checks normalisation here: once divided by the temperature, no row is normalised
            ignored = np.zeros(side.batch)
            jobs.run(_core.KLDivergence(side, without_targets(side, where), ignored, side, {}), workers)
    rows = [np.atleast_2d(np.moveaxis(side.array, side.axis, -1)) for side in sides]
    classes, made = max(base.classes, draft.classes), kinds if temperature in (0, 1) else ("logits", "logits")
    step = max(1, _BLOCK * len(mask) // max(1, base.rows * classes))
    parts = []
    for start in range(0, max(1, len(mask)), step):
        part = slice(start, start + step)
        some = [without_bfloat16(array[part], side.dtype) for array, side in zip(rows, sides, strict=True)]
        some = [_widened(*one, mask[part], classes) for one in zip(some, kinds, made, strict=True)]
        parts.append(_columns(some, made, -1, mask[part], temperature, workers))
    return join(parts), base.batch


def _columns(
    arrays: Sequence[Any], kinds: Sequence[str], axis: Any, where: Any, temperature: float, workers: Any
) -> Columns:
    """Columns of two models with the same classes; their divergences alone, unless decoding is greedy."""
    if not temperature:
        options: Any = {"base_kind": kinds[0], "kind": kinds[1], "axis": axis, "where": where, "workers": workers}
        return pair_columns(arrays[0], {"logits": arrays[1]}, None, divergences=OF_DRAFTS, **options)["logits"]
    base, draft = as_scores("base_logits", arrays[0], axis, kinds[0]), as_scores("logits", arrays[1], axis, kinds[1])
    kl, tv = np.zeros(base.batch), np.full(base.rows, np.nan)
    job = _core.KLDivergence(base, without_targets(base, where), kl, draft, {"tv": tv})
    job.set_transform(1 / temperature, 0.0)
    jobs.run(job, workers)
    kept = check_mask(True if where is None else where, base.batch).flatten()
    return {"kl": kl.reshape(-1), "kept": kept, "tv": tv}


def _widened(scores: Array, kind: str, made: str, mask: BoolArray, classes: int) -> Array:
    """Scores of so many classes, of which those that are missing have a probability of 0, made the other kind."""
    scores = _logs(scores, mask) if (kind, made) == ("probs", "logits") else scores
    missing = np.full((*scores.shape[:-1], classes - scores.shape[-1]), 0.0 if made == "probs" else -np.inf)
    return np.concatenate([scores, missing.astype(scores.dtype)], -1)


def _logs(probs: Array, mask: BoolArray) -> Float64Array:
    """Logarithms of the probabilities in rows of the mask, which are losses of a class: NumPy's differ by machine."""
    each = probs.reshape(-1, 1).astype(np.float64)
    where = np.repeat(mask.reshape(-1), probs.shape[-1])
    losses = cross_entropy_loss(np.zeros(len(each), np.int8), each, epsilon=0.0, where=where, reduction="none")
    return -losses.reshape(probs.shape)
