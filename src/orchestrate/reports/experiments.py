"""Render an experiment as a terminal table, as HTML with a chart of the evidence, and as JSON."""

from __future__ import annotations

import json
import math
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrate.errors import UsageError
from orchestrate.reports import charts, documents, html
from orchestrate.text import NOTHING, inert, inert_json
from orchestrate.types import Evidence, ExperimentReport

if TYPE_CHECKING:
    from rich.console import RenderableType

_ENDINGS = {".html": "html", ".htm": "html", ".json": "json", ".txt": "table"}
HEAD = ("metric", "", "users", "base", "tuned", "difference", "evidence", "shown", "80% would see")
PHASE_HEAD = ("phase", "share", "since", "", "why")
_BROKEN = 0.001


def title(report: ExperimentReport) -> str:
    return f"Experiment {report.plan.name}"


def state_line(report: ExperimentReport) -> str:
    """Describe the current state in one line, such as `running at 10%: 200 users of the base model, 20 of the
    tuned one`."""
    users = (
        f"{report.users.get('base', 0):,} users of the base model, {report.users.get('tuned', 0):,} of the"
    )
    return f"{report.state} at {report.share:.0%}: {users} tuned one"


def verdict(report: ExperimentReport) -> str:
    done = " (done)" if report.applied else ""
    decision = report.decision
    to = f" to {decision.share:.0%}" if decision.verb in ("ramp", "ship", "roll back") else ""
    return f"{decision.verb}{to}{done}: {decision.why}"


def rows(report: ExperimentReport) -> list[list[str]]:
    return [_row(one) for one in report.evidence]


def _row(one: Evidence) -> list[str]:
    between = NOTHING
    if one.difference is not None:
        between = f"{one.difference:+.4g}"
        if one.low is not None and one.high is not None:
            between += f" ({one.low:+.4g} to {one.high:+.4g})"
    shown = one.decision if one.decision != "open" else "nothing yet"
    return [
        one.metric,
        one.role,
        f"{one.users['base']:,} + {one.users['tuned']:,}",
        _number(one.values["base"]),
        _number(one.values["tuned"]),
        between,
        f"e = 10^{one.log10_e:.2f}, p {one.p_value:.2g}",
        shown,
        _number(one.detectable),
    ]


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4g}"


def phase_rows(report: ExperimentReport) -> list[list[str]]:
    return [[str(p.number), f"{p.share:.0%}", f"{p.at:%Y-%m-%d %H:%M}", p.verb, p.why] for p in report.phases]


def notes(report: ExperimentReport) -> list[str]:
    """Return the notes that explain the table."""
    found: list[str] = []
    if report.sample_ratio_p < _BROKEN:
        found.append(f"users are NOT split as planned: p = {report.sample_ratio_p:.1g}")
    for one in report.evidence:
        if one.counted_ratio_p < _BROKEN:
            p = f"{one.counted_ratio_p:.1g}"
            found.append(
                f"{one.metric}: the arms do NOT report outcomes equally often (p = {p}), so this metric is "
                "not used"
            )
        if one.gate is not None:
            found.append(f"{one.metric}: no interval yet: {one.gate}")
    found += [f"{name}: {number:,}" for name, number in report.counts.items()]
    alpha = report.plan.rule.alpha
    found.append(
        "You can check the results anytime: the probability of a false positive is at most "
        f"{alpha:.2g} for the primary metric and at most {alpha:.2g} for all guardrails combined. Each user "
        "counts once per phase. Differences are tuned minus base, among users who were equally likely to get "
        "the tuned model."
    )
    return found


def table(report: ExperimentReport) -> RenderableType:
    """Return the report for a terminal. The decision comes last, where it is most visible."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [
        Text(state_line(report), style="bold"),
        documents.listed(HEAD, rows(report)),
        Text(),
        documents.listed(PHASE_HEAD, phase_rows(report)),
        *(Text(inert(note), style="dim") for note in notes(report)),
        Text.assemble("\n", (inert(verdict(report)), "bold")),
    ]
    return Group(*parts)


def render(report: ExperimentReport, format: str) -> str:
    """Render the report as text without terminal control characters. `format` is table, html or json. Raises
    `UsageError` for any other."""
    if format == "json":
        return inert_json(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n")
    if format == "html":
        return inert(html.document(title(report), _body(report)))
    if format == "table":
        return inert(documents.plain_text(table(report)))
    raise UsageError(f"the experiment format must be table, html or json, got {format!r}")


def save(report: ExperimentReport, path: str | Path) -> Path:
    """Write the report in the format of the file extension: .html, .json or .txt. Raises `UsageError` for any
    other."""
    return documents.save(path, _ENDINGS, partial(render, report))


def _body(report: ExperimentReport) -> str:
    rule = report.plan.rule
    stages = ", ".join(f"{share:g}%" for share in rule.stages)
    planned = (
        f"Set in advance: {stages}. The goal is {report.plan.primary.name} {rule.goal}. Each stage needs at "
        f"least {rule.min_users:,} users per arm and {rule.min_hours:g} hours."
    )
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes(report))
    kind = {"ship": "ship", "roll back": "do-not-ship"}.get(report.decision.verb, "not-enough-evidence")
    parts = [
        f"<h1>{escape(title(report))}</h1>",
        f'<p class="when">{report.at:%Y-%m-%d %H:%M} UTC, {escape(state_line(report))}</p>',
        f'<div class="verdict {kind}" role="note"><strong>{escape(report.decision.verb)}</strong> '
        f"<ul><li>{escape(report.decision.why)}</li></ul></div>",
        html.table(HEAD, rows(report)),
        _curves(report),
        "<h2>Phases</h2>",
        f"<p>{escape(planned)}</p>",
        html.table(PHASE_HEAD, phase_rows(report)),
        f"<h2>Notes</h2><ul>{listed}</ul>",
    ]
    return "\n".join(part for part in parts if part)


def _curves(report: ExperimentReport) -> str:
    """Plot each metric's evidence by counted users, and the bound above which it is significant."""
    series: list[charts.Series] = []
    for style, one in enumerate(e for e in report.evidence if e.curve):
        points = tuple((float(p.users), p.log10_e) for p in one.curve)
        series.append(charts.Series(one.metric, ((0.0, 0.0), *points), style))
    if not series:
        return ""
    end = max(x for s in series for x, _ in s.points)
    bounds = {
        one.role: -math.log10(one.alpha) for one in report.evidence if one.role != "secondary" and one.curve
    }
    for role, bound in bounds.items():
        series.append(charts.Series(f"shown: {role}", ((0.0, bound), (end, bound)), len(series)))
    chart = charts.lines(series, title="Evidence", x_name="users counted", y_name="log10 of the e-value")
    caption = (
        "Evidence that the arms differ, in either direction. Once a line has crossed its bound, the "
        "difference is significant, no matter how often you check."
    )
    return html.figure("Evidence over time", chart, caption)
