"""Arrays as numpy.savez and numpy.savez_compressed write them: .npy files in a zip archive."""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core.errors import contextmanager, raise_error, refuse
from tokenloss.formats import npy
from tokenloss.formats.base import check_expansion, check_stamp, library_errors, open_regular, stamp
from tokenloss.formats.mapped import ArrayLocation
from tokenloss.formats.scores_file import Archive, Format

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from tokenloss._core.types import Array

_LOCAL_HEADER = 30  # bytes; the last four are the lengths of the two fields that follow
_PIECE = 1 << 20  # bytes, decompressed at a time: zipfile copies them


class _Compressed(NamedTuple):
    """A compressed array of an archive."""

    path: str
    name: str
    info: zipfile.ZipInfo
    place: ArrayLocation  # in the decompressed data

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.place.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the array."""
        return self.place.dtype

    def blocks(self, most_rows: int) -> Iterator[Array]:
        """Blocks of rows."""
        *batch, classes = self.place.shape
        rows, row_bytes = math.prod(batch), classes * self.place.dtype.itemsize
        with self._stream() as stream:
            for start in range(0, rows, most_rows):
                n = min(most_rows, rows - start)
                yield np.ndarray((n, classes), self.place.dtype, _decompress(stream, n * row_bytes))

    def load(self) -> Array:
        """The whole array."""
        self.check_size(self.place.n_bytes)
        with self._stream() as stream:
            data = _decompress(stream, self.place.n_bytes)
            return np.ndarray(self.place.shape, self.place.dtype, data, order=self.place.order)

    @contextmanager
    def _stream(self) -> Iterator[IO[bytes]]:
        """The decompressed data after the header."""
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
        """Refuse an array if reading `n_bytes` of it at once would take too much memory."""
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


def _open(path: str, given: Sequence[str | None]) -> Archive:
    """The arrays of a .npz file."""
    del given
    with open_regular(path) as file, library_errors(path), zipfile.ZipFile(file) as archive:
        entries: dict[str, list[zipfile.ZipInfo]] = {}
        for info in archive.infolist():
            entries.setdefault(info.filename.removesuffix(".npy"), []).append(info)
    return Archive(path, entries, lambda name: _member(path, name, entries[name]), _fitted)


def _fitted(name: str, kind: str, scores: Any, parts: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The same arrays, refused unless the rows of the scores can be read one after the other."""
    del kind
    if isinstance(scores, _Compressed):
        if scores.place.order == "F" and len(scores.shape) > 1:
            refuse(f"{scores.path}: {name}", "is compressed in Fortran order", "be in C order, or not compressed")
        scores.check_size(math.prod(scores.shape[-1:]) * scores.dtype.itemsize)
    return scores, parts


def _member(path: str, name: str, entries: list[zipfile.ZipInfo]) -> ArrayLocation | _Compressed:
    """Locate an array of an archive, which must have one entry."""
    if len(entries) > 1:
        refuse(path, f"contains {name} twice", "contain each array once")
    info = entries[0]
    with open_regular(path) as file, library_errors(path, name):
        with zipfile.ZipFile(file) as archive, archive.open(info) as stream:
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"it is compressed by method {info.compress_type}, not stored or deflated")
            start = stream.read(npy.MAX_HEADER_BYTES)
        file.seek(info.header_offset + _LOCAL_HEADER - 4)
        begin = info.header_offset + _LOCAL_HEADER + sum(struct.unpack("<2H", file.read(4)))
        status = stamp(file)
    if begin + info.compress_size > status.size:
        got = f"{name} has {info.compress_size} bytes"
        raise_error("file", path=path, byte=begin, got=got, fits="fit in the file")
    place = npy.header(path, start, name)._replace(stamp=status)
    is_stored = info.compress_type == zipfile.ZIP_STORED
    size, expected = info.compress_size if is_stored else info.file_size, place.offset + place.n_bytes
    if size != expected:
        refuse(f"{path}: {name}", f"has {size} bytes", f"have {expected}, by its header")
    return place._replace(offset=begin + place.offset) if is_stored else _Compressed(path, name, info, place)


FORMAT = Format("a .npz file", (".npz",), b"PK", _open, may_hold_head=True)
