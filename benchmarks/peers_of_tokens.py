"""Other libraries' ways to what tokenloss finds for each token and writes for each logit, as in `peers`.

Each function yields contenders for float32 logits `x` and class ids `targets`, or a base model's logits, on one thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from harness import Contender
from peers import CHUNK, FLOAT32, Builders, Contenders, compiled, jitted, onnx_operator, rows_at_once, torch_on

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
    return lambda out: float(2 * np.asarray(out)[rows, classes].mean(dtype=np.float64))


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


def tokens_with_scipy(x: Any, targets: Any, top_k: int) -> Contenders:
    """log_softmax and entr of SciPy's, the rest of NumPy's."""
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


def tokens_with_torch(x: Any, targets: Any, top_k: int) -> Contenders:
    """log_softmax and what follows from it: at once, by rows that stay in cache, and compiled."""
    torch = torch_on(1)
    logits, ids = torch.from_numpy(x), torch.from_numpy(targets)[:, None]
    scratch = torch.zeros(2, CHUNK, x.shape[1])
    flags = torch.zeros(CHUNK, x.shape[1], dtype=torch.bool)

    def of_rows(part: Any, some: Any, log_p: Any = None, p: Any = None, is_above: Any = None) -> tuple[Any, ...]:
        log_p = torch.log_softmax(part, 1, out=log_p)
        p = torch.exp(log_p, out=p)
        is_above = torch.ge(part, part.gather(1, some), out=is_above)
        rank = is_above.view(torch.uint8).sum(1, dtype=torch.int32)  # twice as fast as of bool
        best = log_p.gather(1, part.topk(top_k, 1).indices) if top_k else part.argmax(1)
        return -log_p.gather(1, some), -torch.linalg.vecdot(p, log_p), rank, best

    def chunked() -> float:
        chunks = zip(logits.split(CHUNK), ids.split(CHUNK), strict=True)
        actual = [of_rows(part, some, *scratch[:, : len(part)], flags[: len(part)]) for part, some in chunks]
        return result(map(torch.cat, zip(*actual, strict=True)))

    def result(actual: Any) -> float:
        return number(*actual, x.shape[1], top_k)

    yield Contender("torch", lambda: result(of_rows(logits, ids)), FLOAT32)
    yield Contender(f"torch, {CHUNK} rows at a time, out=", chunked, FLOAT32)
    yield from compiled({"log_softmax, vecdot": of_rows}, logits, ids, result=result)


def tokens_with_jax(x: Any, targets: Any, top_k: int) -> Contenders:
    """JAX, compiled: at once, and mapped over rows."""
    import jax
    from jax import numpy as jnp

    def of_row(row: Any, target: Any) -> tuple[Any, ...]:
        log_p = jax.nn.log_softmax(row)
        best = log_p[jax.lax.top_k(row, top_k)[1]] if top_k else row.argmax()
        return -log_p[target], -(jnp.exp(log_p) * log_p).sum(), (row >= row[target]).sum(), best

    return _at_once_and_mapped(of_row, x, targets, result=lambda actual: number(*actual, x.shape[1], top_k))


def _at_once_and_mapped(of_row: Callable[..., Any], *arrays: Any, result: Picked) -> Contenders:
    """A function of a row, compiled by JAX for all rows and to take them one by one."""
    import jax

    yield jitted("JAX", jax.vmap(of_row), *arrays, result=result)
    mapped = partial(jax.lax.map, lambda row: of_row(*row))
    yield jitted("JAX, mapped over rows", lambda *rows: mapped(rows), *arrays, result=result)


def divergence_with_scipy(base: Any, x: Any) -> Contenders:
    """rel_entr of two softmaxes."""
    from scipy.special import rel_entr, softmax

    def call() -> Any:
        return rel_entr(softmax(base, axis=1), softmax(x, axis=1)).sum(axis=1).mean()

    yield Contender("SciPy, softmax, rel_entr", call, FLOAT32)


def divergence_with_torch(base: Any, x: Any) -> Contenders:
    """kl_div of two log_softmaxes, the same compiled, and its formula by rows that stay in cache."""
    torch = torch_on(1)
    pair = torch.from_numpy(base), torch.from_numpy(x)
    scratch = torch.zeros(2, CHUNK, x.shape[1])

    def written(base: Any, x: Any) -> Any:
        log_p, log_q = torch.log_softmax(base, 1), torch.log_softmax(x, 1)
        return torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")

    def tuned() -> float:
        total = 0.0
        for parts in zip(*(logits.split(CHUNK) for logits in pair), strict=True):
            log_p, log_q = outs = scratch[:, : len(parts[0])]
            for part, out in zip(parts, outs, strict=True):
                torch.log_softmax(part, 1, out=out)
            torch.sub(log_p, log_q, out=log_q)
            total += torch.linalg.vecdot(log_p.exp_(), log_q).sum(dtype=torch.float64).item()
        return total / len(x)

    yield Contender("torch, kl_div", partial(written, *pair), FLOAT32)
    yield Contender(f"torch, {CHUNK} rows at a time, out=", tuned, FLOAT32)
    yield from compiled({"kl_div": written}, *pair)


def divergence_with_jax(base: Any, x: Any) -> Contenders:
    """JAX, compiled: at once, and mapped over rows."""
    import jax
    from jax import numpy as jnp

    def of_row(base: Any, row: Any) -> Any:
        log_p = jax.nn.log_softmax(base)
        return (jnp.exp(log_p) * (log_p - jax.nn.log_softmax(row))).sum()

    return _at_once_and_mapped(of_row, base, x, result=lambda actual: np.asarray(actual).mean(dtype=np.float64))


def gradient_with_scipy(x: Any, targets: Any, _: Any, picked: Picked) -> Contenders:
    """What autograd would find: softmax - onehot."""
    from scipy.special import softmax

    rows = np.arange(len(x))

    def call() -> float:
        gradient = softmax(x, axis=1)
        loss = -np.log(gradient[rows, targets]).mean()
        gradient[rows, targets] -= 1
        gradient /= len(x)
        return float(loss + len(x) * picked(gradient))

    yield Contender("SciPy, softmax", call, FLOAT32)


def gradient_with_numpy(x: Any, targets: Any, out: Any, picked: Picked) -> Contenders:
    """Softmax - onehot, by rows that stay in cache."""
    at_once = rows_at_once(x)
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


def gradient_with_torch(x: Any, targets: Any, out: Any, picked: Picked) -> Contenders:
    """Autograd of cross_entropy, and softmax - onehot by rows that stay in cache, and compiled."""
    torch = torch_on(1)
    cross_entropy = torch.nn.functional.cross_entropy
    ids = torch.from_numpy(targets)
    logits, leaf, into = torch.from_numpy(x), torch.from_numpy(x).requires_grad_(), torch.from_numpy(out)
    at_once = rows_at_once(x)
    rows, classes = torch.arange(at_once), torch.arange(x.shape[1])

    def result(actual: Any) -> float:
        loss, gradient = actual
        return loss.item() + len(x) * picked(gradient.numpy())

    def autograd() -> Any:
        loss = cross_entropy(leaf, ids)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    def tuned() -> float:
        total = 0.0
        for part, some, final in zip(*(whole.split(at_once) for whole in (logits, ids, into)), strict=True):
            torch.softmax(part, 1, out=final)
            at = rows[: len(part)], some
            total -= final[at].log().sum(dtype=torch.float64).item()
            final[at] -= 1
            final.mul_(1 / len(x))
        return total / len(x) + len(x) * picked(out)

    def formula(logits: Any, ids: Any) -> Any:
        is_target = classes == ids[:, None]
        return cross_entropy(logits, ids), (torch.softmax(logits, 1) - is_target.float()) / len(x)

    yield Contender("torch, autograd", lambda: result(autograd()), FLOAT32)
    yield Contender(f"torch, {at_once} rows at a time, out=", tuned, FLOAT32)
    yield from compiled({"softmax - onehot": formula}, logits, ids, result=result)


def gradient_with_jax(x: Any, targets: Any, _: Any, picked: Picked) -> Contenders:
    """JAX, compiled: value_and_grad of the mean loss."""
    import jax
    from jax import numpy as jnp

    def mean_loss(logits: Any, ids: Any) -> Any:
        return (jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, ids[:, None], 1)[:, 0]).mean()

    def result(actual: Any) -> float:
        return float(actual[0]) + len(x) * picked(actual[1])

    yield jitted("JAX, value_and_grad", jax.value_and_grad(mean_loss), x, targets, result=result)


def written_with_scipy(name: str, x: Any, _ids: Any, _: Any, picked: Picked) -> Contenders:
    """The function of this name."""
    from scipy import special

    function = getattr(special, name)
    yield Contender(f"SciPy, {name}", lambda: picked(function(x, axis=1)), FLOAT32)


def written_with_numpy(name: str, x: Any, _ids: Any, out: Any, picked: Picked) -> Contenders:
    """The formula, by rows that stay in cache."""
    function = {"softmax": _softmax_of_numpy, "log_softmax": _log_softmax_of_numpy}[name]
    at_once = rows_at_once(x)

    def call() -> float:
        for start in range(0, len(x), at_once):
            function(x[start : start + at_once], out[start : start + at_once])
        return picked(out)

    yield Contender(f"NumPy, {at_once} rows at a time, out=", call, FLOAT32)


def written_with_torch(name: str, x: Any, _ids: Any, out: Any, picked: Picked) -> Contenders:
    """The function of this name: at once, by rows that stay in cache, and compiled."""
    torch = torch_on(1)
    logits, into, function, at_once = torch.from_numpy(x), torch.from_numpy(out), getattr(torch, name), rows_at_once(x)

    def chunked() -> float:
        for part, final in zip(logits.split(at_once), into.split(at_once), strict=True):
            function(part, 1, out=final)
        return picked(out)

    yield Contender("torch", lambda: picked(function(logits, 1).numpy()), FLOAT32)
    yield Contender(f"torch, {at_once} rows at a time, out=", chunked, FLOAT32)
    yield from compiled({name: lambda logits: function(logits, 1)}, logits, result=picked)


def written_with_onnxruntime(name: str, x: Any, _ids: Any, out: Any, picked: Picked) -> Contenders:
    """The operator of this name, into a preallocated output."""
    into = onnx_operator({"log_softmax": "LogSoftmax", "softmax": "Softmax"}[name])

    def call() -> float:
        into(x, out)
        return picked(out)

    yield Contender("onnxruntime, into out", call, FLOAT32)


def written_with_jax(name: str, x: Any, _ids: Any, _: Any, picked: Picked) -> Contenders:
    """The function of this name, compiled."""
    import jax

    yield jitted("JAX", partial(getattr(jax.nn, name), axis=1), x, result=picked)


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


WRITTEN = {
    "cross_entropy_and_grad": _GRADIENT, "log_softmax": _written("log_softmax"), "softmax": _written("softmax"),
}  # fmt: skip
