"""The command line: its figures, how it shows them, its bounded memory, and one line for whatever is wrong."""

import csv
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import safetensors.numpy
import zarr

import tokenloss
from tokenloss import _commands, _terminal, cli
from tokenloss._evaluation import plan, summary
from tokenloss._evaluation import run as shard_run
from tokenloss.comparison import UNNORMALIZED
from tokenloss.formats import llama_cpp
from tokenloss.formats import npz as npz_format
from tokenloss.scores import COLUMNS

pytestmark = pytest.mark.thread_unsafe(reason="a command has a process of its own, and prints to its stdout")
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
    listed = found["highest_loss_tokens"]
    highest = {name: [token[name] for token in listed] for name in listed[0]}
    assert highest["position"] == worst.tolist()
    assert highest["target"] == targets[worst].tolist()
    assert highest["text"] == tokens[worst].tolist()
    assert highest["loss"] == pytest.approx(losses[worst].astype(float), abs=2e-7)
    assert highest["probability"] == pytest.approx(np.exp(-losses[worst]).astype(float))
    assert found["bytes"] == logits.nbytes
    assert found["gb_per_second"] == pytest.approx(found["bytes"] / found["seconds"] / 1e9)


def test_sample_is_small():
    assert SAMPLE.stat().st_size < 1_400_000


@pytest.mark.skipif(not SHARED.exists(), reason="the whole data set is not beside the checkout")
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
    for same in ("kind", "tokens", "loss", "stderr", "accuracy", "bytes"):
        assert from_npz[same] == from_npy[same]
    for one, other in zip(from_npz["highest_loss_tokens"], from_npy["highest_loss_tokens"], strict=True):
        assert one == other | {"file": one["file"]}
    assert from_npz["accuracy"] == 0.5  # of equal scores, the first is the guess


def test_npy_holds_logits_unless_told(figures, npy):
    assert figures(*npy(LOGITS, TARGETS))["loss"] == tokenloss.cross_entropy(LOGITS, TARGETS)


