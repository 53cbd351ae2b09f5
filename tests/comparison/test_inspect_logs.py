"""Logs of Inspect: what compare_samples reads of them, against Inspect's own reader and results; damage; folders."""

import json
import shutil
import sys
import zipfile

import numpy as np
import pytest
from commands import assert_refused
from damage import bounded
from eval_harness import compare_pair, named
from places import DATA

from tokenloss import compare_samples
from tokenloss.formats import inspect_logs, open_samples, samples

pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")

pytestmark = [
    pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process"),
    pytest.mark.filterwarnings("ignore:.*identical to base"),
]
LOGS = DATA / "inspect"
NAMES = "2026-11-30T21-57-00-00-00_even_", "2026-12-01T08-00-00+01-00_even_"
ID = "h7wrvjHzpvKfJFrazRyduu"


def members(name):
    """The files of a recorded log, by name."""
    path = LOGS / f"{name}.eval"
    with zipfile.ZipFile(path) as archive:
        return {one: inspect_logs._member(archive, str(path), one)[0] for one in archive.namelist()
                if one.startswith("samples/") or one == "header.json"}  # fmt: skip


def save(path, files, form="deflate"):
    """Save a log: an archive, or JSON."""
    if form == "json":
        listed = [one for name, one in files.items() if name.startswith("samples/")]
        path = path.with_suffix(".json")
        path.write_text(json.dumps(files["header.json"] | {"samples": listed}, indent=1))
        return path
    with zipfile.ZipFile(path, "w", {"deflate": zipfile.ZIP_DEFLATED, "stored": 0, "lzma": 14}[form]) as archive:
        for name, value in files.items():
            archive.writestr(name, value if isinstance(value, bytes) else json.dumps(value))
    return path


@pytest.fixture
def pair(tmp_path):
    """A function that saves two logs, of which the second may be changed, and gives their paths."""

    def make(change=lambda files: None, form="deflate"):
        both = members("base"), members("other")
        change(both[1])
        return [save(tmp_path / f"{i}.eval", one, form) for i, one in enumerate(both)]

    return make


def test_means_are_those_that_inspect_wrote():
    result = compare_pair(LOGS / "base.eval", LOGS / "other.eval")
    assert (result.count, result.n_documents, result.notes, result.left_out) == (16, 8, [], {})
    for side in "base", "other":
        scores = members(side)["header.json"]["results"]["scores"]
        wrote = {
            one["name"] if one["name"] == one["scorer"] else f"{one['scorer']}.{one['name']}": one["metrics"]
            for one in scores
        }
        means = {name: (own.get("accuracy") or own["mean"])["value"] for name, own in wrote.items()}
        assert {one.name: float(getattr(one, side)) for one in result.metrics} == pytest.approx(means, abs=1e-15)
        # Inspect's error is by sample, too, but of means of epochs with n - 1
        error = wrote["match"]["stderr"]["value"]
        assert getattr(named(result, "match"), side).stderr == pytest.approx(error, rel=1e-12)


def test_samples_are_those_of_inspects_reader():
    reader = pytest.importorskip("inspect_ai.log", reason="the oracle needs inspect-ai, which has many dependencies")
    to_float = pytest.importorskip("inspect_ai.scorer").value_to_float()
    for name in "base", "other":
        log = reader.read_eval_log(str(LOGS / f"{name}.eval"))
        expected = {
            (sample.id, sample.epoch): {
                key: to_float(value)
                for scorer, score in sample.scores.items()
                for key, value in (
                    {f"{scorer}.{part}": one for part, one in score.value.items()}
                    if isinstance(score.value, dict) else {scorer: score.value}
                ).items()
            }
            for sample in log.samples
        }  # fmt: skip
        result = [*samples.read_samples(str(LOGS / f"{name}.eval"))]
        epochs = [int(one.place.path.rpartition("_epoch_")[2].removesuffix(".json")) for one in result]
        read = {
            (one.doc_id, epoch): {key: cell[0] for key, cell in one.metrics.items()}
            for one, epoch in zip(result, epochs, strict=True)
        }
        assert read == expected
        assert inspect_logs.model_of(str(LOGS / f"{name}.eval")) == log.eval.model


@pytest.mark.parametrize("form", ["deflate", "stored", "json"])
def test_every_form_has_the_same_figures(form, pair):
    expected = compare_pair(LOGS / "base.eval", LOGS / "other.eval").to_dict()
    result = compare_pair(*pair(form=form)).to_dict()
    assert {name: one for name, one in result.items() if name not in ("base", "file")} == {
        name: one for name, one in expected.items() if name not in ("base", "file")
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [("C", 1), ("I", 0), ("P", 0.5), ("N", 0), ("yes", 1), ("False", 0), (True, 1), (0.25, 0.25), ("1.5", 1.5)],
)
def test_values_count_as_in_inspect(value, expected, pair):
    def change(files):
        for name, sample in files.items():
            if name.startswith("samples/"):
                sample["scores"] = {"own": {"value": value}}

    _, path = pair(change)
    (metric,) = compare_samples(path, {"x": shutil.copy(path, path.with_name("copy.eval"))})["x"].metrics
    assert (metric.name, float(metric.other)) == ("own", expected)


