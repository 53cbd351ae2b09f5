"""The protocol of outputs, and what those of single tokens share."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from tokenloss.scores import TokenScores, token_scores

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from tokenloss._types import Array


class TokenBlock(NamedTuple):
    """The next tokens of an evaluation, in the order of the text."""

    scores: TokenScores
    ids: Array  # the targets, or the likeliest classes of distributions
    text: Array | None
    file: int  # number of their file, from 0
    positions: Array  # rows of that file
    sequences: Array  # numbers of their sequences, -1 of none


class Output:
    """One output of the command, made before any work.

    It is opened before the first block of tokens, given each block, and finished with the summary. The path is None if
    it is printed. `__init__` raises ImportError or ValueError if the output cannot be made.
    """

    option: str = ""  # of the command line; without one, the output is made if no other prints
    help: ClassVar[str] = ""
    writes_file: ClassVar[bool] = True
    needs_tokens: bool = False  # each token, not the summary alone
    top_k: int = 0  # likeliest classes of each token
    path: Any = None  # also where `__init__` is not called

    def __init__(self, path: Any = None) -> None:
        self.path = path

    @property
    def _name(self) -> str:
        """What errors call it."""
        return type(self).__name__

    def open(self, batch: tuple[int, ...] | None, rows: int | None, top_k: int) -> AbstractContextManager[object]:
        """Prepare for `rows` tokens; `batch` is the shape of those of the first file. None if not known."""
        return contextlib.nullcontext()

    def add(self, block: TokenBlock) -> None:
        """Take the next tokens."""

    def finish(self, summary: dict[str, Any], result: Any) -> None:
        """Write or print the output; the result is an `Evaluation` or a `Comparison`."""


class TokenOutput(Output):
    """An output that collects tokens, all or the first `max_tokens`."""

    needs_tokens = True
    columns: ClassVar[Sequence[str] | None] = None  # all without a list
    max_tokens: ClassVar[float] = math.inf

    def open(self, batch: tuple[int, ...] | None, rows: int | None, top_k: int) -> AbstractContextManager[object]:
        self._batch, self._seen = batch, 0
        self._parts: list[dict[str, Array]] = []
        # so that there are columns if no block comes
        none = np.empty(0, np.int64)
        self.add(TokenBlock(token_scores(np.empty((0, top_k)), none, top_k=top_k), none, None, 0, none, none))
        return contextlib.nullcontext()

    def add(self, block: TokenBlock) -> None:
        ids, text = block.ids, block.text
        text = np.full(len(ids), None) if text is None else text.astype(object)
        columns = dict(vars(block.scores), ids=ids, text=text)
        left = int(min(len(ids), max(0, self.max_tokens - self._seen)))
        self._seen += len(ids)
        if left or not self._parts:
            names = [name for name in self.columns or columns if columns.get(name) is not None]
            self._parts.append({name: columns[name][:left] for name in names})

    def collected(self) -> dict[str, Array]:
        """Columns by name: those of `TokenScores`, `ids` and `text`."""
        return {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}


def title(files: Sequence[str]) -> str:
    """Title of an output about some files."""
    return ", ".join(files) if len(files) < 4 else f"{files[0]} and {len(files) - 1} files more"
