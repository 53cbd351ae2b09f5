"""The tables that show comparisons of scores, of responses and of samples."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tokenloss._comparison.paired import DELTA_P_QUANTILES, KL_QUANTILES, nan_last
from tokenloss._comparison.tiers import power_and_tiers
from tokenloss._core.arguments import DIVERGENCES, FURTHER_DIVERGENCES
from tokenloss._core.result import Shown, Table
from tokenloss._core.rows import Row, quantile_label, table, table_of_several
from tokenloss._core.signature import joined_signature
from tokenloss._core.text import count_of, unit_of_bytes
from tokenloss._statistics.distributions import student_quantile
from tokenloss._statistics.groups import label_text
from tokenloss._statistics.ratio import guess_note, interval_note
from tokenloss._statistics.tables import CALIBRATIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_MAX_GROUPS = 40  # that tables list
_MAX_SEQUENCES = 5  # those of the highest divergence that are listed
_ARROW = "\N{RIGHTWARDS ARROW}"


def title_of(comparisons: Mapping[str, Any], are_short: bool = False) -> str:
    """The name of a candidate, or the number of candidates, and the name of their base, without folders if short."""
    first, *others = comparisons.values()
    name, base = first._about.get("name", "model"), first._about.get("base", "base")
    if are_short:
        base = Path(base).name or base
        name = Path(name).name or name if name == first._about.get("file") else name
    return f"{f'{len(comparisons)} models' if others else name} vs {base}"


def shown_of(comparisons: Mapping[str, Any], notes: Iterable[str], tables: Sequence[Table]) -> Shown:
    """The title, the notes that are not empty, and the tables of comparisons, with their signature."""
    factor = getattr(next(iter(comparisons.values())), "interval_factor", 0.0)  # samples have none
    notes = filter(None, (*notes, interval_note(factor)))
    signature = joined_signature(one.signature for one in comparisons.values())
    tables = [*tables, *power_and_tiers(comparisons, getattr(comparisons, "detect", None))]
    return Shown(title_of(comparisons), "; ".join(notes), tables, signature)


# -- scores and responses ----------------------------------------------------------------------------------------------


def _nats(label: str, field: str, when: str = "") -> Row:
    """A row of a metric and its error, as llama.cpp prints them."""
    return Row(label, field, "{:10.6f}", ("± {stderr:10.6f}",), when=when)


def _percent(label: str, field: str, when: str = "") -> Row:
    """A row of a fraction and its error, in percent."""
    return Row(label, field, "{:7.3f %}", ("± {stderr:6.3f %}",), when=when)


# in the layout and the words of llama.cpp's perplexity tool, by the titles of tables
_PERPLEXITIES = (
    _nats("Mean PPL(Q)", "perplexity", "has_targets"),
    _nats("Mean PPL(base)", "base_perplexity", "has_targets"),
    Row("Cor(ln(PPL(Q)), ln(PPL(base)))", "correlation", "{:6.2f %}", when="has_targets"),
    _nats("Mean ln(PPL(Q)/PPL(base))", "log_perplexity_ratio", "has_targets"),
    _nats("Mean PPL(Q)/PPL(base)", "perplexity_ratio", "has_targets"),
    _nats("Mean PPL(Q)-PPL(base)", "perplexity_difference", "has_targets"),
)
_PROBABILITIES = (
    _percent("Mean    Δp", "mean_delta_p", "has_targets"),
    Row("Δp", "delta_p_quantiles", "{:7.3f %}", when="has_targets", each=DELTA_P_QUANTILES),
    _percent("RMS Δp", "rms_delta_p", "has_targets"),
)
_SAME_TOP = _percent("Same top p", "same_top")
_PARITY_ROWS = (
    Row("Bitwise identical rows", "n_identical", "{:10,}", ("of {count:,}",)),
    Row("Largest |Δ ln p|", "max_abs_logprob", "{:10.6f}", when="has_targets"),
    Row("Flips of the top class that are ties", "tied_flips", "{:10,}"),
    Row("Decisive flips", "decisive_flips", "{:10,}"),
    Row("Flips without a margin", "unknown_flips", "{:10,}", when="unknown_flips"),
    Row("Verdict", "parity", "{:>10}", ("{parity_reason}",), when="count"),
)
_SCORE_ROWS: dict[str, tuple[Row, ...]] = {
    "Perplexity statistics": _PERPLEXITIES,
    "KL divergence statistics": (
        _nats("Mean    KLD", "mean_kl"),
        Row("    error from the draws", "draws_stderr", "{known:10.6f}", when="tail"),
        _nats("Mean    KLD where finite", "finite_mean_kl", "n_not_finite"),
        Row("Infinite tokens", "n_infinite", "{:10,}", ("of {count:,}",), when="n_infinite"),
        Row("Tokens that are nan", "n_nan", "{:10,}", ("of {count:,}",), when="n_nan"),
        Row("KLD", "kl_quantiles", "{:10.6f}", ("95 % interval {low:.6f} to {high:.6f}",), each=KL_QUANTILES),
    ),
    "Further divergences": tuple(
        row
        for name in FURTHER_DIVERGENCES
        for row in (
            _nats(f"Mean    {DIVERGENCES[name]}", f"mean_{name}"),
            Row(DIVERGENCES[name], f"{name}_quantiles", "{:10.6f}", each=(1.0, 0.99, 0.5)),
        )
    ),
    "Token probability statistics": (*_PROBABILITIES, _SAME_TOP),
    "Parity": _PARITY_ROWS,
    "Probability of the classes that are left out": (
        Row("Mean of base", "base_left_out", "{:7.4g %}"),
        Row("Mean of Q", "left_out", "{:7.4g %}"),
    ),
}
_RESPONSE_ROWS: dict[str, tuple[Row, ...]] = {
    "Left out": (
        Row("Tokens without a log-probability", "n_without_number", "{:,}", when="n_without_number"),
        Row("Tokens with a sentinel", "n_sentinels", "{:,}", when="n_sentinels"),
        Row("Requests that failed", "n_skipped", "{:,}", when="n_skipped"),
    ),
    "Perplexity statistics": _PERPLEXITIES,
    "Lower bound on the KL divergence, from the classes that both list": (
        _nats("Mean    KLD is at least", "mean_kl_bound"),
        Row("KLD is at least", "kl_bound_quantiles", "{:10.6f}", each=KL_QUANTILES),
        Row("Mean probability of these classes", "mean_mass", "{:7.3f %}", ("base {mean_base_mass:.3f %}",)),
        Row("Positions where both list further tokens", "n_bounded", "{:,}", ("of {count:,}",)),
    ),
    "Token probability statistics": (
        *_PROBABILITIES,
        _SAME_TOP._replace(notes=("± {stderr:6.3f %}{known_note}",), otherwise="{known_note}", when="n_top_known"),
    ),
    "Parity": (_PARITY_ROWS[0]._replace(label="Rows with the same log-probabilities"), *_PARITY_ROWS[1:]),
}


def _sketch_rows(top: int, tail: int) -> dict[str, tuple[Row, ...]]:
    """The rows of a comparison whose base is a sketch with these numbers of likely and drawn classes."""
    words = f"estimated from {top} classes and {tail} draws" if tail else f"lower bound from {top} classes"
    rows = {}
    for title, own in _SCORE_ROWS.items():
        if "divergence" in title:
            title = f"{title}, {words}"
            if not tail:
                own = tuple(row._replace(label=f"{row.label} is at least") for row in own)
        rows[title] = own
    return rows


_GROUP = (
    Row("tokens", "count", "{:,}"),
    Row("mean KLD", "kl", "{:.6f}"),
    Row("±", "kl_stderr", "{known:.6f}"),
    Row("mean KLD is at least", "kl_bound", "{:.6f}"),
    Row("±", "kl_bound_stderr", "{known:.6f}"),
    Row("ln ratio", "difference", "{:+.5f}"),
    Row("±", "difference_stderr", "{known:.5f}"),
    Row("KL, by k3", "k3"),
    Row("±", "k3_stderr", "{known:.3g}"),
    Row("ln(PPL ratio)", "loss_difference", "{:+.5f}", when="has_targets"),
    Row("±", "loss_difference_stderr", "{known:.5f}", when="has_targets"),
    Row("mean Δp", "delta_p", "{:+.3f %}", when="has_targets"),
    Row("same top", "same_top", "{:.2f %}"),
    Row("±", "same_top_stderr", "{known:.2f %}"),
)


def _columns_of(divergence: str, words: str) -> tuple[Row, ...]:
    """Columns of the table of several candidates, for the divergence that they have."""
    return (
        Row("model", "name"),
        Row("size", "size"),
        Row("PPL", "perplexity", when="has_targets"),
        Row("±", "perplexity", "{stderr:.3g}"),
        Row(f"mean {words}", f"mean_{divergence}", "{:.6f}"),
        Row("±", f"mean_{divergence}", "{stderr:.6f}"),
        Row(f"99.9% {words}", f"{divergence}_quantiles", "{:.3g}", each=(0.999,)),
        *(Row(f"mean {DIVERGENCES[name]}", f"mean_{name}", "{:.6f}") for name in FURTHER_DIVERGENCES),
        Row("PPL ratio", "perplexity_ratio", "{:.5f}", when="has_targets"),
        Row("±", "perplexity_ratio", "{stderr:.5f}"),
        Row("same top", "same_top", "{:.2f %}"),
        Row("±", "same_top", "{stderr:.2f %}"),
        Row("RMS Δp", "rms_delta_p", "{:.2f %}", when="has_targets"),
        Row("not finite", "n_not_finite", "{:,}", when="n_not_finite"),
        Row("KLD where finite", "finite_mean_kl", "{:.6f}", when="n_not_finite"),
    )


_PARITY = (
    Row("model", "name"),
    Row("same bits", "n_identical", "{:,}"),
    Row("max |Δ ln p|", "max_abs_logprob", "{known:.3g}", when="has_targets"),
    Row("ties", "tied_flips", "{:,}"),
    Row("decisive flips", "decisive_flips", "{:,}"),
    Row("unknown", "unknown_flips", "{:,}", when="unknown_flips"),
    Row("verdict", "parity"),
)  # of several candidates
_COLUMNS = {"kl": _columns_of("kl", "KLD"), "kl_bound": _columns_of("kl_bound", "KLD is at least")}


def scores_shown(comparisons: Any) -> Shown:
    """The title and tables of one or several `Comparison` with one base."""
    first, *others = comparisons.values()
    kinds = [first._about[name] for name in ("kind", "base_kind")[bool(others) :] if name in first._about]
    by = count_of(first.n_sequences, "sequence")
    basis = f"errors clustered by {by}" if first.is_clustered else "assumed independent"
    note = f"{count_of(first.count, 'token')}, {basis}, {first.definitions} definitions"
    note += "" if first.temperature == 1 else f", temperature {first.temperature:g}"
    note += "" if first.temperature else " (greedy; losses and divergences at 1)"
    if first.sketch is not None:
        top, tail = first.sketch["top"], first.sketch["tail"]
        note += f"; divergences {'estimated' if tail else 'bounded'} from {top} classes and {tail} draws"
    note += "" if first.has_targets else "; without targets, which losses and perplexities need"
    tables = comparison_tables(first) + group_tables(first._facts())
    if others:
        tables = [candidate_table(comparisons), _parity_table(comparisons)]
    heads = [("base", first._about.get("base_head"))]
    heads += [(one, comparison._about.get("head")) for one, comparison in comparisons.items()]
    rows = [(one, *head_cells(head)) for one, head in heads if head]
    tables += [Table(rows, title="Logits of hidden states")] if rows else []
    if first.calibration is not None:
        ranked = comparisons._ranked() if others else comparisons.items()
        models = {"base": first.base_calibration} | {name: one.calibration for name, one in ranked}
        items = [({"name": name}, one) for name, one in models.items()]
        tables.append(table_of_several(CALIBRATIONS, items, "Calibration", keep_empty=False))
    tables += tables_by(comparisons)
    return shown_of(comparisons, (note, " vs ".join(kinds)), tables)


def _parity_table(comparisons: Any) -> Table:
    """The table of the parity of several candidates."""
    parities = [({"name": name}, one._statistics()) for name, one in comparisons._ranked()]
    return table_of_several(_PARITY, parities, "Parity", keep_empty=False)


def responses_shown(comparisons: Mapping[str, Any]) -> Shown:
    """The title and tables of one or several `ResponseComparison` with one base."""
    first, *others = comparisons.values()
    basis = "errors clustered by response" if first.is_clustered else "assumed independent"
    counts = f"{count_of(first.count, 'token')} of {count_of(first.n_sequences, 'response')}"
    rounded = [words for words in (first.rounding, first.base_rounding) if words and not others]
    note = f"{counts} ({first.part}), {basis}" + (f"; log-probabilities: {' vs '.join(rounded)}" if rounded else "")
    tables = comparison_tables(first)
    if others:
        tables = [candidate_table(comparisons), _parity_table(comparisons)]
    return shown_of(comparisons, (note,), tables + tables_by(comparisons))


def comparison_tables(comparison: Any) -> list[Table]:
    """The tables of a comparison of scores or of responses."""
    rows: Mapping[str, tuple[Row, ...]] = _SCORE_ROWS
    sketch = getattr(comparison, "sketch", None)
    values: dict[str, Any] = {"n_not_finite": _n_not_finite(comparison)}
    if sketch is not None:
        rows = _sketch_rows(sketch["top"], sketch["tail"])
        values |= {"tail": sketch["tail"], "draws_stderr": sketch["draws_stderr"]["kl"]}
    if comparison._divergence != "kl":
        known = known_of(comparison.n_top_known, comparison.count)
        rows, values = _RESPONSE_ROWS, {"known_note": f"  {known}" if known else ""}
    tables = [table(own, values, comparison._statistics(), title=title) for title, own in rows.items()]
    return [one for one in tables if one.rows]


def _n_not_finite(comparison: Any) -> int:
    """The number of tokens whose values are infinite or nan."""
    return getattr(comparison, "n_infinite", 0) + getattr(comparison, "n_nan", 0)


def group_tables(facts: dict[str, Any]) -> list[Table]:
    """Tables that show where a model differs from its base: by confidence, by type of token, by sequence."""
    has_targets = facts["has_targets"]
    bins = [row | {"group": f"{row['group']:.1f} to {row['group'] + 0.2:.1f}"} for row in facts["by_confidence"]]
    groups = [("base's top p", "By the base's confidence", bins)]
    by_divergence = sorted(facts.get("by_token_type") or (), key=lambda row: nan_last(-row["kl"]))
    groups.append(("token type", "By type of token", by_divergence))
    if len(sequences := facts.get("sequences", ())) > 1:
        sequences = sorted(sequences, key=lambda row: nan_last(-row["kl"]))[:_MAX_SEQUENCES]
        sequences = [row | {"group": row["sequence"]} for row in sequences]
        groups.append(("sequence", "Sequences with the highest divergence", sequences))
    others = {"has_targets": has_targets}
    tables = [_table_of_groups(rows, _GROUP, title, others, head) for head, title, rows in groups]
    return [one for one in tables if one.rows]


def _table_of_groups(
    groups: Iterable[Mapping[str, Any]], columns: tuple[Row, ...], title: str, others: object, head: str = "group"
) -> Table:
    """A table with a row for each group, without empty columns."""
    columns = (Row("file", "file"), Row(head, "group", "{}"), *columns)  # sequences have the numbers of their file
    return table_of_several(columns, [(others, row) for row in groups], title, keep_empty=False)


def table_by(
    by: str,
    groups: Sequence[Mapping[str, Any]],
    columns: tuple[Row, ...] = (_GROUP[0], Row("sequences", "n_sequences", "{:,}"), *_GROUP[1:]),
    name: str = "",
    others: object = None,
) -> Table:
    """The table of the groups of `by`, with at most `_MAX_GROUPS` rows."""
    title = f"By {by}" + f": {name}" * bool(name)
    title += f" (the first {_MAX_GROUPS} of {len(groups):,} groups)" * (len(groups) > _MAX_GROUPS)
    rows: list[dict[str, Any]] = []
    for group in groups[:_MAX_GROUPS]:
        low, high = group.get("perplexity_interval") or (math.nan, math.nan)
        interval = {} if math.isnan(low) else {"interval": f"{low:.5g} to {high:.5g}"}
        rows.append({**group, **interval, "group": label_text(by, group["group"])})
    return _table_of_groups(rows, columns, title, others)


def tables_by(comparisons: Mapping[str, Any]) -> list[Table]:
    """The table of the groups of each candidate, if groups were asked for."""
    known = [(name, one, one._about) for name, one in comparisons.items() if "groups" in one._about]
    return [
        table_by(about["by"], about["groups"], name=name * (len(known) > 1),
                 others={"has_targets": getattr(one, "has_targets", True)})
        for name, one, about in known
    ]  # fmt: skip


def candidate_table(comparisons: Any) -> Table:
    """The table of the base and of several candidates, ranked by divergence, without empty columns."""
    ranked, first = comparisons._ranked(), next(iter(comparisons.values()))
    sizes = size_texts(one for _, one in ranked)
    items: list[tuple[object, ...]] = [
        ({"name": name, "size": size, "n_not_finite": _n_not_finite(one)}, one._statistics())
        for (name, one), size in zip(ranked, sizes, strict=True)
    ]
    bases = {(one.count, one.base_perplexity) for one in comparisons.values()}
    if len(bases) == 1 and not math.isnan(first.base_perplexity):  # responses may be of other tokens each
        items.insert(0, ({"name": "base", "perplexity": first.base_perplexity},))
    columns = _COLUMNS[first._divergence]
    if first._is_lower_bound and first._divergence == "kl":
        columns = _columns_of("kl", "KLD is at least")
    return table_of_several(columns, items, keep_empty=False)


def size_texts(comparisons: Iterable[Any]) -> list[str | None]:
    """The size of each model's file, in one unit; None if unknown."""
    sizes = [one._about.get("size") for one in comparisons]
    unit, scale = unit_of_bytes(max((size or 0 for size in sizes), default=0))
    return [None if size is None else f"{size / scale:.3g} {unit}" for size in sizes]


