"""token_bytes and the tokenizers' files that it reads, against the packages that run these tokenizers."""

import base64
import json
import pickle

import made_tokenizers
import numpy as np
import pytest
from damage import DAMAGES, bounded, damaged, fuzzed
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenloss import token_bytes
from tokenloss.formats.tokenizers import AlignedText, Tokenizer, open_tokenizer
from tokenloss.formats.tokenizers.token_text import BYTES
from tokenloss.formats.tokenizers.tokenizer import Vocabulary

pytestmark = pytest.mark.thread_unsafe(reason="sets an alarm for the process, and measures its memory")


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a tokenizer once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = made_tokenizers.make(name, tmp_path_factory.mktemp("tokenizer"))
        return made[name]

    return make


def first_of(*texts):
    """The ids of texts, joined, and which of them are the first of a text."""
    ids = np.concatenate([np.array(text, np.int64) for text in texts])
    return ids, np.concatenate([np.arange(len(text)) == 0 for text in texts])


def pieces_of(tokenizer, ids):
    return b"".join(tokenizer.pieces_of(*first_of(ids)))


# -- the tokenizers themselves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", made_tokenizers.TOKENIZERS)
def test_bytes_of_ids_are_those_of_lines_of_many_scripts(name, n, make):
    made, lines = make(name), made_tokenizers.lines(n)
    tokenizer = open_tokenizer(made.path)
    if name == "Unigram with ▁":  # a space is added to a text that begins with none: these two write the same
        lines = [line for line in lines if not line.startswith(" ") or line.startswith("  ")]
    texts = [made.encode(line) for line in lines]
    ids, is_first = first_of(*texts)
    expected = [len(line.encode()) for line in lines]
    if tokenizer.drops_spaces:  # no token holds white space
        expected = [len("".join(line.split()).encode()) for line in lines]
    assert np.add.reduceat(tokenizer.lengths(ids, is_first), np.flatnonzero(is_first)).tolist() == expected
    added = sum(not line.startswith("  ") for line in lines) if name == "Unigram with ▁" else len(lines)
    assert token_bytes(made.path)[ids].sum() == sum(expected) + tokenizer.has_prefix_space * added


