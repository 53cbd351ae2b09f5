"""The run of `compare_files`: shards are planned, compared and put together, and outputs are written."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.comparison import comparison_of
from tokenloss._comparison.comparisons import Comparisons
from tokenloss._comparison.draft_columns import acceptance
from tokenloss._comparison.drafts import acceptance_of
from tokenloss._core.errors import raise_error
from tokenloss._core.result import rows_of
from tokenloss._core.signature import IdsHash, either, head_fields
from tokenloss._evaluation.checks import norm_seems_missing
from tokenloss._evaluation.compared_shard import ComparedShard, compare_shard, joined
from tokenloss._evaluation.files import score_shards
from tokenloss._evaluation.options import Inputs, check_order
from tokenloss._evaluation.pairing import paired
from tokenloss._evaluation.plan import open_all, open_shard, open_stored, planned
from tokenloss._evaluation.results import ShiftSample
from tokenloss._evaluation.sink import check_files, finish_sinks, open_sinks
from tokenloss._evaluation.token_types import TYPES, token_types
from tokenloss.formats.lm_head import OTHER_WIDTH
from tokenloss.formats.scores_file import NO_HIDDEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._comparison.comparison import Comparison
    from tokenloss._core.types import Array, Columns
    from tokenloss._evaluation.options import Options, Settings
    from tokenloss._evaluation.plan import Shard
    from tokenloss._evaluation.sink import Sink


def compare_sides(
    sides: Sequence[Inputs], models: dict[object, str], abouts: Sequence[dict[str, Any]], options: Options,
    settings: Settings, outputs: Sequence[Sink],
) -> Comparisons[Comparison]:  # fmt: skip
    """Compare all rows of candidates with those of the base.

    The first of `sides` is the base, which has the targets and segment ids of all. `models` are the files of which only
    the size is taken, by `identity`: no output may replace them. `abouts` say of each candidate its name, its files and
    those of the base in words, and its size.
    """
    taken = {key: path for side in sides for key, path in side.by_identity().items()}
    check_files(outputs, settings.state, models | taken)
    for side in sides:
        check_order(side.scores, sides[0].targets, options)
    base, *others = (
        _opened(side, of_side, options) for side, of_side in zip(sides, (options, *options.others), strict=True)
    )
    shards = planned(paired(base, others, options), sides[0].targets, options, sides[0].segment_ids)
    if shards[0].target_type == "none":
        for output in outputs:
            if output.top_k and output._needs_targets:
                got, fits = "holds no targets", f"hold them for {output._name}, or come with --targets (targets=)"
                raise_error("content", path=shards[0].path, got=got, fits=fits)
    classes = min(side[0].shape[-1] for side in (base, *others))
    top_k = min(max((output.top_k for output in outputs), default=0), options.classes or classes, classes)
    rows, firsts = sum(shard.scored_rows for shard in shards), _first_numbers(shards, options)
    with contextlib.ExitStack() as stack:
        names = tuple(about["name"] for about in abouts)
        has_text = any(side.has_text for shard in shards for side in (shard, *shard.others))
        of_sinks: Any = {"has_text": has_text, "names": names, "divergences": options.divergences}
        of_sinks["are_drafts"] = options.temperature is not None
        open_sinks(stack, outputs, shards[0].batch, rows * len(others), top_k, **of_sinks)
        compare = functools.partial(compare_shard, names=names)
        results, _ = score_shards(compare, shards, options, settings, outputs, top_k)
        found = _comparisons(shards, results, abouts, options, firsts, settings.cost_ratio)
        if outputs:
            finish_sinks(outputs, found._figures(), found)
    return found


def _opened(side: Inputs, of_side: Options, options: Options) -> list[Shard]:
    """Open the files of the base or of a candidate; where they do not fit the head of both, say how to name others."""
    try:
        return open_all(side.scores, of_side, 1 + len(options.others))
    except ValueError as error:
        is_shared = options.lm_head is not None and options.lm_head == options.others[0].lm_head
        if not is_shared or not any(words in str(error) for words in (NO_HIDDEN, OTHER_WIDTH)):
            raise
        hint = "base_lm_head (--base-lm-head) is the head of the base alone, base_kind the kind of a base of scores"
        raise ValueError(f"{error}; {hint}") from error


def _comparisons(
    shards: Sequence[Shard], results: Sequence[ComparedShard], abouts: Sequence[dict[str, Any]],
    options: Options, firsts: list[int], cost_ratio: float | None,
) -> Comparisons[Any]:  # fmt: skip
    """Make the figures of all shards together, of each candidate."""
    parts = [_numbered(result, first) for result, first in zip(results, firsts, strict=True)]
    are_drafts = options.temperature is not None
    types = None if are_drafts else _types(shards, options, firsts)
    rows = sum(shard.rows for shard in shards)
    n_without_next = rows - sum(shard.scored_rows for shard in shards)
    shared: dict[str, Any] = {
        "base": abouts[0]["base"],
        "base_kind": shards[0].kind,
        "files": [shard.path for shard in shards],
        "shape": (rows, shards[0].shape[-1]),
        "classes": options.classes,
        "n_without_next": n_without_next,
        "fits_better_shifted": sum((part.shift_sample for part in results), ShiftSample()).fits_better,
    }
    if are_drafts:
        del shared["classes"], shared["fits_better_shifted"]
    hashed = IdsHash.total_of(results)
    found: Comparisons[Any] = Comparisons()
    for number, (given, columns) in enumerate(zip(abouts, joined(parts), strict=True)):
        comparison = _result_of(columns, options, cost_ratio)
        about = shared | given
        about |= {"kind": shards[0].others[number].kind, "n_ignored": rows - n_without_next - comparison.count}
        heads = {"base_head": shards[0].head, "head": shards[0].others[number].head}
        about |= {name: head for name, head in heads.items() if head is not None}
        if types is not None:
            table = comparison.by(types)
            about["by_token_type"] = [row | {"group": TYPES[row["group"]]} for row in rows_of(table)]
        if comparison.sequences is not None and len(shards) > 1 and shards[0].segments_start is None:
            about["sequences"] = _with_files(rows_of(comparison.sequences), shards, firsts)
        rms = [[one for result in results for one in result.rms[model]] for model in (0, number + 1)]
        if any(rms):
            known = [(about.get(name) or {}).get("norm") is not None for name in ("base_head", "head")]
            about["norm_seems_missing"] = any(map(norm_seems_missing, rms, known))
        other = shards[0].others[number]
        has_ids = shards[0].target_type != "none" if are_drafts else comparison.has_targets
        signed = {
            "shift": "yes" if options.shift else None,
            "kind": either(other.kind, shards[0].kind),
            "dtype": either(_dtypes([shard.others[number] for shard in shards]), _dtypes(shards)),
            "classes": None if are_drafts or comparison.left_out is None else options.classes,
            "ignored": about["n_ignored"],
            "ids": hashed if has_ids else None,
            **head_fields(other.head, shards[0].head),
        }
        found[given["name"]] = dataclasses.replace(comparison, _about=about, _signed=comparison._signed | signed)
    return found


def _result_of(columns: Columns, options: Options, cost_ratio: float | None) -> Any:
    """The figures of a candidate, from its columns."""
    if options.temperature is None:
        return comparison_of(options.definitions, columns)
    of_texts = columns["kept"], columns.get("segment_ids")
    return acceptance_of(acceptance(columns, options.temperature), *of_texts, options.temperature, cost_ratio)


def _dtypes(shards: Sequence[Shard]) -> str:
    """The dtypes of the scores of shards."""
    return ", ".join(sorted({shard.dtype for shard in shards}))


def _first_numbers(shards: Sequence[Shard], options: Options) -> list[int]:
    """What is added to the sequence numbers of each shard to make them unique; 0 if all share one numbering."""
    firsts = [0]
    for shard in shards if shards[0].segments_start is None else ():
        numbers = open_shard(shard, options).sequences.numbers(0, shard.rows)
        firsts.append(firsts[-1] + int(numbers.max(initial=-1)) + 1)
        if firsts[-1] >= 2**63 and len(shards) > 1:
            got, fits = "holds numbers of sequences that are too high", "hold lower ones, which are counted on"
            raise_error("content", path=shard.segments or shard.path, got=got, fits=fits)
    return firsts[:-1] or [0] * len(shards)


def _numbered(result: ComparedShard, first: int) -> ComparedShard:
    """Add a number to the sequence numbers of a result."""
    ids = result.base.get("segment_ids")
    if ids is None or not first:
        return result
    return result._replace(base=result.base | {"segment_ids": np.where(ids < 0, ids, ids + first)})


def _with_files(
    sequences: Sequence[dict[str, Any]], shards: Sequence[Shard], firsts: list[int]
) -> list[dict[str, Any]]:
    """Rows of a table of sequences, with the file of each, and its number in that file."""
    numbers = [bisect.bisect_right(firsts, row["sequence"]) - 1 for row in sequences]
    return [
        row | {"file": shards[number].path, "sequence": row["sequence"] - firsts[number]}
        for row, number in zip(sequences, numbers, strict=True)
    ]


def _types(shards: Sequence[Shard], options: Options, firsts: list[int]) -> Array | None:
    """Index into `TYPES` of each token that is compared; None if no shard holds any text."""
    words: list[Array] = []
    numbers: list[Array] = []
    masks: list[Array] = []
    is_known = False
    for shard, first in zip(shards, firsts, strict=True):
        compared, stored = open_shard(shard, options), open_stored(shard, options)
        text = np.full(shard.rows, None) if stored.tokens is None else stored.tokens.reshape(-1)
        is_known |= stored.tokens is not None
        words.append(text.astype(object))
        own = stored.sequences.numbers(0, shard.rows)
        numbers.append(np.where(own < 0, own, own + first))
        masks.append(np.ones(shard.rows, np.bool_) if compared.scored is None else compared.scored.reshape(-1))
    if not is_known:
        return None
    ids = np.concatenate(numbers)
    is_first = np.diff(ids, prepend=ids[:1] - 1) != 0
    types = token_types(np.concatenate(words), is_first)
    if options.shift:  # each row is of the next token, if there is one
        types = np.roll(types, -1)
    found: Array = types[np.concatenate(masks)]
    return found
