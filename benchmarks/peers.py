"""Other libraries' ways to the mean cross-entropy of logits: as people write it, and at their best.

Each function yields contenders for logits `x`, class ids `targets` and a number of threads. What can be compiled or
allocated once is, beforehand.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from harness import Contender, UnavailableError

FLOAT32 = 1e-5  # what float32 arithmetic and a mean in float32 leave of the digits
HALF = 2e-2  # and what results in float16 or bfloat16 leave
CHUNK = 8  # rows at a time, which stay in a cache; of short rows
CHUNK_NUMBERS = 1 << 16  # as many as hold so many numbers

Contenders = Iterable[Contender]


def with_numpy(x: Any, targets: Any, workers: int) -> Contenders:
    """The stable formula, and the same without fresh memory; NumPy has one thread."""
    if workers > 1:
        raise UnavailableError("has one thread")
    rows, at_once = np.arange(len(x)), rows_at_once(x)

    def written() -> Any:
        logits = as_float32(x)
        shifted = logits - logits.max(axis=1, keepdims=True)
        return (np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, targets]).mean()

    yield Contender("NumPy", written, FLOAT32)
    scratch = np.zeros((at_once, x.shape[1]), as_float32(x[:0]).dtype)
    losses = np.zeros(len(x), scratch.dtype)

    def tuned() -> Any:
        for start in range(0, len(x), at_once):
            part, loss = as_float32(x[start : start + at_once]), losses[start : start + at_once]
            terms = scratch[: len(part)]
            np.subtract(part, part.max(axis=1, keepdims=True), out=terms)
            picked = terms[rows[: len(part)], targets[start : start + at_once]]
            np.exp(terms, out=terms)
            np.sum(terms, axis=1, out=loss)
            np.log(loss, out=loss)
            loss -= picked
        return losses.mean()

    yield Contender(f"NumPy, {at_once} rows at a time, out=", tuned, FLOAT32, holds=scratch.nbytes)


def with_scipy(x: Any, targets: Any, workers: int) -> Contenders:
    """scipy.special.logsumexp; SciPy has one thread."""
    if workers > 1:
        raise UnavailableError("has one thread")
    from scipy.special import logsumexp

    rows = np.arange(len(x))

    def call() -> Any:
        logits = as_float32(x)
        return (logsumexp(logits, axis=1) - logits[rows, targets]).mean()

    yield Contender("SciPy, logsumexp", call, FLOAT32)


def with_torch(x: Any, targets: Any, workers: int) -> Contenders:
    """torch.nn.functional.cross_entropy at once, and by rows that stay in cache."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(workers)
    logits, ids = tensor(x), torch.from_numpy(targets)
    tolerance, at_once = HALF if x.itemsize == 2 else FLOAT32, rows_at_once(x)

    def chunked() -> float:
        total = 0.0
        for part, some in zip(logits.split(at_once), ids.split(at_once), strict=True):
            total += cross_entropy(part, some, reduction="none").sum(dtype=torch.float64).item()
        return total / len(ids)

    yield Contender("torch", lambda: cross_entropy(logits, ids), tolerance, known=overflows(x))
    if x.itemsize == 2:
        best = partial(cross_entropy, logits, ids, reduction="none")
        yield Contender("torch, mean in float64", lambda: best().double().mean(), tolerance)
    yield Contender(f"torch, {at_once} rows at a time", chunked, tolerance)


def with_torch_compile(x: Any, targets: Any, workers: int) -> Contenders:
    """torch.compile of the same."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(workers)
    torch._dynamo.reset()  # compiled code keeps its number of threads
    logits, ids = tensor(x), torch.from_numpy(targets)
    compiled = torch.compile(cross_entropy, dynamic=False)
    try:
        compiled(logits, ids)
    except Exception as error:
        raise UnavailableError(f"no working compiler: {str(error).strip().splitlines()[0][:60]}") from error
    yield Contender("torch.compile", lambda: compiled(logits, ids), FLOAT32)


def rows_at_once(x: Any) -> int:
    """The number of rows of which temporary arrays fit in a cache."""
    return max(CHUNK, CHUNK_NUMBERS // int(x.shape[1]))


def as_float32(x: Any) -> Any:
    """Half precision widened, for NumPy would compute in it; other arrays as they are."""
    return x.astype(np.float32) if x.itemsize == 2 else x


def overflows(x: Any) -> str:
    """Why torch's mean loss of these logits may be inf."""
    return "overflows: torch adds float16 losses up in float16" if x.dtype == np.float16 else ""


