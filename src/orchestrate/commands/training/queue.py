"""The `queue` commands."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.command import Output, command, shown_already
from orchestrate.commands.terminal.console import ended_by_signal, filled, note, orchestrator, out, warn
from orchestrate.commands.terminal.options import (
    SpecOptions,
    StrictOpt,
    default_command,
    require_used,
)
from orchestrate.commands.training.submit import SpendingOptions, SubmitOptions, require_agreement
from orchestrate.errors import UsageError
from orchestrate.runs import queue as queueing
from orchestrate.runs import watch as watching
from orchestrate.text import SANDBOX_MARK, count, limit
from orchestrate.types import QueueEntry

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrate.api.orchestrator import Orchestrator
    from orchestrate.runs.queue import QueueStep
    from orchestrate.runs.syncing.sweep import SyncReport

app = typer.Typer(
    cls=default_command("list"),
    help="Queue runs. Each run starts when its backend has a free slot and the runs it depends on have "
    "succeeded. `worker`, `watch` and `queue run` submit queued runs.",
)
OptionalNames = Annotated[
    list[str] | None, typer.Argument(metavar="[ENTRY]...", help="Queue entries. Default: the entire queue.")
]
Names = Annotated[
    list[str],
    typer.Argument(
        metavar="ENTRY...", help="Queue entries: ids, or at least the first or last four characters of each."
    ),
]


@dataclass(frozen=True, kw_only=True)
class PlaceInQueue:
    """Options for the position in the queue."""

    after: Annotated[
        list[str] | None,
        typer.Option("--after", metavar="ID", help="Run or queue entry that must succeed first; repeatable."),
    ] = None
    first: Annotated[bool, typer.Option("--first", help="Put the run first in the queue.")] = False


@app.command()
@command
def add(
    context: typer.Context,
    *,
    provider: Annotated[
        str,
        typer.Option(
            "--provider", "-p", help="Comma-separated backends.", autocompletion=completion.backends
        ),
    ],
    spec_options: SpecOptions,
    place: PlaceInQueue,
    spending: SpendingOptions,
    strict: StrictOpt = False,
) -> Output[list[QueueEntry]]:
    """Check and quote a run, and queue it after you confirm its price.

    If the data changes or the price rises before the run starts, the entry is held and you are notified."""
    if spending.key is not None:
        raise UsageError("a queue entry is only submitted once, so --idempotency-key cannot be used")
    spec = spec_options.read(provider, max_cost=spending.max_cost)
    with orchestrator(context, made_by=spending.by, rates=spending.rate) as ft:
        names = ft.backends(provider)
        ft.require(spec, names)
        prepared = ft.prepare(spec, names)
        require_used(ft, spending.rate, prepared)
        how = SubmitOptions(spending, strict, watch=False)
        caps = require_agreement(ft, prepared, ft.earlier(prepared, names), how)
        made = [
            queueing.add(
                ft,
                prepared,
                name,
                after=place.after or (),
                max_cost_usd=caps.get(name),
                first=place.first,
                again=spending.again,
                rates=spending.rate or (),
            )
            for name in names
        ]
    return Output(made, _show_added)


def _show_added(made: list[QueueEntry]) -> None:
    for entry in made:
        out.print(entry.id)
    note("queued runs only start while orchestrate queue run, worker or watch is running")


@app.command("list")
@command
def list_entries(
    context: typer.Context,
    ended: Annotated[bool, typer.Option("--all", help="Include submitted and removed entries.")] = False,
) -> Output[list[QueueEntry]]:
    """List waiting entries in the order they start."""
    with orchestrator(context) as ft:
        entries, paused = queueing.entries(ft, ended=ended), ft.store.queue.paused
    return Output(entries, partial(_show, paused=paused))


def _show(entries: list[QueueEntry], paused: bool) -> None:
    if paused:
        warn("the queue is paused. To resume it: orchestrate queue resume")
    if not entries:
        note("the queue is empty. To add a run: orchestrate queue add SPEC -p BACKEND")
        return
    columns: dict[str, list[str]] = {
        "entry": [entry.id for entry in entries],
        "backend": [entry.provider + SANDBOX_MARK * entry.sandbox for entry in entries],
        "model": [str(entry.spec.get("model", "")) for entry in entries],
        "state": [entry.state.value for entry in entries],
        "limit": [_limit(queueing.most_usd(entry)) for entry in entries],
        "about": [queueing.about(entry) for entry in entries],
    }
    out.print(filled(columns, right=("limit",), fold=("model", "about")))


@app.command()
@command
def remove(context: typer.Context, entries: Names) -> Output[list[QueueEntry]]:
    """Remove entries from the queue. To end a run that has already started, use `cancel`."""
    return _each(context, entries, queueing.remove)


@app.command()
@command
def pause(
    context: typer.Context,
    entries: OptionalNames = None,
) -> Output[list[QueueEntry]]:
    """Pause entries, or the entire queue. Runs that have started continue."""
    return _pause(context, entries, paused=True)


@app.command()
@command
def resume(
    context: typer.Context,
    entries: OptionalNames = None,
) -> Output[list[QueueEntry]]:
    """Resume paused or held entries, or the entire queue."""
    return _pause(context, entries, paused=False)


def _pause(context: typer.Context, entries: list[str] | None, *, paused: bool) -> Output[list[QueueEntry]]:
    if entries:
        return _each(context, entries, queueing.hold if paused else queueing.release)
    with orchestrator(context) as ft:
        ft.store.queue.pause(paused)
        waiting = queueing.entries(ft)
    state = "is paused" if paused else "is running again"
    return Output(waiting, lambda _: note(f"the queue {state} with {count(len(waiting), 'run')}"))


@app.command()
@command
def run(
    context: typer.Context,
    provider: Annotated[
        str, typer.Option("--provider", "-p", help="Submit only to these backends, comma-separated.")
    ] = "all",
    until_empty: Annotated[bool, typer.Option("--until-empty", help="Exit when the queue is empty.")] = False,
) -> Output[list[QueueEntry]]:
    """Submit waiting entries as slots become free, until interrupted. Submitted runs continue."""
    steps: list[QueueStep] = []
    with ended_by_signal() as stop, orchestrator(context) as ft:
        only = None if provider == "all" else ft.backends(provider)
        watcher, server = watching.watcher(ft, only=only), queueing.QueueServer(ft, only)
        watcher.feed = server

        def after(_reports: list[SyncReport]) -> None:
            for problem in watcher.problems:
                warn(problem)
            for moved in server.moved:
                steps.append(moved)
                note(f"{moved.entry.id}: {moved.message}")
            if until_empty and not server.waiting():
                stop.set()

        watcher.run(stop, on_turn=after)
    return Output([moved.entry for moved in steps], shown_already)


def _each(
    context: typer.Context,
    names: list[str],
    change: Callable[[Orchestrator, str], QueueEntry],
) -> Output[list[QueueEntry]]:
    with orchestrator(context) as ft:
        changed = [change(ft, name) for name in names]
    return Output(changed, _show_changed)


def _show_changed(changed: list[QueueEntry]) -> None:
    for entry in changed:
        note(f"{entry.id} is {entry.state.value}")


def _limit(usd: Decimal | None) -> str:
    return "none" if usd is None else limit(usd)
