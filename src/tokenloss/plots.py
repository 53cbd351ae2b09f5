"""Figures for people, drawn by matplotlib without pyplot: nothing global is changed and no display is needed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss import _arrays
from tokenloss._exact import ExactMoments
from tokenloss._files import replacing
from tokenloss._terminal import printable

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Literal

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tokenloss._types import Array, ArrayLike

_SUFFIXES = (".png", ".svg", ".pdf")
_INK, _DIM, _LINE, _BLUE, _ORANGE = "#1f2328", "#59636e", "#d1d9e0", "#0969da", "#d1570b"
_MOST_DOTS = 3000
_MOST_POINTS = 1000  # of a curve
_BINS = 10  # of probability
_LONGEST_TITLE = 80
_LEAST, _MOST = 1e-30, 1e30  # that is drawn: the arithmetic of axes overflows where numbers do

# What people who publish quantised models quote.
_QUANTILES = {
    0.0: "min", 0.001: "0.1 %", 0.01: "1 %", 0.05: "5 %", 0.1: "10 %", 0.5: "median",
    0.9: "90 %", 0.95: "95 %", 0.99: "99 %", 0.999: "99.9 %", 1.0: "max",
}  # fmt: skip


def draw_losses(
    nll: ArrayLike,
    *,
    where: ArrayLike | None = None,
    greedy_logprobs: ArrayLike | None = None,
    is_greedy: ArrayLike | None = None,
    title: str = "",
) -> Figure:
    """Draw the losses of a text: along it, their histogram, and how well the greedy probability is calibrated.

    Parameters
    ----------
    nll : array of floats
        The loss of each token in nats, in the order of the text.
    where : array of bool, optional
        The tokens that are kept, broadcast over `nll`: ``scores.kept`` of `token_scores`.
    greedy_logprobs : array of floats, optional
        The log-probability of each likeliest token, of the shape of `nll`: ``scores.top_logprobs[..., 0]``. Without it
        there is no picture of the calibration.
    is_greedy : array of bool, optional
        Whether the likeliest token is the target; it goes with `greedy_logprobs`.
    title : str, optional
        The headline.

    Returns
    -------
    matplotlib.figure.Figure
        To be given to `save`, or shown by a notebook.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    Of more than 3,000 tokens as many are drawn as dots, chosen at random, and the figure says so; curves, bins and
    figures are of all. Losses that are infinite or nan are counted and left out.

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
    kept = _mask(where, shape)
    losses = losses.reshape(-1)
    calibrated = greedy_logprobs is not None
    if calibrated:
        probability = np.exp(_flat("greedy_logprobs", greedy_logprobs, np.float64, shape)[kept])
        right = _flat("is_greedy", is_greedy, np.bool_, shape)[kept]
    figure = _figure(title, (10, 7.2))
    axes = figure.subplot_mosaic("TT;HC" if calibrated else "TT;HH")
    positions = np.flatnonzero(kept & _drawable(losses))
    note = _left_out(losses[kept])
    losses = losses[positions]
    _draw_text(axes["T"], positions, losses, note)
    _draw_histogram(axes["H"], losses)
    if calibrated:
        _draw_calibration(axes["C"], probability, right)
    return figure


def draw_divergences(kl: ArrayLike, *, where: ArrayLike | None = None, title: str = "") -> Figure:
    """Draw the quantiles of the Kullback-Leibler divergences of a text's tokens.

    Parameters
    ----------
    kl : array of floats
        The divergence of each token in nats, as ``kl_divergence(..., reduction="none")`` gives it.
    where : array of bool, optional
        The tokens that are kept, broadcast over `kl`.
    title : str, optional
        The headline.

    Returns
    -------
    matplotlib.figure.Figure
        To be given to `save`, or shown by a notebook.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    Quantiles are interpolated linearly, as `numpy.quantile` does. Divergences that are infinite or nan are counted and
    left out; quantiles that are not above zero have no place on the logarithmic axis.

    Examples
    --------
    >>> from tokenloss import kl_divergence, plots
    >>> kl = kl_divergence([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], [[2.0, 1.0, 0.5], [0.5, 3.0, 0.0]], reduction="none")
    >>> figure = plots.draw_divergences(kl)
    >>> figure.axes[0].get_title(loc="left")
    'Quantiles of the KL divergence'
    """
    values = np.asarray(kl, np.float64)
    kept = values.reshape(-1)[_mask(where, values.shape)]
    figure = _figure(title, (10, 5.2))
    _draw_quantiles(figure.subplots(), np.sort(kept[_drawable(kept)]), _left_out(kept))
    return figure


