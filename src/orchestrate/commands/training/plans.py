"""The commands `check`, `plan` and `quote`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer
from msgspec import structs
from rich.text import Text

from orchestrate.commands.terminal.command import HostOutput, Output, command
from orchestrate.commands.terminal.console import note, orchestrator, out, table
from orchestrate.commands.terminal.options import (
    ProviderOpt,
    RateOpt,
    ServingOptions,
    SpecOptions,
    StrictOpt,
    TokensOpt,
    backends_of,
    require_used,
)
from orchestrate.commands.training.translations import show_translations
from orchestrate.data.rows import file_of, rows_of
from orchestrate.errors import UsageError
from orchestrate.settings import hide, masked
from orchestrate.text import count, money
from orchestrate.types import Problem, Quote, Severity, TokensFrom, Translation

if TYPE_CHECKING:
    from orchestrate.costing import Ownership
    from orchestrate.runs.preparing.pricing import LivePrice
    from orchestrate.runs.sweep.suggestions import Suggestion

_SEVERITY_STYLE = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "dim"}
_SHOWN = 40

GpuHoursOpt = Annotated[
    float | None,
    typer.Option(min=0, help="GPU hours to assume for an RFT job. Hosts don't publish the duration."),
]


class PlanCheckReport(TypedDict):
    backends: list[str]
    problems: list[Problem]
    served: dict[str, str]
    """How each backend serves a tuned model, as {backend: description}. Omits backends for which this is
    unknown."""


class Quoted(TypedDict):
    quotes: list[Quote]
    ownership: list[Ownership]
    live: list[LivePrice]


@command
def check(
    context: typer.Context,
    *,
    provider: ProviderOpt = "all",
    spec_options: SpecOptions,
) -> HostOutput[PlanCheckReport]:
    """List everything in your data or spec that a backend would reject. Works offline. Exit code 1 if there
    are errors."""
    with orchestrator(context) as ft:
        spec = spec_options.read(provider)
        prepared = ft.prepare(spec, backends_of(ft, spec, provider))
        sandbox = any(ft.provider(offer.provider).config.sandbox for offer in prepared.offers)
    problems, backends = prepared.problems, [offer.provider for offer in prepared.offers]
    wrong = any(p.severity is Severity.ERROR for p in problems)
    served = {offer.provider: offer.quote.served for offer in prepared.offers if offer.quote.served}
    report = PlanCheckReport(backends=backends, problems=problems, served=served)
    return HostOutput(report, _show_checked, int(wrong), sandbox=sandbox)


def _show_checked(checked: PlanCheckReport) -> None:
    problems = checked["problems"]
    show_problems(problems)
    for name in checked["backends"]:
        errors = [p for p in problems if p.severity is Severity.ERROR and _concerns(p, name)]
        verdict = (count(len(errors), "error"), "red") if errors else ("ready", "green")
        way = checked["served"].get(name)
        later = f"  the tuned model: {way if way == 'only downloaded' else f'served {way}'}" if way else ""
        out.print(Text.assemble(f"{name}: ", verdict, ("" if errors else later, "dim")))


@command
def plan(
    context: typer.Context,
    *,
    provider: ProviderOpt = "all",
    spec_options: SpecOptions,
    strict: StrictOpt = False,
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Plan for a GPU with this much memory (24GiB, 80GB) instead of this machine.",
        ),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write the overrides that each backend requires into the spec.")
    ] = False,
    all: Annotated[
        bool,
        typer.Option(
            "--all", help="Show every setting with its API field, even settings that you did not set."
        ),
    ] = False,
    suggest: Annotated[
        bool,
        typer.Option("--suggest", help="Propose rank, learning rate, epochs and batch size, with reasons."),
    ] = False,
) -> Output[list[Translation]] | Output[list[Suggestion]]:
    """Show what each setting of the spec becomes on each backend, and how much memory training takes on your
    own hardware. Works offline. Exit code 2 if a setting is rejected."""
    if suggest:
        if strict or gpu_memory is not None or fix or all:
            raise UsageError(
                "--suggest cannot be combined with other options", fix="orchestrate plan --suggest"
            )
        with orchestrator(context) as ft:
            spec = spec_options.read(provider)
            return Output(ft.suggest(spec, backends_of(ft, spec, provider)), _show_suggestions)
    with orchestrator(context) as ft:
        if gpu_memory is not None:
            local = {**ft.settings.local, "gpu_memory_gib": _gib(gpu_memory)}
            ft.settings = structs.replace(ft.settings, local=local)
        measured = gpu_memory is not None
        spec = spec_options.read(provider)
        names = backends_of(ft, spec, provider)
        translations = ft.plan(spec, names, measured=measured)
        if fix and _fix(spec_options, translations):
            translations = ft.plan(spec_options.read(provider), names, measured=measured)
    refused = any(t.inexact if strict else t.refused for t in translations)
    shown = [Translation.from_dict(masked(translation.to_dict())) for translation in translations]
    return Output(shown, lambda _: show_translations(translations, all=all), 2 if refused else 0)


def _show_suggestions(found: list[Suggestion]) -> None:
    for one in found:
        shown = table("setting", "proposed", "now", "also try", "why")
        for setting in one.settings:
            near = ", ".join(f"{value:g}" for value in setting.neighbors)
            now = "-" if setting.now is None else str(setting.now)
            why = Text.assemble(setting.reason, (f"\n{setting.source}", "dim"))
            shown.add_row(setting.name, f"{setting.value:g}", now, near, why)
        out.print(Text.assemble((one.provider, "bold"), f"  {one.model}"))
        out.print(shown)
        for left in one.left_out:
            note(f"{one.provider}: not proposed: {left}")
    note("to try neighboring values within one budget: orchestrate sweep --suggest")


def _gib(given: str) -> float:
    """Parse a size and return it in GiB. A plain number is in GiB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(gib|gb|g)?", given.strip().lower())
    if found is None:
        raise UsageError(
            f"--gpu-memory must be a size, got {given!r}", fix="for example 24 or 24GiB, or 80GB"
        )
    return float(found[1]) * (1e9 / 2**30 if found[2] == "gb" else 1.0)


