"""Tokens of a response as the server wrote them, and the arrays made from them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from tokenloss._core._core import columns_of_listed, is_log_prob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._core.types import Array, Columns
    from tokenloss.formats.records import Place

_RAW = re.compile("[ĠĊ▁\ufffd]")  # in texts of a vocabulary, and of parts of a character
_SPECIAL = re.compile("<[^ ]+>")
_SENTINEL, _LOWEST = -9999.0, -3e38  # as in listed_classes.pxi
_BOOLS = ("is_sentinel", "is_prompt", "is_greedy", "is_greedy_known", "is_lost")


class Tops(NamedTuple):
    """The classes listed at each position, in lists over all positions."""

    counts: list[int]
    texts: list[str | None]
    ids: list[int]
    logprobs: list[Any]
    ranks: Sequence[int] = ()  # of each class, if the server returns them; 0 for a class without one

    def spans(self) -> list[tuple[int, int]]:
        """The start and end of the classes of each position."""
        return list(itertools.pairwise([0, *itertools.accumulate(self.counts)]))


def position_of(counts: Sequence[int], at: int) -> tuple[int, int]:
    """The position that lists the class at an index, and its number there, given the counts of all positions."""
    return [(i, j) for i, n in enumerate(counts) for j in range(n)][at]


@dataclasses.dataclass
class Listed:
    """Tokens as lists of the server's values; paths say where the log-probabilities are."""

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
    own_text: str | None = None  # of the response, which the tokens should make
    asked: Tops | None = None  # classes that the request asked for, however likely
    span: slice = dataclasses.field(default_factory=lambda: slice(None))

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.logprobs[self.span])

    def has_number(self) -> bool:
        """Whether any token has a log-probability, even a sentinel."""
        return any(value is not None for value in self.logprobs[self.span])

    def part(self, start: int | None, stop: int | None) -> Listed:
        """Some of the tokens."""
        return Listed(**{**vars(self), "span": slice(start, stop)})


def n_uncovered_bytes(parts: Sequence[Listed]) -> int:
    """The number of bytes of a response's own text that are in no token of its parts, as far as known."""
    own = next((tokens.own_text for tokens in parts if tokens.own_text is not None), None)
    texts = [text for tokens in parts for text in tokens.texts[tokens.span]]
    if own is None or None in texts or (joined := "".join(filter(None, texts))) == own:
        return 0
    sizes = [size for tokens in parts for size in tokens.lengths[tokens.span]]
    if min(sizes, default=0) >= 0:
        return max(0, len(own.encode()) - sum(sizes))
    if "" in texts or _RAW.search(joined):
        return 0
    own, joined = ("".join(text.split()) for text in (own, joined))  # some servers strip white space from tokens
    return max(0, len(own.encode()) - len(joined.encode()))


# where others list more
_MISSING: dict[str, Any] = {
    "top_tokens": None, "top_ids": -1, "top_logprobs": math.nan, "asked_ids": -1, "asked_logprobs": math.nan,
}  # fmt: skip


def join(parts: Sequence[Columns], width: int = 0) -> Columns:
    """The tokens of all parts in order, each with lists of one length, which of likely classes is at least `width`."""
    width = max(width, *(part["top_ids"].shape[1] for part in parts))
    if len(parts) == 1 and parts[0]["top_ids"].shape[1] == width:
        return parts[0]
    columns: Columns = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if name not in _MISSING:
            columns[name] = np.concatenate(arrays)
            continue
        most = max(width if name.startswith("top") else 0, *(array.shape[1] for array in arrays))
        columns[name] = np.full((sum(map(len, arrays)), most), _MISSING[name], arrays[0].dtype)
        stop = 0
        for array in arrays:
            start, stop = stop, stop + len(array)
            columns[name][start:stop, : array.shape[1]] = array
    return columns


