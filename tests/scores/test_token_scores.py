"""token_scores: nll, logsumexp, entropy, rank, argmax and top_k equal the oracle; figures of the batch."""

import dataclasses
import math

import numpy as np
import pytest
import reference
from arrays import (
    FLOATS,
    INTEGERS,
    KINDS_OF_ROWS,
    LAYOUTS,
    assert_near,
    assert_same_bits,
    distributions,
    fails,
    normalizer_error,
    row_of_logits,
    scores_for,
    strided,
    swapped,
)

from tokenloss import (
    LossMeter,
    cross_entropy,
    cross_entropy_loss,
    linear_token_scores,
    logsumexp,
    nll_loss,
    token_scores,
)
from tokenloss._scores.token_scores import COLUMNS
from tokenloss.results import TokenScores

NAN, INF = math.nan, math.inf
SCALINGS = [{}, {"logit_scale": 0.3}, {"softcap": 5.0}, {"logit_scale": 2.5, "softcap": 30.0}]
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_scaling = pytest.mark.parametrize("scaling", SCALINGS)


def assert_as_oracle(logits, targets, actual_logits=None, **options):
    """Compare all fields with the oracle's; `actual_logits` are the same logits in another layout."""
    scores = token_scores(logits if actual_logits is None else actual_logits, targets, **options)
    expected = reference.token_scores(logits, targets, **options)
    scaling = {name: value for name, value in options.items() if name in ("axis", "logit_scale", "softcap")}
    error = normalizer_error(logits, **scaling)
    for name, column in COLUMNS.items():
        actual = getattr(scores, name)
        if column.is_top and not options.get("top_k"):
            assert actual is None
        elif column.dtype is np.float64:
            assert_near(actual, getattr(expected, name), error[..., None] if column.is_top else error, 2)
        else:
            assert actual.dtype == column.dtype, name
            np.testing.assert_array_equal(actual, getattr(expected, name), name)
    assert not np.signbit(scores.entropy[~np.isnan(scores.entropy)]).any()
    return scores


# the table of columns


def test_every_column_is_a_field_of_token_scores():
    assert list(COLUMNS) == [field.name for field in dataclasses.fields(TokenScores)]


@pytest.mark.parametrize("name", COLUMNS)
def test_every_column_is_computed_where_kept_and_holds_its_masked_value_elsewhere(name, rng):
    hidden, weight, where = rng.standard_normal((50, 4)), rng.standard_normal((20, 4)), np.arange(50) >= 10
    targets = (hidden @ weight.T).argmax(-1)
    targets[::2] = 3
    for scores in (
        token_scores(hidden @ weight.T, targets, where=where, top_k=3),
        linear_token_scores(hidden, weight, targets, where=where, top_k=3),
    ):
        values = getattr(scores, name)
        assert_same_bits(values[:10], np.full_like(values[:10], COLUMNS[name].masked))
        assert (values[10:] != COLUMNS[name].masked).any()
        assert math.isnan(COLUMNS[name].masked) if values.dtype == np.float64 else not (values[10:] < 0).any()


# against the oracle


@each_dtype
@each_layout
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_token_scores_in_every_dtype_layout_and_axis_with_where_and_top_k(dtype, layout, axis, rng):
    logits = scores_for("cross_entropy", rng, (6, 7, 8), dtype, axis)
    targets = rng.integers(0, logits.shape[axis], np.delete(logits.shape, axis))
    targets.flat[::5] = -100
    for top_k in (0, 3):
        where = rng.random(targets.shape) > 0.2
        assert_as_oracle(logits, targets, LAYOUTS[layout](logits), axis=axis, top_k=top_k, where=where)


@each_dtype
@each_scaling
def test_token_scores_at_every_length_of_row_with_logit_scale_softcap_top_k(dtype, scaling, rng):
    for classes in [1, 2, 63, 64, 65, 127, 128, 129, 511, 512, 513, 4095, 4096, 4097, 8193]:
        logits = scores_for("cross_entropy", rng, (2, classes), dtype)
        for layout in (np.ascontiguousarray, strided, swapped):
            top_k = min(classes, int(rng.integers(0, 30)))
            assert_as_oracle(logits, np.array([0, classes - 1]), layout(logits), top_k=top_k, **scaling)


