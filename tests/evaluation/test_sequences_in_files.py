"""tokenloss score of sequences: (N, T, V), segment_ids and cu_seqlens in files, --segment-ids, and what it prints."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from arrays import INTEGERS
from commands import LOGITS, TARGETS, assert_refused, raising
from files import WITH_TARGETS, save_compressed_npz, save_npz, save_safetensors, save_zarr_3

import tokenloss
from tokenloss._evaluation import plan, sequences
from tokenloss._evaluation import score as shard_run

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")


def tokens_of(shape, seed=41, classes=7):
    """Logits, class ids, some of them ignored, and the loss of each in float64."""
    rng = np.random.default_rng(seed)
    logits, targets = rng.normal(size=(*shape, classes), scale=2).astype(np.float32), rng.integers(classes, size=shape)
    targets[rng.random(shape) < 0.15] = -100
    return logits, targets, tokenloss.cross_entropy(logits, targets, reduction="none")


def expected_figures(losses, kept, numbers):
    """Figures by NumPy; a token of a negative number is a group of its own."""
    losses, kept, numbers = losses.ravel(), kept.ravel(), np.broadcast_to(numbers, kept.shape).ravel()
    numbers = np.where(numbers < 0, -1 - np.arange(numbers.size), numbers)[kept]
    losses = losses[kept]
    ids, group = np.unique(numbers, return_inverse=True)
    sums, counts = np.bincount(group, losses), np.bincount(group)
    mean, n = losses.mean(), len(ids)
    means = (sums / counts)[ids >= 0]
    stderr = math.sqrt(n / (n - 1) * ((sums - mean * counts) ** 2).sum()) / counts.sum()
    return {
        "loss": mean, "stderr": stderr, "n_sequences": len(means), "sequence_loss": means.mean(),
        "sequence_loss_stderr": means.std(ddof=1) / math.sqrt(len(means)),
    }  # fmt: skip


def assert_figures(result, losses, targets, numbers):
    kept = np.asarray(targets) != -100
    for name, value in expected_figures(losses, kept, numbers).items():
        assert result[name] == pytest.approx(value, rel=1e-12), name
    assert result["is_clustered"]
    assert result["n_without_sequence"] == np.count_nonzero(kept & (numbers < 0))


@pytest.mark.parametrize("block_rows", [3, 1000])
@pytest.mark.parametrize("save", WITH_TARGETS)
@pytest.mark.parametrize("how", ["rows", "segment_ids", "flat cu_seqlens", "cu_seqlens"])
def test_sequences_of_a_file(how, save, block_rows, score_json, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_ROWS", block_rows)
    logits, targets, losses = tokens_of((6, 5))
    numbers, others = np.arange(6)[:, None] + np.zeros((6, 5), int), {}
    if how == "segment_ids":  # interleaved, some of no sequence
        numbers = np.random.default_rng(1).permutation(np.arange(30) % 4 - 1).reshape(6, 5)
        others = {"segment_ids": numbers}
    elif "cu_seqlens" in how:
        others = {"cu_seqlens": np.array([0, 1, 12, 12, 20, 30])}
        numbers = np.repeat([0, 1, 3, 4], [1, 11, 8, 10]).reshape(6, 5)
    if how == "flat cu_seqlens":
        logits, targets, losses, numbers = logits.reshape(30, 7), targets.ravel(), losses.ravel(), numbers.ravel()
    result = score_json(save(tmp_path / "scores", logits, targets, **others))
    assert_figures(result, losses, targets, numbers)
    for row in result["sequences"]:
        own = (numbers == row["sequence"]) & (targets != -100)
        assert (row["count"], row["nll"]) == (own.sum(), math.fsum(losses[own]))
        assert row["loss"] == row["nll"] / row["count"]
        assert row["perplexity"] == np.exp(row["loss"])
        assert row["is_greedy"] == (logits.argmax(-1) == targets)[own].all()
    assert [row["sequence"] for row in result["sequences"]] == np.unique(
        numbers[(numbers >= 0) & (targets >= 0)]
    ).tolist()


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_segment_ids_of_each_dtype(dtype, score_json, tmp_path):
    ids = np.array([0, 100, 3, 100, 0], dtype)
    logits, targets = tokens_of((5,))[0], np.ones(5, int)
    losses = tokenloss.cross_entropy(logits, targets, reduction="none")
    for save in (save_npz, save_safetensors):
        result = score_json(save(tmp_path / "scores", logits, targets, segment_ids=ids))
        assert_figures(result, losses, targets, ids.astype(int))
        assert [row["sequence"] for row in result["sequences"]] == [0, 3, 100]


def test_segment_ids_beyond_two_to_the_31(score_json, command, npz):
    logits, targets = tokens_of((6,))[0], np.full(6, 2)
    ids = np.array([2**31, 2**62, 5, 2**62 - 1, 2**31, -(2**40)])
    result = score_json(npz(logits=logits, targets=targets, segment_ids=ids))
    assert [row["sequence"] for row in result["sequences"]] == [5, 2**31, 2**62 - 1, 2**62]
    assert [row["count"] for row in result["sequences"]] == [1, 2, 1, 1]
    assert result["n_without_sequence"] == 1
    path = npz(logits=logits, targets=targets, segment_ids=ids.astype(np.uint64))
    assert_refused(command("score", path), f"{path}: segment_ids")


@pytest.mark.parametrize("most_pending", [0, 4, 1000])
@pytest.mark.parametrize(
    "numbers", [np.repeat(np.arange(4), [3, 27, 1, 9]), np.arange(40) % 4], ids=["packed", "mixed"]
)
def test_sequences_are_summed_once_they_end(numbers, most_pending, score_json, npz, monkeypatch):
    logits, targets, losses = tokens_of((40,))
    how = {"segment_ids": numbers} if numbers[1] else {"cu_seqlens": [0, 3, 30, 31, 40]}
    monkeypatch.setattr(plan, "_BLOCK_ROWS", 2)
    monkeypatch.setattr(sequences, "_MAX_PENDING", most_pending)
    result = score_json(npz(logits=logits, targets=targets, **how))
    assert_figures(result, losses, targets, numbers)
    kept = np.where(targets == -100, 0, losses)
    assert [row["nll"] for row in result["sequences"]] == [math.fsum(kept[numbers == i]) for i in range(4)]


@pytest.mark.parametrize("save", [save_npz, save_compressed_npz, save_safetensors, save_zarr_3])
@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"segment_ids": np.zeros(5, int)}, "segment_ids has shape (5,); it must have shape (4,), to fit logits"),
        ({"segment_ids": np.zeros((4, 3), int)}, "segment_ids has shape (4, 3)"),
        ({"segment_ids": np.zeros(4)}, "segment_ids has dtype float64; it must be an integer"),
        ({"segment_ids": np.zeros(4, bool)}, "segment_ids has dtype bool"),
        ({"cu_seqlens": np.array([0, 3, 2, 4])}, "cu_seqlens"),
        ({"cu_seqlens": np.array([1, 4])}, "cu_seqlens"),
        ({"cu_seqlens": np.array([0, 3])}, "cu_seqlens"),
        ({"cu_seqlens": np.array([0, 5])}, "cu_seqlens"),
        ({"cu_seqlens": np.array([0, -1, 4])}, "cu_seqlens"),
        ({"cu_seqlens": np.array([0.0, 4.0])}, "cu_seqlens has dtype float64"),
        ({"cu_seqlens": np.array([[0, 4]])}, "cu_seqlens has shape (1, 2); it must have shape (G + 1,)"),
        ({"cu_seqlens": np.array([0, 4]), "segment_ids": np.zeros(4, int)}, "contains segment_ids and cu_seqlens"),
    ],
)
def test_sequences_that_are_wrong(others, words, save, command, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_run, "score_shard", raising(AssertionError))  # before any score is read
    path = save(tmp_path / "scores", LOGITS, TARGETS, **others)
    assert_refused(command("score", path), f"{path}: {words}")


# -- --segment-ids -----------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path):
    """Two files of 12 and 18 rows, and numbers of sequences, one of which goes on in the second file."""
    logits, targets, losses = tokens_of((30,), seed=43)
    ids = np.repeat([4, 1, -1, 7, 1, -1], [5, 4, 2, 6, 9, 4])  # 7 and 1 are in both
    for name, part in ("a", slice(0, 12)), ("b", slice(12, 30)):
        np.savez(tmp_path / f"part-{name}.npz", logits=logits[part], targets=targets[part])
        np.save(tmp_path / f"ids-{name}.npy", ids[part])
    np.save(tmp_path / "all.npy", ids)
    return SimpleNamespace(path=tmp_path, logits=logits, targets=targets, losses=losses, ids=ids)


def test_segment_ids_for_each_file(parts, score_json):
    result = score_json(parts.path / "part-*.npz", "--segment-ids", parts.path / "ids-*.npy")
    numbers = np.where(parts.ids < 0, -1, parts.ids + 10 * (np.arange(30) >= 12))
    assert_figures(result, parts.losses, parts.targets, numbers)
    rows = [(row["file"][-5], row["sequence"]) for row in result["sequences"]]
    assert rows == [("a", 1), ("a", 4), ("a", 7), ("b", 1), ("b", 7)]
    assert [part["n_sequences"] for part in result["shards"]] == [3, 2]
    twice = [word for name in "ab" for word in ("--segment-ids", parts.path / f"ids-{name}.npy")]
    assert score_json(parts.path / "part-*.npz", *twice)["sequences"] == result["sequences"]


def test_segment_ids_for_all_files(parts, score_json):
    result = score_json(parts.path / "part-*.npz", "--segment-ids", parts.path / "all.npy")
    assert_figures(result, parts.losses, parts.targets, parts.ids)
    rows = [(row["file"] and row["file"][-5], row["sequence"]) for row in result["sequences"]]
    assert rows == [("a", 4), (None, 1), (None, 7)]
    for part, rows in zip(result["shards"], (slice(0, 12), slice(12, 30)), strict=True):
        expected = expected_figures(parts.losses[rows], parts.targets[rows] != -100, parts.ids[rows])
        assert (part["n_sequences"], part["is_clustered"]) == (expected["n_sequences"], True)
        assert part["stderr"] == pytest.approx(expected["stderr"], rel=1e-12)


def test_segment_ids_option_comes_before_sequences_in_a_file(parts, score_json, npz):
    np.save(parts.path / "one.npy", parts.ids)
    path = npz(logits=parts.logits, targets=parts.targets, cu_seqlens=[0, 30])
    result = score_json(path, "--segment-ids", parts.path / "one.npy")
    assert_figures(result, parts.losses, parts.targets, parts.ids)
    path = npz(logits=parts.logits.reshape(5, 6, 7), targets=parts.targets.reshape(5, 6))
    assert score_json(path, "--segment-ids", parts.path / "one.npy")["sequences"] == result["sequences"]


def test_segment_ids_that_do_not_fit(parts, command):
    pattern, ids = parts.path / "part-*.npz", parts.path / "ids-a.npy"
    refused = command("score", pattern, "--segment-ids", ids)
    assert_refused(
        refused, f"{ids}: has shape (12,); it must contain 30 ids, one for each row of the 2 files of scores"
    )
    refused = command("score", parts.path / "part-b.npz", "--segment-ids", ids)
    assert_refused(refused, f"{ids}: segment_ids has shape (12,); it must be (18,), to fit logits")
    three = [word for name in ("ids-a", "ids-b", "all") for word in ("--segment-ids", parts.path / f"{name}.npy")]
    assert_refused(command("score", pattern, *three), "ids-a.npy: is one of 3 files of segment ids; it must be 2")
    assert_refused(command("score", pattern, "--segment-ids", ids, "--segment-ids", ids), f"{ids}: is given twice")
    refused = command("score", parts.path / "part-a.npz", "--targets", ids, "--segment-ids", ids)
    assert_refused(refused, f"{ids}: is given twice")
    refused = command("score", pattern, "--segment-ids", "none.npy")
    assert_refused(refused, "none.npy: cannot be read: No such file")
    for array in (np.zeros(30), np.array(["a"] * 30), np.full(30, 2**64 - 1, np.uint64)):
        np.save(parts.path / "bad.npy", array)
        refused = command("score", pattern, "--segment-ids", parts.path / "bad.npy")
        assert_refused(refused, f"{parts.path / 'bad.npy'}: segment_ids")


# -- --shift -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["a file for each", "a file for all", "in one file", "cu_seqlens"])
def test_shift_within_sequences(how, parts, score_json, npz):
    ids, argv = parts.ids, [parts.path / "part-*.npz"]
    pairs = (ids[1:] == ids[:-1]) & (ids[1:] >= 0)
    if how == "a file for each":
        pairs[11] = False
        argv += ["--segment-ids", parts.path / "ids-*.npy"]
    elif how == "a file for all":
        argv += ["--segment-ids", parts.path / "all.npy"]
    elif how == "in one file":
        argv = [npz(logits=parts.logits, targets=parts.targets, segment_ids=ids)]
    else:
        pairs[[9, 26, 27, 28]] = True, True, True, True  # of those, -1 is a sequence
        argv = [npz(logits=parts.logits, targets=parts.targets, cu_seqlens=[0, 5, 9, 11, 17, 26, 30])]
    result = score_json(*argv, "--shift")
    targets = parts.targets[1:][pairs]
    losses = tokenloss.cross_entropy(parts.logits[:-1][pairs], targets, reduction="none")
    assert result["n_without_next"] == 30 - pairs.sum()
    assert (result["count"], result["n_ignored"]) == ((targets != -100).sum(), (targets == -100).sum())
    assert sum(row["nll"] for row in result["sequences"]) == pytest.approx(math.fsum(losses), rel=1e-12)
    assert result["loss"] == pytest.approx(losses[targets != -100].mean(), rel=1e-12)


def test_shift_between_files_outside_of_sequences(score_json, tmp_path):
    np.save(tmp_path / "ids.npy", [0, 0, 0, -1, -1, 1, 1, 1])  # those of no sequence are no pair
    for name, part in ("a", slice(0, 4)), ("b", slice(4, 8)):
        np.savez(tmp_path / f"part-{name}.npz", logits=tokens_of((8,))[0][part], targets=[1, 2, 3, 4])
    result = score_json(tmp_path / "part-*.npz", "--segment-ids", tmp_path / "ids.npy", "--shift")
    assert (result["count"], result["n_without_next"]) == (4, 4)


# -- what is printed ---------------------------------------------------------------------------------------------------


def test_score_prints_sequences(command, npz):
    logits, targets = tokens_of((3, 5))[0], np.ones((3, 5), int)
    _, out, _ = command("score", npz(logits=logits, targets=targets))
    assert re.search(r"loss +\S+ +± \S+ nats \(n = 3 sequences\)", out)
    assert re.search(r"loss per sequence +\S+ +± \S+ nats", out)
    losses = tokenloss.cross_entropy(logits, targets, reduction="none").mean(-1)
    table = re.search(r"highest-loss sequences\n +sequence +tokens +loss +perplexity *\n((?: +\d.*\n)+)", out)[1]
    order = np.argsort(-losses)
    assert [line.split()[:3] for line in table.splitlines()] == [[str(i), "5", f"{losses[i]:.4f}"] for i in order]
    _, out, _ = command("score", npz(logits=logits[:1], targets=targets[:1]))  # whose error is that of its tokens
    assert "(n = 5 tokens, assumed independent)" in out
    assert "per sequence" not in out
    assert "highest-loss sequences" not in out
    rows, ids = {"logits": logits.reshape(15, 7), "targets": targets.ravel()}, np.repeat([3, -1, 8], 5)
    assert "(n = 15 tokens, assumed independent)" in command("score", npz(**rows))[1]
    assert "(n = 2 sequences and 5 tokens outside of any)" in command("score", npz(**rows, segment_ids=ids))[1]


def test_score_prints_the_files_of_sequences(parts, command):
    _, out, _ = command("score", parts.path / "part-*.npz", "--segment-ids", parts.path / "all.npy", "--top", 3)
    table = re.search(r"highest-loss sequences\n +file +sequence .*\n((?:.+\n)+)", out)[1]
    assert {tuple(line.split()[:2]) for line in table.splitlines()} == {
        ("several", "1"), ("several", "7"), (str(parts.path / "part-a.npz"), "4"),
    }  # fmt: skip


def test_per_sequence(parts, score_json, tmp_path):
    argv = parts.path / "part-*.npz", "--segment-ids", parts.path / "all.npy"
    for suffix in ("npy", "csv"):
        outputs = "--per-sequence", tmp_path / f"seq.{suffix}", "--per-token", tmp_path / f"tok.{suffix}"
        result = score_json(*argv, *outputs)
    table, tokens = np.load(tmp_path / "seq.npy"), np.load(tmp_path / "tok.npy")
    assert table.dtype.names == ("file", "sequence", "count", "nll", "loss", "perplexity", "is_greedy")
    assert table["file"].tolist() == [0, -1, -1]
    for name in table.dtype.names[1:]:
        assert table[name].tolist() == [row[name] for row in result["sequences"]]
    assert tokens.dtype.names[-4:] == ("file", "row", "sequence", "position")
    assert tokens["sequence"].tolist() == parts.ids.tolist()
    assert tokens["file"].tolist() == [0] * 12 + [1] * 18
    assert tokens["row"].tolist() == [*range(12), *range(18)]
    for name, rows in ("seq", table), ("tok", tokens):
        lines = (tmp_path / f"{name}.csv").read_text().splitlines()
        expected = [",".join(rows.dtype.names), *(",".join(map(str, row)) for row in rows.tolist())]
        assert lines == [line.replace("False,nan,nan,-1,-1,False,nan", "False,,,,,,") for line in expected]


@pytest.mark.parametrize("piece", [1, 2, 5, 1 << 20])
@pytest.mark.parametrize("text", ["one two\n", " one  two", "\u00a0é\u3000x \t", "  ", "one"])
def test_words(text, piece, score_json, npz, tmp_path, monkeypatch):
    monkeypatch.setattr("tokenloss._evaluation.options._TEXT_BYTES", piece)
    path = tmp_path / "text"
    path.write_text(text, encoding="utf-8", newline="")
    scores = npz(logits=LOGITS, targets=TARGETS)
    for words, n in (("whitespace", len(text.split())), ("lm-eval", len(re.split(r"\s+", text)))):
        result = score_json(scores, "--text", path, "--words", words)
        assert (result["n_words"], result["n_bytes"]) == (n, len(text.encode()))
        if n:
            assert result["word_perplexity"] == pytest.approx(math.exp(result["loss"] * 4 / n), rel=1e-12)
