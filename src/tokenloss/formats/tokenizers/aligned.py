"""Tokens checked against the bytes of their text."""

from __future__ import annotations

import functools
import itertools
import mmap
import re
import unicodedata
from typing import TYPE_CHECKING

import numpy as np

from tokenloss._core.errors import contextmanager, raise_error
from tokenloss.formats.base import check_stamp, open_regular, stamp
from tokenloss.formats.tokenizers.tokenizer import Tokenizer, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn, TypeAlias

    from tokenloss._core.types import Array, BoolArray, IntArray

    _Text: TypeAlias = bytes | mmap.mmap

_IS_SPACE = np.isin(np.arange(256), [*b"\t\n\x0b\x0c\r "])
_WIDE_SPACE = re.compile(  # other white space, in UTF-8
    rb"\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80"
)
_SPACES = re.compile(rb"(?:[\t-\r ]|%b)*" % _WIDE_SPACE.pattern)
_SPACE = ord(" ")
_SHOWN = 16  # bytes of a text in a message
_FIRST_GAP = 64  # bytes of white space that are looked through first
_BEFORE, _AFTER = 16, 64  # bytes around a difference in which its cause is looked for
_MOST_GAPS = 1 << 10  # bytes of white space among which a difference is looked for
_PIECE = 1 << 20  # bytes whose lines are counted at a time
_BOM = b"\xef\xbb\xbf"
_CONTINUATION = bytes(range(128, 192))  # bytes that go on with a character in UTF-8


