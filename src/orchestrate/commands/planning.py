"""check, plan, quote: what a run would be and cost, before anything is sent. All offline."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from orchestrate.commands.console import Json, note, orchestrator, out, print_json, table
from orchestrate.commands.options import ProviderOpt, ServingOptions, SpecOptions, grouped
from orchestrate.commands.rates import RateOpt, of_flags
from orchestrate.errors import UsageError
from orchestrate.keys import hide, masked
from orchestrate.text import count, money, size
from orchestrate.types import Authority, MemoryPlan, Outcome, Problem, Quote, Setting, Severity, Translation

if TYPE_CHECKING:
    from orchestrate.quoting import LivePrice, Ownership

_OUTCOME_STYLE = {
    Outcome.KEPT: "green",
    Outcome.MAPPED: "cyan",
    Outcome.DEFAULTED: "dim",
    Outcome.REFUSED: "red",
}
_SEVERITY_STYLE = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "dim"}
_SHOWN = 40

GpuHoursOpt = Annotated[
    float | None, typer.Option(min=0, help="What an RFT job is assumed to need; no host says so beforehand.")
]


@grouped
def check(
    context: typer.Context,
    *,
    provider: ProviderOpt = "all",
    asked: SpecOptions,
    json: Json = False,
) -> None:
    """All reasons for which a backend would refuse the data or the spec. Offline; exit code 1 with errors."""
    with orchestrator(context) as ft:
        prepared = ft.prepare(asked.read(), provider)
    problems, backends = prepared.problems, [offer.provider for offer in prepared.offers]
    if json:
        print_json({"backends": backends, "problems": problems})
    else:
        show_problems(problems)
        for name in backends:
            errors = [p for p in problems if p.severity is Severity.ERROR and _concerns(p, name)]
            verdict = (count(len(errors), "error"), "red") if errors else ("ready", "green")
            out.print(Text.assemble(f"{name}: ", verdict))
    if any(p.severity is Severity.ERROR for p in problems):
        raise typer.Exit(1)


@grouped
def plan(
    context: typer.Context,
    *,
    provider: ProviderOpt = "all",
    asked: SpecOptions,
    strict: Annotated[bool, typer.Option(help="Refuse all that is not kept or exactly mapped.")] = False,
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Plan these rows for a GPU of so many GiB (24GiB, 80GB), not for this machine.",
        ),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write into the spec what each backend has to go without.")
    ] = False,
    json: Json = False,
) -> None:
    """What each setting of the spec becomes on each backend, and the memory that training takes where it is
    yours. Offline; exit code 2 when one is refused."""
    with orchestrator(context) as ft:
        if gpu_memory is not None:
            local = {**ft.settings.local, "gpu_memory_gib": _gib(gpu_memory)}
            ft.settings = dataclasses.replace(ft.settings, local=local)
        measured = gpu_memory is not None
        translations = ft.plan(asked.read(), provider, measured=measured)
        if fix and _fix(asked, translations):
            translations = ft.plan(asked.read(), provider, measured=measured)
    if json:
        print_json(masked([translation.to_dict() for translation in translations]))
    else:
        for translation in translations:
            _show_translation(translation)
    if any(t.inexact if strict else t.refused for t in translations):
        raise typer.Exit(2)


def _gib(given: str) -> float:
    """GiB of a size; a number alone is one."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(gib|gb|g)?", given.strip().lower())
    if found is None:
        raise UsageError(f"--gpu-memory is not a size: {given!r}", fix="for example 24 or 24GiB, or 80GB")
    return float(found[1]) * (1e9 / 2**30 if found[2] == "gb" else 1.0)


def _fix(asked: SpecOptions, translations: Sequence[Translation]) -> bool:
    """Whether something was written into the spec's file."""
    from orchestrate import specfile
    from orchestrate.files import write_whole

    path = asked.file
    fixable = {t.provider: t.overrides for t in translations if t.overrides is not None}
    for name, fields in fixable.items():
        write_whole(path, specfile.with_overrides(path, name, fields).encode())
        note(f"{path}: overrides for {name} written: {', '.join(fields)}")
    return bool(fixable)


@dataclass(frozen=True, kw_only=True)
class Priced:
    """What prices are taken."""

    rate: RateOpt = None
    gpu_hours: GpuHoursOpt = None


