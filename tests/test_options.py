"""Options of cross_entropy: against the oracle, alone and together, at the edges, and when they do not fit."""

import math

import numpy as np
import pytest
import reference
from arrays import (
    FLOATS,
    KINDS_OF_ROWS,
    OPTIONS,
    assert_near,
    assert_same_bits,
    distributions,
    fails,
    loss_error,
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


@pytest.fixture
def rng():
    return np.random.default_rng(41)


def one_hot(targets, classes):
    return np.eye(classes)[targets]


# together


@each_dtype
@each_kind
@each_options
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("axis", [-1, 0])
def test_options_together(dtype, kind, options, weighted, axis, rng):
    logits, targets, given = problem(rng, kind, dtype, axis, weighted)
    given |= options
    losses = cross_entropy(logits, targets, reduction="none", **given)
    expected = reference.cross_entropy(logits, targets, reduction="none", **given)
    assert_near(losses, expected, loss_error(logits, targets, **given), 4)
    total = math.fsum(losses.ravel())
    assert cross_entropy(logits, targets, reduction="sum", **given) == total
    assert cross_entropy(logits, targets, **given) == total / reference.divisor_of_mean(logits, targets, **given)


@each_options
def test_ignore_index_of_another_class(options, rng):
    logits, targets, given = problem(rng, "ids", np.float64)
    targets = np.where(targets < 0, 2, targets)
    given |= options | {"ignore_index": 2, "reduction": "none"}
    losses = cross_entropy(logits, targets, **given)
    expected = reference.cross_entropy(logits, targets, **given)
    np.testing.assert_allclose(losses, expected, rtol=1e-13)
    assert ((losses == 0) & given["where"]).any()


@each_dtype
@each_options
def test_every_length_of_row(dtype, options, rng):
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
def test_smoothing_and_weights_of_a_long_row_whose_logits_fall(kind, rng):
    logits = np.linspace(40, -80, 200_003, dtype=np.float32)
    weight = np.linspace(0, 2, logits.size)
    targets = np.int64(5) if kind == "ids" else distributions(rng, logits.shape)
    for options in ({"label_smoothing": 0.1}, {"label_smoothing": 1.0, "z_loss": 1e-4, "weight": weight}):
        actual = cross_entropy(logits, targets, reduction="sum", **options)
        expected = reference.cross_entropy(logits, targets, reduction="sum", **options)
        assert_near(actual, np.float64(expected), loss_error(logits, targets, **options), 4)


@pytest.mark.parametrize(("dtype", "kind"), KINDS_OF_ROWS)
def test_accuracy(dtype, kind, rng):
    for length in [1, 2, 65, 513, 4097]:
        row = row_of_logits(kind, rng, length, dtype)
        for options in ({"label_smoothing": 0.1}, {"z_loss": 1e-4}, {"logit_scale": 0.7}, {"softcap": 30.0}):
            for target in (int(row.argmax()), length // 2):
                with np.errstate(over="ignore"):
                    expected = reference.cross_entropy(row, target, **options)
                actual = cross_entropy(row, target, **options)
                assert_near(actual, np.float64(expected), loss_error(row, target, **options), 4)


# one by one


def test_smoothing_by_hand():
    losses = np.array([math.log1p(math.exp(-1)), math.log1p(math.e)])  # of both classes
    assert cross_entropy([1.0, 0.0], 0, label_smoothing=0.2) == pytest.approx(losses @ [0.9, 0.1], rel=1e-15)
    assert cross_entropy([1.0, 0.0], 0, label_smoothing=1) == pytest.approx(losses.mean(), rel=1e-15)
    weighted = losses @ [0.9 * 2, 0.1 * 3]
    assert cross_entropy([1.0, 0.0], 0, label_smoothing=0.2, weight=[2, 3]) == pytest.approx(weighted / 2, rel=1e-15)
    assert cross_entropy([1.0, 0.0], [1, 0], label_smoothing=0.2, weight=[2, 3]) == pytest.approx(weighted, rel=1e-15)


def test_penalty_by_hand():
    assert cross_entropy([0.0, 0.0], 0, z_loss=0.5) == pytest.approx(math.log(2) + math.log(2) ** 2 / 2, rel=1e-15)
    assert cross_entropy([-3.0], 0, z_loss=2) == pytest.approx(18, rel=1e-15)
    assert cross_entropy([[0.0, 0.0]] * 2, [0, 1], weight=[1, 3], z_loss=1) == pytest.approx(
        math.log(2) + 2 * math.log(2) ** 2 / 4, rel=1e-15
    )


def test_scale_and_cap_by_hand():
    def loss(difference):
        return pytest.approx(math.log1p(math.exp(-difference)), rel=1e-14)

    assert cross_entropy([3.0, 1.0], 0, logit_scale=0.5) == loss(1)
    assert cross_entropy([3.0, 1.0], 0, softcap=2) == loss(2 * (math.tanh(1.5) - math.tanh(0.5)))
    assert cross_entropy([3.0, 1.0], 0, softcap=2, logit_scale=4) == loss(2 * (math.tanh(6) - math.tanh(2)))
    assert cross_entropy([1e-300, -1e-300], 0, softcap=1e-5) == loss(0)


def test_cap_of_what_is_scaled_beyond_a_float():
    assert cross_entropy([1.7e308, -1.7e308], 0, softcap=2, logit_scale=100) == pytest.approx(
        math.log1p(math.exp(-4)), rel=1e-14
    )


@each_dtype
@each_kind
def test_options_that_change_nothing_change_no_bit(dtype, kind, rng):
    logits, targets, given = problem(rng, kind, dtype, weighted=True)
    given["reduction"] = "none"
    expected = cross_entropy(logits, targets, **given)
    for options in (
        {"label_smoothing": 0, "z_loss": 0, "logit_scale": 1, "softcap": None},
        {"label_smoothing": np.float32(0), "z_loss": np.int8(0), "logit_scale": np.float16(1)},
    ):
        assert_same_bits(cross_entropy(logits, targets, **given, **options), expected)


@each_dtype
def test_ids_are_scored_as_one_hot_distributions(dtype, rng):
    logits, targets = scores_for("cross_entropy", rng, (20, 70), dtype), rng.integers(0, 70, 20)
    weight = rng.random(70)
    for options in OPTIONS.values():
        given = options | {"weight": weight, "reduction": "none"}
        error = 2 * loss_error(logits, targets, **given)
        expected = cross_entropy(logits, targets, **given)
        assert_near(cross_entropy(logits, one_hot(targets, 70), **given), expected, error, 4)


# the edges


def test_no_chance_at_all_is_a_chance_under_a_cap():
    row = [-INF, 1.0, 2.0]
    capped = np.array([-3.0, 3 * math.tanh(1 / 3), 3 * math.tanh(2 / 3)])
    for target in range(3):
        expected = np.log(np.exp(capped).sum()) - capped[target]
        assert cross_entropy(row, target, softcap=3) == pytest.approx(expected, rel=1e-14)
        assert cross_entropy([-INF] * 5, target, softcap=3) == pytest.approx(math.log(5), rel=1e-15)
    expected = cross_entropy(capped, [0.25, 0.5, 0.25])
    assert cross_entropy(row, [0.25, 0.5, 0.25], softcap=3) == pytest.approx(expected, rel=1e-14)


@each_dtype
def test_smoothing_gives_a_share_to_impossible_classes(dtype):
    row = np.array([0, -INF, 1], dtype)
    assert cross_entropy(row, 0, label_smoothing=0.1) == INF
    assert cross_entropy(row, [1, 0, 0], label_smoothing=0.1) == INF
    assert cross_entropy(row, [1, 0, 0]) < INF
    assert math.isnan(cross_entropy(row[1:2], 0, label_smoothing=0.1))


@pytest.mark.parametrize("value", [NAN, INF])
@each_kind
@each_dtype
@each_options
def test_nan_or_infinity_spoils_its_own_row_only(value, kind, dtype, options, rng):
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


@each_options
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_passed_over_may_be_garbage(options, weighted, rng):
    logits, weight = scores_for("cross_entropy", rng, (4, 9), np.float32), rng.random(9) if weighted else None
    given = options | {"weight": weight}
    expected = cross_entropy(logits[2:], [3, 4], reduction="none", **given)
    logits[:2] = NAN
    losses = cross_entropy(logits, [-100, 10**9, 3, 4], where=[True, False, True, True], reduction="none", **given)
    assert_same_bits(losses, [0.0, 0.0, *expected])
    for reduction, value in (("mean", NAN), ("sum", 0.0)):
        assert_same_bits(cross_entropy(logits[:1], [-100], reduction=reduction, **given), value)
        assert_same_bits(cross_entropy(logits[:1], [[1] * 9], where=False, reduction=reduction, **given), value)
        assert_same_bits(cross_entropy(logits[:0], [], reduction=reduction, **given), value)


@each_options
def test_ignored_target_lies_in_a_row_that_is_kept_elsewhere(options):
    """A class id that equals ignore_index, and the same id where nothing is ignored."""
    logits = [[1.0, 2.0, 3.0]] * 2
    kept = cross_entropy(logits, [1, 2], ignore_index=None, reduction="none", **options)
    assert_same_bits(cross_entropy(logits, [1, 2], ignore_index=1, reduction="none", **options), [0.0, kept[1]])
    assert cross_entropy(logits, [1, 2], ignore_index=1, **options) == kept[1]


# what does not fit

WRONG_VALUES = [
    ("label_smoothing", [-1e-9, 1.0000001, 2, NAN, INF, -INF, 10**400], "between 0 and 1"),
    ("z_loss", [-1e-9, -1, NAN, INF, -INF, 10**400], "0"),
    ("logit_scale", [0, 0.0, -1, NAN, INF, -INF, 10**400], "positive"),
    ("softcap", [0, 0.0, -30, NAN, INF, -INF, 10**400], "positive"),
]
functions = pytest.mark.parametrize("function", [cross_entropy, cross_entropy_and_grad])


@functions
@pytest.mark.parametrize(("name", "values", "fits"), WRONG_VALUES, ids=[name for name, *_ in WRONG_VALUES])
def test_option_out_of_range(function, name, values, fits):
    for value in values:
        with fails(ValueError, f"{name} is", repr(value), "must be", fits):
            function(np.ones((1, 3)), [0], **{name: value})


@functions
@pytest.mark.parametrize("name", [name for name, *_ in WRONG_VALUES])
def test_option_that_is_no_number(function, name):
    for value in ["1", "x", [0.5], [0.5, 1], np.array([0.5]), np.array([0.5, 1]), 0.5j, object(), {}]:
        with fails(TypeError, f"{name} is", "must be", "number"):
            function(np.ones((1, 3)), [0], **{name: value})
    if name != "softcap":
        with fails(TypeError, f"{name} is None", "must be", "number"):
            function(np.ones((1, 3)), [0], **{name: None})


@functions
@each_options
def test_wrong_targets_and_weights_are_named_with_any_options(function, options):
    with fails(IndexError, "targets[1]", 3, "[0, 3)"):
        function(np.ones((2, 3)), [0, 3], **options)
    with fails(ValueError, "weight", "(4,)", "(3,)"):
        function(np.ones((2, 3)), [0, 2], weight=np.ones(4), **options)
    with fails(ValueError, "targets", "(3,)", "(2,)"):
        function(np.ones((2, 3)), [0, 1, 2], **options)
