"""The kind of a tokenizer's file, and its content."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenloss._core.arguments import as_path
from tokenloss._core.errors import refuse
from tokenloss.formats.base import library_errors, open_regular
from tokenloss.formats.records import parsed_json, read_object
from tokenloss.formats.tokenizers import hugging_face
from tokenloss.formats.tokenizers.token_text import BYTE_TOKEN, BYTES, UTF8_BYTES, from_byte_level
from tokenloss.formats.tokenizers.tokenizer import Tokenizer, Vocabulary, check_spaces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenloss._core.types import IntArray
    from tokenloss.formats.tokenizers.tokenizer import _Prefix

_MOST_BYTES = 256 << 20  # of a file
_MOST_IDS = 1 << 21
_NAMES = ("tokenizer.json", "tekken.json", "tokenizer.model", "*.tiktoken", "vocab.json")  # the first counts
_RANK = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s")  # begins a list of ranks
_CONFIG = "tokenizer_config.json"
_MERGES = "merges.txt"  # next to GPT-2's vocab.json
_END_OF_WORD = "</w>"
_SAVE = "save a model's tokenizer with save_pretrained(DIR), and give DIR"
# models of SentencePiece whose ids are others in Hugging Face's tokenizers, by the name of the file or the class
_SHIFTED = ("sentencepiece.bpe.model", "source.spm", "target.spm")
_SHIFTING = (
    "Barthez", "Camembert", "ErnieM", "M2M100", "MBart", "Marian", "Nllb", "PLBart", "Pegasus", "SeamlessM4T",
    "Speech2Text", "XGLM", "XLMProphetNet", "XLMRoberta",
)  # fmt: skip


def token_bytes(tokenizer: str | os.PathLike[str]) -> IntArray:
    r"""Count the bytes that each id of a tokenizer writes into a text, which bits per byte need.

    Parameters
    ----------
    tokenizer : path
        A tokenizer's own file, or the folder of a model that contains one: `tokenizer.json` of Hugging Face,
        `tokenizer.model` of SentencePiece, ranks of tiktoken, `tekken.json` of Mistral, or `vocab.json` next to
        `merges.txt`, as in GPT-2. It is recognized by its content.

    Returns
    -------
    array of int64
        The number of bytes of each id: index 7 is for id 7. It is 0 for special tokens, which write nothing, and for
        ids that the tokenizer does not have. It is also 0 for a token that represents unknown text, such as [UNK]: do
        not count the loss of such a token.

    Raises
    ------
    TypeError
        If `tokenizer` is not a path.
    ValueError, OSError
        If the file is of another kind, is damaged, or contains an unsupported step, which the message names.

    See Also
    --------
    evaluate : Scores files of logits.
    compare_texts : Compares models whose tokenizers differ.

    Notes
    -----
    The tokenizer is not run: its file says which bytes each id writes. Added tokens count with their text, unless they
    are special. The first token of a text may begin with a space that the text lacks (SentencePiece, Llama 2): then
    subtract 1 from the sum for each text. With WordPiece (BERT), no token contains the white space between words:
    there, bytes are known only with the text. If the tokenizer normalizes a text, for example to NFC, these are the
    bytes of the normalized text. The page "Count the bytes of tokens" lists the files that are read.

    Examples
    --------
    >>> import base64, pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import token_bytes
    >>> ranks = [b"a", b"b", "é".encode()[:1], "é".encode()[1:], b" ab"]  # in the layout of tiktoken
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = pathlib.Path(directory) / "ab.tiktoken"
    ...     _ = path.write_text("".join(f"{base64.b64encode(b).decode()} {i}\n" for i, b in enumerate(ranks)))
    ...     n_bytes = token_bytes(path)
    >>> n_bytes
    array([1, 1, 1, 1, 3])
    >>> nll, ids = np.array([0.5, 1.5, 0.25]), np.array([4, 2, 3])  # of the text " abé"
    >>> print(f"{nll.sum() / np.log(2) / n_bytes[ids].sum():.4f} bits per byte")
    0.6492 bits per byte
    """
    return open_tokenizer(tokenizer).n_bytes.copy()


def open_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read the file of a tokenizer, or the one in the folder of a model."""
    name = as_path("tokenizer", path, f"a path: {_SAVE}")
    if Path(name).is_dir():
        name = _in_folder(name)
    try:
        with open_regular(name) as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, f"{error.strerror}; {_SAVE}", name) from error
    if len(data) > _MOST_BYTES:
        refuse(name, f"has more than {_MOST_BYTES >> 20} MB", "be a tokenizer's own file")
    with library_errors(name):
        said = _vocabulary(name, data)
        ids = said.pieces.keys() | said.special | said.unknown
        if not ids or not all(type(i) is int and 0 <= i < _MOST_IDS for i in ids):
            raise ValueError(f"it has no ids, or ids that are not integers from 0 to {_MOST_IDS - 1}")
    return Tokenizer(name, said)


def tokenizer_files(path: str | None) -> list[str]:
    """The file of a tokenizer, if given, and related files next to it; outputs must not replace them."""
    if path is None:
        return []
    own = _in_folder(path) if Path(path).is_dir() else path
    folder = Path(own).parent
    return [own, *(str(file) for name in (*_NAMES, _MERGES, _CONFIG) for file in folder.glob(name))]


