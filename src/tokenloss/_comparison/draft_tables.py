"""The tables in which drafts are shown: of one, by the number of drafted tokens, or of several."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tokenloss._comparison.tables import signature_of_all, title_of
from tokenloss._core.result import Shown, Table, known_error, rows_of
from tokenloss._core.text import count_of, unit_of_bytes
from tokenloss._statistics.ratio import interval_note

if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCK = 64  # neighbouring positions of a single text that errors take as one
_SHOWN_K = (1, 2, 4, 8)  # of the table of several drafts


def drafts_shown(comparisons: Mapping[str, Any]) -> Shown:
    """What people see of one or several `DraftAcceptance` of one target."""
    first, *others = comparisons.values()
    basis = f"errors by {count_of(first.n_sequences, 'sequence')}" if first.n_sequences else "taken as independent"
    if not first.is_clustered:
        basis = f"errors by blocks of {BLOCK} positions of one text"
    greedy = "" if first.temperature else " (greedy)"
    note = f"{count_of(first.count, 'position')}, {basis}, temperature {first.temperature:g}{greedy}"
    if others and first.cost_ratio is not None:
        note += f", cost ratio {first.cost_ratio:g}"
    note = "; ".join(filter(None, (note, interval_note(first.interval_factor))))
    tables = [_drafts_table(comparisons)] if others else [_mean_table(first), _table_by_k(first)]
    return Shown(title_of(comparisons), note, tables, signature_of_all(comparisons))


def _mean_table(one: Any) -> Table:
    """Rows of the figures of all positions."""
    (low, high), stderr = one.mean_acceptance_interval, one.mean_acceptance_stderr
    words = f"± {100 * stderr:.2f} %, 95 % interval {100 * low:.2f} to {100 * high:.2f} %"
    rows = [("Mean acceptance", f"{100 * one.mean_acceptance:.2f} %", known_error(stderr, words))]
    if one.n_nan:
        rows.append(("Positions that are nan", f"{one.n_nan:,}", ""))
    if math.isnan(one.break_even_ratio):
        return Table(rows)
    words = "the time of a draft step over that of a target step"
    rows.append(("Pays below a cost ratio of", f"{one.break_even_ratio:.3f}", words))
    if one.best_k is not None:
        tokens, time = one.by_k["tokens_per_call"][one.best_k - 1], 1 + one.best_k * one.cost_ratio
        words = f"k = {one.best_k}: {tokens:.3f} tokens in {time:.4g} times the time of a target step"
        if one.best_speedup <= 1:
            words = "drafting costs more than it gains"
        elif one.best_k == max(one.by_k["k"][one.by_k["n_starts"] > 0]):
            words += "; a larger k may gain more"
        rows.append((f"Best speed-up at {one.cost_ratio:g}", f"{one.best_speedup:.3f}", words))
    return Table(rows)


def _table_by_k(one: Any) -> Table:
    """The table of the numbers of drafted tokens."""
    heads = ["k", "tokens per call", "±", "if independent", "pays below"]
    heads += ["speed-up", "±"] * (one.cost_ratio is not None) + ["note"]
    rows, most = [], int(one.by_k["n_texts"][0])
    for row in rows_of(one.by_k):
        has_starts = row["n_starts"] > 0
        numbers = [row["tokens_per_call"], row["tokens_per_call_stderr"], row["independent_tokens"]]
        numbers += [row["break_even_ratio"], *(row[name] for name in ("speedup", "speedup_stderr") if name in row)]
        cells = [f"{number:.3f}" for number in numbers]
        for error in (1, 5)[: len(cells) // 3]:
            cells[error] = known_error(numbers[error], cells[error])
        note = "" if has_starts else f"no text has {count_of(row['k'], 'position')} in a row"
        if 0 < row["n_texts"] < most:
            note = f"of {row['n_texts']:,} of {count_of(most, 'text')} alone"
        rows.append((str(row["k"]), *(cells if has_starts else [""] * len(cells)), note))
    keep = [column for column in range(len(heads)) if heads[column] != "note" or any(row[-1] for row in rows)]
    lines = [tuple(line[column] for column in keep) for line in (heads, *rows)]
    return Table(lines[1:], lines[0], "By the number k of tokens that are drafted for a call of the target")


def _drafts_table(comparisons: Any) -> Table:
    """Table of several drafts, the one that gains most first; columns that are empty are left out."""
    unit, scale = unit_of_bytes(max((one._about.get("size") or 0 for one in comparisons.values()), default=0))
    lines = []
    for name, one in comparisons._ranked():
        size, stderr = one._about.get("size"), one.mean_acceptance_stderr
        cells = {
            "model": name,
            "size": "" if size is None else f"{size / scale:.3g} {unit}",
            "acceptance": f"{100 * one.mean_acceptance:.2f} %",
            "±": known_error(stderr, f"{100 * stderr:.2f} %"),
        }
        tokens = one.by_k["tokens_per_call"]
        cells |= {f"tokens, k={k}": known_error(tokens[k - 1], f"{tokens[k - 1]:.3f}") for k in _SHOWN_K}
        cells["pays below"] = known_error(one.break_even_ratio, f"{one.break_even_ratio:.3f}")
        cells |= dict.fromkeys(("best k", "speed-up", " ± "), "")
        if one.best_k is not None:
            cells |= {"best k": str(one.best_k), "speed-up": f"{one.best_speedup:.3f}"}
            cells[" ± "] = known_error(one.best_speedup_stderr, f"{one.best_speedup_stderr:.3f}")
        cells["nan"] = f"{one.n_nan:,}" if one.n_nan else ""
        lines.append(cells)
    heads = [head for head in lines[0] if any(line[head] for line in lines)]
    return Table([tuple(line[head] for head in heads) for line in lines], tuple(head.strip() for head in heads))
