"""compare and ComparisonMeter: fewer classes, several candidates, intervals of quantiles, groups of positions."""

import json
import math
import pickle
import tracemalloc

import numpy as np
import pytest
import reference
from arrays import FLOATS, LAYOUTS, assert_same_bits, fails, scores_for
from places import CLIENTS

from tokenloss import ComparisonMeter, compare, log_softmax
from tokenloss._statistics.distributions import quantile_ranks

INF, NAN = math.inf, math.nan
ARRAYS = ["nll", "base_nll", "kl", "delta_p", "is_same_top", "kept", "base_top_p"]
INNER = [0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001]
# columns of groups, and the same figures of the group alone
OF_GROUP = {
    "count": "count", "loss_difference": "log_perplexity_ratio", "loss_difference_stderr":
    "log_perplexity_ratio_stderr", "kl": "mean_kl", "kl_stderr": "mean_kl_stderr", "delta_p": "mean_delta_p",
    "same_top": "same_top", "same_top_stderr": "same_top_stderr",
}  # fmt: skip
COLUMNS = [
    "group", "count", "loss", "base_loss", "loss_difference", "loss_difference_stderr", "kl", "kl_stderr", "delta_p",
    "same_top", "same_top_stderr",
]  # fmt: skip
WITH_SEQUENCES = [*COLUMNS[:2], "n_sequences", *COLUMNS[2:]]


def models(rng, shape, base_dtype=np.float32, dtype=np.float32, sizes=None, classes=None):
    """Log-probabilities of a base and logits of a model near it, perhaps with fewer classes, and targets that fit."""
    logits = scores_for("cross_entropy", rng, shape, np.float64)
    base, other = log_softmax(logits), logits + 0.3 * rng.standard_normal(shape)
    sizes = sizes or (shape[-1],) * 2
    targets = rng.integers(0, classes or min(sizes), shape[:-1])
    targets[rng.random(shape[:-1]) < 0.1] = -100
    return base[..., : sizes[0]].astype(base_dtype), other[..., : sizes[1]].astype(dtype), targets


def assert_same(actual, expected):
    """Compare every bit of two comparisons."""
    for name in ARRAYS:
        assert_same_bits(reference.statistic(actual, name), reference.statistic(expected, name), name)
    assert repr(actual.to_dict()) == repr(expected.to_dict())


def without_left_out(comparison):
    left_out = ("left_out", "base_left_out", "signature")
    return repr({name: figure for name, figure in comparison.to_dict().items() if name not in left_out})


# classes


@pytest.mark.parametrize("definitions", ["exact", "llama.cpp"])
@pytest.mark.parametrize("sizes", [(40, 37), (37, 40), (40, 40), (33, 40)])
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.name)
def test_classes_are_compared_alone_and_the_left_out_mass_is_told(dtype, sizes, definitions, rng):
    logits = scores_for("cross_entropy", rng, (4, 9, 40), np.float64)
    logits[..., 33:] -= 12  # llama.cpp's log-probabilities are used as given, though some are left out
    base, other = log_softmax(logits)[..., : sizes[0]].astype(np.float32), logits[..., : sizes[1]].astype(dtype)
    targets = rng.choice([*range(33), -100], (4, 9))
    options = {"definitions": definitions, "where": rng.random((4, 9)) > 0.2}
    result = compare(base, other, targets, classes=33, **options)
    first = [np.ascontiguousarray(array[..., :33]) for array in (base, other)]
    expected = compare(*first, targets, **options)
    for name in ARRAYS:
        assert_same_bits(reference.statistic(result, name), reference.statistic(expected, name), name)
    assert without_left_out(result) == without_left_out(expected)
    assert expected.left_out is expected.base_left_out is None
    shares = reference.compare(base, other, targets, classes=33, **options).left_out[:, result.kept].mean(axis=1)
    rel = 1e-13 if dtype == np.float64 else 1e-6
    assert result.base_left_out == pytest.approx(shares[0], rel=1e-6)
    assert result.left_out == pytest.approx(shares[1], rel=rel)
    assert (result.base_left_out == 0) == (sizes[0] == 33)


def test_classes_along_any_axis_and_in_any_layout(rng):
    base, other, targets = models(rng, (5, 6, 50), sizes=(50, 47), classes=40)
    expected = compare(base, other, targets, classes=40)
    for layout in LAYOUTS.values():
        assert_same(compare(layout(base), layout(other), layout(targets), classes=40), expected)
    for axis in (0, 1):
        given = [np.moveaxis(array, -1, axis) for array in (base, other)]
        assert_same(compare(*given, targets, classes=40, axis=axis), expected)


