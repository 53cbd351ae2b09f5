"""compare and ComparisonMeter: what llama.cpp printed, the reference, the same bits in any split, edges, errors."""

import json
import math
import re
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import reference
from arrays import (
    BFLOAT16,
    FLOATS,
    KINDS_OF_ROWS,
    LAYOUTS,
    OnDevice,
    assert_near,
    assert_same_bits,
    fails,
    normalizer_error,
    row_of_logits,
    scores_for,
    trying_row,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from places import DATA
from programs import MEASURED

import tokenloss
from tokenloss import ComparisonMeter, compare, cross_entropy, kl_divergence, linear_compare, token_scores
from tokenloss._comparison.tables import comparison_tables
from tokenloss._core.result import Shown
from tokenloss._output import terminal

NAN, INF = math.nan, math.inf
ARRAYS = ["nll", "base_nll", "kl", "delta_p", "is_same_top", "kept", "base_top_p"]
DEFINITIONS = ["exact", "llama.cpp"]
each_definition = pytest.mark.parametrize("definitions", DEFINITIONS)

# what `llama-perplexity --kl-divergence` printed: for each chunk of 31 tokens the numbers so far, and all at the end
PRINTED = (DATA / "llama-cpp.txt").read_text("utf-8")
UNITS = 2  # of the last printed digit, which the tool's float32 steps and our own rounding may move


def numbers(text):
    """The numbers of a text, and the unit of the last digit of each."""
    result = re.findall(r"-?\d+\.(\d+)", text), re.findall(r"-?\d+\.\d+", text)
    return [(float(number), 10.0 ** -len(digits)) for digits, number in zip(*result, strict=True)]


def assert_as_printed(figures, text):
    printed = numbers(text)
    assert len(figures) == len(printed)
    for figure, (number, unit) in zip(figures, printed, strict=True):
        assert abs(figure - number) < UNITS * unit, f"{figure} is not {number}"


def printed_figures(result):
    """The figures of a comparison in the order in which llama.cpp prints them, its percentages as such."""
    nats = ["perplexity", "base_perplexity", "log_perplexity_ratio", "perplexity_ratio", "perplexity_difference"]
    figures = [result[name + end] for name in nats for end in ("", "_stderr")]
    figures.insert(4, 100 * result["correlation"])
    figures += [result["mean_kl"], result["mean_kl_stderr"], *result["kl_quantiles"].values()]
    percentages = [result["mean_delta_p"], result["mean_delta_p_stderr"], *result["delta_p_quantiles"].values()]
    percentages += [result[name + end] for name in ("rms_delta_p", "same_top") for end in ("", "_stderr")]
    return figures + [100 * figure for figure in percentages]


@pytest.fixture(scope="module")
def sample():
    with np.load(DATA / "llama-cpp.npz") as file:
        return file["base_log_probs"], file["logits"], file["targets"]


def pair(rng, shape, base_dtype, dtype, axis=-1):
    """Log-probabilities of a base, some below -16, and logits of a model near it."""
    logits = 2.5 * scores_for("cross_entropy", rng, shape, np.float64, axis)
    base = tokenloss.log_softmax(logits, axis=axis)
    return base.astype(base_dtype), (logits + 0.2 * rng.standard_normal(shape)).astype(dtype)


def assert_same(actual, expected):
    """Compare every bit of two comparisons."""
    for name in ARRAYS:
        assert_same_bits(reference.statistic(actual, name), reference.statistic(expected, name), name)
    assert repr(actual.to_dict()) == repr(expected.to_dict())


def assert_figures(result, expected):
    for name, figure in expected.items():
        # losses that hardly differ from those of the other model leave few digits of the correlation
        rel = 1e-9 if name == "correlation" else 1e-11
        assert result[name] == pytest.approx(figure, rel=rel, abs=1e-14, nan_ok=True), name


# against what llama.cpp printed


def assert_as_llama_cpp(base_log_probs, logits, targets):
    progress, final = PRINTED.split("\n\n", 1)
    meter = ComparisonMeter(definitions="llama.cpp")
    for chunk, line in enumerate(progress.splitlines()):
        part = slice(31 * chunk, 31 * chunk + 31)
        meter.update(base_log_probs[part], logits[part], targets[part])
        actual = meter.result()
        names = ["perplexity", "log_perplexity_ratio", "mean_kl", "rms_delta_p", "same_top"]
        figures = [reference.statistic(actual, name + end) for name in names for end in ("", "_stderr")]
        assert_as_printed(figures[:6] + [100 * figure for figure in figures[6:]], line)
    actual = compare(base_log_probs, logits, targets, definitions="llama.cpp")
    assert_same(actual, meter.result())
    lines = [line.rsplit(":", 1) for line in final.splitlines() if ":" in line]
    figures = printed_figures(actual.to_dict())
    assert len(figures) == 43
    assert_as_printed(figures, " ".join(printed for _, printed in lines))
    rows = [row for table in comparison_tables(actual) if table.title != "Parity" for row in table.rows]
    assert [row[0].strip() for row in rows] == [label.strip() for label, _ in lines]
    for row, (_, printed) in zip(rows, lines, strict=True):
        cells = [cell for cell in row[1:] if "interval" not in cell]  # which llama.cpp does not print
        assert_as_printed([number for number, _ in numbers(" ".join(cells))], printed)


def test_targets_may_be_left_out():
    logits, eye = np.arange(12.0).reshape(3, 4), np.eye(4)
    assert compare(logits, -logits) == compare(logits, -logits, None)
    assert linear_compare(logits, eye, -logits, eye) == linear_compare(logits, eye, -logits, eye, None)
    meters = ComparisonMeter(), ComparisonMeter()
    meters[0].update(logits, -logits)
    meters[1].update(logits, -logits, None)
    assert meters[0] == meters[1]


def test_definitions_llama_cpp_give_what_llama_cpp_printed(sample):
    assert_as_llama_cpp(*sample)


# against the reference


def assert_equals_reference(base, logits, targets, **options):
    """Compare with the reference the numbers of each token, then the figures that follow from them."""
    result = compare(base, logits, targets, **options)
    expected = reference.compare(base, logits, targets, **options)
    axis = options.get("axis", -1)
    error = normalizer_error(base, axis) + normalizer_error(logits, axis)
    relative = 1e-6 if min(base.dtype.itemsize, logits.dtype.itemsize) < 8 else 4e-15
    assert_near(result.nll, expected.nll, error)
    assert_near(result.base_nll, expected.base_nll, error)
    assert_near(result.kl, expected.kl, 2 * error + 3 * relative * np.nan_to_num(abs(expected.kl), posinf=0), 4)
    assert_near(result.delta_p, expected.delta_p, error + 1e-15)
    assert_near(result.base_top_p, expected.base_top_p, error + 1e-15)
    for name in ("is_same_top", "kept"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
    tokens = [np.asarray(getattr(result, name))[result.kept] for name in ARRAYS]
    if result.count > 1 and all(np.isfinite(column).all() for column in tokens):
        assert_figures(result._facts(), reference.figures_of_comparison(result))
    return result


@each_definition
@pytest.mark.parametrize(
    ("base_dtype", "dtype"), [(base, other) for base in FLOATS for other in FLOATS], ids=lambda dtype: dtype.name
)
def test_dtypes_axis_where_and_ignore_index(definitions, base_dtype, dtype, rng):
    for axis in (0, 1, -1):
        base, logits = pair(rng, (6, 7, 8), base_dtype, dtype, axis)
        batch = np.delete((6, 7, 8), axis)
        targets = rng.integers(0, base.shape[axis], batch)
        targets[1, 2:] = -1
        options = {"axis": axis, "where": rng.random(batch) > 0.2, "ignore_index": -1, "definitions": definitions}
        result = assert_equals_reference(base, logits, targets, **options)
        assert (result.kl.shape, result.count) == (tuple(batch), np.count_nonzero(result.kept))
        assert 0 < result.count < result.kept.size


@each_definition
@pytest.mark.parametrize("classes", [1, 2, 65, 513, 4097])
def test_numbers_of_classes(definitions, classes, rng):
    for dtype in (np.float32, np.float64):
        base, logits = pair(rng, (5, classes), dtype, dtype)
        if classes > 2:
            assert (base < -16).any()
        assert_equals_reference(base, logits, rng.integers(0, classes, 5), definitions=definitions)


@given(
    st.lists(st.integers(0, 4), max_size=2),
    st.integers(1, 9),
    *[st.sampled_from(FLOATS)] * 2,
    st.sampled_from([("exact", 0), ("exact", 0.1), ("llama.cpp", 0)]),
    st.integers(0, 2**32),
)
@settings(max_examples=100)
def test_definitions_equal_the_reference_on_random_input(batch, classes, base_dtype, dtype, case, seed):
    rng, (definitions, impossible) = np.random.default_rng(seed), case
    base, logits = pair(rng, (*batch, classes), base_dtype, dtype)
    for array in (base, logits):
        array[rng.random(array.shape) < impossible] = -INF
    targets = rng.choice([*range(classes), -100], batch)
    assert_equals_reference(base, logits, targets, definitions=definitions)


def test_logits_may_be_shifted(rng):
    logits, other = pair(rng, (20, 100), np.float64, np.float64)
    targets = rng.integers(0, 100, 20)
    shift = 5 * rng.standard_normal((20, 1))
    result, expected = compare(logits + shift, other - shift, targets), compare(logits, other, targets)
    for name in ARRAYS:
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name), rtol=0, atol=1e-13)


