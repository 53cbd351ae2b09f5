"""The run over a shard of a base and those of its candidates: their rows are compared block by block."""

from __future__ import annotations

import base64
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._comparison_columns import COLUMNS, join, new_columns, pair_columns, share
from tokenloss._evaluation import checks
from tokenloss._evaluation.plan import open_shard, rows_per_block, with_file_names
from tokenloss._evaluation.run import SHIFT_SAMPLE, ShiftSample, ShiftSampler, scores_at
from tokenloss._outputs._base import ComparedBlock
from tokenloss._softmax import log_softmax
from tokenloss.formats._base import check_map
from tokenloss.scores import token_scores

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenloss._comparison_columns import Columns
    from tokenloss._evaluation.plan import OpenShard, Options, Shard
    from tokenloss._evaluation.run import _Sink
    from tokenloss._types import Array, BoolArray, IntArray
    from tokenloss.formats import ScoresFile
    from tokenloss.scores import TokenScores

_OF_PAIRS = ("definitions", "classes", "ignore_index")  # options
_DTYPES = COLUMNS | {"segment_ids": np.int64, "base_left_out": np.float64, "left_out": np.float64}


class ComparedShard(NamedTuple):
    """Result of a shard."""

    columns: list[Columns]  # of each candidate; those of the base are the same arrays
    n_sequences: int = 0  # one more than the highest number of a sequence
    shift_sample: ShiftSample = ShiftSample()

    def to_json(self) -> dict[str, Any]:
        """The exact result, as JSON can hold it."""
        first, *others = self.columns
        packed = [{name: _packed(column) for name, column in first.items()}]
        for columns in others:
            packed.append(
                {name: None if column is first.get(name) else _packed(column) for name, column in columns.items()}
            )
        sample = self.shift_sample.to_json()
        return {"columns": packed, "n_sequences": self.n_sequences, "shift_sample": sample}

    @classmethod
    def from_json(cls, result: Any) -> ComparedShard:
        """Inverse of `to_json`."""
        found: list[Columns] = []
        for packed in result["columns"]:
            found.append(
                {
                    name: found[0][name] if text is None and found else _unpacked(text, _DTYPES[name])
                    for name, text in packed.items()
                }
            )
        return cls(found, result["n_sequences"], ShiftSample.from_json(result["shift_sample"]))

    @property
    def n_tokens(self) -> int:
        """The number of tokens."""
        return int(np.count_nonzero(self.columns[0]["kept"]))

    def is_consistent(self, shard: Shard, options: Options) -> bool:
        """Consistency check of a checkpoint entry: whether comparing a shard can give it."""
        return (
            len(self.columns) == len(shard.others)
            and all(columns.keys() >= COLUMNS.keys() for columns in self.columns)
            and all(column.shape == (shard.rows,) for columns in self.columns for column in columns.values())
            and all(columns[name].view(np.uint8).max(initial=0) <= 1
                    for columns in self.columns for name in ("kept", "is_same_top"))
            and type(self.n_sequences) is int
            and 0 <= self.n_sequences < 2**63
        )  # fmt: skip


def _packed(column: Array) -> str:
    """A column, as JSON can hold it."""
    return base64.b64encode(zlib.compress(column.tobytes(), 1)).decode()


def _unpacked(text: str, dtype: Any) -> Array:
    """Inverse of `_packed`."""
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype)
    except zlib.error as error:
        raise ValueError(error) from error


def compare_shard(
    shard: Shard,
    options: Options,
    workers: int | None,
    sink: _Sink | None = None,
    top_k: int = 0,
    advance: Callable[[int], None] | None = None,
) -> ComparedShard:
    """Compare the rows of a shard, block by block; call the sink with each block, and `advance` with its bytes."""
    run = _Run(open_shard(shard, options), options, workers, sink, top_k, advance or (lambda n_bytes: None))
    start = 0
    for rows in run.base.file.blocks(run.max_rows):
        run.take(rows, slice(start, start + len(rows)))
        start += len(rows)
    return run.result()


class _Model:
    """A model's file of scores, whose rows are read in order; the first that count are checked to be of its kind."""

    def __init__(self, file: ScoresFile, options: Options, option: str, max_rows: int) -> None:
        self.file, self._blocks = file, file.blocks(max_rows)
        self._option = None if options.kind else option
        self._left = np.empty((0, file.shape[-1]))  # of a block that is cut where the base's is not
        self._is_checked = False

    def read(self, n: int) -> Array:
        """The next rows."""
        rows = self._left if len(self._left) else next(self._blocks)
        while len(rows) < n:
            rows = np.concatenate([rows, next(self._blocks)])
        self._left = rows[n:]
        return rows[:n]

    def logits(self, rows: Array, kept: BoolArray) -> Array:
        """Rows as logits, or log-probabilities."""
        self._is_checked = self._is_checked or checks.check_kind(self.file, self._option, rows, kept)
        return checks.log(rows) if self.file.kind == "probs" else rows


