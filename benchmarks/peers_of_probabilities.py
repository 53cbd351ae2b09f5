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
from peers import EPSILON, FLOAT32, TUTORIAL, Builders, Contenders, compiled, torch_on, tutorial


def ids_with_numpy(p: Any, t: Any) -> Contenders:
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
    yield Contender("NumPy, take of a flat array, out=", tuned, FLOAT32)


def ids_with_torch(p: Any, t: Any) -> Contenders:
    """The gather, eager and compiled, and nll_loss of the logarithms of all."""
    torch = torch_on(1)
    probs, ids = torch.from_numpy(p), torch.from_numpy(t)

    def gathered(probs: Any, ids: Any) -> Any:
        return -probs.gather(1, ids[:, None]).clamp(EPSILON, 1 - EPSILON).log().mean()

    yield Contender("torch, gather", partial(gathered, probs, ids), FLOAT32)
    yield Contender("torch, nll_loss of log", lambda: torch.nn.functional.nll_loss(probs.log(), ids), FLOAT32)
    yield from compiled({"gather": gathered}, probs, ids)


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


def distributions_with_tutorial(y: Any, p: Any) -> Contenders:
    """The tutorial's function as it is."""
    yield Contender(TUTORIAL, partial(tutorial, y, p), FLOAT32)


def distributions_with_numpy(y: Any, p: Any) -> Contenders:
    """The same as a product of vectors, in memory that is there."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, "blas")
    logs = np.zeros_like(p)

    def tuned() -> Any:
        np.clip(p, EPSILON, 1 - EPSILON, out=logs)
        np.log(logs, out=logs)
        return -np.vdot(y, logs) / len(y)

    yield Contender("NumPy, vdot(y, log(clip(p))), out=", tuned, FLOAT32)


def distributions_with_torch(y: Any, p: Any) -> Contenders:
    """The tutorial's expression, eager, and compiled as a single sum, which is faster."""
    torch = torch_on(1)
    shares, probs = torch.from_numpy(y), torch.from_numpy(p)

    def by_rows(shares: Any, probs: Any) -> Any:
        return -(shares * probs.clamp(EPSILON, 1 - EPSILON).log()).sum(1).mean()

    def at_once(shares: Any, probs: Any) -> Any:
        return -(shares * probs.clamp(EPSILON, 1 - EPSILON).log()).sum() / len(y)

    yield Contender("torch, the tutorial's expression", partial(by_rows, shares, probs), FLOAT32)
    yield from compiled({"a single sum": at_once}, shares, probs)


def distributions_with_scipy(y: Any, p: Any) -> Contenders:
    """The function xlogy, which takes no logarithm where y is 0."""
    from scipy.special import xlogy

    yield Contender("SciPy, xlogy", lambda: -xlogy(y, np.clip(p, EPSILON, 1 - EPSILON)).sum() / len(y), FLOAT32)


def one_hot_with_sklearn(y: Any, p: Any) -> Contenders:
    """log_loss."""
    yield Contender("scikit-learn, log_loss", partial(log_loss_of_sklearn(), y, p), FLOAT32)


IDS: Builders = {
    "NumPy": ("numpy", ids_with_numpy),
    "torch": ("torch", ids_with_torch),
    "scikit-learn": ("scikit-learn", ids_with_sklearn),
}
SOFT: Builders = {
    TUTORIAL: ("numpy", distributions_with_tutorial),
    "NumPy": ("threadpoolctl", distributions_with_numpy),
    "torch": ("torch", distributions_with_torch),
    "SciPy": ("scipy", distributions_with_scipy),
}
ONE_HOT: Builders = {**SOFT, "scikit-learn": ("scikit-learn", one_hot_with_sklearn)}
