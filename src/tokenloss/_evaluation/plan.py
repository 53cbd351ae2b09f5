"""The plan of an evaluation: files of scores and targets become shards, checked before any score is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core import jobs
from tokenloss._core.errors import raise_error, with_file_names
from tokenloss._core.projection import MAX_TILE_ROWS
from tokenloss._core.validation import as_positions, scores_of_shape
from tokenloss._evaluation.options import check_order
from tokenloss._evaluation.sequences import row_sequences
from tokenloss._evaluation.stored_windows import StoredWindows, stored_windows
from tokenloss._statistics.sequences import check_segment_ids
from tokenloss.formats import npy
from tokenloss.formats.hidden_states import open_hidden_states
from tokenloss.formats.readers import open_scores
from tokenloss.formats.scores_file import MASK, ScoresFile, checked_mask

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from tokenloss._core.types import Array, IntArray
    from tokenloss._evaluation.options import Options
    from tokenloss._evaluation.sequences import RowSequences
    from tokenloss.formats.responses import ResponsesFile

_BLOCK_BYTES = 32 << 20  # that are read at a time
_BLOCK_ROWS = 1 << 20  # that are read at a time: each row needs memory besides its scores
_BLOCK_TILES = 4  # of hidden states that are read at a time: their product takes long
_FIRST_TARGETS = 1024  # of two files are compared
_MIN_TARGETS = 8  # different ones; fewer may be the same in two parts of a text by chance
LEFT_OUT = -1  # in place of targets where there are none
_MOST_MAPS = 64  # that the open files of all models may have: each needs a file descriptor
_TARGETS = "--targets (targets=) or --targets-array (targets_array=)"  # in messages
_MOST_LOADED = 64 << 20  # bytes that arrays of these files may need in memory, such as those of compressed files


class Shard(NamedTuple):
    """A file of scores, or of responses."""

    path: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    row_bytes: int
    targets: str | None = None  # the file of the targets; None if the scores' file holds them
    start: int | None = None  # where the shard's targets start in a file of the targets of all shards
    segments: str | None = None  # the same two of segment ids
    segments_start: int | None = None
    split: tuple[int, ...] | None = ()  # sequences that go on in other shards, by number; None if any may
    split_rows: tuple[int, ...] = ()  # the number of rows that each of these has in earlier shards
    batch: tuple[int, ...] = ()  # shape of the rows that are scored: shifting leaves some without a target
    target_type: str = "class ids"  # or "distributions"; "none" of models that are compared without targets
    next_id: int | None = None  # the first id of the next shard, if the last row predicts it
    next_text: str | None = None
    size: int | None = None  # of a file of responses in bytes; None of scores
    has_text: bool = False  # whether the file holds the text of its tokens
    responses: ResponsesFile | None = None
    file: ScoresFile | None = None  # the open file of scores; None if it is opened anew each time
    repeats: bool = False  # whether it has the targets of the shard beside it, as a file of another model does
    windows: StoredWindows | None = None  # that the file holds; None if it holds no windows of a text
    token_bytes: IntArray | None = None  # of the token that each row predicts, 0 if it is not scored; by a tokenizer
    n_bytes_without_token: int = 0  # of white space that the tokenizer drops, among the bytes of those tokens
    padding: dict[str, int] | None = None  # a special token, and how often it is scored after itself
    others: tuple[Shard, ...] = ()  # of each candidate, with the same rows
    head_files: tuple[str, ...] = ()  # the files of the head of hidden states, that of its weight first
    head: dict[str, Any] | None = None  # what was read from them and from config.json

    @property
    def itemsize(self) -> int:
        """Size of a score in bytes."""
        return self.row_bytes // (self.shape[-1] or 1)

    @property
    def rows(self) -> int:
        """Number of rows in the file, or of tokens of responses."""
        return math.prod(self.shape[:-1] if self.size is None else self.shape)

    @property
    def n_bytes(self) -> int:
        """Size in bytes of the scores, with those of candidates, or of a file of responses."""
        of_others = sum(other.n_bytes for other in self.others)
        return self.rows * self.row_bytes + of_others if self.size is None else self.size

    @property
    def scored_rows(self) -> int:
        """Number of rows that are scored."""
        return math.prod(self.batch)

    def with_absolute_paths(self) -> Shard:
        """The same shard for a process in another directory, which opens it anew."""
        path, targets, segments = (
            path and str(Path(path).absolute()) for path in (self.path, self.targets, self.segments)
        )
        others = tuple(other.with_absolute_paths() for other in self.others)
        return self._replace(path=path or self.path, targets=targets, segments=segments, others=others, file=None)


class OpenShard(NamedTuple):
    """The arrays of a shard; targets and tokens are shifted if the options say so."""

    file: ScoresFile
    targets: Array
    scored: Array | None  # mask of the rows that are scored; None for all
    tokens: Array | None
    sequences: RowSequences
    mask: Array | None = None  # mask of the scored rows that count, besides what the targets say; None for all
    others: tuple[ScoresFile, ...] = ()  # of candidates
    ids: Array | None = None  # the targets as they are stored, those that a model's mask leaves out among them
    has_targets: bool = True  # False where models are compared without: zeros stand in, or `LEFT_OUT` where masked


def rows_per_block(row_bytes: int, are_hidden: bool = False) -> int:
    """Number of rows to read at a time; for hidden states enough to make the product slower than reading weights."""
    rows = max(1, min(_BLOCK_BYTES // (row_bytes or 1), _BLOCK_ROWS))
    return min(max(rows // MAX_TILE_ROWS, 1), _BLOCK_TILES) * MAX_TILE_ROWS if are_hidden else rows


def plan(
    paths: Sequence[str], targets: Sequence[str], options: Options, segment_ids: Sequence[str] = ()
) -> list[Shard]:
    """Open all files and check everything in them but the scores, before anything is scored."""
    if not targets and len(paths) == 2 and _is_file_of_class_ids(paths[1], paths[0], options):
        paths, targets = paths[:1], paths[1:]
    check_order(paths, targets, options)
    return planned(open_all(paths, options), targets, options, segment_ids)


def planned(
    shards: list[Shard], targets: Sequence[str], options: Options, segment_ids: Sequence[str] = ()
) -> list[Shard]:
    """Give shards their targets and sequences, and check these."""
    if options.window:
        found = stored_windows([(shard.path, shard.shape) for shard in shards], targets, options)
        shards = [shard._replace(windows=windows) for shard, windows in zip(shards, found, strict=True)]
    of_targets = _assigned(shards, targets, "targets", "class ids")
    of_segments = _assigned(shards, segment_ids, "segment ids", "ids")
    shards = [
        shard._replace(targets=path, start=start, segments=segments, segments_start=segments_start)
        for shard, (path, start), (segments, segments_start) in zip(shards, of_targets, of_segments, strict=True)
    ]
    shards = _with_split(shards)
    without_targets: list[str] = []
    following, beside = _Following(), None  # the shard that was opened before
    window = np.empty(0, np.int64)  # the ids of its first window
    for number in sorted(range(len(shards)), reverse=bool(options.shift)):
        shard, stored = shards[number], open_stored(shards[number], options)
        last_sequence, first_sequence = (_open_sequence(shard, stored, row) for row in (shard.rows - 1, 0))
        if options.shift and last_sequence is not None and last_sequence == following.sequence:
            goes_on = None in (following.mask, _mask_at(stored, -1)) or following.mask == _mask_at(stored, -1)
            next_id = following.id if goes_on else options.ignore_index
            shard = shard._replace(next_id=next_id, next_text=following.token)
        without_targets += [] if stored.has_targets else [shard.path]
        if shard.windows and stored.targets.size == shard.rows:  # others are refused when they are shifted
            ids = stored.targets.reshape(-1)
            window = shard.windows.check_overlaps(shard.targets or shard.path, ids, window, options.ignore_index)
        opened = shifted_shard(shard, stored) if options.shift else stored
        repeats, beside = beside is not None and _have_same_targets(stored, beside), stored
        shards[number] = checked_shard(shard, opened, options)._replace(repeats=repeats)
        if shard.rows or len(shard.shape) != 2:
            following = _Following()
        is_soft = shards[number].target_type == "distributions"
        if shard.rows and first_sequence is not None and stored.targets.dtype.kind in "iu" and not is_soft:
            token = None if stored.tokens is None else str(stored.tokens.reshape(-1)[0])
            following = _Following(int(stored.targets.reshape(-1)[0]), token, first_sequence, _mask_at(stored, 0))
    if 0 < len(without_targets) < len(shards):
        refuse_without_targets(without_targets[0])
    return shards


def _have_same_targets(one: OpenShard, other: OpenShard) -> bool:
    """True if two files have the same targets: then they are of two models, not parts of one text."""
    first, second = (shard.targets.reshape(-1)[:_FIRST_TARGETS] for shard in (one, other))
    is_text = len(np.unique(first)) >= _MIN_TARGETS
    return is_text and one.targets.shape == other.targets.shape and np.array_equal(first, second)


def have_same_rows(batch: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two batch shapes have the same rows in C order: as many, in sequences of one length if both have some."""
    return math.prod(batch) == math.prod(other) and (min(len(batch), len(other)) < 2 or batch[-1] == other[-1])


