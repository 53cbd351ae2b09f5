"""Arrays that Hypothesis makes up: losses equal the oracle, and what must not change a loss or a sum does not."""

import numpy as np
import pytest
import reference
from arrays import (
    BFLOAT16,
    FLOATS,
    INTEGERS,
    LAYOUTS,
    LOSSES,
    assert_near,
    assert_same_bits,
    call,
    distributions,
    error_allowed,
    possible,
    scores_for,
    sum_of,
)
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import tokenloss
from tokenloss import LossMeter, cross_entropy, cross_entropy_loss, logsumexp, nll_loss

# a single row of masses that add up to more than 1 is warned of, since they may be labels of samples; and logits that
# happen to add up to 1, such as 0.5 and 0.5
NOT_PROBS = "ignore:.* looks like probabilities:tokenloss.KindWarning"
pytestmark = pytest.mark.filterwarnings("ignore:.* adds up to:UserWarning", NOT_PROBS)

layouts = st.sampled_from(sorted(LAYOUTS))
any_loss = st.floats(allow_nan=False, allow_infinity=False)
moderate = st.floats(-1e300, 1e300) | st.sampled_from([np.nan, np.inf, -np.inf])  # whose sums do not overflow


@st.composite
def problems(draw):
    """Scores of any bits, targets of either kind, and options."""
    dtype = draw(st.sampled_from(FLOATS))
    shape = draw(npst.array_shapes(min_dims=1, max_dims=4, max_side=5))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    if dtype == BFLOAT16:
        scores = draw(npst.arrays(np.uint16, shape)).view(BFLOAT16)
    else:
        scores = draw(npst.arrays(dtype, shape, elements=moderate if dtype == np.float64 else None))
    batch, classes = list(shape), shape[axis]
    del batch[axis]
    options = {"axis": axis}
    if draw(st.booleans()):
        targets = draw(npst.arrays(draw(st.sampled_from(INTEGERS)), tuple(batch), elements=st.integers(0, classes - 1)))
        options["ignore_index"] = draw(st.sampled_from([-100, 0, classes - 1, None]))
    else:
        shares = st.sampled_from([0, 0, 1, 2, 5]) if draw(st.booleans()) else st.floats(0, 4, width=16)
        targets = draw(npst.arrays(draw(st.sampled_from([np.float16, np.float32, np.float64])), shape, elements=shares))
    if draw(st.booleans()):
        options["where"] = draw(npst.arrays(bool, tuple(batch)))
    return scores, targets, options


@given(st.sampled_from(LOSSES), problems(), layouts, layouts)
@settings(max_examples=200)
def test_losses_with_axis_ignore_index_where_equal_the_oracle(loss, problem, layout, layout_of_targets):
    scores, targets, options = problem
    scores = possible(loss, scores)
    given_scores, given_targets = LAYOUTS[layout](scores), LAYOUTS[layout_of_targets](targets)
    losses = call(tokenloss, loss, given_scores, given_targets, reduction="none", **options)
    expected = call(reference, loss, scores, targets, reduction="none", **options)
    roundings = 1 + scores.shape[options["axis"]]  # terms of distributions are added one by one
    assert_near(losses, expected, error_allowed(loss, scores, targets, options["axis"]), roundings)
    total = call(tokenloss, loss, given_scores, given_targets, reduction="sum", **options)
    assert_same_bits(total, reference.exact_sum(np.ravel(losses)))


