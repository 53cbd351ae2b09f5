"""tokenloss score of several files: sums, --targets, the order of files, --state and --scheduler."""

import contextlib
import itertools
import os
import re
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from arrays import fails
from commands import LOGITS, SUMMARY_FIELDS, TARGETS, assert_refused, raising, read_state, write_state
from places import SAMPLE

import tokenloss
from tokenloss._evaluation import checkpoint
from tokenloss._evaluation import evaluate as shard_run
from tokenloss._evaluation import shards as shard_files
from tokenloss.formats import npz, open_scores

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")


def test_shards_add_up(shards, score_json):
    whole, parts = score_json(shards.path / "whole.npz"), score_json(shards.path / "part-*.npz")
    assert parts["files"] == [str(shards.path / f"part-{name}.npz") for name in "abc"]
    for name in SUMMARY_FIELDS:
        assert parts[name] == whole[name]
    assert parts["shape"] == whole["shape"] == [60, 11]
    assert [part["shape"] for part in parts["shards"]] == [[13, 11], [27, 11], [20, 11]]
    for part, rows in zip(parts["shards"], np.split(np.arange(60), [13, 40]), strict=True):
        assert part["loss"] == tokenloss.cross_entropy(shards.logits[rows], shards.targets[rows])
    starts = dict(zip(parts["files"], (0, 13, 40), strict=True))
    assert [starts[token["file"]] + token["row"] for token in parts["highest_loss_tokens"]] == [
        token["row"] for token in whole["highest_loss_tokens"]
    ]


def test_shards_that_do_not_fit_together(shards, command):
    logits, targets = shards.path / "logits-*.npy", shards.path / "targets-a.npy"
    assert_refused(command("score", logits), "logits-a.npy: has no targets", "--targets")
    assert_refused(
        command("score", logits, "--targets", targets), f"{targets}: has shape (13,); it must contain 60 class ids"
    )
    both = [word for name in "ab" for word in ("--targets", shards.path / f"targets-{name}.npy")]
    assert_refused(command("score", logits, *both), f"{targets}: is one of 2 files of targets; it must be 3")
    np.savez(shards.path / "part-d.npz", logits=shards.logits[:, :7], targets=shards.targets % 7)
    refused = command("score", shards.path / "part-*.npz")
    assert_refused(refused, "part-d.npz: contains logits of 7 classes; it must contain logits of 11, as ", "part-a.npz")
    np.savez(shards.path / "part-d.npz", logits=shards.logits, targets=np.full(60, 11))
    assert_refused(command("score", shards.path / "part-*.npz"), "part-d.npz: targets[0] = 11", "[0, 11)")


@pytest.mark.parametrize(
    "targets",
    [
        ["targets-*.npy"],
        ["targets-a.npy", "targets-b.npy", "targets-c.npy"],
        ["targets-[ab].npy", "targets-c.npy"],
        ["all.npy"],
    ],
)
def test_targets_of_shards(targets, shards, score_json):
    options = [word for path in targets for word in ("--targets", shards.path / path)]
    result = score_json(shards.path / "logits-*.npy", *options)
    assert result["loss"] == tokenloss.cross_entropy(shards.logits, shards.targets)
    assert len(result["files"]) == 6


def test_targets_option_comes_before_targets_in_a_file(shards, score_json):
    np.save(shards.path / "other.npy", np.zeros(60, int))
    result = score_json(shards.path / "whole.npz", "--targets", shards.path / "other.npy")
    assert result["loss"] == tokenloss.cross_entropy(shards.logits, np.zeros(60, int))


def test_targets_missing_for_two_files_of_logits(shards, command, score_json):
    np.save(shards.path / "half-0.npy", shards.logits[:30])
    np.save(shards.path / "half-1.npy", shards.logits[30:])
    words = f"{shards.path / 'half-0.npy'}: has no targets; it must contain targets, or come with --targets"
    assert_refused(command("score", shards.path / "half-*.npy"), words)
    result = score_json(shards.path / "half-*.npy", "--targets", shards.path / "all.npy")
    assert (result["count"], result["targets"]) == (np.count_nonzero(shards.targets != -100), "class ids")


