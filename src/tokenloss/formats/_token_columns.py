"""Tokens of a response as a server wrote them, and the arrays that are made of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import reprlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._types import Array, BoolArray, Float64Array, IntArray
    from tokenloss.formats._fields import Place

SENTINEL = -9999.0  # stands for "below what is returned", or for -inf
_LOWEST = -3e38  # the least float32, which llama.cpp writes for a probability of 0, is below
_MOST = 1e-4  # log-probability, by rounding
_IMPOSSIBLE = -1e300  # no log-probability is that small, nor any sentinel
_SAME = 1e-5  # difference of two roundings of a log-probability
_RAW = re.compile("[ĠĊ▁\ufffd]")  # in texts of a vocabulary, and of parts of a character
_SPECIAL = re.compile("<[^ ]+>")


class Tops(NamedTuple):
    """The classes that are listed at each position, those of all positions in one."""

    counts: list[int]
    texts: list[str | None]
    ids: list[int]
    logprobs: list[Any]

    def starts(self) -> list[int]:
        """Where the classes of each position start, and where the last ones end."""
        return [0, *itertools.accumulate(self.counts)]


@dataclasses.dataclass
class Tokens:
    """Tokens as lists of what the server wrote; paths say where the log-probabilities stand."""

    place: Place
    path: str
    top_path: str
    texts: list[str | None]
    ids: list[int]
    logprobs: list[Any]
    lengths: list[int]
    tops: Tops
    ranks: list[int] | None = None
    is_keyed: bool = False  # lists are objects by text, so that one class may take the place of another
    is_added: bool = False  # an object of the k likeliest classes gets the token itself in addition, if it is not there
    is_exact: bool = False  # each list is the most likely classes, and does not get the token itself in addition
    span: slice = dataclasses.field(default_factory=lambda: slice(None))

    @property
    def has_ranks(self) -> bool:
        """Whether the server counted ranks."""
        return self.ranks is not None

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.logprobs[self.span])

    def has_number(self) -> bool:
        """Whether any token has a log-probability, be it a sentinel."""
        return any(value is not None for value in self.logprobs[self.span])

    def part(self, start: int | None, stop: int | None) -> Tokens:
        """Some of the tokens."""
        return Tokens(**{**vars(self), "span": slice(start, stop)})


class Columns(NamedTuple):
    """What `Response` holds of each token."""

    tokens: Array
    n_bytes: IntArray
    ids: IntArray
    logprobs: Float64Array
    is_sentinel: BoolArray
    rank: IntArray
    is_greedy: BoolArray
    is_greedy_known: BoolArray
    is_lost: BoolArray
    top_tokens: Array
    top_ids: IntArray
    top_logprobs: Float64Array


_TOPS: dict[str, Any] = {"top_tokens": None, "top_ids": -1, "top_logprobs": math.nan}  # where fewer were listed


def join(parts: Sequence[Columns]) -> Columns:
    """The tokens of one part after those of another."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.top_ids.shape[1] for part in parts)
    found: dict[str, Any] = {}
    for name in Columns._fields:
        columns = [getattr(part, name) for part in parts]
        if name in _TOPS:
            more = [((0, 0), (0, width - column.shape[1])) for column in columns]
            columns = [np.pad(x, n, constant_values=_TOPS[name]) for x, n in zip(columns, more, strict=True)]
        found[name] = np.concatenate(columns)
    return Columns(**found)


