"""The evaluation of blocks that are in memory, as an engine's loop makes them."""

from __future__ import annotations

import contextlib
import math
import time
from collections import ChainMap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core import config
from tokenloss._core.dtypes import as_array, as_float_array, dtype_name, without_bfloat16
from tokenloss._core.errors import raise_error, with_file_names
from tokenloss._core.validation import check_mask
from tokenloss._evaluation import score
from tokenloss._evaluation.checkpoint import Checkpoint
from tokenloss._evaluation.options import by_identity
from tokenloss._evaluation.parts import BlockTotal, Parts, ScoredBlock, summed
from tokenloss._evaluation.plan import OpenShard, Shard, check_shiftable, checked_shard, shifted_shard
from tokenloss._evaluation.progress import Progress
from tokenloss._evaluation.sequences import RowSequences
from tokenloss._evaluation.sink import check_files, finish_sinks, open_sinks, token_function
from tokenloss._evaluation.token_bytes import (
    WRITTEN,
    bytes_of_ids,
    compact,
    padding_of,
    refuse_unknown,
    scored_rows,
    with_text,
)
from tokenloss._statistics.sequences import check_segment_ids
from tokenloss.formats.mapped import rows_at
from tokenloss.formats.scores_file import ScoresFile
from tokenloss.formats.tokenizers import tokenizer_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping, Sequence

    from tokenloss._core.types import Array, BoolArray, IntArray
    from tokenloss._evaluation.options import Options, Settings
    from tokenloss._evaluation.results import Evaluation
    from tokenloss._evaluation.sink import Sink
    from tokenloss.formats.tokenizers import Tokenizer

_SAMPLE = 32  # scores of a block's first row that counts, by which a block that is made again is recognized


def evaluate_blocks(source: Any, options: Options, settings: Settings, outputs: Sequence[Sink]) -> Evaluation:
    """Score all tokens of blocks, one block after the other; those that the checkpoint holds are not scored again."""
    read = [] if settings.tokenizer is None else tokenizer_files(settings.tokenizer.path)
    check_files(outputs, settings.state, by_identity(read))
    checkpoint: Checkpoint[Any] = Checkpoint(settings.state, options)
    run = _Run(options._replace(top=checkpoint.top), settings, outputs)
    for result in checkpoint.results.values():
        run.total.add(result)
    run.begun.update(dict.fromkeys(run.total.counts, WRITTEN))
    first = checkpoint.last_block()  # is made again: its last row may predict the first target of the next one
    with contextlib.ExitStack() as stack, Progress(0 if settings.progress else None) as progress:
        start = time.perf_counter()
        for number, values in enumerate(_made(source, first), first):
            block = run.with_bytes(_checked(f"block {number}", values, run.total))
            if number == first:
                run.open_sinks(stack, block)
            if number in checkpoint.results:
                checkpoint.check_again(number, block.arrays(options.ignore_index))
            else:
                scored = run.take(block)
                if settings.state is not None:
                    checkpoint.add(number, summed(scored, checkpoint.top), block.arrays(options.ignore_index))
            run.hold_back(block)
            progress.advance(block.scores.nbytes, f"block {number}")
        run.end()
        seconds, lengths = time.perf_counter() - start, (settings.n_bytes, settings.n_words)
        blocks = run.total.all()
        blocks = blocks._replace(result=with_text(blocks.result, settings.tokenizer))
        evaluation = Parts.of_blocks(blocks, options).evaluation(lengths, seconds, run.n_read)
        finish_sinks(outputs, evaluation.figures, evaluation)
        return evaluation


def _made(source: Any, first: int) -> Iterator[Any]:
    """The blocks of a source, from this number on if it is a function that makes them."""
    if not callable(source):
        yield from source
        return
    blocks, n_made, fits = source(first), 0, "an iterable of blocks, of which the first has this number"
    if not hasattr(blocks, "__iter__"):
        raise_error("type", name=f"source({first})", got=type(blocks).__name__, fits=fits)
    for block in blocks:
        n_made += 1
        yield block
    if not n_made:
        raise_error("empty", name=f"source({first})", fits=fits)


