"""softmax, log_softmax and logsumexp: equal the oracle for every dtype, layout, axis and kind of row."""

import math

import numpy as np
import pytest
import reference
from arrays import (
    BFLOAT16,
    FLOATS,
    KINDS_OF_ROWS,
    LAYOUTS,
    assert_near,
    assert_rounded_near,
    assert_same_bits,
    error_allowed,
    fails,
    misaligned,
    normalizer_error,
    probability_error,
    row_of_logits,
    scores_for,
    strided,
    swapped,
)

import tokenloss
from tokenloss import log_softmax, logsumexp, softmax, token_scores

NAN, INF = math.nan, math.inf
each_function = pytest.mark.parametrize("name", ["softmax", "log_softmax"])
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def assert_as_oracle(name, logits, actual_logits=None, axis=-1):
    """Compare a result with the oracle's; `actual_logits` are the same logits in another layout."""
    actual = getattr(tokenloss, name)(logits if actual_logits is None else actual_logits, axis=axis)
    expected = getattr(reference, name)(logits, axis=axis)
    if name == "softmax":
        relative, absolute = probability_error(logits, axis)
        error = relative * expected + absolute
    else:
        one_more_rounding = np.where(np.isfinite(expected), np.abs(expected), 0) * np.finfo(np.float32).eps / 2
        error = np.expand_dims(normalizer_error(logits, axis), axis) + (logits.dtype.itemsize < 8) * one_more_rounding
    assert_rounded_near(actual, expected, error, logits.dtype)


# against the oracle


@each_function
@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_softmax_in_every_dtype_layout_and_axis(name, dtype, layout, axis, rng):
    logits = scores_for("cross_entropy", rng, (6, 7, 8), dtype)
    assert_as_oracle(name, logits, LAYOUTS[layout](logits), axis)


@each_function
@each_dtype
def test_softmax_at_every_length_of_row(name, dtype, rng):
    for classes in [1, 2, 63, 64, 65, 127, 128, 129, 511, 512, 513, 2047, 2048, 2049, 4097, 8193]:
        logits = scores_for("cross_entropy", rng, (2, classes), dtype)
        for layout in (np.ascontiguousarray, np.asfortranarray, strided, swapped, misaligned):
            assert_as_oracle(name, logits, layout(logits))


@pytest.mark.parametrize(("dtype", "kind"), KINDS_OF_ROWS)
def test_accuracy_of_softmax_and_log_softmax(dtype, kind, rng):
    for length in [1, 2, 15, 16, 65, 513, 2048, 4097, 20001]:
        row = row_of_logits(kind, rng, length, dtype)
        for name in ("softmax", "log_softmax"):
            assert_as_oracle(name, row)


@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0, 30.0, 80.0, 1e3])
@pytest.mark.parametrize("leads", [0, 15])
def test_softmax_is_within_4_units_of_float32_and_log_softmax_within_2e_7(scale, leads, rng):
    for classes in (2, 5, 100, 513, 2048, 40_000):
        logits = scale * rng.standard_normal((200_000 // classes, classes))
        logits[:, 0] += leads
        logits = logits.astype(np.float32)
        shifted = logits.astype(float) - logits.max(-1, keepdims=True)
        exact = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        probs, log_probs = np.exp(exact), log_softmax(logits)
        assert np.all(abs(log_probs - exact) <= 2e-7 * np.maximum(1, abs(exact)))
        assert np.all(abs(softmax(logits) - probs) <= 5e-7 * probs + 5e-45)


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0, 300.0])
def test_softmax_and_log_softmax_of_float64_are_within_5e_15_of_the_oracle(scale, rng):
    for classes in (2, 70, 600):
        logits = scale * rng.standard_normal(classes) + rng.choice([0, 10 * scale])
        probs, log_probs = reference.softmax(logits), reference.log_softmax(logits)
        error = 5e-15 * np.maximum(1, np.maximum(abs(log_probs), abs(logsumexp(logits))))
        assert np.all(abs(log_softmax(logits) - log_probs) <= error)
        assert np.all(abs(softmax(logits) - probs) <= error * probs + 1e-323)


@pytest.mark.parametrize("dtype", FLOATS[2:], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0, 1e4])
def test_softmax_adds_up_to_one(dtype, scale, rng, backend):
    for classes in (1, 2, 100, 513, 5000, 70_001):
        logits = (scale * rng.standard_normal(classes)).astype(dtype)
        total = math.fsum(softmax(logits).astype(float))
        assert total == pytest.approx(1, rel=0, abs=1e-6 if dtype == np.float32 else 4e-15 * max(1, 4 * scale))


