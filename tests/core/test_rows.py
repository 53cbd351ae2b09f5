"""Rows as data: lines of one result, tables of several, and where their errors come from."""

import math
from string import Formatter
from types import SimpleNamespace

import pytest

from tokenloss import LossMeter
from tokenloss._comparison import draft_tables, mismatch_tables, tables, text_comparison
from tokenloss._core.arguments import FURTHER_DIVERGENCES
from tokenloss._core.estimate import Estimate
from tokenloss._core.rows import Row, table, table_of_several
from tokenloss._output import divergence_page, loss_page
from tokenloss._statistics.tables import LENGTH_ROWS, LOSS_ROWS
from tokenloss.results import (
    BytesRate,
    Comparison,
    DraftAcceptance,
    Mismatch,
    ResponseComparison,
    SampleMetric,
    TextComparison,
)


def lines(rows, *sources):
    """The label, value and note of each row."""
    return [(*line, "")[:3] for line in table(rows, *sources).rows]


OF_CANDIDATES = {"name", "size", "n_not_finite"}
OF_DIVERGENCES = {form.format(name) for form in ("mean_{}", "{}_quantiles") for name in FURTHER_DIVERGENCES}
VALUES_OF_LOSSES = {"basis", "single", "few", "has_sequences", "bytes_note", "words_note", "words"}
VALUES_OF_TEXTS = {"difference_text", "ratio_text", "ends", "cannot_tell", "special", "left_out"}
ERRORS = "± {stderr:.2g}", "95 % interval {low:.3g} to {high:.3g}"


def fields_of(template):
    """The names that a template has between braces."""
    return {name for _, name, _, _ in Formatter().parse(template) if name}


def estimate(stderr=0.25, low=1.0, high=2.0):
    """A loss of 1.5 with these errors."""
    return Estimate(1.5, (stderr, (low, high), "tokens"))


@pytest.mark.parametrize("result", [{"loss": estimate()}, SimpleNamespace(loss=estimate())])
def test_a_line_has_the_errors_of_an_estimate(result):
    row = Row("loss", "loss", "{:.3f}", ERRORS, "nats")
    assert lines([row], result) == [("loss", "1.500", "± 0.25; 95 % interval 1 to 2")]


@pytest.mark.parametrize("loss", [estimate(math.nan, math.nan, math.nan), 1.5])
def test_notes_that_name_unknown_errors_are_left_out(loss):
    result = {"loss": loss, "loss_stderr": 0.5}
    assert lines([Row("loss", "loss", notes=ERRORS)], result) == [("loss", "1.5", "")]
    assert lines([Row("loss", "loss", notes=ERRORS, otherwise="nats")], result) == [("loss", "1.5", "nats")]


def test_one_unknown_note_leaves_the_others():
    result = {"loss": estimate(0.5, math.nan, math.nan), "unit": "nats"}
    assert lines([Row("loss", "loss", notes=(*ERRORS, "in {unit}"))], result) == [("loss", "1.5", "± 0.5; in nats")]


def test_lines_of_missing_none_and_false_fields_are_left_out():
    result = {"zero": 0, "none": None, "hidden": 3.0, "shown": 4.0, "flag": False}
    rows = [Row("a", "zero"), Row("b", "none"), Row("c", "missing"), Row("d", "hidden", when="flag")]
    rows += [Row("e", "shown", when="none"), Row("f", "shown", when="missing"), Row("g", "shown", when="zero")]
    assert [line[0] for line in lines(rows, result)] == ["a", "e", "f"]


def test_the_first_source_that_has_a_field_counts():
    result = SimpleNamespace(loss=1.0, count=7)
    row = Row("loss of {what}", "loss", notes=("of {count:,}",))
    assert lines([row], {"what": "tokens", "count": 1234}, result) == [("loss of tokens", "1", "of 1,234")]


