"""The commands `worker` and `recover`."""

from __future__ import annotations

import contextlib
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from orchestrate.commands.terminal.command import HostOutput, Output, command
from orchestrate.commands.terminal.console import confirm, note, orchestrator, out, warn
from orchestrate.commands.terminal.notify import NotifyOptions
from orchestrate.errors import HostUnavailable, MissingKey
from orchestrate.runs import watch as watching
from orchestrate.text import count, joined, left_out

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrate.api.orchestrator import Orchestrator
    from orchestrate.runs.syncing.recovery import Choose, OrphanJob, Recovery
    from orchestrate.runs.syncing.sweep import Failure, SyncReport


class Recovered(TypedDict):
    recovery: Recovery
    sync: SyncReport


@command
def worker(
    context: typer.Context,
    *,
    provider: Annotated[
        str, typer.Option("--provider", "-p", help="Comma-separated backends to watch.", metavar="NAMES")
    ] = "all",
    channels: NotifyOptions,
    webhooks: Annotated[
        int | None,
        typer.Option(
            "--webhooks",
            metavar="PORT",
            help="Receive OpenAI's webhooks on this loopback port (POST /openai).",
        ),
    ] = None,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="Exit when no run is active.")] = False,
) -> Output[SyncReport] | None:
    """Watch the runs of this store until interrupted. Any number of workers can share one store."""
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda _signal, _frame: stop.set())
    with orchestrator(context) as ft, contextlib.ExitStack() as stack:
        ft.settings = channels.over(ft.settings)
        only = None if provider == "all" else ft.backends(provider)
        watcher = watching.watcher(ft, only=only)
        if webhooks is not None:
            for url in stack.enter_context(watching.webhooks(ft, webhooks, watcher.wake)):
                note(f"receiving webhooks on {url}")

        watched = "all backends" if provider == "all" else provider
        runs = [r for r in ft.active_runs() if only is None or r.record.provider in only]
        note(f"watching {count(len(runs), 'active run')} and any new ones on {watched}")
        note(f"notifying {ft.settings.notify.description}. Ctrl-C stops watching. Runs continue")

        def shown(reports: list[SyncReport]) -> None:
            for problem in watcher.problems:
                warn(problem)
            for report in reports:
                if report.changed or report.adopted or report.not_made or report.alarms or report.hosting:
                    Output(report, lambda report: out.print(str(report))).line()

        watcher.run(stop, until_idle=until_idle, on_turn=shown)
    if stop.is_set():
        note("stopped watching. The runs continue")


@command
def recover(
    context: typer.Context,
    provider: Annotated[
        str, typer.Option("--provider", "-p", help="Comma-separated backends to search.", metavar="NAMES")
    ] = "all",
    run: Annotated[
        list[str] | None,
        typer.Argument(help="Recover these jobs, by id.", metavar="[RUN]...", show_default=False),
    ] = None,
    all_of_them: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Recover all jobs, including your colleagues' jobs, without asking for confirmation.",
        ),
    ] = False,
) -> Iterator[HostOutput[Recovered]]:
    """Rebuild a lost store from the jobs that Orchestrate created on the hosts. Asks for confirmation first,
    because some jobs in a shared account may belong to colleagues. Exit code 4 means that a backend you
    named, or have a key for, could not be searched."""
    with orchestrator(context) as ft:
        report = watching.recover(ft, provider, None if all_of_them else _choice(run))
        synced = ft.sync()
        unsearched = [f for f in report.failures if provider != "all" or _has_key(ft, f.provider)]
    found = {*report.recovered, *report.adopted, *report.known}
    unfound = [name for name in run or () if name not in found]
    incomplete = report.doubled or unfound or (report.offered and not run)
    code = 1 if incomplete else HostUnavailable.exit_code if unsearched else 0
    view, sandbox = partial(_show, unsearched=unsearched), ft.settings.hosts.sandboxed
    yield HostOutput(Recovered(recovery=report, sync=synced), view, code, sandbox=sandbox)
    for name in unfound:
        warn(f"no job of {name} was found, so it was not recovered")
    if report.unpriced:
        runs = count(len(report.unpriced), "run")
        warn(f"the budget does not include the cost of {runs} yet, because the host has not reported it:")
        for run_id in report.unpriced:
            note(f"  {run_id}: {report.reasons[run_id]}")
    if report.left_out:
        warn(left_out(report.left_out))
    if report.offered:
        there = "" if provider == "all" else f" -p {provider}"
        command = f"orchestrate recover{there} --all   (or name the runs)"
        note(f"{count(len(report.offered), 'job')} not recovered. To recover them: {command}")


def _show(recovered: Recovered, unsearched: list[Failure]) -> None:
    report = recovered["recovery"]
    for verb in ("recovered", "adopted"):
        for run_id in getattr(report, verb):
            out.print(f"{verb} {run_id}")
    for ref in report.doubled:
        warn(f"{ref} has more than one job. To see them: orchestrate events {ref}")
    for failure in report.failures:
        print_line = warn if failure in unsearched else note
        print_line(f"{failure.provider} could not be fully searched: {failure.message}")
    for run_id, words in report.counted.items():
        note(f"{run_id} counts {words}")
    for run_id in report.deployments:
        warn(f"{run_id} is deployed and billed. To take it down: orchestrate undeploy {run_id}")
    unseen = dict.fromkeys(failure.provider for failure in unsearched)
    gap = f"; {joined(list(unseen))} could not be searched" if unseen else ""
    note(f"{count(len(report.recovered), 'run')} recovered, {len(report.known)} already known{gap}")


def _has_key(ft: Orchestrator, name: str) -> bool:
    try:
        ft.ready(name)
    except MissingKey:
        return False
    return True


def _choice(named: list[str] | None) -> Choose:
    """Return a function that picks the named runs, or shows all runs and asks for confirmation."""

    def choose(lost: list[OrphanJob]) -> list[str]:
        if named:
            return named
        for job in lost:
            when = f"{job.created_at:%Y-%m-%d %H:%M}" if job.created_at else "at an unknown time"
            note(f"{job.run_id}  {job.provider}  {job.status}  {job.model or ''}  {when}  in {job.account}")
        question = f"Recover {count(len(lost), 'run')} into this store? Some may belong to colleagues"
        return [job.run_id for job in lost] if confirm(question, yes=False) else []

    return choose