def head_cells(head: dict[str, Any]) -> tuple[str, str]:
    """Cells that show how logits were computed from hidden states: the weight, and the transform."""
    notes = [head["note"], *([] if head["norm"] is None else [f"after {head['norm']}"])]
    return head["weight"] + (" + bias" if head["has_bias"] else ""), ", ".join(notes)


def known_of(known: int, count: int) -> str:
    """A note on the number of tokens for which something is known; empty if it is known for all."""
    return "" if known == count else f"of {count_of(known, 'token')} where it is known"


# -- the noise ---------------------------------------------------------------------------------------------------------


def _change_rows(divergence: str, words: str) -> tuple[Row, ...]:
    """Rows of statistics that differ from 0 if a second run of the base changes something."""
    return (
        Row(f"Mean    {words}", f"mean_{divergence}"),
        Row(words, f"{divergence}_quantiles", each=KL_QUANTILES),
        Row("|ln(PPL ratio)|", "log_perplexity_ratio"),
        Row("|PPL difference|", "perplexity_difference"),
        Row("Mean    |Δp|", "mean_delta_p"),
        Row("|Δp|", "delta_p_quantiles", each=DELTA_P_QUANTILES),
        Row("RMS Δp", "rms_delta_p"),
        *(Row(f"Mean    {DIVERGENCES[name]}", f"mean_{name}") for name in FURTHER_DIVERGENCES),
        Row("Other top p", "same_top"),
    )


