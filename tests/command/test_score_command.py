"""tokenloss score: its numbers for every kind, dtype and layout, its options, and its bounded memory."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import zarr
from commands import LOGITS, TARGETS, assert_refused, at_most, process
from places import SAMPLE

import tokenloss
from tokenloss import evaluate, token_scores
from tokenloss._evaluation import options, plan
from tokenloss.formats import llama_cpp

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")


def exact_losses(logits, targets):
    wide = logits.astype(np.longdouble)
    shifted = wide - wide.max(-1, keepdims=True)
    return np.log(np.exp(shifted).sum(-1)) - np.take_along_axis(shifted, targets[..., None], -1)[..., 0]


def test_score_of_the_sample(score_json):
    with np.load(SAMPLE) as data:
        logits, targets, tokens = data["logits"], data["targets"], data["tokens"]
    losses = exact_losses(logits, targets)
    result = score_json(SAMPLE, "--top", 3)
    loss, stderr = float(losses.mean()), float(losses.std(ddof=1)) / math.sqrt(len(losses))
    assert result["files"] == [str(SAMPLE)]
    assert (result["kind"], result["shape"], result["dtype"]) == ("logits", list(logits.shape), "float16")
    assert (result["count"], result["n_ignored"], result["accuracy"]) == (len(targets), 0, 1.0)
    assert result["loss"] == pytest.approx(loss, abs=2e-7)
    assert result["stderr"] == pytest.approx(stderr, abs=2e-7)
    assert result["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    assert result["perplexity_interval"] == pytest.approx(
        [math.exp(loss * math.exp(t * stderr / loss)) for t in (-2.144787, 2.144787)], rel=1e-6
    )
    assert result["bits_per_token"] == pytest.approx(loss / math.log(2), rel=1e-6)
    worst = np.argsort(-losses)[:3]
    listed = result["highest_loss_tokens"]
    highest = {name: [token[name] for token in listed] for name in listed[0]}
    assert highest["row"] == worst.tolist()
    assert highest["target"] == targets[worst].tolist()
    assert highest["text"] == tokens[worst].tolist()
    assert highest["nll"] == pytest.approx(losses[worst].astype(float), abs=2e-7)
    assert highest["probability"] == pytest.approx(np.exp(-losses[worst]).astype(float))
    assert result["n_bytes_read"] == logits.nbytes
    assert result["gb_per_second"] == pytest.approx(result["n_bytes_read"] / result["seconds"] / 1e9)


def test_sample_is_small():
    assert SAMPLE.stat().st_size < 1_400_000


@pytest.mark.parametrize("kind", ["logits", "log_probs", "probs"])
def test_kind(kind, score_json, npz, npy):
    log_probs = LOGITS - tokenloss.logsumexp(LOGITS)[:, None]
    scores = {"logits": LOGITS, "log_probs": log_probs, "probs": np.exp(log_probs)}[kind]
    loss = tokenloss.cross_entropy(LOGITS, TARGETS)
    from_npz = score_json(npz(**{kind: scores}, targets=TARGETS))
    from_npy = score_json(*npy(scores, TARGETS), "--kind", kind)
    assert from_npz["loss"] == pytest.approx(loss, rel=1e-6)
    for same in ("kind", "count", "loss", "stderr", "accuracy", "n_bytes_read"):
        assert from_npz[same] == from_npy[same]
    for one, other in zip(from_npz["highest_loss_tokens"], from_npy["highest_loss_tokens"], strict=True):
        assert one == other | {"file": one["file"]}
    assert from_npz["accuracy"] == 0.5  # of equal scores, the first is the guess


def test_kind_of_npy_is_logits_by_default(score_json, npy):
    assert score_json(*npy(LOGITS, TARGETS))["loss"] == tokenloss.cross_entropy(LOGITS, TARGETS)


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "zarr", "zip", "kld"])
def test_score_reads_every_format(suffix, score_json, tmp_path):
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
    result = score_json(path)
    assert (result["kind"], result["count"]) == ("log_probs" if suffix == "kld" else "logits", 8)
    assert result["loss"] == pytest.approx(tokenloss.cross_entropy(LOGITS, TARGETS), abs=1e-4 if suffix == "kld" else 0)
    assert result["accuracy"] == 0.5


@pytest.mark.parametrize("block_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4), (0,), (3, 0)])
def test_logits_of_any_shape_layout_and_block_size(shape, dtype, order, block_bytes, score_json, npy, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_BYTES", block_bytes)
    rng = np.random.default_rng(0)
    logits = np.asarray(rng.normal(size=(*shape, 11)), dtype, order=order)
    targets = np.asarray(rng.integers(11, size=shape), np.int32, order=order)
    kind = [] if shape else ["--kind", "logits"]  # a number for each token may be its log-probability
    result = score_json(*npy(logits, targets), "--top", 2, *kind)
    losses = np.ravel(tokenloss.cross_entropy(logits, targets, reduction="none"))
    assert result["count"] == losses.size
    assert result["loss"] == (tokenloss.cross_entropy(logits, targets) if losses.size else None)
    assert [token["row"] for token in result["highest_loss_tokens"]] == np.argsort(-losses)[:2].tolist()
    assert result["accuracy"] == (np.mean(logits.argmax(-1) == targets) if losses.size else None)


@pytest.mark.parametrize("targets", [np.full(4, -100), np.empty((4, 0))], ids=["class ids", "distributions"])
def test_logits_without_classes(targets, score_json, npy):
    scores, path = npy(LOGITS[:, :0], targets)
    result = score_json(scores, "--targets", path)
    assert result["count"] + result["n_ignored"] == 4
    assert result["n_bytes_read"] == 0


def test_ignore_index(score_json, npz):
    targets = np.array([0, -1, 2, -1])
    path = npz(logits=LOGITS, targets=targets)
    result = score_json(path, "--ignore-index", "-1", "--top", 9)
    assert (result["count"], result["n_ignored"]) == (2, 2)
    assert result["loss"] == tokenloss.cross_entropy(LOGITS, targets, ignore_index=-1)
    assert [token["row"] for token in result["highest_loss_tokens"]] == [2, 0]
    assert result["accuracy"] == 0.5
    assert result["n_bytes_read"] == 2 * LOGITS[0].nbytes


def test_ignore_index_of_all_targets(score_json, command, npz):
    path = npz(logits=LOGITS, targets=np.full(4, -100))
    result = score_json(path)
    assert (result["count"], result["n_ignored"], result["highest_loss_tokens"]) == (0, 4, [])
    for name in ("loss", "stderr", "perplexity", "bits_per_token", "accuracy"):
        assert result[name] is None
    assert result["perplexity_interval"] == [None, None]
    status, out, _ = command("score", path)
    assert status == 0
    assert "4 ignored" in out


def test_targets_of_unsigned_integers(score_json, npz):
    result = score_json(npz(logits=LOGITS, targets=TARGETS.astype(np.uint64)))
    assert result["loss"] == tokenloss.cross_entropy(LOGITS, TARGETS)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.float16, np.float64])
def test_targets_one_hot(dtype, score_json, npz):
    result = score_json(npz(logits=LOGITS, targets=np.eye(3, dtype=dtype)[TARGETS]))
    assert result["loss"] == tokenloss.cross_entropy(LOGITS, TARGETS)
    assert result["accuracy"] == 0.5
    highest = [(token["row"], token["target"]) for token in result["highest_loss_tokens"]]
    assert highest == [(3, 0), (2, 2), (0, 0), (1, 1)]


def test_targets_with_negative_probabilities(score_json, npz):
    shares = np.tile([1.0005, -0.0005], (3, 1))  # rounded so that they are a little below 0
    result = score_json(npz(logits=np.tile([0.0, -2e6], (3, 1)), targets=shares))
    assert result["loss"] == pytest.approx(-1e3)
    assert result["highest_loss_tokens"][0]["probability"] is None


def test_json_of_infinite_and_nan_losses_is_null(score_json, command, npz):
    logits = LOGITS.copy()
    logits[0, 0], logits[2, 1] = -np.inf, np.nan
    path = npz(logits=logits, targets=TARGETS)
    result = score_json(path, "--top", 3)
    assert [token["row"] for token in result["highest_loss_tokens"]] == [0, 2, 3]
    assert result["loss"] is result["highest_loss_tokens"][0]["nll"] is result["highest_loss_tokens"][1]["nll"] is None
    assert result["highest_loss_tokens"][0]["probability"] == 0.0
    status, out, err = command("score", path)
    assert (status, err) == (0, "")
    assert " inf " in out


def test_json_replaces_lone_surrogates(score_json, command, npz):
    tokens = np.array(["\ud800", "a\udc00b", "\U0001f600", "\ud83d\ude00"])
    path = npz(logits=LOGITS, targets=TARGETS, tokens=tokens)
    texts = {token["row"]: token["text"] for token in score_json(path)["highest_loss_tokens"]}
    assert texts == {0: "\ufffd", 1: "a\ufffdb", 2: "\U0001f600", 3: "\U0001f600"}
    json.dumps(json.loads(command("score", path, "--format", "json")[1]), ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize("block_rows", [1, 3, 100])
@pytest.mark.parametrize("top", [0, 1, 4, 40])
def test_top_lists_the_first_of_equal_losses(top, block_rows, score_json, npz, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_ROWS", block_rows)
    targets = np.random.default_rng(1).integers(3, size=20)
    result = score_json(npz(logits=np.tile(np.float32([3, 2, 1]), (20, 1)), targets=targets), "--top", top)
    positions = [token["row"] for token in result["highest_loss_tokens"]]
    assert positions == np.argsort(-targets, kind="stable")[:top].tolist()


@pytest.mark.parametrize("workers", [1, 2, 1000])
def test_workers_do_not_change_a_bit(workers, score_json):
    one, other = score_json(SAMPLE), score_json(SAMPLE, "--workers", workers)
    assert one["loss"] == other["loss"]
    assert one["highest_loss_tokens"] == other["highest_loss_tokens"]


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    "text", ["a naïve\nlittle  text\n", "\u2003x\u2003", "\r\n", "€ €€", "a\x1cb\x85c\xa0d", "\ufeffa b"]
)
def test_text_length_in_chunks(text, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(options, "_TEXT_BYTES", chunk)
    for data in (text.encode(), b"\xff" + text.encode() + b"\xe2\x82"):
        (tmp_path / "text").write_bytes(data)
        expected = len(data), len(data.decode("utf-8", "replace").split())
        assert options.text_length(str(tmp_path / "text")) == expected


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such devices")
def test_text_from_a_device_that_never_ends_is_refused(npz, command):
    path = npz(logits=LOGITS, targets=TARGETS)
    with at_most(10):
        refused = command("score", path, "--text", "/dev/zero")
    assert_refused(refused, "/dev/zero: is a device, which may never end; it must be a file or a pipe")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the platform has no named pipes")
def test_text_from_a_pipe(npz, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    argv = [sys.executable, "-m", "tokenloss", "score", npz(logits=LOGITS, targets=TARGETS), "--format", "json"]
    with subprocess.Popen([*argv, "--text", tmp_path / "pipe"], stdout=subprocess.PIPE) as process:
        (tmp_path / "pipe").write_bytes(b"two words" * 100_000)
        result = json.loads(process.communicate(timeout=60)[0])
    assert (result["n_bytes"], result["n_words"]) == (900_000, 100_001)
    assert result["bits_per_byte"] is not None


def test_text_that_is_empty(command, tmp_path):
    (tmp_path / "text").write_bytes(b"")
    assert_refused(command("score", SAMPLE, "--text", tmp_path / "text"), "text: is empty; it must contain a text")


def test_text_and_bytes(score_json, command, npz, tmp_path):
    path = npz(logits=LOGITS, targets=TARGETS)
    (tmp_path / "text").write_text("a naïve\nlittle  text\n", encoding="utf-8", newline="\n")
    total = 4 * tokenloss.cross_entropy(LOGITS, TARGETS)
    result = score_json(path, "--text", tmp_path / "text")
    assert (result["n_bytes"], result["n_words"]) == (22, 4)
    assert result["bits_per_byte"] == pytest.approx(total / math.log(2) / 22)
    assert result["word_perplexity"] == pytest.approx(math.exp(total / 4))
    result = score_json(path, "--n-bytes", 11)
    assert result["bits_per_byte"] == pytest.approx(total / math.log(2) / 11)
    assert result["word_perplexity"] is None
    _, out, _ = command("score", path, "--text", tmp_path / "text")
    assert "bits per byte" in out
    assert "perplexity per word" in out
    assert "perplexity per word" not in command("score", path, "--n-bytes", 11)[1]
    assert "per byte" not in command("score", path)[1]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_score_memory_is_bounded(tmp_path):
    shape, size = (256, 1 << 18), 1 << 28  # a file of zeros that takes no room on the disk
    with (tmp_path / "logits.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + size)
    np.save(tmp_path / "targets.npy", np.zeros(shape[0], np.int64))
    program = (
        "import sys; from tokenloss._command.cli import main; from pathlib import Path; status = main();"
        # of this process alone: resource.getrusage would include the process that started it
        "peak = Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0];"
        "print(peak, file=sys.stderr); sys.exit(status)"
    )
    files = tmp_path / "logits.npy", tmp_path / "targets.npy"
    done = process("score", *files, "--format", "json", program=("-c", program))
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert result["loss"] == pytest.approx(18 * math.log(2), abs=2e-7)
    assert (result["accuracy"], result["n_bytes_read"]) == (1.0, size)
    assert int(done.stderr) * 1024 < 200e6


# losses that are not finite, and those of certainty


def test_nan_and_infinite_losses_are_counted(score_json, command, tmp_path):
    """In the table, in JSON, over shards and state, in blocks and in a warning."""
    logits, targets = np.zeros((20, 3)), np.zeros(20, int)
    logits[[1, 7, 12], 1], logits[[3, 15], 0], logits[5, 2], targets[5] = np.nan, -np.inf, np.nan, -100
    for k, part in enumerate((slice(8), slice(8, 20))):
        np.savez(tmp_path / f"{k}.npz", logits=logits[part], targets=targets[part])
    state = tmp_path / "state.json"
    for _ in range(2):  # the second time from the state
        result = score_json(tmp_path / "[01].npz", "--state", state)
        assert (result["count"], result["n_nan"], result["n_infinite"]) == (19, 3, 2)
        assert [(part["n_nan"], part["n_infinite"]) for part in result["shards"]] == [(2, 1), (1, 1)]
    status, out, err = command("score", tmp_path / "[01].npz")
    assert (status, err) == (0, "")
    assert re.search(r"nan tokens +3 +of 19\n +infinite losses +2 +of 19\n", out)
    blocks = [(logits[:8], targets[:8]), (logits[8:], targets[8:])]
    with pytest.warns(UserWarning, match="of 19 tokens") as record:
        evaluation = evaluate(blocks)
    assert (evaluation.figures["n_nan"], evaluation.figures["n_infinite"]) == (3, 2)
    assert "count=19, n_nan=3, " in repr(evaluation)
    messages = [str(one.message) for one in record]
    assert messages == ["3 of 19 tokens have a loss of nan", "2 of 19 tokens have an infinite loss"]
    assert "nan" not in command("score", SAMPLE)[1]
    assert "loss=nan, count=19, n_nan=3, " in repr(token_scores(logits, targets))


def test_one_token_has_no_interval(command, npz):
    out = command("score", npz(logits=LOGITS[:1], targets=TARGETS[:1]))[1]
    assert "nats; no interval from one token\n" in out
    assert "nan" not in out
    assert "time" not in out  # below a second


@pytest.mark.parametrize("tokens", [4, 5, 100])
def test_log_probs_that_are_all_0_are_warned_of(tokens, command, npz):
    """As they are after sampling at temperature 0."""
    log_probs, targets = np.tile([0.0, -np.inf, -9999.0], (tokens, 1)), np.zeros(tokens, int)
    status, _, err = command("score", npz(log_probs=log_probs, targets=targets))
    assert status == 0
    assert ("every token has a probability of exactly 1" in err) == (tokens >= 5)
    targets[-1] = 2
    assert command("score", npz(log_probs=log_probs, targets=targets))[2] == ""


def test_log_probs_of_responses_that_are_all_0_are_warned_of(command, tmp_path):
    path = tmp_path / "chat.json"
    content = [{"token": f" t{i}", "logprob": 0.0, "top_logprobs": [{"token": f" t{i}", "logprob": 0.0},
                {"token": "x", "logprob": -9999.0}]} for i in range(9)]  # fmt: skip
    choice = {"index": 0, "message": {"content": "t"}, "logprobs": {"content": content}}
    path.write_text(json.dumps({"object": "chat.completion", "choices": [choice]}), encoding="utf-8")
    assert "temperature 0" in command("score", path)[2]
    with pytest.warns(UserWarning, match="every token has a probability of exactly 1"):
        evaluate([path])