@pytest.mark.parametrize("block_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4), (0,), (3, 0)])
def test_shapes_layouts_and_blocks(shape, dtype, order, block_bytes, figures, npy, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_BYTES", block_bytes)
    rng = np.random.default_rng(0)
    logits = np.asarray(rng.normal(size=(*shape, 11)), dtype, order=order)
    targets = np.asarray(rng.integers(11, size=shape), np.int32, order=order)
    found = figures(*npy(logits, targets), "--top", 2)
    losses = np.ravel(tokenloss.cross_entropy(logits, targets, reduction="none"))
    assert found["tokens"] == losses.size
    assert found["loss"] == (tokenloss.cross_entropy(logits, targets) if losses.size else None)
    assert [token["position"] for token in found["highest_loss_tokens"]] == np.argsort(-losses)[:2].tolist()
    assert found["accuracy"] == (np.mean(logits.argmax(-1) == targets) if losses.size else None)


def test_ignored(figures, npz):
    targets = np.array([0, -1, 2, -1])
    path = npz(logits=LOGITS, targets=targets)
    found = figures(path, "--ignore-index", "-1", "--top", 9)
    assert (found["tokens"], found["ignored"]) == (2, 2)
    assert found["loss"] == tokenloss.cross_entropy(LOGITS, targets, ignore_index=-1)
    assert [token["position"] for token in found["highest_loss_tokens"]] == [2, 0]
    assert found["accuracy"] == 0.5
    assert found["bytes"] == 2 * LOGITS[0].nbytes


def test_all_ignored(figures, run, npz):
    path = npz(logits=LOGITS, targets=np.full(4, -100))
    found = figures(path)
    assert (found["tokens"], found["ignored"], found["highest_loss_tokens"]) == (0, 4, [])
    for name in ("loss", "stderr", "perplexity", "bits_per_token", "accuracy"):
        assert found[name] is None
    assert found["perplexity_interval"] == [None, None]
    status, out, _ = run("score", path)
    assert status == 0
    assert "4 ignored" in out


@pytest.mark.parametrize("targets", [np.full(4, -100), np.empty((4, 0))], ids=["class ids", "distributions"])
def test_no_classes(targets, figures, npy):
    scores, path = npy(LOGITS[:, :0], targets)
    found = figures(scores, "--targets", path)
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
    highest = [(token["position"], token["target"]) for token in found["highest_loss_tokens"]]
    assert highest == [(3, 0), (2, 2), (0, 0), (1, 1)]


def test_infinite_and_undefined_losses_are_null(figures, run, npz):
    logits = LOGITS.copy()
    logits[0, 0], logits[2, 1] = -np.inf, np.nan
    path = npz(logits=logits, targets=TARGETS)
    found = figures(path, "--top", 3)
    assert [token["position"] for token in found["highest_loss_tokens"]] == [0, 2, 3]
    assert found["loss"] is found["highest_loss_tokens"][0]["loss"] is found["highest_loss_tokens"][1]["loss"] is None
    assert found["highest_loss_tokens"][0]["probability"] == 0.0
    status, out, err = run("score", path)
    assert (status, err) == (0, "")
    assert " inf " in out


def test_losses_below_zero(figures, npz):
    shares = np.tile([1.0005, -0.0005], (3, 1))  # rounded so that they are a little below 0
    found = figures(npz(logits=np.tile([0.0, -2e6], (3, 1)), targets=shares))
    assert found["loss"] == pytest.approx(-1e3)
    assert found["highest_loss_tokens"][0]["probability"] is None


@pytest.mark.parametrize("block_rows", [1, 3, 100])
@pytest.mark.parametrize("top", [0, 1, 4, 40])
def test_highest_loss_tokens_of_equal_losses_are_the_first(top, block_rows, figures, npz, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_ROWS", block_rows)
    targets = np.random.default_rng(1).integers(3, size=20)
    found = figures(npz(logits=np.tile(np.float32([3, 2, 1]), (20, 1)), targets=targets), "--top", top)
    positions = [token["position"] for token in found["highest_loss_tokens"]]
    assert positions == np.argsort(-targets, kind="stable")[:top].tolist()


@pytest.mark.parametrize("workers", [1, 2, 1000])
def test_workers_change_no_bit(workers, figures):
    one, other = figures(SAMPLE), figures(SAMPLE, "--workers", workers)
    assert one["loss"] == other["loss"]
    assert one["highest_loss_tokens"] == other["highest_loss_tokens"]


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


# -- shards -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    """Logits of 60 rows, their targets, and the files of three shards of them."""
    rng = np.random.default_rng(3)
    logits, targets = rng.normal(size=(60, 11), scale=3).astype(np.float32), rng.integers(11, size=60)
    targets[::7] = -100
    for name, part in zip("abc", np.split(np.arange(60), [13, 40]), strict=True):
        np.savez(tmp_path / f"part-{name}.npz", logits=logits[part], targets=targets[part])
        np.save(tmp_path / f"logits-{name}.npy", logits[part])
        np.save(tmp_path / f"targets-{name}.npy", targets[part])
    np.save(tmp_path / "all.npy", targets)
    np.savez(tmp_path / "whole.npz", logits=logits, targets=targets)
    return SimpleNamespace(logits=logits, targets=targets, path=tmp_path)


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "zarr", "zip", "kld"])
def test_every_format(suffix, figures, tmp_path):
    path, logits, targets = tmp_path / f"scores.{suffix}", np.tile(LOGITS, (2, 1)), np.tile(TARGETS, 2)
    if suffix == "npz":
        np.savez_compressed(path, logits=logits, targets=targets)
    elif suffix == "safetensors":
        safetensors.numpy.save_file({"logits": logits, "targets": targets}, path)
    elif suffix == "kld":
        llama_cpp.write(path, np.concatenate([np.zeros(10, int), targets]), [logits], 18)
    else:
        store = zarr.storage.ZipStore(path, mode="w") if suffix == "zip" else path
        group = zarr.open_group(store, mode="w", zarr_format=2)
        for name, array in (("logits", logits), ("targets", targets)):
            group.create_array(name, data=array)
        group.store.close()
    found = figures(path)
    assert (found["kind"], found["tokens"]) == ("log_probs" if suffix == "kld" else "logits", 8)
    assert found["loss"] == pytest.approx(tokenloss.cross_entropy(LOGITS, TARGETS), abs=1e-4 if suffix == "kld" else 0)
    assert found["accuracy"] == 0.5


SUMS = (
    "tokens",
    "ignored",
    "loss",
    "stderr",
    "perplexity",
    "perplexity_interval",
    "accuracy",
    "bits_per_token",
    "bytes",
)


def test_shards_add_up(shards, figures):
    whole, parts = figures(shards.path / "whole.npz"), figures(shards.path / "part-*.npz")
    assert parts["files"] == [str(shards.path / f"part-{name}.npz") for name in "abc"]
    for name in SUMS:
        assert parts[name] == whole[name]
    assert parts["shape"] == whole["shape"] == [60, 11]
    assert [part["shape"] for part in parts["shards"]] == [[13, 11], [27, 11], [20, 11]]
    for part, rows in zip(parts["shards"], np.split(np.arange(60), [13, 40]), strict=True):
        assert part["loss"] == tokenloss.cross_entropy(shards.logits[rows], shards.targets[rows])
    starts = dict(zip(parts["files"], (0, 13, 40), strict=True))
    assert [starts[token["file"]] + token["position"] for token in parts["highest_loss_tokens"]] == [
        token["position"] for token in whole["highest_loss_tokens"]
    ]


@pytest.mark.parametrize(
    "targets",
    [
        ["targets-*.npy"],
        ["targets-a.npy", "targets-b.npy", "targets-c.npy"],
        ["targets-[ab].npy", "targets-c.npy"],
        ["all.npy"],
    ],
)
def test_targets_of_shards(targets, shards, figures):
    options = [word for path in targets for word in ("--targets", shards.path / path)]
    found = figures(shards.path / "logits-*.npy", *options)
    assert found["loss"] == tokenloss.cross_entropy(shards.logits, shards.targets)
    assert len(found["files"]) == 6


def test_given_targets_come_before_those_in_a_file(shards, figures):
    np.save(shards.path / "other.npy", np.zeros(60, int))
    found = figures(shards.path / "whole.npz", "--targets", shards.path / "other.npy")
    assert found["loss"] == tokenloss.cross_entropy(shards.logits, np.zeros(60, int))


def test_bad_shards(shards, run):
    logits, targets = shards.path / "logits-*.npy", shards.path / "targets-a.npy"
    assert_refused(run("score", logits), "logits-a.npy: holds no targets", "--targets")
    assert_refused(run("score", logits, "--targets", targets), f"{targets}: has shape (13,); it must hold 60 class ids")
    both = [word for name in "ab" for word in ("--targets", shards.path / f"targets-{name}.npy")]
    assert_refused(run("score", logits, *both), f"{targets}: is one of 2 files of targets; it must be 3")
    np.savez(shards.path / "part-d.npz", logits=shards.logits[:, :7], targets=shards.targets % 7)
    refused = run("score", shards.path / "part-*.npz")
    assert_refused(refused, "part-d.npz: holds logits of 7 classes; it must hold logits of 11, as ", "part-a.npz")
    np.savez(shards.path / "part-d.npz", logits=shards.logits, targets=np.full(60, 11))
    assert_refused(run("score", shards.path / "part-*.npz"), "part-d.npz: targets[0] = 11", "[0, 11)")


@pytest.mark.parametrize("save", ["npy", "npz", "zarr"])
def test_shift(save, figures, tmp_path):
    rng = np.random.default_rng(5)
    logits, tokens = rng.normal(size=(3, 5, 7)).astype(np.float32), rng.integers(7, size=(3, 5))
    tokens[1, 2] = -100
    text = np.array([f"{i}" for i in range(15)]).reshape(3, 5)
    path = tmp_path / f"scores.{save}"
    if save == "npy":
        np.save(path, logits)
        np.save(tmp_path / "tokens.npy", tokens)
        paths = path, tmp_path / "tokens.npy"
    elif save == "npz":
        np.savez(path, logits=logits, targets=tokens, tokens=text)
        paths = (path,)
    else:
        group = zarr.open_group(path, mode="w")
        group.create_array("logits", data=logits, chunks=(2, 2, 3))
        group.create_array("targets", data=tokens)
        paths = (path,)
    found = figures(*paths, "--shift", "--top", 1, "--per-token", tmp_path / "tokens.csv")
    losses = tokenloss.cross_entropy(logits[:, :-1], tokens[:, 1:], reduction="none")
    assert found["loss"] == tokenloss.cross_entropy(logits[:, :-1], tokens[:, 1:])
    assert (found["tokens"], found["ignored"]) == (11, 1)
    i, j = np.unravel_index(losses.argmax(), losses.shape)
    (token,) = found["highest_loss_tokens"]
    assert (token["position"], token["target"]) == (5 * i + j, tokens[i, j + 1])
    assert token["text"] == (text[i, j + 1] if save == "npz" else None)
    table = np.genfromtxt(tmp_path / "tokens.csv", delimiter=",", names=True)
    np.testing.assert_array_equal(table["nll"], losses.ravel())
    np.testing.assert_array_equal(table["target"], tokens[:, 1:].ravel())


def test_shift_does_not_fit(run, npz, tmp_path):
    assert_refused(run("score", npz(logits=LOGITS[0], targets=0), "--shift"), "targets of shape ()", "sequences")
    soft = npz(logits=LOGITS, targets=np.eye(3)[TARGETS])
    assert_refused(run("score", soft, "--shift"), "targets of shape (4, 3)", "an id for each row")
    llama_cpp.write(tmp_path / "base.kld", np.zeros(10, int), [LOGITS], 10)
    assert_refused(run("score", tmp_path / "base.kld", "--shift"), "holds targets that are the next tokens")


@pytest.fixture(params=["1 file", "a file each", "in the files"])
def pieces(request, tmp_path):
    """Shards of one sequence of 12 rows, one of them empty; their arguments, logits, ids and text."""
    rng = np.random.default_rng(8)
    logits, ids = rng.normal(size=(12, 7)).astype(np.float32), rng.integers(7, size=12)
    ids[5] = -100
    text = np.array([f"t{i}" for i in range(12)])
    for name, part in zip("abcd", np.split(np.arange(12), [4, 5, 5]), strict=True):
        np.savez(tmp_path / f"part-{name}.npz", logits=logits[part], targets=ids[part], tokens=text[part])
        np.save(tmp_path / f"logits-{name}.npy", logits[part])
        np.save(tmp_path / f"ids-{name}.npy", ids[part])
    np.save(tmp_path / "all.npy", ids)
    argv = {
        "1 file": ["logits-*.npy", "--targets", tmp_path / "all.npy"],
        "a file each": ["logits-*.npy", "--targets", tmp_path / "ids-*.npy"],
        "in the files": ["part-*.npz"],
    }[request.param]
    return SimpleNamespace(argv=[tmp_path / argv[0], *argv[1:]], logits=logits, ids=ids, path=tmp_path)


def test_shift_loses_no_token_between_shards(pieces, figures):  # W10: --shift
    found = figures(*pieces.argv, "--shift", "--per-token", pieces.path / "out.npy", "--top", 20)
    losses = tokenloss.cross_entropy(pieces.logits[:-1], pieces.ids[1:], reduction="none")
    assert (found["tokens"], found["ignored"], found["without_next"]) == (10, 1, 1)
    assert found["loss"] == tokenloss.cross_entropy(pieces.logits[:-1], pieces.ids[1:])
    table = np.load(pieces.path / "out.npy")
    np.testing.assert_array_equal(table["nll"], losses)
    np.testing.assert_array_equal(table["target"], pieces.ids[1:])
    starts = dict(zip((part["file"] for part in found["shards"]), (0, 4, 5, 5), strict=True))
    places = [starts[token["file"]] + token["position"] for token in found["highest_loss_tokens"]]
    assert sorted(places) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    if pieces.argv[-1] == pieces.path / "part-*.npz":
        assert [token["text"] for token in found["highest_loss_tokens"]] == [f"t{place + 1}" for place in places]


def test_shift_between_shards_says_what_it_leaves_out(pieces, run, figures):  # W10: without_next
    out = run("score", *pieces.argv, "--shift")[1]
    assert re.search("tokens +10 +1 ignored, 1 without a next token\n", out)
    assert figures(*pieces.argv)["without_next"] == 0


def test_shift_between_batches_of_sequences(figures, tmp_path):  # W10: each sequence ends where it ends
    rng = np.random.default_rng(9)
    logits, ids = rng.normal(size=(4, 5, 7)), rng.integers(7, size=(4, 5))
    for name, part in ("a", slice(0, 2)), ("b", slice(2, 4)):
        np.savez(tmp_path / f"part-{name}.npz", logits=logits[part], targets=ids[part])
    np.savez(tmp_path / "part-c.npz", logits=logits[0], targets=ids[0])
    found = figures(tmp_path / "part-*.npz", "--shift")
    assert (found["tokens"], found["without_next"]) == (20, 5)


def test_shift_between_shards_of_other_dtypes(figures, tmp_path):  # W10
    logits = np.random.default_rng(10).normal(size=(4, 300))
    np.savez(tmp_path / "a.npz", logits=logits[:2], targets=np.uint8([7, 8]))
    np.savez(tmp_path / "b.npz", logits=logits[2:], targets=np.int32([299, -100]))
    np.savez(tmp_path / "c.npz", logits=logits[2:], targets=np.uint64([0, 1]))
    np.savez(tmp_path / "d.npz", logits=logits[2:], targets=np.int8([-100, 1]))
    found = figures(tmp_path / "[ab].npz", "--shift")
    assert found["loss"] == tokenloss.cross_entropy(logits[:2], [8, 299])
    assert (found["tokens"], found["ignored"]) == (2, 1)
    found = figures(tmp_path / "[cd].npz", "--shift")
    assert found["loss"] == tokenloss.cross_entropy(logits[2:3], [1])
    assert (found["tokens"], found["ignored"], found["without_next"]) == (2, 1, 1)


def test_shift_to_what_is_no_class(run, npz, models):
    refused = run("score", npz(logits=LOGITS, targets=[0, 1, 2, 7]), "--shift")
    assert_refused(refused, "shifted targets[2] = 7 is out of range [0, 3)")
    np.savez(models.path / "base.npz", logits=models.base, targets=np.where(models.targets < 0, -100, 9))
    refused = run("compare", models.path / "base.npz", models.path / "base.npz", "--shift")
    assert_refused(refused, "shifted targets[", "] = 9 is out of range [0, 9)")


def test_shares_of_a_single_row_that_are_no_distribution(run, npy):
    scores, targets = npy(LOGITS[0], np.array([0.5, 0.25, 0.125], np.float32))
    assert_refused(run("score", scores, "--targets", targets), f"{targets}: targets adds up to 0.875")


def test_shift_between_shards_with_state(pieces, run, figures):  # W10: what follows is part of what a shard is
    state = pieces.path / "state"
    without = figures(*pieces.argv, "--shift")
    for _ in range(2):
        found = figures(*pieces.argv, "--shift", "--state", state)
        assert [found[name] for name in SUMS[:-1]] == [without[name] for name in SUMS[:-1]]
    kept = json.loads(state.read_text())
    assert [entry["shard"]["next"][0] for entry in kept["done"]] == [pieces.ids[4], -100, None, None]
    kept["done"][0]["shard"]["next"][0] = 6 if pieces.ids[4] != 6 else 5
    state.write_text(json.dumps(kept))
    refused = run("score", *pieces.argv, "--shift", "--state", state)
    assert_refused(refused, f"{state}: holds the result of", "changed")


def test_shift_between_shards_on_a_cluster(pieces, figures):  # W10
    distributed = pytest.importorskip("distributed", reason="Dask is optional")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
    ) as cluster:
        there = figures(*pieces.argv, "--shift", "--scheduler", cluster.scheduler_address)
    here = figures(*pieces.argv, "--shift")
    for name in (*SUMS, "without_next", "highest_loss_tokens", "shards"):
        assert there[name] == here[name]