class _Tokens(NamedTuple):
    """What belongs to the rows of a block."""

    ids: Array
    where: BoolArray | None
    text: Array | None
    positions: IntArray
    sequences: IntArray

    def selected(self, array: Any) -> Any:
        """An array, at the rows that are compared."""
        return array if array is None or self.where is None else array[self.where]


class _Run:
    """The comparison of a shard so far."""

    def __init__(
        self,
        opened: OpenShard,
        options: Options,
        workers: int | None,
        sink: _Sink | None,
        top_k: int,
        advance: Callable[[int], None],
    ) -> None:
        self._options, self._workers, self._sink, self._top_k, self._advance = options, workers, sink, top_k, advance
        files = opened.file, *opened.others
        self.max_rows = rows_per_block(max(file.row_bytes for file in files))
        self.base = _Model(opened.file, options, "--base-kind", self.max_rows)
        sides = zip(opened.others, options.others, strict=True)
        self._others = [_Model(file, of_file, "--kind", self.max_rows) for file, of_file in sides]
        self._sequences = opened.sequences
        self._ids, self._where, self._text = (
            None if array is None else array.reshape(-1) for array in (opened.targets, opened.where, opened.tokens)
        )
        # llama.cpp prints errors that are not clustered: without segment ids, these
        self._is_clustered = self._sequences.are_given or (
            self._sequences.exist and options.definitions == "exact"
        )
        samples = options.shift is None and not any(file.is_shifted for file in files)
        self._sampler = ShiftSampler(
            opened.file.kind, options.ignore_index, self._sequences.are_given, SHIFT_SAMPLE if samples else 0
        )
        self._parts: list[list[Columns]] = [[new_columns(0)] for _ in self._others]
        self._n_sequences = 0

    def take(self, rows: Array, part: slice) -> None:
        """Compare the next rows of the base with those of each candidate."""
        assert self._ids is not None
        check_map(self._ids)
        ids, numbers = np.array(self._ids[part]), self._sequences.numbers(part.start, part.stop)
        where, text = (None if array is None else array[part] for array in (self._where, self._text))
        tokens = _Tokens(ids, where, text, np.arange(part.start, part.stop), np.maximum(numbers, -1))
        kept = np.ones(len(ids), np.bool_) if where is None else where
        if self._options.ignore_index is not None:
            kept = kept & (ids != self._options.ignore_index)
        base, path = self.base.logits(rows, kept), self.base.file.path
        with with_file_names(path):
            self._sampler.update(rows, ids, numbers, kept)
            if self._options.definitions == "llama.cpp" and self.base.file.kind == "logits":
                # of the base, log-probabilities as they are
                base = log_softmax(rows.astype(np.float32) if rows.itemsize < 4 else rows)
            base_scores = self._scores(base, tokens)
        self._advance(rows.nbytes)
        pairing: dict[str, Any] = {name: getattr(self._options, name) for name in _OF_PAIRS}
        if self._is_clustered:
            pairing["segment_ids"] = numbers
            self._n_sequences = max(self._n_sequences, int(numbers.max(initial=-1)) + 1)
        for number, model in enumerate(self._others):
            rows = model.read(len(ids))
            logits = model.logits(rows, kept)
            with with_file_names(path, model.file.path):
                columns = pair_columns(base, {"logits": logits}, ids, where=where, workers=self._workers, **pairing)
                scores = self._scores(logits, tokens)
            columns = share(columns["logits"], self._parts[0][-1] if number else {})
            self._parts[number].append(columns)
            if self._sink:
                of_block = {name: tokens.selected(columns[name]) for name in COLUMNS}
                of_tokens = map(tokens.selected, (ids, text))
                places = map(tokens.selected, tokens[-2:])
                self._sink(ComparedBlock(number, of_block, *of_tokens, 0, *places, base_scores, scores))
            self._advance(rows.nbytes)

    def _scores(self, logits: Array, tokens: _Tokens) -> TokenScores | None:
        """Scores of a model with its likeliest classes, if any output wants these."""
        if not self._sink or not self._top_k:
            return None
        logits = logits[:, : self._options.classes]
        options: Any = {"where": tokens.where, "ignore_index": self._options.ignore_index, "workers": self._workers}
        scores = token_scores(logits, tokens.ids, top_k=min(self._top_k, logits.shape[1]), **options)
        return scores if tokens.where is None else scores_at(scores, tokens.where)

    def result(self) -> ComparedShard:
        """The result of all rows."""
        found: list[Columns] = []
        for parts in self._parts:
            found.append(share(join(parts), found[0] if found else {}))
        return ComparedShard(found, self._n_sequences, self._sampler.sample)
