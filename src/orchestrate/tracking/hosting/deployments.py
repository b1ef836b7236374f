"""The deployments of a store: each change appends a transition and rewrites the row as their projection."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError

from orchestrate.errors import UsageError
from orchestrate.tracking.clock import stamp
from orchestrate.tracking.database import schema
from orchestrate.tracking.database.opened import Database
from orchestrate.tracking.ids import RUN_PREFIX, new_run_id
from orchestrate.tracking.records.budget import require_budget
from orchestrate.types import Deployment, DeploymentState, Record

PREFIX = "dep-"


class DeploymentTransition(Record, frozen=True, kw_only=True):
    at: datetime
    state: DeploymentState
    raw_state: str | None = None
    attempt: int
    actor: str
    note: str | None = None


class Deployments:
    """Errors are `StoreError` with the way out. Writes are durable when a call returns."""

    def __init__(self, db: Database) -> None:
        self._db = db

    # -- making and changing -------------------------------------------------------------------------------

    def new_id(self) -> str:
        return PREFIX + new_run_id(self._db.clock.now()).removeprefix(RUN_PREFIX)

    def add(self, deployment: Deployment, *, budget_usd: Decimal | None = None, note: str = "intent") -> None:
        """Writes it down before anything is sent. Raises `OverBudget` when what it may cost does not fit into
        what is left of `budget_usd`, and `UsageError` when its job has one that is not over."""
        from orchestrate.costing.spent.deployments import spending

        with self._db.writing() as connection:
            may_cost = spending(deployment, deployment.created_at).committed_usd
            if budget_usd is not None and may_cost:
                require_budget(connection, deployment.provider, may_cost, budget_usd)
            try:
                connection.execute(
                    schema.deployments.insert().values(
                        id=deployment.id,
                        run_id=deployment.run_id,
                        provider=deployment.provider,
                        host=deployment.host,
                        job_id=deployment.job_id,
                        sandbox=deployment.sandbox,
                        created_at=stamp(deployment.created_at),
                        **_columns(deployment),
                    )
                )
            except IntegrityError as error:
                raise UsageError(
                    f"run {deployment.run_id} is being deployed already", fix="orchestrate deployments"
                ) from error
            self._append(connection, deployment, 0, note)

    def apply(
        self,
        deployment_id: str,
        change: Callable[[Deployment], Deployment],
        *,
        note: str | None = None,
        new_attempt: bool = False,
    ) -> Deployment:
        """Changes one by a function of `orchestrate.tracking.hosting.states`, in one transaction; `change`
        sees it as it is now."""
        table = schema.deployments
        query = select(table.c.record, table.c.attempt).where(table.c.id == deployment_id).with_for_update()
        with self._db.writing() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                raise UsageError(f"no deployment is called {deployment_id}", fix="orchestrate deployments")
            before = Deployment.from_json(row.record)
            after = change(before)
            if after is before:
                return before
            attempt = row.attempt + new_attempt
            if new_attempt:
                up = self._db.clock.uptime()
                key = {"run_id": deployment_id, "attempt": attempt, "boot": up.boot}
                connection.execute(schema.stamps.insert().values(**key, uptime=up.seconds))
            connection.execute(
                table.update().where(table.c.id == deployment_id).values(attempt=attempt, **_columns(after))
            )
            if note or (before.state, before.raw_state) != (after.state, after.raw_state):
                self._append(connection, after, attempt, note)
            return after

    def _append(self, connection: Connection, deployment: Deployment, attempt: int, note: str | None) -> None:
        connection.execute(
            schema.deployment_transitions.insert().values(
                deployment_id=deployment.id,
                at=stamp(deployment.updated_at),
                state=deployment.state.value,
                raw_state=deployment.raw_state,
                attempt=attempt,
                actor=self._db.actor,
                note=note or deployment.cause or deployment.problem,
            )
        )

    def waited(self, deployment_id: str) -> float:
        """Seconds, by this machine's uptime, since it sent the last request to make it, or since it first
        looked at a request that another machine sent or that it sent before its last start."""
        table, own, up = schema.stamps, schema.deployments, self._db.clock.uptime()
        with self._db.writing() as connection:
            attempt = connection.execute(select(own.c.attempt).where(own.c.id == deployment_id)).scalar_one()
            key = {"run_id": deployment_id, "attempt": attempt, "boot": up.boot}
            connection.execute(
                self._db.insert(table).values(**key, uptime=up.seconds).on_conflict_do_nothing()
            )
            first = connection.execute(select(table.c.uptime).filter_by(**key)).scalar_one()
        return up.seconds - first

    # -- finding -------------------------------------------------------------------------------------------

    def get(self, deployment_id: str) -> Deployment:
        found = self._found(schema.deployments.c.id == deployment_id)
        if not found:
            raise UsageError(f"no deployment is called {deployment_id}", fix="orchestrate deployments")
        return found[0]

    def of_run(self, run_id: str, provider: str | None = None) -> Deployment | None:
        """The one that is not over, else the newest of a run, anywhere or on one backend."""
        table = schema.deployments
        wanted = [table.c.run_id == run_id, *([table.c.provider == provider] if provider else [])]
        found = self._found(*wanted)
        return next((one for one in found if not one.state.over), next(iter(found), None))

    def matching(
        self,
        *,
        provider: str | None = None,
        host: str | None = None,
        over: bool | None = None,
        since: datetime | None = None,
    ) -> list[Deployment]:
        """Newest first. `since` leaves out those that were over before."""
        table = schema.deployments
        given = {"provider": provider, "host": host, "over": over}
        wanted = [table.c[name] == value for name, value in given.items() if value is not None]
        if since is not None:
            wanted.append(~table.c.over | (table.c.updated_at >= stamp(since)))
        return self._found(*wanted)

    def _found(self, *wanted: Any) -> list[Deployment]:
        table = schema.deployments
        query = select(table.c.record).where(*wanted).order_by(table.c.created_at.desc(), table.c.id.desc())
        with self._db.reading() as connection:
            return [Deployment.from_json(record) for record in connection.execute(query).scalars()]

    def open_providers(self, since: datetime | None = None, *, sandboxes: bool = True) -> list[str]:
        """The backends of those that are not over, or were not `since` then."""
        found = self.matching(over=None if since else False, since=since)
        return sorted({one.provider for one in found if sandboxes or not one.sandbox})

    def to_watch(self) -> set[tuple[str, str]]:
        """(backend, host) of those that will not stay so: a limit will come, an end is not proven."""
        found = self.matching(over=False)
        return {(d.provider, d.host) for d in found if d.limited or d.state.unproven}

    def transitions(self, deployment_id: str) -> list[DeploymentTransition]:
        """Oldest first."""
        table = schema.deployment_transitions
        query = select(table).where(table.c.deployment_id == deployment_id).order_by(table.c.id)
        with self._db.reading() as connection:
            rows = connection.execute(query).mappings().all()
        fields = DeploymentTransition.__struct_fields__
        return [DeploymentTransition.from_dict({name: row[name] for name in fields}) for row in rows]


def _columns(deployment: Deployment) -> dict[str, Any]:
    return {
        "state": deployment.state.value,
        "over": deployment.state.over,
        "updated_at": stamp(deployment.updated_at),
        "record": deployment.to_json().decode(),
    }
