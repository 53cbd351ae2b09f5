"""Tokens of a response as a server wrote them, and the arrays that are made of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import reprlib
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from tokenloss._core._core import columns_of_listed, is_log_prob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._core.types import Array, BoolArray, Float64Array, IntArray
    from tokenloss.formats.responses.fields import Place

_RAW = re.compile("[ĠĊ▁\ufffd]")  # in texts of a vocabulary, and of parts of a character
_SPECIAL = re.compile("<[^ ]+>")


class Tops(NamedTuple):
    """The classes that are listed at each position, in lists that hold those of all positions."""

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
    """What `Response` holds of each token, in its order, and whether classes of it may be lost."""

    tokens: Array
    n_bytes: IntArray
    ids: IntArray
    logprobs: Float64Array
    is_sentinel: BoolArray
    is_prompt: BoolArray
    rank: IntArray
    is_greedy: BoolArray
    is_greedy_known: BoolArray
    top_tokens: Array
    top_ids: IntArray
    top_logprobs: Float64Array
    is_lost: BoolArray


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


def columns(tokens: Tokens, *, is_prompt: bool) -> Columns:
    """Arrays of tokens."""
    flags = is_prompt, tokens.is_keyed, tokens.is_added, tokens.is_exact
    found = columns_of_listed(
        tokens.texts, tokens.ids, tokens.logprobs, tokens.lengths, tokens.ranks, *tokens.tops, *flags
    )
    if found is None:
        _refuse_numbers(tokens)
    integers, bools, logprobs, top_texts, top_ids, top_logprobs = found
    n_bytes, ids, rank = integers
    is_sentinel, is_prompts, is_greedy, is_known, is_lost = bools.view(bool)
    every: Any = (
        _objects(tokens.texts), n_bytes, ids, logprobs, is_sentinel, is_prompts, rank, is_greedy, is_known,
        _objects(top_texts).reshape(top_ids.shape), top_ids, top_logprobs, is_lost,
    )  # fmt: skip
    return Columns(*every) if tokens.span == slice(None) else Columns(*[column[tokens.span] for column in every])


def _objects(values: list[str | None]) -> Array:
    """An array of objects."""
    found = np.empty(len(values), object)
    found[:] = values
    return found


def _refuse_numbers(tokens: Tokens) -> NoReturn:
    """Refuse the first value that is no log-probability."""
    tops = tokens.tops
    for i, value in enumerate(tokens.logprobs):
        if value is not None and not is_log_prob(value):
            _refuse_number(tokens.place, tokens.path.format(i=i, id=tokens.ids[i]), value)
    at = next(at for at, value in enumerate(tops.logprobs) if not is_log_prob(value))
    i, j = [(i, j) for i, n in enumerate(tops.counts) for j in range(n)][at]
    path = tokens.top_path.format(i=i, j=j, id=tops.ids[at], text=tops.texts[at])
    _refuse_number(tokens.place, path, tops.logprobs[at])


def _refuse_number(place: Place, path: str, value: Any) -> NoReturn:
    place.refuse(f"{path} is {reprlib.repr(value)}", "be a log-probability, a number of at most 0")


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
    known: Any = [text for text in texts if text is not None] if None in texts else texts
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
