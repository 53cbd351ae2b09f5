"""The plan of files of scores, which become shards; these are checked before any score is read."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core import jobs
from tokenloss._core.errors import named, refuse, with_file_names, worded
from tokenloss._core.projection import MAX_TILE_ROWS
from tokenloss._core.validation import as_positions, scores_of_shape
from tokenloss._evaluation.shards import (
    LEFT_OUT,
    Shard,
    Slice,
    open_stored,
    refuse_without_targets,
    shifted_shard,
    stored_windows,
)
from tokenloss._statistics.sequences import check_segment_ids
from tokenloss.formats import npy
from tokenloss.formats.readers import by_number, check_order
from tokenloss.formats.scores import joined_spec
from tokenloss.formats.scores_file import Span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._evaluation.options import Options
    from tokenloss._evaluation.shards import Handles, OpenShard
    from tokenloss.formats.scores import Scores
    from tokenloss.formats.scores_file import FileSpec

_BLOCK_BYTES = 32 << 20  # read at a time
_BLOCK_ROWS = 1 << 20  # read at a time: each row needs memory besides its scores
_BLOCK_TILES = 4  # of hidden states, read at a time: their product takes long
_FIRST_TARGETS = 1024  # of two files, which are compared
_MIN_TARGETS = 8  # distinct ones: fewer may be equal in two parts of a text by chance


def rows_per_block(row_bytes: int, are_hidden: bool = False) -> int:
    """Number of rows to read at a time; for hidden states enough to make the product slower than reading weights."""
    rows = max(1, min(_BLOCK_BYTES // (row_bytes or 1), _BLOCK_ROWS))
    return min(max(rows // MAX_TILE_ROWS, 1), _BLOCK_TILES) * MAX_TILE_ROWS if are_hidden else rows


def planned(base: Scores, others: Sequence[Scores], options: Options, handles: Handles) -> list[Shard]:
    """The shards of a base, or the only model, and of candidates, in order; all but their scores is checked."""
    said = base.token_options
    for source in (base, *others):
        check_order(source.paths, said.targets, options.shift)
    shards = _paired(base, others, options, handles) if others else [Shard((spec,)) for spec in base.specs]
    if options.window:
        windows_of_files = stored_windows([(shard.path, shard.shape) for shard in shards], said.targets, options)
        shards = [shard._replace(windows=windows) for shard, windows in zip(shards, windows_of_files, strict=True)]
    target_files = _assigned(shards, said.targets, "targets", "class ids")
    segment_files = _assigned(shards, said.segment_ids, "segment ids", "ids")
    columns = zip(shards, target_files, segment_files, strict=True)
    shards = _with_split([shard._replace(targets=ids, segments=segments) for shard, ids, segments in columns])
    without_targets: list[str] = []
    following, beside = _Following(), None  # the shard that was opened before
    window = np.empty(0, np.int64)  # the ids of its first window
    for number in sorted(range(len(shards)), reverse=bool(options.shift)):
        shard = shards[number]
        stored = open_stored(shard, options, handles)
        last_sequence, first_sequence = (_open_sequence(shard, stored, row) for row in (shard.rows - 1, 0))
        if options.shift and last_sequence is not None and last_sequence == following.sequence:
            goes_on = None in (following.mask, _mask_at(stored, -1)) or following.mask == _mask_at(stored, -1)
            next_id = following.id if goes_on else options.ignore_index
            shard = shard._replace(next_id=next_id, next_text=following.token, next_label=following.label)
        without_targets += [] if stored.has_targets else [shard.path]
        if shard.windows and stored.targets.size == shard.rows:  # others are refused when they are shifted
            ids = stored.targets.reshape(-1)
            window = shard.windows.check_overlaps(shard.targets_path, ids, window, options.ignore_index)
        opened = handles.keep(shard, shifted_shard(shard, stored) if options.shift else stored)
        repeats, beside = beside is not None and _have_same_targets(stored, beside), stored
        shards[number] = checked_shard(shard, opened, options)._replace(repeats=repeats)
        if shard.rows or len(shard.shape) != 2:
            following = _Following()
        is_soft = shards[number].target_type == "distributions"
        if shard.rows and first_sequence is not None and stored.targets.dtype.kind in "iu" and not is_soft:
            token = None if stored.tokens is None else str(stored.tokens.reshape(-1)[0])
            first_id, label = int(stored.targets.reshape(-1)[0]), _label_at(stored, 0)
            following = _Following(first_id, token, first_sequence, _mask_at(stored, 0), label)
    if 0 < len(without_targets) < len(shards):
        refuse_without_targets(without_targets[0])
    return shards


def _have_same_targets(one: OpenShard, other: OpenShard) -> bool:
    """Whether two files have the same targets, as files of two models do but parts of one text do not."""
    first, second = (shard.targets.reshape(-1)[:_FIRST_TARGETS] for shard in (one, other))
    is_text = len(np.unique(first)) >= _MIN_TARGETS
    return is_text and one.targets.shape == other.targets.shape and np.array_equal(first, second)


def _have_same_rows(batch: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two batch shapes have equally many rows in C order, and equally long sequences if both have them."""
    return math.prod(batch) == math.prod(other) and (min(len(batch), len(other)) < 2 or batch[-1] == other[-1])


