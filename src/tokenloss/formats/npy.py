"""Arrays as numpy.save writes them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from tokenloss._core.errors import refuse
from tokenloss.formats.base import bfloat16, check_file_size, library_errors, open_regular, stamp
from tokenloss.formats.mapped import ArrayLocation
from tokenloss.formats.scores_file import Archive, Format

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._core.types import Array

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 12 + 10_000  # bytes of a header; NumPy refuses longer ones


def open_array(path: str) -> Array:
    """Map a .npy file, say of targets."""
    return locate(path, is_targets=True).load()


def locate(path: str, *, is_targets: bool = False) -> ArrayLocation:
    """Locate the array of a .npy file."""
    with open_regular(path) as file:
        start, status = file.read(MAX_HEADER_BYTES), stamp(file)
    if is_targets and not start.startswith(MAGIC):
        refuse(path, "is not a .npy file", "be one")
    place = header(path, start)
    check_file_size(path, status.size, place.offset + place.n_bytes)
    return place._replace(stamp=status)


def header(path: str, start: bytes, name: str = "") -> ArrayLocation:
    """Parse a header, given the name of an array in an archive; the offset is the header's length."""
    stream = io.BytesIO(start)
    with library_errors(path, name):
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):  # later ones are for structured arrays
            raise ValueError(f"its version is {version}, not (1, 0) or (2, 0)")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        try:
            shape, is_fortran, dtype = read(stream)
        except MemoryError as error:  # of Python's parser
            raise ValueError("its header is nested too deeply") from error
        if dtype.hasobject:
            raise ValueError("it has Python objects; rows of different lengths must be padded, with targets of -100")
        if any(length < 0 for length in shape):
            raise ValueError(f"its shape is {shape}")
        if not dtype.itemsize:
            raise ValueError(f"its dtype is {dtype.str}, of no bytes")
        if 0 in shape:
            np.empty(shape, dtype)  # its other lengths may be too large for an array
    if dtype.str == "|V2":  # NumPy has no name for bfloat16, and drops its byte order
        dtype = bfloat16(path).newbyteorder(">" if b">V2" in start[: stream.tell()] else "<")
    return ArrayLocation(path, stream.tell(), dtype, shape, "F" if is_fortran else "C")


def _open(path: str, given: Sequence[str | None]) -> Archive:
    """The only array of a .npy file."""
    del given
    return Archive(path, ("",), lambda _: locate(path))


FORMAT = Format("a .npy file", (".npy",), MAGIC, _open, may_hold_head=True)
