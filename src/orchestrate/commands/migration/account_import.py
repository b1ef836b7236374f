"""The command `import`."""

from __future__ import annotations

from datetime import UTC, date, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrate import text
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import note, orchestrator, out, resumable, table, warn
from orchestrate.core.underway import ProgressCallback, work

if TYPE_CHECKING:
    from orchestrate.migration.account_import import AccountImport, Inventory, InventoryRun

SHOWN = 20


@command
def take(
    context: typer.Context,
    providers: Annotated[
        list[str],
        typer.Argument(metavar="PROVIDER...", help="Backends to import jobs from, such as together."),
    ],
    since: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"], help="Import only jobs created on or after this date (YYYY-MM-DD, UTC)."
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Include failed and canceled jobs.")] = False,
    files: Annotated[
        bool, typer.Option(help="Download training and validation files, if the host allows downloads.")
    ] = True,
    details: Annotated[bool, typer.Option(help="Fetch events, metrics and checkpoints.")] = True,
) -> Output[list[AccountImport]]:
    """Import an account's past jobs into the store, with settings, files, metrics, events, checkpoints, tuned
    model and cost. Changes nothing on the host. Then lists each model's shutdown date and whether you can
    retrain the model. If interrupted, repeat the command to continue."""
    from orchestrate.migration import account_import

    at = since.replace(tzinfo=UTC) if since else None
    kept = "imported jobs are saved. To continue, run the same command again"
    with orchestrator(context) as ft, resumable(kept):
        taken: list[AccountImport] = []
        for name in ft.backends(providers):
            with work(f"importing from {name}") as report:

                def report_step(what: str, done: int, of: int, report: ProgressCallback = report) -> None:
                    report(done, of, what)

                taken.append(
                    account_import.take(
                        ft, name, since=at, every=every, details=details, files=files, on_step=report_step
                    )
                )
    return Output(taken, _show_all, 4 if any(one.problems for one in taken) else 0)


def _show_all(taken: list[AccountImport]) -> None:
    for one in taken:
        _show(one)


def _show(taken: AccountImport) -> None:
    found = taken.inventory
    for day, rows in groupby(found.rows[:SHOWN], key=lambda row: row.silent_on):
        _show_day(day, list(rows))
    if len(found.rows) > SHOWN:
        note(f"and {len(found.rows) - SHOWN:,} more. To list them: --json")
    _show_ways(found)
    if not found.rows:
        note(f"no jobs in {taken.account}: a key can only read its own project or account")
        return
    note(f"{taken.imported:,} imported, {taken.known:,} already known, from {taken.account}")
    if taken.left_out:
        jobs = text.count(taken.left_out, "job without a model is", "jobs without a model are")
        note(f"{jobs} left out. To include them: --all")
    for day, models in found.silent:
        models_text = text.count(models, "tuned model")
        warn(f"{taken.provider} will shut down {models_text} after {day}")
    unknown = f"; unknown for {found.uncosted:,}" if found.uncosted else ""
    note(f"total cost: {text.money(found.cost_usd)}{unknown}")
    note(f"training data: available for {text.count(found.data_here, 'run')}, lost for {found.data_gone:,}")
    for name, problem in list(taken.problems.items())[:5]:
        warn(f"{name}: {problem}")
    if taken.problems:
        partly = text.count(len(taken.problems), "job")
        note(f"{partly} not fully imported. To finish, run the same command again")
    elif found.silent:
        note("to see what to record before the shutdown: orchestrate record --calendar")


def _show_day(day: date | None, rows: list[InventoryRun]) -> None:
    left = rows[0].days_left
    if day is None:
        title = "no shutdown date announced"
    elif left is not None and left >= 0:
        title = f"will be shut down after {day} (in {text.count(left, 'day')})"
    else:
        title = f"shut down after {day} ({text.count(-(left or 0), 'day')} ago)"
    used = any(row.last_use for row in rows)  # as seen by this store: the hosts do not report it
    shown = table("run", "cost", "data", *(["last used"] if used else []), "model", fold=("model",))
    for row in rows:
        cost = text.money(row.cost_usd) if row.cost_usd is not None else "-"
        last = [f"{row.last_use:%Y-%m-%d}" if row.last_use else "-"] if used else []
        data = row.data.partition(":")[0]
        shown.add_row(row.run_id, cost, data, *last, row.tuned_model or f"none: {row.status.value}")
    out.print(title, style="bold")
    out.print(shown)
    out.print()


def _show_ways(found: Inventory) -> None:
    """Show how each base can be retrained, and which training data is lost."""
    ways = {row.model: row.rebuild for row in found.rows if row.data == "here"}
    if ways:
        shown = table("base", "can be retrained", fold=("can be retrained",))
        for model, way in sorted(ways.items())[:SHOWN]:
            shown.add_row(model, way)
        out.print(shown)
        out.print()
    lost = [row for row in found.rows if row.data.startswith("gone")]
    for row in lost[:5]:
        warn(f"{row.run_id}: the training rows are {row.data}. To retrain the model, you need your own copy")
    if len(lost) > 5:
        note(f"and {len(lost) - 5:,} more without training rows")
