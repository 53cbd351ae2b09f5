"""Losses, statistics of tokens and comparisons from hidden states: logits of projections never exist as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from tokenloss._core import _core, jobs
from tokenloss._core.errors import raise_error
from tokenloss._core.projection import Projection, run_pairs, two_projections
from tokenloss._core.validation import as_positions, logit_transform, loss_options, without_targets
from tokenloss._scores.divergence import DivergenceJob
from tokenloss._scores.token_scores import TokenScores, token_job

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from tokenloss._core.types import ArrayLike, Float64Array
    from tokenloss._scores.divergence import Divergences


@overload
def linear_cross_entropy(
    hidden: ArrayLike, lm_head: ArrayLike, targets: ArrayLike, *, lm_head_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None, ignore_index: int | None = -100, where: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, label_smoothing: float = 0.0, z_loss: float = 0.0,
    logit_scale: float = 1.0, softcap: float | None = None, reduction: Literal["none"], workers: int | None = None,
) -> Float64Array: ...  # fmt: skip
@overload
def linear_cross_entropy(
    hidden: ArrayLike, lm_head: ArrayLike, targets: ArrayLike, *, lm_head_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None, ignore_index: int | None = -100, where: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, label_smoothing: float = 0.0, z_loss: float = 0.0,
    logit_scale: float = 1.0, softcap: float | None = None, reduction: Literal["mean", "sum"] = "mean",
    workers: int | None = None,
) -> float: ...  # fmt: skip
def linear_cross_entropy(
    hidden: ArrayLike,
    lm_head: ArrayLike,
    targets: ArrayLike,
    *,
    lm_head_bias: ArrayLike | None = None,
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
    """Compute the cross-entropy of a projection onto the vocabulary, whose logits are never all in memory at once.

    The logits are ``hidden @ lm_head.T + lm_head_bias``. The product is computed tile by tile, and each tile is reduced
    while it is in the cache: at most 16 MB is allocated in addition to the arguments and the result, however many
    positions and classes there are.

    Parameters
    ----------
    hidden : array of shape (..., D)
        Hidden states: float16, bfloat16, float32 or float64, of any byte order and memory layout, or anything with
        `__dlpack__` on the CPU (torch, JAX). Lists are converted.
    lm_head : array of shape (V, D)
        The projection onto the vocabulary, as the weight of ``torch.nn.Linear``: of any of these dtypes, in C or
        Fortran order, perhaps memory-mapped. It is never copied as a whole.
    targets : array
        Class ids (integers, in the shape of `hidden` without its last axis), or distributions (of shape (..., V)), as
        in `cross_entropy`.
    lm_head_bias : array of shape (V,), optional
        Bias of the projection.
    weight, ignore_index, where, sample_weight, label_smoothing, z_loss, logit_scale, softcap, reduction, workers
        As in `cross_entropy`. Hidden states of positions that are left out are never read.

    Returns
    -------
    float or array of float64
        The loss in nats: a Python float, or for "none" an array of the batch's shape, a scalar for a single row.

    Raises
    ------
    IndexError, TypeError, ValueError
        As in `cross_entropy`.

    See Also
    --------
    cross_entropy : The same from logits.
    linear_token_scores : Loss, entropy, rank and more of each token of a projection.

    Notes
    -----
    The product is computed in float64 if `hidden` or `lm_head` is float64, else in float32, to which half precision
    converts exactly; the bias is rounded to that dtype. The loss is computed from these logits: it differs from the
    exact one by the rounding of the product, which another BLAS, or another batch of the positions, may change. Up to
    1024 classes, it has the bits of `cross_entropy` of these logits, unless they overflow when they are scaled.

    Up to 24 positions are multiplied by kernels of this package, which read the weight once and whose results are
    bitwise identical on every machine, if the rows of the weight are contiguous, in native byte order, and in half
    precision or the dtype of the product. If more than 24 positions with such rows and the weight are in bfloat16, they
    are multiplied by the instructions of AMX or AVX512_BF16, if the machine has one of them (see `show_config`):
    their digits differ from the BLAS's, and they treat subnormal numbers as 0. All other products are NumPy's, whose
    BLAS has its own threads: their number is set by the BLAS's environment variable or by the package threadpoolctl.
    These threads and `workers` never run at the same time.

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
    projection = Projection(hidden, lm_head, lm_head_bias)
    scores = projection.scores_of_rows()
    positions = as_positions("targets", targets, scores, ignore_index, where, weight, sample_weight)
    options = loss_options(label_smoothing, z_loss, logit_scale, softcap)
    losses = jobs.new_losses(reduction, scores.batch)
    job = _core.CrossEntropy(scores, positions, losses, options, reduction == "mean")
    projection.run(job, workers)
    return jobs.reduced(job, losses, reduction)


