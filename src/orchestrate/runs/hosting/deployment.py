"""DeploymentHandle: a deployment and the actions on it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from orchestrate.core.underway import work
from orchestrate.errors import OrchestrateError, UsageError
from orchestrate.providers.base import Downloads, Provider, Serves, capability
from orchestrate.text import SANDBOX_MARK, count, duration, limit, money, rate
from orchestrate.types import Deployment, DeploymentOffer, DeploymentState

if TYPE_CHECKING:
    from orchestrate.runs.hosting.deployer import Deployer
    from orchestrate.workspace import Workspace


READY = "ready"
"""State of an endpoint that accepts requests."""
_POLL_S = 2.0


def uses_of_checkpoint(provider: Provider, run_id: str, id: str) -> list[tuple[str, str]]:
    """List what a checkpoint can be used for besides continued training, with the command for each use."""
    uses: list[tuple[str, str]] = []
    if provider.profile.checkpoints_answer:
        uses.append(
            (
                "the model is served under its own name and needs no deployment",
                f"orchestrate eval {run_id}@{id}",
            )
        )
    if isinstance(provider, Downloads):
        fetched = f"orchestrate download {run_id} --checkpoint {id}"
        uses.append(("serve it from this machine", f'orchestrate serve "$({fetched})"'))
    return uses


NOT_DEPLOYED = "deploy serves the final model of a run, not its checkpoints"


class DeploymentHandle:
    """A deployment and the actions on it. `record` is its last known state."""

    def __init__(self, ws: Workspace, record: Deployment) -> None:
        self._ws = ws
        self.record = record

    def __repr__(self) -> str:
        r = self.record
        return f"<DeploymentHandle {r.id} {r.provider}{SANDBOX_MARK * r.sandbox} {r.state.value}>"

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def state(self) -> DeploymentState:
        return self.record.state

    @property
    def spent_usd(self) -> Decimal | None:
        """Estimated cost so far: uptime in hours times the hourly price. `None` if the price is unknown."""
        from orchestrate.costing.expenses import spent_usd

        return spent_usd(self.record, self._ws.store.deployments.time_of(self.record))

    def refresh(self) -> Deployment:
        """Update the deployment from its host. Raises `OtherAccount` if the current key belongs to another
        account, and `ProviderError` if the host cannot be reached."""
        deployer = deployer_of(self._ws, self.record.provider)
        deployer.require_account(self.record)
        self.record = deployer.poll(self.record)
        return self.record

    def answers(self, patience_s: float = 0.0) -> bool:
        """Return True once the deployment accepts requests, or False if it still doesn't after `patience_s`
        seconds of polling its host. Raises `ProviderError` if the host cannot be reached."""
        provider, clock = capability(self._ws.provider(self.record.provider), Serves), self._ws.store.clock
        until = clock.uptime().seconds + patience_s
        with work(f"waiting for the deployment on {provider.name}"):
            while True:
                endpoint = provider.endpoint(self.record.handle)
                if endpoint is not None and endpoint.state == READY:
                    return True
                if clock.uptime().seconds >= until:
                    return False
                clock.sleep(_POLL_S)

    def undeploy(self, *, cause: str = "asked to", patience_s: float = 60.0) -> Deployment:
        """Take down this deployment, like `RunHandle.undeploy`. Uses only the stored record, so this works
        even if the run's job was deleted."""
        deployer = deployer_of(self._ws, self.record.provider)
        self.record = deployer.undeploy(self.record, cause, patience_s=patience_s)
        return self.record

    @property
    def settles_in_s(self) -> float:
        """Seconds until a create request whose response was lost can be resolved. After that, the deployment
        either exists or never will."""
        return max(deployer_of(self._ws, self.record.provider).settles_in(self.record), 0.0)

    def abandon(self, reason: str) -> Deployment:
        """Give up the deployment: stop polling its host, and count only its cost so far against a budget.
        Does not end the deployment on the host, so it may still be billed. Raises `UsageError` if its account
        can be reached, because `undeploy` then works."""
        from orchestrate.store import deployments

        try:
            deployer_of(self._ws, self.record.provider).require_account(self.record)
        except OrchestrateError:
            pass
        else:
            raise UsageError(
                f"your key can still manage the deployment of {self.record.run_id} on "
                f"{self.record.provider}, so it cannot be abandoned",
                fix=f"take it down with: orchestrate undeploy {self.record.run_id}",
            )
        self.record = self._ws.store.deployments.apply(
            self.id, lambda d, at: deployments.abandoned(d, reason, at), note=f"abandoned: {reason}"
        )
        return self.record


