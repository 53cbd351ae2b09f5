"""What the command prints for people: tables, with rich and without, progress, info and help."""

import io
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from commands import LOGITS, TARGETS, process
from files import held_at_most
from places import SAMPLE

import tokenloss
from tokenloss._command import cli
from tokenloss._evaluation import plan, progress
from tokenloss._evaluation import run as frame
from tokenloss._output import terminal

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")


SUMMARY = """\
FILE  logits, 4 × 3, float32; class ids

  tokens           4
  loss             2.65035  ± 2.13 nats (n = 4 tokens, assumed independent); 95 % interval 0.20611 to 34.08
  perplexity       14.159   95 % interval 1.2289 to 6.3207e+14
  bits per token   3.82364
  greedy accuracy  50.00 %

  highest-loss tokens
  row  target     nll  probability  text
    3       0  9.0002     0.000123  [bold]d
    2       2  1.0986        0.333  \\x1b[31mĠc
    0       0  0.4076        0.665  a\\nb
    1       1  0.0949        0.909  ,

  On average, each token was as hard to predict as a choice among 14.2 equally likely options.
  For all data of this kind, perplexity is between 1.23 and 6.32e+14 (95 % interval; n = 4 tokens, assumed independent).

  tokenloss:VERSION|unit:token|tokens:4|kind:logits|dtype:float32|ids:397e4bf6
"""  # noqa: RUF001 -- the command prints the multiplication sign


@pytest.mark.parametrize("rich", [True, False])
def test_score_prints_a_summary(rich, command, npz, monkeypatch):
    if not rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(frame, "time", SimpleNamespace(perf_counter=iter([1.0, 1.5]).__next__))
    path = npz(logits=LOGITS, targets=TARGETS, tokens=np.array(["a\nb", ",", "\x1b[31mĠc", "[bold]d"]))
    status, out, err = command("score", path)
    assert (status, err) == (0, "")
    assert re.sub(" +\n", "\n", out).replace(str(path), "FILE") == SUMMARY.replace("VERSION", tokenloss.__version__)


def test_score_prints_no_column_of_text_without_tokens(command, npz):
    _, out, _ = command("score", npz(logits=LOGITS, targets=TARGETS), "--top", 1)
    assert out.splitlines()[-6].endswith("9.0002     0.000123")
    assert "probability  text" not in out


OPTIONS = "On average, each token was as hard to predict as a choice among {} equally likely options."
OVER_ALL = "For all data of this kind, perplexity is between {} and {} (95 % interval; n = {})."
BEATEN = "A uniform guess among all 2 classes would have been better."
CERTAIN = "every token has a probability of exactly 1: such log-probabilities are computed at temperature 0, and "
FEW = "3 tokens, assumed independent"
GUESS = "2 sequences, too few for more than a guess"


@pytest.mark.parametrize(
    ("scores", "targets", "sentences"),
    [
        ([[0] * 4] * 3, [0, 1, 2], [OPTIONS.format("4.00"), OVER_ALL.format("4.00", "4.00", FEW)]),
        ([[[0] * 2000] * 3] * 2, [[0, 1, 2]] * 2, [OPTIONS.format("2,000"), OVER_ALL.format("2,000", "2,000", GUESS)]),
        ([[5, 0], [5, 0], [6, 0]], [1] * 3, [OPTIONS.format("208"), OVER_ALL.format("59.5", "1,071", FEW), BEATEN]),
        ([[0] * 4], [0], [OPTIONS.format("4.00"), "No interval is known, so this describes only these tokens."]),
        ([[0, np.nan], [0, 0]], [0, 0], ["The perplexity is nan: 1 of 2 tokens has a loss of nan."]),
        ([[0, -np.inf], [0, 0]], [1, 0], ["The perplexity is inf: 1 of 2 tokens has an infinite loss."]),
        ([[0, -1000], [0, -1000]], [1, 1], ["The perplexity is inf."]),
        ([[0, 0]], [-100], ["The perplexity is nan: no token was scored."]),
        ([[1000, 0]] * 5, [0] * 5, [f"The perplexity cannot be trusted: {CERTAIN}say nothing about the model."]),
    ],
)  # fmt: skip
def test_score_ends_with_a_verdict_in_words(scores, targets, sentences, command, npz):
    path = npz(logits=np.array(scores, np.float64), targets=np.array(targets))
    for options in (), ("--format", "markdown"):
        status, out, _ = command("score", path, "--top", 0, *options)
        assert status == 0
        lines = [line.strip("| ") for line in out.split("\n\n")[-2].splitlines()]
        assert [line for line in lines if line.strip("-")] == sentences


