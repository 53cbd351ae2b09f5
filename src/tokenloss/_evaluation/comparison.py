"""The comparison of two files of scores, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._errors import raise_error
from tokenloss._evaluation import checks
from tokenloss._evaluation.plan import check_shiftable, check_stored_targets, rows_per_block, shifted, with_file_names
from tokenloss._evaluation.run import ShiftSampler, row_functions
from tokenloss._evaluation.sequences import row_sequences
from tokenloss._softmax import log_softmax
from tokenloss.comparison import ComparisonMeter
from tokenloss.formats import npy
from tokenloss.formats._base import check_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Literal

    from tokenloss._evaluation.sequences import RowSequences
    from tokenloss._types import Array
    from tokenloss.comparison import Comparison
    from tokenloss.formats import ScoresFile


class ComparisonOptions(NamedTuple):
    """Options of `tokenloss compare` that affect its result, without the names of arrays."""

    base_kind: Literal["logits", "log_probs", "probs"] | None = None
    kind: Literal["logits", "log_probs", "probs"] | None = None
    ignore_index: int = -100
    shift: bool | None = None  # None: not, but look whether it would fit better
    definitions: Literal["exact", "llama.cpp"] = "exact"


class ComparedFiles(NamedTuple):
    """Two files of scores of the same rows, and files of what belongs to the rows, if there are any."""

    base: ScoresFile
    other: ScoresFile
    targets: str | None = None
    segment_ids: str | None = None


def compare_files(
    files: ComparedFiles, options: ComparisonOptions, workers: int | None, advance: Callable[[int], None]
) -> tuple[Comparison, dict[str, Any]]:
    """Compare two files, and the figures that are printed; call `advance` with the bytes of each block."""
    base, other = files.base, files.other
    sequences = sequences_of(files)
    ids, where = checked_targets(files, sequences, options)
    meter = ComparisonMeter(definitions=options.definitions, ignore_index=options.ignore_index, workers=workers)
    unchecked = {base: None if options.base_kind else "--base-kind", other: None if options.kind else "--kind"}
    takes_log_probs = options.definitions == "llama.cpp"  # of the base, as they are
    # llama.cpp prints errors that are not clustered: without segment ids, these
    is_clustered = sequences.are_given or (sequences.exist and options.definitions == "exact")
    sampler = ShiftSampler(row_functions(base).losses, options.ignore_index, sequences.are_given)
    samples = options.shift is None and not base.is_shifted and not other.is_shifted
    max_rows = rows_per_block(max(base.row_bytes, other.row_bytes))
    start = 0
    for block, other_block in _aligned_blocks(base.blocks(max_rows), other.blocks(max_rows)):
        part = slice(start, start + len(block))
        check_map(ids)
        numbers = sequences.numbers(start, start + len(block))
        kept = where[part] & (ids[part] != options.ignore_index)
        for file, rows in (base, block), (other, other_block):
            if file in unchecked and checks.check_kind(file, unchecked[file], rows, kept):
                del unchecked[file]
        with with_file_names(base.path, other.path):
            if samples:
                sampler.update(block, ids[part], numbers, kept)
            base_scores = checks.log(block) if base.kind == "probs" else block
            if takes_log_probs and base.kind == "logits":
                base_scores = log_softmax(block.astype(np.float32) if block.itemsize < 4 else block)
            other_scores = checks.log(other_block) if other.kind == "probs" else other_block
            segment_ids = numbers if is_clustered else None
            meter.update(base_scores, other_scores, ids[part], where=where[part], segment_ids=segment_ids)
        start += len(block)
        advance(block.nbytes + other_block.nbytes)
    comparison, without_next = meter.result(), int(np.count_nonzero(~where))
    return comparison, {
        "base": base.path,
        "other": other.path,
        "base_kind": base.kind,
        "kind": other.kind,
        "shape": (base.rows, base.shape[-1]),
        "ignored": base.rows - without_next - comparison.count,
        "without_next": without_next,
        "fits_better_shifted": sampler.sample.fits_better_shifted,
        **comparison.as_dict(),
    }


def sequences_of(files: ComparedFiles) -> RowSequences:
    """The sequences of the rows; two files that both define them must agree."""
    base, other, _, path = files
    if path is not None:
        return row_sequences(base, npy.open_array(path), path)
    of_base, of_other = row_sequences(base, None, None), row_sequences(other, None, None)
    if not of_other.are_given:
        return of_base if of_base.exist else of_other
    if of_base.are_given and not np.array_equal(of_base.numbers(0, base.rows), of_other.numbers(0, other.rows)):
        raise_error("content", path=other.path, got="holds other sequences", fits=f"hold those of {base.path} if any")
    return of_other


def checked_targets(files: ComparedFiles, sequences: RowSequences, options: ComparisonOptions) -> tuple[Array, Array]:
    """Class ids of all rows, the same in every file that holds any, and the mask of the rows that are compared."""
    base, other, path, _ = files
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
    where: Array = np.broadcast_to(np.True_, shape[:1])
    if options.shift:
        if other.shape != base.shape:
            got, fits = f"holds {other.kind} of shape {other.shape}", f"have the shape {base.shape} of {base.path}"
            raise_error("content", path=other.path, got=got, fits=f"{fits}, to be shifted")
        for file in (base, other):
            check_shiftable(file, ids, None if file.is_shifted else first)
        ids, where = (array.reshape(-1) for array in shifted(ids))
        if sequences.are_given:
            where = where & ~sequences.ends(base.rows)
    with with_file_names(base.path, path):
        if ids.size == shape[0]:
            ids = ids.reshape(-1)
        check_stored_targets(shape, base.kind, ids, options.ignore_index, bool(options.shift), where, soft=False)
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
