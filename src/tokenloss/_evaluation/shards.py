"""Shards: the plan of each, which is saved and sent to workers, and its open files and arrays, which are not."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core.errors import named, refuse
from tokenloss._evaluation.checkpoint import record
from tokenloss._evaluation.sequences import GroupCodes, RowSequences, row_sequences
from tokenloss._statistics.groups import check_number_of_groups, field_labels, is_by_position
from tokenloss.formats import npy
from tokenloss.formats.scores import open_file
from tokenloss.formats.scores_file import MASK, OTHER_MASKS, SEQUENCES, FileSpec, ScoresFile, checked_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from tokenloss._core.types import Array, BoolArray, IntArray
    from tokenloss._evaluation.options import Options
    from tokenloss.formats.scores_file import LmHead

LISTS = ("responses", "logprobs")  # kinds of files that list tokens
LEFT_OUT = -1  # in place of a missing target
_MOST_MAPS = 64  # in the open files of all models: each needs a file descriptor
_MOST_LOADED = 64 << 20  # bytes of their arrays in memory, such as arrays of compressed files


class StoredWindows(NamedTuple):
    """The windows of a text in a file, one after the other; each is a sequence."""

    size: int
    stride: int
    first: int = 0  # the number of the file's first window
    targets_are_text: bool = False  # whether the file of targets contains the text's ids, not each window's

    def sequences(self, path: str, shape: tuple[int, ...], held: RowSequences) -> RowSequences:
        """The windows as sequences, in place of sequences in the file."""
        if held.are_given:
            refuse(path, f"contains {' or '.join(SEQUENCES)}", "contain windows of one text, which are its sequences")
        rows = math.prod(shape[:-1])
        return RowSequences(shape, offsets=np.append(np.arange(0, rows, self.size), rows))

    def ids(self, targets: Array, batch: tuple[int, ...]) -> Array:
        """The ids of all rows, given the ids of the text."""
        numbers, positions = np.divmod(np.arange(math.prod(batch)), self.size)
        ids: Array = targets.reshape(-1)[(self.first + numbers) * self.stride + positions]
        return ids.reshape(batch)

    def check_overlaps(self, path: str, ids: Array, following: Array, ignored: int | None) -> Array:
        """Refuse windows whose ids differ where they overlap; return the ids of the first one.

        `following` are those of the first window of the next file.
        """
        for start in range(self.size, len(ids) + 1, self.size):
            after = (ids[start:] if start < len(ids) else following)[: self.size - self.stride]
            before = ids[start - self.size + self.stride :][: len(after)]
            if not np.all((before == after) | (before == ignored) | (after == ignored)):
                number = self.first + start // self.size
                got = f"windows {number - 1} and {number} have different ids where they overlap"
                refuse(path, got, f"contain windows of one text, in order, that begin every {self.stride} tokens")
        return np.array(ids[: self.size]) if len(ids) else following

    def new(self, rows: IntArray, ahead: int) -> BoolArray:
        """Mask of the rows whose own token, or the token this far ahead, is in no earlier window."""
        numbers, positions = np.divmod(rows, self.size)
        is_new: BoolArray = (positions + ahead >= self.size - self.stride) | (self.first + numbers == 0)
        return is_new


class Slice(NamedTuple):
    """A file of targets or segment ids, and where a shard's part starts if one file serves all shards."""

    path: str
    start: int | None = None

    def array(self, spec: FileSpec) -> Array:
        """The slice that belongs to a file of scores."""
        array = npy.open_array(self.path)
        if self.start is None:
            return array
        return array.reshape(-1)[self.start : self.start + spec.rows].reshape(spec.shape[:-1])

    def absolute(self) -> Slice:
        """The part with an absolute path, for a process in another directory."""
        return self._replace(path=str(Path(self.path).absolute()))


