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
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    # a class in the list of a position: text, id, log-probability; plain, since there are millions
    _Listed: TypeAlias = tuple[str | None, int, Any]

    from tokenloss._types import Array, BoolArray, Float64Array, IntArray
    from tokenloss.formats._fields import Place

SENTINEL = -9999.0  # stands for "below what is returned", or for -inf
_LOWEST = -3e38  # the least float32, which llama.cpp writes for a probability of 0, is below
_MOST = 1e-4  # log-probability, by rounding
_SAME = 1e-5  # difference of two roundings of a log-probability
_RAW = re.compile("[ĠĊ▁\ufffd]|^$")  # in texts of a vocabulary, and of parts of a character
_SPECIAL = re.compile("<[^ ]+>")


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
    tops: list[list[_Listed]]
    ranks: list[int] | None = None
    is_keyed: bool = False  # lists are objects by text, so that one class may take the place of another
    is_exact: bool = False  # each list is the most likely classes, and does not get the token itself in addition
    span: slice = dataclasses.field(default_factory=lambda: slice(None))

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.logprobs[self.span])

    def has_number(self) -> bool:
        """Whether any token has a log-probability, be it a sentinel."""
        return any(value is not None for value in self.logprobs[self.span])

    def part(self, start: int | None, stop: int | None) -> Tokens:
        """Some of the tokens."""
        return dataclasses.replace(self, span=slice(start, stop))


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


def columns(tokens: Tokens) -> Columns:
    """Arrays of the tokens."""
    n = len(tokens.logprobs)
    own = _numbers(
        tokens.place, tokens.logprobs, lambda i: tokens.path.format(i=i, id=tokens.ids[i]), is_null_allowed=True
    )
    is_sentinel = own == SENTINEL
    classes = list(itertools.chain.from_iterable(tokens.tops))
    texts, ids, logprobs = map(list, zip(*classes, strict=True)) if classes else ([], [], [])

    def top_path(at: int) -> str:
        i, j = [(i, j) for i, entries in enumerate(tokens.tops) for j in range(len(entries))][at]
        return tokens.top_path.format(i=i, j=j, id=ids[at], text=texts[at])

    lists = _Lists(tokens, own, _objects(texts, len(texts)), np.array(ids, np.int64),
                   _numbers(tokens.place, logprobs, top_path))  # fmt: skip
    rank, is_greedy, is_known = lists.ranks()
    own[is_sentinel] = np.nan
    is_known = (is_known & ~np.isnan(own)) | is_sentinel
    is_greedy &= is_known & ~is_sentinel
    everything: tuple[Array, ...] = (
        _objects(tokens.texts, n), np.array(tokens.lengths, np.int64), np.array(tokens.ids, np.int64), own, is_sentinel,
        rank, is_greedy, is_known, lists.is_lost, *lists.tops(),
    )  # fmt: skip
    return Columns(*(column[tokens.span] for column in everything))


def _objects(values: Sequence[object], n: int) -> Array:
    """An array of objects."""
    found = np.full(n, None, object)
    found[:] = values
    return found


def is_log_prob(value: Any) -> bool:
    """Whether a value can be a log-probability, or a sentinel."""
    return type(value) in (int, float) and (-1e300 < value <= _MOST or value == -math.inf)


def _numbers(
    place: Place, values: list[Any], path: Callable[[int], str], *, is_null_allowed: bool = False
) -> Float64Array:
    """Log-probabilities; nan for null, and one sentinel for all."""
    for i, value in enumerate(values):
        if not is_log_prob(value) and (value is not None or not is_null_allowed):
            place.refuse(f"{path(i)} is {reprlib.repr(value)}", "be a log-probability, a number of at most 0")
    found = np.array(values, np.float64)
    found[(found < _LOWEST) & (found > -np.inf)] = SENTINEL
    return found


