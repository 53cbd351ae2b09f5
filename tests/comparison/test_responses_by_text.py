"""compare_files of responses whose classes are known by text alone: equal texts, parts of characters, ties."""

import math

import clients
import numpy as np
import pytest
from rendered import VOCABULARY, chat, vllm

from tokenloss import kl_divergence, log_softmax, topk_divergence_bound

pytestmark = pytest.mark.filterwarnings("ignore:.*identical to base")  # small files of equal values


@pytest.mark.parametrize("text", ["", "\N{REPLACEMENT CHARACTER}", "t0"])
def test_texts_of_several_classes_name_no_class(text, rng, tmp_path):
    texts = list(VOCABULARY)
    texts[0] = texts[1] = text  # by text, both classes are one, and are not
    logits = rng.normal(0, 1, (2, 30, 40))
    logits[:, :, :2] += 6  # both are listed
    base, other = log_softmax(logits)
    ids = rng.integers(2, 40, 30)
    paths = [
        clients.save_lines(tmp_path / f"{i}.jsonl", chat(ids, rows, 8, texts)) for i, rows in enumerate((base, other))
    ]
    result = clients.compare_pair(*paths)
    expected = []
    for p, q, target in zip(base, other, ids, strict=True):
        lists = [{*np.argsort(-row, kind="stable")[:8].tolist(), int(target)} - {0, 1} for row in (p, q)]
        common = sorted(lists[0] & lists[1])
        expected.append(topk_divergence_bound(common, p[common], common, q[common], rounding=1e-5).kl)
    np.testing.assert_allclose(result.kl_bound, expected, rtol=1e-9)
    assert (result.kl_bound <= kl_divergence(base, other, reduction="none") + 1e-12).all()
    assert result.n_top_known == 0  # the most likely class has such a text


@pytest.mark.parametrize("text", ["", "\N{REPLACEMENT CHARACTER}"])
def test_parts_of_characters_are_not_taken_for_one_class(text, tmp_path):
    base, other = log_softmax(np.array([[[5.0, 0, 1, 0]], [[0, 5.0, 1, 0]]]))
    texts = [text, "b", "c", "d"], ["a", text, "c", "d"]  # class 0 of the base, class 1 of the other
    rows = zip((base, other), texts, strict=True)
    paths = [
        clients.save_lines(tmp_path / f"{i}.jsonl", chat([2], *(row, 1, words))) for i, (row, words) in enumerate(rows)
    ]
    result = clients.compare_pair(*paths)
    assert result.kl_bound[0] == pytest.approx(0, abs=1e-12)  # of the token alone
    assert (result.n_bounded, result.n_top_known) == (0, 0)


def test_a_token_that_lists_hold_by_another_text_counts_once(tmp_path):
    paths = [
        clients.save_lines(tmp_path / f"{p}.jsonl", clients.chat(("a", math.log(p), [(" a", math.log(p))])))
        for p in (0.25, 0.5)
    ]
    result = clients.compare_pair(*paths)
    assert result.kl_bound[0] == topk_divergence_bound([0], np.log([0.25]), [0], np.log([0.5]), rounding=1e-5).kl
    assert result.kl_bound[0] == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-5)
    assert (result.mean_base_mass, result.mean_mass, result.n_bounded) == pytest.approx((0.25, 0.5, 0))


def test_same_top_of_classes_that_are_equally_likely(tmp_path):
    """Of ids, the lowest is the most likely; of texts, none is known to be."""
    logits = np.full((2, 1, 40), -3.0)
    logits[0, 0, [3, 5]] = logits[1, 0, [3, 9]] = 4
    base, other = log_softmax(logits)
    by_id = [vllm([0, 7], rows, 3) for rows in (base, other)]
    by_id[0]["choices"][0]["prompt_logprobs"][1] = dict(reversed(by_id[0]["choices"][0]["prompt_logprobs"][1].items()))
    for make, expected in ((by_id, (1, True)), ([chat([7], rows, 3) for rows in (base, other)], (0, False))):
        paths = [clients.save_lines(tmp_path / f"{i}.jsonl", body) for i, body in enumerate(make)]
        result = clients.compare_pair(*paths)
        assert (result.n_top_known, bool(result.is_same_top[-1])) == expected
    paths = [clients.save_lines(tmp_path / f"{i}.jsonl", chat([3], rows, 3)) for i, rows in enumerate((base, base))]
    assert clients.compare_pair(*paths).n_top_known == 1  # the token itself is one of them


def test_other_texts_are_refused(rng, tmp_path):
    rows = log_softmax(rng.normal(0, 1, (3, 40)))
    paths = [
        clients.save_lines(tmp_path / f"{i}.jsonl", chat(ids, rows, 3)) for i, ids in enumerate(([1, 2, 3], [1, 5, 3]))
    ]
    with pytest.raises(ValueError, match=r"1.jsonl: line 1: token 1 is 't5' \(generated\); it must be 't2'"):
        clients.compare_pair(*paths)
