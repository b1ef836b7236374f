"""check, plan, quote: what a run would be and cost, before anything is sent. All offline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from orchestrate.commands.console import (
    EpochsOpt,
    Json,
    MethodOpt,
    ModelOpt,
    ProviderOpt,
    SetOpt,
    SpecArg,
    TrainOpt,
    ValidationOpt,
    note,
    orchestrator,
    out,
    print_json,
    read_spec,
    table,
)
from orchestrate.types import Outcome, Problem, Severity, Translation

_OUTCOME_STYLE = {
    Outcome.KEPT: "green",
    Outcome.MAPPED: "cyan",
    Outcome.DEFAULTED: "dim",
    Outcome.REFUSED: "red",
}
_SEVERITY_STYLE = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "dim"}
_SHOWN = 40


def check(
    context: typer.Context,
    spec: SpecArg = None,
    provider: ProviderOpt = "all",
    model: ModelOpt = None,
    train: TrainOpt = None,
    validation: ValidationOpt = None,
    method: MethodOpt = None,
    epochs: EpochsOpt = None,
    settings: SetOpt = None,
    json: Json = False,
) -> None:
    """All reasons for which a backend would refuse the data or the spec. Offline; exit code 1 with errors."""
    asked = read_spec(
        spec,
        model=model,
        train=train,
        validation=validation,
        method=method,
        epochs=epochs,
        settings=settings,
    )
    with orchestrator(context) as ft:
        problems = ft.check(asked, provider)
        backends = ft.backends(provider)
    if json:
        print_json({"backends": backends, "problems": problems})
    else:
        show_problems(problems)
        for name in backends:
            errors = [p for p in problems if p.severity is Severity.ERROR and _concerns(p, name)]
            out.print(f"{name}: " + (f"[red]{len(errors)} error(s)[/]" if errors else "[green]ready[/]"))
    if any(p.severity is Severity.ERROR for p in problems):
        raise typer.Exit(1)


def plan(
    context: typer.Context,
    spec: SpecArg = None,
    provider: ProviderOpt = "all",
    model: ModelOpt = None,
    train: TrainOpt = None,
    validation: ValidationOpt = None,
    method: MethodOpt = None,
    epochs: EpochsOpt = None,
    settings: SetOpt = None,
    strict: Annotated[bool, typer.Option(help="Refuse all that is not kept or exactly mapped.")] = False,
    json: Json = False,
) -> None:
    """What each setting of the spec becomes on each backend. Offline; exit code 2 when one is refused."""
    asked = read_spec(
        spec,
        model=model,
        train=train,
        validation=validation,
        method=method,
        epochs=epochs,
        settings=settings,
    )
    with orchestrator(context) as ft:
        translations = ft.plan(asked, provider)
    if json:
        print_json(translations)
    else:
        for translation in translations:
            _show_translation(translation)
    if any(t.inexact if strict else t.refused for t in translations):
        raise typer.Exit(2)


def quote(
    context: typer.Context,
    spec: SpecArg = None,
    provider: ProviderOpt = "all",
    model: ModelOpt = None,
    train: TrainOpt = None,
    validation: ValidationOpt = None,
    method: MethodOpt = None,
    epochs: EpochsOpt = None,
    settings: SetOpt = None,
    json: Json = False,
) -> None:
    """What the run would cost on each backend: low, expected, high, with source and age of each price.
    Offline."""
    asked = read_spec(
        spec,
        model=model,
        train=train,
        validation=validation,
        method=method,
        epochs=epochs,
        settings=settings,
    )
    with orchestrator(context) as ft:
        quotes = ft.quote(asked, provider)
    if json:
        print_json(quotes)
        return
    from orchestrate.reports import quote_table

    out.print(quote_table(quotes))


def show_problems(problems: Sequence[Problem]) -> None:
    """The problems as a table, errors first; long lists are cut and the rest counted."""
    if not problems:
        return
    order = list(Severity)
    rows = sorted(problems, key=lambda p: (order.index(p.severity), p.source or "", p.row or 0))
    shown = table("severity", "code", "row", "field", "what", "backends", right=("row",))
    for p in rows[:_SHOWN]:
        what = p.message + (f"\n→ {p.fix}" if p.fix else "")
        shown.add_row(
            f"[{_SEVERITY_STYLE[p.severity]}]{p.severity.value}[/]",
            p.code,
            str(p.row or ""),
            p.field or "",
            _plain(what),
            ", ".join(p.providers) or "all",
        )
    out.print(shown)
    if len(rows) > _SHOWN:
        note(f"... and {len(rows) - _SHOWN} more; --json prints all")


def _show_translation(translation: Translation) -> None:
    rows = table("setting", "asked", "outcome", "sent", "as", "rule", fold=("rule", "as", "sent"))
    for s in translation.settings:
        style = _OUTCOME_STYLE[s.outcome]
        mark = "" if s.exact or s.outcome is Outcome.REFUSED else ", not exactly"
        rows.add_row(
            s.name,
            _value(s.asked),
            f"[{style}]{s.outcome.value}{mark}[/]",
            _value(s.sent) if s.sent != s.asked or s.wire else "",
            f"[dim]{_plain(s.wire or '')}[/]",
            _plain(s.rule or ""),
        )
    out.print(f"[bold]{translation.provider}[/]  {_plain(translation.model)}")
    out.print(rows)
    out.print()


def _value(value: Any) -> str:
    return "" if value is None else _plain(str(value))


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _concerns(problem: Problem, provider: str) -> bool:
    return not problem.providers or provider in problem.providers
