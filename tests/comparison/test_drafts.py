"""Draft models: acceptance, tokens of a call and speed-up, beside simulations of speculative decoding."""

import math

import numpy as np
import pytest
from scipy import stats

from tokenloss import draft_acceptance
from tokenloss._comparison.drafts import acceptance_of


def softmax(logits, temperature=1.0):
    logits = np.asarray(logits, np.float64) / temperature
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def accepted(p, q):
    """The probability that a drafted token is accepted, of distributions whose last classes one of them may lack."""
    common = min(p.shape[-1], q.shape[-1])
    return np.minimum(p[..., :common], q[..., :common]).sum(-1)


def passages(n_texts, length, seed=0):
    """Logits of a target and of a draft, which is near to it in easy passages and far in hard ones, by turns."""
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(n_texts, length, 6))
    is_hard = np.cumsum(rng.random((n_texts, length)) < 0.1, -1) % 2 == 1
    return target, target + np.where(is_hard, 4.0, 0.2)[..., None] * rng.normal(size=target.shape)


def decoded(p, q, k, copies, rng):
    """Speculative decoding of one text, many times: tokens and calls of each copy, tested and accepted drafts, tokens.

    The tokens are those that are emitted at each position, -1 where none is. A call begins where k positions are left.
    """
    length, classes = p.shape
    at, tokens, calls = (np.zeros(copies, int) for _ in range(3))
    tested, accepts = np.zeros(length), np.zeros(length)
    emitted = np.full((copies, length), -1)
    sample = lambda rows: (rng.random((len(rows), 1)) > rows.cumsum(-1)).sum(-1).clip(max=classes - 1)  # noqa: E731
    while True:
        (running,) = np.nonzero(at + k <= length)
        if not running.size:
            return tokens, calls, tested, accepts, emitted
        calls[running] += 1
        for _ in range(k):
            here = at[running]
            drafted = sample(q[here])
            chosen = np.arange(here.size), drafted
            is_accepted = rng.random(here.size) < p[here][chosen] / q[here][chosen]
            np.add.at(tested, here, 1)
            np.add.at(accepts, here, is_accepted)
            left = np.maximum(p[here] - q[here], 0)
            replaced = sample(left / np.maximum(left.sum(-1, keepdims=True), 1e-300))
            emitted[running, here] = np.where(is_accepted, drafted, replaced)
            tokens[running] += 1
            at[running] += 1
            running = running[is_accepted]
        tokens[running] += 1  # of the target's own, after k accepted ones
        inside = running[at[running] < length]
        emitted[inside, at[inside]] = sample(p[at[inside]])
        at[running] += 1


def rate(tokens, calls):
    """Tokens of a call, and its error."""
    ratio = tokens.sum() / calls.sum()
    return ratio, math.sqrt(len(calls) / (len(calls) - 1) * ((tokens - ratio * calls) ** 2).sum()) / calls.sum()


@pytest.mark.parametrize("k", [1, 3, 8])
def test_speculators_741_products_of_mean_acceptances_are_not_what_calls_give(k):
    """Decoding agrees with ours; the product of mean acceptances, and the mean over all positions, are far off."""
    target, draft = passages(5, 120)
    p, q, rng = softmax(target), softmax(draft), np.random.default_rng(1)
    result = draft_acceptance(target, draft)
    runs = [decoded(*text, k, 400, rng) for text in zip(p, q, strict=True)]
    tokens, calls, tested, accepts = (np.concatenate([run[i] for run in runs]) for i in range(4))
    simulated, stderr = rate(tokens, calls)
    ours = result.by_k["tokens_per_call"][k - 1]
    assert abs(ours - simulated) < 4 * stderr
    spread = math.sqrt((tested * result.acceptance.ravel() * (1 - result.acceptance.ravel())).sum())
    assert abs(accepts.sum() - (tested * result.acceptance.ravel()).sum()) < 4 * spread
    assert abs(result.by_k["break_even_ratio"][k - 1] - (simulated - 1) / k) < 4 * stderr / k
    mean = result.acceptance.mean()
    independent = sum(mean**n for n in range(k + 1))
    assert result.by_k["independent_tokens"][k - 1] == pytest.approx(independent, rel=1e-12)
    assert result.mean_acceptance == pytest.approx(mean, rel=1e-14)
    everywhere = [
        1 + np.cumprod(row[t : t + k]).sum() for row in result.acceptance for t in range(row.size - k + 1)
    ]  # as if calls began at each position alike
    assert abs(independent - simulated) > 15 * stderr
    assert k == 1 or np.mean(everywhere) - simulated > 15 * stderr
    for text, run in zip(p, runs, strict=True):  # what is emitted is the target's
        counts = np.stack([(run[4] == token).sum(0) for token in range(6)], -1)
        n = counts.sum(-1, keepdims=True)
        distance = (counts - n * text)[: -k or None] / np.sqrt(n * text * (1 - text))[: -k or None]
        assert abs(distance).max() < 5
        assert 0.9 < distance.std() < 1.1


