"""The evaluation of blocks that are in memory, as an engine's loop makes them."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core import config
from tokenloss._core.dtypes import as_array, as_float_array, dtype_name, without_bfloat16
from tokenloss._core.errors import raise_error, with_file_names
from tokenloss._core.validation import check_mask
from tokenloss._evaluation import score
from tokenloss._evaluation.files import make_evaluation
from tokenloss._evaluation.plan import OpenShard, Shard, check_shiftable, checked_shard, shifted_shard
from tokenloss._evaluation.results import ShardResult
from tokenloss._evaluation.sequences import RowSequences, SequenceColumns
from tokenloss._evaluation.sink import check_files, open_sinks, token_function
from tokenloss._statistics.meter import LossMeter
from tokenloss._statistics.sequences import check_segment_ids
from tokenloss.formats.mapped import rows_at
from tokenloss.formats.scores_file import ScoresFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tokenloss._core.types import Array
    from tokenloss._evaluation.options import Options, Settings
    from tokenloss._evaluation.results import Evaluation
    from tokenloss._evaluation.sink import Sink


def evaluate_blocks(blocks: Iterable[Any], options: Options, settings: Settings, outputs: Sequence[Sink]) -> Evaluation:
    """Score all tokens of blocks, one block after the other."""
    check_files(outputs, None, {})
    workers = settings.workers or config.default_workers()
    shard, total, n_read, top_k = None, _Total(options.top), 0, 0
    with contextlib.ExitStack() as stack:
        start = time.perf_counter()
        for opened, part in _opened(blocks, options, total):
            if shard is None:
                top_k = min(max((output.top_k for output in outputs), default=0), part.shape[-1])
                open_sinks(stack, outputs, None, None, top_k)
                shard = part
            elif part.shape[-1] != shard.shape[-1]:
                fits = f"(..., {shard.shape[-1]}), as those of earlier blocks"
                raise_error("shape", name=f"{part.path}: logits", got=part.shape, fits=fits)
            sampled = total.result.shift_sample.rows
            result = score.score_rows(
                part, opened, options, workers, token_function(outputs, 0, total.rows), top_k, sampled=sampled
            )
            total.add(result, part)
            n_read += part.n_bytes
            shard = shard._replace(
                path="", shape=(total.rows, part.shape[-1]), batch=(total.scored_rows,),
                dtype=_listed(shard.dtype, part.dtype), target_type=_listed(shard.target_type, part.target_type),
            )  # fmt: skip
        assert shard is not None
        seconds, lengths = time.perf_counter() - start, (settings.n_bytes, settings.n_words)
        others: dict[str, Any] = {"words": None, "files": [], "shards": []}
        return make_evaluation(outputs, [shard], [total.all()], options, lengths, seconds, n_read, others)


@dataclass
class _Total:
    """The result of all blocks so far, as if they were one shard."""

    top: int
    rows: int = 0
    scored_rows: int = 0
    numbered: int = 0  # sequences so far, if each of the N rows of a block (N, T, V) is one
    has_ids: bool | None = None  # whether blocks have segment ids; None before the first block
    counts: dict[int, int] = field(default_factory=dict)  # of the rows that sequences with an id have
    result: ShardResult = field(default_factory=lambda: ShardResult(LossMeter(), 0, 0, []))  # without sequences
    whole: list[SequenceColumns] = field(default_factory=list)
    split: list[SequenceColumns] = field(default_factory=list)

    def add(self, new: ShardResult, part: Shard) -> None:
        """Add the result of one more block."""
        old = self.result
        tokens = [token._replace(row=(token.row or 0) + self.rows) for token in new.highest_loss_tokens]
        tokens = sorted([*old.highest_loss_tokens, *tokens], key=lambda token: -token.sort_key)[: self.top]
        old.meter.merge(new.meter)
        sample = old.shift_sample + new.shift_sample
        self.result = ShardResult(
            old.meter, old.n_ignored + new.n_ignored, old.n_greedy + new.n_greedy, tokens, shift_sample=sample,
            n_nan=old.n_nan + new.n_nan, n_infinite=old.n_infinite + new.n_infinite,
        )  # fmt: skip
        self.whole.append(new.sequences)
        self.split.append(new.split)
        self.has_ids = part.split is None
        self.numbered += math.prod(part.shape[:-2]) if len(part.shape) > 2 and not self.has_ids else 0
        self.rows += part.rows
        self.scored_rows += part.scored_rows

    def all(self) -> ShardResult:
        """The result, with all sequences."""
        whole, split = map(SequenceColumns.concatenated, (self.whole, self.split))
        return self.result._replace(sequences=whole, split=split)


class _Block(NamedTuple):
    """A block with checked arrays."""

    name: str
    scores: Array
    code: int  # of the dtype of the scores, as `_core` numbers dtypes
    targets: Array
    mask: Array | None
    ids: Array | None  # the number of the sequence of each row

    def rows(self, start: int, stop: int) -> _Block:
        """A block of some of the rows of a block (N, V)."""
        part = slice(start, stop)
        mask, ids = (None if array is None else array[part] for array in (self.mask, self.ids))
        return self._replace(scores=self.scores[part], targets=self.targets[part], mask=mask, ids=ids)


def _opened(blocks: Iterable[Any], options: Options, total: _Total) -> Iterator[tuple[OpenShard, Shard]]:
    """Yield each block as an open shard.

    If targets are shifted and a sequence may go on in the next block, the last row of a block is held back until the
    id that it predicts is known.
    """
    last: _Block | None = None
    for number, values in enumerate(blocks):
        block = _checked(f"block {number}", values, total)
        if options.shift:
            check_shiftable(_file(block, options), block.targets, None)
        if not options.shift or block.ids is None or block.scores.ndim != 2 or not len(block.scores):
            yield _shard(block, options, total)
        else:
            if last is not None:
                yield _shard(last, options, total, following=block)
            if len(block.scores) > 1:
                yield _shard(block.rows(0, -1), options, total, following=block.rows(1, len(block.scores)))
            last = block.rows(-1, len(block.scores))
            last = last._replace(scores=last.scores.copy(), targets=last.targets.copy(), ids=block.ids[-1:].copy())
    if last is not None:
        yield _shard(last, options, total)


def _checked(name: str, values: Any, before: _Total) -> _Block:
    """Check the arrays of a block: logits, targets, perhaps a mask and segment ids."""
    if not isinstance(values, tuple | list) or not 2 <= len(values) <= 4:
        got = type(values).__name__ + (f" of {len(values)}" if isinstance(values, tuple | list) else "")
        raise_error("type", name=name, got=got, fits="(logits, targets[, where[, segment_ids]])")
    with with_file_names(name):
        logits, targets, where, segment_ids = (*values, None, None)[:4]
        scores, code = as_float_array("logits", logits)
        if not scores.ndim:
            raise_error("scalar", name="logits")
        targets = without_bfloat16(*as_array("targets", targets))
        mask = None if where is None else check_mask(where, scores.shape[:-1])
        ids = None if segment_ids is None else check_segment_ids(segment_ids, scores.shape[:-1]).reshape(-1)
        if before.has_ids not in (None, ids is not None):
            error = "option" if ids is None else "given"
            raise_error(error, name="segment_ids", got=ids, fits="as in earlier blocks")
    return _Block(name, scores, code, targets, mask, ids)


def _file(block: _Block, options: Options) -> ScoresFile:
    """The logits of a block as a file of scores, whose rows are read from memory."""
    dtype = without_bfloat16(block.scores[:0], block.code).dtype
    read = _reader(block.scores, block.code)
    return ScoresFile(block.name, options.kind or "logits", block.scores.shape, dtype, None, None, read)


def _shard(block: _Block, options: Options, before: _Total, following: _Block | None = None) -> tuple[OpenShard, Shard]:
    """A block as an open shard; `following` holds the rows that come after it, if they are known."""
    file, scores, mask, ids = _file(block, options), block.scores, block.mask, block.ids
    shard = Shard(
        block.name, file.kind, file.shape, dtype_name(block.code, scores), scores.shape[-1] * scores.itemsize,
        split=() if ids is None else None,
    )  # fmt: skip
    sequences = RowSequences(scores.shape, ids, first=before.numbered, counts=before.counts)
    opened = OpenShard(file, block.targets, None, None, sequences, mask)
    if options.shift and following is None:
        mask = None if mask is None else mask & np.roll(mask, -1, -1)
        opened = shifted_shard(shard, opened)._replace(mask=mask)
    elif options.shift and following is not None:
        assert ids is not None
        assert following.ids is not None
        following = following.rows(0, len(ids))
        mask = None if mask is None else mask & (True if following.mask is None else following.mask)
        opened = opened._replace(targets=following.targets, scored=(ids == following.ids) & (ids >= 0), mask=mask)
    return opened, checked_shard(shard, opened, options)


def _reader(scores: Array, code: int | None) -> Callable[[int], Iterator[Array]]:
    """Make the function that `ScoresFile.blocks` calls, for scores in memory."""
    rows = math.prod(scores.shape[:-1])

    def read(most_rows: int) -> Iterator[Array]:
        for start in range(0, rows, most_rows):
            yield without_bfloat16(rows_at(scores, start, min(start + most_rows, rows)), code)

    return read


def _listed(words: str, word: str) -> str:
    """Add a word to a list of words, unless the list has it."""
    return ", ".join(dict.fromkeys([*words.split(", "), word]))
