"""Groups of tokens or spans, by any label: counts, means, and sums whose errors are clustered by sequence."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core.dtypes import as_array
from tokenloss._core.errors import raise_error
from tokenloss._core.exact import ExactMoments
from tokenloss._core.result import columns_of, in_files
from tokenloss._core.validation import broadcast
from tokenloss._statistics.estimates import Measure
from tokenloss._statistics.meter import in_bits
from tokenloss._statistics.ratio import ExactRatio
from tokenloss._statistics.sequences import sums_by_segment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tokenloss._core.estimate import Estimate
    from tokenloss._core.types import Array, Float64Array, IntArray
    from tokenloss._statistics.meter import LossMeter
    from tokenloss._statistics.sequences import SequenceLosses

MOST_GROUPS = 10_000
_BY = "'position', 'position:N', 'file', or the name of a field"
_ERRORS_IN_FILES = {"perplexity": ("interval",), "bits_per_byte": ("stderr", "interval")}


class Groups:
    """Elements by label, the labels in ascending order.

    Errors treat `parts` as independent: the elements of a group that are in one sequence. An element with a
    negative sequence number, or without `sequences`, is a part of its own. Sums over parts are exact, rounded once.
    Where sequences are whole, `ratios` of blocks, shards and machines add up.
    """

    def __init__(self, labels: Array, sequences: IntArray | None = None) -> None:
        self.labels, group = np.unique(labels, return_inverse=True)
        part = np.arange(group.size)
        if sequences is not None:
            part = np.where(sequences < 0, -1 - part, sequences)
        self._order = np.lexsort((part, group))  # once, instead of for each sum
        self._group = group[self._order]
        is_first = np.diff(self._group, prepend=-1) != 0
        is_first[1:] |= np.diff(part[self._order]) != 0
        self._part = np.cumsum(is_first) - 1
        whole = self._group[is_first & (part[self._order] >= 0)]
        self.n_sequences = np.bincount(whole, minlength=self.labels.size)  # of parts that are sequences
        self._bounds = np.searchsorted(self._group[is_first], np.arange(self.labels.size + 1)).tolist()

    @property
    def count(self) -> IntArray:
        """The number of elements of each group."""
        return np.bincount(self._group, minlength=self.labels.size)

    def _sums(self, values: Array, numbers: IntArray) -> SequenceLosses:
        """The sums of values with the same number."""
        return sums_by_segment(values[self._order].astype(np.float64, copy=False), None, numbers)

    def sums(self, values: Array) -> Float64Array:
        """The sum over each part."""
        return self._sums(values, self._part).nll

    def means(self, values: Array) -> Float64Array:
        """The mean over the elements of each group."""
        return self._sums(values, self._group).loss

    def ratios(self, numerators: Float64Array, denominators: Float64Array) -> Iterator[ExactRatio]:
        """The ratio of sums over parts in each group, with the error of independent parts."""
        for first, last in pairwise(self._bounds):
            yield ExactRatio.of(numerators[first:last], denominators[first:last])

    def stderrs(self, values: Array) -> Float64Array:
        """The standard errors of the means, clustered by sequence unless all elements of a group are in one.

        They are nan for single elements.
        """
        sizes = np.bincount(self._part).astype(np.float64)
        errors = np.array([ratio.stderr for ratio in self.ratios(self.sums(values), sizes)], np.float64)
        for number in np.flatnonzero((np.diff(self._bounds) == 1) & (self.count > 1)).tolist():
            own = values[self._order[slice(*np.searchsorted(self._group, (number, number + 1)))]]
            errors[number] = ExactRatio.from_mean(ExactMoments.of(own)).stderr
        return errors


def check_groups(groups: Any, shape: tuple[int, ...]) -> Array:
    """Labels of elements: integers, booleans or text, broadcast over this shape."""
    array, _ = as_array("groups", groups)
    if array.dtype == object and all(isinstance(label, str) for label in array.flat):
        array = array.astype(str)
    if array.dtype.kind not in "biuUT":
        raise_error("dtype", name="groups", got=array.dtype, fits="an integer, bool or text")
    return broadcast("groups", array, shape)


def check_by(by: Any) -> str | None:
    """The checked option `by`: "position", "position:N" for bins of N, "file", or the name of a field."""
    if by is None:
        return None
    if not isinstance(by, str) or not by:
        raise_error("type", name="by", got=by, fits=_BY)
    head, colon, width = by.partition(":")
    if head == "position" and colon and not (width.isdecimal() and width.isascii() and 0 < int(width) < 1 << 62):
        raise_error("option", name="by", got=by, fits=f"{_BY}, where N is a positive integer")
    return by


def is_by_position(by: str | None) -> bool:
    """Whether tokens are grouped by their position."""
    return by is not None and by.partition(":")[0] == "position"


def position_bins(by: str, positions: IntArray) -> IntArray:
    """The first position of the bin of each position, -1 for -1; bins are [0], [1], [2, 3], [4, 7] and so on, or of N.

    A position below 2**53 has its own exponent in float64.
    """
    width = int(by.partition(":")[2] or 0)
    if width:
        return np.where(positions < 0, -1, positions // width * width)
    exponents = np.frexp(np.maximum(positions, 1))[1] - 1
    return np.where(positions < 1, positions, np.left_shift(1, exponents.astype(np.int64)))


def label_text(by: str, label: int | str | None) -> str:
    """The text of a label in tables: bins of positions show both ends."""
    if label is None:
        return "none"
    if not is_by_position(by) or isinstance(label, str):
        return str(label)
    last = label + int(by.partition(":")[2] or max(label, 1)) - 1
    return f"{label:,}" if last == label else f"{label:,} to {last:,}"


def field_labels(values: Sequence[Any]) -> list[int | str | None] | None:
    """Labels of a field's values: integers and text unchanged, others as in JSON; None if any is a list or object."""
    words = {True: "true", False: "false"}
    labels = [words[one] if isinstance(one, bool) else repr(one) if isinstance(one, float) else one for one in values]
    return labels if all(one is None or isinstance(one, int | str) for one in labels) else None


