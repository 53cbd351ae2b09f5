"""The comparison of sources with all classes: rows of shards are compared block by block, and combined."""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from tokenloss._comparison.columns import (
    OF_TARGETS,
    check_normalized,
    coarsen_rounding,
    join,
    logs,
    new_columns,
    pair_columns,
    widened,
    without_losses,
)
from tokenloss._comparison.comparison import comparison_of, described
from tokenloss._comparison.comparisons import Comparisons
from tokenloss._comparison.drafts import acceptance
from tokenloss._comparison.linear_compare import linear_pair_columns
from tokenloss._comparison.parity import with_noise
from tokenloss._comparison.sketched import sketch_columns, sketch_scores, student_of
from tokenloss._core import jobs
from tokenloss._core.dtypes import CheckedArray, as_float_array, without_bfloat16
from tokenloss._core.errors import refuse, with_file_names, worded
from tokenloss._core.projection import MAX_TILE_ROWS, Projection
from tokenloss._core.result import rows_of
from tokenloss._core.signature import IdsHash, either, head_fields
from tokenloss._core.validation import as_positions, as_scores, scores_of_shape
from tokenloss._evaluation.calibrated import calibration_of_files, check_calibrated
from tokenloss._evaluation.checkpoint import record
from tokenloss._evaluation.parts import window_counts
from tokenloss._evaluation.plan import planned, rows_per_block
from tokenloss._evaluation.results import ShiftSample
from tokenloss._evaluation.rows import RowReader, norm_seems_missing, scores_of_kind
from tokenloss._evaluation.score import scores_at
from tokenloss._evaluation.sequences import GroupCodes, groups_of
from tokenloss._evaluation.shards import LEFT_OUT, open_stored
from tokenloss._evaluation.sink import Block, schema_of, tops_of
from tokenloss._evaluation.token_bytes import pieces_of
from tokenloss._scores.linear import linear_token_scores
from tokenloss._scores.softmax import log_softmax
from tokenloss.formats.sketch_file import check_sums, logits_of
from tokenloss.formats.tokenizers.token_text import byte_encoder, decoded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import TypeAlias

    from tokenloss._comparison.compared_tokens import About
    from tokenloss._comparison.comparison import Comparison
    from tokenloss._core.types import Array, BoolArray, Columns
    from tokenloss._evaluation.options import Options
    from tokenloss._evaluation.rows import RowBlock
    from tokenloss._evaluation.run import Run, Work
    from tokenloss._evaluation.shards import Handles, OpenShard, Shard
    from tokenloss._evaluation.sink import Schema
    from tokenloss._scores.token_scores import TokenScores
    from tokenloss.formats.scores import Scores
    from tokenloss.formats.scores_file import LmHead, ScoresFile
    from tokenloss.formats.tokenizers import Tokenizer

    _Compared: TypeAlias = tuple[Columns, TokenScores | None, TokenScores | None]


PLACES = ("file", "row", "sequence", "position", "target")
COLUMNS = ("kept", "base_nll", "nll", "kl", "delta_p", "is_same_top", "base_top_p")
SEQUENCES = ("file", "sequence", "count", "loss", "base_loss", "loss_difference", "kl", "delta_p", "same_top",
             "first_difference", "first_flip")  # fmt: skip

TYPES = ("word", "word part", "number", "punctuation", "white space", "other")
_WORD, _PART, _NUMBER, _PUNCTUATION, _SPACE, _OTHER = range(len(TYPES))
_SPECIAL = re.compile(r"<.+>|\[[A-Z]+\]")  # as <|endoftext|>, </s> and [CLS]; bytes, too


