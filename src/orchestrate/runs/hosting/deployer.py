"""Create, complete and end deployments. Never loses track of a billed deployment, even if a process dies at
any point.

The deployment and each of its steps are recorded before anything is sent. The name of a deployment on its
host contains the run's job. After a lost response, the deployment is found by this name instead of being
created again. Calling `deploy` again completes an earlier call. A deployment has ended once its account no
longer lists it. Until then, every watcher asks the host again to end it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate.core.underway import BYTES, work
from orchestrate.costing.expenses import deployment_spending, limit_reached, spent_usd
from orchestrate.errors import (
    NotFound,
    OrchestrateError,
    OtherAccount,
    OutcomeUnknown,
    PermissionRefused,
    ProviderError,
    UsageError,
)
from orchestrate.paid.consent import require_hourly_price
from orchestrate.paid.limits import require_within
from orchestrate.providers.base import Deploys, Provider, TakesAdapters, capability
from orchestrate.runs.submitting import accounts
from orchestrate.store import deployments
from orchestrate.store.deployments import Change
from orchestrate.store.store import DEFAULT_TIMING, CrashPoint, Store, Timing, pass_by
from orchestrate.text import duration, money
from orchestrate.types import (
    ADAPTER_JOB,
    Adapter,
    BilledResource,
    Deployment,
    DeploymentOffer,
    DeploymentState,
    Endpoint,
    Run,
)

if TYPE_CHECKING:
    from orchestrate.providers.adapters import Adapters
    from orchestrate.store.ledger import Limit

DEPLOY_POINTS = ("after-intent", "after-creating", "after-request", "after-up")
END_POINTS = ("after-ending", "after-end-request", "after-ended")
"""Points during creation and shutdown at which tests simulate a crash."""

_POLL_S = 2.0


class DeployTerms(msgspec.Struct, frozen=True, kw_only=True):
    """The limits and options that the user accepted."""

    options: dict[str, Any] = {}
    """Options specific to the backend, such as shape, replicas and idle_minutes."""
    max_usd_per_hour: Decimal | None = None
    max_cost_usd: Decimal | None = None
    max_hours: Decimal | None = None
    accept_unknown_price: bool = False
    made_by: str | None = None
    gateway_key: str | None = None
    gateway_model: str | None = None


@dataclass(frozen=True)
class Deployer:
    """Creates and takes down the deployments of one store on one backend."""

    store: Store
    provider: Provider
    timing: Timing = DEFAULT_TIMING
    reached: CrashPoint = pass_by
    adapter: Adapter | None = None
    """Adapter to upload and deploy, if the model was not tuned on this backend."""
    progress: Callable[[int, int], None] | None = None
    """Function called with the number of uploaded bytes and the total."""

    @property
    def _deploys(self) -> Deploys:
        return capability(self.provider, Deploys)

    @property
    def _adapters(self) -> Adapters:
        return capability(self.provider, TakesAdapters).adapters()

    # -- making --------------------------------------------------------------------------------------------

    def offer(self, run: Run, terms: DeployTerms) -> DeploymentOffer:
        """Return the price and limits that `deploy` would apply. Sends and changes nothing. Raises
        `OverBudget` for a price above the limits, `UsageError` for limits or options that can't be applied,
        and `OtherAccount` if the key is not known to belong to the account."""
        before = self._open(run)
        price = self._price(run, before, terms)
        fresh = before is None
        asked = self._intent(run) if before is None else before
        at = self.store.deployments.time_of(asked)
        agreed = _agreed(asked, terms, price, at)
        most = deployment_spending(msgspec.structs.replace(agreed, sandbox=False), at).committed_usd
        hours = agreed.max_hours
        return DeploymentOffer(
            run_id=run.id,
            provider=agreed.provider,
            title=self.provider.profile.title,
            sandbox=agreed.sandbox,
            model=agreed.model or run.model,
            deployment=None if fresh else agreed.id,
            options=agreed.options,
            usd_per_hour=price,
            max_cost_usd=agreed.max_cost_usd,
            max_hours=hours,
            hours_left=None if hours is None else hours - _hours(agreed, at),
            most_usd=most if agreed.limited and price is not None else None,
        )

    def deploy(
        self, run: Run, terms: DeployTerms, *, budget_usd: Decimal | None = None, limits: Sequence[Limit] = ()
    ) -> Deployment:
        """Create the run's deployment. If the run already has one, complete, start or change it. First
        reserves the deployment's maximum remaining cost against the budget and each limit.

        Raises `OverBudget` before anything is written or sent, and `LeaseHeld` while another process works on
        the deployment. Raises `OutcomeUnknown` if the response was lost: call `sync` or repeat the call to
        resolve it. Raises `ProviderError` if the host rejects the request or cannot be reached. After a
        `ProviderError`, the store also records whether the deployment is up.
        """
        with self.store.leases.hold(lease_name(run.id), self.timing.lease_s):
            before = self._open(run)
            if before is not None and terms.max_usd_per_hour is None:
                terms = msgspec.structs.replace(terms, max_usd_per_hour=before.max_usd_per_hour)
            price = self._price(run, before, terms)
            deployment = self._begun(run)
            if deployment is None:
                fresh = self._intent(run)
                deployment = _agreed(fresh, terms, price, fresh.created_at)
                self.store.deployments.add(deployment, budget_usd=budget_usd, limits=limits)
            else:
                deployment = self.store.deployments.apply(
                    deployment.id,
                    lambda d, at: _agreed(d, terms, price, at),
                    budget_usd=budget_usd,
                    limits=limits,
                )
            self.reached("after-intent")
            if self.adapter is not None:
                with work(f"uploading the adapter to {self.provider.name}", BYTES) as advance:
                    self._adapters.upload(self.adapter, self.progress or advance)
                self.reached("after-upload")
            limit = {} if price is None else {"max_usd_per_hour": price}
            return self._make(deployment, {**deployment.options, **limit})

    def _price(self, run: Run, before: Deployment | None, terms: DeployTerms) -> Decimal | None:
        """Return the price in US dollars per hour, after checking that the terms allow it."""
        options = {**(before.options if before is not None else {}), **terms.options}
        if self.adapter is not None:
            if before is not None:
                self.require_account(before)
            price = self._adapters.price(self.adapter, options)
        else:
            self._require_host(run)
            accounts.require(self.store, self.provider, run)
            price = self._deploys.deployment_price(run.handle, options=options)
        self._require_terms(price, terms)
        return price

    def _open(self, run: Run) -> Deployment | None:
        """Return the deployment that an earlier call left at the host, as far as the store knows."""
        found = self.store.deployments.of_run(run.id, self.provider.config.name)
        return None if found is None or found.state.over or found.state is DeploymentState.INTENT else found

    def _begun(self, run: Run) -> Deployment | None:
        """Return the deployment that an earlier call left, once its outcome is known."""
        deployment = self.store.deployments.of_run(run.id, self.provider.config.name)
        if deployment is not None and deployment.state is DeploymentState.ABANDONED:
            deployment = self.poll(deployment)  # it may have changed since it was abandoned
        if deployment is None or deployment.state.over:
            return None
        if deployment.state is DeploymentState.INTENT:  # we hold the lease, so nobody else is creating it
            self._apply(
                deployment, lambda d, at: deployments.never_made(d, "the create request was never sent", at)
            )
            return None
        if deployment.state in deployments.UNSETTLED:
            deployment = self.poll(deployment)
            if deployment.state in deployments.UNSETTLED:
                left = duration(math.ceil(self.settles_in(deployment)))
                raise OutcomeUnknown(
                    self.provider.name,
                    deployment.job_id,
                    f"the outcome of an earlier deploy is not known yet. Try again in {left}",
                )
        return None if deployment.state.over else deployment

    def _intent(self, run: Run) -> Deployment:
        now, adapter = self.store.clock.now(), self.adapter
        return Deployment(
            id=self.store.deployments.new_id(),
            run_id=run.id,
            provider=self.provider.config.name,
            host=self.provider.host,
            account=accounts.account_of(self.store, self.provider),
            sandbox=self.provider.config.sandbox,
            job_id=run.handle.job_id if adapter is None else adapter.id,
            job_kind=run.job_kind if adapter is None else ADAPTER_JOB,
            model=run.tuned_model if adapter is None else adapter.id,
            state=DeploymentState.INTENT,
            created_at=now,
            updated_at=now,
        )

    def _make(self, deployment: Deployment, options: dict[str, Any]) -> Deployment:
        deployment = self._apply(deployment, deployments.creating, new_attempt=True)
        self.reached("after-creating")
        try:
            endpoint = self._deploys.deploy(deployment.handle, options=options)
        except OutcomeUnknown as error:
            endpoint = self._found(deployment, options, error)
        except OrchestrateError as error:
            raise self._failed(deployment, error) from error
        self.reached("after-request")
        done = endpoint
        deployment = self._apply(deployment, lambda d, at: deployments.completed(d, done, at))
        self.reached("after-up")
        return deployment

    def _found(self, deployment: Deployment, options: dict[str, Any], lost: OutcomeUnknown) -> Endpoint:
        """Find the deployment after a lost response, to complete its remaining steps."""
        self._apply(deployment, lambda d, at: deployments.outcome_unknown(d, lost.message, at))
        try:
            there = self.poll(deployment)
            if there.state not in deployments.UNSETTLED and not there.state.over:
                return self._deploys.deploy(deployment.handle, options=options)
        except OrchestrateError as error:
            problem = error.message
            self._apply(deployment, lambda d, at: deployments.failed(d, problem, at))
        raise lost

    def _failed(self, deployment: Deployment, error: OrchestrateError) -> OrchestrateError:
        """Return the error, with a fix if the deployment may exist despite the error."""
        try:
            items = self._deploys.deployed(deployment.handle)
        except OrchestrateError:
            self._apply(deployment, lambda d, at: deployments.outcome_unknown(d, error.message, at))
            error.fix = (
                "orchestrate sync   (the deployment may be up and billed, but the host could not be reached)"
            )
            return error
        if not any(item.kind == "deployment" for item in items):
            # If the host creates it despite the error, upkeep finds it, because it checks again for a while.
            self._apply(deployment, lambda d, at: _not_made(d, error.message, at))
            return error
        self._apply(
            deployment,
            lambda d, at: deployments.failed(
                deployments.observed(d, items, at, settled=True), error.message, at
            ),
        )
        run = deployment.run_id
        error.fix = (
            f"the deployment is up and billed. Complete it with  orchestrate deploy {run}, or end it with  "
            f"orchestrate undeploy {run}"
        )
        return error

    # -- ending --------------------------------------------------------------------------------------------

    def undeploy(self, deployment: Deployment, cause: str, *, patience_s: float = 0.0) -> Deployment:
        """Ask the host to end the deployment, and wait up to `patience_s` seconds until the host confirms the
        end. The returned state says whether the deployment has ended. Uses only the stored record, so this
        works even if the host no longer has the job. Raises `OtherAccount` if the key is not known to belong
        to the deployment's account, and `ProviderError` if the host cannot be reached. Call it again to
        retry."""
        self.require_account(deployment)
        if deployment.state is DeploymentState.INTENT:
            return self._apply(deployment, lambda d, at: deployments.never_made(d, cause, at))
        deployment = self._apply(deployment, lambda d, at: deployments.ending(d, cause, at))
        self.reached("after-ending")
        clock = self.store.clock
        until = clock.uptime().seconds + patience_s
        with work(f"taking down the deployment on {self.provider.name}"):
            while True:
                deployment = self._end(deployment)
                if deployment.state.over or clock.uptime().seconds >= until:
                    return deployment
                clock.sleep(_POLL_S)

    def _end(self, deployment: Deployment) -> Deployment:
        try:
            if deployment.host_id is None:  # without its id, it would count as never created
                deployment = self.poll(deployment)
            if deployment.state.over:
                return deployment
            self._deploys.undeploy(deployment.handle)
            self.reached("after-end-request")
            deployment = self.poll(deployment)
        except ProviderError as error:
            problem = error.message
            self._apply(deployment, lambda d, at: deployments.failed(d, problem, at))
            raise
        if deployment.state.over:
            self.reached("after-ended")
        return deployment

    # -- looking -------------------------------------------------------------------------------------------

    def poll(self, deployment: Deployment, items: Iterable[BilledResource] | None = None) -> Deployment:
        """Query the host and record the deployment's state. If `items`, taken from an earlier list request,
        contains the deployment, the host is not queried again. Raises `ProviderError` if the host cannot be
        reached."""
        there = [item for item in items or () if item.kind == "deployment"]
        if not there:
            there = list(self._deploys.deployed(deployment.handle))
        settled = self.settles_in(deployment) <= 0
        patience = timedelta(seconds=self.timing.margin_s)
        return self.store.deployments.apply(
            deployment.id,
            lambda d, at: deployments.observed(d, there, at, settled=settled, patience=patience),
            made_at=min((item.created_at for item in there if item.created_at), default=None),
        )

    def settles_in(self, deployment: Deployment) -> float:
        """Return the number of seconds until it is certain whether the create request took effect."""
        return self.timing.settle_s(self.provider) - self.store.deployments.waited(deployment.id)

    def require_account(self, deployment: Deployment) -> None:
        """Raise `OtherAccount` unless the key is known to belong to the deployment's account. This is known
        if the account ids match, or if the key can see the deployment or the run's job or file."""
        self._require_host(deployment)
        here = accounts.is_here(self.store, self.provider, deployment.account)
        if here:
            return
        if deployment.job_kind == ADAPTER_JOB:
            # The adapter is on a different host than the run, so the run's own account doesn't help here.
            if here is False or not self._sees(deployment):
                now = accounts.account_of(self.store, self.provider)
                raise _or_abandon(
                    OtherAccount(
                        self.provider.profile.title,
                        deployment.run_id,
                        deployment.account,
                        now,
                        sure=here is False,
                    ),
                    deployment,
                )
            return
        run = self.store.runs.get(deployment.run_id)
        if here is None and self._sees(deployment):
            accounts.prove(self.store, self.provider, run)
            return
        if here is False or not self._shows(run):
            raise _or_abandon(accounts.other(self.store, self.provider, run), deployment)

    def _shows(self, run: Run) -> bool:
        try:
            return bool(accounts.shows(self.store, self.provider, run))
        except (NotFound, PermissionRefused):
            return False

    def _sees(self, deployment: Deployment) -> bool:
        try:
            return bool(self._deploys.deployed(deployment.handle))
        except (NotFound, PermissionRefused):
            return False

    def adopt(self, run: Run, items: Iterable[BilledResource]) -> Deployment:
        """Start tracking a deployment that the host lists under the name of the run's job, but that is
        missing from this store. If this store had abandoned the deployment, its cost since then counts toward
        the budget."""
        deployment = self.store.deployments.of_run(run.id, self.provider.config.name)
        if deployment is None or deployment.state is not DeploymentState.ABANDONED:
            deployment = self._intent(run)
            self.store.deployments.add(deployment, note="found on its host")
        return self.poll(deployment, items)

    # -- inside --------------------------------------------------------------------------------------------

    def _apply(self, deployment: Deployment, step: Change, *, new_attempt: bool = False) -> Deployment:
        return self.store.deployments.apply(deployment.id, step, new_attempt=new_attempt)

    def _require_host(self, tracked: Run | Deployment) -> None:
        if (tracked.provider, tracked.host) != (self.provider.config.name, self.provider.host):
            raise UsageError(
                f"{tracked.id} is on {tracked.provider} at {tracked.host}, but the current "
                f"configuration uses {self.provider.config.name} at {self.provider.host}",
                fix="use the configuration and key with which it was created",
            )

    def _require_terms(self, price: Decimal | None, terms: DeployTerms) -> None:
        name = self.provider.profile.title
        for option in ("max_cost_usd", "max_hours"):
            if getattr(terms, option) == 0:
                raise UsageError(f"{option} must be above 0")
        if price is None:
            require_hourly_price(name, price, accepted=terms.accept_unknown_price)
            unknown, fix = "the host does not publish an hourly price", "set a limit with --max-hours"
            for limit_usd in (terms.max_cost_usd, terms.max_usd_per_hour):
                require_within(self.provider.name, price, limit_usd, unknown=unknown, unknown_fix=fix)
        what, figure = "--max-usd-per-hour", "the hourly price"
        require_within(self.provider.name, price, terms.max_usd_per_hour, what=what, figure=figure)


