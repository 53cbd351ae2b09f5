"""compare_texts and `tokenloss compare --text`: two models with different tokenizers on the same text."""

import csv
import dataclasses
import io
import json
import math
from contextlib import nullcontext

import clients
import made_tokenizers
import numpy as np
import pytest
from arrays import fails
from commands import assert_refused
from html_pages import Reader
from laid_texts import cut, model, tokenizer, words
from scipy import optimize, stats

from tokenloss import ShiftWarning, compare_texts, evaluate, sinks, token_scores
from tokenloss.formats import open_scores

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
DOCUMENTS = ("In the beginning", "was the 12 word, {and}", "Δελτα über 🙂", "so on")
TEXT = "\n".join(DOCUMENTS[:3]) + DOCUMENTS[3] + "\n"  # with white space between some of them


@pytest.fixture
def two(tmp_path):
    """A text, and two models of it: of words, and of three bytes each, some of which split a character."""
    (tmp_path / "t.txt").write_bytes(TEXT.encode())
    return [model(tmp_path, "a", [*map(words, DOCUMENTS)]), model(tmp_path, "b", [cut(one, 3) for one in DOCUMENTS])]


def compared(a, b, of_a=None, of_b=None, **options):
    """The comparison of two models by the text beside their files; `of_a` and `of_b` are options of their openers."""
    options = {"shift": True, "text": a.path.with_name("t.txt")} | options
    models = (a, of_a or {}), (b, of_b or {})
    return compare_texts(*(open_scores(one.path, tokenizer=one.tokenizer, **said) for one, said in models), **options)


def argv_of(a, b):
    """The same as a command."""
    text = a.path.with_name("t.txt")
    return "compare", a.path, b.path, "--text", text, "--tokenizer-a", a.tokenizer, "--tokenizer-b", b.tokenizer


def losses_of(one, document):
    """The losses of a model's tokens of a document, without its first one."""
    rows = np.flatnonzero(one.segments == document)
    return token_scores(one.logits[rows[:-1]], one.ids[rows[1:]]).nll


def test_spans_hold_the_losses_of_both_models(two):
    result = compared(*two)
    columns, kept = result.columns(), result.columns()["kept"]
    assert "".join(columns["text"]) == "".join(DOCUMENTS)
    # In the| beginning: the first span of each document holds a token that is not scored
    assert kept.tolist() == (np.diff(columns["document"], prepend=-1) == 0).tolist()
    assert columns["text"][:2].tolist() == ["In the", " beginning"]
    assert columns["nll_a"][1] == losses_of(two[0], 0)[1]
    assert columns["nll_b"][1] == math.fsum(losses_of(two[1], 0)[1:])
    for total, nll, rate in ((result.nll_a, columns["nll_a"], result.bits_per_byte_a),
                             (result.nll_b, columns["nll_b"], result.bits_per_byte_b)):  # fmt: skip
        assert total == math.fsum(nll[kept])
        assert rate == total / result.n_bytes / math.log(2)
    assert result.n_bytes == sum(len(text.encode()) for text in columns["text"][kept])
    assert result.n_bytes + result.n_bytes_left_out == len("".join(DOCUMENTS).encode())


