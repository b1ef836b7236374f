"""A soak: for some time everything goes wrong at once, then the hosts' own books are held against the store.

Processes submit, resume, cancel, sync, refresh and watch at random over the official SDKs and a sandbox; they
are killed and stopped at random points and moments, their disk is full, their wall clock is a day off, the
hosts lose and repeat requests, and a Postgres store is restarted. Afterwards the faults end, `sync` and
`resume` do what a user does, and `audit` counts: a job that no run has is lost, a second job that we asked
for is doubled. The truth is the sandbox's own table of jobs, never what our clients read.
"""

from __future__ import annotations

import json
import os
import random
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from tests.faults.books import jobs_on_host
from tests.faults.soak_worker import TIMEOUT_S, TIMING
from tests.faults.submitting import BACKENDS, backend, write_rows
from tests.paths import ROOT

from orchestrate.data import TrainingData
from orchestrate.errors import OrchestrateError
from orchestrate.providers.base import Provider
from orchestrate.runs.submitting.submit import Submitter, cancel
from orchestrate.runs.syncing.sweep import sync
from orchestrate.sandbox.jobs import Durations
from orchestrate.store.store import POINTS, Store
from orchestrate.types import Run, SubmitPhase

WORKER = "tests.faults.soak_worker"
HOSTED = [name for name in BACKENDS if name != "local"]
CREATE = {"openai": "fine_tuning/jobs$", "together": "fine-tunes$", "fireworks": "FineTuningJobs$"}
WORDS = {
    "openai": ("validating_files", "defrosting", "queued"),
    "together": ("pending", "defrosting", "queued"),
    "fireworks": ("JOB_STATE_CREATING", "JOB_STATE_DEFROSTING", "JOB_STATE_PENDING"),
}
"""Early words come as late answers do, behind newer ones."""
OPS = ("submit",) * 5 + ("resume",) * 2 + ("sync",) * 2 + ("cancel", "refresh", "watch")
SAME_REQUEST_S = 1.0
"""Jobs of one ref made within this time are one request that a proxy sent twice; ours are further apart."""
LOCAL_EVERY_S = 25.0
WAITS = Durations(training=30.0)
"""For the hosts: some jobs end while others are still cancelled."""
LONGEST_S = 40.0


@dataclass(frozen=True)
class Worker:
    """One that obeys orders, each in a process of its own."""

    orders: BinaryIO
    answers: BinaryIO

    def begin(self, order: dict[str, Any]) -> int:
        """The id of the process; its status is the next line of `answers`."""
        self.orders.write(json.dumps(order).encode() + b"\n")
        return int(self.answers.readline())

    def obey(self, order: dict[str, Any]) -> int:
        """The exit code; below zero the signal that ended it."""
        self.begin(order)
        return os.waitstatus_to_exitcode(int(self.answers.readline()))


@contextmanager
def workers_of(folder: Path, url: str, env: Mapping[str, str], slots: int) -> Iterator[list[Worker]]:
    orders, answers = ([os.pipe() for _ in range(slots)] for _ in range(2))
    theirs = [end for (there, _), (_, back) in zip(orders, answers, strict=True) for end in (there, back)]
    pairs = [f"{there}:{back}" for (there, _), (_, back) in zip(orders, answers, strict=True)]
    with (folder / "worker.err").open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", WORKER, folder, url, *pairs],
            cwd=ROOT,
            env={**os.environ, **env},
            stderr=errors,
            pass_fds=theirs,
        )
    for end in theirs:
        os.close(end)
    try:
        with ExitStack() as stack:
            yield [
                Worker(
                    stack.enter_context(os.fdopen(out, "wb", 0)), stack.enter_context(os.fdopen(back, "rb"))
                )
                for (_, out), (back, _) in zip(orders, answers, strict=True)
            ]
    finally:
        code = process.wait(60)  # it ends with its orders
    assert code == 0


