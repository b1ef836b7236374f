"""Deployments made, completed and ended, so that none is lost while it bills, whatever dies and whenever.

A deployment is written down before anything is sent, each step before it is taken. It has the name of its
job on the host, so that it is found again after a lost answer and never made twice; `deploy` again completes
what an earlier one began. It is over when a list of the account that it is in does not show it: until then
it is asked to end again, by whoever watches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate.errors import (
    NotFound,
    OrchestrateError,
    OtherAccount,
    OutcomeUnknown,
    OverBudget,
    PermissionRefused,
    ProviderError,
    UsageError,
)
from orchestrate.text import duration
from orchestrate.tracking.hosting import states
from orchestrate.tracking.submitting import accounts
from orchestrate.tracking.timing import DEFAULT_TIMING, CrashPoint, Timing, pass_by
from orchestrate.types import (
    ADAPTER_JOB,
    Adapter,
    Deployment,
    DeploymentState,
    Endpoint,
    Run,
    Standing,
)
from orchestrate.underway import BYTES, work

if TYPE_CHECKING:
    from orchestrate.providers.base import Provider
    from orchestrate.tracking.store import Store

DEPLOY_POINTS = ("after-intent", "after-creating", "after-request", "after-up")
END_POINTS = ("after-ending", "after-end-request", "after-ended")
"""Where a death is told apart by what is on the host and what is written down."""

_POLL_S = 2.0


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What the user agreed to."""

    options: dict[str, Any] = {}
    """Of the backend: shape, replicas, idle_minutes ..."""
    max_usd_per_hour: Decimal | None = None
    max_cost_usd: Decimal | None = None
    max_hours: Decimal | None = None
    accept_unknown_price: bool = False
    made_by: str | None = None


