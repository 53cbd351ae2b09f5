"""The comparison of sources with all classes: shards are planned, compared and combined."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.columns import OF_TARGETS
from tokenloss._comparison.comparison import comparison_of, described
from tokenloss._comparison.comparisons import Comparisons
from tokenloss._core.errors import raise_error
from tokenloss._core.result import rows_of
from tokenloss._core.signature import IdsHash, either, head_fields
from tokenloss._evaluation.compared_shard import ComparedShard, compare_shard, joined
from tokenloss._evaluation.parts import window_figures
from tokenloss._evaluation.plan import planned
from tokenloss._evaluation.results import ShiftSample
from tokenloss._evaluation.rows import norm_seems_missing
from tokenloss._evaluation.shards import open_stored
from tokenloss._evaluation.sink import Block, schema_of
from tokenloss._evaluation.token_bytes import pieces_of
from tokenloss.formats.tokenizers.token_text import byte_encoder, decoded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenloss._comparison.comparison import Comparison
    from tokenloss._core.types import Array, BoolArray, Columns
    from tokenloss._evaluation.options import Options
    from tokenloss._evaluation.run import Run
    from tokenloss._evaluation.shards import Handles, Shard
    from tokenloss._evaluation.sink import Schema
    from tokenloss.formats.scores import Scores
    from tokenloss.formats.tokenizers import Tokenizer


_PLACES = ("file", "row", "sequence", "position", "target")
_COLUMNS = ("kept", "base_nll", "nll", "kl", "delta_p", "is_same_top", "base_top_p")
_SEQUENCES = ("file", "sequence", "count", "loss", "base_loss", "loss_difference", "kl", "delta_p", "same_top")

TYPES = ("word", "word part", "number", "punctuation", "white space", "other")
_WORD, _PART, _NUMBER, _PUNCTUATION, _SPACE, _OTHER = range(len(TYPES))
_SPECIAL = re.compile(r"<.+>|\[[A-Z]+\]")  # as <|endoftext|>, </s> and [CLS]; bytes, too


def compare_rows(
    base: Scores, others: Mapping[str, Scores], abouts: Sequence[dict[str, Any]], options: Options, run: Run,
    tokenizer: Tokenizer | None = None,
) -> Comparisons[Comparison]:  # fmt: skip
    """Compare all rows of candidates with those of the base, which has the targets and segment ids of all.

    `abouts` have the name and size of each candidate, and the names of its files and of the base's.
    """
    shards = planned(base, [*others.values()], options, run.handles)
    firsts = _first_numbers(shards, options, run.handles)
    schema = _schema(shards, (*others,), options, run.sinks.top_k, tokenizer)
    results = run.map(functools.partial(compare_shard, options=options, names=(*others,)), shards, schema)
    found = _comparisons(shards, results, abouts, options, firsts, run.handles)
    run.sinks.finish(found, lambda: Block({}, {name: _sequences(one, shards, firsts) for name, one in found.items()}))
    return found


def _schema(
    shards: Sequence[Shard], names: tuple[str, ...], options: Options, top_k: int, tokenizer: Tokenizer | None
) -> Schema:
    """The rows that sinks get."""
    has_text = tokenizer is not None or any(spec.has_text for shard in shards for spec in shard.models)
    divergences = (*options.divergences, *(["acceptance"] * ("tv" in options.divergences)))
    tokens = (*_PLACES, *(["text"] * has_text), *_COLUMNS, *divergences)
    top_k = min(top_k, options.n_classes(min(spec.classes for spec in shards[0].models)))
    bytes_of = None if tokenizer is None else functools.partial(pieces_of, tokenizer=tokenizer)
    unknown = OF_TARGETS if shards[0].target_type == "none" else ()
    return schema_of(tokens, (*_SEQUENCES, *divergences), names, top_k, bytes_of, unknown)


def _sequences(comparison: Comparison, shards: Sequence[Shard], firsts: list[int]) -> Columns:
    """The table of a candidate's sequences, for sinks; a sequence that may go on in other files has the file -1."""
    table = dict(comparison.sequences or {})
    if table and "tv" in comparison.divergences:
        table |= {"acceptance": (comparison.acceptance().sequences or {})["acceptance"]}
    if not table or (len(shards) > 1 and not shards[0].shares_numbers):
        return _with_files(table, firsts) if table else table
    return table | {"file": np.full(table["sequence"].size, -1 if len(shards) > 1 else 0)}


def _with_files(table: Columns, firsts: list[int]) -> Columns:
    """A table of sequences with the number of the file of each, and its number in that file."""
    files = np.searchsorted(firsts, table["sequence"], "right") - 1
    return table | {"sequence": table["sequence"] - np.array(firsts)[files], "file": files}


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
            rows_of_sequences = rows_of(_with_files(comparison.sequences, firsts))
            about["sequences"] = [row | {"file": shards[row["file"]].path} for row in rows_of_sequences]
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


def token_types(text: Array, is_first: BoolArray) -> Array:
    """Index into `TYPES` of each token, given its text (None where unknown) and whether it is the first of its text."""
    tokens: list[str | None] = [None if token is None else str(token) for token in text.tolist()]
    known: dict[str, int] = {}
    types = np.full(len(tokens), _OTHER, np.int8)
    after_space = True
    plain = decoded(tokens, byte_encoder(tokens))
    for i, (token, characters, first) in enumerate(zip(tokens, plain, is_first.tolist(), strict=True)):
        if token is None or characters is None or _SPECIAL.fullmatch(token):
            after_space = True
            continue
        if characters not in known:
            known[characters] = _type_of(characters)
        kind = known[characters]
        types[i] = _WORD if kind == _PART and (first or after_space or characters[0].isspace()) else kind
        after_space = characters[-1:].isspace()
    return types


def _type_of(characters: str) -> int:
    """Type of a text. A word counts as a part of one, until what stands before it shows that it begins there."""
    word = characters.strip()
    if not word:
        return _SPACE if characters else _OTHER
    if "\N{REPLACEMENT CHARACTER}" in word:
        return _OTHER
    categories = {unicodedata.category(character)[0] for character in word}
    if "L" in categories:
        return _PART
    if "N" in categories:
        return _NUMBER
    return _PUNCTUATION if categories <= {*"PS"} else _OTHER