def checked_shard(shard: Shard, opened: OpenShard, options: Options) -> Shard:
    """Check all targets of a shard, before any scores are read; add their type, and the shape of the rows scored."""
    shape, targets, mask = shard.shape, opened.targets, opened.scored
    if opened.mask is not None:
        mask = opened.mask if mask is None else mask & opened.mask
    if shard.others:  # whose batches may have another shape
        shape = shard.rows, min(options.classes or shape[-1], shape[-1])
        fits = all(have_same_rows(targets.shape, side.shape[:-1]) for side in (shard, *shard.others))
        targets = targets.reshape(-1) if fits else targets
        mask = None if mask is None else mask.reshape(-1)
    ignore_index = options.ignore_index if opened.has_targets else LEFT_OUT
    name = "shifted targets" if options.shift else "targets"  # their positions are those of the rows that predict them
    with with_file_names(shard.path, shard.targets):
        scores = scores_of_shape(shard.kind, shape, -1)
        positions = as_positions(name, targets, scores, ignore_index, mask, distributions=not shard.others)
        if positions.by_class:
            jobs.check_targets(positions, scores)
    target_type = "distributions" if targets.ndim == len(shape) else "class ids" if opened.has_targets else "none"
    return shard._replace(target_type=target_type, batch=_scored_batch(shard, opened))


