"""sequence_losses: exact sums of each sequence, however its tokens are padded, packed, weighted or masked."""

import dataclasses
import itertools
import math
import pickle

import numpy as np
import pytest
from arrays import FLOATS, INTEGERS, LAYOUTS, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import statistic
from reference_sequences import FIGURES, expected_losses, scores_of

from tokenloss import LossMeter, compare, compare_files, draft_acceptance, evaluate, sequence_losses, token_scores
from tokenloss.results import SequenceLosses

INF, NAN = math.inf, math.nan
LN2 = math.log(2)


def assert_equals_reference(nll, **options):
    actual, expected = sequence_losses(nll, **options), expected_losses(nll, **options)
    assert type(actual) is SequenceLosses
    for name in ("sequence", "count"):
        values = getattr(actual, name)
        assert values.dtype == np.int64, name
        np.testing.assert_array_equal(values, getattr(expected, name), err_msg=name, strict=True)
    for name in ("nll", "sample_weight", "loss"):
        values, exact = getattr(actual, name), getattr(expected, name)
        assert (values is None) == (exact is None), name
        if exact is not None:
            assert np.shape(values) == np.shape(exact), name
            assert np.asarray(values).dtype == np.float64, name
            assert_same_bits(values, exact, name)
    return actual


def assert_same_sequences(actual, expected):
    """The same fields, of whatever shape."""
    left, right = actual.columns(), expected.columns()
    assert list(left) == list(right)
    for name, values in left.items():
        assert_same_bits(values, right[name], name)


# by hand


def test_rows_by_hand():
    nll = [[1.0, 2.0, 4.0], [0.5, 9.0, 9.0], [9.0, 9.0, 9.0]]
    where = [[True, True, True], [True, False, False], [False, False, False]]
    result = sequence_losses(nll, where=where, n_bytes=[7, 2, 5], n_words=[3, 1, 0])
    assert result.sequence.tolist() == [0, 1, 2]
    assert result.count.tolist() == [3, 1, 0]
    assert result.nll.tolist() == [7.0, 0.5, 0.0]
    assert result.n_bytes.tolist() == [7, 2, 5]
    assert result.n_words.tolist() == [3, 1, 0]
    assert result.n_bytes.dtype == result.n_words.dtype == np.int64
    assert result.sample_weight is result.is_greedy is None
    np.testing.assert_allclose(result.loss, [7 / 3, 0.5, NAN], rtol=1e-15)
    np.testing.assert_allclose(result.perplexity, [math.exp(7 / 3), math.exp(0.5), NAN], rtol=1e-15)
    np.testing.assert_allclose(result.bits_per_byte[:2], [1 / LN2, 0.25 / LN2], rtol=1e-15)


def test_segment_ids_by_hand():
    result = sequence_losses([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], segment_ids=[7, 3, -1, 7, 5, 3])
    assert result.sequence.tolist() == [3, 5, 7]
    assert result.count.tolist() == [2, 1, 2]
    assert result.nll.tolist() == [34.0, 16.0, 9.0]
    assert result.bits_per_byte is result.n_bytes is result.n_words is None


def test_segment_ids_of_masked_tokens_have_count_0():
    where = [True, False, False, True]
    result = sequence_losses([1.0, NAN, INF, 3.0], where=where, segment_ids=[4, 2, 2, 4])
    assert result.sequence.tolist() == [2, 4]
    assert result.count.tolist() == [0, 2]
    assert_same_bits(result.nll, [0.0, 4.0])
    assert_same_bits(result.loss, [NAN, 2.0])
    assert_same_bits(result.perplexity, [NAN, math.exp(2.0)])


def test_cu_seqlens_by_hand():
    result = sequence_losses([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], cu_seqlens=[0, 0, 4, 4, 6, 6])
    assert result.sequence.tolist() == [0, 1, 2, 3, 4]
    assert result.count.tolist() == [0, 4, 0, 2, 0]
    assert result.nll.tolist() == [0.0, 15.0, 0.0, 48.0, 0.0]
    assert_same_bits(result.loss, [NAN, 3.75, NAN, 24.0, NAN])


