"""Names of files, tokens and other text from files, which no output may pass on as they are to a terminal or a page."""

import json
import re
import sys
import unicodedata
import warnings
from xml.etree import ElementTree

import clients
import eval_harness
import laid_texts
import numpy as np
import pytest
from commands import LOGITS, TARGETS

import tokenloss
from tokenloss.formats import open_scores

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")

# An operating system command, a CSI in 7 and in 8 bits, marks of direction, ends of lines, Markdown and HTML.
NAME = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2066\u200f\u061c\r\n# h|`x`**b**$y$<script>alert(&lt;)"
TEXT = f"{NAME}</script>\x00\x7f\u2028{'long ' * 5000}"
FORMATS = ("text", "terminal", "markdown", "csv", "json", "github", "junit", "card")


@pytest.fixture
def folder(tmp_path):
    """A folder of this name, in which there are files."""
    if sys.platform == "win32":
        pytest.skip("Windows refuses such names")
    path = tmp_path / NAME
    path.mkdir()
    return path


def of_scores(folder, name="base", **arrays):
    path = folder / f"{name}.npz"
    rng = np.random.default_rng(len(name))
    np.savez(path, logits=LOGITS + rng.normal(size=LOGITS.shape), **arrays)
    return path


def of_base(folder):
    return of_scores(
        folder, targets=TARGETS, tokens=np.array([f"{TEXT}\ud800"] * len(TARGETS)), segment_ids=[0, 0, 1, 1]
    )


def of_responses(folder, name):
    bodies = [clients.chat((TEXT, -0.5 - i / 9, [(TEXT, -0.5), (NAME, -1.5)])) for i in range(3)]
    lines = [{"custom_id": f"{NAME}{i}", "response": {"status_code": 200, "body": one}} for i, one in enumerate(bodies)]
    lines.append({"custom_id": NAME, "response": {"status_code": 400, "body": None}, "error": {"message": TEXT}})
    return clients.save_lines(folder / f"{name}.jsonl", *lines)


def of_samples(folder, name):
    own = folder / name
    own.mkdir()
    task = re.sub(r"\s", "", NAME)
    lines = [eval_harness.sample(i, **{NAME: float(i % 3 > 0), "acc": 1.0}, filter=NAME) for i in range(4)]
    clients.save_lines(own / f"samples_{task}_2024-01-01T00-00-00.jsonl", *lines)
    clients.save_lines(own / f"samples_{name}{task}_2024-01-01T00-00-00.jsonl", *lines)
    return own


def compare_texts(folder):
    text = f"to be {NAME} or not {NAME}</script>\x00\x7f\u2028"
    (folder / "t.txt").write_bytes(text.encode())
    tokens = laid_texts.words(text), laid_texts.cut(text, 3)
    a, b = (laid_texts.model(folder, name, [own]) for name, own in zip("ab", tokens, strict=True))
    files = ["--text", folder / "t.txt", "--tokenizer-a", a.tokenizer, "--tokenizer-b", b.tokenizer]
    return ["compare", a.path, f"{NAME}={b.path}", "--shift", *files, "--html", folder / "p.html"]


def mismatch(folder):
    clients.save_lines(folder / "rollout.jsonl", *({"logprobs": [-0.5 - i, None, -1.0]} for i in range(3)))
    np.save(folder / "trainer.npy", np.linspace(-2, -1, 9))
    return ["compare", folder / "trainer.npy", f"{NAME}={folder / 'rollout.jsonl'}", "--logprobs"]


def pages(folder):
    return ["--html", folder / "p.html", "--plot", folder / "p.svg"]


