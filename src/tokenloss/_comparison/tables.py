"""The tables in which comparisons are shown: of scores, of responses and of samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenloss._comparison.figures import further_of
from tokenloss._comparison.paired import nan_last
from tokenloss._core.arguments import DIVERGENCES
from tokenloss._core.result import Shown, Table, known_error, table_of
from tokenloss._core.signature import joined_signature
from tokenloss._core.text import count_of, unit_of_bytes
from tokenloss._statistics.distributions import student_quantile
from tokenloss._statistics.ratio import guess_note, interval_note

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MAX_SEQUENCES = 5  # those of the highest divergence that are listed
_ARROW = "\N{RIGHTWARDS ARROW}"


def title_of(comparisons: Mapping[str, Any], are_short: bool = False) -> str:
    """The name of a candidate, or the number of candidates, and the name of their base; short ones have no folders."""
    first, *others = comparisons.values()
    name, base = first._about.get("name", "model"), first._about.get("base", "base")
    if are_short:
        base = Path(base).name or base
        name = Path(name).name or name if name == first._about.get("file") else name
    return f"{f'{len(comparisons)} models' if others else name} vs {base}"


# -- scores ------------------------------------------------------------------------------------------------------------


def scores_shown(comparisons: Mapping[str, Any]) -> Shown:
    """What people see of one or several `Comparison` with one base: all figures of one, or a table of several."""
    first, *others = comparisons.values()
    kinds = [first._about[name] for name in ("kind", "base_kind")[bool(others) :] if name in first._about]
    basis = f"errors by {count_of(first.n_sequences, 'sequence')}" if first.is_clustered else "taken as independent"
    note = f"{count_of(first.count, 'token')}, {basis}, {first.definitions} definitions"
    note += "" if first.temperature == 1 else f", temperature {first.temperature:g}"
    note += "" if first.temperature else " (greedy; losses and divergences at 1)"
    note += "" if first.has_targets else "; without targets, which losses and perplexities need"
    note = "; ".join(filter(None, (note, " vs ".join(kinds), interval_note(first.interval_factor))))
    tables = [candidate_table(comparisons)] if others else comparison_tables(first) + group_tables(first._figures())
    heads = [("base", first._about.get("base_head"))]
    heads += [(one, comparison._about.get("head")) for one, comparison in comparisons.items()]
    rows = [(one, *head_row(head)) for one, head in heads if head]
    tables += [Table(rows, title="Logits of hidden states")] if rows else []
    return Shown(title_of(comparisons), note, tables, signature_of_all(comparisons))


def signature_of_all(comparisons: Mapping[str, Any]) -> str:
    """The signature of one or several comparisons."""
    return joined_signature(one.signature for one in comparisons.values())


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
        Table(_further(comparison), title="Further divergences"),
        Table(_probabilities(comparison), title="Token probability statistics"),
        Table(masses, title="Probability of the classes that are left out"),
    ]
    return [table for table in tables if table.rows]


def _further(comparison: Any) -> list[tuple[str, ...]]:
    """Rows of the divergences that were asked for beside KL."""
    rows = []
    for name in further_of(comparison):
        quantiles = {fraction: vars(comparison)[f"{name}_quantiles"][fraction] for fraction in (1.0, 0.99, 0.5)}
        rows.append(_nats(comparison, f"Mean    {DIVERGENCES[name]}", f"mean_{name}"))
        rows += _quantiles(DIVERGENCES[name], quantiles, "{:10.6f}".format)
    return rows


def _not_finite(comparison: Any) -> list[tuple[str, ...]]:
    """Rows that count infinite and nan tokens, and the mean of the others; none if all are finite."""
    counts = {"Infinite tokens": comparison.n_infinite, "Tokens that are nan": comparison.n_nan}
    rows = [(label, f"{count:10,}", f"of {comparison.count:,}") for label, count in counts.items() if count]
    return [_nats(comparison, "Mean    KLD where finite", "finite_mean_kl"), *rows] if rows else []


def group_tables(figures: dict[str, Any]) -> list[Table]:
    """Tables that show where a model differs from its base: by confidence, by type of token, by sequence."""
    bins = [row | {"group": f"{row['group']:.1f} to {row['group'] + 0.2:.1f}"} for row in figures["by_confidence"]]
    has_losses = figures["has_targets"]
    tables = [_group_table("base's top p", "By the base's confidence", bins, has_losses)]
    if types := figures.get("by_token_type"):
        types = sorted(types, key=lambda row: nan_last(-row["kl"]))
        tables.append(_group_table("token type", "By type of token", types, has_losses))
    sequences = [row | {"group": row["sequence"]} for row in figures.get("sequences", ())]
    if len(sequences) > 1:
        sequences.sort(key=lambda row: nan_last(-row["kl"]))
        highest = sequences[:_MAX_SEQUENCES]
        tables.append(_group_table("sequence", "Sequences of the highest divergence", highest, has_losses))
    return [table for table in tables if table.rows]


def _group_table(head: str, title: str, rows: list[dict[str, Any]], has_losses: bool) -> Table:
    """Table of groups of tokens, with standard errors where these are known."""
    # heads are keys of a dict, so the second ± has blanks around it
    formats = {head: "{group}", "tokens": "{count:,}", "mean KLD": "{kl:.6f}", "±": "{kl_stderr:.6f}"}
    formats |= {"ln(PPL ratio)": "{loss_difference:+.5f}", " ± ": "{loss_difference_stderr:.5f}"}
    formats |= {"mean Δp": "{percent_delta_p:+.3f} %", "same top": "{percent_same_top:.2f} %"}
    if rows and "kl_stderr" not in rows[0]:
        del formats["±"], formats[" ± "]
    if not has_losses:
        formats = {name: cell for name, cell in formats.items() if name not in ("ln(PPL ratio)", " ± ", "mean Δp")}
    if rows and "file" in rows[0]:  # sequences have the numbers of their file
        formats = {"file": "{file}"} | formats
    percents = [{f"percent_{name}": 100 * row[name] for name in ("delta_p", "same_top")} for row in rows]
    return table_of(title, formats, [row | percent for row, percent in zip(rows, percents, strict=True)])


def candidate_table(comparisons: Any) -> Table:
    """Table of the base, and of several candidates by their divergence; columns that are empty are left out."""
    unit = unit_of_bytes(max((one._about.get("size") or 0 for one in comparisons.values()), default=0))
    lines = [_candidate_cells(name, one, *unit) for name, one in comparisons._ranked()]
    of_base = {(one.count, one.base_perplexity) for one in comparisons.values()}
    first = next(iter(comparisons.values()))
    if len(of_base) == 1 and not math.isnan(first.base_perplexity):  # responses may be of other tokens each
        cells = {"model": "base", "PPL": f"{first.base_perplexity:.6g}"}
        cells |= {" ± ": known_error(first.base_perplexity_stderr, f"{first.base_perplexity_stderr:.3g}")}
        lines.insert(0, dict.fromkeys(lines[0], "") | cells)
    heads = [head for head in lines[0] if any(line[head] for line in lines)]
    return Table([tuple(line[head] for head in heads) for line in lines], tuple(head.strip() for head in heads))


def _candidate_cells(name: str, one: Any, unit: str, scale: float) -> dict[str, str]:
    """The figures of a candidate, by the head of their column; those of errors differ by the blanks around them."""
    figures, size = vars(one), one._about.get("size")
    kl, words = ("mean_kl", "KLD") if "mean_kl" in figures else ("mean_kl_bound", "KLD is at least")
    quantiles = figures[kl.replace("mean_", "") + "_quantiles"]
    left_out = figures.get("n_infinite", 0) + figures.get("n_nan", 0)

    def error(name: str, form: str, factor: float = 1) -> str:
        return known_error(figures[f"{name}_stderr"], form.format(factor * figures[f"{name}_stderr"]))

    cells = {
        "model": name,
        "size": "" if size is None else f"{size / scale:.3g} {unit}",
        "PPL": f"{one.perplexity:.6g}",
        " ± ": error("perplexity", "{:.3g}"),
        f"mean {words}": f"{figures[kl]:.6f}",
        "±": error(kl, "{:.6f}"),
        f"99.9% {words}": f"{quantiles[0.999]:.3g}",
        **{f"mean {DIVERGENCES[name]}": f"{figures[f'mean_{name}']:.6f}" for name in further_of(one)},
        "PPL ratio": f"{one.perplexity_ratio:.5f}",
        "  ±  ": error("perplexity_ratio", "{:.5f}"),
        "same top": f"{100 * one.same_top:.2f} %",
        "   ±   ": error("same_top", "{:.2f} %", 100),
        "RMS Δp": f"{100 * one.rms_delta_p:.2f} %",
        "not finite": f"{left_out:,}" if left_out else "",
        "KLD where finite": f"{figures['finite_mean_kl']:.6f}" if left_out else "",
    }
    if not figures.get("has_targets", True):
        cells |= dict.fromkeys(("PPL", "PPL ratio", "RMS Δp"), "")
    return cells


# -- responses ---------------------------------------------------------------------------------------------------------


def responses_shown(comparisons: Mapping[str, Any]) -> Shown:
    """What people see of one or several `ResponseComparison` with one base."""
    first, *others = comparisons.values()
    basis = "errors by response" if first.is_clustered else "taken as independent"
    counts = f"{count_of(first.count, 'token')} of {count_of(first.n_sequences, 'response')}"
    rounded = [words for words in (first.rounding, first.base_rounding) if words and not others]
    note = f"{counts} ({first.part}), {basis}" + (f"; log-probabilities: {' vs '.join(rounded)}" if rounded else "")
    note = "; ".join(filter(None, (note, interval_note(first.interval_factor))))
    tables = [candidate_table(comparisons)] if others else response_tables(first)
    return Shown(title_of(comparisons), note, tables, signature_of_all(comparisons))


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
        ("Positions where both list further tokens", f"{comparison.n_bounded:,}", f"of {comparison.count:,}"),
    ]
    probabilities = _probabilities(comparison)
    label, share, error = probabilities.pop()
    if comparison.n_top_known:
        known = known_of(comparison.n_top_known, comparison.count)
        probabilities.append((label, share, f"{error}  {known}".rstrip()))
    tables = [
        Table([(label, f"{n:,}") for label, n in left_out.items() if n], title="Left out"),
        Table(_perplexities(comparison), title="Perplexity statistics"),
        Table(divergences, title="Lower bound of the KL divergence, from the classes that both list"),
        Table(probabilities, title="Token probability statistics"),
    ]
    return [table for table in tables if table.rows]


# -- scores and responses ----------------------------------------------------------------------------------------------


def _perplexities(comparison: Any) -> list[tuple[str, ...]]:
    """Rows of perplexities; none without targets."""
    if not getattr(comparison, "has_targets", True):
        return []
    return [
        _nats(comparison, "Mean PPL(Q)", "perplexity"),
        _nats(comparison, "Mean PPL(base)", "base_perplexity"),
        ("Cor(ln(PPL(Q)), ln(PPL(base)))", f"{100 * comparison.correlation:6.2f} %", ""),
        _nats(comparison, "Mean ln(PPL(Q)/PPL(base))", "log_perplexity_ratio"),
        _nats(comparison, "Mean PPL(Q)/PPL(base)", "perplexity_ratio"),
        _nats(comparison, "Mean PPL(Q)-PPL(base)", "perplexity_difference"),
    ]


def _probabilities(comparison: Any) -> list[tuple[str, ...]]:
    """Rows of changes of probability, if there are targets, and of the most likely classes."""
    if not getattr(comparison, "has_targets", True):
        return [_percent(comparison, "Same top p", "same_top")]
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
    notes = {
        fraction: f"95 % interval {form(low).strip()} to {form(high).strip()}"
        for fraction, (low, high) in (intervals or {}).items()
        if not math.isnan(low)
    }
    return [
        (_quantile_label(fraction, what), form(value), notes.get(fraction, "")) for fraction, value in quantiles.items()
    ]


def _quantile_label(fraction: float, what: str) -> str:
    """What a quantile is called."""
    words = {1.0: "Maximum", 0.5: "Median", 0.0: "Minimum"}
    return f"{words.get(fraction, f'{100 * fraction:4.1f}%'):<7} {what}"


def head_row(head: dict[str, Any] | None) -> tuple[str, str]:
    """Cells that say how logits were made of hidden states: the weight, and the transform."""
    if head is None:
        return "", ""
    notes = [head["note"], *([] if head["norm"] is None else [f"after {head['norm']}"])]
    return head["weight"] + (" + bias" if head["has_bias"] else ""), ", ".join(notes)


def known_of(known: int, count: int) -> str:
    """Note on how many tokens of all something is known; empty if it is of all."""
    return "" if known == count else f"of {count_of(known, 'token')} where it is known"


# -- the noise ---------------------------------------------------------------------------------------------------------


def _changes(one: Any) -> dict[tuple[str, float | None], float]:
    """Figures that are 0 where nothing changed, by their name and, of quantiles, their fraction."""
    figures, divergence = vars(one), one._divergence
    changes: dict[tuple[str, float | None], float] = {}
    for name in (
        f"mean_{divergence}", f"{divergence}_quantiles", "log_perplexity_ratio", "perplexity_difference",
        "mean_delta_p", "delta_p_quantiles", "rms_delta_p",
    ):  # fmt: skip
        values = figures[name] if isinstance(figures[name], dict) else {None: figures[name]}
        changes |= {(name, fraction): abs(value) for fraction, value in values.items()}
    changes |= {(f"mean_{name}", None): figures[f"mean_{name}"] for name in further_of(one)}
    return changes | {("same_top", None): 1 - one.same_top}


def noise_multiples(one: Any, noise: Any) -> dict[tuple[str, float | None], float]:
    """The size of each change over that of the noise; nan where both are 0."""
    changes, of_noise = _changes(one), _changes(noise)
    return {
        key: change / of_noise[key] if of_noise[key] else math.nan if not change else math.inf
        for key, change in changes.items()
    }


def nested(changes: Mapping[tuple[str, float | None], float]) -> dict[str, Any]:
    """Numbers by name, in which quantiles are by fraction, as text."""
    found: dict[str, Any] = {}
    for (name, fraction), value in changes.items():
        if fraction is None:
            found[name] = value
        else:
            found.setdefault(name, {})[f"{fraction:g}"] = value
    return found


def noise_table(comparisons: Mapping[str, Any], noise: Any) -> Table:
    """Table of the changes of a second run of the base, and of each candidate, also as multiples of the former."""
    kl = "KLD" if noise._divergence == "kl" else "KLD is at least"
    labels = {
        f"mean_{noise._divergence}": f"Mean    {kl}", f"{noise._divergence}_quantiles": kl,
        "log_perplexity_ratio": "|ln(PPL ratio)|", "perplexity_difference": "|PPL difference|",
        "mean_delta_p": "Mean    |Δp|", "delta_p_quantiles": "|Δp|", "rms_delta_p": "RMS Δp", "same_top": "Other top p",
    }  # fmt: skip
    labels |= {f"mean_{name}": f"Mean    {DIVERGENCES[name]}" for name in further_of(noise)}
    of_noise = _changes(noise)
    columns = [(_changes(one), noise_multiples(one, noise)) for one in comparisons.values()]
    rows = []
    for key, value in of_noise.items():
        name, fraction = key
        label = labels[name] if fraction is None else _quantile_label(fraction, labels[name])
        row = [label, f"{value:.4g}"]
        for changes, multiples in columns:
            row += f"{changes[key]:.4g}", known_error(multiples[key], f"{multiples[key]:.3g}")
        rows += [] if math.isnan(value) else [(*row,)]
    title = f"Beside the noise of a second run of the base, {noise._about.get('file', 'noise')}"
    if not any(of_noise.values()):
        title += ", which is equal to it and shows none"
    heads = [head for name in comparisons for head in (name, "multiple")]
    return Table(rows, ("change", "noise", *heads), title)


# -- samples -----------------------------------------------------------------------------------------------------------


def samples_shown(comparisons: Mapping[str, Any]) -> Shown:
    """What people see of one or several `SampleComparison` with one base."""
    note = _samples_note(next(iter(comparisons.values())))
    return Shown(title_of(comparisons), note, sample_tables(comparisons), signature_of_all(comparisons))


def _samples_note(comparison: Any) -> str:
    """How many samples there are, and what errors take as independent."""
    by = count_of(comparison.n_clusters, "document" if comparison.cluster is None else "group")
    by += "" if comparison.cluster is None else f" of {comparison.cluster}"
    note = f"{count_of(comparison.count, 'sample')}, errors by {by}"
    if comparison.n_clusters > 1:
        note += guess_note(student_quantile(0.025, comparison.n_clusters - 1))
    if comparison.n_other_prompts:
        note += f"; {comparison.n_other_prompts:,} prompts differ"
    return note


def metric_shown(metric: Any) -> Shown:
    """What people see of a `SampleMetric`."""
    note = f"{count_of(metric.count, 'sample')}, errors by {metric.n_clusters:,} documents or groups"
    return Shown(metric.name, note, _metric_tables([({}, metric, False)], None))


def sample_tables(comparisons: Mapping[str, Any]) -> list[Table]:
    """Tables of metrics, flips and equivalence, of one or several models, and of what is not compared."""
    several = len(comparisons) > 1
    metrics = [
        ({"model": model} if several else {}, metric, of_tasks == "groups")
        for model, one in comparisons.items() for of_tasks in ("metrics", "groups") for metric in vars(one)[of_tasks]
    ]  # fmt: skip
    left_out = [item for one in comparisons.values() for item in one.left_out.items()]
    notes = [note for one in comparisons.values() for note in (*one.runs, *one.notes)]
    others = [
        Table(list(dict.fromkeys(left_out)), (), "left out"),
        Table([(note,) for note in dict.fromkeys(notes)], (), "notes"),
    ]
    tables = _metric_tables(metrics, next(iter(comparisons.values())).margin)
    return tables + [table for table in others if table.rows]


def _metric_tables(metrics: list[tuple[dict[str, str], Any, bool]], margin: float | None) -> list[Table]:
    """Tables of metrics, of ratios, flips and equivalence.

    Each metric comes with the first cells of its rows, and with whether it is of a group of tasks.
    """
    several = len({metric.filter for _, metric, _ in metrics}) > 1
    rows = []
    for place, metric, is_group in metrics:
        task = {} if metric.task is None else {"task": metric.task}
        label = f"{metric.name} ({metric.filter})" if several else metric.name
        rows.append((place | task | {"metric": label}, metric, is_group))
    is_clustered = any(metric.count > metric.n_clusters for _, metric, _ in metrics)
    flips = "flips, with McNemar's exact test" + (", as if samples were independent" if is_clustered else "")
    equivalence = "equivalence" + (f" within {margin}" if margin else "") + ", by two one-sided tests at 5 %"
    tables = [
        _table_of_cells([_difference(place, one) for place, one, is_group in rows if not is_group]),
        _table_of_cells([_difference(place, one) for place, one, is_group in rows if is_group], "groups of tasks"),
        _table_of_cells(
            [place | _ratio(one) for place, one, _ in rows if one.ratio_interval], "ratios of perplexities"
        ),
        _table_of_cells([place | _flips(one) for place, one, _ in rows if one.mcnemar_p is not None], flips),
        _table_of_cells(
            [place | _equivalence(one) for place, one, _ in rows if one.equivalence_p is not None], equivalence
        ),
    ]
    return [table for table in tables if table.rows]


def _table_of_cells(rows: list[dict[str, str]], title: str = "") -> Table:
    """Table of rows, each of which maps the heads of columns to cells."""
    return Table([tuple(row.values()) for row in rows], tuple(rows[0]) if rows else (), title)


def _difference(place: dict[str, str], metric: Any) -> dict[str, str]:
    """Cells of a metric, after those of its place: its value for each model, and the difference."""
    low, high = metric.difference_interval
    return place | {
        "metric": place["metric"] + (", from responses" if metric.is_derived else ""),
        "base": f"{metric.base:.6g}",
        "other": f"{metric.other:.6g}",
        "difference": f"{metric.difference:+.4g}",
        "±": known_error(metric.difference_stderr, f"{metric.difference_stderr:.3g}"),
        "95 % interval": known_error(low, f"{low:+.4g} to {high:+.4g}"),
    }


def _ratio(metric: Any) -> dict[str, str]:
    """Cells of a ratio of perplexities."""
    low, high = metric.ratio_interval or (0.0, 0.0)
    return {
        "ln(other/base)": f"{metric.log_ratio:+.4g}",
        "±": known_error(low, f"{metric.log_ratio_stderr:.3g}"),
        "other/base": f"{metric.ratio:.6g}",
        "95 % interval": known_error(low, f"{low:.5g} to {high:.5g}"),
    }


def _flips(metric: Any) -> dict[str, str]:
    """Cells that count the answers that only one of the models got right."""
    return {
        f"right {_ARROW} wrong": f"{metric.right_to_wrong:,}",
        f"wrong {_ARROW} right": f"{metric.wrong_to_right:,}",
        "p": f"{metric.mcnemar_p:.4g}",
    }


def _equivalence(metric: Any) -> dict[str, str]:
    """Cells of a test of equivalence."""
    note = ""
    if metric.discordance_bound is not None:
        note = f"no sample differs, so at most {100 * metric.discordance_bound:.3g} % do (95 % confidence)"
    verdict = {True: "yes", False: "no", None: "not known"}[metric.is_equivalent]
    return {"p": f"{metric.equivalence_p:.4g}", "equivalent": verdict, "note": note}
