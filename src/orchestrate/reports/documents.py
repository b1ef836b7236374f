"""Render a comparison as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrate import text
from orchestrate.core.files import inside
from orchestrate.core.tables import TextTable
from orchestrate.errors import UsageError
from orchestrate.evaluation.pairs import Flip, Flips
from orchestrate.reports import rows
from orchestrate.reports.quotes import markdown_table, markdown_text
from orchestrate.reports.records import Compared, ComparedRuns, billed, quoted
from orchestrate.reports.rows import CONTENDER_HEAD, SCORE_HEAD, contender_rows, evaluation_basis, score_rows
from orchestrate.text import NOTHING, inert
from orchestrate.types import Evaluation

_FINDINGS = 3


def comparison_table(comparison: ComparedRuns, *, whole: bool = True) -> RenderableType:
    """Return the recommendation, a table with one column per run, the settings that differ, and the findings.
    Unless `whole` is set, values that are equal for all runs share one line, and only the first findings are
    shown."""
    parts: list[RenderableType] = []
    if comparison.sandbox:
        parts.append(
            Text(
                " SANDBOX: trained in a local sandbox with a tiny model, not on the named hosts ",
                style="bold reverse",
            )
        )
    parts += [Text(comparison.answer.sentence, style="bold"), Text()]
    facts, alike = rows.facts(comparison), ""
    if not whole:
        facts, alike = _deciding(comparison, facts)
    parts.append(_grid(comparison, facts))
    if alike:
        parts.append(Text(alike, style="dim"))
    differing = [(name, values) for name, values, differ in rows.settings(comparison) if differ]
    if differing:
        parts += [Text("\nSettings that differ", style="bold"), _grid(comparison, differing)]
    if comparison.reasons:
        parts.append(Text(f"\n{rows.NOT_COMPARABLE}:", style="bold red"))
        parts += [Text(f"  {reason.aspect}: {reason.text}") for reason in comparison.reasons]
    findings = comparison.findings if whole else comparison.findings[:_FINDINGS]
    if findings:
        parts += [Text(), *(Text(finding) for finding in findings)]
    if left := len(comparison.findings) - len(findings):
        parts.append(Text(f"to show {text.count(left, 'more finding')} and all numbers: --all", style="dim"))
    parts += [Text(note, style="dim") for note in comparison.notes if whole]
    return Group(*parts)


def _deciding(comparison: ComparedRuns, facts: rows.Facts) -> tuple[rows.Facts, str]:
    """Return the deciding facts that differ between runs, and a line with those that are the same for all."""
    names = rows.deciding(comparison)
    kept = [(name, values) for name, values in facts if name in names]
    several = len(comparison.runs) > 1
    same = [(name, values[0]) for name, values in kept if several and len(set(values)) == 1]
    equal = "the same for all: " + "; ".join(f"{name} {value}" for name, value in same) if same else ""
    return [(name, values) for name, values in kept if (name, values[0]) not in same], equal


_COLOURS = {"ship": "bold green", "do not ship": "bold red", "not enough evidence": "bold yellow"}


def evaluation_table(one: Evaluation, flips: Sequence[Flips], shown: int = 3) -> RenderableType:
    """Return the verdicts, then the scores, slices, contenders, and regressed and fixed items."""
    parts: list[RenderableType] = []
    for v in one.verdicts:
        parts.append(Text.assemble((v.decision.upper(), _COLOURS[v.decision]), f"  {inert(v.contender)}"))
        parts += [Text(f"  {inert(reason)}") for reason in v.reasons]
        parts.append(Text())
    parts += [Text(evaluation_basis(one), style="dim"), listed(SCORE_HEAD, score_rows(one))]
    if sliced := score_rows(one, sliced=True):
        parts += [Text("\nSlices", style="bold"), listed(SCORE_HEAD, sliced)]
    parts += [Text(), listed(CONTENDER_HEAD, contender_rows(one))]
    for found in flips:
        for kind, items, total in (
            ("regressed", found.broken, found.broken_count),
            ("fixed", found.fixed, found.fixed_count),
        ):
            if items and shown:
                parts.append(
                    Text(f"\n{text.count(total, 'row')} {kind} with {found.contender}", style="bold")
                )
                parts += [_flip(found, item) for item in items[:shown]]
    parts += [Text(note, style="dim") for note in one.all_notes]
    return Group(*parts)


def _flip(found: Flips, item: Flip) -> RenderableType:
    sides = (("expected", item.expected), (found.against, item.before), (found.contender, item.after))
    lines = Text("\n".join(f"{name}: {_line(value)}" for name, value in sides))
    return Group(Padding(Text(_line(item.question)), (0, 0, 0, 2)), Padding(lines, (0, 0, 0, 4)))


def _line(value: str) -> str:
    one_line = " ".join(inert(value).split())
    return one_line if len(one_line) <= 200 else one_line[:199] + "…"


_FOLDED = frozenset({"contender", "against", "answered by"})
"""Columns that may wrap. Columns with numbers or intervals never wrap."""
_KEPT = ("contender", "score (95%)", "n")


def listed(head: Sequence[str], rows: Sequence[Sequence[str]]) -> TextTable:
    """Build a text table from rows, with cells of any length. Columns without values are left out."""
    shown = [at for at in range(len(head)) if not rows or any(row[at] != NOTHING for row in rows)]
    table = TextTable(*(head[at] for at in shown), fold=_FOLDED, keep=_KEPT)
    for row in rows:
        table.add_row(*(inert(row[at]) for at in shown))
    return table


def _grid(comparison: ComparedRuns, cells: list[tuple[str, list[str]]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for compared in comparison.runs:
        table.add_column(Text(compared.label), overflow="fold")
    for name, values in cells:
        table.add_row(Text(name, style="dim"), *(Text(value) for value in values))
    return table


def plain_text(content: RenderableType, width: int = 140) -> str:
    """Render a terminal report as text without colors and control codes."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, force_terminal=False).print(content)
    return out.getvalue()


