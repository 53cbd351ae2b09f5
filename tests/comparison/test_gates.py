"""Gates: verdicts by the intervals of figures, and how often they are right; the noise of a second run."""

import dataclasses
import json
import math
import re

import clients
import numpy as np
import pytest
from places import TESTS
from reference_sequences import ends_above_0
from rendered import Documents
from scipy import stats

from tokenloss import (
    ComparisonMeter,
    LossMeter,
    NormWarning,
    ShiftWarning,
    compare,
    compare_files,
    compare_samples,
    evaluate,
    sequence_losses,
)
from tokenloss._statistics.distributions import binomial_interval, quantile_ranks
from tokenloss._statistics.estimates import Measure
from tokenloss._statistics.ratio import ExactRatio
from tokenloss.formats import blocks, open_hidden_states, open_scores
from tokenloss.results import Evaluations

PARITY = "n_identical", "max_abs_logprob", "tied_flips", "decisive_flips", "parity", "parity_reason"
LIMITS = {"max_kl": 1.0, "max_kl_quantile": {0.5: 1.0}, "min_same_top": 0.5, "max_perplexity_ratio": 1.0}


def only(verdicts):
    """The only verdict."""
    (verdict,) = verdicts.gates
    return verdict


def less_likely(path):
    """A file of responses like this one, with other log-probabilities."""
    other = path.with_name("other.jsonl")
    other.write_text(re.sub(r'("logprob": ?-)', r"\g<1>1", path.read_text("utf-8")), "utf-8")
    return other


@pytest.fixture
def documents(rng):
    """A base, and a model that differs a little from it, of 30 documents of 20 tokens."""
    base = rng.normal(size=(30, 20, 7), scale=2)
    model = base + rng.normal(size=base.shape, scale=0.3)
    return compare(base, model, rng.integers(7, size=(30, 20)), segment_ids=np.arange(30)[:, None])


# -- intervals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.999])
def test_intervals_have_the_confidence(documents, confidence):
    t = stats.t.ppf((1 + confidence) / 2, 29)  # documents are equally long
    result = {one.gate: one for one in documents.check(**LIMITS, confidence=confidence).gates}
    factor = math.exp(t * documents.mean_kl.stderr / documents.mean_kl)
    assert result["max_kl"].interval == pytest.approx((documents.mean_kl / factor, documents.mean_kl * factor))
    radius = t * documents.log_perplexity_ratio.stderr
    expected = [math.exp(documents.log_perplexity_ratio + sign * radius) for sign in (-1, 1)]
    assert result["max_perplexity_ratio"].interval == pytest.approx(expected)
    share, error = documents.same_top, documents.same_top.stderr
    n = share * (1 - share) / error**2 * (stats.t.ppf((1 + confidence) / 2, 599) / t) ** 2  # Korn and Graubard
    n, tail = min(n, 600 * (stats.t.ppf((1 + confidence) / 2, 599) / t) ** 2), (1 - confidence) / 2
    expected = stats.beta.ppf(tail, share * n, n - share * n + 1), stats.beta.isf(tail, share * n + 1, n - share * n)
    assert result["min_same_top"].interval == pytest.approx(expected)
    low, high = result["max_kl_quantile 0.5"].interval
    kl = np.sort(documents.kl.ravel())
    first, last = quantile_ranks(600, 0.5, tail)
    assert low <= kl[first - 1] < kl[last - 1] <= high
    assert [one.figure for one in result.values()] == [
        documents.mean_kl, documents.kl_quantiles[0.5], documents.same_top, documents.perplexity_ratio,
    ]  # fmt: skip


def test_intervals_of_95_percent_are_those_of_the_comparison(documents):
    intervals = {at: one.interval for at, one in documents.kl_quantiles.items() if 0 < at < 1}
    verdicts = documents.check(max_kl_quantile=dict.fromkeys(intervals, 1)).gates
    for verdict, (fraction, interval) in zip(verdicts, intervals.items(), strict=True):
        assert verdict.gate == f"max_kl_quantile {fraction:g}"
        assert verdict.interval == interval
        assert verdict.figure == documents.kl_quantiles[fraction]


@pytest.mark.parametrize("n", [1, 7, 0.3, 33.3, 5000, 1e7])
@pytest.mark.parametrize("share", [0, 1e-3, 0.3, 0.97, 1])
def test_binomial_interval_is_that_of_clopper_and_pearson(n, share):
    k = share * n
    for tail in 0.25, 0.025, 1e-6:
        low = stats.beta.ppf(tail, k, n - k + 1) if k else 0.0
        high = stats.beta.isf(tail, k + 1, n - k) if n > k else 1.0
        assert binomial_interval(share, n, tail) == pytest.approx((low, high), abs=1e-11)


