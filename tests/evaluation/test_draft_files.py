"""compare_files and `tokenloss compare --draft`: the acceptance of drafts in files, what is written and refused."""

import json

import numpy as np
import pytest
from commands import assert_refused
from tables import read_table

from tokenloss import ComparisonMeter, compare, compare_files, cross_entropy, draft_acceptance, sinks
from tokenloss._evaluation import plan
from tokenloss.formats import open_hidden_states, open_scores
from tokenloss.results import Comparisons

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


def drafts_of(base, others, *, temperature=1.0, cost_ratio=None, shift=False, **options):
    """The acceptance of each draft, as `compare --draft` prints it."""
    result = compare_files(base, others, temperature=temperature, classes="all", shift=shift, **options)
    return Comparisons({name: one.acceptance(cost_ratio=cost_ratio) for name, one in result.items()})


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.mark.parametrize("block_rows", [3, 1000])
@pytest.mark.parametrize("temperature", [0, 0.6, 1])
def test_temperature_of_files_gives_what_arrays_do(temperature, block_rows, files, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_ROWS", block_rows)
    result = drafts_of(files.base, files.others, temperature=temperature, cost_ratio=0.1)
    assert list(result) == list(files.drafts)
    for name, one in result.items():
        expected = files.expected(name, cost_ratio=0.1, temperature=temperature)
        np.testing.assert_array_equal(one.acceptance, expected.acceptance.ravel())
        np.testing.assert_array_equal(one.kept, files.mask.ravel())
        for figure, value in expected.to_dict().items():
            if figure not in ("sequences", "signature"):
                assert one.to_dict()[figure] == value, figure
        assert one.columns()["position"].tolist() == expected.columns()["position"].tolist()
        alone = drafts_of(files.base, {name: files.others[name]}, temperature=temperature, cost_ratio=0.1)
        assert one == alone[name]


def test_draft_prints_one_or_several(files, command):
    result = drafts_of(files.base, files.others, cost_ratio=0.1)
    status, out, err = command(*files.argv, "--cost-ratio=0.1")
    assert (status, err) == (0, "")
    assert out == result.summary() + "\n"
    lines = out.splitlines()
    title = f"2 models vs {files.base}  65 positions, errors clustered by 5 sequences, temperature 1, cost ratio 0.1;"
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
    assert err == "tokenloss: warning: far: 1 of 65 tokens has a divergence or loss of nan\n"
    heads, near, far = (line.split() for line in out.splitlines()[2:5])
    assert [heads[-1], near[0], far[0], far[-1]] == ["nan", "near", "far", "1"]


def test_draft_is_printed_in_every_format(files, command):
    result = drafts_of(files.base, files.others)
    figures = json.loads(command(*files.argv, "--json")[1])
    assert figures == json.loads(json.dumps(result.to_dict()))
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
    assert float(rows[9]["tokens_per_call"]) == result["far"].by_k["tokens_per_call"][1]
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
    in_memory, of_drafts = sinks.TokenTable(), sinks.TokenTable(columns=["acceptance"])
    both = [in_memory, of_drafts]
    compare_files(files.base, files.others, temperature=1, classes="all", shift=False, sinks=both)
    table = in_memory.columns()
    assert "acceptance" not in table
    np.testing.assert_array_equal(of_drafts.columns()["acceptance"], 1 - table["tv"])
    for name in files.drafts:
        expected = files.expected(name).acceptance.ravel()
        np.testing.assert_array_equal(1 - table["tv"][table["name"] == name], expected)


@pytest.mark.parametrize("classes", [V, 11])
@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_temperature_of_hidden_states(temperature, classes, tmp_path):
    rng = np.random.default_rng(32)
    hidden = {name: rng.choice([-1.0, 1.0], (30, size)) for name, size in (("target", D), ("draft", D - 2))}
    heads = {"target": rng.normal(size=(V, D)), "draft": rng.normal(size=(classes, D - 2))}
    for name, array in hidden.items():
        np.savez(tmp_path / f"{name}.npz", hidden_states=array)
        np.save(tmp_path / f"{name}_head.npy", heads[name])
    target, draft = (
        open_hidden_states(tmp_path / f"{name}.npz", tmp_path / f"{name}_head.npy", logit_scale=0.5, softcap=3.0)
        for name in hidden
    )
    (result,) = drafts_of(target, draft, temperature=temperature).values()
    logits = [3 * np.tanh(0.5 * hidden[name] @ heads[name].T / 3) for name in ("target", "draft")]
    expected = draft_acceptance(*logits, temperature=temperature)
    np.testing.assert_allclose(result.acceptance, expected.acceptance, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.by_k["tokens_per_call"], expected.by_k["tokens_per_call"], rtol=1e-9)
    assert "blocks of 64" in result.summary()


def test_targets_mask_rows_and_shift_says_which(tmp_path):
    """Labels with -100 leave out the prompt: as they are, or shifted, those of the row that predicts an ignored one."""
    rng = np.random.default_rng(33)
    target, draft = rng.normal(size=(2, 2, 9, V))
    labels = rng.integers(V, size=(2, 9))
    labels[:, :4] = -100
    np.savez(tmp_path / "target.npz", logits=target, labels=labels)
    np.save(tmp_path / "draft.npy", draft)
    files = tmp_path / "target.npz", {"draft": tmp_path / "draft.npy"}
    (result,) = drafts_of(*files).values()
    assert result.kept.reshape(2, 9)[0].tolist() == [False] * 4 + [True] * 5
    (result,) = drafts_of(*files, shift=True).values()
    expected = draft_acceptance(target[:, 3:8], draft[:, 3:8])
    np.testing.assert_array_equal(result.acceptance[result.kept], expected.acceptance.ravel())
    np.testing.assert_array_equal(result.by_k["tokens_per_call"], expected.by_k["tokens_per_call"])


def test_segment_ids_number_texts_of_files(files, tmp_path):
    numbers = np.sort(np.random.default_rng(34).integers(-1, 9, N * T))
    np.save(tmp_path / "numbers.npy", numbers)
    result = drafts_of(open_scores(files.base, segment_ids=tmp_path / "numbers.npy"), files.others)
    options = {"where": files.mask.ravel(), "segment_ids": numbers}
    for name, one in result.items():
        expected = draft_acceptance(files.target.reshape(-1, V), files.drafts[name].reshape(N * T, -1), **options)
        assert one.by_k["n_starts"].tolist() == expected.by_k["n_starts"].tolist()
        assert one.mean_acceptance.stderr == expected.mean_acceptance.stderr


def test_state_of_drafts_is_of_one_temperature(files):
    state = files.path / "state.jsonl"
    first = drafts_of(files.base, files.others, temperature=0.5, state=state)
    size = state.stat().st_size
    again = drafts_of(files.base, files.others, temperature=0.5, cost_ratio=0.2, state=state)
    assert state.stat().st_size == size
    for name, one in again.items():
        np.testing.assert_array_equal(one.acceptance, first[name].acceptance)
        assert one.best_speedup is not None
    with pytest.raises(ValueError, match=r"was written with temperature 0\.5"):
        drafts_of(files.base, files.others, state=state)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--cost-ratio=1", "--cost-ratio is given; it must be left out without --draft"),
        ("--draft --classes=9", "--classes is for divergences, not for the acceptance of drafts"),
        ("--draft --definitions=llama.cpp", "--definitions is for divergences, not for the acceptance of drafts"),
        ("--draft --divergences=js", "--divergences is for divergences, not for the acceptance of drafts"),
        ("--draft --noise=twin.npz", "--noise is for divergences, not for the acceptance of drafts"),
        ("--draft --temperature=-1", "--temperature is -1.0; it must be 0, for greedy decoding, or a number from"),
        ("--draft --cost-ratio=-1", "--cost-ratio is -1.0; it must be a finite number >= 0"),
        ("--draft --max-kl=1", "--max-kl is for divergences, not for the acceptance of drafts"),
        ("--draft --plot=x.svg", "--plot is for divergences, not for the acceptance of drafts"),
        ("--draft --html=x.html", "--html is for divergences, not for the acceptance of drafts"),
        ("--draft --margin=0.1", "--margin is for samples of lm-evaluation-harness"),
    ],
)
def test_options_that_make_no_sense_with_drafts_are_refused(options, words, files, command):
    assert_refused(command(*files.argv[:-1], *options.split()), words)
    assert not (files.path / "x.svg").exists()


