"""A chart for people: how fast each contender goes through float32 logits out of cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CASE = "logits/float32/131072/1"
OURS, READ, OTHERS = "#1f77b4", "#b0b7bf", "#7f8790"


def draw(report: dict[str, Any], file: Path) -> None:
    """Draw the case of a report as horizontal bars of GB/s, fastest first; on white, for light and dark pages."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        print("a chart needs: pip install matplotlib")
        return
    case = next((case for case in report["cases"] if case["name"] == CASE), None)
    if case is None:
        print(f"a chart needs the case {CASE}")
        return
    rows = sorted(case["contenders"], key=lambda contender: contender["median"])
    mpl.rcParams["svg.hashsalt"] = "tokenloss"
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
    axes.set_xlabel(report["machine"]["cpu"], loc="left", color="#57606a", fontsize=8)
    figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)


def _is(row: dict[str, Any], name: str) -> bool:
    """Whether a contender is this one, or a kind of it."""
    return str(row["name"]).startswith(name)
