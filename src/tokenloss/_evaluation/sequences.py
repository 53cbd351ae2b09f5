"""Assigns the rows of a file to sequences, and sums losses over sequences and groups while rows are scored."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from tokenloss._core.errors import named, raise_error, refuse
from tokenloss._core.exact import ExactMoments
from tokenloss._core.result import rows_of
from tokenloss._evaluation.checkpoint import record
from tokenloss._statistics.groups import check_number_of_groups, is_by_position, label_key
from tokenloss._statistics.meter import LossMeter, add_lengths, add_tokens
from tokenloss._statistics.ratio import ExactRatio
from tokenloss._statistics.sequences import SequenceLosses, check_offsets, check_segment_ids, sums_by_segment
from tokenloss.formats.mapped import check_map
from tokenloss.formats.scores_file import SEQUENCES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, MutableMapping, Sequence

    from tokenloss._comparison.compared_tokens import About
    from tokenloss._core.types import Array, BoolArray, Columns, Float64Array, IntArray
    from tokenloss._scores.token_scores import TokenScores
    from tokenloss.formats.scores_file import ScoresFile

TableT = TypeVar("TableT", bound=tuple[Any, ...])
_MAX_PENDING = 1 << 20  # tokens that are kept in memory until their sequence ends

# the columns of tokens that calibration takes
CALIBRATED = ("nll", "confidence", "is_greedy", "target", "segment_ids", "brier", "entropy", "variance", "probs")
_DTYPES: dict[str, Any] = {"is_greedy": np.bool_, "target": np.int64, "segment_ids": np.int64}


class RowSequences:
    """The sequence of each row, by segment ids or offsets; by default, each of N in scores (N, ..., V) is one."""

    def __init__(
        self, shape: tuple[int, ...], ids: Array | None = None, offsets: Array | None = None,
        counts: MutableMapping[int, int] | None = None,
    ) -> None:  # fmt: skip
        self._length = math.prod(shape[1:-1]) if len(shape) > 2 else 0
        self._ids, self._offsets = ids, offsets
        self._counts = {} if counts is None else counts  # of the rows so far of sequences that have an id

    @property
    def are_given(self) -> bool:
        """True if segment ids or offsets are given."""
        return self._ids is not None or self._offsets is not None

    @property
    def exist(self) -> bool:
        """True if rows may belong to sequences."""
        return self.are_given or self._length > 0

    @property
    def are_in_order(self) -> bool:
        """True if the rows of each sequence are known to be contiguous."""
        return self._ids is None

    def n_labels(self, rows: int) -> int:
        """The number of sequence labels of `rows` rows: one per sequence, or up to the highest segment id."""
        if self._offsets is not None:
            return len(self._offsets) - 1
        return int(self.numbers(0, rows).max(initial=-1)) + 1

    def numbers(self, start: int, stop: int) -> IntArray:
        """The number of the sequence of each of these rows; negative if it belongs to none."""
        rows = np.arange(start, stop)
        if self._ids is not None:
            check_map(self._ids)
            numbers: IntArray = self._ids[start:stop].astype(np.int64)
            return numbers
        if self._offsets is not None:
            return np.searchsorted(self._offsets, rows, "right") - 1
        return rows // self._length if self._length else np.full(len(rows), -1)

    def next_positions(self, start: int, numbers: IntArray) -> IntArray:
        """The positions in their sequences of rows from `start` on with these numbers; -1 outside any sequence.

        It is called with all rows, in order, since ids may be in any order.
        """
        rows = np.arange(start, start + len(numbers))
        if self._ids is not None:
            positions = _counted(numbers, self._counts)
        elif self._offsets is not None:
            positions = rows - self._offsets[numbers]
        else:
            positions = rows % self._length if self._length else np.full(len(rows), -1)
        return np.where(numbers < 0, -1, positions)

    def ends(self, rows: int) -> BoolArray:
        """Mask of the rows that are the last of their sequence, or belong to none; `rows` is the number of all."""
        numbers = self.numbers(0, rows)
        ends = np.ones(rows, np.bool_)
        ends[:-1] = (numbers[1:] != numbers[:-1]) | (numbers[1:] < 0)
        return ends


def _counted(ids: IntArray, counts: MutableMapping[int, int]) -> IntArray:
    """The number of earlier rows with the same id, for each row; `counts` has the counts so far, and is updated."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ids)])
    distinct, sizes = ordered[starts], np.diff(starts, append=len(ids))
    before = np.array([counts.get(number, 0) for number in distinct.tolist()], np.int64)
    positions = np.empty(len(ids), np.int64)
    positions[order] = np.arange(len(ids)) - np.repeat(starts - before, sizes)
    counts.update(zip(distinct.tolist(), (before + sizes).tolist(), strict=True))
    return positions


