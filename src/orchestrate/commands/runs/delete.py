"""The commands `delete` and `stored`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.command import HostOutput, command, shown_already
from orchestrate.commands.terminal.console import (
    confirm,
    err,
    mark_sandbox,
    note,
    orchestrator,
    out,
    table,
    warn,
)
from orchestrate.commands.terminal.options import ProviderOpt
from orchestrate.core.tables import TextTable
from orchestrate.errors import HostUnavailable, UsageError
from orchestrate.runs.host_storage import AccountStorage, Stored
from orchestrate.store import RUN_PREFIX
from orchestrate.text import count, joined, money, size
from orchestrate.types import Run
from orchestrate.workspace import Workspace

_ONE = {"data": "file", "model": "model"}


@command
def stored(
    context: typer.Context,
    *,
    provider: ProviderOpt = "all",
    sandbox: Annotated[bool, typer.Option("--sandbox", help="Query sandboxes instead.")] = False,
) -> HostOutput[list[AccountStorage]]:
    """List the files and tuned models in every configured account, no matter who created them.

    Shows the id, size, age and run of each item, and the storage price if the host bills for storage. Exit
    code 4 if an account could not be read in full."""
    from orchestrate.runs import host_storage

    with orchestrator(context) as ft:
        names = ft.backends(provider)
        inside = sandbox or ft.settings.hosts.sandboxed
        found = host_storage.account_storage(ft, names, sandbox=inside)
        gaps = any(one.gap for one in found)
        return HostOutput(found, _show_stored, HostUnavailable.exit_code if gaps else 0, sandbox=inside)


@command
def delete(
    context: typer.Context,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|FILE|MODEL]",
            help="A run that has ended, or the host's id of a file or tuned model. Default: list the files "
            "and models of all runs in the store.",
            autocompletion=completion.runs,
        ),
    ] = None,
    *,
    provider: ProviderOpt = "all",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation prompt.")] = False,
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Use sandboxes instead of real accounts.")
    ] = False,
) -> HostOutput[list[Stored]]:
    """Delete a run's tuned model and uploaded rows from its host, or one file or model by id. This is
    permanent.

    Doesn't delete a model that is deployed or a file that a job still uses. The run stays in the store."""
    from orchestrate.runs import host_storage

    with orchestrator(context) as ft:
        inside = sandbox or ft.settings.hosts.sandboxed
        if what is None:
            return HostOutput(host_storage.everything(ft, sandbox=inside), _show, sandbox=inside)
        try:
            record = ft.record(what)
        except UsageError:
            if what in ("last", "latest") or what.startswith(RUN_PREFIX):
                raise
            return _delete_item(ft, what, ft.backends(provider), sandbox=inside, yes=yes)
        return _delete_run(ft, record, yes=yes)


def _delete_run(ft: Workspace, record: Run, *, yes: bool) -> HostOutput[list[Stored]]:
    from orchestrate.runs import host_storage

    ws = ft.home_of(record)
    found = host_storage.stored(ws, record)
    if not found:
        return HostOutput(
            found,
            lambda _: note(f"the store has no record of files or models of run {record.id} on any host"),
            sandbox=record.sandbox,
        )
    mark_sandbox(record.sandbox)
    err.print(_listed(found))
    where = ws.provider(record.provider).profile.title
    _require_agreed(f"Permanently delete {count(len(found), 'item')} at {where}?", yes=yes)
    done = host_storage.delete(ws, record, lambda one: note(f"deleted: {one.kind} {', '.join(one.ids)}"))
    left = [one for one in found if one not in done]
    for one in left:
        note(f"not deleted: {one.kind} {', '.join(one.ids)} ({one.provider} has no API call for it)")
    code = HostUnavailable.exit_code if left else 0
    return HostOutput(done, shown_already, code, sandbox=record.sandbox)


def _delete_item(
    ft: Workspace, id: str, names: Sequence[str], *, sandbox: bool, yes: bool
) -> HostOutput[list[Stored]]:
    from orchestrate.runs import host_storage

    try:
        account, item = host_storage.find(ft, id, names, sandbox=sandbox)
    except UsageError:
        if (deleted := host_storage.deleted(ft, id)) is None:
            raise
        message = f"{_ONE[deleted.kind]} {id} at {deleted.provider} was already deleted"
        return HostOutput(list[Stored](), lambda _: note(message), sandbox=sandbox)
    provider = ft.provider(item.provider)
    host_storage.require_item_unused(ft, provider, item)
    mark_sandbox(provider.config.sandbox)
    err.print(_stored_table([account], only=item.id))
    where = f"{provider.profile.title} ({account.host}, account {account.account})"
    _require_agreed(f"Permanently delete the {item.kind} {item.id} at {where}?", yes=yes)
    done = host_storage.delete_item(ft, item)
    note(f"deleted: {item.kind} {item.id}")
    return HostOutput([done], shown_already, sandbox=provider.config.sandbox)


def _require_agreed(question: str, *, yes: bool) -> None:
    question = f"{question} This can't be undone."
    if not confirm(question, yes=yes):
        raise UsageError(f"not confirmed, so nothing was deleted: {question}", fix="add --yes")


def _show(found: Sequence[Stored]) -> None:
    if not found:
        note("the store has no record of files or models on any host")
        return
    out.print(_listed(found))
    note(
        "to delete a run's files and models: orchestrate delete RUN. To list what the hosts "
        "store: orchestrate stored"
    )


def _listed(found: Sequence[Stored]) -> TextTable:
    shown = table("run", "backend", "kind", "id", fold=("id",))
    for one in found:
        shown.add_row(one.run_id or "", f"{one.provider} ({one.host})", one.kind, ", ".join(one.ids))
    return shown


def _show_stored(found: Sequence[AccountStorage]) -> None:
    items = [item for one in found for item in one.items]
    if items:
        out.print(_stored_table(found))
        sizes = [item.bytes for item in items if item.bytes is not None]
        files = sum(item.kind == "file" for item in items)
        some = f", {size(sum(sizes))} (of known sizes)" if sizes else ""
        note(f"{count(files, 'file')} and {count(len(items) - files, 'model')}{some}")
        note("to permanently delete a file or model: orchestrate delete ID")
    elif found:
        note("no files or tuned models found in the accounts that could be read")
    else:
        note("no account was queried. To query sandboxes: orchestrate sandbox run -- orchestrate stored")
    for one in found:
        if one.gap and not one.listed:
            warn(f"could not read {one.provider}: {one.reason}")
        for line in one.unseen:
            (warn if one.partial else note)(f"{one.provider}: {line}")
    if keyless := [one.provider for one in found if one.keyless]:
        note(f"not checked because no key is set: {joined(keyless)}")


def _stored_table(found: Sequence[AccountStorage], only: str | None = None) -> TextTable:
    names = ("backend", "kind", "id", "name", "size", "created", "expires", "run")
    items = [item for one in found for item in one.items if only in (None, item.id)]
    prices = any(item.usd_per_month is not None for item in items)
    shown = table(*names, *(["$/month"] if prices else []), right=("size",), fold=("id", "name"))
    for item in items:
        price = [money(item.usd_per_month)] if prices else []
        shown.add_row(
            item.provider,
            item.kind,
            item.id,
            item.name or item.note or "",
            "" if item.bytes is None else size(item.bytes),
            "" if item.created_at is None else f"{item.created_at:%Y-%m-%d}",
            "" if item.expires_at is None else f"{item.expires_at:%Y-%m-%d}",
            item.run_id or "",
            *price,
        )
    return shown
