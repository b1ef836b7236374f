"""Detects stalled runs: runs in progress without updates for far longer than usual.

Hosted jobs can stay `running` and be billed without an error. The time without updates is measured with
this machine's uptime clock, from when the machine first saw the run in its current state, so a wrong system
clock has no effect. The usual durations are computed from the times that hosts reported for earlier runs.
Runs that are queued, paused or being canceled don't count. The check that finds a stall never cancels the
run, because this machine may have slept overnight. Only a later check cancels a run that is still unchanged.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import Any

import msgspec

from orchestrate.core.progress import cost_so_far
from orchestrate.profile import this_machine
from orchestrate.providers.base import Provider
from orchestrate.runs.submitting.submit import Submitter
from orchestrate.store import stamp, transitions
from orchestrate.store.store import DEFAULT_TIMING, Store, Timing
from orchestrate.text import count, duration, money
from orchestrate.types import Event, Feature, JobStatus, Run

EVENT = "stalled"
"""Type of the event that reports a stall."""
FACTOR = 5
"""Multiple of the usual gap after which a run counts as stalled."""
LEAST_S, UNKNOWN_S = 15 * 60.0, 60 * 60.0
"""Shortest time without updates, in seconds, that counts as a stall: `LEAST_S` if there are enough earlier
runs to compare with, and `UNKNOWN_S` otherwise. Both are our own choice, because no host publishes such a
limit."""
ENOUGH, _MOST = 3, 20
"""`ENOUGH` is the minimum number of earlier runs for computing the usual durations. `_MOST` limits both the
number of earlier runs to read and the number of possible stalls that one sync checks."""
_PHASES = (JobStatus.VALIDATING, JobStatus.RUNNING, JobStatus.FINALIZING)
_LATER_S = 600.0
_ASLEEP_S = 60.0
"""Maximum time between checks of a run on this machine. After a longer gap, the machine may have been
asleep."""


class Usual(msgspec.Struct, frozen=True, kw_only=True):
    """The usual duration of a phase, computed from successful runs on a backend."""

    runs: int
    phase_s: float | None = None
    """Median duration of the phase in seconds."""
    silent_s: float | None = None
    """Longest gap between two updates of a run in seconds: the median over earlier runs. Gaps of earlier runs
    with fewer tokens than the current run are scaled up."""


class Stall(msgspec.Struct, frozen=True, kw_only=True):
    """A run without updates for longer than `limit_s` seconds."""

    run: str
    provider: str
    status: JobStatus
    silent_s: float
    limit_s: float
    usual: Usual
    message: str
    new: bool
    """True if this check is the first to find the stall."""
    confirmed: bool
    """True if an earlier check also found the stall."""
    cancelled: bool = False


@dataclass(frozen=True)
class Stalls:
    """Finds stalled runs on one backend. `fetch` updates a run's events and metrics. `after_s` overrides the
    limit derived from earlier runs."""

    store: Store
    provider: Provider
    fetch: Callable[[Run], None]
    after_s: float | None = None

    def found(self, runs: Iterable[Run]) -> Iterator[Stall]:
        """Yield the stalls, and add an event to the run for each new one. Raises `ProviderError` if the
        host cannot be reached."""
        under_way = {run.id: run for run in runs if run.status in _PHASES}
        least = LEAST_S if self.after_s is None else self.after_s
        here = self.provider.profile.kind == this_machine().kind
        marks = {run.id: stamp(run.updated_at) for run in under_way.values()}
        silences = self.store.watching.silences(marks, gap_s=max(least / 2, _ASLEEP_S) if here else None)
        late = [run_id for run_id, silence in silences.items() if silence.seconds >= least]
        for run_id in random.sample(late, min(len(late), _MOST)):
            run, silence = under_way[run_id], silences[run_id]
            usual = self.usual(run)
            limit = self.limit_s(run, usual)
            if silence.seconds < limit:
                continue
            self.fetch(run)  # resets the time without updates if there is anything new
            if not self.store.watching.silences({run_id: marks[run_id]})[run_id].seconds:
                continue
            yield self._reported(run, silence.seconds, limit, usual, silence.reported_s)

    def limit_s(self, run: Run, usual: Usual) -> float:
        """Return the number of seconds without progress after which this run counts as stalled."""
        if self.after_s is not None:
            return self.after_s
        least = UNKNOWN_S if usual.runs < ENOUGH or usual.silent_s is None else LEAST_S
        return max(least, FACTOR * max(usual.silent_s or 0.0, _gap(_signs(self.store, run))))

    def usual(self, run: Run) -> Usual:
        """Return the usual duration of the run's current phase, computed from the latest successful runs. If
        there are enough runs of the same model, uses only those."""
        past = self.store.runs.matching(
            provider=run.provider, sandbox=run.sandbox, status=JobStatus.SUCCEEDED, limit=10 * _MOST
        )
        alike = [one for one in past if one.model == run.model]
        phases: list[float] = []
        gaps: list[float] = []
        for one in (alike if len(alike) >= ENOUGH else past)[:_MOST]:
            signs = _signs(self.store, one, run.status)
            if len(signs) > 1:
                phases.append((signs[-1] - signs[0]).total_seconds())
                gaps.append(_gap(signs) * max(1.0, _size(run) / _size(one)))
        if not gaps:
            return Usual(runs=0)
        return Usual(runs=len(gaps), phase_s=median(phases), silent_s=median(gaps))

    def _reported(
        self, run: Run, silent_s: float, limit: float, usual: Usual, reported_s: float | None
    ) -> Stall:
        text = _text(self.provider, run, silent_s, limit, usual)
        mark = hashlib.sha256(stamp(run.updated_at).encode()).hexdigest()[:12]
        data = {"silent_s": silent_s, "limit_s": limit}
        now = self.store.clock.now()
        # The id is the same in every process, so each stall is stored only once.
        points, last = self.store.history.last_points([run.id]), self.store.history.last_event_id(run.id)
        step = points[run.id].step if run.id in points else 0
        id = f"orchestrate-stalled-{mark}-{step}-{last or ''}"
        event = Event(id=id, at=now, level="warning", type=EVENT, message=text, data=data)
        new = bool(self.store.history.add_events(run.id, [event], from_host=False))
        self.store.watching.report_silence(run.id)
        return Stall(
            run=run.id,
            provider=run.provider,
            status=run.status,
            silent_s=silent_s,
            limit_s=limit,
            usual=usual,
            message=text,
            new=new,
            confirmed=reported_s is not None and reported_s >= min(limit / 4, _LATER_S),
        )

    def end(self, stall: Stall, timing: Timing = DEFAULT_TIMING) -> Stall:
        """Cancel a run whose stall is confirmed, unless its host now reports progress or the job is ending.
        Raises `ProviderError` if the host cannot be reached."""
        able = Feature.CANCEL in self.provider.features and stall.status is not JobStatus.FINALIZING
        if not (stall.confirmed and able):
            return stall
        before = self.store.runs.get(stall.run)
        job, now = self.provider.get(before.handle), self.store.clock.now()
        run = self.store.runs.apply(stall.run, lambda run: transitions.observed(run, job, now))
        if run.updated_at != before.updated_at or run.status is not stall.status:
            return stall
        Submitter(self.store, self.provider, timing).cancel(run)
        return msgspec.structs.replace(stall, cancelled=True)


def message(stall: Stall) -> dict[str, Any]:
    """Build the notification about a stall."""
    return {
        "id": f"{stall.run}-stalled-{hashlib.sha256(stall.message.encode()).hexdigest()[:12]}",
        "type": "run.stalled",
        "text": f"{stall.run}: {stall.message}",
        "run": stall.run,
        "provider": stall.provider,
        "status": stall.status.value,
        "silent_s": round(stall.silent_s),
        "limit_s": round(stall.limit_s),
    }


def _text(provider: Provider, run: Run, silent_s: float, limit: float, usual: Usual) -> str:
    known = f"no earlier run on {provider.profile.title} to compare with"
    if usual.silent_s is not None and usual.phase_s is not None:
        known = (
            f"usual: {duration(usual.silent_s)} between updates and {duration(usual.phase_s)} in this phase, "
            f"as medians of {count(usual.runs, 'earlier run')}"
        )
    cost = cost_so_far(run)
    billed = f" Cost so far: about {money(cost)}." if cost else ""
    way = f"To end it: orchestrate cancel {run.id}"
    if Feature.CANCEL not in provider.features:
        way = (
            f"{provider.profile.title} has no API to cancel a run. Check the run in its console, and cancel "
            "it there if needed"
        )
    return (
        f"{provider.profile.title} reports {run.raw_status or run.status.value}, but no new step, event "
        f"or metric has arrived for {duration(silent_s)}. The limit is {duration(limit)} "
        f"({known}).{billed} {way}"
    )


def _size(run: Run) -> float:
    return float((run.quote and run.quote.billed_tokens) or run.trained_tokens or 1)


def _gap(signs: list[datetime]) -> float:
    return max(((after - before).total_seconds() for before, after in pairwise(signs)), default=0.0)


def _signs(store: Store, run: Run, phase: JobStatus | None = None) -> list[datetime]:
    """List the times at which a phase showed activity, from its start to its end, or until now if it is in
    progress."""
    wanted = phase or run.status
    steps = store.history.transitions(run.id)
    into = [step.at for step in steps if step.status is wanted]
    past = [step.at for step in steps if into and step.at > into[-1] and step.status is not wanted]
    if wanted is not JobStatus.RUNNING:
        return [into[0], past[0]] if phase and into and past else []
    begin = run.started_at or (into[0] if into else None)
    end = run.finished_at or (past[0] if past else None)
    if begin is None or (phase and end is None):
        return []
    points = [point.at for point in store.history.metrics(run.id) if point.at]
    points += [e.at for e in store.history.events(run.id) if not e.id.startswith("orchestrate-")]
    between = [at for at in points if at > begin and (end is None or at < end)]
    return sorted([begin, *between, *([end] if phase and end else [])])