def test_check_has_no_gate_for_drafts(files):
    result = drafts_of(files.base, files.others)
    with pytest.raises(ValueError, match="max_kl is for divergences, not for the acceptance of drafts"):
        result.check(max_kl=1)
    with pytest.raises(TypeError, match="of scores, which have the whole divergence"):
        result.difference("near", "far")


def test_drafts_of_other_rows_are_refused(files, tmp_path):
    np.save(tmp_path / "short.npy", files.target[0])
    np.save(tmp_path / "whole.npy", files.target[1:3])
    with pytest.raises(ValueError, match=r"short\.npy: contains 20 rows of 13 classes; it must contain 40 rows"):
        drafts_of(tmp_path / "whole.npy", tmp_path / "short.npy")


@pytest.mark.parametrize("option", ["--draft", "--no-shift"])
def test_input_ids_that_differ_are_those_of_other_texts(option, tmp_path, command):
    rng = np.random.default_rng(5)
    logits, ids = rng.normal(size=(3, 9, 12)).astype(np.float32), rng.integers(12, size=(3, 9))
    np.savez(tmp_path / "target.npz", logits=logits, input_ids=ids)
    np.savez(tmp_path / "same.npz", logits=logits[..., ::-1], input_ids=ids)
    np.savez(tmp_path / "other.npz", logits=logits, input_ids=ids[::-1])
    argv = "compare", tmp_path / "target.npz"
    assert command(*argv, tmp_path / "same.npz", option)[0] == 0
    assert_refused(command(*argv, tmp_path / "other.npz", option), "other.npz: its input ids differ from those in")


