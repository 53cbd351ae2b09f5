"""The plots of KL divergences: the quantiles for one model, and the means and quantiles for several."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._comparison.comparisons import divergence_of, nearest_first
from tokenloss._comparison.paired import Mean
from tokenloss._comparison.tables import title_of
from tokenloss._core.errors import raise_error
from tokenloss._core.text import count_of, printable, unit_of_bytes
from tokenloss._core.validation import check_number
from tokenloss._evaluation.sink import Sink
from tokenloss._output import drawing
from tokenloss._output.drawing import BLUE, CURVE_POINTS, INK, LINE, ORANGE, PLOT_MAX, PLOT_MIN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tokenloss._comparison.comparison import Comparison
    from tokenloss._comparison.comparisons import Comparisons
    from tokenloss._core.types import Array, ArrayLike
    from tokenloss._evaluation.sink import Needs

_MAX_NAME_LENGTH = 30
_CROWDED = (0.1, 0.9)  # quantiles without a label where several models are drawn
_MOST_NAMED = 12  # models in a legend
# the palette of Okabe and Ito, whose colors people with color blindness can tell apart
_COLORS, _GREY = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"), "#a8b0b9"
_DIRECTIONS = ((1, 0), (1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1), (0, 1), (0, -1))
# The quantiles that are published for quantized models.
_QUANTILES = {
    0.0: "min", 0.001: "0.1 %", 0.01: "1 %", 0.05: "5 %", 0.1: "10 %", 0.5: "median",
    0.9: "90 %", 0.95: "95 %", 0.99: "99 %", 0.999: "99.9 %", 1.0: "max",
}  # fmt: skip


class DivergencePlot(Sink):
    """A plot of the quantiles of the divergence, and of several candidates' means over sizes: ``compare --plot``.

    For token log-probabilities, it shows their absolute differences. It is a .png, .svg or .pdf file.

    Parameters
    ----------
    path : path-like
        File to write. An existing file is replaced when the new one is complete.

    Raises
    ------
    ValueError, ImportError
        As in `LossPlot`.

    See Also
    --------
    tokenloss.plots.draw_divergences, tokenloss.plots.draw_candidates : The same of arrays.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import compare_files, sinks
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     base, q4, path = (pathlib.Path(directory, name) for name in ("base.npz", "q4.npy", "kl.png"))
    ...     np.savez(base, logits=4 * np.eye(4), targets=np.arange(4))
    ...     np.save(q4, 2 * np.eye(4))
    ...     _ = compare_files(base, q4, sinks=[sinks.DivergencePlot(path)])
    ...     path.read_bytes()[1:4]
    b'PNG'
    """

    __module__ = "tokenloss.sinks"

    option = "--plot"
    needs: Needs = ({"kl"}, {"kl_bound"}, {"logprobs", "base_logprobs"})
    help = "draw KL divergences, or absolute differences of tokens' log-probabilities, to a .png, .svg or .pdf file"

    def __init__(self, path: str) -> None:
        drawing.check(path)
        super().__init__(path)

    def finish(self, result: Comparisons[Any]) -> None:
        if len(result) > 1:
            table = result.columns()
            sizes = zip(table["name"].tolist(), table["size"].tolist(), strict=True)
            known = {name: size for name, size in sizes if not math.isnan(size)}
            figure = draw_candidates(result, sizes=known, title=title_of(result))
        else:
            ((name, one),) = result.items()
            divergence, ids = divergence_of(one), one.columns().get("sequence")
            values, kept = divergence.values.reshape(-1), one.kept.reshape(-1)
            figure = _drawn(values, kept, ids, name, divergence.quantity, one.groups, divergence.last)
        drawing.save(figure, self.path)


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
    ImportError, TypeError, ValueError
        As in `draw_losses`.

    Notes
    -----
    Quantiles are interpolated linearly, as `numpy.quantile` does. Divergences that are infinite or nan are counted and
    left out; quantiles that are not above zero have no place on the logarithmic axis.

    Examples
    --------
    >>> from tokenloss import kl_divergence, plots
    >>> kl = kl_divergence([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], [[2.0, 1.0, 0.5], [0.5, 3.0, 0.0]], reduction="none")
    >>> figure = draw_divergences(kl)
    >>> figure.axes[0].get_title(loc="left")
    'Quantiles of the KL divergence'
    """
    values = np.asarray(kl, np.float64)
    kept = drawing.mask_of(where, values.shape)
    return _drawn(values.reshape(-1), kept, drawing.sequence_numbers(segment_ids, values.shape), title, "KL divergence")


