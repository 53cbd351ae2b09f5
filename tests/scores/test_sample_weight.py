"""sample_weight: a weight for each position, in the losses, their gradient, of projections and of Dask arrays."""

import functools
import math

import ml_dtypes
import numpy as np
import pytest
import reference
from arrays import (
    FLOATS,
    LAYOUTS,
    LOSSES,
    OPTIONS,
    REDUCTIONS,
    assert_near,
    assert_rounded_near,
    assert_same_bits,
    call,
    distributions,
    error_allowed,
    fails,
    gradient_error,
    problem,
    scores_for,
)

import tokenloss
from tokenloss import (
    LossMeter,
    cross_entropy,
    cross_entropy_and_grad,
    cross_entropy_loss,
    linear_cross_entropy,
    sequence_losses,
)

each_loss = pytest.mark.parametrize("loss", LOSSES)
each_kind = pytest.mark.parametrize("kind", ["ids", "distributions"])
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
each_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
weighted = pytest.mark.parametrize("weighted", [False, True])
LENGTHS = [2, 40, 600, 5000]


def weights_of(rng, shape):
    """Weights of which some are 0, and sizes differ."""
    return rng.random(shape) * 10.0 ** rng.integers(-3, 3, shape) * (rng.random(shape) > 0.2)


def targets_for(rng, kind, shape):
    return rng.integers(0, shape[-1], shape[:-1]) if kind == "ids" else distributions(rng, shape)


def assert_weighs(function, weights, divisors):
    """Compare each reduction with the losses without sample weights, times them; `divisors` are as without them."""
    losses = function(reduction="none") * weights
    divisor = math.fsum((divisors * weights).ravel())
    total = reference.exact_sum(losses.ravel())
    assert_same_bits(function(reduction="none", sample_weight=weights), losses)
    assert_same_bits(function(reduction="sum", sample_weight=weights), total)
    assert_same_bits(function(reduction="mean", sample_weight=weights), reference.divide(total, divisor))


# against the oracle


@each_loss
@each_dtype
@each_kind
def test_sample_weight_multiplies_the_losses_of_the_oracle(loss, dtype, kind, rng):
    for axis in range(3):
        shape = np.insert([5, 6], axis, 9)
        scores = scores_for(loss, rng, shape, dtype, axis)
        targets = rng.integers(0, 9, (5, 6)) if kind == "ids" else distributions(rng, shape, axis)
        weights, given = weights_of(rng, (5, 6)), {"axis": axis, "where": rng.random((5, 6)) > 0.2}
        losses = call(tokenloss, loss, scores, targets, sample_weight=weights, reduction="none", **given)
        expected = weights * call(reference, loss, scores, targets, reduction="none", **given)
        assert_near(losses, expected, weights * error_allowed(loss, scores, targets, axis), 2)
        assert ((losses == 0) == (expected == 0)).all()


@each_options
@each_dtype
@each_kind
@weighted
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sample_weight_multiplies_the_gradients_of_the_oracle(options, dtype, kind, weighted, reduction, rng):
    for axis in (-1, 0):
        logits, targets, given = problem(rng, kind, dtype, axis, weighted)
        weights, options = weights_of(rng, (5, 6)), options | given
        loss, gradient = cross_entropy_and_grad(logits, targets, sample_weight=weights, reduction=reduction, **options)
        assert_same_bits(loss, cross_entropy(logits, targets, sample_weight=weights, reduction=reduction, **options))
        expected = reference.cross_entropy_and_grad(logits, targets, reduction="none", **options)[1]
        divisor = 1.0
        if reduction == "mean":
            kept = given["where"] if kind == "distributions" else given["where"] & (targets >= 0)
            of_class = given["weight"][targets.clip(0)] if kind == "ids" and weighted else np.ones((5, 6))
            divisor = math.fsum((of_class * weights)[kept])
            if kind == "ids" and weighted and "z_loss" in options:  # whose mean is that without class weights
                without = reference.cross_entropy_and_grad(
                    logits, targets, reduction="none", **(options | {"z_loss": 0.0})
                )[1]
                expected = without + (expected - without) * (divisor / math.fsum(weights[kept]))
        expected = expected * np.expand_dims(weights, axis) / divisor
        error = gradient_error(logits, targets, expected, divisor / np.where(weights > 0, weights, 1), **options)
        assert_rounded_near(gradient, expected, error, logits.dtype)


