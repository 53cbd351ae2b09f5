"""All else that is made of logits has the same bits, too, however rows are folded, laid out, shared and batched."""

import numpy as np
import pytest
from arrays import (
    BFLOAT16,
    FLOATS,
    LAYOUTS,
    OPTIONS,
    assert_same_bits,
    scores_for,
    shuffled_specials,
    strided,
    swapped,
    trying_row,
)

from tokenloss import (
    _core,
    cross_entropy,
    cross_entropy_and_grad,
    kl_divergence,
    log_softmax,
    softmax,
    token_scores,
)

SMOOTHED, CAPPED, EVERYTHING = OPTIONS["smoothed_and_penalized"], OPTIONS["scaled_and_capped"], OPTIONS["everything"]
FIELDS = ["nll", "logsumexp", "entropy", "rank", "argmax", "is_greedy"]
LENGTHS = [1, 2, 17, 63, 64, 65, 128, 511, 512, 513, 1025, 4095, 4097, 8193]
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


@pytest.fixture
def rng():
    return np.random.default_rng(77)


def shares_of(targets, shape, axis):
    """Distributions by the targets alone, some shares 0."""
    classes = np.arange(shape[axis]).reshape([-1 if k == axis % len(shape) else 1 for k in range(len(shape))])
    return np.float32((np.expand_dims(targets, axis) + classes) % 3)


def losses(logits, targets, axis=-1, **options):
    return cross_entropy(logits, targets, axis=axis, reduction="none", **options)


def losses_of_shares(logits, targets, axis=-1, **options):
    return losses(logits, shares_of(targets, logits.shape, axis), axis, **options)


def gradient(logits, targets, axis=-1, **options):
    return cross_entropy_and_grad(logits, targets, axis=axis, reduction="sum", **options)[1]


def gradient_of_shares(logits, targets, axis=-1, **options):
    return gradient(logits, shares_of(targets, logits.shape, axis), axis, **options)


def scores(logits, targets, axis=-1, **options):
    """All fields, in a column for each."""
    found = token_scores(logits, targets, axis=axis, top_k=min(5, logits.shape[axis]), **options)
    columns = [np.asarray(getattr(found, name), float)[..., None] for name in FIELDS]
    return np.concatenate([*columns, found.top_ids, found.top_logprobs], -1)


def divergences(logits, targets, axis=-1, **options):
    """From and to other logits that the targets say."""
    others = (shares_of(targets, logits.shape, axis) * 3).astype(np.float16)
    there = kl_divergence(logits, others, axis=axis, reduction="none", **options)
    return np.stack([there, kl_divergence(others, logits, axis=axis, reduction="none", **options)], -1)


def probabilities(logits, targets, axis=-1, **options):
    return softmax(logits, axis=axis, **options)


def log_probabilities(logits, targets, axis=-1, **options):
    return log_softmax(logits, axis=axis, **options)


EACH_CLASS = [gradient, gradient_of_shares, probabilities, log_probabilities]  # their results have the logits' shape
FUNCTIONS = {
    "losses_smoothed": (losses, SMOOTHED),
    "losses_with_everything": (losses, EVERYTHING),
    "losses_of_shares": (losses_of_shares, SMOOTHED),
    "losses_of_shares_with_everything": (losses_of_shares, EVERYTHING),
    "gradient": (gradient, {}),
    "gradient_smoothed": (gradient, SMOOTHED),
    "gradient_with_everything": (gradient, EVERYTHING),
    "gradient_of_shares": (gradient_of_shares, {}),
    "gradient_of_shares_with_everything": (gradient_of_shares, EVERYTHING),
    "softmax": (probabilities, {}),
    "log_softmax": (log_probabilities, {}),
    "scores": (scores, {}),
    "scores_capped": (scores, CAPPED),
    "divergences": (divergences, {}),
}
each_function = pytest.mark.parametrize(("function", "options"), FUNCTIONS.values(), ids=FUNCTIONS)


