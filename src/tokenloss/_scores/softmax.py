"""softmax, log_softmax and logsumexp."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from tokenloss._core import _core, jobs
from tokenloss._core.dtypes import as_float_array
from tokenloss._core.validation import check_axes, check_out, output_like, without_targets

if TYPE_CHECKING:
    import numpy.typing as npt

    from tokenloss._core.types import Array, ArrayLike, Axes, Float64Array, Out, Scalar


@overload
def softmax(logits: ArrayLike, *, axis: Axes = -1, out: Out, workers: int | None = None) -> Out: ...
@overload
def softmax(
    logits: npt.NDArray[Scalar], *, axis: Axes = -1, out: None = None, workers: int | None = None
) -> npt.NDArray[Scalar]: ...
@overload
def softmax(logits: ArrayLike, *, axis: Axes = -1, out: None = None, workers: int | None = None) -> Array: ...
def softmax(logits: ArrayLike, *, axis: Axes = -1, out: Any = None, workers: int | None = None) -> Any:
    """Compute the probabilities of logits along one axis or several.

    Parameters
    ----------
    axis : int, tuple of int or None, default -1
        Axis of the classes; several axes, or None for all axes, are treated as one.
    out : array, optional
        Array to which the result is written: writable, with the shape and dtype of `logits`, or `logits` itself.
    logits, workers
        As in `cross_entropy`.

    Returns
    -------
    array
        ``exp(logits) / sum(exp(logits))``, with the shape and dtype of `logits`; `out`, if given. Rows
        with a nan or +inf, and rows with only -inf, become nan.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, as in `cross_entropy`.
    ImportError
        If `logits` are bfloat16, there is no `out`, and the package ml_dtypes is not installed.

    See Also
    --------
    log_softmax : Its logarithm.

    Notes
    -----
    Each probability is within a relative 5e-7 of the exact value (4 units of 2^-23), or within 5e-45 if that is more,
    as for subnormal values. For float64 the relative error is at most 5e-15 times the largest of 1, the logsumexp and
    ``-log(probability)``. In half precision the result is then rounded once more.

    Examples
    --------
    >>> from tokenloss import softmax
    >>> softmax([[2.0, 1.0, 0.0]]).round(4)
    array([[0.6652, 0.2447, 0.09  ]])
    """
    return _softmax(False, logits, axis, out, workers)


@overload
def log_softmax(logits: ArrayLike, *, axis: Axes = -1, out: Out, workers: int | None = None) -> Out: ...
@overload
def log_softmax(
    logits: npt.NDArray[Scalar], *, axis: Axes = -1, out: None = None, workers: int | None = None
) -> npt.NDArray[Scalar]: ...
@overload
def log_softmax(logits: ArrayLike, *, axis: Axes = -1, out: None = None, workers: int | None = None) -> Array: ...
def log_softmax(logits: ArrayLike, *, axis: Axes = -1, out: Any = None, workers: int | None = None) -> Any:
    """Compute the log-probabilities of logits along one axis or several.

    Parameters
    ----------
    logits, workers
        As in `cross_entropy`.
    axis, out
        As in `softmax`.

    Returns
    -------
    array
        ``logits - logsumexp(logits)`` in nats, with the shape and dtype of `logits`; `out`, if given.
        Rows with a nan or +inf, and rows with only -inf, become nan.

    Raises
    ------
    TypeError, ValueError, ImportError
        As in `softmax`.

    See Also
    --------
    nll_loss : The loss of log-probabilities.
    cross_entropy : The loss of logits, which is faster where the log-probabilities serve no other purpose.

    Notes
    -----
    Each log-probability is within 2e-7 nats of the exact value, times its own magnitude if that is above 1; for
    float64, within 5e-15 times the largest of 1, the logsumexp and that size. In half precision the result is then
    rounded once more. Near 0, `cross_entropy` and `class_log_probs` also keep the relative precision.

    Examples
    --------
    >>> from tokenloss import log_softmax
    >>> log_softmax([[2.0, 1.0, 0.0]]).round(4)
    array([[-0.4076, -1.4076, -2.4076]])
    """
    return _softmax(True, logits, axis, out, workers)


def logsumexp(
    logits: ArrayLike,
    *,
    axis: Axes = -1,
    out: Float64Array | None = None,
    keepdims: bool = False,
    workers: int | None = None,
) -> Float64Array:
    """Compute the logarithm of the sum of exponentials along one axis or several, in one pass.

    Parameters
    ----------
    axis : int, tuple of int or None, default -1
        Axis to sum over; several, or None for all of them.
    out : array of float64, optional
        Array to write the result to, of the same shape as the result.
    keepdims : bool, default False
        Whether to keep the axes that are summed over, with length 1.
    logits, workers
        As in `cross_entropy`.

    Returns
    -------
    array of float64
        ``log(sum(exp(logits)))`` in nats, in the shape of `logits` without `axis`, a scalar if that is a single number;
        -inf where all are -inf or the axis is empty, nan where a logit is nan or +inf.

    Raises
    ------
    TypeError, ValueError
        As in `cross_entropy`.

    See Also
    --------
    cross_entropy : The loss of a target; where it is small, it is more precise than a difference from logsumexp.

    Notes
    -----
    The result is within 2e-7 nats of the exact value (float64: 4e-15, relative to the larger of 1 and the result). Near
    0, where one class outweighs the others, the relative error is below 1e-6 (float64: 2e-14): `[0, -40]` gives
    4.25e-18. `TokenScores.logsumexp` may differ in its last digits, within these errors.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import logsumexp
    >>> logsumexp(np.zeros((2, 131072), np.float16)).round(2)
    array([11.78, 11.78])
    """
    small = None if keepdims or out is not None else _core.small_logsumexp(logits, axis, workers)
    if small is not None:
        return small
    array, code = as_float_array("logits", logits)
    axes = check_axes("logits", array.ndim, axis)
    scores = _scores_along(array, code, axes)
    shape = tuple(1 if i in axes else n for i, n in enumerate(array.shape)) if keepdims else scores.batch
    result = np.zeros(shape) if out is None else check_out(out, shape)
    in_place = result.flags.carray and not np.may_share_memory(result, array)
    numbers = result.reshape(scores.batch) if in_place else np.zeros(scores.batch)
    jobs.warn_of_probs(positions := without_targets(scores), scores)
    jobs.run(_core.LogSumExp(scores, positions, numbers), workers)
    if not in_place:
        result[...] = numbers.reshape(shape)
    if out is not None:
        return out  # itself, whatever its class
    scalar: Float64Array = result[()] if result.ndim == 0 else result
    return scalar


def _softmax(is_log: bool, logits: Any, axis: Any, out: Any, workers: Any) -> Any:
    """Softmax or its logarithm, in `out` if that is given."""
    small = None if out is not None else _core.small_softmax(is_log, logits, axis, workers)
    if small is not None:
        return small
    array, code = as_float_array("logits", logits)
    axes = check_axes("logits", array.ndim, axis)
    result, view, result_code = output_like("logits", array, code, out, {})
    scores, to = _scores_along(array, code, axes), view if len(axes) == 1 else _with_axes_last(view, axes)
    jobs.warn_of_probs(positions := without_targets(scores), scores)
    jobs.run(_core.Softmax(scores, positions, None, is_log, to, result_code), workers)
    if not np.may_share_memory(to, view):
        moved = np.moveaxis(view, axes, range(-len(axes), 0))
        moved[...] = to.reshape(moved.shape)
    return result


def _scores_along(array: Array, code: int, axes: tuple[int, ...]) -> _core.Scores:
    """Scores whose classes are along some axes."""
    if len(axes) == 1:
        return _core.Scores("logits", array, code, axes[0], array.shape)
    rows = _with_axes_last(array, axes)
    return _core.Scores("logits", rows, code, rows.ndim - 1, rows.shape)


def _with_axes_last(array: Array, axes: tuple[int, ...]) -> Array:
    """The array with some axes moved to the end and merged: a view if the layout allows it, else a copy."""
    moved = np.moveaxis(array, axes, range(-len(axes), 0))
    rows: Array = moved.reshape(*moved.shape[: moved.ndim - len(axes)], math.prod(array.shape[i] for i in axes))
    return rows