@pytest.mark.skipif(sys.platform == "win32", reason="links there need a privilege")
@pytest.mark.parametrize("link", ["./", "symlink", "hard link"])
def test_file_given_twice_under_another_name(link, command, npz):
    path = npz(logits=LOGITS, targets=TARGETS)
    other = f"{path.parent}/./{path.name}"
    if link != "./":
        other = path.with_name("other.npz")
        other.symlink_to(path) if link == "symlink" else other.hardlink_to(path)
    assert_refused(command("score", path, other), f"{other}: is given twice, as {path}, too; it must be given once")


def test_targets_given_twice(shards, command, npy):
    logits, targets = shards.path / "logits-a.npy", shards.path / "targets-a.npy"
    np.save(shards.path / "logits-d.npy", shards.logits[:13])
    both = ["--targets", targets, "--targets", targets]
    assert_refused(command("score", logits, shards.path / "logits-d.npy", *both), f"{targets}: is given twice")
    probs, _ = npy(tokenloss.softmax(LOGITS), TARGETS)
    assert_refused(command("score", probs, "--targets", probs, "--kind", "probs"), f"{probs}: is given twice")


@pytest.fixture
def numbered(tmp_path):
    """Twelve shards of one row each, of which a shell puts 10 before 2, with all logits and targets."""
    rng = np.random.default_rng(12)
    logits, targets = rng.normal(size=(12, 5)), rng.integers(5, size=12)
    for i in range(12):
        np.save(tmp_path / f"part-{i}.npy", logits[i : i + 1])
        np.save(tmp_path / f"ids-{i}.npy", targets[i : i + 1])
    np.save(tmp_path / "all.npy", targets)
    return SimpleNamespace(path=tmp_path, logits=logits, targets=targets)


def test_numbered_files_are_sorted_by_number(numbered, score_json):
    expected = tokenloss.cross_entropy(numbered.logits, numbered.targets)
    for targets in ("all.npy", "ids-*.npy"):
        result = score_json(numbered.path / "part-*.npy", "--targets", numbered.path / targets)
        assert result["loss"] == pytest.approx(expected, rel=2**-52)
    assert [Path(path).name for path in result["files"][::2]] == [f"part-{i}.npy" for i in range(12)]


@pytest.mark.parametrize("targets", ["all.npy", "ids-*.npy"])
def test_numbered_files_in_alphabetical_order(targets, numbered, command, score_json):
    files = sorted(numbered.path.glob("part-*.npy"))
    refused = command("score", *files, "--targets", numbered.path / targets)
    assert_refused(refused, f"{numbered.path / 'part-11.npy'}: comes before {numbered.path / 'part-2.npy'}", "quotes")
    each = [word for path in sorted(numbered.path.glob("ids-*.npy")) for word in ("--targets", path)]
    result = score_json(*files, *each)  # the same order on both sides
    assert result["loss"] == pytest.approx(tokenloss.cross_entropy(numbered.logits, numbered.targets), rel=2**-52)
    assert_refused(command("score", *files, *each, "--shift"), "comes before")
    backwards = [numbered.path / f"part-{i}.npy" for i in range(11, -1, -1)]  # on purpose
    assert score_json(*backwards, "--targets", numbered.path / "all.npy")["count"] == 12


@pytest.fixture
def interrupted(shards, command, monkeypatch):
    """Score shards until Ctrl-C in the third; return the path of the state."""
    state = shards.path / "state.json"
    with monkeypatch.context() as patch:
        calls = iter([shard_run.score_shard, shard_run.score_shard, raising(KeyboardInterrupt)])
        patch.setattr(shard_run, "score_shard", lambda *args, **options: next(calls)(*args, **options))
        assert command("score", shards.path / "part-*.npz", "--state", state)[0] == 130
    return state


