"""Iterate over large arrays part by part, without an allocation of their size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core import _core
from tokenloss._core.dtypes import as_array, bfloat16_to_float32, refuse_dtype
from tokenloss._core.validation import check_mask

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import EllipsisType

    from tokenloss._core.types import Float64Array


_CHUNK = 1 << 16


def iter_float64(name: str, value: Any, where: Any = None, are_losses: bool = False) -> Iterator[Float64Array]:
    """Yield the numbers of an array, or those that the mask `where` selects, as contiguous float64."""
    array, code = as_array(name, value)
    if code is None or (are_losses and array.dtype == np.bool_):
        refuse_dtype(name, value, array.dtype)
    mask = None if where is None else check_mask(where, array.shape)

    def parts() -> Iterator[Float64Array]:
        operands = [array] if mask is None else [array, mask]
        flags: Any = ["external_loop", "buffered", "zerosize_ok"]
        part: Any
        for part in np.nditer(operands, flags, [["readonly", "aligned"]] * len(operands), buffersize=_CHUNK):
            numbers = part if mask is None else part[0][part[1]]
            if code == _core.DTYPES["bfloat16"]:
                numbers = bfloat16_to_float32(numbers)
            with np.errstate(invalid="ignore"):  # a signalling nan becomes a quiet one
                numbers = np.ascontiguousarray(numbers, np.float64)
            yield numbers

    is_plain = array.dtype == np.float64 and array.flags.aligned
    if mask is None and array.size <= _CHUNK and is_plain:  # the common case, for which nditer is slow
        return iter([np.ascontiguousarray(array, np.float64).reshape(-1)])
    return parts()


def iter_row_blocks(
    batch: Sequence[int], most: int, chunks: Sequence[int] = ()
) -> Iterator[tuple[int | slice | EllipsisType, ...]]:
    """Yield indices that cover the rows of a batch in order, at most `most` rows each.

    Where `most` rows hold a whole chunk of the file, blocks end at the ends of chunks, so that none is read twice.
    """
    if not batch:
        yield (...,)
        return
    first, *others = batch
    inner = math.prod(others)
    if inner > most:
        for i in range(first):
            for index in iter_row_blocks(others, most, chunks[1:]):
                yield (i, *index)
        return
    step = most // (inner or 1)
    if chunks and step > chunks[0]:
        step -= step % chunks[0]
    for start in range(0, first, step):
        yield (slice(start, start + step), ...)
