"""Terminal output of the data commands."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING

from rich.text import Text

from orchestrate.commands.terminal.console import note, out, table
from orchestrate.settings import hide, masked_url
from orchestrate.text import count
from orchestrate.types import Severity, TokensFrom

if TYPE_CHECKING:
    from orchestrate.data.operations.check import CheckReport
    from orchestrate.data.operations.dedupe import DedupeReport
    from orchestrate.data.operations.fix import FixReport
    from orchestrate.data.operations.inspect import InspectReport
    from orchestrate.data.operations.preview import PreviewReport
    from orchestrate.data.operations.split import SplitReport

SHOWN_PER_CODE = 3
SHOWN = 60
_BAR = 40
_STYLE = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "dim"}
_ORDER = [Severity.ERROR, Severity.WARNING, Severity.INFO]


def show_inspect(report: InspectReport) -> None:
    facts = table("", "")
    exact = "" if report.tokens_exact else " (not exact)"
    share = report.trained_tokens / report.tokens if report.tokens else 0.0
    lengths = report.length_percentiles
    rows = f"{report.rows:,} valid, {report.rows_with_errors:,} with errors, {report.duplicates:,} repeated"
    percentiles = f"median {lengths['50']:,}, 90% {lengths['90']:,}, 99% {lengths['99']:,}"
    for name, value in (
        ("file", f"{masked_url(report.path)}  {report.container}, {report.bytes:,} bytes"),
        ("format", f"{report.format} ({report.kind})"),
        ("mixed with", _counted({k: n for k, n in report.formats.items() if k != report.format})),
        ("rows", rows),
        (
            "tokens",
            f"{report.tokens:,} counted with {report.tokenizer}{exact}, of which {share:.0%} are trained on",
        ),
        ("length", f"{percentiles}, longest {lengths['100']:,}"),
        ("epochs", ", ".join(f"{n}: {tokens:,} tokens" for n, tokens in report.epoch_tokens.items())),
        ("roles", _counted(report.roles)),
        ("user turns", _counted(report.turns)),
        ("tools", _counted(report.tools)),
        ("labels", ", ".join(f"{k} {n:,} ({n / report.rows:.0%})" for k, n in report.labels.items() if n)),
        ("languages", _counted(report.languages) and f"{_counted(report.languages)}{_of(report)}"),
        ("longest rows", ", ".join(f"{r.row} ({r.tokens:,})" for r in report.longest)),
        ("problems", _counted(report.problems)),
        (
            "digests",
            f"{report.digest[:16]} (rows only); {report.data_digest[:16]} (all data of the run)",
        ),
    ):
        if value:
            facts.add_row(Text(name, style="dim"), Text(value))
    out.print(facts)
    if report.histogram:
        out.print()
        tallest = max(b.count for b in report.histogram)
        for b in report.histogram:
            bar = "█" * max(round(b.count / tallest * _BAR), 1 if b.count else 0)
            out.print(f"{b.low:>8,} - {b.high:<8,} {bar} {b.count:,}")
    note(report.guidance)


def _of(report: InspectReport) -> str:
    """Note how many rows were examined for languages, if not all."""
    examined = sum(report.languages.values())
    return f" (of the first {examined:,} of {report.rows:,} rows)" if examined < report.rows else ""


def _counted(counts: dict[str, int], most: int = 8) -> str:
    shown = sorted(counts.items(), key=lambda item: -item[1])
    more = f", {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(f"{name} {count:,}" for name, count in shown[:most]) + more


def show_check(report: CheckReport, fixed: FixReport | None) -> None:
    for file in report.files:
        counted = ", tokens not counted"
        if file.tokens is not None:
            counted = f", {file.tokens:,} tokens counted with {file.tokenizer}"
        if file.tokens_from is TokensFrom.SAMPLED:
            counted += f" in a sample: {file.tokens_low:,} to {file.tokens_high:,}"
        good = f"{file.rows:,} of {count(file.lines, 'row')} good"
        note(f"{file.split}: {file.path}  {file.format}, {good}{counted}")
    _problems(report)
    shown = table(
        "backend", "rows accepted", "errors", "warnings", "", right=("rows accepted", "errors", "warnings")
    )
    for host in report.hosts:
        accepted = host.accepted == host.rows and not host.errors
        verdict = (
            ("ready", "green") if accepted else ("refused", "red") if host.errors else ("in part", "yellow")
        )
        shown.add_row(
            host.host,
            f"{host.accepted:,}/{host.rows:,}",
            f"{host.errors}",
            f"{host.warnings}",
            Text(*verdict),
        )
    out.print(shown)
    if fixed is not None:
        out.print(
            f"{fixed.output}: {count(fixed.written, 'row')}; repaired: "
            f"{_counted(fixed.repaired) or 'nothing'}; dropped: {_counted(fixed.left_out) or 'nothing'}",
        )
        if fixed.not_repaired:
            note(f"not repaired: {_counted(fixed.not_repaired)}")
        if fixed.dropped:
            note(f"unknown fields were dropped: {_counted(fixed.dropped)}")
        note(f"changes are in {fixed.log}. To train on these rows, set train to {fixed.output} in the spec")
        note(f"next: orchestrate data check {shlex.quote(str(fixed.output))}")


def note_rewritten(report: SplitReport | DedupeReport) -> None:
    """Print how the written rows differ from those in the file."""
    if report.source_format != report.format:
        note(f"read as {report.source_format}, written as {report.format}")
    if report.fields_left_out:
        note(f"unknown fields dropped ({count(report.fields_left_out, 'time')})")


def _problems(report: CheckReport) -> None:
    """Show the first problems of each code, errors first. `--json` has more."""
    if not report.problems:
        return
    splits = {file.path: file.split for file in report.files} if len(report.files) > 1 else {}
    seen: Counter[tuple[str, tuple[str, ...], str | None]] = Counter()
    shown = table("", "code", "where", "what", "fix", fold=("what", "fix"))
    hidden = lines = 0
    for p in sorted(report.problems, key=lambda p: (_ORDER.index(p.severity), p.code, p.row or 0)):
        key = (p.code, p.providers, p.source)
        seen[key] += 1
        if seen[key] > SHOWN_PER_CODE or lines >= SHOWN:
            hidden += 1
            continue
        lines += 1
        row = f"row {p.row}" if p.row else ""
        where = " ".join(filter(None, (splits.get(p.source or ""), row, p.field)))
        hosts = f"[{','.join(p.providers)}] " if p.providers else ""
        shown.add_row(
            Text(p.severity.value, style=_STYLE[p.severity]),
            Text(p.code),
            Text(where),
            Text(hosts + hide(p.message)),
            Text(hide(p.fix or ""), style="dim"),
        )
    out.print(shown)
    if hidden:
        note(f"{count(hidden, 'more line')} like these: --json")


def show_preview(report: PreviewReport) -> None:
    """Print a preview of tokens. Without colors, the trained text is shown between ⟦ and ⟧."""
    from orchestrate.runs import data

    coloured = out.is_terminal and not out.no_color
    for row in report.rows:
        out.print(data.heading(row), style="bold")
        text, before = Text(), False
        for i, token in enumerate(row.tokens):
            trained = bool(token.weight)
            if trained != before and not coloured:
                text.append("⟦" if trained else "⟧")
            before = trained
            style = _TOKEN_STYLE[trained][i % 2]
            if token.special:
                style = f"{style} bold" if trained else "blue bold"
            text.append(token.text.replace("\n", "⏎\n"), style=style)
        if before and not coloured:
            text.append("⟧")
        out.print(text, soft_wrap=True)
        for line in row.notes:
            note(line)
    marked = "green: trained on; grey: context" if coloured else "⟦trained on⟧; the rest is context"
    note(f"{marked}; adjacent tokens have alternating shades" if coloured else marked)


_TOKEN_STYLE = {True: ("black on color(151)", "black on color(114)"), False: ("", "bright_black")}
