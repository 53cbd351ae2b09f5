"""The bytes of tokens by the `tokenizer.model` of SentencePiece: a message of protobuf that holds the pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenloss.formats.tokenizers.token_text import BYTE_TOKEN
from tokenloss.formats.tokenizers.tokenizer import Vocabulary, check_spaces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenloss.formats.tokenizers.tokenizer import _Prefix

# numbers of fields in sentencepiece_model.proto
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _TYPE = 1, 3
_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6  # types of pieces; the others, normal 1, user-defined 4 and unused 5, are text
_SPACE_IS_SUFFIX = 24  # of the trainer
_ADDS_SPACE, _ESCAPES_SPACES = 3, 5  # of the normalizer
_UNLIKE = "it is no file of a tokenizer that is known, or a damaged one of SentencePiece"
_WIDTHS = {1: 8, 5: 4}  # bytes of a number by its wire type


def read(data: bytes) -> Vocabulary:
    """What a model says; ValueError if it is no message."""
    parts: dict[int, list[dict[int, int | bytes]]] = {_PIECES: [], _TRAINER: [], _NORMALIZER: []}
    for number, value in _fields(data):
        if number in parts and isinstance(value, bytes):
            parts[number].append(dict(_fields(value)))
    names = [text.decode() for piece in parts[_PIECES] if isinstance(text := piece.get(_PIECE), bytes)]
    types = [piece.get(_TYPE, 1) for piece in parts[_PIECES]]
    trainer, normalizer = ({key: v for part in parts[i] for key, v in part.items()} for i in (_TRAINER, _NORMALIZER))
    if not names:
        raise ValueError(f"{_UNLIKE}, which has pieces")
    if trainer.get(_SPACE_IS_SUFFIX, 0):
        raise ValueError("it has treat_whitespace_as_suffix, so that white space ends words")
    escapes = bool(normalizer.get(_ESCAPES_SPACES, 1))
    if escapes and _BYTE in types:
        check_spaces(names)
    pieces = {}
    for i, (name, kind) in enumerate(zip(names, types, strict=True)):
        byte = BYTE_TOKEN.fullmatch(name) if kind == _BYTE else None
        pieces[i] = bytes.fromhex(byte[1]) if byte else (name.replace("▁", " ") if escapes else name).encode()
    never = (_CONTROL, _UNKNOWN) if types.count(_BYTE) == 256 else (_CONTROL,)  # with all bytes, nothing is unknown
    special = frozenset(i for i, kind in enumerate(types) if kind in never)
    unknown = frozenset(i for i, kind in enumerate(types) if kind == _UNKNOWN) - special
    prefix: _Prefix = "always" if normalizer.get(_ADDS_SPACE, 1) else "never"
    # it writes no control piece for a text: after one, another text begins
    return Vocabulary(pieces, special, unknown, prefix, restarts=special)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message, each a number and its value."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value: int | bytes
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if wire == 2 else (_WIDTHS.get(wire, len(data)), at)
            value = data[at : at + size]
            if len(value) < size:
                raise ValueError(f"{_UNLIKE}: it ends inside a field")
            at += size
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, and where it ends."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError(f"{_UNLIKE}: it ends inside a number")
