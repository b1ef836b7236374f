"""Machines that hosts provide for training sessions and bill hourly while they are up.

A machine is recorded in the run directory before it is requested, and is requested only once. It is stopped
when its session ends, or by the host's timeout if the program was killed."""

from __future__ import annotations

import atexit
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from orchestrate.core.files import Journal
from orchestrate.errors import NotFound, OrchestrateError, OutcomeUnknown, ProviderError, RunFailed
from orchestrate.local.run import RunDir, now, runs
from orchestrate.types import BilledResource, Record

SEARCH_S, READY_S, POLL_S = 60.0, 3600.0, 2.0
"""Times in seconds: how long to search for a machine after its create response was lost, how long to wait
until a machine is ready, and the polling interval."""
EXTEND_S = 60.0
JOURNAL = "machines.jsonl"


class RequestedMachine(Record, frozen=True, kw_only=True):
    """Journal entry about a requested machine. It replaces earlier entries with the same `number`."""

    number: int
    base_model: str
    asked_at: datetime
    inactive_s: int = 0
    known: tuple[str, ...] = ()
    """Ids of the machines that were up before the request, if the host chooses machine ids. Otherwise, only
    the id that Orchestrate requested for this machine."""
    id: str | None = None
    """The host's id of the machine, or `None` if the response was lost."""
    ended: bool = False
    seconds: float = 0.0
    """Billed seconds, once the machine has ended."""


