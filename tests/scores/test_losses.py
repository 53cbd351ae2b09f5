"""The losses: the tutorial's numbers, and equality with the oracle for every dtype, layout, axis and kind of row."""

import itertools
import json
import math

import numpy as np
import pytest
import reference
from arrays import (
    FLOATS,
    INTEGERS,
    KINDS_OF_ROWS,
    LAYOUTS,
    LOSSES,
    assert_near,
    assert_same_bits,
    backwards,
    call,
    distributions,
    error_allowed,
    misaligned,
    row_of_logits,
    scores_for,
    strided,
    swapped,
)

import tokenloss
from tokenloss import cross_entropy, cross_entropy_and_grad, cross_entropy_loss, logsumexp, nll_loss

each_loss = pytest.mark.parametrize("loss", LOSSES)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def assert_as_oracle(loss, scores, targets, actual_scores=None, actual_targets=None, axis=-1):
    """Compare losses with the oracle's; `actual_scores` and `actual_targets` are the same numbers in another layout."""
    actual = call(
        tokenloss,
        loss,
        scores if actual_scores is None else actual_scores,
        targets if actual_targets is None else actual_targets,
        axis=axis,
        reduction="none",
    )
    expected = call(reference, loss, scores, targets, axis=axis, reduction="none")
    assert_near(actual, expected, error_allowed(loss, scores, targets, axis))


# the tutorial


def test_tutorial_single_prediction():
    assert cross_entropy_loss([1, 0, 0], [0.7, 0.2, 0.1]) == pytest.approx(0.3567, abs=5e-5)
    assert cross_entropy_loss([1, 0, 0], [0.1, 0.8, 0.1]) == pytest.approx(2.3026, abs=5e-5)


def test_tutorial_mean_of_three_losses():
    probabilities = np.exp([[-0.36, -5, -5], [-5, -0.02, -5], [-5, -5, -0.22]])
    assert cross_entropy_loss([0, 1, 2], probabilities) == pytest.approx(0.20, abs=1e-12)
    assert cross_entropy_loss(np.eye(3, dtype=int), probabilities) == pytest.approx(0.20, abs=1e-12)


def test_tutorial_numpy_formula(rng):
    y_pred = scores_for("cross_entropy_loss", rng, (8, 20), np.float64)
    y_true = np.eye(20)[rng.integers(0, 20, 8)]
    formula = -np.sum(y_true * np.log(np.clip(y_pred, 1e-12, 1 - 1e-12)), axis=-1)
    np.testing.assert_allclose(cross_entropy_loss(y_true, y_pred, reduction="none"), formula, rtol=1e-15)
    assert cross_entropy_loss(y_true, y_pred) == pytest.approx(formula.mean(), rel=1e-15)


def test_near_certain_token_keeps_its_digits():
    assert f"{cross_entropy([17.0, 0.0], 0):.3g}" == "4.14e-08"
    assert f"{cross_entropy(np.float16([17, 0]), 0):.3g}" == "4.14e-08"


def test_float16_zeros_of_a_large_vocabulary():
    logits = np.zeros((1, 131072), np.float16)
    assert cross_entropy(logits, [7]) == pytest.approx(math.log(131072), abs=2e-8)
    assert logsumexp(logits)[0] == pytest.approx(math.log(131072), abs=2e-8)


# results


@each_loss
def test_reduction_mean_and_sum_return_python_floats(loss, rng):
    scores = scores_for(loss, rng, (3, 5), np.float32)
    for reduction in ("mean", "sum"):
        assert type(call(tokenloss, loss, scores, [0, 1, 2], reduction=reduction)) is float


@each_loss
@each_dtype
def test_reduction_none_returns_a_float64_array_of_the_shape_of_the_batch(loss, dtype, rng):
    for shape in [(1, 5), (3, 5), (2, 3, 5), (0, 5)]:
        scores = scores_for(loss, rng, shape, dtype)
        losses = call(tokenloss, loss, scores, np.zeros(shape[:-1], int), reduction="none")
        assert type(losses) is np.ndarray
        assert losses.dtype == np.float64
        assert losses.shape == shape[:-1]
        assert losses.flags.writeable


