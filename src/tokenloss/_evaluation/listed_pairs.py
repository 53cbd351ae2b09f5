"""Comparisons of sources that list the likeliest classes of each token: responses with responses or with scores."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._comparison.comparisons import Comparisons
from tokenloss._comparison.parity import with_noise
from tokenloss._comparison.responses import (
    TOKEN_COLUMNS,
    Pair,
    PairedFiles,
    ResponseComparison,
    compare_pairs,
    response_comparison_of,
)
from tokenloss._evaluation.checkpoint import record
from tokenloss._evaluation.responses import (
    FilesUnit,
    columns_of_responses,
    group_codes,
    scores_of_responses,
    sequences_of,
    units_of,
)
from tokenloss._evaluation.scored_responses import ScoredResponses
from tokenloss._evaluation.sequences import groups_of
from tokenloss._evaluation.sink import Block, schema_of, tops_of
from tokenloss.formats.responses import Responses

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tokenloss._comparison.compared_tokens import About
    from tokenloss._core.types import Columns
    from tokenloss._evaluation.run import Run, Work
    from tokenloss.formats.sources import Source

_PLACES = ("sequence", "position", "target")
_SEQUENCES = (
    "file", "sequence", "count", "loss", "base_loss", "loss_difference", "kl_bound", "delta_p", "same_top",
    "first_difference", "first_flip", "line", "base_line",
)  # fmt: skip


@record
class ComparedLists(NamedTuple):
    """Result of a pair: columns of its tokens, and the origins of its sequences."""

    columns: Columns
    origins: list[Any]  # the number, both lines and the name of each sequence
    words: list[str]  # how the numbers of both are rounded
    n_skipped: int
    part: str


def compare_lists(
    base: Source, models: Mapping[str, Source], abouts: Sequence[About], run: Run, by: str | None, noise: str
) -> Comparisons[ResponseComparison]:
    """The comparisons of responses with a base of responses or scores, or of scores with a base of responses."""
    schema = schema_of(("file", *_PLACES, "text", *TOKEN_COLUMNS), _SEQUENCES, (*models,), run.sinks.top_k)
    results = run.map(_compare_lists, units_of(base, models), schema, are_candidates=True)
    comparisons: Comparisons[ResponseComparison] = Comparisons()
    for about, result in zip(abouts, results, strict=True):
        origins = {number: origin for number, *origin in result.origins}
        comparisons[about["name"]] = one = response_comparison_of(
            result.columns, origins, part=result.part, base_rounding=result.words[0],
            rounding=result.words[1], n_skipped=result.n_skipped, _about=about,
        )  # fmt: skip
        if by is not None:
            numbers, lengths = np.unique(result.columns["sequence"], return_counts=True)
            labels = [origins[number][-1] for number in numbers.tolist()]
            codes = group_codes(by, result.columns["position"], labels, lengths.tolist())
            about |= groups_of(one, by, [codes], base.paths[0])
    if noise:
        comparisons |= {name: with_noise(one, comparisons[noise]) for name, one in comparisons.items() if name != noise}
    run.sinks.finish(comparisons, lambda: sequences_of(comparisons))
    return comparisons


def _compare_lists(unit: FilesUnit, work: Work) -> ComparedLists:
    """The compared tokens of a base and a model; one of the two may be scores."""
    sides, words = (unit.base, unit.other), ["", ""]
    files = [source for source in sides if isinstance(source, Responses)]
    pairs: PairedFiles | ScoredResponses
    if len(files) == len(sides):
        pairs = PairedFiles(*files)
    else:
        side = int(isinstance(unit.base, Responses))
        pairs = scored = ScoredResponses(sides[side], files[0], side == 0, work)
        words[side] = scored.words
    paths = unit.base.paths[0], unit.other.paths[0]
    every, seen = itertools.tee(pairs) if work.top_k else (iter(pairs), ())  # tops are of pairs that were read
    columns, origins, roundings = compare_pairs(every, paths)
    words = [word or str(rounding) for word, rounding in zip(words, roundings, strict=True)]
    if work.emit:
        shared = {name: columns[name] for name in (*_PLACES, "text", "kept", "base_nll")}
        own = {name: columns[name] for name in TOKEN_COLUMNS if name not in shared}
        work.emit(Block(shared, {unit.name: own}, _tops(seen, unit.name, work.top_k)))
    work.advance(unit.n_bytes)
    rows = [(number, *origin) for number, origin in origins.items()]
    return ComparedLists(columns, rows, words, pairs.skipped, files[0].part)


def _tops(every: Iterable[Pair], name: str, top_k: int) -> dict[str, Columns]:
    """The most likely classes of the base and the candidate, as far as these are responses."""
    tops: dict[str, Columns] = {}
    pairs = sorted(every, key=lambda pair: pair.number)
    for side, model in enumerate(("", name)):
        responses = [response for pair in pairs if (response := pair.responses[side]) is not None]
        if responses:
            block = columns_of_responses(responses, top_k)
            tops |= tops_of({model: scores_of_responses(block, top_k)}, block["top_tokens"][:, :top_k])
    return tops
