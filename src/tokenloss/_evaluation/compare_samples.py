"""`compare_samples`: models are compared by samples that lm-evaluation-harness or Inspect logged."""

from __future__ import annotations

import dataclasses
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.comparisons import Comparisons, hints_of
from tokenloss._comparison.sample_groups import group_metrics
from tokenloss._comparison.sample_metrics import metrics_of, paired
from tokenloss._comparison.samples import SampleComparison, SampleMetric
from tokenloss._core.advice import advice
from tokenloss._core.arguments import as_paths
from tokenloss._core.errors import raise_error, refuse, warn
from tokenloss._core.text import count_of, shortened
from tokenloss._evaluation.compare_files import candidates
from tokenloss._evaluation.run import Settings, opened
from tokenloss._evaluation.sink import Block, checked_sinks, schema_of
from tokenloss.formats.readers import check_different
from tokenloss.formats.samples import Samples, log_notes, open_samples, read_samples
from tokenloss.formats.sources import Source

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from typing import TypeAlias

    from tokenloss._core.types import Columns
    from tokenloss._evaluation.sink import Schema, Sink

    _Source: TypeAlias = Source | str | os.PathLike[str]


def compare_samples(
    base: _Source,
    others: _Source | Sequence[_Source] | Mapping[str, _Source],
    *,
    margin: float | None = None,
    cluster: str | None = None,
    sinks: Sequence[Sink] = (),
) -> Comparisons[SampleComparison]:
    """Compare models with their base by samples that lm-evaluation-harness (``--log_samples``) or Inspect logged.

    This is the command ``tokenloss compare`` for samples of one task, or for folders, task by task.

    Parameters
    ----------
    base : source or path
        The result of `tokenloss.formats.open_samples`; or a file of samples, or the folder of a model's samples.
    others : source or path, several, or mapping of names to a source or path
        The candidates; without a name, a candidate is named by its path. They contain samples of the same task, or of
        tasks with the same names.
    margin : float, optional
        Test whether metrics between 0 and 1, such as accuracies, are equal within this margin (e.g. 0.01).
    cluster : str, optional
        The field of the base's documents that names their group, such as "meta.passage". Errors are clustered by this
        group; by default, by document.
    sinks : sequence of Sink, optional
        Files to write, such as ``SequenceTable("questions.csv")``; see `tokenloss.sinks`.

    Returns
    -------
    Comparisons
        A dict of `SampleComparison`, by the name of the candidate, in the order given.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or if files contain no samples or samples of different documents; the message names
        the file, and the line if there is one.
    OSError
        If a file cannot be read.

    Warns
    -----
    UserWarning
        If a candidate is identical to its base or to another one, or if a folder has several runs of a task.

    See Also
    --------
    compare_files : The same for scores, responses or log-probabilities.

    Notes
    -----
    Samples are paired by filter and by ``doc_hash``, or by ``doc_id`` if there are no documents. A document may occur
    several times, but must occur equally often in both files. The values are the ones that the harness computed and
    wrote to the files. The metric is their mean, unless it is a perplexity or bits per byte. Metrics that need all
    samples at once, such as BLEU, are left out. If the files have multiple-choice accuracies but not ``acc_norm``, it
    is computed from the responses, and so is the log-likelihood of the right answer, but only if the responses and
    targets also reproduce the accuracies in the files.

    Samples of Inspect are paired by input and choices. Their metrics are the scores: C, P, I and N count as 1, 0.5, 0
    and 0, as in Inspect; the parts of a score that is a list or an object are named ``SCORER.KEY``. All epochs of a
    sample count equally, and are one document. Samples that ended in an error, or that a scorer did not score, are left
    out of both files and reported in `SampleComparison.notes`.

    Let S be the sum of the differences over the n samples of a document (or
    group). The standard error of the mean difference ``mu`` over G documents is
    ``sqrt(G / (G - 1) * sum((S - mu * n)**2)) / sum(n)``. Intervals and tests of equivalence use Student's t with G - 1
    degrees of freedom, or a similar distribution if n differs between documents (`LossMeter.interval_factor`).

    Each task of a folder is read from its newest run, unless ``run`` of `tokenloss.formats.open_samples` selects
    another. Tasks that only one folder has are listed in `SampleComparison.left_out`. Groups of tasks come from the
    newest ``results_*.json`` of the base, and their means are weighted to match the value there. Errors of groups treat
    tasks as independent; their intervals and tests use Student's t with Satterthwaite's degrees of freedom.

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> from tokenloss import compare_samples
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> base, other = folder / "base.jsonl", folder / "other.jsonl"
    >>> for path, values in (base, [1, 1, 0, 1]), (other, [1, 0, 0, 1]):
    ...     samples = [{"doc_id": i, "filtered_resps": [], "acc": value} for i, value in enumerate(values)]
    ...     _ = path.write_text(json.dumps(samples))
    >>> (acc,) = compare_samples(base, {"other": other}, margin=0.1)["other"].metrics
    >>> acc.difference, acc.difference.stderr, acc.mcnemar_p, acc.is_equivalent
    (-0.25, 0.25, 1.0, False)
    """
    if margin is not None and not (isinstance(margin, numbers.Real) and 0 < margin < 1):
        raise_error("option", name="margin", got=margin, fits="a number between 0 and 1")
    if not isinstance(cluster, str | None):
        raise_error("type", name="cluster", got=cluster, fits="a string")
    own = _samples("base", base)
    models = {name: _samples(f"others[{name!r}]", one) for name, one in candidates(others).items()}
    check_different([one.path for one in models.values()])
    with opened([own, *models.values()], Settings(checked_sinks(sinks)), {}) as run:
        run.sinks.check(_schema({name: {} for name in models}))
        comparisons = Comparisons((name, _comparison(name, own, one, margin, cluster)) for name, one in models.items())
        questions = {name: _questions(one.metrics) for name, one in comparisons.items()}
        run.sinks.open(_schema(questions))
        run.sinks.finish(comparisons, lambda: Block({}, questions))
    for hint in advice(hints_of(comparisons)):
        warn(hint.message, hint.category)
    return comparisons


