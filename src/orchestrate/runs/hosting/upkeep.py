"""Maintain deployments: sync their state with the hosts, enforce limits, report idle ones, and complete
shutdowns."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from decimal import Decimal

from orchestrate.costing.expenses import hours_billed, limit_reached, spent_usd
from orchestrate.errors import OrchestrateError, UsageError
from orchestrate.providers.base import Deploys, Provider
from orchestrate.runs.hosting.deployer import Deployer, lease_name
from orchestrate.store.store import DEFAULT_TIMING, Store, Timing
from orchestrate.text import duration, money, rate
from orchestrate.types import BilledResource, Deployment, DeploymentState, Event

LOOK_BACK = timedelta(days=2)
"""How long a deployment is still checked after it has ended. Hosts sometimes report a deployment as deleted
although it is still up."""
_APART = timedelta(minutes=15)
"""Largest accepted difference between a deployment's age by the system clock and its age by this machine's
uptime. Larger differences are reported to the user."""
IDLE_HOURS = Decimal(1)
"""Hours without a request from this store after which a deployment is reported as idle, once a day."""


class Upkeep:
    """One check of a backend's deployments. `messages` are meant for the user."""

    def __init__(self, store: Store, provider: Provider, timing: Timing = DEFAULT_TIMING) -> None:
        self._store = store
        self._provider = provider
        self._deployer = Deployer(store, provider, timing)
        self.asked = 0
        self.messages: list[str] = []
        self.ending: list[str] = []
        """Ids of runs whose deployment is being shut down but is still listed by the host."""
        self.failures: list[OrchestrateError] = []

    def run(self) -> None:
        """Update the tracked deployments from the host, and end those that reached a limit. Raises only
        `StoreError`."""
        tracked = self._tracked()
        if not tracked or not isinstance(self._provider, Deploys):
            return
        self.asked += 1
        try:
            listed = by_job(self._provider)
        except OrchestrateError as error:
            self.failures.append(error)
            return
        for deployment in tracked:
            if self._store.leases.held(lease_name(deployment.run_id)):
                continue  # another process is changing it
            try:
                self._update(deployment, listed.get(deployment.job_id.lower(), []))
            except OrchestrateError as error:
                self.failures.append(error)

    def _tracked(self) -> list[Deployment]:
        """Return one deployment per job: the one that is not over, otherwise the newest."""
        since = self._store.clock.now() - LOOK_BACK
        found = self._store.deployments.matching(
            provider=self._provider.config.name, host=self._provider.host, since=since
        )
        found.sort(key=lambda d: (not d.state.over, d.created_at))
        return list({d.job_id: d for d in found}.values())

    def _update(self, before: Deployment, items: list[BilledResource]) -> None:
        there = any(item.kind == "deployment" for item in items)
        if before.state.over and not there:
            return
        self.asked += not there
        self._deployer.require_account(before)
        deployment = before
        if before.state is DeploymentState.INTENT and not there:
            deployment = self._deployer.undeploy(before, "the request was never sent")
        else:
            deployment = self._deployer.poll(before, items)
        if deployment.state is not before.state:
            self._report_change(before, deployment)
        if deployment.state.over:
            return
        self._report_clocks(deployment, items)
        cause = limit_reached(deployment, self._store.deployments.time_of(deployment))
        if deployment.state is DeploymentState.ENDING or (
            cause is not None and deployment.state is not DeploymentState.OUTCOME_UNKNOWN
        ):
            self._end(deployment, cause or deployment.cause or "")
        else:
            self._report_idle(deployment)

    def _end(self, deployment: Deployment, cause: str) -> None:
        if deployment.state is not DeploymentState.ENDING:
            self._say(deployment, f"taking down {name(deployment)}: {cause}", "limit", daily=False)
        after = self._deployer.undeploy(deployment, cause)
        if after.state.over:
            self._say(
                after,
                f"{name(after)} is down, confirmed by {after.provider}: {after.cause}",
                "down",
                daily=False,
            )
        else:
            self.ending.append(deployment.run_id)

    def _report_change(self, before: Deployment, deployment: Deployment) -> None:
        if before.state.over:
            end = f"orchestrate undeploy {deployment.run_id}"
            text = f"{name(deployment)} was shut down but is running and billed again. To take it down: {end}"
            self._say(deployment, text, "found", daily=True)
        elif deployment.state is DeploymentState.LOST:
            self._say(
                deployment, f"{name(deployment)} no longer exists: {deployment.cause}", "lost", daily=False
            )
        else:
            self.messages.append(f"{name(deployment)}: {deployment.state.value}")

    def _report_clocks(self, deployment: Deployment, items: list[BilledResource]) -> None:
        """Report a difference between the clocks. Uptime counts, but stops while a virtual machine is
        paused."""
        made_at = min((item.created_at for item in items if item.created_at), default=None)
        if made_at is None or made_at < deployment.created_at - _APART:  # older than this store's record
            return
        counted = self._store.deployments.time_of(deployment) - deployment.created_at
        by_clock = self._store.clock.now() - made_at
        if by_clock - counted < _APART:
            return
        self._say(
            deployment,
            f"{name(deployment)} has been deployed for {duration(counted.total_seconds())} by this "
            f"machine's uptime clock, but for {duration(by_clock.total_seconds())} by its system clock. "
            "Costs and limits use the uptime clock. If this machine was asleep, the system clock is "
            "right: the deployment has cost more than shown, and its limit takes effect late. To take it "
            f"down: orchestrate undeploy {deployment.run_id}",
            "clocks",
            daily=True,
        )

    def _report_idle(self, deployment: Deployment) -> None:
        now, run_id = self._store.deployments.time_of(deployment), deployment.run_id
        quiet = (now - (deployment.used_at or deployment.created_at)).total_seconds()
        if deployment.billing_since is None or quiet < IDLE_HOURS * 3600:
            return
        cost = spent_usd(deployment, now)
        so_far = "at an unknown price" if cost is None else f"about {money(cost)} so far"
        up = duration(float(hours_billed(deployment, now)) * 3600)
        self._say(
            deployment,
            f"{name(deployment)} has been up for {up} ({so_far}) and has received no request from this store "
            f"for {duration(quiet)}. To take it down: orchestrate undeploy {run_id}",
            "idle",
            daily=True,
        )

    def _say(self, deployment: Deployment, text: str, kind: str, *, daily: bool) -> None:
        """Add an event to the run, once or once a day."""
        now = self._store.clock.now()
        event = Event(
            id=f"orchestrate-{deployment.id}-{kind}" + (f"-{now:%Y-%m-%d}" if daily else ""),
            at=now,
            level="warning",
            type=f"deployment_{kind}",
            message=text,
        )
        if self._store.history.add_events(deployment.run_id, [event], from_host=False):
            self.messages.append(text)


