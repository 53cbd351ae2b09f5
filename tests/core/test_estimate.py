"""Estimates: floats with a standard error and an interval, and the errors of statistics."""

import copy
import json
import math
import operator
import pickle

import numpy as np
import pytest

from tokenloss import LossMeter, compare, draft_acceptance, evaluate, mismatch, sequence_losses
from tokenloss._core.estimate import Errors
from tokenloss._core.result import _same
from tokenloss.results import Estimate

ERRORS = Errors(0.25, (1.0, 2.0), "tokens")
ONE = Estimate(1.5, ERRORS)


def test_it_is_shown_hashed_and_compared_as_its_number():
    assert (repr(ONE), str(ONE), f"{ONE:.2f}", f"{ONE}") == ("1.5", "1.5", "1.50", "1.5")
    assert ONE == 1.5
    assert ONE != 1.25
    assert hash(ONE) == hash(1.5)
    assert {1.5: "found"}[ONE] == "found"
    assert isinstance(ONE, float)
    assert json.dumps({"loss": ONE}) == '{"loss": 1.5}'


@pytest.mark.parametrize(
    "result",
    [ONE + 1, 1 - ONE, ONE * 2, ONE / 3, ONE**2, -ONE, +ONE, abs(ONE), round(ONE, 1), math.exp(ONE), sum([ONE])],
)
def test_arithmetic_yields_plain_floats(result):
    assert type(result) is float


def test_errors_are_read():
    assert (ONE.stderr, ONE.interval, ONE.unit) == (0.25, (1.0, 2.0), "tokens")
    assert math.isnan(Estimate(1.5).stderr)
    assert all(map(math.isnan, Estimate(1.5).interval))
    assert Estimate(1.5).unit == ""


def test_a_function_of_errors_is_called_once_when_they_are_read():
    calls = []

    def errors():
        calls.append(1)
        return ERRORS

    one = Estimate(1.5, errors)
    assert one + 1 == 2.5
    assert not calls
    assert (one.stderr, one.interval, one.unit) == (0.25, (1.0, 2.0), "tokens")
    assert len(calls) == 1


def pickled(one):
    return pickle.loads(pickle.dumps(one))  # noqa: S301 - of our own bytes


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_copies_and_pickles_have_the_errors(copied):
    for one in (ONE, Estimate(1.5, lambda: ERRORS)):
        twin = copied(one)
        assert type(twin) is Estimate
        assert (float(twin), twin.stderr, twin.interval, twin.unit) == (1.5, 0.25, (1.0, 2.0), "tokens")


def test_pickles_contain_no_name_that_is_private():
    assert b"tokenloss.results" in pickle.dumps(ONE)
    assert b"tokenloss._" not in pickle.dumps(ONE)


def test_results_compare_values_errors_and_units():
    assert _same(ONE, Estimate(1.5, lambda: ERRORS))
    assert _same(Estimate(math.nan), Estimate(math.nan))
    for other in (
        Estimate(1.25, ERRORS),
        Estimate(1.5, ERRORS._replace(stderr=0.5)),
        Estimate(1.5, ERRORS._replace(interval=(1.0, 3.0))),
        Estimate(1.5, ERRORS._replace(unit="sequences")),
        1.5,
    ):
        assert not _same(ONE, other)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
def test_numpy_computes_as_with_a_plain_float(dtype):
    array = np.ones(3, dtype)
    for compute in (
        lambda x: array * x, lambda x: x * array, lambda x: array - x, lambda x: x / array, lambda x: array < x,
        lambda x: array[0] * x, lambda x: x * array[0], lambda x: np.maximum(array, x), lambda x: np.exp(x),
        lambda x: np.add.outer(array, x), lambda x: np.asarray(x), lambda x: np.array([x, x]),
    ):  # fmt: skip
        result, wanted = compute(ONE), compute(1.5)
        assert np.asarray(result).dtype == np.asarray(wanted).dtype
        np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("compute", [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow,
    operator.lt, operator.le, operator.eq, operator.ne, operator.gt, operator.ge,
])  # fmt: skip
def test_operators_with_float64_of_numpy_yield_what_a_plain_float_does(compute):
    scalar = np.float64(3)
    for one, other in ((ONE, scalar), (scalar, ONE), (ONE, ONE), (ONE, 2), (2, ONE)):
        plain = [1.5 if each is ONE else each for each in (one, other)]
        assert repr(compute(one, other)) == repr(compute(*plain))
    with np.errstate(divide="ignore"):
        assert ONE / np.float64(0) == math.inf


def test_numpy_changes_arrays_in_place():
    array = np.ones(2, np.float32)
    array *= ONE
    np.multiply(array, ONE, out=array)
    assert array.tolist() == [2.25, 2.25]


# -- errors of statistics ---------------------------------------------------------------------------------------------


def log_ends(mean, reach):
    """The ends of the interval of a mean of values >= 0, by its logarithm."""
    return mean * math.exp(-reach / mean), mean * math.exp(reach / mean)


