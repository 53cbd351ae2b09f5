"""LossMeter: exact sums, merged in any order, with the statistics of the reference."""

import copy
import json
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import reference
from arrays import BFLOAT16, FLOATS, INTEGERS, LAYOUTS, assert_same_bits

import tokenloss
from tokenloss import LossMeter, nll_loss
from tokenloss._core import _core
from tokenloss._core.exact import integer_of, integer_text
from tokenloss.results import Estimate

STATISTICS = ["count", "total", "loss", "stderr", "perplexity", "bits_per_token", "bits_per_byte", "word_perplexity"]


def meter_of(losses, where=None, **lengths):
    meter = LossMeter()
    meter.update(losses, where, **lengths)
    return meter


def assert_same_meters(actual, expected):
    assert actual == expected
    assert (actual.count, actual.n_bytes, actual.n_words) == (expected.count, expected.n_bytes, expected.n_words)
    for statistic in STATISTICS:
        assert_same_bits(reference.statistic(actual, statistic), reference.statistic(expected, statistic), statistic)


def assert_equals_reference(losses, where=None, **lengths):
    meter, expected = meter_of(losses, where, **lengths), reference.LossMeter()
    expected.update(losses, where, **lengths)
    for statistic in ("count", "total", "loss"):
        assert_same_bits(reference.statistic(meter, statistic), reference.statistic(expected, statistic), statistic)
    for statistic in STATISTICS[3:]:
        actual, exact = reference.statistic(meter, statistic), reference.statistic(expected, statistic)
        np.testing.assert_allclose(actual, exact, rtol=1e-15, atol=5e-324, err_msg=statistic)


# statistics


def test_statistics_by_hand():
    meter = meter_of([1.0, 2.0, 6.0], n_bytes=4, n_words=2)
    assert (meter.count, meter.n_bytes, meter.n_words) == (3, 4, 2)
    assert (meter.total, meter.loss) == (9.0, 3.0)
    assert meter.loss.stderr == math.sqrt(7 / 3)  # of variance 7
    assert meter.perplexity == pytest.approx(math.exp(3), rel=1e-15)
    assert meter.bits_per_token == pytest.approx(3 / math.log(2), rel=1e-15)
    assert meter.bits_per_byte == pytest.approx(9 / math.log(2) / 4, rel=1e-15)
    assert meter.word_perplexity == pytest.approx(math.exp(4.5), rel=1e-15)
    low, high = meter.perplexity.interval
    # Student's t with 2 degrees of freedom
    assert low == pytest.approx(math.exp(3 * math.exp(-4.302653 * meter.loss.stderr / 3)), rel=1e-5)
    assert high == pytest.approx(math.exp(3 * math.exp(4.302653 * meter.loss.stderr / 3)), rel=1e-5)


# of NIST's Statistical Reference Datasets: the data, the certified mean and standard deviation, and the relative error
# that the certified deviation has of these decimals as floats
MAVRO = """
    180 170 180 190 180 170 150 140 150 150 170 180 180 190 190 210 200 160 140 130 130 150 150 160 150 140 130 140 150
    140 150 160 150 160 190 200 200 210 220 230 240 250 270 260 260 260 270 260 250 240"""
MICHELSON = """
    850 740 900 1070 930 850 950 980 980 880 1000 980 930 650 760 810 1000 1000 960 960 960 940 960 940 880 800 850 880
    900 840 830 790 810 880 880 830 800 790 760 800 880 880 880 860 720 720 620 860 970 950 880 910 850 870 840 840 850
    840 840 840 890 810 810 820 800 770 760 740 750 760 910 920 890 860 880 720 840 850 850 780 890 840 780 810 760 810
    790 810 820 850 870 870 810 740 810 940 950 800 810 870"""
NIST = {
    "NumAcc1": ([10000001, 10000003, 10000002], 10000002, 1, 0),
    "NumAcc2": ([1.2, *[1.1, 1.3] * 500], 1.2, 0.1, 1e-14),
    "NumAcc3": ([1000000.2, *[1000000.1, 1000000.3] * 500], 1000000.2, 0.1, 1e-8),
    "NumAcc4": ([10000000.2, *[10000000.1, 10000000.3] * 500], 10000000.2, 0.1, 1e-7),
    "Mavro": ([(200000 + int(one)) / 1e5 for one in MAVRO.split()], 2.001856, 0.000429123454003053, 1e-12),
    "Michelso": ([(299000 + int(one)) / 1e3 for one in MICHELSON.split()], 299.8524, 0.0790105478190518, 1e-12),
}