def compare_rows(
    base: Scores, others: Mapping[str, Scores], abouts: Sequence[About], options: Options, run: Run,
    tokenizer: Tokenizer | None = None, noise: str = "",
) -> Comparisons[Comparison]:  # fmt: skip
    """Compare all rows of candidates with the rows of the base, which has the targets and segment ids of all.

    `abouts` have the name and size of each candidate, and the names of its files and of the base's. `noise` is the name
    of the candidate that is a second run of the base, if there is one.
    """
    shards = planned(base, [*others.values()], options, run.handles)
    models = range(1 + len(others)) if options.calibration else ()
    for shard, model in itertools.product(shards, models):
        check_calibrated(shard, model)
    firsts = first_numbers(shards, options, run.handles)
    schema = _schema(shards, (*others,), options, run.sinks.top_k, tokenizer)
    function = functools.partial(compare_shard, options=options, names=(*others,))
    results = run.map(function, shards, schema, are_candidates=base.level == "sketch")  # no row is in a file of its own
    result = _comparisons(shards, results, abouts, options, firsts, run.handles)
    if models:
        base_calibration, *own = (calibration_of_files(shards, run, options, model) for model in models)
        for name, calibration in zip(result, own, strict=True):
            result[name] = replace(result[name], calibration=calibration, base_calibration=base_calibration)
    if noise:
        result |= {name: with_noise(one, result[noise]) for name, one in result.items() if name != noise}
    run.sinks.finish(result, lambda: Block({}, {name: _sequences(one, shards, firsts) for name, one in result.items()}))
    return result


def _schema(
    shards: Sequence[Shard], names: tuple[str, ...], options: Options, top_k: int, tokenizer: Tokenizer | None
) -> Schema:
    """The rows that sinks get."""
    has_text = tokenizer is not None or any(spec.has_text for shard in shards for spec in shard.models)
    divergences = (*options.divergences, *(["acceptance"] * ("tv" in options.divergences)))
    tokens = (*PLACES, *(["text"] * has_text), *COLUMNS, *divergences)
    top_k = min(top_k, options.n_classes(min(spec.classes for spec in shards[0].models)))
    top_k = min(top_k, shards[0].spec.n_listed or top_k)
    bytes_of = None if tokenizer is None else functools.partial(pieces_of, tokenizer=tokenizer)
    unknown = OF_TARGETS if shards[0].target_type == "none" else ()
    return schema_of(tokens, (*SEQUENCES, *divergences), names, top_k, bytes_of, unknown)


def _sequences(comparison: Comparison, shards: Sequence[Shard], firsts: list[int]) -> Columns:
    """The table of a candidate's sequences, for sinks; `file` is -1 for sequences that may continue in other files."""
    table = dict(comparison.sequences or {})
    if table and "tv" in comparison.divergences:
        table |= {"acceptance": (comparison.acceptance().sequences or {})["acceptance"]}
    if not table or (len(shards) > 1 and not shards[0].shares_numbers):
        return _with_files(table, firsts) if table else table
    is_one = len(shards) == 1 or shards[0].spec.span is not None
    return table | {"file": np.full(table["sequence"].size, 0 if is_one else -1)}


def _with_files(table: Columns, firsts: list[int]) -> Columns:
    """A table of sequences with the number of the file of each, and its number in that file."""
    files = np.searchsorted(firsts, table["sequence"], "right") - 1
    return table | {"sequence": table["sequence"] - np.array(firsts)[files], "file": files}


