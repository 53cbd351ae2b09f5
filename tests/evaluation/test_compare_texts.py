"""compare_texts and `tokenloss compare --text`: two models with different tokenizers on the same text."""

import csv
import io
import json
import math
import pickle

import clients
import numpy as np
import pytest
from commands import assert_refused
from laid_texts import cut, model, tokenizer, words

from tokenloss import ShiftWarning, compare_texts, evaluate, sinks, token_scores

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
DOCUMENTS = ("In the beginning", "was the 12 word, {and}", "über Δελτα 🙂", "so on")
TEXT = "\n".join(DOCUMENTS) + "\n"


@pytest.fixture
def two(tmp_path):
    """A text, and two models of it: of words, and of three bytes each, some of which split a character."""
    (tmp_path / "t.txt").write_bytes(TEXT.encode())
    return [model(tmp_path, "a", [*map(words, DOCUMENTS)]), model(tmp_path, "b", [cut(one, 3) for one in DOCUMENTS])]


def compared(a, b, **options):
    """The comparison of two models by the text beside their files."""
    options = {"shift": True, "text": a.path.with_name("t.txt")} | options
    return compare_texts(a.path, b.path, tokenizer_a=a.tokenizer, tokenizer_b=b.tokenizer, **options)


def argv_of(a, b):
    """The same as a command."""
    text = a.path.with_name("t.txt")
    return "compare", a.path, b.path, "--text", text, "--tokenizer-a", a.tokenizer, "--tokenizer-b", b.tokenizer


def losses_of(one, document):
    """The losses of a model's tokens of a document, without its first one."""
    rows = np.flatnonzero(one.segments == document)
    return token_scores(one.logits[rows[:-1]], one.ids[rows[1:]]).nll


def test_spans_hold_the_losses_of_both_models(two):
    found = compared(*two)
    columns, kept = found.columns(), found.columns()["kept"]
    assert "".join(columns["text"]) == "".join(DOCUMENTS)
    # In the| beginning: the first span of each document holds a token that is not scored
    assert kept.tolist() == (np.diff(columns["document"], prepend=-1) == 0).tolist()
    assert columns["text"][:2].tolist() == ["In the", " beginning"]
    assert columns["nll_a"][1] == losses_of(two[0], 0)[1]
    assert columns["nll_b"][1] == math.fsum(losses_of(two[1], 0)[1:])
    for total, nll, rate in ((found.nll_a, columns["nll_a"], found.bits_per_byte_a),
                             (found.nll_b, columns["nll_b"], found.bits_per_byte_b)):  # fmt: skip
        assert total == math.fsum(nll[kept])
        assert rate == total / found.n_bytes / math.log(2)
    assert found.n_bytes == sum(len(text.encode()) for text in columns["text"][kept])
    assert found.n_bytes + found.n_bytes_left_out == len("".join(DOCUMENTS).encode())


def test_totals_are_those_of_evaluate_where_all_is_scored(two):
    for one in two:
        np.savez(one.path, logits=one.logits, targets=one.ids, segment_ids=one.segments)
    found, size = compared(*two, shift=False), len("".join(DOCUMENTS).encode())
    rates = found.bits_per_byte_a, found.bits_per_byte_b
    for one, total, rate in zip(two, (found.nll_a, found.nll_b), rates, strict=True):
        assert total == math.fsum(token_scores(one.logits, one.ids).nll)
        assert rate == evaluate(one.path, shift=False, n_bytes=size).meter.bits_per_byte
    assert (found.n_bytes, found.n_bytes_left_out, found.n_tokens_b) == (size, 0, len(two[1].ids))


def test_tinker_cookbook_823_losses_per_token_of_a_coarser_tokenizer_are_higher_at_equal_quality(tmp_path):
    """One source of letters, predicted letter by letter and pair by pair."""
    text = "".join("ab"[i] for i in np.random.default_rng(3).integers(2, size=60).tolist())
    (tmp_path / "t.txt").write_text(text)
    nll = {ord("a"): -math.log(0.2), ord("b"): -math.log(0.8)}
    a, b = (
        model(tmp_path, name, [cut(text, size)], [sum(nll[byte] for byte in piece) for piece in cut(text, size)])
        for name, size in (("a", 1), ("b", 2))
    )
    losses = [evaluate(one.path, shift=False).meter.loss for one in (a, b)]
    assert losses[1] == pytest.approx(2 * losses[0])
    found = compared(a, b, shift=False)
    assert found.bits_per_byte_b == pytest.approx(found.bits_per_byte_a)
    assert found.difference == pytest.approx(0, abs=1e-12)
    assert (found.tokens_per_byte_a, found.tokens_per_byte_b) == (1, 0.5)


