"""Rows as data: lines of one result, tables of several, and where their errors come from."""

import math
from types import SimpleNamespace

import pytest

from tokenloss._core.estimate import Estimate
from tokenloss._core.rows import Row, table, table_of_several


def lines(rows, *sources):
    """The label, value and note of each row."""
    return [(*line, "")[:3] for line in table(rows, *sources).rows]


ERRORS = "± {stderr:.2g}", "95 % interval {low:.3g} to {high:.3g}"


def estimates(stderr=0.25, interval=(1.0, 2.0)):
    """One result with estimates, and the same with fields of their own, as an object and as a mapping."""
    fields = {"loss": 1.5, "loss_stderr": stderr, "loss_interval": interval}
    return [{"loss": Estimate(1.5, (stderr, interval, "tokens"))}, fields, SimpleNamespace(**fields)]


@pytest.mark.parametrize("result", estimates())
def test_a_line_has_the_errors_of_an_estimate_or_of_fields_beside_the_value(result):
    row = Row("loss", "loss", "{:.3f}", ERRORS, "nats")
    assert lines([row], result) == [("loss", "1.500", "± 0.25; 95 % interval 1 to 2")]


@pytest.mark.parametrize("result", estimates(math.nan, (math.nan, math.nan)))
def test_notes_that_name_unknown_errors_are_left_out(result):
    assert lines([Row("loss", "loss", notes=ERRORS)], result) == [("loss", "1.5", "")]
    assert lines([Row("loss", "loss", notes=ERRORS, otherwise="nats")], result) == [("loss", "1.5", "nats")]


def test_one_unknown_note_leaves_the_others():
    result = {"loss": 2.0, "loss_stderr": 0.5, "loss_interval": (math.nan, math.nan), "unit": "nats"}
    assert lines([Row("loss", "loss", notes=(*ERRORS, "in {unit}"))], result) == [("loss", "2", "± 0.5; in nats")]


def test_lines_of_missing_none_and_false_fields_are_left_out():
    result = {"zero": 0, "none": None, "hidden": 3.0, "shown": 4.0, "flag": False}
    rows = [Row("a", "zero"), Row("b", "none"), Row("c", "missing"), Row("d", "hidden", when="flag")]
    rows += [Row("e", "shown", when="none"), Row("f", "shown", when="missing"), Row("g", "shown", when="zero")]
    assert [line[0] for line in lines(rows, result)] == ["a", "e", "f"]


def test_the_first_source_that_has_a_field_counts():
    found = SimpleNamespace(loss=1.0, count=7)
    row = Row("loss of {what}", "loss", notes=("of {count:,}",))
    assert lines([row], {"what": "tokens", "count": 1234}, found) == [("loss of tokens", "1", "of 1,234")]


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
    results = [({"name": "a", "loss": 1.0, "loss_stderr": math.nan},), ({"name": "b"}, {"loss": math.nan})]
    assert table_of_several(rows, results) == ([("a", "1", ""), ("b", "nan", "")], ("name", "loss", "±"), "")
    assert table_of_several(rows, results, keep_empty=False).heads == ("name", "loss")
    assert table_of_several([Row("loss", "loss", "{known}")], results).rows == [("1.0",), ("",)]
