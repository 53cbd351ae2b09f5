"""Tokenizers of several families, by the packages tokenizers, sentencepiece and tiktoken; lines of many scripts."""

from __future__ import annotations

import base64
import functools
import io
import json
import random
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from places import DATA

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# code points of scripts, a few dozen of each, so that a small vocabulary without bytes can hold all of them
SCRIPTS = {
    "Latin": [*range(0x61, 0x7B), *range(0xE0, 0xFF), *range(0x100, 0x130)],
    "Greek": [*range(0x3B1, 0x3CA)],
    "Cyrillic": [*range(0x430, 0x460)],
    "Arabic": [*range(0x627, 0x640)],
    "Hebrew": [*range(0x5D0, 0x5EB)],
    "Devanagari": [*range(0x905, 0x93A), *range(0x93E, 0x94E)],
    "Thai": [*range(0xE01, 0xE3B)],
    "CJK": [*range(0x4E00, 0x4E40)],
    "Hangul": [*range(0xAC00, 0xAC30)],
    "digits": [*range(0x30, 0x3A)],
    "marks": [0x61, 0x65, 0x6F, *range(0x300, 0x310)],
    "emoji": [*range(0x1F600, 0x1F620)],
}
UNKNOWN = "<unk>"
MARKS = ",.;:!?'\"()[]{}<>=+-*/#@&_\\|~^%$"
CODE = ["    return x[i] + 1", "if (a == b) {", "\tfor i in range(10):", "        # TODO", "x = {'a': [1, 2]}  # b"]
FAMILIES = "\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}"


@functools.cache
def lines(n: int = 10_000) -> list[str]:
    """Lines of text of many scripts, with runs of spaces, tabs, code and emoji; the same ones each time."""
    rng = random.Random(36)  # noqa: S311 -- is no cryptography

    def word() -> str:
        script = rng.choice([*SCRIPTS])
        return "".join(chr(rng.choice(SCRIPTS[script])) for _ in range(rng.randint(1, 9)))

    def line() -> str:
        kind = rng.random()
        if kind < 0.05:
            return rng.choice(CODE)
        parts = [word() for _ in range(rng.randint(1, 8))]
        parts[0] = parts[0].title() if kind < 0.5 else parts[0]
        if kind < 0.2:
            parts.insert(rng.randrange(len(parts)), rng.choice([FAMILIES, *MARKS, "1,234.5", "\t", ""]))
        return (" " if kind < 0.9 else rng.choice(["  ", "   ", "\t", ", ", "    "])).join(parts)

    return [line() for _ in range(n)]


class Made(NamedTuple):
    """A tokenizer: its file, and what its own package does."""

    path: Path
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]


def _of_tokenizers(tokenizer: Any, path: Path) -> Made:
    """A tokenizer of the package tokenizers, saved."""
    tokenizer.save(str(path))
    return Made(
        path,
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
    )


def _trained(model: Any, trainer: Any, **parts: Any) -> Any:
    """A tokenizer with these parts, trained on some of the lines."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(["".join(sorted({*"".join(lines())})), *lines()[:1000]], trainer)
    return tokenizer


def byte_level(folder: Path) -> Made:
    """Byte-level BPE, as GPT-2's, with added tokens: a special one, runs of spaces and a mark."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = _trained(models.BPE(), trainer, pre_tokenizer=split, decoder=decoders.ByteLevel())
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("    ", "  ", "<tool_call>")])
    return _of_tokenizers(tokenizer, folder / "tokenizer.json")


def llama(folder: Path) -> Made:
    """BPE with ▁ and bytes in the layout of Llama's tokenizer.json."""
    from tokenizers import decoders, models, normalizers, trainers

    special = [UNKNOWN, "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, show_progress=False, limit_alphabet=300, max_token_length=8
    )
    tokenizer = _trained(
        models.BPE(byte_fallback=True, fuse_unk=True, unk_token=UNKNOWN),
        trainer,
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoder=decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    )
    said = json.loads(tokenizer.to_str())
    said["added_tokens"] = said["added_tokens"][:3]  # bytes are ordinary tokens
    return _of_tokenizers(type(tokenizer).from_str(json.dumps(said)), folder / "tokenizer.json")


