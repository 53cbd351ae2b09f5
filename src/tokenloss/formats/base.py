"""Opening and checking files, for all readers."""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core._core import FLOAT_DTYPES
from tokenloss._core.errors import contextmanager, raise_error, refuse
from tokenloss._core.files import exists
from tokenloss._core.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

_ADDRESS = re.compile("[A-Za-z][A-Za-z0-9+.-]+://")
MOST_AXES = 64  # of an array of NumPy
MEMORY_LIMIT = 16 << 20  # bytes in memory at once that any file may need, however small it is
_MAX_EXPANSION = 1000  # bytes in memory for each stored byte: real data never expand to more
_LARGE = 512 << 20  # bytes in memory at once, above which the next limit holds
_MAX_LARGE_EXPANSION = 100  # bytes in memory for each stored byte


def open_regular(path: str) -> BinaryIO:
    """Open a regular file to read: no directory, no device, which may never end, and no pipe, which may block."""
    if path in ("", "-"):
        got = "is standard input" if path else "names no file"
        fits = "be the path of a file, since files are read more than once: first save the output of the program"
        refuse(path or "''", got, fits)
    if _ADDRESS.match(path) and not exists(path):
        refuse(path, "is an address", "be a file: download it first")
    with library_errors(path):
        file = open(path, "rb", opener=_nonblocking_opener)  # noqa: SIM115 -- it is returned open, and the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        fits = "be one, since files are read more than once: first save the output of the pipe"
        refuse(path, "is not a regular file", fits)
    return file


def _nonblocking_opener(path: str, flags: int) -> int:
    """Descriptor of a file; without this flag, opening a pipe waits for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class Stamp(NamedTuple):
    """Identity and state of a file, which change if the file changes or is replaced."""

    size: int
    modified_ns: int
    device: int
    inode: int


def stamp(file: BinaryIO) -> Stamp:
    """Stamp of an open file."""
    status = os.fstat(file.fileno())
    return Stamp(status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)


def check_stamp(path: str, file: BinaryIO, expected: Stamp) -> None:
    """Refuse a file that changed: reading a map beyond its end crashes, and its header may no longer be true."""
    now = stamp(file)
    check_file_size(path, now.size, expected.size)
    if now != expected:
        refuse(path, "changed after it was opened", "stay as it is while it is read")


def check_file_size(path: str, size: int, expected: int) -> None:
    """Refuse a file that is shorter or longer than its header declares."""
    if size < expected:
        raise_error("file", path=path, byte=size, got="the file ends", fits=f"have {expected} bytes, by its header")
    if size > expected:
        got = f"the file continues for {size - expected} bytes"
        raise_error("file", path=path, byte=expected, got=got, fits=f"have {expected} bytes, by its header")


def check_expansion(path: str, held: int, stored: int) -> None:
    """Refuse data that need far more memory at once than the size of their file or store."""
    factor = _MAX_EXPANSION if held <= _LARGE else _MAX_LARGE_EXPANSION
    if held > max(MEMORY_LIMIT, stored * factor):
        refuse(path, f"needs {held} bytes at once", f"be at most {factor} times the {stored} bytes of the file")


@contextmanager
def library_errors(path: str, part: str = "") -> Iterator[None]:
    """Turn the errors of a library about a damaged file, of any class, into one line that names the file."""
    try:
        yield
    except MemoryError as error:
        raise MemoryError(printable(f"{path} does not fit into memory; an uncompressed file need not")) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a negative offset
            raise OSError(error.errno, error.strerror, error.filename or path) from error  # of the same subclass
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise_error("unreadable", path=f"{path}: {part}" if part else path, got=reason)


def bfloat16(path: str) -> np.dtype[Any]:
    """The dtype bfloat16."""
    try:
        import ml_dtypes
    except ImportError:
        raise_error("missing", name=f"bfloat16 of {path}", got="ml_dtypes")
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is one of scores."""
    return dtype.name in FLOAT_DTYPES
