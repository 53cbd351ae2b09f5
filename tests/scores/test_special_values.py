"""Infinities, nan, zeros and overflow: logits, probabilities, targets, weights and options at their limits."""

import math

import numpy as np
import pytest
import reference
from arrays import FLOATS, LOSSES, OPTIONS, assert_same_bits, call, scores_for, sum_of
from programs import FORBIDDEN_PAGES, needs_mprotect

import tokenloss
from tokenloss import (
    LossMeter,
    class_log_probs,
    cross_entropy,
    cross_entropy_and_grad,
    cross_entropy_loss,
    kl_divergence,
    linear_cross_entropy,
    logsumexp,
    nll_loss,
    token_scores,
)

NAN, INF = math.nan, math.inf
BORDERS = [0, 1, 63, 64, 511, 512, 4095, 4096, 8191, 8192, 8999]
# masses of one row that add up to more than 1 are warned of, since they may be labels of samples
of_any_mass = pytest.mark.filterwarnings("ignore:.* adds up to:UserWarning")
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
each_loss = pytest.mark.parametrize("loss", LOSSES)
each_kind = pytest.mark.parametrize("kind", ["ids", "distributions"])
each_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


# logits and log-probabilities


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [100, 3000, 9000])
def test_logit_far_from_all_before_it_is_neither_lost_nor_nan(dtype, classes, backend):
    """Its power of two may be the first that a number cannot hold."""
    row = np.zeros(classes, dtype)
    for from_, to in [(30, 40), (-150, -140), (86, 96)] + [(700, 720)] * (dtype == np.float64):
        for logit in np.linspace(from_, to, 100):
            row[-classes // 2] = logit
            expected = reference.logsumexp(row[None])[0]
            assert abs(logsumexp(row) - expected) < 2e-7
            assert abs(cross_entropy(row, 0) - expected) < 2e-7
            assert abs(token_scores(row, 0).logsumexp - expected) < 2e-7
            assert abs(kl_divergence(row, row)) < 2e-7


@each_dtype
def test_target_logit_of_minus_infinity_costs_infinity(dtype, backend):
    for length in (2, 3, 600, 9000):
        for target in {0, 1, length // 2, length - 1}:
            row = np.linspace(-5, 5, length).astype(dtype)
            row[target] = -np.inf
            assert cross_entropy(row, target) == INF
            assert cross_entropy(row, np.arange(length) == target) == INF
            assert nll_loss(row, target) == INF
            assert logsumexp(row) < INF


@each_dtype
def test_all_logits_minus_infinity(dtype, backend):
    for length in (1, 2, 511, 512, 513, 4096, 9000):
        row = np.full(length, -np.inf, dtype)
        assert math.isnan(cross_entropy(row, length - 1))
        assert math.isnan(cross_entropy(row, np.arange(length) == 0))
        assert logsumexp(row) == -INF


@each_dtype
def test_all_logits_minus_infinity_but_one(dtype, backend):
    for length in (1, 2, 511, 512, 513, 4096, 9000):
        for k in {0, length // 2, length - 1}:
            for value in (0.0, -3.0, 6e4, -6e4):
                row = np.full(length, -np.inf, dtype)
                row[k] = value
                assert str(cross_entropy(row, k)) == "0.0"
                assert logsumexp(row) == pytest.approx(float(row[k]), rel=1e-15, abs=2e-7)
                assert length == 1 or cross_entropy(row, (k + 1) % length) == INF


@each_dtype
@pytest.mark.parametrize("value", [NAN, INF, -NAN])
def test_nan_or_infinity_anywhere_in_a_kept_row(dtype, value, rng, backend):
    clean = rng.standard_normal(9000).astype(dtype)
    for position in BORDERS:
        row = clean.copy()
        row[position] = value
        for target in (position, 0, 4096, 8999):
            for view, k in ((row, target), (row[::-1], 8999 - target), (np.repeat(row, 2)[::2], target)):
                assert math.isnan(cross_entropy(view, k)), (position, target)
        assert math.isnan(cross_entropy(row, np.eye(1, 9000, 17, dtype=np.int8)[0]))
        assert math.isnan(logsumexp(row))
    assert math.isfinite(cross_entropy(clean, 0))


@each_dtype
@pytest.mark.parametrize("length", [1, 2, 3, 64, 65, 512, 513])
def test_nan_or_infinity_in_short_rows(dtype, length, backend):
    for value in (NAN, INF):
        for position in {0, length // 2, length - 1}:
            for background in (0.0, -np.inf, 6e4, -6e4):
                row = np.full(length, background, dtype)
                row[position] = value
                assert math.isnan(logsumexp(row))
                assert math.isnan(cross_entropy(row, 0))
                assert math.isnan(cross_entropy(row, length - 1))


@pytest.mark.parametrize("value", [NAN, INF])
def test_nan_or_infinity_in_rows_of_huge_logits(value, backend):
    for dtype in (np.float32, np.float64):
        for background in (-3e38, -1e6, 1e6, 3e38):
            for position in BORDERS:
                row = np.full(9000, background, dtype)
                row[position] = value
                assert math.isnan(logsumexp(row))
                assert math.isnan(cross_entropy(row, 100))


@each_loss
def test_nan_changes_the_loss_of_its_own_row_only(loss, rng):
    scores = scores_for(loss, rng, (5, 100), np.float32)
    scores[2] = np.nan
    targets = rng.integers(0, 100, 5)
    losses = call(tokenloss, loss, scores, targets, reduction="none")
    assert np.isnan(losses).tolist() == [False, False, True, False, False]
    assert math.isnan(call(tokenloss, loss, scores, targets))
    assert math.isnan(call(tokenloss, loss, scores, targets, reduction="sum"))


@each_loss
def test_infinite_loss_in_a_batch(loss):
    scores = {"cross_entropy_loss": [[0.0, 1], [0.5, 0.5]], "nll_loss": [[-INF, 0], [-1, -1]]}.get(
        loss, [[-INF, 0], [1, 1]]
    )
    options = {"epsilon": 0} if loss == "cross_entropy_loss" else {}
    assert call(tokenloss, loss, scores, [0, 1], **options) == INF
    assert call(tokenloss, loss, scores, [0, 1], reduction="sum", **options) == INF
    assert call(tokenloss, loss, scores, [0, 1], reduction="none", **options).tolist()[0] == INF


def test_nan_probability_of_another_class_does_not_matter():
    assert cross_entropy_loss(0, [0.5, NAN, INF]) == pytest.approx(math.log(2), rel=1e-15)
    assert nll_loss([-0.5, NAN, INF], 0) == 0.5
    assert math.isnan(cross_entropy_loss(1, [0.5, NAN, INF]))
    assert math.isnan(nll_loss([-0.5, NAN, INF], 1))


# distributions


def test_distribution_that_is_0_where_the_logit_is_minus_infinity():
    assert cross_entropy([0.0, -INF, 0.0], [0.5, 0, 0.5]) == pytest.approx(math.log(2), rel=1e-15)
    assert nll_loss([-0.5, -INF, -0.25], [0.5, 0, 0.5]) == 0.375
    assert cross_entropy_loss([0.5, 0, 0.5], [0.5, 0, 0.5], epsilon=0) == pytest.approx(math.log(2), rel=1e-15)
    assert cross_entropy([0.0, -INF], [1.0, -0.0]) == 0.0


def test_distribution_that_is_positive_where_the_logit_is_minus_infinity():
    assert cross_entropy([0.0, -INF, 0.0], [0.5, 0.1, 0.4]) == INF
    assert nll_loss([-0.5, -INF, -0.25], [0.5, 0.1, 0.4]) == INF
    assert cross_entropy([0.0, -INF, -INF], [0.6, 0.1, 0.3]) == INF
    assert cross_entropy([-INF, 0.0, -INF], [0.6, 0.1, 0.3]) == INF


def test_distribution_with_nan_and_infinity():
    for loss in (nll_loss, cross_entropy):
        assert math.isnan(loss([-1.0, -2.0], [NAN, 1.0]))
        assert math.isnan(loss([-1.0, -2.0], [1.0, NAN]))
        assert loss([-1.0, -2.0], [1.0, INF]) == INF


@of_any_mass
@each_dtype
@each_options
def test_distribution_without_mass_costs_0_and_nan_where_the_logits_have_no_softmax(dtype, options, rng, backend):
    for classes in (1, 3, 70, 513):
        logits = scores_for("cross_entropy", rng, (20, classes), dtype)
        masses = np.zeros((20, classes))
        masses[::3] = rng.random((7, classes))
        logits[1:3, classes // 2], logits[4, -1], logits[5] = NAN, INF, -INF
        logits[13, 1:] = -INF
        expected = reference.cross_entropy(logits, masses, reduction="none", **options)
        assert np.isnan(expected[[1, 2, 4, 5]]).all()
        assert {"label_smoothing", "z_loss"} & options.keys() or not expected[[7, 8, 10]].any()
        for weight in (None, np.zeros(classes)):
            for layout in (logits, np.asfortranarray(logits)):
                losses, gradient = cross_entropy_and_grad(layout, masses, weight=weight, reduction="none", **options)
                result = cross_entropy(layout, masses, weight=weight, reduction="none", **options)
                assert_same_bits(losses, result)
                if weight is None:
                    np.testing.assert_allclose(losses, expected, rtol=1e-6, atol=1e-6)
                assert np.isnan(losses).tolist() == [i in (1, 2, 4, 5) for i in range(20)]
                assert np.isnan(reference.float64(gradient)).all(1).tolist() == np.isnan(losses).tolist()
                if not {"label_smoothing", "z_loss"} & options.keys():
                    assert not gradient[[7, 8, 10]].any()
        alone = [cross_entropy(row, mass, **options) for row, mass in zip(logits, masses, strict=True)]
        assert_same_bits(cross_entropy(logits, masses, reduction="none", **options), alone)


def test_distribution_without_mass_counts_in_the_mean():
    masses, hidden = [[0.0, 0.0], [0.0, 1.0]], [[1.0], [0.0]]
    assert cross_entropy([[5.0, 1.0], [0.0, 0.0]], masses) == pytest.approx(math.log(2) / 2, rel=1e-15)
    assert math.isnan(cross_entropy([[NAN, 1.0], [0.0, 0.0]], masses))
    assert nll_loss([[NAN, -INF], [0.0, -1.0]], masses) == 0.5  # scores without mass are not read
    assert cross_entropy_loss(masses, [[NAN, 7.0], [0.5, 0.5]]) == pytest.approx(math.log(2) / 2, rel=1e-15)
    assert np.isnan(linear_cross_entropy(hidden, [[NAN], [1.0]], masses, reduction="none")).all()
    assert linear_cross_entropy(hidden, [[3.0], [1.0]], masses) == pytest.approx(math.log(2) / 2, rel=1e-15)
    assert np.isnan(linear_cross_entropy(hidden, [[3.0], [1.0]], masses, lm_head_bias=[-INF, -INF]))


def test_distribution_without_mass_where_a_logit_scale_overflows():
    logits, masses = np.array([[1e300, 2.0], [1e300, 2.0], [1e300, NAN]]), np.diag([0.0, 1.0, 0.0])[:, [1, 0]]
    for rows in (1, 7, 70):  # one by one, and side by side
        arrays = (np.tile(array, (rows, 1)) for array in (logits, masses))
        losses, gradient = cross_entropy_and_grad(*arrays, logit_scale=1e308, reduction="none")
        np.testing.assert_array_equal(losses, [0.0, 0.0, NAN] * rows)
        np.testing.assert_array_equal(gradient, [[0.0, 0.0], [0.0, 0.0], [NAN, NAN]] * rows)


@needs_mprotect
def test_probabilities_of_classes_whose_target_is_0_are_never_read(run_python):
    run_python(
        FORBIDDEN_PAGES
        + """
row = np.frombuffer(memory, np.float32)
row[...] = 0.5
forbid(1)
for dtype in (np.float16, np.float32, np.float64):
    shares = np.zeros(row.size, dtype)
    shares[[0, PAGE // 4 - 1, PAGE // 2, -1]] = 0.25
    assert abs(cross_entropy_loss(shares, row) - np.log(2)) < 1e-12
for dtype in (np.int8, bool):  # one-hot
    for k in (0, PAGE // 4 - 1, PAGE // 2, -1):
        shares = np.zeros(row.size, dtype)
        shares[k] = 1
        assert abs(cross_entropy_loss(shares, row) - np.log(2)) < 1e-12
"""
    )


# epsilon and weight


@each_dtype
def test_epsilon_0_gives_infinity_for_probability_0(dtype):
    y_pred = np.array([[0, 1, 0], [0.5, 0.5, 0]]).astype(dtype)
    assert cross_entropy_loss([0, 0], y_pred, epsilon=0) == INF
    assert cross_entropy_loss([2, 1], y_pred, epsilon=0, reduction="none")[0] == INF
    assert cross_entropy_loss([[1, 0, 0], [0, 1, 0]], y_pred, epsilon=0) == INF
    assert cross_entropy_loss([0, 0], y_pred) == pytest.approx((-math.log(1e-12) + math.log(2)) / 2, rel=1e-15)


@each_loss
def test_weight_that_adds_up_to_0(loss):
    scores = np.full((2, 3), 0.25 if loss == "cross_entropy_loss" else -0.25)
    assert math.isnan(call(tokenloss, loss, scores, [0, 1], weight=[0, 0, 1]))
    assert call(tokenloss, loss, scores, [0, 1], weight=[0, 0, 1], reduction="sum") == 0.0
    unequal = np.sign(scores) * [[0.25, 0.5, 0.25], [0.5, 0.75, 0.25]]
    assert math.isinf(call(tokenloss, loss, unequal, [0, 1], weight=[1, -1, 0]))


def test_weight_0_of_a_class_gives_the_same_for_ids_and_one_hot_targets():
    logits = [[0.0, -INF], [-1.0, -2.0]]
    for reduction in ("none", "sum", "mean"):
        for loss in (cross_entropy, nll_loss):
            ids = loss(logits, [1, 0], weight=[1, 0], reduction=reduction)
            one_hot = loss(logits, [[0, 1], [1, 0]], weight=[1, 0], reduction="none")
            expected = loss([logits[1]], [0], reduction="none")[0]
            assert one_hot.tolist() == [0.0, expected]  # not 0 * inf
            if reduction == "none":
                assert ids.tolist() == [0.0, expected]
            else:
                assert ids == expected


@of_any_mass
@each_loss
@each_dtype
def test_weight_0_of_a_class_makes_an_infinite_loss_0_and_leaves_nan(loss, dtype, rng, backend):
    options = {"epsilon": 0.0} if loss == "cross_entropy_loss" else {}
    impossible = 0.0 if loss == "cross_entropy_loss" else -INF
    for classes in (2, 130, 600):
        scores = scores_for(loss, rng, (70, classes), dtype)
        scores[scores == 0] = 0.001
        out, weight = classes // 2, rng.random(classes)
        weight[out], scores[::2, out], scores[3, out] = 0, impossible, NAN
        one_hot = np.eye(classes)[rng.integers(0, classes, 70)]
        one_hot[::2] = np.eye(classes)[out]
        soft = rng.random((70, classes)) * (rng.random((70, classes)) < 0.5)
        soft[:, out] = rng.random(70)
        sparse = np.where(rng.random((70, classes)) < 0.02, soft, 0)
        sparse[:4, out] = 0.5
        for targets in (one_hot, soft, sparse, one_hot.argmax(-1)):
            with np.errstate(divide="ignore"):  # log(0)
                expected = call(reference, loss, scores, targets, weight=weight, reduction="none", **options)
            assert not np.isinf(expected).any()
            for order in "CF":
                views = [np.asarray(array, order=order) for array in (scores, targets)]
                losses = call(tokenloss, loss, *views, weight=weight, reduction="none", **options)
                np.testing.assert_allclose(losses, expected, rtol=1e-6, atol=1e-6)
            alone = [call(tokenloss, loss, scores[i], targets[i], weight=weight, reduction="none", **options)
                     for i in range(9)]  # fmt: skip
            assert_same_bits(losses[:9], alone)


def test_weight_0_of_a_class_with_label_smoothing_and_linear_cross_entropy():
    logits, options = [[0.0, -INF, 1.0]], {"weight": [1.0, 0.0, 2.0], "label_smoothing": 0.3}
    rest = cross_entropy([0.0, 1.0], 0), cross_entropy([0.0, 1.0], 1)
    smoothed = 0.1 * rest[0] + 0.2 * rest[1]
    for target, expected in ((0, 0.7 * rest[0]), (1, 0), (2, 1.4 * rest[1])):
        for targets in ([target], np.eye(3)[[target]]):
            loss, gradient = cross_entropy_and_grad(logits, targets, reduction="sum", **options)
            assert loss == pytest.approx(expected + smoothed, rel=1e-14)
            assert np.isfinite(gradient).all()
            assert gradient[0, 1] == 0
            result = linear_cross_entropy(np.ones((1, 1)), np.array([[0.0], [0.0], [1.0]]), targets,
                                         lm_head_bias=[0.0, -INF, 0.0], reduction="sum", **options)  # fmt: skip
            assert result == pytest.approx(expected + smoothed, rel=1e-14)


def test_weight_0_of_a_class_of_huge_logits_leaves_the_others_exact():
    for far, dtype in ((-3e38, np.float32), (-1e6, np.float64), (-1e300, np.float64)):
        logits = np.array([0.25, 0.5, far], dtype)
        expected = 0.4 * (math.log(math.exp(0.25) + math.exp(0.5)) - 0.25)
        assert cross_entropy(logits, [0.4, 0.0, 0.6], weight=[1, 1, 0]) == pytest.approx(expected, abs=2e-7 * 0.4), far
        if dtype == np.float64:
            assert cross_entropy(logits, [0.4, 0.0, 0.6], weight=[1, 1, 0]) == pytest.approx(expected, rel=8e-15)


# label_smoothing, z_loss, logit_scale and softcap


@of_any_mass
@each_dtype
def test_softcap_of_minus_infinity_is_minus_infinity(dtype, backend):
    for classes in (3, 70, 513, 4200):
        row, options = np.linspace(-2, 2, classes).astype(dtype), {"softcap": 3.0, "logit_scale": 1.5}
        out = classes // 3
        rest = np.delete(row, out)
        row[out] = -INF
        places = np.delete(np.arange(classes), out)
        for k in (0, classes - 2):
            nll = cross_entropy(row, places[k], **options)
            assert nll == pytest.approx(cross_entropy(rest, k, **options), abs=1e-14)
            scores = token_scores(np.stack([row] * 20), [places[k]] * 20, top_k=classes, **options)
            assert scores.nll.tolist() == [nll] * 20
            assert scores.top_logprobs[:, -1].tolist() == [-INF] * 20
            loss, gradient = cross_entropy_and_grad(row, places[k], **options)
            assert (loss, gradient[out]) == (scores.nll[0], 0)
            assert np.isfinite(reference.float64(gradient)).all()
        assert cross_entropy(row, out, **options) == INF
        log_probs = class_log_probs(row, np.arange(classes), **options)
        assert log_probs[out] == -INF
        assert np.exp(log_probs).sum() == pytest.approx(1, abs=1e-12)
        masses = np.full(classes, 1 / (classes - 1))
        assert cross_entropy(row, masses, **options) == INF
        masses[out] = 0
        expected = cross_entropy(rest, masses[places], **options)
        assert cross_entropy(row, masses, **options) == pytest.approx(expected, rel=1e-14)
        bias, row[out] = np.where(row == -INF, row, 0), 0
        result = linear_cross_entropy(np.ones((1, 1)), row[:, None], [places[0]], lm_head_bias=bias, **options)
        row[out] = -INF
        assert result == pytest.approx(cross_entropy(row, places[0], **options), abs=1e-6)


@each_dtype
def test_softcap_of_rows_of_minus_infinity_alone(dtype, backend):
    for rows, classes in ((1, 1), (1, 4), (20, 4), (3, 513), (2, 4200)):
        logits = np.full((rows, classes), -INF, dtype)
        for targets in (np.zeros(rows, int), np.full((rows, classes), 0.25), np.zeros((rows, classes))):
            losses, gradient = cross_entropy_and_grad(logits, targets, softcap=30.0, reduction="none")
            assert np.isnan(losses).all()
            assert np.isnan(cross_entropy(logits, targets, softcap=30.0, reduction="none")).all()
            assert np.isnan(reference.float64(gradient)).all()
        scores = token_scores(logits, np.zeros(rows, int), softcap=30.0, top_k=1)
        assert np.isnan([scores.nll, scores.entropy, scores.top_logprobs[:, 0]]).all()
        assert scores.logsumexp.tolist() == [-INF] * rows
        assert np.isnan(class_log_probs(logits, [0], softcap=30.0)).all()


def test_softcap_after_a_logit_scale_that_overflows():
    assert cross_entropy([1.7e308, -1.7e308], 0, softcap=2, logit_scale=100) == pytest.approx(
        math.log1p(math.exp(-4)), rel=1e-14
    )


@each_dtype
def test_label_smoothing_of_a_logit_of_minus_infinity_costs_infinity(dtype):
    row = np.array([0, -INF, 1], dtype)
    assert cross_entropy(row, 0, label_smoothing=0.1) == INF
    assert cross_entropy(row, [1, 0, 0], label_smoothing=0.1) == INF
    assert cross_entropy(row, [1, 0, 0]) < INF
    assert math.isnan(cross_entropy(row[1:2], 0, label_smoothing=0.1))


@pytest.mark.parametrize("value", [NAN, INF])
@each_kind
@each_dtype
@each_options
def test_nan_or_infinity_with_label_smoothing_z_loss_logit_scale_softcap(value, kind, dtype, options, rng):
    for classes in (2, 70, 4200):
        logits = scores_for("cross_entropy", rng, (3, classes), dtype)
        targets = np.array([0, 1, classes - 1]) if kind == "ids" else np.ones((3, classes))
        expected = cross_entropy(logits, targets, reduction="none", **options)
        for position in (0, classes // 2, classes - 1):
            spoiled = logits.copy()
            spoiled[1, position] = value
            losses = cross_entropy(spoiled, targets, reduction="none", **options)
            assert_same_bits(losses, [expected[0], NAN, expected[2]])
            assert math.isnan(cross_entropy(spoiled, targets, **options))


def test_logit_scale_that_overflows():
    logits, scale = np.array([[1e300, 2.0, 3.0], [2.0, 1e300, 3.0], [1.0, 1.0, -1e300]]), 1e308
    losses = cross_entropy(logits, [0, 0, 0], logit_scale=scale, reduction="none")
    np.testing.assert_allclose(losses, [0.0, np.inf, math.log(2)], rtol=1e-15)
    assert np.isnan(cross_entropy([1e300, np.nan], 0, logit_scale=scale))
    np.testing.assert_array_equal(
        cross_entropy(logits, np.eye(3)[[0, 1, 0]], logit_scale=scale, reduction="none"), [0.0, 0.0, losses[2]]
    )
    for layout in (logits, np.asfortranarray(logits)):
        scores = token_scores(layout, [0, 0, 0], logit_scale=scale, top_k=1)
        np.testing.assert_array_equal(scores.nll, losses)
        assert scores.rank.tolist() == [1, 3, 2]
        assert scores.logsumexp.tolist() == [np.inf, np.inf, 1e308]
        np.testing.assert_allclose(scores.top_logprobs[:, 0], [0, 0, -math.log(2)], rtol=1e-15)
    loss, gradient = cross_entropy_and_grad(logits[0], 0, logit_scale=scale)
    assert (loss, gradient.tolist()) == (0.0, [0.0, 0.0, 0.0])


@pytest.mark.parametrize("weight", [None, [0, 1, 1]])
def test_logit_scale_that_overflows_where_the_gradient_replaces_the_logits(weight):
    logits = np.array([[1e300, 2.0, 3.0], [2.0, 1e300, 3.0], [1.0, 1.0, -1e300], [-np.inf, 1.0, 2.0]])
    options = {"logit_scale": 1e308, "weight": weight, "reduction": "none"}
    losses, gradient = cross_entropy_and_grad(logits, [0, 2, 0, 0], **options)
    np.testing.assert_array_equal(losses, cross_entropy(logits, [0, 2, 0, 0], **options))
    np.testing.assert_allclose(gradient[1], [0, 1e308, -1e308], rtol=1e-15)
    for order in "CF":
        out = logits.copy(order)
        result, _ = cross_entropy_and_grad(out, [0, 2, 0, 0], out=out, **options)
        np.testing.assert_array_equal(result, losses)
        np.testing.assert_array_equal(out, gradient)


@pytest.mark.parametrize("rows", [1, 17, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logit_scale_that_overflows_in_some_rows_of_a_block(dtype, rows, rng, backend):
    """These are reduced by themselves, and their gradients stay where the others are written."""
    logits, ids = rng.standard_normal((rows, 16)).astype(dtype), rng.integers(16, size=rows)
    logits[::3] = -65537
    for layout in (np.ascontiguousarray, np.asfortranarray):
        gradient = cross_entropy_and_grad(layout(logits), ids, logit_scale=1e307, reduction="sum")[1][::3]
        expected = 1e307 * (1 / 16 - np.eye(16)[ids[::3]])
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(gradient, expected.astype(dtype), rtol=1e-6)


# overflow of the losses and of the perplexity


def test_loss_and_reduction_sum_that_overflow():
    row = np.array([1.7e308, -1.7e308])
    assert cross_entropy(row, 1) == INF
    assert cross_entropy(row, 0) == 0.0
    assert nll_loss([[-1.7e308], [-1.7e308]], [0, 0], reduction="sum") == INF
    assert nll_loss([[-1.7e308], [-1.7e308]], [0, 0]) == 1.7e308  # the mean is finite although the sum overflows
    assert sum_of([1.7e308, 1.7e308, -1.7e308]) == 1.7e308


@pytest.mark.parametrize("loss", [710.0, 1e4, 1e308, INF])
def test_meter_perplexity_beyond_a_float(loss):
    meter = LossMeter()
    meter.update([loss, loss], n_bytes=3, n_words=1)
    assert meter.perplexity == INF
    assert meter.word_perplexity == INF
    assert meter.perplexity.interval[1] == INF or math.isnan(meter.perplexity.interval[1])
    assert "inf" in repr(meter)


def test_meter_perplexity_of_the_largest_loss_that_fits():
    meter = LossMeter()
    meter.update(709.0)
    assert meter.perplexity == pytest.approx(math.exp(709), rel=1e-15)


@needs_mprotect
def test_nothing_is_read_beyond_either_end_of_a_row(run_python):
    run_python(
        FORBIDDEN_PAGES
        + """
import ml_dtypes
from tokenloss._core import _core
from tokenloss import cross_entropy_and_grad, kl_divergence, log_softmax, softmax, token_scores

bytes_[...] = 0
forbid(0)
forbid(2)
for backend in _core.backends():
    _core.use_backend(backend)
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        itemsize, close = np.dtype(dtype).itemsize, 1e-12 if dtype == np.float64 else 2e-7
        page = bytes_[PAGE : 2 * PAGE].view(dtype)
        for count in [1, 2, 3, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1000, PAGE // itemsize]:
            if count <= page.size:
                for row in (page[:count], page[page.size - count :]):
                    for view in (row, row[::-1]):
                        assert abs(float(logsumexp(view)) - np.log(count)) < close
                        assert abs(cross_entropy(view, 0) - np.log(count)) < close
                        assert abs(cross_entropy(view, count - 1) - np.log(count)) < close
                        assert kl_divergence(view, row) == 0
                        assert token_scores(view, 0, top_k=min(count, 2), softcap=9.0).rank == count
                        softmax(view, out=view)
                        assert abs(view.sum(dtype=float) - 1) < 0.01
                        log_softmax(view, out=view)
                        cross_entropy_and_grad(view, 0, out=view)
                        row[...] = 0
                    shares = np.zeros(count, np.float32)
                    shares[-1] = 1
                    assert nll_loss(row, shares) == 0
                    assert abs(cross_entropy(shares, row)) == 0
                    assert nll_loss([row[0]] * count, row) == 0
"""
    )