def _fix(spec_options: SpecOptions, translations: Sequence[Translation]) -> bool:
    """Write the overrides that fix the spec into its file. Returns true if there were any."""
    from orchestrate.core.files import write_whole
    from orchestrate.spec import specfile

    path = spec_options.file
    fixable = {t.provider: t.overrides for t in translations if t.overrides is not None}
    for name, fields in fixable.items():
        write_whole(path, specfile.with_overrides(path, name, fields).encode())
        note(f"{path}: overrides for {name} written: {', '.join(fields)}")
    return bool(fixable)


@dataclass(frozen=True, kw_only=True)
class PriceOptions:
    """Options that affect how the run is priced."""

    rate: RateOpt = None
    gpu_hours: GpuHoursOpt = None
    tokens: TokensOpt = TokensFrom.EXACT


@dataclass(frozen=True, kw_only=True)
class QuoteView:
    """Options for showing quotes."""

    format: Annotated[str, typer.Option("--format", help="Output format: table or md.")] = "table"
    whole: Annotated[
        bool, typer.Option("--all", help="With --traffic: show how the serving cost was calculated.")
    ] = False


@command
def quote(
    context: typer.Context,
    *,
    provider: ProviderOpt = "all",
    spec_options: SpecOptions,
    serving: ServingOptions,
    priced: PriceOptions,
    live: Annotated[
        bool, typer.Option("--live", help="Also request an estimate from the hosts. This uploads the data.")
    ] = False,
    shown: QuoteView,
) -> Output[list[Quote]] | Output[Quoted]:
    """Quote the run on each backend: low, expected and high, with the source and age of each
    price. Works offline unless you pass --live. Exit code 1 if no backend has a price."""
    from orchestrate.runs.preparing import pricing

    if shown.format not in ("table", "md"):
        raise UsageError(f"--format must be table or md, got {shown.format!r}")
    if serving.compare_with and not serving.traffic:
        raise UsageError("--compare-with needs --traffic", fix='--traffic "20k req/day, 900 in, 150 out"')
    spec = spec_options.read(provider)
    use = serving.use(context)
    hours = None if priced.gpu_hours is None else Decimal(str(priced.gpu_hours))
    with orchestrator(context, rates=priced.rate) as ft:
        prepared = ft.prepare(spec, provider, gpu_hours=hours, checked=False, tokens=priced.tokens)
        require_used(ft, priced.rate, prepared, serving=use is not None)
        quotes = prepared.quotes
        live_prices = pricing.live_prices(ft, prepared) if live else []
        totals = pricing.ownership(ft, spec, quotes, use) if use else []
    code = 1 if all(q.price is None for q in quotes) else 0
    if totals or live_prices:
        quoted = Quoted(quotes=quotes, ownership=totals, live=live_prices)
        return Output(quoted, partial(_show_quoted, how=shown), code)
    return Output(quotes, partial(_show_quotes, how=shown), code)


