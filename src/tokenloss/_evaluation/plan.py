"""The plan of an evaluation: files of scores and targets become shards, checked before any score is read."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tokenloss import _job
from tokenloss._errors import raise_error
from tokenloss._files import identity
from tokenloss._validation import as_positions, scores_of_shape
from tokenloss.formats import npy, open_scores
from tokenloss.formats._base import ScoresFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Literal

    from tokenloss._types import Array

_BLOCK_BYTES = 32 << 20  # read at a time
_BLOCK_ROWS = 1 << 20  # read at a time, since each row takes some bytes more


class Options(NamedTuple):
    """Options that affect the result of a shard."""

    array: str | None = None
    kind: Literal["logits", "log_probs", "probs"] | None = None
    ignore_index: int = -100
    shift: bool = False
    top: int = 5


class Shard(NamedTuple):
    """A file of scores."""

    path: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    row_bytes: int
    targets: str | None = None  # the file of the targets, if it is another
    start: int | None = None  # of the shard's targets in a file that holds those of other shards, too
    target_type: str = "class ids"  # or "distributions"
    next_id: int | None = None  # the first id of the next shard, if the last row predicts it
    next_text: str | None = None

    @property
    def rows(self) -> int:
        """Number of rows in the file."""
        return math.prod(self.shape[:-1])

    @property
    def n_bytes(self) -> int:
        """Size of the scores."""
        return self.rows * self.row_bytes

    def with_absolute_paths(self) -> Shard:
        """The same shard for a process in another directory."""
        targets = self.targets and str(Path(self.targets).absolute())
        return self._replace(path=str(Path(self.path).absolute()), targets=targets)

    def scored_shape(self, options: Options) -> tuple[int, ...]:
        """Batch shape of the rows that are scored; shifting leaves out those whose next token is not known."""
        if not options.shift or self.next_id is not None:
            return self.shape[:-1]
        *others, length = self.shape[:-1] or (1,)
        return (*others, max(0, length - 1))

    def scored_rows(self, options: Options) -> int:
        """Number of rows that are scored."""
        return math.prod(self.scored_shape(options))


class OpenShard(NamedTuple):
    """The arrays of a shard; targets and tokens are shifted if the options say so."""

    file: ScoresFile
    targets: Array
    where: Array | None  # the rows that are scored, if not all are
    tokens: Array | None


def rows_per_block(row_bytes: int) -> int:
    """Number of rows to read at a time."""
    return max(1, min(_BLOCK_BYTES // (row_bytes or 1), _BLOCK_ROWS))


def plan(paths: Sequence[str], targets: Sequence[str], options: Options) -> list[Shard]:
    """Open all files and check everything in them but the scores, before anything is scored."""
    if not targets and len(paths) == 2 and _is_file_of_class_ids(paths[1], paths[0], options):
        paths, targets = paths[:1], paths[1:]
    _check_order(paths, targets, options)
    shards = _with_targets(_open_all(paths, options), targets)
    following: tuple[int | None, str | None] = None, None  # id and text of the token after the shard
    for number in sorted(range(len(shards)), reverse=options.shift):
        shard, stored = shards[number], _open_stored(shards[number], options)
        is_sequence = options.shift and len(shard.shape) == 2
        if is_sequence and shard.rows:
            shard = shard._replace(next_id=following[0], next_text=following[1])
        opened = _shifted_shard(shard, stored) if options.shift else stored
        with with_file_names(shard.path, shard.targets):
            stored_targets = opened.targets, options.ignore_index, options.shift, opened.where
            check_stored_targets(shard.shape, shard.kind, *stored_targets)
        is_soft = opened.targets.ndim == len(shard.shape)
        shards[number] = shard._replace(target_type="distributions") if is_soft else shard
        if not is_sequence:
            following = None, None
        elif shard.rows:
            text = None if stored.tokens is None else str(stored.tokens[0])
            following = int(stored.targets[0]) if stored.targets.dtype.kind in "iu" else None, text
    return shards


def open_shard(shard: Shard, options: Options) -> OpenShard:
    """Open a shard."""
    stored = _open_stored(shard, options)
    return _shifted_shard(shard, stored) if options.shift else stored


def check_different(paths: Sequence[str]) -> None:
    """Refuse a file that is given twice, under whatever names."""
    seen: dict[object, str] = {}
    for path in paths:
        first = seen.get(identity(path))
        if first is not None:
            got = "is given twice" if first == path else f"is given twice, as {first}, too"
            raise_error("content", path=path, got=got, fits="be given once")
        seen[identity(path)] = path


def by_number(path: str) -> tuple[str | int, ...]:
    """Sort key by which part-2 comes before part-10."""
    return tuple(int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", path)))


@contextlib.contextmanager
def with_file_names(*files: str | None) -> Iterator[None]:
    """Put the names of files before errors about their arrays."""
    try:
        yield
    except (IndexError, TypeError, ValueError) as error:
        raise type(error)(f"{', '.join(filter(None, files))}: {error}") from error


def check_stored_targets(
    shape: tuple[int, ...],
    kind: str,
    targets: Array,
    ignore_index: int,
    is_shifted: bool,
    where: Array | None = None,
    soft: bool = True,
) -> None:
    """Check all targets of a file, before anything of the size of the scores is read.

    Errors about shifted targets give the position of the row that predicts.
    """
    name = "shifted targets" if is_shifted else "targets"
    scores = scores_of_shape(kind, shape, -1)
    positions = as_positions(name, targets, scores, ignore_index, where, distributions=soft)
    if positions.by_class:
        _job.check_targets(positions, scores)


def check_sequences(file: ScoresFile, targets: Array, path: str | None) -> None:
    """Refuse targets that cannot be shifted; the path is that of the file that holds them, if it is another."""
    fits = "hold an id for each row of sequences, to be shifted"
    if path is None and file.is_shifted:
        raise_error("content", path=file.path, got="holds targets that are the next tokens", fits=fits)
    if len(file.shape) < 2 or targets.shape != file.shape[:-1]:
        raise_error("content", path=path or file.path, got=f"holds targets of shape {targets.shape}", fits=fits)


def shifted(ids: Array) -> tuple[Array, Array]:
    """The id after each row in its sequence, and the mask of the rows that have one."""
    length = ids.shape[-1]
    return np.roll(ids, -1, -1), np.broadcast_to(np.arange(length) < length - 1, ids.shape)


# -- the steps of the plan ---------------------------------------------------------------------------------------------


def _is_file_of_class_ids(path: str, scores_path: str, options: Options) -> bool:
    """True if a file is an integer .npy array, taken for the class ids of the scores."""
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        if file.read(len(npy.MAGIC)) != npy.MAGIC:
            return False
    scores = _open(scores_path, options)
    if scores.targets is not None:
        return False
    array = npy.open_array(path)
    if array.dtype.kind in "iub" and array.shape == scores.shape:
        got = f"holds {array.dtype} of the shape of {scores.kind}"
        raise_error("content", path=path, got=got, fits="come with --targets to be distributions")
    return array.dtype.kind in "iu"


def _check_order(paths: Sequence[str], targets: Sequence[str], options: Options) -> None:
    """Refuse files against the order of their numbers, where the order matters."""
    misplaced = [_misplaced(paths), _misplaced(targets)]
    if options.shift or (targets and not all(misplaced)):
        for path, following in itertools.chain(*misplaced):
            fits = "come after it; with the pattern in quotes, files are in the order of their numbers"
            raise_error("content", path=path, got=f"comes before {following}", fits=fits)


def _misplaced(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Neighbours against the order of their numbers, if all are sorted by letters as a shell does."""
    return [
        (path, following)
        for path, following in itertools.pairwise(paths if list(paths) == sorted(paths) else ())
        if by_number(path) > by_number(following) and by_number(path)[::2] == by_number(following)[::2]
    ]


