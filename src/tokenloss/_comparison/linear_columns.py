"""Columns of a comparison, from the hidden states of two models and their projections onto the vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.columns import bytes_of_bools, new_columns, share, share_of_rest
from tokenloss._core import _core
from tokenloss._core.projection import run_pairs
from tokenloss._core.validation import as_positions
from tokenloss._scores.token_scores import token_job

if TYPE_CHECKING:
    from tokenloss._core.projection import Projection
    from tokenloss._core.types import Array, Columns, Float64Array


def linear_pair_columns(
    base: Projection,
    others: dict[str, Projection],
    positions: _core.Positions,
    transform: tuple[float, float],
    workers: Any,
) -> dict[str, Columns]:
    """Columns of each candidate, flat, by its name; of the classes of the positions, if the projections have more."""
    count = slice(positions.classes)
    cut, cut_others = base.part(count), [other.part(count) for other in others.values()]
    found = {name: new_columns(base.scores.rows) for name in others}
    jobs: list[_core.PairJob] = []
    leaves_out = {name: max(base.scores.classes, of.scores.classes) > positions.classes for name, of in others.items()}
    for (name, columns), other in zip(found.items(), cut_others, strict=True):
        if leaves_out[name]:
            columns |= {sums: np.zeros(base.scores.rows) for sums in ("base_logsumexp", "logsumexp")}
        options = _core.DEFINITIONS["exact"], bytes_of_bools(columns)
        jobs.append(_core.PairStats(cut.scores, positions, other.scores, *options))
        jobs[-1].set_transform(*transform)
    run_pairs(cut, cut_others, jobs, workers)
    first: Columns = {}
    base_rest: Array | None = None
    for name, columns in found.items():
        if leaves_out[name]:
            if base_rest is None:
                base_rest = _logsumexp_from(positions.classes, base, columns["kept"], transform, workers)
            rest = _logsumexp_from(positions.classes, others[name], columns["kept"], transform, workers)
            columns["base_left_out"] = share_of_rest(columns.pop("base_logsumexp"), base_rest)
            columns["left_out"] = share_of_rest(columns.pop("logsumexp"), rest)
        found[name] = share(columns, first)
        first = first or columns
    return found


def _logsumexp_from(
    first: int, of: Projection, kept: Array, transform: tuple[float, float], workers: Any
) -> Float64Array:
    """The logsumexp of the classes from this one on, flat; -inf where there are none, or the position is not kept."""
    rest = of.part(slice(first, None))
    found = np.full(rest.scores.rows, -np.inf)
    if rest.scores.classes:
        mask = kept.reshape(rest.scores.batch)
        positions = as_positions("targets", np.zeros(mask.shape, int), rest.scores, None, mask, distributions=False)
        job, columns = token_job(rest.scores, positions, transform, 0)
        rest.run(job, workers)
        found[kept] = columns["logsumexp"].reshape(-1)[kept]
    return found
