"""Small plain arrays take a short way, in `front.pxi`: no result, error or type differs from that of the long way."""

import itertools

import numpy as np
import pytest
from arrays import (
    BFLOAT16,
    DEFAULTS,
    FLOATS,
    INTEGERS,
    LAYOUTS,
    LOSSES,
    REDUCTIONS,
    call,
    distributions,
    scores_for,
    shuffled_specials,
    swapped,
)

import tokenloss
from tokenloss import cross_entropy, cross_entropy_loss, log_softmax, logsumexp, nll_loss, softmax
from tokenloss._core import _core

SHAPES = [(3,), (1,), (1, 3), (4, 3), (3, 1), (70, 2), (2, 3, 5), (2, 1, 3, 2), (5, 600)]
EMPTY = [(0,), (0, 3), (3, 0), (2, 0, 3), (0, 0)]
NATIVE = [dtype for dtype in FLOATS if dtype != BFLOAT16]
each_loss = pytest.mark.parametrize("loss", LOSSES)
without_targets = pytest.mark.parametrize("function", [logsumexp, softmax, log_softmax])


class Subclass(np.ndarray):
    pass


def outcome(function, *arguments, **options):
    """The type and the bytes of a result, or the type and the message of an error."""
    try:
        result = function(*arguments, **options)
    except Exception as error:
        return type(error), str(error)
    return type(result), np.shape(result), np.asarray(result).tobytes()


def assert_same(function, *arguments, **options):
    """Compare with the long way, which calls take whose `workers` is no plain int."""
    expected = outcome(function, *arguments, workers=np.int64(1), **options)
    assert outcome(function, *arguments, **options) == expected
    return expected


def small_nll(scores, targets, loss="nll_loss", epsilon=0.5, reduction="mean", **options):
    defaults = {"axis": -1, "weight": None, "ignore_index": -100, "where": None, "sample_weight": None}
    others = defaults | {"workers": None} | options
    some = [others[name] for name in defaults]
    return _core.small_nll(scores, targets, loss == "cross_entropy_loss", epsilon, *some, reduction, others["workers"])


# which calls are short


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_plain_small_arrays_take_the_short_way(reduction):
    logits = np.zeros((2, 3), np.float32)
    defaults = -1, None, -100, None, None, (*DEFAULTS.values(),), reduction, None
    for targets in (np.zeros(2, int), np.full((2, 3), 0.5), np.eye(3, dtype=bool)[:2]):
        assert small_nll(logits, targets, reduction=reduction) is not None
        assert _core.small_cross_entropy(logits, targets, *defaults) is not None
    for workers in (None, 1, 2, -1, 1 << 70):
        assert small_nll(logits, targets, reduction=reduction, workers=workers) is not None
        assert _core.small_cross_entropy(logits, targets, *defaults[:-1], workers) is not None
        assert _core.small_logsumexp(logits, -1, workers) is not None
        assert _core.small_softmax(False, logits, -1, workers) is not None
    for axis in (-2, -1, 0, 1):
        assert _core.small_logsumexp(logits, axis, None) is not None
        ids, shares = np.zeros((2, 3)[1 - axis % 2], int), np.full((2, 3), 0.25, np.float32)
        for targets in (ids, shares):
            assert small_nll(logits, targets, axis=axis, reduction=reduction) is not None
    for options in ({"weight": np.ones(3)}, {"weight": np.ones(3, np.float16)}, {"where": np.array([True, False])}):
        assert small_nll(logits, np.zeros(2, int), reduction=reduction, **options) is not None
    assert logsumexp(logits.astype(BFLOAT16)).size  # from the first array on, its dtype is known
    assert small_nll(logits.astype(BFLOAT16), np.zeros(2, int), reduction=reduction) is not None


