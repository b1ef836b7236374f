"""The ledger: the total cost of everything in a store, and the check that further costs fit the budget and
limits.

Before Orchestrate sends anything that may cost money (a new run, a raised limit, a new or changed deployment,
a request for answers), it reserves the maximum cost in the transaction that records the operation. The actual
bill replaces the reservation later. A reservation is released only if it is certain that nothing was billed.
"""

from __future__ import annotations

import hashlib
import platform
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Connection, or_, select, text

from orchestrate.paid.limits import exceeds, require_price, require_within
from orchestrate.store import Clock, expense_groups, schema, stamp, time_of
from orchestrate.store.database import Database
from orchestrate.store.expense_groups import GroupShare
from orchestrate.types import Deployment, Run

if TYPE_CHECKING:
    from orchestrate.costing import Spending
    from orchestrate.costing.expenses import Expense
    from orchestrate.paid.journal import Send
    from orchestrate.settings.config import Settings

_LOCK = schema.APPLICATION_ID + 1
_LESS = "lower --max-hours or --max-cost, or raise the budget"
_NO_BUDGET = "use a model with a known price, or run without a budget (budget_usd)"
_KEPT = "send-"
"""Prefix of the ids of reservations whose outcome is stored. Ids from earlier versions lack it."""
_AT_ONCE = 500
LONGEST_ANSWER = timedelta(days=1)
"""Age at which an answer request counts as billed, even if its result is still unknown."""


def one_at_a_time(connection: Connection) -> None:
    """Block other processes from spending or creating runs until the transaction ends."""
    if connection.dialect.name == "postgresql":  # SQLite's writers wait for one another anyway
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


class Limit(NamedTuple):
    """A spending limit that is checked in addition to the budget, in the transaction that reserves the
    cost."""

    usd: Decimal
    taken: Callable[[Connection], Decimal]
    """Function that returns how much of the limit is already used, in USD."""
    description: dict[str, str]
    """Texts for the `OverBudget` message, as {argument of `require_within`: text}."""
    wanted: Decimal | None = None
    """Cost to check against this limit, if it differs from the cost that is checked against the budget."""


def reserve(  # noqa: PLR0913  what is held, and each limit that it is held against
    connection: Connection,
    clock: Clock,
    provider: str,
    usd: Decimal | None,
    *,
    budget_usd: Decimal | None,
    held_usd: Decimal = Decimal(0),
    unknown: str | None = None,
    unknown_fix: str | None = None,
    limits: Sequence[Limit] = (),
    **words: str,
) -> None:
    """Check that `usd` fits the remaining budget and each limit. Raises `OverBudget` if it does not, and
    `UnknownPrice` if the price is unknown. `held_usd` is the part of `usd` that is already reserved, so the
    budget does not count it twice. The caller records the reservation in the same transaction."""
    if budget_usd is None and not limits:
        return
    one_at_a_time(connection)
    for limit in limits:
        wanted, taken = usd if limit.wanted is None else limit.wanted, limit.taken(connection)
        require_within(provider, wanted, limit.usd, taken_usd=taken, unknown=unknown, **limit.description)
    if budget_usd is not None:
        taken = total_spending(connection, clock).total_usd - held_usd
        words = {"what": "the remaining budget", **words}
        require_within(
            provider, usd, budget_usd, taken_usd=taken, unknown=unknown, unknown_fix=unknown_fix, **words
        )


def reserve_run(
    connection: Connection, clock: Clock, run: Run, budget_usd: Decimal | None, limits: Sequence[Limit]
) -> None:
    """Check that a new run's maximum cost fits the budget and the limits.

    The maximum cost is the high end of the quote or, if higher, the cost of the run's machine until its time
    limit. In a sandbox, only the limits apply, including the run's own.
    """
    from orchestrate.costing.expenses import unpriced

    quote, name = run.quote, run.provider
    unknown = "no quote available" if quote is None else unpriced(quote)
    high = Decimal(0) if quote is None else quote.held_usd
    if quote is not None:
        require_within(name, high, run.max_cost_usd, unknown=quote.why_none)
    held = max(high, run.allowed_usd or Decimal(0))
    figure = "the maximum cost of the run's machine" if held > high else "the quote's high end"
    budget_usd = None if run.sandbox else budget_usd
    reserve(
        connection, clock, name, held, budget_usd=budget_usd, unknown=unknown, limits=limits, figure=figure
    )


