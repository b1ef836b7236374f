"""import: past jobs of an account become runs, with an inventory of what is at stake."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrate import text
from orchestrate.commands.terminal.console import Json, note, orchestrator, out, print_json, table, warn

if TYPE_CHECKING:
    from orchestrate.service.migration.importing import Taken

SHOWN = 20
EVERY = 250


def take(
    context: typer.Context,
    providers: Annotated[list[str], typer.Argument(metavar="PROVIDER...", help="Backends, as in together.")],
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Only jobs made since this day (UTC).")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Jobs that failed or were cancelled, too.")] = False,
    files: Annotated[
        bool, typer.Option(help="Fetch training and validation files, where the host gives them out.")
    ] = True,
    details: Annotated[bool, typer.Option(help="Fetch events, metrics and checkpoints.")] = True,
    json: Json = False,
) -> None:
    """Take the past jobs of an account into the store, read-only on the host: settings, files by their
    content, metrics, events, checkpoints, the tuned model and what it cost. It can be repeated, and goes on
    where it was interrupted. Then what is at stake: which models fall silent when, and what can be made
    again."""
    from orchestrate.service.migration import importing

    def tell(what: str, done: int, of: int) -> None:
        if done % EVERY == 0 or done == of:
            note(f"{done:,}{f' of {of:,}' if of else ''} {what}")

    at = since.replace(tzinfo=UTC) if since else None
    with orchestrator(context) as ft:
        taken = [
            importing.take(ft, name, since=at, every=every, details=details, files=files, tell=tell)
            for name in ft.backends(providers)
        ]
    if json:
        print_json(taken)
    else:
        for one in taken:
            _show(one)
    if any(one.problems for one in taken):
        raise typer.Exit(4)


def _show(taken: Taken) -> None:
    found = taken.inventory
    shown = table("run", "model", "silent after", "cost", "data", "can be made again")
    for row in found.rows[:SHOWN]:
        silent = f"{row.silent_on} ({row.days_left} days)" if row.silent_on else "-"
        cost = text.money(row.cost_usd) if row.cost_usd is not None else "-"
        shown.add_row(row.run_id, row.tuned_model or row.model, silent, cost, row.data, row.rebuild)
    out.print(shown)
    if len(found.rows) > SHOWN:
        note(f"and {len(found.rows) - SHOWN:,} more: --json has all")
    note(f"{taken.imported:,} imported, {taken.known:,} known already, from {taken.account}")
    if taken.left_out:
        note(f"{taken.left_out:,} that made no model are left out: --all takes them")
    for day, models in found.silent:
        warn(f"{text.count(models, 'tuned model')} on {taken.provider} fall silent after {day}")
    unknown = f"; of {found.uncosted:,} it is not known" if found.uncosted else ""
    note(f"they cost {text.money(found.cost_usd)}{unknown}; when they were last used the host does not tell")
    note(f"training rows of {found.data_here:,} are here, of {found.data_gone:,} gone")
    for name, problem in list(taken.problems.items())[:5]:
        warn(f"{name}: {problem}")
    if taken.problems:
        note(f"{len(taken.problems):,} not complete; the same command goes on with them")