def test_sample_weight_by_hand():
    result = sequence_losses([[1.0, 2.0, 4.0], [3.0, NAN, 5.0]], sample_weight=[[1, 0.5, 0], [0.25, 0, 0.25]])
    assert result.count.tolist() == [2, 2]
    assert result.nll.tolist() == [2.0, 2.0]
    assert result.sample_weight.tolist() == [1.5, 0.5]
    assert result.loss.tolist() == [2 / 1.5, 4.0]


def test_is_greedy_by_hand():
    greedy = [[True, True, True], [True, False, True], [True, True, False], [True, True, True]]
    kept = [[True, True, True], [True, True, True], [True, True, False], [False, False, False]]
    result = sequence_losses(scores_of(np.ones((4, 3)), kept, greedy))
    assert result.is_greedy.dtype == bool
    assert result.is_greedy.tolist() == [True, False, True, False]
    assert result.count.tolist() == [3, 3, 2, 0]
    where = [[True, True, True], [True, False, True], [False, True, True], [True, True, True]]
    for narrowed in ({"where": where}, {"sample_weight": np.where(where, 0.5, 0)}):
        result = sequence_losses(scores_of(np.ones((4, 3)), kept, greedy), **narrowed)
        assert result.is_greedy.tolist() == [True, True, True, False]
        assert result.count.tolist() == [3, 2, 1, 0]


def test_single_sequence():
    result = sequence_losses([1.0, 2.0], n_bytes=3, n_words=1)
    assert result.sequence.shape == result.count.shape == result.nll.shape == result.n_bytes.shape == ()
    assert np.shape(result.loss) == np.shape(result.perplexity) == np.shape(result.bits_per_byte) == ()
    columns = {name: result.columns()[name].tolist() for name in ("sequence", "count", "nll", "loss")}
    assert columns == {"sequence": [0], "count": [2], "nll": [3.0], "loss": [1.5]}


# against exact sums


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(7,), (4, 9), (2, 3, 5), (2, 1, 2, 3)], ids=str)
def test_rows_of_every_dtype_and_shape(dtype, shape, rng):
    nll = rng.exponential(3, shape).astype(dtype)
    assert_equals_reference(nll)
    assert_equals_reference(nll, where=rng.random(shape) > 0.4)
    assert_equals_reference(nll, where=rng.random(shape[-1]) > 0.4, sample_weight=rng.random((*shape[:-1], 1)))
    ends = np.arange(shape[-1]) < rng.integers(0, shape[-1] + 1, (*shape[:-1], 1))
    assert_equals_reference(np.where(ends, nll, np.asarray(NAN, dtype)), where=ends)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_memory_layout(layout, dtype, rng):
    change, nll = LAYOUTS[layout], rng.exponential(3, (3, 4, 5)).astype(dtype)
    ids, where, weights = (
        rng.integers(-1, 6, nll.shape),
        rng.random(nll.shape) > 0.3,
        rng.random(nll.shape).astype(dtype),
    )
    offsets = np.array([0, 11, 11, 37, 60])
    for options in ({}, {"segment_ids": ids}, {"cu_seqlens": offsets}):
        expected = sequence_losses(nll, where=where, sample_weight=weights, **options)
        changed = {name: change(values) for name, values in options.items()}
        actual = sequence_losses(change(nll), where=change(where), sample_weight=change(weights), **changed)
        assert_same_sequences(actual, expected)
        assert_equals_reference(nll, where=where, sample_weight=weights, **options)


