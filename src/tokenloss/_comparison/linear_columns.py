"""Columns of a comparison, from the hidden states of two models and their projections onto the vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.columns import bytes_of_bools, new_columns, probability_of_rest, share
from tokenloss._core import _core
from tokenloss._core.projection import run_pairs
from tokenloss._core.validation import as_positions
from tokenloss._scores.token_scores import token_job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._core.projection import Projection
    from tokenloss._core.types import Array, Columns, Float64Array


def linear_pair_columns(
    base: Projection, others: dict[str, Projection], positions: _core.Positions, transform: tuple[float, float],
    workers: Any, divergences: Sequence[str] = (),
) -> dict[str, Columns]:  # fmt: skip
    """Columns of each candidate, flat, by its name; of the classes of the positions, if the projections have more."""
    count = slice(positions.classes)
    cut, cut_others = base.part(count), [other.part(count) for other in others.values()]
    candidates = {name: new_columns(base.scores.rows, divergences) for name in others}
    jobs: list[_core.PairJob] = []
    for (name, columns), other in zip(candidates.items(), cut_others, strict=True):
        if max(base.scores.classes, others[name].scores.classes) > positions.classes:
            columns |= {sums: np.zeros(base.scores.rows) for sums in ("base_logsumexp", "logsumexp")}
        options = _core.DEFINITIONS["exact"], bytes_of_bools(columns)
        jobs.append(_core.PairStats(cut.scores, positions, other.scores, *options))
        jobs[-1].set_transform(*transform)
    run_pairs(cut, cut_others, jobs, workers)
    first: Columns = {}
    base_rest: Array | None = None
    for name, columns in candidates.items():
        if "logsumexp" in columns:
            if base_rest is None:
                base_rest = _logsumexp_from(positions.classes, base, columns["kept"], transform, workers)
            rest = _logsumexp_from(positions.classes, others[name], columns["kept"], transform, workers)
            columns["base_left_out"] = probability_of_rest(columns.pop("base_logsumexp"), base_rest)
            columns["left_out"] = probability_of_rest(columns.pop("logsumexp"), rest)
        candidates[name] = share(columns, first)
        first = first or columns
    return candidates


def _logsumexp_from(
    first: int, projection: Projection, mask: Array, transform: tuple[float, float], workers: Any
) -> Float64Array:
    """The logsumexp of the classes from the first one on, flat; -inf without classes and outside of the mask."""
    rest = projection.part(slice(first, None))
    logsumexp = np.full(rest.scores.rows, -np.inf)
    if rest.scores.classes:
        where = mask.reshape(rest.scores.batch)
        positions = as_positions("targets", np.zeros(where.shape, int), rest.scores, None, where, distributions=False)
        job, columns = token_job(rest.scores, positions, transform, 0)
        rest.run(job, workers)
        logsumexp[mask] = columns["logsumexp"].reshape(-1)[mask]
    return logsumexp
