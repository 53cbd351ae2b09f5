"""Layouts in which servers return log-probabilities: one function for each, chosen by the keys of a response."""

from __future__ import annotations

import base64
import binascii
import contextlib
import itertools
import re
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from tokenloss.formats.records import COUNT, TEXT, Place, ValueType, check, check_length, first_wrong
from tokenloss.formats.responses.columns import Listed, Tops, lengths, position_of
from tokenloss.formats.responses.echoes import copies, split_echoes
from tokenloss.formats.responses.streams import first_choice, is_piece

if TYPE_CHECKING:
    from collections.abc import Callable


_RANK = ValueType("be an integer >= 1", lambda value: type(value) is int and 1 <= value < 1 << 63)
_BYTE = ValueType("be a byte", lambda value: type(value) is int and 0 <= value < 256)
_TRIPLE = ValueType("have a log-probability, an id and a text", lambda value: _is_triple(value))
_CLASS = {"token": TEXT, "id": COUNT, "token_id": COUNT, "bytes": [_BYTE]}
_ENTRIES = [_CLASS | {"rank": _RANK, "top_logprobs": [_CLASS]}]  # chats, llama.cpp
_OBJECTS = [({...: {"rank": _RANK, "decoded_token": TEXT}},)]  # vLLM's prompts: classes by id
_LISTS = {"token_logprobs": [], "tokens": [(TEXT,)], "top_logprobs": [({},)], "content": _ENTRIES}
_PROMPT = {"prompt_token_ids": [COUNT], "prompt_logprobs": _OBJECTS}
_CHOICE = _PROMPT | {"text": TEXT, "message": {"content": TEXT}, "token_ids": [COUNT], "logprobs": _LISTS}
_SIDES = ("input", "prompt"), ("output", "generated")  # of a response of SGLang
_META = {f"{side}_token_logprobs": [_TRIPLE] for side, _ in _SIDES} | {
    f"{side}_{lists}_logprobs{name}": schema
    for (side, _), lists in itertools.product(_SIDES, ("top", "token_ids"))
    for name, schema in (
        ("", [([_TRIPLE],)]), ("_val_flat", []), ("_idx_flat", [COUNT]), ("_shape", [COUNT]), ("_null_prefix", COUNT),
    )
}  # fmt: skip
_ID = re.compile("0|[1-9][0-9]{0,17}")
_NAMED = re.compile("token_id:([0-9]{1,18})")  # how vLLM may name a token


class Choice(NamedTuple):
    """A choice of a response: its parts "prompt" and "generated", or "all" if nothing separates them."""

    number: int
    parts: dict[str, Listed]
    is_repeated: bool = False  # the prompt, which a choice before this one has
    n_generated: int | None = None  # as the server counts


def failure(value: dict[str, Any]) -> tuple[str | None, dict[str, Any], str]:
    """The request's name, the response itself, and why it failed, "" if it did not."""
    custom_id = value.get("custom_id")
    custom_id = custom_id if custom_id is None else str(custom_id)
    if "custom_id" in value and "choices" not in value and ("response" in value or "error" in value):
        response, error = value.get("response"), value.get("error")
        body = response.get("body") if isinstance(response, dict) else None
        status = response.get("status_code", 200) if isinstance(response, dict) else 200
        if error or status != 200 or not isinstance(body, dict):
            reason = _message(error) or (_message(body) if isinstance(body, dict) else "")
            return custom_id, {}, reason or (f"status {status}" if status != 200 else "it has no response")
        value = body
    is_error = value.get("error") or value.get("object") == "error" or set(value) == {"detail"}
    if is_error and "choices" not in value and "meta_info" not in value:
        return custom_id, value, _message(value) or "error"
    finish = value["meta_info"].get("finish_reason") if isinstance(value.get("meta_info"), dict) else None
    if isinstance(finish, dict) and finish.get("type") == "abort":
        return custom_id, value, _message(finish) or "abort"
    return custom_id, value, ""


def _message(error: Any) -> str:
    """The text of an error, in one line."""
    while isinstance(error, dict):
        error = error.get("error") or error.get("message") or error.get("detail") or error.get("code") or ""
    return " ".join(str(error or "").split())[:300]


