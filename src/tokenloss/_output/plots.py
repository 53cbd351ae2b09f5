"""Plots of losses and of KL divergences, drawn by matplotlib without pyplot: no global state, no display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.paired import nan_last
from tokenloss._core.errors import raise_error
from tokenloss._core.exact import ExactMoments
from tokenloss._core.files import replacing
from tokenloss._core.text import count_of
from tokenloss._core.validation import check_mask, check_number
from tokenloss._output.drawing import (
    BLUE,
    CURVE_POINTS,
    DIM,
    ORANGE,
    PLOT_MIN,
    Model,
    add_legend,
    boxes_for_missing_letters,
    draw_models,
    draw_quantiles,
    empty_figure,
    excluded_note,
    in_plot_range,
    mark_if_empty,
    style,
)
from tokenloss._statistics.sequences import check_segment_ids

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tokenloss._comparison.comparison import Comparison
    from tokenloss._core.types import Array, ArrayLike

_SUFFIXES = (".png", ".svg", ".pdf")
_MAX_DOTS = 3000
_BINS = 10  # of probability


def draw_losses(
    nll: ArrayLike,
    *,
    where: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
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
    segment_ids : array of integers, optional
        Number of the sequence of each token, broadcast over `nll`: the running mean ends where a sequence does.
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
    all tokens. Losses that are infinite or nan are counted and left out. The running mean is of the tokens near each
    position, and has gaps where none of these is included.

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
    figure = empty_figure(title, (10, 7.2))
    axes = figure.subplot_mosaic("TT;HC" if calibrated else "TT;HH")
    positions = np.flatnonzero(kept & in_plot_range(losses))
    note = excluded_note(losses[kept])
    losses = losses[positions]
    ids = _sequence_numbers(segment_ids, shape)
    _draw_text(axes["T"], positions, losses, None if ids is None else ids[positions], note)
    _draw_histogram(axes["H"], losses)
    if calibrated:
        _draw_calibration(axes["C"], probability, right)
    return figure


def draw_divergences(
    kl: ArrayLike, *, where: ArrayLike | None = None, segment_ids: ArrayLike | None = None, title: str = ""
) -> Figure:
    """Draw the quantiles of the Kullback-Leibler divergences of a text's tokens.

    Parameters
    ----------
    kl : array of floats
        KL divergence of each token in nats: ``kl_divergence(..., reduction="none")``.
    where : array of bool, optional
        Mask of the tokens to include, broadcast over `kl`.
    segment_ids : array of integers, optional
        Number of the sequence of each token, broadcast over `kl`, by which the standard error of the mean is clustered.
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
    kept = _mask(where, values.shape)
    ids = _sequence_numbers(segment_ids, values.shape)
    flat = values.reshape(-1)
    drawn = kept & in_plot_range(flat)
    figure = empty_figure(title, (10, 5.2))
    draw_quantiles(figure.subplots(), flat[drawn], None if ids is None else ids[drawn], excluded_note(flat[kept]))
    return figure


def draw_candidates(
    comparisons: Mapping[str, Comparison], *, sizes: Mapping[str, float] | None = None, title: str = ""
) -> Figure:
    """Draw the Kullback-Leibler divergences of several models from one base: means over sizes, and quantiles.

    Parameters
    ----------
    comparisons : mapping of str to Comparison
        Results of `compare`, by the names of the models.
    sizes : mapping of str to float, optional
        Bytes of each model. Where any is missing, means are drawn in their order, beside the names.
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
    Bars are 95 % confidence intervals of the means. A mean that is infinite, nan or 0 has no place on the logarithmic
    axis; the figure says how many are left out. Quantiles are of the finite divergences of each model. Of more than
    twelve models, twelve have a colour and a name in the legend, spread evenly over all from the best to the worst.
    Names are drawn without the folder, the words before a hyphen and the suffix that all of them share.

    Examples
    --------
    >>> from tokenloss import compare, plots
    >>> base = [[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]]
    >>> q8 = compare(base, [[2.0, 1.0, 0.1], [0.1, 3.0, 0.0]], [0, 1])
    >>> q4 = compare(base, [[2.0, 1.0, 0.5], [0.5, 3.0, 0.0]], [0, 1])
    >>> figure = plots.draw_candidates({"q4": q4, "q8": q8}, sizes={"q4": 4.9e9, "q8": 8.5e9})
    >>> [axes.get_title(loc="left") for axes in figure.axes]
    ['Size and divergence', 'Quantiles of the KL divergence']
    """
    if not comparisons:
        raise_error("option", name="comparisons", got=comparisons, fits="a mapping that holds any")
    sizes = {} if sizes is None else sizes
    for name, size in sizes.items():
        if name not in comparisons:
            raise_error("option", name="sizes", got=name, fits=f"of names of comparisons: {[*comparisons]}")
        check_number(f"sizes[{name!r}]", size, "a finite number of at least 0")
    models = []
    for name in sorted(comparisons, key=lambda name: nan_last(comparisons[name].mean_kl)):
        one = comparisons[name]
        kl = one.kl[one.kept]
        radius = one.mean_kl_stderr * one.interval_factor
        models.append(Model(name, sizes.get(name), one.mean_kl, radius, np.sort(kl[in_plot_range(kl)])))
    by_name = len(sizes) < len(models)
    figure = empty_figure(title, (15.0, max(6.0, 1.5 + 0.22 * len(models) * by_name)))
    draw_models(figure, models)
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


