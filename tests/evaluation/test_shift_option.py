"""--shift of score and compare: each row predicts the next target, also across files; a warning where it is missing."""

import json
import math
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import zarr
from arrays import fails
from commands import LOGITS, SUMMARY_FIELDS, TARGETS, assert_refused, process, read_state, write_state

import tokenloss
from tokenloss import ShiftWarning
from tokenloss._core.text import as_strict_json
from tokenloss._evaluation import plan
from tokenloss._evaluation import rows as shard_rows
from tokenloss.formats import blocks, llama_cpp, open_scores

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")


@pytest.mark.parametrize("save", ["npy", "npz", "zarr"])
def test_shift(save, score_json, tmp_path):
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
    result = score_json(*paths, "--shift", "--top", 1, "--per-token", tmp_path / "tokens.csv")
    losses = tokenloss.cross_entropy(logits[:, :-1], tokens[:, 1:], reduction="none")
    assert result["loss"] == tokenloss.cross_entropy(logits[:, :-1], tokens[:, 1:])
    assert (result["count"], result["n_ignored"]) == (11, 1)
    i, j = np.unravel_index(losses.argmax(), losses.shape)
    (token,) = result["highest_loss_tokens"]
    assert (token["row"], token["target"]) == (5 * i + j, tokens[i, j + 1])
    assert token["text"] == (text[i, j + 1] if save == "npz" else None)
    table = np.genfromtxt(tmp_path / "tokens.csv", delimiter=",", names=True)
    np.testing.assert_array_equal(table["nll"], np.where(tokens[:, 1:] == -100, np.nan, losses).ravel())
    np.testing.assert_array_equal(table["target"], tokens[:, 1:].ravel())


def test_shift_of_targets_that_are_no_sequence(command, npz, tmp_path):
    assert_refused(command("score", npz(logits=LOGITS[0], targets=0), "--shift"), "targets of shape ()", "sequences")
    soft = npz(logits=LOGITS, targets=np.eye(3)[TARGETS])
    assert_refused(command("score", soft, "--shift"), "targets of shape (4, 3)", "an id for each row")
    llama_cpp.write(tmp_path / "base.kld", np.zeros(10, int), [LOGITS], 10)
    assert_refused(command("score", tmp_path / "base.kld", "--shift"), "contains targets that are the next tokens")


def test_shift_of_the_opener_holds_and_its_opposite_is_refused(npz):
    logits, ids = np.random.default_rng(3).normal(size=(2, 5, 7)), np.arange(10).reshape(2, 5) % 7
    expected = {shift: tokenloss.cross_entropy(logits[:, :-1], ids[:, 1:]) if shift else tokenloss.cross_entropy(
        logits, ids) for shift in (True, False)}  # fmt: skip
    path = npz(logits=logits, targets=ids)
    for shift, loss in expected.items():
        for source in open_scores(path, shift=shift), blocks([(logits, ids)], shift=shift):
            assert tokenloss.evaluate(source).meter.loss == loss
            assert tokenloss.evaluate(source, shift=shift).meter.loss == loss
            words = f"shift is {not shift}; it must be {shift}, or left out, since {source.name} was opened"
            with fails(ValueError, words):
                tokenloss.evaluate(source, shift=not shift)


@pytest.fixture(params=["1 file", "a file each", "in the files"])
def sequence(request, tmp_path):
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


def test_shift_across_shards(sequence, score_json):
    result = score_json(*sequence.argv, "--shift", "--per-token", sequence.path / "out.npy", "--top", 20)
    losses = tokenloss.cross_entropy(sequence.logits[:-1], sequence.ids[1:], reduction="none")
    assert (result["count"], result["n_ignored"], result["n_without_next"]) == (10, 1, 1)
    assert result["loss"] == tokenloss.cross_entropy(sequence.logits[:-1], sequence.ids[1:])
    table = np.load(sequence.path / "out.npy")
    np.testing.assert_array_equal(table["nll"], np.where(sequence.ids[1:] == -100, np.nan, losses))
    np.testing.assert_array_equal(table["target"], sequence.ids[1:])
    starts = dict(zip((part["file"] for part in result["shards"]), (0, 4, 5, 5), strict=True))
    places = [starts[token["file"]] + token["row"] for token in result["highest_loss_tokens"]]
    assert sorted(places) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    if sequence.argv[-1] == sequence.path / "part-*.npz":
        assert [token["text"] for token in result["highest_loss_tokens"]] == [f"t{place + 1}" for place in places]


def test_shift_counts_tokens_without_next(sequence, command, score_json):
    out = command("score", *sequence.argv, "--shift")[1]
    assert re.search("tokens +10 +1 ignored, 1 without a next token\n", out)
    assert score_json(*sequence.argv)["n_without_next"] == 0