# infinities, subnormal probabilities, empty arrays, containers


def test_by_hand():
    assert softmax([0.0, math.log(3)]).tolist() == [pytest.approx(0.25, rel=1e-15), pytest.approx(0.75, rel=1e-15)]
    assert log_softmax([0, 0]).tolist() == [pytest.approx(-math.log(2), rel=1e-15)] * 2
    assert softmax([5]).tolist() == [pytest.approx(1, rel=1e-15)]
    assert log_softmax(np.float32([5])).tolist() == [pytest.approx(0, abs=2e-7)]
    assert softmax([-INF, 3.0]).tolist() == [0.0, pytest.approx(1, rel=1e-15)]
    assert log_softmax([-INF, 3.0]).tolist() == [-INF, pytest.approx(0, abs=1e-15)]
    assert softmax(np.full(131072, -65504, np.float16)).tolist() == [2.0**-17] * 131072


@each_dtype
def test_softmax_of_subnormal_probabilities(dtype, backend):
    lowest = {2: 18, 4: 104, 8: 746}[dtype.itemsize] if dtype != BFLOAT16 else 93
    for length in (2, 65, 600):
        row = np.linspace(-lowest, 0, length).astype(dtype)
        assert_as_oracle("softmax", row)
        assert_as_oracle("softmax", row[::-1])
        assert_as_oracle("log_softmax", row)
        probabilities = softmax(row).astype(float)
        assert (np.diff(probabilities) >= 0).all()
        if length > 2 and dtype.itemsize > 2:
            tiny = np.finfo(dtype).tiny
            assert ((probabilities > 0) & (probabilities < tiny)).any()


