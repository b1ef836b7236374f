"""A comparison for a terminal."""

from __future__ import annotations

import io

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrate.reports import rows
from orchestrate.reports.records import ComparedRuns


def comparison_table(comparison: ComparedRuns) -> RenderableType:
    """Facts by row and runs by column, then settings that differ, then what may be said of them."""
    parts: list[RenderableType] = []
    if comparison.sandbox:
        parts.append(
            Text(" SANDBOX: trained by a local stand-in, not by the hosts named ", style="bold reverse")
        )
    parts.append(_grid(comparison, rows.facts(comparison)))
    differing = [(name, values) for name, values, differ in rows.settings(comparison) if differ]
    if differing:
        parts += [Text("\nSettings that differ", style="bold"), _grid(comparison, differing)]
    if comparison.reasons:
        parts.append(Text(f"\n{rows.NOT_COMPARABLE}:", style="bold red"))
        parts += [Text(f"  {reason.aspect}: {reason.text}") for reason in comparison.reasons]
    if comparison.findings:
        parts += [Text(), *(Text(finding) for finding in comparison.findings)]
    parts += [Text(note, style="dim") for note in comparison.notes]
    return Group(*parts)


def _grid(comparison: ComparedRuns, cells: list[tuple[str, list[str]]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for compared in comparison.runs:
        table.add_column(Text(compared.label), overflow="fold")
    for name, values in cells:
        table.add_row(Text(name, style="dim"), *(Text(value) for value in values))
    return table


def plain_text(content: RenderableType, width: int = 140) -> str:
    """Without colour or control codes."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, force_terminal=False).print(content)
    return out.getvalue()