def check(path: str | os.PathLike[str]) -> None:
    """Make sure that a figure can be drawn and saved under this name, before long work.

    Parameters
    ----------
    path : path-like
        What `save` will be given.

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
        _arrays.fail("option", name="path", got=str(path), fits="a name that ends in .png, .svg or .pdf")
    _figure("", (1, 1))


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Save a figure as PNG, SVG or PDF, by the name's suffix.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        What one of this module's functions drew.
    path : path-like
        The file to write. What was there is replaced when the figure is complete.

    Raises
    ------
    ValueError
        If the name does not end in .png, .svg or .pdf.
    OSError
        If the file cannot be written; what was there stays.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from tokenloss import plots
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plots.save(plots.draw_losses([0.36, 0.02, 0.22]), pathlib.Path(folder, "losses.svg"))
    """
    check(path)
    with replacing(path) as file, warnings.catch_warnings():
        # characters of a title that the font lacks are drawn as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(file, format=Path(path).suffix[1:].lower(), dpi=150)


# -- input ------------------------------------------------------------------------------------------------------------


def _flat(name: str, value: ArrayLike | None, dtype: Any, shape: tuple[int, ...]) -> Array:
    """One dimension of an array that must have this shape."""
    array = np.asarray(value, dtype)
    if array.shape != shape:
        _arrays.fail("shape", name=name, got=array.shape, fits=f"{shape}")
    return array.reshape(-1)


def _mask(where: ArrayLike | None, shape: tuple[int, ...]) -> Array:
    """The tokens that are kept, in one dimension."""
    return np.broadcast_to(np.True_, shape).reshape(-1) if where is None else _arrays.mask(where, shape).reshape(-1)


def _drawable(values: Array) -> Array:
    """Which values can be drawn."""
    return abs(values) <= _MOST


def _left_out(values: Array) -> str:
    """How many values cannot be drawn, if any."""
    infinite, nan = np.isinf(values), np.isnan(values)
    kinds = {"infinite": infinite, "nan": nan, f"above {_MOST:.0e}": ~(infinite | nan | _drawable(values))}
    words = [f"{count:,} {name}" for name, which in kinds.items() if (count := np.count_nonzero(which))]
    return f"{' and '.join(words)} left out" if words else ""


def _tokens(count: int) -> str:
    """A number of tokens in words."""
    return f"{count:,} token" + "s" * (count != 1)


# -- drawing ----------------------------------------------------------------------------------------------------------


