"""linear_cross_entropy and linear_token_scores: equal to the scores of the exact products within their rounding.

In any order of summation, a product of depth D is within D roundings of the sum of |h w|. Those of few hidden states,
and those of targets, are within fewer: chains of 16 at most are added, of these always four, and all else in double.
Of many in bfloat16, where the machine has an instruction for them, chains of 256 are added.
"""

import itertools
import math
import warnings

import numpy as np
import pytest
import reference
from arrays import (
    BFLOAT16,
    FLOATS,
    LAYOUTS,
    OPTIONS,
    assert_near,
    assert_same_bits,
    distributions,
    fails,
    loss_error,
    strided,
    token_columns,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenloss import cross_entropy, linear_cross_entropy, linear_token_scores, token_scores
from tokenloss._core import _core, projection
from tokenloss._scores.token_scores import COLUMNS

NAN, INF = math.nan, math.inf
FLOAT16, FLOAT32, FLOAT64 = (np.dtype(name) for name in ("float16", "float32", "float64"))
FEW = 24  # hidden states that are multiplied by the package's own kernels
few_and_many = pytest.mark.parametrize("rows", [3, FEW + 8])
each_kind = pytest.mark.parametrize("kind", ["ids", "distributions"])
each_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture(params=_core.BF16_MATMULS)
def has_bf16_matmul(request, use_backend):
    """Multiply many positions in bfloat16 by BLAS, and by each instruction for them."""
    use_backend(_core.backend_in_use(), without={*_core.BF16_MATMULS} - {request.param})
    if request.param != _core.bf16_matmul_in_use():
        pytest.skip(f"this machine has no {request.param}")
    return request.param != "blas"


def operands(rng, rows, classes, depth, *dtypes):
    """Hidden states and weights whose products have a standard deviation of 3."""
    hidden, weight = rng.standard_normal((rows, depth)), rng.standard_normal((classes, depth)) * 3 / math.sqrt(depth)
    return hidden.astype(dtypes[0] if dtypes else FLOAT32), weight.astype(dtypes[-1] if dtypes else FLOAT32)


def whole(rng, rows, classes, depth=64, *dtypes):
    """Hidden states and weights whose products are exact in every order: small multiples of powers of two."""
    hidden, weight = rng.integers(-4, 5, (rows, depth)), rng.integers(-4, 5, (classes, depth)) / 32
    return hidden.astype(dtypes[0] if dtypes else FLOAT32), weight.astype(dtypes[-1] if dtypes else FLOAT32)


def targets_for(rng, kind, rows, classes):
    return rng.integers(0, classes, rows) if kind == "ids" else distributions(rng, (rows, classes))


def exact(hidden, weight, bias=None, ours=False):
    """Exact logits in float64, the largest error of each, and the dtype of the product.

    Of float32 operands the product in float64 is exact enough.
    """
    dtype = FLOAT64 if FLOAT64 in (hidden.dtype, weight.dtype) else FLOAT32
    hidden, weight = reference.float64(hidden), reference.float64(weight)
    bias = np.zeros(len(weight)) if bias is None else reference.float64(bias)
    wide = reference.wide if dtype == FLOAT64 else reference.float64
    logits = reference.float64(wide(hidden) @ wide(weight).T + wide(bias))
    depth, unit = hidden.shape[-1], np.finfo(dtype).eps / 2
    roundings = min(16, -(-depth // 64)) + 2 if ours else depth
    bound = (roundings + 3) * unit + (depth // 1024 + 8) * 2.0**-53  # with that of the result, the bias and their sum
    return logits, 1.01 * bound * (np.abs(hidden) @ np.abs(weight).T + np.abs(bias)), dtype


def assert_as_oracle(hidden, matrix, targets, bias=None, ours=False, layouts=(np.array, np.array), **options):
    """Compare the losses of operands, in any layouts, with those of the exact product."""
    logits, error, dtype = exact(hidden, matrix, bias, ours)
    rounded, moved = logits.astype(dtype), 2 * options.get("logit_scale", 1) * error.max(-1)
    allowed = loss_error(rounded, targets, **options) + moved * loss_error(rounded, targets, sizes=True, **options)

    def loss(reduction):
        arguments = (layouts[0](hidden), layouts[1](matrix), targets)
        return linear_cross_entropy(*arguments, lm_head_bias=bias, reduction=reduction, **options)

    losses, total = loss("none"), loss("sum")
    assert_near(losses, reference.cross_entropy(logits, targets, reduction="none", **options), allowed, 4)
    assert_same_bits(total, reference.exact_sum(losses.ravel()))
    if options.get("weight") is not None and options.get("z_loss"):  # its mean is that without weights
        assert_near(loss("mean"), reference.cross_entropy(logits, targets, **options), np.max(allowed), 4)
        return
    divisor = reference.divisor_of_mean(logits, targets, **options)
    assert_same_bits(loss("mean"), reference.divide(total, divisor))


def logits_of(scores):
    """The rounded logits of all classes, from scores with top_k of all classes: within some ulps of float64."""
    logits = np.empty(scores.top_ids.shape)
    np.put_along_axis(logits, scores.top_ids, scores.top_logprobs + scores.logsumexp[..., None], -1)
    return logits


def everything(hidden, matrix, ids, **options):
    """Losses of several options and token scores, one column each."""
    shares = np.float32((ids[..., None] + np.arange(len(matrix))) % 3)
    losses = [
        linear_cross_entropy(hidden, matrix, targets, reduction="none", **some, **options)
        for targets, some in ((ids, {}), (ids, OPTIONS["everything"]), (shares, {}))
    ]
    scores = linear_token_scores(hidden, matrix, ids, top_k=min(5, len(matrix)), **options)
    return np.concatenate([np.stack(losses, -1), token_columns(scores)], -1)


# against the oracle


@pytest.mark.parametrize("depth", [1, 2, 3, 63, 64, 65, 513, 1024, 1025, 2500])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_linear_token_scores_of_every_depth_dtype_and_linear_bias(depth, dtype, rng):
    for rows, classes in ((1, 70), (FEW, 70), (FEW + 1, 70), (FEW + 36, 1)):
        hidden, weight = operands(rng, rows, classes, depth, dtype)
        ids, bias = rng.integers(0, classes, rows), rng.standard_normal(classes).astype(dtype)
        for given_bias in (None, bias):
            scores = linear_token_scores(hidden, weight, ids, lm_head_bias=given_bias, top_k=classes)
            result = logits_of(scores)
            ours = rows <= FEW or classes == 1  # the only class is every row's target
            logits, error, product_dtype = exact(hidden, weight, given_bias, ours)
            assert_near(result, logits, error + 1e-14, 16)
            rounded = result.astype(product_dtype)
            np.testing.assert_allclose(result, rounded, rtol=1e-14, atol=1e-14)
            if product_dtype == FLOAT32:
                expected = reference.token_scores(rounded, ids, top_k=classes)
                for name in ("rank", "argmax", "is_greedy", "top_ids"):
                    np.testing.assert_array_equal(getattr(scores, name), getattr(expected, name), name)
                for name in ("nll", "logsumexp", "entropy", "top_logprobs"):
                    assert_near(getattr(scores, name), getattr(expected, name), 2e-7)
            losses = linear_cross_entropy(hidden, weight, ids, lm_head_bias=given_bias, reduction="none")
            assert_same_bits(scores.nll, losses)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize(
    ("rows", "classes", "depth"),
    [
        *itertools.product([1, 3, FEW, FEW + 1], [1, 5, 1000, 1023, 1024, 1025, 2500], [1, 64]),
        *[(1, 1025, 1025), (FEW, 2500, 513), (FEW + 1, 1025, 513)],  # several tiles of classes
        *[(1000, 30, 9), (1030, 30, 9), (2049, 30, 9)],  # several blocks of rows
    ],
)
def test_linear_cross_entropy_of_every_size(dtype, rows, classes, depth, rng):
    hidden, weight = operands(rng, rows, classes, depth, dtype)
    ids = rng.integers(0, classes, rows)
    ids[rng.random(rows) < 0.2] = -100
    assert_as_oracle(hidden, weight, ids, ours=rows <= FEW)


@each_options
@each_kind
@few_and_many
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_linear_label_smoothing_z_loss_logit_scale_softcap_weight_together(options, kind, rows, weighted, dtype, rng):
    for classes in (9, 1100):
        hidden, weight = operands(rng, rows, classes, 5, dtype)
        targets, bias = targets_for(rng, kind, rows, classes), rng.standard_normal(classes) if classes == 9 else None
        given = options | {"weight": rng.random(classes) + 0.1 if weighted else None}
        given |= {"where": rng.random(rows) > 0.3} | ({"ignore_index": 2} if kind == "ids" else {})
        assert_as_oracle(hidden, weight, targets, bias, rows <= FEW, **given)


@pytest.mark.parametrize("hidden_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("weight_dtype", FLOATS, ids=str)
@few_and_many
def test_linear_every_pair_of_dtypes_and_linear_bias(hidden_dtype, weight_dtype, rows, rng):
    ours = rows <= FEW and (weight_dtype == FLOAT64 or hidden_dtype != FLOAT64)
    for classes, depth in ((70, 130), (1030, 7)):
        hidden, weight = operands(rng, rows, classes, depth, hidden_dtype, weight_dtype)
        for bias in (None, *(rng.standard_normal(classes).astype(dtype) for dtype in FLOATS)):
            assert_as_oracle(hidden, weight, rng.integers(0, classes, rows), bias, ours)


@pytest.mark.parametrize("batch", [(), (0,), (1,), (4, 0), (2, 3), (5, 7), (2, 1, 3), (3, 4, 5)])
@each_kind
def test_linear_batches_of_every_shape_with_where_and_top_k(batch, kind, rng):
    hidden, weight, ids = rng.standard_normal((*batch, 6)), rng.standard_normal((11, 6)), rng.integers(0, 11, batch)
    targets = ids if kind == "ids" else distributions(rng, (*batch, 11))
    for layout in (np.array, np.asfortranarray, strided):
        assert_as_oracle(hidden, weight, targets, layouts=(layout, np.array), where=rng.random(batch) > 0.3)
    scores = linear_token_scores(hidden, weight, ids, top_k=2)
    assert (scores.nll.shape, scores.rank.shape, scores.top_ids.shape) == (batch, batch, (*batch, 2))


@given(st.data())
@settings(max_examples=60)
def test_linear_cross_entropy_of_any_operands_targets_and_options(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows, classes, depth = (data.draw(st.integers(1, most)) for most in (40, 3000, 200))
    layouts = [LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))] for _ in range(2)]
    hidden, weight = operands(rng, rows, classes, depth, *(data.draw(st.sampled_from(FLOATS)) for _ in range(2)))
    targets = distributions(rng, (rows, classes), zeros=data.draw(st.sampled_from([0.3, 0.99])))
    targets[rng.random(rows) < 0.1] = 0
    targets = rng.integers(0, classes, rows) if data.draw(st.booleans()) else targets
    bias = rng.standard_normal(classes) if data.draw(st.booleans()) else None
    where = rng.random(rows) > data.draw(st.sampled_from([0, 0.3]))
    options = OPTIONS[data.draw(st.sampled_from(sorted(OPTIONS)))] | {"where": where}
    options |= {"ignore_index": 0} if targets.ndim == 1 else {}
    assert_as_oracle(hidden, weight, targets, bias, layouts=layouts, **options)


@pytest.mark.parametrize("depth", [0, 1, 2, 3, 255, 256, 257, 1025])
@pytest.mark.parametrize("rows", [FEW + 1, 32, 33, 48, 70])
def test_linear_bfloat16_products_of_every_size_are_near_the_exact_ones(rows, depth, has_bf16_matmul, rng):
    for classes in (1, 12, 13, 97, 205):
        hidden, weight = operands(rng, rows, classes, depth or 1, BFLOAT16)
        hidden, weight = hidden[:, :depth], weight[:, :depth]
        logits, _, _ = exact(hidden, weight)
        roundings = min(depth, 256) + -(-depth // 256) if has_bf16_matmul else depth
        error = (roundings + 2) * 2.0**-24 * (abs(reference.float64(hidden)) @ abs(reference.float64(weight)).T)
        scores = linear_token_scores(hidden, weight, rng.integers(0, classes, rows), top_k=classes)
        assert_near(logits_of(scores), logits, error + 1e-14, 16)


def test_linear_bfloat16_products_are_as_accurate_as_those_of_float32(has_bf16_matmul, rng):
    hidden, weight = operands(rng, 64, 300, 2048, BFLOAT16)
    logits, _, _ = exact(hidden, weight)
    result = logits_of(linear_token_scores(hidden, weight, np.zeros(64, int), top_k=300))
    single = hidden.astype(FLOAT32) @ weight.astype(FLOAT32).T
    assert np.std(result - logits) <= (1.1 if has_bf16_matmul else 1.01) * max(np.std(single - logits), 2e-6)


@each_kind
@each_options
def test_linear_bfloat16_products_with_where_linear_bias_and_options(options, kind, has_bf16_matmul, rng):
    hidden, weight = operands(rng, 40, 500, 37, BFLOAT16)
    targets, bias = targets_for(rng, kind, 40, 500), rng.standard_normal(500)
    for where in (None, rng.random(40) > 0.3):
        assert_as_oracle(hidden, weight, targets, bias, where=where, **options)


def test_linear_bfloat16_matmul_of_the_core_needs_the_instruction(use_backend):
    use_backend("portable")
    with fails(ValueError, "instruction", "bfloat16"):
        _core.BFloat16MatMul(np.zeros((2, 3), np.uint16), np.zeros((30, 3), FLOAT32))


def test_linear_bfloat16_subnormals_are_zero_to_the_instruction_alone(has_bf16_matmul):
    hidden, weight = np.full((40, 4), 2.0**127, BFLOAT16), np.full((20, 4), 2.0**-128, BFLOAT16)
    weight[3] = 0  # the target
    losses = linear_cross_entropy(hidden, weight, np.full(40, 3), reduction="none")
    assert_near(losses, np.full(40, math.log(1 + 19 * math.exp(0 if has_bf16_matmul else 2))), 1e-6)


# the same bits


@pytest.mark.parametrize("scaling", [{}, OPTIONS["scaled_and_capped"]], ids=["plain", "capped"])
@pytest.mark.parametrize(("rows", "classes"), [(1, 5000), (FEW, 1024), (100, 1025), (600, 5000), (1030, 70), (40, 1)])
def test_linear_token_scores_of_exact_products_equal_token_scores(rows, classes, scaling, rng):
    hidden, weight = whole(rng, rows, classes)
    logits, ids = hidden @ weight.T, rng.integers(0, classes, rows)
    for targets in (ids, logits.argmax(-1)):
        scores = linear_token_scores(hidden, weight, targets, top_k=min(20, classes), **scaling)
        expected = token_scores(logits, targets, top_k=min(20, classes), **scaling)
        for name in ("rank", "argmax", "is_greedy", "kept", "top_ids"):  # many logits are equal
            np.testing.assert_array_equal(getattr(scores, name), getattr(expected, name), name)
        for name in ("nll", "logsumexp", "entropy", "top_logprobs"):
            assert_near(getattr(scores, name), getattr(expected, name), 2e-7)


@each_kind
@each_options
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_linear_rows_of_up_to_1024_classes_have_the_bits_of_their_logits(dtype, options, kind, rng):
    for rows, classes in ((1, 1), (3, 2), (70, 10), (FEW + 8, 65), (40, 513), (20, 1024)):
        hidden, weight = whole(rng, rows, classes, 64, dtype)
        hidden[::3] *= 2000  # rows that are far out
        logits, targets = hidden @ weight.T, targets_for(rng, kind, rows, classes)
        for some in (targets, strided(targets)):
            losses = linear_cross_entropy(hidden, weight, some, reduction="none", **options)
            assert_same_bits(losses, cross_entropy(logits, targets, reduction="none", **options))
        if kind == "ids" and options in (OPTIONS["scaled_and_capped"], {}):
            scores = linear_token_scores(hidden, weight, targets, top_k=1, **options)
            assert_same_bits(token_columns(scores), token_columns(token_scores(logits, targets, top_k=1, **options)))


@pytest.mark.parametrize(
    "dtypes",
    [
        (FLOAT32, FLOAT32),
        pytest.param((BFLOAT16, FLOAT32), marks=pytest.mark.slow),
        pytest.param((FLOAT64, BFLOAT16), marks=pytest.mark.slow),
        (BFLOAT16, BFLOAT16),
    ],
    ids=str,
)
@few_and_many
def test_linear_layouts_change_no_bit_of_exact_products(dtypes, rows, rng):
    hidden, weight = whole(rng, rows, 1100, 65, *dtypes)
    ids = rng.integers(0, 1100, rows)
    expected = everything(hidden, weight, ids)
    for name, other in itertools.pairwise([*LAYOUTS, "c"]):
        for of_weight in (name, other):
            arrays = LAYOUTS[name](hidden), LAYOUTS[of_weight](weight), LAYOUTS[name](ids)
            assert_same_bits(everything(*arrays), expected, f"hidden {name}, weight {of_weight}")
    for once in (hidden[0], hidden[:, :1]):
        repeated = np.broadcast_to(once, hidden.shape)
        assert_same_bits(everything(repeated, weight, ids), everything(repeated.copy(), weight, ids))
    for once in (weight[0], weight[:, :1]):
        repeated = np.broadcast_to(once, weight.shape)
        assert_same_bits(everything(hidden, repeated, ids), everything(hidden, repeated.copy(), ids))


@few_and_many
def test_linear_memory_maps_lists_and_tensors_change_no_bit(rows, rng, tmp_path):
    hidden, weight = whole(rng, rows, 70)
    ids = rng.integers(0, 70, rows)
    single, double = (everything(hidden.astype(dtype), weight, ids) for dtype in (FLOAT32, FLOAT64))
    assert_same_bits(everything(hidden.tolist(), weight.tolist(), ids, lm_head_bias=[0] * 70), double)
    for order in "CF":
        np.save(tmp_path / f"{order}.npy", np.asarray(weight, order=order))
        mapped = np.load(tmp_path / f"{order}.npy", mmap_mode="r")
        assert_same_bits(everything(hidden, mapped, ids), single, order)
        del mapped
    torch = pytest.importorskip("torch")
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        states, matrix = (torch.from_numpy(array).to(dtype) for array in (hidden, weight))
        for tensor in (matrix, matrix.T.contiguous().T):
            assert_same_bits(everything(states, tensor, ids), double if dtype == torch.float64 else single, str(dtype))


@pytest.mark.parametrize("dtypes", [(FLOAT32, FLOAT32), (BFLOAT16, FLOAT16), (FLOAT64, FLOAT64)], ids=str)
def test_linear_few_positions_have_the_same_bits_for_any_workers_batch_and_layout(dtypes, rng):
    for classes, depth in ((1, 1), (5, 63), (300, 1025), (2100, 100)):
        hidden, weight = operands(rng, FEW, classes, depth, *dtypes)
        ids, padded = rng.integers(0, classes, FEW), np.full((classes, depth + 3), NAN, dtypes[1])
        padded[:, 3:] = weight
        expected = everything(hidden, weight, ids)
        for workers in (1, 2, 8):
            assert_same_bits(everything(hidden, weight, ids, workers=workers), expected, f"{workers} workers")
        for size in (1, 2, 3, 4, 5, 23):
            parts = [everything(hidden[i : i + size], weight, ids[i : i + size]) for i in range(0, FEW, size)]
            assert_same_bits(np.concatenate(parts), expected, f"batches of {size}")
        for name, layout in LAYOUTS.items():
            assert_same_bits(everything(layout(hidden), weight, ids), expected, f"hidden {name}")
        assert_same_bits(everything(hidden, padded[:, 3:], ids), expected, "padded")
        assert_same_bits(everything(hidden, LAYOUTS["misaligned"](weight), ids), expected, "misaligned")
        if dtypes[0] != FLOAT64:
            assert_same_bits(everything(hidden.astype(FLOAT32), weight.astype(FLOAT32), ids), expected, "float32")


@pytest.mark.parametrize(
    "dtypes", [(FLOAT32, FLOAT32), (FLOAT32, BFLOAT16), (FLOAT16, FLOAT16), (FLOAT64, FLOAT64)], ids=str
)
@pytest.mark.parametrize("scale", [1e-21, 1e-3, 1.0, 1e19])  # so that some products are subnormal or infinite
def test_linear_few_positions_have_the_same_bits_on_every_backend(dtypes, scale, rng, use_backend):
    scale = 1.0 if FLOAT16 in dtypes else scale
    problems = [
        (*operands(rng, rows, classes, depth, *dtypes), rng.integers(0, classes, rows))
        for rows, classes, depth in ((1, 70, 1), (5, 1030, 65), (7, 50, 2050))
    ]
    results = {}
    for name in _core.backends():
        use_backend(name)
        results[name] = [
            everything(hidden * hidden.dtype.type(scale), weight * weight.dtype.type(scale), ids)
            for hidden, weight, ids in problems
        ]
    for name, result in results.items():
        for actual, expected in zip(result, results["portable"], strict=True):
            assert_same_bits(actual, expected, name)


def test_linear_many_bfloat16_positions_have_the_same_bits_in_any_batch(has_bf16_matmul, rng):
    if not has_bf16_matmul:
        pytest.skip("BLAS promises no bits")
    hidden, weight = operands(rng, 160, 2100, 515, BFLOAT16)
    ids = rng.integers(0, 2100, 160)
    expected = everything(hidden, weight, ids)
    for size in (FEW + 1, 33, 70, 80):
        parts = [everything(hidden[i : i + size], weight, ids[i : i + size]) for i in range(0, 160 - FEW, size)]
        result = np.concatenate(parts)
        assert_same_bits(result, expected[: len(result)], f"batches of {size}")


def test_linear_workers_change_no_bit(rng):
    hidden, weight = operands(rng, 100, 9000, 40)
    ids = rng.integers(0, 9000, 100)
    half, half_weight = hidden.astype(BFLOAT16), weight.astype(BFLOAT16)
    for states, matrix in ((hidden, weight), (hidden, half_weight), (half, half_weight), (hidden, strided(weight))):
        expected = everything(states, matrix, ids, workers=1)
        for workers in (2, 8):
            assert_same_bits(everything(states, matrix, ids, workers=workers), expected, f"{workers} workers")


@pytest.mark.parametrize("rows", [FEW, 100])
@pytest.mark.parametrize(
    ("name", "value"),
    [("_TILE_BYTES", 1), ("_TILE_BYTES", 9000), ("_TILE_BYTES", 900_000), ("MAX_TILE_ROWS", 7), ("_CAST_BYTES", 9999)],
)
@pytest.mark.parametrize("classes", [30, 2500])
def test_linear_tiles_of_any_size_change_no_bit_of_exact_products(rows, classes, name, value, rng, monkeypatch):
    hidden, weight = whole(rng, rows, classes)
    hidden, ids, where = hidden * 8, rng.integers(0, classes, rows), rng.random(rows) > 0.3
    bias, half = np.arange(classes) % 7 / 32, weight.astype(BFLOAT16)
    problems = [(hidden, weight, {}), (hidden, weight, {"where": where}), (hidden, half, {"lm_head_bias": bias})]
    problems += [(hidden.astype(BFLOAT16), half, {"where": where})]
    expected = [everything(*problem, ids, **options) for *problem, options in problems]
    monkeypatch.setattr(projection, name, value)
    monkeypatch.setattr(projection, "_ROWS_BYTES", 2000)
    for (*problem, options), bits in zip(problems, expected, strict=True):
        assert_same_bits(everything(*problem, ids, **options), bits)


@pytest.mark.parametrize("rows", [FEW, FEW + 40])
def test_linear_targets_at_the_first_and_last_class_of_a_tile_change_no_other_row(rows, rng, monkeypatch):
    multiple = _core.TILE_CLASS_MULTIPLE
    monkeypatch.setattr(projection, "_TILE_BYTES", rows * (64 + multiple) * 4)  # the narrowest tiles of all rows
    hidden, weight = whole(rng, rows, 3 * multiple)
    for border in range(multiple, 3 * multiple, multiple):
        ids = np.where(np.arange(rows) % 2, border, border - 1)
        expected = token_scores(hidden @ weight.T, ids)
        scores = linear_token_scores(hidden, weight, ids)
        np.testing.assert_array_equal(scores.rank, expected.rank)
        assert_near(scores.nll, expected.nll, 2e-7)
        assert_same_bits(linear_cross_entropy(hidden, weight, ids, reduction="none"), scores.nll)


# where, ignore_index, nan and infinity


@few_and_many
@pytest.mark.parametrize("layout", [np.array, strided, np.asfortranarray, LAYOUTS["swapped"]])
def test_linear_where_and_ignore_index_leave_out_hidden_states_that_may_be_garbage(rows, layout, rng):
    hidden, weight = whole(rng, rows, 1100)
    ids, where = rng.integers(0, 1100, rows), np.arange(rows) % 3 > 0
    ids[1] = -100
    kept = where & (ids >= 0)
    expected = token_columns(linear_token_scores(hidden[kept], weight, ids[kept], top_k=5))
    hidden[~kept], ids[~where] = NAN, 10**9
    scores = token_columns(linear_token_scores(layout(hidden), weight, ids, where=where, top_k=5))
    assert_same_bits(scores[kept], expected)
    masked = [column.masked for column in COLUMNS.values() for _ in range(5 if column.is_top else 1)]
    assert_same_bits(scores[~kept], [masked] * (~kept).sum())
    losses = linear_cross_entropy(layout(hidden), weight, ids, where=where, reduction="none")
    assert_same_bits(losses, np.where(kept, scores[:, 0], 0.0))
    loss = linear_cross_entropy(layout(hidden), weight, ids, where=where)
    assert_same_bits(loss, reference.exact_sum(losses) / kept.sum())


@each_kind
@pytest.mark.parametrize("rows", [0, 3, FEW + 8])
def test_linear_where_and_ignore_index_that_keep_nothing(rows, kind, rng):
    hidden, weight = np.full((rows, 3), NAN), rng.standard_normal((5, 3))
    for targets, where in ((targets_for(rng, kind, rows, 5), False), (np.full(rows, -100), None)):
        for reduction, expected in (("mean", NAN), ("sum", 0.0), ("none", np.zeros(rows))):
            loss = linear_cross_entropy(hidden, weight, targets, where=where, reduction=reduction)
            assert_same_bits(loss, expected)
    scores = linear_token_scores(hidden, weight, targets, where=where, top_k=2)
    assert (scores.count, math.isnan(scores.loss)) == (0, True)


@few_and_many
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_linear_z_loss_is_the_loss_of_a_distribution_of_zeros(rows, z_loss, rng):
    hidden, weight = whole(rng, rows, 70)
    targets = distributions(rng, (rows, 70))
    targets[1] = 0
    losses = linear_cross_entropy(hidden, weight, targets, z_loss=z_loss, reduction="none")
    assert_near(losses, cross_entropy(hidden @ weight.T, targets, z_loss=z_loss, reduction="none"), 1e-6)
    assert (losses[1] == 0) == (z_loss == 0)


@few_and_many
@pytest.mark.parametrize(("classes", "depth"), [(5, 0), (0, 3), (0, 0)])
@pytest.mark.parametrize("options", [{}, OPTIONS["everything"]], ids=["plain", "everything"])
def test_linear_no_classes_and_no_depth(rows, classes, depth, options):
    hidden, weight, bias = np.ones((rows, depth)), np.ones((classes, depth)), np.arange(classes, dtype=float)
    for targets in (np.full(rows, -100), np.ones((rows, classes)), np.full(rows, classes - 1 if classes else -100)):
        losses = linear_cross_entropy(hidden, weight, targets, lm_head_bias=bias, reduction="none", **options)
        assert_near(losses, cross_entropy(hidden @ weight.T + bias, targets, reduction="none", **options), 1e-14)


@few_and_many
@each_options
def test_linear_bias_of_minus_infinity(rows, options, rng):
    hidden, weight = whole(rng, rows, 1100)
    bias = np.where(rng.random(1100) < 0.5, -INF, 0.0)
    bias[3], bias[4] = 0.0, -INF
    logits, ids = hidden @ weight.T + bias.astype(FLOAT32), np.where(np.arange(rows) % 5, 3, 4)
    shares = distributions(rng, (rows, 1100)) * (bias == 0)
    for targets in (ids, shares, shares + (np.arange(1100) == 4)):
        losses = linear_cross_entropy(hidden, weight, targets, lm_head_bias=bias, reduction="none", **options)
        expected = cross_entropy(logits, targets, reduction="none", **options)
        np.testing.assert_allclose(losses, expected, rtol=1e-6, atol=1e-6)
    scores = linear_token_scores(hidden, weight, ids, lm_head_bias=bias, top_k=900)
    expected = reference.token_scores(logits, ids, top_k=900)
    for name in ("rank", "argmax", "top_ids"):
        np.testing.assert_array_equal(getattr(scores, name), getattr(expected, name), name)
    assert math.isnan(linear_cross_entropy(hidden, weight, ids, lm_head_bias=np.full(1100, -INF)))


@pytest.mark.usefixtures("has_bf16_matmul")
@pytest.mark.parametrize("value", [NAN, INF, -INF, 3e38])
def test_linear_nan_and_infinity_in_bfloat16_have_the_effect_that_they_have_in_float32(value, rng):
    hidden, weight = whole(rng, 70, 1100, 7, BFLOAT16)
    weight[:, 3] = weight[2:9] = 0
    hidden[1, 2], hidden[2, 3], hidden[3, 6], weight[20, 4] = value, value, -value, value
    ids = rng.integers(0, 1100, 70)
    expected = everything(hidden.astype(FLOAT32), weight.astype(FLOAT32), ids)
    np.testing.assert_allclose(everything(hidden, weight, ids), expected, rtol=1e-6, atol=1e-6)


@few_and_many
@each_kind
@each_options
def test_linear_nan_and_infinity_in_hidden_have_the_effect_that_they_have_among_logits(rows, kind, options, rng):
    for value in (NAN, INF, -INF, 3e38):
        hidden, weight = whole(rng, rows, 1100, 5)
        hidden[1, 2], weight[7], weight[8] = value, 0, -1
        targets = targets_for(rng, kind, rows, 1100)
        targets[1] = 8 if kind == "ids" else np.arange(1100) == 7
        with np.errstate(all="ignore"):
            logits = hidden @ weight.T
        losses = linear_cross_entropy(hidden, weight, targets, reduction="none", **options)
        expected = cross_entropy(logits, targets, reduction="none", **options)
        np.testing.assert_allclose(losses, expected, rtol=1e-6, atol=1e-6)


@few_and_many
@pytest.mark.parametrize("dtypes", [(FLOAT32, FLOAT32), (FLOAT64, FLOAT32), (FLOAT16, BFLOAT16)], ids=str)
@pytest.mark.parametrize("value", [NAN, INF, 1e300, 1e38, 1e-40, 1e-300])
def test_linear_no_operands_make_a_warning(rows, dtypes, value):
    with np.errstate(all="ignore"):
        hidden, weight = np.full((rows, 5), value).astype(dtypes[0]), np.full((30, 5), value).astype(dtypes[1])
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for matrix in (weight, np.asfortranarray(weight), strided(weight)):
            for bias in (None, np.full(30, 1e300), np.full(30, INF), np.full(30, 1e-300)):
                linear_cross_entropy(hidden, matrix, np.zeros(rows, int), lm_head_bias=bias)
                linear_token_scores(hidden, matrix, np.zeros(rows, int), lm_head_bias=bias, top_k=3)


# errors


@pytest.fixture
def _no_product(monkeypatch):
    """Make every multiplication fail."""
    for name in ("Tiles", "MatVec", "BFloat16MatMul", "row_dots"):
        monkeypatch.setattr(_core, name, None)


FOR_BOTH = [linear_cross_entropy, linear_token_scores]
LOSS, SCORES = ([function] for function in FOR_BOTH)


@pytest.mark.parametrize(
    ("functions", "changes", "error", "words"),
    [
        (FOR_BOTH, {"hidden": np.ones((2, 3), int)}, TypeError, ["hidden", "int", "float32"]),
        (FOR_BOTH, {"hidden": np.float64(1)}, ValueError, ["hidden", "()", "(..., D)"]),
        (FOR_BOTH, {"hidden": "text"}, TypeError, ["hidden"]),
        (FOR_BOTH, {"hidden": np.ma.ones((2, 3))}, TypeError, ["hidden", "masked"]),
        (FOR_BOTH, {"lm_head": np.ones((4, 2))}, ValueError, ["lm_head", "(4, 2)", "(V, 3)", "hidden"]),
        (FOR_BOTH, {"lm_head": np.ones((3, 4))}, ValueError, ["lm_head", "(3, 4)", "(V, 3)"]),
        (FOR_BOTH, {"lm_head": np.ones(3)}, ValueError, ["lm_head", "(3,)", "(V, 3)"]),
        (FOR_BOTH, {"lm_head": np.ones((1, 4, 3))}, ValueError, ["lm_head", "(1, 4, 3)"]),
        (FOR_BOTH, {"lm_head": np.ones((4, 3), complex)}, TypeError, ["lm_head", "complex"]),
        (FOR_BOTH, {"lm_head_bias": np.ones(3)}, ValueError, ["lm_head_bias", "(3,)", "(4,)"]),
        (FOR_BOTH, {"lm_head_bias": np.ones((4, 1))}, ValueError, ["lm_head_bias", "(4, 1)", "(4,)"]),
        (FOR_BOTH, {"lm_head_bias": np.ones(4, int)}, TypeError, ["lm_head_bias", "int"]),
        (FOR_BOTH, {"targets": np.array([0, 4])}, IndexError, ["targets[1]", "4", "[0, 4)"]),
        (FOR_BOTH, {"targets": np.array([-1, 0])}, IndexError, ["targets[0]", "-1", "[0, 4)"]),
        (FOR_BOTH, {"targets": np.array([0, 1, 2])}, ValueError, ["targets", "(3,)", "(2,)"]),
        (FOR_BOTH, {"targets": np.array([0.0, 1.0])}, TypeError, ["targets", "float64", "integer"]),
        (FOR_BOTH, {"where": np.ones(3, bool)}, ValueError, ["where", "(3,)", "(2,)"]),
        (FOR_BOTH, {"where": np.ones(2, int)}, TypeError, ["where", "int"]),
        (FOR_BOTH, {"ignore_index": 1.5}, TypeError, ["ignore_index", "1.5"]),
        (FOR_BOTH, {"logit_scale": 0.0}, ValueError, ["logit_scale", "0.0", "positive"]),
        (FOR_BOTH, {"softcap": -1.0}, ValueError, ["softcap", "-1.0", "positive"]),
        (FOR_BOTH, {"workers": 0}, ValueError, ["workers", "0", "positive"]),
        (FOR_BOTH, {"workers": "2"}, TypeError, ["workers", "'2'"]),
        (LOSS, {"weight": np.ones(3)}, ValueError, ["weight", "(3,)", "(4,)"]),
        (LOSS, {"label_smoothing": 1.5}, ValueError, ["label_smoothing", "1.5"]),
        (LOSS, {"z_loss": -1.0}, ValueError, ["z_loss", "-1.0"]),
        (LOSS, {"reduction": "max"}, ValueError, ["reduction", "'max'", "'mean'"]),
        (SCORES, {"targets": np.ones((2, 4))}, ValueError, ["targets", "(2, 4)", "(2,)"]),
        (SCORES, {"top_k": 5}, ValueError, ["top_k", "5", "4"]),
        (SCORES, {"top_k": 1.0}, TypeError, ["top_k", "1.0"]),
    ],
)
@pytest.mark.usefixtures("_no_product")
def test_linear_errors_name_the_argument_before_anything_is_multiplied(functions, changes, error, words):
    arguments = {"hidden": np.ones((2, 3)), "lm_head": np.ones((4, 3)), "targets": np.array([0, 3])} | changes
    for function in functions:
        with fails(error, *words):
            function(**arguments)


@pytest.mark.parametrize("logit", [-1e9, -1e30, np.finfo(np.float32).min])
@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_linear_label_smoothing_of_a_target_far_below_the_other_logits(logit, smoothing):
    bias = np.array([logit, 0, 0], np.float32)
    options = {"weight": [0.0, 1.0, 1.0], "label_smoothing": smoothing, "reduction": "sum"}
    loss = linear_cross_entropy([[1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0], lm_head_bias=bias, **options)
    assert loss == pytest.approx(cross_entropy([bias + np.float32([1, 2, 3])], [0], **options), rel=1e-6)


def test_linear_subnormal_products_have_the_same_bits_on_every_backend(use_backend):
    tiny, near = 2.0**-127 + 2.0**-149, 2.0**-75
    weight, hidden = np.zeros((1, 65), np.float32), np.zeros((1, 65), np.float32)
    weight[0, [0, 64]], hidden[0, [0, 64]] = (tiny, near * (1 + 2.0**-23)), (1, near * (1 - 2.0**-23))
    result, single = np.empty(1), _core.DTYPES["float32"]
    for backend in _core.backends():
        use_backend(backend)
        _core.row_dots(weight, single, hidden, single, np.zeros(1, np.int64), result)
        assert result[0] == tiny, backend


@few_and_many
@pytest.mark.parametrize("order", ["C", "F"])
def test_linear_weight_in_a_memory_map(rows, order, rng, tmp_path):
    hidden, weight = rng.standard_normal((rows, 70), np.float32), rng.standard_normal((3000, 70), np.float32)
    targets = rng.integers(0, 3000, rows)
    np.save(tmp_path / "weight.npy", np.asarray(weight, order=order))
    mapped = np.load(tmp_path / "weight.npy", mmap_mode="r")
    assert linear_cross_entropy(hidden, mapped, targets) == linear_cross_entropy(hidden, np.array(mapped), targets)
