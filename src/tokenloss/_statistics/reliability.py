"""Statistics of calibration: confidences and accuracies by bins, and the temperature that fits best."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core.errors import raise_error
from tokenloss._core.estimate import Errors, Estimate
from tokenloss._core.exact import ExactMoments
from tokenloss._core.result import Result, Shown, figure, in_files, rows_of
from tokenloss._core.validation import check_integer
from tokenloss._scores.losses import natural_logs
from tokenloss._statistics.distributions import TAIL
from tokenloss._statistics.estimates import Measure
from tokenloss._statistics.ratio import ExactRatio, interval_above_0
from tokenloss._statistics.sequences import sums_by_segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tokenloss._core.types import Array, BoolArray, Columns, Float64Array, IntArray
    from tokenloss._statistics.estimates import Method

FEW_CLASSES = 10  # for up to so many, calibration is also measured class by class
BINNINGS = "equal_mass", "equal_width"
_BIN_COLUMNS = "low", "high", "count", "confidence", "accuracy", "accuracy_stderr"
_MAX_BINS = 10_000
_MAX_PASSES = 40  # of Newton's method, which takes 3 to 6 unless the temperature is 0 or infinite
_FIRST_PASSES = 3  # after which a scale that is still too small is doubled, at least
_MAX_STEP = 4.0  # factor by which the temperature changes in a pass, at most
_STEP_TOLERANCE = 1e-7  # of the temperature
_MAX_SCALE = 2.0**30  # of logits: beyond it, the temperature is 0, or infinite


class Tokens(NamedTuple):
    """Kept tokens, by which means get errors: their weights and the numbers of their sequences, if given."""

    size: int
    weight: Float64Array | None = None
    sequence: IntArray | None = None  # negative for none

    def select(self, rows: Array) -> Tokens:
        """Some of the tokens."""
        weight, sequence = self.weight, self.sequence
        return Tokens(len(rows), None if weight is None else weight[rows], None if sequence is None else sequence[rows])

    def _parts(self, values: Array, over: Float64Array | None) -> tuple[Float64Array, Float64Array]:
        """The values and what divides them, both times the weights."""
        values, parts = values.astype(np.float64, copy=False), np.ones(self.size) if over is None else over
        if self.weight is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                values, parts = values * self.weight, parts * self.weight
        return values, parts

    def _sums(self, values: Float64Array, parts: Float64Array, has_ones: bool) -> ExactRatio:
        """The sums over tokens."""
        return ExactRatio.of_mean(ExactMoments.of(values)) if has_ones else ExactRatio.of(values, parts)

    def value(self, values: Array) -> float:
        """The weighted mean of values."""
        return self._sums(*self._parts(values, None), self.weight is None).ratio

    def mean(self, values: Array, method: Method = "signed", over: Float64Array | None = None) -> Measure:
        """The weighted mean of values, or their sum divided by that of `over`, with its clustered error."""
        values, parts = self._parts(values, over)
        tokens = self._sums(values, parts, over is None and self.weight is None)
        if self.sequence is not None and (is_part := self.sequence >= 0).any():
            sums = (sums_by_segment(one[is_part], None, self.sequence[is_part]).nll for one in (values, parts))
            sequences = ExactRatio.of(*sums) + ExactRatio.of(values[~is_part], parts[~is_part])
            if sequences.count > 1:
                return Measure(tokens.ratio, sequences, "sequences", method, self.size)
        return Measure(tokens.ratio, tokens, "tokens", method, self.size)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Calibration(Result):
    """Result of `calibration`: whether tokens predicted with a probability of 0.9 are right nine times out of ten.

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
        Expected calibration error: the mean over tokens of ``|mean confidence - accuracy|`` of their bin. It is too
        large by chance, most with many bins and few sequences; the lower end of its interval allows for that.
    ece_debiased : Estimate
        The same less what chance adds, given the error of each bin. It may be below 0 for calibrated models.
    ece_equal_mass, ece_equal_width : Estimate
        `ece` with bins that have equally many tokens, and with bins that are equally wide.
    mce : Estimate
        The largest ``|mean confidence - accuracy|`` of a bin. Its interval accounts for the choice among all bins.
    classwise_ece : Estimate or None
        Mean over the classes of the error between each class's probability and its frequency; None for more than 10
        classes.
    brier : Estimate or None
        Brier score: the mean over tokens of ``sum((p - y)**2)`` over all classes, from 0 to 2, which is twice the score
        with one column of binary probabilities. None for more than 10 classes, unless it was asked for.
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
    binning: str
    bins: dict[str, Array] = field(default_factory=lambda: {name: np.empty(0) for name in _BIN_COLUMNS})

    def columns(self) -> dict[str, Array]:
        """Columns of the reliability table, which has a row for each bin with any token, in ascending order.

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

    def _main(self) -> dict[str, str]:
        main = {"ece": figure(self.ece, self.ece.stderr, 4), "count": str(self.count)}
        main |= {"n_sequences": str(self.n_sequences)} if self.n_sequences else {}
        main |= {"accuracy": f"{self.accuracy:.4f}", "mean_confidence": f"{self.mean_confidence:.4f}"}
        return main | ({} if self.temperature is None else {"temperature": figure(self.temperature, digits=4)})

    def _figures(self) -> dict[str, Any]:
        return in_files(
            {name: value for name, value in vars(self).items() if name != "bins"} | {"bins": rows_of(self.bins)},
            dict.fromkeys((*_MAIN, "temperature"), ("stderr", "interval")) | dict.fromkeys(_BRIER_PARTS, ()),
        )

    def _shown(self) -> Shown:
        from tokenloss._statistics.tables import calibration_tables

        return Shown("calibration", "", calibration_tables(self))


_MAIN = ("ece", "ece_debiased", "ece_equal_mass", "ece_equal_width", "mce", "accuracy", "mean_confidence", "brier",
         "loss", "d2", "aurc", "scaled_loss", "scaled_ece", "classwise_ece")  # fmt: skip
_BRIER_PARTS = "brier_reliability", "brier_resolution", "brier_uncertainty", "brier_within_bins"
Calibration.__module__ = "tokenloss.results"


def check_bins(bins: Any, binning: Any) -> tuple[int, str]:
    """The checked number of bins, and how they are made."""
    if binning not in BINNINGS:
        raise_error("option", name="binning", got=binning, fits=" or ".join(map(repr, BINNINGS)))
    return check_integer("bins", bins, f"an integer from 1 to {_MAX_BINS}", least=1, most=_MAX_BINS), binning


# -- bins ------------------------------------------------------------------------------------------------------------


class _Bins:
    """Tokens by bins of their predictions, and how far these are from the frequency of what they predict.

    A bin is open below and closed above, as in scikit-learn's `calibration_curve`: 1.0 is in the last one. Bins of
    equal mass end at quantiles of the predictions, so that equal ones share a bin, in any order.
    """

    def __init__(self, tokens: Tokens, predictions: Float64Array, events: BoolArray, bins: int, binning: str) -> None:
        self.edges = np.linspace(0, 1, bins + 1)
        if binning == "equal_mass" and predictions.size:
            self.edges = np.quantile(predictions, self.edges)
        label = np.searchsorted(self.edges[1:-1], predictions).astype(np.int16)
        order = np.argsort(label, kind="stable")
        starts = np.searchsorted(label[order], np.arange(bins + 1))
        self.numbers = np.flatnonzero(np.diff(starts))
        rows = [order[first:last] for first, last in pairwise(starts) if last > first]
        self._parts = [(tokens.select(part), part) for part in rows]
        self._predictions, self._events = predictions, events
        gaps = events - predictions
        self._gaps = [part.value(gaps[rows]) for part, rows in self._parts]
        sign = np.zeros(bins)
        sign[self.numbers] = np.sign(self._gaps)
        self.signed = sign[label] * gaps  # whose mean is the error
        mass = np.array([part.size if part.weight is None else part.weight.sum() for part, _ in self._parts])
        self._share = mass / mass.sum()

    def _errors(self, *, of_calibrated: bool) -> list[float]:
        """The standard errors of the gaps, at least those of independent tokens of a calibrated model if asked for."""
        errors = []
        for part, rows in self._parts:
            error, p = part.mean(self._events[rows] - self._predictions[rows]).stderr, self._predictions[rows]
            least = math.sqrt(part.value(p * (1 - p)) / part.size) if of_calibrated else 0.0
            errors.append(max(0.0 if math.isnan(error) else error, least))
        return errors

    def excess(self, *, at_most: bool = False) -> float:
        """What chance adds to the error: the mean size of normal gaps with their standard errors, less their size.

        It is less the larger the true gaps are. The most that it may be takes each as a standard error smaller.
        """
        total = 0.0
        for share, gap, error in zip(
            self._share.tolist(), self._gaps, self._errors(of_calibrated=at_most), strict=True
        ):
            size = max(abs(gap) - error * at_most, 0.0)
            if error > 0:
                z = size / error
                folded = error * math.sqrt(2 / math.pi) * math.exp(-z * z / 2) + size * math.erf(z / math.sqrt(2))
                total += share * (folded - size)
        return total

    def mce(self) -> Estimate:
        """The largest gap of a bin, with an interval for the largest of all true ones."""
        sizes = [abs(gap) for gap in self._gaps]
        worst, worst_rows = self._parts[int(np.argmax(sizes))]

        def errors() -> Errors:
            ends = []
            for part, rows in self._parts:  # the interval of a fraction allows for bins in which all are right
                mean, rate = part.value(self._predictions[rows]), part.mean(self._events[rows], "share")
                low, high = (end - mean for end in rate.reach(TAIL / len(sizes))[1:3])
                least = 0.0 if math.isnan(low) or low * high <= 0 else min(abs(low), abs(high))
                ends.append((least, 1.0 if math.isnan(low) else max(abs(low), abs(high))))
            measure = worst.mean(self._events[worst_rows] - self._predictions[worst_rows])
            low, high = (max(column) for column in zip(*ends, strict=True))
            return Errors(measure.stderr, (low, min(high, 1.0)), measure.unit)

        return Estimate(max(sizes), errors)

    def parts_of_brier(self, rate: float) -> tuple[float, float]:
        """The squared distances of the bins' frequencies from their predictions, and from the frequency in all."""
        rates = np.array([part.value(self._events[rows]) for part, rows in self._parts])
        return float(self._share @ np.square(self._gaps)), float(self._share @ (rates - rate) ** 2)

    def table(self) -> Columns:
        """The reliability table."""
        means = [
            (part.value(self._predictions[rows]), part.mean(self._events[rows], "share")) for part, rows in self._parts
        ]
        columns = (
            self.edges[self.numbers],
            self.edges[self.numbers + 1],
            np.array([part.size for part, _ in self._parts], np.int64),
            np.array([mean for mean, _ in means]),
            np.array([rate.mean for _, rate in means]),
            np.array([rate.stderr for _, rate in means]),
        )
        return dict(zip(_BIN_COLUMNS, columns, strict=True))


