"""Tokens of two models laid over one text: spans, their sums and kinds, and errors that hold what they promise."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenloss._comparison.text_comparison import text_comparison_of
from tokenloss._comparison.text_spans import KINDS, TextTokens, kinds_of, spans_of

FLOATS = st.floats(0, 50)


def tokens(rows):
    """Tokens given as rows of start, stop, document, loss and whether they are scored."""
    start, stop, document, nll, is_scored = zip(*rows, strict=True)
    return TextTokens(
        np.array(start), np.array(stop), np.array(document), np.array(nll, float), np.array(is_scored, bool)
    )


def spans(a, b, text):
    return spans_of(tokens(a), tokens(b), np.frombuffer(text, np.uint8))


def compared(a, b, text, top=5):
    return text_comparison_of(spans(a, b, text), text, name_a="a", name_b="b", path="t.txt", top=top)


def test_spans_by_hand():
    # byte     0 1 2 3 4 5 6 7 8 9
    # text     t h e _ c a t _ é é        (two bytes of é)
    # a        the   ,_cat    ,_,é,é      special tokens at both ends, of which the first is not scored
    # b        th ,e_ca    ,t ,_é ,é
    # common   |              |   x |     x: a boundary of both, but within é
    a = [(0, 0, 0, math.nan, False), (0, 3, 0, 1, True), (3, 7, 0, 2, True), (7, 8, 0, 4, True), (8, 9, 0, 8, True),
         (9, 10, 0, 16, True), (10, 10, 0, 32, True)]  # fmt: skip
    b = [(0, 2, 0, 1, True), (2, 6, 0, 2, True), (6, 7, 0, 4, True), (7, 9, 0, 8, True), (9, 10, 0, 16, True)]
    actual = spans(a, b, "the cat é".encode())
    assert (actual.start.tolist(), actual.stop.tolist()) == ([0, 7], [7, 10])
    assert [side.tolist() for side in actual.nll] == [[1 + 2, 4 + 8 + 16 + 32], [1 + 2 + 4, 8 + 16]]
    assert [np.diff(first).tolist() for first in actual.first] == [[2, 4], [3, 2]]
    result = compared(a, b, "the cat é".encode())
    assert (result.nll_a, result.nll_b, result.n_tokens_a, result.n_tokens_b) == (63, 31, 6, 5)
    assert result.bits_per_byte_b == 31 / 10 / math.log(2)
    assert (result.n_special_a, result.special_bits_per_byte_a) == (1, 32 / 10 / math.log(2))
    assert (result.n_special_b, result.special_bits_per_byte_b) == (0, 0)
    assert "tokens without bytes  a 1, b 0  which cost a 4.617 and b 0 bits per byte" in result.summary()
    assert [(one.text, one.tokens_a, one.tokens_b) for one in result.b_worse + result.a_worse] == [
        ("the cat", ["the", " cat"], ["th", "e ca", "t"]),
        (" é", [" ", "\\xc3", "\\xa9", ""], [" \\xc3", "\\xa9"]),
    ]


def test_spans_with_a_token_that_is_not_scored_are_left_out_of_both():
    a = [(0, 2, 0, math.nan, False), (2, 4, 0, 1, True), (5, 6, 1, 2, True), (6, 8, 1, math.nan, False)]
    b = [(0, 1, 0, 1, True), (1, 2, 0, 2, True), (2, 4, 0, 4, True), (5, 6, 1, 8, True), (6, 7, 1, 16, True),
         (7, 8, 1, 32, True)]  # fmt: skip
    result = compared(a, b, b"abcd\nefg")
    assert (result.nll_a, result.nll_b, result.n_bytes) == (1 + 2, 4 + 8, 2 + 1)
    assert (result.n_spans_left_out, result.n_bytes_left_out, result.n_documents) == (2, 4, 2)
    assert result.columns()["kept"].tolist() == [False, True, True, False]
    assert np.isnan(result.columns()["difference"][[0, 3]]).all()


def test_white_space_that_a_model_drops_counts_as_bytes_of_both():
    # a has the spaces and the line's end in tokens; b drops them, between words and after the last one
    a = [(0, 2, 0, 1, True), (2, 3, 0, 2, True), (3, 5, 0, 4, True), (5, 6, 0, 8, True), (6, 8, 1, 16, True)]
    b = [(0, 2, 0, 1, True), (3, 5, 0, 2, True), (6, 8, 1, 4, True)]
    actual = spans(a, b, b"ab cd\nef")
    assert (actual.start.tolist(), actual.stop.tolist()) == ([0, 2, 3, 5, 6], [2, 3, 5, 6, 8])
    assert [side.tolist() for side in actual.nll] == [[1, 2, 4, 8, 16], [1, 0, 2, 0, 4]]
    result = compared(a, b, b"ab cd\nef")
    assert (result.n_bytes_without_token_a, result.n_bytes_without_token_b) == (0, 2)
    assert "white space in no token of b, which need not predict it" in result.summary()
    # the same if b's tokens hold the space before them, and if the line's end opens the second document of a
    b[1], a[3:] = (2, 5, 0, 2, True), [(5, 6, 1, 8, True), (6, 8, 1, 16, True)]
    actual = spans(a, b, b"ab cd\nef")
    assert (actual.start.tolist(), actual.stop.tolist()) == ([0, 2, 5, 6], [2, 5, 6, 8])
    assert [side.tolist() for side in actual.nll] == [[1, 6, 8, 16], [1, 2, 0, 4]]


def test_documents_without_a_span_that_both_scored_do_not_count():
    """So that with a single other one, spans are assumed independent."""
    a = [(0, 1, 0, 1, True), (1, 2, 0, 3, True), (2, 3, 1, math.nan, False)]
    b = [(0, 1, 0, 2, True), (1, 2, 0, 1, True), (2, 3, 1, 1, True)]
    result = compared(a, b, b"abc")
    assert (result.n_documents, result.is_clustered, result.n_bytes) == (1, False, 2)
    assert result.difference.stderr > 0


def test_white_space_between_documents_counts_once():
    a, b = [(0, 3, 0, 1, True), (3, 5, 1, 2, True)], [(0, 2, 0, 4, True), (2, 5, 1, 8, True)]
    for sides in (a, b), (b, a):
        assert compared(*sides, b"ab cd").n_bytes == 5


@st.composite
def texts(draw):
    """A text of documents, the bytes of each, and two models' tokens of it."""
    pieces = draw(st.lists(st.text("ab é🙂1+\n", min_size=1, max_size=8), min_size=1, max_size=4))
    at, bounds, text = 0, [], b""
    for piece in pieces:
        bounds.append((at, at + len(piece.encode())))
        text += piece.encode() + b"\n" * draw(st.integers(0, 1))
        at = len(text)
    return text, bounds, [draw(segmentation(bounds)) for _ in range(2)]


