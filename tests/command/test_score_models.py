"""Several models side by side, `tokenloss score A=a.npz B=b.npz`, and the formats in which results are printed."""

import io
import json
import re

import clients
import numpy as np
import pytest
from commands import LOGITS, TARGETS, assert_refused

from tokenloss import evaluate
from tokenloss._evaluation.results import Evaluations
from tokenloss._output.terminal import FORMATS

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
TIMES = {"seconds", "gb_per_second"}
MODELS = "A=a.npz", "B b=b.npz"


@pytest.fixture
def two(npz, tmp_path, monkeypatch):
    """Files of models: two, one with a token that is nan, and one of fewer tokens."""
    for name, logits in (
        ("a", LOGITS),
        ("b", LOGITS * 0.5),
        ("nan", np.where(np.arange(4)[:, None] == 2, np.nan, LOGITS)),
    ):
        npz(f"{name}.npz", logits=logits, targets=TARGETS)
    npz("short.npz", logits=LOGITS[:3], targets=TARGETS[:3])
    (tmp_path / "folder" / "model").mkdir(parents=True)
    for name, run in ("a", "base"), ("b", "noise"), ("c", "noise"):
        clients.save(tmp_path / f"samples-{name}.jsonl", f"{run}/mc.jsonl")
        clients.save(tmp_path / "folder" / "model" / f"samples_{name}.jsonl", f"{run}/mc.jsonl")
        path = clients.save(tmp_path / f"server-{name}.jsonl", "vllm/chat_00.json", "vllm/chat_01.json")
        if name == "b":
            path.write_text(
                path.read_text("utf-8").replace('"logprob":-', '"logprob":-1').replace('": -', '": -1'), "utf-8"
            )
    monkeypatch.chdir(tmp_path)


def read_markdown(text):
    """The tables of a page as another parser reads them: lists of rows, the first of which are the heads."""
    markdown = pytest.importorskip("markdown_it")
    tables, cells = [], []
    for token in markdown.MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            cells = []
            tables[-1].append(cells)
        elif token.type == "inline" and tables and token.level > 3:
            assert all(child.type == "text" for child in token.children)
            cells.append(token.content and "".join(child.content for child in token.children))
    return tables


def test_models_side_by_side(two, command):
    status, out, err = command("score", *MODELS, "--n-bytes", 9)
    assert (status, err) == (0, "")
    result = Evaluations({name: evaluate(f"{file}.npz", n_bytes=9) for name, file in (("A", "a"), ("B b", "b"))})
    assert out == result.summary() + "\n"
    title, _, heads, *rows, _, signature = out.splitlines()
    assert signature == f"  {result['A'].signature}"
    assert title == "2 models  logits; 4 tokens, assumed independent; tokenloss compare has the errors of differences"
    assert " ".join(heads.split()) == "model tokens loss ± perplexity 95 % interval bits per byte ± greedy accuracy"
    for row, (name, one) in zip(rows, result.items(), strict=True):
        low, high = one.figures["perplexity_interval"]
        assert row.split() == [
            *name.split(), "4", f"{one.meter.loss:.6g}", f"{one.meter.loss.stderr:.3g}", f"{one.meter.perplexity:.6g}",
            f"{low:.5g}", "to", f"{high:.5g}", f"{one.meter.bits_per_byte:.6g}",
            f"{one.meter.bits_per_byte.stderr:.3g}", "50.00", "%",
        ]  # fmt: skip


def test_models_whose_tokens_differ(two, command):
    assert "tokens differ, so compare bits per byte" in command("score", "A=a.npz", "S=short.npz")[1]
    title, _, heads, _, row, _, _ = command("score", "A=a.npz", "N=nan.npz")[1].splitlines()
    assert "tokens differ" not in title
    assert "nan" in heads
    assert row.split()[:4] == ["N", "4", "1", "nan"]


def test_a_warning_names_its_model(command, npz, tmp_path, monkeypatch):
    ids = np.random.default_rng(0).integers(50, size=400)
    logits = 5 * np.eye(50, dtype=np.float32)[np.roll(ids, -1)]
    npz("a.npz", logits=logits, targets=ids)
    npz("b.npz", logits=logits, targets=np.roll(ids, -1))
    monkeypatch.chdir(tmp_path)
    status, _, err = command("score", *MODELS)
    assert status == 0
    assert err.startswith("tokenloss: warning: A: the targets fit far better")
    assert err.count("\n") == 1


