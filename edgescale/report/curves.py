"""Plots of a fitted law as SVG: one panel an input, one of predictions against observations. No plotting library."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 460.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 14.0, 34.0, 48.0
INK, CURVE, BAND, POINT = "#222", "#1f5fa8", "#1f5fa8", "#c0532b"


@dataclass(frozen=True)
class Panel:
    """`points` (x, y); `curve` (x, y, low, high) drawn as a line in a band; `diagonal` adds y = x."""

    title: str
    x_label: str
    y_label: str
    points: Sequence[tuple[float, float]]
    curve: Sequence[tuple[float, float, float, float]] = field(default_factory=tuple)
    diagonal: bool = False


def svg(panels: Sequence[Panel]) -> str:
    """The panels side by side, three a row."""
    across = min(3, max(1, len(panels)))
    down = math.ceil(len(panels) / across)
    body = "".join(
        f'<g transform="translate({(i % across) * WIDTH:g} {(i // across) * HEIGHT:g})">{_panel(panel)}</g>'
        for i, panel in enumerate(panels)
    )
    size = f'width="{across * WIDTH:g}" height="{down * HEIGHT:g}" viewBox="0 0 {across * WIDTH:g} {down * HEIGHT:g}"'
    style = 'font-family="system-ui, sans-serif" font-size="11"'
    page = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{page}{body}</svg>\n'


class _Axis:
    """Data to pixels; logarithmic where values are positive and span more than a factor of 8."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        finite = [v for v in values if math.isfinite(v)]
        low, high = min(finite), max(finite)
        self.log = low > 0 and high > 8 * low
        a, b = (math.log10(low), math.log10(high)) if self.log else (low, high)
        margin = 0.05 * (b - a) or 0.5 * abs(a) or 1.0
        self.low, self.high, self.start, self.end = a - margin, b + margin, start, end

    def __call__(self, value: float) -> float:
        at = math.log10(max(value, 1e-300)) if self.log else value
        share = min(max((at - self.low) / (self.high - self.low), -0.2), 1.2)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            step = max(1, math.ceil((self.high - self.low) / 6))
            decades = [10.0**e for e in range(math.ceil(self.low), math.floor(self.high) + 1, step)]
            if len(decades) >= 2:
                return decades
            return [10 ** (self.low + (self.high - self.low) * i / 4) for i in range(5)]
        raw = (self.high - self.low) / 5
        unit = 10 ** math.floor(math.log10(raw))
        step_size = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
        first = math.ceil(self.low / step_size)
        return [i * step_size for i in range(first, math.floor(self.high / step_size) + 1)]


def _panel(panel: Panel) -> str:
    xs = [x for x, _ in panel.points] + [c[0] for c in panel.curve]
    ys = [y for _, y in panel.points] + [v for c in panel.curve for v in c[1:]]
    if panel.diagonal:
        xs = ys = xs + ys
    across, up = _Axis(xs, LEFT, WIDTH - RIGHT), _Axis(ys, HEIGHT - BOTTOM, TOP)
    parts = [_frame(panel, across, up)]
    if panel.curve:
        upper = [f"{across(x):.1f},{up(high):.1f}" for x, _, _, high in panel.curve]
        lower = [f"{across(x):.1f},{up(low):.1f}" for x, _, low, _ in reversed(panel.curve)]
        parts.append(f'<polygon points="{" ".join(upper + lower)}" fill="{BAND}" fill-opacity="0.18"/>')
        line = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y, _, _ in panel.curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{CURVE}" stroke-width="1.8"/>')
    if panel.diagonal:
        low, high = min(xs), max(xs)
        ends = f'x1="{across(low):.1f}" y1="{up(low):.1f}" x2="{across(high):.1f}" y2="{up(high):.1f}"'
        parts.append(f'<line {ends} stroke="{CURVE}" stroke-width="1.2"/>')
    parts += [
        f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.6" fill="{POINT}" fill-opacity="0.75"/>'
        for x, y in panel.points
    ]
    return "".join(parts)


def _frame(panel: Panel, across: _Axis, up: _Axis) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [
        f'<rect x="{LEFT}" y="{TOP}" width="{right - LEFT}" height="{bottom - TOP}" fill="none" stroke="#888"/>',
        f'<text x="{LEFT}" y="20" font-size="13" fill="{INK}">{html.escape(panel.title)}</text>',
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 10}" text-anchor="middle" fill="{INK}">'
        f"{html.escape(panel.x_label)}</text>",
        f'<text transform="translate(14 {(TOP + bottom) / 2}) rotate(-90)" text-anchor="middle" fill="{INK}">'
        f"{html.escape(panel.y_label)}</text>",
    ]
    for tick in across.ticks():
        x = across(tick)
        parts.append(f'<line x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 4}" stroke="#888"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="{INK}">{tick:.4g}</text>')
    for tick in up.ticks():
        y = up(tick)
        parts.append(f'<line x1="{LEFT - 4}" y1="{y:.1f}" x2="{LEFT}" y2="{y:.1f}" stroke="#888"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end" fill="{INK}">{tick:.4g}</text>')
    return "".join(parts)
