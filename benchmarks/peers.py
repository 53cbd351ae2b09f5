"""Other libraries' ways to the mean cross-entropy of logits: as people write it, and at their best.

Each function yields contenders for logits `x` and class ids `targets`, on one thread. What needs to be compiled or
allocated only once is prepared before timing. Classes are the second axis, in rows (N, V) and in planes (images,
classes, pixels), which networks that segment images return. Rows of few classes may be transposed into planes, part by
part: NumPy and torch then reduce whole vectors instead of a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from harness import Contender, UnavailableError

FLOAT32 = 1e-5  # what float32 arithmetic and a mean in float32 leave of the digits
HALF = 2e-2  # and what results in float16 or bfloat16 leave
CHUNK = 8  # rows at a time, which stay in a cache; of short rows
CHUNK_NUMBERS = 1 << 16  # as many as hold so many numbers
TRANSPOSED_UP_TO = 512  # classes
MAPPED_FROM = 10_000  # classes: JAX takes rows one by one
EPSILON = 1e-12
TUTORIAL = "the tutorial's function"

Contenders = Iterable[Contender]


def tutorial(y_true: Any, y_pred: Any, epsilon: float = EPSILON) -> Any:
    """The function as tutorials have it: the mean over rows, or the sum for a single one."""
    y_pred = np.clip(y_pred, epsilon, 1 - epsilon)
    if y_pred.ndim == 1:
        return -np.sum(y_true * np.log(y_pred))
    return np.mean(-np.sum(y_true * np.log(y_pred), axis=1))


def with_tutorial(x: Any, targets: Any) -> Contenders:
    """The tutorial's function of one-hot targets and of a softmax, as tutorials have that, too."""
    logits = as_float32(x)
    y_true = np.zeros_like(logits)
    y_true[np.arange(len(x)), targets] = 1

    def call() -> Any:
        exps = np.exp(logits - logits.max(axis=1, keepdims=True))
        return tutorial(y_true, exps / exps.sum(axis=1, keepdims=True))

    yield Contender(f"{TUTORIAL}, of a softmax", call, FLOAT32)


def with_numpy(x: Any, targets: Any) -> Contenders:
    """The stable formula, and the same by parts that stay in cache, without fresh memory."""

    def written() -> Any:
        logits = as_float32(x)
        shifted = logits - logits.max(axis=1, keepdims=True)
        picked = np.take_along_axis(shifted, targets[:, None], 1)[:, 0]
        return (np.log(np.exp(shifted).sum(axis=1)) - picked).mean()

    yield Contender("NumPy", written, FLOAT32)
    if x.ndim == 2:
        yield _numpy_by_rows(x, targets)
    if x.ndim > 2:
        yield _numpy_by_planes("NumPy", x, targets)
    elif x.shape[1] <= TRANSPOSED_UP_TO:
        yield _numpy_by_planes("NumPy, transposed", x.T[None], targets[None])


def _numpy_by_rows(x: Any, targets: Any) -> Contender:
    """The stable formula over some rows at a time."""
    at_once = rows_at_once(x)
    rows = np.arange(at_once)
    scratch = np.zeros((at_once, x.shape[1]), as_float32(x[:0]).dtype)
    losses = np.zeros(len(x), scratch.dtype)

    def call() -> Any:
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

    return Contender(f"NumPy, {at_once} rows at a time, out=", call, FLOAT32)


def _numpy_by_planes(name: str, x: Any, targets: Any) -> Contender:
    """The stable formula over parts of the planes."""
    at_once = min(rows_at_once(x), x.shape[2])
    flat = np.zeros(x.shape[1] * at_once, as_float32(x[:0]).dtype)
    losses, columns = np.zeros(targets.shape, flat.dtype), np.arange(at_once)

    def of_part(planes: Any, ids: Any, loss: Any) -> None:
        terms = flat[: planes.size].reshape(planes.shape)
        if planes.strides[1] != planes.itemsize or planes.dtype != flat.dtype:
            np.copyto(terms, planes)  # contiguous, and no half precision
            planes = terms
        np.subtract(planes, planes.max(axis=0), out=terms)
        picked = terms[ids, columns[: len(ids)]]
        np.exp(terms, out=terms)
        np.sum(terms, axis=0, out=loss)
        np.log(loss, out=loss)
        loss -= picked

    def call() -> Any:
        for image, ids, loss in zip(x, targets, losses, strict=True):
            for start in range(0, x.shape[2], at_once):
                part = slice(start, start + at_once)
                of_part(image[:, part], ids[part], loss[part])
        return losses.mean()

    return Contender(f"{name}, {at_once} at a time", call, FLOAT32)