@pytest.mark.parametrize("n_rows", [(24,), (4, 6)])
def test_compare_shifted(n_rows, compared, tmp_path):  # W10: compare has --shift
    rng = np.random.default_rng(11)
    base, ids = rng.normal(size=(*n_rows, 9)).astype(np.float32), rng.integers(9, size=n_rows)
    other = base + rng.normal(size=base.shape, scale=0.3).astype(np.float32)
    ids[..., 2] = -100
    np.savez(tmp_path / "base.npz", logits=base, targets=ids)
    np.savez(tmp_path / "other.npz", logits=other, targets=ids)
    found = compared(tmp_path / "base.npz", tmp_path / "other.npz", "--shift")
    expected = tokenloss.compare(base[..., :-1, :], other[..., :-1, :], ids[..., 1:]).as_dict()
    assert {name: found[name] for name in expected} == expected
    sequences = math.prod(n_rows[:-1])
    assert (found["without_next"], found["ignored"]) == (sequences, sequences)


def test_compare_shifted_does_not_fit(run, models, tmp_path):  # W10
    base, other = models.path / "base.npz", models.path / "other.npy"
    assert_refused(run("compare", base, other, "--shift"), f"{other}: holds logits of shape (24, 9)", "(4, 6, 9)")
    assert_refused(
        run("compare", other, other, "--targets", models.path / "targets.npy", "--shift"),
        "targets.npy: holds targets of shape (4, 6)",
    )
    llama_cpp.write(tmp_path / "base.kld", np.zeros(10, int), [LOGITS], 10)
    refused = run("compare", tmp_path / "base.kld", tmp_path / "base.kld", "--shift")
    assert_refused(refused, "base.kld: holds targets that are the next tokens")


def test_compare_of_other_texts(run, models):  # two files that each know their targets, which differ
    np.savez(models.path / "else.npz", logits=models.other, targets=models.targets[:, ::-1])
    base, other = models.path / "base.npz", models.path / "else.npz"
    assert_refused(run("compare", base, other), f"{other}: holds other targets; it must hold those of {base}")


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    "text", ["a naïve\nlittle  text\n", "\u2003x\u2003", "\r\n", "€ €€", "a\x1cb\x85c\xa0d", "\ufeffa b"]
)
def test_extent_of_a_text_in_chunks(text, chunk, tmp_path, monkeypatch):  # W5: --text
    monkeypatch.setattr(summary, "_TEXT_BYTES", chunk)
    for data in (text.encode(), b"\xff" + text.encode() + b"\xe2\x82"):
        (tmp_path / "text").write_bytes(data)
        expected = len(data), len(data.decode("utf-8", "replace").split())
        assert summary.text_length(str(tmp_path / "text")) == expected


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the platform has no named pipes")
def test_text_from_a_pipe(npz, tmp_path):  # W5: --text
    os.mkfifo(tmp_path / "pipe")
    argv = [sys.executable, "-m", "tokenloss", "score", npz(logits=LOGITS, targets=TARGETS), "--json"]
    with subprocess.Popen([*argv, "--text", tmp_path / "pipe"], stdout=subprocess.PIPE) as process:
        (tmp_path / "pipe").write_bytes(b"two words" * 100_000)
        found = json.loads(process.communicate(timeout=60)[0])
    assert (found["n_bytes"], found["n_words"]) == (900_000, 100_001)
    assert found["bits_per_byte"] is not None


def test_empty_text(run, tmp_path):  # W5: --text
    (tmp_path / "text").write_bytes(b"")
    assert_refused(run("score", SAMPLE, "--text", tmp_path / "text"), "text: is empty; it must hold a text")


def test_bytes_and_words(figures, run, npz, tmp_path):
    path = npz(logits=LOGITS, targets=TARGETS)
    (tmp_path / "text").write_text("a naïve\nlittle  text\n", encoding="utf-8")
    total = 4 * tokenloss.cross_entropy(LOGITS, TARGETS)
    found = figures(path, "--text", tmp_path / "text")
    assert (found["n_bytes"], found["n_words"]) == (22, 4)
    assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / 22)
    assert found["word_perplexity"] == pytest.approx(math.exp(total / 4))
    found = figures(path, "--bytes", 11)
    assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / 11)
    assert found["word_perplexity"] is None
    _, out, _ = run("score", path, "--text", tmp_path / "text")
    assert "bits per byte" in out
    assert "perplexity per word" in out
    assert "perplexity per word" not in run("score", path, "--bytes", 11)[1]
    assert "per byte" not in run("score", path)[1]


# -- what files are taken for -----------------------------------------------------------------------------------------


def test_two_shards_are_no_pair(shards, run, figures):  # W1: a forgotten --targets
    np.save(shards.path / "half-0.npy", shards.logits[:30])
    np.save(shards.path / "half-1.npy", shards.logits[30:])
    words = f"{shards.path / 'half-0.npy'}: holds no targets; it must hold them, or come with --targets"
    assert_refused(run("score", shards.path / "half-*.npy"), words)
    found = figures(shards.path / "half-*.npy", "--targets", shards.path / "all.npy")
    assert (found["tokens"], found["targets"]) == (np.count_nonzero(shards.targets != -100), "class ids")


