"""Cases of many classes and of projections. Short rows are in `cases_of_short_rows`, layouts in `cases_of_layouts`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import peers
import peers_of_divergences
import peers_of_probabilities
import peers_of_projection
import peers_of_tokens
from harness import REFERENCE, Case, Contender, UnavailableError, gather

import tokenloss
from tokenloss._core import _core, jobs
from tokenloss._core.arguments import DIVERGENCES
from tokenloss._core.validation import as_scores, without_targets

BEST = _core.backend_in_use()
ITEMSIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
WORKERS = (1, 2)[: os.cpu_count()]
DTYPES_OF_WORK = {  # functions that are timed with many classes, and the dtypes of their logits
    "cross_entropy": tuple(ITEMSIZES),
    "token_scores": ("float32", "float16", "bfloat16"),
    "top_k": ("float32",),
    "kl_divergence": ("float32", "float16", "bfloat16"),
    "softmax": ("float32",),
    "log_softmax": ("float32",),
    "cross_entropy_and_grad": ("float32",),
}
PAIRS = ("kl_divergence", "softmax", "log_softmax", "cross_entropy_and_grad")  # works that have two such arrays
PROJECTIONS = (  # rows, depth and classes: many rows are bound by arithmetic, few by reading the weights
    ("float32", (512, 2048, 51864)), ("bfloat16", (512, 2048, 51864)), ("float32", (1, 2048, 32768)),
    ("float32", (4096, 64, 10)),
)  # fmt: skip
FEW = 4
SETTLE_OF_BLAS = 0.15  # seconds: threads of OpenBLAS spin for 2**28 ticks of the clock

Build = Callable[[], Case]


def all_cases(*, quick: bool) -> Iterator[tuple[str, Build]]:
    """Every case, by name."""
    rows, classes, nbytes = (64, 1000, 1 << 20) if quick else (4096, 32768, 128 << 20)
    for count in WORKERS:
        yield f"cold/ids/{count}", partial(cold_class_ids, rows, classes, nbytes, count)
        yield f"cold/onehot/{count}", partial(cold_one_hot, min(rows, 512), classes, nbytes, count)
    builds: dict[str, Callable[..., Case]] = {
        "cross_entropy": losses,
        "token_scores": tokens,
        "top_k": partial(tokens, top_k=20),
        "kl_divergence": divergence,
    }
    classes = 1000 if quick else 131072
    of_dtype = [(dtype, work) for dtype in ITEMSIZES for work, dtypes in DTYPES_OF_WORK.items() if dtype in dtypes]
    for (dtype, work), count in itertools.product(of_dtype, WORKERS):
        size = nbytes // ITEMSIZES[dtype] // (1 + (work in PAIRS))
        build = builds.get(work, partial(written, work))
        yield f"large/{work}/{dtype}/{count}", partial(build, dtype, (size // classes, classes), count)
    for classes in (300,) if quick else (1000, 8192, 32768, 131072):
        yield f"divergences/{classes}", partial(divergences, (nbytes // 8 // classes, classes))
    for dtype, shape in [("float32", (40, 64, 3000))] if quick else PROJECTIONS:
        yield f"linear/{dtype}/{'x'.join(map(str, shape))}", partial(linear, dtype, shape, WORKERS[-1])


def cold_class_ids(rows: int, classes: int, nbytes: int, workers: int) -> Case:
    """Probabilities of class ids. Before each call other targets are drawn and the caches emptied."""
    rng = np.random.default_rng(0)
    y_pred = rng.random((rows, classes), np.float32)
    flush = np.full(nbytes // 4, 1, np.int32)  # zeros would all lie on one page
    target = np.zeros(rows, np.int64)

    def prepare() -> None:
        target[:] = rng.integers(0, classes, rows)
        flush.max()  # reads: written lines would have to be stored first, in the time of the call

    case = Case(
        f"cross_entropy_loss, class ids, float32 {rows} x {classes}, cold, {_workers(workers)}",
        [ours(lambda: tokenloss.cross_entropy_loss(target, y_pred, workers=workers))],
        workers=workers,
        prepare=prepare,
        rows=rows,
    )
    builders = {name: peers_of_probabilities.IDS[name] for name in ("NumPy", "torch") if workers == 1}
    return gather(case, builders, y_pred, target)


def cold_one_hot(rows: int, classes: int, nbytes: int, workers: int) -> Case:
    """One-hot targets. Calls go round copies of the arrays, so that none finds its own in a cache."""
    copies = max(2, nbytes // (rows * classes * 4))
    y_true = np.full((copies, rows, classes), 0, np.float32)
    rng = np.random.default_rng(0)
    y_true[:, np.arange(rows), rng.integers(0, classes, rows)] = 1
    y_pred = np.empty_like(y_true)
    y_pred[:] = rng.random((rows, classes), np.float32) + 0.01
    y_pred /= y_pred[0].sum(axis=1, keepdims=True)
    turns = itertools.cycle(range(copies))
    turn = 0

    def prepare() -> None:
        nonlocal turn
        turn = next(turns)

    readers = [_reader(array, workers) for array in y_true]
    contenders = [
        Contender(readers[0].name, lambda: readers[turn].call(), None),
        ours(lambda: tokenloss.cross_entropy_loss(y_true[turn], y_pred[turn], workers=workers)),
        Contender(peers.TUTORIAL, lambda: peers.tutorial(y_true[turn], y_pred[turn]), peers.FLOAT32),
    ]
    title = f"cross_entropy_loss, one-hot, float32 {rows} x {classes}, cold, {_workers(workers)}"
    return Case(title, contenders, y_true[0].nbytes, workers, prepare)


def losses(dtype: str, shape: tuple[int, int], workers: int) -> Case:
    """Logits and class ids."""
    case, x, targets = _over_logits("cross_entropy, ", dtype, shape, workers)
    case.contenders += backends(lambda: tokenloss.cross_entropy(x, targets, workers=workers))
    return _gather(case, dtype, peers.LARGE, x, targets)


def tokens(dtype: str, shape: tuple[int, int], workers: int, top_k: int = 0) -> Case:
    """All statistics of each token."""
    title = f"token_scores, top_k={top_k}, " if top_k else "token_scores, "
    case, x, targets = _over_logits(title, dtype, shape, workers)

    def call() -> float:
        result = tokenloss.token_scores(x, targets, top_k=top_k, workers=workers)
        best = result.top_logprobs if top_k else result.argmax
        return peers_of_tokens.number(result.nll, result.entropy, result.rank, best, shape[1], top_k)

    case.contenders += backends(call)
    return _gather(case, dtype, peers_of_tokens.TOKENS, x, targets, top_k)


def divergence(dtype: str, shape: tuple[int, int], workers: int) -> Case:
    """The divergence of two arrays of logits."""
    case, base, _ = _over_logits("kl_divergence, two of ", dtype, shape, workers)
    pair = np.stack([base, base])
    rng = np.random.default_rng(2)
    for row in pair[1]:  # some half a nat away
        row += rng.standard_normal(len(row), np.float32)
    case.nbytes = pair.nbytes
    case.contenders = [_reader(pair.reshape(-1, shape[1]), workers)]
    case.contenders += backends(lambda: tokenloss.kl_divergence(*pair, workers=workers))
    return _gather(case, dtype, peers_of_tokens.DIVERGENCE, *pair)


def divergences(shape: tuple[int, int]) -> Case:
    """All five divergences of two nearly equal models, and what they add to the time of `compare`."""
    case, base, targets = _over_logits("all divergences of two ", "float32", shape, 1)
    x = base + np.float32(0.3) * normal("float32", base.size, 1.0).reshape(shape)[::-1]
    pair, every = (base, x), (*DIVERGENCES,)

    def call() -> float:
        result = tokenloss.kl_divergence(*pair, divergences=every, workers=1)
        return float(sum(result))

    def compared(divergences: tuple[str, ...]) -> float:
        return tokenloss.compare(*pair, targets, divergences=divergences, workers=1).mean_kl

    case.nbytes, case.contenders = 2 * base.nbytes, backends(call)
    for backend in (name for name in _core.backends() if name in (BEST, "avx2")):
        for words, wanted in ("compare", ("kl",)), ("compare, tv", ("tv",)), ("compare, all five", every):
            name = words if backend == BEST else f"{words}, {backend}"
            before = partial(_core.use_backend, backend)
            case.contenders.append(Contender(name, partial(compared, wanted), None, before=before))
    return gather(case, peers_of_divergences.DIVERGENCES, *pair)


def written(name: str, dtype: str, shape: tuple[int, int], workers: int) -> Case:
    """Results for each logit, compared with a plain copy; all but those that allocate write to the same array."""
    case, x, targets = _over_logits(f"{name} into out, ", dtype, shape, workers)
    out = x.copy()
    picked = peers_of_tokens.picker(x, targets)
    function = getattr(tokenloss, name)

    def gradient() -> float:
        loss, _ = function(x, targets, out=out, workers=workers)
        return float(loss + len(x) * picked(out))

    def call() -> float:
        function(x, out=out, workers=workers)
        return picked(out)

    case.contenders.append(peers_of_tokens.copier(x, out, workers, picked))
    case.contenders += backends(gradient if name == "cross_entropy_and_grad" else call)
    return _gather(case, dtype, peers_of_tokens.WRITTEN[name], x, targets, out, picked)


def linear(dtype: str, shape: tuple[int, int, int], workers: int) -> Case:
    """The loss of a projection, compared with a plain product into logits that are there and, for few rows, `read`."""
    rows, depth, classes = shape
    try:
        from threadpoolctl import threadpool_limits

        weight = normal(dtype, classes * depth).reshape(classes, depth)
    except ImportError:
        raise UnavailableError("pip install threadpoolctl ml_dtypes") from None
    threadpool_limits(workers, "blas")
    rng = np.random.default_rng(1)
    hidden = (rng.standard_normal((rows, depth), np.float32) / np.float32(depth**0.5)).astype(weight.dtype)
    targets = rng.integers(0, classes, rows)
    title = f"linear_cross_entropy, {dtype}, hidden {rows} x {depth}, weights {classes} x {depth}, {_workers(workers)}"
    case = Case(title, [], workers=workers, settle=SETTLE_OF_BLAS, memory=True)
    if rows <= FEW:
        case.nbytes = weight.nbytes
        case.contenders.append(_reader(weight.reshape(64, -1), workers))
    case.contenders.append(ours(lambda: tokenloss.linear_cross_entropy(hidden, weight, targets, workers=workers)))
    return gather(case, peers_of_projection.PROJECTION, hidden, weight, targets, workers)


def _gather(case: Case, dtype: str, builders: peers.Builders, *arguments: Any) -> Case:
    """Add the peers on one thread of float32; more threads and other dtypes are compared with `read` alone."""
    return gather(case, builders, *arguments) if case.workers == 1 and dtype == "float32" else case


def _over_logits(work: str, dtype: str, shape: tuple[int, int], workers: int) -> tuple[Case, Any, Any]:
    """A case whose only contender reads logits, the logits, and class ids."""
    try:
        x = normal(dtype, shape[0] * shape[1]).reshape(shape)
    except ImportError:
        raise UnavailableError("pip install ml_dtypes") from None
    targets = np.random.default_rng(1).integers(0, shape[1], shape[0])
    title = f"{work}{dtype} logits {shape[0]} x {shape[1]}, {_workers(workers)}"
    return Case(title, [_reader(x, workers)], x.nbytes, workers), x, targets


@lru_cache(maxsize=2)
def normal(dtype: str, size: int, scale: float = 4.0) -> Any:
    """Plausible logits."""
    if dtype == "bfloat16":
        import ml_dtypes

        flat = np.empty(size, ml_dtypes.bfloat16)
    else:
        flat = np.empty(size, dtype)
    rng = np.random.default_rng(0)
    for start in range(0, size, 1 << 20):
        part = flat[start : start + (1 << 20)]
        part[:] = rng.standard_normal(len(part), np.float32) * np.float32(scale)
    return flat


def ours(call: Callable[[], Any], backend: str = BEST) -> Contender:
    """A call of tokenloss's, with one of its backends."""
    name = REFERENCE if backend == BEST else f"{REFERENCE}, {backend}"
    return Contender(name, call, before=partial(_core.use_backend, backend))


def backends(call: Callable[[], Any]) -> list[Contender]:
    """A call with the instruction set that tokenloss chooses, and with AVX2, which is what most machines have."""
    return [ours(call, name) for name in _core.backends() if name in (BEST, "avx2")]


def _reader(array: Any, workers: int) -> Contender:
    """The fastest plain pass over an array's memory, whatever it holds: the maximum of each row, by so many threads."""
    floats = array.view(np.float32)

    def read() -> Any:
        scores = as_scores("array", floats, -1)
        job = _core.RowMaximum(scores, without_targets(scores), None)
        return jobs.run_and_reduce(job, None, "sum", workers)

    return Contender("read", read, None, before=partial(_core.use_backend, BEST))


def _workers(count: int) -> str:
    """The number of threads, in words."""
    return f"{count} worker{'s' * (count > 1)}"