def test_lists_objects_and_names_of_the_harness(pair):
    def change(files):
        for name, sample in files.items():
            if name.startswith("samples/"):
                sample["scores"] = {
                    "a": {"value": [1, "C"]}, "b": {"value": {"x": "I", "y": 2}}, "perplexity": {"value": 7.5},
                    "words": {"value": "long"},
                }  # fmt: skip

    _, path = pair(change)
    result = compare_samples(path, {"x": shutil.copy(path, path.with_name("copy.eval"))})["x"]
    assert {one.name: float(one.base) for one in result.metrics} == {
        "a.0": 1, "a.1": 1, "b.x": 0, "b.y": 2, "perplexity score": 7.5,
    }  # fmt: skip
    assert [*result.left_out] == ["words"]


@pytest.mark.parametrize(
    "change",
    [{"error": {"message": "no answer"}, "scores": {}}, {"scores": None}, {"invalidation": {"author": "x"}},
     {"scores": {"match": {"value": float("nan")}}}],
    ids=["error", "no scores", "invalidated", "nan"],
)  # fmt: skip
def test_samples_without_scores_are_left_out_of_both_and_named(change, pair):
    def changed(files):
        files["samples/4_epoch_1.json"] |= change

    result = compare_pair(*pair(changed))
    assert (result.count, result.n_documents) == (15, 8)
    assert result.notes == ["1 sample without scores in one of the files left out: 4"]
    values = [members(name) for name in ("base", "other")]
    for side, files in zip(("base", "other"), values, strict=True):
        own = [one["scores"]["match"]["value"] == "C" for name, one in files.items()
               if name.startswith("samples/") and name != "samples/4_epoch_1.json"]  # fmt: skip
        assert float(getattr(named(result, "match"), side)) == pytest.approx(np.mean(own))


def test_notes_of_runs_that_stopped_and_of_other_reducers(pair):
    def change(files):
        files["header.json"]["status"] = "cancelled"
        files["header.json"]["eval"]["config"]["epochs_reducer"] = ["mode"]

    base, other = pair(change)
    assert compare_pair(base, other).notes == [
        f"{other} is of a run with the status 'cancelled', so samples may be missing",
        f"{other} reduces epochs by mode; here each epoch counts alike",
    ]
    files = members("other")
    files["_journal/start.json"] = {name: files["header.json"][name] for name in ("version", "eval", "plan")}
    del files["header.json"]  # of a run that goes on
    assert "'started'" in compare_pair(base, save(other, files)).notes[0]


def test_clusters_by_metadata(pair):
    paths = pair()
    for field, n in ("topic", 2), ("metadata.meta.n", 3), ("meta.n", 3), ("input", 8):
        assert compare_pair(*paths, cluster=field).n_clusters == n
    with pytest.raises(ValueError, match=r"0\.eval: samples/1_epoch_1\.json: doc has no 'missing'; it must have it"):
        compare_pair(*paths, cluster="missing")


@pytest.mark.parametrize("form", ["deflate", "json"])
def test_other_questions_are_refused(form, pair):
    def other(key, value):
        return lambda files: files["samples/2_epoch_2.json"].update({key: value})

    for key, value, words in (("input", "Else?", "doc_id 2 differs from the document "), ("target", "C", "doc_id 2 has "
                              "a different target from ")):  # fmt: skip
        with pytest.raises(ValueError, match=words) as error:
            compare_pair(*pair(other(key, value), form))
        assert "line" not in str(error.value)
        assert {"deflate": "1.eval: samples/2_epoch_2.json: ", "json": "1.json: samples["}[form] in str(error.value)
    with pytest.raises(ValueError, match="has no sample for "):
        compare_pair(*pair(lambda files: files.pop("samples/2_epoch_2.json"), form))


def test_prompts_are_counted_by_their_words_not_their_ids(pair):
    def change(files):
        for i, name in enumerate(name for name in files if name.startswith("samples/")):
            messages = files[name]["messages"]
            messages[0]["id"] = f"other {i}"
            if i < 5:
                messages.insert(0, {"role": "system", "content": "Think."})

    assert compare_pair(*pair()).n_other_prompts == 0
    assert compare_pair(*pair(change)).n_other_prompts == 5


# folders


@pytest.fixture
def folder(tmp_path):
    """A folder of two runs of one task."""
    path = tmp_path / "logs"
    path.mkdir()
    for name, run in zip(NAMES, ("other", "base"), strict=True):
        shutil.copy(LOGS / f"{run}.eval", path / f"{name}{ID}.eval")
    return path


