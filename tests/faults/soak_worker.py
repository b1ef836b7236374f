"""Runs commands of the soak, one after another, each in a fork of its own that may die.

    python -m tests.faults.soak_worker FOLDER STORE_URL IN:OUT...

Each pair of file descriptors is a slot. A command is a line of JSON on IN; the answers on OUT are the
child's process id and, when it has ended, its exit status as `os.waitpid` gives it. What a child reached it
appends to `FOLDER/marks`. Forking from a process that has imported everything makes a command cost
milliseconds, so that a soak runs thousands.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import fireworks  # noqa: F401  imported once, before the forks
import openai  # noqa: F401
import together  # noqa: F401
from sqlalchemy import event
from tests.faults.submitting import backend, spec_for, submit

from orchestrate.costing import spending  # noqa: F401
from orchestrate.data import TrainingData
from orchestrate.errors import OrchestrateError
from orchestrate.providers import fireworks as _f  # noqa: F401
from orchestrate.providers import local as _l  # noqa: F401
from orchestrate.providers import openai as _o  # noqa: F401
from orchestrate.providers import together as _t  # noqa: F401
from orchestrate.providers.base import Provider
from orchestrate.runs.submitting.submit import Submitter, cancel
from orchestrate.runs.syncing.sweep import refresh, sync
from orchestrate.runs.watching.watcher import Watcher
from orchestrate.store import Clock
from orchestrate.store.store import Store, Timing
from orchestrate.types import Run, SubmitPhase

TIMING = Timing(send_limit_s=2.0, requests=3, margin_s=4.0, lease_s=2.0, patience_s=3.0)
"""With the time-out of 2 s that the soak gives to each host a lost answer is settled after 12 s."""
TIMEOUT_S = 2.0


class Shifted(Clock):
    def __init__(self, days: int) -> None:
        self.days = days

    def now(self) -> datetime:
        return super().now() + timedelta(days=self.days)


class Child:
    """One command in a process of its own."""

    def __init__(self, folder: Path, url: str, order: dict[str, Any]) -> None:
        self.folder, self.order = folder, order
        self.chance = random.Random(order["seed"])
        self.store = Store.open(url, clock=Shifted(order.get("days", 0)))
        self.providers: dict[str, Provider] = {}
        if at := order.get("full_at"):
            self._fill_disk(at)

    def provider(self, name: str) -> Provider:
        if name not in self.providers:
            self.providers[name] = backend(name, self.folder / "home", os.environ)
        return self.providers[name]

    def mark(self, word: str) -> None:
        with (self.folder / "marks").open("a") as file:
            file.write(f"{word}\n")

    def reached(self, here: str) -> None:
        if here == self.order.get("point"):
            action = self.order["action"]
            self.mark(f"{action} {here}")
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[action])

    def run(self) -> None:
        getattr(self, self.order["op"])()

    # -- the commands

    def submit(self) -> None:
        rows = self.order["rows"]
        spec = spec_for(Path(rows))
        data = TrainingData.open(rows)
        provider = self.provider(self.order["backend"])
        submit(self.store, provider, spec, data, timing=TIMING, reached=self.reached)

    def resume(self) -> None:
        if run := self._any(lambda run: run.job_id is None and not run.status.terminal):
            data = TrainingData.open(run.spec["train"])
            submitter = Submitter(self.store, self.provider(run.provider), TIMING, self.reached)
            submitter.resume(run, data)

    def cancel(self) -> None:
        if run := self._any(lambda run: not run.status.terminal):
            cancel(self.store, self.provider(run.provider), run, timing=TIMING)

    def refresh(self) -> None:
        if run := self._any(lambda run: True):
            refresh(self.store, self.provider(run.provider), run, timing=TIMING)

    def sync(self) -> None:
        sync(self.store, self.provider, timing=TIMING)

    def watch(self) -> None:
        watcher = Watcher(self.store, self.provider, timing=TIMING)
        for _ in range(3):
            watcher.turn()
            time.sleep(min(watcher.wait_s(), 0.5))
            watcher.wake()

    def _any(self, fits: Any) -> Run | None:
        found = [run for run in self.store.runs.matching(limit=60) if fits(run)]
        # Those whose job is not known are where the protocol can go wrong.
        open_ = [run for run in found if run.phase not in (SubmitPhase.SUBMITTED, SubmitPhase.REFUSED)]
        found = open_ if open_ and self.chance.random() < 0.6 else found
        return self.chance.choice(found) if found else None

    # -- what befalls them

    def _fill_disk(self, at: int) -> None:
        """From the `at`th transaction on no file may grow: SQLite cannot commit."""
        seen = 0

        @event.listens_for(self.store.database.engine, "begin")
        def _begun(_connection: object) -> None:
            nonlocal seen
            seen += 1
            if seen == at:
                self.mark("full disk")
                log = Path(f"{self.store.database.engine.url.database}-wal")
                size = log.stat().st_size if log.exists() else 0
                _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def serve(folder: Path, url: str, orders: TextIO, answers: TextIO) -> None:
    for line in orders:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(obey(folder, url, order))
        print(pid, file=answers, flush=True)
        _, status = os.waitpid(pid, 0)
        print(status, file=answers, flush=True)


def obey(folder: Path, url: str, order: dict[str, Any]) -> int:
    """Does one command and returns its exit code; an error that is not of our tree is kept as a crash."""
    try:
        child = Child(folder, url, order)
        try:
            child.run()
        finally:
            child.store.close()
    except OrchestrateError as error:
        room_again()
        with (folder / "told.log").open("a") as log:
            log.write(f"{order['op']} {type(error).__name__}: {error.message}\n")
        return error.exit_code
    except BaseException:
        room_again()
        with (folder / "crashes.log").open("a") as log:
            log.write(f"{json.dumps(order)}\n{traceback.format_exc()}\n")
        return 99
    return 0


def room_again() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def main() -> None:
    folder, url = Path(sys.argv[1]), sys.argv[2]
    pairs = [tuple(map(int, pair.split(":"))) for pair in sys.argv[3:]]
    for own in pairs:
        if os.fork() == 0:
            for other in pairs:
                if other != own:  # else a slot would not see the end of its orders
                    os.close(other[0]), os.close(other[1])
            with os.fdopen(own[0]) as orders, os.fdopen(own[1], "w") as answers:
                serve(folder, url, orders, answers)
            os._exit(0)
    for own in pairs:
        os.close(own[0]), os.close(own[1])
    for _ in pairs:
        os.wait()


if __name__ == "__main__":
    main()
