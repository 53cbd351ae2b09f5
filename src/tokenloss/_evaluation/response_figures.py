"""Results of a file of responses besides losses: origins of sequences, tokens without a number, failed lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._statistics.rounding import Rounding
from tokenloss.formats.responses import Failed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._core.types import Array, BoolArray, IntArray


class Sources(NamedTuple):
    """Columns of a table of sequences: the line and choice of each, and what is known of its tokens."""

    line: IntArray
    choice: IntArray
    n_bytes: IntArray  # of their tokens that are scored; -1 where it is not known
    is_greedy_known: BoolArray
    custom_id: Array

    @classmethod
    def concatenated(cls, parts: Sequence[Sources]) -> Sources:
        """All of several parts."""
        columns: Any = zip(NO_SOURCES, *parts, strict=True)
        return cls(*map(np.concatenate, columns))

    def as_columns(self) -> dict[str, Array]:
        """Columns of the table of sequences."""
        columns: dict[str, Array] = self._asdict()
        return {name: column for name, column in columns.items() if name != "n_bytes"}


NO_SOURCES = Sources(
    np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.bool_), np.empty(0, np.object_)
)


class ResponseFigures(NamedTuple):
    """Results of a file of responses besides losses."""

    dialect: str
    part: str
    n_responses: int  # choices, those without any token to score among them
    n_without_number: int  # tokens
    n_sentinels: int  # tokens
    n_greedy_known: int  # tokens that are known to be greedy or not
    n_short_lists: int
    n_uncovered_bytes: int  # of their texts, in no token
    rounding: Rounding
    failed: list[Failed]
    sources: Sources  # of each sequence that has a token to score