def reserve_more(
    connection: Connection,
    clock: Clock,
    run: Run,
    usd: Decimal | None,
    budget_usd: Decimal | None,
    limits: Sequence[Limit],
    figure: str,
    *,
    anew: bool = False,
) -> None:
    """Check that `usd`, the new maximum cost of a run, fits the limits. If it exceeds the amount that is
    already reserved, the increase must also fit the budget. If `usd` is `None`, the reservation stays
    unchanged and the budget isn't checked. With `anew`, all of `usd` must fit the budget, which may have
    been lowered since the amount was reserved."""
    from orchestrate.costing import spending  # late: listing runs must not pay for the room's import

    taken = spending(run).total_usd
    if not (anew or exceeds(usd, taken)):
        budget_usd = None
    reserve(
        connection,
        clock,
        run.provider,
        usd,
        budget_usd=None if run.sandbox else budget_usd,
        held_usd=taken,
        limits=limits,
        figure=figure,
    )


def reserve_deployment(
    connection: Connection,
    clock: Clock,
    before: Deployment | None,
    after: Deployment,
    budget_usd: Decimal | None,
    limits: Sequence[Limit] = (),
) -> None:
    """Check that the remaining cost that a deployment may still cause fits the budget and the limits. The
    amount that is already reserved for the deployment is not counted twice.

    If the deployment is already being billed, a change that does not raise its maximum cost is always
    accepted. In a sandbox, only `limits` apply.
    """
    budget_usd = None if after.sandbox else budget_usd
    if budget_usd is None and not limits:
        return
    now = time_of(after, clock)
    held = _as_billed(before, now).committed_usd if before is not None else Decimal(0)
    wanted = _as_billed(after, now).committed_usd
    priced = after.usd_per_hour is not None
    if priced and before is not None and before.billing_since is not None and wanted <= held:
        return
    reserve(
        connection,
        clock,
        after.provider,
        wanted,
        budget_usd=budget_usd,
        held_usd=held,
        unknown=None if priced else "the hourly price of this deployment is unknown",
        unknown_fix="use a shape with a known price, or run without a budget",
        limits=limits,
        figure="the maximum further cost of this deployment",
        fix=_LESS,
    )


def _as_billed(deployment: Deployment, at: datetime) -> Spending:
    """Count a sandbox's simulated cost like money."""
    from orchestrate.costing.expenses import deployment_spending

    return deployment_spending(replace(deployment, sandbox=False), at)


def gateway_spending(
    connection: Connection, clock: Clock, *, but: str | None = None, **named: str
) -> Decimal:
    """Return what the selected deployments have cost so far, plus what they may still cost, in USD.

    `named` selects deployments by field values, such as `gateway_key="ci"`. If the deployment with the id
    `but` is still open, it is left out.
    """
    table, found = schema.deployments, Decimal(0)
    query = select(table.c.record).where((table.c.id != (but or "")) | table.c.over)
    for field_name, value in named.items():
        part = f'"{field_name}":{msgspec.json.encode(value).decode()}'
        query = query.where(table.c.record.contains(part, autoescape=True))
    for record in connection.execute(query).scalars():
        deployment = Deployment.from_json(record)
        if all(getattr(deployment, name) == value for name, value in named.items()):  # LIKE knows no case
            found += _as_billed(deployment, time_of(deployment, clock)).total_usd
    return found


def total_spending(connection: Connection, clock: Clock) -> Spending:
    """Return the total spending so far on runs, deployments and answers."""
    from orchestrate.costing import Spending  # late: listing runs must not pay for the room's import

    # A single statement, so a deployment that ends at this moment is counted exactly once.
    rows = connection.execute(_KEPT_AND_GOING).all()
    kept = _taken(rows[0]) if rows else _sum(_shares(connection))
    spent, committed = kept.spent_usd, kept.committed_usd
    going = [row.record for row in rows] if rows else connection.execute(_GOING).scalars()
    for deployed in _deployed(going, clock):
        spent += deployed.spent_usd
        committed += deployed.committed_usd
    for answers in _answers(connection):
        spent += answers.spent_usd
        committed += answers.held_usd
    return Spending(spent_usd=spent, committed_usd=committed)


