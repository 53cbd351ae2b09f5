"""Power and tiers: detectable differences, texts needed, Holm's correction, and candidates that can be told apart."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from tokenloss import ComparisonMeter, compare, compare_samples, mismatch
from tokenloss._comparison import tiers
from tokenloss._core.estimate import Estimate
from tokenloss._statistics.power import detectable, holm, needed_for
from tokenloss._statistics.ratio import ExactRatio


def estimate_of(values):
    """The mean of independent values, with its errors."""
    n, mean, stderr = len(values), np.mean(values), np.std(values, ddof=1) / math.sqrt(len(values))
    radius = stats.t.ppf(0.975, n - 1) * stderr
    return Estimate(mean, (stderr, (mean - radius, mean + radius), "sequences"))


# statistics


@pytest.mark.parametrize("n", [3, 4, 5, 10, 30, 100, 1000, 10_000])
def test_detectable_differences_as_scipy_and_statsmodels(n, rng):
    power = pytest.importorskip("statsmodels.stats.power").TTestPower()
    values = rng.normal(size=n)
    result, spread = detectable(estimate_of(values)), np.std(values, ddof=1)
    ratio, limit = result / spread * math.sqrt(n), stats.t.ppf(0.975, n - 1)
    assert stats.nct.sf(limit, n - 1, ratio) + stats.nct.cdf(-limit, n - 1, ratio) == pytest.approx(0.8, abs=1e-9)
    assert result == pytest.approx(power.solve_power(nobs=n, alpha=0.05, power=0.8) * spread, rel=3e-5)
    for difference in (2 * result, result, result / 3):
        needed = needed_for(estimate_of(values), n, difference)
        assert power.power(difference / spread, needed, 0.05) >= 0.8 - 1e-6
        assert needed <= 3 or power.power(difference / spread, needed - 1, 0.05) < 0.8 + 1e-6


def test_many_texts_need_2_8_standard_errors():
    half = stats.norm.ppf(0.975)
    assert detectable(Estimate(0.0, (1.0, (-half, half), ""))) == pytest.approx(half + stats.norm.ppf(0.8), abs=1e-6)
    for stderr in (math.nan, 0.0):
        assert math.isnan(detectable(Estimate(1.0, (stderr, (1.0, 1.0), ""))))
        assert needed_for(Estimate(1.0, (stderr, (1.0, 1.0), "")), 10, 0.1) is None
    assert needed_for(Estimate(1.0, (1.0, (-1.0, 3.0), "")), 10, 1e-9) is None


def test_two_texts_by_a_hundred_thousand_samples(rng):
    result = detectable(Estimate(0.0, (1.0, (-stats.t.ppf(0.975, 1), stats.t.ppf(0.975, 1)), "")))
    pairs = rng.normal(result / math.sqrt(2), size=(100_000, 2))  # the mean has an error of sqrt(1 / 2)
    pairs = (pairs - result / math.sqrt(2)) + result / math.sqrt(2)
    t = pairs.mean(1) / (pairs.std(1, ddof=1) / math.sqrt(2))
    assert np.mean(abs(t) > stats.t.ppf(0.975, 1)) == pytest.approx(0.8, abs=0.006)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 40])
def test_holm_as_statsmodels(n, rng):
    p_values = (rng.random(n) ** 3).round(2).tolist()
    expected = pytest.importorskip("statsmodels.stats.multitest").multipletests(p_values or [1.0], method="holm")[1]
    assert holm(p_values) == pytest.approx(expected[:n].tolist())


# tiers


def quantity(values, name="loss", ids=None):
    """A quantity of tokens."""
    values = np.asarray(values, float)
    return tiers.Quantity(("", name, ""), None, values.size, values, np.ones(values.shape, bool), ids)


def test_tiers_are_all_largest_sets_of_candidates_that_do_not_differ(rng):
    sizes = set()
    for _ in range(30):
        scale, shared = rng.choice([0.1, 0.5, 1.0]), rng.normal(size=40)
        values = {name: shared + scale * rng.normal(size=40) + rng.choice([0, 0.3, 0.6]) for name in "abcdef"}
        result = tiers._tiers({name: quantity(one) for name, one in values.items()})
        pairs = [*itertools.combinations(values, 2)]
        p_values = [stats.ttest_rel(values[a], values[b]).pvalue for a, b in pairs]
        differ = {pair for pair, p in zip(pairs, holm(p_values), strict=True) if p < 0.05}
        subsets = [set(one) for size in range(1, 7) for one in itertools.combinations(values, size)]
        cliques = [one for one in subsets if not any({a, b} <= one for a, b in differ)]
        largest = [one for one in cliques if not any(one < other for other in cliques)]
        assert sorted(map(sorted, result)) == sorted(map(sorted, largest))
        order = sorted(values, key=lambda name: values[name].mean())
        assert result == sorted(
            (sorted(one, key=order.index) for one in largest), key=lambda one: [*map(order.index, one)]
        )
        sizes.add(len(result))
    assert len(sizes) > 2


def test_more_is_better_for_accuracies_and_less_for_losses():
    values = {"low": np.zeros(50), "high": 1.0 - (np.arange(50) == 3)}
    for name, expected in (("acc", [["high"], ["low"]]), ("loss", [["low"], ["high"]])):
        assert tiers._tiers({key: quantity(one, name) for key, one in values.items()}) == expected
    assert tiers._tiers({"a": quantity([1.0, 2.0]), "b": quantity([1.0])}) == []
    same = {"a": quantity([1.0, np.inf]), "b": quantity([1.0, 2.0]), "c": quantity([1.0, 2.0])}
    assert tiers._tiers(same)[0][:2] == ["b", "c"]


def models_of(rng, scales, shape=(30, 20, 12)):
    """A comparison of candidates with a base, in texts that differ."""
    base = (2 + rng.normal(size=(shape[0], 1, 1))) * rng.normal(size=shape)
    others = {name: base + scale * rng.normal(size=shape) for name, scale in scales.items()}
    meter = ComparisonMeter()
    meter.update(base, others, rng.integers(0, shape[-1], shape[:2]), segment_ids=np.arange(shape[0])[:, None])
    return meter.results()


@pytest.mark.slow
def test_five_equal_models_form_one_tier():
    rng, counts = np.random.default_rng(11), {"loss": 0, "kl": 0}
    for _ in range(200):
        for row in models_of(rng, dict.fromkeys("abcde", 0.2)).tiers():
            counts[row["metric"]] += len(row["tiers"]) == 1
    assert min(counts.values()) >= 200 * 0.95 - 2 * math.sqrt(200 * 0.95 * 0.05)


@pytest.mark.slow
def test_equal_models_of_means_form_one_tier(rng):
    """The same of 1,000 samples of texts, without scores."""
    ones = 0
    for _ in range(1000):
        values = rng.normal(size=(1, 20)) + 0.3 * rng.normal(size=(5, 20))
        ones += len(tiers._tiers({str(i): quantity(one) for i, one in enumerate(values)})) == 1
    assert ones >= 950 - 2 * math.sqrt(1000 * 0.95 * 0.05)


def test_scores(rng):
    result = models_of(rng, {"q4": 0.8, "q8": 0.02, "q8b": 0.02})
    rows = {row["metric"]: row["tiers"] for row in result.tiers()}
    assert [sorted(one) for one in rows["kl"]] == [["q8", "q8b"], ["q4"]]
    table = result.power(0.01)
    one = result["q4"]
    change = (one.nll - one.base_nll).reshape(30, 20).mean(1)
    assert table["detectable"][0] == pytest.approx(detectable(estimate_of(change)), rel=1e-9)
    assert table["detectable"][0] == one.detectable == result.to_dict()["candidates"][-1]["detectable"]
    assert table["needed"].tolist() == [needed_for(estimate_of((m.nll - m.base_nll).reshape(30, 20).mean(1)), 30, 0.01)
                                        for m in result.values()]  # fmt: skip
    assert "needed" not in result.columns()
    result.detect = 0.01
    assert sorted(result.columns()["needed"]) == sorted(table["needed"])
    assert "needed for 0.01" in result.summary()
    assert [row["needed"] for row in result.to_dict()["detect"]["needed"]] == table["needed"].tolist()
    for bad in (0, -1, math.nan, "x"):
        with pytest.raises((TypeError, ValueError), match="difference"):
            result.power(bad)


def test_blocks_give_the_same_tiers(rng):
    base, targets = 2 * rng.normal(size=(600, 8)), rng.integers(0, 8, 600)
    others = {
        name: base + scale * rng.normal(size=base.shape) for name, scale in zip("abc", (0.1, 0.2, 0.9), strict=True)
    }
    results = []
    for size in (600, 77):
        meter = ComparisonMeter()
        for start in range(0, 600, size):
            part = slice(start, start + size)
            blocks = {name: one[part] for name, one in others.items()}
            meter.update(base[part], blocks, targets[part], segment_ids=np.arange(600)[part] // 20)
        results.append(meter.results())
    assert results[0].tiers() == results[1].tiers()
    assert len(results[0].tiers()) == 2
    assert repr(results[0].power(0.1)) == repr(results[1].power(0.1))
    without = ComparisonMeter()
    without.update(base, others)
    assert [row["metric"] for row in without.results().tiers()] == ["kl"]
    assert without.results().power() == {}


def test_samples_by_cluster(tmp_path, rng):
    paths = {name: tmp_path / f"{name}.json" for name in ("base", "a", "b", "c")}
    right = rng.random(300) < 0.6
    values = {"base": right, "a": right & (rng.random(300) < 0.9), "b": right & (rng.random(300) < 0.9)}
    values["c"] = right & (rng.random(300) < 0.4)
    for name, path in paths.items():
        lines = [{"doc_id": i, "doc": {"group": i // 5, "id": i}, "filtered_resps": [], "acc": float(one)}
                 for i, one in enumerate(values[name])]  # fmt: skip
        path.write_text(json.dumps(lines))
    result = compare_samples(paths["base"], {name: paths[name] for name in "cab"}, cluster="group")
    assert [[sorted(one) for one in row["tiers"]] for row in result.tiers()] == [[["a", "b"], ["c"]]]
    change = (values["a"].astype(float) - values["base"]).reshape(60, 5).mean(1)
    metric = result["a"].metrics[0]
    assert metric.detectable == pytest.approx(detectable(estimate_of(change)), rel=1e-9)
    assert result.power(0.01)["needed"][1] == needed_for(estimate_of(change), 60, 0.01)
    a, c = (values[name].astype(float) for name in "ac")
    quantities = [next(tiers._quantities(result[name])) for name in "ac"]
    ratio = quantities[0].minus(quantities[1])
    expected = ExactRatio.of((a - c).reshape(60, 5).sum(1), np.full(60, 5.0))
    assert (ratio.ratio, ratio.stderr) == (expected.ratio, expected.stderr)


def test_a_single_comparison_says_what_it_could_detect(rng):
    base = rng.normal(size=(12, 10, 6))
    result = compare(base, base + 0.1, rng.integers(0, 6, (12, 10)), segment_ids=np.arange(12)[:, None])
    assert "Detectable" in result.summary()
    other = compare(base, base + 0.1 * rng.normal(size=base.shape), rng.integers(0, 6, (12, 10)))
    assert f"{other.detectable:.3g}" in other.summary()


def test_every_paired_difference_says_what_it_could_detect(tmp_path, rng):
    base = rng.normal(size=(12, 10, 6))
    meter = ComparisonMeter()
    others = {name: base + scale * rng.normal(size=base.shape) for name, scale in (("a", 0.1), ("b", 0.2))}
    meter.update(base, others, rng.integers(0, 6, (12, 10)), segment_ids=np.arange(12)[:, None])
    result = meter.results()
    table = result.difference("a", "b")
    for name, values in ("loss", [one.nll for one in result.values()]), ("kl", [one.kl for one in result.values()]):
        change = (values[1] - values[0]).reshape(12, 10).mean(1)
        row = table["figure"].tolist().index(name)
        assert table["detectable"][row] == pytest.approx(detectable(estimate_of(change)), rel=1e-9)
    logs = -1 - rng.exponential(size=(12, 10))
    of_tokens = mismatch(logs + 0.1 * rng.normal(size=logs.shape), logs)
    change = -of_tokens.difference.mean(1)
    words = of_tokens.summary().partition("Detectable")[2]
    assert f" {detectable(estimate_of(change)):.3g} " in words
    samples = [{"doc_id": i, "filtered_resps": [], "acc": float(rng.random() < 0.5)} for i in range(40)]
    for name in ("base.json", "other.json"):
        (tmp_path / name).write_text(json.dumps([one | {"acc": float(rng.random() < 0.5)} for one in samples]))
    (metric,) = compare_samples(tmp_path / "base.json", {"x": tmp_path / "other.json"})["x"].metrics
    assert f"{metric.detectable:.3g}" in metric.summary().partition("Detectable")[2]
