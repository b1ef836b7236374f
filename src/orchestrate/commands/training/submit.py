"""The command `submit`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import (
    SANDBOX,
    confirm,
    err,
    fitted,
    note,
    orchestrator,
    out,
    print_text,
    prints_json,
    report_error,
    warn,
)
from orchestrate.commands.terminal.options import (
    DryRunOpt,
    PayOpt,
    RateOpt,
    SpecOptions,
    StrictOpt,
    require_used,
)
from orchestrate.commands.training.plans import show_problems
from orchestrate.core import days
from orchestrate.core.amounts import amount
from orchestrate.data.rows import file_of
from orchestrate.errors import DataError, OrchestrateError, UsageError
from orchestrate.paid.consent import require_consent
from orchestrate.text import count, limit, money, quoted
from orchestrate.types import JobStatus, Problem, Quote, Run, Severity

if TYPE_CHECKING:
    from orchestrate import RunHandle
    from orchestrate.api.orchestrator import Orchestrator
    from orchestrate.runs.preparing.earlier import Earlier
    from orchestrate.runs.preparing.prepared import Prepared
    from orchestrate.spec import JobSpec


@dataclass(frozen=True, kw_only=True)
class SpendingOptions:
    """Options for prices, spending limits, repeated submissions and the run's creator."""

    max_cost: Annotated[
        str | None,
        typer.Option(
            metavar="USD",
            help="Cost limit for all backends together. Don't submit if the quotes' high ends add up to "
            "more. Each run gets a share as its own limit.",
        ),
    ] = None
    max_cost_each: Annotated[
        str | None,
        typer.Option(metavar="USD", help="Don't submit if any quote's high end exceeds this."),
    ] = None
    rate: RateOpt = None
    yes: PayOpt = False
    again: Annotated[bool, typer.Option("--again", help="Submit even if an identical run exists.")] = False
    key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key",
            metavar="NAME",
            help="Idempotency key. Submitting again with the same key returns the same run.",
        ),
    ] = None
    by: Annotated[
        str | None, typer.Option("--by", metavar="NAME", help="Creator of the run. Default: user@machine.")
    ] = None


@command
def submit(
    context: typer.Context,
    *,
    provider: Annotated[
        str,
        typer.Option(
            "--provider", "-p", help="Comma-separated backends.", autocompletion=completion.backends
        ),
    ],
    spec_options: SpecOptions,
    spending: SpendingOptions,
    strict: StrictOpt = False,
    watch: Annotated[bool, typer.Option(help="Follow the run until it ends.")] = False,
    dry_run: DryRunOpt = False,
) -> Output[list[Run]] | Output[list[Quote]]:
    """Check and quote a run, upload its data, and create exactly one job on each backend you name.

    Asks for confirmation before spending. Without a terminal, pass --yes or --max-cost. An identical submit
    is refused while the first run is open and, if it succeeded, for 24 hours after it was created. To submit
    it anyway, pass --again. After Ctrl-C, see `orchestrate runs`: nothing is sent twice."""
    if watch and err.is_terminal:  # show at once that the command has started
        note(f"submitting to {provider}: reading the spec and its files")
    spec = spec_options.read(provider, max_cost=spending.max_cost)
    with orchestrator(context, made_by=spending.by, rates=spending.rate) as ft:
        names = ft.backends(provider)
        how = SubmitOptions(
            spending,
            strict,
            watch,
            named=spec_options.named,
            on_prepared=partial(require_used, ft, spending.rate),
            dry_run=dry_run,
        )
        return carry_out(ft, spec, names, how)


@dataclass(frozen=True)
class SubmitOptions:
    """Parameters of a submission."""

    spending: SpendingOptions
    strict: bool
    watch: bool
    repeated: str | None = None
    """Id of the ended run that the user asked to repeat. A duplicate of this run needs no confirmation."""
    named: str = ""
    """The spec file, as written in printed commands."""
    on_prepared: Callable[[Prepared], None] | None = None
    """Called before any confirmation, to print notes or raise errors."""
    dry_run: bool = False
    """Stop after all checks, before anything is sent or stored."""