def _deployed(records: Iterable[str | None], clock: Clock) -> list[Spending]:
    from orchestrate.costing.expenses import deployment_spending

    found = [Deployment.from_json(record) for record in records if record is not None]
    return [deployment_spending(one, time_of(one, clock)) for one in found]


# -- stored sums: adding up all runs for each answer would get slower with every run -----------------------


class LedgerShare(NamedTuple):
    """The amounts that one run or deployment adds to the ledger's sums."""

    spent_usd: Decimal = Decimal(0)
    committed_usd: Decimal = Decimal(0)
    group: GroupShare | None = None
    """The amounts that a run adds to its group. Those of sandbox runs are simulated, and are part of no other
    sum."""

    @classmethod
    def by_run(cls, row: Mapping[Any, Any]) -> LedgerShare:
        """Read the amounts from a run's row."""
        group = GroupShare.by_run(row)
        if row["sandbox"]:
            return cls(group=group)
        return cls(Decimal(row["bill_usd"] or 0), Decimal(row["committed_usd"] or 0), group)

    @classmethod
    def by_deployment(cls, deployment: Deployment | None) -> LedgerShare:
        """Return the final cost of a deployment that has ended. Returns zero for an open one, whose cost
        still grows."""
        from orchestrate.costing.expenses import deployment_spending

        if deployment is None or not deployment.state.over:
            return cls()
        return cls(deployment_spending(deployment, deployment.updated_at).spent_usd)


_SUMS, _RECOUNTED = "all", "recounted"
_KEPT_SUMS = select(schema.kept_sums.c.spent_usd, schema.kept_sums.c.committed_usd)
_IS_GOING = ~schema.deployments.c.sandbox & ~schema.deployments.c.over
_GOING = select(schema.deployments.c.record).where(_IS_GOING)
_KEPT_AND_GOING = _KEPT_SUMS.add_columns(schema.deployments.c.record).select_from(
    schema.kept_sums.outerjoin(schema.deployments, _IS_GOING)
)
_FIRST = text("INSERT INTO kept_sums VALUES (:name, '0', '0') ON CONFLICT DO NOTHING")


def count(connection: Connection, before: Iterable[LedgerShare], after: Iterable[LedgerShare]) -> None:
    """Update the sums in the transaction that changes the runs or deployments. Call this last, so
    transactions can't deadlock."""
    before, after = list(before), list(after)
    change = _sum(after, less=before)
    groups = expense_groups.changes((one.group for one in before), (one.group for one in after))
    if change == LedgerShare() and not groups:
        return
    if connection.execute(_FIRST, {"name": _SUMS}).rowcount:
        recount(connection)  # with what has changed
        return
    expense_groups.add(connection, groups)
    if change == LedgerShare():
        return
    known = _taken(connection.execute(_KEPT_SUMS.with_for_update()).one())
    _keep(connection, _sum([known, change]))


def _sum(some: Iterable[LedgerShare], *, less: Iterable[LedgerShare] = ()) -> LedgerShare:
    """Add up the amounts exactly. An amount may have 28 digits, because hours are computed from seconds, and
    a rounded sum depends on the order."""
    with localcontext(prec=expense_groups.DIGITS):
        spent = committed = Decimal(0)
        for sign, each in ((1, some), (-1, less)):
            for taken in each:
                spent += sign * taken.spent_usd
                committed += sign * taken.committed_usd
    return LedgerShare(spent, committed)


def _keep(connection: Connection, sums: LedgerShare) -> None:
    values = {"spent_usd": f"{sums.spent_usd:f}", "committed_usd": f"{sums.committed_usd:f}"}
    connection.execute(schema.kept_sums.update().values(values))


def _taken(row: Any) -> LedgerShare:
    return LedgerShare(Decimal(row.spent_usd), Decimal(row.committed_usd))


