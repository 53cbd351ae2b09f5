"""The command line: its figures, how it shows them, its bounded memory, and one line for whatever is wrong."""

import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tokenloss
from tokenloss import cli, report

SAMPLE = Path(__file__).parent / "data" / "whisper-tiny-en.npz"
SHARED = Path(__file__).parents[2] / "shared" / "data"
LOGITS = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 9.0]], np.float32)
TARGETS = np.array([0, 1, 2, 0])


@pytest.fixture
def run(capsys):
    """Run the command line here; its exit status and what it printed."""

    def run(*argv):
        status = cli.main([str(arg) for arg in argv])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def figures(run):
    """The JSON of a score."""

    def figures(*argv):
        status, out, err = run("score", *argv, "--json")
        assert (status, err) == (0, "")
        return json.loads(out, parse_constant=pytest.fail)

    return figures


@pytest.fixture
def npz(tmp_path):
    """Save arrays as a .npz file."""

    def npz(name="scores.npz", **arrays):
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    return npz


@pytest.fixture
def npy(tmp_path):
    """Save two arrays as .npy files."""

    def npy(scores, targets):
        paths = tmp_path / "scores.npy", tmp_path / "targets.npy"
        for path, array in zip(paths, (scores, targets), strict=True):
            np.save(path, array)
        return paths

    return npy


def process(*argv, stdout=subprocess.PIPE, program=("-m", "tokenloss"), **environment):
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", *program, *map(str, argv)],
        stdout=stdout, stderr=subprocess.PIPE, text=True, encoding="utf-8", timeout=60, check=False,
        env={"PYTHONUTF8": "1"} | os.environ | environment,
    )  # fmt: skip


# -- figures ----------------------------------------------------------------------------------------------------------


def exact_losses(logits, targets):
    wide = logits.astype(np.longdouble)
    shifted = wide - wide.max(-1, keepdims=True)
    return np.log(np.exp(shifted).sum(-1)) - np.take_along_axis(shifted, targets[..., None], -1)[..., 0]


def test_sample(figures):
    with np.load(SAMPLE) as data:
        logits, targets, tokens = data["logits"], data["targets"], data["tokens"]
    losses = exact_losses(logits, targets)
    found = figures(SAMPLE, "--top", 3)
    loss, stderr = float(losses.mean()), float(losses.std(ddof=1)) / math.sqrt(len(losses))
    assert found["files"] == [str(SAMPLE)]
    assert (found["kind"], found["shape"], found["dtype"]) == ("logits", list(logits.shape), "float16")
    assert (found["tokens"], found["ignored"], found["accuracy"]) == (len(targets), 0, 1.0)
    assert found["loss"] == pytest.approx(loss, abs=2e-7)
    assert found["stderr"] == pytest.approx(stderr, abs=2e-7)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    assert found["perplexity_interval"] == pytest.approx(
        [math.exp(loss - 1.959964 * stderr), math.exp(loss + 1.959964 * stderr)], rel=1e-6
    )
    assert found["bits_per_token"] == pytest.approx(loss / math.log(2), rel=1e-6)
    worst = np.argsort(-losses)[:3]
    assert [token["position"] for token in found["costliest"]] == worst.tolist()
    assert [token["target"] for token in found["costliest"]] == targets[worst].tolist()
    assert [token["text"] for token in found["costliest"]] == tokens[worst].tolist()
    assert [token["loss"] for token in found["costliest"]] == pytest.approx(losses[worst].astype(float), abs=2e-7)
    assert [token["probability"] for token in found["costliest"]] == pytest.approx(np.exp(-losses[worst]).astype(float))
    assert found["bytes"] == logits.nbytes
    assert found["gb_per_second"] == pytest.approx(found["bytes"] / found["seconds"] / 1e9)


def test_sample_is_small():
    assert SAMPLE.stat().st_size < 1_400_000


@pytest.mark.skipif(not SHARED.exists(), reason="the whole data set is not here")
def test_whole_data_set(figures):
    expected = json.loads((SHARED / "whisper-tiny-en.json").read_text())["whisper-tiny-en"]
    found = figures(SHARED / "whisper-tiny-en.npz")
    assert found["tokens"] == expected["n"]
    assert found["loss"] == pytest.approx(expected["mean_nll"], abs=2e-7)
    assert found["accuracy"] == 1.0