def _sequence_numbers(segment_ids: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """One-dimensional numbers of the tokens' sequences, if there are any."""
    return None if segment_ids is None else check_segment_ids(segment_ids, shape).reshape(-1)


# -- drawing ----------------------------------------------------------------------------------------------------------


def _draw_text(axes: Axes, positions: Array, losses: Array, ids: Array | None, excluded: str) -> None:
    """Draw the losses along the text, and their running mean in each sequence."""
    from matplotlib.ticker import MaxNLocator

    size = len(losses)
    dots = np.arange(size)
    drawn = count_of(size, "token")
    if size > _MAX_DOTS:
        dots = np.random.default_rng(0).choice(size, _MAX_DOTS, replace=False)
        drawn = f"{_MAX_DOTS:,} of {drawn} drawn, at random"
    style(axes, "Loss along the text", (drawn, excluded), "position", "loss in nats")
    if mark_if_empty(axes, size):
        return
    width, alpha = (10, 0.75) if size < 300 else (5, 0.35)
    axes.plot(
        positions[dots], losses[dots], ".", color=BLUE, alpha=alpha, markersize=width, markeredgewidth=0, clip_on=False
    )
    half = max(2, size // 100)
    label = f"mean of {count_of(min(2 * half + 1, size), 'token')}"
    axes.plot(*_running_mean(positions, losses, ids, half), color=ORANGE, linewidth=1.8, label=label)
    add_legend(axes, "upper right")
    pad = max(0.5, (positions[-1] - positions[0]) / 100)
    axes.set_xlim(positions[0] - pad, positions[-1] + pad)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _running_mean(positions: Array, losses: Array, ids: Array | None, half: int) -> tuple[Array, Array]:
    """Points of the mean of the losses at most `half` positions away, in one sequence; nan between separate curves."""
    size = len(losses)
    is_start = np.diff(positions, prepend=positions[0]) > half
    if ids is not None:
        is_start |= np.diff(ids, prepend=ids[0]) != 0
    starts = np.flatnonzero(is_start)
    bounds = np.concatenate([[0], starts, [size]])
    middle = np.unique(np.linspace(0, size - 1, CURVE_POINTS).astype(np.intp))
    curve = np.searchsorted(starts, middle, "right")
    first = np.maximum(bounds[curve], np.searchsorted(positions, positions[middle] - half))
    last = np.minimum(bounds[curve + 1], np.searchsorted(positions, positions[middle] + half, "right"))
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    gaps = np.flatnonzero(np.diff(curve)) + 1
    means = (sums[last] - sums[first]) / (last - first)
    return np.insert(positions[middle].astype(np.float64), gaps, np.nan), np.insert(means, gaps, np.nan)


def _draw_histogram(axes: Axes, losses: Array) -> None:
    """Draw a histogram of the losses."""
    style(axes, "Histogram of the losses", (), "loss in nats", "% of the tokens")
    if mark_if_empty(axes, len(losses)):
        return
    top = losses.max() if losses.max() > PLOT_MIN else 1
    counts, edges = np.histogram(losses, min(50, 10 + int(len(losses) ** 0.5)), (0, top))
    axes.stairs(100 * counts / len(losses), edges, fill=True, color=BLUE, alpha=0.75)
    mean = ExactMoments.of(losses).mean
    for name, value, dashes in ("mean", mean, "-"), ("median", np.median(losses), "--"):
        axes.axvline(value, color=ORANGE, linestyle=dashes, linewidth=1.5, label=f"{name} {value:.4g}")
    add_legend(axes, "best")
    axes.margins(x=0.02)


def _draw_calibration(axes: Axes, probability: Array, right: Array) -> None:
    """Draw a reliability diagram."""
    excluded = excluded_note(probability)
    sane = ~np.isnan(probability)
    probability, right = probability[sane], right[sane]
    bins = np.minimum((probability * _BINS).astype(np.intp), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    full = np.flatnonzero(counts)
    means = np.bincount(bins, probability, _BINS)[full] / counts[full]
    accuracy = np.bincount(bins, right, _BINS)[full] / counts[full]
    error = np.sum(counts[full] * abs(accuracy - means)) / len(bins) if len(bins) else np.nan
    notes = (f"expected calibration error {100 * error:.3g} %", excluded)
    style(axes, "Calibration", notes, "probability of the likeliest token", "how often it was right")
    if mark_if_empty(axes, len(bins)):
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
    """A count in few characters."""
    if count < 10_000:
        return str(count)
    return f"{count / 1e3:.0f}k" if count < 1e6 else f"{count / 1e6:.1f}M"
