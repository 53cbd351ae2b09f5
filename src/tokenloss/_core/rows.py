"""Rows as data: what a result shows is declared in tuples of `Row`, which become tables of one result or of several."""

from __future__ import annotations

import math
from collections.abc import Mapping
from string import Formatter
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenloss._core.estimate import Estimate
from tokenloss._core.result import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_WORDS = {1.0: "Maximum", 0.5: "Median", 0.0: "Minimum"}  # for quantiles


class Row(NamedTuple):
    """A line in the table of one result, or a column in the table of several.

    Texts are templates. In them, `{}` is the value, `{stderr}` its standard error, and `{low}` and `{high}` are the
    ends of its interval; `{known}` is the value, too, but like errors it is unknown where it is nan. Other names are
    other fields. A format that ends in "%" multiplies by 100, and one that ends in " %" prints the sign, too. Values
    that are text take no format.
    """

    label: str  # what the line or the column is called
    field: str = ""  # attribute or key that has the value; the line is left out where it is missing or None
    text: str = "{:.6g}"  # empty where it names something unknown
    notes: tuple[str, ...] = ()  # beside the value; one that names something unknown is left out
    otherwise: str = ""  # the note where none of these is known
    when: str = ""  # a field; the line is left out where it is False or 0
    each: tuple[float, ...] = ()  # the field has quantiles by fraction: a line for each of these


class _UnknownValueError(Exception):
    """A template names a value that is not known."""


class _Cell(Formatter):
    """The texts of a row for one result, which is given as mappings or objects: the first that has a field counts."""

    def __init__(self, row: Row, sources: Sequence[object], fraction: float | None = None) -> None:
        self._row, self._sources, self._fraction = row, sources, fraction
        self.value: Any = ""
        if row.field:
            self.value = self._get(row.field)
        if fraction is not None and self.value is not None:
            self.value = self.value[fraction]
        is_hidden = row.when and self._get(row.when) in (False, 0)  # False is 0
        self.is_shown = self.value is not None and not is_hidden

    def _get(self, name: str) -> Any:
        """The value of a field; None if it is missing."""
        for source in self._sources:
            if isinstance(source, Mapping):
                if name in source:
                    return source[name]
            elif hasattr(source, name):
                return getattr(source, name)
        return None

    def _error(self, name: str) -> Any:
        """The standard error of the value, or an end of its interval; some have fields of their own."""
        field, estimate = self._row.field, self.value if isinstance(self.value, Estimate) else None
        if name == "stderr":
            return estimate.stderr if estimate is not None else self._get(f"{field}_stderr")
        interval = estimate.interval if estimate is not None else self._get(f"{field}_interval")
        if self._fraction is not None:
            interval = (self._get(f"{field.removesuffix('s')}_intervals") or {}).get(self._fraction)
        return None if interval is None else interval[name == "high"]

    def get_value(self, key: int | str, args: Any, kwargs: Any) -> Any:
        """The value that a template names."""
        is_error = key in ("stderr", "low", "high")
        value = self._error(str(key)) if is_error else self.value if key in (0, "known") else self._get(str(key))
        is_nan = isinstance(value, float) and math.isnan(value)
        if value is None or (is_nan and (is_error or key == "known")):
            raise _UnknownValueError
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
        except _UnknownValueError:
            return ""


def lines(rows: Iterable[Row], *sources: object) -> list[tuple[str, str, str]]:
    """The label, value and note of each row that a result has."""
    found = []
    for row in rows:
        for fraction in row.each or (None,):
            cell = _Cell(row, sources, fraction)
            if cell.is_shown:
                label = cell.filled(row.label if fraction is None else quantile_label(fraction, row.label))
                notes = "; ".join(filter(None, map(cell.filled, row.notes)))
                found.append((label, cell.filled(row.text), notes or cell.filled(row.otherwise)))
    return found


def table(rows: Iterable[Row], *sources: object, title: str = "") -> Table:
    """The table of one result, without a column of notes if no row has any."""
    rows = tuple(rows)
    width = 3 if any(row.notes for row in rows) else 2
    return Table([line[:width] for line in lines(rows, *sources)], title=title)


def table_of_several(
    rows: Iterable[Row], results: Sequence[Sequence[object]], title: str = "", keep_empty: bool = True
) -> Table:
    """A table with a line for each result, given by its sources; without columns that none has, or that are empty."""
    heads, columns = [], []
    for row in rows:
        cells = [_Cell(row, sources, *row.each) for sources in results]
        texts = [cell.filled(row.text) if cell.is_shown else "" for cell in cells]
        if any(texts) or (keep_empty and (any(cell.is_shown for cell in cells) or not cells)):
            heads.append(row.label)
            columns.append(texts)
    return Table([*zip(*columns, strict=True)], tuple(heads), title)


def quantile_label(fraction: float, what: str) -> str:
    """What a quantile is called."""
    return f"{_WORDS.get(fraction, f'{100 * fraction:4.1f}%'):<7} {what}"
