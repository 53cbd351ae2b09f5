"""Losses from probabilities, log-probabilities and logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from tokenloss import _core, _job
from tokenloss._projection import Projection
from tokenloss._validation import as_positions, as_scores, check_number, logit_transform, output_like, penalties

if TYPE_CHECKING:
    from typing import Literal

    from tokenloss._types import Array, ArrayLike, Float64Array, Out


@overload
def cross_entropy_loss(
    y_true: ArrayLike, y_pred: ArrayLike, *, epsilon: float = 1e-12, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None, reduction: Literal["none"],
    workers: int | None = None,
) -> Float64Array: ...  # fmt: skip
@overload
def cross_entropy_loss(
    y_true: ArrayLike, y_pred: ArrayLike, *, epsilon: float = 1e-12, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None, reduction: Literal["mean", "sum"] = "mean",
    workers: int | None = None,
) -> float: ...  # fmt: skip
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
        any real dtype; integers must be one-hot).
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
        The class id of positions that are passed over; their rows are never read. With distributions, use `where`.
    where : array of bool, optional
        The positions that are kept, broadcast over the batch; the rows of others are never read.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" is the sum over the number of kept positions or, with class ids and `weight`, over the sum of their
        weights; it is nan when none is kept. "none" is the loss of each position, 0.0 where it was passed over.
    workers : int, optional
        How many threads share the rows; -1 for as many as the process has CPUs. By default as many as
        `TOKENLOSS_NUM_WORKERS` says, else as for -1; small inputs stay on the caller's thread. No bit of the result
        depends on it.

    Returns
    -------
    float or array of float64
        The loss in nats: a Python float, or for "none" an array of the batch's shape, a scalar for a single row. Sums
        are exact and rounded once, whatever the order of the rows.

    Raises
    ------
    IndexError
        If a kept target is no class id; the message names its position and value.
    TypeError, ValueError
        If an argument does not fit; the message names it, what came and what fits. Also if a probability that is read
        lies outside [0, 1] by more than 1e-3; nearer ones are clipped.

    See Also
    --------
    nll_loss : The same from log-probabilities.
    cross_entropy : The same from logits.

    Notes
    -----
    The argument order is that of scikit-learn's ``log_loss``, which also takes N probabilities of class 1: write
    ``cross_entropy_loss(y, np.stack([1 - p, p], -1))`` for those. Rows that do not add up to 1 are taken as they are.

    Examples
    --------
    >>> from tokenloss import cross_entropy_loss
    >>> round(cross_entropy_loss([1, 0, 0], [0.7, 0.2, 0.1]), 4)
    0.3567
    >>> cross_entropy_loss([0, 2], [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], reduction="none").round(4)
    array([0.3567, 2.3026])
    """
    scores = as_scores("y_pred", y_pred, axis)
    positions = as_positions("y_true", y_true, scores, ignore_index, where, weight)
    epsilon = check_number("epsilon", epsilon, "a number between 0 and 0.5", most=0.5)
    losses = _job.new_losses(reduction, scores.batch)
    kind = _core.ClassIdLoss if positions.by_class else _core.SoftTargetLoss
    return _job.run_and_reduce(kind(scores, positions, losses, True, epsilon), losses, reduction, workers)


