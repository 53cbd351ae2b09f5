"""Folders of lm-evaluation-harness: which files of which tasks are compared, and groups of tasks against NumPy."""

import json
import math
import re

import clients
import numpy as np
import pytest
from commands import assert_refused
from eval_harness import compare_pair, lines_of

from tokenloss import compare_samples
from tokenloss.formats import open_samples

pytestmark = [
    pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process"),
    pytest.mark.filterwarnings("ignore:.*identical to base"),
]
OLD, NEW = "2024-09-02T12-34-56.123456", "2025-01-31T00-00-01.5"
LATER = "2026-01-01T00-00-00"
SIZES = {"a": 30, "b": 50, "c": 20}
SUBTASKS = {"g": ["a", "sub"], "sub": ["b", "c"], "a": [], "b": [], "c": []}


def lines(task, values, name="acc", **others):
    """Samples of a task with documents of its own."""
    return [
        {"doc_id": i, "doc": {"q": f"{task} {i}"}, "filtered_resps": ["x"], name: float(value), **others}
        for i, value in enumerate(values)
    ]


class Folders:
    """Samples of three tasks by two models, in the layout of the harness, and their values."""

    def __init__(self, path, weight_by_size=True):
        rng = np.random.default_rng(4)
        self.path, self.values = path, {}
        for model, chance in ("base", 0.6), ("other", 0.5):
            own = self.values[model] = {task: rng.random(n) < chance for task, n in SIZES.items()}
            for task, values in own.items():
                self.save(model, task, lines(task, values))
            self.save_results(model, {
                name: {"acc,none": self.mean(own, name, weight_by_size), "acc_stderr,none": 0.1, "alias": name}
                for name in ("g", "sub")
            })  # fmt: skip

    @staticmethod
    def tasks(name):
        return [task for one in SUBTASKS[name] for task in (Folders.tasks(one) or [one])]

    def mean(self, values, name, by_size):
        values = [values[task] for task in self.tasks(name)]
        return float(np.concatenate(values).mean() if by_size else np.mean([one.mean() for one in values]))

    def folder(self, model):
        folder = self.path / model / f"org__{model}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def save(self, model, task, samples, date=NEW):
        return clients.save_lines(self.folder(model) / f"samples_{task}_{date}.jsonl", *samples)

    def save_results(self, model, groups, date=NEW, **others):
        result = {"results": {}, "groups": groups, "group_subtasks": SUBTASKS, **others}
        (self.folder(model) / f"results_{date}.json").write_text(json.dumps(result, indent=2))

    def compared(self, *, run=(), **options):
        base, other = (open_samples(self.path / model, run=run) for model in ("base", "other"))
        return compare_samples(base, {"q": other}, **options)["q"]


@pytest.fixture
def folders(tmp_path):
    return Folders(tmp_path)


def test_each_task_is_compared_as_its_files_are(folders):
    result = folders.compared(margin=0.2)
    assert [metric.task for metric in result.metrics] == ["a", "b", "c"]
    assert (result.count, result.n_documents, result.left_out) == (100, 100, {})
    for metric in result.metrics:
        paths = [folders.folder(model) / f"samples_{metric.task}_{NEW}.jsonl" for model in ("base", "other")]
        (alone,) = compare_pair(*paths, margin=0.2).metrics
        assert alone.to_dict() | {"task": metric.task} == metric.to_dict()
    whole = compare_samples(folders.folder("base"), {"q": folders.folder("other")}, margin=0.2)["q"]
    assert whole.metrics == result.metrics  # a model's own folder
    assert whole.groups == result.groups


