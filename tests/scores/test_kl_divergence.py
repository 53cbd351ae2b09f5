"""kl_divergence: equals the oracle for every pair of dtypes and layouts; when it is 0, infinite or nan."""

import math

import numpy as np
import pytest
import reference
from arrays import (
    FLOATS,
    KINDS_OF_ROWS,
    LAYOUTS,
    REDUCTIONS,
    OnDevice,
    assert_near,
    assert_same_bits,
    fails,
    misaligned,
    normalizer_error,
    row_of_logits,
    scores_for,
    strided,
    swapped,
)

from tokenloss import cross_entropy, kl_divergence, logsumexp, token_scores

NAN, INF = math.nan, math.inf
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
each_dtype_of_each = pytest.mark.parametrize(
    ("base_dtype", "dtype"), [(base, other) for base in FLOATS for other in FLOATS], ids=str
)


def pair(rng, shape, base_dtype, dtype, distance=0.3):
    """Logits of two similar models."""
    logits = scores_for("cross_entropy", rng, shape, np.float64)
    return logits.astype(base_dtype), (logits + distance * rng.standard_normal(shape)).astype(dtype)


def divergence_error(base_logits, logits, expected, axis=-1):
    """Largest error of a divergence before it is rounded to float64."""
    error = np.maximum(normalizer_error(base_logits, axis), normalizer_error(logits, axis))
    relative = 1e-6 if min(base_logits.dtype.itemsize, logits.dtype.itemsize) < 8 else 4e-15
    return error + relative * np.where(np.isfinite(expected), expected, 0)


def assert_as_oracle(base_logits, logits, given=None, axis=-1, **options):
    actual = kl_divergence(*(given or (base_logits, logits)), axis=axis, reduction="none", **options)
    expected = reference.kl_divergence(base_logits, logits, axis=axis, reduction="none", **options)
    assert_near(actual, expected, divergence_error(base_logits, logits, expected, axis), 2)
    assert not np.signbit(actual[~np.isnan(actual)]).any()
    return actual


# against the oracle


@each_dtype_of_each
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kl_divergence_of_every_pair_of_dtypes_layout_axis_and_where(base_dtype, dtype, layout, rng):
    for axis in (0, 1, -1):
        base_logits, logits = pair(rng, (4, 5, 6), base_dtype, dtype)
        where = rng.random(np.delete((4, 5, 6), axis)) > 0.2
        for other in ("c", "strided", "class_first_in_memory", "swapped"):
            given = LAYOUTS[layout](base_logits), LAYOUTS[other](logits)
            assert_as_oracle(base_logits, logits, given, axis=axis, where=where)


@each_dtype
def test_kl_divergence_at_every_length_of_row(dtype, rng):
    for classes in [1, 2, 63, 64, 65, 127, 128, 129, 511, 512, 513, 4095, 4096, 4097, 8193]:
        base_logits, logits = pair(rng, (2, classes), dtype, dtype)
        for layout in (np.ascontiguousarray, strided, swapped, misaligned):
            assert_as_oracle(base_logits, logits, (layout(base_logits), layout(logits)))


@pytest.mark.parametrize(("dtype", "kind"), KINDS_OF_ROWS)
def test_accuracy_of_kl_divergence(dtype, kind, rng):
    for length in [1, 2, 65, 513, 4097, 9000]:
        row = row_of_logits(kind, rng, length, dtype)
        moved = (row.astype(float) + rng.standard_normal(length)).astype(dtype)
        plain = rng.standard_normal(length).astype(dtype)
        assert_as_oracle(row, moved)
        if kind not in ("all_1e308", "masked_by_minus_1e308", "huge_differences"):  # their sums overflow
            assert_as_oracle(row, plain)
            assert_as_oracle(plain, row)