def columns(parts: Sequence[Tokens]) -> list[Columns]:
    """Arrays of tokens, for each part."""
    if not parts:
        return []
    own = _numbers(parts, [tokens.logprobs for tokens in parts], is_null_allowed=True)
    values = _numbers(parts, [tokens.tops.logprobs for tokens in parts])
    is_sentinel = own == SENTINEL
    lists = _Lists(parts, own, values)
    rank, is_greedy, is_known = lists.ranks()
    own[is_sentinel] = np.nan
    is_known = (is_known & ~np.isnan(own)) | is_sentinel
    is_greedy &= is_known & ~is_sentinel
    every: tuple[Array, ...] = (
        lists.own_texts, _joined([tokens.lengths for tokens in parts]), lists.own_ids, own, is_sentinel, rank,
        is_greedy, is_known, lists.is_lost,
    )  # fmt: skip
    tops, widths = lists.tops()
    found, start = [], 0
    for tokens, width in zip(parts, widths, strict=True):
        first, last, _ = tokens.span.indices(len(tokens.logprobs))
        rows = slice(start + first, start + max(first, last))
        start += len(tokens.logprobs)
        found.append(Columns(*[column[rows] for column in every], *[column[rows, :width] for column in tops]))
    return found


def _joined(lists: Sequence[list[int]]) -> IntArray:
    """An array of all lists, one after the other."""
    return np.array(list(itertools.chain.from_iterable(lists)), np.int64)


def _objects(lists: Sequence[list[str | None]]) -> Array:
    """An array of the objects in all lists, one after the other."""
    values = list(itertools.chain.from_iterable(lists))
    found = np.empty(len(values), object)
    found[:] = values
    return found


def is_log_prob(value: Any) -> bool:
    """Whether a value can be a log-probability, or a sentinel."""
    return type(value) in (int, float) and (_IMPOSSIBLE < value <= _MOST or value == -math.inf)


def _numbers(parts: Sequence[Tokens], lists: Sequence[list[Any]], *, is_null_allowed: bool = False) -> Float64Array:
    """Log-probabilities; nan for null, and one sentinel for all."""
    values = list(itertools.chain.from_iterable(lists))
    if not set(map(type, values)) <= {float, int, type(None)}:
        _refuse_numbers(parts)
    try:
        found = np.array(values, np.float64)
    except OverflowError:  # an integer
        _refuse_numbers(parts)
        raise
    n_right = np.count_nonzero(((found > _IMPOSSIBLE) & (found <= _MOST)) | (found == -np.inf))
    if n_right + (values.count(None) if is_null_allowed else 0) < len(values):
        _refuse_numbers(parts)
    found[(found < _LOWEST) & (found > -np.inf)] = SENTINEL
    return found


def _refuse_numbers(parts: Sequence[Tokens]) -> None:
    """Refuse the first value that is no log-probability."""
    for tokens in parts:
        tops = tokens.tops
        for i, value in enumerate(tokens.logprobs):
            if value is not None and not is_log_prob(value):
                _refuse_number(tokens.place, tokens.path.format(i=i, id=tokens.ids[i]), value)
        for at, value in enumerate(tops.logprobs):
            if not is_log_prob(value):
                i, j = [(i, j) for i, n in enumerate(tops.counts) for j in range(n)][at]
                path = tokens.top_path.format(i=i, j=j, id=tops.ids[at], text=tops.texts[at])
                _refuse_number(tokens.place, path, value)


def _refuse_number(place: Place, path: str, value: Any) -> None:
    place.refuse(f"{path} is {reprlib.repr(value)}", "be a log-probability, a number of at most 0")