def test_integer_losses_and_lists(rng):
    for dtype in INTEGERS:
        assert_equals_reference(rng.integers(0, 60, (3, 4)).astype(dtype))
    assert sequence_losses([[1, 2], [3, 4]]).nll.tolist() == [3.0, 7.0]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_segment_ids_of_every_dtype(dtype, rng):
    nll, where = rng.exponential(3, (5, 30)), rng.random((5, 30)) > 0.2
    ids = rng.integers(0, 9, nll.shape).astype(dtype)
    if dtype.kind == "i":
        ids[ids == 4] = np.iinfo(dtype).min
        ids[0, :3] = -1
    ids[2, 5:9] = min(np.iinfo(dtype).max, 2**63 - 1)
    assert_equals_reference(nll, segment_ids=ids, where=where)
    assert_equals_reference(nll, segment_ids=ids[0])
    assert_equals_reference(nll, segment_ids=ids[:, :1], sample_weight=rng.random(30))


def test_segment_ids_far_apart(rng):
    ids = np.array([2**31, 2**31 + 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63 - 2, 0, -(2**63), 2**31])
    order = rng.permutation(np.tile(np.arange(9), 20))
    result = assert_equals_reference(rng.random(180), segment_ids=ids[order])
    assert result.sequence.tolist() == [0, 2**31, 2**31 + 1, 2**53, 2**53 + 1, 2**63 - 2, 2**63 - 1]
    positive = np.delete(ids, 7).astype(np.uint64)
    assert_equals_reference(rng.random(8), segment_ids=positive)


def test_segment_ids_that_are_all_negative():
    result = sequence_losses([1.0, 2.0], segment_ids=[-1, -7])
    assert result.sequence.shape == result.nll.shape == result.loss.shape == (0,)
    assert LossMeter() == meter_of(result)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_cu_seqlens_of_every_dtype(dtype, rng):
    nll = rng.exponential(3, (4, 25))
    offsets = np.array([0, 0, 3, 50, 51, 51, 100], dtype)
    assert_equals_reference(nll, cu_seqlens=offsets)
    assert_equals_reference(nll, cu_seqlens=offsets, where=rng.random(25) > 0.5, sample_weight=rng.random(nll.shape))


@pytest.mark.slow
def test_many_tokens(rng):
    nll = rng.exponential(3, 45_000)
    ids, offsets = rng.integers(-1, 700, nll.size), np.sort(rng.integers(0, nll.size + 1, 300))
    offsets[[0, -1]] = 0, nll.size
    options = {"where": rng.random(nll.size) > 0.3, "sample_weight": rng.random(nll.size)}
    for each in ({}, {"where": options["where"]}, options):
        assert_equals_reference(nll, segment_ids=ids, **each)
        assert_equals_reference(nll, cu_seqlens=offsets, **each)
        assert_equals_reference(nll, **each)
        assert_equals_reference(nll.reshape(-1, 3), **{name: a.reshape(-1, 3) for name, a in each.items()})
    assert_same_bits(meter_of(sequence_losses(nll)).loss.stderr, meter_of(nll).loss.stderr)
    assert_same_bits(meter_of(sequence_losses(nll.reshape(-1, 3))).total, math.fsum(nll))


@pytest.mark.usefixtures("any_loss_is_taken")
@pytest.mark.parametrize(
    "part",
    [
        [1e308, 1e308, -1e308], [1e308, 1e308], [-1e308] * 3, [1e16, 1.0, -1e16], [5e-324] * 3, [1e308, 5e-324, -1e308],
        [0.1] * 10, [1e300, 1.0, 1e-300, -1e300], [INF, 1.0], [1.0, -INF], [INF, -INF], [NAN, 1.0], [INF, NAN],
        [2.0**-1074, 1.0],
    ],
    ids=str,
)  # fmt: skip
def test_sums_that_plain_addition_gets_wrong(part, rng, backend):
    nll = np.array([*part, 0.1, 0.2, 0.3])
    ids = np.array([5] * len(part) + [9] * 3)
    order = rng.permutation(nll.size)
    assert_equals_reference(nll[order], segment_ids=ids[order])
    result = assert_equals_reference(nll, cu_seqlens=[0, len(part), nll.size])
    assert result.nll[1] == 0.6  # whatever stands beside
    assert_equals_reference(np.array([part, part[::-1]]))


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0), (2, 0, 4)], ids=str)
def test_empty_arrays(shape):
    result = assert_equals_reference(np.zeros(shape))
    assert np.shape(result.loss) == (shape[:1] if len(shape) > 1 else ())
    assert np.isnan(result.loss).all()
    assert sequence_losses(np.zeros(shape), segment_ids=np.zeros(shape, int)).sequence.shape == (0,)
    assert sequence_losses(np.zeros(shape), cu_seqlens=[0, 0, 0]).count.tolist() == [0, 0]
    assert sequence_losses(np.zeros(shape), cu_seqlens=[0]).nll.shape == (0,)


