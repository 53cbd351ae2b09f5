"""Reads the rows of a shard, of one model or of a base and candidates in step, with their targets and sequences."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core import _core, jobs
from tokenloss._core.dtypes import as_float_array
from tokenloss._core.errors import named, raise_error, refuse, with_file_names
from tokenloss._core.signature import IdsHash
from tokenloss._core.validation import UNNORMALIZED, UNNORMALIZED_HALF, as_positions, as_scores, without_targets
from tokenloss._evaluation.results import ShiftSample
from tokenloss._evaluation.sequences import GroupCodes
from tokenloss._evaluation.shards import LEFT_OUT
from tokenloss._scores.linear import linear_cross_entropy, linear_token_scores
from tokenloss._scores.losses import cross_entropy, cross_entropy_loss, nll_loss
from tokenloss._scores.softmax import logsumexp
from tokenloss._scores.token_scores import TokenScores, token_job
from tokenloss._statistics.calibration import with_moments
from tokenloss._statistics.groups import is_by_position, position_bins
from tokenloss.formats.mapped import check_map, rows_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import NoReturn

    from tokenloss._core.types import Array, BoolArray, Columns, IntArray
    from tokenloss._evaluation.options import Options
    from tokenloss._evaluation.shards import OpenShard, Shard
    from tokenloss.formats.scores_file import FileSpec, LmHead, ScoresFile

_CACHED = 1 << 16  # numbers that fit in a core's cache
_FIRST_ROWS = 16  # number of rows from which the kind of scores is guessed
_FIRST_ELEMENTS = 1 << 24  # and the most scores in them
_PROBABILITY_SLACK = 1e-3  # by which a probability may be outside [0, 1]
_SUM_SLACK = 1e-2  # by which the sum of a distribution may differ from 1
_NORM_SAMPLE = 64  # number of hidden states of a file whose root mean squares are compared
_MIN_NORM_SAMPLE = 16
_MIN_NORM_WEIGHT = 1e-2  # of the largest weight; features of smaller weights are left out
_MAX_NORM_SPREAD = 0.1  # 0.02 was the most after the final norm of trained models, 0.2 the least before it
SHIFT_SAMPLE = 256  # rows that show whether targets should be shifted

_LOSSES: dict[str, Callable[..., Any]] = {
    "logits": jobs.with_known_kind(cross_entropy),
    "log_probs": nll_loss,
    "probs": lambda probs, targets, **options: cross_entropy_loss(targets, probs, **options),
}


class RowBlock(NamedTuple):
    """The next rows of a shard."""

    start: int  # the number of the first row
    scores: Array  # or hidden states, of the base or the only model
    others: Iterator[Array]  # of each candidate, read one after the other to need little memory
    targets: Array  # class ids, or distributions
    ids: Array  # class ids, or the likeliest class of each distribution
    scored: BoolArray | None  # mask of the rows that have a target, which sinks get; None for all
    kept: BoolArray  # mask of those that count: neither ignored nor left out by a block's own mask
    text: Array | None
    sequences: IntArray  # the number of each row's sequence, negative for none
    positions: IntArray  # in these sequences
    groups: GroupCodes | None = None

    @property
    def rows(self) -> IntArray:
        """The number of each row."""
        return np.arange(self.start, self.start + len(self.ids))

    @property
    def place(self) -> str | None:
        """Words that say from where errors count positions."""
        return f"rows from {self.start} on" if self.start else None

    def places(self, first_row: int = 0) -> dict[str, Any]:
        """Columns that describe the tokens of the rows that have a target; None for unknown text.

        `first_row` is the number of the shard's first row.
        """
        columns = {"target": self.ids, "text": self.text, "row": self.rows + first_row}
        columns |= {"sequence": self.sequences, "position": self.positions}
        return {name: self.selected(column) for name, column in columns.items()}

    def selected(self, array: Any) -> Any:
        """The part of an array at the rows that have a target."""
        return array if array is None or self.scored is None else array[self.scored]


class RowReader:
    """Reads the rows of all models of a shard, block by block, and checks the kind of their scores.

    `advance` gets the number of bytes after each part is read, `kind_option` is the argument that gives the kind of the
    base, and `sampled` the number of rows that are already in the sample of shifted targets.
    """

    def __init__(
        self, shard: Shard, opened: OpenShard, options: Options, max_rows: int, advance: Callable[[int], None],
        kind_option: str = "kind", sampled: int = 0,
    ) -> None:  # fmt: skip
        file, targets, scored, text, self._sequences, _, others, *_ = opened
        self._by, self._groups = options.by, opened.groups
        self._shard, self._max_rows, self._advance, self.files = shard, max_rows, advance, (file, *others)
        self._is_soft = shard.target_type == "distributions"
        self._targets = targets if self._is_soft else targets.reshape(-1)
        self._scored, self._mask, self._text = (
            None if array is None else array.reshape(-1) for array in (scored, opened.counted, text)
        )
        self._has_targets = opened.has_targets
        self._ignore_index = options.ignore_index if opened.has_targets else LEFT_OUT
        names = kind_option, *("kind" for _ in others)
        specs = zip(self.files, shard.models, names, strict=True)
        self.first = [FirstRows(one, spec, name) for one, spec, name in specs]
        can_shift = not self._is_soft and opened.has_targets and not any(one.is_shifted for one in self.files)
        samples = can_shift and (options.shift is None or (options.shift and not others))
        self._sampler = ShiftSampler(
            row_functions(file)[1], options, self._sequences.are_given, SHIFT_SAMPLE - sampled if samples else 0
        )
        self.n_rows, self._hash = 0, IdsHash()

    def __iter__(self) -> Iterator[RowBlock]:
        """Read the next rows."""
        base, *others = (file.blocks(self._max_rows) for file in self.files)
        pieces = [_Pieces(blocks) for blocks in others]
        for rows in base:
            block = self._block(rows)
            self.first[0].check(rows, block.kept)
            yield block._replace(others=self._candidates(pieces, block))
            self._advance(rows.nbytes)
            with with_file_names(self.files[0].path, block.place):
                self._sampler.update(block)
            if self._has_targets:
                self._hash.add(IdsHash.of(block.ids[block.kept], block.sequences[block.kept]))
            if self._sequences.are_in_order:  # those before the last one have ended
                self._hash = self._hash.only(block.sequences[-1:].tolist())

    def _candidates(self, pieces: list[_Pieces], block: RowBlock) -> Iterator[Array]:
        """The rows of each candidate that belong to a block of the base."""
        for piece, first in zip(pieces, self.first[1:], strict=True):
            rows = piece.take(len(block.kept))
            first.check(rows, block.kept)
            yield rows
            self._advance(rows.nbytes)

    def _block(self, scores: Array) -> RowBlock:
        """The block of these scores, which come next."""
        start, self.n_rows = self.n_rows, self.n_rows + len(scores)
        check_map(self._targets)
        scored, mask, text = (
            None if array is None else array[start : self.n_rows] for array in (self._scored, self._mask, self._text)
        )
        kept = np.ones(len(scores), np.bool_) if mask is None else mask
        if self._is_soft:
            targets = rows_at(self._targets, start, self.n_rows)
            ids = distribution_argmax(self._shard, start, targets, kept)
        else:
            ids = targets = np.array(self._targets[start : self.n_rows])
            kept = kept if self._ignore_index is None else kept & (ids != self._ignore_index)
        numbers = self._sequences.numbers(start, self.n_rows)
        positions = self._sequences.next_positions(start, numbers)
        groups = self._groups
        if is_by_position(self._by):
            groups = GroupCodes(position_bins(str(self._by), positions))
        elif groups is not None:
            groups = groups._replace(codes=groups.codes[start : self.n_rows])
        return RowBlock(start, scores, iter(()), targets, ids, scored, kept, text, numbers, positions, groups)

    def facts(self) -> dict[str, Any]:
        """The fields that every result of these rows has."""
        ends = self._hash.ends(self._shard.split)
        return {"shift_sample": self._sampler.sample, "ids_sum": self._hash.total, "ids_ends": ends}


class _Pieces:
    """Rows that are read in blocks of one size, and taken in blocks of another."""

    def __init__(self, blocks: Iterator[Array]) -> None:
        self._blocks = blocks
        self._left: Array | None = None

    def take(self, n: int) -> Array:
        """The next rows."""
        rows = next(self._blocks) if self._left is None else self._left
        while len(rows) < n:
            rows = np.concatenate([rows, next(self._blocks)])
        self._left = rows[n:] if len(rows) > n else None
        return rows[:n]


def row_functions(file: ScoresFile) -> tuple[Callable[..., TokenScores], Callable[..., Any]]:
    """The token scores and the losses of rows of this file, which are scores or hidden states, as functions."""
    if file.lm_head is None:
        return functools.partial(scores_of_kind, kind=file.kind), _LOSSES.get(file.kind, cross_entropy)
    scores, losses = linear_token_scores, linear_cross_entropy
    return functools.partial(_project, scores, file.lm_head), functools.partial(_project, losses, file.lm_head)


def scores_of_kind(
    block: Array, targets: Array, *, kind: str, ignore_index: int | None, where: BoolArray | None, top_k: int,
    workers: int | None, logit_scale: float = 1.0, moments: Columns | None = None, has_second: bool = True,
) -> TokenScores:  # fmt: skip
    """Like `token_scores`, for rows that may be truncated to their likeliest classes and need not add up to 1.

    `moments` get what calibration needs besides, perhaps without what takes a second pass over each row.
    """
    array, code = as_float_array(kind, block)
    scores = _core.Scores(kind, array, code, 1, array.shape, _core.KINDS.index(kind))
    positions = as_positions("targets", targets, scores, ignore_index, where, distributions=False)
    job, columns = token_job(scores, positions, (logit_scale, 0.0), top_k)
    if moments is not None:
        moments |= with_moments(job, has_second=has_second)
    jobs.run(job, workers)
    return TokenScores(**columns)


def _project(function: Callable[..., Any], head: LmHead, hidden: Array, targets: Array, **options: Any) -> Any:
    """The result of a function that projects hidden states, with the head of their file."""
    check_map(head.weight)
    options |= {"lm_head_bias": head.bias, "logit_scale": head.logit_scale, "softcap": head.softcap}
    return function(hidden, head.weight, targets, **options)


class ShiftSampler:
    """Compares the losses of the first rows with their losses for the next row's target, as a shift would assign it.

    If targets are shifted, it is the row before whose target they would have without the shift.
    """

    def __init__(self, losses: Callable[..., Any], options: Options, has_ids: bool, left: int) -> None:
        self._losses, self._ignore_index, self._are_shifted = losses, options.ignore_index, bool(options.shift)
        self._has_ids, self._left = has_ids, left  # with ids, negative ones mean no sequence
        self._last: tuple[Array, ...] = ()  # the last row of the block before, with its target, sequence and mask
        self.sample = ShiftSample()

    def update(self, block: RowBlock) -> None:
        """Add a block of rows."""
        if self._left <= 0:
            return
        tokens = block.scores, block.ids, block.sequences, block.kept
        if self._last:
            self._take(*(np.concatenate([last, new[:1]]) for last, new in zip(self._last, tokens, strict=True)))
        self._take(*tokens)
        self._last = tuple(np.array(array[-1:]) for array in tokens)

    def _take(self, rows: Array, ids: Array, numbers: Array, kept: Array) -> None:
        """Add the pairs of neighboring rows of one sequence."""
        has_next = (numbers[1:] == numbers[:-1]) & kept[:-1] & kept[1:]
        if self._has_ids:
            has_next &= numbers[1:] >= 0
        pairs = np.flatnonzero(has_next)[: self._left]
        self._left -= len(pairs)
        own, others = (pairs + 1, pairs) if self._are_shifted else (pairs, pairs + 1)
        loss, options = self._losses, {"reduction": "none", "ignore_index": self._ignore_index}
        with np.errstate(invalid="ignore", over="ignore"):
            gain = loss(rows[own], ids[own], **options) - loss(rows[own], ids[others], **options)
            self.sample += ShiftSample(len(pairs), float(gain.sum()), float(np.square(gain).sum()))


# -- checks of scores: their kind, targets that are distributions, a missing norm --------------------------------------


def check_normalized(logsumexps: Array, itemsize: int, is_believed: bool) -> None:
    """Refuse rows whose logsumexp shows that they are not natural log-probabilities.

    A row that was cut to its likeliest classes has a negative one, which is accepted if the user gave the kind.
    """
    slack = UNNORMALIZED if itemsize > 2 else UNNORMALIZED_HALF
    wrong = logsumexps[(logsumexps > slack) | (logsumexps < (-np.inf if is_believed else -slack))]  # nan is not
    if wrong.size:
        fits = "for natural log-probabilities it is 0: are these to base 2, or logits, or truncated? "
        fits += f"{named('kind', 'log_probs')} accepts truncated rows"
        raise_error("unnormalized", name="log_probs", got=wrong[0], fits=fits)


class FirstRows:
    """Checks that the first rows of the mask have the kind of their file, and samples the norms of hidden states.

    `option` is the argument that gives the kind. A kind that the user gave is believed.
    """

    def __init__(self, file: ScoresFile, spec: FileSpec, option: str) -> None:
        self.is_given = spec.given_kind is not None
        self.itemsize = spec.row_bytes // (spec.classes or 1)  # of stored scores, which may be read as wider ones
        self._file, self._option, self._are_checked = file, option, file.sketch is not None
        self.rms: tuple[float, ...] = ()  # root mean squares of hidden states

    def check(self, rows: Array, kept: Array) -> None:
        """Check the next rows; only rows of the mask count."""
        head = self._file.lm_head
        if head is not None:
            check_map(head.weight)
            self.rms += root_mean_squares(rows, kept, _NORM_SAMPLE - len(self.rms), head.norm_weights)
        elif not self._are_checked:
            self._are_checked = self._check_kind(rows, kept)

    def _check_kind(self, block: Array, kept: Array) -> bool:
        """Refuse scores of another kind, judged by the first kept rows of a block; return whether there were any."""
        max_rows = min(_FIRST_ROWS, _FIRST_ELEMENTS // max(1, block.shape[1]))
        rows = block[np.flatnonzero(kept)[:max_rows]]
        with np.errstate(invalid="ignore"):  # signaling nan
            rows = rows.astype(np.float64)
        if self._file.kind == "log_probs":
            with with_file_names(self._file.path):
                check_normalized(logsumexp(rows), self.itemsize, self.is_given)
        rows = rows[rows.any(-1) & ~np.isnan(rows).any(-1)]  # rows of zeros or with nan may be of any kind
        scores = as_scores("rows", rows, -1)
        if (
            self._file.kind == "logits"
            and not self.is_given
            and _core.look_like_probs(scores, without_targets(scores), len(rows))
        ):
            got = "looks like probabilities, since rows add up to 1"
            probs, logits = (named(self._option, kind) for kind in ("probs", "logits"))
            refuse(self._file.path, got, f"come with {probs} and its array's name, or with {logits} if it has logits")
        return len(rows) > 0 or max_rows == 0


def distribution_argmax(shard: Shard, start: int, rows: Array, mask: BoolArray) -> Array:
    """First maximum of each target distribution (N, V), -1 without classes; refuses rows that are not distributions.

    `start` is the position of the first row in the shard; rows that the mask leaves out may hold anything.
    """
    argmax = np.full(len(rows), -1)
    # NumPy copies what is read-only, and compares float16 one by one: small pieces that are copied as float32 stay in a
    # core's cache, and are ten times as fast
    dtype = np.float32 if rows.itemsize < 4 else rows.dtype
    step = max(1, _CACHED // (rows.shape[1] or 1))
    for first in range(0, len(rows) if rows.size else 0, step):
        part = rows[first : first + step].astype(dtype)
        wrong = ~_are_distributions(part) & mask[first : first + step]
        for row in np.flatnonzero(wrong)[:1].tolist():
            _refuse_distribution(shard, start + first + row, part[row])
        argmax[first : first + step] = part.argmax(-1)
    return argmax


def log(probs: Array) -> Array:
    """Logarithms in float64, so that different probabilities have different logarithms."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs: Array = np.log(probs, dtype=np.float64)
    return logs