@pytest.mark.parametrize("by_size", [True, False])
def test_groups_are_means_as_the_harness_aggregates_them(by_size, tmp_path):
    student = pytest.importorskip("scipy.stats").t
    folders = Folders(tmp_path, by_size)
    result = folders.compared(margin=0.3)
    assert [metric.task for metric in result.groups] == ["g", "sub"]
    for metric in result.groups:
        tasks = folders.tasks(metric.task)
        sizes = np.array([SIZES[task] for task in tasks])
        weights = sizes / sizes.sum() if by_size else np.full(len(tasks), 1 / len(tasks))
        base, other = ([folders.values[model][task].astype(float) for task in tasks] for model in ("base", "other"))
        changes = [b - a for a, b in zip(base, other, strict=True)]
        assert metric.base == pytest.approx(weights @ [one.mean() for one in base])
        assert metric.other == pytest.approx(weights @ [one.mean() for one in other])
        assert metric.difference == pytest.approx(weights @ [one.mean() for one in changes])
        variances = (weights * [one.std(ddof=1) / math.sqrt(len(one)) for one in changes]) ** 2
        stderr = math.sqrt(variances.sum())
        dof = variances.sum() ** 2 / (variances**2 / (sizes - 1)).sum()
        assert metric.difference.stderr == pytest.approx(stderr)
        radius = student.ppf(0.975, dof) * stderr
        assert metric.difference.interval == pytest.approx((metric.difference - radius, metric.difference + radius))
        assert metric.equivalence_p == pytest.approx(student.sf((0.3 - abs(metric.difference)) / stderr, dof))
        flips = np.concatenate(changes)
        assert (metric.right_to_wrong, metric.wrong_to_right) == ((flips < 0).sum(), (flips > 0).sum())
        assert (metric.count, metric.n_clusters) == (sizes.sum(), sizes.sum())


def test_two_runs_of_a_task_in_one_folder(folders, command):
    """The newest is read, with a warning; `run` chooses another one."""
    first, half = folders.compared(), SIZES["a"] // 2
    folders.save("other", "a", lines("a", [1] * half + [0] * half), LATER)
    words = (
        rf"2 runs of a; the newest is read, samples_a_{LATER}.jsonl, not {NEW}; choose one by the start of its date "
    )
    with pytest.warns(UserWarning, match=rf"{words}\(run=\)"):
        newest = folders.compared()
    assert (newest.metrics[0].other, newest.metrics[1:]) == (0.5, first.metrics[1:])
    paths = folders.path / "base", f"q={folders.path / 'other'}"
    _, out, err = command("compare", *paths)
    (note,) = newest.runs
    assert err == f"tokenloss: warning: {note.replace('(run=)', '(--run)')}\n"
    assert note.replace("(run=)", "(--run)") in out
    assert folders.compared(run=NEW.replace("-00-", ":00:")) == first
    assert command("compare", *paths, "--run=2025")[1:] == (first.summary() + "\n", "")
    folders.save("base", "a", lines("a", folders.values["base"]["a"]), OLD)
    chosen = folders.compared(run=[OLD, LATER])
    assert chosen.metrics == newest.metrics[:1]
    assert chosen.left_out == {}
    assert command("compare", *paths, f"--run={OLD}", "--run=2026")[1:] == (chosen.summary() + "\n", "")
    for n in 10, 11:
        folders.save("base", f"more{n}", lines("more", [1]), OLD)
        folders.save("base", f"more{n}", lines("more", [1]))
    with pytest.warns(UserWarning, match="newest is read") as warned:
        folders.compared()
    assert "base: contains 2 runs of a and of 2 other tasks; " in str(warned[0].message)


@pytest.mark.parametrize("samples", [lines("a", [1] * 10), lines("else", [1] * SIZES["a"])], ids=["shorter", "others"])
def test_a_newer_run_of_other_documents_is_refused(samples, folders):
    folders.save("other", "a", samples, LATER)
    words = f"; {folders.path / 'other'}: contains 2 runs of a; the newest is read"
    with pytest.raises(ValueError, match=f"it must contain the same documents as .*{re.escape(words)}"):
        folders.compared()
    assert len(folders.compared(run="2025").metrics) == 3


def test_pattern_of_a_file_of_samples(folders):
    base = folders.path / "base"
    file = folders.folder("base") / f"samples_a_{NEW}.jsonl"
    assert open_samples(base / "*" / "samples_a_*.jsonl").paths == (str(file),)
    with pytest.raises(ValueError, match=r"path is '\d+ files'; it must be one file of samples, or one folder"):
        open_samples(base / "*" / "samples_*.jsonl")


