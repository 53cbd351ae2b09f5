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
    responses: int  # choices, those without any token to score among them
    without_number: int  # tokens
    sentinels: int  # tokens
    greedy_known: int  # tokens that are known to be greedy or not
    lost_tops: int
    rounding: Rounding
    failed: list[Failed]
    sources: Sources  # of each sequence that has a token to score

    def to_json(self) -> dict[str, Any]:
        """The figures, as JSON can hold them."""
        sources = {name: column.tolist() for name, column in self.sources._asdict().items()}
        return {**self._asdict(), "sources": sources}

    @classmethod
    def from_json(cls, state: Any) -> ResponseFigures:
        """Inverse of `to_json`; ValueError if it cannot be that."""
        counts = [state[name] for name in ("responses", "without_number", "sentinels", "greedy_known", "lost_tops")]
        rounding, failed = Rounding._make(state["rounding"]), [Failed._make(entry) for entry in state["failed"]]
        columns: list[Any] = [
            np.array(state["sources"][name], column.dtype) for name, column in NO_SOURCES._asdict().items()
        ]
        words = [state["dialect"], state["part"], *(entry.reason for entry in failed)]
        names = [*columns[-1].tolist(), *(entry.custom_id for entry in failed)]
        if not (
            all(type(count) is int and count >= 0 for count in [*counts, *rounding[:2], *(e.line for e in failed)])
            and all(type(flag) is bool for flag in rounding[2:])
            and all(isinstance(word, str) for word in words)
            and all(name is None or isinstance(name, str) for name in names)
            and {column.shape for column in columns} == {columns[0].shape}
            and columns[0].ndim == 1
        ):
            raise ValueError("no responses have these figures")
        fields: list[Any] = [*words[:2], *counts, rounding, failed, Sources(*columns)]
        return cls(*fields)
