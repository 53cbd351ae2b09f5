"""The tables that show drafts: one draft by the number of drafted tokens, or several drafts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tokenloss._comparison.tables import shown_of, size_texts
from tokenloss._core.result import Shown, Table, rows_of
from tokenloss._core.rows import Row, table, table_of_several
from tokenloss._core.text import count_of

if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCK = 64  # neighboring positions of a single text that errors take as one
_SHOWN_K = (1, 2, 4, 8)  # of the table of several drafts
_ROWS = (
    Row("Mean acceptance", "mean_acceptance", "{:.2f %}", (
        "± {stderr:.2f %}, 95 % interval {low:.2f%} to {high:.2f %}",
    )),
    Row("Positions that are nan", "n_nan", "{:,}", when="n_nan"),
    Row("Pays below a cost ratio of", "break_even", "{:.3f}", ("time of a draft step / time of a target step",)),
    Row("Best speed-up at {cost_ratio:g}", "best_speedup", "{:.3f}", ("{best_note}",)),
)  # fmt: skip
_BY_K = (
    Row("k", "k", "{}"),
    Row("tokens per call", "tokens_per_call", "{:.3f}"),
    Row("±", "tokens_per_call_stderr", "{known:.3f}"),
    Row("if independent", "independent_tokens", "{:.3f}"),
    Row("pays below", "break_even_ratio", "{:.3f}"),
    Row("speed-up", "speedup", "{:.3f}"),
    Row("±", "speedup_stderr", "{known:.3f}"),
    Row("note", "note"),
)
_COLUMNS = (
    Row("model", "name"),
    Row("size", "size"),
    Row("acceptance", "mean_acceptance", "{:.2f %}"),
    Row("±", "mean_acceptance", "{stderr:.2f %}"),
    *(Row(f"tokens, k={k}", f"tokens_{k}", "{known:.3f}") for k in _SHOWN_K),
    Row("pays below", "break_even_ratio", "{known:.3f}"),
    Row("best k", "best_k", "{}"),
    Row("speed-up", "best_speedup", "{:.3f}"),
    Row("±", "best_speedup", "{stderr:.3f}"),
    Row("nan", "n_nan", "{:,}", when="n_nan"),
)


def drafts_shown(comparisons: Mapping[str, Any]) -> Shown:
    """The title and tables of one or several `DraftAcceptance` of one target."""
    first, *others = comparisons.values()
    by = count_of(first.n_sequences, "sequence") if first.is_clustered else f"blocks of {BLOCK} positions of one text"
    basis = f"errors clustered by {by}" if first.n_sequences or not first.is_clustered else "assumed independent"
    greedy = "" if first.temperature else " (greedy)"
    note = f"{count_of(first.count, 'position')}, {basis}, temperature {first.temperature:g}{greedy}"
    if others and first.cost_ratio is not None:
        note += f", cost ratio {first.cost_ratio:g}"
    tables = [_drafts_table(comparisons)] if others else [_mean_table(first), _table_by_k(first)]
    return shown_of(comparisons, (note,), tables)


def _mean_table(one: Any) -> Table:
    """Rows of the metrics of all positions."""
    values: dict[str, Any] = {"break_even": None if math.isnan(one.break_even_ratio) else one.break_even_ratio}
    if one.best_k is not None:
        tokens, time = one.by_k["tokens_per_call"][one.best_k - 1], 1 + one.best_k * one.cost_ratio
        note = f"k = {one.best_k}: {tokens:.3f} tokens in {time:.4g} times the time of a target step"
        if one.best_speedup <= 1:
            note = "drafting costs more than it gains"
        elif one.best_k == max(one.by_k["k"][one.by_k["n_starts"] > 0]):
            note += "; a larger k may gain more"
        values["best_note"] = note
    return table(_ROWS, values, one)


def _table_by_k(one: Any) -> Table:
    """The table of the numbers of drafted tokens."""
    items, most = [], int(one.by_k["n_texts"][0])
    for row in rows_of(one.by_k):
        note = None
        if not row["n_starts"]:
            note = f"no text has {count_of(row['k'], 'position')} in a row"
            row = dict.fromkeys(row, "") | {"k": row["k"]}
        elif row["n_texts"] < most:
            note = f"of {row['n_texts']:,} of {count_of(most, 'text')} only"
        items.append((row | {"note": note},))
    return table_of_several(_BY_K, items, "By the number k of tokens that are drafted for a call of the target")


def _drafts_table(comparisons: Any) -> Table:
    """Table of several drafts, the one that gains most first; columns that are empty are left out."""
    ranked = comparisons._ranked()
    items = []
    for (name, one), size in zip(ranked, size_texts(one for _, one in ranked), strict=True):
        tokens = {f"tokens_{k}": one.by_k["tokens_per_call"][k - 1] for k in _SHOWN_K}
        items.append(({"name": name, "size": size} | tokens, one))
    return table_of_several(_COLUMNS, items, keep_empty=False)
