"""mismatch: a trainer's log-probabilities of tokens against those of the engine that sampled them."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from reference import statistic
from scipy import stats

from tokenloss import mismatch
from tokenloss._comparison.mismatch import k3_of

ROWS = 12


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def logits_of_text(rng, n=1200, classes=300):
    """Logits as of a language model: few likely classes, many unlikely ones, and rows of all degrees of certainty."""
    logits = -1.2 * np.log(np.arange(1, classes + 1)) * np.exp(rng.normal(0.3, 0.5, size=(n, 1)))
    logits[:, 0] += rng.exponential(3, size=n)
    return logits + rng.normal(size=(n, classes))


def drawn(rng, log_probs):
    """A class of each row, drawn by its probability."""
    return (log_probs + rng.gumbel(size=log_probs.shape)).argmax(-1)


def of_classes(log_probs, classes):
    return np.take_along_axis(log_probs, classes[:, None], 1)[:, 0].reshape(ROWS, -1)


def truncated(log_probs, top_p=None, top_k=None):
    """Log-probabilities over the classes that top-p or top-k leaves."""
    order = np.argsort(-log_probs, -1)
    ordered = np.exp(np.take_along_axis(log_probs, order, 1))
    kept = np.zeros(log_probs.shape, bool)
    left = np.arange(log_probs.shape[1]) < top_k if top_k else ordered.cumsum(1) - ordered < top_p
    np.put_along_axis(kept, order, np.broadcast_to(left, kept.shape), 1)
    return log_softmax(np.where(kept, log_probs, -1e9))


def bfloat16(values):
    import ml_dtypes

    return np.asarray(values).astype(ml_dtypes.bfloat16)


@pytest.fixture
def pair(rng):
    """A trainer and a sampler that differ by noise as of other kernels."""
    base = -rng.exponential(size=(9, 40))
    return base * rng.normal(1, 0.02, size=base.shape), base


def exact_k3(d):
    """exp(d) - 1 - d, by so many digits that those that cancel are spare."""
    with localcontext() as context:
        context.prec = 80
        return Decimal(d).exp() - 1 - Decimal(d)


# -- figures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1e-15, 1e-9, 1e-6, 1e-4, 0.03, 0.999, 1.0, 1.001, 30.0, 600.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_k3_is_right_at_any_difference(d, sign):
    exact = exact_k3(sign * d)
    assert abs(Decimal(k3_of(np.array([sign * d]))[0].item()) / exact - 1) < 1e-14
    assert k3_of(np.array([math.inf, -math.inf, 0.0])).tolist() == [math.inf, math.inf, 0.0]


def test_unsloth_10401_k3_of_float32_at_a_millionth():
    """In float32, 1 is subtracted from a number near 1 there: what is left is far above the divergence, or negative."""
    base, logprobs = np.full((4, 8), -1e-6, np.float32), np.zeros((4, 8), np.float32)
    d = logprobs - base
    assert np.abs(np.exp(d) - d - np.float32(1)).min() > 1e4 * 5e-13
    exact = float(d[0, 0])
    result = mismatch(logprobs, base)
    assert result.k3 == pytest.approx(exact**2 / 2, rel=1e-6)
    assert result.k2 == pytest.approx(exact**2 / 2, rel=1e-12)
    assert result.k1 == -exact


def clustered(values, ids):
    """The mean and its standard error, clustered by sequence, by exact fractions."""
    values = [Fraction(float(value)) for value in values]
    mean = sum(values) / len(values)
    sums = [sum(value - mean for value, one in zip(values, ids, strict=True) if one == group) for group in {*ids}]
    return float(mean), math.sqrt(len(sums) / (len(sums) - 1) * sum(one**2 for one in sums)) / len(values)


@pytest.mark.parametrize("by", ["row", "segment_ids"])
@pytest.mark.parametrize("where", [None, "mask"])
def test_figures_are_those_of_brute_force(pair, rng, by, where):
    logprobs, base = pair
    ids = np.repeat(np.arange(9), 40) if by == "row" else rng.integers(5, size=360)
    mask = np.ones(360, bool) if where is None else rng.random(360) < 0.7
    options = {} if by == "row" else {"segment_ids": ids.reshape(9, 40)}
    options |= {} if where is None else {"where": mask.reshape(9, 40)}
    result = mismatch(logprobs, base, epsilon=0.03, **options)
    d, ids = (logprobs - base).ravel()[mask], ids[mask].tolist()
    k3 = [float(exact_k3(one)) for one in d.tolist()]
    values = {
        "k1": -d, "k2": d**2 / 2, "k3": k3, "mean_abs_difference": np.abs(d), "mean_ratio": np.exp(d),
        "outside": np.abs(np.exp(d) - 1) > 0.03,
    }  # fmt: skip
    for name, array in values.items():
        expected = clustered(array, ids)
        assert [statistic(result, name), statistic(result, f"{name}_stderr")] == pytest.approx(expected, rel=1e-12), (
            name
        )
    sums = {one: math.fsum(d[np.array(ids) == one]) for one in sorted({*ids})}
    ratios = np.exp([*sums.values()])
    assert result.sequences["sequence"].tolist() == [*sums]
    np.testing.assert_allclose(result.sequences["ratio"], ratios, rtol=1e-13)
    assert result.mean_sequence_ratio == pytest.approx(ratios.mean(), rel=1e-13)
    assert result.mean_sequence_ratio.stderr == pytest.approx(ratios.std(ddof=1) / math.sqrt(ratios.size), rel=1e-9)
    geometric = ratios ** (1 / result.sequences["count"])
    assert result.mean_geometric_ratio == pytest.approx(geometric.mean(), rel=1e-12)
    for name, weights in ("ess", np.exp(d)), ("sequence_ess", ratios):
        effective = weights.sum() ** 2 / (weights**2).sum() / weights.size
        assert statistic(result, name) == pytest.approx(effective, rel=1e-12)
    assert result.difference_quantiles[0.5] == pytest.approx(np.median(d))
    assert result.ratio_quantiles[0.99] == pytest.approx(np.quantile(np.exp(d), 0.99))
    assert result.count == mask.sum()


def test_one_dimension_has_independent_tokens_and_no_sequences(pair):
    logprobs, base = (one.ravel() for one in pair)
    result = mismatch(logprobs, base)
    assert (result.is_clustered, result.n_sequences, result.sequences) == (False, 0, None)
    assert result.k1.stderr == pytest.approx((logprobs - base).std(ddof=1) / math.sqrt(360))
    assert math.isnan(result.mean_sequence_ratio)
    assert "sequence" not in result.columns()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "list"])
def test_dtype_of_logprobs_is_read_exactly(dtype, pair):
    make = {"bfloat16": bfloat16, "list": np.ndarray.tolist}
    arrays = [make[dtype](one) if dtype in make else one.astype(dtype) for one in pair]
    assert mismatch(*arrays) == mismatch(*(np.array(one).astype(np.float64) for one in arrays))


def test_where_and_nan_in_both_leave_tokens_out(pair):
    logprobs, base = pair
    mask = np.arange(40) < np.arange(3, 39, 4)[:, None]
    of_mask = mismatch(logprobs, base, where=mask)
    of_nan = mismatch(*(np.where(mask, one, np.nan) for one in pair))
    assert (of_nan.count, of_nan.n_without_number, of_mask.n_without_number) == (mask.sum(), (~mask).sum(), 0)
    for name in ("k1", "k3_stderr", "ess_interval", "sequence_ess", "ratio_quantiles"):
        assert statistic(of_mask, name) == statistic(of_nan, name)
    np.testing.assert_array_equal(of_mask.columns()["ratio"], of_nan.columns()["ratio"])
    np.testing.assert_array_equal(np.isnan(of_mask.difference), ~mask)


def test_nan_in_one_and_infinity_are_counted_and_not_averaged_away():
    result = mismatch([-1.0, math.nan, -2.0], [-1.0, -1.0, -1.0])
    assert (result.n_nan, result.n_infinite) == (1, 0)
    assert all(math.isnan(statistic(result, name)) for name in ("k1", "k2", "k3", "mean_ratio", "outside", "ess"))
    result = mismatch([[-1.0, -math.inf, -2.0]], [[-1.0, -1.0, -1.0]])
    assert (result.n_infinite, result.k1, result.k3, result.outside) == (1, math.inf, math.inf, 2 / 3)
    assert result.mean_ratio == pytest.approx((1 + math.exp(-1)) / 3)
    result = mismatch([-1.0, -1.0], [-1.0, -math.inf])
    assert (result.n_infinite, result.k1, result.mean_ratio) == (1, -math.inf, math.inf)
    assert result.diagnosis == ["1 token cannot have been sampled: the sampler's log-probability is minus infinity"]


def test_ratios_of_long_sequences_are_averaged_by_their_logarithms():
    base = np.full((3, 2000), -2.0)
    logprobs = base + np.array([[0.5], [0.499], [-0.5]])
    result = mismatch(logprobs, base)
    assert result.mean_sequence_ratio == math.inf
    assert result.log_mean_sequence_ratio == pytest.approx(1000 + math.log((1 + math.exp(-2)) / 3))
    assert result.sequence_ess == pytest.approx((1 + math.exp(-2)) ** 2 / (1 + math.exp(-4)) / 3)
    assert result.sequences["log_ratio"].tolist() == pytest.approx([1000, 998, -1000])
    assert "exp(999.0" in result.summary()


def test_a_ratio_of_a_sequence_is_the_product_and_not_the_sum_of_its_tokens():
    """What an implementation of modes of sequences computed as a sum of ratios."""
    result = mismatch([[-1.0, -1.0, -1.0]], [[-1.1, -1.2, -0.9]])
    assert result.sequences["ratio"][0] == pytest.approx(math.exp(0.2))
    assert result.sequences["geometric_ratio"][0] == pytest.approx(math.exp(0.2 / 3))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_no_tokens_have_no_figures(shape):
    result = mismatch(np.zeros(shape), np.zeros(shape))
    assert result.count == 0
    assert math.isnan(result.k3)
    assert result.diagnosis == []


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([-1.0, 0.5], [-1.0, -1.0]), {}, r"^logprobs\[1\] = 0.5 is not a log-probability: it is above 0$"),
        (([[-1.0]], [[2.0]]), {}, r"^base_logprobs\[0, 0\] = 2 is not a log-probability"),
        (([-1.0, -1.0], [-1.0]), {}, r"^base_logprobs has shape \(1,\); it must be \(2,\), as logprobs$"),
        ((-1.0, -1.0), {}, r"^logprobs has shape \(\); it must be \(\.\.\., T\)$"),
        (([-1.0], [-1.0]), {"epsilon": 2}, r"^epsilon is 2; it must be a number between 0 and 1$"),
        (([-1.0], [-1.0]), {"where": [1]}, "^where has dtype int64; it must be bool"),
        (([-1.0], [-1.0]), {"segment_ids": [0.5]}, "^segment_ids has dtype float64; it must be an integer"),
        ((np.array([1]), [-1.0]), {}, "^logprobs has dtype int64"),
    ],
)
def test_errors_name_the_argument(arguments, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        mismatch(*arguments, **options)


def test_log_probabilities_above_0_by_rounding_are_taken():
    assert mismatch([1e-6, -1.0], [0.0, -1.0]).k1 == pytest.approx(-5e-7)
    assert mismatch([2.0, -1.0], [0.0, -1.0], where=[False, True]).count == 1


# -- estimates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [1e-4, 0.1, 1.0])
def test_k1_and_k3_have_the_divergence_as_their_mean(spread, rng):
    logits = rng.normal(size=8)
    mu, pi = log_softmax(logits), log_softmax(logits + spread * rng.normal(size=8))
    kl = float(np.exp(mu) @ (mu - pi))
    drawn_by_mu = rng.choice(8, p=np.exp(mu), size=200_000)
    result = mismatch(pi[drawn_by_mu], mu[drawn_by_mu])
    for name, truth in ("k1", kl), ("k3", kl), ("mean_ratio", 1.0):
        assert abs(statistic(result, name) - truth) < 4.5 * statistic(result, f"{name}_stderr"), name
    assert result.k3.stderr < result.k1.stderr


@pytest.mark.slow
def test_intervals_hold_the_truth_of_clustered_tokens():
    rng, inside, truth = np.random.default_rng(5), dict.fromkeys(("k1", "k3", "mean_ratio", "ess"), 0), {}
    for n in (50_000, *[30] * 200):  # the first tells the truth
        scale = rng.gamma(6, 0.02, size=(n, 1))  # sequences differ in their mismatch
        d = scale * rng.normal(size=(n, 5)) - scale**2 / 2
        result = mismatch(d - 9.0, np.full(d.shape, -9.0))
        for name in inside:
            low, high = statistic(result, f"{name}_interval")
            truth.setdefault(name, statistic(result, name))
            inside[name] += low <= truth[name] <= high
    assert all(0.88 <= number / 201 <= 0.995 for number in inside.values()), inside


def excess(weights):
    """1 / ESS - 1: the variance of weights over the square of their mean."""
    return (weights**2).mean() / weights.mean() ** 2 - 1


def jackknifed(weights, groups, factor):
    """The interval of an effective sample size by Miller's jackknife of log v, computed anew without each group."""
    whole, without = (np.log(one) for one in (excess(weights), [excess(weights[groups != g]) for g in {*groups}]))
    values = len(without) * whole - (len(without) - 1) * without
    radius = factor * values.std(ddof=1) / math.sqrt(len(values))
    ends = max(values.mean(), whole) + radius, min(values.mean(), whole) - radius
    return [1 / (1 + math.exp(end)) for end in ends]


