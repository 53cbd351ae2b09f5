"""compare_files and `tokenloss compare --draft`: the acceptance of drafts in files, what is written and refused."""

import json

import numpy as np
import pytest
from commands import assert_refused
from tables import read_table

from tokenloss import compare_files, draft_acceptance, sinks
from tokenloss._evaluation import plan

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")

N, T, V, D = 5, 20, 13, 8


class Files:
    """A target in two shards, with input ids and a mask, and two drafts; one has a smaller vocabulary."""

    def __init__(self, path):
        rng = np.random.default_rng(31)
        self.path = path
        self.target = rng.normal(size=(N, T, V), scale=2).astype(np.float32)
        noise = rng.normal(size=(N, T, V)).astype(np.float32)
        self.drafts = {"far": self.target + noise, "near": (self.target + 0.3 * noise)[..., :11]}
        self.mask = np.arange(T) < np.array([[20], [7], [3], [20], [15]])
        ids = rng.integers(V, size=(N, T))
        for name, scores in {"target": self.target, **self.drafts}.items():
            (path / name).mkdir()
            for part, rows in enumerate((slice(2), slice(2, None))):
                arrays = {"input_ids": ids[rows], "attention_mask": self.mask[rows].astype(int)}
                arrays = arrays if name == "target" else {}
                np.savez(path / name / f"{part}.npz", logits=scores[rows], **arrays)
        self.base, self.others = path / "target", {name: path / name for name in self.drafts}
        self.argv = "compare", self.base, *(f"{name}={file}" for name, file in self.others.items()), "--draft"

    def expected(self, name, **options):
        return draft_acceptance(self.target, self.drafts[name], where=self.mask, **options)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.mark.parametrize("block_rows", [3, 1000])
