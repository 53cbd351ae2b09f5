"""The same bits, however the rows are laid out, shared, batched, ordered and folded."""

import ctypes.util
import math
import platform
import sys

import numpy as np
import pytest
from arrays import (
    FLOATS,
    LAYOUTS,
    LOSSES,
    assert_same_bits,
    call,
    possible,
    scores_for,
    shuffled_specials,
    sum_of,
    swapped,
    trying_row,
)

import tokenloss
from tokenloss import (
    LossMeter,
    _core,
    cross_entropy,
    cross_entropy_and_grad,
    kl_divergence,
    log_softmax,
    logsumexp,
    nll_loss,
    softmax,
    token_scores,
)

each_loss = pytest.mark.parametrize("loss", LOSSES)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
LENGTHS = [0, 1, 2, 17, 63, 64, 65, 128, 511, 512, 513, 600, 1023, 1024, 1025, 1535, 1536, 1537]
LENGTHS += [3584, 4095, 4096, 4097, 4608, 8191, 8192, 8193, 12000, 66000]


@pytest.fixture
def rng():
    return np.random.default_rng(99)


def fold(loss, scores, targets, **options):
    """The value of every row, of a loss or of logsumexp."""
    if loss == "logsumexp":
        return logsumexp(scores, **options)
    return call(tokenloss, loss, scores, targets, reduction="none", **options)


def large(rng, loss, dtype=np.float32):
    """Scores and targets that several threads share."""
    scores = scores_for(loss, rng, (600, 5000), dtype)
    return scores, rng.integers(0, 5000, 600)


# backends and layouts


