"""The page that shows the text of tokens, shaded by their loss."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from tokenloss import page
from tokenloss._outputs._base import TokenOutput, title
from tokenloss.scores import COLUMNS, TokenScores


class HtmlPage(TokenOutput):
    """A page of HTML that shows the text, each token shaded by its loss, as ``tokenloss score --html`` writes it.

    Parameters
    ----------
    path : path-like
        File to write. An existing file is replaced when the new one is complete.

    See Also
    --------
    tokenloss.page.write_page : The same of arrays.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import evaluate, sinks
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = pathlib.Path(directory) / "page.html"
    ...     _ = evaluate([(np.zeros((2, 3, 4)), np.ones((2, 3), int))], sinks=[sinks.HtmlPage(path)])
    ...     path.read_text(encoding="utf-8")[:15]
    '<!doctype html>'
    """

    option = "--html"
    help = "write a page that shows the text, each token shaded by its loss"
    top_k = 5
    max_tokens: ClassVar[float] = page.MOST_TOKENS

    def finish(self, summary: dict[str, Any], result: Any) -> None:
        columns = self.collected()
        if self._batch is not None and math.prod(self._batch) == len(columns["ids"]):
            columns = {name: column.reshape(self._batch + column.shape[1:]) for name, column in columns.items()}
        if self._of_responses:
            scores = TokenScores(**{name: columns[name] for name in COLUMNS})
            known, total = summary["greedy_known"], summary["tokens"] + summary["ignored"]
            name = title(summary["files"])
            page._write_responses(self.path, columns, scores, name, result.meter, summary["accuracy"], known, total)
            return
        ids, text = columns.pop("ids"), columns.pop("text")
        page.write_page(
            self.path,
            TokenScores(**columns),
            ids,
            tokens=text if any(word is not None for word in text.flat) else None,
            title=title(summary["files"]) or "tokenloss",
            meter=result.meter,
            accuracy=summary["accuracy"],
        )