def read(value: dict[str, Any], place: Place) -> tuple[str, list[Choice]]:
    """The dialect of a response, and its choices."""
    for name, (fits_dialect, reader) in _DIALECTS.items():
        if fits_dialect(value):
            return name, reader(value, place)
    keys = ", ".join(list(value)[:12]) or "nothing"
    if {"url", "body"} <= set(value):
        place.refuse("it is a request", "be a response")
    if ("doc_id" in value and "filtered_resps" in value) or {"results", "configs"} <= set(value):
        fits = "be a response; two models' samples are compared: tokenloss compare A.jsonl B.jsonl, or compare_files"
        place.refuse("it is a sample of lm-evaluation-harness", fits)
    first = first_choice(value)
    if first is not None:
        keys = ", ".join(list(first)[:12]) or "nothing"
        fits = "also have text (of completions), message (of chats) or token_ids"
        place.refuse(f"its first choice has {keys}", fits)
    fits = "be a response with choices (vLLM, OpenAI), meta_info (SGLang) or completion_probabilities (llama.cpp)"
    fits += '; compare also takes lines {"logprobs": [...]}'
    return place.refuse(f"it has {keys}", fits)


def _usage(value: dict[str, Any], place: Place) -> tuple[int | None, int | None]:
    """Numbers of prompt tokens and of generated tokens, as the server counts."""
    usage = value.get("usage")
    if not isinstance(usage, dict):
        return None, None
    counts = {
        name: check(usage[name], COUNT, f"usage.{name}", place)
        for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        if usage.get(name) is not None
    }
    n_prompt, n_generated = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if n_generated is None and n_prompt is not None and "total_tokens" in counts:  # OpenAI, where nothing was generated
        n_generated = max(0, counts["total_tokens"] - n_prompt)
    return n_prompt, n_generated


# vLLM's prompts: of each token an object, by id, of the most likely classes and of the token itself

_FAR = 8  # ranks, that ties do not explain
_KEY = "do not show which entry is the prompt's own token"


def _objects(values: list[Any], ids: list[int] | None, field: str, place: Place) -> Listed:
    """Tokens of a prompt: objects by id of the most likely classes and the prompt's token."""
    tops = _classes_by_id(values, field, place)
    n = len(tops.counts)
    if ids is not None and len(ids) != n:
        place.refuse(f"{field} has {n} elements", f"have {len(ids)}, as prompt_token_ids does")
    own = _own(tops, ids, field, place)
    texts = [None if at is None else tops.texts[at] for at in own]
    ranks = [0 if at is None else tops.ranks[at] for at in own]
    return Listed(
        place, f'{field}[{{i}}]["{{id}}"].logprob', f'{field}[{{i}}]["{{id}}"].logprob', texts,
        [-1 if at is None else tops.ids[at] for at in own] if ids is None else ids,
        [None if at is None else tops.logprobs[at] for at in own], lengths(texts, is_completed=True), tops,
        ranks if any(ranks) else None,
    )  # fmt: skip


def _classes_by_id(values: list[Any], field: str, place: Place) -> Tops:
    """The classes of objects by id, or nulls."""
    counts = [len(value or ()) for value in values]
    pairs = [pair for value in values if value for pair in value.items()]

    def refuse(at: int, got: str, fits: str) -> NoReturn:
        place.refuse(f'{field}[{position_of(counts, at)[0]}]["{pairs[at][0]}"]{got}', fits)

    if {} in values:
        place.refuse(f"{field}[{values.index({})}] is empty", "contain the prompt's token")
    for at, (key, entry) in enumerate(pairs):
        if not _ID.fullmatch(key):
            refuse(at, " is not an id", "be the id of a class")
        if entry.get("logprob") is None:
            refuse(at, ".logprob is null", "be a log-probability")
    entries = [entry for _, entry in pairs]
    texts, logprobs = ([entry.get(name) for entry in entries] for name in ("decoded_token", "logprob"))
    return Tops(counts, texts, [int(key) for key, _ in pairs], logprobs, [entry.get("rank") or 0 for entry in entries])