@st.composite
def segmentation(draw, bounds):
    """Rows of tokens: any cut of each document into bytes, with special tokens anywhere."""
    rows = []
    for document, (start, stop) in enumerate(bounds):
        cuts = sorted({start, stop, *draw(st.lists(st.integers(start, stop), max_size=6))})
        for first, last in itertools.pairwise(cuts):
            rows += [(first, first)] * draw(st.integers(0, 1))
            rows.append((first, last))
        rows += [(stop, stop)] * draw(st.integers(0, 1))
        rows = [(*row, document) if len(row) == 2 else row for row in rows]
    return [(*row, draw(FLOATS), draw(st.integers(0, 5)) > 0) for row in rows]


def spans_one_by_one(text, bounds, sides):
    """Spans and the tokens of both sides in each, by loops over bytes."""
    result = []
    for document, (start, stop) in enumerate(bounds):
        own = [[row for row in side if row[2] == document and (row[0] < row[1] or row[4])] for side in sides]
        edges = [{place for row in side if row[0] < row[1] for place in row[:2]} for side in own]
        cuts = [i for i in range(start, stop + 1) if {i} <= edges[0] & edges[1] and not is_inside(text, i)]
        cuts = sorted({start, *cuts, stop})
        for number, (first, last) in enumerate(itertools.pairwise(cuts)):
            chosen = [[row for row in side if first < row[1] <= last or (number == 0 and row[1] == start)]
                      for side in own]  # fmt: skip
            result.append((first, last, document, chosen))
    return result


