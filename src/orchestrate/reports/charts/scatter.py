"""One thing against another."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from orchestrate.reports.charts.drawing import (
    BOTTOM,
    LEFT,
    LINE,
    SERIES,
    TOP,
    Paper,
    Scale,
    both,
    clip,
    leader,
    mark,
    padded,
    spread,
    text,
    upright,
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
    """A mark for each item with its upright interval, and its name beside it or, on a phone, in a legend."""
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