@each_loss
def test_reduction_is_mean_by_default(loss, rng):
    scores = scores_for(loss, rng, (3, 5), np.float32)
    assert call(tokenloss, loss, scores, [0, 1, 2]) == call(tokenloss, loss, scores, [0, 1, 2], reduction="mean")


# dtypes and layouts


@each_loss
@each_dtype
@each_layout
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_class_ids_in_every_dtype_layout_and_axis(loss, dtype, layout, axis, rng):
    scores = scores_for(loss, rng, (6, 7, 8), dtype, axis)
    targets = rng.integers(0, scores.shape[axis], np.delete(scores.shape, axis))
    assert_as_oracle(loss, scores, targets, LAYOUTS[layout](scores), axis=axis)


@each_loss
@each_dtype
@each_layout
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_distributions_in_every_dtype_layout_and_axis(loss, dtype, layout, axis, rng):
    scores = scores_for(loss, rng, (6, 7, 8), dtype, axis)
    targets = distributions(rng, scores.shape, axis)
    assert_as_oracle(loss, scores, targets, LAYOUTS[layout](scores), LAYOUTS[layout](targets), axis=axis)


@each_loss
@each_dtype
@pytest.mark.parametrize("classes", [1, 2, 63, 64, 65, 511, 512, 513, 1536, 4095, 4096, 4097, 9000])
def test_every_length_of_row_in_every_layout(loss, dtype, classes, rng):
    scores = scores_for(loss, rng, (2, classes), dtype)
    for targets in ([0, classes - 1], rng.integers(0, classes, 2)):
        for layout in (np.ascontiguousarray, strided, backwards, swapped, misaligned):
            assert_as_oracle(loss, scores, targets, layout(scores))


@each_loss
@pytest.mark.parametrize("ndim", [1, 2, 3, 4, 5])
def test_every_axis_of_one_to_five_dimensions(loss, ndim, rng):
    shape = (2, 3, 4, 3, 2)[:ndim]
    for axis in range(-ndim, ndim):
        scores = scores_for(loss, rng, shape, np.float32, axis)
        targets = rng.integers(0, shape[axis], np.delete(shape, axis))
        assert_as_oracle(loss, scores, targets, axis=axis)
        assert_as_oracle(loss, scores, distributions(rng, shape, axis), axis=axis)


@each_loss
@each_dtype
def test_broadcast_arrays(loss, dtype, rng):
    row = scores_for(loss, rng, (9,), dtype)
    scores = np.broadcast_to(row, (4, 9))
    targets = np.broadcast_to(rng.integers(0, 9), (4,))
    assert_as_oracle(loss, scores, targets)
    one_score = np.broadcast_to(row[:1], (4, 9))
    assert_as_oracle(loss, one_score, targets)
    assert_as_oracle(loss, one_score, np.broadcast_to(np.float32(1 / 9), (4, 9)))


# targets


@each_loss
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_class_ids_of_every_integer_dtype(loss, dtype, rng):
    scores = scores_for(loss, rng, (5, 6, 100), np.float32)
    targets = rng.integers(0, 100, (5, 6)).astype(dtype)
    for layout in LAYOUTS.values():
        assert_as_oracle(loss, scores, targets, None, layout(targets))


@each_loss
@pytest.mark.parametrize("dtype", [np.dtype(bool), *INTEGERS, *FLOATS], ids=str)
def test_one_hot_of_every_dtype(loss, dtype, rng):
    scores = scores_for(loss, rng, (5, 6, 100), np.float32)
    ids = rng.integers(0, 100, (5, 6))
    targets = np.eye(100, dtype=bool)[ids].astype(dtype)
    expected = call(tokenloss, loss, scores, ids, reduction="none")
    for layout in LAYOUTS.values():
        assert_same_bits(call(tokenloss, loss, scores, layout(targets), reduction="none"), expected)