def _own(tops: Tops, ids: list[int] | None, field: str, place: Place) -> list[int | None]:
    """The index of each of the prompt's tokens among its classes, None if it has none; refused if uncertain."""
    own: list[int | None] = []
    if ids is not None:
        listed = tops.ids
        for i, (start, end) in enumerate(tops.spans()):
            try:
                own.append(listed.index(ids[i], start, end) if end > start else None)
            except ValueError:
                place.refuse(f"{field}[{i}] does not list the prompt's token {ids[i]}", "list it: see prompt_token_ids")
        return own
    is_first, k = _is_own_first(tops), _n_listed(tops)
    if is_first:
        return [start if end > start else None for start, end in tops.spans()]
    for i, (start, end) in enumerate(tops.spans()):
        if end - start < 2:
            own.append(start if end > start else None)
            continue
        most = k if k and end - start > k else 2 * (end - start) + _FAR
        far = [at for at in range(start, end) if tops.ranks[at] > most]
        if is_first is None and len(far) != 1 and place.puts_own_first():
            own.append(start)
        elif len(far) == 1:
            own.append(far[0])  # the others are the most likely
        else:
            place.refuse(f"{field}[{i}] and the others {_KEY}", "come with prompt_token_ids: request return_token_ids")
    return own


def _n_listed(tops: Tops) -> int:
    """The number k of likeliest classes requested: all objects have k entries, or one more for the own token.

    A rank above k + 1 proves it, since k + 1 may have been asked for and some objects lack one. 0 if it is not known.
    """
    sizes = {*tops.counts} - {0}
    k = min(sizes, default=0)
    if sizes != {k, k + 1}:
        return 0
    return k if any(max(tops.ranks[a:b]) > k + 1 for a, b in tops.spans() if b - a == k + 1) else 0


def _is_own_first(tops: Tops) -> bool | None:
    """Whether the objects show that their writer puts the own token first, and then the others by rank, as vLLM does.

    It is proved by one that precedes more likely ones, unless the keys are sorted, as some tools leave them; None
    if the objects show neither this nor another order.
    """
    is_proved, k = False, _n_listed(tops)
    orders: list[type] = [int, str]  # by which all keys are sorted
    for start, end in tops.spans():
        ranks = tops.ranks[start:end]
        if len(ranks) < 2:
            continue
        others = ranks[1:]
        if 0 in ranks or others != sorted(others) or others[-1] > 2 * len(ranks) + _FAR:
            return False
        if k and len(ranks) > k and ranks[0] <= k < others[-1]:  # which is the own token
            return False
        is_proved |= ranks[0] > others[0]
        if orders:
            keys = tops.ids[start:end]
            orders = [order for order in orders if keys == sorted(keys, key=order)]
    return True if is_proved and not orders else None


def proves_own_first(body: dict[str, Any], place: Place) -> bool:
    """Whether a response proves that the own token comes first, which short prompts may not."""
    choices = body.get("choices")
    for holder in (body, *(choices if isinstance(choices, list) else ())):
        listed: Any = holder.get("prompt_logprobs") if isinstance(holder, dict) else None
        with contextlib.suppress(ValueError):  # it is refused when it is its turn
            if first_wrong(listed, _OBJECTS) is None and _is_own_first(_classes_by_id(listed, "", place)):
                return True
    return False


# Lists of objects: chats, llama.cpp


