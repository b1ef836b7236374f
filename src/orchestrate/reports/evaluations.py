"""An evaluation as a table for a terminal, as Markdown for a pull request, as HTML, JUnit XML and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as xml

from orchestrate.errors import UsageError
from orchestrate.evaluation.pairing import Flips
from orchestrate.reports import documents, html, rows
from orchestrate.reports.quotes import markdown_table, markdown_text
from orchestrate.text import inert, inert_json
from orchestrate.types import Evaluation, Record

if TYPE_CHECKING:
    from rich.console import RenderableType

_ENDINGS = {".html": "html", ".htm": "html", ".md": "md", ".json": "json", ".txt": "table", ".xml": "junit"}
_IN_MARKDOWN = 5
"""Broken and fixed items, of each."""


class EvaluationReport(Record, frozen=True, kw_only=True):
    """An evaluation with the items that changed."""

    evaluation: Evaluation
    flips: tuple[Flips, ...] = ()

    def table(self, shown: int = 3) -> RenderableType:
        """For a terminal, with so many broken and fixed items."""
        return documents.evaluation_table(self.evaluation, self.flips, shown)

    def render(self, format: str) -> str:
        """As text in which nothing acts on a terminal: table, md, html, junit or json. Raises
        `UsageError`."""
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
        raise UsageError(f"an evaluation is written as table, md, html, junit, json; got {format!r}")

    def _repr_html_(self) -> str:
        return documents.framed(self.render("html"))

    def save(self, path: str | Path) -> Path:
        """Writes it; the file's ending decides: .html, .md, .json, .txt, .xml (JUnit). Raises
        `UsageError`."""
        return documents.save(path, _ENDINGS, self.render)


def format_of(path: Path) -> str:
    """By the file's ending. Raises `UsageError`."""
    return documents.format_of(path, _ENDINGS)


def markdown(one: Evaluation, flips: Sequence[Flips]) -> str:
    """Verdict first, then scores, broken items, who answered."""
    parts = [f"# Evaluation {one.id}", markdown_text(rows.what_was_asked(one))]
    for v in one.verdicts:
        reasons = "\n".join(f"- {markdown_text(reason)}" for reason in v.reasons)
        parts.append(f"**{markdown_text(v.contender)}: {v.decision}**\n\n{reasons}")
    parts.append(markdown_table(list(rows.SCORE_HEAD), [list(row) for row in rows.score_rows(one)]))
    for found in flips:
        for kind, items, total in (
            ("Broken", found.broken, found.broken_count),
            ("Fixed", found.fixed, found.fixed_count),
        ):
            if items:
                head = ["question", "expected", found.against, found.contender]
                cells = [
                    [_short(text) for text in (f.question, f.expected, f.before, f.after)]
                    for f in items[:_IN_MARKDOWN]
                ]
                parts.append(f"## {kind} by {markdown_text(found.contender)}: {total:,}")
                parts.append(markdown_table(head, cells))
    parts.append("## Who answered")
    parts.append(markdown_table(list(rows.CONTENDER_HEAD), [list(r) for r in rows.contender_rows(one)]))
    if sliced := rows.score_rows(one, sliced=True):
        parts.append("## Slices")
        parts.append(markdown_table(list(rows.SCORE_HEAD), [list(row) for row in sliced]))
    if one.notes:
        parts.append("\n".join(f"- {markdown_text(note)}" for note in one.notes))
    return "\n\n".join(parts) + "\n"


def _short(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= 120 else one_line[:119] + "…"


def junit(one: Evaluation) -> str:
    """A test case for each verdict: `do not ship` is a failure, `not enough evidence` an error, as CI systems
    show them. XML has no place for control characters: they are left out."""
    suite = xml.Element("testsuite", name=f"orchestrate eval {one.id}", tests=str(len(one.verdicts)))
    failures = errors = 0
    for v in one.verdicts:
        case = xml.SubElement(suite, "testcase", classname=_legal(one.dataset), name=_legal(v.contender))
        reasons = _legal("\n".join(v.reasons))
        if v.decision == "do not ship":
            failures += 1
            xml.SubElement(case, "failure", message=v.decision).text = reasons
        elif v.decision == "not enough evidence":
            errors += 1
            xml.SubElement(case, "error", message=v.decision).text = reasons
        else:
            xml.SubElement(case, "system-out").text = reasons
    suite.set("failures", str(failures))
    suite.set("errors", str(errors))
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(suite, encoding="unicode") + "\n"


def _legal(text: str) -> str:
    return "".join(c for c in text if c in "\t\n" or (c >= " " and c not in "\ufffe\uffff"))
