"""Axes of a chart: from values to places in an SVG, with round ticks and a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

# All lengths in the SVG's own units.
WIDTH, HEIGHT = 360, 208
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 10, 38
WANTED_TICKS = 5
MOST_LOG_TICKS = 6


class Axes:
    """Maps values to places in the SVG, and draws grid, ticks and the label of the x axis."""

    def __init__(
        self,
        x_low: float,
        x_high: float,
        y_low: float,
        y_high: float,
        logarithmic: bool,
        *,
        left: int = LEFT,
        size: tuple[int, int] = (WIDTH, HEIGHT),
        rows: bool = False,
    ) -> None:
        self.x_range = (x_low, x_high) if x_high > x_low else (x_low - 0.5, x_high + 0.5)
        self.y_range = (y_low, y_high)
        self.logarithmic = logarithmic
        self.left, self.size, self.rows = left, size, rows
        self.width = size[0] - left - RIGHT
        self.height = size[1] - TOP - BOTTOM

    def x(self, value: float) -> float:
        """Place of ``value`` along the x axis."""
        low, high = self.x_range
        return self.left + self.width * (value - low) / (high - low)

    def y(self, value: float) -> float:
        """Place of ``value`` along the y axis; beyond the range is held just outside it."""
        low, high = self.y_range
        if self.logarithmic:
            value, low, high = math.log(max(value, low / 10)), math.log(low), math.log(high)
        fraction = min(1.5, max(-0.5, (value - low) / (high - low)))
        return TOP + self.height * (1.0 - fraction)

    def draw(self, x_label: str, x_ticks: Sequence[tuple[float, str]] | None = None) -> str:
        """Grid lines, tick labels and the label of the x axis.

        ``x_ticks`` are values with their labels as markup; round numbers without them.
        """
        if x_ticks is None:
            round_numbers = round_ticks(*self.x_range, logarithmic=False)
            x_ticks = [(tick, escape(tick_text(tick))) for tick in round_numbers]
        right, bottom = self.size[0] - RIGHT, self.size[1] - BOTTOM
        parts = []
        for tick in [] if self.rows else round_ticks(*self.y_range, logarithmic=self.logarithmic):
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{right}" y1="{y:.1f}"')
            parts.append(f' y2="{y:.1f}"/><text class="y" x="{self.left - 6}" y="{y + 3.5:.1f}">')
            parts.append(f"{escape(tick_text(tick))}</text>")
        for tick, text in x_ticks:
            x = self.x(tick)
            parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}"')
            parts.append(f' y2="{bottom + 4}"/><text class="x" x="{x:.1f}" y="{bottom + 15}">')
            parts.append(f"{text}</text>")
        parts.append(f'<line class="axis" x1="{self.left}" x2="{right}" y1="{bottom}"')
        parts.append(f' y2="{bottom}"/><text class="label" x="{(self.left + right) / 2:.1f}"')
        parts.append(f' y="{bottom + 31}">{escape(x_label)}</text>')
        return "".join(parts)


def round_ticks(low: float, high: float, *, logarithmic: bool) -> list[float]:
    """Round numbers inside the range: steps of 1, 2 or 5, or decades."""
    if logarithmic:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
            ticks = [f * 10.0**e for e in exponents for f in factors if low <= f * 10.0**e <= high]
            if len(ticks) >= WANTED_TICKS - 2:
                break
        return ticks[:: math.ceil(len(ticks) / MOST_LOG_TICKS)] if ticks else [low]
    rough = (high - low) / WANTED_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1.0, 2.0, 5.0, 10.0) if f * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        text = f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    else:
        text = f"{value:.6g}"
    return text.replace("-", "−")
