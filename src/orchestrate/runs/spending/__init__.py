"""Spending of all accounts: spent, committed and remaining amounts, and resources that are or may be billed.
Accounts that could not be queried are listed, never counted as zero."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from orchestrate.core.retries import within
from orchestrate.core.underway import work
from orchestrate.costing import expenses
from orchestrate.costing.expenses import BY as BY
from orchestrate.costing.expenses import NONE as NONE
from orchestrate.costing.expenses import Expense as Expense
from orchestrate.costing.expenses import Sum as Sum
from orchestrate.costing.expenses import cents as cents
from orchestrate.errors import MissingKey, OrchestrateError
from orchestrate.profile import session_hosts
from orchestrate.providers import base
from orchestrate.providers.sessions import SESSION
from orchestrate.text import count, money
from orchestrate.types import BilledResource, Deployment, DeploymentState, JobStatus, Record, Run

if TYPE_CHECKING:
    from orchestrate.providers.base import Provider
    from orchestrate.store.store import Store

_AT_ONCE = 8
GRACE = timedelta(minutes=10)
"""Grace period after a run's end, during which its machine is not reported even if it is still up. A worker
reports the end of its run before it releases the machine."""
IN_USE = timedelta(hours=1)
"""Time for which a deployment counts as in use after its latest request from this store. If there was no
request, the time starts at the deployment's creation."""


class Breakdown(Record, frozen=True, kw_only=True):
    by: str
    groups: tuple[Sum, ...]


class Found(Record, frozen=True, kw_only=True):
    """A resource that is or may be billed, and its owner."""

    item: BilledResource
    run: str | None = None
    """Id of the run in this store that owns the resource."""
    deployment: str | None = None
    """Id of the matching deployment in this store."""
    used_at: datetime | None = None
    """Time of the last request from this store."""
    person: str | None = None
    foreign: bool
    """True if no record in this store matches the resource, so it may have been created elsewhere."""
    abandoned: bool = False
    """True if the resource or its run was abandoned in this store."""
    unaccounted: str | None = None
    """Reason why no record in this store accounts for the resource. If set, its cost is not part of any
    total."""
    idle: bool
    """True if the resource is or may be billed hourly and this store has not used it for an hour."""

    @property
    def lost_run(self) -> str | None:
        """Id of the run that `recover` would create from the resource. `None` unless the resource has an
        Orchestrate ref whose run is not in this store."""
        from orchestrate.store import REF_PATTERN, run_id_of

        ref = self.item.job_id or ""
        lost = self.run is None and not self.item.session and REF_PATTERN.fullmatch(ref)
        return run_id_of(ref) if lost else None

    @property
    def by_the_hour(self) -> bool:
        """True if the resource is, or may be, billed for its uptime. False for jobs of runs in this store,
        because their cost is already committed."""
        if self.item.bills is False:
            return False
        if self.item.kind in ("job", "worker"):
            return self.item.rented and self.unaccounted is not None
        return True


class AccountStatus(Record, frozen=True, kw_only=True):
    """A configured account, or a backend known only to the store."""

    backend: str
    title: str
    host: str | None = None
    account: str | None = None
    asked: bool
    reason: str | None = None
    """Reason why the account was not contacted or did not respond."""
    keyless: bool = False
    """True if the account's key is missing."""
    expected: bool = True
    """True if the report is incomplete without this account. False if the backend has neither an API key nor
    runs in this store."""
    unseen: tuple[str, ...] = ()
    """Parts of the account that the key cannot see, one sentence each."""
    partial: bool = False
    """True if one of the host's lists could not be read."""
    elsewhere: tuple[str, ...] = ()
    """Open runs and deployments that are missing from the account's lists. They may be in another account."""


