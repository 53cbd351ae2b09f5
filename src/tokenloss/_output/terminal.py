"""What is printed: tables, with rich where it is installed, or Markdown, CSV or JSON."""

from __future__ import annotations

import itertools
import json
import os
import sys
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from tokenloss._core.result import Table, as_csv, as_markdown, as_text, escaped
from tokenloss._evaluation.progress import has_rich

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenloss._core.result import Shown
    from tokenloss._core.types import Columns

FORMATS = ("text", "markdown", "csv", "json")

_PIECES = 1 << 16  # of JSON that are printed at once, since a text may have a million sequences
_MIN_TEXT_WIDTH = 16  # letters, beyond which text is folded on a narrow terminal


def print_as(form: str, shown: Callable[[], Shown], figures: Callable[[], Any], columns: Callable[[], Columns]) -> None:
    """Print a result in one of `FORMATS`."""
    if form == "text":
        show(shown())
    elif form == "markdown":
        print(as_markdown(shown()))
    elif form == "csv":
        print(as_csv(columns()), end="")
    else:
        pieces = json.JSONEncoder(indent=2, allow_nan=False).iterencode(figures())
        while text := "".join(itertools.islice(pieces, _PIECES)):
            print(text, end="")
        print()


def show(shown: Shown) -> None:
    """Print a title and tables, folded to the width of the terminal."""
    shown = escaped(shown)
    if os.environ.get("FORCE_COLOR") or (sys.stdout is not None and sys.stdout.isatty()):
        width = get_terminal_size((sys.maxsize, 0)).columns
        shown = shown._replace(tables=[part for table in shown.tables for part in _folded(table, width)])
    if not (has_rich() and _print_with_rich(shown)):
        print(as_text(shown))


def _print_with_rich(shown: Shown) -> bool:
    """Print tables with rich if stdout is a terminal; return whether it is."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(markup=False, emoji=False, highlight=False)  # tokens may look like markup
    if not console.is_terminal:
        return False
    # a narrower terminal wraps lines by itself; rich would cut cells
    console.width = max(console.width, *(2 + sum(2 + width for width in _min_widths(table)) for table in shown.tables))
    console.print(Text.assemble((shown.title, "bold"), "  ", (shown.note, "dim")), soft_wrap=True)
    for table in shown.tables:
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
    if shown.signature:
        console.print()
        console.print(f"  {shown.signature}", style="dim", soft_wrap=True)
    return True


def _folded(table: Table, width: int) -> list[Table]:
    """The table, split into parts that fit the width if possible; each repeats the columns that name the rows."""
    widths = _min_widths(table)
    # the columns of text before the first number name the rows, or else that number does
    n_names = max(1, next((i for i in range(len(widths)) if table.aligns_right(i)), len(widths)))
    # a standard error stays next to its value
    starts = [i for i in range(n_names, len(widths)) if i == n_names or table.heads[i].strip() != "±"]
    groups = [[*range(n_names)]]
    for start, stop in itertools.pairwise([*starts, len(widths)]):
        columns = [*range(start, stop)]
        if len(groups[-1]) > n_names and sum(2 + widths[i] for i in groups[-1] + columns) > width:
            groups.append([*range(n_names)])
        groups[-1] += columns
    if len(groups) == 1:
        return [table]
    parts: list[Table] = []
    for group in groups:
        rows = [tuple(row[i] for i in group) for row in table.rows if any(row[i] for i in group[n_names:])]
        parts.append(Table(rows, tuple(table.heads[i] for i in group), "" if parts else table.title))
    return parts


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
