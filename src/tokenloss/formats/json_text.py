"""The value of a JSON text, in bounded memory, with the same error messages for all files."""

from __future__ import annotations

import codecs
import collections
import json
import re
import reprlib
from typing import Any, NamedTuple

from tokenloss._core._core import count_keys, json_extent
from tokenloss.formats.base import library_errors, open_regular

_MEMORY_LIMIT = 512 << 20  # bytes that values may need, as `json_extent` estimates; they need rather less
_LEVELS = 100  # of lists and objects inside each other; Python cannot print a value that is nested much deeper
_CUT = 16  # characters before a cut that may seem malformed: a part of a number, an escape or a name like -Infinity
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a pair
_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")


class LargeJsonError(ValueError):
    """A JSON text whose value needs more memory than the limit."""


class TextPlace(NamedTuple):
    """A line, from 1, and the number of bytes before the place in that line."""

    line: int = 1
    n_before: int = 0

    def after(self, text: bytes | bytearray, end: int | None = None) -> TextPlace:
        """The place after a text that begins here, or after its first `end` bytes."""
        end = len(text) if end is None else end
        lines = text.count(b"\n", 0, end)
        return TextPlace(self.line + lines, end - 1 - text.rfind(b"\n", 0, end) if lines else self.n_before + end)


_START = TextPlace()


def parsed_json(
    text: bytes | bytearray, place: TextPlace = _START, *, is_record: bool = False, is_whole: bool = True
) -> Any:
    """The value of a JSON text that begins at a place; None for the valid beginning of a text that is not whole.

    The ValueError names the line, and the byte if known, what is wrong there, and what is accepted.
    """
    at, got, fits, value, string = None, "", "", None, ""
    if text.startswith(codecs.BOM_UTF8):  # blanks keep the places of bytes
        text = b" " * len(codecs.BOM_UTF8) + text[len(codecs.BOM_UTF8) :]
    n_keys, n_levels, memory = json_extent(text)
    if memory > _MEMORY_LIMIT:
        raise LargeJsonError(f"needs {memory >> 20} MB of memory, more than {_MEMORY_LIMIT >> 20}")
    try:
        string = text.decode() if is_whole else codecs.getincrementaldecoder("utf-8")().decode(text)
        value = _decoded(string, n_keys)
        is_escaped = "\\u" in string and _SURROGATE.search(string)
        if is_escaped and _SURROGATE.search(_PAIR.sub("", string.replace("\\\\", "__"))):
            got, fits = f"{_half_a_pair(value)} holds half of a surrogate pair", "be Unicode"
        if n_levels > _LEVELS:
            raise RecursionError
    except UnicodeDecodeError as error:
        at, got, fits = error.start, f"{text[error.start]:#04x} is not UTF-8", "be UTF-8"
    except json.JSONDecodeError as error:
        length = len(string.rstrip()) - (0 if is_whole else _CUT)
        is_cut = error.pos >= length or error.msg.startswith("Unterminated")
        if is_cut and is_whole:
            got, fits = "the text ends too early", "be whole JSON"
            if is_record:
                got, fits = "a record ends too early", f"{fits}, on one line in .jsonl"
        elif is_record and error.msg == "Extra data" and string[error.pos] in "{[":  # as of files that were joined
            got, fits = "holds two records", "hold one on each line; named .json, a file may hold several on a line"
        elif not is_cut:
            at, got, fits = len(string[: error.pos].encode()), error.msg, "be JSON"
    except KeyError as error:
        got, fits = f"an object has the key {reprlib.repr(error.args[0])} twice", "have it once"
    except ValueError:
        got, fits = "an integer has too many digits", "have fewer"
    except RecursionError:
        got, fits = "is nested too deeply", f"have at most {_LEVELS} levels"
    if got:
        if at is not None:
            place = place.after(text, at)
            got = f"byte {place.n_before + 1}: {got}"
        raise ValueError(f"line {place.line}: {got}; it must {fits}")
    return value


def read_object(path: str, most_bytes: int) -> dict[str, Any]:
    """The JSON object that is a file."""
    with open_regular(path) as file, library_errors(path):
        value = parsed_json(file.read(most_bytes))
        if not isinstance(value, dict):
            raise ValueError("it is no object")
        return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; KeyError names a key that occurs twice, for which `json` would keep the last value."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise KeyError(collections.Counter(key for key, _ in pairs).most_common(1)[0][0])
    return found


# The standard library reads NaN and Infinity, which servers in Python write. The second decoder names keys that an
# object has twice, and is slow.
_DECODER, _STRICT_DECODER = json.JSONDecoder(), json.JSONDecoder(object_pairs_hook=_unique)


def _decoded(string: str, n_keys: int) -> Any:
    """The value of a JSON text with this number of keys; KeyError names one that an object has twice."""
    try:
        value = _DECODER.decode(string)
    except ValueError:  # perhaps behind such a key
        return _STRICT_DECODER.decode(string)
    return value if count_keys(value) == n_keys else _STRICT_DECODER.decode(string)


def _half_a_pair(value: Any) -> str:
    """The keys that lead to a string that is not Unicode."""
    left = [("", value)]
    while left:
        keys, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{keys}.{key}", part) for key, part in value.items()] + [(f"{keys}.{key}", key) for key in value]
        elif isinstance(value, list):
            left += [(f"{keys}[{i}]", part) for i, part in enumerate(value)]
        elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            return ascii(keys.removeprefix("."))[1:-1]
    return "it"
