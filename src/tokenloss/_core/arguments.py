"""Checks of arguments that evaluations and comparisons of files share."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenloss._core.errors import named, raise_error

if TYPE_CHECKING:
    from collections.abc import Sequence

# the divergences of two models' distributions, in the order of results, and what tables call them
DIVERGENCES = {
    "kl": "KLD", "reverse_kl": "reverse KLD", "js": "Jensen-Shannon", "tv": "total variation", "hellinger": "Hellinger",
}  # fmt: skip
FURTHER_DIVERGENCES = tuple(DIVERGENCES)[1:]  # those beside the first, which every comparison has
_JSON = re.compile(r'\s*(\[\s*)?\{\s*"')  # the beginning of an object, or of a list of them


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise an error unless an option is None or one of its choices."""
    if value is not None and value not in choices:
        raise_error("option", name=name, got=value, fits=", ".join(map(repr, choices)))


def check_divergences(value: Any, definitions: str = "exact") -> tuple[str, ...]:
    """The names of divergences, in the order of `DIVERGENCES`; a text is one name."""
    names = value if isinstance(value, list | tuple) else (value,)
    for name in names or (value,):
        if not isinstance(name, str) or name not in DIVERGENCES:
            raise_error("option", name="divergences", got=name, fits=f"some of {', '.join(map(repr, DIVERGENCES))}")
        if name in FURTHER_DIVERGENCES and definitions != "exact":
            fits = f"only 'kl' with {named('definitions', definitions)}"
            raise_error("option", name="divergences", got=name, fits=fits)
    return tuple(name for name in DIVERGENCES if name in names)


def further_divergences(value: Any, definitions: str = "exact") -> tuple[str, ...]:
    """The same without "kl", which every comparison has."""
    return tuple(name for name in check_divergences(value, definitions) if name in FURTHER_DIVERGENCES)


def check_shift(shift: Any) -> None:
    """Raise an error unless `shift` is True, False or None."""
    if shift not in (None, True, False):
        raise_error("option", name="shift", got=shift, fits="True, False or None")


def is_given(value: Any, default: Any) -> bool:
    """Whether an option is given: neither its default nor empty."""
    is_empty = isinstance(value, tuple | list | dict) and not value
    return value is not default and not is_empty and not (type(value) is type(default) and value == default)


def refuse_given(given: dict[str, Any], fits: str, *others: str) -> None:
    """Refuse these options if given, neither None nor empty; {} in `fits` is replaced by another's name."""
    for name, value in given.items():
        if is_given(value, None):
            raise_error("given", name=name, fits=fits.format(*map(named, others)))


def as_paths(name: str, value: Any) -> list[str]:
    """Turn a path, or several, into a list of text."""
    refuse_content(name, value)
    several = hasattr(value, "__iter__") and not isinstance(value, str)
    return [as_path(name, path) for path in (value if several else [value])]


def refuse_content(name: str, value: Any, fits: str = "a path") -> None:
    """Raise an error if a value is the content of a JSON file instead of its path."""
    fits += "; save a server's response as a .json file"
    if isinstance(value, Mapping):
        raise_error("type", name=name, got=type(value).__name__, fits=fits)
    if isinstance(value, str) and _JSON.match(value):
        raise_error("type", name=name, got=f"{value[:16]}...", fits=fits)


def as_path(name: str, value: Any, fits: str = "a path") -> str:
    """Turn a path into text."""
    refuse_content(name, value)
    if not isinstance(value, str | os.PathLike):
        raise_error("type", name=name, got=type(value).__name__, fits=fits)
    if not os.fspath(value):
        raise_error("empty", name=name, fits="a path")
    return os.fspath(value)
