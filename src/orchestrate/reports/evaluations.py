"""Render an evaluation as a terminal table, Markdown for a pull request, HTML, JUnit XML and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as xml

from orchestrate.errors import UsageError
from orchestrate.evaluation.pairs import Flips
from orchestrate.reports import documents, html, rows
from orchestrate.reports.quotes import markdown_table, markdown_text
from orchestrate.text import inert, inert_json
from orchestrate.types import Evaluation, Record

if TYPE_CHECKING:
    from rich.console import RenderableType

ENDINGS = {".html": "html", ".htm": "html", ".md": "md", ".json": "json", ".txt": "table", ".xml": "junit"}
_IN_MARKDOWN = 5
"""Number of regressed and fixed items to show in Markdown."""


class EvaluationReport(Record, frozen=True, kw_only=True):
    """An evaluation together with the items that changed."""

    evaluation: Evaluation
    flips: tuple[Flips, ...] = ()

    def table(self, shown: int = 3) -> RenderableType:
        """Return the report for a terminal, with at most `shown` regressed and fixed items."""
        return documents.evaluation_table(self.evaluation, self.flips, shown)

    def render(self, format: str) -> str:
        """Render the report as text without terminal control characters. `format` is table, md, html, junit
        or json. Raises `UsageError` for any other."""
        if format == "json":
            return inert_json(json.dumps(self.evaluation.to_dict(), indent=2, ensure_ascii=False) + "\n")
        if format == "md":
            return inert(markdown(self.evaluation, self.flips))
        if format == "html":
            title = f"Evaluation {self.evaluation.id}"
            body = f"<h1>{escape(title)}</h1>" + html.evaluation(self.evaluation, self.flips)
            return inert(html.document(title, body))
        if format == "junit":
            return inert(junit(self.evaluation))
        if format == "table":
            return inert(documents.plain_text(self.table()))
        raise UsageError(f"the evaluation format must be table, md, html, junit or json, got {format!r}")

    def _repr_html_(self) -> str:
        return documents.framed(self.render("html"))

    def save(self, path: str | Path) -> Path:
        """Write the report in the format of the file extension: .html, .md, .json, .txt or .xml (JUnit).
        Raises `UsageError` for any other."""
        return documents.save(path, ENDINGS, self.render)


def format_of(path: Path) -> str:
    """Return the format for a file extension. Raises `UsageError` if it is unknown."""
    return documents.format_of(path, ENDINGS)


def markdown(one: Evaluation, flips: Sequence[Flips]) -> str:
    """Render an evaluation as Markdown: the verdict, then the scores, regressed items and contenders."""
    parts = [f"# Evaluation {one.id}", markdown_text(rows.evaluation_basis(one))]
    for v in one.verdicts:
        reasons = "\n".join(f"- {markdown_text(reason)}" for reason in v.reasons)
        parts.append(f"**{markdown_text(v.contender)}: {v.decision}**\n\n{reasons}")
    parts.append(markdown_table(list(rows.SCORE_HEAD), [list(row) for row in rows.score_rows(one)]))
    for found in flips:
        for kind, items, total in (
            ("Regressed", found.broken, found.broken_count),
            ("Fixed", found.fixed, found.fixed_count),
        ):
            if items:
                head = ["question", "expected", found.against, found.contender]
                cells = [
                    [_short(text) for text in (f.question, f.expected, f.before, f.after)]
                    for f in items[:_IN_MARKDOWN]
                ]
                parts.append(f"## {kind} with {markdown_text(found.contender)}: {total:,}")
                parts.append(markdown_table(head, cells))
    parts.append("## Models evaluated")
    parts.append(markdown_table(list(rows.CONTENDER_HEAD), [list(r) for r in rows.contender_rows(one)]))
    if sliced := rows.score_rows(one, sliced=True):
        parts.append("## Slices")
        parts.append(markdown_table(list(rows.SCORE_HEAD), [list(row) for row in sliced]))
    if one.all_notes:
        parts.append("\n".join(f"- {markdown_text(note)}" for note in one.all_notes))
    return "\n\n".join(parts) + "\n"


def _short(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= 120 else one_line[:119] + "…"


_JUNIT = {
    "do not ship": "failure",
    "forgot": "failure",
    "not enough evidence": "error",
    "inconclusive": "error",
    "not measurable": "skipped",
}


def junit(one: Evaluation) -> str:
    """Render an evaluation as JUnit XML, with one test case per verdict."""
    cases = [(v.contender, v.decision, "\n".join(v.reasons)) for v in one.verdicts]
    return junit_suite(f"orchestrate eval {one.id}", one.dataset, cases)


def junit_suite(name: str, classname: str, cases: Sequence[tuple[str, str, str]]) -> str:
    """Render a test suite in JUnit XML. Each of the `cases` is a (name, decision, reasons) tuple. Proven
    regressions are failures, and inconclusive results are errors. Omits control characters, which XML doesn't
    allow."""
    suite = xml.Element("testsuite", name=_legal(name), tests=str(len(cases)))
    kinds = [_JUNIT.get(decision, "system-out") for _, decision, _ in cases]
    for (title, decision, reasons), kind in zip(cases, kinds, strict=True):
        case = xml.SubElement(suite, "testcase", classname=_legal(classname), name=_legal(title))
        element = xml.SubElement(case, kind, {} if kind == "system-out" else {"message": decision})
        element.text = _legal(reasons)
    suite.set("failures", str(kinds.count("failure")))
    suite.set("errors", str(kinds.count("error")))
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(suite, encoding="unicode") + "\n"


def _legal(text: str) -> str:
    return "".join(c for c in text if c in "\t\n" or (c >= " " and c not in "\ufffe\uffff"))
