"""linear_kl_divergence and linear_compare: equal to kl_divergence and compare of the explicit logits.

Operands are small multiples of powers of two, whose products are exact in every order: what differs is what follows.
"""

import itertools
import math
import warnings

import numpy as np
import pytest
import reference
from arrays import BFLOAT16, FLOATS, LAYOUTS, assert_near, assert_same_bits, fails, strided

from tokenloss import compare, kl_divergence, linear_compare, linear_kl_divergence
from tokenloss._comparison.linear_compare import linear_pair_columns
from tokenloss._core import _core, projection
from tokenloss._core.projection import Projection
from tokenloss._core.validation import as_positions

NAN, INF = math.nan, math.inf
FLOAT16, FLOAT32, FLOAT64 = FLOATS[0], *FLOATS[2:]
FEW = 24  # hidden states that are multiplied by the package's own kernels
ROWS, CLASSES, DEPTHS = FEW + 9, 2100, (64, 24)
COLUMNS = ["nll", "base_nll", "kl", "delta_p", "base_top_p"]
OPTIONS = [{}, {"logit_scale": 1.75}, {"softcap": 5.0}, {"logit_scale": 0.4, "softcap": 2.0}]
few_and_many = pytest.mark.parametrize("rows", [3, ROWS])
each_options = pytest.mark.parametrize("options", OPTIONS, ids=["plain", "logit_scale", "softcap", "both"])


def two_models(rng, rows=ROWS, classes=CLASSES, depths=DEPTHS, dtypes=(FLOAT32,) * 4):
    """Hidden states and weights of a base, and of another model with other hidden states."""
    arrays = []
    for depth, some in zip(depths, (dtypes[:2], dtypes[2:]), strict=True):
        arrays += [rng.integers(-4, 5, (rows, depth)).astype(some[0])]
        arrays += [(rng.integers(-4, 5, (classes, depth)) / 32).astype(some[1])]
    return arrays


def exact_logits(hidden, weight, bias=None):
    bias = 0 if bias is None else reference.float64(bias)
    return reference.float64(hidden) @ reference.float64(weight).T + bias


def log_softmax(logits, logit_scale=1.0, softcap=None):
    """In long double."""
    scaled = np.longdouble(logits) * logit_scale
    if softcap is not None:
        scaled = softcap * np.tanh(scaled / softcap)
    scaled = scaled - scaled.max(-1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))


def oracle(base_logits, logits, targets, **options):
    """The columns, in float64."""
    base, other = (log_softmax(array, **options) for array in (base_logits, logits))
    base_nll, nll = (-np.take_along_axis(array, targets[..., None], -1)[..., 0] for array in (base, other))
    p = np.exp(base)
    kl = np.where(p > 0, p * (base - np.where(p > 0, other, 0)), 0).sum(-1)
    result = {"nll": nll, "base_nll": base_nll, "kl": kl, "delta_p": np.exp(-nll) - np.exp(-base_nll)}
    return {name: np.float64(column) for name, column in (result | {"base_top_p": p.max(-1)}).items()}


def assert_as_oracle(operands, targets, biases=(None, None), error=2e-7, layout=np.array, **options):
    base_logits, logits = (exact_logits(*operands[2 * i : 2 * i + 2], biases[i]) for i in range(2))
    arguments, given = (
        [layout(array) for array in operands],
        {"base_lm_head_bias": biases[0], "lm_head_bias": biases[1], **options},
    )
    result, expected = linear_compare(*arguments, targets, **given), oracle(base_logits, logits, targets, **options)
    for name, column in expected.items():
        assert_near(getattr(result, name), column, error, 8)
    np.testing.assert_array_equal(result.is_same_top, base_logits.argmax(-1) == logits.argmax(-1))
    assert result.kept.all()
    kl = linear_kl_divergence(*arguments, reduction="none", **given)
    assert_same_bits(kl, result.kl)
    assert_same_bits(linear_kl_divergence(*arguments, reduction="sum", **given), reference.exact_sum(kl.ravel()))
    assert linear_kl_divergence(*arguments, **given) == pytest.approx(result.mean_kl, rel=2**-52)


