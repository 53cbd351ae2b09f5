"""What score writes to files: --per-token, --plot and --html, which replace no input."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from candidates import Many
from clients import chat, save_lines
from commands import LOGITS, SUMMARY_FIELDS, TARGETS, assert_refused, process, raising
from places import SAMPLE
from safetensors.numpy import save_file
from tables import read_table

import tokenloss
from tokenloss._evaluation import score as shard_run

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")


@pytest.mark.parametrize(("kind", "shift"), [("logits", True), ("log_probs", False), ("probs", True)])
def test_outputs_of_one_run_agree(shift, kind, command, tmp_path):
    rng = np.random.default_rng(11)
    logits, targets = rng.normal(size=(5, 30, 40), scale=3).astype(np.float32), rng.integers(40, size=(5, 30))
    targets[0, 20:], ids = -100, np.repeat([0, 1, 2, 2, -1], 30).reshape(5, 30)
    make = {"logits": np.array, "log_probs": tokenloss.log_softmax, "probs": tokenloss.softmax}[kind]
    np.savez(tmp_path / "s.npz", **{kind: make(logits)}, targets=targets, segment_ids=ids)
    files = {"--per-token": "t.npy", "--per-sequence": "s.csv", "--html": "p.html", "--plot": "p.svg"}
    options = [word for option, name in files.items() for word in (option, tmp_path / name)]
    status, printed, _ = command(
        "score", tmp_path / "s.npz", "--shift" if shift else "--no-shift", *options, "--format", "json"
    )
    figures, table = json.loads(printed), read_table(tmp_path / "t.npy")
    kept = table["kept"] == 1
    assert (status, figures["count"], figures["n_ignored"]) == (0, kept.sum(), (~kept).sum())
    assert figures["loss"] == pytest.approx(table["nll"][kept].mean(), rel=1e-12)
    assert figures["accuracy"] == table["is_greedy"][kept].mean()
    assert [token["nll"] for token in figures["highest_loss_tokens"]] == sorted(table["nll"][kept])[::-1][:5]
    sequences = read_table(tmp_path / "s.csv")
    for number, tokens, nll in zip(*(sequences[name] for name in ("sequence", "count", "nll")), strict=True):
        own = kept & (table["sequence"] == number)
        assert (tokens, nll) == (own.sum(), pytest.approx(table["nll"][own].sum(), rel=1e-12))
    page, plot = ((tmp_path / name).read_text("utf-8") for name in ("p.html", "p.svg"))
    assert all(text in page for text in (f"{figures['loss']:.5g}", f"{figures['perplexity']:.5g}"))
    assert f"{kept.sum()} tokens" in plot
    assert f"mean {figures['loss']:.4g}" in plot


def test_outputs_change_no_figure(score_json, tmp_path):
    plain = score_json(SAMPLE)
    result = score_json(SAMPLE, "--plot", tmp_path / "losses.png", "--html", tmp_path / "page.html")
    for name in SUMMARY_FIELDS:
        assert result[name] == plain[name]
    page = (tmp_path / "page.html").read_text("utf-8")
    assert re.search(r"beginning.*God.*created.*the.*heaven", page)
    assert f"{plain['perplexity']:.5g}" in page


COMMANDS = {"score": "score base/part-*.npz", "compare one": "compare base q4", "compare": "compare base q8 q2 q4"}
OUTPUTS = [
    (name, option, suffix)
    for name in COMMANDS
    for option, suffixes in [
        ("--per-token", [".npy", ".csv", ".parquet"]), ("--html", [".html"]), ("--plot", [".png", ".svg", ".pdf"]),
        *([("--per-sequence", [".npy", ".csv", ".parquet"])] if name == "score" else []),
    ]
    for suffix in suffixes
]  # fmt: skip
BEGIN = {".npy": b"\x93NUMPY", ".parquet": b"PAR1", ".html": b"<!doctype html>", ".png": b"\x89PNG", ".svg": b"<?xml",
         ".pdf": b"%PDF", ".csv": b""}  # fmt: skip


@pytest.mark.parametrize(("name", "option", "suffix"), OUTPUTS)
def test_outputs_are_written_whole_or_not_at_all(name, option, suffix, command, tmp_path, monkeypatch):
    """The second time, the last shard is damaged."""
    monkeypatch.chdir(tmp_path)
    Many(tmp_path)
    out = tmp_path / f"out{suffix}"
    argv = *COMMANDS[name].split(), option, out
    status, printed, err = command(*argv)
    assert (status, err) == (0, "")
    assert "perplexity" in printed.lower() or "PPL" in printed
    assert out.read_bytes().startswith(BEGIN[suffix])
    out.write_text("precious")
    data = bytearray(Path("base/part-1.npz").read_bytes())
    data[400] ^= 255
    Path("base/part-1.npz").write_bytes(data)
    assert_refused(command(*argv), "part-1.npz: logits: cannot be read: ")
    assert out.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["base", "q8", "q2", "q4", out.name])


def test_output_without_its_package(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert_refused(command("score", SAMPLE, "--per-token=out.parquet"), "--per-token: ", "pip install pyarrow")


@pytest.mark.parametrize("option", ["--per-token", "--plot", "--html"])
def test_output_that_cannot_be_written(option, command, tmp_path):
    path = tmp_path / "none" / "out.csv" if option == "--per-token" else tmp_path / "none" / "out.png"
    assert_refused(command("score", SAMPLE, option, path), f"{path}: cannot be written: No such file")


@pytest.fixture
def input_files(tmp_path, monkeypatch):
    """Files that are read, in the working directory, and what each of them holds."""
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", logits=LOGITS, targets=TARGETS)
    np.save("l.npy", LOGITS)
    np.save("t.npy", TARGETS)
    Path("text.png").write_text("some words")
    group = zarr.open_group("s.zarr", mode="w")
    group.create_array("logits", data=LOGITS)
    group.create_array("targets", data=TARGETS)
    hidden = np.eye(4, 3, dtype=np.float32)
    np.savez("h.npz", hidden_states=hidden, targets=TARGETS)
    Path("model").mkdir()
    shards = {f"model-0000{i}-of-00002.safetensors": name for i, name in ((1, "other"), (2, "lm_head.weight"))}
    for shard, name in shards.items():
        save_file({name: np.eye(5, 3, dtype=np.float32)}, Path("model", shard))
    index = {"weight_map": {name: shard for shard, name in shards.items()}}
    Path("model", "model.safetensors.index.json").write_text(json.dumps(index))
    Path("model", "config.json").write_text("{}")
    shutil.copytree("model", "adapted")
    Path("adapted", "adapter_config.json").write_text("{}")
    Path("gpt2").mkdir()
    letters = [chr(i) for i in (*range(33, 127), *range(161, 173), *range(174, 324))]  # bytes, as GPT-2 writes them
    Path("gpt2", "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    Path("gpt2", "merges.txt").write_text("#version: 0.2")
    Path("gpt2", "tokenizer_config.json").write_text("{}")
    save_lines(Path("r.jsonl"), chat(("a", -0.5)))
    if sys.platform != "win32":
        Path("link.html").symlink_to("model/model.safetensors.index.json")
        Path("far").mkdir()
        Path("far", "chunk").write_bytes(Path("s.zarr/logits/c/0/0").read_bytes())
        Path("s.zarr/logits/c/0/0").unlink()
        Path("s.zarr/logits/c/0/0").symlink_to(Path("far/chunk").resolve())
        Path("link.csv").symlink_to("t.npy")
        Path("hard.csv").hardlink_to("t.npy")
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("score l.npy t.npy --per-token t.npy", "--per-token t.npy: would replace t.npy"),
        ("score l.npy t.npy --per-token ./l.npy", "--per-token ./l.npy: would replace l.npy"),
        ("score l.npy t.npy --per-token link.csv", "--per-token link.csv: would replace t.npy"),
        ("score l.npy --targets t.npy --per-token hard.csv", "--per-token hard.csv: would replace t.npy"),
        ("score a.npz --html a.npz", "--html a.npz: would replace a.npz"),
        ("score a.npz --state a.npz", "--state a.npz: would replace a.npz"),
        ("score a*.npz --state a.npz", "--state a.npz: would replace a.npz"),
        ("score a.npz --text text.png --plot text.png", "--plot text.png: would replace text.png"),
        ("score s.zarr --html s.zarr/zarr.json", "--html s.zarr/zarr.json: would be written into s.zarr"),
        ("score s.zarr --html s.zarr/logits/x", "--html s.zarr/logits/x: would be written into s.zarr"),
        ("score a.npz --html x --per-token ./x", "--per-token: path is"),
        ("score a.npz --html ./x.csv --per-token x.csv", "--html ./x.csv: would replace what --per-token writes"),
        ("score a.npz --html x.png --plot x.png", "--html x.png: would replace what --plot writes"),
        ("score a.npz --html none/x.html", "--html none/x.html: cannot be written: No such file or directory"),
        ("score a.npz --html s.zarr", "--html s.zarr: cannot be written: Is a directory"),
        ("score h.npz --lm-head model --html link.html", "would replace model/model.safetensors.index.json"),
        ("score h.npz --lm-head model --html model/config.json", "would replace model/config.json"),
        (
            "score h.npz --lm-head model/model.safetensors.index.json --html model/model-00001-of-00002.safetensors",
            "would replace model/model-00001-of-00002.safetensors",
        ),
        ("score s.zarr --html far/chunk", "--html far/chunk: would replace s.zarr/logits/c/0/0"),
        ("compare a.npz l.npy --size l.npy=model --html model/config.json", "would replace model/config.json"),
        ("compare h.npz h.npz --lm-head model --html link.html", "would replace model/model.safetensors.index.json"),
        ("compare a.npz l.npy --per-token t.npy --targets t.npy", "--per-token t.npy: would replace t.npy"),
        ("score a.npz --tokenizer gpt2 --html gpt2/merges.txt", "would replace gpt2/merges.txt"),
        ("score a.npz --tokenizer gpt2/vocab.json --html gpt2/tokenizer_config.json", "would replace gpt2/tokenizer_"),
        (
            "compare a.npz l.npy --text text.png --tokenizer-a gpt2 --tokenizer-b gpt2 --html gpt2/merges.txt",
            "would replace gpt2/merges.txt",
        ),
        ("score h.npz --lm-head adapted:lm_head.weight --html adapted/adapter_config.json", "would replace adapted/ad"),
        ("compare r.jsonl s.zarr --html far/chunk", "--html far/chunk: would replace s.zarr/logits/c/0/0"),
        ("compare r.jsonl r.jsonl --size r.jsonl=text.png --html text.png", "--html text.png: would replace text.png"),
        ("compare a.npz s.zarr --plot s.zarr/x.png", "--plot s.zarr/x.png: would be written into s.zarr"),
    ],
)
def test_output_that_would_replace_an_input(argv, words, input_files, command, monkeypatch):
    if sys.platform == "win32" and any(word in argv + words for word in ("link", "hard", "far/", "cannot")):
        pytest.skip("on Windows, links need a privilege, and the system words its errors differently")
    monkeypatch.setattr(shard_run, "score_shard", raising(AssertionError))
    assert_refused(command(*argv.split()), words)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == input_files


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs /dev/null")
def test_output_to_one_device_twice(input_files, command):
    Path("null.csv").symlink_to("/dev/null")
    assert command("score", "a.npz", "--html", "/dev/null", "--per-token", "null.csv")[0] == 0


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="needs /dev/stdout")
@pytest.mark.slow
def test_html_that_would_replace_stdout(input_files):
    for out in ("/dev/stdout", "page.html"):
        with Path("page.html").open("wb") as file:
            done = process("score", "a.npz", "--html", out, stdout=file)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"--html {out}: would replace stdout" in done.stderr
    done = process("score", "a.npz", "--html", "/dev/stdout")  # a pipe: one after the other
    assert done.returncode == 0
    assert re.fullmatch("<!doctype html>.*</html>\na.npz  logits.*", done.stdout, re.DOTALL)
