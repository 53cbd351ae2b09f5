"""compare and ComparisonMeter with sequences: errors by hand and by an oracle, the same bits, edges, wrong input."""

import json
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from arrays import OnDevice, assert_same_bits, fails
from reference import statistic

from tokenloss import ComparisonMeter, LossMeter, compare, log_softmax, sequence_losses

INF, NAN = math.inf, math.nan
ERRORS = [
    "perplexity_stderr", "base_perplexity_stderr", "log_perplexity_ratio_stderr", "perplexity_ratio_stderr",
    "perplexity_difference_stderr", "mean_kl_stderr", "finite_mean_kl_stderr", "mean_delta_p_stderr",
    "rms_delta_p_stderr", "same_top_stderr",
]  # fmt: skip
COLUMNS = ["sequence", "count", "loss", "base_loss", "loss_difference", "kl", "delta_p", "same_top",
           "first_difference", "first_flip"]  # fmt: skip
ARRAYS = ["nll", "base_nll", "kl", "delta_p", "is_same_top", "kept", "base_top_p", "base_margin", "margin", "rounding",
          "is_identical"]  # fmt: skip
each_definition = pytest.mark.parametrize("definitions", ["exact", "llama.cpp"])


def models(rng, n=60, classes=12):
    """Log-probabilities of a base, logits of a model near it, targets, and numbers of sequences that are alike."""
    ids = rng.integers(0, 7, n)
    difficulty = rng.standard_normal(7)[ids, None]
    base = rng.standard_normal((n, classes)) * (2 + difficulty)
    logits = base * (1 + 0.2 * difficulty) + 0.3 * rng.standard_normal((n, classes))
    return log_softmax(base).astype(np.float32), logits.astype(np.float32), rng.integers(0, classes, n), ids


def figures(comparison, *left_out):
    figures = {name: figure for name, figure in comparison.to_dict().items() if name not in left_out}
    if "by_confidence" in figures:
        rows = figures["by_confidence"]
        figures["by_confidence"] = [{name: row[name] for name in row if name not in left_out} for row in rows]
    return figures


def assert_same(actual, expected):
    """Compare every bit of two comparisons, but for what the order of the positions changes."""
    figures = [one.to_dict() | {"signature": one.signature.partition("|ids")[0]} for one in (actual, expected)]
    for one in figures:
        one["sequences"] = [{name: row[name] for name in COLUMNS[:-2]} for row in one.get("sequences", ())]
    assert repr(figures[0]) == repr(figures[1])
    assert (actual.sequences is None) == (expected.sequences is None)
    for name in COLUMNS[:-2] if actual.sequences else ():
        assert_same_bits(actual.sequences[name], expected.sequences[name], name)


def assert_same_but_for_errors(actual, expected):
    """Compare every bit of two comparisons, but for what depends on sequences."""
    left_out = [*ERRORS, "n_sequences", "is_clustered", "interval_factor", "kl_quantile_intervals", "sequences",
                "by_confidence", "signature", "detectable"]  # fmt: skip
    assert repr(figures(actual, *left_out)) == repr(figures(expected, *left_out))
    for name in ARRAYS:
        assert_same_bits(statistic(actual, name), statistic(expected, name), name)


def per_token(result):
    """By the name of an error, the quantity whose mean it is of, and the factor from one to the other."""
    kept = result.kept
    nll, base_nll, delta_p = result.nll[kept], result.base_nll[kept], result.delta_p[kept]
    difference = nll - base_nll
    return {
        "perplexity_stderr": (nll, result.perplexity),
        "base_perplexity_stderr": (base_nll, result.base_perplexity),
        "log_perplexity_ratio_stderr": (difference, 1.0),
        "perplexity_ratio_stderr": (difference, result.perplexity_ratio),
        "perplexity_difference_stderr": (result.perplexity * nll - result.base_perplexity * base_nll, 1.0),
        "mean_kl_stderr": (result.kl[kept], 1.0),
        "finite_mean_kl_stderr": (result.kl[kept], 1.0),
        "mean_delta_p_stderr": (delta_p, 1.0),
        "rms_delta_p_stderr": (delta_p**2, 0.5 / result.rms_delta_p),
        "same_top_stderr": (result.is_same_top[kept].astype(float), 1.0),
    }


def clustered(values, ids):
    """The clustered error of a mean, in fractions."""
    groups = {}
    for position, (value, number) in enumerate(zip(values.tolist(), ids.tolist(), strict=True)):
        groups.setdefault(number if number >= 0 else (position,), []).append(Fraction(value))
    n, mean = len(values), sum(map(Fraction, values.tolist())) / len(values)
    squares = sum((sum(group) - mean * len(group)) ** 2 for group in groups.values())
    return math.sqrt(squares * len(groups) / (len(groups) - 1)) / n