def is_inside(text, i):
    """Whether a byte is not the first of its character."""
    return i < len(text) and 0x80 <= text[i] < 0xC0


@given(texts())
@settings(max_examples=150, deadline=None)
@pytest.mark.slow
def test_any_two_segmentations_give_spans_that_partition_the_text(case):
    text, bounds, sides = case
    result, expected = spans(*sides, text), spans_one_by_one(text, bounds, sides)
    assert [*zip(result.start.tolist(), result.stop.tolist(), result.document.tolist(), strict=True)] == [
        one[:3] for one in expected
    ]
    for start, stop in bounds:  # a partition: each byte is in one span
        assert result.n_bytes[(result.start >= start) & (result.stop <= stop)].sum() == stop - start
    for side in (0, 1):
        own = [one[3][side] for one in expected]
        assert np.diff(result.first[side]).tolist() == [*map(len, own)]
        is_kept = [all(row[4] for of_side in one[3] for row in of_side) for one in expected]
        assert result.kept.tolist() == is_kept
        sums = [
            math.fsum(row[3] for row in rows) if kept else math.nan for rows, kept in zip(own, is_kept, strict=True)
        ]
        assert np.array_equal(result.nll[side], sums, equal_nan=True)


@given(texts())
@settings(max_examples=100, deadline=None)
def test_totals_are_those_of_each_model_where_all_is_scored(case):
    text, _, sides = case
    sides = [[(*row[:4], True) for row in side] for side in sides]
    result = compared(*sides, text)
    for total, side in (result.nll_a, sides[0]), (result.nll_b, sides[1]):
        assert total == math.fsum(row[3] for row in side)
    exact = sum(Fraction(row[3]) for row in sides[1]) - sum(Fraction(row[3]) for row in sides[0])
    assert result.difference == float(exact / result.n_bytes) / math.log(2)
    assert sum(one.n_bytes for one in result.kinds) == result.n_bytes == result.n_bytes
    assert all("\ufffd" not in text for text in result.columns()["text"])


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("the", "words"), (" naïve", "words"), ("e\u0323\u0301", "words"), ("x1", "words"), ("a. b", "words"),
        ("12", "digits"), (" ٣٤", "digits"), (".5", "digits"), ("\x7f1", "digits"),
        (", ", "punctuation"), ("«", "punctuation"), ("...", "punctuation"),
        ("{}", "code symbols"), (" +=", "code symbols"), ("i++", "code symbols"), ("self._x", "words"),
        ("Δελτα", "other scripts"), ("日本", "other scripts"), ("🙂", "other scripts"), ("€", "other scripts"),
        (" ", "white space"), ("\n\t", "white space"), ("\u3000", "white space"),
    ],
)  # fmt: skip
def test_kinds_of_spans(text, kind):
    whole = f"é{text}🙂"  # bytes and characters have different places
    start = np.array([2])
    (number,) = kinds_of(whole, start, start + len(text.encode()))
    assert [*KINDS][number] == kind


@pytest.mark.parametrize(
    ("text", "script"),
    [(" the", "Latin"), ("«Да", "Cyrillic"), ("日本", "CJK"), ("ひ", "Hiragana"), ("मनु", "Devanagari"), ("12 🙂", "")],
)
def test_scripts_of_spans(text, script):
    rows = [(0, len(text.encode()), 0, 1, True)]
    assert compared(rows, rows, text.encode()).columns()["script"].tolist() == [script]


