"""Samples of lm-evaluation-harness or Inspect: one task in a file, or several in a folder."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenloss._core.arguments import as_path, refuse_given
from tokenloss._core.errors import named, raise_error, refuse, worded
from tokenloss._core.files import exists, files_of
from tokenloss._core.text import count_of
from tokenloss.formats import inspect_logs
from tokenloss.formats.readers import is_scores, resolved
from tokenloss.formats.records import Place, are_records, is_stream, read_records
from tokenloss.formats.sources import Source

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from tokenloss._core.types import Need

    # a metric of a sample: its value and the weight of that; None if it is no number
    _Cell = tuple[float, float] | None

_OWN_KEYS = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash",
             "prompt_hash", "target_hash"}  # fmt: skip
WEIGHTED = ("word_perplexity", "byte_perplexity", "bits_per_byte")  # a log-likelihood and a number of words or bytes
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?inf|nan", re.IGNORECASE | re.ASCII)
_MOST = 1e-4  # a log-likelihood may be above 0 by so much, through rounding
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
    def is_folder(self) -> bool:
        """Whether the path is a folder of tasks."""
        return "" not in self.tasks

    def _lacks(self, need: Need) -> str:
        """The reason why only `compare_samples` takes samples."""
        if need in ("plan", "resume"):
            return ""
        way = worded("compare_samples", "tokenloss compare BASE OTHER")
        is_log = any(map(_is_log, self.tasks.values()))
        return f"contains {'logs of Inspect' if is_log else 'samples of lm-evaluation-harness'}, which {way} compares"

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
    """Open a model's samples, logged by lm-evaluation-harness (``--log_samples``), in its layout, or by Inspect.

    Parameters
    ----------
    path : path
        A file of samples (.jsonl) or a log of Inspect (.eval, .json), or a pattern that matches one; or the folder of a
        model's samples that the harness writes (``--output_path``), or of its logs (``--log-dir``); or a folder that
        contains only one such folder.
    run : str or sequence of str, optional
        In a folder, read only the runs whose file names contain a date that begins with one of these, such as
        "2026-11-28T09". By default, each task is read from its newest run.

    Returns
    -------
    Samples
        A source for `tokenloss.compare_samples`.

    Raises
    ------
    TypeError, ValueError, OSError
        As in `open_scores`. Also if the path contains no samples.
    ImportError
        If logs are compressed by zstandard, and Python before 3.14 has no package backports.zstd.

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
        return _folder_samples(path, tuple(runs))
    path, *others = resolved([path])
    if others:
        raise_error("option", name="path", got=f"{1 + len(others)} files", fits="one file of samples, or one folder")
    if not exists(path) or Path(path).is_dir():
        got = "does not exist" if not exists(path) else "is empty" if not files_of(path) else "has no samples"
        refuse(path, got, "be a folder of files such as samples_TASK.jsonl, or such a file")
    refuse_given({"run": runs}, "left out where files are given, not folders")
    if not is_samples(path):
        refuse(path, "has no samples of lm-evaluation-harness", "contain some (.jsonl), or be a log of Inspect (.eval)")
    return Samples((path,), {"run": ()}, tasks={"": path})


def _folder_samples(path: str, runs: tuple[str, ...]) -> Samples:
    """The samples in a model's folder, or in the only model's folder within it."""
    folders = _folders(path)
    if len(folders) > 1:
        got = f"contains folders of several models: {', '.join(folder.name for folder in folders)}"
        refuse(path, got, "be the folder of one")
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
        refuse(path, f"has no run of {' or '.join(runs)}", f"be read {' or '.join(ways)}")
    newest = {task: str(tasks[task][-1].path) for task in sorted(tasks)}
    models = dict.fromkeys(inspect_logs.model_of(file) for file in newest.values() if _is_log(file))
    if len(models) > 1:
        refuse(path, f"has logs of several models: {', '.join(models)}", "be the folder of one, or come as one file")
    return Samples((path,), {"run": runs}, tasks=newest, groups=groups, note=_note(path, tasks))


