"""The tables in which an evaluation is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenloss._comparison.tables import head_row, known_of
from tokenloss._core.result import Shown, Table, known_error, table_of
from tokenloss._core.text import count_of, title
from tokenloss._statistics.tables import loss_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

_SEQUENCE = {
    "sequence": "{sequence}", "line": "{line}", "choice": "{choice}", "tokens": "{count:,}", "loss": "{loss:.4f}",
    "perplexity": "{perplexity:.6g}", "custom_id": "{custom_id}",
}  # fmt: skip
_TOKEN = {
    "row": "{row}", "sequence": "{sequence}", "position": "{position}", "target": "{target}", "nll": "{nll:.4f}",
    "probability": "{probability:.3g}", "text": "{text}",
}  # fmt: skip
_MAX_SHARDS = 20  # files are listed up to this number
_MAX_REASON = 100  # characters of the reason of a failed line


def shown(figures: dict[str, Any], basis: str) -> Shown:
    """The title and tables of the figures of an evaluation; `basis` says what standard errors take as independent."""
    if "dialect" in figures:
        note = _lists_note(figures)
    else:
        shape = " \N{MULTIPLICATION SIGN} ".join(map(str, figures["shape"]))
        note = f"{figures['kind']}, {shape}, {figures['dtype']}; {figures['targets']}"
    return Shown(title(figures["files"]) or "blocks in memory", note, _tables(figures, basis))


def evaluations_shown(models: Mapping[str, dict[str, Any]], bases: set[str], differences: list[str]) -> Shown:
    """The title and a table of the figures of several models; columns that are empty are left out.

    `differences` are the fields by which their signatures differ.
    """
    lines = [[("model", name), *_cells(figures)] for name, figures in models.items()]
    columns = [column for column in zip(*lines, strict=True) if any(cell for _, cell in column)]
    heads = tuple(column[0][0] for column in columns)
    rows = [*zip(*([cell for _, cell in column] for column in columns), strict=True)]
    kinds = dict.fromkeys(figures["kind"] for figures in models.values())
    notes = [", ".join(kinds), *(bases if len(bases) == 1 else ())]
    notes += [difference_note(differences)] if differences else []
    if {"tokens", "ids"} & {*differences}:
        notes.append("their tokens differ, so compare bits per byte, not losses or perplexities")
    elif len(models) > 1:
        notes.append("tokenloss compare has the errors of differences")
    return Shown(count_of(len(models), "model"), "; ".join(notes), [Table(rows, heads)] if rows else [])


def difference_note(differences: list[str]) -> str:
    """Words about the fields by which signatures differ."""
    return f"the models' signatures differ in {', '.join(differences)}"


def _cells(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The main figures of an evaluation: the head of each column, and the cell."""
    low, high = figures["perplexity_interval"]
    loss_error, byte_error = figures["stderr"], figures["bits_per_byte_stderr"]
    return [
        ("tokens", f"{figures['count']:,}"),
        ("nan", f"{figures['n_nan']:,}" if figures["n_nan"] else ""),
        ("infinite", f"{figures['n_infinite']:,}" if figures["n_infinite"] else ""),
        ("loss", f"{figures['loss']:.6g}"),
        ("±", known_error(loss_error, f"{loss_error:.3g}")),
        ("perplexity", f"{figures['perplexity']:.6g}"),
        ("95 % interval", known_error(low, f"{low:.5g} to {high:.5g}")),
        ("bits per byte", f"{figures['bits_per_byte']:.6g}" if figures["n_bytes"] else ""),
        ("±", known_error(byte_error, f"{byte_error:.3g}")),
        ("perplexity per word", f"{figures['word_perplexity']:.6g}" if figures["n_words"] else ""),
        ("greedy accuracy", f"{100 * figures['accuracy']:.2f} %" if figures.get("n_greedy_known", 1) else ""),
    ]


def _tables(summary: dict[str, Any], basis: str) -> list[Table]:
    """Tables of the figures, files and highest losses."""
    several = len(summary["shards"]) > 1
    tables = [Table(_rows(summary, basis))]
    if several and len(summary["shards"]) <= _MAX_SHARDS:
        tables.append(_shard_table(summary["shards"]))
    if summary["n_sequences"] > 1 and summary["highest_loss_sequences"]:
        tables.append(_highest("highest-loss sequences", _SEQUENCE, summary["highest_loss_sequences"], several))
    if summary["highest_loss_tokens"]:
        tables.append(_highest("highest-loss tokens", _TOKEN, summary["highest_loss_tokens"], several))
    return tables


