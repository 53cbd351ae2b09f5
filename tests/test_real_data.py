"""Logits that a real model gave, in full; the repository itself carries only a part of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import reference
from arrays import assert_near, assert_same_bits, misaligned, strided, swapped

from tokenloss import LossMeter, cross_entropy, cross_entropy_loss, logsumexp, nll_loss

DATA = Path(__file__).parents[2] / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not (DATA / "whisper-tiny-en.npz").exists(), reason="the whole data lie beside the repository, and are not there"
)


@pytest.fixture(scope="module")
def sample():
    with np.load(DATA / "whisper-tiny-en.npz") as file:
        return file["logits"], file["targets"]


@pytest.fixture(scope="module")
def expected():
    return json.loads((DATA / "whisper-tiny-en.json").read_text())["whisper-tiny-en"]


def test_mean_is_the_expected_one(sample, expected):
    logits, targets = sample
    assert logits.shape == (expected["n"], expected["vocab"])
    assert logits.dtype == np.float16
    assert cross_entropy(logits, targets) == pytest.approx(expected["mean_nll"], abs=2e-7)
    # the engine's own figure, of the float32 logits and without the last token
    assert cross_entropy(logits, targets, reduction="sum") / (expected["n"] - 1) == pytest.approx(
        -expected["engine_mean_logprob"], abs=1e-3
    )


def test_every_token_is_that_of_the_oracle(sample):
    logits, targets = sample
    exact = reference.cross_entropy(logits, targets, reduction="none")
    losses = cross_entropy(logits, targets, reduction="none")
    assert_near(losses, exact, 2e-7)
    np.testing.assert_allclose(losses, exact, rtol=1e-6)  # most tokens are nearly certain
    assert_near(logsumexp(logits), reference.logsumexp(logits), 2e-7)


def test_every_way_to_score_agrees(sample):
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