@pytest.mark.parametrize("length", [5, 700])
@each_kind
def test_gradient_of_weighted_rows_of_any_length_is_that_of_each_times_its_sample_weight(length, kind, rng):
    logits, weights = 3 * rng.standard_normal((150, length)), weights_of(rng, 150)
    targets, total = targets_for(rng, kind, logits.shape), math.fsum(weights)
    for options in OPTIONS.values():
        for array in (logits, np.asfortranarray(logits)):
            expected = cross_entropy_and_grad(array, targets, reduction="none", **options)[1] * weights[:, None] / total
            gradient = cross_entropy_and_grad(array, targets, sample_weight=weights, **options)[1]
            assert (abs(gradient - expected) <= 1e-13 * abs(expected) + 1e-15 * weights[:, None] / total).all()


# sums are exact


@each_loss
@each_kind
@weighted
@pytest.mark.parametrize("length", LENGTHS)
def test_reductions_with_sample_weight_are_exact(loss, kind, weighted, length, rng):
    shape = (3, 50, length)
    weights, of_class = weights_of(rng, shape[:-1]), rng.random(length) if weighted else None
    scores, targets = scores_for(loss, rng, shape, np.float32), targets_for(rng, kind, shape)
    divisors = of_class[targets] if weighted and kind == "ids" else np.ones(shape[:-1])
    for layout in ("c", "class_first_in_memory", "swapped_and_strided"):
        given = LAYOUTS[layout](scores), targets
        assert_weighs(functools.partial(call, tokenloss, loss, *given, weight=of_class), weights, divisors)


@each_options
@each_kind
def test_reductions_with_sample_weight_and_label_smoothing_z_loss_logit_scale_softcap(options, kind, rng):
    for length in LENGTHS:
        logits, weights = 3 * rng.standard_normal((70, length)), weights_of(rng, 70)
        targets = targets_for(rng, kind, logits.shape)
        assert_weighs(functools.partial(cross_entropy, logits, targets, **options), weights, np.ones(70))


def test_sample_weight_counts_rows_without_mass_and_rows_that_overflow():
    shares, logits = np.array([[0, 0, 0], [0.5, 0.25, 0.25]]), np.array([[1e308, 1e308, 9e307], [1, 2, 3]])
    weights = np.array([3, 0.3])
    for targets in (shares, np.array([0, 1])):
        assert_weighs(functools.partial(cross_entropy, logits, targets, logit_scale=2.5), weights, np.ones(2))
    assert_weighs(functools.partial(cross_entropy_loss, shares, np.full((2, 3), 0.2)), weights, np.ones(2))


@each_kind
@pytest.mark.parametrize("rows", [7, 60])
def test_linear_cross_entropy_with_sample_weight(kind, rows, rng):
    hidden, matrix, weights = rng.standard_normal((rows, 8)), rng.standard_normal((3000, 8)), weights_of(rng, rows)
    targets, of_class = targets_for(rng, kind, (rows, 3000)), rng.random(3000)
    each = linear_cross_entropy(hidden, matrix, targets, weight=of_class, reduction="none") * weights
    hidden[weights == 0] = np.nan  # never read
    given = {"weight": of_class, "sample_weight": weights}
    losses = linear_cross_entropy(hidden, matrix, targets, reduction="none", **given)
    np.testing.assert_allclose(losses, each, rtol=1e-12)  # the products are of other shapes
    divisor = math.fsum((of_class[targets] if kind == "ids" else 1) * weights)
    assert_same_bits(linear_cross_entropy(hidden, matrix, targets, **given), math.fsum(losses) / divisor)


# weights of 0 and 1, and those in other forms