def test_everything_else_takes_the_long_way():
    scores, targets = np.zeros((2, 3)), np.zeros(2, int)
    for options in (
        *({"axis": axis} for axis in (2, -3, 10**30, -1.0, True)),
        {"axis": np.array(-1)},
        *({"weight": weight} for weight in (np.ones(2), np.ones((1, 3)), np.ones(3, int), [1.0, 1.0, 1.0])),
        *({"where": mask} for mask in (np.ones(3, bool), np.ones(2, int), [True, True])),
        {"ignore_index": None},
        {"ignore_index": -100.0},
        {"ignore_index": 0},
        {"where": np.True_},
        {"sample_weight": 1.0},
        *({"workers": workers} for workers in (np.int64(1), True, 0, -2, 1.0, "2")),
        {"epsilon": 0.6},
        {"epsilon": np.float32(0.1)},
        {"reduction": "median"},
        {"reduction": None},
    ):
        assert small_nll(scores, targets, **options) is None, options
    for odd in (
        scores.tolist(),
        scores.view(Subclass),
        np.ma.array(scores),
        swapped(scores),
        swapped(scores.astype(BFLOAT16)),
        scores.astype(np.longdouble),
        scores.astype(complex),
        scores.astype(int),
        scores.astype("M8[s]"),
        scores.astype(object),
        np.zeros((2, 3), "f8,f8"),
        np.zeros((1000, 3)),
        np.zeros(()),
        None,
    ):
        assert small_nll(odd, targets) is None, odd
    for odd in ([0, 0], 0, targets.astype(float), targets.astype(bool), swapped(targets), targets[:1], None):
        assert small_nll(scores, odd) is None, odd


def test_a_single_distribution_is_short_unless_its_masses_may_be_labels():
    for dtype in NATIVE:
        scores, one_hot = np.full(3, 0.25, dtype), np.eye(3, dtype=dtype)[0]
        assert small_nll(scores, one_hot, "cross_entropy_loss") is not None
        for odd in ([0, 1, 1], [0, np.nan, 1], [0, np.inf, 1]):
            assert small_nll(scores, np.array(odd, dtype), "cross_entropy_loss") is None, odd


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_class_ids_of_probabilities_are_short_calls_of_any_size(reduction, rng):
    scores, ids = rng.random((9000, 10), np.float32), rng.integers(0, 10, 9000)
    ids[::7] = -100
    assert small_nll(scores, ids, reduction=reduction, loss="cross_entropy_loss") is not None
    assert_same(cross_entropy_loss, ids, scores, reduction=reduction)
    ids[[8000, 8001]] = 10, -1
    kind, message = assert_same(cross_entropy_loss, ids, scores, reduction=reduction)
    assert kind is IndexError
    assert "8000" in message
    assert small_nll(np.zeros((60_000, 1)), np.zeros(60_000, int)) is not None


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_distributions_are_short_calls_of_any_size(reduction, rng):
    scores, masses = rng.random((3000, 10)), rng.random((3000, 10))
    assert small_nll(scores, masses, reduction=reduction, loss="cross_entropy_loss") is not None
    assert_same(cross_entropy_loss, masses, scores, reduction=reduction)
    scores[2000, 3] = 1.5
    kind, message = assert_same(cross_entropy_loss, masses, scores, reduction=reduction)
    assert kind is ValueError
    assert "y_pred[2000, 3]" in message
    assert small_nll(np.zeros((30_000, 10)), np.full((30_000, 10), 0.5)) is not None


# results


@each_loss
@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
def test_class_ids(loss, shape, rng):
    for dtype, target_dtype, reduction in itertools.product(FLOATS, INTEGERS, REDUCTIONS):
        scores = scores_for(loss, rng, shape, dtype)
        targets = rng.integers(0, max(shape[-1], 1), shape[:-1]).astype(target_dtype)
        assert_same(call, tokenloss, loss, scores, targets, reduction=reduction)
        if targets.size and target_dtype.kind == "i":
            targets = np.array(targets)
            targets[(0,) * targets.ndim] = -100
            assert_same(call, tokenloss, loss, scores, targets, reduction=reduction)


