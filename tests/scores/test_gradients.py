"""cross_entropy_and_grad: the gradient equals the oracle's and central differences; rows without a gradient."""

import math

import numpy as np
import pytest
import reference
from arrays import (
    FLOATS,
    KINDS_OF_ROWS,
    LAYOUTS,
    OPTIONS,
    REDUCTIONS,
    assert_rounded_near,
    assert_same_bits,
    gradient_error,
    misaligned,
    problem,
    row_of_logits,
    scores_for,
    strided,
    swapped,
)

from tokenloss import cross_entropy, cross_entropy_and_grad

NAN, INF = math.nan, math.inf
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
each_kind = pytest.mark.parametrize("kind", ["ids", "distributions"])
each_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def gradient_of(logits, targets, **options):
    return cross_entropy_and_grad(logits, targets, **options)[1]


def assert_as_oracle(logits, targets, actual_logits=None, **options):
    """Compare the loss and the gradient with the oracle's; `actual_logits` are the same logits in another layout."""
    actual_logits = logits if actual_logits is None else actual_logits
    loss, gradient = cross_entropy_and_grad(actual_logits, targets, **options)
    assert_same_bits(loss, cross_entropy(actual_logits, targets, **options))
    with np.errstate(over="ignore"):
        expected = reference.cross_entropy_and_grad(logits, targets, **options)[1]
    mean = options.get("reduction", "mean") == "mean"
    divisor = reference.divisor_of_mean(logits, targets, **options) if mean else 1.0
    options.pop("reduction", None)
    error = gradient_error(logits, targets, expected, divisor, **options)
    assert_rounded_near(gradient, expected, error, logits.dtype)


# against the oracle


@each_dtype
@each_kind
@each_options
@each_reduction
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_with_label_smoothing_z_loss_logit_scale_softcap_weight(
    dtype, kind, options, reduction, weighted, rng
):
    for axis in (-1, 0):
        logits, targets, given = problem(rng, kind, dtype, axis, weighted)
        assert_as_oracle(logits, targets, reduction=reduction, **given, **options)


@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@each_kind
def test_gradient_in_every_dtype_layout_and_axis(dtype, layout, kind, rng):
    for axis in range(3):
        logits, targets, given = problem(rng, kind, dtype, axis)
        assert_as_oracle(logits, targets, LAYOUTS[layout](logits), **given)


@each_dtype
@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["smoothed_and_penalized"], OPTIONS["everything"]])
def test_gradient_at_every_length_of_row(dtype, options, rng):
    for classes in [1, 2, 63, 64, 65, 511, 512, 513, 4095, 4096, 4097]:
        logits, targets = scores_for("cross_entropy", rng, (2, classes), dtype), np.array([0, classes - 1])
        assert_as_oracle(logits, targets, **options)
        loss, gradient = cross_entropy_and_grad(logits, targets, **options)
        for layout in (strided, swapped, misaligned, np.asfortranarray):
            result = cross_entropy_and_grad(layout(logits), targets, **options)
            assert_same_bits([result[0]], [loss])
            assert_same_bits(result[1], gradient)


@each_dtype
@each_options
def test_gradient_for_distributions_with_weights_at_every_length_of_row(dtype, options, rng):
    for classes in [1, 17, 128, 129, 528, 1000]:
        logits, targets, given = problem(rng, "distributions", dtype, weighted=True, classes=classes)
        assert_as_oracle(logits, targets, **given, **options)
        expected = cross_entropy_and_grad(logits, targets, **given, **options)
        for layout in (strided, swapped, misaligned, np.asfortranarray):
            loss, gradient = cross_entropy_and_grad(layout(logits), layout(targets), **given, **options)
            assert_same_bits(loss, expected[0])
            assert_same_bits(gradient, expected[1])


