"""The commands `watch` and `sync`."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Protocol, TypedDict

import typer
from msgspec.structs import replace
from rich.text import Text

from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import err, note, orchestrator, out, stage_text, warn
from orchestrate.commands.terminal.live import LiveView
from orchestrate.commands.terminal.notify import NotifyOptions, notifying
from orchestrate.errors import OrchestrateError, ProviderError, UsageError
from orchestrate.runs import watch as watching
from orchestrate.store.transitions import UNSENT
from orchestrate.text import count
from orchestrate.types import JobStatus, Run

if TYPE_CHECKING:
    from orchestrate import RunHandle
    from orchestrate.api.orchestrator import Orchestrator
    from orchestrate.runs.syncing.sweep import Failure, SyncReport
    from orchestrate.settings.config import Settings
    from orchestrate.store.database import Lease

_TICK_S = 0.5
_CHECK_S = 2.0
"""Seconds between checks for problems and stalled runs."""
_POLLED_AT_ONCE = 8
"""Maximum number of runs that are polled before the first frame is drawn."""


class WatchStopped(TypedDict):
    stopped: int


HereOpt = Annotated[
    bool | None,
    typer.Option(
        "--here/--background",
        help="Watch from this process or from a background process. Default: background on a terminal.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class StallOptions:
    """Options for detecting stalled runs and ending them."""

    stalled_minutes: Annotated[
        float | None,
        typer.Option(
            help="Report a run as stalled after this many minutes without a new step, event or metric. "
            "Default: 5 times the longest gap in this run or in a typical earlier run on the same backend, "
            "but at least 15 minutes (60 minutes if there are fewer than 3 earlier runs). You can also set "
            "ORCHESTRATE_STALLED_MINUTES.",
        ),
    ] = None
    cancel_stalled: Annotated[
        bool,
        typer.Option(
            "--cancel-stalled",
            help="Cancel a run that is still stalled at the next check. You may lose training progress.",
        ),
    ] = False

    def over(self, settings: Settings) -> Settings:
        """Return the settings, overridden by the stall limit from `--stalled-minutes` if it is set. Raises
        `UsageError` unless the limit is positive and finite."""
        if self.stalled_minutes is None:
            return settings
        if not 0 < self.stalled_minutes < float("inf"):
            raise UsageError(f"--stalled-minutes must be above 0 (got {self.stalled_minutes})")
        return replace(settings, stalled_after_s=60 * self.stalled_minutes)


@command
def watch(
    context: typer.Context,
    run: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...", help="Runs to follow. Default: all active.", autocompletion=completion.runs
        ),
    ] = None,
    *,
    here: HereOpt = None,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the background watcher. Runs continue.")] = False,
    stalls: StallOptions,
    channels: NotifyOptions,
) -> Output[list[Run]] | Output[WatchStopped]:
    """Follow runs live until they end. Runs continue if you interrupt the command or close the terminal.

    On a terminal, a background process keeps watching and notifies you when a run ends. The process stops
    when no run is active."""
    with orchestrator(context) as ft:
        if stop:
            return Output(WatchStopped(stopped=watching.stop_background(ft.settings)), _show_stopped)
        ft.settings = stalls.over(channels.over(ft.settings))
        handles = [ft.run(r) for r in run] if run else _reachable(ft)
        follow(ft, handles, here=here, cancel_stalled=stalls.cancel_stalled)
    runs = [h.record for h in handles]
    return Output(runs, _show, 0 if all(map(_well, runs)) else 1)


def _show(runs: list[Run]) -> None:
    for run in runs:
        out.print(Text.assemble(f"{run.id}  {run.provider}  ", stage_text(run)))


@command
def sync(context: typer.Context, *, stalls: StallOptions) -> Output[SyncReport]:
    """Update all runs from the hosts' job lists, and resolve create requests whose response was lost."""
    with orchestrator(context) as ft, notifying(ft):
        ft.settings = stalls.over(ft.settings)
        report = ft.sync(cancel_stalled=stalls.cancel_stalled)
        for problem in watching.notify_stalls(ft.settings, report):
            warn(f"notification failed: {problem}")
    code = 5 if report.unsettled or report.ending else 4 if report.failures else 0
    return Output(report, lambda report: out.print(str(report)), code)


def follow(
    ft: Orchestrator, handles: list[RunHandle], *, here: bool | None = None, cancel_stalled: bool = False
) -> None:
    """Display the runs live until all have ended. If `here` is `True`, a thread of this process polls the
    hosts. If it is `False`, the background watcher does. The default is `False` on a terminal, except on
    Windows, and `True` everywhere else. Raises the backend's error if a backend cannot be reached."""
    if here is None:
        here = not sys.stderr.isatty() or sys.platform == "win32"
    elif sys.platform == "win32" and not here:
        raise UsageError("the background watcher is not available on Windows", fix="orchestrate watch --here")
    following = _Following(ft, handles, cancel_stalled=cancel_stalled)
    with notifying(ft):
        if handles and following.begin():
            _draw(following, here=here)
    following.check()


