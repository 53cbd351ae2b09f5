"""Compares the rows of a shard of the base with those of the candidates, block by block."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._comparison.columns import (
    COLUMNS,
    check_normalized,
    join,
    logs,
    new_columns,
    pair_columns,
    widened,
    without_losses,
)
from tokenloss._comparison.drafts import acceptance
from tokenloss._comparison.linear_compare import linear_pair_columns
from tokenloss._core import jobs
from tokenloss._core.arguments import FURTHER_DIVERGENCES
from tokenloss._core.dtypes import CheckedArray, as_float_array
from tokenloss._core.errors import with_file_names, worded
from tokenloss._core.projection import MAX_TILE_ROWS, Projection
from tokenloss._core.signature import IdsHash
from tokenloss._core.validation import as_positions, as_scores, scores_of_shape
from tokenloss._evaluation import checks
from tokenloss._evaluation.checkpoint import record
from tokenloss._evaluation.plan import rows_per_block
from tokenloss._evaluation.results import ShiftSample
from tokenloss._evaluation.score import SHIFT_SAMPLE, ShiftSampler, row_functions, scores_at, scores_of_kind
from tokenloss._evaluation.shards import LEFT_OUT
from tokenloss._evaluation.sink import ComparedBlock
from tokenloss._scores.linear import linear_token_scores
from tokenloss._scores.softmax import log_softmax
from tokenloss._scores.token_scores import token_scores
from tokenloss.formats.mapped import check_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    from tokenloss._core.types import Array, BoolArray, Columns, IntArray
    from tokenloss._evaluation.options import Options
    from tokenloss._evaluation.run import Work
    from tokenloss._evaluation.shards import Shard
    from tokenloss._scores.token_scores import TokenScores
    from tokenloss.formats.scores_file import LmHead, ScoresFile

    _Compared: TypeAlias = tuple[Columns, TokenScores | None, TokenScores | None]  # its columns, base, own scores

# columns of the base, which are the same for each candidate; base_top_p depends on the dtype of the other model, and is
# nan where that has a nan
_OF_BASE = ("base_nll", "kept", "base_left_out", "segment_ids")


@record
class ComparedShard(NamedTuple):
    """Result of a shard, or of a block: columns of the rows that are compared."""

    base: Columns
    others: list[Columns]  # of each candidate
    shift_sample: ShiftSample = ShiftSample()
    rms: tuple[tuple[float, ...], ...] = ()  # of the base and of each candidate, as in `ShardResult`
    ids_sum: int = 0  # as in `ShardResult`, and so is the next
    ids_ends: Array = np.empty(0, np.int64)

    @classmethod
    def of(cls, columns: Sequence[Columns]) -> ComparedShard:
        """Take the columns of the base out of those of each candidate."""
        base = {name: column for name, column in columns[0].items() if name in _OF_BASE}
        return cls(base, [{name: own[name] for name in own if name not in _OF_BASE} for own in columns])

    @property
    def n_tokens(self) -> int:
        """The number of tokens."""
        return int(np.count_nonzero(self.base["kept"]))


def compare_shard(shard: Shard, work: Work, options: Options, names: Sequence[str] = ()) -> ComparedShard:
    """Compare the rows of a shard, block by block; `names` are those of the candidates."""
    run = _Run(shard, work, options, names)
    start = 0
    for rows in run.base.file.blocks(run.max_rows):
        run.take(rows, slice(start, start + len(rows)))
        start += len(rows)
    if work.emit and not start:  # so that there are columns if no block comes
        none, new = np.empty(0, np.int64), new_columns(0, options.divergences)
        scores = token_scores(np.empty((0, work.top_k)), none, top_k=work.top_k) if work.top_k else None
        for name in names:
            work.emit(ComparedBlock(name, new, none, None, 0, none, none, none, scores, scores))
    return run.result()


class _Model:
    """The file of a model, whose rows are read in order."""

    def __init__(
        self, file: ScoresFile, first: checks.FirstRows, max_rows: int, classes: int, temperature: float
    ) -> None:
        self.file, self.first, self._blocks, self._classes = file, first, file.blocks(max_rows), classes
        self._temperature = temperature or 1.0  # greedy decoding has the distributions at 1
        self._left: Array | None = None  # rows that were read, but come after the base's block

    def read(self, n: int) -> Array:
        """Read the next rows."""
        rows = next(self._blocks) if self._left is None else self._left
        while len(rows) < n:
            rows = np.concatenate([rows, next(self._blocks)])
        self._left = rows[n:] if len(rows) > n else None
        return rows[:n]

    @property
    def kind(self) -> str:
        """The kind that `compare` is given. Log-probabilities count as logits, so that classes can be left out."""
        return "probs" if self.file.kind == "probs" and self._temperature == 1 else "logits"

    def scores(self, name: str, rows: Array, kept: BoolArray, workers: int | None) -> Array:
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
    """Bytes that a row counts for. Logits of hidden states count for less, so that more rows share the weights."""
    return file.row_bytes if file.lm_head is None else max(file.row_bytes, file.shape[-1])


class _Tokens(NamedTuple):
    """Ids, mask, text and places of a block of rows."""

    target: Array
    scored: BoolArray | None  # the rows that are compared; None for all
    text: Array | None
    row: IntArray
    sequence: IntArray
    position: IntArray

    def selected(self, array: Any) -> Any:
        """The part of an array that belongs to the rows that are compared."""
        return array if array is None or self.scored is None else array[self.scored]

    def compared(self) -> dict[str, Any]:
        """Fields of a `ComparedBlock`, of the rows that are compared."""
        fields = {name: self.selected(array) for name, array in self._asdict().items() if name != "scored"}
        return fields | {"file": 0}


class _Run:
    """The comparison of a shard so far."""

    def __init__(self, shard: Shard, work: Work, options: Options, names: Sequence[str]) -> None:
        opened = work.handles.open_shard(shard, options)
        self._names = names
        self._options, self._workers, self._advance = options, work.workers, work.advance
        self._emit, self._top_k = work.emit, work.top_k if work.emit else 0
        files = opened.file, *opened.others
        # hidden states are projected tile by tile, if all models have them and the same transform of the logits
        transforms = {file.lm_head and (file.lm_head.logit_scale, file.lm_head.softcap) for file in files}
        self._are_hidden = options.definitions == "exact" and len(transforms) == 1 and None not in transforms
        sizes = {file.shape[-1] for file in files}
        self._are_hidden &= options.classes != "all" or len(sizes) == 1
        classes = options.n_classes(max(sizes))
        row_bytes = max(map(bytes_per_row, files)) * max(1, len(files) // 4)  # each file's reader keeps a block
        self.max_rows = MAX_TILE_ROWS if self._are_hidden else rows_per_block(row_bytes)
        words = [worded("kind", "base_kind")] + ["kind"] * len(opened.others)
        self.base, *self._others = (
            _Model(file, checks.FirstRows(file, spec, option), self.max_rows, classes, options.temperature)
            for file, spec, option in zip(files, shard.models, words, strict=True)
        )
        self._sequences = opened.sequences
        self._ids: Any = opened.targets.reshape(-1)
        self._has_targets = opened.has_targets
        self._ignore_index = options.ignore_index if opened.has_targets else LEFT_OUT
        self._scored, self._text = (
            None if array is None else array.reshape(-1) for array in (opened.scored, opened.tokens)
        )
        # llama.cpp prints errors that are not clustered; so do we under its definitions, unless segment ids are given
        self._is_clustered = opened.sequences.are_given or (opened.sequences.exist and options.definitions == "exact")
        samples = options.shift is None and opened.has_targets and not any(file.is_shifted for file in files)
        losses = row_functions(opened.file).losses
        left = SHIFT_SAMPLE if samples else 0
        self._sampler = ShiftSampler(losses, options.ignore_index, opened.sequences.are_given, left)
        self._parts: list[ComparedShard] = []  # of each block
        self._hash, self._split = IdsHash(), shard.split

    def take(self, rows: Array, part: slice) -> None:
        """Compare the next rows of the base with those of each candidate."""
        check_map(self._ids)
        ids, numbers = np.array(self._ids[part]), self._sequences.numbers(part.start, part.stop)
        scored, text = (None if array is None else array[part] for array in (self._scored, self._text))
        places = np.arange(part.start, part.stop), np.maximum(numbers, -1)
        tokens = _Tokens(ids, scored, text, *places, self._sequences.next_positions(part.start, numbers))
        kept = np.ones(len(numbers), np.bool_) if scored is None else scored
        if self._ignore_index is not None:
            kept = kept & (ids != self._ignore_index)
        self.base.first.check(rows, kept)
        with with_file_names(self.base.file.path):
            self._sampler.update(rows, ids, numbers, kept)
        self._advance(rows.nbytes)
        compared = (self._by_projection if self._are_hidden else self._by_logits)(rows, tokens, kept)
        found: list[Columns] = []
        for columns, base_scores, scores in compared:
            if self._is_clustered:
                columns["segment_ids"] = numbers
            columns = {name: tokens.selected(column) for name, column in columns.items()}
            if not self._has_targets:
                columns = without_losses(columns)
            if self._emit:
                name, fields = self._names[len(found)], tokens.compared()
                fields["target"] = fields["target"] if self._has_targets else np.full(len(fields["row"]), -1)
                of_pair = {one: columns[one] for one in (*COLUMNS, *FURTHER_DIVERGENCES) if one in columns}
                if "tv" in columns:
                    of_pair["acceptance"] = acceptance(columns, self._options.temperature)
                self._emit(ComparedBlock(name, of_pair, **fields, base_scores=base_scores, scores=scores))
            found.append(columns)
        self._parts.append(ComparedShard.of(found))
        if self._has_targets:
            mask = found[0]["kept"]
            self._hash.add(IdsHash.of(tokens.selected(ids)[mask], tokens.selected(numbers)[mask]))

    def _by_logits(self, rows: Array, tokens: _Tokens, kept: BoolArray) -> Iterator[_Compared]:
        """Yield the columns and scores of each candidate, whose logits of a block are made as a whole."""
        options, file = self._options, self.base.file
        with with_file_names(file.path):
            base = self.base.scores("base_logits", rows, kept, self._workers)
        if options.definitions == "llama.cpp" and file.kind in ("logits", "hidden_states"):
            # llama.cpp takes log-probabilities of the base as they are
            base = jobs.of_known_kind(log_softmax)(base.astype(np.float32) if base.itemsize < 4 else base)
        with with_file_names(file.path):
            base_scores = self._scores(self.base.top_scores(base), tokens)
        pairing: Any = {"definitions": options.definitions, "divergences": options.divergences,
                        "base_kind": self.base.kind, "classes": options.classes, "temperature": options.temperature,
                        "where": tokens.scored, "ignore_index": self._ignore_index,
                        "workers": self._workers}  # fmt: skip
        first = f"rows from {tokens.row[0]} on" if tokens.row[0] else None  # errors count from there
        for model in self._others:
            rows = model.read(len(tokens.position))
            model.first.check(rows, kept)
            with with_file_names(file.path, model.file.path, first):
                compared = model.scores("logits", rows, kept, self._workers)
                named = {"logits": compared}
                columns = pair_columns(base, named, tokens.target, kind=model.kind, **pairing)["logits"]
                scores = self._scores(model.top_scores(compared), tokens)
            self._advance(rows.nbytes)
            yield columns, base_scores, scores

    def _by_projection(self, rows: Array, tokens: _Tokens, kept: BoolArray) -> Iterator[_Compared]:
        """Yield the columns and scores of each candidate; each tile of logits is compared as soon as it is made."""
        options = self._options
        blocks = [(self.base, rows), *((model, model.read(len(rows))) for model in self._others)]
        for model, block in blocks[1:]:
            model.first.check(block, kept)
            self._advance(block.nbytes)
        with with_file_names(*(model.file.path for model, _ in blocks)):
            base, *others = (model.projection(block) for model, block in blocks)
            classes = options.n_classes(base.scores.classes)
            shape = scores_of_shape("logits", (len(rows), classes), -1)
            positions = as_positions(
                "targets", tokens.target, shape, self._ignore_index, tokens.scored, distributions=False
            )
            named = {str(number): other for number, other in enumerate(others)}
            of_columns = positions, self.base.transform, self._workers, options.divergences
            columns = linear_pair_columns(base, named, *of_columns)
            base_scores, *scores = (self._scores(model.token_scores(block), tokens) for model, block in blocks)
        yield from zip(columns.values(), itertools.repeat(base_scores), scores, strict=False)

    def _scores(self, function: Callable[..., TokenScores], tokens: _Tokens) -> TokenScores | None:
        """Scores of a model with its likeliest classes; None if no output needs them."""
        if not self._top_k:
            return None
        options: Any = {"where": tokens.scored, "ignore_index": self._ignore_index, "workers": self._workers}
        scores = function(tokens.target, top_k=self._top_k, **options)
        return scores if tokens.scored is None else scores_at(scores, tokens.scored)

    def result(self) -> ComparedShard:
        """The result of all rows."""
        rms = tuple(model.first.rms for model in (self.base, *self._others))
        columns = (
            joined(self._parts) if self._parts else [new_columns(0, self._options.divergences) for _ in self._others]
        )
        return ComparedShard.of(columns)._replace(
            shift_sample=self._sampler.sample, rms=rms, ids_sum=self._hash.total,
            ids_ends=self._hash.ends(self._split),
        )  # fmt: skip


def joined(parts: Sequence[ComparedShard]) -> list[Columns]:
    """Join the parts of each candidate's columns, in order; all candidates share the arrays of the base."""
    found: list[Columns] = []
    for number in range(len(parts[0].others)):
        columns = join([part.base | part.others[number] for part in parts])
        found.append(columns | {name: found[0][name] for name in _OF_BASE if found and name in columns})
    return found
