"""What is printed: one JSON object, or tables, with rich where it is installed, else as plain text."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenloss._core.text import as_strict_json, printable
from tokenloss._evaluation.progress import has_rich
from tokenloss._evaluation.sink import Sink

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TEXT = ("file", "text", "metric", "custom_id", "model", "token type", "note")  # columns that hold words, not numbers
_MIN_TEXT_WIDTH = 16  # letters, beyond which text is folded on a narrow terminal


class JsonObject(Sink):
    """One JSON object on stdout."""

    option = "--json"
    help = "print all figures as one JSON object"
    writes_file = False

    def finish(self, summary: dict[str, Any], result: Any) -> None:
        """Print the object; JSON has no nan and no infinities, so they become null."""
        print(json.dumps(as_strict_json(summary), indent=2, allow_nan=False))


class Table(NamedTuple):
    """Rows of text, with a title and heads if given; with heads, all columns but those of `_TEXT` are numbers."""

    rows: Sequence[tuple[str, ...]]
    heads: tuple[str, ...] = ()
    title: str = ""

    def aligns_right(self, column: int) -> bool:
        """Whether a column holds numbers."""
        return bool(self.heads) and self.heads[column] not in _TEXT


def known_error(error: float, words: str) -> str:
    """The words about a standard error or an interval; empty if it is nan, as for a single token."""
    return "" if math.isnan(error) else words


def table_of(title: str, formats: dict[str, str], items: list[dict[str, Any]]) -> Table:
    """Table with a row for each item and a column for each format; standard errors that are nan are left empty."""
    rows = [{head: printable(cell.format(**item)) for head, cell in formats.items()} for item in items]
    known = (("" if head.strip() == "±" and cell == "nan" else cell for head, cell in row.items()) for row in rows)
    return Table([*map(tuple, known)], tuple(formats), title)


def show_tables(title: str, note: str, tables: list[Table]) -> None:
    """Print tables under a title."""
    title = printable(title)
    if has_rich() and _print_with_rich(title, note, tables):
        return
    print(f"{title}  {note}")
    for table in tables:
        print()
        for line in _aligned(table):
            print(f"  {line}")


def _aligned(table: Table) -> Iterator[str]:
    """Lines of a table, with cells aligned in columns."""
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


def _print_with_rich(title: str, note: str, tables: list[Table]) -> bool:
    """Print tables with rich if stdout is a terminal; return whether it is."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(markup=False, emoji=False, highlight=False)  # tokens may look like markup
    if not console.is_terminal:
        return False
    # a narrower terminal wraps lines by itself; rich would cut cells
    console.width = max(console.width, *(2 + sum(2 + width for width in _min_widths(table)) for table in tables))
    console.print(Text.assemble((title, "bold"), "  ", (note, "dim")), soft_wrap=True)
    for table in tables:
        drawn = RichTable(
            box=None, show_header=bool(table.heads), header_style="dim", pad_edge=False, padding=(0, 2, 0, 0)
        )
        for column, width in enumerate(_min_widths(table)):
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


def _min_widths(table: Table) -> list[int]:
    """Minimum width of each column: numbers stay whole, long text may be folded."""
    lines = [table.heads, *table.rows] if table.heads else table.rows
    return [
        max(
            len(cell) if table.aligns_right(i) or (not table.heads and i < 2) else min(len(cell), _MIN_TEXT_WIDTH)
            for cell in column
        )
        for i, column in enumerate(zip(*lines, strict=True))
    ]
