"""Migrations of a store between released schema versions. Each one runs in the transaction that upgrades the
store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Connection, bindparam, inspect, select, text
from sqlalchemy.schema import CreateIndex

from orchestrate.store import expense_groups, schema
from orchestrate.store.expense_groups import GroupShare
from orchestrate.store.schema import metadata, runs
from orchestrate.types import Run


def _count_answers(connection: Connection) -> None:
    metadata.create_all(connection, tables=[schema.answer_holds, schema.answer_sums])


def _keep_ended(connection: Connection) -> None:
    metadata.create_all(connection, tables=[schema.answers_ended])


def _list_by_the_database(connection: Connection) -> None:
    """Add the columns, indexes and table for lists of runs, and fill them for existing runs."""
    known = {column["name"] for column in inspect(connection).get_columns("runs")}
    kinds = {"title": "TEXT NOT NULL DEFAULT ''", "model": "TEXT NOT NULL DEFAULT ''", "cost": "FLOAT"}
    kinds |= {"archived": "BOOLEAN NOT NULL DEFAULT false", "words": "TEXT NOT NULL DEFAULT ''"}
    for name, kind in kinds.items():
        if name not in known:
            connection.execute(text(f"ALTER TABLE runs ADD COLUMN {name} {kind}"))
    connection.execute(text("DROP INDEX IF EXISTS runs_by_age"))
    metadata.create_all(connection, tables=[schema.run_tags])
    for some in _fill(connection, schema.listed):
        schema.write_tags(connection, some)
    _index(connection, "runs_listed", "runs_by_change")


def _fill(connection: Connection, values: Callable[[Run], dict[str, Any]]) -> Iterator[list[Run]]:
    """Set columns of all runs to the values that this function returns. Yields the runs, page by page."""
    last, fill = "", runs.update().where(runs.c.id == bindparam("changed"))
    page = (
        select(runs.c.id, runs.c.record).where(runs.c.id > bindparam("last")).order_by(runs.c.id).limit(500)
    )
    while rows := connection.execute(page, {"last": last}).all():
        found = [Run.from_json(row.record) for row in rows]
        connection.execute(fill, [{"changed": run.id, **values(run)} for run in found])
        yield found
        last = rows[-1].id


def _index(connection: Connection, *names: str) -> None:
    for index in runs.indexes:
        if index.name in names:
            connection.execute(CreateIndex(index, if_not_exists=True))


def _keep_sums(connection: Connection) -> None:
    metadata.create_all(connection, tables=[schema.kept_sums])
    known = {column["name"] for column in inspect(connection).get_columns(schema.answer_holds.name)}
    if "log_bytes" not in known:  # a store of before the answers were counted got it with its table
        connection.execute(text("ALTER TABLE answer_holds ADD COLUMN log_bytes INTEGER"))


def _note_silences(connection: Connection) -> None:
    metadata.create_all(connection, tables=[schema.silences])


def _group_expenses(connection: Connection) -> None:
    """Add the columns, indexes and table for sums of ended runs, and add up existing runs."""
    known = {column["name"] for column in inspect(connection).get_columns("runs")}
    if "group_key" not in known:
        connection.execute(text("ALTER TABLE runs ADD COLUMN group_key VARCHAR(32)"))
    metadata.create_all(connection, tables=[schema.expense_groups])
    for _ in _fill(connection, schema.charged):
        pass
    _index(connection, "runs_by_any_job", "runs_by_group")
    costs = select(runs.c.group_key, runs.c.bill_usd, runs.c.committed_usd)
    rows = connection.execute(costs).mappings()
    expense_groups.replace(connection, [GroupShare.by_run(row) for row in rows])


STEPS: dict[int, Callable[[Connection], None]] = {
    5: _count_answers,
    6: _keep_ended,
    7: _list_by_the_database,
    8: _keep_sums,
    9: _note_silences,
    10: _group_expenses,
}
"""Maps each released schema version to its migration to the next one. Released migrations never change."""


def migrate(connection: Connection, version: int) -> None:
    """Upgrade a store to the current schema, inside the caller's transaction."""
    for step in range(version, schema.VERSION):
        STEPS[step](connection)