def _figure(title: str, size: tuple[float, float]) -> Figure:
    """An empty figure under its headline."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        _arrays.fail("missing", name="a figure", got="matplotlib")
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.03)
    figure = Figure(figsize=size, layout=layout, facecolor="white")
    if title:
        title = printable(title)
        if len(title) > _LONGEST_TITLE:
            title = f"{title[: _LONGEST_TITLE - 1]}…"
        figure.suptitle(title, x=0.012, ha="left", weight="bold", fontsize=13, color=_INK, parse_math=False)
    return figure


def _style(axes: Axes, title: str, notes: Sequence[str], x: str, y: str) -> None:
    """Give axes their words and a plain look."""
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    axes.set_title("; ".join(filter(None, notes)), loc="right", fontsize=9, color=_DIM)
    axes.set_xlabel(x, color=_DIM)
    axes.set_ylabel(y, color=_DIM)
    axes.tick_params(colors=_DIM, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_LINE)
    axes.grid(axis="y", color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)


def _is_empty(axes: Axes, count: int) -> bool:
    """Whether there is nothing to draw; the axes then say so."""
    if count == 0:
        axes.text(0.5, 0.5, "nothing to draw", transform=axes.transAxes, ha="center", va="center", color=_DIM)
        axes.set_xticks([])
        axes.set_yticks([])
    return count == 0


def _legend(axes: Axes, place: Literal["best", "upper right", "lower right"]) -> None:
    """Tell what lines are."""
    axes.legend(loc=place, framealpha=0.85, edgecolor="none", fontsize=9, labelcolor=_INK)


def _draw_text(axes: Axes, positions: Array, losses: Array, left_out: str) -> None:
    """Draw the losses along the text, and their running mean."""
    from matplotlib.ticker import MaxNLocator

    size = len(losses)
    dots = np.arange(size)
    drawn = _tokens(size)
    if size > _MOST_DOTS:
        dots = np.random.default_rng(0).choice(size, _MOST_DOTS, replace=False)
        drawn = f"{_MOST_DOTS:,} of {drawn} drawn, at random"
    _style(axes, "Loss along the text", (drawn, left_out), "position", "loss in nats")
    if _is_empty(axes, size):
        return
    width, alpha = (10, 0.75) if size < 300 else (5, 0.35)
    axes.plot(
        positions[dots], losses[dots], ".", color=_BLUE, alpha=alpha, markersize=width, markeredgewidth=0, clip_on=False
    )
    middle = np.unique(np.linspace(0, size - 1, _MOST_POINTS).astype(np.intp))
    half = max(2, size // 100)
    first, last = np.maximum(middle - half, 0), np.minimum(middle + half + 1, size)
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    means = (sums[last] - sums[first]) / (last - first)
    label = f"mean of {_tokens(min(2 * half + 1, size))}"
    axes.plot(positions[middle], means, color=_ORANGE, linewidth=1.8, label=label)
    _legend(axes, "upper right")
    pad = max(0.5, (positions[-1] - positions[0]) / 100)
    axes.set_xlim(positions[0] - pad, positions[-1] + pad)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _draw_histogram(axes: Axes, losses: Array) -> None:
    """Draw how the losses are distributed."""
    _style(axes, "Histogram of the losses", (), "loss in nats", "share of the tokens, %")
    if _is_empty(axes, len(losses)):
        return
    top = losses.max() if losses.max() > _LEAST else 1
    counts, edges = np.histogram(losses, min(50, 10 + int(len(losses) ** 0.5)), (0, top))
    axes.stairs(100 * counts / len(losses), edges, fill=True, color=_BLUE, alpha=0.75)
    mean = ExactMoments.of(losses).mean
    for name, value, dashes in ("mean", mean, "-"), ("median", np.median(losses), "--"):
        axes.axvline(value, color=_ORANGE, linestyle=dashes, linewidth=1.5, label=f"{name} {value:.4g}")
    _legend(axes, "best")
    axes.margins(x=0.02)


def _draw_calibration(axes: Axes, probability: Array, right: Array) -> None:
    """Draw a reliability diagram."""
    left_out = _left_out(probability)
    sane = ~np.isnan(probability)
    probability, right = probability[sane], right[sane]
    bins = np.minimum((probability * _BINS).astype(np.intp), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    full = np.flatnonzero(counts)
    means = np.bincount(bins, probability, _BINS)[full] / counts[full]
    shares = np.bincount(bins, right, _BINS)[full] / counts[full]
    error = np.sum(counts[full] * abs(shares - means)) / len(bins) if len(bins) else np.nan
    notes = (f"expected calibration error {100 * error:.3g} %", left_out)
    _style(axes, "Calibration", notes, "probability of the likeliest token", "how often it was right")
    if _is_empty(axes, len(bins)):
        return
    axes.plot([0, 1], [0, 1], "--", color=_DIM, linewidth=1)
    axes.bar((full + 0.5) / _BINS, shares, 0.92 / _BINS, color=_BLUE, alpha=0.75)
    axes.vlines(means, shares, means, color=_ORANGE, linewidth=2)
    axes.plot(means, shares, "o", color=_ORANGE, markersize=4)
    axes.text(-0.015, 1.02, "tokens", ha="right", va="bottom", fontsize=8, color=_DIM)
    for k in full:
        axes.text((k + 0.5) / _BINS, 1.02, _short(counts[k]), ha="center", va="bottom", fontsize=8, color=_DIM)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.1)


def _short(count: int) -> str:
    """A count in few characters."""
    if count < 10_000:
        return str(count)
    return f"{count / 1e3:.0f}k" if count < 1e6 else f"{count / 1e6:.1f}M"


def _draw_quantiles(axes: Axes, values: Array, left_out: str) -> None:
    """Draw the quantiles of sorted values; the axis has the odds of a share, so that both tails can be seen."""
    size = len(values)
    flat = int(np.searchsorted(values, _LEAST))
    notes = (_tokens(size), left_out, f"{flat:,} below {_LEAST:.0e}, off the scale" if flat else "")
    _style(
        axes, "Quantiles of the KL divergence", notes, "share of the tokens that diverge less", "KL divergence in nats"
    )
    shares = np.array([*_QUANTILES])
    with np.errstate(divide="ignore"):
        places = np.log(shares / (1 - shares))
    places[[0, -1]] = places[[1, -2]] + (-1.5, 1.5)  # the ends, infinitely far away, where they can be seen
    if _is_empty(axes, size - flat):
        return
    axes.set_xticks(places, _QUANTILES.values(), fontsize=9)
    axes.set_xlim(places[0] - 0.7, places[-1] + 0.7)
    axes.set_yscale("log")
    axes.margins(y=0.1)
    inner = np.linspace(places[1], places[-2], _MOST_POINTS)
    curve = np.quantile(values, 1 / (1 + np.exp(-inner)))
    marks = np.quantile(values, shares)
    for x, y, look in (
        (inner, curve, "-"),
        (places[:2], marks[:2], ":"),
        (places[-2:], marks[-2:], ":"),
        (places, marks, "o"),
    ):
        axes.plot(x[y >= _LEAST], y[y >= _LEAST], look, color=_BLUE, linewidth=1.8, markersize=6)
    before = ""
    for x, y, share in zip(places, marks, shares, strict=True):
        label = f"{y:.3g}"
        if y >= _LEAST and label != before:
            away, side = ((7, -12), "left") if share < 0.5 else ((-7, 5), "right")
            axes.annotate(label, (x, y), away, textcoords="offset points", ha=side, fontsize=9, color=_INK)
        before = label
    moments = ExactMoments.of(values)
    if moments.mean >= _LEAST:
        label = f"mean {moments.mean:.4g}" + f" ± {moments.stderr:.2g}" * (size > 1)
        axes.axhline(moments.mean, color=_ORANGE, linewidth=1.5, label=label)
        _legend(axes, "lower right")