def test_shift_of_batches_of_sequences(score_json, tmp_path):
    rng = np.random.default_rng(9)
    logits, ids = rng.normal(size=(4, 5, 7)), rng.integers(7, size=(4, 5))
    for name, part in ("a", slice(0, 2)), ("b", slice(2, 4)):
        np.savez(tmp_path / f"part-{name}.npz", logits=logits[part], targets=ids[part])
    np.savez(tmp_path / "part-c.npz", logits=logits[0], targets=ids[0])
    result = score_json(tmp_path / "part-*.npz", "--shift")
    assert (result["count"], result["n_without_next"]) == (20, 5)


def test_shift_across_shards_of_other_dtypes(score_json, tmp_path):
    logits = np.random.default_rng(10).normal(size=(4, 300))
    np.savez(tmp_path / "a.npz", logits=logits[:2], targets=np.uint8([7, 8]))
    np.savez(tmp_path / "b.npz", logits=logits[2:], targets=np.int32([299, -100]))
    np.savez(tmp_path / "c.npz", logits=logits[2:], targets=np.uint64([0, 1]))
    np.savez(tmp_path / "d.npz", logits=logits[2:], targets=np.int8([-100, 1]))
    result = score_json(tmp_path / "[ab].npz", "--shift")
    assert result["loss"] == tokenloss.cross_entropy(logits[:2], [8, 299])
    assert (result["count"], result["n_ignored"]) == (2, 1)
    result = score_json(tmp_path / "[cd].npz", "--shift")
    assert result["loss"] == tokenloss.cross_entropy(logits[2:3], [1])
    assert (result["count"], result["n_ignored"], result["n_without_next"]) == (2, 1, 1)


def test_shift_of_targets_out_of_range(command, npz, models):
    refused = command("score", npz(logits=LOGITS, targets=[0, 1, 2, 7]), "--shift")
    assert_refused(refused, "shifted targets[2] = 7 is out of range [0, 3)")
    np.savez(models.path / "base.npz", logits=models.base, targets=np.where(models.targets < 0, -100, 9))
    refused = command("compare", models.path / "base.npz", models.path / "base.npz", "--shift")
    assert_refused(refused, "shifted targets[", "] = 9 is out of range [0, 9)")


def test_shift_with_state(sequence, command, score_json):
    state = sequence.path / "state"
    without = score_json(*sequence.argv, "--shift")
    for _ in range(2):
        actual = score_json(*sequence.argv, "--shift", "--state", state)
        assert [actual[name] for name in SUMMARY_FIELDS[:-1]] == [without[name] for name in SUMMARY_FIELDS[:-1]]
    kept = read_state(state)
    assert [entry["shard"]["next"][0] for entry in kept["done"]] == [sequence.ids[4], -100, None, None]
    kept["done"][0]["shard"]["next"][0] = 6 if sequence.ids[4] != 6 else 5
    write_state(state, kept)
    refused = command("score", *sequence.argv, "--shift", "--state", state)
    assert_refused(refused, f"{state}: contains the result of", "changed")


def test_shift_with_scheduler(sequence, score_json):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
    ) as cluster:
        there = score_json(*sequence.argv, "--shift", "--scheduler", cluster.scheduler_address)
    here = score_json(*sequence.argv, "--shift")
    for name in (*SUMMARY_FIELDS, "n_without_next", "highest_loss_tokens", "shards"):
        assert there[name] == here[name]


@pytest.mark.parametrize("n_rows", [(24,), (4, 6)])
def test_shift_in_compare(n_rows, compare_json, tmp_path):
    rng = np.random.default_rng(11)
    base, ids = rng.normal(size=(*n_rows, 9)).astype(np.float32), rng.integers(9, size=n_rows)
    other = base + rng.normal(size=base.shape, scale=0.3).astype(np.float32)
    ids[..., 2] = -100
    np.savez(tmp_path / "base.npz", logits=base, targets=ids)
    np.savez(tmp_path / "other.npz", logits=other, targets=ids)
    result = compare_json(tmp_path / "base.npz", tmp_path / "other.npz", "--shift")
    numbers = np.arange(4)[:, None] if len(n_rows) > 1 else None
    expected = tokenloss.compare(base[..., :-1, :], other[..., :-1, :], ids[..., 1:], segment_ids=numbers).to_dict()
    assert result.pop("signature") == expected.pop("signature").replace("|mask", "|shift:yes|mask")
    assert {name: result[name] for name in expected} == as_strict_json(expected)
    sequences = math.prod(n_rows[:-1])
    assert (result["n_without_next"], result["n_ignored"]) == (sequences, sequences)


