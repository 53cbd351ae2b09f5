"""The parts that all pages share: their frame, their text in paragraphs, and the JSON that their script reads.

A page contains its text as plain paragraphs, so that browsers lay it out, search it and print it themselves. What is
known about each token is in columns of JSON, compressed, with the length of its text; `page.js` cuts the paragraphs
near the window into tokens, and colors them.
"""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import math
import zlib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from tokenloss._core.errors import raise_error
from tokenloss._core.files import replacing
from tokenloss._core.result import Shown, table_in_html
from tokenloss._core.result import escaped as printable_tables
from tokenloss._core.rows import table
from tokenloss._core.text import count_of
from tokenloss._core.version import __version__
from tokenloss._statistics.sequences import highest
from tokenloss.formats.tokenizers.token_text import byte_encoder, decoded

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tokenloss._core.result import Table
    from tokenloss._core.rows import Row
    from tokenloss._core.types import Array

MOST_TOKENS = 300_000  # on a page: about 11 MB with five alternatives for each
PLACES = ("file", "row", "sequence", "position")  # columns that show where a token is
_N_WORST = 1000  # tokens that the button for the worst token goes through
_N_SHADES = 10  # colors of tokens in page.css
# What a token can look like, by number; page.js has this list, too, and page.css the color of each.
_CLASSES = (*(f"s{shade}" for shade in range(_N_SHADES)), "inf", "nan", "ignored", "c1", "c2", "c3", "c4", "c5")
_INF, _NAN, _IGNORED, *_COLD = range(_N_SHADES, len(_CLASSES))
_SIGNED = (*_COLD[::-1], 0, 1, 3, 5, 7, 9)  # looks of differences, from the least one
_MOST_IN_PARAGRAPH = 2000  # tokens: a longer paragraph is broken, since browsers lay out paragraphs as a whole
_TOKENS_OF_PART = 1000  # paragraphs are colored in parts of at least this number of tokens
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
<header>
<h1>{title}</h1>
{head}
</header>
<noscript><p class="part">Without JavaScript, this page shows the numbers and the text, but not the colors of the
{token}s and what was predicted.</p></noscript>
<form id="tools" role="search" aria-label="Find {token}s" hidden>
<div id="worst" role="group" aria-label="Worst {token}s"><span>Worst {token}s</span>
<button type="button" aria-label="Previous worst {token}" aria-keyshortcuts="Shift+W">&lsaquo;</button>
<output></output>
<button type="button" aria-label="Next worst {token}" aria-keyshortcuts="W">&rsaquo;</button></div>
<div id="sequences" role="group" aria-label="{Sequence}" hidden><label>{Sequence}
<input id="sequence" inputmode="numeric" size="6" autocomplete="off" aria-keyshortcuts="S"></label>
<output></output></div>
<div id="search" role="group" aria-label="Search"><label>Search
<input id="query" type="search" size="16" autocomplete="off" aria-keyshortcuts="/"></label>
<button type="button" aria-label="Previous match" aria-keyshortcuts="Shift+N">&lsaquo;</button>
<output></output>
<button type="button" aria-label="Next match" aria-keyshortcuts="N">&rsaquo;</button></div>
</form>
<main id="text" aria-label="Text"{numbered}>
{text}
</main>
<footer>
<p>Point at a {token}, tap it, or use Tab and the arrow keys, to see what was predicted there.
Keys: <kbd>w</kbd> next worst {token}, <kbd>s</kbd> {sequence}, <kbd>/</kbd> search, <kbd>n</kbd> next match; with
<kbd>Shift</kbd>, the one before.</p>
<p>Made by tokenloss {version}: <code>{made_by}</code></p>
</footer>
<div id="card" role="tooltip" hidden></div>
<script type="text/plain" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


class Tokens(NamedTuple):
    """The tokens of a page, in the order of the text.

    Attributes
    ----------
    text : list of str or None
        Their text, as their vocabulary writes it.
    encode : function
        What turns this into bytes: `byte_encoder` of the vocabulary.
    ids : list of int or None
        Their class ids.
    places : dict of arrays of integers
        What says where a token is: its `file`, `row`, `sequence` and `position`, or some of these; -1 of nowhere.
    """

    text: list[str | None]
    encode: Callable[[str], bytes]
    ids: list[int | None]
    places: dict[str, Array]