def columns(tokens: Listed, *, is_prompt: bool) -> Columns:
    """Arrays of tokens, named as in `Response`, and `is_lost`: where classes may be lost."""
    flags = is_prompt, tokens.is_keyed, tokens.is_added, tokens.is_exact
    arrays = columns_of_listed(
        tokens.texts, tokens.ids, tokens.logprobs, tokens.lengths, tokens.ranks, *tokens.tops[:4], *flags
    )
    if arrays is None:
        _refuse_numbers(tokens)
    (n_bytes, ids, ranks), bools, logprobs, top_texts, top_ids, top_logprobs = arrays
    columns: Columns = {
        "tokens": _objects(tokens.texts),
        "n_bytes": n_bytes,
        "ids": ids,
        "rank": np.where(ranks > 0, ranks, -1),
        "logprobs": logprobs,
        **dict(zip(_BOOLS, bools.view(bool), strict=True)),
        "top_tokens": _objects(top_texts).reshape(top_ids.shape),
        "top_ids": top_ids,
        "top_logprobs": top_logprobs,
        **_asked(tokens),
    }
    whole = slice(None)
    return columns if tokens.span == whole else {name: column[tokens.span] for name, column in columns.items()}


def _asked(tokens: Listed) -> Columns:
    """Ids and log-probabilities of the requested classes: -1 and nan if missing or a sentinel."""
    counts = np.array([0] * len(tokens.logprobs) if tokens.asked is None else tokens.asked.counts, np.int64)
    is_listed = np.arange(counts.max(initial=0)) < counts[:, None]
    ids, logprobs = np.full(is_listed.shape, -1), np.full(is_listed.shape, math.nan)
    if tokens.asked is not None and counts.any():
        for at, value in enumerate(tokens.asked.logprobs):
            if not is_log_prob(value):
                i, j = position_of(tokens.asked.counts, at)
                path = tokens.top_path.replace("top", "token_ids").format(i=i, j=j)
                tokens.place.refuse_value(path, value, "be a log-probability, a number of at most 0")
        values = np.array(tokens.asked.logprobs, np.float64)
        is_sentinel = (values == _SENTINEL) | ((values < _LOWEST) & (values > -math.inf))
        ids[is_listed], logprobs[is_listed] = tokens.asked.ids, np.where(is_sentinel, math.nan, values)
    return {"asked_ids": ids, "asked_logprobs": logprobs}


def _objects(values: list[str | None]) -> Array:
    """An array of objects."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _refuse_numbers(tokens: Listed) -> NoReturn:
    """Refuse the first value that is not a log-probability."""
    tops = tokens.tops
    for i, value in enumerate(tokens.logprobs):
        if value is not None and not is_log_prob(value):
            path = tokens.path.format(i=i, id=tokens.ids[i])
            break
    else:
        at, value = next((at, value) for at, value in enumerate(tops.logprobs) if not is_log_prob(value))
        i, j = position_of(tops.counts, at)
        path = tokens.top_path.format(i=i, j=j, id=tops.ids[at], text=tops.texts[at])
    tokens.place.refuse_value(path, value, "be a log-probability, a number of at most 0")


def lengths(
    texts: Sequence[str | None], spelled: Sequence[bytes | None] | None = None, own: str | None = None, *,
    is_completed: bool = False,
) -> list[int]:  # fmt: skip
    """Length of each token in UTF-8; -1 if unknown.

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
        sizes = [-1] * len(texts)
    elif len(known) == len(texts) and joined.isascii():
        sizes = list(map(len, known))
    else:
        sizes = [-1 if text is None else len(text.encode()) for text in texts]
    for i, spelling in enumerate(spelled or ()):
        text = texts[i]
        if spelling is not None and not (text is not None and "\ufffd" in text and text.encode() == spelling):
            sizes[i] = len(spelling)
    last = (texts[-1] if texts else None) or ""
    if own is not None and _SPECIAL.fullmatch(last) and not own.endswith(last):
        sizes[-1] = 0
    return sizes


def _ends_characters(texts: Sequence[str | None]) -> bool:
    """Whether each run of empty texts is followed by a character beyond ASCII, whose first parts they are.

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
