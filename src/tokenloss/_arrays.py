"""The only judge of input: any array becomes a view that `_core` can read, or an error that says what would fit."""

from __future__ import annotations

import math
import numbers
import operator
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from tokenloss import _core

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import EllipsisType

    from tokenloss._types import Float64Array

_LARGEST = float(np.finfo(np.float64).max)

FLOATS = "float16, bfloat16, float32 or float64"
TARGETS = f"an integer, bool, {FLOATS}"
REDUCTIONS = ("mean", "sum", "none")

# Every message to people: the argument, what came, what fits.
_ERRORS: dict[str, tuple[type[Exception], str]] = {
    "device": (TypeError, "{name} is on device {got}; move it to the CPU first"),
    "dlpack": (TypeError, "{name} cannot be read through DLPack: {got}"),
    "array": (TypeError, "{name} is no array of numbers: {got}"),
    "negative view": (TypeError, "{name} is a view of the negative of its memory; give {name}.resolve_neg()"),
    "masked": (TypeError, "{name} is a masked array; give its data, and where=~mask"),
    "dtype": (TypeError, "{name} has dtype {got}; it must be {fits}"),
    "scalar": (ValueError, "{name} is a scalar; it must have an axis of classes"),
    "axis": (ValueError, "axis is {got}, but {name} has {fits}"),
    "type": (TypeError, "{name} is {got!r}; it must be {fits}"),
    "shape": (ValueError, "{name} has shape {got}; it must be {fits}"),
    "option": (ValueError, "{name} is {got!r}; it must be {fits}"),
    "unnormalized": (ValueError, "{name} has a row whose logsumexp is {got:.4g}; {fits}"),
    "class": (IndexError, "{name}{position} is {got}, which is no class of {fits}"),
    "changed": (IndexError, "{name}{position} changed during the call, and is no class of {fits} now"),
    "score": (ValueError, "{name}{position} is {got:.6g}, which is no {fits}; use cross_entropy for logits"),
    "one-hot": (ValueError, "{name}{position} holds integers that are not one-hot: {got}; {fits}"),
    "read-only": (ValueError, "out is read-only"),
    "overlap": (ValueError, "out overlaps {name}{fits}"),
    "self-overlap": (ValueError, "out has elements that share memory (strides {got})"),
    "file": (ValueError, "{path}: byte {byte}: {got}; it must {fits}"),
    "content": (ValueError, "{path}: {got}; it must {fits}"),
    "unreadable": (ValueError, "{path}: cannot be read: {got}"),
    "missing": (ImportError, "{name} needs the package {got}: pip install {got}"),
}


def fail(error: str, **words: object) -> NoReturn:
    """Raise the error of this name."""
    kind, message = _ERRORS[error]
    raise kind(message.format(**words))


# codes by dtype, as they are met; None for those that are not ours, and bfloat16 left out
_CODES: dict[np.dtype[Any], int | None] = {}
_FLOATS = frozenset(
    _core.DTYPES[name] + swapped
    for name in ("float16", "bfloat16", "float32", "float64")
    for swapped in (0, _core.SWAPPED)
)
_FLOAT_NAMES = {_core.DTYPES[name]: name for name in ("float16", "bfloat16", "float32", "float64")}
# by code, the least and the greatest integer of a dtype
_RANGES = {
    _core.DTYPES[f"{kind}{bits}"] + swapped: (least << bits - 1, (1 << bits + least) - 1)
    for kind, least in (("int", -1), ("uint", 0))
    for bits in (8, 16, 32, 64)
    for swapped in (0, _core.SWAPPED)
}


def _learn(dtype: np.dtype[Any]) -> int | None:
    """The dtype's code in `_core`, or None if it has none."""
    code = _core.DTYPES.get(dtype.name)
    if code is not None and not dtype.isnative:
        code += _core.SWAPPED
    if code != _core.DTYPES["bfloat16"]:
        _CODES[dtype] = code
    return code


def _from_dlpack(name: str, value: Any, fits: str) -> tuple[np.ndarray[Any, Any], int | None]:
    """The array behind `__dlpack__`, without a copy."""
    try:
        device, number = map(int, value.__dlpack_device__())
        is_negative = getattr(value, "is_neg", bool)()
    except Exception as error:  # each library has its own
        fail("dlpack", name=name, got=error)
    _check_device(name, device, number)
    if is_negative:  # torch exports memory that holds the other sign
        fail("negative view", name=name)
    array = None
    try:
        try:
            capsule = value.__dlpack__(max_version=(1, 0))
        except TypeError:  # an older producer
            capsule = value.__dlpack__()
        buffer = _core.DLPackBuffer(capsule)
        if buffer.dtype in _core.DTYPES:
            array = np.asarray(buffer)
    except Exception as error:
        fail("dlpack", name=name, got=error)
    _check_device(name, *buffer.device)
    if array is None:
        fail("dtype", name=name, got=buffer.dtype, fits=fits)
    return array, _core.DTYPES[buffer.dtype]


