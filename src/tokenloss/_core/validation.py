"""Arguments of the public functions become validated scores, positions and options, or an error."""

from __future__ import annotations

import math
import numbers
import operator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tokenloss._core import _core
from tokenloss._core.dtypes import (
    FLOAT_CODES,
    FLOATS,
    INTEGER_RANGES,
    TARGETS,
    as_array,
    as_float_array,
    dtype_name,
    is_integer,
    order_advice,
    refuse_container,
    without_bfloat16,
)
from tokenloss._core.errors import labels_to_ids, raise_error, warn, worded

if TYPE_CHECKING:
    from tokenloss._core.types import Array

_LARGEST = float(np.finfo(np.float64).max)
_MAX_SAMPLE_WEIGHT = 1e100
_LEAST_LOSS = -1e-3  # nll_loss takes log-probabilities up to 1e-3: rounding makes none larger
REDUCTIONS = ("mean", "sum", "none")
UNNORMALIZED = 0.1  # how far from 0 the logsumexp of log-probabilities may be, from rounding and clipping
UNNORMALIZED_HALF = 0.5  # the same in half precision
PROJECTION_NAMES = "hidden", "lm_head", "lm_head_bias"


def check_projection(
    hidden: Any, weight: Any, bias: Any, names: tuple[str, str, str]
) -> tuple[tuple[np.ndarray[Any, Any], int], tuple[np.ndarray[Any, Any], int], tuple[np.ndarray[Any, Any], int] | None]:
    """Hidden states (..., D), weights (V, D), and an optional bias (V,); `names` are the names of the arguments."""
    hidden_view, weight_view = as_float_array(names[0], hidden), as_float_array(names[1], weight)
    if hidden_view[0].ndim == 0:
        raise_error("shape", name=names[0], got=(), fits="(..., D)")
    depth, got = hidden_view[0].shape[-1], weight_view[0].shape
    if len(got) != 2 or got[1] != depth:
        raise_error("shape", name=names[1], got=got, fits=f"(V, {depth}), to fit {names[0]}")
    bias_view = None if bias is None else as_float_array(names[2], bias)
    if bias_view is not None and bias_view[0].shape != got[:1]:
        raise_error("shape", name=names[2], got=bias_view[0].shape, fits=f"{got[:1]}, to fit {names[1]}")
    return hidden_view, weight_view, bias_view


def check_axis(name: str, ndim: int, axis: object) -> int:
    """The class axis, counted from the front."""
    if ndim == 0:
        raise_error("scalar", name=name)
    number = axis if type(axis) is int else check_integer("axis", axis, "an integer")
    if not -ndim <= number < ndim:
        raise_error("axis", name=name, got=number, fits=f"{ndim} dimension" + "s" * (ndim > 1))
    return number + ndim if number < 0 else number


def check_axes(name: str, ndim: int, axis: object) -> tuple[int, ...]:
    """Axes to reduce over, in ascending order, counted from the front; None means all."""
    if axis is None:
        return tuple(range(ndim))
    axes = sorted(check_axis(name, ndim, each) for each in (axis if isinstance(axis, tuple) else (axis,)))
    if len(set(axes)) < len(axes):
        raise_error("option", name="axis", got=axis, fits="a tuple that names each axis once")
    return tuple(axes)


def check_reduction(value: object) -> str:
    """The way to reduce losses."""
    if not isinstance(value, str) or value not in REDUCTIONS:
        raise_error("option", name="reduction", got=value, fits="'mean', 'sum' or 'none'")
    return value