@pytest.mark.parametrize("temperature", [0, 0.6, None])
def test_temperature_of_files_gives_what_arrays_do(temperature, block_rows, files, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_ROWS", block_rows)
    found = compare_files(files.base, files.others, draft=True, temperature=temperature, cost_ratio=0.1)
    assert list(found) == list(files.drafts)
    for name, one in found.items():
        expected = files.expected(name, cost_ratio=0.1, temperature=1.0 if temperature is None else temperature)
        np.testing.assert_array_equal(one.acceptance, expected.acceptance.ravel())
        np.testing.assert_array_equal(one.kept, files.mask.ravel())
        for figure, value in expected.to_dict().items():
            if figure not in ("sequences", "signature"):
                assert one.to_dict()[figure] == value, figure
        assert one.columns()["position"].tolist() == expected.columns()["position"].tolist()
        assert one == compare_files(
            files.base, {name: files.others[name]}, draft=True, temperature=temperature, cost_ratio=0.1
        )[name]  # fmt: skip


def test_draft_prints_one_or_several(files, command):
    found = compare_files(files.base, files.others, draft=True, cost_ratio=0.1)
    status, out, err = command(*files.argv, "--cost-ratio=0.1")
    assert (status, err) == (0, "")
    assert out == found.summary() + "\n"
    lines = out.splitlines()
    title = f"2 models vs {files.base}  65 positions, errors by 5 sequences, temperature 1, cost ratio 0.1;"
    assert lines[0].startswith(title)
    assert [line.split()[0] for line in lines[2:5]] == ["model", "near", "far"]  # what gains most comes first
    status, out, err = command(*files.argv[:3], "--draft", "--temperature=0")
    assert (status, err) == (0, "")
    assert "temperature 0 (greedy)" in out.splitlines()[0]
    assert "no text" not in out


def test_n_nan_of_one_of_several_drafts_is_shown(files, command):
    files.drafts["far"][0, 3, 4] = np.nan
    np.savez(files.others["far"] / "0.npz", logits=files.drafts["far"][:2])
    status, out, err = command(*files.argv, "--cost-ratio=0.1")
    assert status == 0
    assert err == "tokenloss: warning: far: 1 of 65 tokens are nan\n"
    heads, near, far = (line.split() for line in out.splitlines()[2:5])
    assert [heads[-1], near[0], far[0], far[-1]] == ["nan", "near", "far", "1"]


def test_draft_is_printed_in_every_format(files, command):
    found = compare_files(files.base, files.others, draft=True)
    figures = json.loads(command(*files.argv, "--json")[1])
    assert figures == json.loads(json.dumps(found.to_dict()))
    assert figures.keys() == {
        "base", "base_kind", "files", "shape", "n_without_next", "n_ignored", "temperature", "cost_ratio", "count",
        "n_sequences", "is_clustered", "candidates",
    }  # fmt: skip
    by_k = figures["candidates"][0]["by_k"]
    assert [row["k"] for row in by_k] == [*range(1, 9)]
    lines = command(*files.argv, "--format=csv")[1].splitlines()
    heads, *rows = (line.split(",") for line in lines)
    rows = [dict(zip(heads, row, strict=True)) for row in rows]
    assert {"name", "k", "tokens_per_call", "mean_acceptance", "mean_acceptance_low"} <= {*heads}
    assert [row["name"] for row in rows] == ["near"] * 8 + ["far"] * 8
    assert float(rows[9]["tokens_per_call"]) == found["far"].by_k["tokens_per_call"][1]
    assert "| near" in command(*files.argv, "--format=markdown")[1]


def test_per_token_and_per_sequence_of_drafts(files, command):
    tokens, sequences = files.path / "tokens.parquet", files.path / "sequences.csv"
    status, _, err = command(*files.argv, "--per-token", tokens, "--per-sequence", sequences)
    assert (status, err) == (0, "")
    table = read_table(tokens)
    assert list(table) == ["name", "file", "row", "sequence", "position", "target", "kept", "acceptance"]
    for name in files.drafts:
        expected = files.expected(name).acceptance.ravel()
        np.testing.assert_array_equal(np.array(table["acceptance"], float)[np.array(table["name"]) == name], expected)
    table = read_table(sequences)
    assert list(table) == ["name", "file", "sequence", "count", "acceptance"]
    assert table["count"][:5].tolist() == files.mask.sum(-1).tolist()
    in_memory = sinks.ComparedTokenTable()
    compare_files(files.base, files.others, draft=True, sinks=[in_memory])
    assert in_memory.columns()["acceptance"].shape == (2 * N * T,)


@pytest.mark.parametrize("classes", [V, 11])
@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_temperature_of_hidden_states(temperature, classes, tmp_path):
    rng = np.random.default_rng(32)
    hidden = {name: rng.choice([-1.0, 1.0], (30, size)) for name, size in (("target", D), ("draft", D - 2))}
    heads = {"target": rng.normal(size=(V, D)), "draft": rng.normal(size=(classes, D - 2))}
    for name, array in hidden.items():
        np.savez(tmp_path / f"{name}.npz", hidden_states=array)
        np.save(tmp_path / f"{name}_head.npy", heads[name])
    (found,) = compare_files(
        tmp_path / "target.npz", tmp_path / "draft.npz", draft=True, temperature=temperature, softcap=3.0,
        lm_head=tmp_path / "draft_head.npy", base_lm_head=tmp_path / "target_head.npy", logit_scale=0.5,
    ).values()  # fmt: skip
    logits = [3 * np.tanh(0.5 * hidden[name] @ heads[name].T / 3) for name in ("target", "draft")]
    expected = draft_acceptance(*logits, temperature=temperature)
    np.testing.assert_allclose(found.acceptance, expected.acceptance, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.by_k["tokens_per_call"], expected.by_k["tokens_per_call"], rtol=1e-9)
    assert "blocks of 64" in found.summary()


def test_targets_mask_rows_and_shift_says_which(tmp_path):
    """Labels with -100 leave out the prompt: as they are, or shifted, those of the row that predicts an ignored one."""
    rng = np.random.default_rng(33)
    target, draft = rng.normal(size=(2, 2, 9, V))
    labels = rng.integers(V, size=(2, 9))
    labels[:, :4] = -100
    np.savez(tmp_path / "target.npz", logits=target, labels=labels)
    np.save(tmp_path / "draft.npy", draft)
    files = tmp_path / "target.npz", {"draft": tmp_path / "draft.npy"}
    (found,) = compare_files(*files, draft=True).values()
    assert found.kept.reshape(2, 9)[0].tolist() == [False] * 4 + [True] * 5
    (found,) = compare_files(*files, draft=True, shift=True).values()
    expected = draft_acceptance(target[:, 3:8], draft[:, 3:8])
    np.testing.assert_array_equal(found.acceptance[found.kept], expected.acceptance.ravel())
    np.testing.assert_array_equal(found.by_k["tokens_per_call"], expected.by_k["tokens_per_call"])


def test_segment_ids_number_texts_of_files(files, tmp_path):
    numbers = np.sort(np.random.default_rng(34).integers(-1, 9, N * T))
    np.save(tmp_path / "numbers.npy", numbers)
    found = compare_files(files.base, files.others, draft=True, segment_ids=tmp_path / "numbers.npy")
    options = {"where": files.mask.ravel(), "segment_ids": numbers}
    for name, one in found.items():
        expected = draft_acceptance(files.target.reshape(-1, V), files.drafts[name].reshape(N * T, -1), **options)
        assert one.by_k["n_starts"].tolist() == expected.by_k["n_starts"].tolist()
        assert one.mean_acceptance_stderr == expected.mean_acceptance_stderr


def test_state_of_drafts_is_of_one_temperature(files):
    state = files.path / "state.jsonl"
    first = compare_files(files.base, files.others, draft=True, temperature=0.5, state=state)
    size = state.stat().st_size
    again = compare_files(files.base, files.others, draft=True, temperature=0.5, cost_ratio=0.2, state=state)
    assert state.stat().st_size == size
    for name, one in again.items():
        np.testing.assert_array_equal(one.acceptance, first[name].acceptance)
        assert one.best_speedup is not None
    with pytest.raises(ValueError, match=r"was written with temperature 0\.5"):
        compare_files(files.base, files.others, draft=True, state=state)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--temperature=1", "--temperature is given; it must be left out without --draft"),
        ("--cost-ratio=1", "--cost-ratio is given; it must be left out without --draft"),
        ("--draft --classes=9", "--classes is given; it must be left out of a comparison of drafts"),
        ("--draft --definitions=llama.cpp", "--definitions is given; it must be left out of a comparison of drafts"),
        ("--draft --noise=twin.npz", "--noise is given; it must be left out of a comparison of drafts"),
        ("--draft --temperature=-1", "--temperature is -1.0; it must be 0, for greedy decoding, or a number from"),
        ("--draft --cost-ratio=-1", "--cost-ratio is -1.0; it must be a finite number of at least 0"),
        ("--draft --max-kl=1", "--max-kl is for divergences, not for the acceptance of drafts"),
        ("--draft --plot=x.svg", "--plot is for divergences, not for the acceptance of drafts"),
        ("--draft --html=x.html", "--html is for divergences, not for the acceptance of drafts"),
        ("--draft --margin=0.1", "--margin is for samples of lm-evaluation-harness"),
    ],
)
def test_options_that_make_no_sense_with_drafts_are_refused(options, words, files, command):
    assert_refused(command(*files.argv[:-1], *options.split()), words)
    assert not (files.path / "x.svg").exists()


