"""The outputs of `compare_texts`: tables with a row for each span or document, and a page of the text in its spans."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.text_comparison import texts_of_tokens
from tokenloss._core.rows import Row
from tokenloss._evaluation.sink import Sink
from tokenloss._output import page
from tokenloss._output.table_files import _TableFile

if TYPE_CHECKING:
    from tokenloss._comparison.text_comparison import TextComparison

_DIFFERENCES = (-10.0, -3.0, -1.0, -0.3, -0.1, 0.1, 0.3, 1.0, 3.0, 10.0)  # nats at which each next colour begins
_SPANS = 1 << 16  # that are written at a time
_COLUMNS = [
    *((name, "<i8") for name in ("document", "start", "stop")),
    ("kind", "O"), ("script", "O"), ("text", "O"), ("kept", "?"),
    *((name, "<i8") for name in ("n_tokens_a", "n_tokens_b")),
    *((name, "<f8") for name in ("nll_a", "nll_b", "difference")),
]  # fmt: skip
_ROWS = (
    Row("bytes", "n_bytes", "{:,}", ("in {n_spans:,} spans",)),
    Row("bits per byte of {a}", "bits_per_byte_a", "{:.4g}", ("{tokens_per_byte_a:.3g} tokens per byte",)),
    Row("bits per byte of {b}", "bits_per_byte_b", "{:.4g}", ("{tokens_per_byte_b:.3g} tokens per byte",)),
    Row("difference", "difference", "{:+.4g}", ("95 % interval {low:+.3g} to {high:+.3g} (by {basis})",)),
)


class SpanTable(_TableFile):
    r"""A file with a row for each span, as ``tokenloss compare --text --per-token`` writes it.

    Its columns are those of `TextComparison.columns`; .npy has no `text`. It is a .npy file of a structured array, a
    .csv or a .parquet file; of spans that are left out, losses are nan in .npy, null in .parquet and empty in .csv.

    Parameters
    ----------
    path
        As in `TokenTable`.

    Raises
    ------
    ValueError, ImportError
        As in `TokenTable`.

    See Also
    --------
    tokenloss.compare_texts : Takes it.

    Examples
    --------
    >>> import base64, pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import compare_texts, sinks
    >>> from tokenloss.formats import open_scores
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     text, ranks, a = (pathlib.Path(directory, name) for name in ("t.txt", "t.tiktoken", "a.npz"))
    ...     _ = text.write_text("abab"), ranks.write_text(f"{base64.b64encode(b'ab').decode()} 0\n")
    ...     np.savez(a, logits=np.zeros((2, 1)), targets=[0, 0])
    ...     table = sinks.SpanTable()
    ...     scores = open_scores(a, tokenizer=ranks)
    ...     _ = compare_texts(scores, scores, text=text, sinks=[table])
    >>> table.columns()["stop"]
    array([2, 4])
    """

    __module__ = "tokenloss.sinks"

    option = "--per-token"
    _function = "compare_texts"
    help = "write a row for each span to a .npy, .csv or .parquet file"

    def finish(self, summary: dict[str, Any], result: TextComparison) -> None:
        is_npy = self._suffix == ".npy"
        # .npy files need a length: 17 letters, as the longest script has, Katakana-hiragana
        form = np.dtype([(name, "<U17" if name in ("kind", "script") and is_npy else kind) for name, kind in _COLUMNS
                         if name != "text" or not is_npy])  # fmt: skip
        size = len(result._kind)
        with self._writer(form, size) as write:
            for first in range(0, size, _SPANS):
                columns = result._columns(first, first + _SPANS)
                table = np.zeros(len(columns["start"]), form)
                for name in form.names or ():
                    table[name] = columns[name]
                write(table)


class DocumentTable(_TableFile):
    r"""A file with a row for each document, as ``tokenloss compare --text --per-sequence`` writes it.

    Its columns are those of `TextComparison.documents`. It is a .npy file of a structured array, a .csv or a .parquet
    file.

    Parameters
    ----------
    path
        As in `TokenTable`.

    Raises
    ------
    ValueError, ImportError
        As in `TokenTable`.

    See Also
    --------
    tokenloss.compare_texts : Takes it.

    Examples
    --------
    >>> import base64, pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import compare_texts, sinks
    >>> from tokenloss.formats import open_scores
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     text, ranks, a = (pathlib.Path(directory, name) for name in ("t.txt", "t.tiktoken", "a.npz"))
    ...     _ = text.write_text("ab\nab"), ranks.write_text(f"{base64.b64encode(b'ab').decode()} 0\n")
    ...     np.savez(a, logits=np.zeros((2, 1)), targets=[0, 0], segment_ids=[0, 1])
    ...     table = sinks.DocumentTable()
    ...     scores = open_scores(a, tokenizer=ranks)
    ...     _ = compare_texts(scores, scores, text=text, sinks=[table])
    >>> table.columns()["n_bytes"]
    array([2, 2])
    """

    __module__ = "tokenloss.sinks"

    option = "--per-sequence"
    _function = "compare_texts"
    help = "write a row for each document to a .npy, .csv or .parquet file"

    def finish(self, summary: dict[str, Any], result: TextComparison) -> None:
        columns = result.documents
        form = np.dtype([(name, column.dtype.newbyteorder("<")) for name, column in columns.items()])
        table = np.zeros(len(columns["document"]), form)
        for name, column in columns.items():
            table[name] = column
        with self._writer(form, len(table)) as write:
            write(table)


class SpanPage(Sink):
    r"""A page of HTML of a text, each span shaded by the difference of two models' losses, with the tokens of both.

    This is ``tokenloss compare --text --html``. It holds the first 300,000 spans. Where b lost more than a, spans are
    red, and where it lost less, blue; the colours begin at a difference of 0.1, 0.3, 1, 3 and 10 nats.

    Parameters
    ----------
    path : path-like
        File to write. An existing file is replaced when the new one is complete.

    See Also
    --------
    tokenloss.compare_texts : Takes it.

    Examples
    --------
    >>> import base64, pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import compare_texts, sinks
    >>> from tokenloss.formats import open_scores
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     text, ranks, a, path = (pathlib.Path(directory, name) for name in ("t.txt", "t.ranks", "a.npz", "p.html"))
    ...     _ = text.write_text("abab"), ranks.write_text(f"{base64.b64encode(b'ab').decode()} 0\n")
    ...     np.savez(a, logits=np.zeros((2, 1)), targets=[0, 0])
    ...     scores = open_scores(a, tokenizer=ranks)
    ...     _ = compare_texts(scores, scores, text=text, sinks=[sinks.SpanPage(path)])
    ...     "<p>abab</p>" in path.read_text("utf-8")
    True
    """

    __module__ = "tokenloss.sinks"

    option = "--html"
    _function = "compare_texts"
    help = "write a page that shows the text, each span shaded by the difference of both models' losses"
    _made_by = "tokenloss.compare_texts"

    def finish(self, summary: dict[str, Any], result: TextComparison) -> None:
        size, classes = min(len(result._kind), page.MOST_TOKENS), page.Classes()
        columns, kept = result._columns(0, size), result._spans.kept
        with np.errstate(invalid="ignore"):
            difference = result._spans.nll[1] - result._spans.nll[0]
        looks = page.css_classes(difference, kept, _DIFFERENCES, are_signed=True)
        sides = (_side(result, side, size, classes) for side in (0, 1))
        model = {
            "sides": f"[{','.join(sides)}]",
            "difference": page.numbers(difference[:size]),
            "shades": page.shade_letters(looks[:size]),
            "worst": page.worst(np.abs(difference[:size]), kept[:size]),
        }
        title = page.heading("difference", result.n_spans, "span", f"{result.name_b} vs {result.name_a}")
        n_bytes = np.bincount(
            np.searchsorted(_DIFFERENCES, difference[kept], "right"), result._spans.n_bytes[kept], len(_DIFFERENCES) + 1
        )
        notes = [page.percent(part) for part in (n_bytes / max(result.n_bytes, 1)).tolist()]
        legend = page.legend(looks, "difference in nats from", _DIFFERENCES, "of the bytes", notes, "infinite")
        a, b = (page.escaped(name) for name in (result.name_a, result.name_b))
        colours = f"<p>blue: {b} needs fewer bits; red: it needs more</p>"
        figures = page.summary(_ROWS, {"a": a, "b": b, "basis": result._basis()}, result)
        head = f"{figures}\n{legend}{colours}{page.excerpt_note(size, kept.size, noun='spans')}"
        places = {"sequence": columns["document"], "byte": columns["start"]}
        tokens = page.Tokens(columns["text"].tolist(), str.encode, [None] * size, page.known_places(places))
        data = {"models": f"[{page.as_object(model)}]"}
        page.write(self.path, title, head, tokens, classes, data, self._made_by, nouns=("span", "document"))


def _side(result: TextComparison, side: int, size: int, classes: page.Classes) -> str:
    """JSON of one model's tokens in the first spans: their text and losses, and those of the spans."""
    first = result._spans.first[side][: size + 1]
    tokens = result._spans.tokens[side].at(slice(0, int(first[-1])))
    texts = texts_of_tokens(tokens.start, tokens.stop, result._bytes)
    return page.as_object({
        "name": page.as_json((result.name_a, result.name_b)[side]),
        "nll": page.numbers(result._spans.nll[side][:size]),
        "first": page.as_json(first.tolist()),
        "token": page.as_json(classes.numbers([None] * len(texts), texts)),
        "token_nll": page.numbers(np.where(tokens.is_scored, tokens.nll, math.nan)),
    })  # fmt: skip