@each_kind
@each_options
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sample_weight_of_ones_and_of_a_mask_have_the_bits_of_none_and_of_where(kind, options, reduction, rng):
    for length in (3, 600):
        logits, where = rng.standard_normal((130, length)).astype(np.float32), rng.random(130) > 0.4
        targets, given = targets_for(rng, kind, logits.shape), options | {"reduction": reduction}
        given["weight"] = rng.random(length)
        for array in (logits, np.asfortranarray(logits)):
            plain, ones = (cross_entropy_and_grad(array, targets, sample_weight=w, **given) for w in (None, 1))
            masked = cross_entropy_and_grad(array, targets, where=where, **given)
            weighed = cross_entropy_and_grad(array, targets, sample_weight=where.astype(float), **given)
            for actual, expected in zip([*ones, *weighed], [*plain, *masked], strict=True):
                assert_same_bits(actual, expected)


@each_loss
@each_kind
@pytest.mark.parametrize("length", LENGTHS)
def test_rows_of_sample_weight_zero_may_hold_anything(loss, kind, length, rng):
    scores, weights = scores_for(loss, rng, (70, length), np.float32), weights_of(rng, 70)
    targets, where = targets_for(rng, kind, scores.shape), rng.random(70) > 0.2
    given = {"where": where, "sample_weight": weights}
    expected = [call(tokenloss, loss, scores, targets, reduction=reduction, **given) for reduction in REDUCTIONS]
    scores[weights == 0] = 99 if loss == "nll_loss" else np.nan
    targets[weights == 0] = 10**9
    for reduction, value in zip(REDUCTIONS, expected, strict=True):
        assert_same_bits(call(tokenloss, loss, scores, targets, reduction=reduction, **given), value)
    for reduction, value in (("mean", math.nan), ("sum", 0.0), ("none", np.zeros(70))):
        assert_same_bits(call(tokenloss, loss, scores, targets, sample_weight=0, reduction=reduction), value)


@each_loss
def test_sample_weight_of_every_dtype_and_layout_is_broadcast_over_the_batch(loss, rng):
    scores, targets = scores_for(loss, rng, (5, 6, 9), np.float32), rng.integers(0, 9, (5, 6))
    for shape in ((), (6,), (1, 6), (5, 1), (5, 6)):
        weights = rng.integers(0, 4, shape).astype(np.float64)
        whole = np.broadcast_to(weights, (5, 6)).copy()
        forms = [weights.astype(dtype) for dtype in (*FLOATS, np.int8, np.uint64, ">f4", ">i2")]
        forms += [layout(weights) for layout in LAYOUTS.values()] + [weights.tolist()]
        for reduction in REDUCTIONS:
            expected = call(tokenloss, loss, scores, targets, sample_weight=whole, reduction=reduction)
            for form in forms:
                actual = call(tokenloss, loss, scores, targets, sample_weight=form, reduction=reduction)
                assert_same_bits(actual, expected, f"{np.asarray(form).dtype} {shape}")
    masks = whole > 1, (whole > 1).astype(ml_dtypes.bfloat16)
    assert_same_bits(*(call(tokenloss, loss, scores, targets, sample_weight=mask) for mask in masks))


@pytest.mark.parametrize("length", [3, 700])
@each_kind
def test_sample_weight_gives_the_same_bits_for_any_number_of_workers(length, kind, rng, backend):
    rows = 1 << 20 // length
    logits = rng.standard_normal((min(rows, 40000), length)).astype(np.float32)
    targets, weights = targets_for(rng, kind, logits.shape), weights_of(rng, len(logits))
    loss, gradient = cross_entropy_and_grad(logits, targets, sample_weight=weights, workers=1)
    for workers in (2, 3):
        again, same = cross_entropy_and_grad(logits, targets, sample_weight=weights, workers=workers)
        assert (again, same.tobytes()) == (loss, gradient.tobytes())
        assert cross_entropy(logits, targets, sample_weight=weights, workers=workers) == loss


# other libraries


