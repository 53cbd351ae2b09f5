"""Groups of tokens or spans, by any label: counts, means, and sums whose errors are clustered by sequence."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from tokenloss._core.exact import ExactMoments
from tokenloss._statistics.ratio import ExactRatio
from tokenloss._statistics.sequences import sums_by_segment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenloss._core.types import Array, Float64Array, IntArray
    from tokenloss._statistics.sequences import SequenceLosses


class Groups:
    """Elements by label, the labels in ascending order.

    Errors take `parts` as independent: the elements of a group that are in one sequence. An element with a
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
            errors[number] = ExactRatio.of_mean(ExactMoments.of(own)).stderr
        return errors