@each_loss
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("classes", [3, 63, 64, 65, 130, 1000])
def test_distributions_of_every_float_dtype(loss, dtype, classes, rng):
    scores = scores_for(loss, rng, (4, classes), np.float32)
    targets = distributions(rng, (4, classes), zeros=0.7).astype(dtype)
    assert_as_oracle(loss, scores, targets)
    assert_as_oracle(loss, scores, targets, None, swapped(targets))
    assert_as_oracle(loss, scores, targets, None, strided(targets))


@each_loss
def test_distributions_of_counts_and_of_negative_numbers(loss, rng):
    scores = scores_for(loss, rng, (4, 9), np.float64)
    assert_as_oracle(loss, scores, rng.integers(0, 200, (4, 9)).astype(np.float32))
    assert_as_oracle(loss, scores, rng.integers(-3, 4, (4, 9)).astype(np.float64))
    assert_as_oracle(loss, scores, np.zeros((4, 9)))


@pytest.mark.parametrize("loss", ["cross_entropy_loss", "nll_loss"])
def test_distributions_with_masses_at_any_classes_of_three_rows(loss, rng):
    """As many masses as rows need not be one in each row: [[0, 0, 0], [0.5, 0, 0.5], [0, 1, 0]]."""
    scores = scores_for(loss, rng, (3, 3), np.float64)
    losses = -np.log(scores) if loss == "cross_entropy_loss" else -scores
    for places in itertools.product([0.0, 0.5], repeat=9):
        targets = np.reshape(places, (3, 3))
        result = call(tokenloss, loss, scores, targets, reduction="none")
        np.testing.assert_allclose(result, (targets * losses).sum(-1), rtol=1e-14)


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 64, 129, 1000])
@pytest.mark.parametrize("density", [0.03, 0.3, 0.7, 1.0])
def test_distributions_by_blocks_have_the_bits_of_those_by_rows(classes, density, rng, backend):
    """Targets of the other byte order are read row by row."""
    for dtype in (np.float16, np.float32, np.float64):
        targets, probs = rng.random((270, classes)), rng.random((270, classes)).astype(dtype)
        targets[rng.random(targets.shape) >= density] = rng.choice([0.0, -0.0])
        targets = targets.astype(dtype)
        probs[rng.random(probs.shape) < 0.02] = np.nan
        weight = rng.choice([0.0, -0.0, 0.5, np.inf, 1.0], classes)
        swapped = targets.astype(targets.dtype.newbyteorder())
        for options in ({}, {"weight": weight}, {"where": rng.random(270) < 0.6}, {"epsilon": 0.0}):
            for scores in (probs, np.asfortranarray(probs), np.repeat(probs, 2, 0)[::2]):
                by_blocks = cross_entropy_loss(targets, scores, reduction="none", **options)
                assert_same_bits(by_blocks, cross_entropy_loss(swapped, scores, reduction="none", **options))
            with np.errstate(all="ignore"):
                logs = np.log(probs)
            options.pop("epsilon", None)
            by_blocks = nll_loss(logs, np.asfortranarray(targets), reduction="none", **options)
            assert_same_bits(by_blocks, nll_loss(logs, swapped, reduction="none", **options))


@each_loss
def test_one_hot_target_anywhere_in_a_long_row(loss, rng):
    scores = scores_for(loss, rng, (1, 70000), np.float32)
    for k in [0, 63, 64, 65535, 65536, 65537, 69999]:
        for dtype in (np.int8, np.float32, np.float64):
            targets = np.zeros((1, 70000), dtype)
            targets[0, k] = 1
            expected = call(tokenloss, loss, scores, [k], reduction="none")
            assert_same_bits(call(tokenloss, loss, scores, targets, reduction="none"), expected, f"class {k}")


# accuracy


