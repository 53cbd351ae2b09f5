"""tokenloss.plots: figures hold what an independent count gives, for any losses, and are saved whole or not at all."""

import dataclasses
import itertools
import math
import warnings
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from html_pages import estimate
from places import SAMPLE

from tokenloss import calibration, compare, kl_divergence, plots, token_scores

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.thread_unsafe(reason="Matplotlib is not thread-safe")
RNG = np.random.default_rng(7)


def words(axes):
    """All that is written in the axes."""
    legend = axes.get_legend()
    texts = [axes.get_title(loc=side) for side in ("left", "right")] + [text.get_text() for text in axes.texts]
    return texts + ([text.get_text() for text in legend.get_texts()] if legend else [])


def drawn(figure):
    """Draw a figure so that drawing errors show; without a layout, which would draw it several times."""
    figure.set_layout_engine("none")
    figure.draw_without_rendering()
    return figure


def test_draw_losses_of_the_sample():
    with np.load(SAMPLE) as data:
        scores = token_scores(data["logits"], data["targets"], top_k=1)
    figure = drawn(
        plots.draw_losses(
            scores.nll,
            where=scores.kept,
            greedy_logprobs=scores.top_logprobs[..., 0],
            is_greedy=scores.is_greedy,
            title="whisper",
        )
    )
    text, histogram, calibration = figure.axes
    assert figure.get_suptitle() == "whisper"
    dots, _ = text.lines
    np.testing.assert_array_equal(dots.get_xydata(), np.stack([np.arange(15), scores.nll], 1))
    assert words(text) == ["Loss along the text", "15 tokens", "mean of 5 tokens"]
    assert f"mean {scores.nll.mean():.4g}" in words(histogram)
    assert f"median {np.median(scores.nll):.4g}" in words(histogram)
    error = np.mean(1 - np.exp(-scores.nll))  # all are right, and the target is the likeliest
    assert f"expected calibration error {100 * error:.3g} %" in words(calibration)