def _comparisons(
    shards: Sequence[Shard], results: Sequence[ComparedShard], abouts: Sequence[About],
    options: Options, firsts: list[int], handles: Handles,
) -> Comparisons[Comparison]:  # fmt: skip
    """The comparison of each candidate over all shards."""
    parts = [_numbered(result, first) for result, first in zip(results, firsts, strict=True)]
    types = _types(shards, options, firsts, handles)
    groups = [part.groups for part in results if part.groups is not None]
    if options.by == "file":
        groups = [one._replace(labels=[shard.path]) for one, shard in zip(groups, shards, strict=True)]
    rows = sum(shard.rows for shard in shards)
    window_facts = window_counts((shard.facts() for shard in shards), options)
    n_left = rows - sum(shard.n_scored_rows for shard in shards)
    shared: About = {
        "base": abouts[0]["base"],
        "base_kind": shards[0].spec.kind,
        "files": [*dict.fromkeys(part.path for shard in shards for part in shard.spec.parts or (shard.spec,))],
        "shape": (rows, shards[0].shape[-1]),
        "classes": options.classes,
        "n_without_next": n_left - window_facts.get("n_context", 0),
        **cast("About", window_facts),
        "fits_better_shifted": sum((part.shift_sample for part in results), ShiftSample()).fits_better,
    }
    hashed = IdsHash.from_parts(results).total
    facts = handles.open(shards[0].spec).sketch if shards[0].spec.kind == "sketch" else None
    drawn = None if facts is None else (facts.top, facts.tail)
    comparisons: Comparisons[Comparison] = Comparisons()
    for number, (given, columns) in enumerate(zip(abouts, joined(parts), strict=True)):
        comparison = comparison_of(options.definitions, columns, temperature=options.temperature, drawn=drawn)
        own, other = shards[0].spec, shards[0].models[number + 1]
        n_ignored = rows - n_left - comparison.count
        about: About = {**shared, **given, "kind": other.kind, "n_ignored": n_ignored}
        if own.head_facts is not None:
            about["base_head"] = own.head_facts
        if other.head_facts is not None:
            about["head"] = other.head_facts
        if types is not None:
            table = comparison.by(types)
            about["by_token_type"] = [row | {"group": TYPES[row["group"]]} for row in rows_of(table)]
        if options.by is not None:
            about |= groups_of(comparison, options.by, groups, shards[0].path)
        if comparison.sequences is not None and len(shards) > 1 and not shards[0].shares_numbers:
            rows_of_sequences = rows_of(_with_files(comparison.sequences, firsts))
            about["sequences"] = [row | {"file": shards[row["file"]].path} for row in rows_of_sequences]
        rms = [[one for result in results for one in result.rms[model]] for model in (0, number + 1)]
        if any(rms):
            known = [(head or {}).get("norm") is not None for head in (own.head_facts, other.head_facts)]
            about["norm_seems_missing"] = any(map(norm_seems_missing, rms, known))
        are_cut = comparison.left_out is not None
        are_widened = options.classes == "all" and other.classes != own.classes
        signed = {
            **{name: n for name, n in window_facts.items() if name != "n_context"},
            "shift": "yes" if options.shift else None,
            "kind": either(other.kind, own.kind),
            "dtype": either(_dtypes(shards, number + 1), _dtypes(shards, 0)),
            "classes": options.classes if are_cut or are_widened else None,
            "ignored": n_ignored,
            "ids": hashed if comparison.has_targets else None,
            **head_fields(other.head_facts, own.head_facts),
        }
        comparisons[given["name"]] = described(comparison, about, signed)
    return comparisons


def _dtypes(shards: Sequence[Shard], model: int) -> str:
    """The dtypes of the scores of a model."""
    return ", ".join(sorted({shard.models[model].dtype for shard in shards}))


def first_numbers(shards: Sequence[Shard], options: Options, handles: Handles) -> list[int]:
    """The number to add to the sequence numbers of each shard to make them unique; 0 if all share one numbering."""
    firsts = [0]
    for shard in () if shards[0].shares_numbers else shards:
        numbers = handles.open_shard(shard, options).sequences.numbers(0, shard.rows)
        firsts.append(firsts[-1] + int(numbers.max(initial=-1)) + 1)
        if firsts[-1] >= 2**63 and len(shards) > 1:
            got, fits = "has sequence numbers that are too high", "have lower ones: other files continue the count"
            refuse(shard.segments.path if shard.segments else shard.path, got, fits)
    return firsts[:-1] or [0] * len(shards)


def _numbered(result: ComparedShard, first: int) -> ComparedShard:
    """Add a number to the sequence numbers of a result."""
    ids = result.base.get("segment_ids")
    if ids is None or not first:
        return result
    return result._replace(base=result.base | {"segment_ids": np.where(ids < 0, ids, ids + first)})


def _types(shards: Sequence[Shard], options: Options, firsts: list[int], handles: Handles) -> Array | None:
    """Index into `TYPES` of each token that is compared; None if no shard contains text."""
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
    scored_types: Array = types[np.concatenate(masks)]
    return scored_types


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
    """Type of a text. A word counts as part of a word unless the text before it shows that it begins there."""
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


# -- a shard, block by block -------------------------------------------------------------------------------------------

# columns of the base, which are the same for each candidate; base_top_p depends on the dtype of the other model, and is
# nan where that has a nan
_OF_BASE = ("base_nll", "base_margin", "kept", "base_left_out", "segment_ids")


