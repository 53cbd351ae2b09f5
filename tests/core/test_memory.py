"""Memory: arrays of more than 2**31 elements, and how little a call allocates."""

import math
import sys
import tracemalloc

import numpy as np
import pytest
from arrays import assert_near, assert_same_bits
from programs import MEASURED

from tokenloss import (
    class_log_probs,
    compare,
    cross_entropy,
    cross_entropy_and_grad,
    cross_entropy_loss,
    kl_divergence,
    linear_compare,
    linear_cross_entropy,
    linear_token_scores,
    logsumexp,
    nll_loss,
    sequence_losses,
    softmax,
    token_scores,
)


@pytest.fixture(scope="module")
def sparse_file(tmp_path_factory):
    """A sparse file of 2**31 + 14 float16 zeros, which takes almost no space on the disk."""
    path = tmp_path_factory.mktemp("sparse") / "zeros"
    with path.open("wb") as file:
        file.truncate(2 * (2**31 + 14))
    yield path
    path.unlink()


def zeros(path, *shape):
    return np.memmap(path, np.float16, "r+", shape=shape)


@pytest.mark.slow
def test_two_rows_of_more_than_2_31_elements_together(sparse_file):
    logits = zeros(sparse_file, 2, 2**30 + 7)
    targets = [5, 2**30 + 6]
    losses = cross_entropy(logits, targets, reduction="none")
    assert_near(losses, np.full(2, math.log(2**30 + 7)), 2e-7)
    assert_same_bits(nll_loss(logits, targets, reduction="none"), [0.0, 0.0])
    del logits


@pytest.mark.slow
def test_target_beyond_2_31_in_a_single_row(sparse_file):
    logits = zeros(sparse_file, 2**31 + 14)
    target = 2**31 + 5
    logits[target] = 20
    try:
        rest = 2**31 + 13
        assert cross_entropy(logits, target) == pytest.approx(math.log1p(rest * math.exp(-20)), abs=2e-7)
        logits[target] = -20
        assert nll_loss(logits, target) == 20
        assert nll_loss(logits[::-1], 8) == 20
        logits[target] = 1
        assert cross_entropy_loss(np.uint32(target), logits) == pytest.approx(1e-12, rel=1e-3)
        assert cross_entropy_loss(target - 1, logits) == -math.log(1e-12)
    finally:
        logits[target] = 0
        del logits


