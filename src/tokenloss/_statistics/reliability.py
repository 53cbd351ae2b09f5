"""Statistics of calibration: confidences and accuracies by bins, and the temperature that fits best."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from tokenloss._core import _core
from tokenloss._core.errors import named, raise_error
from tokenloss._core.estimate import Errors, Estimate
from tokenloss._core.exact import ExactMoments
from tokenloss._core.result import Shown, formatted, in_files, rows_of
from tokenloss._core.validation import check_integer
from tokenloss._scores.losses import natural_logs
from tokenloss._statistics.distributions import TAIL
from tokenloss._statistics.estimates import Measure
from tokenloss._statistics.gates import GatedResult, independent_note, verdict_on
from tokenloss._statistics.ratio import ExactRatio, interval_above_0
from tokenloss._statistics.sequences import sums_by_segment

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenloss._core.types import Array, BoolArray, Columns, Float64Array, IntArray
    from tokenloss._statistics.estimates import Method
    from tokenloss._statistics.gates import Limit, Verdict

FEW_CLASSES = 10  # with at most these classes, calibration is also measured class by class
BINNINGS = "equal_mass", "equal_width"
_BIN_COLUMNS = "low", "high", "count", "confidence", "accuracy", "accuracy_stderr"
_MAX_BINS = 10_000
_MAX_PASSES = 40  # of Newton's method, which takes 3 to 6 unless the temperature is 0 or infinite
_FIRST_PASSES = 3  # after which a scale that is still too small is doubled, at least
_MAX_STEP = 4.0  # factor by which the temperature changes in a pass, at most
_STEP_TOLERANCE = 1e-7  # of the temperature
_MAX_SCALE = 2.0**30  # of logits: beyond it, the temperature is 0, or infinite


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
        """The weighted mean of values, or their sum divided by that of `over`, with its clustered error."""
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


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Calibration(GatedResult):
    """Result of `calibration`: how well predicted probabilities match outcomes.

    The confidence of a token is the probability of its most likely class, and it is right if that is the target. For
    binary targets with one column of probabilities, bins are by the probability of class 1, and compare it with the
    fraction of class 1. A statistic is nan without tokens, or if any token's scores are nan.

    Attributes
    ----------
    count, n_sequences : int
        Number of tokens, and of sequences with any; 0 sequences if none were given.
    accuracy : Estimate
        Fraction of tokens that are right.
    mean_confidence : Estimate
        Mean probability of the most likely class.
    ece : Estimate
        Expected calibration error: the mean over tokens of ``|mean confidence - accuracy|`` of their bin. By chance it
        is too large, especially with many bins and few sequences; the lower end of its interval allows for that.
    ece_debiased : Estimate
        The same minus the expected effect of chance, given the error of each bin. It may be below 0 for calibrated
        models.
    ece_equal_mass, ece_equal_width : Estimate
        `ece` with bins that have equally many tokens, and with bins that are equally wide.
    mce : Estimate
        The largest ``|mean confidence - accuracy|`` of a bin. Its interval accounts for the choice among all bins.
    classwise_ece : Estimate or None
        Mean over the classes of the error between each class's probability and its frequency; None for more than 10
        classes.
    brier : Estimate or None
        Brier score: the mean over tokens of ``sum((p - y)**2)`` over all classes, from 0 to 2, which is twice the score
        with one column of binary probabilities. None for more than 10 classes, unless second moments were computed.
    brier_reliability, brier_resolution, brier_uncertainty, brier_within_bins : Estimate or None
        Parts of `brier` for up to 10 classes, without errors: ``reliability - resolution + uncertainty + within_bins``.
    loss : Estimate
        Mean loss in nats.
    d2 : Estimate
        Fraction of the log loss explained: 1 - `loss` over the loss of a model that predicts the frequency of each
        class.
    aurc : Estimate
        Area under the risk-coverage curve: the fraction of wrong tokens among those with at least a token's confidence,
        averaged over tokens.
    temperature : Estimate or None
        The temperature that minimizes the loss: pass ``logit_scale=1 / temperature``. 0 if the loss falls forever as
        it approaches 0, inf if equal probabilities are best, nan if the loss is not finite. None if it was not fitted.
    temperature_note : str
        Why a source has no temperature; "" otherwise.
    scaled_loss, scaled_ece : Estimate or None
        `loss` and `ece` at this temperature, on the tokens to which it was fitted.
    binning : str
        "equal_mass" or "equal_width", of `ece`, `mce` and `bins`.
    bins : dict of 1-D arrays
        Reliability: a table with a row for each bin with any token, see `columns`.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import calibration
    >>> rng = np.random.default_rng(0)
    >>> logits = rng.normal(size=(2000, 5))
    >>> targets = (logits + rng.gumbel(size=logits.shape)).argmax(-1)
    >>> result = calibration(3 * logits, targets)  # three times too sure
    >>> print(f"{result.ece:.2f}, and at temperature {result.temperature:.1f}: {result.scaled_ece:.2f}")
    0.29, and at temperature 3.0: 0.03
    """

    GATES: ClassVar[tuple[str, ...]] = ("max_ece",)

    count: int
    n_sequences: int
    accuracy: Estimate
    mean_confidence: Estimate
    ece: Estimate
    ece_debiased: Estimate
    ece_equal_mass: Estimate
    ece_equal_width: Estimate
    mce: Estimate
    classwise_ece: Estimate | None = None
    brier: Estimate | None = None
    brier_reliability: Estimate | None = None
    brier_resolution: Estimate | None = None
    brier_uncertainty: Estimate | None = None
    brier_within_bins: Estimate | None = None
    loss: Estimate
    d2: Estimate
    aurc: Estimate
    temperature: Estimate | None = None
    scaled_loss: Estimate | None = None
    scaled_ece: Estimate | None = None
    temperature_note: str = ""
    binning: str
    bins: dict[str, Array] = field(default_factory=lambda: {name: np.empty(0) for name in _BIN_COLUMNS})
    _gap: Any = field(default=None, compare=False)  # the measure of `ece`

    def columns(self) -> dict[str, Array]:
        """Return the columns of the reliability table, which has a row for each bin with tokens, in ascending order.

        Returns
        -------
        dict of 1-D arrays
            "low" and "high", between which the bin's confidences are, the latter included; "count"; "confidence" and
            "accuracy", the means; and "accuracy_stderr".

        Examples
        --------
        >>> from tokenloss import calibration
        >>> table = calibration([0.1, 0.2, 0.8, 0.9], [0, 1, 1, 1], kind="probs", bins=2).columns()
        >>> table["confidence"].round(2), table["accuracy"], table["accuracy_stderr"]
        (array([0.15, 0.85]), array([0.5, 1. ]), array([0.5, 0. ]))
        """
        return dict(self.bins)

    def _verdict(self, limit: Limit, tail: float) -> Verdict:
        return verdict_on_calibration(self, limit, tail)

    def _main(self) -> dict[str, str]:
        main = {"ece": formatted(self.ece, self.ece.stderr, 4), "count": str(self.count)}
        main |= {"n_sequences": str(self.n_sequences)} if self.n_sequences else {}
        main |= {"accuracy": f"{self.accuracy:.4f}", "mean_confidence": f"{self.mean_confidence:.4f}"}
        return main | ({} if self.temperature is None else {"temperature": formatted(self.temperature, digits=4)})

    def _facts(self) -> dict[str, Any]:
        return in_files(
            {name: value for name, value in vars(self).items() if name[0] != "_"} | {"bins": rows_of(self.bins)},
            dict.fromkeys((*_MAIN, "temperature"), ("stderr", "interval")) | dict.fromkeys(_BRIER_PARTS, ()),
        )

    def _shown(self) -> Shown:
        from tokenloss._statistics.tables import calibration_tables

        return Shown("calibration", "", calibration_tables(self))


_MAIN = ("ece", "ece_debiased", "ece_equal_mass", "ece_equal_width", "mce", "accuracy", "mean_confidence", "brier",
         "loss", "d2", "aurc", "scaled_loss", "scaled_ece", "classwise_ece")  # fmt: skip
_BRIER_PARTS = "brier_reliability", "brier_resolution", "brier_uncertainty", "brier_within_bins"
Calibration.__module__ = "tokenloss.results"


def verdict_on_calibration(calibration: Calibration | None, limit: Limit, tail: float, void: str = "") -> Verdict:
    """The verdict on a gate of the calibration error; `void` is the reason why it is meaningless."""
    if calibration is None:
        raise_error(
            "not for", name=limit.gate, fits=f"limits calibration errors, which need {named('calibration', True)}"
        )
    gap: Measure = calibration._gap
    return verdict_on(limit, gap.reach(tail, limit.value), gap, notes=independent_note(gap, tail), void=void)


def check_bins(bins: Any, binning: Any) -> tuple[int, str]:
    """The checked number of bins, and how they are made."""
    if binning not in BINNINGS:
        raise_error("option", name="binning", got=binning, fits=" or ".join(map(repr, BINNINGS)))
    return check_integer("bins", bins, f"an integer from 1 to {_MAX_BINS}", least=1, most=_MAX_BINS), binning


# -- bins ------------------------------------------------------------------------------------------------------------


class _Ordered:
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


class _Bins:
    """Tokens by bins of their predictions, and how far these are from the frequency of the predicted events.

    A bin is open below and closed above, as in scikit-learn's `calibration_curve`: 1.0 is in the last one. Bins of
    equal mass end at quantiles of the predictions, so that equal ones share a bin.
    """

    def __init__(self, ordered: _Ordered, bins: int, binning: str) -> None:
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

        It is less the larger the true gaps are. The most that it may be takes each as a standard error smaller, and
        errors as at least those of independent tokens of a calibrated model.
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
        return dict(zip(_BIN_COLUMNS, columns, strict=True))


# -- all statistics ----------------------------------------------------------------------------------------------------


def calibration_of(
    columns: Columns, bins: int = 15, binning: str = "equal_mass", fit: Fit | None = None, note: str = ""
) -> Calibration:
    """The calibration of kept tokens, whose columns are arrays by name, and the fit of their temperature.

    Columns are "nll", "confidence", "is_greedy" and "target"; and if they are known "brier", "probs" (of shape (V,
    tokens)), "sample_weight" and "segment_ids". With "event", bins are by "prediction" of these. The note says why
    there is no temperature.
    """
    target, nll, confidence, right = (columns[name] for name in ("target", "nll", "confidence", "is_greedy"))
    tokens = Tokens(target.size, columns.get("sample_weight"), columns.get("segment_ids"))
    predictions, events = columns.get("prediction", confidence), columns.get("event", right)
    numbers = np.empty(0) if tokens.sequence is None else tokens.sequence
    brier, probs = columns.get("brier"), columns.get("probs")
    if probs is not None:
        brier = sum((own - (target == number)) ** 2 for number, own in enumerate(probs))
    statistics: dict[str, Any] = {
        "count": target.size,
        "n_sequences": np.unique(numbers[numbers >= 0]).size,
        "accuracy": tokens.estimate(right, "share"),
        "mean_confidence": tokens.estimate(confidence),
        "loss": tokens.estimate(nll, "mean"),
        "brier": None if brier is None else tokens.estimate(brier, "mean"),
        "binning": binning,
        "temperature_note": note,
    }
    if not target.size or np.isnan(predictions).any():
        unknown = ("ece", "ece_debiased", "ece_equal_mass", "ece_equal_width", "mce", "d2", "aurc")
        statistics |= dict.fromkeys(unknown, Estimate(math.nan))
        statistics["_gap"] = tokens.mean(np.full(target.size, math.nan))
        return Calibration(**statistics, **_scaled_statistics(tokens, fit, events, bins, binning))
    ordered = _Ordered(tokens, predictions, events)
    binned = {name: _Bins(ordered, bins, name) for name in BINNINGS}
    main, gap = binned[binning], binned[binning].measure()
    statistics |= {f"ece_{name}": Estimate(one.error, one.measure) for name, one in binned.items()}
    statistics |= {"ece": Estimate(gap.mean, gap), "ece_debiased": Estimate(gap.mean - main.excess(), gap)}
    statistics |= {"mce": main.mce(), "bins": main.table(), "d2": _d2(tokens, nll, target), "_gap": gap}
    statistics["aurc"] = _aurc(_Ordered(tokens, confidence, right) if "event" in columns else ordered)
    if probs is not None:
        by_class = [_Bins(_Ordered(tokens, own, target == number), bins, binning) for number, own in enumerate(probs)]
        statistics["classwise_ece"] = _classwise(tokens, by_class)
        statistics |= _brier_parts(tokens, statistics["brier"], by_class, target)
    return Calibration(**statistics, **_scaled_statistics(tokens, fit, events, bins, binning))


def _classwise(tokens: Tokens, by_class: list[_Bins]) -> Estimate:
    """The mean of the errors of all classes."""

    def errors() -> Measure:
        signed = np.sum([one.signed(is_ordered=False) for one in by_class], axis=0) / len(by_class)
        excess = math.fsum(one.excess(at_most=True) for one in by_class) / len(by_class)
        return tokens.mean(signed)._replace(excess=excess)

    return Estimate(math.fsum(one.error for one in by_class) / len(by_class), errors)


def _brier_parts(tokens: Tokens, brier: float, by_class: list[_Bins], target: IntArray) -> dict[str, Estimate]:
    """The decomposition of the Brier score (Murphy, J. Appl. Meteorol. 12, 1973), with the remainder within bins."""
    rates = [tokens.value(target == number) for number in range(len(by_class))]
    pairs = [one.parts_of_brier(rate) for one, rate in zip(by_class, rates, strict=True)]
    reliability, resolution = map(math.fsum, zip(*pairs, strict=True))
    uncertainty = math.fsum(rate * (1 - rate) for rate in rates)
    within = brier - (reliability - resolution + uncertainty)
    parts = map(Estimate, (reliability, resolution, uncertainty, within))
    return dict(zip(_BRIER_PARTS, parts, strict=True))


def _d2(tokens: Tokens, nll: Float64Array, target: IntArray) -> Estimate:
    """The fraction of the log loss explained: 1 minus a ratio of sums."""
    sizes = np.bincount(target).astype(np.float64)
    if tokens.weight is not None:
        sums = sums_by_segment(tokens.weight, None, target)
        sizes[sums.sequence] = sums.nll
    logs = -natural_logs(np.where(sizes > 0, sizes / tokens.mass, 1.0))
    baseline = math.fsum((sizes * logs).tolist()) / tokens.mass

    def errors() -> Measure:
        measure = tokens.mean(nll, over=logs[target])
        return measure._replace(mean=1 - measure.mean)

    return Estimate(1 - tokens.value(nll) / baseline if baseline else math.nan, errors)


def _aurc(ordered: _Ordered) -> Estimate:
    """The area under the risk-coverage curve, where tokens of equal confidence count together.

    Its error is that of its influence function: what each token adds to the risk at its own confidence, and below.
    """
    tokens, wrong = ordered.tokens, ~ordered.events
    is_new = ordered.predictions[1:] != ordered.predictions[:-1]
    label = np.concatenate([[0], np.cumsum(is_new)])
    weights = np.ones(tokens.size) if tokens.weight is None else tokens.weight
    sums = np.bincount if tokens.weight is None else lambda number, one: sums_by_segment(one, None, number).nll
    own, errors = sums(label, weights), sums(label, weights * wrong)
    mass = np.cumsum(own[::-1])[::-1]
    risk = np.cumsum(errors[::-1])[::-1] / mass
    at_token = risk[label]

    def with_errors() -> Measure:
        step = own / mass
        below, risk_below = (np.cumsum(one)[label] for one in (step, risk * step))
        influence = tokens.mean(at_token + wrong * below - risk_below)
        return tokens.mean(at_token, "mean")._replace(independent=influence.independent)

    return Estimate(tokens.value(at_token), with_errors)


# -- temperature -----------------------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """The fit of a temperature: the scale of the logits, and the columns at this scale."""

    scale: float
    columns: Columns


def fit_temperature(at_scale: Callable[[float], Columns], tokens: Tokens) -> Fit:
    """The scale of the logits that minimizes the mean loss, by Newton's method.

    `at_scale` reads all tokens with scaled logits, and returns their "nll", "entropy", "variance" (of
    log-probabilities), "is_greedy" and "prediction", the probability of the likeliest class, or for binary targets of
    class 1. The derivative of a token's loss by the logarithm of the scale is loss - entropy; the second derivative by
    the scale, times its square, is the variance of the log-probabilities. The loss is convex in the scale, so that a
    step beyond a scale whose derivative is known is halved.
    """
    scale, low, high = 1.0, 0.0, math.inf
    for number in range(_MAX_PASSES):
        columns = at_scale(scale)
        with np.errstate(invalid="ignore"):
            slope = tokens.value(columns["nll"] - columns["entropy"])
        curvature = tokens.value(columns["variance"])
        if not math.isfinite(slope) or not math.isfinite(curvature):
            return Fit(math.nan, columns)
        step = slope / curvature if curvature else math.copysign(math.inf, slope) if slope else 0.0
        if abs(step) <= _STEP_TOLERANCE or not 1 / _MAX_SCALE < scale < _MAX_SCALE:
            return Fit(scale, columns)
        low, high = (low, scale) if step > 0 else (scale, high)
        new = min(max(scale * (1 - step), scale / _MAX_STEP), scale * _MAX_STEP)
        if number >= _FIRST_PASSES and not (low and high < math.inf):  # of few errors, steps stay short
            new = min(new, scale / 2) if step > 0 else max(new, scale * 2)
        scale = new if low < new < high else math.sqrt(low * high)
        if number == 0 and columns["is_greedy"].all():
            scale = _MAX_SCALE
    return Fit(math.nan, columns)


def _scaled_statistics(tokens: Tokens, fit: Fit | None, events: BoolArray, bins: int, binning: str) -> dict[str, Any]:
    """The temperature, and the loss and the calibration error there."""
    if fit is None:
        return {}
    scale, columns = fit
    temperature = 1 / scale if 1 / _MAX_SCALE < scale < _MAX_SCALE else math.nan
    if temperature != temperature and scale == scale:
        temperature = 0.0 if scale > 1 else math.inf

    def errors() -> Errors:
        if not 0 < temperature < math.inf:
            return Errors(unit="tokens")
        measure = tokens.mean(columns["nll"] - columns["entropy"], over=columns["variance"])
        stderr, factor = temperature * measure.independent.stderr, measure.independent.interval_factor
        return Errors(stderr, interval_above_0(temperature, stderr, factor), measure.unit)

    prediction = columns["prediction"]
    is_known = prediction.size and not np.isnan(prediction).any()
    binned = _Bins(_Ordered(tokens, prediction, events), bins, binning) if is_known else None
    return {
        "temperature": Estimate(temperature, errors),
        "scaled_loss": tokens.estimate(columns["nll"], "mean"),
        "scaled_ece": Estimate(binned.error, binned.measure) if binned else Estimate(math.nan),
    }
