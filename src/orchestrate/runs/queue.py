"""The queue of runs that wait for a free slot. One server at a time submits them, each exactly once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from orchestrate.errors import DataError, OrchestrateError, StoreError, UsageError
from orchestrate.paid.limits import require_within
from orchestrate.runs import submit as submission
from orchestrate.runs.preparing.prepared import Prepared, prepare
from orchestrate.runs.submitting.accounts import account_of, is_here
from orchestrate.settings import is_masked, masked
from orchestrate.spec import JobSpec, specfile
from orchestrate.store.database import LeaseHeld
from orchestrate.store.queue import PREFIX
from orchestrate.store.transitions import UNSENT, ImpossibleTransition, at_rest, left, withdrawn
from orchestrate.text import count
from orchestrate.types import JobStatus, QueueEntry, QueueState, Run, SubmitPhase

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace

_LEASE_S = 30.0
_SOON_S = 60.0
_KEY = "queue-"
_OPEN = (QueueState.WAITING, QueueState.HELD)
_GOING = (QueueState.WAITING, QueueState.SUBMITTING)


def add(
    ft: Workspace,
    prepared: Prepared,
    provider: str,
    *,
    after: Sequence[str] = (),
    max_cost_usd: Decimal | None = None,
    first: bool = False,
    again: bool = False,
    rates: Sequence[str] = (),
) -> QueueEntry:
    """Queue a run for `provider`. It starts only after the entries and runs in `after` have succeeded. By
    queueing the run, the user accepts its quoted price. `rates` are the `--rate` flags of this quote. Raises
    `UsageError` for an entry that cannot be stored or would wait forever, and for a duplicate of a waiting
    entry unless `again` is set."""
    offer = prepared.offer(provider)
    spec = specfile.anchored(offer.spec).asked()
    if is_masked(masked(spec)):
        raise UsageError(
            "the spec contains a secret, which the queue must not store",
            fix="submit the spec directly, or use URLs without a user name, password or token",
        )
    queue, quote, backend = ft.store.queue, offer.quote, ft.provider(provider)
    account, before = account_of(ft.store, backend), tuple(_named(ft, name) for name in after)
    limit = max_cost_usd if max_cost_usd is not None else offer.spec.max_cost_usd

    def make(position: int) -> QueueEntry:
        return QueueEntry(
            id=queue.new_id(),
            provider=provider,
            spec=spec,
            host=backend.host,
            account=account,
            digest=prepared.data.digest,
            created_at=ft.store.clock.now(),
            position=position,
            after=before,
            agreed_usd=None if quote.high_usd is None else max(quote.high_usd, limit or quote.high_usd),
            max_cost_usd=limit,
            made_by=ft.settings.made_by or None,
            sandbox=backend.config.sandbox,
            rates=tuple(rates),
        )

    return queue.add(make, first=first, guard=None if again else _require_new)


def _require_new(entry: QueueEntry, others: list[QueueEntry]) -> None:
    facts = (entry.provider, entry.host, entry.digest, entry.spec)
    for other in others:
        if (
            other.state in {*_OPEN, *_GOING}
            and (other.provider, other.host, other.digest, other.spec) == facts
        ):
            raise UsageError(
                f"an identical entry, {other.id}, is already waiting", fix="to queue a second one: --again"
            )


def entries(ft: Workspace, *, ended: bool = False) -> list[QueueEntry]:
    """List the queue's entries in the order in which they will start. Without `ended`, list only those that
    are waiting or held. If an entry cannot start from this machine, its note contains the reason."""
    found = ft.store.queue.matching(None if ended else {*_OPEN, *_GOING})
    return [replace(entry, note=elsewhere(ft, entry)) if entry.state in _GOING else entry for entry in found]


def most_usd(entry: QueueEntry) -> Decimal | None:
    """Return the confirmed maximum cost of an entry in US dollars, or `None` without a limit."""
    bounds = [usd for usd in (entry.max_cost_usd, entry.agreed_usd) if usd is not None]
    return max(bounds) if bounds else None


def about(entry: QueueEntry) -> str:
    """Describe an entry in one line. If it waits for other entries or runs, shows their ids. Otherwise, shows
    the id of its run. The note of the entry comes last."""
    after = entry.state is QueueState.WAITING and entry.after
    words = [f"after {', '.join(entry.after)}" if after else entry.run_id, entry.note]
    return "; ".join(word for word in words if word)


def elsewhere(ft: Workspace, entry: QueueEntry) -> str | None:
    """Return why an entry cannot start from this machine, or `None` if it can. Another machine on which the
    entry's backend is configured may still start it."""
    try:
        here = ft.provider(entry.provider).host
    except OrchestrateError as error:
        return f"this entry's backend, {entry.provider}, is not available ({error.message})"
    if here == entry.host:
        return None
    return (
        f"this entry was added for {entry.provider} at {entry.host}, but this machine uses "
        f"{entry.provider} at {here}"
    )


