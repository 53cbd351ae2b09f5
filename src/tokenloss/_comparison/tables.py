"""The tables in which comparisons are shown: of scores, of responses and of samples."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

from tokenloss._comparison.paired import nan_last
from tokenloss._core.result import Shown, Table, known_error, table_of
from tokenloss._core.text import count_of, printable
from tokenloss._statistics.distributions import student_quantile
from tokenloss._statistics.ratio import guess_note, interval_note

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokenloss._comparison.paired import PairedLosses

_MAX_SEQUENCES = 5  # those of the highest divergence that are listed
_ARROW = "\N{RIGHTWARDS ARROW}"


# -- scores ------------------------------------------------------------------------------------------------------------


def comparison_shown(comparison: Any) -> Shown:
    """What people see of a `Comparison`."""
    about = comparison._about
    kinds = [about[name] for name in ("kind", "base_kind") if name in about]
    tables = comparison_tables(comparison) + group_tables(comparison._figures())
    name = about.get("name", "model")
    return _shown({name: comparison}, name, " vs ".join(kinds), tables)


def candidates_shown(comparisons: Mapping[str, Any]) -> Shown:
    """What people see of several `Comparison` with one base, by name."""
    about = next(iter(comparisons.values()))._about
    return _shown(comparisons, f"{len(comparisons)} models", about.get("base_kind", ""), [candidate_table(comparisons)])


def _shown(comparisons: Mapping[str, Any], name: str, kinds: str, tables: list[Table]) -> Shown:
    """A title, a note and tables of one or several comparisons with one base."""
    first = next(iter(comparisons.values()))
    basis = f"errors by {count_of(first.n_sequences, 'sequence')}" if first.is_clustered else "taken as independent"
    note = f"{count_of(first.count, 'token')}, {basis}, {first.definitions} definitions"
    note = "; ".join(filter(None, (note, kinds, interval_note(first.interval_factor))))
    heads = [("base", first._about.get("base_head"))]
    heads += [(one, comparison._about.get("head")) for one, comparison in comparisons.items()]
    rows = [(printable(one), *head_row(head)) for one, head in heads if head]
    tables += [Table(rows, title="Logits of hidden states")] if rows else []
    return Shown(f"{name} vs {first._about.get('base', 'base')}", note, tables)


def comparison_tables(comparison: Any) -> list[Table]:
    """Tables of a comparison, in the layout and the words of llama.cpp's perplexity tool."""
    divergences = [
        _nats(comparison, "Mean    KLD", "mean_kl"),
        *_not_finite(comparison),
        *_quantiles("KLD", comparison.kl_quantiles, "{:10.6f}".format, comparison.kl_quantile_intervals),
    ]
    left_out = {"base": comparison.base_left_out, "Q": comparison.left_out}
    masses = [(f"Mean of {name}", f"{100 * mass:7.4g} %") for name, mass in left_out.items() if mass is not None]
    tables = [
        Table(_perplexities(comparison), title="Perplexity statistics"),
        Table(divergences, title="KL divergence statistics"),
        Table(_probabilities(comparison), title="Token probability statistics"),
        Table(masses, title="Probability of the classes that are left out"),
    ]
    return [table for table in tables if table.rows]


def _not_finite(comparison: Any) -> list[tuple[str, ...]]:
    """Rows that count infinite and nan tokens, and the mean of the others; none if all are finite."""
    counts = {"Infinite tokens": comparison.n_infinite, "Tokens that are nan": comparison.n_nan}
    rows = [(label, f"{count:10,}", f"of {comparison.count:,}") for label, count in counts.items() if count]
    return [_nats(comparison, "Mean    KLD where finite", "finite_mean_kl"), *rows] if rows else []


def group_tables(figures: dict[str, Any]) -> list[Table]:
    """Tables that show where a model differs from its base: by confidence, by type of token, by sequence."""
    bins = [row | {"group": f"{row['group']:.1f} to {row['group'] + 0.2:.1f}"} for row in figures["by_confidence"]]
    tables = [_group_table("base's top p", "By the base's confidence", bins)]
    if types := figures.get("by_token_type"):
        types = sorted(types, key=lambda row: nan_last(-row["kl"]))
        tables.append(_group_table("token type", "By type of token", types))
    sequences = [row | {"group": row["sequence"]} for row in figures.get("sequences", ())]
    if len(sequences) > 1:
        sequences.sort(key=lambda row: nan_last(-row["kl"]))
        tables.append(_group_table("sequence", "Sequences of the highest divergence", sequences[:_MAX_SEQUENCES]))
    return [table for table in tables if table.rows]