@pytest.mark.parametrize(("limit", "times"), [(1 << 20, 2), (0, 3)])
@pytest.mark.parametrize("compared", [False, True])
def test_files_in_memory_stay_open_as_far_as_the_limit_allows(limit, times, compared, tmp_path, monkeypatch):
    rng, sides = np.random.default_rng(4), ("a", "b") if compared else ("a",)
    targets = rng.integers(9, size=6)
    for side, number in itertools.product(sides, range(2)):
        np.savez_compressed(tmp_path / f"{side}{number}.npz", logits=rng.normal(size=(6, 9)), targets=targets)
    loaded, load = [], npz._Compressed.load
    monkeypatch.setattr(shard_files, "_MOST_LOADED", limit)
    monkeypatch.setattr(npz._Compressed, "load", lambda member: (loaded.append(member.path), load(member))[1])
    base, *others = ([str(tmp_path / f"{side}{number}.npz") for number in range(2)] for side in sides)
    result = tokenloss.compare_files(base, {"b": others[0]}) if compared else tokenloss.evaluate(base)
    assert {loaded.count(path) for path in base} == {6 if compared and times > 2 else times}
    monkeypatch.setattr(shard_files, "_MOST_LOADED", 1 << 20)
    again = tokenloss.compare_files(base, {"b": others[0]}) if compared else tokenloss.evaluate(base)
    assert repr(result) == repr(again)


def test_a_file_that_changes_after_the_plan_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "scores.npz"
    np.savez_compressed(path, logits=np.zeros((6, 9)), targets=np.arange(6))
    score = shard_run.score_shard

    def changing(*args, **options):
        np.savez_compressed(path, logits=np.ones((6, 9)), targets=np.arange(6))  # of another length
        return score(*args, **options)

    monkeypatch.setattr(shard_run, "score_shard", changing)
    with pytest.raises(ValueError, match=re.escape(f"{path}: byte ")):
        tokenloss.evaluate(path)


def test_state_resumes_to_the_same_bits(interrupted, shards, score_json, monkeypatch):
    scored = []
    score = shard_run.score_shard
    monkeypatch.setattr(
        shard_run,
        "score_shard",
        lambda shard, work, options: (scored.append(Path(shard.path).name), score(shard, work, options))[1],
    )
    without, resumed = (
        score_json(shards.path / "part-*.npz"),
        score_json(shards.path / "part-*.npz", "--state", interrupted),
    )
    assert scored == ["part-a.npz", "part-b.npz", "part-c.npz", "part-c.npz"]
    again = score_json(shards.path / "part-*.npz", "--state", interrupted)
    assert len(scored) == 4
    for result in (resumed, again):
        for name in (*SUMMARY_FIELDS[:-1], "highest_loss_tokens", "shards"):
            assert result[name] == without[name]
    assert (resumed["n_bytes_read"], again["n_bytes_read"]) == (17 * 44, 0)  # what was read


@pytest.fixture
def sequences(shards):
    """Arguments by which the shards hold sequences, some of which go on in the next file, and some are of none."""
    ids = np.repeat([2, -1, 5, 7, -1, 5 * 10**9, -1, 5], [9, 3, 6, 8, 4, 12, 8, 10])
    np.save(shards.path / "ids.npy", ids)
    return shards.path / "part-*.npz", "--segment-ids", shards.path / "ids.npy"


SEQUENCE_FIELDS = (
    *SUMMARY_FIELDS[:-1], "n_sequences", "is_clustered", "n_without_sequence", "sequence_loss",
    "sequence_loss_stderr", "highest_loss_tokens", "highest_loss_sequences", "sequences", "shards",
)  # fmt: skip


@pytest.mark.parametrize("shift", [[], ["--shift"]])
def test_state_of_sequences_resumes_to_the_same_bits(shift, sequences, shards, command, score_json, monkeypatch):
    """Interrupted after the first file, whose last sequence goes on."""
    state = shards.path / "state"
    without = score_json(*sequences, *shift)
    assert any(row["file"] is None for row in without["sequences"])
    with monkeypatch.context() as patch:
        calls = iter([shard_run.score_shard, raising(KeyboardInterrupt)])
        patch.setattr(shard_run, "score_shard", lambda *args, **options: next(calls)(*args, **options))
        assert command("score", *sequences, *shift, "--state", state)[0] == 130
    (done,) = read_state(state)["done"]
    assert len(checkpoint.decoded(done["result"]).split.ids)
    for _ in range(2):
        actual = score_json(*sequences, *shift, "--state", state)
        assert {name: actual[name] for name in SEQUENCE_FIELDS} == {name: without[name] for name in SEQUENCE_FIELDS}
    source = open_scores(sequences[0], segment_ids=sequences[2])
    evaluation = tokenloss.evaluate(source, shift=bool(shift) or None, state=str(state))
    assert evaluation.meter == tokenloss.evaluate(source, shift=bool(shift)).meter


