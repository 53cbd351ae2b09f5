"""tokenloss compare over shards: directories, patterns, --shift, sequences, --per-token, --state and --scheduler."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import assert_refused, process, raising, read_state
from html_pages import Reader

import tokenloss
from tokenloss._evaluation import checkpoint, compare
from tokenloss._output import terminal

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")

PARTS = np.split(np.arange(60), [13, 40])
# a comparison of a base and so many candidates, whose 70 shards each hold the same targets, under a limit of open files
MANY_SHARDS = """
import pathlib, resource, sys
import numpy as np
from tokenloss import compare_files

folder, n = pathlib.Path(sys.argv[1]), 3
rng = np.random.default_rng(0)
logits, targets = rng.normal(size=(n + 1, 70, 2, 5)), rng.integers(5, size=(70, 2))
for model in range(n + 1):
    (folder / str(model)).mkdir()
    for shard in range(70):
        np.savez(folder / str(model) / f"{shard}.npz", logits=logits[model, shard], targets=targets[shard])
resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))
found = compare_files(folder / "0", {str(model): folder / str(model) for model in range(1, n + 1)})
print([one.count for one in found.values()])
"""
# what may differ between files and shards of them
OF_FILES = ("base", "files", "file", "name", "sequences")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.slow
def test_shards_of_many_models_with_targets_stay_below_the_limit_of_open_files(tmp_path):
    done = process(tmp_path, program=("-c", MANY_SHARDS))
    assert (done.stderr, done.stdout) == ("", "[140, 140, 140]\n")


@pytest.fixture
def sides(tmp_path):
    """Logits of a base and two candidates: whole, and in shards of three directories; the base holds the targets."""
    rng = np.random.default_rng(19)
    base, targets = rng.normal(size=(60, 11), scale=3).astype(np.float32), rng.integers(11, size=60)
    targets[::7] = -100
    tokens = np.array([" a", "b", "7", ",", "\n", "word"])[rng.integers(6, size=60)]
    models = {"base": base}
    for name, scale in ("q8", 0.1), ("q4", 0.5):
        models[name] = base + rng.normal(size=base.shape, scale=scale).astype(np.float32)
    for name, logits in models.items():
        (tmp_path / name).mkdir()
        for number, rows in [("whole", np.arange(60)), *enumerate(PARTS, 9)]:
            path = tmp_path / f"{name}.npz" if number == "whole" else tmp_path / name / f"part-{number}.npz"
            others = {"targets": targets[rows], "tokens": tokens[rows]} if name == "base" else {}
            np.savez(path, logits=logits[rows], **others)
    np.save(tmp_path / "targets.npy", targets)
    return SimpleNamespace(path=tmp_path, targets=targets, tokens=tokens, **models)


def of_candidates(result):
    """The figures of each candidate and those of the base, but for those that name files."""
    return {
        Path(figures["name"]).name.removesuffix(".npz"): {
            name: value for name, value in (result | figures).items() if name not in (*OF_FILES, "candidates")
        }
        for figures in result["candidates"]
    }


WHOLE, SHARDS = ("base.npz", "q8.npz", "q4.npz"), ("base", "q8", "q4")


def compared(compare_json, sides, names, *options):
    """The figures of the base and both candidates."""
    base, *others = names
    others = (f"{name.removesuffix('.npz')}={sides.path / name}" for name in others)  # named alike in tables of all
    return compare_json(sides.path / base, *others, *options)


@pytest.mark.parametrize("shift", [[], ["--shift"], ["--no-shift"]])
@pytest.mark.parametrize("definitions", ["exact", "llama.cpp"])
def test_shards_are_the_one_file_to_the_bit(definitions, shift, sides, compare_json):
    options = [*shift, "--definitions", definitions]
    whole, shards = (compared(compare_json, sides, names, *options) for names in (WHOLE, SHARDS))
    assert of_candidates(whole) == of_candidates(shards)
    pattern = compare_json(*(sides.path / name / "part-*.npz" for name in SHARDS), *options)
    assert [figures["mean_kl"] for figures in pattern["candidates"]] == [
        figures["mean_kl"] for figures in whole["candidates"]
    ]
    if definitions == "exact":
        targets, rows = (sides.targets[1:], slice(0, 59)) if shift == ["--shift"] else (sides.targets, slice(0, 60))
        expected = tokenloss.compare(sides.base[rows], sides.q4[rows], targets)
        assert of_candidates(shards)["q4"]["mean_kl"] == expected.mean_kl
        assert of_candidates(shards)["q4"]["perplexity"] == expected.perplexity
        assert shards["n_without_next"] == (shift == ["--shift"])


def test_tokens_types_of_shards(sides, compare_json):
    """The type of a word's start depends on the token before it, perhaps in the shard before."""
    for options in [], ["--shift"]:
        whole, shards = (compared(compare_json, sides, names, *options) for names in (WHOLE, SHARDS))
        rows = whole["candidates"][0]["by_token_type"]
        assert rows == shards["candidates"][0]["by_token_type"]
        words = sides.tokens[1:] if options else sides.tokens
        kept = (sides.targets[1:] if options else sides.targets) != -100
        result = {row["group"]: row["count"] for row in rows}
        assert result["number"] == np.count_nonzero((words == "7") & kept)
        assert result["white space"] == np.count_nonzero((words == "\n") & kept)
        after = np.append(not options, sides.tokens[:-1] == "\n") if not options else sides.tokens[:-1] == "\n"
        letters = np.isin(words, ["b", "word"])
        assert result["word"] == np.count_nonzero(((words == " a") | (letters & after)) & kept)
        assert result["word part"] == np.count_nonzero(letters & ~after & kept)
        assert sum(result.values()) == np.count_nonzero(kept)


