"""Results: the methods of all results, and the tables that show them, as text, Markdown, HTML and CSV."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from tokenloss._core.estimate import Estimate
from tokenloss._core.text import as_strict_json, printable, shortened

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tokenloss._core.types import Array

# columns that hold words, not numbers
_TEXT = ("file", "text", "task", "metric", "custom_id", "model", "token type", "gate", "verdict", "note", "change",
         "kind", "group", "unit", "tokens a", "tokens b", "tiers")  # fmt: skip
_MAX_NAMED = 4  # results that `repr` shows
ResultT = TypeVar("ResultT", bound=Any)


class Table(NamedTuple):
    """Rows of text, with a title and heads if given; with heads, all columns not in `_TEXT` are numbers."""

    rows: Sequence[tuple[str, ...]]
    heads: tuple[str, ...] = ()
    title: str = ""

    def aligns_right(self, column: int) -> bool:
        """Whether a column has numbers."""
        return bool(self.heads) and self.heads[column] not in _TEXT


class Shown(NamedTuple):
    """The displayed parts of a result: title, a note beside it, tables, and its signature below them if it has one."""

    title: str
    note: str
    tables: Sequence[Table]
    signature: str = ""


def formatted(value: float, error: float = math.nan, digits: int = 6) -> str:
    """A number with this many significant digits, including zeros, and its standard error if known."""
    return f"{value:#.{digits}g}".rstrip(".") + ("" if math.isnan(error) else f" ± {error:#.3g}".rstrip("."))


def nonzero(**counts: int) -> dict[str, str]:
    """The counts that are not 0, as text."""
    return {name: str(count) for name, count in counts.items() if count}


def places_in(batch: tuple[int, ...]) -> dict[str, Array]:
    """Columns with the place of each element of a batch; empty if it has fewer than two axes.

    Each element of the first axis is a sequence; positions count over its other axes in C order.
    """
    if len(batch) < 2:
        return {}
    rows, length = batch[0], math.prod(batch[1:])
    return {"sequence": np.repeat(np.arange(rows), length), "position": np.tile(np.arange(length), rows)}


def rows_of(table: dict[str, Array]) -> list[dict[str, Any]]:
    """The rows of a table of columns."""
    rows = zip(*(column.tolist() for column in table.values()), strict=True)
    return [dict(zip(table, row, strict=True)) for row in rows]


def escaped(shown: Shown) -> Shown:
    """A copy in which characters that control a terminal or reverse a line are escaped."""
    tables = [
        Table([tuple(map(printable, row)) for row in rows], tuple(map(printable, heads)), printable(title))
        for rows, heads, title in shown.tables
    ]
    return Shown(printable(shown.title), printable(shown.note), tables, printable(shown.signature))


def as_text(shown: Shown) -> str:
    """Lines of a title, its note and tables, whose cells are aligned in columns."""
    shown = escaped(shown)
    lines = [f"{shown.title}  {shown.note}".rstrip()]
    for table in shown.tables:
        lines += ["", *(f"  {line}".rstrip() for line in _aligned(table))]
    return "\n".join([*lines, *(["", f"  {shown.signature}"] if shown.signature else [])])


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
        yield "  ".join(cells)


def as_html(shown: Shown) -> str:
    """The same in HTML for a notebook, whose own colors it keeps, light or dark."""
    from html import escape

    shown = escaped(shown)
    dim = ' style="opacity: 0.7"'
    parts = [f"<p><b>{escape(shown.title)}</b> <span{dim}>{escape(shown.note)}</span></p>"]
    parts += map(table_in_html, shown.tables)
    if shown.signature:
        parts.append(f'<p style="overflow-wrap: anywhere"><span{dim}>{escape(shown.signature)}</span></p>')
    return f'<div style="font-variant-numeric: tabular-nums">{"".join(parts)}</div>'


def table_in_html(table: Table) -> str:
    """A table in HTML, whose texts are printable."""
    from html import escape

    head = "".join(_html_cell("th", table, i, escape(name)) for i, name in enumerate(table.heads))
    rows = ["".join(_html_cell("td", table, i, escape(cell)) for i, cell in enumerate(row)) for row in table.rows]
    style = "text-align: left; color: inherit; padding: 0.6em 0 0.1em"
    caption = f'<caption style="{style}"><b>{escape(table.title)}</b></caption>'
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    parts = (
        '<table style="color: inherit">',
        caption * bool(table.title),
        f"<thead><tr>{head}</tr></thead>" * bool(head),
    )
    return f"{''.join(parts)}<tbody>{body}</tbody></table>"


def _html_cell(tag: str, table: Table, column: int, text: str) -> str:
    """A cell of a table in HTML, given its escaped text."""
    side, space = ("right", "pre") if table.aligns_right(column) else ("left", "pre-wrap")  # numbers stay whole
    return f'<{tag} style="text-align: {side}; white-space: {space}; padding: 0.1em 1em 0.1em 0">{text}</{tag}>'


def as_markdown(shown: Shown) -> str:
    """The same in GitHub's Markdown, whose columns are aligned in plain text, too."""
    shown = escaped(shown)
    lines = [f"**{_literal(shown.title)}** {_literal(shown.note)}".rstrip()]
    for table in shown.tables:
        lines += ["", *([_literal(table.title), ""] if table.title else []), *_markdown_lines(table)]
    return "\n".join([*lines, *(["", f"`{shown.signature}`"] if shown.signature else [])])