@pytest.mark.parametrize("by", ["row", "unequal", "some of none", "token"])
def test_intervals_of_effective_sample_sizes_are_by_the_jackknife(by, pair, rng):
    logprobs, base = (one.ravel() for one in pair)
    ids = np.repeat(np.arange(9), 40)
    if by == "unequal":
        ids = rng.choice(6, size=360, p=np.arange(1, 7) / 21)
    elif by == "some of none":  # each token of a negative number is a group of its own
        ids = np.where(rng.random(360) < 0.1, -1, ids)
    groups = np.where(ids < 0, 1000 + np.arange(360), ids) if by != "token" else np.arange(360)
    result = mismatch(logprobs, base, segment_ids=None if by == "token" else ids)
    if by == "row":
        assert result.interval_factor == pytest.approx(stats.t.ppf(0.975, 8))
    expected = jackknifed(np.exp(logprobs - base), groups, result.interval_factor)
    assert result.ess.interval == pytest.approx(expected, rel=1e-9)
    (gate,) = result.check(min_ess=0.5).gates
    assert gate.interval == result.ess.interval
    if by != "token":
        ratios = result.sequences["ratio"]
        expected = jackknifed(ratios, np.arange(ratios.size), stats.t.ppf(0.975, ratios.size - 1))
        assert result.sequence_ess.interval == pytest.approx(expected, rel=1e-9)