@pytest.mark.parametrize("line", [0, 1, 2])
@pytest.mark.parametrize("place", [0.0, 0.1, 0.5, 0.9])
def test_state_that_was_edited_or_damaged_is_refused(line, place, sequences, shards, command):
    state = shards.path / "state"
    assert command("score", *sequences, "--state", state)[0] == 0
    lines = state.read_bytes().splitlines(keepends=True)
    at = int(place * (len(lines[line]) - 1))
    lines[line] = lines[line][:at] + bytes([lines[line][at] ^ 1]) + lines[line][at + 1 :]
    state.write_bytes(b"".join(lines))
    message = f"line {line + 1}: is damaged; it must be as it was written" if line else "is not a state of tokenloss"
    assert_refused(command("score", *sequences, "--state", state), f"{state}: {message}")
    assert state.read_bytes() == b"".join(lines)


def test_state_of_other_sequences_is_refused(sequences, shards, command):
    state = shards.path / "state"
    assert command("score", *sequences, "--state", state)[0] == 0
    ids = np.load(shards.path / "ids.npy")
    np.save(shards.path / "other.npy", np.where(ids == 2, 3, ids))
    for argv in (sequences[:1], (*sequences[:2], shards.path / "other.npy")):
        refused = command("score", *argv, "--state", state)
        assert_refused(refused, f"{state}: contains the result of {shards.path / 'part-a.npz'}", "changed")
    kept = read_state(state)
    del kept["options"]["state_format"]
    write_state(state, kept)
    refused = command("score", *sequences, "--state", state)
    assert_refused(refused, f"{state}: was written with state_format None; it must be another file")


def test_state_of_infinite_losses(score_json, npz, tmp_path):
    logits = LOGITS.copy()
    logits[0, 0], logits[2, 1] = -np.inf, np.nan
    path = npz(logits=logits, targets=TARGETS)
    first, second = (score_json(path, "--state", tmp_path / "state") for _ in range(2))
    assert first["highest_loss_tokens"] == second["highest_loss_tokens"]
    assert first["loss"] is second["loss"] is None


def test_a_state_of_more_highest_losses_fits(interrupted, shards, score_json):
    for top in 1, 5, 0:  # the first of which scores the last file
        result = score_json(shards.path / "part-*.npz", "--state", interrupted, "--top", top)
        without = score_json(shards.path / "part-*.npz", "--top", top)
        for name in ("highest_loss_tokens", "highest_loss_sequences", "loss"):
            assert result[name] == without[name]


def test_state_of_other_options_or_files_is_refused(interrupted, shards, command):
    before = interrupted.read_bytes()
    pattern = shards.path / "part-*.npz"
    for options, words in [
        (["--kind", "logits"], ["was written with kind None; it must be another file, with 'logits'"]),
        (["--top", "9"], ["was written with top 5"]),
        (["--shift"], ["was written with shift None"]),
        (["--targets", shards.path / "all.npy"], ["part-a.npz; it must be another file", "changed"]),
    ]:
        assert_refused(command("score", pattern, "--state", interrupted, *options), f"{interrupted}: ", *words)
    part = shards.path / "part-b.npz"
    refused = command("score", part, "--state", interrupted)
    assert_refused(refused, f"{interrupted}: contains the result of {shards.path / 'part-a.npz'}", "does not score it")
    os.utime(part, ns=(1, 1))
    refused = command("score", pattern, "--state", interrupted)
    assert_refused(refused, f"{interrupted}: contains the result of {part}", "changed")
    assert interrupted.read_bytes() == before


def test_state_reads_little_of_a_large_file(tmp_path, monkeypatch):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # without blocks
    read, piece = [], checkpoint._pieces
    monkeypatch.setattr(checkpoint, "_pieces", lambda *args: (read.append(len(part)) or part for part in piece(*args)))
    result = checkpoint._file_fingerprint(str(path))
    assert sum(read) <= 1 << 17
    with path.open("r+b") as file:  # the last byte
        file.seek(-1, os.SEEK_END)
        file.write(b"1")
    os.utime(path, (0, 0))
    assert checkpoint._file_fingerprint(str(path)) != result


