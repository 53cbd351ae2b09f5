"""Projections of hidden states onto the vocabulary, whose logits are made and reduced a tile at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss import _core, _job, _workers
from tokenloss._validation import check_projection

if TYPE_CHECKING:
    from tokenloss._types import Array

MAX_TILE_ROWS = 1024  # hidden states multiplied at a time; with fewer, BLAS spends its time on packing weights
_MATVEC_MAX_ROWS = 24  # hidden states whose product takes as long as reading the weights
_TILE_BYTES = 11 << 20  # for logits, and for hidden states that are converted
_CAST_BYTES = 2 << 20  # for weights that are converted


class Projection:
    """Validated operands of ``hidden @ linear_weight.T + linear_bias``: float64 if one is, else float32."""

    __slots__ = ("bias", "dtype", "hidden", "hidden_code", "scores", "weight", "weight_code")

    def __init__(self, hidden: Any, linear_weight: Any, linear_bias: Any) -> None:
        (self.hidden, self.hidden_code), (self.weight, self.weight_code), self.bias = check_projection(
            hidden, linear_weight, linear_bias
        )
        is_double = _core.DTYPES["float64"] in (self.hidden_code & ~_core.SWAPPED, self.weight_code & ~_core.SWAPPED)
        self.dtype: Any = np.dtype(np.float64 if is_double else np.float32)
        shape = (*self.hidden.shape[:-1], len(self.weight))
        self.scores = _core.Scores("hidden", None, _core.DTYPES[self.dtype.name], len(shape) - 1, shape)

    def run(self, job: _core.RowJob, workers: Any) -> None:
        """Multiply, and run the job over the tiles of the product."""
        workers = _workers.check_workers(workers)
        if job.positions.by_class:
            _job.check_targets(job.positions, job.scores)
        kept = job.positions.count_unmasked()
        states = self._as_blas_matrix() if kept == job.rows else None
        depth = 0 if states is not None else self.hidden.shape[-1]
        rows, width = self._tile_shape(kept, depth * 3 // 2 if self._can_use_bf16_matmul() else depth)
        copies = np.empty((rows, depth), self.dtype)
        logits = np.empty(rows * width, self.dtype)
        taken, excluded = np.empty(rows, np.int64), np.empty(rows, np.int64)
        tiles = _core.Tiles(job, taken, excluded)
        while count := tiles.begin_rows():
            if states is None:
                hidden = copies[:count]
                self._cast(self.hidden, self.hidden_code, taken[:count], hidden, workers)
            else:
                hidden = states[taken[0] : taken[0] + count]
            self._run_tiles(tiles, hidden, excluded[:count], logits, width, workers)
        tiles.end()
        if job.has_refused:
            _job.raise_refusal(job)

    def _tile_shape(self, kept: int, copied: int) -> tuple[int, int]:
        """Rows and classes of a tile; of each row, so many elements of a hidden state are copied."""
        itemsize, multiple = self.dtype.itemsize, _core.TILE_CLASS_MULTIPLE
        most = min(MAX_TILE_ROWS, max(1, _TILE_BYTES // ((copied + multiple) * itemsize)))
        rows = -(-kept // -(-kept // most)) if kept else 1  # as many in each turn
        width = (_TILE_BYTES - rows * copied * itemsize) // ((rows + (self.bias is not None)) * itemsize)
        return rows, min(max(width // multiple * multiple, multiple), self.scores.classes)

    def _run_tiles(
        self, tiles: _core.Tiles, hidden: Array, excluded: Array, logits: Array, width: int, workers: int | None
    ) -> None:
        """Multiply some hidden states by all weights, a tile at a time, and reduce each tile."""
        count, classes = len(hidden), self.scores.classes
        operands = self.weight, self.weight_code, hidden, self.scores.dtype
        product = self._own_product(hidden)
        target_logits = np.empty(count)
        _core.row_dots(*operands, excluded, target_logits)
        with np.errstate(all="ignore"):  # infinities and nan are results
            if self.bias is not None and classes:
                target_logits = target_logits.astype(self.dtype) + self._biases(excluded)
            tiles.set_target_logits(target_logits.astype(np.float64))
            for first in range(0, max(classes, 1), max(width, 1)):
                last = min(first + width, classes)
                tile = logits[: count * (last - first)].reshape(count, last - first)
                if product:
                    product.set_result(tile, first)
                    _workers.run(product, workers)
                else:
                    self._multiply(hidden, first, tile, workers)
                if self.bias is not None:
                    tile += self._biases(slice(first, last))
                tiles.set_tile(tile, first)
                _workers.run(tiles, workers)
        tiles.end_rows()

    def _biases(self, classes: Array | slice) -> Array:
        """The bias of some classes, in the dtype of the product."""
        assert self.bias is not None
        array, code = self.bias
        some = array[classes]
        biases: Array = np.empty(len(some), self.dtype)
        self._cast(some.reshape(1, -1), code, None, biases.reshape(1, -1), 1)
        return biases

    def _as_blas_matrix(self) -> Array | None:
        """Hidden states as a matrix that BLAS takes as it is, if they are one."""
        hidden = self.hidden
        if hidden.ndim != 2 and not hidden.flags.c_contiguous:
            return None
        hidden = hidden.reshape(self.scores.rows, hidden.shape[-1])
        return hidden if self.hidden_code == self.scores.dtype and _is_blas_matrix(hidden) else None

    def _own_product(self, hidden: Array) -> _core.MatVec | _core.BFloat16MatMul | None:
        """Our own product of some hidden states, which reads each row of weights as it is in memory; else BLAS's."""
        if len(hidden) > _MATVEC_MAX_ROWS:
            return _core.BFloat16MatMul(self.weight, hidden) if self._can_use_bf16_matmul() else None
        if self._has_rows() and (self.weight_code == self.scores.dtype or self.dtype == np.float32):
            return _core.MatVec(self.weight, self.weight_code, hidden, self.scores.dtype)
        return None

    def _can_use_bf16_matmul(self) -> bool:
        """Whether this machine's instruction for bfloat16 can make the product."""
        both = self.weight_code == self.hidden_code & ~_core.SWAPPED == _core.DTYPES["bfloat16"]
        return both and self._has_rows() and _core.has_bf16_matmul()

    def _has_rows(self) -> bool:
        """Whether each row of the weight is contiguous, in native byte order."""
        return self.weight.strides[1] == self.weight.itemsize and self.weight_code < _core.SWAPPED

    def _multiply(self, hidden: Array, first: int, tile: Array, workers: int | None) -> None:
        """Have BLAS fill the tile with products of all hidden states and of the weights from the first on."""
        weight, classes = self.weight[first : first + tile.shape[1]], tile.shape[1]
        if self.weight_code == self.scores.dtype and (_is_blas_matrix(weight) or _is_blas_matrix(weight.T)):
            np.matmul(hidden, weight.T, out=tile)
            return
        step = max(1, _CAST_BYTES // (hidden.shape[1] * self.dtype.itemsize or 1))
        scratch = np.empty(min(step, classes) * hidden.shape[1], self.dtype)
        in_columns = abs(weight.strides[0]) < abs(weight.strides[1])
        for start in range(0, classes, step):
            part = weight[start : start + step]
            converted = scratch[: part.size].reshape(part.T.shape if in_columns else part.shape)
            self._cast(part.T if in_columns else part, self.weight_code, None, converted, workers)
            np.matmul(hidden, converted if in_columns else converted.T, out=tile[:, start : start + step])

    def _cast(self, source: Array, code: int, rows: Array | None, result: Array, workers: int | None) -> None:
        """Write rows of an array in the dtype of the product."""
        _workers.run(_core.CastRows(source, code, rows, result, self.scores.dtype), workers)


def _is_blas_matrix(array: Array) -> bool:
    """Whether BLAS takes the array as it is: unit stride between columns, and rows that do not overlap."""
    rows, elements = array.strides
    in_order = elements == array.itemsize and rows >= array.shape[1] * array.itemsize
    return in_order and rows % array.itemsize == 0 and array.flags.aligned