def framed(page: str) -> str:
    """Wrap a page in an iframe for notebooks, so its style doesn't affect the notebook."""
    style = "width: 100%; height: 44rem; border: 0"
    return f'<iframe style="{style}" srcdoc="{escape(page, quote=True)}"></iframe>'


def format_of(path: Path, endings: Mapping[str, str]) -> str:
    """Return the format for a file extension. Raises `UsageError` if it is unknown."""
    format = endings.get(path.suffix.lower())
    if format is None:
        raise UsageError(
            f"the file extension sets the format: {path.name} must end in one of {', '.join(endings)}"
        )
    return format


def save(path: str | Path, endings: Mapping[str, str], render: Callable[[str], str]) -> Path:
    """Write the output of `render` to a file, in the format of its extension. Raises `UsageError` for an
    unknown extension."""
    target = Path(path)
    inside(target).write_text(render(format_of(target, endings)), encoding="utf-8", newline="")
    return target


def markdown(comparison: ComparedRuns) -> str:
    """Render a comparison as Markdown. The sandbox banner and the reasons why runs are not comparable come
    first, before any numbers."""
    parts = ["# Comparison of runs"]
    if comparison.sandbox:
        parts.append("> **SANDBOX**: trained in a local sandbox with a tiny model, not on the named hosts.")
    parts.append(f"**{markdown_text(comparison.answer.sentence)}**")
    if comparison.reasons:
        parts.append(f"**{rows.NOT_COMPARABLE}:**\n")
        parts[-1] += "\n".join(
            f"- {reason.aspect}: {markdown_text(reason.text)}" for reason in comparison.reasons
        )
    if comparison.findings:
        parts.append("\n".join(f"- {markdown_text(finding)}" for finding in comparison.findings))
    labels = [c.label for c in comparison.runs]
    parts.append(markdown_table(["", *labels], [[name, *values] for name, values in rows.facts(comparison)]))
    if settings := rows.settings(comparison):
        parts.append("## Settings")
        marked = [[f"**{name}**" if differ else name, *values] for name, values, differ in settings]
        parts.append(markdown_table(["", *labels], marked))
        if any(differ for _, _, differ in settings):
            parts.append("Settings in bold differ.")
    if comparison.notes:
        parts.append("\n".join(f"- {markdown_text(note)}" for note in comparison.notes))
    return "\n\n".join(parts) + "\n"


def csv_text(comparison: ComparedRuns) -> str:
    """Render a comparison as CSV with one row per run. Numbers are unformatted, money is in US dollars, and
    times are in seconds. Setting columns start with `setting.`, and score columns with the metric's name."""
    records = [_flat(c, comparison) for c in comparison.runs]
    names = list(dict.fromkeys(name for record in records for name in record))
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: safe_cell(value) for name, value in record.items()} for record in records)
    return out.getvalue()


def _flat(c: Compared, comparison: ComparedRuns) -> dict[str, Any]:
    record: dict[str, Any] = {
        "run": c.run.id,
        "label": c.label,
        "provider": c.run.provider,
        "sandbox": str(c.run.sandbox).lower(),
        "model": c.run.model,
        "status": c.run.status.value,
        "dataset_digest": c.run.dataset_digest,
        "comparable": str(comparison.comparable).lower(),
        "quoted_usd": quoted(c),
        "billed_usd": billed(c),
        "bill_origin": c.run.bill.origin if c.run.bill else None,
        "quote_error": c.reconciliation.total.relative if c.reconciliation else None,
        "seconds": c.seconds,
        "trained_tokens": c.trained_tokens,
        "billed_tokens": c.billed_tokens,
        "tokens_per_second": c.tokens_per_second,
        "train_loss": c.train_loss,
        "valid_loss": c.valid_loss,
        "reward": c.reward,
    }
    for e in c.scores:
        apart = e.difference.score if e.difference else None
        for side, score in (("base", e.rival_score), ("tuned", e.score), ("difference", apart)):
            if score is not None:
                name = f"{e.metric.name}.{side}"
                record |= {name: score.value, f"{name}.low": score.low, f"{name}.high": score.high}
        record |= {f"{e.metric.name}.n": e.score.n, f"{e.metric.name}.rows": e.rows[0]}
        if e.difference is not None:
            d = e.difference
            record |= {f"{e.metric.name}.gained": d.gained, f"{e.metric.name}.lost": d.lost}
            record |= {f"{e.metric.name}.p": d.p_corrected if d.p_corrected is not None else d.p_value}
        record["usd_per_answer"] = e.contender.usd_per_answer
        record["answered_by"] = e.contender.served_by
        record["answered_in"] = e.contender.precision
        record["answers_proved"] = e.contender.proof
    record |= {f"setting.{name}": value for name, value in sorted(c.settings.items())}
    return record


def safe_cell(value: Any) -> Any:
    """Prefix text with an apostrophe if a spreadsheet would interpret it as a formula."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def json_text(comparison: ComparedRuns) -> str:
    value = comparison.to_dict() | {"comparable": comparison.comparable, "sandbox": comparison.sandbox}
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
