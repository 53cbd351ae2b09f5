"""Gates of `tokenloss score` and `tokenloss compare`: exit statuses, what is printed, and what is refused."""

import csv
import io
import json

import clients
import numpy as np
import pytest
from commands import assert_refused, process

from tokenloss import compare_files, evaluate

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")


@pytest.fixture
def folder(tmp_path, monkeypatch, rng):
    """A base, a second run of it, and two models, of 40 texts."""
    base = rng.normal(size=(40, 20, 8), scale=2).astype(np.float32)
    targets = rng.integers(8, size=(40, 20))
    for name, scale in ("base", 0), ("twin", 0.01), ("q8", 0.05), ("q4", 0.5):
        logits = base + rng.normal(size=base.shape, scale=scale).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", logits=logits, targets=targets)
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMPARED = "compare", "base.npz", "Q8=q8.npz", "Q4=q4.npz"


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (("compare", "base.npz", "q8.npz", "--max-kl", "0.01", "--min-same-top", "0.9"), 0),
        (("compare", "base.npz", "q8.npz", "--max-kl-quantile", "0.99=0.1", "--max-kl-quantile", "0.5=0.1"), 0),
        (("compare", "base.npz", "q4.npz", "--max-kl", "0.01"), 3),
        ((*COMPARED, "--max-kl", "0.01"), 3),
        (("compare", "base.npz", "q4.npz", "--max-perplexity-ratio", "1.1"), 4),
        (("compare", "base.npz", "q4.npz", "--max-perplexity-ratio", "1.1", "--max-kl", "0.01"), 3),  # 3 wins over 4
        (("score", "base.npz", "--max-perplexity", "1e6", "--max-loss", "99", "--min-greedy-accuracy", "0.01"), 0),
        (("score", "base.npz", "--min-greedy-accuracy", "0.9"), 3),
        (("score", "a=base.npz", "b=q8.npz", "--min-greedy-accuracy", "0.9"), 3),
        (("score", "base.npz", "--min-greedy-accuracy", "0.125"), 4),
    ],
)
def test_exit_status_of_gates(argv, status, folder, command):
    result, out, err = command(*argv)
    assert (result, err) == (status, "")
    assert {0: "holds", 3: "fails", 4: "cannot tell"}[status] in out.partition("Gates")[2]
    for form in "json", "markdown", "csv":
        assert command(*argv, "--format", form)[::2] == (status, "")


def test_exit_status_of_gates_on_numbers_that_the_output_calls_wrong(folder, command, rng):
    """Padding that agrees was counted, and diluted the divergence until the gate held."""
    base = -rng.exponential(size=(20, 40))
    other = base * rng.normal(1, 0.05, size=base.shape)
    is_token = np.arange(40) < np.arange(5, 25)[:, None]
    for name, array in ("trainer", other), ("rollout", base):
        np.savez(f"{name}.npz", logprobs=np.where(is_token, array, 0.0))
    status, out, _ = command("compare", "trainer.npz", "rollout.npz", "--max-k3", "1", "--min-ess", "0.1", "--json")
    (result,) = json.loads(out)["candidates"]
    assert (status, result["verdict"]) == (4, "cannot tell")
    assert result["void"].startswith("looks like padding or prompts that are counted: 510 tokens are 0.0 on both sides")
    assert all(result["void"] in one["note"] for one in result["gates"])
    for name, array in ("trainer", other), ("rollout", base):
        np.savez(f"{name}.npz", logprobs=np.where(is_token, array, np.nan))
    assert command("compare", "trainer.npz", "rollout.npz", "--max-k3", "1", "--min-ess", "0.1")[0] == 0


def test_exit_status_of_gates_beside_a_warning_that_calls_the_number_wrong(folder, command, rng):
    ids = rng.integers(8, size=200)
    np.savez("ids.npz", logits=9.0 * (np.roll(ids, -1)[:, None] == np.arange(8)), targets=ids)
    status, out, err = command("score", "ids.npz", "--max-loss", "99")
    assert (status, err.count("they seem to be the input ids of a causal model")) == (4, 1)
    assert "this value cannot be trusted: the targets fit far better one row earlier" in out
    assert command("score", "ids.npz", "--max-loss", "99", "--no-shift")[0] == 0


def test_exit_status_of_gates_in_a_process(folder):
    done = process("compare", "base.npz", "q4.npz", "--max-kl", "0.01", "--json")
    assert (done.returncode, done.stderr) == (3, "")
    assert json.loads(done.stdout)["candidates"][0]["verdict"] == "fails"


