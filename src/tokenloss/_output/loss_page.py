"""The page of HTML that shows a text, each token shaded by its loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tokenloss._comparison.tables import known_of
from tokenloss._core.rows import Row
from tokenloss._core.text import title
from tokenloss._core.validation import as_target_array
from tokenloss._evaluation.score_tables import group_tables
from tokenloss._evaluation.sink import Sink
from tokenloss._evaluation.token_bytes import cut_pieces, text_of_pieces
from tokenloss._output import page
from tokenloss._output.calibration_plot import reliability_panel
from tokenloss._output.shared import Collected
from tokenloss._statistics.meter import LossMeter, basis_of
from tokenloss.formats.tokenizers.token_text import byte_encoder

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import TypeAlias

    from tokenloss._core.types import Array, ArrayLike
    from tokenloss._evaluation.results import Evaluation
    from tokenloss._evaluation.sink import Block, Needs, Schema
    from tokenloss._scores.token_scores import TokenScores

    _Names: TypeAlias = Callable[[list[int]], Iterable[str | None]]

# nats at which each next color of page.css begins
_LOSSES = (0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
_ROWS = (
    Row("tokens", "count", "{:,}"),
    Row("loss", "loss", "{:.5g}", ("± {stderr:.3g} nats (n = {basis})",), "nats"),
    Row("perplexity", "perplexity", "{:.5g}", ("95 % interval {low:.4g} to {high:.4g}",)),
    Row("bits per token", "bits_per_token", "{:.5g}"),
    Row("bits per byte", "bits_per_byte", "{:.5g}", ("{n_bytes:,} bytes",), when="n_bytes"),
    Row("greedy accuracy", "accuracy", "{:.2f %}", ("{greedy_note}",)),
)


class HtmlPage(Sink):
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
    rows = "tokens"
    needs: Needs = ({"nll", "rank", "argmax"},)
    top_k = 5
    made_by = "tokenloss.evaluate"
    max_tokens: ClassVar[float] = page.MOST_TOKENS

    def open(self, schema: Schema) -> AbstractContextManager[object]:
        self._bytes_of = schema.bytes_of
        self._tokens = Collected(schema.tokens, self.max_tokens, schema.top_k)
        return super().open(schema)

    def write(self, block: Block) -> None:
        self._tokens.add(block.columns, block.tops.get(""))

    def finish(self, result: Evaluation) -> None:
        columns, facts, bytes_of = self._tokens.joined(), result.figures, self._bytes_of
        ids, classes, accuracy = columns["target"], page.Classes(), facts["accuracy"]
        text = columns["text"].tolist() if "text" in columns else [None] * len(ids)
        places = page.known_places({name: columns[name] for name in page.PLACES if name in columns})
        if "top_tokens" in columns:
            accuracy = accuracy if facts["n_greedy_known"] else None
            encode = byte_encoder([*text, *columns["top_tokens"].reshape(-1).tolist()])
            predicted = page.predictions_of_responses(columns, columns["top_tokens"], encode, classes)
            tokens = page.Tokens(text, encode, page.known_ids(ids), places)
        elif bytes_of is not None:
            pieces = cut_pieces(bytes_of(ids), columns["n_bytes"])
            pieces = [b"" if i < 0 else piece for i, piece in zip(ids.tolist(), pieces, strict=True)]  # of padding
            text = [None if piece is None else piece.decode("utf-8", "surrogateescape") for piece in pieces]
            tokens = page.Tokens(text, lambda text: text.encode("utf-8", "surrogateescape"), ids.tolist(), places)
            predicted = _predictions(
                columns, len(ids), classes, lambda ids: text_of_pieces(bytes_of(np.array(ids))).tolist()
            )
        else:
            tokens = page.Tokens(text, byte_encoder(text), ids.tolist(), places)
            predicted = _predictions(columns, len(ids), classes, page.class_names(None, ids, text))
        known = known_of(facts.get("n_greedy_known", facts["count"]), facts["count"])
        head = _summary(result.meter, accuracy, known) + page.tables(group_tables(facts))
        head += reliability_panel({"": result.calibration})
        files = title([Path(file).name for file in facts["files"]])
        name = page.heading("loss", result.meter.count, "token", files)
        count = self._tokens.count
        _write(self.path, name, head, columns, tokens, classes, predicted, count, self.made_by, facts["files"])


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
    most likely alternatives. Buttons and keys lead to the worst tokens, to a sequence, and to text that is searched
    for. The page is a single file and needs no network.

    Parameters
    ----------
    path : path-like
        File to write. An existing file is replaced when the new one is complete.
    scores : TokenScores
        Result of `token_scores`, for positions of any shape: each row of the last axis is a paragraph. Its ``top_k`` is
        the number of alternatives that are listed.
    targets : array of integers
        Class ids that were scored, in the shape of `scores`.
    tokens : array of str, optional
        Text of the tokens, in the shape of `scores`; None if unknown. The marks of byte-level BPE (``Ġ`` for a
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
        If an argument is invalid. Nothing is written then.
    OSError
        If the file cannot be written; an existing file is unchanged.

    Notes
    -----
    A page holds the first 300,000 tokens (``MOST_TOKENS``), and says so when there are more; its summary is of all.
    A link to it may end in ``#token-8`` or ``#sequence-3``. Without JavaScript, it shows only the numbers and the text.
    The colors begin at 0, 0.1, 0.5, 1, 2, 3, 4, 6, 8 and 10 nats on every page.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from tokenloss import token_scores
    >>> from tokenloss.page import write_page
    >>> scores = token_scores([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], [0, 1], top_k=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "page.html")
    ...     write_page(path, scores, [0, 1], vocabulary=["to", " be", " not"])
    ...     "<p>to be</p>" in path.read_text("utf-8")
    True
    """
    shape = scores.nll.shape
    ids = as_target_array("targets", targets, (), shape, "scores", False)[0].reshape(-1)[: page.MOST_TOKENS]
    shown = page.tokens_of(ids, tokens, vocabulary, shape)
    if meter is None:
        meter, accuracy = LossMeter(), scores.accuracy
        meter.update(scores.nll, where=scores.kept)
    classes, head = page.Classes(), _summary(meter, accuracy)
    columns = vars(scores)
    predicted = _predictions(columns, len(ids), classes, page.class_names(vocabulary, ids, shown.text))
    total = max(math.prod(shape), meter.count)
    _write(path, title, head, columns, shown, classes, predicted, total, "tokenloss.page.write_page")