@pytest.mark.parametrize("kind", ["logits", "log_probs", "probs"])
def test_kinds(kind, figures, npz, npy):
    log_probs = LOGITS - tokenloss.logsumexp(LOGITS)[:, None]
    scores = {"logits": LOGITS, "log_probs": log_probs, "probs": np.exp(log_probs)}[kind]
    loss = tokenloss.cross_entropy(LOGITS, TARGETS)
    from_npz = figures(npz(**{kind: scores}, targets=TARGETS))
    from_npy = figures(*npy(scores, TARGETS), "--kind", kind)
    assert from_npz["loss"] == pytest.approx(loss, rel=1e-6)
    for same in ("kind", "tokens", "loss", "stderr", "accuracy", "costliest", "bytes"):
        assert from_npz[same] == from_npy[same]
    assert from_npz["accuracy"] == 0.5  # of equal scores, the first is the guess


def test_npy_holds_logits_unless_told(figures, npy):
    assert figures(*npy(LOGITS, TARGETS))["loss"] == tokenloss.cross_entropy(LOGITS, TARGETS)


@pytest.mark.parametrize("block_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4), (0,), (3, 0)])
def test_shapes_layouts_and_blocks(shape, dtype, order, block_bytes, figures, npy, monkeypatch):
    monkeypatch.setattr(cli, "_BLOCK_BYTES", block_bytes)
    rng = np.random.default_rng(0)
    logits = np.asarray(rng.normal(size=(*shape, 11)), dtype, order=order)
    targets = np.asarray(rng.integers(11, size=shape), np.int32, order=order)
    found = figures(*npy(logits, targets), "--top", 2)
    losses = np.ravel(tokenloss.cross_entropy(logits, targets, reduction="none"))
    assert found["tokens"] == losses.size
    assert found["loss"] == (tokenloss.cross_entropy(logits, targets) if losses.size else None)
    assert [token["position"] for token in found["costliest"]] == np.argsort(-losses)[:2].tolist()
    assert found["accuracy"] == (np.mean(logits.argmax(-1) == targets) if losses.size else None)


def test_ignored(figures, npz):
    targets = np.array([0, -1, 2, -1])
    path = npz(logits=LOGITS, targets=targets)
    found = figures(path, "--ignore-index", "-1", "--top", 9)
    assert (found["tokens"], found["ignored"]) == (2, 2)
    assert found["loss"] == tokenloss.cross_entropy(LOGITS, targets, ignore_index=-1)
    assert [token["position"] for token in found["costliest"]] == [2, 0]
    assert found["accuracy"] == 0.5
    assert found["bytes"] == 2 * LOGITS[0].nbytes


def test_all_ignored(figures, run, npz):
    path = npz(logits=LOGITS, targets=np.full(4, -100))
    found = figures(path)
    assert (found["tokens"], found["ignored"], found["costliest"]) == (0, 4, [])
    for name in ("loss", "stderr", "perplexity", "bits_per_token", "accuracy"):
        assert found[name] is None
    assert found["perplexity_interval"] == [None, None]
    status, out, _ = run("score", path)
    assert status == 0
    assert "4 ignored" in out


@pytest.mark.parametrize("targets", [np.full(4, -100), np.empty((4, 0))], ids=["class ids", "distributions"])
def test_no_classes(targets, figures, npy):
    found = figures(*npy(LOGITS[:, :0], targets))
    assert found["tokens"] + found["ignored"] == 4
    assert found["bytes"] == 0


def test_unsigned_targets(figures, npz):
    found = figures(npz(logits=LOGITS, targets=TARGETS.astype(np.uint64)))
    assert found["loss"] == tokenloss.cross_entropy(LOGITS, TARGETS)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.float16, np.float64])
def test_distributions(dtype, figures, npz):
    found = figures(npz(logits=LOGITS, targets=np.eye(3, dtype=dtype)[TARGETS]))
    assert found["loss"] == tokenloss.cross_entropy(LOGITS, TARGETS)
    assert found["accuracy"] == 0.5
    assert [(token["position"], token["target"]) for token in found["costliest"]] == [(3, 0), (2, 2), (0, 0), (1, 1)]


def test_infinite_and_undefined_losses_are_null(figures, run, npz):
    logits = LOGITS.copy()
    logits[0, 0], logits[2, 1] = -np.inf, np.nan
    path = npz(logits=logits, targets=TARGETS)
    found = figures(path, "--top", 3)
    assert [token["position"] for token in found["costliest"]] == [0, 2, 3]
    assert found["loss"] is found["costliest"][0]["loss"] is found["costliest"][1]["loss"] is None
    assert found["costliest"][0]["probability"] == 0.0
    status, out, err = run("score", path)
    assert (status, err) == (0, "")
    assert " inf " in out


