"""The bytes of tokens from a `tokenizer.json`, the file of the tokenizers library.

Its decoder defines how the pieces of its vocabulary become text, and its normalizer and pre-tokenizer what part of a
text the pieces hold. Where both agree on what is known here, a piece has its bytes; else the part is refused by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenloss.formats.tokenizers.token_text import BYTE_TOKEN, BYTES, UTF8_BYTES, from_byte_level
from tokenloss.formats.tokenizers.tokenizer import Vocabulary, check_spaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenloss.formats.tokenizers.tokenizer import _Prefix

    _Step = Callable[[str], str | bytes]

_VERSION = "1.0"
_SHOWN = 120  # characters of a step in a message
_FALLBACK = frozenset(f"<0x{BYTES[c]:02X}>" for c in UTF8_BYTES)
# pre-tokenizers that cut a text and keep all of it, and those that leave out white space, if not more
_KEEPING = ("ByteLevel", "Digits", "FixedLength", "Metaspace", "Punctuation", "Split", "UnicodeScripts")
_DROPPING = ("BertPreTokenizer", "CharDelimiterSplit", "Whitespace", "WhitespaceSplit")


def read(said: dict[str, Any], added: list[dict[str, Any]]) -> Vocabulary:
    """The vocabulary in the JSON of a tokenizer, with tokens added to its model; ValueError if a part is unknown."""
    if said.get("version") != _VERSION:
        raise ValueError(f"it has version {said.get('version')!r}, but only {_VERSION!r} is supported")
    model = said["model"]
    normalizers, splits, decoders = ([*_steps(said.get(part))] for part in ("normalizer", "pre_tokenizer", "decoder"))
    is_byte_level = any(step["type"] == "ByteLevel" for step in (*normalizers, *splits))
    encode = _encoder(model, splits, decoders, is_byte_level)
    _check_splits(normalizers, splits, encode)
    vocab = model["vocab"]
    names = dict(enumerate(one[0] for one in vocab)) if isinstance(vocab, list) else {i: p for p, i in vocab.items()}
    if _byte_or_text in encode and _written(encode, "▁") == b" ":
        check_spaces({*names.values()})
    pieces = {i: _written(encode, name) for i, name in names.items()}
    if model.get("byte_fallback"):  # bytes of the model write something, even if they were added as special tokens
        added = [token for token in added if not BYTE_TOKEN.fullmatch(token["content"])]
    special, unknown = set(), set()
    for token in added:
        i, content = token["id"], token["content"]
        matched = _normalized(normalizers, content) if token.get("normalized") else content
        written = content.encode() if is_byte_level else _written(encode, matched)
        if token.get("special"):
            special.add(i)
            pieces[i] = content.encode()
        elif token.get("lstrip") or token.get("rstrip"):
            unknown.add(i)  # it includes the white space beside it, too
        elif names.get(i) == content and pieces[i] != written:
            unknown.add(i)  # é is a byte of the model, and this character by itself
        else:
            pieces[i] = written
    unk = model.get("unk_id")  # of Unigram
    unk = next((i for i, name in names.items() if name == model.get("unk_token")), None) if unk is None else unk
    has_bytes = (is_byte_level or bool(model.get("byte_fallback"))) and {*names.values()}.issuperset(
        UTF8_BYTES if is_byte_level else _FALLBACK
    )
    if unk is not None and not has_bytes:
        unknown.add(unk)
    drops = "merges" in model and unk is None and not has_bytes  # BPE leaves out in silence what it has no token for
    drops |= any(map(_drops_text, splits)) or any(step["type"] in ("WordPiece", "BPEDecoder") for step in decoders)
    drops |= _adds_spaces(splits) or any(_changes_length(step, encode, is_byte_level) for step in normalizers)
    prefix, restarts = _prefix(normalizers, splits, added)
    if prefix != "never":
        restarts |= _bos(said.get("post_processor"))
    return Vocabulary(pieces, frozenset(special - unknown), frozenset(unknown), prefix, drops, restarts)


def _check_splits(normalizers: list[dict[str, Any]], splits: list[dict[str, Any]], encode: list[_Step]) -> None:
    """Refuse steps that change a text before the model reads it, unless the decoder changes it back."""
    for step in splits:
        if step["type"] not in (*_KEEPING, *_DROPPING):
            raise ValueError(f"its pre_tokenizer has an unknown step: {str(step)[:_SHOWN]}")
    for step in (*normalizers, *splits):
        match step:
            case (
                {"type": "Replace", "pattern": {"String": " "}, "content": str(mark)}
                | {"type": "Prepend", "prepend": str(mark)}
                | {"type": "Metaspace", "replacement": str(mark)}
            ) if _written(encode, mark) != b" ":
                raise ValueError(f"its decoder does not turn {mark!r} into a space, as {str(step)[:_SHOWN]} expects")


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer, decoder or post-processor; a sequence yields each of its steps."""
    if isinstance(part, dict):
        inner = [part[key] for key in ("normalizers", "pretokenizers", "decoders", "processors") if key in part]
        if inner:
            for step in inner[0]:
                yield from _steps(step)
        else:
            yield part


