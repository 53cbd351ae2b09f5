"""topk_divergence_bound: equal to the oracle, at most the whole divergence, its exact limits, rounding, bad input."""

import math

import clients
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenloss import kl_divergence, log_softmax, topk_divergence_bound
from tokenloss._scores import divergence

INF = math.inf


def oracle(base_ids, base_logprobs, ids, logprobs):
    """The bound of one position, by its definition."""
    p = {c: math.exp(x) for c, x in zip(base_ids, base_logprobs, strict=True) if c >= 0}
    q = {c: math.exp(x) for c, x in zip(ids, logprobs, strict=True) if c >= 0}
    common = p.keys() & q.keys()
    rest, other_rest = 1 - math.fsum(p[c] for c in common), 1 - math.fsum(q[c] for c in common)
    terms = [p[c] * math.log(p[c] / q[c]) for c in common]
    return math.fsum([*terms, rest * math.log(rest / other_rest)]), 1 - rest, 1 - other_rest, len(common)


def tops(logits, k):
    """Ids and log-probabilities of the k most likely classes."""
    logprobs = log_softmax(np.asarray(logits, float))
    ids = np.argsort(-logprobs, axis=-1, kind="stable")[..., :k]
    return ids, np.take_along_axis(logprobs, ids, -1)


def with_target(ids, logprobs, targets, target_logprobs):
    """Lists that hold the target, too."""
    ids = np.where(ids == targets[:, None], -1, ids)
    return np.column_stack([ids, targets]), np.column_stack([logprobs, target_logprobs])


def test_topk_divergence_bound_of_real_models():
    data = clients.topk()
    base = data["base_top_ids"], data["base_top_logprobs"]
    other = data["other_top_ids"], data["other_top_logprobs"]
    result = topk_divergence_bound(*base, *other, rounding=0)
    np.testing.assert_allclose(result.kl, data["bound_intersection"], rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(result.n_common, data["intersection_size"])
    assert (result.kl <= data["kl"]).all()
    assert 0.4 < result.kl.mean() / data["kl"].mean() < 1
    scored = data["targets"] >= 0
    lists = [
        with_target(
            *(array[scored] for array in lists), data["targets"][scored], data[f"{name}_target_logprobs"][scored]
        )
        for name, lists in (("base", base), ("other", other))
    ]
    result = topk_divergence_bound(*lists[0], *lists[1], rounding=0)
    np.testing.assert_allclose(result.kl, data["bound_intersection_and_target"][scored], rtol=1e-12, atol=1e-13)
    assert (result.kl <= data["kl"][scored]).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_topk_divergence_bound_equals_the_oracle(dtype, rng):
    logits = rng.normal(0, 2, (2, 3, 5, 30))
    base, other = tops(logits[0], 7), tops(logits[0] + 0.5 * logits[1], 9)
    base, other = ((ids, logprobs.astype(dtype)) for ids, logprobs in (base, other))
    base[0][0, 0, 2] = -1
    result = topk_divergence_bound(*base, *other, rounding=0)
    for i in np.ndindex(3, 5):
        expected = oracle(*(array[i].tolist() for array in (*base, *other)))
        np.testing.assert_allclose([column[i] for column in result], expected, rtol=1e-12, atol=1e-14)


def test_topk_divergence_bound_block_by_block(monkeypatch, rng):
    logits = rng.normal(0, 2, (2, 50, 30))
    lists = *tops(logits[0], 7), *tops(logits[1], 7)
    expected = topk_divergence_bound(*lists)
    monkeypatch.setattr(divergence, "_BLOCK", 40)
    for result, one in zip(topk_divergence_bound(*lists), expected, strict=True):
        np.testing.assert_array_equal(result, one)


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(st.tuples(*[st.floats(-30, 5)] * 2), min_size=2, max_size=12),
    ks=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    decimals=st.sampled_from([None, 2, 3, 4, 5, 6]),
)
def test_topk_divergence_bound_is_at_most_the_divergence(logits, ks, decimals):
    base, other = np.array(logits).T
    lists = [tops(logits, k) for logits, k in zip((base, other), ks, strict=True)]
    rounding = 0 if decimals is None else 0.5 * 10**-decimals
    if decimals is not None:
        lists = [(ids, logprobs.round(decimals)) for ids, logprobs in lists]
    result = topk_divergence_bound(*lists[0], *lists[1], rounding=rounding)
    assert 0 <= result.kl <= kl_divergence(base, other) + 1e-12


