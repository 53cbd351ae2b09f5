"""Two models compared from their hidden states: logits of projections never exist as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.columns import (
    bytes_of_bools,
    coarsen_rounding,
    new_columns,
    pair_positions,
    probability_of_rest,
    share,
    without_losses,
)
from tokenloss._comparison.comparison import Comparison, comparison_of
from tokenloss._comparison.metrics import signed_of
from tokenloss._core import _core
from tokenloss._core.arguments import further_divergences
from tokenloss._core.dtypes import dtype_name
from tokenloss._core.projection import run_pairs, two_projections
from tokenloss._core.signature import head_fields
from tokenloss._core.validation import as_positions, check_compared_classes, logit_transform
from tokenloss._scores.token_scores import token_job
from tokenloss._statistics.sequences import sequence_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._core.projection import Projection
    from tokenloss._core.types import Array, ArrayLike, Columns, Float64Array


def linear_pair_columns(
    base: Projection, others: dict[str, Projection], positions: _core.Positions, transform: tuple[float, float],
    workers: Any, divergences: Sequence[str] = (),
) -> dict[str, Columns]:  # fmt: skip
    """Flat columns of each candidate by name, over the classes of the positions if the projections have more."""
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
        pair = base, others[name]
        stored = (dtype_name(one.hidden_code, one.hidden) for one in pair)
        coarsen_rounding(columns, (one.dtype.name for one in pair), stored)
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
        job, columns = token_job(rest.scores_of_rows(), positions, transform, 0)
        rest.run(job, workers)
        logsumexp[mask] = columns["logsumexp"].reshape(-1)[mask]
    return logsumexp


def linear_compare(
    base_hidden: ArrayLike,
    base_lm_head: ArrayLike,
    hidden: ArrayLike,
    lm_head: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    base_lm_head_bias: ArrayLike | None = None,
    lm_head_bias: ArrayLike | None = None,
    classes: int | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    divergences: Sequence[str] = ("kl",),
    workers: int | None = None,
) -> Comparison:
    """Compare a model with its base from their hidden states and projections onto the vocabulary.

    It is `compare` of the logits ``base_hidden @ base_lm_head.T + base_lm_head_bias`` and ``hidden @ lm_head.T +
    lm_head_bias``, which never exist as a whole; see `linear_kl_divergence`. The same `logit_scale` and `softcap` apply
    to both models: for models that differ in these, use `compare_files`, which reads each model's ``config.json``.

    Parameters
    ----------
    base_hidden, base_lm_head, hidden, lm_head, base_lm_head_bias, lm_head_bias
        As in `linear_kl_divergence`.
    targets : array of integers, optional
        Class ids, in the shape of `hidden` without its last axis. Without targets there are divergences, but no losses.
    logit_scale, softcap
        As in `cross_entropy`, for the logits of both models.
    classes, ignore_index, where, segment_ids, cu_seqlens, divergences, workers
        As in `compare`. Hidden states of positions that are left out are never read. For divergences other than "kl",
        all tiles are computed twice.

    Returns
    -------
    Comparison
        With arrays of the batch's shape. The most likely classes are determined from the rounded products,
        before `logit_scale` and `softcap`.

    Raises
    ------
    IndexError, TypeError, ValueError
        As in `compare`.

    See Also
    --------
    compare : The same from logits.
    linear_kl_divergence : Only the divergence.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import linear_compare
    >>> rng = np.random.default_rng(0)
    >>> hidden, lm_head = rng.standard_normal((5, 8)), rng.standard_normal((100, 8))
    >>> linear_compare(hidden, lm_head, hidden, lm_head.round(1), [3, 14, 15, 92, 65])
    Comparison(mean_kl=0.001514 ± 0.000477, count=5, perplexity=462.146, base_perplexity=471.040, same_top=1.0000)
    """
    wanted = further_divergences(divergences)
    base, other = two_projections(base_hidden, base_lm_head, base_lm_head_bias, hidden, lm_head, lm_head_bias)
    sizes = base.scores.classes, other.scores.classes
    count = check_compared_classes(classes, "base_lm_head", sizes[0], "lm_head", sizes[1])
    cut, batch = base.part(slice(count)), base.scores.batch
    positions = pair_positions(targets, cut.scores, ignore_index, where)
    transform = logit_transform(logit_scale, softcap)
    numbers = sequence_numbers(segment_ids, cu_seqlens, batch)
    columns = linear_pair_columns(base, {"hidden": other}, positions, transform, workers, wanted)["hidden"]
    if targets is None:
        columns = without_losses(columns)
    if numbers is not None:
        columns["segment_ids"] = numbers
    signed = signed_of(base_hidden, hidden, targets, columns, classes, "logits") | {"kind": "hidden_states"}
    signed |= head_fields({"logit_scale": logit_scale, "softcap": softcap})
    return comparison_of("exact", columns, batch, signed)