@pytest.mark.parametrize("name", NIST)
def test_mean_and_error_are_those_that_nist_certifies(name, rng):
    values, mean, deviation, rtol = NIST[name]
    for order in (values, values[::-1], rng.permutation(values)):
        meter = meter_of(order)
        assert meter.loss == mean  # for NumAcc3, 1000000.2000000001 if the sum is rounded before the division
        assert meter.loss.stderr == pytest.approx(deviation / math.sqrt(len(values)), rel=rtol + 2**-51)


@pytest.mark.usefixtures("any_loss_is_taken")
def test_loss_and_error_are_rounded_once(rng):
    for count in rng.integers(2, 50, 200).tolist():
        losses = rng.choice([1, 1, -1], count) * rng.exponential(3, count) * 10.0 ** rng.uniform(-150, 150)
        meter, exact = meter_of(losses), [Fraction(loss) for loss in losses.tolist()]
        assert meter.loss == float(sum(exact) / count)
        square = sum((loss - sum(exact) / count) ** 2 for loss in exact) / (count * (count - 1))
        below, above = (Fraction(math.nextafter(meter.loss.stderr, end)) for end in (-math.inf, math.inf))
        assert (
            ((below + Fraction(meter.loss.stderr)) / 2) ** 2
            <= square
            <= ((above + Fraction(meter.loss.stderr)) / 2) ** 2
        )


def test_word_perplexity_divides_the_exact_sum_once():
    for n_words in range(1, 100):
        expected = math.exp(float(3 * Fraction(0.1) / n_words))
        assert meter_of([0.1] * 3, n_words=n_words).word_perplexity == expected


def test_statistics_are_python_numbers(rng):
    meter = meter_of(rng.random(10), n_bytes=np.int64(3), n_words=np.uint8(2))
    assert [type(reference.statistic(meter, statistic)) for statistic in STATISTICS] == [
        int,
        float,
        Estimate,
        float,
        *[Estimate] * 4,
    ]
    assert type(meter.n_bytes) is type(meter.n_words) is int


def test_empty_meter():
    meter = LossMeter()
    assert (meter.count, meter.total) == (0, 0.0)
    for statistic in ("loss", "stderr", "perplexity", "bits_per_token", "bits_per_byte", "word_perplexity"):
        assert math.isnan(reference.statistic(meter, statistic)), statistic
    assert all(map(math.isnan, meter.perplexity.interval))
    assert "nan" in repr(meter)
    meter.update([])
    assert meter == LossMeter()


def test_stderr_needs_two_tokens():
    assert math.isnan(meter_of([1.5]).loss.stderr)
    assert meter_of([1.5, 1.5]).loss.stderr == 0.0
    assert meter_of([1.0, 2.0]).loss.stderr == 0.5


@pytest.mark.usefixtures("any_loss_is_taken")
def test_statistics_equal_the_reference(rng):
    for count in (1, 2, 3, 10, 1000):
        assert_equals_reference(rng.exponential(3, count), n_bytes=7 * count, n_words=count)
        assert_equals_reference(1e8 + rng.random(count))  # where a naive variance loses all digits
        assert_equals_reference(rng.choice([-1, 1], count) * 10.0 ** rng.uniform(-300, 150, count))


@pytest.mark.parametrize("size", [1e-323, 1e-308, 1e-200, 1e-160, 1e160, 1e200, 1e307])
def test_statistics_of_huge_and_tiny_losses(size):
    assert_equals_reference(size * np.array([1.0, 3.0, 4.0, 4.0, 1.0]))
    assert_equals_reference([size, 1.0, 5e-324])


@pytest.mark.usefixtures("any_loss_is_taken")
@pytest.mark.parametrize("count", [2, 3, 1000])
def test_total_that_overflows(count):
    meter = meter_of([1e308] * count)
    assert meter.total == math.inf
    assert meter.loss == 1e308
    assert meter.perplexity == math.inf
    assert meter.loss.stderr == 0.0
    assert "inf" in repr(meter)
    assert meter_of([-1e308] * count).total == -math.inf
    meter.update([-1e308] * count)  # the total itself did not overflow
    assert meter.total == 0.0