@overload
def nll_loss(
    log_probs: ArrayLike, targets: ArrayLike, *, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None, reduction: Literal["none"],
    workers: int | None = None,
) -> Float64Array: ...  # fmt: skip
@overload
def nll_loss(
    log_probs: ArrayLike, targets: ArrayLike, *, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None, reduction: Literal["mean", "sum"] = "mean",
    workers: int | None = None,
) -> float: ...  # fmt: skip
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
        `log_probs`, any real dtype; integers must be one-hot). A share of 0 contributes 0 even where the
        log-probability is -inf.
    axis : int, default -1
        The axis of `log_probs` that holds the classes.
    weight : array of shape (V,), optional
        What each class counts for.
    ignore_index : int or None, default -100
        The class id of positions that are passed over; their rows are never read. With distributions, use `where`.
    where : array of bool, optional
        The positions that are kept, broadcast over the batch; the rows of others are never read.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" is the sum over the number of kept positions or, with class ids and `weight`, over the sum of their
        weights; it is nan when none is kept. "none" is the loss of each position, 0.0 where it was passed over.
    workers : int, optional
        How many threads share the rows; -1 for as many as the process has CPUs. By default as many as
        `TOKENLOSS_NUM_WORKERS` says, else as for -1; small inputs stay on the caller's thread. No bit of the result
        depends on it.

    Returns
    -------
    float or array of float64
        The loss in nats: a Python float, or for "none" an array of the batch's shape, a scalar for a single row. Sums
        are exact and rounded once, whatever the order of the rows.

    Raises
    ------
    IndexError
        If a kept target is no class id; the message names its position and value.
    TypeError, ValueError
        If an argument does not fit; the message names it, what came and what fits. Also if a log-probability that is
        read is above 1e-3.

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
    scores = as_scores("log_probs", log_probs, axis)
    positions = as_positions("targets", targets, scores, ignore_index, where, weight)
    losses = _job.new_losses(reduction, scores.batch)
    kind = _core.ClassIdLoss if positions.by_class else _core.SoftTargetLoss
    return _job.run_and_reduce(kind(scores, positions, losses, False, 0.0), losses, reduction, workers)


