"""vLLM's `prompt_logprobs`: of each token an object, by id, of the most likely classes and of the token itself."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from tokenloss.formats._fields import Place, check_count, check_list, check_object, check_text
from tokenloss.formats._records import read_records
from tokenloss.formats._token_columns import Tokens, lengths

if TYPE_CHECKING:
    from tokenloss.formats._token_columns import _Listed

_FAR = 8  # ranks, that ties do not explain
_KEY = "do not tell which entry is the prompt's own token"


def read_objects(value: Any, ids: list[int] | None, field: str, place: Place) -> Tokens | None:
    """Tokens of a prompt: objects by id of the most likely classes and the prompt's token."""
    if value is None:
        return None
    objects = [_entries(element, f"{field}[{i}]", place) for i, element in enumerate(check_list(value, field, place))]
    if ids is not None and len(ids) != len(objects):
        place.refuse(f"{field} has {len(objects)} elements", f"have {len(ids)}, as prompt_token_ids")
    own = _own(objects, ids, field, place)
    found = [entries[at] if entries else None for entries, at in zip(objects, own, strict=True)]
    texts = [entry[0][0] if entry else None for entry in found]
    tops = [[entry[0] for entry in entries] for entries in objects]
    ranks = [entry[1] if entry else 0 for entry in found]
    return Tokens(
        place, f'{field}[{{i}}]["{{id}}"].logprob', f'{field}[{{i}}]["{{id}}"].logprob', texts,
        [entry[0][1] if entry else -1 for entry in found] if ids is None else ids,
        [entry[0][2] if entry else None for entry in found], lengths(texts, is_completed=True), tops,
        ranks if any(ranks) else None,
    )  # fmt: skip


def _entries(value: Any, field: str, place: Place) -> list[tuple[_Listed, int]]:
    """Classes of a position, and their ranks, 0 where there is none."""
    if value is None:
        return []
    found = []
    for key, entry in check_object(value, field, place).items():
        path = f'{field}["{key}"]'
        if not (key.isascii() and key.isdigit() and len(key) < 19):
            place.refuse(f"{path} is no id", "be the id of a class")
        entry = check_object(entry, path, place)
        if entry.get("logprob") is None:
            place.refuse(f"{path}.logprob is null", "be a log-probability")
        rank = entry.get("rank")
        rank = 0 if rank is None else check_count(rank, f"{path}.rank", place, 1)
        text = check_text(entry.get("decoded_token"), f"{path}.decoded_token", place)
        found.append(((text, int(key), entry["logprob"]), rank))
    if not found:
        place.refuse(f"{field} is empty", "hold the prompt's token")
    return found


def _own(objects: list[list[tuple[_Listed, int]]], ids: list[int] | None, field: str, place: Place) -> list[int]:
    """Which entry of each object is the prompt's own token; refused if that is not certain."""
    own = []
    is_first = None if ids is not None else _is_own_first(objects)
    k = _n_listed(objects)
    for i, entries in enumerate(objects):
        most = k if k and len(entries) > k else 2 * len(entries) + _FAR
        far = [j for j, (_, rank) in enumerate(entries) if rank > most]
        if ids is not None:
            at = [j for j, (entry, _) in enumerate(entries) if entry[1] == ids[i]]
            if entries and not at:
                place.refuse(f"{field}[{i}] does not hold the prompt's token {ids[i]}", "hold it, by prompt_token_ids")
            own.append(at[0] if at else 0)
        elif len(entries) < 2 or is_first or (is_first is None and len(far) != 1 and place.writer.puts_own_first):
            own.append(0)
        elif len(far) == 1:
            own.append(far[0])  # the others are the most likely
        else:
            place.refuse(f"{field}[{i}] and the others {_KEY}", "come with prompt_token_ids: ask for return_token_ids")
    return own


def _n_listed(objects: list[list[tuple[_Listed, int]]]) -> int:
    """The k of the k likeliest, where objects of k entries and of one more, the own token, show it; 0 if not.

    A rank above k + 1 tells them from k + 1 likeliest, of which some objects lack one.
    """
    sizes = {len(entries) for entries in objects if entries}
    k = min(sizes, default=0)
    is_shown = any(rank > k + 1 for entries in objects if len(entries) == k + 1 for _, rank in entries)
    return k if sizes == {k, k + 1} and is_shown else 0


def _is_own_first(objects: list[list[tuple[_Listed, int]]]) -> bool | None:
    """Whether the objects show that their writer puts the own token first, and then the others by rank, as vLLM does.

    It is proved by one that stands before more likely ones, unless the keys are sorted, as some tools leave them; None
    if the objects show neither this nor another order.
    """
    is_proved, orders, k = False, {int: True, str: True}, _n_listed(objects)
    for entries in objects:
        ranks = [rank for _, rank in entries]
        if len(ranks) < 2:
            continue
        others = ranks[1:]
        if not all(ranks) or others != sorted(others) or others[-1] > 2 * len(ranks) + _FAR:
            return False
        if k and len(ranks) > k and ranks[0] <= k < others[-1]:  # which is the own token
            return False
        is_proved |= ranks[0] > others[0]
        keys = [entry[1] for entry, _ in entries]
        for order in orders:
            orders[order] &= keys == sorted(keys, key=order)
    return True if is_proved and not any(orders.values()) else None


class Writer:
    """What the responses of a file show together of the server or tool that wrote them."""

    def __init__(self, path: str) -> None:
        """Remember the file, which is only read if it is asked for."""
        self.path = path

    @functools.cached_property
    def puts_own_first(self) -> bool:
        """Whether a response of the file proves that the own token comes first: short prompts may not."""
        return any(self._is_proof(*record) for record in read_records(self.path))

    def _is_proof(self, line: int, value: dict[str, Any]) -> bool:
        """Whether a response proves it."""
        response = value.get("response")
        body = response.get("body") if isinstance(response, dict) else value
        choices = body.get("choices") if isinstance(body, dict) else None
        for holder in (body, *(choices if isinstance(choices, list) else ())):
            found = holder.get("prompt_logprobs") if isinstance(holder, dict) else None
            try:
                objects = [_entries(element, "", Place(self.path, line, self)) for element in found or ()]
            except (TypeError, ValueError):
                continue  # it is refused when it is its turn
            if _is_own_first(objects):
                return True
        return False