def root_mean_squares(hidden: Array, kept: Array, most: int, norm: Sequence[Array] = ()) -> tuple[float, ...]:
    """Root mean squares of the first kept hidden states, divided by the weight of their final norm if it is known.

    After that norm they are 1, whether it divides by root mean squares or by standard deviations. Some models add 1 to
    the weight: whichever fits better is taken.
    """
    rows = hidden[np.flatnonzero(kept)[: max(0, most)]]
    if not rows.size:
        return ()
    with np.errstate(all="ignore"):
        rows = rows.astype(np.float64)
        if not norm:
            return tuple(np.sqrt(np.square(rows).mean(-1)).tolist())
        weight, *bias = norm
        candidates = []
        for divisor in weight, 1 + weight:
            is_large = abs(divisor) >= _MIN_NORM_WEIGHT * abs(divisor).max()  # others have few digits in half precision
            normal = ((rows - (bias[0] if bias else 0)) / np.where(is_large, divisor, 1))[:, is_large]
            candidates.append(np.sqrt(np.square(normal).mean(-1)))
        return tuple(min(candidates, key=lambda rms: abs(np.log(np.median(rms)))).tolist())


def norm_seems_missing(sample: Sequence[float], is_known: bool = False) -> bool:
    """True if hidden states seem to lack the final norm, after which their root mean squares are nearly the same.

    The spread is half of the distance between their logarithms at 16 % and 84 %: a standard deviation without outliers.
    Where the weight of the norm is known, they are 1.
    """
    rms = np.array(sample)
    rms = rms[np.isfinite(rms) & (rms > 0)]
    if len(rms) < _MIN_NORM_SAMPLE:
        return False
    low, high = np.quantile(np.log(rms), [0.16, 0.84])
    is_off = is_known and abs(np.log(np.median(rms))) > _MAX_NORM_SPREAD
    return bool(is_off or high - low > 2 * _MAX_NORM_SPREAD)