@pytest.mark.parametrize("shift", [[], ["--shift"]])
def test_sequences_that_go_on_in_the_next_shard(shift, sides, compare_json):
    ids = np.repeat([2, -1, 5, 7, -1, 5 * 10**9, -1, 5], [9, 3, 6, 8, 4, 12, 8, 10])
    np.save(sides.path / "ids.npy", ids)
    options = ["--segment-ids", sides.path / "ids.npy", *shift]
    whole, shards = (compared(compare_json, sides, names, *options) for names in (WHOLE, SHARDS))
    assert of_candidates(whole) == of_candidates(shards)
    assert whole["is_clustered"]
    for one, other in zip(whole["candidates"], shards["candidates"], strict=True):
        assert one["sequences"] == other["sequences"]
        assert {row["sequence"] for row in one["sequences"]} == {2, 5, 7, 5 * 10**9}


@pytest.mark.parametrize("how", ["rows", "offsets", "ids"])
def test_sequences_whose_numbers_are_those_of_their_shard(how, tmp_path, compare_json):
    rng = np.random.default_rng(5)
    base, targets = rng.normal(size=(6, 5, 7)), rng.integers(7, size=(6, 5))
    other = base + rng.normal(size=base.shape)
    for name, rows in ("whole", slice(0, 6)), ("part-0", slice(0, 2)), ("part-1", slice(2, 6)):
        n = len(targets[rows])
        parts = {
            "rows": {}, "offsets": {"cu_seqlens": np.arange(0, 5 * n + 1, 5)},
            "ids": {"segment_ids": np.repeat(np.arange(n), 5)},
        }[how]  # fmt: skip
        flat = (n, 5) if how == "rows" else (5 * n,)
        np.savez(tmp_path / f"base-{name}.npz", logits=base[rows].reshape(*flat, 7),
                 targets=targets[rows].reshape(flat), **parts)  # fmt: skip
        np.save(tmp_path / f"other-{name}.npy", other[rows].reshape(*flat, 7))
    whole = compare_json(tmp_path / "base-whole.npz", tmp_path / "other-whole.npy")
    shards = compare_json(tmp_path / "base-part-*.npz", tmp_path / "other-part-*.npy")
    places = [(row.pop("file"), row.pop("sequence")) for row in shards["sequences"]]
    files = [str(tmp_path / f"base-part-{i}.npz") for i in (0, 1)]
    assert places == [*((files[0], i) for i in range(2)), *((files[1], i) for i in range(4))]
    assert [row.pop("sequence") for row in whole["sequences"]] == [*range(6)]
    for name in ("base", "files", "file", "name"):
        del whole[name], shards[name]
    assert whole == shards
    paths = [
        [tmp_path / f"{side}-part-{i}.{suffix}" for i in (0, 1)] for side, suffix in (("base", "npz"), ("other", "npy"))
    ]
    result = tokenloss.compare_files(paths[0], {"q": paths[1]})["q"]
    assert result.sequences["sequence"].tolist() == [*range(6)]
    assert result.mean_kl.stderr == whole["mean_kl_stderr"]