@pytest.mark.parametrize("n", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", made_tokenizers.TOKENIZERS)
def test_pieces_decode_every_text_as_the_tokenizer_itself_does(name, n, make):
    made = make(name)
    tokenizer = open_tokenizer(made.path)
    for line in made_tokenizers.lines(n):
        ids = made.encode(line)
        written, decoded = pieces_of(tokenizer, ids).decode(), made.decode(ids)
        if tokenizer.drops_spaces:
            written, decoded = written.replace(" ", ""), decoded.replace(" ", "")
        elif name == "Unigram with ▁":  # whose decoder leaves out all spaces at the start
            written = written.lstrip(" ")
            decoded = decoded.lstrip(" ")
        assert written == decoded


@pytest.mark.parametrize("name", made_tokenizers.TOKENIZERS)
def test_aligned_text_has_the_bytes_of_each_token_in_any_blocks(name, make, tmp_path, rng):
    made, lines = make(name), made_tokenizers.lines(2000)
    tokenizer = open_tokenizer(made.path)
    ids, is_first = first_of(*map(made.encode, lines))
    path = tmp_path / "text.txt"
    path.write_bytes("\n".join(lines).encode())
    data = path.read_bytes()
    aligned = AlignedText(str(path), tokenizer)
    starts, stops = aligned.update(ids, is_first, "ids")
    aligned.end()
    gaps = starts[1:] - stops[:-1]
    assert starts[0] >= 0
    assert stops[-1] <= len(data)
    assert (gaps[~is_first[1:]] == 0).all()
    assert not b"".join(data[a:b] for a, b in zip(stops[:-1], starts[1:], strict=True)).strip()
    for i in range(len(ids)):
        piece, result = tokenizer.pieces[ids[i]], data[starts[i] : stops[i]]
        assert piece.strip() == result.strip() if tokenizer.drops_spaces else result in (piece, piece[1:])
    bounds = np.sort(rng.integers(0, len(ids), 300))
    aligned = AlignedText(str(path), tokenizer)
    parts = [
        aligned.update(ids[part], is_first[part], "ids")
        for part in (slice(a, b) for a, b in zip([0, *bounds], [*bounds, len(ids)], strict=True))
    ]
    aligned.end()
    in_blocks = np.concatenate(parts, axis=1)
    assert (in_blocks[1] - in_blocks[0]).tolist() == (stops - starts).tolist()
    assert in_blocks[:, stops > starts].tolist() == [starts[stops > starts].tolist(), stops[stops > starts].tolist()]


# -- defects that others had ------------------------------------------------------------------------------------------


def save_ranks(folder, pieces, name="ranks.tiktoken"):
    path = folder / name
    path.write_text("".join(f"{base64.b64encode(piece).decode()} {rank}\n" for rank, piece in enumerate(pieces)))
    return path


def as_json(model, decoder=None, pre_tokenizer=None, normalizer=None, added=(), version="1.0"):
    """The text of a tokenizer.json."""
    model = {"type": "BPE", "merges": [], **model} if isinstance(model["vocab"], dict) else model
    said = {"version": version, "added_tokens": [*added], "normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    return json.dumps({**said, "decoder": decoder, "model": model})


def save_json(folder, *parts, **more):
    path = folder / "tokenizer.json"
    path.write_text(as_json(*parts, **more), "utf-8")
    return path


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
LLAMA = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}
TO_METASPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
ALL_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_vocab(*more):
    return {piece: i for i, piece in enumerate([*BYTES, *more])}


@pytest.mark.parametrize("issue", ["nanochat_693", "autoresearch_384"])
def test_bytes_that_are_no_character_alone_count_as_one_each_as_in(issue, tmp_path):
    """Decoded one by one, they become U+FFFD, of three bytes."""
    dog = "🐕".encode()
    path = save_ranks(tmp_path, [*(bytes([byte]) for byte in range(256)), dog[:2], dog[2:]])
    n_bytes = token_bytes(path)
    assert n_bytes[128] == 1 != len(bytes([128]).decode("utf-8", "replace").encode())
    assert n_bytes[[256, 257]].sum() == len(dog)
    assert n_bytes.dtype == np.int64


def test_spaces_written_as_three_tokens_of_a_byte_are_refused_as_in_parameter_golf_897(tmp_path):
    """Without a piece ▁, SentencePiece writes a space as <0xE2><0x96><0x81>, which would count as three bytes."""
    vocab = {piece: i for i, piece in enumerate([*ALL_BYTES, "▁the", "cat"])}
    path = save_json(tmp_path, {"vocab": vocab, "byte_fallback": True}, LLAMA, None, TO_METASPACE)
    with pytest.raises(ValueError, match="no piece ▁, so it writes a space as three byte tokens"):
        token_bytes(path)


def test_byte_tokens_count_as_one_as_in_parameter_golf_1271(tmp_path):
    vocab = {piece: i for i, piece in enumerate([*ALL_BYTES, "▁", "▁the"])}
    path = save_json(tmp_path, {"vocab": vocab, "byte_fallback": True}, LLAMA, None, TO_METASPACE)
    assert token_bytes(path).tolist() == [1] * 256 + [1, 4]


def test_leading_spaces_count_once_as_in_parameter_golf_1719(make):
    """The space before a word is one byte of its token: not three, not none, and not one more for each token before."""
    made = make("SentencePiece BPE with bytes")
    tokenizer, text = open_tokenizer(made.path), "the cat and the dog"
    ids, is_first = first_of(made.encode(text))
    assert tokenizer.lengths(ids, is_first).sum() == len(text)
    assert token_bytes(made.path)[ids].sum() == len(text) + 1  # the space that SentencePiece adds to a text


def test_marks_that_were_put_into_the_text_are_refused_as_in_parameter_golf_2138(tmp_path):
    """A mark of capitals takes three bytes that the text lacks; counted, they lower the bits per byte."""
    mark = "\ue001"
    pieces = [bytes([byte]) for byte in range(256)] + [mark.encode(), b"hello"]
    tokenizer = open_tokenizer(save_ranks(tmp_path, pieces))
    text = tmp_path / "text.txt"
    text.write_text("Hello", "utf-8")
    with pytest.raises(ValueError, match=r"byte 0: line 1 continues with b'Hello', and token 0 of ids, id 256, is"):
        AlignedText(str(text), tokenizer).update(*first_of([256, 257]), "ids")


def test_spans_of_another_source_are_refused_as_in_marin_6011(make, tmp_path):
    """Bytes of tokens are held against the text, and tokens of no byte keep their place."""
    made = make("byte-level BPE")
    tokenizer, text = open_tokenizer(made.path), tmp_path / "text.txt"
    text.write_text("a cat", "utf-8")
    ids = [0, *made.encode("a cat"), 0]  # <|endoftext|> before and after
    starts, stops = AlignedText(str(text), tokenizer).update(*first_of(ids), "ids")
    assert (starts[0], stops[0], starts[-1], stops[-1]) == (0, 0, 5, 5)
    with pytest.raises(ValueError, match=r"byte [12]: line 1 continues with b' ?cat', and token [12] of ids, id "):
        AlignedText(str(text), tokenizer).update(*first_of(made.encode("a dog")), "ids")
    with pytest.raises(ValueError, match=r"byte 0: line 1 continues .*; they may belong to another text, tokenizer or"):
        AlignedText(str(text), tokenizer).update(*first_of([0, *made.encode("the dog")]), "ids")
    text.write_text("<|endoftext|>a", "utf-8")
    with pytest.raises(ValueError, match=r"byte 0: line 1 continues .*; special tokens before it write nothing"):
        AlignedText(str(text), tokenizer).update(*first_of([0, *made.encode("a")]), "ids")


def test_special_tokens_write_nothing_and_byte_tokens_one_as_in_marin_6013(make):
    made = make("BPE with bytes")
    n_bytes, tokenizer = token_bytes(made.path), open_tokenizer(made.path)
    assert n_bytes[:3].tolist() == [0, 0, 0]
    assert tokenizer.is_special[:3].all()
    assert (n_bytes[3:259] == 1).all()


# -- formats ----------------------------------------------------------------------------------------------------------


def test_added_tokens_count_with_their_text_unless_they_are_special(tmp_path):
    added = [
        {"id": 256, "content": "<|end|>", "special": True},
        {"id": 257, "content": "    ", "special": False},
        {"id": 258, "content": "né", "special": False},  # not in the alphabet of bytes
        {"id": 262, "content": "<mask>", "special": False, "lstrip": True},
        {"id": 263, "content": "<sep>", "special": False, "rstrip": True},
    ]
    path = save_json(tmp_path, {"vocab": byte_vocab()}, BYTE_LEVEL, BYTE_LEVEL, added=added)
    tokenizer = open_tokenizer(path)
    assert tokenizer.n_bytes[256:].tolist() == [0, 4, 3, 0, 0, 0, 0, 0]
    assert tokenizer.is_special.nonzero()[0].tolist() == [256]
    assert tokenizer.unknown.nonzero()[0].tolist() == [259, 260, 261, 262, 263]  # three ids that there are not
    # é is in the vocabulary as a byte: what an added é writes is not known
    added = [{"id": BYTE_IDS["é"], "content": "é", "special": False}]
    path = save_json(tmp_path, {"vocab": byte_vocab()}, BYTE_LEVEL, BYTE_LEVEL, added=added)
    assert open_tokenizer(path).unknown.nonzero()[0].tolist() == [BYTE_IDS["é"]]


BYTE_IDS = byte_vocab()
NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}