def test_sample_weight_of_ones_and_of_a_mask(rng):
    nll, where = rng.exponential(3, (6, 8)), rng.random((6, 8)) > 0.4
    for options in ({}, {"segment_ids": rng.integers(-1, 4, nll.shape)}, {"cu_seqlens": [0, 5, 48]}):
        plain, ones = sequence_losses(nll, **options), sequence_losses(nll, sample_weight=1, **options)
        masked, weighted = (
            sequence_losses(nll, where=where, **options),
            sequence_losses(nll, sample_weight=where, **options),
        )
        for left, right in ((plain, ones), (masked, weighted)):
            for name in ("sequence", "count", "nll", "loss"):
                assert_same_bits(getattr(left, name), getattr(right, name), name)
            assert_same_bits(right.sample_weight, left.count)


def test_sample_weight_of_tokens_in_no_sequence_does_not_matter():
    meters = []
    for weight in (1.0, 1e50):
        meter = LossMeter()
        weights = [1.0, 2.0, weight, 3.0]
        meter.update(sequence_losses([1.0, 2.0, 3.0, 4.0], segment_ids=[0, 0, -1, 1], sample_weight=weights))
        meters.append(meter)
    assert meters[0] == meters[1]
    assert meters[0].interval_factor == meters[1].interval_factor


def test_token_scores(rng):
    logits, targets = rng.standard_normal((3, 20, 5)), rng.integers(0, 5, (3, 20))
    targets[rng.random(targets.shape) > 0.7] = -100
    scores, ids, where = token_scores(logits, targets), rng.integers(-1, 9, (3, 20)), rng.random(20) > 0.3
    for options in ({}, {"segment_ids": ids}, {"cu_seqlens": [0, 1, 33, 60]}):
        result = sequence_losses(scores, **options)
        assert_same_sums(result, sequence_losses(scores.nll, where=targets != -100, **options))
        hits = sequence_losses(scores.is_greedy.astype(float), where=scores.kept, **options).nll
        np.testing.assert_array_equal(result.is_greedy, (result.count > 0) & (hits == result.count), strict=True)
        narrowed = sequence_losses(scores, where=where, **options)
        expected = sequence_losses(scores.nll, where=where & (targets != -100), **options)
        assert_same_sums(narrowed, expected)


def assert_same_sums(actual, expected):
    for name in ("sequence", "count", "nll"):
        assert_same_bits(getattr(actual, name), getattr(expected, name), name)


def test_torch_tensors(rng):
    torch = pytest.importorskip("torch")
    nll, ids, where = rng.random((4, 6)), rng.integers(-1, 4, (4, 6)), rng.random((4, 6)) > 0.3
    result = sequence_losses(torch.tensor(nll), segment_ids=torch.tensor(ids), where=torch.tensor(where))
    assert_same_sequences(result, sequence_losses(nll, segment_ids=ids, where=where))
    offsets = torch.tensor([0, 5, 24], dtype=torch.int32)
    single = torch.tensor(nll, dtype=torch.bfloat16)
    expected = sequence_losses(single.double().numpy(), cu_seqlens=[0, 5, 24])
    assert_same_sequences(sequence_losses(single, cu_seqlens=offsets), expected)


# the same tokens, however they lie