@record
class Facts(NamedTuple):
    """The properties of a shard or of blocks that results keep, without arrays or open files."""

    path: str  # "" for blocks
    kind: str
    shape: tuple[int, ...]
    dtype: str
    target_type: str = "class ids"  # or "distributions"; "none" if models are compared without targets
    n_scored_rows: int = 0  # shifting leaves some rows without a target
    targets: str | None = None  # the files of targets and of segment ids
    segments: str | None = None
    shares_numbers: bool = False  # whether numbers of sequences mean the same in other shards
    n_context: int = 0  # rows that predict what an earlier window did
    repeats: bool = False  # whether its targets are those of its neighbor, as in a file of another model
    n_bytes_without_token: int = 0  # of white space that the tokenizer drops, included in the tokens' bytes
    padding: dict[str, int] | None = None  # a special token, and how often it is scored after itself
    head_spec: str | None = None
    head: dict[str, Any] | None = None

    @property
    def has_classes(self) -> bool:
        """Whether all classes of each token are known."""
        return self.kind not in LISTS

    @property
    def rows(self) -> int:
        """Number of rows, or of listed tokens."""
        return math.prod(self.shape[:-1] if self.has_classes else self.shape)


class Shard(NamedTuple):
    """The plan of a shard: the same rows of each model, with their targets."""

    models: tuple[FileSpec, ...]  # the base, or the only model, comes first
    targets: Slice | None = None  # None if the files of scores contain them
    segments: Slice | None = None
    split: tuple[int, ...] | None = ()  # sequences that continue in other shards, by number; None if any may
    split_rows: tuple[int, ...] = ()  # the number of rows that each of these has in earlier shards
    n_scored_rows: int = 0  # shifting leaves some rows without a target
    target_type: str = "class ids"
    next_id: int | None = None  # the first id of the next shard, if the last row predicts it
    next_text: str | None = None
    next_label: Any = None  # of the group of the next shard's first token
    windows: StoredWindows | None = None  # in the file; None if it contains no windows of a text
    token_bytes: IntArray | None = None  # of the token that each row predicts, by a tokenizer; 0 if it is not scored
    repeats: bool = False
    n_bytes_without_token: int = 0
    padding: dict[str, int] | None = None

    @property
    def spec(self) -> FileSpec:
        """The file of the base, or of the only model."""
        return self.models[0]

    @property
    def path(self) -> str:
        """Path of this file."""
        return self.models[0].path

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (..., V) of its scores."""
        return self.models[0].shape

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.models[0].rows

    @property
    def n_bytes(self) -> int:
        """Size of the scores of all models in bytes."""
        return sum(spec.n_bytes for spec in self.models)

    @property
    def shares_numbers(self) -> bool:
        """Whether sequence numbers mean the same in all shards: one sketch or file of segment ids serves all."""
        return self.spec.span is not None or (self.segments is not None and self.segments.start is not None)

    @property
    def targets_path(self) -> str:
        """The file that contains the targets."""
        return self.targets.path if self.targets else self.path

    def n_read(self, result: Any) -> int:
        """Bytes of the base that were read for this result."""
        n_read: int = result.n_tokens * self.spec.row_bytes
        return n_read

    def fingerprint(self, hashed: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """Everything on which its result depends, except options."""
        id_files = [part and {**hashed(part.path), "start": part.start} for part in (self.targets, self.segments)]
        digest = None if self.token_bytes is None else hashlib.blake2b(self.token_bytes.tobytes(), digest_size=16)
        parts = [[hashed(one.path) for one in spec.parts] for spec in self.models]
        heads = [[*map(hashed, spec.head_files), spec.head_facts] for spec in self.models]
        own, span = hashed(self.path), self.spec.span
        if span is not None:
            own = own | {"path": f"{own['path']}, rows {span.row} to {span.row + self.rows - 1}"}
        return {
            **own, "targets": id_files[0], "segments": id_files[1],
            "split": None if self.split is None else list(self.split), "next": [self.next_id, self.next_text],
            "windows": self.windows and list(self.windows), "bytes": digest and digest.hexdigest(), "head": heads[0],
            "others": [[hashed(spec.path), *head] for spec, head in zip(self.models[1:], heads[1:], strict=True)],
            **({"parts": parts} if any(parts) else {}), **({"span": [*span]} if span else {}),
        }  # fmt: skip

    def absolute(self) -> Shard:
        """The shard with absolute paths, for a process in another directory."""
        targets, segments = (part and part.absolute() for part in (self.targets, self.segments))
        models = tuple(spec.absolute() for spec in self.models)
        return self._replace(models=models, targets=targets, segments=segments)

    def facts(self) -> Facts:
        """The facts that results keep."""
        spec, head = self.spec, self.spec.head
        return Facts(
            spec.path, spec.kind, spec.shape, spec.dtype, self.target_type, self.n_scored_rows,
            self.targets and self.targets.path, self.segments and self.segments.path,
            self.shares_numbers,
            int(np.count_nonzero(~self.windows.new(np.arange(self.rows), 1))) if self.windows else 0,
            self.repeats, self.n_bytes_without_token, self.padding, head and head.spec, spec.head_facts,
        )  # fmt: skip


class OpenShard(NamedTuple):
    """The arrays of a shard; targets and tokens are shifted if the options require it."""

    file: ScoresFile  # of the base, or of the only model
    targets: Array
    scored: Array | None  # mask of the rows that are scored; None for all
    tokens: Array | None
    sequences: RowSequences
    mask: Array | None = None  # further mask of the scored rows that count; None for all
    others: tuple[ScoresFile, ...] = ()  # of candidates
    ids: Array | None = None  # the targets as stored, including those that a model's mask leaves out
    has_targets: bool = True  # False if models are compared without: these are 0, or `LEFT_OUT` if masked
    groups: GroupCodes | None = None  # of each row, unless tokens are grouped by position or not at all

    @property
    def counted(self) -> Array | None:
        """Mask of the rows that count, unless their targets are ignored; None for all."""
        return self.mask if self.scored is None else self.scored if self.mask is None else self.scored & self.mask


class Handles:
    """The open files of a run, within limits that all models share; other files are opened each time they are needed.

    A single file stays open however much memory it takes. The targets of shards are derived only once, if they fit.
    """

    def __init__(self, is_single: bool = False) -> None:
        self._files: dict[FileSpec, ScoresFile] = {}
        self._heads: dict[tuple[object, ...], LmHead] = {}
        self._shards: dict[tuple[object, ...], OpenShard] = {}
        self._n_maps, self._n_bytes = 0, 0
        self._most_bytes = math.inf if is_single else _MOST_LOADED

    def open(self, spec: FileSpec) -> ScoresFile:
        """The open file, opened only if it is not kept; a head is opened once."""
        key = _key_of(spec)
        file = self._files.get(key)
        if file is not None:
            return file
        head_key = spec.head and (*spec.head, spec.row_bytes, spec.dtype)
        file = open_file(spec, None if head_key is None else self._heads.get(head_key))
        if head_key is not None and file.lm_head is not None:
            self._heads.setdefault(head_key, file.lm_head)
        arrays = [file.targets, file.tokens, file.segment_ids, file.cu_seqlens, file.input_ids, file.attention_mask]
        arrays += [] if file.lm_head is None else [file.lm_head.weight, file.lm_head.bias, *file.lm_head.norm_weights]
        held = [array for array in arrays if array is not None]
        n_maps = self._n_maps + sum(isinstance(array, np.memmap) for array in held)
        n_bytes = self._n_bytes + sum(array.nbytes for array in held if not isinstance(array, np.memmap))
        if n_maps <= _MOST_MAPS and n_bytes <= self._most_bytes:
            self._files[key], self._n_maps, self._n_bytes = file, n_maps, n_bytes
        return file

    def open_shard(self, shard: Shard, options: Options) -> OpenShard:
        """The open shard; its targets and tokens are shifted if the options require it."""
        key = _key(shard)
        if key in self._shards:
            return self._shards[key]
        stored = open_stored(shard, options, self)
        return self.keep(shard, shifted_shard(shard, stored) if options.shift else stored)

    def keep(self, shard: Shard, opened: OpenShard) -> OpenShard:
        """Keep the arrays of a shard, if there is room."""
        derived = [opened.targets, opened.scored, opened.tokens]
        n_bytes = self._n_bytes + sum(array.nbytes for array in derived if array is not None)
        if n_bytes <= self._most_bytes and all(_key_of(spec) in self._files for spec in shard.models):
            self._shards[_key(shard)], self._n_bytes = opened, n_bytes
        return opened


def _key_of(spec: FileSpec) -> FileSpec:
    """The key of an open file."""
    return spec._replace(head_facts=None, parts=tuple(map(_key_of, spec.parts)))


def _key(shard: Shard) -> tuple[object, ...]:
    """The key of a shard: everything on which its arrays depend, except the options of the run."""
    return (
        *((spec.path, spec.span) for spec in shard.models), shard.targets, shard.segments, shard.split,
        shard.split_rows, shard.next_id, shard.next_text, shard.next_label, shard.windows,
    )  # fmt: skip


def open_stored(shard: Shard, options: Options, handles: Handles) -> OpenShard:
    """The open shard, with targets and tokens as stored."""
    files = [handles.open(spec) for spec in shard.models]
    for file, name in ((file, name) for file in files for name in OTHER_MASKS if name in file.names):
        if name != options.by:
            refuse(file.path, f"has {name}, which is not read", f"have targets of -100 where it is 0, and no {name}")
    tokens = next((file.tokens for file in files if file.tokens is not None), None)
    tokens = None if files[0].sketch is not None else tokens  # those of its rows, and its targets come after these
    targets, sequences = _held_targets(shard, files, options), _held_sequences(shard, files)
    if shard.windows:
        sequences = shard.windows.sequences(shard.path, shard.shape, sequences)
        if targets is not None and shard.windows.targets_are_text:
            targets = shard.windows.ids(targets, shard.shape[:-1])
    groups = _held_groups(files[0], sequences, options.by)
    stored = OpenShard(files[0], np.empty(0), None, tokens, sequences, others=tuple(files[1:]), groups=groups)
    with_mask = [file for file in files if file.attention_mask is not None]
    with_mask = with_mask if files[0].sketch is None else [file for file in with_mask if file is files[0]]
    if targets is not None:
        stored = stored._replace(ids=targets)
        for file in with_mask:
            targets = targets if file.is_shifted else _masked(file, targets, options)
        return stored._replace(targets=targets)
    kept = np.ones(shard.shape[:-1], np.bool_)
    for file in with_mask:
        mask = checked_mask(file)
        if mask.size != kept.size:
            refuse(file.path, f"contains {MASK} of shape {mask.shape}", "have one for each row")
        kept &= mask.reshape(kept.shape) != 0
    return stored._replace(targets=np.where(kept, np.int8(0), np.int8(LEFT_OUT)), has_targets=False)


def _held_groups(file: ScoresFile, sequences: RowSequences, by: str | None) -> GroupCodes | None:
    """The group of each row by a field, which has a label for each row or each sequence; by file, one for all."""
    if by is None or is_by_position(by):
        return None
    if by == "file":
        return GroupCodes(np.zeros(file.rows, np.int16), ("",))
    field = file.field
    if field is None:
        names = ", ".join(file.names) or "one array without a name"
        refuse(file.path, f"contains {names}", f"have the array of {named('by', by)}")
    if field.dtype.kind not in "biuUT":
        refuse(file.path, f"{by} has dtype {field.dtype}", "be text, integers or bool")
    values, codes = np.unique(field, return_inverse=True)
    check_number_of_groups(len(values), by)
    codes, labels = codes.reshape(-1), field_labels(values.tolist())
    if codes.size != file.rows:
        number = sequences.n_labels(file.rows) if sequences.exist else 0
        if codes.size != number:
            fits = f"{file.shape[:-1]}, a label for each row" + f", or ({number},), one for each sequence" * (
                number > 0
            )
            refuse(file.path, f"{by} has shape {field.shape}", f"have shape {fits}")
        numbers = sequences.numbers(0, file.rows)
        codes = np.where(numbers < 0, -1, codes[numbers])
    return GroupCodes(codes, labels)


def _shifted_groups(groups: GroupCodes, shape: tuple[int, ...], shard: Shard) -> GroupCodes:
    """The group of the token that each row predicts."""
    codes = np.roll(groups.codes.reshape(shape), -1, -1).reshape(-1)
    if shard.next_id is not None:
        labels = [*(groups.labels or ())]
        labels += [] if shard.next_label in labels else [shard.next_label]
        codes = codes.copy()
        codes[-1] = labels.index(shard.next_label)
        groups = groups._replace(labels=labels)
    return groups._replace(codes=codes)


def _held_targets(shard: Shard, files: list[ScoresFile], options: Options) -> Array | None:
    """The targets of a shard, which must be equal in all files that have them; None if compared without targets."""
    are_compared = len(shard.models) > 1
    if files[0].sketch is not None:
        return _sketched_targets(files, options.ignore_index)
    held, is_needed = [(file.path, file.targets) for file in files if file.targets is not None], True
    if shard.targets is not None:
        held = [*(held if are_compared else ()), (shard.targets.path, shard.targets.array(shard.spec))]
    elif not held:
        held = [(file.path, file.input_ids) for file in files if file.input_ids is not None]
        is_needed = not are_compared or options.shift is not False  # else ids only show that texts are the same
        if held and is_needed and not options.shift:
            fits = f"contain targets, or come with {named('targets', ...)} or {named('targets_array', ...)}; "
            fits += f"if these ids are the model's input, add {named('shift', True)}"
            fits += f"; for divergences only, {named('shift', False)}" * are_compared
            refuse(held[0][0], "contains input ids and no targets", fits)
    if not held and are_compared and not options.shift:
        return None
    if not held:
        refuse_without_targets(shard.path, files[0].names)
    (first, targets), *rest = held
    for path, others in rest:
        if not np.array_equal(targets.reshape(-1), others.reshape(-1)):
            what = "targets" if is_needed else "input ids"
            refuse(path, f"its {what} differ from those in {first}", f"have the same {what}, or no {what}")
    return targets if is_needed else None


def _sketched_targets(files: list[ScoresFile], ignored: int | None) -> Array | None:
    """The targets of a sketch; other files may hold the same ones, or the tokens that come before them."""
    targets = files[0].targets
    for file in files[1:] if targets is not None else ():
        ids = file.input_ids if file.targets is None else file.targets
        if ids is None or targets is None or ids.size != targets.size:
            continue
        wanted, held = targets.reshape(-1), ids.reshape(-1)
        kept = wanted != ignored
        if not any(np.array_equal(one[kept], wanted[kept]) for one in (held, np.roll(held, -1))):
            refuse(file.path, f"its targets differ from those in {files[0].path}", "have the same or the tokens before")
    return targets


def refuse_without_targets(path: str, names: Sequence[str] = ()) -> NoReturn:
    """Raise an error that a file, with arrays of these names, contains no targets."""
    got, fits = "has no targets", f"contain targets, or come with {named('targets', ...)}"
    if len(names) > 1:
        got, fits = f"{got}, but {', '.join(names)}", f"{fits} or {named('targets_array', ...)}"
    refuse(path, got, fits)


def _masked(file: ScoresFile, targets: Array, options: Options) -> Array:
    """Targets without those that a model's mask leaves out; if not shifted, they must be ignored there already."""
    mask = checked_mask(file)
    kept, ignored = mask != 0, options.ignore_index
    if options.shift:
        if targets.shape != mask.shape or targets.dtype.kind not in "iu":
            return targets  # which are refused when they are shifted
        kept[..., 1:] &= mask[..., 1:] == mask[..., :-1]
        if ignored is not None:
            masked: Array = np.where(kept, targets.astype(np.int64), ignored)
            return masked
    # these may be the next tokens, so the mask of the last token may not be that of its target
    wrong = ~kept if ignored is None or targets.shape != mask.shape else ~kept & (targets != ignored)
    if wrong.any():
        got = f"{MASK}{np.argwhere(wrong)[0].tolist()} is {mask[wrong][0]:g}, but its token would be scored"
        fits = f"have targets that are ignored where it is 0, or come with {named('shift', True)} if they are input ids"
        refuse(file.path, got, fits)
    return targets


