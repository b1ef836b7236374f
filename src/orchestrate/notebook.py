"""Show records in notebooks, and convert them for pandas.

No notebook package is imported: IPython calls `_repr_html_`, and pandas is optional.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from html import escape
from typing import TYPE_CHECKING, Any, Protocol

from orchestrate.core import needed
from orchestrate.core.progress import cost_so_far, seconds_left, seconds_taken, share_done, stage, step_of
from orchestrate.text import duration, inert, money, quoted
from orchestrate.types.listing import cells
from orchestrate.types.record import flat

if TYPE_CHECKING:
    import pandas

    from orchestrate.types import Evaluation, Event, MetricPoint, Problem, Quote, Run, Setting, Translation

# Notebook views of each kind of record.


# Minimal HTML. All text is escaped, and no colors are set, to suit light and dark themes. Styles are inline
# because untrusted notebooks drop style sheets.

MOST_ROWS = 60
"""Maximum number of rows in a table. A note below the table gives the number of omitted rows."""
_LONGEST = 400
"""Maximum number of characters in a cell."""
_EDGE = "1px solid rgba(128,128,128,.45)"
_CELL = f"padding:.2em .7em .2em 0;border:0;border-bottom:{_EDGE};vertical-align:top;text-align:"
_TABLE = "border-collapse:collapse;margin:.3em 0;font-size:.92em"
_BOX = f"max-width:64em;overflow-x:auto;padding:.5em .8em;border:{_EDGE};border-radius:4px"


def text(value: str) -> str:
    """Escape untrusted text for HTML."""
    return escape(inert(value), quote=True)


def shown(value: Any, column: str = "") -> str:
    """Format a value for display and escape it for HTML."""
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
    """Render rows as an HTML table of the columns that contain values. Numbers are right-aligned."""
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
    """Render `{name: value}` as an HTML table with one row per name. Leaves out empty values."""
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
    """Render a box with a title, followed by `parts`. `mark` is the text of a badge in front of the title."""
    shield = f'<b style="border:1px solid;padding:0 .4em;margin-right:.5em">{text(mark)}</b>' if mark else ""
    return f'<div style="{_BOX}"><div>{shield}<b>{text(title)}</b></div>{"".join(parts)}</div>'


def bar(share: float, label: str) -> str:
    """Render a progress bar for a share from 0 to 1."""
    percent = round(share * 100)
    return (
        f'<div role="progressbar" aria-label="{text(label)}" aria-valuenow="{percent}" aria-valuemin="0" '
        'aria-valuemax="100" style="height:.6em;max-width:32em;margin:.4em 0;border:1px solid">'
        f'<div style="height:100%;width:{percent}%;background:currentColor;opacity:.65"></div></div>'
    )


def curve(values: Sequence[float], label: str, width: int = 320, height: int = 48) -> str:
    """Render a line chart without axes, or a dot for a single value. Returns an empty string if no value is
    finite."""
    finite = [v for v in values if v == v and abs(v) != float("inf")]
    if not finite:
        return ""
    step = -(-len(finite) // width)
    kept = [sum(part) / len(part) for part in (finite[i : i + step] for i in range(0, len(finite), step))]
    low, span = min(kept), (max(kept) - min(kept)) or 1.0
    across = (width - 4) / max(1, len(kept) - 1)
    places = (
        f"{2 + i * across:.1f},{2 + (height - 4) * (1 - (v - low) / span):.1f}" for i, v in enumerate(kept)
    )
    drawn = list(places)
    drawn += drawn if len(drawn) == 1 else []
    return (
        f'<svg role="img" aria-label="{text(label)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" style="display:block"><polyline fill="none" stroke="currentColor" '
        f'stroke-linecap="round" stroke-width="{1.5 if len(kept) > 1 else 5}" '
        f'points="{" ".join(drawn)}"/></svg>'
    )


SANDBOX = "SANDBOX"
_SHOWN = {
    "Run": "id provider model status step total_steps created_at quote_usd bill_usd tuned_model sandbox",
    "Quote": "provider model expected_usd low_usd high_usd train_seconds why_not",
    "Problem": "severity code row field message providers fix",
    "Event": "at level message step",
    "Setting": "name asked outcome sent rule",
    "Checkpoint": "id step created_at model",
    "Deployment": "id run_id provider model state usd_per_hour created_at ended_at problem",
    "Model": "name params_b context license reasoning vision",
}
"""Maps each record type that has too many fields for a table to the columns to show."""
_SCORES = [
    "contender",
    "metric",
    "slice",
    "score",
    "low",
    "high",
    "items",
    "difference",
    "difference_low",
    "difference_high",
]
_EVENTS = 4


def listing(items: Sequence[Any]) -> str:
    """Render records of the same type as an HTML table."""
    kind = type(getattr(items[0], "record", items[0])).__name__ if items else ""
    rows = [cells(one) for one in items]
    for row in rows:
        row["sandbox"] = row.get("sandbox") or None
    return table(rows, _SHOWN.get(kind, "").split())


def quote(one: Quote) -> str:
    title = f"{one.provider} {one.model}: {quoted(one)}"
    lines = [
        {
            "component": line.component,
            "quantity": line.quantity,
            "unit": line.unit.removeprefix("usd_per_"),
            "usd per unit": line.usd_per_unit,
            "usd": line.usd,
            "price from": " ".join(filter(None, (line.source, line.as_of))),
        }
        for line in one.lines
    ]
    remarks = notes([*filter(None, [one.unlisted]), *one.warnings, *one.assumptions])
    return card(title, table(lines) if lines else "", remarks, mark=SANDBOX if one.sandbox else "")


def quotes_and_problems(quotes: Sequence[Quote], problems: Sequence[Problem]) -> str:
    return card("Quotes", listing(quotes)) + card("Problems", listing(problems))


def translation(one: Translation) -> str:
    title = f"{one.provider} {one.model}: how each setting is translated"
    return card(title, settings(one.settings))


def settings(rows: Sequence[Setting]) -> str:
    return table([row.cells() for row in rows], _SHOWN["Setting"].split())


def problem(one: Problem) -> str:
    place = "".join(f", {word} {value}" for word, value in (("row", one.row), ("field", one.field)) if value)
    parts = {"backends": one.providers, "fix": one.fix, "in": one.source}
    return card(f"{one.severity.value}: {one.message}", facts({"code": one.code + place, **parts}))


def spec(asked: Mapping[str, Any]) -> str:
    return card("JobSpec", facts(dict(flat(asked))))


def run(one: Run) -> str:
    known = {
        "status": stage(one),
        "data": one.dataset_digest[:12],
        "quoted": None if one.quote is None else quoted(one.quote),
        "billed": None if one.bill is None else f"{money(one.bill.usd)} ({one.bill.origin})",
        "step": _steps(one, ()),
        "tuned model": one.tuned_model,
        "created": one.created_at,
        "ended": one.finished_at,
        "error": one.error.message if one.error else None,
    }
    return card(_name(one), facts(known), mark=SANDBOX if one.sandbox else "")


def progress(
    one: Run, metrics: Sequence[MetricPoint], events: Sequence[Event], now: datetime | None = None
) -> str:
    """Render a run in progress: bar, loss or reward curve, last events."""
    now = now or datetime.now(UTC)
    name = "train_reward" if any("train_reward" in p.values for p in metrics) else "train_loss"
    values = [p.values[name] for p in metrics if name in p.values]
    valid = [
        p.values[name.replace("train", "valid")]
        for p in metrics
        if name.replace("train", "valid") in p.values
    ]
    left = seconds_left(one, now, metrics)
    cost = cost_so_far(one, metrics)
    said = [
        stage(one),
        _steps(one, metrics),
        f"{name.removeprefix('train_')} {values[-1]:.4f}" if values else None,
        f"validation {valid[-1]:.4f}" if valid else None,
        f"{duration(seconds_taken(one, now))} taken",
        f"{duration(left)} left" if left is not None else None,
        f"{money(cost)}{'' if one.bill else ' (estimate)'}" if cost is not None else None,
    ]
    lines = [f"{e.at:%H:%M:%S} {e.message}" for e in events if e.type not in ("metrics", "progress")]
    return card(
        _name(one),
        f"<div>{text(' · '.join(filter(None, said)))}</div>",
        bar(share_done(one, metrics), "training progress"),
        curve(values, f"{name.replace('_', ' ')} by step"),
        notes([*lines[-_EVENTS:], *([one.error.message] if one.error else [])]),
        mark=SANDBOX if one.sandbox else "",
    )


def evaluation(one: Evaluation) -> str:
    verdicts = [f"{v.contender}: {v.decision}. {' '.join(v.reasons)}" for v in one.verdicts]
    return card(
        f"Evaluation {one.id}: {one.items:,} items of {one.dataset}",
        notes(verdicts),
        table(scores(one), _SCORES),
        notes(one.all_notes),
    )


def scores(one: Evaluation) -> list[dict[str, Any]]:
    """Return one row per contender, metric and slice. Each row includes the difference from the model that
    the contender is compared with."""
    found: list[dict[str, Any]] = []
    for m in one.measures:
        apart = one.difference(m.contender, m.metric, m.slice)
        found.append(
            {
                "contender": m.contender,
                "metric": m.metric,
                "slice": m.slice or None,
                "score": m.score.value,
                "low": m.score.low,
                "high": m.score.high,
                "items": m.score.n,
                "against": apart.against if apart else None,
                "difference": apart.score.value if apart else None,
                "difference_low": apart.score.low if apart else None,
                "difference_high": apart.score.high if apart else None,
                "p_value": apart.p_value if apart else None,
                "p_corrected": apart.p_corrected if apart else None,
            }
        )
    return found


def _name(one: Run) -> str:
    return f"{one.id} {one.provider} {one.model}"


def _steps(one: Run, metrics: Sequence[MetricPoint]) -> str | None:
    step = step_of(one, metrics)
    if one.total_steps:
        return f"step {step:,} of {one.total_steps:,}"
    return f"step {step:,}" if step else None


# Tables for pandas, which is optional.


def frame(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """Convert rows to a pandas data frame. Columns are in the order in which their names first appear. A row
    without some column gets a missing value there. Raises `MissingExtra` if pandas is not installed."""
    with needed("pandas", "a pandas data frame", "pandas"):
        import pandas
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return pandas.DataFrame([{k: _plain(v) for k, v in row.items()} for row in rows], columns=columns)


def _plain(value: Any) -> Any:
    """Convert a value to a type that pandas can calculate with. It would store a `Decimal` as an object."""
    if isinstance(value, Decimal):
        return float(value)
    return value.value if isinstance(value, Enum) else value


# Output of the running cell, which is redrawn in place while something is in progress.


class NotebookView(Protocol):
    """Output for a notebook: HTML, with one line of text as the fallback."""

    def _repr_html_(self) -> str: ...


class NotebookOutput:
    """Output area of a notebook cell, in which each output replaces the previous one. Ignored outside
    notebooks."""

    def __init__(self) -> None:
        self._display = _display()
        self._handle: Any = None
        self._last = ""

    def show(self, what: NotebookView) -> None:
        if self._display is None:
            return
        html = what._repr_html_()  # pyright: ignore[reportPrivateUsage]
        if html == self._last:
            return
        self._last = html
        bundle = {"text/html": html, "text/plain": str(what)}
        if self._handle is None:
            self._handle = self._display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def _display() -> Any:
    """Return IPython's display function, or `None` outside a notebook's kernel."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from importlib import import_module

    return import_module("IPython.display").display
