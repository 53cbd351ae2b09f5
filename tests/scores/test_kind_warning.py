"""KindWarning: probabilities that are read as logits, and scores that are right and must get no warning."""

import contextlib
import warnings

import numpy as np
import pytest
from arrays import BFLOAT16, FLOATS

import tokenloss
from tokenloss import (
    ComparisonMeter,
    KindWarning,
    class_log_probs,
    compare,
    cross_entropy,
    cross_entropy_and_grad,
    cross_entropy_loss,
    draft_acceptance,
    kl_divergence,
    log_softmax,
    logsumexp,
    softmax,
    token_scores,
)
from tokenloss.formats import blocks
from tokenloss.testing import assert_close


def logits_of(rng, rows=20, classes=7, dtype=np.float64):
    return (3 * rng.standard_normal((rows, classes))).astype(dtype)


def _assert_close(x, **options):
    with contextlib.suppress(AssertionError):  # which it also raises for what it warns of
        assert_close(x, x, max_kl=1, **options)


# by name: a call with scores, ids and options; those after the line take `kind`
WITHOUT_KIND = {
    "cross_entropy": cross_entropy,
    "cross_entropy of distributions": lambda x, _, **options: cross_entropy(x, np.roll(x, 1, 0), **options),
    "cross_entropy_and_grad": lambda x, ids, **options: cross_entropy_and_grad(x, ids, **options),
    "class_log_probs": lambda x, _, **options: class_log_probs(x, [0, 1], **options),
    "softmax": lambda x, _, **options: softmax(x, **options),
    "log_softmax": lambda x, _, **options: log_softmax(x, **options),
    "logsumexp": lambda x, _, **options: logsumexp(x, **options),
}
WITH_KIND = {
    "token_scores": token_scores,
    "kl_divergence": lambda x, _, **options: kl_divergence(np.roll(x, 1, 0), x, **options),
    "compare": lambda x, ids, **options: compare(np.roll(x, 1, 0), x, ids, **options),
    "ComparisonMeter": lambda x, ids, **options: ComparisonMeter().update(np.roll(x, 1, 0), {"a": x}, ids, **options),
    "draft_acceptance": lambda x, _, **options: draft_acceptance(np.roll(x, 1, 0), x, temperature=0.7, **options),
    "assert_close": lambda x, _, **options: _assert_close(x, **options),
}
each_call = pytest.mark.parametrize("call", (WITHOUT_KIND | WITH_KIND).values(), ids=WITHOUT_KIND | WITH_KIND)


@each_call
@pytest.mark.parametrize("rows", [8, 3000], ids=["few", "many"])
def test_probabilities_read_as_logits_give_a_warning_at_the_line_of_the_call(call, rows, rng):
    probs, ids = softmax(logits_of(rng, rows)), rng.integers(0, 7, rows)
    with pytest.warns(KindWarning, match="looks like probabilities, since rows add up to 1") as caught:
        call(probs, ids)
    assert {one.filename for one in caught} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KindWarning)
        call(probs, ids)


@pytest.mark.parametrize("call", WITH_KIND.values(), ids=WITH_KIND)
def test_kind_silences_the_warning_of_probabilities(call, rng):
    probs, ids = softmax(logits_of(rng)), rng.integers(0, 7, 20)
    for kind in ("logits", "probs"):
        call(probs, ids, kind=kind)
    call(np.log(probs), ids)
    with pytest.warns(KindWarning, match="^logits"):
        kl_divergence(np.log(probs), probs, base_kind="log_probs")
    with pytest.warns(KindWarning, match="^base_logits.*base_kind='probs'"):
        kl_divergence(probs, np.log(probs))


@each_call
def test_scores_that_are_no_probabilities_give_no_warning(call, rng):
    ids = rng.integers(0, 7, 20)
    probs = softmax(logits_of(rng, 20))
    off = probs.copy()
    off[3] *= 0.97  # one of the first eight rows
    below_0 = probs.copy()
    below_0[5, :2] += -0.5, 0.5
    for scores in (logits_of(rng), rng.random((20, 7)), np.log(probs), 2 * probs, off, below_0, 0 * probs, probs[:7]):
        call(scores, ids[: len(scores)])
    cross_entropy(np.ones((20, 1)), 0 * ids)  # one class, whose probability is 1


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("classes", [2, 1000, 50_000])
def test_probabilities_of_every_dtype_give_a_warning(dtype, classes, rng):
    """Also those whose sum half precision changes, as they are and converted to float32."""
    logits, ids = logits_of(rng, 9, classes), rng.integers(0, classes, 9)
    probs = softmax(logits).astype(dtype)
    for scores in (probs, probs.astype(np.float32)):
        with pytest.warns(KindWarning):
            cross_entropy(scores, ids)
    cross_entropy(logits.astype(dtype), ids)
    cross_entropy_loss(ids, probs)