_CHANGES = {"kl": _change_rows("kl", "KLD"), "kl_bound": _change_rows("kl_bound", "KLD is at least")}


def _changes(one: Any) -> dict[tuple[str, float | None], float]:
    """The sizes of changes by field and, for quantiles, fraction."""
    changes: dict[tuple[str, float | None], float] = {}
    for row in _CHANGES[one._divergence]:
        value = one._statistics().get(row.field)
        values = value if row.each else {None: value}
        changes |= {(row.field, fraction): abs(value) for fraction, value in values.items() if value is not None}
    return changes | {("same_top", None): 1 - one.same_top}


def noise_multiples(one: Any, noise: Any) -> dict[tuple[str, float | None], float]:
    """The ratio of each change to the same change of the noise; nan where both are 0."""
    noise_changes = _changes(noise)
    return {
        key: change / noise_changes[key] if noise_changes[key] else math.nan if not change else math.inf
        for key, change in _changes(one).items()
    }


def nested(changes: Mapping[tuple[str, float | None], float]) -> dict[str, Any]:
    """Numbers by name, in which quantiles are by fraction, as text."""
    values: dict[str, Any] = {}
    for (name, fraction), value in changes.items():
        values[name] = value if fraction is None else values.get(name, {}) | {f"{fraction:g}": value}
    return values


