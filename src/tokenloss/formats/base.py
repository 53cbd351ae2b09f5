"""Shared by the readers: a file of scores, the location of an array in a file, and the reading of its rows."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core._core import FLOAT_DTYPES, KINDS, json_extent
from tokenloss._core.dtypes import FLOATS
from tokenloss._core.errors import contextmanager, raise_error
from tokenloss._core.validation import check_integer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from typing import BinaryIO, Literal

    from tokenloss._core.types import Array

HIDDEN_NAMES = ("hidden_states", "hidden")  # arrays of hidden states; the first is their kind
SEQUENCES = ("segment_ids", "cu_seqlens")  # arrays that say which rows make a sequence
PARTS = ("targets", "tokens", *SEQUENCES)  # arrays that may come with scores
MASK = "attention_mask"  # a further one, which must agree with the targets
INPUT_IDS = ("token_ids", "input_ids")  # arrays that may come with hidden states in place of targets

_MAPPED_BYTES = 32 << 20  # of an array in Fortran order, mapped at a time
_MIN_COLUMNS = 256  # mapped at a time: of long columns only the pages of the wanted rows are read
_MAX_EMPTY_ROWS = 1 << 20  # without classes: they take no bytes, so a header may claim any number of them
MOST_AXES = 64  # that NumPy can have
_PIECE = 1 << 20  # code points, checked at a time
_MAX_CODE_POINT = 0x10FFFF  # of Unicode
MEMORY_LIMIT = 16 << 20  # bytes in memory at once that any file may need
_MAX_EXPANSION = 1000  # times the stored bytes: real data never expand to more
_LARGE = 512 << 20  # bytes in memory at once
_MAX_LARGE_EXPANSION = 100  # times the stored bytes, of what is larger than that
JSON_MEMORY_LIMIT = 512 << 20  # bytes that values of JSON may need, as `json_extent` estimates; they need rather less


@dataclass(frozen=True, eq=False)
class ScoresFile:
    """An open file of scores.

    Attributes
    ----------
    path : str
        The file.
    kind : {"logits", "log_probs", "probs", "hidden_states"}
        Kind of the scores, or hidden states, of which `lm_head` makes logits.
    shape : tuple of int
        The shape (..., V) of the scores, or of these logits.
    dtype : dtype
        The dtype of what is stored; bfloat16 is that of ml_dtypes.
    targets : array or None
        The targets that the file itself holds: class ids of shape (...), or distributions of shape (..., V).
    tokens : array of str or None
        Their text, of shape (...).
    is_shifted : bool
        Whether targets are known to be the tokens that the rows predict, not those at their positions.
    segment_ids, cu_seqlens : array of integers or None
        The number of each row's sequence, of shape (...); or the bounds of sequences, of rows in C order.
    lm_head : LmHead or None
        The projection of hidden states onto the vocabulary: its `weight` of shape (V, D) is mapped, its `bias` of shape
        (V,) perhaps None, as is `softcap`; `logit_scale` is a number.
    input_ids : array of integers or None
        The model's input, in place of targets, of shape (...): row j predicts id j + 1.

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

    __module__ = "tokenloss.formats"

    path: str
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    targets: Array | None
    tokens: Array | None
    _read: Callable[[int], Iterator[Array]]
    is_shifted: bool = False
    segment_ids: Array | None = None
    cu_seqlens: Array | None = None
    lm_head: LmHead | None = None
    input_ids: Array | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that cannot be scores."""
        if not is_float(self.dtype):
            raise_error("content", path=self.path, got=f"{self.kind} has dtype {self.dtype}", fits=f"be {FLOATS}")
        if not self.shape:
            raise_error("content", path=self.path, got=f"{self.kind} is a scalar", fits="have a class axis")
        if not self.shape[-1] and self.rows > _MAX_EMPTY_ROWS:
            got = f"{self.kind} has {self.rows} rows without classes"
            raise_error("content", path=self.path, got=got, fits="have classes")

    @property
    def rows(self) -> int:
        """Number of positions."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Size of the scores, or of the hidden state, of a position."""
        width = self.shape[-1] if self.lm_head is None else self.lm_head.weight.shape[1]
        return width * self.dtype.itemsize

    def blocks(self, most_rows: int) -> Iterator[Array]:
        """Read the scores, or the hidden states.

        Parameters
        ----------
        most_rows : int
            Number of rows to read at a time. It bounds the memory, whatever the file's size.

        Returns
        -------
        iterator of arrays of shape (n, V), or (n, D) of hidden states
            Each time the next rows, in C order of the batch, at most `most_rows`; a view of the file where it can be.

        Raises
        ------
        ValueError
            If the file is damaged; the message names it and the byte or the rows.
        """
        most_rows = check_integer("most_rows", most_rows, "a positive integer", least=1)
        return self._read(most_rows) if self.rows else iter(())


