"""Columns of a comparison, with a number for each position, from the scores of two models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core import _core, jobs
from tokenloss._core.arguments import FURTHER_DIVERGENCES
from tokenloss._core.dtypes import CheckedArray, as_float_array, without_bfloat16
from tokenloss._core.errors import raise_error
from tokenloss._core.validation import (
    UNNORMALIZED,
    as_positions,
    as_scores,
    check_axis,
    check_compared_classes,
    check_kinds,
    check_mask,
    most_unnormalized,
    without_targets,
)
from tokenloss._scores.losses import natural_logs
from tokenloss._scores.token_scores import token_job
from tokenloss._statistics.sequences import sequence_numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tokenloss._core.types import Array, BoolArray, Columns, Float64Array

# what `_core` computes at each position
COLUMNS = {
    "nll": np.float64, "base_nll": np.float64, "kl": np.float64, "delta_p": np.float64, "is_same_top": np.bool_,
    "kept": np.bool_, "base_top_p": np.float64, "base_margin": np.float64, "margin": np.float64, "rounding": np.float64,
    "is_identical": np.bool_,
}  # fmt: skip
SEEMS_PROBS = "seems_probs"  # a column of one row, if scores that were read as logits look like probabilities
HAS_TEXTS = "has_texts"  # a field beside the signature's: elements of the first axis are texts without numbers
VARIANCE = "_variance"  # ends the names of columns for the draws of a sketch
_BITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}  # of significands
OF_TARGETS = ("nll", "base_nll", "delta_p")  # columns that there are not without targets
# and the values of a part without the column
_OPTIONAL = dict.fromkeys(FURTHER_DIVERGENCES, np.nan)
_OPTIONAL |= dict.fromkeys([name + VARIANCE for name in ("kl", *FURTHER_DIVERGENCES)], np.nan)
_OPTIONAL |= {
    "segment_ids": -1,
    "base_left_out": 0.0,
    "left_out": 0.0,
}


def check_definitions(value: Any) -> str:
    """The formulas of the metrics."""
    if not isinstance(value, str) or value not in _core.DEFINITIONS:
        raise_error("option", name="definitions", got=value, fits="'exact' or 'llama.cpp'")
    definitions: str = value
    return definitions


def new_columns(rows: int, divergences: Sequence[str] = ()) -> Columns:
    """Columns for positions that are not included, also for these further divergences."""
    dtypes = COLUMNS | dict.fromkeys(divergences, np.float64)
    return {name: np.full(rows, np.nan if dtype == np.float64 else False, dtype) for name, dtype in dtypes.items()}


def pair_positions(targets: Any, scores: _core.Scores, ignore_index: Any, where: Any) -> _core.Positions:
    """Positions of two models. Without targets, the first class is used: `without_losses` leaves its losses out."""
    if targets is None:
        targets, ignore_index = np.zeros(scores.batch, np.int8), None
    return as_positions("targets", targets, scores, ignore_index, where, distributions=False)


def without_losses(columns: Columns) -> Columns:
    """The columns that do not depend on targets."""
    return {name: column for name, column in columns.items() if name not in OF_TARGETS}


def join(parts: Sequence[Columns]) -> Columns:
    """The columns of all parts in order; the columns of a single part are not copied."""
    if len(parts) == 1:
        return parts[0]
    names = [name for name in COLUMNS if all(name in part for part in parts)]
    names += [name for name in _OPTIONAL if any(name in part for part in parts)]
    return {
        name: np.concatenate(
            [part[name] if name in part else np.full(part["kl"].size, _OPTIONAL[name]) for part in parts]
        )
        for name in names
    }


def share(columns: Columns, first: Columns) -> Columns:
    """The columns of a candidate, which share the arrays of the first candidate if the bits are equal.

    Those of the base do, unless the rounding of `base_top_p` depends on the dtype of the other model, or it is nan.
    """
    return {
        name: first[name]
        if name in first and np.array_equal(first[name].view(np.uint8), column.view(np.uint8))
        else column
        for name, column in columns.items()
    }


def pair_columns(
    base_logits: Any, others: Mapping[str, Any], targets: Any, *, definitions: str = "exact",
    divergences: Sequence[str] = (), kind: Any = None, base_kind: Any = None, classes: Any = None, axis: Any = -1,
    ignore_index: Any = -100, where: Any = None, segment_ids: Any = None, cu_seqlens: Any = None,
    temperature: float = 1.0, only_divergences: bool = False, workers: Any = None,
) -> dict[str, Columns]:  # fmt: skip
    """Flat columns of each candidate by name; without targets, their columns are missing.

    With `classes` "all", a class that a model lacks has probability 0. Only logits are divided by the temperature,
    where 0 counts as 1. Without targets, `only_divergences` leaves other columns at their initial values.
    """
    kinds = check_kinds(base_kind, kind)
    base_array = CheckedArray(*as_float_array("base_logits", base_logits))
    shape = base_array.array.shape
    axis = check_axis("base_logits", len(shape), axis)
    arrays = {}
    for name, value in others.items():
        word = "logits" if name == "logits" else f"logits[{name!r}]"
        array = CheckedArray(*as_float_array(word, value))
        got = array.array.shape
        if len(got) != len(shape) or got[:axis] + got[axis + 1 :] != shape[:axis] + shape[axis + 1 :]:
            raise_error("shape", name=word, got=got, fits=f"{shape}, as base_logits")
        if classes != "all":
            count = check_compared_classes(classes, "base_logits", shape[axis], word, got[axis])  # the same for all
        arrays[name] = word, array
    if classes == "all":
        count = max(one.array.shape[axis] for one in (base_array, *(array for _, array in arrays.values())))
    scale = 1 / (temperature or 1.0)
    base = _scores("base_logits", widened(base_array, axis, kinds[0], count), axis, kinds[0], stop=count)
    positions = pair_positions(targets, base, ignore_index, where)
    base_seems_probs = jobs.warn_of_probs(positions, base, base_kind, kind)
    numbers = sequence_numbers(segment_ids, cu_seqlens, base.batch)
    base_left_out: Array | None = None
    candidates: dict[str, Columns] = {}
    for name, (word, array) in arrays.items():
        other = _scores(word, widened(array, axis, kinds[1], count), axis, kinds[1], stop=count)
        seems_probs = jobs.warn_of_probs(positions, other, kind) or base_seems_probs
        columns = new_columns(base.rows, divergences)
        job: _core.PairJob
        if only_divergences:  # faster
            further = {divergence: columns[divergence] for divergence in divergences}
            job = _core.KLDivergence(base, positions, columns["kl"].reshape(base.batch), other, further)
            columns["kept"] |= True if where is None else check_mask(where, base.batch).reshape(-1)
        else:
            options = _core.DEFINITIONS[definitions], bytes_of_bools(columns), UNNORMALIZED
            job = _core.PairStats(base, positions, other, *options)
        job.set_transform(scale, 0.0)
        jobs.run(job, workers)
        if targets is None:
            columns = without_losses(columns)
        elif array.array.shape[axis] < count:
            own = _scores(word, array, axis, kinds[1])
            _take_own_losses(columns["nll"], own, targets, columns["kept"], scale, workers)
        elif shape[axis] < count and definitions == "exact":  # llama.cpp takes those of the base as they are
            own = _scores("base_logits", base_array, axis, kinds[0])
            _take_own_losses(columns["base_nll"], own, targets, columns["kept"], scale, workers)
        if numbers is not None:
            columns["segment_ids"] = numbers
        if seems_probs:
            columns[SEEMS_PROBS] = np.ones(1)
        if shape[axis] > count or array.array.shape[axis] > count:
            mask = columns["kept"].reshape(base.batch)
            if base_left_out is None:
                base_left_out = _left_out("base_logits", base_array, axis, kinds[0], count, mask, scale, workers)
            columns["base_left_out"] = base_left_out
            columns["left_out"] = _left_out(word, array, axis, kinds[1], count, mask, scale, workers)
        candidates[name] = share(columns, next(iter(candidates.values()), {}))
    return candidates


def coarsen_rounding(columns: Columns, computed: Iterable[str], stored: Iterable[str]) -> None:
    """Replace the rounding of computed logits by that of the coarsest stored dtype."""
    n_bits = min(map(_BITS.__getitem__, computed)) - min(map(_BITS.__getitem__, stored))
    if n_bits > 0:
        columns["rounding"] *= 2.0**n_bits


def bytes_of_bools(columns: Columns) -> Columns:
    """View columns of bool as bytes, which `_core` can write to; other columns stay as they are."""
    return {name: column.view(np.uint8) if column.dtype == bool else column for name, column in columns.items()}


def _scores(
    name: str, array: CheckedArray, axis: int, kind: str, start: int = 0, stop: int | None = None
) -> _core.Scores:
    """View the scores of a range of classes; their normalization is checked only if the range has all classes."""
    view, code = array
    part: Array = view[(slice(None),) * axis + (slice(start, stop),)]
    if part.shape == view.shape:
        return as_scores(name, array, axis, kind)
    return _core.Scores(name, part, code, axis, part.shape, _core.KINDS.index(kind))


def widened(scores: CheckedArray, axis: int, kind: str, count: int) -> CheckedArray:
    """The scores, extended to this number of classes by classes of probability 0."""
    size = scores.array.shape[axis]
    if size >= count:
        return scores
    array = without_bfloat16(*scores)
    shape = (*array.shape[:axis], count - size, *array.shape[axis:][1:])
    array = np.concatenate([array, np.full(shape, 0.0 if kind == "probs" else -np.inf, array.dtype)], axis)
    return CheckedArray(*as_float_array("scores", array))


def _take_own_losses(
    losses: Float64Array, scores: _core.Scores, targets: Any, mask: Array, scale: float, workers: Any
) -> None:
    """Replace the losses from widened rows by those from the model's own rows, whose last bit may differ."""
    ids = np.asarray(targets).reshape(-1)
    mask = mask & (ids < scores.classes)
    losses[mask] = _token_columns(scores, np.where(mask, ids, 0), mask, scale, workers)["nll"].reshape(-1)[mask]