COMMANDS = {
    "score": lambda folder: ["score", of_base(folder), *pages(folder), "--max-loss", 1],
    "score of models": lambda folder: ["score", f"{NAME}={of_base(folder)}", f"B={folder / 'base.npz'}"],
    "score of responses": lambda folder: [
        "score", of_responses(folder, "r"), "--skip-failed", *pages(folder),
    ],
    "compare": lambda folder: [
        "compare", of_base(folder), f"{NAME}={of_scores(folder, 'a')}", of_scores(folder, "other"), "--noise",
        of_scores(folder, "twin"), *pages(folder), "--max-kl", 1,
    ],
    "compare with one model": lambda folder: ["compare", of_base(folder), of_scores(folder, "other"), *pages(folder)],
    "compare of drafts": lambda folder: ["compare", of_base(folder), of_scores(folder, "other"), "--draft"],
    "compare of responses": lambda folder: [
        "compare", of_responses(folder, "a"), of_responses(folder, "b"), "--skip-failed", *pages(folder),
    ],
    "compare of samples": lambda folder: ["compare", of_samples(folder, "a"), f"{NAME}={of_samples(folder, 'b')}"],
    "compare of texts": compare_texts,
    "compare of log-probabilities": mismatch,
}  # fmt: skip


def assert_harmless(text, breaks="\n"):
    """Check that a text has no control characters, marks of direction or halves of pairs but these line breaks."""
    result = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in breaks}
    assert not result, [(hex(ord(c)), text[max(0, text.find(c) - 60) :][:100]) for c in result]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", COMMANDS)
def test_no_output_passes_on_what_controls_a_terminal(name, form, folder, command, monkeypatch):
    if form == "terminal":
        pytest.importorskip("rich", reason="rich is not installed")
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "80")
    argv = COMMANDS[name](folder)
    if (name == "compare of texts" and form in ("github", "junit", "card")) or (form == "junit" and argv[-1] != 1):
        pytest.skip(f"--format {form} does not apply")
    status, out, err = command(*argv, "--format", "text" if form == "terminal" else form)
    assert status in (0, 3, 4), err
    if form == "terminal":
        out = re.sub(r"\x1b\[[\d;]*m", "", out)
    assert "owned" in out
    assert_harmless(out)
    assert_harmless(err)
    if form == "json":
        json.loads(out)
    if form == "junit":
        ElementTree.fromstring(out)  # noqa: S314 - our own
    if form == "markdown":
        assert not re.search(r"(?<!\\)(<script|`x`|\*\*b)|^#", out, re.MULTILINE)
        tables = re.findall(r"(?:^\|.*\n)+", out, re.MULTILINE)
        assert len(tables) == out.count("\n|") - sum(table.count("\n|") for table in tables)  # each is whole
        for table in tables:
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    for path in folder.glob("p.*"):
        text = path.read_text("utf-8")
        assert_harmless(text, "\n\r\t\u2028")
        assert "<script>alert" not in text


@pytest.mark.parametrize("name", COMMANDS)
def test_no_error_passes_on_what_controls_a_terminal(name, folder, command):
    """Each file that a command reads is cut in two; the same calls of Python raise and warn alike."""
    argv = COMMANDS[name](folder)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        status, out, err = command(*argv)
        assert status == 2 or (name == "compare of samples" and "left out" in out)  # a task of one model is not read
        assert_harmless(out + err)
        assert status == 0 or err.count("\n") == 1
        path.write_bytes(whole)


def test_errors_and_warnings_of_functions_are_harmless(folder):
    path = of_base(folder)
    calls = [
        lambda: tokenloss.evaluate(folder / "none.npz"),
        lambda: tokenloss.evaluate(folder / "none*.npz"),
        lambda: open_scores(path, array=NAME),
        lambda: open_scores(path, kind=NAME),
        lambda: tokenloss.evaluate(path, sinks=[tokenloss.sinks.TokenTable(folder / "none" / "t.csv")]),
        lambda: tokenloss.evaluate(path, sinks=[tokenloss.sinks.HtmlPage(path)]),
        lambda: tokenloss.compare_files(path, {NAME: folder / "none.npz"}),
        lambda: tokenloss.compare_files(path, {NAME: of_scores(folder, "n", targets=[2, 2, 2, 2])}),
    ]
    for call in calls:
        with pytest.raises((OSError, ValueError)) as caught:
            call()
        assert_harmless(str(caught.value))
    np.savez(path, logits=np.full((4, 3), np.nan), targets=TARGETS)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tokenloss.compare_files(path, {NAME: of_scores(folder, "n")})
    assert "owned" in str(told[0].message)
    for warning in told:
        assert_harmless(str(warning.message))