def _ece(tokens: Tokens, bins: Iterable[_Bins], *, is_debiased: bool = False) -> Estimate:
    """The mean of the errors of predictions in bins: of confidences, or of the probabilities of each class."""
    every = [*bins]
    measure = tokens.mean(np.sum([one.signed for one in every], axis=0) / len(every))
    value = measure.mean
    if is_debiased:
        value -= math.fsum(one.excess() for one in every) / len(every)

    def errors() -> Errors:
        radius = measure.stderr * measure.independent.interval_factor
        low = measure.mean - math.fsum(one.excess(at_most=True) for one in every) / len(every) - radius
        return Errors(measure.stderr, (max(low, 0.0), min(measure.mean + radius, 1.0)), measure.unit)

    return Estimate(value, errors)


# -- all statistics ----------------------------------------------------------------------------------------------------


def calibration_of(columns: Columns, bins: int, binning: str, scaled: Scaled | None = None) -> Calibration:
    """The calibration of kept tokens, whose columns are arrays by name, and the fit of their temperature.

    Columns are "nll", "confidence", "is_greedy" and "target"; and if they are known "brier", "probs" (with an axis of
    the classes), "sample_weight" and "segment_ids". With "event", bins are by "prediction" of these.
    """
    target, nll, confidence = columns["target"], columns["nll"], columns["confidence"]
    tokens = Tokens(target.size, columns.get("sample_weight"), columns.get("segment_ids"))
    predictions, events = columns.get("prediction", confidence), columns.get("event", columns["is_greedy"])
    numbers = np.empty(0) if tokens.sequence is None else tokens.sequence
    statistics: dict[str, Any] = {
        "count": target.size,
        "n_sequences": np.unique(numbers[numbers >= 0]).size,
        "accuracy": tokens.mean(columns["is_greedy"], "share").estimate(),
        "mean_confidence": tokens.mean(confidence).estimate(),
        "loss": tokens.mean(nll, "mean").estimate(),
        "binning": binning,
    }
    brier = tokens.mean(columns["brier"], "mean").estimate() if "brier" in columns else None
    statistics["brier"] = brier
    if not target.size or np.isnan(predictions).any():
        unknown = ("ece", "ece_debiased", "ece_equal_mass", "ece_equal_width", "mce", "d2", "aurc")
        statistics |= dict.fromkeys(unknown, Estimate(math.nan))
        scaled = None if scaled is None else scaled._replace(prediction=np.empty(0))
        return Calibration(**statistics, **_scaled_statistics(tokens, scaled, events, bins, binning))
    binned = {name: _Bins(tokens, predictions, events, bins, name) for name in BINNINGS}
    statistics |= {f"ece_{name}": _ece(tokens, [one]) for name, one in binned.items()}
    statistics |= {
        "ece": statistics[f"ece_{binning}"],
        "ece_debiased": _ece(tokens, [binned[binning]], is_debiased=True),
    }
    statistics |= {"mce": binned[binning].mce(), "bins": binned[binning].table()}
    statistics |= {"d2": _d2(tokens, nll, target), "aurc": _aurc(tokens, confidence, ~columns["is_greedy"])}
    if "probs" in columns:
        by_class = [
            _Bins(tokens, probs, target == number, bins, binning) for number, probs in enumerate(columns["probs"].T)
        ]
        statistics["classwise_ece"] = _ece(tokens, by_class)
        if brier is not None:
            statistics |= _brier_parts(tokens, brier, by_class, target)
    return Calibration(**statistics, **_scaled_statistics(tokens, scaled, events, bins, binning))


