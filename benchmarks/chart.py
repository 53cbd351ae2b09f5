"""A chart of lines as SVG, in colours and greys that can be read on white and on black pages."""

from __future__ import annotations

import math
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 820, 440, 44, 700, 44, 392
GREY = "#7d8590"
OURS = "#2f81f7"
COLORS = ("#e0562b", "#2f9e5b", "#9068d0", "#a87900", "#d6409f", "#0e97a7")
APART = 17  # pixels between texts
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


def svg(lines: dict[str, dict[int, float]], title: str, below: str) -> str:
    """Lines by their names: multiples of tokenloss's time over numbers of classes, both on logarithmic axes."""
    xs = sorted({x for line in lines.values() for x in line}) or [1]
    ys = [1.0, *(y for line in lines.values() for y in line.values())]
    low, high = min(ys) / 1.15, max(ys) * 1.15

    def at_x(x: float) -> float:
        return LEFT + (RIGHT - LEFT) * math.log(x / xs[0]) / (math.log(xs[-1] / xs[0]) or 1)

    def at_y(y: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * math.log(y / low) / math.log(high / low)

    parts = [_text(LEFT - 32, 22, title, "style='font-weight:bold'"), _text(LEFT - 32, HEIGHT - 8, below)]
    for tick in TICKS:
        if low < tick < high:
            parts += [_line([(LEFT, at_y(tick)), (RIGHT, at_y(tick))], GREY, 0.3)]
            parts += [_text(LEFT - 8, at_y(tick) + 4, f"{tick:g}", "text-anchor='end'")]
    for x in xs:
        parts.append(_line([(at_x(x), BOTTOM), (at_x(x), BOTTOM + 4)], GREY, 1))
        if x in (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000):
            parts.append(_text(at_x(x), BOTTOM + 18, f"{x}", "text-anchor='middle'"))
    styles = {"tokenloss": (OURS, 3.5), **{name: (color, 2) for name, color in zip(lines, COLORS, strict=False)}}
    place = math.inf
    for name, line in sorted(
        {"tokenloss": dict.fromkeys(xs, 1.0), **lines}.items(), key=lambda each: [*each[1].values()][-1]
    ):
        color, width = styles[name]
        points = [(at_x(x), at_y(y)) for x, y in sorted(line.items())]
        parts.append(_line(points, color, width))
        parts += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{width + 0.5}' fill='{color}'/>" for x, y in points]
        place = min(points[-1][1], place - APART)  # so that no name lies on another
        parts.append(_text(RIGHT + 12, place + 4, name, f"style='fill:{color};font-weight:bold'"))
    style = f"<style>text {{ font: 13px sans-serif; fill: {GREY} }}</style>"
    size = f"width='{WIDTH}' height='{HEIGHT}' viewBox='0 0 {WIDTH} {HEIGHT}'"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size}>\n" + "\n".join([style, *parts]) + "\n</svg>\n"


def _line(points: list[tuple[float, float]], color: str, width: float) -> str:
    """A line through points."""
    through = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f"<polyline points='{through}' fill='none' stroke='{color}' stroke-width='{width}'/>"


def _text(x: float, y: float, text: str, more: str = "") -> str:
    """A text, whose beginning is here unless more is said."""
    return f"<text x='{x:.1f}' y='{y:.1f}' {more}>{escape(text)}</text>"