def _in_folder(folder: str) -> str:
    """The file of the tokenizer in the folder of a model."""
    for pattern in _NAMES:
        files = sorted(Path(folder).glob(pattern))
        if len(files) > 1:
            refuse(folder, f"contains {len(files)} files {pattern}", "contain only one; or pass the file")
        if files:
            return str(files[0])
    return refuse(folder, "has no tokenizer file", f"have one: {', '.join(_NAMES)}")


def _vocabulary(path: str, data: bytes) -> Vocabulary:
    """The vocabulary in a file, whose kind follows from its content."""
    if data[:1] == b"{":
        said = parsed_json(data)
        if "model" in said:
            return hugging_face.read(said, said.get("added_tokens") or _added(path))
        if "vocab" in said:
            return _read_tekken(said)
        vocabulary = _read_gpt2(said, path)
        if _config(path).get("add_prefix_space"):
            vocabulary = vocabulary._replace(prefix="unless there")
    elif data.startswith((b"\x80", b"PK\x03\x04")):
        raise ValueError("it is a pickle or an archive, which may run code or contain weights")
    elif _RANK.match(data):
        vocabulary = _read_tiktoken(data)
    else:
        kind = str(_config(path).get("tokenizer_class"))
        if Path(path).name in _SHIFTED or kind.startswith(_SHIFTING):
            raise ValueError("its model uses other ids than this file has; give the tokenizer.json next to it")
        vocabulary = _read_sentence_piece(data)
    added = {token["id"]: token for token in _added(path)}
    special = {i for i, token in added.items() if token.get("special")} - vocabulary.unknown
    pieces = {i: token["content"].encode() for i, token in added.items()} | vocabulary.pieces
    special |= vocabulary.special - added.keys()
    restarts = vocabulary.restarts | (added.keys() if vocabulary.prefix != "never" else set())
    return vocabulary._replace(pieces=pieces, special=frozenset(special), restarts=restarts)


def _config(path: str) -> dict[str, Any]:
    """The configuration next to a tokenizer; empty if the file is missing."""
    config = Path(path).with_name(_CONFIG)
    return read_object(str(config), _MOST_BYTES) if config.is_file() else {}


def _added(path: str) -> list[dict[str, Any]]:
    """The tokens that the configuration next to a tokenizer adds to it."""
    return [{**token, "id": int(i)} for i, token in _config(path).get("added_tokens_decoder", {}).items()]


# Lists of ranks: tiktoken's, Mistral's tekken.json, GPT-2's vocab.json and merges.txt


def _read_tiktoken(data: bytes) -> Vocabulary:
    """The vocabulary in lines `base64 rank`, which do not list special ids."""
    lines = [line.split() for line in data.splitlines() if line.strip()]
    # Whisper's has "=" for no bytes
    pieces = {int(rank): base64.b64decode(token.removeprefix(b"="), validate=True) for token, rank in lines}
    if len(pieces) < len(lines):
        raise ValueError("a rank is given twice")
    return Vocabulary(pieces, lacks_special=True)


def _read_tekken(said: dict[str, Any]) -> Vocabulary:
    """The vocabulary in a tekken.json: special ids come first, and ranks are counted after them."""
    config = said["config"]
    n_special = config["default_num_special_tokens"]
    n_ranks = config["default_vocab_size"] - n_special
    pieces = {n_special + one["rank"]: base64.b64decode(one["token_bytes"]) for one in said["vocab"][:n_ranks]}
    return Vocabulary(pieces, frozenset(range(n_special)))


def _read_gpt2(vocab: dict[str, int], path: str) -> Vocabulary:
    """The vocabulary in a vocab.json, in the alphabet of byte-level BPE: tokens that no merge makes are special.

    Where tokens that end a word have a mark, as CLIP's have, none holds white space.
    """
    if not vocab.keys() >= UTF8_BYTES:
        raise ValueError("it is not a tokenizer.json or vocab.json of byte-level BPE, which has all bytes of UTF-8")
    end = _END_OF_WORD if any(letter + _END_OF_WORD in vocab for letter in BYTES) else ""
    with open_regular(str(Path(path).with_name(_MERGES))) as file:
        made = {line.replace(" ", "") for line in file.read().decode().splitlines()} | BYTES.keys()
    made.update(letter + end for letter in BYTES)
    pieces = {i: from_byte_level(piece.removesuffix(end)) for piece, i in vocab.items() if piece in made}
    return Vocabulary(pieces, frozenset(vocab.values()) - pieces.keys(), drops_spaces=bool(end))


# The `tokenizer.model` of SentencePiece: a message of protobuf that holds the pieces

# numbers of fields in sentencepiece_model.proto
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _TYPE = 1, 3
_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6  # types of pieces; the others, normal 1, user-defined 4 and unused 5, are text
_SPACE_IS_SUFFIX = 24  # of the trainer
_ADDS_SPACE, _ESCAPES_SPACES = 3, 5  # of the normalizer
_UNLIKE = "it is not a known file of a tokenizer, or a damaged one of SentencePiece"
_WIDTHS = {1: 8, 5: 4}  # bytes of a number by its wire type


def _read_sentence_piece(data: bytes) -> Vocabulary:
    """The vocabulary in a model of SentencePiece; ValueError if it is not a protobuf message."""
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
        raise ValueError("it has treat_whitespace_as_suffix, so white space ends words")
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