def with_scipy(x: Any, targets: Any) -> Contenders:
    """The function logsumexp."""
    from scipy.special import logsumexp

    def call() -> Any:
        logits = as_float32(x)
        return (logsumexp(logits, axis=1) - np.take_along_axis(logits, targets[:, None], 1)[:, 0]).mean()

    yield Contender("SciPy, logsumexp", call, FLOAT32)


def with_sklearn(x: Any, targets: Any) -> Contenders:
    """The loss that LogisticRegression minimizes; it takes three classes or more, and no half precision."""
    from sklearn._loss import HalfMultinomialLoss

    if x.shape[1] > 2 and x.itemsize > 2:
        y_true, losses = targets.astype(x.dtype), np.zeros(len(x), x.dtype)
        call = partial(HalfMultinomialLoss(n_classes=x.shape[1]).loss, y_true, x, loss_out=losses)
        yield Contender("scikit-learn, HalfMultinomialLoss", lambda: call().mean(), FLOAT32)


def with_torch(x: Any, targets: Any) -> Contenders:
    """torch.nn.functional.cross_entropy at once, and by parts that stay in cache."""
    torch = torch_on(1)
    cross_entropy = torch.nn.functional.cross_entropy
    logits, ids = tensor(x), torch.from_numpy(targets)
    tolerance, at_once = HALF if x.itemsize == 2 else FLOAT32, rows_at_once(x)

    def by_rows() -> float:
        total = 0.0
        for part, some in zip(logits.split(at_once), ids.split(at_once), strict=True):
            total += cross_entropy(part, some, reduction="none").sum(dtype=torch.float64).item()
        return total / len(ids)

    def by_planes(planes: Any, ids: Any) -> float:
        total = 0.0
        for part, some in zip(planes.split(at_once, 2), ids.split(at_once, 1), strict=True):
            for image, classes in zip(part, some, strict=True):
                losses = cross_entropy(image[None].contiguous(), classes[None], reduction="none")
                total += losses.sum(dtype=torch.float64).item()
        return total / ids.numel()

    yield Contender("torch", lambda: cross_entropy(logits, ids), tolerance, known=overflows(x))
    if x.itemsize == 2:
        best = partial(cross_entropy, logits, ids, reduction="none")
        yield Contender("torch, mean in float64", lambda: best().double().mean(), tolerance)
    if x.ndim == 2:
        yield Contender(f"torch, {at_once} rows at a time", by_rows, tolerance)
    if x.ndim > 2:
        yield Contender(f"torch, {at_once} at a time", partial(by_planes, logits, ids), tolerance)
    elif x.shape[1] <= TRANSPOSED_UP_TO:
        planes = partial(by_planes, logits.T[None], ids[None])
        yield Contender(f"torch, transposed, {at_once} at a time", planes, tolerance)


def with_torch_compile(x: Any, targets: Any) -> Contenders:
    """The function compiled, and its formula compiled, which often is faster."""
    torch = torch_on(1)
    ways: dict[str, Callable[..., Any]] = {
        "cross_entropy": torch.nn.functional.cross_entropy,
        "logsumexp - gather": lambda x, t: (torch.logsumexp(x, 1) - x.gather(1, t[:, None])[:, 0]).mean(),
    }
    tolerance = HALF if x.itemsize == 2 else FLOAT32
    return compiled(ways, tensor(x), torch.from_numpy(targets), tolerance=tolerance, known=overflows(x))