def write(
    path: str | os.PathLike[str], title: str, head: str, tokens: Tokens, classes: Classes, data: dict[str, str],
    made_by: str, files: Sequence[str] = (), nouns: tuple[str, str] = ("token", "sequence"),
) -> None:  # fmt: skip
    """Write a page of these tokens, made by a command or function.

    `data` has JSON of `models`, a list, and of `base` if they are compared. Each is an object of columns: `nll`, and as
    far as they are known `entropy`, `rank`, `top`, `chance` (the `k` most likely of `classes` for each token, and their
    probabilities in percent); a model has `shades` and `worst`, too, and if it is compared `kl`, the `quantity` that
    this is, and a `name`. `files` are names for the numbers of files, `nouns` what the page calls a token and a
    sequence.
    """
    texts = decoded(tokens.text, tokens.encode)
    shown = [_id_text(i) if text is None else text.translate(_CONTROL_PICTURES)
             for i, text in zip(tokens.ids, texts, strict=True)]  # fmt: skip
    lengths = [(-1 if word is None else 1) * _utf16_length(text)
               for word, text in zip(tokens.text, shown, strict=True)]  # fmt: skip
    starts = _paragraph_starts(shown, tokens.places)
    ids = [None if i is not None and i < 0 and text is not None else i
           for i, text in zip(tokens.ids, tokens.text, strict=True)]  # fmt: skip
    target = classes.numbers(ids, plain(tokens.text, tokens.encode))
    columns = {
        "lengths": as_json(lengths),  # of the text of each token, negative if this is its id
        "first": as_json([first for first, _ in starts]),  # token of each paragraph
        "places": as_json({name: np.diff(place, prepend=0).tolist() for name, place in tokens.places.items()}),
        "target": as_json(target),
        "noun": as_json(nouns[1]),
        "files": as_json([Path(file).name for file in files]),
        **classes.columns(),
        **data,
    }
    packed = zlib.compress(as_object(columns).encode("utf-8", "replace"), 5)  # twice as fast as 6, and 3 % larger
    text = "".join(_text_html(shown, starts, tokens.places, files, nouns[1]))
    style, script = (
        resources.files("tokenloss._output").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js")
    )
    page = _PAGE.format(
        script_hash=base64.urlsafe_b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=escaped(title),
        style=style,
        head=head,
        text=text,
        numbered=' class="numbered"' if "<h2" in text else "",
        data=base64.b64encode(packed).decode(),
        script=script,
        version=__version__,
        made_by=escaped(made_by),
        token=nouns[0],
        sequence=nouns[1],
        Sequence=nouns[1].capitalize(),
    )
    with replacing(path) as file:
        file.write(page.encode("utf-8", "replace"))


# -- text --------------------------------------------------------------------------------------------------------------


# Browsers show nothing for control characters, so they become pictures; later ones, and those that reverse text,
# become U+FFFD.
_BIDI_MARKS = dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
_CONTROL_PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD) | _BIDI_MARKS


def escaped(text: str) -> str:
    """HTML of text."""
    return html.escape(text.translate(_CONTROL_PICTURES))


def tokens_of(
    ids: Array, tokens: Sequence[str | None] | Array | None, vocabulary: Sequence[str] | None, shape: tuple[int, ...]
) -> Tokens:
    """The first tokens of a batch, with these ids; their text is given, or comes from the vocabulary."""
    if tokens is None:
        text, encode = vocabulary_text(vocabulary, ids.tolist()), byte_encoder(vocabulary or ())
    else:
        text = _as_strings(tokens, shape, ids.size)
        encode = byte_encoder(text)
    row, position = np.divmod(np.arange(ids.size), (shape[-1] if shape else 1) or 1)  # each row is a sequence
    places = {"sequence": row, "position": position} if len(shape) > 1 else {"position": position}
    return Tokens(text, encode, ids.tolist(), places)


def _as_strings(tokens: Sequence[str | None] | Array, shape: tuple[int, ...], size: int) -> list[str | None]:
    """The text of the first tokens, checked."""
    array = np.asarray(tokens)
    if array.shape != shape:
        raise_error("shape", name="tokens", got=array.shape, fits=f"{shape}, to fit scores")
    if array.dtype.kind not in "UTO":
        raise_error("dtype", name="tokens", got=array.dtype, fits="text")
    return [None if token is None else str(token) for token in array.reshape(-1)[:size].tolist()]