def assert_accurate(kind, rng, length, dtype):
    row = row_of_logits(kind, rng, length, dtype)
    losses = reference._losses_of_logits(reference.float64(row))
    error = error_allowed("cross_entropy", row)
    assert_near(logsumexp(row), reference.logsumexp(row), error)
    for target in {int(row.argmax()), int(row.argmin()), length // 2, length - 1}:
        assert_near(cross_entropy(row, target), np.float64(losses[target]), error)


@pytest.mark.parametrize(("dtype", "kind"), KINDS_OF_ROWS)
def test_accuracy_of_cross_entropy_and_logsumexp(dtype, kind, rng):
    for length in [1, 2, 3, 65, 511, 513, 4095, 4097, 8193]:
        assert_accurate(kind, rng, length, dtype)


@each_dtype
@pytest.mark.parametrize("kind", ["normal", "zeros", "near_uniform", "staircase", "around_1e4"])
def test_accuracy_of_262144_classes(dtype, kind, rng):
    """Kinds of rows in which many classes add to the sum."""
    assert_accurate(kind, rng, 262144, dtype)


@each_dtype
@pytest.mark.parametrize("length", [2, 100, 513, 50257])
@pytest.mark.parametrize("start", [0.0, -5.0, 1000.0])
def test_near_certain_tokens_have_a_small_relative_error(dtype, length, start, rng):
    for lead in [1, 5, 10, 17, 20, 40, 80, 85, 90, 100, 200, 500]:
        row = (start + rng.standard_normal(length)).astype(dtype)
        target = int(rng.integers(length))
        row[target] = start + lead
        exact = float(reference._losses_of_logits(reference.float64(row))[target])
        assert cross_entropy(row, target) == pytest.approx(exact, rel=1e-6, abs=0), f"{lead} ahead"


def test_near_certain_tokens_whose_largest_logit_is_in_a_later_block(rng):
    for dtype in (np.float32, np.float64):
        row = rng.standard_normal(20000).astype(dtype)
        row[[5000, 13000]] = 60, 75
        exact = float(reference._losses_of_logits(reference.float64(row))[13000])
        assert cross_entropy(row, 13000) == pytest.approx(exact, rel=1e-6, abs=0)


LEVELS = [-3.3e38, -1e30, -1e9, -66000.0, -65000.0, -2000.0, -90.0, 0.0, 90.0, 2000.0, 65000.0, 66000.0, 1e9, 3.3e38]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("level", LEVELS)
def test_largest_logit_of_any_size_anywhere_in_the_row(dtype, level):
    for height in LEVELS:
        for position in [0, 511, 512, 4096, 8192]:
            row = np.full(8200, level, dtype)
            row[position] = height
            row[[(position + 1) % 8200, (position + 600) % 8200]] = height - 1
            if position == 0:  # elsewhere the row holds the same logits, and the exact losses are the same
                losses, error = reference._losses_of_logits(reference.float64(row)), error_allowed("cross_entropy", row)
            for target, exact in ((position, losses[0]), (8199, losses[8199])):
                assert_near(cross_entropy(row, target), np.float64(exact), error)
            assert_near(cross_entropy(row[::-1], 0), np.float64(losses[8199]), error)


@each_dtype
def test_jump_of_any_height_late_in_the_row(dtype):
    for rise in range(-300, 1000, 7):
        for position in (600, 4500):
            row = np.zeros(4700, dtype)
            row[position : position + 100] = rise
            if position == 600:  # at 4500 the row holds the same logits, and the exact losses are the same
                losses, error = reference._losses_of_logits(reference.float64(row)), error_allowed("cross_entropy", row)
            for target, exact in ((3, losses[3]), (position + 1, losses[601])):
                assert_near(cross_entropy(row, target), np.float64(exact), error)


def test_reduction_none_of_one_row_returns_a_numpy_float():
    results = [logsumexp([1.0, 2.0]), cross_entropy_loss([1, 0], [0.5, 0.5], reduction="none")]
    results += [loss([-1.0, -2.0], 1, reduction="none") for loss in (cross_entropy, nll_loss)]
    results += [cross_entropy_and_grad([1.0, 2.0], 0, reduction="none")[0]]
    results += [tokenloss.kl_divergence([1.0, 2.0], [2.0, 1.0], reduction="none")]
    results += [tokenloss.linear_cross_entropy([1.0], [[1.0], [2.0]], 0, reduction="none")]
    for result in results:
        assert type(result) is np.float64
        assert json.loads(json.dumps(result)) == result
    out = np.empty(())
    assert logsumexp([1.0, 2.0], out=out) is out
    assert out[()] == results[0]