def test_second_file_of_class_ids(run, figures, npy):  # W1
    scores, targets = npy(LOGITS, TARGETS)
    assert figures(scores, targets)["targets"] == "class ids"
    assert figures(scores, targets)["files"] == [str(scores), str(targets)]
    for dtype in (np.bool_, np.int64):
        scores, targets = npy(LOGITS, np.eye(3, dtype=dtype)[TARGETS])
        assert_refused(run("score", scores, targets), f"{targets}: holds {np.dtype(dtype)} of the shape", "--targets")
        found = figures(scores, "--targets", targets)
        assert (found["targets"], found["loss"]) == ("distributions", tokenloss.cross_entropy(LOGITS, TARGETS))


@pytest.mark.parametrize("block_rows", [1, 2, 1000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([0.5, 0.25, 0.2], ["targets[1, 0] adds up to 0.95", "add up to 1, as a distribution does", "class ids are"]),
        ([0.5, 0.5, 0.02], ["targets[1, 0] adds up to 1.02"]),
        ([0.5, 0.75, -0.25], ["targets[1, 0] has a probability of -0.25", "from 0 to 1", "class ids are integers"]),
        ([1.25, -0.001, -0.249], ["targets[1, 0] has a probability of 1.25"]),
        ([np.nan, 0.5, 0.5], ["targets[1, 0] "]),
        ([2.0, -1.0, 0.0], ["targets[1, 0] has a probability of "]),
    ],
)
def test_what_is_no_distribution(row, words, dtype, block_rows, run, npz, npy, monkeypatch):  # W1
    monkeypatch.setattr(plan, "_BLOCK_ROWS", block_rows)
    logits = LOGITS.reshape(2, 2, 3).astype(dtype)
    shares = np.eye(3, dtype=dtype)[TARGETS].reshape(2, 2, 3)
    shares[1, 0] = row
    path = npz(logits=logits, targets=shares)
    assert_refused(run("score", path), f"{path}: targets", *words)
    scores, targets = npy(logits, shares)
    assert_refused(run("score", scores, "--targets", targets), f"{targets}: targets", *words)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("row", [[0.5, 0.25, 0.245], [0.5, 0.5, 0.009], [1.0009, -0.0009, 0]])
def test_what_is_nearly_a_distribution(row, dtype, figures, npz):  # W1
    shares = np.eye(3, dtype=dtype)[TARGETS]
    shares[2] = row
    found = figures(npz(logits=LOGITS, targets=shares))
    assert found["loss"] == pytest.approx(tokenloss.cross_entropy(LOGITS, shares))


def test_shares_of_float16_are_added_up_in_float64(figures, npz):  # W1
    shares = np.full((2, 50_000), 1 / 50_000, np.float16)
    found = figures(npz(logits=np.zeros((2, 50_000), np.float32), targets=shares))
    assert found["loss"] == pytest.approx(math.log(50_000) * float(shares[0].astype(float).sum()))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_kind_that_was_forgotten(dtype, run, figures, npy):  # W1, W9: --kind
    probs = tokenloss.softmax(LOGITS.astype(np.float64)).astype(dtype)
    for targets in (TARGETS, np.array([-100, -100, 2, 0])):
        scores, path = npy(probs, targets)
        refused = run("score", scores, path)
        assert_refused(refused, f"{scores}: looks like probabilities, since rows add up to 1", "--kind probs", "logits")
        assert figures(scores, path, "--kind", "logits")["loss"] == tokenloss.cross_entropy(probs, targets)
        assert figures(scores, path, "--kind", "probs")["loss"] == tokenloss.cross_entropy_loss(
            targets, probs, ignore_index=-100
        )


def test_scores_that_are_no_probabilities_are_believed(figures, npy):  # W1, W9: --kind
    probs = tokenloss.softmax(LOGITS.astype(np.float64))
    for scores, targets in (
        (np.zeros((4, 3)), TARGETS),
        (np.concatenate([probs, [[-1e-9, 0.5, 0.5]]]), np.zeros(5, int)),
        (probs * 1.02, TARGETS),
        (np.ones((3, 1)), np.zeros(3, int)),  # of one class
    ):
        assert figures(*npy(scores, targets))["loss"] == tokenloss.cross_entropy(scores, targets)


def test_rows_that_are_not_scored_tell_no_kind(run, npy, monkeypatch):  # W1, W9: --kind
    monkeypatch.setattr(plan, "_BLOCK_ROWS", 3)
    scores = np.concatenate([np.zeros((5, 3)), tokenloss.softmax(LOGITS.astype(np.float64))])
    targets = np.concatenate([np.full(5, -100), TARGETS])
    assert_refused(run("score", *npy(scores, targets)), "looks like probabilities")


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_kind_that_was_forgotten_where_rows_say_nothing(value, run, npy):  # W1, W9: --kind
    probs = tokenloss.softmax(LOGITS.astype(np.float64))
    probs[1] = value
    assert_refused(run("score", *npy(probs, TARGETS)), "looks like probabilities")


def test_kind_that_was_forgotten_of_either(run, compared, models):  # W1, W9: --kind, --base-kind
    np.save(models.path / "probs.npy", tokenloss.softmax(models.other.reshape(24, 9)))
    base, probs, targets = models.path / "base.npz", models.path / "probs.npy", models.path / "targets.npy"
    assert_refused(run("compare", base, probs), f"{probs}: looks like probabilities", "--kind probs")
    refused = run("compare", probs, models.path / "other.npy", "--targets", targets)
    assert_refused(refused, f"{probs}: looks like probabilities", "--base-kind probs")
    assert compared(base, probs, "--kind", "logits")["count"] == 24
    assert compared(base, probs, "--kind", "probs")["mean_kl"] == pytest.approx(
        tokenloss.kl_divergence(models.base, models.other), rel=1e-4
    )


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("wrong", ["base 2", "logits", "probs"])
def test_log_probs_that_are_none(wrong, named, run, npz, npy):  # W9: --kind
    logs = tokenloss.log_softmax(LOGITS.astype(np.float64))
    scores = {"base 2": logs / math.log(2), "logits": LOGITS, "probs": np.exp(logs)}[wrong]
    scores = np.concatenate([logs, scores])
    targets = np.concatenate([TARGETS, TARGETS])
    argv = [npz(log_probs=scores, targets=targets)] if named else [*npy(scores, targets), "--kind", "log_probs"]
    got = tokenloss.logsumexp(scores[4:5])[0]
    words = f"{argv[0]}: log_probs has a row whose logsumexp is {got:.4g}; natural log-probabilities have 0"
    if got < 0 and not named:  # as of rows that were cut
        assert run("score", *argv)[0] == 0
    else:
        assert_refused(run("score", *argv), words)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_log_probs_of_the_likeliest_classes(dtype, figures, run, npz):  # W9: --kind
    logs = tokenloss.log_softmax(np.random.default_rng(0).standard_normal((6, 50)))
    targets = logs.argmax(-1)
    cut = np.where(logs >= np.sort(logs)[:, -5:-4], logs, -np.inf).astype(dtype)
    path = npz(log_probs=cut, targets=targets)
    assert_refused(run("score", path), "log_probs has a row whose logsumexp is -", "--kind log_probs takes what is cut")
    assert figures(path, "--kind", "log_probs")["loss"] == tokenloss.nll_loss(cut, targets)


def test_log_probs_that_nearly_are_some(figures, run, npz):  # W9
    logs = tokenloss.log_softmax(LOGITS.astype(np.float64))
    logs[0] += 0.99 * UNNORMALIZED
    logs[1] = np.nan
    logs[2] += 7  # is not scored
    found = figures(npz(log_probs=logs, targets=[0, 1, -100, 0]))
    assert (found["tokens"], found["loss"]) == (3, None)
    logs[0] += 0.02 * UNNORMALIZED
    assert_refused(run("score", npz(log_probs=logs, targets=[0, 1, -100, 0])), "logsumexp is 0.101")


@pytest.mark.parametrize("given", [False, True])
def test_log_probs_that_are_none_in_a_comparison(given, run, npz, models):  # W9
    logs = tokenloss.log_softmax(models.other.astype(np.float64)) / math.log(2)
    path = npz(log_probs=logs)
    options = ["--kind", "log_probs"] if given else []
    status = run("compare", models.path / "base.npz", path, *options)
    if given:  # as if rows were cut
        assert status[0] == 0
    else:
        assert_refused(status, f"{path}: log_probs has a row whose")