def noise_table(comparisons: Mapping[str, Any], noise: Any) -> Table:
    """The table of changes in a second run of the base and in each candidate, also as multiples of the former."""
    labels = {row.field: row.label for row in _CHANGES[noise._divergence]}
    noise_changes = _changes(noise)
    columns = [(_changes(one), noise_multiples(one, noise)) for one in comparisons.values()]
    rows = []
    for key, value in noise_changes.items():
        name, fraction = key
        label = labels[name] if fraction is None else quantile_label(fraction, labels[name])
        row = [label, f"{value:.4g}"]
        for changes, multiples in columns:
            row += f"{changes[key]:.4g}", "" if math.isnan(multiples[key]) else f"{multiples[key]:.3g}"
        rows += [] if math.isnan(value) else [(*row,)]
    title = f"Compared with the noise of a second run of the base, {noise._about.get('file', 'noise')}"
    if not any(noise_changes.values()):
        title += ", which is equal to it and shows none"
    heads = [head for name in comparisons for head in (name, "multiple")]
    return Table(rows, ("change", "noise", *heads), title)


# -- samples -----------------------------------------------------------------------------------------------------------


def samples_shown(comparisons: Mapping[str, Any]) -> Shown:
    """The title and tables of one or several `SampleComparison` with one base."""
    first = next(iter(comparisons.values()))
    by = count_of(first.n_clusters, "document" if first.cluster is None else "group")
    by += "" if first.cluster is None else f" of {first.cluster}"
    if first.n_clusters > 1:
        by += guess_note(student_quantile(0.025, first.n_clusters - 1))
    notes = f"{count_of(first.count, 'sample')}, errors clustered by {by}", f"{first.n_other_prompts:,} prompts differ"
    return shown_of(comparisons, notes[: 1 + (first.n_other_prompts > 0)], _sample_tables(comparisons))