def test_totals_are_those_of_evaluate_where_all_is_scored(two):
    for one in two:
        np.savez(one.path, logits=one.logits, targets=one.ids, segment_ids=one.segments)
    result, size = compared(*two, shift=False), len("".join(DOCUMENTS).encode())
    rates = result.bits_per_byte_a, result.bits_per_byte_b
    for one, total, rate in zip(two, (result.nll_a, result.nll_b), rates, strict=True):
        assert total == math.fsum(token_scores(one.logits, one.ids).nll)
        assert rate == evaluate(one.path, shift=False, n_bytes=size).meter.bits_per_byte
    assert (result.n_bytes, result.n_bytes_left_out, result.n_tokens_b) == (size, 0, len(two[1].ids))


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
    result = compared(a, b, shift=False)
    assert result.bits_per_byte_b == pytest.approx(result.bits_per_byte_a)
    assert result.difference == pytest.approx(0, abs=1e-12)
    assert (result.tokens_per_byte_a, result.tokens_per_byte_b) == (1, 0.5)


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
    result = compared(a, b, shift=False)
    assert result.nll_a == pytest.approx(result.n_bytes * bit + 0.5 * 2 * len(texts))  # the ends are counted
    assert result.n_special_b == 2 * len(texts)
    assert result.special_bits_per_byte_b == pytest.approx(0.5 * 2 * len(texts) / bit / result.n_bytes)
    kinds = {one.kind: one for one in result.kinds}
    assert kinds["digits"].difference == pytest.approx(
        sum(byte.isdigit() for text in texts for byte in text) / kinds["digits"].n_bytes, rel=0.05
    )
    assert abs(kinds["words"].difference) < 0.05
    assert 0 < result.difference.stderr < result.difference
    assert result.is_clustered
    assert result.n_documents == len(texts)
    assert all(any(c.isdigit() for c in span.text) for span in result.b_worse)
    assert result.difference.interval[0] < result.difference < result.difference.interval[1]


