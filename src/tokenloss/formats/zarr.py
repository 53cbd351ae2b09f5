"""Arrays as Zarr stores hold them, of versions 2 and 3, in directories and .zip files."""

from __future__ import annotations

import dataclasses
import math
import os
import stat
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core._core import KINDS
from tokenloss._core.errors import contextmanager, raise_error
from tokenloss._core.iteration import iter_row_blocks
from tokenloss.formats.base import MEMORY_LIMIT, MOST_AXES, check_expansion, is_float, library_errors
from tokenloss.formats.scores_file import (
    HIDDEN_NAMES,
    INPUT_IDS,
    MASK,
    PARTS,
    TARGETS,
    Format,
    ScoresFile,
    choose_scores,
    reject_array_name,
    stored_parts,
    with_parts,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from tokenloss._core.types import Array

_METADATA = ("zarr.json", ".zarray", ".zgroup")  # every store has one of them at its root
_CHUNK_BYTES = 1 << 10  # of memory that Zarr uses for each chunk that it looks for
_TOKEN_BYTES = 1 << 10  # that each of many tokens may take in a file
_OVERHEAD = 16  # times the bytes of the numbers, for indices and codecs where chunks are small
_MAX_CHUNKS = 1 << 12  # that Zarr looks for at a time


def is_store(names: Collection[str]) -> bool:
    """Whether a directory or an archive with files of these names is a store."""
    return any(name in names for name in _METADATA)


def open_scores(path: str, array: str | None, kind: str | None, targets_array: str | None) -> ScoresFile:
    """Open a Zarr array of scores, or a group of it and perhaps targets, the tokens' text, and sequences."""
    guard = _ReadGuard(path)
    arrays = _arrays(path, (array, targets_array), guard)
    if "" in arrays:
        reject_array_name(path, array, targets_array)
        name, kind = "", kind or "logits"
    else:
        name, kind = choose_scores(path, arrays, array, kind)
    scores = _with_nan_for_missing_chunks(kind, arrays[name])
    _check(path, name, scores, guard, whole=False)

    def block(index: Any) -> Array:
        with guard.reading(f"{name}[{index}]"):
            rows = np.asarray(scores[index])
        return rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1])

    def blocks(most_rows: int) -> Iterator[Array]:
        chunks_of_a_row = _n_chunks(scores.shape[-1:], scores.chunks[-1:]) or 1
        at_once = max(math.prod(scores.chunks[:-1]), _MAX_CHUNKS // chunks_of_a_row)
        for index in iter_row_blocks(scores.shape[:-1], min(most_rows, at_once), scores.chunks[:-1]):
            yield block(index)  # not kept in a variable: a file that waits for its next block holds no memory

    names = tuple(filter(None, arrays))
    found = ScoresFile(path, kind, scores.shape, scores.dtype, None, None, blocks, names=names)
    parts = stored_parts(path, arrays, name, targets_array)

    def load(part: Any) -> Array:
        _check(path, part.basename, part, guard, whole=True)
        with guard.reading(part.basename):
            return np.asarray(part[...])

    return with_parts(found, {part: arrays[stored] for part, stored in parts.items()}, load)


def _arrays(path: str, given: Sequence[str | None], guard: _ReadGuard) -> dict[str, Any]:
    """The arrays of a store that may be used, by name; the name is empty where the store is an array itself."""
    try:
        import zarr
    except ImportError:
        raise_error("missing", name=path, got="zarr")
    is_directory = Path(path).is_dir()
    if is_directory and not is_store([name for name in _METADATA if (Path(path) / name).exists()]):
        raise_error("content", path=path, got="is a directory without metadata of Zarr", fits="be a Zarr store")
    with guard.reading():
        if is_directory:  # never by its name, which Zarr may take for a URL
            store = _guarded(zarr.storage.LocalStore, guard)(Path(path), read_only=True)
        else:
            store = _guarded(zarr.storage.ZipStore, guard)(Path(path), mode="r")
        # consolidated metadata of a group may be older than its arrays
        root: Any = zarr.open(store, mode="r", use_consolidated=False)
        if isinstance(root, zarr.Array):
            return {"": root}
        names = *given, *KINDS, *HIDDEN_NAMES, *PARTS, *TARGETS, *INPUT_IDS, MASK
        members = {name: root[name] for name in names if name and name in root}
    return {name: member for name, member in members.items() if isinstance(member, zarr.Array)}


def _with_nan_for_missing_chunks(kind: str, scores: Any) -> Any:
    """Scores whose missing chunks are nan rather than 0, so that what was never written is not scored.

    Only some classes of a row may all have the probability 0, and Zarr leaves out chunks that only hold fill values.
    """
    is_whole = scores.ndim > 0 and scores.chunks[-1] >= scores.shape[-1]
    if not is_float(scores.dtype) or scores.fill_value or (kind == "probs" and not is_whole):
        return scores
    import zarr

    metadata = dataclasses.replace(scores.metadata, fill_value=scores.dtype.type(np.nan))
    return zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=scores.store_path))