@each_dtype
@pytest.mark.parametrize("distance", [1e-6, 1e-3, 0.1, 3, 100])
def test_kl_divergence_of_near_and_of_distant_models(dtype, distance, rng):
    for classes in (2, 100, 5000):
        assert_as_oracle(*pair(rng, (3, classes), dtype, dtype, distance))


@each_dtype
def test_kl_divergence_whose_largest_logit_is_in_a_later_block(dtype, rng):
    for position in [0, 127, 128, 511, 512, 4095, 4096, 8199]:
        rows = rng.standard_normal((2, 8200)).astype(dtype)
        rows[0, position], rows[1, (position + 5000) % 8200] = 40, 30
        assert_as_oracle(rows[0], rows[1])
        assert_as_oracle(rows[1], rows[0])


def test_kl_divergence_by_hand():
    assert kl_divergence([0.0, 0.0], [0.0, math.log(3)]) == pytest.approx(math.log(4 / 3) / 2, rel=1e-15)
    assert kl_divergence([-INF, 0.0], [0.0, 0.0]) == pytest.approx(math.log(2), rel=1e-15)
    assert kl_divergence([5], [3]) == 0


def test_kl_divergence_is_cross_entropy_less_entropy(rng):
    base_logits, logits = pair(rng, (5, 300), np.float64, np.float64)
    shares = np.exp(base_logits - logsumexp(base_logits)[:, None])
    expected = cross_entropy(logits, shares, reduction="none") - token_scores(base_logits, [0] * 5).entropy
    np.testing.assert_allclose(kl_divergence(base_logits, logits, reduction="none"), expected, rtol=0, atol=1e-13)


def test_kl_divergence_does_not_change_when_all_logits_are_shifted(rng):
    base_logits, logits = np.round(pair(rng, (4, 600), np.float64, np.float64, 2.0))
    expected = kl_divergence(base_logits, logits, reduction="none")
    np.testing.assert_allclose(kl_divergence(base_logits + 50, logits - 70, reduction="none"), expected, atol=4e-13)


# 0, infinity, nan


@pytest.mark.parametrize(("dtype", "kind"), KINDS_OF_ROWS)
def test_kl_divergence_of_equal_rows_is_0(dtype, kind, rng):
    for length in (1, 2, 65, 513, 5000):
        row = row_of_logits(kind, rng, length, dtype)
        if not np.isneginf(row.astype(float)).all():
            for other in (row, swapped(row), strided(row)):
                assert str(kl_divergence(row, other)) == "0.0"


@each_dtype
def test_kl_divergence_of_equal_numbers_of_two_dtypes_is_0(dtype, rng, backend):
    row = (rng.integers(-8, 9, 600) / 4).astype(dtype)
    for other in FLOATS:
        assert str(kl_divergence(row, row.astype(float).astype(other))) == "0.0"


@each_dtype
def test_kl_divergence_is_never_negative(dtype, rng, backend):
    for classes in (2, 30, 1000):
        logits = scores_for("cross_entropy", rng, (20, classes), dtype)
        unit = np.array(2.0**-7, dtype)
        moved = logits * (1 + unit * rng.integers(-1, 2, logits.shape).astype(dtype))
        for other in (logits[:, ::-1], moved, np.nextafter(logits.astype(np.float32), 9).astype(dtype)):
            assert not np.signbit(kl_divergence(logits, other, reduction="none")).any()