def _draw(following: _Following, *, here: bool) -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    ft, handles = following.ft, list(following.handles.values())
    try:
        with LiveView(ft.store.history.metrics, ft.store.history.events) as view:
            try:
                with _thread(ft, handles) if here else _background(ft) as source:
                    following.run(view, source)
            except KeyboardInterrupt as interrupt:
                view.close()
                _leave(handles, interrupt, in_background=not here)
    except OSError as error:
        if error.errno in (errno.EIO, errno.EPIPE):  # the terminal was closed
            os._exit(129)
        raise


class _Source(Protocol):
    """Poller of the hosts: the background watcher, or a thread."""

    def check(self) -> tuple[Sequence[str], Sequence[Failure]]:
        """Return the poller's problems, and the backends that could not be reached."""
        ...


class _Following:
    """The followed runs, as read from the store."""

    def __init__(self, ft: Orchestrator, handles: list[RunHandle], *, cancel_stalled: bool) -> None:
        self.ft = ft
        self._cancel_stalled = cancel_stalled
        self._stalled: set[str] = set()
        self.handles = {h.id: h for h in handles}
        self._active = {h.id for h in handles if not self._over(h.record)}
        self._reported: set[str] = set()
        self._view_leases: dict[str, Lease | None] = {}
        self._viewed_at = float("-inf")
        self._failure: OrchestrateError | None = None

    def begin(self) -> bool:
        """Poll the runs now if there are few, to show errors immediately. Raises errors that waiting cannot
        fix. Returns true if any run is active."""
        live = [h for h in self.handles.values() if h.id in self._active]
        for h in live:
            require_reachable(self.ft, h.record)
        for h in live if len(live) <= _POLLED_AT_ONCE else ():
            self._poll(h)
        return bool(self._active)

    def check(self) -> None:
        """Raise the first error that ended the tracking of a run."""
        if self._failure is not None:
            raise self._failure

    def run(self, view: LiveView, source: _Source) -> None:
        checked = float("-inf")
        try:
            while not self._show(view):
                if time.monotonic() - checked > _CHECK_S and self._on_hosts():
                    self._record_view()
                    self._report(view, *source.check())
                    self._end_stalled(view)
                    checked = time.monotonic()
                time.sleep(_TICK_S)
            self._show_final(view)
        finally:
            for lease in self._view_leases.values():
                if lease is not None:
                    with suppress(OrchestrateError):
                        self.ft.store.leases.release(lease)

    def _poll(self, handle: RunHandle) -> None:
        """Poll the run on its host. Stops following the run if its error is permanent."""
        try:
            watching.ask(handle)
        except ProviderError as error:
            warn(f"no longer following {handle.id}: {error.message}")
            self._failure = self._failure or error
            self._active.discard(handle.id)

    def _on_hosts(self) -> bool:
        """Return true if any run can be queried on its host. Runs that another process is still uploading
        can't."""
        return any(self.handles[i].record.phase not in UNSENT for i in self._active)

    def _show(self, view: LiveView) -> bool:
        """Draw the runs. Returns true once all runs have ended."""
        for record in self.ft.store.runs.of_ids(self.handles):
            self.handles[record.id].record = record
            if record.id not in self._active and record.id in self._reported:
                continue
            self._reported.add(record.id)
            view.show(record, self._hint(record))
            if self._over(record):
                self._active.discard(record.id)
        view.draw()
        return not self._active

    def _over(self, run: Run) -> bool:
        unsent = run.phase in UNSENT and not self.ft.store.leases.held(f"run:{run.id}")
        return run.status.terminal or unsent or watching.left(run) is not None

    def _hint(self, run: Run) -> str | None:
        if run.phase in UNSENT and not run.status.terminal:
            if self.ft.store.leases.held(f"run:{run.id}"):
                return "another process is submitting this run"
            return f"the host has no job yet. To submit it: orchestrate resume {run.id}"
        if run.id in self._stalled:
            return f"stalled: no new output. To see its events: orchestrate events {run.id}"
        left = watching.settle_left_s(self.ft, run)
        if left is None:
            return None
        return (
            "the response to the create request was lost. Checking whether the host has the job. If no job "
            f"appears within {left:.0f} s, none was created"
        )

    def _end_stalled(self, view: LiveView) -> None:
        self._stalled = self.ft.store.watching.stalled() & self._active
        for run_id in self._stalled if self._cancel_stalled else ():
            with suppress(ProviderError):  # polled again soon
                if why := watching.end_stalled(self.ft, self.handles[run_id].record):
                    view.warn(f"{run_id} is being canceled: {why}")

    def _record_view(self) -> None:
        """Record that a user is waiting for updates, so the watcher polls more often."""
        if time.monotonic() - self._viewed_at < 5.0:
            return
        self._viewed_at = time.monotonic()
        records = [h.record for h in self.handles.values() if h.id in self._active]
        for account in {f"{r.provider}@{r.host}" for r in records}:
            self._view_leases[account] = self.ft.store.watching.watch(account, self._view_leases.get(account))

    def _report(self, view: LiveView, problems: Sequence[str], failures: Sequence[Failure]) -> None:
        live = [h for h in self.handles.values() if h.id in self._active]
        ours = {h.record.provider for h in live}
        others = tuple(f"{name}: " for name in self.ft.store.runs.open_providers() if name not in ours)
        for problem in problems:
            if problem not in self._reported and not problem.startswith(others):
                self._reported.add(problem)
                view.warn(problem)
        for failure in failures:
            if not failure.retryable and failure.provider in ours and failure.message not in self._reported:
                self._reported.add(failure.message)
                # Poll in this process, so the original error is raised, with its type, fix and exit code.
                for h in [h for h in live if h.record.provider == failure.provider][:_POLLED_AT_ONCE]:
                    self._poll(h)

    def _show_final(self, view: LiveView) -> None:
        """Show what the hosts report after a run ends: last events and the bill."""
        for h in list(self.handles.values())[:_POLLED_AT_ONCE]:
            if h.record.job_id is not None:
                with suppress(OrchestrateError):
                    h.refresh()
            view.show(h.record, self._hint(h.record))
        view.draw()


