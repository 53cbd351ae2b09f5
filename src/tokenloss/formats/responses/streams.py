"""Streams: the pieces of each response, joined into the response that the server would have sent at once."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from tokenloss.formats.records import INTEGER, Place, Record, check, is_stream, read_events, read_records

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_TEXTS = ("text", "content")  # go on in the next piece
_LISTS = ("tokens", "token_ids", "completion_probabilities")  # likewise, of tokens
_PARTS: dict[str, Any] = {name: [] for name in _LISTS} | {name: {} for name in ("message", "delta", "logprobs")}
_PIECE = _PARTS | {"choices": [_PARTS | {"index": INTEGER}]}


def read_responses(path: str) -> Iterator[Record]:
    """Read the responses of a file: each JSON object is one, or all pieces of a stream are one."""
    if is_stream(path):
        yield from _joined(path, read_events(path))
        return
    records = read_records(path)
    first = next(records)
    records = itertools.chain([first], records)
    yield from _joined(path, records) if is_piece(first.value) else records


def first_choice(value: dict[str, Any]) -> dict[str, Any] | None:
    """The first choice of a response, if it has any."""
    choices = value.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def is_piece(value: dict[str, Any]) -> bool:
    """Whether a response is a piece of a stream: its end is open, and in completions it has no counts."""
    meta, first = value.get("meta_info"), first_choice(value) or {}
    is_open = "text" in first and first.get("finish_reason", "") is None and not value.get("usage")
    is_open |= isinstance(meta, dict) and meta.get("finish_reason", "") is None
    return is_open or "delta" in first or ("content" in value and value.get("stop") is False)


def _joined(path: str, events: Iterable[tuple[int, dict[str, Any] | None]]) -> Iterator[Record]:
    """The responses of consecutive streams: each ends with `[DONE]`, or where another id begins."""
    pieces: list[Record] = []
    for line, value in events:
        first = pieces[0].value if pieces else {}
        is_error = value is not None and value.get("error") and "id" not in value  # of the stream that it ends
        if pieces and (value is None or (value.get("id") != first.get("id") and not is_error)):
            yield from _responses(path, pieces, is_done=value is None)
            pieces = []
        if value is not None:
            pieces.append(Record(line, value))
    if pieces:
        yield from _responses(path, pieces, is_done=False)


def _responses(path: str, pieces: Sequence[Record], is_done: bool) -> Iterator[Record]:
    """The response of all pieces; llama.cpp's own endpoint streams one for each index, and ends each by `stop`."""
    open_responses: dict[Any, Record] = {}
    for line, piece in pieces:
        place, index = Place(path, line), piece.get("index") if "content" in piece else None
        if "meta_info" in piece:
            place.refuse("it is a piece of a stream of SGLang's own endpoint", "be whole: request it without stream")
        first, value = open_responses.setdefault(index if type(index) is int else None, Record(line, {}))
        if piece.get("error"):  # no other piece follows
            value.clear()
        _add_piece(value, piece, place)
        if piece.get("stop") is True:
            yield Record(first, value)
            del open_responses[index]
    for line, value in open_responses.values():
        choices = value.get("choices", {})
        reasons = [choice.get("finish_reason") for choice in choices.values()]
        if not is_done and not value.get("error") and (None in reasons or not reasons):
            Place(path, line).refuse("the stream breaks off", "continue to its [DONE], or to a finish_reason")
        yield Record(line, value | ({"choices": [choices[index] for index in sorted(choices)]} if choices else {}))


def _add_piece(value: dict[str, Any], piece: dict[str, Any], place: Place) -> None:
    """Add a piece to its response, whose choices are by index until it is complete."""
    check(piece, _PIECE, "", place)
    choices = value.setdefault("choices", {}) if piece.get("choices") is not None else {}
    for i, choice in enumerate(piece.get("choices") or []):
        index = choice.get("index") or 0
        own = {"message" if name == "delta" else name: content for name, content in choice.items()}
        old = choices.setdefault(index, {})
        if own.get("logprobs") and old.get("finish_reason") is not None:
            place.refuse(f"choices[{i}] continues after its finish_reason", "belong to a response with its own id")
        _add(old, own)
    _add(value, {name: content for name, content in piece.items() if name != "choices"})


def _add(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Add the content of a piece: texts and lists of tokens are extended; other values replace earlier ones."""
    for name, value in new.items():
        before: Any = old.get(name)
        if value is None:
            old[name] = before
        elif before is None and name != "logprobs":
            old[name] = value
        elif name in _TEXTS and isinstance(before, str) and isinstance(value, str):
            old[name] = before + value
        elif name in _LISTS and isinstance(before, list):
            before += value
        elif name == "message":
            _add(before, value)
        elif name == "logprobs":
            old[name] = before or {}
            _add_lists(old[name], value)
        else:
            old[name] = value


def _add_lists(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Add lists with an element for each token; None means that all elements are None."""
    n_old, n_new = (max((len(each) for each in of.values() if isinstance(each, list)), default=0) for of in (old, new))
    for name in {**old, **new}:
        before, value = old.get(name), new.get(name)
        if isinstance(before, list) or isinstance(value, list):
            old[name] = before if isinstance(before, list) else [None] * n_old
            old[name] += value if isinstance(value, list) else [None] * n_new
        else:
            old[name] = before if value is None else value
