"""A page of HTML that shows a text, each token shaded by its loss."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import math
import unicodedata
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from tokenloss._errors import raise_error
from tokenloss._files import replacing
from tokenloss._token_text import byte_encoder, decoded
from tokenloss._validation import as_target_array
from tokenloss.meter import LossMeter

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from tokenloss._types import Array, ArrayLike
    from tokenloss.scores import TokenScores

MOST_TOKENS = 100_000  # that a page holds: about 10 MB, which a browser opens within two seconds

# Losses in nats at which the next colour of page.css begins, and the CSS classes of the colours.
_SHADES = (0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
_CLASSES = (*(f"s{shade}" for shade in range(len(_SHADES) + 1)), "inf", "nan", "ignored")
_INF, _NAN, _IGNORED = range(len(_SHADES) + 1, len(_CLASSES))

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<h1>{title}</h1>
{summary}
{legend}
{extent}<p class="hint">Point at a token, tap it, or use Tab and the arrow keys, to see what was predicted there.</p>
<main id="text">
{text}
</main>
<aside id="card" role="status" hidden></aside>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


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
    ids = as_target_array("targets", targets, (), shape, "scores", False)[0].reshape(-1)[:MOST_TOKENS]
    if tokens is None:
        given = None
        text = [_token_text(vocabulary, i) for i in ids.tolist()]
    else:
        given = text = _as_strings(tokens, shape)
    if meter is None:
        meter, accuracy = LossMeter(), scores.accuracy
        meter.update(scores.nll, where=scores.kept)
    length = (shape[-1] if shape else 1) or 1
    bounds = [*range(0, len(ids), length), len(ids)]
    total = max(math.prod(shape), meter.count)
    _write(
        path, scores, ids, text, bounds, title, _summary(meter, accuracy), total, _data(scores, ids, given, vocabulary)
    )


def _write_responses(
    path: str | os.PathLike[str], columns: dict[str, Array], scores: TokenScores, title: str, meter: LossMeter,
    accuracy: float, known: int, total: int,
) -> None:  # fmt: skip
    """As `write_page`, of responses of servers, each a paragraph.

    Columns are the ids, text, sequences and positions of tokens, and the text of their alternatives; whether a token is
    greedy is known of so many, and the page may hold the first of a total.
    """
    ids, bounds = columns["ids"], np.append(np.flatnonzero(columns["positions"] == 0), len(columns["ids"])).tolist()
    text = ["\N{REPLACEMENT CHARACTER}" if i < 0 and word is None else word
            for i, word in zip(ids.tolist(), columns["text"].tolist(), strict=True)]  # fmt: skip
    assert scores.top_ids is not None
    assert scores.top_logprobs is not None
    top_ids, top_logprobs = scores.top_ids, scores.top_logprobs
    note = f"of {known:,} tokens where it is known" if known < meter.count else ""
    summary = _summary(meter, accuracy if known else None, note)
    data = {
        "k": str(top_ids.shape[-1]),
        "id": _known(ids, -1),
        "rank": _known(scores.rank, 0),
        "loss": _numbers(scores.nll),
        "top": _known(top_ids, -1),
        "logprob": _numbers(top_logprobs.reshape(-1)),
        "token": _json(columns["text"].tolist()),
        "named": _json(columns["top_tokens"].reshape(-1).tolist()),
        "sequence": _json(columns["sequences"].tolist()),
        "position": _json(columns["positions"].tolist()),
    }
    _write(path, scores, ids, text, bounds, title, summary, total, _as_object(data))


def _write(
    path: str | os.PathLike[str], scores: TokenScores, ids: Array, text: list[str | None], bounds: list[int],
    title: str, summary: str, total: int, data: str,
) -> None:  # fmt: skip
    """Write a page of tokens, whose paragraphs have these bounds."""
    css_class = _css_classes(scores)
    style, script = (resources.files("tokenloss").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    page = _PAGE.format(
        script_hash=base64.urlsafe_b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=html.escape(title.translate(_CONTROL_PICTURES)),
        style=style,
        summary=summary,
        legend=_legend(css_class),
        extent=_excerpt_note(len(ids), total),
        text="\n".join(_paragraphs(ids, text, css_class, bounds)),
        data=data,
        script=script,
    )
    with replacing(path) as file:
        file.write(page.encode("utf-8", "replace"))


def _as_strings(tokens: Sequence[str | None] | Array, shape: tuple[int, ...]) -> list[str | None]:
    """Checked text of the tokens."""
    array = np.asarray(tokens)
    if array.shape != shape:
        raise_error("shape", name="tokens", got=array.shape, fits=f"{shape}, to fit scores")
    if array.dtype.kind not in "UTO":
        raise_error("dtype", name="tokens", got=array.dtype, fits="text")
    return [None if token is None else str(token) for token in array.reshape(-1)[:MOST_TOKENS].tolist()]


def _token_text(vocabulary: Sequence[str] | None, i: int) -> str | None:
    """Text of a class id, if it is known."""
    return str(vocabulary[i]) if vocabulary is not None and 0 <= i < len(vocabulary) else None


# -- text -------------------------------------------------------------------------------------------------------------

# Control characters become pictures, since browsers show nothing for them; those that reverse text become U+FFFD.
_BIDI_MARKS = dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421} | _BIDI_MARKS


def _paragraphs(ids: Array, text: list[str | None], css_class: Array, bounds: list[int]) -> Iterator[str]:
    """HTML of the tokens, in paragraphs of these bounds."""
    encode = byte_encoder(text)
    for part in itertools.starmap(slice, itertools.pairwise(bounds)):
        spans = map(_span, ids[part].tolist(), decoded(text[part], encode), css_class[part].tolist())
        yield f"<p>{''.join(spans)}</p>"


def _span(i: int, text: str | None, css_class: int) -> str:
    """HTML of a token."""
    name = _CLASSES[css_class]
    if text is None:
        return f'<i class="{name} id">{i}</i> '
    text = text.translate(_CONTROL_PICTURES)
    if "\n" in text and text.isspace():
        return f'<i class="{name} br">{text}</i>'
    if all(unicodedata.category(c) in ("Cf", "Me", "Mn") for c in text):
        return f'<i class="{name} thin">{text}</i>'
    return f"<i class={name}>{html.escape(text)}</i>"


# -- data of the tokens -----------------------------------------------------------------------------------------------


def _css_classes(scores: TokenScores) -> Array:
    """Index of each token's CSS class."""
    nll = scores.nll.reshape(-1)
    css_class = np.searchsorted(_SHADES, nll, side="right")
    css_class[np.isinf(nll)] = _INF
    css_class[np.isnan(nll)] = _NAN
    css_class[~scores.kept.reshape(-1)] = _IGNORED
    return css_class