def test_the_newest_run_of_a_folder_is_read(folder, tmp_path, command):
    base = tmp_path / "base"
    base.mkdir()
    shutil.copy(LOGS / "base.eval", base / f"{NAMES[0]}{ID}.eval")
    assert open_samples(folder).tasks == {"even": str(folder / f"{NAMES[1]}{ID}.eval")}
    with pytest.warns(UserWarning, match="contains 2 runs of even") as told:
        result = compare_pair(base, folder)
    assert any("identical to base" in str(one.message) for one in told)
    assert result.metrics[0].task == "even"
    status, out, _ = command("compare", base, f"M={folder}", "--run", "2026-11-30")
    assert (status, out.splitlines()[3].split()[:3]) == (0, ["even", "match", "0.3125"])


def test_a_folder_of_several_models_is_refused(folder):
    files = members("base")
    files["header.json"]["eval"]["model"] = "other/model"
    save(folder / f"2027-01-01T00-00-00-00-00_odd_{ID}.eval", files)
    with pytest.raises(ValueError, match=r"has logs of several models: mockllm/model, other/model"):
        open_samples(folder)


# what is refused


def test_other_commands_and_sources_refuse_logs(command, tmp_path):
    log = LOGS / "base.eval"
    assert_refused(command("score", log), "contains logs of Inspect, which tokenloss compare BASE OTHER compares")
    (tmp_path / "x.jsonl").write_text('{"doc_id": 1, "filtered_resps": [], "acc": 1}')
    assert_refused(command("compare", log, tmp_path / "x.jsonl"), " differs from the document ")


def test_a_package_that_is_missing_is_named(run_python):
    program = "import sys; sys.modules['backports.zstd'] = sys.modules['compression.zstd'] = None\n"
    program += f"import tokenloss; tokenloss.compare_samples({str(LOGS / 'base.eval')!r}, {str(LOGS / 'other.eval')!r})"
    last = run_python(program, fails=True).splitlines()[-1]
    assert last.endswith("header.json needs the package backports.zstd: pip install backports.zstd")


WRONG = {
    "an empty file": (lambda path: path.write_bytes(b""), "cannot be read: File is not a zip file"),
    "another zip": (lambda path: save(path, {"a.txt": b"x"}), "has no header.json; it must have it"),
    "no samples": (lambda path: save(path, {"header.json": members("base")["header.json"]}), "has no sample for"),
    "version 1": (lambda path: save(path, {"header.json": {"version": 1, "eval": {}}}), "has version 1; it must"),
    "no object": (lambda path: save(path, {"header.json": [1]}), "header.json: is not a JSON object"),
    "no JSON": (lambda path: save(path, {"header.json": b"{"}), "header.json: cannot be read: line 1"),
    "lzma": (lambda path: save(path, members("base"), "lzma"), "is compressed by method 14; it must be stored"),
    "no input": (lambda path: save(path, members("base") | {"samples/1_epoch_1.json": {"id": 1}}), "it has no input"),
    "scores": (
        lambda path: save(path, members("base") | {"samples/1_epoch_1.json": {"id": 1, "input": "", "scores": [1]}}),
        r"samples/1_epoch_1.json: scores is \[1\]; it must be an object",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_log_is_refused_in_one_line(name, tmp_path):
    make, words = WRONG[name]
    make(path := tmp_path / "x.eval")
    with pytest.raises(ValueError, match=words) as error:
        compare_samples(path, LOGS / "other.eval")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("claim", ["larger", "smaller", "checksum"])
def test_members_that_are_not_what_their_header_says(claim, tmp_path):
    data = bytearray((LOGS / "base.eval").read_bytes())
    with zipfile.ZipFile(LOGS / "base.eval") as archive:
        info = archive.getinfo("samples/1_epoch_1.json")
    at = data.rindex(info.filename.encode()) - 46  # in the central directory
    change = {"larger": (24, info.file_size + 1), "smaller": (24, info.file_size - 1), "checksum": (16, info.CRC ^ 1)}
    offset, value = change[claim]
    data[at + offset : at + offset + 4] = value.to_bytes(4, "little")
    (path := tmp_path / "x.eval").write_bytes(data)
    with pytest.raises(ValueError, match=r"samples/1_epoch_1\.json: cannot be read: its bytes do not match its"):
        compare_samples(path, LOGS / "other.eval")


@pytest.mark.parametrize(("claim", "words"), [(1 << 30, "needs 1073741824 bytes at once"),
                                              (1000, "its bytes do not match its checksum")])  # fmt: skip
def test_a_bomb_takes_no_memory(claim, words, tmp_path):
    path = save(tmp_path / "x.eval", members("base") | {"samples/1_epoch_1.json": b" " * (100 << 20)})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"samples/1_epoch_1.json") - 46  # in the central directory
    data[at + 24 : at + 28] = claim.to_bytes(4, "little")
    path.write_bytes(data)
    with bounded(), pytest.raises(ValueError, match=words):
        compare_samples(path, LOGS / "other.eval")