def check_number_of_groups(count: int, by: str) -> None:
    """Refuse more groups than tables should have."""
    if count > MOST_GROUPS:
        raise_error("option", name="by", got=by, fits=f"something that makes at most {MOST_GROUPS:,} groups")


def label_key(label: int | str | None) -> tuple[bool, bool, int | str]:
    """The sort key of a label: numbers come before text, and None, for tokens without a label, comes last."""
    return label is None, isinstance(label, str), 0 if label is None else label


def columns_of_groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """The columns of a table of groups; labels of several types keep them."""
    labels = [row["group"] for row in rows]
    columns = columns_of(rows)
    if len({*map(type, labels)}) > 1:
        columns["group"] = np.array(labels, np.object_)
    return columns


def rows_of_meters(meters: Mapping[Any, LossMeter]) -> list[dict[str, Any]]:
    """The rows of a table of groups by the meter of each label, in the order of the labels."""
    rows = []
    for label in sorted(meters, key=label_key):
        one = meters[label]
        values = one.count, one.n_sequences, one.loss, one.perplexity
        rows.append(_row(label, *values, one.bits_per_byte if one.n_bytes else None))
    return rows


def rows_of_sequences(labels: Array, sequences: Mapping[str, Array]) -> list[dict[str, Any]]:
    """The rows of a table of groups of sequences, given the label of each and the table of their sums."""
    groups, rows = Groups(labels), []
    nll, count, *n_bytes = (groups.sums(sequences[name]) for name in ("nll", "count", "n_bytes") if name in sequences)
    by_bytes = groups.ratios(nll, *n_bytes) if n_bytes else iter(())
    for label, ratio in zip(groups.labels.tolist(), groups.ratios(nll, count), strict=True):
        loss, byte_rate = Measure(ratio.ratio, ratio, "sequences"), next(by_bytes, None)
        values = int(ratio.denominators.sum), ratio.count, loss.estimate(), loss._replace(method="exp").estimate()
        bits = None if byte_rate is None else in_bits(Measure(byte_rate.ratio, byte_rate, "sequences").estimate())
        rows.append(_row(label, *values, bits))
    return rows


def _row(label: Any, count: int, n_sequences: int, loss: Estimate, perplexity: Estimate, bits: Any) -> dict[str, Any]:
    """A row of a table of groups, with bits per byte if they are known."""
    statistics = {"count": count, "n_sequences": n_sequences, "loss": loss, "perplexity": perplexity}
    statistics |= {} if bits is None else {"bits_per_byte": bits}
    return {"group": label, **in_files(statistics, _ERRORS_IN_FILES)}
