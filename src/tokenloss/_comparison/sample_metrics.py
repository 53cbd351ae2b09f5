"""Pairs the samples of two files, and computes the statistics of each metric of `samples.py`."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._comparison.samples import LEVEL
from tokenloss._core.errors import refuse
from tokenloss._core.estimate import Estimate
from tokenloss._statistics.distributions import mcnemar_p
from tokenloss._statistics.estimates import Measure
from tokenloss._statistics.ratio import ExactRatio
from tokenloss.formats.samples import WEIGHTED, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tokenloss._core.types import Float64Array, IntArray
    from tokenloss._statistics.estimates import Method

    _Pair = tuple[Sample, Sample]

_PERPLEXITIES = {"perplexity", "word_perplexity", "byte_perplexity"}  # exp of minus a mean log-likelihood
_CHECKED = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")  # they can be computed from responses and targets
_DERIVED = ("acc_norm", "target_loglikelihood")  # they are computed from responses where files do not hold them
# metrics that are no fractions, even where all values lie between 0 and 1
_NOT_FRACTIONS = {*WEIGHTED, "brier_score", "target_loglikelihood"}


def paired(
    paths: tuple[str, str], samples: tuple[list[Sample], list[Sample]], document: Callable[[Sample], int | str]
) -> list[_Pair]:
    """Each sample of the base with the other model's sample of the same document and filter."""
    base: dict[object, list[Sample]] = {}
    other: dict[object, list[Sample]] = {}
    for file, groups in zip(samples, (base, other), strict=True):
        for sample in file:
            groups.setdefault((sample.filter, document(sample)), []).append(sample)
    unmatched = [
        (group[len(there.get(key, ())):], i)
        for i, (here, there) in enumerate(((base, other), (other, base)))
        for key, group in here.items()
        if len(group) > len(there.get(key, ()))
    ]  # fmt: skip
    if unmatched:
        _refuse_unmatched(paths, samples, unmatched)
    pairs: list[_Pair] = []
    for key, group in base.items():
        pairs += zip(group, _in_order_of(group, other[key]), strict=True)
    wrong = [(a, b) for a, b in pairs if a.target_hash and b.target_hash and a.target_hash != b.target_hash]
    if wrong:
        a, b = min(wrong, key=lambda pair: pair[0].place.line)
        got = f"doc_id {b.doc_id!r} has a different target from {a.place.words()}"
        got += f", and so have {len(wrong) - 1} more" if len(wrong) > 1 else ""
        b.place.refuse(got, "have the same")
    return sorted(pairs, key=lambda pair: pair[0].place.line)


def _in_order_of(group: list[Sample], others: list[Sample]) -> list[Sample]:
    """The samples of one document in the base's order by `doc_id`, if both have the same ids."""
    if Counter(sample.doc_id for sample in group) != Counter(sample.doc_id for sample in others):
        return others
    left: dict[int | str, list[Sample]] = {}
    for sample in reversed(others):
        left.setdefault(sample.doc_id, []).append(sample)
    return [left[sample.doc_id].pop() for sample in group]


def _refuse_unmatched(
    paths: tuple[str, str], samples: tuple[list[Sample], list[Sample]], unmatched: list[tuple[list[Sample], int]]
) -> None:
    """Raise an error that names the first sample that is in only one file."""
    (sample, *_), i = unmatched[0]
    path, other_path = paths[i], paths[1 - i]
    n_more = sum(len(group) for group, _ in unmatched) - 1
    fits = f"contain the same documents as {path}, each the same number of times"
    fits += f"; {n_more} more without a partner" if n_more else ""
    for one in samples[1 - i]:
        if (one.doc_id, one.filter) == (sample.doc_id, sample.filter) and one.doc_hash != sample.doc_hash:
            one.place.refuse(f"doc_id {one.doc_id!r} differs from the document {sample.place.words('on ')}", fits)
    got = f"has no sample for {sample.place.words()}: doc_id {sample.doc_id!r}, filter {sample.filter!r}"
    refuse(other_path, got, fits)


# -- metrics -----------------------------------------------------------------------------------------------------------


