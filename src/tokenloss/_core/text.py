"""Text: of tokens, whose vocabularies write bytes and spaces as other characters; of figures and files, for people."""

from __future__ import annotations

import codecs
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


# Byte-level BPE writes each byte as a printable character: itself, or one from U+0100 on.
_PRINTABLE_BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {chr(byte): byte for byte in _PRINTABLE_BYTES}
BYTES |= {chr(256 + n): byte for n, byte in enumerate(sorted({*range(256)} - {*_PRINTABLE_BYTES}))}
UTF8_BYTES = {c for c, byte in BYTES.items() if byte < 0xC0 or 0xC1 < byte < 0xF5}  # the others are in no UTF-8
BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")  # of SentencePiece


def byte_encoder(text: Iterable[str | None]) -> Callable[[str], bytes]:
    """Choose the function that turns a token into its bytes, by the way in which this vocabulary writes spaces."""
    tokens = {token for token in text if token}
    # Maltese has these letters, too, but its tokens then hold more plain spaces
    if sum("Ġ" in token or "Ċ" in token for token in tokens) > sum(" " in token for token in tokens):
        return from_byte_level
    if any("▁" in token or BYTE_TOKEN.fullmatch(token) for token in tokens):
        return _from_sentencepiece
    return _utf8


def _utf8(token: str) -> bytes:
    """Encode a token as it stands; a surrogate, which UTF-8 cannot hold, becomes a question mark."""
    return token.encode("utf-8", "replace")


def from_byte_level(token: str) -> bytes:
    """Bytes of a token of byte-level BPE; tokens that were added to the vocabulary later are plain text."""
    return bytes(BYTES[c] for c in token) if BYTES.keys() >= {*token} else _utf8(token)


def _from_sentencepiece(token: str) -> bytes:
    """Bytes of a token of SentencePiece, which writes a single byte as <0x0A>."""
    byte = BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else _utf8(token.replace("▁", " "))


def decoded(text: Iterable[str | None], encode: Callable[[str], bytes]) -> Iterator[str | None]:
    """Decode tokens one by one; a character that is spread over several tokens comes with the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in text:
        yield None if token is None else decoder.decode(encode(token))


def printable(text: str) -> str:
    """The text with escapes for characters that end a line, control a terminal, are invisible or change direction.

    All text from files, including their names, passes through here before it is shown: in tables of any format
    (`escaped` in result.py), errors, warnings and plots. HTML pages show symbols instead of these characters.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, most: int = 24) -> str:
    """The text, or of a longer one its start and its end, so many characters in all."""
    return text if len(text) <= most else f"{text[: most // 2]}\N{HORIZONTAL ELLIPSIS}{text[most // 2 + 1 - most :]}"


def count_of(number: int, noun: str) -> str:
    """Say how many there are: '1 token', '12,000 tokens'."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def unit_of_bytes(size: float) -> tuple[str, float]:
    """The unit for a number of bytes, and the bytes that it has: GB, but MB or kB below a tenth of GB or MB."""
    return next((unit for unit in (("GB", 1e9), ("MB", 1e6)) if size >= unit[1] / 10), ("kB", 1e3))


def as_strict_json(value: Any) -> Any:
    """Replace what JSON cannot hold: nan and infinities by None, unpaired surrogates by U+FFFD."""
    if isinstance(value, dict):
        return {name: as_strict_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_strict_json(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def title(files: Sequence[str]) -> str:
    """Name up to three files; of more, the first and how many there are besides."""
    return ", ".join(files) if len(files) < 4 else f"{files[0]} and {len(files) - 1} more files"