def test_definitions_exact_equal_cross_entropy_and_kl_divergence(rng):
    base, logits = pair(rng, (4, 5, 60), np.float16, np.float32)
    targets = rng.integers(0, 60, (4, 5))
    result = compare(base, logits, targets)
    assert_same_bits(result.nll, cross_entropy(logits, targets, reduction="none"))
    assert_same_bits(result.base_nll, cross_entropy(base, targets, reduction="none"))
    assert_same_bits(result.kl, kl_divergence(base, logits, reduction="none"))
    # means of comparisons are rounded once, those of the functions twice
    assert result.mean_kl == pytest.approx(kl_divergence(base, logits), rel=2**-52)
    assert math.log(result.perplexity) == pytest.approx(cross_entropy(logits, targets), rel=2**-51)


def assert_columns_of_the_functions(base, logits, targets):
    """`compare` reads both rows once; each column has the bits of the function that reads one of them, or both."""
    result = compare(base, logits, targets)
    losses = {
        "nll": cross_entropy(logits, targets, reduction="none"),
        "base_nll": cross_entropy(base, targets, reduction="none"),
        "kl": kl_divergence(base, logits, where=result.kept, reduction="none"),
    }
    for name, expected in losses.items():
        assert_same_bits(getattr(result, name), np.where(result.kept, expected, NAN), name)
    tops = token_scores(logits, targets).argmax, token_scores(base, targets).argmax
    np.testing.assert_array_equal(result.is_same_top, result.kept & (tops[0] == tops[1]) & (tops[0] >= 0))
    np.testing.assert_array_equal(result.kept, targets != -100)


