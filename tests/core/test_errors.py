"""Bad input of the losses: each error names the argument, what came and what fits."""

import math

import numpy as np
import pytest
from arrays import FLOATS, LOSSES, OPTIONS, call, distributions, fails, scores_for

import tokenloss
from tokenloss import cross_entropy, cross_entropy_and_grad, cross_entropy_loss, logsumexp

NAN, INF = math.nan, math.inf
NAMES = {
    "cross_entropy_loss": ("y_pred", "y_true"),
    "nll_loss": ("log_probs", "targets"),
    "cross_entropy": ("logits", "targets"),
}
each_loss = pytest.mark.parametrize("loss", LOSSES)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
functions = pytest.mark.parametrize("function", [cross_entropy, cross_entropy_and_grad])
each_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


# a target outside [0, V) that is not ignore_index: IndexError names position, value and V


@each_loss
@pytest.mark.parametrize("value", [-1, 5, 6, -101, 2**31, 2**62, -(2**63), 2**63 - 1])
def test_target_outside_the_classes(loss, value):
    scores = np.ones((2, 3, 5))
    targets = np.zeros((2, 3), np.int64)
    targets[1, 2] = value
    with fails(IndexError, NAMES[loss][1], "[1, 2]", value, "[0, 5)"):
        call(tokenloss, loss, scores, targets)


@each_loss
@pytest.mark.parametrize("value", [5, 255, 2**16 - 1, 2**32 - 1, 2**63, 2**64 - 1])
def test_unsigned_target_outside_the_classes(loss, value):
    for dtype in (np.uint8, np.uint16, np.uint32, np.uint64):
        for swap in (False, True):
            if value <= np.iinfo(dtype).max:
                targets = np.array([0, value], dtype)
                targets = targets.astype(targets.dtype.newbyteorder()) if swap else targets
                with fails(IndexError, NAMES[loss][1], "[1]", value, "[0, 5)"):
                    call(tokenloss, loss, np.ones((2, 5)), targets)


@each_loss
def test_single_target_outside_the_classes(loss):
    with fails(IndexError, NAMES[loss][1], "7", "[0, 3)"):
        call(tokenloss, loss, [0.1, 0.2, 0.7], 7)
    with fails(IndexError, NAMES[loss][1], "7", "[0, 3)"):
        call(tokenloss, loss, [0.1, 0.2, 0.7], np.array(7))


@each_loss
def test_first_of_many_bad_targets_is_named(loss):
    targets = np.zeros((300, 10000), np.int32)
    targets[[200, 250, 299], [9, 0, 9999]] = [3, 4, 5]
    scores = np.broadcast_to(np.float32(0.5), (300, 10000, 3))
    with fails(IndexError, NAMES[loss][1], "[200, 9]", 3, "[0, 3)"):
        call(tokenloss, loss, scores, targets)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("bad", [-1, 3, -(2**63), 2**63 - 1])
def test_bad_target_goes_before_a_bad_score(bad, workers):
    scores, targets = np.full((70000, 3), 0.5), np.zeros(70000, np.int64)
    scores[5] = 7.0
    targets[[60000, 65000]] = bad
    for options in ({}, {"ignore_index": None}, {"weight": np.ones(3)}, {"where": np.ones(70000, bool)}):
        with fails(IndexError, "y_true", "[60000]", bad, "[0, 3)"):
            cross_entropy_loss(targets, scores, workers=workers, **options)
    keep = targets != bad
    with fails(ValueError, "y_pred", "[5, 0]", "7"):
        cross_entropy_loss(targets, scores, where=keep, workers=workers)
    keep[5] = False
    assert cross_entropy_loss(targets, scores, where=keep, workers=workers) == -math.log(0.5)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32], ids=str)
def test_first_refused_row_of_distributions_is_named(dtype):
    targets, probs = np.zeros((600, 4), dtype), np.full((600, 4), 0.25)
    targets[np.arange(600), np.arange(600) % 4] = 1
    probs[301, 2] = probs[302, 2] = 3.0  # of which the second alone has mass
    probs[500] = 3.0
    with fails(ValueError, "y_pred", "[302, 2]", "3"):
        cross_entropy_loss(targets, probs, workers=1)
    if dtype != np.float32:
        targets[299] = 1
        with fails(ValueError, "y_true", "[299]", "not one-hot"):
            cross_entropy_loss(targets, probs, workers=1)


