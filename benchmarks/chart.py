"""Charts for people: the speed of each contender over float32 logits, and the time of short rows; on white pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tables import fastest, ours

CASE = "logits/float32/131072/1"
OURS, READ, OTHERS = "#1f77b4", "#b0b7bf", "#7f8790"
SHORT = "short/float32/"
LINES = {  # label and colour of each line, by the beginning of its contenders' names
    "tokenloss": ("tokenloss", OURS),
    "torch": ("torch", "#c44e2b"),
    "NumPy": ("NumPy", "#2e8b57"),
    "SciPy": ("SciPy", "#8a6bbe"),
    "the tutorial's": ("the tutorial's", "#8c6d1f"),
}
APART = 1.55  # the least ratio of the heights of two texts, on a logarithmic axis


def draw(report: dict[str, Any], file: Path) -> None:
    """Draw one case of a report as horizontal bars of GB/s, fastest first."""
    plt = _pyplot()
    case = next((case for case in report["cases"] if case["name"] == CASE), None)
    if not plt or case is None:
        print("a chart needs: " + (f"the case {CASE}" if plt else "pip install matplotlib"))
        return
    rows = sorted(case["contenders"], key=lambda contender: contender["median"])
    figure, axes = plt.subplots(figsize=(8, 0.36 * len(rows) + 1.1), layout="constrained", facecolor="white")
    speeds = [row["gb_per_s"] for row in rows]
    colors = [OURS if _is(row, "tokenloss") else READ if _is(row, "read") else OTHERS for row in rows]
    axes.barh([row["name"] for row in rows], speeds, color=colors, height=0.72)
    for place, row in enumerate(rows):
        note = "reading alone" if _is(row, "read") else f"{row['times_tokenloss']:.3g} x the time"
        note = "" if row["name"] == "tokenloss" else f"   {note}"
        bold = "bold" if row["name"] == "tokenloss" else "normal"
        axes.text(row["gb_per_s"], place, f"  {row['gb_per_s']:.1f} GB/s{note}", va="center", weight=bold)
    axes.invert_yaxis()
    axes.set_xlim(0, max(speeds) * 1.42)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"Mean cross-entropy of {case['title']}", loc="left", fontsize=10)
    _save(plt, figure, axes, report, file)


def draw_rows(report: dict[str, Any], file: Path) -> None:
    """Draw the time of a row over the number of its classes, both on logarithmic axes: a line for each library."""
    plt = _pyplot()
    cases = {int(c["name"].removeprefix(SHORT)): c for c in report["cases"] if c["name"].startswith(SHORT)}
    if not plt or len(cases) < 2:
        print("a chart needs: " + (f"the cases {SHORT}" if plt else "pip install matplotlib"))
        return
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained", facecolor="white")
    ends = []
    for begins, (text, color) in LINES.items():
        bold = begins == "tokenloss"
        best = {v: ours(case) if bold else fastest(case, begins) for v, case in sorted(cases.items())}
        times = {v: contender["ns_per_row"] for v, contender in best.items() if contender}
        if times:
            style = {"marker": "o", "ms": 4, "lw": 3 if bold else 1.6, "zorder": 2 + bold}
            axes.plot(list(times), list(times.values()), color=color, **style)
            ends.append((times[max(times)], text, color, "bold" if bold else "normal"))
    height = 0.0
    for end, text, color, weight in sorted(ends):
        height = max(end, height * APART)  # so that no text lies on another
        axes.annotate(text, (max(cases) * 1.15, height), color=color, weight=weight, va="center", annotation_clip=False)
    axes.set(xscale="log", yscale="log", xlim=(min(cases) * 0.85, max(cases) * 4.5))
    ticks = [v for v in (2, 10, 100, 1000, 10000) if v in cases]
    axes.set_xticks(ticks, map(str, ticks))
    axes.yaxis.set_major_formatter(lambda ns, _: f"{ns / 1000:g} µs" if ns >= 1000 else f"{ns:g} ns")
    axes.minorticks_off()
    axes.grid(color="#e4e7eb", lw=0.8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("Cross-entropy of float32 logits: time of a row over the number of classes", loc="left", fontsize=10)
    _save(plt, figure, axes, report, file)


def _pyplot() -> Any:
    """Matplotlib's, or None; files of the same figures have the same bytes."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return None
    mpl.rcParams["svg.hashsalt"] = "tokenloss"
    return pyplot


def _save(plt: Any, figure: Any, axes: Any, report: dict[str, Any], file: Path) -> None:
    """Write a figure, with the machine's name below."""
    axes.set_xlabel(report["machine"]["cpu"], loc="left", color="#57606a", fontsize=8)
    figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)


def _is(row: dict[str, Any], name: str) -> bool:
    """Whether a contender is this one, or a kind of it."""
    return str(row["name"]).startswith(name)
