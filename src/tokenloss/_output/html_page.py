"""The pages that show the text of tokens, shaded by their loss or divergence."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tokenloss._core.text import title
from tokenloss._evaluation.sink import Sink
from tokenloss._output import page
from tokenloss._output.base import TokenSink, compared_title
from tokenloss._scores.token_scores import COLUMNS, TokenScores

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from tokenloss._core.types import Array
    from tokenloss._evaluation.sink import Candidate, ComparedBlock


class HtmlPage(TokenSink):
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

    __module__ = "tokenloss.sinks"

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


class DivergencePage(Sink):
    """A page of HTML that shows the text, each token shaded by its divergence: ``tokenloss compare --html``.

    Parameters
    ----------
    path : path-like
        File to write. An existing file is replaced when the new one is complete.

    See Also
    --------
    tokenloss.page.write_comparison_page : The same of arrays.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import compare_files, sinks
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     base, q4, path = (pathlib.Path(directory, name) for name in ("base.npz", "q4.npy", "page.html"))
    ...     np.savez(base, logits=4 * np.eye(4), targets=np.arange(4))
    ...     np.save(q4, 2 * np.eye(4))
    ...     _ = compare_files(base, q4, sinks=[sinks.DivergencePage(path)])
    ...     path.read_text(encoding="utf-8")[:15]
    '<!doctype html>'
    """

    __module__ = "tokenloss.sinks"

    option = "--html"
    help = "write a page that shows the text, each token shaded by its divergence"
    needs_tokens = True
    top_k = 5

    def open(self, batch: tuple[int, ...] | None, rows: int | None, top_k: int) -> AbstractContextManager[object]:
        self._places: list[dict[str, Array]] = []  # of each block; so are the next
        self._base: list[dict[str, Array]] = []
        self._others: list[list[dict[str, Array]]] = []  # by candidate
        return contextlib.nullcontext()

    def add(self, block: ComparedBlock) -> None:  # type: ignore[override]  # compare passes ComparedBlocks only
        while len(self._others) <= block.candidate:
            self._others.append([])
        others = self._others[block.candidate]
        seen = sum(len(part["rank"]) for part in others)
        left = max(0, page.MOST_TOKENS // len(self._others) - seen)
        if others and not left:
            return
        others.append(_tops(block.scores, left))
        if block.candidate == 0:
            text = np.full(len(block.ids), None) if block.text is None else block.text.astype(object)
            of_file = np.full(len(block.ids), block.file)
            places = {"id": block.ids, "text": text, "file": of_file}
            places |= {"sequence": block.sequences, "position": block.positions}
            self._places.append({name: column[:left] for name, column in places.items()})
            self._base.append(_tops(block.base_scores, left))

    def finish(self, summary: dict[str, Any], result: Sequence[Candidate]) -> None:
        places = _joined(self._places)
        text = places.pop("text")
        size = min(len(text), page.MOST_TOKENS // len(result))
        file, sequence = places["file"][:size], places["sequence"][:size]
        starts = np.flatnonzero((np.diff(file) != 0) | (np.diff(sequence) != 0)) + 1
        for name, unknown in ("file", 0), ("sequence", -1):
            if (places[name] == unknown).all():
                del places[name]
        page._write_comparison(
            self.path,
            {one.name: one.comparison for one in result},
            places,
            _joined(self._base),
            {one.name: _joined(parts) for one, parts in zip(result, self._others, strict=True)},
            text.tolist() if any(word is not None for word in text) else None,
            None,
            [0, *starts.tolist(), size],
            compared_title(summary, result),
        )


def _tops(scores: TokenScores | None, size: int) -> dict[str, Array]:
    """Ranks and most likely classes of the first tokens of a block."""
    columns = vars(scores)
    names = ("rank", "argmax", "top_ids", "top_logprobs")
    return {name: columns[name][:size] for name in names if columns[name] is not None}


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    """Columns of all blocks."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