def _note(path: str, tasks: dict[str, list[_File]]) -> str:
    """A note that names the run that is read if a task has several runs, else ""."""
    several = [task for task in tasks if len(tasks[task]) > 1]
    if not several:
        return ""
    *_, newest = files = tasks[several[0]]
    others = f" and of {count_of(len(several) - 1, 'other task')}" if len(several) > 1 else ""
    return (
        f"{path}: contains {len(files)} runs of {several[0]}{others}; the newest is read, {newest.path.name}, not "
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
    files: list[_File] = []
    for file in folder.iterdir():
        match, log = _NAME.fullmatch(file.name), inspect_logs.NAME.fullmatch(file.name)
        if match and (match[1] == "results" or match[2]) and file.is_file():
            files.append(_File(match[1], match[2] or "", match[3] or "", file))
        elif log and file.is_file():
            files.append(_File("samples", log[2], log[1], file))
    yield from sorted(files, key=lambda one: (one.date, one.path.name))


def _groups_of(path: str) -> dict[str, Group]:
    """The groups of tasks in a file of results."""
    results = next(iter(read_records(path))).value
    subtasks, values = results.get("group_subtasks"), results.get("groups") or results.get("results")
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


# -- lines of samples --------------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """A sample of a file.

    `derived` contains the metrics that follow from the responses and the target, and "target_loglikelihood"; it is
    empty where they do not show which choice is right.
    """

    place: Place
    doc_id: int | str
    doc_hash: str
    filter: str
    target_hash: str
    prompt_hash: str
    group: object
    metrics: dict[str, _Cell]
    derived: dict[str, float]
    is_failed: bool  # without scores


def is_samples(path: str) -> bool:
    """Whether a file contains samples, by its name or by the keys of its first record of JSON."""
    if inspect_logs.is_archive(path) or not are_records(path) or is_stream(path):
        return inspect_logs.is_archive(path)
    first = next(iter(read_records(path))).value
    return _is_sample(first) or inspect_logs.is_log(first)


def _is_log(path: str) -> bool:
    """Whether a file of samples is a log of Inspect."""
    return inspect_logs.is_archive(path) or (
        path.lower().endswith(".json") and inspect_logs.is_log(next(iter(read_records(path))).value)
    )


def _is_sample(record: dict[str, Any]) -> bool:
    return "doc_id" in record and ("resps" in record or "filtered_resps" in record)


def log_notes(path: str) -> list[str]:
    """Notes about a log of Inspect for readers of a comparison; empty for other files."""
    return inspect_logs.notes_of(path) if _is_log(path) else []


def read_samples(path: str, group: str | None = None) -> Iterator[Sample]:
    """Read the samples of a file; `group` names the field of a document that is read, too, such as "meta.subject"."""
    is_log = _is_log(path)
    lines = ((Place(path, number), record) for number, record in (() if is_log else read_records(path)))
    for place, record in inspect_logs.read_log(path) if is_log else lines:
        if not _is_sample(record):
            place.refuse("is not a sample of lm-evaluation-harness", "have doc_id and filtered_resps")
        doc_id, name = record["doc_id"], record.get("filter", "none")
        if not isinstance(doc_id, int | str) or isinstance(doc_id, bool):
            place.refuse_value("doc_id", doc_id, "be an integer or a string")
        if not isinstance(name, str):
            place.refuse_value("filter", name, "be a string")
        yield Sample(
            place=place,
            doc_id=doc_id,
            doc_hash=_hash(record, "doc_hash", record.get("doc"), place),
            filter=name,
            target_hash=_hash(record, "target_hash", record.get("target"), place),
            prompt_hash=_hash(record, "prompt_hash", None, place),
            group=None if group is None else _field(record.get("doc"), group, place),
            metrics=_metrics(record, place),
            derived=_derived(record, place),
            is_failed=is_log and not record["metrics"],
        )


def _hash(record: dict[str, Any], name: str, content: Any, place: Place) -> str:
    """The hash that the harness wrote, or would have written if it is an early version; "" if there is no content."""
    value = record.get(name)
    if value is None:
        if content is None:
            return ""
        text = str(content) if name == "target_hash" else json.dumps(content, indent=2, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()
    return value if isinstance(value, str) else place.refuse_value(name, value, "be a string")


def _field(doc: Any, name: str, place: Place) -> object:
    """The value of a field of a document; dots lead into objects, unless they are part of the name."""
    value = doc
    for key in [name] if isinstance(doc, dict) and name in doc else name.split("."):
        if not isinstance(value, dict) or key not in value:
            place.refuse(f"doc has no {name!r}", "have it")
        value = value[key]
    if value is None or isinstance(value, dict | list) or value != value:  # nan
        place.refuse_value(f"doc.{name}", value, "be a string or a number")
    return value


# -- metrics that the harness wrote ------------------------------------------------------------------------------------


def _metrics(record: dict[str, Any], place: Place) -> dict[str, _Cell]:
    """Metrics by name."""
    names = record.get("metrics")
    if names is None:  # early versions do not list them
        names = [name for name in record if name not in _OWN_KEYS]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        place.refuse_value("metrics", names, "be a list of names")
    for name in names:
        if name not in record:
            place.refuse(f"has no {name}", "have it, because it is listed in metrics")
    return {name: _cell(name, record[name], place) for name in names}


def _cell(name: str, value: Any, place: Place) -> _Cell:
    """Value and weight of a metric."""
    if name in WEIGHTED:
        if not isinstance(value, list) or len(value) != 2:
            place.refuse_value(name, value, "be a log-likelihood and a number of words or bytes")
        weight = _number(value[1])
        if weight is None or not 0 <= weight < math.inf:
            place.refuse_value(f"{name}[1]", value[1], "be a number of words or bytes")
        return _log_likelihood(f"{name}[0]", value[0], place), float(weight or 0)
    if name == "brier_score" and isinstance(value, list):
        return _brier(value, place)
    if name == "perplexity":
        return _log_likelihood(name, value, place), 1.0
    number = None if name == "bypass" else _number(value)
    if number is not None and not math.isfinite(number):
        place.refuse_value(name, number, "be finite")
    return None if number is None else (number, 1.0)


def _brier(value: list[Any], place: Place) -> _Cell:
    """The Brier score of the right choice's number and the probabilities: a list, or NumPy's text of one."""
    fits = "be the number of a choice and probabilities"
    gold, probs = value if len(value) == 2 else (None, None)
    if isinstance(probs, str):
        if "..." in probs:  # NumPy left some out
            return None
        probs = probs.strip().removeprefix("[").removesuffix("]").split()
    numbers = [_number(prob) for prob in probs] if isinstance(probs, list) else []
    known = [number for number in numbers if number is not None and 0 <= number <= 1 + _MOST]
    right = _number(gold)
    if right is None or len(known) < max(1, len(numbers)) or right not in range(len(known)):
        place.refuse_value("brier_score", value, fits)
    if abs(math.fsum(known) - 1) > 1e-3:
        place.refuse_value("brier_score", value, "be computed from probabilities that add up to 1")
    return math.fsum((prob - (i == right)) ** 2 for i, prob in enumerate(known)), 1.0


def _number(value: Any) -> float | None:
    """A number, a boolean, or the text of one; None for anything else."""
    if isinstance(value, str):
        if value in ("True", "False"):
            return float(value == "True")
        return float(value) if _NUMBER.fullmatch(value) else None
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return math.inf


def _log_likelihood(field: str, value: Any, place: Place) -> float:
    """A log-likelihood, which may be -inf."""
    number = _number(value)
    if number is None or not number <= _MOST:
        place.refuse_value(field, value, "be a log-likelihood: a number that is not above 0")
    return float(number or 0)


# -- metrics that follow from responses --------------------------------------------------------------------------------


def _derived(record: dict[str, Any], place: Place) -> dict[str, float]:
    """Metrics by name that follow from the responses, if all requests were for log-likelihoods."""
    requests = _requests(record.get("arguments"))
    answers = record.get("filtered_resps")
    if not requests or not isinstance(answers, list) or len(answers) != len(requests):
        return {}
    if not all(isinstance(answer, list) and len(answer) == 2 for answer in answers):
        return {}
    if any(answer[1] not in ("True", "False", True, False) for answer in answers):
        return {}
    scores = [_log_likelihood(f"filtered_resps[{i}][0]", answer[0], place) for i, answer in enumerate(answers)]
    if len(requests) == 1:
        return {"acc": float(answers[0][1] in ("True", True)), "target_loglikelihood": scores[0]}
    half = len(requests) // 2
    if any(context for context, _ in requests[:half]) and not any(context for context, _ in requests[half:]):
        if [text for _, text in requests[:half]] != [text for _, text in requests[half:]]:
            return {}
        return _choice_metrics(record, requests[:half], scores[:half], scores[half:])
    return _choice_metrics(record, requests, scores, [])


def _requests(arguments: Any) -> list[tuple[str, str]]:
    """Context and continuation of each request; empty if any of them is not text."""
    if isinstance(arguments, dict):  # by number, since a tool may have sorted the names as text
        if any(f"gen_args_{i}" not in arguments for i in range(len(arguments))):
            return []
        arguments = [arguments[f"gen_args_{i}"] for i in range(len(arguments))]
        arguments = [list(one.values()) if isinstance(one, dict) else one for one in arguments]
    texts = []
    for one in arguments if isinstance(arguments, list) else []:
        if not isinstance(one, list) or len(one) != 2 or not all(isinstance(text, str) for text in one):
            return []
        texts.append((one[0], one[1]))
    return texts


def _choice_metrics(
    record: dict[str, Any], requests: list[tuple[str, str]], scores: list[float], unconditional: list[float]
) -> dict[str, float]:
    """Metrics of multiple choice."""
    texts = [text for _, text in requests]
    choices = _choices(record.get("doc"), texts)
    gold = _gold(record.get("target"), choices or texts)
    if gold is None or len({context for context, _ in requests}) > 1:
        return {}
    scores_of = {"acc": scores}
    if choices:
        scores_of["acc_norm"] = [score / len(choice) for score, choice in zip(scores, choices, strict=True)]
        scores_of["acc_bytes"] = [score / len(choice.encode()) for score, choice in zip(scores, choices, strict=True)]
    if unconditional:
        scores_of["acc_mutual_info"] = [a - b for a, b in zip(scores, unconditional, strict=True)]
    known = {name: values for name, values in scores_of.items() if not any(map(math.isnan, values))}
    right = {name: float(values.index(max(values)) == gold) for name, values in known.items()}
    return right | {"target_loglikelihood": scores[gold]}


def _choices(doc: Any, texts: list[str]) -> list[str]:
    """Choices without the blank that the harness puts before each; empty if it is unknown whether it added one."""
    is_as_given = isinstance(doc, dict) and texts in doc.values()
    if not is_as_given and any(text[:1].isspace() for text in texts):
        if not all(text.startswith(" ") and not text[1:2].isspace() for text in texts):
            return []
        texts = [text[1:] for text in texts]
    return texts if all(texts) else []


def _gold(target: Any, choices: list[str]) -> int | None:
    """The number of the right choice, given its number or its text; None if it is not certain."""
    text = str(target)
    numbers = {int(text)} & {*range(len(choices))} if re.fullmatch(r"\d{1,9}", text, re.ASCII) else set()
    numbers |= {choices.index(text)} if text in choices else set()
    return numbers.pop() if len(numbers) == 1 else None
