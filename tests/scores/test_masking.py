"""where and ignore_index: positions that they leave out are never read, by any function, and do not count in losses."""

import math

import numpy as np
import pytest
import reference
from arrays import LOSSES, OPTIONS, assert_same_bits, call, fails, problem, scores_for, strided
from programs import FORBIDDEN_PAGES, needs_mprotect

import tokenloss
from tokenloss import cross_entropy

each_loss = pytest.mark.parametrize("loss", LOSSES)
each_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
NAN, INF = math.nan, math.inf


@each_loss
def test_ignore_index_gives_a_loss_of_zero_and_never_reads_the_row(loss, rng):
    scores = scores_for(loss, rng, (4, 5), np.float32)
    expected = call(tokenloss, loss, scores, [1, 2, 3, 4], reduction="none")
    scores[1] = np.nan
    losses = call(tokenloss, loss, scores, [1, -100, 3, 4], reduction="none")
    assert losses.tolist() == [expected[0], 0.0, expected[2], expected[3]]
    assert math.copysign(1, losses[1]) == 1
    losses = call(tokenloss, loss, scores, [1, 0, 3, 4], ignore_index=0, reduction="none")
    assert losses.tolist() == [expected[0], 0.0, expected[2], expected[3]]


@each_loss
@pytest.mark.parametrize("garbage", [99, -1, -(2**62), -100])
def test_where_leaves_out_rows_whose_targets_may_be_garbage(loss, garbage, rng):
    scores = scores_for(loss, rng, (4, 5), np.float32)
    expected = call(tokenloss, loss, scores, [1, 2, 3, 4], reduction="none")
    scores[[0, 3]] = np.nan
    losses = call(tokenloss, loss, scores, [garbage, 2, 3, garbage], where=[False, True, True, False], reduction="none")
    assert losses.tolist() == [0.0, expected[1], expected[2], 0.0]


@each_loss
def test_where_leaves_out_distributions_that_may_be_garbage(loss, rng):
    scores, shares = scores_for(loss, rng, (3, 5), np.float32), np.full((3, 5), 0.2)
    expected = call(tokenloss, loss, scores, shares, reduction="none")
    scores[1], shares[1] = np.nan, np.inf
    losses = call(tokenloss, loss, scores, shares, where=[True, False, True], reduction="none")
    assert losses.tolist() == [expected[0], 0.0, expected[2]]


@each_loss
def test_reduction_mean_counts_only_rows_that_where_and_ignore_index_keep(loss, rng):
    scores = scores_for(loss, rng, (4, 5), np.float64)
    losses = call(tokenloss, loss, scores, [1, 2, 3, 4], reduction="none")
    kept = call(tokenloss, loss, scores, [1, 2, -100, 4], where=[False, True, True, True])
    assert kept == math.fsum(losses[[1, 3]]) / 2


@each_loss
def test_where_is_broadcast_over_the_batch(loss, rng):
    scores = scores_for(loss, rng, (3, 4, 5), np.float32)
    targets = rng.integers(0, 5, (3, 4))
    masks = [True, False, rng.random(4) > 0.5, rng.random((3, 1)) > 0.5, strided(rng.random((3, 4)) > 0.5)]
    for where in masks:
        whole = np.broadcast_to(where, (3, 4)).copy()
        for given in (where, np.asarray(where).tolist()):
            losses = call(tokenloss, loss, scores, targets, where=given, reduction="none")
            assert_same_bits(losses, call(tokenloss, loss, scores, targets, where=whole, reduction="none"))
        kept = call(tokenloss, loss, scores, targets, reduction="none")[whole]
        assert_same_bits(losses[whole], kept)
        assert_same_bits(losses[~whole], np.zeros((~whole).sum()))


@each_loss
@pytest.mark.parametrize("ignore_index", [-(2**63), 2**63 - 1, 2**63, -(2**70), 2**70, np.int8(-1)])
def test_ignore_index_may_be_any_integer(loss, ignore_index, rng):
    scores = scores_for(loss, rng, (3, 4), np.float64)
    assert call(tokenloss, loss, scores, [1, 2, 3], ignore_index=ignore_index) == call(
        tokenloss, loss, scores, [1, 2, 3]
    )
    if -(2**63) <= ignore_index < 2**63 - 1:
        targets = np.array([1, ignore_index, 3])
        assert call(tokenloss, loss, scores, targets, ignore_index=ignore_index, reduction="none")[1] == 0.0


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", ">i8", "uint64", ">u8"])
def test_ignore_index_of_the_largest_and_smallest_integers(dtype):
    for value in (np.iinfo(dtype).max, np.iinfo(dtype).min):
        targets = np.array([1, value], dtype)
        for number in (int(value), np.iinfo(dtype).dtype.type(value)):
            assert cross_entropy(np.zeros((2, 3)), targets, ignore_index=number) == cross_entropy(np.zeros(3), 1)
    with fails(IndexError, "targets[1] =", np.iinfo(dtype).max):  # another integer with the same bits
        cross_entropy(np.zeros((2, 3)), np.array([1, np.iinfo(dtype).max], dtype), ignore_index=-1)


