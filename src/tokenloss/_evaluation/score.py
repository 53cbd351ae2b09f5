"""Scores the tokens of a shard, block by block."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from tokenloss._core.errors import with_file_names
from tokenloss._evaluation.calibrated import calibrated_block, check_calibrated
from tokenloss._evaluation.plan import rows_per_block
from tokenloss._evaluation.results import ShardResult, TokenLoss
from tokenloss._evaluation.rows import RowReader, check_normalized, row_functions
from tokenloss._evaluation.sequences import SequenceCollector, joined_tokens
from tokenloss._evaluation.sink import scored_block

if TYPE_CHECKING:
    from tokenloss._core.types import Array, Columns, IntArray
    from tokenloss._evaluation.options import Options
    from tokenloss._evaluation.rows import RowBlock
    from tokenloss._evaluation.run import Work
    from tokenloss._evaluation.shards import OpenShard, Shard
    from tokenloss._evaluation.sink import Block
    from tokenloss._scores.token_scores import TokenScores


def score_shard(
    shard: Shard, work: Work, options: Options, opened: OpenShard | None = None, sampled: int = 0
) -> ShardResult:
    """The scores of a shard's tokens.

    `opened` is the shard if it is open already; `sampled` rows of earlier ones are in the sample of shifted targets.
    """
    is_file = opened is None  # which is read again for the temperature
    opened = opened or work.handles.open_shard(shard, options)
    file, is_soft = opened.file, shard.target_type == "distributions"
    row_bytes = file.row_bytes + (file.shape[-1] * opened.targets.itemsize if is_soft else 0)
    max_rows = rows_per_block(row_bytes, file.lm_head is not None and not is_soft)
    reader = RowReader(shard, opened, options, max_rows, work.advance, sampled=sampled)
    collector, highest = SequenceCollector(opened.sequences, shard.split, options.by), TopLosses(work.top)
    n_nan = n_infinite = 0
    calibrated: list[Columns] = []
    if options.calibration:
        check_calibrated(shard)
    for block in reader:
        moments: Columns | None = {} if options.calibration else None
        scores = _scored(block, reader, options, work, moments, is_file)
        if moments is not None:
            calibrated.append(calibrated_block(block, scores, moments, file.kind))
        n_bytes = None
        if shard.token_bytes is not None:
            n_bytes = shard.token_bytes[block.start : reader.n_rows].astype(np.int64)
        collector.update(scores, block.sequences, n_bytes, block.groups)
        n_nan += int(np.count_nonzero(np.isnan(scores.nll) & scores.kept))
        n_infinite += int(np.count_nonzero(np.isinf(scores.nll)))
        places = block.rows, block.sequences, block.positions
        highest.update(scores.nll, block.ids, scores.kept, *places, block.text)
        if work.emit:
            work.emit(_tokens(block, scores, n_bytes))
    meter, whole, split = collector.result()
    n_scored = reader.n_rows if opened.scored is None else int(np.count_nonzero(opened.scored))
    return ShardResult(
        meter, n_scored - meter.count - len(split.ids), collector.greedy, highest.tokens, whole, split,
        rms=reader.first[0].rms, n_nan=n_nan, n_infinite=n_infinite, **reader.facts(),
        groups=collector.groups.result() if collector.groups else None,
        calibrated=joined_tokens(calibrated, are_numbered=True) if options.calibration else None,
    )  # fmt: skip


def _scored(
    block: RowBlock, reader: RowReader, options: Options, work: Work, moments: Columns | None, has_second: bool
) -> TokenScores:
    """The scores of rows; for distributions, ranks and the like refer to their likeliest class."""
    file, first = reader.files[0], reader.first[0]
    (token_scores, losses), is_soft = row_functions(file), block.targets.ndim > 1
    ignored = -1 if is_soft else options.ignore_index  # the likeliest class of a row without classes is -1
    with with_file_names(file.path, block.place):
        top_k = min(work.top_k, file.shape[-1])
        scores = token_scores(
            block.scores, block.ids, where=block.kept, ignore_index=ignored, workers=work.workers, top_k=top_k,
            **({} if moments is None else {"moments": moments, "has_second": has_second}),
        )  # fmt: skip
        if file.kind == "log_probs":
            check_normalized(scores.logsumexp, first.itemsize, first.is_given)
        if not is_soft:
            return scores
        nll = losses(
            block.scores, block.targets, reduction="none", where=block.kept, workers=work.workers,
            ignore_index=options.ignore_index,
        )  # fmt: skip
    return dataclasses.replace(scores, kept=block.kept, nll=np.where(block.kept, nll, np.nan))


def _tokens(block: RowBlock, scores: TokenScores, n_bytes: IntArray | None) -> Block:
    """The tokens of a block, for sinks: the rows that have a target."""
    if n_bytes is not None:
        n_bytes = np.where(scores.kept, n_bytes, -1)
    return scored_block(scores_at(block, scores), {**block.places(), "n_bytes": block.selected(n_bytes)})


def scores_at(block: RowBlock, scores: TokenScores) -> TokenScores:
    """The scores of the rows that have a target."""
    selected = {name: block.selected(column) for name, column in vars(scores).items() if column is not None}
    return dataclasses.replace(scores, **selected)


class TopLosses:
    """The tokens with the highest losses so far. nan counts as highest; ties are in order of position."""

    def __init__(self, top: int) -> None:
        self._top = top
        self.tokens: list[TokenLoss] = []

    def update(
        self, nll: Array, ids: Array, kept: Array, rows: Array | None, numbers: Array, positions: Array,
        text: Array | None = None,
    ) -> None:  # fmt: skip
        """Add a block of tokens, with their rows, the numbers of their sequences, and their positions in these."""
        key = np.where(np.isnan(nll), np.inf, nll)
        bar = self.tokens[-1].sort_key if self.tokens and len(self.tokens) == self._top else -np.inf
        new = np.flatnonzero(kept & (key > bar))
        new = new[np.argsort(-key[new], kind="stable")[: self._top]]
        self.tokens += [
            TokenLoss(
                None if rows is None else int(rows[i]), int(numbers[i]) if numbers[i] >= 0 else None,
                int(positions[i]) if numbers[i] >= 0 else None, int(ids[i]),
                None if text is None or text[i] is None else str(text[i]),
                float(nll[i]),
            )
            for i in new
        ]  # fmt: skip
        self.tokens = sorted(self.tokens, key=lambda token: -token.sort_key)[: self._top]
