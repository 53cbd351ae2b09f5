"""Every function that takes arrays, of arrays without rows, without classes or with a 0 elsewhere.

The sum of no losses is 0.0 and their mean nan; each position has a number, 0.0 where it is left out. Without classes an
included class id is out of range, and integers are not one-hot. A row of no logits has no softmax, so its loss is nan;
a row of no probabilities has no mass, and loss 0.0.
"""

import itertools
import math

import numpy as np
import pytest
from arrays import FLOATS

import tokenloss
from tokenloss import (
    ComparisonMeter,
    LossMeter,
    class_log_probs,
    compare,
    evaluate,
    kl_divergence,
    linear_compare,
    linear_cross_entropy,
    linear_kl_divergence,
    linear_token_scores,
    log_softmax,
    logsumexp,
    next_token,
    sequence_losses,
    softmax,
    token_scores,
    topk_divergence_bound,
)

NAN, INF = math.nan, math.inf
LOSSES = "cross_entropy_loss", "nll_loss", "cross_entropy", "cross_entropy_and_grad"

SHAPES = [
    tuple(length if some else 0 for length, some in zip((2, 3, 4, 5), present, strict=False))
    for ndim in (1, 2, 3)
    for present in itertools.product((True, False), repeat=ndim)
    if not all(present)
]
SHAPES += [(2, 0, 4, 5), (0, 3, 0, 5)]
SHAPES += [(200, 0), (0, 600), (600, 0), (0, 600, 3), (70, 3, 0), (70, 0, 3), (0, 5000)]  # of blocks, and of long rows
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)

LAYOUTS = {
    "C": lambda array: array,
    "Fortran": lambda array: array.copy("F"),
    "strided": lambda array: array.repeat(2, -1)[..., ::-2] if array.ndim else array,
    "swapped": lambda array: array.astype(array.dtype.newbyteorder()),
}
each_shape_in_a_layout = pytest.mark.parametrize(
    ("shape", "layout"), list(zip(SHAPES, itertools.cycle(LAYOUTS.values()), strict=False))
)


def without(shape, axis):
    return shape[:axis] + shape[axis + 1 :]


def kinds_of_targets(shape, axis):
    batch = without(shape, axis)
    return {
        "ids": np.zeros(batch, np.int64),
        "ignored": np.full(batch, -100, np.int16),
        "one-hot": np.zeros(shape, np.uint8),
        "soft": np.zeros(shape, np.float32),
    }


def reduced(numbers, kept, reduction, weights=None):
    """The mean of what is kept, its sum, or each number."""
    if reduction == "none":
        return np.where(kept, numbers, 0.0)
    total = float(numbers[kept].sum())
    divisor = kept.sum() if weights is None else weights[kept].sum()
    return total if reduction == "sum" else total / divisor if divisor else NAN


def assert_fails(error, words, function, /, *arguments, **options):
    with pytest.raises(error) as raised:
        function(*arguments, **options)
    for word in words:
        assert word in str(raised.value)


def masks(batch, classes):
    """Options, with which positions they keep, and what these weigh in a mean of class ids."""
    yield {}, np.ones(batch, bool), None
    yield {"where": np.zeros(batch, bool)}, np.zeros(batch, bool), None
    yield {"where": True, "weight": np.ones(classes)}, np.ones(batch, bool), None
    yield {"sample_weight": np.ones(batch)}, np.ones(batch, bool), np.ones(batch)
    yield {"sample_weight": 0.0}, np.zeros(batch, bool), np.zeros(batch)


@each_shape_in_a_layout
def test_losses_of_empty_arrays_with_axis_reduction_where_weight_sample_weight_workers(shape, layout):
    for axis, loss in itertools.product(range(len(shape)), LOSSES):
        scores, batch, classes = layout(np.zeros(shape, np.float32)), without(shape, axis), shape[axis]
        function = getattr(tokenloss, loss)
        for kind, targets in kinds_of_targets(shape, axis).items():
            named = "y_true" if loss == "cross_entropy_loss" else "targets"
            arguments = (layout(targets), scores) if loss == "cross_entropy_loss" else (scores, layout(targets))
            each = np.full(batch, NAN if loss in ("cross_entropy", "cross_entropy_and_grad") else 0.0)
            for (options, kept, weights), reduction, workers in itertools.product(
                masks(batch, classes), ("mean", "sum", "none"), (1, 2)
            ):
                kept = kept & (kind != "ignored")
                options = options | {"axis": axis, "reduction": reduction, "workers": workers}
                if kept.any() and kind == "ids":
                    assert_fails(IndexError, [named, "[0, 0)"], function, *arguments, **options)
                    continue
                if kept.any() and kind == "one-hot":
                    assert_fails(ValueError, [named, "one-hot"], function, *arguments, **options)
                    continue
                result = function(*arguments, **options)
                if loss == "cross_entropy_and_grad":
                    result, gradient = result
                    assert (gradient.shape, gradient.dtype.kind, gradient.itemsize) == (shape, "f", 4)
                expected = reduced(each, kept, reduction, weights)
                np.testing.assert_array_equal(result, expected)
                assert np.shape(result) == np.shape(expected)
                assert reduction == "none" or type(result) is float


