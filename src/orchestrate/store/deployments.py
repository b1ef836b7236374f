"""Deployments in the store. Each change appends a transition and rewrites the deployment's row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError

from orchestrate.errors import UsageError
from orchestrate.store import RUN_PREFIX, new_run_id, schema, stamp, time_of
from orchestrate.store.database import Database
from orchestrate.store.ledger import LedgerShare, Limit, count, gateway_spending, reserve_deployment
from orchestrate.store.transitions import ImpossibleTransition
from orchestrate.types import Age, BilledResource, Deployment, DeploymentState, Endpoint, Record

# How deployments change: pure functions that take a deployment and a fact, and return the new deployment.
#
#     INTENT -> CREATING -> UP <-> IDLE                 IDLE: scaled to zero, not billed
#                  |         |      |
#                  |         +------+-> ENDING -> ENDED      we end it; ENDED: confirmed by the host
#                  |         +------+-> LOST                 the host no longer has it; we did not end it
#                  |         +------+-> ABANDONED            given up by the user
#                  +-> OUTCOME_UNKNOWN -> UP | ENDED         a request may have created it
#
# From CREATING until its end, a deployment counts as billed unless the host shows otherwise. If the host
# still lists a deployment that had ended, it becomes open again. A function that has nothing to change
# returns the same object.

State = DeploymentState
_NOTHING: dict[str, Any] = {
    "billed_s": 0.0,
    "billed_by_month": {},
    "earlier_usd": Decimal(0),
    "earlier_s": 0.0,
}
UNSETTLED = frozenset({State.CREATING, State.OUTCOME_UNKNOWN})
"""States in which it is unknown whether the host has the deployment."""


def creating(deployment: Deployment, at: datetime) -> Deployment:
    """Record that a request to create, complete or start the deployment is about to be sent."""
    if deployment.state is State.ENDING or deployment.state.over:
        raise ImpossibleTransition(
            f"deployment {deployment.id} is {deployment.state}, so it cannot be created again",
            fix=f"orchestrate undeploy {deployment.run_id}",
        )
    up = deployment.state in (State.UP, State.IDLE)
    state = deployment.state if up else State.CREATING
    return _moved(deployment, at, state, bills=True, answered=False, problem=None)


def outcome_unknown(deployment: Deployment, problem: str, at: datetime) -> Deployment:
    """Record that the outcome is unknown, because the response was lost or did not say whether the request
    succeeded."""
    if deployment.state is not State.CREATING:
        return _moved(deployment, at, deployment.state, bills=None, problem=problem)
    return _moved(deployment, at, State.OUTCOME_UNKNOWN, bills=True, problem=problem)


def completed(deployment: Deployment, endpoint: Endpoint, at: datetime) -> Deployment:
    """Record that all steps of a deploy are complete."""
    changes: dict[str, object] = {"host_id": endpoint.id, "raw_state": endpoint.state}
    if endpoint.usd_per_hour is not None:
        changes["usd_per_hour"] = counted_price(deployment, endpoint.usd_per_hour)
    return _moved(
        deployment, at, State.UP, bills=True, answered=True, complete=True, missing_since=None, **changes
    )


def counted_price(deployment: Deployment, usd_per_hour: Decimal) -> Decimal:
    """Return the hourly price to record for a deployment that is requested at `usd_per_hour`. Once the host
    has listed the deployment, a request does not lower its price. Only the host's list does (`_fallen`)."""
    known = deployment.usd_per_hour
    return usd_per_hour if known is None or deployment.host_id is None else max(known, usd_per_hour)


def ending(deployment: Deployment, cause: str, at: datetime) -> Deployment:
    """Record that the deployment should be shut down. From now on, Orchestrate sends shutdown requests until
    the host no longer lists the deployment."""
    if deployment.state is State.ENDING or deployment.state.over:
        return deployment
    return _moved(deployment, at, State.ENDING, bills=None, cause=cause, complete=False)


def never_made(deployment: Deployment, problem: str, at: datetime) -> Deployment:
    """Record that the host did not create the deployment."""
    if deployment.state.over:
        return deployment
    return _moved(deployment, at, State.ENDED, bills=False, problem=problem, ended_at=at, **_NOTHING)


def abandoned(deployment: Deployment, reason: str, at: datetime) -> Deployment:
    """Record that the user has abandoned the deployment, even if it is still up on its host. The cost so far
    still counts, but no further cost is added."""
    if deployment.state.over:
        return deployment
    return _moved(deployment, at, State.ABANDONED, bills=False, cause=reason, complete=False, ended_at=at)


def failed(deployment: Deployment, problem: str, at: datetime) -> Deployment:
    return _moved(deployment, at, deployment.state, bills=None, problem=problem)


def used(deployment: Deployment, at: datetime) -> Deployment:
    return _moved(deployment, at, deployment.state, bills=None, used_at=at)


