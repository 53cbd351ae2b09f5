"""Charts as SVG, in colors and greys that can be read on white and on dark pages."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes

GREY, OURS = "#7d8590", "#2f81f7"
COLORS = ("#e0562b", "#2f9e5b", "#9068d0", "#a87900", "#d6409f", "#0e97a7")
STYLE: Any = {
    **{f"{thing}.color": GREY for thing in ("text", "xtick", "ytick", "grid")},
    "axes.labelcolor": GREY, "axes.edgecolor": GREY, "axes.titlecolor": GREY,
    "font.family": "sans-serif", "font.size": 10,
    # text stays text, and the same figures give the same bytes
    "svg.fonttype": "none", "svg.hashsalt": "tokenloss",
}  # fmt: skip
TICKS = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
APART = 1.28  # from a name to the one above, so that none lies on another
LONGEST = 8.0  # multiple of tokenloss's time at which a bar breaks off, so that the others can be told apart


def lines(curves: Mapping[str, Mapping[int, float]], title: str, below: str) -> str:
    """Lines by their names: multiples of tokenloss's time over numbers of classes, both on logarithmic axes."""
    classes = sorted({x for curve in curves.values() for x in curve}) or [1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 4.4), facecolor="none")
        axes = figure.add_axes((0.06, 0.14, 0.79, 0.76), facecolor="none", xscale="log", yscale="log")
        axes.set_title(title, loc="left", weight="bold")
        axes.set_xlabel(below, loc="left")
        styles = {"tokenloss": (OURS, 3.0), **{name: (color, 1.8) for name, color in zip(curves, COLORS, strict=False)}}
        named = {"tokenloss": dict.fromkeys(classes, 1.0), **curves}
        place = 0.0
        for name, curve in sorted(named.items(), key=lambda each: [*each[1].values()][-1]):
            (color, width), (last, time) = styles[name], [*curve.items()][-1]
            axes.plot([*curve], [*curve.values()], ".-", color=color, linewidth=width)
            place = max(time, APART * place)
            axes.text(1.2 * last, place, name, color=color, weight="bold", va="center")
        low, high = axes.get_ylim()
        axes.set_yticks([tick for tick in TICKS if low < tick < high])
        axes.set_xticks([x for x in classes if str(x)[0] in "125"])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.tick_params(length=3, labelsize=9)
        axes.minorticks_off()
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
        return _svg(figure)


def bars(groups: Mapping[str, Mapping[str, float]], title: str, below: str) -> str:
    """Groups of horizontal bars below each other: multiples of tokenloss's time by the names of libraries."""
    heights = [len(group) for group in groups.values()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 1.1 + 0.27 * sum(heights) + 0.3 * len(heights)), facecolor="none")
        figure.suptitle(title, x=0.01, y=0.98, ha="left", weight="bold")
        space = {"left": 0.14, "right": 0.93, "top": 1 - 0.75 / figure.get_figheight(), "bottom": 0.07, "hspace": 0.25}
        grid = figure.subplots(len(groups), squeeze=False, gridspec_kw={"height_ratios": heights, **space})
        for axes, (head, group) in zip(grid[:, 0], groups.items(), strict=True):
            _draw_bars(axes, head, dict(sorted(group.items(), key=lambda each: -each[1])))
        figure.text(0.01, 0.012, below, size=9)
        return _svg(figure)


def _draw_bars(axes: Axes, head: str, group: Mapping[str, float]) -> None:
    """A bar for each library, with its number."""
    axes.set(facecolor="none", xlim=(0, LONGEST), xticks=[])
    axes.set_title(head, loc="left", size=10)
    for place, (name, time) in enumerate(group.items()):
        whole = [(0.0, time)] if time <= LONGEST else [(0.0, 0.93 * LONGEST), (0.945 * LONGEST, 0.055 * LONGEST)]
        axes.broken_barh(whole, (place - 0.38, 0.76), color=OURS if name == "tokenloss" else "#8c959f", linewidth=0)
        axes.text(min(time, LONGEST) + 0.08, place, f"{time:.2g}", va="center", weight="bold")
    axes.set_yticks(range(len(group)), [*group])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _svg(figure: Figure) -> str:
    """The figure as SVG, without the time at which it was drawn."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