@each_function
@each_dtype
@pytest.mark.parametrize("kind", ["plain", "with_specials", "wide", "far_out"])
def test_every_backend_gives_the_same_bits(function, options, dtype, kind, rng, use_backend):
    rows = {}
    for length in LENGTHS:
        rows[length] = trying_row(kind, rng, (2, length), dtype)
    results = {}
    for name in _core.backends():
        use_backend(name)
        results[name] = {length: function(row, np.array([0, length // 2]), **options) for length, row in rows.items()}
    for name, values in results.items():
        for length in LENGTHS:
            assert_same_bits(values[length], results["portable"][length], f"{name}, {length} classes")


@each_function
@each_dtype
def test_every_layout_gives_the_same_bits(function, options, dtype, rng, backend):
    for length in (1, 17, 64, 513, 4200):
        logits, targets = scores_for("cross_entropy", rng, (4, length), dtype), rng.integers(0, length, 4)
        shuffled_specials(rng, logits[:2])
        expected = function(logits, targets, **options)
        for name, layout in LAYOUTS.items():
            what = f"{name}, {length} classes"
            assert_same_bits(function(layout(logits), targets, **options), expected, what)
        across = function(np.ascontiguousarray(logits.T), targets, axis=0, **options)
        across = across.T if function in EACH_CLASS else across
        assert_same_bits(across, expected, f"class axis first, {length} classes")


@each_function
@each_dtype
def test_any_number_of_rows_beside_each_other_gives_the_same_bits(function, options, dtype, rng):
    for rows, length in [(2, 1), (7, 5), (16, 70), (17, 513), (33, 1100), (5, 4097)]:
        logits, targets = scores_for("cross_entropy", rng, (rows, length), dtype), rng.integers(0, length, rows)
        logits[rng.integers(rows, size=2), rng.integers(length, size=2)] = np.nan, np.inf
        logits[rng.integers(rows)] = -np.inf
        expected = function(logits, targets, **options)
        for layout in (np.asfortranarray(logits), swapped(np.asfortranarray(logits))):
            assert_same_bits(function(layout, targets, **options), expected, f"{rows} rows of {length} classes")


@each_function
def test_workers_change_no_bit(function, options, rng):
    logits, targets = scores_for("cross_entropy", rng, (300, 4100), np.float32), rng.integers(0, 4100, 300)
    for given in (logits, np.asfortranarray(logits)):
        expected = function(logits, targets, workers=1, **options)
        for workers in (2, 3, 8):
            assert_same_bits(function(given, targets, workers=workers, **options), expected, f"{workers} workers")


@each_function
@each_dtype
def test_a_row_alone_has_the_bits_that_it_has_in_a_batch(function, options, dtype, rng):
    logits, targets = scores_for("cross_entropy", rng, (40, 1100), dtype), rng.integers(0, 1100, 40)
    whole = function(logits, targets, **options)
    alone = [function(row, k, **options) for row, k in zip(logits, targets, strict=True)]
    assert_same_bits(np.stack(alone), whole)
    for size in (2, 7, 39):
        parts = [function(logits[i : i + size], targets[i : i + size], **options) for i in range(0, 40, size)]
        assert_same_bits(np.concatenate(parts), whole, f"batches of {size}")
    shaped = function(logits.reshape(2, 5, 4, 1100), targets.reshape(2, 5, 4), **options)
    assert_same_bits(shaped.reshape(whole.shape), whole)


@each_function
@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
def test_float16_and_bfloat16_are_folded_as_the_float32_they_are(function, options, dtype, rng):
    logits, targets = scores_for("cross_entropy", rng, (5, 3000), dtype), [0, 1, 2, 3, 2999]
    expected = function(logits.astype(np.float32), targets, **options)
    expected = expected.astype(dtype) if function in EACH_CLASS else expected
    assert_same_bits(function(logits, targets, **options), expected)


@pytest.mark.parametrize("options", [{}, EVERYTHING])
@pytest.mark.parametrize("kind", ["ids", "shares"])
def test_sum_and_mean_do_not_depend_on_workers_or_the_order_of_rows(options, kind, rng):
    logits, ids = scores_for("cross_entropy", rng, (300, 4100), np.float32), rng.integers(0, 4100, 300)
    weight, order = rng.random(4100), rng.permutation(300)
    targets = ids if kind == "ids" else shares_of(ids, logits.shape, -1)
    for reduction in ("sum", "mean"):
        given = options | {"reduction": reduction, "weight": weight}
        expected = cross_entropy_and_grad(logits, targets, workers=1, **given)
        for workers in (2, 8):
            loss, gradient = cross_entropy_and_grad(logits[order], targets[order], workers=workers, **given)
            assert loss == expected[0]
            assert_same_bits(gradient, expected[1][order])


@each_dtype
def test_sums_over_classes_of_every_size_do_not_depend_on_the_layout(dtype, rng):
    for _ in range(20):
        sizes = 2.0 ** rng.uniform(-20, 3, (30, 5000))
        logits = (sizes * rng.standard_normal(sizes.shape)).astype(dtype)
        shares = np.where(rng.random(sizes.shape) < 0.03, sizes * rng.standard_normal(sizes.shape), 0)
        for targets, options in ((rng.integers(0, 5000, 30), {"label_smoothing": 1.0}), (shares, {})):
            expected = cross_entropy(logits, targets, reduction="none", **options)
            others = strided(targets) if targets.ndim == 2 else targets
            assert_same_bits(cross_entropy(strided(logits), others, reduction="none", **options), expected)