@pytest.mark.usefixtures("any_loss_is_taken")
def test_total_of_losses_that_cancel(rng):
    losses = np.concatenate([10.0 ** rng.uniform(-300, 300, 300), [1e308, 5e-324]])
    meter = meter_of(rng.permutation(np.concatenate([losses, -losses, [1e-310]])))
    assert meter.total == 1e-310


@pytest.mark.usefixtures("any_loss_is_taken")
def test_total_of_subnormal_losses():
    assert meter_of([5e-324] * 3).total == 1.5e-323
    assert meter_of([1e308, 5e-324, -1e308]).total == 5e-324


@pytest.mark.usefixtures("any_loss_is_taken")
@pytest.mark.parametrize(
    ("losses", "total"),
    [
        ([math.inf, 1.0], math.inf),
        ([1.0, -math.inf], -math.inf),
        ([math.inf, -math.inf], math.nan),
        ([math.nan, 1.0], math.nan),
        ([math.inf, math.nan], math.nan),
    ],
)
def test_inf_and_nan_losses(losses, total):
    for order in (losses, losses[::-1]):
        meter = meter_of(order)
        assert_same_bits([meter.total, meter.loss], [total, total])
        assert math.isnan(meter.loss.stderr)
        assert meter.count == 2
        assert_same_bits(meter.perplexity, math.exp(total) if total != math.inf else math.inf)
        apart = meter_of(order[:1]) + meter_of(order[1:])
        assert apart == meter
        repr(meter)


def test_inf_loss_stays_after_later_updates():
    meter = meter_of([math.inf])
    meter.update(np.ones(10))
    meter.merge(meter_of([1.0]))
    assert meter.loss == math.inf


# updates


def assert_is_exact(losses):
    """Sums of the meter equal those of integers: finite losses are multiples of 2**-1074."""
    values, counts = np.unique(losses[np.isfinite(losses)], return_counts=True)
    finite = [(int(Fraction(x) * 2**1074), n) for x, n in zip(values.tolist(), counts.tolist(), strict=True)]
    others = [x for x in losses.tolist() if not math.isfinite(x)]
    expected = sum(x * n for x, n in finite), sum(others, 0.0), sum(x * x * n for x, n in finite)
    assert repr(_core.moments(losses)) == repr(expected)
    if not others:
        assert meter_of(losses).total == reference.rounded(Fraction(expected[0], 2**1074))


@pytest.mark.usefixtures("any_loss_is_taken")
@pytest.mark.parametrize("count", [1, 7, 8, 63, 64, 65, 200, 5000])
def test_sums_are_exact_for_losses_of_any_size(count, rng, backend):
    assert_is_exact(rng.exponential(3, count))
    assert_is_exact(rng.standard_normal(count) * 2.0 ** rng.integers(-90, 14, count))
    assert_is_exact(rng.integers(0, 1 << 64, count, dtype=np.uint64).view(np.float64))
    assert_is_exact(np.nextafter(2.0 ** rng.integers(-170, 20, count), rng.choice([-np.inf, np.inf], count)))
    losses = rng.standard_normal(count)
    losses[rng.integers(0, count, 1 + count // 50)] = rng.choice([np.inf, np.nan, 5e-324, 1e308, -0.0, 1e-200, 4096.0])
    assert_is_exact(losses)


# where the bins of an exact sum end: see backend.h
EDGES = [2.0**22, 2.0**12, 2.0**7, 2.0**-28, 2.0**-64, 2.0**-81, 1.0, 1e-160, 1e-320]
EDGES += [1.5 * 2.0**-30, 1.5 * 2.0**-73, 1.5 * 2.0**-82, 1.5 * 2.0**-134]
EDGES += [2.0**22 - 2.0**-30, 2.0**7 - 2.0**-37]  # the largest that, and whose squares, are odd multiples of a unit


@pytest.mark.usefixtures("any_loss_is_taken")
@pytest.mark.parametrize("edge", EDGES)
def test_sums_of_many_equal_losses_are_exact(edge, backend):
    for loss in (edge, np.nextafter(edge, 0), np.nextafter(edge, np.inf)):
        losses = np.full(40000, loss)  # more than bins take before they are poured
        assert_is_exact(-losses)
        losses[::3] = np.nextafter(loss, 0)
        assert_is_exact(losses)
        losses[np.arange(losses.size) % 16 > 0] = 0  # all in one lane
        assert_is_exact(losses)


@pytest.mark.usefixtures("any_loss_is_taken")
@pytest.mark.slow
def test_100_000_updates_of_one_token_are_one_update_of_100_000_tokens(rng):
    losses = rng.exponential(3, 100_000)
    losses[:5] = 1e300, -1e300, 5e-324, 1e-310, 0.0
    once = meter_of(losses)
    each = LossMeter()
    for loss in losses:
        each.update(loss)
    assert_same_meters(each, once)


def test_update_of_any_size(rng):
    losses = rng.exponential(3, 5000)
    expected = meter_of(losses)
    for parts in (2, 7, 600):
        meter = LossMeter()
        for part in np.array_split(losses, parts):
            meter.update(part)
        assert_same_meters(meter, expected)


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS], ids=str)
def test_update_of_every_dtype_and_layout(dtype, rng):
    losses = rng.integers(0, 60, (3, 4, 5)).astype(dtype)
    expected = meter_of(losses.astype(np.float64))
    for name, layout in LAYOUTS.items():
        assert meter_of(layout(losses)) == expected, name
    assert meter_of(losses.tolist()) == expected


