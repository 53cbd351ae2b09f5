"""The same bits on every backend, in every layout, and for any workers and batches."""

import ctypes.util
import itertools
import platform
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from arrays import (
    BFLOAT16,
    FLOATS,
    LAYOUTS,
    LOSSES,
    OPTIONS,
    assert_same_bits,
    call,
    distributions,
    possible,
    scores_for,
    shuffled_specials,
    strided,
    swapped,
    token_columns,
    trying_row,
)

import tokenloss
from tokenloss import (
    class_log_probs,
    compare,
    cross_entropy,
    cross_entropy_and_grad,
    cross_entropy_loss,
    kl_divergence,
    linear_cross_entropy,
    linear_kl_divergence,
    log_softmax,
    logsumexp,
    nll_loss,
    softmax,
    token_scores,
)
from tokenloss._core import _core

each_loss = pytest.mark.parametrize("loss", LOSSES)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
KINDS = ["plain", "with_specials", "wide", "far_out", "near_underflow"]


LENGTHS = [1, 2, 17, 63, 64, 65, 128, 511, 512, 513, 1023, 1025, 1536, 3584, 4095, 4097, 4608, 8193, 12000, 66000]


def row_values(loss, scores, targets):
    """The loss of each row."""
    return call(tokenloss, loss, scores, targets, reduction="none")


# backends and layouts


@each_loss
@each_dtype
def test_every_layout_of_distributions_gives_the_same_bits_of_losses(loss, dtype, rng):
    for length in (1, 7, 64, 100, 513, 5000):
        scores = scores_for(loss, rng, (3, length), np.float32)
        shares = (rng.random((3, length)) * (rng.random((3, length)) > 0.6)).astype(dtype)
        expected = row_values(loss, scores, shares)
        for name, layout in LAYOUTS.items():
            assert_same_bits(row_values(loss, scores, layout(shares)), expected, f"{name}, {length} classes")
            assert_same_bits(row_values(loss, layout(scores), layout(shares)), expected, f"{name}, {length} classes")


