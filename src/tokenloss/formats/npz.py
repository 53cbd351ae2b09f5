"""Arrays as numpy.savez and numpy.savez_compressed write them: .npy files in a zip archive."""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tokenloss import _arrays
from tokenloss.formats import npy
from tokenloss.formats._base import Place, ScoresFile, choose, library, size_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenloss._types import Array

_LOCAL_HEADER = 30  # bytes; the lengths of the two fields that follow it are the last four of them


class _Member(NamedTuple):
    """An array of an archive."""

    path: str
    name: str
    info: zipfile.ZipInfo
    place: Place  # in the file if it is stored there as it is, else in what is decompressed

    @property
    def is_stored(self) -> bool:
        """Whether the array can be mapped."""
        return self.info.compress_type == zipfile.ZIP_STORED

    def blocks(self, most_rows: int) -> Iterator[Array]:
        """Blocks of rows."""
        if self.is_stored:
            yield from self.place.blocks(most_rows)
            return
        *batch, classes = self.place.shape
        rows = math.prod(batch)
        with library(self.path, self.name), zipfile.ZipFile(self.path) as archive, archive.open(self.info) as stream:
            stream.read(self.place.offset)
            for start in range(0, rows, most_rows):
                shape = min(most_rows, rows - start), classes
                yield np.ndarray(shape, self.place.dtype, stream.read(math.prod(shape) * self.place.dtype.itemsize))

    def load(self) -> Array:
        """The whole array."""
        if self.is_stored:
            return self.place.map()
        with library(self.path, self.name), zipfile.ZipFile(self.path) as archive, archive.open(self.info) as stream:
            stream.read(self.place.offset)
            return np.ndarray(self.place.shape, self.place.dtype, stream.read(), order=self.place.order)


def open_scores(path: str, array: str | None, kind: str | None) -> ScoresFile:
    """Open a .npz file of scores, perhaps with their targets and the tokens' text."""
    with library(path), zipfile.ZipFile(path) as archive:
        names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
        infos = dict(zip(names, archive.infolist(), strict=True))
    name, kind = choose(path, infos, array, kind)
    for part in (name, "targets", "tokens"):
        if names.count(part) > 1:
            _arrays.fail("content", path=path, got=f"holds {part} twice", fits="hold each array once")
    members = {part: _member(path, part, infos[part]) for part in (name, "targets", "tokens") if part in infos}
    scores, targets, tokens = (members.get(part) for part in (name, "targets", "tokens"))
    assert scores is not None
    if scores.place.order == "F" and not scores.is_stored and len(scores.place.shape) > 1:
        _arrays.fail(
            "content", path=f"{path}: {name}", got="is compressed in Fortran order",
            fits="be in C order, or not compressed",
        )  # fmt: skip
    if tokens is not None and tokens.place.dtype.kind != "U":
        _arrays.fail("content", path=path, got=f"tokens has dtype {tokens.place.dtype}", fits="be text")
    return ScoresFile(
        path, kind, scores.place.shape, scores.place.dtype,
        targets and targets.load(), tokens and tokens.load(), scores.blocks,
    )  # fmt: skip


def _member(path: str, name: str, info: zipfile.ZipInfo) -> _Member:
    """Where an array of an archive lies."""
    with library(path, name), zipfile.ZipFile(path) as archive, archive.open(info) as stream:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"it is compressed by method {info.compress_type}, not stored or deflated")
        start = stream.read(npy.MOST)
    with Path(path).open("rb") as file:
        file.seek(info.header_offset + _LOCAL_HEADER - 4)
        begin = info.header_offset + _LOCAL_HEADER + sum(struct.unpack("<2H", file.read(4)))
    if begin + info.compress_size > size_of(path):
        got = f"{name} has {info.compress_size} bytes"
        _arrays.fail("file", path=path, byte=begin, got=got, fits="fit in the file")
    member = _Member(path, name, info, npy.header(path, start, name))
    size = info.compress_size if member.is_stored else info.file_size
    expected = member.place.offset + member.place.n_bytes
    if size != expected:
        fits = f"have {expected} by its header"
        _arrays.fail("content", path=f"{path}: {name}", got=f"has {size} bytes", fits=fits)
    if member.is_stored:
        member = member._replace(place=member.place._replace(offset=begin + member.place.offset))
    return member
