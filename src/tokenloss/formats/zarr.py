"""Arrays in Zarr stores of versions 2 and 3, in directories and .zip files."""

from __future__ import annotations

import dataclasses
import math
import os
import stat
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core._core import KINDS
from tokenloss._core.errors import raise_error, refuse
from tokenloss.formats.base import MEMORY_LIMIT, MOST_AXES, check_expansion, is_float, library_errors
from tokenloss.formats.scores_file import HIDDEN_NAMES, INPUT_IDS, MASK, OTHER_MASKS, PARTS, TARGETS, Archive, Format

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from types import EllipsisType

    from tokenloss._core.types import Array

_METADATA = ("zarr.json", ".zarray", ".zgroup")  # every store has one of them at its root
_CHUNK_BYTES = 1 << 10  # of memory that Zarr uses for each chunk that it looks for
_TOKEN_BYTES = 1 << 10  # that each of many tokens may take in a file
_OVERHEAD = 16  # times the bytes of the numbers, for indices and codecs where chunks are small
_MAX_CHUNKS = 1 << 12  # that Zarr looks for at a time


def is_store(names: Collection[str]) -> bool:
    """Whether a directory or an archive with files of these names is a store."""
    return any(name in names for name in _METADATA)


class _Stored(NamedTuple):
    """An array of a store."""

    path: str
    name: str
    array: Any
    sizes: Mapping[str, int]  # of all files of the store

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the array."""
        dtype: np.dtype[Any] = self.array.dtype
        return dtype

    def blocks(self, most_rows: int) -> Iterator[Array]:
        """Blocks of rows."""
        chunks = self.array.chunks
        chunks_of_a_row = _n_chunks(self.shape[-1:], chunks[-1:]) or 1
        at_once = max(math.prod(chunks[:-1]), _MAX_CHUNKS // chunks_of_a_row)
        for index in _row_blocks(self.shape[:-1], min(most_rows, at_once), chunks[:-1]):
            yield self._rows(index)  # not kept in a variable: a file that waits for its next block holds no memory

    def _rows(self, index: Any) -> Array:
        """The rows of a block."""
        with library_errors(self.path, f"{self.name}[{index}]"):
            rows = np.asarray(self.array[index])
        return rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1])

    def load(self) -> Array:
        """The whole array."""
        _check(self, whole=True)
        with library_errors(self.path, self.name):
            return np.asarray(self.array[...])


def _open(path: str, given: Sequence[str | None]) -> Archive:
    """The arrays of a store that may be used."""
    sizes = _sizes(path)
    arrays = _arrays(path, given, sizes)
    return Archive(path, arrays, lambda name: _Stored(path, name, arrays[name], sizes), _fitted)


def _fitted(name: str, kind: str, scores: _Stored, parts: dict[str, Any]) -> tuple[_Stored, dict[str, Any]]:
    """Scores that need no more memory than allowed, and the arrays that accompany them."""
    del name
    scores = scores._replace(array=_with_nan_for_missing_chunks(kind, scores.array))
    _check(scores, whole=False)
    return scores, parts


def _arrays(path: str, given: Sequence[str | None], sizes: Mapping[str, int]) -> dict[str, Any]:
    """The arrays of a store that may be used, by name; the name is empty where the store is an array itself."""
    try:
        import zarr
    except ImportError:
        raise_error("missing", name=path, got="zarr")
    is_directory = Path(path).is_dir()
    if is_directory and not is_store([name for name in _METADATA if (Path(path) / name).exists()]):
        refuse(path, "is a directory without metadata of Zarr", "be a Zarr store")
    with library_errors(path):
        _check_sizes({key: sizes[key] for key in sizes if key.endswith(_METADATA)}, MEMORY_LIMIT)
        stores = zarr.storage
        # a directory is never opened by its name, which Zarr may take for a URL
        store = stores.LocalStore(Path(path), read_only=True) if is_directory else stores.ZipStore(Path(path), mode="r")
        # consolidated metadata of a group may be older than its arrays
        root: Any = zarr.open(store, mode="r", use_consolidated=False)
        if isinstance(root, zarr.Array):
            return {"": root}
        names = *given, *KINDS, *HIDDEN_NAMES, *PARTS, *TARGETS, *INPUT_IDS, MASK, *OTHER_MASKS
        members = {name: root[name] for name in names if name and name in root}
    return {name: member for name, member in members.items() if isinstance(member, zarr.Array)}


def _with_nan_for_missing_chunks(kind: str, scores: Any) -> Any:
    """Scores whose missing chunks are nan rather than 0, so that values never written are not scored.

    Only some classes of a row may all have the probability 0, and Zarr leaves out chunks that only hold fill values.
    """
    is_whole = scores.ndim > 0 and scores.chunks[-1] >= scores.shape[-1]
    if not is_float(scores.dtype) or scores.fill_value or (kind == "probs" and not is_whole):
        return scores
    import zarr

    metadata = dataclasses.replace(scores.metadata, fill_value=scores.dtype.type(np.nan))
    return zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=scores.store_path))


def _sizes(path: str) -> dict[str, int]:
    """The sizes of the files of a store by their keys, which end in "/" for folders; others are refused."""
    if not Path(path).is_dir():
        with library_errors(path), zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.compress_size > Path(path).stat().st_size:
                    raise ValueError(f"{info.filename} is said to have {info.compress_size} bytes")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{info.filename} is compressed by method {info.compress_type}")
            return {info.filename: info.file_size for info in archive.infolist()}
    sizes: dict[str, int] = {}
    for folder, folders, names in os.walk(path):
        sizes |= {f"{Path(folder, name).relative_to(path).as_posix()}/": 0 for name in folders}
        for name in names:
            key = Path(folder, name).relative_to(path).as_posix()
            with library_errors(path):
                try:
                    status = Path(folder, name).stat()
                except FileNotFoundError:  # a missing chunk has the fill value, a broken link is an error
                    raise ValueError(f"{key} is not where a link says") from None
                if not stat.S_ISREG(status.st_mode):  # a pipe may block, and a device may never end
                    raise ValueError(f"{key} is not a regular file")
                sizes[key] = status.st_size
    return sizes


def _check(stored: _Stored, *, whole: bool) -> None:
    """Refuse an array whose codecs can run code, or that asks for much more memory than its store has bytes."""
    path, name, array, sizes = stored
    part = f"{path}: {name}" if name else path
    if array.ndim > MOST_AXES:
        refuse(part, f"has {array.ndim} axes", f"have at most {MOST_AXES}")
    with library_errors(path, name):
        codecs = [getattr(codec, "codec_id", None) for codec in (*array.filters, *array.compressors)]
    if "pickle" in codecs:
        refuse(part, "contains Python objects", "be numbers or text: pickles can run code")
    shape, chunks = array.shape if whole else array.shape[-1:], array.shards or array.chunks
    if 0 in chunks:
        refuse(part, f"has chunks of shape {chunks}", "have chunks that are not empty")
    n_chunks = _n_chunks(shape, array.chunks[-len(shape) :] if shape else ())
    held = max(
        math.prod(shape) * array.dtype.itemsize, math.prod(chunks) * array.dtype.itemsize, n_chunks * _CHUNK_BYTES
    )
    if held > MEMORY_LIMIT:
        check_expansion(part, held, sum(sizes.values()) if Path(path).is_dir() else Path(path).stat().st_size)
    entry = _TOKEN_BYTES if array.dtype.kind in "TO" else array.dtype.itemsize * _OVERHEAD
    with library_errors(path, name):
        prefix, chunk = f"{array.path}/" if array.path else "", array.metadata.encode_chunk_key((0,) * array.ndim)
        own = {key: sizes[key] for key in sizes if key.startswith(prefix)}
        for key in own:
            if key.endswith("/") and key.removeprefix(prefix).count("/") > chunk.count("/"):
                raise ValueError(f"{key[:-1]} is not a regular file")
        _check_sizes(own, max(MEMORY_LIMIT, math.prod(chunks) * entry))


def _check_sizes(sizes: Mapping[str, int], most: int) -> None:
    """Refuse files larger than any that these arrays can need."""
    for key, size in sizes.items():
        if size > most:
            raise ValueError(f"{key} has {size} bytes, more than the {most} that it can need")


def _n_chunks(shape: tuple[int, ...], chunks: tuple[int, ...]) -> int:
    """Number of chunks of an array."""
    return math.prod(-(-length // chunk) for length, chunk in zip(shape, chunks, strict=True))


FORMAT = Format("a Zarr store", (".zip",), b"", _open)


def _row_blocks(
    batch: Sequence[int], most: int, chunks: Sequence[int] = ()
) -> Iterator[tuple[int | slice | EllipsisType, ...]]:
    """Yield indices that cover the rows of a batch in order, at most `most` rows each.

    Where `most` rows hold a whole chunk of the file, blocks end at the ends of chunks, so that none is read twice.
    """
    if not batch:
        yield (...,)
        return
    first, *others = batch
    inner = math.prod(others)
    if inner > most:
        for i in range(first):
            for index in _row_blocks(others, most, chunks[1:]):
                yield (i, *index)
        return
    step = most // (inner or 1)
    if chunks and step > chunks[0]:
        step -= step % chunks[0]
    for start in range(0, first, step):
        yield (slice(start, start + step), ...)