def test_class_axis_of_stride_beyond_2_31_bytes(sparse_file):
    logits = zeros(sparse_file, 2, 2**30 + 7)
    logits[1, 2**30] = 3
    try:
        last = logits[:, 2**30 - 2 :]
        targets = [0, 0, 1, 0, 0, 0, 0, 0, 0]
        losses = cross_entropy(last, targets, axis=0, reduction="none")
        expected = np.full(9, math.log(2))
        expected[2] = math.log1p(math.exp(-3))
        assert_near(losses, expected, 2e-7)
    finally:
        logits[1, 2**30] = 0
        del logits


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read by resource, which Windows lacks")
def test_less_than_a_megabyte_a_worker_is_allocated(run_python):
    run_python(
        MEASURED
        + """
base = -1e-3 * rng.random((16, 131072), np.float32)  # log-probabilities, and within the tolerance probabilities
targets = rng.integers(0, base.shape[1], 16)
weight = rng.random(base.shape[1])
where = rng.random(16) > 0.5
layouts = {
    "C": base,
    "Fortran": np.asfortranarray(base),
    "Fortran, float16": np.asfortranarray(base[:, :14000].astype(np.float16)),
    "backwards": base[::-1, ::-1],
    "strided": base[:, ::2],
    "swapped": base.astype(base.dtype.newbyteorder()),
    "short": base.reshape(-1, 512),
    "short class-major": base.reshape(512, -1).T,
    "float16": base.astype(np.float16),
    "bfloat16": base.astype(ml_dtypes.bfloat16),
    "float64": base.astype(np.float64),
    "DLPack": Exporter(base),
    "memoryview": memoryview(base),
}
for name, logits in layouts.items():
    rows, classes = getattr(logits, "shape", base.shape)
    ids, kept = np.resize(targets, rows) % classes, np.resize(where, rows)
    share = np.broadcast_to(np.float32(1 / classes), (rows, classes))
    calls = {
        "cross_entropy": lambda: cross_entropy(logits, ids, weight=weight[:classes], where=kept, workers=WORKERS),
        "nll_loss": lambda: nll_loss(logits, ids, reduction="none", workers=WORKERS),
        "cross_entropy_loss": lambda: cross_entropy_loss(ids, logits, where=kept, workers=WORKERS),
        "distributions": lambda: nll_loss(logits, logits, workers=WORKERS),
        "soft": lambda: cross_entropy(logits, share, workers=WORKERS),
        "logsumexp": lambda: logsumexp(logits, workers=WORKERS),
        "kl_divergence": lambda: kl_divergence(logits, logits, workers=WORKERS),
    }
    for loss, call in calls.items():
        measure(f"{loss} of {name}", call)
"""
    )


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read by resource, which Windows lacks")
def test_nothing_of_the_size_of_the_targets_is_allocated(run_python):
    run_python(
        MEASURED
        + """
rows = 500_000
ids = rng.integers(0, 4, rows)
y_pred = rng.random((rows, 4), np.float32)
kept = rng.random(rows) > 0.5
for targets in (ids, ids.astype(np.int8), ids.astype(ids.dtype.newbyteorder()), ids[::-1]):
    name = f"{targets.dtype} targets of strides {targets.strides}"
    measure(name, lambda: cross_entropy_loss(targets, y_pred, where=kept, workers=WORKERS))
    measure(name, lambda: cross_entropy(y_pred, targets, workers=WORKERS))
losses = rng.random(rows)
measure("meter", lambda: LossMeter().update(losses))
"""
    )


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read by resource, which Windows lacks")
@pytest.mark.parametrize(
    "operands",
    [
        pytest.param("floats(1000, 64), floats(60000, 64)", marks=pytest.mark.slow),
        pytest.param("floats(1000, 64)[:, ::-1], floats(64, 60000).T", marks=pytest.mark.slow),
        pytest.param("floats(1000, 64, dtype=np.float64), floats(20000, 64)", marks=pytest.mark.slow),
        pytest.param("floats(500, 2048), halves(8192, 2048)", marks=pytest.mark.slow),
        "halves(260, 256), halves(256, 16384).T",
        pytest.param("halves(1030, 2048), halves(4100, 2048)", marks=pytest.mark.slow),
        pytest.param("floats(24, 64), floats(200000, 64)", marks=pytest.mark.slow),
    ],
)
def test_linear_cross_entropy_allocates_less_than_16_megabytes(operands, run_python):
    run_python(
        MEASURED
        + f"""
hidden, weight = {operands}
targets, bias = rng.integers(0, len(weight), len(hidden)), np.zeros(len(weight))
kept = rng.random(len(hidden)) > 0.5
for where in (None, kept):
    measure(
        f"where={{where}}",
        lambda: linear_cross_entropy(hidden, weight, targets, lm_head_bias=bias, where=where, workers=WORKERS),
        lambda: linear_cross_entropy(hidden[:30], weight[:1500], targets[:30] % 1500, workers=WORKERS),
        most=16_000_000,
    )
"""
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read by resource, which Windows lacks")
@pytest.mark.parametrize(
    "operands",
    [
        "floats(1030, 64), floats(40000, 64), floats(1030, 32), floats(40000, 32)",
        "floats(1000, 1024, dtype=float), floats(5000, 1024), floats(1000, 2048)[:, ::-1], floats(2048, 5000).T",
        "halves(1000, 2048), halves(4100, 2048), halves(1000, 4096), floats(4100, 4096)",
        "floats(24, 64), floats(200000, 64), floats(24, 32), halves(200000, 32)",
    ],
)
def test_linear_kl_divergence_and_linear_compare_allocate_less_than_32_megabytes(operands, run_python):
    run_python(
        MEASURED
        + f"""
from tokenloss import linear_compare, linear_kl_divergence

operands = {operands}
classes = len(operands[1])
targets = rng.integers(0, classes, len(operands[0]))
biases = dict(base_lm_head_bias=np.zeros(classes), lm_head_bias=np.ones(classes))
for where in (None, rng.random(len(targets)) > 0.3):
    given = dict(where=where, workers=WORKERS, **biases)
    measure(
        f"where={{where}}",
        lambda: (linear_kl_divergence(*operands, **given), linear_compare(*operands, targets, **given)),
        lambda: linear_compare(*(array[:30] for array in operands), targets[:30] % 30),
        most=32_000_000,
    )
"""
    )


@pytest.mark.thread_unsafe(reason="measures the memory of the process")
def test_linear_bias_of_many_classes_is_not_copied():
    weight, bias = np.broadcast_to(np.float64(0), (1_000_000, 1)), np.zeros(1_000_000)
    tracemalloc.start()
    try:
        linear_cross_entropy(np.ones((30, 1)), weight, np.zeros(30, int), lm_head_bias=bias)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 15e6


@pytest.mark.parametrize("rows", [3, 40])  # small calls go a way of their own
def test_where_weight_sample_weight_out_and_all_else_are_released(rows, monkeypatch):
    monkeypatch.setenv("TOKENLOSS_NUM_WORKERS", "1")  # another thread may hold on to its task for a moment
    rng = np.random.default_rng(3)
    logits, other, probs, shares, out = rng.random((5, rows, 600))
    ids, where, sample_weight = rng.integers(0, 600, rows), np.arange(rows) % 3 > 0, rng.random(rows) + 1
    weight, hidden, head, bias = rng.random(600), rng.random((rows, 3)), rng.random((600, 3)), rng.random(600)
    kept, weighted = {"where": where}, {"where": where, "weight": weight, "sample_weight": sample_weight}

    def call_all():
        for targets in (ids, shares):
            for options in ({}, kept, weighted, {"sample_weight": sample_weight}):
                cross_entropy_loss(targets, probs, **options)
                nll_loss(-probs, targets, reduction="none", **options)
                cross_entropy(logits, targets, label_smoothing=0.1, **options)
                cross_entropy_and_grad(logits, targets, out=out, **options)
                linear_cross_entropy(hidden, head, targets, lm_head_bias=bias, **options)
        softmax(logits, out=out)
        logsumexp(logits)
        class_log_probs(logits, ids, **kept)
        token_scores(logits, ids, top_k=3, **kept)
        kl_divergence(probs, other, **kept)
        compare(logits, other, ids, **kept)
        linear_token_scores(hidden, head, ids, lm_head_bias=bias, **kept)
        linear_compare(hidden, head, hidden, head, ids, base_lm_head_bias=bias, lm_head_bias=bias, **kept)
        sequence_losses(sample_weight, segment_ids=ids, sample_weight=sample_weight, **kept)
        with pytest.raises(IndexError, match="targets"):
            cross_entropy(logits, ids + 600, **weighted)

    call_all()
    arrays = logits, other, probs, shares, out, ids, where, sample_weight, weight, hidden, head, bias
    before = [sys.getrefcount(array) for array in arrays]
    call_all()
    assert [sys.getrefcount(array) for array in arrays] == before