def expected_by_k(acceptance, kept, ids, k):
    """Tokens of a call, its error, the number of starts, and of texts that have any, with their positions."""
    numerators, denominators, n_starts, n_positions = {}, {}, 0, {}
    for number in dict.fromkeys(ids.tolist()):
        positions = [[i] for i in np.flatnonzero(ids == number)] if number < 0 else [np.flatnonzero(ids == number)]
        for place, text in enumerate(positions):
            key = number, place
            runs, run = [], []
            for i in text:
                run = [*run, acceptance[i]] if kept[i] else []
                if len(run) == 1:
                    runs.append(run)
                elif run:
                    runs[-1] = run
            for one in runs:
                begins = [1.0] + [0.0] * (len(one) + k)
                for t in range(len(one)):
                    if t + k > len(one):
                        break
                    probability = 1.0
                    for ahead in range(k):
                        begins[t + ahead + 1] += begins[t] * probability * (1 - one[t + ahead])
                        probability *= one[t + ahead]
                    begins[t + k + 1] += begins[t] * probability
                    tokens = 1 + sum(math.prod(one[t : t + n]) for n in range(1, k + 1))
                    numerators[key] = numerators.get(key, 0) + begins[t] * tokens
                    denominators[key] = denominators.get(key, 0) + begins[t]
                    n_starts += 1
                    n_positions[key] = int(kept[text].sum())
    y, x = (np.array([*sums.values()]) for sums in (numerators, denominators))
    if not y.size:
        return math.nan, math.nan, 0, 0, 0
    n, ratio = y.size, y.sum() / x.sum()
    stderr = math.sqrt(n / (n - 1) * ((y - ratio * x) ** 2).sum()) / x.sum() if n > 1 else math.nan
    return ratio, stderr, n_starts, n, sum(n_positions.values())


@pytest.mark.parametrize("seed", range(4))
def test_tokens_of_a_call_never_cross_the_end_of_a_text_or_a_masked_position(seed):
    rng = np.random.default_rng(seed)
    size = 60
    acceptance, kept = rng.random(size), rng.random(size) < (0.9 if seed else 2)
    ids = rng.integers(-1, 4, size) if seed % 2 else np.sort(rng.integers(0, 6, size))
    result = acceptance_of(np.where(kept, acceptance, np.nan), kept, ids, 1.0, 0.1)
    fair = []
    for k in range(1, 9):
        ratio, stderr, n_starts, n_texts, n_positions = expected_by_k(acceptance, kept, ids, k)
        fair += [k - 1] if n_positions >= 0.9 * kept.sum() else []
        row = {name: column[k - 1] for name, column in result.by_k.items()}
        assert row["k"] == k
        assert (row["n_starts"], row["n_texts"]) == (n_starts, n_texts)
        np.testing.assert_allclose([row["tokens_per_call"], row["tokens_per_call_stderr"]], [ratio, stderr], rtol=1e-9)
        np.testing.assert_allclose(row["speedup"], ratio / (1 + 0.1 * k), rtol=1e-9)
        np.testing.assert_allclose(row["speedup_stderr"], stderr / (1 + 0.1 * k), rtol=1e-9)
        np.testing.assert_allclose(row["break_even_ratio"], (ratio - 1) / k, rtol=1e-9)
    assert result.break_even_ratio == max(result.by_k["break_even_ratio"][fair])
    assert result.best_speedup == max(result.by_k["speedup"][fair]) == result.by_k["speedup"][result.best_k - 1]
    assert result.count == kept.sum()
    table = result.sequences
    for number, count, mean in zip(*(table[name] for name in ("sequence", "count", "acceptance")), strict=True):
        of_text = acceptance[kept & (ids == number)]
        assert (count, mean) == (of_text.size, pytest.approx(of_text.mean(), rel=1e-14))


