"""kl_divergence with divergences: equal to the oracle for every dtype, kind and layout; bounds, bits."""

import math

import numpy as np
import pytest
import reference
from arrays import (
    FLOATS,
    KINDS_OF_ROWS,
    LAYOUTS,
    assert_near,
    assert_same_bits,
    fails,
    normalizer_error,
    row_of_logits,
    scores_for,
    strided,
    swapped,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tokenloss import compare, kl_divergence, linear_compare, linear_kl_divergence
from tokenloss._core import _core

NAN, INF = math.nan, math.inf
NAMES = ("kl", "reverse_kl", "js", "tv", "hellinger")
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
each_dtype_of_each = pytest.mark.parametrize(
    ("base_dtype", "dtype"), [(base, other) for base in FLOATS for other in FLOATS], ids=str
)


def found_of(base_logits, logits, names=NAMES, **options):
    """The divergences of each position, by name."""
    result = kl_divergence(base_logits, logits, divergences=names, reduction="none", **options)._asdict()
    assert all((value is None) == (name not in names) for name, value in result.items())
    return {name: np.asarray(value) for name, value in result.items() if value is not None}


def assert_within_bounds(result):
    for name, most in {"js": math.log(2), "tv": 1.0, "hellinger": 1.0, "reverse_kl": INF}.items():
        known = result[name][~np.isnan(result[name])]
        assert ((known >= 0) & (known <= most)).all(), name
        assert not np.signbit(known).any(), name


def assert_as_oracle(base_logits, logits, given=None, axis=-1):
    result, expected = (
        found_of(*(given or (base_logits, logits)), axis=axis),
        reference.divergences(base_logits, logits, axis=axis),
    )
    error = np.maximum(normalizer_error(base_logits, axis), normalizer_error(logits, axis))
    is_single = min(base_logits.dtype.itemsize, logits.dtype.itemsize) < 8
    # the contract is a relative 1e-6 of any dtype; of float64, what the roundings of both logsumexps leave in p and q
    relative = 1e-6 if is_single else 6e-14 + error / 40
    for name in NAMES[1:]:
        finite = np.where(np.isfinite(expected[name]), expected[name], 0)
        assert_near(result[name], expected[name], error + (relative * finite if name == "reverse_kl" else 0), 2)
    assert_within_bounds(result)
    return result


def pair(rng, shape, base_dtype, dtype, distance=0.3):
    """Logits of two similar models."""
    logits = scores_for("cross_entropy", rng, shape, np.float64)
    return logits.astype(base_dtype), (logits + distance * rng.standard_normal(shape)).astype(dtype)


# against the oracle


@pytest.mark.parametrize(("dtype", "shift"), [(np.float32, 2.0**20), (np.float64, 1e6), (np.float64, 1e9)], ids=str)
@pytest.mark.parametrize("sides", [(1, 0), (0, 1), (1, 1)], ids=["base", "other", "both"])
def test_divergences_of_short_rows_do_not_depend_on_where_the_logits_lie(dtype, shift, sides, rng):
    """Multiples of 1/8, which a shift does not round."""
    base, other = (rng.integers(-40, 40, (20, 50)) / 8 for _ in range(2))
    expected = found_of(base, other)
    shifted = [(logits + side * shift).astype(dtype) for logits, side in zip((base, other), sides, strict=True)]
    for name, values in found_of(*shifted).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6, atol=1e-9, err_msg=name)


@each_dtype_of_each
@pytest.mark.parametrize("layout", LAYOUTS)
def test_divergences_of_every_pair_of_dtypes_layout_and_axis(base_dtype, dtype, layout, rng):
    for axis in (0, 1, -1):
        base_logits, logits = pair(rng, (4, 5, 6), base_dtype, dtype)
        for other in ("c", "strided", "swapped"):
            assert_as_oracle(base_logits, logits, (LAYOUTS[layout](base_logits), LAYOUTS[other](logits)), axis)


@each_dtype
@pytest.mark.parametrize("distance", [1e-3, 0.3, 5, 100])
def test_divergences_at_every_length_of_row(dtype, distance, rng):
    for classes in [1, 2, 63, 64, 65, 127, 129, 511, 512, 513, 4097, 8193]:
        base_logits, logits = pair(rng, (2, classes), dtype, dtype, distance)
        for layout in (np.ascontiguousarray, strided, swapped):
            assert_as_oracle(base_logits, logits, (layout(base_logits), layout(logits)))


