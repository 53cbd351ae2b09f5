"""Exact counts, sums and means of any numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core import _core
from tokenloss._core.dtypes import as_array, bfloat16_to_float32, refuse_dtype
from tokenloss._core.validation import check_losses, check_mask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenloss._core.types import ArrayLike, Float64Array

_CHUNK = 1 << 16  # numbers that are converted at a time
UNIT = 2**1074  # integers hold multiples of the smallest float64, 2**-1074, and of its square
_MOST_SHIFTED = 1 << 13  # bits at the end of a stored integer; those of real sums are fewer


class ExactMoments:
    """Count, sum and sum of squares of numbers, without rounding.

    Adding the moments of parts, in any order, gives bitwise the moments of the whole. No method changes an object:
    ``+`` makes a new one.
    """

    __slots__ = ("count", "finite", "special", "squares")

    def __init__(self, count: int = 0, finite: int = 0, special: float = 0.0, squares: int = 0) -> None:
        self.count = count
        self.finite = finite  # the sum of the finite numbers, in units of 2**-1074
        self.special = special  # the sum of the others: 0.0, an infinity or nan
        self.squares = squares  # the sum of the squares of the finite numbers, in units of 2**-2148

    @classmethod
    def of(cls, values: ArrayLike, mask: ArrayLike | None = None, *, are_losses: bool = False) -> ExactMoments:
        """Moments of an array, or of the elements that the mask selects; losses from a user are checked."""
        count = finite = squares = 0
        special = 0.0
        for part in _iter_float64("nll" if are_losses else "values", values, mask, are_losses):
            if are_losses:
                check_losses(part)
            sums = _core.moments(part)
            finite += sums[0]
            special += sums[1]
            squares += sums[2]
            count += part.size
        return cls(count, finite, special, squares)

    def __add__(self, other: ExactMoments) -> ExactMoments:
        """Moments of the numbers of both."""
        return ExactMoments(
            self.count + other.count,
            self.finite + other.finite,
            self.special + other.special,
            self.squares + other.squares,
        )

    def __eq__(self, other: object) -> bool:
        """Return whether all sums are equal; nan equals nan."""
        return self._key() == other._key() if isinstance(other, ExactMoments) else NotImplemented

    def _key(self) -> tuple[object, ...]:
        return self.count, self.finite, repr(self.special), self.squares

    def is_possible(self) -> bool:
        """Whether any numbers can have these sums: a check for sums read from a file."""
        variance_is_possible = self.count >= 0 and self.count * self.squares >= self.finite**2
        return variance_is_possible and not (self.special and math.isfinite(self.special))

    @property
    def sum(self) -> float:
        """The sum, rounded once."""
        return self.special if self.special != 0 else quotient(self.finite, UNIT)

    @property
    def mean(self) -> float:
        """The mean, rounded once; nan if there are no numbers."""
        return self.sum_over(self.count)

    def sum_over(self, number: int) -> float:
        """The sum divided by a number, such as the bytes of a text, rounded once; nan if that is 0."""
        return self.special if number and self.special != 0 else quotient(self.finite, UNIT * number)

    def to_json(self) -> dict[str, Any]:
        """The exact sums as values for JSON: integers are text, as `integer_text` writes them."""
        integers = {"count": self.count, "finite": self.finite, "squares": self.squares}
        return {name: integer_text(value) for name, value in integers.items()} | {"special": repr(self.special)}

    @classmethod
    def from_json(cls, state: Any) -> ExactMoments:
        """Inverse of `to_json`; ValueError for sums that no numbers have."""
        count, finite, squares = (integer_of(state[name]) for name in ("count", "finite", "squares"))
        moments = cls(count, finite, float(state["special"]), squares)
        if not moments.is_possible():
            raise ValueError("no numbers have these sums")
        return moments


def _iter_float64(name: str, value: Any, mask: Any, are_losses: bool) -> Iterator[Float64Array]:
    """Yield the numbers of an array, or those that the mask selects, as contiguous float64."""
    array, code = as_array(name, value)
    if code is None or (are_losses and array.dtype == np.bool_):
        refuse_dtype(name, value, array.dtype)
    mask = None if mask is None else check_mask(mask, array.shape)

    def parts() -> Iterator[Float64Array]:
        operands = [array] if mask is None else [array, mask]
        flags: Any = ["external_loop", "buffered", "zerosize_ok"]
        part: Any
        for part in np.nditer(operands, flags, [["readonly", "aligned"]] * len(operands), buffersize=_CHUNK):
            numbers = part if mask is None else part[0][part[1]]
            if code == _core.DTYPES["bfloat16"]:
                numbers = bfloat16_to_float32(numbers)
            with np.errstate(invalid="ignore"):  # a signalling nan becomes a quiet one
                numbers = np.ascontiguousarray(numbers, np.float64)
            yield numbers

    is_plain = array.dtype == np.float64 and array.flags.aligned
    if mask is None and array.size <= _CHUNK and is_plain:  # the common case, for which nditer is slow
        return iter([np.ascontiguousarray(array, np.float64).reshape(-1)])
    return parts()


def quotient(numerator: int, denominator: int) -> float:
    """The quotient of two integers, rounded once; an infinity if too large for a float, nan if divided by 0."""
    try:
        return numerator / denominator  # Python rounds once, whatever the size of the integers
    except OverflowError:
        return math.inf if (numerator < 0) == (denominator < 0) else -math.inf
    except ZeroDivisionError:
        return math.nan


def integer_text(value: int) -> str:
    """An integer as ``0x3p10``, which is 3 * 2**10: sums of ordinary losses end in a thousand bits that are 0."""
    shift = max(0, (value & -value).bit_length() - 1)
    return f"{value >> shift:#x}p{shift}"


def integer_of(text: str) -> int:
    """Inverse of `integer_text`, which takes plain hexadecimal digits, too."""
    digits, _, exponent = text.partition("p")
    shift = int(exponent or 0)
    if not 0 <= shift <= _MOST_SHIFTED:
        raise ValueError("no sum ends in that many zero bits")
    return int(digits, 16) << shift


def exp(x: float) -> float:
    """Exponential; inf if it is too large for a float."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
