"""The summary that `tokenloss score` prints."""

from __future__ import annotations

from typing import Any

from tokenloss._core.text import count_of, printable, title
from tokenloss._evaluation.sink import Sink
from tokenloss._output.shared import head_row, known_of
from tokenloss._output.terminal import Table, known_error, show_tables, table_of

_MAX_SHARDS = 20  # that are listed
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
        ("greedy accuracy", f"{100 * summary['accuracy']:.2f} %", known_of(summary)),
        ("logits", *head_row(summary.get("head"))),
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
    return table_of("highest-loss sequences", formats, rows)


def _shard_table(shards: list[dict[str, Any]]) -> Table:
    """Table of the files."""
    formats = {"tokens": "{tokens:,}", "loss": "{loss:.6g}", "±": "{stderr:.3g}", "perplexity": "{perplexity:.6g}"}
    return table_of("files", formats | {"file": "{file}"}, shards)


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
    return table_of("highest-loss tokens", formats, rows)