@pytest.mark.parametrize("decimals", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("sharpness", [0.5, 3, 12])
@pytest.mark.parametrize("difference", [0, 0.01, 0.3, 3])
def test_rounding_of_distributions_does_not_raise_the_bound_above_the_divergence(decimals, sharpness, difference, rng):
    logits = sharpness * rng.standard_normal((2000, 12))
    base, other = log_softmax(np.stack([logits, logits + difference * rng.standard_normal(logits.shape)]))
    exact = kl_divergence(base, other, reduction="none")
    for k in (1, 4, 11, 12):
        (ids, p), (other_ids, q) = tops(base, k), tops(other, k)
        rounded = ids, p.round(decimals), other_ids, q.round(decimals)
        result = topk_divergence_bound(*rounded, rounding=0.5 * 10**-decimals)
        assert (result.kl <= exact + 1e-12).all()
        if decimals == 6 and difference > 0.01:
            unrounded = topk_divergence_bound(ids, p, other_ids, q, rounding=0).kl
            assert result.kl.mean() >= 0.98 * unrounded.mean()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("sharpness", [0, 0.3, 3, 12])
@pytest.mark.parametrize("difference", [0, 0.003, 0.1, 3])
def test_rounding_of_half_precision_is_known_by_the_dtype(dtype, sharpness, difference, rng):
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.float16
    logits = sharpness * rng.standard_normal((500, 64))
    base, other = log_softmax(np.stack([logits, logits + difference * rng.standard_normal(logits.shape)]))
    exact = kl_divergence(base, other, reduction="none")
    for k in (1, 5, 20, 64):
        (ids, p), (other_ids, q) = tops(base, k), tops(other, k)
        result = topk_divergence_bound(ids, p.astype(dtype), other_ids, q.astype(dtype))
        assert (result.kl <= exact + 1e-12).all()
        of_one = topk_divergence_bound(ids, p, other_ids, q.astype(dtype))
        assert (of_one.kl <= exact + 1e-12).all()
        if difference == 3:
            assert of_one.kl.mean() >= result.kl.mean() >= 0.9 * topk_divergence_bound(ids, p, other_ids, q).kl.mean()


def test_topk_divergence_bound_never_takes_what_rounding_left_for_an_impossible_rest():
    base, other = np.log([0.6, 0.3]), np.log([0.75, 0.25])  # Q is 1, and above or below it by rounding
    expected = 0.6 * math.log(0.6 / 0.75) + 0.3 * math.log(0.3 / 0.25) + 0.1 * math.log(0.1 / 1e-6)
    for shift in (1e-7, 0, -1e-7):
        result = topk_divergence_bound([0, 1], base, [0, 1], other + shift)
        assert result.kl == pytest.approx(expected, abs=0.02)
        assert result.mass <= 1
    above = topk_divergence_bound([0, 1], other + 1e-7, [0, 1], base)
    expected = 0.75 * math.log(0.75 / 0.6) + 0.25 * math.log(0.25 / 0.3)
    assert expected - 2e-5 < above.kl <= expected


def test_rounding_does_not_raise_the_bound_where_the_rest_is_small():
    base, other = math.log(0.3), -0.001149
    rounded, rest = round(other, 4), -math.expm1(other)
    assert -math.expm1(rounded) < 0.96 * rest
    exact = 0.3 * (base - other) + 0.7 * math.log(0.7 / rest)
    assert topk_divergence_bound([0], [base], [0], [other], rounding=0).kl == pytest.approx(exact, rel=1e-11)
    result = topk_divergence_bound([0], [base], [0], [rounded], rounding=5e-5).kl
    assert exact - 0.3 < result <= exact


@pytest.mark.parametrize("rounding", [1e-6, 1e-4, 1e-3, 0.01])
@pytest.mark.parametrize("rest", [1e-6, 1e-4, 9e-4, 0.004, 0.06, 0.15, 0.25, 0.6, 0.95])
def test_bound_is_near_the_least_divergence_of_all_that_rounds_to_the_lists(rest, rounding):
    p, q = 0.5, 1 - rest
    factors = np.exp(np.linspace(-rounding, rounding, 401))
    ps, qs = p * factors[:, None], q * factors
    ps, qs = np.broadcast_arrays(ps, np.where(qs < 1, qs, np.nan))
    least = np.nanmin(ps * np.log(ps / qs) + (1 - ps) * np.log((1 - ps) / (1 - qs)))
    result = topk_divergence_bound([0], [math.log(p)], [0], [math.log(q)], rounding=rounding).kl
    assert max(0, least - 0.03 * least) <= result <= least + 1e-12


def test_a_rest_that_float64_cannot_hold_does_not_make_the_bound_infinite():
    result = topk_divergence_bound([0], [math.log(0.5)], [0], [0.0], rounding=0).kl
    assert 10 < result < 20


def test_masses_above_1_are_scaled():
    base, other = np.log([0.75, 0.25]), np.log([0.6, 0.4])
    expected = topk_divergence_bound([0, 1], base, [0, 1], other).kl
    for shift, other_shift in ((0.01, 0), (0, 0.02), (0.01, 0.02)):
        result = topk_divergence_bound([0, 1], base + shift, [0, 1], other + other_shift)
        assert result.kl == pytest.approx(expected, abs=1e-6)
        assert result.base_mass == result.mass == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("shift", [0, 1e-7, -1e-7])
def test_topk_divergence_bound_of_equal_lists_is_0(shift, rng):
    ids, logprobs = tops(rng.normal(0, 9, (200, 20)), 12)
    result = topk_divergence_bound(ids, logprobs + shift, ids, logprobs + shift)
    assert {str(x) for x in result.kl.tolist()} == {"0.0"}
    turned = topk_divergence_bound(ids, logprobs + shift, ids[:, ::-1], logprobs[:, ::-1] + shift)
    np.testing.assert_array_equal(turned.kl, 0)


def test_topk_divergence_bound_of_nearly_equal_lists_is_never_negative(rng):
    ids, logprobs = tops(rng.normal(0, 2, (500, 20)), 12)
    result = topk_divergence_bound(ids, logprobs, ids, logprobs + 1e-15 * rng.normal(0, 1, logprobs.shape))
    assert (result.kl >= 0).all()


def test_limits_of_topk_divergence_bound():
    half = math.log(0.5)
    assert topk_divergence_bound([0], [half], [1], [half]) == (0, 0, 0, 0)
    assert topk_divergence_bound([], [], [1], [half]) == (0, 0, 0, 0)
    assert topk_divergence_bound([-1, -1], [half, half], [-1, -1], [half, half]).n_common == 0
    assert topk_divergence_bound([0, 1], [half, half], [0, 1], [0.0, -INF]).kl == INF
    assert topk_divergence_bound([0, 1], [0.0, -INF], [0, 1], [half, half]).kl == pytest.approx(math.log(2), abs=2e-6)
    assert topk_divergence_bound([0, 1], [0.0, -INF], [0, 1], [0.0, -INF]).kl == 0
    assert math.isnan(topk_divergence_bound([0, 1], [half, math.nan], [0, 1], [half, half]).kl)
    assert topk_divergence_bound([0, 1], [half, half], [0], [half]).kl == 0
    assert (
        topk_divergence_bound(np.empty((0, 3), int), np.empty((0, 3)), np.empty((0, 2), int), np.empty((0, 2))).kl.size
        == 0
    )


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (([0, 0], [-1.0, -1.0], [0], [-1.0]), {}, ValueError, "base_top_ids lists class 0 twice"),
        (([0], [-1.0], [3, 4, 3], [-2.0] * 3), {}, ValueError, "top_ids lists class 3 twice"),
        (([0, 1], [2.0, 1.0], [0], [-1.0]), {}, ValueError, "base_top_logprobs has a row whose logsumexp is 2.313"),
        (([0], [-1.0], [0, 1], [-1.0]), {}, ValueError, "top_logprobs has shape (1,); it must be (2,)"),
        (([[0]], [[-1.0]], [0], [-1.0]), {}, ValueError, "top_ids has shape (1,); it must be (1, L)"),
        ((np.array([2**63], np.uint64), [-1.0], [0], [-1.0]), {}, ValueError, f"a class of base_top_ids is {2**63}"),
        (([0.5], [-1.0], [0], [-1.0]), {}, TypeError, "base_top_ids has dtype float64; it must be integer"),
        ((0, -1.0, 0, -1.0), {}, ValueError, "base_top_ids has shape (); it must be (..., K)"),
        (([0], [-1.0], [0], [-1.0]), {"rounding": 1.0}, ValueError, "rounding is 1.0"),
    ],
)  # fmt: skip
def test_errors_of_topk_divergence_bound(arguments, options, error, words):
    with pytest.raises(error) as raised:
        topk_divergence_bound(*arguments, **options)
    assert words in str(raised.value)
