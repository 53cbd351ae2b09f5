"""What outputs share: their protocol, and a collector of tokens."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

from tokenloss.scores import TokenScores, token_scores

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from tokenloss._types import Array

Result = TypeVar("Result")  # LossMeter of `tokenloss score`, Comparison of `tokenloss compare`


class Output(Generic[Result]):
    """One output of the command.

    It is made before any work, opened before the first block of tokens, given each block, and finished with the
    summary. The path is None if the output is printed.
    """

    option: ClassVar[str] = ""  # of the command line; without one, the output is made if no other prints
    help: ClassVar[str] = ""
    writes_file: ClassVar[bool] = True
    needs_tokens: ClassVar[bool] = False  # each token, not the summary alone
    top_k: ClassVar[int] = 0  # likeliest classes of each token

    def __init__(self, path: str | None) -> None:
        """Check that the output can be made: ImportError or ValueError if not."""
        self.path = path

    def open(self, batch: tuple[int, ...], rows: int, top_k: int) -> AbstractContextManager[object]:
        """Prepare for `rows` tokens; `batch` is the shape of those of the first file."""
        return contextlib.nullcontext()

    def add(self, scores: TokenScores, ids: Array, text: Array | None) -> None:
        """Take the next tokens."""

    def finish(self, summary: dict[str, Any], result: Result) -> None:
        """Write or print the output."""
        raise NotImplementedError


class TokenCollector:
    """Collects the scores of tokens, of all or of the first `max_tokens`."""

    def __init__(self, top_k: int, names: Sequence[str] | None = None, max_tokens: int | None = None) -> None:
        self._names, self._max_tokens, self._seen = names, max_tokens, 0
        self._parts: list[dict[str, Array]] = []
        # so that there are columns if no block comes
        self.add(token_scores(np.empty((0, top_k)), np.empty(0, np.int64), top_k=top_k), np.empty(0, np.int64), None)

    def add(self, scores: TokenScores, ids: Array, text: Array | None) -> None:
        """Take the next tokens."""
        columns = dict(vars(scores), ids=ids, text=np.full(len(ids), None) if text is None else text.astype(object))
        left = None if self._max_tokens is None else self._max_tokens - self._seen
        self._seen += len(ids)
        if left is None or left >= 0:
            self._parts.append(
                {
                    name: column[:left]
                    for name, column in columns.items()
                    if column is not None and (self._names is None or name in self._names)
                }
            )

    def columns(self) -> dict[str, Array]:
        """All columns, by name: those of `TokenScores`, `ids` and `text`."""
        return {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}

    def scores(self, batch: tuple[int, ...]) -> tuple[TokenScores, Array, Array | None]:
        """Scores, class ids and text, in the shape of the batch if they are as many."""
        columns = self.columns()
        if math.prod(batch) == len(columns["ids"]):
            columns = {name: column.reshape(batch + column.shape[1:]) for name, column in columns.items()}
        ids, text = columns.pop("ids"), columns.pop("text")
        known = any(word is not None for word in text.flat)
        return TokenScores(**columns), ids, text if known else None


def title(files: Sequence[str]) -> str:
    """Title of an output about some files."""
    return ", ".join(files) if len(files) < 4 else f"{files[0]} and {len(files) - 1} files more"