def on_terminal(command, monkeypatch, columns, *argv):
    """The output on a terminal of this width, without colors."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    status, out, err = command(*argv)
    assert (status, err) == (0, "")
    return re.sub(r"\x1b\[[\d;]*m", "", out)


def test_tokens_with_long_text_are_wrapped(command, npz, monkeypatch):
    text = "".join(map(str, range(100)))
    path = npz(logits=LOGITS[:1], targets=TARGETS[:1], tokens=np.array([text]))
    out = on_terminal(command, monkeypatch, 80, "score", path)
    assert max(map(len, out.splitlines()[1:])) <= 80
    assert text in "".join(out.split())


NOT_SHOWN = "not shown, since the terminal is narrow: "


@pytest.mark.parametrize("columns", [1, 12, 29, 45])
def test_numbers_are_not_cut_on_a_narrow_terminal(columns, command, npz, monkeypatch):
    path = npz(logits=LOGITS, targets=TARGETS, tokens=np.array(["abcdefghij" * 5] * 4))
    lines = on_terminal(command, monkeypatch, columns, "score", path).splitlines()
    assert any(re.match("  perplexity +14.159 +95 % interval", line) for line in lines)
    (row,) = (line.split() for line in lines if line.startswith("    3  "))
    wide = {"target": "0", "nll": "9.0002", "probability": "0.000123"}
    (heads,) = (line.split() for line in lines if line.strip().startswith("row "))
    assert row[:-1] == ["3", *(wide[head] for head in heads[1:-1])]
    assert row[-1].startswith("abcdefghij")
    text = " ".join(" ".join(lines).split())
    left_out = [head for head in wide if head not in heads]
    assert f"{NOT_SHOWN}{', '.join(left_out)}; --format markdown has all columns" in text
    assert ("nll" in heads, len(left_out)) == {1: (True, 2), 12: (True, 2), 29: (True, 2), 45: (True, 1)}[columns]


def cells_of(lines):
    """The cells of a table's rows that have no empty ones, by row and head; a standard error is named by its value."""
    heads, *rows = [re.split(r" {2,}", line.strip()) for line in lines]
    names = [
        head if head != "\u00b1" else f"\u00b1 of {before}" for before, head in zip(["", *heads], heads, strict=False)
    ]
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows if len(row) == len(heads)}


@pytest.mark.parametrize("rich", [True, False])
@pytest.mark.parametrize(
    ("columns", "left_out"),
    [
        (110, []),
        (95, ["RMS \u0394p"]),
        (82, ["RMS \u0394p", "99.9% KLD"]),
        (75, ["RMS \u0394p", "99.9% KLD", "\u00b1 of PPL"]),
        (60, ["RMS \u0394p", "99.9% KLD", "\u00b1 of PPL", "PPL", "same top", "\u00b1 of same top"]),
    ],
)
def test_a_table_wider_than_the_terminal_loses_its_least_important_columns(
    columns, left_out, rich, command, models, monkeypatch
):
    if not rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    np.save(models.path / "p.npy", 0.9 * models.base)
    argv = "compare", models.path / "base.npz", f"P={models.path / 'p.npy'}", f"Q={models.path / 'other.npy'}"
    whole = cells_of(command(*argv)[1].split("\n\n")[1].splitlines())
    out = on_terminal(command, monkeypatch, columns, *argv)
    lines = out.split("\n\n")[1].splitlines()
    assert max(map(len, lines)) <= columns
    assert cells_of(lines) == {
        name: {head: cell for head, cell in whole[name].items() if head not in left_out} for name in ("P", "Q")
    }
    named = " ".join(out.split()).partition(NOT_SHOWN)[2]
    assert bool(named) == bool(left_out)
    assert all(head in named for head in left_out if head != "\u00b1 of same top")


