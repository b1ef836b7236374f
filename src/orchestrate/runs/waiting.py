"""A run waited for: its host asked again and again, and whoever wants to know told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrate.notebook.output import Output
from orchestrate.types import Event, JobStatus, Run

if TYPE_CHECKING:
    from orchestrate.runs.tracked import TrackedRun
    from orchestrate.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Told:
    """Who is told while a run is waited for. `live`: the cell of a notebook too."""

    on_event: Callable[[Event], object] | None = None
    on_change: Callable[[Any], object] | None = None
    live: bool = True


def wait(
    ws: Workspace,
    handle: TrackedRun,
    told: Told,
    *,
    poll_s: float | None = None,
    timeout_s: float | None = None,
) -> Run:
    """See `TrackedRun.wait`."""
    from orchestrate.runs.submitting.settling import Settler
    from orchestrate.runs.watching.polling import Pace
    from orchestrate.store.transitions import left

    near = handle.record.sandbox or handle.provider.config.base_url is None
    pace = Pace(poll_s, near=near)
    output = Output() if told.live else None
    started = time.monotonic()
    seen = 0
    while True:
        record = pace.attempt(handle.refresh) or handle.record
        if record.status is JobStatus.PAUSED:
            pace.attempt(partial(Settler(ws.store, handle.provider).restart, record))
        events = handle.events()
        for event in events[seen:]:
            if told.on_event:
                told.on_event(event)
        seen = len(events)
        if told.on_change:
            told.on_change(handle)
        if output is not None:
            output.show(handle)
        if record.status.terminal or left(record) is not None:
            return record
        if timeout_s is not None and time.monotonic() - started > timeout_s:
            raise TimeoutError(
                f"run {handle.id} is still {record.status.value} after {timeout_s:g} s; it goes on"
            )
        pace.sleep()