def _group_table(head: str, title: str, rows: list[dict[str, Any]]) -> Table:
    """Table of groups of tokens, with standard errors where these are known."""
    # heads are keys of a dict, so the second ± has blanks around it
    formats = {head: "{group}", "tokens": "{count:,}", "mean KLD": "{kl:.6f}", "±": "{kl_stderr:.6f}"}
    formats |= {"ln(PPL ratio)": "{loss_difference:+.5f}", " ± ": "{loss_difference_stderr:.5f}"}
    formats |= {"mean Δp": "{percent_delta_p:+.3f} %", "same top": "{percent_same_top:.2f} %"}
    if rows and "kl_stderr" not in rows[0]:
        del formats["±"], formats[" ± "]
    if rows and "file" in rows[0]:  # sequences have the numbers of their file
        formats = {"file": "{file}"} | formats
    percents = [{f"percent_{name}": 100 * row[name] for name in ("delta_p", "same_top")} for row in rows]
    return table_of(title, formats, [row | percent for row, percent in zip(rows, percents, strict=True)])


def candidate_table(comparisons: Mapping[str, Any]) -> Table:
    """Table of several candidates, the smallest divergence first; columns that are empty are left out."""
    ordered = sorted(comparisons.items(), key=lambda named: nan_last(named[1].mean_kl))
    lines = [_candidate_cells(*named) for named in ordered]
    is_shown = [any(cell for _, cell in column) for column in zip(*lines, strict=True)]
    lines = [[*itertools.compress(line, is_shown)] for line in lines]
    return Table([tuple(cell for _, cell in line) for line in lines], tuple(head for head, _ in lines[0]))


def _candidate_cells(name: str, one: Any) -> list[tuple[str, str]]:
    """The figures of a candidate: the head of each column, and the cell."""
    left_out, size = one.n_infinite + one.n_nan, one._about.get("size")
    return [
        ("model", printable(name)),
        ("size", "" if size is None else f"{size / 1e9:.3g} GB"),
        ("mean KLD", f"{one.mean_kl:.6f}"),
        ("±", known_error(one.mean_kl_stderr, f"{one.mean_kl_stderr:.6f}")),
        ("99.9% KLD", f"{one.kl_quantiles[0.999]:.6f}"),
        ("PPL ratio", f"{one.perplexity_ratio:.5f}"),
        ("±", known_error(one.perplexity_ratio_stderr, f"{one.perplexity_ratio_stderr:.5f}")),
        ("same top", f"{100 * one.same_top:.2f} %"),
        ("±", known_error(one.same_top_stderr, f"{100 * one.same_top_stderr:.2f} %")),
        ("RMS Δp", f"{100 * one.rms_delta_p:.2f} %"),
        ("not finite", f"{left_out:,}" if left_out else ""),
        ("KLD where finite", f"{one.finite_mean_kl:.6f}" if left_out else ""),
    ]


# -- responses ---------------------------------------------------------------------------------------------------------


def responses_shown(comparison: Any) -> Shown:
    """What people see of a `ResponseComparison`."""
    basis = "errors by response" if comparison.is_clustered else "taken as independent"
    counts = f"{count_of(comparison.count, 'token')} of {count_of(comparison.n_sequences, 'response')}"
    rounded = [words for words in (comparison.rounding, comparison.base_rounding) if words]
    note = f"{counts} ({comparison.part}), {basis}"
    note += f"; log-probabilities: {' vs '.join(rounded)}" if rounded else ""
    intervals = interval_note(comparison.interval_factor)
    note += f"; {intervals}" if intervals else ""
    return Shown(_title(comparison), note, response_tables(comparison))


def _title(comparison: Any) -> str:
    """Title that names both files."""
    return f"{comparison._about.get('other', 'other')} vs {comparison._about.get('base', 'base')}"