def test_models_without_names_are_noticed(command, npz, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids, logits = np.arange(40) % 9, np.zeros((40, 9))
    for name, targets in ("a", ids), ("b", ids), ("c", ids[::-1]), ("d", ids * 0), ("e", ids * 0):
        npz(f"{name}.npz", logits=logits, targets=targets)
    assert "two files have the same targets" in command("score", "a.npz", "b.npz")[2]
    for argv in (*MODELS,), ("a.npz", "c.npz"), ("d.npz", "e.npz"):
        assert command("score", *argv)[::2] == (0, "")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["A=a.npz", "b.npz"], "FILE b.npz: has no name; each FILE must have a name, as in NAME=FILE, or none of them"),
        (
            ["folder"],
            "folder contains samples of lm-evaluation-harness, which tokenloss compare BASE OTHER compares; ",
        ),
        (["A=a.npz", "A=b.npz"], "FILE A=b.npz: the name A is given twice"),
        (["A=a.npz", "B="], "FILE B=: has no FILE; it must be NAME=FILE, or FILE"),
        (["A=a.npz", "B=none.npz"], "none.npz: cannot be read"),
        (["A=a.npz", "B=b.npz", "--html", "page.html"], "--html is for one model"),
        (["A=a.npz", "B=b.npz", "--per-token", "t.csv"], "--per-token is for one model"),
        (["A=a.npz", "B=b.npz", "--state", "s"], "--state is for one model"),
    ],
)
def test_models_that_are_refused(argv, words, two, command, tmp_path):
    before = {*tmp_path.iterdir()}
    assert_refused(command("score", *argv), words)
    assert {*tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "argv",
    [
        ["score", "a.npz"],
        ["score", *MODELS],
        ["compare", "a.npz", "B=b.npz", "nan.npz"],
        ["compare", "server-a.jsonl", "B=server-[b].jsonl"],
        ["compare", "samples-a.jsonl", "B=samples-b.jsonl", "C=samples-c.jsonl"],
    ],
)
def test_formats_hold_the_same_figures(argv, two, command):
    pandas = pytest.importorskip("pandas")
    printed = {}
    for form in FORMATS:
        status, printed[form], err = command(*argv, "--format", form)
        warns = "tokenloss: warning: nan.npz: 1 of 4 tokens has a divergence or loss of nan\n" * ("nan.npz" in argv)
        warns += "tokenloss: warning: C: identical to B: the same values\n" * ("C=samples-c.jsonl" in argv)
        assert (status, err) == (0, warns)
    figures = json.loads(printed["json"])
    each = [figures] if argv[1:] == ["a.npz"] else figures.get("candidates", [*figures.values()])
    if "metrics" in each[0]:
        each = [metric for one in each for metric in one["metrics"]]
    rows = pandas.read_csv(io.StringIO(printed["csv"]), keep_default_na=True).to_dict("records")
    assert len(rows) == len(each)
    for row, one in zip(sorted(rows, key=lambda row: row.get("mean_kl", 0)), each, strict=True):
        for name in row.keys() & one.keys() - TIMES - {"name"}:
            assert row[name] == one[name] or (one[name] is None and np.isnan(row[name])), name
        if "perplexity_interval" in one:
            assert [row["perplexity_low"], row["perplexity_high"]] == one["perplexity_interval"]
    cells = [" ".join(row).split() for table in read_markdown(printed["markdown"]) for row in table if any(row)]
    *lines, signature = [line.split() for line in printed["text"].splitlines()[1:]]
    assert printed["markdown"].endswith(f"\n\n`{signature[0]}`\n")
    if argv[0] == "compare":
        assert re.match(rf"(B|2 models) vs {re.escape(argv[1])}  ", printed["text"])
    titles = re.findall(r"^(\w.*)\n\n\|", printed["markdown"], re.MULTILINE)
    assert [line for line in lines if line and " ".join(line) not in titles] == cells


def test_text_is_literal_in_markdown_and_on_one_line_in_csv(npz, command, tmp_path):
    text = ["a|b", "<s>", "*x*", "_x_ a_b", "`q`", r"\|", "[a](b)", "~~x~~", "&lt;", "\x1b[1m\n", "$x$"]
    logits = np.zeros((len(text), 3), np.float32)
    path = npz("a|*b*.npz", logits=logits, targets=np.zeros(len(text), int), tokens=np.array(text))
    out = command("score", path, "--top", 99, "--format", "markdown")[1]
    (_, tokens, _) = read_markdown(out)
    assert [row[-1] for row in tokens[1:]] == [*text[:9], r"\x1b[1m\n", "$x$"]
    assert r"\$x\$" in out  # which GitHub would take for mathematics
    named = command("score", f'=b,"\n={path}', "--format", "csv")[1].splitlines()
    assert len(named) == 2
    assert named[0].startswith("name,count,loss,stderr,perplexity,perplexity_low,")
    assert named[1].startswith('"=b,""\\n",11,')


def test_evaluations_are_a_table_in_python(two):
    result = Evaluations({name: evaluate(f"{name}.npz") for name in ("a", "b")})
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(result.columns()).set_index("name")
    assert table.loss["b"] == result["b"].meter.loss
    assert table.perplexity_high["a"] == result["a"].figures["perplexity_interval"][1]
    assert result.to_dict()["a"] == result["a"].to_dict()
    assert Evaluations().summary() == "0 models"
    assert result == Evaluations(result) != Evaluations({"a": result["a"]})
    assert "<td" in result._repr_html_()
    assert repr(result).startswith("Evaluations('a': loss=")
