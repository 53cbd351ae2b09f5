"""The cases by name, and the functions that build them. Those of short rows are in `cases_of_short_rows`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import peers
import peers_of_probabilities
import peers_of_projection
import peers_of_tokens
from harness import REFERENCE, SETTLE, Case, Contender, UnavailableError, gather
from peers import FLOAT32
from peers_of_probabilities import TUTORIAL, log_loss_of_sklearn, tutorial

import tokenloss
from tokenloss._core import _core, jobs
from tokenloss._core.validation import as_scores, without_targets

BEST = _core.backend_in_use()
ITEMSIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
DTYPES_OF_WORK = {  # what else is done with logits, and of which dtypes it is timed
    "tokens": ("float32", "float16"),
    "top20": ("float32", "float16"),
    "kl": ("float32",),
    "kl_probs": ("float32",),
    "grad": ("float32", "float16"),
    "log_softmax": ("float32",),
    "softmax": ("float32",),
}
PROJECTIONS = (  # rows, depth and classes: many rows are bound by arithmetic, few by reading the weights
    (1024, 2048, 51864), (512, 1024, 131072), (4, 2048, 65536), (1, 2048, 65536),
)  # fmt: skip
PAIRS = ((1024, 1024, 131072), (64, 1024, 131072), (1, 1024, 131072))  # of projections, likewise
FEW = 4
SETTLE_OF_BLAS = 0.15  # seconds: threads of OpenBLAS spin for 2**28 ticks of the clock

Build = Callable[[], Case]


def all_cases(megabytes: int, workers: list[int], *, quick: bool) -> Iterator[tuple[str, Build]]:
    """Every case, by name."""
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
    classes = 1000 if quick else 131072
    builds: dict[str, Callable[..., Case]] = {
        "tokens": tokens,
        "top20": partial(tokens, top_k=20),
        "kl": divergence,
        "kl_probs": divergence_of_probs,
    }
    for work, dtypes in DTYPES_OF_WORK.items():
        for dtype, label, count in itertools.product(dtypes, (str(classes), "cached"), workers):
            arrays = 1 if work in ("tokens", "top20") else 2
            size = (megabytes << 20) // ITEMSIZES[dtype] // arrays
            shape = (64, 1000 if quick else 32768) if label == "cached" else (size // classes, classes)
            build = builds.get(work, partial(written, work))
            yield f"{work}/{dtype}/{label}/{count}", partial(build, dtype, shape, size, count, label == "cached")
    sizes = ((40, 64, 3000), (1, 64, 3000)) if quick else PROJECTIONS
    for dtype, (rows, depth, classes), count in itertools.product(("float32", "bfloat16"), sizes, workers):
        fresh = count == workers[-1] and (not quick or (dtype == "float32" and rows > FEW))
        label = f"{rows}x{depth}x{classes}"
        build = partial(linear, dtype, (rows, depth, classes), count, SETTLE if quick else SETTLE_OF_BLAS, fresh)
        yield f"linear/{dtype}/{label}/{count}", build
    for (rows, depth, classes), count in itertools.product(sizes if quick else PAIRS, workers):
        build = partial(linear_pair, (rows, depth, classes), count, SETTLE if quick else SETTLE_OF_BLAS)
        yield f"linear_kl/{rows}x{depth}x{classes}/{count}", build


def class_ids(rows: int, classes: int, megabytes: int, workers: int) -> Case:
    """Probabilities of class ids. Before each call other targets are drawn and the caches emptied."""
    rng = np.random.default_rng(0)
    y_pred = rng.random((rows, classes), np.float32)
    flush = np.full(megabytes << 18, 1, np.int32)  # zeros would all lie on one page
    target = np.zeros(rows, np.int64)

    def prepare() -> None:
        target[:] = rng.integers(0, classes, rows)
        flush.max()  # reads: written lines would have to be stored first, in the time of the call

    case = Case(
        f"class ids, float32 {rows} x {classes}, cold rows, {_workers(workers)}",
        [ours(lambda: tokenloss.cross_entropy_loss(target, y_pred, workers=workers))],
        workers=workers,
        prepare=prepare,
        rows=rows,
    )
    return gather(case, peers_of_probabilities.IDS, y_pred, target, workers)


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
        log_loss = log_loss_of_sklearn()
        yield Contender("scikit-learn, log_loss", lambda: log_loss(y_true[turn], y_pred[turn]), FLOAT32)

    readers = [_reader(array, workers) for array in y_true]
    case = Case(
        f"one-hot {dtype} {rows} x {classes}, cold, {_workers(workers)}",
        [
            Contender(readers[0].name, lambda: readers[turn].call(), None),
            ours(lambda: tokenloss.cross_entropy_loss(y_true[turn], y_pred[turn], workers=workers)),
            Contender(TUTORIAL, lambda: tutorial(y_true[turn], y_pred[turn]), FLOAT32),
        ],
        nbytes,
        workers,
        prepare,
    )
    return gather(case, {"scikit-learn": ("scikit-learn", with_sklearn)})


def logits(dtype: str, shape: tuple[int, int], size: int, workers: int, cached: bool) -> Case:
    """Logits of class ids: tokenloss with each instruction set, and its peers."""
    case, x, targets = _over_logits("", dtype, shape, size, workers, cached)
    case.contenders += backends(lambda: tokenloss.cross_entropy(x, targets, workers=workers), cached)
    return gather(case, peers.BY_DTYPE.get(dtype, {}), x, targets, workers)


def tokens(dtype: str, shape: tuple[int, int], size: int, workers: int, cached: bool, top_k: int = 0) -> Case:
    """All statistics of each token, compared with its loss alone."""
    title = f"token_scores, top_k={top_k}, " if top_k else "token_scores, "
    case, x, targets = _over_logits(title, dtype, shape, size, workers, cached)

    def call() -> float:
        found = tokenloss.token_scores(x, targets, top_k=top_k, workers=workers)
        best = found.top_logprobs if top_k else found.argmax
        return peers_of_tokens.number(found.nll, found.entropy, found.rank, best, shape[1], top_k)

    case.contenders += [_loss_alone(x, targets, workers), *backends(call, cached)]
    builders = peers_of_tokens.of_dtype(peers_of_tokens.TOKENS, dtype)
    return gather(case, builders, x, targets, workers, top_k)


def divergence(dtype: str, shape: tuple[int, int], size: int, workers: int, cached: bool) -> Case:
    """The divergence of two arrays of logits, compared with the loss of one of them and with all figures of a pair."""
    case, pair, targets = _pair("kl_divergence, two of ", dtype, shape, size, workers, cached)
    tokenloss.log_softmax(pair[0], out=pair[0], workers=workers)  # logits as good as any, and what llama.cpp's are
    case.contenders = [
        _reader(pair.reshape(-1, shape[1]), workers),
        _loss_alone(pair[0], targets, workers, share=0.5),
        *backends(lambda: tokenloss.kl_divergence(*pair, workers=workers), cached),
    ]
    for definitions in ("exact", "llama.cpp"):
        call = partial(tokenloss.compare, *pair, targets, definitions=definitions, workers=workers)
        case.contenders.append(Contender(f"compare, {definitions}", lambda call=call: call().mean_kl, None))
    return gather(case, peers_of_tokens.of_dtype(peers_of_tokens.DIVERGENCE, dtype), *pair, workers)


def divergence_of_probs(dtype: str, shape: tuple[int, int], size: int, workers: int, cached: bool) -> Case:
    """The divergence of two arrays of probabilities."""
    case, pair, _ = _pair("kl_divergence of kind='probs', two of ", dtype, shape, size, workers, cached)
    for logits in pair:
        tokenloss.softmax(logits, out=logits, workers=workers)
    call = partial(tokenloss.kl_divergence, *pair, kind="probs", workers=workers)
    case.contenders = [_reader(pair.reshape(-1, shape[1]), workers), *backends(call, cached)]
    return gather(case, peers_of_probabilities.DIVERGENCE, *pair)


def written(
    work: str, dtype: str, shape: tuple[int, int], size: int, workers: int, cached: bool, only: Iterable[str] = ()
) -> Case:
    """Results for each logit, compared with a plain copy; all but those that allocate write to the same array.

    `only` names the peers, if not all are to be compared.
    """
    name = "cross_entropy_and_grad" if work == "grad" else work
    case, x, targets = _over_logits(f"{name} into out, ", dtype, shape, size, workers, cached)
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
    case.contenders += backends(gradient if work == "grad" else call, cached)
    builders = peers_of_tokens.of_dtype(peers_of_tokens.WRITTEN[work], dtype)
    chosen = {name: builders[name] for name in only or builders}
    return gather(case, chosen, x, targets, workers, out, picked)


def linear(dtype: str, shape: tuple[int, int, int], workers: int, settle: float, fresh: bool = False) -> Case:
    """The loss of a projection, compared with a plain product into logits that are there and, for few rows, `read`."""
    case, hidden, weight, targets = _projection("linear_cross_entropy", dtype, shape, workers, settle)
    case.contenders.append(ours(lambda: tokenloss.linear_cross_entropy(hidden, weight, targets, workers=workers)))
    if fresh:
        case.fresh = (dtype, "x".join(map(str, shape)), str(workers))
    return gather(case, peers_of_projection.PROJECTION, hidden, weight, targets, workers)


def linear_pair(shape: tuple[int, int, int], workers: int, settle: float) -> Case:
    """The divergence of two projections, compared with both plain products; their weights are the same array."""
    case, base, weight, targets = _projection("linear_kl_divergence, two of", "float32", shape, workers, settle)
    case.nbytes, case.flops = 2 * case.nbytes, 2 * case.flops
    hidden = base + np.random.default_rng(2).standard_normal(base.shape, np.float32) / np.float32(8 * shape[1] ** 0.5)
    operands = base, weight, hidden, weight

    def compared() -> float:
        return tokenloss.linear_compare(*operands, targets, workers=workers).mean_kl

    case.contenders.append(ours(lambda: tokenloss.linear_kl_divergence(*operands, workers=workers)))
    case.contenders.append(Contender("linear_compare", compared, FLOAT32))
    return gather(case, peers_of_projection.PAIR, base, weight, hidden, workers)


def _projection(
    work: str, dtype: str, shape: tuple[int, int, int], workers: int, settle: float
) -> tuple[Case, Any, Any, Any]:
    """A case whose contender, for few rows, reads weights; hidden states, the weights, and class ids."""
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
    title = f"{work}, {dtype}, hidden {rows} x {depth}, weights {classes} x {depth}, {_workers(workers)}"
    case = Case(title, [], workers=workers, settle=settle)
    if rows <= FEW:
        case.nbytes = weight.nbytes
        case.contenders.append(_reader(weight.reshape(64, -1), workers))
    else:
        case.flops = 2 * rows * depth * classes
    return case, hidden, weight, targets


def _pair(
    work: str, dtype: str, shape: tuple[int, int], size: int, workers: int, cached: bool
) -> tuple[Case, Any, Any]:
    """A case without contenders, two arrays of logits, and class ids."""
    case, base, targets = _over_logits(work, dtype, shape, size, workers, cached)
    pair = np.stack([base, base])
    rng = np.random.default_rng(2)
    for row in pair[1]:  # some half a nat away
        row += rng.standard_normal(len(row), np.float32)
    case.nbytes = pair.nbytes
    return case, pair, targets


def _over_logits(
    work: str, dtype: str, shape: tuple[int, int], size: int, workers: int, cached: bool
) -> tuple[Case, Any, Any]:
    """A case whose only contender reads logits, the logits, and class ids."""
    where = f"{'in' if cached else 'out of'} cache"
    try:
        x = normal(dtype, size)[: shape[0] * shape[1]].reshape(shape)
    except ImportError:
        raise UnavailableError("pip install ml_dtypes") from None
    targets = np.random.default_rng(1).integers(0, shape[1], shape[0])
    title = f"{work}{dtype} logits {shape[0]} x {shape[1]}, {where}, {_workers(workers)}"
    return Case(title, [_reader(x, workers)], x.nbytes, workers), x, targets


@lru_cache(maxsize=1)
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


def backends(call: Callable[[], Any], cached: bool) -> list[Contender]:
    """A call with each of tokenloss's backends; the portable one is slow, and for machines that have no other."""
    return [ours(call, name) for name in _core.backends() if cached or name in (BEST, "avx2")]


def _loss_alone(x: Any, targets: Any, workers: int, share: float = 1.0) -> Contender:
    """What more is measured by."""
    call = partial(tokenloss.cross_entropy, x, targets, workers=workers)
    return Contender("cross_entropy", call, None, before=partial(_core.use_backend, BEST), share=share)


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
