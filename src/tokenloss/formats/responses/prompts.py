"""vLLM's `prompt_logprobs`: of each token an object, by id, of the most likely classes and of the token itself."""

from __future__ import annotations

from typing import Any

from tokenloss._core._core import classes_by_id
from tokenloss.formats.responses.columns import Tokens, Tops, lengths
from tokenloss.formats.responses.fields import Place, check_list

_FAR = 8  # ranks, that ties do not explain
_KEY = "do not tell which entry is the prompt's own token"


def read_objects(value: Any, ids: list[int] | None, field: str, place: Place) -> Tokens | None:
    """Tokens of a prompt: objects by id of the most likely classes and the prompt's token."""
    if value is None:
        return None
    tops = Tops(*classes_by_id(check_list(value, field, place), field, place))
    n = len(tops.counts)
    if ids is not None and len(ids) != n:
        place.refuse(f"{field} has {n} elements", f"have {len(ids)}, as prompt_token_ids")
    own = _own(tops, ids, field, place)
    texts = [None if at is None else tops.texts[at] for at in own]
    ranks = [0 if at is None else tops.ranks[at] for at in own]
    return Tokens(
        place, f'{field}[{{i}}]["{{id}}"].logprob', f'{field}[{{i}}]["{{id}}"].logprob', texts,
        [-1 if at is None else tops.ids[at] for at in own] if ids is None else ids,
        [None if at is None else tops.logprobs[at] for at in own], lengths(texts, is_completed=True), tops,
        ranks if any(ranks) else None,
    )  # fmt: skip


def _own(tops: Tops, ids: list[int] | None, field: str, place: Place) -> list[int | None]:
    """The index of each of the prompt's own tokens among the classes, None of one without any; refused if uncertain."""
    own: list[int | None] = []
    if ids is not None:
        listed = tops.ids
        for i, (start, end) in enumerate(tops.spans()):
            try:
                own.append(listed.index(ids[i], start, end) if end > start else None)
            except ValueError:
                place.refuse(f"{field}[{i}] does not hold the prompt's token {ids[i]}", "hold it, by prompt_token_ids")
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
            place.refuse(f"{field}[{i}] and the others {_KEY}", "come with prompt_token_ids: ask for return_token_ids")
    return own


def _n_listed(tops: Tops) -> int:
    """How many likeliest classes were asked for: k, where all objects have k entries, or one more for the own token.

    A rank above k + 1 proves it, since k + 1 may have been asked for and some objects lack one. 0 if it is not known.
    """
    sizes = {*tops.counts} - {0}
    k = min(sizes, default=0)
    if sizes != {k, k + 1}:
        return 0
    return k if any(max(tops.ranks[a:b]) > k + 1 for a, b in tops.spans() if b - a == k + 1) else 0


def _is_own_first(tops: Tops) -> bool | None:
    """Whether the objects show that their writer puts the own token first, and then the others by rank, as vLLM does.

    It is proved by one that stands before more likely ones, unless the keys are sorted, as some tools leave them; None
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
        listed = holder.get("prompt_logprobs") if isinstance(holder, dict) else None
        try:
            tops = Tops(*classes_by_id(list(listed or ()), "", place))
        except (TypeError, ValueError):
            continue  # it is refused when it is its turn
        if _is_own_first(tops):
            return True
    return False