def test_log_loss_of_scikit_learn_with_sample_weight(rng):
    log_loss = pytest.importorskip("sklearn.metrics").log_loss
    probs, targets = scores_for("cross_entropy_loss", rng, (200, 4), np.float64), rng.integers(0, 4, 200)
    probs /= probs.sum(-1, keepdims=True)
    weights = weights_of(rng, 200)
    for normalize, reduction in ((True, "mean"), (False, "sum")):
        expected = log_loss(targets, probs, sample_weight=weights, normalize=normalize, labels=range(4))
        actual = cross_entropy_loss(targets, probs, sample_weight=weights, reduction=reduction)
        assert actual == pytest.approx(expected, rel=1e-12)


@each_kind
@weighted
@pytest.mark.parametrize("chunks", [(2, 3, 4), (5, 6, 9)])
def test_dask_cross_entropy_with_sample_weight_has_the_bits_of_one_machine(kind, weighted, chunks, rng):
    da = pytest.importorskip("dask.array")
    from tokenloss.dask import cross_entropy as lazy

    logits, targets, given = problem(rng, kind, np.float32, weighted=weighted)
    array, weights = da.from_array(logits, chunks=chunks), weights_of(rng, (5, 6)).astype(np.float32)
    weights[3] = 0
    for form in (weights, weights[:, :1], da.from_array(weights, chunks=4)):
        targets[3] = 10**9  # left out
        for reduction in REDUCTIONS:
            result = lazy(array, targets, sample_weight=form, reduction=reduction, **given).compute()
            whole = np.broadcast_to(np.asarray(form), (5, 6))
            assert_same_bits(result, cross_entropy(logits, targets, sample_weight=whole, reduction=reduction, **given))
    bad = da.from_array(weights - 60 * (np.arange(6) == 5), chunks=(2, 3))
    with fails(ValueError, "in the block at [", "sample_weight[", "from 0 to"):
        lazy(array, targets, sample_weight=bad, **given).compute()


@each_kind
def test_dask_score_with_sample_weight_is_the_meter_of_one_machine(kind, rng):
    da = pytest.importorskip("dask.array")
    from tokenloss.dask import score

    logits, targets, given = problem(rng, kind, np.float32)
    weights, where = weights_of(rng, (5, 6)), given["where"]
    losses = cross_entropy(logits, targets, where=where, reduction="none")
    expected = LossMeter()
    kept = where if kind != "ids" else where & (targets >= 0)
    expected.update(sequence_losses(losses, where=kept, sample_weight=weights))
    for form in (weights, da.from_array(weights, chunks=2)):
        assert score(da.from_array(logits, chunks=(2, 3, 4)), targets, where=where, sample_weight=form) == expected


# errors


@each_loss
def test_sample_weight_out_of_range(loss):
    for value in (-1e-300, -1, 1.1e100, math.nan, math.inf, -math.inf):
        for weights, index in (([[1, 2, 3], [4, value, 6]], "[1, 1]"), ([[value], [1]], "[0, 0]"), (value, "")):
            with fails(ValueError, f"sample_weight{index} is", value, "from 0 to 1e100"):
                call(tokenloss, loss, np.full((2, 3, 4), 0.5), np.zeros((2, 3), int), sample_weight=weights)


@each_loss
def test_sample_weight_of_wrong_shape_or_dtype(loss):
    for shape in [(2,), (3, 2), (2, 3, 1), (1, 2, 3), (0,)]:
        for weights in (np.ones(shape), np.broadcast_to(1.0, shape)):
            with fails(ValueError, "sample_weight", shape, (2, 3), "broadcast"):
                call(tokenloss, loss, np.full((2, 3, 4), 0.5), np.zeros((2, 3), int), sample_weight=weights)
    for weights in (np.ones(3, complex), np.ones(3, object), ["a", "b", "c"], "1", np.ones(3, "m8[s]")):
        with fails(TypeError, "sample_weight", np.asarray(weights).dtype, "float"):
            call(tokenloss, loss, np.full((2, 3, 4), 0.5), np.zeros((2, 3), int), sample_weight=weights)


def test_gradient_over_its_sample_weight_is_refused():
    logits = np.ones((3, 4))
    with fails(ValueError, "out", "sample_weight"):
        cross_entropy_and_grad(np.zeros((3, 4)), [0, 1, 2], sample_weight=logits[:, 0], out=logits)
