"""Draw small charts as inline SVG.

Each chart is drawn twice, for wide screens and for phones, and the style sheet shows the one that fits.
Labels therefore never shrink. The style sheet also defines the colors of the classes `s0`, `s1` ... Each
series has its own dash pattern and marker too, so color is never the only distinction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Literal, TypeVar

import msgspec

SERIES = 6
"""Number of distinct series styles. If there are more series, the styles repeat."""
DASHES = ("", "7 4", "2 4", "10 3 2 3", "4 2", "1 3")
TOP, BOTTOM, LEFT = 24, 44, 52
LINE = 20
"""Line height of a legend, in pixels."""


class Paper(msgspec.Struct, frozen=True):
    """Dimensions of a chart, in pixels at its nominal font size."""

    name: Literal["page", "phone"]
    width: int
    beside: int
    """Width reserved for names on the right. If 0, names are in a legend below the chart."""


PAPERS = (Paper("page", 760, 205), Paper("phone", 350, 0))


class Scale(msgspec.Struct, frozen=True):
    """Maps values to pixels."""

    low: float
    high: float
    first: float
    """Pixel position of the value `low`."""
    last: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.first + (at - low) / (high - low) * (self.last - self.first)

    def ticks(self, wanted: int = 5) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high, wanted)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return about `wanted` round values between `low` and `high`."""
    if high <= low:
        return [low]
    raw = (high - low) / wanted
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return ticks at 1, 2 and 5 times each power of ten, or only at the powers if there are many. A range of
    less than one power gets evenly spaced round values instead."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if len(powers) <= 4 else (1,)
    found = [round(d * 10.0**p, 12) for p in powers for d in digits if low <= d * 10.0**p <= high]
    return found if len(found) >= 3 else ticks(low, high)


def padded(values: Sequence[float], share: float) -> tuple[float, float]:
    """Return the range of an axis, (low, high), with padding at both ends. `share` is the padding as a
    fraction of the range. If no value is negative, the axis does not extend below 0."""
    low, high = min(values), max(values)
    pad = (high - low or abs(high) or 1.0) * share
    return (max(0.0, low - pad) if low >= 0 else low - pad), high + pad


def short(value: float) -> str:
    """Format a number with a unit prefix, such as `1.2M`, `350k` or `0.25`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def both(title: str, draw: Callable[[Paper], tuple[float, list[str]]]) -> str:
    """Draw the chart twice: for wide screens and for phones. `draw` takes the dimensions and returns the
    chart's height and SVG elements."""
    return "".join(_figure(title, paper, *draw(paper)) for paper in PAPERS)


