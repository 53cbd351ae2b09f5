"""What several outputs share: a sink that collects tokens."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tokenloss._evaluation.sink import Sink, TokenBlock
from tokenloss._scores.token_scores import token_scores

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from tokenloss._core.types import Array


class TokenSink(Sink):
    """An output that collects tokens, all or the first `max_tokens`."""

    needs_tokens = True
    _function = "evaluate"
    wanted: ClassVar[Sequence[str] | None] = None  # names of the columns to collect; None for all
    max_tokens: ClassVar[float] = math.inf

    def open(self, batch: tuple[int, ...] | None, rows: int | None, top_k: int) -> AbstractContextManager[object]:
        self._seen = 0
        self._parts: list[dict[str, Array]] = []
        # an empty block, so that there are columns even if no other comes
        none = np.empty(0, np.int64)
        others: dict[str, Array] = {}
        if self._of_responses:
            top_tokens = np.empty((0, top_k), np.object_)
            others = {"is_greedy_known": none, "is_prompt": none, "top_tokens": top_tokens}
        if self._tokenizer is not None:
            others = {"n_bytes": none}
        places = None if self._of_responses else none, none, none
        scores = token_scores(np.empty((0, top_k)), none, top_k=top_k)
        self.add(TokenBlock(scores, none, None, 0, *places, **others))
        return contextlib.nullcontext()

    def add(self, block: TokenBlock) -> None:
        n_tokens, text = len(block.target), block.text
        text = np.full(n_tokens, None) if text is None else text.astype(object)
        columns = dict(vars(block.scores), text=text, file=np.full(n_tokens, block.file))
        names = ("target", "row", "sequence", "position", "top_tokens", "is_greedy_known", "n_bytes")
        columns |= {name: getattr(block, name) for name in names}
        left = int(min(n_tokens, max(0, self.max_tokens - self._seen)))
        self._seen += n_tokens
        if left or not self._parts:
            known = [name for name in self.wanted or columns if columns.get(name) is not None]
            self._parts.append({name: columns[name][:left] for name in known})

    def collected(self) -> dict[str, Array]:
        """Columns by name: those of `TokenScores`, and of `TokenBlock`, as far as they are known."""
        return {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}