def _content(
    entries: list[Any], field: str, place: Place, own_text: str | None, ids: list[int] | None = None
) -> Listed:
    """Tokens of a list of objects, each of which lists the most likely classes."""
    for i, entry in enumerate(entries):
        if "prob" in entry or "probs" in entry:
            got = f"{field}[{i}] has probabilities after sampling, not the model's own"
            place.refuse(got, "have logprob: do not request post_sampling_probs")
        if "logprob" not in entry:
            place.refuse(f"{field}[{i}] has no logprob", "have one")
    texts, own_ids, spelled = _named(entries)
    if ids is not None and len(ids) == len(entries):
        own_ids = ids
    lists = [entry.get("top_logprobs") or [] for entry in entries]
    listed = list(itertools.chain.from_iterable(lists))
    top_texts, top_ids, _ = _named(listed)
    ranks = [entry.get("rank") or 0 for entry in entries]
    return Listed(
        place, f"{field}[{{i}}].logprob", f"{field}[{{i}}].top_logprobs[{{j}}].logprob", texts, own_ids,
        [entry["logprob"] for entry in entries], lengths(texts, spelled, own_text),
        Tops(list(map(len, lists)), top_texts, top_ids, [entry.get("logprob") for entry in listed]),
        ranks if entries and all(ranks) else None, is_keyed=all(spelling is None for spelling in spelled),
        is_exact=all("id" in entry for entry in entries),  # of llama.cpp
        own_text=own_text,
    )  # fmt: skip


def _named(entries: list[Any]) -> tuple[list[str | None], list[int], list[bytes | None]]:
    """Texts, ids and bytes of classes, each given by an object."""
    raw = [entry.get("token") for entry in entries]
    texts, ids = _names(raw)
    for key in ("id", "token_id"):
        ids = [own if entry.get(key) is None else entry[key] for own, entry in zip(ids, entries, strict=True)]
    spelled = [None if entry.get("bytes") is None else bytes(entry["bytes"]) for entry in entries]
    for i, (name, text) in enumerate(zip(raw, texts, strict=True)):
        if name != text and spelled[i] == (name or "").encode():
            spelled[i] = None  # bytes of the name are not the token's
    return texts, ids, spelled


def _names(texts: list[str | None]) -> tuple[list[str | None], list[int]]:
    """Texts and ids of tokens, each of which vLLM may name by its id."""
    if "token_id:" not in "\n".join(filter(None, texts)):
        return texts, [-1] * len(texts)
    matches = [_NAMED.fullmatch(text or "") for text in texts]
    rest = [None if match else text for match, text in zip(matches, texts, strict=True)]
    return rest, [int(match[1]) if match else -1 for match in matches]


# Parallel lists: OpenAI completions


def _lists(value: dict[str, Any], field: str, place: Place, own_text: str | None, ids: list[int] | None) -> Listed:
    """Tokens of parallel lists, whose most likely classes are named by their text."""
    logprobs = value["token_logprobs"]
    n = len(logprobs)
    texts, own_ids = _names(check_length(value.get("tokens") or [], n, f"{field}.tokens", place))
    lists: list[Any] = [None] * n
    if value.get("top_logprobs") is not None:
        lists = check_length(value["top_logprobs"], n, f"{field}.top_logprobs", place)
    top_texts, top_ids = _names([text for each in lists if each for text in each])
    top_logprobs = [logprob for each in lists if each for logprob in each.values()]
    return Listed(
        place, f"{field}.token_logprobs[{{i}}]", f"{field}.top_logprobs[{{i}}][{{text!r}}]", texts,
        ids if ids is not None and len(ids) == n else own_ids, logprobs, lengths(texts, None, own_text),
        Tops([len(each or ()) for each in lists], top_texts, top_ids, top_logprobs), is_keyed=True, is_added=True,
        own_text=own_text,
    )  # fmt: skip


def _completions(value: dict[str, Any], place: Place) -> list[Choice]:
    """Choices of completions and chats, as OpenAI, vLLM and most other servers return them."""
    choices = [*check(value, {**_PROMPT, "choices": [_CHOICE]}, "", place)["choices"]]
    numbers = [str(choice.get("index")) for choice in choices]
    if len(numbers) > 1 and sorted(numbers) == sorted(map(str, range(len(numbers)))):
        choices.sort(key=lambda choice: int(choice["index"]))
    n_prompt, n_generated = _usage(value, place)
    all_parts: list[dict[str, Listed]] = []
    for i, choice in enumerate(choices):
        at = f"choices[{i}]"
        holder, path = (choice, f"{at}.") if choice.get("prompt_logprobs") is not None else (value, "")
        parts = _choice_lists(choice, at, place)
        if (listed := holder.get("prompt_logprobs")) is not None:
            ids = holder.get("prompt_token_ids")
            parts = {"prompt": _objects(listed, ids, f"{path}prompt_logprobs", place), **parts}
        all_parts.append(parts)
    split_echoes(value, choices, all_parts, (n_prompt, n_generated), place)
    each = n_generated if len(choices) == 1 else None
    pairs = zip(all_parts, copies(all_parts, n_prompt), strict=True)
    return [Choice(i, parts, is_copy, each) for i, (parts, is_copy) in enumerate(pairs)]