def as_target_array(
    name: str, value: Any, shape: tuple[int, ...], batch: tuple[int, ...], scores_name: str, distributions: bool
) -> tuple[np.ndarray[Any, Any], int]:
    """Class ids of the batch's shape or, if accepted, distributions of the scores' shape."""
    array, code = as_array(name, value, TARGETS if distributions else "an integer")
    if array.shape == shape and distributions:
        if code is None:
            raise_error("dtype", name=name, got=array.dtype, fits=TARGETS)
        if array.ndim == 1 and code in FLOAT_CODES:
            _warn_of_labels(name, array, code, scores_name)
        return array, code
    if array.shape != batch:
        refuse_container(name, value)
        fits = f"{batch} (class ids)" + f" or {shape} (distributions)" * distributions + f", to fit {scores_name}"
        axis = next((k for k in range(len(shape)) if shape[:k] + shape[k + 1 :] == array.shape), None)
        has_classes = not scores_name.endswith("hidden")  # the last axis of those holds features
        if array.shape == shape and array.ndim == 1 and has_classes:  # each sample's probability of class 1
            fits += f"; if {scores_name} is the probability of class 1 for each sample, pass np.stack([1 - p, p], -1)"
        elif array.shape == (*batch, 1):  # a column of a data frame
            fits += f"; pass np.asarray({name})[..., 0]"
        elif code in FLOAT_CODES and array.shape[:-1] == shape and has_classes:
            fits += f"; if these are scores: {order_advice(scores_name)}"
        elif axis is not None and has_classes:
            last = f"if they are on axis {axis} of {scores_name}: np.moveaxis({scores_name}, {axis}, -1)"
            python_hint = f"give axis={axis}, if the classes are on that axis of {scores_name}"
            fits += f"; or {worded(python_hint, f'save the classes last, {last}')}"
        raise_error("shape", name=name, got=array.shape, fits=fits)
    if array.size == 0 and isinstance(value, list | tuple):  # an empty list has no dtype of its own
        return np.empty(batch, np.int64), _core.DTYPES["int64"]
    if code is None or not is_integer(code, array):
        _refuse_labels(name, array, code, batch)
    return array, code


def _refuse_labels(name: str, array: Array, code: int | None, batch: tuple[int, ...]) -> NoReturn:
    """Raise an error that labels are not integers, and say how they become class ids."""
    got, fits = dtype_name(code, array), f"integer, being class ids by its shape {batch}"
    if array.dtype == np.bool_:
        fits += f"; pass {name}.astype(int)"
    elif array.dtype.kind == "f" and np.isnan(array).any():  # integers of pandas and polars become floats by them
        got += ", with missing values"
        fits += f"; fill them with -100, which is ignored, and pass {name}.astype(int)"
    else:
        fits += f"; pass {name}.astype(int), or" if code in FLOAT_CODES else "; pass"
        fits += f" labels of all classes as {labels_to_ids(name)}"
    raise_error("dtype", name=name, got=got, fits=fits)


def _warn_of_labels(name: str, masses: Array, code: int, scores_name: str) -> None:
    """Warn if a single distribution has a mass far from 1: its classes seem to be labels of samples."""
    with np.errstate(all="ignore"):
        mass = float(without_bfloat16(masses, code).sum(dtype=np.float64))
    if 1 + UNNORMALIZED < mass < math.inf:
        message = (
            f"{name} adds up to {mass:.4g}, but is read as the distribution of one sample over {len(masses)} classes; "
            f"if these are labels of samples, give {scores_name} a class axis: np.stack([1 - p, p], -1)"
        )
        warn(message)


def check_weight(value: Any, classes: int) -> tuple[np.ndarray[Any, Any], int]:
    """One weight for each class."""
    array, code = as_array("weight", value)
    if code is None:
        fits = f"{FLOATS}, with one weight for each class, in the order of the classes"
        raise_error("dtype", name="weight", got=array.dtype, fits=fits)
    if array.shape != (classes,):
        raise_error("shape", name="weight", got=array.shape, fits=f"({classes},), one for each class")
    return array, code


def broadcast(name: str, array: Array, shape: tuple[int, ...], own: tuple[int, ...] = ()) -> Array:
    """The array, broadcast to a shape and its own last axes; an error if it does not fit, or fits in two ways."""
    if array.shape == (*shape, *own):
        return array
    try:
        result = np.broadcast_to(array, (*shape, *own))
    except ValueError:
        raise_error("shape", name=name, got=array.shape, fits=f"{shape}, or broadcast to it")
    got = array.shape[: array.ndim - len(own)]
    is_first = all(size in (1, length) for size, length in zip(got, shape, strict=False))
    if is_first and 0 < len(got) < len(shape) and math.prod(got) > 1:  # may be the first axes or the last
        ones = (1,) * (len(shape) - len(got))
        fits = f"{(*ones, *got, *own)} or {(*got, *ones, *own)}, since it fits {shape} in two ways"
        raise_error("shape", name=name, got=array.shape, fits=fits)
    return result