class AlignedText:
    """The bytes of a text file, against which ids are checked block by block.

    The file contains all texts of the ids in order. Between two of them, after special tokens, and at the end,
    there may be white space that no token holds; it belongs to none. Where a tokenizer drops white space between
    tokens, it belongs to the token that follows it.
    """

    def __init__(self, path: str, tokenizer: Tokenizer) -> None:
        self.path: str = path
        self._tokenizer = _solid(tokenizer) if tokenizer.drops_spaces else tokenizer
        self._at = 0  # byte of the file after the last token
        self._place, self._n_tokens = "", 0  # the file of the ids, and how many of it came
        self._is_first = True  # whether the next token may be the first of a text
        self._is_blank = True  # whether it has written no more than white space
        with open_regular(path) as file:
            self._stamp = stamp(file)

    def update(self, ids: Array, is_first: Array, place: str) -> tuple[IntArray, IntArray]:
        """The bytes of the file at which the next tokens start and stop; ValueError at the first that differs.

        `is_first` is True for the first token of each text; `place` names the file of the ids in messages.
        """
        if place != self._place:
            self._place, self._n_tokens = place, 0
        tokenizer = self._tokenizer
        ids, is_first = tokenizer.checked(ids, place, self._n_tokens), np.array(is_first, bool)
        if not len(ids):
            return ids, ids
        # one text may end and another begin at an id that writes nothing
        may_end = (ids < 0) | (tokenizer.is_special | tokenizer.restarts)[np.maximum(ids, 0)]
        may_end &= not tokenizer.drops_spaces
        is_first[1:] |= may_end[:-1]
        is_first[0] |= self._is_first
        with self._opened() as text:
            lay = self._lay_words if tokenizer.drops_spaces else self._lay
            starts, stops = lay(text, ids, is_first)
        self._n_tokens += len(ids)
        self._is_first = bool(may_end[-1]) or tokenizer.is_open(ids, is_first)
        return starts, stops

    def end(self) -> None:
        """Refuse a file that continues after the last token."""
        with self._opened() as text:
            at = _after_spaces(text, self._at)
            if at < len(text):
                got = f"line {_line(text, at)} continues with {text[at : at + _SHOWN]!r} after the last token"
                fits = "end with the ids, which may have been truncated"
                raise_error("file", path=self.path, byte=at, got=got, fits=fits)

    @contextmanager
    def _opened(self) -> Iterator[_Text]:
        """The mapped file, which must not have changed."""
        with open_regular(self.path) as file:
            check_stamp(self.path, file, self._stamp)
            if not self._stamp.size:
                yield b""
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                yield text

    def _lay(self, text: _Text, ids: IntArray, is_first: BoolArray) -> tuple[IntArray, IntArray]:
        """Match tokens with the text, one right after the other, except for white space where a text begins."""
        prefixed = self._tokenizer.prefixed(ids, is_first)
        joined, offsets = self._written(ids, is_first)
        gaps, lengths = np.zeros_like(ids), np.diff(offsets)
        bounds = np.unique([0, *np.flatnonzero(is_first), len(ids)])
        cut = dict(zip(np.searchsorted(bounds, prefixed, "right") - 1, prefixed, strict=True))
        begin = self._at
        for n, (first, end) in enumerate(itertools.pairwise(bounds.tolist())):
            self._is_blank |= bool(is_first[first])
            written = joined[offsets[first] : offsets[end]]
            gap = self._gap(text, written)
            if gap is None:
                self._refuse_part(text, ids, first, offsets, written)
            self._at += gap + len(written)
            if n in cut and self._has_space(text, self._at - len(written), gap):
                gap, lengths[cut[n]] = gap - 1, lengths[cut[n]] + 1  # it continues with a space that the text has
            gaps[first] = gap
            self._is_blank &= not written.strip()
        stops = begin + np.cumsum(gaps + lengths)
        return stops - lengths, stops

    def _has_space(self, text: _Text, at: int, gap: int) -> bool:
        """Whether a text has the space that was taken off its first token, in the white space up to a byte.

        More of it belongs to no token, but for spaces that a tokenizer adds to a text that begins with none.
        """
        if not gap or text[at - 1] != _SPACE:
            return False
        return gap == 1 or (self._tokenizer.said.prefix == "unless there" and text[at - 2] != _SPACE)

    def _written(self, ids: IntArray, is_first: BoolArray) -> tuple[bytes, IntArray]:
        """The bytes of tokens, and where each begins in them, with the end."""
        pieces = self._tokenizer.pieces_of(ids, is_first)
        return b"".join(pieces), np.append(0, np.cumsum([*map(len, pieces)]))

    def _gap(self, text: _Text, written: bytes) -> int | None:
        """The amount of white space before the bytes of a text, or of the rest of it; None if they differ.

        White space is searched in growing pieces, since there may be a text for each blank.
        """
        at, n, most = self._at, len(written), _FIRST_GAP if self._is_blank else 0
        if text[at : at + n] == written or not most:
            return 0 if text[at : at + n] == written else None
        while True:
            part = text[at : at + most + n + 2]  # the last space may have three bytes
            end = min(_after_spaces(part, 0), most)
            gap = part.find(written, 0, end + n)
            if gap >= 0 or end < most:
                return gap if gap >= 0 else None
            most *= 2

    def _lay_words(self, text: _Text, ids: IntArray, is_first: BoolArray) -> tuple[IntArray, IntArray]:
        """Match tokens with the text's characters other than white space."""
        joined, offsets = self._written(ids, is_first)
        actual, places = _without_spaces(text, self._at, len(joined))
        if actual != joined:
            d = _first_difference(actual, joined)
            k = int(np.searchsorted(offsets, d, "right")) - 1
            start = places[offsets[k]] if offsets[k] < len(places) else len(text) - self._at
            around = slice(max(0, d - _BEFORE), d + _AFTER)
            piece = joined[offsets[k] : offsets[k + 1]]
            self._refuse(text, ids, k, piece, self._at + int(start), actual[around], joined[around])
        edges = self._at + np.append(0, places + 1)[offsets]
        starts, stops = edges[:-1].copy(), edges[1:]
        first = self._tokenizer.first_writing(ids, is_first)
        starts[first] = self._at + places[offsets[first]]
        self._at = int(edges[-1])
        return starts, stops

    def _refuse_part(self, text: _Text, ids: IntArray, first: int, offsets: IntArray, written: bytes) -> NoReturn:
        """Refuse tokens from `first` on, which differ from the text, at the white space that fits best."""
        last = min(_after_spaces(text, self._at), self._at + _MOST_GAPS) if self._is_blank else self._at
        common = {at: _first_difference(text[at : at + len(written)], written) for at in range(self._at, last + 1)}
        at = max(common, key=common.__getitem__)
        d = common[at]
        k = int(np.searchsorted(offsets, offsets[first] + d, "right")) - 1
        start, stop = (offsets[k : k + 2] - offsets[first]).tolist()
        begin = max(0, d - _BEFORE)
        actual, expected = text[at + begin : at + d + _AFTER], written[begin : d + _AFTER]
        self._refuse(text, ids, k, written[start:stop], at + start, actual, expected)

    def _refuse(
        self, text: _Text, ids: IntArray, k: int, piece: bytes, at: int, actual: bytes, expected: bytes
    ) -> NoReturn:
        """Refuse token k at a byte of the text; the message shows the text there, and the expected text."""
        goes_on = f"continues with {text[at : at + _SHOWN]!r}" if at < len(text) else "ends"
        token = f"token {self._n_tokens + k} of {self._place}, id {ids[k]}, is {piece!r}"
        got = f"line {_line(text, at)} {goes_on}, and {token}"
        if hidden := int((ids[:k] < 0).sum()):
            cause = f"{hidden} ids before it are below 0 and write nothing, but the text contains all tokens"
        elif text[:3] == _BOM and at < len(_BOM):
            cause = "it begins with a byte order mark, which they lack"
        else:
            is_special = k > 0 and self._tokenizer.is_special[ids[k - 1]]
            name = self._tokenizer.said.pieces.get(int(ids[k - 1]), b"") if is_special else b""
            is_named = name and text[at : at + len(name)] == name
            other = "they may belong to another text, tokenizer or version"
            cause = _cause(actual, expected) or ("special tokens before it write nothing" if is_named else other)
        fits = f"be the text of the ids by {self._tokenizer.path}; {cause}"
        raise_error("file", path=self.path, byte=at, got=got, fits=fits)