@each_loss
@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
def test_distributions(loss, shape, rng):
    for dtype, target_dtype, reduction in itertools.product(FLOATS, [*FLOATS, *INTEGERS, np.bool_], REDUCTIONS):
        scores = scores_for(loss, rng, shape, dtype)
        targets = distributions(rng, shape)
        if np.dtype(target_dtype).kind in "iub":  # one-hot, or not if classes are few and the first row has two
            targets = np.arange(shape[-1]) == rng.integers(0, max(shape[-1], 1), (*shape[:-1], 1))
        assert_same(call, tokenloss, loss, scores, targets.astype(target_dtype), reduction=reduction)


@each_loss
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 1, 3, 2)], ids=str)
def test_axes_weights_and_masks(loss, shape, rng):
    for dtype, axis, reduction in itertools.product(FLOATS, range(-len(shape) - 1, len(shape) + 1), REDUCTIONS):
        place = axis if axis < 0 else axis - len(shape)
        batch = np.delete(shape, place) if -len(shape) <= place < 0 else shape[:-1]
        classes = shape[place] if -len(shape) <= place < 0 else 3
        scores, ids = scores_for(loss, rng, shape, dtype), rng.integers(0, classes, batch)
        weight, mask = rng.random(classes), rng.random(batch) > 0.5
        for options in ({}, {"weight": weight}, {"where": mask}, {"weight": weight.astype(dtype), "where": mask}):
            for targets in (np.asarray(ids), rng.random(shape) / classes):
                assert_same(call, tokenloss, loss, scores, targets, axis=axis, reduction=reduction, **options)
        bad = np.full_like(ids, classes)
        assert_same(call, tokenloss, loss, scores, bad, axis=axis, where=mask, reduction=reduction)
        assert_same(call, tokenloss, loss, scores, bad, axis=axis, where=np.zeros_like(mask), reduction=reduction)


@without_targets
@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
def test_functions_without_targets(function, shape, rng):
    for dtype, axis in itertools.product(FLOATS, range(-len(shape) - 1, len(shape) + 1)):
        assert_same(function, scores_for("cross_entropy", rng, shape, dtype), axis=axis)
        assert_same(function, np.zeros(shape, dtype) * -1, axis=axis)


@pytest.mark.parametrize("function", [softmax, log_softmax])
def test_results_of_softmax_have_the_layout_of_the_logits(function, rng):
    for layout, dtype in itertools.product(LAYOUTS.values(), FLOATS):
        logits = layout(scores_for("cross_entropy", rng, (4, 3, 5), dtype))
        result, expected = function(logits), function(logits, workers=np.int64(1))
        assert (result.dtype, result.strides, result.flags.owndata) == (expected.dtype, expected.strides, True)
        assert not np.may_share_memory(result, logits)


@each_loss
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(loss, layout, rng):
    for dtype, shape, reduction in itertools.product(NATIVE, SHAPES, REDUCTIONS):
        scores = scores_for(loss, rng, shape, dtype)
        ids, shares = rng.integers(0, shape[-1], shape[:-1]), distributions(rng, shape)
        for targets in (np.asarray(ids), shares):
            assert_same(call, tokenloss, loss, layout(scores), layout(targets), reduction=reduction)
        for function in (logsumexp, softmax, log_softmax):
            assert_same(function, layout(scores))


@each_loss
def test_special_values(loss, rng):
    for dtype, shape, reduction in itertools.product(NATIVE, SHAPES, REDUCTIONS):
        scores = scores_for(loss, rng, shape, dtype)
        shuffled_specials(rng, scores)
        ids, shares = rng.integers(0, shape[-1], shape[:-1]), distributions(rng, shape)
        for targets in (np.asarray(ids), shares, shuffled_specials(rng, shares.copy())):
            assert_same(call, tokenloss, loss, scores, targets, reduction=reduction)
        for function in (logsumexp, softmax, log_softmax):
            assert_same(function, scores)


def test_logsumexp_of_minus_zero():
    assert_same(logsumexp, np.array([-0.0]))
    assert_same(logsumexp, np.array([[-0.0, -np.inf], [-np.inf, -np.inf]]))
    assert_same(nll_loss, np.array([0.0, -1]), np.array(0), reduction="none")


