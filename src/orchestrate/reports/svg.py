"""Small charts as inline SVG: lines, bars and intervals. Colours come from the page's style sheet, by class
`s0`, `s1` ...; each series has a dash and a mark of its own too, so that nothing is told by colour alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import msgspec

WIDTH = 760
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 205, 14, 44
_DASHES = ("", "7 4", "2 4", "10 3 2 3", "4 2", "1 3")
SERIES = 6
"""Styles; a seventh series repeats the first."""


class Series(msgspec.Struct, frozen=True):
    label: str
    points: tuple[tuple[float, float], ...]
    style: int
    faint: bool = False
    """Drawn thin, behind the others."""


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


def short(value: float) -> str:
    """`1.2M`, `350k`, `0.25`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def lines(series: Sequence[Series], *, title: str, x_name: str, y_name: str, height: int = 320) -> str:
    """Curves over one axis, each with its name at its end."""
    points = [p for s in series for p in s.points]
    x_low, x_high = 0.0, max(x for x, _ in points) or 1.0
    y_low, y_high = min(y for _, y in points), max(y for _, y in points)
    pad = (y_high - y_low or abs(y_high) or 1.0) * 0.06
    y_low, y_high = max(0.0, y_low - pad) if y_low >= 0 else y_low - pad, y_high + pad
    right, bottom = WIDTH - _RIGHT, height - _BOTTOM

    def x(value: float) -> float:
        return _LEFT + (value - x_low) / (x_high - x_low) * (right - _LEFT)

    def y(value: float) -> float:
        return bottom - (value - y_low) / (y_high - y_low) * (bottom - _TOP)

    parts = [_axis_y(tick, y(tick), right) for tick in ticks(y_low, y_high)]
    parts += [_text(x(t), bottom + 18, short(t), "middle") for t in ticks(x_low, x_high)]
    parts.append(f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    parts += [_text((_LEFT + right) / 2, height - 6, x_name, "middle"), _text(_LEFT, 10, y_name, "start")]
    for s in sorted(series, key=lambda s: not s.faint):
        parts.append(_curve(s, [(x(a), y(b)) for a, b in s.points]))
    named = [s for s in series if not s.faint]
    places = _spread([y(s.points[-1][1]) for s in named], 15, _TOP + 6, bottom)
    for s, place in zip(named, places, strict=True):
        end_x, end_y = x(s.points[-1][0]), y(s.points[-1][1])
        parts.append(
            f'<line class="leader" x1="{end_x + 6:.1f}" y1="{end_y:.1f}" x2="{right + 10}" y2="{place:.1f}"/>'
        )
        parts.append(_text(right + 14, place + 4, _clip(s.label, 24), "start", f"name s{s.style % SERIES}"))
    return _figure(title, height, parts)


def _curve(s: Series, points: Sequence[tuple[float, float]]) -> str:
    style = s.style % SERIES
    path = " ".join(f"{'M' if i == 0 else 'L'}{a:.1f} {b:.1f}" for i, (a, b) in enumerate(points))
    dash = f' stroke-dasharray="{_DASHES[style]}"' if _DASHES[style] and not s.faint else ""
    drawn = f'<path class="{"faint" if s.faint else "line"} s{style}"{dash} d="{path}"/>'
    if s.faint:
        return drawn
    every = max(1, len(points) // 8)
    shown = [*points[::every], points[-1]]
    return drawn + "".join(_mark(style, a, b) for a, b in dict.fromkeys(shown))


def _mark(style: int, x: float, y: float, hollow: bool = False) -> str:
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


def bars(items: Sequence[Bar], *, title: str, x_name: str) -> str:
    """Horizontal bars from zero, with a whisker from `low` to `high` where there is one; hollow ones are
    quotes."""
    row, left = 30, 190
    height = _TOP + row * len(items) + _BOTTOM
    top = max([b.high if b.high is not None else b.value for b in items], default=0.0) or 1.0
    right = WIDTH - 110

    def x(value: float) -> float:
        return left + value / top * (right - left)

    parts = [_axis_x(t, x(t), height - _BOTTOM) for t in ticks(0.0, top)]
    for i, bar in enumerate(items):
        y = _TOP + row * i
        style = bar.style % SERIES
        filled = "bar hollow" if bar.hollow else "bar"
        parts.append(_text(left - 8, y + 17, _clip(bar.label, 28), "end"))
        parts.append(
            f'<rect class="{filled} s{style}" x="{left}" y="{y + 4}" '
            f'width="{max(1.0, x(bar.value) - left):.1f}" height="18" rx="2"/>'
        )
        end = x(bar.value)
        if bar.low is not None and bar.high is not None and bar.high > bar.low:
            parts.append(_whisker(x(bar.low), x(bar.high), y + 13))
            end = max(end, x(bar.high))
        parts.append(_text(end + 8, y + 17, bar.text, "start"))
    parts.append(f'<line class="axis" x1="{left}" y1="{_TOP}" x2="{left}" y2="{height - _BOTTOM}"/>')
    parts.append(_text((left + right) / 2, height - 6, x_name, "middle"))
    return _figure(title, height, parts)


def intervals(items: Sequence[Interval], *, title: str, x_name: str) -> str:
    """A mark with its interval on a line for each item; hollow marks are base models."""
    row, left = 28, 190
    height = _TOP + row * len(items) + _BOTTOM
    low = min(0.0, *(i.low for i in items))
    high = max(1.0, *(i.high for i in items))
    right = WIDTH - 190

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts = [_axis_x(t, x(t), height - _BOTTOM) for t in ticks(low, high)]
    for i, item in enumerate(items):
        y = _TOP + row * i + 13
        parts.append(_text(left - 8, y + 4, _clip(item.label, 28), "end"))
        parts.append(_whisker(x(item.low), x(item.high), y))
        parts.append(_mark(item.style % SERIES, x(item.value), y, item.hollow))
        parts.append(_text(right + 12, y + 4, item.text, "start"))
    parts.append(_text((left + right) / 2, height - 6, x_name, "middle"))
    return _figure(title, height, parts)


def _spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
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


def _axis_y(tick: float, y: float, right: float) -> str:
    return f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>' + _text(
        _LEFT - 8, y + 4, short(tick), "end"
    )


def _axis_x(tick: float, x: float, bottom: float) -> str:
    return f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}"/>' + _text(
        x, bottom + 18, short(tick), "middle"
    )