@record
class ComparedShard(NamedTuple):
    """Result of a shard, or of a block: columns of the rows that are compared."""

    base: Columns
    others: list[Columns]  # of each candidate
    shift_sample: ShiftSample = ShiftSample()
    rms: tuple[tuple[float, ...], ...] = ()  # of the base and of each candidate, as in `ShardResult`
    ids_sum: int = 0  # as in `ShardResult`, and so is the next
    ids_ends: Array = np.empty(0, np.int64)
    groups: GroupCodes | None = None  # of the rows that are compared

    @classmethod
    def of(cls, columns: Sequence[Columns]) -> ComparedShard:
        """The columns of the base, and the additional columns of each candidate."""
        base = {name: column for name, column in columns[0].items() if name in _OF_BASE}
        return cls(base, [{name: own[name] for name in own if name not in _OF_BASE} for own in columns])

    @property
    def n_tokens(self) -> int:
        """The number of tokens."""
        return int(np.count_nonzero(self.base["kept"]))


def compare_shard(shard: Shard, work: Work, options: Options, names: Sequence[str] = ()) -> ComparedShard:
    """The compared rows of a shard; `names` are the candidates' names."""
    opened = work.handles.open_shard(shard, options)
    pairing = _Pairing(opened, options, work)
    reader = RowReader(shard, opened, options, pairing.max_rows, work.advance, worded("kind", "base_kind"))
    parts, groups = list[ComparedShard](), list[GroupCodes]()
    for block in reader:
        compared = [*pairing.compared(block)]
        if work.emit:
            first_row = shard.spec.span.row if shard.spec.span else 0
            work.emit(_tokens(block, names, compared, options, opened.has_targets, first_row))
        parts.append(ComparedShard.of([columns for columns, *_ in compared]))
        groups += [] if block.groups is None else [block.groups._replace(codes=block.selected(block.groups.codes))]
    columns = joined(parts) if parts else [new_columns(0, options.divergences) for _ in opened.others]
    own = groups[0]._replace(codes=np.concatenate([one.codes for one in groups])) if groups else None
    rms = tuple(first.rms for first in reader.first)
    return ComparedShard.of(columns)._replace(rms=rms, groups=own, **reader.facts())


def _tokens(
    block: RowBlock, names: Sequence[str], compared: Sequence[_Compared], options: Options, has_targets: bool,
    first_row: int,
) -> Block:  # fmt: skip
    """The tokens of all candidates, for sinks: the rows that have a target."""
    first, base_scores, _ = compared[0]
    unknown = {} if has_targets else dict.fromkeys(OF_TARGETS, np.full(first["kept"].size, np.nan))
    first, models = unknown | first, dict[str, Any]()
    for name, (columns, *_) in zip(names, compared, strict=True):
        models[name] = {one: column for one, column in (unknown | columns).items() if one not in _OF_BASE}
        if "tv" in columns:
            models[name]["acceptance"] = acceptance(columns, options.temperature)
    tops = tops_of({"": base_scores} | {name: own for name, (*_, own) in zip(names, compared, strict=True)})
    shared = block.places(first_row) | {name: first[name] for name in _OF_BASE if name in first}
    if not has_targets:
        shared["target"] = np.full(len(shared["row"]), -1)
        tops = {name: one | {"rank": shared["target"]} for name, one in tops.items()}
    return Block({name: column for name, column in shared.items() if column is not None}, models, tops)


class _Model:
    """The scores of one model's rows: their first classes, divided by a temperature."""

    def __init__(self, file: ScoresFile, classes: int, temperature: float) -> None:
        self.file, self._classes = file, classes
        self._temperature = temperature or 1.0  # greedy decoding has the distributions at 1

    @property
    def kind(self) -> str:
        """The kind that `compare` is given. Log-probabilities count as logits, so that classes can be left out."""
        return "probs" if self.file.kind == "probs" and self._temperature == 1 else "logits"

    def logits(self, name: str, rows: Array, kept: BoolArray, workers: int | None) -> Array:
        """The logits of hidden states, or of probabilities with a temperature; other rows unchanged."""
        if self.file.lm_head is not None:
            return projected(rows, self.file.lm_head)
        if self.file.kind == "probs" != self.kind:
            check_normalized(as_scores(name, rows, -1, "probs"), kept, workers)
            return logs(CheckedArray(*as_float_array(name, rows)), kept).array
        return rows

    def top_scores(self, scores: Array) -> Callable[..., TokenScores]:
        """Make a function that scores rows by the first classes, whose probabilities need not add up to 1."""
        some = scores[:, : self._classes]
        if some.shape[1] < self._classes:
            some = widened(CheckedArray(*as_float_array("scores", some)), 1, self.kind, self._classes).array
        return functools.partial(scores_of_kind, some, kind=self.kind, logit_scale=1 / self._temperature)

    def projection(self, rows: Array) -> Projection:
        """Hidden states and their projection onto the vocabulary."""
        assert self.file.lm_head is not None
        return Projection(rows, self.file.lm_head.weight, self.file.lm_head.bias)

    @property
    def transform(self) -> tuple[float, float]:
        """The scale and the cap of the logits of hidden states, divided by the temperature; 0 for no cap."""
        head = self.file.lm_head
        assert head is not None
        return head.logit_scale / self._temperature, (head.softcap or 0.0) / self._temperature

    def token_scores(self, rows: Array) -> Callable[..., TokenScores]:
        """Make a function that scores hidden states by the first classes."""
        head, classes, (scale, cap) = self.file.lm_head, self._classes, self.transform
        assert head is not None
        bias = None if head.bias is None else head.bias[:classes]
        transform: Any = {"lm_head_bias": bias, "logit_scale": scale, "softcap": cap or None}
        return functools.partial(linear_token_scores, rows, head.weight[:classes], **transform)