def remove(ft: Workspace, name: str) -> QueueEntry:
    """Remove an entry from the queue. Raises `UsageError` if it already has a run."""
    entry = _changed(ft, name, lambda entry: replace(entry, state=QueueState.REMOVED, note=None))
    run = ft.store.runs.of_key(_key(entry))
    if run is not None and run.phase in UNSENT:
        withdraw(ft, run, "removed from the queue")
    return entry


def withdraw(ft: Workspace, run: Run, why: str) -> None:
    """Withdraw an entry that was not sent or not accepted. If the host did create a job for it, the job is
    canceled once it is found. Does not contact the host, because its API key may no longer be available."""
    now = ft.store.clock.now()
    ft.store.runs.request_cancel(run.id)
    with suppress(ImpossibleTransition):  # another process withdrew it first
        ft.store.runs.apply(run.id, lambda run: withdrawn(run, now), note=why)


def hold(ft: Workspace, name: str, why: str = "paused") -> QueueEntry:
    return _changed(ft, name, lambda entry: replace(entry, state=QueueState.HELD, note=why))


def release(ft: Workspace, name: str) -> QueueEntry:
    """Return a held entry to the queue, and assign it to the account of the current key."""

    def freed(entry: QueueEntry) -> QueueEntry:
        account = account_of(ft.store, ft.provider(entry.provider))
        return replace(entry, state=QueueState.WAITING, note=None, account=account)

    return _changed(ft, name, freed)


def _changed(ft: Workspace, name: str, change: Callable[[QueueEntry], QueueEntry]) -> QueueEntry:
    def guarded(entry: QueueEntry) -> QueueEntry:
        if entry.state in _OPEN or (unmade and entry.state is QueueState.SUBMITTING):
            return change(entry)
        if entry.run_id is not None:
            raise UsageError(f"{entry.id} already has a run", fix=f"orchestrate cancel {entry.run_id}")
        if entry.state is QueueState.SUBMITTING:
            find = "find the run to cancel with: orchestrate runs"
            raise UsageError(f"{entry.id} is being submitted", fix=find)
        raise UsageError(f"{entry.id} was already removed", fix="orchestrate queue list --all")

    found, unmade = ft.store.queue.get(name), False
    with ExitStack() as alone:
        if found.state is QueueState.SUBMITTING:
            # The server may have stopped, or the host may have failed to respond, before a run was created.
            with suppress(LeaseHeld):
                alone.enter_context(ft.store.leases.hold("queue", _LEASE_S))
                unmade = _sent(ft, found) is None
        return ft.store.queue.change(found.id, guarded)


def _named(ft: Workspace, name: str) -> str:
    """Return the id of an entry or run that another entry waits for. Raises `UsageError`."""
    if name.startswith(PREFIX):
        entry = ft.store.queue.get(name)
        if entry.state is QueueState.REMOVED:
            raise UsageError(
                f"{entry.id} was removed from the queue, so an entry that waits for it would never start"
            )
        return entry.id
    run = ft.record(name)
    if run.status.terminal and run.status is not JobStatus.SUCCEEDED:
        raise UsageError(
            f"run {run.id} ended with status {run.status.value}, so an entry that waits for it "
            "would never start"
        )
    return run.id


class QueueStep(NamedTuple):
    """A change to a queue entry, made during one pass over the waiting entries."""

    entry: QueueEntry
    message: str