def by_job(provider: Deploys) -> dict[str, list[BilledResource]]:
    """Group the host's deployments by the job in their names."""
    found: defaultdict[str, list[BilledResource]] = defaultdict(list)
    for item in provider.deployments():
        if item.job_id is not None:
            found[item.job_id.lower()].append(item)
    return found


def adopt(store: Store, provider: Provider) -> list[Deployment]:
    """Start tracking deployments that the host lists for this store's jobs but that are missing from the
    store, for example because the store was rebuilt. Raises `ProviderError` if the host cannot be reached."""
    if not isinstance(provider, Deploys):
        return []
    taken: list[Deployment] = []
    for job_id, items in by_job(provider).items():
        if not any(item.kind == "deployment" for item in items):
            continue
        try:
            run = store.runs.get(job_id)
        except UsageError:
            continue
        known = store.deployments.of_run(run.id, provider.config.name)
        mine = (run.provider, run.host) == (provider.config.name, provider.host)
        if mine and (run.job_id or "").lower() == job_id and (known is None or known.state.over):
            taken.append(Deployer(store, provider).adopt(run, items))
    return taken


def name(deployment: Deployment) -> str:
    price = f", {rate(deployment.usd_per_hour)} per hour" if deployment.usd_per_hour is not None else ""
    return f"the deployment of {deployment.run_id} on {deployment.provider}{price}"
