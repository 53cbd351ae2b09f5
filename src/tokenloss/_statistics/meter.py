"""Exact mean loss, its standard error, and the perplexity."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core.errors import raise_error
from tokenloss._core.estimate import Errors, Estimate
from tokenloss._core.exact import ExactMoments, exp, integer_of, integer_text
from tokenloss._core.result import Result, Shown, formatted, in_files, nonzero
from tokenloss._core.signature import signature_of
from tokenloss._core.text import count_of
from tokenloss._core.validation import check_integer, check_mask
from tokenloss._scores.token_scores import TokenScores
from tokenloss._statistics.estimates import Measure
from tokenloss._statistics.ratio import ExactRatio, guess_note, interval_above_0
from tokenloss._statistics.sequences import SequenceLosses, known_tokens

if TYPE_CHECKING:
    from tokenloss._core.types import ArrayLike, Float64Array, IntArray

# the errors that files have of each estimate, if not only the standard error
_ERRORS_IN_FILES = {
    "perplexity": ("interval",), "bits_per_token": (), "bits_per_byte": ("stderr", "interval"),
    "word_perplexity": ("interval",),
}  # fmt: skip


class LossMetrics(Result):
    """Statistics of the losses in a meter, for `LossMeter` and for results that contain one."""

    __slots__ = ()

    @property
    @abstractmethod
    def _meter(self) -> LossMeter:
        """The meter."""

    @property
    def count(self) -> int:
        """The number of tokens."""
        return self._meter._tokens.count

    @property
    def n_sequences(self) -> int:
        """The number of sequences that contain at least one token."""
        return self._meter._sequences.count

    @property
    def n_bytes(self) -> int:
        """The number of bytes of the tokens' text, if given; else 0."""
        return self._meter.n_bytes

    @property
    def n_words(self) -> int:
        """The number of words of the tokens' text, if given; else 0."""
        return self._meter.n_words

    @property
    def is_clustered(self) -> bool:
        """Whether errors are clustered by sequence: with sequences, unless all tokens are in a single one."""
        return self._meter._measure().unit == "sequences"

    @property
    def total(self) -> float:
        """The sum of the losses in nats, or of weight times loss, rounded once."""
        return self._meter._tokens.numerators.sum

    @property
    def loss(self) -> Estimate:
        """The mean loss in nats per token, or the weighted mean if there are weights; nan without tokens.

        Its standard error is clustered by sequence if `is_clustered`, else tokens are treated as independent. Its
        interval is symmetric on a log scale, since losses are skewed: ``loss * exp(±interval_factor * stderr / loss)``.
        """
        meter = self._meter
        tokens, groups, sequences = meter._tokens, meter._groups, meter._sequences
        return Estimate(tokens.ratio, lambda: _measure(tokens, groups, sequences))

    @property
    def interval_factor(self) -> float:
        """The half-width of 95 % confidence intervals, in standard errors.

        For G sequences of equal length, the factor is the quantile of Student's t with G - 1 degrees of freedom: 12.7
        for two, 4.3 for three, 1.96 for very many. If lengths differ, it is larger, because long sequences count for
        more; it is exact for normal sequence means with equal variances. It is nan for fewer than two tokens.
        """
        return self._meter._measure().independent.interval_factor

    @property
    def signature(self) -> str:
        """A line to publish with the values, which records how they were computed, as far as that is known."""
        return self._meter._signature()

    @property
    def sequence_loss(self) -> Estimate:
        """The mean of the sequences' mean losses in nats, each sequence counted once; nan without sequences."""
        sequences = self._meter._sequences
        return Measure(sequences.mean, ExactRatio.from_mean(sequences), "sequences").estimate()

    @property
    def perplexity(self) -> Estimate:
        """``exp(loss)``; inf if it is too large for a float. Its interval is the exponential of the loss's interval."""
        return self._meter._measure()._replace(method="exp").estimate()

    @property
    def bits_per_token(self) -> Estimate:
        """The mean loss in bits."""
        return in_bits(self.loss)

    @property
    def bits_per_byte(self) -> Estimate:
        """The sum of the losses in bits, divided by the bytes of their text; nan if any of these are unknown."""
        return in_bits(self._meter._loss_per("bytes"))

    @property
    def word_perplexity(self) -> Estimate:
        """``exp(total / n_words)``; nan if the number of words is unknown for any of the text."""
        rate = self._meter._loss_per("words")

        def errors() -> Errors:
            low, high = rate.interval
            return Errors(exp(rate) * rate.stderr, (exp(low), exp(high)), rate.unit)

        return Estimate(exp(rate), errors)

    def _main_of(self, counts: dict[str, int], others: dict[str, str]) -> dict[str, str]:
        """The main metrics, with those per byte and per word if the length of the text is known."""
        main = {"loss": formatted(self.loss, self.loss.stderr), "count": str(self.count)}
        main |= nonzero(**counts, n_sequences=self.n_sequences) | {"perplexity": formatted(self.perplexity)} | others
        rates = {"bits_per_byte": self.bits_per_byte, "word_perplexity": self.word_perplexity}
        return main | {name: formatted(value) for name, value in rates.items() if not math.isnan(value)}


