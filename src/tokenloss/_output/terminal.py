"""The summary as tables on the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tokenloss._comparison.paired import nan_last
from tokenloss._core.text import count_of, printable, title
from tokenloss._evaluation.sink import Sink
from tokenloss._output.base import compared_title
from tokenloss._output.tables import Table, known_error, show_tables
from tokenloss._statistics.ratio import interval_note

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenloss._comparison.comparison import Comparison
    from tokenloss._comparison.responses import ResponseComparison
    from tokenloss._evaluation.sink import Candidate

_MAX_SHARDS = 20  # that are listed
_MAX_SEQUENCES = 5  # of the highest divergence
_MAX_REASON = 100  # characters


class SummaryTables(Sink):
    """The summary of `tokenloss score`."""

    writes_file = False

    def finish(self, summary: dict[str, Any], result: Any) -> None:
        if summary["kind"] == "responses":
            note = _responses_note(summary)
        else:
            shape = " \N{MULTIPLICATION SIGN} ".join(map(str, summary["shape"]))
            note = f"{summary['kind']}, {shape}, {summary['dtype']}; {summary['targets']}"
        show_tables(title(summary["files"]), note, summary_tables(summary, result.meter._basis()))


class ComparisonTables(Sink):
    """The summary of `tokenloss compare`."""

    writes_file = False

    def finish(self, summary: dict[str, Any], result: Sequence[Candidate]) -> None:
        first = result[0].comparison
        basis = f"errors by {count_of(first.n_sequences, 'sequence')}" if first.is_clustered else "taken as independent"
        intervals = interval_note(first.interval_factor)
        note = f"{count_of(first.count, 'token')}, {basis}, {first.definitions} definitions; "
        if len(result) > 1:
            tables = [candidate_table(result)]
            note += summary["base_kind"]
        else:
            tables = comparison_tables(first) + group_tables(summary)
            note += f"{summary['kind']} vs {summary['base_kind']}"
        note += f"; {intervals}" if intervals else ""
        tables += _head_table(result)
        show_tables(compared_title(summary, result), note, tables)


class ResponseTables(Sink):
    """The summary of `tokenloss compare` of responses."""

    writes_file = False

    def finish(self, summary: dict[str, Any], result: Any) -> None:
        basis = "errors by response" if result.is_clustered else "taken as independent"
        note = (
            f"{count_of(result.count, 'token')} of {count_of(result.n_sequences, 'response')} ({result.part}), {basis}"
        )
        rounded = [words for words in (result.rounding, result.base_rounding) if words]
        note += f"; log-probabilities: {' vs '.join(rounded)}" if rounded else ""
        intervals = interval_note(result.interval_factor)
        note += f"; {intervals}" if intervals else ""
        show_tables(f"{summary['other']} vs {summary['base']}", note, response_tables(result))


def summary_tables(summary: dict[str, Any], basis: str) -> list[Table]:
    """Tables of the figures, of the files and of the highest losses; `basis` is what errors take as independent."""
    low, high = summary["perplexity_interval"]
    # where the lengths of sequences are not known, errors take them as proportional to tokens
    shared = {
        name: ", text in proportion to tokens"
        if summary["is_clustered"] and not summary[f"{name}_are_by_sequence"]
        else ""
        for name in ("bytes", "words")
    }
    low_by_word, high_by_word = summary["word_perplexity_interval"]
    by_word = known_error(low_by_word, f"95 % interval {low_by_word:.5g} to {high_by_word:.5g}{shared['words']}")
    if summary["words"]:
        by_word = "; ".join(filter(None, (by_word, f"words by {summary['words']}")))
    stderr, by_byte, by_sequence = (summary[f"{name}stderr"] for name in ("", "bits_per_byte_", "sequence_loss_"))
    no_error = "nats; no interval from one token" if summary["tokens"] == 1 else "nats"
    rows = [
        ("tokens", f"{summary['tokens']:,}", _left_out(summary)),
        ("nan tokens", f"{summary['n_nan']:,}", f"of {summary['tokens']:,}"),
        ("infinite losses", f"{summary['n_infinite']:,}", f"of {summary['tokens']:,}"),
        ("loss", f"{summary['loss']:.6g}", known_error(stderr, f"± {stderr:.3g} nats ({basis})") or no_error),
        ("perplexity", f"{summary['perplexity']:.6g}", known_error(low, f"95 % interval {low:.5g} to {high:.5g}")),
        ("bits per token", f"{summary['bits_per_token']:.6g}", ""),
        (
            "bits per byte",
            f"{summary['bits_per_byte']:.6g}",
            known_error(by_byte, f"± {by_byte:.3g}{shared['bytes']}"),
        ),
        ("perplexity per word", f"{summary['word_perplexity']:.6g}", by_word),
        (
            "loss per sequence",
            f"{summary['sequence_loss']:.6g}",
            known_error(by_sequence, f"± {by_sequence:.3g} nats") or "nats",
        ),
        ("greedy accuracy", f"{100 * summary['accuracy']:.2f} %", _known_of(summary)),
        ("logits", *_head_row(summary.get("head"))),
        ("failed lines", f"{summary.get('skipped', 0):,}", f"left out; {_first_failed(summary)}"),
        ("short lists", f"{summary.get('lost_tops', 0):,}", "positions list fewer classes than others: texts coincide"),
        ("time", f"{summary['seconds']:.3g} s", f"{summary['gb_per_second']:.3g} GB/s"),
    ]
    known = {"nan tokens": summary["n_nan"], "infinite losses": summary["n_infinite"], "time": summary["seconds"] >= 1,
             "bits per byte": summary["n_bytes"], "perplexity per word": summary["n_words"],
             "loss per sequence": summary["n_sequences"] > 1, "failed lines": summary.get("skipped"),
             "logits": summary.get("head"),
             "greedy accuracy": summary.get("greedy_known", 1), "short lists": summary.get("lost_tops")}  # fmt: skip
    tables = [Table([row for row in rows if known.get(row[0], True)])]
    if 1 < len(summary["shards"]) <= _MAX_SHARDS:
        tables.append(_shard_table(summary["shards"]))
    if summary["n_sequences"] > 1 and summary["highest_loss_sequences"]:
        tables.append(_sequence_table(summary["highest_loss_sequences"], len(summary["shards"]) > 1))
    if summary["highest_loss_tokens"]:
        tables.append(_token_table(summary["highest_loss_tokens"], len(summary["shards"]) > 1))
    return tables


def _head_row(head: dict[str, Any] | None) -> tuple[str, str]:
    """What logits were made of: the weight, and the transform."""
    if head is None:
        return "", ""
    notes = [head["note"], *([] if head["norm"] is None else [f"after {head['norm']}"])]
    return printable(head["weight"]) + (" + bias" if head["has_bias"] else ""), printable(", ".join(notes))


def _head_table(candidates: Sequence[Candidate]) -> list[Table]:
    """Table of what logits were made of, of models with hidden states."""
    heads = [("base", candidates[0].figures.get("base_head"))]
    heads += [(one.name, one.figures.get("head")) for one in candidates]
    rows = [(printable(name), *_head_row(head)) for name, head in heads if head]
    return [Table(rows, title="Logits of hidden states")] if rows else []


def _responses_note(summary: dict[str, Any]) -> str:
    """What files of responses hold."""
    parts = {"prompt": "the prompt", "generated": "what was generated", "all": "the prompt and what was generated"}
    note = (
        f"{count_of(summary['responses'], 'response')} ({summary['dialect'] or 'all failed'}), {parts[summary['part']]}"
    )
    return note + (f"; log-probabilities of {summary['rounding']}" if summary["rounding"] else "")


def _left_out(summary: dict[str, Any]) -> str:
    """How many tokens are not scored, and why."""
    if summary["kind"] == "responses":
        counts = {"without a log-probability": summary["without_number"], "with a sentinel": summary["sentinels"]}
    else:
        counts = {"ignored": summary["ignored"], "without a next token": summary["without_next"]}
    return ", ".join(f"{n:,} {why}" for why, n in counts.items() if n)


def _known_of(summary: dict[str, Any]) -> str:
    """Of how many tokens it is known whether they are greedy, if not of all."""
    known = summary.get("greedy_known", summary["tokens"])
    return "" if known == summary["tokens"] else f"of {count_of(known, 'token')} where it is known"


def _first_failed(summary: dict[str, Any]) -> str:
    """The first failed line."""
    for entry in summary.get("failed", ()):
        name = "" if entry["custom_id"] is None else f" ({entry['custom_id']})"
        reason = entry["reason"]
        reason = reason if len(reason) <= _MAX_REASON else reason[:_MAX_REASON] + "\N{HORIZONTAL ELLIPSIS}"
        return printable(f"line {entry['line']}{name}: {reason}")
    return ""


def _sequence_table(sequences: list[dict[str, Any]], several: bool) -> Table:
    """Table of sequences, with their file if there are several."""
    formats = {"sequence": "{sequence}", "tokens": "{tokens:,}", "loss": "{loss:.4f}", "perplexity": "{perplexity:.6g}"}
    if "line" in sequences[0]:
        formats = {"sequence": "{sequence}", "line": "{line}", "choice": "{choice}"} | formats
    if several:
        formats = {"file": "{file}"} | formats
    if any(row.get("custom_id") is not None for row in sequences):
        formats |= {"custom_id": "{custom_id}"}
    rows = [row | {"file": row["file"] or "several", "custom_id": row.get("custom_id") or ""} for row in sequences]
    return _table("highest-loss sequences", formats, rows)


def _shard_table(shards: list[dict[str, Any]]) -> Table:
    """Table of the files."""
    formats = {"tokens": "{tokens:,}", "loss": "{loss:.6g}", "±": "{stderr:.3g}", "perplexity": "{perplexity:.6g}"}
    return _table("files", formats | {"file": "{file}"}, shards)


def _token_table(tokens: list[dict[str, Any]], several: bool) -> Table:
    """Table of tokens, with their file if there are several, and their sequence, class and text if there are any."""
    formats = {"sequence": "{sequence}", "position": "{position}", "target": "{target}", "loss": "{loss:.4f}"}
    formats |= {"probability": "{probability:.3g}"}
    for name in ("sequence", "target"):
        if all(token[name] is None for token in tokens):
            formats.pop(name, None)
    if several:
        formats = {"file": "{file}"} | formats
    if any(token["text"] is not None for token in tokens):
        formats |= {"text": "{text}"}
    blank = dict.fromkeys(("text", "sequence", "target"), "")
    rows = [blank | {name: cell for name, cell in token.items() if cell is not None} for token in tokens]
    return _table("highest-loss tokens", formats, rows)


def _table(title: str, formats: dict[str, str], items: list[dict[str, Any]]) -> Table:
    """Table of items, each column by its format; errors that are nan are left out."""
    rows = [{head: printable(cell.format(**item)) for head, cell in formats.items()} for item in items]
    known = (("" if head.strip() == "±" and cell == "nan" else cell for head, cell in row.items()) for row in rows)
    return Table([*map(tuple, known)], tuple(formats), title)


def comparison_tables(comparison: Comparison) -> list[Table]:
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


def _not_finite(comparison: Comparison) -> list[tuple[str, ...]]:
    """Rows that count infinite and nan tokens, and the mean of the others; none if all are finite."""
    counts = {"Infinite tokens": comparison.n_infinite, "Tokens that are nan": comparison.n_nan}
    rows = [(label, f"{count:10,}", f"of {comparison.count:,}") for label, count in counts.items() if count]
    return [_nats(comparison, "Mean    KLD where finite", "finite_mean_kl"), *rows] if rows else []


def group_tables(figures: dict[str, Any]) -> list[Table]:
    """Tables of where a model differs from its base: by confidence, by type of token, by sequence."""
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
    """Table of groups of tokens, with errors if these are known."""
    # heads are keys, so that the second error's has blanks
    formats = {head: "{group}", "tokens": "{tokens:,}", "mean KLD": "{kl:.6f}", "±": "{kl_stderr:.6f}"}
    formats |= {"ln(PPL ratio)": "{loss_difference:+.5f}", " ± ": "{loss_difference_stderr:.5f}"}
    formats |= {"mean Δp": "{percent_delta_p:+.3f} %", "same top": "{percent_same_top:.2f} %"}
    if rows and "kl_stderr" not in rows[0]:
        del formats["±"], formats[" ± "]
    if rows and "file" in rows[0]:  # of sequences, whose numbers are their shard's
        formats = {"file": "{file}"} | formats
    percents = [{f"percent_{name}": 100 * row[name] for name in ("delta_p", "same_top")} for row in rows]
    return _table(title, formats, [row | percent for row, percent in zip(rows, percents, strict=True)])


def candidate_table(candidates: Sequence[Candidate]) -> Table:
    """Table of several candidates, those of the smallest divergence first."""
    heads = ("model", "size", "mean KLD", "±", "99.9% KLD", "PPL ratio", "±", "same top", "±", "RMS Δp",
             "not finite", "KLD where finite")  # fmt: skip
    ordered = sorted(candidates, key=lambda candidate: nan_last(candidate.comparison.mean_kl))
    rows = [_candidate_row(candidate) for candidate in ordered]
    # columns that are of no candidate
    kept = [column for column, cells in enumerate(zip(*rows, strict=True)) if any(cells)]
    return Table([tuple(row[column] for column in kept) for row in rows], tuple(heads[column] for column in kept))


def _candidate_row(candidate: Candidate) -> tuple[str, ...]:
    """The figures of a candidate."""
    one = candidate.comparison
    left_out = one.n_infinite + one.n_nan
    return (
        printable(candidate.name),
        "" if candidate.size is None else f"{candidate.size / 1e9:.3g} GB",
        f"{one.mean_kl:.6f}",
        known_error(one.mean_kl_stderr, f"{one.mean_kl_stderr:.6f}"),
        f"{one.kl_quantiles[0.999]:.6f}",
        f"{one.perplexity_ratio:.5f}",
        known_error(one.perplexity_ratio_stderr, f"{one.perplexity_ratio_stderr:.5f}"),
        f"{100 * one.same_top:.2f} %",
        known_error(one.same_top_stderr, f"{100 * one.same_top_stderr:.2f} %"),
        f"{100 * one.rms_delta_p:.2f} %",
        f"{left_out:,}" if left_out else "",
        f"{one.finite_mean_kl:.6f}" if left_out else "",
    )


def response_tables(comparison: ResponseComparison) -> list[Table]:
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
        known = _known_of({"greedy_known": comparison.n_top_known, "tokens": comparison.count})
        probabilities.append((label, share, f"{error}  {known}".rstrip()))
    tables = [
        Table([(label, f"{n:,}") for label, n in left_out.items() if n], title="Left out"),
        Table(_perplexities(comparison), title="Perplexity statistics"),
        Table(divergences, title="Lower bound of the KL divergence, from the classes that both list"),
        Table(probabilities, title="Token probability statistics"),
    ]
    return [table for table in tables if table.rows]


def _perplexities(comparison: Comparison | ResponseComparison) -> list[tuple[str, ...]]:
    """Rows of perplexities."""
    return [
        _nats(comparison, "Mean PPL(Q)", "perplexity"),
        _nats(comparison, "Mean PPL(base)", "base_perplexity"),
        ("Cor(ln(PPL(Q)), ln(PPL(base)))", f"{100 * comparison.correlation:6.2f} %", ""),
        _nats(comparison, "Mean ln(PPL(Q)/PPL(base))", "log_perplexity_ratio"),
        _nats(comparison, "Mean PPL(Q)/PPL(base)", "perplexity_ratio"),
        _nats(comparison, "Mean PPL(Q)-PPL(base)", "perplexity_difference"),
    ]


def _probabilities(comparison: Comparison | ResponseComparison) -> list[tuple[str, ...]]:
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
    """Rows of quantiles, and their intervals where these are known."""
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