def _figure(title: str, paper: Paper, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg class="{paper.name}" viewBox="0 0 {paper.width} {height:.0f}" role="img" '
        f'aria-label="{escape(title, quote=True)}"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def upright(x: Scale, y: Scale, x_name: str, y_name: str) -> list[str]:
    """Draw the labeled x and y axes of a chart."""
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
    """Draw the labeled x axis and the vertical grid lines of a chart whose items are rows."""
    parts = [
        f'<line class="grid" x1="{x(t):.1f}" y1="{TOP}" x2="{x(t):.1f}" y2="{bottom}"/>'
        + text(x(t), bottom + 18, short(t), "middle")
        for t in x.ticks()
    ]
    return [*parts, text((x.first + x.last) / 2, bottom + 36, x_name, "middle")]


def axis(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="axis" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def leader(x1: float, y1: float, x2: float, y2: float) -> str:
    """Draw a line that connects a marker to its label."""
    return f'<line class="leader" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, words: str, anchor: str, name: str = "") -> str:
    kind = f' class="{name}"' if name else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def clip(words: str, length: int) -> str:
    return words if len(words) <= length else words[: length - 1] + "…"


def mark(style: int, x: float, y: float, *, hollow: bool = False) -> str:
    """Draw a marker by its style: circle, square, triangle, diamond, plus or cross."""
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
    """Move positions apart so that labels don't overlap. Keeps their order, and stays between `low` and
    `high` if possible."""
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


_NAMED = 15
"""Minimum vertical distance between two names, in pixels."""


class Series(msgspec.Struct, frozen=True):
    label: str
    points: tuple[tuple[float, float], ...]
    style: int


def lines(
    series: Sequence[Series],
    *,
    title: str,
    x_name: str,
    y_name: str,
    height: int = 320,
    log: bool = False,
) -> str:
    """Draw a line chart. Names are at the ends of the lines, or in a legend on phones. `log` uses a
    logarithmic y axis if all values are positive."""
    values = [v for s in series for _, v in s.points]
    log = log and min(values) > 0
    x_high = max(x for s in series for x, _ in s.points) or 1.0
    low, high = (min(values) / 1.06, max(values) * 1.06) if log else padded(values, 0.06)

    def draw(paper: Paper) -> tuple[float, list[str]]:
        tall = max(height, TOP + BOTTOM + _NAMED * len(series)) if paper.beside else height - 60
        bottom = tall - BOTTOM
        x = Scale(0.0, x_high, LEFT, paper.width - max(paper.beside, 14))
        y = Scale(low, high, bottom, TOP, log)
        parts = upright(x, y, x_name, f"{y_name}, log scale" if log else y_name)
        parts += [_curve(s, [(x(a), y(b)) for a, b in s.points]) for s in series]
        if not paper.beside:
            return tall + LINE * len(series), [*parts, *_legend(series, tall)]
        ends = [(x(s.points[-1][0]), y(s.points[-1][1])) for s in series]
        places = spread([b for _, b in ends], _NAMED, TOP + 6, bottom)
        for s, (a, b), place in zip(series, ends, places, strict=True):
            parts.append(leader(a + 6, b, x.last + 10, place))
            parts.append(
                text(x.last + 14, place + 4, clip(s.label, 26), "start", f"name s{s.style % SERIES}")
            )
        return tall, parts

    return both(title, draw)


def _curve(s: Series, points: Sequence[tuple[float, float]]) -> str:
    style = s.style % SERIES
    path = " ".join(f"{'M' if i == 0 else 'L'}{a:.1f} {b:.1f}" for i, (a, b) in enumerate(points))
    every = max(1, len(points) // 8)
    shown = [*points[::every], points[-1]]
    return _line(style, path) + "".join(mark(style, a, b) for a, b in dict.fromkeys(shown))


def _line(style: int, path: str) -> str:
    dash = f' stroke-dasharray="{DASHES[style]}"' if DASHES[style] else ""
    return f'<path class="line s{style}"{dash} d="{path}"/>'


def _legend(series: Sequence[Series], top: float) -> list[str]:
    parts: list[str] = []
    for i, s in enumerate(series):
        style, y = s.style % SERIES, top + LINE * i + 6
        parts += [_line(style, f"M4 {y:.1f} H44"), mark(style, 24, y)]
        parts.append(text(54, y + 4, clip(s.label, 44), "start", f"name s{style}"))
    return parts


_NAMES, _VALUES = 212, 190
"""Left and right margins on wide screens, in pixels. On phones, the name and the value are above the row."""


class Bar(msgspec.Struct, frozen=True):
    label: str
    value: float
    text: str
    style: int
    low: float | None = None
    high: float | None = None
    hollow: bool = False


class Interval(msgspec.Struct, frozen=True):
    label: str
    value: float
    low: float
    high: float
    text: str
    style: int
    hollow: bool = False


Item = TypeVar("Item", Bar, Interval)


def bars(items: Sequence[Bar], *, title: str, x_name: str) -> str:
    """Draw horizontal bars that start at zero, with a whisker from `low` to `high` if both are given. Hollow
    bars are quotes."""
    top = max([b.high if b.high is not None else b.value for b in items], default=0.0) or 1.0

    def row(item: Bar, x: Scale, y: float) -> str:
        filled = "bar hollow" if item.hollow else "bar"
        drawn = (
            f'<rect class="{filled} s{item.style % SERIES}" x="{x.first}" y="{y - 8:.1f}" '
            f'width="{max(1.0, x(item.value) - x.first):.1f}" height="16" rx="2"/>'
        )
        if item.low is not None and item.high is not None and item.high > item.low:
            drawn += whisker(x(item.low), x(item.high), y)
        return drawn

    return _rows(items, row, (0.0, top), title, x_name)


def intervals(items: Sequence[Interval], *, title: str, x_name: str) -> str:
    """Draw one row per item, with a marker and its interval. Hollow markers are base models."""
    low, high = min(0.0, *(i.low for i in items)), max(1.0, *(i.high for i in items))

    def row(item: Interval, x: Scale, y: float) -> str:
        drawn = whisker(x(item.low), x(item.high), y)
        return drawn + mark(item.style % SERIES, x(item.value), y, hollow=item.hollow)

    return _rows(items, row, (low, high), title, x_name)


def _rows(
    items: Sequence[Item],
    row: Callable[[Item, Scale, float], str],
    ends: tuple[float, float],
    title: str,
    x_name: str,
) -> str:
    def draw(paper: Paper) -> tuple[float, list[str]]:
        wide = bool(paper.beside)
        tall = 28 if wide else 44
        bottom = TOP + tall * len(items)
        x = Scale(*ends, _NAMES, paper.width - _VALUES) if wide else Scale(*ends, 12, paper.width - 18)
        parts = along(x, bottom, x_name)
        for i, item in enumerate(items):
            y = TOP + tall * (i + 1) - 14
            parts.append(row(item, x, y))
            if wide:
                parts.append(text(x.first - 8, y + 4, clip(item.label, 32), "end"))
                parts.append(text(x.last + 10, y + 4, item.text, "start"))
            else:
                parts.append(text(x.first + 5, y - 14, clip(item.label, 50 - len(item.text)), "start"))
                parts.append(text(paper.width - 2, y - 14, item.text, "end"))
        return bottom + BOTTOM, [*parts, axis(x.first, TOP, x.first, bottom)]

    return both(title, draw)


class ChartMark(msgspec.Struct, frozen=True):
    """A marker with an interval on the y axis."""

    label: str
    x: float
    value: float
    low: float
    high: float
    style: int
    hollow: bool = False


def places(items: Sequence[ChartMark], *, title: str, x_name: str, y_name: str, height: int = 300) -> str:
    """Draw a scatter plot with a vertical interval for each item. Names are next to the markers, or in a
    legend on phones."""
    x_high = max(i.x for i in items) * 1.08 or 1.0
    low, high = padded([v for i in items for v in (i.low, i.high)], 0.08)

    def draw(paper: Paper) -> tuple[float, list[str]]:
        tall = max(height, TOP + BOTTOM + 15 * len(items)) if paper.beside else height - 40
        x = Scale(0.0, x_high, LEFT, paper.width - max(paper.beside, 14))
        y = Scale(low, high, tall - BOTTOM, TOP)
        parts = upright(x, y, x_name, y_name)
        for item in items:
            at = x(item.x)
            parts.append(
                f'<path class="whisker" d="M{at:.1f} {y(item.high):.1f} V{y(item.low):.1f} '
                f'M{at - 5:.1f} {y(item.high):.1f} h10 M{at - 5:.1f} {y(item.low):.1f} h10"/>'
            )
            parts.append(mark(item.style % SERIES, at, y(item.value), hollow=item.hollow))
        names = [clip(item.label, 26 if paper.beside else 44) for item in items]
        if not paper.beside:
            for i, (item, name) in enumerate(zip(items, names, strict=True)):
                line, style = tall + LINE * i + 6, item.style % SERIES
                parts.append(mark(style, 24, line, hollow=item.hollow))
                parts.append(text(40, line + 4, name, "start", f"name s{style}"))
            return tall + LINE * len(items), parts
        beside = spread([y(i.value) for i in items], 15, TOP + 6, y.first)
        for item, name, place in zip(items, names, beside, strict=True):
            parts.append(leader(x(item.x) + 6, y(item.value), x.last + 10, place))
            parts.append(text(x.last + 14, place + 4, name, "start", f"name s{item.style % SERIES}"))
        return tall, parts

    return both(title, draw)