def tensor(x: Any) -> Any:
    """The array as a tensor, without a copy."""
    import torch

    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def with_onnxruntime(x: Any, targets: Any, workers: int) -> Contenders:
    """LogSoftmax into preallocated outputs (three times as fast as its ReduceLogSumExp), then one score of each row."""
    into = onnx_operator("LogSoftmax", workers)

    def run(at_once: int) -> Contender:
        out = np.zeros((at_once, x.shape[1]), np.float32)

        def call() -> float:
            total = 0.0
            for start in range(0, len(x), at_once):
                part = x[start : start + at_once]
                into(part, out[: len(part)])
                total -= out[np.arange(len(part)), targets[start : start + at_once]].sum(dtype=np.float64)
            return total / len(x)

        name = "onnxruntime" + f", {CHUNK} rows at a time" * (at_once == CHUNK)
        return Contender(name, call, FLOAT32, holds=out.nbytes)

    yield run(len(x))
    yield run(CHUNK)


def onnx_operator(name: str, workers: int) -> Callable[[Any, Any], None]:
    """A function that runs an operator of onnxruntime's over the rows of one array, into another."""
    import onnxruntime
    from onnx import TensorProto, helper

    shapes = [helper.make_tensor_value_info(side, TensorProto.FLOAT, [None, None]) for side in "xy"]
    graph = helper.make_graph([helper.make_node(name, ["x"], ["y"], axis=1)], name, shapes[:1], shapes[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = workers
    options.add_session_config_entry("session.force_spinning_stop", "1")  # when a run ends; others run then
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()

    def into(part: Any, out: Any) -> None:
        binding.bind_input("x", "cpu", 0, np.float32, part.shape, part.ctypes.data)
        binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)
        session.run_with_iobinding(binding)

    return into


def with_jax(x: Any, targets: Any, workers: int) -> Contenders:
    """JAX, compiled: at once, and mapped over rows."""
    import jax
    from jax import numpy as jnp

    jax_threads(workers)
    logits, ids = jax.device_put(x), jax.device_put(targets)

    def at_once(logits: Any, ids: Any) -> Any:
        return (jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, ids[:, None], 1)[:, 0]).mean()

    def mapped(logits: Any, ids: Any) -> Any:
        return jax.lax.map(lambda row: jax.nn.logsumexp(row[0]) - row[0][row[1]], (logits, ids)).mean()

    def run(name: str, function: Callable[..., Any]) -> Contender:
        compiled = jax.jit(function).lower(logits, ids).compile()
        return Contender(name, lambda: compiled(logits, ids).block_until_ready(), FLOAT32)

    yield run("JAX", at_once)
    yield run("JAX, mapped over rows", mapped)


def jax_threads(workers: int) -> None:
    """Have JAX start anew, with so many threads."""
    from jax.extend import backend

    os.environ["PJRT_NPROC"] = os.environ["NPROC"] = str(workers)  # where XLA finds the size of its thread pool,
    backend.clear_backends()  # once


def with_numba(x: Any, targets: Any, workers: int) -> Contenders:
    """Loops over rows, compiled."""
    os.environ["NUMBA_THREADING_LAYER"] = "workqueue"  # its OpenMP layer would change torch's number of threads
    import numba

    numba.set_num_threads(workers)

    @numba.njit(fastmath=True, parallel=True, nogil=True)
    def mean_loss(logits: Any, ids: Any) -> Any:
        total = 0.0
        for i in numba.prange(logits.shape[0]):
            maximum = logits[i, 0]
            for k in range(logits.shape[1]):
                maximum = max(maximum, logits[i, k])
            terms = np.float32(0)
            for k in range(logits.shape[1]):
                terms += math.exp(logits[i, k] - maximum)
            total += maximum + math.log(terms) - logits[i, ids[i]]
        return total / logits.shape[0]

    mean_loss(x[:1], targets[:1])
    yield Contender("numba", lambda: mean_loss(x, targets), FLOAT32)


Builders = dict[str, tuple[str, Callable[..., Contenders]]]  # by name, with what pip installs it by

_TORCH: Builders = {"torch": ("torch", with_torch)}
_ALL: Builders = {
    "NumPy": ("numpy", with_numpy),
    "SciPy": ("scipy", with_scipy),
    **_TORCH,
    "torch.compile": ("torch", with_torch_compile),
    "onnxruntime": ("onnxruntime onnx", with_onnxruntime),
    "JAX": ("jax", with_jax),
    "numba": ("numba", with_numba),
}
BY_DTYPE: dict[str, Builders] = {"float32": _ALL, "float16": _TORCH, "bfloat16": _TORCH}
