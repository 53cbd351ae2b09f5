"""tokenloss compare and compare_files of several candidates: names, sizes, unequal vocabularies, hidden states."""

import itertools
import json
import shutil
import warnings
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from commands import assert_refused
from files import held_at_most
from reference import log_softmax

import tokenloss
from tokenloss import compare_files, sinks
from tokenloss._evaluation import plan
from tokenloss._evaluation.compare import token_types
from tokenloss.formats import llama_cpp, open_hidden_states, open_scores

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")

ROWS, V, D = 40, 13, 8
TOKEN_COLUMNS = ("nll", "base_nll", "kl", "delta_p", "is_same_top", "kept", "base_top_p")


@pytest.fixture
def candidates(tmp_path):
    """A base and three candidates in files of their own formats and kinds, and arrays of their logits."""
    rng = np.random.default_rng(23)
    base, targets = rng.normal(size=(4, 10, V), scale=2).astype(np.float32), rng.integers(V, size=(4, 10))
    targets[1, 3] = -100
    logits = {
        name: base + rng.normal(size=base.shape, scale=scale).astype(np.float32)
        for name, scale in (("a", 0.5), ("b", 0.01), ("c", 0.2))
    }
    np.savez(tmp_path / "base.npz", logits=base, targets=targets)
    np.save(tmp_path / "a.npy", logits["a"].reshape(ROWS, V))
    np.savez_compressed(tmp_path / "b.npz", logits=logits["b"])
    np.save(tmp_path / "c.npy", np.asfortranarray(logits["c"]))
    files = {"a": tmp_path / "a.npy", "b": tmp_path / "b.npz", "c": tmp_path / "c.npy"}
    return SimpleNamespace(path=tmp_path, base=base, targets=targets, logits=logits, files=files)


def without_places(figures):
    left_out = "name", "file", "size", "candidates", "tiers"  # tiers are those of several candidates
    return {name: value for name, value in figures.items() if name not in left_out}


