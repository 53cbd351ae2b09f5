"""Other libraries' ways to the mean cross-entropy of logits that are stored class by class, as in `peers`.

Networks that segment images return such logits, here of shape (images, classes, pixels). Short rows may be transposed
into this layout, part by part: NumPy and torch then reduce whole vectors instead of a few numbers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import peers
from harness import Contender
from peers import FLOAT32, HALF, Builders, Contenders, as_float32, rows_at_once, tensor
from peers_of_probabilities import TUTORIAL, tutorial

TRANSPOSED_UP_TO = 512  # classes


def planes_with_numpy(x: Any, targets: Any) -> Contenders:
    """The stable formula along the second axis, and the same by parts that stay in cache."""

    def written() -> Any:
        shifted = x - x.max(axis=1, keepdims=True)
        picked = np.take_along_axis(shifted, targets[:, None], 1)[:, 0]
        return (np.log(np.exp(shifted).sum(axis=1)) - picked).mean()

    yield Contender("NumPy", written, FLOAT32)
    yield _numpy_by_parts("NumPy", x, targets)


def planes_with_scipy(x: Any, targets: Any) -> Contenders:
    """The function logsumexp along the second axis."""
    from scipy.special import logsumexp

    def call() -> Any:
        return (logsumexp(x, axis=1) - np.take_along_axis(x, targets[:, None], 1)[:, 0]).mean()

    yield Contender("SciPy, logsumexp", call, FLOAT32)


def planes_with_torch(x: Any, targets: Any) -> Contenders:
    """cross_entropy, which takes its classes from the second axis, at once and by parts that stay in cache."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(1)
    logits, ids = tensor(x), torch.from_numpy(targets)
    yield Contender("torch", lambda: cross_entropy(logits, ids), FLOAT32)
    yield _torch_by_parts("torch", logits, ids)


def rows_with_numpy(x: Any, targets: Any) -> Contenders:
    """Rows as they are, and transposed."""
    yield from peers.with_numpy(x, targets, 1)
    if x.shape[1] <= TRANSPOSED_UP_TO:
        yield _numpy_by_parts("NumPy, transposed", x.T[None], targets[None])


def rows_with_tutorial(x: Any, targets: Any) -> Contenders:
    """The tutorial's function of one-hot targets and of a softmax, as tutorials have that, too."""
    logits = as_float32(x)
    y_true = np.zeros_like(logits)
    y_true[np.arange(len(x)), targets] = 1

    def call() -> Any:
        exps = np.exp(logits - logits.max(axis=1, keepdims=True))
        return tutorial(y_true, exps / exps.sum(axis=1, keepdims=True))

    yield Contender(f"{TUTORIAL}, of a softmax", call, FLOAT32)


def rows_with_scipy(x: Any, targets: Any) -> Contenders:
    """Rows as they are."""
    return peers.with_scipy(x, targets, 1)


def rows_with_torch(x: Any, targets: Any) -> Contenders:
    """Rows as they are, and transposed."""
    import torch

    yield from peers.with_torch(x, targets, 1)
    if x.shape[1] <= TRANSPOSED_UP_TO:
        yield _torch_by_parts("torch, transposed", tensor(x).T[None], torch.from_numpy(targets)[None])


def rows_with_sklearn(x: Any, targets: Any) -> Contenders:
    """The loss that LogisticRegression minimises; it takes three classes or more, and no half precision."""
    from sklearn._loss import HalfMultinomialLoss

    if x.shape[1] > 2 and x.itemsize > 2:
        y_true, losses = targets.astype(x.dtype), np.zeros(len(x), x.dtype)
        call = partial(HalfMultinomialLoss(n_classes=x.shape[1]).loss, y_true, x, loss_out=losses)
        yield Contender("scikit-learn, HalfMultinomialLoss", lambda: call().mean(), FLOAT32, holds=losses.nbytes)


def _numpy_by_parts(name: str, x: Any, targets: Any) -> Contender:
    """The stable formula over parts of the planes, in memory that is there."""
    at_once = min(rows_at_once(x), x.shape[2])
    flat = np.zeros(x.shape[1] * at_once, as_float32(x[:0]).dtype)
    losses, columns = np.zeros(targets.shape, flat.dtype), np.arange(at_once)

    def of_part(planes: Any, ids: Any, loss: Any) -> None:
        terms = flat[: planes.size].reshape(planes.shape)
        if planes.strides[1] != planes.itemsize or planes.dtype != flat.dtype:
            np.copyto(terms, planes)  # contiguous, and no half precision
            planes = terms
        np.subtract(planes, planes.max(axis=0), out=terms)
        picked = terms[ids, columns[: len(ids)]]
        np.exp(terms, out=terms)
        np.sum(terms, axis=0, out=loss)
        np.log(loss, out=loss)
        loss -= picked

    def call() -> Any:
        for image, ids, loss in zip(x, targets, losses, strict=True):
            for start in range(0, x.shape[2], at_once):
                part = slice(start, start + at_once)
                of_part(image[:, part], ids[part], loss[part])
        return losses.mean()

    return Contender(f"{name}, {at_once} at a time", call, FLOAT32, holds=flat.nbytes + losses.nbytes)


def _torch_by_parts(name: str, logits: Any, ids: Any) -> Contender:
    """cross_entropy over parts of the planes."""
    import torch
    from torch.nn.functional import cross_entropy

    at_once = min(rows_at_once(logits), logits.shape[2])

    def call() -> float:
        total = 0.0
        for part, some in zip(logits.split(at_once, 2), ids.split(at_once, 1), strict=True):
            for image, targets in zip(part, some, strict=True):
                losses = cross_entropy(image[None].contiguous(), targets[None], reduction="none")
                total += losses.sum(dtype=torch.float64).item()
        return total / ids.numel()

    tolerance = HALF if logits.element_size() == 2 else FLOAT32
    return Contender(f"{name}, {at_once} at a time", call, tolerance)


PLANES: Builders = {
    "NumPy": ("numpy", planes_with_numpy),
    "SciPy": ("scipy", planes_with_scipy),
    "torch": ("torch", planes_with_torch),
}
ROWS: Builders = {
    "NumPy": ("numpy", rows_with_numpy),
    TUTORIAL: ("numpy", rows_with_tutorial),
    "SciPy": ("scipy", rows_with_scipy),
    "torch": ("torch", rows_with_torch),
    "scikit-learn": ("scikit-learn", rows_with_sklearn),
}