@pytest.mark.parametrize("classes", [*range(1, 13), 23, 24, 30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_hot_targets_and_probabilities_may_differ_in_layout(dtype, classes, rng, backend):
    p, ids = rng.dirichlet(np.ones(classes), 70).astype(dtype), rng.integers(0, classes, 70)
    y = np.eye(classes, dtype=dtype)[ids]
    expected = cross_entropy_loss(ids, p, reduction="none")
    for masses, scores in itertools.product((y, np.asfortranarray(y), y.astype(bool)), (p, np.asfortranarray(p))):
        assert_same_bits(cross_entropy_loss(masses, scores, reduction="none"), expected)
    rows = rng.random(70) < 0.7
    total = cross_entropy_loss(y, np.asfortranarray(p), where=rows, reduction="sum")
    assert_same_bits(total, cross_entropy_loss(y[rows], p[rows], reduction="sum"))


@pytest.mark.parametrize("offset", range(0, 64, 4))
def test_every_alignment_gives_the_same_bits(offset, rng):
    row = rng.standard_normal(5000).astype(np.float32)
    memory = np.zeros(row.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    aligned = memory[start : start + row.nbytes].view(np.float32)
    aligned[...] = row
    assert_same_bits(cross_entropy(aligned, 777), cross_entropy(row, 777))


def test_every_float16_is_read_exactly(backend):
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    negative = finite[finite < 1e-3]
    for row in (negative[:, None], swapped(negative[:, None])):
        np.testing.assert_array_equal(
            nll_loss(row, np.zeros(negative.size, int), reduction="none"), -negative.astype(float)
        )
    pairs = np.stack([finite, np.zeros_like(finite)], 1)
    assert_same_bits(logsumexp(pairs), logsumexp(pairs.astype(np.float32)))


# workers


@pytest.mark.parametrize("targets", ["ids", "distributions"])
@each_loss
def test_workers_change_no_bit_of_sums_and_means(loss, targets, rng):
    scores, weight = scores_for(loss, rng, (200, 5000), np.float32), rng.random(5000)
    targets = rng.integers(0, 5000, 200) if targets == "ids" else distributions(rng, (200, 5000))
    for reduction, options in itertools.product(("sum", "mean"), ({}, {"weight": weight})):
        options = options | {"reduction": reduction}
        assert len({call(tokenloss, loss, scores, targets, workers=n, **options) for n in (1, 2, 3, 8, 100)}) == 1


# the caller's floating-point environment

ROUNDING = {"x86_64": [0x400, 0x800, 0xC00], "aarch64": [0x400000, 0x800000, 0xC00000]}
FLUSH_TO_ZERO = 0x8040  # bits of the MXCSR, at byte 28 of the environment


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() not in ROUNDING, reason="needs Linux's fenv_t")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_floating_point_environment_of_the_caller_changes_no_bit(reduction, rng, backend):
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    saved = (ctypes.c_uint8 * 32)()
    logits = rng.standard_normal((4, 3000)).astype(np.float16)
    subnormal = 1e-40 * rng.standard_normal((4, 3000)).astype(np.float32)
    far = 1e6 * rng.standard_normal((4, 3000))
    spread = (far / 4e4).astype(np.float32)  # some probabilities are subnormal
    targets = rng.integers(0, 3000, 4)
    tiny = -np.array([5e-324, 1e-310, 2e-310])[:, None]
    calls = [
        lambda: cross_entropy(logits, targets, reduction=reduction),
        lambda: cross_entropy(subnormal, targets, reduction=reduction),
        lambda: cross_entropy(far, targets, reduction=reduction),
        lambda: nll_loss(tiny, [0, 0, 0], reduction=reduction),
        lambda: logsumexp(logits),
        lambda: softmax(spread),
        lambda: log_softmax(logits),
        lambda: cross_entropy_and_grad(far, targets, reduction=reduction, logit_scale=1e-4)[1],
        lambda: cross_entropy_and_grad(logits, targets, reduction=reduction, label_smoothing=0.1, softcap=3.0)[1],
        lambda: token_scores(logits, targets).entropy,
        lambda: token_scores(subnormal, targets, top_k=5).top_logprobs,
        lambda: kl_divergence(logits, far, reduction=reduction),
    ]
    expected = [function() for function in calls]
    environments = [(rounding, False) for rounding in ROUNDING[platform.machine()]]
    environments += [(0, True)] if platform.machine() == "x86_64" else []
    for rounding, flush in environments:
        for function, value in zip(calls, expected, strict=True):
            assert libm.fegetenv(saved) == 0
            try:
                changed = (ctypes.c_uint8 * 32)(*saved)
                if flush:
                    control = int.from_bytes(bytes(saved[28:32]), "little") | FLUSH_TO_ZERO
                    changed[28:32] = control.to_bytes(4, "little")
                assert libm.fesetenv(changed) == 0
                libm.fesetround(rounding)
                result = function()
                kept = libm.fegetround()
            finally:
                libm.fesetenv(saved)
            assert_same_bits(result, value, f"rounding {rounding:#x}, flush to zero {flush}")
            assert kept == rounding


@pytest.mark.parametrize("subnormal", [5e-324, 2.0**-1030, -5e-324])
def test_subnormal_logits_are_not_flushed(subnormal):
    assert nll_loss([[-subnormal]], [0], reduction="sum") == subnormal
    assert nll_loss([[-subnormal]] * 4, [0] * 4, reduction="sum") == 4 * subnormal


# every function: losses, gradients, label_smoothing, z_loss, logit_scale, softcap, token scores, softmax, divergences

SMOOTHED, CAPPED, EVERYTHING = OPTIONS["smoothed_and_penalized"], OPTIONS["scaled_and_capped"], OPTIONS["everything"]


def distributions_of(targets, shape, axis):
    """Distributions that depend on the targets only, with some zeros."""
    classes = np.arange(shape[axis]).reshape([-1 if k == axis % len(shape) else 1 for k in range(len(shape))])
    return np.float32((np.expand_dims(targets, axis) + classes) % 3)


def losses(logits, targets, axis=-1, **options):
    return cross_entropy(logits, targets, axis=axis, reduction="none", **options)


def losses_of_log_probs(log_probs, targets, axis=-1, **options):
    return nll_loss(log_probs, targets, axis=axis, reduction="none", **options)


def losses_of_probs(probs, targets, axis=-1, **options):
    return cross_entropy_loss(targets, probs, axis=axis, reduction="none", **options)


def normalizers(logits, targets, axis=-1, **options):
    return logsumexp(logits, axis=axis, **options)


def losses_of_distributions(logits, targets, axis=-1, **options):
    return losses(logits, distributions_of(targets, logits.shape, axis), axis, **options)


def gradient(logits, targets, axis=-1, **options):
    return cross_entropy_and_grad(logits, targets, axis=axis, reduction="sum", **options)[1]


def gradient_weighted(logits, targets, axis=-1, **options):
    """Of class weights from 1e-310 to 1e290."""
    weight = 10.0 ** np.linspace(-310, 290, logits.shape[axis])
    return gradient(logits, targets, axis, weight=weight, **options)


def gradient_of_distributions(logits, targets, axis=-1, **options):
    return gradient(logits, distributions_of(targets, logits.shape, axis), axis, **options)


def scores(logits, targets, axis=-1, **options):
    """All fields, one column each."""
    return token_columns(token_scores(logits, targets, axis=axis, top_k=min(5, logits.shape[axis]), **options))


def divergences(logits, targets, axis=-1, **options):
    """From and to other logits, which depend on the targets."""
    others = (distributions_of(targets, logits.shape, axis) * 3).astype(np.float16)
    there = kl_divergence(logits, others, axis=axis, reduction="none", **options)
    return np.stack([there, kl_divergence(others, logits, axis=axis, reduction="none", **options)], -1)


def divergences_of_probs(probs, targets, axis=-1, **options):
    """From and to other probabilities, which depend on the targets."""
    others = softmax(distributions_of(targets, probs.shape, axis), axis=axis)
    options |= {"kind": "probs", "reduction": "none", "axis": axis}
    return np.stack([kl_divergence(probs, others, **options), kl_divergence(others, probs, **options)], -1)


def named_classes(logits, targets, axis=-1, **options):
    ids = np.stack([targets, np.zeros_like(targets), np.full_like(targets, logits.shape[axis] - 1)], -1)
    return class_log_probs(logits, ids, axis=axis, **options)


def compared(logits, targets, axis=-1, **options):
    """All columns of a comparison with a base, which depends on the targets."""
    base = log_softmax(distributions_of(targets, logits.shape, axis), axis=axis)
    result = compare(base, logits, targets, axis=axis, **options)
    return np.stack([result.nll, result.base_nll, result.kl, result.delta_p, result.is_same_top, result.base_top_p], -1)


def probabilities(logits, targets, axis=-1, **options):
    return softmax(logits, axis=axis, **options)


def log_probabilities(logits, targets, axis=-1, **options):
    return log_softmax(logits, axis=axis, **options)


EACH_CLASS = [
    gradient,
    gradient_weighted,
    gradient_of_distributions,
    probabilities,
    log_probabilities,
]  # their results have the logits' shape
FUNCTIONS = {
    "losses": (losses, {}),
    "losses_of_log_probs": (losses_of_log_probs, {}),
    "losses_of_probs": (losses_of_probs, {}),
    "logsumexp": (normalizers, {}),
    "losses_smoothed": (losses, SMOOTHED),
    "losses_with_everything": (losses, EVERYTHING),
    "losses_of_distributions": (losses_of_distributions, SMOOTHED),
    "losses_of_distributions_with_everything": (losses_of_distributions, EVERYTHING),
    "gradient": (gradient, {}),
    "gradient_smoothed": (gradient, SMOOTHED),
    "gradient_with_everything": (gradient, EVERYTHING),
    "gradient_weighted": (gradient_weighted, {}),
    "gradient_weighted_smoothed": (gradient_weighted, SMOOTHED),
    "gradient_of_distributions": (gradient_of_distributions, {}),
    "gradient_of_distributions_with_everything": (gradient_of_distributions, EVERYTHING),
    "softmax": (probabilities, {}),
    "log_softmax": (log_probabilities, {}),
    "scores": (scores, {}),
    "scores_capped": (scores, CAPPED),
    "divergences": (divergences, {}),
    "divergences_of_probs": (divergences_of_probs, {}),
    "class_log_probs": (named_classes, {}),
    "class_log_probs_capped": (named_classes, CAPPED),
    "compare": (compared, {}),
    "compare_as_llama_cpp": (compared, {"definitions": "llama.cpp"}),
}
each_function = pytest.mark.parametrize(("function", "options"), FUNCTIONS.values(), ids=FUNCTIONS)


def scores_of(function, logits):
    """Logits, or scores of the kind that the function takes."""
    if function is divergences_of_probs:
        return softmax(logits)
    loss = {losses_of_log_probs: "nll_loss", losses_of_probs: "cross_entropy_loss"}.get(function, "cross_entropy")
    scores = {"nll_loss": -abs(logits), "cross_entropy_loss": abs(logits) / 16}.get(loss, logits)
    return possible(loss, scores.astype(logits.dtype))


def rows_with_specials(rng, rows, length, dtype):
    """Rows of which some hold nan and infinities, and some are far from 0."""
    logits = scores_for("cross_entropy", rng, (rows, length), dtype)
    logits[rng.integers(rows, size=2), rng.integers(length, size=2)] = np.nan, np.inf
    logits[rng.integers(rows)] = -np.inf
    if dtype != np.float16:
        logits[rng.integers(rows)] *= 1e30
        logits[rng.integers(rows), length // 2 :] = -1e9
    return logits


@each_function
@each_dtype
def test_every_backend_gives_the_same_bits(function, options, dtype, rng, use_backend):
    """Each length with the next kind of rows, for each dtype another; tests/c/golden.txt has them all."""
    kinds = itertools.cycle(np.roll(KINDS, FLOATS.index(dtype)))
    for length, kind in zip(LENGTHS, kinds, strict=False):
        rows = scores_of(function, trying_row(kind, rng, (6 if length < 9000 else 1, length), dtype))
        targets = np.array([0, length // 2, length - 1] * 2)[: len(rows)]
        use_backend("portable")
        expected = function(rows, targets, **options)
        for name in _core.backends():
            use_backend(name)
            assert_same_bits(function(rows, targets, **options), expected, f"{name}, {length} classes, {kind}")


@each_function
@each_dtype
def test_every_layout_and_axis_gives_the_same_bits(function, options, dtype, rng, backend):
    """The portable backend is ten times as slow and gets short rows only: tests/c/golden.c has layouts of long ones."""
    for length in (1, 17, 64, 513, *(() if backend == "portable" else (1025, 4200))):
        logits, targets = scores_for("cross_entropy", rng, (4, length), dtype), rng.integers(0, length, 4)
        shuffled_specials(rng, logits[:2])
        logits = scores_of(function, logits)
        expected = function(logits, targets, **options)
        for name, layout in LAYOUTS.items():
            what = f"{name}, {length} classes"
            assert_same_bits(function(layout(logits), targets, **options), expected, what)
        across = function(np.ascontiguousarray(logits.T), targets, axis=0, **options)
        across = across.T if function in EACH_CLASS else across
        assert_same_bits(across, expected, f"class axis first, {length} classes")


@each_function
@each_dtype
def test_class_major_rows_give_the_same_bits(function, options, dtype, rng, backend):
    """The portable backend is ten times as slow and gets one kind of long rows only."""
    sizes = [(2, 1), (7, 5), (8, 513), (16, 70), (17, 513), (5, 4097), (65, 5)]
    for rows, length in [*sizes, *([] if backend == "portable" else [(9, 4097), (33, 1100)])]:
        logits = scores_of(function, rows_with_specials(rng, rows, length, dtype))
        targets = rng.integers(0, length, rows)
        expected, beside = function(logits, targets, **options), np.asfortranarray(logits)
        for layout in (beside, swapped(beside), np.asfortranarray(logits[::-1])[::-1]):
            assert_same_bits(function(layout, targets, **options), expected, f"{rows} rows of {length} classes")


@pytest.mark.parametrize("rows", [3, 18, 70])
@pytest.mark.parametrize("dtypes", list(itertools.product([np.float16, np.float32, np.float64], repeat=2)), ids=str)
def test_long_class_major_rows_give_the_same_bits_beside_masked_ones_and_other_dtypes(rows, dtypes, rng):
    base, other = (rows_with_specials(rng, rows, 4200, dtype) for dtype in dtypes)
    targets, where = rng.integers(0, 4200, rows), rng.random(rows) < 0.8
    options = {"where": where, "reduction": "none"}
    for layout in (np.asfortranarray, lambda x: swapped(np.asfortranarray(x))):
        divergences = kl_divergence(layout(base), other, **options), kl_divergence(base, layout(other), **options)
        both = kl_divergence(layout(base), layout(other), **options)
        for result in (*divergences, both):
            assert_same_bits(result, kl_divergence(base, other, **options))
        expected, result = (token_columns(token_scores(x, targets, where=where, top_k=9)) for x in (base, layout(base)))
        assert_same_bits(result, expected)


@each_function
def test_workers_change_no_bit(function, options, rng):
    logits, targets = scores_for("cross_entropy", rng, (300, 4100), np.float32), rng.integers(0, 4100, 300)
    logits = scores_of(function, logits)
    for given in (logits, np.asfortranarray(logits)):
        expected = function(logits, targets, workers=1, **options)
        for workers in (2, 3, 8):
            assert_same_bits(function(given, targets, workers=workers, **options), expected, f"{workers} workers")


@each_function
@each_dtype
@pytest.mark.filterwarnings("ignore:.* adds up to:UserWarning")
def test_a_row_alone_has_the_bits_that_it_has_in_a_batch(function, options, dtype, rng):
    logits, targets = scores_for("cross_entropy", rng, (40, 1100), dtype), rng.integers(0, 1100, 40)
    logits = scores_of(function, logits)
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
def test_float16_and_bfloat16_give_the_bits_of_float32(function, options, dtype, rng):
    logits, targets = scores_for("cross_entropy", rng, (5, 3000), dtype), [0, 1, 2, 3, 2999]
    logits = scores_of(function, logits)
    single = function(logits.astype(np.float32), targets, **options)
    actual = function(logits, targets, **options)
    if function in EACH_CLASS:
        near = [np.nextafter(single, -np.inf), single, np.nextafter(single, np.inf)]
        with np.errstate(over="ignore"):
            below, nearest, above = np.stack(near).astype(dtype).astype(np.float64)
        # its rounding to float32 can have brought a result into the middle of two numbers: then it is either of these
        middle = (below < above) & ((below + above) / 2 == single)
        single = np.where(middle, np.clip(np.float64(actual), below, above), nearest)
    assert_same_bits(actual, single)


@each_dtype
def test_label_smoothing_and_distributions_of_every_size_do_not_depend_on_the_layout(dtype, rng):
    for _ in range(20):
        sizes = 2.0 ** rng.uniform(-20, 3, (30, 5000))
        logits = (sizes * rng.standard_normal(sizes.shape)).astype(dtype)
        shares = np.where(rng.random(sizes.shape) < 0.03, sizes * rng.standard_normal(sizes.shape), 0)
        for targets, options in ((rng.integers(0, 5000, 30), {"label_smoothing": 1.0}), (shares, {})):
            expected = cross_entropy(logits, targets, reduction="none", **options)
            others = strided(targets) if targets.ndim == 2 else targets
            assert_same_bits(cross_entropy(strided(logits), others, reduction="none", **options), expected)


@each_dtype
@pytest.mark.parametrize("pixels", [9, 33, 70, 144])
@pytest.mark.parametrize("classes", [2, 5, 64, 128])
def test_distributions_in_planes_have_the_bits_of_rows_alone(classes, pixels, dtype, rng, backend):
    """Near and far rows, rows without mass, and rows with a class that has neither mass nor probability."""
    shape = (2, classes, pixels)
    logits = (rng.choice([1, 30, 2000], (2, 1, pixels)) * rng.standard_normal(shape)).astype(dtype)
    shares = (rng.random(shape) ** 4).astype(dtype)
    logits[1, 1, ::5], shares[1, 1, ::5], shares[:, :, 3] = -np.inf, 0, 0
    rows, masses = (np.moveaxis(array, 1, -1).reshape(-1, classes) for array in (logits, shares))
    for options in ({}, {"z_loss": 0.1}, {"softcap": 20.0}):
        expected = [cross_entropy(rows[i : i + 1], masses[i : i + 1], **options) for i in range(len(rows))]
        losses = cross_entropy(logits, shares, axis=1, reduction="none", **options)
        assert_same_bits(losses, np.reshape(expected, losses.shape))
        total = cross_entropy(logits, shares, axis=1, reduction="sum", **options)
        assert_same_bits(total, cross_entropy(rows, masses, reduction="sum", **options))
        for share in (0.02, 0.7):
            where = rng.random(losses.shape) < share
            masked = cross_entropy(logits, shares, axis=1, reduction="none", where=where, **options)
            assert_same_bits(masked, np.where(where, losses, 0))


@each_dtype
@pytest.mark.parametrize("pixels", [2, 3, 20, 63, 65, 300])
@pytest.mark.parametrize("classes", [2, 5, 17, 100, 140])
def test_probabilities_with_distributions_in_planes_have_the_bits_of_rows_alone(classes, pixels, dtype, rng, backend):
    """Of several samples, contiguous or not; what a row that is left out has for a probability is not looked at."""
    masses = np.moveaxis(rng.dirichlet(np.ones(classes), (3, pixels + 1)), -1, 1).astype(dtype)
    probs = np.moveaxis(rng.dirichlet(np.ones(classes), (3, pixels + 1)), -1, 1).astype(dtype)
    masses[rng.random(masses.shape) < 0.2], probs[rng.random(probs.shape) < 0.1] = 0, 0
    where = rng.random((3, pixels)) < 0.8
    weights = np.linspace(0.5, 2, classes)
    for weight in (None, weights):
        options = {"axis": 1, "reduction": "none", "weight": weight}
        sliced = masses[..., :pixels], probs[..., :pixels]
        y, p = map(np.ascontiguousarray, sliced)
        expected = np.array(
            [[cross_entropy_loss(y[n, :, i], p[n, :, i], weight=weight) for i in range(pixels)] for n in range(3)]
        )
        for given in (y, p), sliced, (y, sliced[1]):
            assert_same_bits(cross_entropy_loss(*given, **options), expected)
        p[2, 0, np.flatnonzero(~where[2])[:1]], y[2, 0] = 7, 0.5
        masked = cross_entropy_loss(y, p, where=where, **options)
        assert_same_bits(masked[:2], np.where(where, expected, 0)[:2])


@each_dtype
@pytest.mark.parametrize(("classes", "pixels"), [(2, 70), (5, 9), (21, 64), (100, 100), (128, 48)])
def test_gradients_of_distributions_in_groups_have_the_bits_of_weighted_ones(classes, pixels, dtype, rng, backend):
    """With class weights, even of 1, masses are added row by row.

    The first image has no far rows; the others do. Some results do not fit in a half.
    """
    shape = (3, classes, pixels)
    logits = rng.standard_normal(shape).astype(dtype)
    shares = (rng.random(shape) ** 4).astype(dtype)
    logits[1, :, -1] = 2000
    logits[2] *= rng.choice([1, 30], pixels).astype(dtype)
    logits[2, 1, ::5], shares[2, 1, ::5] = -np.inf, 0
    rows, masses = (np.moveaxis(array, 1, -1).reshape(-1, classes) for array in (logits, shares))
    weights = 2.0 ** rng.integers(-130, 20, (3, pixels))
    where, ones = rng.random((3, pixels)) < 0.9, np.ones(classes)
    for options in ({}, {"z_loss": 0.1}, {"logit_scale": 3.0}):
        of_rows = {"sample_weight": weights.ravel(), "reduction": "sum"} | options
        each = cross_entropy_and_grad(rows, masses, weight=ones, **of_rows)[1]
        expected = np.moveaxis(each.reshape(3, pixels, classes), -1, 1)
        given = {"axis": 1, "sample_weight": weights, "reduction": "sum"} | options
        assert_same_bits(cross_entropy_and_grad(logits, shares, **given)[1], expected)
        in_place = logits.copy()
        cross_entropy_and_grad(in_place, shares, out=in_place, where=where, **given)
        assert_same_bits(in_place, np.where(where[:, None], expected, np.zeros((), dtype)))
        assert_same_bits(cross_entropy_and_grad(rows, masses, **of_rows)[1], each)


def test_distributions_whose_masses_cancel_have_the_same_bits_whatever_was_skipped(rng, backend):
    """What is left of masses up to 2**100 and of their opposites depends on the order of each addition."""
    logits, shares = rng.standard_normal((60, 600)), np.zeros((60, 600))
    for row, mass in zip(logits, shares, strict=True):
        small, large, opposite = np.split(rng.permutation(600)[:36], [20, 28])
        mass[small], mass[large] = rng.random(20), 2.0 ** rng.uniform(0, 100, 8)
        mass[opposite], row[opposite] = -mass[large], row[large]
    by_runs = cross_entropy(logits, shares, reduction="none")  # of masses that are not 0
    assert_same_bits(cross_entropy(logits, strided(shares), reduction="none"), by_runs)


@pytest.mark.parametrize("z_loss", [1e305, 1e307, 1.7e308])
def test_every_backend_gives_the_same_gradients_that_overflow_by_z_loss(z_loss, use_backend):
    """An emulated fused multiply-add is nan where its product overflows."""
    rows = np.array([[0.0, 1, 2], [60, 60, 60], [-60, -60, -60]])
    results = []
    for name in _core.backends():
        use_backend(name)
        for n in (1, 30):  # rows by themselves, and side by side
            logits, targets = np.tile(rows, (n, 1)), [0] * 3 * n
            results.append(cross_entropy_and_grad(logits, targets, z_loss=z_loss, reduction="sum")[1][:3])
    for gradient in results[1:]:
        assert_same_bits(gradient, results[0])


def in_runs(array, axis):
    """The array in memory with a gap behind each run along an axis."""
    shape = list(array.shape)
    shape[axis] += 1
    whole = np.zeros(shape, array.dtype)
    view = np.moveaxis(np.moveaxis(whole, axis, 0)[:-1], 0, axis)
    view[...] = array
    return view


def of_every_function(of, axis):
    """The results of all functions of whole rows, by name."""
    for name, (function, options) in FUNCTIONS.items():
        given = {losses_of_log_probs: of.log_probs, losses_of_probs: of.probs, divergences_of_probs: of.probs}.get(
            function, of.logits
        )
        yield name, function(given, of.ids, axis, **options)
    kept = {"axis": axis, "where": of.kept}
    for loss, given in (("cross_entropy_loss", of.probs), ("nll_loss", of.log_probs), ("cross_entropy", of.logits)):
        for targets in (of.ids, of.shares):
            yield loss, call(tokenloss, loss, given, targets, reduction="none", axis=axis)
            yield loss, call(tokenloss, loss, given, targets, reduction="none", sample_weight=of.weights, **kept)
    yield "class_log_probs", class_log_probs(of.logits, of.ids[..., None], **kept)
    yield "gradient where", cross_entropy_and_grad(of.logits, of.shares, sample_weight=of.weights, **kept)[1]
    yield "token_scores where", token_columns(token_scores(of.log_probs, of.ids, kind="log_probs", top_k=2, **kept))
    kinds = {"base_kind": "probs", "kind": "log_probs"}
    yield "kl_divergence", kl_divergence(of.probs, of.log_probs, reduction="none", **kinds, **kept)
    yield "compare", compare(of.logits, of.shares, of.ids, kind="logits", **kept).kl
    yield "compare of llama.cpp", compare(of.log_probs, of.logits, of.ids, definitions="llama.cpp", **kept).kl
    hidden, head = of.hidden, np.arange(15.0).reshape(3, 5)
    yield "linear_cross_entropy", linear_cross_entropy(hidden, head, of.ids % 3, where=of.kept, reduction="none")
    yield (
        "linear_kl_divergence",
        linear_kl_divergence(hidden, head, hidden, head[::-1], where=of.kept, reduction="none"),
    )


@pytest.mark.parametrize("classes", [10, 600])
@pytest.mark.parametrize("axis", [1, 2])
def test_rows_in_runs_have_the_bits_of_copies_in_every_function(axis, classes, rng):
    """Runs of 7 rows that lie evenly: blocks of rows begin within a run."""
    shape = [40, 7]
    shape.insert(axis, classes)
    of = {name: scores_for(loss, rng, shape, np.float32, axis) for name, loss in zip(
        ("probs", "log_probs", "logits"), LOSSES, strict=True
    )}  # fmt: skip
    of |= {"shares": distributions(rng, shape, axis), "hidden": rng.standard_normal((40, 7, 5))}
    of |= {"ids": rng.integers(0, classes, (40, 7)), "kept": rng.random((40, 7)) > 0.2, "weights": rng.random((40, 7))}
    apart = {name: in_runs(array, 2 if axis == 1 and array.shape[1] == classes else 1) for name, array in of.items()}
    both = of_every_function(SimpleNamespace(**of), axis), of_every_function(SimpleNamespace(**apart), axis)
    for (name, expected), (_, result) in zip(*both, strict=True):
        assert_same_bits(result, expected, name)


@pytest.mark.parametrize("classes", [10, 600, 5000])
def test_rows_that_are_broadcast_have_the_bits_of_copies(classes, rng):
    row = rng.standard_normal(classes).astype(np.float32)
    rows, targets = np.broadcast_to(row, (40, classes)), rng.integers(0, classes, 40)
    copies = rows.copy()
    assert_same_bits(logsumexp(rows), logsumexp(copies))
    assert_same_bits(cross_entropy(rows, targets, reduction="none"), cross_entropy(copies, targets, reduction="none"))
    assert_same_bits(token_scores(rows, targets).entropy, token_scores(copies, targets).entropy)
