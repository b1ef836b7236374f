"""HTML of few words: every text escaped, and no colour of its own, to be read in light and in dark.

Styles stand in the tags, as notebooks that are not trusted lose their style sheets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from html import escape
from typing import Any

from orchestrate.text import inert, money

MOST_ROWS = 60
"""Of a table; how many more there are is told below it."""
_LONGEST = 400
"""Characters of a cell."""
_EDGE = "1px solid rgba(128,128,128,.45)"
_CELL = f"padding:.2em .7em .2em 0;border:0;border-bottom:{_EDGE};vertical-align:top;text-align:"
_TABLE = "border-collapse:collapse;margin:.3em 0;font-size:.92em"
_BOX = f"max-width:64em;overflow-x:auto;padding:.5em .8em;border:{_EDGE};border-radius:4px"


def text(value: str) -> str:
    """A text of others."""
    return escape(inert(value), quote=True)


def shown(value: Any, column: str = "") -> str:
    """A value as people read it, escaped."""
    if value is None or value == () or value == {}:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Decimal):
        return money(value) if "usd" in column else f"{value.normalize():f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    words = value if isinstance(value, str) else _words(value)
    return text(words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…")


def _words(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple | list) and all(isinstance(one, str) for one in value):  # pyright: ignore[reportUnknownVariableType]
        return ", ".join(value)  # pyright: ignore[reportUnknownArgumentType]
    return json.dumps(value, ensure_ascii=False, default=str)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """The columns that have a value anywhere; numbers stand at the right."""
    if not rows:
        return _note("none")
    wanted = columns or list(dict.fromkeys(name for row in rows for name in row))
    used = [name for name in wanted if any(shown(row.get(name), name) for row in rows)]
    sides = {name: "right" if _numbers(rows, name) else "left" for name in used}
    head = "".join(
        f'<th scope="col" style="{_CELL}{side}">{text(name.removesuffix("_usd").replace("_", " "))}</th>'
        for name, side in sides.items()
    )
    body = "".join(
        "<tr>"
        + "".join(f'<td style="{_CELL}{sides[name]}">{shown(row.get(name), name)}</td>' for name in used)
        + "</tr>"
        for row in rows[:MOST_ROWS]
    )
    more = _note(f"and {len(rows) - MOST_ROWS:,} more") if len(rows) > MOST_ROWS else ""
    return (
        f'<div style="overflow-x:auto"><table style="{_TABLE}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}"
    )


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    found = [row[name] for row in rows if row.get(name) is not None]
    return all(isinstance(value, int | float | Decimal) and not isinstance(value, bool) for value in found)


def facts(values: Mapping[str, Any]) -> str:
    """What is known of one thing, a line for each that has a value."""
    lines = "".join(
        f'<tr><th scope="row" style="{_CELL}left;font-weight:normal;opacity:.8">{text(name)}</th>'
        f'<td style="{_CELL}left">{found}</td></tr>'
        for name, value in values.items()
        if (found := shown(value, name))
    )
    return f'<table style="{_TABLE}"><tbody>{lines}</tbody></table>'


def notes(sentences: Sequence[str]) -> str:
    return "".join(_note(sentence) for sentence in sentences)


def _note(sentence: str) -> str:
    return f'<div style="font-size:.88em;opacity:.8;margin:.15em 0">{text(sentence)}</div>'


def card(title: str, *parts: str, mark: str = "") -> str:
    """A box with a title; `mark` stands before it in capitals."""
    shield = f'<b style="border:1px solid;padding:0 .4em;margin-right:.5em">{text(mark)}</b>' if mark else ""
    return f'<div style="{_BOX}"><div>{shield}<b>{text(title)}</b></div>{"".join(parts)}</div>'


def bar(share: float, label: str) -> str:
    """How much of something is done, 0 to 1."""
    percent = round(share * 100)
    return (
        f'<div role="progressbar" aria-label="{text(label)}" aria-valuenow="{percent}" aria-valuemin="0" '
        'aria-valuemax="100" style="height:.6em;max-width:32em;margin:.4em 0;border:1px solid">'
        f'<div style="height:100%;width:{percent}%;background:currentColor;opacity:.65"></div></div>'
    )


def curve(values: Sequence[float], label: str, width: int = 320, height: int = 48) -> str:
    """A line without axes; nothing where there are fewer than two values that can be drawn."""
    finite = [v for v in values if v == v and abs(v) != float("inf")]
    if len(finite) < 2:
        return ""
    step = -(-len(finite) // width)
    kept = [sum(part) / len(part) for part in (finite[i : i + step] for i in range(0, len(finite), step))]
    low, span = min(kept), (max(kept) - min(kept)) or 1.0
    across = (width - 4) / max(1, len(kept) - 1)
    places = (
        f"{2 + i * across:.1f},{2 + (height - 4) * (1 - (v - low) / span):.1f}" for i, v in enumerate(kept)
    )
    return (
        f'<svg role="img" aria-label="{text(label)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" style="display:block"><polyline fill="none" stroke="currentColor" '
        f'stroke-width="1.5" points="{" ".join(places)}"/></svg>'
    )