@each_dtype
@pytest.mark.parametrize("scale", [2.0**130, 2.0**-160])
def test_gradient_for_distributions_with_sample_weights_beyond_floats(dtype, scale, rng):
    for rows, classes in [(1, 3), (20, 10), (20, 129)]:
        logits = scores_for("cross_entropy", rng, (rows, classes), dtype)
        targets = np.zeros((rows, classes), np.float32)
        targets[:, -1] = 0.5
        logits[:, -1] = -90
        gradient = gradient_of(logits, targets, sample_weight=np.full(rows, scale), reduction="sum")
        expected = reference.cross_entropy_and_grad(logits, targets, reduction="sum")[1]
        error = gradient_error(logits, targets, expected)
        assert_rounded_near(gradient, expected * scale, error * scale, logits.dtype)
        assert_as_oracle(logits, targets, weight=np.full(classes, scale))


@pytest.mark.parametrize(("dtype", "kind"), KINDS_OF_ROWS)
def test_accuracy_of_the_gradient_with_label_smoothing_and_softcap(dtype, kind, rng):
    for length in [1, 2, 65, 513, 4097]:
        row = row_of_logits(kind, rng, length, dtype)
        for target in {int(row.argmax()), int(row.argmin()), length - 1}:
            assert_as_oracle(row, target)
        assert_as_oracle(row, length // 2, label_smoothing=0.1)
        assert_as_oracle(row, length // 2, softcap=30.0)


@each_dtype
@pytest.mark.parametrize("length", [2, 100, 4500])
def test_gradient_of_near_certain_tokens_has_a_small_relative_error(dtype, length, rng):
    for lead in [1, 5, 10, 17, 20, 40, 80, 85, 90, 100, 200, 500]:
        row = rng.standard_normal(length).astype(dtype)
        target = int(rng.integers(length))
        row[target] = lead
        assert_as_oracle(row, target)
        if dtype.itemsize > 2 and lead <= 40:
            exact = reference.cross_entropy_and_grad(row, target)[1][target]
            assert gradient_of(row, target)[target] == pytest.approx(exact, rel=1e-6, abs=0)


# against central differences


@each_kind
@each_options
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_equals_central_differences(kind, options, reduction, rng):
    logits, targets, given = problem(rng, kind, np.float64, weighted=True, classes=4)
    given |= options | {"reduction": reduction}
    gradient = gradient_of(logits, targets, **given)
    for k in range(0, logits.size, 7):
        step = np.zeros(logits.size)
        step[k] = 1e-5
        higher, lower = (
            cross_entropy(logits + sign * step.reshape(logits.shape), targets, **given) for sign in (1, -1)
        )
        assert gradient.ravel()[k] == pytest.approx((higher - lower) / 2e-5, abs=2e-8)


# dtypes, shapes and containers


@each_dtype
@each_kind
@each_reduction
def test_gradient_has_the_dtype_and_shape_of_the_logits(dtype, kind, reduction, rng):
    logits, targets, given = problem(rng, kind, dtype)
    loss, gradient = cross_entropy_and_grad(logits, targets, reduction=reduction, **given)
    assert type(loss) is (np.ndarray if reduction == "none" else float)
    assert type(gradient) is np.ndarray
    assert gradient.dtype == dtype
    assert gradient.shape == logits.shape
    assert gradient.flags.writeable
    assert not np.shares_memory(gradient, logits)


@each_options
def test_gradient_with_reduction_none_is_that_of_the_sum(options, rng):
    logits, targets, given = problem(rng, "ids", np.float32, weighted=True)
    unreduced = gradient_of(logits, targets, reduction="none", **given, **options)
    assert_same_bits(unreduced, gradient_of(logits, targets, reduction="sum", **given, **options))


def test_gradient_of_lists_and_single_rows():
    loss, gradient = cross_entropy_and_grad([1, 0], 0)
    assert loss == cross_entropy([1, 0], 0)
    assert gradient.dtype == np.float64
    assert gradient.tolist() == pytest.approx([-1 / (1 + math.e), 1 / (1 + math.e)], rel=1e-15)
    assert gradient_of([5.0], 0).tolist() == [0.0]
    gradient = gradient_of(np.broadcast_to(np.float32(2), (4, 2)), [0, 1, 1, 0])
    expected = [[-0.125, 0.125], [0.125, -0.125], [0.125, -0.125], [-0.125, 0.125]]
    np.testing.assert_allclose(gradient, expected, rtol=1e-7)


# rows that where and ignore_index leave out, and rows whose loss is nan or infinite


@each_dtype
@each_options
def test_gradient_is_0_where_where_and_ignore_index_leave_rows_out(dtype, options, rng):
    logits = scores_for("cross_entropy", rng, (4, 70), dtype)
    expected = gradient_of(logits[2:], [3, 4], **options)
    logits[:2] = NAN
    for out in (None, np.full_like(logits, NAN), logits):
        where = [True, False, True, True]
        gradient = gradient_of(logits, [-100, 10**9, 3, 4], where=where, out=out, **options)
        assert_same_bits(gradient, [*np.zeros((2, 70)), *expected.astype(float)])


@each_reduction
@each_kind
def test_gradient_where_where_and_ignore_index_keep_nothing(reduction, kind):
    logits = np.full((2, 3), NAN, np.float32)
    targets = [-100, -100] if kind == "ids" else np.ones((2, 3))
    loss, gradient = cross_entropy_and_grad(logits, targets, where=kind == "ids", reduction=reduction)
    assert_same_bits(loss, {"mean": NAN, "sum": 0.0, "none": [0.0, 0.0]}[reduction])
    assert_same_bits(gradient, np.zeros((2, 3)))


@each_dtype
@each_kind
def test_gradient_of_rows_with_nan_or_infinity_is_nan(dtype, kind, rng, backend):
    for classes in (1, 2, 70, 600):
        logits = scores_for("cross_entropy", rng, (5, classes), dtype)
        targets = rng.integers(0, classes, 5) if kind == "ids" else np.ones((5, classes))
        expected = gradient_of(logits, targets, reduction="sum")
        logits[1, classes // 2], logits[2, classes - 1], logits[3] = NAN, INF, -INF
        gradient = gradient_of(logits, targets, reduction="sum")
        assert np.isnan(reference.float64(gradient[1:4])).all()
        assert_same_bits(gradient[[0, 4]], expected[[0, 4]])


@each_dtype
@each_kind
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF], ids=hex)
def test_gradient_with_a_weight_of_nan_is_nan_whatever_its_bits(dtype, kind, bits, backend):
    weight = np.ones(10, np.float32)
    weight.view(np.uint32)[3] = bits
    targets = np.full(20, 3) if kind == "ids" else np.full((20, 10), 0.1, dtype)
    gradient = gradient_of(np.zeros((20, 10), dtype), targets, weight=weight, label_smoothing=0.1)
    assert np.isnan(np.float64(gradient)).all()


def test_gradient_of_logits_of_minus_infinity_with_softcap():
    loss, gradient = cross_entropy_and_grad([0.0, -INF, 0.0], 1)
    assert loss == INF
    assert gradient.tolist() == [0.5, -1.0, 0.5]
    loss, gradient = cross_entropy_and_grad([0.0, -INF, 0.0], 0)
    assert gradient.tolist() == [-0.5, 0.0, 0.5]
    capped = 3 * math.tanh(2 / 3)  # of -inf nothing is left, with a softcap as without
    for row in ([0.0, -INF, 2.0], [0.0, 2.0]):
        loss, gradient = cross_entropy_and_grad(row, 0, softcap=3.0)
        at_target = -1 / (1 + math.exp(-capped))
        assert loss == pytest.approx(math.log1p(math.exp(capped)), rel=1e-15)
        at_other = -at_target * (1 - (capped / 3) ** 2)
        assert gradient[[0, -1]].tolist() == pytest.approx([at_target, at_other], rel=1e-14)
        assert not gradient[1:-1].any()