class LossMeter(LossMetrics):
    """Adds up the losses of tokens exactly, over any number of calls, threads, files or machines.

    Meters of parts can be merged in any order, with bitwise identical results. A meter is a handful of Python integers:
    it pickles, and two meters of the same losses are equal. Only one thread may change a meter at a time: give each
    thread its own, and add them up.

    Attributes
    ----------
    n_bytes, n_words : int
        Number of bytes and words of the tokens' text, if given, otherwise 0.

    Notes
    -----
    Tokens of one document are alike, so a standard error that treats them as independent is often several times too
    small. Given the result of `sequence_losses`, errors are clustered by sequence (Miller, arXiv:2411.00640): with S
    the sum of the losses of a sequence of n tokens, and G sequences, the error of the mean ``mu`` is
    ``sqrt(G / (G - 1) * sum((S - mu * n)**2)) / sum(n)``. A token outside of any sequence is a sequence of one, which
    gives the error of independent tokens. For bits per byte and perplexity per word, n is the length of the sequence's
    text; if only the length of all texts together is known, it is assumed to be proportional to the tokens. Both
    metrics are nan if only some tokens were added with the length of their text.

    A meter keeps no tokens, so it has no `columns()`: ``pandas.DataFrame([meter.to_dict() for meter in meters])`` has a
    row for each meter.

    On a cluster, use any tool that calls functions on other machines. Here ``score_file(path)`` returns the meter of a
    file (scored with ``workers=1`` where every CPU runs its own call)::

        meter = sum(ray.get([ray.remote(score_file).remote(path) for path in paths]), LossMeter())  # Ray
        meter = spark.sparkContext.parallelize(paths).map(score_file).reduce(operator.add)  # Spark
        meter = comm.allreduce(sum(map(score_file, paths[comm.rank :: comm.size]), LossMeter()))  # MPI, by mpi4py

    Examples
    --------
    >>> from tokenloss import LossMeter
    >>> meter = LossMeter()
    >>> meter.update([0.36, 0.02, 0.22], n_bytes=12)
    >>> meter
    LossMeter(loss=0.200000 ± 0.0987, count=3, perplexity=1.22140, bits_per_byte=0.0721348)

    Two documents, of which the second is harder throughout:

    >>> from tokenloss import sequence_losses
    >>> meter = LossMeter()
    >>> meter.update(sequence_losses([[1.0, 1.2, 0.9, 1.1], [3.0, 3.1, 2.9, 3.2]]))
    >>> meter
    LossMeter(loss=2.05000 ± 1.00, count=8, n_sequences=2, perplexity=7.76790)
    """

    __module__ = "tokenloss"

    __slots__ = (
        "_by_bytes", "_by_words", "_groups", "_sequences", "_tokens", "_with_bytes", "_with_words", "n_bytes",
        "n_words",
    )  # fmt: skip

    def __init__(self) -> None:
        self._tokens = ExactRatio()  # of each token, its loss and its weight
        self._groups = ExactRatio()  # of each sequence, its loss and its tokens; and of each token that is in none
        self._by_bytes = ExactRatio()  # of each sequence whose bytes are known, its loss and these
        self._by_words = ExactRatio()  # likewise, of words
        self._sequences = ExactMoments()  # the mean loss of each sequence
        self._with_bytes = 0  # of the groups, the number whose bytes are known, of each or of several together
        self._with_words = 0  # likewise, of words
        self.n_bytes: int = 0
        self.n_words: int = 0

    @property
    def _meter(self) -> LossMeter:
        return self

    def update(
        self,
        nll: ArrayLike | TokenScores | SequenceLosses,
        where: ArrayLike | None = None,
        n_bytes: int = 0,
        n_words: int = 0,
        *,
        sample_weight: ArrayLike | None = None,
    ) -> None:
        """Add the losses of some tokens, or of some sequences.

        Parameters
        ----------
        nll : TokenScores, SequenceLosses or array
            The result of `sequence_losses`, for errors that are clustered by sequence: pass whole sequences, since a
            sequence in two calls counts as two. Or the result of `token_scores`, from which only the included tokens
            are added; or losses in nats, of any shape, as loss functions return them with ``reduction="none"``: these
            tokens are assumed independent. Losses below -0.001, which rounding does not explain, are refused:
            log-probabilities must be negated.
        n_bytes, n_words : int, default 0
            Length of the text of these tokens. To give the length of the text of all tokens at once, pass it in a call
            without tokens; no other call may then give a length.
        where, sample_weight
            As in `sequence_losses`. The losses in `nll` must not already be weighted.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid, or is already part of the `SequenceLosses`; the meter is then unchanged.
        """
        n_bytes, n_words = _check_length("n_bytes", n_bytes), _check_length("n_words", n_words)
        before = self._groups.count
        if isinstance(nll, SequenceLosses):
            given = {"where": where, "sample_weight": sample_weight}
            given |= {name: size or None for name, size in (("n_bytes", n_bytes), ("n_words", n_words))
                      if getattr(nll, name) is not None}  # fmt: skip
            for name, value in given.items():
                if value is not None:
                    raise_error("option", name=name, got=value, fits="given to sequence_losses, if at all")
            self._add_sequences(nll)
        else:
            add_tokens(self, _token_sums(nll, where, sample_weight))
        self.n_bytes += n_bytes
        self.n_words += n_words
        new = self._groups.count - before
        self._with_bytes += new if n_bytes else 0
        self._with_words += new if n_words else 0

    def _add_sequences(self, sequences: SequenceLosses) -> None:
        """Add sequences, those without tokens left out."""
        columns = sequences.columns()
        if int(columns["count"].sum()) != sequences._tokens.count:
            raise_error("type", name="nll", got="SequenceLosses made by hand", fits="a result of sequence_losses")
        mask = columns["count"] > 0
        self._tokens += sequences._tokens
        self._groups += sequences._groups()
        self._sequences += ExactMoments.of(columns["loss"][mask])
        for name in ("n_bytes", "n_words"):
            if name in columns:
                add_lengths(self, name, columns["nll"][mask], columns[name][mask])

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
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def __add__(self, other: LossMeter) -> LossMeter:
        """Meter of the losses of both."""
        if not isinstance(other, LossMeter):
            return NotImplemented
        both = LossMeter.__new__(LossMeter)  # each of its fields is set here
        for name in self.__slots__:
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def __radd__(self, other: object) -> LossMeter:
        """The same meter, for the 0 that `sum` starts with."""
        return self + LossMeter() if type(other) is int and other == 0 else NotImplemented

    def __eq__(self, other: object) -> bool:
        """Return whether both have the same sums."""
        if not isinstance(other, LossMeter):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def _to_json(self) -> dict[str, Any]:
        """The exact state, as values for JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {
            name: integer_text(value) if isinstance(value, int) else value.to_json() for name, value in values.items()
        }

    @classmethod
    def _from_json(cls, state: dict[str, Any]) -> LossMeter:
        """Inverse of `_to_json`; ValueError for sums that no losses have."""
        if state.keys() != set(cls.__slots__):
            raise ValueError("the stored LossMeter is of another version of tokenloss")
        meter = cls()
        for name in cls.__slots__:
            empty = getattr(meter, name)
            setattr(meter, name, integer_of(state[name]) if isinstance(empty, int) else empty.from_json(state[name]))
        groups, sequences = meter._groups.count, meter._sequences.count
        known = (
            meter._by_bytes.count <= meter._with_bytes <= groups,
            meter._by_words.count <= meter._with_words <= groups,
        )
        if min(meter.n_bytes, meter.n_words) < 0 or not sequences <= groups <= meter.count or not all(known):
            raise ValueError("no losses have these sums")
        return meter

    def _measure(self) -> Measure:
        """The mean loss, over sequences or tokens."""
        return _measure(self._tokens, self._groups, self._sequences)

    def _signature(self, **fields: Any) -> str:
        """The signature with further fields."""
        weights = self._tokens.denominators
        are_ones = weights == ExactRatio.from_mean(self._tokens.numerators).denominators
        own: dict[str, Any] = {
            "unit": "sequence" if self.is_clustered else "token", "tokens": self.count,
            "sequences": self.n_sequences or None,
            "weights": None if are_ones else f"{self._tokens.effective_count:.6g}",
            "bytes": self.n_bytes or None, "words": self.n_words or None,
        }  # fmt: skip
        return signature_of(**own | fields)

    def _loss_per(self, unit: str) -> Estimate:
        """All losses divided by the bytes or words of their text; nan if known for only some of the tokens."""
        known, length = getattr(self, f"_with_{unit}"), getattr(self, f"n_{unit}")
        rate = math.nan if 0 < known < self._groups.count else self._tokens.numerators.sum_over(length)
        measure, by_text, tokens = self._measure(), self._by_text(unit), self._tokens

        def errors() -> Errors:
            if math.isnan(rate):
                return Errors(unit=measure.unit)
            stderr = measure.stderr * tokens.denominators.sum_over(length) if by_text is None else by_text.stderr
            factor = (by_text or measure.independent).interval_factor
            return Errors(stderr, interval_above_0(rate, stderr, factor), measure.unit)

        return Estimate(rate, errors)

    def _by_text(self, unit: str) -> ExactRatio | None:
        """Sums over the independent parts and the lengths of their texts; None if any length is unknown."""
        by_text: ExactRatio = getattr(self, f"_by_{unit}")
        knows_all = by_text.denominators.sum == getattr(self, f"n_{unit}")
        return by_text if knows_all and by_text.count == self._measure().independent.count > 1 else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle only the exact sums: a pickle outlives the modules of this version."""
        return LossMeter._from_json, (self._to_json(),)

    def _main(self) -> dict[str, str]:
        return self._main_of({}, {})

    def _facts(self) -> dict[str, Any]:
        properties = (name for name, value in vars(LossMetrics).items() if isinstance(value, property))
        facts = in_files({name: getattr(self, name) for name in properties if name != "_meter"}, _ERRORS_IN_FILES)
        return facts | {f"{unit}_are_by_sequence": self._by_text(unit) is not None for unit in ("bytes", "words")}

    def _shown(self) -> Shown:
        from tokenloss._statistics.tables import loss_table

        return Shown("losses", "", [loss_table(self, self._facts(), basis_of(self))], self.signature)


