"""reduction='sum' and 'mean', and LossMeter: sums are exact and rounded once, whatever the order of the rows."""

import math

import numpy as np
import pytest
from arrays import LOSSES, OPTIONS, assert_same_bits, call, fails, scores_for, sum_of

import tokenloss
from tokenloss import LossMeter, cross_entropy_and_grad, nll_loss, token_scores

each_loss = pytest.mark.parametrize("loss", LOSSES)


@each_loss
@pytest.mark.parametrize("rows", [1, 2, 10, 1000, 20000])
def test_reduction_sum_is_exact_and_mean_divides_it_once(loss, rows, rng):
    scores = scores_for(loss, rng, (rows, 5), np.float32)
    targets = rng.integers(0, 5, rows)
    losses = call(tokenloss, loss, scores, targets, reduction="none")
    assert call(tokenloss, loss, scores, targets, reduction="sum") == math.fsum(losses)
    assert call(tokenloss, loss, scores, targets) == math.fsum(losses) / rows
    keep = rng.random(rows) > 0.4
    keep[0] = True
    kept = call(tokenloss, loss, scores, targets, where=keep)
    assert kept == math.fsum(losses[keep]) / keep.sum()


@each_loss
def test_reduction_mean_with_weight_divides_two_exact_sums(loss, rng):
    scores, targets = scores_for(loss, rng, (3000, 50), np.float32), rng.integers(0, 50, 3000)
    weight = rng.random(50)
    losses = call(tokenloss, loss, scores, targets, weight=weight, reduction="none")
    assert_same_bits(losses, weight[targets] * call(tokenloss, loss, scores, targets, reduction="none"))
    assert call(tokenloss, loss, scores, targets, weight=weight, reduction="sum") == math.fsum(losses)
    assert call(tokenloss, loss, scores, targets, weight=weight) == math.fsum(losses) / math.fsum(weight[targets])


def large(rng, loss, dtype=np.float32):
    """Scores and targets that are large enough for several threads."""
    scores = scores_for(loss, rng, (600, 5000), dtype)
    return scores, rng.integers(0, 5000, 600)


@each_loss
def test_reduction_sum_and_mean_do_not_depend_on_the_order_of_rows(loss, rng):
    scores, targets = large(rng, loss)
    scores[:, 0] *= 1e3  # a wide spread, where plain sums depend on the order
    expected = [call(tokenloss, loss, scores, targets, reduction=reduction) for reduction in ("sum", "mean")]
    for order in (slice(None, None, -1), rng.permutation(600), np.argsort(targets)):
        for reduction, value in zip(("sum", "mean"), expected, strict=True):
            assert call(tokenloss, loss, scores[order], targets[order], reduction=reduction) == value


def test_sums_that_cancel_are_exact(rng):
    losses = np.concatenate([10.0 ** rng.uniform(-300, 300, 500), [5e-324, 1e-310, 2.0**-1022, 1e308]])
    losses = np.concatenate([losses, -losses, [1e-300, 3.0, -7e250]])
    for order in (slice(None), rng.permutation(losses.size), rng.permutation(losses.size)):
        assert sum_of(losses[order]) == math.fsum([1e-300, 3.0, -7e250])


@pytest.mark.parametrize("bits", [1, 2, 52, 53, 54, 63, 64, 65, 100, 1000, 2000])
def test_sums_are_rounded_to_even_once(bits):
    """A term far below the others decides between two numbers that are equally near without it."""
    unit = 2.0 ** min(bits - 1074, 960)
    for small in (unit * 2.0**-below if bits > below else 0.0 for below in (15, 30, 60)):
        for terms in (
            [unit * 2**53, unit],
            [unit * 2**53, unit, small],
            [unit * 2**53, unit * 2, unit],
            [unit * 2**53, unit * 2, unit, -small],
            [unit * (2**53 - 1), unit / 2 if unit > 1e-320 else unit],
            [unit * 2**53, -unit, -small],
            [unit * 2**32] * 3,
            [-unit * 2**53, -unit, small],
        ):
            assert sum_of(terms) == math.fsum(terms)


def test_random_sums_equal_fsum(rng):
    for _ in range(300):
        count, low, spread = rng.integers(1, 40), rng.uniform(-320, 250), rng.uniform(0, 40)
        terms = rng.choice([-1, 1], count) * 10.0 ** rng.uniform(low, low + spread, count)
        assert sum_of(terms) == math.fsum(terms)