def _are_distributions(rows: Array) -> Array:
    """Mask of the rows of (N, V) that are probability distributions: values in [0, 1] and sum 1, nearly."""
    with np.errstate(invalid="ignore", over="ignore"):
        adds_up = abs(rows.sum(-1, dtype=np.float64) - 1) <= _SUM_SLACK
    fits: Array = adds_up & (rows.min(-1) >= -_PROBABILITY_SLACK) & (rows.max(-1) <= 1 + _PROBABILITY_SLACK)
    return fits


def _refuse_distribution(shard: Shard, row: int, probs: Array) -> NoReturn:
    """Raise an error with the reason why a row of targets is not a distribution."""
    position = [int(i) for i in np.unravel_index(row, shard.shape[:-1])] or ""
    got, fits = f"adds up to {probs.sum(dtype=np.float64):.4g}", "add up to 1, as a distribution does"
    for prob in (probs.min(), probs.max()):
        if not -_PROBABILITY_SLACK <= prob <= 1 + _PROBABILITY_SLACK:
            got, fits = f"has a probability of {prob:.4g}", "have probabilities from 0 to 1"
    fits += "; class ids are integers"
    if len(shard.shape) == 1:  # of samples, not of classes
        fits += "; for probabilities of only class 1, save both classes: np.stack([1 - p, p], -1)"
    refuse(shard.targets_path, f"targets{position} {got}", fits)