def _held_sequences(shard: Shard, files: list[ScoresFile]) -> RowSequences:
    """The sequences of a shard, from their own file or from files of scores, which must agree."""
    if shard.segments is not None:
        counts = dict(zip(shard.split or (), shard.split_rows, strict=False))
        return row_sequences(files[0], shard.segments.array(shard.spec), shard.segments.path, counts)
    if files[0].sketch is not None and files[0].segment_ids is not None:  # others may count them in their own way
        files = files[:1]
    held = [(file.path, row_sequences(file, None, None)) for file in files]
    given = [(path, sequences) for path, sequences in held if sequences.are_given]
    for path, sequences in given[1:]:
        first, rows = given[0], files[0].rows
        if not np.array_equal(first[1].numbers(0, rows), sequences.numbers(0, rows)):
            refuse(path, f"its sequences differ from those in {first[0]}", "have the same sequences, or no sequences")
    return next((sequences for _, sequences in given or held if sequences.exist), held[0][1])


def shifted_shard(shard: Shard, stored: OpenShard) -> OpenShard:
    """The shard with shifted targets: the target of each row is the next token."""
    file, targets, _, tokens, sequences, *_ = stored
    if stored.groups is not None:
        stored = stored._replace(groups=_shifted_groups(stored.groups, file.shape[:-1], shard))
    for one in (file, *stored.others):
        is_own = len(shard.models) > 1 and one.is_shifted
        check_shiftable(one, targets, None if is_own or shard.targets is None else shard.targets.path)
    scored = ~sequences.ends(file.rows).reshape(targets.shape) if sequences.are_given else None
    if shard.next_id is None:
        length = targets.shape[-1]
        targets, has_next = np.roll(targets, -1, -1), np.broadcast_to(np.arange(length) < length - 1, targets.shape)
        scored = has_next if scored is None else scored & has_next
        scored = scored & shard.windows.new(np.arange(shard.rows), 1).reshape(scored.shape) if shard.windows else scored
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