# by what it does: parts of a tokenizer.json, and the bytes of its ids, whether a space is added, and spaces dropped
LAYOUTS = {
    "Metaspace": (
        [{"vocab": [["<unk>", 0], ["▁", 0], ["▁a", 0]], "unk_id": 0}, METASPACE, METASPACE], [0, 1, 2], True, False
    ),
    "Metaspace of old files": (
        [{"vocab": [["▁a", 0]]}, {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True},
         {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}], [2], True, False
    ),
    "Metaspace that adds none": (
        [{"vocab": [["▁a", 0]]}, *[{**METASPACE, "prepend_scheme": "never"}] * 2], [2], False, False
    ),
    "Prepend and Replace": (
        [{"vocab": {"<unk>": 0, "▁a": 1, "▁": 2}, "unk_token": "<unk>"}, LLAMA, None,
         {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, TO_METASPACE]}],
        [0, 2, 1], True, False
    ),
    "Split and ByteLevel": (
        [{"vocab": byte_vocab("Ġa")}, BYTE_LEVEL, {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"'s|\p{L}+|\s+(?!\S)|\s+"}, "behavior": "Removed", "invert": True},
            {**BYTE_LEVEL, "add_prefix_space": True}]}], [1] * 256 + [2], True, True
    ),
    "end of word": (
        [{"vocab": byte_vocab("a</w>"), "end_of_word_suffix": "</w>"}, BYTE_LEVEL,
         {"type": "Sequence", "pretokenizers": [
             {"type": "Split", "pattern": {"Regex": r"\p{L}+|[^\s\p{L}]+"}, "behavior": "Removed", "invert": True},
             BYTE_LEVEL]}], [1] * 257, False, True
    ),
    "BPEDecoder": (
        [{"vocab": {"<unk>": 0, "a</w>": 1, "b": 2}, "unk_token": "<unk>"}, {"type": "BPEDecoder", "suffix": "</w>"},
         {"type": "WhitespaceSplit"}], [0, 1, 1], False, True
    ),
    "bytes that lack": (  # BPE leaves out what it has no token for
        [{"vocab": {"a": 0, "Ġ": 1}}, BYTE_LEVEL, BYTE_LEVEL], [1, 1], False, True
    ),
    "WordPiece": (
        [{"type": "WordPiece", "vocab": {"[UNK]": 0, "##é": 1, "b": 2}, "unk_token": "[UNK]",
          "continuing_subword_prefix": "##"}, {"type": "WordPiece", "prefix": "##", "cleanup": True},
         {"type": "BertPreTokenizer"}], [0, 2, 1], False, True
    ),
    "Digits and ByteLevel with a space": (  # a space comes before each digit
        [{"vocab": byte_vocab("Ġa")}, BYTE_LEVEL, {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, {**BYTE_LEVEL, "add_prefix_space": True}]}],
        [1] * 256 + [2], True, True
    ),
    "ByteLevel with a space, and Digits": (
        [{"vocab": byte_vocab("Ġa")}, BYTE_LEVEL, {"type": "Sequence", "pretokenizers": [
            {**BYTE_LEVEL, "add_prefix_space": True}, {"type": "Digits", "individual_digits": True}]}],
        [1] * 256 + [2], True, False
    ),
    "bytes that are in no UTF-8": (
        [{"vocab": {c: i for i, c in enumerate(c for c, byte in BYTES.items() if byte not in NEVER)}}, BYTE_LEVEL,
         BYTE_LEVEL], [1] * 243, False, False
    ),
    "a Replace that is not undone": (
        [{"vocab": byte_vocab("Ġa")}, BYTE_LEVEL, BYTE_LEVEL,
         {"type": "Replace", "pattern": {"String": "\n"}, "content": "¶"}], [1] * 256 + [2], False, True
    ),
    "no decoder": ([{"vocab": byte_vocab("Ġa")}, None, BYTE_LEVEL], [1] * 256 + [2], False, False),
    "WordLevel": (
        [{"type": "WordLevel", "vocab": {"é": 0, "b": 1}}, None, {"type": "Whitespace"}], [2, 1], False, True
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_tokenizer_json(name, tmp_path):
    parts, n_bytes, has_prefix_space, drops_spaces = LAYOUTS[name]
    tokenizer = open_tokenizer(save_json(tmp_path, *parts))
    result = tokenizer.n_bytes.tolist(), tokenizer.has_prefix_space, tokenizer.drops_spaces
    assert result == (n_bytes, has_prefix_space, drops_spaces)


def test_space_of_a_prefix_is_taken_off_the_first_token_that_writes(tmp_path):
    vocab = [["<s>", 0], ["▁", 0], ["▁▁a", 0], ["▁b", 0], ["c", 0]]
    added = [{"id": 0, "content": "<s>", "special": True}]
    tokenizer = open_tokenizer(save_json(tmp_path, {"vocab": vocab}, METASPACE, METASPACE, added=added))
    texts = [0, 3, 3], [1, 4], [2], [1, 3], [0], [4, 3], [-100, 3]  # " b b" is "b b", "  a" has both of its spaces
    ids, is_first = first_of(*texts)
    assert tokenizer.lengths(ids, is_first).tolist() == [0, 1, 2, 0, 1, 3, 1, 2, 0, 1, 2, 0, 1]
    assert b"|".join(tokenizer.pieces_of(ids, is_first)) == b"|b| b||c|  a| | b||c| b||b"
    assert [tokenizer.is_open(*first_of(text)) for text in texts] == [False] * 4 + [True, False, False]


@pytest.mark.parametrize(("template", "restarts"), [("<s> $A", [0]), ("$A <s>", []), ("<s> $A <s>", [0])])
def test_a_text_begins_anew_after_the_tokens_before_it_in_a_template(template, restarts, tmp_path):
    path = save_json(
        tmp_path, {"vocab": {"<s>": 0, "▁": 1, "a": 2}}, METASPACE, {**METASPACE, "prepend_scheme": "first"}
    )
    parts = [{"Sequence": {"id": "A"}} if one == "$A" else {"SpecialToken": {"id": one}} for one in template.split()]
    processor = {"type": "TemplateProcessing", "single": parts, "special_tokens": {"<s>": {"id": "<s>", "ids": [0]}}}
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "post_processor": processor}), "utf-8")
    assert open_tokenizer(path).restarts.nonzero()[0].tolist() == restarts


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_text_that_begins_after_a_special_token_may_begin_in_the_next_block(cut, tmp_path):
    tokenizer = Tokenizer("words", Vocabulary({1: b"ab", 2: b"cd"}, special=frozenset([0])))
    (tmp_path / "text.txt").write_text("ab\n cd")
    ids, is_first = first_of([0, 1, 0, 2])  # [CLS] ab [CLS] cd, as one sequence
    whole = AlignedText(str(tmp_path / "text.txt"), tokenizer).update(ids, is_first, "ids")
    aligned = AlignedText(str(tmp_path / "text.txt"), tokenizer)
    parts = [aligned.update(ids[part], is_first[part], "ids") for part in (slice(cut), slice(cut, None))]
    aligned.end()
    for starts, stops in whole, np.concatenate(parts, axis=1):
        assert [*zip(starts.tolist(), stops.tolist(), strict=True)][1::2] == [(0, 2), (4, 6)]