def test_draft_is_true_or_false(files):
    with pytest.raises(ValueError, match="draft is 'no'; it must be True or False"):
        compare_files(files.base, files.others, draft="no")


def test_divergences_are_none_of_drafts(files):
    with pytest.raises(ValueError, match="divergences is given; it must be left out of a comparison of drafts"):
        compare_files(files.base, files.others, draft=True, divergences=("kl", "js"))


def test_check_has_no_gate_for_drafts(files):
    found = compare_files(files.base, files.others, draft=True)
    with pytest.raises(ValueError, match="max_kl is for divergences, not for the acceptance of drafts"):
        found.check(max_kl=1)
    with pytest.raises(TypeError, match="of scores, which tell the whole divergence"):
        found.difference("near", "far")


def test_drafts_of_other_rows_are_refused(files, tmp_path):
    np.save(tmp_path / "short.npy", files.target[0])
    np.save(tmp_path / "whole.npy", files.target[1:3])
    with pytest.raises(ValueError, match=r"short\.npy: holds 20 rows of 13 classes; it must hold 40 rows"):
        compare_files(tmp_path / "whole.npy", tmp_path / "short.npy", draft=True)


@pytest.mark.parametrize("option", ["--draft", "--no-shift"])
def test_input_ids_that_differ_are_those_of_other_texts(option, tmp_path, command):
    rng = np.random.default_rng(5)
    logits, ids = rng.normal(size=(3, 9, 12)).astype(np.float32), rng.integers(12, size=(3, 9))
    np.savez(tmp_path / "target.npz", logits=logits, input_ids=ids)
    np.savez(tmp_path / "same.npz", logits=logits[..., ::-1], input_ids=ids)
    np.savez(tmp_path / "other.npz", logits=logits, input_ids=ids[::-1])
    argv = "compare", tmp_path / "target.npz"
    assert command(*argv, tmp_path / "same.npz", option)[0] == 0
    assert_refused(command(*argv, tmp_path / "other.npz", option), "other.npz: holds other input ids")


def test_drafts_of_a_single_text_have_no_numbered_sequence_as_arrays_and_as_files(tmp_path):
    base, logits = np.random.default_rng(7).normal(size=(2, 30, 6))
    for name, array in (("base", base), ("draft", logits)):
        np.savez(tmp_path / f"{name}.npz", logits=array)
    of_files = compare_files(tmp_path / "base.npz", {"draft": tmp_path / "draft.npz"}, draft=True)["draft"]
    of_arrays = draft_acceptance(base, logits)
    assert [one.n_sequences for one in (of_arrays, of_files)] == [0, 0]
    assert (of_arrays.signature, of_arrays.by_k["tokens_per_call"].tolist()) == (
        of_files.signature,
        of_files.by_k["tokens_per_call"].tolist(),
    )
    assert of_arrays.columns().keys() == of_files.columns().keys()