def vocabulary_text(vocabulary: Sequence[str] | None, ids: Iterable[int]) -> list[str | None]:
    """Text of class ids; None if unknown."""
    known = () if vocabulary is None else vocabulary
    return [str(known[i]) if 0 <= i < len(known) else None for i in ids]


def class_names(
    vocabulary: Sequence[str] | None, ids: Array, tokens: list[str | None]
) -> Callable[[list[int]], list[str | None]]:
    """Choose the function that names class ids: by the vocabulary, else by the tokens of the text."""
    encode = byte_encoder(tokens if vocabulary is None else vocabulary)
    known = {i: token for i, token in zip(ids.tolist(), tokens, strict=True) if token is not None}

    def names(ids: list[int]) -> list[str | None]:
        return plain(map(known.get, ids) if vocabulary is None else vocabulary_text(vocabulary, ids), encode)

    return names


def known_places(places: Mapping[str, Array]) -> dict[str, Array]:
    """The places that distinguish tokens, without the number of a single file or of missing sequences."""
    unknown = {"file": 0, "sequence": -1, "position": -1}
    return {name: place for name, place in places.items() if name not in unknown or (place != unknown[name]).any()}


def known_ids(ids: Array) -> list[int | None]:
    """Ids as a list; negative ids are unknown, and become None."""
    return [None if i < 0 else i for i in ids.reshape(-1).tolist()]


def _id_text(i: int | None) -> str:
    """The text for a token without text: its id, if known, and a space."""
    return "\N{REPLACEMENT CHARACTER} " if i is None else f"#{i} "


def _utf16_length(text: str) -> int:
    """The length of text in JavaScript."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "replace")) // 2


def _paragraph_starts(text: list[str], places: Mapping[str, Array]) -> list[tuple[int, bool]]:
    """The first token of each paragraph, and whether a sequence or file starts there.

    A paragraph of very many tokens is broken after a newline, else before a space, else anywhere.
    """
    size = len(text)
    is_start = np.zeros(size, bool)
    is_start[:1] = True
    for name in places.keys() & {"file", "sequence"}:
        is_start[1:] |= np.diff(places[name]) != 0
    if "sequence" in places and "position" in places:  # two sequences of the same number
        is_start[1:] |= (np.diff(places["position"]) <= 0) & (places["sequence"][1:] >= 0)
    starts: list[tuple[int, bool]] = []
    for first, last in itertools.pairwise([*np.flatnonzero(is_start).tolist(), size]):
        starts.append((first, True))
        while last - first > _MOST_IN_PARAGRAPH:
            least, most = first + _MOST_IN_PARAGRAPH // 2, first + _MOST_IN_PARAGRAPH
            newlines = (i for i in range(least, most) if text[i - 1].endswith("\n"))
            spaces = (i for i in range(most, least, -1) if text[i][:1].isspace())
            first = next(newlines, None) or next(spaces, most)
            starts.append((first, False))
    return starts


def _text_html(
    text: list[str], starts: list[tuple[int, bool]], places: Mapping[str, Array], files: Sequence[str], noun: str
) -> Iterator[str]:
    """HTML of the paragraphs, in parts, with a heading for each sequence if there are several."""
    labels = [_label(places, first, files, noun) if is_start else None for first, is_start in starts]
    named = len({*labels} - {None}) > 1
    file, anchors = "", {""}
    part = 0  # first token of the part
    bounds = [first for first, _ in starts] + [len(text)]
    for number, label in enumerate(labels):
        first, last = bounds[number : number + 2]
        if number == 0 or first - part >= _TOKENS_OF_PART:
            yield f"{'</div>' * (number > 0)}\n<div class=part>\n"
            part = first
        if named and label:
            words, anchor = label
            shown = words[1:] if len(words) > 1 and words[0] == file else words
            yield f"<h2{'' if anchor in anchors else f' id={anchor}'}>{'<br>'.join(shown)}</h2>"
            file = words[0]
            anchors.add(anchor)
        continued = "" if starts[number][1] else " class=on"
        yield f"<p{continued}>{html.escape(''.join(text[first:last]))}</p>\n"
    if labels:
        yield "</div>"


def _label(places: Mapping[str, Array], at: int, files: Sequence[str], noun: str) -> tuple[tuple[str, ...], str] | None:
    """Names of a token's file and sequence, in HTML, and the anchor of both for links; None if it has neither.

    The noun is what a sequence is called.
    """
    known = {name: int(places[name][at]) for name in ("file", "sequence") if name in places and places[name][at] >= 0}
    words = [f"{noun if name == 'sequence' else name} {number}" for name, number in known.items()]
    if "file" in known and files:
        words[0] = escaped(Path(files[known["file"]]).name)
    return (tuple(words), "-".join(f"{name}-{number}" for name, number in known.items())) if known else None


# -- shades ------------------------------------------------------------------------------------------------------------


def css_classes(nats: Array, kept: Array, shades: Sequence[float], are_signed: bool = False) -> Array:
    """The number of each token's style, given the nats at which each next color begins; differences have both signs."""
    nats = nats.reshape(-1)
    css_class = np.searchsorted(shades, nats, side="right")
    if are_signed:
        css_class = np.array(_SIGNED)[css_class]
    css_class[np.isinf(nats)] = _INF
    css_class[np.isnan(nats)] = _NAN
    css_class[~kept.reshape(-1)] = _IGNORED
    return css_class


