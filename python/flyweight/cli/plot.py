"""Scatter plots of size against speed: in characters for a terminal, as SVG for everything else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Point", "scatter_svg", "scatter_text"]

COLUMNS, LINES = 64, 14
WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 80, 140, 24, 56


@dataclass(frozen=True, slots=True)
class Point:
    """One codec."""

    label: str
    """What to call it."""
    overhead: float
    """Size over information content, minus 1: to the left is smaller."""
    speed: float
    """Decoded MB of symbols a second, more than 0: up is faster."""


def scatter_text(points: Sequence[Point]) -> str:
    """A plot of letters, with a legend; points that fall together show the first letter."""
    xs, ys = _Axis([p.overhead for p in points]), _Axis([math.log10(p.speed) for p in points])
    grid = [[" "] * COLUMNS for _ in range(LINES)]
    for index, point in reversed(list(enumerate(points))):
        column = round(xs.share(point.overhead) * (COLUMNS - 1))
        line = LINES - 1 - round(ys.share(math.log10(point.speed)) * (LINES - 1))
        grid[line][column] = _letter(index)
    labels = [""] * LINES
    labels[0], labels[-1] = f"{10**ys.high:,.0f} MB/s", f"{10**ys.low:,.0f} MB/s"
    width = max(map(len, labels))
    lines = [
        f"{label:>{width}} |{''.join(row)}".rstrip()
        for label, row in zip(labels, grid, strict=True)
    ]
    ends = f"{xs.low:+.2%}", f"{xs.high:+.2%}"
    gap = COLUMNS - len(ends[0]) - len(ends[1])
    lines.append(" " * (width + 1) + "+" + "-" * COLUMNS)
    lines.append(" " * (width + 2) + ends[0] + "overhead".center(gap) + ends[1])
    legend = "   ".join(f"{_letter(index)} {point.label}" for index, point in enumerate(points))
    return "\n".join(["decoding speed against size", *lines, "", legend])


def scatter_svg(points: Sequence[Point], title: str) -> str:
    """The same as a picture, speeds on a logarithmic axis."""
    xs, ys = _Axis([p.overhead for p in points]), _Axis([math.log10(p.speed) for p in points])

    def across(overhead: float) -> float:
        return LEFT + xs.share(overhead) * (WIDTH - LEFT - RIGHT)

    def down(log_speed: float) -> float:
        return HEIGHT - BOTTOM - ys.share(log_speed) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT + 24, TOP - 8, title),
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="black"/>',
    ]
    for step in range(5):
        overhead = xs.low + step / 4 * (xs.high - xs.low)
        log_speed = ys.low + step / 4 * (ys.high - ys.low)
        parts.append(_text(across(overhead), HEIGHT - BOTTOM + 18, f"{overhead:+.2%}", "middle"))
        parts.append(_text(LEFT - 6, down(log_speed) + 4, f"{10**log_speed:,.0f}", "end"))
    parts.append(_text(LEFT, HEIGHT - 12, "bytes over order-0 information content"))
    parts.append(_text(8, TOP - 8, "decode MB/s"))
    for point in points:
        x, y = across(point.overhead), down(math.log10(point.speed))
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#1f6feb"/>')
        parts.append(_text(x + 8, y + 4, point.label))
    return "\n".join([*parts, "</svg>", ""])


class _Axis:
    """The range of some numbers, a little wider, so that no point lies on a border."""

    def __init__(self, values: Sequence[float]) -> None:
        margin = 0.05 * (max(values) - min(values)) or 0.01
        self.low, self.high = min(values) - margin, max(values) + margin

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


def _letter(index: int) -> str:
    return chr(ord("a") + index % 26)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    style = f'font-family="sans-serif" font-size="12" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