def row_sequences(
    file: ScoresFile, segments: Array | None, path: str | None, counts: dict[int, int] | None = None
) -> RowSequences:
    """The sequences of a file; segment ids from another file, if given, replace its own.

    `counts` is of the rows that sequences have in earlier files, by their ids.
    """
    ids, offsets = (file.segment_ids, file.cu_seqlens) if segments is None else (segments, None)
    if ids is not None and offsets is not None:
        refuse(file.path, f"contains {' and '.join(SEQUENCES)}", "contain only one of them")
    place = path or file.path
    try:
        if offsets is not None:
            return RowSequences(file.shape, None, check_offsets(offsets, file.rows))
        if ids is not None:
            shape = file.shape[:-1] if ids.shape == file.shape[:-1] else (file.rows,)
            if ids.shape != shape:
                raise_error("shape", name="segment_ids", got=ids.shape, fits=f"{file.shape[:-1]}, to fit {file.kind}")
            return RowSequences(file.shape, check_segment_ids(ids, shape).reshape(-1), counts=counts)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{place}: {error}") from error
    return RowSequences(file.shape)


@record
class SequenceColumns(NamedTuple):
    """Sequences: their number, tokens, sum of losses, whether each token is the likeliest class, and their bytes."""

    ids: IntArray
    tokens: IntArray
    nll: Float64Array
    is_greedy: BoolArray
    n_bytes: IntArray  # -1 without a tokenizer
    group: Array  # the number of the group of a token; 0 of a sequence

    @classmethod
    def of(cls, sequences: SequenceLosses) -> SequenceColumns:
        """Columns of sums over sequences."""
        assert sequences.is_greedy is not None
        n_bytes = np.full_like(sequences.count, -1) if sequences.n_bytes is None else sequences.n_bytes
        group = np.zeros(sequences.count.shape, np.int16)
        return cls(sequences.sequence, sequences.count, sequences.nll, sequences.is_greedy, n_bytes, group)

    def select(self, rows: Array) -> SequenceColumns:
        """The rows of a mask or an index."""
        columns: Any = (column[rows] for column in self)
        return SequenceColumns(*columns)

    def summed(self, with_bytes: bool = True) -> SequenceLosses:
        """Sums over sequences, if each row is a token."""
        n_bytes = self.n_bytes if with_bytes and not (self.n_bytes < 0).any() else None
        return sums_by_segment(self.nll, self.is_greedy, self.ids, n_bytes)


NO_SEQUENCES = SequenceColumns(
    np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64), np.empty(0, np.bool_), np.empty(0, np.int64),
    np.empty(0, np.int16),
)  # fmt: skip


@record
class Sources(NamedTuple):
    """Columns of a table of sequences: the line and choice of each, and known properties of its tokens."""

    line: IntArray
    choice: IntArray
    n_bytes: IntArray  # of their tokens that are scored; -1 where it is not known
    is_greedy_known: BoolArray
    custom_id: Array


NO_SOURCES = Sources(
    np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.bool_), np.empty(0, np.object_)
)


def joined(none: TableT, parts: Iterable[TableT]) -> TableT:
    """The rows of all parts in one table of columns, given the table without rows."""
    return type(none)(*map(np.concatenate, zip(none, *parts, strict=True)))


def joined_tokens(parts: Iterable[Columns | None], *, are_numbered: bool) -> Columns | None:
    """The tokens of all parts; None if they were not requested. Unless shared, sequence numbers continue."""
    every: list[Columns] = [{name: np.empty(0, _DTYPES.get(name)) for name in CALIBRATED}]
    first = 0
    for part in parts:
        if part is None:
            return None
        ids = part["segment_ids"]
        if not are_numbered:
            numbers, own = np.unique(ids, return_inverse=True)  # which may be as high as any
            ids, first = np.where(ids < 0, -1, own + first), first + numbers.size
        every.append(part | {"segment_ids": ids})
    none = np.empty(0)  # blocks lack second moments
    return {name: np.concatenate([part.get(name, none) for part in every]) for name in CALIBRATED}


@record
class GroupCodes(NamedTuple):
    """The group of each row: the index of its label, or the label itself without `labels`; -1 for no label."""

    codes: IntArray
    labels: Sequence[Any] | None = None

    def label(self, code: int) -> Any:
        """The label of a code; None for no label."""
        return None if code < 0 else code if self.labels is None else self.labels[code]