def response_tables(comparison: Any) -> list[Table]:
    """Tables of a comparison of responses, whose divergence is a lower bound."""
    left_out = {
        "Tokens without a log-probability": comparison.n_without_number,
        "Tokens with a sentinel": comparison.n_sentinels,
        "Requests that failed": comparison.n_skipped,
    }
    masses = f"{100 * comparison.mean_mass:7.3f} %", f"base {100 * comparison.mean_base_mass:.3f} %"
    divergences = [
        _nats(comparison, "Mean    KLD is at least", "mean_kl_bound"),
        *_quantiles("KLD is at least", comparison.kl_bound_quantiles, "{:10.6f}".format),
        ("Mean probability of these classes", *masses),
        ("Tokens whose lists share other classes", f"{comparison.n_bounded:,}", f"of {comparison.count:,}"),
    ]
    probabilities = _probabilities(comparison)
    label, share, error = probabilities.pop()
    if comparison.n_top_known:
        known = known_of({"n_greedy_known": comparison.n_top_known, "count": comparison.count})
        probabilities.append((label, share, f"{error}  {known}".rstrip()))
    tables = [
        Table([(label, f"{n:,}") for label, n in left_out.items() if n], title="Left out"),
        Table(_perplexities(comparison), title="Perplexity statistics"),
        Table(divergences, title="Lower bound of the KL divergence, from the classes that both list"),
        Table(probabilities, title="Token probability statistics"),
    ]
    return [table for table in tables if table.rows]


# -- scores and responses ----------------------------------------------------------------------------------------------


def _perplexities(comparison: PairedLosses) -> list[tuple[str, ...]]:
    """Rows of perplexities."""
    return [
        _nats(comparison, "Mean PPL(Q)", "perplexity"),
        _nats(comparison, "Mean PPL(base)", "base_perplexity"),
        ("Cor(ln(PPL(Q)), ln(PPL(base)))", f"{100 * comparison.correlation:6.2f} %", ""),
        _nats(comparison, "Mean ln(PPL(Q)/PPL(base))", "log_perplexity_ratio"),
        _nats(comparison, "Mean PPL(Q)/PPL(base)", "perplexity_ratio"),
        _nats(comparison, "Mean PPL(Q)-PPL(base)", "perplexity_difference"),
    ]


def _probabilities(comparison: PairedLosses) -> list[tuple[str, ...]]:
    """Rows of changes of probability, and of the most likely classes."""
    return [
        _percent(comparison, "Mean    Δp", "mean_delta_p"),
        *_quantiles("Δp", comparison.delta_p_quantiles, lambda change: f"{100 * change:7.3f} %"),
        _percent(comparison, "RMS Δp", "rms_delta_p"),
        _percent(comparison, "Same top p", "same_top"),
    ]


def _nats(comparison: object, label: str, name: str) -> tuple[str, ...]:
    """A row of a figure and its error."""
    figure, error = vars(comparison)[name], vars(comparison)[f"{name}_stderr"]
    return label, f"{figure:10.6f}", known_error(error, f"± {error:10.6f}")


def _percent(comparison: object, label: str, name: str) -> tuple[str, ...]:
    """A row of a fraction and its error."""
    figure, error = vars(comparison)[name], vars(comparison)[f"{name}_stderr"]
    return label, f"{100 * figure:7.3f} %", known_error(error, f"± {100 * error:6.3f} %")


def _quantiles(
    what: str, quantiles: dict[float, float], form: Callable[[float], str],
    intervals: dict[float, tuple[float, float]] | None = None,
) -> list[tuple[str, ...]]:  # fmt: skip
    """Rows of quantiles, with intervals where these are known."""
    words = {1.0: "Maximum", 0.5: "Median", 0.0: "Minimum"}
    labels = {fraction: words.get(fraction, f"{100 * fraction:4.1f}%") for fraction in quantiles}
    notes = {
        fraction: f"95 % interval {form(low).strip()} to {form(high).strip()}"
        for fraction, (low, high) in (intervals or {}).items()
        if not math.isnan(low)
    }
    return [
        (f"{labels[fraction]:<7} {what}", form(value), notes.get(fraction, "")) for fraction, value in quantiles.items()
    ]


def head_row(head: dict[str, Any] | None) -> tuple[str, str]:
    """Cells that say how logits were made of hidden states: the weight, and the transform."""
    if head is None:
        return "", ""
    notes = [head["note"], *([] if head["norm"] is None else [f"after {head['norm']}"])]
    return printable(head["weight"]) + (" + bias" if head["has_bias"] else ""), printable(", ".join(notes))


def known_of(summary: dict[str, Any]) -> str:
    """Note on how many tokens are known to be greedy or not; empty if all are."""
    known = summary.get("n_greedy_known", summary["count"])
    return "" if known == summary["count"] else f"of {count_of(known, 'token')} where it is known"


# -- samples -----------------------------------------------------------------------------------------------------------


