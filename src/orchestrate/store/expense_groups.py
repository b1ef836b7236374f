"""Sums of the costs of ended runs, by backend, account, month, tags, project and user. They are updated in
the transaction that changes a run, so a spending report does not read each run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace as changed
from sqlalchemy import Connection, literal, null, select, text, union_all

from orchestrate.store import schema
from orchestrate.types import Run

if TYPE_CHECKING:
    from orchestrate.costing.expenses import Expense


class GroupShare(NamedTuple):
    """The amounts that one run adds to its group."""

    key: str
    spent_usd: Decimal
    committed_usd: Decimal


class GroupSum(NamedTuple):
    """The amounts of a group, or a change of them."""

    runs: int = 0
    spent_usd: Decimal = Decimal(0)
    committed_usd: Decimal = Decimal(0)

    def plus(self, other: GroupSum) -> GroupSum:
        with localcontext(prec=200):
            return GroupSum(
                self.runs + other.runs,
                self.spent_usd + other.spent_usd,
                self.committed_usd + other.committed_usd,
            )

    @classmethod
    def of(cls, row: Any) -> GroupSum:
        return cls(row.runs, Decimal(row.spent_usd), Decimal(row.committed_usd))


_TABLE = schema.expense_groups
_SUMS = select(_TABLE.c.key, _TABLE.c.runs, _TABLE.c.spent_usd, _TABLE.c.committed_usd)
_FIRST = text(
    "INSERT INTO expense_groups VALUES (:key, :sandbox, 0, '0', '0', :record) ON CONFLICT DO NOTHING"
)


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
                part = GroupSum(sign, sign * exact(share.spent_usd), sign * exact(share.committed_usd))
                found[share.key] = found.get(share.key, GroupSum()).plus(part)
    return {key: change for key, change in found.items() if change != GroupSum()}


def add(connection: Connection, some: Mapping[str, GroupSum]) -> None:
    """Add the changes to the kept sums."""
    for key in sorted(some):  # always in the same order, so transactions can't deadlock
        query = _SUMS.where(_TABLE.c.key == key).with_for_update()
        row = connection.execute(query).one_or_none()
        if row is None and _begin(connection, key):
            row = connection.execute(query).one()
        if row is not None:
            _set(connection, key, GroupSum.of(row).plus(some[key]))


def lock(connection: Connection) -> None:
    """Block other transactions from changing the sums of existing groups."""
    connection.execute(select(_TABLE.c.key).order_by(_TABLE.c.key).with_for_update())


def kept(connection: Connection) -> dict[str, GroupSum]:
    """Return the kept sums by key."""
    return {row.key: GroupSum.of(row) for row in connection.execute(_SUMS)}


def replace(
    connection: Connection, known: Mapping[str, GroupSum], shares: Iterable[GroupShare | None]
) -> bool:
    """Set the kept sums to those of all runs' shares. Returns whether they already were."""
    sums = changes((), shares)
    wrong = [key for key in {*known, *sums} if known.get(key, GroupSum()) != sums.get(key, GroupSum())]
    for key in sorted(wrong):
        if key in known or _begin(connection, key):
            _set(connection, key, sums.get(key, GroupSum()))
    return not wrong


def _begin(connection: Connection, key: str) -> bool:
    """Insert a group without amounts. Any of its runs describes it. Returns whether there is such a run."""
    from orchestrate.costing.expenses import group_of

    query = select(schema.runs.c.record).where(schema.runs.c.group_key == key).limit(1)
    for record in connection.execute(query).scalars().all():
        if group := group_of(Run.from_json(record)):
            values = {"key": key, "sandbox": group.sandbox, "record": group.to_json().decode()}
            connection.execute(_FIRST, values)
            return True
    return False


def _set(connection: Connection, key: str, sums: GroupSum) -> None:
    values = {
        "runs": sums.runs,
        "spent_usd": f"{sums.spent_usd:f}",
        "committed_usd": f"{sums.committed_usd:f}",
    }
    connection.execute(_TABLE.update().where(_TABLE.c.key == key).values(values))


def read(connection: Connection, *, sandbox: bool) -> tuple[list[Expense], list[Run]]:
    """Return the expenses of all groups, and the runs that belong to no group, newest first."""
    from orchestrate.costing.expenses import Expense

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
            sums = GroupSum.of(row)
            found.append(changed(Expense.from_json(row.record), **sums._asdict()))
    return found, sorted(alone, key=lambda run: (run.created_at, run.id), reverse=True)
