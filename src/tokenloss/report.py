"""How the command line shows things: progress, tables, JSON. With rich where it is installed, else as plain text."""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import rich.progress

    from tokenloss.comparison import Comparison

_MOST_SHARDS = 20  # that are listed
_NARROW = 16  # letters, to which text is folded on a narrow terminal
_PATIENCE = 1.0  # seconds before progress is shown, and between plain lines of it


class Table(NamedTuple):
    """Rows of text, perhaps with a title and heads; under heads, all columns but `file` and `text` are numbers."""

    rows: Sequence[tuple[str, ...]]
    heads: tuple[str, ...] = ()
    title: str = ""

    def aligns_right(self, column: int) -> bool:
        """Whether a column is one of numbers."""
        return bool(self.heads) and self.heads[column] not in ("file", "text")


def printable(text: str) -> str:
    """Text with control characters escaped, so that it stays on its line and cannot steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def has_rich() -> bool:
    """Whether rich is installed."""
    try:
        importlib.import_module("rich")
    except ImportError:
        return False
    return True


def show_json(figures: dict[str, Any]) -> None:
    """Print a JSON object; it has no nan and no infinities, so they become null, and no halves of characters."""
    print(json.dumps(_strict(figures), indent=2, allow_nan=False))


def _strict(value: Any) -> Any:
    """Value with None for each float that JSON cannot hold, and U+FFFD for each surrogate that is not in a pair."""
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def title(files: Sequence[str]) -> str:
    """Name of some files."""
    return ", ".join(files) if len(files) < 4 else f"{files[0]} and {len(files) - 1} files more"


def show_summary(figures: dict[str, Any]) -> None:
    """Print what `tokenloss score` found."""
    low, high = figures["perplexity_interval"]
    left_out = {"ignored": figures["ignored"], "without a next token": figures["without_next"]}
    rows = [
        (
            "tokens",
            f"{figures['tokens']:,}",
            ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count),
        ),
        ("loss", f"{figures['loss']:.6g}", f"± {figures['stderr']:.3g} nats"),
        ("perplexity", f"{figures['perplexity']:.6g}", f"95 % interval {low:.5g} to {high:.5g}"),
        ("bits per token", f"{figures['bits_per_token']:.6g}", ""),
        ("bits per byte", f"{figures['bits_per_byte']:.6g}", ""),
        ("perplexity per word", f"{figures['word_perplexity']:.6g}", ""),
        ("greedy accuracy", f"{100 * figures['accuracy']:.2f} %", ""),
        ("time", f"{figures['seconds']:.3g} s", f"{figures['gb_per_second']:.3g} GB/s"),
    ]
    told = {"bits per byte": figures["n_bytes"], "perplexity per word": figures["n_words"]}
    tables = [Table([row for row in rows if told.get(row[0], True)])]
    if 1 < len(figures["shards"]) <= _MOST_SHARDS:
        tables.append(_shards(figures["shards"]))
    if figures["highest_loss_tokens"]:
        tables.append(_highest_loss_tokens(figures["highest_loss_tokens"], len(figures["shards"]) > 1))
    shape = " \N{MULTIPLICATION SIGN} ".join(map(str, figures["shape"]))
    note = f"{figures['kind']}, {shape}, {figures['dtype']}; {figures['targets']}"
    show_tables(title(figures["files"]), note, tables)


def _shards(shards: list[dict[str, Any]]) -> Table:
    """Tabulate the files."""
    return _table(
        "files",
        {
            "tokens": "{tokens:,}",
            "loss": "{loss:.6g}",
            "±": "{stderr:.3g}",
            "perplexity": "{perplexity:.6g}",
            "file": "{file}",
        },
        shards,
    )


def _highest_loss_tokens(tokens: list[dict[str, Any]], several: bool) -> Table:
    """Tabulate tokens, with their file if there are several, and their text if there is any."""
    formats = {"position": "{position}", "target": "{target}", "loss": "{loss:.4f}", "probability": "{probability:.3g}"}
    if several:
        formats = {"file": "{file}"} | formats
    if any(token["text"] is not None for token in tokens):
        formats |= {"text": "{text}"}
    return _table("highest-loss tokens", formats, [token | {"text": token["text"] or ""} for token in tokens])


def _table(title: str, formats: dict[str, str], items: list[dict[str, Any]]) -> Table:
    """Tabulate items, each column by its format."""
    rows = [tuple(printable(cell.format(**item)) for cell in formats.values()) for item in items]
    return Table(rows, tuple(formats), title)


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Tabulate a comparison, in the layout and the words of llama.cpp's perplexity tool."""
    found = vars(comparison)

    def nats(label: str, name: str) -> tuple[str, ...]:
        return label, f"{found[name]:10.6f}", f"± {found[name + '_stderr']:10.6f}"

    def percent(label: str, name: str) -> tuple[str, ...]:
        return label, f"{100 * found[name]:7.3f} %", f"± {100 * found[name + '_stderr']:6.3f} %"

    def quantiles(what: str, name: str, form: Callable[[float], str]) -> list[tuple[str, ...]]:
        words = {1.0: "Maximum", 0.5: "Median", 0.0: "Minimum"}
        labels = {fraction: words.get(fraction, f"{100 * fraction:4.1f}%") for fraction in found[name]}
        return [(f"{labels[fraction]:<7} {what}", form(value), "") for fraction, value in found[name].items()]

    perplexities = [
        nats("Mean PPL(Q)", "perplexity"),
        nats("Mean PPL(base)", "base_perplexity"),
        ("Cor(ln(PPL(Q)), ln(PPL(base)))", f"{100 * comparison.correlation:6.2f} %", ""),
        nats("Mean ln(PPL(Q)/PPL(base))", "log_perplexity_ratio"),
        nats("Mean PPL(Q)/PPL(base)", "perplexity_ratio"),
        nats("Mean PPL(Q)-PPL(base)", "perplexity_difference"),
    ]
    divergences = [
        nats("Mean    KLD", "mean_kl"),
        *quantiles("KLD", "kl_quantiles", "{:10.6f}".format),
    ]
    probabilities = [
        percent("Mean    Δp", "mean_delta_p"),
        *quantiles("Δp", "delta_p_quantiles", lambda change: f"{100 * change:7.3f} %"),
        percent("RMS Δp", "rms_delta_p"),
        percent("Same top p", "same_top"),
    ]
    return [
        Table(perplexities, title="Perplexity statistics"),
        Table(divergences, title="KL divergence statistics"),
        Table(probabilities, title="Token probability statistics"),
    ]


