"""The softmax family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenloss import _core
from tokenloss.losses import fold_rows

if TYPE_CHECKING:
    from tokenloss._arrays import ArrayLike, Float64Array


def logsumexp(
    logits: ArrayLike, *, axis: int = -1, out: Float64Array | None = None, workers: int | None = None
) -> Float64Array:
    """Logarithm of the sum of exponentials along an axis, in one pass.

    Parameters
    ----------
    logits : array of shape (..., V)
        float16, bfloat16, float32 or float64, of any byte order and layout, or anything with `__dlpack__` on the CPU
        (torch, JAX); it is not copied. Lists are converted.
    axis : int, default -1
        The axis to sum over.
    out : array of float64, optional
        Where to write the result.
    workers : int, optional
        How many threads share the rows, as in `cross_entropy`. No bit of the result depends on it.

    Returns
    -------
    array of float64
        ``log(sum(exp(logits)))`` in nats, of the shape of `logits` without `axis`; -inf where all are -inf or the axis
        is empty, nan where a logit is nan or +inf.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it, what came and what fits.

    See Also
    --------
    cross_entropy : The loss of a target, which is more than a difference from this where it is small.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import logsumexp
    >>> logsumexp(np.zeros((2, 131072), np.float16)).round(2)
    array([11.78, 11.78])
    """
    result = fold_rows(_core.LOGSUMEXP, "logits", logits, axis=axis, out=out, workers=workers)
    assert not isinstance(result, float)
    return result