@dataclass
class QueueServer:
    """Submits entries as soon as they may start. Any number of servers may share a store, but only one of
    them is active at a time."""

    ft: Workspace
    only: Sequence[str] | None = None
    problems: list[str] = field(default_factory=list[str])
    """Errors of the last pass over the queue, one line each. Failed steps are retried."""
    moved: list[QueueStep] = field(default_factory=list[QueueStep])
    """Changes made to entries by the last pass over the queue."""
    _again: dict[str, float] = field(default_factory=dict[str, float])
    _tries: dict[str, int] = field(default_factory=dict[str, int])
    _reported: dict[str, str] = field(default_factory=dict[str, str])

    def waiting(self) -> list[QueueEntry]:
        """List the entries that will start without further action."""
        stuck = {entry.id for entry in self.ft.store.queue.matching({QueueState.HELD})}
        going = self._going()
        for entry in sorted(going, key=lambda entry: (entry.created_at, entry.id)):
            if not stuck.isdisjoint(entry.after):  # which are older
                stuck.add(entry.id)
        return [one for one in going if one.id not in stuck and elsewhere(self.ft, one) is None]

    def _going(self) -> list[QueueEntry]:
        queue = self.ft.store.queue
        entries = [] if queue.paused else [*self._unsent(), *queue.matching(_GOING)]
        return [entry for entry in entries if self.only is None or entry.provider in self.only]

    def _unsent(self) -> list[QueueEntry]:
        """Return submitted entries whose job was never created, because the response was lost. They are
        submitted again."""
        runs = self.ft.store.runs.matching(phase=UNSENT, closed=False)
        ours = {run.id for run in runs if _queued(run)}
        gone = self.ft.store.queue.matching({QueueState.SUBMITTED}) if ours else []
        return [entry for entry in gone if entry.run_id in ours]

    def turn(self) -> list[QueueStep]:
        """Check each waiting entry once. Raises only `StoreError`."""
        self.problems, self.moved = [], []
        self._report_elsewhere()
        if self.waiting():
            with suppress(LeaseHeld), self.ft.store.leases.hold("queue", _LEASE_S):
                for entry in self.waiting():
                    if self.ft.store.queue.paused:  # paused after this turn began
                        break
                    if entry.state is QueueState.SUBMITTED:
                        entry = self.ft.store.queue.change(entry.id, _reopened)
                    if moved := self._check(entry):
                        self.moved.append(moved)
        return self.moved

    def _report_elsewhere(self) -> None:
        """Add a problem for each entry that cannot start from this machine, once per reason."""
        found = {entry.id: why for entry in self._going() if (why := elsewhere(self.ft, entry))}
        self.problems += [f"{id}: {why}" for id, why in found.items() if self._reported.get(id) != why]
        self._reported = found

    def _check(self, entry: QueueEntry) -> QueueStep | None:
        if known := _sent(self.ft, entry):
            return self._moved(entry, QueueState.SUBMITTED, run_id=known.id)
        now = self.ft.store.clock.uptime().seconds
        if now < self._again.get(entry.id, 0.0):
            return None
        try:
            if not self._may_go(entry):
                return None
            entry = self.ft.store.queue.change(entry.id, _acquired)
            run = self._submit(entry)
        except _Taken:
            return None
        except OrchestrateError as error:
            return self._failed(entry, error)
        return self._moved(entry, QueueState.SUBMITTED, run_id=run.id)

    def _failed(self, entry: QueueEntry, error: OrchestrateError) -> QueueStep | None:
        made = self.ft.store.runs.of_key(_key(entry))
        if error.retryable or isinstance(error, StoreError):  # a full disk isn't the entry's fault
            tries = self._tries[entry.id] = self._tries.get(entry.id, 0) + 1
            self._again[entry.id] = self.ft.store.clock.uptime().seconds + _SOON_S * 2 ** min(tries - 1, 5)
            self.problems.append(f"{entry.id}: {error.message}")
            return None
        if made is None or made.phase in UNSENT:
            return self._moved(entry, QueueState.HELD, note=error.message)
        # The host rejected the job, or its response was lost. The run is handled like any other.
        return self._moved(entry, QueueState.SUBMITTED, run_id=made.id, note=error.message)

    def _submit(self, entry: QueueEntry) -> Run:
        from orchestrate.workspace import with_rates

        ft = with_rates(self.ft, entry.rates)
        prepared = prepare(ft, JobSpec.parse(entry.spec), entry.provider)
        if prepared.data.digest != entry.digest:
            raise DataError("the training data changed after the price was confirmed")
        quote = prepared.offer(entry.provider).quote
        # Training on your own machine is not billed, and its estimate changes after each run.
        near = self.ft.provider(entry.provider).profile.near
        # A job that would be rejected has no price. The submit below reports the reason.
        high = Decimal(0) if near else quote.held_usd
        what = "the confirmed price"
        require_within(entry.provider, high, entry.agreed_usd, unknown=quote.unavailable, what=what)
        key, limit_usd = _key(entry), entry.max_cost_usd
        asked = submission.of(ft, prepared, entry.provider, key=key, limit_usd=limit_usd, patient=True)
        return submission.send(ft, prepared, entry.provider, asked)

    def _may_go(self, entry: QueueEntry) -> bool:
        """Return whether the entry may start. Raises `UsageError` if an entry or run that must come first did
        not succeed."""
        backend = self.ft.ready(entry.provider)
        if not is_here(self.ft.store, backend, entry.account):
            raise UsageError(
                "the current key belongs to a different account than the key that added this entry "
                f"({entry.account})"
            )
        if not all(self._succeeded(name) for name in entry.after):
            return False
        return len(_at_work(self.ft, entry.provider, entry.host)) < slots(self.ft, entry.provider)

    def _succeeded(self, name: str) -> bool:
        if name.startswith(PREFIX):
            before = self.ft.store.queue.get(name)
            if before.state is QueueState.REMOVED:
                raise UsageError(f"{name}, which must run first, was removed")
            if before.run_id is None:
                return False
            name = before.run_id
        [run] = self.ft.store.runs.of_ids([name]) or [None]
        if run is None or (run.status.terminal and run.status is not JobStatus.SUCCEEDED):
            state = "is not in this store" if run is None else f"ended with status {run.status.value}"
            raise UsageError(f"{name}, which must run first, {state}")
        if why := left(run):
            raise UsageError(f"{name}, which must run first, is paused: {why}")
        return run.status is JobStatus.SUCCEEDED

    def _moved(
        self, entry: QueueEntry, state: QueueState, *, run_id: str | None = None, note: str | None = None
    ) -> QueueStep:
        outcome = f"run {run_id}" if run_id else f"{state.value}: {note}"

        def change(now: QueueEntry) -> QueueEntry:
            return replace(now, state=state, run_id=run_id, note=note)

        return QueueStep(self.ft.store.queue.change(entry.id, change), outcome)