@pytest.mark.parametrize(("dtype", "kind"), KINDS_OF_ROWS)
def test_divergences_of_every_kind_of_rows(dtype, kind, rng):
    for length in [1, 2, 65, 513, 5000]:
        row = row_of_logits(kind, rng, length, dtype)
        moved = (row.astype(float) + rng.standard_normal(length)).astype(dtype)
        plain = rng.standard_normal(length).astype(dtype)
        assert_as_oracle(row, moved)
        if kind not in ("all_1e308", "masked_by_minus_1e308", "huge_differences"):  # their sums overflow
            assert_as_oracle(row, plain)
            assert_as_oracle(plain, row)


@each_dtype
@pytest.mark.parametrize("kind", ["log_probs", "probs"])
def test_divergences_of_probabilities_and_log_probabilities(kind, dtype, rng):
    def scores_of(probs, kind):
        with np.errstate(divide="ignore"):
            return (probs if kind == "probs" else np.log(probs)).astype(dtype)

    def logits_of(scores, kind):
        with np.errstate(divide="ignore"):
            return np.log(reference.float64(scores)) if kind == "probs" else scores

    error = 1e-14 if np.dtype(dtype).itemsize == 8 or kind == "probs" else 1e-6
    for base_kind in (kind, "logits"):
        for classes in (3, 100, 600, 5000):
            logits = 2 * rng.standard_normal((2, 3, classes))
            logits[1, :, 1] = -INF
            probs = reference.float64(reference.softmax(logits))
            base, other = scores_of(probs[0], base_kind), scores_of(probs[1], kind)
            result = found_of(base, other, kind=kind, base_kind=base_kind)
            expected = reference.divergences(logits_of(base, base_kind), logits_of(other, kind))
            for name in NAMES[1:]:
                allowed = error * np.maximum(
                    1 if name == "reverse_kl" else 0.2, np.nan_to_num(expected[name], posinf=1)
                )
                assert_near(result[name], expected[name], allowed, 2)


@pytest.mark.parametrize("classes", [100, 5000])
@pytest.mark.parametrize("distance", [1e-5, 1e-4, 1e-3])
def test_divergences_of_nearly_equal_models_keep_their_digits(classes, distance, rng):
    """A divergence of 1e-8 is no noise, though float32 holds logits to 1e-7."""
    base_logits = (3 * rng.standard_normal((50, classes))).astype(np.float32)
    logits = (base_logits + distance * rng.standard_normal((50, classes)) + 5).astype(np.float32)
    result, expected = found_of(base_logits, logits), reference.divergences(base_logits, logits)
    for name in NAMES[1:]:
        error = np.median(abs(result[name] - expected[name]) / expected[name])
        assert error < 1e-7 / distance * (0.1 if classes < 5000 else 0.05) + 2e-6, name


# bounds


@settings(deadline=None)
@given(
    npst.arrays(
        st.sampled_from([np.float32, np.float64]),
        st.tuples(st.just(2), st.integers(1, 70)),
        elements=st.floats(-100, 100, width=32) | st.just(-INF) | st.just(0.0),
    )
)
def test_divergences_keep_to_the_inequalities_that_join_them(rows):
    result = {name: float(value) for name, value in found_of(*rows).items()}
    if np.isnan(result["tv"]):
        return
    assert_within_bounds({name: np.asarray(value) for name, value in result.items()})
    kl, reverse_kl, js, tv, hellinger = result.values()
    error = 4e-7
    assert tv <= math.sqrt(kl / 2) + error or kl < 2e-7  # Pinsker
    assert tv <= math.sqrt(reverse_kl / 2) + error
    assert hellinger**2 <= tv + error
    assert tv <= math.sqrt(2) * hellinger + error
    assert js <= math.log(2) * tv + error  # Lin
    assert js <= (kl + reverse_kl) / 4 + error


@each_dtype
def test_divergences_of_equal_rows_are_0(dtype, rng, backend):
    for length in (1, 2, 65, 513, 5000):
        row = (8 * rng.standard_normal(length)).astype(dtype)
        row[1:2] = -INF
        for other in (row, swapped(row), strided(row)):
            assert all(str(float(value)) == "0.0" for value in found_of(row, other).values())
    rows = rng.integers(-8, 9, 600) / 4
    assert not any(found_of(rows.astype(dtype), rows).values())