def test_negative_losses_that_rounding_explains_or_where_leaves_out_are_taken():
    for loss in (-0.0, -1e-17, -5e-324, -1e-3, nll_loss([[9e-4, -5.0]], [0], reduction="none")):
        assert meter_of(loss).count == 1
    assert meter_of([-3.0, 0.5], [False, True]) == meter_of([0.5])
    assert meter_of([-3.0, 0.5], sample_weight=[0, 1]) == meter_of([0.5], sample_weight=1)


def test_update_of_bfloat16():
    assert meter_of(np.array([0.5, 1.5]).astype(BFLOAT16)).total == 2.0


def test_update_of_a_scalar():
    for loss in (0.5, np.float64(0.5), np.float16(0.5), np.array(0.5), [0.5], BFLOAT16.type(0.5)):
        assert meter_of(loss) == meter_of([0.5])
    assert meter_of(2) == meter_of([2.0])


def test_update_of_torch_tensors(rng):
    torch = pytest.importorskip("torch")
    losses = rng.random((3, 4))
    assert meter_of(torch.tensor(losses), torch.tensor(losses > 0.5)) == meter_of(losses, losses > 0.5)
    assert meter_of(torch.tensor([0.5, 1.5], dtype=torch.bfloat16)) == meter_of([0.5, 1.5])
    assert meter_of(torch.tensor(0.5)) == meter_of(0.5)


def test_where(rng):
    losses = rng.random((3, 4))
    for where in (True, False, rng.random((3, 4)) > 0.5, rng.random(4) > 0.5, rng.random((3, 1)) > 0.5):
        whole = np.broadcast_to(where, (3, 4))
        assert meter_of(losses, where) == meter_of(losses[whole])
        assert_equals_reference(losses, where)
    losses[1, 1] = math.nan
    assert math.isfinite(meter_of(losses, ~np.isnan(losses)).loss)
    assert meter_of(0.5, True).count == 1
    assert meter_of(0.5, False) == LossMeter()


@pytest.mark.parametrize(("name", "figure"), [("n_bytes", "bits_per_byte"), ("n_words", "word_perplexity")])
def test_tokens_that_come_without_the_length_of_their_text_leave_it_unknown(name, figure):
    for given in ((1, 0), (0, 1)):
        meter = LossMeter()
        for loss, length in zip([1.0, 2.0], given, strict=True):
            meter.update([loss], **{name: length})
        assert math.isnan(reference.statistic(meter, figure))


def test_n_bytes_and_n_words():
    meter = LossMeter()
    meter.update([1.0], n_bytes=3)
    meter.update([2.0], n_bytes=2**70, n_words=5)
    meter.update([], n_words=1)
    assert (meter.count, meter.n_bytes, meter.n_words) == (2, 2**70 + 3, 6)
    assert meter.bits_per_byte == pytest.approx(3 / math.log(2) / 2**70, rel=1e-15)


def test_update_does_not_write_to_losses(rng):
    losses = rng.random(10)
    before = losses.copy()
    meter_of(losses)
    np.testing.assert_array_equal(losses, before)


# merging


