"""Arrays that are mapped from files: their location, and the reading of their rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss.formats.base import Stamp, check_stamp, library_errors, open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO, Literal

    from tokenloss._core.types import Array

_MAPPED_BYTES = 32 << 20  # of an array in Fortran order that are mapped at a time
_MIN_COLUMNS = 256  # that are mapped at a time, even if they are long: only the pages of the wanted rows are read


class ArrayLocation(NamedTuple):
    """Location of an array in a file."""

    path: str
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"] = "C"
    stamp: Stamp = Stamp(0, 0, 0, 0)

    @property
    def n_bytes(self) -> int:
        """Size of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def load(self) -> Array:
        """The whole array, mapped."""
        with open_regular(self.path) as file:
            array = self._map(file, 0, self.shape)
        if isinstance(array, np.memmap):
            vars(array)["place"] = self  # for `check_map` and `rows_at`
        return array

    def blocks(self, most_rows: int) -> Iterator[Array]:
        """Blocks of rows, each mapped anew, so that the pages of the block before are released."""
        rows = math.prod(self.shape[:-1])
        with open_regular(self.path) as file:
            for start in range(0, rows, most_rows):
                yield self.rows(file, start, min(start + most_rows, rows))

    def rows(self, file: BinaryIO, start: int, stop: int) -> Array:
        """Some rows, counted in C order of the batch: a map if the layout allows it, else a copy."""
        *batch, classes = self.shape
        if self.order == "C":
            return self._map(file, start * classes * self.dtype.itemsize, (stop - start, classes))
        column_bytes = math.prod(batch) * self.dtype.itemsize
        block = np.empty((stop - start, classes), self.dtype)
        step = max(_MIN_COLUMNS, _MAPPED_BYTES // column_bytes)
        for i in range(0, classes, step):
            columns = self._map(file, i * column_bytes, (*batch, min(step, classes - i)))
            block[:, i : i + step] = _rows_of(columns, start, stop)
        return block

    def _map(self, file: BinaryIO, begin: int, shape: tuple[int, ...]) -> Array:
        """Map a part of the array that starts `begin` bytes after its start."""
        check_stamp(self.path, file, self.stamp)
        with library_errors(self.path):  # address space may run out, and lengths may be too large for an array
            if 0 in shape:
                return np.empty(shape, self.dtype)
            return np.memmap(file, self.dtype, "r", self.offset + begin, shape, self.order)


def _mapped(array: Array) -> ArrayLocation | None:
    """The location of a mapped array, or of the array that it is a view of; None if it is not mapped."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return getattr(array, "place", None)


def check_map(array: Array) -> None:
    """Refuse a mapped array, or a part of one, whose file changed: reading a shorter file would crash."""
    place = _mapped(array)
    if place is not None:
        with open_regular(place.path) as file:
            check_stamp(place.path, file, place.stamp)


def rows_at(array: Array, start: int, stop: int) -> Array:
    """Rows of an array (..., V), as `ArrayLocation.rows` reads them if a file is mapped as a whole."""
    place = _mapped(array)
    if place is None:
        return _rows_of(array, start, stop)
    with open_regular(place.path) as file:
        return place.rows(file, start, stop)


def _rows_of(array: Array, start: int, stop: int) -> Array:
    """Rows of an array (..., V), counted in C order of the batch: a view if the layout allows it, else a copy."""
    *batch, classes = array.shape
    if array.flags.c_contiguous or len(batch) < 2:
        return array.reshape(math.prod(batch), classes)[start:stop]
    rows: Array = array[np.unravel_index(np.arange(start, min(stop, math.prod(batch))), batch)]
    return rows