@each_dtype_of_each
def test_kl_divergence_of_logits_of_minus_infinity(base_dtype, dtype, backend):
    for classes in (2, 65, 600):
        for position in {0, classes // 2, classes - 1}:
            base_logits, logits = np.zeros(classes, base_dtype), np.zeros(classes, dtype)
            base_logits[position] = -INF
            expected = math.log(classes / (classes - 1))
            assert kl_divergence(base_logits, logits) == pytest.approx(expected, abs=2e-7)
            logits[position] = -INF
            assert kl_divergence(base_logits, logits) == 0.0
            base_logits[position] = -90 if base_dtype.itemsize > 2 else -9
            assert kl_divergence(base_logits, logits) == INF
            logits[:] = -INF
            assert kl_divergence(base_logits, logits) == INF
            base_logits[:] = -INF
            assert math.isnan(kl_divergence(base_logits, logits))
            assert math.isnan(kl_divergence(base_logits, np.zeros(classes, dtype)))


def test_kl_divergence_is_infinite_if_a_possible_class_is_impossible_for_the_other():
    assert kl_divergence([0.0, -1e300], [0.0, -INF]) == INF
    assert kl_divergence(np.float32([0, -3e38]), np.float32([0, -INF])) == INF
    assert kl_divergence([0.0, -1e5], [0.0, -1e300]) == 0.0
    assert kl_divergence([0.0, -1e5, -INF], [0.0, -1e300, -INF]) == 0.0  # the second class makes all be looked at


@pytest.mark.parametrize("value", [NAN, INF])
@each_dtype
def test_kl_divergence_of_rows_with_nan_or_infinity_is_nan(value, dtype, rng, backend):
    for classes in (2, 65, 4200):
        base_logits, logits = pair(rng, (3, classes), dtype, dtype)
        expected = kl_divergence(base_logits, logits, reduction="none")
        for position in {0, classes // 2, classes - 1}:
            for which in (0, 1):
                given = base_logits.copy(), logits.copy()
                given[which][1, position] = value
                given[1 - which][1, classes - 1 - position] = -INF
                divergences = kl_divergence(*given, reduction="none")
                assert_same_bits(divergences, [expected[0], NAN, expected[2]])
                assert math.isnan(kl_divergence(*given))


# where and reduction


@pytest.mark.parametrize("rows", [1, 7, 500])
def test_kl_divergence_reduction_sum_is_exact_and_mean_divides_it_once(rows, rng):
    base_logits, logits = pair(rng, (rows, 20), np.float32, np.float16)
    divergences, where = kl_divergence(base_logits, logits, reduction="none"), rng.random(rows) > 0.3
    where[0] = True
    assert kl_divergence(base_logits, logits, reduction="sum") == math.fsum(divergences)
    assert kl_divergence(base_logits, logits) == math.fsum(divergences) / rows
    assert kl_divergence(base_logits, logits, where=where) == math.fsum(divergences[where]) / where.sum()
    assert_same_bits(kl_divergence(base_logits, logits, where=where, reduction="none"), np.where(where, divergences, 0))


def test_kl_divergence_where_rows_left_out_are_garbage(rng):
    base_logits, logits = pair(rng, (3, 40), np.float32, np.float32)
    expected = kl_divergence(base_logits, logits, reduction="none")
    base_logits[0] = logits[2] = NAN
    divergences = kl_divergence(base_logits, logits, where=[False, True, False], reduction="none")
    assert_same_bits(divergences, [0.0, expected[1], 0.0])


@pytest.mark.parametrize("shape", [(2, 3), (0, 3)])
def test_kl_divergence_where_nothing_is_kept(shape):
    logits = np.full(shape, NAN)
    for reduction, value in zip(REDUCTIONS, (NAN, 0.0, np.zeros(shape[0])), strict=True):
        assert_same_bits(kl_divergence(logits, logits, where=False, reduction=reduction), value)


# errors


def test_errors_of_kl_divergence_name_base_logits_logits_axis_where_reduction_workers():
    logits = np.ones((2, 3))
    for shape in [(3,), (3, 2), (2, 4), (1, 3), (2, 3, 1)]:
        with fails(ValueError, "logits", shape, "(2, 3)"):
            kl_divergence(logits, np.ones(shape))
    for error, words, arguments, options in [
        (
            TypeError,
            ("base_logits", "int64", "float16, bfloat16, float32 or float64"),
            (logits.astype(int), logits),
            {},
        ),
        (TypeError, ("logits", "int64", "float16, bfloat16, float32 or float64"), (logits, logits.astype(int)), {}),
        (TypeError, ("base_logits",), (None, logits), {}),
        (TypeError, ("logits", "device", "CPU"), (logits, OnDevice(2, 0)), {}),
        (ValueError, ("base_logits", "scalar"), (1.0, 1.0), {}),
        (ValueError, ("axis", 2), (logits, logits), {"axis": 2}),
        (ValueError, ("where", "(3,)", "(2,)"), (logits, logits), {"where": [True] * 3}),
        (TypeError, ("where", "int64", "bool"), (logits, logits), {"where": np.ones(2, np.int64)}),
        (ValueError, ("reduction", "'mean', 'sum' or 'none'"), (logits, logits), {"reduction": "batchmean"}),
        (ValueError, ("workers", 0), (logits, logits), {"workers": 0}),
    ]:
        with fails(error, *words):
            kl_divergence(*arguments, **options)


# of probabilities and log-probabilities


def distribution(rng, shape, dtype, spread=3.0, zeros=0.0, axis=-1):
    """Probabilities that add up to 1 but for rounding; `zeros` is the fraction of classes that are impossible."""
    logits = spread * rng.standard_normal(shape)
    logits[rng.random(shape) < zeros] = -INF
    np.moveaxis(logits, axis, 0)[0] = 0
    powers = np.exp(logits - logits.max(axis, keepdims=True))
    return (powers / powers.sum(axis, keepdims=True)).astype(dtype)


def as_kind(probs, kind, dtype):
    """Scores of a kind for these probabilities; logits are off by a constant."""
    with np.errstate(divide="ignore"):
        logs = np.log(probs.astype(np.float64))
    return {"probs": probs, "log_probs": logs, "logits": logs + 2.5}[kind].astype(dtype)


def probabilities_of(scores, kind, axis=-1):
    """Normalized probabilities, wider than float64."""
    scores = reference.wide(reference.float64(scores))
    powers = scores if kind == "probs" else reference.exp(scores - scores.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def divergence_of(p, q, axis=-1):
    with np.errstate(divide="ignore", invalid="ignore"):
        return reference.float64(np.where(p == 0, 0, p * (reference.log(p) - reference.log(q))).sum(axis))


def assert_divergence_of_kinds(base, other, base_kind, kind, given=None, axis=-1, **options):
    actual = kl_divergence(*(given or (base, other)), base_kind=base_kind, kind=kind, axis=axis, **options)
    expected = divergence_of(probabilities_of(base, base_kind, axis), probabilities_of(other, kind, axis), axis)
    finite = np.isfinite(expected)
    assert np.array_equal(actual[~finite], expected[~finite])
    # logits and log-probabilities are as exact as ever; probabilities are computed in float64 whatever their dtype
    single = [scores for scores, of in ((base, base_kind), (other, kind)) if of != "probs"]
    is_wide = not single or max(scores.dtype.itemsize for scores in (base, other)) == 8 or len(single) == 1
    most = 4e-15 * np.maximum(1, expected) if is_wide else np.maximum(2e-7, 1e-6 * expected)
    assert (abs(actual[finite] - expected[finite]) <= most[finite]).all()
    assert (actual >= 0).all()


@each_dtype_of_each
@pytest.mark.parametrize("kind", ["probs", "log_probs", "logits"])
@pytest.mark.parametrize("base_kind", ["probs", "log_probs", "logits"])
def test_kind_and_base_kind_at_every_length_of_row(base_kind, kind, base_dtype, dtype, rng):
    for rows, classes in [(70, 1), (33, 2), (67, 3), (20, 10), (17, 100), (3, 512), (5, 513), (2, 3000)]:
        base = as_kind(distribution(rng, (rows, classes), np.float64), base_kind, base_dtype)
        other = as_kind(distribution(rng, (rows, classes), np.float64, 1.0), kind, dtype)
        assert_divergence_of_kinds(base, other, base_kind, kind, reduction="none")


@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_kind_of_probabilities_in_every_layout_and_axis(dtype, layout, axis, rng):
    for shape in [(4, 5, 6), (18, 20, 33)]:
        base, other = (distribution(rng, shape, dtype, axis=axis) for _ in range(2))
        for second in ("c", "strided", "swapped"):
            given = LAYOUTS[layout](base), LAYOUTS[second](other)
            assert_divergence_of_kinds(base, other, "probs", "probs", given, axis, reduction="none")


@each_dtype
def test_kind_of_long_rows_of_probabilities(dtype, rng):
    spread = 1.0 if dtype == "float16" else 3.0  # else most are 0 in half precision
    for classes in (8193, 131_073 if np.dtype(dtype).itemsize > 2 else 20_000):
        base, other = (distribution(rng, (2, classes), dtype, spread) for _ in range(2))
        if np.dtype(dtype).itemsize > 2:
            assert_divergence_of_kinds(base, other, "probs", "probs", reduction="none")
        assert_divergence_of_kinds(base, np.asfortranarray(base), "probs", "probs", reduction="none")


@each_dtype
@pytest.mark.parametrize("classes", [7, 300, 5000])
def test_kind_of_probabilities_that_are_0(dtype, classes, rng, backend):
    for zeros in (0.1, 0.9):
        shape = (40 if classes < 5000 else 10, classes)
        base, other = (distribution(rng, shape, dtype, 0.5, zeros) for _ in range(2))
        both = np.where(other == 0, 0, base.astype(float))
        finite = (both / both.sum(-1, keepdims=True)).astype(dtype)  # impossible wherever the other is
        assert_divergence_of_kinds(base, other, "probs", "probs", reduction="none")
        assert_divergence_of_kinds(finite, other, "probs", "probs", reduction="none")
        assert_divergence_of_kinds(finite, as_kind(other, "logits", np.float64), "probs", "logits", reduction="none")
    assert kl_divergence([1.0, 0.0], [0.0, 1.0], kind="probs") == INF
    assert kl_divergence([1.0, 0.0], [1.0, 0.0], kind="probs") == 0


def test_kind_of_the_smallest_probabilities(rng):
    for classes in (5, 1000):
        base, other = (distribution(rng, (20, classes), np.float64) for _ in range(2))
        for scores, rows, class_id, least in (base, 10, 1, 5e-324), (other, 20, 2, 5e-324), (other, 15, 3, 1e-310):
            scores[:rows, 0] += scores[:rows, class_id]
            scores[:rows, class_id] = least
        assert_divergence_of_kinds(base, other, "probs", "probs", reduction="none")


def test_kind_gives_the_divergences_of_other_libraries(rng):
    special = pytest.importorskip("scipy.special")
    base, other = (distribution(rng, (50, 30), np.float64, 1.0) for _ in range(2))
    result = kl_divergence(base, other, kind="probs", reduction="none")
    assert np.allclose(result, special.rel_entr(base, other).sum(-1), rtol=1e-13, atol=1e-15)
    # Keras's KLDivergence, in its own words
    clipped, clipped_other = np.clip(base, 1e-7, 1), np.clip(other, 1e-7, 1)
    assert np.allclose(result, (clipped * np.log(clipped / clipped_other)).sum(-1), rtol=1e-3)
    # torchmetrics' KLDivergence divides by the sums of rows, too
    assert np.allclose(kl_divergence(1.05 * base, 0.95 * other, kind="probs", reduction="none"), result, atol=1e-14)
    torch = pytest.importorskip("torch")
    logs, other_logs = torch.log(torch.from_numpy(base)), torch.log(torch.from_numpy(other))
    expected = torch.nn.functional.kl_div(other_logs, logs, reduction="batchmean", log_target=True)
    assert np.isclose(kl_divergence(logs, other_logs, kind="log_probs"), float(expected), rtol=1e-13)


def test_kind_of_probabilities_where_rows_left_out_are_garbage(rng):
    for classes in (6, 700):
        base, other = (distribution(rng, (20, classes), np.float64) for _ in range(2))
        expected = kl_divergence(base[:10], other[:10], kind="probs", reduction="none")
        base[10:], other[12:] = 7, NAN
        for layout in (np.asarray, np.asfortranarray):
            result = kl_divergence(
                layout(base), layout(other), kind="probs", reduction="none", where=np.arange(20) < 10
            )
            assert_same_bits(result[:10], expected)


@pytest.mark.parametrize("classes", [4, 40, 600])
@pytest.mark.parametrize("kind", ["probs", "log_probs"])
def test_kind_of_rows_with_nan_is_nan(kind, classes, rng, backend):
    base, other = (as_kind(distribution(rng, (30, classes), np.float64), kind, np.float64) for _ in range(2))
    base[3, 1], other[7, classes - 1] = NAN, NAN
    result = kl_divergence(base, other, kind=kind, reduction="none")
    assert np.flatnonzero(np.isnan(result)).tolist() == [3, 7]


@pytest.mark.parametrize("classes", [4, 40, 600])
def test_kind_refuses_what_is_no_probability(classes, rng, backend):
    for value in (-0.0011, 1.0011, -INF, INF, 3.0):
        for side in (0, 1):
            scores = [distribution(rng, (30, classes), np.float64) for _ in range(2)]
            scores[side][5, 2], scores[side][29, 3] = value, value
            words = f"{('base_logits', 'logits')[side]}[5, 2] = {value:.6g} is not a probability", "kind='logits'"
            with fails(ValueError, *words):
                kl_divergence(*scores, kind="probs", workers=1)
            with fails(ValueError, words[0].replace("[5, 2]", "[2, 5]")):
                kl_divergence(scores[0].T, scores[1].T, kind="probs", axis=0, workers=1)
    near = np.array([[-0.0009, 1.0009]])  # by rounding
    assert kl_divergence(near, [[0.5, 0.5]], kind="probs") == pytest.approx(math.log(2), abs=1e-15)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("classes", [4, 600])
@pytest.mark.parametrize("kind", ["probs", "log_probs"])
def test_kind_refuses_rows_that_are_not_normalized(kind, classes, dtype, rng, backend):
    most = 0.5 if np.dtype(dtype).itemsize == 2 else 0.1
    probs = distribution(rng, (20, classes), np.float64, 0.1)

    def scaled(log_sum):
        rows = probs.copy()
        rows[11] *= math.exp(log_sum)
        return as_kind(rows, kind, dtype)

    near = kl_divergence(scaled(0.95 * most), scaled(-0.95 * most), kind=kind, reduction="none")
    assert (abs(near) < 1e-2).all()
    words = "that adds up to" if kind == "probs" else "whose logsumexp is"
    for log_sum in (1.1 * most, -1.1 * most):
        with fails(ValueError, f"base_logits[11] has a row {words}", "kind='logits'"):
            kl_divergence(scaled(log_sum), scaled(0), kind=kind)
        with fails(ValueError, f"logits[11] has a row {words}", "kind='logits'"):
            kl_divergence(scaled(0), scaled(log_sum), kind=kind)
    with fails(ValueError, f"base_logits[0] has a row {words} {'0' if kind == 'probs' else '-inf'}"):
        kl_divergence(as_kind(0 * probs, kind, dtype), scaled(0), kind=kind)


def test_kind_and_base_kind_that_do_not_exist():
    with fails(ValueError, "kind is 'probabilities'; it must be 'logits', 'log_probs' or 'probs'"):
        kl_divergence([0.5, 0.5], [0.5, 0.5], kind="probabilities")
    with fails(ValueError, "base_kind is 3; it must be 'logits', 'log_probs' or 'probs'"):
        kl_divergence([0.5, 0.5], [0.5, 0.5], base_kind=3)
