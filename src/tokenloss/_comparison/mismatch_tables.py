"""The tables that show a mismatch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.mismatch_causes import LEAST_FITTED
from tokenloss._comparison.tables import tables_by
from tokenloss._comparison.tiers import power_and_tiers
from tokenloss._core.result import Shown, Table, rows_of
from tokenloss._core.rows import Row, table, table_of_several
from tokenloss._core.text import count_of
from tokenloss._statistics.ratio import guess_note
from tokenloss._statistics.sequences import highest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenloss._core.types import Array, Float64Array

_MAX_SHOWN = 5  # sequences and tokens of the largest differences
_INTERVAL = "95 % interval {low:.5g} to {high:.5g}"
_NATS = ("± {stderr:.3g} nats", _INTERVAL)
_PERCENT = ("± {stderr:.3g %}", "95 % interval {low:.5g%} to {high:.5g%}")
_RATIO = ("± {stderr:.3g}", _INTERVAL)
_ROWS = (
    Row("KL, by k1", "k1", notes=_NATS),
    Row("KL, by k2", "k2", notes=_NATS),
    Row("KL, by k3", "k3", notes=_NATS),
    Row("k3 of top 1 %", "top_k3_share", "{:.1f %}", ("of the sum of k3, in the largest 1 % of the tokens",)),
    Row("mean |difference|", "mean_abs_difference", notes=_NATS),
    Row("mean ratio", "mean_ratio", notes=_RATIO),
    Row("outside {least:g} to {most:g}", "outside", "{:.2f %}", _PERCENT),
    Row("effective tokens", "ess", "{:.2f %}", _PERCENT),
    Row("sequence ratio", "mean_sequence_ratio", notes=_RATIO[:1], when="n_sequences"),
    Row("geometric ratio", "mean_geometric_ratio", notes=_RATIO[:1], when="n_sequences"),
    Row("effective sequences", "sequence_ess", "{:.2f %}", _PERCENT, when="n_sequences"),
)
_QUANTILES = (
    Row("quantile", "quantile"),
    Row("difference", "difference", "{:+.5g}"),
    Row("ratio", "ratio", "{:.5g}"),
)
_SEQUENCES = (
    Row("sequence", "sequence", "{}"),
    Row("line", "line", "{}"),
    Row("tokens", "count", "{:,}"),
    Row("mean difference", "difference", "{:+.5g}"),
    Row("KL, by k3", "k3", "{:.5g}"),
    Row("ratio", "ratio", "{:.5g}"),
    Row("geometric ratio", "geometric_ratio", "{:.5g}"),
)
_TOKENS = (
    *(Row(name, name, "{}") for name in ("token", "sequence", "position")),
    Row("trainer", "logprobs"),
    Row("sampler", "base_logprobs"),
    Row("difference", "difference", "{:+.5g}"),
    Row("ratio", "ratio", "{:.5g}"),
)


def mismatch_shown(comparisons: Mapping[str, Any]) -> Shown:
    """The title and tables of a `Mismatch`, the only one with its base."""
    (mismatch,) = comparisons.values()
    about = mismatch._about
    title = f"{about['trainer']} vs {about['sampler']}" if about else "trainer vs sampler"
    by = count_of(mismatch.n_sequences, "sequence")
    basis = f"errors clustered by {by}" if mismatch.is_clustered else "assumed independent"
    left_out = mismatch.n_without_number
    notes = [
        f"{count_of(mismatch.count, 'token')}, {basis}",
        f"{left_out:,} without a number" * bool(left_out),
        f"{mismatch.n_nan:,} nan" * bool(mismatch.n_nan),
        f"{mismatch.n_infinite:,} infinite" * bool(mismatch.n_infinite),
        guess_note(mismatch.interval_factor).removeprefix(", "),
    ]
    tables = [
        table(_ROWS, _values(mismatch), mismatch),
        _quantile_table(mismatch),
        *tables_by({"": mismatch}),
        _worst_sequences(mismatch),
        _worst_tokens(mismatch),
        *power_and_tiers(comparisons, getattr(comparisons, "detect", None)),
        _diagnosis(mismatch),
    ]
    return Shown(title, "; ".join(filter(None, notes)), [table for table in tables if table.rows], mismatch.signature)


def _diagnosis(mismatch: Any) -> Table:
    """Table of the sentences of the diagnosis, or one sentence that explains why it is empty."""
    title = "Diagnosis: the numbers above cannot be trusted" if mismatch.void else "Diagnosis"
    if mismatch.diagnosis:
        return Table([(sentence,) for sentence in mismatch.diagnosis], title=title)
    low, high = mismatch.mean_ratio.interval
    if mismatch.count < LEAST_FITTED or math.isnan(low):
        words = f"too few tokens to tell: {mismatch.count:,}, but {LEAST_FITTED} are needed"
    elif low <= 1 <= high:
        words = "nothing suspicious: the mean ratio is 1 within its error, as with noise or a policy that was updated"
    else:
        words = f"nothing certain, but the 95 % interval of the mean ratio, {low:.5g} to {high:.5g}, excludes 1, as it "
        words += "does by chance in 5 % of samples; compare more tokens"
    return Table([(words,)], title=title)


def _values(mismatch: Any) -> dict[str, Any]:
    """The values that `_ROWS` name besides the metrics."""
    values: dict[str, Any] = {"least": 1 - mismatch.epsilon, "most": 1 + mismatch.epsilon}
    if math.isinf(mismatch.mean_sequence_ratio) and math.isfinite(mismatch.log_mean_sequence_ratio):
        values["mean_sequence_ratio"] = f"exp({mismatch.log_mean_sequence_ratio:.6g})"
    return values


def _quantile_table(mismatch: Any) -> Table:
    """Table of the quantiles of differences and ratios."""
    names = {1.0: "maximum", 0.5: "median", 0.0: "minimum"}
    items = [
        {
            "quantile": names.get(fraction, f"{100 * fraction:.4g} %"),
            "difference": difference,
            "ratio": mismatch.ratio_quantiles[fraction],
        }
        for fraction, difference in mismatch.difference_quantiles.items()
    ]
    return table_of_several(_QUANTILES, [(item,) for item in items if mismatch.count])


def _worst_sequences(mismatch: Any) -> Table:
    """Table of the sequences whose ratios are farthest from 1."""
    columns = mismatch.sequences if mismatch.n_sequences > 1 else {"log_ratio": np.empty(0)}
    items = _farthest(columns, columns["log_ratio"])
    return table_of_several(_SEQUENCES, items, "Sequences whose ratio is farthest from 1")


def _worst_tokens(mismatch: Any) -> Table:
    """Table of the tokens whose ratios are farthest from 1."""
    columns = mismatch.columns()
    if "sequence" not in columns:
        columns = {"token": np.arange(mismatch.kept.size)} | columns
    columns = {name: column[mismatch.kept.reshape(-1)] for name, column in columns.items()}
    return table_of_several(_TOKENS, _farthest(columns, columns["difference"]), "Tokens whose ratio is farthest from 1")


def _farthest(columns: dict[str, Array], logs: Float64Array) -> list[tuple[dict[str, Any]]]:
    """The rows whose logarithms are the farthest from 0."""
    chosen = highest(np.abs(logs), _MAX_SHOWN)
    return [(row,) for row in rows_of({name: column[chosen] for name, column in columns.items()})]