def test_divergences_of_rows_without_a_common_class(backend):
    for classes in (2, 600, 5000):
        rows = np.zeros((2, classes))
        rows[0, : classes // 2] = rows[1, classes // 2 :] = -INF
        for dtype in (np.float32, np.float64):
            result = found_of(*rows.astype(dtype))
            assert [float(result[name]) for name in ("kl", "reverse_kl", "tv", "hellinger")] == [INF, INF, 1, 1]
            assert float(result["js"]) == pytest.approx(math.log(2), abs=1e-7)
            assert result["js"] <= math.log(2)


@each_dtype
def test_liger_1453_js_of_classes_that_underflow_under_one_model_is_not_nan(dtype, backend):
    """0 log 0 in float32: a class whose probability underflows under both models, or under one."""
    far = -60000 if dtype != "float64" else -1e5
    for classes in (3, 700):
        rows = np.zeros((2, classes), dtype)
        rows[:, 0], rows[0, 1] = far, far
        result = assert_as_oracle(rows[0], rows[1])
        assert all(np.isfinite(result[name]) for name in ("js", "tv", "hellinger"))
        rows[0, 1], rows[1, 1] = 0, far
        result = assert_as_oracle(rows[0], rows[1])
        assert all(np.isfinite(result[name]) for name in ("js", "tv", "hellinger"))


def test_trl_3043_js_is_of_the_mixture_and_not_of_its_logarithm(rng):
    """The mixture is that of probabilities: (p + q) / 2, and both divergences are from it."""
    p, q = (rng.dirichlet(np.ones(50), 20) for _ in range(2))
    m = (p + q) / 2
    expected = ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)) / 2
    result = found_of(np.log(p), np.log(q), ("js",))["js"]
    np.testing.assert_allclose(result, expected, rtol=1e-12)
    assert_same_bits(result, found_of(np.log(q), np.log(p), ("js",))["js"])


@each_dtype
def test_redeep_2_js_is_at_most_log_2(dtype, rng):
    """In half precision, sums of rounded terms exceed it."""
    logits = (30 * rng.standard_normal((2, 200, 1000))).astype(dtype)
    js = found_of(*logits, ("js",))["js"]
    assert js.max() <= math.log(2)
    assert js.max() > 0.69


# special values