def test_intervals_of_effective_sample_sizes_where_one_sequence_has_all_the_spread(rng):
    """Without it, the logarithm is of 0: the interval is by the delta method."""
    d = np.zeros((8, 30))
    d[3] = rng.normal(size=30, scale=0.2)
    result = mismatch(d - 3, np.full(d.shape, -3.0))
    v = excess(np.exp(d))
    reach = np.exp(stats.t.ppf(0.975, 7) * result.ess.stderr / result.ess**2 / v)
    assert result.ess.interval == pytest.approx([1 / (1 + v * reach), 1 / (1 + v / reach)])
    for numbers in [[-1.0, -1.0]], [[-1.0, -2.0]], [[-1.0], [-2.0]], [[-1.0]]:
        low, high = mismatch(numbers, np.full(np.shape(numbers), -1.0)).ess.interval
        assert low <= high or math.isnan(low)


def test_error_of_effective_sample_size_is_by_the_delta_method(pair):
    """Of the ratio of the mean of w**2 to the square of the mean of w, with sums by sequence."""
    result, w = mismatch(*pair), np.exp(np.subtract(*pair))
    first, second = w.mean(), (w**2).mean()
    change = w**2 / first**2 - 2 * second * w / first**3
    sums = (change - change.mean()).sum(axis=1)
    error = math.sqrt(9 / 8 * (sums**2).sum()) / w.size
    assert result.ess.stderr == pytest.approx(error * result.ess**2, rel=1e-9)


