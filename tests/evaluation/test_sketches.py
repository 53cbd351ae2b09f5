"""Comparisons with a sketch of the base: every divergence is unbiased, its errors are right, and all else is exact."""

import json
import lzma

import numpy as np
import pytest
from arrays import BFLOAT16
from places import DATA
from rendered import sglang, vllm

from tokenloss import compare, compare_files, log_softmax, logsumexp
from tokenloss._comparison.sketched import served_columns
from tokenloss.formats import blocks, open_scores, open_sketch, sketch_file, write_sketch

FURTHER = ("reverse_kl", "js", "tv", "hellinger")
EXACT = ("nll", "base_nll", "is_same_top", "kept", "base_margin", "margin", "rounding", "is_identical")


def teacher(rng, n, classes, exponent, dtype=np.float32):
    """Zipf-like logits: exponent 1.1 is flat, 2 peaked."""
    x = -exponent * np.log(np.arange(1, classes + 1)) + rng.normal(0, 0.3, (n, classes))
    return rng.permuted(x, axis=1).astype(dtype)


STUDENTS = {
    "quantized": lambda rng, x: np.round(x * 8) / 8,
    "noisy": lambda rng, x: x + rng.normal(0, 0.05, x.shape),
    "heated": lambda rng, x: x / 1.3,
    "foreign": lambda rng, x: 0.8 * x + rng.normal(0, 1, x.shape),
    "mixed": lambda rng, x: np.logaddexp(
        np.log(0.95) + x - np.logaddexp.reduce(x, 1, keepdims=True), np.log(0.05 / x.shape[1])
    ),
}


def both(tmp_path, x, y, targets=None, numbers=None, divergences=("kl", *FURTHER), **options):
    """The comparison by a sketch, and the exact one."""
    targets = np.zeros(len(x), int) if targets is None else targets
    write_sketch(tmp_path / "base.sketch", [(x, targets, None, *([] if numbers is None else [numbers]))], **options)
    np.save(tmp_path / "other.npy", y)
    result = compare_files(tmp_path / "base.sketch", {"y": tmp_path / "other.npy"}, divergences=divergences)["y"]
    return result, compare(x, y, targets, segment_ids=numbers, divergences=divergences)


def mean_of(comparison, name):
    return comparison.mean_kl if name == "kl" else comparison.divergences[name]


def scores_of(tmp_path, pairs, n, most, **options):
    """Differences from the exact means of random pairs, in standard errors of the draws, by divergence."""
    rng, scores = np.random.default_rng(11), {name: [] for name in ("kl", *FURTHER)}
    for i in range(pairs):
        classes = int(np.exp(rng.uniform(np.log(1000), np.log(most))))
        x = teacher(rng, n, classes, rng.uniform(1, 2.2), (np.float16, np.float32)[i % 2])
        y = [*STUDENTS.values()][i % len(STUDENTS)](rng, x.astype(float)).astype(np.float32)
        if i % 3 == 0:
            masked = np.append(False, rng.random(classes - 1) < 0.3)
            x[:, masked], y[:, masked] = -np.inf, -np.inf
        result, exact = both(tmp_path, x, y, seed=i, **options)
        for name, of in scores.items():
            difference, stderr = mean_of(result, name) - mean_of(exact, name), result.sketch["draws_stderr"][name]
            if stderr < 1e-9 * mean_of(exact, name):  # the total variation of a tail that is lower everywhere
                assert abs(difference) < 1e-6 * mean_of(exact, name)
            else:
                of.append(difference / stderr)
    return {name: np.array(of) for name, of in scores.items()}


def test_divergences_are_unbiased_and_their_errors_right(tmp_path):
    for name, z in scores_of(tmp_path, 30, 40, 4000).items():
        assert abs(z.mean()) < 3.5 / np.sqrt(len(z)), name
        assert 0.7 < z.std() < 1.35, name
        assert abs(z).max() < 4.5, name


@pytest.mark.slow
def test_divergences_are_unbiased_for_large_vocabularies(tmp_path):
    z = np.concatenate([*scores_of(tmp_path, 100, 10, 200_000).values()])
    assert abs(z.mean()) < 0.25
    assert 0.85 < z.std() < 1.2
    assert abs(z).max() < 5


