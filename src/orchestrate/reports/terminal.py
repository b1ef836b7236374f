"""A comparison for a terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrate import text
from orchestrate.evaluation.flips import Flip, Flips
from orchestrate.reports import rows, scores
from orchestrate.reports.records import ComparedRuns
from orchestrate.tables import Listing
from orchestrate.text import inert
from orchestrate.types import Evaluation

_DECIDING = frozenset(
    {
        "run",
        "model",
        "status",
        "verdict",
        "forgot",
        "quoted",
        "billed",
        "would bill",
        "cost an answer",
        "serving",
    }
    | {"time, created to end", "train loss", "valid loss", "reward", rows.PROOF}
)
"""Facts by which runs are chosen, beside the scores; the others tell how they came about."""
_FINDINGS = 3


def comparison_table(comparison: ComparedRuns, *, whole: bool = True) -> RenderableType:
    """The answer, then facts by row and runs by column, settings that differ, what may be said of them.
    Unless `whole`, what a choice goes by: what is the same for all is one line, and further findings are
    counted."""
    parts: list[RenderableType] = []
    if comparison.sandbox:
        parts.append(
            Text(" SANDBOX: trained by a local stand-in, not by the hosts named ", style="bold reverse")
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
        parts.append(Text(f"{text.count(left, 'more finding')}, and all numbers: --all", style="dim"))
    parts += [Text(note, style="dim") for note in comparison.notes if whole]
    return Group(*parts)


def _deciding(comparison: ComparedRuns, facts: rows.Facts) -> tuple[rows.Facts, str]:
    """What the runs differ in, and a line of what is the same for all."""
    scored = rows.metrics(comparison)
    kept = [
        (name, values)
        for name, values in facts
        if name in _DECIDING or (name.partition(",")[0] in scored and not name.endswith("rows"))
    ]
    several = len(comparison.runs) > 1
    same = [(name, values[0]) for name, values in kept if several and len(set(values)) == 1]
    told = "the same for all: " + "; ".join(f"{name} {value}" for name, value in same) if same else ""
    return [(name, values) for name, values in kept if (name, values[0]) not in same], told


_COLOURS = {"ship": "bold green", "do not ship": "bold red", "not enough evidence": "bold yellow"}


def evaluation_table(one: Evaluation, flips: Sequence[Flips], shown: int = 3) -> RenderableType:
    """Scores, then slices, who answered, broken and fixed items, and the verdicts last, where they are
    read."""
    parts: list[RenderableType] = [
        Text(scores.what_was_asked(one), style="dim"),
        listed(scores.SCORE_HEAD, scores.score_rows(one)),
    ]
    if sliced := scores.score_rows(one, sliced=True):
        parts += [Text("\nSlices", style="bold"), listed(scores.SCORE_HEAD, sliced)]
    parts += [Text(), listed(scores.CONTENDER_HEAD, scores.contender_rows(one))]
    for found in flips:
        for kind, items, total in (
            ("broken", found.broken, found.broken_count),
            ("fixed", found.fixed, found.fixed_count),
        ):
            if items and shown:
                parts.append(Text(f"\n{total:,} {kind} by {found.contender}", style="bold"))
                parts += [_flip(found, item) for item in items[:shown]]
    for v in one.verdicts:
        parts.append(Text.assemble("\n", (v.decision.upper(), _COLOURS[v.decision]), f"  {v.contender}"))
        parts += [Text(f"  {reason}") for reason in v.reasons]
    parts += [Text(note, style="dim") for note in one.notes]
    return Group(*parts)


def _flip(found: Flips, item: Flip) -> Text:
    sides = (("expected", item.expected), (found.against, item.before), (found.contender, item.after))
    lines = [f"  {_line(item.question)}", *(f"    {name}: {_line(said)}" for name, said in sides)]
    return Text("\n".join(lines))


def _line(said: str) -> str:
    one_line = " ".join(inert(said).split())
    return one_line if len(one_line) <= 200 else one_line[:199] + "…"


def listed(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Listing:
    """Cells of any length under their names."""
    table = Listing(*head)
    for row in rows:
        table.add_row(*(inert(cell) for cell in row))
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
    """Without colour or control codes."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, force_terminal=False).print(content)
    return out.getvalue()