class _Following(NamedTuple):
    """The token after a shard: its id, its text, the number of the sequence that it belongs to, and its mask."""

    id: int | None = None
    token: str | None = None
    sequence: int | None = None
    mask: float | None = None


def _mask_at(stored: OpenShard, row: int) -> float | None:
    """A row of the model's mask, if the file of scores has one."""
    mask = stored.file.attention_mask
    return None if mask is None else float(mask.reshape(-1)[row])


def _open_sequence(shard: Shard, stored: OpenShard, row: int) -> int | None:
    """The number of a row's sequence, -1 without segment ids; None if it cannot go on in the next shard."""
    if len(shard.shape) != 2 or not shard.rows:
        return None
    if not stored.sequences.are_given:
        return -1
    number = int(stored.sequences.numbers(row, row + 1)[0])
    return number if number in (shard.split or ()) else None


def _scored_batch(shard: Shard, opened: OpenShard) -> tuple[int, ...]:
    """Batch shape of the rows that are scored; of one dimension if segment ids decide which are."""
    batch = shard.shape[:-1]
    if opened.scored is None:
        return batch
    if opened.sequences.are_given:
        return (int(np.count_nonzero(opened.scored)),)
    *others, length = batch or (1,)
    return (*others, max(0, length - 1))


def open_shard(shard: Shard, options: Options) -> OpenShard:
    """Open a shard; its targets and tokens are shifted if the options say so."""
    stored = open_stored(shard, options)
    return shifted_shard(shard, stored) if options.shift else stored


def check_shiftable(file: ScoresFile, targets: Array, path: str | None) -> None:
    """Refuse targets that cannot be shifted. `path` is the file that holds them; None if the scores' file does."""
    fits = "hold an id for each row of sequences, to be shifted"
    if path is None and file.is_shifted:
        raise_error("content", path=file.path, got="holds targets that are the next tokens", fits=fits)
    if len(file.shape) < 2 or targets.shape != file.shape[:-1]:
        raise_error("content", path=path or file.path, got=f"holds targets of shape {targets.shape}", fits=fits)


# -- the steps of the plan ---------------------------------------------------------------------------------------------


