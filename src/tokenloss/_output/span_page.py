"""The page of HTML that shows a text in the spans that the tokens of two models share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokenloss._comparison.text_comparison import errors_by, tokens_of_spans
from tokenloss._core.rows import Row
from tokenloss._evaluation.sink import Sink
from tokenloss._output import page
from tokenloss._output.shared import Collected

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from tokenloss._comparison.text_comparison import TextComparison
    from tokenloss._core.types import Columns
    from tokenloss._evaluation.sink import Block, Needs, Schema

_DIFFERENCES = (-10.0, -3.0, -1.0, -0.3, -0.1, 0.1, 0.3, 1.0, 3.0, 10.0)  # nats at which each next color begins
_ROWS = (
    Row("bytes", "n_bytes", "{:,}", ("in {n_spans:,} spans",)),
    Row("bits per byte of {a}", "bits_per_byte_a", "{:.4g}", ("{tokens_per_byte_a:.3g} tokens per byte",)),
    Row("bits per byte of {b}", "bits_per_byte_b", "{:.4g}", ("{tokens_per_byte_b:.3g} tokens per byte",)),
    Row("difference", "difference", "{:+.4g}", ("95 % interval {low:+.3g} to {high:+.3g} (by {basis})",)),
    Row("detectable difference", "detectable", "{known:.2g}", ("with a probability of 80 %",)),
)
_OF_SPANS = ("document", "start", "stop", "kept", "nll_a", "nll_b", "difference")


class SpanPage(Sink):
    r"""A page of HTML of a text, each span shaded by the difference of two models' losses, with the tokens of both.

    This is ``tokenloss compare --text --html``. It holds the first 300,000 spans. Where b lost more than a, spans are
    red, and where it lost less, blue; the colors begin at a difference of 0.1, 0.3, 1, 3 and 10 nats.

    Parameters
    ----------
    path
        As in `HtmlPage`.

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
    help = "write a page that shows the text, each span shaded by the difference of both models' losses"
    rows = "tokens"
    needs: Needs = ({"start", "stop", "difference"},)
    made_by = "tokenloss.compare_texts"

    def open(self, schema: Schema) -> AbstractContextManager[object]:
        self._spans = Collected(one for one in schema.tokens if one.name in _OF_SPANS)
        self._text = Collected((one for one in schema.tokens if one.name == "text"), page.MOST_TOKENS)
        return super().open(schema)

    def write(self, block: Block) -> None:
        self._spans.add(block.columns)
        self._text.add(block.columns)

    def finish(self, result: TextComparison) -> None:
        columns, text, classes = self._spans.joined(), self._text.joined()["text"].tolist(), page.Classes()
        size, kept, difference = len(text), columns["kept"], columns["difference"]
        looks = page.css_classes(difference, kept, _DIFFERENCES, are_signed=True)
        sides = (_side(result, side, columns, size, classes) for side in (0, 1))
        model = {
            "sides": f"[{','.join(sides)}]",
            "difference": page.numbers(difference[:size]),
            "shades": page.shade_letters(looks[:size]),
            "worst": page.worst(np.abs(difference[:size]), kept[:size]),
        }
        title = page.heading("difference", result.n_spans, "span", f"{result.name_b} vs {result.name_a}")
        n_bytes = np.bincount(
            np.searchsorted(_DIFFERENCES, difference[kept], "right"),
            (columns["stop"] - columns["start"])[kept],
            len(_DIFFERENCES) + 1,
        )
        notes = [page.percent(part) for part in (n_bytes / max(result.n_bytes, 1)).tolist()]
        legend = page.legend(looks, "difference in nats from", _DIFFERENCES, "of the bytes", notes, "infinite")
        a, b = (page.escaped(name) for name in (result.name_a, result.name_b))
        colors = f"<p>blue: {b} needs fewer bits; red: it needs more</p>"
        metrics = page.summary(_ROWS, {"a": a, "b": b, "basis": errors_by(result)}, result)
        head = f"{metrics}\n{legend}{colors}{page.excerpt_note(size, kept.size, noun='spans')}"
        places = {"sequence": columns["document"][:size], "byte": columns["start"][:size]}
        tokens = page.Tokens(text, str.encode, [None] * size, page.known_places(places))
        data = {"models": f"[{page.as_object(model)}]"}
        page.write(self.path, title, head, tokens, classes, data, self.made_by, nouns=("span", "document"))


def _side(result: TextComparison, side: int, columns: Columns, size: int, classes: page.Classes) -> str:
    """JSON of one model's tokens in the first spans: the losses of the spans, and the text and losses of the tokens."""
    first, texts, losses = tokens_of_spans(result, side, size)
    return page.as_object({
        "name": page.as_json((result.name_a, result.name_b)[side]),
        "nll": page.numbers(columns[("nll_a", "nll_b")[side]][:size]),
        "first": page.as_json(first.tolist()),
        "token": page.as_json(classes.numbers([None] * len(texts), texts)),
        "token_nll": page.numbers(losses),
    })  # fmt: skip