def observed(
    deployment: Deployment,
    listed: Sequence[BilledResource],
    at: datetime,
    *,
    settled: bool,
    patience: timedelta = timedelta(0),
) -> Deployment:
    """Update the deployment from the account's current list of resources, which must be complete.

    `settled` means that no request to create the deployment can still take effect. Without it, the deployment
    may still appear, so its absence from the list is not conclusive. Because a list may be out of date, a
    deployment that was up only counts as lost after it has been missing for `patience`.
    """
    there = [item for item in listed if item.kind == "deployment"]
    if there:
        return _seen(deployment, there, at)
    if deployment.state.over or deployment.state is State.INTENT:
        return deployment
    if not deployment.answered and not settled:
        if deployment.state is not State.CREATING:
            return deployment
        return outcome_unknown(deployment, "the response to the request was lost", at)
    if deployment.state in UNSETTLED:
        return never_made(deployment, deployment.problem or "the host did not create a deployment", at)
    if deployment.state is State.ENDING:
        ended = _moved(deployment, at, State.ENDED, bills=False, raw_state=None, ended_at=at)
        # A deployment without a host id was never listed by the host, so it was never billed.
        return ended if deployment.host_id is not None else msgspec.structs.replace(ended, **_NOTHING)
    missing = deployment.missing_since or at
    if at - missing < patience:
        return _moved(deployment, at, deployment.state, bills=None, missing_since=missing)
    cause = "the host no longer has the deployment, although Orchestrate did not take it down"
    return _moved(deployment, at, State.LOST, bills=False, cause=cause, ended_at=at, missing_since=missing)


def _seen(deployment: Deployment, there: Sequence[BilledResource], at: datetime) -> Deployment:
    bills = any(item.bills is not False for item in there)
    prices = [item.usd_per_hour for item in there if item.usd_per_hour is not None]
    changes: dict[str, object] = {"raw_state": there[0].state, "answered": True, "missing_since": None}
    if deployment.host_id is None:
        changes["host_id"] = there[0].id
    if prices and (bills or deployment.usd_per_hour is None):
        price = sum(prices, Decimal(0))
        changes["usd_per_hour"] = counted_price(deployment, price)
        # At its end, a deployment is scaled to none, while its replicas may still run.
        if bills and len(prices) == len(there) and deployment.state in (State.UP, State.IDLE):
            changes |= _fallen(deployment, price, at)
    state = State.UP if bills else State.IDLE
    if deployment.state is State.ENDING or (deployment.state is State.ENDED and deployment.cause is not None):
        state = State.ENDING  # also when it had been shown as gone
    if deployment.state.over:
        changes |= {"ended_at": None, "complete": False}
        if deployment.state is State.ABANDONED and bills:  # it went on unseen
            deployment = msgspec.structs.replace(deployment, billing_since=deployment.ended_at)
        if deployment.state in (State.LOST, State.ABANDONED):
            changes["cause"] = None
    return _moved(deployment, at, state, bills=bills, **changes)


def _fallen(deployment: Deployment, price: Decimal, at: datetime) -> dict[str, object]:
    """Return the changes for a lower price, such as after fewer replicas were allowed in the host's console.
    What was spent until now stays at the earlier price."""
    from orchestrate.costing.expenses import hours_billed, spent_usd  # late, as the room is

    spent = spent_usd(deployment, at)
    if spent is None or counted_price(deployment, price) == price:
        return {}
    earlier_s = float(hours_billed(deployment, at) * 3600)
    return {"usd_per_hour": price, "earlier_usd": spent, "earlier_s": earlier_s}


def _moved(
    deployment: Deployment, at: datetime, state: DeploymentState, *, bills: bool | None, **changes: object
) -> Deployment:
    """Change the state. `bills` says whether the deployment is billed from now on. `None` leaves that
    unchanged."""
    since = deployment.billing_since
    if bills is True and since is None:
        changes["billing_since"] = at
    elif bills is False and since is not None:
        changes.setdefault("billed_s", deployment.billed_s + max((at - since).total_seconds(), 0.0))
        from orchestrate.costing.expenses import billed_by_month  # late, as the room is

        changes.setdefault("billed_by_month", billed_by_month(deployment, since, at))
        changes["billing_since"] = None
    changes["state"] = state
    if all(getattr(deployment, name) == value for name, value in changes.items()):
        return deployment
    return msgspec.structs.replace(deployment, updated_at=at, **changes)


PREFIX = "dep-"
Change = Callable[[Deployment, datetime], Deployment]
_READ_EVERY_S = 600.0


class DeploymentTransition(Record, frozen=True, kw_only=True):
    at: datetime
    state: DeploymentState
    raw_state: str | None = None
    attempt: int
    actor: str
    note: str | None = None


