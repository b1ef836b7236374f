"""The command `rerun`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import RunArg, note, orchestrator, warn
from orchestrate.commands.terminal.options import DryRunOpt, StrictOpt, require_used
from orchestrate.commands.training.submit import SpendingOptions, SubmitOptions, carry_out

if TYPE_CHECKING:
    from orchestrate.runs.preparing.prepared import Prepared
    from orchestrate.types import Quote, Run


@command
def rerun(
    context: typer.Context,
    run: RunArg,
    *,
    provider: Annotated[
        str | None,
        typer.Option(
            "--provider",
            "-p",
            help="Comma-separated backends. Default: the run's own.",
            autocompletion=completion.backends,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Override a field of the spec; repeatable.",
            autocompletion=completion.settings,
        ),
    ] = None,
    spending: SpendingOptions,
    strict: StrictOpt = False,
    watch: Annotated[bool, typer.Option(help="Follow the run until it ends.")] = False,
    dry_run: DryRunOpt = False,
) -> Output[list[Run]] | Output[list[Quote]]:
    """Repeat a run from its saved spec, on the same backend or another one.

    Warns if the data has changed, then checks, quotes and asks for confirmation like submit. A sandbox run is
    repeated in the sandbox."""
    from orchestrate.runs.rerun import spec_of
    from orchestrate.spec import specfile
    from orchestrate.workspace import with_rates

    changes: dict[str, Any] = specfile.parse_settings(settings or [])
    if spending.max_cost is not None:
        changes["max_cost_usd"] = spending.max_cost
    with orchestrator(context, made_by=spending.by) as outside:
        record = outside.run(run).record
        ft = with_rates(outside.home_of(record), spending.rate or ())
        names = ft.backends(provider or record.provider)
        spec = spec_of(record, names, changes)
        repeated = record.id if record.status.terminal else None

        def on_prepared(prepared: Prepared) -> None:
            require_used(ft, spending.rate, prepared)
            _print_repeat(record, changes, prepared)

        how = SubmitOptions(spending, strict, watch, repeated, on_prepared=on_prepared, dry_run=dry_run)
        return carry_out(ft, spec, names, how)


def _print_repeat(run: Run, changes: dict[str, Any], prepared: Prepared) -> None:
    from orchestrate.runs.rerun import changed_data

    note(f"repeating run {run.id}" + "".join(f", {name}={value}" for name, value in changes.items()))
    if change := changed_data(run, prepared):
        warn(change)
    else:
        note(f"the data is unchanged (digest {run.dataset_digest[:12]})")
