"""What the readers share: a file of scores, where an array lies in a file, and how its rows are read."""

from __future__ import annotations

import contextlib
import errno
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss import _arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from typing import Literal

    from tokenloss._types import Array

KINDS = ("logits", "log_probs", "probs")  # what scores may be

_MAPPED_BYTES = 32 << 20  # of columns that are mapped at a time
_COLUMNS = 256  # or so many, of which only some pages are read
_EMPTY_ROWS = 1 << 20  # without classes: they take no room in a file, which may tell of any number of them


@dataclass(frozen=True, eq=False)
class ScoresFile:
    """An open file of scores.

    Attributes
    ----------
    path : str
        The file.
    kind : {"logits", "log_probs", "probs"}
        What the scores are.
    shape : tuple of int
        The scores' shape (..., V).
    dtype : dtype
        The scores' dtype; bfloat16 is that of ml_dtypes.
    targets : array or None
        The targets that the file itself holds: class ids of shape (...), or distributions of shape (..., V).
    tokens : array of str or None
        Their text, of shape (...).
    is_shifted : bool
        Whether targets are known to be what the rows predict, not the tokens that these stand at.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss.formats import open_scores
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = pathlib.Path(directory) / "probs.npy"
    ...     np.save(path, np.full((2, 3, 4), 0.25))
    ...     scores = open_scores(path, kind="probs")
    ...     scores.rows, scores.row_bytes
    (6, 32)
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    targets: Array | None
    tokens: Array | None
    _read: Callable[[int], Iterator[Array]]
    is_shifted: bool = False

    def __post_init__(self) -> None:
        """Refuse what are no scores."""
        if not is_float(self.dtype):
            _arrays.fail(
                "content", path=self.path, got=f"{self.kind} has dtype {self.dtype}", fits=f"be {_arrays.FLOATS}"
            )
        if not self.shape:
            _arrays.fail("content", path=self.path, got=f"{self.kind} is a scalar", fits="have an axis of classes")
        if not self.shape[-1] and self.rows > _EMPTY_ROWS:
            got = f"{self.kind} has {self.rows} rows without classes"
            _arrays.fail("content", path=self.path, got=got, fits="have classes")
        if self.tokens is not None and self.tokens.shape != self.shape[:-1]:
            got = f"tokens has shape {self.tokens.shape}"
            _arrays.fail("content", path=self.path, got=got, fits=f"have shape {self.shape[:-1]}")

    @property
    def rows(self) -> int:
        """How many positions are scored."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """How many bytes the scores of a position take."""
        return self.shape[-1] * self.dtype.itemsize

    def blocks(self, most_rows: int) -> Iterator[Array]:
        """Read the scores.

        Parameters
        ----------
        most_rows : int
            How many rows to read at a time. Memory stays bounded by that, whatever the file's size.

        Returns
        -------
        iterator of arrays of shape (n, V)
            Each time the next rows, in C order of the batch, at most `most_rows`; a view of the file where it can be.

        Raises
        ------
        ValueError
            If the file is damaged; the message names it and the byte or the rows.
        """
        most_rows = _arrays.integer("most_rows", most_rows, "a positive integer", least=1)
        return self._read(most_rows) if self.rows else iter(())


class Place(NamedTuple):
    """Where an array lies in a file."""

    path: str
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"] = "C"

    @property
    def n_bytes(self) -> int:
        """How many bytes the array takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self) -> Array:
        """Map the array; the pages that were read through an earlier map are not held any longer with that."""
        if 0 in self.shape:
            with library(self.path):  # of lengths beyond what an array can have
                return np.empty(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)

    def blocks(self, most_rows: int) -> Iterator[Array]:
        """Blocks of rows, each of them mapped anew."""
        *batch, classes = self.shape
        rows = math.prod(batch)
        for start in range(0, rows, most_rows):
            stop = min(start + most_rows, rows)
            if self.order == "C":
                yield rows_of(self.map(), start, stop)
                continue
            block = np.empty((stop - start, classes), self.dtype)  # a map of all columns would hold most of the file
            step = max(_COLUMNS, _MAPPED_BYTES // (rows * self.dtype.itemsize))
            for i in range(0, classes, step):
                block[:, i : i + step] = rows_of(self.map()[..., i : i + step], start, stop)
            yield block


def mapped_again(array: Array) -> Array:
    """Map what was mapped as a whole anew, as `Place.map` does; other arrays are as they are."""
    if not isinstance(array, np.memmap):
        return array
    order: Literal["C", "F"] = "C" if array.flags.c_contiguous else "F"
    return np.memmap(str(array.filename), array.dtype, "r", array.offset, array.shape, order)


def rows_of(array: Array, start: int, stop: int) -> Array:
    """Rows of an array (..., V), counted in C order of the batch; a view unless the layout does not allow for one."""
    *batch, classes = array.shape
    if array.flags.c_contiguous or len(batch) < 2:
        return array.reshape(math.prod(batch), classes)[start:stop]
    rows: Array = array[np.unravel_index(np.arange(start, min(stop, math.prod(batch))), batch)]
    return rows


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether scores may have this dtype."""
    return dtype.name in ("float16", "bfloat16", "float32", "float64")


def size_of(path: str) -> int:
    """How many bytes a file has."""
    return Path(path).stat().st_size


def ends(path: str, size: int, expected: int) -> None:
    """Refuse a file that is shorter or longer than its header says."""
    if size < expected:
        _arrays.fail("file", path=path, byte=size, got="the file ends", fits=f"have {expected} bytes by its header")
    if size > expected:
        got = f"the file goes on for {size - expected} bytes"
        _arrays.fail("file", path=path, byte=expected, got=got, fits=f"have {expected} bytes by its header")


def bfloat16(path: str) -> np.dtype[Any]:
    """The dtype."""
    try:
        import ml_dtypes
    except ImportError:
        _arrays.fail("missing", name=f"bfloat16 of {path}", got="ml_dtypes")
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def choose(path: str, names: Collection[str], array: str | None, kind: str | None) -> tuple[str, str]:
    """Name and kind of the array of scores, among the names that a file holds."""
    kinds = KINDS if kind is None else (kind,)
    if array is not None:
        kinds = (array,)
    fitting = [name for name in kinds if name in names]
    if len(fitting) != 1:
        fits = ("exactly one of " if len(kinds) > 1 else "") + ", ".join(kinds)
        _arrays.fail("content", path=path, got=f"holds {', '.join(names) or 'nothing'}", fits=f"hold {fits}")
    name = fitting[0]
    return name, kind or (name if name in KINDS else "logits")


def unnamed(path: str, array: str | None) -> None:
    """Refuse the name of an array where none has one."""
    if array is not None:
        _arrays.fail("content", path=path, got="holds one array without a name", fits=f"name {array!r}")


@contextlib.contextmanager
def library(path: str, part: str = "") -> Iterator[None]:
    """Turn what a library raises for a damaged file, of any class that it likes, into one line that names the file."""
    try:
        yield
    except MemoryError as error:
        raise MemoryError(f"{path} does not fit; what is not compressed need not") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is of an offset below 0
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        _arrays.fail("unreadable", path=f"{path}: {part}" if part else path, got=reason)