def _rows(summary: dict[str, Any], basis: str) -> list[tuple[str, ...]]:
    """Rows of the figures."""
    count, word = summary["count"], "response" if summary["kind"] == "responses" else "sequence"
    known = known_of(summary.get("n_greedy_known", count), count)
    of_losses = loss_rows(summary, basis)
    rows: list[tuple[Any, ...]] = [
        (True, "tokens", f"{count:,}", _left_out(summary)),
        (summary["n_nan"], "nan tokens", f"{summary['n_nan']:,}", f"of {count:,}"),
        (summary["n_infinite"], "infinite losses", f"{summary['n_infinite']:,}", f"of {count:,}"),
        (
            summary.get("n_unscored"), "not scored", f"{summary.get('n_unscored', 0):,}",
            f"of {count_of(summary.get('n_responses', 0), word)}, without any log-probability",
        ),
        *((True, *row) for row in of_losses[:3]),  # as far as the bits per token
        (
            summary["kind"] == "responses" and count and not summary["n_bytes"], "bits per byte", "not known",
            "the text of some tokens is not known",
        ),
        *((True, *row) for row in of_losses[3:]),
        (summary.get("n_greedy_known", 1), "greedy accuracy", f"{100 * summary['accuracy']:.2f} %", known),
        (summary.get("head"), "logits", *head_row(summary.get("head"))),
        (
            summary.get("n_skipped"), "failed lines", f"{summary.get('n_skipped', 0):,}",
            f"left out; {_first_failed(summary)}",
        ),
        (
            summary.get("n_short_lists"), "short lists", f"{summary.get('n_short_lists', 0):,}",
            "lists lost tokens, since two of them have the same text",
        ),
        (
            summary.get("n_uncovered_bytes"), "not covered", count_of(summary.get("n_uncovered_bytes", 0), "byte"),
            "of the text are in no token that the server listed, so no metric includes them",
        ),
        (summary["seconds"] >= 1, "time", f"{summary['seconds']:.3g} s", f"{summary['gb_per_second']:.3g} GB/s"),
    ]  # fmt: skip
    return [(*row,) for is_shown, *row in rows if is_shown]


def _lists_note(summary: dict[str, Any]) -> str:
    """Note about the content of files of responses or log-probabilities."""
    parts = {"prompt": "the prompt", "generated": "what was generated", "all": "the prompt and what was generated"}
    note = f"{count_of(summary['n_responses'], 'response')} ({summary['dialect'] or 'all failed'})"
    note += f", {parts[summary['part']]}"
    if summary["kind"] == "logprobs":
        note = count_of(summary["n_responses"], "sequence")
    return note + (f"; log-probabilities of {summary['rounding']}" if summary["rounding"] else "")


def _left_out(summary: dict[str, Any]) -> str:
    """How many tokens are not scored, and why."""
    if "dialect" in summary:
        counts = {"without a log-probability": summary["n_without_number"], "with a sentinel": summary["n_sentinels"]}
    else:
        counts = {"ignored": summary["n_ignored"], "as context alone": summary.get("n_context", 0)}
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


def _shard_table(shards: list[dict[str, Any]]) -> Table:
    """Table of the files."""
    formats = {"tokens": "{count:,}", "loss": "{loss:.6g}", "±": "{stderr:.3g}", "perplexity": "{perplexity:.6g}"}
    return table_of("files", formats | {"file": "{file}"}, shards)


def _highest(title: str, formats: dict[str, str], items: list[dict[str, Any]], several: bool) -> Table:
    """Table of the highest losses, with files if there are several, and without unknown columns."""
    items = [{name: value for name, value in item.items() if value is not None} for item in items]
    blank = {name: "" for name, form in formats.items() if form == f"{{{name}}}"}
    formats = {name: form for name, form in formats.items() if name not in blank or any(name in one for one in items)}
    formats = {"file": "{file}"} | formats if several else formats
    return table_of(title, formats, [blank | {"file": "several"} | item for item in items])