class SpendingReport(Record, frozen=True, kw_only=True):
    """Spending of all accounts. Amounts are exact. Unknown amounts are listed separately and not included in
    totals."""

    at: datetime
    sandbox: bool = False
    """True for simulated sandbox spending instead of real money."""
    month: str | None = None
    total: Sum
    """Total spending. Covers only the requested month if `month` was given."""
    budget_usd: Decimal | None = None
    left_usd: Decimal | None = None
    """Remaining budget over all months, negative if it is exceeded. `None` without a budget."""
    uncounted: tuple[str, ...] = ()
    """Ids of items, from all months, that may have cost money but whose cost is unknown. Their costs are not
    deducted from the remaining budget. Includes rented machines that belong to no run in this store, but
    excludes abandoned and ignored items."""
    stalled: tuple[str, ...] = ()
    """Runs in progress on their hosts that have sent no updates for too long. They may still be billed."""
    breakdown: tuple[Breakdown, ...] = ()
    offline: bool = False
    """True if no account was contacted."""
    accounts: tuple[AccountStatus, ...] = ()
    standing: tuple[Found, ...] = ()
    usd_per_hour: Decimal | None = None
    """Total hourly price of all resources that are billed hourly now at a known price. `None` if no account
    responded, or if resources are billed but none of their prices are known."""
    unpriced: tuple[str, ...] = ()
    """Ids of resources that are or may be billed hourly at an unknown price. `usd_per_hour` does not include
    them."""

    def __str__(self) -> str:
        budget = "" if self.left_usd is None else f", {money(self.left_usd)} of the budget left"
        things = "not checked" if self.offline else count(len(self.billing), "resource")
        open_ = f"; billed hourly: {things}" + (
            f" ({count(len(self.gaps), 'account')} not checked)" * bool(self.gaps)
        )
        return (
            f"{money(self.total.spent_usd)} spent, {money(self.total.committed_usd)} committed{budget}{open_}"
        )

    @property
    def billing(self) -> list[Found]:
        """Return the resources that are or may be billed hourly."""
        return [found for found in self.standing if found.by_the_hour]

    @property
    def idle(self) -> list[Found]:
        return [found for found in self.standing if found.idle]

    @property
    def over(self) -> bool:
        return self.left_usd is not None and self.left_usd < 0

    @property
    def gaps(self) -> list[AccountStatus]:
        """Return the accounts that may contain billed resources missing from this report: accounts that did
        not respond completely, and accounts with runs that none of the current keys can see."""
        return [a for a in self.accounts if a.expected and (not a.asked or a.partial or a.elsewhere)]

    @property
    def at_least(self) -> bool:
        """Return whether the actual hourly cost may be higher than `usd_per_hour`."""
        return bool(self.unpriced or self.gaps)


class _StoredRuns:
    """Expenses in the store, and the runs that may still be billed. The store keeps sums of ended runs, so
    only few runs are read."""

    def __init__(self, store: Store, now: datetime, *, sandbox: bool) -> None:
        self._store, self._sandbox = store, sandbox
        self.time_of = store.deployments.time_of
        """Returns the current time of the clock used to compute a deployment's age."""
        self.deployments = [one for one in store.deployments.matching() if one.sandbox is sandbox]
        groups, own = store.ledger.of_runs(sandbox=sandbox)
        self.open = [run for run in own if not run.status.terminal]
        self.expenses = [*groups, *(expenses.of_run(run, now) for run in own)]
        self.backends = {one.backend for one in self.expenses}
        of = {run.id: run for run in store.runs.of_ids({one.run_id for one in self.deployments})}
        for one in self.deployments:
            run = of.get(one.run_id)
            self.expenses += expenses.of_deployment(
                one, run if run and run.sandbox is sandbox else None, self.time_of(one)
            )
        if not sandbox:
            self.expenses += [one.expense() for one in store.ledger.answers()]

    def of_refs(self, refs: Iterable[str]) -> list[Run]:
        """Return the runs with these refs, in lowercase."""
        return [run for run in self._store.runs.of_refs(refs) if run.sandbox is self._sandbox]

    def of_names(self, names: Iterable[str]) -> dict[str, Run]:
        """See `Runs.of_names`."""
        return self._store.runs.of_names(names, sandbox=self._sandbox)


@dataclass(frozen=True)
class _AccountAnswer:
    status: AccountStatus
    place: str = ""
    """Base URL or backend type. Item ids are unique within it."""
    items: tuple[BilledResource, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict[str, str])
    """Sessions that no longer use their machines, as {run id: reason}."""