def _drawn(
    values: Array, kept: Array, ids: Array | None, title: str, quantity: str, groups: Any = None, last: float = 1.0
) -> Figure:
    """Draw the quantiles of a model's divergences, or of their lower bounds, up to the last one that is known."""
    drawn = kept & drawing.in_plot_range(values)
    figure = drawing.empty_figure(title, (10, 5.2))
    excluded = drawing.excluded_note(values[kept])
    upper = drawing.with_groups(figure, {"": groups}, "Divergence")
    _draw_quantiles(upper.subplots(), values[drawn], None if ids is None else ids[drawn], excluded, quantity, last)
    return figure


def draw_candidates(
    comparisons: Mapping[str, Comparison], *, sizes: Mapping[str, float] | None = None, title: str = ""
) -> Figure:
    """Draw the Kullback-Leibler divergences of several models from one base: means over sizes, and quantiles.

    Parameters
    ----------
    comparisons : mapping of str to Comparison or ResponseComparison
        Results of `compare` or `compare_files`, by the names of the models. For responses, lower bounds are drawn.
    sizes : mapping of str to float, optional
        Bytes of each model. If any is missing, means are drawn in order, next to the names.
    title : str, optional
        Title.

    Returns
    -------
    matplotlib.figure.Figure
        Figure for `save`, or for a notebook to show.

    Raises
    ------
    ImportError, TypeError, ValueError
        As in `draw_losses`.

    Notes
    -----
    Bars are 95 % confidence intervals of the means. A mean that is infinite, nan or 0 has no place on the logarithmic
    axis; the figure says how many are left out. Quantiles are of the finite divergences of each model. With more than
    twelve models, twelve have a color and a name in the legend, spread evenly over all from the best to the worst.
    Names are drawn without the folder, the words before a hyphen and the suffix that all of them share.

    Examples
    --------
    >>> from tokenloss import compare, plots
    >>> base = [[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]]
    >>> q8 = compare(base, [[2.0, 1.0, 0.1], [0.1, 3.0, 0.0]], [0, 1])
    >>> q4 = compare(base, [[2.0, 1.0, 0.5], [0.5, 3.0, 0.0]], [0, 1])
    >>> figure = draw_candidates({"q4": q4, "q8": q8}, sizes={"q4": 4.9e9, "q8": 8.5e9})
    >>> [axes.get_title(loc="left") for axes in figure.axes]
    ['Size and divergence', 'Quantiles of the KL divergence']
    """
    if not comparisons:
        raise_error("option", name="comparisons", got=comparisons, fits="a mapping of names to at least one comparison")
    sizes = {} if sizes is None else sizes
    for name, size in sizes.items():
        if name not in comparisons:
            raise_error("option", name="sizes", got=name, fits=f"of names of comparisons: {[*comparisons]}")
        check_number(f"sizes[{name!r}]", size, "a finite number >= 0")
    models = []
    for name in nearest_first(comparisons):
        one, divergence = comparisons[name], divergence_of(comparisons[name])
        kl, mean = divergence.values[one.kept], divergence.mean
        models.append(
            _Model(name, sizes.get(name), mean, mean.interval, np.sort(kl[drawing.in_plot_range(kl)]), divergence.last)
        )
    by_name = len(sizes) < len(models)
    figure = drawing.empty_figure(title, (15.0, max(6.0, 1.5 + 0.22 * len(models) * by_name)))
    groups = {name: comparisons[name].groups for name in nearest_first(comparisons)}
    _draw_models(drawing.with_groups(figure, groups, "Divergence", _COLORS), models, divergence.quantity)
    return figure


def _quantile_axes(axes: Axes, notes: Sequence[str], quantity: str) -> None:
    """Style the axes of quantiles."""
    title, x = f"Quantiles of the {quantity}", "fraction of tokens with a smaller one"
    drawing.style(axes, title, notes, x, f"{quantity} in nats")


def _draw_curve(axes: Axes, values: Array, color: str, dashes: str, mark: str, last: float) -> tuple[Array, Array]:
    """Draw quantiles of sorted values up to a fraction over a logit scale, for both tails; return the marked points."""
    fractions = np.array([*_QUANTILES])
    with np.errstate(divide="ignore"):
        places = np.log(fractions / (1 - fractions))
    places[[0, -1]] = places[[1, -2]] + (-1.5, 1.5)  # minimum and maximum are infinitely far away on this scale
    axes.set_xticks(places, _QUANTILES.values(), fontsize=9)
    axes.set_xlim(places[0] - 0.7, places[-1] + 0.7)
    axes.set_yscale("log")
    axes.margins(y=0.1)
    inner = np.linspace(places[1], places[-2], CURVE_POINTS)
    curve = np.quantile(values, 1 / (1 + np.exp(-inner)))
    marks = np.where(fractions <= last, np.quantile(values, fractions), np.nan)
    for x, y, look in (
        (inner, curve, dashes),
        (places[:2], marks[:2], ":"),
        (places[-2:], marks[-2:], ":"),
        (places, marks, mark),
    ):
        seen = y >= PLOT_MIN
        axes.plot(x[seen], y[seen], look, color=color, linewidth=1.8 if mark else 0.8, markersize=6)
    return places, marks


