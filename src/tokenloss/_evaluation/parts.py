"""The parts that an evaluation is made of, files or blocks: its figures follow from them, and so do merged ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core.errors import raise_error
from tokenloss._core.signature import IdsHash, head_fields
from tokenloss._evaluation.responses import check_names, response_summary
from tokenloss._evaluation.results import Evaluation, ShardResult
from tokenloss._evaluation.sequences import SequenceColumns
from tokenloss._evaluation.summary import (
    add_lengths,
    merge_greedy,
    merge_meters,
    sequence_columns,
    shard_figures,
    summary,
)
from tokenloss._statistics.meter import LossMeter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._core.types import Array, IntArray
    from tokenloss._evaluation.options import Options
    from tokenloss._evaluation.plan import Shard


class ScoredBlock(NamedTuple):
    """A block and its result, or several as if they were one.

    Rows are numbered from the first one of the block, and so are sequences without ids.
    """

    shard: Shard
    n_sequences: int  # without ids: the N of a block (N, T, V), else 0
    ids: IntArray | None  # of its sequences, if they have some
    n_rows: IntArray | None  # of each of these
    result: ShardResult


@dataclass
class BlockTotal:
    """The sum of blocks, one after the other."""

    top: int
    shard: Shard | None = None  # of all blocks; None before the first one
    n_sequences: int = 0
    counts: dict[int, int] = field(default_factory=dict)  # of the rows of each sequence, if these have ids
    result: ShardResult = field(default_factory=lambda: ShardResult(LossMeter(), 0, LossMeter(), []))  # no sequences
    hash: IdsHash = field(default_factory=IdsHash)
    whole: list[SequenceColumns] = field(default_factory=list)
    split: list[SequenceColumns] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return 0 if self.shard is None else self.shard.rows

    @property
    def has_ids(self) -> bool | None:
        """Whether blocks have segment ids; None before the first block."""
        return None if self.shard is None else self.shard.split is None

    def add(self, block: ScoredBlock) -> None:
        """Add one more block."""
        old, new, first_row = self.result, block.result, self.rows
        first = 0 if block.ids is not None else self.n_sequences
        tokens = [
            token._replace(
                row=(token.row or 0) + first_row, sequence=None if token.sequence is None else token.sequence + first
            )
            for token in new.highest_loss_tokens
        ]
        old.meter.merge(new.meter)
        old.greedy.merge(new.greedy)
        self.result = ShardResult(
            old.meter,
            old.n_ignored + new.n_ignored,
            old.greedy,
            sorted([*old.highest_loss_tokens, *tokens], key=lambda token: -token.sort_key)[: self.top],
            shift_sample=old.shift_sample + new.shift_sample,
            n_nan=old.n_nan + new.n_nan,
            n_infinite=old.n_infinite + new.n_infinite,
        )
        self.hash.add(IdsHash(new.ids_sum, new.ids_ends))
        self.whole.append(new.sequences._replace(ids=new.sequences.ids + first))
        self.split.append(new.split)
        self.n_sequences += block.n_sequences
        if block.ids is not None and block.n_rows is not None:
            for number, n in zip(block.ids.tolist(), block.n_rows.tolist(), strict=True):
                self.counts[number] = self.counts.get(number, 0) + n
        one = block.shard
        before = self.shard or one._replace(path="", shape=(0, one.shape[-1]), batch=(0,))
        self.shard = before._replace(
            shape=(before.rows + one.rows, one.shape[-1]),
            batch=(before.scored_rows + one.scored_rows,),
            dtype=_listed(before.dtype, one.dtype),
            target_type=_listed(before.target_type, one.target_type),
            padding=_joined_padding(before.padding, one.padding) if self.shard else one.padding,
        )

    def all(self) -> ScoredBlock:
        """All blocks as one."""
        assert self.shard is not None
        whole, split = map(SequenceColumns.concatenated, (self.whole, self.split))
        ids, n_rows = (np.array([*column], np.int64) for column in (self.counts, self.counts.values()))
        result = self.result._replace(sequences=whole, split=split, ids_sum=self.hash.total, ids_ends=self.hash.ends())
        block = ScoredBlock(self.shard, self.n_sequences, None, None, result)
        return block._replace(ids=ids, n_rows=n_rows) if self.has_ids else block


def summed(blocks: Sequence[ScoredBlock], top: int) -> ScoredBlock:
    """Blocks as if they were one."""
    total = BlockTotal(top)
    for block in blocks:
        total.add(block)
    return total.all()


def _joined_padding(one: dict[str, int] | None, other: dict[str, int] | None) -> dict[str, int] | None:
    """The counts of a special token together; of two tokens, that which is counted more often."""
    if not one or not other:
        return one or other
    if one["token"] == other["token"]:
        return one | {"count": one["count"] + other["count"]}
    return max(one, other, key=lambda each: each["count"])


def _listed(words: str, others: str) -> str:
    """Words of both lists, each once."""
    return ", ".join(dict.fromkeys([*words.split(", "), *others.split(", ")]))


class Parts(NamedTuple):
    """What an evaluation is made of: shards without open files, and their results; or blocks, and these as a shard."""

    shards: Sequence[Shard]
    results: Sequence[ShardResult]
    options: Options
    words: str | None = None  # how the words of a text were counted, if there was one
    blocks: ScoredBlock | None = None

    @classmethod
    def of_blocks(cls, blocks: ScoredBlock, options: Options) -> Parts:
        """Of blocks in memory."""
        return cls([blocks.shard], [blocks.result], options, blocks=blocks)

    def evaluation(self, lengths: tuple[Any, Any], seconds: float, n_read: int) -> Evaluation:
        """Make the evaluation; lengths are the bytes and words of the text, or of that of each sequence."""
        meter, split = merge_meters(self.results)
        sequences = sequence_columns(self.results, split, self.options)
        add_lengths(meter, sequences, *lengths)
        of_shards = [] if self.blocks is not None else shard_figures(self.shards, self.results)
        return self._of_sums(meter, sequences, of_shards, seconds, n_read)

    def _of_sums(
        self, meter: LossMeter, sequences: dict[str, Array], of_shards: list[dict[str, Any]], seconds: float,
        n_read: int,
    ) -> Evaluation:  # fmt: skip
        """Make the evaluation of sums, and of figures of each shard, that are there."""
        figures = summary(self.shards, self.results, meter, sequences, self.options, of_shards)
        speed = n_read / seconds / 1e9 if seconds else math.nan
        figures |= {"seconds": seconds, "n_bytes_read": n_read, "gb_per_second": speed, "words": self.words}
        if self.blocks is not None:
            figures["files"] = []
        if self.are_responses:
            figures |= response_summary([shard.path for shard in self.shards], self.results)
        figures["signature"] = self._signature(meter, figures)
        # responses, open files and the bytes of each token are not kept
        shards = [shard._replace(responses=None, file=None, token_bytes=None) for shard in self.shards]
        return Evaluation(meter, sequences, figures, self._replace(shards=shards))

    @staticmethod
    def merged(evaluations: Sequence[Evaluation]) -> Evaluation:
        """The evaluation of the parts of all, as one call makes it of all of them; the time is linear in their number.

        There must be at least one.
        """
        of_each: list[Parts] = [one._parts for one in evaluations]
        first = of_each[0]
        _check(evaluations)
        top = min(parts.options.top for parts in of_each)
        merged = first._replace(options=first.options._replace(top=top))
        if first.blocks is not None:
            blocks = [parts.blocks for parts in of_each if parts.blocks is not None]
            merged = Parts.of_blocks(summed(blocks, top), merged.options)
        else:
            shards = [shard for parts in of_each for shard in parts.shards]
            merged = merged._replace(shards=shards, results=[result for parts in of_each for result in parts.results])
        if merged.are_responses:
            check_names([shard.path for shard in merged.shards], merged.results)
        meter, split = merge_meters(merged.results)
        sequences = sequence_columns(merged.results, split, merged.options)
        if len({bool(one.meter.n_bytes) for one in evaluations}) == 1:
            meter = LossMeter()  # with the lengths of the text
            for one in evaluations:
                meter.merge(one.meter)
        else:  # the bytes of some responses are not known
            add_lengths(meter, sequences, 0, sum(one.meter.n_words for one in evaluations))
        seconds, n_read = (sum(one.figures[name] for one in evaluations) for name in ("seconds", "n_bytes_read"))
        of_shards = [figures for one in evaluations for figures in one.figures["shards"]]
        return merged._of_sums(meter, sequences, of_shards, seconds, n_read)

    def _signature(self, meter: LossMeter, figures: dict[str, Any]) -> str:
        """The signature of the figures of all parts."""
        known = {name: figures.get(name) for name in ("kind", "dtype", "part", "window", "stride")}
        known["words"] = f"{meter.n_words}({self.words})" if self.words else meter.n_words or None
        known |= head_fields(figures.get("head"))
        if not self.are_responses:  # their tokens may have no ids
            known |= {"shift": "yes" if self.options.shift else None, "ignored": figures["n_ignored"]}
            known["ids"] = IdsHash.total_of(self.results)
        return meter._signature(**known)

    def greedy_meter(self) -> LossMeter:
        """The meter of `merge_greedy`."""
        return merge_greedy(self.results)

    @property
    def are_responses(self) -> bool:
        """Whether they are files of responses."""
        return self.shards[0].size is not None

    def shared_numbers(self, sequences: dict[str, Array]) -> Array:
        """The numbers that mean the same sequence in all parts: those that segment ids give to all files or blocks."""
        if self.blocks is not None:
            are_shared = [self.blocks.ids is not None, True]
        else:  # the last one stands for sequences in several files, which have the number -1
            are_shared = [*(shard.segments_start is not None for shard in self.shards), True]
        shared: Array = sequences["sequence"][np.array(are_shared)[sequences["file"]]]
        return shared

    def described(self, meter: LossMeter) -> dict[str, Any]:
        """What must be the same of evaluations that are merged."""
        shard, options = self.shards[0], self.options
        source = "blocks" if self.blocks is not None else "files of responses" if self.are_responses else "files"
        parts = [result.responses.part for result in self.results if result.responses and result.responses.dialect]
        return {
            "source": source,
            "kind": shard.kind,
            "the number of classes": shard.shape[-1] if not self.are_responses else None,
            "shift": bool(options.shift),
            "window": options.window,
            "stride": options.stride,
            "ignore_index": options.ignore_index,
            "lm_head": shard.head,
            "part": parts[0] if parts else None,
            "segment_ids": None if self.blocks is None else "given" if self.blocks.ids is not None else "not given",
            "words": self.words,
            "tokenizer": options.tokenizer,
            "n_bytes": "given" if meter.n_bytes or options.tokenizer else "not given",
            "n_words": "given" if meter.n_words else "not given",
        }


def _check(evaluations: Sequence[Evaluation]) -> None:
    """Refuse evaluations that do not fit, or that would count tokens twice."""
    first: Parts = evaluations[0]._parts
    ours = first.described(evaluations[0].meter)
    results: dict[str, ShardResult] = {}  # by the path of the shard
    for number, one in enumerate(evaluations):
        parts: Parts = one._parts
        if number:
            theirs = parts.described(one.meter)
            if first.are_responses and parts.are_responses:
                theirs["n_bytes"] = ours["n_bytes"]  # may be known of some files alone
                ours["part"], theirs["part"] = ours["part"] or theirs["part"], theirs["part"] or ours["part"]
            for name, value in ours.items():
                if value != theirs[name]:
                    raise_error("merge", got=f"{name} is {value!r} in one and {theirs[name]!r} in the other")
        of_one = [(shard.path, part) for shard, part in zip(parts.shards, parts.results, strict=True) if shard.path]
        for path, result in of_one:
            same = results.get(path)  # perhaps another file of this name, on another machine
            if same is not None and result.n_tokens and merge_meters([same])[0] == merge_meters([result])[0]:
                raise_error("merge", got=f"{path} is in both, with the same losses")
        results.update(of_one)
    numbers = [one._parts.shared_numbers(one.sequences) for one in evaluations]
    distinct, counts = np.unique(np.concatenate(numbers), return_counts=True)
    if len(again := distinct[counts > 1]):
        fits = "their numbers must differ, or one call score both"
        raise_error("merge", got=f"sequence {again[0]} of segment_ids is in both; {fits}")
