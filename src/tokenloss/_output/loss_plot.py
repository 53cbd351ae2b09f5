"""The plot of the losses of a text: along it, their histogram, and the calibration of the greedy probability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core.errors import raise_error
from tokenloss._core.exact import ExactMoments
from tokenloss._core.text import count_of, title
from tokenloss._evaluation.sink import Sink
from tokenloss._output import drawing
from tokenloss._output.drawing import BLUE, CURVE_POINTS, DIM, ORANGE, PLOT_MIN
from tokenloss._output.shared import Collected

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tokenloss._core.types import Array, ArrayLike
    from tokenloss._evaluation.results import Evaluation
    from tokenloss._evaluation.sink import Block, Needs, Schema

_MAX_DOTS = 3000
_BINS = 10  # of the probability, in the reliability diagram


class LossPlot(Sink):
    """A plot of the losses along the text, their histogram and the calibration: ``tokenloss score --plot``.

    It is a .png, .svg or .pdf file.

    Parameters
    ----------
    path : path-like
        File to write. An existing file is replaced when the new one is complete.

    Raises
    ------
    ValueError
        If the name has another suffix.
    ImportError
        If matplotlib is not installed.

    See Also
    --------
    tokenloss.plots.draw_losses : The same of arrays.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import evaluate, sinks
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = pathlib.Path(directory) / "losses.png"
    ...     _ = evaluate([(np.zeros((2, 3, 4)), np.ones((2, 3), int))], sinks=[sinks.LossPlot(path)])
    ...     path.read_bytes()[1:4]
    b'PNG'
    """

    __module__ = "tokenloss.sinks"

    option = "--plot"
    help = "draw the losses to a .png, .svg or .pdf file"
    rows = "tokens"
    needs: Needs = ({"nll", "is_greedy"},)
    top_k = 1

    def __init__(self, path: str) -> None:
        drawing.check(path)
        super().__init__(path)

    def open(self, schema: Schema) -> AbstractContextManager[object]:
        names = ("nll", "kept", "is_greedy", "is_greedy_known", "file", "sequence")
        self._tokens = Collected((column for column in schema.tokens if column.name in names), top_k=schema.top_k)
        return super().open(schema)

    def write(self, block: Block) -> None:
        self._tokens.add(block.columns, block.tops.get(""))

    def finish(self, result: Evaluation) -> None:
        columns = self._tokens.joined()
        greedy: dict[str, Any] = {}
        if "top_logprobs" in columns:  # if the file has any classes
            greedy = {"greedy_logprobs": columns["top_logprobs"][:, 0], "is_greedy": columns["is_greedy"]}
        if "is_greedy_known" in columns:
            logprobs = np.where(columns["is_greedy_known"], greedy.pop("greedy_logprobs"), np.nan)
            greedy = greedy | {"greedy_logprobs": logprobs} if not np.isnan(logprobs).all() else {}
        name = title(result.figures["files"])
        starts = np.diff(columns["file"], prepend=0) | np.diff(columns["sequence"], prepend=0)
        ids = np.cumsum(starts != 0)  # numbers of the sequences across all files
        given: dict[str, Any] = {"where": columns["kept"], "segment_ids": ids, "groups": result.groups, "title": name}
        figure = draw_losses(columns["nll"], **given, **greedy)
        drawing.save(figure, self.path)


def draw_losses(
    nll: ArrayLike,
    *,
    where: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    greedy_logprobs: ArrayLike | None = None,
    is_greedy: ArrayLike | None = None,
    groups: Mapping[str, Array] | None = None,
    title: str = "",
) -> Figure:
    """Draw the losses of a text: along it, their histogram, and how well the greedy probability is calibrated.

    Parameters
    ----------
    nll : array of floats
        Loss of each token in nats, in the order of the text.
    where : array of bool, optional
        Mask of the tokens to include, broadcast over `nll`: ``scores.kept`` of `token_scores`.
    segment_ids : array of integers, optional
        Number of the sequence of each token, broadcast over `nll`: the running mean ends where a sequence does.
    greedy_logprobs : array of floats, optional
        Log-probability of the most likely class at each token, in the shape of `nll`: ``scores.top_logprobs[..., 0]``.
        Without it the calibration is not drawn.
    is_greedy : array of bool, optional
        Whether the most likely class is the target; required with `greedy_logprobs`.
    groups : dict of 1-D arrays, optional
        Table of groups, as `Evaluation.groups`, whose losses are drawn below.
    title : str, optional
        Title.

    Returns
    -------
    matplotlib.figure.Figure
        Figure for `save`, or for a notebook to show.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    TypeError, ValueError
        If an argument is invalid.

    Notes
    -----
    At most 3,000 tokens are drawn as dots, chosen at random, and the figure says so; curves, bins and numbers are of
    all tokens. Losses that are infinite or nan are counted and left out. The running mean is of the tokens near each
    position; it ends where a sequence does, and at tokens that are not included or nan.

    The expected calibration error is ``sum(n_b / n * abs(accuracy_b - probability_b))`` over ten bins of equal width
    of the probability: Guo et al., "On calibration of modern neural networks", 2017.

    Examples
    --------
    >>> from tokenloss import plots, token_scores
    >>> scores = token_scores([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], [0, 1], top_k=1)
    >>> figure = plots.draw_losses(
    ...     scores.nll, greedy_logprobs=scores.top_logprobs[..., 0], is_greedy=scores.is_greedy
    ... )
    >>> [axes.get_title(loc="left") for axes in figure.axes]
    ['Loss along the text', 'Histogram of the losses', 'Calibration']
    """
    losses = np.asarray(nll, np.float64)
    shape = losses.shape
    kept = drawing.mask_of(where, shape)
    all_losses = losses.reshape(-1)
    calibrated = greedy_logprobs is not None
    if calibrated:
        probability = np.exp(_as_1d("greedy_logprobs", greedy_logprobs, np.float64, shape)[kept])
        right = _as_1d("is_greedy", is_greedy, np.bool_, shape)[kept]
    figure = drawing.empty_figure(title, (10, 7.2))
    upper = drawing.with_groups(figure, {"": groups}, "Loss")
    axes = upper.subplot_mosaic("TT;HC" if calibrated else "TT;HH")
    positions = np.flatnonzero(kept & drawing.in_plot_range(all_losses))
    note = drawing.excluded_note(all_losses[kept])
    losses = all_losses[positions]
    ids = drawing.sequence_numbers(segment_ids, shape)
    _draw_text(axes["T"], positions, losses, _run_starts(kept & ~np.isnan(all_losses), ids, positions), note)
    _draw_histogram(axes["H"], losses)
    if calibrated:
        _draw_calibration(axes["C"], probability, right)
    return figure


def _as_1d(name: str, value: ArrayLike | None, dtype: Any, shape: tuple[int, ...]) -> Array:
    """One-dimensional view of an array of the given shape."""
    array = np.asarray(value, dtype)
    if array.shape != shape:
        raise_error("shape", name=name, got=array.shape, fits=f"{shape}")
    return array.reshape(-1)


def _draw_text(axes: Axes, positions: Array, losses: Array, starts: Array, excluded: str) -> None:
    """Draw the losses along the text, and their running mean in each run of tokens."""
    from matplotlib.ticker import MaxNLocator

    size = len(losses)
    dots = np.arange(size)
    drawn = count_of(size, "token")
    if size > _MAX_DOTS:
        dots = np.random.default_rng(0).choice(size, _MAX_DOTS, replace=False)
        drawn = f"{_MAX_DOTS:,} of {drawn} drawn, at random"
    drawing.style(axes, "Loss along the text", (drawn, excluded), "token", "loss in nats")
    if drawing.mark_if_empty(axes, size):
        return
    width, alpha = (10, 0.75) if size < 300 else (5, 0.35)
    axes.plot(
        positions[dots], losses[dots], ".", color=BLUE, alpha=alpha, markersize=width, markeredgewidth=0, clip_on=False
    )
    half = max(2, size // 100)
    label = f"mean of {count_of(min(2 * half + 1, size), 'token')}"
    axes.plot(*_running_mean(positions, losses, starts, half), color=ORANGE, linewidth=1.8, label=label)
    drawing.add_legend(axes, "upper right")
    pad = max(0.5, (positions[-1] - positions[0]) / 100)
    axes.set_xlim(positions[0] - pad, positions[-1] + pad)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _running_mean(positions: Array, losses: Array, starts: Array, half: int) -> tuple[Array, Array]:
    """Points of the running mean of the losses up to `half` positions away in the same run; nan between runs.

    The means are over the losses that can be drawn; `starts` are those at which a run begins, the first one left out.
    """
    size = len(losses)
    bounds = np.concatenate([[0], starts, [size]])
    ends = np.concatenate([bounds[:-1], bounds[1:] - 1])  # so that a short run is drawn whole
    middle = np.unique(np.concatenate([np.linspace(0, size - 1, CURVE_POINTS).astype(np.intp), ends]))
    run = np.searchsorted(starts, middle, "right")
    first = np.maximum(bounds[run], np.searchsorted(positions, positions[middle] - half))
    last = np.minimum(bounds[run + 1], np.searchsorted(positions, positions[middle] + half, "right"))
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    gaps = np.flatnonzero(np.diff(run)) + 1
    means = (sums[last] - sums[first]) / (last - first)
    return np.insert(positions[middle].astype(np.float64), gaps, np.nan), np.insert(means, gaps, np.nan)


def _run_starts(is_scored: Array, ids: Array | None, positions: Array) -> Array:
    """Mask of the tokens at these positions that begin a run, except the first token.

    A run ends at a token that is not scored, and where a sequence does.
    """
    runs = np.cumsum(~is_scored)
    is_start = np.diff(runs[positions]) != 0
    if ids is not None:
        is_start |= np.diff(np.cumsum(np.diff(ids, prepend=ids[:1]) != 0)[positions]) != 0
    return np.flatnonzero(is_start) + 1


def _draw_histogram(axes: Axes, losses: Array) -> None:
    """Draw a histogram of the losses."""
    drawing.style(axes, "Histogram of the losses", (), "loss in nats", "% of the tokens")
    if drawing.mark_if_empty(axes, len(losses)):
        return
    top = losses.max() if losses.max() > PLOT_MIN else 1
    counts, edges = np.histogram(losses, min(50, 10 + int(len(losses) ** 0.5)), (0, top))
    axes.stairs(100 * counts / len(losses), edges, fill=True, color=BLUE, alpha=0.75)
    mean = ExactMoments.of(losses).mean
    for name, value, dashes in ("mean", mean, "-"), ("median", np.median(losses), "--"):
        axes.axvline(value, color=ORANGE, linestyle=dashes, linewidth=1.5, label=f"{name} {value:.4g}")
    drawing.add_legend(axes, "best")
    axes.margins(x=0.02)


def _draw_calibration(axes: Axes, probability: Array, right: Array) -> None:
    """Draw a reliability diagram."""
    excluded = drawing.excluded_note(probability)
    sane = ~np.isnan(probability)
    probability, right = probability[sane], right[sane]
    bins = np.minimum((probability * _BINS).astype(np.intp), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    full = np.flatnonzero(counts)
    means = np.bincount(bins, probability, _BINS)[full] / counts[full]
    accuracy = np.bincount(bins, right, _BINS)[full] / counts[full]
    error = np.sum(counts[full] * abs(accuracy - means)) / len(bins) if len(bins) else np.nan
    notes = (f"expected calibration error {100 * error:.3g} %", excluded)
    drawing.style(axes, "Calibration", notes, "probability of the likeliest token", "how often it was right")
    if drawing.mark_if_empty(axes, len(bins)):
        return
    axes.plot([0, 1], [0, 1], "--", color=DIM, linewidth=1)
    axes.bar((full + 0.5) / _BINS, accuracy, 0.92 / _BINS, color=BLUE, alpha=0.75)
    axes.vlines(means, accuracy, means, color=ORANGE, linewidth=2)
    axes.plot(means, accuracy, "o", color=ORANGE, markersize=4)
    axes.text(-0.015, 1.02, "tokens", ha="right", va="bottom", fontsize=8, color=DIM)
    for k in full:
        axes.text((k + 0.5) / _BINS, 1.02, _abbreviate(counts[k]), ha="center", va="bottom", fontsize=8, color=DIM)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.1)


def _abbreviate(count: int) -> str:
    """A count, abbreviated to a few characters."""
    if count < 10_000:
        return str(count)
    return f"{count / 1e3:.0f}k" if count < 1e6 else f"{count / 1e6:.1f}M"
