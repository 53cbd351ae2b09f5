"""Gates: limits of figures, each with a verdict from the interval of its figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenloss._core.errors import named, raise_error
from tokenloss._core.result import Result, Shown, Table, columns_of
from tokenloss._core.text import count_of
from tokenloss._core.validation import check_number
from tokenloss._statistics.ratio import guess_note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._core.types import Array
    from tokenloss._statistics.estimates import Reach

HOLDS, FAILS, CANNOT_TELL = "holds", "fails", "cannot tell"


class Verdict(NamedTuple):
    """What the interval of a figure says of a gate.

    Attributes
    ----------
    name : str
        The model; "" of a result that has no name.
    gate : str
        The gate, as the argument is called: "max_kl", "min_same_top" and so on; "max_kl_quantile 0.99" of a quantile.
    limit, figure : float
        The limit, and the figure that should not lie beyond it.
    interval : tuple of float
        Both ends of the interval of the figure; nan if it is unknown, or not needed because the model equals its base.
    verdict : str
        "holds" if the whole interval does, "fails" if it lies beyond the limit or if the figure is nan or infinite,
        else "cannot tell"; also "cannot tell" without any token, or if a warning or a diagnosis shows that the figure
        is meaningless.
    n_more : int or None
        About how many more sequences (or tokens, where errors take these as independent) would tell, if the figure
        stays as it is; None where there is a verdict, and where no number would.
    note : str
        The same in words, and what a reader of the verdict must know.

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
        """Columns of a table that has a row for each gate of each model.

        Returns
        -------
        dict of 1-D arrays
            By name, as the attributes of `Verdict`; "low" and "high" are the ends of the interval.
        """
        rows = [one._asdict() | {"low": one.interval[0], "high": one.interval[1]} for one in self.gates]
        return columns_of(rows)

    def _of(self, name: str) -> dict[str, Any]:
        """What JSON says of the gates of one model: "verdict", "confidence" and "gates"."""
        own = [one for one in self.gates if one.name == name]
        gates = [{key: value for key, value in one._asdict().items() if key != "name"} for one in own]
        return {"verdict": _worst(own), "confidence": self.confidence, "gates": gates}

    def _columns_of(self, names: Sequence[str]) -> dict[str, Array]:
        """Columns for a table that has a row for each of these models: the verdict, and figures of each gate."""
        rows: list[dict[str, Any]] = []
        for name in names:
            own = [one for one in self.gates if one.name == name]
            rows.append({"verdict": _worst(own)} if own else {})
            for one in own:
                gate = one.gate.replace(" ", "_")
                low, high = one.interval
                cells = {"limit": one.limit, "figure": one.figure, "low": low, "high": high, "verdict": one.verdict}
                rows[-1] |= {f"{gate}_{key}": cell for key, cell in cells.items()}
        return columns_of(rows)

    def _main(self) -> dict[str, str]:
        return {"verdict": repr(self.verdict), "confidence": f"{self.confidence:g}"}

    def _figures(self) -> dict[str, Any]:
        gates = [one._asdict() for one in self.gates]
        return {"verdict": self.verdict, "confidence": self.confidence, "gates": gates}

    def _shown(self) -> Shown:
        return Shown("gates", self.verdict, [self._table()._replace(title="")])

    def _table(self) -> Table:
        """The table that the command prints below the figures."""
        several = len({one.name for one in self.gates}) > 1
        heads = ("model", "gate", "limit", "figure", f"{100 * self.confidence:g} % interval", "verdict", "note")
        rows = [(one.name, *_cells(one)) for one in self.gates]
        return Table([row[not several :] for row in rows], heads[not several :], "Gates")


Verdicts.__module__ = "tokenloss.results"


def joined_verdicts(verdicts: Mapping[str, Verdicts]) -> Verdicts:
    """The verdicts of several models, by the name of each."""
    if not verdicts:
        raise_error("empty", name="the list of models", fits="of one at least, to be checked")
    gates = [gate._replace(name=name) for name, one in verdicts.items() for gate in one.gates]
    return Verdicts(gates, next(iter(verdicts.values())).confidence)


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


