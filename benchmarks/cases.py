"""What is timed: names of cases, and functions that build them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import peers
from harness import REFERENCE, Case, Contender, UnavailableError, gather

import tokenloss
from tokenloss import _core
from tokenloss.losses import fold_rows

BEST = _core.backend_in_use()
ITEMSIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
EPSILON = 1e-12
FLOAT32 = 1e-5  # what float32 arithmetic and a mean in float32 leave of the digits

Build = Callable[[], Case]


def all_cases(megabytes: int, workers: list[int], *, quick: bool) -> Iterator[tuple[str, Build]]:
    """Every case, by name."""
    for shape in ((3,), (1, 3), (4, 3)):
        yield f"tiny/{'x'.join(map(str, shape))}", partial(tiny, shape)
    rows, classes = (64, 1024) if quick else (4096, 32768)
    for count in workers:
        yield f"gather/{count}", partial(class_ids, rows, classes, megabytes, count)
    for dtype, count in itertools.product(("float32", "int64"), workers):
        yield f"onehot/{dtype}/{count}", partial(one_hot, min(rows, 512), classes, dtype, megabytes, count)
    for dtype, itemsize in ITEMSIZES.items():
        size = (megabytes << 20) // itemsize
        shapes = {str(v): (size // v, v) for v in ((1000,) if quick else (32768, 131072, 262144))}
        shapes["cached"] = (64, 1000 if quick else 32768)
        for (label, shape), count in itertools.product(shapes.items(), workers):
            yield f"logits/{dtype}/{label}/{count}", partial(logits, dtype, shape, size, count, label == "cached")


def tutorial(y_true: Any, y_pred: Any, epsilon: float = EPSILON) -> Any:
    """The function as tutorials have it: the mean over rows, or the sum for a single one."""
    y_pred = np.clip(y_pred, epsilon, 1 - epsilon)
    if y_pred.ndim == 1:
        return -np.sum(y_true * np.log(y_pred))
    return np.mean(-np.sum(y_true * np.log(y_pred), axis=1))


def tiny(shape: tuple[int, ...]) -> Case:
    """One call for a few classes."""
    y_pred = np.resize([0.7, 0.2, 0.1], shape)
    y_true = np.resize([1.0, 0.0, 0.0], shape)
    return Case(
        f"one-hot float64 of shape {shape}",
        [
            _ours(lambda: tokenloss.cross_entropy_loss(y_true, y_pred)),
            Contender("NumPy, the tutorial's function", lambda: tutorial(y_true, y_pred), 1e-14),
        ],
    )


def class_ids(rows: int, classes: int, megabytes: int, workers: int) -> Case:
    """Probabilities of class ids. Each call has other targets, so that what it reads is not in any cache."""
    rng = np.random.default_rng(0)
    y_pred = rng.random((rows, classes), np.float32)
    index = np.arange(rows)
    flush = np.full(megabytes << 18, 1, np.int32)  # zeros would all lie on one page
    turns = itertools.count()
    target = np.empty(rows, np.int64)

    def prepare() -> None:
        if next(turns) % 16 == 0:
            flush.max()
        target[:] = rng.integers(0, classes, rows)

    def written() -> Any:
        return -np.log(np.clip(y_pred[index, target], EPSILON, 1 - EPSILON)).mean()

    def with_torch() -> Iterable[Contender]:
        import torch

        torch.set_num_threads(workers)
        p, t = torch.from_numpy(y_pred), torch.from_numpy(target)
        yield Contender("torch", lambda: -p.gather(1, t[:, None]).clamp(EPSILON, 1 - EPSILON).log().mean(), FLOAT32)

    case = Case(
        f"class ids, float32 {rows} x {classes}, cold rows, {_workers(workers)}",
        [
            _ours(lambda: tokenloss.cross_entropy_loss(target, y_pred, workers=workers)),
            Contender("NumPy, -log(clip(p[n, t])).mean()", written, FLOAT32),
        ],
        workers=workers,
        prepare=prepare,
    )
    return gather(case, {"torch": ("torch", with_torch)})


def one_hot(rows: int, classes: int, dtype: str, megabytes: int, workers: int) -> Case:
    """One-hot targets. Calls go round copies of the arrays, so that none finds its own in a cache."""
    rng = np.random.default_rng(0)
    nbytes = rows * classes * np.dtype(dtype).itemsize
    copies = max(2, -(-(megabytes << 20) // nbytes))
    y_true = np.full((copies, rows, classes), 0, dtype)
    y_pred = np.empty((copies, rows, classes), np.float32)
    y_true[:, np.arange(rows), rng.integers(0, classes, rows)] = 1
    y_pred[0] = rng.random((rows, classes), np.float32) + 0.01
    y_pred[0] /= y_pred[0].sum(axis=1, keepdims=True)
    y_pred[1:] = y_pred[0]
    turns = itertools.cycle(range(copies))
    turn = 0

    def prepare() -> None:
        nonlocal turn
        turn = next(turns)

    def with_sklearn() -> Iterable[Contender]:
        from sklearn.metrics import log_loss

        def call() -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about rows whose sum is not 1 to the last digit
                return log_loss(y_true[turn], y_pred[turn])

        yield Contender("scikit-learn, log_loss", call, FLOAT32)

    readers = [_reader(array, workers) for array in y_true]
    case = Case(
        f"one-hot {dtype} {rows} x {classes}, cold, {_workers(workers)}",
        [
            Contender(readers[0].name, lambda: readers[turn].call(), None),
            _ours(lambda: tokenloss.cross_entropy_loss(y_true[turn], y_pred[turn], workers=workers)),
            Contender("NumPy, the tutorial's function", lambda: tutorial(y_true[turn], y_pred[turn]), FLOAT32),
        ],
        nbytes,
        workers,
        prepare,
    )
    return gather(case, {"scikit-learn": ("scikit-learn", with_sklearn)})


def logits(dtype: str, shape: tuple[int, int], size: int, workers: int, cached: bool) -> Case:
    """Logits of class ids: tokenloss with each instruction set, and its peers."""
    where = f"{'in' if cached else 'out of'} cache"
    case = Case(f"{dtype} logits {shape[0]} x {shape[1]}, {where}, {_workers(workers)}", [], workers=workers)
    try:
        x = _normal(dtype, size)[: shape[0] * shape[1]].reshape(shape)
    except ImportError:
        raise UnavailableError("pip install ml_dtypes") from None
    case.nbytes = x.nbytes
    targets = np.random.default_rng(1).integers(0, shape[1], shape[0])

    def call() -> Any:
        return tokenloss.cross_entropy(x, targets, workers=workers)

    case.contenders = [_reader(x, workers)]
    # the portable one takes seconds, and is for machines that have no other
    backends = [name for name in _core.backends() if cached or name in (BEST, "avx2")]
    case.contenders.extend(_ours(call, name) for name in backends)
    return gather(case, peers.BY_DTYPE.get(dtype, {}), x, targets, workers)


@lru_cache(maxsize=1)
def _normal(dtype: str, size: int) -> Any:
    """Plausible logits."""
    if dtype == "bfloat16":
        import ml_dtypes

        flat = np.empty(size, ml_dtypes.bfloat16)
    else:
        flat = np.empty(size, dtype)
    rng = np.random.default_rng(0)
    for start in range(0, size, 1 << 20):
        part = flat[start : start + (1 << 20)]
        part[:] = rng.standard_normal(len(part), np.float32) * 4
    return flat


def _ours(call: Callable[[], Any], backend: str = BEST) -> Contender:
    """A call of tokenloss's, with one of its backends."""
    name = REFERENCE if backend == BEST else f"{REFERENCE}, {backend}"
    return Contender(name, call, before=partial(_core.use_backend, backend))


def _reader(array: Any, workers: int) -> Contender:
    """The fastest plain pass over an array's memory, whatever it holds: the maximum of each row, by so many threads."""
    floats = array.view(np.float32)
    read = partial(fold_rows, _core.MAXIMUM, "array", floats, reduction="sum", workers=workers)
    return Contender("read", read, None, before=partial(_core.use_backend, BEST))


def _workers(count: int) -> str:
    """The number of threads, in words."""
    return f"{count} worker{'s' * (count > 1)}"
