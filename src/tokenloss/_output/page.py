"""What all pages share: their frame, their text in shades, and the JSON that their script reads."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import unicodedata
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from tokenloss._core.errors import raise_error
from tokenloss._core.files import replacing
from tokenloss._core.text import byte_encoder, decoded

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tokenloss._core.types import Array

MOST_TOKENS = 100_000  # on a page: about 10 MB, which a browser opens within two seconds
_N_SHADES = 10  # colours for losses in page.css
# The CSS classes that tokens have, by number; page.js has this list, too, and page.css the colour of each.
_CLASSES = (*(f"s{shade}" for shade in range(_N_SHADES)), "inf", "nan", "ignored")
_INF, _NAN, _IGNORED = range(_N_SHADES, len(_CLASSES))
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
{head}
<p class="hint">Point at a token, tap it, or use Tab and the arrow keys, to see what was predicted there.</p>
<main id="text">
{text}
</main>
<aside id="card" role="status" hidden></aside>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def write_frame(
    path: str | os.PathLike[str], title: str, head: str, paragraphs: Iterable[str], data: dict[str, str]
) -> None:
    """Write a page of these parts."""
    style, script = (
        resources.files("tokenloss._output").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js")
    )
    page = _PAGE.format(
        script_hash=base64.urlsafe_b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=escaped(title),
        style=style,
        head=head,
        text="\n".join(paragraphs),
        data=as_object(data),
        script=script,
    )
    with replacing(path) as file:
        file.write(page.encode("utf-8", "replace"))


# -- text --------------------------------------------------------------------------------------------------------------


# Browsers show nothing for control characters, so they become pictures; those that reverse text become U+FFFD.
_BIDI_MARKS = dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421} | _BIDI_MARKS


def escaped(text: str) -> str:
    """HTML of text."""
    return html.escape(text.translate(_CONTROL_PICTURES))


def as_strings(tokens: Sequence[str | None] | Array, shape: tuple[int, ...]) -> list[str | None]:
    """The text of the first tokens, checked."""
    array = np.asarray(tokens)
    if array.shape != shape:
        raise_error("shape", name="tokens", got=array.shape, fits=f"{shape}, to fit scores")
    if array.dtype.kind not in "UTO":
        raise_error("dtype", name="tokens", got=array.dtype, fits="text")
    return [None if token is None else str(token) for token in array.reshape(-1)[:MOST_TOKENS].tolist()]


def token_text(vocabulary: Sequence[str] | None, i: int) -> str | None:
    """Text of a class id, if it is known."""
    return str(vocabulary[i]) if vocabulary is not None and 0 <= i < len(vocabulary) else None


def row_bounds(shape: tuple[int, ...], size: int) -> list[int]:
    """Bounds of the paragraphs of the first `size` tokens: each row of the last axis is a paragraph."""
    return [*range(0, size, (shape[-1] if shape else 1) or 1), size]


def paragraphs(ids: Array, text: list[str | None], css_class: Array, bounds: list[int]) -> Iterator[str]:
    """HTML of the tokens, in paragraphs with these bounds."""
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


# -- shades ------------------------------------------------------------------------------------------------------------


def css_classes(nats: Array, kept: Array, shades: Sequence[float]) -> Array:
    """Index of each token's CSS class, given the nats at which each next colour begins."""
    nats = nats.reshape(-1)
    css_class = np.searchsorted(shades, nats, side="right")
    css_class[np.isinf(nats)] = _INF
    css_class[np.isnan(nats)] = _NAN
    css_class[~kept.reshape(-1)] = _IGNORED
    return css_class


def legend(css_class: Array, what: str, shades: Sequence[float], notes: Iterable[str], infinite: str) -> str:
    """HTML of the legend, with a note below each shade; special values are listed only if they occur."""
    starts = zip((0.0, *shades), notes, strict=True)
    cells = [f"<span class=s{shade}>{start:g}<br>{note}</span>" for shade, (start, note) in enumerate(starts)]
    rows = [f"<div><b>{what}</b>{''.join(cells)}</div>"]
    for index, name in (_INF, infinite), (_NAN, "no number"), (_IGNORED, "ignored"):
        count = int(np.count_nonzero(css_class == index))
        if count:
            rows.append(f"<div><span class={_CLASSES[index]}>{name}<br>{count:,}</span></div>")
    return f'<div class="legend">{"".join(rows)}</div>'


def percent(fraction: float) -> str:
    """A fraction in percent, with two digits."""
    return f"{100 * fraction:.2g} %" if fraction < 0.995 else "100 %"


def summary(figures: Iterable[tuple[str, str, str]]) -> str:
    """HTML of figures: their names, values and notes."""
    cells = (f"<div><dt>{name}</dt><dd>{value} <small>{note}</small></dd></div>" for name, value, note in figures)
    return f'<dl class="summary">{"".join(cells)}</dl>'


def excerpt_note(shown: int, total: int, why: str = "") -> str:
    """HTML of a note that the page holds only the first tokens; empty if it holds all."""
    if shown == total:
        return ""
    note = f"This page holds the first {shown:,} of {total:,} tokens{why}; the figures are of all."
    return f'\n<p class="part">{note}</p>'


# -- data --------------------------------------------------------------------------------------------------------------


def as_object(columns: dict[str, str]) -> str:
    """JSON object of columns that are JSON already."""
    return "{" + ",".join(f'"{name}":{column}' for name, column in columns.items()) + "}"


def as_json(value: object) -> str:
    """JSON that can neither end nor comment out the script that holds it, nor reverse its text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c").translate(_BIDI_MARKS)


def numbers(values: Array) -> str:
    """JSON of numbers with six digits; infinities become 1e999, which overflows, and nan becomes null."""
    return f"[{','.join([f'{x:.6g}' for x in values.tolist()])}]".replace("inf", "1e999").replace("nan", "null")


def shade_letters(css_class: Array) -> str:
    """JSON text with a digit or letter for the CSS class of each token."""
    return f'"{"".join(["0123456789abc"[index] for index in css_class.tolist()])}"'


def alternatives(scores: Mapping[str, Array | None], size: int) -> tuple[Array, dict[str, str]]:
    """The most likely classes of the first tokens; and JSON of them, their log-probabilities and the targets' ranks."""
    top, logprobs = scores.get("top_ids"), scores.get("top_logprobs")
    argmax, rank = scores["argmax"], scores["rank"]
    assert argmax is not None
    assert rank is not None
    if top is not None and logprobs is not None:
        k = top.shape[-1]
        top, logprobs = top.reshape(-1)[: size * k], logprobs.reshape(-1)[: size * k]
    else:
        k, top, logprobs = 1, argmax.reshape(-1)[:size], np.full(size, np.nan)
    columns = {"k": str(k), "rank": as_json(rank.reshape(-1)[:size].tolist())}
    return top, columns | {"top": as_json(top.tolist()), "logprob": numbers(logprobs)}


def class_text(
    ids: Array, tokens: list[str | None] | None, vocabulary: Sequence[str] | None, tops: list[Array]
) -> dict[str, str]:
    """Text of each class id that the page names, if it is known."""
    if vocabulary is None:
        return {str(i): token for i, token in zip(ids.tolist(), tokens or (), strict=False) if token is not None}
    named = np.unique(np.concatenate([ids, *tops])).tolist()
    return {str(i): token for i in named if (token := token_text(vocabulary, i)) is not None}
