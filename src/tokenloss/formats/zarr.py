"""Arrays as Zarr stores hold them, of versions 2 and 3, in directories and .zip files."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss import _arrays
from tokenloss.formats._base import KINDS, ScoresFile, choose, library, size_of, unnamed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tokenloss._types import Array

_METADATA = ("zarr.json", ".zarray", ".zgroup")  # one of which every store has at its root
_HELD = 16 << 20  # bytes that any store may make us hold at once
_EXPANDED = 1000  # times as many as it has itself are more than data expand to
_CHUNK = 1 << 10  # bytes that Zarr takes for each chunk that it looks for
_CHUNKS = 1 << 12  # chunks that are looked for at a time


def is_store(names: Collection[str]) -> bool:
    """Whether names of files are those of a store."""
    return any(name in names for name in _METADATA)


def open_scores(path: str, array: str | None, kind: str | None) -> ScoresFile:
    """Open a Zarr array of scores, or a group of it and perhaps targets and the tokens' text."""
    try:
        import zarr
    except ImportError:
        _arrays.fail("missing", name=path, got="zarr")
    is_directory = Path(path).is_dir()
    if is_directory and not is_store([entry.name for entry in Path(path).iterdir()]):
        _arrays.fail("content", path=path, got="is a directory without metadata of Zarr", fits="be a Zarr store")
    if not is_directory:
        _check_zip(path)
    with library(path):
        root: Any = zarr.open(path if is_directory else zarr.storage.ZipStore(path, mode="r"), mode="r")
        held: dict[str, Any] = {}
        if isinstance(root, zarr.Group):
            held = {name: root[name] for name in (array, *KINDS, "targets", "tokens") if name and name in root}
            held = {name: member for name, member in held.items() if isinstance(member, zarr.Array)}
    if isinstance(root, zarr.Array):
        unnamed(path, array)
        name, kind, scores = "", kind or "logits", root
    else:
        name, kind = choose(path, held, array, kind)
        scores = held[name]
    for part in {name, "targets", "tokens"} & {name, *held}:
        _check(path, part, held.get(part, scores), whole=part != name)

    def load(part: str) -> Array | None:
        if part not in held:
            return None
        with library(path, part):
            return np.asarray(held[part][...])

    def blocks(most_rows: int) -> Iterator[Array]:
        at_once = max(math.prod(scores.chunks[:-1]), _CHUNKS // (_n_chunks(scores.shape[-1:], scores.chunks[-1:]) or 1))
        for index in _arrays.blocks(scores.shape[:-1], min(most_rows, at_once), scores.chunks[:-1]):
            with library(path, f"{name}[{index}]"):
                block = np.asarray(scores[index])
            yield block.reshape(math.prod(block.shape[:-1]), block.shape[-1])

    tokens = load("tokens")
    if tokens is not None and tokens.dtype.kind not in "UT":
        _arrays.fail("content", path=path, got=f"tokens has dtype {tokens.dtype}", fits="be text")
    return ScoresFile(path, kind, scores.shape, scores.dtype, load("targets"), tokens, blocks)


def _check_zip(path: str) -> None:
    """Refuse entries that lie about their size, or are compressed so that a few bytes ask for much memory."""
    with library(path), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_size > size_of(path):
                raise ValueError(f"{info.filename} is said to have {info.compress_size} bytes")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{info.filename} is compressed by method {info.compress_type}")


def _check(path: str, name: str, array: Any, *, whole: bool) -> None:
    """Refuse an array whose codecs can run code, or that asks for much more memory than its store has bytes."""
    part = f"{path}: {name}" if name else path
    with library(path, name):
        codecs = [getattr(codec, "codec_id", None) for codec in (*array.filters, *array.compressors)]
    if "pickle" in codecs:
        _arrays.fail("content", path=part, got="holds Python objects", fits="be numbers or text: pickles can run code")
    shape, chunks = array.shape if whole else array.shape[-1:], array.shards or array.chunks
    if 0 in chunks:
        _arrays.fail("content", path=part, got=f"has chunks of shape {chunks}", fits="have chunks that are not empty")
    n_chunks = _n_chunks(shape, array.chunks[-len(shape) :] if shape else ())
    held = max(math.prod(shape) * array.dtype.itemsize, math.prod(chunks) * array.dtype.itemsize, n_chunks * _CHUNK)
    if held <= _HELD:
        return
    files = [file for file in Path(path).rglob("*") if file.is_file()] if Path(path).is_dir() else [Path(path)]
    stored = sum(file.stat().st_size for file in files)
    if held > stored * _EXPANDED:
        _arrays.fail(
            "content", path=part, got=f"takes {held} bytes at once by its metadata", fits=f"fit its store of {stored}"
        )


def _n_chunks(shape: tuple[int, ...], chunks: tuple[int, ...]) -> int:
    """How many chunks an array has."""
    return math.prod(-(-length // chunk) for length, chunk in zip(shape, chunks, strict=True))