@pytest.mark.parametrize(("dtype", "kind"), KINDS_OF_ROWS)
def test_columns_have_the_bits_of_cross_entropy_and_kl_divergence(dtype, kind, rng):
    for base_dtype in FLOATS:
        sizes = (1, 3), (2, 70), (33, 18), (512, 17), (513, 3), (4097, 3), (9000, 2)
        for classes, rows in sizes if base_dtype == dtype else sizes[2::2]:
            with np.errstate(over="ignore"):
                base = np.stack([row_of_logits(kind, rng, classes, base_dtype) for _ in range(rows)])
                logits = np.stack([row_of_logits(kind, rng, classes, dtype) for _ in range(rows)])
                same = base.astype(np.float64).astype(dtype)
            targets = rng.choice([*range(classes), -100], rows)
            assert_columns_of_the_functions(base, logits, targets)
            assert_columns_of_the_functions(base, same, targets)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_have_those_bits_in_any_layout(layout, rng):
    for base_dtype, dtype in [(np.float32, np.float32), (BFLOAT16, np.float16), (np.float64, np.float32)]:
        for classes in (40, 5000):
            base, logits = pair(rng, (3, 6, classes), base_dtype, dtype)
            targets = rng.integers(0, classes, (3, 6))
            targets[1, 2:5] = -100
            given = [LAYOUTS[layout](array) for array in (base, logits, targets)]
            assert_columns_of_the_functions(*given)
            assert_same_bits(compare(*given, definitions="llama.cpp").nll, compare(*given).nll)


