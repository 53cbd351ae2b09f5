"""Logits that a real model gave: `data/whisper-tiny-en.npz`, 15 tokens of 51864 classes in float16."""

import numpy as np
import pytest
import reference
from arrays import assert_near, assert_same_bits, misaligned, strided, swapped
from places import SAMPLE

from tokenloss import LossMeter, cross_entropy, cross_entropy_loss, logsumexp, nll_loss


@pytest.fixture(scope="module")
def sample():
    with np.load(SAMPLE) as file:
        return file["logits"], file["targets"]


def test_mean_loss_of_the_sample(sample):
    logits, targets = sample
    assert logits.shape == (15, 51864)
    assert logits.dtype == np.float16
    assert cross_entropy(logits, targets) == pytest.approx(0.3289933108527359, abs=2e-7)  # by reference.py


def test_loss_of_every_token_equals_the_oracle(sample):
    logits, targets = sample
    exact = reference.cross_entropy(logits, targets, reduction="none")
    losses = cross_entropy(logits, targets, reduction="none")
    assert_near(losses, exact, 2e-7)
    np.testing.assert_allclose(losses, exact, rtol=1e-6)  # most tokens are nearly certain
    assert_near(logsumexp(logits), reference.logsumexp(logits), 2e-7)


def test_probabilities_log_probabilities_one_hot_layouts_and_meter_agree(sample):
    logits, targets = sample
    expected = cross_entropy(logits, targets)
    exact = logits.astype(np.float64)
    log_probs = exact - logsumexp(exact)[:, None]
    assert nll_loss(log_probs, targets) == pytest.approx(expected, abs=2e-7)
    assert cross_entropy_loss(targets, np.exp(log_probs)) == pytest.approx(expected, abs=2e-7)
    one_hot = np.zeros(logits.shape, np.int8)
    one_hot[np.arange(targets.size), targets] = 1
    assert cross_entropy(logits, one_hot) == expected
    for layout in (np.asfortranarray, swapped, strided, misaligned, lambda array: array.astype(np.float32)):
        assert_same_bits(cross_entropy(layout(logits), targets), expected)
    meter = LossMeter()
    for row, target in zip(logits, targets, strict=True):
        meter.update(cross_entropy(row, target))
    assert meter.loss == expected