def test_interval_of_the_mean_ratio_stays_above_0(rng):
    d = rng.normal(size=(3, 4), scale=2.0)
    result = mismatch(d - 30, np.full(d.shape, -30.0))
    reach = math.exp(result.interval_factor * result.mean_ratio.stderr / result.mean_ratio)
    assert result.mean_ratio.interval == pytest.approx((result.mean_ratio / reach, result.mean_ratio * reach))
    assert mismatch([[-math.inf], [-math.inf]], [[-1.0], [-1.0]]).mean_ratio.interval == (0.0, 0.0)


@pytest.mark.parametrize("gate", ["max_k3", "min_ess"])
def test_gates_hold_fail_or_cannot_tell(gate, pair):
    result = mismatch(*pair)
    figure = getattr(result, gate[4:])
    low, high = statistic(result, f"{gate[4:]}_interval")
    limits = {"holds": high, "cannot tell": figure, "fails": 0.9 * low}
    if gate == "min_ess":
        limits = {"holds": low, "cannot tell": figure, "fails": (high + 1) / 2}
    for verdict, limit in limits.items():
        (one,) = result.check(**{gate: limit}).gates
        assert (one.verdict, one.figure, one.interval) == (verdict, pytest.approx(figure), (low, high))


def test_max_k3_cannot_hold_where_k3_is_too_small(rng):
    """Under top-p, k3 is near 0 by what the mean ratio lacks, and the divergence is k1."""
    log_probs = log_softmax(logits_of_text(rng))
    cut = truncated(log_probs, top_p=0.9)
    result = mismatch(of_classes(log_probs, classes := drawn(rng, cut)), of_classes(cut, classes))
    with np.errstate(invalid="ignore"):
        exact = float(np.where(cut > -1e8, np.exp(cut) * (cut - log_probs), 0).sum(1).mean())
    assert result.k3.interval[1] < exact / 5
    assert result.k1 == pytest.approx(exact, abs=4 * result.k1.stderr)
    note = f"the mean ratio is {result.mean_ratio:.4f}"
    for limit, verdict in ((result.k3 / 2, "fails"), (exact / 2, "cannot tell"), (2 * exact, "holds")):
        (one,) = result.check(max_k3=limit).gates
        assert one.verdict == verdict
        assert note in one.note


def counted_padding(ours, base):
    ours[:, 25:] = base[:, 25:] = 0


def sentinel_of_the_trainer(ours, base):
    ours[2, 3] = -9999


def prompt_of_one_side(ours, base):
    ours[:, :6], base[:, :6] = 0, -3


def shifted_by_one(ours, base):
    ours[:] = np.roll(ours, 1, axis=1)


def rows_in_another_order(ours, base):
    ours[:] = np.roll(ours, 1, axis=0)


def divided_log_probabilities(ours, base):
    ours /= 0.7


def learnt_from_these_tokens(ours, base):
    ours *= 0.9


def answers_of_other_classes(ours, base):
    """The trainer's are over the classes that top-p left, the sampler's over all, by which no token was drawn."""
    ours[:] = np.minimum(base + 0.1, 0)
    ours[:, ::4] = 0