def test_columns_have_those_bits_where_infinities_and_nan_lie(rng):
    for classes in (100, 5000):
        for value in (NAN, INF, -INF, 1e30, -1e30):
            for place in (0, 7, classes - 1):
                base, logits = pair(rng, (3, classes), np.float32, np.float32)
                base[:2, place] = logits[1:, place] = value
                assert_columns_of_the_functions(base, logits, np.array([7, 7, place]))
                assert_columns_of_the_functions(base, logits, np.array([8, 8, 8]))


def test_is_same_top_of_equal_logits_is_of_the_first(rng):
    for classes in (50, 9000):
        logits = rng.standard_normal((4, classes)).astype(np.float32)
        base = logits.copy()
        logits[:, [3, classes - 1]] = 9
        base[0, [3, 20]], base[1, [20, classes - 1]], base[2, 3], base[3, classes - 1] = 9, 9, 9, 9
        targets = [3, 3, 0, classes - 1]
        assert compare(base, logits, targets).is_same_top.tolist() == [True, False, True, False]
        logits[:, 3] = NAN
        assert compare(base, logits, targets).is_same_top.tolist() == [False, False, False, True]


def test_by_hand():
    # probabilities 1/2 and 1/2 where the base has 1/4 and 3/4, then 4/5 and 1/5 where it has 1/2 and 1/2
    base, logits = [[0.0, math.log(3)], [0.0, 0.0]], [[0.0, 0.0], [math.log(4), 0.0]]
    result = compare(base, logits, [0, 0])
    gains = [math.log(2), math.log(8 / 5)]
    assert result.perplexity == pytest.approx(math.sqrt(2 * 5 / 4))
    assert result.base_perplexity == pytest.approx(math.sqrt(4 * 2))
    assert result.log_perplexity_ratio == pytest.approx(-sum(gains) / 2)
    assert result.log_perplexity_ratio.stderr == pytest.approx(abs(gains[0] - gains[1]) / 2)
    assert result.correlation == pytest.approx(1)
    divergences = [math.log(1 / 2) / 4 + math.log(3 / 2) * 3 / 4, math.log(5 / 8) / 2 + math.log(5 / 2) / 2]
    assert result.kl == pytest.approx(divergences)
    assert result.kl_quantiles[0.5] == pytest.approx(sum(divergences) / 2)
    assert result.kl_quantiles[0.95] == pytest.approx(0.05 * min(divergences) + 0.95 * max(divergences))
    assert result.delta_p == pytest.approx([1 / 4, 3 / 10])
    assert result.rms_delta_p == pytest.approx(math.sqrt((1 / 16 + 9 / 100) / 2))
    assert result.is_same_top.tolist() == [False, True]  # of equal ones, the first is the top
    assert result.same_top.stderr == pytest.approx(math.sqrt(1 / 2 * 1 / 2 / 1))


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("layout", ["c", "fortran", "strided", "swapped"])
def test_definitions_llama_cpp_leave_out_log_probabilities_up_to_minus_16(dtype, layout):
    above = -15.9375 if dtype.itemsize == 2 else np.nextafter(dtype.type(-16), dtype.type(0))
    for rows, classes in ((1, 4), (33, 100), (2, 5000)):
        base = np.full((rows, classes), -17.0).astype(dtype)
        base[:, 0], base[:, 1], base[:, -2], base[:, -1] = -0.0078125, -16.0, above, -INF
        logits = np.zeros((rows, classes), dtype)
        logits[:, -2:] = -9.0, 7.0
        losses = math.log(math.fsum(np.exp(logits[0].astype(np.float64)))) - logits[0].astype(np.float64)
        kept = [0, classes - 2]
        expected = math.fsum(math.exp(base[0, k]) * (float(base[0, k]) + losses[k]) for k in kept)
        result = compare(LAYOUTS[layout](base), LAYOUTS[layout](logits), [1] * rows, definitions="llama.cpp")
        rel = 1e-14 if dtype == np.float64 else 3e-7
        assert result.kl == pytest.approx([expected] * rows, rel=rel)
        assert result.base_nll.tolist() == [16.0] * rows
        assert not result.is_same_top.any()


