"""The page of HTML that shows a text, each token shaded by its loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tokenloss._core.text import count_of, title
from tokenloss._core.validation import as_target_array
from tokenloss._output import page
from tokenloss._output.shared import TokenSink
from tokenloss._scores.token_scores import COLUMNS, TokenScores
from tokenloss._statistics.meter import LossMeter

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from tokenloss._core.types import Array, ArrayLike

# nats at which each next colour of page.css begins
_LOSSES = (0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)


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

    def open(self, batch: tuple[int, ...] | None, rows: int | None, top_k: int) -> AbstractContextManager[object]:
        self._shape = (
            batch if batch is not None and math.prod(batch) == rows else None
        )  # set if all tokens are in one file
        return super().open(batch, rows, top_k)

    def finish(self, summary: dict[str, Any], result: Any) -> None:
        columns, name, accuracy = self.collected(), title(summary["files"]) or "tokenloss", summary["accuracy"]
        scores = TokenScores(**{column: columns[column] for column in COLUMNS if column in columns})
        if self._of_responses:
            known = summary["n_greedy_known"]
            _write_responses(self.path, columns, scores, name, result.meter, accuracy, known, self._seen)
            return
        ids, text = columns["ids"], columns["text"].tolist()
        given = text if any(word is not None for word in text) else None
        bounds = page.row_bounds(self._shape or ids.shape, len(ids))
        head, data = _summary(result.meter, accuracy), _data(scores, ids, given, None)
        _write(self.path, scores, ids, text, bounds, name, head, self._seen, data)


def write_page(
    path: str | os.PathLike[str],
    scores: TokenScores,
    targets: ArrayLike,
    *,
    tokens: Sequence[str | None] | Array | None = None,
    vocabulary: Sequence[str] | None = None,
    title: str = "tokenloss",
    meter: LossMeter | None = None,
    accuracy: float | None = None,
) -> None:
    """Write a page of HTML that shows a text, each token shaded by its loss.

    A token that is pointed at, tapped or reached by the keyboard shows its rank, probability, loss, entropy and the
    most likely alternatives. The page is a single file and needs no network.

    Parameters
    ----------
    path : path-like
        File to write. An existing file is replaced when the new one is complete.
    scores : TokenScores
        Result of `token_scores`, for positions of any shape: each row of the last axis is a paragraph. Its ``top_k`` is
        the number of alternatives that are listed.
    targets : array of integers
        Class ids that were scored, of the shape of `scores`.
    tokens : array of str, optional
        Text of the tokens, of the shape of `scores`; None where it is unknown. The marks of byte-level BPE (``Ġ`` for a
        space, ``Ċ`` for a newline, one for each byte) and of SentencePiece (``▁``, ``<0x0A>``) are decoded.
    vocabulary : sequence of str, optional
        Text of each class id: for the alternatives, and for the targets if `tokens` is not given. Without it,
        alternatives have the text of the tokens with the same id. Where the text is unknown, the id is shown.
    title : str, default "tokenloss"
        Title.
    meter : LossMeter, optional
        Meter for the summary at the top, if `scores` are only the first part of the text, or for bits per byte. By
        default the meter of `scores`.
    accuracy : float, optional
        Fraction of greedy tokens for the summary; it belongs to `meter`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it, what came and what fits. Nothing is written then.
    OSError
        If the file cannot be written; an existing file is unchanged.

    Notes
    -----
    A page holds the first 100,000 tokens (``MOST_TOKENS``), and says so when there are more; its summary is of all.
    The colours begin at 0, 0.1, 0.5, 1, 2, 3, 4, 6, 8 and 10 nats on every page.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from tokenloss import token_scores
    >>> from tokenloss.page import write_page
    >>> scores = token_scores([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], [0, 1], top_k=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "page.html")
    ...     write_page(path, scores, [0, 1], vocabulary=["to", " be", " not"])
    ...     "<i class=s1>to</i><i class=s0> be</i>" in path.read_text("utf-8")
    True
    """
    shape = scores.nll.shape
    ids = as_target_array("targets", targets, (), shape, "scores", False)[0].reshape(-1)[: page.MOST_TOKENS]
    if tokens is None:
        given = None
        text = [page.token_text(vocabulary, i) for i in ids.tolist()]
    else:
        given = text = page.as_strings(tokens, shape)
    if meter is None:
        meter, accuracy = LossMeter(), scores.accuracy
        meter.update(scores.nll, where=scores.kept)
    total = max(math.prod(shape), meter.count)
    data = _data(scores, ids, given, vocabulary)
    _write(path, scores, ids, text, page.row_bounds(shape, len(ids)), title, _summary(meter, accuracy), total, data)


def _write_responses(
    path: str | os.PathLike[str], columns: dict[str, Array], scores: TokenScores, title: str, meter: LossMeter,
    accuracy: float, known: int, total: int,
) -> None:  # fmt: skip
    """Do as `write_page` for responses of servers, each of which is a paragraph.

    `columns` holds ids, text, sequences and positions of the tokens, and the text of their alternatives. Of `known`
    tokens it is known whether they are greedy; the page may hold only the first of `total` tokens.
    """
    ids, bounds = columns["ids"], np.append(np.flatnonzero(columns["positions"] == 0), len(columns["ids"])).tolist()
    text = ["\N{REPLACEMENT CHARACTER}" if i < 0 and word is None else word
            for i, word in zip(ids.tolist(), columns["text"].tolist(), strict=True)]  # fmt: skip
    assert scores.top_ids is not None
    assert scores.top_logprobs is not None
    top_ids, top_logprobs = scores.top_ids, scores.top_logprobs
    note = f"of {count_of(known, 'token')} where it is known" if known < meter.count else ""
    head = _summary(meter, accuracy if known else None, note)
    data = {
        "k": str(top_ids.shape[-1]),
        "id": _known(ids),
        "rank": _known(scores.rank, least=1),
        "loss": page.numbers(scores.nll),
        "top": _known(top_ids),
        "logprob": page.numbers(top_logprobs.reshape(-1)),
        "token": page.as_json(columns["text"].tolist()),
        "named": page.as_json(columns["top_tokens"].reshape(-1).tolist()),
        "sequence": page.as_json(columns["sequences"].tolist()),
        "position": page.as_json(columns["positions"].tolist()),
    }
    _write(path, scores, ids, text, bounds, title, head, total, data)


def _write(
    path: str | os.PathLike[str], scores: TokenScores, ids: Array, text: list[str | None], bounds: list[int],
    title: str, head: str, total: int, data: dict[str, str],
) -> None:  # fmt: skip
    """Write a page of tokens, in paragraphs with these bounds."""
    css_class = page.css_classes(scores.nll, scores.kept, _LOSSES)
    probabilities = [page.percent(math.exp(-loss)) for loss in (0.0, *_LOSSES)]
    shades = page.legend(css_class, "loss from<br>probability to", _LOSSES, probabilities, "infinite loss")
    head = f"{head}\n{shades}{page.excerpt_note(len(ids), total)}"
    page.write_frame(path, title, head, page.paragraphs(ids, text, css_class, bounds), data)


def _data(
    scores: TokenScores, ids: Array, tokens: list[str | None] | None, vocabulary: Sequence[str] | None
) -> dict[str, str]:
    """JSON of everything that the script shows, in columns."""
    size = len(ids)
    top, columns = page.alternatives(vars(scores), size)
    return columns | {
        "id": page.as_json(ids.tolist()),
        "loss": page.numbers(scores.nll.reshape(-1)[:size]),
        "entropy": page.numbers(scores.entropy.reshape(-1)[:size]),
        "text": page.as_json(page.class_text(ids, tokens, vocabulary, [top])),
        "token": page.as_json(tokens),
    }


def _known(values: Array, least: int = 0) -> str:
    """JSON of integers; those below `least` are not known, and become null."""
    return page.as_json([None if number < least else number for number in values.reshape(-1).tolist()])


def _summary(meter: LossMeter, accuracy: float | None, note: str = "") -> str:
    """HTML of the summary, with a note about the accuracy."""
    low, high = meter.perplexity_interval
    sure = not math.isnan(low)
    figures = [
        ("tokens", f"{meter.count:,}", ""),
        ("loss", f"{meter.loss:.5g}", f"± {meter.stderr:.3g} nats ({meter._basis()})" if sure else "nats"),
        ("perplexity", f"{meter.perplexity:.5g}", f"95 % interval {low:.4g} to {high:.4g}" if sure else ""),
        ("bits per token", f"{meter.bits_per_token:.5g}", ""),
    ]
    if meter.n_bytes:
        figures.append(("bits per byte", f"{meter.bits_per_byte:.5g}", f"{meter.n_bytes:,} bytes"))
    if accuracy is not None:
        figures.append(("greedy accuracy", f"{100 * accuracy:.2f} %", note))
    return page.summary(figures)
