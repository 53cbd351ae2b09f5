"""Arrays as Zarr stores hold them, of versions 2 and 3, in directories and .zip files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss import _arrays
from tokenloss.formats._base import KINDS, ScoresFile, choose, library, unnamed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tokenloss._types import Array

_METADATA = ("zarr.json", ".zarray", ".zgroup")  # one of which every store has at its root


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
    with library(path):
        root: Any = zarr.open(path if is_directory else zarr.storage.ZipStore(path, mode="r"), mode="r")
        held: dict[str, Any] = {}
        if isinstance(root, zarr.Group):
            held = {name: root[name] for name in (array, *KINDS, "targets", "tokens") if name and name in root}
            held = {name: member for name, member in held.items() if isinstance(member, zarr.Array)}
    for part in held.values() if held else [root]:
        _check_codecs(path, part)
    if isinstance(root, zarr.Array):
        unnamed(path, array)
        name, kind, scores = "", kind or "logits", root
    else:
        name, kind = choose(path, held, array, kind)
        scores = held[name]

    def load(part: str) -> Array | None:
        if part not in held:
            return None
        with library(path, part):
            return np.asarray(held[part][...])

    def blocks(most_rows: int) -> Iterator[Array]:
        for index in _arrays.blocks(scores.shape[:-1], most_rows, scores.chunks[:-1]):
            with library(path, f"{name}[{index}]"):
                block = np.asarray(scores[index])
            yield block.reshape(math.prod(block.shape[:-1]), block.shape[-1])

    tokens = load("tokens")
    if tokens is not None and tokens.dtype.kind not in "UT":
        _arrays.fail("content", path=path, got=f"tokens has dtype {tokens.dtype}", fits="be text")
    return ScoresFile(path, kind, scores.shape, scores.dtype, load("targets"), tokens, blocks)


def _check_codecs(path: str, array: Any) -> None:
    """Refuse what would be unpickled, which may run anything; newer releases of numcodecs refuse it themselves."""
    metadata = getattr(array, "metadata", None)
    codecs = (*(getattr(metadata, "filters", None) or ()), getattr(metadata, "compressor", None))
    if any(getattr(codec, "codec_id", None) == "pickle" for codec in codecs):
        _arrays.fail("content", path=path, got="holds pickled objects", fits="hold numbers and text alone")