def test_runs_that_are_not_there(folders, command):
    base, other = folders.path / "base", folders.path / "other"
    refused = command("compare", base, other, "--run=2024", "--run=2023")
    assert_refused(refused, f"{base}: has no run of 2024 or 2023; it must be read with --run {NEW}")
    with pytest.raises(ValueError, match=rf"has no run of 2024; it must be read with run='{NEW}'"):
        open_samples(base, run="2024")
    files = [folders.folder(model) / f"samples_a_{NEW}.jsonl" for model in ("base", "other")]
    assert_refused(command("compare", *files, "--run=2025"), "--run is given; it must be left out where files are")
    for wrong in "", ["2025", ""], 2025, [2025]:
        with pytest.raises(ValueError, match=r"^run is .*; it must be the start of a run's date, such as "):
            folders.compared(run=wrong)


def test_groups_among_the_results_of_tasks(folders):
    """As early versions of the harness write them."""
    expected = folders.compared().groups
    for model, values in folders.values.items():
        means = {name: {"acc,none": folders.mean(values, name, True)} for name in ("g", "sub")}
        folders.save_results(model, {}, results=means)
    assert folders.compared().groups == expected


def test_a_task_of_one_folder_is_named(folders):
    folders.save("base", "more", lines("more", [1, 0]))
    folders.save("other", "less", lines("less", [1, 0]))
    result = folders.compared()
    assert result.left_out == {
        "less": "it is only in the folder of the other model", "more": "it is only in the folder of the base",
    }  # fmt: skip
    (folders.folder("other") / f"samples_c_{NEW}.jsonl").unlink()
    result = folders.compared()
    assert result.groups == []
    assert result.left_out["sub: acc"] == "it is not in both folders for c"


def test_a_group_that_is_no_mean_of_its_tasks_is_left_out(folders):
    folders.save_results("base", {"g": {"acc,none": 0.123, "f1,none": 0.5}, "sub": {"acc,none": "N/A"}})
    result = folders.compared()
    assert result.groups == []
    assert result.left_out == {
        "g: acc": "it is not a mean of its tasks' metrics", "g: f1": "it is not in both folders for a",
    }  # fmt: skip


def test_a_group_whose_mean_of_the_other_model_is_another_is_left_out(folders):
    expected = folders.compared()
    folders.save_results("other", {"g": {"acc,none": 0.123}})
    result = folders.compared()
    assert [metric.task for metric in result.groups] == ["sub"]
    assert result.left_out == {"g: acc": "it is not a mean of its tasks' metrics"}
    (folders.folder("other") / f"results_{NEW}.json").unlink()  # without results of its own, those of the base decide
    assert folders.compared().groups == expected.groups


def test_the_same_ids_of_documents_that_are_not_logged_are_no_shared_documents(folders):
    expected = folders.compared().groups
    for model, values in folders.values.items():
        for task, own in values.items():
            folders.save(model, task, [{**line, "doc": None} for line in lines(task, own)])
    assert folders.compared().groups == expected


def test_a_group_is_not_joined_from_metrics_that_its_tasks_do_not_hold(folders):
    """They are computed from responses, and need not be what the harness aggregated."""
    samples = lines_of("mc")
    for line in samples:
        line["metrics"].remove("acc_norm")
        del line["acc_norm"]
    (norm,) = (one for one in compare_pair(*[folders.save("base", "mc", samples)] * 2).metrics
               if one.name == "acc_norm")  # fmt: skip
    folders.save("other", "mc", samples)
    folders.save_results("base", {"g": {"acc_norm,none": norm.base}}, group_subtasks={"g": ["mc"]})
    result = folders.compared()
    assert norm.is_derived
    assert result.groups == []
    assert result.left_out["g: acc_norm"] == "it is not in both folders for mc"


@pytest.mark.parametrize(
    "results", [{}, {"group_subtasks": None}, {"group_subtasks": {"g": ["g"]}, "groups": {"g": 3}}]
)
def test_results_without_groups(results, folders):
    for model in ("base", "other"):
        (folders.folder(model) / f"results_{NEW}.json").write_text(json.dumps(results))
    assert folders.compared().groups == []
    (folders.folder("base") / f"results_{NEW}.json").unlink()
    assert len(folders.compared().metrics) == 3