@pytest.mark.parametrize(
    "change",
    [counted_padding, sentinel_of_the_trainer, prompt_of_one_side, shifted_by_one, rows_in_another_order,
     divided_log_probabilities, learnt_from_these_tokens, answers_of_other_classes],
)  # fmt: skip
def test_a_gate_on_numbers_that_the_diagnosis_calls_wrong_is_inconclusive(change, pair):
    """It passed: padding that agrees dilutes a divergence. Nor does it fail, as the number means nothing."""
    change(*pair)
    result = mismatch(*pair)
    assert result.void
    assert set(result.void.split("; ")) <= set("; ".join(result.diagnosis).split("; "))
    for limits in {"max_k3": 1e6, "min_ess": 0.0}, {"max_k3": 1e-9, "min_ess": 0.99999}:
        for one in result.check(**limits).gates:
            assert (one.verdict, one.n_more) == ("cannot tell", None)
            assert one.note.startswith(f"this value cannot be trusted: {result.void}")
    assert "\n  Diagnosis: the numbers above cannot be trusted\n" in result.summary()


def test_a_diagnosis_that_leaves_numbers_their_meaning_leaves_gates_alone(pair, rng):
    base = pair[1]
    log_probs = log_softmax(logits_of_text(rng))
    hot = log_softmax(log_probs / 0.7)
    classes = drawn(rng, hot)
    result = {
        "agree except for rounding": mismatch(base.round(4), base),
        "equal": mismatch(base, base),
        "looks like a temperature": mismatch(of_classes(log_probs, classes), of_classes(hot, classes)),
    }
    verdicts = [one.check(max_k3=1e-3).verdict for one in result.values()]
    assert verdicts == ["holds", "holds", "fails"]
    assert [(begins(one), one.void) for one in result.values()] == [([name], "") for name in result]


def test_figures_that_are_nan_fail_beside_any_diagnosis(pair):
    logprobs, base = pair
    logprobs[0, 0] = np.nan
    counted_padding(logprobs, base)
    result = mismatch(logprobs, base)
    assert "nan on only one side" in result.diagnosis[0]
    assert "nan on only one side" not in result.void
    assert {one.verdict for one in result.check(max_k3=1.0, min_ess=0.5).gates} == {"fails"}


def test_max_k3_cannot_tell_where_the_mean_ratio_is_above_1(pair, rng):
    """The note said that these tokens cannot show a divergence, beside a gate that held or failed."""
    base = pair[1]
    result = mismatch(base - 1 + rng.normal(0.005, 0.02, size=base.shape), base - 1)
    assert (result.diagnosis, result.void) == ([], "")
    for limit in result.k3 / 2, 2 * result.k3, 0.01:
        (one,) = result.check(max_k3=limit).gates
        assert one.verdict == "cannot tell"
        assert one.note.endswith("these tokens cannot show a divergence")
    assert result.check(max_k3=0.1, min_ess=0.99).verdict == "holds"


def test_the_part_of_k3_that_the_largest_tokens_hold():
    d = np.array([1.0] * 2 + [0.1] * 148)
    k3 = k3_of(d)
    assert mismatch(d - 3, np.full(150, -3.0)).top_k3_share == pytest.approx(k3[:2].sum() / k3.sum())


# -- the diagnosis -----------------------------------------------------------------------------------------------------


def begins(result):
    """The beginning of each sentence."""
    return [sentence.partition(":")[0] for sentence in result.diagnosis]


def with_bad_tokens(rng, log_probs, share, noise):
    """What an engine gives that is far off at some tokens, as where a mixture of experts takes other ones."""
    is_bad = rng.random((len(log_probs), 1)) < share
    return log_softmax(log_probs + (0.02 + noise * is_bad) * rng.normal(size=log_probs.shape))


def learnt_from(rng, log_probs, classes, gain):
    """The policy after it learnt to make the very tokens likelier that were drawn, or less likely."""
    logits = log_probs.copy()
    logits[np.arange(len(classes)), classes] += gain * rng.exponential(size=len(classes))
    return log_softmax(logits)


def changed(rng, log_probs, classes, noise):
    """What another engine would give, by noise in its logits."""
    return of_classes(log_softmax(log_probs + noise * rng.normal(size=log_probs.shape)), classes)