@dataclass(frozen=True)
class Spender:
    """Implements `Orchestrator.spending`."""

    store: Store
    backends: Sequence[str]
    provider: Callable[[str], Provider]
    ready: Callable[[str], Provider]
    """Returns a backend by its name, as `provider` does, but raises `MissingKey` if the backend has no
    key."""
    budget_usd: Decimal | None = None

    def report(
        self,
        by: Sequence[str] = ("backend",),
        *,
        month: str | None = None,
        sandbox: bool = False,
        offline: bool = False,
        ignore: Collection[str] = (),
        patience_s: float | None = None,
    ) -> SpendingReport:
        """Report spent and committed amounts, and resources that are still billed. Accounts that don't answer
        within `patience_s` seconds are reported as not queried. Raises `UsageError` for an
        invalid month or an unknown grouping."""
        now = self.store.clock.now()
        books = _StoredRuns(self.store, now, sandbox=sandbox)
        every = books.expenses
        chosen = expenses.in_month(every, month)
        used = expenses.total(every)
        budget = None if sandbox else self.budget_usd
        report = SpendingReport(
            at=now,
            sandbox=sandbox,
            month=month,
            total=expenses.total(chosen),
            budget_usd=budget,
            left_usd=None if budget is None else budget - used.spent_usd - used.committed_usd,
            uncounted=tuple(
                dict.fromkeys(e.id for e in every if not (e.known or e.abandoned or e.id in ignore))
            ),
            stalled=tuple(
                sorted(
                    run.id
                    for run in self.store.runs.of_ids(self.store.watching.stalled())
                    if run.sandbox is sandbox
                )
            ),
            breakdown=tuple(Breakdown(by=b, groups=tuple(expenses.grouped(chosen, b))) for b in by),
            offline=offline,
        )
        if offline:
            return report
        answers = self._ask_all(books, sandbox, patience_s)
        found = _owned(answers, books, ignore, now)
        billing = [one for one in found if one.by_the_hour]
        prices = [one.item.usd_per_hour for one in billing if one.item.bills]
        known = [price for price in prices if price is not None]
        answered = any(answer.status.asked for answer in answers) and (bool(known) or not prices)
        lost = [one.item.id for one in billing if one.item.rented and one.idle]
        return msgspec.structs.replace(
            report,
            accounts=tuple(answer.status for answer in answers),
            standing=tuple(found),
            usd_per_hour=sum(known, Decimal(0)) if answered else None,
            unpriced=tuple(f.item.id for f in billing if f.item.bills is None or f.item.usd_per_hour is None),
            uncounted=tuple(dict.fromkeys([*report.uncounted, *lost])),
        )

    def _ask_all(self, books: _StoredRuns, sandbox: bool, patience_s: float | None) -> list[_AccountAnswer]:
        names = dict.fromkeys(
            [*self.backends, *sorted(books.backends), *(d.provider for d in books.deployments)]
        )
        ask = self._ask if patience_s is None else partial(self._ask_briefly, patience_s)
        # With a limit, no account waits for the turn of a silent one to end.
        at_once = _AT_ONCE if patience_s is None else len(names)
        with ThreadPoolExecutor(at_once, "spending") as threads:
            asked = [threads.submit(ask, name, books, sandbox) for name in names]
            with work("querying the backends for billed resources") as advance:
                for done, _ in enumerate(as_completed(asked), 1):
                    advance(done, len(asked))
            return [answer.result() for answer in asked]

    def _ask_briefly(self, patience_s: float, name: str, books: _StoredRuns, sandbox: bool) -> _AccountAnswer:
        try:
            return within(partial(self._ask, name, books, sandbox), patience_s)
        except TimeoutError:
            backend = self.provider(name)
            reason = f"no answer within {patience_s:g} s. To wait longer: orchestrate spending"
            return _AccountAnswer(
                AccountStatus(
                    backend=name,
                    title=backend.profile.title,
                    host=backend.host,
                    asked=False,
                    reason=reason,
                )
            )

    def _ask(self, name: str, books: _StoredRuns, sandbox: bool) -> _AccountAnswer:
        """Query one account. Never raises: an error of one backend is reported and does not hide the
        others."""
        known = [one for one in (*books.open, *books.deployments) if one.provider == name]
        expected = bool(known) or name in books.backends
        one = AccountStatus(backend=name, title=name, asked=False, expected=expected)
        if name not in self.backends and name not in session_hosts():  # those are not in `all`
            return _AccountAnswer(
                msgspec.structs.replace(one, reason="no backend with this name is configured now")
            )
        try:
            backend = self.provider(name)
            one = msgspec.structs.replace(one, title=backend.profile.title, host=backend.host)
            no_key = backend.config.api_key is None and not backend.profile.keyless
            if sandbox and not backend.config.sandbox:
                own = backend.profile.keyless
                return _AccountAnswer(msgspec.structs.replace(one, reason=_NO_SANDBOX if own else _NOT_UP))
            if backend.config.sandbox and not sandbox and not no_key:
                return _AccountAnswer(msgspec.structs.replace(one, reason=_PLAY))
            self.ready(name)
            one = msgspec.structs.replace(one, expected=True)
            billing = base.billing_of(backend)
        except MissingKey as error:
            return _AccountAnswer(msgspec.structs.replace(one, reason=error.message, keyless=True))
        except OrchestrateError as error:
            return _AccountAnswer(msgspec.structs.replace(one, expected=True, reason=error.message))
        except Exception as error:  # noqa: BLE001  a defect of one backend must not hide what bills on others
            reason = f"bug in the backend plug-in ({type(error).__name__})"
            return _AccountAnswer(msgspec.structs.replace(one, expected=True, reason=reason))
        seen = {item.job_id.lower() for item in billing.items if item.job_id}
        account, elsewhere, problem = self._elsewhere(backend, known, seen)
        unseen = (*billing.unseen, *([problem] if problem else []))
        status = msgspec.structs.replace(
            one,
            asked=True,
            account=account,
            unseen=unseen,
            partial=billing.partial or problem is not None,
            elsewhere=elsewhere,
        )
        items = tuple(msgspec.structs.replace(item, payload={}) for item in billing.items)
        up = [run for run in books.of_refs(seen) if run.provider == name]
        left = {one.id: why for one in up if (why := left_session(backend, one)) is not None}
        return _AccountAnswer(status, backend.config.base_url or backend.profile.kind, items, left)

    def _elsewhere(
        self, backend: Provider, known: Iterable[Run | Deployment], seen: Collection[str]
    ) -> tuple[str | None, tuple[str, ...], str | None]:
        """Return the account, the ids of open items that it does not list, and the error, if any."""
        from orchestrate.runs.submitting import accounts

        try:
            account = base.host_account(backend).id
            hidden = tuple(
                one.id
                for one in known
                if _may_bill(one)
                and (one.job_id or "").lower() not in seen
                and (one.host != backend.host or not accounts.is_here(self.store, backend, one.account))
            )
        except OrchestrateError as error:
            return None, (), f"could not look up the account of this key: {error.message}"
        except Exception as error:  # noqa: BLE001  as in `_ask`
            return None, (), f"could not look up the account of this key ({type(error).__name__})"
        return account, hidden, None


