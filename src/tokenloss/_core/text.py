"""Text for people: names of files, counts and sizes, and values that JSON can hold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def printable(text: str) -> str:
    """The text with escapes for characters that end a line, control a terminal, are invisible or change direction.

    All text from files, including their names, passes through here before it is shown: in tables of any format
    (`escaped` in result.py), errors, warnings and plots. HTML pages show symbols instead of these characters.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, most: int = 24) -> str:
    """The text, or the start and end of a longer one, with this many characters in all."""
    return text if len(text) <= most else f"{text[: most // 2]}\N{HORIZONTAL ELLIPSIS}{text[most // 2 + 1 - most :]}"


def count_of(number: int, noun: str) -> str:
    """A number with its unit: '1 token', '12,000 tokens'."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def unit_of_bytes(size: float) -> tuple[str, float]:
    """The unit for a number of bytes, and the bytes that it has: GB, but MB or kB below a tenth of GB or MB."""
    return next((unit for unit in (("GB", 1e9), ("MB", 1e6)) if size >= unit[1] / 10), ("kB", 1e3))


def as_strict_json(value: Any) -> Any:
    """Replace what JSON cannot hold: nan and infinities by None, unpaired surrogates by U+FFFD."""
    if isinstance(value, dict):
        return {name: as_strict_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_strict_json(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def title(files: Sequence[str]) -> str:
    """The names of up to three files; for more, the first one and the number of the others."""
    return ", ".join(files) if len(files) < 4 else f"{files[0]} and {len(files) - 1} more files"
