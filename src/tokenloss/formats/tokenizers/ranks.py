"""The bytes of tokens by lists of ranks: tiktoken's, Mistral's tekken.json, GPT-2's vocab.json and merges.txt."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from tokenloss._core.text import BYTES, UTF8_BYTES, from_byte_level
from tokenloss.formats.base import open_regular
from tokenloss.formats.tokenizers.tokenizer import Vocabulary

MERGES = "merges.txt"  # next to GPT-2's vocab.json
_END_OF_WORD = "</w>"


def read_tiktoken(data: bytes) -> Vocabulary:
    """What lines `base64 rank` say; special ids are in no line."""
    lines = [line.split() for line in data.splitlines() if line.strip()]
    # Whisper's has "=" for no bytes
    pieces = {int(rank): base64.b64decode(token.removeprefix(b"="), validate=True) for token, rank in lines}
    if len(pieces) < len(lines):
        raise ValueError("a rank is given twice")
    return Vocabulary(pieces, lacks_special=True)


def read_tekken(said: dict[str, Any]) -> Vocabulary:
    """What a tekken.json says: special ids come first, and ranks are counted after them."""
    config = said["config"]
    n_special = config["default_num_special_tokens"]
    n_ranks = config["default_vocab_size"] - n_special
    pieces = {n_special + one["rank"]: base64.b64decode(one["token_bytes"]) for one in said["vocab"][:n_ranks]}
    return Vocabulary(pieces, frozenset(range(n_special)))


def read_gpt2(vocab: dict[str, int], path: str) -> Vocabulary:
    """What a vocab.json says, in the alphabet of byte-level BPE: tokens that no merge makes are special.

    Where tokens that end a word have a mark, as CLIP's have, none holds white space.
    """
    if not vocab.keys() >= UTF8_BYTES:
        raise ValueError("it is no tokenizer.json, and no vocab.json of byte-level BPE, which has all bytes of UTF-8")
    end = _END_OF_WORD if any(letter + _END_OF_WORD in vocab for letter in BYTES) else ""
    with open_regular(str(Path(path).with_name(MERGES))) as file:
        made = {line.replace(" ", "") for line in file.read().decode().splitlines()} | BYTES.keys()
    made.update(letter + end for letter in BYTES)
    pieces = {i: from_byte_level(piece.removesuffix(end)) for piece, i in vocab.items() if piece in made}
    return Vocabulary(pieces, frozenset(vocab.values()) - pieces.keys(), drops_spaces=bool(end))
