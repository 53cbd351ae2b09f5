"""Columns of tokens for pages and plots, collected block by block."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenloss._core.types import Array, Columns
    from tokenloss._evaluation.sink import Column


DTYPES = {"bool": "?", "int64": "<i8", "float64": "<f8", "text": "O"}


class Collected:
    """The columns of all tokens, or of the first ones; `count` is the number of all."""

    def __init__(self, columns: Iterable[Column] = (), most: float = math.inf, top_k: int = 0) -> None:
        self.count, self._most = 0, most
        # empty parts, so that there are columns even without any block
        self._parts: dict[str, list[Array]] = {one.name: [np.empty(0, DTYPES[one.dtype])] for one in columns}
        if top_k:
            none = np.empty((0, top_k))
            self._parts |= {"rank": [np.empty(0, np.int64)], "top_ids": [none.astype(np.int64)], "top_logprobs": [none]}

    def add(self, columns: Columns, tops: Columns | None = None) -> None:
        """Add the next tokens: the columns named at the start, and the most likely classes."""
        columns = {name: column for name, column in columns.items() if name in self._parts}
        columns |= tops or {}
        size = len(next(iter(columns.values()), ()))
        left = int(min(size, max(0, self._most - self.count)))
        self.count += size
        for name, column in columns.items() if left else ():
            self._parts.setdefault(name, []).append(column[:left])

    def joined(self) -> Columns:
        """The columns of all blocks, joined."""
        return {name: np.concatenate(parts) for name, parts in self._parts.items()}