def metaspace(folder: Path) -> Made:
    """Unigram with ▁, as T5's, without its normalizer."""
    from tokenizers import decoders, models, pre_tokenizers, trainers

    trainer = trainers.UnigramTrainer(
        vocab_size=1500, special_tokens=[UNKNOWN, "</s>"], unk_token=UNKNOWN, show_progress=False
    )
    tokenizer = _trained(
        models.Unigram(), trainer, pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.Metaspace()
    )
    return _of_tokenizers(tokenizer, folder / "tokenizer.json")


def word_piece(folder: Path) -> Made:
    """WordPiece, as BERT's, without its normalizer."""
    from tokenizers import decoders, models, pre_tokenizers, trainers

    trainer = trainers.WordPieceTrainer(
        vocab_size=3000, special_tokens=[UNKNOWN, "[CLS]"], show_progress=False, limit_alphabet=2000
    )
    split = pre_tokenizers.BertPreTokenizer()
    model = models.WordPiece(unk_token=UNKNOWN)
    tokenizer = _trained(model, trainer, pre_tokenizer=split, decoder=decoders.WordPiece(cleanup=False))
    return _of_tokenizers(tokenizer, folder / "tokenizer.json")


def sentence_piece(folder: Path, **options: Any) -> Made:
    """A model of SentencePiece that leaves the text as it is."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["".join(sorted({*"".join(lines())} - {"\t"})), *lines()[:1000]]),
        model_writer=written,
        **{
            "vocab_size": 1500,
            "hard_vocab_limit": False,
            "character_coverage": 1.0,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "minloglevel": 2,
            **options,
        },
    )
    path = folder / "tokenizer.model"
    path.write_bytes(written.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    return Made(path, processor.encode, processor.decode)


def ranks(folder: Path) -> Made:
    """Ranks of tiktoken: those of the tokenizer of the tests' model."""
    import tiktoken

    from tokenloss.formats.tokenizers.token_text import from_byte_level

    vocab = json.loads((DATA / "model" / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    pieces = {from_byte_level(piece): i - 1 for piece, i in vocab.items() if i}
    path = folder / "made.tiktoken"
    path.write_text("".join(f"{base64.b64encode(piece).decode()} {rank}\n" for piece, rank in pieces.items()))
    pattern = r"\s+(?!\S)|\s*\S+|\s+"
    encoding = tiktoken.Encoding("made", pat_str=pattern, mergeable_ranks=pieces, special_tokens={})
    return Made(path, encoding.encode, encoding.decode)


def trained(folder: Path) -> Made:
    """The tokenizer of the tests' model."""
    from tokenizers import Tokenizer

    return _of_tokenizers(Tokenizer.from_file(str(DATA / "model" / "tokenizer.json")), folder / "tokenizer.json")


WITH_BYTES = {"byte_fallback": True, "character_coverage": 0.98}  # so that bytes are needed
# by name: the package that makes it, and how
TOKENIZERS: dict[str, tuple[str, Callable[[Path], Made]]] = {
    "byte-level BPE": ("tokenizers", byte_level),
    "BPE with bytes": ("tokenizers", llama),
    "Unigram with ▁": ("tokenizers", metaspace),
    "WordPiece": ("tokenizers", word_piece),
    "SentencePiece BPE with bytes": (
        "sentencepiece", lambda folder: sentence_piece(folder, model_type="bpe", vocab_size=900, **WITH_BYTES)
    ),
    "SentencePiece Unigram": (
        "sentencepiece", lambda folder: sentence_piece(folder, model_type="unigram", user_defined_symbols=["\t"])
    ),
    "ranks of tiktoken": ("tiktoken", ranks),
    "the tests' model": ("tokenizers", trained),
}  # fmt: skip


def make(name: str, folder: Path) -> Made:
    """A tokenizer by its name, unless its package is missing."""
    package, function = TOKENIZERS[name]
    pytest.importorskip(package)
    return function(folder)
