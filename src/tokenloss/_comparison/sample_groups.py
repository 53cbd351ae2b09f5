"""Metrics of groups of tasks, computed from those of their tasks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.samples import LEVEL, SampleMetric
from tokenloss._core.estimate import Estimate
from tokenloss._statistics.distributions import mcnemar_p, student_quantile, student_tail

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenloss.formats.samples import Group

_NEAR = 1e-9  # relative difference of a mean from that of the harness, through rounding


def group_metrics(
    groups: tuple[Mapping[str, Group], Mapping[str, Group]],
    metrics: Mapping[str, Sequence[SampleMetric]],
    clusters: Mapping[str, set[Any]],
    margin: float | None,
) -> tuple[list[SampleMetric], dict[str, str]]:
    """Metrics of the groups that the base's results name, and the reasons why others are left out.

    `metrics` are each task's metrics, and `clusters` the units that errors treat as independent in it: a group whose
    tasks share some has no errors, since these treat tasks as independent.
    """
    joined, left_out = [], {}
    for name, group in groups[0].items():
        own = groups[1].get(name)
        shares = sum(len(clusters[task]) for task in group.tasks if task in clusters)
        is_shared = len(set().union(*(clusters.get(task, ()) for task in group.tasks))) < shares
        for key, value in group.values.items():
            other = None if own is None else own.values.get(key)
            parts = [_metric(metrics.get(task, ()), key) for task in group.tasks]
            weights = None if None in parts else _weights([part for part in parts if part], value, other)
            word = f"{name}: {key[0]}" + ("" if key[1] == "none" else f" ({key[1]})")
            if None in parts:
                left_out[word] = f"it is not in both folders for {group.tasks[parts.index(None)]}"
            elif weights is None:
                left_out[word] = "it is not a mean of its tasks' metrics"
            else:
                joined.append(_joined(name, [part for part in parts if part], weights, is_shared, margin))
    return joined, left_out


def _metric(metrics: Sequence[SampleMetric], key: tuple[str, str]) -> SampleMetric | None:
    """The metric with this name and filter."""
    return next((one for one in metrics if (one.name, one.filter) == key and not one.is_derived), None)


def _weights(parts: list[SampleMetric], value: float, other: float | None) -> list[float] | None:
    """The weights with which the harness computed the value of a group: the numbers of samples, or equal weights."""
    for counts in ([part.count for part in parts], [1] * len(parts)):
        weights = [count / sum(counts) for count in counts]
        means = [_mean(weights, [vars(part)[side] for part in parts]) for side in ("base", "other")]
        wanted = value, means[1] if other is None else other
        if all(math.isclose(one, two, rel_tol=_NEAR, abs_tol=_NEAR) for one, two in zip(means, wanted, strict=True)):
            return weights
    return None


def _mean(weights: list[float], values: list[float]) -> float:
    """The weighted mean."""
    return math.fsum(weight * value for weight, value in zip(weights, values, strict=True))


def _estimate(weights: list[float], parts: list[SampleMetric], side: str, is_shared: bool) -> tuple[Estimate, float]:
    """The weighted mean of independent estimates, and the degrees of freedom of its standard error."""
    estimates = [vars(part)[side] for part in parts]
    value, radius, dof = _mean(weights, estimates), math.nan, math.nan
    spread = [(weight * one.stderr) ** 2 for weight, one in zip(weights, estimates, strict=True)]
    stderr = math.nan if is_shared else math.sqrt(math.fsum(spread))
    if stderr > 0:  # Satterthwaite's approximation
        dof = sum(spread) ** 2 / sum(one**2 / (part.n_clusters - 1) for one, part in zip(spread, parts, strict=True))
        radius = student_quantile(LEVEL / 2, dof) * stderr
    return Estimate(value, (stderr, (value - radius, value + radius), estimates[0].unit)), dof


def _joined(
    name: str, parts: list[SampleMetric], weights: list[float], is_shared: bool, margin: float | None
) -> SampleMetric:
    """A metric of a group of tasks."""
    base, other = (_estimate(weights, parts, side, is_shared)[0] for side in ("base", "other"))
    difference, dof = _estimate(weights, parts, "difference", is_shared)
    optional: dict[str, Any] = {}
    if all(part.mcnemar_p is not None for part in parts):
        lost, won = (sum(vars(part)[side] for part in parts) for side in ("right_to_wrong", "wrong_to_right"))
        optional |= {"right_to_wrong": lost, "wrong_to_right": won, "mcnemar_p": mcnemar_p(lost, won)}
    n_clusters, p = sum(part.n_clusters for part in parts), None
    if difference.stderr > 0 and margin is not None and all(part.equivalence_p is not None for part in parts):
        p = student_tail((margin - abs(difference)) / difference.stderr, dof)
    shares = [part.count / n_clusters for part in parts]
    if weights == shares and not is_shared and all(part.discordance_bound is not None for part in parts):
        # no sample differs, and each is a document of its own
        bound = optional["discordance_bound"] = 1 - LEVEL ** (1 / n_clusters)
        difference = Estimate(difference, (difference.stderr, (-bound, bound), difference.unit))
        p = None if margin is None else (1 - margin) ** n_clusters
    optional["equivalence_p"] = p
    none = np.empty(0)
    return SampleMetric(
        task=name, name=parts[0].name, filter=parts[0].filter, is_derived=False,
        count=sum(part.count for part in parts), n_clusters=n_clusters, base=base, other=other, difference=difference,
        doc_ids=none.astype(object), base_values=none, other_values=none, sample_weight=none,
        _clusters=none.astype(np.int64), **optional,
    )  # fmt: skip