def check_shiftable(file: ScoresFile, targets: Array, path: str | None) -> None:
    """Refuse targets that cannot be shifted. `path` is their file; None if it is the file of scores."""
    fits = "contain an id for each row of sequences, to be shifted"
    if path is None and file.is_shifted:
        refuse(file.path, "contains targets that are the next tokens", fits)
    if len(file.shape) < 2 or targets.shape != file.shape[:-1]:
        refuse(path or file.path, f"contains targets of shape {targets.shape}", fits)


def stored_windows(
    files: Sequence[tuple[str, tuple[int, ...]]], targets: Sequence[str], options: Options
) -> list[StoredWindows]:
    """The windows of each file of scores, given its path and shape, and the files of targets."""
    size, stride = options.window, options.stride
    counts = [math.prod(shape[:-1]) for _, shape in files]
    windows_of_files, left, number, length = [], sum(counts), 0, 0
    for (path, (*batch, _)), rows in zip(files, counts, strict=True):
        if len(batch) > 1 and batch[-1] != size and (batch[-1] > size or rows > batch[-1]):
            refuse(path, f"contains windows of {batch[-1]} tokens", f"contain windows of {size}")
        windows_of_files.append(StoredWindows(size, stride, number))
        left -= rows
        number += -(-rows // size)
        length = (rows - 1) % size + 1 if rows else length  # of the last window
        if length < size and left:
            refuse(path, f"ends with a window of {length}", f"contain windows of {size} tokens, as other files follow")
    if number > 1 and length <= size - stride:
        fits = f"end with one of more than {size - stride}, which has tokens that the one before lacks"
        refuse(files[-1][0], f"ends with a window of {length} tokens", fits)
    if len(targets) == 1 and _are_of_text(targets[0], sum(counts), (number - 1) * stride + length):
        return [windows._replace(targets_are_text=True) for windows in windows_of_files]
    return windows_of_files


def _are_of_text(path: str, rows: int, n_tokens: int) -> bool:
    """Whether a file of targets contains the ids of a text, instead of an id for each row.

    A text that is shorter than its windows is refused: the last one may be padded, or begin earlier to be full.
    """
    array = npy.open_array(path)
    if array.size == rows or array.size != max(array.shape, default=0):
        return False
    if array.size != n_tokens:
        fits = f"contain {n_tokens} ids, of the text in these windows, or {rows}, one for each row"
        refuse(path, f"has shape {array.shape}", fits)
    return True
