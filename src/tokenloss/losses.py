"""Losses from probabilities, log-probabilities and logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import numpy as np

from tokenloss import _arrays, _core, _workers

if TYPE_CHECKING:
    from typing import Literal, TypedDict, Unpack

    from tokenloss._arrays import ArrayLike, Float64Array

    class Options(TypedDict, total=False):
        """What every loss takes besides its reduction."""

        axis: int
        weight: ArrayLike | None
        ignore_index: int | None
        where: ArrayLike | None
        workers: int | None

    class ClippedOptions(Options, total=False):
        """And what a loss of probabilities takes."""

        epsilon: float


_TARGETS_AT_ONCE = 1 << 20  # between two looks for Ctrl-C
_ONE_SCORE = 64  # what reading a single score of a row costs, in bytes read in order


@overload
def cross_entropy_loss(
    y_true: ArrayLike, y_pred: ArrayLike, *, reduction: Literal["none"], **options: Unpack[ClippedOptions]
) -> Float64Array: ...
@overload
def cross_entropy_loss(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[ClippedOptions],
) -> float: ...
def cross_entropy_loss(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    epsilon: float = 1e-12,
    axis: int = -1,
    weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    reduction: str = "mean",
    workers: int | None = None,
) -> float | Float64Array:
    """Cross-entropy of predicted probabilities.

    The loss of a position is ``-sum(y_true * log(clip(y_pred, epsilon, 1 - epsilon)))`` over its classes, in float64
    whatever the dtypes. Only the probabilities whose target is not 0 are read.

    Parameters
    ----------
    y_true : array
        Class ids (integers, the shape of `y_pred` without its class axis), or distributions (of the shape of `y_pred`,
        any real dtype), one-hot or soft.
    y_pred : array of shape (..., V)
        Probabilities: float16, bfloat16, float32 or float64, of any byte order and layout, or anything with
        `__dlpack__` on the CPU (torch, JAX); it is not copied. Lists are converted.
    epsilon : float, default 1e-12
        How far from 0 and 1 probabilities are kept, at most 0.5.
    axis : int, default -1
        The axis of `y_pred` that holds the classes.
    weight : array of shape (V,), optional
        What each class counts for.
    ignore_index : int or None, default -100
        The class id of positions that are passed over; their rows are never read.
    where : array of bool, optional
        The positions that are kept, broadcast over the batch; the rows of others are never read.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" is the sum over the number of kept positions or, with class ids and `weight`, over the sum of their
        weights; it is nan when none is kept. "none" is the loss of each position, 0.0 where it was passed over.
    workers : int, optional
        How many threads share the rows. By default as many as `TOKENLOSS_NUM_WORKERS` says, else as the process has
        CPUs; small inputs stay on the caller's thread. No bit of the result depends on it.

    Returns
    -------
    float or array of float64
        The loss in nats: a Python float, or for "none" an array of the batch's shape. Sums are exact and rounded once,
        whatever the order of the rows.

    Raises
    ------
    IndexError
        If a kept target is no class id; the message names its position and value.
    TypeError, ValueError
        If an argument does not fit; the message names it, what came and what fits.

    See Also
    --------
    nll_loss : The same from log-probabilities.
    cross_entropy : The same from logits.

    Notes
    -----
    The argument order is that of scikit-learn's ``log_loss``, which renormalises the rows and clips elsewhere.

    Examples
    --------
    >>> from tokenloss import cross_entropy_loss
    >>> round(cross_entropy_loss([1, 0, 0], [0.7, 0.2, 0.1]), 4)
    0.3567
    >>> cross_entropy_loss([0, 2], [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], reduction="none").round(4)
    array([0.3567, 2.3026])
    """
    return fold_rows(
        _core.PROBS, "y_pred", y_pred, "y_true", y_true,
        epsilon=_arrays.clip_width(epsilon),
        axis=axis,
        weight=weight,
        ignore_index=ignore_index,
        where=where,
        reduction=reduction,
        workers=workers,
    )  # fmt: skip


@overload
def nll_loss(
    log_probs: ArrayLike, targets: ArrayLike, *, reduction: Literal["none"], **options: Unpack[Options]
) -> Float64Array: ...
@overload
def nll_loss(
    log_probs: ArrayLike, targets: ArrayLike, *, reduction: Literal["mean", "sum"] = "mean", **options: Unpack[Options]
) -> float: ...
def nll_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    reduction: str = "mean",
    workers: int | None = None,
) -> float | Float64Array:
    """Negative log-likelihood of log-probabilities.

    The loss of a position is ``-log_probs[target]``, or ``-sum(targets * log_probs)`` over its classes.

    Parameters
    ----------
    log_probs : array of shape (..., V)
        Log-probabilities: float16, bfloat16, float32 or float64, of any byte order and layout, or anything with
        `__dlpack__` on the CPU (torch, JAX); it is not copied. Lists are converted.
    targets : array
        Class ids (integers, the shape of `log_probs` without its class axis), or distributions (of the shape of
        `log_probs`, any real dtype). A share of 0 contributes 0 even where the log-probability is -inf.
    axis : int, default -1
        The axis of `log_probs` that holds the classes.
    weight : array of shape (V,), optional
        What each class counts for.
    ignore_index : int or None, default -100
        The class id of positions that are passed over; their rows are never read.
    where : array of bool, optional
        The positions that are kept, broadcast over the batch; the rows of others are never read.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" is the sum over the number of kept positions or, with class ids and `weight`, over the sum of their
        weights; it is nan when none is kept. "none" is the loss of each position, 0.0 where it was passed over.
    workers : int, optional
        How many threads share the rows. By default as many as `TOKENLOSS_NUM_WORKERS` says, else as the process has
        CPUs; small inputs stay on the caller's thread. No bit of the result depends on it.

    Returns
    -------
    float or array of float64
        The loss in nats: a Python float, or for "none" an array of the batch's shape. Sums are exact and rounded once,
        whatever the order of the rows.

    Raises
    ------
    IndexError
        If a kept target is no class id; the message names its position and value.
    TypeError, ValueError
        If an argument does not fit; the message names it, what came and what fits.

    See Also
    --------
    cross_entropy : The same from logits, which need not be normalised.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import nll_loss
    >>> round(nll_loss(np.log([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]), [0, 1]), 4)
    0.2899
    """
    return fold_rows(
        _core.LOG_PROBS, "log_probs", log_probs, "targets", targets,
        axis=axis,
        weight=weight,
        ignore_index=ignore_index,
        where=where,
        reduction=reduction,
        workers=workers,
    )  # fmt: skip


@overload
def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, reduction: Literal["none"], **options: Unpack[Options]
) -> Float64Array: ...
@overload
def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, reduction: Literal["mean", "sum"] = "mean", **options: Unpack[Options]
) -> float: ...
def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    reduction: str = "mean",
    workers: int | None = None,
) -> float | Float64Array:
    """Cross-entropy of logits, in one pass over them.

    The loss of a position is ``logsumexp(logits) - logits[target]``, or the sum of that over its classes, each times
    its share in the targets. Nothing of the size of the logits is allocated.

    Parameters
    ----------
    logits : array of shape (..., V)
        Unnormalised log-probabilities: float16, bfloat16, float32 or float64, of any byte order and layout, or anything
        with `__dlpack__` on the CPU (torch, JAX); it is not copied. Lists are converted.
    targets : array
        Class ids (integers, the shape of `logits` without its class axis), or distributions (of the shape of `logits`,
        any real dtype). A share of 0 contributes 0 even where the log-probability is -inf.
    axis : int, default -1
        The axis of `logits` that holds the classes.
    weight : array of shape (V,), optional
        What each class counts for.
    ignore_index : int or None, default -100
        The class id of positions that are passed over; their rows are never read.
    where : array of bool, optional
        The positions that are kept, broadcast over the batch; the rows of others are never read.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" is the sum over the number of kept positions or, with class ids and `weight`, over the sum of their
        weights; it is nan when none is kept. "none" is the loss of each position, 0.0 where it was passed over.
    workers : int, optional
        How many threads share the rows. By default as many as `TOKENLOSS_NUM_WORKERS` says, else as the process has
        CPUs; small inputs stay on the caller's thread. No bit of the result depends on it.

    Returns
    -------
    float or array of float64
        The loss in nats: a Python float, or for "none" an array of the batch's shape. Sums are exact and rounded once,
        whatever the order of the rows.

    Raises
    ------
    IndexError
        If a kept target is no class id; the message names its position and value.
    TypeError, ValueError
        If an argument does not fit; the message names it, what came and what fits.

    See Also
    --------
    logsumexp : The normaliser alone.
    LossMeter : Collects losses over many calls.

    Notes
    -----
    Options follow ``torch.nn.functional.cross_entropy``. Each loss is within 2e-7 nats of the exact value for the
    given logits (of float64 ones within 4e-15 of the logsumexp), and small losses are right to a relative 1e-6.

    Examples
    --------
    >>> from tokenloss import cross_entropy
    >>> cross_entropy([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], [0, 1], reduction="none").round(6)
    array([0.407606, 0.094923])
    >>> f"{cross_entropy([17.0, 0.0], 0):.3g}"
    '4.14e-08'
    """
    return fold_rows(
        _core.LOGITS, "logits", logits, "targets", targets,
        axis=axis,
        weight=weight,
        ignore_index=ignore_index,
        where=where,
        reduction=reduction,
        workers=workers,
    )  # fmt: skip


def fold_rows(
    what: int,
    scores_name: str,
    scores: Any,
    targets_name: str = "",
    targets: Any = None,
    *,
    axis: Any = -1,
    weight: Any = None,
    ignore_index: Any = None,
    where: Any = None,
    epsilon: float = 0.0,
    reduction: Any = "none",
    out: Any = None,
    workers: int | None = None,
) -> float | Float64Array:
    """Judge the input, fold each row, and reduce: what every public function does."""
    view, code = _arrays.floats(scores_name, scores)
    shape = view.shape
    axis = _arrays.class_axis(scores_name, len(shape), axis)
    batch = shape[:axis] + shape[axis + 1 :]
    classes = shape[axis]
    _arrays.reduction(reduction)
    row_bytes = classes * view.itemsize
    target_view, target_code, by_class = None, 0, False
    if targets_name:
        target_view, target_code = _arrays.class_targets(targets_name, targets, shape, batch, scores_name)
        by_class = len(target_view.shape) != len(shape)
        if not by_class:
            ignore_index = None
            row_bytes = row_bytes * (what == _core.LOGITS) + classes * target_view.itemsize
        elif what != _core.LOGITS:
            row_bytes = _ONE_SCORE
    weight_code = 0
    if weight is not None:
        weight, weight_code = _arrays.class_weight(weight, classes)
    if where is not None:
        where = _arrays.mask(where, batch)
    if ignore_index is not None:
        ignore_index = _arrays.ignored_class(ignore_index)
    if out is not None:
        out = _arrays.result_array(out, batch)
    losses: Float64Array | None = None
    if reduction == "none":
        in_place = out is not None and out.flags.c_contiguous and not np.may_share_memory(out, view)
        losses = out if in_place else np.empty(batch)
    fold = _core.Fold(
        what, view, code, axis, target_view, target_code, weight, weight_code, where, ignore_index, epsilon,
        None if losses is None else losses.reshape(-1),
    )  # fmt: skip
    if by_class:
        for start in range(0, fold.rows, _TARGETS_AT_ONCE):
            row = fold.first_bad_target(start, start + _TARGETS_AT_ONCE)
            if row >= 0:
                _arrays.fail_class(targets_name, target_view, row, classes)
    _workers.run(fold, row_bytes or 1, workers)
    if losses is not None:
        if out is None or out is losses:
            return losses
        result: Float64Array = out
        result[...] = losses
        return result
    return fold.reduced(reduction == "mean")