class Stamp(NamedTuple):
    """Identity and state of a file, which differ for another file and after a change."""

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
        raise_error("content", path=path, got="changed after it was opened", fits="stay as it is while it is read")


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

    def map(self) -> Array:
        """Map the whole array."""
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
        """Some rows, counted in C order of the batch; a map unless the layout does not allow for one."""
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
    """Location of a mapped array, or of the one of which it is a view; None if it is not mapped."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return getattr(array, "place", None)


def check_map(array: Array) -> None:
    """Refuse a mapped array, or a part of one, whose file changed: to read a shorter one would crash."""
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
    """Rows of an array (..., V), counted in C order of the batch; a view unless the layout does not allow for one."""
    *batch, classes = array.shape
    if array.flags.c_contiguous or len(batch) < 2:
        return array.reshape(math.prod(batch), classes)[start:stop]
    rows: Array = array[np.unravel_index(np.arange(start, min(stop, math.prod(batch))), batch)]
    return rows


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether it is a dtype of scores."""
    return dtype.name in FLOAT_DTYPES


def open_regular(path: str) -> BinaryIO:
    """Open a regular file to read: no directory, no device, which may never end, and no pipe, which may block."""
    if path in ("", "-"):
        got = "is standard input" if path else "names no file"
        raise_error("content", path=path or "''", got=got, fits="be the path of a file, since files are mapped")
    with library_errors(path):
        file = open(path, "rb", opener=_nonblocking_opener)  # noqa: SIM115 -- it is returned open, and the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise_error("content", path=path, got="is no regular file", fits="be one, since files are mapped")
    return file


