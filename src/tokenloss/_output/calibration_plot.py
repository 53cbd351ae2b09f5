"""The reliability diagram of a calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenloss._core.errors import raise_error
from tokenloss._core.text import count_of
from tokenloss._output import drawing
from tokenloss._output.drawing import BLUE, DIM, ORANGE
from tokenloss._statistics.reliability import Calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