@each_shape
def test_losses_of_empty_arrays_with_label_smoothing_z_loss_logit_scale_softcap_out(shape):
    for axis in range(len(shape)):
        logits, batch = np.zeros(shape), without(shape, axis)
        for options in ({"label_smoothing": 0.1}, {"z_loss": 0.1}, {"logit_scale": 2.0, "softcap": 3.0}):
            options = options | {"axis": axis, "reduction": "none"}
            for targets, is_kept in ((np.zeros(shape), True), (np.full(batch, -100), False)):
                expected = np.full(batch, NAN if is_kept else 0.0)
                np.testing.assert_array_equal(tokenloss.cross_entropy(logits, targets, **options), expected)
                for out in (np.ones(shape), logits):
                    losses, gradient = tokenloss.cross_entropy_and_grad(logits, targets, out=out, **options)
                    np.testing.assert_array_equal(losses, expected)
                    assert gradient is out


@each_shape_in_a_layout
def test_softmax_log_softmax_logsumexp_of_empty_arrays_with_axis_keepdims_out_workers(shape, layout):
    dtype = FLOATS[sum(shape) % len(FLOATS)]
    logits, places = layout(np.zeros(shape, dtype)), range(len(shape))
    for axes in [*places, None, *itertools.combinations(places, 2)]:
        summed = tuple(places) if axes is None else axes if isinstance(axes, tuple) else (axes,)
        batch = tuple(n for k, n in enumerate(shape) if k not in summed)
        with np.errstate(divide="ignore"):
            expected = np.log(np.zeros(shape).sum(summed, keepdims=True))  # -inf, if there is a position
        for workers in (1, 2):
            for function in (softmax, log_softmax):
                result = function(logits, axis=axes, workers=workers)
                assert (result.shape, result.dtype) == (shape, dtype)
                out = np.ones(shape, dtype)
                assert function(logits, axis=axes, out=out, workers=workers) is out
            for keepdims in (False, True):
                options = {"axis": axes, "keepdims": keepdims, "workers": workers}
                of_shape = expected.reshape(expected.shape if keepdims else batch)
                out = np.zeros(of_shape.shape)
                for result in (logsumexp(logits, **options), logsumexp(logits, out=out, **options)):
                    np.testing.assert_array_equal(result, of_shape)
                    assert result.shape == of_shape.shape


@each_shape
def test_class_log_probs_of_empty_arrays_with_class_ids_axis_where_workers(shape):
    for axis, workers in itertools.product(range(len(shape)), (1, 2)):
        logits, batch = np.zeros(shape), without(shape, axis)
        for ids in ([], [0, 0], np.zeros((*batch, 0), int), np.zeros((*batch, 3), int)):
            count = np.shape(ids)[-1]
            options = {"axis": axis, "workers": workers}
            masked = class_log_probs(logits, ids, where=False, **options)
            np.testing.assert_array_equal(masked, np.full((*batch, count), NAN))
            if count and math.prod(batch):
                assert_fails(IndexError, ["class_ids", "[0, 0)"], class_log_probs, logits, ids, **options)
            else:
                assert class_log_probs(logits, ids, **options).shape == (*batch, count)


def assert_no_token(scores, batch, top_k):
    assert (scores.count, scores.nll.shape, scores.kept.any()) == (0, batch, False)
    assert math.isnan(scores.loss)
    assert math.isnan(scores.perplexity)
    assert math.isnan(scores.accuracy)
    assert np.isnan(scores.nll).all()
    assert ((scores.rank == -1) & (scores.argmax == -1)).all()
    if top_k:
        assert scores.top_ids.shape == scores.top_logprobs.shape == (*batch, top_k)


@each_shape_in_a_layout
def test_token_scores_of_empty_arrays_with_axis_where_top_k_kind_workers(shape, layout):
    for axis, workers, kind in itertools.product(range(len(shape)), (1, 2), ("logits", "log_probs", "probs")):
        scores, batch, classes = layout(np.zeros(shape, np.float32)), without(shape, axis), shape[axis]
        ids, ignored = np.zeros(batch, np.int64), np.full(batch, -100)
        options = {"axis": axis, "workers": workers, "kind": kind}
        assert_no_token(token_scores(scores, ids, where=False, **options), batch, 0)
        if classes == 0:
            assert_fails(ValueError, ["top_k", "0 to 0"], token_scores, scores, ignored, top_k=1, **options)
        else:
            assert_no_token(token_scores(scores, ids, top_k=2, **options), batch, 2)
        if math.prod(batch):
            assert_fails(IndexError, ["targets", "[0, 0)"], token_scores, scores, ids, **options)
            assert_no_token(token_scores(scores, ignored, **options), batch, 0)
        else:
            assert_no_token(token_scores(scores, ids, **options), batch, 0)