def compiled(
    ways: dict[str, Callable[..., Any]],
    *tensors: Any,
    tolerance: float = FLOAT32,
    known: str = "",
    result: Callable[[Any], Any] = lambda actual: actual,
) -> Contenders:
    """Functions of tensors, each compiled for these shapes by torch.compile, here and once."""
    import torch

    torch._dynamo.reset()  # else functions that differ in what they close over would soon not be compiled
    for name, function in ways.items():
        run = torch.compile(function, dynamic=False)
        try:
            run(*tensors)
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            raise UnavailableError(f"does not compile here: {first[:80]}") from error
        yield Contender(f"torch.compile, {name}", lambda run=run: result(run(*tensors)), tolerance, known=known)


def torch_on(threads: int) -> Any:
    """The torch module, set to this number of threads."""
    import torch

    torch.set_num_threads(threads)
    return torch


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


def with_onnxruntime(x: Any, targets: Any) -> Contenders:
    """LogSoftmax into memory that is there (three times as fast as ReduceLogSumExp), then one score of each row."""
    into = onnx_operator("LogSoftmax")

    def run(at_once: int) -> Contender:
        out, rows = np.zeros((at_once, x.shape[1]), np.float32), np.arange(at_once)

        def call() -> float:
            total = 0.0
            for start in range(0, len(x), at_once):
                part = x[start : start + at_once]
                into(part, out[: len(part)])
                total -= out[rows[: len(part)], targets[start : start + at_once]].sum(dtype=np.float64)
            return total / len(x)

        return Contender(f"onnxruntime, {at_once} rows at a time", call, FLOAT32)

    if x.dtype == np.float32:
        yield run(len(x))
        if rows_at_once(x) < len(x):
            yield run(rows_at_once(x))


def onnx_operator(name: str) -> Callable[[Any, Any], None]:
    """A function that runs an operator of onnxruntime's over the rows of one array, into another."""
    import onnxruntime
    from onnx import TensorProto, helper

    shapes = [helper.make_tensor_value_info(side, TensorProto.FLOAT, [None, None]) for side in "xy"]
    graph = helper.make_graph([helper.make_node(name, ["x"], ["y"], axis=1)], name, shapes[:1], shapes[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()

    def into(part: Any, out: Any) -> None:
        binding.bind_input("x", "cpu", 0, np.float32, part.shape, part.ctypes.data)
        binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)
        session.run_with_iobinding(binding)

    return into


def with_jax(x: Any, targets: Any) -> Contenders:
    """JAX, compiled: at once, and for many classes mapped over rows."""
    import jax
    from jax import numpy as jnp

    def at_once(logits: Any, ids: Any) -> Any:
        return (jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, ids[:, None], 1)[:, 0]).mean()

    def mapped(logits: Any, ids: Any) -> Any:
        return jax.lax.map(lambda row: jax.nn.logsumexp(row[0]) - row[0][row[1]], (logits, ids)).mean()

    if x.dtype == np.float32:
        yield jitted("JAX", at_once, x, targets)
        if x.ndim == 2 and x.shape[1] >= MAPPED_FROM:
            yield jitted("JAX, mapped over rows", mapped, x, targets)


def jitted(
    name: str, function: Callable[..., Any], *arrays: Any, result: Callable[[Any], Any] = lambda actual: actual
) -> Contender:
    """A function of arrays, compiled by JAX, whose threads run.py sets."""
    import jax

    inputs = jax.device_put(arrays)
    run = jax.jit(function).lower(*inputs).compile()
    return Contender(name, lambda: result(jax.block_until_ready(run(*inputs))), FLOAT32)


Builders = dict[str, tuple[str, Callable[..., Contenders]]]  # by name, with what pip installs it by

PLANES: Builders = {
    "NumPy": ("numpy", with_numpy),
    "SciPy": ("scipy", with_scipy),
    "torch": ("torch", with_torch),
    "torch.compile": ("torch", with_torch_compile),
    "JAX": ("jax", with_jax),
}
LARGE: Builders = {**PLANES, "onnxruntime": ("onnxruntime onnx", with_onnxruntime)}
ROWS: Builders = {**LARGE, TUTORIAL: ("numpy", with_tutorial), "scikit-learn": ("scikit-learn", with_sklearn)}
