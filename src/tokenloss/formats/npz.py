"""Arrays as numpy.savez and numpy.savez_compressed write them: .npy files in a zip archive."""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

from tokenloss._core.errors import contextmanager, raise_error
from tokenloss.formats import npy
from tokenloss.formats.base import check_expansion, check_stamp, library_errors, open_regular, stamp
from tokenloss.formats.mapped import ArrayLocation
from tokenloss.formats.scores_file import (
    Format,
    ScoresFile,
    choose_scores,
    stored_parts,
    with_parts,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    import numpy.typing as npt

    from tokenloss._core.types import Array

_LOCAL_HEADER = 30  # bytes; the last four are the lengths of the two fields that follow
_PIECE = 1 << 20  # bytes, decompressed at a time: zipfile copies them


class _Member(NamedTuple):
    """An array of an archive."""

    path: str
    name: str
    info: zipfile.ZipInfo
    place: ArrayLocation  # in the file if it is not compressed, else in the decompressed data

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.place.shape

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
        rows, row_bytes = math.prod(batch), classes * self.place.dtype.itemsize
        with self._stream() as stream:
            for start in range(0, rows, most_rows):
                n = min(most_rows, rows - start)
                yield np.ndarray((n, classes), self.place.dtype, _decompress(stream, n * row_bytes))

    def load(self) -> Array:
        """The whole array."""
        if self.is_stored:
            return self.place.map()
        self.check_size(self.place.n_bytes)
        with self._stream() as stream:
            data = _decompress(stream, self.place.n_bytes)
            return np.ndarray(self.place.shape, self.place.dtype, data, order=self.place.order)

    @contextmanager
    def _stream(self) -> Iterator[IO[bytes]]:
        """The decompressed data, behind their header."""
        with open_regular(self.path) as file:
            check_stamp(self.path, file, self.place.stamp)
            with (
                library_errors(self.path, self.name),
                zipfile.ZipFile(file) as archive,
                archive.open(self.info) as stream,
            ):
                stream.read(self.place.offset)
                yield stream

    def check_size(self, n_bytes: int) -> None:
        """Refuse a compressed array of which `n_bytes` at once would be too much memory."""
        if not self.is_stored:
            check_expansion(f"{self.path}: {self.name}", n_bytes, Path(self.path).stat().st_size)


def _decompress(stream: IO[bytes], n_bytes: int) -> npt.NDArray[np.uint8]:
    """The next `n_bytes` of decompressed data, without a second copy."""
    data = np.empty(n_bytes, np.uint8)
    for start in range(0, n_bytes, _PIECE):
        piece = stream.read(min(_PIECE, n_bytes - start))
        if len(piece) < min(_PIECE, n_bytes - start):
            raise ValueError("its compressed data end early")
        data[start : start + _PIECE] = np.frombuffer(piece, np.uint8)
    return data


def open_scores(path: str, array: str | None, kind: str | None, targets_array: str | None) -> ScoresFile:
    """Open a .npz file of scores, perhaps with their targets, the tokens' text and which rows make a sequence."""
    with open_regular(path) as file:
        archive, entries = _opened(path, file)
        name, kind = choose_scores(path, entries, array, kind)
        stored = stored_parts(path, entries, name, targets_array)
        scores, *members = (_member(path, file, archive, one, entries[one]) for one in (name, *stored.values()))
        parts = dict(zip(stored, members, strict=True))
    if scores.place.order == "F" and not scores.is_stored and len(scores.shape) > 1:
        got, fits = "is compressed in Fortran order", "be in C order, or not compressed"
        raise_error("content", path=f"{path}: {name}", got=got, fits=fits)
    found = ScoresFile(path, kind, scores.shape, scores.place.dtype, None, None, scores.blocks, names=tuple(entries))
    scores.check_size(found.row_bytes)
    return with_parts(found, parts, _Member.load)


def array_names(path: str) -> list[str]:
    """Names of the arrays of a .npz file."""
    with open_regular(path) as file:
        return list(_opened(path, file)[1])


def locate(path: str, name: str) -> ArrayLocation:
    """Location of an array of a .npz file, which must not be compressed."""
    found = member(path, name)
    if not found.is_stored:
        raise_error("content", path=f"{path}: {name}", got="is compressed", fits="be stored as it is, to be mapped")
    return found.place


def member(path: str, name: str) -> _Member:
    """An array of a .npz file."""
    with open_regular(path) as file:
        archive, entries = _opened(path, file)
        return _member(path, file, archive, name, entries[name])


def _opened(path: str, file: BinaryIO) -> tuple[zipfile.ZipFile, dict[str, list[zipfile.ZipInfo]]]:
    """An archive, and its entries by the name of their array."""
    with library_errors(path):
        archive = zipfile.ZipFile(file)
    entries: dict[str, list[zipfile.ZipInfo]] = {}
    for info in archive.infolist():
        entries.setdefault(info.filename.removesuffix(".npy"), []).append(info)
    return archive, entries


def _member(path: str, file: BinaryIO, archive: zipfile.ZipFile, name: str, entries: list[zipfile.ZipInfo]) -> _Member:
    """Locate an array of an archive, which must have one entry."""
    if len(entries) > 1:
        raise_error("content", path=path, got=f"holds {name} twice", fits="hold each array once")
    info = entries[0]
    with library_errors(path, name):
        with archive.open(info) as stream:
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"it is compressed by method {info.compress_type}, not stored or deflated")
            start = stream.read(npy.MAX_HEADER_BYTES)
        file.seek(info.header_offset + _LOCAL_HEADER - 4)
        begin = info.header_offset + _LOCAL_HEADER + sum(struct.unpack("<2H", file.read(4)))
    found = stamp(file)
    if begin + info.compress_size > found.size:
        got = f"{name} has {info.compress_size} bytes"
        raise_error("file", path=path, byte=begin, got=got, fits="fit in the file")
    member = _Member(path, name, info, npy.header(path, start, name)._replace(stamp=found))
    size = info.compress_size if member.is_stored else info.file_size
    expected = member.place.offset + member.place.n_bytes
    if size != expected:
        fits = f"have {expected} by its header"
        raise_error("content", path=f"{path}: {name}", got=f"has {size} bytes", fits=fits)
    if member.is_stored:
        member = member._replace(place=member.place._replace(offset=begin + member.place.offset))
    return member


FORMAT = Format("a .npz file", (".npz",), b"PK", open_scores, array_names, locate)
