"""The cases of other functions, in two dtypes: rows, and pixels or positions whose classes are not neighbors.

Peers are torch's functions, eager and compiled, and NumPy's `vdot`, which returns no losses of rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import peers
from cases import Build, backends, normal
from harness import Case, Contender, UnavailableError, gather

import tokenloss

SHAPES = {  # by dtype; classes are the second axis
    "float32": ((26214, 10), (1310, 100), (16, 5, 64, 64), (2000, 5, 20), (512, 100, 9)),
    "bfloat16": ((26214, 10), (4, 21, 64, 64)),
}
QUICK = (64, 10), (2, 5, 8, 8)
LONG = (262, 1000), (8, 32000)  # of distributions over a vocabulary, which distillation has
SCALE = 2.0


class Arrays(NamedTuple):
    """The arguments of the functions, as NumPy arrays or torch tensors."""

    x: Any
    ids: Any
    probs: Any  # distributions of another model
    log_probs: Any  # of the same
    weights: Any  # of the classes


# each function of ours, and torch's way to the same number or array
WORKS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "logsumexp": (
        lambda a, **o: tokenloss.logsumexp(a.x, **o),
        lambda torch, a: torch.logsumexp(a.x, 1),
    ),
    "softmax": (
        lambda a, **o: tokenloss.softmax(a.x, **o),
        lambda torch, a: torch.softmax(a.x, 1),
    ),
    "nll_loss": (
        lambda a, **o: tokenloss.nll_loss(a.log_probs, a.ids, **o),
        lambda torch, a: torch.nn.functional.nll_loss(a.log_probs, a.ids),
    ),
    "cross_entropy_loss": (
        lambda a, **o: tokenloss.cross_entropy_loss(a.ids, a.probs, **o),
        lambda torch, a: -a.probs.gather(1, a.ids.unsqueeze(1)).log().mean(),
    ),
    "soft-cross_entropy_loss": (
        lambda a, **o: tokenloss.cross_entropy_loss(a.probs, a.probs, **o),
        lambda torch, a: -(a.probs * a.probs.log()).sum(1).mean(),
    ),
    "soft-cross_entropy": (
        lambda a, **o: tokenloss.cross_entropy(a.x, a.probs, **o),
        lambda torch, a: torch.nn.functional.cross_entropy(a.x, a.probs),
    ),
    "soft-cross_entropy_and_grad": (
        lambda a, **o: tokenloss.cross_entropy_and_grad(a.x, a.probs, **o),
        lambda torch, a: _soft_gradient(torch, a),
    ),
    "smoothed-cross_entropy": (
        lambda a, **o: tokenloss.cross_entropy(a.x, a.ids, label_smoothing=0.1, **o),
        lambda torch, a: torch.nn.functional.cross_entropy(a.x, a.ids, label_smoothing=0.1),
    ),
    "weighted-cross_entropy": (
        lambda a, **o: tokenloss.cross_entropy(a.x, a.probs, weight=a.weights, **o),
        lambda torch, a: torch.nn.functional.cross_entropy(a.x, a.probs, weight=a.weights.to(a.x.dtype)),
    ),
    "weighted-cross_entropy_and_grad": (
        lambda a, **o: tokenloss.cross_entropy_and_grad(a.x, a.ids, weight=a.weights, label_smoothing=0.1, **o),
        lambda torch, a: _weighted_gradient(torch, a),
    ),
    "kl_divergence": (
        lambda a, **o: tokenloss.kl_divergence(a.x, a.log_probs, **o),
        lambda torch, a: (
            torch.softmax(a.x, 1) * (torch.log_softmax(a.x, 1) - torch.log_softmax(a.log_probs, 1))
        ).sum(1).mean(),
    ),
}  # fmt: skip


def _soft_gradient(torch: Any, arrays: Arrays) -> Any:
    """The mean loss for distributions, and its gradient."""
    rows, log_probs = arrays.ids.numel(), torch.log_softmax(arrays.x, 1)
    of_softmax = log_probs.exp() * arrays.probs.sum(1, keepdim=True)
    return -(arrays.probs * log_probs).sum() / rows, (of_softmax - arrays.probs) / rows


def _weighted_gradient(torch: Any, arrays: Arrays) -> Any:
    """The mean loss for class ids with weights and smoothing, and its gradient."""
    log_probs, of_ids = torch.log_softmax(arrays.x, 1), arrays.weights[arrays.ids]
    each = arrays.weights.reshape(-1, *(1 for _ in arrays.x.shape[2:])) * (0.1 / arrays.x.shape[1])
    ids = arrays.ids.unsqueeze(1)
    masses = torch.zeros_like(log_probs, dtype=of_ids.dtype).scatter(1, ids, 0.9 * of_ids.unsqueeze(1)) + each
    of_softmax = log_probs.exp() * masses.sum(1, keepdim=True)
    return -(masses * log_probs).sum() / of_ids.sum(), (of_softmax - masses) / of_ids.sum()


def all_cases(*, quick: bool) -> Iterator[tuple[str, Build]]:
    """Every case, by name."""
    for dtype, shapes in SHAPES.items():
        of_shape = [*itertools.product(QUICK if quick else shapes, WORKS)]
        of_shape += itertools.product(() if quick else LONG, ("soft-cross_entropy_and_grad",))
        for shape, work in of_shape:
            yield f"others/{work}/{dtype}/{'x'.join(map(str, shape))}", partial(other, work, dtype, shape)


def other(work: str, dtype: str, shape: tuple[int, ...]) -> Case:
    """Random logits, class ids and distributions."""
    try:
        x = normal(dtype, math.prod(shape), SCALE).reshape(shape)
    except ImportError:
        raise UnavailableError("pip install ml_dtypes") from None
    ids = np.random.default_rng(1).integers(0, shape[1], (shape[0], *shape[2:]))
    log_probs = tokenloss.log_softmax(np.ascontiguousarray(x[::-1]), axis=1)
    weights = np.linspace(0.5, 1.5, shape[1], dtype=np.float32)
    arrays = Arrays(x, ids, tokenloss.softmax(log_probs, axis=1), log_probs, weights)
    mine, theirs = WORKS[work]
    contenders = backends(lambda: _last(mine(arrays, axis=1, workers=1)))
    case = Case(f"{work}, axis=1, {dtype} of shape {shape}", contenders, rows=ids.size)
    builders = {
        "torch": ("torch", partial(_torch, theirs)),
        "torch.compile": ("torch", partial(_compiled, theirs)),
        "NumPy": ("numpy", partial(_vdot, work)),
    }
    return gather(case, builders, arrays)


def _last(result: Any) -> float:
    """A loss, or the last number of an array; of a loss with its gradient, the sum of both."""
    if isinstance(result, tuple):
        return float(result[0]) + float(result[1].reshape(-1)[-1])
    return float(result.reshape(-1)[-1]) if hasattr(result, "reshape") else result


def _tolerance(arrays: Arrays) -> float:
    """By how much a peer's number may differ."""
    return peers.HALF * 2 if arrays.x.itemsize == 2 else peers.FLOAT32


def _tensors(arrays: Arrays) -> Arrays:
    """Torch tensors that share the memory of the arrays."""
    return Arrays(*map(peers.tensor, arrays))


def _torch(theirs: Callable[..., Any], arrays: Arrays) -> peers.Contenders:
    """The formula as it is."""
    torch, tensors = peers.torch_on(1), _tensors(arrays)
    yield Contender("torch", lambda: _last(theirs(torch, tensors)), _tolerance(arrays))


def _compiled(theirs: Callable[..., Any], arrays: Arrays) -> peers.Contenders:
    """The formula compiled."""
    torch = peers.torch_on(1)
    ways = {"its formula": lambda *tensors: theirs(torch, Arrays(*tensors))}
    return peers.compiled(ways, *_tensors(arrays), tolerance=_tolerance(arrays), result=_last)


def _vdot(work: str, arrays: Arrays) -> peers.Contenders:
    """The loss of distributions as a product of two arrays."""
    if work == "soft-cross_entropy_loss" and arrays.x.itemsize > 2:
        p, rows = arrays.probs, arrays.ids.size
        yield Contender("NumPy, vdot", lambda: -np.vdot(p, np.log(p)) / rows, peers.FLOAT32)
