"""Parity: whether a model is bitwise equal to its base, differs within the noise, drifts from it, or is broken."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core.text import count_of
from tokenloss._statistics.sequences import places_of

if TYPE_CHECKING:
    from tokenloss._core.types import Array, Columns, IntArray

SAME_BITS, WITHIN_NOISE, DRIFT, BROKEN = "same bits", "within noise", "drift", "broken"
COLUMNS = "kept", "nll", "base_nll", "kl", "is_same_top", "base_margin", "margin", "rounding", "is_identical"
_UNRELATED = 1.0  # nats: a median divergence above it is no rounding of the base
_OUTLIER = 4.0, 1000.0  # a row is broken if its divergence exceeds both: nats, and multiples of the median
_NOISE = 2.0, 10.0  # multiples of a second run's mean divergence, and of its largest one, which are still noise
_PRECISION = 1e-9  # nats to which divergences near 0 are known


def parity_of(columns: Columns, noise: Any = None) -> dict[str, Any]:
    """The fields of parity, from columns of all positions; `noise` is the comparison of a second run of the base.

    Where the base's margin is nan, it is unknown whether a flip is a tie.
    """
    own, kept = {name: columns[name] for name in COLUMNS}, columns["kept"]
    if not kept.all():
        own = {name: column[kept] for name, column in own.items()}
    kl, is_identical, flips = own["kl"], own["is_identical"], np.flatnonzero(~own["is_same_top"])
    second = "" if noise is None or noise.parity == BROKEN else "a second run"
    margins = own["base_margin"][flips]
    n_ties = int(np.count_nonzero(margins <= np.maximum(own["rounding"][flips], _reach(noise) if second else 0.0)))
    n_unknown = int(np.count_nonzero(np.isnan(margins)))
    n_decisive = flips.size - n_ties - n_unknown
    if not kl.size:
        verdict = "", ""
    elif is_identical.all():
        verdict = SAME_BITS, f"in all {count_of(kl.size, 'row')}"
    elif words := _damage(columns, kl):
        verdict = BROKEN, words
    else:
        source = second or "rounding"
        if n_decisive:
            verdict = (
                DRIFT,
                f"{count_of(n_decisive, 'decisive flip')}: the base's margin exceeds any change from {source}",
            )
        elif not _is_as_far(kl, own["rounding"], noise if second else None):
            verdict = DRIFT, f"divergences are larger than those of {source}"
        elif n_unknown:
            verdict = (
                "",
                f"{count_of(n_unknown, 'flip')} without a margin, and divergences no larger than those of {source}",
            )
        else:
            verdict = WITHIN_NOISE, f"no decisive flip, and divergences no larger than those of {source}"
    return {
        "n_identical": int(np.count_nonzero(is_identical)),
        "max_abs_logprob": _largest_change(own["nll"], own["base_nll"]),
        "tied_flips": n_ties,
        "decisive_flips": n_decisive,
        "unknown_flips": n_unknown,
        "parity": verdict[0],
        "parity_reason": verdict[1] + ("" if noise is None or second else "; the second run is broken itself"),
    }


def with_noise(comparison: Any, noise: Any) -> Any:
    """The comparison, whose parity is judged by the comparison of a second run of the base."""
    return replace(comparison, **parity_of(comparison._parity_columns(), noise))


def _is_as_far(kl: Array, rounding: Array, noise: Any) -> bool:
    """Whether divergences are as small as those from rounding or from a second run of the base."""
    with np.errstate(over="ignore"):  # of logits that are enormous
        limits = rounding**2 / 2 + _PRECISION  # Hoeffding's lemma, if no logit changes by more than its rounding
    mean = float(limits.mean())
    if noise is not None:
        mean = max(mean, _NOISE[0] * vars(noise)[f"mean_{noise._divergence}"])
        limits = np.maximum(limits, _NOISE[1] * _largest(noise._kl))
    return bool(kl.mean() <= mean and (kl <= limits).all())


def _largest_change(nll: Array, base_nll: Array) -> float:
    """The largest absolute difference of losses, 0 for equal infinite ones; nan if any is nan, or without losses."""
    with np.errstate(invalid="ignore", over="ignore"):
        largest = np.abs(nll - base_nll).max() if nll.size else np.nan
        if not np.isfinite(largest):
            largest = np.where(nll == base_nll, 0.0, np.abs(nll - base_nll)).max() if nll.size else np.nan
    return float(largest)


def first_places(columns: Columns, sequences: IntArray) -> Columns:
    """For each of these sequences, the first positions whose scores and whose likeliest classes differ, or -1."""
    ids, position = places_of(columns["segment_ids"]).values()
    tables: Columns = {}
    for name, same in (("first_difference", "is_identical"), ("first_flip", "is_same_top")):
        mask = columns["kept"] & ~columns[same] & (ids >= 0)
        first = np.full(sequences.size, position.size)
        np.minimum.at(first, np.searchsorted(sequences, ids[mask]), position[mask])
        tables[name] = np.where(first < position.size, first, -1)
    return tables


def _reach(noise: Any) -> float:
    """The largest change of the difference between the base's two most likely classes in a second run."""
    with np.errstate(invalid="ignore"):
        return _largest(np.abs(noise.margin - noise.base_margin)[noise.kept])


def _largest(values: Array) -> float:
    """The largest finite value; 0 without finite values."""
    return float(values[np.isfinite(values)].max(initial=0.0))


def _damage(columns: Columns, kl: Array) -> str:
    """Why a model is broken, judging by its divergences, where nan counts as infinite; "" if it is not."""
    if kl.max() <= _UNRELATED:  # without sorting
        return ""
    kl = np.where(np.isnan(kl), np.inf, kl)
    median, worst = float(np.median(kl)), int(np.argmax(kl))
    if median > _UNRELATED:
        return f"the median divergence is {median:.3g} nats: most predictions are others"
    if kl[worst] <= max(_OUTLIER[0], _OUTLIER[1] * median):
        return ""
    row = np.flatnonzero(columns["kept"])[worst]
    place, ids = f"row {row}", columns.get("segment_ids")
    if ids is not None and ids[row] >= 0:
        sequence, position = (column[row] for column in places_of(ids).values())
        place = f"position {position} of sequence {sequence}"
    return f"{place} has a divergence of {kl[worst]:.3g} nats, the median is {median:.2g}"