def show_tables(title: str, note: str, tables: list[Table]) -> None:
    """Print tables under a title."""
    title = printable(title)
    if has_rich() and _shown_rich(title, note, tables):
        return
    print(f"{title}  {note}")
    for table in tables:
        print()
        for line in _aligned(table):
            print(f"  {line}")


def _aligned(table: Table) -> Iterator[str]:
    """Lines of a table, in columns."""
    if table.title:
        yield table.title
    lines = [table.heads, *table.rows] if table.heads else table.rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if table.aligns_right(column) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _shown_rich(title: str, note: str, tables: list[Table]) -> bool:
    """Whether tables under a title were printed by rich, as they are on a terminal."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(markup=False, emoji=False, highlight=False)  # text of tokens is no markup
    if not console.is_terminal:
        return False
    # a narrower terminal breaks lines itself, not cells
    console.width = max(console.width, *(2 + sum(2 + width for width in _least_widths(table)) for table in tables))
    console.print(Text.assemble((title, "bold"), "  ", (note, "dim")), soft_wrap=True)
    for table in tables:
        drawn = RichTable(
            box=None, show_header=bool(table.heads), header_style="dim", pad_edge=False, padding=(0, 2, 0, 0)
        )
        for column, width in enumerate(_least_widths(table)):
            drawn.add_column(
                table.heads[column] if table.heads else "",
                justify="right" if table.aligns_right(column) else "left",
                style="" if table.heads else ("cyan", "bold", "dim")[column],
                min_width=width,
                overflow="fold",
            )
        for row in table.rows:
            drawn.add_row(*row)
        console.print()
        if table.title:
            console.print(f"  {table.title}", style="bold")
        console.print(Padding(drawn, (0, 0, 0, 2), expand=False))
    return True


def _least_widths(table: Table) -> list[int]:
    """Width of each column in which numbers are whole, and long text is folded."""
    lines = [table.heads, *table.rows] if table.heads else table.rows
    return [
        max(
            len(cell) if table.aligns_right(i) or (not table.heads and i < 2) else min(len(cell), _NARROW)
            for cell in column
        )
        for i, column in enumerate(zip(*lines, strict=True))
    ]


class Progress:
    """How far long work has come, on stderr if that is a terminal."""

    def __init__(self, total: int) -> None:
        self._total = total or 1
        self._done = 0
        self._next = time.monotonic() + _PATIENCE if sys.stderr and sys.stderr.isatty() else math.inf
        self._bar: rich.progress.Progress | None = None
        self._line = ""

    def __enter__(self) -> Progress:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        if self._bar:
            self._bar.stop()
        elif self._line:
            self._write("")

    def advance(self, n_bytes: int) -> None:
        """Tell that so many bytes more are done."""
        self._done += n_bytes
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._done)
        elif time.monotonic() >= self._next:
            if has_rich():
                self._start_bar()
            else:
                self._next = time.monotonic() + _PATIENCE
                self._write(f"{self._done / self._total:4.0%} of {self._total / 1e9:.3g} GB")

    def _write(self, line: str) -> None:
        """Write a line over the one before."""
        print("\r" + line.ljust(len(self._line)), end="" if line else "\r", file=sys.stderr, flush=True)
        self._line = line

    def _start_bar(self) -> None:
        """Draw rich's bar from here on."""
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.add_task("", total=self._total, completed=self._done)
        self._bar.start()