@st.composite
def problems_of_many_rows(draw):
    """Rows enough for groups of them, with targets of each kind."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, classes = draw(st.integers(1, 150)), draw(st.integers(1, 24) | st.sampled_from([40, 64, 65, 130, 513]))
    shape, dtype = (rows, classes), draw(st.sampled_from(FLOATS))
    loss, kind = draw(st.sampled_from(LOSSES)), draw(st.sampled_from(["one-hot", "ids", "soft", "sparse"]))
    targets = rng.integers(0, classes, rows)
    if kind == "one-hot":
        targets = np.eye(classes, dtype=draw(st.sampled_from([dtype, np.dtype(bool), np.dtype(np.float64)])))[targets]
    elif kind != "ids":
        targets = distributions(rng, shape, zeros=0 if kind == "soft" else 0.9)
        targets = targets.astype(draw(st.sampled_from([dtype, np.dtype(np.float64)])))
    options = {"where": rng.random(rows) < 0.8} if draw(st.booleans()) else {}
    return loss, scores_for(loss, rng, shape, dtype), targets, options


@given(problems_of_many_rows(), st.sampled_from(["c", "fortran", "strided", "swapped"]), layouts)
@settings(max_examples=100)
def test_losses_of_many_rows_equal_the_oracle(problem, layout, layout_of_targets):
    loss, scores, targets, options = problem
    given_scores, given_targets = LAYOUTS[layout](scores), LAYOUTS[layout_of_targets](targets)
    losses = call(tokenloss, loss, given_scores, given_targets, reduction="none", **options)
    expected = call(reference, loss, scores, targets, reduction="none", **options)
    assert_near(losses, expected, error_allowed(loss, scores, targets), 1 + scores.shape[-1])


@given(problems(), layouts)
@example((np.full((2, 2, 4), 0.5), None, {"axis": 0}), "c")
def test_logsumexp_equals_the_oracle(problem, layout):
    scores, axis = problem[0], problem[2]["axis"]
    expected, error = reference.logsumexp(scores, axis=axis), error_allowed("logsumexp", scores, axis=axis)
    assert_near(logsumexp(LAYOUTS[layout](scores), axis=axis), expected, error)


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=700), st.integers(-60000, 60000), st.data())
def test_shift_of_all_logits_changes_no_loss(logits, shift, data):
    target = data.draw(st.integers(0, len(logits) - 1))
    logits = np.array(logits, np.float64)
    error = 8e-15 * (abs(shift) + 50)
    assert_near(cross_entropy(logits + shift, target), np.float64(cross_entropy(logits, target)), error)
    assert_near(logsumexp(logits + shift), logsumexp(logits) + shift, error)


@given(st.integers(2, 3000), st.sampled_from(FLOATS), st.integers(0, 2**32))
@settings(max_examples=60)
def test_permutation_of_classes_changes_no_loss(classes, dtype, seed):
    rng = np.random.default_rng(seed)
    logits = (10 * rng.standard_normal(classes)).astype(dtype)
    order, shares = rng.permutation(classes), rng.random(classes)
    expected = np.float64(cross_entropy(logits, int(order[0])))
    assert_near(cross_entropy(logits[order], 0), expected, 2 * error_allowed("cross_entropy", logits))
    error = 2 * error_allowed("cross_entropy", logits, shares)
    assert_near(cross_entropy(logits[order], shares[order]), np.float64(cross_entropy(logits, shares)), error)


@given(st.integers(1, 9000), st.integers(0, 2**32), st.sampled_from([np.float32, np.float64]))
@settings(max_examples=100)
@example(4097, 0, np.float32)
def test_jumps_of_any_height_anywhere_in_a_row(length, seed, dtype):
    rng = np.random.default_rng(seed)
    row = np.zeros(length)
    for _ in range(rng.integers(1, 5)):
        start = rng.integers(length)
        row[start : start + rng.integers(1, length + 1)] = rng.choice([-1, 1]) * 10.0 ** rng.uniform(-3, 38.4)
    row += rng.choice([0, 1, 10]) * rng.standard_normal(length)
    row = row.astype(dtype)
    target = int(rng.choice([rng.integers(length), row.argmax()]))
    assert_near(cross_entropy(row, target), reference.cross_entropy(row, target), error_allowed("cross_entropy", row))


@given(st.integers(1, 40), st.integers(0, 2**32))
def test_losses_of_probabilities_logits_and_log_probabilities_agree(classes, seed):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((4, classes))
    log_probs = logits - logsumexp(logits)[:, None]
    targets = rng.integers(0, classes, 4)
    expected = cross_entropy(logits, targets, reduction="none")
    np.testing.assert_allclose(nll_loss(log_probs, targets, reduction="none"), expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(
        cross_entropy_loss(targets, np.exp(log_probs), epsilon=0, reduction="none"), expected, rtol=0, atol=1e-13
    )
    np.testing.assert_allclose(cross_entropy(log_probs, targets, reduction="none"), expected, rtol=0, atol=1e-13)


@given(st.lists(any_loss, max_size=30), st.randoms(use_true_random=False))
def test_sums_in_any_order_are_exact(losses, random):
    expected = reference.exact_sum(losses)
    random.shuffle(losses)
    assert sum_of(losses) == expected


@given(st.lists(st.floats(0, 1e308), min_size=1, max_size=30))
@example([1e308] * 2)
def test_reduction_mean_equals_the_oracle(losses):
    oracle = reference.LossMeter()
    oracle.update(losses)
    mean = nll_loss(-np.array(losses)[:, None], np.zeros(len(losses), int))
    assert mean == pytest.approx(oracle.loss, rel=2**-52)  # the rounded sum is divided, where a meter rounds once


@given(st.lists(st.floats(), max_size=30), st.randoms(use_true_random=False))
def test_sums_with_infinity_and_nan_do_not_depend_on_the_order(losses, random):
    expected = reference.exact_sum(losses)
    random.shuffle(losses)
    assert_same_bits(sum_of(losses), expected)


@given(
    st.lists(st.lists(st.floats(0, allow_infinity=False), max_size=8), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_meters_merge_in_any_order_to_the_same_bits(parts, random):
    whole = LossMeter()
    whole.update([loss for part in parts for loss in part])
    meters = []
    for part in parts:
        meter = LossMeter()
        meter.update(part)
        meters.append(meter)
    random.shuffle(meters)
    while len(meters) > 1:
        meters.append(meters.pop(random.randrange(len(meters))) + meters.pop(random.randrange(len(meters))))
    assert meters[0] == whole
    for statistic in ("count", "total", "loss", "stderr", "perplexity"):
        assert_same_bits(reference.statistic(meters[0], statistic), reference.statistic(whole, statistic), statistic)


@given(st.lists(st.floats(0, allow_infinity=False), max_size=20))
def test_meter_equals_the_oracle(losses):
    meter, expected = LossMeter(), reference.LossMeter()
    meter.update(losses)
    expected.update(losses)
    assert meter.count == len(losses)
    assert_same_bits(meter.total, expected.total)
    assert_same_bits(meter.loss, expected.loss)
    np.testing.assert_allclose(meter.loss.stderr, expected.stderr, rtol=5e-16, atol=5e-324)


@given(problems())
def test_ignore_index_and_where_equal_removing_the_rows(problem):
    scores, targets, options = problem
    assume(np.ndim(targets) < np.ndim(scores))
    kept = np.broadcast_to(options.get("where", True), targets.shape) & (targets != options["ignore_index"])
    rows = np.moveaxis(scores, options["axis"], -1)[kept]
    for reduction in ("sum", "mean"):
        expected = cross_entropy(rows, targets[kept], reduction=reduction, ignore_index=None)
        assert_same_bits(cross_entropy(scores, targets, reduction=reduction, **options), expected)