_PLAY = "a sandbox, which bills nothing. To include it: --sandbox"
_NO_SANDBOX = "not a sandbox"
_NOT_UP = "the sandbox is not running: orchestrate sandbox run -- orchestrate spending --sandbox"


def _may_bill(one: Run | Deployment) -> bool:
    from orchestrate.store.transitions import UNSENT

    if isinstance(one, Deployment):
        return not one.state.over and one.state is not DeploymentState.INTENT
    return not one.status.terminal and one.phase not in UNSENT and one.abandoned is None


def _owned(
    answers: Sequence[_AccountAnswer], books: _StoredRuns, ignore: Collection[str], now: datetime
) -> list[Found]:
    """List each billed item once, with its owner, even if two keys of one account show it. The most expensive
    come first."""
    items = [item for answer in answers for item in answer.items]
    names = [item.name for item in items if item.kind in ("job", "worker")]
    run_of = books.of_names(word for word in (*names, *(item.job_id for item in items)) if word)
    deployment_of = {one.job_id.lower(): one for one in reversed(books.deployments)}
    found: dict[tuple[str, str, str], Found] = {}
    for answer in answers:
        for item in answer.items:
            job, is_job = (item.job_id or "").lower(), item.kind in ("job", "worker")
            # Also match by ref: the store has no job id if the response to the create request was lost.
            run = run_of.get(job) or (run_of.get((item.name or "").lower()) if is_job else None)
            one = None if is_job else deployment_of.get(job)
            used = one.used_at if one else None
            # A new deployment is not idle, even if it has not received a request yet.
            in_use = one is not None and books.time_of(one) - (used or one.created_at) < IN_USE
            meant = not {item.id, item.id.rpartition("/")[2], item.name}.isdisjoint(ignore)
            resource = Found(
                item=item,
                run=run.id if run else None,
                deployment=one.id if one else None,
                used_at=used,
                person=(one and one.made_by) or (run.made_by if run else None) or item.owner,
                foreign=run is None and one is None,
                abandoned=(run is not None and run.abandoned is not None)
                or (one is not None and one.state is DeploymentState.ABANDONED),
                unaccounted=(unaccounted(run, now) or answer.left.get(run.id if run else ""))
                if is_job
                else None,
                idle=False,
            )
            # A job known to be created by another user of the account is tracked in that user's store.
            idle = resource.by_the_hour and not meant and not in_use and not (is_job and item.owner)
            found.setdefault((answer.place, item.kind, item.id), msgspec.structs.replace(resource, idle=idle))
    return sorted(found.values(), key=_weight)


def unaccounted(run: Run | None, now: datetime) -> str | None:
    """Return why a job with an Orchestrate ref is not accounted for by its run. Either the run is not in this
    store, or it was abandoned, or it ended more than `GRACE` ago. Returns `None` if the job is accounted
    for."""
    if run is None:
        return "no run in this store has this ref"
    if run.abandoned is not None:
        return "its run was abandoned"
    if run.status.terminal and now - (run.finished_at or run.updated_at) > GRACE:
        return f"its run has {run.status.value}"
    return None


def left_session(provider: Provider, run: Run | None) -> str | None:
    """Return why a session no longer uses its machine, or `None` if it may still use the machine. Queries the
    session's current state, because the store may not know yet that the session's program was killed. A
    session that has ended or is paused has already released its machine."""
    if run is None or run.job_kind != SESSION:
        return None
    with suppress(OrchestrateError):
        status = provider.get(run.handle).status
        if status.terminal or status is JobStatus.PAUSED:
            return f"its session is {status.value}"
    return None


def _weight(found: Found) -> tuple[bool, Decimal, str, str]:
    item = found.item
    return item.bills is False, -(item.usd_per_hour or Decimal(0)), item.provider, item.id