@pytest.mark.parametrize("block_rows", [3, 1000])
@pytest.mark.parametrize("definitions", ["exact", "llama.cpp"])
def test_candidates_have_the_bits_of_runs_of_their_own(definitions, block_rows, candidates, compare_json, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_ROWS", block_rows)
    base, files = candidates.path / "base.npz", candidates.files
    options = "--definitions", definitions
    result = compare_json(base, *(f"{name}={path}" for name, path in files.items()), *options)
    alone = {name: compare_json(base, path, *options) for name, path in files.items()}
    assert [figures["name"] for figures in result["candidates"]] == ["b", "c", "a"]  # by divergence
    assert [figures["file"] for figures in result["candidates"]] == [str(files[name]) for name in "bca"]
    for figures in result["candidates"]:
        assert without_places(result | figures) == without_places(alone[figures["name"]])
    arrays = compare_files(base, files, definitions=definitions)
    assert list(arrays) == ["a", "b", "c"]  # in the order given
    for name, comparison in arrays.items():
        (own,) = compare_files(base, files[name], definitions=definitions).values()
        assert comparison.mean_kl == alone[name]["mean_kl"]
        for column in TOKEN_COLUMNS:
            np.testing.assert_array_equal(getattr(comparison, column), getattr(own, column))
        assert comparison.base_nll is arrays["a"].base_nll or np.shares_memory(
            comparison.base_nll, arrays["a"].base_nll
        )


def test_compare_files_is_compare_of_arrays(candidates):
    ids = np.arange(4)[:, None]
    for name, result in compare_files(candidates.path / "base.npz", candidates.files).items():
        expected = tokenloss.compare(candidates.base, candidates.logits[name], candidates.targets, segment_ids=ids)
        assert result.to_dict() | expected.to_dict() == result.to_dict()
        for column in TOKEN_COLUMNS:
            np.testing.assert_array_equal(getattr(result, column), getattr(expected, column).reshape(-1))


def test_name_of_the_array_of_targets(candidates, command):
    np.savez(candidates.path / "named.npz", logits=candidates.base, mine=candidates.targets)
    result = compare_files(open_scores(candidates.path / "named.npz", targets_array="mine"), candidates.files)
    for name, one in compare_files(candidates.path / "base.npz", candidates.files).items():
        assert result[name].perplexity == one.perplexity
    argv = candidates.path / "named.npz", candidates.files["a"], "--targets-array", "other"
    assert_refused(command("compare", *argv), "named.npz", "other")


def test_one_path_is_its_own_name(candidates):
    path = candidates.files["a"]
    assert list(compare_files(candidates.path / "base.npz", path)) == [str(path)]


def test_shift_warning_of_compare_files(tmp_path):
    rng = np.random.default_rng(1)
    ids = rng.integers(50, size=400)
    logits = rng.normal(size=(400, 50))
    logits[np.arange(400), np.roll(ids, -1)] += 6
    np.savez(tmp_path / "base.npz", logits=logits, targets=ids)
    np.save(tmp_path / "near.npy", 0.99 * logits)
    with pytest.warns(tokenloss.ShiftWarning, match="shift") as caught:
        compare_files(tmp_path / "base.npz", {"near": tmp_path / "near.npy"})
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = compare_files(tmp_path / "base.npz", {"near": tmp_path / "near.npy"}, shift=True)["near"]
    assert (result.count, result.same_top) == (399, 1)


def test_nan_and_infinite_divergences_are_warned_of(tmp_path, command):
    base, other, targets = np.ones((20, 3)), np.ones((20, 3)), np.zeros(20, int)
    other[[1, 7], 1], other[3, 0], other[5, 2], targets[5] = np.nan, -np.inf, np.nan, -100
    np.savez(tmp_path / "base.npz", logits=base, targets=targets)
    np.save(tmp_path / "other.npy", other)
    with pytest.warns(UserWarning, match="of 19 tokens") as record:
        result = compare_files(tmp_path / "base.npz", {"q": tmp_path / "other.npy"})
    messages = [str(one.message) for one in record]
    expected = ["q: 2 of 19 tokens have a divergence or loss of nan"]
    assert messages == [*expected, "q: 1 of 19 tokens has an infinite divergence or loss"]
    assert "count=19, n_infinite=1, n_nan=2, " in repr(result["q"])
    status, out, err = command("compare", tmp_path / "base.npz", f"q={tmp_path / 'other.npy'}")
    assert (status, out) == (0, result.summary() + "\n")
    assert err.splitlines() == [f"tokenloss: warning: {message}" for message in messages]


def test_probabilities_of_0_are_warned_of_where_they_make_a_loss_infinite(tmp_path, command):
    base, other, targets = np.full((9, 4), 0.25), np.full((9, 4), 0.25), np.zeros(9, int)
    other[5] = 0, 0, 0.5, 0.5
    words = "a probability of 0 for a target makes its loss and the perplexity infinite"
    np.savez(tmp_path / "base.npz", probs=base, targets=targets)
    np.savez(tmp_path / "other.npz", probs=other, targets=targets)
    for first, second in itertools.permutations((base, other)):
        with pytest.warns(UserWarning, match=words) as record:
            result = tokenloss.compare(first, second, targets, kind="probs")
        assert record[0].filename == __file__
        assert abs(result.log_perplexity_ratio) == np.inf
        clipped = tokenloss.compare(*(np.clip(p, 1e-12, 1) for p in (first, second)), targets, kind="probs")
        assert abs(clipped.log_perplexity_ratio) == pytest.approx(np.log(0.25e12) / 9)
    for first, second in itertools.permutations(("base", "other")):
        _, _, err = command("compare", tmp_path / f"{first}.npz", tmp_path / f"{second}.npz")
        assert err.startswith(f"tokenloss: warning: {words}")
    with pytest.warns(UserWarning, match="0 for a target|infinite divergence or loss") as record:
        compare_files(tmp_path / "base.npz", tmp_path / "other.npz")
    assert [words in str(one.message) for one in record] == [True, False]
    targets[5] = 3  # the probability of 0 is of a class that did not come
    assert tokenloss.compare(base, other, targets, kind="probs").n_infinite == 1
    with np.errstate(divide="ignore"):
        logs = np.log(other)
    assert tokenloss.compare(logs, logs, 0 * targets).perplexity == np.inf  # of logits, an infinite loss is meant


def test_what_functions_say_of_axis_and_ignore_index_names_options_in_the_command(tmp_path, command):
    logits, targets = np.zeros((2, 5, 3, 4), np.float32), np.full((2, 3, 4), 255)
    np.save(tmp_path / "logits.npy", logits)
    np.save(tmp_path / "targets.npy", targets)
    np.savez(tmp_path / "images.npz", logits=logits, targets=targets)
    words = "or save the classes last, if they are on axis 1 of logits: np.moveaxis(logits, 1, -1)"
    assert_refused(command("score", tmp_path / "logits.npy", tmp_path / "targets.npy"), words)
    assert_refused(command("score", tmp_path / "images.npz"), words)
    np.savez(tmp_path / "images.npz", logits=np.moveaxis(logits, 1, -1), targets=targets)
    words = (
        "targets[0, 0, 0] = 255 is out of range [0, 5); if 255 marks positions without a label, give --ignore-index 255"
    )
    assert_refused(command("score", tmp_path / "images.npz"), words)
    assert command("score", tmp_path / "images.npz", "--ignore-index", "255")[0] == 0
    np.savez(tmp_path / "binary.npz", probs=np.full(9, 0.25), labels=np.arange(9) % 2)
    words = "targets adds up to 4; it must add up to 1", "save both classes: np.stack([1 - p, p], -1)"
    assert_refused(command("score", tmp_path / "binary.npz"), *words)


def test_sinks_of_compare_files_get_blocks_and_candidates(candidates, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_ROWS", 7)

    class Kept(sinks.Sink):
        rows, top_k = "tokens", 3

        def __init__(self):
            self.blocks = []

        def open(self, schema):
            self.schema = schema
            return super().open(schema)

        def write(self, block):
            self.blocks.append(block)

        def finish(self, result):
            self.result = result

    kept = Kept()
    sizes = {"a": 1000, "c": "2.5K"}
    np.save(candidates.files["a"], candidates.logits["a"])
    actual = compare_files(candidates.path / "base.npz", candidates.files, shift=True, sinks=[kept], sizes=sizes)
    assert kept.result is actual
    assert [(one["name"], one["size"]) for one in actual.to_dict()["candidates"]] == [
        ("b", None),
        ("c", 2500),
        ("a", 1000),
    ]
    assert (kept.schema.models, kept.schema.top_k) == (("a", "b", "c"), 3)
    names = (
        "name",
        "file",
        "row",
        "sequence",
        "position",
        "target",
        "kept",
        "base_nll",
        "nll",
        "kl",
        "delta_p",
        "is_same_top",
        "base_top_p",
    )
    assert [column.name for column in kept.schema.tokens] == [*names]
    logs = log_softmax(candidates.base[:, :-1].reshape(-1, V))
    for name in "abc":
        joined = {
            column: np.concatenate([(block.columns | block.models[name])[column] for block in kept.blocks])
            for column in names[1:]
        }
        for column in TOKEN_COLUMNS:
            np.testing.assert_array_equal(joined[column], getattr(actual[name], column))
        np.testing.assert_array_equal(joined["target"], candidates.targets[:, 1:].ravel())
        np.testing.assert_array_equal(joined["sequence"], np.repeat(range(4), 9))
        tops = np.concatenate([block.tops[""]["top_logprobs"] for block in kept.blocks])
        of_kept = actual[name].kept
        np.testing.assert_allclose(tops[of_kept], -np.sort(-logs.astype(float), -1)[of_kept, :3], atol=1e-6)
        own = log_softmax(candidates.logits[name][:, :-1].reshape(-1, V)).astype(float)
        tops = np.concatenate([block.tops[name]["top_ids"] for block in kept.blocks])
        np.testing.assert_array_equal(tops[of_kept, 0], own.argmax(-1)[of_kept])


@pytest.mark.parametrize("definitions", ["exact", "llama.cpp"])
def test_files_without_targets_are_compared_by_their_divergences(definitions, candidates):
    np.savez(candidates.path / "alone.npz", logits=candidates.base)
    alone = open_scores(candidates.path / "alone.npz", ignore_index=0)
    result = compare_files(alone, candidates.files, definitions=definitions)
    base = tokenloss.log_softmax(candidates.base) if definitions == "llama.cpp" else candidates.base
    for name, one in result.items():
        ids = None if definitions == "llama.cpp" else np.arange(4)[:, None]
        expected = tokenloss.compare(base, candidates.logits[name], None, segment_ids=ids, definitions=definitions)
        assert one.count == ROWS
        assert not one.has_targets
        figures = one.to_dict()
        assert figures | expected.to_dict() == figures


@pytest.mark.parametrize("shape", [(4, 10), (ROWS,)])
def test_masked_rows_are_left_out_without_targets(shape, candidates):
    mask = np.random.default_rng(2).random(shape) < 0.7
    np.savez(candidates.path / "alone.npz", logits=candidates.base.reshape(*shape, V), attention_mask=mask.astype(int))
    result = compare_files(candidates.path / "alone.npz", {"c": candidates.files["c"]})
    expected = tokenloss.compare(candidates.base, candidates.logits["c"], None, where=mask.reshape(4, 10))
    one = result["c"]
    np.testing.assert_array_equal(one.kl, expected.kl.reshape(-1))
    assert (one.count, one.mean_kl) == (mask.sum(), expected.mean_kl)
    assert result.to_dict()["n_ignored"] == ROWS - mask.sum()


def test_shards_that_hold_targets_in_part(candidates):
    np.savez(candidates.path / "alone.npz", logits=candidates.base)
    paths = [candidates.path / "base.npz", candidates.path / "alone.npz"]
    with pytest.raises(ValueError, match=r"alone.npz: has no targets; it must contain targets"):
        compare_files(paths, {"a": [candidates.files["a"], candidates.files["b"]]})


# -- names and sizes ---------------------------------------------------------------------------------------------------


def test_names_of_candidates(candidates, compare_json, command):
    base, path = candidates.path / "base.npz", candidates.files["a"]
    odd = candidates.path / "lr=0.1.npy"
    odd.write_bytes(candidates.files["b"].read_bytes())
    names = [figures["name"] for figures in compare_json(base, path, odd)["candidates"]]
    names += [figures["name"] for figures in compare_json(base, f"Q4=K={path}", f"x={odd}")["candidates"]]
    assert set(names) == {str(path), "Q4=K", str(odd), "x"}
    pattern = candidates.path / "lr=*.npy"
    assert compare_json(base, pattern)["name"] == str(pattern)
    assert compare_json(base, f"x={pattern}")["name"] == "x"
    for argv, words in [
        ((path, path), f"the name {path} is given twice"),
        ((f"x={path}", f"x={odd}"), "the name x is given twice"),
        ((f"={path}",), "has no NAME"),
        (("x=",), "has no FILE"),
        ((f"x={path}.none",), f"{path}.none: cannot be read"),
        (("none=*.npy",), "*.npy: matches no file"),
    ]:
        assert_refused(command("compare", base, *argv), words)


def test_sizes_of_candidates(candidates, compare_json, command):
    base, files = candidates.path / "base.npz", candidates.files
    model = candidates.path / "model"
    (model / "nested").mkdir(parents=True)
    (model / "one.safetensors").write_bytes(bytes(300))
    (model / "nested" / "two.safetensors").write_bytes(bytes(50))
    for given, size in [
        (model, 350), (model / "one.safetensors", 300), ("4900000000", 4_900_000_000), ("4.9G", 4_900_000_000),
        ("4.9 GB", 4_900_000_000), ("1.5GiB", 3 << 29), ("2k", 2000), ("7B", 7), ("1Mi", 1 << 20),
    ]:  # fmt: skip
        result = compare_json(base, f"a={files['a']}", f"b={files['b']}", "--size", f"a={given}")["candidates"]
        assert {figures["name"]: figures["size"] for figures in result} == {"a": size, "b": None}
    assert compare_json(base, files["a"], "--size", f"{files['a']}={model}")["size"] == 350
    assert compare_json(base, f"a={files['a']}", "--size", f"{files['a']}=1G")["size"] == 10**9
    for given, words in [
        ("x=1G", "fits no candidate"), ("a", "fits no candidate"), ("a=", "fits no candidate"),
        ("a=none.gguf", "a number of bytes such as 4.9G"), ("a=-3", "a number of bytes"), ("a=1e9", "number of bytes"),
    ]:  # fmt: skip
        assert_refused(command("compare", base, f"a={files['a']}", "--size", given), words)
    model_file = model / "one.safetensors"
    refused = command("compare", base, f"a={files['a']}", "--size", f"a={model_file}", "--html", model_file)
    assert_refused(refused, f"--html {model_file}: would replace {model_file}")
    twice = "--size", "a=1G", "--size", f"{files['a']}=2G"
    assert_refused(command("compare", base, f"a={files['a']}", *twice), "the size of a is given twice")


def test_a_list_of_paths_is_of_candidates_by_their_paths(tmp_path):
    logits = np.random.default_rng(5).normal(size=(3, 6, 4))
    paths = [tmp_path / name for name in ("base.npz", "a.npy", "b.npy")]
    np.savez(paths[0], logits=logits[0], targets=np.zeros(6, int))
    for path, one in zip(paths[1:], logits[1:], strict=True):
        np.save(path, one)
    expected = compare_files(paths[0], {str(path): path for path in paths[1:]})
    assert compare_files(paths[0], paths[1:]) == compare_files(paths[0], (*map(str, paths[1:]),)) == expected


@pytest.mark.parametrize(
    ("others", "options", "error", "words"),
    [
        ({}, {}, ValueError, "others is empty"),
        ({"a": []}, {}, ValueError, r"others\['a'\] is empty"),
        ({"": "a.npy"}, {}, ValueError, "a name of others is empty"),
        ({"a": ""}, {}, ValueError, r"others\['a'\] is empty; it must be a path"),
        ({3: "a.npy"}, {}, TypeError, "a name of others is 3"),
        (3, {}, TypeError, "others is 'int'"),
        ([3], {}, TypeError, "others is 'int'"),
        ([], {}, ValueError, "others is empty"),
        (["a.npy", "b.npy", "a.npy"], {}, ValueError, "others is 'a.npy'; it must be given once, or with a name"),
        ("a.npy", {"definitions": "mine"}, ValueError, "definitions is 'mine'"),
        ("a.npy", {"definitions": None}, ValueError, "definitions is None"),
        ("a.npy", {"shift": "yes"}, ValueError, "shift is 'yes'"),
        ("a.npy", {"classes": 0}, ValueError, "classes is 0"),
        ("a.npy", {"sizes": {"b": 3}}, ValueError, "a name of sizes is 'b'; it must be the name of a candidate: a.npy"),
        ("a.npy", {"sizes": {"a.npy": -3}}, ValueError, r"sizes\['a.npy'\] is -3"),
        ("a.npy", {"sizes": {"a.npy": 1.5}}, TypeError, r"sizes\['a.npy'\] is 'float'"),
        ("a.npy", {"sinks": 3}, TypeError, "sinks is 'int'"),
        ("a.npy", {"workers": 0}, ValueError, "workers"),
        ("a.npy", {"state": 3}, TypeError, "state is 'int'"),
        ("a.npy", {"state": ""}, ValueError, "state is empty"),
    ],
)  # fmt: skip
def test_arguments_of_compare_files_that_are_wrong(others, options, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("base.npz", logits=np.ones((2, 3)), targets=[0, 1])
    for name in "ab":
        np.save(f"{name}.npy", np.ones((2, 3)))
    with pytest.raises(error, match=words):
        compare_files("base.npz", others, **options)


# -- unequal vocabularies ----------------------------------------------------------------------------------------------


def test_unequal_vocabularies(candidates, compare_json, command):
    base = candidates.path / "base.npz"
    padded = candidates.path / "padded.npy"
    rng = np.random.default_rng(3)
    more = rng.normal(size=(4, 10, 3)).astype(np.float32) - 2
    np.save(padded, np.concatenate([candidates.logits["a"], more], -1))
    words = f"{padded}: contains 40 rows of 16 classes; it must contain 40 rows of 13, as {base} does; --classes 13"
    assert_refused(command("compare", base, candidates.files["b"], padded), words)
    result = compare_json(base, padded, candidates.files["a"], "--classes", V)
    assert result["classes"] == V
    figures = {one["name"]: one for one in result["candidates"]}
    expected = tokenloss.compare(candidates.base, candidates.logits["a"], candidates.targets)
    for one in figures.values():
        assert one["mean_kl"] == pytest.approx(expected.mean_kl, rel=1e-12)
    logs = log_softmax(np.load(padded).reshape(-1, 16))[candidates.targets.reshape(-1) != -100]
    assert figures[str(padded)]["left_out"] == pytest.approx(float(np.exp(logs[:, V:]).sum(-1).mean()), rel=1e-7)
    assert figures[str(padded)]["base_left_out"] == 0
    assert figures[str(candidates.files["a"])]["left_out"] is None
    for classes, words in (
        ("5", "is out of range [0, 5)"),
        ("14", f"{base}: has 13 classes; it must have at least the 14 that are to be compared"),
    ):
        assert_refused(command("compare", base, padded, "--classes", classes), words)


@pytest.mark.parametrize("batch", [(12,), (3, 4), (2, 2, 3)])
@pytest.mark.parametrize("sizes", [(V, V + 3), (V + 3, V), (V, V)])
@pytest.mark.parametrize("are_hidden", [(False, False), (True, True), (True, False), (False, True)])
def test_classes_and_shift_of_unequal_vocabularies(are_hidden, sizes, batch, tmp_path):
    """By scores and hidden states, with sequences and without, in one file and in shards."""
    rng = np.random.default_rng(29)
    targets, ids = rng.integers(5, size=batch), np.sort(rng.integers(3, size=batch), -1)

    def opened(path):
        head = tmp_path / f"{path.name.removesuffix('.npz')}-head.npy"
        return open_hidden_states(path, head) if head.exists() else path

    for name in ("base", "other"):
        (tmp_path / name).mkdir()
    logits = []
    for name, is_hidden, size in zip(("base", "other"), are_hidden, sizes, strict=True):
        states, head = rng.normal(size=(*batch, D)), rng.normal(size=(size, D))
        logits.append((states @ head.T).reshape(-1, size))
        if is_hidden:
            np.save(tmp_path / f"{name}-head.npy", head)
        kept = {"hidden_states": states} if is_hidden else {"logits": states @ head.T}
        for path, rows in (
            (f"{name}.npz", slice(None)),
            (f"{name}/0.npz", slice(1)),
            (f"{name}/1.npz", slice(1, None)),
        ):
            of_rows = {"targets": targets[rows], "segment_ids": ids[rows]} if name == "base" else {}
            np.savez(tmp_path / path, **of_rows, **{kind: array[rows] for kind, array in kept.items()})
    base, others = opened(tmp_path / "base.npz"), {"other": opened(tmp_path / "other.npz")}
    ends = np.ones(batch, bool)
    ends[..., :-1] = ids[..., 1:] != ids[..., :-1]
    following = np.roll(targets, -1, -1)
    for classes, shift in itertools.product((5, V), (True, False)):
        (result,) = compare_files(base, others, classes=classes, shift=shift).values()
        rows = np.flatnonzero(~ends) if shift else np.arange(targets.size)
        expected = (following if shift else targets).reshape(-1)[rows]
        logs = [log_softmax(array[rows, :classes]) for array in logits]
        np.testing.assert_allclose(result.base_nll, -logs[0][np.arange(len(rows)), expected], rtol=0, atol=1e-6)
        np.testing.assert_allclose(result.nll, -logs[1][np.arange(len(rows)), expected], rtol=0, atol=1e-6)
        np.testing.assert_allclose(result.kl, (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1), rtol=1e-4, atol=1e-6)
        sides = opened(tmp_path / "base"), {"other": opened(tmp_path / "other")}
        (parts,) = compare_files(*sides, classes=classes, shift=shift).values()
        if len(batch) > 1:  # else a sequence would go on in the next shard, whose numbers are its own
            np.testing.assert_array_equal(parts.kl, result.kl)
    if sizes[0] != sizes[1]:
        for classes, words in (
            (None, "compares the first 13 of both"),
            (V + 1, "at least the 14 that are to be compared"),
        ):
            with pytest.raises(ValueError, match=words):
                compare_files(base, others, classes=classes, shift=True)


def test_shift_of_other_shapes(candidates):
    """Rows in another arrangement make other sequences."""
    message = r"a.npy: contains logits of shape \(40, 13\); it must have rows of shape \(4, 10\), as .*base.npz does"
    with pytest.raises(ValueError, match=message):
        compare_files(candidates.path / "base.npz", candidates.files["a"], shift=True)


@pytest.mark.parametrize("shift", [True, False])
def test_rows_in_another_arrangement(shift, candidates):
    """A transposed array has as many rows, which are of other tokens."""
    path, logits = candidates.path, candidates.logits["b"]
    np.save(path / "t.npy", logits.transpose(1, 0, 2))
    words = r"t.npy: contains logits of shape \(10, 4, 13\); it must have rows of shape \(4, 10\), as .*base.npz does"
    with pytest.raises(ValueError, match=words):
        compare_files(path / "base.npz", path / "t.npy", shift=shift)
    np.save(path / "x.npy", candidates.base)
    np.save(path / "targets.npy", np.maximum(candidates.targets, 0).T)
    with pytest.raises(ValueError, match=r"targets.npy: .*targets.* shape \(10, 4\)"):
        compare_files(open_scores(path / "x.npy", path / "targets.npy"), candidates.files["b"], shift=shift)


def test_classes_of_models_of_the_same_vocabulary(candidates):
    targets = candidates.path / "targets.npy"
    np.save(targets, np.minimum(candidates.targets, 5))
    np.savez(candidates.path / "bare.npz", logits=candidates.base)
    result = compare_files(open_scores(candidates.path / "bare.npz", targets), candidates.files, classes=6)
    for name, comparison in result.items():
        expected = tokenloss.compare(
            candidates.base, candidates.logits[name], np.load(targets), classes=6, segment_ids=np.arange(4)[:, None]
        )
        assert comparison.to_dict() | expected.to_dict() == comparison.to_dict()
        assert 0 < comparison.left_out < 1


def test_base_top_p_of_a_candidate_does_not_depend_on_others(rng, tmp_path):
    base, *logits = rng.normal(size=(4, 6, 50)).astype(np.float32)
    targets = rng.integers(0, 50, 6)
    logits[0][2, 0] = np.nan
    logits[1] = logits[1].astype(np.float64)
    np.savez(tmp_path / "base.npz", logits=base, targets=targets)
    paths = [tmp_path / f"{i}.npz" for i in range(3)]
    for path, own in zip(paths, logits, strict=True):
        np.savez(path, logits=own)
    with pytest.warns(UserWarning, match="1 of 6 tokens has a divergence or loss of nan"):
        result = compare_files(tmp_path / "base.npz", dict(zip("abc", paths, strict=True)))
    for comparison, own in zip(result.values(), logits, strict=True):
        np.testing.assert_array_equal(comparison.base_top_p, tokenloss.compare(base, own, targets).base_top_p)


def test_llama_cpp_base_of_several_candidates(candidates, compare_json):
    tokens = np.zeros((4, 22), int)
    tokens[:, 12:] = np.maximum(candidates.targets, 0)
    path = candidates.path / "base.kld"
    llama_cpp.write(path, tokens, [candidates.base.reshape(ROWS, V)], 22)
    options = "--definitions", "llama.cpp"
    result = compare_json(path, *candidates.files.values(), *options)
    for figures in result["candidates"]:
        alone = compare_json(path, figures["file"], *options)
        assert without_places(result | figures) == without_places(alone)


# -- hidden states -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hidden(tmp_path):
    """Hidden states of a base and a candidate of another width, their projections, and logits of both."""
    rng = np.random.default_rng(29)
    states = {"base": rng.normal(size=(100, D)), "q": rng.normal(size=(100, D + 3))}
    states = {name: array / np.sqrt(np.square(array).mean(-1, keepdims=True)) for name, array in states.items()}
    heads = {name: rng.normal(size=(V, array.shape[1])) for name, array in states.items()}
    targets = rng.integers(V, size=100)
    targets[3] = -100
    for name in states:
        np.savez(tmp_path / f"{name}.npz", hidden_states=states[name], targets=targets)
        np.save(tmp_path / f"{name}-head.npy", heads[name])
        np.save(tmp_path / f"{name}-logits.npy", states[name] @ heads[name].T)
    logits = {name: states[name] @ heads[name].T for name in states}
    return SimpleNamespace(path=tmp_path, targets=targets, states=states, heads=heads, **logits)


def of_hidden(hidden, name):
    return str(hidden.path / f"{name}.npz"), str(hidden.path / f"{name}-head.npy")


@pytest.mark.parametrize("definitions", ["exact", "llama.cpp"])
def test_hidden_states_without_targets(definitions, hidden):
    """By projections tile by tile, and by logits."""
    (base, base_head), (other, head) = of_hidden(hidden, "base"), of_hidden(hidden, "q")
    targets = np.maximum(hidden.targets, 0)
    for name in ("base", "q"):
        np.savez(hidden.path / f"{name}.npz", hidden_states=hidden.states[name])
    np.save(hidden.path / "targets.npy", targets)
    expected, result = (
        compare_files(
            open_hidden_states(base, base_head, held, ignore_index=None),
            {"q": open_hidden_states(other, head)},
            definitions=definitions,
        )["q"]
        for held in (hidden.path / "targets.npy", ())
    )
    assert (result.has_targets, expected.has_targets) == (False, True)
    np.testing.assert_allclose(result.kl, expected.kl, rtol=1e-13, atol=1e-15)  # projections begin with the target's
    assert result.mean_kl == pytest.approx(expected.mean_kl, rel=1e-13)
    assert result.same_top == expected.same_top
    assert np.isnan(result.nll).all()


@pytest.mark.parametrize("transform", [{}, {"logit_scale": 0.5, "softcap": 3.0}])
@pytest.mark.parametrize("classes", [None, 13, 5])
def test_hidden_states_in_compare(classes, transform, hidden, compare_json):
    (base, base_head), (other, head) = of_hidden(hidden, "base"), of_hidden(hidden, "q")
    targets = hidden.path / "targets.npy"
    if classes == 5:
        for name in ("base", "q"):
            np.savez(hidden.path / f"{name}.npz", hidden_states=hidden.states[name])
        hidden.targets[:] = np.minimum(hidden.targets, 4)
    np.save(targets, hidden.targets)
    options = [word for name, value in transform.items() for word in (f"--{name.replace('_', '-')}", value)]
    options += [] if classes is None else ["--classes", classes]
    result = compare_json(
        base, f"q={other}", "--base-lm-head", base_head, "--lm-head", head, "--targets", targets, *options
    )
    scale, cap = transform.get("logit_scale", 1.0), transform.get("softcap")
    logits = [hidden.base * scale, hidden.q * scale]
    logits = [cap * np.tanh(one / cap) if cap else one for one in logits]
    expected = tokenloss.compare(*logits, hidden.targets, classes=classes)
    assert (result["base_kind"], result["kind"], result["shape"]) == ("hidden_states", "hidden_states", [100, V])
    assert result["norm_seems_missing"] is False
    for name in ("mean_kl", "perplexity", "base_perplexity", "same_top", "rms_delta_p"):
        assert result[name] == pytest.approx(getattr(expected, name), rel=1e-6)
    if classes == 5:
        assert result["left_out"] == pytest.approx(expected.left_out, rel=1e-6)
        assert result["base_left_out"] == pytest.approx(expected.base_left_out, rel=1e-6)


@pytest.mark.parametrize("transform", [{}, {"logit_scale": 0.5, "softcap": 3.0}])
@pytest.mark.parametrize("definitions", ["exact", "llama.cpp"])
def test_hidden_states_with_scores_with_logit_scale_and_softcap(definitions, transform, hidden, compare_json):
    """Whichever side is of hidden states, and candidates of both kinds."""
    (base, base_head), (other, head) = of_hidden(hidden, "base"), of_hidden(hidden, "q")
    logits = [hidden.path / f"{name}-logits.npy" for name in ("base", "q")]
    options = ["--definitions", definitions]
    targets = hidden.path / "targets.npy"
    np.save(targets, hidden.targets)
    if transform:  # of hidden states alone
        for path in logits:
            np.save(path, 3 * np.tanh(0.5 * np.load(path) / 3))
        config = {"model_type": "muse_glimmer", "output_multiplier": 0.5, "final_logit_softcapping": 3.0}
        (hidden.path / "config.json").write_text(json.dumps(config), "utf-8")
    expected = compare_json(*logits, "--targets", targets, *options)
    for argv in (
        [base, logits[1], "--base-lm-head", base_head],
        [logits[0], other, "--base-kind", "logits", "--lm-head", head],
        [base, other, "--base-lm-head", base_head, "--lm-head", head],
    ):
        result = compare_json(*argv, *options)
        for name in ("mean_kl", "perplexity", "base_perplexity", "same_top", "rms_delta_p"):
            assert result[name] == pytest.approx(expected[name], rel=1e-6)


@pytest.mark.parametrize("option", ["--logit-scale", "--softcap"])
def test_a_transform_of_hidden_states_is_refused_where_a_file_holds_scores(option, hidden, command, compare_json):
    (base, base_head), (other, head) = of_hidden(hidden, "base"), of_hidden(hidden, "q")
    logits = [hidden.path / f"{name}-logits.npy" for name in ("base", "q")]
    np.save(hidden.path / "targets.npy", hidden.targets)
    neutral = "1" if option == "--logit-scale" else "0"
    for refused, *argv in (
        (logits[1], base, logits[1], "--base-lm-head", base_head),
        (logits[0], logits[0], other, "--base-kind", "logits", "--lm-head", head),
    ):
        argv += "--targets", hidden.path / "targets.npy"
        result = command("compare", *argv, option, "0.5")
        assert_refused(
            result, f"{refused}: contains scores, to which {option} does not apply; it must contain hidden states"
        )
        assert compare_json(*argv, option, neutral) == compare_json(*argv) | {
            name: value for name, value in compare_json(*argv, option, neutral).items() if name.endswith("head")
        }


def test_one_head_for_files_that_it_does_not_fit_names_the_other_options(hidden, command):
    base, head = of_hidden(hidden, "base")
    np.savez(hidden.path / "narrow.npz", hidden_states=np.zeros((100, 3)))
    np.savez(hidden.path / "scores.npz", logits=hidden.base)
    for files, words in (
        (
            (base, "narrow.npz"),
            "to fit hidden states of 3 features; --base-lm-head gives the base a head of its own",
        ),
        (
            (base, "scores.npz"),
            "names targets; --base-lm-head gives the base a head of its own",
        ),
        (("scores.npz", base), "of its own, and --base-kind the kind of its scores"),
    ):
        result = command("compare", *(hidden.path / file for file in files), "--lm-head", head)
        assert_refused(result, words)
    result = command("compare", base, hidden.path / "narrow.npz", "--base-lm-head", head, "--lm-head", head)
    assert_refused(result, "to fit hidden states of 3 features")


def test_base_of_logits_that_would_be_read_as_hidden_states(hidden, command):
    """The head of the candidate fits them, too, transposed."""
    logits, (other, head) = hidden.path / "logits.npy", of_hidden(hidden, "q")
    np.save(logits, hidden.base)
    for classes in [], ["--classes", "5"]:
        result = command("compare", logits, other, "--lm-head", head, *classes)
        assert_refused(
            result, f"{other}: differs in width from {logits}", "--base-kind is the kind of a base of scores"
        )
    states = open_hidden_states(logits, head), open_hidden_states(other, head)
    with pytest.raises(
        ValueError, match=r"differs in width from .*logits.npy; both are read as hidden .*; it must have the"
    ):
        compare_files(*states, classes=5)


def test_candidates_of_hidden_states_have_the_bits_of_runs_of_their_own(hidden, command, compare_json):
    base, head = of_hidden(hidden, "base")
    rng = np.random.default_rng(31)
    argv, heads = [], []
    for number in range(3):
        np.save(hidden.path / f"h{number}.npy", (hidden.heads["base"] + rng.normal(size=(V, D), scale=0.1)))
        argv.append(f"c{number}={base}")
        heads += ["--lm-head", hidden.path / f"h{number}.npy"]
    result = compare_json(base, *argv, "--base-lm-head", head, *heads)
    assert len(result["candidates"]) == 3
    for figures in result["candidates"]:
        own = hidden.path / f"h{figures['name'][1]}.npy"
        alone = compare_json(base, f"x={base}", "--base-lm-head", head, "--lm-head", own)
        assert without_places(result | figures) == without_places(alone)
    status, out, err = command("compare", base, f"x={base}", "--lm-head", head, "--json")  # the head is that of both
    assert (status, err) == (0, "tokenloss: warning: x: identical to base: the same file\n")
    same = json.loads(out)["candidates"][0]
    assert (same["mean_kl"], same["same_top"]) == (0, 1)


def test_input_ids_and_text_of_hidden_states(hidden, compare_json, command):
    """Ids that are to be shifted, and their text with them."""
    (base, head), targets = of_hidden(hidden, "base"), np.maximum(hidden.targets, 0)
    tokens = np.array([" a", "7"])[targets % 2]
    np.savez(hidden.path / "ids.npz", hidden_states=hidden.states["base"], input_ids=targets, tokens=tokens)
    argv = hidden.path / "ids.npz", f"q={base}", "--lm-head", head
    np.savez(base, hidden_states=0.9 * hidden.states["base"])
    assert_refused(command("compare", *argv), "ids.npz: contains input ids and no targets", "--shift")
    result = compare_json(*argv, "--shift")
    assert (result["count"], result["n_without_next"], result["same_top"]) == (99, 1, 1)
    assert {row["group"]: row["count"] for row in result["by_token_type"]} == {
        "word": np.count_nonzero(tokens[1:] == " a"), "number": np.count_nonzero(tokens[1:] == "7"),
    }  # fmt: skip


def test_html_of_hidden_states(hidden, command):
    (base, base_head), (other, head) = of_hidden(hidden, "base"), of_hidden(hidden, "q")
    page = hidden.path / "page.html"
    argv = base, other, "--base-lm-head", base_head, "--lm-head", head, "--html", page, "--classes", "13"
    assert command("compare", *argv)[0] == 0
    assert page.read_bytes().startswith(b"<!doctype html>")


def test_state_of_hidden_states_with_another_head(hidden, command, compare_json):
    base, head = of_hidden(hidden, "base")
    state = hidden.path / "state"
    np.savez(hidden.path / "x.npz", hidden_states=0.9 * hidden.states["base"])
    argv = base, hidden.path / "x.npz", "--lm-head", head, "--state", state
    first = compare_json(*argv)
    assert compare_json(*argv) == first
    np.save(head, 2 * hidden.heads["base"])
    words = f"{state}: contains the result of {base}", "since the candidates or a file changed"
    assert_refused(command("compare", *argv), *words)


@pytest.mark.parametrize(
    ("tokens", "types"),
    [
        (["The", " cat", "s", " 12", "3", " (", "a", ")", "\n", "Then", "x1", "'s", "..."], "WWPNNpPp_WPPp"),
        (["<|endoftext|>", "He", None, "x", "\u6f22", ""], "oWoWPo"),
        (
            ["The", "\u0120cat", "s", "\u0120", "\u010a", "Then", "\u012012", "\u00c3", "\u00a9", "\u0120,"],
            "WWP__WNoPp",
        ),
        (["\u2581The", "\u2581cat", "s", "<0x0A>", "\u258112", "<s>", "\u2581", "\u00e9"], "WWPoNo_W"),
    ],
)
def test_types_of_tokens(tokens, types):
    is_first = np.arange(len(tokens)) == 0
    assert "".join("WPNp_o"[i] for i in token_types(np.array(tokens, object), is_first)) == types


def test_norm_warning_of_compare_files(hidden):
    other, head = of_hidden(hidden, "q")
    scales = np.exp(np.random.default_rng(2).normal(size=(100, 1)))
    np.savez(hidden.path / "before.npz", hidden_states=hidden.states["q"] * scales, targets=hidden.targets)
    with pytest.warns(tokenloss.NormWarning, match="final norm"):
        compare_files(open_hidden_states(other, head), {"q": open_hidden_states(hidden.path / "before.npz", head)})


# -- memory ------------------------------------------------------------------------------------------------------------


def save_compressed(path, **arrays):
    """Save arrays with the least compression, which takes a tenth of the time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.save(file, array)


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "n_candidates"), [("npz", 12), ("zarr", 4)])
def test_memory_of_candidates_is_that_of_a_block(n_candidates, suffix, tmp_path, monkeypatch):
    """Compressed files are read as a stream: a block of 2 MB of every candidate at once would exceed the limit."""
    monkeypatch.setattr(plan, "_BLOCK_BYTES", 2 << 20)
    rng = np.random.default_rng(7)
    logits = np.tile(rng.integers(9, size=2048).astype(np.float32), (1024, 1))  # 8 MB, soon compressed
    save_compressed(tmp_path / "base.npz", logits=logits, targets=rng.integers(2048, size=1024))
    others = {str(number): tmp_path / f"{number}.{suffix}" for number in range(n_candidates)}
    if suffix == "npz":
        save_compressed(others["0"], logits=logits + 1)
    else:
        zarr = pytest.importorskip("zarr")
        zarr.open_group(others["0"], mode="w").create_array("logits", data=logits + 1, chunks=(512, 2048))
    for path in [*others.values()][1:]:
        (shutil.copyfile if suffix == "npz" else shutil.copytree)(others["0"], path)
    with pytest.warns(UserWarning, match="identical to"), held_at_most(18 << 20):
        result = compare_files(tmp_path / "base.npz", others, workers=1)
    assert {comparison.mean_kl < 1e-12 for comparison in result.values()} == {True}