def _is_file_of_class_ids(path: str, scores_path: str, options: Options) -> bool:
    """Whether a file is an integer .npy array, which then holds the class ids of the scores."""
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        if file.read(len(npy.MAGIC)) != npy.MAGIC:
            return False
    scores, array = _open(scores_path, options), npy.open_array(path)
    batch, is_integer = scores.shape[:-1], array.dtype.kind in "iu"
    if scores.targets is not None:
        if is_integer and array.shape == batch:
            got = f"holds {array.dtype} as targets do, and {scores_path} holds targets"
            raise_error("content", path=path, got=got, fits="come with --targets (targets=) to replace them")
        return False
    if array.dtype.kind in "iub" and array.shape == scores.shape:
        got = f"holds {array.dtype} of the shape of {scores.kind}"
        raise_error("content", path=path, got=got, fits="come with --targets (targets=) to be distributions")
    if array.dtype.kind == "f" and array.shape == batch:
        got = f"holds {array.dtype} of the shape of targets"
        raise_error("content", path=path, got=got, fits="hold integers, to be class ids: save it with .astype(int)")
    return is_integer


def _open(path: str, options: Options) -> ScoresFile:
    """Open a file of scores, or of hidden states."""
    if options.lm_head is not None:
        transform: Any = {"logit_scale": options.logit_scale, "softcap": options.softcap}
        return open_hidden_states(
            path, options.lm_head, name=options.hidden, targets_array=options.targets_array, **transform
        )
    return open_scores(path, array=options.array, kind=options.kind, targets_array=options.targets_array)


def open_all(paths: Sequence[str], options: Options, n_models: int = 1) -> list[Shard]:
    """Open all files as shards, which must have the same kind and the same number of classes.

    The first files stay open, within the limits that `n_models` share; a single file stays open however much memory it
    takes. The others are opened again each time they are needed.
    """
    shards: list[Shard] = []
    n_maps = n_bytes = 0
    for path in paths:
        file = _open(path, options)
        has_text = file.tokens is not None
        shard = Shard(path, file.kind, file.shape, file.dtype.name, file.row_bytes, has_text=has_text)
        if file.lm_head is not None:
            shard = shard._replace(head_files=file.lm_head.files, head=file.lm_head.figures())
        if shards and (shard.kind, shard.shape[-1]) != (shards[0].kind, shards[0].shape[-1]):
            got = f"holds {shard.kind} of {shard.shape[-1]} classes"
            fits = f"hold {shards[0].kind} of {shards[0].shape[-1]}, as {shards[0].path} does"
            raise_error("content", path=path, got=got, fits=fits)
        held = _arrays_of(file)
        n_maps += sum(isinstance(array, np.memmap) for array in held)
        n_bytes += sum(array.nbytes for array in held if not isinstance(array, np.memmap))
        stays_open = n_maps <= _MOST_MAPS // n_models and (len(paths) == 1 or n_bytes <= _MOST_LOADED)
        shards.append(shard._replace(file=file if stays_open else None))
    return shards


def _arrays_of(file: ScoresFile) -> list[Array]:
    """The arrays besides the scores that an open file holds, mapped or in memory."""
    held = [file.targets, file.tokens, file.segment_ids, file.cu_seqlens, file.input_ids, file.attention_mask]
    if file.lm_head is not None:
        held += [file.lm_head.weight, file.lm_head.bias, *file.lm_head.norm_weights]
    return [array for array in held if array is not None]


def _assigned(
    shards: list[Shard], paths: Sequence[str], what: str, numbers: str
) -> list[tuple[str | None, int | None]]:
    """For each shard, the file of its targets or segment ids, and where its part starts if one file serves all."""
    if paths and shards[0].windows and shards[0].windows.of_text:
        return [(paths[0], None)] * len(shards)
    if len(paths) == len(shards):
        return [(path, None) for path in paths]
    if not paths:
        return [(None, None)] * len(shards)
    rows = sum(shard.rows for shard in shards)
    if len(paths) > 1:
        fits = f"be {len(shards)}, one for each file of scores, or one for all"
        raise_error("content", path=paths[0], got=f"is one of {len(paths)} files of {what}", fits=fits)
    array = npy.open_array(paths[0])
    if array.size != rows:
        fits = f"hold {rows} {numbers}, one for each row of the {len(shards)} files of scores"
        raise_error("content", path=paths[0], got=f"has shape {array.shape}", fits=fits)
    starts = np.cumsum([0, *(shard.rows for shard in shards)]).tolist()
    return [(paths[0], start) for start in starts[:-1]]


