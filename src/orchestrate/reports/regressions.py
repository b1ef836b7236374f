"""Render which abilities a model retained and forgot, as a terminal table, Markdown, HTML, JUnit XML and
JSON."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrate.core.tables import TextTable
from orchestrate.errors import UsageError
from orchestrate.evaluation.regression import ProbeResult, Regression
from orchestrate.reports import documents, html
from orchestrate.reports.evaluations import ENDINGS, junit_suite
from orchestrate.reports.quotes import markdown_table, markdown_text
from orchestrate.reports.rows import value
from orchestrate.text import count, inert, inert_json
from orchestrate.types import Record

if TYPE_CHECKING:
    from rich.console import RenderableType

_STYLES = {"kept": "green", "forgot": "bold red", "inconclusive": "yellow", "not measurable": "dim"}
HEAD = ("ability", "", "base", "tuned", "why")


class RegressionReport(Record, frozen=True, kw_only=True):
    regression: Regression

    def table(self) -> RenderableType:
        """Return the report for a terminal. Forgotten abilities come first."""
        from rich.console import Group
        from rich.text import Text

        found = self.regression
        parts: list[RenderableType] = []
        for r in found.forgotten:
            kind = "CATASTROPHIC FORGETTING" if r.catastrophic else "FORGOTTEN"
            parts.append(Text.assemble((kind, "bold red"), f"  {inert(r.probe)}: {inert(r.reason)}"))
        listing = TextTable(*HEAD)
        for r in found.results:
            name, decision, *cells = map(inert, _row(r))
            listing.add_row(name, Text(decision, style=_STYLES[r.decision]), *cells)
        parts.append(listing)
        if found.advice:
            parts.append(Text("What helps:"))
            parts += [Text(f"  - {inert(line)}") for line in found.advice]
        who = f"answered by {found.tuned.answered_by}, and {found.base.answered_by}"
        return Group(*parts, *(Text(inert(line), style="dim") for line in (who, *found.notes)))

    def render(self, format: str) -> str:
        """Render the report as text without terminal control characters. `format` is table, md, html, junit
        or json. Raises `UsageError` for any other."""
        found = self.regression
        if format == "json":
            return inert_json(json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n")
        if format == "md":
            return inert(_markdown(found))
        if format == "html":
            title = f"What {found.tuned.name} retained and forgot"
            return inert(html.document(title, f"<h1>{escape(title)}</h1>{html.regression(found)}"))
        if format == "junit":
            cases = [(r.probe, r.decision, _why(r)) for r in found.results]
            return inert(junit_suite(f"orchestrate regress {found.tuned.name}", found.tuned.name, cases))
        if format == "table":
            return inert(documents.plain_text(self.table()))
        raise UsageError(f"the regression format must be table, md, html, junit or json, got {format!r}")

    def save(self, path: str | Path) -> Path:
        """Write the report in the format of the file extension: .html, .md, .json, .txt or .xml (JUnit).
        Raises `UsageError` for any other."""
        return documents.save(path, ENDINGS, self.render)


def _why(r: ProbeResult) -> str:
    return f"{r.reason} ({count(r.difference.score.n, 'item')})"


def _row(r: ProbeResult) -> tuple[str, ...]:
    return (r.probe, r.decision, value(r.metric, r.base.value), value(r.metric, r.tuned.value), _why(r))


def _markdown(found: Regression) -> str:
    parts = [f"# What {markdown_text(found.tuned.name)} retained and forgot"]
    parts += [f"**FORGOTTEN {markdown_text(r.probe)}**: {markdown_text(r.reason)}" for r in found.forgotten]
    parts.append(markdown_table(list(HEAD), [list(_row(r)) for r in found.results]))
    if found.advice:
        parts.append("What helps:\n\n" + "\n".join(f"- {markdown_text(line)}" for line in found.advice))
    answered = f"Answered by {found.tuned.answered_by}, and {found.base.answered_by}."
    parts.append("\n".join(f"- {markdown_text(line)}" for line in (answered, *found.notes)))
    return "\n\n".join(parts) + "\n"
