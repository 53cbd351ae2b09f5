"""Statistics of calibration, most of them by bins of confidence, and the temperature that fits best."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from tokenloss._core.errors import named, raise_error
from tokenloss._core.estimate import Errors, Estimate
from tokenloss._core.result import Shown, formatted, in_files, rows_of
from tokenloss._scores.losses import natural_logs
from tokenloss._statistics.bins import BIN_COLUMNS, BINNINGS, Bins, Ordered, Tokens
from tokenloss._statistics.estimates import Measure
from tokenloss._statistics.gates import GatedResult, independent_note, verdict_on
from tokenloss._statistics.ratio import interval_above_0
from tokenloss._statistics.sequences import sums_by_segment

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenloss._core.types import Array, BoolArray, Columns, Float64Array, IntArray
    from tokenloss._statistics.gates import Limit, Verdict

FEW_CLASSES = 10  # with at most these classes, calibration is also measured class by class
_MAX_PASSES = 40  # of Newton's method, which takes 3 to 6 unless the temperature is 0 or infinite
_FIRST_PASSES = 3  # after which a scale that is still too small is doubled, at least
_MAX_STEP = 4.0  # factor by which the temperature changes in a pass, at most
_STEP_TOLERANCE = 1e-7  # of the temperature
_MAX_SCALE = 2.0**30  # of logits: beyond it, the temperature is 0, or infinite


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
    bins: dict[str, Array] = field(default_factory=lambda: {name: np.empty(0) for name in BIN_COLUMNS})
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
    ordered = Ordered(tokens, predictions, events)
    binned = {name: Bins(ordered, bins, name) for name in BINNINGS}
    main, gap = binned[binning], binned[binning].measure()
    statistics |= {f"ece_{name}": Estimate(one.error, one.measure) for name, one in binned.items()}
    statistics |= {"ece": Estimate(gap.mean, gap), "ece_debiased": Estimate(gap.mean - main.excess(), gap)}
    statistics |= {"mce": main.mce(), "bins": main.table(), "d2": _d2(tokens, nll, target), "_gap": gap}
    statistics["aurc"] = _aurc(Ordered(tokens, confidence, right) if "event" in columns else ordered)
    if probs is not None:
        by_class = [Bins(Ordered(tokens, own, target == number), bins, binning) for number, own in enumerate(probs)]
        statistics["classwise_ece"] = _classwise(tokens, by_class)
        statistics |= _brier_parts(tokens, statistics["brier"], by_class, target)
    return Calibration(**statistics, **_scaled_statistics(tokens, fit, events, bins, binning))


def _classwise(tokens: Tokens, by_class: list[Bins]) -> Estimate:
    """The mean of the errors of all classes."""

    def errors() -> Measure:
        signed = np.sum([one.signed(is_ordered=False) for one in by_class], axis=0) / len(by_class)
        excess = math.fsum(one.excess(at_most=True) for one in by_class) / len(by_class)
        return tokens.mean(signed)._replace(excess=excess)

    return Estimate(math.fsum(one.error for one in by_class) / len(by_class), errors)


def _brier_parts(tokens: Tokens, brier: float, by_class: list[Bins], target: IntArray) -> dict[str, Estimate]:
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


def _aurc(ordered: Ordered) -> Estimate:
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
    binned = Bins(Ordered(tokens, prediction, events), bins, binning) if is_known else None
    return {
        "temperature": Estimate(temperature, errors),
        "scaled_loss": tokens.estimate(columns["nll"], "mean"),
        "scaled_ece": Estimate(binned.error, binned.measure) if binned else Estimate(math.nan),
    }