@each_function
@each_dtype
def test_softmax_of_rows_with_nan_or_infinity_is_nan(name, dtype, rng, backend):
    for classes in (1, 2, 65, 600, 4200):
        logits = scores_for("cross_entropy", rng, (5, classes), dtype)
        expected = getattr(tokenloss, name)(logits)
        for position in {0, classes // 2, classes - 1}:
            spoiled = logits.copy()
            spoiled[1, position], spoiled[2, position], spoiled[3] = NAN, INF, -INF
            actual = getattr(tokenloss, name)(spoiled)
            assert np.isnan(reference.float64(actual[1:4])).all()
            assert_same_bits(actual[[0, 4]], expected[[0, 4]])


@each_function
@each_dtype
def test_rows_among_far_ones_and_ones_without_a_softmax_have_the_bits_of_single_rows(name, dtype, rng, backend):
    function = getattr(tokenloss, name)
    for classes in (3, 16, 20, 39, 64, 100, 130, 700, 2048, 2049):
        logits = scores_for("cross_entropy", rng, (70, classes), dtype)
        logits[[1, 18, 30]] += np.asarray([300, -500, 5000], dtype)[:, np.newaxis]
        logits[33, 1], logits[40, 0], logits[60] = NAN, -INF, -INF
        expected = np.stack([function(row) for row in logits])
        for layout in (np.ascontiguousarray, strided, misaligned):
            assert_same_bits(function(layout(logits)), expected)
        assert_same_bits(function(logits, out=logits), expected)


@each_function
def test_softmax_of_lists_buffers_and_scalars(name):
    function = getattr(tokenloss, name)
    expected = function(np.array([1.0, 2.0]))
    assert_same_bits(function([1, 2]), expected)
    assert_same_bits(function(memoryview(np.array([1.0, 2.0]))), expected)
    with fails(ValueError, "logits", "scalar"):
        function(1.0)


@each_dtype
def test_log_softmax_equals_logits_less_logsumexp(dtype, rng):
    logits = scores_for("cross_entropy", rng, (4, 700), dtype)
    difference = logits.astype(float) - logsumexp(logits)[:, None]
    np.testing.assert_allclose(log_softmax(logits).astype(float), difference, rtol=2.0**-8, atol=5e-7)


# logsumexp


@each_dtype
@each_layout
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_logsumexp_in_every_dtype_layout_and_axis(dtype, layout, axis, rng):
    logits = scores_for("cross_entropy", rng, (6, 7, 8), dtype)
    actual = logsumexp(LAYOUTS[layout](logits), axis=axis)
    assert_near(actual, reference.logsumexp(logits, axis=axis), error_allowed("logsumexp", logits, axis=axis))


@pytest.mark.parametrize("level", [-14, -21, -25, -60, -100, -200])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_logsumexp_of_rows_that_begin_with_minus_infinity_is_as_near_as_of_others(level, dtype, rng, backend):
    """Until a block ends, all sums refer to the first logits, whatever these are."""
    rows = np.full((8, 4608), -np.inf, dtype)
    rows[:, 512:] = level + rng.random((8, 4096))
    of_others = reference.logsumexp(rows[:, 512:])
    for result in (logsumexp(rows), token_scores(rows, [600] * 8).logsumexp):
        assert_near(result, of_others, 6.4e-8)  # the error of random rows by the README of the kernels


def test_logsumexp_of_a_single_row_and_of_no_classes():
    assert logsumexp([1, 2]).shape == ()
    assert_same_bits(logsumexp(np.empty((2, 0))), [-np.inf, -np.inf])


AXES = [None, (0, 1), (0, 2), (-1, 0), (1, 2, 0), (1,), ()]


def along(x, axis):
    """Axes of an array for NumPy's functions."""
    return tuple(range(x.ndim)) if axis is None else axis


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", AXES)
def test_logsumexp_over_several_axes_with_keepdims(axis, layout, rng):
    logits = rng.normal(size=(3, 4, 5)) * 3
    exact = np.log(np.exp(logits.astype(np.longdouble)).sum(along(logits, axis), keepdims=True))
    kept = logsumexp(LAYOUTS[layout](logits), axis=axis, keepdims=True)
    assert kept.shape == exact.shape
    np.testing.assert_allclose(kept, exact.astype(np.float64), rtol=0, atol=4e-15 * 10)
    without = logsumexp(LAYOUTS[layout](logits), axis=axis)
    assert without.shape == exact.squeeze(along(logits, axis)).shape
    np.testing.assert_array_equal(without.reshape(kept.shape), kept)
    for out, keepdims in (np.empty(kept.shape), True), (np.empty(without.shape, order="F"), False):
        assert logsumexp(logits, axis=axis, out=out, keepdims=keepdims) is out
        np.testing.assert_array_equal(out.reshape(kept.shape), kept)


@each_dtype
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_over_several_axes_into_out(name, axis, dtype, rng):
    logits = (rng.normal(size=(3, 4, 5)) * 3).astype(dtype)
    wide = logits.astype(np.float64).astype(np.longdouble)
    exact = wide - np.log(np.exp(wide).sum(along(logits, axis), keepdims=True))
    exact = exact if name == "log_softmax" else np.exp(exact)
    error = {2: 2.0**-8, 4: 1e-6, 8: 1e-14}[logits.itemsize] * max(1.0, float(abs(exact).max()))
    function = getattr(tokenloss, name)
    for given in (logits, np.asfortranarray(logits), logits[::-1, :, ::-1]):
        result = function(given, axis=axis)
        assert (result.shape, result.dtype) == (logits.shape, logits.dtype)
        expected = exact[::-1, :, ::-1] if given.strides[0] < 0 else exact
        np.testing.assert_allclose(result.astype(np.float64), expected.astype(np.float64), rtol=0, atol=error)
        in_place = given.copy(order="K")
        assert function(in_place, axis=axis, out=in_place) is in_place
        np.testing.assert_array_equal(in_place, result)


def test_axis_none_of_a_number_and_of_nothing():
    assert logsumexp(2.0, axis=None) == pytest.approx(2.0, rel=1e-15)
    assert tokenloss.softmax(2.0, axis=None) == 1.0
    assert logsumexp(np.empty((2, 0)), axis=None) == -np.inf
    assert logsumexp(np.empty((2, 0)), axis=None, keepdims=True).shape == (1, 1)
    assert tokenloss.softmax(np.empty((0, 3)), axis=(0, 1)).shape == (0, 3)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_axis_that_is_named_twice_or_is_not_there(name):
    function = getattr(tokenloss, name)
    with pytest.raises(ValueError, match=r"axis is \(0, -2\); it must be a tuple that names each axis once"):
        function(np.ones((2, 3)), axis=(0, -2))
    with pytest.raises(ValueError, match="axis is 2, but logits has 2 dimensions"):
        function(np.ones((2, 3)), axis=(0, 2))
    with pytest.raises(ValueError, match="logits is a scalar"):
        function(1.0)
    with pytest.raises(TypeError, match="axis is '1'"):
        function(np.ones((2, 3)), axis=("1",))