class _Clusters(NamedTuple):
    """The number of the cluster of each value, and how many clusters there are."""

    codes: IntArray
    number: int

    @classmethod
    def of(cls, names: Iterable[object]) -> _Clusters:
        """One cluster for each name."""
        numbers: dict[object, int] = {}
        codes = [numbers.setdefault(name, len(numbers)) for name in names]
        return cls(np.array(codes, np.int64), len(numbers))

    def ratio(self, values: Float64Array, weights: Float64Array) -> ExactRatio:
        """Sum of values divided by the sum of weights."""
        columns: list[Float64Array] = [values, weights]
        if self.number < values.size:
            columns = [np.bincount(self.codes, column).astype(np.float64) for column in columns]
        return ExactRatio.of(*columns)


class _Side(NamedTuple):
    """The samples of a filter in one file."""

    path: str
    samples: list[Sample]

    def stores(self, name: str) -> bool:
        """Whether any sample holds a metric."""
        return any(name in sample.metrics for sample in self.samples)

    def derives(self, name: str) -> bool:
        """Whether responses may give a metric."""
        return any(name in sample.derived for sample in self.samples)

    def first_wrong(self, name: str) -> Sample | None:
        """The first sample whose metric is not what its responses give."""
        held = (sample for sample in self.samples if name in sample.metrics and name in sample.derived)
        return next((one for one in held if one.metrics[name] != (one.derived[name], 1.0)), None)

    def why_not(self, name: str) -> str:
        """Why a metric cannot be taken from responses; "" if it can."""
        unknown = next((sample for sample in self.samples if name not in sample.derived), None)
        if unknown is not None:
            return f"{unknown.place.words()} does not show which answer is right"
        held = [checked for checked in _CHECKED if self.stores(checked) and self.derives(checked)]
        if not held:
            return f"{self.path} has no accuracy that shows which answers are right"
        if "acc" in held and name == "target_loglikelihood":
            held = ["acc"]
        wrong = next((checked for checked in held if self.first_wrong(checked)), None)
        return "" if wrong is None else f"{wrong} in {self.path} does not follow from the responses"


def metrics_of(
    paths: tuple[str, str], pairs: list[_Pair], groups: list[Any], margin: float | None, unit: str
) -> tuple[list[dict[str, Any]], dict[str, str], list[str]]:
    """Statistics of each metric, by filter; the reasons why others are left out; and notes."""
    metrics: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    notes: list[str] = []
    filters = dict.fromkeys(sample.filter for sample, _ in pairs)
    for kind in filters:
        chosen = [i for i, (sample, _) in enumerate(pairs) if sample.filter == kind]
        sides = [_Side(path, [pairs[i][k] for i in chosen]) for k, path in enumerate(paths)]
        for side, name in ((side, name) for side in sides for name in _CHECKED):
            wrong = side.first_wrong(name)
            if wrong is not None:
                notes.append(f"{name} {wrong.place.words('on ')} is not what the responses there give")
        names = [name for side in sides for sample in side.samples for name in sample.metrics]
        derived = [name for name in _DERIVED if all(side.derives(name) or side.stores(name) for side in sides)]
        for name in dict.fromkeys([*names, *derived]):
            columns, reason = _columns(name, sides)
            if reason:
                left_out[name if len(filters) == 1 else f"{name} ({kind})"] = reason
                continue
            index = np.flatnonzero(columns[:, 0, 1] >= 0)  # samples that have it
            clusters = _Clusters.of(groups[chosen[i]] for i in index)
            ids = np.empty(index.size, object)
            ids[:] = [sides[0].samples[i].doc_id for i in index]
            is_derived = not all(side.stores(name) for side in sides)
            metric = {"name": name, "filter": kind, "is_derived": is_derived, "doc_ids": ids}
            metrics.append(metric | _statistics(name, columns[index], clusters, margin, unit))
    return metrics, left_out, notes