@grouped
def quote(
    context: typer.Context,
    *,
    provider: ProviderOpt = "all",
    asked: SpecOptions,
    serving: ServingOptions,
    priced: Priced,
    live: Annotated[bool, typer.Option("--live", help="Ask the hosts too. Uploads the data.")] = False,
    format: Annotated[str, typer.Option("--format", help="table or md.")] = "table",
    json: Json = False,
) -> None:
    """What the run would cost on each backend: low, expected, high, with source and age of each price.
    Offline, unless --live."""
    from orchestrate import quoting

    if format not in ("table", "md"):
        raise UsageError(f"--format takes table or md; got {format!r}")
    if serving.compare_with and not serving.traffic:
        raise UsageError("--compare-with needs --traffic", fix='--traffic "20k req/day, 900 in, 150 out"')
    spec = asked.read()
    use = serving.use()
    hours = None if priced.gpu_hours is None else Decimal(str(priced.gpu_hours))
    with orchestrator(context) as ft:
        own = of_flags(priced.rate)
        ft.rates = ft.rates.over(own)
        prepared = ft.prepare(spec, provider, gpu_hours=hours, checked=False)
        quoting.require_used(ft, prepared, own, serving=use is not None)
        quotes = prepared.quotes
        live_prices = quoting.live_prices(ft, prepared) if live else []
        totals = quoting.ownership(ft, spec, quotes, use) if use else []
    if json:
        print_json(
            {"quotes": quotes, "ownership": totals, "live": live_prices} if totals or live_prices else quotes
        )
    else:
        _show_quotes(quotes, totals, live_prices, markdown=format == "md")


def _show_quotes(
    quotes: list[Quote], totals: list[Ownership], live: list[LivePrice], *, markdown: bool
) -> None:
    from orchestrate.service import reports

    if markdown:
        typer.echo(reports.quote_markdown(quotes), nl=False)
        if totals:
            typer.echo("\n" + reports.ownership_markdown(totals), nl=False)
    else:
        out.print(reports.quote_table(quotes))
        if totals:
            out.print()
            out.print(reports.ownership_table(totals))
        if live:
            _show_live(live)


def _show_live(prices: Sequence[LivePrice]) -> None:
    shown = table(
        "backend", "quoted", "host says", "difference", "", right=("quoted", "host says", "difference")
    )
    for p in prices:
        remark = p.reason or ("within the quote's range" if p.within_band else "outside the quote's range")
        difference = "-" if p.relative is None else f"{p.relative:+.1%}"
        shown.add_row(p.provider, money(p.offline_usd), money(p.live_usd), difference, remark)
    out.print()
    out.print(shown)


def show_problems(problems: Sequence[Problem]) -> None:
    """The problems as a table, errors first; long lists are cut and the rest counted."""
    if not problems:
        return
    order = list(Severity)
    rows = sorted(problems, key=lambda p: (order.index(p.severity), p.source or "", p.row or 0))
    shown = table("severity", "code", "row", "field", "what", "backends", right=("row",))
    for p in rows[:_SHOWN]:
        what = hide(p.message + (f"\n→ {p.fix}" if p.fix else ""))
        shown.add_row(
            Text(p.severity.value, _SEVERITY_STYLE[p.severity]),
            p.code,
            str(p.row or ""),
            p.field or "",
            what,
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
            Text(f"{s.outcome.value}{mark}", style),
            _value(s.sent) if s.sent != s.asked or s.wire else "",
            _field(s),
            s.rule or "",
        )
    out.print(Text.assemble((translation.provider, "bold"), f"  {translation.model}"))
    out.print(rows)
    if any(s.authority is not None for s in translation.settings):
        note("fields are of the types of the host's SDK, unless it is said from where else they are known")
    if translation.overrides is not None:
        from orchestrate import specfile

        note(f"with these lines it runs on {translation.provider} (--fix writes them):")
        out.print(hide(specfile.overrides_block(translation.provider, translation.overrides)), style="cyan")
    if translation.memory is not None:
        show_memory(translation.memory)
    out.print()


def _field(setting: Setting) -> Text:
    """The field that carries it, and from where that is known where it is not the SDK."""
    wire, authority = setting.wire or "", setting.authority
    if authority in (None, Authority.SDK):
        return Text(wire, "dim")
    unknown = authority is Authority.NONE
    return Text.assemble((wire, "dim"), " ", (f"({authority})", "red" if unknown else "yellow"))


def show_memory(plan: MemoryPlan) -> None:
    """The total, what it is made of, and what to change where it does not fit."""
    device = "GPU" if plan.device == "cuda" else "CPU"
    whole = f"{size(plan.total_bytes)} of memory on the {device}"
    at = f" with {count(plan.rows, 'row')} of {count(plan.longest, 'token')} at once"
    if plan.available_bytes is None:
        verdict = ("", "")
    elif plan.fits:
        verdict = (f": fits its {size(plan.available_bytes)}", "green")
    else:
        verdict = (f": does not fit its {size(plan.available_bytes)}", "red")
    out.print(Text.assemble((whole, "bold"), at, verdict))
    parts = [f"{name} {size(part)}" for name, part in plan.parts.items() if part >= 2**20]
    out.print(Text("  " + " + ".join(parts) + f"; the peak is at {plan.peak}", "dim"))
    for line in plan.advice:
        note(f"  try: {line}")
    for line in plan.notes:
        note(f"  ({line})")


def _value(value: Any) -> str:
    shown = "" if value is None else str(value)
    # A chat template is no value to read in a table.
    return f"{shown.strip()[:40]}... ({len(shown):,} characters)" if len(shown) > 300 else shown


def _concerns(problem: Problem, provider: str) -> bool:
    return not problem.providers or provider in problem.providers