def assert_errors_of_the_oracle(result, ids):
    ids = np.broadcast_to(ids, result.kept.shape)[result.kept]
    for name, (values, factor) in per_token(result).items():
        expected = factor * clustered(values, ids)
        assert statistic(result, name) == pytest.approx(expected, rel=1e-13, abs=1e-18), name


# figures


def test_segment_ids_by_hand():
    base = np.log([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.25, 0.75]])
    logits = np.log([[0.25, 0.75], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    result = compare(base, logits, [0, 0, 0, 0], segment_ids=[5, 5, 5, 2])
    # differences of loss, in ln 2: 1, 0, 0 of sequence 5, and -1 of sequence 2; their mean is 0
    assert (result.count, result.n_sequences, result.is_clustered) == (4, 2, True)
    assert result.log_perplexity_ratio == pytest.approx(0, abs=1e-16)
    assert result.log_perplexity_ratio.stderr == pytest.approx(math.sqrt(2 * 2) / 4 * math.log(2))
    # losses 2, 1, 1 and 1: less their mean 5/4, sums of 1/4 and -1/4
    assert result.perplexity.stderr == pytest.approx(result.perplexity * math.sqrt(2 * 2 / 16) / 4 * math.log(2))
    assert list(result.sequences) == COLUMNS
    expected = [[2, 5], [1, 3], [1, 4 / 3], [2, 1], [-1, 1 / 3]]
    for name, column, unit in zip(COLUMNS, expected, [1, 1] + 3 * [math.log(2)], strict=False):
        assert result.sequences[name].tolist() == pytest.approx([number * unit for number in column]), name
    assert result.sequences["delta_p"].tolist() == pytest.approx([0.25, -0.25 / 3])
    assert result.sequences["same_top"].tolist() == pytest.approx([0, 2 / 3])


@each_definition
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loose", [False, True])
def test_segment_ids_give_errors_of_the_oracle(definitions, masked, loose, rng):
    base, logits, targets, ids = models(rng)
    if masked:
        targets[rng.random(60) < 0.2] = -100
    where = rng.random(60) > 0.2 if masked else None
    if loose:
        ids[rng.random(60) < 0.3] = -rng.integers(1, 9)
    options = {"where": where, "definitions": definitions}
    result = compare(base, logits, targets, segment_ids=ids, **options)
    assert (result.n_sequences, result.is_clustered) == (len({*ids[result.kept & (ids >= 0)].tolist()}), True)
    assert_errors_of_the_oracle(result, ids)
    assert_same_but_for_errors(result, compare(base, logits, targets, **options))


def test_sequences_hold_the_means_of_each(rng):
    base, logits, targets, ids = models(rng)
    ids[7] = 2**40
    where = ids != 4
    result = compare(base, logits, targets, segment_ids=ids, where=where)
    assert result.sequences["sequence"].tolist() == sorted(set(ids[where].tolist()))
    assert all(result.sequences[name].dtype == np.int64 for name in COLUMNS[:2])
    columns = {
        "loss": result.nll, "base_loss": result.base_nll, "loss_difference": result.nll - result.base_nll,
        "kl": result.kl, "delta_p": result.delta_p, "same_top": result.is_same_top,
    }  # fmt: skip
    for row, number in enumerate(result.sequences["sequence"]):
        of = ids == number
        assert result.sequences["count"][row] == of.sum()
        for name, values in columns.items():
            assert result.sequences[name][row] == math.fsum(values[of].tolist()) / of.sum(), name


@pytest.mark.usefixtures("any_loss_is_taken")
def test_errors_agree_with_loss_meter(rng):
    base, logits, targets, ids = models(rng)
    result = compare(base, logits, targets, segment_ids=ids)
    for losses, stderr, perplexity in (
        (result.nll, result.perplexity.stderr, result.perplexity),
        (result.base_nll, result.base_perplexity.stderr, result.base_perplexity),
        (result.nll - result.base_nll, result.log_perplexity_ratio.stderr, 1.0),
        (result.kl, result.mean_kl.stderr, 1.0),
    ):
        meter = LossMeter()
        meter.update(sequence_losses(losses, segment_ids=ids))
        assert stderr == perplexity * meter.loss.stderr


def test_errors_agree_with_statsmodels(rng):
    regression = pytest.importorskip("statsmodels.regression.linear_model")
    base, logits, targets, ids = models(rng, 500)
    result = compare(base, logits, targets, segment_ids=ids)
    for name, (values, factor) in per_token(result).items():
        fit = regression.OLS(values, np.ones(500)).fit(cov_type="cluster", cov_kwds={"groups": ids})
        assert statistic(result, name) == pytest.approx(factor * fit.bse[0], rel=1e-12), name


# the same bits


def test_blocks_and_orders_give_the_same_bits(rng):
    base, logits, targets, ids = models(rng)
    ids[::9] = -1
    targets[::11] = -100
    expected = compare(base, logits, targets, segment_ids=ids)
    for order in (np.arange(60), rng.permutation(60), np.argsort(ids)):
        for step in (1, 7, 60):
            meter = ComparisonMeter()
            for start in range(0, 60, step):
                part = order[start : start + step]
                meter.update(base[part], logits[part], targets[part], segment_ids=ids[part])
            assert_same(meter.result(), expected)


def test_shapes_and_axes_give_the_same_bits(rng):
    base, logits, targets, _ = models(rng)
    expected = compare(base, logits, targets, segment_ids=np.repeat(np.arange(4), 15))
    folded = (base.reshape(4, 15, -1), logits.reshape(4, 15, -1), targets.reshape(4, 15))
    for numbers in (np.arange(4)[:, None], np.arange(4, dtype=np.uint8)[:, None], [[0], [1], [2], [3]]):
        actual = compare(*folded, segment_ids=numbers)
        assert actual.kl.shape == (4, 15)
        assert_same(actual, expected)
    assert_same(compare(*folded, cu_seqlens=[0, 15, 30, 45, 60]), expected)
    fronts = [np.moveaxis(array, -1, 0) for array in folded[:2]]
    assert_same(compare(*fronts, targets.reshape(4, 15), axis=0, cu_seqlens=np.arange(0, 61, 15)), expected)
    meter = ComparisonMeter()
    meter.update(*fronts, targets.reshape(4, 15), axis=0, segment_ids=np.arange(4)[:, None])
    assert_same(meter.result(), expected)


def test_cu_seqlens_with_empty_sequences(rng):
    base, logits, targets, _ = models(rng)
    result = compare(base, logits, targets, cu_seqlens=[0, 0, 20, 20, 60, 60])
    assert result.sequences["sequence"].tolist() == [1, 3]
    assert_same(result, compare(base, logits, targets, segment_ids=np.where(np.arange(60) < 20, 1, 3)))


def test_meter_keeps_numbers_that_change_later(rng):
    base, logits, targets, ids = models(rng)
    expected = compare(base, logits, targets, segment_ids=ids)
    meter = ComparisonMeter()
    meter.update(base, logits, targets, segment_ids=ids)
    ids[:] = 0
    assert_same(meter.result(), expected)


def test_updates_with_and_without_segment_ids(rng):
    base, logits, targets, ids = models(rng)
    ids[40:] = -1
    meter = ComparisonMeter()
    meter.update(base[:40], logits[:40], targets[:40], segment_ids=ids[:40])
    meter.update(base[40:], logits[40:], targets[40:])
    assert meter.result().n_sequences == 7
    assert_same(meter.result(), compare(base, logits, targets, segment_ids=ids))
    assert_errors_of_the_oracle(meter.result(), ids)
    meter = ComparisonMeter()
    meter.update(base[40:], logits[40:], targets[40:])
    meter.update(base[:40], logits[:40], targets[:40], segment_ids=ids[:40])
    assert_same(meter.result(), compare(base, logits, targets, segment_ids=ids))


# edges


def test_one_sequence_falls_back_to_tokens(rng):
    base, logits, targets, ids = models(rng)
    expected = compare(base, logits, targets)
    for options in ({"segment_ids": 3}, {"segment_ids": np.full(60, 3)}, {"cu_seqlens": [0, 60]}):
        result = compare(base, logits, targets, **options)
        assert (result.n_sequences, result.is_clustered) == (1, False)
        left_out = ("n_sequences", "sequences", "signature")
        assert repr(figures(result, *left_out)) == repr(figures(expected, *left_out))
    # the other sequences are masked
    result = compare(base, logits, targets, segment_ids=ids, where=ids == 2)
    assert (result.n_sequences, result.is_clustered) == (1, False)
    assert result.mean_kl.stderr == compare(base, logits, targets, where=ids == 2).mean_kl.stderr
    # with a token beside it, there are two groups
    result = compare(base, logits, targets, segment_ids=np.where(np.arange(60) < 59, 3, -1))
    assert (result.n_sequences, result.is_clustered) == (1, True)


@each_definition
def test_positions_that_are_sequences_of_their_own_are_independent(definitions, rng):
    base, logits, targets, _ = models(rng)
    expected = compare(base, logits, targets, definitions=definitions)
    for ids in (np.arange(60), rng.permutation(60), np.where(np.arange(60) % 2, np.arange(60), -1)):
        result = compare(base, logits, targets, segment_ids=ids, definitions=definitions)
        assert result.is_clustered
        for name in ERRORS:
            assert statistic(result, name) == pytest.approx(statistic(expected, name), rel=1e-15), name


def test_segment_ids_that_are_all_negative(rng):
    base, logits, targets, _ = models(rng)
    result, expected = compare(base, logits, targets, segment_ids=-1), compare(base, logits, targets)
    assert (result.n_sequences, result.is_clustered, expected.sequences) == (0, False, None)
    assert [column.size for column in result.sequences.values()] == [0] * len(COLUMNS)
    assert [row["n_sequences"] for row in result.to_dict()["by_confidence"]] == [0] * len(result.by_confidence["group"])
    assert repr(figures(result, "n_sequences")) == repr(figures(expected, "n_sequences"))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (3, 3)])