@pytest.mark.usefixtures("any_loss_is_taken")
def test_merge_in_any_order(rng):
    losses = rng.choice([-1, 1], 3000) * 10.0 ** rng.uniform(-300, 100, 3000)
    expected = meter_of(losses, n_bytes=3000, n_words=300)
    for _ in range(5):
        parts = np.split(rng.permutation(losses), 30)
        meters = [meter_of(part, n_bytes=100, n_words=10) for part in parts]
        while len(meters) > 1:
            first, second = (meters.pop(int(rng.integers(len(meters)))) for _ in range(2))
            meters.append(first + second)
        assert_same_meters(meters[0], expected)


def test_merge_changes_one_meter_and_plus_none():
    first, second = meter_of([1.0, 2.0], n_bytes=1), meter_of([5.0], n_words=2)
    both = first + second
    assert (first, second) == (meter_of([1.0, 2.0], n_bytes=1), meter_of([5.0], n_words=2))
    assert first.merge(second) is None
    assert first == both == meter_of([5.0], n_words=2) + meter_of([1.0, 2.0], n_bytes=1)
    assert (both.count, both.total, both.n_bytes, both.n_words) == (3, 8.0, 1, 2)
    assert second == meter_of([5.0], n_words=2)
    assert both + LossMeter() == LossMeter() + both == both


def test_plus_in_place():
    meter = meter_of([1.0])
    meter += meter_of([2.0])
    assert meter == meter_of([1.0, 2.0])


def test_merge_of_a_meter_with_itself_counts_beyond_64_bits():
    meter = meter_of([0.1, 0.7, 3.0], n_bytes=11, n_words=2)
    once = meter.total
    for _ in range(70):
        meter.merge(meter)
    assert meter.count == 3 * 2**70
    assert (meter.n_bytes, meter.n_words) == (11 * 2**70, 2**71)
    assert meter.total == once * 2.0**70
    assert meter.loss == once / 3
    losses = [Fraction(loss) for loss in (0.1, 0.7, 3.0)]
    spread = sum((loss - sum(losses) / 3) ** 2 for loss in losses) * 2**70
    expected = reference.square_root(spread / (3 * 2**70 - 1) / (3 * 2**70))
    assert meter.loss.stderr == pytest.approx(expected, rel=1e-15)
    assert meter.bits_per_byte == meter_of([0.1, 0.7, 3.0], n_bytes=11).bits_per_byte


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(protocol, rng):
    for meter in (LossMeter(), meter_of(rng.random(99), n_bytes=3, n_words=4), meter_of([math.inf, 1, -5e-324])):
        again = pickle.loads(pickle.dumps(meter, protocol))  # noqa: S301 - our own
        assert_same_meters(again, meter)
        again.update(1.0)
        assert again != meter


def test_copy(rng):
    meter = meter_of(rng.random(99), n_bytes=3)
    for duplicate in (copy.copy(meter), copy.deepcopy(meter)):
        assert_same_meters(duplicate, meter)
        duplicate.update(0.5)
        assert meter.count == 99


@pytest.mark.usefixtures("any_loss_is_taken")
def test_equality():
    meter = meter_of([1.0, 2.0])
    assert meter == meter_of([2.0, 1.0])
    assert meter != meter_of([1.5, 1.5])  # of the same sum
    assert meter != meter_of([1.0, 2.0], n_bytes=1)
    assert meter != meter_of([1.0, 2.0, 0.0])
    assert meter_of([math.nan]) == meter_of([math.nan])
    assert meter_of([math.inf]) != meter_of([-math.inf])
    assert meter != (2, 3.0)
    with pytest.raises(TypeError, match="unhashable"):
        hash(meter)


