"""Needs only NumPy and pytest, for platforms that have no more: known values, and the same bits as everywhere."""

import hashlib

import numpy as np
import pytest
from made_numbers import numbers

import tokenloss

CLASSES = 3000

# sha256 of all results below, little-endian, for each dtype of the logits; made on x86-64
GOLDEN = {
    "float16": "a0a18df58d757ccb1ac574b1463846f6526efcf5beb9a5c24937ab40ef8b9f28",
    "float32": "5fb6a59d3852e574822efea6fc90e6ddfd27b453cfb1d0eed059a1a7fe80bf97",
    "float64": "ffa1a2af5eb0c662ebf84c86fe5eb22ef5c74cbc91fb74f1af0f512f19e93596",
}


def test_known_values():
    assert tokenloss.cross_entropy_loss([1, 0, 0], [0.7, 0.2, 0.1]) == pytest.approx(0.35667494393873245, rel=1e-15)
    assert tokenloss.cross_entropy_loss([1, 0, 0], [0.1, 0.8, 0.1]) == pytest.approx(2.302585092994046, rel=1e-15)
    assert tokenloss.nll_loss(np.log([[0.7, 0.2, 0.1]]), [0]) == pytest.approx(0.35667494393873245, rel=1e-15)
    assert tokenloss.cross_entropy([17.0, 0.0], 0) == pytest.approx(4.139937633089748e-08, rel=1e-13)
    assert tokenloss.cross_entropy(np.zeros(131072, np.float16), 5) == pytest.approx(11.783502069519072, abs=2e-7)
    assert tokenloss.kl_divergence([[0.0, 0.0]], [[0.0, 0.0]]) == 0
    np.testing.assert_allclose(tokenloss.softmax([0.0, 0.0, 0.0, 0.0]), 0.25, rtol=1e-15)


def test_meters_add_up():
    meters = [tokenloss.LossMeter(), tokenloss.LossMeter()]
    for meter, losses in zip(meters, ([1e16, 1.0], [2.0**-1074, 1.0]), strict=True):
        meter.update(np.array(losses))
    assert (meters[0] + meters[1]).total == 1e16 + 2.0


def test_bad_targets_are_named():
    with pytest.raises(IndexError, match="7"):
        tokenloss.cross_entropy(np.zeros((2, 3)), [0, 7])


def results(dtype):
    """The results of every function for the same logits."""
    logits, others = (numbers(6 * CLASSES, seed).reshape(6, CLASSES).astype(dtype) for seed in (1, 10**6))
    targets, options = np.arange(6) * 499, {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 9.0}
    yield tokenloss.cross_entropy(logits, targets, reduction="none")
    yield tokenloss.cross_entropy(logits, targets, reduction="none", **options)
    yield tokenloss.cross_entropy(logits, targets), tokenloss.cross_entropy(logits, targets, reduction="sum")
    yield tokenloss.logsumexp(logits)
    yield tokenloss.softmax(logits)
    yield tokenloss.log_softmax(logits)
    yield tokenloss.cross_entropy_and_grad(logits, targets, **options)[1]
    yield tokenloss.kl_divergence(logits, others, reduction="none")
    scores = tokenloss.token_scores(logits, targets, top_k=5)
    yield from (scores.nll, scores.entropy, scores.rank, scores.argmax, scores.top_ids, scores.top_logprobs)
    probabilities = tokenloss.softmax(logits)
    yield tokenloss.cross_entropy_loss(targets, probabilities, reduction="none")
    yield tokenloss.cross_entropy_loss(probabilities, probabilities, reduction="none")
    yield tokenloss.nll_loss(tokenloss.log_softmax(logits), targets, reduction="none")
    weight = numbers(500 * 64, 7).reshape(500, 64).astype(dtype)
    yield tokenloss.linear_cross_entropy(logits[:, :64], weight, targets % 500, reduction="none")


def digest(dtype):
    found = hashlib.sha256()
    for result in results(dtype):
        found.update(np.asarray(result).astype("<f8").tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("dtype", GOLDEN)
def test_same_bits_as_everywhere(dtype, backend):
    assert digest(dtype) == GOLDEN[dtype]