def test_drafts_of_a_single_text_have_no_numbered_sequence_as_arrays_and_as_files(tmp_path):
    base, logits = np.random.default_rng(7).normal(size=(2, 30, 6))
    for name, array in (("base", base), ("draft", logits)):
        np.savez(tmp_path / f"{name}.npz", logits=array)
    of_files = drafts_of(tmp_path / "base.npz", {"draft": tmp_path / "draft.npz"})["draft"]
    of_arrays = draft_acceptance(base, logits)
    assert [one.n_sequences for one in (of_arrays, of_files)] == [0, 0]
    assert (of_arrays.signature, of_arrays.by_k["tokens_per_call"].tolist()) == (
        of_files.signature,
        of_files.by_k["tokens_per_call"].tolist(),
    )
    assert of_arrays.columns().keys() == of_files.columns().keys()


# -- comparisons at a temperature, from which the acceptance follows ---------------------------------------------------


def softmax(logits, temperature=1.0):
    """Probabilities in float64 at a temperature."""
    logits = np.asarray(logits, np.float64) / temperature
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def as_kind(logits, kind):
    """The scores of a kind that stand for the same distributions as the logits."""
    probs = softmax(logits)
    return {"logits": logits, "probs": probs, "log_probs": np.log(probs)}[kind]


@pytest.mark.parametrize("temperature", [0.3, 1.7])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("classes", [(40, 40), (40, 33), (33, 40)])
def test_losses_at_a_temperature_have_the_bits_of_cross_entropy_with_its_scale(temperature, dtype, classes, tmp_path):
    rng = np.random.default_rng(8)
    base, draft = (rng.normal(size=(60, size), scale=3).astype(dtype) for size in classes)
    targets = rng.integers(33, size=60)
    np.savez(tmp_path / "base.npz", logits=base, targets=targets)
    np.save(tmp_path / "draft.npy", draft)
    files = tmp_path / "base.npz", tmp_path / "draft.npy"
    (result,) = compare_files(*files, temperature=temperature, classes="all", shift=False).values()
    for losses, logits in (result.base_nll, base), (result.nll, draft):
        expected = cross_entropy(logits, targets, logit_scale=1 / temperature, reduction="none")
        np.testing.assert_array_equal(losses, expected)
    assert result.temperature == result.to_dict()["temperature"] == temperature
    assert f"|temperature:{temperature:g}|" in result.signature
    assert f"temperature {temperature:g}" in result.summary()