class RentedMachines(ABC):
    """Machines rented for training sessions from one host, which bills them."""

    def __init__(self, provider: str, home: Path, sleep: Callable[[float], None]) -> None:
        self._provider, self._home, self._sleep = provider, home, sleep

    def _billing_item(
        self,
        id: str,
        ref: str | None,
        state: str,
        usd_per_hour: Decimal | None,
        created_at: datetime | None,
        base_model: object,
        owner: str | None = None,
    ) -> BilledResource:
        """Describe a machine that is up, which bills busy or not. `ref`: that of its run, if it is known."""
        return BilledResource(
            provider=self._provider,
            kind="job",
            id=id,
            name=ref,
            state=state.lower(),
            bills=True,
            usd_per_hour=usd_per_hour,
            rented=True,
            session=True,
            job_id=ref,
            created_at=created_at,
            owner=owner,
            note=f"training session of {base_model}",
        )

    # -- machines at the host ------------------------------------------------------------------------------

    @abstractmethod
    def up(self) -> list[dict[str, Any]]:
        """List the machines that are billed or will be billed, each with its `id`."""

    @abstractmethod
    def billing_items(self) -> Iterator[BilledResource]:
        """List the machines of `up` as items for billing reports."""

    @abstractmethod
    def refs(self, up: list[dict[str, Any]]) -> dict[str, str]:
        """Map the ids of machines that are up to the refs of their runs."""

    @abstractmethod
    def stop(self, id: str) -> dict[str, Any]:
        """Stop a machine and return the host's record of it. Safe to call more than once. Raises
        `ProviderError` if the machine is still up."""

    @abstractmethod
    def _raw(self, id: str) -> dict[str, Any]: ...

    @abstractmethod
    def _ready(self, raw: dict[str, Any]) -> bool:
        """Return True if the machine accepts requests. Raises `ProviderError` for one that never will."""

    @abstractmethod
    def _match(self, machine: RequestedMachine, up: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Find the machine for a request whose response may have been lost."""

    @abstractmethod
    def _billed_s(self, raw: dict[str, Any]) -> float: ...

    def _unseen_s(self, machine: RequestedMachine) -> float:
        """Return the longest time in seconds that a machine may have been billed if its response was lost and
        it is no longer up."""
        return min(_age_s(machine), machine.inactive_s + POLL_S)

    # -- machines of one run -------------------------------------------------------------------------------

    def journal(self, run: RunDir) -> Journal[RequestedMachine]:
        return Journal(run.path / JOURNAL, RequestedMachine)

    def of(self, run: RunDir) -> list[RequestedMachine]:
        return list({one.number: one for one in self.journal(run).entries}.values())

    def pending(self) -> list[tuple[str, RequestedMachine]]:
        """Search the run directories on this machine for requested machines that have not ended. Return these
        machines with the refs of their runs."""
        return [(run.ref, one) for run in runs(self._home) for one in self.of(run) if not one.ended]

    def wait(self, run: RunDir, machine: RequestedMachine) -> None:
        """Wait until the machine is ready. Raises `ProviderError` if it is not ready after one hour, and
        `RunFailed` if the run is paused or canceled meanwhile."""
        waited = 0.0
        while not self._ready(self._raw(str(machine.id))):
            if word := run.asked():
                raise RunFailed(f"the session received a {word} request before its machine was ready")
            if waited >= READY_S:
                raise ProviderError(self._provider, "the machine was not ready after one hour")
            self._sleep(POLL_S)
            waited += POLL_S

    def end(self, run: RunDir) -> None:
        """Stop all machines of a run and record their billed time. Raises `ProviderError` if a machine could
        not be stopped, and `OutcomeUnknown` if a requested machine may still appear."""
        journal = self.journal(run)
        for one in [one for one in self.of(run) if not one.ended]:
            id = one.id
            if id is None:
                found = self._match(one, self.up())
                if found is None and _age_s(one) < SEARCH_S:
                    raise OutcomeUnknown(
                        self._provider, run.ref, "the machine may still appear within a minute"
                    )
                id = None if found is None else str(found["id"])
            seconds = self._unseen_s(one) if id is None else self._billed_s(self.stop(id))
            journal.append(replace(one, id=id, ended=True, seconds=seconds))

    def seconds(self, run: RunDir) -> float:
        """Return the billed seconds of the run's machines. A machine that was not stopped counts until its
        timeout."""
        total = 0.0
        for one in self.of(run):
            if one.ended:
                total += one.seconds
            elif one.id is not None:
                with suppress(NotFound):
                    total += self._billed_s(self._raw(one.id))
            else:
                found = self._match(one, self.up())
                total += self._unseen_s(one) if found is None else self._billed_s(found)
        return total

    def end_by_ref(self, ref: str) -> None:
        """Stop the machines of a run, even if the run is recorded in another store."""
        run = RunDir(self._home / ref)
        if run.exists():
            self.end(run)
        up = self.up()
        for id, owner in self.refs(up).items():
            if owner == ref and any(raw["id"] == id for raw in up):
                self.stop(id)


def _age_s(machine: RequestedMachine) -> float:
    """Return the seconds since the request, or infinity if the clock was set back since."""
    age_s = (now() - machine.asked_at).total_seconds()
    return age_s if age_s >= 0 else math.inf


class MachineWatch:
    """Background thread that stops a session's machine when the session reaches its limit, even during an
    operation. It also stops the machine if the program exits without closing the session."""

    def __init__(
        self,
        machines: RentedMachines,
        run: RunDir,
        ends_at: float | None,
        extend: Callable[[], None] | None = None,
    ) -> None:
        """Create a watch. `ends_at` is by the monotonic clock. `extend` is called once a minute to keep an
        idle machine up."""
        self._machines, self._run, self._ends_at, self._extend = machines, run, ends_at, extend
        self._stop, self._ending = threading.Event(), threading.Lock()

    def start(self) -> None:
        atexit.register(self._leave)
        threading.Thread(target=self._keep, daemon=True, name=f"machine of {self._run.ref}").start()

    def _keep(self) -> None:
        extended = time.monotonic()
        while not self._stop.wait(1):
            if self._ends_at is not None and time.monotonic() > self._ends_at:
                with suppress(OrchestrateError, OSError):
                    self._end()
                    return
            elif self._extend is not None and time.monotonic() - extended > EXTEND_S:
                extended = time.monotonic()
                with suppress(ProviderError):
                    self._extend()

    def _end(self) -> None:
        with self._ending:
            self._machines.end(self._run)

    def _leave(self) -> None:
        with suppress(OrchestrateError, OSError):
            self._end()

    def close(self, title: str, tail_s: float) -> None:
        """Stop the machine. If that fails, records when the host will stop it and raises `ProviderError`."""
        self._stop.set()
        atexit.unregister(self._leave)
        try:
            self._end()
        except (OrchestrateError, OSError) as error:
            message = f"could not stop the machine ({error}). {title} stops it within {tail_s / 60:g} minutes"
            self._run.add_event(message, level="warning", type="machine")
            raise