@pytest.mark.parametrize("seed", range(3))
def test_correct_pairs_have_no_diagnosis(seed):
    rng = np.random.default_rng(seed)
    logits = logits_of_text(rng)
    log_probs = log_softmax(logits)
    classes = drawn(rng, log_probs)
    base = of_classes(log_probs, classes)
    in_bfloat16 = log_softmax(bfloat16(logits).astype(float))
    for name, logprobs in {
        "bfloat16 logits": of_classes(in_bfloat16, classes),
        "noise of kernels": changed(rng, log_probs, classes, 0.02),
        "bfloat16 of other kernels": bfloat16(changed(rng, log_probs, classes, 0.02)).astype(float),
        "a policy that moved": changed(rng, log_probs, classes, 0.5),
        "a policy that moved far": changed(rng, log_probs, classes, 1.5),
        "a sharper policy": changed(rng, 1.03 * log_probs, classes, 0.2),
        "2 % bad tokens": of_classes(with_bad_tokens(rng, log_probs, 0.02, 1.5), classes),
        "10 % bad tokens": of_classes(with_bad_tokens(rng, log_probs, 0.1, 3), classes),
    }.items():
        assert mismatch(logprobs, base).diagnosis == [], name
        assert mismatch(logprobs.ravel(), base.ravel()).diagnosis == [], name
        assert mismatch(logprobs, bfloat16(base)).diagnosis == [] or name == "bfloat16 logits", name
        assert mismatch(logprobs[:, :3], base[:, :3]).diagnosis == [], name


@pytest.mark.slow
@pytest.mark.parametrize("sharpness", [1, 3, 8])
def test_diagnoses_of_many_seeds_are_none_or_true(sharpness, monkeypatch):
    of_text = logits_of_text
    monkeypatch.setitem(globals(), "logits_of_text", lambda rng: sharpness * of_text(rng))
    learnt = {"tokens were not drawn from the sampler's numbers"}, {"the mean ratio is significantly below 1"}
    for seed in range(2 + sharpness % 4, 36, 6):  # other ones for each
        test_correct_pairs_have_no_diagnosis(seed)
        rng = np.random.default_rng(seed)
        log_probs = log_softmax(logits_of_text(rng))
        classes = drawn(rng, log_probs)
        base = of_classes(log_probs, classes)
        for gain in (0.1, 1.0, -0.1, -1.0):
            result = mismatch(of_classes(learnt_from(rng, log_probs, classes, gain), classes), base)
            assert {words.partition(" (")[0] for words in begins(result)} <= learnt[gain < 0], (seed, gain)
        sides = [base.copy(), changed(rng, log_probs, classes, 0.02)]
        sides[seed % 2][:, :4], sides[1 - seed % 2][:, :4] = 0, -1 - rng.exponential(size=(ROWS, 4))
        (sentence,) = mismatch(*sides).diagnosis
        assert sentence.startswith("48 numbers of the ")


@pytest.mark.parametrize("is_trainer", [True, False])
@pytest.mark.parametrize(
    ("rounded", "words"),
    [
        (lambda values: values.round(4), "4 decimals"),
        (lambda values: values.round(2), "2 decimals"),
        (lambda values: bfloat16(values).astype(float), "bfloat16"),
        (lambda values: values.astype(np.float16), "float16"),
        (lambda values: values.astype(np.float32), "float32"),
    ],
)
def test_rounding_is_told_by_its_digits(rounded, words, is_trainer, pair):
    base = pair[1]
    sides = (rounded(base), base)[:: 1 if is_trainer else -1]
    (sentence,) = mismatch(*sides).diagnosis
    both = (words, "float64") if is_trainer else ("float64", words)
    assert sentence.startswith(f"agree except for rounding: the trainer's values are rounded to {both[0]}, ")
    assert f", the sampler's to {both[1]}," in sentence
    assert mismatch(*(one[:1, :9] for one in sides)).diagnosis == []  # too few to tell


def test_rounding_of_large_numbers_of_float32_is_that_of_sums_over_all_classes(rng):
    """Log-probabilities of -20 to -60 are computed to some 1e-5, however finely float32 can write them."""
    base = -rng.uniform(20, 60, size=200).astype(np.float32)
    other = base + np.float32(1.5e-5) * rng.choice([-1, 1], size=200).astype(np.float32)
    (sentence,) = mismatch(other, base).diagnosis
    assert sentence.startswith(
        "agree except for rounding: the trainer's values are rounded to float32, the sampler's to float32"
    )


def test_rounding_of_float16_is_half_a_unit_on_each_side(rng):
    base = -rng.uniform(1, 2, size=200).astype(np.float16)
    other = base.view(np.uint16) + np.tile(np.uint16([1, 0]), 100)
    assert begins(mismatch(other.view(np.float16), base)) == ["agree except for rounding"]
    other[0] += 1
    assert "agree except for rounding" not in begins(mismatch(other.view(np.float16), base))


def test_log_odds_on_a_line_that_no_temperature_makes_have_none(rng):
    """Its offset would need other classes with an entropy of -2 nats."""
    x = rng.normal(size=(20, 60), scale=1.5)
    for slope, offset, expected in (1.3, -0.6, None), (1.3, 0.6, pytest.approx(1 / 1.3, abs=1e-3)):
        base, logprobs = (-np.logaddexp(0, -odds) for odds in (x, slope * x + offset))
        result = mismatch(logprobs, base)
        assert result.temperature == expected
        assert ("looks like a temperature" in begins(result)) == (expected is not None)