def legend(css_class: Array, what: str, shades: Sequence[float], note: str, notes: Sequence[str], infinite: str) -> str:
    """HTML of the legend, with a note below each shade; special values are listed only if they occur."""
    looks: Sequence[int] = range(_N_SHADES)
    starts = [f"{start:g}" for start in (0.0, *shades)]
    if shades[0] < 0:
        looks, starts = _SIGNED, [f"{start:+g}" for start in (-math.inf, *shades)]
    columns = [(_CLASSES[look], start, below) for look, start, below in zip(looks, starts, notes, strict=True)]
    for index, name in (_INF, infinite), (_NAN, "no number"), (_IGNORED, "ignored"):
        if count := int(np.count_nonzero(css_class == index)):
            columns.append((_CLASSES[index], name, f"{count:,}"))
    rows = []
    for row, name in (1, what), (2, note):
        cells = "".join(f"<td class={column[0]}>{column[row]}</td>" for column in columns)
        rows.append(f"<tr><th scope=row>{name}</th>{cells}</tr>")
    return f'<table class="legend" aria-label="Colors">{"".join(rows)}</table>'


def heading(quantity: str, count: int, noun: str, names: str) -> str:
    """The title of a page, such as "Loss of 15 tokens: a.npz", or without the name if it is empty."""
    return f"{quantity[:1].upper()}{quantity[1:]} of {count_of(count, noun)}" + (f": {names}" if names else "")


def percent(fraction: float) -> str:
    """A fraction in percent, with two digits."""
    return f"{100 * fraction:.2g} %" if fraction < 0.995 else "100 %"


def summary(rows: Iterable[Row], *sources: object) -> str:
    """HTML of the rows of a result: their labels, values and notes."""
    lines = table(rows, *sources).rows
    cells = (f"<div><dt>{name}</dt><dd>{value} <small>{note}</small></dd></div>" for name, value, note in lines)
    return f'<dl class="summary">{"".join(cells)}</dl>'


def tables(shown: Iterable[Table]) -> str:
    """HTML of tables, for the place below a summary."""
    parts = printable_tables(Shown("", "", [*shown])).tables
    return "".join(f'\n<div class="groups">{table_in_html(one)}</div>' for one in parts)


def excerpt_note(shown: int, total: int, why: str = "", noun: str = "tokens") -> str:
    """HTML of a note that the page has only the first tokens; empty if it has all of them."""
    if shown == total:
        return ""
    note = f"This page shows the first {shown:,} of {total:,} {noun}{why}; the numbers are for all."
    return f'\n<p class="note">{note}</p>'


# -- data --------------------------------------------------------------------------------------------------------------