def checked_shard(shard: Shard, opened: OpenShard, options: Options) -> Shard:
    """The shard with the type of its checked targets, and the shape of the scored rows; no scores are read."""
    shape, targets, mask = shard.shape, opened.targets, opened.counted
    are_compared = len(shard.models) > 1
    if are_compared:  # their batches may have another shape
        shape = shard.rows, options.n_classes(shape[-1])
        fits = all(_have_same_rows(targets.shape, spec.shape[:-1]) for spec in shard.models)
        targets = targets.reshape(-1) if fits else targets
        mask = None if mask is None else mask.reshape(-1)
    ignore_index = options.ignore_index if opened.has_targets else LEFT_OUT
    name = "shifted targets" if options.shift else "targets"  # their positions are those of the rows that predict them
    with with_file_names(shard.path, shard.targets and shard.targets.path):
        scores = scores_of_shape(shard.spec.kind, shape, -1)
        positions = as_positions(name, targets, scores, ignore_index, mask, distributions=not are_compared)
        if positions.by_class:
            jobs.check_targets(positions, scores)
    target_type = "distributions" if targets.ndim == len(shape) else "class ids" if opened.has_targets else "none"
    n_scored = shard.rows if opened.scored is None else int(np.count_nonzero(opened.scored))
    return shard._replace(target_type=target_type, n_scored_rows=n_scored)


class _Following(NamedTuple):
    """The token after a shard: its id, its text, the number of its sequence, its mask, and the label of its group."""

    id: int | None = None
    token: str | None = None
    sequence: int | None = None
    mask: float | None = None
    label: Any = None


def _label_at(stored: OpenShard, row: int) -> Any:
    """The label of the group of a row, if tokens are grouped by a field."""
    groups = stored.groups
    code = -1 if groups is None else int(groups.codes[row])
    return None if groups is None or groups.labels is None or code < 0 else groups.labels[code]


def _mask_at(stored: OpenShard, row: int) -> float | None:
    """A row of the model's mask, if the file of scores has one."""
    mask = stored.file.attention_mask
    return None if mask is None else float(mask.reshape(-1)[row])


def _open_sequence(shard: Shard, stored: OpenShard, row: int) -> int | None:
    """The number of a row's sequence, -1 without segment ids; None if it cannot continue in the next shard."""
    if len(shard.shape) != 2 or not shard.rows:
        return None
    if not stored.sequences.are_given:
        return -1
    number = int(stored.sequences.numbers(row, row + 1)[0])
    return number if number in (shard.split or ()) else None


