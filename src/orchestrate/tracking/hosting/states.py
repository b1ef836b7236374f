"""How a deployment may change: pure functions from a deployment and a fact to the next deployment.

    INTENT -> CREATING -> UP <-> IDLE                 IDLE: scaled to zero, nothing bills
                 |         |      |
                 |         +------+-> ENDING -> ENDED      by us; ENDED is proven by the host
                 |         +------+-> LOST                 the host has none, and nobody here ended it
                 |         +------+-> ABANDONED            given up: its account cannot be asked any more
                 +-> OUTCOME_UNKNOWN -> UP | ENDED         a request may have made it

From CREATING until the end it counts as billing unless the host shows that it is not. What the host shows
opens a deployment again that was over. A function that finds nothing to change returns the very deployment
that it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from orchestrate.costing.spent.deployments import billed_by_month
from orchestrate.tracking.transitions import ImpossibleTransition
from orchestrate.types import Deployment, DeploymentState, Endpoint, Standing

State = DeploymentState
_NOTHING: dict[str, Any] = {"billed_s": 0.0, "billed_by_month": {}}
UNSETTLED = frozenset({State.CREATING, State.OUTCOME_UNKNOWN})
"""The host may or may not have it."""


def creating(deployment: Deployment, at: datetime) -> Deployment:
    """A request that makes, completes or starts it is about to be sent."""
    if deployment.state is State.ENDING or deployment.state.over:
        raise ImpossibleTransition(
            f"deployment {deployment.id} is {deployment.state}; it cannot be made again",
            fix=f"orchestrate undeploy {deployment.run_id}",
        )
    up = deployment.state in (State.UP, State.IDLE)
    state = deployment.state if up else State.CREATING
    return _moved(deployment, at, state, bills=True, answered=False, problem=None)


def outcome_unknown(deployment: Deployment, problem: str, at: datetime) -> Deployment:
    """The answer was lost, or what it came to could not be seen."""
    if deployment.state is not State.CREATING:
        return _moved(deployment, at, deployment.state, bills=None, problem=problem)
    return _moved(deployment, at, State.OUTCOME_UNKNOWN, bills=True, problem=problem)


def completed(deployment: Deployment, endpoint: Endpoint, at: datetime) -> Deployment:
    """All steps of a deploy are done."""
    changes: dict[str, object] = {"host_id": endpoint.id, "raw_state": endpoint.state}
    if endpoint.usd_per_hour is not None:
        changes["usd_per_hour"] = endpoint.usd_per_hour
    return _moved(
        deployment, at, State.UP, bills=True, answered=True, complete=True, missing_since=None, **changes
    )


def ending(deployment: Deployment, cause: str, at: datetime) -> Deployment:
    """It is to end: from here on it is asked to, until the host shows that it is gone."""
    if deployment.state is State.ENDING or deployment.state.over:
        return deployment
    return _moved(deployment, at, State.ENDING, bills=None, cause=cause, complete=False)


def never_made(deployment: Deployment, problem: str, at: datetime) -> Deployment:
    """The host made none."""
    if deployment.state.over:
        return deployment
    return _moved(deployment, at, State.ENDED, bills=False, problem=problem, ended_at=at, **_NOTHING)


def abandoned(deployment: Deployment, reason: str, at: datetime) -> Deployment:
    """Its user gives it up, whatever its host does: what was counted stays, and nothing more is."""
    if deployment.state.over:
        return deployment
    return _moved(deployment, at, State.ABANDONED, bills=False, cause=reason, complete=False, ended_at=at)


def failed(deployment: Deployment, problem: str, at: datetime) -> Deployment:
    return _moved(deployment, at, deployment.state, bills=None, problem=problem)


def used(deployment: Deployment, at: datetime) -> Deployment:
    return _moved(deployment, at, deployment.state, bills=None, used_at=at)


def observed(
    deployment: Deployment,
    standing: Sequence[Standing],
    at: datetime,
    *,
    settled: bool,
    patience: timedelta = timedelta(0),
) -> Deployment:
    """What the account holds of it now, from answers that prove it: a list of that account.

    `settled` says that a request that was to make it is done or never will be; before that absence means
    nothing. One that was up must be missing for `patience` to count as lost, since lists lag.
    """
    there = [item for item in standing if item.kind == "deployment"]
    if there:
        return _seen(deployment, there, at)
    if deployment.state.over or deployment.state is State.INTENT:
        return deployment
    if not deployment.answered and not settled:
        if deployment.state is not State.CREATING:
            return deployment
        return outcome_unknown(deployment, "the answer to the request was lost", at)
    if deployment.state in UNSETTLED:
        return never_made(deployment, deployment.problem or "the host made none", at)
    if deployment.state is State.ENDING:
        ended = _moved(deployment, at, State.ENDED, bills=False, raw_state=None, ended_at=at)
        # One that was looked for before it was ended, and that the host has never shown, has billed nothing.
        return ended if deployment.host_id is not None else msgspec.structs.replace(ended, **_NOTHING)
    missing = deployment.missing_since or at
    if at - missing < patience:
        return _moved(deployment, at, deployment.state, bills=None, missing_since=missing)
    cause = "the host no longer has it, and it was not ended from here"
    return _moved(deployment, at, State.LOST, bills=False, cause=cause, ended_at=at, missing_since=missing)


def _seen(deployment: Deployment, there: Sequence[Standing], at: datetime) -> Deployment:
    bills = any(item.bills is not False for item in there)
    prices = [item.usd_per_hour for item in there if item.usd_per_hour is not None]
    changes: dict[str, object] = {"raw_state": there[0].state, "answered": True, "missing_since": None}
    if deployment.host_id is None:
        changes["host_id"] = there[0].id
    if prices and (bills or deployment.usd_per_hour is None):
        changes["usd_per_hour"] = sum(prices, Decimal(0))
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


def _moved(
    deployment: Deployment, at: datetime, state: DeploymentState, *, bills: bool | None, **changes: object
) -> Deployment:
    """`bills` says whether it bills from now on; `None`: as before."""
    since = deployment.billing_since
    if bills is True and since is None:
        changes["billing_since"] = at
    elif bills is False and since is not None:
        changes.setdefault("billed_s", deployment.billed_s + max((at - since).total_seconds(), 0.0))
        changes.setdefault("billed_by_month", billed_by_month(deployment, since, at))
        changes["billing_since"] = None
    changes["state"] = state
    if all(getattr(deployment, name) == value for name, value in changes.items()):
        return deployment
    return msgspec.structs.replace(deployment, updated_at=at, **changes)
