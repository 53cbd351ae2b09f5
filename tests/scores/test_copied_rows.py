"""Rows that are copied, since they are neither contiguous nor short planes, have the bits of contiguous rows."""

import numpy as np
import pytest
from arrays import assert_same_bits

from tokenloss import (
    class_log_probs,
    cross_entropy,
    cross_entropy_and_grad,
    kl_divergence,
    log_softmax,
    logsumexp,
    softmax,
    token_scores,
)

# planes of a vector and more, of half a vector, of less; of many classes and few; rows of every other class
SHAPES = [(2, 600, 43), (1, 2500, 32), (3, 20, 9), (5, 30, 4), (1, 5000, 17), (3, 513, 8)]


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "bfloat16", ">f4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_class_major_rows_have_the_bits_of_contiguous_rows(shape, dtype, rng):
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    logits = (4 * rng.standard_normal(shape)).astype(dtype)
    rows = np.ascontiguousarray(np.moveaxis(logits, 1, -1))
    targets = rng.integers(0, shape[1], rows.shape[:2])
    targets[rng.random(targets.shape) < 0.4] = -100
    assert_same_results(logits, 1, rows, targets)
    assert_same_results(logits[:, ::2, ::-1], 1, rows[:, ::-1, ::2], np.minimum(targets, (shape[1] - 1) // 2)[:, ::-1])


def assert_same_results(logits, axis, rows, targets):
    """Compare the results for rows along an axis with the results for contiguous copies of these rows."""
    rows = np.ascontiguousarray(rows)
    for function in (softmax, log_softmax):
        expected = function(rows)
        assert_same_bits(np.moveaxis(function(logits, axis=axis), axis, -1), expected)
        out = np.empty_like(rows)
        function(logits, axis=axis, out=np.moveaxis(out, -1, axis))
        assert_same_bits(out, expected)
    assert_same_bits(logsumexp(logits, axis=axis), logsumexp(rows))
    shares = softmax(rows[::-1])
    given = {"axis": axis, "reduction": "none"}
    for options in ({}, {"label_smoothing": 0.1}, {"softcap": 20.0}):
        loss, gradient = cross_entropy_and_grad(logits, targets, **given, **options)
        expected, expected_gradient = cross_entropy_and_grad(rows, targets, reduction="none", **options)
        assert_same_bits(loss, expected)
        assert_same_bits(np.moveaxis(gradient, axis, -1), expected_gradient)
    for masses in (shares, np.moveaxis(np.moveaxis(shares, -1, 0).copy(), 0, -1)):
        masses_along = np.moveaxis(masses, -1, axis)
        assert_same_bits(cross_entropy(logits, masses_along, **given), cross_entropy(rows, shares, reduction="none"))
        expected = kl_divergence(rows, shares, reduction="none", kind="logits")
        assert_same_bits(kl_divergence(logits, masses_along, **given, kind="logits"), expected)
    scores, expected = token_scores(logits, targets, axis=axis, top_k=3), token_scores(rows, targets, top_k=3)
    for name in ("nll", "logsumexp", "entropy", "rank", "top_logprobs"):
        assert_same_bits(getattr(scores, name), getattr(expected, name))
    ids = np.stack([np.maximum(targets, 0), np.maximum(targets, 0) // 2], -1)
    assert_same_bits(class_log_probs(logits, ids, axis=axis), class_log_probs(rows, ids))