def _brier_parts(tokens: Tokens, brier: float, by_class: list[_Bins], target: IntArray) -> dict[str, Estimate]:
    """The decomposition of the Brier score (Murphy, J. Appl. Meteorol. 12, 1973), with what is left within bins."""
    rates = [tokens.value(target == number) for number in range(len(by_class))]
    pairs = [one.parts_of_brier(rate) for one, rate in zip(by_class, rates, strict=True)]
    reliability, resolution = map(math.fsum, zip(*pairs, strict=True))
    uncertainty = math.fsum(rate * (1 - rate) for rate in rates)
    within = brier - (reliability - resolution + uncertainty)
    parts = map(Estimate, (reliability, resolution, uncertainty, within))
    return dict(zip(_BRIER_PARTS, parts, strict=True))


def _d2(tokens: Tokens, nll: Float64Array, target: IntArray) -> Estimate:
    """The fraction of the log loss explained: 1 less a ratio of sums."""
    label = np.unique(target, return_inverse=True)[1]
    weights = np.ones(target.size) if tokens.weight is None else tokens.weight
    rates = sums_by_segment(weights, None, label.astype(np.int64)).nll / ExactMoments.of(weights).sum
    measure = tokens.mean(nll, over=-natural_logs(rates)[label])
    return measure._replace(mean=1 - measure.mean).estimate()


