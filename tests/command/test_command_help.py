"""The command's help: its groups, its examples, which run, and that options and parameters have the same names."""

import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import clients
import laid_texts
import numpy as np
import pytest
import safetensors.numpy
from commands import assert_refused, process

import tokenloss
from tokenloss._command import cli
from tokenloss._command.arguments import make_parser
from tokenloss.formats import open_hidden_states, open_logprobs, open_responses, open_samples, open_scores
from tokenloss.results import Comparison, Evaluation, Mismatch

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
COMMANDS = ("score", "compare", "sketch", "info")


@pytest.fixture
def help_of(capsys, monkeypatch):
    """Make a function that returns the help of a command, as a wide terminal shows it."""
    monkeypatch.setenv("COLUMNS", "250")

    def help_of(*command):
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, "--help"])
        assert ended.value.code == 0
        return capsys.readouterr().out

    return help_of


def examples_in(text):
    """The lines of help that are examples."""
    lines = re.split("\n(?:commands|examples):\n", text)[1].splitlines()
    return [line.strip() for line in lines if line.startswith("     ") and line.split()[0] == "tokenloss"]


def test_no_arguments_print_the_help(help_of, command):
    for argv in (), ("score",), ("compare",):
        assert command(*argv) == (2, "", help_of(*argv))
    assert process().returncode == 2
    assert "tokenloss[cli]" in help_of()
    assert [line.split()[1] for line in examples_in(help_of())] == list(COMMANDS)


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_is_narrow_and_names_its_groups(command, help_of, monkeypatch):
    text = help_of(*command)
    assert max(map(len, text.splitlines())) <= 100
    heads = re.findall(r"\n\n([a-z ]+):\n", text)
    groups = {
        (): ["commands", "options"],
        ("score",): ["input", "targets and sequences", "hidden states", "responses", "gates", "output", "running"],
        ("info",): ["output", "running"],
    }
    groups["sketch",] = [*groups["score",][:3], "output", "running"]
    groups["compare",] = [*groups["score",][:3], "drafts", "responses", "samples", *groups["score",][4:]]
    assert heads == [*groups[command], *(["examples"] if command else [])]
    monkeypatch.setenv("COLUMNS", "60")
    options = [line for line in help_of(*command).splitlines() if not line.startswith(("   ", "usage"))]
    assert max(map(len, options)) <= 60


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files of which the examples in the help tell."""
    rng = np.random.default_rng(3)
    logits, ids = rng.normal(size=(24, 9)).astype(np.float32), rng.integers(9, size=24)
    for name in ("logits", "base", "part-1", "part-2", "large", "small"):
        np.savez(tmp_path / f"{name}.npz", logits=logits, targets=ids)
    for name in ("q8", "q4"):
        np.savez(tmp_path / f"{name}.npz", logits=logits + rng.normal(size=logits.shape, scale=0.1))
    for name, array in {"logits": logits, "ids": ids, "hidden": logits[:, :4]}.items():
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 9}))
    safetensors.numpy.save_file({"lm_head.weight": logits[:9, 4:8]}, tmp_path / "model" / "model.safetensors")
    ranks = (f"{b64encode(bytes([97 + rank])).decode()} {rank}\n" for rank in range(9))
    (tmp_path / "model" / "nine.tiktoken").write_text("".join(ranks))
    (tmp_path / "text.txt").write_text("A text of several words.")
    for name in "ab":  # models of this text, whose ids are those of its bytes
        np.savez(
            tmp_path / f"{name}.npz",
            logits=rng.normal(size=(24, 123)),
            targets=1 + np.array([*b"A text of several words."]),
        )
        (tmp_path / name.upper()).mkdir()
        laid_texts.tokenizer(tmp_path / name.upper() / "tekken.json", [bytes([i]) for i in range(123)])
    for name in ("responses", "server-a", "server-b"):
        clients.save(tmp_path / f"{name}.jsonl", "vllm/chat_00.json", "vllm/chat_01.json")
    clients.save_lines(tmp_path / "rollout.jsonl", {"logprobs": [-0.5, -1.5]}, {"logprobs": [-0.25]})
    np.save(tmp_path / "trainer.npy", [-0.5, -1.25, -0.25])
    for name, run in ("samples-a", "base"), ("samples-b", "noise"):
        clients.save(tmp_path / f"{name}.jsonl", f"{run}/mc.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_of_the_help_run(name, folder, help_of, command):
    if name == "compare":
        pytest.importorskip("matplotlib")
    examples = examples_in(help_of(name))
    assert {*examples_in(help_of())} & {*examples}
    for example in examples:
        before = {*folder.iterdir()}
        argv = shlex.split(example)
        assert argv[:2] == ["tokenloss", name]
        status, out, _ = command(*argv[1:])
        assert status in ((0, 3, 4) if "--max-" in example else (0,)), example
        assert len(out.splitlines()) > 3
        outputs = ["--state", *(f"--{name.replace('_', '-')}" for name in OUTPUTS)]
        written = {folder / argv[argv.index(option) + 1] for option in outputs if option in argv}
        written |= {folder / one for one in argv if one.endswith(".sketch")} - before
        assert {*folder.iterdir()} - before == written, example


def test_files_may_stand_on_both_sides_of_an_option(folder, command):
    argv = "score", "part-1.npz", "--workers", 1, "part-2.npz"
    assert command(*argv)[:2] == command("score", "part-1.npz", "part-2.npz", "--workers", 1)[:2]
    assert "2 models" in command("compare", "base.npz", "--workers", 1, "q8.npz", "--kind", "logits", "q4.npz")[1]
    assert_refused(command(*argv, ""), "argument FILE: is empty; it must be a name")


OUTPUTS = {"per_token", "per_sequence", "plot", "html"}  # options that Python has as `sinks`


OPENERS = open_scores, open_hidden_states, open_responses, open_logprobs, open_samples


@pytest.mark.parametrize(
    ("argv", "functions", "results"),
    [
        (["score", "x"], (tokenloss.evaluate, *OPENERS[:-1]), (Evaluation,)),
        (
            ["compare", "x", "y"],
            (tokenloss.compare_files, tokenloss.compare_samples, *OPENERS),
            (Comparison, Mismatch),
        ),
    ],
)
def test_options_and_parameters_have_the_same_names_and_defaults(argv, functions, results):
    options, seen = vars(make_parser().parse_args(argv)), set()
    without = {"paths", "path", "progress", "sinks"}  # progress is shown where stderr is a terminal
    if argv[0] == "compare":
        assert {options.pop(name) for name in ("text", "tokenizer_a", "tokenizer_b")} == {None}  # of `compare_texts`
    for function in functions:
        for name, parameter in inspect.signature(function).parameters.items():
            if name not in without:
                value = options[name]
                seen.add(name)
                assert parameter.default in (value, parameter.empty) or not (value or parameter.default), name
    gates = {name for one in results for name in one.GATES} | {"confidence"}
    assert gates <= options.keys()
    # arrays of hidden states and of a base have options of their own; top_k is a parameter of `sinks.TokenTable`
    twins = {f"base_{name}" for name in ("array", "kind", "hidden", "lm_head")} | {"hidden", "logprobs"}
    twins |= {"draft", "cost_ratio", "detect"}  # of `Comparison.acceptance`, and of `Comparisons`
    assert options.keys() - gates - seen <= {*OUTPUTS, *twins, "top_k", "format", "call"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (("",), COMMANDS),
        (("sc",), ("score",)),
        (("--v",), ("--version",)),
        (("score", "--max-p"), ("--max-perplexity",)),
        (("compare", "a.npz", "b.npz", "--definitions", ""), ("exact", "llama.cpp")),
        (("score", "sample."), ("sample.npz",)),
        (("score", "--shift", "--html", "sample."), ("sample.npz",)),
        (("score", "--top", "sample."), ()),
    ],
)
def test_bash_completes_commands_options_and_values(words, completed, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sample.npz").touch()
    with pytest.raises(SystemExit):
        cli.main(["--completion", "bash"])
    script = capsys.readouterr().out
    given = f"COMP_WORDS=(tokenloss {shlex.join(words)}) COMP_CWORD={len(words)}"
    program = f"{script}\n{given}\n_shtab_tokenloss\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert tuple(done.stdout.split()) == completed


def test_completion_without_shtab(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert_refused(command("--completion", "zsh"), "--completion needs the package shtab: pip install 'tokenloss[cli]'")