@contextmanager
def _background(ft: Orchestrator) -> Generator[_Source]:
    watcher = watching.background(ft.settings)

    class BackgroundSource:
        def check(self) -> tuple[Sequence[str], Sequence[Failure]]:
            watcher.ensure()
            state = watcher.state()
            return (state.problems, state.failures) if state else ((), ())

    yield BackgroundSource()


@contextmanager
def _thread(ft: Orchestrator, handles: list[RunHandle]) -> Generator[_Source]:
    watcher = watching.watcher(ft, only=sorted({h.record.provider for h in handles}))
    stopped, broken = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            watcher.run(stopped)
        except BaseException as error:  # noqa: BLE001  raised again by `check`
            broken.append(error)

    thread = threading.Thread(target=work, name="watcher", daemon=True)

    class ThreadSource:
        def check(self) -> tuple[Sequence[str], Sequence[Failure]]:
            if broken:
                raise broken[0]
            return list(watcher.problems), list(watcher.failures)

    thread.start()
    try:
        yield ThreadSource()
    finally:
        stopped.set()
        watcher.wake()
    thread.join()  # not after an error: the thread may be in a long request
    if broken:
        raise broken[0]


def _reachable(ft: Orchestrator) -> list[RunHandle]:
    """Return all active runs whose host and key are configured here. Prints a warning for each other run."""
    found: list[RunHandle] = []
    refused: OrchestrateError | None = None
    for run in ft.active_runs():
        try:
            require_reachable(ft, run.record)
        except OrchestrateError as error:
            if str(error) != str(refused):
                warn(f"{run.id} is not watched: {error.message}")
            refused = error
        else:
            found.append(run)
    if refused is not None and not found:
        raise refused
    if not found:
        note("no run is active")
    return found


def require_reachable(ft: Orchestrator, run: Run) -> None:
    """Check that the configured host is the one that the run was submitted to. Raises `UsageError` if it is
    not, and `SetupError` if the API key is missing."""
    backend = ft.ready(run.provider)
    if backend.host != run.host:
        raise UsageError(
            f"run {run.id} was submitted to {run.host}, but {run.provider} is now configured for "
            f"{backend.host}",
            fix="use the configuration and key that the run was submitted with",
        )


def _well(run: Run) -> bool:
    if watching.left(run) is not None:
        return False
    return run.status is JobStatus.SUCCEEDED or (not run.status.terminal and run.phase not in UNSENT)


def _show_stopped(ended: WatchStopped) -> None:
    watchers = ended["stopped"]
    note(
        f"{count(watchers, 'background watcher')} stopped. The runs continue"
        if watchers
        else "no background watcher is running"
    )


def _leave(handles: list[RunHandle], interrupt: KeyboardInterrupt, *, in_background: bool) -> None:
    ids = " ".join(h.id for h in handles[:_POLLED_AT_ONCE]) if len(handles) <= _POLLED_AT_ONCE else ""
    err.print(f"\ninterrupted. The run continues. To follow it again: orchestrate watch {ids}".rstrip())
    if in_background:
        err.print("still watching in the background. To stop: orchestrate watch --stop")
    sys.stderr.flush()
    # Exit without waiting for a watcher thread that may be in a request, because its result is not needed.
    os._exit(128 + next(iter(interrupt.args), signal.SIGINT))


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End the view on SIGTERM as on Ctrl-C. The runs continue."""
    del frame
    raise KeyboardInterrupt(number)