class Soak:
    """`hosts` is a running sandbox; `postgres`, when the store is on one, can be stopped and started."""

    def __init__(self, folder: Path, url: str, hosts: Any, *, seed: int, slots: int, postgres: Any = None):
        self.folder, self.url, self.hosts, self.postgres = folder, url, hosts, postgres
        self.seed, self.slots = seed, slots
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        limits = "".join(f"[hosts.{name}]\ntimeout_s = {TIMEOUT_S}\n" for name in BACKENDS)
        (self.home / "orchestrate.toml").write_text(limits)
        self.rows = [write_rows(folder / f"rows-{n}.jsonl", 12 + n) for n in range(3)]
        self.env = {**os.environ, **hosts.env}
        self.done = Counter[str]()
        self.faults = Counter[str]()
        self.rounds = 0
        self._local_at = 0.0
        self._lock = threading.Lock()
        Store.open(url).close()

    def run(self, seconds: float) -> None:
        """Lets everything go wrong for so long, each time in another order."""
        self.rounds += 1
        self.until = time.monotonic() + seconds
        jobs: list[Callable[[], None]] = [self._break_hosts]
        if self.postgres is not None:
            jobs.append(self._restart_postgres)
        self.broken: list[BaseException] = []
        with workers_of(self.folder, self.url, self.env, self.slots) as workers:
            jobs += [lambda n=n, worker=worker: self._slot(n, worker) for n, worker in enumerate(workers)]
            threads = [threading.Thread(target=self._guarded, args=(job,)) for job in jobs]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if self.broken:
            raise self.broken[0]

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self.broken.append(error)

    # -- processes -----------------------------------------------------------------------------------------

    def _slot(self, number: int, worker: Worker) -> None:
        chance = random.Random(f"{self.seed}-{self.rounds}-{number}")
        while time.monotonic() < self.until:
            order = self._order(chance)
            self._befall(chance, order, worker.begin(order), worker.answers)

    def _order(self, chance: random.Random) -> dict[str, Any]:
        order: dict[str, Any] = {"op": chance.choice(OPS), "seed": chance.random()}
        order["days"] = chance.choice((0, 0, 0, -1, 1))
        if order["op"] == "submit":
            order |= {"backend": chance.choice(HOSTED), "rows": str(chance.choice(self.rows))}
            with self._lock:
                if time.monotonic() - self._local_at > LOCAL_EVERY_S:
                    self._local_at, order["backend"] = time.monotonic(), "local"
        if order["op"] in ("submit", "resume") and chance.random() < 0.4:
            order |= {"point": chance.choice(POINTS), "action": chance.choice(("kill", "kill", "stop"))}
        elif self.postgres is None and chance.random() < 0.15:
            order["full_at"] = chance.randint(1, 25)
        return order

    def _befall(self, chance: random.Random, order: dict[str, Any], pid: int, answers: BinaryIO) -> None:
        """Waits for the child to end, and meanwhile does to it what chance wants."""
        process = os.pidfd_open(pid) if _alive(pid) else None
        plan = self._plan(chance, order)
        with selectors.DefaultSelector() as selector:
            selector.register(answers, selectors.EVENT_READ)
            if order.get("action") == "stop":  # the plan begins when it has stopped itself
                while not selector.select(0.1) and not _stopped(pid):
                    pass
            begun = time.monotonic()
            for at, what in plan:
                if selector.select(max(0.0, begun + at - time.monotonic())):
                    break
                if process is not None:
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(process, what)
        status = int(answers.readline())
        if process is not None:
            os.close(process)
        with self._lock:
            self.done[order["op"]] += 1
            if os.WIFSIGNALED(status):
                self.done["killed"] += 1
            elif code := os.WEXITSTATUS(status):
                self.done[f"exit {code}"] += 1

    def _plan(self, chance: random.Random, order: dict[str, Any]) -> list[tuple[float, signal.Signals]]:
        if order.get("action") == "stop":
            # Past its lease, one time in three past the settle time too.
            longer = chance.random() < 0.33
            again = chance.uniform(13.0, 16.0) if longer else chance.uniform(0.5, 4.0)
            return [(again, signal.SIGCONT), (LONGEST_S, signal.SIGKILL)]
        kind, at = chance.random(), chance.uniform(0.0, 1.5)
        if kind < 0.25:
            return [(at, signal.SIGKILL)]
        if kind < 0.4:
            # Short of the margin: a longer stop between the last look at the clock and the send is the one
            # gap that no client can close.
            again = at + chance.uniform(0.1, 2.0)
            return [(at, signal.SIGSTOP), (again, signal.SIGCONT), (LONGEST_S, signal.SIGKILL)]
        return [(LONGEST_S, signal.SIGKILL)]

    # -- hosts and store -----------------------------------------------------------------------------------

    def _break_hosts(self) -> None:
        chance = random.Random(f"{self.seed}-{self.rounds}-hosts")
        while time.monotonic() < self.until:
            name = chance.choice(HOSTED)
            if len(self.hosts.fronts[name].faults.waiting()) < 4:
                kind, fields = self._fault(chance, name)
                self.faults[kind] += 1
                self.hosts.fault(name, kind, **fields)
            time.sleep(chance.uniform(0.05, 0.5))
            if chance.random() < 0.03:
                self.hosts.clear_faults()

    def _fault(self, chance: random.Random, name: str) -> tuple[str, dict[str, Any]]:
        creating = {"method": "POST", "path": CREATE[name]}
        reading = {"method": "GET", "path": chance.choice(("jobs|Jobs|fine-tunes", "."))}
        kind, where = chance.choice(
            [
                *((kind, creating) for kind in ("lost_request", "lost_answer", "half_body", "html")),
                *((kind, creating) for kind in ("html_after", "timeout", "bad_json", "duplicate")),
                *((kind, creating) for kind in ("late_commit", "slow", "rate_limit", "error") * 2),
                *((kind, reading) for kind in ("lost_answer", "half_body", "html", "bad_json", "slow")),
                *((kind, reading) for kind in ("error", "rate_limit", "list_lag", "unknown_status") * 2),
                *((kind, {"method": "POST"}) for kind in ("lost_answer", "lost_request", "error")),
            ]
        )
        fields: dict[str, Any] = dict(where)
        fields["count"] = chance.choice((1, 1, 2, 5))
        match kind:
            case "late_commit" | "slow" | "list_lag":
                fields["delay_s"] = chance.uniform(0.2, 3.0)
            case "rate_limit":
                fields["retry_after"] = chance.choice((0.05, 0.5, 90.0))
            case "error":
                fields["status"] = chance.choice((400, 403, 408, 409, 500, 502, 503))
                if where is reading:
                    fields["status"] = chance.choice((500, 502, 503, 408))
            case "unknown_status":
                fields["word"] = chance.choice(WORDS[name])
            case _:
                pass
        return kind, fields

    def _restart_postgres(self) -> None:
        chance = random.Random(f"{self.seed}-{self.rounds}-postgres")
        while (left := self.until - time.monotonic()) > 8.0:
            time.sleep(min(chance.uniform(4.0, 15.0), left - 6.0))
            self.postgres.stop(chance.choice(("immediate", "fast")))
            time.sleep(chance.uniform(0.1, 1.5))
            self.postgres.start()
            self.faults["postgres restarted"] += 1

    # -- afterwards ----------------------------------------------------------------------------------------

    def settle(self, patience_s: float = 240.0) -> None:
        """What a user does: sync until all is known, go on with what was not sent or cancel it, and wait for
        the ends. Raises `AssertionError` when that does not come to an end."""
        self.hosts.clear_faults()
        chance, deadline = random.Random(f"{self.seed}-after"), time.monotonic() + patience_s
        with _Session(self) as session:
            while unknown := session.unknown():
                assert time.monotonic() < deadline, f"not settled: {unknown[:3]}"
                sync(session.store, session.provider, timing=TIMING)
                for run in session.unknown():
                    if run.phase in (SubmitPhase.INTENT, SubmitPhase.UPLOADED):
                        session.end_or_go_on(run, go_on=chance.random() < 0.7)
                time.sleep(0.5)
            # A worker of this machine ends when it next looks at what is asked of it.
            while running := session.running_though_cancelled():
                assert time.monotonic() < deadline, f"cancelled, and still running: {running[:3]}"
                time.sleep(0.5)
            self.hosts.skip(7200.0)
            for run in session.store.runs.matching(provider="local", active=True):
                cancel(session.store, session.provider("local"), run)
            while still := session.store.runs.matching(closed=False):
                assert time.monotonic() < deadline, f"not ended: {still[:3]}"
                sync(session.store, session.provider, timing=TIMING)
                time.sleep(0.2)

    def audit(self) -> dict[str, dict[str, int]]:
        """By backend: runs in the store, jobs on the host, lost, doubled, doubled by a proxy, wrong ends."""
        with Store.open(self.url) as store:
            assert store.verify() == []
            runs = {run.ref: run for run in store.runs.matching()}
            alarmed = {
                job for run in runs.values() for e in store.history.alarms(run.id) for job in e.data["others"]
            }
        return {name: self._books(name, runs, alarmed) for name in BACKENDS}

    def _books(self, name: str, runs: dict[str, Run], alarmed: set[str]) -> dict[str, int]:
        on_host: dict[str, list[tuple[float, str, str]]] = {}
        for job in jobs_on_host(self.hosts, self.home, name):
            on_host.setdefault(job.ref, []).append((job.made_at, job.id, job.phase))
        found = Counter(
            runs=sum(run.provider == name for run in runs.values()),
            jobs=sum(len(jobs) for jobs in on_host.values()),
            lost=0,
            doubled=0,
            by_proxy=0,
            wrong_end=0,
        )
        for ref, jobs in on_host.items():
            run, times = runs.get(ref), sorted(at for at, _, _ in jobs)
            known = alarmed | {run.job_id if run else None}
            found["lost"] += sum(job_id not in known for _, job_id, _ in jobs)
            again = sum(b - a > SAME_REQUEST_S for a, b in pairwise(times))
            found["doubled"] += again
            found["by_proxy"] += len(jobs) - 1 - again
            for _, job_id, phase in jobs:
                if run is not None and run.job_id == job_id and run.status.value != phase:
                    found["wrong_end"] += 1
        tracked = {run.ref: run.job_id for run in runs.values() if run.provider == name and run.job_id}
        for ref, job_id in tracked.items():
            found["lost"] += job_id not in {job for _, job, _ in on_host.get(ref, [])}
        return dict(found)

    def marks(self) -> Counter[str]:
        """What the children did to themselves at the points that they reached."""
        path = self.folder / "marks"
        return Counter(path.read_text().splitlines() if path.exists() else ())

    def crashes(self) -> str:
        """Tracebacks of children: an error that is not of our tree is a bug."""
        path = self.folder / "crashes.log"
        return path.read_text() if path.exists() else ""


