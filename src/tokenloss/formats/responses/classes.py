"""The classes that a response lists, as columns; an id is -1 and a rank 0 where the server gave none."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Any

from tokenloss.formats.records import check_counts, check_lists, check_objects, check_texts
from tokenloss.formats.responses.columns import Tops, position_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tokenloss.formats.records import Place

_ID = re.compile("0|[1-9][0-9]{0,17}")
_BYTES = {*range(256)}
_NAMED = re.compile("token_id:([0-9]{1,18})")  # how vLLM may name a token


def flat(values: Iterable[Iterable[Any]]) -> list[Any]:
    """The elements of all values."""
    return list(chain.from_iterable(values))


def _member(path: Callable[[int], str], key: str) -> Callable[[int], str]:
    """The path of a key of each of some objects."""
    return lambda at: f"{path(at)}.{key}"


def names(texts: list[str | None]) -> tuple[list[str | None], list[int]]:
    """Texts and ids of tokens, each of which vLLM may name by its id."""
    if "token_id:" not in "\n".join(filter(None, texts)):
        return texts, [-1] * len(texts)
    matches = [_NAMED.fullmatch(text or "") for text in texts]
    rest = [None if match else text for match, text in zip(matches, texts, strict=True)]
    return rest, [int(match[1]) if match else -1 for match in matches]


def classes_by_text(values: list[Any], field: str, place: Place) -> Tops:
    """The classes of objects by text, or nulls."""
    objects = check_objects([{} if value is None else value for value in values], lambda i: f"{field}[{i}]", place)
    return Tops([len(each) for each in objects], *names(flat(objects)), flat(each.values() for each in objects))


def classes_by_id(values: list[Any], field: str, place: Place) -> Tops:
    """The classes of objects by id, or nulls."""
    objects = check_objects([{} if value is None else value for value in values], lambda i: f"{field}[{i}]", place)
    if {} in values:
        place.refuse(f"{field}[{values.index({})}] is empty", "hold the prompt's token")
    counts, keys = [len(each) for each in objects], flat(objects)

    def path(at: int) -> str:
        return f'{field}[{position_of(counts, at)[0]}]["{keys[at]}"]'

    if not all(map(_ID.fullmatch, keys)):
        wrong = next(at for at, key in enumerate(keys) if not _ID.fullmatch(key))
        place.refuse(f"{path(wrong)} is no id", "be the id of a class")
    entries = check_objects(flat(each.values() for each in objects), path, place)
    logprobs = [entry.get("logprob") for entry in entries]
    if None in logprobs:
        place.refuse(f"{path(logprobs.index(None))}.logprob is null", "be a log-probability")
    ranks = check_counts([entry.get("rank") for entry in entries], _member(path, "rank"), place, 1)
    texts = check_texts([entry.get("decoded_token") for entry in entries], _member(path, "decoded_token"), place)
    return Tops(counts, texts, [int(key) for key in keys], logprobs, ranks)


def own_and_listed_classes(
    entries: list[Any], field: str, place: Place
) -> tuple[list[str | None], list[int], list[bytes | None], list[Any], list[int], Tops]:
    """Texts, ids, bytes, log-probabilities and ranks of tokens in objects, as in chats; and the classes these list."""

    def path(i: int) -> str:
        return f"{field}[{i}]"

    check_objects(entries, path, place)
    for i, entry in enumerate(entries):
        if "prob" in entry or "probs" in entry:
            got = f"{path(i)} holds probabilities after sampling, which are not the model's"
            place.refuse(got, "hold logprob: do not ask for post_sampling_probs")
        if "logprob" not in entry:
            place.refuse(f"{path(i)} holds no logprob", "hold one")
    own = _classes(entries, path, place)
    ranks = check_counts([entry.get("rank") for entry in entries], _member(path, "rank"), place, 1)
    lists = [[] if entry.get("top_logprobs") is None else entry["top_logprobs"] for entry in entries]
    counts = [len(each) for each in check_lists(lists, _member(path, "top_logprobs"), place)]

    def top_path(at: int) -> str:
        i, j = position_of(counts, at)
        return f"{path(i)}.top_logprobs[{j}]"

    texts, ids, _, logprobs = _classes(flat(lists), top_path, place)
    return *own, ranks, Tops(counts, texts, ids, logprobs)


def _classes(
    entries: list[Any], path: Callable[[int], str], place: Place
) -> tuple[list[str | None], list[int], list[bytes | None], list[Any]]:
    """Texts, ids, bytes and log-probabilities of classes, an object each."""
    check_objects(entries, path, place)
    raw = check_texts([entry.get("token") for entry in entries], _member(path, "token"), place)
    texts, ids = names(raw)
    for key in ("id", "token_id"):
        if any(key in entry for entry in entries):
            given = check_counts([entry.get(key) for entry in entries], _member(path, key), place)
            ids = [own if id_ < 0 else id_ for own, id_ in zip(ids, given, strict=True)]
    spelled = [entry.get("bytes") for entry in entries]
    lists = [[] if value is None else value for value in spelled]
    check_lists(lists, _member(path, "bytes"), place)
    if not ({*map(type, flat(lists))} <= {int} and {*flat(lists)} <= _BYTES):
        wrong = next(at for at, each in enumerate(lists) if not ({*map(type, each)} <= {int} and {*each} <= _BYTES))
        place.refuse_value(f"{path(wrong)}.bytes", lists[wrong], "hold bytes")
    by_bytes = [
        None if value is None or (name != text and bytes(value) == (name or "").encode()) else bytes(value)
        for value, name, text in zip(spelled, raw, texts, strict=True)  # bytes of the name are not the token's
    ]
    return texts, ids, by_bytes, [entry.get("logprob") for entry in entries]