@pytest.mark.skipif(sys.platform == "win32", reason="links there need a privilege")
@pytest.mark.parametrize("link", ["./", "symlink", "hard link"])
def test_file_under_another_name_is_given_twice(link, run, npz):  # W8: FILE
    path = npz(logits=LOGITS, targets=TARGETS)
    other = f"{path.parent}/./{path.name}"
    if link != "./":
        other = path.with_name("other.npz")
        other.symlink_to(path) if link == "symlink" else other.hardlink_to(path)
    assert_refused(run("score", path, other), f"{other}: is given twice, as {path}, too; it must be given once")


def test_targets_that_are_given_twice(shards, run, npy):  # W8: --targets
    logits, targets = shards.path / "logits-a.npy", shards.path / "targets-a.npy"
    np.save(shards.path / "logits-d.npy", shards.logits[:13])
    both = ["--targets", targets, "--targets", targets]
    assert_refused(run("score", logits, shards.path / "logits-d.npy", *both), f"{targets}: is given twice")
    probs, _ = npy(tokenloss.softmax(LOGITS), TARGETS)
    assert_refused(run("score", probs, "--targets", probs, "--kind", "probs"), f"{probs}: is given twice")


@pytest.fixture
def numbered(tmp_path):
    """Shards of 12 rows, of which a shell puts 10 before 2; the logits and targets of all."""
    rng = np.random.default_rng(12)
    logits, targets = rng.normal(size=(12, 5)), rng.integers(5, size=12)
    for i in range(12):
        np.save(tmp_path / f"part-{i}.npy", logits[i : i + 1])
        np.save(tmp_path / f"ids-{i}.npy", targets[i : i + 1])
    np.save(tmp_path / "all.npy", targets)
    return SimpleNamespace(path=tmp_path, logits=logits, targets=targets)


def test_numbered_files_are_in_the_order_of_their_numbers(numbered, figures):
    expected = tokenloss.cross_entropy(numbered.logits, numbered.targets)
    for targets in ("all.npy", "ids-*.npy"):
        found = figures(numbered.path / "part-*.npy", "--targets", numbered.path / targets)
        assert found["loss"] == expected
    assert [Path(path).name for path in found["files"][::2]] == [f"part-{i}.npy" for i in range(12)]


@pytest.mark.parametrize("targets", ["all.npy", "ids-*.npy"])
def test_order_of_a_shell_is_refused_where_it_counts(targets, numbered, run, figures):
    files = sorted(numbered.path.glob("part-*.npy"))
    refused = run("score", *files, "--targets", numbered.path / targets)
    assert_refused(refused, f"{numbered.path / 'part-11.npy'}: comes before {numbered.path / 'part-2.npy'}", "quotes")
    each = [word for path in sorted(numbered.path.glob("ids-*.npy")) for word in ("--targets", path)]
    found = figures(*files, *each)  # the same order on both sides
    assert found["loss"] == tokenloss.cross_entropy(numbered.logits, numbered.targets)
    assert_refused(run("score", *files, *each, "--shift"), "comes before")
    backwards = [numbered.path / f"part-{i}.npy" for i in range(11, -1, -1)]  # on purpose
    assert figures(*backwards, "--targets", numbered.path / "all.npy")["tokens"] == 12


def test_json_is_strict(figures, run, npz):  # U6: --json
    tokens = np.array(["\ud800", "a\udc00b", "\U0001f600", "\ud83d\ude00"])
    path = npz(logits=LOGITS, targets=TARGETS, tokens=tokens)
    texts = {token["position"]: token["text"] for token in figures(path)["highest_loss_tokens"]}
    assert texts == {0: "\ufffd", 1: "a\ufffdb", 2: "\U0001f600", 3: "\U0001f600"}
    json.dumps(json.loads(run("score", path, "--json")[1]), ensure_ascii=False).encode("utf-8")


# -- every token ------------------------------------------------------------------------------------------------------