class Deployments:
    """Deployments in the store. Methods raise `StoreError`, which says how to fix the problem. Writes are
    durable once a call returns."""

    def __init__(self, db: Database) -> None:
        self._db = db

    # -- creating and updating -----------------------------------------------------------------------------

    def new_id(self) -> str:
        return PREFIX + new_run_id(self._db.clock.now()).removeprefix(RUN_PREFIX)

    def time_of(self, deployment: Deployment) -> datetime:
        """Return the current time on the deployment's own clock. See `orchestrate.store.time_of`."""
        return time_of(deployment, self._db.clock)

    def add(
        self,
        deployment: Deployment,
        *,
        budget_usd: Decimal | None = None,
        limits: Sequence[Limit] = (),
        note: str = "intent",
    ) -> None:
        """Record a deployment before any request is sent. Raises `OverBudget` if its possible cost exceeds
        the remaining `budget_usd` or a limit, and `UsageError` if its job already has an open deployment."""
        deployment = self._read(deployment, deployment.created_at)
        with self._db.writing() as connection:
            reserve_deployment(connection, self._db.clock, None, deployment, budget_usd, limits)
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
                    f"run {deployment.run_id} is already being deployed", fix="orchestrate deployments"
                ) from error
            self._append(connection, deployment, 0, note)
            count(connection, [], [LedgerShare.by_deployment(deployment)])

    def apply(
        self,
        deployment_id: str,
        change: Change,
        *,
        budget_usd: Decimal | None = None,
        limits: Sequence[Limit] = (),
        made_at: datetime | None = None,
        note: str | None = None,
        new_attempt: bool = False,
    ) -> Deployment:
        """Change a deployment with a function from this module, in one transaction. `change` receives the
        current state and the current time on the deployment's clock. `made_at` is the creation time that the
        host reports.

        Pass a budget or limits if the change may add cost. Raises `OverBudget` under the same conditions as
        `add`.
        """
        table = schema.deployments
        query = select(table.c.record, table.c.attempt).where(table.c.id == deployment_id).with_for_update()
        with self._db.writing() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                raise UsageError(f"unknown deployment {deployment_id}", fix="orchestrate deployments")
            before = Deployment.from_json(row.record)
            at = time_of(before, self._db.clock, made_at=made_at)
            after = change(before, at)
            if after is before and not self._due(before):
                return before
            if after is not before:
                after = msgspec.structs.replace(after, updated_at=self._db.clock.now())
                reserve_deployment(connection, self._db.clock, before, after, budget_usd, limits)
            after = self._read(after, at)
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
            count(connection, [LedgerShare.by_deployment(before)], [LedgerShare.by_deployment(after)])
            return after

    def limit_of_entry(self, model: str, usd: Decimal, but: str | None) -> Limit:
        """Build the cost limit that all deployments of one entry in the gateway's model map share.

        It must be checked in the transaction that creates or changes a deployment. `but` is the id of the
        deployment that is being changed. Its current cost is not counted.
        """
        description = {
            "what": f"the remaining deploy.max_cost_usd of gateway.models.{model}",
            "figure": "the maximum cost of this deployment",
            "fix": "raise it in the gateway's configuration",
        }

        def taken(connection: Connection) -> Decimal:
            return gateway_spending(connection, self._db.clock, but=but, gateway_model=model)

        return Limit(usd, taken, description)

    def _read(self, deployment: Deployment, at: datetime) -> Deployment:
        """Add a reading of the clocks, for the deployment's age at this time."""
        up = self._db.clock.uptime()
        age = Age(
            seconds=(at - deployment.created_at).total_seconds(),
            at=self._db.clock.now(),
            boot=up.boot,
            uptime=up.seconds,
        )
        return msgspec.structs.replace(deployment, age=age)

    def _due(self, deployment: Deployment) -> bool:
        """Return whether its age must be read again, so little is lost if this machine reboots."""
        up, last = self._db.clock.uptime(), deployment.age
        if deployment.state.over:
            return False
        return last is None or last.boot != up.boot or not 0 <= up.seconds - last.uptime < _READ_EVERY_S

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
        """Return the seconds since the current attempt was sent. See `Database.waited`."""
        return self._db.waited(schema.deployments, deployment_id)

    # -- finding -------------------------------------------------------------------------------------------

    def get(self, deployment_id: str) -> Deployment:
        found = self._found(schema.deployments.c.id == deployment_id)
        if not found:
            raise UsageError(f"unknown deployment {deployment_id}", fix="orchestrate deployments")
        return found[0]

    def of_run(self, run_id: str, provider: str | None = None) -> Deployment | None:
        """Return the open deployment of a run, or its newest one if none is open. `provider` selects one
        backend."""
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
        """List deployments, newest first. `since` leaves out those that ended before that time."""
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
        """List the backends that have an open deployment. With `since`, also includes those whose deployment
        ended after that time. Ignores abandoned deployments."""
        found = self.matching(over=None if since else False, since=since)
        open_ones = [one for one in found if one.state is not DeploymentState.ABANDONED]
        return sorted({one.provider for one in open_ones if sandboxes or not one.sandbox})

    def to_watch(self) -> set[tuple[str, str]]:
        """Return the (backend, host) pairs to poll. A pair is polled while it has a deployment with a limit,
        or one whose creation or shutdown the host has not confirmed yet."""
        found = self.matching(over=False)
        return {(d.provider, d.host) for d in found if d.limited or d.state.unproven}

    def transitions(self, deployment_id: str) -> list[DeploymentTransition]:
        """List the transitions of a deployment, oldest first."""
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