def _assigned_array(path: str, start: int | None, file: ScoresFile) -> Array:
    """Open the targets or segment ids of a file of scores, which `_assigned` found."""
    array = npy.open_array(path)
    return array if start is None else array.reshape(-1)[start : start + file.rows].reshape(file.shape[:-1])


def _with_split(shards: list[Shard]) -> list[Shard]:
    """Set `split` of shards: in one file of segment ids for all, a sequence may be in several shards."""
    numbers = []
    for shard in shards:
        if shard.segments_start is None:
            return shards
        part = slice(shard.segments_start, shard.segments_start + shard.rows)
        with with_file_names(shard.segments):
            array = npy.open_array(str(shard.segments)).reshape(-1)[part]
            numbers.append(np.unique(check_segment_ids(array, (shard.rows,)), return_counts=True))
    ids, n_shards = np.unique(np.concatenate([own for own, _ in numbers]), return_counts=True)
    rows = dict.fromkeys(ids[(n_shards > 1) & (ids >= 0)].tolist(), 0)  # of split sequences, so far
    found = []
    for shard, columns in zip(shards, numbers, strict=True):
        own = {number: n for number, n in zip(*(column.tolist() for column in columns), strict=True) if number in rows}
        found.append(shard._replace(split=tuple(own), split_rows=tuple(rows[number] for number in own)))
        rows |= {number: rows[number] + n for number, n in own.items()}
    return found


def open_stored(shard: Shard, options: Options) -> OpenShard:
    """Open a shard; its targets and tokens are as they are stored."""
    sides = zip((shard, *shard.others), (options, *options.others), strict=True)
    files = [side.file or _open(side.path, side_options) for side, side_options in sides]
    tokens = next((file.tokens for file in files if file.tokens is not None), None)
    targets, sequences = _held_targets(shard, files, options), _held_sequences(shard, files)
    if shard.windows:
        sequences = shard.windows.sequences(shard.path, shard.shape, sequences)
        if targets is not None and shard.windows.of_text:
            targets = shard.windows.ids(targets, shard.shape[:-1])
    stored = OpenShard(files[0], np.empty(0), None, tokens, sequences, others=tuple(files[1:]))
    with_mask = [file for file in files if file.attention_mask is not None]
    if targets is not None:
        stored = stored._replace(ids=targets)
        for file in with_mask:
            targets = targets if file.is_shifted else _masked(file, targets, options)
        return stored._replace(targets=targets)
    kept = np.ones(shard.shape[:-1], np.bool_)
    for file in with_mask:
        mask = checked_mask(file)
        if mask.size != kept.size:
            got, fits = f"holds {MASK} of shape {mask.shape}", "hold one for each row"
            raise_error("content", path=file.path, got=got, fits=fits)
        kept &= mask.reshape(kept.shape) != 0
    return stored._replace(targets=np.where(kept, np.int8(0), np.int8(LEFT_OUT)), has_targets=False)


def _held_targets(shard: Shard, files: list[ScoresFile], options: Options) -> Array | None:
    """The targets of a shard, from their own file or from one of scores; if several hold some, all must be equal.

    None of models that are compared without targets, in their divergence alone.
    """
    held, is_needed = [(file.path, file.targets) for file in files if file.targets is not None], True
    if shard.targets is not None:
        given = _assigned_array(shard.targets, shard.start, files[0])
        held = [*(held if shard.others else ()), (shard.targets, given)]
    elif not held:
        held = [(file.path, file.input_ids) for file in files if file.input_ids is not None]
        is_needed = not shard.others or options.shift is not False  # else ids alone tell that texts are the same
        if held and is_needed and not options.shift:
            fits = f"hold targets, or come with {_TARGETS}; if these ids are the model's input, add --shift"
            fits += " (shift=True)" + "; for divergences only, --no-shift (shift=False)" * bool(shard.others)
            raise_error("content", path=held[0][0], got="holds input ids and no targets", fits=fits)
    if not held and shard.others and not options.shift:
        return None
    if not held:
        refuse_without_targets(shard.path, files[0].names)
    (first, targets), *rest = held
    for path, others in rest:
        if not np.array_equal(targets.reshape(-1), others.reshape(-1)):
            got = f"holds other {'targets' if is_needed else 'input ids'}"
            raise_error("content", path=path, got=got, fits=f"hold those of {first} if any")
    return targets if is_needed else None