@pytest.mark.parametrize("cut", [1, 2, 500, -1])
def test_state_whose_last_line_was_cut_off(cut, interrupted, shards, score_json):
    """As a run that is killed while it writes leaves it; the other lines are as they were."""
    argv = shards.path / "part-*.npz", "--state"
    first, second, third = interrupted.read_bytes().splitlines(keepends=True)
    score_json(*argv, interrupted)
    whole = interrupted.read_bytes()
    interrupted.write_bytes(first + second + (third + b"{" if cut == -1 else third[:-cut]))
    resumed = score_json(*argv, interrupted)
    assert interrupted.read_bytes() == whole
    assert resumed["loss"] == score_json(argv[0])["loss"]


def test_state_is_appended_to(shards, command, monkeypatch):
    """What was written stays, so that a kill can only lose the line that is written."""
    state = shards.path / "state"
    seen, score = [], shard_run.score_shard
    monkeypatch.setattr(
        shard_run,
        "score_shard",
        lambda *args, **options: (seen.append(state.read_bytes()), score(*args, **options))[1],
    )
    assert command("score", shards.path / "part-*.npz", "--state", state)[0] == 0
    seen.append(state.read_bytes())
    assert [content.count(b"\n") for content in seen] == [1, 2, 3, 4]
    assert all(after.startswith(before) for before, after in itertools.pairwise(seen))


def test_state_that_names_a_shard_twice_is_refused(interrupted, shards, command):
    state = read_state(interrupted)
    state["done"].append(state["done"][0])
    write_state(interrupted, state)
    before = interrupted.read_bytes()
    refused = command("score", shards.path / "part-*.npz", "--state", interrupted)
    assert_refused(refused, f"{interrupted}: contains two results of {shards.path / 'part-a.npz'}")
    assert interrupted.read_bytes() == before


def test_state_that_two_runs_write_is_refused(shards, command, monkeypatch):
    state, score = shards.path / "state", shard_run.score_shard

    def meanwhile(*args, **options):
        monkeypatch.setattr(shard_run, "score_shard", score)
        assert command("score", shards.path / "part-*.npz", "--state", state)[0] == 0
        return score(*args, **options)

    monkeypatch.setattr(shard_run, "score_shard", meanwhile)
    refused = command("score", shards.path / "part-*.npz", "--state", state)
    assert_refused(refused, f"{state}: was changed during the run; it must be written by one run at a time")
    assert len(read_state(state)["done"]) == 3
    assert command("score", shards.path / "part-*.npz", "--state", state)[0] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_state_keeps_its_mode(interrupted, shards, command):
    interrupted.chmod(0o600)
    assert command("score", shards.path / "part-*.npz", "--state", interrupted)[0] == 0
    assert stat.S_IMODE(interrupted.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("option", "before", "after", "words"),
    [
        ("ignore_index", -100, 3, "was written with ignore_index -100; it must be another file, with 3"),
        ("shift", None, True, "was written with shift None; it must be another file, with True"),
        ("shift", False, True, "was written with shift False; it must be another file, with True"),
        ("kind", None, "logits", "was written with kind None; it must be another file, with 'logits'"),
        ("array", None, "logits", "was written with array None; it must be another file, with 'logits'"),
        ("targets_array", None, "targets", "was written with targets_array None; it must be another file, with 'targ"),
        ("tokenizer", "a.tiktoken", "b.tiktoken", "was written with tokenizer '"),
    ],
)
def test_state_of_any_other_option_of_the_opener_is_refused(option, before, after, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, ranks in ("a", "QQ== 0\nQg== 1\nQw== 2\n"), ("b", "QQ== 0\nQg== 1\nQ0Q= 2\n"):
        Path(f"{name}.tiktoken").write_text(ranks, encoding="ascii")
    np.savez("scores.npz", logits=3 * np.eye(3)[[0, 1, 2, 2]], targets=[0, 1, 2, 2])
    first = tokenloss.evaluate(open_scores("scores.npz", **{option: before}), state="state")
    assert tokenloss.evaluate(open_scores("scores.npz", **{option: before}), state="state") == first
    content = Path("state").read_bytes()
    with fails(ValueError, f"state: {words}"):
        tokenloss.evaluate(open_scores("scores.npz", **{option: after}), state="state")
    assert Path("state").read_bytes() == content


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"window": 4, "stride": 2}, {"window": 4, "stride": 1}, "was written with stride 2; it must be another file"),
        ({"shift": True}, {"window": 4, "stride": 2}, "was written with window 0; it must be another file, with 4"),
    ],
)
def test_state_of_other_windows_is_refused(before, after, words, tmp_path):
    np.savez(tmp_path / "scores.npz", logits=np.eye(3)[np.zeros((2, 4), int)] * 3, targets=np.zeros((2, 4), int))
    tokenloss.evaluate(open_scores(tmp_path / "scores.npz", **before), state=tmp_path / "state")
    with fails(ValueError, f"state: {words}"):
        tokenloss.evaluate(open_scores(tmp_path / "scores.npz", **after), state=tmp_path / "state")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({}, {"definitions": "llama.cpp"}, "was written with definitions 'exact'; it must be another file, with 'l"),
        ({}, {"divergences": ["js"]}, "was written with divergences []; it must be another file, with ['js']"),
        ({}, {"classes": 2}, "was written with classes None; it must be another file, with 2"),
        ({"temperature": 1.0}, {"temperature": 2.0}, "was written with temperature 1.0; it must be another"),
        ({}, {"classes": "all"}, "was written with classes None; it must be another file, with 'all'"),
    ],
)
def test_state_of_another_option_of_a_comparison_is_refused(before, after, words, tmp_path):
    paths = [tmp_path / f"{name}.npz" for name in "ab"]
    for scale, path in enumerate(paths, 1):
        np.savez(path, logits=(1 + scale) * np.eye(3), targets=[0, 1, 1])
    first = tokenloss.compare_files(*paths, **before, state=tmp_path / "state")
    assert tokenloss.compare_files(*paths, **before, state=tmp_path / "state") == first
    with fails(ValueError, f"state: {words}"):
        tokenloss.compare_files(*paths, **after, state=tmp_path / "state")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n",
        "{}\n",
        "[]",
        "[" * 100_000,
        '{"options": {}}\n',
        '{"options": {},\n"done": []}\n',
        "{,\n",
        "\xff",
        "loss",
    ],
)
def test_state_that_is_another_file_is_refused(content, command, tmp_path):
    state = tmp_path / "state"
    state.write_text(content, encoding="latin-1")
    assert_refused(command("score", SAMPLE, "--state", state), f"{state}: is not a state of tokenloss score")
    assert state.read_text(encoding="latin-1") == content