@pytest.mark.parametrize("rows", [1, FEW, FEW + 1, 1030])
@pytest.mark.parametrize("classes", [1, 5, 1024, 1025, 3100])
def test_linear_compare_of_every_size(rows, classes, rng):
    rows = min(rows, 1030 if classes == 5 else 60)
    assert_as_oracle(two_models(rng, rows, classes), rng.integers(0, classes, rows))


@few_and_many
@each_options
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_linear_compare_with_logit_scale_softcap_base_bias_and_bias(rows, options, dtype, rng):
    operands = two_models(rng, rows, dtypes=(dtype,) * 4)
    targets, biases = rng.integers(0, CLASSES, rows), rng.integers(-64, 65, (2, CLASSES)) / 16
    for some in ((None, None), (biases[0], None), (None, np.float16(biases[1])), biases):
        assert_as_oracle(operands, targets, some, 1e-13 if dtype == FLOAT64 else 2e-7, **options)


@few_and_many
@pytest.mark.parametrize("dtypes", list(itertools.product(FLOATS, FLOATS)), ids=str)
def test_linear_compare_of_every_pair_of_dtypes(rows, dtypes, rng):
    for both in ((*dtypes, *dtypes), (dtypes[0], FLOAT32, FLOAT16, dtypes[1])):
        operands = two_models(rng, rows, 300, dtypes=both)
        assert_as_oracle(operands, rng.integers(0, 300, rows), layout=strided)


