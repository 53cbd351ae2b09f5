"""Projections of hidden states onto the vocabulary, whose logits are computed and reduced a tile at a time."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core import _core, jobs, threads
from tokenloss._core.dtypes import CheckedArray
from tokenloss._core.errors import raise_error
from tokenloss._core.validation import PROJECTION_NAMES, check_projection

if TYPE_CHECKING:
    from tokenloss._core.types import Array, Float64Array, IntArray

MAX_TILE_ROWS = 1024  # hidden states multiplied at a time; with fewer, BLAS spends its time on packing weights
_MATVEC_MAX_ROWS = 24  # hidden states whose product takes as long as reading the weights
_TILE_BYTES = 13 << 20  # for logits, and for hidden states that are converted
_ROWS_BYTES = 2 << 20  # for logits of more than MAX_TILE_ROWS hidden states
_CAST_BYTES = 2 << 20  # for weights that are converted
_PAIR_TILE_BYTES = 8 << 20  # for logits of one of two models
_PAIR_BYTES = 13 << 20  # for these, and for its hidden states that are converted


class Projection:
    """Validated operands of ``hidden @ weight.T + bias``: float64 if one of the first two is, else float32."""

    __slots__ = ("bias", "dtype", "hidden", "hidden_code", "scores", "weight", "weight_code")

    def __init__(self, hidden: Any, weight: Any, bias: Any, names: tuple[str, str, str] = PROJECTION_NAMES) -> None:
        (self.hidden, self.hidden_code), (self.weight, self.weight_code), self.bias = check_projection(
            hidden, weight, bias, names
        )
        is_double = _core.DTYPES["float64"] in (self.hidden_code & ~_core.SWAPPED, self.weight_code & ~_core.SWAPPED)
        self.dtype: Any = np.dtype(np.float64 if is_double else np.float32)
        shape = (*self.hidden.shape[:-1], len(self.weight))
        self.scores = _core.Scores(names[0], None, _core.DTYPES[self.dtype.name], len(shape) - 1, shape)

    def part(self, classes: slice) -> Projection:
        """The projection onto some of the classes."""
        bias = None if self.bias is None else CheckedArray(self.bias[0][classes], self.bias[1])
        weight = CheckedArray(self.weight[classes], self.weight_code)
        hidden = CheckedArray(self.hidden, self.hidden_code)
        return Projection(hidden, weight, bias, (self.scores.name, *PROJECTION_NAMES[1:]))

    def scores_of_rows(self) -> _core.Scores:
        """The scores for a job that `run` gets, with an array for some rows at a time if they are short."""
        of, most = self.scores, max(MAX_TILE_ROWS, _ROWS_BYTES // (self.dtype.itemsize * len(self.weight) or 1))
        if not 0 < of.classes <= _core.TILE_CLASS_MULTIPLE:
            return of
        shape = (1,) * of.axis + (_even_part(of.rows, most), of.classes)  # one axis more than there are
        return _core.Scores(of.name, np.empty(shape[1:], self.dtype), of.dtype, of.axis, of.shape)

    def run(self, job: _core.RowJob, workers: Any) -> None:
        """Multiply, and run the job over the product: over some of its rows at a time, or over its tiles."""
        run = self._run_tiles if job.scores.array is None else self._run_rows
        run(job, *_begin(job, workers))
        if job.has_refused:
            jobs.raise_refusal(job)

    def _run_rows(self, job: _core.RowJob, workers: int | None, unmasked: int) -> None:
        """Run the job over rows whose logits all are computed before they are read."""
        held, takes_all = job.scores.array.reshape(-1, job.scores.classes), unmasked == job.rows
        product, rows, start = _TiledProduct(self, takes_all, workers), np.arange(job.rows), 0
        size = product.plan(len(held), 0 if takes_all else job.scores.classes, _TILE_BYTES - takes_all * held.nbytes)
        product.use(np.empty(size, np.uint8), False, held.reshape(-1) if takes_all else None)
        if not takes_all:
            rows = rows[: job.positions.find_unmasked(rows)]
        for first, last in _ranges(0, len(rows), len(held)):
            taken = rows[first:last]
            product.take(taken)
            logits = product.tile(0, job.scores.classes)
            end = job.positions.rows if last == len(rows) else int(taken[-1]) + 1
            for begin, stop in _ranges(start, end, len(held)):
                if not takes_all:
                    some = slice(*np.searchsorted(taken, (begin, stop)))
                    held[taken[some] - begin] = logits[some]
                job.hold_rows(begin, stop)
                threads.run(job, workers)
            start = end

    def _run_tiles(self, job: _core.RowJob, workers: int | None, unmasked: int) -> None:
        """Run the job over tiles, which have some classes of some rows."""
        product = _TiledProduct(self, unmasked == job.rows, workers)
        rows, width = self._tile_shape(unmasked, product.copied)
        product.use(np.empty(product.plan(rows, width, sys.maxsize), np.uint8), False)
        taken, excluded = np.empty(rows, np.int64), np.empty(rows, np.int64)
        tiles = _core.Tiles(job, taken, excluded)
        while count := tiles.begin_rows():
            tiles.set_target_logits(product.begin(taken[:count], excluded[:count]))
            for first, last in _ranges(0, self.scores.classes, width):
                tiles.set_tile(product.tile(first, last), first)
                threads.run(tiles, workers)
            tiles.end_rows()
        tiles.end()

    def _tile_shape(self, unmasked: int, copied: int) -> tuple[int, int]:
        """Rows and classes of a tile; `copied` elements of each row's hidden state need additional room."""
        itemsize, multiple = self.dtype.itemsize, _core.TILE_CLASS_MULTIPLE
        most = min(MAX_TILE_ROWS, max(1, _TILE_BYTES // ((copied + multiple) * itemsize)))
        rows = _even_part(unmasked, most)
        width = (_TILE_BYTES - rows * copied * itemsize) // ((rows + (self.bias is not None)) * itemsize)
        return rows, min(max(width // multiple * multiple, multiple), self.scores.classes)

    def _biases(self, classes: Array | slice) -> Array:
        """The bias of some classes, in the dtype of the product."""
        assert self.bias is not None
        array, code = self.bias
        some = array[classes]
        biases: Array = np.empty(len(some), self.dtype)
        self._cast(some.reshape(1, -1), code, None, biases.reshape(1, -1), 1)
        return biases

    def _as_blas_matrix(self) -> Array | None:
        """The hidden states as a matrix that BLAS reads in place; None if it cannot."""
        hidden = self.hidden
        if hidden.ndim != 2 and not hidden.flags.c_contiguous:
            return None
        hidden = hidden.reshape(self.scores.rows, hidden.shape[-1])
        return hidden if self.hidden_code == self.scores.dtype and _is_blas_matrix(hidden) else None

    def _own_product(self, hidden: Array) -> _core.MatVec | _core.BFloat16MatMul | None:
        """Our own product of some hidden states, which reads the weights in place; None if BLAS computes it."""
        if len(hidden) > _MATVEC_MAX_ROWS:
            return _core.BFloat16MatMul(self.weight, hidden) if self._can_use_bf16_matmul() else None
        if self._has_rows() and (self.weight_code == self.scores.dtype or self.dtype == np.float32):
            return _core.MatVec(self.weight, self.weight_code, hidden, self.scores.dtype)
        return None

    def _can_use_bf16_matmul(self) -> bool:
        """Whether the machine has an instruction for the bfloat16 product of these operands."""
        both = self.weight_code == self.hidden_code & ~_core.SWAPPED == _core.DTYPES["bfloat16"]
        return both and self._has_rows() and _core.bf16_matmul_in_use() != "blas"

    def _has_rows(self) -> bool:
        """Whether each row of the weight is contiguous and in native byte order."""
        return self.weight.strides[1] == self.weight.itemsize and self.weight_code < _core.SWAPPED

    def _multiply(self, hidden: Array, first: int, tile: Array, workers: int | None) -> None:
        """Let BLAS fill the tile with products of all hidden states and the weights, starting at the first."""
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
        threads.run(_core.CastRows(source, code, rows, result, self.scores.dtype), workers)


class _TiledProduct:
    """The logits of a projection for groups of rows, computed a tile at a time."""

    _tile: Array  # memory of a tile
    _copies: Array  # of hidden states that are copied
    _tile_size: int
    width: int
    _step: int  # rows that are multiplied at a time
    _taken: IntArray
    _whole_operands: tuple[Array, _core.MatVec | _core.BFloat16MatMul | None] | None  # if all rows fit at a time

    def __init__(self, of: Projection, takes_all: bool, workers: int | None) -> None:
        self._of, self._workers = of, workers
        self._states = of._as_blas_matrix() if takes_all else None
        self._depth = 0 if self._states is not None else of.hidden.shape[-1]
        self.copied = self._depth * 3 // 2 if of._can_use_bf16_matmul() else self._depth  # elements of a hidden state

    def plan(self, rows: int, width: int, most_bytes: int) -> int:
        """Bytes that tiles of this shape need, with hidden states that are copied: in parts, if all need too many."""
        itemsize: int = self._of.dtype.itemsize
        room = (most_bytes - rows * width * itemsize) // (max(self.copied, 1) * itemsize)
        self._tile_size, self._step = rows * width, _even_part(rows, max(1, room))
        return -(-(self._tile_size + self._step * self._depth) * itemsize // 8) * 8

    def plan_pair(self, rows: int) -> int:
        """The same for tiles of one of two models, with this number of rows and `width` columns."""
        multiple = _core.TILE_CLASS_MULTIPLE
        self.width = max(1, _PAIR_TILE_BYTES // (rows * multiple * self._of.dtype.itemsize)) * multiple
        return self.plan(rows, min(self.width, self._of.scores.classes), _PAIR_BYTES)

    def use(self, memory: Array, is_shared: bool, tile: Array | None = None) -> None:
        """Use these bytes, but a tile that is given; if they are shared, products use them in turn."""
        memory, self._is_shared = memory.view(self._of.dtype), is_shared
        self._tile, self._copies = memory if tile is None else tile, memory[self._tile_size :]

    def take(self, taken: IntArray) -> None:
        """Begin the rows with these numbers."""
        self._taken, self._whole_operands = taken, None

    def begin(self, taken: IntArray, excluded: IntArray) -> Float64Array:
        """Begin these rows, and return their logits for the excluded classes."""
        self.take(taken)
        of, logits = self._of, np.empty(len(taken))
        for part in self._parts():
            hidden, _ = self._operands(part)
            _core.row_dots(of.weight, of.weight_code, hidden, of.scores.dtype, excluded[part], logits[part])
        if of.bias is not None and of.scores.classes:
            with np.errstate(all="ignore"):  # infinities and nan are results
                logits = (logits.astype(of.dtype) + of._biases(excluded)).astype(np.float64)
        return logits

    def tile(self, first: int, last: int) -> Array:
        """The logits of the rows for these classes."""
        of, shape = self._of, (len(self._taken), last - first)
        tile: Array = self._tile[: shape[0] * shape[1]].reshape(shape)
        with np.errstate(all="ignore"):
            for part in self._parts():
                hidden, product = self._operands(part)
                if product:
                    product.set_result(tile[part], first)
                    threads.run(product, self._workers)
                else:
                    of._multiply(hidden, first, tile[part], self._workers)
            if of.bias is not None:
                tile += of._biases(slice(first, last))
        return tile

    def _parts(self) -> list[slice]:
        """The rows that are multiplied at a time."""
        return [slice(start, start + self._step) for start in range(0, len(self._taken), self._step)]

    def _operands(self, part: slice) -> tuple[Array, _core.MatVec | _core.BFloat16MatMul | None]:
        """The hidden states of some rows, and our own product of them."""
        if self._whole_operands is not None:
            return self._whole_operands
        taken, of = self._taken[part], self._of
        if self._states is not None:
            hidden = self._states[taken[0] : taken[0] + len(taken)]
        else:
            hidden = self._copies[: len(taken) * self._depth].reshape(len(taken), self._depth)
            of._cast(of.hidden, of.hidden_code, taken, hidden, self._workers)
        operands = hidden, of._own_product(hidden)
        if len(taken) == len(self._taken) and not self._is_shared:
            self._whole_operands = operands
        return operands


def run_pairs(base: Projection, others: list[Projection], pair_jobs: list[_core.PairJob], workers: Any) -> None:
    """Multiply all, and run a job for each of the others over pairs of tiles: its own and the base's.

    The products of one of the others do not depend on how many others there are.
    """
    workers, unmasked = _begin(pair_jobs[0], workers)
    rows, classes = _even_part(unmasked, MAX_TILE_ROWS), base.scores.classes
    base_product, *products = (_TiledProduct(of, unmasked == base.scores.rows, workers) for of in (base, *others))
    base_product.use(np.empty(base_product.plan_pair(rows), np.uint8), False)
    memory = np.empty(max(product.plan_pair(rows) for product in products), np.uint8)
    for product in products:
        product.use(memory, len(products) > 1)
    taken, excluded = np.empty(rows, np.int64), np.empty(rows, np.int64)
    all_tiles = [_core.Tiles(job, taken, excluded) for job in pair_jobs]
    while count := all_tiles[0].begin_rows():
        begun = taken[:count], excluded[:count]
        base_logits = base_product.begin(*begun)
        for product, tiles in zip(products, all_tiles, strict=True):
            tiles.begin_rows_of(all_tiles[0])
            tiles.set_target_logits(product.begin(*begun), base_logits)
        left = list(zip(products, all_tiles, strict=True))
        while left:
            for first, last in _ranges(0, classes, base_product.width):
                base_tile = base_product.tile(first, last)
                for product, tiles in left:
                    for start, stop in _ranges(first, last, product.width):  # several if only it is float64
                        tile = product.tile(start, stop)
                        tiles.set_tile(tile, start, base_tile[:, start - first : stop - first])
                        threads.run(tiles, workers)
            left = [(product, tiles) for product, tiles in left if tiles.end_rows()]
    for tiles in all_tiles:
        tiles.end()
    if pair_jobs[0].has_refused:
        jobs.raise_refusal(pair_jobs[0])


def _begin(job: _core.RowJob, workers: Any) -> tuple[int | None, int]:
    """Check workers and class ids; return the numbers of threads and of unmasked rows."""
    workers = threads.check_workers(workers)
    if job.positions.by_class:
        jobs.check_targets(job.positions, job.scores)
    return workers, job.positions.count_unmasked()


def _even_part(count: int, most: int) -> int:
    """The largest batch size <= `most` that makes all batches nearly equal; at least 1."""
    return -(-count // -(-count // most)) if count else 1


def _ranges(start: int, stop: int, width: int) -> list[tuple[int, int]]:
    """The first class of each tile, and the class after its last; a single empty tile if there are no classes."""
    return [(first, min(first + width, stop)) for first in range(start, max(stop, start + 1), max(width, 1))]


def _is_blas_matrix(array: Array) -> bool:
    """Whether BLAS reads the array in place: columns are contiguous, rows do not overlap."""
    rows, elements = array.strides
    return elements == array.itemsize and rows >= array.shape[1] * array.itemsize and array.flags.aligned


_PAIR_BASE_NAMES = "base_hidden", "base_lm_head", "base_lm_head_bias"
_PAIR_NAMES = "hidden", "lm_head", "lm_head_bias"


def two_projections(
    base_hidden: Any, base_lm_head: Any, base_lm_head_bias: Any, hidden: Any, weight: Any, bias: Any
) -> tuple[Projection, Projection]:
    """The projections of a base and of another model, of one batch."""
    base = Projection(base_hidden, base_lm_head, base_lm_head_bias, _PAIR_BASE_NAMES)
    other = Projection(hidden, weight, bias, _PAIR_NAMES)
    if other.scores.batch != base.scores.batch:
        fits = f"({', '.join(map(str, (*base.scores.batch, 'E')))}), as many positions as base_hidden has"
        raise_error("shape", name="hidden", got=other.hidden.shape, fits=fits)
    return base, other
