"""Printed output: tables, with rich if it is installed, or Markdown, CSV or JSON."""

from __future__ import annotations

import itertools
import json
import os
import sys
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from tokenloss._core.errors import named
from tokenloss._core.result import Table, as_csv, as_markdown, as_text, escaped
from tokenloss._evaluation.progress import has_rich

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenloss._core.result import Shown
    from tokenloss._core.types import Columns

FORMATS = ("text", "markdown", "csv", "json")

_PIECES = 1 << 16  # of JSON that are printed at once, since a text may have a million sequences
# heads of columns that go first where a table is wider than the terminal; then others do, from the right
_LEAST_IMPORTANT = (
    "RMS Δp", "99.9% KLD", "mean Δp", "not finite", "size", "sequences", "± of PPL", "PPL", "± of perplexity",
    "perplexity", "target", "probability", "position", "sequence",
)  # fmt: skip
_MIN_TEXT_WIDTH = 16  # letters, beyond which text is folded on a narrow terminal


def print_as(form: str, shown: Callable[[], Shown], facts: Callable[[], Any], columns: Callable[[], Columns]) -> None:
    """Print a result in one of `FORMATS`."""
    if form == "text":
        show(shown())
    elif form == "markdown":
        print(as_markdown(shown()))
    elif form == "csv":
        print(as_csv(columns()), end="")
    else:
        pieces = json.JSONEncoder(indent=2, allow_nan=False).iterencode(facts())
        while text := "".join(itertools.islice(pieces, _PIECES)):
            print(text, end="")
        print()


def show(shown: Shown) -> None:
    """Print a title and tables, at most as wide as the terminal."""
    shown = escaped(shown)
    if os.environ.get("FORCE_COLOR") or (sys.stdout is not None and sys.stdout.isatty()):
        width = get_terminal_size((sys.maxsize, 0)).columns
        tables, heads = (
            zip(*(_fitted(table, width) for table in shown.tables), strict=True) if shown.tables else ((), ())
        )
        if names := ", ".join(dict.fromkeys(itertools.chain(*heads))):
            line = f"not shown, since the terminal is narrow: {names}; {named('format', 'markdown')} has all columns"
            tables = *tables, Table([("", "", line)])
        shown = shown._replace(tables=tables)
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


def _fitted(table: Table, width: int) -> tuple[Table, list[str]]:
    """The table without its least important columns if it is wider than the terminal, and the names of these columns.

    Text stays, and so does the number before all others if no text names the rows. A standard error goes with its
    value, except that of a perplexity, which goes first.
    """
    widths, heads = _min_widths(table), [head.strip() for head in table.heads]
    columns = [i for i in range(1, len(widths)) if table.aligns_right(i)]
    groups: dict[str, list[int]] = {}
    for i in columns:
        joins = heads[i] == "±" and i > 0 and heads[i - 1] not in ("PPL", "perplexity")
        name = f"± of {heads[i - 1]}" if heads[i] == "±" else heads[i]
        groups.setdefault(next(reversed(groups)) if joins and groups else name, []).append(i)
    ranks = {name: rank for rank, name in enumerate(_LEAST_IMPORTANT)}
    space, left_out = width - sum(2 + one for one in widths), []
    for name in sorted(groups, key=lambda name: (ranks.get(name, len(ranks)), -groups[name][0]))[:-1]:
        if space < 0:
            space += sum(2 + widths[i] for i in groups[name])
            left_out.append(name)
    hidden = {i for name in left_out for i in groups[name]}
    lines = [[cell for i, cell in enumerate(line) if i not in hidden] for line in (table.heads, *table.rows)]
    rows = [tuple(line) for line in lines[1:] if any(line[1:])] if hidden else table.rows
    return Table(rows, tuple(lines[0]), table.title), left_out


def _min_widths(table: Table) -> list[int]:
    """Minimum width of each column: numbers stay whole, and so do labels; long text may be folded."""
    lines, labels = ([table.heads, *table.rows], 0) if table.heads else (table.rows, 2 * (len(table.rows[0]) > 1))
    return [
        max(len(cell) if table.aligns_right(i) or i < labels else min(len(cell), _MIN_TEXT_WIDTH) for cell in column)
        for i, column in enumerate(zip(*lines, strict=True))
    ]