def deployer_of(ws: Workspace, provider: str) -> Deployer:
    """Return the deployer of one backend."""
    from orchestrate.runs.hosting.deployer import Deployer

    return Deployer(ws.store, ws.provider(provider))


def require_open(ws: Workspace, run_id: str, at: str) -> Deployment:
    """Return a run's deployment at a host other than its own. Raises `UsageError` if there is none."""
    found = ws.store.deployments.of_run(run_id, at)
    if found is None or found.state.over:
        raise UsageError(f"{run_id} is not deployed at {at}", fix=f"orchestrate deploy {run_id} --to {at}")
    return found


def limits(max_cost_usd: Decimal | None, max_hours: Decimal | None) -> str:
    """Format a deployment's limits, such as `at $25.00 or after 8 h`. Returns an empty string without a
    limit."""
    parts = [f"at {limit(max_cost_usd)}"] if max_cost_usd is not None else []
    if max_hours is not None:
        parts.append(f"after {max_hours.normalize():f} h")
    return " or ".join(parts)


def price(offer: DeploymentOffer) -> str:
    """Format an offer's hourly price, such as `$5.49 per hour, idle or not`."""
    if offer.usd_per_hour is None:
        return "an unknown amount per hour"
    return f"{rate(offer.usd_per_hour)} per hour, idle or not"


def ending(offer: DeploymentOffer) -> str:
    """Describe in one or two sentences when the deployment ends and how much it will have cost by then."""
    ends = limits(offer.max_cost_usd, offer.max_hours)
    if not ends:
        day = "" if offer.usd_per_hour is None else f", {money(offer.usd_per_hour * 24)} a day"
        return f"The deployment has no time or cost limit, so you are billed until you take it down{day}."
    left = ""
    if offer.deployment is not None:
        left = ", counted from when it was created"
        if offer.hours_left is not None:
            left += f" ({duration(float(offer.hours_left) * 3600)} from now)"
    most = "" if offer.most_usd is None else f" Remaining cost: at most {money(offer.most_usd)}."
    return f"The deployment ends {ends}{left}.{most}"


def question(offer: DeploymentOffer) -> str:
    """Build the confirmation prompt for a deployment, including all costs."""
    sandbox = "SANDBOX: nothing is billed. " if offer.sandbox else ""
    known = " The deployment already exists and will be completed, started or changed."
    there = known if offer.deployment else ""
    asked = f"Deploy {offer.model} ({offer.run_id}) on {offer.title}?"
    return f"{sandbox}{asked} {price(offer)}. {ending(offer)}{there}"


def hourly(found: Sequence[Deployment]) -> str:
    """Format the number of deployments and their total price, such as `2 deployments, $13.49 per hour`. Those
    in sandboxes are counted separately."""
    play = [one for one in found if one.sandbox]
    if play and (real := [one for one in found if not one.sandbox]):
        return f"{hourly(real)}; {hourly(play)}"
    prices = [one.usd_per_hour for one in found if one.billing_since is not None]
    known = sum((price for price in prices if price is not None), Decimal(0))
    more = " and an unknown amount" * (None in prices) + " of play money" * bool(play)
    return f"{count(len(found), 'deployment')}, {rate(known)} per hour{more}"


def used(ws: Workspace, run_id: str, at: str | None = None) -> None:
    """Record that a run's deployment received a request, so the deployment isn't reported as idle. `at` is
    the deployment's backend, if it isn't the run's own."""
    from orchestrate.store import deployments

    known = ws.store.deployments.of_run(run_id, at or ws.store.runs.get(run_id).provider)
    if known is not None and not known.state.over:
        ws.store.deployments.apply(known.id, deployments.used)