def linear_token_scores(
    hidden: ArrayLike,
    lm_head: ArrayLike,
    targets: ArrayLike,
    *,
    lm_head_bias: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    top_k: int = 0,
    workers: int | None = None,
) -> TokenScores:
    """Compute the loss, entropy, rank and most likely classes of each token of a projection onto the vocabulary.

    The logits ``hidden @ lm_head.T + lm_head_bias`` never exist as a whole; see `linear_cross_entropy`.

    Parameters
    ----------
    hidden, lm_head, lm_head_bias
        As in `linear_cross_entropy`.
    targets : array of integers
        Class ids, in the shape of `hidden` without its last axis.
    top_k : int, default 0
        Number of most likely classes to list.
    ignore_index, where, logit_scale, softcap, workers
        As in `cross_entropy`. Hidden states of positions that are left out are never read.

    Returns
    -------
    TokenScores
        With arrays of the batch's shape. `rank`, `argmax` and the order of `top_ids` are determined from the rounded
        products, before `logit_scale` and `softcap`.

    Raises
    ------
    IndexError, TypeError, ValueError
        As in `cross_entropy`.

    See Also
    --------
    token_scores : The same from logits.

    Notes
    -----
    Classes whose logits differ by less than the rounding of the product may swap places with another BLAS.

    Examples
    --------
    >>> from tokenloss import linear_token_scores
    >>> weight = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    >>> scores = linear_token_scores([[2.0, 1.0], [0.0, 3.0]], weight, [0, 1], top_k=2)
    >>> scores.top_ids
    array([[2, 0],
           [1, 2]])
    """
    projection = Projection(hidden, lm_head, lm_head_bias)
    scores = projection.scores_of_rows()
    positions = as_positions("targets", targets, scores, ignore_index, where, distributions=False)
    job, columns = token_job(scores, positions, logit_transform(logit_scale, softcap), top_k)
    projection.run(job, workers)
    return TokenScores(**columns)


