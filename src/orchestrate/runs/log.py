"""Log runs to an experiment tracker: ended runs once, active runs until they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from orchestrate.runs import privacy, trackers
from orchestrate.runs.trackers.records import Exporter as Exporter
from orchestrate.runs.trackers.records import Logged

if TYPE_CHECKING:
    from orchestrate.runs.tracked import TrackedRun
    from orchestrate.workspace import Workspace

opened = trackers.opened


def log(ft: Workspace, runs: Sequence[TrackedRun], to: Exporter) -> list[Logged]:
    """Log the stored state of runs to a tracker. Raises `UsageError` if a private run would be sent to a
    server that is not your own."""
    for run in runs:
        if to.address is not None and privacy.is_private(run.record):
            privacy.require_near(ft.settings, run.id, "logging", to.address)
    return [to.write(trackers.story(ft.store, run.record)) for run in runs]


def follow(
    ft: Workspace,
    runs: Sequence[TrackedRun],
    to: Exporter,
    *,
    on_values: Callable[[Logged], object] = lambda _: None,
    poll_s: float | None = None,
) -> list[Logged]:
    """Log each run until it ends, and call `on_values` whenever new values were logged. If a host does not
    respond, the request is retried. If the tracker does not respond, an error is raised. Returns one `Logged`
    record per run with the total number of values logged."""
    from orchestrate.runs.watching.polling import PollingPace

    pace = PollingPace(poll_s)
    given: dict[str, Logged] = {}
    going = list(runs)
    while going:
        for run in list(going):
            pace.attempt(run.refresh)
            [found] = log(ft, [run], to)
            if found.values:
                pace.changed()
                on_values(found)
            before = given[run.id].values if run.id in given else 0
            given[run.id] = Logged.from_dict(found.to_dict() | {"values": before + found.values})
            if run.status.terminal:
                going.remove(run)
        if going:
            pace.sleep()
    return list(given.values())
