"""delete: what a run has left at its host goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from orchestrate.commands.terminal import completing
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import SANDBOX, confirm, err, note, orchestrator, out, table
from orchestrate.core.tables import Listing
from orchestrate.errors import HostUnavailable, UsageError
from orchestrate.runs.deleting import Stored
from orchestrate.text import count


@command
def delete(
    context: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            help="A run that has ended. Without one: list what is known to be at hosts.",
            autocompletion=completing.runs,
        ),
    ] = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    sandbox: Annotated[bool, typer.Option("--sandbox", help="List what is in sandboxes instead.")] = False,
) -> Output[list[Stored]]:
    """Delete a run's tuned model and its uploaded rows at the host, for good. The run stays in the store."""
    from orchestrate.runs import deleting

    with orchestrator(context) as ft:
        if run is None:
            found = deleting.everything(ft, sandbox=sandbox or bool(ft.settings.hosts.sandboxed))
            return Output(found, _show)
        record = ft.record(run)
        ws = ft.home_of(record)
        found = deleting.stored(ws, record)
        if not found:
            return Output(found, lambda _: note(f"nothing of run {record.id} is known to be at a host"))
        if record.sandbox:
            err.print(SANDBOX)
        err.print(_listed(found))
        where = ws.provider(record.provider).title
        if not confirm(f"Delete {count(len(found), 'thing')} at {where} for good?", yes=yes):
            raise UsageError("nothing was deleted: nobody agreed", fix="add --yes")
        done = deleting.delete(ws, record, lambda one: note(f"deleted: {one.kind} {', '.join(one.ids)}"))
    left = [one for one in found if one not in done]
    for one in left:
        note(f"not deleted, as {one.provider} has no call for it: {one.kind} {', '.join(one.ids)}")
    return Output(done, lambda _: None, HostUnavailable.exit_code if left else 0)


def _show(found: Sequence[Stored]) -> None:
    if not found:
        note("nothing of a run of this store is known to be at a host")
        return
    out.print(_listed(found))
    note("orchestrate delete RUN  deletes what is there of it")


def _listed(found: Sequence[Stored]) -> Listing:
    shown = table("run", "at", "what", "id", fold=("id",))
    for one in found:
        shown.add_row(one.run_id, f"{one.provider} ({one.host})", one.kind, ", ".join(one.ids))
    return shown