def _open(path: str, options: Options) -> ScoresFile:
    """Open a file of scores."""
    return open_scores(path, array=options.array, kind=options.kind)


def _open_all(paths: Sequence[str], options: Options) -> list[Shard]:
    """Shards of all files, which must have the same kind and the same number of classes."""
    shards: list[Shard] = []
    for path in paths:
        file = _open(path, options)
        shard = Shard(path, file.kind, file.shape, file.dtype.name, file.row_bytes)
        if shards and (shard.kind, shard.shape[-1]) != (shards[0].kind, shards[0].shape[-1]):
            got = f"holds {shard.kind} of {shard.shape[-1]} classes"
            fits = f"hold {shards[0].kind} of {shards[0].shape[-1]}, as {shards[0].path} does"
            raise_error("content", path=path, got=got, fits=fits)
        shards.append(shard)
    return shards


def _with_targets(shards: list[Shard], targets: Sequence[str]) -> list[Shard]:
    """Shards with the place of their targets: a file for each, or one for all."""
    if len(targets) == len(shards):
        return [shard._replace(targets=path) for shard, path in zip(shards, targets, strict=True)]
    if not targets:
        return shards
    rows = sum(shard.rows for shard in shards)
    if len(targets) > 1:
        fits = f"be {len(shards)}, one for each file of scores, or one for all"
        raise_error("content", path=targets[0], got=f"is one of {len(targets)} files of targets", fits=fits)
    ids = npy.open_array(targets[0])
    if ids.size != rows:
        fits = f"hold {rows} class ids, one for each row of the {len(shards)} files of scores"
        raise_error("content", path=targets[0], got=f"has shape {ids.shape}", fits=fits)
    starts = np.cumsum([0, *(shard.rows for shard in shards)]).tolist()
    return [shard._replace(targets=targets[0], start=start) for shard, start in zip(shards, starts, strict=False)]


def _open_stored(shard: Shard, options: Options) -> OpenShard:
    """Open a shard with its targets and tokens as they are stored."""
    file = _open(shard.path, options)
    targets = file.targets
    if shard.targets is not None:
        targets = npy.open_array(shard.targets)
        if shard.start is not None:
            targets = targets.reshape(-1)[shard.start : shard.start + file.rows].reshape(file.shape[:-1])
    if targets is None:
        raise_error("content", path=shard.path, got="holds no targets", fits="hold them, or come with --targets")
    return OpenShard(file, targets, None, file.tokens)


def _shifted_shard(shard: Shard, stored: OpenShard) -> OpenShard:
    """The shard with the next token of each row as its target."""
    file, targets, _, tokens = stored
    check_sequences(file, targets, shard.targets)
    if shard.next_id is None:
        targets, where = shifted(targets)
        return OpenShard(file, targets, where, None if tokens is None else np.roll(tokens, -1, -1))
    # NumPy promotes uint64 and negative integers to float64, which cannot hold class ids
    dtype = np.int64 if shard.next_id < 0 else np.result_type(targets, np.min_scalar_type(shard.next_id))
    targets = np.append(targets[1:].astype(dtype), np.array(shard.next_id, dtype))
    if tokens is not None:
        tokens = np.append(tokens[1:].astype(object), np.array(shard.next_text, object))
    return OpenShard(file, targets, None, tokens)