def carry_out(
    ft: Orchestrator, spec: JobSpec, names: list[str], how: SubmitOptions
) -> Output[list[Run]] | Output[list[Quote]]:
    """Submit the spec to each backend, and return the runs. In a dry run, return the quotes instead."""
    if how.dry_run and how.watch:
        raise UsageError("--dry-run starts no run, so --watch cannot be used")
    ft.require(spec, names)  # before reading the data, which can take a while
    if how.watch:
        from orchestrate.runs import watch as watching

        watching.channels_of(ft.settings)
    prepared = ft.prepare(spec, names)
    if how.on_prepared is not None:
        how.on_prepared(prepared)
    earlier = ft.earlier(prepared, names, idempotency_key=how.spending.key)
    new = [found for found in earlier if found.may_send]
    caps = require_agreement(ft, prepared, new, how)
    if how.dry_run:
        return Output([prepared.offer(found.provider).quote for found in new], _show_quotes)
    runs: list[RunHandle] = []
    try:
        failures = submit_each(ft, prepared, earlier, caps, runs, strict=how.strict)
    except BaseException as error:
        Output(
            [run.record for run in runs], _show
        ).print()  # these jobs exist and are billed, whatever ended the command
        if isinstance(error, KeyboardInterrupt):
            err.print("\ninterrupted. Progress is saved, and nothing is sent twice")
            err.print(
                "  to find the run: orchestrate runs\n  if its outcome is unknown: orchestrate sync\n"
                "  to continue it: orchestrate resume RUN",
                style="cyan",
            )
        raise
    if how.watch and runs:
        failures += _follow(ft, runs)
    ended_badly = how.watch and any(r.status in (JobStatus.FAILED, JobStatus.CANCELLED) for r in runs)
    code = max([failure.exit_code for failure in failures], default=int(ended_badly))
    return Output([run.record for run in runs], _show if how.watch else _show_begun, code)


def require_agreement(
    ft: Orchestrator, prepared: Prepared, new: list[Earlier], how: SubmitOptions
) -> dict[str, Decimal | None]:
    """Ask the user to confirm a duplicate run and the price, after warning about problems in the data.
    Returns the cost limit of each backend's run."""
    spending = how.spending
    for same in [] if spending.again else [found.same for found in new if found.same]:
        if same.run_id == how.repeated:
            continue
        if sys.stdin.isatty() or how.dry_run:  # otherwise the error says it
            warn(same.message)
        # `--yes` agrees to the price, but not to a second, identical run.
        if not confirm("Submit a second one?", yes=how.dry_run):
            raise same
    names = [found.provider for found in new]
    if not names:
        return {}
    each = amount(spending.max_cost_each, "--max-cost-each")
    try:
        continued = {found.provider: found.known for found in new if found.known is not None}
        caps = ft.preflight(prepared, names, strict=how.strict, max_cost_each_usd=each, continued=continued)
    except DataError as error:
        show_problems(error.problems)
        if error.fix:
            error.fix = error.fix.replace("orchestrate check", f"orchestrate check{how.named}")
        raise
    quotes = [prepared.offer(name).quote for name in names]
    _announce(ft, names, quotes, caps)
    _warn_of_rows(prepared, names, how.named)
    limited = spending.max_cost is not None or each is not None
    # Ask anyway if the user's own price is 0, because a cost limit would never take effect.
    unpriced = any(q.high_usd == 0 and any(entry.own for entry in q.lines) for q in quotes)
    require_consent(
        sum((q.high_usd or Decimal(0) for q in quotes), Decimal(0)),
        partial(confirm, "Submit?", yes=spending.yes or how.dry_run),
        otherwise="not submitted",
        unpriced=unpriced or any(q.high_usd is None for q in quotes),
        limited=limited and not unpriced,
    )
    return caps


MOST_SORTS = 8


