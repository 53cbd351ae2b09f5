"""Files that hold a text window by window: the ids of their rows, and which of these are scored."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tokenloss._core.errors import raise_error
from tokenloss._evaluation.sequences import RowSequences
from tokenloss.formats import npy
from tokenloss.formats.scores_file import SEQUENCES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._core.types import Array, BoolArray, IntArray
    from tokenloss._evaluation.options import Options


class StoredWindows(NamedTuple):
    """The windows of a text that a file holds, one after the other; each is a sequence."""

    size: int
    stride: int
    first: int = 0  # the number of the file's first window
    of_text: bool = False  # whether the file of the targets holds the ids of the text, not those of each window

    def sequences(self, path: str, shape: tuple[int, ...], held: RowSequences) -> RowSequences:
        """The windows as sequences, in place of those that a file holds."""
        if held.are_given:
            got, fits = f"holds {' or '.join(SEQUENCES)}", "hold windows of one text, which are its sequences"
            raise_error("content", path=path, got=got, fits=fits)
        rows = math.prod(shape[:-1])
        return RowSequences(shape, offsets=np.append(np.arange(0, rows, self.size), rows))

    def ids(self, targets: Array, batch: tuple[int, ...]) -> Array:
        """The ids of all rows, given those of the text."""
        numbers, positions = np.divmod(np.arange(math.prod(batch)), self.size)
        ids: Array = targets.reshape(-1)[(self.first + numbers) * self.stride + positions]
        return ids.reshape(batch)

    def check_overlaps(self, path: str, ids: Array, following: Array, ignored: int | None) -> Array:
        """Refuse windows that hold other ids where they overlap; return the ids of the first one.

        `following` are those of the first window of the next file.
        """
        for start in range(self.size, len(ids) + 1, self.size):
            after = (ids[start:] if start < len(ids) else following)[: self.size - self.stride]
            before = ids[start - self.size + self.stride :][: len(after)]
            if not np.all((before == after) | (before == ignored) | (after == ignored)):
                number = self.first + start // self.size
                got = f"windows {number - 1} and {number} hold different ids where they overlap"
                fits = f"hold windows of one text, in order, that begin every {self.stride} tokens"
                raise_error("content", path=path, got=got, fits=fits)
        return np.array(ids[: self.size]) if len(ids) else following

    def first_held(self, rows: IntArray) -> BoolArray:
        """Mask of these rows: those whose own token no earlier window holds."""
        numbers, positions = np.divmod(rows, self.size)
        found: BoolArray = (positions >= self.size - self.stride) | (self.first + numbers == 0)
        return found

    def new(self, rows: int) -> BoolArray:
        """Mask of the rows that predict a token which no earlier window holds."""
        numbers, positions = np.divmod(np.arange(rows), self.size)
        found: BoolArray = (positions + 1 >= self.size - self.stride) | (self.first + numbers == 0)
        return found


def stored_windows(
    files: Sequence[tuple[str, tuple[int, ...]]], targets: Sequence[str], options: Options
) -> list[StoredWindows]:
    """The windows of each file of scores, given its path and shape, and the files of targets."""
    size, stride = options.window, options.stride
    counts = [math.prod(shape[:-1]) for _, shape in files]
    found, left, number, length = [], sum(counts), 0, 0
    for (path, (*batch, _)), rows in zip(files, counts, strict=True):
        if len(batch) > 1 and batch[-1] != size and (batch[-1] > size or rows > batch[-1]):
            got, fits = f"holds windows of {batch[-1]} tokens", f"hold windows of {size}"
            raise_error("content", path=path, got=got, fits=fits)
        found.append(StoredWindows(size, stride, number))
        left -= rows
        number += -(-rows // size)
        length = (rows - 1) % size + 1 if rows else length  # of the last window
        if length < size and left:
            fits = f"hold windows of {size} tokens, as other files follow"
            raise_error("content", path=path, got=f"ends with a window of {length}", fits=fits)
    if number > 1 and length <= size - stride:
        fits = f"end with one of more than {size - stride}, which holds tokens that the one before lacks"
        raise_error("content", path=files[-1][0], got=f"ends with a window of {length} tokens", fits=fits)
    if len(targets) == 1 and _are_of_text(targets[0], sum(counts), (number - 1) * stride + length):
        return [windows._replace(of_text=True) for windows in found]
    return found


def _are_of_text(path: str, rows: int, n_tokens: int) -> bool:
    """Whether a file of targets holds the ids of a text, not those of each row.

    A text that is shorter than its windows is refused: the last one may be padded, or begin earlier to be full.
    """
    array = npy.open_array(path)
    if array.size == rows or array.size != max(array.shape, default=0):
        return False
    if array.size != n_tokens:
        fits = f"hold {n_tokens} ids, of the text in these windows, or {rows}, one for each row"
        raise_error("content", path=path, got=f"has shape {array.shape}", fits=fits)
    return True