@pytest.mark.parametrize("n", [40, 400])
@pytest.mark.parametrize("tail", [0.005, 0.05, 0.25])
def test_quantile_ranks_of_other_tails(n, tail):
    low, high = quantile_ranks(n, 0.9, tail)
    below = stats.binom(n, 0.9)  # how many values lie below the quantile
    assert below.cdf(low - 1) <= tail < below.cdf(low)
    assert below.sf(high - 1) <= tail < below.sf(high - 2)


def with_flips(flips, tokens=50):
    """A comparison of texts of so many tokens, of which so many in each text have another top class."""
    base = np.tile([0.0, 2.0], (len(flips), tokens, 1))
    model = np.where(np.arange(tokens)[:, None] < np.asarray(flips)[:, None, None], [0.2, 0.1], 0.9 * base)
    return compare(base, model, None, segment_ids=np.arange(len(flips))[:, None])


def least(texts, worst=0.5):
    """The lower end of a share of 1: if a text of a kind that is absent differs in half of its tokens."""
    return 1 - worst * (1 - 0.025 ** (1 / texts))


def test_gates_of_all_tokens_alike_allow_for_a_kind_of_text_that_is_not_among_them(rng):
    """A Wald interval, whose error is 0, would hold after a single text."""
    base = rng.normal(size=(12, 50, 5))
    targets = np.zeros((12, 50), int)
    same = compare(base, 0.9 * base, targets, segment_ids=np.arange(12)[:, None])
    assert (same.same_top, same.same_top.stderr) == (1.0, 0.0)
    verdict = only(same.check(min_same_top=0.97))
    assert verdict.interval == pytest.approx((least(12), 1.0))
    assert (verdict.verdict, verdict.n_more) == ("cannot tell", 48)
    for texts, expected in (59, "cannot tell"), (60, "holds"):
        assert only(with_flips([0] * texts).check(min_same_top=0.97)).verdict == expected
    tokens = only(compare(base, 0.9 * base, targets).check(min_same_top=0.97))
    assert tokens.interval == pytest.approx((0.025 ** (1 / 600), 1.0))
    assert tokens.verdict == "holds"
    lengths = [1, 1, 1, 1, 1, 95]  # which weigh as much as 1.1 equal ones
    uneven = compare(base[0].repeat(2, 0), 0.9 * base[0].repeat(2, 0), np.zeros(100, int),
                     segment_ids=np.repeat(np.arange(6), lengths))  # fmt: skip
    low, few = only(uneven.check(min_same_top=0.97)).interval[0], least(10000 / 9030)
    assert low < few  # errors of so few texts, one of which outweighs the others, are hardly known


