"""Gates: limits on statistics, each with a verdict from the interval of its statistic."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypedDict

from tokenloss._core.errors import named, raise_error
from tokenloss._core.result import Result, Shown, Table, columns_of
from tokenloss._core.text import count_of
from tokenloss._core.validation import check_integer, check_number
from tokenloss._statistics.ratio import guess_note

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Unpack

    from tokenloss._core.types import Array
    from tokenloss._statistics.estimates import Measure, Reach

HOLDS, FAILS, CANNOT_TELL = "holds", "fails", "cannot tell"


class Verdict(NamedTuple):
    """The verdict on a gate, from the interval of its statistic.

    Attributes
    ----------
    name : str
        The model; "" for a result without a name.
    gate : str
        The gate, as the argument is called: "max_kl", "min_same_top" and so on; "max_kl_quantile 0.99" for a quantile.
    limit, figure : float
        The limit, and the value of the statistic that it limits.
    interval : tuple of float
        Both ends of its interval; nan if they are unknown, or not needed because the model equals its base.
    verdict : str
        "holds" if the whole interval is within the limit, "fails" if the whole interval is beyond it or if the value is
        nan or infinite, and otherwise "cannot tell"; also "cannot tell" without any token, or if a warning or a
        diagnosis shows that a finite value is meaningless.
    n_more : int or None
        About how many more sequences (or tokens, if errors treat them as independent) a verdict needs if the value
        stays the same; None if there is a verdict, or if no number is enough.
    note : str
        The same in words, and anything else that a reader of the verdict should know.

    Examples
    --------
    >>> from tokenloss import compare
    >>> comparison = compare([[2.0, 1.0], [0.0, 3.0]], [[2.0, 0.0], [0.0, 2.0]], None)
    >>> (verdict,) = comparison.check(max_kl=0.06).gates
    >>> verdict.verdict, verdict.n_more
    ('cannot tell', 520)
    """

    name: str
    gate: str
    limit: float
    figure: float
    interval: tuple[float, float]
    verdict: str
    n_more: int | None
    note: str


Verdict.__module__ = "tokenloss.results"


@dataclass(frozen=True, eq=False, repr=False)
class Verdicts(Result):
    """Result of `check`: the verdict of each gate, of one or several models.

    Attributes
    ----------
    gates : list of Verdict
        The verdicts of each model, in the order of the models.
    confidence : float
        The confidence of the intervals.

    Examples
    --------
    >>> from tokenloss import compare
    >>> comparison = compare([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [0, 1])
    >>> verdicts = comparison.check(max_kl=0.6, min_same_top=0.9)
    >>> verdicts
    Verdicts(verdict='cannot tell', confidence=0.95)
    >>> [(one.gate, one.verdict) for one in verdicts.gates]
    [('max_kl', 'holds'), ('min_same_top', 'cannot tell')]
    """

    gates: list[Verdict]
    confidence: float

    @property
    def verdict(self) -> str:
        """The verdict of all gates: "fails" if any fails, else "cannot tell" if any cannot tell, else "holds"."""
        return _worst(self.gates)

    def columns(self) -> dict[str, Array]:
        """Return the columns of a table that has a row for each gate of each model.

        Returns
        -------
        dict of 1-D arrays
            By name, as the attributes of `Verdict`; "low" and "high" are the ends of the interval.
        """
        rows = [one._asdict() | {"low": one.interval[0], "high": one.interval[1]} for one in self.gates]
        return columns_of(rows)

    def _main(self) -> dict[str, str]:
        return {"verdict": repr(self.verdict), "confidence": f"{self.confidence:g}"}

    def _facts(self) -> dict[str, Any]:
        gates = [one._asdict() for one in self.gates]
        return {"verdict": self.verdict, "confidence": self.confidence, "gates": gates}

    def _shown(self) -> Shown:
        return Shown("gates", self.verdict, [gate_table(self)._replace(title="")])


Verdicts.__module__ = "tokenloss.results"


def gates_in_json(verdicts: Verdicts, name: str) -> dict[str, Any]:
    """The gates of one model in JSON: "verdict", "confidence" and "gates"."""
    own = [one for one in verdicts.gates if one.name == name]
    gates = [{key: value for key, value in one._asdict().items() if key != "name"} for one in own]
    return {"verdict": _worst(own), "confidence": verdicts.confidence, "gates": gates}


def gate_columns(verdicts: Verdicts, names: Sequence[str]) -> dict[str, Array]:
    """Columns for a table that has a row for each of these models: the verdict, and the values of each gate."""
    rows: list[dict[str, Any]] = []
    for name in names:
        own = [one for one in verdicts.gates if one.name == name]
        rows.append({"verdict": _worst(own)} if own else {})
        for one in own:
            gate = one.gate.replace(" ", "_")
            low, high = one.interval
            cells = {"limit": one.limit, "figure": one.figure, "low": low, "high": high, "verdict": one.verdict}
            rows[-1] |= {f"{gate}_{key}": cell for key, cell in cells.items()}
    return columns_of(rows)


def gate_table(verdicts: Verdicts) -> Table:
    """The table that the command prints below the metrics."""
    several = len({one.name for one in verdicts.gates}) > 1
    heads = ("model", "gate", "limit", "value", f"{100 * verdicts.confidence:g} % interval", "verdict", "note")
    rows = [(one.name, *_cells(one)) for one in verdicts.gates]
    return Table([row[not several :] for row in rows], heads[not several :], "Gates")


def _worst(gates: Sequence[Verdict]) -> str:
    """The verdict of several gates together."""
    verdicts = {one.verdict for one in gates}
    return next((verdict for verdict in (FAILS, CANNOT_TELL) if verdict in verdicts), HOLDS)


def _cells(one: Verdict) -> tuple[str, ...]:
    """Cells of a gate, after the name of the model."""
    low, high = one.interval
    interval = "" if math.isnan(low) else f"{low:.5g} to {high:.5g}"
    return one.gate, f"{one.limit:g}", f"{one.figure:.5g}", interval, one.verdict, one.note


# -- arguments ---------------------------------------------------------------------------------------------------------


class Limits(TypedDict, total=False):
    """All gates; each result supports the ones in its `GATES`."""

    max_perplexity: float | None
    max_loss: float | None
    min_greedy_accuracy: float | None
    max_ece: float | None
    max_kl: float | None
    max_kl_quantile: Mapping[float, float] | None
    min_same_top: float | None
    max_perplexity_ratio: float | None
    max_decisive_flips: int | None
    max_abs_logprob: float | None
    max_k3: float | None
    min_ess: float | None


class Limit(NamedTuple):
    """A given limit: its gate, its value, and for a quantile the fraction of the tokens."""

    gate: str
    value: float
    fraction: float | None = None

    @property
    def name(self) -> str:
        """The name of the gate with the fraction."""
        return self.gate if self.fraction is None else f"{self.gate} {self.fraction:g}"


def checked_limits(gates: Iterable[str], given: Mapping[str, Any]) -> list[Limit]:
    """The limits that are given and not None, in the order of these gates."""
    limits: dict[str, Limit] = {}
    for name in gates:
        if (value := given.get(name)) is None:
            continue
        if not name.endswith("_quantile"):
            limits[name] = Limit(name, _checked_limit(name, value))
            continue
        if not isinstance(value, Mapping):
            fits = "a mapping of fractions of the tokens to limits"
            raise_error("type", name=name, got=value, fits=fits)
        for fraction, limit in value.items():
            fits = "a number between 0 and 1 with at most 6 decimals; the largest divergence has no interval"
            share = check_number(f"a fraction of {named(name)}", fraction, fits, most=1.0, positive=True)
            if share == 1 or share != round(share, 6):
                raise_error("option", name=f"a fraction of {named(name)}", got=fraction, fits=fits)
            one = Limit(name, _checked_limit(name, limit), share)
            limits[one.name] = one
    if not limits:
        raise_error("empty", name="the list of gates", fits=f"one or more of {', '.join(gates)}")
    return [*limits.values()]


def _checked_limit(name: str, value: Any) -> float:
    """A limit: a finite number >= 0, and for a fraction at most 1."""
    if name == "max_decisive_flips":
        return float(check_integer(name, value, "an integer >= 0", least=0))
    if name.startswith("min_"):
        return check_number(name, value, "a number from 0 to 1", most=1.0)
    return check_number(name, value, "a finite number >= 0")


def checked_tail(confidence: Any) -> float:
    """The probability beyond each end of an interval of this confidence."""
    fits = "a number between 0 and 1"
    tail = round((1 - check_number("confidence", confidence, fits, most=1.0)) / 2, 15)  # of 0.95 exactly 0.025
    if not 0 < tail < 0.5:
        raise_error("option", name="confidence", got=confidence, fits=fits)
    return tail


# -- verdicts --------------------------------------------------------------------------------------------------------


def verdict_on(
    gate: Limit, reach: Reach, measure: Measure, *, notes: Sequence[str] = (), is_lower_bound: bool = False,
    void: str = "",
) -> Verdict:  # fmt: skip
    """The verdict on a gate; `void` is why its statistic is meaningless."""
    limit, (value, low, high, needed) = gate.value, reach
    count, unit = measure.independent.count, measure.unit.removesuffix("s")
    is_max = gate.gate.startswith("max_")
    is_beyond, is_within = (low > limit, high <= limit) if is_max else (high < limit, low >= limit)
    verdict, n_more, words = CANNOT_TELL, None, [*notes]
    if not count:
        words.insert(0, "no token has this value")
    elif void and not math.isnan(value):
        words.insert(0, f"this value cannot be trusted: {void}")
    elif not math.isfinite(value):
        verdict = FAILS
        words.insert(0, "the value is not finite")
    elif is_beyond:
        verdict = FAILS
    elif is_within and not is_lower_bound:
        verdict = HOLDS
    elif math.isnan(low):
        words.insert(0, f"no interval from {count_of(count, unit)}")
    elif is_lower_bound and value <= limit:
        pass
    elif math.isfinite(needed):
        n_more = max(1, _rounded(needed - count))
        words.insert(0, f"about {count_of(n_more, f'more {unit}')} needed")
    elif value == limit:
        words.insert(0, "no number of texts would be enough: the value is the limit")
    if is_lower_bound:
        words.append("a lower bound on the divergence: it can fail a gate, but cannot hold one")
    return Verdict("", gate.name, limit, value, (low, high), verdict, n_more, "; ".join(words))


def _rounded(number: float) -> int:
    """A number of texts rounded up to two digits; more digits would suggest that it is exact."""
    unit = 10 ** max(0, math.floor(math.log10(max(number, 1))) - 1)
    return int(math.ceil(number / unit) * unit)


def independent_note(measure: Measure, tail: float) -> list[str]:
    """A note on the units that the interval treats as independent, for tokens and very few sequences; else ""."""
    if measure.unit == "tokens":
        return [f"{count_of(measure.independent.count, 'token')}, assumed independent"]
    note = guess_note(measure.independent.factor(tail))
    return [count_of(measure.independent.count, measure.unit.removesuffix("s")) + note] if note else []


def _beside_noise(verdicts: Sequence[Verdict], noise: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts, with a note on each limit that a second run of the base exceeds."""
    noted = []
    for one, twin in zip(verdicts, noise, strict=True):
        is_beyond = twin.figure > one.limit if one.gate.startswith("max_") else twin.figure < one.limit
        words = f"below the noise: a second run of the base has {twin.figure:.5g}"
        if one.verdict != HOLDS:
            words += ", so " + "perhaps " * (twin.verdict != FAILS) + "no model can pass"
        noted.append(one._replace(note="; ".join(filter(None, (one.note, words)))) if is_beyond else one)
    return noted


# -- results that have gates -------------------------------------------------------------------------------------------


class Gated(Result):
    """A result, or several of them by name, whose statistics can be checked against limits."""

    __slots__ = ()

    @abstractmethod
    def _results(self) -> Mapping[str, Any]:
        """The results to check, by name."""

    def check(
        self, *, confidence: float = 0.95, noise: GatedResult | None = None, **limits: Unpack[Limits]
    ) -> Verdicts:
        """Check whether statistics are within limits, for all texts of this kind and not only for these.

        A gate holds if the whole interval of its statistic is within the limit, and fails if the whole interval is
        beyond it; otherwise, the verdict is "cannot tell". A value that is nan or infinite fails. The verdict is also
        "cannot tell" without tokens, or if a warning or a diagnosis shows that a finite value is meaningless.

        Parameters
        ----------
        confidence : float, default 0.95
            The confidence of the two-sided intervals: if the limit is the true value, a gate is meant to hold with a
            probability of 2.5 %, and to fail with the same probability.
        noise : result of the same type, optional
            A second run of the base, compared with it in the same way: a note says which gates that run itself does not
            pass.
        **limits : float, or mapping of float to float
            Limits by the names of gates. `max_kl_quantile` takes limits by fraction of the tokens: ``{0.99: 0.3}``.

            - of an evaluation: `max_perplexity`, `max_loss` (in nats) and `min_greedy_accuracy`;
            - of a calibration, and of evaluations and comparisons with one: `max_ece`;
            - of a comparison: `max_kl` and `max_kl_quantile`, the largest mean KL divergence and its largest quantiles
              in nats; `min_same_top`; and `max_perplexity_ratio`, the largest ``perplexity / base_perplexity``;
            - of a comparison of scores, also `max_decisive_flips` and `max_abs_logprob`, as `Comparison` has them. They
              are counted in these texts, without an interval;
            - of log-probabilities of tokens: `max_k3` in nats, and `min_ess`, a fraction of the number of tokens.

        Returns
        -------
        Verdicts
            Its `verdict` is "holds", "fails" or "cannot tell", and `gates` has the verdict of each gate.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid, or if no gate is given, or a gate that the result does not have.

        Notes
        -----
        Intervals come from standard errors that are clustered by sequence. For a mean divergence or loss, which is
        skewed, and for a ratio, they are intervals of the logarithm; for a quantile, see `Comparison.kl_quantiles`. For
        a fraction, the interval is binomial, with the number of independent tokens that would have its standard error
        (Korn and Graubard, Survey Methodology 24, 1998), and its ends are at least ``(1 - 0.025 ** (1 / G)) / 2`` from
        0 and 1, which allows for a kind of text that does not occur in the G sequences. A model that equals its base at
        every token needs no interval. For responses, a lower bound on the divergence is known, which can make a gate
        fail, but never hold. If the mean ratio is significantly below 1, k3 is too small by the difference: a note says
        so, and the gate cannot hold unless the limit leaves room for it. If it is significantly above 1, the verdict is
        "cannot tell".

        Examples
        --------
        >>> import numpy as np
        >>> from tokenloss import compare
        >>> base = np.random.default_rng(0).normal(size=(40, 50, 8))  # 40 documents
        >>> comparison = compare(base, 0.9 * base, np.zeros((40, 50), int), segment_ids=np.arange(40)[:, None])
        >>> print(comparison.check(max_kl=0.01, max_kl_quantile={0.99: 0.01}, min_same_top=0.9).summary())
        gates  holds
        <BLANKLINE>
          gate                  limit      value           95 % interval  verdict  note
          max_kl                 0.01  0.0029001  0.0028399 to 0.0029616  holds
          max_kl_quantile 0.99   0.01  0.0077102  0.0073774 to 0.0083003  holds
          min_same_top            0.9          1            0.95595 to 1  holds
        """
        if not (results := self._results()):
            raise_error("empty", name="the list of models", fits="of at least one model")
        first = next(iter(results.values()))
        for name in limits or ("a gate",) * (not first.GATES):
            if name not in first.GATES:
                known = f"; gates that apply: {', '.join(map(named, first.GATES))}" * bool(first.GATES)
                raise_error("not for", name=name, fits=first._why_no_gate.format(margin=named("margin")) + known)
        given, tail = checked_limits(first.GATES, limits), checked_tail(confidence)
        other: Any = getattr(self, "noise", None) if noise is None else noise
        if not isinstance(other, type(first) | None):
            raise_error("type", name="noise", got=type(other).__name__, fits=f"another {type(first).__name__}, or None")
        verdicts: list[Verdict] = []
        for name, one in results.items():
            one = one if other is None else one._beside(other)
            own = [one._verdict(limit, tail)._replace(name=name) for limit in given]
            verdicts += own if other is None else _beside_noise(own, [other._verdict(limit, tail) for limit in given])
        return Verdicts(verdicts, float(confidence))


class GatedResult(Gated):
    """One result that has gates."""

    __slots__ = ()
    GATES: ClassVar[tuple[str, ...]] = ()
    _why_no_gate: ClassVar[str] = "does not apply to this result"  # the error's words about other gates

    def _results(self) -> Mapping[str, Any]:
        return {"": self}

    def _beside(self, noise: Any) -> Any:
        """The result as it is judged in comparison with a second run of the base."""
        return self

    @abstractmethod
    def _verdict(self, limit: Limit, tail: float) -> Verdict:
        """The verdict on a gate."""