def protobuf(number, value):
    """A field of a message: a number, or bytes."""
    size = bytes([value]) if isinstance(value, int) else bytes([len(value)]) + value
    return bytes([number << 3 | 2 * isinstance(value, bytes)]) + size


def test_sentencepiece_with_some_bytes_writes_unknown_text(tmp_path):
    """Only with all 256 bytes is every text known."""
    pieces = [("<unk>", 2), ("▁", 1), ("a", 1), ("<0x41>", 6)]
    data = b"".join(protobuf(1, protobuf(1, name.encode()) + protobuf(3, kind)) for name, kind in pieces)
    (tmp_path / "tokenizer.model").write_bytes(data)
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.n_bytes.tolist() == [0, 1, 1, 1]
    assert (tokenizer.unknown.tolist(), tokenizer.is_special.any()) == ([True, False, False, False], False)


def test_added_tokens_are_normalized_and_bytes_are_not_special(tmp_path):
    """A token that is looked for in the normalized text holds the space before it."""
    vocab = {piece: i for i, piece in enumerate([*ALL_BYTES, "▁", "b"])}
    added = [
        *({"id": i, "content": piece, "special": True} for i, piece in enumerate(ALL_BYTES)),
        {"id": 257, "content": "b", "special": False, "normalized": True},  # b by the model, or " b"
        {"id": 258, "content": "foo", "special": False, "normalized": True},
        {"id": 259, "content": "bar", "special": False},
    ]
    path = save_json(
        tmp_path, {"vocab": vocab, "byte_fallback": True}, *LAYOUTS["Prepend and Replace"][0][1:], added=added
    )
    tokenizer = open_tokenizer(path)
    assert tokenizer.n_bytes.tolist() == [1] * 257 + [0, len(" foo"), len("bar")]
    assert tokenizer.unknown.nonzero()[0].tolist() == [257]
    assert tokenizer.restarts.nonzero()[0].tolist() == [259]