def groups_of(comparison: Any, by: str, parts: Sequence[GroupCodes], path: str) -> About:
    """The rows of a comparison's groups, from the group of each token in all parts, for its metrics in files."""
    unique = [np.unique(part.codes, return_inverse=True) for part in parts]
    named = [[part.label(code) for code in codes.tolist()] for part, (codes, _) in zip(parts, unique, strict=True)]
    labels = sorted({label for own in named for label in own}, key=label_key)
    check_number_of_groups(len(labels), by)
    numbers = {label: number for number, label in enumerate(labels)}
    labeled = zip(named, unique, strict=True)
    columns = [np.array([numbers[label] for label in own], np.int64)[inverse] for own, (_, inverse) in labeled]
    rows = rows_of(comparison.by(np.concatenate(columns).reshape(comparison.kept.shape)))
    check_labels(by, labels, path)
    return {"by": by, "groups": [row | {"group": labels[row["group"]]} for row in rows]}


def check_labels(by: str, labels: Collection[Any], path: str) -> None:
    """Refuse groups if no token has a label."""
    if [*labels] != [None]:
        return
    if is_by_position(by):
        got, fits = "contains tokens that are in no sequence", f"have sequences, in which {named('by', by)} counts"
    else:
        got, fits = f"has no field {by!r}", f"have the field of {named('by', by)}"
    refuse(path or "source", got, fits)


@record
class GroupMeters(NamedTuple):
    """Labels, and the meter of each, without tokens of sequences that continue in other shards."""

    labels: list[Any]
    meters: list[LossMeter]

    def by_label(self, split: SequenceColumns) -> dict[Any, LossMeter]:
        """The meter of each label, with the tokens of sequences that were in several shards."""
        meters = [meter + LossMeter() for meter in self.meters]
        add_sequences(meters, split)
        return dict(zip(self.labels, meters, strict=True))


class GroupCollector:
    """Adds up the losses of each group, sequence by sequence."""

    def __init__(self, by: str) -> None:
        self._by, self._numbers = by, dict[Any, int]()
        self._meters: list[LossMeter] = []

    def numbers(self, groups: GroupCodes) -> Array:
        """The number of the group of each token; labels are numbered in the order in which they first occur."""
        codes, inverse = np.unique(groups.codes, return_inverse=True)
        labels = map(groups.label, codes.tolist())
        own = [self._numbers.setdefault(label, len(self._numbers)) for label in labels]
        check_number_of_groups(len(self._numbers), self._by)
        self._meters += [LossMeter() for _ in range(len(self._numbers) - len(self._meters))]
        numbers: Array = np.array(own, np.int16)[inverse]
        return numbers

    def add_loose(self, numbers: Array, nll: Array, n_bytes: Array) -> None:
        """Add tokens that are in no sequence; bytes of -1 are unknown."""
        for meter, own in _by_group(self._meters, numbers):
            add_tokens(meter, ExactRatio.from_mean(ExactMoments.of(nll[own])))
            if (n_bytes[own] >= 0).all():
                add_lengths(meter, "n_bytes", nll[own], n_bytes[own])

    def add(self, tokens: SequenceColumns) -> None:
        """Add all tokens of some sequences."""
        add_sequences(self._meters, tokens)

    def result(self) -> GroupMeters:
        """The meters of all labels."""
        return GroupMeters([*self._numbers], self._meters)


def add_sequences(meters: Sequence[LossMeter], tokens: SequenceColumns) -> None:
    """Add the tokens of sequences to the meters of their groups."""
    for meter, own in _by_group(meters, tokens.group):
        meter.update(tokens.select(own).summed())


def _by_group(meters: Sequence[LossMeter], numbers: Array) -> Iterator[tuple[LossMeter, Array]]:
    """The meters of the groups that have tokens, with the index of these, given the number of each token's group."""
    order = np.argsort(numbers, kind="stable")
    bounds = np.searchsorted(numbers[order], np.arange(len(meters) + 1)).tolist()
    for meter, (start, stop) in zip(meters, pairwise(bounds), strict=True):
        if start < stop:
            yield meter, order[start:stop]


