"""Estimates: floats with a standard error and an interval."""

import copy
import json
import math
import pickle

import numpy as np
import pytest

from tokenloss._core.estimate import Errors
from tokenloss._core.result import _same
from tokenloss.results import Estimate

ERRORS = Errors(0.25, (1.0, 2.0), "tokens")
ONE = Estimate(1.5, ERRORS)


def test_it_is_shown_hashed_and_compared_as_its_number():
    assert (repr(ONE), str(ONE), f"{ONE:.2f}", f"{ONE}") == ("1.5", "1.5", "1.50", "1.5")
    assert ONE == 1.5
    assert ONE != 1.25
    assert hash(ONE) == hash(1.5)
    assert {1.5: "found"}[ONE] == "found"
    assert isinstance(ONE, float)
    assert json.dumps({"loss": ONE}) == '{"loss": 1.5}'


@pytest.mark.parametrize(
    "result",
    [ONE + 1, 1 - ONE, ONE * 2, ONE / 3, ONE**2, -ONE, +ONE, abs(ONE), round(ONE, 1), math.exp(ONE), sum([ONE])],
)
def test_arithmetic_yields_plain_floats(result):
    assert type(result) is float


def test_errors_are_read():
    assert (ONE.stderr, ONE.interval, ONE.unit) == (0.25, (1.0, 2.0), "tokens")
    assert math.isnan(Estimate(1.5).stderr)
    assert all(map(math.isnan, Estimate(1.5).interval))
    assert Estimate(1.5).unit == ""


def test_a_function_of_errors_is_called_once_when_they_are_read():
    calls = []

    def errors():
        calls.append(1)
        return ERRORS

    one = Estimate(1.5, errors)
    assert one + 1 == 2.5
    assert not calls
    assert (one.stderr, one.interval, one.unit) == (0.25, (1.0, 2.0), "tokens")
    assert len(calls) == 1


def pickled(one):
    return pickle.loads(pickle.dumps(one))  # noqa: S301 - of our own bytes


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_copies_and_pickles_have_the_errors(copied):
    for one in (ONE, Estimate(1.5, lambda: ERRORS)):
        twin = copied(one)
        assert type(twin) is Estimate
        assert (float(twin), twin.stderr, twin.interval, twin.unit) == (1.5, 0.25, (1.0, 2.0), "tokens")


def test_pickles_contain_no_name_that_is_private():
    assert b"tokenloss.results" in pickle.dumps(ONE)
    assert b"tokenloss._" not in pickle.dumps(ONE)


def test_results_compare_values_errors_and_units():
    assert _same(ONE, Estimate(1.5, lambda: ERRORS))
    assert _same(Estimate(math.nan), Estimate(math.nan))
    for other in (
        Estimate(1.25, ERRORS),
        Estimate(1.5, ERRORS._replace(stderr=0.5)),
        Estimate(1.5, ERRORS._replace(interval=(1.0, 3.0))),
        Estimate(1.5, ERRORS._replace(unit="sequences")),
        1.5,
    ):
        assert not _same(ONE, other)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
def test_numpy_computes_as_with_a_plain_float(dtype):
    array = np.ones(3, dtype)
    for compute in (
        lambda x: array * x, lambda x: x * array, lambda x: array - x, lambda x: x / array, lambda x: array < x,
        lambda x: array[0] * x, lambda x: x * array[0], lambda x: np.maximum(array, x), lambda x: np.exp(x),
        lambda x: np.add.outer(array, x), lambda x: np.asarray(x), lambda x: np.array([x, x]),
    ):  # fmt: skip
        result, wanted = compute(ONE), compute(1.5)
        assert np.asarray(result).dtype == np.asarray(wanted).dtype
        np.testing.assert_array_equal(result, wanted)


def test_numpy_changes_arrays_in_place():
    array = np.ones(2, np.float32)
    array *= ONE
    np.multiply(array, ONE, out=array)
    assert array.tolist() == [2.25, 2.25]