_FLIPS = (
    Row(f"right {_ARROW} wrong", "right_to_wrong", "{:,}"),
    Row(f"wrong {_ARROW} right", "wrong_to_right", "{:,}"),
    Row("p", "mcnemar_p", "{:.4g}"),
)
_DIFFERENCES = (
    Row("base", "base"),
    Row("other", "other"),
    Row("difference", "difference", "{:+.4g}"),
    Row("±", "difference", "{stderr:.3g}"),
    Row("95 % interval", "difference", "{low:+.4g} to {high:+.4g}"),
)
_RATIOS = (
    Row("ln(other/base)", "log_ratio", "{:+.4g}"),
    Row("±", "log_ratio", "{stderr:.3g}"),
    Row("other/base", "ratio"),
    Row("95 % interval", "ratio", "{low:.5g} to {high:.5g}"),
)
_EQUIVALENCE = (
    Row("p", "equivalence_p", "{:.4g}"),
    Row("equivalent", "verdict"),
    Row("note", "note"),
)


def metric_shown(metric: Any) -> Shown:
    """The title and tables of a `SampleMetric`."""
    note = f"{count_of(metric.count, 'sample')}, errors clustered by {metric.n_clusters:,} documents or groups"
    power = power_and_tiers({"": SimpleNamespace(metrics=[metric], groups=[])}, None)
    return Shown(metric.name, note, [*_metric_tables([({}, metric, False)], None), *power])