def projected(hidden: Array, head: LmHead) -> Array:
    """Logits of hidden states. The weights are converted piece by piece, to need little memory."""
    is_double = 8 in (hidden.itemsize, head.weight.itemsize)
    states = hidden.astype(np.float64 if is_double else np.float32)
    logits = np.empty((len(states), len(head.weight)), states.dtype)
    step = rows_per_block(states.dtype.itemsize * max(1, states.shape[1]))
    with np.errstate(all="ignore"):  # infinities and nan are results
        for start in range(0, len(head.weight), step):
            part = slice(start, start + step)
            np.matmul(states, head.weight[part].astype(states.dtype).T, out=logits[:, part])
        if head.bias is not None:
            logits += head.bias.astype(logits.dtype)
        logits *= head.logit_scale
        if head.softcap is not None:
            logits = np.where(np.isinf(logits), logits, head.softcap * np.tanh(logits / head.softcap))
    return logits


def bytes_per_row(file: ScoresFile) -> int:
    """The bytes that a row counts as. Logits of hidden states count as fewer, so that more rows share the weights."""
    return file.row_bytes if file.lm_head is None else max(file.row_bytes, file.shape[-1])


class _Pairing:
    """Compares blocks of rows of a base with the same rows of candidates."""

    def __init__(self, opened: OpenShard, options: Options, work: Work) -> None:
        self._sketch = opened.file.sketch
        self._options, self._workers, self._top_k = options, work.workers, work.top_k if work.emit else 0
        self._has_targets = opened.has_targets
        self._ignore_index = options.ignore_index if opened.has_targets else LEFT_OUT
        files = opened.file, *opened.others
        # hidden states are projected tile by tile, if all models have them and the same transform of the logits
        transforms = {file.lm_head and (file.lm_head.logit_scale, file.lm_head.softcap) for file in files}
        sizes = {file.shape[-1] for file in files}
        self._are_hidden = options.definitions == "exact" and len(transforms) == 1 and None not in transforms
        self._are_hidden &= options.classes != "all" or len(sizes) == 1
        row_bytes = max(map(bytes_per_row, files)) * max(1, len(files) // 4)  # each file's reader keeps a block
        self.max_rows = MAX_TILE_ROWS if self._are_hidden else rows_per_block(row_bytes)
        classes = options.n_classes(max(sizes))
        self._models = [_Model(file, classes, options.temperature) for file in files]
        # llama.cpp prints errors that are not clustered; so do we under its definitions, unless segment ids are given
        self._is_clustered = opened.sequences.are_given or (opened.sequences.exist and options.definitions == "exact")

    def compared(self, block: RowBlock) -> Iterator[_Compared]:
        """The columns of each candidate at the rows that have a target, and the scores of both models."""
        by = self._by_sketch if self._sketch else self._by_projection if self._are_hidden else self._by_logits
        for columns, *scores in by(block):
            if self._is_clustered:
                columns["segment_ids"] = block.sequences
            columns = {name: block.selected(column) for name, column in columns.items()}
            base_scores, own_scores = (one and scores_at(block, one) for one in scores)
            yield columns if self._has_targets else without_losses(columns), base_scores, own_scores

    def _by_logits(self, block: RowBlock) -> Iterator[_Compared]:
        """The columns and scores of each candidate; the logits of all rows are made at once."""
        options, (base_model, *models) = self._options, self._models
        path, kind = base_model.file.path, base_model.file.kind
        with with_file_names(path):
            base = base_model.logits("base_logits", block.scores, block.kept, self._workers)
        if options.definitions == "llama.cpp" and kind in ("logits", "hidden_states"):
            # llama.cpp takes log-probabilities of the base as they are
            base = jobs.with_known_kind(log_softmax)(base.astype(np.float32) if base.itemsize < 4 else base)
        with with_file_names(path):
            base_scores = self._scores(base_model.top_scores(base), block)
        pairing: Any = {
            "definitions": options.definitions, "divergences": options.divergences, "base_kind": base_model.kind,
            "classes": options.classes, "temperature": options.temperature, "where": block.scored,
            "ignore_index": self._ignore_index, "workers": self._workers,
        }  # fmt: skip
        for model, rows in zip(models, block.others, strict=True):
            with with_file_names(path, model.file.path, block.place):
                logits = model.logits("logits", rows, block.kept, self._workers)
                columns = pair_columns(base, {"logits": logits}, block.ids, kind=model.kind, **pairing)["logits"]
                stored = base_model.file.dtype.name, model.file.dtype.name
                coarsen_rounding(columns, (base.dtype.name, logits.dtype.name), stored)
                scores = self._scores(model.top_scores(logits), block)
            yield columns, base_scores, scores

    def _by_sketch(self, block: RowBlock) -> Iterator[_Compared]:
        """The columns and scores of each candidate, whose rows estimate the divergences from a sketch of the base."""
        base, *models = self._models
        assert self._sketch is not None
        ids = np.where(block.kept, block.ids, 0)
        options: Any = {"ignore_index": None, "where": block.kept, "workers": self._workers}
        for model, rows in zip(models, block.others, strict=True):
            with with_file_names(base.file.path, model.file.path, block.place):
                given = model.logits("logits", rows, block.kept, self._workers)
                kind = "logits" if model.file.lm_head is not None else model.file.kind
                logits = logits_of(without_bfloat16(*as_float_array("logits", given)), kind, block.kept)
                scores = scores_of_kind(logits, ids, kind="logits", top_k=self._top_k, **options)
                check_sums(scores.logsumexp, kind, given)
                dtype = model.file.dtype.name
                student = student_of(logits, block.scores, self._sketch, scores, block.kept, dtype, self._workers)
                columns = sketch_columns(
                    block.scores, self._sketch, logits.shape[-1], student, block.kept, self._options.divergences
                )
            yield columns, sketch_scores(block.scores, self._top_k), scores if self._top_k else None

    def _by_projection(self, block: RowBlock) -> Iterator[_Compared]:
        """The columns and scores of each candidate; each tile of logits is compared as soon as it is made."""
        models, options, states = self._models, self._options, [block.scores, *block.others]
        with with_file_names(*(model.file.path for model in models)):
            base, *others = (model.projection(rows) for model, rows in zip(models, states, strict=True))
            shape = scores_of_shape("logits", (len(block.ids), options.n_classes(base.scores.classes)), -1)
            positions = as_positions("targets", block.ids, shape, self._ignore_index, block.scored, distributions=False)
            named = {str(number): other for number, other in enumerate(others)}
            arguments = positions, models[0].transform, self._workers, options.divergences
            columns = linear_pair_columns(base, named, *arguments)
            base_scores, *scores = (
                self._scores(model.token_scores(rows), block) for model, rows in zip(models, states, strict=True)
            )
        yield from zip(columns.values(), itertools.repeat(base_scores), scores, strict=False)

    def _scores(self, function: Callable[..., TokenScores], block: RowBlock) -> TokenScores | None:
        """The scores of a model with its likeliest classes; None if no output needs them."""
        if not self._top_k:
            return None
        options: Any = {"where": block.scored, "ignore_index": self._ignore_index, "workers": self._workers}
        return function(block.ids, top_k=self._top_k, **options)


def joined(parts: Sequence[ComparedShard]) -> list[Columns]:
    """Join the parts of each candidate's columns, in order; all candidates share the arrays of the base."""
    tables: list[Columns] = []
    for number in range(len(parts[0].others)):
        columns = join([part.base | part.others[number] for part in parts])
        tables.append(columns | {name: tables[0][name] for name in _OF_BASE if tables and name in columns})
    return tables