TOKENIZERS = ("byte-level BPE", "BPE with bytes", "WordPiece", "SentencePiece Unigram", "the tests' model")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Lines of many scripts; of tokenizers of several families, the file, and the ids of each line."""
    lines = [line.strip() for line in made_tokenizers.lines(300) if line.strip()][:40]
    result = {}
    for name in TOKENIZERS:
        one = made_tokenizers.make(name, tmp_path_factory.mktemp("made"))
        result[name] = one.path, [one.encode(line) for line in lines]
    return lines, result


@pytest.mark.parametrize("name", TOKENIZERS)
def test_real_tokenizers_share_spans_of_whole_characters(name, made, tmp_path):
    """With byte tokens that split a character, a space before each text, and WordPiece, which drops white space."""
    lines, actual = made
    (tmp_path / "t.txt").write_text("\n".join(lines), "utf-8", newline="")
    sources, expected = [], []
    for letter, key in ("a", "byte-level BPE"), ("b", name):
        path, ids = actual[key]
        flat, segments = np.concatenate(ids), np.repeat(np.arange(len(lines)), [*map(len, ids)])
        logits = np.zeros((len(flat), 1 + flat.max()), np.float32)
        np.savez(tmp_path / f"{letter}.npz", logits=logits, targets=flat, segment_ids=segments)
        sources.append(open_scores(tmp_path / f"{letter}.npz", tokenizer=path))
        expected.append(len(flat) * math.log(logits.shape[-1]))
    dropped = sum(len(c.encode()) for line in lines for c in line if c.isspace()) if name == "WordPiece" else 0
    told = pytest.warns(UserWarning, match=f"b.npz: {dropped} of .* white space") if dropped else nullcontext()
    with told:
        result = compare_texts(*sources, text=tmp_path / "t.txt", shift=False)
    assert (result.n_bytes_without_token_a, result.n_bytes_without_token_b) == (0, dropped)
    columns = result.columns()
    for document, line in enumerate(lines):
        assert "".join(columns["text"][columns["document"] == document]) == line
    assert [result.nll_a, result.nll_b] == pytest.approx(expected)
    assert result.n_spans > len(lines) * 1.5


# -- what files may hold -----------------------------------------------------------------------------------------------


def test_shards_of_one_document_go_on(tmp_path):
    (tmp_path / "t.txt").write_text(DOCUMENTS[0])
    a, b = (model(tmp_path, name, [cut(DOCUMENTS[0], size)]) for name, size in (("a", 2), ("b", 3)))
    for one in a, b:
        np.savez(one.path, logits=one.logits, input_ids=one.ids)
    whole, (middle, size) = compared(a, b), (3, len(a.ids))
    for name, part in ("part-1", slice(middle)), ("part-2", slice(middle, size)):
        np.savez(tmp_path / f"{name}.npz", logits=a.logits[part], input_ids=a.ids[part])
    a.path = tmp_path / "part-*.npz"
    assert compared(a, b, names=(whole.name_a, whole.name_b)) == whole
    assert (whole.is_clustered, whole.n_documents) == (False, 1)


def test_files_with_segment_ids_of_their_own_are_other_documents(tmp_path):
    """Though both number their sequences from 0."""
    (tmp_path / "t.txt").write_text("to be or not")
    a, b = (model(tmp_path, name, [cut("to be ", size), cut("or not", size)]) for name, size in (("a", 1), ("b", 2)))
    whole = compared(a, b, names=("a", "b"))
    for one in a, b:
        for segment in 0, 1:
            own = one.segments == segment
            path = tmp_path / f"{one.path.stem}-{segment}.npz"
            np.savez(path, logits=one.logits[own], input_ids=one.ids[own], segment_ids=np.zeros(own.sum(), int))
        one.path = tmp_path / f"{one.path.stem}-*.npz"
    result = compared(a, b, names=("a", "b"))
    assert result.n_documents == 2
    assert result == whole


def test_documents_that_end_within_a_character_have_its_bytes_as_escapes(tmp_path):
    """As where a text is cut into sequences of so many tokens."""
    (tmp_path / "t.txt").write_text("é a", "utf-8")
    documents, table = [[b"\xc3"], [b"\xa9", b" a"]], sinks.TokenTable()
    models = [model(tmp_path, name, documents, nll) for name, nll in (("a", [1, 2, 3]), ("b", [3, 3, 1]))]
    files = table, sinks.SpanPage(tmp_path / "spans.html"), sinks.TokenTable(tmp_path / "spans.csv")
    result = compared(*models, shift=None, sinks=files)
    assert [span.text for span in result.b_worse] == ["\\xc3", "\\xa9"]
    assert result.columns()["text"].tolist() == table.columns()["text"].tolist() == ["\\xc3", "\\xa9", " a"]


def test_ids_and_segment_ids_may_be_in_files_of_their_own(two, command):
    """With a document that goes on in the next shard."""
    a, b = two
    expected, folder = compared(a, b, names=("a", "b")), a.path.parent
    for name, one in ("a", a), ("b", b):
        np.save(folder / f"{name}-ids.npy", one.ids)
        np.save(folder / f"{name}-segments.npy", one.segments)
    for name, part in ("part-1.npy", slice(10)), ("part-2.npy", slice(10, None)):
        np.save(folder / name, a.logits[part])
    np.save(folder / "b.npy", b.logits)
    a.path, b.path = folder / "part-*.npy", folder / "b.npy"
    of_rows = {
        "targets": [folder / f"{name}-ids.npy" for name in "ab"],
        "segment_ids": [folder / f"{name}-segments.npy" for name in "ab"],
    }
    of_a, of_b = ({option: paths[number] for option, paths in of_rows.items()} for number in range(2))
    assert compared(a, b, of_a, of_b, names=("a", "b")) == expected
    argv = [
        word for option, paths in of_rows.items() for path in paths for word in (f"--{option.replace('_', '-')}", path)
    ]
    assert command(*argv_of(a, b), *argv, "--shift")[0] == 0
    refused = command(*argv_of(a, b), "--targets", of_rows["targets"][0], "--shift")
    assert_refused(refused, "--targets is '1 path'; it must be two: for BASE, and for OTHER")


def test_a_text_goes_on_in_the_next_file_whatever_numbers_its_attention_mask_has(two):
    """Texts that are packed into one sequence, of which the first file holds lower numbers than the second."""
    a, b = two
    expected, folder = compared(a, b, names=("a", "b")), a.path.parent
    for name, part in ("part-1.npz", slice(5)), ("part-2.npz", slice(5, None)):
        np.savez(folder / name, logits=a.logits[part], input_ids=a.ids[part], attention_mask=1 + a.segments[part])
    assert a.segments[4] == a.segments[5]
    of_a, of_b = ({"segment_ids": folder / f"{name}.npy"} for name in ("sequence", "segments"))
    np.save(of_a["segment_ids"], np.full(len(a.ids), 5))
    np.save(of_b["segment_ids"], b.segments)
    np.savez(b.path, logits=b.logits, input_ids=b.ids)
    a.path = folder / "part-*.npz"
    assert compared(a, b, of_a, of_b, names=("a", "b")) == expected


def test_padding_is_no_part_of_the_text(two):
    """A batch with an attention mask, as a model that pads on the left has it, and one of packed texts."""
    a, b = two
    expected, width = compared(a, b), max(np.bincount(a.segments))
    ids, mask = np.zeros((len(DOCUMENTS), width), int), np.zeros((len(DOCUMENTS), width), int)
    logits = np.zeros((*ids.shape, a.logits.shape[-1]))
    for document in range(len(DOCUMENTS)):
        own = a.segments == document
        ids[document, -own.sum() :], mask[document, -own.sum() :] = a.ids[own], 1
        logits[document, -own.sum() :] = a.logits[own]
    np.savez(a.path, logits=logits, input_ids=ids, attention_mask=mask)
    assert compared(a, b) == expected
    packed = {"logits": a.logits, "input_ids": a.ids, "attention_mask": a.segments + 1}
    np.savez(a.path, **{name: array[None] for name, array in packed.items()})
    assert compared(a, b) == expected


def test_targets_that_seem_to_need_a_shift_are_warned_of(tmp_path, command):
    text = " ".join(f"word {i}" for i in range(100))
    (tmp_path / "t.txt").write_text(text)
    a, b = (model(tmp_path, name, [pieces]) for name, pieces in (("a", words(text)), ("b", cut(text, 3))))
    a.logits[np.arange(len(a.ids) - 1), a.ids[1:]] = 20
    np.savez(a.path, logits=a.logits, targets=a.ids)
    np.savez(b.path, logits=b.logits, targets=b.ids)
    with pytest.warns(ShiftWarning, match=r"a\.npz: the targets fit far better") as told:
        compared(a, b, shift=None)
    assert len(told) == 1
    assert "a.npz: the targets fit far better" in command(*argv_of(a, b))[2]


def test_padding_that_is_scored_is_warned_of(two, command):
    a, b = two
    ids, segments = np.append(a.ids, [0] * 5), np.append(a.segments, [3] * 5)
    np.savez(
        a.path, logits=np.zeros((len(ids), a.logits.shape[-1])), input_ids=ids.astype(np.uint8), segment_ids=segments
    )
    words = f"4 of {len(ids) - len(DOCUMENTS)} scored tokens repeat the special token 0 before them, as padding does: "
    with pytest.warns(
        UserWarning, match=rf"a\.npz: {words}store attention_mask, or set their targets to the value of ignore"
    ):
        compared(a, b)
    assert words in command(*argv_of(a, b), "--shift")[2]


# -- bad input ---------------------------------------------------------------------------------------------------------


def rewritten(change):
    """What changes the text."""
    return lambda a, b: a.path.with_name("t.txt").write_bytes(change(TEXT.encode()))


def other_ids(a, b):
    """Ids that are larger than the tokenizer has."""
    np.savez(a.path, logits=np.zeros((3, 99)), input_ids=[1, 2, 98])


def another_version(a, b):
    """The tokenizer of an earlier version: its ids are other pieces."""
    tokenizer(a.tokenizer, [f"{i:3}".encode() for i in range(40)])


def masked_prompt(a, b):
    """Labels of which the prompt is masked, so that nobody knows its tokens."""
    np.savez(a.path, logits=a.logits, labels=np.where(np.arange(len(a.ids)) < 2, -100, a.ids), segment_ids=a.segments)


def other_documents(a, b):
    """A model that has the same text in other sequences."""
    np.savez(b.path, logits=b.logits, input_ids=b.ids, segment_ids=np.where(b.segments == 3, 2, b.segments))


def moved_documents(a, b):
    """A model whose last document begins a token too late."""
    segments = b.segments.copy()
    segments[np.flatnonzero(segments == 3)[0]] = 2
    np.savez(b.path, logits=b.logits, input_ids=b.ids, segment_ids=segments)


def mixed_documents(a, b):
    """Sequences that take turns."""
    np.savez(a.path, logits=a.logits, input_ids=a.ids, segment_ids=np.arange(len(a.ids)) % 2)


def high_mask(a, b):
    """A mask that numbers more texts than are told apart."""
    np.savez(a.path, logits=a.logits, input_ids=a.ids, attention_mask=np.minimum(a.segments + (1 << 20), 1 << 20))


def empty_document(a, b):
    """A document that is special tokens alone."""
    ids, is_text = np.where(b.segments == 3, 0, b.ids), a.segments < 3
    np.savez(b.path, logits=b.logits, input_ids=ids, segment_ids=b.segments)
    np.savez(a.path, logits=a.logits[is_text], input_ids=a.ids[is_text], segment_ids=a.segments[is_text])
    a.path.with_name("t.txt").write_text("\n".join(DOCUMENTS[:3]), "utf-8")


def distributions(a, b):
    """Targets that are no ids."""
    np.savez(a.path, logits=np.zeros((2, 3)), targets=np.full((2, 3), 1 / 3))


BAD = {
    "beyond": (other_ids, r"a\.npz.* 98"),
    "version": (another_version, r"t\.txt: byte 0: line 1 continues with b'In the beg"),
    "normalized": (rewritten(lambda text: text.replace("ü".encode(), "u\u0308".encode())), r"in NFD|in NFC"),
    "truncated": (rewritten(lambda text: text[:-4]), "t.txt: byte 63: line 3 ends, and token 12 .* ends before them"),
    "longer": (rewritten(lambda text: text + b"more"), "continues with b'more' after the last token"),
    "BOM": (rewritten(lambda text: b"\xef\xbb\xbf" + text), "byte order mark"),
    "CRLF": (rewritten(lambda text: text.replace(b", ", b",\r\n")), r"t\.txt: byte \d+: line 2 continues with"),
    "surrogate": (rewritten(lambda text: text + "\ud800".encode("utf-8", "surrogatepass")),
                  r"t\.txt: byte 67: b'\\xed\\xa0\\x80' is not UTF-8; it must be text in UTF-8"),
    "documents": (other_documents, r"b\.npz: contains 3 documents, not 4; it must have the same documents as .*a\.npz"),
    "moved": (moved_documents, r"b\.npz: contains a document 2 of bytes 40 to 64, not 40 to 61; it must have the same"),
    "masked": (masked_prompt, "t.txt: byte 0: line 1 continues .*; 2 ignored ids of the file cannot be of the text"),
    "mixed": (mixed_documents, r"a\.npz: has sequences whose tokens are mixed; it must have them one after"),
    "high": (high_mask, r"a\.npz: numbers texts up to 1048576 by its mask, in sequences up to 0; it must stay below"),
    "empty": (empty_document, r"b\.npz: has no text in its document 3; it must have text in each document"),
    "distributions": (distributions, r"a\.npz: contains targets of shape \(2, 3\); it must contain an id for each row"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_is_written(name, two, tmp_path, command):
    spoil, words = BAD[name]
    spoil(*two)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    outputs = [sinks.SpanPage(tmp_path / "p.html"), sinks.TokenTable(str(tmp_path / "s.csv"))]
    with pytest.raises((ValueError, IndexError), match=words) as caught:
        compared(*two, sinks=outputs)
    refused = command(*argv_of(*two), "--shift", "--html", tmp_path / "p.html", "--per-token", tmp_path / "s.csv")
    assert_refused(refused, str(caught.value).partition("; ")[0])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_responses_are_refused(two, tmp_path, command):
    """They list only the most likely classes, in text."""
    a, b = two
    a.path = clients.save(tmp_path / "a.json", "vllm/chat_00.json")
    with pytest.raises(ValueError, match=r"a\.json: is JSON; it must have scores or hidden states; formats\.open_resp"):
        compared(a, b)
    words = "a.json gives only the most likely classes; {} needs all classes of each token"
    with fails(ValueError, words.format("compare_texts")):
        compare_texts(a.path, b.path, text=tmp_path / "t.txt")
    assert_refused(command(*argv_of(a, b), "--html", tmp_path / "p.html"), words.format("--text"))
    assert not (tmp_path / "p.html").exists()


def test_a_model_without_a_tokenizer_is_refused(two, tmp_path):
    a, b = two
    with fails(ValueError, "b.npz was opened without tokenizer=; compare_texts needs a tokenizer"):
        compare_texts(open_scores(a.path, tokenizer=a.tokenizer), b.path, text=tmp_path / "t.txt")


def test_documents_that_stop_at_other_characters_are_refused_in_either_order(tmp_path):
    (tmp_path / "t.txt").write_text("ab cd ef")
    a = model(tmp_path, "a", [[b"ab", b" c"], [b"d", b" ef"]])
    b = model(tmp_path, "b", [[b"ab"], [b"cd", b" ef"]])
    for one, other, numbers in (a, b, "0 to 2, not 0 to 4"), (b, a, "0 to 4, not 0 to 2"):
        with pytest.raises(ValueError, match=f"contains a document 0 of bytes {numbers}"):
            compared(one, other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top": -1}, "top is -1; it must be an integer >= 0"),
        ({"of_a": {"kind": "loss"}}, "kind is 'loss'; it must be 'logits', 'log_probs', 'probs'"),
        (
            {"of_b": {"window": 4, "stride": 2}},
            "window is given; it must be left out where models are compared by text",
        ),
        ({"shift": 2}, "shift is 2; it must be True, False or None"),
        ({"names": ("new", 3)}, "names is ('new', 3); it must be two names, for a and for b"),
        ({"text": b"a"}, "text is 'bytes'; it must be a path"),
        (
            {"sinks": [sinks.HtmlPage("x.html")]},
            "HtmlPage needs columns that the tokens here do not have: argmax, nll, rank",
        ),
    ],
)
def test_arguments_of_compare_texts_are_checked(options, words, two):
    with pytest.raises((TypeError, ValueError)) as caught:
        compared(*two, **options)
    assert str(caught.value) == words


def test_distributions_as_targets_are_refused(two):
    distributions(*two)
    with pytest.raises(ValueError, match=r"a\.npz: contains distributions as targets; it must contain class ids"):
        compared(*two, shift=False)


def test_targets_that_lack_the_first_token_are_refused_with_a_hint(two):
    a, b = two
    np.savez(a.path, logits=a.logits[:-1], targets=a.ids[1:], segment_ids=a.segments[:-1])
    with pytest.raises(ValueError, match="targets that are already the next tokens lack the first token of each text"):
        compared(a, b, shift=False)


def test_swapped_tokenizers_are_named(two):
    a, b = two
    a.tokenizer, b.tokenizer = b.tokenizer, a.tokenizer
    with pytest.raises((IndexError, ValueError), match="; the ids are of the text with the two tokenizers swapped"):
        compared(a, b)
    a.path = b.path
    with pytest.raises((IndexError, ValueError)) as caught:
        compared(a, b)
    assert "tokenizers swapped" not in str(caught.value)


def test_text_that_a_tokenizer_cannot_write_is_refused_with_its_document(two, tmp_path):
    pieces = {"[UNK]": 0, "In": 1, "the": 2}
    a, b = two
    a.tokenizer = tmp_path / "words.json"
    a.tokenizer.write_text(json.dumps({
        "version": "1.0", "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": pieces},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    }))  # fmt: skip
    np.savez(a.path, logits=np.zeros((5, 3)), targets=[1, 2, 1, 2, 0], segment_ids=[0, 0, 1, 1, 1])
    with pytest.raises(ValueError, match=r"a\.npz: has id 0 in document 1, the mark of .*leave that document out of"):
        compared(a, b, shift=False)


def test_compare_of_models_with_other_tokenizers_names_the_options_that_fit(two, command):
    a, b = two
    refused = command("compare", a.path, b.path, "--shift")
    assert_refused(refused, "b.npz: contains", "; models with different tokenizers need --text, --tokenizer-a and --to")


def test_packed_texts_without_segment_ids_are_told_what_they_lack(tmp_path):
    (tmp_path / "t.txt").write_text("a b\nc d")
    a, b = (model(tmp_path, name, [[b"a", b" b", b""], [b"c", b" d", b""]]) for name in "ab")
    np.savez(b.path, logits=b.logits, input_ids=b.ids)
    with pytest.raises(ValueError, match=r"b\.npz: contains 1 documents, not 2; .*segment_ids separates them"):
        compared(a, b)


def test_special_ids_beyond_a_list_of_ranks_are_those_of_the_text(tmp_path):
    (tmp_path / "t.txt").write_text("ab")
    (tmp_path / "r.tiktoken").write_text("YQ== 0\nYg== 1\n")
    np.savez(tmp_path / "a.npz", logits=np.zeros((3, 4)), targets=[0, 1, 3])
    source = open_scores(tmp_path / "a.npz", tokenizer=tmp_path / "r.tiktoken")
    result = compare_texts(source, source, text=tmp_path / "t.txt", shift=False)
    assert (result.n_tokens_a, result.n_special_a, result.bits_per_byte_a) == (3, 1, 3.0)


def test_an_output_replaces_no_input(two, tmp_path):
    for path in tmp_path / "t.txt", two[0].tokenizer, two[1].path:
        with pytest.raises(ValueError, match="would replace"):
            compared(*two, sinks=[sinks.SpanPage(path)])


# -- outputs and the command -------------------------------------------------------------------------------------------


def test_span_tables_hold_the_columns_of_the_result(two, tmp_path):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    tables = [sinks.TokenTable(str(tmp_path / f"s{suffix}")) for suffix in (".npy", ".csv", ".parquet")]
    memory = sinks.TokenTable()
    columns = compared(*two, sinks=[*tables, memory]).columns()
    assert [*memory.columns()] == [*columns]
    npy, parquet = np.load(tables[0].path), pyarrow.read_table(tables[2].path).to_pydict()
    rows = [*csv.DictReader(io.StringIO((tmp_path / "s.csv").read_text("utf-8")))]
    for name, column in columns.items():
        assert np.array_equal(memory.columns()[name], column, equal_nan=column.dtype.kind == "f")
        known = [None if value != value else value for value in column.tolist()]
        assert parquet[name] == known
        assert [row[name] for row in rows] == ["" if value is None else str(value) for value in known]
        assert name == "text" or np.array_equal(npy[name], column, equal_nan=column.dtype.kind == "f")


def test_documents_hold_sums_of_their_spans(two, command, tmp_path):
    a, b = two
    path = tmp_path / "d.csv"
    assert command(*argv_of(a, b), "--shift", "--per-sequence", path)[::2] == (0, "")
    rows, result = [*csv.DictReader(io.StringIO(path.read_text("utf-8")))], compared(a, b)
    documents, columns = result.documents, result.columns()
    assert [[float(value) for value in row.values()] for row in rows] == np.array([*documents.values()]).T.tolist()
    own = columns["kept"] & (columns["document"] == 1)
    assert documents["nll_b"][1] == math.fsum(columns["nll_b"][own])
    assert documents["n_bytes"][1] == (columns["stop"] - columns["start"])[own].sum()
    assert documents["n_tokens_a"].sum() == result.n_tokens_a
    assert documents["bits_per_byte_a"][1] == pytest.approx(
        math.fsum(columns["nll_a"][own]) / math.log(2) / documents["n_bytes"][1]
    )
    assert documents["difference"] @ documents["n_bytes"] / result.n_bytes == pytest.approx(result.difference)


def test_command_prints_what_compare_texts_returns(two, command, tmp_path):
    a, b = two
    result = compared(a, b, names=(str(a.path), "new"))
    argv = [f"new={b.path}" if word == b.path else word for word in argv_of(a, b)]
    status, out, err = command(*argv, "--shift", "--html", tmp_path / "p.html")
    assert (status, out, err) == (0, result.summary() + "\n", "")
    assert json.loads(command(*argv, "--shift", "--json")[1]) == result.to_dict()
    (row,) = csv.DictReader(io.StringIO(command(*argv, "--shift", "--format", "csv")[1]))
    assert float(row["difference"]) == result.difference
    assert float(row["difference_low"]) == result.difference.interval[0]
    assert "| b: new" in command(*argv, "--shift", "--format", "markdown")[1]
    page = (tmp_path / "p.html").read_text("utf-8")
    for shown in "<p>In the beginning</p>", "blue: new needs fewer bits; red: it needs more", "difference in nats from":
        assert shown in page
    assert "Worst spans" in page
    assert "<h2 id=sequence-1>document 1</h2>" in page


def test_page_goes_through_the_spans_by_the_size_of_their_difference(tmp_path):
    (tmp_path / "t.txt").write_text("ab cd ef")
    a, b = (
        model(tmp_path, *one) for one in (("a", [words("ab cd ef")], [1, 5, 2]), ("b", [words("ab cd ef")], [2, 1, 4]))
    )
    result = compared(a, b, shift=False, sinks=[sinks.SpanPage(tmp_path / "page.html")])
    assert result.columns()["difference"] == pytest.approx([1, -4, 2])
    page = Reader((tmp_path / "page.html").read_text("utf-8"))
    assert page.data["models"][0]["worst"] == [1, 2, 0]
    assert f"{result.detectable:.2g}" in [text.strip() for text in page.texts["dd"]]


def test_command_refuses_what_does_not_apply_to_texts(two, command):
    argv = argv_of(*two)
    assert_refused(command(*argv[:5]), "--tokenizer-a is missing; models with different tokenizers need --text, "
                   "--tokenizer-a, --tokenizer-b")  # fmt: skip
    assert_refused(command(*argv, "more.npz"), "OTHER more.npz: --text compares two models")
    for option in ("--max-kl=1", "--base-kind=logits", "--size=a=1", "--plot=x.png",
                   "--state=x", "--lm-head=x", "--noise=x", "--classes=4", "--skip-failed",
                   "--definitions=llama.cpp", "--confidence=0.9"):  # fmt: skip
        assert_refused(command(*argv, option), f"{option.split('=')[0]} does not apply to models with different")
    assert not list(two[0].path.parent.glob("x*"))


def test_what_these_texts_could_have_detected(tmp_path, command):
    texts = [*DOCUMENTS[:3]] * 7
    (tmp_path / "t.txt").write_bytes("\n".join(texts).encode())
    two = [model(tmp_path, "a", [*map(words, texts)]), model(tmp_path, "b", [cut(one, 3) for one in texts])]
    result = compared(*two)
    documents = result.documents
    n = len(documents["document"])
    residuals = documents["difference"] * documents["n_bytes"] - result.difference * documents["n_bytes"]
    stderr = math.sqrt(n / (n - 1) * (residuals**2).sum()) / result.n_bytes
    assert result.difference.stderr == pytest.approx(stderr, rel=1e-9)
    factor = result.interval_factor  # Student's t of the degrees of freedom that documents of unequal length have
    dof = optimize.brentq(lambda dof: stats.t.ppf(0.975, dof) - factor, 0.3, 1e5)
    power = stats.nct(dof, result.detectable / stderr)
    assert power.sf(factor) + power.cdf(-factor) == pytest.approx(0.8, abs=1e-4)
    argv = [*argv_of(*two), "--shift", "--json"]
    plain, with_detect = (json.loads(command(*argv, *more)[1]) for more in ((), ("--detect", "0.05")))
    assert plain["detectable"] == result.detectable
    assert "needed" not in plain
    needed = dataclasses.replace(result, detect=0.05).needed
    assert with_detect["needed"] == needed > n
    table = command(*argv[:-1], "--detect", "0.05")[1].partition("Detectable with")[2]
    assert f"{needed:,}" in table.split()
    digits = next(one for one in result.kinds if one.difference.stderr > 0)
    assert digits.detectable > 2.8 * digits.difference.stderr