@pytest.mark.parametrize("exponent", [1.1, pytest.param(2.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("student", ["quantized", "noisy", "foreign", "mixed"])
def test_bfloat16_is_unbiased_over_seeds(student, exponent, tmp_path):
    rng, n_seeds = np.random.default_rng(12), 16
    x = teacher(rng, 6, 1500, exponent, BFLOAT16)
    y = STUDENTS[student](rng, x.astype(float)).astype(BFLOAT16)
    pairs = [both(tmp_path, x, y, seed=seed) for seed in range(n_seeds)]
    for name in ("kl", *FURTHER):
        differences = np.array([mean_of(result, name) / mean_of(exact, name) - 1 for result, exact in pairs])
        assert abs(differences.mean()) < 4.5 * differences.std(ddof=1) / np.sqrt(n_seeds) + 1e-6, name


@pytest.mark.parametrize("student", STUDENTS)
def test_the_error_is_small_and_the_bound_is_not(student, tmp_path):
    rng = np.random.default_rng(3)
    x = teacher(rng, 150, 8000, 1.1)
    y = STUDENTS[student](rng, x.astype(float)).astype(np.float32)
    result, exact = both(tmp_path, x, y)
    bound, _ = both(tmp_path, x, y, tail=0)
    assert abs(result.mean_kl / exact.mean_kl - 1) < 0.05
    assert bound.mean_kl < result.mean_kl
    assert bound.mean_kl < 0.9 * exact.mean_kl


@pytest.mark.slow
def test_draws_see_a_student_that_spreads_its_probability_evenly(tmp_path, monkeypatch):
    """With draws proportional to the base's probabilities only, the estimate is far off."""
    rng = np.random.default_rng(7)
    x = teacher(rng, 250, 50_000, 2)
    y = STUDENTS["mixed"](rng, x.astype(float)).astype(np.float32)
    errors = {}
    for epsilon in (0.1, 0.0):
        monkeypatch.setattr(sketch_file, "EPSILON", epsilon)
        pairs = [both(tmp_path, x, y, divergences=("kl",), seed=seed) for seed in range(4)]
        errors[epsilon] = np.sqrt(np.mean([(result.mean_kl / exact.mean_kl - 1) ** 2 for result, exact in pairs]))
    assert errors[0.1] < 0.01
    assert errors[0.0] > 0.02


def test_ties_in_the_tail_are_unbiased(tmp_path):
    rng = np.random.default_rng(9)
    x = np.zeros((40, 3000), np.float16)
    x[:, ::100] = rng.normal(6, 1, (40, 30))
    y = x + np.where(np.arange(3000) % 7 == 0, np.float16(0.5), np.float16(0))
    result, exact = both(tmp_path, x, y)
    for name in ("kl", *FURTHER):
        errors = result.sketch["draws_stderr"][name]
        assert abs(mean_of(result, name) - mean_of(exact, name)) < 4 * errors, name


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("classes", [2, 31, 32, 33, 80, 700])
def test_all_but_divergences_is_exact_and_short_rows_are_wholly_so(classes, dtype, tmp_path):
    rng = np.random.default_rng(classes)
    x, numbers = rng.normal(0, 2, (30, classes)).astype(dtype), np.arange(30) // 5
    y = (x + rng.normal(0, 0.3, x.shape)).astype(dtype)
    targets = np.where(np.arange(30) % 7 == 0, -100, rng.integers(0, classes, 30))
    result, exact = both(tmp_path, x, y, targets, numbers)
    for name in EXACT:
        np.testing.assert_array_equal(getattr(result, name), getattr(exact, name), err_msg=name)
    np.testing.assert_allclose(result.delta_p, exact.delta_p, 1e-9, 1e-9)
    np.testing.assert_allclose(result.base_top_p, exact.base_top_p, 2e-7, 2e-7)
    of_rows = np.where(targets == -100, np.nan, np.exp(x.max(axis=1) - logsumexp(x)))
    np.testing.assert_allclose(result.base_top_p, of_rows, 1e-9)
    for name in ("perplexity", "base_perplexity", "perplexity_ratio", "same_top"):
        assert getattr(result, name) == getattr(exact, name), name
        assert getattr(result, name).stderr == getattr(exact, name).stderr, name
    if classes <= 32:
        np.testing.assert_allclose(result.kl, exact.kl, 1e-5, 1e-7)
        for name in FURTHER:
            np.testing.assert_allclose(result.token_divergences[name], exact.token_divergences[name], 1e-4, 1e-6)


def test_a_model_has_no_divergence_from_its_own_sketch(tmp_path):
    for x in (teacher(np.random.default_rng(0), 20, 3000, 1.3, dtype) for dtype in (np.float16, np.float32)):
        x[:, 5:50] = -np.inf
        with pytest.warns(UserWarning, match="identical to base"):
            result, _ = both(tmp_path, x, x)
        assert not result.kl.any()
        assert not any(one.any() for one in result.token_divergences.values())


MASKS = {  # of base and model: whether the divergence, and the reverse one, are infinite
    "none": ([], [], False, False),
    "same": ([7, 900], [7, 900], False, False),
    "model lacks one": ([7], [7, 900], True, False),
    "base lacks one": ([7, 900], [7], False, True),
    "as many others": ([7], [900], True, True),
}


@pytest.mark.filterwarnings("ignore:.* ha.* an infinite divergence")
@pytest.mark.parametrize("name", MASKS)
def test_classes_that_only_one_model_has_make_a_divergence_infinite(name, tmp_path):
    rng = np.random.default_rng(1)
    x, (base, own, is_infinite, is_reverse_infinite) = rng.normal(0, 1, (6, 1000)).astype(np.float32), MASKS[name]
    y = x + np.float32(0.1) * rng.normal(size=x.shape).astype(np.float32)
    x[:, base], y[:, own] = -np.inf, -np.inf
    result, exact = both(tmp_path, x, y)
    assert np.isinf(result.kl).tolist() == np.isinf(exact.kl).tolist() == [is_infinite] * 6
    reverse = result.token_divergences["reverse_kl"], exact.token_divergences["reverse_kl"]
    assert np.isinf(reverse[0]).tolist() == np.isinf(reverse[1]).tolist() == [is_reverse_infinite] * 6


def test_rows_of_nan_count_as_in_any_comparison(tmp_path):
    x = np.random.default_rng(1).normal(0, 1, (6, 500)).astype(np.float32)
    y = x * np.float32(1.1)
    x[2, 3], y[4, 5] = np.nan, np.nan
    with pytest.warns(UserWarning, match="not finite|nan"):
        result, exact = both(tmp_path, x, y)
    assert np.isnan(result.kl).tolist() == np.isnan(exact.kl).tolist()
    assert result.n_nan == exact.n_nan == 2


def test_quantiles_need_draws_and_a_bound_says_so(tmp_path):
    rng = np.random.default_rng(2)
    x = teacher(rng, 60, 2000, 1.2)
    y = (x + rng.normal(0, 0.1, x.shape)).astype(np.float32)
    many, few, none = (both(tmp_path, x, y, tail=tail)[0] for tail in (48, 8, 0))
    assert 1.0 not in many.kl_quantiles
    assert 0.99 in many.kl_quantiles
    assert not few.kl_quantiles
    assert 1.0 in none.kl_quantiles
    assert "estimated from 32 classes and 48 draws" in many.summary()
    assert "error from the draws" in many.summary()
    assert "is at least" not in few.summary()
    assert "KLD is at least" in none.summary()
    assert "lower bound" in none.summary()
    assert many.to_dict()["sketch"] == many.sketch
    verdicts = {tail: one.check(max_kl=1.0).verdict for tail, one in ((48, many), (8, few), (0, none))}
    assert verdicts == {48: "holds", 8: "holds", 0: "cannot tell"}
    assert many.check(max_kl_quantile={0.5: 1.0}).verdict == "holds"
    assert few.check(max_kl_quantile={0.5: 1.0}).verdict == "cannot tell"


@pytest.mark.filterwarnings("ignore:.* identical to parts")
def test_candidates_may_be_sharded_in_other_ways(tmp_path):
    rng = np.random.default_rng(4)
    x = teacher(rng, 24, 900, 1.3).reshape(8, 3, 900)
    y = (x + rng.normal(0, 0.1, x.shape)).astype(np.float32)
    ids = rng.integers(0, 900, (8, 3))
    targets = np.where(np.arange(3) == 2, -100, np.roll(ids, -1, 1))
    (tmp_path / "parts").mkdir()
    for i in range(4):
        np.savez(tmp_path / "parts" / f"part-{i}.npz", logits=y[2 * i : 2 * i + 2], input_ids=ids[2 * i : 2 * i + 2])
    np.savez(tmp_path / "one.npz", logits=y, input_ids=ids)
    np.savez(tmp_path / "flat.npz", logits=y.reshape(24, 900), targets=targets.reshape(-1))
    write_sketch(tmp_path / "all.sketch", [(x, targets)])
    (tmp_path / "sketches").mkdir()
    for i in range(2):
        write_sketch(tmp_path / "sketches" / f"{i}.sketch", [(x[4 * i : 4 * i + 4], targets[4 * i : 4 * i + 4])])
    others = {name: tmp_path / name for name in ("parts", "one.npz", "flat.npz")}
    result = compare_files(tmp_path / "all.sketch", others, shift=True, state=tmp_path / "state.jsonl")
    again = compare_files(tmp_path / "all.sketch", others, shift=True, state=tmp_path / "state.jsonl")
    apart = compare_files(tmp_path / "sketches", {"parts": tmp_path / "parts"})["parts"]
    exact = compare(x, y, targets, segment_ids=np.arange(8)[:, None])
    for one in (*result.values(), *again.values()):
        np.testing.assert_array_equal(one.kl, result["parts"].kl)
        np.testing.assert_array_equal(one.nll, exact.nll.reshape(-1))
        assert one.n_sequences == 8
        assert one.perplexity_ratio.stderr == exact.perplexity_ratio.stderr
    np.testing.assert_array_equal(apart.nll, result["parts"].nll)


@pytest.mark.filterwarnings("ignore:.* identical to log")
def test_the_kinds_of_scores_are_those_of_any_comparison(tmp_path):
    rng = np.random.default_rng(4)
    x = teacher(rng, 40, 500, 1.3, np.float64)
    log_probs = 0.9 * x - np.logaddexp.reduce(0.9 * x, 1, keepdims=True)
    write_sketch(tmp_path / "a.sketch", [(x, np.arange(40))])
    arrays = {"logits": 0.9 * x, "log_probs": log_probs, "probs": np.exp(log_probs)}
    for name, array in arrays.items():
        np.savez(tmp_path / f"{name}.npz", **{name: array})
    result = compare_files(tmp_path / "a.sketch", {name: tmp_path / f"{name}.npz" for name in arrays})
    for name in arrays:
        np.testing.assert_allclose(result[name].kl, result["logits"].kl, 1e-8, 1e-12)
        np.testing.assert_allclose(result[name].nll, result["logits"].nll, 1e-8, 1e-12)


@pytest.mark.filterwarnings("ignore::tokenloss.NormWarning", "ignore:.* identical to h")
def test_hidden_states_are_compared_by_their_head(tmp_path):
    from tokenloss.formats import open_hidden_states

    rng = np.random.default_rng(4)
    hidden, head = rng.normal(size=(30, 16)).astype(np.float32), rng.normal(size=(600, 16)).astype(np.float32)
    np.save(tmp_path / "hidden.npy", hidden)
    np.save(tmp_path / "head.npy", head)
    np.save(tmp_path / "logits.npy", hidden @ head.T)
    write_sketch(tmp_path / "a.sketch", [(1.1 * hidden @ head.T, np.arange(30))])
    others = {"h": open_hidden_states(tmp_path / "hidden.npy", tmp_path / "head.npy"), "x": tmp_path / "logits.npy"}
    result = compare_files(tmp_path / "a.sketch", others)
    np.testing.assert_allclose(result["h"].kl, result["x"].kl, 1e-4, 1e-6)


REFUSED = {
    "the other way round": (lambda p: (p / "x.npy", p / "a.sketch", {}), "be the base"),
    "two sketches": (lambda p: (p / "a.sketch", p / "b.sketch", {}), "be the base"),
    "other rows": (lambda p: (p / "a.sketch", p / "few.npy", {}), "contains 3 rows"),
    "other classes": (lambda p: (p / "a.sketch", p / "small.npy", {}), "300 classes"),
    "other targets": (lambda p: (p / "a.sketch", p / "targets.npz", {}), "its targets differ from those in"),
    "a temperature": (lambda p: (p / "a.sketch", p / "x.npy", {"temperature": 0.5}), "temperature needs all classes"),
    "some classes": (lambda p: (p / "a.sketch", p / "x.npy", {"classes": 9}), "classes needs all classes"),
    "formulas": (
        lambda p: (p / "a.sketch", p / "x.npy", {"definitions": "llama.cpp"}),
        "definitions needs all classes",
    ),
    "responses of another text": (
        lambda p: (p / "a.sketch", DATA / "vllm.json", {}),
        "has 6 rows .* must have 7",
    ),
    "log-probabilities": (lambda p: (p / "a.sketch", p / "logprobs.jsonl", {}), "be the base, and come with scores"),
    "responses at another temperature": (
        lambda p: (p / "a.sketch", DATA / "vllm.json", {"temperature": 0.5}),
        "temperature needs all classes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_sketch_cannot_tell_is_refused(name, tmp_path):
    x = teacher(np.random.default_rng(0), 6, 400, 1.2)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "few.npy", x[:3])
    np.save(tmp_path / "small.npy", x[:, :300])
    np.savez(tmp_path / "targets.npz", logits=x, targets=np.arange(6)[::-1])
    (tmp_path / "logprobs.jsonl").write_text('{"logprobs": [-1.0, -0.5]}')
    for letter in "ab":
        write_sketch(tmp_path / f"{letter}.sketch", [(x, np.arange(6))])
    make, message = REFUSED[name]
    base, other, options = make(tmp_path)
    with pytest.raises(ValueError, match=message):
        compare_files(base, {"other": other}, **options)


@pytest.mark.filterwarnings("ignore:.* identical to base")
@pytest.mark.parametrize("has_targets", [False, True])
def test_identical_rows_are_found_whatever_the_targets_are(has_targets, tmp_path):
    rng = np.random.default_rng(5)
    x, targets = teacher(rng, 300, 400, 1.2), rng.integers(0, 400, 300)
    write_sketch(tmp_path / "base.sketch", [(x, targets if has_targets else None)])
    np.savez(tmp_path / "same.npz", logits=x, targets=targets)
    assert compare_files(tmp_path / "base.sketch", {"same": tmp_path / "same.npz"})["same"].parity == "same bits"


def test_a_changed_file_is_noticed(tmp_path):
    x = teacher(np.random.default_rng(0), 6, 400, 1.2)
    np.save(tmp_path / "x.npy", x)
    write_sketch(tmp_path / "a.sketch", [(x, np.arange(6))])
    source = open_sketch(tmp_path / "a.sketch")
    write_sketch(tmp_path / "a.sketch", [(x[::-1], np.arange(6)), (x, np.arange(6))])
    with pytest.raises(ValueError, match="changed after it was opened"):
        compare_files(source, tmp_path / "x.npy")


def test_blocks_with_options_are_not_taken(tmp_path):
    source = blocks([(np.zeros((2, 40)), [0, 1])], shift=True)
    with pytest.raises(ValueError, match="blocks without options"):
        write_sketch(tmp_path / "a.sketch", source)


# -- shards: one after the other, here or on a cluster -----------------------------------------------------------------


def shards_of(tmp_path, divided=True):
    """The rows of 8 texts: sketches and candidates that are divided in different ways, or not at all."""
    rng = np.random.default_rng(4)
    x = teacher(rng, 48, 900, 1.3).reshape(8, 6, 900)
    y = (x + rng.normal(0, 0.1, x.shape)).astype(np.float32)
    targets = rng.integers(0, 900, (8, 6))
    for name, array, ends in (("q", y, (2, 3, 6, 8)), ("r", 0.9 * y, (1, 2, 6, 8)), ("all", y, (8,))):
        (tmp_path / name).mkdir(exist_ok=True)
        for i, (start, end) in enumerate(zip((0, *ends), ends, strict=False)):
            np.save(tmp_path / name / f"{i}.npy", array[start:end].astype(np.float32))
    (tmp_path / "base").mkdir(exist_ok=True)
    for i, part in enumerate((slice(3), slice(3, 4), slice(4, 8))):
        write_sketch(tmp_path / "base" / f"{i}.sketch", [(x[part], targets[part])])
    write_sketch(tmp_path / "one.sketch", [(x, targets)])


COLUMNS = "row", "sequence", "position", "target", "kl", "nll", "tv", "file"


@pytest.mark.filterwarnings("ignore:.* identical to")
@pytest.mark.parametrize("base", ["one.sketch", "base"])
def test_any_division_into_shards_gives_the_same_comparison(base, tmp_path):
    from tokenloss.sinks import TokenTable

    shards_of(tmp_path)
    result, tables = {}, {}
    for name, others in {"both": "qr", "q": "q", "one": ["all"]}.items():
        sink = TokenTable(tmp_path / f"{name}.npy")
        options = {"divergences": ("kl", "tv"), "by": "position", "sinks": [sink]}
        result[name] = compare_files(tmp_path / base, {one: tmp_path / one for one in others}, **options)
        table = np.load(tmp_path / f"{name}.npy")
        tables[name] = table[table["name"] != "r"][list(COLUMNS)]
    whole = result["one"]["all"]
    for one in (result["both"]["q"], result["q"]["q"]):
        np.testing.assert_array_equal(one.kl, whole.kl)
        assert one.n_sequences == whole.n_sequences == 8
        assert one.mean_kl.stderr == whole.mean_kl.stderr
        assert one.signature == whole.signature
        assert one.to_dict()["sequences"] == whole.to_dict()["sequences"]
        assert one.to_dict()["groups"] == whole.to_dict()["groups"]
    for name in ("both", "q"):
        np.testing.assert_array_equal(tables[name], tables["one"])


def test_a_comparison_goes_on_from_the_shards_in_its_state(tmp_path, monkeypatch):
    from tokenloss._evaluation import compare

    shards_of(tmp_path)
    options = {"divergences": ("kl", "js"), "state": tmp_path / "state.jsonl"}
    wanted = compare_files(tmp_path / "one.sketch", tmp_path / "q", divergences=("kl", "js"))
    calls, original = [], compare.compare_shard

    def compare_shard(shard, *args, **kwargs):
        calls.append(shard.spec.span.row)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(shard, *args, **kwargs)

    monkeypatch.setattr(compare, "compare_shard", compare_shard)
    with pytest.raises(KeyboardInterrupt):
        compare_files(tmp_path / "one.sketch", tmp_path / "q", **options)
    result = compare_files(tmp_path / "one.sketch", tmp_path / "q", **options)
    assert calls == [0, 12, 18, 18, 36]
    (one,), (other,) = result.values(), wanted.values()
    assert one.to_dict() == other.to_dict()
    np.testing.assert_array_equal(one.kl, other.kl)
    np.save(tmp_path / "q" / "1.npy", np.load(tmp_path / "q" / "1.npy") + 1)
    with pytest.raises(ValueError, match="the candidates or a file changed"):
        compare_files(tmp_path / "one.sketch", tmp_path / "q", **options)


@pytest.mark.slow
def test_a_cluster_compares_shards_as_one_machine(tmp_path):
    distributed = pytest.importorskip("distributed")
    shards_of(tmp_path)
    with distributed.LocalCluster(processes=False, dashboard_address=":0", n_workers=2) as cluster:
        result, wanted = (
            compare_files(tmp_path / "one.sketch", {"q": tmp_path / "q"}, scheduler=scheduler)["q"]
            for scheduler in (cluster.scheduler_address, None)
        )
    assert result.to_dict() == wanted.to_dict()


# -- servers -----------------------------------------------------------------------------------------------------------


def listing(ids, log_q, asked):
    """The response of a server that was asked for these classes, and its three most likely ones."""
    return sglang(ids, log_q, 3, asked)


def served(tmp_path, respond, digits=None, change=None, n=12, classes=700, **options):
    """Comparisons with one sketch of a file of rows and of the responses of a server with the same model."""
    rng = np.random.default_rng(8)
    x = teacher(rng, n * 7, classes, 1.3).reshape(n, 7, classes)
    y = (x + rng.normal(0, 0.2, x.shape)).astype(np.float32)
    ids = rng.integers(0, classes, (n, 7))
    targets = np.where(np.arange(7) == 6, -100, np.roll(ids, -1, 1))
    write_sketch(tmp_path / "base.sketch", [(x, targets)])
    np.save(tmp_path / "rows.npy", y)
    rows = np.concatenate([*open_sketch(tmp_path / "base.sketch").blocks(100)])["ids"].reshape(n, 7, -1)
    log_q = log_softmax(y.astype(float))[:, :-1]
    log_q = log_q.astype(np.float32) if digits is None else np.round(log_q, digits)
    lines = [respond(ids[i], log_q[i], np.unique(rows[i, :-1])) for i in range(n)]
    for line in lines if change else ():
        change(line)
    (tmp_path / "server.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {"divergences": ("kl", *FURTHER)} | options
    return [
        next(iter(compare_files(tmp_path / "base.sketch", {"m": tmp_path / name}, **options).values()))
        for name in ("server.jsonl", "rows.npy")
    ]


@pytest.mark.parametrize("respond", [listing, lambda ids, log_q, asked: vllm(ids, log_q, log_q.shape[1])])
def test_a_server_that_lists_the_classes_of_a_sketch_is_compared_as_its_rows_are(respond, tmp_path):
    result, wanted = served(tmp_path, respond, by="position")
    mask = wanted.kept
    np.testing.assert_allclose(result.nll, wanted.nll[mask], 1e-6)
    np.testing.assert_array_equal(result.base_nll, wanted.base_nll[mask])
    np.testing.assert_array_equal(result.is_same_top, wanted.is_same_top[mask])
    np.testing.assert_allclose(result.kl, wanted.kl[mask], 1e-4, 1e-5)
    for name in FURTHER:
        np.testing.assert_allclose(result.token_divergences[name], wanted.token_divergences[name][mask], 1e-3, 1e-4)
    assert result.n_sequences == wanted.n_sequences == 12
    assert result.mean_kl.stderr == pytest.approx(wanted.mean_kl.stderr, rel=1e-4)
    assert result.perplexity == pytest.approx(wanted.perplexity, rel=1e-6)
    assert result.sketch == {
        "top": 32,
        "tail": 48,
        "draws_stderr": pytest.approx(wanted.sketch["draws_stderr"], rel=1e-3),
    }
    assert result.check(max_kl=9.0, min_same_top=0.01).verdict == "holds"
    assert result.parity != "same bits"


@pytest.mark.parametrize(("digits", "tolerance"), [(6, 1e-3), (4, 5e-3)])
def test_rounded_log_probabilities_keep_the_divergence(digits, tolerance, tmp_path):
    result, wanted = served(tmp_path, listing, digits)
    assert result.mean_kl == pytest.approx(wanted.mean_kl, rel=tolerance, abs=4 * wanted.sketch["draws_stderr"]["kl"])
    for name in FURTHER:
        errors = wanted.sketch["draws_stderr"][name]
        assert result.divergences[name] == pytest.approx(wanted.divergences[name], rel=2 * tolerance, abs=4 * errors)


def test_a_tail_below_the_rounding_is_unbiased(tmp_path):
    """Where 1 - sum over the likely classes is only rounding, the tail is centered at the base's own mass."""
    rng = np.random.default_rng(2)
    x = teacher(rng, 400, 600, 1.2)
    y = (x + rng.normal(0, 0.3, x.shape)).astype(np.float32)
    targets = np.zeros(400, int)
    x[:, :20] += 14
    y[:, :20] += 14
    exact = compare(x, y, targets).mean_kl
    result = []
    for seed in range(6):
        write_sketch(tmp_path / "a.sketch", [(x, targets)], seed=seed)
        (rows,) = open_sketch(tmp_path / "a.sketch").blocks(400)
        facts = open_sketch(tmp_path / "a.sketch").file.sketch
        log_q = np.round(np.take_along_axis(log_softmax(y.astype(float)), rows["ids"].astype(int), 1), 5)
        columns = served_columns(rows, facts, 600, log_q, np.zeros(400), np.zeros(400, int), 1e-5, ())
        result.append(columns["kl"].mean())
        assert (columns["kl"] >= 0).all()
    assert np.mean(result) == pytest.approx(exact, rel=5e-3)


def without(name):
    return lambda line: line["meta_info"].pop(name)


def set_to(name, value):
    def change(line):
        line["meta_info"][f"input_{name}"][3][0][0] = value

    return change


SERVED = {
    "no classes that were asked for": (without("input_token_ids_logprobs"), "lists no log-probability of class"),
    "not its own likeliest": (without("input_top_logprobs"), "does not show the most likely class"),
    "a sentinel": (set_to("token_ids_logprobs", -9999.0), "token 3 lists no log-probability of class"),
    "no number": (set_to("token_ids_logprobs", "x"), r"input_token_ids_logprobs\[3\]\[0\]\[0\] is 'x'"),
    "probabilities": (
        lambda line: [one.__setitem__(0, one[0] / 9) for own in line["meta_info"]["input_token_ids_logprobs"][1:]
                      for one in own] and line["meta_info"].pop("input_top_logprobs"),
        "sum of probabilities|most likely class",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SERVED)
def test_a_server_that_does_not_is_refused(name, tmp_path):
    change, message = SERVED[name]
    with pytest.raises(ValueError, match=message) as raised:
        served(tmp_path, listing, change=change)
    assert "server.jsonl" in str(raised.value)


def test_responses_and_rows_are_not_compared_at_once(tmp_path):
    served(tmp_path, listing)
    others = {"rows": tmp_path / "rows.npy", "server": tmp_path / "server.jsonl"}
    with pytest.raises(ValueError, match="by the most likely classes; it must be compared by all classes"):
        compare_files(tmp_path / "base.sketch", others)


def test_a_class_that_is_impossible_for_the_server_makes_the_divergence_infinite(tmp_path):
    with pytest.warns(UserWarning, match="infinite divergence"):
        result, _ = served(tmp_path, listing, change=set_to("token_ids_logprobs", float("-inf")))
    assert np.isinf(result.mean_kl)


# -- real models -------------------------------------------------------------------------------------------------------


def test_a_real_pair_is_within_two_percent(tmp_path):
    paths = {}
    for name in ("f16", "q4_0"):
        (packed,) = (DATA / "clients").glob(f"model-{name}*.kld.xz")
        paths[name] = tmp_path / f"{name}.kld"
        paths[name].write_bytes(lzma.decompress(packed.read_bytes()))
    base = open_scores(paths["f16"])
    (rows,) = base.blocks(1000)
    write_sketch(tmp_path / "base.sketch", [(rows, base.targets.reshape(-1))], kind="log_probs")
    exact = compare_files(paths["f16"], {"q": paths["q4_0"]})["q"]
    result = compare_files(tmp_path / "base.sketch", {"q": paths["q4_0"]})["q"]
    assert abs(result.mean_kl / exact.mean_kl - 1) < 0.02
    assert result.perplexity == exact.perplexity


@pytest.mark.parametrize("bits", [4, 6])
def test_a_real_model_with_rounded_logits_is_within_two_percent(bits, tmp_path):
    with np.load(DATA / "whisper-tiny-en.npz") as file:
        x, targets = file["logits"], file["targets"]
    step = np.float32(2.0 ** (2 - bits))
    y = (np.round(x.astype(np.float32) / step) * step).astype(np.float16)
    kls = [both(tmp_path, x, y, targets, divergences=("kl",), seed=seed) for seed in range(8)]
    assert abs(np.mean([result.mean_kl for result, _ in kls]) / kls[0][1].mean_kl - 1) < 0.02


# -- errors over texts -------------------------------------------------------------------------------------------------


def coverage(kl, truth, groups, repeats=4000):
    """The share of 95 % t intervals over sequences that hold the mean of the population."""
    from scipy.stats import t

    chosen = np.random.default_rng(5).integers(0, len(kl), (repeats, groups))
    means = kl.mean(1)[chosen]
    reach = t.ppf(0.975, groups - 1) * means.std(1, ddof=1) / np.sqrt(groups)
    return np.mean(abs(means.mean(1) - truth) <= reach)


@pytest.mark.parametrize("tail", [4, 48])
def test_clustered_intervals_cover_as_those_of_the_exact_divergence(tail, tmp_path):
    pytest.importorskip("scipy")
    rng = np.random.default_rng(6)
    x = teacher(rng, 4000, 300, 1.4)
    sizes = np.repeat(0.1 * np.exp(0.15 * rng.normal(size=400)), 10)[:, None]
    y = (x + sizes * rng.normal(size=x.shape)).astype(np.float32)
    result, exact = both(tmp_path, x, y, numbers=np.arange(4000) // 10, divergences=("kl",), tail=tail)
    truth = exact.kl.mean()
    for groups in (20, 100):
        covers = [coverage(one.kl.reshape(400, 10), truth, groups) for one in (result, exact)]
        assert abs(covers[0] - covers[1]) < 0.02