@pytest.mark.parametrize(("dtype", "kind"), KINDS_OF_ROWS)
def test_accuracy_of_token_scores(dtype, kind, rng):
    for length in [1, 2, 65, 513, 9000]:
        row = row_of_logits(kind, rng, length, dtype)
        for target in {int(row.argmax()), int(row.argmin()), length - 1}:
            assert_as_oracle(row, target, top_k=min(length, 5))


@each_dtype
@pytest.mark.parametrize("level", [-3e38, -1e5, 0.0, 1e5, 3e38])
def test_token_scores_whose_largest_logit_is_in_a_later_block(dtype, level):
    level = np.clip(level, -60000, 60000) if dtype == np.float16 else level
    for position in [0, 127, 128, 511, 512, 4095, 4096, 8199]:
        row = np.full(8200, level, dtype)
        row[position] = level / 2 + 10 if level <= 0 else level * 1.05
        row[[(position + 1) % 8200, (position + 600) % 8200]] = row[position] - np.abs(row[position]) / 64
        for target in (position, 8198):
            scores = assert_as_oracle(row, target, top_k=4)
            assert scores.argmax == position
            assert scores.top_ids[0] == position


def targets_to_try(rng, row):
    """The first, last and likeliest class of a row, and a random one."""
    length = len(row)
    known = np.where(np.isnan(row.astype(np.float64)), -np.inf, row.astype(np.float64))
    return sorted({0, length - 1, int(known.argmax()), int(rng.integers(0, length))})


def row_near_zero(rng, length, leader, dtype):
    """A row with one given logit, and others that outweigh it, do not, or hardly matter."""
    level = rng.choice([-0.5, -2, -8, -30, -60]) - np.log(length)
    row = (level + 0.01 * rng.standard_normal(length)).astype(dtype)
    row[rng.integers(length)] = leader
    return row


@each_dtype
@each_scaling
def test_logsumexp_near_zero_depends_on_no_layout_with_logit_scale_and_softcap(dtype, scaling, rng, backend):
    most = 1e-14 if dtype == np.float64 or scaling else 4e-7
    for length in [1, 2, 3, 64, 513, 4600]:
        for leader in (0.0, 1e-9, -1e-3, 0.2, -0.5):
            row = row_near_zero(rng, length, leader, dtype)
            expected = {target: token_scores(row, target, **scaling).logsumexp for target in targets_to_try(rng, row)}
            assert np.ptp([*expected.values()]) <= most
            for layout in (np.ascontiguousarray, strided, swapped):
                logits, what = layout(row), f"{length} classes, {leader}"
                for target, value in expected.items():
                    assert_same_bits(token_scores(logits, target, **scaling).logsumexp, value, what)
                if not scaling:
                    assert_same_bits(logsumexp(logits), logsumexp(row), what)
            if not scaling:
                assert_same_bits(logsumexp(np.asfortranarray([row, row]))[1], logsumexp(row))
                assert abs(logsumexp(row) - expected[length - 1]) <= most


@each_dtype
def test_logsumexp_near_zero_has_a_small_relative_error(dtype, rng, backend):
    rows = [[0.0, -30.0], [0.0, -40.0], [0.0, -40.0, -41.0, -42.0], [1e-9, -25.0], [-100.0, 0.0], [0.0], [1e-3]]
    for length in (600, 5000):
        for leader in (0.0, 1e-3, 0.2):
            for level in (-50.0, -20.0, -12.0):
                row = np.full(length, level) + rng.standard_normal(length)
                row[rng.integers(length)] = leader
                rows.append(row)
    for row in rows:
        logits = np.asarray(row, dtype)
        ordered = reference.wide(np.sort(reference.float64(logits)))
        expected = float(ordered[-1] + reference.log1p(reference.exp(ordered[:-1] - ordered[-1]).sum()))
        error = (2e-14 if dtype == np.float64 else 1e-6) * abs(expected)
        assert abs(logsumexp(logits) - expected) <= error, row
        for target in {0, len(row) - 1, int(logits.argmax()), int(logits.argmin())}:
            assert abs(token_scores(logits, target).logsumexp - expected) <= error, row
            assert abs(token_scores([logits] * 5, [target] * 5).logsumexp[1] - expected) <= error, row