class _Session:
    """This process as one more user of the store."""

    def __init__(self, soak: Soak) -> None:
        self.soak = soak
        self.store = Store.open(soak.url)
        self.providers: dict[str, Provider] = {}

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *_: object) -> None:
        for provider in self.providers.values():
            provider.close()
        self.store.close()

    def provider(self, name: str) -> Provider:
        if name not in self.providers:
            self.providers[name] = backend(name, self.soak.home, self.soak.env)
        return self.providers[name]

    def unknown(self) -> list[Run]:
        return [
            run for run in self.store.runs.matching(active=True) if run.phase is not SubmitPhase.SUBMITTED
        ]

    def end_or_go_on(self, run: Run, *, go_on: bool) -> None:
        provider = self.provider(run.provider)
        with suppress(OrchestrateError):
            if self.store.runs.cancel_requested(run.id) or not go_on:
                cancel(self.store, provider, run, timing=TIMING)
            else:
                Submitter(self.store, provider, TIMING).resume(run, TrainingData.open(run.spec["train"]))

    def running_though_cancelled(self) -> list[str]:
        """Jobs that the user wanted to end and that go on, once every run's job is known."""
        sync(self.store, self.provider, timing=TIMING)
        hosts, home = self.soak.hosts, self.soak.home
        phases = {job.id: job.phase for name in BACKENDS for job in jobs_on_host(hosts, home, name)}
        going = ("validating", "queued", "running", "paused", "finalizing")
        return [
            run.id
            for run in self.store.runs.matching()
            if self.store.runs.cancel_requested(run.id) and phases.get(str(run.job_id)) in going
        ]


def _alive(pid: int) -> bool:
    return re.search(r"^State:\s+[^ZX]", _status(pid), re.MULTILINE) is not None


def _stopped(pid: int) -> bool:
    return re.search(r"^State:\s+T", _status(pid), re.MULTILINE) is not None


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""