def _show_quotes(quotes: list[Quote], how: QuoteView) -> None:
    _show_quoted(Quoted(quotes=quotes, ownership=[], live=[]), how)


def _show_quoted(quoted: Quoted, how: QuoteView) -> None:
    from orchestrate.reports import quotes as shown

    quotes, totals, live = quoted["quotes"], quoted["ownership"], quoted["live"]
    if how.format == "md":
        typer.echo(shown.quote_markdown(quotes), nl=False)
        if totals:
            typer.echo("\n" + shown.ownership_markdown(totals), nl=False)
    else:
        out.print(shown.quote_table(quotes, totals=totals, whole=how.whole))
        if live:
            _show_live(live)


def _show_live(prices: Sequence[LivePrice]) -> None:
    shown = table(
        "backend",
        "quoted",
        "host's estimate",
        "difference",
        "",
        right=("quoted", "host's estimate", "difference"),
    )
    for p in prices:
        remark = p.reason or ("within the quote's range" if p.within_band else "outside the quote's range")
        difference = "-" if p.relative is None else f"{p.relative:+.1%}"
        shown.add_row(p.provider, money(p.offline_usd), money(p.live_usd), difference, remark)
    out.print()
    out.print(shown)


def show_problems(problems: Sequence[Problem]) -> None:
    """Print the problems as a table, errors first. For each kind and file, the table shows the first rows and
    the total count."""
    if not problems:
        return
    order = list(Severity)
    kinds: dict[tuple[object, ...], list[Problem]] = {}
    for p in sorted(problems, key=lambda p: (order.index(p.severity), p.source or "", p.row or 0)):
        alone = p.row is None and rows_of(p) == 1
        key = (p.severity, p.source, p.code, p.providers, p.message if alone else None)
        kinds.setdefault(key, []).append(p)
    shown = table("severity", "code", "where", "what", "backends")
    for first, *more in list(kinds.values())[:_SHOWN]:
        what = hide(first.message + (f"\n→ {first.fix}" if first.fix else ""))
        shown.add_row(
            Text(first.severity.value, _SEVERITY_STYLE[first.severity]),
            first.code,
            _where(first, more),
            what,
            ", ".join(first.providers) or "all",
        )
    out.print(shown)
    if len(kinds) > _SHOWN:
        note(f"... and {len(kinds) - _SHOWN} more kinds. To print all: --json")


_ROWS = 3
"""Maximum number of rows to show per kind."""


def _where(first: Problem, more: Sequence[Problem]) -> str:
    """Format the location, such as `train.jsonl rows 18, 19, 25 and 43 more`."""
    rows = [str(p.row) for p in (first, *more) if p.row is not None]
    rest = sum(map(rows_of, (first, *more))) - len(rows[:_ROWS])
    numbers = ", ".join(rows[:_ROWS]) + (f" and {rest:,} more" if rest > 0 else "")
    file = file_of(first)
    said = f"row{'s' if len(rows) > 1 else ''} {numbers}" if rows else ""
    return " ".join(filter(None, (file, said, "" if more else first.field)))


def _concerns(problem: Problem, provider: str) -> bool:
    return not problem.providers or provider in problem.providers