@pytest.mark.parametrize("shift", [[], ["--shift"]])
def test_per_token_in_compare(shift, sides, compare_json):
    table = sides.path / "tokens.npy"
    result = compared(compare_json, sides, SHARDS, "--per-token", table, *shift)
    rows = np.load(table)
    n = 59 if shift else 60
    assert len(rows) == 2 * n
    for name in ("q8", "q4"):
        own = rows[rows["name"] == name]
        targets = sides.targets[1:] if shift else sides.targets
        expected = tokenloss.compare(sides.base[:n], getattr(sides, name)[:n], targets)
        for column in ("nll", "base_nll", "kl", "delta_p", "is_same_top", "kept", "base_top_p"):
            np.testing.assert_array_equal(own[column], getattr(expected, column))
        np.testing.assert_array_equal(own["target"], targets)
        assert own["file"].tolist() == np.repeat([0, 1, 2], [13, 27, 20])[:n].tolist()
        assert own["row"].tolist() == np.concatenate([np.arange(len(part)) for part in PARTS])[:n].tolist()
        assert of_candidates(result)[name]["count"] == np.count_nonzero(own["kept"])


@pytest.mark.slow
def test_html_and_plot_of_shards(sides, command):
    pytest.importorskip("matplotlib")
    argv = [sides.path / name for name in SHARDS]
    outputs = "--html", sides.path / "page.html", "--plot", sides.path / "kl.png"
    assert command("compare", *argv, "--shift", *outputs)[0] == 0
    assert Reader((sides.path / "page.html").read_text("utf-8")).paragraphs == 3  # each shard's text is its own
    assert (sides.path / "kl.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "output",
    ["--per-token=t.csv", "--html=page.html", "--plot=kl.png", "--state=state"]
    + [f"--format={form}" for form in terminal.FORMATS],
)
def test_no_rows_in_compare(output, command, tmp_path, monkeypatch):
    if "--plot" in output:
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    np.savez("base.npz", logits=np.zeros((0, 5)), targets=np.zeros(0, int))
    for name in "ab":
        np.save(f"{name}.npy", np.zeros((0, 5)))
    for argv in ("a.npy",), ("a=a.npy", "b=b.npy"):
        assert command("compare", "base.npz", *argv, output)[0] == 0
        (tmp_path / "state").unlink(missing_ok=True)


def interrupted(sides, command, monkeypatch, *options):
    """Compare shards until Ctrl-C in the third; the path of the state."""
    state = sides.path / "state.json"
    with monkeypatch.context() as patch:
        calls = iter([compare.compare_shard, compare.compare_shard, raising(KeyboardInterrupt)])
        patch.setattr(compare, "compare_shard", lambda *given, **names: next(calls)(*given, **names))
        argv = [sides.path / name for name in SHARDS]
        assert command("compare", *argv, *options, "--state", state)[0] == 130
    return state


@pytest.mark.parametrize("options", [[], ["--shift"], ["--classes", "11"], ["--segment-ids", "ids.npy"]])
def test_state_of_compare_resumes_to_the_same_bits(options, sides, command, compare_json, monkeypatch):
    ids = sides.path / "ids.npy"
    np.save(ids, np.repeat([0, 1, 2, -1], 15))
    options = [ids if option == "ids.npy" else option for option in options]
    state = interrupted(sides, command, monkeypatch, *options)
    assert len(read_state(state)["done"]) == 2
    without = compared(compare_json, sides, SHARDS, *options)
    done = []
    run = compare.compare_shard
    monkeypatch.setattr(
        compare, "compare_shard", lambda *given, **names: (done.append(given[0].path), run(*given, **names))[1]
    )
    for _ in range(2):
        assert compared(compare_json, sides, SHARDS, *options, "--state", state) == without
    assert done == [str(sides.path / "base" / "part-11.npz")]


