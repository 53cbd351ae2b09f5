"""Power and tiers: the differences that could have been detected, and which of several candidates differ."""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._comparison.paired import Mean
from tokenloss._core.estimate import Estimate
from tokenloss._core.result import Table
from tokenloss._core.rows import Row, table_of_several
from tokenloss._statistics.power import detectable, holm, needed_for
from tokenloss._statistics.ratio import ExactRatio
from tokenloss.formats.samples import WEIGHTED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tokenloss._core.types import BoolArray, Float64Array, IntArray

_LEVEL = 0.05
_LESS_IS_BETTER = {"loss", "kl", "perplexity", "brier_score", *WEIGHTED}


class Quantity(NamedTuple):
    """A quantity of a candidate that others have, too, and its paired difference from the base.

    `keys` are its task, its name and its filter; `ids` the numbers of sequences, negative outside of any, and `weights`
    those of samples.
    """

    keys: tuple[str, str, str]
    difference: Estimate | None
    n: int  # the number of independent parts
    values: Float64Array
    mask: BoolArray
    ids: IntArray | None
    weights: Float64Array | None = None

    def minus(self, other: Quantity) -> ExactRatio | None:
        """The mean of its values minus those of another candidate; None if their tokens or samples differ."""
        for mine, theirs in ((self.ids, other.ids), (self.weights, other.weights)):
            if mine is not theirs and (mine is None or theirs is None or not np.array_equal(mine, theirs)):
                return None
        if self.values.shape != other.values.shape or not self.values.size:  # groups of tasks have none
            return None
        mask = self.mask & other.mask
        with np.errstate(invalid="ignore"):  # infinite losses
            changes = self.values[mask] - other.values[mask]
        if self.weights is None or self.ids is None:
            return Mean(changes, None if self.ids is None else self.ids[mask])._independent
        sums = (np.bincount(self.ids, column).astype(np.float64) for column in (changes, self.weights))
        return ExactRatio.of(*sums)


def _quantities(one: Any) -> Iterator[Quantity]:
    """The quantities of a comparison: mean losses and divergences, metrics of samples, bits per byte, or k1."""
    for field, name in ("difference", "bits per byte"), ("k1", "k1"):  # of texts and of trainers, without tiers
        if isinstance(change := vars(one).get(field), Estimate):
            n = one.n_spans if field == "difference" else one.count
            if one.is_clustered:
                n = one.n_documents if field == "difference" else one.n_sequences
            yield Quantity(("", name, ""), change, n, np.empty(0), np.empty(0, np.bool_), None)
    for metric in (*one.metrics, *one.groups) if hasattr(one, "metrics") else ():
        keys = metric.task or "", metric.name, metric.filter
        change = metric.difference if metric.log_ratio is None else metric.log_ratio
        mask = np.ones(metric.other_values.shape, np.bool_)
        yield Quantity(
            keys, change, metric.n_clusters, metric.other_values, mask, metric._clusters, metric.sample_weight
        )
    if hasattr(one, "log_perplexity_ratio") and not hasattr(one, "metrics"):
        count = one.n_sequences if one.is_clustered else one.count
        tokens = one.kept.reshape(-1), one._segment_ids
        if getattr(one, "has_targets", True):
            yield Quantity(("", "loss", ""), one.log_perplexity_ratio, count, one.nll.reshape(-1), *tokens)
        if one._divergence == "kl":
            yield Quantity(("", "kl", ""), None, count, one.kl.reshape(-1), *tokens)


def power_table(comparisons: Mapping[str, Any], difference: float | None) -> list[dict[str, Any]]:
    """For each candidate and quantity, the smallest detectable difference, and the number of texts for a given one."""
    rows = []
    for name, one in comparisons.items():
        for quantity in _quantities(one):
            if (change := quantity.difference) is None:
                continue
            needed = {} if difference is None else {"needed": needed_for(change, quantity.n, difference)}
            row = {"name": name, **_keys(quantity), "difference": float(change), "detectable": detectable(change)}
            rows.append(row | {"n": quantity.n} | needed)
    return rows


def tiers_of(comparisons: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each quantity that several candidates have: their tiers, as lists of names, the best first."""
    by_keys: dict[tuple[str, str, str], dict[str, Quantity]] = {}
    for name, one in comparisons.items():
        for quantity in _quantities(one):
            by_keys.setdefault(quantity.keys, {})[name] = quantity
    several = [[*own.items()] for own in by_keys.values() if len(own) > 1]
    return [{**_keys(own[0][1]), "tiers": tiers} for own in several if (tiers := _tiers(dict(own)))]


def _keys(quantity: Quantity) -> dict[str, str]:
    """The cells that name a quantity."""
    return dict(zip(("task", "metric", "filter"), quantity.keys, strict=True))


def _tiers(quantities: Mapping[str, Quantity]) -> list[list[str]]:
    """The tiers of candidates: all maximal sets in which no two differ; empty if any two have different tokens."""
    pairs, p_values = [*combinations(quantities, 2)], []
    totals = dict.fromkeys(quantities, 0.0)
    for a, b in pairs:
        if (change := quantities[a].minus(quantities[b])) is None:
            return []
        mean, stderr = change.ratio, change.stderr
        totals[a] += mean
        totals[b] -= mean
        is_known = math.isfinite(mean) and math.isfinite(stderr)
        p_values.append(2 * change.tail(abs(mean) / stderr if stderr else math.inf) if is_known and mean else 1.0)
    sets = [frozenset(quantities)]
    for (a, b), p in zip(pairs, holm(p_values), strict=True):
        if p < _LEVEL:  # no set may have both (Piepho, Journal of Computational and Graphical Statistics 13, 2004)
            split = [part for one in sets for part in ([one - {a}, one - {b}] if {a, b} <= one else [one])]
            sets = [one for one in {*split} if not any(one < other for other in split)]
    sign = 1 if next(iter(quantities.values())).keys[1] in _LESS_IS_BETTER else -1
    order = sorted(quantities, key=lambda name: (math.isnan(totals[name]), sign * totals[name]))
    return sorted((sorted(one, key=order.index) for one in sets), key=lambda one: [*map(order.index, one)])


_METRIC = (Row("task", "task"), Row("metric", "label"))
_POWER = (
    Row("model", "name", when="is_one_of_several"),
    *_METRIC,
    Row("difference", "difference", "{:+.4g}"),
    Row("detectable", "detectable", "{known:.3g}"),
    Row("n", "n", "{:,}"),
    Row("needed", "needed", "{:,}"),
)


def power_and_tiers(comparisons: Mapping[str, Any], difference: float | None) -> list[Table]:
    """The tables of both."""
    title = "Detectable with a probability of 80 %, by a test at 5 %"
    title += "" if difference is None else f", and texts or questions needed for {difference:g}"
    power, tiers = power_table(comparisons, difference), tiers_of(comparisons)
    filters = {row["filter"] for row in power}
    for row in (*power, *tiers):
        row["label"] = f"{row['metric']} ({row['filter']})" if len(filters) > 1 else row["metric"]
        row["is_one_of_several"] = len(comparisons) > 1
    tables = [table_of_several(_POWER, [(row,) for row in power], title, keep_empty=False)]
    texts = [(row | {"text": " > ".join(map(" = ".join, row["tiers"]))},) for row in tiers]
    columns = *_METRIC, Row("tiers", "text")
    tables.append(table_of_several(columns, texts, "Tiers, by Holm's correction at 5 %", keep_empty=False))
    return [one for one in tables if one.rows]
