"""Comparisons of several models with one base, by the name of the model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tokenloss._comparison.metrics import difference_table
from tokenloss._comparison.paired import same_file_note
from tokenloss._comparison.tables import nested, noise_multiples, noise_table
from tokenloss._comparison.tiers import power_table, tiers_of
from tokenloss._core.advice import ZERO_ADVICE, not_finite_notes
from tokenloss._core.errors import warn
from tokenloss._core.result import NamedResults, Shown, columns_of, rows_of
from tokenloss._core.validation import check_number
from tokenloss._statistics.gates import Gated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenloss._core.estimate import Estimate
    from tokenloss._core.types import Array, Float64Array

ComparisonT = TypeVar("ComparisonT", bound=Any)
NOISE = "noise"  # the name of a second run of the base


class Comparisons(Gated, NamedResults[ComparisonT]):
    """Result of `compare_files`, and of `ComparisonMeter.results`: a dict of comparisons with one base.

    Keys are the names of the candidates, in the order given. Values are all `Comparison`, all `ResponseComparison`, all
    `SampleComparison` or all `Mismatch`; a `Comparisons` of `DraftAcceptance` shows drafts side by side.

    Attributes
    ----------
    noise : Comparison, ResponseComparison or None
        A second run of the base compared with it, if `compare_files` was given one.
    detect : float or None
        A difference, if it is set: tables and JSON then have the number of texts or questions that it takes to find it.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import ComparisonMeter
    >>> meter = ComparisonMeter()
    >>> meter.update(np.zeros((2, 3)), {"q4": [[1, 0, 0], [0, 1, 0]], "q8": [[0.1, 0, 0], [0, 0.1, 0]]}, [0, 1])
    >>> result = meter.results()
    >>> [(one["name"], round(one["mean_kl"], 4)) for one in result.to_dict()["candidates"]]  # the nearest comes first
    [('q8', 0.0011), ('q4', 0.1195)]
    >>> result.columns()["perplexity"].round(4)
    array([2.8097, 1.7358])
    """

    __module__ = "tokenloss.results"
    noise: ComparisonT | None = None
    detect: float | None = None

    def _compared(self) -> dict[str, Any]:
        return {"candidates": dict(self), "noise": self.noise}

    def _ranked(self) -> list[tuple[str, Any]]:
        """Names and comparisons, the smallest divergence first."""
        return sorted(self.items(), key=lambda named: named[1]._rank())

    def _facts(self) -> dict[str, Any]:
        """The values shared by all, then "candidates": the values of each, the smallest divergence first."""
        facts = {name: one._facts() for name, one in self._ranked()}
        top: dict[str, Any] = {}
        for name, one in self.items():
            top |= {key: facts[name][key] for key in one._of_base if key in facts[name] and key not in top}
        each = [{"name": name, **{key: one[key] for key in one if key not in top}} for name, one in facts.items()]
        if any(hasattr(one, name) for one in self.values() for name in ("detectable", "metrics")):
            top["tiers"] = self.tiers()
        if self.detect is not None:
            top["detect"] = {"difference": self.detect, "needed": rows_of(self.power(self.detect))}
        if self.noise is None:
            return top | {"candidates": each}
        noise = {key: value for key, value in self.noise._facts().items() if key not in top}
        for row in each:
            row["noise_multiples"] = nested(noise_multiples(self[row["name"]], self.noise))
        return top | {"noise": noise, "candidates": each}

    def _identical(self) -> list[str]:
        """Messages about candidates whose values equal those of their base or of an earlier candidate."""
        messages = []
        for name, one in self.items():
            is_same_file = bool(same_file_note(one._about))
            can_tell = getattr(one, "_can_tell", True)
            if one._equals_base and (is_same_file or can_tell):
                messages.append(f"{name}: identical to base: the same " + ("values", "file")[is_same_file])
            elif can_tell and (twins := [other for other in [*self][: [*self].index(name)] if self[other] == one]):
                messages.append(f"{name}: identical to {twins[0]}: the same values")
        return messages

    def _shown(self) -> Shown:
        """The tables of a single candidate; for several, a table with a row for each."""
        shown: Shown = next(iter(self.values()))._shown_of(self) if self else Shown("0 models", "", [])
        shown = shown._replace(note="; ".join(filter(None, (shown.note, *self._identical()))))
        if self.noise is not None:
            shown = shown._replace(tables=[*shown.tables, noise_table(dict(self._ranked()), self.noise)])
        return shown

    def difference(self, a: str, b: str) -> dict[str, Array]:
        """Compute the metrics of `b` minus those of `a`, with paired errors, to see which of two candidates is better.

        Their own errors cannot show this, because they are mostly due to the texts, which both share. Here the
        differences of each token are averaged, which leaves only the difference between the two.

        Parameters
        ----------
        a, b : str
            Names of two candidates, whose comparisons are of scores (`Comparison`).

        Returns
        -------
        dict of 1-D arrays
            Columns of a table that has a row for each "figure": "kl" (the mean divergence from the base), "loss" (the
            mean loss; its difference is the logarithm of the ratio of the perplexities; nan without targets) and
            "same_top". They are: the values of "a" and "b", the "difference" b - a, its standard error "stderr",
            clustered as in the comparisons, the ends "low" and "high" of its 95 % confidence interval, and the smallest
            "detectable" difference, as in `power`.

        Raises
        ------
        KeyError
            If a candidate is unknown.
        TypeError
            If a comparison is of responses or of samples.
        ValueError
            If the comparisons are of different tokens.

        Examples
        --------
        >>> import numpy as np
        >>> from tokenloss import ComparisonMeter
        >>> meter = ComparisonMeter()
        >>> base, noise = np.random.default_rng(1).normal(size=(2, 500, 8))
        >>> meter.update(base, {"q8": base + 0.01 * noise, "q4": base + 0.1 * noise}, np.zeros(500, int))
        >>> table = meter.results().difference("q8", "q4")
        >>> for figure, difference, stderr in zip(table["figure"], table["difference"], table["stderr"]):
        ...     print(f"{figure:8} {difference:+.4f} ± {stderr:.4f}")
        kl       +0.0037 ± 0.0001
        loss     +0.0008 ± 0.0039
        same_top -0.0760 ± 0.0119
        """
        return difference_table(self[a], self[b])

    def power(self, difference: float | None = None) -> dict[str, Array]:
        """Compute the differences that these texts or questions could have detected, and how many a difference takes.

        Parameters
        ----------
        difference : float, optional
            A difference from the base, such as 0.02: in mean loss (nats), or in a metric of samples; for perplexities,
            in their logarithms.

        Returns
        -------
        dict of 1-D arrays
            Columns of a table that has a row for each candidate, and for samples for each metric: "name", "task",
            "metric" and "filter" (text, which may be empty); the "difference" from the base; the smallest "detectable"
            one, which a two-sided test at 5 % detects with a probability of 80 %; the number "n" of sequences, tokens
            or documents that errors treat as independent; and with `difference`, the number "needed", nan if unknown.

        Raises
        ------
        TypeError, ValueError
            If `difference` is not a positive number.

        Notes
        -----
        The detectable difference is the noncentrality of Student's t with n - 1 degrees of freedom, in standard errors:
        2.8 for many texts, 3.15 for ten. Other texts are assumed to vary as much as these. If all values are equal,
        there is no standard error, so nothing is known.

        Examples
        --------
        >>> import numpy as np
        >>> from tokenloss import ComparisonMeter
        >>> meter = ComparisonMeter()
        >>> base, noise = np.random.default_rng(1).normal(size=(2, 500, 8))
        >>> meter.update(base, {"q8": base + 0.01 * noise, "q4": base + 0.1 * noise}, np.zeros(500, int))
        >>> table = meter.results().power(0.002)
        >>> table["detectable"].round(4), table["needed"]
        (array([0.0012, 0.012 ]), array([  182, 18013]))
        """
        if difference is not None:
            difference = check_number("difference", difference, "a positive number", positive=True)
        return columns_of(power_table(self, difference))

    def tiers(self) -> list[dict[str, Any]]:
        """Find sets of candidates that do not differ, by paired differences of all pairs with Holm's correction at 5 %.

        Returns
        -------
        list of dict
            For each metric that several candidates have ("task", "metric" and "filter", text that may be empty: "loss"
            and "kl" of scores, "loss" of responses): "tiers", lists of names. A tier is a largest set of candidates of
            which no two differ; so two that do not differ share a tier, two that differ share none, and a candidate may
            be in several. The best candidate comes first, in each tier and among them.

        Notes
        -----
        With a probability of at least 95 %, no two equal candidates are said to differ. A difference that is not finite
        does not count. Candidates compared on different tokens or samples have no tiers.

        Examples
        --------
        >>> import numpy as np
        >>> from tokenloss import ComparisonMeter
        >>> meter = ComparisonMeter()
        >>> base, noise = np.random.default_rng(1).normal(size=(2, 500, 8))
        >>> meter.update(base, {"q8": base + 0.01 * noise, "q4": base + 0.1 * noise}, np.zeros(500, int))
        >>> [(row["metric"], row["tiers"]) for row in meter.results().tiers()]
        [('loss', [['q8', 'q4']]), ('kl', [['q8'], ['q4']])]
        """
        return tiers_of(self)

    def _results(self) -> dict[str, Any]:
        return dict(self)

    def columns(self) -> dict[str, Array]:
        """Return the columns of a table that has a row for each candidate, the smallest divergence first.

        Returns
        -------
        dict of 1-D arrays
            "name", each value that is one number or text, and the ends of intervals; of samples, a row for each metric
            of a candidate, and of drafts, for each number of drafted tokens. With `noise`, its row comes last, and
            others have values as multiples of its own, such as "mean_kl_multiple".
        """
        rows = [{"name": name} | row | {"name": name} for name, one in self._ranked() for row in one._rows()]
        needed = [] if self.detect is None else power_table(dict(self._ranked()), self.detect)
        for row, extra in zip(rows, needed, strict=False):
            row["needed"] = extra["needed"]
        if self.noise is not None:
            for row in rows:
                multiples = nested(noise_multiples(self[row["name"]], self.noise))
                row |= {f"{name}_multiple": multiple for name, multiple in multiples.items()}
            rows += self.noise._rows()
        return columns_of(rows)


def hints_of(comparisons: Comparisons[Any]) -> dict[str, Any]:
    """Hints at a mistake, for `advice`: by name, whether any comparison has one, and messages as "notes"."""
    every = dict(comparisons) | ({} if comparisons.noise is None else {NOISE: comparisons.noise})
    abouts, notes = [one._about for one in every.values()], list[str]()
    for name, one in every.items():
        # a model that lacks classes has no finite divergence
        n_infinite = 0 if one._about.get("classes") == "all" else getattr(one, "n_infinite", 0)
        counts = {"n_nan": getattr(one, "n_nan", 0), "n_infinite": n_infinite}
        notes += [f"{name}: {note}" for note in not_finite_notes(counts, one.count, "divergence or loss")]
    run_notes = dict.fromkeys(note for one in every.values() for note in getattr(one, "runs", ()))
    return {
        "fits_better_shifted": any(about.get("fits_better_shifted") for about in abouts),
        "norm_seems_missing": any(about.get("norm_seems_missing") for about in abouts),
        "has_zero": any(_has_zero(one, one._about.get("kind"), one._about.get("base_kind")) for one in every.values()),
        "notes": [*notes, *comparisons._identical(), *run_notes],
    }


def warn_of_zero(comparison: ComparisonT, kind: str | None, base_kind: str | None) -> ComparisonT:
    """The comparison, with a warning where a probability of 0 makes a loss infinite."""
    if _has_zero(comparison, kind, base_kind):
        warn(ZERO_ADVICE)
    return comparison


def _has_zero(comparison: Any, kind: str | None, base_kind: str | None) -> bool:
    """Whether a loss is infinite since scores, which are probabilities, are 0."""
    losses = {"perplexity": kind, "base_perplexity": base_kind}
    return any(of == "probs" and math.isinf(getattr(comparison, name, 0)) for name, of in losses.items())


class Divergence(NamedTuple):
    """The divergence of each token, its lower bound, or the absolute difference of the token's log-probabilities."""

    name: str  # of the result's array of divergences
    quantity: str  # in words
    values: Float64Array
    mean: Estimate
    last: float = 1.0  # the highest fraction whose quantile is known; below 0 for none


def divergence_of(comparison: Any) -> Divergence:
    """The divergence of a candidate."""
    name, sketch = comparison._divergence, getattr(comparison, "sketch", None)
    words, last = comparison._quantity, 1.0
    if sketch is not None:
        words = f"{'estimated' if sketch['tail'] else 'lower bound on the'} {words}"
        last = max(comparison.kl_quantiles, default=-1.0)
    return Divergence(name, words, comparison._kl, vars(comparison)[f"mean_{name}"], last)


def nearest_first(comparisons: Mapping[str, Any]) -> list[str]:
    """The names of candidates, by their mean divergences."""
    return sorted(comparisons, key=lambda name: comparisons[name]._rank())