@pytest.mark.parametrize("classes", [4, 3000])
def test_first_refused_probability_of_a_row_is_named(classes):
    targets, probs = np.full((2, classes), 1 / classes), np.full((2, classes), 1 / classes)
    probs[1, 1:3] = 3.0, 5.0
    with fails(ValueError, "y_pred[1, 1] = 3 is not a probability"):
        cross_entropy_loss(targets, probs)
    with fails(ValueError, "log_probs[1, 1] = 3 is not a log-probability"):
        tokenloss.nll_loss(np.where(probs > 1, probs, -1), targets)


@each_loss
def test_bad_target_in_a_strided_array_is_named_on_every_axis(loss):
    targets = np.full((6, 8), 99)[::2, ::-2]
    targets[...] = 0
    targets[2, 3] = -1
    with fails(IndexError, "[2, 3]", -1, "[0, 5)"):
        call(tokenloss, loss, np.ones((3, 4, 5)), targets)
    with fails(IndexError, "[2, 3]", -1, "[0, 5)"):
        call(tokenloss, loss, np.ones((5, 3, 4)), targets, axis=0)


@each_loss
def test_ignore_index_of_another_value_makes_minus_100_bad(loss):
    for ignore_index in (None, 0, -1, 2**63 - 1, 2**64):
        with fails(IndexError, NAMES[loss][1], "[0]", -100, "[0, 3)"):
            call(tokenloss, loss, np.ones((1, 3)), [-100], ignore_index=ignore_index)


def test_ignore_index_is_not_equal_to_a_huge_unsigned_target():
    with fails(IndexError, "[0]", 2**64 - 1, "[0, 3)"):
        cross_entropy(np.ones((1, 3)), np.array([2**64 - 1], np.uint64), ignore_index=-1)
    with fails(IndexError, "[0]", 2**64 - 2, "[0, 3)"):
        cross_entropy(np.ones((1, 3)), np.array([2**64 - 2], np.uint64), ignore_index=2**63 - 1)


# wrong shape, dtype, reduction, axis, epsilon, weight, where, workers, ignore_index


@each_loss
def test_targets_of_wrong_shape(loss):
    scores_name, name = NAMES[loss]
    for shape in [(2,), (3, 2), (2, 3, 1), (2, 3, 4), (1, 3), (), (6,), (2, 3, 5, 1)]:
        with fails(ValueError, name, shape, (2, 3), "class ids", (2, 3, 5), "distributions", scores_name):
            call(tokenloss, loss, np.ones((2, 3, 5)), np.zeros(shape, int))
    with fails(ValueError, name, (2, 3), (2, 5), (2, 3, 5)):
        call(tokenloss, loss, np.ones((2, 3, 5)), np.zeros((2, 3), int), axis=1)


@each_loss
@pytest.mark.parametrize("dtype", ["i8", "u1", "?", "c8", "c16", "O", "U3", "S3", "M8[s]", "m8[s]", "V4"])
def test_scores_of_wrong_dtype(loss, dtype):
    with fails(TypeError, NAMES[loss][0], np.dtype(dtype), "float16, bfloat16, float32 or float64"):
        call(tokenloss, loss, np.zeros((2, 3), dtype), [0, 1])


@pytest.mark.skipif(np.dtype(np.longdouble) == np.float64, reason="long double is double here")
def test_long_double_is_refused():
    with fails(TypeError, "logits", np.dtype(np.longdouble), "float64"):
        logsumexp(np.zeros(3, np.longdouble))


def test_structured_scores_are_refused():
    with fails(TypeError, "logits", "float16"):
        logsumexp(np.zeros(3, [("a", "f4"), ("b", "f4")]))


