"""worker, recover: watch all runs for as long as wanted, and rebuild a lost store."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from orchestrate import config
from orchestrate.commands.console import Json, note, orchestrator, out, print_json, warn
from orchestrate.commands.notify import CommandOpt, DesktopOpt, UrlOpt, channels_of, notify_of
from orchestrate.errors import MissingKey
from orchestrate.text import inert_json

if TYPE_CHECKING:
    from orchestrate.service import Orchestrator
    from orchestrate.tracking.sweep import SyncReport


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
    from orchestrate.tracking import Watcher

    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda _signal, _frame: stop.set())
    with orchestrator(context) as ft, contextlib.ExitStack() as stack:
        notify = notify_of(ft.settings, notify_command, notify_url, notify_desktop)
        ft.settings = replace(ft.settings, notify=notify)
        watcher = Watcher(
            ft.store,
            ft.ready,
            bill=ft.bill,
            channels=channels_of(ft.settings),
            only=None if provider == "all" else ft.backends(provider),
        )
        if webhooks is not None:
            port = stack.enter_context(_webhooks(ft, webhooks, watcher.wake))
            note(f"taking webhooks on http://127.0.0.1:{port}/openai")

        def told(reports: list[SyncReport]) -> None:
            for problem in watcher.problems:
                warn(problem)
            for report in reports:
                _tell(report, as_json=json)

        watcher.run(stop, until_idle=until_idle, on_turn=told)
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
    from orchestrate.tracking import recover as rebuild

    with orchestrator(context) as ft:
        backends = [ft.provider(name) for name in ft.backends(provider)]
        report = rebuild(ft.store, backends)
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


def _webhooks(
    ft: Orchestrator, port: int, woken: Callable[[str], None]
) -> contextlib.AbstractContextManager[int]:
    from orchestrate.tracking.webhooks import listening

    secret = config.secret("openai-webhook", "OPENAI_WEBHOOK_SECRET")
    if secret is None:
        raise MissingKey("openai-webhook", "OPENAI_WEBHOOK_SECRET")
    return listening(ft.store, secret, port, woken)


def _tell(report: SyncReport, *, as_json: bool) -> None:
    moved = report.changed or report.adopted or report.not_made or report.alarms
    if not moved:
        return
    if as_json:
        sys.stdout.write(inert_json(msgspec.json.encode(report).decode()) + "\n")
        sys.stdout.flush()
    else:
        out.print(str(report))