class _Run:
    """Scores blocks, and adds them up.

    If targets are shifted and a sequence may go on in the next block, the last row of a block is held back until the
    id that it predicts is known.
    """

    def __init__(self, options: Options, settings: Settings, outputs: Sequence[Sink]) -> None:
        self.total, self.n_read = BlockTotal(options.top), 0
        self._tokenizer = settings.tokenizer
        self.begun: dict[int, int] = {}  # per text number: hidden ids so far, or WRITTEN
        self._options, self._outputs = options, outputs
        self._workers = settings.workers or config.default_workers()
        self._top_k = 0
        self._last: _Block | None = None  # the row that is held back

    def open_sinks(self, stack: contextlib.ExitStack, block: _Block) -> None:
        """Open the outputs before the first block."""
        self._top_k = min(max((output.top_k for output in self._outputs), default=0), block.scores.shape[-1])
        open_sinks(stack, self._outputs, None, None, self._top_k, tokenizer=self._tokenizer)

    def with_bytes(self, block: _Block) -> _Block:
        """A block with the bytes of its ids, if there is a tokenizer."""
        if self._tokenizer is None:
            return block
        if block.targets.shape != block.scores.shape[:-1]:
            fits = f"{block.scores.shape[:-1]}, class ids, where there is a tokenizer"
            raise_error("shape", name=f"{block.name}: targets", got=block.targets.shape, fits=fits)
        if block.scores.ndim > 3 and block.ids is None:
            raise_error("shape", name=f"{block.name}: logits", got=block.scores.shape, fits="(N, T, V) for N texts")
        numbers = RowSequences(block.scores.shape, block.ids).numbers(0, block.targets.size)
        begun, shift = {} if block.ids is None else self.begun, bool(self._options.shift)
        n_bytes, _ = bytes_of_ids(block.targets, numbers, _in_texts(block), self._tokenizer, begun, shift)
        return block._replace(n_bytes=n_bytes)

    def take(self, block: _Block) -> list[ScoredBlock]:
        """Score a block, in parts."""
        if self._options.shift:
            check_shiftable(_file(block, self._options), block.targets, None)
        parts, is_open = [], self._is_open(block)
        if self._last is not None and len(block.scores):
            parts.append(self._score(self._last, following=block if is_open else None))
        if is_open:
            return [*parts, self._score(block.rows(0, -1), following=block.rows(1, len(block.scores)))]
        return [*parts, self._score(block)]

    def hold_back(self, block: _Block) -> None:
        """Keep the last row of a block."""
        if self._is_open(block):
            self._last = block.rows(-1, len(block.scores)).copy()
        elif len(block.scores):
            self._last = None

    def end(self) -> None:
        """Score the row that is held back."""
        if self._last is not None:
            self._score(self._last)

    def _is_open(self, block: _Block) -> bool:
        """Whether the last row of a block may predict the first target of the next one."""
        return bool(self._options.shift) and block.ids is not None and block.scores.ndim == 2 and len(block.scores) > 0

    def _score(self, block: _Block, following: _Block | None = None) -> ScoredBlock:
        """Score a block, or a part of it."""
        options, total = self._options, self.total
        counts: dict[int, int] = {}
        opened, shard = _shard(block, options, ChainMap(counts, total.counts), following)
        if self._tokenizer is not None:
            shard = _with_bytes(shard, opened, block, following, options, self._tokenizer)
        first_sequence = 0 if total.has_ids else total.n_sequences
        add = token_function(self._outputs, 0, total.rows, first_sequence, self._tokenizer)
        sampled = total.result.shift_sample.rows
        result = score.score_shard(shard, options, self._workers, add, self._top_k, opened=opened, sampled=sampled)
        n_sequences = shard.shape[0] if block.ids is None and len(shard.shape) > 2 else 0
        scored = ScoredBlock(shard, n_sequences, None, None, result)
        if block.ids is not None:
            new = [(number, n - total.counts.get(number, 0)) for number, n in counts.items() if number >= 0]
            ids, n_rows = np.array(new, np.int64).reshape(-1, 2).T
            scored = scored._replace(ids=ids, n_rows=n_rows)
        total.add(scored)
        self.n_read += shard.n_bytes
        return scored


