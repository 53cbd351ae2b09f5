"""Folders that lm-evaluation-harness writes (`--output_path`): samples of tasks, and results of groups of these."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenloss._core.errors import raise_error
from tokenloss._core.files import exists
from tokenloss._core.text import count_of
from tokenloss.formats.readers import is_scores
from tokenloss.formats.records import read_records

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# names end in the time of the run, where colons have become hyphens
_NAME = re.compile(r"(samples|results)(?:_(.+?))??(?:_(\d{4}-\d\d-\d\dT[\d.-]+))?\.jsonl?(?:\.gz)?")


class Group(NamedTuple):
    """A group of tasks: these, those of the groups within it among them, and its values by metric and filter."""

    tasks: tuple[str, ...]
    values: dict[tuple[str, str], float]


class SamplesFolder(NamedTuple):
    """The newest file of samples of each task, the groups of tasks, and a note if several runs have the same task."""

    path: str
    tasks: dict[str, str]
    groups: dict[str, Group]
    note: str


class _File(NamedTuple):
    """A file of samples or of results, with the date of its run from its name ("" if there is none)."""

    kind: str
    task: str
    date: str
    path: Path


def is_samples_folder(path: str) -> bool:
    """Whether a folder, or one in it, has files of samples that are named as lm-evaluation-harness does."""
    return bool(_folders(path))


def open_samples_folder(path: str, runs: Sequence[str] = ()) -> SamplesFolder:
    """Find the files of samples in a model's folder, or in the folder of a single model's folder.

    `runs` are prefixes of the dates of the runs to read; by default, all runs are read.
    """
    folders = _folders(path)
    if len(folders) > 1:
        got = f"holds folders of several models: {', '.join(folder.name for folder in folders)}"
        raise_error("content", path=path, got=got, fits="be the folder of one")
    files = [*_dated(folders[0])]
    starts = tuple(run.replace(":", "-") for run in runs) or ("",)
    chosen = [file for file in files if file.date.startswith(starts)]
    tasks: dict[str, list[_File]] = {}
    groups: dict[str, Group] = {}
    for file in chosen:  # newer ones replace older ones
        if file.kind == "samples":
            tasks.setdefault(file.task, []).append(file)
        else:
            groups |= _groups_of(str(file.path))
    if not tasks:
        dates = dict.fromkeys(file.date or "files without a date" for file in files if file.kind == "samples")
        got, fits = f"holds no run of {' or '.join(runs)}", f"be read with --run (run=) {' or '.join(dates)}"
        raise_error("content", path=path, got=got, fits=fits)
    return SamplesFolder(path, {task: str(tasks[task][-1].path) for task in sorted(tasks)}, groups, _note(path, tasks))


def _note(path: str, tasks: dict[str, list[_File]]) -> str:
    """A note that names the run that is read if a task has several runs, else ""."""
    several = [task for task in tasks if len(tasks[task]) > 1]
    if not several:
        return ""
    *_, newest = files = tasks[several[0]]
    others = f" and of {count_of(len(several) - 1, 'other task')}" if len(several) > 1 else ""
    return (
        f"{path}: holds {len(files)} runs of {several[0]}{others}; the newest is read, {newest.path.name}, not "
        f"{' or '.join(file.date or 'the one without a date' for file in files[:-1])}; "
        "choose one by the start of its date (--run, run=)"
    )


def _folders(path: str) -> list[Path]:
    """The folder itself if it has samples, else those in it that have some."""
    # a Zarr store is a folder, too, and may have very many files
    if not exists(path) or not Path(path).is_dir() or is_scores(path):
        return []
    if _has_samples(Path(path)):
        return [Path(path)]
    return [folder for folder in sorted(Path(path).iterdir()) if folder.is_dir() and _has_samples(folder)]


def _has_samples(folder: Path) -> bool:
    """Whether a folder has files of samples."""
    return any(file.kind == "samples" for file in _dated(folder))


def _dated(folder: Path) -> Iterator[_File]:
    """The files of samples and of results, the oldest first."""
    named = [(match, file) for file in folder.iterdir() if (match := _NAME.fullmatch(file.name)) and file.is_file()]
    for match, file in sorted(named, key=lambda one: (one[0][3] or "", one[1].name)):
        if match[1] == "results" or match[2]:
            yield _File(match[1], match[2] or "", match[3] or "", file)


def _groups_of(path: str) -> dict[str, Group]:
    """The groups of tasks in a file of results."""
    found = next(iter(read_records(path))).value
    subtasks, values = found.get("group_subtasks"), found.get("groups") or found.get("results")
    if not isinstance(subtasks, dict) or not isinstance(values, dict):
        return {}
    return {
        name: Group(tuple(dict.fromkeys(_leaves(name, subtasks, set()))), dict(_numbers(values.get(name))))
        for name, inner in subtasks.items()
        if inner
    }


def _leaves(name: str, subtasks: dict[str, Any], seen: set[str]) -> Iterator[str]:
    """The tasks of a group, and of the groups within it."""
    inner = subtasks.get(name)
    if not inner or not isinstance(inner, list):
        yield name
    elif name not in seen:
        for one in inner:
            yield from _leaves(str(one), subtasks, seen | {name})


def _numbers(values: Any) -> Iterator[tuple[tuple[str, str], float]]:
    """Values by metric and filter, without standard errors, of keys such as "acc,none"."""
    for key, value in values.items() if isinstance(values, dict) else ():
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            yield (metric, kind), float(value)
