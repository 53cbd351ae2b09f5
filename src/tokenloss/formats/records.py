"""JSON in bounded memory, and the records of a file: the lines of .jsonl, or the objects of .json."""

from __future__ import annotations

import codecs
import collections
import contextlib
import gzip
import itertools
import json
import re
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from tokenloss._core.errors import raise_error, refuse
from tokenloss._core.text import printable
from tokenloss._statistics.groups import field_labels
from tokenloss.formats.base import library_errors, open_regular, stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SUFFIXES = tuple(end + gz for end in (".json", ".jsonl", ".ndjson") for gz in ("", ".gz"))
_GZIP = b"\x1f\x8b"  # the first bytes of a compressed file
_MARKS = {  # byte-order marks of other encodings than UTF-8, which a file may start with
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it starts with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_CHUNK = 1 << 18  # bytes read at a time
_FIELD = re.compile(rb"(data|event|id|retry)?:")  # of a server-sent event; without a name, a comment
# starts a file of them; a binary file may have the colon
_STREAM = re.compile(rb"[\r\n ]*" + _FIELD.pattern + rb"[^\0-\x08]{4}")
_LONG = 1 << 20  # bytes of a record, after which its beginning is checked, since a malformed one may never end
_MOST = 64 << 20  # bytes of a record at most
_MOST_EXPANSION = 100  # bytes of a record, if it is longer than `_LONG`, for each byte of the file
_SMALLER = "contain smaller ones: request fewer prompts, or fewer alternatives per token, at once"
_SYMBOL = re.compile(rb"[^ \t\r\n]")  # a byte that is no white space of JSON

# What may be between the objects of .json: for what is expected now, the accepted symbols, and what each makes be
# expected next. The keys end messages, too.
_VALUE, _FIRST, _NEXT, _ELEMENT = (
    "be an object or a list of objects",
    "be an object or ]",
    "be a comma or ]",
    "be an object",
)
_RULES = {
    _VALUE: {b"{": _VALUE, b"[": _FIRST},
    _FIRST: {b"{": _NEXT, b"]": _VALUE},
    _NEXT: {b",": _ELEMENT, b"]": _VALUE},
    _ELEMENT: {b"{": _NEXT},
}
_IS_MARK = np.isin(np.arange(256), list(b'"{}'))  # bytes that show where objects begin and end


class Place(NamedTuple):
    """A line of a file, or with line 0 the whole file, and a question to the whole file."""

    path: str
    line: int
    puts_own_first: Callable[[], bool] = lambda: False  # see `proves_own_first` of dialects.py

    def refuse(self, got: str, fits: str) -> NoReturn:
        """Raise an error that the line is wrong."""
        raise_error("record" if self.line else "content", path=self.path, line=self.line, got=got, fits=fits)

    def words(self, before: str = "") -> str:
        """Words for the place, after a preposition such as "on"."""
        return f"{before}line {self.line} of {self.path}" if self.line else self.path

    def refuse_value(self, field: str, value: object, fits: str) -> NoReturn:
        """Raise an error that a field has an invalid value."""
        self.refuse(f"{field} is {reprlib.repr(value)}", fits)


def label_of(records: Sequence[dict[str, Any]], name: str | None, place: Place) -> Any:
    """The label in a field, whose name may have dots, from the first record that has it: one, or a list of labels."""
    first = next((value for record in records if (value := _value_at(record, name or "")) is not None), None)
    labels = field_labels(first if isinstance(first, list) else [first])
    if labels is None:
        place.refuse_value(str(name), first, "be text, a number, a boolean or null, or a list of these for the tokens")
    return labels if isinstance(first, list) else labels[0]


def _value_at(record: Any, name: str) -> Any:
    """The value of a field, whose name may lead through nested objects; None if missing."""
    if not isinstance(record, dict) or name in record:
        return record.get(name) if isinstance(record, dict) else None
    heads = (name[:i] for i, character in enumerate(name) if character == ".")
    return next(
        (value for head in heads if (value := _value_at(record.get(head), name[len(head) + 1 :])) is not None), None
    )


class ValueType(NamedTuple):
    """A type of values in JSON: a check, and the words of the error for other values."""

    words: str
    fits: Callable[[Any], bool]


TEXT = ValueType("be a text", lambda value: type(value) is str)
INTEGER = ValueType("be an integer", lambda value: type(value) is int)
COUNT = ValueType("be an integer >= 0", lambda value: type(value) is int and 0 <= value < 1 << 63)


def check(value: Any, schema: Any, field: str, place: Place) -> Any:
    """The value of a field, refused unless it has the schema, as in `first_wrong`."""
    if (wrong := first_wrong(value, schema)) is not None:
        path, part, words = wrong
        place.refuse_value(f"{field}{path}".removeprefix("."), part, words)
    return value


def first_wrong(value: Any, schema: Any) -> tuple[str, Any, str] | None:
    """The path of the first value that does not have the schema, this value, and what it must be; None if all do.

    A schema is a `ValueType`; a list, which may contain the schema of its elements; an object, with the schema of each
    field, which may be missing or null, or one schema for all fields under `...`; or a tuple of a schema, which also
    accepts null.
    """
    if type(schema) is ValueType:
        return None if schema.fits(value) else ("", value, schema.words)
    if type(schema) is tuple:
        return None if value is None else first_wrong(value, schema[0])
    if type(value) is not type(schema):
        return "", value, "be a list" if type(schema) is list else "be an object"
    if type(schema) is list:
        pairs = [(i, element, schema[0]) for i, element in enumerate(value)] if schema else []
        form = "[{}]"
    elif ... in schema:
        pairs, form = [(key, element, schema[...]) for key, element in value.items()], '["{}"]'
    else:
        pairs, form = [(key, value[key], schema[key]) for key in schema if value.get(key) is not None], ".{}"
    for key, element, inner in pairs:
        if (wrong := first_wrong(element, inner)) is not None:
            return form.format(key) + wrong[0], *wrong[1:]
    return None


def check_length(values: list[Any], n: int, field: str, place: Place) -> list[Any]:
    """A list, refused unless it has n elements."""
    if len(values) != n:
        place.refuse(f"{field} has {len(values)} elements", f"have {n}, one for each token")
    return values


class Record(NamedTuple):
    """A JSON object, and the line of the file where it begins, from 1."""

    line: int
    value: dict[str, Any]


def read_records(path: str) -> Iterator[Record]:
    """Read the objects of a file, plain or compressed by gzip; ValueError names the line of what is wrong.

    A line of .jsonl or .ndjson contains an object, or a list of them. A file with another name contains objects, and
    lists of them, on any lines; only the text of one object at a time is in memory.
    """
    is_lines = path.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))
    is_empty = True
    for place, text in (_lines if is_lines else _objects)(path):
        value = _value(path, place, text)
        for element in value if isinstance(value, list) else [value]:
            if not isinstance(element, dict):
                Place(path, place.line).refuse(f"is {reprlib.repr(element)}", "be a JSON object")
            is_empty = False
            yield Record(place.line, element)
    if is_empty:
        refuse(path, "has no records", "contain JSON objects")