@each_loss
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "?", "c8", "O", "U3", "M8[s]"])
def test_class_ids_of_wrong_dtype(loss, dtype):
    with fails(TypeError, NAMES[loss][1], np.dtype(dtype), "integer", (2,)):
        call(tokenloss, loss, np.ones((2, 3)), np.zeros(2, dtype))


@each_loss
@pytest.mark.parametrize("dtype", ["c8", "O", "U3", "M8[s]"])
def test_distributions_of_wrong_dtype(loss, dtype):
    with fails(TypeError, NAMES[loss][1], np.dtype(dtype), "integer, bool, float16"):
        call(tokenloss, loss, np.ones((2, 3)), np.zeros((2, 3), dtype))


@each_loss
def test_class_ids_beyond_every_integer(loss):
    with fails(TypeError, NAMES[loss][1], "object", "integer"):
        call(tokenloss, loss, np.ones((1, 3)), [2**64])


@each_loss
@pytest.mark.parametrize("value", [None, "abc", {}, ..., [[1, 2], [3]], [None, 1.0], [[1.0, "a"]]], ids=repr)
def test_scores_and_targets_that_are_no_numeric_array(loss, value):
    scores_name, name = NAMES[loss]
    with fails(TypeError, scores_name):
        call(tokenloss, loss, value, [0])
    with pytest.raises((TypeError, ValueError), match=name):
        call(tokenloss, loss, np.ones((2, 3)), value)


@each_loss
def test_masked_arrays_are_refused_in_favor_of_where(loss):
    scores_name, name = NAMES[loss]
    with fails(TypeError, scores_name, "masked array", "where"):
        call(tokenloss, loss, np.ma.masked_array([[1.0, 2.0]], [[True, False]]), [0])
    with fails(TypeError, name, "masked array", "where"):
        call(tokenloss, loss, [[1.0, 2.0]], np.ma.masked_array([0], [True]))


@each_loss
@pytest.mark.parametrize(
    "value", ["Mean", "", "average", None, 0, True, ["mean"], ("none",), np.array(["mean", "sum"])]
)
def test_reduction_that_is_no_name_of_one(loss, value):
    with fails(ValueError, "reduction", "'mean', 'sum' or 'none'"):
        call(tokenloss, loss, np.ones((1, 3)), [0], reduction=value)


@each_loss
@pytest.mark.parametrize("axis", [2, -3, 10**30])
def test_axis_that_the_scores_do_not_have(loss, axis):
    with fails(ValueError, "axis", axis, NAMES[loss][0], "2 dimensions"):
        call(tokenloss, loss, np.ones((1, 3)), [0], axis=axis)


@each_loss
@pytest.mark.parametrize("axis", [None, 1.0, "1", (0,)])
def test_axis_that_is_no_integer(loss, axis):
    with fails(TypeError, "axis", axis, "integer"):
        call(tokenloss, loss, np.ones((1, 3)), [0], axis=axis)


@each_loss
def test_scores_without_an_axis_of_classes(loss):
    for scores in (0.5, np.float32(0.5), np.array(0.5)):
        with fails(ValueError, NAMES[loss][0], "scalar", "axis"):
            call(tokenloss, loss, scores, 0)


@pytest.mark.parametrize("epsilon", [-1e-12, 0.50001, 1, 2, NAN, INF, -INF])
def test_epsilon_out_of_range(epsilon):
    with fails(ValueError, "epsilon", repr(epsilon), "0 and 0.5"):
        cross_entropy_loss([0], np.ones((1, 3)), epsilon=epsilon)


@pytest.mark.parametrize("epsilon", [None, "1e-12", [0.1, 0.2], 1j, ...], ids=repr)
def test_epsilon_that_is_no_number(epsilon):
    with fails(TypeError, "epsilon", "0 and 0.5"):
        cross_entropy_loss([0], np.ones((1, 3)), epsilon=epsilon)


@each_loss
def test_weight_of_wrong_shape(loss):
    for weight in (1.0, np.ones(2), np.ones(4), np.ones((1, 3)), np.ones((3, 1)), []):
        with fails(ValueError, "weight", np.shape(weight), "(3,)"):
            call(tokenloss, loss, np.ones((2, 3)), [0, 1], weight=weight)