def _written(encode: list[_Step], piece: str) -> bytes:
    """The bytes of a piece."""
    for step in encode:
        written = step(piece)
        if isinstance(written, bytes):
            return written
        piece = written
    return piece.encode()


def _encoder(
    model: dict[str, Any], splits: list[dict[str, Any]], decoders: list[dict[str, Any]], is_byte_level: bool
) -> list[_Step]:
    """The steps that turn a piece into text, up to the step that makes bytes."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    steps: list[_Step] = [_cutting(prefix, suffix)]
    if not decoders:  # the pieces are what the pre-tokenizer made
        decoders = [step for step in splits if step["type"] in ("ByteLevel", "Metaspace")][:1]
    if is_byte_level != any(step["type"] == "ByteLevel" for step in decoders):
        raise ValueError("only one of its pre_tokenizer and its decoder is ByteLevel")
    is_fused = False
    for step in decoders:
        match step:
            case {"type": "Fuse"}:
                is_fused = True
            case {"type": "Strip", "content": " ", "start": 0 | 1, "stop": 0} if is_fused:
                pass  # the space of `_prefix`
            case {"type": str(kind)} if from_byte_level in steps:
                raise ValueError(f"its decoder has {kind} after ByteLevel, which is not supported")
            case {"type": "ByteLevel"}:
                steps.append(from_byte_level)
            case {"type": "ByteFallback"}:
                steps.append(_byte_or_text)
            case {"type": "Metaspace"}:
                steps.append(_replacing(step.get("replacement", "▁"), " "))
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
                steps.append(_replacing(old, new))
            case {"type": "WordPiece", "prefix": str(start)}:
                steps.append(_cutting(start, ""))
            case {"type": "BPEDecoder", "suffix": str(end)}:
                steps.append(_cutting("", end))
            case _:
                raise ValueError(f"its decoder has an unknown step: {str(step)[:_SHOWN]}")
    if model.get("byte_fallback") and _byte_or_text not in steps:
        steps.append(_byte_or_text)
    return steps


def _cutting(prefix: str, suffix: str) -> _Step:
    """The step that cuts marks of words off a piece."""
    return lambda piece: piece.removeprefix(prefix).removesuffix(suffix)


def _replacing(old: str, new: str) -> _Step:
    """The step that replaces text in a piece."""
    return lambda piece: piece.replace(old, new)


def _byte_or_text(piece: str) -> str | bytes:
    """The byte of a piece like <0x0A>."""
    byte = BYTE_TOKEN.fullmatch(piece)
    return bytes.fromhex(byte[1]) if byte else piece


def _normalized(normalizers: list[dict[str, Any]], content: str) -> str:
    """The form of an added token in texts that are normalized first."""
    for step in normalizers:
        match step:
            case {"type": "Prepend", "prepend": str(mark)}:
                content = mark + content
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
                content = content.replace(old, new)
    return content


def _changes_length(step: dict[str, Any], encode: list[_Step], is_byte_level: bool) -> bool:
    """Whether a step of a normalizer changes the length of the text, and the decoder does not change it back."""
    match step:
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old != " ":
            return len(new.encode() if is_byte_level else _written(encode, new)) != len(old.encode())
    return False


def _scheme(step: dict[str, Any]) -> str:
    """The parts of a text before which a pre-tokenizer puts a space: "never", the "first", or "always"."""
    if step["type"] not in ("ByteLevel", "Metaspace"):
        return "never"
    return str(step.get("prepend_scheme", "always" if step.get("add_prefix_space") else "never"))


def _adds_spaces(splits: list[dict[str, Any]]) -> bool:
    """Whether a space is put before each part of a text that was split before."""
    after = [i for i, step in enumerate(splits) if step.get("use_regex", True) and step.get("split", True)][:1]
    return any(_scheme(step) == "always" for i in after for step in splits[i + 1 :])


def _prefix(
    normalizers: list[dict[str, Any]], splits: list[dict[str, Any]], added: list[dict[str, Any]]
) -> tuple[_Prefix, frozenset[int]]:
    """When a space is put before a text, and the ids after which another one is put."""
    if any(step["type"] == "Prepend" for step in normalizers):
        again = (token["id"] for token in added if token.get("special") or not token.get("normalized"))
        return "always", frozenset(again)
    schemes = [scheme for scheme in map(_scheme, splits) if scheme != "never"]
    if not schemes:
        return "never", frozenset()
    return "unless there", frozenset(token["id"] for token in added if "always" in schemes)


def _bos(processor: Any) -> frozenset[int]:
    """The ids that a post-processor puts before each text."""
    ids: set[int] = set()
    for step in _steps(processor):
        for item in step.get("single", ()):
            if "SpecialToken" not in item:
                break
            ids.update(step["special_tokens"][item["SpecialToken"]["id"]]["ids"])
    return frozenset(ids)


def _drops_text(step: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer may leave out a part of the text, so that the text itself is needed."""
    if step["type"] in _DROPPING or str(step.get("behavior")).lower() != "removed":
        return step["type"] in _DROPPING
    # one that keeps what it matches, and matches white space last, as patterns of tiktoken do, keeps all
    return not (step.get("invert") and step["pattern"].get("Regex", "").endswith((r"|\s+", r"|\s")))