def are_records(path: str) -> bool:
    """Whether a file contains JSON records, by its name, or by its first bytes if it is a stream."""
    return path.lower().endswith(SUFFIXES) or is_stream(path)


def is_stream(path: str) -> bool:
    """Whether a file contains server-sent events, by its first bytes."""
    with contextlib.suppress(ValueError):  # the file's reader reports what is wrong with it
        return Path(path).is_file() and bool(_STREAM.match(b"".join(itertools.islice(_chunks(path), 2))))
    return False


def read_events(path: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Read the JSON objects of server-sent events, with their lines; None where `[DONE]` ends a stream."""
    n_bytes = 0
    for place, data in _events(path):
        value = None if data.strip() == b"[DONE]" else _value(path, place, data)
        if value is not None and not isinstance(value, dict):
            Place(path, place.line).refuse(f"is {reprlib.repr(value)}", "be a JSON object")
        n_bytes = 0 if value is None else n_bytes + len(data)
        if n_bytes > _MOST:
            Place(path, place.line).refuse(f"contains a stream of more than {_MOST} bytes", _SMALLER)
        yield place.line, value


def _events(path: str) -> Iterator[tuple[TextPlace, bytearray]]:
    """The data of server-sent events: of the lines up to a blank one, or up to the end of an object."""
    data, scan, n_scanned = bytearray(), _Scan(), 0
    start, line, last = TextPlace(1, 0), 1, 1  # of the data, and its last line; and the last line of all
    for place, text in _lines(path, with_cr=True):
        field = _FIELD.match(text)
        if field is None:
            Place(path, place.line).refuse(f"is {reprlib.repr(bytes(text))}", "be data: and a JSON object")
        piece, is_end, last = text[field.end() :], place.line > last + 1, place.line
        is_data = field[1] == b"data" and piece.strip()
        if data and is_data and not is_end:
            scan.cuts(bytes(data[n_scanned:]))
            n_scanned, is_end = len(data), scan.depth <= 0
        if data and is_end:
            yield start, data
            data = bytearray()
        if is_data:
            if not data:
                start, line, scan, n_scanned = place, place.line, _Scan(), 0
            data += b"\n" * (place.line - line) + b" " * field.end() + piece  # so that bytes keep their places
            line = place.line
            _check_long(path, start, data, len(piece))
    if data:
        yield start, data


def _chunks(path: str) -> Iterator[bytes]:
    """The bytes of a file, expanded if it is compressed."""
    with open_regular(path) as file:
        before = stamp(file)
        is_gzip = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        stream: Any = gzip.GzipFile(fileobj=file) if is_gzip else file
        line = 1
        with library_errors(path, "line 1"):
            chunk = stream.read(4)
        for mark, encoding in _MARKS.items():
            if chunk.startswith(mark):
                Place(path, 1).refuse(f"starts with a byte-order mark of {encoding}", "be UTF-8")
        if chunk.startswith(codecs.BOM_UTF8):  # blanks keep the places of bytes
            chunk = b" " * len(codecs.BOM_UTF8) + chunk[len(codecs.BOM_UTF8) :]
        while chunk:
            yield chunk
            line += chunk.count(b"\n")
            with library_errors(path, f"line {line}"):
                chunk = stream.read1(_CHUNK)
            if stamp(file) != before:
                refuse(path, "changed while it was read", "stay as it is")


def _with_line_feeds(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks, with LF in place of CR and CRLF."""
    held = b""
    for chunk in chunks:
        chunk, held = held + chunk, b"\r" * chunk.endswith(b"\r")  # LF may follow
        yield chunk.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    yield held.replace(b"\r", b"\n")


def _lines(path: str, with_cr: bool = False) -> Iterator[tuple[TextPlace, bytes | bytearray]]:
    """The nonblank lines of a file, from their first symbol on; `with_cr` if they may also end with CR."""
    place, text = TextPlace(1, 0), bytearray()
    for chunk in _with_line_feeds(_chunks(path)) if with_cr else _chunks(path):
        begin, end = 0, -1
        while begin < len(chunk):
            if not text:
                symbol = _SYMBOL.search(chunk, begin)
                start = symbol.start() if symbol else len(chunk)
                if start > begin:
                    place = place.after(chunk[begin:start])
                begin = start
            end = chunk.find(b"\n", begin)
            if end < 0:
                break
            yield place, text + chunk[begin:end] if text else chunk[begin:end]
            place, text, begin = TextPlace(place.line + 1, 0), bytearray(), end + 1
        text += chunk[begin:]
        _check_long(path, place, text, len(chunk) - begin)
    if text:
        yield place, text


def _objects(path: str) -> Iterator[tuple[TextPlace, bytearray]]:
    """The objects of a file and of the lists in it."""
    scan, expected = _Scan(), _VALUE
    place = start = TextPlace(1, 0)
    text, is_inside = bytearray(), False
    for chunk in _chunks(path):
        begin, cuts = 0, scan.cuts(chunk)
        for i, cut in enumerate([*cuts, len(chunk)]):
            piece, is_cut = chunk[begin:cut], i < len(cuts)
            if is_inside:
                text += piece
            else:
                expected = _after_symbols(path, place, piece + b"{" * is_cut, expected)
            place, begin = place.after(piece), cut
            if is_cut and is_inside:
                yield start, text
            if is_cut:
                start, text, is_inside = place, bytearray(), not is_inside
        _check_long(path, start, text, len(piece))
    if is_inside:
        yield start, text
    elif expected != _VALUE:
        Place(path, place.line).refuse("the file ends within a list", expected)


def _after_symbols(path: str, place: TextPlace, text: bytes, expected: str) -> str:
    """The symbols that may come next, after these between two objects."""
    for symbol in _SYMBOL.finditer(text):
        character = symbol.group()
        if character not in _RULES[expected]:
            place = place.after(text, symbol.start())
            Place(path, place.line).refuse(f"byte {place.n_before + 1} is {ascii(character)[1:]}", expected)
        expected = _RULES[expected][character]
    return expected


class _Scan:
    """Finds where objects begin and end in the chunks of a JSON text, without looking inside them."""

    def __init__(self) -> None:
        """Start outside any object."""
        self.depth = 0
        self.is_string = self.is_escaped = False  # whether the first byte of the next chunk is in a string, and escaped

    def cuts(self, chunk: bytes) -> list[int]:
        """The places where outermost objects begin and, in turn, where they end, which is after their last byte."""
        if self.is_escaped:
            chunk = b"_" + chunk[1:]
        chunk = chunk.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        self.is_escaped = chunk.endswith(b"\\")
        codes = np.frombuffer(chunk, np.uint8)
        at = np.flatnonzero(_IS_MARK[codes])
        is_quote = codes[at] == ord('"')
        is_string = np.logical_xor.accumulate(np.append(self.is_string, is_quote))[1:]
        at = at[~is_quote & ~is_string]
        is_open = codes[at] == ord("{")
        depths = self.depth + np.cumsum(np.where(is_open, 1, -1))
        if is_string.size:
            self.is_string = bool(is_string[-1])
        if depths.size:
            self.depth = int(depths[-1])
        places: list[int] = (at + ~is_open)[depths == is_open].tolist()  # 1 at the outermost {, 0 at its }
        return places


def _check_long(path: str, place: TextPlace, text: bytearray, n_new: int) -> None:
    """Refuse a record that is too long, or whose beginning is malformed."""
    if len(text) <= _LONG:
        return
    most = max(_LONG, min(_MOST, _MOST_EXPANSION * Path(path).stat().st_size))
    if len(text) > most:
        of = f", {_MOST_EXPANSION} times the size of the file" if most < _MOST else ""
        Place(path, place.line).refuse(f"contains a record of more than {most} bytes{of}", _SMALLER)
    if len(text) - n_new <= _LONG:
        _value(path, place, text.removeprefix(b"data:"), is_whole=False)


def _value(path: str, place: TextPlace, text: bytes | bytearray, is_whole: bool = True) -> Any:
    """The value of a JSON text, if it is complete; None if it may be the beginning of one."""
    try:
        return parsed_json(text, place, is_record=True, is_whole=is_whole)
    except LargeJsonError as error:
        Place(path, place.line).refuse(f"contains a record that {error}", _SMALLER)
    except ValueError as error:
        raise ValueError(printable(f"{path}: {error}")) from None


# -- the value of a JSON text ------------------------------------------------------------------------------------------

_MEMORY_LIMIT = 512 << 20  # bytes that values may need, as `_extent` estimates; they need rather less
# bytes that CPython needs for a list, an object of a few keys, a key and a value, and a string, by their symbols
_NEEDED = {ord(symbol): size for symbol, size in {"[": 100, "{": 240, ":": 40, ",": 40, '"': 40}.items()}
_OTHERS = bytes(code for code in range(256) if code not in b'"{}[]:,')
_STEPS = np.array([(code in b"[{") - (code in b"]}") for code in range(256)], np.int8)  # of the level
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
    """The value of a JSON text that begins at a place; None for the valid beginning of an incomplete text.

    The ValueError names the line, and the byte if known, what is wrong there, and what is accepted.
    """
    at, got, fits, value, string = None, "", "", None, ""
    if text.startswith(codecs.BOM_UTF8):  # blanks keep the places of bytes
        text = b" " * len(codecs.BOM_UTF8) + text[len(codecs.BOM_UTF8) :]
    n_levels, memory = _extent(text)
    if memory > _MEMORY_LIMIT:
        raise LargeJsonError(f"needs {memory >> 20} MB of memory, more than {_MEMORY_LIMIT >> 20}")
    try:
        string = text.decode() if is_whole else codecs.getincrementaldecoder("utf-8")().decode(text)
        value = _DECODER.decode(string)
        is_escaped = "\\u" in string and _SURROGATE.search(string)
        if is_escaped and _SURROGATE.search(_PAIR.sub("", string.replace("\\\\", "__"))):
            got, fits = f"{_half_a_pair(value)} contains half of a surrogate pair", "be Unicode"
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
            got, fits = "has two records", "have one per line; a file named .json may have several on a line"
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
            raise ValueError("it is not an object")
        return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; KeyError names a key that occurs twice, for which `json` would keep the last value."""
    record = dict(pairs)
    if len(record) != len(pairs):
        raise KeyError(collections.Counter(key for key, _ in pairs).most_common(1)[0][0])
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)  # it reads NaN and Infinity, which servers in Python write


def _extent(text: bytes | bytearray) -> tuple[int, int]:
    """Levels of lists and objects in a JSON text, and approximately the bytes that the text and its values need."""
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")  # the text itself, if it has no escapes
    depth, levels, is_inside, counts = 0, 0, False, np.zeros(256, np.int64)
    for start in range(0, len(unescaped), _CHUNK):
        codes = np.frombuffer(unescaped[start : start + _CHUNK].translate(None, _OTHERS), np.uint8)
        if not codes.size:
            continue
        inside = np.logical_xor.accumulate(codes == ord('"')) ^ is_inside
        is_inside, codes = inside[-1], codes[~inside]  # which has one quote of each string
        depths = depth + np.cumsum(_STEPS[codes])
        depth, levels = int(depths[-1]) if depths.size else depth, max(levels, int(depths.max(initial=0)))
        counts += np.bincount(codes, minlength=256)
    most = 0 if text.isascii() else np.frombuffer(text, np.uint8).max()
    width = 9 if most >= 0xF0 else 5 if most > 0xC3 else 3  # of a byte, which is read, decoded, and in a string
    return levels, width * len(text) + sum(size * int(counts[code]) for code, size in _NEEDED.items())


def _half_a_pair(value: Any) -> str:
    """The keys that lead to a string with an unpaired surrogate."""
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