@dataclass(frozen=True)
class Deployer:
    """The protocol on one store and one backend."""

    store: Store
    provider: Provider
    timing: Timing = DEFAULT_TIMING
    reached: CrashPoint = pass_by
    adapter: Adapter | None = None
    """What is put up, where that is not the tuned model of a job of this backend: it is uploaded first."""
    progress: Callable[[int, int], None] | None = None
    """Of the upload, in bytes."""

    # -- making --------------------------------------------------------------------------------------------

    def price(self, run: Run, terms: Terms) -> Decimal | None:
        """US dollars per hour, once the terms allow it. Raises `OverBudget`, `UsageError`, `OtherAccount`."""
        if self.adapter is not None:
            begun = self.store.deployments.of_run(run.id, self.provider.config.name)
            if begun is not None and not begun.state.over and begun.state is not DeploymentState.INTENT:
                self.require_account(begun)
            price = self.provider.adapters().price(self.adapter, terms.options)
        else:
            self._require_host(run)
            accounts.require(self.store, self.provider, run)
            price = self.provider.deployment_price(run.handle, options=terms.options)
        self._require_terms(price, terms)
        return price

    def deploy(self, run: Run, terms: Terms, *, budget_usd: Decimal | None = None) -> Deployment:
        """Makes it, or completes what an earlier call began.

        Raises `OverBudget` before anything is written or sent, `OutcomeUnknown` when the answer was lost
        (`sync` finds out, and so does this call when it is repeated), `LeaseHeld` while another process is
        at it, and `ProviderError`: whether something is up all the same the store then knows.
        """
        with self.store.leases.hold(lease_name(run.id), self.timing.lease_s):
            price = self.price(run, terms)
            deployment = self._begun(run)
            if deployment is None:
                deployment = self._intent(run, terms, price)
                self.store.deployments.add(deployment, budget_usd=budget_usd)
            else:
                deployment = self._apply(deployment, lambda d, _: _agreed(d, terms, price))
            self.reached("after-intent")
            if self.adapter is not None:
                with work(f"sending the adapter to {self.provider.name}", BYTES) as told:
                    self.provider.adapters().upload(self.adapter, self.progress or told)
                self.reached("after-upload")
            return self._make(deployment, _with_limit(terms, price))

    def _begun(self, run: Run) -> Deployment | None:
        """What an earlier call left, once it is known what became of it."""
        deployment = self.store.deployments.of_run(run.id, self.provider.config.name)
        if deployment is None or deployment.state.over:
            return None
        if deployment.state is DeploymentState.INTENT and not self._is_here(deployment):
            why = "begun with another key, and never sent"
            self._apply(deployment, lambda d, at: states.never_made(d, why, at))
            return None
        if deployment.state is DeploymentState.ENDING:
            raise UsageError(
                f"the deployment of {run.id} is being ended, and the host still has it",
                fix=f"orchestrate undeploy {run.id}   (it waits until it is gone), then deploy again",
            )
        if deployment.state in states.UNSETTLED:
            deployment = self.look(deployment)
            if deployment.state in states.UNSETTLED:
                left = self.timing.settle_s(self.provider) - self.store.deployments.waited(deployment.id)
                raise OutcomeUnknown(
                    self.provider.name,
                    deployment.job_id,
                    f"an earlier deploy is not settled; it will be in {duration(math.ceil(left))}",
                )
        return None if deployment.state.over else deployment

    def _intent(self, run: Run, terms: Terms, price: Decimal | None) -> Deployment:
        now, adapter = self.store.clock.now(), self.adapter
        fresh = Deployment(
            id=self.store.deployments.new_id(),
            run_id=run.id,
            provider=self.provider.config.name,
            host=self.provider.host,
            account=accounts.account_of(self.store, self.provider),
            sandbox=self.provider.sandbox,
            job_id=run.handle.job_id if adapter is None else adapter.id,
            job_kind=run.job_kind if adapter is None else ADAPTER_JOB,
            model=run.tuned_model if adapter is None else adapter.id,
            state=DeploymentState.INTENT,
            created_at=now,
            updated_at=now,
        )
        return _agreed(fresh, terms, price)

    def _make(self, deployment: Deployment, options: dict[str, Any]) -> Deployment:
        deployment = self._apply(deployment, states.creating, new_attempt=True)
        self.reached("after-creating")
        try:
            endpoint = self.provider.deploy(deployment.handle, options=options)
        except OutcomeUnknown as error:
            endpoint = self._found(deployment, options, error)
        except OrchestrateError as error:
            raise self._failed(deployment, error) from error
        self.reached("after-request")
        done = endpoint
        deployment = self._apply(deployment, lambda d, at: states.completed(d, done, at))
        self.reached("after-up")
        return deployment

    def _found(self, deployment: Deployment, options: dict[str, Any], lost: OutcomeUnknown) -> Endpoint:
        """After a lost answer: what was made is there, and only its other steps are left."""
        self._apply(deployment, lambda d, at: states.outcome_unknown(d, lost.message, at))
        try:
            there = self.look(deployment)
            if there.state not in states.UNSETTLED and not there.state.over:
                return self.provider.deploy(deployment.handle, options=options)
        except OrchestrateError as error:
            problem = error.message
            self._apply(deployment, lambda d, at: states.failed(d, problem, at))
        raise lost

    def _failed(self, deployment: Deployment, error: OrchestrateError) -> OrchestrateError:
        """The error, with what stands in spite of it."""
        try:
            items = self.provider.deployed(deployment.handle)
        except OrchestrateError:
            self._apply(deployment, lambda d, at: states.outcome_unknown(d, error.message, at))
            error.fix = "orchestrate sync   (it may be up and bill; the host could not be asked)"
            return error
        if not any(item.kind == "deployment" for item in items):
            # Should a host that says no do it all the same, the sweep sees it: it looks for a while yet.
            self._apply(deployment, lambda d, at: _not_made(d, error.message, at))
            return error
        self._apply(
            deployment,
            lambda d, at: states.failed(states.observed(d, items, at, settled=True), error.message, at),
        )
        run = deployment.run_id
        error.fix = (
            f"it is up and bills: orchestrate deploy {run}  completes it, orchestrate undeploy {run}  ends it"
        )
        return error

    # -- ending --------------------------------------------------------------------------------------------

    def undeploy(self, deployment: Deployment, cause: str, *, patience_s: float = 0.0) -> Deployment:
        """Asks the host for its end until the host shows that it is gone, for `patience_s`; the state tells
        whether it is. Works by the store's record, also without the job's.

        Raises `OtherAccount`, and `ProviderError` when the host cannot be asked; it stays to be ended.
        """
        self.require_account(deployment)
        if deployment.state is DeploymentState.INTENT:
            return self._apply(deployment, lambda d, at: states.never_made(d, cause, at))
        deployment = self._apply(deployment, lambda d, at: states.ending(d, cause, at))
        self.reached("after-ending")
        clock = self.store.clock
        until = clock.uptime().seconds + patience_s
        with work(f"ending it at {self.provider.name}"):
            while True:
                deployment = self._end(deployment)
                if deployment.state.over or clock.uptime().seconds >= until:
                    return deployment
                clock.sleep(_POLL_S)

    def _end(self, deployment: Deployment) -> Deployment:
        try:
            self.provider.undeploy(deployment.handle)
            self.reached("after-end-request")
            deployment = self.look(deployment)
        except ProviderError as error:
            problem = error.message
            self._apply(deployment, lambda d, at: states.failed(d, problem, at))
            raise
        if deployment.state.over:
            self.reached("after-ended")
        return deployment

    # -- looking -------------------------------------------------------------------------------------------

    def look(self, deployment: Deployment, items: Iterable[Standing] | None = None) -> Deployment:
        """What the host shows of it, written down. `items` of an earlier list are enough to show that it is
        there; that it is not is asked for itself. Raises `ProviderError`."""
        there = [item for item in items or () if item.kind == "deployment"]
        if not there:
            there = list(self.provider.deployed(deployment.handle))
        settled = self.store.deployments.waited(deployment.id) >= self.timing.settle_s(self.provider)
        patience = timedelta(seconds=self.timing.margin_s)
        return self._apply(
            deployment,
            lambda d, at: states.observed(d, there, at, settled=settled, patience=patience),
        )

    def require_account(self, deployment: Deployment) -> None:
        """Raises `OtherAccount` unless the key certainly works for the deployment's account: by the account's
        id, or by seeing the run's job or file, or the deployment itself."""
        self._require_host(deployment)
        here = self._is_here(deployment)
        if here:
            return
        if deployment.job_kind == ADAPTER_JOB:
            # The run's own account is one of another host.
            if here is False or not self._sees(deployment):
                now = accounts.account_of(self.store, self.provider)
                raise OtherAccount(
                    self.provider.title, deployment.run_id, deployment.account, now, sure=here is False
                )
            return
        run = self.store.runs.get(deployment.run_id)
        if here is None and self._sees(deployment):
            accounts.prove(self.store, self.provider, run)
            return
        if here is False or not self._shows(run):
            raise accounts.other(self.store, self.provider, run)

    def _is_here(self, deployment: Deployment) -> bool | None:
        return accounts.is_here(self.store, self.provider, deployment.account)

    def _shows(self, run: Run) -> bool:
        try:
            return bool(accounts.shows(self.store, self.provider, run))
        except (NotFound, PermissionRefused):
            return False

    def _sees(self, deployment: Deployment) -> bool:
        try:
            return bool(self.provider.deployed(deployment.handle))
        except (NotFound, PermissionRefused):
            return False

    def adopt(self, run: Run, items: Iterable[Standing]) -> Deployment:
        """One that the host has under the name of a run's job, and this store does not know."""
        deployment = self._intent(run, Terms(), None)
        self.store.deployments.add(deployment, note="found on the host")
        return self.look(deployment, items)

    # -- inside --------------------------------------------------------------------------------------------

    def _apply(
        self,
        deployment: Deployment,
        step: Callable[[Deployment, datetime], Deployment],
        *,
        new_attempt: bool = False,
    ) -> Deployment:
        at = self.store.clock.now()
        return self.store.deployments.apply(
            deployment.id, lambda current: step(current, at), new_attempt=new_attempt
        )

    def _require_host(self, tracked: Run | Deployment) -> None:
        if (tracked.provider, tracked.host) != (self.provider.config.name, self.provider.host):
            raise UsageError(
                f"{tracked.id} is on {tracked.provider} at {tracked.host}, not at {self.provider.host}",
                fix="use the configuration and key that it was made with",
            )

    def _require_terms(self, price: Decimal | None, terms: Terms) -> None:
        name = self.provider.title
        if price is None:
            if not terms.accept_unknown_price:
                raise UsageError(
                    f"{name} does not say what an hour of this deployment costs, and no rate is known",
                    fix="--accept-unknown-price   (Python: accept_unknown_price=True)",
                )
            if terms.max_cost_usd is not None or terms.max_usd_per_hour is not None:
                raise UsageError(
                    f"{name} has no price for this deployment, so a limit in dollars cannot be kept",
                    fix="limit it by --max-hours",
                )
        elif terms.max_usd_per_hour is not None and price > terms.max_usd_per_hour:
            raise OverBudget(
                self.provider.name,
                price,
                terms.max_usd_per_hour,
                what="--max-usd-per-hour",
                figure="the price of an hour",
            )


def lease_name(run_id: str) -> str:
    return f"deployment:{run_id}"


def _agreed(deployment: Deployment, terms: Terms, price: Decimal | None) -> Deployment:
    """With the terms of the last call; a limit that it does not name stays."""
    given = {
        "max_usd_per_hour": terms.max_usd_per_hour,
        "max_cost_usd": terms.max_cost_usd,
        "max_hours": terms.max_hours,
        "made_by": deployment.made_by or terms.made_by,
        "usd_per_hour": price,
        "options": terms.options or None,
    }
    return msgspec.structs.replace(deployment, **{k: v for k, v in given.items() if v is not None})


def _with_limit(terms: Terms, price: Decimal | None) -> dict[str, Any]:
    """The options, and the price that was agreed to as the most that may be sent for."""
    return dict(terms.options) | ({"max_usd_per_hour": price} if price is not None else {})


def _not_made(deployment: Deployment, problem: str, at: datetime) -> Deployment:
    if deployment.state in states.UNSETTLED:
        return states.never_made(deployment, problem, at)
    return states.failed(deployment, problem, at)
