"""Maps the tokens of two models to one text: spans that end where both models have a boundary, and their losses."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._statistics.sequences import sums_by_segment

if TYPE_CHECKING:
    from tokenloss._core.types import Array, BoolArray, Float64Array, IntArray


class TextTokens(NamedTuple):
    """The tokens of a model, in the order of a text. Documents are numbered from 0, and each has a token."""

    start: IntArray  # their bytes in the text; special tokens have none, and are where the token before them stops
    stop: IntArray
    document: IntArray
    nll: Float64Array
    is_scored: BoolArray

    def at(self, chosen: BoolArray | slice) -> TextTokens:
        """Some of the tokens."""
        columns: Any = (column[chosen] for column in self)
        return TextTokens(*columns)


class Spans(NamedTuple):
    """The spans that two models' tokens share, in the order of the text, and the tokens of each side by span."""

    start: IntArray
    stop: IntArray
    document: IntArray
    kept: BoolArray  # False where either model has a token that is not scored
    tokens: tuple[TextTokens, TextTokens]  # of both models, without those that have neither bytes nor a score
    first: tuple[IntArray, IntArray]  # of both models, the first token of each span, and at last the number of all
    nll: tuple[Float64Array, Float64Array]  # of both models, the exact sum over each span; nan where it is left out

    @property
    def n_bytes(self) -> IntArray:
        """The length of each span."""
        return self.stop - self.start

    def tokens_of(self, side: int, span: int) -> TextTokens:
        """The tokens of one model in a span."""
        return self.tokens[side].at(slice(*self.first[side][span : span + 2].tolist()))

    def kept_tokens(self, side: int) -> TextTokens:
        """The tokens of one model in all spans that are kept."""
        return self.tokens[side].at(np.repeat(self.kept, np.diff(self.first[side])))


def document_bytes(tokens: TextTokens) -> tuple[IntArray, IntArray]:
    """The start and stop of each document, by its tokens that have bytes; -1 for a document without such tokens."""
    own = tokens.at(tokens.stop > tokens.start)
    count = int(tokens.document[-1]) + 1 if tokens.document.size else 0
    first, last = (np.searchsorted(own.document, np.arange(count), side) for side in ("left", "right"))
    start, stop = np.full(count, -1), np.full(count, -1)
    some = first < last
    start[some], stop[some] = own.start[first[some]], own.stop[last[some] - 1]
    return start, stop


def spans_of(a: TextTokens, b: TextTokens, text: Array) -> Spans:
    """Cut a text, given as its bytes, where both models have a boundary between two characters.

    Both have the same documents, with bytes in each. White space that is in no token of one model may be a span of its
    own, without a token of that model. A token without bytes belongs to the span that ends at its place, or at the
    start of a document to the first one.
    """
    a, b = (side.at((side.stop > side.start) | side.is_scored) for side in (a, b))
    ends = [document_bytes(side) for side in (a, b)]
    document_stop = np.maximum(ends[0][1], ends[1][1])
    # white space between two documents belongs to the first, if one model has it there
    document_start = np.maximum(np.minimum(ends[0][0], ends[1][0]), np.append(0, document_stop[:-1])[: ends[0][0].size])
    cuts = np.intersect1d(_boundaries(a), _boundaries(b), assume_unique=True)
    inner = np.searchsorted(document_stop, cuts, "right")
    is_inside = cuts < document_stop[-1:].max(initial=0)
    cuts, inner = cuts[is_inside], inner[is_inside]
    cuts = cuts[(cuts > document_start[inner]) & (text[cuts] & 0xC0 != 0x80)]
    stop = np.sort(np.concatenate([cuts, document_stop]), kind="stable")
    document = np.searchsorted(document_stop, stop)
    is_first = np.diff(document, prepend=-1) != 0
    start = np.where(is_first, document_start[document], np.append(0, stop)[:-1])
    bounds = np.searchsorted(document, np.arange(document_stop.size + 1))
    tokens, first, kept = (a, b), [], np.ones(stop.size, np.bool_)
    for side in tokens:
        span = _span_of_tokens(side, stop, bounds)
        first.append(np.searchsorted(span, np.arange(stop.size + 1)))
        kept[span[~side.is_scored]] = False
    nll = tuple(_sums(side.nll, first_tokens, kept) for side, first_tokens in zip(tokens, first, strict=True))
    return Spans(start, stop, document, kept, tokens, (first[0], first[1]), (nll[0], nll[1]))


