"""The tables in which a mismatch is shown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.mismatch_causes import LEAST_FITTED
from tokenloss._core.result import Shown, Table, known_error, rows_of, table_of
from tokenloss._core.text import count_of
from tokenloss._statistics.ratio import guess_note
from tokenloss._statistics.sequences import highest

if TYPE_CHECKING:
    from tokenloss._core.types import Array, Float64Array

_MAX_SHOWN = 5  # sequences and tokens of the largest differences


def mismatch_shown(found: Any) -> Shown:
    """What people see of a `Mismatch`."""
    about = found._about
    title = f"{about['trainer']} vs {about['sampler']}" if about else "trainer vs sampler"
    basis = f"errors by {count_of(found.n_sequences, 'sequence')}" if found.is_clustered else "taken as independent"
    left_out = found.n_without_number
    notes = [
        f"{count_of(found.count, 'token')}, {basis}",
        f"{left_out:,} without a number" * bool(left_out),
        f"{found.n_nan:,} nan" * bool(found.n_nan),
        f"{found.n_infinite:,} infinite" * bool(found.n_infinite),
        guess_note(found.interval_factor).removeprefix(", "),
    ]
    tables = [
        Table(_figure_rows(found)),
        _quantile_table(found),
        _worst_sequences(found),
        _worst_tokens(found),
        _diagnosis(found),
    ]
    return Shown(title, "; ".join(filter(None, notes)), [table for table in tables if table.rows], found.signature)


def _diagnosis(found: Any) -> Table:
    """Table of the sentences of the diagnosis, or of a sentence that explains why it is empty."""
    title = "Diagnosis: the numbers above cannot be trusted" if found.void else "Diagnosis"
    if found.diagnosis:
        return Table([(sentence,) for sentence in found.diagnosis], title=title)
    low, high = found.mean_ratio_interval
    if found.count < LEAST_FITTED or math.isnan(low):
        words = f"too few tokens to tell: {found.count:,}, and {LEAST_FITTED} are needed"
    elif low <= 1 <= high:
        words = "nothing suspicious: the mean ratio is 1 within its error, as with noise or a policy that was updated"
    else:
        words = f"nothing certain, but the 95 % interval of the mean ratio, {low:.5g} to {high:.5g}, excludes 1, as it "
        words += "does by chance in 5 % of samples; compare more tokens"
    return Table([(words,)], title=title)


def _figure_rows(found: Any) -> list[tuple[str, ...]]:
    """Rows of the figures: their name, their value, their error and interval."""

    def row(label: str, name: str, form: str = "{:.6g}", unit: str = "", factor: float = 1) -> tuple[str, ...]:
        value, stderr = (factor * getattr(found, name + end) for end in ("", "_stderr"))
        low, high = (factor * end for end in getattr(found, f"{name}_interval", (math.nan, math.nan)))
        words = known_error(stderr, f"± {stderr:.3g}{unit}")
        return label, form.format(value), words + known_error(low, f"; 95 % interval {low:.5g} to {high:.5g}")

    rows = [
        row("KL, by k1", "k1", unit=" nats"),
        row("KL, by k2", "k2", unit=" nats"),
        row("KL, by k3", "k3", unit=" nats"),
        ("k3 of top 1 %", f"{100 * found.top_k3_share:.1f} %", "of the sum of k3, in the largest 1 % of the tokens"),
        row("mean |difference|", "mean_abs_difference", unit=" nats"),
        row("mean ratio", "mean_ratio"),
        row(f"outside {1 - found.epsilon:g} to {1 + found.epsilon:g}", "outside", "{:.2f} %", " %", 100),
        row("effective tokens", "ess", "{:.2f} %", " %", 100),
    ]
    if found.n_sequences:
        ratio = row("sequence ratio", "mean_sequence_ratio")
        if math.isinf(found.mean_sequence_ratio) and math.isfinite(found.log_mean_sequence_ratio):
            ratio = ratio[0], f"exp({found.log_mean_sequence_ratio:.6g})", ""
        rows += [ratio, row("geometric ratio", "mean_geometric_ratio")]
        rows += [row("effective sequences", "sequence_ess", "{:.2f} %", " %", 100)]
    return rows


def _quantile_table(found: Any) -> Table:
    """Table of the quantiles of differences and ratios."""
    names = {1.0: "maximum", 0.5: "median", 0.0: "minimum"}
    rows = [
        (names.get(fraction, f"{100 * fraction:.4g} %"), f"{difference:+.5g}", f"{found.ratio_quantiles[fraction]:.5g}")
        for fraction, difference in found.difference_quantiles.items()
        if found.count
    ]
    return Table(rows, ("quantile", "difference", "ratio"))


def _worst_sequences(found: Any) -> Table:
    """Table of the sequences whose ratios are farthest from 1."""
    if found.n_sequences < 2:
        return Table([])
    formats = {"sequence": "{sequence}"} | ({"line": "{line}"} if "line" in found.sequences else {})
    formats |= {"tokens": "{count:,}", "mean difference": "{difference:+.5g}", "KL, by k3": "{k3:.5g}"}
    formats |= {"ratio": "{ratio:.5g}", "geometric ratio": "{geometric_ratio:.5g}"}
    rows = _farthest(found.sequences, found.sequences["log_ratio"])
    return table_of("Sequences whose ratio is farthest from 1", formats, rows)


def _worst_tokens(found: Any) -> Table:
    """Table of the tokens whose ratios are farthest from 1."""
    columns = found.columns()
    if "sequence" not in columns:
        columns = {"token": np.arange(found.kept.size)} | columns
    columns = {name: column[found.kept.reshape(-1)] for name, column in columns.items()}
    places = {name: f"{{{name}}}" for name in ("token", "sequence", "position") if name in columns}
    formats = places | {"trainer": "{logprobs:.6g}", "sampler": "{base_logprobs:.6g}"}
    formats |= {"difference": "{difference:+.5g}", "ratio": "{ratio:.5g}"}
    rows = _farthest(columns, columns["difference"])
    return table_of("Tokens whose ratio is farthest from 1", formats, rows)


def _farthest(columns: dict[str, Array], logs: Float64Array) -> list[dict[str, Any]]:
    """The rows whose logarithms are the farthest from 0."""
    chosen = highest(np.abs(logs), _MAX_SHOWN)
    return rows_of({name: column[chosen] for name, column in columns.items()})
