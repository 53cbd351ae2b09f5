"""Samples of lm-evaluation-harness in tests: real ones, to be changed, and small ones."""

import json

import clients

from tokenloss import compare_samples

TASKS = ("mc", "mc_mutual_info", "lastword", "rolling")


def lines_of(task, run="base"):
    """Samples of a task, to be changed."""
    return [json.loads(line) for line in clients.samples()[f"{run}/{task}.jsonl"].splitlines()]


def sample(doc_id=0, **fields):
    """A small sample."""
    return {"doc_id": doc_id, "filtered_resps": ["x"]} | fields


def of_values(values, name="acc"):
    """Samples with one metric."""
    return [sample(i, **{name: value}) for i, value in enumerate(values)]


def named(comparison, name, kind="none"):
    """A metric by its name."""
    (result,) = (metric for metric in comparison.metrics if (metric.name, metric.filter) == (name, kind))
    return result


def compare_pair(base, other, **options):
    """What `compare_samples` finds of two models."""
    (result,) = compare_samples(base, {"other": other}, **options).values()
    return result