def test_an_estimate_keeps_the_errors_that_its_meter_had():
    meter = LossMeter()
    meter.update([0.5, 1.5, 1.0], n_bytes=9, n_words=4)
    names = ("loss", "perplexity", "bits_per_token", "bits_per_byte", "word_perplexity", "sequence_loss")
    before = {name: getattr(meter, name) for name in names}
    expected = {name: repr((one.stderr, one.interval, one.unit)) for name, one in pickled(before).items()}
    meter.update(sequence_losses([[3.0, 4.0], [5.0, 1.0]], n_bytes=[2, 3], n_words=[1, 1]))
    assert {name: repr((one.stderr, one.interval, one.unit)) for name, one in before.items()} == expected
    assert (before["loss"].unit, meter.loss.unit) == ("tokens", "sequences")


def test_errors_of_a_meter_follow_from_those_of_its_loss():
    meter = LossMeter()
    meter.update([0.5, 1.5, 1.0, 0.2], n_bytes=9, n_words=2)
    loss, reach = meter.loss, meter.interval_factor * meter.loss.stderr
    assert loss.interval == pytest.approx(log_ends(loss, reach))
    assert meter.perplexity.stderr == pytest.approx(math.exp(loss) * loss.stderr)
    assert meter.perplexity.interval == pytest.approx([*map(math.exp, loss.interval)])
    assert meter.bits_per_token.stderr == pytest.approx(loss.stderr / math.log(2))
    assert meter.bits_per_token.interval == pytest.approx([end / math.log(2) for end in loss.interval])
    words = math.log(meter.word_perplexity)
    assert meter.word_perplexity.stderr == pytest.approx(meter.word_perplexity * loss.stderr * 2)
    assert np.log(meter.word_perplexity.interval) == pytest.approx(log_ends(words, 2 * reach))


def test_accuracy_has_the_interval_of_a_fraction(rng):
    stats = pytest.importorskip("scipy.stats")
    logits, targets = rng.normal(size=(200, 4)), rng.integers(4, size=200)
    result = evaluate([(logits, targets)])
    right = int(np.count_nonzero(logits.argmax(-1) == targets))
    assert (result.accuracy, result.accuracy.unit) == (right / 200, "tokens")
    assert result.accuracy.stderr == pytest.approx(np.std(logits.argmax(-1) == targets, ddof=1) / math.sqrt(200))
    exact = stats.binomtest(right, 200).proportion_ci(method="exact")
    assert result.accuracy.interval == pytest.approx((exact.low, exact.high), rel=1e-6)


def test_statistics_of_a_comparison_have_the_intervals_of_its_gates(rng):
    base, ids = rng.normal(size=(30, 8, 6)), np.arange(30)[:, None]
    result = compare(base, base + 0.3 * rng.normal(size=base.shape), rng.integers(6, size=(30, 8)), segment_ids=ids,
                    divergences=("tv",))  # fmt: skip
    limits = {"max_kl": 1, "max_kl_quantile": {0.9: 1}, "min_same_top": 0.5, "max_perplexity_ratio": 2}
    estimates = (result.mean_kl, result.kl_quantiles[0.9], result.same_top, result.perplexity_ratio)
    for verdict, one in zip(result.check(**limits).gates, estimates, strict=True):
        assert (verdict.figure, verdict.interval, "sequences") == (one, one.interval, one.unit)
    log, factor = result.log_perplexity_ratio, result.interval_factor
    assert np.log(result.perplexity_ratio.interval) == pytest.approx(log.interval)
    for one in (log, result.mean_delta_p, result.perplexity_difference):
        assert one.interval == pytest.approx((one - factor * one.stderr, one + factor * one.stderr))
    for one in (result.divergences["tv"], result.finite_mean_kl):
        assert one.interval == pytest.approx(log_ends(one, factor * one.stderr))
    square = log_ends(result.rms_delta_p**2, 2 * result.rms_delta_p * factor * result.rms_delta_p.stderr)
    assert result.rms_delta_p.interval == pytest.approx(np.sqrt(square))
    assert pickled(result) == result


def test_a_speedup_has_an_interval(rng):
    target = rng.normal(size=(40, 20, 8))
    result = draft_acceptance(target, target + rng.normal(size=target.shape), cost_ratio=0.1)
    assert (result.best_speedup.unit, result.mean_acceptance.unit) == ("sequences", "sequences")
    low, high = result.best_speedup.interval
    assert (
        low < result.best_speedup - result.best_speedup.stderr < result.best_speedup + result.best_speedup.stderr < high
    )
    assert math.log(high / result.best_speedup) == pytest.approx(math.log(result.best_speedup / low))


def test_ratios_of_sequences_have_intervals_above_0(rng):
    base = -rng.exponential(size=(30, 20))
    result = mismatch(base * rng.normal(1, 0.05, size=base.shape), base)
    for one in (result.mean_ratio, result.mean_sequence_ratio, result.mean_geometric_ratio):
        low, high = one.interval
        assert 0 < low < one < high
        assert one.unit == "sequences"
