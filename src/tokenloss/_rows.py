"""The fold over the rows of an array, from judged input to numbers: what every public function does."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss import _arrays, _core, _workers

if TYPE_CHECKING:
    from typing import NoReturn

    from tokenloss._types import Float64Array

_ONE_SCORE = 64  # what reading a single score of a row costs, in bytes read in order


class Rows:
    """Scores, and what is to be done with each of their rows. Every method judges its arguments; `run` writes."""

    __slots__ = (
        "axis", "batch", "by_class", "classes", "fold", "given_out", "is_checked", "losses", "mean", "name", "others",
        "out", "row_bytes", "shape", "targets", "targets_name", "view_and_code", "what",
    )  # fmt: skip

    def __init__(self, what: int, name: str, scores: Any, axis: Any) -> None:
        self.what, self.name = what, name
        view, code = self.view_and_code = _arrays.floats(name, scores)
        shape = self.shape = view.shape
        axis = self.axis = _arrays.class_axis(name, len(shape), axis)
        self.batch = shape[:axis] + shape[axis + 1 :]
        self.classes = shape[axis]
        self.row_bytes = self.classes * view.itemsize
        self.fold = _core.Fold(what, view, code, axis)
        self.by_class = self.is_checked = False
        self.others: dict[str, Any] = {}  # arrays that are read besides the scores
        self.losses: Float64Array | None = None
        self.out: Float64Array | None = None
        self.given_out: Float64Array | None = None  # the same, perhaps of a subclass

    def against(self, name: str, targets: Any, ignore_index: Any, distributions: bool = True) -> None:
        """Take class ids or, unless told otherwise, distributions for targets."""
        array, code = _arrays.class_targets(name, targets, self.shape, self.batch, self.name, distributions)
        if array.ndim == len(self.shape):
            _arrays.no_ignored_class(ignore_index)
        elif ignore_index is not None:
            ignore_index = _arrays.ignored_class(ignore_index, code)
        self.targets_name, self.targets = name, array
        self.others[name] = array
        self.by_class = self.fold.against(array, code, ignore_index)
        if self.what > _core.LOG_PROBS:
            if not self.by_class:
                self.row_bytes += self.classes * array.itemsize
        else:
            self.row_bytes = _ONE_SCORE if self.by_class else self.classes * array.itemsize

    def keep(self, weight: Any, where: Any) -> None:
        """Weigh classes, mask rows."""
        if weight is not None:
            self.others["weight"], code = _arrays.class_weight(weight, self.classes)
            self.fold.weighted(self.others["weight"], code)
        if where is not None:
            self.others["where"] = _arrays.mask(where, self.batch)
            self.fold.masked(self.others["where"])

    def change(self, logit_scale: Any, softcap: Any) -> None:
        """Scale logits, cap them."""
        if softcap is None and type(logit_scale) is float and logit_scale == 1.0:
            return
        scale = _arrays.number("logit_scale", logit_scale, "a positive finite number", positive=True)
        cap = 0.0
        if softcap is not None:
            cap = _arrays.number("softcap", softcap, "a positive finite number or None", positive=True)
        self.fold.squashed(scale, cap)

    def penalize(self, label_smoothing: Any, z_loss: Any) -> None:
        """Smooth labels, and make large normalizers cost something."""
        if type(label_smoothing) is type(z_loss) is float and label_smoothing == z_loss == 0.0:
            return
        smoothing = _arrays.number("label_smoothing", label_smoothing, "a number between 0 and 1", most=1)
        self.fold.penalized(smoothing, _arrays.number("z_loss", z_loss, "a finite number of at least 0"))

    def reduce(self, reduction: Any, out: Any = None) -> None:
        """Add the losses up, or keep each of them, in `out` if there is one."""
        self.mean = _arrays.reduction(reduction) == "mean"
        if out is not None:
            self.given_out, self.out = out, _arrays.result_array(out, self.batch)
        if reduction == "none":
            in_place = (
                self.out is not None
                and self.out.flags.carray
                and not np.may_share_memory(self.out, self.view_and_code[0])
            )
            self.losses = self.out if in_place and self.out is not None else np.empty(self.batch)
            self.fold.losses_into(self.losses.reshape(-1))

    def write(self, out: Any, divided: bool = False) -> Any:
        """Write a number for each score, in `out` if there is one; a gradient may be divided as the mean loss is."""
        result = _arrays.like_scores(self.name, *self.view_and_code) if out is None else out
        view, code = _arrays.result_view(result, self.name, *self.view_and_code)
        _arrays.apart(view, self.others)
        self.fold.into(view, code)
        self._check_targets()
        if divided:
            self.fold.divide()
        self.row_bytes *= 2
        return result

    def beside(self, name: str, logits: Any) -> None:
        """Take the logits of another model."""
        view, code = _arrays.floats(name, logits)
        if view.shape != self.shape:
            _arrays.fail("shape", name=name, got=view.shape, fits=f"{self.shape}, as {self.name}")
        self.fold.beside(view, code)
        self.row_bytes += self.classes * view.itemsize

    def tokens(self, top_k: Any) -> dict[str, Any]:
        """Make arrays for everything about a token; `run` fills them."""
        fits = f"an integer from 0 to {self.classes}, the number of classes"
        top_k = _arrays.integer("top_k", top_k, fits, least=0, most=self.classes)
        found: dict[str, Any] = {name: np.empty(self.batch) for name in ("logsumexp", "entropy")}
        found |= {name: np.empty(self.batch, np.int64) for name in ("rank", "argmax")}
        found |= {name: np.empty(self.batch, np.bool_) for name in ("is_greedy", "kept")}
        found |= {"top_ids": np.empty((*self.batch, top_k), np.int64), "top_logprobs": np.empty((*self.batch, top_k))}
        flat = {
            name: (array.view(np.uint8) if array.dtype == bool else array).reshape(-1) for name, array in found.items()
        }
        self.fold.tokens_into(**flat, top_k=top_k)
        found["nll"] = self.losses
        return found if top_k else found | {"top_ids": None, "top_logprobs": None}

    def _check_targets(self) -> None:
        """Refuse class ids beyond the classes, and integer distributions that are not one-hot."""
        if not self.is_checked:
            if self.by_class:
                row = self.fold.first_bad_target()
                if row >= 0:
                    _arrays.fail_class(self.targets_name, self.targets, self._position(row), self.classes)
            else:
                row = self.fold.first_bad_distribution()
                if row >= 0:
                    self._fail_one_hot(row)
        self.is_checked = True

    def _position(self, row: int) -> list[int]:
        """The index of a row that is counted over the batch."""
        return [int(i) for i in np.unravel_index(row, self.batch)] if self.batch else []

    def _fail_one_hot(self, row: int) -> NoReturn:
        """Raise that a row of integers is no distribution."""
        position = self._position(row)
        index: list[Any] = list(position)
        index.insert(self.axis, slice(None))
        if position or self.what != _core.PROBS:
            fits = f"class ids have shape {self.batch}, distributions are floats"
        else:  # which scikit-learn's log_loss takes for N probabilities of class 1
            fits = (
                "of N probabilities of class 1 the loss is cross_entropy_loss(y_true, np.stack([1 - y_pred, y_pred], "
                "-1)), of one row of classes cross_entropy_loss(np.float64(y_true), y_pred)"
            )
        shares = self.targets[tuple(index)]
        got = f"{reprlib.repr(shares.tolist())}, which add up to {shares.sum(dtype=object)}"
        _arrays.fail("one-hot", name=self.targets_name, position=position or "", got=got, fits=fits)

    def run(self, workers: Any) -> None:
        """Fold all rows."""
        if self.by_class:
            self._check_targets()
        _workers.run(self.fold, self.row_bytes or 1, _workers.check_workers(workers))
        if self.fold.refused:
            self._fail_row()

    def _fail_row(self) -> NoReturn:
        """Raise what was found unfit while rows were read."""
        reason, row, k, score = self.fold.refusal()
        if reason == _core.BAD_DISTRIBUTION:
            self._fail_one_hot(row)
        position = self._position(row)
        if reason == _core.BAD_TARGET:
            fits = f"[0, {self.classes})"
            _arrays.fail("changed", name=self.targets_name, position=position or "", fits=fits)
        position.insert(self.axis, k)
        fits = "probability" if self.what == _core.PROBS else "log-probability"
        _arrays.fail("score", name=self.name, position=position, got=score, fits=fits)

    def numbers(self) -> Float64Array:
        """The loss or logsumexp of each row; of a single row without `out` a scalar, as NumPy has them."""
        assert self.losses is not None
        if self.out is None or self.given_out is None:
            numbers: Float64Array = self.losses if self.batch else self.losses[()]
            return numbers
        if self.out is not self.losses:
            self.out[...] = self.losses
        return self.given_out

    def reduced(self) -> float | Float64Array:
        """The loss as it was to be reduced."""
        return self.numbers() if self.losses is not None else self.fold.reduced(self.mean)