def test_losses_below_zero(figures, npz):
    found = figures(npz(log_probs=np.full((3, 2), 1e4), targets=np.zeros(3, int)))  # no log-probabilities at all
    assert found["loss"] == -1e4
    assert found["costliest"][0]["probability"] is None


@pytest.mark.parametrize("block_rows", [1, 3, 100])
@pytest.mark.parametrize("top", [0, 1, 4, 40])
def test_costliest_of_equal_losses_are_the_first(top, block_rows, figures, npz, monkeypatch):
    monkeypatch.setattr(cli, "_BLOCK_ROWS", block_rows)
    targets = np.random.default_rng(1).integers(3, size=20)
    found = figures(npz(logits=np.tile(np.float32([3, 2, 1]), (20, 1)), targets=targets), "--top", top)
    assert [token["position"] for token in found["costliest"]] == np.argsort(-targets, kind="stable")[:top].tolist()


@pytest.mark.parametrize("workers", [1, 2, 1000])
def test_workers_change_no_bit(workers, figures):
    one, other = figures(SAMPLE), figures(SAMPLE, "--workers", workers)
    assert one["loss"] == other["loss"]
    assert one["costliest"] == other["costliest"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_is_bounded(tmp_path):
    shape, size = (1024, 1 << 18), 1 << 30  # a file of zeros that takes no room on the disk
    with (tmp_path / "logits.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + size)
    np.save(tmp_path / "targets.npy", np.zeros(shape[0], np.int64))
    program = (
        "import sys; from tokenloss.cli import main; from pathlib import Path; status = main();"
        # of this process alone, where resource.getrusage would count the one that started it
        "peak = Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0];"
        "print(peak, file=sys.stderr); sys.exit(status)"
    )
    files = tmp_path / "logits.npy", tmp_path / "targets.npy"
    done = process("score", *files, "--json", program=("-c", program))
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["loss"] == pytest.approx(18 * math.log(2), abs=2e-7)
    assert (found["accuracy"], found["bytes"]) == (1.0, size)
    assert int(done.stderr) * 1024 < 200e6


# -- how it looks -----------------------------------------------------------------------------------------------------

SUMMARY = """\
FILE  logits, 4 × 3, float32

  tokens           4
  loss             2.65035  ± 2.13 nats
  perplexity       14.159   95 % interval 0.21904 to 915.23
  bits per token   3.82364
  greedy accuracy  50.00 %
  time             0.5 s    9.6e-08 GB/s

  costliest tokens
  position  target    loss  probability  text
         3       0  9.0002     0.000123  [bold]d
         2       2  1.0986        0.333  \\x1b[31mĠc
         0       0  0.4076        0.665  a\\nb
         1       1  0.0949        0.909  ,
"""  # noqa: RUF001 -- the report has a multiplication sign


@pytest.mark.parametrize("rich", [True, False])
def test_summary(rich, run, npz, monkeypatch):
    if not rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(cli, "time", SimpleNamespace(perf_counter=iter([1.0, 1.5]).__next__))
    path = npz(logits=LOGITS, targets=TARGETS, tokens=np.array(["a\nb", ",", "\x1b[31mĠc", "[bold]d"]))
    status, out, err = run("score", path)
    assert (status, err) == (0, "")
    assert re.sub(" +\n", "\n", out).replace(str(path), "FILE") == SUMMARY


def test_summary_without_text(run, npz):
    _, out, _ = run("score", npz(logits=LOGITS, targets=TARGETS), "--top", 1)
    assert out.rstrip().endswith("9.0002     0.000123")
    assert "probability  text" not in out


def test_long_text_is_folded(run, npz):
    text = "".join(map(str, range(100)))
    _, out, _ = run("score", npz(logits=LOGITS[:1], targets=TARGETS[:1], tokens=np.array([text])))
    assert max(map(len, out.splitlines()[1:])) <= 80
    assert text in "".join(out.split())


def test_text_beyond_the_encoding_is_escaped():
    done = process("score", SAMPLE, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u0120heaven" in done.stdout


def test_rich_missing():
    program = "import sys; sys.modules['rich'] = None; from tokenloss.cli import main; sys.exit(main())"
    plain, rich = process("score", SAMPLE, program=("-c", program)), process("score", SAMPLE)
    assert (plain.returncode, plain.stderr) == (0, "")
    words = [line.split() for line in plain.stdout.splitlines()]
    assert [line for line in words if "time" not in line] == [
        line.split() for line in rich.stdout.splitlines() if "time" not in line
    ]


class Terminal(io.StringIO):
    """Something to write on that says it is a terminal."""

    def isatty(self):
        return True


def test_progress_by_rich(run, monkeypatch):
    monkeypatch.setattr(report, "_PATIENCE", 0)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert run("score", SAMPLE)[0] == 0
    assert "100% 1.6/1.6 MB" in re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue())


def test_progress_in_plain_text(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(report, "_PATIENCE", 0)
    monkeypatch.setattr(cli, "_BLOCK_ROWS", 10)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert run("score", SAMPLE)[0] == 0
    lines = ["", " 67% of 0.00156 GB", "100% of 0.00156 GB", " " * 18, ""]
    assert terminal.getvalue() == "\r".join(lines)


def test_no_progress_where_nobody_looks(run, monkeypatch):
    monkeypatch.setattr(report, "_PATIENCE", 0)
    assert run("score", SAMPLE)[2] == ""


def test_info(run):
    config = tokenloss.show_config(mode="dicts")
    status, out, err = run("info")
    assert (status, err) == (0, "")
    for word in (config["version"], config["instruction_set"], *config["available"], str(config["workers"])):
        assert word in out
    assert json.loads(run("info", "--json")[1]) == config


def test_version_and_help(capsys):
    for argv, word in (["--version"], f"tokenloss {tokenloss.__version__}\n"), (["--help"], "tokenloss[cli]"):
        with pytest.raises(SystemExit) as ended:
            cli.main(argv)
        assert ended.value.code == 0
        assert word in capsys.readouterr().out


# -- what is wrong ----------------------------------------------------------------------------------------------------


def assert_refused(result, *words):
    status, out, err = result
    assert (status, out) == (2, "")
    assert re.fullmatch(r"tokenloss: error: [^\n]+\n", err)
    for word in words:
        assert str(word) in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["COMMAND"]),
        (["sing"], ["'sing'"]),
        (["score"], ["FILE"]),
        (["score", SAMPLE, "--tune"], ["--tune"]),
        (["score", SAMPLE, "--top", "-1"], ["--top", "'-1'", "at least 0"]),
        (["score", SAMPLE, "--top", "x"], ["--top", "'x'"]),
        (["score", SAMPLE, "--workers", "0"], ["--workers", "'0'", "at least 1"]),
        (["score", SAMPLE, "--workers", "1.5"], ["--workers", "'1.5'"]),
        (["score", SAMPLE, "--ignore-index", "none"], ["--ignore-index", "'none'"]),
        (["score", SAMPLE, "--kind", "odds"], ["--kind", "'odds'", "log_probs"]),
        (["score", SAMPLE, "--kind", "probs"], [SAMPLE, "--kind"]),
        (["score", SAMPLE, "targets.npy"], [SAMPLE, "targets.npy"]),
        (["score", "none.npz"], ["none.npz: cannot be read: No such file"]),
        (["score", "two\nlines.npz"], [r"two\nlines.npz: cannot be read: "]),
        (["score", SAMPLE.parent], [f"{SAMPLE.parent}: cannot be read: "]),
        (["score", __file__], [f"{__file__}: is neither a .npy nor a .npz file"]),
        (["info", "--top", "1"], ["--top"]),
    ],
)
def test_bad_arguments(argv, words, run):
    assert_refused(run(*argv), *words)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, ["holds nothing", "targets and exactly one of logits, log_probs, probs"]),
        ({"logits": LOGITS}, ["holds logits;"]),
        ({"targets": TARGETS, "scores": LOGITS}, ["holds targets, scores;"]),
        ({"targets": TARGETS, "logits": LOGITS, "probs": LOGITS}, ["exactly one"]),
        ({"targets": TARGETS[:3], "logits": LOGITS}, ["targets has shape (3,)", "(4,)", "fit logits"]),
        ({"targets": TARGETS + 0.0, "probs": LOGITS}, ["targets has dtype float64", "integer"]),
        ({"targets": TARGETS, "log_probs": TARGETS}, ["log_probs has dtype int64", "float16"]),
        ({"targets": TARGETS, "logits": np.float32(1)}, ["logits is a scalar"]),
        ({"targets": np.array([0, 1, 3, 7]), "probs": LOGITS}, ["targets[2] is 3", "[0, 3)"]),
        ({"targets": np.array([[0, -100], [-1, 0]]), "logits": LOGITS.reshape(2, 2, 3)}, ["targets[1, 0] is -1"]),
        ({"targets": TARGETS, "logits": LOGITS[:, :0]}, ["targets[0] is 0", "[0, 0)"]),
        ({"targets": np.array([None] * 4), "logits": LOGITS}, ["targets: cannot be read", "allow_pickle"]),
        ({"targets": TARGETS, "logits": LOGITS, "tokens": TARGETS}, ["tokens has dtype int64", "text"]),
        ({"targets": TARGETS, "logits": LOGITS, "tokens": np.array(["a"])}, ["tokens has shape (1,)", "(4,)"]),
    ],
)
def test_bad_arrays(arrays, words, run, npz):
    path = npz(**arrays)
    assert_refused(run("score", path), f"{path}: ", *words)