def _comparison(name: str, own: Samples, other: Samples, margin: float | None, cluster: str | None) -> SampleComparison:
    """The comparison of a candidate of this name with its base."""
    if own.is_folder and other.is_folder:
        comparison = _compared_folders(own, other, margin, cluster)
    elif own.is_folder or other.is_folder:
        file, folder = (other, own) if own.is_folder else (own, other)
        got, fits = f"is not a folder with samples, as {folder.path} is", "be a folder of files such as samples_TASK"
        refuse(file.path, got, f"{fits}.jsonl, by --log_samples")
    else:
        comparison = _compared(None, (own.path, other.path), margin, cluster)[0]
    if margin is not None and all(metric.equivalence_p is None for metric in comparison.metrics):
        refuse(own.path, "has no metric between 0 and 1", "have one if a margin is given")
    return dataclasses.replace(comparison, _about={"base": own.path, "name": name, "file": other.path})


def _questions(metrics: Sequence[SampleMetric]) -> Columns:
    """A table with a row for each metric and question: the values of both models."""
    if not metrics:
        return {}
    names = {"task": [one.task or "" for one in metrics], "metric": [one.name for one in metrics]}
    names["filter"] = [one.filter for one in metrics]
    sizes = [one.base_values.size for one in metrics]
    columns = {name: np.repeat(np.array(values, np.object_), sizes) for name, values in names.items()}
    for name in ("doc_id", "base", "other"):
        columns[name] = np.concatenate([one.columns()[name] for one in metrics])
    are_answers = np.repeat([one.right_to_wrong is not None for one in metrics], sizes)  # all values are 0 or 1
    return columns | {"flipped": are_answers & (columns["base"] != columns["other"])}


def _schema(tables: dict[str, Columns]) -> Schema:
    """The rows that sinks get; if any `doc_id` is text, all of them become text."""
    known = [table for table in tables.values() if table]
    are_text = any(table["doc_id"].dtype.kind == "U" for table in known)
    for table in known if are_text else ():
        table["doc_id"] = table["doc_id"].astype(np.str_)
    names = ("task", "metric", "filter", *(["doc_id"] * are_text))
    widths = {name: max((len(one) for table in known for one in table[name].tolist()), default=0) for name in names}
    columns = ("task", "metric", "filter", "doc_id", "base", "other", "flipped")
    return schema_of((), columns, (*tables,), widths=widths)


