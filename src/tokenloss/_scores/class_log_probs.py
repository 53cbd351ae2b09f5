"""Log-probabilities of some classes of each position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tokenloss._core import _core, jobs, threads
from tokenloss._core.dtypes import as_array, dtype_name, is_integer
from tokenloss._core.errors import raise_bad_class, raise_error
from tokenloss._core.validation import as_scores, broadcast, logit_transform, without_targets

if TYPE_CHECKING:
    from tokenloss._core.types import ArrayLike, Float64Array


def class_log_probs(
    logits: ArrayLike,
    class_ids: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    workers: int | None = None,
) -> Float64Array:
    """Compute the log-probabilities of some classes at each position, in one pass over the logits.

    The classes may be the answers to a multiple-choice question, or candidates for the next token. Probabilities are
    normalized over all V classes; `log_softmax` of the result along its last axis normalizes them over the K classes.

    Parameters
    ----------
    class_ids : array of integers, of shape (K,) or (..., K)
        Class ids: the same K for all positions, or K for each position, in the batch's shape followed by K (or
        broadcast to it). Ids may repeat.
    logits, axis, where, logit_scale, softcap, workers
        As in `cross_entropy`.

    Returns
    -------
    array of float64
        Log-probabilities in nats, in the batch's shape followed by K, for any `axis`; nan where masked. For the
        likeliest of a position's `class_ids` (in a tie, the lowest id), the result is bitwise identical to minus the
        loss of `cross_entropy`. Equal logits have equal results, and a larger logit never has a smaller result. -inf
        where a logit is -inf; nan in rows with a nan or +inf, and in rows with only -inf.

    Raises
    ------
    IndexError
        If a class id of an included position is out of range; the message names its position and value.
    TypeError, ValueError
        As in `cross_entropy`.

    See Also
    --------
    cross_entropy : The loss of one class of each position.
    log_softmax : Log-probabilities of all classes.

    Notes
    -----
    Each result is within 2e-7 nats of the exact value (float64: 4e-15, relative to the larger of 1 and the logsumexp);
    results near 0 are within a relative 1e-6.

    Examples
    --------
    Two questions, whose answers A, B, C and D are the tokens 3, 4, 5 and 6:

    >>> import numpy as np
    >>> from tokenloss import class_log_probs
    >>> logits = np.array([[0, 1, 0, 5, 2, 1, 3], [0, 0, 2, 1, 1, 4, 2]], np.float32)  # after "Answer: "
    >>> answers = class_log_probs(logits, [3, 4, 5, 6])
    >>> answers.round(4)
    array([[-0.2113, -3.2113, -4.2113, -2.2113],
           [-3.3414, -3.3414, -0.3414, -2.3414]])
    >>> ["ABCD"[best] for best in answers.argmax(-1)]
    ['A', 'C']
    """
    scores = as_scores("logits", logits, axis)
    ids = _as_class_ids(class_ids, scores.batch)
    positions = without_targets(scores, where)
    transform = logit_transform(logit_scale, softcap)
    result = np.zeros((*scores.batch, ids.shape[-1]))
    rows = np.broadcast_to(ids.astype(np.int64, copy=False), result.shape)
    job = _core.ClassLogProbs(scores, positions, *transform, rows, result.reshape(-1))
    jobs.warn_of_probs(positions, scores)
    threads.run(job, threads.check_workers(workers))
    if job.has_refused:
        _raise_refusal(job, ids)
    return result


def _as_class_ids(value: Any, batch: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A copy of the class ids, which no other thread can change."""
    array, code = as_array("class_ids", value, "an integer")
    shape = (*batch, "K")
    fits = "(K,)" + f" or ({', '.join(map(str, shape))}), or broadcast to it" * bool(batch) + ", to fit logits"
    try:
        np.broadcast_to(array, (*batch, *array.shape[-1:]))
    except ValueError:
        raise_error("shape", name="class_ids", got=array.shape, fits=fits)
    if array.ndim == 0:
        raise_error("shape", name="class_ids", got=(), fits=fits)
    broadcast("class_ids", array, batch, array.shape[-1:])
    if array.size == 0 and isinstance(value, list | tuple):  # an empty list has no dtype of its own
        return array.astype(np.int64)
    if not is_integer(code, array):
        raise_error("dtype", name="class_ids", got=dtype_name(code, array), fits="integer")
    return np.array(array, order="C")


def _raise_refusal(job: _core.ClassLogProbs, ids: np.ndarray[Any, Any]) -> NoReturn:
    """Raise that a class id is out of range."""
    _, row, k, _ = job.refusal()
    index = np.unravel_index(row * job.count + k, (*job.scores.batch, job.count))[-ids.ndim :]
    # where ids are broadcast, their own index is named
    position = [0 if length == 1 else int(i) for i, length in zip(index, ids.shape, strict=True)]
    raise_bad_class("class_ids", ids, position, job.scores.classes)
