"""The cases of short rows, from two classes on, of planes, probabilities, tiny calls and sums, on one thread.

Arrays fit in a cache, unless a case is about reading memory: peers that make temporary arrays are fastest there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import peers
import peers_of_options
import peers_of_probabilities
from cases import ITEMSIZES, Build, backends, normal, ours, written
from harness import REFERENCE, Case, Contender, UnavailableError, gather
from peers import EPSILON, TUTORIAL, tutorial

import tokenloss

CURVE = (2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)  # numbers of classes
FEW_CLASSES = (2, 3, 10, 30, 100, 1000)
OTHER_DTYPES = (2, 10, 100, 1000)  # numbers of classes at which float16, bfloat16 and float64 are timed
IMAGES = {2: 8, 5: 4, 12: 2, 21: 2, 150: 1}  # by their channels
COLD = ((250_000, 100), (2_500_000, 10))  # probabilities such as many people give to scikit-learn
OPTION_CLASSES = 10
TINY = ((3,), (3, 4))
TINY_WORKS = ("onehot", "ids", "cross_entropy", "logsumexp")
SCALE = 2.0  # of logits, so that no probability is so small that the tutorial's function clips it
DOUBLE = 1e-14


def all_cases(*, quick: bool) -> Iterator[tuple[str, Build]]:
    """Every case, by name."""
    size, cached, most_rows = (1 << 14, 1 << 12, 1000) if quick else (1 << 20, 1 << 17, 10_000_000)
    for dtype in ITEMSIZES:
        for v in CURVE if dtype == "float32" else OTHER_DTYPES:
            yield f"short/{dtype}/{v}", partial(short, dtype, max(1, size // v), v)
    for v in FEW_CLASSES:
        rows = max(cached // v, 8)
        for work in ("softmax", "log_softmax", "cross_entropy_and_grad"):
            yield f"short_{work}/{v}", partial(short_written, work, rows, v)
        yield f"short_ids/float32/{v}", partial(class_ids, "float32", min(most_rows, 10_000), v)
        dtypes = ("float32", "float64") if v in OTHER_DTYPES else ("float32",)
        for kind, dtype in itertools.product(("onehot", "soft"), dtypes):
            yield f"short_{kind}/{dtype}/{v}", partial(distributions, kind, dtype, rows, v)
    for channels, images in IMAGES.items():
        shape = (2, channels, 32, 32) if quick else (images, channels, 256, 256)
        yield f"planes/{channels}", partial(planes, shape)
    for option in _options(1, 1):
        yield f"options/{option}", partial(with_option, option, max(1, size // OPTION_CLASSES), OPTION_CLASSES)
    for (n, v), dtype in itertools.product(COLD, ("float32", "float64")):
        yield f"cold/{n}x{v}/{dtype}", partial(class_ids, dtype, min(most_rows, n), v)
    for work, tiny_shape in itertools.product(TINY_WORKS, TINY):
        yield f"tiny/{work}/{'x'.join(map(str, tiny_shape))}", partial(tiny, work, tiny_shape)
    yield "sums/meter", partial(sums, min(most_rows, 1_000_000))
    yield "sums/sequences", partial(sums_of_sequences, max(1, min(most_rows, 1_000_000) // 512), 512)


def short(dtype: str, rows: int, classes: int) -> Case:
    """Logits of short rows and class ids."""
    try:
        x = normal(dtype, rows * classes, SCALE).reshape(rows, classes)
    except ImportError:
        raise UnavailableError("pip install ml_dtypes") from None
    targets = _ids(rows, classes)
    contenders = backends(lambda: tokenloss.cross_entropy(x, targets, workers=1))
    case = Case(f"cross_entropy, {dtype} logits {rows} x {classes}", contenders, rows=rows)
    return gather(case, peers.ROWS, x, targets)


def short_written(work: str, rows: int, classes: int) -> Case:
    """Results for each logit of short rows."""
    case = written(work, "float32", (rows, classes), 1)
    case.rows = rows
    return case


def planes(shape: tuple[int, int, int, int]) -> Case:
    """Logits of the classes of each pixel, plane by plane, as networks that segment images return them."""
    x = normal("float32", math.prod(shape)).reshape(shape)
    targets = _ids(math.prod(shape) // shape[1], shape[1]).reshape(shape[0], -1)
    pixels = targets.reshape(shape[0], *shape[2:])
    contenders = backends(lambda: tokenloss.cross_entropy(x, pixels, axis=1, workers=1))
    case = Case(f"cross_entropy, axis=1, float32 logits {shape}", contenders, rows=targets.size)
    return gather(case, peers.PLANES, x.reshape(*shape[:2], -1), targets)


def with_option(option: str, rows: int, classes: int) -> Case:
    """Logits of short rows and class ids, with an option."""
    x, targets = normal("float32", rows * classes, SCALE).reshape(rows, classes), _ids(rows, classes)
    value = _options(rows, classes)[option]
    if option == "ignore_index":
        targets[::8] = value
    options: dict[str, Any] = {option: value}
    contenders = backends(lambda: tokenloss.cross_entropy(x, targets, **options, workers=1))
    case = Case(f"cross_entropy, {option}, float32 logits {rows} x {classes}", contenders, rows=rows)
    return gather(case, peers_of_options.OPTIONS, option, x, targets, value)


def class_ids(dtype: str, rows: int, classes: int) -> Case:
    """Probabilities and class ids."""
    y_pred, targets = _probabilities(dtype, rows, classes), _ids(rows, classes)
    contenders = backends(lambda: tokenloss.cross_entropy_loss(targets, y_pred, workers=1))
    case = Case(f"cross_entropy_loss, class ids, {dtype} {rows} x {classes}", contenders, rows=rows)
    return gather(case, peers_of_probabilities.IDS, y_pred, targets)


def distributions(kind: str, dtype: str, rows: int, classes: int) -> Case:
    """Probabilities, and targets of the same shape and dtype: a single 1 in each row, or probabilities, too."""
    y_pred = _probabilities(dtype, rows, classes)
    if kind == "onehot":
        y_true = np.zeros_like(y_pred)
        y_true[np.arange(rows), _ids(rows, classes)] = 1
    else:
        y_true = _probabilities(dtype, rows, classes, seed=2)
    contenders = backends(lambda: tokenloss.cross_entropy_loss(y_true, y_pred, workers=1))
    case = Case(f"cross_entropy_loss, {kind} targets, {dtype} {rows} x {classes}", contenders, rows=rows)
    return gather(
        case, peers_of_probabilities.ONE_HOT if kind == "onehot" else peers_of_probabilities.SOFT, y_true, y_pred
    )


def tiny(work: str, shape: tuple[int, ...]) -> Case:
    """One call for a few classes, with default options; NumPy and torch get ready-made indices and tensors."""
    p = np.resize([0.7, 0.2, 0.1], shape)
    ids = np.zeros(shape[:-1], np.int64)
    y = (np.arange(shape[-1]) == ids[..., None]).astype(float)
    at = (*np.indices(ids.shape), ids)

    def gathered() -> Any:
        return -np.log(np.clip(p[at], EPSILON, 1 - EPSILON)).mean()

    def five_lines() -> Any:
        shifted = p - p.max(axis=-1, keepdims=True)
        return (np.log(np.exp(shifted).sum(axis=-1)) - shifted[at]).mean()

    def stable() -> Any:
        maximum = p.max(axis=-1, keepdims=True)
        return np.log(np.exp(p - maximum).sum(axis=-1)) + maximum[..., 0]

    calls: dict[str, dict[str, Callable[[], Any]]] = {
        "onehot": {
            REFERENCE: lambda: tokenloss.cross_entropy_loss(y, p),
            TUTORIAL: lambda: tutorial(y, p),
        },
        "ids": {
            REFERENCE: lambda: tokenloss.cross_entropy_loss(ids, p),
            TUTORIAL: lambda: tutorial(y, p),
            "NumPy, -log(clip(p[n, t])).mean()": gathered,
        },
        "cross_entropy": {REFERENCE: lambda: tokenloss.cross_entropy(p, ids), "NumPy": five_lines},
        "logsumexp": {REFERENCE: lambda: tokenloss.logsumexp(p), "NumPy": stable},
    }
    contenders = [
        ours(call) if name == REFERENCE else Contender(name, call, DOUBLE) for name, call in calls[work].items()
    ]
    builders = {"torch": ("torch", partial(_tiny_torch, work)), "SciPy": ("scipy", partial(_tiny_scipy, work))}
    return gather(Case(f"a tiny call: {work}, float64 of shape {shape}", contenders), builders, p, ids)


def _tiny_torch(work: str, p: Any, ids: Any) -> Iterable[Contender]:
    """The function of this name, if torch has it."""
    torch = peers.torch_on(1)
    cross_entropy = torch.nn.functional.cross_entropy
    logits, targets = torch.from_numpy(p), torch.from_numpy(ids)
    if work == "cross_entropy":
        yield Contender("torch", lambda: cross_entropy(logits, targets), DOUBLE)
    if work == "logsumexp":
        yield Contender("torch", lambda: torch.logsumexp(logits, -1), DOUBLE)


def _tiny_scipy(work: str, p: Any, _ids: Any) -> Iterable[Contender]:
    """The only one that SciPy has."""
    from scipy.special import logsumexp

    if work == "logsumexp":
        yield Contender("SciPy", lambda: logsumexp(p, axis=-1), DOUBLE)


def sums(count: int) -> Case:
    """The exact sum of losses and of their squares in a meter, compared with sums that round, or without squares."""
    losses = np.random.default_rng(0).exponential(size=count)
    as_list = losses.tolist()

    def update() -> float:
        meter = tokenloss.LossMeter()
        meter.update(losses)
        return meter.loss

    def with_squares() -> Any:
        np.vdot(losses, losses)
        return np.sum(losses) / count

    def with_numpy() -> Iterable[Contender]:
        from threadpoolctl import threadpool_limits

        threadpool_limits(1, "blas")
        yield Contender("NumPy, sum, and vdot for squares", with_squares, DOUBLE)

    contenders = [
        *backends(update),
        Contender("math.fsum of a list", lambda: math.fsum(as_list) / count),
        Contender("NumPy, sum", lambda: np.sum(losses) / count, DOUBLE),
    ]
    case = Case(f"LossMeter.update, mean of {count} losses", contenders, rows=count)
    return gather(case, {"NumPy, vdot": ("threadpoolctl", with_numpy)})


def sums_of_sequences(count: int, length: int) -> Case:
    """Exact sums over sequences, rows or packed, compared with sums that round."""
    losses = np.random.default_rng(0).exponential(size=(count, length))
    as_lists, offsets = losses.tolist(), np.arange(count + 1) * length

    def packed() -> Any:
        return tokenloss.sequence_losses(losses, cu_seqlens=offsets).nll

    contenders = [
        *backends(lambda: tokenloss.sequence_losses(losses).nll),
        Contender("tokenloss, cu_seqlens=", packed),
        Contender("math.fsum of lists", lambda: np.array([math.fsum(row) for row in as_lists])),
        Contender("NumPy, sum", lambda: losses.sum(-1), DOUBLE),
        Contender("NumPy, add.reduceat", lambda: np.add.reduceat(losses.ravel(), offsets[:-1]), DOUBLE),
    ]
    return Case(f"sequence_losses, {count} of {length} tokens", contenders, rows=losses.size)


def _options(rows: int, classes: int) -> dict[str, Any]:
    """Values of the options whose cost is measured."""
    rng = np.random.default_rng(3)
    return {
        "weight": rng.random(classes, np.float32) + 0.5,
        "sample_weight": rng.random(rows, np.float32) + 0.5,
        "where": rng.random(rows) < 0.9,
        "ignore_index": peers_of_options.IGNORED,
        "label_smoothing": 0.1,
        "z_loss": 1e-4,
        "softcap": 30.0,
        "logit_scale": 0.5,
    }


def _ids(rows: int, classes: int) -> Any:
    """Class ids of rows."""
    return np.random.default_rng(1).integers(0, classes, rows)


def _probabilities(dtype: str, rows: int, classes: int, seed: int = 0) -> Any:
    """Rows that add up to 1, with no probability so small or large that it would be clipped."""
    p = np.random.default_rng(seed).random((rows, classes), np.float32).astype(dtype, copy=False)
    p += np.array(0.01, dtype)
    p /= p.sum(axis=1, keepdims=True)
    return p