def meter_of(*parts):
    meter = LossMeter()
    for part in parts:
        meter.update(part)
    return meter


any_loss = st.floats(0) | st.just(NAN) | st.floats(0, 30).map(lambda x: x + 0.0)
weights = st.sampled_from([0.0, 0.25, 1.0, 3.0]) | st.floats(1e-3, 1e3)
tokens_of_sequences = st.lists(st.lists(st.tuples(any_loss, weights), max_size=6), min_size=1, max_size=7)


@given(tokens_of_sequences, st.booleans(), st.randoms(use_true_random=False), st.data())
@settings(max_examples=100)
def test_padding_packing_order_and_batches_change_no_bit(tokens, is_weighted, random, data):
    number, longest, n_bytes = len(tokens), max(map(len, tokens)), np.array([3 * len(part) + 1 for part in tokens])

    def score(nll, weight, **options):
        chosen = {"sample_weight": np.array(weight, float)} if is_weighted else {}
        return assert_equals_reference(np.array(nll, float), **chosen, **options)

    flat = [(x, w, True, k) for k, part in enumerate(tokens) for x, w in part]
    losses, weight = [token[0] for token in flat], [token[1] for token in flat]
    expected = score(losses, weight, cu_seqlens=np.cumsum([0, *map(len, tokens)]))

    flat += [(NAN, 1.0, False, k) for k in range(number)]  # so that each id is there
    random.shuffle(flat)
    losses, weight, where, owners = zip(*flat, strict=True)
    packed = score(losses, weight, where=np.array(where), segment_ids=2**40 + 3 * np.array(owners))

    padded, padding = np.full((number, longest + 2), NAN), np.ones((number, longest + 2))
    where = np.zeros(padded.shape, bool)
    for k, part in enumerate(tokens):
        for j, token in enumerate(part, data.draw(st.integers(0, longest + 2 - len(part)))):
            (padded[k, j], padding[k, j]), where[k, j] = token, True
    rows = score(padded, padding, where=where)
    for other in (packed, rows):
        for name in ("count", "nll", "sample_weight", "loss", "perplexity")[: 5 if is_weighted else 2]:
            assert_same_bits(getattr(other, name), getattr(expected, name), name)

    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, number), max_size=3))), number]
    batches = [slice(*pair) for pair in itertools.pairwise(cuts)]
    random.shuffle(batches)
    chosen = [{"sample_weight": padding[part]} if is_weighted else {} for part in batches]
    parts = [
        sequence_losses(padded[part], where=where[part], n_bytes=n_bytes[part], **weight)
        for part, weight in zip(batches, chosen, strict=True)
    ]
    meter = LossMeter()
    meter.update(dataclasses.replace(packed, n_bytes=n_bytes))
    for whole in (meter_of(*parts), sum(map(meter_of, parts), LossMeter())):
        assert whole == meter
        for figure in FIGURES:
            assert_same_bits(statistic(whole, figure), statistic(meter, figure), figure)


# the result


def test_columns(rng):
    nll, lengths = rng.exponential(3, (6, 4)), rng.integers(1, 50, 6)
    result = sequence_losses(scores_of(nll), sample_weight=0.5, n_bytes=lengths, n_words=[7] * 6)
    columns = result.columns()
    assert {"sequence", "count", "nll", "sample_weight", "n_bytes", "n_words", "is_greedy"} <= columns.keys()
    for name, values in columns.items():
        assert values.shape == (6,), name
        assert_same_bits(values, np.ravel(getattr(result, name)), name)
    assert columns["n_words"].tolist() == [7] * 6
    assert columns["sample_weight"].tolist() == [2.0] * 6
    columns = sequence_losses(nll).columns()
    assert not {"sample_weight", "n_bytes", "n_words", "is_greedy"} & columns.keys()
    assert all(values is not None for values in columns.values())