def test_the_summary_ends_with_the_diagnosis_or_with_a_sentence_that_there_is_none(pair, rng):
    logprobs, base = pair
    quiet = mismatch(logprobs, base)
    above = mismatch(base - 1 + rng.normal(0.005, 0.02, size=base.shape), base - 1)
    for result, words in (
        (quiet, "nothing suspicious: the mean ratio is 1 within its error"),
        (above, "nothing certain, but the 95 % interval of the mean ratio"),
        (mismatch(logprobs[:, :3], base[:, :3]), "too few tokens to tell: 27, but 50 are needed"),
        (mismatch([], []), "too few tokens to tell: 0, but 50 are needed"),
        (mismatch(base / 0.7, base), "looks scaled"),
    ):
        tables, _, signature = result.summary().rpartition("\n\n")
        assert signature.strip() == result.signature
        assert tables.splitlines()[-1].startswith(f"  {words}"), words
        assert result.diagnosis == [] or result.diagnosis[0].startswith(words)


def test_the_summary_has_each_interval_once(pair):
    """It also said to multiply ± by a factor, which gives other ends than the intervals of logarithms."""
    result = mismatch(*pair)
    low, high = result.k3.interval
    assert f"95 % interval {low:.5g} to {high:.5g}" in result.summary()
    assert "multiply" not in result.summary()


def test_equal_numbers_are_told(pair):
    assert begins(mismatch(pair[0], pair[0])) == ["equal"]


@pytest.mark.parametrize(("shift", "place"), [(1, "t + 1"), (-1, "t - 1")])
@pytest.mark.parametrize("by", ["row", "one dimension"])
def test_a_shift_by_one_is_told(shift, place, by, pair):
    logprobs, base = pair
    logprobs = np.roll(logprobs, -shift, axis=1)
    sides = (logprobs, base) if by == "row" else (logprobs.ravel(), base.ravel())
    (sentence,) = mismatch(*sides).diagnosis
    assert sentence.startswith("looks shifted by one")
    assert f"fit the sampler's at {place} " in sentence


def test_padding_that_is_counted_is_told(pair, rng):
    mask = np.arange(40) < rng.integers(5, 36, size=9)[:, None]
    logprobs, base = (np.where(mask, one, 0.0) for one in pair)
    assert begins(mismatch(logprobs, base)) == ["looks like padding or prompts that are counted"]
    assert mismatch(logprobs, base, where=mask).diagnosis == []
    logprobs[:, ::3] = base[:, ::3] = 0  # certain tokens
    assert mismatch(logprobs, base).diagnosis == []


@pytest.mark.parametrize("temperature", [0.5, 0.7, 0.9, 1.2])
@pytest.mark.parametrize("is_raw", [True, False])
def test_vime_64_raw_log_probabilities_beside_a_temperature(temperature, is_raw, rng):
    """The engine samples at a temperature and returns raw log-probabilities, or the trainer does not know of it."""
    log_probs = log_softmax(logits_of_text(rng, n=2400))
    hot = log_softmax(log_probs / temperature)
    classes = drawn(rng, hot)
    sides = (hot, log_probs) if is_raw else (log_probs, hot)
    result = mismatch(*(of_classes(one, classes) for one in sides))
    assert begins(result)[0] == "looks like a temperature"
    expected = temperature if is_raw else 1 / temperature
    assert result.temperature == pytest.approx(expected, rel=0.3 if temperature == 0.5 else 0.1)
    is_drawn = "tokens were not drawn from the sampler's numbers" not in begins(result)
    assert is_drawn or is_raw
    assert is_drawn == (not is_raw) or temperature > 0.8  # near 1 it takes more tokens to tell


def test_log_probabilities_that_are_divided_by_a_temperature_are_told(pair):
    (sentence,) = mismatch(pair[1] / 0.7, pair[1]).diagnosis
    assert sentence.startswith("looks scaled: the trainer's values are 1.429 times the sampler's")


@pytest.mark.parametrize("temperature", [0.6, 0.8, 1.5])
def test_scaled_log_probabilities_are_told_beside_noise(temperature, rng):
    log_probs = log_softmax(logits_of_text(rng))
    classes = drawn(rng, log_probs)
    base, other = of_classes(log_probs, classes), changed(rng, log_probs, classes, 0.02)
    (sentence,) = mismatch(other / temperature, base).diagnosis
    assert sentence.startswith(f"looks scaled: the trainer's values are {1 / temperature:.4g}"[:-2])


@pytest.mark.parametrize("layout", ["left", "flat", "left flat", "-100"])
def test_padding_is_told_in_layout(layout, pair, rng):
    mask = np.arange(40) < rng.integers(5, 31, size=9)[:, None]
    mask = mask[:, ::-1] if "left" in layout else mask
    sides = [np.where(mask, one, -100.0 if layout == "-100" else 0.0) for one in pair]
    (sentence,) = mismatch(*(one.ravel() if "flat" in layout else one for one in sides)).diagnosis
    assert sentence.startswith("looks like padding or prompts that are counted")
    assert f"{(~mask).sum()} tokens are {'-100.0' if layout == '-100' else '0.0'} on both sides" in sentence


