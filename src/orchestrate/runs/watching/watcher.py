"""The watcher: polls the hosts' job lists and updates the runs in the store.

Runs that are about to change are polled more often. Several processes can watch the same store. A lease
ensures that only one of them syncs an account at a time, and a shared token bucket limits the requests to
each account. A process claims a run in the store before it fetches the run's details. The end of a run is
reported only once. A process keeps no state of its own, except the times of its next checks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Protocol

from orchestrate.errors import OrchestrateError, ProviderError, StoreError
from orchestrate.providers.base import Provider
from orchestrate.runs.submitting.accounts import is_here
from orchestrate.runs.submitting.settler import Settler
from orchestrate.runs.syncing.stalls import message
from orchestrate.runs.syncing.sweep import (
    DETAIL_REQUESTS,
    BillHook,
    Failure,
    SyncReport,
    fetch_details,
    sync,
)
from orchestrate.runs.watching.channels import Channel, NotDelivered, notify
from orchestrate.runs.watching.polling import PollingPace
from orchestrate.store.database import LeaseHeld
from orchestrate.store.store import DEFAULT_TIMING, Store, Timing
from orchestrate.types import JobStatus

_SWEEP_LEASE_S = 30.0
"""Duration in seconds of the lease for syncing an account. A running sync renews it. If the process dies, no
other process can sync the account until the lease expires."""
_DETAILS = 20
"""Maximum number of runs of one account whose events and metrics are fetched in a turn."""
_IDLE_S = 30.0
_TURN_S = 1.0
"""Maximum number of seconds until the watcher notices new runs, new viewers, and hints from other
processes."""
_GONE_S = 60.0
"""Seconds without a response after which a sandbox counts as shut down."""
_UNDELIVERED_S = 3600.0
"""Seconds that an otherwise idle watcher keeps running to deliver pending notifications."""
_NOTIFY_AGAIN = (2.0, 60.0)
_FAR = (10.0, 120.0)
_LOOKED_AT = (2.0, 30.0)
_NEAR = (0.5, 2.0)


class Feed(Protocol):
    """A source that submits runs at its own pace, such as a queue."""

    problems: list[str]

    def turn(self) -> Sequence[object]: ...

    def waiting(self) -> Sequence[object]:
        """List the entries that will be submitted later."""
        ...


@dataclass
class _Account:
    key: str
    backend: Provider
    near: bool
    pace: PollingPace
    due: float = 0.0
    looked_at: bool = False
    silent_since: float | None = None


@dataclass(frozen=True)
class _UndeliveredStall:
    """A stall of which one channel has not been notified."""

    send: Callable[[Mapping[str, Any]], object]
    message: Mapping[str, Any]
    since: float
    due: float = 0.0


@dataclass
class Watcher:
    """Watches the open runs of a store, and notifies the channels when a run ends. `provider` is a function
    that returns a backend by its name. `only` limits the watch to some backends. `per_minute` limits the
    requests to each account, counted over all processes."""

    store: Store
    provider: Callable[[str], Provider]
    bill: BillHook | None = None
    channels: Sequence[Channel] = ()
    only: Iterable[str] | None = None
    feed: Feed | None = None
    timing: Timing = DEFAULT_TIMING
    per_minute: float = 60.0
    stalled_after_s: float | None = None
    """Seconds without an update after which a run counts as stalled. See `sync`."""
    problems: list[str] = field(default_factory=list[str])
    """Errors of the last turn, one line each."""
    failures: list[Failure] = field(default_factory=list[Failure])
    """Backends that could not be reached at their last check."""
    _accounts: dict[str, _Account] = field(default_factory=dict[str, _Account])
    _unmade: dict[str, float] = field(default_factory=dict[str, float])
    _open: list[str] = field(default_factory=list[str])
    """Backends with runs or deployments in the last turn."""
    _known_channels: set[str] = field(default_factory=set[str])
    _undelivered_since: float | None = None
    _undelivered: list[str] = field(default_factory=list[str])
    _notify_pace: PollingPace = field(default_factory=lambda: _pace(_NOTIFY_AGAIN))
    _notify_due: float = 0.0
    _stalls: list[_UndeliveredStall] = field(default_factory=list["_UndeliveredStall"])
    _woken: threading.Event = field(default_factory=threading.Event)

    def turn(self) -> list[SyncReport]:
        """Check every account that is due, once. Raises only `StoreError`."""
        self.problems = []
        reports: list[SyncReport] = []
        for channel in self.channels:  # before the sync, so runs that it finds ended are notified
            if channel.name not in self._known_channels:
                self.store.notifications.since(channel.name)
                self._known_channels.add(channel.name)
        hosting = self.store.deployments.open_providers()
        self._open = self._wanted({*self.store.runs.open_providers(), *hosting})
        for name in self._open:
            reports += self._check(name)
        self._stalls += [
            _UndeliveredStall(send, message(stall), self._now())
            for report in reports
            for stall in report.stalled
            for channel in self.channels
            if stall.new and (send := getattr(channel, "send_message", None))
        ]
        self._notify()
        self._notify_stalls()
        if self.feed is not None:  # after the sweep: what has ended makes room
            self.feed.turn()
            self.problems += self.feed.problems
        return reports

    def wait_s(self) -> float:
        """Return the seconds until the next account must be checked."""
        now, accounts = self._now(), self._accounts
        dues = [accounts[name].due for name in self._open if name in accounts]
        dues += [at for name, at in self._unmade.items() if name in self._open]
        return max(0.0, min([due - now for due in dues], default=_IDLE_S))

    def wake(self, _run_id: str = "") -> None:
        """Mark every account as due now, because something has changed. Safe to call from other threads."""
        for account in list(self._accounts.values()):
            account.due = 0.0
        self._woken.set()

    def idle(self) -> bool:
        """Return True if nothing is left to watch on the hosts that this watcher can reach.

        That is the case if all of the following are true:

        - No run is in progress.
        - No deployment has a limit or an unconfirmed state.
        - No queue entry is waiting.
        - The end of every run has been reported. Reports that could not be delivered for an hour don't count.
        """
        if self._undelivered_since is not None and self._now() - self._undelivered_since < _UNDELIVERED_S:
            return False
        if self.feed is not None and self.feed.waiting():
            return False
        live = set(self.store.runs.live_hosts()) | self.store.deployments.to_watch()
        for name in self._wanted({name for name, _ in live}):
            account = self._account(name)
            if account is not None and (name, account.backend.host) in live and not self._shut_down(account):
                return False
        return True

    def run(
        self,
        stop: threading.Event,
        *,
        until_idle: bool = False,
        on_turn: Callable[[list[SyncReport]], object] | None = None,
    ) -> None:
        """Watch until `stop` is set or, with `until_idle`, until no run is in progress. If the store does not
        respond, for example because Postgres is restarting, waits until it does."""
        while not stop.is_set():
            try:
                reports = self.turn()
                if on_turn is not None:
                    on_turn(reports)
                # If the last turn found ended runs, take another one, because hosts report some data late.
                if until_idle and not any(report.ended for report in reports) and self.idle():
                    return
                wait = min(self.wait_s(), _TURN_S)
            except StoreError as error:
                if not error.retryable:
                    raise
                self.problems, wait = [error.message], _IDLE_S / 6
                if on_turn is not None:
                    on_turn([])
            self._sleep(stop, wait)

    def _wanted(self, names: Iterable[str]) -> list[str]:
        wanted = None if self.only is None else set(self.only)
        return [name for name in sorted(names) if wanted is None or name in wanted]

    def _now(self) -> float:
        return self.store.clock.uptime().seconds

    def _sleep(self, stop: threading.Event, seconds: float) -> None:
        # Wait in short steps, because a thread cannot wait for two events at once.
        end = self._now() + seconds
        while not stop.is_set() and (left := end - self._now()) > 0:
            if self._woken.wait(min(left, 0.5)):
                break
        self._woken.clear()

    def _notify(self) -> None:
        """Retry failed notifications at growing intervals."""
        if self._now() >= self._notify_due:
            self._undelivered = notify(self.store, self.channels)
            if not self._undelivered:
                self._undelivered_since, self._notify_pace, self._notify_due = None, _pace(_NOTIFY_AGAIN), 0.0
            else:
                if self._undelivered_since is None:
                    self._undelivered_since = self._now()
                self._notify_due = self._now() + self._notify_pace.wait_s()
        self.problems += self._undelivered

    def _notify_stalls(self) -> None:
        """Retry stall notifications that were not delivered, for an hour."""
        for one in [one for one in self._stalls if self._now() >= one.due]:
            self._stalls.remove(one)
            try:
                one.send(one.message)
            except NotDelivered as error:
                self.problems.append(f"{one.message['run']}: {error.message}")
                if self._now() - one.since < _UNDELIVERED_S:
                    self._stalls.append(replace(one, due=self._now() + _NOTIFY_AGAIN[1]))
            except Exception as error:  # noqa: BLE001  a watcher does not die of a channel
                self.problems.append(f"{one.message['run']}: a channel failed with {type(error).__name__}")

    # -- one account ---------------------------------------------------------------------------------------

    def _account(self, name: str) -> _Account | None:
        """Return the backend's account, or `None` if the backend cannot be created, for example without a
        key. Retried later."""
        if name in self._accounts:
            return self._accounts[name]
        now = self._now()
        if now < self._unmade.get(name, 0.0):
            return None
        try:
            backend = self.provider(name)
        except OrchestrateError as error:
            self.problems.append(f"{name}: {error.message}")
            self._failed(name, [Failure(provider=name, message=error.message, retryable=error.retryable)])
            self._unmade[name] = now + _FAR[1]
            return None
        self._unmade.pop(name, None)
        near = backend.config.sandbox or backend.profile.near
        pace = _pace(_NEAR if near else _FAR)
        self._accounts[name] = _Account(f"{name}@{backend.host}", backend, near, pace)
        return self._accounts[name]

    def _check(self, name: str) -> list[SyncReport]:
        account = self._account(name)
        if account is None or not self._due(account):
            return []
        now = self._now()
        if paused := self.store.watching.paused_s(account.key):
            account.due = now + paused
            return []
        if wait := self._take(account, 1):
            account.due = now + wait
            return []
        try:
            with self.store.leases.hold(f"sweep:{account.key}"[:255], _SWEEP_LEASE_S):
                return [self._sweep(name, account)]
        except LeaseHeld:  # another worker is at it
            account.due = now + account.pace.wait_s()
            return []

    def _due(self, account: _Account) -> bool:
        if not account.near and account.looked_at != self.store.watching.is_watched(account.key):
            account.looked_at = not account.looked_at
            account.pace = _pace(_LOOKED_AT if account.looked_at else _FAR)
            if account.looked_at:
                account.due = 0.0
        return self._now() >= account.due

    def _take(self, account: _Account, requests: int, *, credit: bool = False) -> float:
        if account.near:
            return 0.0
        burst = max(self.per_minute, 1.0)
        return self.store.watching.take_tokens(
            account.key, requests, per_minute=self.per_minute, burst=burst, credit=credit
        )

    def _sweep(self, name: str, account: _Account) -> SyncReport:
        backend = account.backend
        report = sync(
            self.store,
            lambda _: backend,
            only=[name],
            bill=self.bill,
            timing=self.timing,
            stalled_after_s=self.stalled_after_s,
        )
        self.problems += [_named(f.provider, f.message) for f in report.failures]
        self._failed(name, report.failures)
        if report.asked > 1:
            self._take(account, report.asked - 1, credit=True)
        for run in self.store.runs.matching(provider=name, host=backend.host, status=JobStatus.PAUSED):
            try:
                Settler(self.store, backend, self.timing).restart(run)
            except OrchestrateError as error:
                self.problems.append(f"{run.id}: {error.message}")
        pause = max([f.retry_after_s or 0.0 for f in report.failures], default=0.0)
        if report.failures:
            account.silent_since = self._now() if account.silent_since is None else account.silent_since
        else:
            account.silent_since = None
            pause = self._details(name, account)
        if pause:
            self.store.watching.pause(account.key, pause)
        if report.changed or report.adopted:
            account.pace.changed()
        account.due = self._now() + max(account.pace.wait_s(), pause)
        return report

    def _details(self, name: str, account: _Account) -> float:
        """Fetch the details of runs that are due. Returns the number of seconds for which the host asked to
        be left alone."""
        soonest = timedelta(seconds=1 if account.near else 10)
        for run in self.store.watching.claim_due(name, account.backend.host, limit=_DETAILS, soonest=soonest):
            if is_here(self.store, account.backend, run.account) is False:
                continue
            self._take(account, DETAIL_REQUESTS, credit=True)
            try:
                fetch_details(self.store, account.backend, run)
            except ProviderError as error:
                self.problems.append(f"{run.id}: {error.message}")
                if error.retry_after_s:
                    return error.retry_after_s
        return 0.0

    def _failed(self, name: str, failures: list[Failure]) -> None:
        self.failures = [f for f in self.failures if f.provider != name] + failures

    def _shut_down(self, account: _Account) -> bool:
        since = account.silent_since
        return account.backend.config.sandbox and since is not None and self._now() - since > _GONE_S


def _named(provider: str, message: str) -> str:
    """Prefix an error with its backend's name, unless it starts with the name."""
    return message if message.startswith(f"{provider}: ") else f"{provider}: {message}"


def _pace(bounds: tuple[float, float]) -> PollingPace:
    return PollingPace(bounds[0], most_s=bounds[1])