@each_shape_in_a_layout
def test_kl_divergence_of_empty_arrays_with_axis_where_reduction_kind_workers(shape, layout):
    for axis, workers, reduction in itertools.product(range(len(shape)), (1, 2), ("mean", "sum", "none")):
        scores, batch = layout(np.zeros(shape, np.float32)), without(shape, axis)
        options = {"axis": axis, "workers": workers, "reduction": reduction}
        each, everywhere = np.full(batch, NAN), np.ones(batch, bool)
        for where in (everywhere, ~everywhere):
            result = kl_divergence(scores, scores, where=where, **options)
            np.testing.assert_array_equal(result, reduced(each, where, reduction))
        for kind, word in (("log_probs", "logsumexp"), ("probs", "adds up to 0")):
            if math.prod(batch):
                assert_fails(ValueError, ["logits", word], kl_divergence, scores, scores, kind=kind, **options)
            else:
                result = kl_divergence(scores, scores, kind=kind, **options)
                np.testing.assert_array_equal(result, reduced(each, everywhere, reduction))


@each_shape
@pytest.mark.parametrize("definitions", ["exact", "llama.cpp"])
def test_compare_and_comparison_meter_of_empty_arrays_with_axis_segment_ids_definitions_workers(shape, definitions):
    for axis, workers in itertools.product(range(len(shape)), (1, 2)):
        scores, batch = np.zeros(shape), without(shape, axis)
        ids, ignored = np.zeros(batch, np.int64), np.full(batch, -100)
        options = {"axis": axis, "workers": workers, "definitions": definitions}
        if math.prod(batch):
            assert_fails(IndexError, ["targets", "[0, 0)"], compare, scores, scores, ids, **options)
        for targets, more in ((ignored, {}), (ids, {"where": False}), (ignored, {"segment_ids": ids})):
            actual = compare(scores, scores, targets, **options, **more)
            assert (actual.count, actual.nll.shape, actual.kl.shape) == (0, batch, batch)
            assert math.isnan(actual.perplexity)
            assert math.isnan(actual.mean_kl)
            assert math.isnan(actual.same_top)
        meter = ComparisonMeter(definitions=definitions, workers=workers)
        moved = np.moveaxis(scores, axis, -1)
        for _ in range(2):
            meter.update(moved, moved, ignored)
        assert (meter.result().count, meter.result().nll.size) == (0, 2 * math.prod(batch))