def test_shift_in_compare_of_other_shapes(command, models, tmp_path):
    base, other = models.path / "base.npz", models.path / "other.npy"
    assert_refused(
        command("compare", base, other, "--shift"), f"{other}: contains logits of shape (24, 9)", "shape (4, 6)"
    )
    assert_refused(
        command("compare", other, other, "--targets", models.path / "targets.npy", "--shift"),
        "targets.npy: contains targets of shape (4, 6)",
    )
    llama_cpp.write(tmp_path / "base.kld", np.zeros(10, int), [LOGITS], 10)
    refused = command("compare", tmp_path / "base.kld", tmp_path / "base.kld", "--shift")
    assert_refused(refused, "base.kld: contains targets that are the next tokens")


# -- the warning -------------------------------------------------------------------------------------------------------


def causal(n, predicts_next=True, seed=13, classes=50, shape=None):
    """Logits that favor the next id, or the id itself, and the ids."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(classes, size=n)
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), np.roll(ids, -1) if predicts_next else ids] += 6
    return (logits, ids) if shape is None else (logits.reshape(*shape, classes), ids.reshape(shape))


def warnings_of(*arguments, **options):
    """The result of evaluate, and the warnings about the shift."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = tokenloss.evaluate(*arguments, **options)
    assert all(warning.category is ShiftWarning and warning.filename == __file__ for warning in caught)
    said = "fits_better_unshifted" if options.get("shift") else "fits_better_shifted"
    assert result.figures[said] == bool(caught)
    return result, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("shape", [None, (4, 100), (100, 4), (2, 2, 100)])
@pytest.mark.parametrize("of_blocks", [True, False])
def test_missing_shift_is_warned_of_once(of_blocks, shape, npz):
    logits, ids = causal(400, shape=shape)
    source = [(logits, ids)] if of_blocks else npz(logits=logits, targets=ids)
    _, said = warnings_of(source)
    assert len(said) == 1
    assert said[0].endswith("; shift them (shift=True), or confirm that they are right (shift=False)")
    assert warnings_of(source, shift=True)[1] == warnings_of(source, shift=False)[1] == []
    logits, ids = causal(400, predicts_next=False, shape=shape)
    assert warnings_of([(logits, ids)] if of_blocks else npz(logits=logits, targets=ids))[1] == []


@pytest.mark.parametrize("shape", [None, (4, 100), (100, 4), (2, 2, 100)])
@pytest.mark.parametrize("of_blocks", [True, False])
def test_shift_of_targets_that_are_the_next_tokens_is_warned_of_once(of_blocks, shape, npz, command):
    logits, targets = causal(400, predicts_next=False, shape=shape)  # the ids that the rows predict
    source = [(logits, targets)] if of_blocks else npz(logits=logits, targets=targets)
    said = "the targets fit far better without the shift: they seem to be the next tokens already; leave out "
    assert warnings_of(source, shift=True)[1] == [f"{said}shift=True"]
    if not of_blocks:
        assert f"{said}--shift\n" in command("score", source, "--shift")[2]
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(400, 50)), np.repeat(rng.integers(50, size=40), 10)  # ids that repeat
    assert warnings_of([noise], shift=True)[1] == []


def test_missing_shift_in_the_command(command, npz, tmp_path):
    logits, ids = causal(400)
    path = npz(logits=logits, targets=ids)
    for argv in ([], ["--format", "json"], ["--html", tmp_path / "x.html"]):
        status, out, err = command("score", path, *argv)
        assert status == 0
        assert re.fullmatch(r"tokenloss: warning: [^\n]*--no-shift[^\n]*\n", err)
        if argv == ["--format", "json"]:
            assert json.loads(out)["fits_better_shifted"] is True
        for option in ("--shift", "--no-shift"):
            assert command("score", path, *argv, option)[::2] == (0, "")
    done = process("score", path, "--format", "json")  # where warnings are errors
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert json.loads(done.stdout)["count"] == 400


def test_shift_warning_as_an_error(npz):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ShiftWarning)
        with pytest.raises(ShiftWarning, match="fit far better one row earlier"):
            tokenloss.evaluate([causal(400)])
    assert issubclass(ShiftWarning, UserWarning)


@pytest.mark.parametrize(("rows", "n"), [(64, 0), (65, 1)])
def test_missing_shift_needs_64_rows_with_a_next_one(rows, n):
    logits, ids = causal(rows)
    logits[-1] = 0
    assert len(warnings_of([(logits, ids)])[1]) == n
    logits, ids = causal(rows + 3)
    ids[[5, 40]] = -100  # two rows whose target is ignored leave out two pairs, or three
    assert len(warnings_of([(logits[: rows + 1], ids[: rows + 1])])[1]) == 0
    for length in (1, 2):  # sequences of one token have no next one
        batch = [array[:64].reshape(-1, length, *array.shape[1:]) for array in causal(64)]
        assert warnings_of([tuple(batch)])[1] == []


