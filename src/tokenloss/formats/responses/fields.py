"""Fields of a record: what must be there, and of which type; else an error that names the line and the field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenloss.formats.records import Place as Place

if TYPE_CHECKING:
    from collections.abc import Iterable


def types(values: Iterable[Any]) -> set[type]:
    """The types that occur among values: a fast way to see that all are right."""
    return set(map(type, values))


def check_list(value: Any, field: str, place: Place, n: int | None = None) -> list[Any]:
    """A list, of n elements."""
    if not isinstance(value, list):
        place.refuse_value(field, value, "be a list")
    if n is not None and len(value) != n:
        place.refuse(f"{field} has {len(value)} elements", f"have {n}, one for each token")
    return value


def check_object(value: Any, field: str, place: Place) -> dict[str, Any]:
    """An object."""
    if not isinstance(value, dict):
        place.refuse_value(field, value, "be an object")
    return value


def check_text(value: Any, field: str, place: Place) -> str | None:
    """A text, or None."""
    if value is not None and not isinstance(value, str):
        place.refuse_value(field, value, "be a text")
    return value


def check_count(value: Any, field: str, place: Place, least: int = 0) -> int:
    """An integer that counts, or numbers a class."""
    if type(value) is not int or not least <= value < 1 << 63:
        place.refuse_value(field, value, f"be an integer of at least {least}")
    return value


def check_ids(value: Any, field: str, place: Place) -> list[int] | None:
    """Class ids, if they are given."""
    if value is None:
        return None
    values = check_list(value, field, place)
    if values and types(values) == {int} and min(values) >= 0 and max(values) < 1 << 63:
        return values
    return [check_count(element, f"{field}[{i}]", place) for i, element in enumerate(values)]