class Classes:
    """The classes that a page names, each with its id and text, once; tokens name them by their number here."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int | None, str | None], int] = {}

    def numbers(self, ids: Iterable[int | None], names: Iterable[str | None]) -> list[int]:
        """Numbers of classes of these ids and texts."""
        return [self._numbers.setdefault(one, len(self._numbers)) for one in zip(ids, names, strict=True)]

    def numbers_of_ids(self, ids: Array, names: Callable[[list[int]], Iterable[str | None]]) -> list[int]:
        """Numbers of classes whose text follows from the id; -1 for no class."""
        unique, inverse = np.unique(ids, return_inverse=True)
        numbers = np.array(self.numbers(unique.tolist(), names(unique.tolist())), int)
        return cast("list[int]", np.where(unique < 0, -1, numbers)[inverse.reshape(-1)].tolist())

    def columns(self) -> dict[str, str]:
        """JSON of the ids and texts of all classes."""
        ids, names = zip(*self._numbers, strict=True) if self._numbers else ((), ())
        return {"class_id": as_json(ids), "class_text": as_json(names)}


def plain(texts: Iterable[str | None], encode: Callable[[str], bytes]) -> list[str | None]:
    """Text of single tokens, without the marks of tokenizers; other bytes as escapes."""
    return [None if text is None else encode(text).decode("utf-8", "backslashreplace") for text in texts]


def as_object(columns: dict[str, str]) -> str:
    """JSON object of columns that are already JSON."""
    return "{" + ",".join(f'"{name}":{column}' for name, column in columns.items()) + "}"


def as_json(value: object) -> str:
    """JSON whose text cannot be reversed by direction marks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_BIDI_MARKS)


def numbers(values: Array, digits: int = 6) -> str:
    """JSON of numbers with significant digits; infinities become 1e999, which overflows, and nan becomes null."""
    texts = [f"{x:.{digits}g}" for x in values.reshape(-1).tolist()]
    return f"[{','.join(texts)}]".replace("inf", "1e999").replace("nan", "null")


def shade_letters(css_class: Array) -> str:
    """JSON text with a digit or letter for the style of each token."""
    return f'"{"".join(["0123456789abcdefgh"[index] for index in css_class.tolist()])}"'


def worst(values: Array, kept: Array) -> str:
    """JSON of the tokens with the largest values, the largest first; nan counts as infinite."""
    order = highest(values.reshape(-1), values.size)
    return as_json(order[kept.reshape(-1)[order]][:_N_WORST].tolist())


def predictions(
    scores: Mapping[str, Array | None], size: int, classes: Classes, names: Callable[[list[int]], Iterable[str | None]]
) -> dict[str, str]:
    """JSON of the ranks of the first tokens, and of the most likely classes with their probabilities."""
    top, logprobs = scores.get("top_ids"), scores.get("top_logprobs")
    rank = scores["rank"]
    assert rank is not None
    if top is not None and logprobs is not None:
        k = top.shape[-1]
        top, logprobs = top.reshape(-1)[: size * k], logprobs.reshape(-1)[: size * k]
    else:
        argmax = scores["argmax"]
        assert argmax is not None
        k, top, logprobs = 1, argmax.reshape(-1)[:size], np.full(size, np.nan)
    return {
        "k": str(k),
        "rank": as_json(rank.reshape(-1)[:size].tolist()),
        "top": as_json(classes.numbers_of_ids(top, names)),
        "chance": chances(logprobs),
    }


def predictions_of_responses(
    scores: Mapping[str, Array], top_tokens: Array, encode: Callable[[str], bytes], classes: Classes
) -> dict[str, str]:
    """The same for servers' responses, which name the most likely classes but may lack ids and ranks."""
    top, logprobs = scores["top_ids"], scores["top_logprobs"]
    names = classes.numbers(known_ids(top), plain(top_tokens.reshape(-1).tolist(), encode))
    return {
        "k": str(top.shape[-1]),
        "rank": as_json([rank if rank > 0 else None for rank in scores["rank"].tolist()]),
        "top": as_json(np.where(np.isnan(logprobs.reshape(-1)), -1, names).tolist()),
        "chance": chances(logprobs),
    }


def chances(logprobs: Array) -> str:
    """JSON of probabilities in percent, with the three digits that the page shows."""
    with np.errstate(over="ignore"):
        return numbers(100 * np.exp(logprobs), 3)