def _draw_quantiles(axes: Axes, values: Array, ids: Array | None, excluded: str, quantity: str, last: float) -> None:
    """Draw the quantiles of one model's values, and their mean."""
    mean = Mean(values, ids)
    values = np.sort(values)
    size = len(values)
    flat = int(np.searchsorted(values, PLOT_MIN))
    _quantile_axes(
        axes,
        (count_of(size, "token"), excluded, f"{flat:,} below {PLOT_MIN:.0e}, off the scale" if flat else ""),
        quantity,
    )
    if drawing.mark_if_empty(axes, size - flat if last >= 0 else 0):
        return
    before = ""
    for x, y, fraction in zip(*_draw_curve(axes, values, BLUE, "-", "o", last), _QUANTILES, strict=True):
        label = f"{y:.3g}"
        if y >= PLOT_MIN and label != before:
            away, side = ((7, -12), "left") if fraction < 0.5 else ((-7, 5), "right")
            axes.annotate(label, (x, y), away, textcoords="offset points", ha=side, fontsize=9, color=INK)
        before = label
    if mean.mean >= PLOT_MIN:
        label = f"mean {mean.mean:.4g}" + f" ± {mean.stderr:.2g}" * (size > 1)
        axes.axhline(mean.mean, color=ORANGE, linewidth=1.5, label=label)
        drawing.add_legend(axes, "lower right")


# -- several models ----------------------------------------------------------------------------------------------------


class _Model(NamedTuple):
    """Name, size and divergences of a model."""

    name: str
    size: float | None  # bytes
    mean: float
    ends: tuple[float, float]  # of the 95 % interval of the mean
    values: Array  # its divergences, sorted
    last: float  # the highest fraction whose quantile is known; below 0 for none


class _Look(NamedTuple):
    color: str
    dashes: str
    is_named: bool  # in the legend