def _solid(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer without the white space in its tokens, which added tokens may contain."""
    said = tokenizer.said
    pieces = {i: _WIDE_SPACE.sub(b"", b"".join(piece.split())) for i, piece in said.pieces.items()}
    special = said.special.union(i for i, piece in pieces.items() if said.pieces[i] and not piece) - said.unknown
    return Tokenizer(tokenizer.path, Vocabulary(pieces, special, said.unknown, drops_spaces=True))


def _without_spaces(text: _Text, at: int, most: int) -> tuple[bytes, IntArray]:
    """Up to `most` bytes of the text from a place on, without white space, and their offsets from that place."""
    size = 2 * most + _PIECE
    while True:
        part = text[at : at + size]
        is_kept = ~_IS_SPACE[np.frombuffer(part, np.uint8)]
        for match in _WIDE_SPACE.finditer(part):
            is_kept[match.start() : match.end()] = False
        places = np.flatnonzero(is_kept[: -3 if at + size < len(text) else None])  # white space may be cut at the end
        if len(places) >= most or at + size >= len(text):
            places = places[:most]
            return np.frombuffer(part, np.uint8)[places].tobytes(), places
        size *= 2


def _after_spaces(text: _Text, at: int) -> int:
    """The end of the white space that begins at a byte of the text; this byte itself if there is no white space."""
    match = _SPACES.match(text, at)
    return match.end() if match else at


def _first_difference(actual: bytes, expected: bytes) -> int:
    """Index of the first byte that differs or is in only one of them."""
    n = min(len(actual), len(expected))
    differs = np.frombuffer(actual, np.uint8, n) != np.frombuffer(expected, np.uint8, n)
    return int(differs.argmax()) if differs.any() else n


def _line(text: _Text, at: int) -> int:
    """Number of the line of a byte, from 1."""
    return 1 + sum(text[i : min(i + _PIECE, at)].count(b"\n") for i in range(0, at, _PIECE))


# what may have been done to a text, in words that follow "in" or "with"
_CHANGES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("with LF for CRLF", lambda text: text.replace("\r\n", "\n")),
    *((f"in {form}", functools.partial(unicodedata.normalize, form)) for form in ("NFC", "NFKC", "NFD", "NFKD")),
    ("in lower case", str.lower),
    ("in lower case without accents", lambda text: _without_accents(text.lower())),
    ("without accents", lambda text: _without_accents(text)),
    ("with single spaces", lambda text: re.sub(" +", " ", text)),
    ("with a space for any white space", lambda text: re.sub(r"\s+", " ", text)),
    (
        "in NFKC, with a space for any white space",
        lambda text: re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)),
    ),
)


def _without_accents(text: str) -> str:
    """The text without combining marks."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")


def _cause(actual: bytes, expected: bytes) -> str | None:
    """A likely reason why the bytes of a text differ from those of tokens, which start the same; None if unknown."""
    if expected.startswith(actual):
        return "it ends before them"
    same = expected[: _first_difference(actual, expected)]
    cut = len(same) - len(same.lstrip(_CONTINUATION))  # of a character that begins before
    text, written_text = (part[cut:].decode(errors="ignore") for part in (actual, expected))
    try:
        actual[cut:].decode()
    except UnicodeDecodeError as error:
        if cut + error.start <= len(same):
            return "it is not UTF-8 there, and tokenizers put U+FFFD in place of that"
    differ = next((i for i, (a, b) in enumerate(zip(text, written_text, strict=False)) if a != b), 0)
    for words, change in _CHANGES:
        for before, other, what in (text, written_text, "they spell it"), (written_text, text, "it is their text"):
            changed = change(before)
            n = min(len(changed) - 2 * (len(changed) != len(other)), len(other))  # its last ones may be cut
            if n > differ and changed[:n] == other[:n]:
                return f"{what} {words}"
    return None
