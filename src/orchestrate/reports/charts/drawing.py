"""What all charts are drawn with: scales, axes, marks and labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Literal

import msgspec

SERIES = 6
"""Styles; a seventh series repeats the first."""
DASHES = ("", "7 4", "2 4", "10 3 2 3", "4 2", "1 3")
TOP, BOTTOM, LEFT = 24, 44, 52
LINE = 20
"""Of a legend."""


class Paper(msgspec.Struct, frozen=True):
    """For which width a chart is drawn, in pixels at which its letters have their size."""

    name: Literal["page", "phone"]
    width: int
    beside: int
    """Room for names at the right; where there is none they stand in a legend below."""


PAPERS = (Paper("page", 760, 205), Paper("phone", 350, 0))


class Scale(msgspec.Struct, frozen=True):
    """Values to pixels."""

    low: float
    high: float
    first: float
    """The pixel of `low`."""
    last: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.first + (at - low) / (high - low) * (self.last - self.first)

    def ticks(self, wanted: int = 5) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high, wanted)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values from `low` to `high`, about `wanted` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / wanted
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten, only 1 of many powers; of less than a power round values as on any
    axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if len(powers) <= 4 else (1,)
    found = [round(d * 10.0**p, 12) for p in powers for d in digits if low <= d * 10.0**p <= high]
    return found if len(found) >= 3 else ticks(low, high)


def padded(values: Sequence[float], share: float) -> tuple[float, float]:
    """The ends of an axis that leaves some air; one that begins at 0 or above does not go below."""
    low, high = min(values), max(values)
    pad = (high - low or abs(high) or 1.0) * share
    return (max(0.0, low - pad) if low >= 0 else low - pad), high + pad


def short(value: float) -> str:
    """`1.2M`, `350k`, `0.25`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def both(title: str, draw: Callable[[Paper], tuple[float, list[str]]]) -> str:
    """The chart on each paper. `draw` gives its height and its parts."""
    return "".join(_figure(title, paper, *draw(paper)) for paper in PAPERS)


def _figure(title: str, paper: Paper, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg class="{paper.name}" viewBox="0 0 {paper.width} {height:.0f}" role="img" '
        f'aria-label="{escape(title, quote=True)}"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def upright(x: Scale, y: Scale, x_name: str, y_name: str) -> list[str]:
    """The two axes of a plane, named."""
    parts = [
        f'<line class="grid" x1="{x.first:.1f}" y1="{y(t):.1f}" x2="{x.last:.1f}" y2="{y(t):.1f}"/>'
        + text(x.first - 8, y(t) + 4, short(t), "end")
        for t in y.ticks()
    ]
    parts += [text(x(t), y.first + 18, short(t), "middle") for t in x.ticks()]
    parts.append(axis(x.first, y.first, x.last, y.first))
    parts.append(text((x.first + x.last) / 2, y.first + 36, x_name, "middle"))
    parts.append(text(2, 11, y_name, "start"))
    return parts


def along(x: Scale, bottom: float, x_name: str) -> list[str]:
    """The one axis of a chart of rows, named."""
    parts = [
        f'<line class="grid" x1="{x(t):.1f}" y1="{TOP}" x2="{x(t):.1f}" y2="{bottom}"/>'
        + text(x(t), bottom + 18, short(t), "middle")
        for t in x.ticks()
    ]
    return [*parts, text((x.first + x.last) / 2, bottom + 36, x_name, "middle")]


def axis(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="axis" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def leader(x1: float, y1: float, x2: float, y2: float) -> str:
    """From what is named to its name."""
    return f'<line class="leader" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, words: str, anchor: str, name: str = "") -> str:
    kind = f' class="{name}"' if name else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def clip(words: str, length: int) -> str:
    return words if len(words) <= length else words[: length - 1] + "…"


def mark(style: int, x: float, y: float, *, hollow: bool = False) -> str:
    """Circle, square, triangle, diamond, plus, cross."""
    name = f'class="mark s{style}{" hollow" if hollow else ""}"'
    r = 4.0
    shapes = (
        f'<circle {name} cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>',
        f'<rect {name} x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"/>',
        f'<path {name} d="M{x:.1f} {y - 5:.1f} l5 9 h-10 z"/>',
        f'<path {name} d="M{x:.1f} {y - 5.5:.1f} l5.5 5.5 l-5.5 5.5 l-5.5 -5.5 z"/>',
        f'<path {name} d="M{x - 1.5:.1f} {y - 5:.1f} h3 v3.5 h3.5 v3 h-3.5 v3.5 h-3 v-3.5 h-3.5 v-3 '
        'h3.5 z"/>',
        f'<path {name} d="M{x - 4.5:.1f} {y - 4.5:.1f} l9 9 m0 -9 l-9 9"/>',
    )
    return shapes[style]


def whisker(low: float, high: float, y: float) -> str:
    return (
        f'<path class="whisker" d="M{low:.1f} {y:.1f} H{high:.1f} '
        f'M{low:.1f} {y - 5:.1f} v10 M{high:.1f} {y - 5:.1f} v10"/>'
    )


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places moved apart, so that labels do not lie on each other; order and, where possible, ends are
    kept."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    floor = low
    for i in order:
        moved[i] = max(moved[i], floor)
        floor = moved[i] + gap
    ceiling = high
    for i in reversed(order):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - gap
    return moved
