"""Prints what rows cost and what `cost_of_row` estimates (src/tokenloss/_core/costs.pxi), by which threads are started.

An estimate may be up to twice the cost, since a machine may be slower, but hardly less than it: a thread that is woken
for less work than `threads.py` assumes makes a call slower. The constants are for the slower of AVX2 and AVX-512:

    python benchmarks/costs.py
    TOKENLOSS_DISABLE_CPU_FEATURES=AVX512 python benchmarks/costs.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np

import tokenloss
from tokenloss._core import threads

ELEMENTS = 100_000  # of an array, which a cache holds
LENGTHS = (2, 3, 5, 10, 16, 20, 40, 64, 65, 100, 150, 256, 300, 512, 513, 1000, 2000, 4096, 5000, 20_000)
Works = Iterator[tuple[str, Callable[[int], Callable[..., Any]]]]


def works(x: np.ndarray, ids: np.ndarray, masses: np.ndarray) -> Works:
    """Calls whose rows have their own estimate, by name, as functions of the number of rows."""
    into, mirrored, numbers = np.empty_like(x), -x, np.empty(len(x))
    yield "cross_entropy", lambda n: partial(tokenloss.cross_entropy, x[:n], ids[:n])
    yield "cross_entropy z_loss", lambda n: partial(tokenloss.cross_entropy, x[:n], ids[:n], z_loss=1e-4)
    yield "cross_entropy_and_grad", lambda n: partial(tokenloss.cross_entropy_and_grad, x[:n], ids[:n], out=into[:n])
    yield "cross_entropy of distributions", lambda n: partial(tokenloss.cross_entropy, x[:n], masses[:n])
    yield "softmax", lambda n: partial(tokenloss.softmax, x[:n], out=into[:n])
    yield "log_softmax", lambda n: partial(tokenloss.log_softmax, x[:n], out=into[:n])
    yield "logsumexp", lambda n: partial(tokenloss.logsumexp, x[:n], out=numbers[:n])
    yield "token_scores", lambda n: partial(tokenloss.token_scores, x[:n], ids[:n])
    yield "kl_divergence", lambda n: partial(tokenloss.kl_divergence, x[:n], mirrored[:n])


def estimate(call: Callable[..., Any]) -> float:
    """The nanoseconds that a row of the call's job is taken to cost."""
    run, costs = threads.run, [0.0]

    def noted(job: Any, workers: int | None) -> None:
        costs.append(float(job.row_cost))
        run(job, workers)

    with patch.object(threads, "run", noted):
        call(workers=1)
    return max(costs)


def seconds(call: Callable[..., Any], budget: float) -> float:
    """The least time of a call."""
    least, end = np.inf, time.perf_counter() + budget
    while time.perf_counter() < end:
        start = time.perf_counter()
        call(workers=1)
        least = min(least, time.perf_counter() - start)
    return float(least)


def main() -> None:
    """Print a line for each work and length of row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", help="of the scores")
    parser.add_argument("--only", default="", help="begin of the names of works to measure")
    parser.add_argument("--seconds", type=float, default=0.05, help="to call each again")
    options, rng = parser.parse_args(), np.random.default_rng(1)
    for v in LENGTHS:
        n = max(64, ELEMENTS // v)
        x = (rng.standard_normal((n, v)) * 2).astype(options.dtype)
        ids, masses = rng.integers(0, v, n), np.exp(x.astype(np.float64))
        masses = (masses / masses.sum(1, keepdims=True)).astype(options.dtype)
        for name, first_rows in works(x, ids, masses):
            if name.startswith(options.only):
                few = n // 4  # the time of a call that does not depend on its rows is subtracted
                row = (seconds(first_rows(n), options.seconds) - seconds(first_rows(few), options.seconds)) / (n - few)
                ns, guess = row * 1e9, estimate(first_rows(few))
                print(f"{name:32} {v:6} {ns:8.1f} ns, estimated {guess:8.1f}, {guess / ns:5.2f}", flush=True)


if __name__ == "__main__":
    main()
