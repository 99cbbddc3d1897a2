"""Layout of the report's line charts: numbers -> SVG coordinates, which report.html.j2 draws."""

import math
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 546, 14, 252  # edges of the plot area


class Line(NamedTuple):
    """A curve through (x, y), arrays of equal length; `spread`: standard deviation of y, drawn as a band, or None."""

    label: str
    x: np.ndarray
    y: np.ndarray
    spread: np.ndarray | None = None


class Span(NamedTuple):
    """A shaded, labelled interval of the x axis."""

    label: str
    start: float
    end: float


class Chart(NamedTuple):
    """A chart in pixels, for the template: ticks (position, text), lines (label, points, band), spans (label, x, width)."""

    description: str
    x_label: str
    y_label: str
    x_ticks: list
    y_ticks: list
    lines: list
    spans: list


def round_numbers(low, high, wanted=5):
    """About `wanted` tick values from low to high: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def line_chart(description, x_label, y_label, lines, spans=()):
    """Lines over a common x axis, with y from 0 (or the lowest value) up -> Chart. description: text for screen readers."""
    x = np.concatenate([line.x for line in lines])
    tops = np.concatenate([line.y if line.spread is None else line.y + line.spread for line in lines])
    x_low, x_high = x.min(), x.max()
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    y_low = min(0.0, *(line.y.min() for line in lines))
    y_high = y_low + ((tops.max() - y_low) * 1.05 or 1.0)

    def at_x(value):
        return np.round(LEFT + (np.asarray(value) - x_low) / (x_high - x_low) * (RIGHT - LEFT), 1)

    def at_y(value):
        return np.round(BOTTOM - (np.asarray(value) - y_low) / (y_high - y_low) * (BOTTOM - TOP), 1)

    drawn = []
    for line in lines:
        band = None
        if line.spread is not None:
            lower = np.maximum(line.y - line.spread, y_low)
            there = zip(at_x(line.x), at_y(line.y + line.spread), strict=True)
            back = zip(at_x(line.x)[::-1], at_y(lower)[::-1], strict=True)
            band = [*there, *back]
        drawn.append((line.label, list(zip(at_x(line.x), at_y(line.y), strict=True)), band))
    shaded = [(span.label, at_x(span.start), at_x(span.end) - at_x(span.start)) for span in spans]
    return Chart(
        description,
        x_label,
        y_label,
        [(at_x(value), f"{value:g}") for value in round_numbers(x_low, x_high)],
        [(at_y(value), f"{value:g}") for value in round_numbers(y_low, y_high)],
        drawn,
        shaded,
    )