def test_classes_keep_the_digits_of_small_masses():
    base, logits = np.zeros((1, 5)), np.zeros((1, 6))
    base[0, 4], logits[0, 4:] = -60, -1000
    result = compare(base, logits, [0], classes=4)
    assert result.base_left_out == pytest.approx(math.exp(-60) / 4, rel=1e-12)
    assert result.left_out == 0
    logits[0, 4:] = 1000
    assert compare(base, logits, [0], classes=4).left_out == 1
    logits[0, 4] = NAN
    assert math.isnan(compare(base, logits, [0], classes=4).left_out)
    rows = [np.vstack([array[:, :5], base]) for array in (logits, base)]  # that of the nan is ignored
    assert compare(rows[1], rows[0], [-100, 0], classes=4).left_out < 1e-20


def test_classes_that_leave_nothing_out_change_nothing(rng):
    base, other, targets = models(rng, (9, 20))
    for classes in (20, 30):
        assert_same(compare(base, other, targets, classes=classes), compare(base, other, targets))
    one_larger = np.concatenate([other, np.full((9, 3), -INF, np.float32)], axis=1)
    result = compare(base, one_larger, targets, classes=20)
    assert (result.base_left_out, result.left_out) == (0, 0)
    assert without_left_out(result) == without_left_out(compare(base, other, targets))


