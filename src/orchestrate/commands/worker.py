"""worker, recover: watch all runs for as long as wanted, and rebuild a lost store."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from orchestrate import watching
from orchestrate.commands.console import Json, note, orchestrator, out, print_json, warn
from orchestrate.commands.notify import CommandOpt, DesktopOpt, UrlOpt, notify_of
from orchestrate.text import inert_json

if TYPE_CHECKING:
    from orchestrate.watching import SyncReport


def worker(
    context: typer.Context,
    provider: Annotated[
        str, typer.Option("--provider", "-p", help="Backends to watch, joined by commas.", metavar="NAMES")
    ] = "all",
    notify_command: CommandOpt = None,
    notify_url: UrlOpt = None,
    notify_desktop: DesktopOpt = False,
    webhooks: Annotated[
        int | None,
        typer.Option(
            "--webhooks", metavar="PORT", help="Take OpenAI's webhooks on this loopback port (POST /openai)."
        ),
    ] = None,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="End when no run is on its way.")] = False,
    json: Json = False,
) -> None:
    """Watch the runs of this store until interrupted. Any number of workers may share one store."""
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda _signal, _frame: stop.set())
    with orchestrator(context) as ft, contextlib.ExitStack() as stack:
        notify = notify_of(ft.settings, notify_command, notify_url, notify_desktop)
        ft.settings = replace(ft.settings, notify=notify)
        watcher = watching.watcher(ft, only=None if provider == "all" else ft.backends(provider))
        if webhooks is not None:
            for url in stack.enter_context(watching.webhooks(ft, webhooks, watcher.wake)):
                note(f"taking webhooks on {url}")

        def shown(reports: list[SyncReport]) -> None:
            for problem in watcher.problems:
                warn(problem)
            for report in reports:
                _tell(report, as_json=json)

        watcher.run(stop, until_idle=until_idle, on_turn=shown)
    if stop.is_set():
        note("stopped watching; the runs go on")


def recover(
    context: typer.Context,
    provider: Annotated[
        str, typer.Option("--provider", "-p", help="Backends to search, joined by commas.", metavar="NAMES")
    ] = "all",
    json: Json = False,
) -> None:
    """Rebuild a lost store: every job on the hosts that carries one of our refs becomes a run again."""
    with orchestrator(context) as ft:
        report = watching.recover(ft, provider)
        synced = ft.sync()
    if json:
        print_json({"recovery": msgspec.to_builtins(report), "sync": msgspec.to_builtins(synced)})
    else:
        for run_id in report.recovered:
            out.print(f"recovered {run_id}")
        for ref in report.doubled:
            warn(f"{ref} has more than one job; see  orchestrate events {ref}")
        for failure in report.failures:
            note(f"{failure.provider} was not searched: {failure.message}")
        note(f"{len(report.recovered)} run(s) recovered, {len(report.known)} known already")
    if report.doubled:
        raise typer.Exit(1)


def _tell(report: SyncReport, *, as_json: bool) -> None:
    moved = report.changed or report.adopted or report.not_made or report.alarms
    if not moved:
        return
    if as_json:
        sys.stdout.write(inert_json(msgspec.json.encode(report).decode()) + "\n")
        sys.stdout.flush()
    else:
        out.print(str(report))
