"""Parity: rows of the same bits, ties and decisive flips by the base's margin, the verdict, and its gates."""

import clients
import ml_dtypes
import numpy as np
import pytest

from tokenloss import ComparisonMeter, compare, compare_files, linear_compare
from tokenloss.formats import open_hidden_states, open_scores

DTYPES = ["float16", ml_dtypes.bfloat16, "float32", "float64"]
BITS = {2: 11, 4: 24, 8: 53}  # of the significand, by the size of a float


def step_of(logits, dtype):
    """Two units in the last place."""
    bits = 8 if dtype is ml_dtypes.bfloat16 else BITS[np.dtype(dtype).itemsize]
    return 2.0 ** (np.floor(np.log2(np.abs(logits))) + 2 - bits)


@pytest.fixture(scope="module")
def models():
    """Logits of a base, 40 texts of 25 tokens and 64 classes, and targets."""
    rng = np.random.default_rng(3)
    base = (4 * rng.normal(size=(40, 25, 64))).astype(np.float32)
    return base, rng.integers(0, 64, (40, 25)), rng


# columns


@pytest.mark.parametrize("classes", [1, 2, 3, 16, 100, 5000, 40000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_as_numpy_has_them(dtype, classes, rng):
    base = (4 * rng.normal(size=(9, classes))).astype(dtype)
    base[4, :3] = base[4].max()  # equal ones: the first is the most likely
    for other_dtype in ("float16", "float32", "float64"):
        other = (base.astype(np.float64) + 0.01 * rng.normal(size=base.shape)).astype(other_dtype)
        other[[3, 5]] = base[[3, 5]].astype(other_dtype)
        other[5, -1] = np.nextafter(other[5, -1], other[5, -1].dtype.type(100))  # one bit of the last class
        result = compare(base, other)
        exact, others = base.astype(np.float64), other.astype(np.float64)
        same = [a.tobytes() == b.tobytes() for a, b in zip(exact, others, strict=True)]
        assert result.is_identical.tolist() == same
        assert not same[5]
        assert result.n_identical == sum(same)
        rows, order = np.arange(9), np.argsort(-exact, axis=1, kind="stable")
        if classes == 1:
            assert np.isinf(result.base_margin).all()
            continue
        tops = [(exact[rows, order[:, i]], others[rows, order[:, i]]) for i in (0, 1)]
        np.testing.assert_array_equal(result.base_margin, tops[0][0] - tops[1][0])
        np.testing.assert_array_equal(result.margin, tops[0][1] - tops[1][1])
        steps = [step_of(top, one) for top, _ in tops for one in (dtype, other_dtype)]
        np.testing.assert_array_equal(result.rounding, np.max(steps, axis=0))


@pytest.mark.parametrize("classes", [1, 3, 16, 5000])
def test_classes_that_are_masked_are_no_second(classes):
    base = np.full((3, classes), -np.inf, np.float32)
    base[:, 0] = [5, 5, 1]
    base[2, -1] = 2
    result = compare(base, np.zeros((3, classes), np.float32))
    assert result.base_margin.tolist() == [np.inf] * 2 + [np.inf if classes == 1 else 1]
    assert np.isnan(result.margin).tolist() == [True, True, classes == 1]


@pytest.mark.parametrize("classes", [2, 3, 16, 5000])
def test_classes_below_the_floor_of_llama_cpp_may_be_second(classes, rng):
    base = np.full((24, classes), -60, np.float32)
    base[:, 0], base[:, -1] = np.log1p(-np.exp(-20)), -20
    base = rng.permuted(base, axis=1)
    other = rng.normal(size=base.shape).astype(np.float32)
    result = compare(base, other, np.zeros(24, int), definitions="llama.cpp")
    first, second = np.argsort(-base, axis=1)[:, :2].T
    rows = np.arange(24)
    np.testing.assert_array_equal(result.base_margin, base[rows, first].astype(float) - base[rows, second])
    np.testing.assert_array_equal(result.margin, other[rows, first].astype(float) - other[rows, second])


@pytest.mark.parametrize("layout", ["swapped", "strided", "class_major"])
def test_layouts_have_the_same_bits(layout, models):
    base, targets, _ = models
    other = {
        "swapped": base.astype(">f4"),
        "strided": np.repeat(base, 2, axis=-1)[..., ::2],
        "class_major": np.ascontiguousarray(base.transpose(2, 0, 1)).transpose(1, 2, 0),
    }[layout]
    result = compare(base, other, targets)
    assert (result.parity, result.n_identical, result.max_abs_logprob) == ("same bits", 1000, 0)


def test_probabilities_and_scales(models):
    base = models[0][0].astype(np.float64)
    probs = np.exp(base) / np.exp(base).sum(-1, keepdims=True)
    result = compare(probs, probs, kind="probs")
    ordered = np.sort(np.log(probs), axis=-1)
    np.testing.assert_allclose(result.base_margin, ordered[:, -1] - ordered[:, -2], rtol=1e-12)
    assert ((result.rounding >= 2**-52) & (result.rounding <= 2**-50)).all()  # relative to the probability


def test_hidden_states_as_their_logits(rng):
    hidden, weight = rng.normal(size=(30, 16)).astype("f4"), rng.normal(size=(5000, 16)).astype("f4")
    other = weight.copy()
    other[-1, 0] += 1  # only the last tile differs
    targets, states = rng.integers(0, 5000, 30), hidden.copy()
    states[::2, 0] = 0
    result = linear_compare(states, weight, states, other, targets)
    logits = [states.astype("f8") @ one.astype("f8").T for one in (weight, other)]
    expected = compare(*logits, targets)
    np.testing.assert_allclose(result.base_margin, expected.base_margin, atol=1e-5)
    np.testing.assert_allclose(result.margin, expected.margin, atol=1e-5)
    assert linear_compare(states, weight, states, weight, targets).parity == "same bits"
    assert result.n_identical < 30


@pytest.mark.filterwarnings("ignore:the hidden states seem to lack")
@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_of_hidden_states_is_that_of_their_dtype(dtype, rng, tmp_path):
    hidden, weight = rng.normal(size=(30, 16)).astype(dtype), rng.normal(size=(50, 16)).astype("f4")
    bits = {"float16": 11, "float32": 24, "float64": 53}.get(dtype, 8)
    result = linear_compare(hidden, weight, hidden, weight + np.float32(0.01))
    logits = np.sort(np.abs(hidden.astype("f8") @ weight.astype("f8").T))
    assert set(np.log2(result.rounding)) <= set(np.floor(np.log2(logits)).ravel() + 2 - bits)
    safetensors = pytest.importorskip("safetensors.numpy")
    for name, shift in ("a", 0), ("b", 0.01):
        np.savez(tmp_path / f"{name}.npz", hidden_states=hidden, targets=np.zeros(30, int))
        safetensors.save_file({"lm_head.weight": weight + np.float32(shift)}, tmp_path / f"{name}.safetensors")
    sources = [open_hidden_states(tmp_path / f"{name}.npz", tmp_path / f"{name}.safetensors") for name in "ab"]
    by_tiles = compare_files(sources[0], {"b": sources[1]})["b"].rounding
    np.testing.assert_array_equal(by_tiles, result.rounding)
    np.savez(tmp_path / "c.npz", logits=(hidden.astype("f8") @ weight.astype("f8").T), targets=np.zeros(30, int))
    by_logits = compare_files(tmp_path / "c.npz", {"b": sources[1]})["b"].rounding
    np.testing.assert_allclose(np.log2(by_logits), np.log2(result.rounding), atol=1)


def test_blocks_and_merged_meters_have_the_same_parity(models):
    base, targets, rng = models
    ids = np.repeat(np.arange(40), 25).reshape(40, 25)
    other = base + np.float32(0.1) * rng.normal(size=base.shape).astype("f4")
    other[:, :4] = base[:, :4]
    other[7] = base[7]
    expected = compare(base, other, targets, segment_ids=ids)
    meters = ComparisonMeter(), ComparisonMeter()
    for start in range(0, 1000, 77):
        part = slice(start, start + 77)
        flat = [array.reshape(1000, -1)[part] for array in (base, other)]
        meters[start > 500].update(*flat, targets.reshape(-1)[part], segment_ids=ids.reshape(-1)[part])
    meters[0].merge(meters[1])
    actual = meters[0].result()
    assert actual.to_dict() == expected.to_dict()
    first = np.where(np.arange(40) == 7, -1, 4)
    assert actual.sequences["first_difference"].tolist() == first.tolist()
    flips = base.argmax(-1) != other.argmax(-1)
    assert actual.sequences["first_flip"].tolist() == np.where(flips.any(1), flips.argmax(1), -1).tolist()


# verdicts


@pytest.mark.parametrize(
    ("dtype", "reach", "decisive"),
    [("float32", 0, 3), ("float16", 0, 1), (ml_dtypes.bfloat16, 0, 1), ("float32", 0.003, 2), ("float32", 0.02, 1),
     ("float32", 0.2, 0)],
)  # fmt: skip
def test_margins_are_told_apart(dtype, reach, decisive, tmp_path):
    margins = [0.143, 0.007, 0.0015]
    base = np.zeros((40, 8))
    base[:, 0] = 3
    base[:3, 0] = 5  # two units in the last place: 2**-7 in float16, 2**-4 in bfloat16
    exact = np.float64 if dtype == "float32" else dtype
    base[:3, 1] = [5 - margin for margin in margins]
    other, second = base.copy(), base.copy()
    other[:3, 1] = 5.2
    second[5:, 0] += reach
    names = {"base": base, "other": other.astype(dtype), "second": second}
    for name, scores in names.items():
        np.save(tmp_path / f"{name}.npy", scores)
    paths = [tmp_path / f"{name}.npy" for name in names]
    result = compare_files(paths[0], {"other": open_scores(paths[1])}, noise=paths[2] if reach else None)
    one = result["other"]
    assert (one.tied_flips, one.decisive_flips) == (3 - decisive, decisive), exact
    assert one.parity == ("drift" if decisive else one.parity)
    (gate,) = result.check(max_decisive_flips=decisive).gates
    assert gate.verdict == "holds"
    if reach:  # given to `check` alone
        plain = compare(base, other.astype(dtype))
        assert plain.decisive_flips > decisive or not decisive
        assert plain.check(max_decisive_flips=decisive, noise=result.noise).verdict == "holds"


@pytest.mark.parametrize("scale", [1, 4])
def test_another_precision_makes_almost_no_decisive_flips(scale, models):
    base, targets, _ = models
    result = compare(scale * base, (scale * base).astype("f2"), targets)
    assert result.decisive_flips == 0
    assert (result.parity, result.n_identical) == ("within noise", 0)
    assert compare(base, base, targets).parity_reason == "in all 1,000 rows"


def test_one_row_of_inverted_logits_is_found(models):
    base, targets, rng = models
    other = base.astype("f2")
    other[7, 13] *= -1
    result = compare(base, other, targets, segment_ids=np.arange(40)[:, None])
    assert (result.parity, result.decisive_flips) == ("broken", 1)
    assert result.parity_reason.startswith("position 13 of sequence 7 ")
    assert compare(base, other, targets).parity_reason.startswith("row 188 ")
    other[3, 1, 5] = np.nan
    assert compare(base, other, targets).parity_reason.startswith("row 76 has a divergence of inf")
    others = compare(base, rng.permuted(base, axis=-1), targets)
    assert (others.parity, others.parity_reason[:10]) == ("broken", "the median")
    drift = compare(base, base + rng.normal(size=base.shape, scale=0.3), targets)
    assert drift.parity == "drift"


def test_a_third_run_is_within_the_noise_of_a_second(models, tmp_path):
    base, targets, rng = models
    runs = [base + np.float32(0.01) * rng.normal(size=base.shape).astype("f4") for _ in range(9)]
    noise = compare(base, runs[0], targets)
    for run in runs[1:]:
        plain = compare(base, run, targets)
        assert plain.parity == "drift"
        assert plain.check(max_decisive_flips=0, noise=noise).verdict == "holds"
    np.savez(tmp_path / "base.npz", logits=base, targets=targets)
    for name, run in zip("abcd", [*runs[:3], -base], strict=True):
        np.save(tmp_path / f"{name}.npy", run)
    paths = [tmp_path / f"{name}.npy" for name in "abcd"]
    result = compare_files(tmp_path / "base.npz", paths[:2], noise=paths[2])
    assert {one.parity for one in result.values()} == {"within noise"}
    broken = compare_files(tmp_path / "base.npz", paths[:2], noise=paths[3])
    assert {one.parity for one in broken.values()} == {"drift"}
    assert broken[str(paths[0])].parity_reason.endswith("the second run is broken itself")


# gates


def test_gates_of_counts(models, command, tmp_path):
    base, targets, _ = models
    other = base.astype("f2")
    other[7, 13] *= -1
    result = compare(base, other, targets)
    largest = result.max_abs_logprob
    logs = [x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (base.astype("f8"), other.astype("f8"))]
    changes = np.take_along_axis(logs[1] - logs[0], targets[..., None], -1)
    assert largest == pytest.approx(np.abs(changes).max(), rel=1e-5)
    for limits, verdict in (
        ({"max_decisive_flips": 1}, "holds"), ({"max_decisive_flips": 0}, "fails"),
        ({"max_abs_logprob": largest}, "holds"), ({"max_abs_logprob": 0.99 * largest}, "fails"),
    ):  # fmt: skip
        (one,) = result.check(**limits).gates
        assert (one.verdict, one.figure) == (verdict, getattr(result, one.gate) if "abs" in one.gate else 1)
        assert np.isnan(one.interval).all()
    for bad in (-1, 0.5, True):
        with pytest.raises((TypeError, ValueError), match="max_decisive_flips"):
            result.check(max_decisive_flips=bad)
    with pytest.raises(ValueError, match=r"max_abs_logprob.*targets"):
        compare(base, other).check(max_abs_logprob=1)
    np.savez(tmp_path / "base.npz", logits=base, targets=targets)
    np.save(tmp_path / "other.npy", other)
    argv = "compare", tmp_path / "base.npz", tmp_path / "other.npy"
    assert command(*argv, "--max-decisive-flips", "1", "--max-abs-logprob", "99")[0] == 0
    status, out, _ = command(*argv, "--max-decisive-flips", "0")
    assert status == 3
    assert "max_decisive_flips" in out


# responses


def chats(tmp_path, name, logs, tokens, k, decimals=None):
    """Responses of a server that lists the k likeliest classes of each token, and the token itself."""
    logs, lines = logs if decimals is None else logs.round(decimals), []
    for own, ids in zip(logs, tokens, strict=True):
        tops = [np.argsort(-row, kind="stable")[:k] for row in own]
        rows = zip(own, ids, tops, strict=True)
        lines.append(clients.chat(*((f"<{i}>", row[i], [(f"<{c}>", row[c]) for c in top]) for row, i, top in rows)))
    return clients.save_lines(tmp_path / f"{name}.jsonl", *lines)


@pytest.mark.parametrize("decimals", [None, 4])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_responses_as_numpy_has_them(k, decimals, tmp_path, rng):
    base = 2 * rng.normal(size=(20, 15, 30))
    base[:, ::5, 1] = base[:, ::5].max(axis=-1) - 1e-6  # a margin below the error of float32
    other = base + 0.3 * rng.normal(size=base.shape) * (rng.random((20, 15, 1)) < 0.6)
    logs = [one - np.log(np.exp(one).sum(-1, keepdims=True)) for one in (base, other)]
    logs = [one if decimals is None else one.round(decimals) for one in logs]
    tokens = rng.integers(0, 30, (20, 15))
    tokens[:, ::2] = base[:, ::2].argmax(-1)
    paths = [chats(tmp_path, name, one, tokens, k) for name, one in zip("ab", logs, strict=True)]
    result = compare_files(paths[0], {"b": paths[1]})["b"]
    changes = np.abs(np.take_along_axis(logs[0] - logs[1], tokens[..., None], -1))[..., 0]
    assert result.max_abs_logprob == changes.max()
    listed = [-np.sort(-one, axis=-1)[..., :k] for one in logs]
    same = (listed[0] == listed[1]).all(-1) & (changes == 0)
    assert result.is_identical.tolist() == same.reshape(-1).tolist()
    assert result.n_identical == same.sum() > 0
    order = np.argsort(-logs[0], axis=-1, kind="stable")[..., :2]
    tops = np.take_along_axis(logs[0], order, -1)
    margins = (tops[..., 0] - tops[..., 1]).reshape(-1)
    # the token itself, last in a list of two, may have been added to a list of one
    is_unknown = (k == 1) | ((k == 2) & (order[..., 1] == tokens).reshape(-1) & (margins > 0))
    margins = np.where(is_unknown, np.nan, margins)
    np.testing.assert_array_equal(result.base_margin, margins)
    others = np.take_along_axis(logs[1], order, -1)
    expected = (others[..., 0] - others[..., 1]).reshape(-1)
    assert not (np.isnan(result.base_margin) & ~np.isnan(result.margin)).any()
    known = ~np.isnan(result.margin)
    assert known.any() == (k > 1)
    np.testing.assert_array_equal(result.margin[known], expected[known])
    flips = result.is_top_known & ~result.is_same_top
    rounding = 2 * (1e-5 if decimals is None else 5e-5)
    ties, unknown = flips & (margins <= rounding), flips & is_unknown
    counts = result.tied_flips, result.decisive_flips, result.unknown_flips
    assert counts == (ties.sum(), flips.sum() - ties.sum() - unknown.sum(), unknown.sum())
    assert flips.sum() > 10
    positions = [np.flatnonzero(row)[:1].tolist() or [-1] for row in ~same]
    assert result.sequences["first_difference"].tolist() == [one for (one,) in positions]
    positions = [np.flatnonzero(row)[:1].tolist() or [-1] for row in flips.reshape(20, 15)]
    assert result.sequences["first_flip"].tolist() == [one for (one,) in positions]
    (gate,) = result.check(max_decisive_flips=int(flips.sum()) - 1).gates
    is_sure = counts[1] + counts[2] < flips.sum()
    assert gate.verdict == ("holds" if is_sure else "cannot tell" if unknown.any() else "fails")


@pytest.mark.filterwarnings("ignore:same. identical to base")
def test_verdicts_of_responses(tmp_path, rng):
    base = 2 * rng.normal(size=(20, 15, 30))
    tokens = base.argmax(-1)
    logs = base - np.log(np.exp(base).sum(-1, keepdims=True))
    other = base + 0.1 * rng.normal(size=base.shape)
    drifted = other - np.log(np.exp(other).sum(-1, keepdims=True))
    broken = logs.copy()
    broken[7, 3] = broken[7, 3][::-1]
    broken[7, 3, tokens[7, 3]] = -40
    runs = {"base": logs, "same": logs, "rounded": logs.round(5), "drifted": drifted, "broken": broken}
    paths = {name: chats(tmp_path, name, one, tokens, 5) for name, one in runs.items()}
    result = compare_files(paths["base"], {name: paths[name] for name in runs if name != "base"})
    assert {name: one.parity for name, one in result.items()} == {
        "same": "same bits", "rounded": "within noise", "drifted": "drift", "broken": "broken",
    }  # fmt: skip
    assert "position 3 of sequence 7 " in result["broken"].parity_reason
    second = base + 0.1 * rng.normal(size=base.shape)
    noise = chats(tmp_path, "noise", second - np.log(np.exp(second).sum(-1, keepdims=True)), tokens, 5)
    beside = compare_files(paths["base"], {"drifted": paths["drifted"]}, noise=noise)
    assert beside["drifted"].parity == "within noise"
    assert beside.check(max_decisive_flips=0).verdict == "holds"
    assert result["drifted"].decisive_flips > 0 == beside["drifted"].decisive_flips