def recount(connection: Connection) -> bool:
    """Recompute the sums, in case another program changed the store. Returns whether they were wrong."""
    new = connection.execute(_FIRST, {"name": _SUMS}).rowcount
    expense_groups.lock(connection)  # before the total, as in `count`
    known = _taken(connection.execute(_KEPT_SUMS.with_for_update()).one())
    each = _shares(connection)
    sums = _sum(each)
    _keep(connection, sums)
    right = expense_groups.replace(connection, (one.group for one in each))
    return not new and not (right and sums == known)


def _shares(connection: Connection) -> list[LedgerShare]:
    runs, deployments = schema.runs.c, schema.deployments
    query = select(runs.sandbox, runs.bill_usd, runs.committed_usd, runs.group_key).where(
        or_(runs.bill_usd.is_not(None), runs.committed_usd.is_not(None), runs.group_key.is_not(None))
    )
    each = [LedgerShare.by_run(row) for row in connection.execute(query).mappings()]
    ended = select(deployments.c.record).where(~deployments.c.sandbox, deployments.c.over)
    each += [
        LedgerShare.by_deployment(Deployment.from_json(record))
        for record in connection.execute(ended).scalars()
    ]
    return each


# -- answers -----------------------------------------------------------------------------------------------


class AnswerSpending(NamedTuple):
    """The cost of one backend's answers for one purpose in one month (`2026-11`, UTC)."""

    purpose: str
    backend: str
    month: str
    made_by: str
    spent_usd: Decimal
    """Total of the bills, plus the maximum cost of answers that never arrived."""
    held_usd: Decimal
    """Amount reserved for requests in progress."""
    requests: int

    def expense(self) -> Expense:
        from orchestrate.costing.expenses import Expense, exact

        return Expense(
            id=f"{self.purpose}-{self.backend}-{self.month}",
            kind="answers",
            purpose=self.purpose,
            requests=self.requests,
            backend=self.backend,
            month=self.month,
            person=self.made_by or None,
            spent_usd=exact(self.spent_usd),
            committed_usd=exact(self.held_usd),
        )


def _answers(connection: Connection) -> list[AnswerSpending]:
    sums, holds = schema.answer_sums, schema.answer_holds
    found: dict[tuple[str, str, str, str], AnswerSpending] = {}
    for row in connection.execute(select(sums)):
        key = (row.purpose, row.backend, row.month, row.made_by)
        found[key] = AnswerSpending(*key, Decimal(row.usd), Decimal(0), row.requests)
    for row in connection.execute(select(holds)):
        key = (row.purpose, row.backend, row.at[:7], row.made_by)
        known = found.get(key) or AnswerSpending(*key, Decimal(0), Decimal(0), 0)
        found[key] = known._replace(held_usd=known.held_usd + Decimal(row.usd), requests=known.requests + 1)
    return list(found.values())