def _aurc(tokens: Tokens, confidence: Float64Array, wrong: BoolArray) -> Estimate:
    """The area under the risk-coverage curve, where tokens of equal confidence come together.

    Its error is that of its influence function: what each token adds to the risk at its own confidence, and below.
    """
    label = np.unique(-confidence, return_inverse=True)[1]
    weights = np.ones(tokens.size) if tokens.weight is None else tokens.weight
    number = label.astype(np.int64)
    mass, errors = (np.cumsum(sums_by_segment(one, None, number).nll) for one in (weights, weights * wrong))
    risk = errors / mass
    step = np.diff(mass, prepend=0.0) / mass
    below, of_risk = (np.cumsum(one[::-1])[::-1][label] for one in (step, risk * step))
    value, influence = tokens.mean(risk[label], "mean"), tokens.mean(risk[label] + wrong * below - of_risk)
    return value._replace(independent=influence.independent).estimate()


# -- temperature -----------------------------------------------------------------------------------------------------


class Scaled(NamedTuple):
    """The fit of a temperature: the scale of the logits, its relative error, and columns at this scale."""

    scale: float
    independent: ExactRatio  # whose standard error is that of the scale, relative to it
    unit: str
    nll: Float64Array
    prediction: Float64Array  # the probability of the likeliest class, or for binary targets of class 1