def test_a_best_k_is_not_that_of_a_few_long_texts():
    rng = np.random.default_rng(0)
    lengths = np.array([6] * 50 + [40] * 10)
    easy = np.repeat(lengths == 40, lengths)
    acceptance = np.where(easy, 0.8, 0.4) + 0.01 * rng.random(lengths.sum())
    ids = np.repeat(np.arange(60), lengths)
    result = acceptance_of(acceptance, np.ones(ids.size, bool), ids, 1.0, 0.05)
    assert result.by_k["n_texts"].tolist() == [60] * 6 + [10] * 2
    assert result.best_k <= 6
    assert "of 10 of 60 texts only" in result.summary()


def test_mean_acceptance_has_an_error_by_text():
    rng = np.random.default_rng(3)
    lengths = rng.integers(5, 40, 30)
    ids = np.repeat(np.arange(30), lengths)
    acceptance = np.clip(rng.random(30)[ids] + 0.1 * rng.normal(size=ids.size), 0, 1)
    result = acceptance_of(acceptance, np.ones(ids.size, bool), ids, 1.0, None)
    sums, mean = np.bincount(ids, acceptance), acceptance.mean()
    stderr = math.sqrt(30 / 29 * ((sums - mean * lengths) ** 2).sum()) / ids.size
    assert result.mean_acceptance.stderr == pytest.approx(stderr, rel=1e-10)
    low, high = result.mean_acceptance.interval
    reach = result.interval_factor * stderr / (mean * (1 - mean))  # of the logit
    logits = np.log(mean / (1 - mean)) + np.array([-reach, reach])
    assert (low, high) == pytest.approx(1 / (1 + np.exp(-logits)))
    assert (result.n_sequences, result.is_clustered, result.best_k, result.cost_ratio) == (30, True, None, None)
    assert "speedup" not in result.by_k


def test_interval_of_mean_acceptance_ends_within_0_and_1():
    """Two texts of 0.9 and 1 have an error of 0.05, and a factor of 12.7."""
    for means in (0.9, 1.0), (0.1, 0.0):
        acceptance, ids = np.repeat(means, 10), np.repeat([0, 1], 10)
        result = acceptance_of(acceptance, np.ones(20, bool), ids, 1.0, None)
        low, high = result.mean_acceptance.interval
        reach = stats.t.isf(0.025, 1) * 0.05 / (0.95 * 0.05)
        ends = [1 / (1 + math.exp(-(math.log(0.95 / 0.05) + sign * reach))) for sign in (-1, 1)]
        expected = ends if means[0] > 0.5 else [1 - ends[1], 1 - ends[0]]
        assert 0 <= low < np.mean(means) < high <= 1
        assert (low, high) == pytest.approx(expected)
    certain = acceptance_of(np.ones(20), np.ones(20, bool), ids, 1.0, None)
    assert certain.mean_acceptance.interval == (1, 1)


@pytest.mark.slow
def test_interval_of_mean_acceptance_near_1_contains_the_truth_more_often_than_that_of_t():
    """Of 20 texts whose rejections are skewed, t ends below the truth in 10 % of samples, the logit in 5.5 %."""
    rng, misses = np.random.default_rng(0), np.zeros(2)
    ids, kept = np.repeat(np.arange(20), 2), np.ones(40, bool)
    for _ in range(400):
        texts = 1 - rng.beta(0.4, 9.6, 20) / 2  # the mean is 0.98
        result = acceptance_of(texts.repeat(2), kept, ids, 1.0, None)
        reach = result.interval_factor * result.mean_acceptance.stderr
        misses += result.mean_acceptance.interval[0] > 0.98, result.mean_acceptance - reach > 0.98
    assert misses[0] / 400 < 0.09
    assert misses[0] < misses[1]