def test_state_that_cannot_be_written(command, tmp_path):
    state = tmp_path / "none" / "state"
    assert_refused(command("score", SAMPLE, "--state", state), f"{state}: cannot be written: No such file")


def test_scheduler_whose_workers_are_in_another_directory(shards, score_json, compare_json, tmp_path, monkeypatch):
    """Paths and those of the head are relative to the caller's."""
    pytest.importorskip("dask")
    (tmp_path / "elsewhere").mkdir()

    def of_workers(function, given, _):
        with contextlib.chdir(tmp_path / "elsewhere"):
            yield from enumerate(map(function, given))

    monkeypatch.setattr("tokenloss._evaluation.cluster.map_shards", of_workers)
    monkeypatch.chdir(shards.path)
    np.save("hidden.npy", np.sign(shards.logits[:, :7]))
    np.save("head.npy", shards.logits[:11, :7])
    of_hidden, there = ("hidden.npy", "--targets", "all.npy", "--lm-head", "head.npy"), ("--scheduler", "x")
    assert score_json(*of_hidden, *there)["loss"] == score_json(*of_hidden)["loss"]
    np.save("ids.npy", np.arange(60) // 5)
    of_parts = "logits-*.npy", "--targets", "all.npy", "--segment-ids", "ids.npy"
    assert score_json(*of_parts, *there)["stderr"] == score_json(*of_parts)["stderr"]
    of_pair = "whole.npz", "hidden.npy", "--lm-head", "head.npy", "--base-kind", "logits"
    assert compare_json(*of_pair, *there)["mean_kl"] == compare_json(*of_pair)["mean_kl"]


def test_scheduler(shards, sequences, score_json, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
    ) as cluster:
        for number, argv in enumerate([sequences[:1], sequences, [*sequences, "--shift"]]):
            options = "--scheduler", cluster.scheduler_address, "--state", tmp_path / f"state-{number}"
            here, there = score_json(*argv), score_json(*argv, *options)
            for name in ("n_bytes_read", *SEQUENCE_FIELDS):
                assert there[name] == here[name]
