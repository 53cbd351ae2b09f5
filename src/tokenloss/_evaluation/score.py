"""Scores the tokens of a shard, block by block."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core import _core, jobs
from tokenloss._core.dtypes import as_float_array
from tokenloss._core.errors import with_file_names
from tokenloss._core.signature import IdsHash
from tokenloss._core.validation import as_positions
from tokenloss._evaluation import checks
from tokenloss._evaluation.plan import rows_per_block
from tokenloss._evaluation.results import ShardResult, ShiftSample, TokenLoss
from tokenloss._evaluation.sequences import SequenceCollector
from tokenloss._evaluation.sink import TokenBlock
from tokenloss._scores.linear import linear_cross_entropy, linear_token_scores
from tokenloss._scores.losses import cross_entropy, cross_entropy_loss, nll_loss
from tokenloss._scores.token_scores import TokenScores, token_job
from tokenloss.formats.mapped import check_map, rows_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenloss._core.types import Array, BoolArray, IntArray
    from tokenloss._evaluation.options import Options
    from tokenloss._evaluation.run import Work
    from tokenloss._evaluation.shards import OpenShard, Shard
    from tokenloss.formats.scores_file import LmHead, ScoresFile

_LOSSES: dict[str, Callable[..., Any]] = {
    "logits": jobs.of_known_kind(cross_entropy),
    "log_probs": nll_loss,
    "probs": lambda probs, targets, **options: cross_entropy_loss(targets, probs, **options),
}


class RowFunctions(NamedTuple):
    """Functions that take rows of a file, which are scores or hidden states, and their targets."""

    token_scores: Callable[..., TokenScores]
    losses: Callable[..., Any]


def row_functions(file: ScoresFile) -> RowFunctions:
    """The functions for the rows of this file."""
    if file.lm_head is None:
        return RowFunctions(functools.partial(scores_of_kind, kind=file.kind), _LOSSES[file.kind])
    functions = linear_token_scores, linear_cross_entropy
    return RowFunctions(*(functools.partial(_project, function, file.lm_head) for function in functions))


def scores_of_kind(
    block: Array, targets: Array, *, kind: str, ignore_index: int | None, where: BoolArray | None, top_k: int,
    workers: int | None, logit_scale: float = 1.0,
) -> TokenScores:  # fmt: skip
    """As `token_scores`, of rows that may be cut to their likeliest classes, and need not add up to 1."""
    array, code = as_float_array(kind, block)
    scores = _core.Scores(kind, array, code, 1, array.shape, _core.KINDS.index(kind))
    positions = as_positions("targets", targets, scores, ignore_index, where, distributions=False)
    job, columns = token_job(scores, positions, (logit_scale, 0.0), top_k)
    jobs.run(job, workers)
    return TokenScores(**columns)


def _project(function: Callable[..., Any], head: LmHead, hidden: Array, targets: Array, **options: Any) -> Any:
    """Call a function that projects hidden states, with the head of their file."""
    check_map(head.weight)
    options |= {"lm_head_bias": head.bias, "logit_scale": head.logit_scale, "softcap": head.softcap}
    return function(hidden, head.weight, targets, **options)


SHIFT_SAMPLE = 256  # so many rows show whether targets should be shifted


def score_shard(
    shard: Shard, work: Work, options: Options, opened: OpenShard | None = None, sampled: int = 0
) -> ShardResult:
    """Score the tokens of a shard, block by block.

    `opened` is the shard if it is open already; `sampled` rows of earlier ones are in the sample of shifted targets.
    """
    run = _Run(shard, opened or work.handles.open_shard(shard, options), options, work, sampled)
    for rows in run.file.blocks(run.max_rows):
        run.take(rows)
        work.advance(rows.nbytes)
    return run.result()


class _Run:
    """Scores the rows of a shard, and adds up its result."""

    def __init__(self, shard: Shard, opened: OpenShard, options: Options, work: Work, sampled: int) -> None:
        file, targets, scored, text, sequences, mask, *_ = opened
        self._shard, self.file, self._options, self._emit = shard, file, options, work.emit
        self._targets, self._sequences, self._token_bytes = targets, sequences, shard.token_bytes
        self._is_soft = targets.ndim == len(file.shape)
        self._ids = None if self._is_soft else targets.reshape(-1)
        counted = scored if mask is None else mask if scored is None else scored & mask
        self._where, self._counted, self._text = (
            None if array is None else array.reshape(-1) for array in (scored, counted, text)
        )
        row_bytes = file.row_bytes + (file.shape[-1] * targets.itemsize if self._is_soft else 0)
        self.max_rows = rows_per_block(row_bytes, file.lm_head is not None and not self._is_soft)
        self._functions = row_functions(file)
        ignored = -1 if self._is_soft else options.ignore_index  # the likeliest class of a row without classes is -1
        self._scored: Any = {"ignore_index": ignored, "workers": work.workers, "top_k": min(work.top_k, file.shape[-1])}
        self._collector, self._highest = SequenceCollector(sequences, shard.split), TopLosses(work.top)
        samples = not self._is_soft and not file.is_shifted and options.shift is not False
        left = SHIFT_SAMPLE - sampled if samples else 0
        are_shifted = bool(options.shift)
        self._sampler = ShiftSampler(
            self._functions.losses, options.ignore_index, sequences.are_given, left, are_shifted=are_shifted
        )
        self._start = self._n_nan = self._n_infinite = 0
        self._hash = IdsHash()
        self._first = checks.FirstRows(file, shard.spec, "kind")

    def take(self, rows: Array) -> None:
        """Score the next rows."""
        start, stop = self._start, self._start + len(rows)
        check_map(self._targets)
        targets = rows_at(self._targets, start, stop) if self._ids is None else np.array(self._ids[start:stop])
        scored, counted, text = (
            None if array is None else array[start:stop] for array in (self._where, self._counted, self._text)
        )
        ids = checks.distribution_argmax(self._shard, start, targets, counted) if self._is_soft else targets
        numbers, row_numbers = self._sequences.numbers(start, stop), np.arange(start, stop)
        positions = self._sequences.next_positions(start, numbers)
        with with_file_names(self.file.path, f"rows from {start} on" if start else None):
            scores = self._scores(rows, targets, ids, counted)
            self._sampler.update(rows, targets, numbers, scores.kept)
        self._first.check(rows, scores.kept)
        n_bytes = None if self._token_bytes is None else self._token_bytes[start:stop].astype(np.int64)
        self._collector.update(scores, numbers, n_bytes)
        self._hash.add(IdsHash.of(ids[scores.kept], numbers[scores.kept]))
        if self._sequences.are_in_order:  # those before the last one have ended
            self._hash = self._hash.only(numbers[-1:].tolist())
        self._n_nan += int(np.count_nonzero(np.isnan(scores.nll) & scores.kept))
        self._n_infinite += int(np.count_nonzero(np.isinf(scores.nll)))
        self._highest.update(scores.nll, ids, scores.kept, row_numbers, numbers, positions)
        if self._emit:
            places = row_numbers, np.maximum(numbers, -1), positions
            n_bytes = None if n_bytes is None else np.where(scores.kept, n_bytes, -1)
            self._emit(_select(scored, TokenBlock(scores, ids, text, 0, *places, n_bytes=n_bytes)))
        self._start = stop

    def _scores(self, rows: Array, targets: Array, ids: Array, mask: BoolArray | None) -> TokenScores:
        """Scores of rows; the ids are their targets, or the likeliest classes of distributions."""
        scores = self._functions.token_scores(rows, ids, where=mask, **self._scored)
        if self.file.kind == "log_probs":
            checks.check_normalized(scores.logsumexp, self._first.itemsize, self._first.is_given)
        if not self._is_soft:
            return scores
        nll = self._functions.losses(
            rows, targets, reduction="none", where=mask, workers=self._scored["workers"],
            ignore_index=self._options.ignore_index,
        )  # fmt: skip
        kept = np.ones(nll.shape, np.bool_) if mask is None else mask
        return dataclasses.replace(scores, kept=kept, nll=np.where(kept, nll, np.nan))

    def result(self) -> ShardResult:
        """The result of all rows."""
        meter, whole, split = self._collector.result()
        count = meter.count + len(split.ids)
        ignored = (self._start if self._where is None else int(np.count_nonzero(self._where))) - count
        return ShardResult(
            meter, ignored, self._collector.greedy, self._highest.tokens(self._text), whole, split,
            self._sampler.sample, rms=self._first.rms, n_nan=self._n_nan, n_infinite=self._n_infinite,
            ids_sum=self._hash.total, ids_ends=self._hash.ends(self._shard.split),
        )  # fmt: skip


def _select(scored: Array | None, block: TokenBlock) -> TokenBlock:
    """The tokens of a block at the rows of the mask; all if there is no mask."""
    if scored is None:
        return block
    columns = block._asdict().items()
    arrays: dict[str, Any] = {name: column[scored] for name, column in columns if isinstance(column, np.ndarray)}
    return block._replace(scores=scores_at(block.scores, scored), **arrays)


def scores_at(scores: TokenScores, scored: Array) -> TokenScores:
    """Scores at the rows of a mask."""
    selected = {name: column[scored] for name, column in vars(scores).items() if column is not None}
    return dataclasses.replace(scores, **selected)


class ShiftSampler:
    """Compares the losses of the first rows with those for the next row's target, which a shift would give them.

    If targets are shifted, it is the row before whose target they would have without the shift.
    """

    def __init__(
        self, losses: Callable[..., Any], ignore_index: int | None, has_ids: bool, left: int = SHIFT_SAMPLE,
        are_shifted: bool = False,
    ) -> None:  # fmt: skip
        self._losses, self._ignore_index, self._are_shifted = losses, ignore_index, are_shifted
        self._has_ids, self._left = has_ids, left  # with ids, negative ones mean no sequence
        self._last: tuple[Array, ...] = ()  # the last row of the block before, with its target, sequence and mask
        self.sample = ShiftSample()

    def update(self, block: Array, ids: Array, numbers: IntArray, kept: BoolArray) -> None:
        """Add a block of rows, with their targets, their sequences and a mask of those that count."""
        if self._left <= 0:
            return
        tokens = block, ids, numbers, kept
        if self._last:
            self._take(*(np.concatenate([last, new[:1]]) for last, new in zip(self._last, tokens, strict=True)))
        self._take(*tokens)
        self._last = tuple(np.array(array[-1:]) for array in tokens)

    def _take(self, block: Array, ids: Array, numbers: Array, kept: Array) -> None:
        """Add the pairs of neighbouring rows of one sequence."""
        has_next = (numbers[1:] == numbers[:-1]) & kept[:-1] & kept[1:]
        if self._has_ids:
            has_next &= numbers[1:] >= 0
        rows = np.flatnonzero(has_next)[: self._left]
        self._left -= len(rows)
        rows, others = (rows + 1, rows) if self._are_shifted else (rows, rows + 1)
        loss, options = self._losses, {"reduction": "none", "ignore_index": self._ignore_index}
        with np.errstate(invalid="ignore", over="ignore"):
            gain = loss(block[rows], ids[rows], **options) - loss(block[rows], ids[others], **options)
            self.sample += ShiftSample(len(rows), float(gain.sum()), float(np.square(gain).sum()))


class TopLosses:
    """The tokens with the highest losses so far. nan counts as highest; of equal losses the earlier comes first."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._tokens: list[TokenLoss] = []

    def update(
        self, nll: Array, ids: Array, kept: Array, rows: Array | None, numbers: Array, positions: Array,
        text: Array | None = None,
    ) -> None:  # fmt: skip
        """Add a block of tokens, with their rows, the numbers of their sequences, and their positions in these."""
        key = np.where(np.isnan(nll), np.inf, nll)
        bar = self._tokens[-1].sort_key if self._tokens and len(self._tokens) == self._top else -np.inf
        new = np.flatnonzero(kept & (key > bar))
        new = new[np.argsort(-key[new], kind="stable")[: self._top]]
        self._tokens += [
            TokenLoss(
                None if rows is None else int(rows[i]), int(numbers[i]) if numbers[i] >= 0 else None,
                int(positions[i]) if numbers[i] >= 0 else None, int(ids[i]), None if text is None else text[i],
                float(nll[i]),
            )
            for i in new
        ]  # fmt: skip
        self._tokens = sorted(self._tokens, key=lambda token: -token.sort_key)[: self._top]

    def tokens(self, text: Array | None = None) -> list[TokenLoss]:
        """These tokens; they get their text if the text of all tokens is given."""
        if text is None:
            return self._tokens
        words = [(token, text.reshape(-1)[token.row]) for token in self._tokens]
        return [token._replace(text=None if word is None else str(word)) for token, word in words]
