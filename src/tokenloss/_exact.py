"""Exact count, sum, mean and standard error of any numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tokenloss import _core
from tokenloss._iteration import iter_float64
from tokenloss._statistics import equivalent_lengths, ratio_quantile, ratio_tail
from tokenloss._validation import check_losses

if TYPE_CHECKING:
    from tokenloss._types import ArrayLike, Float64Array

_UNIT = 2**1074  # integers hold multiples of the smallest float64, 2**-1074, and of its square


class ExactMoments:
    """Count, sum and sum of squares of numbers, without rounding.

    Moments of parts, added in any order, have the same bits as those of the whole. No method changes an object:
    ``+`` makes a new one.
    """

    __slots__ = ("count", "finite", "special", "squares")

    def __init__(self, count: int = 0, finite: int = 0, special: float = 0.0, squares: int = 0) -> None:
        self.count = count
        self.finite = finite  # the sum of the finite numbers, in units of 2**-1074
        self.special = special  # the sum of the others: 0.0, an infinity or nan
        self.squares = squares  # the sum of the squares of the finite numbers, in units of 2**-2148

    @classmethod
    def of(cls, values: ArrayLike, where: ArrayLike | None = None, *, are_losses: bool = False) -> ExactMoments:
        """Moments of an array, or of the elements that `where` keeps; losses of a user, called nll, are checked."""
        count = finite = squares = 0
        special = 0.0
        for part in iter_float64("nll" if are_losses else "values", values, where, are_losses):
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
        """True if all sums are equal; nan equals nan."""
        return self._key() == other._key() if isinstance(other, ExactMoments) else NotImplemented

    def _key(self) -> tuple[object, ...]:
        return self.count, self.finite, repr(self.special), self.squares

    def is_possible(self) -> bool:
        """Whether there are numbers of these sums: a consistency check for sums that were read from a file."""
        variance_is_possible = self.count >= 0 and self.count * self.squares >= self.finite**2
        return variance_is_possible and not (self.special and math.isfinite(self.special))

    @property
    def sum(self) -> float:
        """The sum, rounded once."""
        if self.special != 0:  # inf, -inf or nan
            return self.special
        try:
            return self.finite / _UNIT  # integers divide with a single rounding
        except OverflowError:
            return math.inf if self.finite > 0 else -math.inf

    @property
    def mean(self) -> float:
        """The mean; nan without any number."""
        return self.sum_over(self.count)

    def sum_over(self, number: float) -> float:
        """The sum over some number, say of bytes; nan if that is 0."""
        if not number:
            return math.nan
        if self.special:  # nan, too
            return self.special
        try:
            if isinstance(number, int) and number > 2**1000:  # beyond a float
                return self.finite / (_UNIT * number)
            if math.isinf(self.sum):  # the quotient may be a float; it has the bits of a mean of the losses
                return self.finite / (_UNIT << 64) / number * 2.0**64
        except OverflowError:
            return self.sum
        return self.sum / number

    @property
    def stderr(self) -> float:
        """The standard error of the mean, from the sample's variance; nan for less than two numbers."""
        return ExactRatio.of_mean(self).stderr

    def to_json(self) -> dict[str, Any]:
        """The exact sums, as JSON can hold them: integers of any length are hexadecimal."""
        integers = {"count": self.count, "finite": self.finite, "squares": self.squares}
        return {name: hex(value) for name, value in integers.items()} | {"special": repr(self.special)}

    @classmethod
    def from_json(cls, state: Any) -> ExactMoments:
        """Inverse of `to_json`; ValueError for sums that no numbers have."""
        count, finite, squares = (int(state[name], 16) for name in ("count", "finite", "squares"))
        moments = cls(count, finite, float(state["special"]), squares)
        if not moments.is_possible():
            raise ValueError("no numbers have these sums")
        return moments


