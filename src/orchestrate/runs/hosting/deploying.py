"""Deploying: a tuned model on GPUs of its host, or its adapter at another one."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from orchestrate.providers.base import Deploys, TakesAdapters, capability
from orchestrate.runs import privacy
from orchestrate.runs.hosting.deployer import Deployer, Terms
from orchestrate.runs.hosting.deployment import deployer_of
from orchestrate.runs.serving import tuned
from orchestrate.settings import trust
from orchestrate.types import Deployment, DeploymentOffer

if TYPE_CHECKING:
    from orchestrate.providers.base import Progress
    from orchestrate.runs.tracked import TrackedRun
    from orchestrate.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Within which it may bill."""

    usd_per_hour: Decimal | None = None
    cost_usd: Decimal | None = None
    hours: Decimal | None = None
    accept_unknown_price: bool = False


def offer(
    ws: Workspace, run: TrackedRun, to: str | None, limits: Limits, options: dict[str, Any]
) -> DeploymentOffer:
    """As `RunHandle.deployment_offer`."""
    terms = Terms(
        options=options,
        max_cost_usd=limits.cost_usd,
        max_hours=limits.hours,
        accept_unknown_price=True,
    )
    return _deployer(ws, run, to).offer(run.record, terms)


def deploy(
    ws: Workspace,
    run: TrackedRun,
    to: str | None,
    limits: Limits,
    options: dict[str, Any],
    *,
    made_by: str | None = None,
    progress: Progress | None = None,
) -> Deployment:
    """As `RunHandle.deploy`."""
    deployer = _deployer(ws, run, to, progress)
    privacy.require_own(run.record, deployer.provider)
    trust.require_to_spend(ws.settings, deployer.provider)
    terms = Terms(
        options=options,
        max_usd_per_hour=limits.usd_per_hour,
        max_cost_usd=limits.cost_usd,
        max_hours=limits.hours,
        accept_unknown_price=limits.accept_unknown_price,
        made_by=made_by or ws.settings.made_by or None,
    )
    return deployer.deploy(run.record, terms, budget_usd=ws.settings.budget_usd)


def _deployer(ws: Workspace, run: TrackedRun, to: str | None, progress: Progress | None = None) -> Deployer:
    """What puts the tuned model up at its own host, or its adapter at another. Raises `UsageError` for
    what is no adapter, `Unsupported` for a host that takes none."""
    if to is None or to == run.record.provider:
        capability(run.provider, Deploys)
        return deployer_of(ws, run.record.provider)
    capability(ws.provider(to), TakesAdapters)
    return Deployer(ws.store, ws.provider(to), adapter=tuned.adapter_of(ws, run), progress=progress)
