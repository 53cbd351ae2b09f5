"""Statistics of a comparison, from its columns, which have a number for each position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tokenloss._comparison.columns import COLUMNS, HAS_TEXTS, OF_TARGETS, SEEMS_PROBS
from tokenloss._comparison.compared_tokens import group_table, included
from tokenloss._comparison.paired import (
    KL_QUANTILES,
    Mean,
    paired_metrics,
    quantile_intervals,
    quantiles,
    sequence_table,
)
from tokenloss._comparison.parity import first_places, parity_of
from tokenloss._core.arguments import FURTHER_DIVERGENCES
from tokenloss._core.dtypes import as_array, as_float_array, dtype_name
from tokenloss._core.errors import raise_error
from tokenloss._core.estimate import Errors, Estimate
from tokenloss._core.result import columns_of, places_in
from tokenloss._core.signature import IdsHash, either
from tokenloss._core.validation import check_kinds
from tokenloss._statistics.power import detectable

if TYPE_CHECKING:
    from typing import NoReturn

    from tokenloss._core.types import Array, Columns, IntArray

ValueT = TypeVar("ValueT")
_BINS = np.array([0.0, 0.2, 0.4, 0.6, 0.8])  # lower bounds of the base's confidence


class DivergencesByName(dict[str, ValueT]):
    """Values of the requested divergences other than KL, by their names."""

    def __missing__(self, name: object) -> NoReturn:
        """Refuse a divergence that was not asked for."""
        known = ", ".join(map(repr, self)) or "no others"
        raise KeyError(f"no divergence {name!r}: divergences= asked for {known} besides 'kl', which is mean_kl")


def score_metrics(columns: Columns, batch: tuple[int, ...]) -> dict[str, Any]:
    """All fields of a `Comparison` except `definitions`."""
    segment_ids: IntArray | None = columns.get("segment_ids")
    has_targets = all(name in columns for name in OF_TARGETS)
    if not has_targets:
        columns = columns | {name: np.full(columns["kl"].size, np.nan) for name in OF_TARGETS}
    index, ids = included(columns["kept"], segment_ids)
    nll, base_nll, kl, delta_p, is_same_top = (
        columns[name][index] for name in ("nll", "base_nll", "kl", "delta_p", "is_same_top")
    )
    paired, means = paired_metrics(nll, base_nll, delta_p, ids)
    divergence, same_top = Mean(kl, ids), Mean(is_same_top, ids)
    change = means.pop("delta_p")
    means |= {"kl": divergence, "delta_p": change, "same_top": same_top}
    known = (kl, nll, base_nll) if has_targets else (kl,)
    is_nan = np.any([np.isnan(column) for column in known], axis=0)
    is_infinite = np.any([np.isinf(column) for column in known], axis=0) & ~is_nan
    finite = np.isfinite(kl)
    finite_mean = divergence if finite.all() else Mean(kl[finite], None if ids is None else ids[finite])
    ordered = np.sort(kl)
    left_out = {
        name: Mean(columns[name][index], None).mean if name in columns else None
        for name in ("base_left_out", "left_out")
    }
    further = {name: columns[name][index] for name in FURTHER_DIVERGENCES if name in columns}
    means |= {name: Mean(values, ids) for name, values in further.items()}
    intervals = quantile_intervals(kl, ordered, KL_QUANTILES, ids, divergence)
    unit = divergence.measure().unit
    sequences = None if segment_ids is None else sequence_table(means)
    if sequences is not None:
        sequences |= first_places(columns, sequences["sequence"])
    return {
        "has_targets": has_targets,
        "mean_kl": divergence.measure().estimate(),
        "finite_mean_kl": finite_mean.measure().estimate(),
        "n_infinite": int(np.count_nonzero(is_infinite)),
        "n_nan": int(np.count_nonzero(is_nan)),
        "kl_quantiles": {
            at: Estimate(value, Errors(interval=intervals[at], unit=unit)) if at in intervals else value
            for at, value in quantiles(ordered, KL_QUANTILES).items()
        },
        "same_top": same_top.measure("share").estimate(),
        "divergences": DivergencesByName({name: means[name].measure().estimate() for name in further}),
        "divergence_quantiles": DivergencesByName(
            {name: quantiles(np.sort(values), KL_QUANTILES) for name, values in further.items()}
        ),
        "token_divergences": DivergencesByName({name: columns[name].reshape(batch) for name in further}),
        "sequences": sequences,
        "_segment_ids": segment_ids,
        **left_out,
        **paired,
        **parity_of(columns),
        **{name: columns[name].reshape(batch) for name in COLUMNS},
    }


def signed_of(
    base_logits: Any, logits: Any, targets: Any, columns: Columns, classes: int | None, kind: Any, base_kind: Any = None
) -> dict[str, Any]:
    """Fields of the signature of a comparison that depend on its scores and targets; those of blocks are merged.

    Without segment ids, each element of the first axis of the targets is a sequence.
    """
    kept, numbers = columns["kept"], columns.get("segment_ids")
    base_kind, kind = check_kinds(base_kind, kind)
    arrays = {"logits": logits, "base_logits": base_logits}
    dtype, base_dtype = (dtype_name(code, array) for array, code in (as_float_array(*one) for one in arrays.items()))
    signed: dict[str, Any] = {"kind": either(kind, base_kind), "dtype": either(dtype, base_dtype)}
    signed |= {"ignored": int(np.count_nonzero(~kept))} | ({} if classes is None else {"classes": str(classes)})
    if numbers is None and as_float_array("logits", logits)[0].ndim > 2:
        signed[HAS_TEXTS] = 1
    if SEEMS_PROBS in columns:
        signed[SEEMS_PROBS] = 1  # no field of the signature: it voids gates
    if targets is not None:
        ids, _ = as_array("targets", targets)
        rows = numbers if numbers is not None or ids.ndim < 2 else places_in(ids.shape)["sequence"]
        hashed = IdsHash.of(ids.reshape(-1)[kept], None if rows is None else rows[kept])
        signed["ids"] = hashed.only(() if numbers is None else None)
    return signed


def confidence_table(comparison: Any) -> dict[str, Array]:
    """The table of groups by the bins of the base's confidence."""
    confidence = comparison.base_top_p
    bins = np.searchsorted(_BINS, confidence, side="right") - 1
    table = group_table(comparison, bins, comparison.kept & ~np.isnan(confidence))
    return table | {"group": _BINS[table["group"]]}


