"""Other libraries' ways to the mean cross-entropy of hidden states times weights, as in `peers`.

Each function yields contenders for hidden states, weights of a projection, class ids and a number of threads.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from harness import Contender, UnavailableError
from peers import CHUNK, FLOAT32, HALF, Builders, Contenders, tensor, torch_on

import tokenloss

ROWS = 256  # of hidden states at a time
CLASSES = 1024  # at a time, whose logits stay in a cache


def with_numpy(hidden: Any, weight: Any, targets: Any, workers: int) -> Contenders:
    """A plain product into logits that are there, alone and with their loss; of float32 copies of half precision."""
    copies = [array.astype(np.float32) for array in (hidden, weight) if array.itemsize == 2]
    a, b = copies or (hidden, weight)
    logits = np.full((len(hidden), len(weight)), 1, np.float32)
    holds = logits.nbytes + sum(copy.nbytes for copy in copies)

    def product() -> Any:
        return np.matmul(a, b.T, out=logits)[0, 0]

    def then_loss() -> float:
        np.matmul(a, b.T, out=logits)
        return tokenloss.cross_entropy(logits, targets, workers=workers)

    yield Contender("product", product, None, holds=holds)
    yield Contender("product, cross_entropy", then_loss, FLOAT32, holds=holds)


def with_torch(hidden: Any, weight: Any, targets: Any, workers: int) -> Contenders:
    """A linear layer and its loss as people write it, without fresh memory, and by classes that stay in cache."""
    torch = torch_on(workers)
    cross_entropy, linear = torch.nn.functional.cross_entropy, torch.nn.functional.linear
    a, b, ids = tensor(hidden), tensor(weight), torch.from_numpy(targets)
    tolerance = FLOAT32 if hidden.itemsize == 4 else HALF
    logits = torch.full((len(a), len(b)), 1, dtype=a.dtype)
    tile = torch.full((len(a) * CLASSES,), 1, dtype=a.dtype)
    wide = torch.full((len(a) * CLASSES if a.itemsize == 2 else 0,), 1.0)
    parts = torch.zeros(-(-len(b) // CLASSES), len(a))

    def written() -> Any:
        return cross_entropy(linear(a, b), ids)

    def then_loss() -> float:
        torch.mm(a, b.T, out=logits)
        total = 0.0
        for part, some in zip(logits.split(CHUNK), ids.split(CHUNK), strict=True):
            total += cross_entropy(part, some, reduction="none").sum(dtype=torch.float64).item()
        return total / len(ids)

    def by_classes() -> float:
        for some, part in zip(b.split(CLASSES), parts, strict=True):
            scores = torch.mm(a, some.T, out=tile[: len(a) * len(some)].view(len(a), len(some)))
            if len(wide):
                scores = wide[: scores.numel()].view(scores.shape).copy_(scores)
            torch.logsumexp(scores, 1, out=part)
        own = torch.linalg.vecdot(a.float(), b[ids].float())
        return (torch.logsumexp(parts, 0) - own).mean(dtype=torch.float64).item()

    yield Contender("torch, linear, cross_entropy", written, tolerance)
    yield Contender("torch, mm into out, cross_entropy", then_loss, tolerance, holds=logits.nbytes)
    holds = tile.nbytes + wide.nbytes + parts.nbytes
    yield Contender(f"torch, {CLASSES} classes at a time, out=", by_classes, tolerance, holds=holds)


def with_torch_fused(hidden: Any, weight: Any, targets: Any, workers: int) -> Contenders:
    """The function that torch has for this, with more rows at a time than it would choose, which is faster.

    Losses are averaged in float64, for the mean of bfloat16 losses would have two digits; that takes no longer.
    """
    torch = torch_on(workers)
    functional = torch.nn.functional
    if not hasattr(functional, "linear_cross_entropy"):
        raise UnavailableError("this torch does not have it")
    a, b, ids = tensor(hidden), tensor(weight), torch.from_numpy(targets)

    def call(options: Any) -> Any:
        losses = functional.linear_cross_entropy(a, b, ids, reduction="none", options=options)
        return losses.mean(dtype=torch.float64)

    for rows in sorted({min(ROWS, len(a)), len(a)}):
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
        name = f"torch, linear_cross_entropy, {rows} rows at a time"
        yield Contender(name, partial(call, options), FLOAT32 if hidden.itemsize == 4 else HALF)


PROJECTION: Builders = {
    "NumPy": ("numpy", with_numpy),
    "torch": ("torch", with_torch),
    "torch, linear_cross_entropy": ("torch", with_torch_fused),
}
