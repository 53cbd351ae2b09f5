"""class_log_probs: equals the oracle for every dtype, layout and axis; the likeliest class has the bits of a loss."""

import math

import numpy as np
import pytest
import reference
from arrays import (
    BFLOAT16,
    FLOATS,
    INTEGERS,
    KINDS_OF_ROWS,
    LAYOUTS,
    OnDevice,
    assert_near,
    assert_same_bits,
    fails,
    normalizer_error,
    row_of_logits,
    scores_for,
    strided,
    swapped,
)

from tokenloss import class_log_probs, cross_entropy, log_softmax
from tokenloss._core import _core, threads
from tokenloss._core.validation import as_scores, without_targets

NAN, INF = math.nan, math.inf
TRANSFORMS = {
    "plain": {},
    "scaled": {"logit_scale": 2.5},
    "capped": {"softcap": 5.0},
    "scaled_and_capped": {"logit_scale": 0.7, "softcap": 3.0},
}
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
each_transform = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


def assert_as_oracle(logits, ids, given=None, axis=-1, where=None, **transform):
    """Compare the results with the oracle's; `given` are the same logits in another layout."""
    actual = class_log_probs(logits if given is None else given, ids, axis=axis, where=where, **transform)
    expected = reference.class_log_probs(logits, ids, axis=axis, where=where, **transform)
    error = np.expand_dims(normalizer_error(logits, axis, **transform), -1)
    assert_near(actual, expected, error, 2 if transform else 1)
    assert not np.signbit(actual[actual == 0]).any()
    return actual


# against the oracle


@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_class_log_probs_in_every_dtype_layout_and_axis(dtype, layout, axis, rng):
    logits = scores_for("cross_entropy", rng, (6, 7, 8), dtype)
    batch, classes = tuple(np.delete(logits.shape, axis)), logits.shape[axis]
    where = rng.random(batch) > 0.2
    for ids in ([3, 0, 5], rng.integers(0, classes, (*batch, 4)), rng.integers(0, classes, (batch[1], 2))):
        assert_as_oracle(logits, ids, LAYOUTS[layout](logits), axis, where)


@each_dtype
@each_transform
def test_class_log_probs_with_logit_scale_and_softcap_at_every_length_of_row(dtype, transform, rng, backend):
    for classes in [1, 2, 16, 65, 511, 512, 513, 4097]:
        logits = scores_for("cross_entropy", rng, (3, classes), dtype)
        for ids in (np.arange(min(classes, 40)), rng.integers(0, classes, (3, 5))):
            for layout in (np.ascontiguousarray, np.asfortranarray, swapped):
                assert_as_oracle(logits, ids, layout(logits), **transform)