@pytest.mark.parametrize("texts", [5, 20, 50])
def test_min_same_top_never_rises_with_flips(texts):
    """20 texts without a flip had the lower end 0.8316, and with a single one 0.9939, which held a gate of 0.95."""
    lows = []
    for flips in [*range(21), 40, 100, 200]:
        spread = np.full(texts, flips // texts) + (np.arange(texts) < flips % texts)
        low, high = only(with_flips(spread).check(min_same_top=0.95)).interval
        assert low < 1 - flips / texts / 50 <= high
        lows.append(low)
    assert lows[0] == pytest.approx(least(texts))
    assert (np.diff(lows) <= 0).all()
    assert lows[-1] < lows[-2] < lows[0]
    high = only(with_flips([50] * texts).check(min_same_top=0.95)).interval[1]
    assert high == pytest.approx(1 - least(texts))


def lower_ends(successes, lengths, factor):
    """Lower ends of the share of successes, given those in each text (rows are samples): Korn and Graubard, capped."""
    tokens, texts = lengths.sum(), len(lengths)
    share = successes.sum(-1) / tokens
    residuals = successes - share[:, None] * lengths
    variance = texts / (texts - 1) * (residuals**2).sum(-1) / tokens**2
    with np.errstate(divide="ignore", invalid="ignore"):
        number = np.where(variance > 0, np.minimum(tokens, share * (1 - share) / variance), tokens)
    number *= (stats.t.isf(0.025, tokens - 1) / factor) ** 2
    low = np.where(share > 0, stats.beta.ppf(0.025, share * number, number - share * number + 1), 0.0)
    return np.minimum(low, least(tokens**2 / (lengths**2).sum()))


@pytest.mark.parametrize("lengths", ["equal", "lognormal"])
@pytest.mark.parametrize("texts", [10, 20, 50, 200])
@pytest.mark.parametrize("spread", [(2, 98), (600, 1400), None])
def test_min_same_top_at_the_true_share_holds_in_5_percent_at_most(spread, texts, lengths, rng):
    """In 2,000 samples of texts that have each their own share of failures, or of independent tokens."""
    sizes = np.full(texts, 50)
    if lengths == "lognormal":
        sizes = np.exp(0.8 * stats.norm.ppf((np.arange(texts) + 0.5) / texts))
        sizes = np.maximum(1, np.round(50 * sizes / sizes.mean())).astype(int)
    rates = np.full((2000, texts), 0.02) if spread is None else rng.beta(*spread, (2000, texts))
    mean = 0.02 if spread is None else spread[0] / sum(spread)
    failures = rng.binomial(sizes, rates)
    weights = sizes.astype(float)
    factor = ExactRatio.of(weights, weights).factor()
    for successes, share in (sizes - failures, 1 - mean), (failures, mean):
        lows = lower_ends(successes, sizes, factor)
        assert (lows >= share).mean() <= 0.05
        for one, low in zip(successes[:3], lows, strict=False):
            independent = ExactRatio.of(one.astype(float), weights)
            estimate = Measure(independent.ratio, independent, "", "share", int(sizes.sum())).reach()
            assert estimate.low == pytest.approx(low, rel=1e-9)


@pytest.mark.parametrize(("flips", "limit"), [(0, 0.95), (0, 0.99), (1, 0.97), (5, 0.945)])
def test_n_more_texts_hold_a_gate_of_shares(flips, limit):
    """By bisection over texts that have so many failures in each 100 tokens."""
    (verdict,) = with_flips([flips] * 8, 100).check(min_same_top=limit).gates
    assert verdict.verdict == "cannot tell"
    for factor, expected in (0.7, "cannot tell"), (1.3, "holds"):
        texts = 8 + round(factor * verdict.n_more)
        assert only(with_flips([flips] * texts, 100).check(min_same_top=limit)).verdict == expected


@pytest.mark.parametrize("repetitions", [pytest.param(800, marks=pytest.mark.slow), 30])
def test_gates_at_the_true_value_hold_and_fail_at_their_confidence(repetitions, rng):
    """Sets of documents are resampled of some whose figures are known: a gate at these is neither kept nor broken."""
    number, confidence = 2000, 0.8
    base = rng.normal(size=(number, 6, 4), scale=2)
    noise = rng.normal(size=base.shape) * rng.uniform(0.3, 0.5, size=(number, 1, 1))  # documents differ
    targets = rng.integers(4, size=base.shape[:2])
    truth = compare(base, base + noise, targets)
    limits = {
        "max_kl": truth.mean_kl, "max_kl_quantile": {0.75: np.quantile(truth.kl, 0.75)},
        "min_same_top": truth.same_top, "max_perplexity_ratio": truth.perplexity_ratio,
    }  # fmt: skip
    verdicts, ids = [], np.arange(40)[:, None]
    for _ in range(repetitions):
        drawn = rng.integers(number, size=40)
        one = compare(base[drawn], (base + noise)[drawn], targets[drawn], segment_ids=ids)
        verdicts.append([gate.verdict for gate in one.check(**limits, confidence=confidence).gates])
    tail = (1 - confidence) / 2
    error = 4 * math.sqrt(tail * (1 - tail) / repetitions)
    for gate, given in zip(limits, np.transpose(verdicts), strict=True):
        shares = np.mean(given == "holds"), np.mean(given == "fails")
        assert max(shares) < tail + error + 0.015, gate
        if gate in (
            "max_kl",
            "max_perplexity_ratio",
        ):  # those of counts are at most this, and those of ranks are discrete
            assert min(shares) > tail - error - 0.02, gate


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_verdicts_say_where_the_interval_lies(documents):
    low, high = only(documents.check(max_kl=1)).interval
    for limit, verdict in (high, "holds"), (low, "cannot tell"), (np.nextafter(low, 0), "fails"):
        assert only(documents.check(max_kl=limit)).verdict == verdict
    low, high = only(documents.check(min_same_top=1)).interval
    for limit, verdict in (low, "holds"), (high, "cannot tell"), (np.nextafter(high, 1), "fails"):
        assert only(documents.check(min_same_top=limit)).verdict == verdict
    assert documents.check(max_kl=high, min_same_top=low).verdict == "holds"
    assert documents.check(max_kl=high, min_same_top=high).verdict == "cannot tell"
    assert documents.check(max_kl=0, min_same_top=high).verdict == "fails"


@pytest.mark.parametrize("gate", [*LIMITS])
def test_n_more_texts_tell(gate, rng):
    """As many more documents as a verdict says give one, when their figures are the same."""

    def compared(number):
        drawn = np.arange(number) % 10
        return compare(base[drawn], model[drawn], targets[drawn], segment_ids=np.arange(number)[:, None])

    base = rng.normal(size=(10, 20, 6), scale=2)
    model = base + rng.normal(size=base.shape) * rng.gamma(3, 0.1, size=(10, 1, 1))
    targets = rng.integers(6, size=(10, 20))
    few = compared(10)
    verdict = only(few.check(**{gate: LIMITS[gate]}))
    ends = {"max_kl_quantile": lambda limit: {0.5: limit}}.get(gate, lambda limit: limit)
    limit = ends(verdict.figure + 0.4 * (verdict.interval[gate.startswith("max")] - verdict.figure))
    verdict = only(few.check(**{gate: limit}))
    assert verdict.verdict == "cannot tell"
    assert f"about {verdict.n_more} more sequences needed" in verdict.note
    assert only(compared(10 + 2 * verdict.n_more).check(**{gate: limit})).verdict == "holds"
    assert only(compared(10 + verdict.n_more // 2).check(**{gate: limit})).verdict == "cannot tell"


def test_gates_at_the_figure_itself_are_told_by_no_number_of_texts(documents):
    verdict = only(documents.check(max_kl=documents.mean_kl))
    assert (verdict.verdict, verdict.n_more) == ("cannot tell", None)
    assert "no number of texts would be enough" in verdict.note


def test_gates_of_one_sequence_take_tokens_as_independent_and_say_so(rng):
    base = rng.normal(size=(40, 5))
    for options in {}, {"segment_ids": np.zeros(40, int)}:
        verdict = only(compare(base, 0.9 * base, np.zeros(40, int), **options).check(max_kl=1))
        assert verdict.verdict == "holds"
        assert verdict.note == "40 tokens, assumed independent"
    two = compare(base, 0.9 * base, np.zeros(40, int), segment_ids=np.arange(40) // 20)
    assert "2 sequences, too few for more than a guess" in only(two.check(max_kl=1)).note


@pytest.mark.parametrize("model", [[1.0, math.nan], [1.0, -math.inf]])
def test_gates_of_nan_and_infinite_figures_fail(model):
    result = compare([[1.0, 2.0]] * 3, [[1.0, 2.0], model, model], [0, 1, 1])
    for verdict in result.check(max_kl=1e9, max_kl_quantile={0.6: 1e9}, max_perplexity_ratio=1e9).gates:
        assert verdict.verdict == "fails", verdict
        assert "the value is not finite" in verdict.note


def test_gates_of_an_infinite_loss_of_the_base_fail():
    """The ratio of perplexities is then 0, which looks perfect."""
    result = compare([[1.0, -math.inf]] * 2, [[1.0, 2.0]] * 2, [0, 1])
    assert result.perplexity_ratio == 0
    assert only(result.check(max_perplexity_ratio=1)).verdict == "fails"


def test_gates_of_what_no_token_has_neither_hold_nor_fail(rng):
    """They failed with the status of a worse model."""
    base = rng.normal(size=(40, 5))
    without = compare(base, 0.9 * base, None)
    with pytest.raises(ValueError, match=r"^max_perplexity_ratio limits losses, which need targets, and these scores"):
        without.check(max_perplexity_ratio=2)
    assert without.check(max_kl=2).verdict == "holds"
    for verdict in compare(base[:0], base[:0], None).check(max_kl=2, max_kl_quantile={0.5: 1}, min_same_top=0).gates:
        assert (verdict.verdict, verdict.n_more, verdict.note[:23]) == ("cannot tell", None, "no token has this value")
    for verdict in evaluate([(base, np.full(40, -100))]).check(max_loss=9, min_greedy_accuracy=0).gates:
        assert (verdict.verdict, verdict.note[:23]) == ("cannot tell", "no token has this value")
    single = compare(base[:1], base[:1] + 1, [0]).check(max_kl=2, min_same_top=0.5)
    assert [one.verdict for one in single.gates] == ["cannot tell"] * 2


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        ({}, "the list of gates is empty; it must be one or more of max_kl, max_kl_quantile"),
        ({"max_kl": -1}, "max_kl is -1; it must be a finite number >= 0"),
        ({"max_kl": math.nan}, "max_kl is nan"),
        ({"max_perplexity_ratio": math.inf}, "max_perplexity_ratio is inf"),
        ({"min_same_top": 97}, "min_same_top is 97; it must be a number from 0 to 1"),
        ({"max_kl": "1"}, "max_kl is '1'"),
        ({"max_kl_quantile": 0.3}, "max_kl_quantile is 0.3; it must be a mapping"),
        ({"max_kl_quantile": {1.0: 0.3}}, "a fraction of max_kl_quantile is 1.0; it must be a number between 0 and 1"),
        ({"max_kl_quantile": {0.12345678: 0.3}}, "with at most 6 decimals"),
        ({"max_kl_quantile": {0.5: -1}}, "max_kl_quantile is -1"),
        ({"max_kl": 1, "confidence": 95}, "confidence is 95; it must be a number between 0 and 1"),
        ({"max_kl": 1, "confidence": 1.0}, "confidence is 1.0"),
        ({"max_kl": 1, "confidence": 0}, "confidence is 0"),
        ({"max_kl": 1, "noise": "twin.npz"}, "noise is 'str'; it must be another Comparison, or None"),
    ],
)
def test_gates_that_are_invalid(gates, words, documents):
    with pytest.raises((TypeError, ValueError)) as caught:
        documents.check(**gates)
    assert words in str(caught.value)


def test_max_kl_quantile_of_any_fraction(documents):
    verdict = only(documents.check(max_kl_quantile={0.123456: 5}))
    assert verdict.gate == "max_kl_quantile 0.123456"
    assert verdict.figure == pytest.approx(np.quantile(documents.kl, 0.123456), rel=1e-12)


def test_gates_of_several_candidates_have_their_names(rng):
    meter, base = ComparisonMeter(), rng.normal(size=(60, 5))
    meter.update(base, {"q8": 0.99 * base, "q4": 0.2 * base}, np.zeros(60, int))
    result = meter.results()
    verdicts = result.check(max_kl=0.01, max_perplexity_ratio=9)
    assert [(one.name, one.gate, one.verdict) for one in verdicts.gates] == [
        ("q8", "max_kl", "holds"), ("q8", "max_perplexity_ratio", "holds"),
        ("q4", "max_kl", "fails"), ("q4", "max_perplexity_ratio", "holds"),
    ]  # fmt: skip
    assert verdicts.verdict == "fails"
    assert [one._replace(name="") for one in verdicts.gates[:2]] == result["q8"].check(
        max_kl=0.01, max_perplexity_ratio=9
    ).gates
    with pytest.raises(ValueError, match="the list of models is empty"):
        Evaluations().check(max_loss=1)
    assert verdicts.columns()["high"].tolist() == [one.interval[1] for one in verdicts.gates]


# -- evaluations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequences", [False, True])
def test_gates_of_evaluations(sequences, rng):
    logits, targets = rng.normal(size=(25, 8, 6), scale=3), rng.integers(6, size=(25, 8))
    targets = np.where(rng.random(targets.shape) < 0.5, logits.argmax(-1), targets)
    targets[:, 6:][rng.random((25, 2)) < 0.5] = -100
    source = (logits, targets) if sequences else (logits.reshape(-1, 6), targets.ravel())
    result = evaluate([source])
    perplexity, loss, accuracy = result.check(max_loss=1, max_perplexity=3, min_greedy_accuracy=0.5).gates
    assert loss.interval == pytest.approx(ends_above_0(result.loss, result.interval_factor * result.loss.stderr))
    assert perplexity.interval == result.perplexity.interval
    assert accuracy.figure == result.accuracy
    meter, kept = LossMeter(), targets >= 0
    greedy = np.where(kept, logits.argmax(-1) == targets, 0.0)
    meter.update(sequence_losses(greedy, where=kept) if sequences else greedy[kept])
    share, n = meter.loss, meter.count
    assert share == pytest.approx(result.accuracy)
    if sequences:
        t = meter.interval_factor
        n = min(n, share * (1 - share) / meter.loss.stderr**2) * (stats.t.ppf(0.975, n - 1) / t) ** 2
    expected = stats.beta.ppf(0.025, share * n, n - share * n + 1), stats.beta.isf(0.025, share * n + 1, n - share * n)
    assert accuracy.interval == pytest.approx(expected)
    assert ("assumed independent" in accuracy.note) is not sequences


def test_min_greedy_accuracy_of_parts_and_of_sequences_in_several_files(tmp_path, rng):
    logits, ids = rng.normal(size=(60, 5)), np.repeat(np.arange(6), 10)
    targets = np.where(rng.random(60) < 0.6, logits.argmax(-1), 0)
    np.save(tmp_path / "ids.npy", ids)
    for i, part in enumerate(np.split(np.arange(60), [25])):
        np.savez(tmp_path / f"{i}.npz", logits=logits[part], targets=targets[part])
    blocks = [(logits[part], targets[part], None, ids[part]) for part in np.split(np.arange(60), [10, 25, 47])]
    whole = evaluate([(logits, targets, None, ids)]).check(min_greedy_accuracy=0.5)
    state = tmp_path / "state"
    parts = blocks[0], (logits[10:], targets[10:], None, ids[10:])
    result = [evaluate(blocks), sum(evaluate([block]) for block in parts)]
    paths = [tmp_path / f"{i}.npz" for i in range(2)]
    source = open_scores(paths, segment_ids=tmp_path / "ids.npy")
    result += [evaluate(source, state=state) for _ in range(2)]
    assert all(one.check(min_greedy_accuracy=0.5) == whole for one in result)


def test_min_greedy_accuracy_of_responses_is_of_tokens_where_it_is_known(tmp_path):
    path = clients.save(tmp_path / "r.jsonl", *clients.COMPLETIONS[:3])
    result = evaluate(path)
    verdict = only(result.check(min_greedy_accuracy=0.99))
    assert verdict.figure == result.accuracy
    assert verdict.interval[0] < result.accuracy <= verdict.interval[1]


# -- responses and samples ---------------------------------------------------------------------------------------------


def test_max_kl_of_responses_can_fail_and_never_holds(tmp_path):
    """A bound from the listed classes is below the divergence: holding by it would let any model pass."""
    base = clients.save(tmp_path / "base.jsonl", *clients.COMPLETIONS[:3])
    other = less_likely(base)
    with pytest.warns(UserWarning, match="^same: identical to base: the same file$"):
        result = compare_files(base, {"same": base, "other": other})
    for verdict in result["same"].check(max_kl=100, max_kl_quantile={0.9: 100}).gates:
        assert (verdict.figure, verdict.verdict, verdict.n_more) == (pytest.approx(0, abs=1e-9), "cannot tell", None)
        assert "a lower bound on the divergence: it can fail a gate, but cannot hold one" in verdict.note
    assert only(result["same"].check(max_perplexity_ratio=1.01)).note == (
        "this value cannot be trusted: the base is compared with itself; identical to the base at every token"
    )
    assert only(result["other"].check(max_kl=1e-9)).verdict == "fails"


def test_min_same_top_of_responses_is_of_tokens_whose_top_class_is_known(tmp_path, rng):
    """Without lists, only the rank of a token that is the likeliest one shows the top class."""
    documents = Documents(rng, lengths=(20, 30, 25))
    for ids, rows in zip(documents.ids, documents.base, strict=True):
        ids[1::2] = rows.argmax(-1)[::2]
    paths = [clients.save_lines(tmp_path / f"{m}.jsonl", *documents.responses(m, 0)) for m in ("base", "other")]
    result = compare_files(paths[0], {"other": paths[1]})["other"]
    assert 0 < result.n_top_known < result.count
    verdict = only(result.check(min_same_top=0.5))
    assert verdict.figure == result.same_top == result.is_same_top[result.is_top_known].mean()
    assert verdict.interval[0] < verdict.figure < verdict.interval[1]


def test_gates_of_samples_are_refused(tmp_path):
    paths = [clients.save(tmp_path / f"{run}.jsonl", f"{run}/mc.jsonl") for run in ("base", "noise")]
    result = compare_samples(paths[0], {"noise": paths[1]})
    with pytest.raises(ValueError, match=r"^max_kl does not apply to samples of lm-evaluation-harness"):
        result.check(max_kl=1)
    with pytest.raises(ValueError, match=r"^a gate does not apply to samples of lm-evaluation-harness; margin tests"):
        result.check()


# -- numbers that a warning calls wrong --------------------------------------------------------------------------------


def assert_void(result, words, **limits):
    """Gates neither hold nor fail, whatever their limits are, and give the reason."""
    for gate, (strict, generous) in limits.items():
        for limit in strict, generous:
            one = only(result.check(**{gate: limit}))
            assert (one.verdict, one.n_more) == ("cannot tell", None), gate
            assert one.note.startswith("this value cannot be trusted: "), gate
            assert words in one.note, gate


OF_LOSSES = {"max_perplexity": (1.01, 1e9), "max_loss": (1e-3, 99), "min_greedy_accuracy": (0.999, 1e-9)}


def favoring(classes, rng):
    """Logits that favor these classes."""
    return rng.normal(size=(*classes.shape, 50)) + 6 * (classes[..., None] == np.arange(50))


@pytest.mark.parametrize("shift", [None, True])
def test_gates_on_targets_that_seem_to_need_another_shift_are_inconclusive(shift, rng):
    ids = rng.integers(50, size=400)
    logits = favoring(ids if shift else np.roll(ids, -1), rng)
    with pytest.warns(ShiftWarning):
        result = evaluate([(logits, ids)], shift=shift)
    assert_void(result, "the targets fit far better", **OF_LOSSES)
    assert evaluate([(logits, ids)], shift=not shift).check(max_loss=1).verdict == "holds"


def test_gates_of_compare_on_a_missing_shift_are_inconclusive_where_targets_count(tmp_path, rng):
    ids = rng.integers(50, size=(4, 100))
    logits = favoring(np.roll(ids, -1, axis=1), rng)
    np.savez(tmp_path / "base.npz", logits=logits, targets=ids)
    np.save(tmp_path / "other.npy", logits + rng.normal(size=logits.shape, scale=0.01))
    with pytest.warns(ShiftWarning):
        result = compare_files(tmp_path / "base.npz", tmp_path / "other.npy")
    assert_void(result, "the targets fit far better one row earlier", max_perplexity_ratio=(1e-9, 100))
    assert result.check(max_kl=0.01).verdict == "holds"  # a divergence needs no targets
    right = compare_files(tmp_path / "base.npz", tmp_path / "other.npy", shift=True)
    assert right.check(max_perplexity_ratio=1.1).verdict == "holds"


def test_gates_on_hidden_states_without_the_final_norm_are_inconclusive(tmp_path, rng):
    states = rng.normal(size=(200, 16)) * rng.lognormal(sigma=1, size=(200, 1))
    paths = [tmp_path / name for name in ("states.npz", "other.npz", "head.npy")]
    np.savez(paths[0], hidden=states, targets=rng.integers(9, size=200))
    np.savez(paths[1], hidden=states * rng.normal(1, 0.001, size=states.shape))
    np.save(paths[2], rng.normal(size=(9, 16)))
    states, other = (open_hidden_states(path, paths[2]) for path in paths[:2])
    with pytest.warns(NormWarning):
        result = evaluate(states, shift=False)
    assert_void(result, "the model's final norm", **OF_LOSSES)
    with pytest.warns(NormWarning):
        result = compare_files(states, other, shift=False)
    assert_void(result, "the model's final norm", max_kl=(1e-12, 9), min_same_top=(1, 0), max_perplexity_ratio=(0.1, 9))


def test_gates_on_two_models_that_are_taken_for_one_text_are_inconclusive(tmp_path, rng):
    targets = rng.integers(50, size=80)
    paths = [tmp_path / f"{i}.npz" for i in range(2)]
    for path, logits in zip(paths, (favoring(targets, rng), rng.normal(size=(80, 50))), strict=True):
        np.savez(path, logits=logits, targets=targets)
    with pytest.warns(UserWarning, match="two files have the same targets"):
        result = evaluate(paths)
    assert_void(result, "two files have the same targets", **OF_LOSSES)


def test_gates_on_padding_that_is_scored_are_inconclusive(tmp_path):
    ids = np.array([[5, 6, 7, 8, 0, 0, 0, 0]] * 4)  # 0 is <|endoftext|>
    np.savez(tmp_path / "a.npz", logits=np.zeros((4, 8, 512), np.float16), input_ids=ids)
    with pytest.warns(UserWarning, match="as padding does"):
        result = evaluate(open_scores(tmp_path / "a.npz", tokenizer=TESTS / "data" / "model"), shift=True)
    assert_void(result, "as padding does", **OF_LOSSES)


def test_gates_on_log_probabilities_that_are_all_0_are_inconclusive():
    log_probs = np.tile([0.0, -np.inf], (30, 1))
    with pytest.warns(UserWarning, match="a probability of exactly 1"):
        result = evaluate(blocks([(log_probs, np.zeros(30, int))], kind="log_probs"))
    assert_void(result, "say nothing about the model", **OF_LOSSES)


@pytest.mark.filterwarnings("ignore:.*identical to base")
def test_gates_on_losses_without_those_of_sentinels_are_inconclusive(tmp_path):
    """-9999.0 stands for minus infinity: a loss without it is too small by an unknown amount."""
    paths = [clients.save(tmp_path / f"{i}.json", "vllm/rendered_sentinel_prompt_logprobs.json") for i in range(2)]
    words = "it leaves out 1 token with a sentinel in place of minus infinity"
    assert_void(compare_files(*paths), words, max_perplexity_ratio=(1e-9, 100))
    assert_void(evaluate(paths[0]), words, max_perplexity=(1.01, 1e9), max_loss=(1e-3, 99))


# -- noise -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path, rng):
    """Files of a base, of a second run of it, and of two models."""
    base = rng.normal(size=(20, 30, 9), scale=2)
    noises = {"base": 0, "twin": 0.01, "q8": 0.05, "q4": 0.3}
    arrays = {name: base + rng.normal(size=base.shape) * scale for name, scale in noises.items()}
    for name, logits in arrays.items():
        np.savez(tmp_path / f"{name}.npz", logits=logits, **({"targets": base.argmax(-1)} if name == "base" else {}))
    return {name: tmp_path / f"{name}.npz" for name in arrays}


def test_noise_is_compared_as_a_candidate_alone_would_be(runs):
    others = {name: runs[name] for name in ("q8", "q4")}
    result = compare_files(runs["base"], others, noise=runs["twin"])
    assert [*result] == ["q8", "q4"]
    for name, one in compare_files(runs["base"], others).items():
        parity = {field: getattr(result[name], field) for field in PARITY}
        assert result[name] == dataclasses.replace(one, **parity)
    twin = compare_files(runs["base"], {"twin": runs["twin"]})["twin"]
    assert result.noise == twin
    figures = result.to_dict()
    assert figures["noise"]["mean_kl"] == twin.mean_kl
    for one in figures["candidates"]:
        comparison, multiples = result[one["name"]], one["noise_multiples"]
        assert multiples["mean_kl"] == comparison.mean_kl / twin.mean_kl
        assert multiples["kl_quantiles"]["0.99"] == comparison.kl_quantiles[0.99] / twin.kl_quantiles[0.99]
        assert multiples["same_top"] == (1 - comparison.same_top) / (1 - twin.same_top)
        assert multiples["log_perplexity_ratio"] == abs(comparison.log_perplexity_ratio / twin.log_perplexity_ratio)
    columns = result.columns()
    assert columns["name"].tolist() == ["q8", "q4", "noise"]
    assert columns["mean_kl_multiple"][:2].tolist() == [one.mean_kl / twin.mean_kl for one in result.values()]
    assert f"Compared with the noise of a second run of the base, {runs['twin']}" in result.summary()


def test_noise_is_read_as_the_base_is(runs, tmp_path):
    with np.load(runs["base"]) as base, np.load(runs["twin"]) as twin:
        np.savez(tmp_path / "b.npz", out=base["logits"], targets=base["targets"])
        np.savez(tmp_path / "t.npz", out=twin["logits"])
    base = open_scores(tmp_path / "b.npz", array="out", kind="logits")
    result = compare_files(base, {"q4": runs["q4"]}, noise=tmp_path / "t.npz", sizes={"q4": 7})
    assert result.noise == compare_files(runs["base"], {"q4": runs["q4"]}, noise=runs["twin"]).noise


def test_noise_of_an_equal_run_shows_none(runs):
    runs["twin"].write_bytes(runs["base"].read_bytes())
    result = compare_files(runs["base"], {"q4": runs["q4"]}, noise=runs["twin"])
    assert "which is equal to it and shows none" in result.summary()
    assert result.to_dict()["candidates"][0]["noise_multiples"]["mean_kl"] is None


def test_noise_names_gates_that_nobody_can_pass(runs):
    """llama.cpp's users asked for limits of the divergence below what another batch size makes of the same weights."""
    result = compare_files(runs["base"], {"q8": runs["q8"]}, noise=runs["twin"])
    noise = result.noise.mean_kl
    below, above = (only(result.check(max_kl=limit)) for limit in (noise / 2, noise * 2))
    assert below.note == f"below the noise: a second run of the base has {noise:.5g}, so no model can pass"
    assert (below.verdict, above.note) == ("fails", "")
    assert "so perhaps no model can pass" in only(result.check(max_kl=0.999 * noise)).note
    same_top = result.noise.same_top
    assert same_top < 1
    assert "below the noise" in only(result.check(min_same_top=(1 + same_top) / 2)).note


def test_noise_that_is_the_base_or_a_candidate_itself_is_refused(runs):
    """A file is no second run: it would show no noise, and 1 for each multiple."""
    link = runs["base"].with_name("link.npz")
    link.hardlink_to(runs["base"])
    for noise in runs["base"], link, [runs["base"]]:
        with pytest.raises(ValueError, match="npz: is the base itself; it must be a second run of it"):
            compare_files(runs["base"], {"q8": runs["q8"]}, noise=noise)
    with pytest.raises(ValueError, match=r"q8\.npz: is given twice; it must be given once"):
        compare_files(runs["base"], {"q8": runs["q8"]}, noise=runs["q8"])


def test_noise_beyond_the_limit_beside_a_verdict_that_holds_does_not_say_that_nobody_can_pass(runs):
    """The candidate has just passed."""
    result = compare_files(runs["base"], {"twin": runs["twin"]}, noise=runs["q4"])
    verdict = only(result.check(max_kl=0.001))
    assert (verdict.verdict, verdict.note) == (
        "holds", f"below the noise: a second run of the base has {result.noise.mean_kl:.5g}"
    )  # fmt: skip


def test_noise_beside_a_candidate_of_its_name_is_refused(runs):
    with pytest.raises(
        ValueError, match=r"^a name of others is 'noise'; it must be another name, because noise is given"
    ):
        compare_files(runs["base"], {"noise": runs["q4"]}, noise=runs["twin"])


def test_noise_of_responses(tmp_path):
    base = clients.save(tmp_path / "base.jsonl", *clients.COMPLETIONS[:3])
    other = less_likely(base)
    twin = tmp_path / "twin.jsonl"
    twin.write_bytes(other.read_bytes())
    result = compare_files(base, {"other": other}, noise=twin)
    assert [*result] == ["other"]
    assert result.to_dict()["candidates"][0]["noise_multiples"]["log_perplexity_ratio"] == 1
    assert "KLD is at least" in result.summary()
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["noise"]["part"] == result.noise.part