def add_tokens(meter: LossMeter, tokens: ExactRatio) -> None:
    """Add tokens that are in no sequence."""
    meter._tokens += tokens
    meter._groups += tokens


def add_lengths(meter: LossMeter, name: str, nll: Float64Array, lengths: IntArray) -> None:
    """Add the bytes or words of sequences whose losses were added before."""
    unit = name.removeprefix("n_")
    new = {f"_by_{unit}": ExactRatio.of(nll, lengths.astype(np.float64)), f"_with_{unit}": len(lengths)}
    for attribute, value in {**new, name: sum(lengths.tolist())}.items():
        setattr(meter, attribute, getattr(meter, attribute) + value)


def basis_of(meter: LossMeter) -> str:
    """Words for the units that errors treat as independent."""
    if not meter.is_clustered:
        basis = f"{count_of(meter.count, 'token')}, assumed independent"
    else:
        loose = meter._groups.count - meter.n_sequences
        basis = count_of(meter.n_sequences, "sequence")
        basis += f" and {count_of(loose, 'token')} outside of any" if loose else ""
    return basis + guess_note(meter.interval_factor)


def meter_to_json(meter: LossMeter) -> dict[str, Any]:
    """The exact state of a meter, as values for JSON."""
    return meter._to_json()


def meter_from_json(state: dict[str, Any]) -> LossMeter:
    """The meter of a state."""
    return LossMeter._from_json(state)


