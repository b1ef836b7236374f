"""What all runs and deployments of a store cost together, and what is left of a budget."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from sqlalchemy import Connection, or_, select, text

from orchestrate.errors import OverBudget
from orchestrate.store.clock import Clock, time_of
from orchestrate.store.database import schema
from orchestrate.types import Deployment

if TYPE_CHECKING:
    from orchestrate.costing import Spending

QUOTED = "the quote's high end"
_LOCK = schema.APPLICATION_ID + 1


def one_at_a_time(connection: Connection) -> None:
    """Nobody else makes a run until the transaction ends."""
    if connection.dialect.name == "postgresql":  # SQLite's writers wait for one another anyway
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def total_spending(connection: Connection, clock: Clock) -> Spending:
    """Runs, and deployments as they stand now."""
    from orchestrate.costing import Spending  # late: listing runs must not pay for the room's import

    table = schema.runs
    query = select(table.c.bill_usd, table.c.committed_usd).where(
        ~table.c.sandbox, or_(table.c.bill_usd.is_not(None), table.c.committed_usd.is_not(None))
    )
    spent = committed = Decimal(0)
    for bill, high in connection.execute(query):
        spent += Decimal(bill or 0)
        committed += Decimal(high or 0)
    deployed = _deployed(connection, clock)
    spent += deployed.spent_usd
    committed += deployed.committed_usd
    return Spending(spent_usd=spent, committed_usd=committed)


def _deployed(connection: Connection, clock: Clock) -> Spending:
    from orchestrate.costing import Spending
    from orchestrate.costing.spent.budget import deployment_spending

    table = schema.deployments
    records = connection.execute(select(table.c.record).where(~table.c.sandbox)).scalars()
    found = [Deployment.from_json(record) for record in records]
    each = [deployment_spending(one, time_of(one, clock)) for one in found]
    return Spending(
        spent_usd=sum((one.spent_usd for one in each), Decimal(0)),
        committed_usd=sum((one.committed_usd for one in each), Decimal(0)),
    )


def require_budget(
    connection: Connection,
    clock: Clock,
    provider: str,
    high_usd: Decimal,
    budget_usd: Decimal,
    figure: str = QUOTED,
    **more: str,
) -> None:
    """Raises `OverBudget`, with `more` of it, unless `high_usd` fits into what is left. Nobody else spends
    until the transaction ends."""
    one_at_a_time(connection)
    left = budget_usd - total_spending(connection, clock).total_usd
    if high_usd > left:
        what = "what is left of the budget,"
        raise OverBudget(provider, high_usd, max(left, Decimal(0)), what=what, figure=figure, **more)
