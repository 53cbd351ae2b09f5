"""How a server rounded the log-probabilities it returned, judging by their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tokenloss._core.types import Array

_MOST_DECIMALS = 7  # with more, the number of decimals is less informative than "float32"
_FLOAT32_ERROR = 1e-5  # of log-probabilities that were computed in float32, by sums over all classes
_DIGITS = 9  # with which every float32 can be written


class Rounding(NamedTuple):
    """The rounding shared by all numbers so far. Roundings of parts add up to that of the whole in any order."""

    total: int = 0  # of numbers that are finite and not 0
    decimals: int = 0  # of the number that has most; one more than `_MOST_DECIMALS` means any larger number
    is_short: bool = True  # no number has more than `_DIGITS` digits
    is_float32: bool = True
    is_bfloat16: bool = True
    is_float16: bool = True

    @classmethod
    def of(cls, values: Array) -> Rounding:
        """The rounding of the numbers in an array of float64."""
        values = values[np.isfinite(values) & (values != 0)]
        decimals, left = 0, values
        while left.size and decimals <= _MOST_DECIMALS:
            scale = 10.0**decimals
            left = left[np.rint(left * scale) / scale != left]
            decimals += bool(left.size)
        with np.errstate(over="ignore", under="ignore"):
            single, half = values.astype(np.float32), values.astype(np.float16)
        short = single.view(np.uint32) & 0xFFFF == 0
        return cls(
            len(values), decimals, _are_short(values), bool((single == values).all()),
            bool((short & (single == values)).all()), bool((half == values).all()),
        )  # fmt: skip

    def __add__(self, other: Any) -> Rounding:
        """The rounding of the numbers of both."""
        both = [one and another for one, another in zip(self[2:], other[2:], strict=True)]
        return Rounding(self.total + other.total, max(self.decimals, other.decimals), *both)

    @property
    def error(self) -> float:
        """The largest error of log-probabilities with this rounding, at most 0.01."""
        if self.total and self.decimals <= _MOST_DECIMALS:
            return max(_FLOAT32_ERROR, min(0.01, 0.5 * 10.0**-self.decimals))
        return 0.01 if self.total and (self.is_bfloat16 or self.is_float16) else _FLOAT32_ERROR

    def half_steps(self, values: Array) -> Array:
        """The largest rounding error of each number, from its decimals or else its dtype."""
        if self.total and self.decimals <= _MOST_DECIMALS:
            return np.full(values.shape, 0.5 * 10.0**-self.decimals)
        bits = 8 if self.is_bfloat16 else 11 if self.is_float16 else 24 if self.is_float32 else 53
        steps: Array = np.ldexp(0.5, np.frexp(values)[1] - bits)
        return steps

    def __str__(self) -> str:
        """The coarsest rounding that fits, in words; empty without numbers."""
        if not self.total:
            return ""
        if self.decimals <= _MOST_DECIMALS:
            return f"{self.decimals} decimal" + "s" * (self.decimals != 1)
        for is_so, words in (
            (self.is_bfloat16, "bfloat16"), (self.is_float16, "float16"), (self.is_float32, "float32"),
            (self.is_short, f"{_DIGITS} digits"),
        ):  # fmt: skip
            if is_so:
                return words
        return "float64"


def _are_short(values: Array) -> bool:
    """Whether no number has more than `_DIGITS` digits."""
    magnitude = np.floor(np.log10(abs(values)))
    scale = 10.0 ** np.clip(_DIGITS - 1 - magnitude, 0, 22)  # up to 1e22, powers of ten are exact in float64
    return bool((np.rint(values * scale) / scale == values).all())