class _Lists:
    """The lists of all positions."""

    def __init__(self, tokens: Tokens, own: Float64Array, texts: Array, ids: IntArray, values: Float64Array) -> None:
        """Find the token itself in each list, and what else is there."""
        self.n, self.own, self.texts, self.ids, self.values = len(own), own, texts, ids, values
        self.count = np.array([len(entries) for entries in tokens.tops], np.int64)
        self.row = np.repeat(np.arange(self.n), self.count)
        self.own_ids = np.array(tokens.ids, np.int64)
        self.is_own = self._find_own(tokens)
        self.is_listed = self._any(self.is_own)
        self.best, self.least = np.full(self.n, -np.inf), np.full(self.n, np.inf)  # of the other classes
        others = ~self.is_own
        np.maximum.at(self.best, self.row[others], values[others])
        np.minimum.at(self.least, self.row[others], values[others])
        self.is_exact, self.rank = tokens.is_exact, None if tokens.ranks is None else np.array(tokens.ranks, np.int64)
        is_last = ~(self.least <= own) if self.rank is None else (self.rank >= self.count) & (self.least != own)
        self.is_last = self.is_listed & is_last  # it may have been added to the list
        shown = self.count if tokens.is_exact else self.count - self.is_last
        self.k = int(shown.max(initial=0))
        self.is_short = self.is_lost = np.zeros(self.n, bool)
        if tokens.is_keyed and self.rank is None:
            self._find_lost(shown)

    def _find_lost(self, shown: IntArray) -> None:
        """Find lists that may have lost a class to another one of the same text, above all of parts of characters."""
        is_part = [text is not None and (not text or "\ufffd" in text) for text in self.texts]
        has_parts = self._any(np.array(is_part, bool))
        is_k_known = bool((shown[~has_parts] == self.k).any())
        self.is_short = (self.count > 0) & ((self.count < self.k) | (has_parts & (not is_k_known)))
        self.is_lost = self.is_short | (has_parts & (shown < self.k))

    def _any(self, is_class: BoolArray) -> BoolArray:
        """Positions that list any of these classes."""
        is_any: BoolArray = np.zeros(self.n, bool)
        is_any[self.row[is_class]] = True
        return is_any

    def _find_own(self, tokens: Tokens) -> BoolArray:
        """Which classes are the token itself: by id, else by text and log-probability; at most one in each list."""
        is_own: BoolArray = (self.ids >= 0) & (self.ids == self.own_ids[self.row])
        text = _objects(tokens.texts, self.n)[self.row]
        own = self.own[self.row]
        with np.errstate(invalid="ignore"):  # of infinities
            is_near = (np.abs(self.values - own) <= _SAME) | (self.values == own)
        by_text = (self.texts == text) & (self.texts != np.array(None))
        is_own |= ((self.ids < 0) | (self.own_ids[self.row] < 0)) & by_text & is_near
        at = np.flatnonzero(is_own)
        _, first = np.unique(self.row[at], return_index=True)
        is_own[:] = False
        is_own[at[first]] = True
        return is_own

    def ranks(self) -> tuple[IntArray, BoolArray, BoolArray]:
        """Rank of each token, whether it is greedy, and whether that is known."""
        tied = ~self.is_own & (self.values == self.own[self.row])
        is_beaten = tied & (self.ids >= 0) & (self.ids < self.own_ids[self.row])  # by a lower id
        is_greedy = (self.own >= self.best) & ~self._any(is_beaten)
        if self.rank is not None:
            n_tied = np.bincount(self.row[tied], minlength=self.n)
            return self.rank, is_greedy & (self.rank <= 1 + n_tied), self.rank > 0
        is_known = (self.count > 0) & (self.k > 0) & ~self.is_short & (self.is_listed | (self.best >= self.own))
        not_less = ~self.is_own & (self.values >= self.own[self.row])
        rank = 1 + np.bincount(self.row[not_less], minlength=self.n)
        is_unknown = ~self.is_listed | self.is_short | ~(self.least < self.own)  # others may be as likely as the last
        rank[is_unknown] = 0
        return rank, is_greedy, is_known

    def tops(self) -> tuple[Array, IntArray, Float64Array]:
        """Text, ids and log-probabilities of the most likely classes."""
        is_best = ~self.is_last | self.is_exact
        is_best |= (self.count == self.k) & (self.k == 1) if self.rank is None else self.rank <= self.k
        is_kept = (self.values != SENTINEL) & (~self.is_own | is_best[self.row]) & ~self.is_lost[self.row]
        keep = np.flatnonzero(is_kept)
        order = keep[np.lexsort((self.ids[keep], -self.values[keep], self.row[keep]))]
        row = self.row[order]
        column = np.arange(len(row)) - np.searchsorted(row, row)
        shape = self.n, int(column.max(initial=-1)) + 1
        text, ids, logprobs = np.full(shape, None, object), np.full(shape, -1), np.full(shape, np.nan)
        text[row, column], ids[row, column], logprobs[row, column] = (
            values[order] for values in (self.texts, self.ids, self.values)
        )
        return text, ids, logprobs


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
        is_whole = _ends_characters(texts) if is_completed else not any(map(_RAW.search, known))
        is_whole &= own is None or len(known) < len(texts) or own in joined
    found = [len(text.encode()) if is_whole and text is not None else -1 for text in texts]
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