# hidden states (..., D) and weights (V, D) where one length or several are 0
PROJECTIONS = [
    ((*batch, depth), (classes, depth))
    for batch in ((), (3,), (0,), (2, 0), (0, 2), (40,), (1100,))
    for classes in (0, 4, 1300)
    for depth in (0, 5)
    if 0 in (*batch, classes, depth)
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(("hidden_shape", "weight_shape"), PROJECTIONS, ids=str)
def test_linear_functions_of_empty_arrays(hidden_shape, weight_shape, dtype):
    hidden, weight = np.zeros(hidden_shape, dtype), np.zeros(weight_shape, dtype)
    batch, classes = hidden_shape[:-1], weight_shape[0]
    ids, ignored = np.zeros(batch, np.int64), np.full(batch, -100)
    nll = np.full(batch, math.log(classes) if classes else NAN)  # of equal logits
    for bias, workers in itertools.product((None, np.zeros(classes, dtype)), (1, 2)):
        options = {"lm_head_bias": bias, "workers": workers}
        assert linear_cross_entropy(hidden, weight, ignored, reduction="sum", **options) == 0.0
        assert math.isnan(linear_cross_entropy(hidden, weight, ignored, **options))
        soft = np.zeros((*batch, classes))
        result = linear_cross_entropy(hidden, weight, soft, reduction="none", **options)
        np.testing.assert_array_equal(result, np.zeros(batch) if classes else nll)
        assert_no_token(linear_token_scores(hidden, weight, ignored, **options), batch, 0)
        if classes == 0 and math.prod(batch):
            for function in (linear_cross_entropy, linear_token_scores):
                assert_fails(IndexError, ["targets", "[0, 0)"], function, hidden, weight, ids, **options)
        else:
            result = linear_cross_entropy(hidden, weight, ids, reduction="none", **options)
            np.testing.assert_allclose(result, nll, rtol=1e-7)
            scores = linear_token_scores(hidden, weight, ids, top_k=min(classes, 2), **options)
            np.testing.assert_array_equal(scores.nll, result)
            assert (scores.rank == classes).all()
        if math.prod(batch):
            assert_fails(ValueError, ["targets", "one-hot"], linear_cross_entropy, hidden, weight, soft > 0, **options)
    pair = hidden, weight, hidden, weight
    for workers in (1, 2):
        result = linear_kl_divergence(*pair, reduction="none", workers=workers)
        np.testing.assert_array_equal(result, np.zeros(batch) if classes else nll)
        assert linear_compare(*pair, ignored, workers=workers).count == 0
        if classes == 0 and math.prod(batch):
            assert_fails(IndexError, ["targets", "[0, 0)"], linear_compare, *pair, ids, workers=workers)
        else:
            compared = linear_compare(*pair, ids, workers=workers)
            assert compared.count == math.prod(batch)
            np.testing.assert_allclose(compared.nll, nll, rtol=1e-7)


@each_shape
def test_topk_divergence_bound_of_empty_lists(shape):
    ids, logs = np.zeros(shape, int), np.zeros(shape)
    result = topk_divergence_bound(ids, logs, ids, logs)
    for name in ("kl", "base_mass", "mass", "n_common"):
        values = getattr(result, name)
        assert values.shape == shape[:-1]
        assert not np.any(values)  # of no classes


@each_shape
def test_sequence_losses_loss_meter_and_next_token_of_empty_arrays(shape):
    nll, ids = np.zeros(shape), np.zeros(shape, int)
    rows = shape[: min(1, len(shape) - 1)]
    for options, batch in (
        ({}, rows), ({"where": False}, rows), ({"sample_weight": 1.0}, rows),
        ({"n_bytes": np.zeros(rows, int), "n_words": np.zeros(rows, int)}, rows), ({"segment_ids": ids}, (0,)),
        ({"cu_seqlens": [0]}, (0,)), ({"cu_seqlens": [0, 0, 0]}, (2,)),
    ):  # fmt: skip
        result = sequence_losses(nll, **options)
        assert result.count.shape == result.nll.shape == batch
        assert (result.count.any(), result.nll.any()) == (False, False)
        assert np.isnan(result.loss).all()
    assert_fails(ValueError, ["cu_seqlens", "(0,)"], sequence_losses, nll, cu_seqlens=[])
    meter = LossMeter()
    meter.update(nll)
    meter.update(nll, where=np.ones(shape, bool))
    meter.update(nll, sample_weight=nll)
    meter.update(sequence_losses(nll))
    assert (meter, meter.count, meter.total) == (LossMeter(), 0, 0.0)
    for figure in (meter.loss, meter.loss.stderr, meter.perplexity, meter.bits_per_byte, meter.word_perplexity):
        assert math.isnan(figure)
    for classes in (0, 4):
        logits, targets, where = next_token(np.zeros((*shape, classes)), ids, ids)
        expected = (*shape[:-1], max(shape[-1] - 1, 0))
        assert (logits.shape, targets.shape, where.shape) == ((*expected, classes), expected, expected)
    if len(shape) > 1:  # no classes, or no position
        logits, targets, where = next_token(np.zeros(shape), np.zeros(shape[:-1], int))
        assert (logits.shape[-1], targets.shape, where) == (shape[-1], logits.shape[:-1], None)


@each_shape
@pytest.mark.parametrize("shift", [True, False])
def test_evaluate_of_empty_blocks_with_shift_where_segment_ids(shape, shift):
    batch = shape[:-1]
    if not batch and shift:
        blocks = [(np.zeros(shape), np.zeros(batch, int))]
        assert_fails(ValueError, ["block 0", "targets"], evaluate, blocks, shift=True)
        return
    ids, kept = np.zeros(batch, int), np.ones(batch, bool)
    for where, segment_ids in itertools.product((None, kept, ~kept), (None, ids)):
        blocks = [(np.zeros(shape), ids, where, segment_ids)] * 2
        if math.prod(batch) and (where is None or where.any()):
            assert_fails(IndexError, ["targets", "[0, 0)"], evaluate, blocks, shift=shift)
            continue
        result = evaluate(blocks, shift=shift)
        assert result.meter.count == 0
        assert math.isnan(result.meter.loss)


def test_evaluate_without_blocks():
    for blocks in ([], iter([])):
        assert_fails(ValueError, ["source"], evaluate, blocks)
    empty, full = ((np.zeros((n, 3)), np.zeros(n, int), None, np.zeros(n, int)) for n in (0, 5))
    assert evaluate([empty, full, empty, full], shift=True).meter == evaluate([full, full], shift=True).meter
