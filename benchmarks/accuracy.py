"""The largest errors of a token's loss, in nats, of tokenloss and of other libraries.

The reference is exact to 60 bits or more: exponentials in long double, summed pairwise. Only tokens of rows that are
the same for all contenders are compared, so errors are those of the arithmetic and not of a dtype's rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import tokenloss

CLASSES = (1000, 32768, 131072, 262144)
ROWS = 8  # tokens of each kind and size
DTYPES = ("float16", "bfloat16", "float32", "float64")
Losses = Callable[[Any, Any], Any]


def distributions(rng: np.random.Generator, rows: int, classes: int) -> Iterator[tuple[str, Any]]:
    """Rows of logits, by name."""
    normal = rng.standard_normal((rows, classes))
    for scale in (1, 5, 10):
        yield f"N(0, {scale})", scale * normal
    yield "near-uniform", rng.normal(0, 10, (rows, 1)) + 1e-3 * normal
    dominant = rng.normal(0, 5, (rows, 1)) + np.zeros((rows, classes))
    dominant[np.arange(rows), rng.integers(0, classes, rows)] += np.log(classes)
    yield "one dominant", dominant
    for offset in (1e4, -1e4, 3e38, -3e38):
        yield f"N(0, 5) {offset:+g}", offset + 5 * normal


def exact(logits: Any, targets: Any) -> Any:
    """The losses in long double."""
    wide = logits.astype(np.longdouble)
    gaps = wide - wide.max(axis=1, keepdims=True)
    chosen = gaps[np.arange(len(gaps)), targets]
    gaps[np.arange(len(gaps)), targets] = -np.inf
    return np.log1p(np.exp(gaps - chosen[:, None]).sum(axis=1))


def contenders() -> dict[str, Losses]:
    """Functions of logits and class ids; each may raise TypeError for a dtype that it does not have."""
    result: dict[str, Losses] = {"tokenloss": lambda x, t: tokenloss.cross_entropy(x, t, reduction="none")}

    def with_scipy(x: Any, t: Any) -> Any:
        from scipy.special import logsumexp

        if x.dtype.kind == "V":
            raise TypeError("bfloat16")
        return logsumexp(x, axis=1) - x[np.arange(len(x)), t]

    def with_torch(x: Any, t: Any) -> Any:
        import torch

        x = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype.kind == "V" else torch.from_numpy(x)
        return torch.nn.functional.cross_entropy(x, torch.from_numpy(t), reduction="none").double().numpy()

    def with_jax(x: Any, t: Any) -> Any:
        import jax

        if x.dtype == np.float64:
            raise TypeError("float64")
        losses = jax.nn.logsumexp(x, axis=1) - x[np.arange(len(x)), t]
        return np.asarray(losses).astype(np.float64)

    return result | {"SciPy": with_scipy, "torch": with_torch, "JAX": with_jax}


def measure(*, quick: bool) -> Iterator[dict[str, Any]]:
    """The largest errors of all contenders for each dtype and kind of rows, over all numbers of classes."""
    rng = np.random.default_rng(0)
    names = contenders()
    sizes = CLASSES[:1] if quick else CLASSES
    for dtype in DTYPES:
        worst: dict[str, dict[str, float]] = {}
        try:
            code = _dtype(dtype)
        except ImportError:
            continue
        for classes in sizes:
            for kind, wide in distributions(rng, ROWS, classes):
                with np.errstate(over="ignore"):
                    logits = wide.astype(code)
                if not np.isfinite(logits.astype(np.float64)).all():
                    continue  # beyond float16
                targets = rng.integers(0, classes, ROWS)
                targets[::2] = wide[::2].argmax(axis=1)
                expected = exact(logits, targets)
                for name, losses in names.items():
                    error = _largest(losses, logits, targets, expected)
                    if error is not None:
                        errors = worst.setdefault(kind, {})
                        errors[name] = max(errors.get(name, 0.0), error)
        for kind, errors in worst.items():
            yield {"dtype": dtype, "kind": kind, "errors": errors}


def _dtype(name: str) -> Any:
    """The dtype of this name."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def _largest(losses: Losses, logits: Any, targets: Any, expected: Any) -> float | None:
    """The largest error; inf where a finite loss became none; None where the contender cannot run."""
    try:
        with np.errstate(all="ignore"):
            result = losses(logits, targets)
    except (ImportError, TypeError):
        return None
    error = float(np.abs(result.astype(np.longdouble) - expected).max())
    return error if math.isfinite(error) else math.inf
