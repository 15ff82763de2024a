"""A plot as SVG: lines on two logarithmic axes, with a legend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

__all__ = ["log_log"]

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 80, 30, 40, 50
COLOURS = ("#0b6e4f", "#7a7a7a", "#c8553d", "#3d5ac8")


def log_log(title: str, x_label: str, y_label: str, lines: Mapping[str, Points]) -> str:
    """Draw ``lines``, from name to points, with one tick for each x that occurs."""
    xs, ys = zip(*(point for points in lines.values() for point in points), strict=True)
    x_low, x_high = math.log10(min(xs)) - 0.1, math.log10(max(xs)) + 0.1
    y_low, y_high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))

    def at(x: float, y: float) -> tuple[float, float]:
        right = (math.log10(x) - x_low) / (x_high - x_low)
        up = (math.log10(y) - y_low) / max(y_high - y_low, 1)
        return (
            round(LEFT + right * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13" fill="#333">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        _text(WIDTH / 2, 22, title, "middle", "font-weight='bold'"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_label, "middle"),
        _text(0, 0, y_label, "middle", f"transform='translate(18 {HEIGHT / 2}) rotate(-90)'"),
    ]
    for value in sorted(set(xs)):
        x, bottom = at(value, 10.0**y_low)
        parts.append(_line(x, bottom, x, TOP) + _text(x, bottom + 18, f"{value:,}", "middle"))
    for power in range(y_low, y_high + 1):
        left, y = at(10**x_low, 10.0**power)
        label = f"{10.0**power:,.10g}"
        parts.append(_line(left, y, WIDTH - RIGHT, y) + _text(left - 8, y + 4, label, "end"))
    for number, (name, points) in enumerate(lines.items()):
        colour, level = COLOURS[number % len(COLOURS)], TOP + 24 + 20 * number
        places = [at(*point) for point in sorted(points)]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(
            f"<rect x='{LEFT + 12}' y='{level - 9}' width='18' height='3' fill='{colour}'/>"
        )
        parts.append(_text(LEFT + 38, level - 3, name, "start"))
    return "\n".join([*parts, "</svg>\n"])


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f"<text x='{x:g}' y='{y:g}' text-anchor='{anchor}' {more}>{text}</text>"


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f"<line x1='{x1:g}' y1='{y1:g}' x2='{x2:g}' y2='{y2:g}' stroke='#ddd'/>"