def test_pickle(rng):
    result = sequence_losses(scores_of(rng.exponential(3, (3, 4))), n_bytes=[9, 9, 9])
    again = pickle.loads(pickle.dumps(result))  # noqa: S301 - our own
    assert_same_sequences(again, result)
    assert meter_of(again) == meter_of(result)


def test_result_is_apart_from_the_arguments(rng):
    arrays = {"nll": rng.random((3, 4)), "where": rng.random((3, 4)) > 0.5, "segment_ids": rng.integers(0, 3, (3, 4))}
    arrays |= {"sample_weight": rng.random((3, 4)), "n_bytes": np.array([1, 2, 3])}
    before = {name: values.copy() for name, values in arrays.items()}
    result = sequence_losses(**arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, before[name], err_msg=name)
        values[:] = 0
    assert_same_sequences(result, sequence_losses(**before))
    assert meter_of(result) == meter_of(sequence_losses(**before))


def test_each_image_is_a_sequence_and_not_each_row_of_its_pixels(rng, tmp_path):
    """By the first axis of the batch, in every function."""
    logits, targets = rng.normal(size=(5, 3, 4, 6)), rng.integers(6, size=(5, 3, 4))
    numbers = np.arange(5)[:, None, None]
    scores = token_scores(logits, targets)
    plain, given = sequence_losses(scores), sequence_losses(scores, segment_ids=numbers)
    assert plain.nll.shape == (5,)
    assert_same_bits(plain.nll, given.nll)
    assert plain.count.tolist() == [12] * 5
    meter = meter_of(plain)
    np.savez(tmp_path / "a.npz", logits=logits, targets=targets)
    np.savez(tmp_path / "b.npz", logits=logits + rng.normal(size=logits.shape))
    for result in (evaluate(tmp_path / "a.npz"), evaluate([(logits, targets)])):
        assert (result.loss, result.loss.stderr, result.n_sequences) == (meter.loss, meter.loss.stderr, 5)
        assert_same_bits(result.sequences["nll"], plain.nll)
    other = np.load(tmp_path / "b.npz")["logits"]
    of_files = compare_files(tmp_path / "a.npz", {"b": tmp_path / "b.npz"})["b"]
    of_arrays = compare(logits, other, targets, segment_ids=numbers)
    assert of_files.mean_kl.stderr == of_arrays.mean_kl.stderr
    assert of_files.signature == of_arrays.signature
    drafts = draft_acceptance(logits, other), draft_acceptance(logits, other, segment_ids=numbers)
    assert [one.n_sequences for one in drafts] == [5, 5]
    for table in (scores.columns(), compare(logits, other, targets).columns(), of_arrays.columns()):
        assert table["sequence"].tolist() == np.repeat(range(5), 12).tolist()
        assert table["position"].tolist() == [*range(12)] * 5


def test_n_bytes_and_n_words_are_broadcast():
    nll = np.ones((2, 3, 4))
    result = sequence_losses(nll, n_bytes=[1, 2], n_words=np.uint8([5, 6]))
    assert result.n_bytes.tolist() == [1, 2]
    assert result.n_words.tolist() == [5, 6]
    assert sequence_losses(nll[:1], n_bytes=7, n_words=[2]).n_bytes.tolist() == [7]
    assert sequence_losses(nll, segment_ids=np.arange(2).reshape(2, 1, 1), n_bytes=[7, 2**40]).n_bytes.tolist() == [
        7,
        2**40,
    ]
    assert sequence_losses(nll, cu_seqlens=[0, 20, 24], n_words=[3, 0]).n_words.tolist() == [3, 0]


def test_overflow_and_no_bytes_raise_no_warning():
    result = sequence_losses([[1e308, 1e308], [800.0, 900.0], [1e308, 5e307]], n_bytes=[1, 0, 1])
    assert_same_bits(result.nll, [INF, 1700.0, 1.5e308])
    assert_same_bits(result.perplexity, [INF] * 3)
    assert not np.isfinite(result.bits_per_byte).any()
    assert meter_of(result).n_sequences == 3
