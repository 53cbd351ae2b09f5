"""Signatures: a line that describes how values were computed, so that others can check whether theirs compare."""

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
    "kind", "dtype", "scale", "cap", "part", "definitions", "temperature", "cost", "classes", "words", "ids", "bytes",
    "text",
)  # fmt: skip
_MAY_LACK = "ids", "bytes", "words"  # fields that a result may lack and still be compared


class IdsHash:
    """A hash of class ids: a sum over the tokens, each mixed with the one before it in its sequence.

    Parts of a sequence are added in the order of the text; whole sequences and single tokens in any order.
    """

    __slots__ = ("_ends", "total")

    def __init__(self, total: int = 0, ends: Array | None = None) -> None:
        self.total = total
        rows = () if ends is None else ends.reshape(-1, 3).tolist()
        self._ends = {number: (first, last) for number, first, last in rows}  # ids, by the number of the sequence

    @classmethod
    def of(cls, ids: Array, numbers: Array | None) -> IdsHash:
        """The hash of ids in order, given the number of the sequence of each (negative outside of any sequence)."""
        before: Array = np.zeros(1, np.uint64)
        if numbers is None or not (numbers >= 0).any():
            return cls(_sum_of(ids, before))
        if (numbers[1:] < numbers[:-1]).any():
            order = np.argsort(numbers, kind="stable")
            ids, numbers = ids[order], numbers[order]
        goes_on = (numbers[1:] == numbers[:-1]) & (numbers[1:] >= 0)
        before = np.append(before, np.where(goes_on, _splitmix(ids[:-1]), before))
        first = np.flatnonzero(np.append(True, ~goes_on) & (numbers >= 0))
        last = np.append(first[1:], len(ids)) - 1
        ends = np.stack([column.astype(np.int64) for column in (numbers[first], ids[first], ids[last])], -1)
        return cls(_sum_of(ids, before), ends)

    @staticmethod
    def from_parts(parts: Iterable[Any]) -> IdsHash:
        """The hash of the class ids of results of shards, in the order of the text."""
        result = IdsHash()
        for part in parts:
            result.add(IdsHash(part.ids_sum, part.ids_ends))
        return result

    def add(self, other: IdsHash) -> None:
        """Add ids that come later."""
        self.total += other.total
        met = []
        for number, (first, last) in other._ends.items():
            if number in self._ends:
                met.append((self._ends[number][1], first))
                first = self._ends[number][0]
            self._ends[number] = first, last
        if met:
            before, ids = np.array(met, np.int64).T
            self.total += _sum_of(ids, _splitmix(before)) - _sum_of(ids, np.zeros(1, np.uint64))
        self.total %= 2**_BITS

    def ends(self, numbers: Iterable[int] | None = None) -> Array:
        """The numbers of these sequences, or of all, with their first and last ids, flat."""
        chosen = self._ends.keys() if numbers is None else [number for number in numbers if number in self._ends]
        return np.array([(number, *self._ends[number]) for number in chosen], np.int64).reshape(-1)

    def only(self, numbers: Iterable[int] | None) -> IdsHash:
        """The same hash, in which only these sequences may continue; all if None."""
        return IdsHash(self.total, self.ends(numbers))


def _splitmix(ids: Array) -> Array:
    """The hash of each id, by the steps of splitmix64: every bit of it changes about half of the bits."""
    with np.errstate(over="ignore"):
        mixed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result: Array = mixed ^ (mixed >> np.uint64(31))
    return result


def _sum_of(ids: Array, before: Array) -> int:
    """The sum of the hashes of ids, each mixed with the hash of the id before it, or 0."""
    return int(_splitmix(ids.astype(np.uint64) ^ before).sum(dtype=np.uint64))


def merged_parts(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The combined fields of two parts: numbers are added, words joined, and the second hash is added to the first."""
    both = {**one, **other}
    for name in one.keys() & other.keys():
        if isinstance(both[name], int):
            both[name] = one[name] + other[name]
        elif isinstance(both[name], str):
            both[name] = "+".join(sorted({*one[name].split("+"), *other[name].split("+")}))
    if "ids" in other:
        both["ids"] = one.get("ids") or IdsHash()
        both["ids"].add(other["ids"])
    return both


def either(word: str, base: str) -> str:
    """A word about a model and its base: written once if it is the same for both."""
    return word if word == base else f"{word}/{base}"


def head_fields(head: Mapping[str, Any] | None, base: Mapping[str, Any] | None = None) -> dict[str, str | None]:
    """The fields for how a head, and the base's head if given, scales and caps logits; None if it does not."""
    heads = [one or {} for one in (head, base or head)]
    scales = [f"{one.get('logit_scale', 1.0):.6g}" for one in heads]
    caps = [f"{one.get('softcap') or 0:.6g}" for one in heads]
    fields = {"scale": (either(*scales), "1"), "cap": (either(*caps), "0")}
    return {name: None if word == neutral else word for name, (word, neutral) in fields.items()}


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

    A result without class ids, such as one of responses, may have the same ones, and a result without bytes has no bits
    per byte. Masks may only mark padding, so they are no difference if the class ids are the same.
    """
    fields = _fields(signatures)
    ids = {*fields.get("ids", ["no"])}
    differ = [name for name, values in fields.items() if len({*values} - {"no"} if name in _MAY_LACK else values) > 1]
    return [name for name in differ if name != "mask" or len(ids) > 1 or ids == {"no"}]


def _fields(signatures: Iterable[str]) -> dict[str, list[str]]:
    """The distinct values of each field."""
    each = [dict(field.partition(":")[::2] for field in signature.split("|")) for signature in signatures]
    names = (name for name in _FIELDS if any(name in fields for fields in each))
    return {name: [*dict.fromkeys(fields.get(name, "no") for fields in each)] for name in names}