def _measure(tokens: ExactRatio, groups: ExactRatio, sequences: ExactMoments) -> Measure:
    """The mean loss, with errors over sequences if there are several independent parts, else over tokens."""
    if sequences.count > 0 and groups.count > 1:
        return Measure(tokens.ratio, groups, "sequences")
    return Measure(tokens.ratio, tokens, "tokens")


def in_bits(loss: Estimate) -> Estimate:
    """The loss in bits, with its errors."""

    def errors() -> Errors:
        low, high = loss.interval
        return Errors(loss.stderr / math.log(2), (low / math.log(2), high / math.log(2)), loss.unit)

    return Estimate(loss / math.log(2), errors)


def _check_length(name: str, value: Any) -> int:
    """The length of a text; several lengths are refused by an error that names where they belong."""
    instead = f"; give lengths of sequences to sequence_losses(..., {name}=...)" if hasattr(value, "__len__") else ""
    return check_integer(name, value, f"an integer >= 0{instead}", least=0)


def _token_sums(nll: ArrayLike | TokenScores, where: ArrayLike | None, sample_weight: ArrayLike | None) -> ExactRatio:
    """Sums over tokens that are treated as independent."""
    if sample_weight is None:
        if isinstance(nll, TokenScores):
            mask = nll.kept
            nll, where = nll.nll, mask if where is None else mask & check_mask(where, mask.shape)
        return ExactRatio.from_mean(ExactMoments.of(nll, where, are_losses=True))
    tokens = known_tokens(nll, where, sample_weight)
    losses, weights = (tokens[name][tokens["mask"]] for name in ("nll", "weight"))
    with np.errstate(over="ignore"):
        return ExactRatio.of(weights * losses, weights)