def test_segment_ids_without_included_positions(shape):
    scores, targets = np.zeros(shape), np.full(shape[:-1], -100)
    result = compare(scores, scores, targets, segment_ids=np.zeros(shape[:-1], int))
    assert (result.count, result.n_sequences, result.is_clustered) == (0, 0, False)
    assert repr(result.to_dict()) == repr(compare(scores, scores, targets).to_dict())


def test_segment_ids_of_a_single_row():
    result = compare(np.log([0.5, 0.5]), np.log([0.25, 0.75]), 1, segment_ids=8)
    assert (result.n_sequences, result.is_clustered, result.sequences["sequence"].tolist()) == (1, False, [8])
    assert math.isnan(result.mean_kl.stderr)


@pytest.mark.parametrize("value", [NAN, INF])
def test_losses_that_are_nan_or_inf(value):
    base = np.log([[0.5, 0.5], [0.25, 0.75], [0.25, 0.75]])
    logits = base.copy()
    logits[0] = (0, value) if math.isnan(value) else (-INF, 0)
    result = compare(base, logits, [0, 0, 0], segment_ids=[4, 1, 1])
    assert result.is_clustered
    for name in ERRORS:
        of_base = name in ("base_perplexity_stderr", "same_top_stderr", "finite_mean_kl_stderr")
        of_base |= name.endswith("delta_p_stderr") and not math.isnan(value)
        assert math.isfinite(statistic(result, name)) == of_base, name
    for name in ("loss", "loss_difference", "kl"):
        assert np.isfinite(result.sequences[name]).tolist() == [True, False], name
    assert np.isfinite(result.sequences["base_loss"]).all()
    both = compare(logits, logits, [0, 0, 0], segment_ids=[4, 1, 1])
    assert np.isnan(both.sequences["loss_difference"]).tolist() == [False, True]


