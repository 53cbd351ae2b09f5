"""LossMeter of sequences: errors that are clustered by sequence, weights, bytes and words, in any order of merging."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
from arrays import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from reference import statistic
from reference_sequences import FIGURES, Meter, ends_above_0, factor_of_two, scores_of

from tokenloss import LossMeter, sequence_losses
from tokenloss.results import SequenceLosses

INF, NAN = math.inf, math.nan
LN2 = math.log(2)


def assert_same_meters(actual, expected):
    assert actual == expected
    assert repr(actual) == repr(expected)
    for figure in FIGURES:
        assert_same_bits(statistic(actual, figure), statistic(expected, figure), figure)


def assert_equals_reference(meter, expected, rtol=1e-15):
    for figure in ("count", "n_sequences", "is_clustered", "n_bytes", "n_words"):
        actual, exact = statistic(meter, figure), statistic(expected, figure)
        assert type(actual) is type(exact), figure
        assert actual == exact, figure
    assert_same_bits(meter.total, expected.total, "total")
    assert_same_bits(meter.loss, expected.loss, "loss")
    for figure in ("stderr", "sequence_loss", "sequence_loss_stderr"):
        actual, exact = statistic(meter, figure), statistic(expected, figure)
        assert isinstance(actual, float), figure
        np.testing.assert_allclose(actual, exact, rtol=rtol, atol=5e-324, err_msg=figure)
    for figure in FIGURES[8:15]:  # made of the others by a few roundings
        if figure != "bits_per_token" and not figure.endswith("interval"):
            np.testing.assert_allclose(
                statistic(meter, figure), statistic(expected, figure), rtol=2e-14, err_msg=figure, equal_nan=True
            )
    assert meter.bits_per_token == meter.loss / LN2 or math.isnan(meter.loss)


def meter_of(*sequences, **options):
    """A meter of some sequences, each a list of losses."""
    meter = LossMeter()
    offsets = np.cumsum([0, *map(len, sequences)])
    losses = np.array([loss for part in sequences for loss in part], np.float64)
    options = {name: np.broadcast_to(value, len(sequences)) for name, value in options.items()}
    meter.update(sequence_losses(losses, cu_seqlens=offsets, **options))
    return meter


def loose(losses, **options):
    meter = LossMeter()
    meter.update(losses, **options)
    return meter


# by hand


def test_two_sequences_by_hand():
    meter = meter_of([1.0, 2.0, 3.0], [6.0], n_bytes=[2, 4], n_words=[1, 2])
    assert (meter.count, meter.n_sequences, meter.is_clustered) == (4, 2, True)
    assert (meter.n_bytes, meter.n_words) == (6, 3)
    assert (meter.total, meter.loss) == (12.0, 3.0)
    # sums 6 and 6 of 3 tokens and 1 token: they differ by 6 - 3 * 3 and 6 - 3
    assert meter.loss.stderr == pytest.approx(math.sqrt(2 * (9 + 9)) / 4, rel=1e-15)
    low, high = ends_above_0(3, 1.5 * factor_of_two(3, 1))
    assert high > 1000  # nats: two sequences show very little
    assert meter.perplexity.interval == (pytest.approx(math.exp(low), rel=1e-10), math.inf)
    # 2 nats a byte: they differ by 6 - 2 * 2 and 6 - 2 * 4
    assert meter.bits_per_byte == pytest.approx(2 / LN2, rel=1e-15)
    assert meter.bits_per_byte.stderr == pytest.approx(math.sqrt(2 * (4 + 4)) / 6 / LN2, rel=1e-15)
    # 4 nats a word: they differ by 6 - 4 * 1 and 6 - 4 * 2
    assert meter.word_perplexity == pytest.approx(math.exp(4), rel=1e-15)
    ends = ends_above_0(4, math.sqrt(2 * (4 + 4)) / 3 * factor_of_two(1, 2))
    assert [math.log(end) for end in meter.word_perplexity.interval] == pytest.approx(ends, rel=1e-10)
    ends = ends_above_0(2 / LN2, math.sqrt(2 * (4 + 4)) / 6 / LN2 * factor_of_two(1, 2))
    assert meter.bits_per_byte.interval == pytest.approx(ends, rel=1e-10)
    # means 2 and 6
    assert (meter.sequence_loss, meter.sequence_loss.stderr) == (4.0, 2.0)


def test_sequences_and_loose_tokens_by_hand():
    meter = meter_of([1.0, 2.0])
    meter.update([3.0, 6.0])
    assert (meter.count, meter.n_sequences, meter.is_clustered) == (4, 1, True)
    assert (meter.total, meter.loss) == (12.0, 3.0)
    # three groups: 3 - 2 * 3, 3 - 3, 6 - 3
    assert meter.loss.stderr == pytest.approx(math.sqrt(3 / 2 * (9 + 0 + 9)) / 4, rel=1e-15)
    assert meter.sequence_loss == 1.5
    assert math.isnan(meter.sequence_loss.stderr)


def test_single_sequence_takes_its_tokens_as_independent():
    meter = meter_of([1.0, 2.0, 6.0], n_bytes=9, n_words=3)
    assert (meter.count, meter.n_sequences, meter.is_clustered) == (3, 1, False)
    assert meter.loss.stderr == loose([1.0, 2.0, 6.0]).loss.stderr == math.sqrt(7 / 3)
    assert meter.sequence_loss == 3.0
    assert math.isnan(meter.sequence_loss.stderr)
    assert meter.bits_per_byte.stderr == pytest.approx(math.sqrt(7 / 3) * 3 / 9 / LN2, rel=1e-15)
    once = meter_of([1.0])
    assert (once.n_sequences, once.is_clustered) == (1, False)
    assert math.isnan(once.loss.stderr)


def test_second_sequence_turns_the_error_into_a_clustered_one():
    meter = meter_of([1.0, 2.0, 3.0]) + meter_of([6.0])
    assert_same_meters(meter, meter_of([1.0, 2.0, 3.0], [6.0]))
    assert meter.is_clustered
    assert meter.loss.stderr == pytest.approx(1.5, rel=1e-15)


def test_sequences_of_one_token_are_loose_tokens(rng):
    losses = rng.exponential(3, 50)
    apart, tokens = meter_of(*losses[:, None]), loose(losses)
    for figure in ("count", "total", "loss", "stderr", "perplexity", "perplexity_interval"):
        assert_same_bits(statistic(apart, figure), statistic(tokens, figure), figure)
    np.testing.assert_allclose(apart.sequence_loss.stderr, tokens.loss.stderr, rtol=1e-15)
    assert (apart.n_sequences, apart.is_clustered) == (50, True)
    assert (tokens.n_sequences, tokens.is_clustered) == (0, False)
    assert math.isnan(tokens.sequence_loss)
    assert math.isnan(tokens.sequence_loss.stderr)


def test_empty_sequences_are_left_out_with_their_bytes():
    meter = meter_of([1.0, 2.0], [], [4.0], [], n_bytes=[1, 20, 3, 40], n_words=[1, 30, 1, 50])
    assert_same_meters(meter, meter_of([1.0, 2.0], [4.0], n_bytes=[1, 3], n_words=1))
    assert (meter.n_sequences, meter.n_bytes, meter.n_words) == (2, 4, 2)
    assert meter_of([], [], n_bytes=5, n_words=2) == LossMeter()
    masked = LossMeter()
    masked.update(sequence_losses([[1.0, 2.0], [NAN, INF]], where=[[True, True], [False, False]]))
    assert_same_meters(masked, meter_of([1.0, 2.0]))


def test_equal_sequences_have_no_error():
    meter = meter_of(*[[0.1, 0.7]] * 5, n_bytes=3, n_words=1)
    assert meter.loss.stderr == meter.bits_per_byte.stderr == meter.sequence_loss.stderr == 0.0
    assert meter.word_perplexity.interval == (meter.word_perplexity,) * 2


def test_figures_of_an_empty_meter():
    assert (LossMeter().n_sequences, LossMeter().is_clustered) == (0, False)
    figures = [statistic(LossMeter(), figure) for figure in FIGURES[7:]]
    assert np.isnan(np.hstack(figures)).all()


# bytes and words


def test_bytes_that_are_known_as_a_total_are_proportional_to_tokens():
    sequences = [1.0, 2.0, 3.0], [6.0]
    plain, total = meter_of(*sequences), LossMeter()
    total.update(sequence_losses([1.0, 2.0, 3.0, 6.0], cu_seqlens=[0, 3, 4]), n_bytes=8, n_words=2)
    assert (total.n_bytes, total.n_words, total.loss.stderr) == (8, 2, plain.loss.stderr)
    assert total.bits_per_byte.stderr == pytest.approx(1.5 * 4 / 8 / LN2, rel=1e-15)
    low = math.exp(ends_above_0(6, 3 * factor_of_two(3, 1))[0])
    assert total.word_perplexity.interval == (pytest.approx(low, rel=1e-10), math.inf)
    assert math.isnan(plain.bits_per_byte.stderr)
    assert all(map(math.isnan, plain.word_perplexity.interval))
    for rest in (plain, loose([4.0, 5.0])):  # tokens without bytes must not count as tokens of the others' text
        both = meter_of(*sequences, n_bytes=[2, 4], n_words=[1, 1]) + rest
        assert (both.n_bytes, both.n_words) == (6, 2)
        figures = both.bits_per_byte, both.bits_per_byte.stderr, both.word_perplexity, *both.word_perplexity.interval
        assert all(map(math.isnan, figures))
    for rest in (total, loose([4.0, 5.0], n_bytes=7)):
        both = meter_of(*sequences, n_bytes=[2, 4]) + rest  # of some groups the bytes are known as a total alone
        assert both.is_clustered
        expected = both.loss.stderr * both.count / both.n_bytes / LN2
        assert both.bits_per_byte.stderr == pytest.approx(expected, rel=1e-15)
    tokens = loose([1.0, 2.0, 6.0], n_bytes=5)
    assert tokens.bits_per_byte.stderr == pytest.approx(tokens.loss.stderr * 3 / 5 / LN2, rel=1e-15)


def test_n_bytes_and_n_words_that_are_unknown_of_some_stay_unknown(rng):
    """Whatever comes before or later, in any order of merging."""
    unknown = [meter_of([1.0, 2.0], [3.0]), loose([1.0, 1.0])]
    known = [meter_of([4.0], n_bytes=2, n_words=1), loose([1.0, 1.0], n_bytes=4, n_words=2),
             loose([], n_bytes=9, n_words=5), loose(sequence_losses([[1.0], [2.0]]), n_bytes=3, n_words=3)]  # fmt: skip
    for kept in (known[0], known[1], known[3]):
        for missing in unknown:
            both = missing + kept
            for part in rng.permutation(np.array([*known, *unknown])):
                both = both + part if rng.random() < 0.5 else part + both
                both = pickle.loads(pickle.dumps(both))  # noqa: S301 - our own
                both = LossMeter._from_json(json.loads(json.dumps(both._to_json())))
                figures = both.bits_per_byte, both.bits_per_byte.stderr, both.word_perplexity
                assert np.isnan([*figures, *both.word_perplexity.interval]).all()
    assert sum(known, LossMeter()).bits_per_byte == pytest.approx(9 / 18 / LN2, rel=1e-15)
    of_all = sum(unknown, LossMeter())
    of_all.update([], n_bytes=16)  # the text of all tokens
    assert of_all.bits_per_byte == pytest.approx(8 / 16 / LN2, rel=1e-15)


@pytest.mark.parametrize("name", ["_with_bytes", "_with_words"])
@pytest.mark.parametrize("count", [-1, 0, 3])
def test_state_with_a_wrong_number_of_known_texts_is_refused(name, count):
    state = meter_of([1.0, 2.0], [6.0], n_bytes=2, n_words=1)._to_json()
    with pytest.raises(ValueError, match="no losses have these sums"):
        LossMeter._from_json(state | {name: hex(count)})


def test_bytes_of_sequences_without_any():
    meter = meter_of([1.0, 2.0], [6.0], n_bytes=[0, 3])
    assert meter.bits_per_byte == pytest.approx(3 / LN2, rel=1e-15)
    assert meter.bits_per_byte.stderr == pytest.approx(math.sqrt(2 * (9 + 9)) / 3 / LN2, rel=1e-15)
    assert math.isnan(meter_of([1.0, 2.0], [6.0], n_bytes=0).bits_per_byte.stderr)


def test_words_as_a_total_of_sequences_with_bytes():
    meter, expected = LossMeter(), meter_of([1.0, 2.0], [3.0, 5.0], n_bytes=[3, 4])
    meter.update(sequence_losses([[1.0, 2.0], [3.0, 5.0]], n_bytes=[3, 4]), n_bytes=0, n_words=6)
    assert (meter.n_bytes, meter.n_words) == (7, 6)
    assert meter.bits_per_byte.stderr == expected.bits_per_byte.stderr


def test_bytes_beyond_those_of_the_sequences_are_of_no_sequence():
    meter = meter_of([1.0, 2.0], [3.0, 5.0], n_bytes=[4, 8])
    meter.update([], n_bytes=3)  # of a text without tokens
    assert meter.bits_per_byte == pytest.approx(11 / 15 / LN2, rel=1e-15)
    assert meter.bits_per_byte.stderr == pytest.approx(meter.loss.stderr * 4 / 15 / LN2, rel=1e-15)


# against rational numbers


def random_meters(rng, weighted=False, with_loose=True, lengths=True, size=1.0):
    meter, expected = LossMeter(), Meter()
    parts = [size * rng.exponential(3, rng.integers(0, 9)) for _ in range(rng.integers(1, 12))]
    weights = [rng.choice([0.0, 0.3, 1.0, 2.5], len(part)) for part in parts]
    texts = rng.integers(1, 90, (2, len(parts))).tolist()
    known = {"n_bytes": texts[0], "n_words": texts[1]} if lengths else {}
    chosen = {"sample_weight": np.concatenate(weights)} if weighted else {}
    offsets = np.cumsum([0, *map(len, parts)])
    meter.update(sequence_losses(np.concatenate(parts), cu_seqlens=offsets, **chosen, **known))
    for part, weight, *lengths_of_text in zip(parts, weights, *(texts if lengths else ()), strict=True):
        expected.add_sequence(part.tolist(), weight.tolist() if weighted else None, *lengths_of_text)
    if with_loose:
        losses, weight = size * rng.exponential(3, 5), rng.random(5)
        meter.update(losses, n_bytes=17, n_words=4, sample_weight=weight if weighted else None)
        expected.add_tokens(losses.tolist(), weight.tolist() if weighted else None, 17, 4)
    return meter, expected


@pytest.mark.parametrize("with_loose", [False, True])
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("size", [1e-150, 1.0, 1e150])
def test_figures_equal_those_of_rational_numbers(with_loose, lengths, size, rng):
    for _ in range(15):
        meter, expected = random_meters(rng, with_loose=with_loose, lengths=lengths, size=size)
        if size == 1.0:
            assert_equals_reference(meter, expected)
        else:
            for figure in ("total", "loss", "stderr", "bits_per_byte_stderr", "sequence_loss", "sequence_loss_stderr"):
                actual, exact = statistic(meter, figure), statistic(expected, figure)
                np.testing.assert_allclose(actual, exact, rtol=2e-15, atol=0, err_msg=figure)


@pytest.mark.parametrize("with_loose", [False, True])
def test_sample_weight_of_sequences_and_loose_tokens(with_loose, rng):
    for _ in range(30):
        meter, expected = random_meters(rng, weighted=True, with_loose=with_loose)
        assert_equals_reference(meter, expected, rtol=2e-15)


def test_error_of_sequences_that_hardly_differ(rng):
    parts = [(1e8 + rng.random(3)).tolist() for _ in range(20)]  # where a naive variance loses all digits
    expected = Meter()
    for part in parts:
        expected.add_sequence(part)
    assert meter_of(*parts).loss.stderr == pytest.approx(expected.stderr, rel=1e-15)


def test_sample_weight_by_hand():
    meter = LossMeter()
    meter.update([1.0, NAN, 4.0], sample_weight=[1, 0, 0.5], n_bytes=3)
    assert (meter.count, meter.total, meter.loss) == (2, 3.0, 2.0)
    # 1 - 2 and 0.5 * (4 - 2)
    assert meter.loss.stderr == pytest.approx(math.sqrt(2 * (1 + 1)) / 1.5, rel=1e-15)
    assert meter.bits_per_byte == pytest.approx(1 / LN2, rel=1e-15)
    meter.update(sequence_losses([[2.0, 4.0]], sample_weight=[[0.25, 0.25]]))
    assert (meter.count, meter.n_sequences, meter.total, meter.loss) == (4, 1, 4.5, 2.25)
    # 1 - 2.25, 2 - 0.5 * 2.25, 1.5 - 0.5 * 2.25
    assert meter.loss.stderr == pytest.approx(math.sqrt(1.5 * (1.25**2 + 0.875**2 + 0.375**2)) / 2, rel=1e-15)
    assert meter.sequence_loss == 3.0
    alone = LossMeter()
    alone.update(sequence_losses([1.0, NAN, 4.0], sample_weight=[1, 0, 0.5]))
    assert alone.loss.stderr == pytest.approx(math.sqrt(2 * (1 + 1)) / 1.5, rel=1e-15)
    assert not alone.is_clustered


def test_sample_weight_of_ones_and_of_a_mask(rng):
    losses, where = rng.exponential(3, (7, 9)), rng.random((7, 9)) > 0.4
    pairs = [
        (loose(losses), loose(losses, sample_weight=1)),
        (loose(losses, where=where), loose(losses, sample_weight=where.astype(float))),
        (loose(losses, where=where), loose(losses, sample_weight=1, where=where)),
        (loose(sequence_losses(losses)), loose(sequence_losses(losses, sample_weight=1))),
        (loose(sequence_losses(losses, where=where)), loose(sequence_losses(losses, sample_weight=where))),
    ]
    for plain, weighted in pairs:
        for figure in FIGURES:
            assert_same_bits(statistic(plain, figure), statistic(weighted, figure), figure)


@pytest.mark.parametrize("weight", [1e-300, 1e-160, 1e100])
def test_sample_weight_of_any_size(weight):
    for nll in ([[1.0, 2.0], [3.0, 2.0]], sequence_losses([[1.0, 2.0], [3.0, 2.0]], sample_weight=weight)):
        meter = loose(nll, **{} if isinstance(nll, SequenceLosses) else {"sample_weight": weight})
        assert meter.loss == pytest.approx(2.0, rel=4e-16)
        error = 0.5 if meter.n_sequences else math.sqrt(1 / 6)
        assert meter.loss.stderr == pytest.approx(error, rel=4e-16)


def test_sample_weight_and_where_of_token_scores():
    scores, meter = (
        scores_of([[1.0, 2.0, NAN], [4.0, 8.0, 16.0]], kept=[[True, True, False], [True, True, True]]),
        LossMeter(),
    )
    meter.update(scores, where=[True, False, True], sample_weight=[[1], [0.5]])
    assert_same_meters(meter, loose([1.0, 4.0, 16.0], sample_weight=[1, 0.5, 0.5]))


@given(
    st.lists(st.lists(st.floats(0, 1e6), max_size=6), min_size=1, max_size=6), st.lists(st.floats(0, 1e6), max_size=4)
)
def test_figures_of_any_losses_equal_the_oracle(sequences, others):
    meter, expected = meter_of(*sequences), Meter()
    meter.update(others)
    for part in sequences:
        expected.add_sequence(part)
    expected.add_tokens(others)
    assert_same_bits(meter.total, expected.total)
    for figure in ("stderr", "sequence_loss", "sequence_loss_stderr"):
        actual, exact = statistic(meter, figure), statistic(expected, figure)
        np.testing.assert_allclose(actual, exact, rtol=1e-15, atol=5e-324, err_msg=figure)


# merging


@pytest.mark.usefixtures("any_loss_is_taken")
@pytest.mark.parametrize("weighted", [False, True])
def test_merging_in_any_order_gives_the_same_bits(weighted, rng):
    parts = [random_meters(rng, weighted, with_loose=k % 2 == 0, lengths=k % 3 > 0)[0] for k in range(12)]
    parts += [meter_of([1e300, 1.0, -1e300]), meter_of([5e-324], [1e-310, 2.0]), LossMeter()]
    expected = sum(parts, LossMeter())
    for _ in range(5):
        left = [parts[k] for k in rng.permutation(len(parts))]
        while len(left) > 1:
            first, second = (left.pop(int(rng.integers(len(left)))) for _ in range(2))
            left.append(first + second)
        assert_same_meters(left[0], expected)
    into = LossMeter()
    for part in reversed(parts):
        into.merge(part)
    assert_same_meters(into, expected)


def test_merging_changes_one_meter_and_plus_none():
    first, second = meter_of([1.0, 2.0], n_bytes=3), meter_of([4.0], [5.0, 6.0], n_words=2)
    both = first + second
    assert_same_meters(first, meter_of([1.0, 2.0], n_bytes=3))
    assert_same_meters(second, meter_of([4.0], [5.0, 6.0], n_words=2))
    first.merge(second)
    assert_same_meters(first, both)
    twice = both + both
    assert (twice.count, twice.n_sequences, twice.loss) == (10, 6, both.loss)


def test_equality():
    meter = meter_of([1.0, 2.0], [4.0, 6.0])
    assert meter == meter_of([4.0, 6.0], [1.0, 2.0])
    assert meter != meter_of([1.0, 4.0], [2.0, 6.0])  # the same tokens in other sequences
    assert meter != meter_of([1.0, 2.0, 4.0, 6.0])
    assert meter != loose([1.0, 2.0, 4.0, 6.0])
    assert meter != meter_of([1.0, 2.0], [4.0, 6.0], n_bytes=1)
    assert meter != meter_of([1.0, 2.0], [4.0, 6.0], n_words=1)


@pytest.mark.parametrize("kind", ["plain", "weighted", "loose", "inf", "nan", "single", "weights alone"])
def test_pickle_copy_and_json_round_trip(kind, rng):
    meter = {
        "plain": lambda: random_meters(rng, with_loose=False)[0],
        "weighted": lambda: random_meters(rng, weighted=True)[0],
        "loose": lambda: random_meters(rng)[0],
        "inf": lambda: meter_of([INF, 1.0], [2.0], n_bytes=3),
        "nan": lambda: meter_of([NAN, 1.0], [2.0], n_words=[1, 2]),
        "single": lambda: meter_of([1.0, 2.0, 1e-310]),
        "weights alone": lambda: loose(rng.random(5), sample_weight=rng.random(5)),
    }[kind]()
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert_same_meters(pickle.loads(pickle.dumps(meter, protocol)), meter)  # noqa: S301 - our own
    assert_same_meters(LossMeter._from_json(json.loads(json.dumps(meter._to_json(), allow_nan=False))), meter)
    for duplicate in (copy.copy(meter), copy.deepcopy(meter)):
        assert_same_meters(duplicate, meter)
        duplicate.update(sequence_losses([0.5, 0.25]))
        assert duplicate != meter


def test_state_does_not_grow_with_the_number_of_sequences(rng):
    meters = [meter_of(*rng.exponential(3, (n, 4)), n_bytes=3) for n in (10, 10_000)]
    sizes = [len(json.dumps(meter._to_json())) for meter in meters]
    assert sizes[1] < 1.2 * sizes[0]
    assert len(pickle.dumps(meters[1])) < 1500


@pytest.mark.usefixtures("any_loss_is_taken")
@pytest.mark.parametrize("special", [INF, -INF, NAN])
def test_losses_that_are_not_finite(special):
    meter = meter_of([special, 1.0], [2.0, 3.0], n_bytes=2, n_words=2)
    assert (meter.count, meter.n_sequences, meter.is_clustered) == (4, 2, True)
    assert_same_bits([meter.total, meter.loss, meter.sequence_loss], [special] * 3)
    for figure in ("stderr", "bits_per_byte_stderr", "sequence_loss_stderr"):
        assert math.isnan(statistic(meter, figure)), figure
    repr(meter)