def _samples(name: str, value: Any) -> Samples:
    """The samples of a model."""
    if isinstance(value, Source):
        if not isinstance(value, Samples):
            fits = "contain samples of lm-evaluation-harness, as the other models' files do"
            refuse(value.name, f"contains {value.given()['source']}", fits)
        return value
    paths = as_paths(name, value)
    if len(paths) != 1:
        raise_error("option", name=name, got=value, fits="one file of samples, or one folder of them")
    return open_samples(paths[0])


def _compared_folders(base: Samples, other: Samples, margin: float | None, cluster: str | None) -> SampleComparison:
    """The comparison of the tasks that both folders contain."""
    both = base.tasks.keys() & other.tasks.keys()
    if not both:
        got, fits = f"has no task of {base.path}, only {', '.join(other.tasks)}", f"have one of {', '.join(base.tasks)}"
        refuse(other.path, got, fits)
    runs = [folder.note for folder in (base, other) if folder.note]
    parts: dict[str, SampleComparison] = {}
    clusters: dict[str, set[Any]] = {}
    left_out = {
        task: f"it is only in the folder of the {'base' if task in base.tasks else 'other model'}"
        for task in sorted(base.tasks.keys() ^ other.tasks.keys())
    }
    for task in sorted(both):
        try:
            parts[task], clusters[task] = _compared(task, (base.tasks[task], other.tasks[task]), margin, cluster)
        except ValueError as error:  # perhaps because these are not the intended runs
            raise ValueError("; ".join([str(error), *runs])) from error
        left_out |= {f"{task}: {name}": reason for name, reason in parts[task].left_out.items()}
    metrics_by_task = {task: part.metrics for task, part in parts.items()}
    groups, without = group_metrics((base.groups, other.groups), metrics_by_task, clusters, margin)
    totals = {
        name: sum(vars(part)[name] for part in parts.values())
        for name in ("count", "n_documents", "n_clusters", "n_other_prompts")
    }
    return dataclasses.replace(
        next(iter(parts.values())), **totals, groups=groups, left_out=left_out | without,
        metrics=[metric for metrics in metrics_by_task.values() for metric in metrics],
        notes=[note for part in parts.values() for note in part.notes], runs=runs,
    )  # fmt: skip


def _compared(
    task: str | None, paths: tuple[str, str], margin: float | None, cluster: str | None
) -> tuple[SampleComparison, set[Any]]:
    """The comparison of two files, and the groups that errors treat as independent, if other files may share them."""
    samples = list(read_samples(paths[0], cluster)), list(read_samples(paths[1]))
    has_hashes = all(sample.doc_hash for file in samples for sample in file)
    pairs = paired(paths, samples, lambda sample: sample.doc_hash if has_hashes else sample.doc_id)
    failed = [a.doc_id for a, b in pairs if a.is_failed or b.is_failed]
    pairs = [(a, b) for a, b in pairs if not (a.is_failed or b.is_failed)]
    if not pairs:
        refuse(paths[1], f"has no sample that it and {paths[0]} scored", "have some")
    documents = [sample.doc_hash if has_hashes else sample.doc_id for sample, _ in pairs]
    groups = documents if cluster is None else [sample.group for sample, _ in pairs]
    every, left_out, notes = metrics_of(paths, pairs, groups, margin, "documents" if cluster is None else "groups")
    if failed:
        ids = shortened(", ".join(map(str, dict.fromkeys(failed))))
        notes.append(f"{count_of(len(failed), 'sample')} without scores in one of the files left out: {ids}")
    notes += [note for path in paths for note in log_notes(path)]
    comparison = SampleComparison(
        count=len(pairs),
        n_documents=len(set(documents)),
        n_clusters=len(set(groups)),
        cluster=cluster,
        margin=None if margin is None else float(margin),
        n_other_prompts=sum(a.prompt_hash != b.prompt_hash for a, b in pairs if a.prompt_hash and b.prompt_hash),
        metrics=[SampleMetric(task=task, **fields) for fields in every],
        groups=[],
        left_out=left_out,
        notes=notes,
        runs=[],
    )
    return comparison, set(groups) if has_hashes or cluster is not None else set()