@pytest.mark.parametrize("rows", [7, ROWS])
def test_linear_compare_equals_compare_of_the_logits_with_cu_seqlens_or_segment_ids(rows, rng):
    operands, targets = two_models(rng, rows), rng.integers(0, CLASSES, rows)
    targets[1], where, bounds = -100, np.arange(rows) != 2, [0, 4, rows]
    options = {"where": where, "cu_seqlens": bounds}
    logits = [exact_logits(*operands[i : i + 2]).astype(FLOAT32) for i in (0, 2)]
    result, expected = linear_compare(*operands, targets, **options), compare(*logits, targets, **options)
    for name in COLUMNS:
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name), rtol=0, atol=2e-7)
    for name in ("is_same_top", "kept"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
    for name in ("mean_kl", "mean_kl_stderr", "perplexity_ratio", "log_perplexity_ratio_stderr", "same_top"):
        assert reference.statistic(result, name) == pytest.approx(reference.statistic(expected, name), abs=1e-6)
    assert result.n_sequences == 2
    numbers = np.arange(rows) >= 4
    again = linear_compare(*operands, targets, where=where, segment_ids=numbers.astype(int))
    assert again.to_dict() == result.to_dict()
    alone = linear_compare(*operands, None, where=where & (targets != -100), cu_seqlens=bounds)
    assert_same_bits(alone.kl, result.kl)
    assert (alone.mean_kl, alone.mean_kl.stderr, alone.same_top) == (
        result.mean_kl,
        result.mean_kl.stderr,
        result.same_top,
    )
    assert not alone.has_targets
    assert np.isnan([alone.nll, alone.base_nll, alone.delta_p]).all()


@pytest.mark.parametrize("batch", [(), (0,), (2, 3), (3, 4, 5)])
def test_linear_pairs_of_batches_of_every_shape_with_where(batch, rng):
    operands = [rng.integers(-4, 5, shape) / 4 for shape in ((*batch, 6), (11, 6), (*batch, 2), (11, 2))]
    targets, where = rng.integers(0, 11, batch), rng.random(batch) > 0.3
    logits = [operands[i] @ operands[i + 1].T for i in (0, 2)]
    for layout in (np.array, np.asfortranarray, strided):
        arguments = [layout(array) for array in operands]
        result = linear_kl_divergence(*arguments, where=where, reduction="none")
        np.testing.assert_allclose(result, kl_divergence(*logits, where=where, reduction="none"), atol=1e-12)
        assert np.shape(result) == batch
        assert_same_bits(linear_compare(*arguments, targets, where=where).kl, np.where(where, result, np.nan))


@few_and_many
@pytest.mark.parametrize(("layout", "options"), [*zip(LAYOUTS, itertools.cycle(OPTIONS), strict=False)], ids=str)
def test_linear_divergence_of_a_model_and_itself_is_exactly_0(rows, options, layout, rng):
    for dtypes in ((FLOAT32, FLOAT32), (FLOAT32, BFLOAT16), (BFLOAT16, BFLOAT16), (FLOAT64, FLOAT16)):
        hidden, weight = rng.standard_normal((rows, 65)), rng.standard_normal((1100, 65))
        model = LAYOUTS[layout](hidden.astype(dtypes[0])), LAYOUTS[layout](weight.astype(dtypes[1]))
        for bias in (None, rng.standard_normal(1100), -1e30 * (np.arange(1100) != 7), np.full(1100, -1e38)):
            given = {"base_lm_head_bias": bias, "lm_head_bias": bias, **options}
            assert_same_bits(linear_kl_divergence(*model, *model, reduction="none", **given), np.zeros(rows))
        comparison = linear_compare(*model, *model, np.zeros(rows, int), **options)
        assert (comparison.same_top, comparison.mean_kl, comparison.rms_delta_p) == (1, 0, 0)
        assert_same_bits(comparison.nll, comparison.base_nll)


@few_and_many
@pytest.mark.parametrize("value", [1e6, 1e30, 3e38])
@pytest.mark.parametrize("signs", [(1, 1), (1, 0), (0, 1), (-1, 1), (-1, -1)])
def test_linear_rows_too_far_out_for_floats_are_read_again(rows, value, signs, rng):
    operands, targets = two_models(rng, rows), np.zeros(rows, int)
    operands[0][::2] *= 0  # so that some rows are not
    places = np.array([3, CLASSES - 3])[:, None] == np.arange(CLASSES)
    biases = [(sign * value * place).astype(FLOAT32) for sign, place in zip(signs, places, strict=True)]
    with np.errstate(over="ignore"):
        logits = [exact_logits(*operands[2 * i : 2 * i + 2]).astype(FLOAT32) + biases[i] for i in range(2)]
    result = linear_compare(*operands, targets, base_lm_head_bias=biases[0], lm_head_bias=biases[1])
    expected = oracle(*logits, targets)
    for name, column in expected.items():
        np.testing.assert_allclose(getattr(result, name), column, rtol=1e-6, atol=2e-7, err_msg=name)
    kl = linear_kl_divergence(*operands, base_lm_head_bias=biases[0], lm_head_bias=biases[1], reduction="none")
    assert_same_bits(kl, result.kl)


@pytest.mark.parametrize("rows", [6, 40])
def test_linear_rows_that_are_read_again_leave_the_others_as_they_are(rows, rng):
    operands = [rng.standard_normal(shape).astype(FLOAT32) for shape in ((rows, 8), (5000, 8), (rows, 8), (5000, 8))]
    for hidden in operands[::2]:
        hidden[2] *= 1e4  # beyond what floats can be reduced in
    base, other = (exact_logits(*operands[i : i + 2]) for i in (0, 2))
    for reduction in ("mean", "sum", "none"):
        result = linear_kl_divergence(*operands, reduction=reduction)
        np.testing.assert_allclose(result, kl_divergence(base, other, reduction=reduction), rtol=1e-4)


@few_and_many
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@each_options
def test_linear_pairs_with_nan_and_infinity_as_among_logits(rows, value, options, rng):
    operands, targets = two_models(rng, rows), rng.integers(0, CLASSES, rows)
    for place, model in itertools.product((0, 1500), (0, 1)):
        biases = np.zeros((2, CLASSES), FLOAT32)
        biases[model, place], targets[0] = value, place
        logits = [exact_logits(*operands[2 * i : 2 * i + 2]).astype(FLOAT32) + biases[i] for i in range(2)]
        for array in logits:
            array *= options.get("logit_scale", 1)
            if "softcap" in options:
                capped = options["softcap"] * np.tanh(array / options["softcap"])
                array[:] = np.where(np.isinf(array), array, capped)  # a cap leaves infinities as they are
        result = linear_compare(*operands, targets, base_lm_head_bias=biases[0], lm_head_bias=biases[1], **options)
        expected = compare(*logits, targets)
        for name in COLUMNS:
            np.testing.assert_allclose(getattr(result, name), getattr(expected, name), rtol=0, atol=3e-6, err_msg=name)


@few_and_many
@pytest.mark.parametrize("layout", [np.array, strided, np.asfortranarray, LAYOUTS["swapped"]])
def test_linear_pairs_where_and_ignore_index_leave_out_hidden_states_that_may_be_garbage(rows, layout, rng):
    operands, targets = two_models(rng, rows), rng.integers(0, CLASSES, rows)
    targets[1], where = -100, np.arange(rows) % 3 > 0
    kept = where & (targets >= 0)
    expected = linear_compare(operands[0][kept], operands[1], operands[2][kept], operands[3], targets[kept])
    for hidden in (operands[0], operands[2]):
        hidden[~kept] = NAN
    targets[~where] = 10**9
    arguments = [layout(array) for array in operands]
    result = linear_compare(*arguments, targets, where=where)
    for name in COLUMNS:
        assert_same_bits(getattr(result, name)[kept], getattr(expected, name), name)
        left_out = getattr(result, name)[~kept]
        assert np.isnan(left_out).all() if left_out.dtype == np.float64 else not left_out.any()
    np.testing.assert_array_equal(result.kept, kept)
    assert_same_bits(linear_kl_divergence(*arguments, where=kept), expected.mean_kl)


@few_and_many
def test_linear_pairs_where_nothing_is_kept(rows):
    hidden, weight = np.full((rows, 3), NAN), np.ones((5, 3))
    assert math.isnan(linear_kl_divergence(hidden, weight, hidden, weight, where=False))
    assert linear_kl_divergence(hidden, weight, hidden, weight, where=False, reduction="sum") == 0
    assert linear_compare(hidden, weight, hidden, weight, np.full(rows, -100)).count == 0


@few_and_many
def test_linear_pairs_layouts_memory_maps_and_workers_change_no_bit(rows, rng, tmp_path):
    for dtypes in ((FLOAT32,) * 4, (BFLOAT16,) * 4, (FLOAT64, FLOAT32, BFLOAT16, FLOAT16)):
        operands, targets = two_models(rng, rows, dtypes=dtypes), rng.integers(0, CLASSES, rows)
        expected = linear_compare(*operands, targets, workers=1)
        for (name, layout), workers in zip(LAYOUTS.items(), itertools.cycle((2, 8, 1)), strict=False):
            arguments = [layout(array) for array in operands]
            assert_same_bits(linear_compare(*arguments, targets, workers=workers).kl, expected.kl, name)
    np.save(tmp_path / "weight.npy", np.asfortranarray(operands[1]))
    operands[1] = np.load(tmp_path / "weight.npy", mmap_mode="r")
    assert_same_bits(linear_compare(*operands, targets).kl, expected.kl)


@pytest.mark.parametrize("rows", [1, FEW, 100])
@pytest.mark.parametrize(
    ("name", "value"),
    [("_PAIR_TILE_BYTES", 1), ("_PAIR_TILE_BYTES", 1 << 20), ("_PAIR_TILE_BYTES", 1 << 24),
     ("_PAIR_BYTES", 1 << 20), ("_PAIR_BYTES", 1), ("MAX_TILE_ROWS", 7), ("_CAST_BYTES", 9999)],
)  # fmt: skip
def test_linear_pairs_in_tiles_of_any_size_have_the_same_bits(rows, name, value, rng, monkeypatch):
    dtypes = (FLOAT32,) * 4, (BFLOAT16,) * 4, (FLOAT32, FLOAT32, FLOAT64, FLOAT32)
    problems = [two_models(rng, rows, dtypes=some) for some in dtypes]
    targets, where = rng.integers(0, CLASSES, rows), rng.random(rows) > 0.3
    bias = 1e30 * (np.arange(CLASSES) == 7)
    calls = [lambda of=of, **given: linear_compare(*of, targets, where=where, **given).kl for of in problems]
    expected = [(call(), call(lm_head_bias=bias)) for call in calls]
    monkeypatch.setattr(projection, name, value)
    for call, both in zip(calls, expected, strict=True):
        assert_same_bits((call(), call(lm_head_bias=bias)), both)


@few_and_many
@pytest.mark.parametrize("most_bytes", [None, 300_000])
def test_linear_pair_columns_of_several_candidates_have_the_bits_of_each_alone(rows, most_bytes, rng, monkeypatch):
    if most_bytes:
        monkeypatch.setattr(projection, "_PAIR_BYTES", most_bytes)
        monkeypatch.setattr(projection, "_PAIR_TILE_BYTES", 1 << 17)
    models = [(4, FLOAT32, FLOAT32, None), (300, FLOAT32, BFLOAT16, 1.0), (70, FLOAT64, FLOAT32, None)]
    models += [(1300, BFLOAT16, BFLOAT16, None), (33, FLOAT32, FLOAT32, 1e30)]  # whose rows are too far out
    projections = {}
    for depth, *dtypes, bias in models:
        operands = (rng.standard_normal((rows, depth)).astype(dtypes[0]), rng.standard_normal((2200, depth)))
        biases = None if bias is None else bias * (np.arange(2200) == 7)
        projections[f"{depth}"] = Projection(operands[0], operands[1].astype(dtypes[1]), biases)
    base, where = projections.pop("4"), rng.random(rows) > 0.2
    positions = as_positions("targets", rng.integers(0, 2000, rows), base.part(slice(2000)).scores, -100, where)
    together = linear_pair_columns(base, projections, positions, (1.0, 0.0), 2)
    for name, operands in projections.items():
        alone = linear_pair_columns(base, {name: operands}, positions, (1.0, 0.0), 1)[name]
        assert alone.keys() == together[name].keys() >= {"base_left_out", "left_out"}
        for column, values in alone.items():
            assert_same_bits(together[name][column], values, f"{name} {column}")
    assert together["33"]["base_nll"] is together["300"]["base_nll"]


@few_and_many
@each_options
def test_linear_compare_of_the_first_classes_of_unequal_vocabularies(rows, options, rng):
    operands, targets = two_models(rng, rows), rng.integers(0, 1500, rows)
    operands[1] = operands[1][:1700]
    operands[3][1500:] -= 1 / 32  # so that little is left out
    biases = rng.integers(-64, 65, 1700) / 16, rng.integers(-64, 65, CLASSES) / 16
    given = {"base_lm_head_bias": biases[0], "lm_head_bias": biases[1], **options}
    for classes in (1500, 1700):
        result = linear_compare(*operands, targets, classes=classes, **given)
        logits = [exact_logits(*operands[2 * i : 2 * i + 2], biases[i]) for i in range(2)]
        for name, column in oracle(*(array[:, :classes] for array in logits), targets, **options).items():
            assert_near(getattr(result, name), column, 2e-7, 8)
        masses = [np.exp(log_softmax(array, **options))[:, classes:].sum(-1).mean() for array in logits]
        assert (result.base_left_out, result.left_out) == pytest.approx([float(mass) for mass in masses], rel=1e-6)
    same = linear_compare(*operands[:2], *operands[:2], targets)
    assert (same.base_left_out, same.left_out) == (None, None)


@few_and_many
@pytest.mark.parametrize("dtypes", [(FLOAT32, FLOAT32), (FLOAT64, FLOAT32), (FLOAT16, BFLOAT16)], ids=str)
@pytest.mark.parametrize("value", [NAN, INF, 1e300, 1e38, 1e-40, 1e-300])
def test_linear_pairs_of_no_operands_make_a_warning(rows, dtypes, value):
    with np.errstate(all="ignore"):
        hidden, weight = np.full((rows, 5), value).astype(dtypes[0]), np.full((30, 5), value).astype(dtypes[1])
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for bias in (None, np.full(30, 1e300), np.full(30, INF), np.full(30, 1e-300)):
            linear_kl_divergence(hidden, weight, hidden, weight, lm_head_bias=bias)


@few_and_many
@pytest.mark.parametrize(("classes", "depth"), [(5, 0), (0, 3), (0, 0)])
def test_linear_pairs_of_no_classes_and_no_depth(rows, classes, depth):
    hidden, weight, bias = np.ones((rows, depth)), np.ones((classes, depth)), np.arange(classes, dtype=float)
    result = linear_kl_divergence(hidden, weight, hidden, weight, lm_head_bias=bias, reduction="none")
    logits = hidden @ weight.T
    assert_near(result, kl_divergence(logits, logits + bias, reduction="none"), 1e-14)


BOTH = [linear_kl_divergence, linear_compare]
COMPARE, DIVERGENCE = [linear_compare], [linear_kl_divergence]


@pytest.fixture
def _no_product(monkeypatch):
    """Make every multiplication fail."""
    for name in ("Tiles", "MatVec", "BFloat16MatMul", "row_dots"):
        monkeypatch.setattr(_core, name, None)


@pytest.mark.parametrize(
    ("functions", "changes", "error", "words"),
    [
        (BOTH, {"base_hidden": np.ones((2, 3), int)}, TypeError, ["base_hidden", "int", "float32"]),
        (BOTH, {"hidden": np.float64(1)}, ValueError, ["hidden", "()", "(..., D)"]),
        (BOTH, {"hidden": np.ones((3, 2))}, ValueError, ["hidden", "(3, 2)", "(2, E)", "base_hidden"]),
        (BOTH, {"base_lm_head": np.ones((4, 2))}, ValueError, ["base_lm_head", "(4, 2)", "(V, 3)", "base_hidden"]),
        (BOTH, {"lm_head": np.ones((4, 3))}, ValueError, ["lm_head", "(4, 3)", "(V, 2)", "hidden"]),
        (DIVERGENCE, {"lm_head": np.ones((5, 2))}, ValueError, ["lm_head", "(5, 2)", "(4, 2)", "base_lm_head"]),
        (COMPARE, {"lm_head": np.ones((5, 2))}, ValueError, ["lm_head", "5", "base_lm_head 4", "classes=4"]),
        (COMPARE, {"lm_head": np.ones((5, 2)), "classes": 5}, ValueError, ["classes", "5", "4"]),
        (COMPARE, {"classes": 0}, ValueError, ["classes", "0", "positive"]),
        (COMPARE, {"classes": 3}, IndexError, ["targets[1]", "3", "[0, 3)"]),
        (BOTH, {"base_lm_head_bias": np.ones(3)}, ValueError, ["base_lm_head_bias", "(3,)", "(4,)"]),
        (BOTH, {"lm_head_bias": np.ones(4, int)}, TypeError, ["lm_head_bias", "int"]),
        (BOTH, {"where": np.ones(3, bool)}, ValueError, ["where", "(3,)", "(2,)"]),
        (BOTH, {"logit_scale": 0.0}, ValueError, ["logit_scale", "0.0", "positive"]),
        (BOTH, {"softcap": -1.0}, ValueError, ["softcap", "-1.0", "positive"]),
        (BOTH, {"workers": 0}, ValueError, ["workers", "0", "positive"]),
        (DIVERGENCE, {"lm_head": np.ones((5, 2))}, ValueError, ["pass lm_head[:4], or linear_compare(..., classes=4)"]),
        (
            DIVERGENCE,
            {"lm_head": np.ones((3, 2))},
            ValueError,
            ["pass base_lm_head[:3], or linear_compare(..., classes"],
        ),
        (DIVERGENCE, {"reduction": "max"}, ValueError, ["reduction", "'max'", "'mean'"]),
        (COMPARE, {"targets": np.array([0, 4])}, IndexError, ["targets[1]", "4", "[0, 4)"]),
        (COMPARE, {"targets": np.array([0.0, 1.0])}, TypeError, ["targets", "float64", "integer"]),
        (COMPARE, {"targets": np.zeros(3, int)}, ValueError, ["targets", "(3,)", "(2,)", "base_hidden"]),
        (COMPARE, {"segment_ids": [0, 1], "cu_seqlens": [0, 2]}, ValueError, ["segment_ids", "cu_seqlens"]),
        (COMPARE, {"segment_ids": [0, 1, 2]}, ValueError, ["segment_ids", "(3,)"]),
        (COMPARE, {"cu_seqlens": [0, 3]}, ValueError, ["cu_seqlens"]),
    ],
)
@pytest.mark.usefixtures("_no_product")
def test_linear_pairs_errors_name_the_argument_before_anything_is_multiplied(functions, changes, error, words):
    arguments = {"base_hidden": np.ones((2, 3)), "base_lm_head": np.ones((4, 3)), "hidden": np.ones((2, 2))}
    arguments |= {"lm_head": np.ones((4, 2))}
    for function in functions:
        targets = {"targets": np.array([0, 3])} if function is linear_compare else {}
        with fails(error, *words):
            function(**arguments | targets | changes)