@each_dtype
@pytest.mark.parametrize("kind", ["plain", "with_specials", "wide", "far_out"])
def test_every_backend_gives_the_same_bits(dtype, kind, rng, use_backend):
    rows = {}
    for length in LENGTHS[1:]:
        rows[length] = trying_row(kind, rng, length, dtype)
    results = {}
    for name in _core.backends():
        use_backend(name)
        results[name] = [
            [logsumexp(row), *(cross_entropy(row, k) for k in (0, length // 2, length - 1))]
            for length, row in rows.items()
        ]
    assert "portable" in results
    for name, values in results.items():
        assert_same_bits(values, results["portable"], name)


@each_dtype
@pytest.mark.parametrize("loss", ["logsumexp", *LOSSES])
@pytest.mark.parametrize("specials", [False, True])
def test_every_layout_gives_the_same_bits(loss, dtype, specials, rng, backend):
    for length in LENGTHS:
        scores = scores_for("nll_loss" if loss == "logsumexp" else loss, rng, (3, length), dtype)
        if specials and length:
            scores = possible(loss, shuffled_specials(rng, scores))
        targets = rng.integers(0, length, 3) if length else np.full(3, -100)
        expected = fold(loss, scores, targets)
        for name, layout in LAYOUTS.items():
            assert_same_bits(fold(loss, layout(scores), targets), expected, f"{name}, {length} classes")
        across = np.ascontiguousarray(scores.T)
        assert_same_bits(fold(loss, across, targets, axis=0), expected, f"class axis first, {length} classes")


@each_loss
@each_dtype
def test_every_layout_of_distributions_gives_the_same_bits(loss, dtype, rng):
    for length in (1, 7, 64, 100, 513, 5000):
        scores = scores_for(loss, rng, (3, length), np.float32)
        shares = (rng.random((3, length)) * (rng.random((3, length)) > 0.6)).astype(dtype)
        expected = fold(loss, scores, shares)
        for name, layout in LAYOUTS.items():
            assert_same_bits(fold(loss, scores, layout(shares)), expected, f"{name}, {length} classes")
            assert_same_bits(fold(loss, layout(scores), layout(shares)), expected, f"{name}, {length} classes")


@each_dtype
@pytest.mark.parametrize("rows", [2, 7, 8, 9, 16, 17, 32, 33, 65])
def test_any_number_of_rows_beside_each_other_gives_the_same_bits(rows, dtype, rng, backend):
    for length in (1, 5, 513, 4097):
        logits = scores_for("cross_entropy", rng, (rows, length), dtype)
        logits[rng.integers(rows, size=2), rng.integers(length, size=2)] = np.nan, np.inf
        logits[rng.integers(rows)] = -np.inf
        if dtype != np.float16:
            logits[rng.integers(rows)] *= 1e30
            logits[rng.integers(rows), length // 2 :] = -1e9
        targets = rng.integers(0, length, rows)
        targets[rng.random(rows) < 0.2] = -100
        where = rng.random(rows) < 0.8
        beside = np.asfortranarray(logits)
        for name, layout in {
            "beside": beside,
            "swapped": swapped(beside),
            "backwards": np.asfortranarray(logits[::-1])[::-1],
        }.items():
            what = f"{name}, {length} classes"
            assert_same_bits(logsumexp(layout), logsumexp(logits), what)
            for reduction in ("none", "sum", "mean"):
                options = {"where": where, "reduction": reduction}
                actual = cross_entropy(layout, targets, **options)
                assert_same_bits(actual, cross_entropy(logits, targets, **options), what)


def test_workers_change_no_bit_of_rows_beside_each_other(rng):
    logits, targets = large(rng, "cross_entropy")
    expected = cross_entropy(logits, targets, reduction="none")
    for workers in (1, 2, 3, 8):
        actual = cross_entropy(np.asfortranarray(logits), targets, reduction="none", workers=workers)
        assert_same_bits(actual, expected, f"{workers} workers")


@pytest.mark.parametrize("offset", range(0, 64, 4))
def test_every_alignment_gives_the_same_bits(offset, rng):
    row = rng.standard_normal(5000).astype(np.float32)
    memory = np.zeros(row.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    aligned = memory[start : start + row.nbytes].view(np.float32)
    aligned[...] = row
    assert_same_bits(cross_entropy(aligned, 777), cross_entropy(row, 777))


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
def test_float16_and_bfloat16_are_folded_as_the_float32_they_are(dtype, rng):
    rows = rng.standard_normal((5, 3000)).astype(dtype)
    assert_same_bits(
        cross_entropy(rows, [1] * 5, reduction="none"),
        cross_entropy(rows.astype(np.float32), [1] * 5, reduction="none"),
    )


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


# workers and batches


@pytest.mark.parametrize(
    ("loss", "kind"), [("logsumexp", ""), *((loss, kind) for loss in LOSSES for kind in ("ids", "distributions"))]
)
def test_workers_change_no_bit(loss, kind, rng):
    scores, targets = large(rng, "cross_entropy" if loss == "logsumexp" else loss)
    if kind == "distributions":
        targets = np.eye(5000, dtype=np.float32)[targets]
    expected = fold(loss, scores, targets, workers=1)
    for workers in range(1, 9):
        assert_same_bits(fold(loss, scores, targets, workers=workers), expected, f"{workers} workers")
    if loss != "logsumexp":
        for reduction in ("sum", "mean"):
            for options in ({}, {"weight": rng.random(5000)}):
                results = {
                    call(tokenloss, loss, scores, targets, workers=workers, reduction=reduction, **options)
                    for workers in (1, 2, 3, 8, 100)
                }
                assert len(results) == 1


@pytest.mark.parametrize("loss", ["logsumexp", *LOSSES])
@each_dtype
def test_a_row_alone_has_the_bits_that_it_has_in_a_batch(loss, dtype, rng):
    scores = scores_for("cross_entropy" if loss == "logsumexp" else loss, rng, (40, 1100), dtype)
    targets = rng.integers(0, 1100, 40)
    whole = fold(loss, scores, targets)
    assert_same_bits([fold(loss, row, k) for row, k in zip(scores, targets, strict=True)], whole)
    for size in (2, 7, 39):
        parts = [fold(loss, scores[i : i + size], targets[i : i + size]) for i in range(0, 40, size)]
        assert_same_bits(np.concatenate(parts), whole, f"batches of {size}")
    assert_same_bits(fold(loss, scores.reshape(2, 5, 4, 1100), targets.reshape(2, 5, 4)).ravel(), whole)


# sums and means


@each_loss
@pytest.mark.parametrize("rows", [1, 2, 10, 1000, 20000])
def test_sum_is_exact_and_mean_divides_it_once(loss, rows, rng):
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
def test_weighted_mean_divides_two_exact_sums(loss, rng):
    scores, targets = scores_for(loss, rng, (3000, 50), np.float32), rng.integers(0, 50, 3000)
    weight = rng.random(50)
    losses = call(tokenloss, loss, scores, targets, weight=weight, reduction="none")
    assert_same_bits(losses, weight[targets] * call(tokenloss, loss, scores, targets, reduction="none"))
    assert call(tokenloss, loss, scores, targets, weight=weight, reduction="sum") == math.fsum(losses)
    assert call(tokenloss, loss, scores, targets, weight=weight) == math.fsum(losses) / math.fsum(weight[targets])


@each_loss
def test_rows_in_any_order_have_the_same_sum_and_mean(loss, rng):
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
    unit = 2.0 ** min(bits - 1074, 960)
    small = unit * 2.0**-60 if unit > 1e-290 else 0.0
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


def test_random_sums_are_those_of_fsum(rng):
    for _ in range(300):
        count, low, spread = rng.integers(1, 40), rng.uniform(-320, 250), rng.uniform(0, 40)
        terms = rng.choice([-1, 1], count) * 10.0 ** rng.uniform(low, low + spread, count)
        assert sum_of(terms) == math.fsum(terms)


@each_loss
def test_mean_of_a_function_is_the_loss_of_a_meter(loss, rng):
    scores, targets = large(rng, loss)
    meter = LossMeter()
    for rows in np.array_split(rng.permutation(600), 7):
        meter.update(call(tokenloss, loss, scores[rows], targets[rows], reduction="none"))
    assert meter.loss == call(tokenloss, loss, scores, targets)
    assert meter.total == call(tokenloss, loss, scores, targets, reduction="sum")


# the caller's floating-point environment

ROUNDING = {"x86_64": [0x400, 0x800, 0xC00], "aarch64": [0x400000, 0x800000, 0xC00000]}
FLUSH_TO_ZERO = 0x8040  # of the MXCSR, which lies at byte 28 of the environment


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() not in ROUNDING, reason="needs Linux's fenv_t")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_environment_of_the_caller_changes_no_bit(reduction, rng, backend):
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    saved = (ctypes.c_uint8 * 32)()
    logits = rng.standard_normal((13, 3000)).astype(np.float16)
    subnormal = 1e-40 * rng.standard_normal((13, 3000)).astype(np.float32)
    far = 1e6 * rng.standard_normal((13, 3000))
    spread = (far / 4e4).astype(np.float32)  # some probabilities are subnormal
    targets = rng.integers(0, 3000, 13)
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