def samples_shown(comparison: Any) -> Shown:
    """What people see of a `SampleComparison`."""
    by = count_of(comparison.n_clusters, "document" if comparison.cluster is None else "group")
    by += "" if comparison.cluster is None else f" of {comparison.cluster}"
    note = f"{count_of(comparison.count, 'sample')}, errors by {by}"
    if comparison.n_clusters > 1:
        note += guess_note(student_quantile(0.025, comparison.n_clusters - 1))
    if comparison.n_other_prompts:
        note += f"; {comparison.n_other_prompts:,} prompts differ"
    return Shown(_title(comparison), printable(note), sample_tables(comparison))


def sample_tables(comparison: Any) -> list[Table]:
    """Tables of metrics, flips and equivalence, and what is not compared."""
    left_out = [(printable(name), printable(reason)) for name, reason in comparison.left_out.items()]
    notes = [(printable(note),) for note in comparison.notes]
    others = Table(left_out, (), "left out"), Table(notes, (), "notes")
    return metric_tables(comparison.metrics, comparison.margin) + [table for table in others if table.rows]


def metric_shown(metric: Any) -> Shown:
    """What people see of a `SampleMetric`."""
    note = f"{count_of(metric.count, 'sample')}, errors by {metric.n_clusters:,} documents or groups"
    return Shown(metric.name, note, metric_tables([metric], None))


def metric_tables(metrics: list[Any], margin: float | None) -> list[Table]:
    """Tables of metrics, of ratios, flips and equivalence."""
    several = len({metric.filter for metric in metrics}) > 1
    named = [(printable(f"{one.name} ({one.filter})" if several else one.name), one) for one in metrics]
    is_clustered = any(metric.count > metric.n_clusters for metric in metrics)
    flips = "flips, with McNemar's exact test" + (", as if samples were independent" if is_clustered else "")
    equivalence = "equivalence" + (f" within {margin}" if margin else "") + ", by two one-sided tests at 5 %"
    tables = [
        _table_of_cells([_difference(*one) for one in named]),
        _table_of_cells([_ratio(*one) for one in named if one[1].ratio_interval], "ratios of perplexities"),
        _table_of_cells([_flips(*one) for one in named if one[1].mcnemar_p is not None], flips),
        _table_of_cells([_equivalence(*one) for one in named if one[1].equivalence_p is not None], equivalence),
    ]
    return [table for table in tables if table.rows]


def _table_of_cells(rows: list[dict[str, str]], title: str = "") -> Table:
    """Table of rows, each of which maps the heads of columns to cells."""
    return Table([tuple(row.values()) for row in rows], tuple(rows[0]) if rows else (), title)


def _difference(label: str, metric: Any) -> dict[str, str]:
    """Cells of a metric: its value for each model, and the difference."""
    low, high = metric.difference_interval
    return {
        "metric": label + (", from responses" if metric.is_derived else ""),
        "base": f"{metric.base:.6g}",
        "other": f"{metric.other:.6g}",
        "difference": f"{metric.difference:+.4g}",
        "±": known_error(metric.difference_stderr, f"{metric.difference_stderr:.3g}"),
        "95 % interval": known_error(low, f"{low:+.4g} to {high:+.4g}"),
    }


def _ratio(label: str, metric: Any) -> dict[str, str]:
    """Cells of a ratio of perplexities."""
    low, high = metric.ratio_interval or (0.0, 0.0)
    return {
        "metric": label,
        "ln(other/base)": f"{metric.log_ratio:+.4g}",
        "±": known_error(low, f"{metric.log_ratio_stderr:.3g}"),
        "other/base": f"{metric.ratio:.6g}",
        "95 % interval": known_error(low, f"{low:.5g} to {high:.5g}"),
    }


def _flips(label: str, metric: Any) -> dict[str, str]:
    """Cells that count the answers that only one of the models got right."""
    return {
        "metric": label,
        f"right {_ARROW} wrong": f"{metric.right_to_wrong:,}",
        f"wrong {_ARROW} right": f"{metric.wrong_to_right:,}",
        "p": f"{metric.mcnemar_p:.4g}",
    }


def _equivalence(label: str, metric: Any) -> dict[str, str]:
    """Cells of a test of equivalence."""
    note = ""
    if metric.discordance_bound is not None:
        note = f"no sample differs, so at most {100 * metric.discordance_bound:.3g} % do (95 % confidence)"
    verdict = {True: "yes", False: "no", None: "not known"}[metric.is_equivalent]
    return {"metric": label, "p": f"{metric.equivalence_p:.4g}", "equivalent": verdict, "note": note}