def _assigned(shards: list[Shard], paths: Sequence[str], what: str, numbers: str) -> list[Slice | None]:
    """For each shard, the file of its targets or segment ids, and where its part starts if one file serves all."""
    if paths and shards[0].windows and shards[0].windows.targets_are_text:
        return [Slice(paths[0])] * len(shards)
    if len(paths) == len(shards):
        return [Slice(path) for path in paths]
    if not paths:
        return [None] * len(shards)
    rows = sum(shard.rows for shard in shards)
    if len(paths) > 1:
        fits = f"be {len(shards)}, one for each file of scores, or one for all"
        refuse(paths[0], f"is one of {len(paths)} files of {what}", fits)
    array = npy.open_array(paths[0])
    if array.size != rows:
        fits = f"contain {rows} {numbers}, one for each row of the {len(shards)} files of scores"
        refuse(paths[0], f"has shape {array.shape}", fits)
    starts = np.cumsum([0, *(shard.rows for shard in shards)]).tolist()
    return [Slice(paths[0], start) for start in starts[:-1]]


def _with_split(shards: list[Shard]) -> list[Shard]:
    """The shards with `split` set: with one file of segment ids for all, a sequence may be in several shards."""
    numbers = []
    for shard in shards:
        if shard.segments is None or shard.segments.start is None:
            return shards
        with with_file_names(shard.segments.path):
            array = shard.segments.array(shard.spec).reshape(-1)
            numbers.append(np.unique(check_segment_ids(array, (shard.rows,)), return_counts=True))
    ids, n_shards = np.unique(np.concatenate([own for own, _ in numbers]), return_counts=True)
    rows = dict.fromkeys(ids[(n_shards > 1) & (ids >= 0)].tolist(), 0)  # of split sequences, so far
    numbered = []
    for shard, columns in zip(shards, numbers, strict=True):
        own = {number: n for number, n in zip(*(column.tolist() for column in columns), strict=True) if number in rows}
        numbered.append(shard._replace(split=tuple(own), split_rows=tuple(rows[number] for number in own)))
        rows |= {number: rows[number] + n for number, n in own.items()}
    return numbered


def _paired(base: Scores, others: Sequence[Scores], options: Options, handles: Handles) -> list[Shard]:
    """Shards of the files that belong together, in order; files that do not fit are refused."""
    if base.level == "sketch":  # whose rows others may divide among files as they like
        whole = joined_spec(base.specs)
        for other in others:
            _check_shapes(whole, joined_spec(other.specs), options)
        return _sketched(whole, [other.specs for other in others], handles)
    numbers = _numbers(base)
    for other in others:
        if len(other.specs) != len(base.specs):
            got, fits = f"is shard {len(other.specs)} of {len(other.specs)}", f"be one of {len(base.specs)}"
            refuse(other.paths[-1], got, f"{fits}, as {base.paths[-1]} is")
        other_numbers = _numbers(other)
        for i, (ours, theirs) in enumerate(zip(base.specs, other.specs, strict=True)):
            if numbers and other_numbers and numbers[i] != other_numbers[i]:
                got = f"would be compared with {ours.path}"
                refuse(theirs.path, got, "have the same number in its name")
            _check_shapes(ours, theirs, options)
    return [Shard(models) for models in zip(base.specs, *(other.specs for other in others), strict=True)]


