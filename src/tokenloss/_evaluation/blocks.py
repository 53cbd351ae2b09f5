"""The evaluation of blocks in memory, from an engine's loop."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core.dtypes import as_array, as_float_array, dtype_name, without_bfloat16
from tokenloss._core.errors import raise_error, with_file_names
from tokenloss._core.validation import check_mask
from tokenloss._evaluation import score
from tokenloss._evaluation.parts import ScoredBlock, summed
from tokenloss._evaluation.plan import checked_shard
from tokenloss._evaluation.sequences import RowSequences
from tokenloss._evaluation.shards import OpenShard, Shard, check_shiftable, shifted_shard
from tokenloss._evaluation.token_bytes import bytes_of_ids, compact, padding_of, refuse_unknown, scored_rows
from tokenloss._statistics.sequences import check_segment_ids
from tokenloss.formats.mapped import rows_at
from tokenloss.formats.scores_file import FileSpec, ScoresFile
from tokenloss.formats.sources import Blocks, made_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tokenloss._core.types import Array, BoolArray, IntArray
    from tokenloss._evaluation.options import Options
    from tokenloss._evaluation.run import Work
    from tokenloss._evaluation.sink import Block
    from tokenloss.formats.tokenizers import Tokenizer

_SAMPLE = 32  # scores of a block's first row that counts, which identify a block that is made again


class _Part(NamedTuple):
    """A block or a part of it as an open shard, with the numbers of rows and sequences before it."""

    shard: Shard
    opened: OpenShard
    first_row: int
    first_sequence: int
    n_sequences: int  # this and the next two are as in `ScoredBlock`
    ids: IntArray | None
    n_rows: IntArray | None


class BlockUnit(NamedTuple):
    """The rows of a block to score, and perhaps the row held back from an earlier block; a `Unit`.

    If targets are shifted and a sequence may continue in the next block, the last row of a block is held back until the
    id that it predicts is known.
    """

    block: _Block
    parts: list[_Part]
    sampled: int  # rows already in the sample of shifted targets
    ignore_index: int | None
    is_rest: bool = False  # whether it is only the row left at the end

    @property
    def key(self) -> str:
        """Its name in a state."""
        return self.block.name

    @property
    def n_bytes(self) -> int:
        """Bytes of the scores."""
        return sum(part.shard.n_bytes for part in self.parts)

    def arrays(self) -> dict[str, Any]:
        """Arrays that must be the same when the block is made again."""
        return self.block.arrays(self.ignore_index)


def block_units(
    first: int, results: Sequence[ScoredBlock], source: Blocks, options: Options, tokenizer: Tokenizer | None
) -> Iterator[BlockUnit]:
    """The units of blocks from this number on; `results` is the growing list of results."""
    maker = _Maker(source, options, tokenizer, results, first)
    for number, values in enumerate(made_blocks(source, first), first):
        is_done = number < len(results)  # it is made again, since its last row may be held back
        block = maker.with_bytes(_checked(f"block {number}", values, maker.classes, maker.has_ids))
        yield maker.unit(block, is_done)
        maker.hold_back(block)
    if maker.last is not None:
        part = maker.part(maker.last, None)
        yield BlockUnit(maker.last, [part], maker.sampled(), options.ignore_index, is_rest=True)


class _Maker:
    """Turns blocks into units, and counts the rows and sequences before each."""

    def __init__(
        self, source: Blocks, options: Options, tokenizer: Tokenizer | None, results: Sequence[ScoredBlock], first: int
    ) -> None:
        self._kind, self._options, self._tokenizer = source.options["kind"], options, tokenizer
        self._found, self._n_seen, self._sampled = results, 0, 0
        self._rows, self._n_sequences, self._counts = 0, 0, dict[int, int]()
        self.classes: int | None = None  # which all blocks must have in common, and whether they have ids
        self.has_ids: bool | None = None
        if results:
            facts, self._n_sequences, ids, n_rows, *_ = summed(results, 0)
            self._rows, self.classes, self.has_ids = facts.rows, facts.shape[-1], ids is not None
            if ids is not None and n_rows is not None:
                self._counts.update(zip(ids.tolist(), n_rows.tolist(), strict=True))
        self._begun: dict[int, int] = {}  # per text number: hidden ids so far, or WRITTEN
        for result in results[:first]:
            if result.begun is not None:
                self._begun.update(zip(result.begun[::2].tolist(), result.begun[1::2].tolist(), strict=True))
        self.last: _Block | None = None  # the row that is held back

    def sampled(self) -> int:
        """Number of rows already in the sample of shifted targets."""
        self._sampled += sum(result.result.shift_sample.rows for result in self._found[self._n_seen :])
        self._n_seen = len(self._found)
        return self._sampled

    def with_bytes(self, block: _Block) -> _Block:
        """A block with the bytes of its ids, if there is a tokenizer."""
        self.classes, self.has_ids = block.scores.shape[-1], block.ids is not None
        if self._tokenizer is None:
            return block
        if block.targets.shape != block.scores.shape[:-1]:
            fits = f"{block.scores.shape[:-1]}, class ids, where there is a tokenizer"
            raise_error("shape", name=f"{block.name}: targets", got=block.targets.shape, fits=fits)
        if block.scores.ndim > 3 and block.ids is None:
            raise_error("shape", name=f"{block.name}: logits", got=block.scores.shape, fits="(N, T, V) for N texts")
        numbers = RowSequences(block.scores.shape, block.ids).numbers(0, block.targets.size)
        begun, shift = {} if block.ids is None else self._begun, bool(self._options.shift)
        n_bytes, _ = bytes_of_ids(block.targets, numbers, _in_texts(block), self._tokenizer, begun, shift)
        pairs = [(number, begun[number]) for number in np.unique(numbers).tolist() if block.ids is not None]
        return block._replace(n_bytes=n_bytes, begun=np.array(pairs, np.int64).reshape(-1) if pairs else None)

    def unit(self, block: _Block, is_done: bool) -> BlockUnit:
        """The unit of a block, after a row that was held back; without parts if the block is done."""
        if self._options.shift:
            check_shiftable(_file(block, self._kind), block.targets, None)
        parts, is_open = [], self._is_open(block)
        if not is_done:
            if self.last is not None and len(block.scores):
                parts.append(self.part(self.last, block if is_open else None))
            own, following = (block.rows(0, -1), block.rows(1, len(block.scores))) if is_open else (block, None)
            parts.append(self.part(own, following))
        return BlockUnit(block, parts, self.sampled(), self._options.ignore_index)

    def hold_back(self, block: _Block) -> None:
        """Keep the last row of a block until the id that it predicts is known."""
        if self._is_open(block):
            self.last = block.rows(-1, len(block.scores)).copy()
        elif len(block.scores):
            self.last = None

    def _is_open(self, block: _Block) -> bool:
        """Whether the last row of a block may predict the first target of the next one."""
        return bool(self._options.shift) and block.ids is not None and block.scores.ndim == 2 and len(block.scores) > 0

    def part(self, block: _Block, following: _Block | None) -> _Part:
        """A block, or a part of it, with the counts before it."""
        ids, n_rows, before = None, None, dict[int, int]()
        if block.ids is not None:
            ids, n_rows = np.unique(block.ids[block.ids >= 0].astype(np.int64), return_counts=True)
            before = {number: self._counts.get(number, 0) for number in ids.tolist()}
            self._counts |= {number: before[number] + n for number, n in zip(before, n_rows.tolist(), strict=True)}
        opened, shard = _shard(block, self._kind, self._options, before, following)
        if self._tokenizer is not None:
            shard = _with_bytes(shard, opened, block, following, self._options, self._tokenizer)
        n_sequences = shard.shape[0] if ids is None and len(shard.shape) > 2 else 0
        part = _Part(shard, opened, self._rows, self._n_sequences, n_sequences, ids, n_rows)
        self._rows, self._n_sequences = self._rows + shard.rows, self._n_sequences + n_sequences
        return part


def score_block(unit: BlockUnit, work: Work, options: Options) -> ScoredBlock:
    """The scores of the parts of a unit, as one block."""
    scored: list[ScoredBlock] = []
    sampled = unit.sampled
    for shard, opened, first_row, first_sequence, n_sequences, ids, n_rows in unit.parts:
        emit = work.emit and functools.partial(_emit_counted_on, work.emit, first_row, first_sequence)
        part = work._replace(emit=emit, advance=lambda n_bytes: None)
        result = score.score_shard(shard, part, options, opened, sampled)
        sampled += result.shift_sample.rows
        scored.append(ScoredBlock(shard.facts(), n_sequences, ids, n_rows, result))
    block = scored[0] if len(scored) == 1 else summed(scored, work.top, options.by)
    return block._replace(begun=unit.block.begun)


def _emit_counted_on(emit: Callable[[Any], None], first_row: int, first_sequence: int, block: Block) -> None:
    """Pass tokens to sinks, with rows and sequences numbered from the first block on."""
    row, sequence = block.columns["row"] + first_row, block.columns["sequence"]
    sequence = np.where(sequence < 0, -1, sequence + first_sequence)
    emit(block._replace(columns=block.columns | {"row": row, "sequence": sequence}))


class _Block(NamedTuple):
    """A block with checked arrays."""

    name: str
    scores: Array
    code: int  # of the dtype of the scores, as `_core` numbers dtypes
    targets: Array
    mask: Array | None
    ids: Array | None  # the number of the sequence of each row
    n_bytes: IntArray | None = None  # of the id of each row, by a tokenizer
    begun: IntArray | None = None  # as in `ScoredBlock`

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
        """Arrays that must be the same when the block is made again; logits may differ in their last bits."""
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


def _checked(name: str, values: Any, classes: int | None, has_ids: bool | None) -> _Block:
    """The block of checked arrays: logits, targets, perhaps a mask and segment ids."""
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
        if classes not in (None, scores.shape[-1]):
            fits = f"(..., {classes}), as those of earlier blocks"
            raise_error("shape", name="logits", got=scores.shape, fits=fits)
        targets = without_bfloat16(*as_array("targets", targets))
        mask = None if where is None else check_mask(where, scores.shape[:-1])
        ids = None if segment_ids is None else check_segment_ids(segment_ids, scores.shape[:-1]).reshape(-1)
        if has_ids not in (None, ids is not None):
            error = "option" if ids is None else "given"
            raise_error(error, name="segment_ids", got=ids, fits="as in earlier blocks")
    return _Block(name, scores, code, targets, mask, ids)


def _in_texts(block: _Block) -> BoolArray:
    """Mask of the ids that are not padding: the block's mask may exclude the same id before all its texts."""
    is_text = np.ones(block.targets.shape, np.bool_)
    if block.mask is not None and block.ids is None and block.targets.ndim > 1:
        is_left = np.logical_and.accumulate(~block.mask, axis=-1)
        left = block.targets[is_left]
        if (left == left[:1]).all() and is_left.sum(-1).max(initial=0) > 1:
            is_text = ~is_left
    return is_text.reshape(-1)


def _file(block: _Block, kind: str | None) -> ScoresFile:
    """The logits of a block as a file of scores, whose rows are read from memory."""
    scores, rows = block.scores, math.prod(block.scores.shape[:-1])

    def read(most_rows: int) -> Iterator[Array]:
        for start in range(0, rows, most_rows):
            yield without_bfloat16(rows_at(scores, start, min(start + most_rows, rows)), block.code)

    dtype = without_bfloat16(scores[:0], block.code).dtype
    return ScoresFile(block.name, kind or "logits", scores.shape, dtype, None, None, read)


def _shard(
    block: _Block, kind: str | None, options: Options, counts: dict[int, int], following: _Block | None
) -> tuple[OpenShard, Shard]:
    """A block as an open shard; `following` contains the rows after it, if they are known."""
    file, scores, mask, ids = _file(block, kind), block.scores, block.mask, block.ids
    row_bytes = scores.shape[-1] * scores.itemsize
    spec = FileSpec(block.name, file.kind, file.shape, dtype_name(block.code, scores), row_bytes, given_kind=kind)
    shard = Shard((spec,), split=() if ids is None else None)
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
