"""The types of tokens by their text: words, parts of words, numbers, punctuation, white space."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

import numpy as np

from tokenloss.formats.tokenizers.token_text import byte_encoder, decoded

if TYPE_CHECKING:
    from tokenloss._core.types import Array, BoolArray

TYPES = ("word", "word part", "number", "punctuation", "white space", "other")
_WORD, _PART, _NUMBER, _PUNCTUATION, _SPACE, _OTHER = range(len(TYPES))
_SPECIAL = re.compile(r"<.+>|\[[A-Z]+\]")  # as <|endoftext|>, </s> and [CLS]; bytes, too


def token_types(text: Array, is_first: BoolArray) -> Array:
    """Index into `TYPES` of each token, given its text (None where unknown) and whether it is the first of its text."""
    tokens: list[str | None] = [None if token is None else str(token) for token in text.tolist()]
    known: dict[str, int] = {}
    types = np.full(len(tokens), _OTHER, np.int8)
    after_space = True
    plain = decoded(tokens, byte_encoder(tokens))
    for i, (token, characters, first) in enumerate(zip(tokens, plain, is_first.tolist(), strict=True)):
        if token is None or characters is None or _SPECIAL.fullmatch(token):
            after_space = True
            continue
        if characters not in known:
            known[characters] = _type_of(characters)
        kind = known[characters]
        types[i] = _WORD if kind == _PART and (first or after_space or characters[0].isspace()) else kind
        after_space = characters[-1:].isspace()
    return types


def _type_of(characters: str) -> int:
    """Type of a text. A word counts as a part of one, until what stands before it shows that it begins there."""
    word = characters.strip()
    if not word:
        return _SPACE if characters else _OTHER
    if "\N{REPLACEMENT CHARACTER}" in word:
        return _OTHER
    categories = {unicodedata.category(character)[0] for character in word}
    if "L" in categories:
        return _PART
    if "N" in categories:
        return _NUMBER
    return _PUNCTUATION if categories <= {*"PS"} else _OTHER