def _sample_tables(comparisons: Mapping[str, Any]) -> list[Table]:
    """Tables of metrics, flips and equivalence for one or several models, and of metrics that are not compared."""
    models = comparisons.items()
    metrics = [
        ({"model": model} if len(models) > 1 else {}, metric, name == "groups")
        for model, one in models for name in ("metrics", "groups") for metric in getattr(one, name)
    ]  # fmt: skip
    left_out = dict.fromkeys(item for _, one in models for item in one.left_out.items())
    notes = dict.fromkeys((note,) for _, one in models for note in (*one.runs, *one.notes))
    others = [Table([*left_out], (), "left out"), Table([*notes], (), "notes")]
    tables = _metric_tables(metrics, next(iter(comparisons.values())).margin)
    return tables + [table for table in others if table.rows]


def _metric_tables(metrics: list[tuple[dict[str, str], Any, bool]], margin: float | None) -> list[Table]:
    """Tables of metrics, of ratios, flips and equivalence.

    Each metric comes with the first cells of its rows, and with whether it is of a group of tasks.
    """
    several = len({metric.filter for _, metric, _ in metrics}) > 1
    rows = []
    for place, metric, is_group in metrics:
        label = f"{metric.name} ({metric.filter})" if several else metric.name
        bound, verdict = metric.discordance_bound, {True: "yes", False: "no", None: "not known"}[metric.is_equivalent]
        note = "" if bound is None else f"no sample differs, so at most {100 * bound:.3g} % do (95 % confidence)"
        values = place | {"metric": label, "origin": ", from responses" * metric.is_derived}
        values |= {"verdict": verdict, "note": note}
        rows.append((values, metric, is_group))
    is_clustered = any(metric.count > metric.n_clusters for _, metric, _ in metrics)
    flips = "flips, with McNemar's exact test" + (", as if samples were independent" if is_clustered else "")
    equivalence = "equivalence" + (f" within {margin}" if margin else "") + ", by two one-sided tests at 5 %"
    chosen = [
        ("", _DIFFERENCES, [row for row in rows if not row[2]]),
        ("groups of tasks", _DIFFERENCES, [row for row in rows if row[2]]),
        ("ratios of perplexities", _RATIOS, [row for row in rows if row[1].ratio is not None]),
        (flips, _FLIPS, [row for row in rows if row[1].mcnemar_p is not None]),
        (equivalence, _EQUIVALENCE, [row for row in rows if row[1].equivalence_p is not None]),
    ]
    tables = []
    for title, columns, items in chosen:
        metric = "{}{origin}" if columns is _DIFFERENCES else "{}"
        columns = (Row("model", "model"), Row("task", "task"), Row("metric", "metric", metric), *columns)
        tables.append(table_of_several(columns, [(values, metric) for values, metric, _ in items], title))
    return [table for table in tables if table.rows]