def _write(
    path: str | os.PathLike[str], title: str, head: str, columns: Mapping[str, Any], tokens: page.Tokens,
    classes: page.Classes, predicted: dict[str, str], total: int, made_by: str, files: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write a page of the first of `total` tokens, with their predictions as JSON."""
    size = len(tokens.ids)
    nll, kept = (columns[name].reshape(-1)[:size] for name in ("nll", "kept"))
    css_class = page.css_classes(nll, kept, _LOSSES)
    probabilities = [page.percent(math.exp(-loss)) for loss in (0.0, *_LOSSES)]
    shades = page.legend(css_class, "nll from", _LOSSES, "probability to", probabilities, "infinite nll")
    looks = {"nll": page.numbers(nll), "shades": page.shade_letters(css_class), "worst": page.worst(nll, kept)}
    data = {"models": f"[{page.as_object(looks | predicted)}]"}
    head = f"{head}\n{shades}{page.excerpt_note(size, total)}"
    page.write(path, title, head, tokens, classes, data, made_by, files)


def _predictions(columns: Mapping[str, Any], size: int, classes: page.Classes, names: _Names) -> dict[str, str]:
    """The predictions for the first tokens as JSON, in columns."""
    entropy = page.numbers(columns["entropy"].reshape(-1)[:size], 5)
    return {"entropy": entropy, **page.predictions(columns, size, classes, names)}


def _summary(meter: LossMeter, accuracy: float | None, note: str = "") -> str:
    """HTML of the summary, with a note about the accuracy."""
    values = {"basis": basis_of(meter), "accuracy": accuracy, "greedy_note": note}
    return page.summary(_ROWS, values, meter)
