"""Signatures: a line that says how figures were computed, by which others can tell whether theirs may be compared."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core.text import printable
from tokenloss._core.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenloss._core.types import Array

_BITS = 64  # of a sum of class ids
# the fields, in their order; those that do not apply are left out
_FIELDS = (
    "tokenloss", "unit", "tokens", "sequences", "samples", "documents", "window", "stride", "shift", "mask", "weights",
    "kind", "dtype", "part", "definitions", "temperature", "classes", "words", "ids", "bytes", "text",
)  # fmt: skip


def ids_sum(ids: Array) -> int:
    """A sum of the hashes of class ids: that of a text is the sum of those of its parts, in any order.

    Each id is hashed by the steps of splitmix64, by which every bit of it changes about half of the bits.
    """
    with np.errstate(over="ignore"):
        mixed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return int((mixed ^ (mixed >> np.uint64(31))).sum(dtype=np.uint64))


def merged_parts(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of two parts together: numbers are added up, and words joined."""
    both = {**one, **other}
    for name in one.keys() & other.keys():
        if isinstance(both[name], int):
            both[name] = (one[name] + other[name]) % 2**_BITS
        else:
            both[name] = "+".join(sorted({*one[name].split("+"), *other[name].split("+")}))
    return both


def either(word: str, base: str) -> str:
    """A word about a model and its base: one if it is the same of both."""
    return word if word == base else f"{word}/{base}"


def signature_of(*, ignored: int = 0, ids: int | None = None, **fields: Any) -> str:
    """The signature of these fields, without those that are None; `ignored` is the number of masked positions."""
    fields |= {"tokenloss": __version__, "mask": "yes" if ignored else None}
    fields["ids"] = None if ids is None else f"{ids % 2**_BITS >> 32:08x}"
    words = {name: str(fields[name]).replace(", ", "+") for name in _FIELDS if fields.get(name) is not None}
    return "|".join(f"{name}:{printable(re.sub('[|`]', '_', word))}" for name, word in words.items())


def joined_signature(signatures: Iterable[str]) -> str:
    """One signature of several results, which has each value of a field; "no" where a result lacks the field."""
    return "|".join(f"{name}:{','.join(values)}" for name, values in _fields(signatures).items())


def differing_fields(signatures: Iterable[str]) -> list[str]:
    """Names of the fields by which signatures differ.

    A result without class ids, as of responses, may be of the same ones. Masks may mark padding alone: they are no
    difference where the class ids are the same.
    """
    fields = _fields(signatures)
    ids = {*fields.get("ids", ["no"])}
    differ = [name for name, values in fields.items() if len({*values} - {"no"} if name == "ids" else values) > 1]
    return [name for name in differ if name != "mask" or len(ids) > 1 or ids == {"no"}]


def _fields(signatures: Iterable[str]) -> dict[str, list[str]]:
    """The distinct values of each field."""
    each = [dict(field.partition(":")[::2] for field in signature.split("|")) for signature in signatures]
    names = (name for name in _FIELDS if any(name in fields for fields in each))
    return {name: [*dict.fromkeys(fields.get(name, "no") for fields in each)] for name in names}