def test_state_of_compare_that_is_refused(sides, command, monkeypatch, compare_json):
    state = interrupted(sides, command, monkeypatch)
    before = state.read_bytes()
    base, q8, q4 = (sides.path / name for name in SHARDS)
    for argv, words in [
        (
            (base, q8, q4, "--kind", "logits"),
            "was written with candidate 0: kind None; it must be another file, with 'logits'",
        ),
        ((base, q8, q4, "--definitions", "llama.cpp"), "was written with definitions 'exact'"),
        ((base, q8, q4, "--classes", "11"), "was written with classes None"),
        ((base, q8), "contains the result of"),
        ((base, q4, q8), "since the candidates or a file changed"),
        ((base / "part-9.npz", q8 / "part-9.npz", q4 / "part-9.npz"), "part-10.npz; it must be another file"),
    ]:
        assert_refused(command("compare", *argv, "--state", state), f"{state}: {words}" if words[0] in "wh" else words)
    refused = command("score", base, "--state", state)
    assert_refused(refused, f"{state}: was written with command 'compare'; it must be another file, with 'score'")
    os.utime(q8 / "part-9.npz", ns=(1, 1))
    assert_refused(command("compare", base, q8, q4, "--state", state), f"{base / 'part-9.npz'}; it must be another")
    assert state.read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "option", "before", "after"),
    [
        ("base.npz arrays.npz", "array", "x", "y"),
        ("base.npz log_probs.npy --base-kind logits", "kind", "logits", "log_probs"),
        ("states.npz states.npz --base-lm-head head.npy --lm-head other.npy --base-hidden x", "hidden", "x", "y"),
        ("base.npz states.npz --base-kind logits --hidden x", "lm-head", "head.npy", "other.npy"),
    ],
)
def test_state_of_compare_of_another_array_kind_hidden_or_lm_head(
    argv, option, before, after, sides, command, monkeypatch
):
    """Options of a candidate, which its file does not tell."""
    monkeypatch.chdir(sides.path)
    states = np.sign(sides.q8[:, :7])
    np.savez("arrays.npz", x=sides.q8, y=sides.q4)
    np.savez("states.npz", x=states, y=-states, targets=sides.targets)
    np.save("log_probs.npy", tokenloss.log_softmax(sides.q8))
    for name in ("head.npy", "other.npy"):
        np.save(name, sides.q4[:11, :7])
    argv = ("compare", *argv.split(), "--state", "state", f"--{option}")
    for _ in range(2):
        assert command(*argv, before)[0] == 0
    words = (
        f"candidate 0: {'array' if option == 'hidden' else option} {before!r}; it must be another file, with {after!r}"
    )
    if option == "lm-head":  # another file, which may have another name
        words, before = "base.npz; it must be another file, since the candidates or a file changed", ""
    assert_refused(
        command(*argv, after), f"state: {'was written with' if before else 'contains the result of'} ", words
    )


def test_state_of_compare_holds_the_columns_of_the_base_once(sides, command):
    state = sides.path / "state"
    assert command("compare", *[sides.path / name for name in SHARDS], "--state", state)[0] == 0
    for entry in read_state(state)["done"]:
        result = checkpoint.decoded(entry["result"])
        assert len(result.others) == len(SHARDS) - 1
        assert not any(result.base.keys() & own.keys() for own in result.others)


def test_outputs_of_every_token_with_state(sides, command):
    argv = [sides.path / name for name in SHARDS]
    for option, value, words in (
        ("--state", "state", "keeps only sums"),
        ("--scheduler", "tcp://x", "returns only sums"),
    ):
        for output in ("--per-token", "t.npy"), ("--html", "page.html"):
            refused = command("compare", *argv, option, value, output[0], sides.path / output[1])
            assert_refused(refused, f"{output[0]} needs every token, and {option} {words}")
    assert not (sides.path / "t.npy").exists()


def test_scheduler_of_compare(sides, compare_json, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
    ) as cluster:
        for number, options in enumerate([[], ["--shift"]]):
            there = "--scheduler", cluster.scheduler_address, "--state", tmp_path / f"state-{number}"
            result = compared(compare_json, sides, SHARDS, *options, *there)
            assert result == compared(compare_json, sides, SHARDS, *options)


def test_directories_in_score(sides, score_json, command):
    whole, shards = score_json(sides.path / "base.npz"), score_json(sides.path / "base")
    assert shards["loss"] == whole["loss"]
    assert shards["files"] == [str(sides.path / "base" / f"part-{i}.npz") for i in (9, 10, 11)]
    (sides.path / "base" / "._part-9.npz").write_bytes(b"notes")
    (sides.path / "base" / "README.md").write_text("text")
    (sides.path / "base" / "nested").mkdir()
    assert score_json(sides.path / "base")["loss"] == whole["loss"]
    (sides.path / "base" / "part-12.npz").write_bytes(b"PK\3\4 damaged")
    assert_refused(command("score", sides.path / "base"), "part-12.npz: cannot be read")


