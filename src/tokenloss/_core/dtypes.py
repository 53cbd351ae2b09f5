"""Arrays of any kind become views that `_core` can read, with the codes of their dtypes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np

from tokenloss._core import _core
from tokenloss._core import config as config  # which sets how the core chooses an instruction set
from tokenloss._core.errors import raise_error

# what an array may hold, in messages
FLOATS = f"{', '.join(_core.FLOAT_DTYPES[:-1])} or {_core.FLOAT_DTYPES[-1]}"
TARGETS = f"an integer, bool, {FLOATS}"

# the code of each dtype seen so far, None if the core does not read it; not of bfloat16, which needs a view, too
_CODES: dict[np.dtype[Any], int | None] = {}

FLOAT_CODES = frozenset(_core.DTYPES[name] + swapped for name in _core.FLOAT_DTYPES for swapped in (0, _core.SWAPPED))
_FLOAT_NAMES = {_core.DTYPES[name]: name for name in _core.FLOAT_DTYPES}

# the least and the greatest integer of a dtype, by its code
INTEGER_RANGES = {
    _core.DTYPES[f"{kind}{bits}"] + swapped: (least << bits - 1, (1 << bits + least) - 1)
    for kind, least in (("int", -1), ("uint", 0))
    for bits in (8, 16, 32, 64)
    for swapped in (0, _core.SWAPPED)
}


def _dtype_code(dtype: np.dtype[Any]) -> int | None:
    """The dtype's code in `_core`, or None if it has none."""
    code = _core.DTYPES.get(dtype.name)
    if code is not None and not dtype.isnative:
        code += _core.SWAPPED
    if code is not None and code != _core.DTYPES["bfloat16"]:  # there is no end of dtypes of text and the like
        _CODES[dtype] = code
    return code


def _from_dlpack(name: str, value: Any, fits: str) -> tuple[np.ndarray[Any, Any], int | None]:
    """The array behind `__dlpack__`, without a copy."""
    try:
        device, number = map(int, value.__dlpack_device__())
        is_negative = getattr(value, "is_neg", bool)()
    except Exception as error:  # each library has its own
        raise_error("dlpack", name=name, got=error)
    _check_device(name, device, number)
    if is_negative:  # torch exports memory that holds the other sign
        raise_error("negative view", name=name)
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
        raise_error("dlpack", name=name, got=error)
    _check_device(name, *buffer.device)
    if array is None:
        raise_error("dtype", name=name, got=buffer.dtype, fits=fits)
    return array, _core.DTYPES[buffer.dtype]


def _check_device(name: str, device: int, number: int) -> None:
    """Refuse memory that is not the CPU's; it may be pinned for a GPU."""
    if device not in (1, 3):
        raise_error("device", name=name, got=f"{device}:{number} of DLPack")


def as_array(name: str, value: Any, fits: str = FLOATS) -> tuple[np.ndarray[Any, Any], int | None]:
    """Any array-like, with its dtype code; only lists and the like are copied."""
    if type(value) is np.ndarray:
        array = value
    elif isinstance(value, np.ndarray) and isinstance(value, np.ma.MaskedArray):  # `np.ma` is slow to import
        raise_error("masked", name=name)
    elif hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
        return _from_dlpack(name, value, fits)
    else:
        try:
            array = np.asarray(value)
        except (RuntimeError, TypeError, ValueError) as error:  # torch raises the first
            raise_error("array", name=name, got=error)
    try:
        return array, _CODES[array.dtype]
    except KeyError:
        code = _dtype_code(array.dtype)
        # buffers have no format for bfloat16
        return (array.view(np.uint16) if code == _core.DTYPES["bfloat16"] else array), code


def refuse_container(name: str, value: Any) -> None:
    """Raise an error with what to pass in place of something that contains arrays: a dict, a path, a model's output."""
    if value is None:
        raise_error("type", name=name, got=None, fits="an array")
    if isinstance(value, Mapping):
        wanted = [key for key in ("logits", "labels", "input_ids", *value) if key in value]
        fits = [f"{name}.logits" if hasattr(value, "logits") else f"{name}[{key!r}]" for key in wanted[:1]]
        raise_error("container", name=name, got=type(value).__name__, fits=fits[0] if fits else "an array")
    for is_so, passed in (
        (hasattr(value, "logits"), f"{name}.logits"), (hasattr(value, "toarray"), f"{name}.toarray()"),
        (isinstance(value, str | os.PathLike), "an array; tokenloss.evaluate and compare_files take files"),
        (isinstance(value, Iterator), f"a list or an array, such as np.array(list({name}))"),
    ):  # fmt: skip
        if is_so:
            raise_error("container", name=name, got=type(value).__name__, fits=passed)


def order_advice(scores_name: str) -> str:
    """A hint about the order of scores and targets in functions whose scores have this name."""
    return "targets come first in this function" if scores_name == "y_pred" else f"{scores_name} come first"


def refuse_dtype(name: str, value: Any, got: object) -> NoReturn:
    """Raise an error for a dtype other than floats, with what to pass if that is known."""
    refuse_container(name, value)
    fits = FLOATS
    if name in ("y_pred", "log_probs", "logits", "base_logits") and getattr(got, "kind", "") in ("i", "u"):
        fits += f"; if these are class ids: {order_advice(name)}"
    if hasattr(value, "to_numpy"):  # columns of pandas that may be null
        fits += f"; pass {name}.to_numpy('float64', na_value=np.nan)"
    raise_error("dtype", name=name, got=got, fits=fits)


class CheckedArray(NamedTuple):
    """A checked array and the code of its dtype; every function accepts it as scores."""

    array: np.ndarray[Any, Any]
    code: int


def as_float_array(name: str, value: Any) -> tuple[np.ndarray[Any, Any], int]:
    """An array of floats; integers are accepted only from lists, whose dtype nobody chose."""
    if type(value) is CheckedArray:
        return value
    array, code = as_array(name, value)
    if code is not None and code in FLOAT_CODES:
        return array, code
    if code is None or not isinstance(value, list | tuple | int):
        refuse_dtype(name, value, array.dtype)
    return array.astype(np.float64), _core.DTYPES["float64"]


def is_integer(code: int | None, array: np.ndarray[Any, Any]) -> bool:
    """Whether this dtype code means integers, not bools."""
    return code is not None and code not in FLOAT_CODES and array.dtype != np.bool_


def dtype_name(code: int | None, array: np.ndarray[Any, Any]) -> str:
    """NumPy's name of the dtype of an array: "bfloat16", too, though its view, by which it is read, is uint16."""
    if code is None:
        return str(array.dtype)
    return _FLOAT_NAMES.get(code & ~_core.SWAPPED) or array.dtype.name


def without_bfloat16(array: np.ndarray[Any, Any], code: int | None) -> np.ndarray[Any, Any]:
    """The array, with bfloat16 converted to float32, which changes no number."""
    return bfloat16_to_float32(array) if dtype_name(code, array) == "bfloat16" else array


def bfloat16_to_float32(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The float32 numbers of these bits, or of an array of the other byte order, which is not read by its bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32) if bits.dtype == np.uint16 else bits.astype(np.float32)