def test_definitions_llama_cpp_of_impossible_classes():
    for classes in (4, 5000):
        base, logits = np.full((2, 3, classes), -17.0), np.zeros((3, classes))
        base[:, :, 1] = 0.0
        base[0, 1, 2], base[1, 1, 2] = -15.0, -16.0  # above or not: only then does it count that the other has none
        logits[1, 2], logits[2, 0] = -INF, NAN
        for of_base, second in zip(base, (INF, math.log(classes - 1)), strict=True):
            result = compare(of_base, logits, [1, 1, 1], definitions="llama.cpp")
            assert result.kl == pytest.approx([math.log(classes), second, NAN], nan_ok=True)


def test_definitions_llama_cpp_check_unlikely_log_probabilities_too():
    base = np.full((1, 1 << 20), -16.0, np.float16)  # the divergence leaves them out, but all together have exp(-2.1)
    base[0, 5] = 0
    with fails(ValueError, "base_logits", f"{math.log(1 + (base.size - 1) * math.exp(-16)):.4g}", "log_softmax"):
        compare(base, base, [5], definitions="llama.cpp")
    base[0, 10:300000] = -INF
    assert compare(base, base, [5], definitions="llama.cpp").count == 1


@pytest.mark.parametrize("classes", [3, 600])
def test_definitions_llama_cpp_refuse_what_is_no_probability(classes):
    base, logits = np.full((2, classes), 1 / classes), np.zeros((2, classes))
    base[1, 2] = -0.5
    with pytest.raises(ValueError, match=r"base_logits\[1, 2\] = -0.5 is not a probability"):
        compare(base, logits, [0, 0], base_kind="probs", definitions="llama.cpp")
    base[1, 2] = math.nan
    assert compare(base, logits, [0, 0], base_kind="probs", definitions="llama.cpp").n_nan == 1


# the same bits


@pytest.fixture(scope="module")
def trying():
    """Tokens of every kind, and their comparison."""
    rng = np.random.default_rng(5)
    logits = np.concatenate(
        [trying_row(kind, rng, (20, 300), np.float32) for kind in ("plain", "with_specials", "wide", "far_out")]
    )
    with np.errstate(over="ignore", invalid="ignore"):  # a nan that signals
        other = (logits * np.float32(1.01) + 1).astype(np.float16)
    base = tokenloss.log_softmax(logits)
    targets = rng.integers(0, 300, 80)
    targets[rng.random(80) < 0.1] = -100
    arrays = base, other, targets
    return arrays, {definitions: compare(*arrays, definitions=definitions) for definitions in DEFINITIONS}


@each_definition
def test_meter_updates_give_the_same_bits(definitions, trying, rng):
    meter, (base, logits, targets) = ComparisonMeter(definitions=definitions), trying[0]
    for part in np.split(np.arange(80), np.sort(rng.integers(0, 80, 9))):
        before = meter.result()
        meter.update(base[part], logits[part], targets[part])
        assert meter.result().kept.size == before.kept.size + part.size
    assert_same(meter.result(), trying[1][definitions])


# edges


