"""Compares the rows of a shard of the base with those of the candidates, block by block."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._comparison.columns import COLUMNS, join, new_columns, pair_columns, without_losses
from tokenloss._comparison.draft_columns import acceptance, draft_columns
from tokenloss._comparison.linear_columns import linear_pair_columns
from tokenloss._core import jobs
from tokenloss._core.arguments import FURTHER_DIVERGENCES
from tokenloss._core.errors import with_file_names
from tokenloss._core.projection import MAX_TILE_ROWS, Projection
from tokenloss._core.signature import IdsHash
from tokenloss._core.validation import as_positions, scores_of_shape
from tokenloss._evaluation import checks
from tokenloss._evaluation.plan import LEFT_OUT, open_shard, rows_per_block
from tokenloss._evaluation.results import ShiftSample
from tokenloss._evaluation.score import SHIFT_SAMPLE, ShiftSampler, row_functions, scores_at, scores_of_kind
from tokenloss._evaluation.sink import ComparedBlock
from tokenloss._scores.softmax import log_softmax
from tokenloss._scores.token_scores import token_scores
from tokenloss.formats.mapped import check_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    from tokenloss._core.types import Array, BoolArray, Columns, IntArray
    from tokenloss._evaluation.options import Options
    from tokenloss._evaluation.plan import OpenShard, Shard
    from tokenloss._evaluation.score import _Sink
    from tokenloss._scores.token_scores import TokenScores
    from tokenloss.formats.scores_file import LmHead, ScoresFile

    _Compared: TypeAlias = tuple[Columns, TokenScores | None, TokenScores | None]  # its columns, base, own scores

# columns of the base, which are the same for each candidate; base_top_p depends on the dtype of the other model, and is
# nan where that has a nan
_OF_BASE = ("base_nll", "kept", "base_left_out", "segment_ids")


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


def compare_shard(
    shard: Shard, options: Options, workers: int | None, sink: _Sink | None = None, top_k: int = 0,
    advance: Callable[[int], None] | None = None, names: Sequence[str] = (),
) -> ComparedShard:  # fmt: skip
    """Compare the rows of a shard, block by block; call the sink with each block, and `advance` with its bytes.

    `names` are those of the candidates.
    """
    advance = advance or (lambda n_bytes: None)
    run = _Run(open_shard(shard, options), options, workers, sink, top_k, advance, names, shard.split)
    start = 0
    for rows in run.base.file.blocks(run.max_rows):
        run.take(rows, slice(start, start + len(rows)))
        start += len(rows)
    if sink and not start:  # so that there are columns if no block comes
        none, new = np.empty(0, np.int64), new_columns(0, options.divergences)
        scores = token_scores(np.empty((0, top_k)), none, top_k=top_k) if top_k else None
        for name in names:
            sink(ComparedBlock(name, new, none, None, 0, none, none, none, scores, scores))
    return run.result()


class _Model:
    """The file of a model, whose rows are read in order. The first rows that count are checked to be of its kind."""

    def __init__(self, file: ScoresFile, options: Options, option: str, max_rows: int) -> None:
        self.file, self.options, self._blocks = file, options, file.blocks(max_rows)
        self._option = None if options.kind else option
        self._left: Array | None = None  # rows that were read, but come after the base's block
        self._is_checked = False
        self.rms: tuple[float, ...] = ()

    def read(self, n: int) -> Array:
        """Read the next rows."""
        rows = next(self._blocks) if self._left is None else self._left
        while len(rows) < n:
            rows = np.concatenate([rows, next(self._blocks)])
        self._left = rows[n:] if len(rows) > n else None
        return rows[:n]

    def check(self, rows: Array, kept: BoolArray) -> None:
        """Check the kind of kept rows once; of hidden states, sample their norms."""
        if self.file.lm_head is not None:
            check_map(self.file.lm_head.weight)
            left = checks.NORM_SAMPLE - len(self.rms)
            self.rms += checks.root_mean_squares(rows, kept, left, self.file.lm_head.norm_weights)
        elif not self._is_checked:
            self._is_checked = checks.check_kind(self.file, self._option, rows, kept)

    @property
    def kind(self) -> str:
        """The kind that `compare` is given. Log-probabilities count as logits, so that classes can be left out."""
        return "probs" if self.file.kind == "probs" else "logits"

    def scores(self, rows: Array) -> Array:
        """The logits of hidden states; rows of scores as they are."""
        if self.file.lm_head is None:
            return rows
        return _projected(rows, self.file.lm_head)

    def top_scores(self, scores: Array) -> Callable[..., TokenScores]:
        """Make a function that scores rows by the first classes, whose probabilities need not add up to 1."""
        some = scores[:, : self.options.classes]
        return functools.partial(scores_of_kind, some, kind=self.kind)

    def projection(self, rows: Array) -> Projection:
        """Hidden states and their projection onto the vocabulary."""
        assert self.file.lm_head is not None
        return Projection(rows, self.file.lm_head.weight, self.file.lm_head.bias)

    def token_scores(self, rows: Array, classes: int | None) -> Callable[..., TokenScores]:
        """Make a function that scores hidden states by the first classes."""
        head = self.file.lm_head
        assert head is not None
        bias = None if head.bias is None else head.bias[:classes]
        cut = dataclasses.replace(
            self.file, shape=(*self.file.shape[:-1], len(head.weight[:classes])),
            lm_head=head._replace(weight=head.weight[:classes], bias=bias),
        )  # fmt: skip
        function = row_functions(cut).token_scores
        return functools.partial(function, rows)


def _projected(hidden: Array, head: LmHead) -> Array:
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


def _row_bytes(file: ScoresFile) -> int:
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

    def __init__(
        self, opened: OpenShard, options: Options, workers: int | None, sink: _Sink | None, top_k: int,
        advance: Callable[[int], None], names: Sequence[str], split: tuple[int, ...] | None,
    ) -> None:  # fmt: skip
        self._names = names
        self._options, self._workers, self._advance = options, workers, advance
        self._sink, self._top_k = sink, top_k if sink else 0
        files = opened.file, *opened.others
        # hidden states are projected tile by tile, if all models have them and the same transform of the logits
        transforms = {file.lm_head and (file.lm_head.logit_scale, file.lm_head.softcap) for file in files}
        self._are_hidden = options.definitions == "exact" and len(transforms) == 1 and None not in transforms
        if options.temperature is not None and len({file.shape[-1] for file in files}) > 1:
            self._are_hidden = False
        row_bytes = max(map(_row_bytes, files)) * max(1, len(files) // 4)  # each file's reader keeps a block
        self.max_rows = MAX_TILE_ROWS if self._are_hidden else rows_per_block(row_bytes)
        self.base = _Model(opened.file, options, "--base-kind", self.max_rows)
        sides = zip(opened.others, options.others, strict=True)
        self._others = [_Model(file, of_file, "--kind", self.max_rows) for file, of_file in sides]
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
        self._hash, self._split = IdsHash(), split

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
        self.base.check(rows, kept)
        with with_file_names(self.base.file.path):
            self._sampler.update(rows, ids, numbers, kept)
        self._advance(rows.nbytes)
        compared = (self._by_projection if self._are_hidden else self._by_logits)(rows, tokens, kept)
        found: list[Columns] = []
        for columns, base_scores, scores in compared:
            if self._is_clustered:
                columns["segment_ids"] = numbers
            columns = {name: tokens.selected(column) for name, column in columns.items()}
            if self._options.temperature is not None or not self._has_targets:
                columns = without_losses(columns)
            if self._sink:
                name, fields = self._names[len(found)], tokens.compared()
                fields["target"] = fields["target"] if self._has_targets else np.full(len(fields["row"]), -1)
                of_pair = {one: columns[one] for one in (*COLUMNS, *FURTHER_DIVERGENCES) if one in columns}
                if self._options.temperature is not None:
                    of_pair["acceptance"] = acceptance(columns, self._options.temperature)
                self._sink(ComparedBlock(name, of_pair, **fields, base_scores=base_scores, scores=scores))
            found.append(columns)
        self._parts.append(ComparedShard.of(found))
        if self._has_targets:
            mask = found[0]["kept"]
            self._hash.add(IdsHash.of(tokens.selected(ids)[mask], tokens.selected(numbers)[mask]))

    def _by_logits(self, rows: Array, tokens: _Tokens, kept: BoolArray) -> Iterator[_Compared]:
        """Yield the columns and scores of each candidate, whose logits of a block are made as a whole."""
        options, file = self._options, self.base.file
        base, base_kind = self.base.scores(rows), self.base.kind
        if options.definitions == "llama.cpp" and file.kind in ("logits", "hidden_states"):
            # llama.cpp takes log-probabilities of the base as they are
            base = jobs.of_known_kind(log_softmax)(base.astype(np.float32) if base.itemsize < 4 else base)
        with with_file_names(file.path):
            base_scores = self._scores(self.base.top_scores(base), tokens)
        pairing: Any = {"definitions": options.definitions, "divergences": options.divergences,
                        "base_kind": base_kind, "classes": options.classes, "where": tokens.scored,
                        "ignore_index": self._ignore_index, "workers": self._workers}  # fmt: skip
        first = f"rows from {tokens.row[0]} on" if tokens.row[0] else None  # errors count from there
        for model in self._others:
            rows = model.read(len(tokens.position))
            model.check(rows, kept)
            compared = model.scores(rows)
            with with_file_names(file.path, model.file.path, first):
                if options.temperature is None:
                    named = {"logits": compared}
                    columns = pair_columns(base, named, tokens.target, kind=model.kind, **pairing)["logits"]
                else:
                    kinds: Any = {"kind": model.kind, "base_kind": base_kind}
                    of_drafts: Any = {"where": kept, "workers": self._workers, **kinds}
                    columns, _ = draft_columns(base, compared, options.temperature, **of_drafts)
                scores = self._scores(model.top_scores(compared), tokens)
            self._advance(rows.nbytes)
            yield columns, base_scores, scores

    def _by_projection(self, rows: Array, tokens: _Tokens, kept: BoolArray) -> Iterator[_Compared]:
        """Yield the columns and scores of each candidate; each tile of logits is compared as soon as it is made."""
        options = self._options
        blocks = [(self.base, rows), *((model, model.read(len(rows))) for model in self._others)]
        for model, block in blocks[1:]:
            model.check(block, kept)
            self._advance(block.nbytes)
        with with_file_names(*(model.file.path for model, _ in blocks)):
            base, *others = (model.projection(block) for model, block in blocks)
            classes = min(options.classes or base.scores.classes, base.scores.classes)
            shape = scores_of_shape("logits", (len(rows), classes), -1)
            positions = as_positions(
                "targets", tokens.target, shape, self._ignore_index, tokens.scored, distributions=False
            )
            named = {str(number): other for number, other in enumerate(others)}
            assert self.base.file.lm_head is not None
            temperature = options.temperature or 1.0
            head = self.base.file.lm_head
            transform = head.logit_scale / temperature, (head.softcap or 0.0) / temperature
            columns = linear_pair_columns(base, named, positions, transform, self._workers, options.divergences)
            base_scores, *scores = (
                self._scores(model.token_scores(block, options.classes), tokens) for model, block in blocks
            )
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
        rms = tuple(model.rms for model in (self.base, *self._others))
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
