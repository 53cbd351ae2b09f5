"""Arrays in safetensors files.

The header is read here and the arrays are mapped. The library would copy every slice, its older releases have no
bfloat16 without torch, and its errors do not say where in the file they are.
"""

from __future__ import annotations

import functools
import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core.dtypes import FLOATS
from tokenloss._core.errors import raise_error, refuse
from tokenloss.formats.base import MOST_AXES, Stamp, bfloat16, check_file_size, open_regular, stamp
from tokenloss.formats.mapped import ArrayLocation
from tokenloss.formats.records import parsed_json
from tokenloss.formats.scores_file import HIDDEN_NAMES, INPUT_IDS, Archive, Format

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

_LENGTH = 8  # bytes before the header, which hold its length
_MIN_HEADER_BYTES = 2  # bytes of a header
MAX_HEADER_BYTES = 100_000_000  # bytes of a header, as the library has it
DTYPES = {
    "BOOL": "?", "U8": "<u1", "I8": "<i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip


class _Entry(NamedTuple):
    """Entry of the header about an array."""

    begin: int  # bytes from the header's end
    end: int
    shape: tuple[int, ...]
    dtype: str


class Header(NamedTuple):
    """Header of a file."""

    path: str
    entries: dict[str, _Entry]
    start: int  # of the arrays
    stamp: Stamp
    metadata: dict[str, str]

    def place(self, name: str) -> ArrayLocation:
        """Location of an array in the file."""
        if name not in self.entries:
            refuse(self.path, f"has no {name}", "have it, as the index of the shards says")
        entry = self.entries[name]
        if entry.dtype != "BF16" and entry.dtype not in DTYPES:
            refuse(self.path, f"{name} has dtype {entry.dtype}", f"be {FLOATS}")
        dtype = bfloat16(self.path).newbyteorder("<") if entry.dtype == "BF16" else np.dtype(DTYPES[entry.dtype])
        place = ArrayLocation(self.path, self.start + entry.begin, dtype, entry.shape, stamp=self.stamp)
        if place.n_bytes != entry.end - entry.begin:
            got, fits = f"{name} has {entry.end - entry.begin} bytes", f"have {place.n_bytes} for its dtype and shape"
            _refuse_header(self.path, got, fits)
        return place


def _open(path: str, given: Sequence[str | None]) -> Archive:
    """The arrays of a .safetensors file."""
    del given
    header = read_header(path)
    if header.metadata.get("kind") == "sketch":
        refuse(path, "contains a sketch", "have a name that ends in .sketch, to be read as one")
    is_of_vllm = INPUT_IDS[0] in header.entries
    return Archive(path, header.entries, header.place, functools.partial(_fitted, is_of_vllm))


def _fitted(
    is_of_vllm: bool, name: str, kind: str, scores: ArrayLocation, parts: dict[str, Any]
) -> tuple[ArrayLocation, dict[str, Any]]:
    """The same arrays; vLLM's hidden states and ids of a request, (T, layers, D) and (T,), become a sequence."""
    parts.pop("tokens", None)  # the format has no text
    ids, shape = parts.get("input_ids"), scores.shape
    is_fit = is_of_vllm and kind in HIDDEN_NAMES and len(shape) in (2, 3)
    if not is_fit or ids is None or ids.shape != shape[:1]:
        return scores, parts
    if len(shape) == 3 and shape[1] != 1:
        got = f"{name} has shape {shape}, {shape[1]} layers of each token"
        refuse(scores.path, got, "contain only the last layer, after the final norm")
    batch = 1, *ids.shape
    parts["input_ids"] = ids._replace(shape=batch)
    return scores._replace(shape=(*batch, shape[-1])), parts


def read_header(path: str) -> Header:
    """Read the header, whose arrays must neither overlap nor leave gaps."""
    with open_regular(path) as file:
        status = stamp(file)
        longest = min(status.size - _LENGTH, MAX_HEADER_BYTES)
        if longest < _MIN_HEADER_BYTES:
            raise_error("file", path=path, byte=status.size, got="the file ends", fits="have a header")
        length = int.from_bytes(file.read(_LENGTH), "little")
        if not _MIN_HEADER_BYTES <= length <= longest:
            most = f"at most {longest}" if longest == MAX_HEADER_BYTES else f"fit into the file of {status.size} bytes"
            fits = f"be at least {_MIN_HEADER_BYTES} and {most}"
            raise_error("file", path=path, byte=0, got=f"the length of the header is {length}", fits=fits)
        entries, metadata = _entries(path, file.read(length))
    start, end = _LENGTH + length, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]):
        if entry.begin != end:
            _refuse_header(path, f"{name} begins at {entry.begin} of the data", f"begin at {end}")
        end = entry.end
    check_file_size(path, status.size, start + end)
    return Header(path, entries, start, status, metadata)


def _refuse_header(path: str, got: str, fits: str) -> NoReturn:
    """Refuse the header."""
    raise_error("file", path=path, byte=_LENGTH, got=f"according to the header, {got}", fits=fits)


def _entries(path: str, header: bytes) -> tuple[dict[str, _Entry], dict[str, str]]:
    """Entries of the header by name, and its metadata."""
    try:
        said = parsed_json(header)
    except ValueError as error:
        raise_error("file", path=path, byte=_LENGTH, got=f"the header is not JSON ({error})", fits="be an object")
    entries, metadata = {}, dict[str, str]()
    for name, entry in said.items() if isinstance(said, dict) else [("", said)]:
        if name == "__metadata__" and isinstance(entry, dict):
            metadata = {key: value for key, value in entry.items() if isinstance(value, str)}
        match entry:
            case _ if name == "__metadata__":
                pass
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if (
                all(type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, end))
                and len(shape) <= MOST_AXES
            ):
                entries[name] = _Entry(begin, end, tuple(shape), dtype)
            case _:
                _refuse_header(path, f"{name or 'all'} is {str(entry)[:80]}", "have dtype, shape and data_offsets")
    return entries, metadata


def header_of(arrays: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The header of a file with arrays of these dtypes and shapes, one after the other."""
    codes: dict[Any, str] = {np.dtype(name): code for code, name in DTYPES.items()}
    said: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for name, (dtype, shape) in arrays.items():
        end = begin + math.prod(shape) * dtype.itemsize
        said[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(said, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)  # arrays are aligned
    return len(text).to_bytes(_LENGTH, "little") + text


FORMAT = Format("a .safetensors file", (".safetensors",), b"", _open, may_hold_head=True)