def _token_columns(scores: _core.Scores, ids: Array, mask: Array, scale: float, workers: Any) -> Columns:
    """Columns of `token_scores` at the positions of the mask, for logits multiplied by a scale."""
    ids, mask = ids.reshape(scores.batch), mask.reshape(scores.batch)
    positions = as_positions("targets", ids, scores, None, mask, distributions=False)
    job, columns = token_job(scores, positions, (scale, 0.0), 0)
    jobs.run(job, workers)
    return columns


def check_normalized(scores: _core.Scores, where: Any, workers: Any) -> None:
    """Refuse rows that are far from normalized, which division by a temperature would hide."""
    if scores.kind != _core.KINDS.index("logits"):
        ignored = np.zeros(scores.batch)
        jobs.run(_core.KLDivergence(scores, without_targets(scores, where), ignored, scores, {}), workers)


def logs(scores: CheckedArray, mask: BoolArray) -> CheckedArray:
    """Logarithms of probabilities in rows of the mask, computed as losses: NumPy's differ by machine."""
    probs = without_bfloat16(*scores)
    return CheckedArray(*as_float_array("probs", natural_logs(probs, np.repeat(mask.reshape(-1), probs.shape[-1]))))


def _left_out(
    name: str, array: CheckedArray, axis: int, kind: str, count: int, mask: BoolArray, scale: float, workers: Any
) -> Float64Array:
    """The probability of the classes beyond the count at each position of the mask; undefined at others."""
    sums = []
    for start, stop in ((0, count), (count, None)):
        scores = _scores(name, array, axis, kind, start, stop)
        sums.append(np.where(mask, -np.inf, 0.0))
        if scale != 1 and scores.classes:
            ids = np.zeros(scores.rows, np.int8)
            sums[-1] = _token_columns(scores, ids, mask, scale, workers)["logsumexp"].reshape(scores.batch)
        elif scores.classes:
            jobs.run(_core.LogSumExp(scores, without_targets(scores, mask), sums[-1]), workers)
    with np.errstate(invalid="ignore"):  # nan
        total = np.logaddexp(*sums)
    unnormalized = np.argwhere(mask & (abs(total) > most_unnormalized(kind, array.array)))
    if len(unnormalized):
        at = unnormalized[0].tolist()
        jobs.raise_unnormalized(name, at, kind, total[tuple(at)])
    return probability_of_rest(*sums).reshape(-1)


def probability_of_rest(first: Float64Array, rest: Float64Array) -> Float64Array:
    """The probability of the other classes, from the logsumexp of the first ones and of the others."""
    with np.errstate(over="ignore", invalid="ignore"):
        probability: Float64Array = 1 / (1 + np.exp(first - rest))
    return probability
