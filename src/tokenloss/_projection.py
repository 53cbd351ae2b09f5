"""The fold over products of hidden states and weights, which are made and folded a tile at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss import _arrays, _core, _workers
from tokenloss._rows import Rows

if TYPE_CHECKING:
    from tokenloss._types import Array

_MOST = 1024  # hidden states that are multiplied at a time; with fewer, BLAS spends its time on packing weights
_FEW = 24  # hidden states whose product takes as long as reading the weights
_SCRATCH = 11 << 20  # bytes for scores, and for hidden states that are converted
_CONVERTED = 2 << 20  # bytes for weights that are converted


class ProjectedRows(Rows):
    """Rows of ``hidden @ linear_weight.T + linear_bias``, in float64 if an operand is float64, else in float32."""

    __slots__ = ("bias", "code", "dtype", "hidden", "hidden_code", "weight", "weight_code")

    def __init__(self, what: int, hidden: Any, linear_weight: Any, linear_bias: Any) -> None:
        (self.hidden, self.hidden_code), (self.weight, self.weight_code), bias = _arrays.projection(
            hidden, linear_weight, linear_bias
        )
        wide = _core.DTYPES["float64"] in (self.hidden_code & ~_core.SWAPPED, self.weight_code & ~_core.SWAPPED)
        self.dtype: Any = np.dtype(np.float64 if wide else np.float32)
        self.code = _core.DTYPES[self.dtype.name]
        shape = (*self.hidden.shape[:-1], len(self.weight))
        super().__init__(what, "hidden", np.broadcast_to(np.zeros((), self.dtype), shape), -1)
        self.bias = bias

    def run(self, workers: Any) -> None:
        """Multiply and fold."""
        workers = _workers.check_workers(workers)
        if self.by_class:
            self._check_targets()
        kept, depth, itemsize = self.fold.count_kept(), self.hidden.shape[-1], self.dtype.itemsize
        states = self._states() if kept == self.fold.rows else None
        copied = depth if states is None else 0
        most = min(_MOST, max(1, _SCRATCH // ((copied + _core.CLASSES_AT_ONCE) * itemsize)))
        rows = -(-kept // -(-kept // most)) if kept else 1  # as many in each turn
        copies = np.empty((rows, copied), self.dtype)
        width = (_SCRATCH - copies.nbytes) // ((rows + (self.bias is not None)) * itemsize)
        width = width // _core.CLASSES_AT_ONCE * _core.CLASSES_AT_ONCE
        width = min(max(width, _core.CLASSES_AT_ONCE), self.classes)
        scores, own = np.empty(rows * width, self.dtype), np.empty(rows)
        taken, left_out = np.empty(rows, np.int64), np.empty(rows, np.int64)
        tiles = _core.Tiles(self.fold, taken, left_out)
        while count := tiles.take():
            if states is None:
                hidden = copies[:count]
                self._convert(self.hidden, self.hidden_code, taken[:count], hidden, workers)
            else:
                hidden = states[taken[0] : taken[0] + count]
            operands = self.weight, self.weight_code, hidden, self.code
            few = _core.Products(*operands) if count <= _FEW and self._streams() else None
            _core.products_of(*operands, left_out[:count], own[:count])
            with np.errstate(all="ignore"):  # infinities and nan are results
                if self.bias is not None and self.classes:
                    own[:count] = own[:count].astype(self.dtype) + self._biases(left_out[:count])
                tiles.know(own[:count])
                for first in range(0, max(self.classes, 1), max(width, 1)):
                    last = min(first + width, self.classes)
                    tile = scores[: count * (last - first)].reshape(count, last - first)
                    if few:
                        few.into(tile, first)
                        _workers.run(few, depth * self.weight.itemsize or 1, workers)
                    else:
                        self._multiply(hidden, first, tile, workers)
                    if self.bias is not None:
                        tile += self._biases(slice(first, last))
                    tiles.part(tile, first)
                    _workers.run(tiles, (last - first) * itemsize or 1, workers)
            tiles.finish()
        if self.fold.refused:
            self._fail_row()

    def _biases(self, classes: Array | slice) -> Array:
        """The bias of some classes, in the dtype of the product."""
        assert self.bias is not None
        array, code = self.bias
        some = array[classes]
        biases: Array = np.empty(len(some), self.dtype)
        self._convert(some.reshape(1, -1), code, None, biases.reshape(1, -1), 1)
        return biases

    def _states(self) -> Array | None:
        """Hidden states as a matrix that BLAS takes as it is, if they are one."""
        hidden = self.hidden
        if hidden.ndim != 2 and not hidden.flags.c_contiguous:
            return None
        hidden = hidden.reshape(self.fold.rows, hidden.shape[-1])
        return hidden if self.hidden_code == self.code and _is_matrix(hidden) else None

    def _streams(self) -> bool:
        """Whether the products of few hidden states are ours: each row of weights is read once, as it is in memory."""
        in_order = self.weight.strides[1] == self.weight.itemsize and self.weight_code < _core.SWAPPED
        return in_order and (self.weight_code == self.code or self.dtype == np.float32)

    def _multiply(self, hidden: Array, first: int, tile: Array, workers: int | None) -> None:
        """Have BLAS fill the tile with products of all hidden states and of the weights from the first on."""
        weight, classes = self.weight[first : first + tile.shape[1]], tile.shape[1]
        if self.weight_code == self.code and (_is_matrix(weight) or _is_matrix(weight.T)):
            np.matmul(hidden, weight.T, out=tile)
            return
        step = max(1, _CONVERTED // (hidden.shape[1] * self.dtype.itemsize or 1))
        scratch = np.empty(min(step, classes) * hidden.shape[1], self.dtype)
        in_columns = abs(weight.strides[0]) < abs(weight.strides[1])
        for start in range(0, classes, step):
            part = weight[start : start + step]
            converted = scratch[: part.size].reshape(part.T.shape if in_columns else part.shape)
            self._convert(part.T if in_columns else part, self.weight_code, None, converted, workers)
            np.matmul(hidden, converted if in_columns else converted.T, out=tile[:, start : start + step])

    def _convert(self, source: Array, code: int, rows: Array | None, result: Array, workers: int | None) -> None:
        """Write rows of an array in the dtype of the product."""
        work = _core.Conversion(source, code, rows, result, self.code)
        _workers.run(work, result.shape[1] * result.itemsize or 1, workers)


def _is_matrix(array: Array) -> bool:
    """Whether BLAS takes the array as it is: rows in order and apart."""
    rows, elements = array.strides
    in_order = elements == array.itemsize and rows >= array.shape[1] * array.itemsize
    return in_order and rows % array.itemsize == 0 and array.flags.aligned