def test_errors_of_a_single_text_are_by_blocks_of_neighbors():
    rng = np.random.default_rng(4)
    walk = np.cumsum(rng.normal(size=64 * 40)) / 10
    acceptance = 1 / (1 + np.exp(-walk % 3))
    blocks = acceptance.reshape(40, 64).mean(-1)
    one = acceptance_of(acceptance, np.ones(acceptance.size, bool), None, 1.0, None)
    assert one.mean_acceptance.stderr == pytest.approx(blocks.std(ddof=1) / math.sqrt(40), rel=1e-9)
    assert (one.n_sequences, one.is_clustered, one.sequences) == (0, False, None)
    assert "blocks of 64 positions" in one.summary()
    short = acceptance_of(acceptance[:60], np.ones(60, bool), None, 1.0, None)
    assert math.isnan(short.mean_acceptance.stderr)
    assert np.isnan(short.by_k["tokens_per_call_stderr"]).all()
    assert np.isfinite(short.by_k["tokens_per_call"]).all()


def test_texts_with_fewer_positions_than_k_have_no_value_and_the_table_says_so():
    result = draft_acceptance(np.zeros((3, 5, 4)), np.zeros((3, 5, 4)), cost_ratio=0.1)
    assert np.isnan(result.by_k["tokens_per_call"]).tolist() == [False] * 5 + [True] * 3
    assert result.by_k["n_starts"].tolist() == [15, 12, 9, 6, 3, 0, 0, 0]
    np.testing.assert_array_equal(result.by_k["tokens_per_call"][:5], np.arange(2, 7))
    assert (result.best_k, result.break_even_ratio) == (5, 1)
    summary = result.summary()
    assert "no text has 6 positions in a row" in summary
    assert "k = 5: 6.000 tokens in 1.5 times the time of a target step; a larger k may gain more" in summary
    none = draft_acceptance(np.zeros((0, 4)), np.zeros((0, 4)), cost_ratio=0.1)
    assert none.count == 0
    assert math.isnan(none.mean_acceptance)
    assert none.best_speedup is None


SCORES = {
    "logits": lambda logits: logits,
    "log_probs": lambda logits: np.log(softmax(logits)),
    "probs": softmax,
}