def test_bad_target_far_into_a_file(run, npy, monkeypatch):
    monkeypatch.setattr(cli, "_BLOCK_BYTES", 10)
    targets = np.zeros(1000, np.int16)
    targets[777] = 3
    paths = npy(np.zeros((1000, 3), np.float32), targets)
    assert_refused(run("score", *paths), ", ".join(map(str, paths)), "targets[777] is 3")


def test_bad_npy_files(run, npy, npz):
    scores, targets = npy(LOGITS, TARGETS)
    archive = npz(logits=LOGITS, targets=TARGETS)
    assert_refused(run("score", scores), f"{scores}: ", "targets")
    assert_refused(run("score", scores, scores.parent / "none.npy"), "none.npy: cannot be read: No such file")
    assert_refused(run("score", scores, archive), f"{archive}: is a .npz file")
    assert_refused(run("score", targets, targets), "logits has dtype int64")
    np.save(targets, np.array([None] * 4))
    assert_refused(run("score", scores, targets), f"{targets}: cannot be read")


@pytest.mark.parametrize("kept", [0, 3, 8, 60, 130])
def test_truncated_npy(kept, run, npy):
    scores, targets = npy(LOGITS, TARGETS)
    scores.write_bytes(scores.read_bytes()[:kept])
    assert_refused(run("score", scores, targets), f"{scores}: ")