def _nonblocking_opener(path: str, flags: int) -> int:
    """Descriptor of a file; without this flag, opening a pipe waits for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def check_file_size(path: str, size: int, expected: int) -> None:
    """Refuse a file that is shorter or longer than its header says."""
    if size < expected:
        raise_error("file", path=path, byte=size, got="the file ends", fits=f"have {expected} bytes by its header")
    if size > expected:
        got = f"the file goes on for {size - expected} bytes"
        raise_error("file", path=path, byte=expected, got=got, fits=f"have {expected} bytes by its header")


def bfloat16(path: str) -> np.dtype[Any]:
    """The dtype bfloat16."""
    try:
        import ml_dtypes
    except ImportError:
        raise_error("missing", name=f"bfloat16 of {path}", got="ml_dtypes")
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def choose_scores(path: str, names: Collection[str], array: str | None, kind: str | None) -> tuple[str, str]:
    """Name and kind of the array of scores, among the names that a file holds."""
    kinds = KINDS if kind is None else HIDDEN_NAMES if kind in HIDDEN_NAMES else (kind,)
    if array in PARTS:
        raise_error("option", name="array", got=array, fits="the name of scores")
    if array is not None:
        kinds = (array,)
    fitting = [name for name in kinds if name in names]
    held = [name for name in HIDDEN_NAMES if name in names]
    if kind is array is None and held and not fitting:
        fits = "come with its model's projection onto the vocabulary: --lm-head FILE, or lm_head=FILE"
        raise_error("content", path=path, got=f"holds {held[0]} and no scores", fits=fits)
    if len(fitting) != 1:
        fits = ("exactly one of " if len(kinds) > 1 else "") + ", ".join(kinds)
        raise_error("content", path=path, got=f"holds {', '.join(names) or 'nothing'}", fits=f"hold {fits}")
    name = fitting[0]
    return name, kind or (name if name in KINDS else "logits")


def stored_parts(path: str, names: Collection[str], kind: str) -> dict[str, str]:
    """The parts that come with scores, or input ids with hidden states, and the names that they are stored under."""
    parts = {part: part for part in (*PARTS, MASK) if part in names}
    if kind in HIDDEN_NAMES and "targets" not in parts:
        held = [name for name in INPUT_IDS if name in names]
        if len(held) > 1:
            raise_error("content", path=path, got=f"holds {' and '.join(held)}", fits="hold one of them")
        if held:
            parts["input_ids"] = held[0]
    return parts


def with_parts(scores: ScoresFile, parts: dict[str, Any]) -> ScoresFile:
    """Scores with their targets, text and sequences; a mask must not leave out tokens that would be scored."""
    mask, targets = parts.pop(MASK, None), parts.get("targets")
    if mask is not None:
        scored = np.asarray(mask) == 0
        if targets is not None and targets.shape == mask.shape and targets.dtype.kind == "i":
            scored &= targets >= 0
        if scored.any():
            got = f"{MASK}{np.argwhere(scored)[0].tolist()} is 0, but its token would be scored"
            raise_error("content", path=scores.path, got=got, fits="hold targets that are -100 where it is 0")
    return replace(scores, **parts)


def reject_array_name(path: str, array: str | None) -> None:
    """Refuse the name of an array for a file without names."""
    if array is not None:
        raise_error("content", path=path, got="holds one array without a name", fits=f"name {array!r}")


def check_shape(scores: ScoresFile, part: str, shape: tuple[int, ...]) -> None:
    """Refuse a part of another shape than the scores allow for, before memory of its size is used.

    The shape of class ids and the bounds of sequences are checked where they are used.
    """
    batch = scores.shape[:-1]
    if part == "cu_seqlens":
        fits, is_fit = "(G + 1,) for G sequences", len(shape) == 1
    elif part == "targets":
        are_hidden = scores.kind in HIDDEN_NAMES  # their number of classes is not known yet
        fits = f"{batch} (class ids) or {(*batch, 'V') if are_hidden else scores.shape} (distributions)"
        is_fit = shape[:-1] == batch if are_hidden else shape == scores.shape
        is_fit = is_fit or math.prod(shape) == scores.rows
    else:
        fits, is_fit = f"{batch}", shape == batch
    if not is_fit:
        got, fits = f"{part} has shape {shape}", f"have shape {fits}, to fit {scores.kind}"
        raise_error("content", path=scores.path, got=got, fits=fits)


def check_expansion(path: str, held: int, stored: int) -> None:
    """Refuse data that need much more memory at once than the bytes of their file or store."""
    factor = _MAX_EXPANSION if held <= _LARGE else _MAX_LARGE_EXPANSION
    if held > max(MEMORY_LIMIT, stored * factor):
        fits = f"be at most {factor} times the {stored} of the file"
        raise_error("content", path=path, got=f"takes {held} bytes at once by its header", fits=fits)


def parsed_json(
    text: bytes, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None, most: int = 0
) -> Any:
    """The value of a JSON text; ValueError if it needs more memory than the limit, and than `most`."""
    memory, limit = json_extent(text)[2], max(most, JSON_MEMORY_LIMIT)
    if memory > limit:
        raise ValueError(f"it needs {memory >> 20} MB of memory, more than {limit >> 20}")
    return json.loads(text, object_pairs_hook=object_pairs_hook)


def check_text(path: str, tokens: Array) -> None:
    """Refuse code points beyond Unicode: NumPy makes strings of them that Python cannot have."""
    codes = tokens.reshape(-1, order="A").view(np.dtype(np.uint32).newbyteorder(tokens.dtype.byteorder))
    for start in range(0, codes.size, _PIECE):
        largest = int(codes[start : start + _PIECE].max())
        if largest > _MAX_CODE_POINT:
            got, fits = f"tokens has the code point {largest:#x}", f"have none above {_MAX_CODE_POINT:#x}"
            raise_error("content", path=path, got=got, fits=fits)


@contextmanager
def library_errors(path: str, part: str = "") -> Iterator[None]:
    """Turn the errors of a library about a damaged file, of any class, into one line that names the file."""
    try:
        yield
    except MemoryError as error:
        raise MemoryError(f"{path} does not fit; what is not compressed need not") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (
            None,
            errno.EINVAL,
        ):  # EINVAL: a negative offset
            raise OSError(error.errno, error.strerror, error.filename or path) from error  # of the same subclass
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise_error("unreadable", path=f"{path}: {part}" if part else path, got=reason)


class LmHead(NamedTuple):
    """The projection onto the vocabulary; its weight is mapped, perhaps as a transposed view.

    Logits are ``logit_scale * (hidden @ weight.T + bias)``, capped if `softcap` is not None.
    """

    path: str
    name: str | None  # of the weight, where arrays have names
    weight: Array  # (V, D)
    bias: Array | None  # (V,)
    logit_scale: float = 1.0
    softcap: float | None = None
    note: str = ""  # for people: where the transform is from
    norm: str | None = None  # name of the weight of the model's final norm
    norm_weights: tuple[Array, ...] = ()  # and its values; perhaps those of its bias
    files: tuple[str, ...] = ()  # that hold the weight, the biases and the norm

    def figures(self) -> dict[str, Any]:
        """What was taken, as JSON can hold it."""
        of_weight = {"weight": self.name or Path(self.path).name, "has_bias": self.bias is not None}
        transform = {"logit_scale": self.logit_scale, "softcap": self.softcap, "note": self.note}
        return of_weight | transform | {"norm": self.norm}