def test_gates_are_printed_in_every_format(folder, command):
    argv = *COMPARED, "--max-kl", "0.01", "--max-kl-quantile", "0.99=0.2", "--confidence", "0.9", "--noise", "twin.npz"
    result = compare_files("base.npz", {"Q8": "q8.npz", "Q4": "q4.npz"}, noise="twin.npz")
    verdicts = result.check(max_kl=0.01, max_kl_quantile={0.99: 0.2}, confidence=0.9)
    text, figures, table, rows = (command(*argv, "--format", form)[1] for form in ("text", "json", "markdown", "csv"))
    tables = text.removesuffix("\n").rpartition("\n\n")[0]  # without the signature
    assert tables.endswith("\n".join(verdicts.summary().splitlines()[2:]))
    assert "90 % interval" in text
    for line in verdicts.summary().splitlines()[2:]:
        cells = [cell for cell in line.split("  ") if cell]
        assert all(cell.strip() in table for cell in cells)
    figures = json.loads(figures)
    assert {one["name"]: one["verdict"] for one in figures["candidates"]} == {"Q8": "holds", "Q4": "fails"}
    for one in figures["candidates"]:
        gates = [gate._asdict() for gate in verdicts.gates if gate.name == one["name"]]
        assert one["confidence"] == 0.9
        assert [gate | {"name": one["name"], "interval": tuple(gate["interval"])} for gate in one["gates"]] == gates
        assert one["noise_multiples"]["mean_kl"] == one["mean_kl"] / figures["noise"]["mean_kl"]
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(rows))}
    assert [*rows] == ["Q8", "Q4", "noise"]
    assert (rows["Q4"]["verdict"], rows["Q4"]["max_kl_quantile_0.99_verdict"]) == ("fails", "fails")
    assert float(rows["Q8"]["max_kl_high"]) == verdicts.gates[0].interval[1]
    assert rows["noise"]["verdict"] == ""


def test_gates_of_score_in_json(folder, command):
    verdicts = evaluate("base.npz").check(max_loss=4)
    result = json.loads(command("score", "base.npz", "--max-loss", 4, "--json")[1])
    named = json.loads(command("score", "a=base.npz", "b=q8.npz", "--max-loss", 4, "--json")[1])
    for one in result, named["a"]:
        assert (one["verdict"], one["confidence"]) == (verdicts.verdict, 0.95)
        assert [gate["figure"] for gate in one["gates"]] == [verdicts.gates[0].figure]
    assert "gates" not in json.loads(command("score", "base.npz", "--json")[1])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--max-kl", "nan"), "argument --max-kl: must be a number, not 'nan'"),
        (("--max-kl", "1_0"), "argument --max-kl: must be a number, not '1_0'"),  # which Python takes for 10
        (("--max-kl", "inf"), "not 'inf'"),
        (("--max-kl", "1e999"), "not '1e999'"),
        (("--max-kl", " 5 "), "not ' 5 '"),
        (("--max-kl", "\N{ARABIC-INDIC DIGIT FIVE}"), "must be a number"),
        (("--max-kl-quantile", "0.9=1_0"), "not '0.9=1_0'"),
        (("--max-kl", "-1"), "--max-kl is -1.0; it must be a finite number >= 0"),
        (("--max-kl", "1", "--classes", "1_0"), "must be an integer >= 1, or all, not '1_0'"),
        (("--max-kl", "x"), "argument --max-kl: must be a number, not 'x'"),
        (("--min-same-top", "97"), "--min-same-top is 97.0; it must be a number from 0 to 1"),
        (("--max-kl-quantile", "0.3"), "argument --max-kl-quantile: must be F=X, with F between 0 and 1"),
        (("--max-kl-quantile", "1=0.3"), "not '1=0.3'"),
        (("--max-kl-quantile", "0.9=1", "--max-kl-quantile", "0.9=2"), "--max-kl-quantile is given twice for the same"),
        (("--max-kl", "1", "--confidence", "95"), "argument --confidence: must be a number between 0 and 1, not '95'"),
        (("--confidence", "0.9"), "--confidence is for gates, such as --max-kl"),
        (("--max-perplexity", "3"), "--max-perplexity"),  # of `score`
    ],
)
def test_gates_that_are_refused_write_nothing(argv, words, folder, command):
    assert_refused(command("compare", "base.npz", "q8.npz", "--per-token", "t.csv", *argv), words)
    assert not (folder / "t.csv").exists()