@pytest.mark.parametrize("size", [0, 1, 900])
def test_draw_calibration(size):
    logits = 3 * RNG.normal(size=(size, 4))
    result = calibration(logits, RNG.integers(4, size=size), segment_ids=np.arange(size) // 9)
    (axes,) = drawn(plots.draw_calibration(result, title="of a model")).axes
    if not size:
        assert "no tokens" in " ".join(words(axes)).lower() or len(axes.lines) == 0
        return
    points = axes.containers[-1].lines[0].get_xydata()
    np.testing.assert_array_equal(points, np.stack([result.bins["confidence"], result.bins["accuracy"]], 1))
    heights = [bar.get_height() for bar in axes.containers[0]]
    np.testing.assert_allclose(heights, result.bins["count"] / size)
    assert any(f"expected calibration error {result.ece:.4f}" in text for text in words(axes))
    with pytest.raises(TypeError, match="calibration is 'float'; it must be a Calibration"):
        plots.draw_calibration(0.5)


@pytest.mark.parametrize("size", [1, 7, 900])
def test_running_mean(size):
    losses = RNG.exponential(2, size)
    figure = drawn(plots.draw_losses(losses))
    _, mean = figure.axes[0].lines
    half = max(2, size // 100)
    expected = [losses[max(0, i - half) : i + half + 1].mean() for i in range(size)]
    np.testing.assert_array_equal(mean.get_xdata(), np.arange(size))
    np.testing.assert_allclose(mean.get_ydata(), expected)


def test_running_mean_ends_where_a_sequence_does():
    """It was of the last tokens of one document and the first of the next."""
    losses, ids = np.repeat([1.0, 5.0, 2.0], [30, 3, 40]), np.repeat([4, 0, 4], [30, 3, 40])
    _, mean = drawn(plots.draw_losses(losses, segment_ids=ids)).axes[0].lines
    line = mean.get_xydata()
    assert np.isnan(line[[30, 34]]).all()
    assert np.delete(line, [30, 34], axis=0).tolist() == [[i, loss] for i, loss in enumerate(losses)]


@pytest.mark.parametrize("by", ["where", "nan"])
def test_running_mean_ends_at_tokens_that_are_not_scored(by):
    """It was a mean over both sides of a gap, unless the gap was wide."""
    losses, where = np.repeat([1.0, 9.0, 3.0, 2.0, 4.0], [20, 1, 20, 1, 20]), np.ones(62, bool)
    where[[20, 61]] = False
    losses[41] = np.inf  # was scored, but cannot be drawn
    given = {"nll": losses, "where": where} if by == "where" else {"nll": np.where(where, losses, np.nan)}
    _, mean = drawn(plots.draw_losses(**given)).axes[0].lines
    line = mean.get_xydata()
    assert np.isnan(line[20]).all()
    line, shown = np.delete(line, 20, axis=0), np.flatnonzero(where & np.isfinite(losses))
    half = 2
    expected = [np.mean([losses[i] for i in shown if abs(i - at) <= half and (i < 20) == (at < 20)]) for at in shown]
    np.testing.assert_array_equal(line[:, 0], shown)
    np.testing.assert_allclose(line[:, 1], expected)


def test_running_mean_draws_short_runs_of_a_long_text_whole():
    ids = np.arange(100_000) // 10
    _, mean = drawn(plots.draw_losses(np.arange(100_000.0), segment_ids=ids)).axes[0].lines
    places = mean.get_xdata()
    assert {*range(0, 100_000, 10), *range(9, 100_000, 10)} <= {*places[~np.isnan(places)]}
    assert np.isnan(places).sum() == 9999


def test_segment_ids_cluster_the_error_in_the_plot_of_divergences():
    """It was that of independent tokens, beside a table with a clustered one."""
    kl, ids = np.repeat([0.1, 0.3, 0.2], 20), np.repeat([7, 3, 5], 20)
    for options, error in ({"segment_ids": ids}, 0.1 / math.sqrt(3)), ({}, kl.std(ddof=1) / math.sqrt(60)):
        (axes,) = drawn(plots.draw_divergences(kl, **options)).axes
        assert f"mean 0.2 ± {error:.2g}" in words(axes)


def test_where_keeps_positions():
    where = np.array([[True, False, True], [False, True, True]])
    losses = np.array([[1.0, 9.0, 2.0], [9.0, np.nan, 3.0]])
    figure = drawn(plots.draw_losses(losses, where=where))
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[0, 1], [2, 2], [5, 3]]
    assert words(figure.axes[0])[1] == "3 tokens; 1 nan left out"


def test_histogram():
    losses = RNG.exponential(2, 5000)
    (steps,) = drawn(plots.draw_losses(losses)).axes[1].patches
    heights, edges, _ = steps.get_data()
    assert heights.sum() == pytest.approx(100)
    assert (edges[0], edges[-1]) == (0, losses.max())
    expected = [np.mean((losses >= low) & (losses < high)) for low, high in itertools.pairwise(edges)]
    np.testing.assert_allclose(heights[:-1], 100 * np.array(expected[:-1]))


def test_calibration():
    probability = np.append(RNG.random(20_000), [0.0, 1.0, 1.0])
    right = np.append(RNG.random(20_000) < probability[:-3] ** 2, [False, True, False])
    figure = plots.draw_losses(probability, greedy_logprobs=np.log(np.maximum(probability, 1e-300)), is_greedy=right)
    axes = drawn(figure).axes[2]
    error = 0.0
    for k, bar in enumerate(axes.patches):
        inside = (probability >= k / 10) & ((probability < (k + 1) / 10) | (k == 9))
        assert bar.get_height() == pytest.approx(right[inside].mean())
        assert bar.get_x() + bar.get_width() / 2 == pytest.approx((k + 0.5) / 10)
        assert str(inside.sum()) in words(axes)
        error += inside.mean() * abs(right[inside].mean() - probability[inside].mean())
    assert len(axes.patches) == 10
    assert f"expected calibration error {100 * error:.3g} %" in words(axes)


def test_calibration_with_where_and_nan():
    figure = plots.draw_losses(
        np.ones(4),
        where=[True, True, True, False],
        greedy_logprobs=np.log([0.25, 0.75, np.nan, 0.45]),
        is_greedy=[True, True, True, True],
    )
    axes = drawn(figure).axes[2]
    assert len(axes.patches) == 2
    assert words(axes)[:2] == ["Calibration", "expected calibration error 50 %; 1 nan left out"]


def test_calibration_counts_are_abbreviated():
    size = 1_200_000
    figure = plots.draw_losses(
        np.ones(size), greedy_logprobs=np.log(np.where(np.arange(size) < 12_345, 0.35, 0.85)), is_greedy=np.ones(size)
    )
    assert {"12k", "1.2M"} <= set(words(figure.axes[2]))


def test_draw_losses_of_many_tokens():
    losses = RNG.exponential(2, 200_000)
    text = drawn(plots.draw_losses(losses)).axes[0]
    dots, mean = text.lines
    assert words(text) == ["Loss along the text", "3,000 of 200,000 tokens drawn, at random", "mean of 4,001 tokens"]
    assert len(np.unique(dots.get_xdata())) == 3000
    np.testing.assert_array_equal(dots.get_ydata(), losses[dots.get_xdata()])
    assert len(mean.get_xdata()) == 1000
    middle = int(mean.get_xdata()[500])
    assert mean.get_ydata()[500] == pytest.approx(losses[middle - 2000 : middle + 2001].mean())


def test_draw_losses_of_inf_and_nan():
    losses = [1.0, math.inf, math.nan, 2.0, math.inf, 1e300]
    text, histogram = drawn(plots.draw_losses(losses)).axes
    assert words(text)[1] == "2 tokens; 2 infinite and 1 nan and 1 above 1e+30 left out"
    assert text.lines[0].get_ydata().tolist() == [1.0, 2.0]
    assert "mean 1.5" in words(histogram)


# -- divergences ------------------------------------------------------------------------------------------------------


def quantile(values, share):
    """A quantile of sorted values, between two neighbors."""
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


@pytest.mark.parametrize("size", [2, 310, 100_000])
def test_draw_divergences_quantiles(size):
    divergences = np.exp(RNG.normal(-4, 1.5, size))
    (axes,) = drawn(plots.draw_divergences(divergences, title="a and b")).axes
    assert axes.get_yscale() == "log"
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["min", "0.1 %", "1 %", "5 %", "10 %", "median", "90 %", "95 %", "99 %", "99.9 %", "max"]
    marks = next(line for line in axes.lines if line.get_marker() == "o")
    shares = [0, 0.001, 0.01, 0.05, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1]
    ordered = sorted(divergences)
    expected = [quantile(ordered, share) for share in shares]
    np.testing.assert_allclose(marks.get_ydata(), expected)
    np.testing.assert_array_equal(marks.get_xdata(), axes.get_xticks())
    for value in expected:
        assert f"{value:.3g}" in words(axes)
    stderr = divergences.std(ddof=1) / math.sqrt(size)
    assert f"mean {divergences.mean():.4g} ± {stderr:.2g}" in words(axes)
    curve = axes.lines[0]
    assert (np.diff(curve.get_ydata()) >= 0).all()
    assert np.interp(0, *curve.get_data()) == pytest.approx(expected[5], rel=1e-3)


def test_draw_divergences_below_the_scale():
    (axes,) = drawn(plots.draw_divergences([0.0, -1e-9, 0.5, 0.25, math.inf, math.nan])).axes
    assert words(axes)[1] == "4 tokens; 1 infinite and 1 nan left out; 2 below 1e-30, off the scale"
    marks = next(line for line in axes.lines if line.get_marker() == "o")
    assert marks.get_ydata()[-1] == 0.5
    assert (marks.get_ydata() > 0).all()


def test_draw_divergences_where():
    logits = RNG.normal(size=(2, 3, 5))
    divergences = kl_divergence(logits, logits / 2, reduction="none")
    where = np.array([True, False, True])
    (axes,) = plots.draw_divergences(divergences, where=where).axes
    assert words(axes)[1] == "4 tokens"
    assert f"{divergences[:, where].max():.3g}" in words(axes)


# -- several models ---------------------------------------------------------------------------------------------------


def comparisons_of(count, size=200):
    """Comparisons by name, in no order of their means."""
    one = compare(np.zeros((size, 2)), np.zeros((size, 2)), np.zeros(size, int))
    result = {}
    for number in RNG.permutation(count).tolist():
        kl = np.exp(RNG.normal(number / 4 - 8, 1, size))
        stderr = kl.std(ddof=1) / math.sqrt(size)
        result[f"org/model-{number}.npy"] = dataclasses.replace(
            one, kl=kl, mean_kl=estimate(kl.mean(), stderr, one.interval_factor)
        )
    return result


def by_mean(comparisons):
    return sorted(comparisons, key=lambda name: comparisons[name].kl.mean())


def short(name):
    return name.removeprefix("org/model-").removesuffix(".npy")


def boxes(axes):
    """Where the texts in the axes are, and the points."""
    texts = [text.get_window_extent() for text in axes.texts]
    dots = [axes.transData.transform(line.get_xydata()[0]) for line in axes.lines]
    return texts, dots


@pytest.mark.parametrize(("count", "unit", "scale"), [(2, "MB", 1e6), (12, "GB", 1e9)])
@pytest.mark.slow
def test_draw_candidates_over_sizes(count, unit, scale):
    comparisons = comparisons_of(count)
    sizes = {name: scale * RNG.uniform(2, 9) for name in comparisons}
    figure = drawn(plots.draw_candidates(comparisons, sizes=sizes, title="vs base"))
    means, quantiles = figure.axes
    assert figure.get_suptitle() == "vs base"
    assert (means.get_xlabel(), means.get_yscale(), quantiles.get_yscale()) == (f"size in {unit}", "log", "log")
    names = by_mean(comparisons)
    dots = np.array([line.get_xydata()[0] for line in means.lines])
    np.testing.assert_allclose(dots, [(sizes[name] / scale, comparisons[name].kl.mean()) for name in names])
    for bar, name in zip(means.collections, names, strict=True):
        ((low, high),) = (segment[:, 1] for segment in bar.get_segments())
        half = 1.971957 * comparisons[name].kl.std(ddof=1) / math.sqrt(200)  # Student's t with 199 degrees of freedom
        mean = comparisons[name].kl.mean()
        np.testing.assert_allclose((low, high), mean * np.exp(np.array([-half, half]) / mean), rtol=1e-6)
    legend = [text.get_text() for text in quantiles.get_legend().get_texts()]
    assert legend == [short(name) for name in names[::-1]]
    marks = [line for line in quantiles.lines if line.get_marker() == "."]
    shares = [0, 0.001, 0.01, 0.05, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1]
    for line, name in zip(marks, names[::-1], strict=True):
        ordered = sorted(comparisons[name].kl)
        np.testing.assert_allclose(line.get_ydata(), [quantile(ordered, share) for share in shares])
    handles = [(line.get_color(), line.get_linestyle()) for line in quantiles.get_legend().get_lines()]
    assert len({*handles}) == count
    for line, (color, dashes) in zip(means.lines[::-1], handles, strict=True):  # the same look in both
        assert (line.get_color(), line.get_markerfacecolor() == "white") == (color, dashes == "--")


@pytest.mark.parametrize("count", [5, 30])
@pytest.mark.slow
def test_names_of_candidates_hide_nothing(count):
    comparisons = comparisons_of(count)
    figure = plots.draw_candidates(comparisons, sizes={name: RNG.uniform(2e9, 9e9) for name in comparisons})
    figure.draw_without_rendering()  # where names are depends on the layout
    texts, dots = boxes(figure.axes[0])
    assert 0 < len(texts) <= count
    assert {text.get_text() for text in figure.axes[0].texts} <= {*map(short, comparisons)}
    room = figure.axes[0].get_window_extent()
    for index, box in enumerate(texts):
        assert not box.count_overlaps(texts[index + 1 :])
        assert not any(box.contains(*dot) for dot in dots)
        assert room.contains(*box.min)
        assert room.contains(*box.max)


@pytest.mark.parametrize("count", [3, 30])
@pytest.mark.slow
def test_draw_candidates_without_all_sizes(count):
    comparisons = comparisons_of(count)
    names = by_mean(comparisons)
    means, quantiles = drawn(plots.draw_candidates(comparisons, sizes={names[0]: 1e9})).axes
    assert means.get_xlabel() == "mean KL divergence in nats"
    assert [label.get_text() for label in means.get_yticklabels()] == [short(name) for name in names]
    for place, (line, name) in enumerate(zip(means.lines, names, strict=True)):
        np.testing.assert_allclose(line.get_xydata()[0], [comparisons[name].kl.mean(), place])
    legend = [text.get_text() for text in quantiles.get_legend().get_texts()]
    assert len(legend) == min(count, 12)
    assert (legend[0], legend[-1]) == (short(names[-1]), short(names[0]))
    assert quantiles.get_legend().get_title().get_text() == ("12 of 30 models" if count == 30 else "")


@pytest.mark.slow
def test_draw_candidates_of_special_means():
    one = compare(np.zeros((4, 2)), np.zeros((4, 2)), np.zeros(4, int))
    comparisons = {
        "zero": one,
        "inf": dataclasses.replace(one, kl=np.array([1.0, 2.0, math.inf, 3.0]), mean_kl=estimate(math.inf, math.nan)),
        "nan": dataclasses.replace(one, kl=np.array([1.0, 2.0, math.nan, 3.0]), mean_kl=estimate(math.nan, math.nan)),
        "wide": dataclasses.replace(one, kl=np.ones(4), mean_kl=estimate(1.0, 5.0)),
        "one": dataclasses.replace(one, kl=np.ones(4), mean_kl=estimate(2.0, math.nan)),
        "any": dataclasses.replace(one, kl=np.ones(4), mean_kl=estimate(1.5, math.inf)),
    }
    for sizes in None, dict.fromkeys(comparisons, 1e9):
        means, quantiles = drawn(plots.draw_candidates(comparisons, sizes=sizes)).axes
        assert "3 left out, whose mean is 0 or not finite" in means.get_xlabel()
        assert len(means.lines) == 3
        assert (means.get_ylim() if sizes else means.get_xlim())[1] < 100  # an error that is infinite has no bar
        legend = [text.get_text() for text in quantiles.get_legend().get_texts()]
        assert legend == ["nan", "inf", "one", "any", "wide"]
    drawn(plots.draw_candidates({"zero": one}))
    drawn(plots.draw_candidates({"a": one, "b": one}, sizes={"a": 0, "b": 1}))


@pytest.mark.parametrize(
    "names", [["_hidden", "$x^{$", "a\x1bb"], ["same-", "same"], ["a.npy", "b.npz"], ["日" * 99, "x"]]
)
@pytest.mark.slow
def test_names_of_candidates(names, tmp_path):
    values = list(comparisons_of(len(names)).values())
    comparisons = dict(zip(names, values, strict=True))
    figure = plots.draw_candidates(comparisons, sizes=dict.fromkeys(names, 2e9))
    plots.save(figure, tmp_path / "a.svg")
    ET.parse(tmp_path / "a.svg")  # noqa: S314 -- a file that was just written here
    legend = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert len({*legend}) == len(names)
    assert max(map(len, legend)) <= 30
    if len(names) == 3:
        assert {*legend} == {"_hidden", "$x^{$", "a\\x1bb"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"comparisons": {}}, ["comparisons is {}"]),
        ({"sizes": {"b": 1e9}}, ["sizes is 'b'", "['a']"]),
        ({"sizes": {"a": -1}}, ["sizes['a'] is -1"]),
        ({"sizes": {"a": math.nan}}, ["sizes['a'] is nan"]),
        ({"sizes": {"a": "4.9G"}}, ["sizes['a'] is '4.9G'", "number"]),
    ],
)
def test_candidates_must_fit(change, words):
    arguments = {"comparisons": {"a": compare([[0.0, 1.0]], [[1.0, 0.0]], [0])}, **change}
    with pytest.raises((TypeError, ValueError)) as raised:
        plots.draw_candidates(**arguments)
    for word in words:
        assert word in str(raised.value)


