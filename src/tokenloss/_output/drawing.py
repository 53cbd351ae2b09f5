"""Helpers of all plots: colors, titles, axes, masks and files."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core.errors import raise_error
from tokenloss._core.files import replacing
from tokenloss._core.text import printable
from tokenloss._core.validation import check_mask
from tokenloss._statistics.sequences import check_segment_ids

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Literal

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tokenloss._core.types import Array, ArrayLike

INK, DIM, LINE, BLUE, ORANGE = "#1f2328", "#59636e", "#d1d9e0", "#0969da", "#d1570b"
CURVE_POINTS = 1000  # that a curve is drawn through
PLOT_MIN, PLOT_MAX = 1e-30, 1e30  # matplotlib's axes overflow beyond this range
_GROUPS_HEIGHT = 3.4  # inches
_MOST_LABELS = 24  # of groups
_OF_GROUPS = (("kl", "kl_stderr"), ("kl_bound", "kl_bound_stderr"), ("k3", "k3_stderr"), ("loss", "stderr"))
_MAX_TITLE_LENGTH = 80
_SUFFIXES = (".png", ".svg", ".pdf")


def check(path: str | os.PathLike[str]) -> None:
    """Check that a figure can be drawn and saved under this name, before long work.

    Parameters
    ----------
    path : path-like
        Path for `save`.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    ValueError
        If the name does not end in .png, .svg or .pdf.

    Examples
    --------
    >>> from tokenloss import plots
    >>> plots.check("losses.jpeg")
    Traceback (most recent call last):
    ValueError: path is 'losses.jpeg'; it must be a name that ends in .png, .svg or .pdf
    """
    if Path(path).suffix.lower() not in _SUFFIXES:
        raise_error("option", name="path", got=str(path), fits="a name that ends in .png, .svg or .pdf")
    empty_figure("", (1, 1))


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Save a figure as PNG, SVG or PDF, by the name's suffix.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Figure drawn by a function of this module.
    path : path-like
        File to write. An existing file is replaced when the new one is complete.

    Raises
    ------
    ValueError
        If the name does not end in .png, .svg or .pdf.
    OSError
        If the file cannot be written; an existing file is unchanged.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from tokenloss import plots
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plots.save(plots.draw_losses([0.36, 0.02, 0.22]), pathlib.Path(folder, "losses.svg"))
    """
    check(path)
    with replacing(path) as file, boxes_for_missing_letters():
        figure.savefig(file, format=Path(path).suffix[1:].lower(), dpi=150)


def empty_figure(title: str, size: tuple[float, float]) -> Figure:
    """A figure with only a title."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise_error("missing", name="a figure", got="matplotlib")
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.03)
    figure = Figure(figsize=size, layout=layout, facecolor="white")
    if title:
        title = printable(title)
        if len(title) > _MAX_TITLE_LENGTH:
            title = f"{title[: _MAX_TITLE_LENGTH - 1]}…"
        figure.suptitle(title, x=0.012, ha="left", weight="bold", fontsize=13, color=INK, parse_math=False)
    return figure


@contextlib.contextmanager
def boxes_for_missing_letters() -> Iterator[None]:
    """Draw letters that the font lacks as boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def mask_of(where: ArrayLike | None, shape: tuple[int, ...]) -> Array:
    """One-dimensional mask of the tokens that are kept."""
    return np.broadcast_to(np.True_, shape).reshape(-1) if where is None else check_mask(where, shape).reshape(-1)


def sequence_numbers(segment_ids: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """One-dimensional numbers of the tokens' sequences, if given."""
    return None if segment_ids is None else check_segment_ids(segment_ids, shape).reshape(-1)


def in_plot_range(values: Array) -> Array:
    """Mask of the values in the range that can be drawn."""
    return abs(values) <= PLOT_MAX


def excluded_note(values: Array) -> str:
    """Note about values that cannot be drawn; empty without such values."""
    infinite, nan = np.isinf(values), np.isnan(values)
    kinds = {"infinite": infinite, "nan": nan, f"above {PLOT_MAX:.0e}": ~(infinite | nan | in_plot_range(values))}
    words = [f"{count:,} {name}" for name, which in kinds.items() if (count := np.count_nonzero(which))]
    return f"{' and '.join(words)} left out" if words else ""


def style(axes: Axes, title: str, notes: Sequence[str], x: str, y: str) -> None:
    """Set titles, labels and a plain style."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_title("; ".join(filter(None, notes)), loc="right", fontsize=9, color=DIM)
    axes.set_xlabel(x, color=DIM)
    axes.set_ylabel(y, color=DIM)
    axes.tick_params(colors=DIM, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)


def mark_if_empty(axes: Axes, count: int) -> bool:
    """Write "nothing to draw" on the axes if there are no values to plot; return whether that is so."""
    if count == 0:
        axes.text(0.5, 0.5, "nothing to draw", transform=axes.transAxes, ha="center", va="center", color=DIM)
        axes.set_xticks([])
        axes.set_yticks([])
    return count == 0


def add_legend(axes: Axes, place: Literal["best", "upper right", "lower right"]) -> None:
    """Add a legend of the lines."""
    axes.legend(loc=place, framealpha=0.85, edgecolor="none", fontsize=9, labelcolor=INK)


def with_groups(
    figure: Figure, groups: Mapping[str, Mapping[str, Array] | None], quantity: str, colors: Sequence[str] = (BLUE,)
) -> Any:
    """The upper part of a figure whose lower part shows the means of groups; without groups, the figure itself.

    `groups` are tables by the name of the model, as `Evaluation.groups` or `Comparison.groups`.
    """
    tables = {name: table for name, table in groups.items() if table is not None and len(table["group"])}
    if not tables:
        return figure
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + _GROUPS_HEIGHT)
    parts: Any = figure.subfigures(2, 1, height_ratios=(height, _GROUPS_HEIGHT))
    upper, lower = parts
    axes = lower.subplots()
    style(axes, f"{quantity} by group", ("bars: one standard error",), "group", f"{quantity.lower()} in nats")
    labels = list(dict.fromkeys(label for table in tables.values() for label in table["group"].tolist()))
    for number, (name, table) in enumerate(tables.items()):
        field, error = next(one for one in _OF_GROUPS if one[0] in table)
        places = [labels.index(label) for label in table["group"].tolist()]
        color, errors = colors[number % len(colors)], np.nan_to_num(table[error])
        axes.errorbar(places, table[field], errors, fmt="o-", color=color, markersize=4, label=printable(name))
    every = range(0, len(labels), -(-len(labels) // _MOST_LABELS))
    texts = ["none" if labels[i] is None else printable(str(labels[i])) for i in every]
    axes.set_xticks([*every], texts, parse_math=False, rotation=30 if max(map(len, texts)) > 6 else 0)
    if len(tables) > 1:
        for text in axes.legend(framealpha=0.85, edgecolor="none", fontsize=9, labelcolor=INK).get_texts():
            text.set_parse_math(False)
    return upper
