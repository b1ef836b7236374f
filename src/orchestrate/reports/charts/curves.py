"""Curves over one axis."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from orchestrate.reports.charts.drawing import (
    BOTTOM,
    DASHES,
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

_NAMED = 15
"""Pixels between two names."""


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
    """Each with its name at its end, or in a legend on a phone. `log` asks for a logarithmic upright axis,
    which values of 0 and below do not have: then it is a plain one."""
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
