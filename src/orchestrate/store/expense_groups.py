"""Sums of the costs of ended runs, by backend, account, month, tags, project and user. They are updated in
the transaction that changes a run, so a spending report does not read each run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace as changed
from sqlalchemy import Connection, bindparam, func, literal, null, select, text, union_all

from orchestrate.store import schema
from orchestrate.types import Run

if TYPE_CHECKING:
    from orchestrate.costing.expenses import Expense


class GroupShare(NamedTuple):
    """The amounts that one run adds to its group."""

    key: str
    spent_usd: Decimal
    committed_usd: Decimal

    @classmethod
    def by_run(cls, row: Mapping[Any, Any]) -> GroupShare | None:
        """Read the amounts from a run's row. Returns `None` if the run belongs to no group."""
        if row["group_key"] is None:
            return None
        return cls(row["group_key"], Decimal(row["bill_usd"] or 0), Decimal(row["committed_usd"] or 0))


class GroupSum(NamedTuple):
    """The amounts of a group, or a change of them."""

    runs: int = 0
    spent_usd: Decimal = Decimal(0)
    committed_usd: Decimal = Decimal(0)

    def plus(self, other: GroupSum, times: int = 1) -> GroupSum:
        """Add exactly, in any order, any amount that a host may report."""
        with localcontext(prec=DIGITS):
            return GroupSum(
                self.runs + times * other.runs,
                self.spent_usd + times * other.spent_usd,
                self.committed_usd + times * other.committed_usd,
            )

    @classmethod
    def of(cls, row: Any) -> GroupSum:
        return cls(row.runs, Decimal(row.spent_usd), Decimal(row.committed_usd))


DIGITS = 400
"""Precision at which sums are exact. A host's number has at most 308 digits before the point."""
_TABLE = schema.expense_groups
_SUMS = select(_TABLE.c.key, _TABLE.c.runs, _TABLE.c.spent_usd, _TABLE.c.committed_usd)
_FIRST = text(
    "INSERT INTO expense_groups VALUES (:key, :sandbox, 0, '0', '0', :record) ON CONFLICT DO NOTHING"
)
_SET = _TABLE.update().where(_TABLE.c.key == bindparam("of"))
_AT_ONCE = 500


def changes(
    before: Iterable[GroupShare | None], after: Iterable[GroupShare | None] = ()
) -> dict[str, GroupSum]:
    """Return how the sums change if the runs' shares change from `before` to `after`, by the groups' keys.
    Leaves out groups that stay the same."""
    from orchestrate.costing.expenses import exact

    found: dict[str, GroupSum] = {}
    for sign, shares in ((-1, before), (1, after)):
        for share in shares:
            if share is not None:
                part = GroupSum(1, exact(share.spent_usd), exact(share.committed_usd))
                found[share.key] = found.get(share.key, GroupSum()).plus(part, sign)
    return {key: change for key, change in found.items() if change != GroupSum()}


def add(connection: Connection, some: Mapping[str, GroupSum]) -> None:
    """Add the changes to the kept sums."""
    # New groups first, then the others, always in the same order: so transactions can't deadlock.
    keys, known = sorted(some), set[str]()
    parts = [keys[start : start + _AT_ONCE] for start in range(0, len(keys), _AT_ONCE)]
    for part in parts:
        known.update(connection.execute(select(_TABLE.c.key).where(_TABLE.c.key.in_(part))).scalars())
    _begin(connection, sorted(some.keys() - known))
    for part in parts:
        query = _SUMS.where(_TABLE.c.key.in_(part)).order_by(_TABLE.c.key).with_for_update()
        kept = {row.key: GroupSum.of(row) for row in connection.execute(query)}
        _set(connection, {key: sums.plus(some[key]) for key, sums in kept.items()})


def lock(connection: Connection) -> None:
    """Block other transactions from changing sums, including those of groups that they are about to
    insert."""
    if connection.dialect.name == "postgresql":  # SQLite's writers wait for one another anyway
        connection.execute(text("LOCK TABLE expense_groups IN EXCLUSIVE MODE"))


def replace(connection: Connection, shares: Iterable[GroupShare | None]) -> bool:
    """Set the kept sums to those of all runs' shares. Returns whether they already were."""
    sums = changes((), shares)
    known = {row.key: GroupSum.of(row) for row in connection.execute(_SUMS)}
    wrong = {
        key: sums.get(key, GroupSum())
        for key in sorted({*known, *sums})
        if known.get(key, GroupSum()) != sums.get(key, GroupSum())
    }
    _begin(connection, [key for key in wrong if key not in known])
    _set(connection, wrong)
    return not wrong


def _begin(connection: Connection, keys: Sequence[str]) -> None:
    """Insert groups without amounts. Any run of a group describes it."""
    from orchestrate.costing.expenses import group_of

    runs, values = schema.runs.c, list[dict[str, Any]]()
    for start in range(0, len(keys), _AT_ONCE):
        part = keys[start : start + _AT_ONCE]
        any_run = select(func.min(runs.id)).where(runs.group_key.in_(part)).group_by(runs.group_key)
        query = select(runs.group_key, runs.record).where(runs.id.in_(any_run)).order_by(runs.group_key)
        for row in connection.execute(query):
            if group := group_of(Run.from_json(row.record)):
                record = group.to_json().decode()
                values.append({"key": row.group_key, "sandbox": group.sandbox, "record": record})
    if values:
        connection.execute(_FIRST, values)


def _set(connection: Connection, some: Mapping[str, GroupSum]) -> None:
    values = [
        {"of": key, "runs": s.runs, "spent_usd": f"{s.spent_usd:f}", "committed_usd": f"{s.committed_usd:f}"}
        for key, s in some.items()
    ]
    if values:
        connection.execute(_SET, values)


def read(connection: Connection, *, sandbox: bool) -> tuple[list[Expense], list[Run]]:
    """Return the expenses of all groups, and the runs that belong to no group, newest first."""
    from orchestrate.costing.expenses import Expense, exact

    runs = schema.runs
    groups = select(_TABLE.c.record, _TABLE.c.runs, _TABLE.c.spent_usd, _TABLE.c.committed_usd).where(
        _TABLE.c.runs > 0, _TABLE.c.sandbox if sandbox else ~_TABLE.c.sandbox
    )
    own = select(runs.c.record, literal(0), null(), null()).where(
        runs.c.group_key.is_(None), runs.c.sandbox if sandbox else ~runs.c.sandbox
    )
    found: list[Expense] = []
    alone: list[Run] = []
    # A single statement, so a run that ends at this moment is counted exactly once.
    for row in connection.execute(union_all(groups, own)):
        if not row.runs:
            alone.append(Run.from_json(row.record))
        else:
            count, spent, committed = GroupSum.of(row)
            amounts = {"spent_usd": exact(spent), "committed_usd": exact(committed)}
            found.append(changed(Expense.from_json(row.record), runs=count, **amounts))
    return found, sorted(alone, key=lambda run: (run.created_at, run.id), reverse=True)
