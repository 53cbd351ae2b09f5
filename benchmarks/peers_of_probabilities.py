"""Other libraries' ways to the mean cross-entropy of probabilities, as in `peers`: of class ids and of distributions.

Each function yields contenders for probabilities `p` and targets `t` (class ids) or `y` (one-hot or soft).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from harness import Contender
from peers import FLOAT32, Builders, Contenders

EPSILON = 1e-12
TUTORIAL = "the tutorial's function"


def tutorial(y_true: Any, y_pred: Any, epsilon: float = EPSILON) -> Any:
    """The function as tutorials have it: the mean over rows, or the sum for a single one."""
    y_pred = np.clip(y_pred, epsilon, 1 - epsilon)
    if y_pred.ndim == 1:
        return -np.sum(y_true * np.log(y_pred))
    return np.mean(-np.sum(y_true * np.log(y_pred), axis=1))


def ids_with_numpy(p: Any, t: Any, _workers: int = 1) -> Contenders:
    """The gather of the textbook, and the same from a flat array into memory that is there."""
    rows = np.arange(len(p), dtype=np.int64)
    starts, index, losses = rows * p.shape[1], np.zeros_like(rows), np.zeros(len(p), p.dtype)

    def written() -> Any:
        return -np.log(np.clip(p[rows, t], EPSILON, 1 - EPSILON)).mean()

    def tuned() -> Any:
        np.add(starts, t, out=index)
        p.ravel().take(index, out=losses, mode="clip")  # other modes go through a buffer
        np.clip(losses, EPSILON, 1 - EPSILON, out=losses)
        np.log(losses, out=losses)
        return -losses.mean()

    yield Contender("NumPy, -log(clip(p[n, t])).mean()", written, FLOAT32)
    yield Contender("NumPy, take of a flat array, out=", tuned, FLOAT32, holds=index.nbytes + losses.nbytes)


def ids_with_torch(p: Any, t: Any, workers: int = 1) -> Contenders:
    """The gather, and nll_loss of the logarithms of all."""
    import torch
    from torch.nn.functional import nll_loss

    torch.set_num_threads(workers)
    probs, ids = torch.from_numpy(p), torch.from_numpy(t)

    def gathered() -> Any:
        return -probs.gather(1, ids[:, None]).clamp(EPSILON, 1 - EPSILON).log().mean()

    yield Contender("torch, gather", gathered, FLOAT32)
    yield Contender("torch, nll_loss of log", lambda: nll_loss(probs.log(), ids), FLOAT32)


def log_loss_of_sklearn() -> Callable[..., Any]:
    """scikit-learn's log_loss, without its search for nan."""
    from sklearn import config_context
    from sklearn.metrics import log_loss

    def call(y: Any, p: Any, labels: Any = None) -> Any:
        with warnings.catch_warnings(), config_context(assume_finite=True):
            warnings.simplefilter("ignore")  # about rows whose sum is not 1 to the last digit
            return log_loss(y, p, labels=labels)

    return call


def ids_with_sklearn(p: Any, t: Any) -> Contenders:
    """log_loss, which is told the labels."""
    call = partial(log_loss_of_sklearn(), t, p, np.arange(p.shape[1]))
    yield Contender("scikit-learn, log_loss", call, FLOAT32)


def one_thread_of_blas() -> None:
    """Have NumPy's products of vectors run on one thread, as everything else of NumPy's does."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, "blas")


def distributions_with_tutorial(y: Any, p: Any) -> Contenders:
    """The tutorial's function as it is."""
    yield Contender(TUTORIAL, partial(tutorial, y, p), FLOAT32)


def distributions_with_numpy(y: Any, p: Any) -> Contenders:
    """The same as a product of vectors, in memory that is there."""
    one_thread_of_blas()
    logs = np.zeros_like(p)

    def tuned() -> Any:
        np.clip(p, EPSILON, 1 - EPSILON, out=logs)
        np.log(logs, out=logs)
        return -np.vdot(y, logs) / len(y)

    yield Contender("NumPy, vdot(y, log(clip(p))), out=", tuned, FLOAT32, holds=logs.nbytes)


def distributions_with_torch(y: Any, p: Any) -> Contenders:
    """The tutorial's expression."""
    import torch

    torch.set_num_threads(1)
    shares, probs = torch.from_numpy(y), torch.from_numpy(p)
    call = partial(_expression_of_torch, shares, probs)
    yield Contender("torch, the tutorial's expression", call, FLOAT32)


def _expression_of_torch(shares: Any, probs: Any) -> Any:
    """The tutorial's, over tensors."""
    return -(shares * probs.clamp(EPSILON, 1 - EPSILON).log()).sum(1).mean()


def distributions_with_scipy(y: Any, p: Any) -> Contenders:
    """xlogy, which takes no logarithm where y is 0."""
    from scipy.special import xlogy

    yield Contender("SciPy, xlogy", lambda: -xlogy(y, np.clip(p, EPSILON, 1 - EPSILON)).sum() / len(y), FLOAT32)


def one_hot_with_sklearn(y: Any, p: Any) -> Contenders:
    """log_loss."""
    yield Contender("scikit-learn, log_loss", partial(log_loss_of_sklearn(), y, p), FLOAT32)


IDS: Builders = {"NumPy": ("numpy", ids_with_numpy), "torch": ("torch", ids_with_torch)}
IDS_AND_SKLEARN: Builders = {**IDS, "scikit-learn": ("scikit-learn", ids_with_sklearn)}
_SOFT: Builders = {
    TUTORIAL: ("numpy", distributions_with_tutorial),
    "NumPy": ("threadpoolctl", distributions_with_numpy),
    "torch": ("torch", distributions_with_torch),
    "SciPy": ("scipy", distributions_with_scipy),
}
BY_KIND: dict[str, Builders] = {
    "onehot": {**_SOFT, "scikit-learn": ("scikit-learn", one_hot_with_sklearn)},
    "soft": _SOFT,
}


def divergence_with_numpy(p: Any, q: Any) -> Contenders:
    """The sum of the definition, by rows that stay in cache."""
    step = max(1, (1 << 16) // p.shape[1])
    ratio = np.zeros((step, p.shape[1]), p.dtype)

    def tuned() -> float:
        total = 0.0
        for start in range(0, len(p), step):
            part = p[start : start + step]
            out = ratio[: len(part)]
            np.divide(part, q[start : start + step], out=out)
            np.log(out, out=out)
            total += float(np.einsum("ij,ij->i", part, out).sum(dtype=np.float64))
        return total / len(p)

    yield Contender("NumPy, divide, log, einsum", tuned, FLOAT32, holds=ratio.nbytes)


def divergence_with_scipy(p: Any, q: Any) -> Contenders:
    """rel_entr."""
    from scipy.special import rel_entr

    yield Contender("SciPy, rel_entr", lambda: rel_entr(p, q).sum(-1).mean(dtype=np.float64), FLOAT32)


DIVERGENCE: Builders = {"NumPy": ("numpy", divergence_with_numpy), "SciPy": ("scipy", divergence_with_scipy)}
