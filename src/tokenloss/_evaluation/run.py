"""The run over a shard: its tokens are scored block by block."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core.errors import with_file_names
from tokenloss._evaluation import checks
from tokenloss._evaluation.plan import open_shard, rows_per_block
from tokenloss._evaluation.results import ShardResult, ShiftSample, TokenLoss
from tokenloss._evaluation.sequences import SequenceCollector
from tokenloss._evaluation.sink import TokenBlock
from tokenloss._scores.linear import linear_cross_entropy, linear_token_scores
from tokenloss._scores.losses import cross_entropy, cross_entropy_loss, nll_loss
from tokenloss._scores.token_scores import token_scores
from tokenloss.formats.mapped import check_map, rows_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from tokenloss._core.types import Array, BoolArray, IntArray
    from tokenloss._evaluation.plan import OpenShard, Options, Shard
    from tokenloss._scores.token_scores import TokenScores
    from tokenloss.formats.scores_file import LmHead, ScoresFile

    _Sink: TypeAlias = Callable[[Any], None]  # called with each block of tokens

_LOSSES: dict[str, Callable[..., Any]] = {
    "logits": cross_entropy,
    "log_probs": nll_loss,
    "probs": lambda probs, targets, **options: cross_entropy_loss(targets, probs, **options),
}


class RowFunctions(NamedTuple):
    """Functions of rows of a file and their targets: of scores, or of hidden states."""

    token_scores: Callable[..., TokenScores]
    losses: Callable[..., Any]


def row_functions(file: ScoresFile) -> RowFunctions:
    """The functions of rows of a file."""
    if file.lm_head is None:
        return RowFunctions(token_scores, _LOSSES[file.kind])
    functions = linear_token_scores, linear_cross_entropy
    return RowFunctions(*(functools.partial(_project, function, file.lm_head) for function in functions))


def _project(function: Callable[..., Any], head: LmHead, hidden: Array, targets: Array, **options: Any) -> Any:
    """The result of a function of the projection of hidden states."""
    check_map(head.weight)
    options |= {"linear_bias": head.bias, "logit_scale": head.logit_scale, "softcap": head.softcap}
    return function(hidden, head.weight, targets, **options)


SHIFT_SAMPLE = 256  # rows whose losses are compared with those of the next targets


def score_shard(
    shard: Shard,
    options: Options,
    workers: int | None,
    sink: _Sink | None = None,
    top_k: int = 0,
    advance: Callable[[int], None] | None = None,
) -> ShardResult:
    """Score the tokens of a shard, block by block; call the sink with each block, and `advance` with its bytes."""
    return score_rows(shard, open_shard(shard, options), options, workers, sink, top_k, advance)


def score_rows(
    shard: Shard,
    opened: OpenShard,
    options: Options,
    workers: int | None,
    sink: _Sink | None = None,
    top_k: int = 0,
    advance: Callable[[int], None] | None = None,
    sampled: int = 0,
) -> ShardResult:
    """As `score_shard`, of a shard that is open; of so many rows a sample was taken before."""
    file, targets, where, text, sequences, mask, _ = opened
    is_soft = targets.ndim == len(file.shape)
    ids = None if is_soft else targets.reshape(-1)
    functions = row_functions(file)
    row_bytes = file.row_bytes + (file.shape[-1] * targets.itemsize if is_soft else 0)
    collector, highest = SequenceCollector(sequences, shard.split), TopLosses(options.top)
    counted = where if mask is None else mask if where is None else where & mask
    samples = not is_soft and not file.is_shifted and options.shift is None
    left = SHIFT_SAMPLE - sampled if samples else 0
    sampler = ShiftSampler(functions.losses, options.ignore_index, sequences.are_given, left)
    rms: tuple[float, ...] = ()
    start = greedy = n_nan = n_infinite = 0
    is_checked = file.kind == "log_probs"  # every row of these is checked with its block
    for block in file.blocks(rows_per_block(row_bytes, file.lm_head is not None and not is_soft)):
        stop = start + len(block)
        check_map(targets)
        block_targets = rows_at(targets, start, stop) if ids is None else np.array(ids[start:stop])
        block_where = None if where is None else where.reshape(-1)[start:stop]
        block_counted = None if counted is None else counted.reshape(-1)[start:stop]
        classes = checks.distribution_argmax(shard, start, block_targets, block_counted) if is_soft else block_targets
        numbers, positions = sequences.numbers(start, stop), np.arange(start, stop)
        with with_file_names(file.path, f"rows from {start} on" if start else None):
            scores = _score_block(
                shard, functions, block, block_targets, classes, block_counted, options, workers, top_k,
                sink is not None,
            )  # fmt: skip
            sampler.update(block, block_targets, numbers, scores.kept)
        is_checked = is_checked or checks.check_kind(file, None if options.kind else "--kind", block, scores.kept)
        if file.lm_head is not None:
            left = checks.NORM_SAMPLE - len(rms)
            rms += checks.root_mean_squares(block, scores.kept, left, file.lm_head.norm_weights)
        collector.update(scores, numbers)
        greedy += int(np.count_nonzero(scores.is_greedy))
        n_nan += int(np.count_nonzero(np.isnan(scores.nll) & scores.kept))
        n_infinite += int(np.count_nonzero(np.isinf(scores.nll)))
        highest.update(scores.nll, classes, scores.kept, positions, numbers)
        if sink:
            words = None if text is None else text.reshape(-1)[start:stop]
            sink(_select(block_where, scores, classes, words, positions, numbers))
        if advance:
            advance(block.nbytes)
        start = stop
    meter, whole, split = collector.result()
    count = meter.count + len(split.ids)
    ignored = (start if where is None else int(np.count_nonzero(where))) - count
    return ShardResult(
        meter, ignored, greedy, highest.tokens(text), whole, split, sampler.sample, None, rms, n_nan, n_infinite
    )


def _score_block(
    shard: Shard,
    functions: RowFunctions,
    block: Array,
    targets: Array,
    ids: Array,
    where: Array | None,
    shard_options: Options,
    workers: int | None,
    top_k: int,
    every_token: bool,
) -> TokenScores:
    """Scores of the rows of a block; the ids are its targets, or the likeliest classes of distributions."""
    kind = shard.kind
    options: Any = {"ignore_index": shard_options.ignore_index, "where": where, "workers": workers}
    is_soft = targets.ndim == block.ndim
    logits = checks.log(block) if kind == "probs" and every_token else block  # logarithms for the entropy
    unknown = {"ignore_index": -1} if is_soft else {}
    scores = functions.token_scores(logits, ids, top_k=min(top_k, shard.shape[-1]), **options | unknown)
    if kind == "log_probs":
        checks.check_normalized(scores.logsumexp, shard.itemsize, shard_options.kind is not None)
    if kind in ("log_probs", "probs") or is_soft:
        nll = functions.losses(block, targets, reduction="none", **options)
        if is_soft:
            scores = dataclasses.replace(scores, kept=np.ones(nll.shape, np.bool_) if where is None else where)
        scores = dataclasses.replace(scores, nll=np.where(scores.kept, nll, np.nan))
    return scores


def _select(
    where: Array | None, scores: TokenScores, ids: Array, text: Array | None, positions: Array, numbers: Array
) -> TokenBlock:
    """A block of tokens at the rows of the mask; all rows if there is no mask."""
    numbers = np.maximum(numbers, -1)
    if where is None:
        return TokenBlock(scores, ids, text, 0, positions, numbers)
    text = None if text is None else text[where]
    return TokenBlock(scores_at(scores, where), ids[where], text, 0, positions[where], numbers[where])


def scores_at(scores: TokenScores, where: Array) -> TokenScores:
    """Scores at the rows of a mask."""
    selected = {name: column[where] for name, column in vars(scores).items() if column is not None}
    return dataclasses.replace(scores, **selected)


class ShiftSampler:
    """Compares the losses of the first rows with those that they have if each predicts the next row's target."""

    def __init__(
        self, losses: Callable[..., Any], ignore_index: int | None, has_ids: bool, left: int = SHIFT_SAMPLE
    ) -> None:
        self._losses, self._ignore_index = losses, ignore_index
        self._has_ids, self._left = has_ids, left  # negative ids are of no sequence
        self._last: tuple[Array, ...] = ()  # row of the block before
        self.sample = ShiftSample()

    def update(self, block: Array, ids: Array, numbers: IntArray, kept: BoolArray) -> None:
        """Take a block of rows, with the numbers of their sequences and which of them count."""
        if self._left <= 0:
            return
        tokens = block, ids, numbers, kept
        if self._last:
            self._take(*(np.concatenate([last, new[:1]]) for last, new in zip(self._last, tokens, strict=True)))
        self._take(*tokens)
        self._last = tuple(np.array(array[-1:]) for array in tokens)

    def _take(self, block: Array, ids: Array, numbers: Array, kept: Array) -> None:
        """Take the pairs of neighbours."""
        has_next = (numbers[1:] == numbers[:-1]) & kept[:-1] & kept[1:]
        if self._has_ids:
            has_next &= numbers[1:] >= 0
        rows = np.flatnonzero(has_next)[: self._left]
        self._left -= len(rows)
        loss, options = self._losses, {"reduction": "none", "ignore_index": self._ignore_index}
        with np.errstate(invalid="ignore", over="ignore"):
            gain = loss(block[rows], ids[rows], **options) - loss(block[rows], ids[rows + 1], **options)
            self.sample += ShiftSample(len(rows), float(gain.sum()), float(np.square(gain).sum()))