def _check_device(name: str, device: int, number: int) -> None:
    """Refuse memory that is not the CPU's; it may be pinned for a GPU."""
    if device not in (1, 3):
        fail("device", name=name, got=f"{device}:{number} of DLPack")


def _array(name: str, value: Any, fits: str = FLOATS) -> tuple[np.ndarray[Any, Any], int | None]:
    """Any array-like, with its dtype code; only lists and the like are copied."""
    if type(value) is np.ndarray:
        array = value
    elif isinstance(value, np.ma.MaskedArray):
        fail("masked", name=name)
    elif hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
        return _from_dlpack(name, value, fits)
    else:
        try:
            array = np.asarray(value)
        except (RuntimeError, TypeError, ValueError) as error:  # torch raises the first
            fail("array", name=name, got=error)
    try:
        return array, _CODES[array.dtype]
    except KeyError:
        code = _learn(array.dtype)
        # buffers have no format for bfloat16
        return (array.view(np.uint16) if code == _core.DTYPES["bfloat16"] else array), code


class Floats(NamedTuple):
    """An array that was judged, and the code of its dtype; every function takes it for scores."""

    array: np.ndarray[Any, Any]
    code: int


def floats(name: str, value: Any) -> tuple[np.ndarray[Any, Any], int]:
    """An array of floats; integers are taken from lists only, where nobody chose their dtype."""
    if type(value) is Floats:
        return value
    array, code = _array(name, value)
    if code is not None and code in _FLOATS:
        return array, code
    if code is None or not isinstance(value, list | tuple | int):
        fail("dtype", name=name, got=array.dtype, fits=FLOATS)
    return array.astype(np.float64), _core.DTYPES["float64"]


def projection(
    hidden: Any, weight: Any, bias: Any
) -> tuple[tuple[np.ndarray[Any, Any], int], tuple[np.ndarray[Any, Any], int], tuple[np.ndarray[Any, Any], int] | None]:
    """Hidden states (..., D), weights (V, D), and a bias (V,) if there is one."""
    hidden_view, weight_view = floats("hidden", hidden), floats("linear_weight", weight)
    if hidden_view[0].ndim == 0:
        fail("shape", name="hidden", got=(), fits="(..., D)")
    depth, got = hidden_view[0].shape[-1], weight_view[0].shape
    if len(got) != 2 or got[1] != depth:
        fail("shape", name="linear_weight", got=got, fits=f"(V, {depth}), to fit hidden")
    bias_view = None if bias is None else floats("linear_bias", bias)
    if bias_view is not None and bias_view[0].shape != got[:1]:
        fail("shape", name="linear_bias", got=bias_view[0].shape, fits=f"{got[:1]}, to fit linear_weight")
    return hidden_view, weight_view, bias_view


def class_axis(name: str, ndim: int, axis: object) -> int:
    """The class axis, counted from the front."""
    if ndim == 0:
        fail("scalar", name=name)
    number = axis if type(axis) is int else integer("axis", axis, "an integer")
    if not -ndim <= number < ndim:
        fail("axis", name=name, got=number, fits=f"{ndim} dimension" + "s" * (ndim > 1))
    return number + ndim if number < 0 else number


def reduction(value: object) -> str:
    """The way to reduce losses."""
    if not isinstance(value, str) or value not in REDUCTIONS:
        fail("option", name="reduction", got=value, fits="'mean', 'sum' or 'none'")
    return value