def test_tokenizer_json_of_old_libraries_has_no_type_of_its_model(tmp_path):
    path = save_json(tmp_path, {"vocab": byte_vocab("Ġa")}, BYTE_LEVEL, BYTE_LEVEL)
    said = json.loads(path.read_text("utf-8"))
    del said["model"]["type"]
    path.write_text(json.dumps(said), "utf-8")
    assert token_bytes(path).tolist() == [1] * 256 + [2]


def test_sentencepiece_reads_kinds_of_pieces(make, tmp_path):
    pytest.importorskip("sentencepiece")
    options = {"model_type": "bpe", "vocab_size": 900, **made_tokenizers.WITH_BYTES}
    made = made_tokenizers.sentence_piece(
        tmp_path, control_symbols=["<c>"], user_defined_symbols=["<u>", "▁▁"], add_dummy_prefix=False, **options
    )
    tokenizer = open_tokenizer(made.path)
    assert not tokenizer.has_prefix_space
    ids = made.encode("a<u>  b\n")
    assert pieces_of(tokenizer, ids) == b"a<u>  b\n"
    assert tokenizer.is_special[:4].tolist() == [True, True, True, True]  # <unk>, which no text needs, <s>, </s>, <c>
    made = made_tokenizers.sentence_piece(tmp_path, model_type="unigram")
    assert open_tokenizer(made.path).unknown.nonzero()[0].tolist() == [0]  # <unk>
    made = made_tokenizers.sentence_piece(tmp_path, treat_whitespace_as_suffix=True, model_type="unigram")
    with pytest.raises(ValueError, match="treat_whitespace_as_suffix"):
        token_bytes(made.path)


def test_tekken_json_has_special_tokens_first(tmp_path):
    pieces = [*(bytes([byte]) for byte in range(256)), b"the", b"left out"]
    vocab = [{"rank": i, "token_bytes": base64.b64encode(piece).decode()} for i, piece in enumerate(pieces)]
    config = {"default_vocab_size": 260, "default_num_special_tokens": 3, "version": "v3", "pattern": ""}
    (tmp_path / "tekken.json").write_text(json.dumps({"config": config, "vocab": vocab}))
    assert token_bytes(tmp_path).tolist() == [0] * 3 + [1] * 256 + [3]


def test_vocab_json_and_merges_of_gpt_2(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(byte_vocab("Ġa", "<|endoftext|>")))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ a\n", "utf-8")
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.n_bytes.tolist() == [1] * 256 + [2, 0]  # no merge makes the last one, so it is special
    assert tokenizer.is_special.nonzero()[0].tolist() == [257]
    config = {"added_tokens_decoder": {"257": {"content": "<tool>", "special": False}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.n_bytes[257], tokenizer.is_special.any()) == (len("<tool>"), False)
    assert not tokenizer.has_prefix_space
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "add_prefix_space": True}))
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.has_prefix_space
    assert tokenizer.restarts.nonzero()[0].tolist() == [257]


def test_vocab_json_of_clip_has_marks_at_the_ends_of_words(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(byte_vocab(*(c + "</w>" for c in BYTES), "ab</w>", "<|end|>")))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\n", "utf-8")
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.n_bytes.tolist() == [1] * 512 + [2, 0]
    assert tokenizer.drops_spaces