@pytest.mark.thread_unsafe(reason="measures what all threads allocate")
def test_classes_are_views(rng):
    base, other, targets = models(rng, (30, 20_000), sizes=(20_000, 19_000), classes=18_000)
    tracemalloc.start()
    try:
        compare(base, other, targets, classes=18_000, workers=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < base.nbytes / 4


def test_classes_that_do_not_fit():
    base, logits = np.zeros((2, 6)), np.zeros((2, 5))
    several = {"a": base, "b": logits}
    for error, words, arguments, options in [
        (ValueError, ("logits has 5 classes", "base_logits 6", "classes=5"), (base, logits, [0, 1]), {}),
        (ValueError, ("logits has 6 classes", "base_logits 5", "classes=5"), (logits, base, [0, 1]), {}),
        (ValueError, ("classes", 6, "at most 5", "logits"), (base, logits, [0, 1]), {"classes": 6}),
        (ValueError, ("classes", 0), (base, logits, [0, 1]), {"classes": 0}),
        (TypeError, ("classes", "2.5"), (base, logits, [0, 1]), {"classes": 2.5}),
        (IndexError, ("targets[1]", 4, "[0, 4)"), (base, logits, [0, 4]), {"classes": 4}),
        (ValueError, ("logits", "(3, 5)", "(2, 6)"), (base, np.zeros((3, 5)), [0, 1]), {"classes": 4}),
        (ValueError, ("logits['b'] has 5 classes", "base_logits 6", "classes=5"), (base, several, [0, 1]), {}),
    ]:
        meter = ComparisonMeter(**options)
        with fails(error, *words):
            meter.update(*arguments)
        assert meter.results() == {}
        if arguments[1] is not several:
            with fails(error, *words):
                compare(*arguments, **options)


# kinds


def converted(logits, kind, dtype):
    """Logits as scores of another kind, whose sums are off by rounding, and the logits that these stand for."""
    scores = {"logits": logits, "log_probs": log_softmax(logits), "probs": 1.001 * np.exp(log_softmax(logits))}[kind]
    scores = scores.astype(dtype)
    return scores, np.log(scores.astype(np.float64)) if kind == "probs" else scores.astype(np.float64)


@pytest.mark.parametrize("classes", [None, 17])
@pytest.mark.parametrize("kind", ["logits", "log_probs", "probs"])
@pytest.mark.parametrize("base_kind", ["logits", "log_probs", "probs"])
def test_kind_and_base_kind_give_the_figures_of_their_logits(base_kind, kind, classes, rng):
    logits = scores_for("cross_entropy", rng, (6, 9, 20), np.float64)
    targets = rng.choice([*range(17), -100], (6, 9))
    for base_dtype, dtype in ((np.float64, np.float64), (np.float32, np.float64), (np.float64, np.float32)):
        base, base_logits = converted(logits, base_kind, base_dtype)
        other, other_logits = converted(logits + 0.3 * rng.standard_normal(logits.shape), kind, dtype)
        result = compare(base, other, targets, kind=kind, base_kind=base_kind, classes=classes)
        expected = compare(base_logits, other_logits, targets, classes=classes)
        for name in ARRAYS:
            np.testing.assert_allclose(getattr(result, name), getattr(expected, name), rtol=0, atol=1e-6, err_msg=name)
        if classes is not None:
            assert result.left_out == pytest.approx(expected.left_out, rel=1e-6)
            assert result.base_left_out == pytest.approx(expected.base_left_out, rel=1e-6)
        meter = ComparisonMeter(classes=classes)
        for part in (slice(0, 2), slice(2, 6)):
            logits_of = {"a": other[part], "b": other[part] * 1}
            meter.update(base[part], logits_of, targets[part], kind=kind, base_kind=base_kind)
        assert repr(meter.results()["b"].to_dict()) == repr(result.to_dict())


@pytest.fixture(scope="module")
def with_kind_and_classes():
    """A comparison of some classes of probabilities with logits, and how to make it."""
    rng = np.random.default_rng(3)
    base, other = rng.dirichlet(np.ones(300), 40), rng.standard_normal((40, 310)).astype(np.float32)
    options = {"targets": rng.integers(0, 290, 40), "base_kind": "probs", "classes": 290}
    return lambda **others: compare(base, other, **options, **others), compare(base, other, **options)


def test_kind_and_classes_have_the_same_bits_on_backends(with_kind_and_classes, backend):
    call, expected = with_kind_and_classes
    for workers in (1, 3):
        assert_same(call(workers=workers), expected)


def test_base_kind_is_kind_by_default(rng):
    probs = rng.dirichlet(np.ones(5), 8)
    other = rng.dirichlet(np.ones(5), 8)
    result = compare(probs, other, np.zeros(8, int), kind="probs")
    assert_same(result, compare(probs, other, np.zeros(8, int), kind="probs", base_kind="probs"))
    assert result.kl == pytest.approx((probs * np.log(probs / other)).sum(-1))


@pytest.mark.parametrize("kind", ["log_probs", "probs"])
def test_kind_is_checked_over_all_classes_though_some_are_left_out(kind, rng):
    probs = rng.dirichlet(np.ones(6), 8)
    targets = np.zeros(8, int)
    targets[2] = -100

    def given(probs):
        return probs if kind == "probs" else np.log(probs)

    result = compare(given(probs), given(probs), targets, kind=kind, classes=3)  # of which half is left out
    assert result.left_out == pytest.approx(probs[targets >= 0, 3:].sum(-1).mean())
    wrong = probs.copy()
    wrong[2] *= 3
    assert compare(given(probs), given(wrong), targets, kind=kind, classes=3).count == 7
    wrong[4, 5] += 0.2
    words = "adds up to 1.2;" if kind == "probs" else f"{math.log(1.2):.4g}"
    with fails(ValueError, "logits[4]", words):
        compare(given(probs), given(wrong), targets, kind=kind, classes=3)
    with fails(ValueError, "base_logits[4]", words):
        compare(given(wrong), given(probs), targets, kind=kind, classes=3)


def test_kinds_that_do_not_exist(rng):
    probs = rng.dirichlet(np.ones(6), 2)
    for options, words in (
        ({"kind": "prob"}, ("kind is 'prob'", "'probs'")),
        ({"base_kind": 1}, ("base_kind is 1", "'log_probs'")),
        ({"kind": np.array(["probs", "probs"])}, ("kind is array", "'probs'")),
    ):
        with fails(ValueError, *words):
            compare(probs, probs, [0, 1], **options)
        with fails(ValueError, *words):
            ComparisonMeter().update(probs, probs, [0, 1], **options)


# several candidates


def test_logits_of_several_candidates_are_compared_as_alone(rng):
    shape = (60, 30)
    base, _, targets = models(rng, shape, classes=28)
    base[7] = NAN
    others = {dtype.name: models(rng, shape, dtype=dtype)[1] for dtype in FLOATS}
    others["wider"] = models(rng, (60, 33))[1]
    others["base"] = base
    others["far"] = 1e5 * others["float32"]
    ids = np.where(np.arange(60) < 50, np.arange(60) // 9, -1)
    for definitions, classes in (("exact", 30), ("exact", 28), ("llama.cpp", 30)):
        options = {"definitions": definitions, "classes": classes}
        meter = ComparisonMeter(**options)
        for part in np.split(np.arange(60), [1, 2, 30, 31]):
            logits = {name: array[part] for name, array in reversed(others.items())}
            meter.update(base[part], logits, targets[part], segment_ids=ids[part])
        result = meter.results()
        assert result.keys() == others.keys()
        for name, array in others.items():
            assert_same(result[name], compare(base, array, targets, segment_ids=ids, **options))


def test_classes_that_leave_out_much_are_refused_with_definitions_llama_cpp(rng):
    base, other, targets = models(rng, (5, 40), classes=8)
    with fails(ValueError, "base_logits", "llama.cpp"):
        compare(base, other, targets, classes=8, definitions="llama.cpp")


def test_logits_of_several_candidates_share_the_arrays_of_the_base(rng):
    base, other, targets = models(rng, (100, 8), classes=7)
    for ids, classes, each, further in ((None, None, 67, 33), (np.arange(100), None, 75, 33), (None, 7, 83, 41)):
        meter = ComparisonMeter(classes=classes)
        for _ in range(3):
            logits = {name: other + rng.standard_normal(other.shape) for name in "abc"}
            meter.update(base, logits, targets, segment_ids=ids)
        arrays = {id(array): array for parts in meter._parts.values() for part in parts for array in part.values()}
        assert sum(array.nbytes for array in arrays.values()) == 300 * (each + 2 * further)
        results = meter.results()
        for name in ("base_nll", "base_top_p", "kept"):
            assert np.shares_memory(getattr(results["a"], name), getattr(results["c"], name))


def test_results_of_a_single_candidate(rng):
    base, other, targets = models(rng, (9, 8))
    assert ComparisonMeter().results() == {}
    assert ComparisonMeter().result().count == 0
    meter, named = ComparisonMeter(), ComparisonMeter()
    meter.update(base, other, targets)
    named.update(base, {"q4": other}, targets)
    assert list(meter.results()) == ["logits"]
    assert list(named.results()) == ["q4"]
    for actual in (meter.results()["logits"], meter.result(), named.result()):
        assert_same(actual, compare(base, other, targets))
    named.result().kl[:] = 7
    assert_same(named.result(), compare(base, other, targets))


def test_logits_with_other_names():
    logits = np.zeros((2, 3))
    meter = ComparisonMeter()
    with fails(ValueError, "logits", "mapping"):
        meter.update(logits, {}, [0, 1])
    meter.update(logits, {"a": logits, "b": logits}, [0, 1])
    for wrong in ({"a": logits}, {"a": logits, "c": logits}, logits, {}):
        with fails(ValueError, "logits", "same names", "['a', 'b']"):
            meter.update(logits, wrong, [0, 1])
    for error, words, value in (
        (TypeError, ("logits['b']", "int64"), logits.astype(int)),
        (ValueError, ("logits['b']", "(1, 3)", "(2, 3)"), logits[:1]),
    ):
        with fails(error, *words):
            meter.update(logits, {"a": logits, "b": value}, [0, 1])
    with fails(ValueError, 2, "results()"):
        meter.result()
    assert [actual.count for actual in meter.results().values()] == [2, 2]


def assert_without_losses(result, expected):
    """Assert that what needs targets is nan, and that all else has the bits of a comparison with targets."""
    assert not result.has_targets
    for name in ARRAYS:
        of_target = name in ("nll", "base_nll", "delta_p")
        assert_same_bits(getattr(result, name), np.full(result.kl.shape, NAN) if of_target else getattr(expected, name))
    figures, others = (
        json.loads(json.dumps(one.to_dict()), parse_constant=lambda _: None) for one in (result, expected)
    )
    known = {"count", "n_sequences", "is_clustered", "interval_factor", "definitions", "n_infinite", "n_nan",
             "base_left_out", "left_out", "n_identical", "tied_flips", "decisive_flips", "unknown_flips", "parity",
             "parity_reason",
             }  # fmt: skip
    for name, figure in figures.items():
        if "kl" in name or "top" in name or name in known:
            assert figure == others[name], name
        elif name in ("by_confidence", "sequences"):
            for row, other in zip(figure, others[name], strict=True):
                assert row == {key: None if "loss" in key or "delta" in key else other[key] for key in row}
        elif name not in ("has_targets", "signature"):
            assert {None} == set(figure.values() if isinstance(figure, dict) else [figure]), name


@pytest.mark.parametrize("definitions", ["exact", "llama.cpp"])
@pytest.mark.parametrize("classes", [30, 28])
def test_targets_none_gives_divergences_alone(definitions, classes, rng):
    base, other, _ = models(rng, (60, 30))
    targets, ids = rng.integers(0, 28, 60), np.where(np.arange(60) < 50, np.arange(60) // 9, -1)
    where = rng.random(60) < 0.8
    options = {"definitions": definitions, "classes": classes if definitions == "exact" else None}
    given = {"where": where, "segment_ids": ids}
    expected = compare(base, other, targets, **options, **given)
    assert_without_losses(compare(base, other, None, **options, **given), expected)
    meter = ComparisonMeter(**options)
    for part in np.split(np.arange(60), [1, 30]):
        meter.update(base[part], other[part], None, where=where[part], segment_ids=ids[part])
    assert_without_losses(meter.result(), expected)
    assert "perplexity" not in repr(meter.result())
    for one in (meter.update, lambda *pair: meter.merge(merged(ComparisonMeter(**options), [pair]))):
        with fails(ValueError, "targets must be given in all calls, or in none"):
            one(base, other, targets)
    assert meter.result().count == np.count_nonzero(where)


def test_infinite_divergences_are_counted_without_targets():
    base, other = np.zeros((4, 3)), np.zeros((4, 3))
    other[1, 2], other[2, 0], base[3, 1] = -INF, NAN, -INF
    result = compare(base, other, None)
    assert (result.n_infinite, result.n_nan) == (1, 1)


def merged(meter, blocks):
    """A meter, after blocks."""
    for block in blocks:
        meter.update(*block)
    return meter


@pytest.mark.parametrize("names", [["logits"], ["q4", "q8"]])
def test_merge_of_meters_is_one_meter(names, rng):
    base, other, targets = models(rng, (60, 30))
    ids = rng.integers(-1, 5, 60)  # sequences that are in several blocks
    whole, meters = ComparisonMeter(), [ComparisonMeter() for _ in range(3)]
    for meter, parts in zip(meters, ([0], [1, 2], [3]), strict=True):
        for number in parts:
            rows = slice(15 * number, 15 * number + 15)
            logits = {name: other[rows] + place for place, name in enumerate(names)}
            for one in (whole, meter):
                one.update(base[rows], logits, targets[rows], segment_ids=ids[rows])
    total = ComparisonMeter()
    assert total != whole
    for meter in meters:
        before = pickle.loads(pickle.dumps(meter))  # noqa: S301 -- of this test
        assert before == meter
        total.merge(before)
    assert total == whole
    assert meters[0] == pickle.loads(pickle.dumps(meters[0]))  # noqa: S301 -- of this test
    for name in names:
        assert_same(total.results()[name], whole.results()[name])
    total.merge(ComparisonMeter())
    assert total == whole != meters[0]
    assert total.__eq__(3) is NotImplemented


def test_meters_that_cannot_be_merged():
    logits = np.zeros((2, 3))
    meter = merged(ComparisonMeter(), [(logits, {"a": logits}, [0, 1])])
    for other, error, *words in (
        (3, TypeError, "other is 'int'", "a ComparisonMeter"),
        (ComparisonMeter(definitions="llama.cpp"), ValueError, "definitions of other is 'llama.cpp'", "'exact'"),
        (ComparisonMeter(classes=3), ValueError, "classes of other is 3", "None"),
        (merged(ComparisonMeter(), [(logits, logits, [0, 1])]), ValueError, "the names of other", "['a']"),
    ):
        with fails(error, *words):
            meter.merge(other)
    assert meter.result().count == 2


# intervals of quantiles


def intervals_of(result):
    """The intervals of quantiles by fraction."""
    return {at: one.interval for at, one in result.kl_quantiles.items() if 0 < at < 1}


def test_kl_quantile_intervals_have_exact_binomial_ranks():
    binom = pytest.importorskip("scipy.stats").binom
    for n in [*range(1, 120), 999, 1000, 12345, 10**6, 10**7]:
        for fraction in INNER:
            low, high = quantile_ranks(n, fraction)
            assert 0 <= low <= high <= n + 1
            below = binom.cdf([low - 1, low, high - 2, high - 1], n, fraction)
            assert below[0] <= 0.025 < below[1]
            assert below[2] < 0.975 <= below[3]


def test_kl_quantile_intervals_hold_divergences_of_these_ranks(rng):
    base, other, targets = models(rng, (400, 6))
    result = compare(base, other, targets)
    ordered = sorted(result.kl[result.kept].tolist())
    assert list(intervals_of(result)) == INNER
    for fraction, (low, high) in intervals_of(result).items():
        ranks = quantile_ranks(result.count, fraction)
        assert low == (ordered[ranks[0] - 1] if ranks[0] else 0)
        assert high == (ordered[ranks[1] - 1] if ranks[1] <= result.count else INF)
        assert low <= result.kl_quantiles[fraction] <= high
    assert result.kl_quantiles[0.999].interval[1] == INF
    assert result.kl_quantiles[0.001].interval[0] == 0
    written = result._facts()["kl_quantile_intervals"]
    assert written == {f"{fraction:g}": list(ends) for fraction, ends in intervals_of(result).items()}


def test_kl_quantile_intervals_are_wider_where_tokens_of_a_sequence_are_alike(rng):
    """Of copies of the same tokens, which tell as much as one, intervals are those of the fraction by Student's t."""
    base, other, targets = models(rng, (12, 1, 6))
    base, other, targets = (np.repeat(array, 50, axis=1) for array in (base, other, targets.clip(0)))
    result = compare(base, other, targets, segment_ids=np.arange(12)[:, None])
    ordered = sorted(result.kl[:, 0].tolist())
    for fraction in (0.9, 0.5, 0.1):
        below = np.mean(result.kl[:, 0] <= result.kl_quantiles[fraction])
        radius = 2.200985160082949 * math.sqrt(below * (1 - below) / 11)
        low, high = math.floor(600 * (fraction - radius)), math.ceil(600 * (fraction + radius)) + 1
        expected = ordered[(low - 1) // 50] if low > 0 else 0, ordered[(high - 1) // 50] if high <= 600 else INF
        assert result.kl_quantiles[fraction].interval == expected
    alone = intervals_of(compare(base, other, targets))
    assert all(low <= alone[fraction][0] <= alone[fraction][1] <= high
               for fraction, (low, high) in intervals_of(result).items())  # fmt: skip


def test_kl_quantile_intervals_of_special_divergences():
    base, logits = np.zeros((40, 2)), np.zeros((40, 2))
    logits[:20, 1] = -INF
    result = compare(base, logits, np.zeros(40, int))
    assert result.kl_quantiles[0.5].interval == (0, INF)
    assert result.kl_quantiles[0.9].interval == (INF, INF)
    logits[0] = NAN
    for ends in intervals_of(compare(base, logits, np.zeros(40, int))).values():
        assert np.isnan(ends).all()
    assert np.isnan(compare(base, logits, [-100] * 40).kl_quantiles[0.5].interval).all()
    assert compare(base[:1], base[:1], [0]).kl_quantiles[0.5].interval == (0, INF)


def test_quantiles_without_intervals_say_so():
    result = compare(np.eye(3), 2 * np.eye(3), [0, 1, 2], divergences=("kl", "js"))
    for one in result.kl_quantiles[1.0], result.divergence_quantiles["js"][0.5], result.delta_p_quantiles[0.5]:
        assert np.isnan([one.stderr, *one.interval]).all()
        assert one.unit == ""


def test_kl_quantile_intervals_of_few_divergences_end_at_0_and_infinity(rng):
    base, other, _ = models(rng, (5, 6))
    result = compare(base, other, [0, 1, 2, 3, 4])
    ordered = sorted(result.kl.tolist())
    assert ordered[0] > 0
    # the largest is a bound, but type 7's estimate is a little below it, and must not be outside of its interval
    assert result.kl_quantiles[0.999].interval == (result.kl_quantiles[0.999], INF)
    assert ordered[3] < result.kl_quantiles[0.999] < ordered[4]
    assert result.kl_quantiles[0.5].interval == (0, INF)
    assert result.kl_quantiles[0.001].interval == (0, result.kl_quantiles[0.001])
    assert compare(base[:3], other[:3], [0, 1, 2]).kl_quantiles[0.1].interval == (0, max(result.kl[:3]))


def test_kl_quantile_intervals_reach_down_to_divergences_that_are_rounded_below_0(rng):
    log_probs = np.log(np.full((40, 2), 0.5, np.float32)) - np.float32(1e-5) * rng.random((40, 1), np.float32)
    result = compare(log_probs, np.zeros((40, 2)), np.zeros(40, int), definitions="llama.cpp")
    least = result.kl.min()
    assert least < 0
    assert result.kl_quantiles[0.001].interval[0] == result.kl_quantiles[0.01].interval[0] == least


# positions that are not finite


@pytest.mark.parametrize("segment_ids", [None, np.arange(8) // 2])
def test_n_infinite_and_n_nan_are_counted_apart(segment_ids, rng):
    base, other, _ = models(rng, (8, 3))
    targets = np.zeros(8, int)
    base[0], other[1, 0] = NAN, NAN
    other[2, 0], other[3, 1] = -INF, -INF  # the target's class, and another
    base[4, 0] = other[4, 0] = -INF  # both losses are infinite, the divergence is not
    base[5] = other[5] = NAN
    targets[5] = -100
    result = compare(base, other, targets, segment_ids=segment_ids)
    assert (result.count, result.n_nan, result.n_infinite) == (7, 2, 3)
    finite = compare(base, other, targets, segment_ids=segment_ids, where=np.isfinite(result.kl))
    assert math.isnan(result.mean_kl)
    assert result.finite_mean_kl == finite.mean_kl == pytest.approx(result.kl[[4, 6, 7]].mean())
    assert result.finite_mean_kl.stderr == finite.mean_kl.stderr > 0
    assert (finite.n_nan, finite.n_infinite) == (0, 1)


def test_n_infinite_leaves_out_positions_that_are_nan_too():
    base, other = np.zeros((3, 2)), np.zeros((3, 2))
    base[0], other[0, 0] = NAN, -INF  # a loss is infinite, the other nan
    other[1, 0] = -INF
    result = compare(base, other, [0, 0, 0])
    assert (result.nll[0], math.isnan(result.base_nll[0])) == (INF, True)
    assert (result.n_nan, result.n_infinite) == (1, 1)


def test_n_nan_of_all_positions():
    rows = np.full((3, 2), NAN)
    result = compare(rows, rows, [0, 1, 0])
    assert (result.n_nan, result.n_infinite) == (3, 0)
    assert math.isnan(result.finite_mean_kl)
    assert math.isnan(result.finite_mean_kl.stderr)


# groups of positions


@pytest.mark.parametrize("with_sequences", [False, True])
@pytest.mark.parametrize("labels", ["ints", "text", "objects", "bool"])
def test_by_gives_the_figures_of_each_group(labels, with_sequences, rng):
    base, other, targets = models(rng, (8, 30, 5))
    numbers = rng.integers(-2, 3, (8, 30))
    groups = {
        "ints": numbers,
        "text": numbers.astype(str),
        "objects": numbers.astype(str).astype(object),
        "bool": numbers > 0,
    }[labels]
    ids = rng.integers(-1, 6, (8, 30)) if with_sequences else None
    if ids is not None:
        ids[numbers == 2] = 4  # a group of a single sequence
    result = compare(base, other, targets, segment_ids=ids)
    table = result.by(groups)
    assert list(table) == (WITH_SEQUENCES if with_sequences else COLUMNS)
    assert table["group"].tolist() == sorted(set(groups[result.kept].tolist()))
    assert table["count"].sum() == result.count
    for row, label in enumerate(table["group"].tolist()):
        alone = compare(base, other, targets, segment_ids=ids, where=groups == label)
        for name, figure in OF_GROUP.items():
            assert table[name][row] == pytest.approx(reference.statistic(alone, figure), rel=2**-52), name
        for name, losses in (("loss", alone.nll), ("base_loss", alone.base_nll)):
            assert table[name][row] == math.fsum(losses[alone.kept].tolist()) / alone.count, name


def test_by_does_not_depend_on_updates(rng):
    base, other, targets = models(rng, (60, 9))
    groups, ids = rng.integers(0, 4, 60), np.arange(60) // 7
    expected = compare(base, other, targets, segment_ids=ids).by(groups)
    meter = ComparisonMeter()
    for part in np.split(np.arange(60), [3, 20, 21]):
        meter.update(base[part], other[part], targets[part], segment_ids=ids[part])
    for name, column in meter.result().by(groups).items():
        assert_same_bits(column, expected[name], name)


def test_by_refuses_groups_that_fit_in_two_ways():
    result = compare(np.zeros((2, 2, 3)), np.ones((2, 2, 3)), np.zeros((2, 2), int))
    with pytest.raises(ValueError, match=r"groups has shape \(2,\); it must be \(1, 2\) or \(2, 1\)"):
        result.by(["a", "b"])


def test_by_broadcasts_its_groups(rng):
    base, other, targets = models(rng, (4, 5, 7))
    result = compare(base, other, targets)
    for given, whole in (
        ([["a"], ["b"], ["a"], ["c"]], np.repeat(list("abac"), 5).reshape(4, 5)),
        (3, np.full((4, 5), 3)),
    ):
        for name, column in result.by(given).items():
            np.testing.assert_array_equal(column, result.by(whole)[name])
    assert result.by("all")["count"].tolist() == [result.count]


def test_by_of_infinite_and_no_positions():
    base, logits = np.log([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]]), np.log([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    base[1, 0] = logits[1, 0] = -INF
    logits[2, 0] = -INF
    table = compare(base, logits, [0, 0, 0]).by([0, 1, 2])
    assert np.isnan(table["loss_difference"]).tolist() == [False, True, False]
    assert table["loss"].tolist()[1:] == table["kl"].tolist()[2:] * 2 == [INF, INF]
    assert np.isnan(table["kl_stderr"]).all()
    for groups in ([0, 0], np.zeros(2, int), ["a", "b"]):
        empty = compare(base[:2], base[:2], [-100, -100], segment_ids=[0, 1]).by(groups)
        assert [column.size for column in empty.values()] == [0] * len(WITH_SEQUENCES)


def test_by_of_groups_that_do_not_fit(rng):
    result = compare(*models(rng, (4, 5, 7)))
    for error, words, groups in (
        (ValueError, ("groups", "(4,)", "(4, 5)"), [0, 1, 2, 3]),
        (TypeError, ("groups", "float64", "integer"), np.zeros((4, 5))),
        (TypeError, ("groups", "object", "text"), np.full((4, 5), None)),
        (TypeError, ("groups", "datetime64"), np.zeros((4, 5), "M8[s]")),
        (TypeError, ("groups", "masked"), np.ma.array(np.zeros((4, 5), int), mask=True)),
        (TypeError, ("groups", "array"), [[1], [2, 3]]),
    ):
        with fails(error, *words):
            result.by(groups)


def test_by_confidence_has_a_row_for_each_bin_of_base_top_p(rng):
    base = log_softmax(scores_for("cross_entropy", rng, (300, 4), np.float64) * rng.random((300, 1)))
    other = base + 0.2 * rng.standard_normal(base.shape)
    result = compare(base, other, rng.integers(-1, 4, 300), ignore_index=-1, segment_ids=np.arange(300) // 30)
    bins = np.array([[0.2, 0.4, 0.6, 0.8][int(5 * p) - 1] if p >= 0.2 else 0.0 for p in result.base_top_p.tolist()])
    table, expected = result.by_confidence, result.by((10 * bins).round().astype(int))
    assert table["group"].tolist() == [0.2, 0.4, 0.6, 0.8]
    for name in WITH_SEQUENCES[1:]:
        assert_same_bits(table[name], expected[name], name)
    rows = result.to_dict()["by_confidence"]
    assert [list(row) for row in rows] == [WITH_SEQUENCES] * 4
    assert [row["kl"] for row in rows] == table["kl"].tolist()


def test_by_confidence_at_the_bounds_of_bins():
    tops = [0.2, 0.4, 0.6, 0.8, 1.0, np.nextafter(0.6, 0), 0.19]
    base = np.log([[p, *[(1 - p) / 9] * 9] for p in tops[:4]])
    result = compare(base, base, [0] * 4)
    object.__setattr__(result, "base_top_p", np.array(tops[:4]))  # exactly, which exponentials may miss
    assert result.by_confidence["group"].tolist() == [0.2, 0.4, 0.6, 0.8]
    object.__setattr__(result, "base_top_p", np.array([*tops[4:], NAN]))
    assert result.by_confidence["group"].tolist() == [0.0, 0.4, 0.8]
    assert result.by_confidence["count"].tolist() == [1, 1, 1]


def test_by_confidence_leaves_out_nan():
    base = np.log([[0.7, 0.3], [0.9, 0.1], [0.5, 0.5]])
    base[1] = NAN
    result = compare(base, np.zeros((3, 2)), [0, 0, 0])
    assert result.by_confidence["group"].tolist() == [0.4, 0.6]
    assert result.by_confidence["count"].tolist() == [1, 1]


# a real model


def test_by_documents_of_a_real_model():
    with np.load(CLIENTS / "compare.npz") as file:
        arrays = dict(file)
    expected = json.loads((CLIENTS / "compare.json").read_text())["targets"]["targets"]
    targets = np.where(arrays["targets"] < 0, -100, 0)
    base, other = (  # two classes, of which the first has this loss
        np.stack([np.zeros(288), np.log(np.expm1(np.where(targets < 0, 1, arrays[f"{model}_nll"])))], axis=-1)
        for model in ("base", "other")
    )
    ids = arrays["segment_ids"]
    result = compare(base, other, targets, segment_ids=ids)
    table = result.by(ids)
    for name, model in (("base_loss", "base"), ("loss", "other")):
        documents = expected[model]["per_document"]
        assert table["count"].tolist() == [document["tokens"] for document in documents]
        means = [document["total_nll"] / document["tokens"] for document in documents]
        np.testing.assert_allclose(table[name], means, rtol=1e-13)
    whole = result.by("all")
    difference = expected["other_minus_base"]
    assert whole["loss_difference"][0] == pytest.approx(difference["micro"], rel=1e-11)
    assert whole["loss_difference_stderr"][0] == pytest.approx(difference["micro_stderr_clustered"], rel=1e-11)