@each_loss
def test_weight_of_wrong_dtype(loss):
    for weight in (np.ones(3, complex), np.ones(3, object), ["a", "b", "c"]):
        with fails(TypeError, "weight", np.asarray(weight).dtype, "float"):
            call(tokenloss, loss, np.ones((2, 3)), [0, 1], weight=weight)


@each_loss
def test_where_of_wrong_shape(loss):
    for shape in [(3,), (2, 1), (2, 3), (1, 2), (0,)]:
        with fails(ValueError, "where", shape, (2,), "broadcast"):
            call(tokenloss, loss, np.ones((2, 3)), [0, 1], where=np.ones(shape, bool))


@each_loss
@pytest.mark.parametrize("name", ["where", "sample_weight"])
def test_where_and_sample_weight_that_fit_in_two_ways(loss, name):
    value = np.ones(3, {"where": bool, "sample_weight": float}[name])
    with fails(ValueError, f"{name} has shape (3,); it must be (1, 3) or (3, 1), since it fits (3, 3) in two ways"):
        call(tokenloss, loss, np.ones((3, 3, 2)), np.ones((3, 3), int), **{name: value})


@each_loss
def test_where_of_wrong_dtype(loss):
    for where in ([0, 1], [1.0, 0.0], np.ones(2, np.uint8), "ab", np.ones(2, object)):
        with fails(TypeError, "where", np.asarray(where).dtype, "bool"):
            call(tokenloss, loss, np.ones((2, 3)), [0, 1], where=where)


@each_loss
def test_workers_that_are_no_positive_integer(loss):
    for workers in (0, -2, -(2**70)):
        with fails(ValueError, "workers", workers, "positive integer, -1 for all CPUs, or None"):
            call(tokenloss, loss, np.zeros((1, 3)), [0], workers=workers)
    for workers in (1.0, "2", [1]):
        with fails(TypeError, "workers", workers, "positive integer, -1 for all CPUs, or None"):
            call(tokenloss, loss, np.zeros((1, 3)), [0], workers=workers)


@each_loss
def test_ignore_index_that_is_no_integer(loss):
    for value in (-100.0, "0", [1]):
        with fails(TypeError, "ignore_index", value, "integer or None"):
            call(tokenloss, loss, np.ones((1, 3)), [0], ignore_index=value)


@each_loss
def test_options_are_keywords_only(loss):
    with pytest.raises(TypeError, match="positional"):
        getattr(tokenloss, loss)(np.ones((1, 3)), [0], -1)


@each_loss
def test_bad_input_leaves_its_arrays_as_they_were(loss):
    scores, targets, weight = np.ones((2, 3)), np.array([0, 3]), np.ones(3)
    with pytest.raises(IndexError):
        call(tokenloss, loss, scores, targets, weight=weight, reduction="none")
    assert (scores == 1).all()
    assert targets.tolist() == [0, 3]
    assert (weight == 1).all()


@each_loss
def test_good_input_is_not_written_to(loss, rng):
    scores = scores_for(loss, rng, (20, 1000), np.float32)
    scores[3, 4] = np.nan
    targets, weight, where = rng.integers(0, 1000, 20), rng.random(1000), rng.random(20) > 0.5
    copies = [array.tobytes() for array in (scores, targets, weight, where)]
    call(tokenloss, loss, scores, targets, weight=weight, where=where)
    call(tokenloss, loss, scores, np.eye(1000)[targets], weight=weight, where=where)
    assert [array.tobytes() for array in (scores, targets, weight, where)] == copies


# label_smoothing, z_loss, logit_scale and softcap


WRONG_VALUES = [
    ("label_smoothing", [-1e-9, 1.0000001, 2, NAN, INF, -INF, 10**400], "between 0 and 1"),
    ("z_loss", [-1e-9, -1, NAN, INF, -INF, 10**400], "0"),
    ("logit_scale", [0, 0.0, -1, NAN, INF, -INF, 10**400], "positive"),
    ("softcap", [0, 0.0, -30, NAN, INF, -INF, 10**400], "positive"),
]