def test_missing_shift_across_sequences_is_none(npz):
    """Every pair is of two sequences, or of none."""
    logits, ids = causal(400)
    for numbers in (np.arange(400) % 2, np.full(400, -1)):
        assert warnings_of([(logits, ids, None, numbers)])[1] == []
        assert warnings_of(npz(logits=logits, targets=ids, segment_ids=numbers))[1] == []
    assert len(warnings_of([(logits, ids, None, np.zeros(400, int))])[1]) == 1


def test_missing_shift_of_masked_rows(npz):
    logits, ids = causal(400)
    assert len(warnings_of([(logits, ids, np.arange(400) < 80)])[1]) == 1
    assert warnings_of([(logits, ids, np.arange(400) < 64)])[1] == []
    assert warnings_of([(logits, ids, np.arange(400) % 2 == 0)])[1] == []


@pytest.mark.parametrize("kind", ["log_probs", "probs"])
def test_missing_shift_of_kind(kind, npz):
    logits, ids = causal(400)
    scores = {"log_probs": tokenloss.log_softmax, "probs": tokenloss.softmax}[kind](logits.astype(np.float64))
    assert len(warnings_of(npz(**{kind: scores}, targets=ids))[1]) == 1
    assert len(warnings_of(blocks([(scores, ids)], kind=kind))[1]) == 1


def test_missing_shift_is_none_of_distributions_and_of_llama_cpp(tmp_path):
    logits, ids = causal(400)
    assert warnings_of([(logits, np.eye(50)[ids])])[1] == []
    llama_cpp.write(tmp_path / "base.kld", ids, [logits[200:-1]], 400)
    assert warnings_of(tmp_path / "base.kld")[1] == []


@pytest.mark.parametrize("block_rows", [1, 3, 1000])
def test_missing_shift_for_any_cut(block_rows, npz, tmp_path, monkeypatch):
    """The sample is taken over blocks and shards, which alone have too few rows."""
    logits, ids = causal(400)
    monkeypatch.setattr(plan, "_BLOCK_ROWS", block_rows)
    assert len(warnings_of(npz(logits=logits, targets=ids))[1]) == 1
    cuts = [(logits[i : i + 20], ids[i : i + 20]) for i in range(0, 100, 20)]
    for number, (part, targets) in enumerate(cuts):
        np.savez(tmp_path / f"part-{number}.npz", logits=part, targets=targets)
    for source in (cuts, tmp_path / "part-*.npz"):
        result, said = warnings_of(source, top=0)
        assert len(said) == 1
    assert tokenloss.evaluate(tmp_path / "part-*.npz", shift=True).meter.loss < result.meter.loss - math.log(4)
    for source in (cuts[:3], [tmp_path / f"part-{number}.npz" for number in range(3)]):  # of 19 pairs each
        assert warnings_of(source)[1] == []


def test_sample_of_the_shift_is_of_256_rows(monkeypatch):
    calls = []
    loss = shard_rows.cross_entropy

    def counting(*arrays, **options):
        calls.append(len(arrays[0]))
        return loss(*arrays, **options)

    monkeypatch.setitem(shard_rows._LOSSES, "logits", counting)
    logits, ids = causal(400)
    tokenloss.evaluate([(logits[i : i + 100], ids[i : i + 100]) for i in range(0, 400, 100)], shift=False)
    assert calls == []
    warnings_of([(logits[i : i + 100], ids[i : i + 100]) for i in range(0, 400, 100)])
    assert sum(calls) == 2 * 256
    logits[:300], ids[:300] = causal(300, predicts_next=False)
    assert warnings_of([(logits, ids)])[1] == []


@pytest.mark.parametrize(
    "seeds", [range(25), pytest.param(range(25, 100), marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("classes", [2, 50])
def test_missing_shift_is_none_of_random_logits(classes, seeds):
    for seed in seeds:
        rng = np.random.default_rng(seed)
        for shape in ((70,), (400,), (20, 20)):
            logits = rng.normal(size=(*shape, classes), scale=8 if classes > 2 else 2)
            assert warnings_of([(logits, rng.integers(classes, size=shape))])[1] == []


def test_missing_shift_with_state(command, npz, tmp_path):
    """A result that was resumed warns as well."""
    logits, ids = causal(400)
    path = npz(logits=logits, targets=ids)
    for _ in range(2):
        status, _, err = command("score", path, "--state", tmp_path / "state")
        assert (status, err.count("\n")) == (0, 1)