@each_dtype
@each_scaling
def test_nll_has_the_bits_of_cross_entropy_with_where_logit_scale_softcap_top_k(dtype, scaling, rng, backend):
    for classes in (1, 3, 100, 513, 4500):
        logits = scores_for("cross_entropy", rng, (6, classes), dtype)
        logits[4, classes // 2], logits[5] = NAN, -INF
        targets, where = rng.integers(0, classes, 6), [True, True, False, True, True, True]
        targets[1] = -100
        for top_k in {0, 1, min(20, classes)}:
            scores = token_scores(logits, targets, where=where, top_k=top_k, **scaling)
            expected = cross_entropy(logits, targets, where=where, reduction="none", **scaling)
            assert_same_bits(scores.nll, np.where(scores.kept, expected, NAN))
            assert_same_bits(scores.loss, cross_entropy(logits, targets, where=where, **scaling))
            kept = token_scores(logits[:4], targets[:4], where=where[:4], top_k=top_k, **scaling)
            assert kept.loss == cross_entropy(logits[:4], targets[:4], where=where[:4], **scaling)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_token_scores_of_targets_of_every_integer_dtype(dtype, rng):
    logits, targets = scores_for("cross_entropy", rng, (20, 100), np.float32), rng.integers(0, 100, 20)
    for layout in (np.ascontiguousarray, strided, swapped):
        assert_as_oracle(logits, layout(targets.astype(dtype)), top_k=2)


# the best classes


def pipe(rng, count):
    """Up, and down again."""
    rising = np.sort(rng.standard_normal(count))
    return np.concatenate([rising[::2], rising[1::2][::-1]])


def saws(rng, count):
    """Rising from -1 to 1 in each run of 512."""
    return np.arange(count) % 512 / 256 - 1 + np.arange(count) / 1e5


def possible_and_not(rng, count):
    """With zeros of both signs, infinities and nan."""
    values = [-INF, -1.0, -0.0, 0.0, NAN, 2.0]
    return rng.choice(values, count, p=[0.2, 0.2, 0.2, 0.2, 0.15, 0.05])


ORDERS = {
    "random": lambda rng, count: rng.standard_normal(count),
    "ascending": lambda rng, count: np.sort(rng.standard_normal(count)),
    "descending": lambda rng, count: -np.sort(rng.standard_normal(count)),
    "constant": lambda rng, count: np.full(count, -1.5),
    "few values": lambda rng, count: rng.integers(-2, 3, count) / 2,
    "negative": lambda rng, count: -np.exp(2 * rng.standard_normal(count)),
    "nearly equal": lambda rng, count: 1 + rng.integers(0, 9, count) * 2.0**-50,
    "pipe": pipe,
    "saws": saws,
    "possible and not": possible_and_not,
}


def best_of(row, top_k):
    """Ids of the largest logits and then -1: of equal ones the lower id comes first, and nan is none."""
    ids = np.lexsort((np.arange(len(row)), -row))[: np.count_nonzero(~np.isnan(row))][:top_k]
    return np.concatenate([ids, np.full(top_k - len(ids), -1)])


def assert_best(scores, row, top_k):
    expected = best_of(row.astype(np.float64), top_k)
    np.testing.assert_array_equal(scores.top_ids[0], expected)
    finite = scores.logsumexp[0] - scores.logsumexp[0] == 0
    losses = row.astype(np.float64)[expected] - scores.logsumexp[0]
    np.testing.assert_allclose(
        scores.top_logprobs[0], np.where((expected >= 0) & finite, losses, NAN), rtol=1e-6, atol=1e-6
    )


@each_dtype
@pytest.mark.parametrize("order", ORDERS)
def test_top_k_of_any_length_in_rows_of_any_order(dtype, order, rng):
    for classes in (40, 300, 700, 5000):
        row = ORDERS[order](rng, classes).astype(dtype)
        for top_k in {1, 2, 20, 33, 64, 65, 100, 300, 512, 513, 600, 1500, classes // 2, classes - 1, classes}:
            if top_k <= classes:
                for layout in (np.ascontiguousarray, swapped):
                    assert_best(token_scores(layout(row[None]), [classes // 3], top_k=top_k), row, top_k)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", [order for order in ORDERS if order != "possible and not"])
def test_top_k_of_a_projection_in_rows_of_any_order(dtype, order, rng):
    row = ORDERS[order](rng, 30011).astype(dtype)  # several tiles
    for top_k in (1, 20, 100, 600, 4000, 20000, len(row)):
        scores = linear_token_scores(np.ones((1, 1), dtype), row[:, None], [5], top_k=top_k)
        assert_best(scores, row, top_k)


# ranks and ties


@each_dtype
def test_rank_argmax_and_top_k_of_equal_logits(dtype, rng, backend):
    for classes in (1, 5, 64, 129, 600, 4200):
        for values in (1, 2, 5):
            logits = rng.integers(0, values, (3, classes)).astype(dtype)
            logits[logits == 0] *= rng.choice([-1, 1])  # zeros of both signs are equal
            targets = rng.integers(0, classes, 3)
            scores = assert_as_oracle(logits, targets, top_k=min(classes, 40))
            assert (scores.rank >= 1).all()
            assert_as_oracle(logits, logits.argmax(-1))


def test_rank_argmax_and_top_k_of_equal_logits_by_hand():
    scores = token_scores([[1.0, 3.0, 3.0, 2.0]] * 4, [0, 1, 2, 3], top_k=4)
    assert scores.rank.tolist() == [4, 2, 2, 3]
    assert scores.argmax.tolist() == [1] * 4
    assert scores.is_greedy.tolist() == [False, True, False, False]
    assert scores.top_ids.tolist() == [[1, 2, 3, 0]] * 4


@each_dtype
def test_rank_is_of_the_logits_before_softcap(dtype):
    logits = np.array([[100, 300, 200, 300]] * 2, dtype)
    scores = token_scores(logits, [2, 3], softcap=1.0, top_k=4)
    assert scores.rank.tolist() == [3, 2]
    assert scores.top_ids.tolist() == [[1, 3, 2, 0]] * 2
    np.testing.assert_allclose(scores.top_logprobs, -math.log(4), rtol=1e-15)


@each_dtype
def test_top_k_of_all_classes(dtype, rng):
    for classes in (1, 2, 64, 130, 700):
        logits = scores_for("cross_entropy", rng, (3, classes), dtype)
        scores = assert_as_oracle(logits, np.zeros(3, int), top_k=classes)
        assert (np.sort(scores.top_ids) == np.arange(classes)).all()


def test_top_k_that_does_not_fit():
    for value in (-1, 4, 2**70):
        with fails(ValueError, "top_k is", value, "3"):
            token_scores(np.ones((2, 3)), [0, 1], top_k=value)
    for value in (1.0, None, "1", [1]):
        with fails(TypeError, "top_k is", value, "integer"):
            token_scores(np.ones((2, 3)), [0, 1], top_k=value)
    assert token_scores(np.ones((2, 3)), [0, 1], top_k=np.int8(3)).top_ids.shape == (2, 3)


def test_top_k_of_rows_with_nan_and_infinity():
    rows = np.array([[NAN, 2, NAN, 3], [NAN] * 4, [-INF, 1, -INF, 0], [INF, 1, INF, 2], [-INF] * 4])
    scores = token_scores(rows, [1, 0, 0, 0, 2], top_k=3)
    assert scores.top_ids.tolist() == [[3, 1, -1], [-1, -1, -1], [1, 3, 0], [0, 2, 3], [0, 1, 2]]
    assert np.isnan(scores.top_logprobs).tolist() == [[True] * 3, [True] * 3, [False] * 3, [True] * 3, [True] * 3]
    assert scores.top_logprobs[2, 2] == -INF
    assert scores.rank.tolist() == [2, 0, 4, 2, 4]
    assert scores.argmax.tolist() == [3, -1, 1, 0, 0]
    assert scores.is_greedy.tolist() == [False, False, False, True, False]
    assert_same_bits(scores.nll, [NAN, NAN, INF, NAN, NAN])
    assert_same_bits(scores.logsumexp[[0, 1, 3, 4]], [NAN, NAN, NAN, -INF])
    assert_same_bits(scores.entropy[[0, 1, 3, 4]], [NAN, NAN, NAN, NAN])


@each_dtype
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@each_scaling
def test_token_scores_of_rows_with_nan_or_infinity_with_logit_scale_and_softcap(dtype, value, scaling, rng, backend):
    clean = scores_for("cross_entropy", rng, (4200,), dtype)
    for classes in (2, 65, 600, 4200):
        for position in {0, 1, classes // 2, classes - 1}:
            row = clean[:classes].copy()
            row[position] = value
            for target in {0, position}:
                assert_as_oracle(row, target, top_k=2, **scaling)
    row = np.full(600, value, dtype)
    assert_as_oracle(row, 3, top_k=600, **scaling)
    row[300:] = 1
    assert_as_oracle(row, 300, top_k=5, **scaling)
    assert_as_oracle(row, 3, **scaling)


# entropies


@each_dtype
def test_entropy_by_hand(dtype):
    error = 3e-14 if dtype == np.float64 else 2e-7
    for classes in (1, 2, 1000, 4096, 4097):
        entropy = float(token_scores(np.full(classes, 7, dtype), 0).entropy)
        assert entropy == pytest.approx(math.log(classes), rel=0, abs=error)
        lonely = np.full(classes, -INF, dtype)
        lonely[classes // 2] = 3
        assert 0 <= token_scores(lonely, 0).entropy < error
    halves = np.array([5, -INF, 5, -INF], dtype)
    assert float(token_scores(halves, 0).entropy) == pytest.approx(math.log(2), rel=0, abs=error)


@each_dtype
def test_entropy_of_near_certain_rows_is_small_and_never_negative(dtype, rng):
    for lead in [1, 5, 10, 17, 20, 40, 80, 90, 100, 200, 1000, 60000]:
        for length in (2, 600, 5000):
            row = rng.standard_normal(length).astype(dtype)
            row[length // 3] = lead
            assert_as_oracle(row, length // 3)


# positions that where and ignore_index leave out


def test_token_scores_where_where_and_ignore_index_leave_positions_out(rng):
    logits = scores_for("cross_entropy", rng, (4, 30), np.float32)
    logits[:2] = NAN
    targets, where = np.array([-100, 10**9, 3, 4]), [True, False, True, True]
    scores = assert_as_oracle(logits, targets, where=where, top_k=3)
    for name, value in {"nll": NAN, "logsumexp": NAN, "entropy": NAN, "rank": -1, "argmax": -1}.items():
        np.testing.assert_array_equal(getattr(scores, name)[:2], value, err_msg=name)
    assert scores.kept.tolist() == [False, False, True, True]
    assert not scores.is_greedy[:2].any()
    assert scores.top_ids[:2].tolist() == [[-1] * 3] * 2
    assert np.isnan(scores.top_logprobs[:2]).all()
    assert scores.count == 2


@pytest.mark.parametrize(
    ("logits", "targets"), [(np.empty((0, 4)), []), (np.full((2, 4), NAN), [-100] * 2), (np.empty((2, 0)), [-100] * 2)]
)
def test_token_scores_where_ignore_index_keeps_nothing(logits, targets):
    scores = token_scores(logits, targets)
    assert scores.count == 0
    assert math.isnan(scores.loss)
    assert math.isnan(scores.perplexity)
    assert math.isnan(scores.accuracy)
    assert scores.nll.shape == np.shape(targets)
    repr(scores)


# figures of the batch


def test_count_loss_perplexity_accuracy_of_a_batch(rng):
    logits, targets = scores_for("cross_entropy", rng, (7, 40), np.float32), rng.integers(0, 40, 7)
    logits[3:, :] += 9 * np.eye(40)[targets[3:]]
    targets[0] = -100
    scores = token_scores(logits, targets)
    assert scores.count == 6
    assert scores.loss == math.fsum(scores.nll[1:]) / 6 == cross_entropy(logits, targets)
    assert scores.perplexity == pytest.approx(math.exp(scores.loss), rel=1e-15)
    assert scores.accuracy == scores.is_greedy.sum() / 6
    assert [type(value) for value in (scores.count, scores.loss, scores.perplexity, scores.accuracy)] == [
        int, float, float, float
    ]  # fmt: skip
    meter = LossMeter()
    meter.update(scores.nll, where=scores.kept)
    assert meter.loss == scores.loss


def test_perplexity_of_token_scores_beyond_a_float():
    assert token_scores([[800.0, 0.0]], [1]).perplexity == INF
    assert token_scores([[0.0, -INF]], [1]).perplexity == INF


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("top_k", [0, 2])
def test_columns_has_one_for_each_field(shape, top_k, rng):
    logits, targets = scores_for("cross_entropy", rng, (*shape, 5), np.float32), rng.integers(0, 5, shape)
    scores = token_scores(logits, targets, top_k=top_k)
    table = scores.columns()
    names = [name for name, column in COLUMNS.items() if not column.is_top]
    tops = [f"top_{what}_{k}" for what in ("id", "logprob") for k in range(1, top_k + 1)]
    places = ["sequence", "position"] * (len(shape) > 1)
    assert sorted(table) == sorted(places + names + tops)
    assert list(table)[: len(places + names)] == places + names
    for name in names:
        assert getattr(scores, name).shape == shape
        np.testing.assert_array_equal(table[name], getattr(scores, name).ravel(), name)
        assert table[name].dtype == getattr(scores, name).dtype
    for k in range(top_k):
        assert_same_bits(table[f"top_logprob_{k + 1}"], scores.top_logprobs[..., k].ravel())
        np.testing.assert_array_equal(table[f"top_id_{k + 1}"], scores.top_ids[..., k].ravel())
    assert {column.shape for column in table.values()} == {(int(np.prod(shape)),)}


def test_token_scores_are_frozen():
    scores = token_scores([[1.0, 2.0]], [0])
    assert isinstance(scores, TokenScores)
    for name in ("nll", "top_ids", "loss", "anything"):
        with pytest.raises(AttributeError):
            setattr(scores, name, None)
    with pytest.raises(AttributeError):
        del scores.nll


# errors


def test_token_scores_take_only_class_ids_and_no_weight_reduction_label_smoothing(rng):
    with fails(ValueError, "targets", "(2, 3)", "(2,)"):
        token_scores(np.ones((2, 3)), distributions(rng, (2, 3)))
    for options in ({"weight": [1, 2, 3]}, {"reduction": "none"}, {"label_smoothing": 0.1}):
        with pytest.raises(TypeError, match=next(iter(options))):
            token_scores(np.ones((2, 3)), [0, 1], **options)


def test_errors_of_token_scores_name_targets_softcap_logit_scale_where_axis_workers():
    for error, words, targets, options in [
        (IndexError, ("targets[1]", 3, "[0, 3)"), [0, 3], {}),
        (TypeError, ("targets", "float64", "integer"), [0.0, 1.0], {}),
        (ValueError, ("softcap is -1", "positive"), [0, 1], {"softcap": -1}),
        (TypeError, ("softcap is 'x'", "number"), [0, 1], {"softcap": "x"}),
        (ValueError, ("logit_scale is 0", "positive"), [0, 1], {"logit_scale": 0}),
        (ValueError, ("where", "(3,)", "(2,)"), [0, 1], {"where": [True] * 3}),
        (ValueError, ("axis", 2), [0, 1], {"axis": 2}),
        (ValueError, ("workers", 0), [0, 1], {"workers": 0}),
    ]:
        with fails(error, *words):
            token_scores(np.ones((2, 3)), targets, **options)


# of probabilities and log-probabilities


def normalized(rng, shape, kind, dtype, axis=-1):
    """Scores of a kind that add up to 1 but for rounding, with classes of probability 0, and as long doubles."""
    logits = 2 * rng.standard_normal(shape)
    logits[rng.random(shape) < 0.05] = -np.inf
    np.moveaxis(logits, axis, 0)[0] = 0
    powers = np.exp(logits)
    with np.errstate(divide="ignore"):
        scores = powers / powers.sum(axis, keepdims=True)
        scores = (scores if kind == "probs" else np.log(scores)).astype(dtype)
        probs = scores.astype(np.longdouble) if kind == "probs" else np.exp(scores.astype(np.longdouble))
    return scores, probs


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["probs", "log_probs"])
@pytest.mark.parametrize("layout", ["c", "strided", "swapped", "fortran"])
def test_kind_of_every_column(kind, dtype, layout, rng, backend):
    most = 4e-15 if kind == "probs" or dtype == "float64" else 4e-7
    for rows, classes, axis in [(40, 1, -1), (70, 3, -1), (20, 30, 0), (9, 512, 1), (5, 513, -1), (2, 5000, -1)]:
        scores, probs = normalized(rng, (rows, classes) if axis else (classes, rows), kind, dtype, axis)
        targets, where = rng.integers(0, classes, rows), rng.random(rows) > 0.2
        where[0] = True  # at least one row
        top_k = min(3, classes)
        result = token_scores(
            LAYOUTS[layout](scores), targets, kind=kind, axis=axis, where=where, top_k=top_k, workers=2
        )
        options = {"axis": axis, "where": where, "reduction": "none"}
        loss = (
            cross_entropy_loss(targets, scores, **options) if kind == "probs" else nll_loss(scores, targets, **options)
        )
        assert_same_bits(result.nll, np.where(where, loss, np.nan))
        scores, probs = np.moveaxis(scores, axis, -1)[where], np.moveaxis(probs, axis, -1)[where]
        sums = probs.sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -np.where(probs == 0, 0, probs / sums[:, None] * np.log(probs / sums[:, None])).sum(-1)
            logs = np.log(probs / sums[:, None])
        assert abs(result.logsumexp[where] - np.log(sums)).max() <= most
        assert abs(result.entropy[where] - entropy).max() <= most * 10
        of_target = np.take_along_axis(scores, targets[where, None], -1)
        assert np.array_equal(result.rank[where], (scores >= of_target).sum(-1))
        assert np.array_equal(result.argmax[where], scores.argmax(-1))
        order = np.argsort(-scores.astype(float), axis=-1, kind="stable")[:, :top_k]
        assert np.array_equal(result.top_ids[where], order)
        expected = np.take_along_axis(logs, order, -1).astype(float)
        assert np.allclose(result.top_logprobs[where], expected, rtol=most, atol=most)
        assert np.isnan([result.logsumexp[~where], result.entropy[~where]]).all()


@pytest.mark.parametrize("classes", [3, 600])
def test_kind_of_token_scores_refuses_what_does_not_fit(classes, rng):
    targets = np.zeros(20, int)
    for kind, word in (("probs", "probability"), ("log_probs", "log-probability")):
        scores, _ = normalized(rng, (20, classes), kind, np.float64)
        bad = scores.copy()
        bad[7, 0] = 1.2 if kind == "probs" else 0.01
        with fails(ValueError, f"logits[7, 0] = {bad[7, 0]} is not a {word}", "kind='logits'"):
            token_scores(bad, targets, kind=kind)
        assert token_scores(bad, targets, kind=kind, where=np.arange(20) != 7).count == 19
        words = "adds up to 0.8; probabilities add up to 1" if kind == "probs" else "whose logsumexp is -0.2231"
        with fails(ValueError, "logits[0] has a row", words, "kind='logits'"):
            token_scores(0.8 * scores if kind == "probs" else scores + math.log(0.8), targets, kind=kind)
        with fails(ValueError, f"logit_scale and kind='{kind}' cannot be given together"):
            token_scores(scores, targets, kind=kind, logit_scale=2.0)
        with fails(ValueError, f"softcap and kind='{kind}' cannot be given together"):
            token_scores(scores, targets, kind=kind, softcap=30.0)
    bad, _ = normalized(rng, (20, classes), "probs", np.float64)
    bad[4, 1] = -0.5  # not the target's
    with fails(ValueError, "logits[4, 1] = -0.5 is not a probability"):
        token_scores(bad, targets, kind="probs")
    with fails(ValueError, "kind is 'probabilities'; it must be 'logits', 'log_probs' or 'probs'"):
        token_scores(bad, targets, kind="probabilities")