def _boundaries(tokens: TextTokens) -> IntArray:
    """The places where tokens start or stop, sorted and distinct."""
    own = tokens.at(tokens.stop > tokens.start)
    both = np.empty(2 * own.start.size, np.int64)
    both[::2], both[1::2] = own.start, own.stop
    boundaries: IntArray = both[np.diff(both, prepend=-1) != 0]
    return boundaries


def _span_of_tokens(tokens: TextTokens, stop: IntArray, bounds: IntArray) -> IntArray:
    """The span that contains the last byte of each token. `bounds` is the first span of each document."""
    end = np.maximum.accumulate(np.where(tokens.stop > tokens.start, tokens.stop, 0))
    span = np.searchsorted(stop, end)
    return np.clip(span, bounds[tokens.document], bounds[tokens.document + 1] - 1)


def _sums(nll: Float64Array, first: IntArray, kept: BoolArray) -> Float64Array:
    """The exact sums of losses over spans: 0.0 for spans without a token, nan for spans that are left out."""
    sums = np.where(kept, 0.0, np.nan)
    n_tokens = np.diff(first)
    chosen = kept & (n_tokens > 0)
    numbers = np.repeat(np.arange(kept.size), n_tokens)
    by_span = sums_by_segment(nll, None, np.where(chosen[numbers], numbers, -1))
    sums[by_span.sequence] = by_span.nll
    return sums


# -- kinds of spans ----------------------------------------------------------------------------------------------------

KINDS = "words", "digits", "punctuation", "code symbols", "other scripts", "white space"  # see `compare_texts`
_CODE = frozenset("#$%&*+/<=>@[\\]^_`{|}~")


def _kind_of(character: str) -> int:
    """The number of a character's kind in `KINDS`."""
    category = unicodedata.category(character)
    name = unicodedata.name(character, "")
    if character.isspace():
        return KINDS.index("white space")
    if character in _CODE:
        return KINDS.index("code symbols")
    if category == "Nd":
        return KINDS.index("digits")
    if category[0] == "P":
        return KINDS.index("punctuation")
    is_latin = category[0] == "L" and "LATIN" in name.split()
    return KINDS.index("words" if is_latin or name.startswith("COMBINING ") else "other scripts")


def script_of(text: str) -> str:
    """The first word of the Unicode name of a text's first letter, such as Latin or CJK; "" without a letter."""
    names = (unicodedata.name(character, "") for character in text if character.isalpha())
    name = next(names, "").partition(" ")[0]
    return name if name == "CJK" else name.capitalize()


def kinds_of(text: str, start: IntArray, stop: IntArray) -> IntArray:
    """The number of the kind of each span, which contains whole characters; spans are given by their bytes."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    kind_by_code = np.zeros(int(codes.max(initial=0)) + 1, np.int8)
    distinct = np.flatnonzero(np.bincount(codes))
    kind_by_code[distinct] = [_kind_of(chr(code)) for code in distinct.tolist()]
    kind = np.append(kind_by_code[codes], np.int8(-1))
    at = np.cumsum(1 + (codes > 0x7F) + (codes > 0x7FF).astype(np.int8) + (codes > 0xFFFF))  # where each one stops
    bounds = np.empty(2 * start.size, np.int64)
    bounds[::2], bounds[1::2] = np.searchsorted(at, start, "right"), np.searchsorted(at, stop, "right")
    counts = np.empty((len(KINDS), start.size), np.int64)
    for number in range(len(KINDS)):
        counts[number] = np.add.reduceat((kind == number).view(np.int8), bounds, dtype=np.int64)[::2]
    space = KINDS.index("white space")
    counts[space] = counts[:space].sum(0) == 0  # at least one only where nothing else is
    kinds: IntArray = counts.argmax(0)
    return kinds