class _ReadGuard:
    """Refuses files of a store that are not regular, or larger than the chunks of its arrays can be.

    Zarr is told that such a file is missing, and the error is raised when Zarr is done: an error in between would leave
    its tasks pending, which complain on stderr when the interpreter exits.
    """

    def __init__(self, path: str) -> None:
        self.most = MEMORY_LIMIT
        self._refused = ""
        self._path = path
        self._sizes: dict[str, int] | None = None
        if Path(path).is_dir():
            return
        with library_errors(path), zipfile.ZipFile(path) as archive:
            stored = self.stored()
            for info in archive.infolist():
                if info.compress_size > stored:
                    raise ValueError(f"{info.filename} is said to have {info.compress_size} bytes")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{info.filename} is compressed by method {info.compress_type}")
            self._sizes = {info.filename: info.file_size for info in archive.infolist()}

    def stored(self) -> int:
        """Size of the store."""
        files = [Path(self._path)] if Path(self._path).is_file() else Path(self._path).rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    @contextmanager
    def reading(self, part: str = "") -> Iterator[None]:
        """Raise the error about a file that was refused."""
        with library_errors(self._path, part):
            try:
                yield
            finally:
                if self._refused:
                    raise ValueError(self._refused)

    def allows(self, key: str) -> bool:
        """Whether Zarr may read a file or an entry, if there is one."""
        size = 0
        if self._sizes is not None:
            size = self._sizes.get(key, 0)
        else:
            file = Path(self._path, key)
            try:
                status = file.stat()
            except OSError as error:
                inside = (file, *file.parents[: len(Path(key).parents) - 1])
                if not isinstance(error, FileNotFoundError | NotADirectoryError):
                    self._refused = f"{key}: {error.strerror}"
                elif any(map(os.path.islink, inside)):  # a missing chunk has the fill value, a broken link is an error
                    self._refused = f"{key} is not where a link says"
                return False
            size = status.st_size
            if not stat.S_ISREG(status.st_mode):
                self._refused = f"{key} is no regular file"
                return False
        if size > self.most:
            self._refused = f"{key} has {size} bytes, more than the {self.most} that it can need"
            return False
        return True


def _guarded(store: Any, guard: _ReadGuard) -> Any:
    """Class of a store whose reads pass the guard; which method reads depends on Zarr's version."""

    async def get(self: Any, key: str, *args: Any, **options: Any) -> Any:
        return await store.get(self, key, *args, **options) if guard.allows(key) else None

    def get_sync(self: Any, key: str, *args: Any, **options: Any) -> Any:
        return store.get_sync(self, key, *args, **options) if guard.allows(key) else None

    async def get_partial_values(self: Any, prototype: Any, key_ranges: Iterable[tuple[str, Any]]) -> Any:
        ranges = list(key_ranges)
        if not all(guard.allows(key) for key, _ in ranges):
            return [None] * len(ranges)
        return await store.get_partial_values(self, prototype, ranges)

    methods = {method.__name__: method for method in (get, get_sync, get_partial_values)}
    return type("Guarded", (store,), {name: method for name, method in methods.items() if hasattr(store, name)})


def _check(path: str, name: str, array: Any, guard: _ReadGuard, *, whole: bool) -> None:
    """Refuse an array whose codecs can run code, or that asks for much more memory than its store has bytes."""
    part = f"{path}: {name}" if name else path
    if array.ndim > MOST_AXES:
        raise_error("content", path=part, got=f"has {array.ndim} axes", fits=f"have at most {MOST_AXES}")
    with library_errors(path, name):
        codecs = [getattr(codec, "codec_id", None) for codec in (*array.filters, *array.compressors)]
    if "pickle" in codecs:
        raise_error("content", path=part, got="holds Python objects", fits="be numbers or text: pickles can run code")
    shape, chunks = array.shape if whole else array.shape[-1:], array.shards or array.chunks
    if 0 in chunks:
        raise_error("content", path=part, got=f"has chunks of shape {chunks}", fits="have chunks that are not empty")
    n_chunks = _n_chunks(shape, array.chunks[-len(shape) :] if shape else ())
    held = max(
        math.prod(shape) * array.dtype.itemsize, math.prod(chunks) * array.dtype.itemsize, n_chunks * _CHUNK_BYTES
    )
    if held > MEMORY_LIMIT:
        check_expansion(part, held, guard.stored())
    entry = _TOKEN_BYTES if array.dtype.kind in "TO" else array.dtype.itemsize * _OVERHEAD
    guard.most = max(guard.most, math.prod(chunks) * entry)


def _n_chunks(shape: tuple[int, ...], chunks: tuple[int, ...]) -> int:
    """Number of chunks of an array."""
    return math.prod(-(-length // chunk) for length, chunk in zip(shape, chunks, strict=True))


FORMAT = Format("a Zarr store", (".zip",), b"", open_scores)