def test_tasks_that_share_documents_have_no_error_of_their_group(tmp_path):
    folder = {}
    for model, run in ("base", "base"), ("other", "noise"):
        folder[model] = tmp_path / model
        folder[model].mkdir()
        for task in ("mc", "mc_mutual_info"):
            clients.save_lines(folder[model] / f"samples_{task}_{NEW}.jsonl", *lines_of(task, run))
        values = [[line["acc"] for line in lines_of(task, run)] for task in ("mc", "mc_mutual_info")]
        result = {
            "groups": {"g": {"acc,none": float(np.mean(values))}},
            "group_subtasks": {"g": ["mc", "mc_mutual_info"]},
        }
        (folder[model] / f"results_{NEW}.json").write_text(json.dumps(result))
    result = compare_samples(folder["base"], {"q": folder["other"]}, margin=0.2)["q"]
    (group,) = result.groups
    assert group.base == pytest.approx(np.mean([metric.base for metric in result.metrics if metric.name == "acc"]))
    assert math.isnan(group.difference.stderr)
    assert group.equivalence_p is None
    assert "nan" not in result.summary()


@pytest.mark.parametrize("by_size", [True, False])
def test_groups_whose_models_are_the_same(by_size, tmp_path):
    """A bound of what differs is known of the samples as a whole, so of groups by size."""
    folders = Folders(tmp_path, by_size)
    result = compare_samples(folders.path / "base", {"q": folders.path / "base"}, margin=0.1)["q"]
    for metric, n in zip(result.groups, (100, 70), strict=True):
        assert (metric.difference, metric.difference.stderr) == (0, 0)
        if by_size:
            bound = 1 - 0.05 ** (1 / n)
            assert metric.difference.interval == (-metric.discordance_bound, metric.discordance_bound)
            assert metric.discordance_bound == pytest.approx(bound)
            assert metric.equivalence_p == pytest.approx(0.9**n)
        else:
            assert np.isnan(metric.difference.interval).all()
            assert metric.equivalence_p is metric.discordance_bound is None
    assert "nan" not in result.summary()


def test_command(folders, command):
    status, out, err = command("compare", folders.path / "base", f"q={folders.path / 'other'}", "--margin", "0.3")
    assert (status, err) == (0, "")
    result = folders.compared(margin=0.3)
    assert out == result.summary() + "\n"
    heads = [line.split()[:2] for line in out.splitlines() if line.strip().startswith("task")]
    assert heads == [["task", "metric"]] * 5  # tasks, groups, flips, equivalence, power
    rows = out.split("groups of tasks\n")[1].splitlines()[1:3]
    assert [row.split()[:4] for row in rows] == [
        [metric.task, "acc", f"{metric.base:.6g}", f"{metric.other:.6g}"] for metric in result.groups
    ]


def test_folders_that_do_not_fit(folders, command, tmp_path):
    base, other = folders.path / "base", folders.path / "other"
    refused = command("compare", base, folders.folder("other") / f"samples_a_{NEW}.jsonl")
    assert_refused(refused, f"is not a folder with samples, as {base} is; it must be a folder of files such")
    assert_refused(command("compare", tmp_path, other), f"{tmp_path}: is a directory without files of scores")
    assert_refused(command("compare", base, tmp_path / "none"), f"{tmp_path / 'none'}: cannot be read: No such file")
    with pytest.raises(ValueError, match=r"none: does not exist; it must be a folder of files such as samples_TASK"):
        open_samples(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert_refused(
        command("compare", tmp_path / "empty", base), f"{tmp_path / 'empty'}: is empty; it must contain files"
    )
    (base / "org__more").mkdir()
    clients.save_lines(base / "org__more" / "samples_a.jsonl", *lines("a", [1]))
    words = f"{base}: contains folders of several models: org__base, org__more; it must be the folder of one"
    assert_refused(command("compare", base, other), words)
    clients.save_lines(tmp_path / "samples_else.jsonl", *lines("else", [1]))
    assert_refused(
        command("compare", tmp_path, other), f"{other}: has no task of {tmp_path}, only a, b, c; it must have"
    )
    assert_refused(command("compare", other, other, "--classes=3"), "--classes does not apply to samples")
