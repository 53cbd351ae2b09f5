"""The comparison of files of responses, with each other or with a file of scores."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

from tokenloss._comparison.comparisons import Comparisons
from tokenloss._comparison.response_pairs import PairedFiles, compare_pairs
from tokenloss._comparison.responses import TOKEN_COLUMNS, ResponseComparison, response_comparison_of
from tokenloss._core.arguments import as_paths, check_shift, is_given
from tokenloss._core.errors import raise_error
from tokenloss._core.threads import check_workers
from tokenloss._evaluation.options import Options, by_identity, checked_sizes, single
from tokenloss._evaluation.response_scores import ScoredResponses
from tokenloss._evaluation.responses import columns_of_responses, scores_of_responses
from tokenloss._evaluation.sink import (
    ComparedBlock,
    check_files,
    checked_sinks,
    finish_sinks,
    open_sinks,
    token_function,
)
from tokenloss.formats.responses import is_responses, open_responses

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Literal

    from tokenloss._comparison.response_pairs import Pair
    from tokenloss._core.types import Array, Columns, Kind
    from tokenloss._evaluation.sink import Sink
    from tokenloss._scores.token_scores import TokenScores


def compare_responses(
    base: list[str], others: dict[str, list[str]], *, targets: Any, segment_ids: Any, base_array: str | None,
    array: str | None, targets_array: str | None, base_kind: Kind | None, kind: Kind | None, ignore_index: int | None,
    shift: bool | None, part: Literal["prompt", "generated", "all"] | None, skip_failed: bool,
    sizes: Mapping[str, Any] | None, noise: Any, sinks: Sequence[Sink], workers: int | None,
) -> Comparisons[ResponseComparison]:  # fmt: skip
    """Compare responses with a base of responses or of scores, or scores with a base of responses.

    Options are those of `compare_files`; if there is `noise`, it is the last of the others.
    """
    check_shift(shift)
    check_workers(workers)
    path = single("base", base)
    paths = {name: single(f"others[{name!r}]", one) for name, one in others.items()}
    of_rows = {"targets": as_paths("targets", targets), "segment_ids": as_paths("segment_ids", segment_ids)}
    rest: dict[str, Any] = {"ignore_index": ignore_index, "shift": shift, "targets_array": targets_array}
    is_base, are_others = is_responses(path), all(map(is_responses, paths.values()))
    _refuse(is_base, {"base_array": base_array, "base_kind": base_kind}, "base holds responses")
    _refuse(are_others, {"array": array, "kind": kind}, "others hold responses")
    _refuse(is_base and are_others, of_rows | rest, "all files hold responses")
    for name, paths_of_rows in of_rows.items():
        if len(paths_of_rows) > 1:
            raise_error("not for", name=name, fits="is given once where one file holds responses")
    outputs = checked_sinks(sinks, "compare_files", None, None)
    of_sizes = checked_sizes(sizes or {}, [*others] if noise is None else [*others][:-1])
    taken = (path, *paths.values(), *itertools.chain(*of_rows.values()))
    check_files(outputs, None, by_identity(taken, sizes))
    shared = Options(part=part, skip_failed=skip_failed, **rest)
    options = shared._replace(array=base_array, kind=base_kind), shared._replace(array=array, kind=kind)
    found: Comparisons[ResponseComparison] = Comparisons()
    with contextlib.ExitStack() as stack:
        top_k = max((output.top_k for output in outputs), default=0)
        open_sinks(stack, outputs, None, None, top_k, of_responses=True, has_text=True, names=(*others,))
        for name, other in paths.items():
            about = {"base": path, "name": name, "file": other, "size": of_sizes.get(name)}
            seen: list[Pair] = []
            columns, found[name] = _compared((path, other), options, of_rows, workers, about, seen if top_k else None)
            _give(outputs, name, columns, _tops(seen, top_k))
        if outputs:
            finish_sinks(outputs, found._figures(), found)
    return found


def _refuse(applies: bool, given: dict[str, Any], why: str) -> None:
    """Refuse options of scores if there are none."""
    for name, value in given.items() if applies else ():
        if is_given(value, -100 if name == "ignore_index" else None):
            raise_error("not for", name=name, fits=f"is for scores, and {why}")


def _give(outputs: Sequence[Sink], name: str, columns: Columns, tops: Sequence[Any]) -> None:
    """Give the tokens of a candidate to the sinks that need them."""
    add = token_function(outputs, 0)
    if add is not None:
        of_pair = {column: columns[column] for column in TOKEN_COLUMNS}
        places = None, columns["sequence"], columns["position"]
        add(ComparedBlock(name, of_pair, columns["target"], columns["text"], 0, *places, *tops))


def _compared(
    paths: tuple[str, str], options: tuple[Options, Options], of_rows: Mapping[str, list[str]],
    workers: int | None, about: dict[str, Any], seen: list[Pair] | None,
) -> tuple[Columns, ResponseComparison]:  # fmt: skip
    """The columns of all tokens of a base and a model, one of which may be of scores, and the comparison of these.

    `of_rows` are the files of the targets and of the segment ids of scores, if they have one. All pairs are added to
    `seen`, if an output needs their lists.
    """
    opened = [
        open_responses(path, part=of_file.part, skip_failed=of_file.skip_failed) if is_responses(path) else None
        for path, of_file in zip(paths, options, strict=True)
    ]
    words = ["", ""]
    pairs: PairedFiles | ScoredResponses
    if opened[0] is not None and opened[1] is not None:
        pairs = PairedFiles(opened[0], opened[1])
    elif opened[0] is None and opened[1] is None:
        got, fits = "is no file of responses", "be one, or the other file: a .json or .jsonl file"
        raise_error("content", path=paths[0], got=got, fits=fits)
    else:
        side = 0 if opened[0] is None else 1
        responses: Any = opened[1 - side]
        pairs = scored = ScoredResponses(paths[side], responses, options[side], of_rows, side == 0, workers)
        words[side] = scored.words
    columns, origins, roundings = compare_pairs(iter(pairs) if seen is None else _noted(pairs, seen), paths)
    own: Any = next(file for file in opened if file is not None)
    words = [word or str(rounding) for word, rounding in zip(words, roundings, strict=True)]
    return columns, response_comparison_of(
        columns, origins, part=own.part, base_rounding=words[0], rounding=words[1], n_skipped=pairs.skipped,
        _about=about,
    )  # fmt: skip


def _noted(pairs: Iterable[Pair], seen: list[Pair]) -> Iterator[Pair]:
    """Pairs, each of which is added to a list as it comes."""
    for pair in pairs:
        seen.append(pair)
        yield pair


def _tops(pairs: Sequence[Pair], top_k: int) -> tuple[Any, ...]:
    """Scores of the base and of the model, as far as responses tell them, and the text of listed classes."""
    scores: list[TokenScores | None] = [None, None]
    texts: list[Array | None] = [None, None]
    pairs = sorted(pairs, key=lambda pair: pair.number)
    for side in (0, 1):
        responses = [response for pair in pairs if (response := pair.responses[side]) is not None]
        if responses:
            block = columns_of_responses(responses, top_k)
            scores[side], texts[side] = scores_of_responses(block, top_k), block["top_tokens"][:, :top_k]
    return *scores, *texts