@pytest.mark.parametrize("kinds", [("logits", "logits"), ("probs", "logits"), ("log_probs", "probs")])
@pytest.mark.parametrize("temperature", [0, 0.5, 1, 3])
@pytest.mark.parametrize("classes", [(30, 30), (30, 21), (21, 30)])
def test_acceptance_is_1_less_the_total_variation_of_vocabularies_that_differ(kinds, temperature, classes, tmp_path):
    rng = np.random.default_rng(9)
    logits = [rng.normal(size=(4, 15, size), scale=2) for size in classes]
    targets = rng.integers(21, size=(4, 15))
    for name, scores, kind in zip(("base", "draft"), logits, kinds, strict=True):
        np.savez(tmp_path / f"{name}.npz", **{kind: as_kind(scores, kind)}, targets=targets)
    files = tmp_path / "base.npz", tmp_path / "draft.npz"
    result = compare_files(*files, temperature=temperature, classes="all", shift=False)
    ((comparison, drafts),) = [(one, one.acceptance(cost_ratio=0.1)) for one in result.values()]
    p, q = (softmax(one, temperature or 1.0) for one in logits)
    common = min(classes)
    expected = np.minimum(p[..., :common], q[..., :common]).sum(-1)
    np.testing.assert_allclose(1 - comparison.token_divergences["tv"], expected.ravel(), atol=1e-12)
    at_zero = p.argmax(-1) == q.argmax(-1)
    np.testing.assert_allclose(drafts.acceptance, (expected if temperature else at_zero).ravel(), atol=1e-12)
    assert drafts.temperature == temperature
    assert drafts.cost_ratio == 0.1
    assert drafts.n_sequences == 4
    with np.errstate(divide="ignore"):
        losses = -np.log(np.take_along_axis(q, targets[..., None], -1))[..., 0]
    np.testing.assert_allclose(comparison.nll, losses.ravel(), rtol=1e-10)


def test_classes_all_gives_a_class_that_a_model_lacks_a_probability_of_0(tmp_path):
    base, draft = np.zeros((3, 4)), np.zeros((3, 2))
    np.savez(tmp_path / "base.npz", logits=base, targets=[0, 1, 3])
    np.save(tmp_path / "draft.npy", draft)
    table = sinks.TokenTable()
    options = {"classes": "all", "divergences": ("tv",), "shift": False}
    (result,) = compare_files(tmp_path / "base.npz", tmp_path / "draft.npy", sinks=[table], **options).values()
    np.testing.assert_array_equal(result.nll, [np.log(2), np.log(2), np.inf])
    np.testing.assert_allclose(result.base_nll, np.log(4))
    np.testing.assert_array_equal(result.kl, np.inf)
    np.testing.assert_allclose(result.token_divergences["tv"], 0.5)
    np.testing.assert_allclose(result.delta_p, [0.25, 0.25, -0.25])
    np.testing.assert_array_equal(table.columns()["nll"], result.nll)
    assert result.to_dict()["classes"] == "all"
    assert "|classes:all" in result.signature
    with pytest.raises(ValueError, match="2 classes"):
        compare_files(tmp_path / "base.npz", tmp_path / "draft.npy")


def test_likeliest_classes_of_a_comparison_are_those_at_its_temperature(tmp_path):
    """Of both models, also where one lacks a target, or where some classes are left out."""
    rng = np.random.default_rng(10)
    base, draft = rng.normal(size=(20, 9)), rng.normal(size=(20, 7))
    np.savez(tmp_path / "base.npz", probs=softmax(base), targets=np.arange(20) % 9)
    np.savez(tmp_path / "draft.npz", logits=draft)

    class Tops(sinks.Sink):
        rows, top_k = "tokens", 2

        def write(self, block):
            self.tops = block.tops

    for classes, n in ("all", 9), (5, 5):
        sink = Tops()
        targets = np.minimum(np.arange(20) % 9, n - 1)
        np.savez(tmp_path / "base.npz", probs=softmax(base), targets=targets)
        compare_files(
            tmp_path / "base.npz", {"draft": tmp_path / "draft.npz"}, classes=classes, temperature=0.5, shift=False,
            sinks=[sink],
        )  # fmt: skip
        for name, logits in ("", base[:, :n]), ("draft", draft[:, :n]):
            expected = np.log(np.sort(softmax(logits, 0.5))[:, :-3:-1])
            np.testing.assert_allclose(sink.tops[name]["top_logprobs"], expected, rtol=1e-9)


