"""label_smoothing, z_loss, logit_scale, softcap, weight, where, ignore_index, axis and epsilon equal the oracle."""

import inspect
import math

import numpy as np
import pytest
import reference
from arrays import (
    BFLOAT16,
    DEFAULTS,
    FLOATS,
    INTEGERS,
    KINDS_OF_ROWS,
    LOSSES,
    OPTIONS,
    REDUCTIONS,
    assert_near,
    assert_same_bits,
    backwards,
    call,
    distributions,
    loss_error,
    misaligned,
    problem,
    row_of_logits,
    scores_for,
    strided,
    swapped,
)

import tokenloss
from tokenloss import cross_entropy, cross_entropy_and_grad, cross_entropy_loss, linear_cross_entropy, nll_loss

NAN, INF = math.nan, math.inf
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
each_kind = pytest.mark.parametrize("kind", ["ids", "distributions"])
each_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
each_loss = pytest.mark.parametrize("loss", LOSSES)


def one_hot(targets, classes):
    return np.eye(classes)[targets]


# label_smoothing, z_loss, logit_scale and softcap together


def test_every_option_is_in_all_losses_and_tested():
    elsewhere = "logits targets axis weight ignore_index where sample_weight reduction workers"
    assert inspect.signature(cross_entropy).parameters.keys() - {*elsewhere.split()} == DEFAULTS.keys()
    assert OPTIONS["everything"].keys() == DEFAULTS.keys()
    for loss in (tokenloss.cross_entropy_and_grad, tokenloss.linear_cross_entropy):
        parameters = inspect.signature(loss).parameters
        assert {name: parameters[name].default for name in DEFAULTS if name in parameters} == DEFAULTS


@each_dtype
@each_kind
@each_options
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("axis", [-1, 0])
def test_label_smoothing_z_loss_logit_scale_softcap_weight_axis_together(dtype, kind, options, weighted, axis, rng):
    logits, targets, given = problem(rng, kind, dtype, axis, weighted)
    given |= options
    losses = cross_entropy(logits, targets, reduction="none", **given)
    expected = reference.cross_entropy(logits, targets, reduction="none", **given)
    assert_near(losses, expected, loss_error(logits, targets, **given), 4)
    total = math.fsum(losses.ravel())
    assert cross_entropy(logits, targets, reduction="sum", **given) == total
    mean = cross_entropy(logits, targets, **given)
    if kind == "ids" and weighted and "z_loss" in given:  # whose mean is that without class weights
        assert_near(
            mean, reference.cross_entropy(logits, targets, **given), loss_error(logits, targets, **given).max(), 4
        )
    else:
        assert mean == total / reference.divisor_of_mean(logits, targets, **given)


@each_dtype
@each_options
def test_label_smoothing_z_loss_logit_scale_softcap_at_every_length_of_row(dtype, options, rng):
    for classes in [1, 2, 63, 64, 65, 511, 512, 513, 4095, 4096, 4097]:
        logits = scores_for("cross_entropy", rng, (2, classes), dtype)
        weight = rng.random(classes) + 0.5
        for targets in (np.array([0, classes - 1]), distributions(rng, (2, classes))):
            expected = reference.cross_entropy(logits, targets, weight=weight, reduction="none", **options)
            error = loss_error(logits, targets, weight=weight, **options)
            for layout in (np.ascontiguousarray, strided, swapped, misaligned):
                actual = cross_entropy(layout(logits), targets, weight=weight, reduction="none", **options)
                assert_near(actual, expected, error, 4)


@each_kind
def test_label_smoothing_and_weight_of_a_long_row_whose_logits_fall(kind, rng):
    logits = np.linspace(40, -80, 200_003, dtype=np.float32)
    weight = np.linspace(0, 2, logits.size)
    targets = np.int64(5) if kind == "ids" else distributions(rng, logits.shape)
    for options in ({"label_smoothing": 0.1}, {"label_smoothing": 1.0, "z_loss": 1e-4, "weight": weight}):
        actual = cross_entropy(logits, targets, reduction="sum", **options)
        expected = reference.cross_entropy(logits, targets, reduction="sum", **options)
        assert_near(actual, np.float64(expected), loss_error(logits, targets, **options), 4)