def test_results_of_a_single_row_are_numpy_scalars():
    assert type(cross_entropy(np.zeros(3), np.array(1), reduction="none")) is np.float64
    assert type(cross_entropy(np.zeros(3), np.array(1))) is float
    assert type(logsumexp(np.zeros(3))) is np.float64
    assert type(logsumexp(np.zeros((1, 3)))) is np.ndarray


def test_results_are_new_arrays():
    first, second = (logsumexp(np.zeros((2, 3))) for _ in range(2))
    assert not np.shares_memory(first, second)
    assert first.flags.owndata
    assert first.flags.writeable


# errors


@each_loss
@pytest.mark.parametrize("value", [-1, 3, -101, 127, -(2**63)])
def test_bad_class_ids(loss, value):
    dtypes = INTEGERS if value >= -128 else [np.dtype(np.int64)]
    for dtype, shape in itertools.product(dtypes, [(3,), (1, 3), (4, 3), (2, 2, 3)]):
        targets = np.zeros(shape[:-1], dtype)
        targets[(-1,) * targets.ndim] = np.array(value).astype(dtype)
        kind, _ = assert_same(call, tokenloss, loss, np.full(shape, 0.5), targets)
        assert kind is IndexError


@each_loss
def test_bad_arguments(loss, rng):
    scores = {shape: scores_for(loss, rng, shape, np.float64) for shape in [(), (3,), (4, 3), (3, 4), (4, 3, 3)]}
    targets = [np.zeros(shape, dtype) for shape in scores for dtype in (int, bool, float, complex, object, "f8,f8")]
    for x, y in itertools.product([*scores.values(), scores[4, 3].astype(int), scores[4, 3].astype("M8[s]")], targets):
        assert_same(call, tokenloss, loss, x, y)


def test_bad_scores():
    for values in itertools.product([-0.5, -1e-4, 0.0, 0.5, 1.0005, 1.5, np.nan, np.inf], repeat=2):
        for targets in (np.array(0), np.array([1.0, 0]), np.array([0.5, 0.5]), np.array([0, 1])):
            assert_same(cross_entropy_loss, targets, np.array(values))
            assert_same(nll_loss, np.array(values), targets)


@each_loss
def test_integers_that_are_not_one_hot(loss):
    for rows in ([1, 1, 0], [2, 0, 0], [0, 0, 0], [[1, 0, 0], [0, -1, 2]]):
        kind, _ = assert_same(call, tokenloss, loss, np.full(np.shape(rows), 0.5), np.array(rows))
        assert kind is ValueError


@each_loss
def test_options_that_equal_their_defaults(loss):
    options = [
        *({"axis": value} for value in (-1, 1, -1.0, True, np.int64(-1), np.array(-1), "x", 10**30, None)),
        *({"ignore_index": value} for value in (-100, None, 2, np.int64(-100), -100.0, 10**30, "x")),
        *({"reduction": value} for value in ("mean", "".join(["me", "an"]), np.str_("sum"), b"mean", None, 0)),
        *({"where": value} for value in (True, np.True_, 1, None)),
    ]
    if loss == "cross_entropy_loss":
        options += [{"epsilon": value} for value in (1e-12, 0, 0.0, 0.5, 0.6, -1.0, np.nan, np.float64(0.1), 1, "x")]
    if loss == "cross_entropy":
        values = (0.0, -0.0, 0, 1, 1.0, False, True, np.float32(0), np.nan, np.inf, None, "x")
        options += [{name: value} for name in DEFAULTS for value in values]
    scores, targets = np.full((2, 3), 0.5), np.array([0, 2])
    for each in options:
        assert_same(call, tokenloss, loss, scores, targets, **each)


def test_bad_environment_variable_fails_the_call(run_python):
    run_python(
        """
import numpy as np, tokenloss
for call in (lambda: tokenloss.logsumexp(np.zeros(3)), lambda: tokenloss.nll_loss(np.zeros(3) - 1, np.array(1))):
    try:
        call()
    except ValueError as error:
        assert "TOKENLOSS_DISABLE_CPU_FEATURES is 'SSE'" in str(error), error
    else:
        raise AssertionError
""",
        TOKENLOSS_DISABLE_CPU_FEATURES="SSE",
    )