@functions
@pytest.mark.parametrize(("name", "values", "fits"), WRONG_VALUES, ids=[name for name, *_ in WRONG_VALUES])
def test_label_smoothing_z_loss_logit_scale_softcap_out_of_range(function, name, values, fits):
    for value in values:
        with fails(ValueError, f"{name} is", repr(value), "must be", fits):
            function(np.ones((1, 3)), [0], **{name: value})


@functions
@pytest.mark.parametrize("name", [name for name, *_ in WRONG_VALUES])
def test_label_smoothing_z_loss_logit_scale_softcap_that_is_no_number(function, name):
    for value in ["1", "x", [0.5], [0.5, 1], np.array([0.5]), np.array([0.5, 1]), 0.5j, object(), {}]:
        with fails(TypeError, f"{name} is", "must be", "number"):
            function(np.ones((1, 3)), [0], **{name: value})
    if name != "softcap":
        with fails(TypeError, f"{name} is None", "must be", "number"):
            function(np.ones((1, 3)), [0], **{name: None})


@pytest.mark.parametrize("value", [True, False, np.True_, np.array(True)], ids=repr)
def test_bools_are_no_numbers(value):
    """True would be the number 1: a boolean where a number belongs is a mistake."""
    logits, ids = np.zeros((2, 3)), [0, 1]
    for name in ("axis", "ignore_index", "label_smoothing", "z_loss", "logit_scale", "softcap", "workers"):
        with fails(TypeError, f"{name} is {value!r}", "must be"):
            cross_entropy(logits, ids, **{name: value})
    nll = np.ones(2)
    for function in (
        lambda: cross_entropy_loss(ids, logits, epsilon=value),
        lambda: tokenloss.token_scores(logits, ids, top_k=value),
        lambda: tokenloss.compare(logits, logits, ids, classes=value),
        lambda: tokenloss.draft_acceptance(logits, logits, temperature=value),
        lambda: tokenloss.draft_acceptance(logits, logits, cost_ratio=value),
        lambda: tokenloss.LossMeter().update(nll, n_bytes=value),
        lambda: tokenloss.LossMeter().update(nll, n_words=value),
        lambda: list(tokenloss.windows(100, value, 10)),
        lambda: tokenloss.compare(logits, logits, ids).check(max_kl=value),
        lambda: tokenloss.evaluate([(logits, ids)], shift=False).check(max_loss=value),
    ):
        with fails((TypeError, ValueError), f"is {value!r}", "must be"):
            function()


@functions
@each_options
def test_wrong_targets_and_weight_with_label_smoothing_z_loss_logit_scale_softcap(function, options):
    with fails(IndexError, "targets[1]", 3, "[0, 3)"):
        function(np.ones((2, 3)), [0, 3], **options)
    with fails(ValueError, "weight", "(4,)", "(3,)"):
        function(np.ones((2, 3)), [0, 2], weight=np.ones(4), **options)
    with fails(ValueError, "targets", "(3,)", "(2,)"):
        function(np.ones((2, 3)), [0, 1, 2], **options)


@each_loss
def test_ignore_index_with_distributions_is_refused(loss, rng):
    scores, shares = scores_for(loss, rng, (4, 3), np.float64), distributions(rng, (4, 3))
    for ignore_index in (0, 1, -1, 2**70):
        with fails(ValueError, "ignore_index", ignore_index, "distributions", "where"):
            call(tokenloss, loss, scores, shares, ignore_index=ignore_index)
    expected = call(tokenloss, loss, scores, shares)
    for ignore_index in (None, -100):  # the default value is accepted
        assert call(tokenloss, loss, scores, shares, ignore_index=ignore_index) == expected


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_targets_and_where_of_a_float_dtype_name_the_dtype(dtype):
    with fails(TypeError, f"targets has dtype {dtype.name}; it must be integer"):
        cross_entropy(np.zeros((1, 3)), np.array([1], dtype))
    with fails(TypeError, f"where has dtype {dtype.name}; it must be bool"):
        cross_entropy(np.zeros((1, 3)), [1], where=np.array([1], dtype))