class TopLosses:
    """Tokens of the highest losses so far, nan above all, earlier ones before later ones of the same loss."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._tokens: list[TokenLoss] = []

    def update(
        self, nll: Array, ids: Array, kept: Array, positions: Array, numbers: Array, text: Array | None = None
    ) -> None:
        """Take a block of tokens, with their positions and the numbers of their sequences."""
        key = np.where(np.isnan(nll), np.inf, nll)
        bar = self._tokens[-1].sort_key if self._tokens and len(self._tokens) == self._top else -np.inf
        new = np.flatnonzero(kept & (key > bar))
        new = new[np.argsort(-key[new], kind="stable")[: self._top]]
        self._tokens += [
            TokenLoss(
                int(positions[i]), int(ids[i]), float(nll[i]), None if text is None else text[i],
                int(numbers[i]) if numbers[i] >= 0 else None,
            )
            for i in new
        ]  # fmt: skip
        self._tokens = sorted(self._tokens, key=lambda token: -token.sort_key)[: self._top]

    def tokens(self, text: Array | None = None) -> list[TokenLoss]:
        """All of them, with their text from that of all tokens."""
        if text is None:
            return self._tokens
        words = [(token, text.reshape(-1)[token.position]) for token in self._tokens]
        return [token._replace(text=None if word is None else str(word)) for token, word in words]
