"""Rows as data: results declare what they show in tuples of `Row`, which become tables of one result or of several."""

from __future__ import annotations

import math
from collections.abc import Mapping
from string import Formatter
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenloss._core.estimate import Estimate
from tokenloss._core.result import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_QUANTILES = {1.0: "Maximum", 0.5: "Median", 0.0: "Minimum"}


class Row(NamedTuple):
    """A line in the table of one result, or a column in the table of several.

    Texts are templates. In them, `{}` is the value; for an `Estimate`, `{stderr}` is its standard error, and `{low}`
    and `{high}` are the ends of its interval. `{known}` is the value, too, but like errors it is unknown where it is
    nan. Other names are other fields. A format that ends in "%" multiplies by 100, and one that ends in " %" prints
    the sign, too. Values that are text take no format.
    """

    label: str  # the name of the line or the column
    field: str  # attribute or key that has the value; the line is left out where it is missing or None
    text: str = "{:.6g}"  # the cell is empty if it names something unknown
    notes: tuple[str, ...] = ()  # beside the value; one that names something unknown is left out
    otherwise: str = ""  # the note if none of these is known
    when: str = ""  # a field; the line is left out where it is False, 0 or ""
    each: tuple[float, ...] = ()  # the field has quantiles by fraction: a line for each of these


class _Cell(Formatter):
    """The texts of a row for one result, given as mappings or objects: the first that has a field counts."""

    def __init__(self, row: Row, sources: Sequence[object], fraction: float | None = None) -> None:
        self._sources = sources
        self.value: Any = self._get(row.field)
        if fraction is not None and self.value is not None:
            self.value = self.value.get(fraction)
        self.is_shown = self.value is not None and not (row.when and self._get(row.when) in (False, 0, ""))

    def _get(self, name: str) -> Any:
        """The value of a field; None if it is missing."""
        for source in self._sources:
            if name in source if isinstance(source, Mapping) else hasattr(source, name):
                return source[name] if isinstance(source, Mapping) else getattr(source, name)
        return None

    def _error(self, name: str) -> Any:
        """The standard error of an estimate, or an end of its interval; None for other values."""
        if not isinstance(self.value, Estimate):
            return None
        return self.value.stderr if name == "stderr" else self.value.interval[name == "high"]

    def get_value(self, key: int | str, args: Any, kwargs: Any) -> Any:
        """The value that a template names; KeyError if it is unknown."""
        is_error = key in ("stderr", "low", "high")
        value = self._error(str(key)) if is_error else self.value if key in (0, "known") else self._get(str(key))
        is_nan = isinstance(value, float) and math.isnan(value)
        if value is None or (is_nan and (is_error or key == "known")):
            raise KeyError(key)
        return value

    def format_field(self, value: Any, format_spec: str) -> str:
        """The text of a value."""
        if isinstance(value, str):
            return value
        plain = format_spec.removesuffix("%")
        return format(value if plain == format_spec else 100 * value, plain.rstrip()) + " %" * plain.endswith(" ")

    def filled(self, template: str) -> str:
        """The text of a template; empty if it names something unknown."""
        try:
            return self.format(template)
        except KeyError:
            return ""


def table(rows: Iterable[Row], *sources: object, title: str = "") -> Table:
    """The table of one result: labels, values and, if a row has any, notes."""
    rows, lines = tuple(rows), []
    for row in rows:
        for fraction in row.each or (None,):
            cell = _Cell(row, sources, fraction)
            if cell.is_shown:
                label = row.label if fraction is None else quantile_label(fraction, row.label)
                notes = "; ".join(filter(None, map(cell.filled, row.notes))) or cell.filled(row.otherwise)
                lines.append((cell.filled(label), cell.filled(row.text), notes))
    width = 3 if any(row.notes for row in rows) else 2
    return Table([line[:width] for line in lines], title=title)


def table_of_several(
    rows: Iterable[Row], results: Sequence[Sequence[object]], title: str = "", keep_empty: bool = True
) -> Table:
    """A table with a line for each result, given by its sources, without columns that no result has or shows."""
    columns = []
    for row in rows:
        cells = [_Cell(row, sources, *row.each) for sources in results]
        texts = [cell.filled(row.text) if cell.is_shown else "" for cell in cells]
        if any(texts) or (keep_empty and (any(cell.is_shown for cell in cells) or not cells)):
            columns.append((row.label, *texts))
    heads, *lines = zip(*columns, strict=True) if columns else ((),)
    return Table(lines, heads, title)


def quantile_label(fraction: float, what: str) -> str:
    """The label of a quantile."""
    return f"{_QUANTILES.get(fraction, f'{100 * fraction:4.1f}%'):<7} {what}"
