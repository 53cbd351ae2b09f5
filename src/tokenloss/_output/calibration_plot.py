"""The reliability diagram: a figure for one calibration, and a panel for several on pages."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tokenloss._core.errors import raise_error
from tokenloss._core.result import formatted as number
from tokenloss._core.result import rows_of
from tokenloss._core.text import count_of
from tokenloss._output import drawing, page
from tokenloss._output.drawing import BLUE, DIM, ORANGE
from tokenloss._statistics.reliability import Calibration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

_COLORS = ("var(--wrong)", "var(--accent)")  # of a page, for one calibration or two
_PANEL = """
<figure class="reliability"><svg viewBox="-12 -4 116 118" role="img" aria-label="Reliability: accuracy over confidence">
<path class="axes" d="M0 0V100H100"/><path class="axes" d="M0 100L100 0" stroke-dasharray="2"/>{ticks}{shapes}</svg>
<figcaption>Accuracy over the mean confidence of each bin, ± one standard error; calibrated models are on the line.<br>
{legend}</figcaption></figure>"""
_TICK = '<text x="{at}" y="107" text-anchor="middle">{of:g}</text><text x="-2" y="{up}" text-anchor="end">{of:g}</text>'
_POINT = (
    '<path d="M{x:.2f} {top:.2f}V{end:.2f}"/><circle cx="{x:.2f}" cy="{y:.2f}" r="1.3"><title>{count:,} tokens: '
    "confidence {confidence:.4f}, accuracy {accuracy:.4f}</title></circle>"
)


def reliability_panel(calibrations: Mapping[str, Calibration | None]) -> str:
    """HTML of the reliability diagram of one or two calibrations, by the names of models; "" without any."""
    shapes, legend = [], []
    for color, (name, one) in zip(_COLORS, calibrations.items(), strict=False):
        if one is None:
            return ""
        points = []
        for row in rows_of(one.bins):
            x, y = 100 * row["confidence"], 100 - 100 * row["accuracy"]
            error = 0.0 if math.isnan(row["accuracy_stderr"]) else 100 * row["accuracy_stderr"]
            points.append(_POINT.format(x=x, y=y, top=max(y - error, 0), end=min(y + error, 100), **row))
        shapes.append(f'<g style="color: {color}">{"".join(points)}</g>')
        words = f"{name}: ".removeprefix(": ") + f"calibration error {number(one.ece, one.ece.stderr, 4)}"
        words += "" if one.temperature is None else f", best temperature {number(one.temperature, digits=4)}"
        legend.append(f'<b style="color: {color}">{page.escaped(words)}</b>')
    ticks = "".join(_TICK.format(at=at, up=102 - at, of=at / 100) for at in (0, 50, 100))
    return _PANEL.format(ticks=ticks, shapes="".join(shapes), legend="<br>".join(legend))


def draw_calibration(calibration: Calibration, *, title: str = "") -> Figure:
    """Draw a reliability diagram: the accuracy of each bin over its mean confidence.

    Parameters
    ----------
    calibration : Calibration
        Result of `calibration`, or `Evaluation.calibration`.
    title : str, optional
        Title.

    Returns
    -------
    matplotlib.figure.Figure
        Figure for `save`, or for a notebook to show.

    Raises
    ------
    ImportError, TypeError
        As in `draw_losses`.

    Notes
    -----
    Vertical bars are one standard error to each side. A perfectly calibrated model is on the dashed line, up to chance;
    below it, a model is too sure. The step at the bottom is the share of the tokens in each bin.

    Examples
    --------
    >>> from tokenloss import calibration, plots
    >>> result = calibration([0.1, 0.3, 0.6, 0.9, 0.8], [0, 1, 1, 1, 0], kind="probs", bins=2)
    >>> plots.draw_calibration(result).axes[0].get_title(loc="left")
    'Calibration'
    """
    if not isinstance(calibration, Calibration):
        raise_error("type", name="calibration", got=type(calibration).__name__, fits="a Calibration")
    bins, size = calibration.bins, calibration.bins["count"].size
    figure = drawing.empty_figure(title, (6.4, 6))
    axes = figure.subplots()
    error = f"expected calibration error {calibration.ece:.4f}"
    notes = (f"{error} ± {calibration.ece.stderr:.2g}", count_of(calibration.count, "token"))
    drawing.style(axes, "Calibration", notes, "mean confidence of a bin", "how often it was right")
    if drawing.mark_if_empty(axes, size):
        return figure
    axes.plot([0, 1], [0, 1], "--", color=DIM, linewidth=1)
    share = bins["count"] / bins["count"].sum()
    axes.bar(bins["low"], share, bins["high"] - bins["low"], align="edge", color=BLUE, alpha=0.25)
    axes.vlines(bins["confidence"], bins["accuracy"], bins["confidence"], color=ORANGE, linewidth=1, alpha=0.6)
    axes.errorbar(
        bins["confidence"], bins["accuracy"], bins["accuracy_stderr"], fmt="o", color=ORANGE, markersize=4, elinewidth=2
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.02, 1.05)
    return figure