def test_comparison_of_sequences_is_picklable_and_json(rng):
    base, logits, targets, ids = models(rng)
    result = compare(base, logits, targets, segment_ids=ids)
    assert_same(pickle.loads(pickle.dumps(result)), result)  # noqa: S301 -- pickled in this line
    written = result.to_dict()
    assert repr(json.loads(json.dumps(written))) == repr(written)  # nan is not nan
    assert len(written["sequences"]) == 7
    assert all(list(row) == COLUMNS for row in written["sequences"])
    assert "sequences" not in compare(base, logits, targets).to_dict()


# errors


def test_wrong_sequences():
    logits, targets = np.ones((2, 3)), [0, 1]
    meter = ComparisonMeter()
    meter.update(logits, logits, targets, segment_ids=[0, 1])
    before = meter.result()
    for error, words, options in [
        (ValueError, ("segment_ids", "(3,)", "(2,)"), {"segment_ids": [0, 1, 2]}),
        (TypeError, ("segment_ids", "float64", "integer"), {"segment_ids": [0.0, 1.0]}),
        (TypeError, ("segment_ids", "bool", "integer"), {"segment_ids": [True, False]}),
        (ValueError, ("segment_ids", 2**63), {"segment_ids": np.array([0, 2**63], np.uint64)}),
        (TypeError, ("segment_ids", "device", "CPU"), {"segment_ids": OnDevice(2, 0)}),
        (ValueError, ("cu_seqlens[-1]", 3, 2), {"cu_seqlens": [0, 3]}),
        (ValueError, ("cu_seqlens[0]", 1), {"cu_seqlens": [1, 2]}),
        (ValueError, ("cu_seqlens[2]", 0, 1), {"cu_seqlens": [0, 1, 0, 2]}),
        (ValueError, ("segment_ids", "cu_seqlens", "together"), {"segment_ids": [0, 1], "cu_seqlens": [0, 2]}),
    ]:
        with fails(error, *words):
            compare(logits, logits, targets, **options)
        if "cu_seqlens" not in options:
            with fails(error, *words):
                meter.update(logits, logits, targets, **options)
    with fails(IndexError, "targets[1]", 3):
        meter.update(logits, logits, [0, 3], segment_ids=[0, 1])
    assert_same(meter.result(), before)
