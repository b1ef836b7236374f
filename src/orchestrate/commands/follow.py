"""watch, sync: bring runs up to date, once or until they end."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from orchestrate.commands.console import Json, err, note, orchestrator, out, print_json, status_text
from orchestrate.commands.live import LiveView
from orchestrate.types import JobStatus

if TYPE_CHECKING:
    from orchestrate.handle import RunHandle


def watch(
    context: typer.Context,
    run: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Default: all active.")] = None,
    json: Json = False,
) -> None:
    """Follow runs live until they end. Interrupting it leaves the runs alone."""
    with orchestrator(context) as ft:
        handles = [ft.run(r) for r in run] if run else [ft.run(r.id) for r in ft.active_runs()]
        if not handles:
            note("no run is active")
        follow(handles)
        if json:
            print_json([h.record for h in handles])
        else:
            for h in handles:
                shown = status_text(h.status, sandbox=h.record.sandbox)
                out.print(Text.assemble(f"{h.id}  {h.record.provider}  ", shown))
    if any(h.status in (JobStatus.FAILED, JobStatus.CANCELLED) for h in handles):
        raise typer.Exit(1)


def sync(context: typer.Context, json: Json = False) -> None:
    """Sweep the hosts' lists, bring all runs up to date, and settle creates whose answer was lost."""
    with orchestrator(context) as ft:
        report = ft.sync()
    if json:
        print_json(report)
    else:
        out.print(str(report))
    if report.unsettled:
        raise typer.Exit(5)
    if report.failures:
        raise typer.Exit(4)


def follow(handles: list[RunHandle]) -> None:
    """Waits for all at once, each in a thread of its own, and draws them in one view."""
    drawing = Lock()
    signal.signal(signal.SIGTERM, _interrupt)
    with LiveView() as view, ThreadPoolExecutor(max_workers=max(1, len(handles))) as pool:

        def draw(handle: RunHandle) -> None:
            with drawing:
                view.show(handle.record, handle.metrics(), handle.events())

        waits = [pool.submit(h.wait, on_change=draw) for h in handles]
        try:
            for wait in waits:
                wait.result()
        except KeyboardInterrupt as interrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            view.close()
            ids = " ".join(h.id for h in handles)
            err.print(f"\ninterrupted; the run goes on. Return with: orchestrate watch {ids}")
            sys.stderr.flush()
            # The waiting threads sleep between polls; nothing of theirs is worth waiting for.
            os._exit(128 + next(iter(interrupt.args), signal.SIGINT))


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A polite kill ends the view as Ctrl-C does; the runs go on."""
    del frame
    raise KeyboardInterrupt(number)
