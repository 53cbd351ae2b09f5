"""Arrays as safetensors files hold them.

The header is read here and the arrays are mapped. The library would copy every slice, its older releases have no
bfloat16 without torch, and its errors do not say where in the file they are.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._dtypes import FLOATS
from tokenloss._errors import raise_error
from tokenloss.formats._base import (
    PARTS,
    ArrayLocation,
    ScoresFile,
    Stamp,
    bfloat16,
    check_file_size,
    check_shape,
    choose_scores,
    open_regular,
    stamp,
)

if TYPE_CHECKING:
    from typing import NoReturn

_LENGTH = 8  # bytes before the header, which hold its length
_MIN_HEADER_BYTES = 2  # bytes of a header
_MAX_HEADER_BYTES = 100_000_000  # bytes of a header, as the library has it
_DTYPES = {
    "BOOL": "?", "U8": "<u1", "I8": "<i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip


class _Entry(NamedTuple):
    """Entry of the header about an array."""

    begin: int  # bytes from the header's end
    end: int
    shape: tuple[int, ...]
    dtype: str


def open_scores(path: str, array: str | None, kind: str | None) -> ScoresFile:
    """Open a .safetensors file of scores, perhaps with targets and which rows make a sequence."""
    with open_regular(path) as file:
        found = stamp(file)
        longest = min(found.size - _LENGTH, _MAX_HEADER_BYTES)
        if longest < _MIN_HEADER_BYTES:
            raise_error("file", path=path, byte=found.size, got="the file ends", fits="have a header")
        length = int.from_bytes(file.read(_LENGTH), "little")
        if not _MIN_HEADER_BYTES <= length <= longest:
            fits = f"be at least {_MIN_HEADER_BYTES} and at most {longest}"
            raise_error("file", path=path, byte=0, got=f"the length of the header is {length}", fits=fits)
        entries = _entries(path, file.read(length))
    start, end = _LENGTH + length, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]):
        if entry.begin != end:  # arrays must neither overlap nor leave gaps
            _refuse_header(path, f"{name} begins at {entry.begin} of the data", f"begin at {end}")
        end = entry.end
    check_file_size(path, found.size, start + end)
    name, kind = choose_scores(path, entries, array, kind)
    scores = _place(path, name, entries[name], start, found)
    opened_scores = ScoresFile(path, kind, scores.shape, scores.dtype, None, None, scores.blocks)
    parts: dict[str, Any] = {}
    for part in PARTS:
        if part in entries and part != "tokens":  # the format has no text
            check_shape(opened_scores, part, entries[part].shape)
            parts[part] = _place(path, part, entries[part], start, found).map()
    return dataclasses.replace(opened_scores, **parts)


def _refuse_header(path: str, got: str, fits: str) -> NoReturn:
    """Refuse the header."""
    raise_error("file", path=path, byte=_LENGTH, got=f"by the header {got}", fits=fits)


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Object of JSON, whose names must differ."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice")
    return found


def _entries(path: str, header: bytes) -> dict[str, _Entry]:
    """Entries of the header by name."""
    try:
        said = json.loads(header, object_pairs_hook=_unique_names)
    except (RecursionError, ValueError) as error:
        raise_error("file", path=path, byte=_LENGTH, got=f"the header is no JSON ({error})", fits="be an object")
    entries = {}
    for name, entry in said.items() if isinstance(said, dict) else [("", said)]:
        match entry:
            case _ if name == "__metadata__":
                pass
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if all(
                type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, end)
            ):
                entries[name] = _Entry(begin, end, tuple(shape), dtype)
            case _:
                _refuse_header(path, f"{name or 'all'} is {str(entry)[:80]}", "have dtype, shape and data_offsets")
    return entries


def _place(path: str, name: str, entry: _Entry, start: int, found: Stamp) -> ArrayLocation:
    """Location of an array in the file."""
    if entry.dtype != "BF16" and entry.dtype not in _DTYPES:
        raise_error("content", path=path, got=f"{name} has dtype {entry.dtype}", fits=f"be {FLOATS}")
    dtype = bfloat16(path).newbyteorder("<") if entry.dtype == "BF16" else np.dtype(_DTYPES[entry.dtype])
    place = ArrayLocation(path, start + entry.begin, dtype, entry.shape, stamp=found)
    if place.n_bytes != entry.end - entry.begin:
        _refuse_header(
            path, f"{name} has {entry.end - entry.begin} bytes", f"have {place.n_bytes} for its dtype and shape"
        )
    return place