@each_dtype_of_each
def test_divergences_of_logits_of_minus_infinity(base_dtype, dtype, backend):
    for classes in (2, 65, 600):
        for position in {0, classes // 2, classes - 1}:
            base_logits, logits = np.zeros(classes, base_dtype), np.zeros(classes, dtype)
            base_logits[position] = -INF
            result = assert_as_oracle(base_logits, logits)
            assert result["reverse_kl"] == INF
            assert float(result["tv"]) == pytest.approx(1 / classes, abs=2e-7)
            logits[position] = -90 if dtype.itemsize > 2 else -9
            assert found_of(base_logits, logits)["reverse_kl"] == INF
            logits[position] = -INF
            assert not any(found_of(base_logits, logits).values())


@each_dtype
def test_divergences_where_a_row_has_no_softmax(dtype, rng, backend):
    for classes in (3, 65, 4200):
        base_logits, logits = pair(rng, (3, classes), dtype, dtype)
        expected = found_of(base_logits, logits)
        for which in (0, 1):
            for value in (NAN, INF, -INF):
                given = [base_logits.copy(), logits.copy()]
                given[which][1, classes // 2 if value != -INF else slice(None)] = value
                result, swapped_kl = found_of(*given), found_of(*given[::-1], ("kl",))["kl"]
                for name in NAMES[2:]:
                    assert_same_bits(result[name], [expected[name][0], NAN, expected[name][2]])
                assert_same_bits(result["reverse_kl"][1], swapped_kl[1])


def test_reverse_kl_is_the_divergence_of_the_models_in_each_others_place(rng):
    for base, other in ([0.0, -1e300], [0.0, 0.0]), ([0.0, -3e38], [0.0, -1.0]), ([0.0, -1e9], [0.0, -1e9]):
        for dtype in (np.float32, np.float64):
            with np.errstate(over="ignore"):
                rows = np.array([base, other]).astype(dtype)
            expected = float(kl_divergence(rows[1], rows[0]))
            assert float(found_of(*rows)["reverse_kl"]) == pytest.approx(expected, rel=1e-6)
    for distance in (0.3, 3, 30):
        base_logits, logits = pair(rng, (30, 700), np.float64, np.float64, distance)
        expected = kl_divergence(logits, base_logits, reduction="none")
        np.testing.assert_allclose(found_of(base_logits, logits)["reverse_kl"], expected, rtol=1e-12)


# bits


@each_dtype
def test_divergences_have_the_same_bits_on_every_backend_and_for_any_workers_batch_and_subset(dtype, rng):
    shapes = (40, 7), (3, 512), (3, 700), (2, 9000)
    in_use = _core.backend_in_use()
    for shape in shapes:
        for distance in (1e-4, 0.3, 30):
            base_logits, logits = pair(rng, shape, dtype, dtype, distance)
            base_logits[0, 1] = -INF
            logits[1, ::3] = -60000
            expected = found_of(base_logits, logits, workers=1)
            try:
                for backend in _core.backends():
                    _core.use_backend(backend)
                    for name in NAMES:
                        assert_same_bits(found_of(base_logits, logits, (name,))[name], expected[name], backend)
            finally:
                _core.use_backend(in_use)
            rows = [found_of(*one) for one in zip(base_logits, logits, strict=True)]
            many = found_of(base_logits, logits, ("tv", "kl", "js"), workers=2)
            for name in NAMES:
                assert_same_bits(np.array([row[name] for row in rows]), expected[name], name)
            assert all((many[name] == expected[name])[~np.isnan(expected[name])].all() for name in many)
            compared = compare(base_logits, logits, None, divergences=NAMES)
            for name, values in {"kl": compared.kl, **compared.token_divergences}.items():
                assert_same_bits(values, expected[name], f"compare {name}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_linear_kl_divergence_and_linear_compare_give_the_divergences_of_the_logits(dtype, rng):
    hidden, weight = rng.integers(-4, 5, (2, 12, 6)) / 4, rng.integers(-4, 5, (2, 2500, 6)) / 2  # products are exact
    models = [array.astype(dtype) for pair in zip(hidden, weight, strict=True) for array in pair]
    logits = [models[i] @ models[i + 1].T for i in (0, 2)]
    for option in ({}, {"softcap": 3.0, "logit_scale": 0.5}):
        if option:
            logits = [3 * np.tanh(0.5 * one.astype(float) / 3) for one in logits]
        expected = found_of(*logits)
        result = linear_kl_divergence(*models, divergences=NAMES, reduction="none", **option)._asdict()
        compared = linear_compare(*models, None, divergences=NAMES, **option)
        for name in NAMES:
            np.testing.assert_allclose(result[name], expected[name], rtol=1e-6 if dtype == np.float32 else 1e-12)
            values = compared.kl if name == "kl" else compared.token_divergences[name]
            assert_same_bits(values, result[name])
    where = np.arange(12) % 3 > 0
    masked = linear_kl_divergence(*models, divergences=("tv",), where=where).tv
    assert (
        masked
        == math.fsum(np.where(where, linear_kl_divergence(*models, divergences=("tv",), reduction="none").tv, 0)) / 8
    )


# reduction and errors


def test_divergences_reduction_sum_is_exact_and_mean_divides_it_once(rng):
    base_logits, logits = pair(rng, (3, 50, 20), np.float32, np.float16)
    each, where = found_of(base_logits, logits), rng.random((3, 50)) > 0.3
    masked = kl_divergence(base_logits, logits, divergences=NAMES, where=where)
    total = kl_divergence(base_logits, logits, divergences=NAMES, reduction="sum")
    zeros = found_of(base_logits, logits, where=where)
    for name, values in each.items():
        assert getattr(total, name) == math.fsum(values.ravel())
        assert getattr(masked, name) == math.fsum(values[where]) / where.sum()
        assert_same_bits(zeros[name], np.where(where, values, 0))
    assert math.isnan(kl_divergence(base_logits, logits, divergences=("tv",), where=False).tv)
    assert isinstance(kl_divergence(base_logits[0, 0], logits[0, 0], divergences=("tv",), reduction="none").tv, float)


@pytest.mark.parametrize("value", ["total", ("tv", "TV"), (), 3, None])
def test_errors_of_divergences_name_those_that_there_are(value):
    logits = np.zeros((2, 3))
    calls = [lambda **options: compare(logits, logits, None, **options)]
    calls += [lambda **options: kl_divergence(logits, logits, **options)] if value is not None else []
    for call in calls:
        with fails(ValueError, "divergences", "'kl', 'reverse_kl', 'js', 'tv', 'hellinger'"):
            call(divergences=value)
    with fails(ValueError, "divergences is 'tv'", "only 'kl' with definitions='llama.cpp'"):
        compare(logits, logits, None, divergences=("kl", "tv"), definitions="llama.cpp")