def _data(scores: TokenScores, ids: Array, tokens: list[str | None] | None, vocabulary: Sequence[str] | None) -> str:
    """JSON of everything that the script shows, in columns."""
    size = len(ids)
    if scores.top_ids is not None and scores.top_logprobs is not None:
        k = scores.top_ids.shape[-1]
        top, logprobs = scores.top_ids.reshape(-1)[: size * k], scores.top_logprobs.reshape(-1)[: size * k]
    else:
        k, top = 1, scores.argmax.reshape(-1)[:size]
        logprobs = np.full(size, np.nan)
    if vocabulary is None:
        known = {str(i): token for i, token in zip(ids.tolist(), tokens or (), strict=False) if token is not None}
    else:
        named = np.unique(np.concatenate([ids, top])).tolist()
        known = {str(i): token for i in named if (token := _token_text(vocabulary, i)) is not None}
    columns = {
        "k": str(k),
        "id": _json(ids.tolist()),
        "rank": _json(scores.rank.reshape(-1)[:size].tolist()),
        "loss": _numbers(scores.nll.reshape(-1)[:size]),
        "entropy": _numbers(scores.entropy.reshape(-1)[:size]),
        "top": _json(top.tolist()),
        "logprob": _numbers(logprobs),
        "text": _json(known),
        "token": _json(tokens),
    }
    return _as_object(columns)


def _as_object(columns: dict[str, str]) -> str:
    """JSON object of columns that are JSON."""
    return "{" + ",".join(f'"{name}":{column}' for name, column in columns.items()) + "}"


def _known(numbers: Array, unknown: int) -> str:
    """JSON of integers, null where they are not known."""
    return _json([None if number == unknown else number for number in numbers.reshape(-1).tolist()])


def _json(value: object) -> str:
    """JSON in which nothing can end or comment out the script that holds it, or turn its text around."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c").translate(_BIDI_MARKS)


def _numbers(values: Array) -> str:
    """JSON of numbers to six digits; infinities as numbers that are too large, nan as null."""
    return f"[{','.join([f'{x:.6g}' for x in values.tolist()])}]".replace("inf", "1e999").replace("nan", "null")


# -- the head of the page ---------------------------------------------------------------------------------------------


def _summary(meter: LossMeter, accuracy: float | None, note: str = "") -> str:
    """HTML of the summary; the note is about the accuracy."""
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
    cells = (f"<div><dt>{name}</dt><dd>{value} <small>{note}</small></dd></div>" for name, value, note in figures)
    return f'<dl class="summary">{"".join(cells)}</dl>'


def _legend(css_class: Array) -> str:
    """HTML of the legend; classes of special values only if they occur."""
    cells = [
        f"<span class=s{shade}>{loss:g}<br>{_percent(math.exp(-loss))}</span>"
        for shade, loss in enumerate((0.0, *_SHADES))
    ]
    rows = [f"<div><b>loss from<br>probability to</b>{''.join(cells)}</div>"]
    for index, name in (_INF, "infinite loss"), (_NAN, "no number"), (_IGNORED, "ignored"):
        count = int(np.count_nonzero(css_class == index))
        if count:
            rows.append(f"<div><span class={_CLASSES[index]}>{name}<br>{count:,}</span></div>")
    return f'<div class="legend">{"".join(rows)}</div>'


def _percent(fraction: float) -> str:
    """Percentage with two digits."""
    return f"{100 * fraction:.2g} %" if fraction < 0.995 else "100 %"


def _excerpt_note(shown: int, total: int) -> str:
    """HTML of a note if not all tokens are shown."""
    if shown == total:
        return ""
    return f'<p class="part">This page holds the first {shown:,} of {total:,} tokens; the figures are of all.</p>\n'