@pytest.mark.parametrize(("text", "cell"), [("{:.1f %}", "12.3 %"), ("{:.1f%}", "12.3"), ("{:.3f}", "0.123")])
def test_formats_that_end_in_a_percent_sign_multiply(text, cell):
    assert lines([Row("share", "share", text)], {"share": 0.1234}) == [("share", cell, "")]


def test_quantiles_make_a_line_each_with_their_own_interval():
    result = {"kl_quantiles": {1.0: 3.0, 0.5: Estimate(1.0, (math.nan, (0.5, math.inf), "tokens"))}}
    row = Row("KLD", "kl_quantiles", "{:.1f}", ("{low} to {high}",), each=(1.0, 0.5))
    assert lines([row], result) == [("Maximum KLD", "3.0", ""), ("Median  KLD", "1.0", "0.5 to inf")]


def test_a_table_without_notes_has_two_columns():
    plain, noted = Row("a", "a"), Row("b", "b", notes=("of {a}",))
    assert table([plain], {"a": 1}).rows == [("a", "1")]
    assert table([plain, noted], {"a": 1, "b": 2}, title="both") == ([("a", "1", ""), ("b", "2", "of 1")], (), "both")


def test_a_table_of_several_keeps_unknown_errors_and_drops_columns_that_no_result_has():
    rows = [Row("name", "name"), Row("loss", "loss"), Row("±", "loss", "{stderr:.1f}"), Row("bytes", "n_bytes")]
    results = [({"name": "a", "loss": estimate(math.nan)},), ({"name": "b"}, {"loss": math.nan})]
    assert table_of_several(rows, results) == ([("a", "1.5", ""), ("b", "nan", "")], ("name", "loss", "±"), "")
    assert table_of_several(rows, results, keep_empty=False).heads == ("name", "loss")
    assert table_of_several([Row("loss", "loss", "{known}")], results).rows == [("1.5",), ("",)]


@pytest.mark.parametrize(
    ("rows", "result", "values"),
    [
        (sum(tables._SCORE_ROWS.values(), ()), Comparison, {"n_not_finite", "draws_stderr", "tail"}),
        (sum(tables._RESPONSE_ROWS.values(), ()), ResponseComparison, {"known_note", "has_targets"}),
        (tables._COLUMNS["kl"], Comparison, OF_CANDIDATES),
        (tables._COLUMNS["kl_bound"], ResponseComparison, OF_CANDIDATES | {"finite_mean_kl", "has_targets"}),
        (divergence_page._ROWS, Comparison, {"quantity", "by", "mean", "quantile", "finite_note"}),
        (mismatch_tables._ROWS, Mismatch, {"least", "most"}),
        (draft_tables._ROWS, DraftAcceptance, {"break_even", "best_note"}),
        (draft_tables._COLUMNS, DraftAcceptance, {"name", "size", *(f"tokens_{k}" for k in range(1, 9))}),
        (text_comparison._ROWS, TextComparison, VALUES_OF_TEXTS),
        (text_comparison._KINDS, BytesRate, set()),
        (tables._DIFFERENCES + tables._RATIOS + tables._FLIPS, SampleMetric, set()),
        (LOSS_ROWS + LENGTH_ROWS, LossMeter, VALUES_OF_LOSSES),
        (loss_page._ROWS, LossMeter, {"basis", "accuracy", "greedy_note"}),
    ],
)  # fmt: skip
def test_rows_name_fields_that_their_results_have(rows, result, values):
    """A line whose field is misspelled would be left out without a word."""
    known = {*getattr(result, "__dataclass_fields__", ()), *dir(result)} | values | OF_DIVERGENCES
    for row in rows:
        names = {name for text in (row.label, row.text, row.otherwise, *row.notes) for name in fields_of(text)}
        names |= {row.field, row.when} - {""}
        names = {name.partition(".")[0] for name in names}
        assert names - {"stderr", "low", "high", "known"} <= known, row