# errors


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((["a"],), {}, TypeError, "nll.*<U1.*float16"),
        ((None,), {}, TypeError, "nll is None"),
        (([1j],), {}, TypeError, "nll.*complex128"),
        (([[1.0], [1.0, 2.0]],), {}, TypeError, "nll"),
        ((np.ma.masked_array([1.0], [True]),), {}, TypeError, "nll.*masked.*where"),
        (([1.0, 2.0], [True] * 3), {}, ValueError, r"where.*\(3,\).*\(2,\)"),
        (([1.0, 2.0], [1, 0]), {}, TypeError, "where.*int64.*bool|where.*int32.*bool"),
        (([True, False],), {}, TypeError, "nll has dtype bool.*float16"),
        ((np.array([True]), [True]), {}, TypeError, "nll has dtype bool"),
        (([True],), {"sample_weight": 1.0}, TypeError, "nll has dtype bool"),
        (([-0.36, -0.02],), {}, ValueError, "nll is -0.36; it must be at least 0; for log-probabilities, pass -nll"),
        (([1.0, -0.0011, math.nan],), {}, ValueError, "nll is -0.0011"),
        (([[1, -2]],), {"sample_weight": [[0.5, 2]]}, ValueError, "nll is -2.0"),
        ((np.array([-1.0]).astype(BFLOAT16),), {}, ValueError, "nll is -1.0"),
        (([-math.inf, math.inf],), {}, ValueError, "nll is -inf"),
        (([1.0],), {"n_bytes": -1}, ValueError, "n_bytes.*-1.*0"),
        (([1.0],), {"n_words": -5}, ValueError, "n_words.*-5.*0"),
        (([1.0],), {"n_bytes": 1.5}, TypeError, "n_bytes.*1.5.*integer"),
        (([1.0],), {"n_bytes": [38, 3]}, TypeError, r"n_bytes is \[38, 3\].*sequence_losses\(..., n_bytes=...\)"),
        (([1.0],), {"n_words": "x"}, TypeError, "n_words.*'x'.*integer"),
        (([1.0],), {"n_bytes": 3, "n_words": None}, TypeError, "n_words.*None.*integer"),
    ],
)
def test_update_with_wrong_arguments_changes_nothing(arguments, options, error, message):
    meter = meter_of([0.5, 0.25], n_bytes=2, n_words=1)
    with pytest.raises(error, match=f"(?s){message}"):
        meter.update(*arguments, **options)
    assert_same_meters(meter, meter_of([0.5, 0.25], n_bytes=2, n_words=1))


def test_merge_with_something_else_changes_nothing():
    meter = meter_of([0.5])
    for other in (None, 0, 1.0, [meter], reference.LossMeter()):
        with pytest.raises(TypeError, match=rf"other.*{type(other).__name__}.*LossMeter"):
            meter.merge(other)
        with pytest.raises(TypeError):
            meter + other
    assert meter == meter_of([0.5])


def test_meter_has_no_other_attributes():
    with pytest.raises(AttributeError):
        LossMeter().perplexities = 1


def test_update_of_cross_entropy(rng):
    logits, targets = rng.standard_normal((6, 10)), np.array([1, 2, -100, 3, 4, 5])
    meter = LossMeter()
    meter.update(tokenloss.cross_entropy(logits, targets, reduction="none"), where=targets != -100)
    assert meter.loss == pytest.approx(tokenloss.cross_entropy(logits, targets), rel=2**-52)
    meter.update(tokenloss.cross_entropy(logits[0], 1))
    assert meter.count == 6


@pytest.mark.usefixtures("any_loss_is_taken")
@pytest.mark.parametrize("losses", [[], [0.1, 2e300, -5e-324], [math.inf, 1.0], [-math.inf], [math.nan, 3.0]])
def test_json_round_trip(losses):
    meter = LossMeter()
    meter.update(losses, n_bytes=7, n_words=2)
    state = json.loads(json.dumps(meter._to_json(), allow_nan=False))
    again = LossMeter._from_json(state)
    assert again == meter
    assert repr(again) == repr(meter)
    assert (again.total, again.loss.stderr) == pytest.approx(
        (meter.total, meter.loss.stderr), rel=0, abs=0, nan_ok=True
    )


def test_state_of_integers():
    for value in (0, 1, -1, 12, 10 << 1074, -(1 << 2148), (1 << 4300) - 1, 3 << 8000):
        assert integer_of(integer_text(value)) == value
    assert integer_text(3 << 1074) == "0x3p1074"
    assert integer_of("0x1f") == 31
    for text in ("0x1p-1", "0x1p99999", "p1", "", "1.5p1"):
        with pytest.raises(ValueError, match=r"."):
            integer_of(text)


def test_state_whose_products_are_too_large_is_refused():
    meter = LossMeter()
    meter.update([1.0, 2.0, 4.0], sample_weight=[1.0, 2.0, 1.0])
    state = meter._to_json()
    assert LossMeter._from_json(state) == meter
    for name in ("_tokens", "_groups"):
        products = integer_text(10 * integer_of(state[name]["products"]))
        with pytest.raises(ValueError, match="no pairs have these sums"):
            LossMeter._from_json(state | {name: state[name] | {"products": products}})


def test_pickle_of_another_version_is_refused():
    with pytest.raises(ValueError, match="of another version of tokenloss"):
        LossMeter._from_json({"_nll": None, "n_bytes": 0, "n_words": 0})