def refuse_without_targets(path: str, names: Sequence[str] = ()) -> NoReturn:
    """Raise that a file, with arrays of these names, holds no targets."""
    got, fits = "holds no targets", "hold them, or come with --targets (targets=)"
    if len(names) > 1:
        got, fits = f"{got}, but {', '.join(names)}", f"hold them, or come with {_TARGETS}"
    raise_error("content", path=path, got=got, fits=fits)


def _masked(file: ScoresFile, targets: Array, options: Options) -> Array:
    """Targets without those that a model's mask leaves out: if they are shifted, padding, and what follows on it.

    Others may be the next tokens already, so that the mask of the last one is not that of its target.
    """
    mask = checked_mask(file)
    kept, ignored = mask != 0, options.ignore_index
    if options.shift:
        if targets.shape != mask.shape or targets.dtype.kind not in "iu":
            return targets  # which are refused when they are shifted
        kept[..., 1:] &= mask[..., 1:] == mask[..., :-1]
        if ignored is not None:
            masked: Array = np.where(kept, targets.astype(np.int64), ignored)
            return masked
    wrong = ~kept if ignored is None or targets.shape != mask.shape else ~kept & (targets != ignored)
    if wrong.any():
        got = f"{MASK}{np.argwhere(wrong)[0].tolist()} is {mask[wrong][0]:g}, but its token would be scored"
        fits = "hold targets that are ignored where it is 0, or come with --shift (shift=True) if they are input ids"
        raise_error("content", path=file.path, got=got, fits=fits)
    return targets


def _held_sequences(shard: Shard, files: list[ScoresFile]) -> RowSequences:
    """The sequences of a shard, from their own file or from one of scores; if several hold some, all must be equal."""
    if shard.segments is not None:
        array = _assigned_array(shard.segments, shard.segments_start, files[0])
        counts = dict(zip(shard.split or (), shard.split_rows, strict=False))
        return row_sequences(files[0], array, shard.segments, counts)
    found = [(file.path, row_sequences(file, None, None)) for file in files]
    given = [(path, sequences) for path, sequences in found if sequences.are_given]
    for path, sequences in given[1:]:
        first, rows = given[0], files[0].rows
        if not np.array_equal(first[1].numbers(0, rows), sequences.numbers(0, rows)):
            raise_error("content", path=path, got="holds other sequences", fits=f"hold those of {first[0]} if any")
    return next((sequences for _, sequences in given or found if sequences.exist), found[0][1])


def shifted_shard(shard: Shard, stored: OpenShard) -> OpenShard:
    """Shift the targets of a shard: each row gets the next token as its target."""
    file, targets, _, tokens, sequences, *_ = stored
    for one in (file, *stored.others):
        check_shiftable(one, targets, None if shard.others and one.is_shifted else shard.targets)
    scored = ~sequences.ends(file.rows).reshape(targets.shape) if sequences.are_given else None
    if shard.next_id is None:
        length = targets.shape[-1]
        targets, has_next = np.roll(targets, -1, -1), np.broadcast_to(np.arange(length) < length - 1, targets.shape)
        scored = has_next if scored is None else scored & has_next
        scored = scored & shard.windows.new(shard.rows).reshape(scored.shape) if shard.windows else scored
        tokens = None if tokens is None else np.roll(tokens, -1, -1)
        return stored._replace(targets=targets, scored=scored, tokens=tokens)
    if scored is not None:
        scored[-1] = True
    # NumPy promotes uint64 and negative integers to float64, which cannot hold class ids
    dtype = np.int64 if shard.next_id < 0 else np.result_type(targets, np.min_scalar_type(shard.next_id))
    targets = np.append(targets[1:].astype(dtype), np.array(shard.next_id, dtype))
    if tokens is not None:
        tokens = np.append(tokens[1:].astype(object), np.array(shard.next_text, object))
    return stored._replace(targets=targets, scored=scored, tokens=tokens)
