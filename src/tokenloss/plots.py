"""Plots of losses and of KL divergences, drawn by matplotlib without pyplot: no global state, no display."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._errors import raise_error
from tokenloss._exact import ExactMoments
from tokenloss._files import replacing
from tokenloss._terminal import printable
from tokenloss._validation import check_mask

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Literal

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tokenloss._types import Array, ArrayLike

_SUFFIXES = (".png", ".svg", ".pdf")
_INK, _DIM, _LINE, _BLUE, _ORANGE = "#1f2328", "#59636e", "#d1d9e0", "#0969da", "#d1570b"
_MAX_DOTS = 3000
_CURVE_POINTS = 1000  # of a curve
_BINS = 10  # of probability
_MAX_TITLE_LENGTH = 80
_PLOT_MIN, _PLOT_MAX = 1e-30, 1e30  # beyond this range, the arithmetic of axes overflows

# The quantiles that are published for quantised models.
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
        Loss of each token in nats, in the order of the text.
    where : array of bool, optional
        Mask of the tokens to include, broadcast over `nll`: ``scores.kept`` of `token_scores`.
    greedy_logprobs : array of floats, optional
        Log-probability of the most likely class at each token, of the shape of `nll`: ``scores.top_logprobs[..., 0]``.
        Without it the calibration is not drawn.
    is_greedy : array of bool, optional
        Whether the most likely class is the target; required with `greedy_logprobs`.
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
    all tokens. Losses that are infinite or nan are counted and left out.

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
        probability = np.exp(_as_1d("greedy_logprobs", greedy_logprobs, np.float64, shape)[kept])
        right = _as_1d("is_greedy", is_greedy, np.bool_, shape)[kept]
    figure = _figure(title, (10, 7.2))
    axes = figure.subplot_mosaic("TT;HC" if calibrated else "TT;HH")
    positions = np.flatnonzero(kept & _in_plot_range(losses))
    note = _excluded_note(losses[kept])
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
        KL divergence of each token in nats: ``kl_divergence(..., reduction="none")``.
    where : array of bool, optional
        Mask of the tokens to include, broadcast over `kl`.
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
    _draw_quantiles(figure.subplots(), np.sort(kept[_in_plot_range(kept)]), _excluded_note(kept))
    return figure


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
    _figure("", (1, 1))


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
    with replacing(path) as file, warnings.catch_warnings():
        # characters of a title that the font lacks are drawn as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(file, format=Path(path).suffix[1:].lower(), dpi=150)


# -- input ------------------------------------------------------------------------------------------------------------


def _as_1d(name: str, value: ArrayLike | None, dtype: Any, shape: tuple[int, ...]) -> Array:
    """One-dimensional view of an array of the given shape."""
    array = np.asarray(value, dtype)
    if array.shape != shape:
        raise_error("shape", name=name, got=array.shape, fits=f"{shape}")
    return array.reshape(-1)


def _mask(where: ArrayLike | None, shape: tuple[int, ...]) -> Array:
    """One-dimensional mask of the tokens that are kept."""
    return np.broadcast_to(np.True_, shape).reshape(-1) if where is None else check_mask(where, shape).reshape(-1)


def _in_plot_range(values: Array) -> Array:
    """Mask of the values that can be drawn."""
    return abs(values) <= _PLOT_MAX


def _excluded_note(values: Array) -> str:
    """Note about the values that cannot be drawn, if any."""
    infinite, nan = np.isinf(values), np.isnan(values)
    kinds = {"infinite": infinite, "nan": nan, f"above {_PLOT_MAX:.0e}": ~(infinite | nan | _in_plot_range(values))}
    words = [f"{count:,} {name}" for name, which in kinds.items() if (count := np.count_nonzero(which))]
    return f"{' and '.join(words)} left out" if words else ""


def _tokens(count: int) -> str:
    """Count of tokens in words."""
    return f"{count:,} token" + "s" * (count != 1)


# -- drawing ----------------------------------------------------------------------------------------------------------


def _figure(title: str, size: tuple[float, float]) -> Figure:
    """An empty figure under its headline."""
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
        figure.suptitle(title, x=0.012, ha="left", weight="bold", fontsize=13, color=_INK, parse_math=False)
    return figure


def _style(axes: Axes, title: str, notes: Sequence[str], x: str, y: str) -> None:
    """Set titles, labels and a plain style."""
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
    """Add a legend of the lines."""
    axes.legend(loc=place, framealpha=0.85, edgecolor="none", fontsize=9, labelcolor=_INK)


def _draw_text(axes: Axes, positions: Array, losses: Array, excluded: str) -> None:
    """Draw the losses along the text, and their running mean."""
    from matplotlib.ticker import MaxNLocator

    size = len(losses)
    dots = np.arange(size)
    drawn = _tokens(size)
    if size > _MAX_DOTS:
        dots = np.random.default_rng(0).choice(size, _MAX_DOTS, replace=False)
        drawn = f"{_MAX_DOTS:,} of {drawn} drawn, at random"
    _style(axes, "Loss along the text", (drawn, excluded), "position", "loss in nats")
    if _is_empty(axes, size):
        return
    width, alpha = (10, 0.75) if size < 300 else (5, 0.35)
    axes.plot(
        positions[dots], losses[dots], ".", color=_BLUE, alpha=alpha, markersize=width, markeredgewidth=0, clip_on=False
    )
    middle = np.unique(np.linspace(0, size - 1, _CURVE_POINTS).astype(np.intp))
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
    """Draw a histogram of the losses."""
    _style(axes, "Histogram of the losses", (), "loss in nats", "% of the tokens")
    if _is_empty(axes, len(losses)):
        return
    top = losses.max() if losses.max() > _PLOT_MIN else 1
    counts, edges = np.histogram(losses, min(50, 10 + int(len(losses) ** 0.5)), (0, top))
    axes.stairs(100 * counts / len(losses), edges, fill=True, color=_BLUE, alpha=0.75)
    mean = ExactMoments.of(losses).mean
    for name, value, dashes in ("mean", mean, "-"), ("median", np.median(losses), "--"):
        axes.axvline(value, color=_ORANGE, linestyle=dashes, linewidth=1.5, label=f"{name} {value:.4g}")
    _legend(axes, "best")
    axes.margins(x=0.02)


def _draw_calibration(axes: Axes, probability: Array, right: Array) -> None:
    """Draw a reliability diagram."""
    excluded = _excluded_note(probability)
    sane = ~np.isnan(probability)
    probability, right = probability[sane], right[sane]
    bins = np.minimum((probability * _BINS).astype(np.intp), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    full = np.flatnonzero(counts)
    means = np.bincount(bins, probability, _BINS)[full] / counts[full]
    accuracy = np.bincount(bins, right, _BINS)[full] / counts[full]
    error = np.sum(counts[full] * abs(accuracy - means)) / len(bins) if len(bins) else np.nan
    notes = (f"expected calibration error {100 * error:.3g} %", excluded)
    _style(axes, "Calibration", notes, "probability of the likeliest token", "how often it was right")
    if _is_empty(axes, len(bins)):
        return
    axes.plot([0, 1], [0, 1], "--", color=_DIM, linewidth=1)
    axes.bar((full + 0.5) / _BINS, accuracy, 0.92 / _BINS, color=_BLUE, alpha=0.75)
    axes.vlines(means, accuracy, means, color=_ORANGE, linewidth=2)
    axes.plot(means, accuracy, "o", color=_ORANGE, markersize=4)
    axes.text(-0.015, 1.02, "tokens", ha="right", va="bottom", fontsize=8, color=_DIM)
    for k in full:
        axes.text((k + 0.5) / _BINS, 1.02, _abbreviate(counts[k]), ha="center", va="bottom", fontsize=8, color=_DIM)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.1)


def _abbreviate(count: int) -> str:
    """A count in few characters."""
    if count < 10_000:
        return str(count)
    return f"{count / 1e3:.0f}k" if count < 1e6 else f"{count / 1e6:.1f}M"


def _draw_quantiles(axes: Axes, values: Array, excluded: str) -> None:
    """Draw the quantiles of sorted values on a logit axis, which shows both tails."""
    size = len(values)
    flat = int(np.searchsorted(values, _PLOT_MIN))
    notes = (_tokens(size), excluded, f"{flat:,} below {_PLOT_MIN:.0e}, off the scale" if flat else "")
    _style(
        axes,
        "Quantiles of the KL divergence",
        notes,
        "fraction of tokens with a smaller divergence",
        "KL divergence in nats",
    )
    fractions = np.array([*_QUANTILES])
    with np.errstate(divide="ignore"):
        places = np.log(fractions / (1 - fractions))
    places[[0, -1]] = places[[1, -2]] + (-1.5, 1.5)  # the ends, infinitely far away, where they can be seen
    if _is_empty(axes, size - flat):
        return
    axes.set_xticks(places, _QUANTILES.values(), fontsize=9)
    axes.set_xlim(places[0] - 0.7, places[-1] + 0.7)
    axes.set_yscale("log")
    axes.margins(y=0.1)
    inner = np.linspace(places[1], places[-2], _CURVE_POINTS)
    curve = np.quantile(values, 1 / (1 + np.exp(-inner)))
    marks = np.quantile(values, fractions)
    for x, y, look in (
        (inner, curve, "-"),
        (places[:2], marks[:2], ":"),
        (places[-2:], marks[-2:], ":"),
        (places, marks, "o"),
    ):
        axes.plot(x[y >= _PLOT_MIN], y[y >= _PLOT_MIN], look, color=_BLUE, linewidth=1.8, markersize=6)
    before = ""
    for x, y, fraction in zip(places, marks, fractions, strict=True):
        label = f"{y:.3g}"
        if y >= _PLOT_MIN and label != before:
            away, side = ((7, -12), "left") if fraction < 0.5 else ((-7, 5), "right")
            axes.annotate(label, (x, y), away, textcoords="offset points", ha=side, fontsize=9, color=_INK)
        before = label
    moments = ExactMoments.of(values)
    if moments.mean >= _PLOT_MIN:
        label = f"mean {moments.mean:.4g}" + f" ± {moments.stderr:.2g}" * (size > 1)
        axes.axhline(moments.mean, color=_ORANGE, linewidth=1.5, label=label)
        _legend(axes, "lower right")