@pytest.mark.parametrize("temperature", [0, 0.3, 1, 2.5])
@pytest.mark.parametrize("kinds", ["logits logits", "log_probs logits", "probs probs", "probs logits"])
@pytest.mark.parametrize("classes", [(40, 40), (40, 37), (33, 600)])
def test_temperature_and_vocabularies_that_overlap_in_part(temperature, kinds, classes):
    rng = np.random.default_rng(5)
    target, draft = (2 * rng.normal(size=(3, 7, size)) for size in classes)
    where = rng.random((3, 7)) < 0.8
    kinds = kinds.split()
    base, other = (SCORES[kind](scores) for kind, scores in zip(kinds, (target, draft), strict=True))
    base[~where] = np.nan
    options = {"base_kind": kinds[0], "kind": kinds[1], "where": where}
    result = draft_acceptance(base, other, temperature=temperature, **options)
    if temperature:
        expected = accepted(softmax(target, temperature), softmax(draft, temperature))
    else:
        expected = (target.argmax(-1) == draft.argmax(-1)).astype(float)
    np.testing.assert_allclose(result.acceptance[where], expected[where], rtol=0, atol=4e-7)
    assert np.isnan(result.acceptance[~where]).all()
    np.testing.assert_array_equal(result.kept, where)
    assert (result.temperature, result.count, result.n_nan) == (temperature, where.sum(), 0)
    turned = np.moveaxis(base, -1, 0), np.moveaxis(other, -1, 0)
    assert draft_acceptance(*turned, axis=0, temperature=temperature, **options) == result


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", ">f4", "float64"])
def test_dtypes_of_unequal_vocabularies(dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    rng = np.random.default_rng(6)
    target, draft = (rng.normal(size=(9, size)).astype(dtype) for size in (30, 26))
    result = draft_acceptance(target, draft, temperature=0.7)
    expected = accepted(softmax(target, 0.7), softmax(draft, 0.7))
    np.testing.assert_allclose(result.acceptance, expected, rtol=0, atol=4e-7)
    one = draft_acceptance(target[0], draft[0], temperature=0.7)
    np.testing.assert_array_equal(one.acceptance, result.acceptance[0])


def test_many_rows_of_unequal_vocabularies_are_copied_block_by_block(monkeypatch):
    rng = np.random.default_rng(7)
    target, draft = rng.normal(size=(4, 9, 30)), rng.normal(size=(4, 9, 26))
    whole = draft_acceptance(target, draft)
    monkeypatch.setattr("tokenloss._comparison.drafts._BLOCK", 1)
    assert draft_acceptance(target, draft) == whole


def test_temperature_0_is_greedy_decoding():
    """The loop takes drafted tokens as long as they are the target's favorites."""
    target, draft = passages(20, 60, seed=8)
    result = draft_acceptance(target, draft, temperature=0)
    same = target.argmax(-1) == draft.argmax(-1)
    np.testing.assert_array_equal(result.acceptance, same)
    low, high = result.mean_acceptance.interval
    assert 0 < low < same.mean() < high < 1
    for k in range(1, 9):
        tokens = calls = 0
        for text in same:
            t = 0
            while t + k <= text.size:
                n = int(np.cumprod(text[t : t + k]).sum())
                tokens, calls, t = tokens + n + 1, calls + 1, t + n + 1
        assert result.by_k["tokens_per_call"][k - 1] == pytest.approx(tokens / calls, rel=1e-12)
    alike = draft_acceptance(target, target, temperature=0)
    assert alike.mean_acceptance == 1
    assert alike.mean_acceptance.interval[0] < 1  # no certainty from 20 texts


def test_segment_ids_and_cu_seqlens_are_texts_and_so_are_rows_by_default():
    rng = np.random.default_rng(9)
    target, draft = rng.normal(size=(2, 4, 6, 5))
    rows = draft_acceptance(target, draft)
    numbered = draft_acceptance(target.reshape(24, 5), draft.reshape(24, 5), segment_ids=np.repeat(np.arange(4), 6))
    packed = draft_acceptance(target.reshape(24, 5), draft.reshape(24, 5), cu_seqlens=[0, 6, 12, 18, 24])
    assert rows.to_dict() == numbered.to_dict() == packed.to_dict()
    assert rows.columns()["position"].tolist() == [*range(6)] * 4
    order = rng.permutation(4)
    mixed = np.stack([target, draft]).swapaxes(1, 2)[:, :, order]  # positions of all texts, by turns
    assert draft_acceptance(*mixed, segment_ids=order).to_dict() == rows.to_dict()


@pytest.mark.filterwarnings("error")
def test_n_nan_counts_positions_without_an_acceptance():
    target = np.zeros((2, 10, 4))
    target[0, 3, 1], target[1, 2], target[1, 3, 1] = np.nan, -np.inf, np.inf
    for temperature in (0, 1):
        for models in (target, np.zeros_like(target)), (np.zeros_like(target), target):
            result = draft_acceptance(*models, temperature=temperature, cost_ratio=0.1)
            assert np.flatnonzero(np.isnan(result.acceptance)).tolist() == [3, 12, 13]
            assert result.n_nan == 3
        assert math.isnan(result.mean_acceptance)
        assert "Positions that are nan" in result.summary()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1}, "temperature is -1; it must be 0, for greedy decoding, or a number from 1e-06 to 1e"),
        ({"temperature": 1e-9}, "temperature is 1e-09; it must be 0, for greedy decoding, or a number"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be 0"),
        ({"cost_ratio": -0.1}, "cost_ratio is -0.1; it must be a finite number >= 0, or None"),
        ({"kind": "probs"}, "logits.* is not a probability"),
        ({"kind": "log_probs", "temperature": 2}, "for natural log-probabilities it is 0"),
        ({"segment_ids": [0, 1]}, "segment_ids has shape"),
        ({"axis": 2}, "axis is 2, but base_logits has 2"),
    ],
)
def test_bad_options_are_named(options, words):
    scores = np.random.default_rng(10).normal(size=(5, 8))
    with pytest.raises((TypeError, ValueError), match=words):
        draft_acceptance(scores, scores, **options)
    with pytest.raises(ValueError, match=r"logits has shape \(4, 8\); it must be \(5, 8\), except for the number of"):
        draft_acceptance(scores, scores[:4])
    with pytest.raises(ValueError, match=r"logits has shape \(5, 0\); it must be a shape with one or more classes"):
        draft_acceptance(scores, scores[:, :0])