def _at_work(ft: Workspace, provider: str, host: str) -> list[Run]:
    """List the runs that occupy a slot of a backend. A paused run does not occupy one."""
    active = ft.store.runs.matching(provider=provider, host=host, active=True)
    return [run for run in active if not (at_rest(run) or (run.phase in UNSENT and _queued(run)))]


def crowded(ft: Workspace, run: Run) -> str | None:
    """Return a note for the user if a resumed run delays the queue entries of its backend. Returns `None` if
    no entry is waiting, or if there are enough slots for all open runs."""
    if at_rest(run) or not any(one.provider == run.provider for one in ft.store.queue.matching(_GOING)):
        return None
    going, places = len(_at_work(ft, run.provider, run.host)), slots(ft, run.provider)
    if going <= places:
        return None
    return (
        f"{count(going, 'run is', 'runs are')} open on {run.provider} now, but its queue allows only "
        f"{places}. Waiting entries start when a slot is free"
    )


def slots(ft: Workspace, provider: str) -> int:
    """Return how many runs the queue allows to be open on a backend at the same time. Set under `[queue]` in
    `orchestrate.toml` (default: 1)."""
    return ft.settings.queue.get(provider, 1)


def _queued(run: Run) -> bool:
    return (run.idempotency_key or "").startswith(_KEY)


def _sent(ft: Workspace, entry: QueueEntry) -> Run | None:
    """Return the entry's run, or `None` if it was not sent or its host refused it."""
    run = ft.store.runs.of_key(_key(entry))
    return None if run is None or run.phase in {*UNSENT, SubmitPhase.REFUSED} else run


def _key(entry: QueueEntry) -> str:
    """Return the idempotency key of the run, by which an interrupted submit is found again and never
    repeated."""
    return f"{_KEY}{entry.id}"


class _Taken(Exception):
    """Raised if the user has removed or held the entry since the turn began."""


def _reopened(entry: QueueEntry) -> QueueEntry:
    return replace(entry, state=QueueState.SUBMITTING)


def _acquired(entry: QueueEntry) -> QueueEntry:
    if entry.state not in _GOING:
        raise _Taken
    return replace(entry, state=QueueState.SUBMITTING)