# -- sides that do not fit ---------------------------------------------------------------------------------------------


def test_sides_of_other_numbers_of_shards(sides, command):
    (sides.path / "q4" / "part-11.npz").unlink()
    base, q8, q4 = (sides.path / name for name in SHARDS)
    words = f"{q4 / 'part-10.npz'}: is shard 2 of 2; it must be one of 3, as {base / 'part-11.npz'} is"
    assert_refused(command("compare", base, q8, q4), words)


def test_shards_of_other_numbers_in_their_names(sides, command, compare_json):
    base, q8 = sides.path / "base", sides.path / "q8"
    for number in (11, 10, 9):
        (q8 / f"part-{number}.npz").rename(q8 / f"part-{number + 1}.npz")
    words = f"{q8 / 'part-10.npz'}: would be compared with {base / 'part-9.npz'}"
    assert_refused(command("compare", base, q8), words, "have the same number in its name")
    for number in (10, 11, 12):  # other numbers in the names do not tell shards apart
        (q8 / f"part-{number}.npz").rename(q8 / f"q8_0-part-{number - 1}.npz")
    assert compare_json(base, q8)["count"] == np.count_nonzero(sides.targets != -100)


def test_shards_of_other_rows(sides, command):
    base, q8 = sides.path / "base", sides.path / "q8"
    np.savez(q8 / "part-10.npz", logits=sides.q8[:5])
    words = (
        f"{q8 / 'part-10.npz'}: contains 5 rows of 11 classes; it must contain 27 rows of 11, as {base / 'part-10.npz'}"
    )
    assert_refused(command("compare", base, q8), words)


def test_shards_of_other_targets(sides, command):
    base, q8 = sides.path / "base", sides.path / "q8"
    np.savez(q8 / "part-9.npz", logits=sides.q8[:13], targets=sides.targets[:13] + 1)
    refused = command("compare", base, q8)
    assert_refused(refused, f"{q8 / 'part-9.npz'}: its targets differ from those in {base / 'part-9.npz'}")


def test_numbers_of_sequences_that_cannot_be_counted_on(sides, command, compare_json):
    base, q8 = sides.path / "base", sides.path / "q8"
    ids = [np.full(len(rows), 2**62) for rows in PARTS]
    for number, rows in enumerate(ids):
        np.save(sides.path / f"ids-{number}.npy", rows)
    refused = command("compare", base, q8, "--segment-ids", sides.path / "ids-*.npy")
    assert_refused(refused, f"{sides.path / 'ids-1.npy'}: has sequence numbers that are too high")
    np.save(sides.path / "ids.npy", np.concatenate(ids))  # numbers of all shards
    assert compare_json(base, q8, "--segment-ids", sides.path / "ids.npy")["sequences"][0]["sequence"] == 2**62


@pytest.mark.skipif(sys.platform == "win32", reason="making links on Windows takes a privilege")
def test_shard_given_twice(sides, command):
    base, q8 = sides.path / "base", sides.path / "q8"
    (q8 / "part-10.npz").unlink()
    (q8 / "part-10.npz").symlink_to(q8 / "part-9.npz")
    assert_refused(command("compare", base, q8), "part-10.npz: is given twice")


def test_directory_without_scores(sides, command):
    (sides.path / "none").mkdir()
    for argv in (("score", sides.path / "none"), ("compare", sides.path / "base", sides.path / "none")):
        assert_refused(command(*argv), f"{sides.path / 'none'}: is empty")


def test_targets_of_shards_in_compare(sides, compare_json, command):
    q8, q4, targets = sides.path / "q8", sides.path / "q4", sides.path / "targets.npy"
    one = compare_json(q8, q4, "--targets", targets)
    for number, rows in enumerate(PARTS):
        np.save(sides.path / f"targets-{number}.npy", sides.targets[rows])
    assert compare_json(q8, q4, "--targets", sides.path / "targets-*.npy")["mean_kl"] == one["mean_kl"]
    expected = tokenloss.compare(sides.q8, sides.q4, sides.targets)
    assert (one["mean_kl"], one["perplexity"]) == (expected.mean_kl, expected.perplexity)
    np.save(targets, sides.targets[:-1])
    assert_refused(command("compare", q8, q4, "--targets", targets), "has shape (59,); it must contain 60 class ids")