def fit_temperature(at_scale: Callable[[float], Columns], tokens: Tokens) -> Scaled:
    """The scale of the logits that minimizes the mean loss, by Newton's method.

    `at_scale` reads all tokens with scaled logits, and returns their "nll", "entropy", "variance" (of
    log-probabilities), "is_greedy" and "prediction". The derivative of a token's loss by the logarithm of the scale is
    loss - entropy; the second derivative by the scale, times its square, is the variance of the log-probabilities. The
    loss is convex in the scale, so that a step beyond a scale whose derivative is known is halved.
    """
    scale, low, high = 1.0, 0.0, math.inf
    for number in range(_MAX_PASSES):
        found = at_scale(scale)
        nll, prediction = found["nll"], found["prediction"]
        with np.errstate(invalid="ignore"):
            measure = tokens.mean(nll - found["entropy"], over=found["variance"])
        slope, curvature = measure.independent.numerators.sum, measure.independent.denominators.sum
        if not tokens.size or not math.isfinite(slope) or not math.isfinite(curvature):
            scale = math.nan
        step = measure.mean if curvature else math.copysign(math.inf, slope) if slope else 0.0
        if math.isnan(scale) or abs(step) <= _STEP_TOLERANCE or not 1 / _MAX_SCALE < scale < _MAX_SCALE:
            return Scaled(scale, measure.independent, measure.unit, nll, prediction)
        low, high = (low, scale) if step > 0 else (scale, high)
        new = min(max(scale * (1 - step), scale / _MAX_STEP), scale * _MAX_STEP)
        if number >= _FIRST_PASSES and not (low and high < math.inf):  # of few errors, steps stay short
            new = min(new, scale / 2) if step > 0 else max(new, scale * 2)
        scale = new if low < new < high else math.sqrt(low * high)
        if number == 0 and found["is_greedy"].all():
            scale = _MAX_SCALE
    return Scaled(math.nan, measure.independent, measure.unit, nll, prediction)


def _scaled_statistics(
    tokens: Tokens, scaled: Scaled | None, events: BoolArray, bins: int, binning: str
) -> dict[str, Any]:
    """The temperature, and the loss and the calibration error there."""
    if scaled is None:
        return {}
    scale, independent, unit = scaled[:3]
    temperature = 1 / scale if 1 / _MAX_SCALE < scale < _MAX_SCALE else math.nan
    if temperature != temperature and scale == scale:
        temperature = 0.0 if scale > 1 else math.inf

    def errors() -> Errors:
        if not 0 < temperature < math.inf:
            return Errors(unit=unit)
        stderr = temperature * independent.stderr
        return Errors(stderr, interval_above_0(temperature, stderr, independent.interval_factor), unit)

    is_known = scaled.prediction.size and not np.isnan(scaled.prediction).any()
    ece = _ece(tokens, [_Bins(tokens, scaled.prediction, events, bins, binning)]) if is_known else Estimate(math.nan)
    return {
        "temperature": Estimate(temperature, errors),
        "scaled_loss": tokens.mean(scaled.nll, "mean").estimate(),
        "scaled_ece": ece,
    }