def _warn_of_rows(prepared: Prepared, names: list[str], spec: str) -> None:
    """Warn about rows that training would change or leave out. Shows the first problem of each kind."""
    sorts: dict[str, list[Problem]] = {}
    for found in prepared.problems:
        concerned = not found.providers or not set(names).isdisjoint(found.providers)
        if found.severity is Severity.WARNING and found.source and concerned:
            sorts.setdefault(found.code, []).append(found)
    for first, *more in list(sorts.values())[:MOST_SORTS]:
        file = file_of(first)
        place = f"{file}: row {first.row}: " if first.row else f"{file}: "
        warn(f"{place}{first.message}{f', and {len(more):,} more like this' if more else ''}")
    if sorts:
        note(
            f"{count(sum(map(len, sorts.values())), 'warning')} in the data. To list them: "
            f"orchestrate check{spec}"
        )


def _announce(
    ft: Orchestrator, names: list[str], quotes: list[Quote], caps: dict[str, Decimal | None]
) -> None:
    if pretended := days.pretended(days.today()):
        warn(f"{pretended}. The host bills according to the actual date")
    for name, quote in zip(names, quotes, strict=True):
        backend = ft.provider(name)
        head = [SANDBOX, "  "] if backend.config.sandbox else []
        said = f" {quote.model} at {backend.host}: {quoted(quote)}"
        taken = len(name) + sum(map(len, head))
        err.print(Text.assemble(*head, (name, "bold"), fitted(said, taken)), soft_wrap=True)
        warnings = list(quote.warnings)
        cap, gap = caps[name], backend.profile.cap_gap
        if cap is not None and gap:
            what = f"the run's share of the limit ({limit(cap)})"
            what = what if len(names) > 1 else f"the limit of {limit(cap)}"
            warnings.append(f"{what} cannot stop this run during training: {gap}")
        for warning in warnings:
            warn(warning, indent="  ")


def submit_each(
    ft: Orchestrator,
    prepared: Prepared,
    earlier: list[Earlier],
    caps: dict[str, Decimal | None],
    runs: list[RunHandle],
    *,
    strict: bool,
) -> list[OrchestrateError]:
    """Submit to each backend, and add each run to `runs` as it is created. If one backend rejects its run,
    the others still start. Prints each error, and returns all errors."""
    failures: list[OrchestrateError] = []
    for found in earlier:
        name, key = found.provider, found.idempotency_key
        again = found.same is not None  # and confirmed
        try:
            run = ft.submit(
                prepared,
                name,
                max_cost_usd=caps.get(name),
                strict=strict,
                idempotency_key=key,
                again=again,
                agree=_agrees,
            )
        except OrchestrateError as error:
            failures.append(error)
            report_error(error, as_json=prints_json())
            continue
        runs.append(run)
        description = f"run {run.id}" + (f", job {run.record.job_id}" if run.record.job_id else "")
        note(f"{name}: {description}{_earlier(found, run)}")
    return failures


def _earlier(found: Earlier, run: RunHandle) -> str:
    """Describe the run that an idempotency key already belonged to."""
    if found.known is not None:
        return f"; created earlier with this key ({run.status.value})"
    if found.idempotency_key and any(event.type == "taken_over" for event in run.events()):
        return f"; the run already existed with this key ({run.status.value}), and nothing was sent"
    return ""


def _agrees(live: Quote) -> bool:
    description = f"{live.provider}'s own estimate is {money(live.counted_usd)}, above the quote's high end"
    return confirm(f"{description}. Submit anyway?", yes=False)


def _follow(ft: Orchestrator, runs: list[RunHandle]) -> list[OrchestrateError]:
    from orchestrate.commands.runs.follow import follow

    try:
        follow(ft, runs)
    except OrchestrateError as error:  # the runs exist, so their ids must still be printed
        report_error(error, as_json=prints_json())
        return [error]
    return []


def _show_quotes(quotes: list[Quote]) -> None:
    from orchestrate.reports.quotes import quote_table

    out.print(quote_table(quotes))
    note("this was a dry run: nothing was sent or stored")


def _show(runs: list[Run]) -> None:
    for run in runs:
        print_text(run.id)


def _show_begun(runs: list[Run]) -> None:
    _show(runs)
    if runs:
        note(f"to follow: orchestrate watch {' '.join(run.id for run in runs)}")
