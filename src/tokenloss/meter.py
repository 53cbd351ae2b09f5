"""Exact sums of losses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tokenloss import _arrays, _core

if TYPE_CHECKING:
    from tokenloss._types import ArrayLike
    from tokenloss.scores import TokenScores

_UNIT = 2**1074
_INTEGERS = ("count", "n_bytes", "n_words", "_finite", "_squares")
_Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


class LossMeter:
    """Adds up the losses of tokens exactly, over any number of calls, threads, files or machines.

    Meters of parts of the same tokens, merged in any order, have the same bits. A meter is a handful of Python
    integers: it pickles, and two meters that saw the same losses are equal. Only one thread may change a meter at a
    time: give each thread its own, and add them up.

    Attributes
    ----------
    count, n_bytes, n_words : int
        Tokens seen, and the bytes and words of their text as far as they were told.

    Notes
    -----
    Whatever calls functions elsewhere will do for a cluster. With ``score_file(path)`` that returns the meter of a file
    (and scores it with ``workers=1`` where every CPU runs a call of its own)::

        meter = sum(ray.get([ray.remote(score_file).remote(path) for path in paths]), LossMeter())  # Ray
        meter = spark.sparkContext.parallelize(paths).map(score_file).reduce(operator.add)  # Spark
        meter = comm.allreduce(sum(map(score_file, paths[comm.rank :: comm.size]), LossMeter()))  # MPI, by mpi4py

    Examples
    --------
    >>> from tokenloss import LossMeter
    >>> meter = LossMeter()
    >>> meter.update([0.36, 0.02, 0.22], n_bytes=12)
    >>> meter
    LossMeter(count=3, loss=0.2, stderr=0.0987, perplexity=1.221)
    >>> round(meter.bits_per_byte, 4)
    0.0721
    """

    __slots__ = ("_finite", "_special", "_squares", "count", "n_bytes", "n_words")

    def __init__(self) -> None:
        self.count: int = 0
        self.n_bytes: int = 0
        self.n_words: int = 0
        self._finite = 0  # the sum of the finite losses, in units of 2**-1074
        self._special = 0.0  # the sum of the others
        self._squares = 0  # in units of 2**-2148

    def update(
        self, nll: ArrayLike | TokenScores, where: ArrayLike | None = None, n_bytes: int = 0, n_words: int = 0
    ) -> None:
        """Add the losses of some tokens.

        Parameters
        ----------
        nll : TokenScores or array
            What `token_scores` found, which knows the tokens that were ignored or masked and leaves them out; or losses
            in nats, of any shape, as the functions give them with ``reduction="none"``.
        where : array of bool, optional
            The tokens that count, broadcast over `nll`. Give it with an array of losses when some tokens were ignored
            or masked: their losses read 0.0 there, and would count as perfect.
        n_bytes, n_words : int, default 0
            The length of the tokens' text.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit; the meter is then as it was.
        """
        from tokenloss.scores import TokenScores  # which imports this module

        if isinstance(nll, TokenScores):
            kept = nll.kept
            nll, where = nll.nll, kept if where is None else kept & _arrays.mask(where, kept.shape)
        parts = _arrays.chunks("nll", nll, where)
        n_bytes = _arrays.integer("n_bytes", n_bytes, "an integer of at least 0", least=0)
        n_words = _arrays.integer("n_words", n_words, "an integer of at least 0", least=0)
        new = LossMeter()
        for losses in parts:
            finite, special, squares = _core.moments(losses)
            new._finite += finite
            new._special += special
            new._squares += squares
            new.count += losses.size
        new.n_bytes, new.n_words = n_bytes, n_words
        self.merge(new)

    def merge(self, other: LossMeter) -> None:
        """Add all that another meter has seen.

        Parameters
        ----------
        other : LossMeter
            It stays as it is.

        Raises
        ------
        TypeError
            If it is no `LossMeter`.
        """
        if not isinstance(other, LossMeter):
            _arrays.fail("dtype", name="other", got=type(other).__name__, fits="a LossMeter")
        self._finite += other._finite
        self._special += other._special
        self._squares += other._squares
        self.count += other.count
        self.n_bytes += other.n_bytes
        self.n_words += other.n_words

    def __add__(self, other: LossMeter) -> LossMeter:
        """Meter of what both have seen."""
        if not isinstance(other, LossMeter):
            return NotImplemented
        both = LossMeter()
        both.merge(self)
        both.merge(other)
        return both

    def __radd__(self, other: object) -> LossMeter:
        """Meter of the same, added to the 0 that `sum` starts with."""
        return self + LossMeter() if type(other) is int and other == 0 else NotImplemented

    def _state(self) -> tuple[object, ...]:
        return self.count, self.n_bytes, self.n_words, self._finite, repr(self._special), self._squares

    def _to_json(self) -> dict[str, str]:
        """All that it has seen, exactly, as JSON can hold it; integers of any length are hexadecimal."""
        return {name: hex(getattr(self, name)) for name in _INTEGERS} | {"_special": repr(self._special)}

    @classmethod
    def _from_json(cls, state: dict[str, str]) -> LossMeter:
        """The meter that `_to_json` told of."""
        meter = cls()
        for name in _INTEGERS:
            setattr(meter, name, int(state[name], 16))
        meter._special = float(state["_special"])
        if min(meter.count, meter.n_bytes, meter.n_words, meter.count * meter._squares - meter._finite**2) < 0:
            raise ValueError("no losses have these sums")
        if meter._special and math.isfinite(meter._special):
            raise ValueError("no losses have these sums")
        return meter

    def __eq__(self, other: object) -> bool:
        """Whether both have seen losses of the same sums."""
        return self._state() == other._state() if isinstance(other, LossMeter) else NotImplemented

    @property
    def total(self) -> float:
        """The sum of the losses in nats, rounded once."""
        if self._special != 0:  # inf, -inf or nan
            return self._special
        try:
            return self._finite / _UNIT  # integers divide with a single rounding
        except OverflowError:
            return math.inf if self._finite > 0 else -math.inf

    @property
    def loss(self) -> float:
        """The mean loss in nats per token; nan when none was seen."""
        return self._over(self.count)

    def _over(self, number: int) -> float:
        """The total over a number of tokens, bytes or words; nan of none."""
        if not number:
            return math.nan
        if self._special:  # nan, too
            return self._special
        try:
            if number > 2**1000:  # beyond a float
                return self._finite / (_UNIT * number)
            if math.isinf(self.total):  # the quotient may be a float; it has the bits of a mean of the losses
                return self._finite / (_UNIT << 64) / number * 2.0**64
        except OverflowError:
            return self.total
        return self.total / number

    @property
    def stderr(self) -> float:
        """The standard error of the mean loss, from the sample's variance; nan for less than two tokens."""
        if self.count < 2 or self._special != 0:
            return math.nan
        # sum((x - mean)**2) = (count * sum(x**2) - sum(x)**2) / count, in integers
        numerator = self.count * self._squares - self._finite**2
        denominator = self.count**2 * (self.count - 1)
        shift = max(0, 140 + denominator.bit_length() - numerator.bit_length()) // 2  # for a root of 64 bits or more
        root = math.isqrt((numerator << 2 * shift) // denominator)
        try:
            return root / (_UNIT << shift)
        except OverflowError:
            return math.inf

    @property
    def perplexity(self) -> float:
        """``exp(loss)``; inf where that is beyond a float."""
        return _exp(self.loss)

    @property
    def perplexity_interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the perplexity, exp(loss -+ 1.96 stderr)."""
        return _exp(self.loss - _Z95 * self.stderr), _exp(self.loss + _Z95 * self.stderr)

    @property
    def bits_per_token(self) -> float:
        """The mean loss in bits."""
        return self.loss / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """All losses in bits over the bytes of their text; nan when no bytes were told."""
        return self._over(self.n_bytes) / math.log(2)

    @property
    def word_perplexity(self) -> float:
        """``exp(losses / words)`` of the text; nan when no words were told."""
        return _exp(self._over(self.n_words))

    def __repr__(self) -> str:
        """Say what matters most."""
        return (
            f"LossMeter(count={self.count}, loss={self.loss:.4g}, stderr={self.stderr:.3g}, "
            f"perplexity={self.perplexity:.4g})"
        )


def _exp(x: float) -> float:
    """Exponential that overflows to inf."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