def _sketched(whole: FileSpec, others: Sequence[Sequence[FileSpec]], handles: Handles) -> list[Shard]:
    """Shards of a sketch: its rows are divided where all candidates begin a new file and no sequence continues."""
    files = whole.parts or (whole,)
    ends = [{*np.cumsum([spec.rows for spec in specs]).tolist()} for specs in others]
    cuts = sorted(set.intersection(*ends) - {0, whole.rows})
    numbers = handles.open(whole).segment_ids if cuts else None
    firsts = [0] * len(files)  # numbers of sequences
    if numbers is not None:
        highest = np.maximum.accumulate(numbers)
        lowest = np.minimum.accumulate(np.where(numbers < 0, np.iinfo(np.int64).max, numbers)[::-1])[::-1]
        cuts = [row for row in cuts if highest[row - 1] < lowest[row]]
        ends_of_files = np.cumsum([spec.rows for spec in files])
        firsts = [0, *(int(highest[row - 1]) + 1 if row else 0 for row in ends_of_files[:-1].tolist())]
    bounds = [0, *cuts, whole.rows]
    if len(bounds) == 2:
        return [Shard((whole, *map(joined_spec, others)))]
    shards = []
    for start, stop in itertools.pairwise(bounds):
        parts, first = _between(files, start, stop)
        row = sum(spec.rows for spec in files[:first])
        span = Span(start - row, stop - row, start, firsts[first])
        own = whole._replace(path=parts[0].path, shape=(stop - start, whole.classes), parts=parts, span=span)
        shards.append(Shard((own, *(joined_spec(_between(specs, start, stop)[0]) for specs in others))))
    return shards


def _between(specs: Sequence[FileSpec], start: int, stop: int) -> tuple[tuple[FileSpec, ...], int]:
    """The files that have rows from `start` to `stop`, and the number of the first."""
    ends = np.cumsum([spec.rows for spec in specs])
    chosen = np.flatnonzero((ends > start) & (ends - [spec.rows for spec in specs] < stop))
    return tuple(specs[number] for number in chosen.tolist()), int(chosen[0])


def _check_shapes(shard: FileSpec, other: FileSpec, options: Options) -> None:
    """Refuse a shard with a different number of rows, or of classes if all classes are compared."""
    (rows, classes), (other_rows, other_classes) = ((side.rows, side.shape[-1]) for side in (shard, other))
    if shard.head and other.head and shard.head.spec == other.head.spec and classes != other_classes:
        got = f"differs in width from {shard.path}; both are read as hidden states for {shard.head_files[0]}"
        hint = f"; {named('base_kind')} is the kind of a base of scores, {named('base_lm_head')} a base's own head"
        refuse(other.path, got, f"have the same{worded('', hint)}")
    if other_rows != rows or (other_classes != classes and options.classes is None):
        got = f"contains {other_rows} rows of {other_classes} classes"
        fits = f"contain {rows} rows of {classes}, as {shard.path} does"
        if other_rows == rows and min(classes, other_classes):
            least = min(classes, other_classes)
            fits += f"; {named('classes', least)} compares the first {least} of both"
        elif other_rows != rows and other_classes != classes:
            needed = worded("compare_texts", "--text, --tokenizer-a and --tokenizer-b")
            fits += f"; models with different tokenizers need {needed}"
        refuse(other.path, got, fits)
    for side in (shard, other):
        if isinstance(options.classes, int) and classes != other_classes and side.classes < options.classes:
            got, fits = f"has {side.shape[-1]} classes", f"have at least the {options.classes} that are to be compared"
            refuse(side.path, got, fits)
    batch, other_batch = shard.shape[:-1], other.shape[:-1]
    if not _have_same_rows(batch, other_batch) or (options.shift and batch != other_batch):
        got, fits = f"contains {other.kind} of shape {other.shape}", f"have rows of shape {batch}, as {shard.path} does"
        refuse(other.path, got, fits + ", to be shifted" * bool(options.shift))


def _numbers(source: Scores) -> list[tuple[str | int, ...]] | None:
    """The numbers by which the names of the files differ; None if they differ in another way."""
    keys = [by_number(Path(path).name) for path in source.paths]
    if len({key[::2] for key in keys}) > 1:
        return None
    varying = [column for column in zip(*keys, strict=True) if len(set(column)) > 1]
    return list(zip(*varying, strict=True)) or None
