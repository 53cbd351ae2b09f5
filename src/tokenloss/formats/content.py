"""Openers of plain paths: the table that recognizes what files contain."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core.arguments import as_paths, refuse_content
from tokenloss._core.errors import named, raise_error, refuse, worded
from tokenloss._statistics.groups import is_by_position
from tokenloss.formats import npy
from tokenloss.formats.base import is_float
from tokenloss.formats.logprobs import Logprobs, are_logprobs, end_in_zeros, open_logprobs
from tokenloss.formats.readers import format_of, resolved
from tokenloss.formats.records import are_records
from tokenloss.formats.responses import open_responses
from tokenloss.formats.samples import is_samples, is_samples_folder, open_samples
from tokenloss.formats.scores import Scores, open_scores
from tokenloss.formats.sketch import is_sketch, open_sketch
from tokenloss.formats.sources import Source, blocks, require, with_shift

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tokenloss._core.types import Array
    from tokenloss.formats.mapped import ArrayLocation

_ROWS = 1000  # whose ends are checked: scores may be larger than memory
_FIRST_ROWS = 16  # that are searched first for a number above 0
_FITS = "paths, or blocks such as [(logits, targets)]"


class Content(NamedTuple):
    """A kind of content: how a path is recognized, its opener, and the opener's options in the command."""

    name: str
    recognizes: Callable[[str], bool]
    open: Callable[..., Source]
    options: tuple[str, ...]


OF_SCORES = (
    "targets", "segment_ids", "array", "targets_array", "kind", "shift", "ignore_index", "window", "stride",
    "tokenizer",
)  # fmt: skip
# the first that recognizes a path opens it
CONTENTS = (
    Content("samples", lambda path: is_samples_folder(path) or (Path(path).is_file() and is_samples(path)),
            open_samples, ("run",)),
    Content("log-probabilities", are_logprobs, open_logprobs, ("array", "mask", "segment_ids")),
    Content("responses", are_records, open_responses, ("part", "skip_failed")),
    Content("a sketch", is_sketch, open_sketch, ("tokenizer",)),
    Content("scores", lambda path: True, open_scores, OF_SCORES),
)  # fmt: skip


def content_of(paths: Sequence[str], kind: str | None = None) -> Content:
    """The content of all files, which must be the same; `kind` is the given kind of scores, if any."""
    files = resolved(paths, are_scores=not any(map(is_samples_folder, paths)))
    contents = [next(one for one in CONTENTS if one.recognizes(path)) for path in files]
    if not contents:
        raise_error("empty", name="paths", fits="a path, or paths")
    for path, content in zip(files, contents, strict=True):
        if content is not contents[0]:
            refuse(path, f"contains {content.name}", f"contain {contents[0].name}, as {files[0]} does")
    if contents[0].open is open_scores and kind is None:
        for path in files:
            _refuse_unnamed_logprobs(path, files[0])
    return contents[0]


def as_source(value: Any, *, shift: bool | None = None, name: str = "source") -> Source:
    """The given source, or one for blocks, or for files by their content; `shift` applies unless the source sets it."""
    if isinstance(value, Source):
        return with_shift(value, shift)
    refuse_content(name, value, _FITS)
    if callable(value):
        return with_shift(blocks(value), shift)
    if hasattr(value, "__array__") or hasattr(value, "__dlpack__"):
        raise_error("type", name=name, got=type(value).__name__, fits=_FITS)
    if not isinstance(value, str | os.PathLike):
        try:
            items = iter(value)
        except TypeError:
            raise_error("type", name=name, got=type(value).__name__, fits="paths or blocks")
        first = next(items, None)
        if first is None:
            raise_error("empty", name=name, fits="paths or blocks")
        if isinstance(first, Source):
            fits = "one source; open several files at once, as in open_scores([A, B])"
            raise_error("type", name=name, got=f"{type(value).__name__} of sources", fits=fits)
        value = value if isinstance(value, list | tuple) else itertools.chain([first], items)
        if not isinstance(first, str | os.PathLike):
            return with_shift(blocks(value), shift)
    paths = as_paths(name, value)
    return with_shift(content_of(paths).open(paths if len(paths) > 1 else paths[0]), shift)


def grouped(source: Any, by: str | None) -> Any:
    """The source, which also reads the labels of the field that `by` names, if it names one."""
    if by is None or is_by_position(by):
        return source
    require(source, "plan", "by")
    if by == "file":
        return source
    if isinstance(source, Scores):
        return replace(source, specs=tuple(spec._replace(field=by) for spec in source.specs))
    if isinstance(source, Logprobs) and source.shape is not None:
        refuse(source.path, "contains an array, which has no fields", f"be lines of JSON with the field {by!r}")
    return replace(source, _field=by)


def _refuse_unnamed_logprobs(path: str, first: str) -> None:
    """Refuse an unnamed array that may contain log-probabilities of tokens instead of scores of all classes."""
    if Path(path).is_dir() or format_of(path) is not npy.FORMAT:
        return
    place = npy.locate(path)
    if not is_float(place.dtype):
        return
    opener = worded("be opened by open_logprobs", "come with --logprobs")
    fits = f"{opener}, if it contains log-probabilities of tokens, or come with {named('kind', ...)}"
    if len(place.shape) == 1:
        fits += "; class ids are integers: save them with .astype(int)" * (path != first)
        refuse(path, "has one number for each token, and no classes", fits)
    if len(place.shape) == 2 and place.shape[1] and _seem_padded(place):
        got = (
            "has no number above 0, and its rows end in nan or in zeros, as log-probabilities of tokens with padding do"
        )
        fits += ", if it contains scores of all classes"
        refuse(path, got, fits)


def _seem_padded(place: ArrayLocation) -> bool:
    """Whether no number is above 0 and rows end in nan or in different numbers of zeros, as scores never do."""

    def blocks() -> Iterable[Array]:
        return place.blocks(_FIRST_ROWS) if place.order == "C" else [place.load()]

    def rows() -> Iterator[Array]:
        return itertools.islice(itertools.chain.from_iterable(blocks()), _ROWS)

    with np.errstate(invalid="ignore"):
        if any((block[:_FIRST_ROWS] > 0).any() for block in itertools.islice(blocks(), 1)):
            return False
        seem_so = any(np.isnan(row[-1]) for row in rows()) or end_in_zeros(rows())
        return seem_so and not any((block > 0).any() for block in blocks())
