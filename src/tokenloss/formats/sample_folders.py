"""Samples of lm-evaluation-harness as a source: a file, or a folder of tasks with the results of task groups."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenloss._core.arguments import as_path, refuse_given
from tokenloss._core.errors import named, raise_error, worded
from tokenloss._core.files import exists, files_of
from tokenloss._core.text import count_of
from tokenloss.formats.paths import resolved
from tokenloss.formats.readers import is_scores
from tokenloss.formats.records import are_records, read_records
from tokenloss.formats.samples import is_samples
from tokenloss.formats.sources import Source

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from tokenloss._core.types import Need


# names end in the time of the run, where colons have become hyphens
_NAME = re.compile(r"(samples|results)(?:_(.+?))??(?:_(\d{4}-\d\d-\d\dT[\d.-]+))?\.jsonl?(?:\.gz)?")


class Group(NamedTuple):
    """A group of tasks: its tasks, including those of nested groups, and its values by metric and filter."""

    tasks: tuple[str, ...]
    values: dict[tuple[str, str], float]


@dataclass(frozen=True, eq=False, repr=False)
class Samples(Source):
    """The samples of a model, for `tokenloss.compare_samples`; `open_samples` returns them.

    Attributes
    ----------
    tasks : dict of str to str
        The newest file of samples for each task in a folder; a single file is the task "".
    groups : dict
        The tasks and the values of each group of tasks, by its name.
    note : str
        Which runs were left out, if a task has several; else "".

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> from tokenloss.formats import open_samples
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "samples.jsonl"
    >>> _ = path.write_text(json.dumps({"doc_id": 0, "filtered_resps": ["4"], "exact_match": 1.0}))
    >>> open_samples(path)
    Samples(samples.jsonl)
    """

    __module__ = "tokenloss.formats"

    level = "nll"
    holds = "samples"

    tasks: dict[str, str] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    note: str = ""  # if several runs have the same task

    def _words(self) -> list[str]:
        """The tasks."""
        return [*self.tasks]

    @property
    def path(self) -> str:
        """The file, or the folder."""
        return self.paths[0]

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of tasks."""
        return "" not in self.tasks

    def lacks(self, need: Need) -> str:
        """Why only `compare_samples` takes samples."""
        if need in ("plan", "resume"):
            return ""
        way = worded("compare_samples", "tokenloss compare BASE OTHER")
        return f"holds samples of lm-evaluation-harness, which {way} compares"

    def like(self, paths: Any) -> Samples:
        """Open another model's samples with the same options."""
        return open_samples(paths, **self.options)


class _File(NamedTuple):
    """A file of samples or of results, with the date of its run from its name ("" without one)."""

    kind: str
    task: str
    date: str
    path: Path


def is_samples_folder(path: str) -> bool:
    """Whether a folder, or one in it, contains files with lm-evaluation-harness's names for samples."""
    return bool(_folders(path))


def open_samples(path: str | os.PathLike[str], *, run: str | Sequence[str] = ()) -> Samples:
    """Open a model's samples, logged by lm-evaluation-harness (``--log_samples``) or in its layout.

    Parameters
    ----------
    path : path
        A file of samples (.jsonl), or a pattern that matches one; or the folder of a model's samples that the harness
        writes (``--output_path``); or a folder that contains only one such folder.
    run : str or sequence of str, optional
        Read only the runs of a folder whose date in the file names begins with one of these, such as "2026-11-28T09".
        By default, each task is read from its newest run.

    Returns
    -------
    Samples
        A source for `tokenloss.compare_samples`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or the path contains no samples.
    OSError
        If the path cannot be read.

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> from tokenloss.formats import open_samples
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for date in "2026-11-28T09-00-00.0", "2026-11-29T09-00-00.0":
    ...     path = folder / f"samples_arc_{date}.jsonl"
    ...     _ = path.write_text(json.dumps({"doc_id": 0, "filtered_resps": [], "acc": 1}))
    >>> pathlib.Path(open_samples(folder, run="2026-11-28").tasks["arc"]).name
    'samples_arc_2026-11-28T09-00-00.0.jsonl'
    """
    path, runs = as_path("path", path), [run] if isinstance(run, str) else run
    if not isinstance(runs, list | tuple) or not all(isinstance(one, str) and one for one in runs):
        raise_error("option", name="run", got=run, fits="the start of a run's date, such as '2026-11-28', or several")
    if is_samples_folder(path):
        return _of_folder(path, tuple(runs))
    path, *others = resolved([path])
    if others:
        raise_error("option", name="path", got=f"{1 + len(others)} files", fits="one file of samples, or one folder")
    if not exists(path) or Path(path).is_dir():
        got = (
            "does not exist" if not exists(path) else "is empty" if not files_of(path) else "is no folder with samples"
        )
        raise_error(
            "content", path=path, got=got, fits="be a folder of files such as samples_TASK.jsonl, or such a file"
        )
    refuse_given({"run": runs}, "left out where files are given, not folders")
    if not are_records(path) or not is_samples(path):
        raise_error("content", path=path, got="holds no samples of lm-evaluation-harness", fits="hold some (.jsonl)")
    return Samples((path,), {"run": ()}, tasks={"": path})


def _of_folder(path: str, runs: tuple[str, ...]) -> Samples:
    """The samples in a model's folder, or in the only model's folder within it."""
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
        dates = dict.fromkeys(file.date for file in files if file.kind == "samples")
        ways = (f"with {named('run', date)}" if date else f"without {named('run')}" for date in dates)
        fits = f"be read {' or '.join(ways)}"
        raise_error("content", path=path, got=f"holds no run of {' or '.join(runs)}", fits=fits)
    newest = {task: str(tasks[task][-1].path) for task in sorted(tasks)}
    return Samples((path,), {"run": runs}, tasks=newest, groups=groups, note=_note(path, tasks))


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
        f"choose one by the start of its date ({named('run', ...)})"
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
    """Values by metric and filter, from keys such as "acc,none", without standard errors."""
    for key, value in values.items() if isinstance(values, dict) else ():
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            yield (metric, kind), float(value)
