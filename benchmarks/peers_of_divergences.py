"""NumPy's and torch's ways to all five divergences of two models' logits, as in `peers`: the formulas of textbooks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from harness import Contender
from peers import FLOAT32, Builders, Contenders, compiled, rows_at_once, torch_on


def total_of(module: Any, log_p: Any, log_q: Any) -> Any:
    """The sum over rows of all five, of log-probabilities; NumPy and torch name these functions alike."""
    p, q = module.exp(log_p), module.exp(log_q)
    log_m = module.log((p + q) / 2)
    kl, reverse_kl = (p * (log_p - log_q)).sum(-1), (q * (log_q - log_p)).sum(-1)
    js = ((p * (log_p - log_m)).sum(-1) + (q * (log_q - log_m)).sum(-1)) / 2
    tv = module.abs(p - q).sum(-1) / 2
    hellinger = module.sqrt(((module.sqrt(p) - module.sqrt(q)) ** 2).sum(-1) / 2)
    return (kl + reverse_kl + js + tv + hellinger).sum()


def _by_rows(total: Callable[[Any, Any], Any], base: Any, x: Any) -> float:
    """The mean over all rows, some of them at a time."""
    at_once = rows_at_once(x)
    parts = range(0, len(x), at_once)
    return sum(float(total(base[start : start + at_once], x[start : start + at_once])) for start in parts) / len(x)


def with_numpy(base: Any, x: Any) -> Contenders:
    """The formulas, at once and by rows that stay in cache."""

    def log_softmax(logits: Any) -> Any:
        shifted = logits - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    def written(base: Any, x: Any) -> Any:
        return total_of(np, log_softmax(base), log_softmax(x))

    yield Contender("NumPy", lambda: float(written(base, x)) / len(x), FLOAT32)
    yield Contender("NumPy, some rows at a time", partial(_by_rows, written, base, x), FLOAT32)


def with_torch(base: Any, x: Any) -> Contenders:
    """The formulas, at once, by rows that stay in cache, and compiled."""
    torch = torch_on(1)
    pair = torch.from_numpy(base), torch.from_numpy(x)

    def written(base: Any, x: Any) -> Any:
        return total_of(torch, torch.log_softmax(base, -1), torch.log_softmax(x, -1))

    yield Contender("torch", lambda: float(written(*pair)) / len(x), FLOAT32)
    yield Contender("torch, some rows at a time", partial(_by_rows, written, *pair), FLOAT32)
    yield from compiled({"formulas": written}, *pair, result=lambda actual: float(actual) / len(x))


DIVERGENCES: Builders = {"NumPy": ("numpy", with_numpy), "torch": ("torch", with_torch)}