@each_definition
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (4, 3), (4, 0)])
def test_ignore_index_of_all_targets(definitions, shape):
    logits = np.full(shape, NAN)
    actual = compare(logits, logits, np.full(shape[:-1], -100), definitions=definitions)
    assert actual.count == 0
    assert actual.kl.shape == shape[:-1]
    figures = actual._facts()
    for name in ("signature", "definitions", "count", "n_sequences", "is_clustered", "has_targets"):
        del figures[name]
    assert [figures.pop(name) for name in ("n_infinite", "n_nan", "left_out", "base_left_out")] == [0, 0, None, None]
    assert figures.pop("by_confidence") == []
    parity = "n_identical", "tied_flips", "decisive_flips", "unknown_flips", "parity", "parity_reason"
    assert [figures.pop(name) for name in parity] == [0, 0, 0, 0, "", ""]
    for figure in figures.values():
        for value in figure.values() if isinstance(figure, dict) else [figure]:
            assert np.isnan(value).all()
    of_meter = ComparisonMeter(definitions=definitions).result()._facts()
    assert repr(of_meter | {"signature": actual.signature}) == repr(actual._facts())


@each_definition
def test_one_token(definitions):
    result = compare(np.log([0.5, 0.5]), np.log([0.25, 0.75]), 1, definitions=definitions)
    assert (result.count, result.kl.shape) == (1, ())
    assert result.perplexity_ratio == pytest.approx(0.5 / 0.75)
    assert result.delta_p_quantiles == dict.fromkeys(result.delta_p_quantiles, float(result.delta_p))
    undefined = [name for name, figure in result._facts().items() if isinstance(figure, float) and math.isnan(figure)]
    of_one = ("correlation", "interval_factor", "detectable")
    assert undefined == [name for name in result._facts() if name in of_one or name.endswith("_stderr")]


@each_definition
def test_a_model_compared_with_itself(definitions, rng):
    base = pair(rng, (30, 50), np.float32, np.float32)[0]
    result = compare(base, base, rng.integers(0, 50, 30))
    assert result.correlation == result.perplexity_ratio == result.same_top == 1
    for name in ("log_perplexity_ratio", "perplexity_difference", "mean_kl", "mean_delta_p", "rms_delta_p"):
        assert reference.statistic(result, name) == reference.statistic(result, name + "_stderr") == 0
    assert result.same_top.stderr == result.perplexity_ratio.stderr == 0


def test_correlation_of_constant_losses_is_nan():
    assert math.isnan(compare(np.zeros((3, 2)), [[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]], [0, 0, 0]).correlation)
    result = compare([[0.0, 1.0], [0.0, 2.0]], [[0.0, 2.0], [0.0, 1.0]], [0, 0])
    assert result.correlation == pytest.approx(-1)


def test_correlation_of_two_tokens_is_1_or_minus_1_and_never_beyond(rng):
    """Rounded variances of two tokens may have a correlation of 1 + 2**-52."""
    for _ in range(100):
        base, other = rng.normal(size=(2, 2, 3), scale=3)
        result = compare(base, other, [0, 1]).correlation
        assert abs(result) == pytest.approx(1, rel=1e-12)
        assert -1 <= result <= 1


@pytest.mark.parametrize("rows", [1, 30])
def test_delta_p_of_the_smallest_probabilities(rows, backend):
    for logit, probability in ((-744.0, 1e-323), (-744.45, 5e-324), (-745.13, 5e-324), (-745.2, 0.0), (-800.0, 0.0)):
        base, other = (np.tile([[0.0, x]], (rows, 1)) for x in (logit, -900.0))
        assert compare(base, other, [1] * rows).delta_p.tolist() == [-probability] * rows
        assert compare(other, base, [1] * rows).delta_p.tolist() == [probability] * rows


