"""Columns of a comparison, which hold a number for each position, from the scores of two models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss import _core, _job
from tokenloss._dtypes import CheckedArray, as_float_array
from tokenloss._errors import raise_error
from tokenloss._validation import (
    as_other_scores,
    as_positions,
    as_scores,
    check_axis,
    check_compared_classes,
    without_targets,
)
from tokenloss.sequences import check_offsets, check_segment_ids

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenloss._types import Array, BoolArray, Float64Array

    Columns = dict[str, Array]

UNNORMALIZED = 0.1  # |logsumexp| that log-probabilities may have after rounding and clipping

# what `_core` finds at each position
COLUMNS = {
    "nll": np.float64, "base_nll": np.float64, "kl": np.float64, "delta_p": np.float64, "is_same_top": np.bool_,
    "kept": np.bool_, "base_top_p": np.float64,
}  # fmt: skip
_OPTIONAL = {"segment_ids": -1, "base_left_out": 0.0, "left_out": 0.0}  # what a part without such a column has instead


def check_definitions(value: Any) -> str:
    """The formulas of the figures."""
    if value not in ("exact", "llama.cpp"):
        raise_error("option", name="definitions", got=value, fits="'exact' or 'llama.cpp'")
    definitions: str = value
    return definitions


def new_columns(rows: int) -> Columns:
    """Columns of zeros."""
    return {name: np.zeros(rows, dtype) for name, dtype in COLUMNS.items()}


def sequence_numbers(segment_ids: Any, cu_seqlens: Any, batch: tuple[int, ...]) -> Any:
    """The number of the sequence of each position, which are given either way; None if they are not."""
    if cu_seqlens is None:
        return segment_ids
    if segment_ids is not None:
        raise_error("together", name="segment_ids", got="cu_seqlens")
    lengths = np.diff(check_offsets(cu_seqlens, math.prod(batch)))
    return np.repeat(np.arange(lengths.size), lengths).reshape(batch)


def join(parts: Sequence[Columns]) -> Columns:
    """Columns of all parts in order; those of a single one are not copied."""
    if len(parts) == 1:
        return parts[0]
    parts = [new_columns(0), *parts]
    names = [*COLUMNS, *(name for name in _OPTIONAL if any(name in part for part in parts))]
    return {
        name: np.concatenate(
            [part[name] if name in part else np.full(part["nll"].size, _OPTIONAL[name]) for part in parts]
        )
        for name in names
    }


def share(columns: Columns, first: Columns) -> Columns:
    """The columns of a candidate, with the arrays of the first one where these have the same bits, as of the base."""
    return {
        name: first[name]
        if name in first and np.array_equal(first[name].view(np.uint8), column.view(np.uint8))
        else column
        for name, column in columns.items()
    }


def pair_columns(
    base_logits: Any,
    others: Mapping[str, Any],
    targets: Any,
    *,
    definitions: str = "exact",
    classes: int | None = None,
    axis: Any = -1,
    ignore_index: Any = -100,
    where: Any = None,
    segment_ids: Any = None,
    workers: Any = None,
) -> dict[str, Columns]:
    """Columns of each candidate, flat, by its name."""
    base_array, code = as_float_array("base_logits", base_logits)
    axis = check_axis("base_logits", base_array.ndim, axis)
    shape = base_array.shape
    arrays = {}
    for name, value in others.items():
        word = "logits" if name == "logits" else f"logits[{name!r}]"
        arrays[name] = word, *as_float_array(word, value)
        got = arrays[name][1].shape
        if len(got) != len(shape) or got[:axis] + got[axis + 1 :] != shape[:axis] + shape[axis + 1 :]:
            raise_error("shape", name=word, got=got, fits=f"{shape}, as base_logits")
        count = check_compared_classes(classes, "base_logits", shape[axis], word, got[axis])  # the same for all
    base = as_scores("base_logits", CheckedArray(_part(base_array, axis, 0, count), code), axis)
    positions = as_positions("targets", targets, base, ignore_index, where, distributions=False)
    numbers = None if segment_ids is None else check_segment_ids(segment_ids, base.batch).flatten()
    unnormalized = -1 if definitions == "exact" else UNNORMALIZED
    found: dict[str, Columns] = {}
    for name, (word, array, other_code) in arrays.items():
        other = as_other_scores(word, CheckedArray(_part(array, axis, 0, count), other_code), base)
        columns = new_columns(base.rows)
        _job.run(_core.PairStats(base, positions, other, unnormalized, bytes_of_bools(columns)), workers)
        if numbers is not None:
            columns["segment_ids"] = numbers
        if shape[axis] > count or array.shape[axis] > count:
            kept = columns["kept"].reshape(base.batch)
            columns["base_left_out"] = _left_out("base_logits", base_array, code, axis, count, kept, workers)
            columns["left_out"] = _left_out(word, array, other_code, axis, count, kept, workers)
        found[name] = share(columns, next(iter(found.values()), {}))
    return found


def bytes_of_bools(columns: Columns) -> Columns:
    """Columns as `_core` writes them."""
    return {name: column.view(np.uint8) if column.dtype == bool else column for name, column in columns.items()}


def _part(array: Array, axis: int, start: int, stop: int | None) -> Array:
    """Scores of some of the classes, as a view."""
    part: Array = array[(slice(None),) * axis + (slice(start, stop),)]
    return part


def _left_out(name: str, array: Array, code: int, axis: int, count: int, kept: BoolArray, workers: Any) -> Float64Array:
    """The probability of the classes beyond the count, at each position that is kept; 0 at others."""
    sums = []
    for start, stop in ((0, count), (count, None)):
        scores = as_scores(name, CheckedArray(_part(array, axis, start, stop), code), axis)
        sums.append(np.zeros(scores.batch))
        _job.run(_core.LogSumExp(scores, without_targets(scores, kept), sums[-1]), workers)
    return np.where(kept, share_of_rest(*sums), 0).reshape(-1)


def share_of_rest(first: Float64Array, rest: Float64Array) -> Float64Array:
    """The probability of the other classes, from the logsumexp of the first ones and theirs."""
    with np.errstate(over="ignore", invalid="ignore"):
        found: Float64Array = 1 / (1 + np.exp(first - rest))
    return found