def _or_abandon(error: OtherAccount, deployment: Deployment) -> OtherAccount:
    command = f"orchestrate abandon {deployment.run_id} --reason TEXT"
    error.fix = f"{error.fix}\nIf you have lost access to that account: {command}"
    return error


def lease_name(run_id: str) -> str:
    return f"deployment:{run_id}"


def _agreed(deployment: Deployment, terms: DeployTerms, price: Decimal | None, at: datetime) -> Deployment:
    """Apply the terms of the last call. Limits and options missing from the call stay unchanged. Raises
    `UsageError` if the deployment is being ended, a limit is already reached, or an option differs from the
    running deployment."""
    given = {
        "max_usd_per_hour": terms.max_usd_per_hour,
        "max_cost_usd": terms.max_cost_usd,
        "max_hours": terms.max_hours,
        "made_by": deployment.made_by or terms.made_by,
        "gateway_key": deployment.gateway_key or terms.gateway_key,
        "gateway_model": deployment.gateway_model or terms.gateway_model,
        "usd_per_hour": None if price is None else deployments.counted_price(deployment, price),
        "options": {**deployment.options, **terms.options},
    }
    after = msgspec.structs.replace(deployment, **{k: v for k, v in given.items() if v is not None})
    again = f"orchestrate undeploy {deployment.run_id}   (waits until the host confirms), then deploy again"
    if deployment.state is DeploymentState.ENDING:
        raise UsageError(
            f"the deployment of {deployment.run_id} is being taken down, but the host still lists it",
            fix=again,
        )
    if deployment.host_id is not None:
        has = {name: str(value) for name, value in deployment.options.items()}
        other = [f"{name}={v}" for name, v in terms.options.items() if has.get(name) != str(v)]
        if other:
            known = ", ".join(f"{name}={value}" for name, value in has.items()) or "its backend's defaults"
            raise UsageError(
                f"{deployment.run_id} is already deployed with {known}, and {', '.join(other)} cannot "
                "be set while that deployment is up",
                fix=again,
            )
    if (come := limit_reached(after, at)) is not None:
        hours, usd = _hours(after, at), spent_usd(after, at)
        cost = "" if usd is None else f" and has cost about {money(usd)}"
        raise UsageError(
            f"these limits would end the deployment of {deployment.run_id} immediately: {come}. "
            f"The deployment was created {duration(float(hours) * 3600)} ago{cost}",
            fix=f"set a higher --max-hours or --max-cost (both count from its creation), or {again}",
        )
    return after


def _hours(deployment: Deployment, at: datetime) -> Decimal:
    """Return the number of hours since the deployment was created."""
    return Decimal(str((at - deployment.created_at).total_seconds())) / 3600


def _not_made(deployment: Deployment, problem: str, at: datetime) -> Deployment:
    if deployment.state in deployments.UNSETTLED:
        return deployments.never_made(deployment, problem, at)
    return deployments.failed(deployment, problem, at)