def class_targets(
    name: str, value: Any, shape: tuple[int, ...], batch: tuple[int, ...], scores_name: str, distributions: bool
) -> tuple[np.ndarray[Any, Any], int]:
    """Class ids of the batch's shape, or distributions of the scores' where these are taken."""
    array, code = _array(name, value, TARGETS if distributions else "an integer")
    if array.shape == shape and distributions:
        if code is None:
            fail("dtype", name=name, got=array.dtype, fits=TARGETS)
        return array, code
    if array.shape != batch:
        fits = f"{batch} (class ids)" + f" or {shape} (distributions)" * distributions + f", to fit {scores_name}"
        axis = next((k for k in range(len(shape)) if shape[:k] + shape[k + 1 :] == array.shape), None)
        if axis is not None and scores_name != "hidden":  # whose last axis is none of classes
            fits += f"; or give axis={axis}, if that axis of {scores_name} holds the classes"
        fail("shape", name=name, got=array.shape, fits=fits)
    if array.size == 0 and isinstance(value, list | tuple):  # an empty list has no dtype of its own
        return np.empty(batch, np.int64), _core.DTYPES["int64"]
    if code is None or code in _FLOATS or array.dtype == np.bool_:
        fail("dtype", name=name, got=_dtype_name(code, array), fits=f"integer, being class ids by its shape {batch}")
    return array, code


def class_weight(value: Any, classes: int) -> tuple[np.ndarray[Any, Any], int]:
    """One weight for each class."""
    array, code = _array("weight", value)
    if code is None:
        fail("dtype", name="weight", got=array.dtype, fits=FLOATS)
    if array.shape != (classes,):
        fail("shape", name="weight", got=array.shape, fits=f"({classes},), one for each class")
    return array, code