class _Lists:
    """The lists of all positions of several parts, each of which has a k of its own."""

    def __init__(self, parts: Sequence[Tokens], own: Float64Array, values: Float64Array) -> None:
        """Find the token itself in each list, and what else is there."""
        self.n, self.own, self.values = len(own), own, values
        self.texts = _objects([tokens.tops.texts for tokens in parts])
        self.ids = _joined([tokens.tops.ids for tokens in parts])
        self.own_texts = _objects([tokens.texts for tokens in parts])
        self.own_ids = _joined([tokens.ids for tokens in parts])
        self.count = _joined([tokens.tops.counts for tokens in parts])
        self.row = np.repeat(np.arange(self.n), self.count)
        self.n_parts = len(parts)
        self.part = np.repeat(np.arange(len(parts)), [len(tokens.logprobs) for tokens in parts])
        self.is_exact, self.has_rank, is_keyed, is_added = (
            np.array([getattr(of, name) for of in parts], bool)[self.part]
            for name in ("is_exact", "has_ranks", "is_keyed", "is_added")
        )
        self.rank = _joined([[0] * len(of.logprobs) if of.ranks is None else of.ranks for of in parts])
        self.is_own = self._find_own()
        self.is_listed = self._any(self.is_own)
        self.best, self.least = np.full(self.n, -np.inf), np.full(self.n, np.inf)  # of the other classes
        others = ~self.is_own
        np.maximum.at(self.best, self.row[others], values[others])
        np.minimum.at(self.least, self.row[others], values[others])
        is_last = (self.rank >= self.count) & (self.least != own)
        is_last = np.where(self.has_rank, is_last, ~(self.least <= own))
        self.is_last = self.is_listed & is_last  # it may have been added to the list
        shown = self.count - (self.is_last & ~self.is_exact)
        most = np.zeros(self.n_parts, np.int64)
        np.maximum.at(most, self.part, shown)
        self.k = most[self.part]
        self.is_short = self.is_lost = np.zeros(self.n, bool)
        if (is_keyed & ~self.has_rank).any():
            self._find_lost(shown, is_keyed & ~self.has_rank, is_added)

    def _find_lost(self, shown: IntArray, is_keyed: BoolArray, is_added: BoolArray) -> None:
        """Find lists that may have lost a class to another one of the same text, above all of parts of characters."""
        texts = self.texts.tolist()
        parts = [i for i, text in enumerate(texts) if not text or "\ufffd" in text]
        parts = [i for i in parts if texts[i] is not None]
        has_parts: BoolArray = np.zeros(self.n, bool)
        has_parts[self.row[parts]] = True
        is_k_known = np.zeros(self.n_parts, bool)
        is_k_known[self.part[(shown == self.k) & ~has_parts]] = True
        is_short = (self.count > 0) & ((self.count < self.k) | (has_parts & ~is_k_known[self.part]))
        self.is_short = is_keyed & is_short
        # k classes that end with the token: it is the last of them, or it was added and one of them is lost
        is_open = has_parts | (is_added & (self.count == self.k) & (self.k > 1))
        self.is_lost = self.is_short | (is_keyed & is_open & (shown < self.k))

    def _any(self, is_class: BoolArray) -> BoolArray:
        """Positions that list any of these classes."""
        is_any: BoolArray = np.zeros(self.n, bool)
        is_any[self.row[is_class]] = True
        return is_any

    def _find_own(self) -> BoolArray:
        """Which classes are the token itself: by id, else by text and log-probability; at most one in each list."""
        own_ids, own = self.own_ids[self.row], self.own[self.row]
        is_own: BoolArray = (self.ids >= 0) & (self.ids == own_ids)
        with np.errstate(invalid="ignore"):  # of infinities
            is_near = (np.abs(self.values - own) <= _SAME) | (self.values == own)
        near = np.flatnonzero(((self.ids < 0) | (own_ids < 0)) & is_near)
        texts = self.texts[near]
        is_own[near[(texts == self.own_texts[self.row[near]]) & (texts != np.array(None))]] = True
        at = np.flatnonzero(is_own)
        rows = self.row[at]
        is_own[at[1:][rows[1:] == rows[:-1]]] = False
        return is_own

    def ranks(self) -> tuple[IntArray, BoolArray, BoolArray]:
        """Rank of each token, whether it is greedy, and whether that is known."""
        own = self.own[self.row]
        tied = ~self.is_own & (self.values == own)
        is_beaten = tied & (self.ids >= 0) & (self.ids < self.own_ids[self.row])  # by a lower id
        is_greedy = (self.own >= self.best) & ~self._any(is_beaten)
        n_tied = np.bincount(self.row[tied], minlength=self.n)
        is_known = (self.count > 0) & (self.k > 0) & ~self.is_short & (self.is_listed | (self.best >= self.own))
        not_less = ~self.is_own & (self.values >= own)
        rank = 1 + np.bincount(self.row[not_less], minlength=self.n)
        is_unknown = ~self.is_listed | self.is_short | ~(self.least < self.own)  # others may be as likely as the last
        rank[is_unknown] = 0
        return (
            np.where(self.has_rank, self.rank, rank),
            is_greedy & (~self.has_rank | (self.rank <= 1 + n_tied)),
            np.where(self.has_rank, self.rank > 0, is_known),
        )

    def tops(self) -> tuple[tuple[Array, IntArray, Float64Array], list[int]]:
        """Text, ids and log-probabilities of the most likely classes, and the number of columns of each part."""
        is_best = ~self.is_last | self.is_exact
        is_best |= np.where(self.has_rank, self.rank <= self.k, (self.count == self.k) & (self.k == 1))
        is_kept = (self.values != SENTINEL) & (~self.is_own | is_best[self.row]) & ~self.is_lost[self.row]
        keep = np.flatnonzero(is_kept)
        row = self.row[keep]
        counts = np.bincount(row, minlength=self.n)
        column = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
        widths = np.zeros(self.n_parts, np.int64)
        np.maximum.at(widths, self.part, counts)
        shape = self.n, int(widths.max(initial=0))
        text, ids, logprobs = np.full(shape, None, object), np.full(shape, -1), np.full(shape, np.nan)
        text[row, column], ids[row, column], logprobs[row, column] = (
            values[keep] for values in (self.texts, self.ids, self.values)
        )
        order = np.argsort(-logprobs, axis=1, kind="stable")
        text, ids, logprobs = (np.take_along_axis(values, order, 1) for values in (text, ids, logprobs))
        is_wrong = (logprobs[:, 1:] == logprobs[:, :-1]) & (ids[:, 1:] < ids[:, :-1])  # equally likely ones are by id
        for i in np.flatnonzero(is_wrong.any(1)).tolist():
            at = np.lexsort((ids[i], -logprobs[i]))
            text[i], ids[i], logprobs[i] = text[i, at], ids[i, at], logprobs[i, at]
        return (text, ids, logprobs), widths.tolist()


