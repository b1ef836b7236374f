"""Charts of one row for each item: bars, and values with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from orchestrate.reports.charts.drawing import (
    BOTTOM,
    SERIES,
    TOP,
    Paper,
    Scale,
    along,
    axis,
    both,
    clip,
    mark,
    text,
    whisker,
)

_NAMES, _VALUES = 212, 190
"""Room at the left and right of a page; on a phone both stand above the row."""


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
    """Horizontal bars from zero, with a whisker from `low` to `high` where there is one; hollow ones are
    quotes."""
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
    """A mark with its interval on a line for each item; hollow marks are base models."""
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