@pytest.mark.parametrize("rounded", [-1e-9, 1 + 2e-7])
def test_probabilities_that_rounding_moved_out_of_their_range_give_a_warning(rounded, rng):
    """As of 1 less the sum of the others. A single one of these in the first rows hid all others."""
    probs, ids = softmax(logits_of(rng)), rng.integers(0, 7, 20)
    probs[3] = np.eye(7)[2]
    probs[3, 4 if rounded < 0 else 2] = rounded
    with pytest.warns(KindWarning):
        cross_entropy(probs, ids)
    with pytest.raises(ValueError, match="looks like probabilities"):
        tokenloss.evaluate([(probs, ids)])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rows_lie_along_the_axis_of_the_classes(axis, rng):
    probs = np.moveaxis(softmax(logits_of(rng, 30).reshape(5, 6, 7)), -1, axis)
    with pytest.warns(KindWarning):
        token_scores(probs, rng.integers(0, 7, (5, 6)), axis=axis)
    logsumexp(probs, axis=(axis + 1) % 3)  # sums over other rows
    logsumexp(probs, axis=None)  # one row


def test_masked_and_ignored_rows_are_not_looked_at(rng):
    scores, ids = softmax(logits_of(rng, 40)), rng.integers(0, 7, 40)
    scores[:20:2] = np.nan
    ids[:20:2] = -100
    with pytest.warns(KindWarning):
        cross_entropy(scores, ids)
    kept = ids != -100
    with pytest.warns(KindWarning):
        compare(scores, scores, abs(ids) % 7, where=kept)
    kept[np.flatnonzero(kept)[7:]] = False
    cross_entropy(scores, abs(ids) % 7, where=kept)  # seven rows are left


def test_bfloat16_read_as_its_bits_is_looked_at_by_its_values(rng):
    bits = softmax(logits_of(rng)).astype(BFLOAT16)
    with pytest.warns(KindWarning):
        tokenloss.logsumexp(bits)


def test_no_gate_holds_where_probabilities_are_compared_as_logits(rng):
    """The softmax of probabilities is nearly uniform, so that all divergences are small."""
    base, other = (softmax(logits_of(rng)) for _ in range(2))
    ids, segments = rng.integers(0, 7, 20), np.arange(20) // 4
    limits = {"max_kl": 1.0, "max_kl_quantile": {0.5: 1.0}, "min_same_top": 0.0, "max_perplexity_ratio": 100.0}
    meter, block = ComparisonMeter(), ComparisonMeter()
    meter.update(logits_of(rng), logits_of(rng), ids)
    with pytest.warns(KindWarning):
        block.update(base, other, ids)
    meter.merge(block)
    with pytest.warns(KindWarning):
        both = compare(base, other, ids, segment_ids=segments)
    with pytest.warns(KindWarning):
        one_side = compare(np.log(base), other, ids)
    for comparison in (meter.result(), both, one_side):
        verdicts = comparison.check(**limits)
        assert {one.verdict for one in verdicts.gates} == {"cannot tell"}
        assert all("cannot be trusted: scores look like probabilities" in one.note for one in verdicts.gates)
    with pytest.warns(KindWarning), pytest.raises(AssertionError, match="cannot be trusted: scores look like prob"):
        assert_close(other, base, max_kl=1.0)
    for kind in ("logits", "probs"):
        assert compare(base, other, ids, kind=kind).check(max_perplexity_ratio=100.0).verdict == "holds"


@pytest.mark.parametrize("targets", ["ids", "distributions"])
def test_evaluate_gives_no_such_warning_where_the_kind_is_given_or_refused(targets, rng):
    probs = softmax(logits_of(rng))
    ids = rng.integers(0, 7, 20) if targets == "ids" else softmax(logits_of(rng))
    result = tokenloss.evaluate(blocks([(probs, ids)], kind="logits"))
    with pytest.warns(KindWarning):
        assert result.loss == pytest.approx(cross_entropy(probs, ids), rel=1e-12)
    with pytest.raises(ValueError, match="looks like probabilities"):
        tokenloss.evaluate([(probs, ids)])