@overload
def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None, label_smoothing: float = 0.0, z_loss: float = 0.0,
    logit_scale: float = 1.0, softcap: float | None = None, reduction: Literal["none"], workers: int | None = None,
) -> Float64Array: ...  # fmt: skip
@overload
def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None, label_smoothing: float = 0.0, z_loss: float = 0.0,
    logit_scale: float = 1.0, softcap: float | None = None, reduction: Literal["mean", "sum"] = "mean",
    workers: int | None = None,
) -> float: ...  # fmt: skip
def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
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
        any real dtype; integers must be one-hot). A share of 0 contributes 0 even where the log-probability is -inf.
    axis : int, default -1
        The axis of `logits` that holds the classes.
    weight : array of shape (V,), optional
        What each class counts for.
    ignore_index : int or None, default -100
        The class id of positions that are passed over; their rows are never read. With distributions, use `where`.
    where : array of bool, optional
        The positions that are kept, broadcast over the batch; the rows of others are never read.
    label_smoothing : float, default 0.0
        How much of each target is spread evenly over all classes, from 0 to 1.
    z_loss : float, default 0.0
        Adds ``z_loss * logsumexp**2`` to the loss of each position.
    logit_scale : float, default 1.0
        What logits are multiplied by: the inverse of a temperature.
    softcap : float, optional
        Logits become ``softcap * tanh(logit_scale * logits / softcap)``.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" is the sum over the number of kept positions or, with class ids and `weight`, over the sum of their
        weights; it is nan when none is kept. "none" is the loss of each position, 0.0 where it was passed over.
    workers : int, optional
        How many threads share the rows; -1 for as many as the process has CPUs. By default as many as
        `TOKENLOSS_NUM_WORKERS` says, else as for -1; small inputs stay on the caller's thread. No bit of the result
        depends on it.

    Returns
    -------
    float or array of float64
        The loss in nats: a Python float, or for "none" an array of the batch's shape, a scalar for a single row. Sums
        are exact and rounded once, whatever the order of the rows.

    Raises
    ------
    IndexError
        If a kept target is no class id; the message names its position and value.
    TypeError, ValueError
        If an argument does not fit; the message names it, what came and what fits.

    See Also
    --------
    logsumexp : The normaliser alone.
    token_scores : Loss, entropy, rank and more of each token.
    cross_entropy_and_grad : The loss with its gradient.
    LossMeter : Collects losses over many calls.

    Notes
    -----
    Options follow ``torch.nn.functional.cross_entropy``: the share of a class is its weight times
    ``(1 - label_smoothing) * target + label_smoothing / V``. `z_loss` is that of PaLM (Chowdhery et al.,
    arXiv:2204.02311), `softcap` that of Gemma 2 (arXiv:2408.00118); rows that are scaled or capped are worked out in
    float64. Each loss is within 2e-7 nats of the exact value for the given logits (of float64 ones within 4e-15 of the
    logsumexp), and small losses are right to a relative 1e-6.

    Examples
    --------
    >>> from tokenloss import cross_entropy
    >>> cross_entropy([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], [0, 1], reduction="none").round(6)
    array([0.407606, 0.094923])
    >>> f"{cross_entropy([17.0, 0.0], 0):.3g}"
    '4.14e-08'
    """
    scores = as_scores("logits", logits, axis)
    positions = as_positions("targets", targets, scores, ignore_index, where, weight)
    smoothing, z_loss = penalties(label_smoothing, z_loss)
    scale, cap = logit_transform(logit_scale, softcap)
    losses = _job.new_losses(reduction, scores.batch)
    job = _core.CrossEntropy(scores, positions, losses, scale, cap, smoothing, z_loss)
    return _job.run_and_reduce(job, losses, reduction, workers)


@overload
def cross_entropy_and_grad(
    logits: ArrayLike, targets: ArrayLike, *, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None, label_smoothing: float = 0.0, z_loss: float = 0.0,
    logit_scale: float = 1.0, softcap: float | None = None, reduction: Literal["none"], out: None = None,
    workers: int | None = None,
) -> tuple[Float64Array, Array]: ...  # fmt: skip
@overload
def cross_entropy_and_grad(
    logits: ArrayLike, targets: ArrayLike, *, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None, label_smoothing: float = 0.0, z_loss: float = 0.0,
    logit_scale: float = 1.0, softcap: float | None = None, reduction: Literal["none"], out: Out,
    workers: int | None = None,
) -> tuple[Float64Array, Out]: ...  # fmt: skip
@overload
def cross_entropy_and_grad(
    logits: ArrayLike, targets: ArrayLike, *, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None, label_smoothing: float = 0.0, z_loss: float = 0.0,
    logit_scale: float = 1.0, softcap: float | None = None, reduction: Literal["mean", "sum"] = "mean",
    out: None = None, workers: int | None = None,
) -> tuple[float, Array]: ...  # fmt: skip
@overload
def cross_entropy_and_grad(
    logits: ArrayLike, targets: ArrayLike, *, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None, label_smoothing: float = 0.0, z_loss: float = 0.0,
    logit_scale: float = 1.0, softcap: float | None = None, reduction: Literal["mean", "sum"] = "mean", out: Out,
    workers: int | None = None,
) -> tuple[float, Out]: ...  # fmt: skip
def cross_entropy_and_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    out: Out | None = None,
    workers: int | None = None,
) -> tuple[float | Float64Array, Array | Out]:
    """Cross-entropy of logits, and its gradient with respect to them.

    For class ids the gradient of a position's loss is ``softmax(logits) - one_hot(target)``.

    Parameters
    ----------
    logits : array of shape (..., V)
        Unnormalised log-probabilities: float16, bfloat16, float32 or float64, of any byte order and layout, or anything
        with `__dlpack__` on the CPU (torch, JAX). Lists are converted.
    targets : array
        Class ids (integers, the shape of `logits` without its class axis), or distributions (of the shape of `logits`,
        any real dtype; integers must be one-hot). A share of 0 contributes 0 even where the log-probability is -inf.
    axis : int, default -1
        The axis of `logits` that holds the classes.
    weight : array of shape (V,), optional
        What each class counts for.
    ignore_index : int or None, default -100
        The class id of positions that are passed over; their rows are never read. With distributions, use `where`.
    where : array of bool, optional
        The positions that are kept, broadcast over the batch; the rows of others are never read.
    label_smoothing : float, default 0.0
        How much of each target is spread evenly over all classes, from 0 to 1.
    z_loss : float, default 0.0
        Adds ``z_loss * logsumexp**2`` to the loss of each position.
    logit_scale : float, default 1.0
        What logits are multiplied by: the inverse of a temperature.
    softcap : float, optional
        Logits become ``softcap * tanh(logit_scale * logits / softcap)``.
    reduction : {"mean", "sum", "none"}, default "mean"
        As that of `cross_entropy`; for "none", each row of the gradient is that of its own loss.
    out : array, optional
        Where to write the gradient: a writable array of the shape and dtype of `logits`, or `logits` itself.
    workers : int, optional
        How many threads share the rows, as in `cross_entropy`. No bit of the result depends on it.

    Returns
    -------
    loss : float or array of float64
        What `cross_entropy` returns, to the last bit.
    gradient : array
        Of the shape and dtype of `logits`: `out`, if it is given. It is 0 for positions that were passed over.

    Raises
    ------
    IndexError
        If a kept target is no class id; the message names its position and value.
    TypeError, ValueError
        If an argument does not fit; the message names it, what came and what fits. Nothing has been written then,
        nor for an IndexError unless the targets changed during the call.
    ImportError
        If `logits` are bfloat16, there is no `out`, and the package ml_dtypes is not installed.

    See Also
    --------
    cross_entropy : The loss alone.

    Notes
    -----
    It is worked out in float32, or in float64 for float64 logits and wherever logits are scaled or capped, targets are
    distributions, or smoothed labels are weighted, and then rounded to the dtype of `logits`. The target's own entry
    keeps its digits where its probability is nearly 1.

    Examples
    --------
    >>> from tokenloss import cross_entropy_and_grad
    >>> loss, gradient = cross_entropy_and_grad([[2.0, 1.0, 0.0]], [0])
    >>> gradient.round(4)
    array([[-0.3348,  0.2447,  0.09  ]])
    """
    scores = as_scores("logits", logits, axis)
    positions = as_positions("targets", targets, scores, ignore_index, where, weight)
    smoothing, z_loss = penalties(label_smoothing, z_loss)
    scale, cap = logit_transform(logit_scale, softcap)
    losses = _job.new_losses(reduction, scores.batch)
    inputs = {"targets": positions.targets, "weight": positions.weight, "where": positions.where}
    gradient, view, code = output_like(scores, out, inputs)
    _job.check_targets(positions, scores)  # before anything is written
    options = scale, cap, smoothing, z_loss, view, code, reduction == "mean"
    job = _core.CrossEntropy(scores, positions, losses, *options)
    return _job.run_and_reduce(job, losses, reduction, workers), gradient


@overload
def linear_cross_entropy(
    hidden: ArrayLike, linear_weight: ArrayLike, targets: ArrayLike, *, linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None, ignore_index: int | None = -100, where: ArrayLike | None = None,
    label_smoothing: float = 0.0, z_loss: float = 0.0, logit_scale: float = 1.0, softcap: float | None = None,
    reduction: Literal["none"], workers: int | None = None,
) -> Float64Array: ...  # fmt: skip
@overload
def linear_cross_entropy(
    hidden: ArrayLike, linear_weight: ArrayLike, targets: ArrayLike, *, linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None, ignore_index: int | None = -100, where: ArrayLike | None = None,
    label_smoothing: float = 0.0, z_loss: float = 0.0, logit_scale: float = 1.0, softcap: float | None = None,
    reduction: Literal["mean", "sum"] = "mean", workers: int | None = None,
) -> float: ...  # fmt: skip
def linear_cross_entropy(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    targets: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    workers: int | None = None,
) -> float | Float64Array:
    """Cross-entropy of a projection onto the vocabulary, whose logits never exist as a whole.

    The logits are ``hidden @ linear_weight.T + linear_bias``. The product is made a tile at a time, and each tile is
    folded while it is in the cache: beside the arguments and the result no more than 16 MB is allocated, however many
    positions and classes there are.

    Parameters
    ----------
    hidden : array of shape (..., D)
        Hidden states: float16, bfloat16, float32 or float64, of any byte order and layout, or anything with
        `__dlpack__` on the CPU (torch, JAX). Lists are converted.
    linear_weight : array of shape (V, D)
        Weights of the projection onto the vocabulary, as ``torch.nn.Linear`` has them: of any of these dtypes, in C or
        Fortran order, perhaps memory-mapped; they are never copied as a whole.
    targets : array
        Class ids (integers, the shape of `hidden` without its last axis), or distributions (of shape (..., V), any real
        dtype; integers must be one-hot).
    linear_bias : array of shape (V,), optional
        Added to the logits.
    weight : array of shape (V,), optional
        What each class counts for.
    ignore_index : int or None, default -100
        The class id of positions that are passed over; their hidden states are never read. With distributions,
        use `where`.
    where : array of bool, optional
        The positions that are kept, broadcast over the batch; the hidden states of others are never read.
    label_smoothing : float, default 0.0
        How much of each target is spread evenly over all classes, from 0 to 1.
    z_loss : float, default 0.0
        Adds ``z_loss * logsumexp**2`` to the loss of each position.
    logit_scale : float, default 1.0
        What logits are multiplied by: the inverse of a temperature.
    softcap : float, optional
        Logits become ``softcap * tanh(logit_scale * logits / softcap)``.
    reduction : {"mean", "sum", "none"}, default "mean"
        As that of `cross_entropy`.
    workers : int, optional
        How many of this package's threads share the work, as in `cross_entropy`; no bit of the result depends on it.
        The products of more than 24 positions, and some of fewer, are NumPy's, whose BLAS has threads of its own: set
        their number by the BLAS's environment variable or by the package threadpoolctl. Both never work at the same
        time.

    Returns
    -------
    float or array of float64
        The loss in nats: a Python float, or for "none" an array of the batch's shape, a scalar for a single row.

    Raises
    ------
    IndexError
        If a kept target is no class id; the message names its position and value.
    TypeError, ValueError
        If an argument does not fit; the message names it, what came and what fits.

    See Also
    --------
    cross_entropy : The same from logits.
    linear_token_scores : Everything about each token of a projection.

    Notes
    -----
    Products are made in float64 if `hidden` or `linear_weight` is float64, else in float32, to which half precision
    converts exactly; the bias is rounded to that. The loss is that of the logits so made: it differs from the exact one
    by the rounding of products, and from that of another BLAS, or of the same positions in other company, by as much.
    Up to 24 positions against weights that lie row by row, in native byte order and in half precision or in the dtype
    of the product, are multiplied by kernels of this package, which read the weights once and have the same bits
    everywhere. Sums of losses are exact, as they are everywhere here.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import cross_entropy, linear_cross_entropy
    >>> rng = np.random.default_rng(0)
    >>> hidden, weight = rng.standard_normal((5, 8)), rng.standard_normal((100, 8))
    >>> targets = [3, 14, 15, 92, 65]
    >>> round(linear_cross_entropy(hidden, weight, targets), 6)
    6.154944
    >>> round(cross_entropy(hidden @ weight.T, targets), 6)
    6.154944
    """
    projection = Projection(hidden, linear_weight, linear_bias)
    scores = projection.scores
    positions = as_positions("targets", targets, scores, ignore_index, where, weight)
    smoothing, z_loss = penalties(label_smoothing, z_loss)
    scale, cap = logit_transform(logit_scale, softcap)
    losses = _job.new_losses(reduction, scores.batch)
    job = _core.CrossEntropy(scores, positions, losses, scale, cap, smoothing, z_loss)
    projection.run(job, workers)
    return _job.reduced(job, losses, reduction)
