"""The comparison of two files of scores, block by block."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._errors import raise_error
from tokenloss._evaluation import checks
from tokenloss._evaluation.plan import check_shiftable, check_stored_targets, rows_per_block, shifted, with_file_names
from tokenloss._softmax import log_softmax
from tokenloss.comparison import ComparisonMeter
from tokenloss.formats import npy
from tokenloss.formats._base import check_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Literal

    from tokenloss._types import Array
    from tokenloss.comparison import Comparison
    from tokenloss.formats import ScoresFile


class ComparisonOptions(NamedTuple):
    """Options of `tokenloss compare` that affect its result, without the names of arrays."""

    base_kind: Literal["logits", "log_probs", "probs"] | None = None
    kind: Literal["logits", "log_probs", "probs"] | None = None
    ignore_index: int = -100
    shift: bool = False
    definitions: Literal["exact", "llama.cpp"] = "exact"


def compare_files(
    base: ScoresFile,
    other: ScoresFile,
    targets: str | None,
    options: ComparisonOptions,
    workers: int | None,
    advance: Callable[[int], None],
) -> Comparison:
    """Compare two files of the same rows and targets; call `advance` with the bytes of each block."""
    ids, where = _checked_targets(base, other, targets, options)
    meter = ComparisonMeter(definitions=options.definitions, ignore_index=options.ignore_index, workers=workers)
    unchecked = {base: None if options.base_kind else "--base-kind", other: None if options.kind else "--kind"}
    max_rows = rows_per_block(max(base.row_bytes, other.row_bytes))
    start = 0
    for block, other_block in _aligned_blocks(base.blocks(max_rows), other.blocks(max_rows)):
        part = slice(start, start + len(block))
        check_map(ids)
        kept = where[part] & (ids[part] != options.ignore_index)
        for file, rows in (base, block), (other, other_block):
            if file in unchecked and checks.check_kind(file, unchecked[file], rows, kept):
                del unchecked[file]
        base_scores = checks.log(block) if base.kind == "probs" else block
        if base.kind == "logits" and options.definitions == "llama.cpp":  # which takes log-probabilities as they are
            base_scores = log_softmax(block.astype(np.float32) if block.itemsize < 4 else block)
        other_scores = checks.log(other_block) if other.kind == "probs" else other_block
        with with_file_names(base.path, other.path):
            meter.update(base_scores, other_scores, ids[part], where=where[part])
        start += len(block)
        advance(block.nbytes + other_block.nbytes)
    return meter.result()


def comparison_summary(
    base: ScoresFile, other: ScoresFile, comparison: Comparison, options: ComparisonOptions
) -> dict[str, Any]:
    """Figures of a comparison of two files."""
    without_next = math.prod(base.shape[:-2]) if options.shift and base.rows else 0
    return {
        "base": base.path,
        "other": other.path,
        "base_kind": base.kind,
        "kind": other.kind,
        "shape": (base.rows, base.shape[-1]),
        "ignored": base.rows - without_next - comparison.count,
        "without_next": without_next,
        **comparison.as_dict(),
    }


def _checked_targets(
    base: ScoresFile, other: ScoresFile, path: str | None, options: ComparisonOptions
) -> tuple[Array, Array]:
    """Class ids of all rows, the same in every file that holds any, and the mask of the rows that are compared."""
    shape = base.rows, base.shape[-1]
    if (other.rows, other.shape[-1]) != shape:
        got = f"holds {other.rows} rows of {other.shape[-1]} classes"
        fits = f"hold {shape[0]} rows of {shape[1]}, as {base.path} does"
        raise_error("content", path=other.path, got=got, fits=fits)
    held = [(file.path, file.targets) for file in (base, other) if file.targets is not None]
    if path is not None:
        held.append((path, npy.open_array(path)))
    if not held:
        raise_error("content", path=base.path, got="holds no targets", fits="hold them, or come with --targets")
    (first, ids), *rest = held
    for name, others in rest:
        if not np.array_equal(ids.reshape(-1), others.reshape(-1)):
            raise_error("content", path=name, got="holds other targets", fits=f"hold those of {first} if any")
    where = np.broadcast_to(np.True_, shape[:1])
    if options.shift:
        if other.shape != base.shape:
            got, fits = f"holds {other.kind} of shape {other.shape}", f"have the shape {base.shape} of {base.path}"
            raise_error("content", path=other.path, got=got, fits=f"{fits}, to be shifted")
        for file in (base, other):
            check_shiftable(file, ids, None if file.is_shifted else first)
        ids, where = (array.reshape(-1) for array in shifted(ids))
    with with_file_names(base.path, path):
        if ids.size == shape[0]:
            ids = ids.reshape(-1)
        check_stored_targets(shape, base.kind, ids, options.ignore_index, options.shift, where, soft=False)
    return ids, where


def _aligned_blocks(blocks: Iterator[Array], others: Iterator[Array]) -> Iterator[tuple[Array, Array]]:
    """Blocks of the same rows, of two files that may be cut differently."""
    other = np.empty(0)
    for block in blocks:
        while len(block):
            other = other if len(other) else next(others)
            rows = min(len(block), len(other))
            yield block[:rows], other[:rows]
            block, other = block[rows:], other[rows:]