@pytest.mark.parametrize("rich", [True, False])
def test_no_printed_line_ends_in_blanks(rich, command, models, monkeypatch):
    if not rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    for argv in ("score", SAMPLE), ("info",), ("compare", models.path / "base.npz", models.path / "other.npy"):
        out = command(*argv)[1]
        assert len(out.splitlines()) > 3
        assert [line for line in out.splitlines() if line != line.rstrip()] == []


def test_tokens_beyond_the_encoding_of_stdout_are_escaped():
    done = process("score", SAMPLE, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u0120heaven" in done.stdout


def test_score_prints_the_same_without_rich(command):
    program = "import sys; sys.modules['rich'] = None; from tokenloss._command.cli import main; sys.exit(main())"
    done = process("score", SAMPLE, program=("-c", program))
    assert (done.returncode, done.stderr) == (0, "")
    status, out, err = command("score", SAMPLE)
    assert (status, err) == (0, "")
    plain, rich = ([line.split() for line in text.splitlines() if "time" not in line] for text in (done.stdout, out))
    assert plain == rich


@pytest.mark.slow
def test_json_of_many_sequences_is_printed_piece_by_piece(monkeypatch, tmp_path):
    """A million sequences took 2.5 GB, four times as much as without JSON."""
    figures = {"sequences": [{"sequence": i, "loss": 0.125, "perplexity": None} for i in range(50_000)]}
    with (tmp_path / "out.json").open("w+", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with held_at_most(10 << 20):  # all pieces at once take three times as much
            terminal.print_as("json", None, lambda: figures, None)
        monkeypatch.undo()
        assert file.seek(0) == 0
        assert json.loads(text := file.read()) == figures
    assert text == json.dumps(figures, indent=2) + "\n"


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


def test_progress_with_rich(command, monkeypatch):
    monkeypatch.setattr(progress, "_PROGRESS_SECONDS", 0)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert command("score", SAMPLE)[0] == 0
    assert "100% 1.6/1.6 MB" in re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue())


def test_progress_without_rich(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(progress, "_PROGRESS_SECONDS", 0)
    monkeypatch.setattr(plan, "_BLOCK_ROWS", 10)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert command("score", SAMPLE)[0] == 0
    lines = ["", " 67% of 0.00156 GB", "100% of 0.00156 GB", " " * 18, ""]
    assert terminal.getvalue() == "\r".join(lines)


@pytest.mark.parametrize("has_rich", [True, False])
def test_progress_of_blocks(has_rich, monkeypatch):
    """Their total is not known."""
    if not has_rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(progress, "_PROGRESS_SECONDS", 0)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    blocks = [(np.zeros((50, 100)), np.zeros(50, int))] * 3
    tokenloss.evaluate(blocks, shift=False, progress=True)
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", terminal.getvalue())
    if has_rich:
        assert re.search(r"block 2 .* 120\.0/\? kB", text)
    else:
        assert text == "\r".join(["", "block 0, 4e-05 GB", "block 1, 8e-05 GB", "block 2, 0.00012 GB", " " * 19, ""])


def test_progress_is_shown_on_a_terminal_alone(command, monkeypatch):
    monkeypatch.setattr(progress, "_PROGRESS_SECONDS", 0)
    assert command("score", SAMPLE)[2] == ""


def test_info(command):
    config = tokenloss.show_config(mode="dicts")
    status, out, err = command("info")
    assert (status, err) == (0, "")
    for word in (config["version"], config["instruction_set"], *config["available"], str(config["workers"])):
        assert word in out
    for option in ("--format", "json"), ("--json",):
        assert json.loads(command("info", *option)[1]) == config


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"tokenloss {tokenloss.__version__}\n"