def gradient(logits, targets, axis=-1, **options):
    return cross_entropy_and_grad(logits, targets, axis=axis, reduction="sum", **options)[1]


def distributions_of(targets, shape, axis):
    """Distributions that depend on the targets only, with some zeros."""
    classes = np.arange(shape[axis]).reshape([-1 if k == axis % len(shape) else 1 for k in range(len(shape))])
    return np.float32((np.expand_dims(targets, axis) + classes) % 3)


@pytest.mark.parametrize("options", [{}, OPTIONS["everything"]])
@pytest.mark.parametrize("kind", ["ids", "shares"])
def test_reduction_sum_and_mean_of_loss_and_gradient_do_not_depend_on_workers_or_the_order_of_rows(options, kind, rng):
    logits, ids = scores_for("cross_entropy", rng, (300, 4100), np.float32), rng.integers(0, 4100, 300)
    weight, order = rng.random(4100), rng.permutation(300)
    targets = ids if kind == "ids" else distributions_of(ids, logits.shape, -1)
    for reduction in ("sum", "mean"):
        given = options | {"reduction": reduction, "weight": weight}
        expected = cross_entropy_and_grad(logits, targets, workers=1, **given)
        for workers in (2, 8):
            loss, gradient = cross_entropy_and_grad(logits[order], targets[order], workers=workers, **given)
            assert loss == expected[0]
            assert_same_bits(gradient, expected[1][order])


@pytest.mark.parametrize("losses", [[1e308] * 2, [1e308] * 7, [1.7e308, 1.7e308, 1.0], [-1.7e308] * 3])
@pytest.mark.usefixtures("any_loss_is_taken")
def test_reduction_mean_is_finite_if_the_sum_overflows(losses):
    meter = LossMeter()
    meter.update(losses)
    expected = float(sum(map(int, losses)) // len(losses))
    assert meter.loss == pytest.approx(expected, rel=1e-15)
    if losses[0] > 0:
        assert nll_loss(-np.array(losses)[:, None], [0] * len(losses)) == pytest.approx(expected, rel=1e-15)
    assert math.isinf(meter.total)


# LossMeter


@each_loss
def test_meter_loss_equals_reduction_mean(loss, rng):
    scores, targets = large(rng, loss)
    meter = LossMeter()
    for rows in np.array_split(rng.permutation(600), 7):
        meter.update(call(tokenloss, loss, scores[rows], targets[rows], reduction="none"))
    # whose mean is rounded twice
    assert meter.loss == pytest.approx(call(tokenloss, loss, scores, targets), rel=2**-52)
    assert meter.total == call(tokenloss, loss, scores, targets, reduction="sum")


def test_meter_of_more_bytes_than_a_float_can_count():
    meter = LossMeter()
    meter.update([1e308] * 4, n_bytes=10**310, n_words=10**310)
    assert meter.bits_per_byte == pytest.approx(0.04 / math.log(2), rel=1e-12)
    assert meter.word_perplexity == pytest.approx(math.exp(0.04), rel=1e-12)
    meter.update([1.0], n_bytes=10**700)
    assert meter.bits_per_byte == 0.0


def test_meters_add_up_by_the_function_sum():
    meters = [LossMeter() for _ in range(3)]
    for k, meter in enumerate(meters):
        meter.update([1.0, float(k)])
    assert sum(meters) == sum(meters, LossMeter())
    assert sum(meters[:1]) == meters[0]
    assert sum(meters[:1]) is not meters[0]
    for other in (1, 0.0, None, "0"):
        with pytest.raises(TypeError):
            other + meters[0]


def test_meter_of_token_scores_with_where():
    logits, targets = np.random.default_rng(0).standard_normal((2, 3, 5)), np.array([[0, -100, 2], [3, 4, -100]])
    scores, where = token_scores(logits, targets), np.array([True, True, False])
    for arguments, kept in (((), targets >= 0), ((where,), (targets >= 0) & where)):
        meter, expected = LossMeter(), LossMeter()
        meter.update(scores, *arguments, n_bytes=7)
        expected.update(scores.nll[kept], n_bytes=7)
        assert meter == expected
    with fails(ValueError, "where has shape (2,)"):
        LossMeter().update(scores, [True, False])
