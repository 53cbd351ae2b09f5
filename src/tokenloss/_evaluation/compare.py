"""The comparison of sources with all classes: shards are planned, compared and combined."""

from __future__ import annotations

import bisect
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.comparison import comparison_of, described
from tokenloss._comparison.comparisons import Comparisons
from tokenloss._core.errors import named, raise_error
from tokenloss._core.result import rows_of
from tokenloss._core.signature import IdsHash, either, head_fields
from tokenloss._evaluation.compared_shard import ComparedShard, compare_shard, joined
from tokenloss._evaluation.parts import window_figures
from tokenloss._evaluation.plan import planned
from tokenloss._evaluation.results import ShiftSample
from tokenloss._evaluation.rows import norm_seems_missing
from tokenloss._evaluation.shards import open_stored
from tokenloss._evaluation.token_types import TYPES, token_types

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenloss._comparison.comparison import Comparison
    from tokenloss._core.types import Array
    from tokenloss._evaluation.options import Options
    from tokenloss._evaluation.run import Run, Settings
    from tokenloss._evaluation.shards import Handles, Shard
    from tokenloss.formats.scores import Scores
    from tokenloss.formats.tokenizers import Tokenizer


def compare_rows(
    base: Scores, others: Mapping[str, Scores], abouts: Sequence[dict[str, Any]], options: Options, settings: Settings,
    run: Run, tokenizer: Tokenizer | None = None,
) -> Comparisons[Comparison]:  # fmt: skip
    """Compare all rows of candidates with those of the base, which has the targets and segment ids of all.

    `abouts` have the name and size of each candidate, and the names of its files and of the base's.
    """
    shards = planned(base, [*others.values()], options, run.handles)
    if shards[0].target_type == "none":
        for output in settings.sinks:
            if output.top_k and output._needs_targets:
                got, fits = "holds no targets", f"hold them for {output._name}, or come with {named('targets', ...)}"
                raise_error("content", path=shards[0].path, got=got, fits=fits)
    classes = min(spec.classes for spec in shards[0].models)
    rows, firsts = sum(shard.n_scored_rows for shard in shards), _first_numbers(shards, options, run.handles)
    schema: dict[str, Any] = {
        "batch": shards[0].batch, "rows": rows * len(others), "classes": options.n_classes(classes),
        "has_text": any(spec.has_text for shard in shards for spec in shard.models), "names": (*others,),
        "divergences": options.divergences, "tokenizer": tokenizer,
    }  # fmt: skip
    compare = functools.partial(compare_shard, options=options, names=(*others,))
    results = run.map(compare, shards, schema)
    return _comparisons(shards, results, abouts, options, firsts, run.handles)


def _comparisons(
    shards: Sequence[Shard], results: Sequence[ComparedShard], abouts: Sequence[dict[str, Any]],
    options: Options, firsts: list[int], handles: Handles,
) -> Comparisons[Comparison]:  # fmt: skip
    """Make the figures of all shards together, of each candidate."""
    parts = [_numbered(result, first) for result, first in zip(results, firsts, strict=True)]
    types = _types(shards, options, firsts, handles)
    rows = sum(shard.rows for shard in shards)
    of_windows = window_figures((shard.facts() for shard in shards), options)
    n_left = rows - sum(shard.n_scored_rows for shard in shards)
    shared: dict[str, Any] = {
        "base": abouts[0]["base"],
        "base_kind": shards[0].spec.kind,
        "files": [shard.path for shard in shards],
        "shape": (rows, shards[0].shape[-1]),
        "classes": options.classes,
        "n_without_next": n_left - of_windows.get("n_context", 0),
        **of_windows,
        "fits_better_shifted": sum((part.shift_sample for part in results), ShiftSample()).fits_better,
    }
    hashed = IdsHash.of_parts(results).total
    found: Comparisons[Comparison] = Comparisons()
    for number, (given, columns) in enumerate(zip(abouts, joined(parts), strict=True)):
        comparison = comparison_of(options.definitions, columns, temperature=options.temperature)
        about = shared | given
        own, other = shards[0].spec, shards[0].models[number + 1]
        about |= {"kind": other.kind, "n_ignored": rows - n_left - comparison.count}
        heads = {"base_head": own.head_figures, "head": other.head_figures}
        about |= {name: head for name, head in heads.items() if head is not None}
        if types is not None:
            table = comparison.by(types)
            about["by_token_type"] = [row | {"group": TYPES[row["group"]]} for row in rows_of(table)]
        if comparison.sequences is not None and len(shards) > 1 and not shards[0].shares_numbers:
            about["sequences"] = _with_files(rows_of(comparison.sequences), shards, firsts)
        rms = [[one for result in results for one in result.rms[model]] for model in (0, number + 1)]
        if any(rms):
            known = [(about.get(name) or {}).get("norm") is not None for name in ("base_head", "head")]
            about["norm_seems_missing"] = any(map(norm_seems_missing, rms, known))
        are_cut = comparison.left_out is not None
        are_widened = options.classes == "all" and other.classes != own.classes
        signed = {
            **{name: n for name, n in of_windows.items() if name != "n_context"},
            "shift": "yes" if options.shift else None,
            "kind": either(other.kind, own.kind),
            "dtype": either(_dtypes(shards, number + 1), _dtypes(shards, 0)),
            "classes": options.classes if are_cut or are_widened else None,
            "ignored": about["n_ignored"],
            "ids": hashed if comparison.has_targets else None,
            **head_fields(other.head_figures, own.head_figures),
        }
        found[given["name"]] = described(comparison, about, signed)
    return found


def _dtypes(shards: Sequence[Shard], model: int) -> str:
    """The dtypes of the scores of a model."""
    return ", ".join(sorted({shard.models[model].dtype for shard in shards}))


def _first_numbers(shards: Sequence[Shard], options: Options, handles: Handles) -> list[int]:
    """What is added to the sequence numbers of each shard to make them unique; 0 if all share one numbering."""
    firsts = [0]
    for shard in () if shards[0].shares_numbers else shards:
        numbers = handles.open_shard(shard, options).sequences.numbers(0, shard.rows)
        firsts.append(firsts[-1] + int(numbers.max(initial=-1)) + 1)
        if firsts[-1] >= 2**63 and len(shards) > 1:
            got, fits = "holds numbers of sequences that are too high", "hold lower ones, which are counted on"
            raise_error("content", path=shard.segments.path if shard.segments else shard.path, got=got, fits=fits)
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


def _types(shards: Sequence[Shard], options: Options, firsts: list[int], handles: Handles) -> Array | None:
    """Index into `TYPES` of each token that is compared; None if no shard holds any text."""
    words: list[Array] = []
    numbers: list[Array] = []
    masks: list[Array] = []
    is_known = False
    for shard, first in zip(shards, firsts, strict=True):
        compared, stored = handles.open_shard(shard, options), open_stored(shard, options, handles)
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