@pytest.mark.parametrize(("dtype", "kind"), KINDS_OF_ROWS)
def test_accuracy_of_label_smoothing_z_loss_logit_scale_softcap(dtype, kind, rng):
    for length in [1, 2, 65, 513, 4097]:
        row = row_of_logits(kind, rng, length, dtype)
        for options in ({"label_smoothing": 0.1}, {"z_loss": 1e-4}, {"logit_scale": 0.7}, {"softcap": 30.0}):
            for target in (int(row.argmax()), length // 2):
                with np.errstate(over="ignore"):
                    expected = reference.cross_entropy(row, target, **options)
                actual = cross_entropy(row, target, **options)
                assert_near(actual, np.float64(expected), loss_error(row, target, **options), 4)


# one by one


def test_label_smoothing_and_weight_by_hand():
    losses = np.array([math.log1p(math.exp(-1)), math.log1p(math.e)])  # of both classes
    assert cross_entropy([1.0, 0.0], 0, label_smoothing=0.2) == pytest.approx(losses @ [0.9, 0.1], rel=1e-15)
    assert cross_entropy([1.0, 0.0], 0, label_smoothing=1) == pytest.approx(losses.mean(), rel=1e-15)
    weighted = losses @ [0.9 * 2, 0.1 * 3]
    assert cross_entropy([1.0, 0.0], 0, label_smoothing=0.2, weight=[2, 3]) == pytest.approx(weighted / 2, rel=1e-15)
    assert cross_entropy([1.0, 0.0], [1, 0], label_smoothing=0.2, weight=[2, 3]) == pytest.approx(weighted, rel=1e-15)


def test_z_loss_and_weight_by_hand():
    assert cross_entropy([0.0, 0.0], 0, z_loss=0.5) == pytest.approx(math.log(2) + math.log(2) ** 2 / 2, rel=1e-15)
    assert cross_entropy([-3.0], 0, z_loss=2) == pytest.approx(18, rel=1e-15)
    assert cross_entropy([[0.0, 0.0]] * 2, [0, 1], weight=[1, 3], z_loss=1) == pytest.approx(
        math.log(2) + math.log(2) ** 2, rel=1e-15
    )


def test_mean_with_weight_and_z_loss_does_not_depend_on_the_scale_of_the_weights():
    """The numbers are those of Liger Kernel's cross-entropy with weights and lse_square_scale."""
    logits, targets, weight = np.array([[1.0, 2.0, 0.0], [0.0, 3.0, 1.0]]), np.array([0, 2]), np.array([2.0, 5.0, 7.0])
    lse = np.log(np.exp(logits).sum(-1))
    nll = lse - logits[[0, 1], targets]
    for scale in (1, 2, 10, 1e-3):
        given = {"weight": scale * weight, "z_loss": 0.1}
        of_targets = given["weight"][targets]
        each = of_targets * nll + 0.1 * lse**2
        assert cross_entropy(logits, targets, reduction="none", **given) == pytest.approx(each, rel=1e-14)
        assert cross_entropy(logits, targets, reduction="sum", **given) == pytest.approx(each.sum(), rel=1e-14)
        mean = cross_entropy(logits, targets, **given)
        assert mean == pytest.approx((of_targets * nll).sum() / of_targets.sum() + 0.1 * (lse**2).mean(), rel=1e-14)
        assert mean == pytest.approx(2.792684, abs=1e-6)
        assert linear_cross_entropy(logits, np.eye(3), targets, **given) == pytest.approx(mean, rel=1e-14)
        loss, gradient = cross_entropy_and_grad(logits, targets, **given)
        assert loss == mean
        step = 1e-6 * np.eye(3)[1]
        slope = (cross_entropy(logits + step, targets, **given) - cross_entropy(logits - step, targets, **given)) / 2e-6
        assert gradient[:, 1].sum() == pytest.approx(slope, rel=1e-6)


def test_mean_with_weight_sample_weight_and_z_loss_weighs_z_loss_by_position(rng):
    logits, targets, weight = rng.standard_normal((20, 9)), rng.integers(0, 9, 20), rng.random(9)
    of_rows = rng.random(20) * (rng.random(20) > 0.2)
    lse = np.log(np.exp(logits).sum(-1))
    of_both = weight[targets] * of_rows
    expected = of_both @ (lse - logits[range(20), targets]) / of_both.sum() + 0.1 * of_rows @ lse**2 / of_rows.sum()
    given = {"weight": weight, "sample_weight": of_rows, "z_loss": 0.1}
    assert cross_entropy(logits, targets, **given) == pytest.approx(expected, rel=1e-14)
    assert cross_entropy_and_grad(logits, targets, **given)[0] == cross_entropy(logits, targets, **given)


def test_logit_scale_and_softcap_by_hand():
    def loss(difference):
        return pytest.approx(math.log1p(math.exp(-difference)), rel=1e-14)

    assert cross_entropy([3.0, 1.0], 0, logit_scale=0.5) == loss(1)
    assert cross_entropy([3.0, 1.0], 0, softcap=2) == loss(2 * (math.tanh(1.5) - math.tanh(0.5)))
    assert cross_entropy([3.0, 1.0], 0, softcap=2, logit_scale=4) == loss(2 * (math.tanh(6) - math.tanh(2)))
    assert cross_entropy([1e-300, -1e-300], 0, softcap=1e-5) == loss(0)


@each_dtype
@each_kind
def test_label_smoothing_0_z_loss_0_logit_scale_1_softcap_none_change_no_bit(dtype, kind, rng):
    logits, targets, given = problem(rng, kind, dtype, weighted=True)
    given["reduction"] = "none"
    expected = cross_entropy(logits, targets, **given)
    for options in (
        {"label_smoothing": 0, "z_loss": 0, "logit_scale": 1, "softcap": None},
        {"label_smoothing": np.float32(0), "z_loss": np.int8(0), "logit_scale": np.float16(1)},
    ):
        assert_same_bits(cross_entropy(logits, targets, **given, **options), expected)


@each_dtype
def test_class_ids_equal_one_hot_targets_with_label_smoothing_z_loss_logit_scale_softcap_weight(dtype, rng):
    logits, targets = scores_for("cross_entropy", rng, (20, 70), dtype), rng.integers(0, 70, 20)
    weight = rng.random(70)
    for options in OPTIONS.values():
        given = options | {"weight": weight, "reduction": "none"}
        error = 2 * loss_error(logits, targets, **given)
        expected = cross_entropy(logits, targets, **given)
        assert_near(cross_entropy(logits, one_hot(targets, 70), **given), expected, error, 4)


# weight, where, ignore_index and epsilon, with every loss


@each_loss
@pytest.mark.parametrize("kind", ["ids", "distributions"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 2, None])
@pytest.mark.parametrize("axis", [-1, 0])
def test_axis_weight_where_ignore_index_together(loss, kind, weighted, masked, ignore_index, axis, rng):
    shape = (5, 6, 4) if axis == -1 else (4, 5, 6)
    scores = scores_for(loss, rng, shape, np.float64, axis)
    targets = rng.integers(0, 4, (5, 6)) if kind == "ids" else distributions(rng, shape, axis)
    if kind == "ids" and ignore_index == -100:
        targets[1, 2:] = -100
    options = {
        "axis": axis,
        "weight": rng.random(4) if weighted else None,
        "where": rng.random((5, 6)) > 0.3 if masked else None,
    }
    options |= {"ignore_index": ignore_index} if kind == "ids" else {}
    for reduction in REDUCTIONS:
        actual = call(tokenloss, loss, scores, targets, reduction=reduction, **options)
        expected = call(reference, loss, scores, targets, reduction=reduction, **options)
        np.testing.assert_allclose(actual, expected, rtol=2e-14, atol=0)


@each_loss
@pytest.mark.parametrize("dtype", [np.dtype(bool), *INTEGERS, *FLOATS], ids=str)
def test_weight_of_every_dtype_and_layout(loss, dtype, rng):
    scores = scores_for(loss, rng, (12, 5), np.float64)
    targets = rng.integers(0, 5, 12)
    weight = np.array([1, 0, 1, 3, 2]).astype(dtype)
    expected = call(reference, loss, scores, targets, weight=weight)
    for layout in (np.ascontiguousarray, strided, backwards, swapped, misaligned):
        assert call(tokenloss, loss, scores, targets, weight=layout(weight)) == pytest.approx(expected, rel=1e-14)
    assert call(tokenloss, loss, scores, targets, weight=weight.tolist()) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("epsilon", [0, 1e-300, 1e-12, 1e-3, 0.25, 0.5, np.float32(0.25)])
@each_dtype
def test_epsilon_clips_in_float64(epsilon, dtype, rng):
    smallest = np.finfo(dtype if dtype != BFLOAT16 else np.float32).smallest_subnormal
    y_pred = np.array([0, smallest, 1e-7, 1e-3, 0.3, 0.5, 0.999, 1, -smallest, -1e-3 + 4e-6]).astype(dtype)
    for k in range(y_pred.size):
        clipped = float(np.clip(y_pred.astype(np.float64)[k], float(epsilon), 1 - float(epsilon)))
        actual = cross_entropy_loss(k, y_pred, epsilon=epsilon)
        exact = np.float64(-reference.log(reference.wide(clipped)) if clipped else np.inf)
        is_as_given = np.isfinite(exact) and clipped == y_pred[k] and dtype != np.float64
        assert_near(actual, exact, min(1e-7 * exact, 2e-7) if is_as_given else 0, 1)
        assert actual != 0 or math.copysign(1, actual) == 1  # not -0.0


def test_epsilon_is_the_loss_of_probability_1():
    assert cross_entropy_loss([0, 0], np.float32([[1, 0], [1, 0]])) == pytest.approx(1e-12, rel=1e-3)
    assert str(cross_entropy_loss(0, [1.0, 0.0], epsilon=0)) == "0.0"
    assert str(nll_loss([0.0], 0)) == "0.0"
