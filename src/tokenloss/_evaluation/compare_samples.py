"""Comparisons of the samples that lm-evaluation-harness logged."""

from __future__ import annotations

import dataclasses
import numbers
from typing import TYPE_CHECKING, Any

from tokenloss._comparison.comparisons import Comparisons
from tokenloss._comparison.sample_groups import group_metrics
from tokenloss._comparison.sample_metrics import metrics_of, paired
from tokenloss._comparison.samples import SampleComparison, SampleMetric
from tokenloss._core.arguments import refuse_given
from tokenloss._core.errors import raise_error
from tokenloss._core.files import exists, files_of
from tokenloss._evaluation.options import single
from tokenloss.formats.sample_folders import SamplesFolder, is_samples_folder, open_samples_folder
from tokenloss.formats.samples import read_samples

if TYPE_CHECKING:
    from collections.abc import Sequence


def compare_samples(
    base: list[str], others: dict[str, list[str]], *, margin: float | None, cluster: str | None,
    run: str | Sequence[str],
) -> Comparisons[SampleComparison]:  # fmt: skip
    """Compare models with their base by samples of lm-evaluation-harness; options as in `compare_files`."""
    if margin is not None and not (isinstance(margin, numbers.Real) and 0 < margin < 1):
        raise_error("option", name="margin", got=margin, fits="a number between 0 and 1")
    if not isinstance(cluster, str | None):
        raise_error("type", name="cluster", got=cluster, fits="a string")
    runs = [run] if isinstance(run, str) else run
    if not isinstance(runs, list | tuple) or not all(isinstance(one, str) and one for one in runs):
        raise_error("option", name="run", got=run, fits="the start of a run's date, such as '2026-11-28', or several")

    path = single("base", base)
    found: Comparisons[SampleComparison] = Comparisons()
    for name, paths in others.items():
        other = single(f"others[{name!r}]", paths)
        sides = [open_samples_folder(one, runs) if is_samples_folder(one) else one for one in (path, other)]
        if isinstance(sides[0], SamplesFolder) and isinstance(sides[1], SamplesFolder):
            comparison = _of_folders(sides[0], sides[1], margin, cluster)
        elif isinstance(sides[0], str) and isinstance(sides[1], str):
            refuse_given({"run": runs}, "left out where files are given, not folders")
            comparison = _compared(None, (path, other), margin, cluster)[0]
        else:
            file, folder = (path, other) if isinstance(sides[0], str) else (other, path)
            got = f"is no folder with samples, as {folder} is"
            if not exists(file) or not files_of(file):
                got = "is empty" if exists(file) else "does not exist"
            fits = "be a folder of files such as samples_TASK.jsonl, by --log_samples"
            raise_error("content", path=file, got=got, fits=fits)
        if margin is not None and all(metric.equivalence_p is None for metric in comparison.metrics):
            got, fits = "holds no metric between 0 and 1", "hold one where a margin is given"
            raise_error("content", path=path, got=got, fits=fits)
        found[name] = dataclasses.replace(comparison, _about={"base": path, "name": name, "file": other})
    return found


def _of_folders(
    base: SamplesFolder, other: SamplesFolder, margin: float | None, cluster: str | None
) -> SampleComparison:
    """Compare the samples of the tasks that both folders hold."""
    both = base.tasks.keys() & other.tasks.keys()
    if not both:
        got, fits = f"holds no task of {base.path}: {', '.join(other.tasks)}", f"hold some of {', '.join(base.tasks)}"
        raise_error("content", path=other.path, got=got, fits=fits)
    runs = [folder.note for folder in (base, other) if folder.note]
    parts: dict[str, SampleComparison] = {}
    clusters: dict[str, set[Any]] = {}
    left_out = {
        task: f"only the folder of the {'base' if task in base.tasks else 'other model'} holds it"
        for task in sorted(base.tasks.keys() ^ other.tasks.keys())
    }
    for task in sorted(both):
        try:
            parts[task], clusters[task] = _compared(task, (base.tasks[task], other.tasks[task]), margin, cluster)
        except ValueError as error:  # perhaps since they are not the runs that were meant
            raise ValueError("; ".join([str(error), *runs])) from error
        left_out |= {f"{task}: {name}": reason for name, reason in parts[task].left_out.items()}
    of_task = {task: part.metrics for task, part in parts.items()}
    groups, without = group_metrics((base.groups, other.groups), of_task, clusters, margin)
    totals = {
        name: sum(vars(part)[name] for part in parts.values())
        for name in ("count", "n_documents", "n_clusters", "n_other_prompts")
    }
    return dataclasses.replace(
        next(iter(parts.values())), **totals, groups=groups, left_out=left_out | without,
        metrics=[metric for metrics in of_task.values() for metric in metrics],
        notes=[note for part in parts.values() for note in part.notes], runs=runs,
    )  # fmt: skip


def _compared(
    task: str | None, paths: tuple[str, str], margin: float | None, cluster: str | None
) -> tuple[SampleComparison, set[Any]]:
    """Compare the samples of two files; also return what errors take as independent, if other files show the same."""
    samples = list(read_samples(paths[0], cluster)), list(read_samples(paths[1]))
    has_hashes = all(sample.doc_hash for file in samples for sample in file)
    pairs = paired(paths, samples, lambda sample: sample.doc_hash if has_hashes else sample.doc_id)
    documents = [sample.doc_hash if has_hashes else sample.doc_id for sample, _ in pairs]
    groups = documents if cluster is None else [sample.group for sample, _ in pairs]
    figures, left_out, notes = metrics_of(paths, pairs, groups, margin)
    comparison = SampleComparison(
        count=len(pairs),
        n_documents=len(set(documents)),
        n_clusters=len(set(groups)),
        cluster=cluster,
        margin=None if margin is None else float(margin),
        n_other_prompts=sum(a.prompt_hash != b.prompt_hash for a, b in pairs if a.prompt_hash and b.prompt_hash),
        metrics=[SampleMetric(task=task, **fields) for fields in figures],
        groups=[],
        left_out=left_out,
        notes=notes,
        runs=[],
    )
    return comparison, set(groups) if has_hashes or cluster is not None else set()