def joined_groups(
    parts: Iterable[tuple[GroupMeters | None, SequenceColumns]], by: str | None
) -> tuple[GroupMeters | None, Iterator[SequenceColumns]]:
    """The groups of all parts, and the tokens of their split sequences, which have the numbers of the joined groups."""
    numbers, meters = dict[Any, int](), list[LossMeter]()
    splits: list[SequenceColumns] = []
    for groups, split in parts:
        labels, group_meters = ([], []) if groups is None else groups
        own = [numbers.setdefault(label, len(numbers)) for label in labels]
        meters += [LossMeter() for _ in range(len(numbers) - len(meters))]
        for number, meter in zip(own, group_meters, strict=True):
            meters[number] += meter
        splits.append(split._replace(group=np.array(own, np.int16)[split.group]) if own else split)
    if by is not None:
        check_number_of_groups(len(numbers), by)
    return None if by is None else GroupMeters([*numbers], meters), iter(splits)


class SequenceCollector:
    """Adds up losses by sequence while the rows of a shard are scored.

    A token outside of any sequence goes to the meter by itself. Sequences that continue in other shards are left as
    tokens, for the sums to be exact.
    """

    def __init__(self, sequences: RowSequences, split: tuple[int, ...] | None, by: str | None = None) -> None:
        self.groups = None if by is None else GroupCollector(by)
        self.meter = LossMeter()
        self.greedy = LossMeter()  # in place of losses, 1 for each token that is the likeliest class, and 0 for others
        self._sequences, self._split = sequences, split
        self._whole: list[SequenceColumns] = []
        self._pending: list[SequenceColumns] = []  # a row for each token
        self._n_pending, self._most_pending = 0, _MAX_PENDING
        self._has_lengths = True

    def update(
        self, scores: TokenScores, numbers: IntArray, n_bytes: IntArray | None = None,
        groups: GroupCodes | None = None, is_length: bool = True,
    ) -> None:  # fmt: skip
        """Add the next rows, the numbers of their sequences, and perhaps the bytes and groups of their tokens.

        With `is_length=False`, only groups get the bytes: the bytes of sequences are added later.
        """
        is_part = scores.kept & (numbers >= 0)
        is_loose = scores.kept & ~is_part
        # targets that are rounded below 0 may have losses below -0.001, which `update` refuses
        for meter, values in ((self.meter, scores.nll), (self.greedy, scores.is_greedy)):
            add_tokens(meter, ExactRatio.from_mean(ExactMoments.of(values, is_loose)))
        if n_bytes is None:
            n_bytes = np.full_like(numbers, -1)
        elif is_length:
            add_lengths(self.meter, "n_bytes", scores.nll[is_loose], n_bytes[is_loose])
        self._has_lengths = is_length
        group = np.zeros(len(numbers), np.int16)
        if self.groups is not None and groups is not None and scores.kept.any():
            group[scores.kept] = self.groups.numbers(groups._replace(codes=groups.codes[scores.kept]))
            self.groups.add_loose(*(column[is_loose] for column in (group, scores.nll, n_bytes)))
        if is_part.any():
            tokens = SequenceColumns(numbers, np.ones_like(numbers), scores.nll, scores.is_greedy, n_bytes, group)
            self._pending.append(tokens.select(is_part))
            self._n_pending += len(self._pending[-1].ids)
        if self._n_pending > self._most_pending and self._sequences.are_in_order:
            self._end_sequences(up_to=int(numbers[-1]))

    def _end_sequences(self, up_to: float = math.inf) -> SequenceColumns:
        """Add up the sequences before this one; return the tokens of sequences that continue in other shards."""
        tokens = joined(NO_SEQUENCES, self._pending)
        is_later = tokens.ids >= up_to
        is_split = np.full(len(tokens.ids), True) if self._split is None else np.isin(tokens.ids, self._split)
        whole = tokens.select(~is_later & ~is_split)
        if len(whole.ids):
            if self.groups is not None:
                self.groups.add(whole)
            losses = whole.summed(self._has_lengths)
            self.meter.update(losses)
            self.greedy.update(greedy_by_segment(whole.is_greedy, whole.ids))
            self._whole.append(SequenceColumns.of(losses))
        self._pending = [tokens.select(is_later)]
        self._n_pending = len(self._pending[0].ids)
        self._most_pending = max(_MAX_PENDING, 2 * self._n_pending)  # to copy long sequences seldom
        return tokens.select(is_split)

    def result(self) -> tuple[LossMeter, SequenceColumns, SequenceColumns]:
        """The meter of all sequences except split ones; the whole sequences; and the tokens of the split ones."""
        split = self._end_sequences()
        return self.meter, joined(NO_SEQUENCES, self._whole), split


def greedy_by_segment(is_greedy: BoolArray, ids: IntArray) -> SequenceLosses:
    """The number of greedy tokens of each sequence, in place of its losses."""
    return sums_by_segment(is_greedy.astype(np.float64), None, ids)
