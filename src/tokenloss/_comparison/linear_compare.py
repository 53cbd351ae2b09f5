"""Two models compared from their hidden states: logits of projections never exist as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenloss._comparison.columns import pair_positions, without_losses
from tokenloss._comparison.comparison import Comparison, comparison_of
from tokenloss._comparison.figures import signed_of
from tokenloss._comparison.linear_columns import linear_pair_columns
from tokenloss._core.arguments import further_divergences
from tokenloss._core.projection import two_projections
from tokenloss._core.signature import head_fields
from tokenloss._core.validation import check_compared_classes, logit_transform
from tokenloss._statistics.sequences import sequence_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._core.types import ArrayLike


def linear_compare(
    base_hidden: ArrayLike,
    base_lm_head: ArrayLike,
    hidden: ArrayLike,
    lm_head: ArrayLike,
    targets: ArrayLike | None,
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

    It is `compare` of the logits ``base_hidden @ base_lm_head.T + base_lm_head_bias`` and
    ``hidden @ lm_head.T + lm_head_bias``, which never exist as a whole; see `linear_kl_divergence`.
    Both models have one `logit_scale` and one `softcap`: of models that differ in these, use `compare_files`, which
    reads each model's ``config.json``.

    Parameters
    ----------
    base_hidden : array of shape (..., D)
        Hidden states of the base model: float16, bfloat16, float32 or float64, of any byte order and memory layout, or
        anything with `__dlpack__` on the CPU (torch, JAX). Lists are converted.
    base_lm_head : array of shape (V, D)
        Its projection onto the vocabulary, as the weight of ``torch.nn.Linear``: of any of these dtypes, in C or
        Fortran order, perhaps memory-mapped. It is never copied as a whole.
    hidden, lm_head : arrays of shape (..., E) and (V, E)
        The same of the other model, whose hidden states may have another size.
    targets : array of integers or None
        Class ids, of the shape of `hidden` without its last axis. With None there are divergences, but no losses.
    base_lm_head_bias, lm_head_bias : arrays of shape (V,), optional
        Biases of the projections.
    classes : int, optional
        Number of classes to compare, from the first, where vocabularies differ, as in `compare`.
    ignore_index : int or None, default -100
        Target value that marks positions to ignore (padding); their hidden states are never read.
    where : array of bool, optional
        Mask of the positions to include, broadcast over the batch; the hidden states of others are never read.
    segment_ids : array of integers, optional
        Number of the sequence of each position, broadcast over the batch, in any order: standard errors are then
        clustered by sequence. Positions of negative numbers belong to no sequence: each is a group of its own.
    cu_seqlens : array of integers, optional
        Bounds of packed sequences, such as [0, 7, 12] for two of 7 and 5 positions of ``targets.ravel()``.
    logit_scale : float, default 1.0
        Multiplier of the logits of both models (1 / temperature).
    softcap : float, optional
        Logits of both models become ``softcap * tanh(logit_scale * logits / softcap)``; logits of -inf stay -inf.
    divergences : sequence of {"kl", "reverse_kl", "js", "tv", "hellinger"}, default ("kl",)
        Divergences of each position, as `kl_divergence` defines them. "kl" is always computed: the others need its
        logsumexps. For those beside it, all tiles are computed twice.
    workers : int, optional
        Number of threads, as in `cross_entropy`. No bit of the result depends on it.

    Returns
    -------
    Comparison
        With arrays of the batch's shape. The most likely classes are those of the logits as the products round them,
        before `logit_scale` and `softcap`.

    Raises
    ------
    IndexError
        If an included target is out of range; the message names its position and value.
    TypeError, ValueError
        If an argument is invalid; the message names it, what came and what fits.

    See Also
    --------
    compare : The same from logits.
    linear_kl_divergence : The divergence alone.

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
