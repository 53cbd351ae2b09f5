"""Other libraries' ways to what tokenloss finds for each token and writes for each logit, as in `peers`.

Each function yields contenders for logits `x`, class ids `targets` (or a base model's logits) and a number of threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import peers
from harness import Contender, UnavailableError
from peers import CHUNK, FLOAT32, HALF, Builders, Contenders, jax_threads, onnx_operator, overflows, tensor

PICKED = 32  # rows of a written array that are looked at: few, for each costs two cache misses

Picked = Callable[[Any], float]


def number(nll: Any, entropy: Any, rank: Any, best: Any, classes: int, top_k: int) -> float:
    """One number of everything about tokens: of equal parts, none larger than some 20."""
    columns = nll, entropy, np.asarray(rank) / classes, np.asarray(best) / (1 if top_k else classes)
    return float(sum(np.asarray(column).mean(dtype=np.float64) for column in columns))


def picker(x: Any, targets: Any) -> Picked:
    """A number of what was written for logits: at the target and at the likeliest class of some rows."""
    rows = np.arange(0, len(x), -(-len(x) // PICKED))
    classes = np.stack([targets[rows], x[rows].argmax(axis=1)])
    return lambda out: float(2 * out[rows, classes].mean(dtype=np.float64))


def copier(x: Any, out: Any, workers: int, picked: Picked) -> Contender:
    """A plain copy, by so many threads; NumPy's releases the GIL."""
    pool = ThreadPoolExecutor(workers)
    cuts = [len(x) * i // workers for i in range(workers + 1)]
    parts = [(out[a:b], x[a:b]) for a, b in itertools.pairwise(cuts)]

    def call() -> float:
        if workers == 1:
            np.copyto(out, x)
        else:
            list(pool.map(lambda part: np.copyto(*part), parts))
        return picked(out)

    return Contender("copy", call, None)


def _one_thread(workers: int) -> None:
    """SciPy has no more."""
    if workers > 1:
        raise UnavailableError("has one thread")


def tokens_with_scipy(x: Any, targets: Any, workers: int, top_k: int) -> Contenders:
    """log_softmax and entr of SciPy's, the rest of NumPy's."""
    _one_thread(workers)
    from scipy.special import entr, log_softmax

    ids = targets[:, None]

    def call() -> float:
        log_p = log_softmax(x, axis=1)
        best = x.argmax(axis=1)
        if top_k:
            best = np.take_along_axis(log_p, np.argpartition(x, -top_k, axis=1)[:, -top_k:], 1)
        rank = (x >= np.take_along_axis(x, ids, 1)).sum(axis=1)
        nll = -np.take_along_axis(log_p, ids, 1)
        return number(nll, entr(np.exp(log_p)).sum(axis=1), rank, best, x.shape[1], top_k)

    yield Contender("SciPy, log_softmax, entr", call, FLOAT32)


def tokens_with_torch(x: Any, targets: Any, workers: int, top_k: int) -> Contenders:
    """log_softmax in float32 and what follows from it: at once, and by rows that stay in cache."""
    import torch

    torch.set_num_threads(workers)
    logits, ids = tensor(x), torch.from_numpy(targets)[:, None]
    scratch = torch.zeros(2, CHUNK, x.shape[1])
    flags = torch.zeros(CHUNK, x.shape[1], dtype=torch.bool)

    def of_rows(part: Any, some: Any, log_p: Any = None, p: Any = None, is_above: Any = None) -> tuple[Any, ...]:
        log_p = torch.log_softmax(part, 1, dtype=torch.float32, out=log_p)
        p = torch.exp(log_p, out=p)
        is_above = torch.ge(part, part.gather(1, some), out=is_above)
        rank = is_above.view(torch.uint8).sum(1, dtype=torch.int32)  # twice as fast as of bool
        best = log_p.gather(1, part.topk(top_k, 1).indices) if top_k else part.argmax(1)
        return -log_p.gather(1, some), -torch.linalg.vecdot(p, log_p), rank, best

    def chunked() -> float:
        chunks = zip(logits.split(CHUNK), ids.split(CHUNK), strict=True)
        found = [of_rows(part, some, *scratch[:, : len(part)], flags[: len(part)]) for part, some in chunks]
        return number(*map(torch.cat, zip(*found, strict=True)), x.shape[1], top_k)

    yield Contender("torch", lambda: number(*of_rows(logits, ids), x.shape[1], top_k), FLOAT32)
    yield Contender(f"torch, {CHUNK} rows at a time, out=", chunked, FLOAT32, holds=scratch.nbytes + flags.nbytes)


def tokens_with_jax(x: Any, targets: Any, workers: int, top_k: int) -> Contenders:
    """JAX, compiled: at once, and mapped over rows."""
    import jax
    from jax import numpy as jnp

    def of_row(row: Any, target: Any) -> tuple[Any, ...]:
        log_p = jax.nn.log_softmax(row)
        best = log_p[jax.lax.top_k(row, top_k)[1]] if top_k else row.argmax()
        return -log_p[target], -(jnp.exp(log_p) * log_p).sum(), (row >= row[target]).sum(), best

    yield from _compiled(of_row, (x, targets), workers, lambda found: number(*found, x.shape[1], top_k))


def _compiled(of_row: Callable[..., Any], arrays: tuple[Any, ...], workers: int, result: Picked) -> Contenders:
    """A function of rows, compiled by JAX: at once, and mapped over rows."""
    import jax

    jax_threads(workers)
    inputs = jax.device_put(arrays)

    def run(name: str, function: Callable[..., Any]) -> Contender:
        compiled = jax.jit(function).lower(*inputs).compile()
        return Contender(name, lambda: result(jax.block_until_ready(compiled(*inputs))), FLOAT32)

    yield run("JAX", jax.vmap(of_row))
    yield run("JAX, mapped over rows", lambda *rows: jax.lax.map(lambda row: of_row(*row), rows))


def divergence_with_scipy(base: Any, x: Any, workers: int) -> Contenders:
    """rel_entr of two softmaxes."""
    _one_thread(workers)
    from scipy.special import rel_entr, softmax

    def call() -> Any:
        return rel_entr(softmax(base, axis=1), softmax(x, axis=1)).sum(axis=1).mean()

    yield Contender("SciPy, softmax, rel_entr", call, FLOAT32)


def divergence_with_torch(base: Any, x: Any, workers: int) -> Contenders:
    """kl_div of two log_softmaxes, and its formula by rows that stay in cache."""
    import torch
    from torch.nn.functional import kl_div

    torch.set_num_threads(workers)
    pair = tensor(base), tensor(x)
    scratch = torch.zeros(2, CHUNK, x.shape[1])

    def written() -> Any:
        log_p, log_q = (torch.log_softmax(logits, 1) for logits in pair)
        return kl_div(log_q, log_p, log_target=True, reduction="batchmean")

    def tuned() -> float:
        total = 0.0
        for parts in zip(*(logits.split(CHUNK) for logits in pair), strict=True):
            log_p, log_q = outs = scratch[:, : len(parts[0])]
            for part, out in zip(parts, outs, strict=True):
                torch.log_softmax(part, 1, out=out)
            torch.sub(log_p, log_q, out=log_q)
            total += torch.linalg.vecdot(log_p.exp_(), log_q).sum(dtype=torch.float64).item()
        return total / len(x)

    yield Contender("torch, kl_div", written, FLOAT32)
    yield Contender(f"torch, {CHUNK} rows at a time, out=", tuned, FLOAT32, holds=scratch.nbytes)


def divergence_with_jax(base: Any, x: Any, workers: int) -> Contenders:
    """JAX, compiled: at once, and mapped over rows."""
    import jax
    from jax import numpy as jnp

    def of_row(base: Any, row: Any) -> Any:
        log_p = jax.nn.log_softmax(base)
        return (jnp.exp(log_p) * (log_p - jax.nn.log_softmax(row))).sum()

    yield from _compiled(of_row, (base, x), workers, lambda found: np.asarray(found).mean(dtype=np.float64))


def gradient_with_scipy(x: Any, targets: Any, workers: int, _: Any, picked: Picked) -> Contenders:
    """What autograd would find: softmax - onehot."""
    _one_thread(workers)
    from scipy.special import softmax

    rows = np.arange(len(x))

    def call() -> float:
        gradient = softmax(x, axis=1)
        loss = -np.log(gradient[rows, targets]).mean()
        gradient[rows, targets] -= 1
        gradient /= len(x)
        return float(loss + len(x) * picked(gradient))

    yield Contender("SciPy, softmax", call, FLOAT32)


def gradient_with_numpy(x: Any, targets: Any, workers: int, out: Any, picked: Picked) -> Contenders:
    """Softmax - onehot, by rows that stay in cache."""
    _one_thread(workers)
    at_once = peers.rows_at_once(x)
    rows = np.arange(at_once)

    def call() -> float:
        total = 0.0
        for start in range(0, len(x), at_once):
            final = out[start : start + at_once]
            _softmax_of_numpy(x[start : start + at_once], final)
            at = rows[: len(final)], targets[start : start + at_once]
            total -= np.log(final[at]).sum(dtype=np.float64)
            final[at] -= 1
            final /= len(x)
        return total / len(x) + len(x) * picked(out)

    yield Contender(f"NumPy, {at_once} rows at a time, out=", call, FLOAT32)


def _softmax_of_numpy(x: Any, out: Any) -> None:
    """The formula, into an array that is there."""
    np.subtract(x, x.max(axis=1, keepdims=True), out=out)
    np.exp(out, out=out)
    out /= out.sum(axis=1, keepdims=True)


def _log_softmax_of_numpy(x: Any, out: Any) -> None:
    """The same of its logarithm."""
    np.subtract(x, x.max(axis=1, keepdims=True), out=out)
    out -= np.log(np.exp(out).sum(axis=1, keepdims=True))


def gradient_with_torch(x: Any, targets: Any, workers: int, out: Any, picked: Picked) -> Contenders:
    """Autograd of cross_entropy, and softmax - onehot by rows that stay in cache."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(workers)
    ids = torch.from_numpy(targets)
    logits, leaf, result = tensor(x), tensor(x).requires_grad_(), tensor(out)
    at_once = peers.rows_at_once(x)
    scratch = torch.zeros(at_once if x.itemsize == 2 else 0, x.shape[1])
    rows = torch.arange(at_once)

    def written(in_float64: bool) -> float:
        losses = cross_entropy(leaf, ids, reduction="none" if in_float64 else "mean")
        loss = losses.double().mean() if in_float64 else losses
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.item() + len(x) * picked(gradient.numpy())

    def tuned() -> float:
        total = 0.0
        parts = (whole.split(at_once) for whole in (logits, ids, result))
        for part, some, final in zip(*parts, strict=True):
            gradient = scratch[: len(part)] if len(scratch) else final
            torch.softmax(part, 1, dtype=torch.float32, out=gradient)
            at = rows[: len(part)], some
            total -= gradient[at].log().sum(dtype=torch.float64).item()
            gradient[at] -= 1
            torch.mul(gradient, 1 / len(x), out=final)
        return total / len(x) + len(x) * picked(out)

    tolerance = FLOAT32 if x.itemsize == 4 else HALF
    yield Contender("torch, autograd", partial(written, False), tolerance, known=overflows(x))
    if x.itemsize == 2:
        yield Contender("torch, autograd, mean in float64", partial(written, True), tolerance)
    yield Contender(f"torch, {at_once} rows at a time, out=", tuned, tolerance, holds=scratch.nbytes)


def gradient_with_jax(x: Any, targets: Any, workers: int, _: Any, picked: Picked) -> Contenders:
    """JAX, compiled: value_and_grad of the mean loss, and softmax - onehot mapped over rows."""
    import jax
    from jax import numpy as jnp

    jax_threads(workers)
    inputs = jax.device_put((x, targets))

    def mean_loss(logits: Any, ids: Any) -> Any:
        return (jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, ids[:, None], 1)[:, 0]).mean()

    def of_row(row: Any) -> Any:
        logits, target = row
        loss = jax.nn.logsumexp(logits) - logits[target]
        return loss, jnp.exp(logits - (loss + logits[target])).at[target].add(-1) / len(x)

    def mapped(logits: Any, ids: Any) -> Any:
        losses, gradient = jax.lax.map(of_row, (logits, ids))
        return losses.mean(), gradient

    def run(name: str, function: Callable[..., Any]) -> Contender:
        compiled = jax.jit(function).lower(*inputs).compile()

        def call() -> float:
            loss, gradient = jax.block_until_ready(compiled(*inputs))
            return float(loss) + len(x) * picked(np.asarray(gradient))

        return Contender(name, call, FLOAT32)

    yield run("JAX, value_and_grad", jax.value_and_grad(mean_loss))
    yield run("JAX, mapped over rows", mapped)


def written_with_scipy(name: str, x: Any, _ids: Any, workers: int, _: Any, picked: Picked) -> Contenders:
    """The function of this name."""
    _one_thread(workers)
    from scipy import special

    function = getattr(special, name)
    yield Contender(f"SciPy, {name}", lambda: picked(function(x, axis=1)), FLOAT32)


def written_with_numpy(name: str, x: Any, _ids: Any, workers: int, out: Any, picked: Picked) -> Contenders:
    """The formula, by rows that stay in cache."""
    _one_thread(workers)
    function = {"softmax": _softmax_of_numpy, "log_softmax": _log_softmax_of_numpy}[name]
    at_once = peers.rows_at_once(x)

    def call() -> float:
        for start in range(0, len(x), at_once):
            function(x[start : start + at_once], out[start : start + at_once])
        return picked(out)

    yield Contender(f"NumPy, {at_once} rows at a time, out=", call, FLOAT32)


def written_with_torch(name: str, x: Any, _ids: Any, workers: int, out: Any, picked: Picked) -> Contenders:
    """The function of this name: at once, and by rows that stay in cache."""
    import torch

    torch.set_num_threads(workers)
    logits, result, function, at_once = tensor(x), tensor(out), getattr(torch, name), peers.rows_at_once(x)

    def chunked() -> float:
        for part, final in zip(logits.split(at_once), result.split(at_once), strict=True):
            function(part, 1, out=final)
        return picked(out)

    yield Contender("torch", lambda: picked(function(logits, 1).numpy()), FLOAT32)
    yield Contender(f"torch, {at_once} rows at a time, out=", chunked, FLOAT32)


def written_with_onnxruntime(name: str, x: Any, _ids: Any, workers: int, out: Any, picked: Picked) -> Contenders:
    """The operator of this name, into a preallocated output."""
    into = onnx_operator({"log_softmax": "LogSoftmax", "softmax": "Softmax"}[name], workers)

    def call() -> float:
        into(x, out)
        return picked(out)

    yield Contender("onnxruntime, into out", call, FLOAT32)


def written_with_jax(name: str, x: Any, _ids: Any, workers: int, _: Any, picked: Picked) -> Contenders:
    """The function of this name, compiled: at once, and mapped over rows."""
    import jax

    yield from _compiled(getattr(jax.nn, name), (x,), workers, lambda result: picked(np.asarray(result)))


TOKENS: Builders = {
    "SciPy": ("scipy", tokens_with_scipy),
    "torch": ("torch", tokens_with_torch),
    "JAX": ("jax", tokens_with_jax),
}
DIVERGENCE: Builders = {
    "SciPy": ("scipy", divergence_with_scipy),
    "torch": ("torch", divergence_with_torch),
    "JAX": ("jax", divergence_with_jax),
}
_GRADIENT: Builders = {
    "NumPy": ("numpy", gradient_with_numpy),
    "SciPy": ("scipy", gradient_with_scipy),
    "torch": ("torch", gradient_with_torch),
    "JAX": ("jax", gradient_with_jax),
}


def _written(name: str) -> Builders:
    """Those that write the result of the function of this name."""
    return {
        "NumPy": ("numpy", partial(written_with_numpy, name)),
        "SciPy": ("scipy", partial(written_with_scipy, name)),
        "torch": ("torch", partial(written_with_torch, name)),
        "onnxruntime": ("onnxruntime onnx", partial(written_with_onnxruntime, name)),
        "JAX": ("jax", partial(written_with_jax, name)),
    }


WRITTEN = {"grad": _GRADIENT, "log_softmax": _written("log_softmax"), "softmax": _written("softmax")}


def of_dtype(builders: Builders, dtype: str) -> Builders:
    """Those to compare with: torch alone has kernels for half precision."""
    return builders if dtype == "float32" else {"torch": builders["torch"]}
