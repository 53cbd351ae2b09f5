"""Losses from probabilities, log-probabilities and logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import numpy as np

from tokenloss._core import _core, jobs
from tokenloss._core.validation import as_positions, as_scores, check_number, loss_options, output_like

if TYPE_CHECKING:
    from typing import Literal

    from tokenloss._core.types import Array, ArrayLike, BoolArray, Float64Array, Out


@overload
def cross_entropy_loss(
    y_true: ArrayLike, y_pred: ArrayLike, *, epsilon: float = 1e-12, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, reduction: Literal["none"],
    workers: int | None = None,
) -> Float64Array: ...  # fmt: skip
@overload
def cross_entropy_loss(
    y_true: ArrayLike, y_pred: ArrayLike, *, epsilon: float = 1e-12, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, reduction: Literal["mean", "sum"] = "mean",
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
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    workers: int | None = None,
) -> float | Float64Array:
    """Compute the cross-entropy of predicted probabilities.

    The loss of a position is ``-sum(y_true * log(clip(y_pred, epsilon, 1 - epsilon)))`` over its classes.
    Logarithms have the precision of float32, or of float64 for float64; sums are float64. Only the probabilities whose
    target is not 0 are read.

    Each loss is within 2e-7 nats, and a relative 1e-7, of the exact value for the given probabilities (float64: 4e-15).

    Parameters
    ----------
    y_true : array
        Class ids (integers, in the shape of `y_pred` without its class axis), or distributions (in the shape of
        `y_pred`; integers must be one-hot). An all-zero row counts, with loss 0.
    y_pred : array of shape (..., V)
        Probabilities, in any dtype and layout that `cross_entropy` accepts: float16, bfloat16, float32 or float64.
    epsilon : float, default 1e-12
        Probabilities are clipped to ``[epsilon, 1 - epsilon]``; at most 0.5.
    axis, weight, ignore_index, where, sample_weight, reduction, workers
        As in `cross_entropy`.

    Returns
    -------
    float or array of float64
        As in `cross_entropy`.

    Raises
    ------
    IndexError, TypeError, ValueError
        As in `cross_entropy`; also if a probability that is read is outside [0, 1] by more than 1e-3. Closer ones
        are clipped.

    See Also
    --------
    nll_loss : The same from log-probabilities.
    cross_entropy : The same from logits.

    Notes
    -----
    The argument order is as in scikit-learn's ``log_loss``, which also takes N probabilities of class 1: write
    ``cross_entropy_loss(y, np.stack([1 - p, p], -1))`` for those. Rows that do not add up to 1 are used as they are.

    A scorer for scikit-learn's ``cross_val_score`` and the like, for classes 0 to C - 1, is either of the following;
    the second is for two classes, for which scikit-learn passes only the probabilities of class 1::

        make_scorer(cross_entropy_loss, response_method="predict_proba", greater_is_better=False)
        make_scorer(
            lambda y, p: cross_entropy_loss(y, np.stack([1 - p, p], -1)),
            response_method="predict_proba", greater_is_better=False,
        )

    Examples
    --------
    >>> from tokenloss import cross_entropy_loss
    >>> round(cross_entropy_loss([1, 0, 0], [0.7, 0.2, 0.1]), 4)
    0.3567
    >>> cross_entropy_loss([0, 2], [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], reduction="none").round(4)
    array([0.3567, 2.3026])
    """
    small = _core.small_nll(
        y_pred, y_true, True, epsilon, axis, weight, ignore_index, where, sample_weight, reduction, workers
    )
    if small is not None:
        return small
    scores = as_scores("y_pred", y_pred, axis)
    positions = as_positions("y_true", y_true, scores, ignore_index, where, weight, sample_weight)
    epsilon = check_number("epsilon", epsilon, "a number between 0 and 0.5", most=0.5)
    losses = jobs.new_losses(reduction, scores.batch)
    kind = _core.ClassIdLoss if positions.by_class else _core.SoftTargetLoss
    return jobs.run_and_reduce(kind(scores, positions, losses, True, epsilon), losses, reduction, workers)


@overload
def nll_loss(
    log_probs: ArrayLike, targets: ArrayLike, *, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, reduction: Literal["none"],
    workers: int | None = None,
) -> Float64Array: ...  # fmt: skip
@overload
def nll_loss(
    log_probs: ArrayLike, targets: ArrayLike, *, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, reduction: Literal["mean", "sum"] = "mean",
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
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    workers: int | None = None,
) -> float | Float64Array:
    """Compute the negative log-likelihood of log-probabilities.

    The loss of a position is ``-log_probs[target]``, or ``-sum(targets * log_probs)`` over its classes. Only the
    log-probabilities whose target is not 0 are read.

    The loss of a class id is exact; products and sums over a distribution are in float64.

    Parameters
    ----------
    log_probs : array of shape (..., V)
        Log-probabilities, in any dtype and layout that `cross_entropy` accepts: float16, bfloat16, float32 or float64.
    targets : array
        Class ids (integers, in the shape of `log_probs` without its class axis), or distributions (in the shape of
        `log_probs`), as in `cross_entropy`.
    axis, weight, ignore_index, where, sample_weight, reduction, workers
        As in `cross_entropy`.

    Returns
    -------
    float or array of float64
        As in `cross_entropy`.

    Raises
    ------
    IndexError, TypeError, ValueError
        As in `cross_entropy`; also if a log-probability that is read is above 1e-3.

    See Also
    --------
    cross_entropy : The same from logits, which are not normalized.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import nll_loss
    >>> round(nll_loss(np.log([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]), [0, 1]), 4)
    0.2899
    """
    small = _core.small_nll(
        log_probs, targets, False, 0.5, axis, weight, ignore_index, where, sample_weight, reduction, workers
    )
    if small is not None:
        return small
    scores = as_scores("log_probs", log_probs, axis)
    positions = as_positions("targets", targets, scores, ignore_index, where, weight, sample_weight)
    losses = jobs.new_losses(reduction, scores.batch)
    kind = _core.ClassIdLoss if positions.by_class else _core.SoftTargetLoss
    return jobs.run_and_reduce(kind(scores, positions, losses, False, 0.0), losses, reduction, workers)


@overload
def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0, z_loss: float = 0.0,
    logit_scale: float = 1.0, softcap: float | None = None, reduction: Literal["none"], workers: int | None = None,
) -> Float64Array: ...  # fmt: skip
@overload
def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0, z_loss: float = 0.0,
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
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    workers: int | None = None,
) -> float | Float64Array:
    """Compute the cross-entropy of logits, in one pass over them.

    The loss of a position is ``logsumexp(logits) - logits[target]`` or, for a distribution, the sum of this over its
    classes, weighted by their mass. No array of the size of the logits is allocated.

    Parameters
    ----------
    logits : array of shape (..., V)
        Logits (unnormalized log-probabilities): float16, bfloat16, float32 or float64, of any byte order and memory
        layout; anything with `__dlpack__` on the CPU (torch, JAX) is read without a copy. Lists are converted.
        Logits that look like probabilities give a `KindWarning`.
    targets : array
        Class ids (integers, in the shape of `logits` without its class axis), or distributions (in the shape of
        `logits`; integers must be one-hot). A class of mass or weight 0 adds 0, even at a log-probability of -inf. An
        all-zero target row counts, with loss 0.
    axis : int, default -1
        Axis of the classes.
    weight : array of shape (V,), optional
        Weight of each class.
    ignore_index : int or None, default -100
        Target value that marks positions to ignore (padding); their logits are never read. With distributions, use
        `where`.
    where : array of bool, optional
        Mask of the positions to include, broadcast over the batch; the logits of others are never read.
    sample_weight : array of floats, optional
        Weight of each position, broadcast over the batch: from 0 to 1e100. Positions with weight 0 are left out, as
        with `where`.
    label_smoothing : float, default 0.0
        Fraction of each target's mass that is spread evenly over all classes, from 0 to 1.
    z_loss : float, default 0.0
        Adds ``z_loss * logsumexp**2`` to the loss of each position. Class weights do not multiply it: "mean" averages
        it as if there were no class weights.
    logit_scale : float, default 1.0
        Multiplier of the logits (1 / temperature).
    softcap : float, optional
        Logits become ``softcap * tanh(logit_scale * logits / softcap)``; logits of -inf stay -inf.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum by the number of included positions; with `sample_weight`, or with `weight` and class
        ids, by the sum of their weights. It is nan if no position is included. "none" gives the loss of each position
        times its weights, 0.0 where ignored or masked.
    workers : int, optional
        Number of threads; -1 for as many as the process has CPUs. By default the environment variable
        `TOKENLOSS_NUM_WORKERS` or, without it, -1; small inputs stay on the caller's thread. The result is bitwise
        identical for any number.

    Returns
    -------
    float or array of float64
        The loss in nats: a Python float, or for "none" an array of the batch's shape, a scalar for a single row. Sums
        are exact and rounded once, whatever the order of the rows.

    Raises
    ------
    IndexError
        If an included target is out of range; the message names its position and value.
    TypeError, ValueError
        If an argument is invalid; the message names the argument, the value given and what is accepted.

    See Also
    --------
    logsumexp : Only the normalizer.
    token_scores : Loss, entropy, rank and more of each token.
    cross_entropy_and_grad : The loss with its gradient.
    LossMeter : Exact mean loss over many calls.

    Notes
    -----
    Options follow ``torch.nn.functional.cross_entropy``: the mass of a class is its weight times ``(1 -
    label_smoothing) * target + label_smoothing / V``. `z_loss` is from PaLM (Chowdhery et al., arXiv:2204.02311). As in
    Liger Kernel, class weights do not multiply it, so the scale of `weight` does not affect a mean; as in T5X,
    `sample_weight` multiplies it. `softcap` is from Gemma 2 (arXiv:2408.00118); scaled or capped rows are computed in
    float64. Each loss is within 2e-7 nats of the exact value for the given logits (float64: 4e-15, relative to the
    larger of 1, the logsumexp and the loss), and small losses have a relative error below 1e-6. A row with nan or +inf,
    or with only -inf, has loss nan, whatever its targets are.

    Examples
    --------
    >>> from tokenloss import cross_entropy
    >>> cross_entropy([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], [0, 1], reduction="none").round(6)
    array([0.407606, 0.094923])
    >>> f"{cross_entropy([17.0, 0.0], 0):.3g}"
    '4.14e-08'

    Images (N, C, H, W) with labels (N, H, W), where 255 marks pixels without a label:

    >>> import numpy as np
    >>> images, labels = np.zeros((1, 3, 2, 2)), np.array([[[0, 1], [2, 255]]])
    >>> round(cross_entropy(images, labels, axis=1, ignore_index=255), 4)
    1.0986
    """
    small = _core.small_cross_entropy(
        logits, targets, axis, weight, ignore_index, where, sample_weight,
        (label_smoothing, z_loss, logit_scale, softcap), reduction, workers,
    )  # fmt: skip
    if small is not None:
        return small
    scores = as_scores("logits", logits, axis)
    positions = as_positions("targets", targets, scores, ignore_index, where, weight, sample_weight)
    options = loss_options(label_smoothing, z_loss, logit_scale, softcap)
    losses = jobs.new_losses(reduction, scores.batch)
    jobs.warn_of_probs(positions, scores)
    job = _core.CrossEntropy(scores, positions, losses, options, reduction == "mean")
    return jobs.run_and_reduce(job, losses, reduction, workers)


@overload
def cross_entropy_and_grad(
    logits: ArrayLike, targets: ArrayLike, *, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0, z_loss: float = 0.0,
    logit_scale: float = 1.0, softcap: float | None = None, reduction: Literal["none"], out: None = None,
    workers: int | None = None,
) -> tuple[Float64Array, Array]: ...  # fmt: skip
@overload
def cross_entropy_and_grad(
    logits: ArrayLike, targets: ArrayLike, *, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0, z_loss: float = 0.0,
    logit_scale: float = 1.0, softcap: float | None = None, reduction: Literal["none"], out: Out,
    workers: int | None = None,
) -> tuple[Float64Array, Out]: ...  # fmt: skip
@overload
def cross_entropy_and_grad(
    logits: ArrayLike, targets: ArrayLike, *, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0, z_loss: float = 0.0,
    logit_scale: float = 1.0, softcap: float | None = None, reduction: Literal["mean", "sum"] = "mean",
    out: None = None, workers: int | None = None,
) -> tuple[float, Array]: ...  # fmt: skip
@overload
def cross_entropy_and_grad(
    logits: ArrayLike, targets: ArrayLike, *, axis: int = -1, weight: ArrayLike | None = None,
    ignore_index: int | None = -100, where: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0, z_loss: float = 0.0,
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
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    out: Out | None = None,
    workers: int | None = None,
) -> tuple[float | Float64Array, Array | Out]:
    """Compute the cross-entropy of logits, and its gradient with respect to them.

    For class ids the gradient of a position's loss is ``softmax(logits) - one_hot(target)``.

    Parameters
    ----------
    out : array, optional
        Array to which the gradient is written: writable, with the shape and dtype of `logits`, or `logits` itself.
    logits, targets, axis, weight, ignore_index, where, sample_weight, label_smoothing, z_loss
        As in `cross_entropy`.
    logit_scale, softcap, reduction, workers
        As in `cross_entropy`.

    Returns
    -------
    loss : float or array of float64
        Bitwise identical to what `cross_entropy` returns.
    gradient : array
        Of the shape and dtype of `logits`; it is `out` if that is given. It is 0 at positions that are ignored or
        masked. With the reduction "none", each row is the gradient of its own loss.

    Raises
    ------
    IndexError, TypeError, ValueError
        As in `cross_entropy`. In that case, nothing is written, unless the targets changed during the call.
    ImportError
        If `logits` are bfloat16, there is no `out`, and the package ml_dtypes is not installed.

    See Also
    --------
    cross_entropy : Only the loss.

    Notes
    -----
    The gradient is computed in float64 for float64 logits and wherever logits are scaled or capped, targets are
    distributions, or smoothed labels are weighted, and otherwise in float32, and is then rounded to the dtype of
    `logits`. The target's own entry keeps its relative precision where its probability is nearly 1.

    Examples
    --------
    >>> from tokenloss import cross_entropy_and_grad
    >>> loss, gradient = cross_entropy_and_grad([[2.0, 1.0, 0.0]], [0])
    >>> gradient.round(4)
    array([[-0.3348,  0.2447,  0.09  ]])
    """
    scores = as_scores("logits", logits, axis)
    positions = as_positions("targets", targets, scores, ignore_index, where, weight, sample_weight)
    options = loss_options(label_smoothing, z_loss, logit_scale, softcap)
    losses = jobs.new_losses(reduction, scores.batch)
    inputs = {name: getattr(positions, name) for name in ("targets", "weight", "sample_weight")}
    inputs["where"] = positions.mask
    gradient, view, code = output_like(scores.name, scores.array, scores.dtype, out, inputs)
    jobs.check_targets(positions, scores)  # before anything is written
    jobs.warn_of_probs(positions, scores)
    job = _core.CrossEntropy(scores, positions, losses, options, reduction == "mean", view, code)
    return jobs.run_and_reduce(job, losses, reduction, workers), gradient


def natural_logs(probs: Array, where: BoolArray | None = None) -> Float64Array:
    """The logarithms of probabilities, bitwise identical on every machine; 0 where a flat mask is False."""
    each = probs.reshape(-1, 1).astype(np.float64)
    losses = cross_entropy_loss(np.zeros(len(each), np.int8), each, epsilon=0.0, where=where, reduction="none")
    return -losses.reshape(probs.shape)
