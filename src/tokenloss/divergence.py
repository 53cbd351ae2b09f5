"""Kullback-Leibler divergence between the predictions of two models."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from tokenloss import _core, _job
from tokenloss._validation import as_other_scores, as_scores, without_targets

if TYPE_CHECKING:
    from typing import Literal

    from tokenloss._types import ArrayLike, Float64Array


@overload
def kl_divergence(
    base_logits: ArrayLike,
    logits: ArrayLike,
    *,
    reduction: Literal["none"],
    axis: int = -1,
    where: ArrayLike | None = None,
    workers: int | None = None,
) -> Float64Array: ...
@overload
def kl_divergence(
    base_logits: ArrayLike,
    logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    workers: int | None = None,
) -> float: ...
def kl_divergence(
    base_logits: ArrayLike,
    logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    reduction: str = "mean",
    workers: int | None = None,
) -> float | Float64Array:
    """Kullback-Leibler divergence of a model's predictions from those of a base model.

    For each position it is ``sum(p * (log(p) - log(q)))`` over the classes, with ``p = softmax(base_logits)`` and
    ``q = softmax(logits)``: the extra cost in nats of coding the base's tokens with the other model. One pass over
    both arrays.

    Parameters
    ----------
    base_logits, logits : arrays of one shape (..., V)
        Logits (unnormalised log-probabilities): float16, bfloat16, float32 or float64, of any byte order and memory
        layout; anything with `__dlpack__` on the CPU (torch, JAX) is read without a copy. Lists are converted.
    axis : int, default -1
        Axis of the classes.
    where : array of bool, optional
        Mask of the positions to include, broadcast over the batch; the logits of others are never read.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum by the number of included positions (nan if none is included). "none" gives the
        divergence of each position, 0.0 where masked.
    workers : int, optional
        Number of threads, as in `cross_entropy`. No bit of the result depends on it.

    Returns
    -------
    float or array of float64
        A Python float, or for "none" an array of the batch's shape, a scalar for a single row. It is never negative, 0
        for equal rows, inf where a class is possible for the base and impossible for the other model, and nan where a
        logit of either is nan or +inf.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it, what came and what fits.

    See Also
    --------
    cross_entropy : The loss of the tokens of a text.

    Notes
    -----
    Kullback and Leibler, "On information and sufficiency", 1951. Each divergence is within 2e-7 nats of the exact one
    (float64: 4e-15, relative to the larger of 1 and the logsumexp), or within a relative 1e-6 if that is more.

    Examples
    --------
    >>> from tokenloss import kl_divergence
    >>> round(kl_divergence([[2.0, 1.0, 0.0]], [[2.0, 1.0, 1.0]]), 6)
    0.053808
    """
    base = as_scores("base_logits", base_logits, axis)
    other = as_other_scores("logits", logits, base)
    positions = without_targets(base, where)
    divergences = _job.new_losses(reduction, base.batch)
    job = _core.KLDivergence(base, positions, divergences, other)
    return _job.run_and_reduce(job, divergences, reduction, workers)