def _draw_models(figure: Figure, models: Sequence[_Model], quantity: str) -> None:
    """Draw the mean divergences and the quantiles of models, which come in the order of their means."""
    named = np.unique(np.linspace(0, len(models) - 1, min(len(models), _MOST_NAMED)).round().astype(int)).tolist()
    looks = [_Look(_GREY, "-", False)] * len(models)
    for number, rank in enumerate(named):
        looks[rank] = _Look(_COLORS[number % len(_COLORS)], ("-", "--")[number // len(_COLORS)], True)
    names = _short_names([model.name for model in models])
    models = [model._replace(name=name) for model, name in zip(models, names, strict=True)]
    left, right = figure.subplots(1, 2)
    _draw_all_quantiles(right, models, looks, quantity)
    _draw_means(left, models, looks, quantity)


def _short_names(names: Sequence[str]) -> list[str]:
    """Names without the folder, model and suffix that all share; a name that is still long loses its middle."""
    if len(names) > 1:
        same = itertools.takewhile(lambda letters: len({*letters}) == 1, zip(*names, strict=False))
        start = re.match(r"(.*[/\\-])?", "".join(letters[0] for letters in same), re.DOTALL)
        suffixes = {Path(name).suffix for name in names}
        cut = len(start[0]) if start else 0, len(suffixes.pop()) if len(suffixes) == 1 else 0
        shorter = [name[cut[0] : len(name) - cut[1]] for name in names]
        names = shorter if all(shorter) else names
    half = _MAX_NAME_LENGTH // 2
    names = [printable(name) for name in names]
    return [name if len(name) <= _MAX_NAME_LENGTH else f"{name[: half - 1]}…{name[-half:]}" for name in names]


def _draw_all_quantiles(axes: Axes, models: Sequence[_Model], looks: Sequence[_Look], quantity: str) -> None:
    """Draw the quantiles of models in one picture; the legend names the largest divergences first."""
    _quantile_axes(axes, (), quantity)
    lines, names = [], []
    for model, look in sorted(zip(models[::-1], looks[::-1], strict=True), key=lambda pair: pair[1].is_named):
        if model.last >= 0 and model.values.size and model.values[-1] >= PLOT_MIN:
            _draw_curve(axes, model.values, look.color, look.dashes, "." if look.is_named else "", model.last)
            if look.is_named:
                lines.append(axes.lines[-4])
                names.append(model.name)
    if drawing.mark_if_empty(axes, len(axes.lines)):
        return
    labels = ["" if fraction in _CROWDED else label for fraction, label in _QUANTILES.items()]
    axes.set_xticks(axes.get_xticks(), labels)
    title = f"{len(lines)} of {len(models)} models" if len(lines) < len(models) else ""
    legend = axes.legend(lines, ["name"] * len(lines), loc="upper left", bbox_to_anchor=(1, 1), title=title,
                         edgecolor="none", fontsize=9, labelcolor=INK, handlelength=2.6)  # fmt: skip
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _draw_means(axes: Axes, models: Sequence[_Model], looks: Sequence[_Look], quantity: str) -> None:
    """Plot the mean divergence of each model, with error bars, against its size, or by name if sizes are not known."""
    by_size = all(model.size is not None for model in models)
    drawn = [rank for rank, model in enumerate(models) if PLOT_MIN <= model.mean <= PLOT_MAX]
    left_out = len(models) - len(drawn)
    note = f"\n{left_out} left out, whose mean is 0 or not finite" if left_out else ""
    unit, scale = unit_of_bytes(max((models[rank].size or 0 for rank in drawn), default=1e9))
    x, y = f"size in {unit}", f"mean {quantity} in nats"
    if not by_size:
        x, y = y, ""
    drawing.style(
        axes, "Size and divergence" if by_size else f"Mean {quantity}", ("bars: 95 % intervals",), x + note, y
    )
    if drawing.mark_if_empty(axes, len(drawn)):
        return
    means = np.array([models[rank].mean for rank in drawn])
    ends = np.array([models[rank].ends for rank in drawn]).T
    lows, highs = np.minimum(np.where(np.isfinite(ends), ends, means), PLOT_MAX)
    limits = np.where(lows > 0, lows, means).min() / 1.5, highs.max() * 1.5
    places = np.array([(models[rank].size or 0) / scale for rank in drawn]) if by_size else np.arange(len(drawn))
    for rank, place, mean, low, high in zip(drawn, places, means, np.maximum(lows, PLOT_MIN), highs, strict=True):
        look = looks[rank]
        (axes.vlines if by_size else axes.hlines)(place, low, high, color=look.color, linewidth=1.8)
        spot = (place, mean) if by_size else (mean, place)
        fill = look.color if look.dashes == "-" else "white"
        axes.plot(*spot, "o", color=look.color, markerfacecolor=fill, markeredgewidth=1.8, markersize=6.5)
    if by_size:
        axes.set_yscale("log")
        axes.set_ylim(limits)
        axes.margins(x=0.12)
        spots = [*zip(places, means, drawn, strict=True)]
        spots.sort(key=lambda spot: not looks[spot[2]].is_named)  # the models of the legend are labeled first
        _name_points(axes, [(x, y, models[rank].name) for x, y, rank in spots])
        return
    axes.set_xscale("log")
    axes.set_xlim(limits)
    axes.set_yticks(places, [models[rank].name for rank in drawn], fontsize=9, color=INK, parse_math=False)
    axes.set_ylim(len(drawn) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.grid(axis="x", color=LINE, linewidth=0.6)


@drawing.boxes_for_missing_letters()
def _name_points(axes: Axes, spots: Sequence[tuple[float, float, str]]) -> None:
    """Label points; a label that would overlap a point or another label is left out."""
    from matplotlib.transforms import Bbox

    figure: Any = axes.figure
    figure.draw_without_rendering()  # now it is known where points are on the page
    points = axes.transData.transform([spot[:2] for spot in spots])
    taken = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in points.tolist()]
    room = axes.get_window_extent()
    for x, y, name in spots:
        text = axes.annotate(name, (x, y), (0, 0), textcoords="offset points", fontsize=9, color=INK, parse_math=False)
        text.set_in_layout(False)
        for right, up in _DIRECTIONS:
            text.set_position((9 * right, 9 * up))
            text.set(ha=("right", "center", "left")[right + 1], va=("top", "center", "bottom")[up + 1])
            box = text.get_window_extent()
            if room.contains(box.x0, box.y0) and room.contains(box.x1, box.y1) and not box.count_overlaps(taken):
                taken.append(box)
                break
        else:
            text.remove()