class Ledger:
    """The ledger of a store: its total spending, and the reservations for individually billed answers."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def spending(self) -> Spending:
        """Return the spending on all runs, deployments and answers, except those of sandboxes."""
        with self._db.reading() as connection:
            return total_spending(connection, self._db.clock)

    def recount(self, *, every: timedelta = timedelta(0)) -> bool:
        """Recompute the sums of all runs and ended deployments, unless that was done less than `every` ago.
        Returns whether they were wrong."""
        meta, now = schema.meta, self._db.clock.now()
        with self._db.reading() as connection:
            last = connection.execute(select(meta.c.value).where(meta.c.key == _RECOUNTED)).scalar()
        if last is not None and stamp(now - every) < last <= stamp(now):
            return False
        with self._db.writing() as connection:
            one_at_a_time(connection)
            wrong = recount(connection)
            first = self._db.insert(meta).values(key=_RECOUNTED, value=(at := stamp(now)))
            connection.execute(first.on_conflict_do_update(index_elements=[meta.c.key], set_={"value": at}))
            return wrong

    def of_runs(self, *, sandbox: bool) -> tuple[list[Expense], list[Run]]:
        """Return the expenses of groups of ended runs, and the runs that belong to no group, newest first."""
        with self._db.reading() as connection:
            return expense_groups.read(connection, sandbox=sandbox)

    def answers(self) -> list[AnswerSpending]:
        """Return the spending on individually billed answers, grouped by purpose, backend, month and user."""
        with self._db.reading() as connection:
            return _answers(connection)

    def left(self) -> dict[Path, dict[str, Decimal]]:
        """Return the amounts reserved for answers in progress, as `{journal: {reservation id: USD}}`. Only
        includes journals on this machine."""
        found: dict[Path, dict[str, Decimal]] = {}
        holds = schema.answer_holds
        with self._db.reading() as connection:
            for row in connection.execute(select(holds.c.id, holds.c.log, holds.c.usd)):
                if (log := _path_on(platform.node(), row.log)) is not None:
                    found.setdefault(log, {})[row.id] = Decimal(row.usd)
        return found

    def settle_left(self, log: Path, sends: Mapping[str, Send]) -> None:
        """Settle the reservations of one journal. The caller must hold the journal's lock. `sends` are the
        requests recorded in the journal."""
        known = {id: sends[id] for id in self.left().get(log, {}) if id in sends}
        AnswerAccount(self._db, "", None).catch_up("", log, known, found=True)

    def account(self, purpose: str, settings: Settings) -> AnswerAccount:
        """Return an account that reserves and settles the cost of a command's answers. The cost counts toward
        the store's budget."""
        return AnswerAccount(self._db, purpose, settings.budget_usd, settings.made_by or "")


class AnswerAccount(Struct, frozen=True):
    """Account for individually billed answers. It reserves each request's maximum price before the request is
    sent, and settles the reservation once the outcome is known. Safe to use from several threads and
    processes."""

    _db: Database
    purpose: str
    budget_usd: Decimal | None
    """Budget of the store. All costs in the store count toward it."""
    made_by: str = ""
    machine: str = msgspec.field(default_factory=platform.node)

    def require_price(self, backend: str) -> None:
        """Raise `UnknownPrice` if there is a budget. Call this if answers are billed at an unknown price."""
        require_price(backend, None, self.budget_usd, "the price of the answers is unknown", _NO_BUDGET)

    def hold(self, backend: str, usd: Decimal, log: Path) -> str:
        """Reserve the maximum price of one request, which will be recorded in `log`. Returns the id of the
        reservation. Raises `OverBudget` if the price exceeds the remaining budget."""
        id = f"{_KEPT}{secrets.token_hex(8)}-{_mark(log, self._db.clock)}"
        with self._db.writing() as connection:
            reserve(
                connection,
                self._db.clock,
                backend,
                usd,
                budget_usd=self.budget_usd,
                figure="the maximum cost of the next answer",
                fix="raise the budget, then run the same command again to continue from here",
            )
            connection.execute(
                schema.answer_holds.insert().values(
                    id=id,
                    at=stamp(self._db.clock.now()),
                    log=self._name(log),
                    purpose=self.purpose,
                    backend=backend,
                    made_by=self.made_by,
                    usd=str(usd),
                    log_bytes=_size(log) or 0,
                )
            )
        return id

    def settle(self, id: str, usd: Decimal) -> None:
        """Replace a request's reservation with its actual cost. Repeated calls change nothing."""
        table = schema.answer_holds
        with self._db.writing() as connection:
            one_at_a_time(connection)  # whoever adds all up sees it held or settled, and never neither
            row = connection.execute(select(table).where(table.c.id == id)).one_or_none()
            if row is not None:
                self._settle(connection, row.id, row.purpose, row.backend, row.made_by, usd)

    def release(self, id: str) -> None:
        """Release the reservation of a request that is known not to have been sent."""
        with self._db.writing() as connection:
            self._end(connection, id)

    def catch_up(self, backend: str, log: Path, sends: Mapping[str, Send], *, found: bool = False) -> None:
        """Settle requests whose outcome is recorded in this log but not in the store. This happens if the
        process was killed, or if the store was restored from an older backup. The caller must hold the log's
        lock.

        Reservations whose request is not in the log count as spent in full, unless the log proves that the
        request was never sent: these are released. The log is proof only if it was `found`, is still the same
        file, and is complete. Reservations that are older than a day also count as spent if their log is gone
        or on another machine.
        """
        holds, name = schema.answer_holds, self._name(log)
        old = stamp(self._db.clock.now() - LONGEST_ANSWER)
        left = select(holds).where(or_(holds.c.log == name, holds.c.at < old))
        with self._db.reading() as connection:
            if connection.execute(left.limit(1)).first() is None and not _unknown(connection, sends):
                return
        with self._db.writing() as connection:
            one_at_a_time(connection)
            for row in connection.execute(left).all():
                own = row.log == name
                path = _path_on(self.machine, row.log)
                if not own and path is not None and _size(path) is not None:
                    continue  # whoever opens it knows more, and a wrong clock makes any reservation old
                came_to = sends.get(row.id) if own else None
                if own and found and came_to is None and _never_sent(row, log, self._db.clock):
                    self._end(connection, row.id)
                    continue
                usd = Decimal(row.usd) if came_to is None else came_to.usd
                self._settle(connection, row.id, row.purpose, row.backend, row.made_by, usd)
            for id in _unknown(connection, sends):
                usd, at = sends[id]
                self._settle(connection, id, self.purpose, backend, self.made_by, usd, at)

    def _settle(
        self,
        connection: Connection,
        id: str,
        purpose: str,
        backend: str,
        made_by: str,
        usd: Decimal,
        at: datetime | None = None,
    ) -> None:
        table = schema.answer_sums
        self._end(connection, id)
        month = f"{(at or self._db.clock.now()).astimezone(UTC):%Y-%m}"
        key = {"purpose": purpose, "backend": backend, "month": month, "made_by": made_by}
        first = self._db.insert(table).values(**key, usd="0", requests=0)
        connection.execute(first.on_conflict_do_nothing())
        query = select(table.c.usd, table.c.requests).filter_by(**key)
        before = connection.execute(query).one()
        values = {"usd": str(Decimal(before.usd) + usd), "requests": before.requests + 1}
        connection.execute(table.update().filter_by(**key).values(values))

    def _end(self, connection: Connection, id: str) -> None:
        holds, ended = schema.answer_holds, schema.answers_ended
        connection.execute(holds.delete().where(holds.c.id == id))
        connection.execute(self._db.insert(ended).values(hold=id).on_conflict_do_nothing())

    def _name(self, log: Path) -> str:
        """Return the log's name, with the machine, because another machine may have a file with the
        same path."""
        return f"{self.machine}:{log.resolve()}"


