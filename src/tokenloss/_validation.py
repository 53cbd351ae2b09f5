"""Arguments of the public functions become validated scores and positions, which a job of `_core` can read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenloss import _arrays, _core

if TYPE_CHECKING:
    from tokenloss._types import Array


def as_scores(name: str, value: Any, axis: Any) -> _core.Scores:
    """Scores along a class axis."""
    array, code = _arrays.floats(name, value)
    return _core.Scores(name, array, code, _arrays.class_axis(name, array.ndim, axis), array.shape)


def scores_of_shape(name: str, shape: tuple[int, ...], axis: Any) -> _core.Scores:
    """Scores that are not there yet, for what is to fit their shape."""
    return _core.Scores(name, None, _core.DTYPES["float32"], _arrays.class_axis(name, len(shape), axis), shape)


def as_other_scores(name: str, value: Any, base: _core.Scores) -> _core.Scores:
    """The scores of another model, of the shape of the base's."""
    array, code = _arrays.floats(name, value)
    if array.shape != base.shape:
        _arrays.fail("shape", name=name, got=array.shape, fits=f"{base.shape}, as {base.name}")
    return _core.Scores(name, array, code, base.axis, base.shape)


def as_positions(
    name: str, targets: Any, scores: _core.Scores, ignore_index: Any, where: Any = None, weight: Any = None,
    distributions: bool = True,
) -> _core.Positions:  # fmt: skip
    """Targets that fit the scores, with their mask and class weights; of the scores, only the shape is looked at."""
    array, code = _arrays.class_targets(name, targets, scores.shape, scores.batch, scores.name, distributions)
    axis, ignored = -1, None
    if array.ndim == len(scores.shape):
        axis = scores.axis
        _arrays.no_ignored_class(ignore_index)
    elif ignore_index is not None:
        ignored = _arrays.ignored_class(ignore_index, code)
    weights, weight_code = (None, 0) if weight is None else _arrays.class_weight(weight, scores.classes)
    mask = None if where is None else _arrays.mask(where, scores.batch)
    return _core.Positions(scores.batch, scores.classes, name, array, code, axis, ignored, mask, weights, weight_code)


def without_targets(scores: _core.Scores, where: Any = None) -> _core.Positions:
    """Positions of functions that take no targets."""
    mask = None if where is None else _arrays.mask(where, scores.batch)
    return _core.Positions(scores.batch, scores.classes, None, None, 0, -1, None, mask, None, 0)


def logit_transform(logit_scale: Any, softcap: Any) -> tuple[float, float]:
    """The factor of the logits, and their cap or 0."""
    scale = logit_scale
    if type(logit_scale) is not float or logit_scale != 1.0:
        scale = _arrays.number("logit_scale", logit_scale, "a positive finite number", positive=True)
    if softcap is None:
        return scale, 0.0
    return scale, _arrays.number("softcap", softcap, "a positive finite number or None", positive=True)


def penalties(label_smoothing: Any, z_loss: Any) -> tuple[float, float]:
    """Label smoothing, and the factor of the squared logsumexp."""
    if type(label_smoothing) is type(z_loss) is float and label_smoothing == z_loss == 0.0:
        return 0.0, 0.0
    smoothing = _arrays.number("label_smoothing", label_smoothing, "a number between 0 and 1", most=1)
    return smoothing, _arrays.number("z_loss", z_loss, "a finite number of at least 0")


def output_like(scores: _core.Scores, out: Any, inputs: dict[str, Array | None]) -> tuple[Any, Array, int]:
    """Where a result of the scores' shape and dtype goes: the array to return, a view to write to, and its code."""
    result = _arrays.like_scores(scores.name, scores.array, scores.dtype) if out is None else out
    view, code = _arrays.result_view(result, scores.name, scores.array, scores.dtype)
    _arrays.apart(view, {name: array for name, array in inputs.items() if array is not None})
    return result, view, code