@each_definition
def test_target_of_probability_zero(definitions):
    base, logits = np.log([[0.5, 0.5], [0.25, 0.75]]), np.log([[0.5, 0.5], [0.5, 0.5]])
    logits[0] = 0, -INF
    result = compare(base, logits, [1, 0], definitions=definitions)
    assert result.nll.tolist() == [INF, pytest.approx(math.log(2))]
    assert result.perplexity == result.log_perplexity_ratio == result.perplexity_ratio == result.mean_kl == INF
    assert result.perplexity_difference == result.kl_quantiles[1.0] == result.kl_quantiles[0.5] == INF
    assert result.kl_quantiles[0.0] < 1
    assert result.delta_p == pytest.approx([-0.5, 0.25])
    assert result.base_perplexity == pytest.approx(math.sqrt(8))
    for name in ("perplexity", "log_perplexity_ratio", "perplexity_ratio", "perplexity_difference", "mean_kl"):
        assert math.isnan(reference.statistic(result, name + "_stderr"))
    assert math.isfinite(result.rms_delta_p.stderr)
    both = compare(logits, logits, [1, 0])
    assert both.kl.tolist() == [0.0, 0.0]
    assert math.isnan(both.log_perplexity_ratio)
    assert math.isnan(both.perplexity_difference)


@each_definition
@pytest.mark.parametrize("value", [NAN, INF])
def test_rows_with_nan_or_inf(definitions, value):
    base = np.log([[0.5, 0.5], [0.25, 0.75]])
    logits = base.copy()
    logits[0, 1] = value
    for first, second in ((base, logits), (logits, base)):
        result = compare(first, second, [0, 0], definitions=definitions)
        assert np.isnan(result.kl).tolist() == [True, False]
        assert math.isnan(result.mean_kl)
        assert all(map(math.isnan, result.kl_quantiles.values()))
        assert math.isnan(result.perplexity) == (second is logits)
        assert result.count == 2
    everywhere = np.full((2, 2), NAN)
    assert compare(everywhere, everywhere, [0, 0]).same_top == 0


def test_perplexity_that_overflows():
    result = compare(np.zeros((2, 2)), [[0.0, 2000.0], [0.0, 1.0]], [0, 0])
    assert result.perplexity == result.perplexity_ratio == result.perplexity_difference == INF
    assert result.log_perplexity_ratio == pytest.approx(1000, rel=1e-3)
    assert math.isfinite(result.log_perplexity_ratio.stderr)


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read by resource, which Windows lacks")
@pytest.mark.slow
def test_memory_is_bounded(run_python):
    run_python(
        MEASURED.replace("WORKERS << 20", "4 << 20")
        + """
from tokenloss import compare

base = rng.standard_normal((32, 131072), np.float32)
base -= logsumexp(base).astype(np.float32)[:, None]
targets = rng.integers(0, base.shape[1], 32)
some = np.where(rng.random(32) > 0.5, targets, -100)
for definitions in ("exact", "llama.cpp"):
    for ids in (targets, some):
        for order in "CF":
            logits = np.asarray(base, order=order)
            measure(f"{definitions} {order}", lambda: compare(logits, logits, ids, definitions=definitions))
"""
    )


# the Comparison and its tables


def test_comparison_is_frozen_and_its_figures_are_json(rng):
    base, logits = pair(rng, (4, 9), np.float32, np.float32)
    result = compare(base, logits, [1, 2, 3, 4])
    with pytest.raises(FrozenInstanceError):
        result.count = 5
    figures = result._facts()
    assert repr(json.loads(json.dumps(figures))) == repr(figures)  # nan is not nan
    assert figures["definitions"] == "exact"
    assert not set(figures) & set(ARRAYS)
    assert all(array.dtype in (np.float64, np.bool_) for array in (getattr(result, name) for name in ARRAYS))


@pytest.mark.parametrize("rich", [True, False])
def test_tables_of_the_command(rich, sample, capsys, monkeypatch):
    if not rich:
        monkeypatch.setattr(terminal, "has_rich", lambda: False)
    terminal.show(Shown("BASE, OTHER", "", comparison_tables(compare(*sample, definitions="llama.cpp"))))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    for line in (
        "  Perplexity statistics",
        "  Mean PPL(Q)                      80.524495  ±  13.192590",
        "  Cor(ln(PPL(Q)), ln(PPL(base)))   99.67 %",
        "  KL divergence statistics",
        "  Mean    KLD    0.027054  ±   0.001447",
        "  Maximum KLD    0.228511",
        "  Token probability statistics",
        "  Minimum Δp  -13.406 %",
        "  Same top p   83.226 %  ±  2.126 %",
    ):
        assert line in lines


