"""Charts as SVG text, without any library or script: curves over iterations, and points of classes."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7f3c8d", "#6b6b6b")
WIDTH, HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 26, 10, 36
_MOST_POINTS = 400


class Series(NamedTuple):
    """One line, or one cloud of points."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()
    """What is shown when the pointer rests on a point; as many as points, or none."""


def colour_of(number: int) -> str:
    """Of the run number `number`."""
    return COLOURS[number % len(COLOURS)]


def line_chart(title: str, series: Sequence[Series], reference: Mapping[str, float] | None = None) -> str:
    """Curves over iterations; `reference`: horizontal lines by name, such as the value of real images."""
    kept = [entry._replace(points=_thinned(entry.points)) for entry in series if entry.points]
    lines = list((reference or {}).values())
    axes = _Axes(kept, lines)
    body = [axes.horizontal(value, name) for name, value in (reference or {}).items()]
    for entry in kept:
        path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in entry.points)
        body.append(f'<polyline fill="none" stroke="{entry.colour}" stroke-width="1.8" points="{path}"/>')
        if len(entry.points) <= 12:
            body += axes.dots(entry)
    return axes.svg(title, body, "iteration")


def scatter_chart(title: str, series: Sequence[Series], x_label: str, y_label: str, threshold: float | None) -> str:
    """Points with axes; `threshold`: a vertical line."""
    kept = [entry for entry in series if entry.points]
    axes = _Axes(kept, [])
    body = [mark for entry in kept for mark in axes.dots(entry)]
    if threshold is not None and axes.low_x <= threshold <= axes.high_x:
        x = axes.x(threshold)
        body.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
    return axes.svg(title, body, x_label, y_label)


class _Axes:
    """Where values lie in the picture."""

    def __init__(self, series: Sequence[Series], more: Sequence[float]) -> None:
        xs = [x for entry in series for x, _ in entry.points] or [0.0]
        ys = [y for entry in series for _, y in entry.points] + list(more) or [0.0]
        self.ticks_x, self.ticks_y = nice_ticks(min(xs), max(xs)), nice_ticks(min(ys), max(ys))
        self.low_x, self.high_x = min([*xs, self.ticks_x[0]]), max([*xs, self.ticks_x[-1]])
        self.low_y, self.high_y = min([*ys, self.ticks_y[0]]), max([*ys, self.ticks_y[-1]])

    def x(self, value: float) -> float:
        share = (value - self.low_x) / (self.high_x - self.low_x or 1.0)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low_y) / (self.high_y - self.low_y or 1.0)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    def dots(self, entry: Series) -> list[str]:
        marks = []
        for number, (x, y) in enumerate(entry.points):
            label = entry.labels[number] if entry.labels else f"{entry.name}, {_number(x)}: {_number(y)}"
            circle = (
                f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="3.5" fill="{entry.colour}" fill-opacity="0.8">'
            )
            marks.append(f"{circle}<title>{escape(label)}</title></circle>")
        return marks

    def horizontal(self, value: float, name: str) -> str:
        y = self.y(value)
        line = f'<line class="reference" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        return f'{line}<text class="reference" x="{WIDTH - _RIGHT - 2}" y="{y - 4:.1f}" text-anchor="end">{escape(name)}</text>'

    def svg(self, title: str, body: Sequence[str], x_label: str, y_label: str = "") -> str:
        bottom = HEIGHT - _BOTTOM
        parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
        for tick in self.ticks_y:
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
        for tick in self.ticks_x:
            parts.append(f'<text x="{self.x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{_number(tick)}</text>')
        parts.append(
            f'<text x="{(_LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>'
        )
        if y_label:
            middle = (bottom + _TOP) / 2
            turned = f'transform="rotate(-90 12 {middle:.0f})"'
            parts.append(f'<text x="12" y="{middle:.0f}" text-anchor="middle" {turned}>{escape(y_label)}</text>')
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
        return "\n".join([*parts, *body, "</svg>"])


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    span = high - low or abs(high) or 1.0
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * number for number in range(first, max(last, first + 1) + 1)]


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most some hundred points, always with the last."""
    step = max(1, math.ceil(len(points) / _MOST_POINTS))
    kept = list(points[::step])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _number(value: float) -> str:
    if abs(value) < 1e-12:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