def test_classes_that_are_left_out_have_their_probability_at_the_temperature(tmp_path):
    rng = np.random.default_rng(11)
    base, other = rng.normal(size=(2, 12, 9))
    for name, scores in ("base", base), ("other", other):
        np.savez(tmp_path / f"{name}.npz", logits=scores, targets=np.zeros(12, int))
    (result,) = compare_files(
        tmp_path / "base.npz", tmp_path / "other.npz", classes=6, temperature=2, shift=False
    ).values()
    assert result.base_left_out == pytest.approx(softmax(base, 2)[:, 6:].sum(-1).mean(), rel=1e-12)
    assert result.left_out == pytest.approx(softmax(other, 2)[:, 6:].sum(-1).mean(), rel=1e-12)


def test_temperature_0_has_losses_and_divergences_at_1(files):
    cold, warm = (
        compare_files(files.base, {"far": files.others["far"]}, temperature=t, shift=False)["far"] for t in (0, 1)
    )
    np.testing.assert_array_equal(cold.token_divergences["tv"], warm.token_divergences["tv"])
    for name in ("nll", "base_nll", "kl"):
        np.testing.assert_array_equal(getattr(cold, name), getattr(warm, name))
    assert "temperature 0 (greedy; losses and divergences at 1)" in cold.summary()
    assert "temperature" not in warm.to_dict()
    assert cold.acceptance().mean_acceptance == cold.same_top


def test_temperature_prints_divergences_without_draft(files, command):
    status, out, err = command(*files.argv[:3], "--temperature=0.5", "--no-shift")
    assert (status, err) == (0, "")
    assert "temperature 0.5" in out.splitlines()[0]
    assert "total variation" in out.lower()


def test_temperature_does_not_go_with_definitions_of_llama_cpp(files, command):
    options = "--temperature=0.5", "--definitions=llama.cpp"
    assert_refused(command(*files.argv[:3], *options), "--temperature is given; it must be left out of llama.cpp")


@pytest.mark.parametrize("classes", [0, "some", 2.5])
def test_classes_are_a_number_or_all(classes, files, command):
    with pytest.raises((TypeError, ValueError), match=r"classes .*must be a positive integer, 'all' or None"):
        compare_files(files.base, files.others, classes=classes)
    assert_refused(command(*files.argv[:3], f"--classes={classes}"), "--classes")


def test_acceptance_without_total_variation_says_how_to_ask_for_it(files):
    (result,) = compare_files(files.base, {"far": files.others["far"]}, shift=False).values()
    words = r"acceptance needs the total variation: ask for divergences=\('tv',\), or .* temperature="
    with pytest.raises(ValueError, match=words):
        result.acceptance()
    with pytest.raises(ValueError, match=words):
        compare(files.target, files.drafts["far"]).acceptance()


def test_acceptance_of_arrays_is_that_of_draft_acceptance(files):
    arrays = files.target, files.drafts["far"]
    result = compare(*arrays, where=files.mask, divergences=("tv",)).acceptance(cost_ratio=0.1)
    assert result == draft_acceptance(*arrays, where=files.mask, cost_ratio=0.1)
    with pytest.raises(ValueError, match="cost_ratio is -1"):
        compare(*arrays, divergences=("tv",)).acceptance(cost_ratio=-1)


def test_acceptance_of_blocks_needs_the_text_of_each_position(files):
    arrays = files.target, files.drafts["far"]
    meter = ComparisonMeter(divergences=("tv",))
    meter.update(*arrays)
    with pytest.raises(ValueError, match="needs the text of each position: give segment_ids"):
        meter.result().acceptance()
    meter = ComparisonMeter(divergences=("tv",))
    meter.update(*arrays, segment_ids=np.arange(N)[:, None])
    actual, expected = meter.result().acceptance(), draft_acceptance(*arrays)
    np.testing.assert_array_equal(actual.acceptance, expected.acceptance.ravel())
    assert actual.mean_acceptance.stderr == expected.mean_acceptance.stderr
    assert actual.n_sequences == N