def lengths(
    texts: Sequence[str | None],
    spelled: Sequence[bytes | None] | None = None,
    own: str | None = None,
    *,
    is_completed: bool = False,
) -> list[int]:
    """Length of each token in UTF-8; -1 where it is not known.

    By its bytes where the server gave them. Else by its text, if the texts make the response's own, or if none is of a
    part of a character, which is lost. A server may give all of a character to the last of its tokens. An end of
    text, such as <|im_end|>, that the response's own text does not hold has no bytes.
    """
    known = [text for text in texts if text is not None]
    joined = "".join(known)
    is_whole = len(known) == len(texts) and joined == own
    if not is_whole:
        is_whole = _ends_characters(texts) if is_completed else "" not in known and not _RAW.search(joined)
        is_whole &= own is None or len(known) < len(texts) or own in joined
    if not is_whole:
        found = [-1] * len(texts)
    elif len(known) == len(texts) and joined.isascii():
        found = list(map(len, known))
    else:
        found = [-1 if text is None else len(text.encode()) for text in texts]
    for i, spelling in enumerate(spelled or ()):
        text = texts[i]
        if spelling is not None and not (text is not None and "\ufffd" in text and text.encode() == spelling):
            found[i] = len(spelling)
    last = (texts[-1] if texts else None) or ""
    if own is not None and _SPECIAL.fullmatch(last) and not own.endswith(last):
        found[-1] = 0
    return found


def _ends_characters(texts: Sequence[str | None]) -> bool:
    """Whether each run of empty texts is followed by a character beyond ASCII, of which they are the first parts.

    A text that is not known, as the first one, must not be of the character that follows it.
    """
    follows = character = "."  # the next text, and the next first character
    for text in reversed(texts):
        if text is None:
            if not "" < follows[:1] < "\U00010000":
                return False
            follows = character = ""
        elif "\ufffd" in text or not (text or character > "\x7f"):
            return False
        else:
            follows, character = text, text[:1] or character
    return True