@pytest.mark.parametrize(("name", "kind"), [("sentencepiece.bpe.model", "A"), ("spiece.model", "PegasusTokenizerFast")])
def test_models_whose_ids_are_shifted_are_refused(name, kind, tmp_path):
    (tmp_path / name).write_bytes(SEEDS["model"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    with pytest.raises(ValueError, match=r"its model uses other ids than this file has; give the tokenizer\.j"):
        token_bytes(tmp_path / name)


def test_a_tokenizer_that_is_no_path_is_refused_by_name():
    words = r"save a model's tokenizer with save_pretrained\(DIR\), and give DIR"
    with pytest.raises(TypeError, match=f"tokenizer is 'int'; it must be a path: {words}"):
        token_bytes(5)
    with pytest.raises(FileNotFoundError, match=f"No such file or directory; {words}: 'gpt2'"):
        token_bytes("gpt2")


@pytest.mark.parametrize("name", ["a.tiktoken", "tokenizer.model"])
def test_ranks_are_told_by_their_content_and_special_tokens_by_the_configuration(name, tmp_path):
    path = save_ranks(tmp_path, [b"a", b"bc"], name)
    added = {"2": {"content": "<|end|>", "special": True}, "4": {"content": "<call>", "special": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.path == str(path)
    assert tokenizer.n_bytes.tolist() == [1, 2, 0, 0, 6]
    assert tokenizer.is_special.nonzero()[0].tolist() == [2]
    assert (token_bytes(path) == tokenizer.n_bytes).all()
    assert isinstance(pickle.loads(pickle.dumps(tokenizer)), Tokenizer)  # noqa: S301 -- it was made here


def test_folder_has_its_tokenizer_json_first(tmp_path):
    save_ranks(tmp_path, [b"a"])
    path = save_json(tmp_path, {"vocab": byte_vocab()}, BYTE_LEVEL, BYTE_LEVEL)
    assert open_tokenizer(tmp_path).path == str(path)


# -- files that are refused -------------------------------------------------------------------------------------------

BYTES_ONLY = {"vocab": byte_vocab()}
REFUSED = {
    "a version": (as_json(BYTES_ONLY, BYTE_LEVEL, BYTE_LEVEL, version="2.0"), "version '2.0', but only '1.0' is"),
    "JSON that is cut": (as_json(BYTES_ONLY, BYTE_LEVEL, BYTE_LEVEL)[:-9], "cannot be read: "),
    "a decoder": (as_json(BYTES_ONLY, {"type": "CTC", "pad_token": "<pad>"}), "decoder has an unknown step"),
    "a Strip of each token": (
        as_json(BYTES_ONLY, {"type": "Strip", "content": " ", "start": 1, "stop": 0}), "unknown step: {'type': 'Strip'"
    ),
    "a Replace of a Regex": (
        as_json(BYTES_ONLY, {"type": "Replace", "pattern": {"Regex": "a"}, "content": ""}),
        "an unknown step: {'type': 'Replace'",
    ),
    "a pre_tokenizer": (as_json(BYTES_ONLY, None, {"type": "Reverse"}), "unknown step: {'type': 'Reverse'}"),
    "a decoder that does not fit": (as_json(BYTES_ONLY, METASPACE, BYTE_LEVEL), "its decoder is ByteLevel"),
    "a space that stays ▁": (as_json({"vocab": {"▁": 0}}, None, None, TO_METASPACE), "does not turn '▁' into a space"),
    "a prefix that is no space": (
        as_json({"vocab": {"_": 0}}, None, None, {"type": "Prepend", "prepend": "_"}), "does not turn '_' into a space"
    ),
    "a step after ByteLevel": (
        as_json(BYTES_ONLY, {"type": "Sequence", "decoders": [BYTE_LEVEL, METASPACE]}, BYTE_LEVEL),
        "has Metaspace after ByteLevel",
    ),
    "a vocabulary of Keras": ('{"class_name": "Tokenizer", "config": {}}', "it is not a tokenizer.json or vocab.json"),
    "a pickle": (pickle.dumps({"a": 1}), "a pickle or an archive"),
    "protobuf that is cut": (b"\n\x20abc", "it ends inside a field"),
    "protobuf without pieces": (b"\x12\x00", "or a damaged one of SentencePiece, which has pieces"),
    "a number that is cut": (b"\n\xff", "it ends inside a number"),
    "a rank that comes twice": ("YQ== 0\nYg== 0\n", "a rank is given twice"),
    "an id that is too large": (as_json({"vocab": {"a": 1 << 40}}), "integers from 0 to"),
    "an id that is no number": (as_json({"vocab": {"a": "b"}}), "integers from 0 to"),
    "a surrogate": ('{"version": "1.0", "model": {"vocab": {"\\ud800": 0}}}', "contains half of a surrogate pair"),
    "nothing": (b"", "or a damaged one of SentencePiece, which has pieces"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_tokenizers_that_are_refused(name, tmp_path):
    data, words = REFUSED[name]
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(ValueError) as raised:
        token_bytes(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert words in str(raised.value)


def test_folders_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no tokenizer file; it must have one: tokenizer\.json"):
        token_bytes(tmp_path)
    for name in "a.tiktoken", "b.tiktoken":
        save_ranks(tmp_path, [b"a"], name)
    with pytest.raises(ValueError, match=r"contains 2 files \*\.tiktoken"):
        token_bytes(tmp_path)
    with pytest.raises(FileNotFoundError):
        token_bytes(tmp_path / "none.json")


# -- ids and texts that are refused -----------------------------------------------------------------------------------


def test_ids_without_bytes_are_refused(tmp_path):
    tokenizer = open_tokenizer(save_json(tmp_path, *LAYOUTS["Metaspace"][0]))
    with pytest.raises(IndexError, match=r"ids\[2\] = 3 is out of range \[0, 3\), the ids of .*tokenizer\.json"):
        tokenizer.lengths(*first_of([1, 2, 3]))
    with pytest.raises(
        ValueError, match=r"has no bytes for id 0, ids\[1\], which marks unknown text or is not a token"
    ):
        tokenizer.pieces_of(*first_of([1, 0]))
    text = tmp_path / "text.txt"
    text.write_text("a", "utf-8")
    aligned = AlignedText(str(text), tokenizer)
    aligned.update(*first_of([2]), "a.npy")
    with pytest.raises(IndexError, match=r"a\.npy\[1\] = 7 is out of range"):
        aligned.update(*first_of([7]), "a.npy")


def changed(change):
    """A text, and one that was changed."""
    text = "Zwei  ﬁnes Café:\n한글 and ½ of it.\nThe end"
    return text.encode(), change(text)


def normalized(form):
    import unicodedata

    return lambda text: unicodedata.normalize(form, text).encode()


# by cause: the file, the text of the ids, and what the message says
DIFFERENT = {
    "a byte order mark": (b"\xef\xbb\xbfa b", b"a b", r"byte 0: line 1 continues with .*byte order mark"),
    "CRLF": (b"a b\r\nc d\r\n", b"a b\nc d\n", r"byte 3: line 1 continues .*they spell it with LF for CRLF"),
    "LF": (b"a b\nc d\n", b"a b\r\nc d\r\n", r"byte 3: line 1 continues .*it is their text with LF for CRLF"),
    "CRLF after ids": (b"a b\r\nc d\r\n", b"a b\n", r"byte 3: line 1 continues .*they spell it with LF for CRLF"),
    "ids in NFD": (*changed(normalized("NFD")), r"byte 16: .*it is their text in NFC"),
    "ids in NFKC": (*changed(normalized("NFKC")), r"byte 6: .*they spell it in NFKC"),
    "text in NFD": (*changed(normalized("NFD"))[::-1], r"byte 16: .*they spell it in NFC"),
    "lower case": (*changed(lambda text: text.lower().encode()), r"byte 0: .*they spell it in lower case$"),
    "single spaces": (*changed(lambda text: text.replace("  ", " ").encode()), r"byte 5: .*with single spaces"),
    "ids that end": (b"a\nb cd", b"a\nb", r"byte 4: line 2 continues with b'cd' after the last token; it must end"),
    "a text that ends": (b"a\nb", b"a\nb cd", r"byte 3: line 2 ends, and token 3 of .*, id 32, is .*it ends before"),
    "bytes that are not UTF-8": (b"ab \xff cd", "ab \ufffd cd".encode(), "byte 3: .*it is not UTF-8 there"),
    "a lone surrogate": (b"ab \xed\xa0\x80 cd", "ab \ufffd cd".encode(), "byte 3: .*it is not UTF-8 there"),
    "another text": (b"ab cd ef", b"ab xy ef", "byte 3: .*they may belong to another text, tokenizer or version"),
}  # fmt: skip


@pytest.mark.parametrize("cause", DIFFERENT)
def test_texts_that_differ_name_the_first_token_and_the_cause(cause, tmp_path):
    data, of_ids, words = DIFFERENT[cause]
    tokenizer = open_tokenizer(save_ranks(tmp_path, [bytes([byte]) for byte in range(256)]))
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    ids, is_first = first_of([*of_ids])

    def align(size):
        aligned = AlignedText(str(path), tokenizer)
        for start in range(0, len(ids), size):
            aligned.update(ids[start : start + size], is_first[start : start + size], "ids.npy")
        aligned.end()

    with pytest.raises(ValueError, match=words):
        align(size=1000)
    with pytest.raises(ValueError, match=r"text\.txt: byte \d+: line \d"):  # of one token, the cause may not be seen
        align(size=1)


def test_white_space_of_word_piece_belongs_to_the_token_after_it(tmp_path):
    added = [{"id": 3, "content": "b b"}]
    tokenizer = open_tokenizer(save_json(tmp_path, *LAYOUTS["WordPiece"][0], added=added))
    path = tmp_path / "text.txt"
    path.write_text(" b  b\u2003bé\n\nb b b\n", "utf-8")
    ids, is_first = first_of([2, 2, 2, 1], [3, 2])
    aligned = AlignedText(str(path), tokenizer)
    starts, stops = aligned.update(ids, is_first, "ids")
    aligned.end()
    assert starts.tolist() == [1, 2, 5, 9, 13, 16]
    assert stops.tolist() == [2, 5, 9, 11, 16, 18]
    path.write_text(" b  B bé", "utf-8")
    with pytest.raises(ValueError, match=r"byte 4: line 1 continues with b'B .*, id 2, is b'b'.*in lower case"):
        AlignedText(str(path), tokenizer).update(ids[:4], is_first[:4], "ids")


def test_masked_ids_hide_what_the_text_holds(tmp_path):
    tokenizer = open_tokenizer(save_ranks(tmp_path, [bytes([byte]) for byte in range(256)]))
    path = tmp_path / "text.txt"
    path.write_bytes(b"ab")
    with pytest.raises(ValueError, match="1 ids before it are below 0 and write nothing, but the text contains"):
        AlignedText(str(path), tokenizer).update(*first_of([-100, ord("b")]), "ids")
    path.write_bytes(b"")
    aligned = AlignedText(str(path), tokenizer)
    aligned.update(*first_of([-100, -1]), "ids")
    aligned.end()


def test_text_may_be_of_windows_that_begin_with_a_space(make, tmp_path):
    """Windows of a text begin with the spaces that it has; documents on lines of their own begin with an added one."""
    made = make("SentencePiece BPE with bytes")
    tokenizer, path = open_tokenizer(made.path), tmp_path / "text.txt"
    path.write_bytes(b"the cat\nthe dog and the pig\n\n")
    ids = made.encode("the dog and the pig")
    begins = [i for i, one in enumerate(ids) if tokenizer.pieces[one].startswith(b" ")]
    texts = [made.encode("the cat"), *np.split(np.array(ids), begins[1:])]  # a window for each word
    aligned = AlignedText(str(path), tokenizer)
    starts, stops = aligned.update(*first_of(*texts), "ids")
    aligned.end()
    assert (stops - starts).sum() == len(b"the catthe dog and the pig")


# by what a file does with white space: texts, the file, and the bytes of the texts
STRIPPED = {
    "an indented line": (["a", "a"], "a\n  a", 2),
    "a line with a space": ([" a", "a"], " a\na", 3),
    "lines with spaces": (["  a", "  a"], "  a\n  a", 6),
    "windows": (["a", "a"], "a a", 3),
}


@pytest.mark.parametrize("case", STRIPPED)
@pytest.mark.parametrize("scheme", ["always", "first"])
def test_white_space_before_texts_counts_where_a_token_holds_it(scheme, case, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    texts, written, n_bytes = STRIPPED[case]
    model = {"vocab": {"<unk>": 0, "▁": 1, "a": 2}, "unk_token": "<unk>"}
    prepend = {"type": "Prepend", "prepend": "▁"}
    normalizer = {"type": "Sequence", "normalizers": [prepend, TO_METASPACE] if scheme == "always" else [TO_METASPACE]}
    splits = None if scheme == "always" else {**METASPACE, "prepend_scheme": "first"}
    path = save_json(tmp_path, model, LLAMA, splits, normalizer)
    encode = tokenizers.Tokenizer.from_file(str(path)).encode
    (tmp_path / "text.txt").write_text(written)
    aligned = AlignedText(str(tmp_path / "text.txt"), open_tokenizer(path))
    starts, stops = aligned.update(*first_of(*(encode(text).ids for text in texts)), "ids")
    aligned.end()
    assert (stops - starts).sum() == n_bytes


WORDS = [b"a", b" ", b"\n", b" a", b"\na", b"  ", b"aa", b"\r\n", "\u3000".encode(), b"a\n"]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(["", " ", "\n", "\n\n ", "\r\n"]), st.lists(st.integers(0, len(WORDS) - 1)))),
    st.lists(st.integers(1, 3)),
)
def test_any_texts_with_white_space_between_them_align_in_any_blocks(tmp_path_factory, texts, sizes):
    tokenizer = Tokenizer("words", Vocabulary(dict(enumerate(WORDS))))
    path = tmp_path_factory.getbasetemp() / "text.txt"
    data = b"".join(space.encode() + b"".join(WORDS[i] for i in ids) for space, ids in texts)
    path.write_bytes(data)
    ids, is_first = first_of([], *(ids for _, ids in texts))
    aligned, start, last = AlignedText(str(path), tokenizer), 0, 0
    for size in [*sizes, len(ids) + 1]:
        part = slice(start, start + size)
        starts, stops = aligned.update(ids[part], is_first[part], "ids")
        assert [data[a:b] for a, b in zip(starts, stops, strict=True)] == [WORDS[i] for i in ids[part]]
        assert ([last, *stops[:-1]] <= starts).all()
        last, start = stops[-1] if len(stops) else last, start + size
    aligned.end()


def test_text_that_changes_is_refused(tmp_path):
    tokenizer = open_tokenizer(save_ranks(tmp_path, [bytes([byte]) for byte in range(256)]))
    path = tmp_path / "text.txt"
    path.write_bytes(b"ab")
    aligned = AlignedText(str(path), tokenizer)
    path.write_bytes(b"a")
    with pytest.raises(ValueError, match=r"text\.txt: "):
        aligned.update(*first_of([97, 98]), "ids")


# -- damage -----------------------------------------------------------------------------------------------------------

SEEDS = {
    "json": as_json(BYTES_ONLY, BYTE_LEVEL, BYTE_LEVEL, added=[{"id": 256, "content": "    "}]).encode(),
    "with ▁": as_json(*LAYOUTS["Prepend and Replace"][0]).encode(),
    "model": b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02\n\x07\n\x03\xe2\x96\x81\x18\x01\x1a\x02\x18\x01",
    "ranks": b"YQ== 0\nYmM= 1\n",
}


@pytest.mark.parametrize("name", SEEDS)
def test_damaged_tokenizers_raise_value_error(name, tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "tokenizer"
    path.write_bytes(SEEDS[name])
    assert token_bytes(path).sum() > 0

    @fuzzed
    @given(DAMAGES)
    def read(damages):
        path.write_bytes(damaged(SEEDS[name], damages))
        message = f"{path}: "
        with bounded():
            try:
                token_bytes(path)
            except ValueError as error:
                message = str(error)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message

    read()
