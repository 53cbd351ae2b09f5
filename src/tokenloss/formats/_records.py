"""JSON records of a file, one after the other: the lines of .jsonl, or the value or the list of .json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class Record(NamedTuple):
    """A JSON object, and its line of the file, from 1; of a list, the number of the element."""

    line: int
    value: dict[str, Any]


def read_records(path: str) -> Iterator[Record]:
    """Read the objects of a file, plain or compressed by gzip; ValueError names the line of what is wrong."""
    raise NotImplementedError
