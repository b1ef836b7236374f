"""One user's machine under the fault tests: a store, a home, backends on a sandbox, the count at the end."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from tests import command
from tests.faults.books import HostJob, jobs_on_host
from tests.faults.submitting import BACKENDS, backend, spec_for, submit, submit_once, write_rows
from tests.paths import ROOT

from orchestrate.data import TrainingData
from orchestrate.local import run as rundir
from orchestrate.providers.base import Provider
from orchestrate.runs.submitting.submit import Submitter
from orchestrate.runs.syncing.sweep import sync
from orchestrate.store import Clock
from orchestrate.store.store import CrashPoint, Store, Timing, pass_by
from orchestrate.types import Run, SubmitPhase

HOSTED = [name for name in BACKENDS if name != "local"]
CREATE = {"openai": "fine_tuning/jobs$", "together": "fine-tunes$", "fireworks": "FineTuningJobs$"}
SETTLED = Timing(send_limit_s=0.2, requests=0, margin_s=0.2, lease_s=1.0, patience_s=5.0)
"""Of the parent, which knows that the child is dead and no request is under way."""
LATE = replace(SETTLED, margin_s=120.0)
"""The same for a request that certainly arrives, late, on a machine that may be busy."""
UNHURRIED = replace(SETTLED, send_limit_s=60.0, lease_s=60.0)
"""For sending: a machine that is busy, or a point that takes its time, is no process that slept."""


class World:
    """`hosts` is a running sandbox that other tests may have used; only the jobs made since count here."""

    def __init__(
        self, folder: Path, hosts: Any, url: str | None = None, *, clock: Clock | None = None
    ) -> None:
        self.folder, self.hosts = folder, hosts
        self.home = folder / "home"
        self.home.mkdir()
        self.url = url or f"sqlite:///{folder}/store/runs.sqlite3"
        self.rows = write_rows(folder / "rows.jsonl")
        self.timing = SETTLED
        self.store = Store.open(self.url, clock=clock)
        self.providers: dict[str, Provider] = {}
        self._before = {job.id for name in BACKENDS for job in jobs_on_host(hosts, self.home, name)}

    @property
    def env(self) -> dict[str, str]:
        return self.hosts.env

    def provider(self, name: str) -> Provider:
        if name not in self.providers:
            self.providers[name] = backend(name, self.home, self.env)
        return self.providers[name]

    def data(self) -> TrainingData:
        return TrainingData.open(str(self.rows))

    def child(self, name: str, point: str = "none", action: str = "kill") -> command.Process:
        """A submit in another process. What it reaches is in `marks`."""
        self.marks = self.home / f"marks-{time.monotonic_ns()}"
        log = self.home / "child.log"
        return command.start(
            submit_once,
            [self.url, name, str(self.rows), str(self.marks), point, action],
            cwd=ROOT,
            env={**os.environ, **self.env},
            streams=[Path(os.devnull), log, log],
        )

    def submit(self, name: str, *, timing: Timing | None = None, reached: CrashPoint = pass_by) -> Run:
        provider, spec = self.provider(name), spec_for(self.rows)
        return submit(self.store, provider, spec, self.data(), timing=timing or UNHURRIED, reached=reached)

    def sync(self) -> Any:
        return sync(self.store, self.provider, timing=self.timing)

    def heal(self) -> None:
        """What a user does after a crash: sync until all is known, then go on with what was not sent."""
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            report = self.sync()
            waiting = [
                r for r in self.store.runs.matching(active=True) if r.phase is not SubmitPhase.SUBMITTED
            ]
            for run_id in (*report.unsent, *report.not_made):
                run = self.store.runs.get(run_id)
                if not run.status.terminal:
                    Submitter(self.store, self.provider(run.provider), UNHURRIED).resume(run, self.data())
            if not waiting:
                return
            time.sleep(0.05)
        raise AssertionError(f"not settled: {waiting}")

    def jobs(self, name: str) -> list[HostJob]:
        """The host's own books, since this world began."""
        return [job for job in jobs_on_host(self.hosts, self.home, name) if job.id not in self._before]

    def creates(self, name: str) -> int:
        """Create requests so far; a host's price estimate has a path of its own."""
        sent = self.hosts.requests(name, method="POST")
        return sum(re.search(CREATE[name], request["path"]) is not None for request in sent)

    def count(self, name: str, *, by_proxy: int = 0) -> dict[str, int]:
        """Jobs on the host against runs in the store. A job is lost when no run has it and no alarm names it;
        a run is lost when it should have a job and has none. `by_proxy` jobs were doubled by another's hand,
        and are only no fault of ours when an alarm names them."""
        runs = self.store.runs.matching(provider=name)
        tracked = {run.job_id for run in runs if run.job_id}
        alarmed = {
            job for run in runs for alarm in self.store.history.alarms(run.id) for job in alarm.data["others"]
        }
        there = self.jobs(name)
        ids, refs = {job.id for job in there}, [job.ref for job in there]
        wanted = [run for run in runs if run.phase is not SubmitPhase.REFUSED]
        return {
            "runs": len(runs),
            "jobs": len(there),
            "alarms": len(alarmed & ids),
            "lost": sum(job_id not in tracked | alarmed for job_id in ids)
            + sum(run.job_id not in ids for run in wanted),
            "doubled": len(refs) - len(set(refs)) - min(by_proxy, len(alarmed & ids)),
        }

    def close(self) -> None:
        for run in rundir.runs(self.home / "local" / "runs"):
            if run.alive():  # asked to end, it would import torch first
                os.kill(json.loads((run.path / "worker.json").read_bytes())["pid"], signal.SIGKILL)
        for provider in self.providers.values():
            provider.close()
        self.store.close()


Counted = Callable[..., dict[str, int]]
