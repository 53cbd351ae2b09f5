"""The tables that show an evaluation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tokenloss._comparison.tables import head_cells, known_of, table_by
from tokenloss._core.advice import not_finite_notes, void_of
from tokenloss._core.result import Shown, Table, formatted
from tokenloss._core.rows import Row, table, table_of_several
from tokenloss._core.text import count_of, title
from tokenloss._statistics.meter import basis_of
from tokenloss._statistics.tables import LENGTH_ROWS, LOSS_ROWS, loss_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenloss._statistics.meter import LossMeter

_TOKENS = Row("tokens", "count", "{:,}")
_FILE = Row("file", "file", "{}")
_SEQUENCE = (
    *(Row(name, name, "{}") for name in ("sequence", "line", "choice")),
    _TOKENS,
    Row("loss", "loss", "{:.4f}"),
    Row("perplexity", "perplexity"),
    Row("custom_id", "custom_id", "{}"),
)
_TOKEN = (
    *(Row(name, name, "{}") for name in ("row", "sequence", "position", "target")),
    Row("nll", "nll", "{:.4f}"),
    Row("probability", "probability", "{:.3g}"),
    Row("text", "text", "{}"),
)
_SHARD = (_TOKENS, Row("loss", "loss"), Row("±", "stderr", "{known:.3g}"), Row("perplexity", "perplexity"), _FILE)
_ROWS = (
    Row("tokens", "count", "{:,}", ("{left_out}",)),
    Row("nan tokens", "n_nan", "{:,}", ("of {count:,}",), when="n_nan"),
    Row("infinite losses", "n_infinite", "{:,}", ("of {count:,}",), when="n_infinite"),
    Row("not scored", "n_unscored", "{:,}", ("of {unit}, without any log-probability",), when="n_unscored"),
    *LOSS_ROWS,
    Row("bits per byte", "unknown_bytes", notes=("the text of some tokens is not known",)),
    *LENGTH_ROWS,
    Row("greedy accuracy", "accuracy", "{:.2f %}", ("{greedy_note}",), when="n_greedy_known"),
    Row("logits", "head_weight", notes=("{head_note}",)),
    Row("failed lines", "n_skipped", "{:,}", ("left out; {first_failed}",), when="n_skipped"),
    Row(
        "short lists", "n_short_lists", "{:,}", ("lists lost tokens, since two of them have the same text",),
        when="n_short_lists",
    ),
    Row("not covered", "uncovered", notes=(
        "of the text are in no token that the server listed, so no metric includes them",
    )),
    Row("time", "time", notes=("{gb_per_second:.3g} GB/s",)),
)  # fmt: skip
_COLUMNS = (
    Row("model", "name"),
    _TOKENS,
    Row("nan", "n_nan", "{:,}", when="n_nan"),
    Row("infinite", "n_infinite", "{:,}", when="n_infinite"),
    Row("loss", "loss"),
    Row("±", "loss", "{stderr:.3g}"),
    Row("perplexity", "perplexity"),
    Row("95 % interval", "perplexity", "{low:.5g} to {high:.5g}"),
    Row("bits per byte", "bits_per_byte", when="n_bytes"),
    Row("±", "bits_per_byte", "{stderr:.3g}"),
    Row("perplexity per word", "word_perplexity", when="n_words"),
    Row("greedy accuracy", "accuracy", "{:.2f %}", when="n_greedy_known"),
)
_GROUP = (
    _TOKENS,
    Row("sequences", "n_sequences", "{:,}", when="n_sequences"),
    Row("loss", "loss"),
    Row("±", "stderr", "{known:.3g}"),
    Row("perplexity", "perplexity"),
    Row("95 % interval", "interval"),
    Row("bits per byte", "bits_per_byte"),
    Row("±", "bits_per_byte_stderr", "{known:.3g}"),
)
_MAX_SHARDS = 20  # files are listed up to this number
_MAX_REASON = 100  # characters of the reason of a failed line


def shown(facts: dict[str, Any], meter: LossMeter) -> Shown:
    """The title and tables of an evaluation, given its values in files and its meter."""
    if "dialect" in facts:
        note = _lists_note(facts)
    else:
        shape = " \N{MULTIPLICATION SIGN} ".join(map(str, facts["shape"]))
        note = f"{facts['kind']}, {shape}, {facts['dtype']}; {facts['targets']}"
    return Shown(title(facts["files"]) or "blocks in memory", note, _tables(facts, meter))


def evaluations_shown(models: Mapping[str, Any], differences: list[str]) -> Shown:
    """The title and a table of several models; columns that are empty are left out.

    `differences` are the fields by which their signatures differ.
    """
    items = [({"name": name}, one.meter, one.figures) for name, one in models.items()]
    several = table_of_several(_COLUMNS, items, keep_empty=False)
    kinds = dict.fromkeys(one.figures["kind"] for one in models.values())
    bases = {basis_of(one.meter) for one in models.values()}
    notes = [", ".join(kinds), *(bases if len(bases) == 1 else ())]
    notes += [difference_note(differences)] if differences else []
    if {"tokens", "ids"} & {*differences}:
        notes.append("their tokens differ, so compare bits per byte, not losses or perplexities")
    elif len(models) > 1:
        notes.append("tokenloss compare has the errors of differences")
    return Shown(count_of(len(models), "model"), "; ".join(notes), [several] if several.rows else [])


def difference_note(differences: list[str]) -> str:
    """Words about the fields by which signatures differ."""
    return f"the models' signatures differ in {', '.join(differences)}"


def _tables(summary: dict[str, Any], meter: LossMeter) -> list[Table]:
    """Tables of the metrics, files and highest losses."""
    shards = summary["shards"]
    tables = [table(_ROWS, _values(summary), loss_values(summary, basis_of(meter)), meter, summary)]
    if 1 < len(shards) <= _MAX_SHARDS:
        tables.append(table_of_several(_SHARD, [(shard,) for shard in shards], "files"))
    tables += group_tables(summary)
    losses = {"sequences": _SEQUENCE * (summary["n_sequences"] > 1), "tokens": _TOKEN}
    for name, columns in losses.items():
        items = [({"file": item["file"] or "several"}, item) for item in summary[f"highest_loss_{name}"]]
        if items and columns:
            columns = (_FILE, *columns) if len(shards) > 1 else columns
            tables.append(table_of_several(columns, items, f"highest-loss {name}"))
    return tables


def group_tables(facts: dict[str, Any]) -> list[Table]:
    """The table of groups of tokens, if there is one."""
    return [table_by(facts["by"], facts["groups"], _GROUP)] if facts.get("groups") else []


def verdict(facts: dict[str, Any], meter: LossMeter) -> Table:
    """Sentences on what the perplexity means, for these tokens and for others like them, or why it means nothing."""
    perplexity, (low, high) = meter.perplexity, meter.perplexity.interval
    if void := void_of(facts, "max_perplexity"):
        words = [f"The perplexity cannot be trusted: {void}."]
    elif not math.isfinite(perplexity):
        why = "; ".join(not_finite_notes(facts, meter.count, "loss")) or "no token was scored" * (not meter.count)
        words = [f"The perplexity is {perplexity:g}" + f": {why}" * bool(why) + "."]
    else:
        least, mean, most = (f"{x:,.0f}" if 100 <= x < 1e6 else formatted(x, digits=3) for x in (low, perplexity, high))
        words = [f"On average, each token was as hard to predict as a choice among {mean} equally likely options."]
        if math.isnan(low):
            words.append("No interval is known, so this describes only these tokens.")
        else:
            basis = f"95 % interval; n = {basis_of(meter)}"
            words.append(f"For all data of this kind, perplexity is between {least} and {most} ({basis}).")
        if "head" not in facts and "dialect" not in facts and low > facts["shape"][-1]:
            words.append(f"A uniform guess among all {facts['shape'][-1]:,} classes would have been better.")
    return Table([(sentence,) for sentence in words])


def _values(summary: dict[str, Any]) -> dict[str, Any]:
    """The values that `_ROWS` name besides the metrics."""
    count, is_responses = summary["count"], summary["kind"] == "responses"
    head, seconds, n_uncovered = summary.get("head"), summary["seconds"], summary.get("n_uncovered_bytes")
    weight, note = head_cells(head) if head else (None, None)
    return {
        "left_out": _left_out(summary),
        "unit": count_of(summary.get("n_responses", 0), "response" if is_responses else "sequence"),
        "unknown_bytes": "not known" if is_responses and count and not summary["n_bytes"] else None,
        "greedy_note": known_of(summary.get("n_greedy_known", count), count),
        "head_weight": weight,
        "head_note": note,
        "first_failed": _first_failed(summary),
        "uncovered": count_of(n_uncovered, "byte") if n_uncovered else None,
        "time": f"{seconds:.3g} s" if seconds >= 1 else None,
    }


def _lists_note(summary: dict[str, Any]) -> str:
    """Note about the content of files of responses or log-probabilities."""
    parts = {"prompt": "the prompt", "generated": "the generated tokens", "all": "the prompt and the generated tokens"}
    note = f"{count_of(summary['n_responses'], 'response')} ({summary['dialect'] or 'all failed'})"
    note += f", {parts[summary['part']]}"
    if summary["kind"] == "logprobs":
        note = count_of(summary["n_responses"], "sequence")
    return note + (f"; log-probabilities rounded to {summary['rounding']}" if summary["rounding"] else "")


def _left_out(summary: dict[str, Any]) -> str:
    """A note on how many tokens are not scored, and why."""
    if "dialect" in summary:
        counts = {"without a log-probability": summary["n_without_number"], "with a sentinel": summary["n_sentinels"]}
    else:
        counts = {"ignored": summary["n_ignored"], "only as context": summary.get("n_context", 0)}
        counts |= {"without a next token": summary["n_without_next"]}
    return ", ".join(f"{n:,} {why}" for why, n in counts.items() if n)


def _first_failed(summary: dict[str, Any]) -> str:
    """Description of the first failed line."""
    for entry in summary.get("failed", ()):
        name = "" if entry["custom_id"] is None else f" ({entry['custom_id']})"
        reason = entry["reason"]
        reason = reason if len(reason) <= _MAX_REASON else reason[:_MAX_REASON] + "\N{HORIZONTAL ELLIPSIS}"
        return f"line {entry['line']}{name}: {reason}"
    return ""