@pytest.mark.parametrize(("dtype", "kind"), KINDS_OF_ROWS)
def test_accuracy_of_class_log_probs(dtype, kind, rng):
    for length in [1, 2, 65, 513, 4097]:
        row = row_of_logits(kind, rng, length, dtype)
        for ids in ([0], [length // 3, length - 1], rng.integers(0, length, 9)):
            assert_as_oracle(row, ids)


@pytest.mark.parametrize(("dtype", "kind"), KINDS_OF_ROWS)
def test_class_log_probs_equal_log_softmax(dtype, kind, rng):
    rows = np.stack([row_of_logits(kind, rng, 700, dtype) for _ in range(3)])
    expected = log_softmax(reference.float64(rows))
    error = 2 * normalizer_error(rows)[:, None]
    actual = class_log_probs(rows, np.arange(700)[::-1])[:, ::-1]
    assert_near(actual, expected, error + 4e-15 * np.where(np.isfinite(expected), np.abs(expected), 0))


def test_class_log_probs_by_hand():
    assert class_log_probs([0.0, math.log(3)], [1, 0, 1]).tolist() == pytest.approx(
        [math.log(0.75), math.log(0.25), math.log(0.75)], rel=1e-15
    )
    assert str(class_log_probs([5], [0])) == "[0.]"
    assert class_log_probs([17.0, 0.0], [0, 1]).tolist() == pytest.approx(
        [-math.log1p(math.exp(-17)), -17 - math.log1p(math.exp(-17))], rel=1e-15
    )
    assert class_log_probs([[0.0, 0.0], [0.0, 0.0]], [[0], [1]]).tolist() == [[-math.log(2)]] * 2


# the likeliest of the named classes


def losses_of_likeliest(logits, ids, **options):
    """The loss of the likeliest of the classes of each row, and where among them it is: of a tie, the lowest id."""
    named = np.take_along_axis(reference.float64(logits), ids, -1)
    tied = named == named.max(-1, keepdims=True)
    lowest = np.where(tied, ids, logits.shape[-1]).argmin(-1)[..., None]
    targets = np.take_along_axis(ids, lowest, -1)[..., 0]
    return cross_entropy(logits, targets, reduction="none", **options), lowest


@each_dtype
@each_transform
def test_the_likeliest_has_minus_the_bits_of_cross_entropy(dtype, transform, rng, backend):
    for rows, classes in [(1, 7), (3, 2), (70, 10), (33, 100), (20, 512), (5, 700), (2, 9000)]:
        logits = scores_for("cross_entropy", rng, (rows, classes), dtype)
        logits[0] *= np.array(50, dtype)  # near-certain
        ids = rng.integers(0, classes, (rows, 3))
        losses, place = losses_of_likeliest(logits, ids, **transform)
        for layout in (np.ascontiguousarray, np.asfortranarray, strided):
            actual = class_log_probs(layout(logits), ids, **transform)
            assert_same_bits(np.take_along_axis(actual, place, -1)[:, 0], 0 - losses)
            assert (actual <= np.take_along_axis(actual, place, -1)).all()


@each_dtype
def test_small_losses_keep_their_digits(dtype, backend):
    for classes in (2, 600):
        row = np.full(classes, -17, dtype)
        row[1] = 0
        expected = math.log1p((classes - 1) * math.exp(-17))
        assert -class_log_probs(row, [0, 1])[1] == pytest.approx(expected, rel=1e-6)
        assert -class_log_probs(np.stack([row] * 20), [1, 0, 1])[19, 2] == pytest.approx(expected, rel=1e-6)


@each_dtype
@each_transform
def test_equal_logits_have_equal_results_in_any_order_of_ids(dtype, transform, rng, backend):
    for classes in (6, 600):
        logits = rng.integers(-3, 2, (40, classes)).astype(dtype)
        ids = rng.integers(0, classes, 40)
        actual = class_log_probs(logits, ids, **transform)
        named = reference.float64(logits[:, ids])
        order = rng.permutation(40)
        assert_same_bits(class_log_probs(logits, ids[order], **transform), actual[:, order])
        for logit in range(-3, 2):
            for row in range(40):
                assert len(set(actual[row][named[row] == logit])) <= 1
        assert (np.diff(np.take_along_axis(actual, named.argsort(-1), -1)) >= 0).all()


def test_rounding_puts_no_result_above_that_of_a_larger_logit(rng, backend):
    logits = 3 * rng.standard_normal((2000, 10))
    logits[:, 1] = np.nextafter(logits[:, 0], -INF)
    actual = class_log_probs(logits, [0, 1])
    assert (actual[:, 0] >= actual[:, 1]).all()


def test_logits_that_softcap_makes_equal_have_equal_results(backend):
    logits = np.array([[1e4, 2e4, 3e4, 0, -5]] * 20, np.float32)
    actual = class_log_probs(logits, [3, 0, 1, 2], softcap=9.0)
    assert (actual[:, 1:] == actual[0, 1]).all()
    assert_same_bits(actual[:, 3], -cross_entropy(logits, [2] * 20, softcap=9.0, reduction="none"))


# the same bits


# class ids


@pytest.mark.parametrize("integer", INTEGERS, ids=str)
def test_class_ids_of_every_integer_dtype_and_layout(integer, rng):
    logits = scores_for("cross_entropy", rng, (4, 5, 9), np.float32)
    ids = rng.integers(0, 9, (4, 5, 3)).astype(integer)
    expected = class_log_probs(logits, ids.tolist())
    for layout in LAYOUTS.values():
        assert_same_bits(class_log_probs(logits, layout(ids)), expected)
    for few in (ids[0, 0], ids[0], ids[:1, :1], ids[:, :1], ids[..., :1], ids[:, :, :0]):
        assert_same_bits(
            class_log_probs(logits, few), class_log_probs(logits, np.broadcast_to(few, (4, 5, len(few.T))))
        )


@each_transform
def test_more_class_ids_than_classes(transform, rng):
    for classes in (3, 700):
        logits = scores_for("cross_entropy", rng, (20, classes), np.float32)
        assert_as_oracle(logits, np.arange(2000) % classes, **transform)
    row = logits[0]
    many = class_log_probs(row, np.arange(200_000) % classes, **transform)  # with checks for Ctrl-C in between
    assert_same_bits(many, np.resize(class_log_probs(row, np.arange(classes), **transform), 200_000))


@pytest.mark.parametrize("empty", [[], (), np.empty(0, np.int8), np.empty((3, 0), np.uint64)])
def test_no_class_ids_give_an_empty_result_and_read_nothing(empty):
    for classes in (0, 2, 600):
        assert class_log_probs(np.full((3, classes), NAN), empty).shape == (3, 0)


# values that are special


@each_dtype
@each_transform
def test_rows_with_nan_or_infinity_and_rows_of_minus_infinity(dtype, transform, rng, backend):
    for rows, classes in [(1, 1), (1, 5), (20, 5), (4, 600)]:
        logits = scores_for("cross_entropy", rng, (rows, classes), dtype)
        last = classes - 1
        for value in (NAN, INF):
            for place in {0, last}:
                spoiled = logits.copy()
                spoiled[-1, place] = value
                for ids in ([0], [last, 0], [last]):
                    actual = class_log_probs(spoiled, ids, **transform)
                    assert np.isnan(actual[-1]).all()
                    assert_same_bits(actual[:-1], class_log_probs(logits[:-1], ids, **transform))
        spoiled = np.full_like(logits, -INF)
        assert_as_oracle(spoiled, [0, last], **transform)
        assert np.isnan(class_log_probs(spoiled, [0, last])).all()


@each_dtype
def test_minus_infinity_of_a_named_class(dtype, backend):
    for rows, classes in [(1, 3), (20, 3), (4, 600)]:
        logits = np.zeros((rows, classes), dtype)
        logits[:, 1] = -INF
        expected = [-math.log(classes - 1), -INF]
        assert class_log_probs(logits, [0, 1])[-1].tolist() == pytest.approx(expected, abs=2e-7)
        assert class_log_probs(logits, [1, 1])[-1].tolist() == [-INF, -INF]


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("classes", [4, 700])
def test_logit_scale_by_which_logits_overflow(rows, classes, backend):
    logits = np.full((rows, classes), -1.7e308)
    logits[:, :4] = [1.7e308, 1.7e308, 1.69e308, -1e308]
    logits[1:2] = 1.0
    for ids in ([0, 2], [3, 2, 1], [2], [3]):
        actual = assert_as_oracle(logits, ids, logit_scale=2.0)
        losses, place = losses_of_likeliest(logits, np.tile(ids, (rows, 1)), logit_scale=2.0)
        assert_same_bits(np.take_along_axis(actual, place, -1)[:, 0], 0 - losses)
    assert class_log_probs(logits, [0], logit_scale=2.0)[0] == -math.log(2)


# masks


@pytest.mark.parametrize("garbage", [-1, -100, 99, 2**62])
@pytest.mark.parametrize("shape", [(20, 5), (20, 600), (2, 5, 7)])
def test_where_leaves_out_rows_whose_class_ids_may_be_garbage(garbage, shape, rng):
    for layout in (np.ascontiguousarray, np.asfortranarray):
        logits = layout(scores_for("cross_entropy", rng, shape, np.float32))
        ids = rng.integers(0, shape[-1], (*shape[:-1], 3))
        expected, where = class_log_probs(logits, ids), rng.random(shape[:-1]) > 0.4
        logits[~where], ids[~where] = NAN, garbage
        actual = class_log_probs(logits, ids, where=where)
        assert_same_bits(actual, np.where(where[..., None], expected, NAN))
        where[...] = False
        assert np.isnan(class_log_probs(logits, [garbage], where=where)).all()


# errors


@pytest.mark.parametrize("value", [-1, 5, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("workers", [1, 3])
def test_first_class_id_out_of_range_is_named(value, workers, rng):
    logits, ids = np.zeros((4000, 3, 5), np.float32), rng.integers(0, 5, (4000, 3, 4))
    ids[70, 2, 1], ids[70, 2, 3], ids[3000] = value, -7, 99
    where = np.ones((4000, 3), bool)
    where[3, 1], ids[3, 1] = False, -2
    with fails(IndexError, f"class_ids[70, 2, 1] = {value} is out of range [0, 5)"):
        class_log_probs(logits, ids, where=where, workers=workers)
    with fails(IndexError, f"class_ids[2, 1] = {value} is out of range [0, 5)"):
        class_log_probs(logits, ids[70], workers=workers)
    with fails(IndexError, f"class_ids[0, 2, 1] = {value} is out of range [0, 5)"):
        class_log_probs(logits, strided(ids)[70:71], workers=workers)
    with fails(IndexError, f"class_ids[1] = {value} is out of range [0, 5)"):
        class_log_probs(np.moveaxis(logits, -1, 0), swapped(ids[70, 2]), axis=0, workers=workers)


def test_class_id_out_of_range_of_unsigned_integers_and_of_no_classes():
    with fails(IndexError, f"class_ids[1] = {2**64 - 1} is out of range [0, 3)"):
        class_log_probs([1.0, 2.0, 3.0], np.array([0, 2**64 - 1], np.uint64))
    with fails(IndexError, "class_ids[0] = 0 is out of range [0, 0)"):
        class_log_probs(np.zeros((2, 0)), [0])


def test_class_id_that_changes_during_the_call(monkeypatch):
    ids, run = np.array([0, 7]), threads.run

    def run_and_repair(*arguments):
        run(*arguments)
        ids[1] = 1

    monkeypatch.setattr(threads, "run", run_and_repair)
    with fails(IndexError, "class_ids[1] = 7 is out of range [0, 3)"):
        class_log_probs([1.0, 2.0, 3.0], ids)


def test_class_ids_that_fit_in_two_ways():
    fits = "it must be (1, 3, 2) or (3, 1, 2), since it fits (3, 3) in two ways"
    with fails(ValueError, "class_ids has shape (3, 2);", fits):
        class_log_probs(np.zeros((3, 3, 4)), np.zeros((3, 2), int))
    assert class_log_probs(np.zeros((3, 3, 4)), np.zeros(3, int)).shape == (3, 3, 3)


@pytest.mark.parametrize("ids", [0, np.zeros((2, 3), int), np.zeros((3, 2, 1), int), np.zeros((1, 3, 4, 1), int)])
def test_class_ids_of_wrong_shape(ids):
    with fails(ValueError, "class_ids has shape", np.shape(ids), "it must be (K,) or (3, 4, K), or broadcast to it"):
        class_log_probs(np.zeros((3, 4, 5)), ids)
    with fails(ValueError, "class_ids has shape ", "it must be (K,), to fit logits"):
        class_log_probs(np.zeros(5), np.zeros((1, 1), int))


@pytest.mark.parametrize("dtype", ["float16", "float64", "bool", "complex64", "U1", "object", BFLOAT16], ids=str)
def test_class_ids_of_wrong_dtype(dtype):
    with fails(TypeError, f"class_ids has dtype {np.dtype(dtype)}", "it must be integer"):
        class_log_probs(np.zeros((3, 5)), np.ones(2).astype(dtype))


def test_other_arguments_that_are_wrong():
    logits = np.zeros((3, 5))
    with fails(TypeError, "class_ids is on device 2:0"):
        class_log_probs(logits, OnDevice(2, 0))
    with fails(TypeError, "class_ids is a masked array"):
        class_log_probs(logits, np.ma.array([1]))
    with fails(TypeError, "logits has dtype int64"):
        class_log_probs(logits.astype(np.int64), [0])
    with fails(ValueError, "axis is 2, but logits has 2 dimensions"):
        class_log_probs(logits, [0], axis=2)
    with fails(TypeError, "where has dtype int64"):
        class_log_probs(logits, [0], where=[1, 0, 1])
    with fails(ValueError, "where has shape (2,)"):
        class_log_probs(logits, [0], where=[True, False])
    with fails(ValueError, "logit_scale is 0"):
        class_log_probs(logits, [0], logit_scale=0)
    with fails(ValueError, "softcap is -1"):
        class_log_probs(logits, [0], softcap=-1)
    with fails(ValueError, "workers is 0"):
        class_log_probs(logits, [0], workers=0)


# containers, costs


def test_cost_of_a_row_rises_with_the_number_of_its_class_ids():
    scores = as_scores("logits", np.zeros((2, 9)), -1)

    def cost(count):
        ids = np.zeros((2, count), np.int64)
        return _core.ClassLogProbs(scores, without_targets(scores), 1.0, 0.0, ids, np.zeros(2 * count)).row_cost

    assert 0 < cost(0) < cost(5) < cost(500)