def difference_table(a: Any, b: Any) -> dict[str, Array]:
    """Columns of a table of the differences b - a between the statistics of two models with one base."""
    for one in (a, b):
        if not hasattr(one, "mean_kl"):
            fits = "a Comparison of scores, which have the whole divergence"
            raise_error("type", name="a candidate", got=type(one).__name__, fits=fits)
    for name in ("kept", "_segment_ids", "base_nll", "base_top_p"):
        mine, theirs = getattr(a, name), getattr(b, name)
        if mine is not theirs and not np.array_equal(mine, theirs, equal_nan=name.startswith("base")):
            raise_error("not for", name="difference", fits="is for candidates that are compared at the same tokens")
    kept, ids = a.kept, a._segment_ids
    ids = None if ids is None else ids.reshape(kept.shape)[kept]
    rows: list[dict[str, Any]] = []
    arrays = {"kl": (a.kl, b.kl), "loss": (a.nll, b.nll), "same_top": (a.is_same_top, b.is_same_top)}
    further = a.token_divergences, b.token_divergences
    arrays |= {name: (array, further[1][name]) for name, array in further[0].items() if name in further[1]}
    for metric, pair in arrays.items():
        values = [array[kept].astype(np.float64) for array in pair]
        with np.errstate(invalid="ignore"):  # infinite losses
            mean = Mean(values[1] - values[0], ids)
        reach = a.interval_factor * mean.stderr
        row = {"figure": metric} | {name: Mean(one, None).mean for name, one in zip("ab", values, strict=True)}
        row |= {"difference": mean.mean, "stderr": mean.stderr}
        row |= {"low": mean.mean - reach, "high": mean.mean + reach}
        rows.append(row | {"detectable": detectable(mean.measure("signed").estimate())})
    return columns_of(rows)