class _Block(NamedTuple):
    """A block with checked arrays."""

    name: str
    scores: Array
    code: int  # of the dtype of the scores, as `_core` numbers dtypes
    targets: Array
    mask: Array | None
    ids: Array | None  # the number of the sequence of each row
    n_bytes: IntArray | None = None  # of the id of each row, by a tokenizer

    def rows(self, start: int, stop: int) -> _Block:
        """A block of some of the rows of a block (N, V)."""
        part = slice(start, stop)
        mask, ids, n_bytes = (None if array is None else array[part] for array in (self.mask, self.ids, self.n_bytes))
        return self._replace(scores=self.scores[part], targets=self.targets[part], mask=mask, ids=ids, n_bytes=n_bytes)

    def copy(self) -> _Block:
        """The same block in arrays of its own, since an engine may use its buffers again."""
        mask, ids = (None if array is None else array.copy() for array in (self.mask, self.ids))
        return self._replace(scores=self.scores.copy(), targets=self.targets.copy(), mask=mask, ids=ids)

    def arrays(self, ignore_index: int | None) -> dict[str, Any]:
        """What must be the same when the block is made again; logits may differ in their last bits."""
        kept = np.ones(self.scores.shape[:-1], np.bool_) if self.mask is None else self.mask
        if self.targets.shape == kept.shape:
            kept = kept & (self.targets != ignore_index)
        first = np.unravel_index(kept.argmax(), kept.shape) if kept.any() else (slice(0, 0),)
        row = without_bfloat16(self.scores[first], self.code).reshape(-1)
        return {
            "logits": self.scores,
            "sample": row[:: max(1, row.size // _SAMPLE)].astype(np.float64),
            "targets": self.targets,
            "where": self.mask,
            "segment_ids": self.ids,
        }


def _checked(name: str, values: Any, before: BlockTotal) -> _Block:
    """Check the arrays of a block: logits, targets, perhaps a mask and segment ids."""
    if not isinstance(values, tuple | list) or not 2 <= len(values) <= 4:
        got = type(values).__name__ + (f" of {len(values)}" if isinstance(values, tuple | list) else "")
        fits = "(logits, targets[, where[, segment_ids]])"
        if not isinstance(values, Mapping):
            fits += "; a single block is [(logits, targets)]"
        else:  # a model's output is one, too
            fits += ", as (output.logits, ids, mask > 0)" if hasattr(values, "logits") else " of its values"
        raise_error("type", name=name, got=got, fits=fits)
    with with_file_names(name):
        logits, targets, where, segment_ids = (*values, None, None)[:4]
        scores, code = as_float_array("logits", logits)
        if not scores.ndim:
            raise_error("scalar", name="logits")
        if before.shard is not None and scores.shape[-1] != before.shard.shape[-1]:
            fits = f"(..., {before.shard.shape[-1]}), as those of earlier blocks"
            raise_error("shape", name="logits", got=scores.shape, fits=fits)
        targets = without_bfloat16(*as_array("targets", targets))
        mask = None if where is None else check_mask(where, scores.shape[:-1])
        ids = None if segment_ids is None else check_segment_ids(segment_ids, scores.shape[:-1]).reshape(-1)
        if before.has_ids not in (None, ids is not None):
            error = "option" if ids is None else "given"
            raise_error(error, name="segment_ids", got=ids, fits="as in earlier blocks")
    return _Block(name, scores, code, targets, mask, ids)


def _in_texts(block: _Block) -> BoolArray:
    """Mask of the ids that are no padding: a mask may leave out the same id before the texts of a batch."""
    found = np.ones(block.targets.shape, np.bool_)
    if block.mask is not None and block.ids is None and block.targets.ndim > 1:
        is_left = np.logical_and.accumulate(~block.mask, axis=-1)
        left = block.targets[is_left]
        if (left == left[:1]).all() and is_left.sum(-1).max(initial=0) > 1:
            found = ~is_left
    return found.reshape(-1)


def _file(block: _Block, options: Options) -> ScoresFile:
    """The logits of a block as a file of scores, whose rows are read from memory."""
    dtype = without_bfloat16(block.scores[:0], block.code).dtype
    read = _reader(block.scores, block.code)
    return ScoresFile(block.name, options.kind or "logits", block.scores.shape, dtype, None, None, read)


def _shard(
    block: _Block, options: Options, counts: MutableMapping[int, int], following: _Block | None
) -> tuple[OpenShard, Shard]:
    """A block as an open shard; `following` holds the rows that come after it, if they are known."""
    file, scores, mask, ids = _file(block, options), block.scores, block.mask, block.ids
    shard = Shard(
        block.name, file.kind, file.shape, dtype_name(block.code, scores), scores.shape[-1] * scores.itemsize,
        split=() if ids is None else None,
    )  # fmt: skip
    sequences = RowSequences(scores.shape, ids, counts=counts)
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


def _with_bytes(
    shard: Shard, opened: OpenShard, block: _Block, following: _Block | None, options: Options, tokenizer: Tokenizer
) -> Shard:
    """A block as a shard with the bytes of the tokens that its rows predict."""
    n_bytes = block.n_bytes
    assert n_bytes is not None
    if options.shift and following is None:
        n_bytes = np.roll(n_bytes.reshape(block.targets.shape), -1, -1).reshape(-1)
    elif options.shift and following is not None and following.n_bytes is not None:
        n_bytes = following.n_bytes[: len(n_bytes)]
    scored = scored_rows(opened, options.ignore_index)
    with with_file_names(block.name):
        name = "shifted targets" if options.shift else "targets"
        refuse_unknown(name, opened.targets, np.flatnonzero(scored & (n_bytes < 0)), tokenizer)
    padding = padding_of(opened, block.targets, scored, options, tokenizer)
    return shard._replace(token_bytes=compact(n_bytes, scored), padding=padding)


def _reader(scores: Array, code: int | None) -> Callable[[int], Iterator[Array]]:
    """Make the function that `ScoresFile.blocks` calls, for scores in memory."""
    rows = math.prod(scores.shape[:-1])

    def read(most_rows: int) -> Iterator[Array]:
        for start in range(0, rows, most_rows):
            yield without_bfloat16(rows_at(scores, start, min(start + most_rows, rows)), code)

    return read