def test_gates_of_losses_without_targets_end_with_status_2(folder, command):
    """Status 3 is that of a worse model."""
    for name in "base", "q8":
        with np.load(f"{name}.npz") as file:
            np.save(f"{name}.npy", file["logits"])
    result = command("compare", "base.npy", "q8.npy", "--max-perplexity-ratio", 2, "--max-kl", 1)
    assert_refused(result, "--max-perplexity-ratio limits losses, which need targets, and these scores have none")
    assert command("compare", "base.npy", "q8.npy", "--max-kl", 1)[0] == 0


def test_gates_of_samples_are_refused_by_the_command(tmp_path, command):
    paths = [clients.save(tmp_path / f"{run}.jsonl", f"{run}/mc.jsonl") for run in ("base", "noise")]
    assert_refused(command("compare", *paths, "--max-kl", 1), "--max-kl does not apply to samples")
    assert_refused(command("compare", *paths, "--noise", paths[0]), "--noise does not apply to samples")


def test_outputs_are_written_where_a_gate_fails(folder, command):
    argv = "compare", "base.npz", "q4.npz", "--max-kl", "0"
    status, *_ = command(*argv, "--per-token", "t.csv", "--noise", "twin.npz")
    assert status == 3
    rows = csv.DictReader((folder / "t.csv").read_text("utf-8").splitlines())
    assert {row["name"] for row in rows} == {"q4.npz", "noise"}


def test_state_is_not_that_of_a_run_without_noise(folder, command):
    argv = "compare", "base.npz", "q8.npz", "--state", "state.jsonl"
    assert command(*argv)[0] == 0
    assert_refused(command(*argv, "--noise", "twin.npz"), "state.jsonl")
    argv = *argv[:-1], "other.jsonl", "--noise", "twin.npz"
    first = json.loads(command(*argv, "--json")[1])
    assert json.loads(command(*argv, "--json")[1]) == first


# -- what others met ---------------------------------------------------------------------------------------------------


def with_divergences(divergences):
    """Logits of a base and of a model of two classes, with these divergences."""
    base = np.log(np.full((len(divergences), 2), 0.5))
    # 0.5 ln(0.5/p) + 0.5 ln(0.5/(1-p)) = d, so p (1-p) = exp(-2 d) / 4
    p = (1 + np.sqrt(1 - np.exp(-2 * np.asarray(divergences)))) / 2
    return base, np.log(np.stack([p, 1 - p], -1))


def test_limits_were_raised_by_a_tenth_until_the_build_passed_as_of_maxtext_1695(tmp_path, monkeypatch, command):
    """Four tokens, one of them 0.0111 where the limit was 0.01: such data can tell nothing of either limit."""
    monkeypatch.chdir(tmp_path)
    base, model = with_divergences([0.00638698, 0.00445672, 0.01114981, 0.00453397])
    np.savez("base.npz", logits=base, targets=np.zeros(4, int))
    np.save("model.npy", model)
    status, out, _ = command("compare", "base.npz", "model.npy", "--max-kl", "0.01")
    assert status == 4
    assert "more tokens needed; 4 tokens, assumed independent" in out
    assert command("compare", "base.npz", "model.npy", "--max-kl", "0.015")[0] == 0
    assert command("compare", "base.npz", "model.npy", "--max-kl", "0.0011")[0] == 3


def test_limits_without_a_second_run_of_the_base_say_little_as_of_prime_rl_3414(folder, command):
    """An engine's own noise stood in no column: a limit below it fails every model, one far above it none."""
    noise = compare_files("base.npz", {"twin": "twin.npz"})["twin"].mean_kl
    argv = "compare", "base.npz", "q8.npz", "--noise", "twin.npz", "--max-kl"
    status, out, _ = command(*argv, noise / 2)
    assert status == 3
    assert "so no model can pass" in out
    assert "no model can pass" not in command(*argv, 0.1)[1]


def test_losses_of_nan_passed_every_limit_as_of_ik_llama_cpp_245(folder, command):
    """A comparison with nan is false, so that `if kl > limit` lets a broken quantization pass."""
    with np.load("q8.npz") as file:
        logits = file["logits"].copy()
    logits[3, 5, 2] = np.nan
    np.savez("broken.npz", logits=logits)
    status, out, _ = command("compare", "base.npz", "broken.npz", "--max-kl", "1e9", "--max-perplexity-ratio", "1e9")
    assert status == 3
    assert out.count("the value is not finite") == 2