@overload
def linear_kl_divergence(
    base_hidden: ArrayLike, base_lm_head: ArrayLike, hidden: ArrayLike, lm_head: ArrayLike, *,
    base_lm_head_bias: ArrayLike | None = None, lm_head_bias: ArrayLike | None = None, where: ArrayLike | None = None,
    logit_scale: float = 1.0, softcap: float | None = None, reduction: Literal["none"], divergences: None = None,
    workers: int | None = None,
) -> Float64Array: ...  # fmt: skip
@overload
def linear_kl_divergence(
    base_hidden: ArrayLike, base_lm_head: ArrayLike, hidden: ArrayLike, lm_head: ArrayLike, *,
    base_lm_head_bias: ArrayLike | None = None, lm_head_bias: ArrayLike | None = None, where: ArrayLike | None = None,
    logit_scale: float = 1.0, softcap: float | None = None, reduction: Literal["mean", "sum"] = "mean",
    divergences: None = None, workers: int | None = None,
) -> float: ...  # fmt: skip
@overload
def linear_kl_divergence(
    base_hidden: ArrayLike, base_lm_head: ArrayLike, hidden: ArrayLike, lm_head: ArrayLike, *,
    divergences: Sequence[str], base_lm_head_bias: ArrayLike | None = None, lm_head_bias: ArrayLike | None = None,
    where: ArrayLike | None = None, logit_scale: float = 1.0, softcap: float | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean", workers: int | None = None,
) -> Divergences: ...  # fmt: skip
def linear_kl_divergence(
    base_hidden: ArrayLike,
    base_lm_head: ArrayLike,
    hidden: ArrayLike,
    lm_head: ArrayLike,
    *,
    base_lm_head_bias: ArrayLike | None = None,
    lm_head_bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    divergences: Sequence[str] | None = None,
    workers: int | None = None,
) -> float | Float64Array | Divergences:
    """Compute the Kullback-Leibler divergence of two models from hidden states and projections onto the vocabulary.

    It is `kl_divergence` of the logits ``base_hidden @ base_lm_head.T + base_lm_head_bias`` and
    ``hidden @ lm_head.T + lm_head_bias``, which never exist as a whole: both products are computed tile by tile, and
    two tiles are reduced together while they are in the cache. At most 32 MB is allocated in addition to the arguments
    and the result.

    There are no targets to mark padding, so padding counts unless `where` leaves it out.

    Parameters
    ----------
    base_hidden, base_lm_head : arrays of shape (..., D) and (V, D)
        Hidden states of the base model and its projection onto the vocabulary, in any dtype and layout that
        `linear_cross_entropy` accepts.
    hidden, lm_head : arrays of shape (..., E) and (V, E)
        The same for the other model, whose hidden states may have another size.
    base_lm_head_bias, lm_head_bias : arrays of shape (V,), optional
        Biases of the projections.
    logit_scale, softcap
        As in `cross_entropy`, for the logits of both models.
    divergences : sequence of {"kl", "reverse_kl", "js", "tv", "hellinger"}, optional
        The divergences to return by name, as in `kl_divergence`. For divergences other than "kl", all tiles are
        computed twice.
    reduction
        As in `kl_divergence`.
    where, workers
        As in `compare`. Hidden states of positions that are left out are never read.

    Returns
    -------
    float, array of float64, or Divergences
        As for `kl_divergence`: never negative, and exactly 0 if both models are the same.

    Raises
    ------
    TypeError, ValueError
        As in `cross_entropy`.

    See Also
    --------
    kl_divergence : The same from logits.
    linear_compare : Also losses, and the metrics that are published for quantized models.

    Notes
    -----
    Each product is computed in its own dtype, as in `linear_cross_entropy`, and the divergence is computed from these
    logits.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import kl_divergence, linear_kl_divergence
    >>> rng = np.random.default_rng(0)
    >>> hidden, lm_head = rng.standard_normal((5, 8)), rng.standard_normal((100, 8))
    >>> rounded = lm_head.astype(np.float16)
    >>> round(linear_kl_divergence(hidden, lm_head, hidden, rounded) * 1e6, 4)
    0.1759
    >>> round(kl_divergence(hidden @ lm_head.T, hidden @ rounded.astype(float).T) * 1e6, 4)
    0.1759
    """
    base, other = two_projections(base_hidden, base_lm_head, base_lm_head_bias, hidden, lm_head, lm_head_bias)
    if base.scores.classes != other.scores.classes:
        least = min(base.scores.classes, other.scores.classes)
        larger = "lm_head" if other.scores.classes > least else "base_lm_head"
        fits = f"({base.scores.classes}, {other.hidden.shape[-1]}): as many classes as base_lm_head has"
        fits += f"; pass {larger}[:{least}], or linear_compare(..., classes={least})"
        raise_error("shape", name="lm_head", got=other.weight.shape, fits=fits)
    positions, transform = without_targets(base.scores, where), logit_transform(logit_scale, softcap)
    job = DivergenceJob(base.scores, positions, other.scores, reduction, divergences)
    job.job.set_transform(*transform)
    run_pairs(base, [other], [job.job], workers)
    return job.result()
