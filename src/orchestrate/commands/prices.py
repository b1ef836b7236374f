"""The `prices` commands: prices, their sources and their age."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import SANDBOX, note, orchestrator, out, table, with_flags
from orchestrate.commands.terminal.options import RateOpt, default_command
from orchestrate.core import days
from orchestrate.costing import Accuracy, Rate, RateBook, Reconciliation, built_in, load
from orchestrate.costing.rates import clashes, current, prices_of
from orchestrate.errors import OrchestrateError, UsageError
from orchestrate.text import count, money

_NONE_YET = "no run has both a quote and a final bill yet"

app = typer.Typer(cls=default_command("list"), help="Show prices, their sources and their age.")

ProviderFilter = Annotated[
    str | None,
    typer.Option(
        "--provider", "-p", help="Show only this backend's prices.", autocompletion=completion.backend
    ),
]


def book_of(context: typer.Context, flags: list[str] | None = None) -> RateBook:
    """Load the rates for this command: the built-in ones, overridden by `rates.yaml` in the home folder and
    the project, then by `--rate`."""
    with orchestrator(context) as ft:
        return with_flags(ft.rates, flags)


@app.command("list")
@command
def list_prices(
    context: typer.Context,
    provider: ProviderFilter = None,
    method: Annotated[
        str | None,
        typer.Option(help="Show only prices of this kind: sft_lora, dpo_lora, deployment, gpu_rental ..."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Show only prices for this model.")] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="Show only hourly prices of GPUs whose name contains this text, such as H100."),
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="Include expired and superseded prices.")] = False,
    rate: RateOpt = None,
) -> Output[list[Rate]]:
    """List the prices that apply today. Without a filter, show the number and range of prices of each
    kind."""
    book = book_of(context, rate)
    today = days.today()
    shown = book if all else current(book, today)
    if model is not None:
        concerned = prices_of(book, model, today)[1]
        shown = [r for r in shown if r in concerned]
    found = [
        r
        for r in shown
        if (provider is None or r.provider == provider)
        and (method is None or method in r.methods)
        and (gpu is None or (r.gpu is not None and gpu.lower() in r.gpu.lower()))
    ]
    if not found:
        raise UsageError("no price matches", fix="to list backends and methods: orchestrate prices list")
    chosen = all or any(f is not None for f in (provider, method, model, gpu, rate))
    return Output(found, _show_each if chosen else _show_kinds)


@app.command()
@command
def show(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model, as in orchestrate models.")],
    rate: RateOpt = None,
) -> Output[list[Rate]]:
    """Show all prices of a model on each backend that can tune it."""
    entry, found = prices_of(book_of(context, rate), model, days.today())
    if not found:
        raise UsageError(
            f"no known price for {entry.name}", fix="to see where the model can be tuned: orchestrate models"
        )
    return Output(found, _show_each)


@app.command()
@command
def check(
    context: typer.Context,
    older_than: Annotated[
        int, typer.Option(min=0, metavar="DAYS", help="Maximum age of a price, in days.")
    ] = 60,
    provider: ProviderFilter = None,
) -> Iterator[Output[list[Rate]]]:
    """List current prices that need to be checked again, oldest first. Exit code 1 if there are any."""
    today = days.today()
    stale = [
        r
        for r in current(book_of(context), today)
        if (today - r.last_checked).days > older_than and (provider is None or r.provider == provider)
    ]
    stale.sort(key=lambda r: r.last_checked)
    yield Output(stale, _show_each, 1 if stale else 0)
    if stale:
        note(f"{count(len(stale), 'price')} last checked more than {count(older_than, 'day')} ago")
    else:
        note(f"every current price was checked within {count(older_than, 'day')}")


@app.command()
def validate(
    file: Annotated[list[Path] | None, typer.Argument(help="Rate files. Default: the built-in ones.")] = None,
) -> None:
    """Validate rate files (for contributors). Each file must be well-formed, name its sources, and use one
    unit per rate. Entries may only be appended."""
    problems: list[str] = []
    for path in file or []:
        try:
            problems += [f"{path}: {text}" for text in clashes(load(path))]
        except OrchestrateError as error:
            problems.append(str(error))
    if not file:
        problems += clashes(list(built_in()))
    for text in problems:
        out.print(text, soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    note("no mistakes found")


@app.command()
@command
def accuracy(
    context: typer.Context,
    runs: Annotated[
        bool, typer.Option("--runs", help="Show each run's quote and bill by component instead.")
    ] = False,
) -> Output[list[Accuracy]] | Output[list[Reconciliation]]:
    """Compare quotes with bills for all runs that succeeded."""
    from orchestrate.costing import accuracy as measured

    with orchestrator(context) as ft:
        found = measured(ft.store.runs.matching())
        kept = ft.store.history.reconciliations() if runs else []
    if runs:
        return Output(kept, _show_reconciliations)
    return Output(found, _show_accuracy)


def _show_kinds(rates: list[Rate]) -> None:
    kinds: dict[tuple[str, str, str], list[Rate]] = {}
    for r in rates:
        kinds.setdefault((r.provider, ", ".join(r.methods), r.unit.removeprefix("usd_")), []).append(r)
    shown = table("provider", "method", "unit", "prices", "USD", "checked", right=("prices", "USD"))
    for (provider, methods, unit), found in sorted(kinds.items()):
        least, most = min(r.usd for r in found), max(r.usd_max or r.usd for r in found)
        span = f"{least:f}" if least == most else f"{least:f} to {most:f}"
        shown.add_row(provider, methods, unit, str(len(found)), span, f"{min(r.last_checked for r in found)}")
    out.print(shown)
    note(
        "add --provider, --method, --model or --gpu to show each price with its source, and --all "
        "to include expired prices"
    )


def _show_each(rates: list[Rate]) -> None:
    if not rates:
        return
    today = days.today()
    shown = table(
        "provider", "method", "for", "USD", "unit", "since", "days", "known", "source", right=("USD", "days")
    )
    for r in sorted(rates, key=lambda r: (r.provider, r.methods, r.applies_to, r.start)):
        price = f"{r.usd:f} to {r.usd_max:f}" if r.usd_max is not None else f"{r.usd:f}"
        shown.add_row(
            r.provider,
            ", ".join(r.methods),
            r.applies_to,
            price,
            r.unit.removeprefix("usd_"),
            r.start.isoformat(),
            f"{(today - r.last_checked).days}",
            r.confidence.value,
            r.source,
        )
    out.print(shown)


def _show_reconciliations(found: list[Reconciliation]) -> None:
    if not found:
        note(_NONE_YET)
        return
    shown = table(
        "run", "backend", "component", "quoted", "billed", "error", "", "billed by",
        right=("quoted", "billed", "error"),
    )  # fmt: skip
    for r in found:
        for d in (*r.components, r.total):
            shown.add_row(
                r.run_id,
                r.provider,
                d.component,
                money(d.quoted_usd),
                money(d.billed_usd),
                "-" if d.relative is None else f"{d.relative:+.1%}",
                "within the quote's range" if d.within_band else "outside the quote's range",
                r.origin,
            )
    out.print(shown)


def _show_accuracy(found: list[Accuracy]) -> None:
    if not found:
        note(_NONE_YET)
        return
    shown = table(
        "backend", "runs", "median error", "worst", "bias", "within band", "quoted", "billed",
        right=("runs", "median error", "worst", "bias", "within band", "quoted", "billed"),
    )  # fmt: skip
    for a in found:
        shown.add_row(
            Text.assemble(a.provider, " ", SANDBOX) if a.sandbox else a.provider,
            str(a.runs),
            _percent(a.median_relative),
            _percent(a.worst_relative),
            "-" if a.bias is None else f"{a.bias:+.1%}",
            f"{a.within_band} of {a.runs}",
            money(a.quoted_usd),
            money(a.billed_usd),
        )
    out.print(shown)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
