"""Tokens by bins of their predictions, and how far these are from the frequencies of what they predict."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core import _core
from tokenloss._core.errors import raise_error
from tokenloss._core.estimate import Errors, Estimate
from tokenloss._core.exact import ExactMoments
from tokenloss._core.validation import check_integer
from tokenloss._statistics.distributions import TAIL
from tokenloss._statistics.estimates import Measure
from tokenloss._statistics.ratio import ExactRatio
from tokenloss._statistics.sequences import sums_by_segment

if TYPE_CHECKING:
    from tokenloss._core.types import Array, BoolArray, Columns, Float64Array, IntArray
    from tokenloss._statistics.estimates import Method

BINNINGS = "equal_mass", "equal_width"
BIN_COLUMNS = "low", "high", "count", "confidence", "accuracy", "accuracy_stderr"
_MAX_BINS = 10_000


def check_bins(bins: Any, binning: Any) -> tuple[int, str]:
    """The checked number of bins, and how they are made."""
    if binning not in BINNINGS:
        raise_error("option", name="binning", got=binning, fits=" or ".join(map(repr, BINNINGS)))
    return check_integer("bins", bins, f"an integer from 1 to {_MAX_BINS}", least=1, most=_MAX_BINS), binning


class Tokens(NamedTuple):
    """Kept tokens, which give means their errors: their weights and the numbers of their sequences, if given."""

    size: int
    weight: Float64Array | None = None
    sequence: IntArray | None = None  # negative for none

    @property
    def mass(self) -> float:
        """The sum of the weights."""
        return float(self.size) if self.weight is None else ExactMoments.of(self.weight).sum

    def select(self, rows: Array | slice) -> Tokens:
        """Some of the tokens, by their index, or in a slice with both ends."""
        weight, sequence = self.weight, self.sequence
        size = rows.stop - rows.start if isinstance(rows, slice) else rows.size
        return Tokens(size, None if weight is None else weight[rows], None if sequence is None else sequence[rows])

    def value(self, values: Array) -> float:
        """The weighted mean of values."""
        if self.weight is not None:
            return self._replace(sequence=None).mean(values).mean
        if values.dtype == np.bool_:
            return int(np.count_nonzero(values)) / self.size if self.size else math.nan
        return ExactMoments.of(values).mean

    def mean(self, values: Array, method: Method = "signed", over: Float64Array | None = None) -> Measure:
        """The weighted mean of `values`, or their sum divided by the sum of `over`, with its clustered error."""
        is_plain = over is None and self.weight is None
        values, parts = values.astype(np.float64, copy=False), np.ones(self.size) if over is None else over
        if self.weight is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                values, parts = values * self.weight, parts * self.weight
        tokens = ExactRatio.from_mean(ExactMoments.of(values)) if is_plain else ExactRatio.of(values, parts)
        if self.sequence is not None and (is_part := self.sequence >= 0).any():
            sums = (sums_by_segment(one[is_part], None, self.sequence[is_part]).nll for one in (values, parts))
            sequences = ExactRatio.of(*sums) + ExactRatio.of(values[~is_part], parts[~is_part])
            if sequences.count > 1:
                return Measure(tokens.ratio, sequences, "sequences", method, self.size)
        return Measure(tokens.ratio, tokens, "tokens", method, self.size)

    def estimate(self, values: Array, method: Method = "signed") -> Estimate:
        """The weighted mean of values, whose errors are computed when they are first read."""
        return Estimate(self.value(values), lambda: self.mean(values, method))


class Ordered:
    """Tokens in the order of their predictions.

    The last bit of a prediction, 2**-53 of it, gives way to whether its event happened, so that only one array is
    sorted, and no index. Those below 0 by rounding count as 0.
    """

    def __init__(self, tokens: Tokens, predictions: Float64Array, events: BoolArray) -> None:
        self._keys = (np.maximum(predictions, 0.0).view(np.uint64) & ~np.uint64(1)) | events
        if tokens.weight is None and tokens.sequence is None:
            keys, self.tokens = self._keys.copy(), tokens
            _core.sort_keys(keys, np.empty_like(keys))
        else:
            keys, self.tokens = self._keys[self.order], tokens.select(self.order)
        self.predictions, self.events = (keys & ~np.uint64(1)).view(np.float64), (keys & np.uint64(1)).astype(np.bool_)
        self.gaps = self.events - self.predictions

    @property
    def order(self) -> IntArray:
        """The index of each token."""
        return np.argsort(self._keys)

    def quantiles(self, fractions: Float64Array) -> Float64Array:
        """The quantiles of the predictions, by linear interpolation as in NumPy."""
        place = fractions * (self.predictions.size - 1)
        below = np.floor(place)
        low, high = (self.predictions[np.int64(one)] for one in (below, np.ceil(place)))
        part, step = place - below, high - low
        values: Float64Array = np.where(part < 0.5, low + step * part, high - step * (1 - part))
        return values


class Bins:
    """Tokens by bins of their predictions, and how far these are from the frequency of the predicted events.

    A bin is open below and closed above, as in scikit-learn's `calibration_curve`: 1.0 is in the last one. Bins of
    equal mass end at quantiles of the predictions, so that equal ones share a bin.
    """

    def __init__(self, ordered: Ordered, bins: int, binning: str) -> None:
        self._ordered, self.edges = ordered, np.linspace(0, 1, bins + 1)
        if binning == "equal_mass":
            self.edges = ordered.quantiles(self.edges)
        inner = np.searchsorted(ordered.predictions, self.edges[1:-1], "right").tolist()
        bounds = [*pairwise([0, *inner, ordered.predictions.size])]
        self.numbers = [number for number, (first, last) in enumerate(bounds) if first < last]
        self._rows = [slice(*bounds[number]) for number in self.numbers]
        self._parts = [ordered.tokens.select(rows) for rows in self._rows]
        self._gaps = self._values(ordered.gaps)
        mass = np.array([part.mass for part in self._parts])
        self._share = mass / mass.sum()

    def _values(self, values: Array) -> list[float]:
        """The mean of values in each bin."""
        return [part.value(values[rows]) for part, rows in zip(self._parts, self._rows, strict=True)]

    @property
    def _rates(self) -> list[Measure]:
        """The fraction of events in each bin."""
        events = self._ordered.events
        return [part.mean(events[rows], "share") for part, rows in zip(self._parts, self._rows, strict=True)]

    @property
    def _stderrs(self) -> list[float]:
        """The standard errors of the gaps; 0 where they are unknown."""
        gaps = self._ordered.gaps
        errors = [part.mean(gaps[rows]).stderr for part, rows in zip(self._parts, self._rows, strict=True)]
        return [0.0 if math.isnan(error) else error for error in errors]

    def excess(self, *, at_most: bool = False) -> float:
        """The expected effect of chance: the mean size of normal gaps with their standard errors, minus their size.

        The larger the true gaps are, the smaller it is. With `at_most`, it is an upper bound: each gap counts as a
        standard error smaller, and no error as less than that of independent tokens of a calibrated model.
        """
        errors, p, total = self._stderrs, self._ordered.predictions, 0.0
        if at_most:
            least = zip(self._values(p * (1 - p)), self._parts, strict=True)
            errors = [
                max(one, math.sqrt(max(mean, 0.0) / part.size)) for one, (mean, part) in zip(errors, least, strict=True)
            ]
        for share, gap, error in zip(self._share.tolist(), self._gaps, errors, strict=True):
            size = max(abs(gap) - error * at_most, 0.0)
            if error > 0:
                z = size / error
                folded = error * math.sqrt(2 / math.pi) * math.exp(-z * z / 2) + size * math.erf(z / math.sqrt(2))
                total += share * (folded - size)
        return total

    @property
    def error(self) -> float:
        """The mean over tokens of the sizes of gaps."""
        return math.fsum((self._share * np.abs(self._gaps)).tolist())

    def signed(self, *, is_ordered: bool = True) -> Float64Array:
        """The gap of each token, whose mean is the error; in the order of predictions, or as the tokens came."""
        ordered, signs = self._ordered, np.sign(self._gaps)
        signed: Float64Array = ordered.gaps * np.repeat(signs, [rows.stop - rows.start for rows in self._rows])
        if not is_ordered:
            signed[ordered.order] = signed.copy()
        return signed

    def measure(self) -> Measure:
        """The error with its standard error and interval."""
        measure = self._ordered.tokens.mean(self.signed())
        return measure._replace(mean=self.error, excess=self.excess(at_most=True))

    def mce(self) -> Estimate:
        """The largest gap of a bin, with an interval for the largest of all true ones."""
        sizes = np.abs(self._gaps).tolist()
        worst = int(np.argmax(sizes))

        def errors() -> Errors:
            ends = []
            for mean, rate in zip(self._values(self._ordered.predictions), self._rates, strict=True):
                # the interval of a fraction allows for bins in which all are right
                low, high = (end - mean for end in rate.reach(TAIL / len(sizes))[1:3])
                least = 0.0 if math.isnan(low) or low * high <= 0 else min(abs(low), abs(high))
                ends.append((least, 1.0 if math.isnan(low) else max(abs(low), abs(high))))
            measure = self._parts[worst].mean(self._ordered.gaps[self._rows[worst]])
            low, high = (max(column) for column in zip(*ends, strict=True))
            return Errors(measure.stderr, (low, min(high, 1.0)), measure.unit)

        return Estimate(sizes[worst], errors)

    def parts_of_brier(self, rate: float) -> tuple[float, float]:
        """The squared distances of the bins' frequencies from their predictions, and from the frequency in all."""
        rates = np.array(self._values(self._ordered.events))
        return float(self._share @ np.square(self._gaps)), float(self._share @ (rates - rate) ** 2)

    def table(self) -> Columns:
        """The reliability table."""
        means, rates = self._values(self._ordered.predictions), self._rates
        columns = (
            self.edges[self.numbers],
            self.edges[1:][self.numbers],
            np.array([part.size for part in self._parts], np.int64),
            np.array(means),
            np.array([rate.mean for rate in rates]),
            np.array([rate.stderr for rate in rates]),
        )
        return dict(zip(BIN_COLUMNS, columns, strict=True))
