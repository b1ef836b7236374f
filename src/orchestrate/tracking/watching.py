"""The watcher: sweeps the hosts' lists as often as there is something to see, for as long as it is wanted.

One process or many on one store: a lease per account lets one of them sweep it, the details of single runs
are claimed one by one, and each ended run is told about once. Nothing is kept in the process but when to
look again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrate.errors import OrchestrateError, ProviderError, StoreError
from orchestrate.tracking.budget import TokenBucket
from orchestrate.tracking.notifying import Channel, tell
from orchestrate.tracking.pace import Pace
from orchestrate.tracking.sweep import BillHook, SyncReport, fetch_details, sync
from orchestrate.tracking.timing import DEFAULT_TIMING, Timing
from orchestrate.types import JobStatus

if TYPE_CHECKING:
    from orchestrate.providers.base import Provider
    from orchestrate.tracking.store import Store

_SWEEP_LEASE_S = 600.0
"""Longer than any sweep; a worker that dies in the middle holds its account up for so long at most."""
_DETAILS = 20
"""Runs of one account whose events and metrics are fetched in a turn."""
_IDLE_S = 30.0
_FAR = (10.0, 120.0)
_NEAR = (1.0, 5.0)


@dataclass
class _Account:
    pace: Pace
    bucket: TokenBucket
    due: float = 0.0


@dataclass
class Watcher:
    """Watches the open runs of a store.

    `provider` gives the backend of a name; `only` limits the watch to some. `per_minute` bounds the
    requests to one account. Channels are told about each run that ends.
    """

    store: Store
    provider: Callable[[str], Provider]
    bill: BillHook | None = None
    channels: Sequence[Channel] = ()
    only: Iterable[str] | None = None
    timing: Timing = DEFAULT_TIMING
    per_minute: float = 60.0
    problems: list[str] = field(default_factory=list[str])
    """What went wrong in the last turn, one line each."""
    _accounts: dict[str, _Account] = field(default_factory=dict[str, _Account])
    _woken: threading.Event = field(default_factory=threading.Event)

    def turn(self) -> list[SyncReport]:
        """Looks at every account that is due, once. Raises only `StoreError`."""
        self.problems = []
        reports: list[SyncReport] = []
        for channel in self.channels:
            self.store.notified_since(channel.name)  # before the sweep: the runs that it finds ended are told
        wanted = None if self.only is None else set(self.only)
        for name in self.store.open_providers():
            if wanted is None or name in wanted:
                reports += self._look(name)
        self.problems += tell(self.store, self.channels)
        return reports

    def wait_s(self) -> float:
        """Seconds until an account is due."""
        now = self.store.clock.uptime().seconds
        return max(0.0, min([account.due - now for account in self._accounts.values()], default=_IDLE_S))

    def wake(self, _run_id: str = "") -> None:
        """Something is known to have changed: every account is due now. Safe from other threads."""
        for account in list(self._accounts.values()):
            account.due = 0.0
        self._woken.set()

    def run(
        self,
        stop: threading.Event,
        *,
        until_idle: bool = False,
        on_turn: Callable[[list[SyncReport]], object] | None = None,
    ) -> None:
        """Turns until `stop` is set, or with `until_idle` until no run is open. A store that does not
        answer is waited for, as a Postgres that is being restarted."""
        while not stop.is_set():
            wait = _NEAR[1]
            try:
                reports = self.turn()
                wait = self.wait_s()
                if on_turn is not None:
                    on_turn(reports)
                if until_idle and not self.store.open_providers():
                    return
            except StoreError as error:
                if not error.retryable:
                    raise
                self.problems = [error.message]
            self._sleep(stop, min(wait, _IDLE_S))

    def _sleep(self, stop: threading.Event, seconds: float) -> None:
        # In short steps, since two events cannot be waited for at once.
        end = self.store.clock.uptime().seconds + seconds
        while not stop.is_set() and (left := end - self.store.clock.uptime().seconds) > 0:
            if self._woken.wait(min(left, 0.5)):
                break
        self._woken.clear()

    def _look(self, name: str) -> list[SyncReport]:
        account = self._accounts.get(name)
        now = self.store.clock.uptime().seconds
        if account is not None and now < account.due:
            return []
        try:
            backend = self.provider(name)
        except OrchestrateError as error:
            self.problems.append(f"{name}: {error.message}")
            self._accounts.setdefault(name, self._account(near=False)).due = now + _FAR[1]
            return []
        if account is None:
            near = backend.sandbox or (backend.config.type or backend.config.name) == "local"
            account = self._accounts[name] = self._account(near=near)
        key = f"{name}@{backend.host}"
        if paused := self.store.paused_s(key):
            account.due = now + paused
            return []
        lease = self.store.acquire(f"sweep:{key}"[:255], _SWEEP_LEASE_S)
        if lease is None:  # another worker is at it
            account.due = now + account.pace.wait_s()
            return []
        try:
            return [self._sweep(name, key, backend, account)]
        finally:
            self.store.release(lease)

    def _sweep(self, name: str, key: str, backend: Provider, account: _Account) -> SyncReport:
        account.bucket.take()
        report = sync(self.store, lambda _: backend, only=[name], bill=self.bill, timing=self.timing)
        self.problems += [f"{f.provider}: {f.message}" for f in report.failures]
        for run in self.store.runs(provider=name, status=JobStatus.PAUSED):
            backend.recover(run.handle)
        pause = max([f.retry_after_s or 0.0 for f in report.failures], default=0.0)
        if not report.failures:
            pause = self._details(name, backend, account)
        if pause:
            self.store.pause(key, pause)
        if report.changed or report.adopted:
            account.pace.changed()
        account.due = self.store.clock.uptime().seconds + max(account.pace.wait_s(), pause)
        return report

    def _details(self, name: str, backend: Provider, account: _Account) -> float:
        """Fetches what is due of single runs. Returns the seconds for which the host wants to be left
        alone."""
        for run in self.store.claim_due(name, backend.host, limit=_DETAILS):
            account.bucket.take(3)
            try:
                fetch_details(self.store, backend, run)
            except ProviderError as error:
                self.problems.append(f"{run.id}: {error.message}")
                if error.retry_after_s:
                    return error.retry_after_s
        return 0.0

    def _account(self, *, near: bool) -> _Account:
        first, most = _NEAR if near else _FAR
        bucket = TokenBucket(self.per_minute, max(int(self.per_minute), 1), clock=self.store.clock)
        return _Account(Pace(first, most_s=most), bucket)
