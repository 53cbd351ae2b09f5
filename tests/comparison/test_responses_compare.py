"""compare_files and `tokenloss compare` of responses: equal to NumPy, matched and checked, traps, bad input."""

import dataclasses
import json
import math

import clients
import numpy as np
import pytest
from commands import assert_refused, raising
from reference import statistic
from rendered import Documents, batch, chat, vllm

import tokenloss
from tokenloss import compare_files, kl_divergence, log_softmax
from tokenloss._comparison import responses as response_comparison
from tokenloss._evaluation import plan
from tokenloss.formats import open_hidden_states, open_responses, open_scores
from tokenloss.formats.rounding import Rounding

pytestmark = pytest.mark.filterwarnings("ignore:.*identical to base")  # small files of equal values

SERVERS = (
    "vllm/completion_{:02}.json",
    "sglang/generate_{:02}.json",
    "llama_cpp_python/completion_echo_bos_{:02}.json",
)


@pytest.fixture
def documents():
    return Documents(np.random.default_rng(18))


@pytest.fixture
def saved(documents, tmp_path):
    """Files of both models' responses, with 5 and 7 classes."""
    base = clients.save_lines(tmp_path / "base.jsonl", *documents.responses("base", 5))
    return base, clients.save_lines(tmp_path / "other.jsonl", *documents.responses("other", 7))


def bounds(base, other, targets, ks):
    """Bounds from the k best classes and the target, with the mass of what both name, by sets."""
    result = []
    for p, q, target in zip(base, other, targets, strict=True):
        lists = [
            {*np.argsort(-row, kind="stable")[:k].tolist(), int(target)} for row, k in zip((p, q), ks, strict=True)
        ]
        common = sorted(lists[0] & lists[1])
        p, q = np.exp(p[common]), np.exp(q[common])
        rest, other_rest = 1 - p.sum(), 1 - q.sum()
        result.append((math.fsum([*(p * np.log(p / q)), rest * math.log(rest / other_rest)]), p.sum(), q.sum()))
    return np.array(result).T


def assert_bound(result, expected):
    """Assert that the bound is that of unrounded lists, or as little below it as rounding may be of float32."""
    np.testing.assert_allclose(result.kl_bound[result.kept], expected, rtol=0, atol=1e-4)
    assert (result.kl_bound[result.kept] <= expected + 1e-12).all()


def assert_as_logits(result, documents, ks, base="base", other="other"):
    """Assert that all figures are those of `compare` from the full log-probabilities, but for the bound."""
    p, q, targets = documents.rows(base), documents.rows(other), documents.targets
    exact = tokenloss.compare(p, q, targets, segment_ids=documents.segment_ids)
    assert (result.count, result.n_sequences, result.is_clustered) == (exact.count, exact.n_sequences, True)
    for name in ("perplexity", "base_perplexity", "log_perplexity_ratio", "perplexity_difference", "mean_delta_p"):
        for figure in (name, f"{name}_stderr"):
            assert statistic(result, figure) == pytest.approx(statistic(exact, figure), rel=1e-9)
    assert result.correlation == pytest.approx(exact.correlation, rel=1e-9)
    for name in ("nll", "base_nll", "delta_p", "is_same_top"):
        np.testing.assert_allclose(getattr(result, name)[result.kept], getattr(exact, name), rtol=1e-9, atol=1e-12)
    assert result.n_top_known == result.count
    assert result.same_top == exact.same_top
    np.testing.assert_array_equal(result.sequences["sequence"], exact.sequences["sequence"])
    np.testing.assert_allclose(result.sequences["loss_difference"], exact.sequences["loss_difference"], rtol=1e-9)
    np.testing.assert_allclose(result.sequences["same_top"], exact.sequences["same_top"])
    expected, base_mass, mass = bounds(p, q, targets, ks)
    assert_bound(result, expected)
    np.testing.assert_allclose(result.base_mass[result.kept], base_mass, rtol=1e-9)
    np.testing.assert_allclose(result.mass[result.kept], mass, rtol=1e-9)
    assert (result.kl_bound[result.kept] <= exact.kl + 1e-12).all()
    assert result.mean_kl_bound == pytest.approx(expected.mean(), abs=1e-4)
    assert result.mean_mass == pytest.approx(mass.mean(), rel=1e-9)