def _markdown_lines(table: Table) -> Iterator[str]:
    """Lines of a table; Markdown has no table without heads, so these may be empty."""
    heads = table.heads or ("",) * len(table.rows[0])
    lines = [[_literal(cell.strip()) for cell in line] for line in (heads, *table.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    sides = [table.aligns_right(column) for column in range(len(heads))]
    rule = ["-" * (width - right) + ":" * right for width, right in zip(widths, sides, strict=True)]
    for line in (lines[0], rule, *lines[1:]):
        cells = zip(line, widths, sides, strict=True)
        yield f"| {' | '.join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells)} |"


def _literal(text: str) -> str:
    """The text with the characters escaped that have a meaning in Markdown, as an underscore inside a word has not."""
    import re

    return re.sub(r"[\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w)|^[#+-](?=[#\s])", r"\\\g<0>", text)


def as_csv(columns: Mapping[str, Array]) -> str:
    """Lines of comma-separated values; numbers have all digits, and nan and unknown values are left empty."""
    import csv
    import io

    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(map(printable, columns))
    for row in zip(*(column.tolist() for column in columns.values()), strict=True):
        known = ("" if value is None or value != value else value for value in row)
        lines.writerow(printable(value) if isinstance(value, str) else value for value in known)
    return file.getvalue()


def in_files(statistics: Mapping[str, Any], errors: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
    """Statistics by their names in JSON and CSV, where the errors of an estimate are separate values.

    An estimate is followed by its standard error, unless `errors` names others; it also names those that may be None.
    Quantiles and their intervals are by fraction, as text; tables are lists of rows.
    """
    values: dict[str, Any] = {}
    for name, value in statistics.items():
        is_estimate = isinstance(value, Estimate)
        if name.endswith("_quantiles"):
            intervals = {f"{at:g}": [*one.interval] for at, one in value.items() if one.unit}
            values[name] = {f"{at:g}": float(one) for at, one in value.items()}
            values |= {f"{name.removesuffix('s')}_intervals": intervals} if intervals else {}
            continue
        if isinstance(value, dict) and all(isinstance(column, np.ndarray) for column in value.values()):
            value = rows_of(value)
        values[name] = float(value) if is_estimate else value
        for error in (errors or {}).get(name, ("stderr",) * is_estimate):
            key = error if name == "loss" else f"{name}_{error}"
            values[key] = getattr(value, error) if is_estimate else None
    return values


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """Columns of a table with a row for each of several results: single values and intervals."""
    single = [dict(_single_values(row)) for row in rows]
    names = dict.fromkeys(name for row in single for name in row)
    return {name: _column([row.get(name) for row in single]) for name in names}


def _single_values(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each fact that is one value, and both ends of each interval, with its name."""
    for name, value in facts.items():
        if name.endswith("_interval"):
            ends = (name.replace("_interval", end) for end in ("_low", "_high"))
            yield from zip(ends, value or (None, None), strict=True)
        elif isinstance(value, bool | int | float | str | None):
            yield name, value


def _column(values: list[Any]) -> Array:
    """An array of numbers, in which None becomes nan; of objects where there is text."""
    if all(isinstance(value, int | float | None) and not isinstance(value, bool) for value in values):
        values = [math.nan if value is None else value for value in values]
        return np.array(values)
    return np.array(values, None if all(isinstance(value, bool) for value in values) else np.object_)


class Result(ABC):
    """The methods of every result. Subclasses that have a table also have `columns`."""

    __slots__ = ()

    @abstractmethod
    def _main(self) -> dict[str, str]:
        """The values that `repr` shows, the most important first."""

    @abstractmethod
    def _facts(self) -> dict[str, Any]:
        """Its numbers and short texts by name, with nan and infinities as they are."""

    @abstractmethod
    def _shown(self) -> Shown:
        """The parts that people see."""

    def to_dict(self) -> dict[str, Any]:
        """Return all values by name, ready for JSON; arrays are left out.

        Returns
        -------
        dict
            Numbers that JSON does not have, nan and the infinities, are None. The keys of quantiles and of their
            intervals are fractions as text: "1", "0.999" and so on.
        """
        facts: dict[str, Any] = as_strict_json(self._facts())
        return facts

    def __repr__(self) -> str:
        """Show the main values in a line."""
        return f"{type(self).__name__}({', '.join(f'{name}={text}' for name, text in self._main().items())})"

    def summary(self) -> str:
        """Return the tables that the command prints, as plain text.

        Returns
        -------
        str
            Lines with aligned columns, without a line break at the end.
        """
        return as_text(self._shown())

    def _repr_html_(self) -> str:
        """The same tables in HTML, which notebooks show."""
        return as_html(self._shown())

    def _compared(self) -> dict[str, Any]:
        """The values that `==` compares: the fields of a dataclass, except those with ``compare=False``."""
        fields: Any = vars(type(self))["__dataclass_fields__"]
        return {name: getattr(self, name) for name, field in fields.items() if field.compare}

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the class by its name: cloudpickle (Ray, Spark, joblib) copies classes of modules not yet imported."""
        import_module(type(self).__module__)
        return super().__reduce_ex__(protocol)

    def __eq__(self, other: object) -> bool:
        """Return whether all values and arrays are the same, bit by bit; nan equals nan."""
        return _same(self._compared(), other._compared()) if type(other) is type(self) else NotImplemented


def facts_of(result: Result) -> dict[str, Any]:
    """All values of a result, as `to_dict` has them but not yet as JSON."""
    return result._facts()


def shown_of(result: Result) -> Shown:
    """The title and tables of a result, before anything is added."""
    return result._shown()


class NamedResults(Result, dict[str, ResultT]):
    """Results of several models by name. A subclass has `_facts`, `_shown` and `columns`."""

    def _compared(self) -> dict[str, Any]:
        return dict(self)

    def _main(self) -> dict[str, str]:
        """The main metric of each, with its name."""
        first = {name: next(iter(one._main().items())) for name, one in self.items()}
        return {name: f"{key}={text}" for name, (key, text) in first.items()}

    def __repr__(self) -> str:
        """Show the main metric of each."""
        parts = [f"{shortened(name)!r}: {text}" for name, text in self._main().items()]
        parts[_MAX_NAMED:] = ["..."] * (len(parts) > _MAX_NAMED)
        return f"{type(self).__name__}({', '.join(parts)})"


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same; nan equals nan, and arrays must have the same dtype, shape and bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Estimate):
        return all(map(_same, (float(one), *one._all_errors()), (float(other), *other._all_errors())))
    if isinstance(one, np.ndarray):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        return _same(one.tolist(), other.tolist()) if one.dtype == object else one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other or (one != one and other != other))
