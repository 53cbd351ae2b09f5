"""The text of tokens, whose vocabularies write bytes and spaces as other characters."""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# Byte-level BPE writes each byte as a printable character: itself, or one from U+0100 on.
_PRINTABLE_BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {chr(byte): byte for byte in _PRINTABLE_BYTES}
BYTES |= {chr(256 + n): byte for n, byte in enumerate(sorted({*range(256)} - {*_PRINTABLE_BYTES}))}
UTF8_BYTES = {c for c, byte in BYTES.items() if byte < 0xC0 or 0xC1 < byte < 0xF5}  # the others are in no UTF-8
BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")  # of SentencePiece


def byte_encoder(text: Iterable[str | None]) -> Callable[[str], bytes]:
    """Choose the function that turns a token into its bytes, depending on how the vocabulary writes spaces."""
    tokens = {token for token in text if token}
    # Maltese has these letters, too, but its tokens then hold more plain spaces
    if sum("Ġ" in token or "Ċ" in token for token in tokens) > sum(" " in token for token in tokens):
        return from_byte_level
    if any("▁" in token or BYTE_TOKEN.fullmatch(token) for token in tokens):
        return _from_sentencepiece
    return _utf8


def _utf8(token: str) -> bytes:
    """Encode a token unchanged; a surrogate, which UTF-8 cannot represent, becomes a question mark."""
    return token.encode("utf-8", "replace")


def from_byte_level(token: str) -> bytes:
    """Bytes of a token of byte-level BPE; tokens that were added to the vocabulary later are plain text."""
    return bytes(BYTES[c] for c in token) if BYTES.keys() >= {*token} else _utf8(token)


def _from_sentencepiece(token: str) -> bytes:
    """Bytes of a token of SentencePiece, which writes a single byte as <0x0A>."""
    byte = BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else _utf8(token.replace("▁", " "))


def decoded(text: Iterable[str | None], encode: Callable[[str], bytes]) -> Iterator[str | None]:
    """Decode tokens one by one; a character that spans several tokens is decoded with the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in text:
        yield None if token is None else decoder.decode(encode(token))