def test_certain_tokens_in_runs_are_no_padding(rng):
    """Certain tokens come beside nearly certain ones, and padding does not."""
    for is_same in (False, True):
        certain = np.repeat(rng.random(300) < 0.3, 20)  # as where a text is copied
        base = -rng.exponential(size=6000) * np.where(certain, 10.0 ** -rng.uniform(4, 12, size=6000), 1)
        base = np.where(base > -1e-8, 0.0, base)
        assert (base == 0).mean() > 0.1
        other = base * rng.normal(1, 0.02, size=6000)
        shape = (6, 1000) if is_same else -1
        assert mismatch(other.reshape(shape), base.reshape(shape)).diagnosis == []


@pytest.mark.parametrize("name", ["trainer", "sampler"])
def test_zeros_of_one_side_are_told_and_not_taken_for_top_p(name, pair):
    sides = [one.copy() for one in pair]
    ours = sides[name == "sampler"]
    ours[:, :6], sides[name == "trainer"][:, :6] = 0, -3
    (sentence,) = mismatch(*sides).diagnosis
    assert sentence.startswith(f"54 numbers of the {name} are 0.0 where the other's are at most -1, as if a prompt")


@pytest.mark.parametrize("name", ["trainer", "sampler"])
def test_numbers_in_place_of_minus_infinity_are_told_and_explain_nothing(name, pair):
    sides = [one.copy() for one in pair]
    sides[name == "sampler"][2, 3] = -9999
    result = mismatch(*sides)
    assert (len(result.diagnosis), result.temperature) == (1, None)
    assert result.diagnosis[0].startswith("1 token below -1000 on one side, down to -9999")


def test_nan_on_one_side_is_told(pair):
    logprobs, base = pair
    mask = np.arange(40) < 30
    (sentence,) = mismatch(np.where(mask, logprobs, np.nan), np.where(mask, base, 0)).diagnosis
    assert sentence.startswith(
        "90 tokens with nan on only one side, which makes metrics nan: the other side is 0 there"
    )


def test_rows_in_another_order_do_not_belong_together(pair):
    (sentence,) = mismatch(np.roll(pair[0], 1, axis=0), pair[1]).diagnosis
    assert sentence.startswith("the two do not seem to belong together: their rank correlation is")


def test_a_trainer_that_learnt_from_these_tokens_is_not_truncated(rng):
    """It makes them likelier than they were when they were drawn, by more than top-p can."""
    log_probs = log_softmax(logits_of_text(rng))
    classes = drawn(rng, log_probs)
    base = of_classes(log_probs, classes)
    for gain in 0.1, 0.5:
        (sentence,) = mismatch(of_classes(learnt_from(rng, log_probs, classes, gain), classes), base).diagnosis
        assert sentence.startswith("tokens were not drawn from the sampler's numbers")
        assert sentence.endswith("or has the trainer already learned from these tokens?")


def test_a_temperature_and_top_p_are_both_told(rng):
    log_probs = log_softmax(logits_of_text(rng, n=2400))
    cut = truncated(log_softmax(log_probs / 0.6), top_p=0.9)
    classes = drawn(rng, cut)
    result = mismatch(changed(rng, log_probs, classes, 0.01), of_classes(cut, classes))
    assert result.diagnosis[0].startswith(f"the mean ratio is significantly below 1 ({result.mean_ratio:.3f} ± ")
    assert result.diagnosis[1].startswith("looks like a temperature")


@pytest.mark.parametrize("options", [{"top_p": 0.8}, {"top_p": 0.95}, {"top_k": 20}])
@pytest.mark.parametrize("is_trainer", [False, True])
def test_trl_6789_log_probabilities_over_truncated_classes(options, is_trainer, rng):
    """The engine's are over the classes that top-p left, the trainer's over all; the mean ratio is the mass kept."""
    log_probs = log_softmax(logits_of_text(rng))
    cut = truncated(log_probs, **options)
    classes = drawn(rng, cut)
    sides = [of_classes(cut, classes), changed(rng, log_probs, classes, 0.01)][:: 1 if is_trainer else -1]
    result = mismatch(*sides)
    if "top_k" in options:  # which leaves several classes at each token
        sentence = "tokens were not drawn from" if is_trainer else "the mean ratio is significantly below 1"
        assert result.diagnosis[0].startswith(sentence)
        return
    assert begins(result)[0] == "looks like raw versus processed log-probabilities"
    assert result.diagnosis[1:] == [] or is_trainer
    whole = "the sampler's" if is_trainer else "the trainer's"
    assert f"{whole} keep" in result.diagnosis[0]
    if not is_trainer:
        kept = float(np.mean([np.exp(log_probs[i][cut[i] > -1e8]).sum() for i in range(len(cut))]))
        assert result.mean_ratio == pytest.approx(kept, abs=4 * result.mean_ratio.stderr)
