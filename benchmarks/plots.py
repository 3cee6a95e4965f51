"""Two kinds of plots as SVG, so that nothing has to be installed to draw them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["bars", "lines"]

_COLOURS = ("#1668a8", "#c2571a", "#3d8b37", "#8b3d8b", "#8a6d1a", "#555555", "#b0305c", "#1a8a8a")
_FONT = 'font-family="sans-serif" font-size="12"'


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {_FONT}>'
    ground = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, ground, *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str = "start", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{escape(text)}</text>'


def bars(title: str, values: Sequence[tuple[str, float]]) -> str:
    """One horizontal bar for each value."""
    longest = max((value for _, value in values), default=1.0) or 1.0
    parts = [_text(10, 20, title, extra='font-weight="bold"')]
    for row, (name, value) in enumerate(values):
        y, width = 34 + row * 22, 420 * value / longest
        colour = _COLOURS[0] if name.startswith("vodup") else "#9aa5b1"
        parts += [
            _text(190, y + 13, name, "end"),
            f'<rect x="200" y="{y}" width="{width:.1f}" height="17" fill="{colour}"/>',
            _text(206 + width, y + 13, f"{value:.2f}"),
        ]
    return _svg(720, 44 + 22 * len(values), parts)


def lines(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    guide: Sequence[tuple[float, float]] = (),
) -> str:
    """Points joined by lines, one colour for each series; both axes start at 0.

    `guide` is a dashed line to compare them with, such as a fit.
    """
    points = [point for line in series.values() for point in line]
    right = _ceiling(max((x for x, _ in points), default=1.0))
    top = _ceiling(max((y for _, y in points), default=1.0))

    def place(x: float, y: float) -> tuple[float, float]:
        return 70 + 560 * x / right, 330 - 280 * y / top

    parts = [_text(10, 20, title, extra='font-weight="bold"'), *_axes(right, top)]
    parts += [_text(350, 372, x_label, "middle"), _text(10, 42, y_label)]
    if guide:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in guide))
        look = 'fill="none" stroke="#777777" stroke-dasharray="6 5"'
        parts.append(f'<polyline points="{path}" {look}/>')
        parts.append(_text(640, 60 + 18 * len(series), "least squares", extra='fill="#777777"'))
    for index, (name, line) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        placed = [place(x, y) for x, y in sorted(line)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        parts.append(_text(640, 60 + 18 * index, name, extra=f'fill="{colour}"'))
    return _svg(800, 385, parts)


def _axes(right: float, top: float) -> list[str]:
    parts = ['<path d="M70 50 V330 H630" fill="none" stroke="#333333"/>']
    for step in range(5):
        share = step / 4
        parts.append(_text(64, 334 - 280 * share, f"{top * share:g}", "end"))
        parts.append(_text(70 + 560 * share, 348, f"{right * share:g}", "middle"))
    return parts


def _ceiling(value: float) -> float:
    """The next of 1, 2, 4, 8 … times a power of ten, so that quarters are round numbers."""
    if value <= 0:
        return 1.0
    scale = 10 ** math.floor(math.log10(value))
    return next(scale * step for step in (1, 2, 4, 6, 8, 10) if scale * step >= value * 0.9999)