def _choice_lists(choice: dict[str, Any], at: str, place: Place) -> dict[str, Listed]:
    """Tokens of a choice's `logprobs`: the generated ones, or an echo, which may also contain the prompt."""
    value, ids, message = choice.get("logprobs"), choice.get("token_ids"), choice.get("message")
    text = choice.get("text") if message is None else message.get("content")
    if value is None:
        return {}
    logprobs = value.get("token_logprobs")
    if logprobs is not None:
        prompt_ids = choice.get("prompt_token_ids")
        n, echoed = len(logprobs), [*(prompt_ids or []), *(ids or [])]
        is_generated = ids is not None and n == len(ids) and bool(n) and logprobs[0] is not None  # as many ids
        if prompt_ids is not None and n in (len(prompt_ids), len(echoed)) and not is_generated:
            ids = echoed[:n]
        tokens = _lists(value, f"{at}.logprobs", place, text, ids)
        return {"listed": tokens} if n else {"generated": tokens}
    if value.get("content") is None:
        return {}
    return {"generated": _content(value["content"], f"{at}.logprobs.content", place, text, ids)}


# SGLang


def _sglang(value: dict[str, Any], place: Place) -> list[Choice]:
    """The choice of a response of SGLang's own endpoint."""
    meta = check(value, {"text": TEXT, "meta_info": _META}, "", place)["meta_info"] or {}
    parts = {}
    for side, part in _SIDES:
        if meta.get(f"{side}_token_logprobs") is not None:
            parts[part] = _triples(meta, side, value.get("text") if part == "generated" else None, place)
    return [Choice(0, parts, n_generated=_integer(meta.get("completion_tokens")))]


def _integer(value: Any) -> int | None:
    """A server's count; None if it is not an integer."""
    return value if type(value) is int else None


def _triples(meta: dict[str, Any], side: str, own_text: Any, place: Place) -> Listed:
    """Tokens of lists of log-probability, id and text."""
    field = f"meta_info.{side}_token_logprobs"
    logprobs, ids, texts = _columns(values := meta[f"{side}_token_logprobs"])
    tops, asked = (_classes(meta, f"{side}_{lists}_logprobs", len(values), place) for lists in ("top", "token_ids"))
    if side == "input" and 0 in ids:
        texts, ids = _certain(texts, ids, logprobs, tops)
    n_bytes = lengths(texts, None, own_text)
    if side == "input" and len(texts) > 1 and not any(text and re.search(r"\s", text) for text in texts):
        n_bytes = [-1] * len(texts)  # the blank that a token starts with is lost with some tokenizers
    return Listed(
        place, f"{field}[{{i}}][0]", f"meta_info.{side}_top_logprobs[{{i}}][{{j}}][0]", texts, ids, logprobs, n_bytes,
        tops, is_exact=True, own_text=own_text, asked=asked,
    )  # fmt: skip


def _classes(meta: dict[str, Any], name: str, n: int, place: Place) -> Tops:
    """Lists of classes: the most likely ones, or the requested ones."""
    tops = _flat_tops(meta, name, n, place)
    if tops is None:
        lists = check_length(meta.get(name) or [None] * n, n, f"meta_info.{name}", place)
        logprobs, ids, texts = _columns([triple for entries in lists for triple in entries or ()])
        tops = Tops([len(entries or ()) for entries in lists], texts, ids, logprobs)
    return tops


def _columns(triples: list[Any]) -> tuple[list[Any], list[int], list[str | None]]:
    """Log-probabilities, ids and texts of triples, in which the text may be missing."""
    return [v[0] for v in triples], [v[1] for v in triples], [v[2] if len(v) > 2 else None for v in triples]