@pytest.mark.parametrize("classes", [1, 100, 1 << 18])
def test_compare_responses_equals_compare_of_the_full_log_probabilities(classes, documents, saved, monkeypatch):
    monkeypatch.setattr(response_comparison, "_PENDING", classes)
    result = clients.compare_pair(*saved)
    assert_as_logits(result, documents, (5, 7))
    assert (result.part, result.n_without_number, result.n_sentinels, result.n_skipped) == ("prompt", 4, 0, 0)
    assert (result.base_rounding, result.rounding) == ("float64", "float64")
    np.testing.assert_array_equal(result.sequences["line"], [1, 2, 4])
    assert np.isnan([result.nll[~result.kept], result.kl_bound[~result.kept]]).all()


def test_a_response_with_all_classes_does_not_widen_the_lists_of_others(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(response_comparison, "_PENDING", 1000)
    rows = log_softmax(rng.normal(0, 1, (100, 40)))
    ids = rng.integers(0, 40, 101)
    path = clients.save_lines(tmp_path / "a.jsonl", *(vllm(ids[:n], rows[: n - 1], k) for n, k in ((101, 1), (3, 39))))
    widths, join = [], response_comparison.join
    monkeypatch.setattr(
        response_comparison, "join", lambda sides: widths.append(join(sides)["top_ids"].shape) or join(sides)
    )
    assert clients.compare_pair(path, path).count == 102
    assert widths == [(101, 2)] * 2 + [(3, 40)] * 2


def test_compare_responses_of_classes_by_text(documents, tmp_path):
    paths = [
        clients.save_lines(
            tmp_path / f"{model}.jsonl",
            *(
                chat(ids[1:], rows, 6)
                for ids, rows in zip(documents.ids, getattr(documents, model), strict=True)
                if len(rows)
            ),
        )
        for model in ("base", "other")
    ]
    result = clients.compare_pair(*paths)
    assert result.part == "generated"
    documents.ids = [ids for ids in documents.ids if len(ids) > 1]
    documents.base, documents.other = (
        [rows for rows in model if len(rows)] for model in (documents.base, documents.other)
    )
    assert_as_logits(result, documents, (6, 6))


def test_a_token_of_the_prompt_is_none_that_was_generated(tmp_path):
    path = clients.save(tmp_path / "a.jsonl", SERVERS[0].format(0))
    (response,) = open_responses(path, part="all")
    response_comparison._check_tokens(response, response, "a", "b")
    is_prompt = response.is_prompt.copy()
    is_prompt[-1] = True
    with pytest.raises(
        ValueError, match=r"b: line 1: token 8 is .*\(prompt\); it must be .*\(generated\), as on line 1 of a"
    ):
        response_comparison._check_tokens(response, dataclasses.replace(response, is_prompt=is_prompt), "a", "b")


def test_error_of_rounded_log_probabilities():
    values = log_softmax(np.random.default_rng(1).normal(0, 3, 50))
    for rounded, error in ((values.round(4), 5e-5), (values.astype(np.float32), 1e-5), (values.round(1), 0.01)):
        result = Rounding.of(rounded.astype(float)).error
        assert result == pytest.approx(error)
    assert Rounding().error == 1e-5


@pytest.mark.parametrize("name", SERVERS)
def test_compare_responses_of_a_real_server_with_themselves(name, tmp_path):
    path = clients.save(tmp_path / "a.jsonl", *(name.format(i) for i in range(10)))
    result = clients.compare_pair(path, path)
    assert result.count > 100
    assert (result.mean_kl_bound, result.log_perplexity_ratio, result.rms_delta_p, result.same_top) == (0, 0, 0, 1)
    assert result.base_rounding == "float32"


def test_a_list_of_responses_is_matched_however_it_is_laid_out(tmp_path):
    value = clients.response("llama_server/completion_batch.json")
    (tmp_path / "a.json").write_text(json.dumps(value))
    (tmp_path / "b.json").write_text(json.dumps(value, indent=1))
    clients.save_lines(tmp_path / "c.jsonl", *value)
    for other in ("b.json", "c.jsonl"):
        assert clients.compare_pair(tmp_path / "a.json", tmp_path / other).n_sequences == len(value) == 2


def test_compare_responses_of_two_servers_of_one_model(tmp_path):
    paths = [
        clients.save(tmp_path / f"{i}.jsonl", *(name.format(i) for i in range(10)))
        for i, name in enumerate(SERVERS[:2])
    ]
    result = clients.compare_pair(*paths)
    assert result.count == result.n_bounded == result.n_top_known == 131
    assert result.mean_kl_bound < 1e-10  # SGLang's are rendered from logits of another program
    assert abs(result.log_perplexity_ratio) < 1e-6
    assert result.same_top == 1


def scores_file(documents, path, model="base", kind="log_probs", **others):
    """A file of full scores."""
    rows = documents.rows(model)
    np.savez(path, **{kind: np.exp(rows) if kind == "probs" else rows}, targets=documents.targets, **others)
    return path


@pytest.mark.parametrize("kind", ["logits", "log_probs", "probs"])
@pytest.mark.parametrize("has_sequences", [True, False])
def test_compare_responses_with_full_scores(kind, has_sequences, documents, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_ROWS", 4)
    sequences = {"segment_ids": documents.segment_ids} if has_sequences else {}
    scores = scores_file(documents, tmp_path / "scores.npz", "base", kind, **sequences)
    result = clients.compare_pair(scores, saved[1])
    assert_as_logits(result, documents, (40, 7))
    assert (result.base_rounding, result.rounding) == (f"{kind} of float64", "float64")
    turned = clients.compare_pair(saved[1], scores)
    assert_as_logits(turned, documents, (7, 40), "other", "base")
    assert (turned.base_rounding, turned.rounding) == ("float64", f"{kind} of float64")


def test_ignored_rows_and_shift_of_full_scores(documents, saved, tmp_path):
    expected = clients.compare_pair(scores_file(documents, tmp_path / "a.npz"), saved[1])
    ids = np.concatenate(documents.ids)
    lengths = [len(one) for one in documents.ids]
    segments = np.repeat(np.arange(len(lengths)), lengths)
    rows = np.concatenate([np.vstack([one, np.zeros((1, 40))]) for one in documents.base])
    np.savez(tmp_path / "b.npz", logits=rows, targets=ids, segment_ids=segments)
    result = clients.compare_pair(tmp_path / "b.npz", saved[1], shift=True)
    np.testing.assert_allclose(result.kl_bound, expected.kl_bound, rtol=1e-12)
    ends = np.cumsum(lengths) - 1
    targets = np.roll(ids, -1)
    targets[ends] = -100
    np.savez(tmp_path / "c.npz", logits=rows, targets=targets, segment_ids=segments)
    result = clients.compare_pair(tmp_path / "c.npz", saved[1])
    np.testing.assert_allclose(result.kl_bound, expected.kl_bound, rtol=1e-12)
    targets[1] = -100  # a token of the first prompt is not compared
    np.savez(tmp_path / "d.npz", logits=rows, targets=targets, segment_ids=segments)
    result = clients.compare_pair(tmp_path / "d.npz", saved[1])
    assert result.count == expected.count - 1
    assert result.n_without_number == expected.n_without_number + 1
    kept = np.flatnonzero(result.kept)
    np.testing.assert_allclose(result.kl_bound[kept], expected.kl_bound[kept], rtol=1e-12)


def test_masked_targets_and_ignore_index_of_full_scores(documents, saved, tmp_path):
    expected = clients.compare_pair(*saved)
    targets = documents.targets
    targets[7] = -100  # within the second prompt, whose other rows are as many as its tokens less one
    np.savez(tmp_path / "a.npz", logits=documents.rows("base"), targets=targets, segment_ids=documents.segment_ids)
    result = clients.compare_pair(tmp_path / "a.npz", saved[1])
    assert result.count == expected.count - 1
    np.testing.assert_allclose(result.nll[result.kept], np.delete(expected.nll[expected.kept], 7))
    marked = {"targets": np.maximum(targets, -1), "segment_ids": documents.segment_ids}
    np.savez(tmp_path / "c.npz", logits=documents.rows("base"), **marked)
    assert clients.compare_pair(open_scores(tmp_path / "c.npz", ignore_index=-1), saved[1]).count == result.count
    rows = np.concatenate([np.zeros((5000, 40)), documents.rows("base")])
    np.savez(tmp_path / "b.npz", logits=rows, targets=np.concatenate([np.full(5000, -100), documents.targets]))
    assert clients.compare_pair(tmp_path / "b.npz", saved[1]).count == expected.count


@pytest.mark.thread_unsafe(reason="writes the files of the fixture")
def test_skip_failed_leaves_sequences_of_full_scores_out(documents, saved, tmp_path):
    bodies = documents.responses("other", 7)
    clients.save_lines(saved[1], bodies[0], {"error": {"message": "too long", "code": 400}}, *bodies[2:])
    scores = scores_file(documents, tmp_path / "a.npz", segment_ids=documents.segment_ids)
    responses = open_responses(saved[1], skip_failed=True)
    result = clients.compare_pair(scores, responses)
    assert (result.count, result.n_skipped) == (8, 1)
    with pytest.raises(ValueError, match="requests failed, and it is not known which rows are theirs"):
        clients.compare_pair(scores_file(documents, tmp_path / "b.npz"), responses)


def test_full_scores_that_do_not_fit(documents, saved, tmp_path):
    path = tmp_path / "scores.npz"
    targets, segments = documents.targets, documents.segment_ids

    def refused(words, **arrays):
        np.savez(path, **({"logits": documents.rows("base"), "targets": targets} | arrays))
        with pytest.raises(ValueError, match=words):
            clients.compare_pair(path, saved[1])

    changed = targets.copy()
    changed[3] = (changed[3] + 1) % 40
    refused(
        rf"other.jsonl: line 1: token 4 has id \d+; it must have id {changed[3]}, the target of row 3", targets=changed
    )
    few = {"logits": documents.rows("base")[:5], "targets": targets[:5]}
    refused("has 0 rows with targets left; it must have 8, as .* on line 2", **few)
    refused("has 16 more rows with targets", logits=np.zeros((32, 40)), targets=np.tile(targets, 2))
    refused(
        "has 4 rows with targets in sequence 0; it must have 5, as .* on line 1",
        segment_ids=np.maximum(segments, np.arange(16) > 3),
    )
    rows = documents.rows("base")
    rows[7, 3] = np.nan
    refused("row 7 has no probabilities; it must contain no nan", logits=rows)
    refused(
        "has the rows of a sequence in several places",
        segment_ids=segments % 2 + (segments == 3) * 0 + np.arange(16) % 2,
    )


def test_classes_that_full_scores_do_not_have_are_refused(rng, tmp_path):
    path = clients.save_lines(tmp_path / "a.jsonl", vllm([0, 1], log_softmax(rng.normal(0, 1, (1, 40))), 7))
    np.savez(tmp_path / "scores.npz", logits=np.zeros((1, 3)), targets=[1])
    with pytest.raises(ValueError, match=r"a.jsonl: line 1: it lists class \d+; it must have classes of .*scores.npz"):
        clients.compare_pair(tmp_path / "scores.npz", path)


def test_lists_by_text_alone_leave_the_token_to_full_scores(rng, tmp_path):
    """As chats of vLLM with return_token_ids: the tokens have ids, and the lists do not."""
    base, other = log_softmax(rng.normal(0, 1, (2, 6, 40)))
    ids = rng.integers(0, 40, 6)
    body = chat(ids, other, 5)
    body["choices"][0]["token_ids"] = ids.tolist()
    path = clients.save_lines(tmp_path / "a.jsonl", body)
    np.savez(tmp_path / "scores.npz", log_probs=base, targets=ids)
    result = clients.compare_pair(tmp_path / "scores.npz", path)
    p, q = (np.exp(rows[np.arange(6), ids]) for rows in (base, other))
    np.testing.assert_allclose(result.base_mass, p)
    np.testing.assert_allclose(result.mass, q)
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    np.testing.assert_allclose(result.kl_bound, expected, atol=1e-4)
    assert (result.kl_bound <= expected).all()


def test_responses_are_matched_by_custom_id(documents, saved, tmp_path):
    base = [batch(f"r{i}", body) for i, body in enumerate(documents.responses("base", 5))]
    other = [batch(f"r{i}", body) for i, body in enumerate(documents.responses("other", 7))]
    paths = [
        clients.save_lines(tmp_path / "a.jsonl", *base),
        clients.save_lines(tmp_path / "b.jsonl", *(other[i] for i in (2, 0, 3, 1))),
    ]
    result, expected = clients.compare_pair(*paths), clients.compare_pair(*saved)
    np.testing.assert_array_equal(result.kl_bound, expected.kl_bound)
    np.testing.assert_array_equal(result.nll, expected.nll)
    np.testing.assert_array_equal(result.sequences["line"], [2, 4, 3])
    np.testing.assert_array_equal(result.sequences["base_line"], [1, 2, 4])
    assert result.sequences["custom_id"].tolist() == ["r0", "r1", "r3"]
    clients.save_lines(paths[1], *(other[i] for i in (2, 0, 0, 3, 1)))
    with pytest.raises(ValueError, match=r"b.jsonl: line 3: 'r0' comes twice"):
        clients.compare_pair(*paths)
    clients.save_lines(paths[1], *(other[i] for i in (2, 0)))
    with pytest.raises(
        ValueError, match=r"a.jsonl: line 2: choice 0 of 'r1' has no partner in .*, and 1 more have none"
    ):
        clients.compare_pair(*paths)


@pytest.mark.parametrize("has_names", [True, False])
def test_skip_failed_leaves_pairs_out(has_names, documents, tmp_path):
    def lines(model, k, failed):
        result = []
        for i, body in enumerate(documents.responses(model, k)):
            line = batch(f"r{i}", body if i != failed else None, 200 if i != failed else 400)
            result.append(
                line if has_names else body if i != failed else {"error": {"message": "too long", "code": 400}}
            )
        return result

    paths = [
        clients.save_lines(tmp_path / "a.jsonl", *lines("base", 5, 1)),
        clients.save_lines(tmp_path / "b.jsonl", *lines("other", 7, 3)),
    ]
    with pytest.raises(ValueError, match=r"a.jsonl: line 2: .*failed"):
        clients.compare_pair(*paths)
    result = clients.compare_pair(*(open_responses(path, skip_failed=True) for path in paths))
    assert result.n_skipped == 2
    assert result.count == 5
    expected, _, _ = bounds(documents.base[0], documents.other[0], documents.ids[0][1:], (5, 7))
    assert_bound(result, expected)


@pytest.mark.thread_unsafe(reason="writes the files of the fixture")
def test_other_tokens_are_refused_by_both_lines_and_position(documents, saved):
    base, other = saved
    bodies = documents.responses("other", 7)
    bodies[1]["choices"][0]["prompt_token_ids"][0] = (documents.ids[1][0] + 1).item() % 40
    clients.save_lines(other, *bodies)
    with pytest.raises(
        ValueError, match=r"other.jsonl: line 2: token 0 is id \d+; it must be id \d+, as on line 2 of .*base"
    ):
        clients.compare_pair(base, other)
    clients.save_lines(other, *(documents.responses("other", 7)[i] for i in (1, 0, 2, 3)))
    with pytest.raises(ValueError, match=r"line 1: it has 9 tokens; it must have 6, as on line 1 of"):
        clients.compare_pair(base, other)
    clients.save_lines(other, *documents.responses("other", 7)[:3])
    with pytest.raises(ValueError, match=r"base.jsonl: line 4: choice 0 has no partner in .*other.jsonl"):
        clients.compare_pair(base, other)


def test_sentinels_are_counted_and_never_averaged(documents, saved):
    base, other = saved
    bodies = documents.responses("other", 7)
    entries = bodies[0]["choices"][0]["prompt_logprobs"]
    entries[2][str(documents.ids[0][2])]["logprob"] = -9999.0
    clients.save_lines(other, *bodies)
    result = clients.compare_pair(base, other)
    assert (result.n_sentinels, result.n_without_number, result.count) == (1, 4, 15)
    assert not result.kept[2]
    assert np.nanmax(result.nll) < 50


def test_impossible_tokens_have_an_infinite_loss_and_bound(documents, saved):
    base, other = saved
    bodies = documents.responses("other", 7)
    bodies[0]["choices"][0]["prompt_logprobs"][2][str(documents.ids[0][2])]["logprob"] = -math.inf
    clients.save_lines(other, *bodies)
    result = clients.compare_pair(base, other)
    assert (result.nll[2], result.kl_bound[2], result.perplexity, result.mean_kl_bound) == (math.inf,) * 4
    assert result.n_sentinels == 0
    assert math.isnan(result.mean_kl_bound.stderr)


def test_numbers_of_4_decimals_are_told_and_do_not_raise_the_bound(rng, tmp_path):
    documents = Documents(rng, (300,), noise=0.02)
    for model in ("base", "other"):
        setattr(documents, model, [(4 * rows.round(9)).round(9) for rows in getattr(documents, model)])
        setattr(documents, model, [log_softmax(rows) for rows in getattr(documents, model)])
    exact = kl_divergence(documents.rows("base"), documents.rows("other"), reduction="none")
    for model in ("base", "other"):
        setattr(documents, model, [rows.round(4) for rows in getattr(documents, model)])
    paths = [clients.save_lines(tmp_path / f"{m}.jsonl", *documents.responses(m, 20)) for m in ("base", "other")]
    result = clients.compare_pair(*paths)
    assert (result.base_rounding, result.rounding) == ("4 decimals", "4 decimals")
    assert (result.kl_bound[result.kept] >= 0).all()
    assert (result.kl_bound[result.kept] <= exact + 1e-12).all()


def test_tokens_without_lists_are_bounded_by_the_token_itself(rng, tmp_path):
    documents = Documents(rng, (300,))  # enough for some that are ranked first
    paths = [clients.save_lines(tmp_path / f"{m}.jsonl", *documents.responses(m, 0)) for m in ("base", "other")]
    result = clients.compare_pair(*paths)
    p, q = np.exp(-result.base_nll[result.kept]), np.exp(-result.nll[result.kept])
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert_bound(result, expected)
    assert result.n_bounded == 0
    assert 0 < result.n_top_known <= result.count  # where either model ranks the token first


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
class TestCommand:
    """tokenloss compare of responses."""

    def test_json_is_what_compare_files_gives(self, saved, compare_json):
        result = compare_json(*saved)
        expected = clients.compare_pair(*saved).to_dict()
        assert result == json.loads(json.dumps(expected | {"name": str(saved[1])}))

    def test_tables_never_call_the_bound_a_divergence(self, saved, command):
        status, out, err = command("compare", *saved)
        assert (status, err) == (0, "")
        assert "16 tokens of 3 responses (prompt), errors clustered by response; log-prob" in out
        assert "; log-probabilities: float64 vs float64" in out
        assert "Tokens without a log-probability  4\n" in out
        assert "Mean probability of these classes" in out
        assert "where it is known" not in out
        for line in out.splitlines():
            assert "KLD" not in line or "KLD is at least" in line
        assert "Positions where both list further tokens" in out

    def test_a_page_of_several_never_calls_the_bound_a_divergence(self, saved, command, tmp_path):
        argv = "compare", saved[0], f"A={saved[1]}", f"B={saved[0]}", "--html", tmp_path / "page.html"
        assert command(*argv)[0] == 0
        assert "B (mean divergence at least 0)" in (tmp_path / "page.html").read_text("utf-8")

    def test_full_scores_and_part(self, documents, saved, tmp_path, compare_json):
        np.save(tmp_path / "logits.npy", documents.rows("base"))
        np.save(tmp_path / "targets.npy", documents.targets)
        np.save(tmp_path / "segments.npy", documents.segment_ids)
        argv = "--targets", tmp_path / "targets.npy", "--segment-ids", tmp_path / "segments.npy", "--part", "prompt"
        result = compare_json(tmp_path / "logits.npy", saved[1], *argv, "--base-kind", "log_probs")
        assert result["count"] == 16
        assert result["base_rounding"] == "log_probs of float64"
        turned = compare_json(saved[1], tmp_path / "logits.npy", *argv, "--kind", "logits")
        assert turned["perplexity"] == result["base_perplexity"]

    def test_segment_ids_of_full_scores_are_checked(self, documents, saved, tmp_path, command):
        scores, ids = scores_file(documents, tmp_path / "scores.npz"), tmp_path / "ids.npy"
        np.save(ids, documents.segment_ids[:-1])
        refused = command("compare", scores, saved[1], "--segment-ids", ids)
        assert_refused(refused, f"{ids}: segment_ids has shape (15,)")
        np.save(ids, np.maximum(documents.segment_ids, np.arange(16) > 3))
        for argv in ((scores, saved[1]), (saved[1], scores)):
            assert_refused(command("compare", *argv, "--segment-ids", ids), "has 4 rows with targets in sequence 0")

    @pytest.mark.parametrize(
        "argv",
        [
            ("--definitions", "llama.cpp"), ("--classes", "9"), ("--divergences", "js"), ("--margin", "0.1"),
            ("--cluster", "x"), ("--kind", "logits"), ("--array", "x"), ("--base-kind", "logits"),
            ("--base-array", "x"), ("--targets", "x.npy"), ("--segment-ids", "x.npy"), ("--ignore-index", "0"),
        ],
        ids=lambda argv: argv[0],
    )  # fmt: skip
    def test_options_that_do_not_apply(self, argv, saved, command):
        assert_refused(command("compare", *saved, *argv), argv[0])

    @pytest.mark.parametrize("option", ["--shift", "--no-shift"])
    def test_shift_leaves_responses_as_they_are(self, option, saved, compare_json):
        assert compare_json(*saved, option) == compare_json(*saved)

    def test_a_state_of_responses_resumes(self, saved, compare_json, tmp_path, monkeypatch):
        expected, state = compare_json(*saved), tmp_path / "state"
        assert compare_json(*saved, "--state", state) == expected
        monkeypatch.setattr(response_comparison, "join", raising(AssertionError("nothing is left to be read")))
        assert compare_json(*saved, "--state", state) == expected

    @pytest.mark.parametrize("argv", [("--part", "prompt"), ("--skip-failed",)])
    def test_options_of_responses_do_not_apply_to_scores(self, argv, documents, tmp_path, command):
        scores = scores_file(documents, tmp_path / "scores.npz")
        assert_refused(command("compare", scores, scores, *argv), argv[0], "is for responses")

    def test_parts_that_differ(self, documents, saved, tmp_path, command):
        path = clients.save_lines(tmp_path / "chat.jsonl", chat(documents.ids[0], np.zeros((6, 40)) - 4, 3))
        words = f"{path}: has log-probabilities of the part 'generated'", "or both come with --part generated"
        assert_refused(command("compare", saved[0], path), *words)


def test_a_folder_of_responses_is_refused(saved, command):
    folder = saved[0].parent
    for argv in [(folder, folder), (saved[0], folder), (folder, saved[0])]:
        assert_refused(
            command("compare", *argv), folder, "contains responses in 2 files", "be one file, with one response per"
        )


def test_files_without_responses_are_refused(documents, tmp_path):
    scores = scores_file(documents, tmp_path / "scores.npz")
    responses = clients.save_lines(tmp_path / "b.jsonl", chat([0], np.zeros((1, 9)), 1))
    words = (
        rf"b.jsonl: can be compared by the most likely classes; it must be .* by all classes, like {scores}, or apart"
    )
    with pytest.raises(ValueError, match=words):
        compare_files(scores, {"a": scores, "b": responses})


@pytest.mark.parametrize("option", [{"classes": 9}, {"definitions": "llama.cpp"}, {"divergences": ["js"]}])
def test_options_that_need_all_classes(option, saved):
    (name,) = option
    with pytest.raises(ValueError) as caught:
        clients.compare_pair(*saved, **option)
    words = f"{saved[0]} gives only the most likely classes; {name} needs all classes of each token"
    assert str(caught.value) == words


@pytest.mark.parametrize("width", [3, 40])
@pytest.mark.parametrize("is_base", [True, False])
def test_hidden_states_beside_responses_are_projected(is_base, width, rng, tmp_path):
    hidden, ids = rng.normal(size=(3, 6, width)), rng.integers(12, size=(3, 6))
    heads = rng.normal(size=(2, 12, width))
    rows = log_softmax(hidden @ heads[0].T)
    path = clients.save_lines(
        tmp_path / "r.jsonl", *(vllm(own, logprobs[:-1], 4) for own, logprobs in zip(ids, rows, strict=True))
    )
    np.savez(tmp_path / "hidden.npz", hidden_states=hidden, input_ids=ids)
    for name, head in zip("ab", heads, strict=True):
        np.save(tmp_path / f"{name}.npy", head)
        np.savez(tmp_path / f"{name}.npz", logits=0.5 * (hidden @ head.T), input_ids=ids)
    responses = open_responses(path, part="all")
    for name in "ab":
        scores = open_scores(tmp_path / f"{name}.npz", shift=True)
        states = open_hidden_states(tmp_path / "hidden.npz", tmp_path / f"{name}.npy", logit_scale=0.5, shift=True)
        pairs = [(one, responses) if is_base else (responses, one) for one in (scores, states)]
        expected, result = (next(iter(compare_files(*pair).values())) for pair in pairs)
        assert result.count == expected.count == 15
        for column in "nll", "base_nll", "kl_bound":
            np.testing.assert_allclose(getattr(result, column), getattr(expected, column), rtol=1e-10, atol=1e-12)
    if not is_base:  # candidates of one file, each with its own head, also from a state
        states = {
            name: open_hidden_states(tmp_path / "hidden.npz", tmp_path / f"{name}.npy", shift=True) for name in "ab"
        }
        first, again = (compare_files(responses, states, state=tmp_path / "state") for _ in range(2))
        assert first["a"].mean_kl_bound < 1e-12 < first["b"].mean_kl_bound
        assert first == again