def mask(value: Any, batch: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A mask over the batch; it is broadcast."""
    array, code = _array("where", value, "bool")
    if array.dtype != np.bool_:
        fail("dtype", name="where", got=_dtype_name(code, array), fits="bool: True for the positions to keep")
    try:
        return np.broadcast_to(array, batch)
    except ValueError:
        fail("shape", name="where", got=array.shape, fits=f"{batch}, or broadcast to it")


def integer(name: str, value: Any, fits: str, least: int | None = None, most: int | None = None) -> int:
    """A Python integer, neither below the least nor above the most."""
    try:
        number = operator.index(value)
    except TypeError:
        fail("type", name=name, got=value, fits=fits)
    if (least is not None and number < least) or (most is not None and number > most):
        fail("option", name=name, got=number, fits=fits)
    return number


def ignored_class(value: object, code: int) -> int | None:
    """The class id that is passed over, in 64 bits with a sign, if it is one that targets of this dtype can hold."""
    number = value if type(value) is int else integer("ignore_index", value, "an integer or None")
    least, most = _RANGES[code]
    if not least <= number <= most:
        return None
    return number - (1 << 64) if number >= 1 << 63 else number


def no_ignored_class(value: object) -> None:
    """Refuse an ignore_index with distributions, which have no class ids; the default need not have been given."""
    if value is None or (type(value) is int and value == -100):  # nearly always, and faster
        return
    if integer("ignore_index", value, "an integer or None") != -100:
        fail("option", name="ignore_index", got=value, fits="left out where targets are distributions; mask by where")


def number(name: str, value: Any, fits: str, *, most: float = _LARGEST, positive: bool = False) -> float:
    """A number from 0 to the most, without 0 if it must be positive."""
    if type(value) is float and 0 < value <= most:  # nearly always, and faster
        return value
    scalar = value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value
    if not isinstance(scalar, numbers.Real):
        fail("type", name=name, got=value, fits=fits)
    try:
        result = float(scalar)
    except OverflowError:
        result = -1.0
    if not 0 <= result <= most or (positive and result == 0):
        fail("option", name=name, got=value, fits=fits)
    return result


def result_array(value: Any, batch: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """An array that results can be written to."""
    if not isinstance(value, np.ndarray) or value.dtype != np.float64:
        fail("dtype", name="out", got=getattr(value, "dtype", type(value).__name__), fits="float64, in a NumPy array")
    array, _ = _array("out", value)  # as it is in memory, whatever a subclass makes of it
    _check_result(array, batch)
    return array


def _check_result(array: np.ndarray[Any, Any], shape: tuple[int, ...]) -> None:
    """Refuse what cannot be written to."""
    if array.shape != shape:
        fail("shape", name="out", got=array.shape, fits=f"{shape}")
    if not array.flags.writeable:
        fail("read-only")
    extent = array.itemsize if array.size else 0
    for stride, length in sorted((abs(a), b) for a, b in zip(array.strides, array.shape, strict=True) if b > 1):
        if stride < extent:
            fail("self-overlap", got=array.strides)
        extent += stride * (length - 1)


def _dtype_name(code: int | None, array: np.ndarray[Any, Any]) -> str:
    """NumPy's name of the dtype of an array, which is not that of the view by which bfloat16 is read."""
    if code is None:
        return str(array.dtype)
    return _FLOAT_NAMES.get(code & ~_core.SWAPPED) or array.dtype.name


def like_scores(name: str, view: np.ndarray[Any, Any], code: int) -> np.ndarray[Any, Any]:
    """An array of the shape and dtype of scores, to be written to."""
    dtype: Any = _dtype_name(code, view)
    if dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            fail("missing", name=f"a result for bfloat16 {name}", got="ml_dtypes")
        dtype = ml_dtypes.bfloat16
    return np.empty_like(view, dtype, subok=False)


def result_view(value: Any, name: str, scores: np.ndarray[Any, Any], code: int) -> tuple[np.ndarray[Any, Any], int]:
    """A view to write a number for each score to: an array of their shape and dtype, perhaps the scores themselves."""
    if isinstance(value, np.ndarray) or hasattr(value, "__dlpack__"):
        array, result_code = _array("out", value)
    else:
        fail("dtype", name="out", got=type(value).__name__, fits=f"{_dtype_name(code, scores)}, in an array")
    if result_code is None or result_code & ~_core.SWAPPED != code & ~_core.SWAPPED:
        got, fits = _dtype_name(result_code, array), f"{_dtype_name(code, scores)}, as {name}"
        fail("dtype", name="out", got=got, fits=fits)
    _check_result(array, scores.shape)
    same = array.__array_interface__["data"][0] == scores.__array_interface__["data"][0] and all(
        a == b or length < 2 for a, b, length in zip(array.strides, scores.strides, array.shape, strict=True)
    )
    if not (same and result_code == code) and _overlap(array, scores):
        fail("overlap", name=name, fits=", but is not the same array")
    return array, result_code


def apart(result: np.ndarray[Any, Any], others: dict[str, np.ndarray[Any, Any]]) -> None:
    """Refuse a result that would be written over what is still to be read."""
    for name, other in others.items():
        if _overlap(result, other):
            fail("overlap", name=name, fits="")


def _overlap(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Whether two arrays share memory; True where that would take long to find out."""
    work: Any = 1000  # NumPy's stubs allow for 0 and -1 only
    try:
        return np.may_share_memory(a, b) and np.shares_memory(a, b, max_work=work)
    except np.exceptions.TooHardError:
        return True


def from_bfloat16(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The float32 numbers of these bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


_CHUNK = 1 << 16


def chunks(name: str, value: Any, where: Any = None) -> Iterator[Float64Array]:
    """Numbers of any shape, those that `where` keeps, as contiguous float64: nothing of their size is allocated."""
    array, code = _array(name, value)
    if code is None:
        fail("dtype", name=name, got=array.dtype, fits=FLOATS)
    kept = None if where is None else mask(where, array.shape)

    def parts() -> Iterator[Float64Array]:
        operands = [array] if kept is None else [array, kept]
        flags: Any = ["external_loop", "buffered", "zerosize_ok"]
        part: Any
        for part in np.nditer(operands, flags, [["readonly", "aligned"]] * len(operands), buffersize=_CHUNK):
            numbers = part if kept is None else part[0][part[1]]
            if code == _core.DTYPES["bfloat16"]:
                numbers = from_bfloat16(numbers)
            with np.errstate(invalid="ignore"):  # a nan that signals is a nan
                numbers = np.ascontiguousarray(numbers, np.float64)
            yield numbers

    is_plain = array.dtype == np.float64 and array.flags.aligned
    if kept is None and array.size <= _CHUNK and is_plain:  # nearly always, and faster
        return iter([np.ascontiguousarray(array, np.float64).reshape(-1)])
    return parts()


def blocks(
    batch: Sequence[int], most: int, chunks: Sequence[int] = ()
) -> Iterator[tuple[int | slice | EllipsisType, ...]]:
    """Indices of a batch's rows in order, at most so many at a time, and no chunk twice where that is enough."""
    if not batch:
        yield (...,)
        return
    first, *others = batch
    inner = math.prod(others)
    if inner > most:
        for i in range(first):
            for index in blocks(others, most, chunks[1:]):
                yield (i, *index)
        return
    step = most // (inner or 1)
    if chunks and step > chunks[0]:
        step -= step % chunks[0]
    for start in range(0, first, step):
        yield (slice(start, start + step), ...)


def fail_class(name: str, targets: np.ndarray[Any, Any], index: Sequence[int], classes: int) -> NoReturn:
    """Raise that the target at this index is no class id."""
    fail("class", name=name, position=list(index) or "", got=targets[tuple(index)], fits=f"[0, {classes})")