def _whisker(low: float, high: float, y: float) -> str:
    return (
        f'<path class="whisker" d="M{low:.1f} {y:.1f} H{high:.1f} '
        f'M{low:.1f} {y - 5:.1f} v10 M{high:.1f} {y - 5:.1f} v10"/>'
    )


def _text(x: float, y: float, words: str, anchor: str, name: str = "") -> str:
    kind = f' class="{name}"' if name else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _clip(words: str, length: int) -> str:
    return words if len(words) <= length else words[: length - 1] + "…"


def _figure(title: str, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


class Place(msgspec.Struct, frozen=True):
    """A mark with an interval on the upright axis."""

    label: str
    x: float
    value: float
    low: float
    high: float
    style: int
    hollow: bool = False


def places(items: Sequence[Place], *, title: str, x_name: str, y_name: str, height: int = 300) -> str:
    """One thing against another: a mark for each item with its upright interval and its name beside it."""
    right, bottom = WIDTH - _RIGHT, height - _BOTTOM
    x_high = max(i.x for i in items) * 1.08 or 1.0
    y_low, y_high = min(i.low for i in items), max(i.high for i in items)
    pad = (y_high - y_low or 1.0) * 0.08
    y_low, y_high = y_low - pad, y_high + pad

    def x(value: float) -> float:
        return _LEFT + value / x_high * (right - _LEFT)

    def y(value: float) -> float:
        return bottom - (value - y_low) / (y_high - y_low) * (bottom - _TOP)

    parts = [_axis_y(tick, y(tick), right) for tick in ticks(y_low, y_high)]
    parts += [_text(x(t), bottom + 18, short(t), "middle") for t in ticks(0.0, x_high)]
    parts.append(f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    parts += [_text((_LEFT + right) / 2, height - 6, x_name, "middle"), _text(_LEFT, 10, y_name, "start")]
    named = _spread([y(i.value) for i in items], 15, _TOP + 6, bottom)
    for item, place in zip(items, named, strict=True):
        at, style = x(item.x), item.style % SERIES
        parts.append(
            f'<path class="whisker" d="M{at:.1f} {y(item.high):.1f} V{y(item.low):.1f} '
            f'M{at - 5:.1f} {y(item.high):.1f} h10 M{at - 5:.1f} {y(item.low):.1f} h10"/>'
        )
        parts.append(
            f'<line class="leader" x1="{at + 6:.1f}" y1="{y(item.value):.1f}" '
            f'x2="{right + 10}" y2="{place:.1f}"/>'
        )
        parts.append(_mark(style, at, y(item.value), item.hollow))
        parts.append(_text(right + 14, place + 4, _clip(item.label, 24), "start", f"name s{style}"))
    return _figure(title, height, parts)