def read_table(path):
    """Columns of a table, by name."""
    if path.suffix == ".npy":
        table = np.load(path)
        return {name: table[name] for name in table.dtype.names}
    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(path)
        return {name: table[name].to_numpy() for name in table.column_names}
    with path.open(newline="") as file:
        heads, *rows = csv.reader(file)
    words = {"True": 1.0, "False": 0.0}
    columns = (
        [words.get(cell) if cell in words else float(cell) for cell in column] for column in zip(*rows, strict=True)
    )
    return dict(zip(heads, columns, strict=True))


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_per_token(suffix, shards, figures, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_ROWS", 8)
    path = shards.path / f"tokens{suffix}"
    figures(shards.path / "part-*.npz", "--per-token", path)
    table, scores = read_table(path), tokenloss.token_scores(shards.logits, shards.targets)
    assert list(table)[:8] == ["target", "kept", "nll", "probability", "rank", "argmax", "is_greedy", "entropy"]
    assert {*table} == {"target", "probability", *COLUMNS} - {"logsumexp", "top_ids", "top_logprobs"}
    np.testing.assert_array_equal(table["target"], shards.targets)
    for name in {*table} - {"target", "probability"}:
        np.testing.assert_array_equal(table[name], getattr(scores, name))
    np.testing.assert_allclose(table["probability"], np.where(scores.kept, np.exp(-scores.nll), 0), rtol=1e-15)


@pytest.mark.parametrize("kind", ["log_probs", "probs"])
@pytest.mark.parametrize("soft", [True, False])
def test_per_token_of_other_kinds(soft, kind, figures, npz, tmp_path):
    log_probs = tokenloss.log_softmax(LOGITS.astype(np.float64))
    scores = log_probs if kind == "log_probs" else np.exp(log_probs)
    figures(npz(**{kind: scores}, targets=np.eye(3)[TARGETS] if soft else TARGETS), "--per-token", tmp_path / "a.npy")
    table, expected = np.load(tmp_path / "a.npy"), tokenloss.token_scores(LOGITS, TARGETS)
    np.testing.assert_array_equal(table["target"], TARGETS)
    assert table["kept"].all()
    for name in ("rank", "argmax", "is_greedy"):
        np.testing.assert_array_equal(table[name], getattr(expected, name))
    np.testing.assert_allclose(table["nll"], expected.nll, atol=1e-6)
    np.testing.assert_allclose(table["entropy"], expected.entropy, atol=1e-6)


@pytest.mark.parametrize("option", ["--per-token", "--plot", "--html"])
def test_outputs_that_cannot_be_written(option, run, tmp_path):
    path = tmp_path / "none" / "out.csv" if option == "--per-token" else tmp_path / "none" / "out.png"
    assert_refused(run("score", SAMPLE, option, path), f"{path}: cannot be written: No such file")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Files that are read, in the working directory, and what each of them holds."""
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", logits=LOGITS, targets=TARGETS)
    np.save("l.npy", LOGITS)
    np.save("t.npy", TARGETS)
    Path("text.png").write_text("some words")
    group = zarr.open_group("s.zarr", mode="w")
    group.create_array("logits", data=LOGITS)
    group.create_array("targets", data=TARGETS)
    if sys.platform != "win32":
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
        ("score *.npz --state a.npz", "--state a.npz: would replace a.npz"),
        ("score a.npz --text text.png --plot text.png", "--plot text.png: would replace text.png"),
        ("score s.zarr --html s.zarr/zarr.json", "--html s.zarr/zarr.json: would be written into s.zarr"),
        ("score s.zarr --html s.zarr/logits/x", "--html s.zarr/logits/x: would be written into s.zarr"),
        ("score a.npz --html x --per-token ./x", "--per-token: path is"),
        ("score a.npz --html ./x.csv --per-token x.csv", "--html ./x.csv: would replace what --per-token writes"),
        ("score a.npz --html x.png --plot x.png", "--html x.png: would replace what --plot writes"),
        ("score a.npz --html none/x.html", "--html none/x.html: cannot be written: No such file or directory"),
        ("score a.npz --html s.zarr", "--html s.zarr: cannot be written: Is a directory"),
        ("compare a.npz l.npy --plot text.png --targets text.png", "--plot text.png: would replace text.png"),
        ("compare a.npz s.zarr --plot s.zarr/x.png", "--plot s.zarr/x.png: would be written into s.zarr"),
    ],
)
def test_outputs_replace_no_input(argv, words, files, run, monkeypatch):  # W6
    if sys.platform == "win32" and ("link" in argv or "hard" in argv or "cannot" in words):
        pytest.skip("links need a privilege on Windows, and its error messages differ")
    monkeypatch.setattr(shard_run, "score_shard", raising(AssertionError))
    assert_refused(run(*argv.split()), words)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == files


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="there is no /dev/null")
def test_devices_may_be_given_twice(files, run):  # W6
    Path("null.csv").symlink_to("/dev/null")
    assert run("score", "a.npz", "--html", "/dev/null", "--per-token", "null.csv")[0] == 0


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="there is no /dev/stdout")
def test_output_that_would_replace_what_is_printed(files):  # W6: --html /dev/stdout > page.html
    for out in ("/dev/stdout", "page.html"):
        with Path("page.html").open("wb") as file:
            done = process("score", "a.npz", "--html", out, stdout=file)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"--html {out}: would replace stdout" in done.stderr
    done = process("score", "a.npz", "--html", "/dev/stdout")  # a pipe: one after the other
    assert done.returncode == 0
    assert re.fullmatch("<!doctype html>.*</html>\na.npz  logits.*", done.stdout, re.DOTALL)


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_outputs_of_bad_input_are_not_written(suffix, run, tmp_path):
    data = bytearray(SAMPLE.read_bytes())
    data[500_000] ^= 255
    path, out = tmp_path / "sample.npz", tmp_path / f"out{suffix}"
    path.write_bytes(data)
    out.write_text("precious")
    assert_refused(run("score", path, "--per-token", out), f"{path}: logits: cannot be read: ")
    assert out.read_text() == "precious"
    assert sorted(tmp_path.iterdir()) == sorted([path, out])


@pytest.mark.parametrize("package", ["pyarrow", "matplotlib"])
def test_packages_that_are_missing(package, run, tmp_path, monkeypatch):
    for name in (package, f"{package}.figure", f"{package}.parquet"):  # the tests have imported them
        monkeypatch.setitem(sys.modules, name, None)
    option = {"pyarrow": "--per-token=out.parquet", "matplotlib": "--plot=out.png"}[package]
    assert_refused(run("score", SAMPLE, option), f"pip install {package}")


def test_plot_and_page(figures, shards, tmp_path):
    plain = figures(SAMPLE)
    found = figures(SAMPLE, "--plot", tmp_path / "losses.png", "--html", tmp_path / "page.html")
    for name in SUMS:
        assert found[name] == plain[name]
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert re.search(r"beginning.*God.*created.*the.*heaven", page)
    assert f"{plain['perplexity']:.5g}" in page
    figures(shards.path / "part-*.npz", "--html", tmp_path / "page.html")  # without text
    assert "part-a.npz" in (tmp_path / "page.html").read_text("utf-8")


# -- interrupted work -------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(shards, run, monkeypatch):
    """Score shards, until Ctrl-C in the third; where the state is."""
    state = shards.path / "state.json"
    with monkeypatch.context() as patch:
        calls = iter([shard_run.score_shard, shard_run.score_shard, raising(KeyboardInterrupt)])
        patch.setattr(shard_run, "score_shard", lambda *arguments: next(calls)(*arguments))
        assert run("score", shards.path / "part-*.npz", "--state", state)[0] == 130
    return state


def test_work_is_taken_up_again_to_the_same_bits(interrupted, shards, figures, monkeypatch):
    scored = []
    score = shard_run.score_shard
    monkeypatch.setattr(
        shard_run,
        "score_shard",
        lambda shard, *others: (scored.append(Path(shard.path).name), score(shard, *others))[1],
    )
    without, resumed = figures(shards.path / "part-*.npz"), figures(shards.path / "part-*.npz", "--state", interrupted)
    assert scored == ["part-a.npz", "part-b.npz", "part-c.npz", "part-c.npz"]
    again = figures(shards.path / "part-*.npz", "--state", interrupted)
    assert len(scored) == 4
    for found in (resumed, again):
        for name in (*SUMS[:-1], "highest_loss_tokens", "shards"):
            assert found[name] == without[name]
    assert (resumed["bytes"], again["bytes"]) == (17 * 44, 0)  # what was read


def test_state_of_infinite_losses(figures, npz, tmp_path):
    logits = LOGITS.copy()
    logits[0, 0], logits[2, 1] = -np.inf, np.nan
    path = npz(logits=logits, targets=TARGETS)
    first, second = (figures(path, "--state", tmp_path / "state") for _ in range(2))
    assert first["highest_loss_tokens"] == second["highest_loss_tokens"]
    assert first["loss"] is second["loss"] is None


def test_state_of_other_work_is_refused(interrupted, shards, run):
    before = interrupted.read_bytes()
    pattern = shards.path / "part-*.npz"
    for options, words in [
        (["--kind", "logits"], ["was written with kind None; it must be another file, with 'logits'"]),
        (["--top", "9"], ["was written with top 5"]),
        (["--shift"], ["was written with shift False"]),
        (["--targets", shards.path / "all.npy"], ["part-a.npz; it must be another file", "changed"]),
    ]:
        assert_refused(run("score", pattern, "--state", interrupted, *options), f"{interrupted}: ", *words)
    part = shards.path / "part-b.npz"
    refused = run("score", part, "--state", interrupted)
    assert_refused(refused, f"{interrupted}: holds the result of {shards.path / 'part-a.npz'}", "not to be scored")
    os.utime(part, ns=(1, 1))
    refused = run("score", pattern, "--state", interrupted)
    assert_refused(refused, f"{interrupted}: holds the result of {part}", "changed")
    assert interrupted.read_bytes() == before


@pytest.mark.parametrize("content", ["", "{}", "[]", "[" * 100_000, '{"options": {}, "done": [3]}', "\xff", "loss"])
def test_what_is_no_state_is_refused(content, run, tmp_path):
    state = tmp_path / "state"
    state.write_text(content, encoding="latin-1")
    assert_refused(run("score", SAMPLE, "--state", state), f"{state}: is no state of tokenloss score")
    assert state.read_text(encoding="latin-1") == content


def test_state_that_cannot_be_written(run, tmp_path):
    state = tmp_path / "none" / "state"
    assert_refused(run("score", SAMPLE, "--state", state), f"{state}: cannot be written: No such file")


def test_scheduler(shards, figures, tmp_path):
    distributed = pytest.importorskip("distributed", reason="Dask is optional")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
    ) as cluster:
        options = "--scheduler", cluster.scheduler_address, "--state", tmp_path / "state"
        here, there = figures(shards.path / "part-*.npz"), figures(shards.path / "part-*.npz", *options)
    for name in (*SUMS, "highest_loss_tokens", "shards"):
        assert there[name] == here[name]


# -- two models -------------------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path):
    """Logits of a model and of its base, their targets, and files of them."""
    rng = np.random.default_rng(11)
    base = rng.normal(size=(4, 6, 9), scale=2).astype(np.float32)
    other = base + rng.normal(size=base.shape, scale=0.3).astype(np.float32)
    targets = rng.integers(9, size=(4, 6))
    np.savez(tmp_path / "base.npz", logits=base, targets=targets)
    np.save(tmp_path / "other.npy", other.reshape(24, 9))
    np.save(tmp_path / "targets.npy", targets)
    group = zarr.open_group(tmp_path / "other.zarr", mode="w")
    group.create_array("logits", data=other, chunks=(3, 4, 5))
    np.savez_compressed(tmp_path / "other.npz", probs=tokenloss.softmax(other.astype(np.float64)))
    return SimpleNamespace(base=base, other=other, targets=targets, path=tmp_path)


@pytest.fixture
def compared(run):
    """The JSON of a comparison."""

    def compared(*argv):
        status, out, err = run("compare", *argv, "--json")
        assert (status, err) == (0, "")
        return json.loads(out, parse_constant=pytest.fail)

    return compared


@pytest.mark.parametrize("block_rows", [5, 1000])
@pytest.mark.parametrize("other", ["other.npy", "other.zarr", "other.npz"])
def test_compare_files(other, block_rows, models, compared, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_ROWS", block_rows)
    found = compared(models.path / "base.npz", models.path / other)
    expected = tokenloss.compare(models.base, models.other, models.targets).as_dict()
    assert set(found) == set(expected) | {"base", "other", "base_kind", "kind", "shape", "ignored", "without_next"}
    assert (found["base_kind"], found["kind"]) == ("logits", "probs" if other == "other.npz" else "logits")
    for name, value in expected.items():
        if other == "other.npz" and name != "definitions":
            value = pytest.approx(value, rel=1e-5, abs=1e-6)
        assert found[name] == value
    assert (found["base"], found["other"]) == (str(models.path / "base.npz"), str(models.path / other))
    assert (found["shape"], found["count"], found["ignored"]) == ([24, 9], 24, 0)


def test_compare_takes_targets_from_where_they_are(models, compared):
    base, other, targets = models.path / "base.npz", models.path / "other.npy", models.path / "targets.npy"
    expected = compared(base, other)
    del expected["base"], expected["other"]
    for argv in ((base, other, "--targets", targets), (other, base), (other, other, "--targets", targets)):
        assert compared(*argv)["count"] == expected["count"]
    assert compared(other, base)["perplexity"] == expected["base_perplexity"]
    assert compared(base, other, "--ignore-index", models.targets[0, 0])["ignored"] == np.count_nonzero(
        models.targets == models.targets[0, 0]
    )


def test_bad_comparisons(models, run):
    base, other, targets = models.path / "base.npz", models.path / "other.npy", models.path / "targets.npy"
    assert_refused(run("compare", other, other), f"{other}: holds no targets", "--targets")
    assert_refused(run("compare", base, SAMPLE), f"{SAMPLE}: holds 15 rows of 51864 classes; it must hold 24 rows of 9")
    np.save(targets, models.targets[:, ::-1])
    assert_refused(run("compare", base, other, "--targets", targets), f"{targets}: holds other targets", f"{base}")
    np.save(targets, models.targets + 5)
    assert_refused(run("compare", other, other, "--targets", targets), f"{other}, {targets}: targets[", "[0, 9)")
    np.save(targets, models.base.reshape(24, 9))
    assert_refused(run("compare", other, other, "--targets", targets), "targets has shape (24, 9)", "(24,) (class ids)")
    assert_refused(run("compare", base, other, "--plot", "x.txt"), "'x.txt'")


def test_compare_with_llama_cpp_definitions(models, compared, tmp_path):
    tokens = np.zeros((4, 14), int)
    tokens[:, 8:] = models.targets
    llama_cpp.write(tmp_path / "base.kld", tokens, [models.base.reshape(24, 9)], 14)
    of_file = compared(tmp_path / "base.kld", models.path / "other.npy", "--definitions", "llama.cpp")
    of_logits = compared(models.path / "base.npz", models.path / "other.npy", "--definitions", "llama.cpp")
    assert of_file["definitions"] == of_logits["definitions"] == "llama.cpp"
    for name in ("perplexity", "mean_kl", "base_perplexity", "rms_delta_p"):
        assert of_file[name] == pytest.approx(of_logits[name], rel=1e-3)
    assert of_file["perplexity"] == of_logits["perplexity"]
    assert of_file["mean_kl"] != of_logits["mean_kl"]  # of what the file rounds


def numbers(text):
    """All numbers in a text."""
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


def test_everything_that_compare_prints_is_in_its_json(models, run, compared):
    argv = models.path / "base.npz", models.path / "other.npy"
    figures = compared(*argv)
    known = [value for name, value in figures.items() if isinstance(value, float)]
    known += [value for name in ("kl_quantiles", "delta_p_quantiles") for value in figures[name].values()]
    status, out, err = run("compare", *argv)
    assert (status, err) == (0, "")
    cells = [cell for line in out.splitlines()[1:] for cell in re.split("  +", line.strip())[1:]]
    shown = re.findall(r"-?\d+\.(\d+)", " ".join(cells)), numbers(" ".join(cells))
    for decimals, value in zip(*shown, strict=True):
        assert any(abs(value - scale * one) < 0.51 * 10 ** -len(decimals) for one in known for scale in (1, 100))
    assert len(shown[1]) == 43


@pytest.mark.skipif(not SHARED.exists(), reason="the whole data set is not beside the checkout")
def test_compare_prints_the_figures_of_llama_cpp(run):
    directory = SHARED / "llama-cpp"
    argv = directory / "base.kld", directory / "quant_logits.npy", "--definitions", "llama.cpp"
    _, out, _ = run("compare", *argv)
    printed = (directory / "stats_kld.txt").read_text().split("====== Perplexity statistics ======")[1]
    rows = [line.replace(" ", "") for line in out.splitlines()[1:]]
    count = 0
    for line in printed.replace(" ", "").splitlines():
        label, _, theirs = line.rpartition(":")
        if label:
            (row,) = (row.removeprefix(label) for row in rows if re.match(re.escape(label) + r"-?\d", row))
            unit = 10.0 ** -len(re.search(r"\.(\d+)", theirs)[1])
            for mine, their in zip(numbers(row), numbers(theirs), strict=True):
                assert mine == pytest.approx(their, abs=4.5 * unit)
                count += 1
    assert count == 43


def test_compare_plot(models, run):
    argv = models.path / "base.npz", models.path / "other.npy", "--plot", models.path / "kl.png"
    assert run("compare", *argv)[0] == 0
    assert (models.path / "kl.png").read_bytes().startswith(b"\x89PNG")


# -- how it looks -----------------------------------------------------------------------------------------------------

SUMMARY = """\
FILE  logits, 4 × 3, float32; class ids

  tokens           4
  loss             2.65035  ± 2.13 nats
  perplexity       14.159   95 % interval 0.21904 to 915.23
  bits per token   3.82364
  greedy accuracy  50.00 %
  time             0.5 s    9.6e-08 GB/s

  highest-loss tokens
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
    monkeypatch.setattr(_commands, "time", SimpleNamespace(perf_counter=iter([1.0, 1.5]).__next__))
    path = npz(logits=LOGITS, targets=TARGETS, tokens=np.array(["a\nb", ",", "\x1b[31mĠc", "[bold]d"]))
    status, out, err = run("score", path)
    assert (status, err) == (0, "")
    assert re.sub(" +\n", "\n", out).replace(str(path), "FILE") == SUMMARY


def test_summary_without_text(run, npz):
    _, out, _ = run("score", npz(logits=LOGITS, targets=TARGETS), "--top", 1)
    assert out.rstrip().endswith("9.0002     0.000123")
    assert "probability  text" not in out


def on_terminal(run, monkeypatch, columns, *argv):
    """What is printed on a terminal of this width, without colours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    status, out, err = run(*argv)
    assert (status, err) == (0, "")
    return re.sub(r"\x1b\[[\d;]*m", "", out)


def test_long_text_is_folded(run, npz, monkeypatch):
    text = "".join(map(str, range(100)))
    path = npz(logits=LOGITS[:1], targets=TARGETS[:1], tokens=np.array([text]))
    out = on_terminal(run, monkeypatch, 80, "score", path)
    assert max(map(len, out.splitlines()[1:])) <= 80
    assert text in "".join(out.split())


@pytest.mark.parametrize("columns", [1, 12, 29])
def test_numbers_are_whole_on_a_narrow_terminal(columns, run, npz, monkeypatch):  # U14: columns
    path = npz(logits=LOGITS, targets=TARGETS, tokens=np.array(["abcdefghij" * 5] * 4))
    lines = on_terminal(run, monkeypatch, columns, "score", path).splitlines()
    assert any(re.match("  perplexity +14.159 +95 % interval", line) for line in lines)
    assert any(re.match("         3       0  9.0002     0.000123  abcdefghij", line) for line in lines)


@pytest.mark.parametrize("rich", [True, False])
def test_no_line_that_is_piped_ends_in_blanks(rich, run, models, monkeypatch):  # U14
    if not rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    for argv in ("score", SAMPLE), ("info",), ("compare", models.path / "base.npz", models.path / "other.npy"):
        out = run(*argv)[1]
        assert len(out.splitlines()) > 3
        assert [line for line in out.splitlines() if line != line.rstrip()] == []


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
    monkeypatch.setattr(_terminal, "_PROGRESS_SECONDS", 0)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert run("score", SAMPLE)[0] == 0
    assert "100% 1.6/1.6 MB" in re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue())


def test_progress_in_plain_text(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(_terminal, "_PROGRESS_SECONDS", 0)
    monkeypatch.setattr(plan, "_BLOCK_ROWS", 10)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert run("score", SAMPLE)[0] == 0
    lines = ["", " 67% of 0.00156 GB", "100% of 0.00156 GB", " " * 18, ""]
    assert terminal.getvalue() == "\r".join(lines)


def test_no_progress_where_nobody_looks(run, monkeypatch):
    monkeypatch.setattr(_terminal, "_PROGRESS_SECONDS", 0)
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
        (["score", SAMPLE, "--kind", "probs"], [f"{SAMPLE}: holds logits, targets, tokens; it must hold probs"]),
        (["score", SAMPLE, "--array", "other"], [f"{SAMPLE}: holds logits, targets, tokens; it must hold other"]),
        (["score", SAMPLE, "targets.npy"], ["targets.npy: cannot be read: No such file"]),
        (["score", SAMPLE, "--targets", "none.npy"], ["none.npy: cannot be read: No such file"]),
        (["score", SAMPLE, SAMPLE], [f"{SAMPLE}: is given twice"]),
        (["score", SAMPLE, "--text", SAMPLE], [f"{SAMPLE}: is given twice"]),
        (["score", "none*.npz"], ["none*.npz: matches no file"]),
        (["score", SAMPLE, "--bytes", "0"], ["--bytes", "'0'", "at least 1"]),
        (["score", SAMPLE, "--bytes", 2**63], ["--bytes", "'9223372036854775808'", "at most 9223372036854775807"]),
        (["score", SAMPLE, "--bytes", "1" + "0" * 400], ["--bytes", "at most 9223372036854775807"]),  # U1
        (["score", SAMPLE, "--bytes", "9" * 5000], ["--bytes", "at most 9223372036854775807"]),
        (["score", SAMPLE, "--ignore-index", "9" * 5000], ["--ignore-index", "at most 18446744073709551615"]),
        (["score", SAMPLE, "--workers", "-2"], ["--workers", "'-2'", "or -1"]),
        (["score", SAMPLE, "--bytes", "9", "--text", "x"], ["--text", "--bytes"]),
        (["score", SAMPLE, "--text", "none.txt"], ["none.txt: cannot be read: No such file"]),
        (["score", SAMPLE, "--per-token", "x.txt"], ["--per-token: ", "'x.txt'", ".npy, .csv, .parquet"]),  # U13
        (["score", SAMPLE, "--plot", "x.txt"], ["--plot: ", "'x.txt'", ".png"]),
        (["compare", SAMPLE, SAMPLE, "--plot", "x.txt"], ["--plot: ", "'x.txt'", ".png"]),
        (["score", SAMPLE, "--state", "/dev/zero"], ["/dev/zero: is no file"]),
        (["score", SAMPLE, "--state", "x", "--html", "y"], ["--state", "--html"]),
        (["score", SAMPLE, "--scheduler", "tcp://x:1", "--per-token", "y.npy"], ["--scheduler", "--per-token"]),
        (["score", SAMPLE, "--scheduler", "nowhere"], ["nowhere"]),
        (["compare", SAMPLE], ["OTHER"]),
        (["compare", SAMPLE, SAMPLE, "--definitions", "mine"], ["--definitions", "'mine'"]),
        (["compare", "none.kld", SAMPLE], ["none.kld: cannot be read: No such file"]),
        (["score", "none.npz"], ["none.npz: cannot be read: No such file"]),
        (["score", "two\nlines.npz"], [r"two\nlines.npz: cannot be read: "]),
        (["score", SAMPLE.parent], [f"{SAMPLE.parent}: is a directory without metadata of Zarr"]),
        (["score", __file__], [f"{__file__}: is no file of scores; it must be a .npy, .npz or"]),
        (["info", "--top", "1"], ["--top"]),
    ],
)
def test_bad_arguments(argv, words, run):
    assert_refused(run(*argv), *words)


OPTIONS = ["--targets", "--text", "--per-token", "--plot", "--html", "--state", "--scheduler", "--array"]


@pytest.mark.parametrize(
    ("argv", "name"),
    [(["score", ""], "FILE")]
    + [(["score", SAMPLE, option, ""], option) for option in OPTIONS]
    + [(["compare", "", SAMPLE], "BASE"), (["compare", SAMPLE, ""], "OTHER")]
    + [(["compare", SAMPLE, SAMPLE, option, ""], option) for option in ("--targets", "--plot", "--base-array")],
)
def test_empty_values(argv, name, run):  # W12: the value of a shell's variable that is not set
    assert_refused(run(*argv), f"argument {name}: '' is no name")


def test_all_workers():
    parser = cli._parser()
    assert parser.parse_args(["score", "x", "--workers", "-1"]).workers == -1
    assert parser.parse_args(["compare", "x", "y", "--workers=-1"]).workers == -1


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, ["holds nothing", "exactly one of logits, log_probs, probs"]),
        ({"logits": LOGITS}, ["holds no targets; it must hold them, or come with --targets"]),
        ({"targets": TARGETS, "scores": LOGITS}, ["holds targets, scores;"]),
        ({"targets": TARGETS, "logits": LOGITS, "probs": LOGITS}, ["exactly one"]),
        ({"targets": TARGETS[:3], "logits": LOGITS}, ["targets has shape (3,)", "(4,)", "fit logits"]),
        ({"targets": TARGETS + 0.0, "probs": LOGITS}, ["targets has dtype float64", "integer"]),
        ({"targets": TARGETS, "log_probs": TARGETS}, ["log_probs has dtype int64", "float16"]),
        ({"targets": TARGETS, "logits": np.float32(1)}, ["logits is a scalar"]),
        ({"targets": np.array([0, 1, 3, 7]), "probs": LOGITS}, ["targets[2] = 3", "[0, 3)"]),
        ({"targets": np.array([[0, -100], [-1, 0]]), "logits": LOGITS.reshape(2, 2, 3)}, ["targets[1, 0] = -1"]),
        ({"targets": TARGETS, "logits": LOGITS[:, :0]}, ["targets[0] = 0 ", "[0, 0)"]),
        ({"targets": np.array([None] * 4), "logits": LOGITS}, ["targets: cannot be read", "allow_pickle"]),
        ({"targets": TARGETS, "logits": LOGITS, "tokens": TARGETS}, ["tokens has dtype int64", "text"]),
        ({"targets": TARGETS, "logits": LOGITS, "tokens": np.array(["a"])}, ["tokens has shape (1,)", "(4,)"]),
    ],
)
def test_bad_arrays(arrays, words, run, npz):
    path = npz(**arrays)
    assert_refused(run("score", path), f"{path}: ", *words)


def test_bad_target_far_into_a_file(run, npy, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_BYTES", 10)
    targets = np.zeros(1000, np.int16)
    targets[777] = 3
    paths = npy(np.zeros((1000, 3), np.float32), targets)
    assert_refused(run("score", *paths), ", ".join(map(str, paths)), "targets[777] = 3")


def test_bad_npy_files(run, npy, npz):
    scores, targets = npy(LOGITS, TARGETS)
    archive = npz(logits=LOGITS, targets=TARGETS)
    assert_refused(run("score", scores), f"{scores}: ", "targets")
    assert_refused(run("score", scores, scores.parent / "none.npy"), "none.npy: cannot be read: No such file")
    assert_refused(run("score", scores, archive), f"{scores}: holds no targets; it must hold them, or come with --t")
    refused = run("score", scores, "--targets", archive)
    assert_refused(refused, f"{archive}: is no .npy file; it must be one, of targets")
    assert_refused(run("score", targets, scores), "logits has dtype int64")
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
    monkeypatch.setattr(npz_format.np, "ndarray", raising(MemoryError()))
    assert_refused(run("score", SAMPLE), f"out of memory: {SAMPLE} does not fit; what is not compressed need not")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals between processes")
def test_signals_remove_what_is_half_written(name, tmp_path):  # L3: as Slurm and `timeout` end a process
    number = getattr(signal, name)
    program = (
        "import sys, os, signal, time; from tokenloss import cli; from tokenloss._evaluation import run\n"
        "block = run._score_block\n"
        "def slow(*args, **options):\n"
        "    print('begun', flush=True); time.sleep(60)\n"
        "run._score_block = slow\n"
        "sys.exit(cli.main())"
    )
    argv = ["score", SAMPLE, "--per-token", tmp_path / "out.csv"]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, *map(str, argv)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "begun\n"
        assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
        process.send_signal(number)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (out, err) == ("", f"tokenloss: ended by {name}\n")
    assert process.returncode in (128 + number, -number)  # the second one may come when all is done
    assert list(tmp_path.iterdir()) == []


def test_handlers_of_signals_are_put_back(run, monkeypatch):  # L3
    seen = []
    monkeypatch.setattr(_commands, "info", lambda _: seen.append(signal.getsignal(signal.SIGTERM)))
    before = signal.getsignal(signal.SIGTERM)
    assert run("info", "--json")[0] == 0
    assert callable(seen[0])
    assert signal.getsignal(signal.SIGTERM) is before
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as nohup does with SIGHUP
    try:
        assert run("info", "--json")[0] == 0
        assert seen[1] == signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c(run, monkeypatch):
    monkeypatch.setattr(shard_run, "token_scores", raising(KeyboardInterrupt))
    assert run("score", SAMPLE) == (130, "", "tokenloss: interrupted\n")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no sh, which closes stderr by 2>&-")
def test_nothing_of_a_closed_stderr_goes_to_stdout():  # U13
    command = ["sh", "-c", '"$0" -m tokenloss score none.npz 2>&-', sys.executable]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, b"")


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