class ExactRatio:
    """Sums over pairs of numerator and denominator, such as the loss and the tokens of a sequence, without rounding.

    No method changes an object: ``+`` makes a new one.
    """

    __slots__ = ("cubes", "denominators", "fourths", "largest", "numerators", "products")

    def __init__(
        self, numerators: ExactMoments | None = None, denominators: ExactMoments | None = None, products: int = 0,
        cubes: int = 0, fourths: int = 0, largest: float = 0.0,
    ) -> None:  # fmt: skip
        self.numerators = numerators or ExactMoments()
        self.denominators = denominators or ExactMoments()
        self.products = products  # the sum of the products of the pairs, in units of 2**-2148
        self.cubes = cubes  # the sum of the third powers of the denominators, and of the fourth, in units of 2**-2148
        self.fourths = fourths
        self.largest = largest  # the largest denominator, or 0.0

    @classmethod
    def of(cls, numerators: Float64Array, denominators: Float64Array) -> ExactRatio:
        """Sums over the pairs of two arrays of one dimension."""
        products = _core.sum_of_products(numerators, denominators)
        return cls.of_sums(ExactMoments.of(numerators), ExactMoments.of(denominators), products, denominators)

    @classmethod
    def of_sums(
        cls, numerators: ExactMoments, sums: ExactMoments, products: int, denominators: Float64Array
    ) -> ExactRatio:
        """Sums over pairs whose numerators, denominators and products are summed up already."""
        squares = denominators * denominators
        cubes, fourths = _core.sum_of_products(squares, denominators), _core.sum_of_products(squares, squares)
        return cls(numerators, sums, products, cubes, fourths, float(denominators.max(initial=0.0)))

    @classmethod
    def of_mean(cls, numerators: ExactMoments) -> ExactRatio:
        """Sums over pairs whose denominators are all 1: the ratio is the mean of the numerators."""
        count = numerators.count
        ones = ExactMoments(count, count * _UNIT, 0.0, count * _UNIT**2)
        return cls(numerators, ones, numerators.finite * _UNIT, ones.squares, ones.squares, float(count > 0))

    @property
    def count(self) -> int:
        """The number of pairs."""
        return self.numerators.count

    def __add__(self, other: ExactRatio) -> ExactRatio:
        """Sums over the pairs of both."""
        return ExactRatio(
            self.numerators + other.numerators,
            self.denominators + other.denominators,
            self.products + other.products,
            self.cubes + other.cubes,
            self.fourths + other.fourths,
            max(self.largest, other.largest),
        )

    def __eq__(self, other: object) -> bool:
        """True if all sums are equal; nan equals nan."""
        return self._key() == other._key() if isinstance(other, ExactRatio) else NotImplemented

    def _key(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    @property
    def ratio(self) -> float:
        """The sum of the numerators over that of the denominators; nan over 0."""
        return self.numerators.sum_over(self.denominators.sum)

    @property
    def stderr(self) -> float:
        """The standard error of the ratio, pairs taken as independent; nan for fewer than two.

        It is ``sqrt(n / (n - 1) * sum((y - ratio * x)**2)) / sum(x)`` for n pairs (y, x): with sequences as pairs, the
        error that is clustered by sequence. With each x = 1 it is that of a mean, from the sample's variance.
        """
        n, y, x = self.count, self.numerators, self.denominators
        if n < 2 or y.special != 0 or x.special != 0 or x.finite == 0:
            return math.nan
        squares = x.finite**2 * y.squares - 2 * x.finite * y.finite * self.products + y.finite**2 * x.squares
        numerator, denominator = n * squares, (n - 1) * x.finite**4
        shift = max(0, 140 + denominator.bit_length() - numerator.bit_length()) // 2  # for a root of 64 bits or more
        root = math.isqrt((numerator << 2 * shift) // denominator)
        try:
            return root / (1 << shift)
        except OverflowError:
            return math.inf

    @property
    def interval_factor(self) -> float:
        """How many standard errors a 95 % interval of the ratio reaches to each side; nan for fewer than two pairs.

        With equal denominators it is the quantile of Student's t with n - 1 degrees of freedom.
        """
        return ratio_quantile(0.025, self._equivalent_lengths()) if self.count > 1 else math.nan

    def tail(self, t: float) -> float:
        """The probability of a ratio that is more than t standard errors above the true one."""
        return ratio_tail(t, self._equivalent_lengths())

    def _equivalent_lengths(self) -> tuple[tuple[float, float], ...]:
        """Lengths, and the number of each, that have the sums of the denominators."""
        numerator, denominator = self.largest.as_integer_ratio()
        largest = numerator * _UNIT // denominator
        if not largest or self.denominators.squares**2 > self.denominators.finite * self.cubes * _UNIT:
            return ((1.0, self.count),)  # all are 0, or so small that their squares are 0 in float64
        # sums of the powers of length / largest
        ones, squares = self.denominators.finite, self.denominators.squares
        cubes, fourths = self.cubes * _UNIT, self.fourths * _UNIT**2
        return equivalent_lengths(
            self.count,
            (self.count * largest - ones) / largest,
            (ones * largest - squares) / largest**2,
            (squares * largest - cubes) / largest**3,
            (cubes * largest - fourths) / largest**4,
        )

    def to_json(self) -> dict[str, Any]:
        """The exact sums, as JSON can hold them."""
        return {
            "numerators": self.numerators.to_json(),
            "denominators": self.denominators.to_json(),
            "largest": self.largest.hex(),
            **{name: hex(getattr(self, name)) for name in ("products", "cubes", "fourths")},
        }

    @classmethod
    def from_json(cls, state: Any) -> ExactRatio:
        """Inverse of `to_json`; ValueError for sums that no pairs have."""
        numerators, denominators = (ExactMoments.from_json(state[name]) for name in ("numerators", "denominators"))
        products, cubes, fourths = (int(state[name], 16) for name in ("products", "cubes", "fourths"))
        ratio = cls(numerators, denominators, products, cubes, fourths, float.fromhex(state["largest"]))
        if (
            numerators.count != denominators.count
            or products**2 > numerators.squares * denominators.squares
            or not 0 <= ratio.largest < math.inf
            or (cubes * _UNIT) ** 2 > denominators.squares * fourths * _UNIT**2
        ):
            raise ValueError("no pairs have these sums")
        return ratio


def exp(x: float) -> float:
    """Exponential; inf where that is beyond a float."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
