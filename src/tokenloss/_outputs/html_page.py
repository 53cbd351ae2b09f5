"""The page that shows the text of tokens, shaded by their loss."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from tokenloss import page
from tokenloss._outputs._base import Output, TokenCollector, title
from tokenloss.meter import LossMeter

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from tokenloss._types import Array
    from tokenloss.scores import TokenScores


class HtmlPage(Output[LossMeter]):
    """A page of HTML."""

    option = "--html"
    help = "write a page that shows the text, each token shaded by its loss"
    needs_tokens = True
    top_k = 5

    def open(self, batch: tuple[int, ...], rows: int, top_k: int) -> AbstractContextManager[object]:
        """Prepare to collect tokens."""
        self._batch = batch
        self._tokens = TokenCollector(top_k, max_tokens=page.MOST_TOKENS)
        return contextlib.nullcontext()

    def add(self, scores: TokenScores, ids: Array, text: Array | None) -> None:
        """Collect the next tokens."""
        self._tokens.add(scores, ids, text)

    def finish(self, summary: dict[str, Any], result: LossMeter) -> None:
        """Write the page."""
        assert self.path is not None
        scores, ids, text = self._tokens.scores(self._batch)
        name, accuracy = title(summary["files"]), summary["accuracy"]
        page.write_page(self.path, scores, ids, tokens=text, title=name, meter=result, accuracy=accuracy)