def test_table_of_spans_shows_white_space_and_bars():
    text = b"a\n | \tb"
    a = [(0, 1, 0, 1, True), (1, 8, 0, 1, True), (8, 8, 0, 1, True)]
    b = [(0, 1, 0, 1, True), (1, 2, 0, 9, True), (2, 3, 0, 9, True), (3, 4, 0, 9, True), (4, 8, 0, 9, True)]
    b[-1], a[1], a[2] = (4, 7, 0, 9, True), (1, 7, 0, 1, True), (7, 7, 0, 1, True)
    result = compared(a, b, text)
    assert result.b_worse[0].tokens_b == ["\n", " ", "|", " \tb"]
    assert "↵␣|␣⇥b     1    2.89   51.94  ↵␣|␣⇥b ∅  ↵ ␣ | ␣⇥b" in result.summary()


def test_difference_has_the_digits_of_its_error_and_a_plain_word():
    sides, size = of_documents(np.random.default_rng(5), [9, 8, 7, 6], 0)
    result = compared(*sides, b"a" * size)
    low, high = result.difference.interval
    assert low < 0 < high
    words = f"± {result.difference.stderr:.4f} bits per byte, 95 % interval {low:+.4f} to {high:+.4f}"
    assert f"{words}; these texts do not show which is better" in result.summary()
    assert f"{result.difference:+.4f} " in result.summary()
    for one in (result.bits_per_byte_a, result.ratio):
        assert np.log(one.interval[1] / one) == pytest.approx(np.log(one / one.interval[0]))
        assert one.interval[0] < one - one.stderr
    assert {result.ratio.unit, result.difference.unit, result.bits_per_byte_b.unit} == {"documents"}
    (kind,) = result.kinds
    assert kind.difference.interval == pytest.approx(result.difference.interval)
    assert f"{low:+.4f} to {high:+.4f}" in result.summary()


def of_documents(rng, lengths, tilt):
    """Rows of two models: tokens of two and of three bytes, with losses that a document shares."""
    sides, at = ([], []), 0
    for document, length in enumerate(lengths):
        shared = rng.normal()
        for rows, size, mean in (sides[0], 2, 2.0), (sides[1], 3, 3.0 * (1 + tilt)):
            cuts = [*range(0, 6 * length, size), 6 * length]
            for first, last in itertools.pairwise(cuts):
                noise = 0.3 * rng.normal() + (0.2 * size * shared if size == 3 else 0)
                rows.append((at + first, at + last, document, mean + noise, True))
        at += 6 * length
    return sides, at


@pytest.mark.slow
def test_difference_interval_holds_the_true_one_in_95_percent():
    rng, n_held, n = np.random.default_rng(5), 0, 400
    for _ in range(n):
        sides, size = of_documents(rng, rng.integers(3, 9, 6), 0.1)
        result = compared(*sides, b"a" * size, 0)
        low, high = result.difference.interval
        n_held += low <= 0.1 / math.log(2) <= high
        assert result.is_clustered
    assert 0.92 <= n_held / n <= 0.98


def test_with_one_document_spans_are_taken_as_independent():
    sides, size = of_documents(np.random.default_rng(5), [40], 0)
    result = compared(*sides, b"a" * size)
    sums = np.array(result.columns()["difference"]) / math.log(2) / 6
    assert not result.is_clustered
    assert result.difference.stderr == pytest.approx(sums.std(ddof=1) / math.sqrt(40), rel=1e-9)
    assert "spans, assumed independent" in result.summary()


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_losses_that_are_infinite_or_nan_stay_so(value):
    rows = [(0, 1, 0, 1, True), (1, 2, 1, 2, True)]
    others = [rows[0], (1, 2, 1, value, True)]
    result = compared(rows, others, b"ab")
    assert str(result.bits_per_byte_b) == str(result.difference) == str(value)
    assert result.b_worse[0].start == 1
    assert math.isnan(result.difference.stderr)
    assert math.isnan(result.ratio.stderr)
    result = compared(others, rows, b"ab")
    assert str(result.bits_per_byte_a) == str(value)
    assert str(-result.difference) == str(value)
    assert math.isnan(result.ratio)
    assert math.isnan(result.ratio.stderr)
    assert math.isnan(result.difference.stderr)
    assert math.isnan(compared(others, others, b"ab").difference)