def checked_limits(**given: Any) -> dict[str, tuple[float | None, float]]:
    """The limit of each gate that is given, by its name, after the fraction of a quantile, which others lack."""
    limits: dict[str, tuple[float | None, float]] = {}
    for name, value in given.items():
        if value is None:
            continue
        if not name.endswith("_quantile"):
            limits[name] = None, _checked_limit(name, value)
            continue
        if not isinstance(value, Mapping):
            fits = "a mapping of fractions of the tokens to limits"
            raise_error("type", name=name, got=value, fits=fits)
        for fraction, limit in value.items():
            fits = "a number between 0 and 1 with at most 6 decimals; the largest divergence has no interval"
            share = check_number(f"a fraction of {named(name)}", fraction, fits, most=1.0, positive=True)
            if share == 1 or share != round(share, 6):
                raise_error("option", name=f"a fraction of {named(name)}", got=fraction, fits=fits)
            limits[f"{name} {share:g}"] = share, _checked_limit(name, limit)
    if not limits:
        raise_error("empty", name="the list of gates", fits=f"one or more of {', '.join(given)}")
    return limits


def _checked_limit(name: str, value: Any) -> float:
    """A limit: a finite number of at least 0, and of a fraction at most 1."""
    if name.startswith("min_"):
        return check_number(name, value, "a number from 0 to 1", most=1.0)
    return check_number(name, value, "a finite number of at least 0")


def checked_tail(confidence: Any) -> float:
    """The probability beyond each end of an interval of this confidence."""
    fits = "a number between 0 and 1"
    tail = round((1 - check_number("confidence", confidence, fits, most=1.0)) / 2, 15)  # of 0.95 exactly 0.025
    if not 0 < tail < 0.5:
        raise_error("option", name="confidence", got=confidence, fits=fits)
    return tail


# -- verdicts --------------------------------------------------------------------------------------------------------


def verdict_on(
    gate: str, limit: float, reach: Reach, count: int, unit: str, *, notes: Sequence[str] = (),
    is_lower_bound: bool = False, void: str = "",
) -> Verdict:  # fmt: skip
    """The verdict on a gate from `count` texts or tokens; `void` is why its metric is meaningless."""
    figure, low, high, needed = reach
    is_max = gate.startswith("max_")
    is_beyond, is_within = (low > limit, high <= limit) if is_max else (high < limit, low >= limit)
    verdict, n_more, words = CANNOT_TELL, None, [*notes]
    if not count:
        words.insert(0, "no token has this figure")
    elif void and not math.isnan(figure):
        words.insert(0, f"this value cannot be trusted: {void}")
    elif not math.isfinite(figure):
        verdict = FAILS
        words.insert(0, "the figure is not finite")
    elif is_beyond:
        verdict = FAILS
    elif is_within and not is_lower_bound:
        verdict = HOLDS
    elif math.isnan(low):
        words.insert(0, f"no interval from {count_of(count, unit)}")
    elif is_lower_bound and figure <= limit:
        pass
    elif math.isfinite(needed):
        n_more = max(1, _rounded(needed - count))
        words.insert(0, f"about {count_of(n_more, f'more {unit}')} would tell")
    elif figure == limit:
        words.insert(0, "no number of texts would tell: the figure is the limit")
    if is_lower_bound:
        words.append("a lower bound of the divergence: it can fail a gate, and hold none")
    return Verdict("", gate, limit, figure, (low, high), verdict, n_more, "; ".join(words))


def _rounded(number: float) -> int:
    """A number of texts with two digits, rounded up, as more would feign that it is exact."""
    unit = 10 ** max(0, math.floor(math.log10(max(number, 1))) - 1)
    return int(math.ceil(number / unit) * unit)


def independent_note(count: int, unit: str, factor: float) -> list[str]:
    """What the interval takes as independent, where that is worth a word: tokens, or very few sequences."""
    if unit == "token":
        return [f"{count_of(count, unit)}, taken as independent"]
    return [count_of(count, unit) + guess_note(factor)] if guess_note(factor) else []


def beside_noise(verdicts: Sequence[Verdict], noise: Sequence[Verdict]) -> list[Verdict]:
    """Verdicts that say where a second run of the base lies beyond the limit itself."""
    noted = []
    for one, twin in zip(verdicts, noise, strict=True):
        is_beyond = twin.figure > one.limit if one.gate.startswith("max_") else twin.figure < one.limit
        words = f"below the noise: a second run of the base has {twin.figure:.5g}"
        if one.verdict != HOLDS:
            words += ", so " + "perhaps " * (twin.verdict != FAILS) + "nobody can pass"
        noted.append(one._replace(note="; ".join(filter(None, (one.note, words)))) if is_beyond else one)
    return noted