def _columns(name: str, sides: list[_Side]) -> tuple[Float64Array, str]:
    """Values and weights of a metric, (n, 2 files, 2), with a weight of -1 where both files lack it; or why not."""
    cells: list[list[Any]] = []
    for side, opposite in zip(sides, ("other model", "base"), strict=True):
        if side.stores(name):
            column: list[Any] = [sample.metrics.get(name, (0.0, -1.0)) for sample in side.samples]
        elif name not in _DERIVED:
            return np.empty(0), f"it is only in the file of the {opposite}"
        elif reason := side.why_not(name):
            return np.empty(0), reason
        else:
            column = [(sample.derived[name], 1.0) for sample in side.samples]
        if all(cell in (None, (0.0, -1.0)) for cell in column):
            return np.empty(0), "its values are not numbers, or the metric is not their mean"
        cells.append(column)
    for *pair, a, b in zip(*cells, *(side.samples for side in sides), strict=True):
        for cell, sample in zip(pair, (a, b), strict=True):
            if cell is None:
                sample.place.refuse(f"{name} is not a number", "be one, as on other lines")
        if pair[0][1] != pair[1][1]:
            held = [f"of weight {weight:g}" if weight >= 0 else "missing" for _, weight in pair]
            b.place.refuse(f"{name} is {held[1]}", f"be {held[0]}, as {a.place.words('on ')}")
    return np.array(cells, np.float64).transpose(1, 0, 2), ""


def _statistics(
    name: str, columns: Float64Array, clusters: _Clusters, margin: float | None, unit: str
) -> dict[str, Any]:
    """Statistics of a metric; `columns` has values and weights of both files."""
    scale = -1 / math.log(2) if name == "bits_per_byte" else -1.0 if name in _PERPLEXITIES else 1.0
    base_values, other_values = (scale * columns[:, k, 0] for k in (0, 1))
    weights = columns[:, 0, 1].copy()
    with np.errstate(invalid="ignore"):  # infinite losses
        changes = other_values - base_values
    ratios = [clusters.ratio(values, weights) for values in (base_values, other_values, changes)]
    change, optional = ratios[2], dict[str, Any]()
    method: Method = "signed"
    if name in _PERPLEXITIES:
        method = "exp"
        log_ratio = Measure(change.ratio, change, unit, "signed")
        optional = {"log_ratio": log_ratio.estimate(), "ratio": log_ratio._replace(method="exp signed").estimate()}
    elif name not in _NOT_FRACTIONS and np.all((columns[..., 0] >= 0) & (columns[..., 0] <= 1)):
        method = "share"
        optional = _statistics_of_fractions(base_values, other_values, change, margin)
    measures = [Measure(ratio.ratio, ratio, unit, method, weights.size) for ratio in ratios[:2]]
    base, other = (measure.estimate() for measure in measures)
    difference, stderr = change.ratio, change.stderr
    if name in _PERPLEXITIES:
        with np.errstate(invalid="ignore", over="ignore"):
            stderr = clusters.ratio(other * other_values - base * base_values, weights).stderr
        difference = other - base
    bound, reach = optional.get("discordance_bound"), change.interval_factor * stderr
    ends = (difference - reach, difference + reach) if bound is None else (-bound, bound)
    return optional | {
        "count": weights.size,
        "n_clusters": clusters.number,
        "base": base,
        "other": other,
        "difference": Estimate(difference, (stderr, ends, unit)),
        "base_values": base_values,
        "other_values": other_values,
        "sample_weight": weights,
        "_clusters": clusters.codes,
    }


def _statistics_of_fractions(
    base: Float64Array, other: Float64Array, change: ExactRatio, margin: float | None
) -> dict[str, Any]:
    """Statistics of values between 0 and 1: flips, and whether the models differ or are equal within a margin."""
    statistics: dict[str, Any] = {}
    difference, stderr, n_clusters = change.ratio, change.stderr, change.count
    is_equal = bool(np.all(base == other))
    if np.all((base == 0) | (base == 1)) and np.all((other == 0) | (other == 1)):
        lost, won = int(np.count_nonzero(base > other)), int(np.count_nonzero(other > base))
        statistics |= {"right_to_wrong": lost, "wrong_to_right": won, "mcnemar_p": mcnemar_p(lost, won)}
    if is_equal:
        statistics["discordance_bound"] = 1 - LEVEL ** (1 / n_clusters)
    if margin is None:
        return statistics
    if is_equal:
        p = (1 - margin) ** n_clusters
    elif stderr > 0:
        p = change.tail((margin - abs(difference)) / stderr)
    else:  # the difference is the same everywhere, or there is a single document
        p = 1.0 if abs(difference) >= margin else math.nan
    return statistics | {"equivalence_p": p}