# errors


def test_wrong_arguments():
    logits, targets = np.ones((2, 3)), [0, 1]
    for error, words, arguments, options in [
        (TypeError, ("base_logits", "int64", "float16"), (logits.astype(int), logits, targets), {}),
        (TypeError, ("logits", "int64", "float16"), (logits, logits.astype(int), targets), {}),
        (TypeError, ("logits", "device", "CPU"), (logits, OnDevice(2, 0), targets), {}),
        (ValueError, ("base_logits", "scalar"), (1.0, 1.0, 0), {}),
        (ValueError, ("logits", "(3, 3)", "(2, 3)", "base_logits"), (logits, np.ones((3, 3)), targets), {}),
        (ValueError, ("logits", "(2,)", "(2, 3)", "base_logits"), (logits, np.ones(2), targets), {}),
        (ValueError, ("targets", "(3,)", "(2,)", "base_logits"), (logits, logits, [0, 1, 2]), {}),
        (ValueError, ("targets", "(2, 3)", "(2,)"), (logits, logits, np.ones((2, 3))), {}),
        (TypeError, ("targets", "float64", "integer"), (logits, logits, [0.0, 1.0]), {}),
        (IndexError, ("targets[1]", "3", "[0, 3)"), (logits, logits, [0, 3]), {}),
        (ValueError, ("axis", 2, "base_logits"), (logits, logits, targets), {"axis": 2}),
        (ValueError, ("where", "(3,)", "(2,)"), (logits, logits, targets), {"where": [True] * 3}),
        (TypeError, ("ignore_index", "0.5"), (logits, logits, targets), {"ignore_index": 0.5}),
        (ValueError, ("workers", 0), (logits, logits, targets), {"workers": 0}),
        (ValueError, ("definitions", "'llama'", "'exact'"), (logits, logits, targets), {"definitions": "llama"}),
        (ValueError, ("definitions", "1", "'exact'"), (logits, logits, targets), {"definitions": 1}),
        (ValueError, ("base_logits", "2.099", "log_softmax"), (logits, logits, targets), {"definitions": "llama.cpp"}),
        (
            ValueError,
            ("base_logits[1, 1] = 0.05", "not a log-probability"),
            ([[0, -50, -50], [-50, 0.05, -50]], logits, [0, 1]),
            {"definitions": "llama.cpp"},
        ),
    ]:
        with fails(error, *words):
            compare(*arguments, **options)


def test_target_out_of_range_is_named_by_its_index():
    targets = np.zeros((3, 50), int)
    targets[2, 7] = 3
    with fails(IndexError, "targets[2, 7]", 3, "[0, 3)"):
        compare(np.zeros((3, 50, 3)), np.zeros((3, 50, 3)), targets)


def test_meter_is_unchanged_after_an_error():
    base = np.log([[0.5, 0.5], [0.25, 0.75]])
    meter = ComparisonMeter(definitions="llama.cpp")
    meter.update(base, base, [0, 1])
    before = meter.result()
    wrong = np.array([[math.log(0.5)] * 2, [3.0, 3.0]])
    for arguments in ((base, base, [0, 2]), (wrong, base, [0, 1])):
        with pytest.raises((IndexError, ValueError)):
            meter.update(*arguments)
    assert_same(meter.result(), before)


@pytest.mark.parametrize("row", [[0.17, -np.inf], [-np.inf, 0.17, -np.inf], [np.nan, 0.17, -np.inf], [0.17, np.nan]])
def test_columns_of_rows_with_one_possible_class_do_not_depend_on_the_batch(row):
    logits, ids = np.array([row], np.float32), [row.index(0.17)]
    alone = compare(logits, logits, ids).columns()
    for count in (2, 17):
        columns = compare(logits.repeat(count, 0), logits.repeat(count, 0), ids * count).columns()
        for name, column in alone.items():
            np.testing.assert_array_equal(columns[name], np.repeat(column, count), name)
