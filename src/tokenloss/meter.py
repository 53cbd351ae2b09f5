"""Exact mean loss, its standard error, and the perplexity."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tokenloss._errors import raise_error
from tokenloss._exact import ExactMoments, exp
from tokenloss._validation import check_integer, check_mask
from tokenloss.scores import TokenScores

if TYPE_CHECKING:
    from tokenloss._types import ArrayLike

_Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


class LossMeter:
    """Adds up the losses of tokens exactly, over any number of calls, threads, files or machines.

    Meters of parts of the same tokens, merged in any order, have the same bits. A meter is a handful of Python
    integers: it pickles, and two meters of the same losses are equal. Only one thread may change a meter at a time:
    give each thread its own, and add them up.

    Attributes
    ----------
    count, n_bytes, n_words : int
        Number of tokens, and of the bytes and words of their text if these were given.

    Notes
    -----
    On a cluster, anything that calls functions on other machines will do. Here ``score_file(path)`` returns the meter
    of a file (scored with ``workers=1`` where every CPU runs its own call)::

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

    __slots__ = ("_nll", "n_bytes", "n_words")

    def __init__(self) -> None:
        self._nll = ExactMoments()
        self.n_bytes: int = 0
        self.n_words: int = 0

    @property
    def count(self) -> int:
        """The number of tokens."""
        return self._nll.count

    def update(
        self, nll: ArrayLike | TokenScores, where: ArrayLike | None = None, n_bytes: int = 0, n_words: int = 0
    ) -> None:
        """Add the losses of some tokens.

        Parameters
        ----------
        nll : TokenScores or array
            Result of `token_scores`, of which only the included tokens are added; or losses in nats, of any shape, as
            the functions return them with ``reduction="none"``.
        where : array of bool, optional
            Mask of the tokens to include, broadcast over `nll`. An array of losses needs it if some tokens were ignored
            or masked: their losses are 0.0 and would count as perfect.
        n_bytes, n_words : int, default 0
            Length of the tokens' text.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid; the meter is then unchanged.
        """
        if isinstance(nll, TokenScores):
            kept = nll.kept
            nll, where = nll.nll, kept if where is None else kept & check_mask(where, kept.shape)
        new = ExactMoments.of(nll, where, name="nll")
        n_bytes = check_integer("n_bytes", n_bytes, "an integer of at least 0", least=0)
        n_words = check_integer("n_words", n_words, "an integer of at least 0", least=0)
        self._add(new, n_bytes, n_words)

    def _add(self, moments: ExactMoments, n_bytes: int, n_words: int) -> None:
        self._nll += moments
        self.n_bytes += n_bytes
        self.n_words += n_words

    def merge(self, other: LossMeter) -> None:
        """Add the losses of another meter.

        Parameters
        ----------
        other : LossMeter
            The meter to add; it does not change.

        Raises
        ------
        TypeError
            If it is not a `LossMeter`.
        """
        if not isinstance(other, LossMeter):
            raise_error("dtype", name="other", got=type(other).__name__, fits="a LossMeter")
        self._add(other._nll, other.n_bytes, other.n_words)

    def __add__(self, other: LossMeter) -> LossMeter:
        """Meter of the losses of both."""
        if not isinstance(other, LossMeter):
            return NotImplemented
        both = LossMeter()
        both.merge(self)
        both.merge(other)
        return both

    def __radd__(self, other: object) -> LossMeter:
        """The same meter, for the 0 that `sum` starts with."""
        return self + LossMeter() if type(other) is int and other == 0 else NotImplemented

    def __eq__(self, other: object) -> bool:
        """Whether both have the same sums."""
        if not isinstance(other, LossMeter):
            return NotImplemented
        return (self._nll, self.n_bytes, self.n_words) == (other._nll, other.n_bytes, other.n_words)

    def _to_json(self) -> dict[str, str]:
        """The exact state, as JSON can hold it: integers of any length are hexadecimal."""
        moments = self._nll
        integers = {
            "count": moments.count, "n_bytes": self.n_bytes, "n_words": self.n_words, "_finite": moments.finite,
            "_squares": moments.squares,
        }  # fmt: skip
        return {name: hex(value) for name, value in integers.items()} | {"_special": repr(moments.special)}

    @classmethod
    def _from_json(cls, state: dict[str, str]) -> LossMeter:
        """Inverse of `_to_json`; ValueError for sums that no losses have."""
        count, n_bytes, n_words, finite, squares = (
            int(state[name], 16) for name in ("count", "n_bytes", "n_words", "_finite", "_squares")
        )
        meter = cls()
        meter._add(ExactMoments(count, finite, float(state["_special"]), squares), n_bytes, n_words)
        if min(n_bytes, n_words) < 0 or not meter._nll.is_possible():
            raise ValueError("no losses have these sums")
        return meter

    @property
    def total(self) -> float:
        """The sum of the losses in nats, rounded once."""
        return self._nll.sum

    @property
    def loss(self) -> float:
        """The mean loss in nats per token; nan without tokens."""
        return self._nll.mean

    @property
    def stderr(self) -> float:
        """The standard error of the mean loss, from the sample's variance; nan for less than two tokens."""
        return self._nll.stderr

    @property
    def perplexity(self) -> float:
        """``exp(loss)``; inf where that is beyond a float."""
        return exp(self.loss)

    @property
    def perplexity_interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the perplexity, exp(loss -+ 1.96 stderr)."""
        return exp(self.loss - _Z95 * self.stderr), exp(self.loss + _Z95 * self.stderr)

    @property
    def bits_per_token(self) -> float:
        """The mean loss in bits."""
        return self.loss / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """All losses in bits over the bytes of their text; nan without bytes."""
        return self._nll.sum_over(self.n_bytes) / math.log(2)

    @property
    def word_perplexity(self) -> float:
        """``exp(losses / words)`` of the text; nan without words."""
        return exp(self._nll.sum_over(self.n_words))

    def __repr__(self) -> str:
        """Show the main figures."""
        return (
            f"LossMeter(count={self.count}, loss={self.loss:.4g}, stderr={self.stderr:.3g}, "
            f"perplexity={self.perplexity:.4g})"
        )