# -- any input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [[], [0.0], [math.nan], [math.inf] * 3, [1e308] * 4, [5e-324, 0.0], [1e-300, 1e30], 1.5]
)
def test_draw_any_values(values):
    values = np.array(values)
    options = {"greedy_logprobs": -values, "is_greedy": np.ones(values.shape, np.bool_)}
    drawn(plots.draw_losses(values, **options))
    drawn(plots.draw_divergences(values))


@pytest.mark.parametrize("title", ["a $x^{$ b", "日本語 \U0001f602", "two\nlines \x07", "x" * 5000, "%s {} \\frac"])
def test_title(title, tmp_path):
    figure = plots.draw_losses([1.0], title=title)
    plots.save(figure, tmp_path / "figure.svg")
    assert len(figure.get_suptitle()) <= 80
    ET.parse(tmp_path / "figure.svg")  # noqa: S314 -- a file that was just written here


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"where": [True, False]}, ["where has shape (2,)", "(3,)"]),
        ({"where": [1, 0, 1]}, ["where has dtype int64", "bool"]),
        ({"greedy_logprobs": [0.0]}, ["greedy_logprobs has shape (1,)", "(3,)"]),
        ({"greedy_logprobs": [0.0] * 3}, ["is_greedy has shape ()", "(3,)"]),
        ({"greedy_logprobs": [0.0] * 3, "is_greedy": [True]}, ["is_greedy has shape (1,)", "(3,)"]),
    ],
)
def test_arguments_must_fit(change, words):
    with pytest.raises((TypeError, ValueError)) as raised:
        plots.draw_losses(np.ones(3), **change)
    for word in words:
        assert word in str(raised.value)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "magic"), [("a.png", b"\x89PNG\r\n"), ("a.PNG", b"\x89PNG\r\n"), ("a.svg", b"<?xml"), ("a.b.pdf", b"%PDF")]
)
def test_save_formats(name, magic, tmp_path):
    plots.save(plots.draw_losses(RNG.exponential(2, 5000)), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert content.startswith(magic)
    assert len(content) < 1_000_000
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.jpeg", "png", "a", "a.png.gz"])
def test_save_other_formats(name, tmp_path):
    path = tmp_path / name
    for function, arguments in (plots.check, ()), (plots.save, (plots.draw_losses([1.0]),)):
        with pytest.raises(ValueError, match=r"\.png, \.svg or \.pdf") as raised:
            function(*arguments, path)
        assert repr(str(path)) in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_save_leaves_the_old_file_after_an_error(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"before")
    figure = plots.draw_losses([1.0])
    figure.axes[0].set_xlabel("$\\frac$")  # which has no two arguments
    with pytest.raises(ValueError, match="frac"):
        plots.save(figure, path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_matplotlib_that_is_not_installed(run_python):
    program = """
import sys
sys.modules["matplotlib"] = None
from tokenloss import plots
plots.check("a.png")
"""
    assert run_python(program, fails=True).endswith(
        "ImportError: a figure needs the package matplotlib: pip install matplotlib\n"
    )


@pytest.mark.slow
def test_save_changes_no_global_settings(run_python, tmp_path):
    program = f"""
import sys
import tokenloss
from tokenloss import plots
assert "matplotlib" not in sys.modules
import matplotlib
before = matplotlib.rcParams.copy()
plots.save(plots.draw_losses([1.0, 2.0]), {str(tmp_path / "a.png")!r})
plots.save(plots.draw_divergences([1.0, 2.0]), {str(tmp_path / "b.svg")!r})
one = tokenloss.compare([[0.0, 1.0]], [[1.0, 0.0]], [0])
plots.save(plots.draw_candidates({{"a": one, "b": one}}, sizes={{"a": 1, "b": 2}}), {str(tmp_path / "c.svg")!r})
assert matplotlib.rcParams.copy() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    run_python(program, DISPLAY="")


def test_save_changes_no_warning_filters(tmp_path):
    filters = list(warnings.filters)
    plots.save(plots.draw_losses([1.0]), tmp_path / "a.png")
    assert warnings.filters == filters