def _is_triple(value: Any) -> bool:
    """Whether a value is a list of a log-probability, an id and perhaps a text."""
    if type(value) is not list or not 2 <= len(value) <= 3:
        return False
    id_, text = value[1], value[-1] if len(value) > 2 else None
    return type(id_) is int and 0 <= id_ < 1 << 63 and (text is None or type(text) is str)


def _certain(
    texts: list[str | None], ids: list[int], logprobs: list[Any], tops: Tops
) -> tuple[list[str | None], list[int]]:
    """Texts and ids, without uncertain ones: SGLang reports the last class of a prompt as class 0."""
    texts, ids = list(texts), list(ids)
    for i, (start, end) in enumerate(tops.spans()):
        if ids[i] == 0:
            same = [at for at in range(start, end) if tops.logprobs[at] == logprobs[i]]
            texts[i], ids[i] = (tops.texts[same[0]], tops.ids[same[0]]) if len(same) == 1 else (None, -1)
    return texts, ids


_WIDTHS = {"float32": "<f4", "float64": "<f8", "int32": "<i4", "int64": "<i8"}


def _flat_tops(meta: dict[str, Any], name: str, n: int, place: Place) -> Tops | None:
    """Lists of the most likely classes, which may be given as one list of all positions, or as its base64."""
    lists: list[list[Any]] = []
    for kind in ("val", "idx"):
        key = f"{name}_{kind}_flat"
        if meta.get(f"{key}_b64") is not None:
            dtype = _WIDTHS.get(str(meta.get(f"{key}_b64_dtype")))
            try:
                data = base64.b64decode(meta[f"{key}_b64"], validate=True)
                lists.append(np.frombuffer(data, dtype or "").tolist())
            except (binascii.Error, TypeError, ValueError):
                place.refuse(f"meta_info.{key}_b64 cannot be decoded", f"be base64 of {' or '.join(_WIDTHS)}")
        elif meta.get(key) is not None:
            lists.append(meta[key])
    if not lists:
        return None
    shape, start = meta.get(f"{name}_shape") or [], meta.get(f"{name}_null_prefix") or 0
    if len(lists) != 2 or len(shape) != 2 or start + shape[0] != n or {*map(len, lists)} != {shape[0] * shape[1]}:
        place.refuse(f"meta_info.{name}_shape is {shape} after {start} tokens", f"fit {n} tokens and the lists")
    ids = check(lists[1], [COUNT], f"meta_info.{name}_idx_flat", place)  # those of base64, too
    return Tops([0] * start + [shape[1]] * shape[0], [None] * len(ids), ids, lists[0])


# llama.cpp


def _llama_cpp(value: dict[str, Any], place: Place) -> list[Choice]:
    """The choice of a response of llama.cpp's own endpoint."""
    entries, n_generated = value.get("completion_probabilities"), value.get("tokens_predicted")
    content = check(value, {"content": TEXT, "completion_probabilities": _ENTRIES}, "", place).get("content")
    parts = {} if entries is None else {"generated": _content(entries, "completion_probabilities", place, content)}
    return [Choice(_integer(value.get("index")) or 0, parts, n_generated=_integer(n_generated))]


def _stream(value: dict[str, Any], place: Place) -> list[Choice]:
    """Refuse a piece of a stream among whole responses."""
    return place.refuse("it is a piece of a stream", "be a whole response, like those before it")


_DIALECTS: dict[str, tuple[Callable[[dict[str, Any]], bool], Callable[[dict[str, Any], Place], list[Choice]]]] = {
    "stream": (is_piece, _stream),
    "llama.cpp": (
        lambda value: "completion_probabilities" in value or {"content", "tokens_predicted"} <= set(value),
        _llama_cpp,
    ),
    "SGLang": (lambda value: "meta_info" in value, _sglang),
    "chat": (lambda value: "message" in (first_choice(value) or ()), _completions),
    "completions": (lambda value: "text" in (first_choice(value) or ()), _completions),
    "tokens": (lambda value: "token_ids" in (first_choice(value) or ()), _completions),
}