@pytest.mark.parametrize("kept", [2, 100, 1000, 100_000, SAMPLE.stat().st_size - 1])
def test_truncated_npz(kept, run, tmp_path):
    path = tmp_path / "sample.npz"
    path.write_bytes(SAMPLE.read_bytes()[:kept])
    assert_refused(run("score", path), f"{path}: cannot be read: ")


def test_damaged_npz(run, tmp_path):
    data = bytearray(SAMPLE.read_bytes())
    data[5000] ^= 255
    path = tmp_path / "sample.npz"
    path.write_bytes(data)
    assert_refused(run("score", path), f"{path}: logits: cannot be read: ")


@pytest.mark.parametrize("command", [("score", SAMPLE), ("info",)])
def test_bad_environment(command, run, monkeypatch):
    monkeypatch.setenv("TOKENLOSS_NUM_WORKERS", "many")
    assert_refused(run(*command), "TOKENLOSS_NUM_WORKERS", "'many'")


def raising(error):
    def function(*_, **__):
        raise error

    return function


def test_out_of_memory(run, monkeypatch):
    monkeypatch.setattr(cli.np, "load", raising(MemoryError()))
    assert_refused(run("score", SAMPLE), f"{SAMPLE}: does not fit in memory")


def test_ctrl_c(run, monkeypatch):
    monkeypatch.setattr(cli, "token_scores", raising(KeyboardInterrupt))
    assert run("score", SAMPLE) == (130, "", "tokenloss: interrupted\n")


def test_errors_in_a_process():
    done = process("score", "none.npz")
    assert_refused((done.returncode, done.stdout, done.stderr), "none.npz")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes there close otherwise")
@pytest.mark.parametrize("argv", [("score", SAMPLE), ("score", SAMPLE, "--json"), ("info",), ("--help",)])
@pytest.mark.parametrize("hide", ["", "sys.modules['rich'] = None;"])
def test_closed_pipe_is_silent(argv, hide):
    reading, writing = os.pipe()
    os.close(reading)
    program = f"import sys; {hide} from tokenloss.cli import main; sys.exit(main())"
    with os.fdopen(writing, "wb") as closed:
        done = process(*argv, stdout=closed, program=("-c", program), PYTHONUNBUFFERED="")
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_full_disk():
    with Path("/dev/full").open("w") as full:
        done = process("score", SAMPLE, "--json", stdout=full)
    assert (done.returncode, done.stderr) == (2, "tokenloss: error: cannot write: No space left on device\n")