def test_marin_4962_a_gap_is_found_where_it_was_made_and_has_an_error(tmp_path):
    """Both models pay for an end that has no bytes; b has a bit more for each digit, and for every second document."""
    texts = [f"word {i} and {i * i} more" for i in range(10, 40)]
    (tmp_path / "t.txt").write_text("\n".join(texts))
    bit = math.log(2)
    ends = [[b"", *words(text), b""] for text in texts], [[b"", *cut(text, 1), b""] for text in texts]
    a = model(tmp_path, "a", ends[0], [len(piece) * bit if piece else 0.5 for tokens in ends[0] for piece in tokens])
    nll = [
        (len(piece) + piece.isdigit() + (i % 2) / len(tokens)) * bit if piece else 0.5
        for i, tokens in enumerate(ends[1]) for piece in tokens
    ]  # fmt: skip
    b = model(tmp_path, "b", ends[1], nll)
    found = compared(a, b, shift=False)
    assert found.nll_a == pytest.approx(found.n_bytes * bit + 0.5 * 2 * len(texts))  # the ends are counted
    kinds = {one.kind: one for one in found.kinds}
    assert kinds["digits"].difference == pytest.approx(
        sum(byte.isdigit() for text in texts for byte in text) / kinds["digits"].n_bytes, rel=0.05
    )
    assert abs(kinds["words"].difference) < 0.05
    assert 0 < found.difference_stderr < found.difference
    assert found.is_clustered
    assert found.n_documents == len(texts)
    assert all(any(c.isdigit() for c in span.text) for span in found.b_worse)
    assert found.difference_interval[0] < found.difference < found.difference_interval[1]


TOKENIZERS = ("byte-level BPE", "BPE with bytes", "WordPiece", "SentencePiece Unigram", "the tests' model")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Tokenizers of several families, and their ids of some lines of many scripts."""
    made_tokenizers = pytest.importorskip("made_tokenizers")
    lines = [line.strip() for line in made_tokenizers.lines(300) if line.strip()][:40]
    found = {}
    for name in TOKENIZERS:
        one = made_tokenizers.make(name, tmp_path_factory.mktemp("made"))
        found[name] = one.path, [one.encode(line) for line in lines]
    return lines, found


@pytest.mark.parametrize("name", TOKENIZERS)
def test_real_tokenizers_share_spans_of_whole_characters(name, made, tmp_path):
    """With byte tokens that split a character, prefix space, and WordPiece, which drops white space."""
    lines, found = made
    (tmp_path / "t.txt").write_text("\n".join(lines), "utf-8", newline="")
    (tmp_path / "lines.txt").write_text(lines[0])
    sides, nll = {}, {}
    for letter, key in ("a", "byte-level BPE"), ("b", name):
        path, texts = found[key]
        ids = np.concatenate(texts)
        size = 1 + ids.max()
        nll[letter] = np.random.default_rng(len(ids)).exponential(size=len(ids))
        logits = np.zeros((len(ids), size), np.float32)
        np.savez(tmp_path / f"{letter}.npz", logits=logits, targets=ids,
                 segment_ids=np.repeat(np.arange(len(lines)), [*map(len, texts)]))  # fmt: skip
        sides[f"tokenizer_{letter}"] = path
        nll[letter] = len(ids) * math.log(size)
    result = compare_texts(tmp_path / "a.npz", tmp_path / "b.npz", text=tmp_path / "t.txt", shift=False, **sides)
    columns = result.columns()
    for document, line in enumerate(lines):
        assert "".join(columns["text"][columns["document"] == document]) == line
    assert result.nll_a == pytest.approx(nll["a"])
    assert result.nll_b == pytest.approx(nll["b"])
    assert result.n_spans > len(lines) * 1.5
