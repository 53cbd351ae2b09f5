"""Comparisons of the samples that lm-evaluation-harness logged."""

from __future__ import annotations

import dataclasses
import numbers

from tokenloss._comparison.comparisons import Comparisons
from tokenloss._comparison.sample_metrics import metrics_of, paired
from tokenloss._comparison.samples import SampleComparison, SampleMetric
from tokenloss._core.errors import raise_error
from tokenloss._evaluation.compare_responses import single
from tokenloss.formats.samples import Sample, read_samples


def compare_samples(
    base: list[str], others: dict[str, list[str]], *, margin: float | None = None, cluster: str | None = None
) -> Comparisons[SampleComparison]:
    """Compare models with their base by samples of lm-evaluation-harness; options as of `compare_files`."""
    if margin is not None and not (isinstance(margin, numbers.Real) and 0 < margin < 1):
        raise_error("option", name="margin", got=margin, fits="a number between 0 and 1")
    if not isinstance(cluster, str | None):
        raise_error("type", name="cluster", got=cluster, fits="a string")

    path = single("base", base)
    paths = {name: single(f"others[{name!r}]", one) for name, one in others.items()}
    of_base = list(read_samples(path, cluster))
    found: Comparisons[SampleComparison] = Comparisons()
    for name, other in paths.items():
        comparison = _compared((path, other), (of_base, list(read_samples(other))), margin, cluster)
        found[name] = dataclasses.replace(comparison, _about={"base": path, "name": name, "file": other})
    return found


def _compared(
    paths: tuple[str, str], samples: tuple[list[Sample], list[Sample]], margin: float | None, cluster: str | None
) -> SampleComparison:
    """Compare the samples of two files."""
    has_hashes = all(sample.doc_hash for file in samples for sample in file)
    pairs = paired(paths, samples, lambda sample: sample.doc_hash if has_hashes else sample.doc_id)
    documents = [sample.doc_hash if has_hashes else sample.doc_id for sample, _ in pairs]
    groups = documents if cluster is None else [sample.group for sample, _ in pairs]
    figures, left_out, notes = metrics_of(paths, pairs, groups, margin)
    metrics = [SampleMetric(**fields) for fields in figures]
    if margin is not None and all(metric.equivalence_p is None for metric in metrics):
        got, fits = "holds no metric between 0 and 1", "hold one where a margin is given"
        raise_error("content", path=paths[0], got=got, fits=fits)
    return SampleComparison(
        count=len(pairs),
        n_documents=len(set(documents)),
        n_clusters=len(set(groups)),
        cluster=cluster,
        margin=None if margin is None else float(margin),
        n_other_prompts=sum(a.prompt_hash != b.prompt_hash for a, b in pairs if a.prompt_hash and b.prompt_hash),
        metrics=metrics,
        left_out=left_out,
        notes=notes,
    )