def check_mask(value: Any, batch: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The mask of the batch, from the public argument `where`; it is broadcast."""
    array, code = as_array("where", value, "bool")
    if array.dtype != np.bool_:
        fits = "bool: True for the positions to keep"
        if is_integer(code, array):
            fits += "; if it contains 0 and 1, pass where != 0"
        raise_error("dtype", name="where", got=dtype_name(code, array), fits=fits)
    return broadcast("where", array, batch)


def check_losses(losses: Array, mask: Array | bool = True) -> None:
    """Refuse log-probabilities in place of losses, at unmasked positions."""
    least = float(np.fmin.reduce(losses, axis=None, initial=0, where=mask))
    if least < _LEAST_LOSS:
        fits = "at least 0; for log-probabilities, pass -nll"
        raise_error("option", name="a loss in nll", got=least, fits=fits)


def check_log_probs(name: str, logprobs: Array, mask: Array | bool) -> None:
    """Refuse log-probabilities that are above 0 by more than rounding; nan is accepted."""
    wrong = np.argwhere((logprobs > -_LEAST_LOSS) & mask)
    if len(wrong):
        fits = "log-probability: it is above 0"
        raise_error("score", name=name, position=wrong[0].tolist(), got=logprobs[tuple(wrong[0])], fits=fits)


def check_sample_weight(value: Any, batch: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The weight of each position as float64, broadcast. The sum of larger ones might exceed a float."""
    array, code = as_array("sample_weight", value)
    if code is None:
        raise_error("dtype", name="sample_weight", got=array.dtype, fits=FLOATS)
    broadcast("sample_weight", array, batch)
    weights = array[tuple(slice(1 if stride == 0 else None) for stride in array.strides)]  # each weight once
    weights = without_bfloat16(weights, code).astype(np.float64, copy=False)
    if not (weights.min(initial=0) >= 0 and weights.max(initial=0) <= _MAX_SAMPLE_WEIGHT):  # nan, too
        bad = np.argwhere(~((weights >= 0) & (weights <= _MAX_SAMPLE_WEIGHT)))[0]
        position, got = bad.tolist() or "", float(weights[tuple(bad)])
        raise_error("option", name=f"sample_weight{position}", got=got, fits="from 0 to 1e100")
    return weights if weights.shape == batch else np.broadcast_to(weights, batch)


def check_integer(name: str, value: Any, fits: str, least: int | None = None, most: int | None = None) -> int:
    """An integer from `least` to `most`, as a Python int."""
    index: Any = None if isinstance(value, bool) else value  # True would be 1
    try:
        number = operator.index(index)
    except TypeError:
        raise_error("type", name=name, got=value, fits=fits)
    if (least is not None and number < least) or (most is not None and number > most):
        raise_error("option", name=name, got=number, fits=fits)
    return number


def check_compared_classes(classes: Any, base: str, base_size: int, name: str, size: int) -> int:
    """The number of classes that are compared, given the numbers of both models."""
    least = min(base_size, size)
    if classes is None:
        if size != base_size:
            raise_error("sizes", name=name, got=size, base=base, fits=base_size, least=least)
        return size
    number = check_integer("classes", classes, "a positive integer or None", least=1)
    if number > least and size != base_size:
        fits = f"at most {least}: {name} has {size} classes, {base} {base_size}"
        raise_error("option", name="classes", got=number, fits=fits)
    return min(number, least)


def check_ignore_index(value: object, code: int) -> int | None:
    """The class id that is ignored, as int64, to which uint64 targets wrap, too; None if their dtype cannot hold it."""
    number = value if type(value) is int else check_integer("ignore_index", value, "an integer or None")
    least, most = INTEGER_RANGES[code]
    if not least <= number <= most:
        return None
    return number - (1 << 64) if number >= 1 << 63 else number


def check_no_ignore_index(value: object) -> None:
    """Refuse an ignore_index with distributions, which have no class ids; the default is accepted."""
    if value is None or (type(value) is int and value == -100):  # nearly always, and faster
        return
    if check_integer("ignore_index", value, "an integer or None") != -100:
        raise_error(
            "option", name="ignore_index", got=value, fits="left out where targets are distributions; mask by where"
        )


def check_number(name: str, value: Any, fits: str, *, most: float = _LARGEST, positive: bool = False) -> float:
    """A number from 0 to `most`; if `positive`, 0 is refused."""
    if type(value) is float and (0 < value <= most or (value == 0 and not positive)):  # nearly always, and faster
        return value
    scalar = value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value
    if not isinstance(scalar, numbers.Real) or isinstance(scalar, bool):  # True would be 1
        raise_error("type", name=name, got=value, fits=fits)
    try:
        result = float(scalar)
    except OverflowError:
        result = -1.0
    if not 0 <= result <= most or (positive and result == 0):
        raise_error("option", name=name, got=value, fits=fits)
    return result


def check_out(value: Any, batch: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The argument `out`, to which float64 results are written."""
    if not isinstance(value, np.ndarray) or value.dtype != np.float64:
        raise_error(
            "dtype", name="out", got=getattr(value, "dtype", type(value).__name__), fits="float64, in a NumPy array"
        )
    array, _ = as_array("out", value)  # as it is in memory, whatever a subclass makes of it
    _check_writable(array, batch)
    return array


def _check_writable(array: np.ndarray[Any, Any], shape: tuple[int, ...]) -> None:
    """Refuse an array that cannot hold a result of this shape."""
    if array.shape != shape:
        raise_error("shape", name="out", got=array.shape, fits=f"{shape}")
    flags = array.flags
    if not flags.writeable:
        raise_error("read-only")
    if flags.c_contiguous:
        return
    extent = array.itemsize if array.size else 0
    for stride, length in sorted((abs(a), b) for a, b in zip(array.strides, array.shape, strict=True) if b > 1):
        if stride < extent:
            raise_error("self-overlap", got=array.strides)
        extent += stride * (length - 1)


def empty_like_scores(name: str, view: np.ndarray[Any, Any], code: int) -> np.ndarray[Any, Any]:
    """An array of the shape and dtype of scores, to be written to."""
    dtype: Any = dtype_name(code, view)
    if dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise_error("missing", name=f"a result for bfloat16 {name}", got="ml_dtypes")
        dtype = ml_dtypes.bfloat16
    return np.empty_like(view, dtype, subok=False)


def check_out_like(value: Any, name: str, scores: np.ndarray[Any, Any], code: int) -> tuple[np.ndarray[Any, Any], int]:
    """A view to write a number for each score to: an array of their shape and dtype, perhaps the scores themselves."""
    if isinstance(value, np.ndarray) or hasattr(value, "__dlpack__"):
        array, result_code = as_array("out", value)
    else:
        raise_error("dtype", name="out", got=type(value).__name__, fits=f"{dtype_name(code, scores)}, in an array")
    if result_code is None or result_code & ~_core.SWAPPED != code & ~_core.SWAPPED:
        got, fits = dtype_name(result_code, array), f"{dtype_name(code, scores)}, as {name}"
        raise_error("dtype", name="out", got=got, fits=fits)
    _check_writable(array, scores.shape)
    if _may_overlap(array, scores) and not (result_code == code and _is_same(array, scores)):
        raise_error("overlap", name=name, fits=", but is not the same array")
    return array, result_code


def _is_same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Whether two arrays of one shape and dtype are the same memory, element by element."""
    return bool(a.__array_interface__["data"][0] == b.__array_interface__["data"][0]) and all(
        one == other or length < 2 for one, other, length in zip(a.strides, b.strides, a.shape, strict=True)
    )


def check_no_overlap(result: np.ndarray[Any, Any], others: dict[str, np.ndarray[Any, Any]]) -> None:
    """Refuse a result that would overwrite data still to be read."""
    for name, other in others.items():
        if _may_overlap(result, other):
            raise_error("overlap", name=name, fits="")


def _may_overlap(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Whether two arrays share memory; True if that would take long to determine."""
    work: Any = 1000  # NumPy's stubs allow for 0 and -1 only
    try:
        return np.may_share_memory(a, b) and np.shares_memory(a, b, max_work=work)
    except np.exceptions.TooHardError:
        return True


def check_kind(value: Any, name: str = "kind") -> str:
    """The kind of scores: logits if it is not given."""
    value = "logits" if value is None else value
    if not isinstance(value, str) or value not in _core.KINDS:
        raise_error("option", name=name, got=value, fits="'logits', 'log_probs' or 'probs'")
    kind: str = value
    return kind


def check_kinds(base_kind: Any, kind: Any) -> tuple[str, str]:
    """The kinds of the scores of a base and of another model."""
    checked = check_kind(kind)
    return checked if base_kind is None else check_kind(base_kind, "base_kind"), checked


def as_scores(name: str, value: Any, axis: Any, kind: str = "logits") -> _core.Scores:
    """Scores along a class axis."""
    array, code = as_float_array(name, value)
    return _scores(name, array, code, check_axis(name, array.ndim, axis), kind)


def _scores(name: str, array: Array, code: int, axis: int, kind: str) -> _core.Scores:
    """Scores of a kind, which sets how far from normalized their rows may be."""
    return _core.Scores(name, array, code, axis, array.shape, _core.KINDS.index(kind), most_unnormalized(kind, array))


def most_unnormalized(kind: str, array: Array) -> float:
    """How far from 0 the logsumexp of a row of scores of this kind may be."""
    return math.inf if kind == "logits" else UNNORMALIZED if array.itemsize > 2 else UNNORMALIZED_HALF


def scores_of_shape(name: str, shape: tuple[int, ...], axis: Any) -> _core.Scores:
    """Scores with a shape but no data, to check targets against."""
    return _core.Scores(name, None, _core.DTYPES["float32"], check_axis(name, len(shape), axis), shape)


def as_other_scores(name: str, value: Any, base: _core.Scores, kind: str = "logits") -> _core.Scores:
    """The scores of another model, of the shape of the base's."""
    array, code = as_float_array(name, value)
    if array.shape != base.shape:
        raise_error("shape", name=name, got=array.shape, fits=f"{base.shape}, as {base.name}")
    return _scores(name, array, code, base.axis, kind)


def as_positions(
    name: str, targets: Any, scores: _core.Scores, ignore_index: Any, mask: Any = None, weight: Any = None,
    sample_weight: Any = None, distributions: bool = True,
) -> _core.Positions:  # fmt: skip
    """Checked targets, mask and weights for scores; only the shape of the scores is used."""
    array, code = as_target_array(name, targets, scores.shape, scores.batch, scores.name, distributions)
    axis, ignored = -1, None
    if array.ndim == len(scores.shape):
        axis = scores.axis
        check_no_ignore_index(ignore_index)
    elif ignore_index is not None:
        ignored = check_ignore_index(ignore_index, code)
    weights, weight_code = (None, 0) if weight is None else check_weight(weight, scores.classes)
    mask = None if mask is None else check_mask(mask, scores.batch)
    row_weights = None if sample_weight is None else check_sample_weight(sample_weight, scores.batch)
    if row_weights is not None and not row_weights.min(initial=1) > 0:
        mask = row_weights != 0 if mask is None else mask & (row_weights != 0)
    return _core.Positions(
        scores.batch, scores.classes, name, array, code, axis, ignored, mask, weights, weight_code, row_weights
    )


def without_targets(scores: _core.Scores, mask: Any = None) -> _core.Positions:
    """Positions without targets, for functions that take none."""
    mask = None if mask is None else check_mask(mask, scores.batch)
    return _core.Positions(scores.batch, scores.classes, None, None, 0, -1, None, mask, None, 0, None)


def logit_transform(logit_scale: Any, softcap: Any) -> tuple[float, float]:
    """The factor of the logits, and their cap or 0."""
    scale = logit_scale
    if type(logit_scale) is not float or logit_scale != 1.0:
        scale = check_number("logit_scale", logit_scale, "a positive finite number", positive=True)
    if softcap is None:
        return scale, 0.0
    return scale, check_number("softcap", softcap, "a positive finite number or None", positive=True)


def head_transform(logit_scale: Any, softcap: Any) -> tuple[float | None, float | None]:
    """The scale and the cap that replace a model's: None to keep the model's, and a cap of 0 for no cap."""
    is_none = type(softcap) in (int, float) and softcap == 0
    scale, cap = logit_transform(1.0 if logit_scale is None else logit_scale, None if is_none else softcap)
    return None if logit_scale is None else scale, None if softcap is None else cap


def loss_options(label_smoothing: Any, z_loss: Any, logit_scale: Any, softcap: Any) -> tuple[float, ...]:
    """The checked options of a cross-entropy, as `CrossEntropy` in `_core` takes them."""
    smoothing = check_number("label_smoothing", label_smoothing, "a number between 0 and 1", most=1)
    penalty = check_number("z_loss", z_loss, "a finite number >= 0")
    return smoothing, penalty, *logit_transform(logit_scale, softcap)


def output_like(
    name: str, scores: Array, code: int, out: Any, inputs: dict[str, Array | None]
) -> tuple[Any, Array, int]:
    """The array to return for a result of the scores' shape and dtype, a view to write to, and its code."""
    result = empty_like_scores(name, scores, code) if out is None else out
    view, result_code = check_out_like(result, name, scores, code)
    check_no_overlap(view, {input_name: array for input_name, array in inputs.items() if array is not None})
    return result, view, result_code