@each_options
def test_ignore_index_with_label_smoothing_z_loss_logit_scale_softcap(options, rng):
    logits, targets, given = problem(rng, "ids", np.float64)
    targets = np.where(targets < 0, 2, targets)
    given |= options | {"ignore_index": 2, "reduction": "none"}
    losses = cross_entropy(logits, targets, **given)
    expected = reference.cross_entropy(logits, targets, **given)
    np.testing.assert_allclose(losses, expected, rtol=1e-13)
    assert ((losses == 0) & given["where"]).any()


@each_options
@pytest.mark.parametrize("weighted", [False, True])
def test_where_with_label_smoothing_z_loss_logit_scale_softcap(options, weighted, rng):
    logits, weight = scores_for("cross_entropy", rng, (4, 9), np.float32), rng.random(9) if weighted else None
    given = options | {"weight": weight}
    expected = cross_entropy(logits[2:], [3, 4], reduction="none", **given)
    logits[:2] = NAN
    losses = cross_entropy(logits, [-100, 10**9, 3, 4], where=[True, False, True, True], reduction="none", **given)
    assert_same_bits(losses, [0.0, 0.0, *expected])
    for reduction, value in (("mean", NAN), ("sum", 0.0)):
        assert_same_bits(cross_entropy(logits[:1], [-100], reduction=reduction, **given), value)
        assert_same_bits(cross_entropy(logits[:1], [[1] * 9], where=False, reduction=reduction, **given), value)
        assert_same_bits(cross_entropy(logits[:0], [], reduction=reduction, **given), value)


@each_options
def test_ignore_index_that_is_a_class_or_none(options):
    """The same class id with ignore_index equal to it, and with ignore_index=None."""
    logits = [[1.0, 2.0, 3.0]] * 2
    kept = cross_entropy(logits, [1, 2], ignore_index=None, reduction="none", **options)
    assert_same_bits(cross_entropy(logits, [1, 2], ignore_index=1, reduction="none", **options), [0.0, kept[1]])
    assert cross_entropy(logits, [1, 2], ignore_index=1, **options) == kept[1]


# memory that cannot be read


@needs_mprotect
def test_where_and_ignore_index_never_read_memory_of_rows_left_out(run_python):
    run_python(
        FORBIDDEN_PAGES
        + """
import itertools
from tokenloss import class_log_probs, compare, cross_entropy_and_grad, kl_divergence

rows = np.frombuffer(memory, np.float32).reshape(3, -1)
shares = np.broadcast_to(np.float32(1), rows.shape)
rows[...] = 0
forbid(1)
where = [True, False, True]
ways = [([5, -100, rows.shape[1] - 1], None), ([5, 10**9, 0], where)]
for loss in (cross_entropy, nll_loss, lambda scores, *rest, **options: cross_entropy_loss(*rest, scores, **options)):
    for targets, kept in [*ways, (shares, where)]:
        assert loss(rows, targets, where=kept, reduction="none")[1] == 0
for options in ({}, {"label_smoothing": 0.1, "softcap": 3.0}):
    for targets, kept in [*ways, (shares, where)]:
        loss, gradient = cross_entropy_and_grad(rows, targets, where=kept, **options)
        assert loss > 0 and np.isfinite(gradient).all() and not gradient[1].any()
for ids in ([5, rows.shape[1] - 1], [[1, 2], [-1, 3], [4, 4]]):
    found = class_log_probs(rows, ids, where=where)
    assert np.isnan(found[1]).all() and abs(found[::2] + np.log(rows.shape[1])).max() < 2e-7
rows[::2] = -np.log(rows.shape[1])
for other in (rows, np.zeros(rows.shape)):
    for pair in ((rows, other), (other, rows)):
        assert abs(kl_divergence(*pair, where=where, reduction="none")).max() < 1e-6
    for (targets, kept), definitions in itertools.product(ways, ("exact", "llama.cpp")):
        found = compare(rows, other, targets, where=kept, definitions=definitions)
        assert np.nanmax(abs(found.kl)) < 1e-6
        assert np.isnan(found.kl).tolist() == [False, True, False]
        assert found.kept.tolist() == where
"""
    )


# nothing is kept: the mean is nan, the sum 0.0


@each_loss
@pytest.mark.parametrize("weighted", [False, True])
def test_where_and_ignore_index_that_keep_nothing(loss, weighted):
    scores, weight = np.full((3, 4), np.nan, np.float32), np.ones(4) if weighted else None
    everything_ignored = [
        ([-100] * 3, {}),
        ([2] * 3, {"ignore_index": 2}),
        ([0] * 3, {"where": False}),
        ([9, -100, 0], {"where": [False, True, False]}),
        (np.ones((3, 4)), {"where": [False] * 3}),
    ]
    for targets, options in everything_ignored:
        assert math.isnan(call(tokenloss, loss, scores, targets, weight=weight, **options))
        assert str(call(tokenloss, loss, scores, targets, weight=weight, reduction="sum", **options)) == "0.0"
        assert call(tokenloss, loss, scores, targets, weight=weight, reduction="none", **options).tolist() == [0, 0, 0]


@each_loss
def test_where_and_ignore_index_of_a_single_position(loss):
    assert math.isnan(call(tokenloss, loss, [0.1, 0.9], -100))
    assert call(tokenloss, loss, [0.1, 0.9], -100, reduction="none") == 0.0
    assert call(tokenloss, loss, [0.1, 0.9], 0, where=False, reduction="sum") == 0.0