def _path_on(machine: str, name: str) -> Path | None:
    """Return the path in a log's name, or `None` if the log is on another machine."""
    here = f"{machine}:"
    return Path(name.removeprefix(here)) if name.startswith(here) else None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _mark(log: Path, clock: Clock) -> str:
    """Identify this file since this boot of this machine. Another machine may have the same name and a file
    with the same path, and a copy is a different file."""
    try:
        found = log.stat()
    except OSError:
        return ""
    which = f"{clock.uptime().boot} {found.st_dev} {found.st_ino}"
    return hashlib.sha256(which.encode()).hexdigest()[:16]


def _never_sent(hold: Any, log: Path, clock: Clock) -> bool:
    """Return whether the request of a hold missing from its journal was never sent. Each request is recorded
    there before it is sent, and nothing is ever removed. A journal that is shorter than it was at the time of
    the hold is an older copy."""
    mark, size = _mark(log, clock), _size(log)
    if hold.log_bytes is None or size is None or not mark:
        return False
    return hold.id.endswith(f"-{mark}") and size >= hold.log_bytes


def _unknown(connection: Connection, sends: Mapping[str, Send]) -> list[str]:
    """Return the requests that are neither held nor ended here, without those from before ended requests were
    stored."""
    known: set[str] = set()
    hold_ids = [id for id in sends if id.startswith(_KEPT)]
    for start in range(0, len(hold_ids), _AT_ONCE):
        some = hold_ids[start : start + _AT_ONCE]
        for column in (schema.answers_ended.c.hold, schema.answer_holds.c.id):
            known.update(connection.execute(select(column).where(column.in_(some))).scalars())
    return [id for id in hold_ids if id not in known]
