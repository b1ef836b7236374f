"""Deploy a tuned model on its host's GPUs, or its adapter on another host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from orchestrate.providers.base import Deploys, Progress, TakesAdapters, capability
from orchestrate.runs import privacy, tuned
from orchestrate.runs.hosting.deployer import Deployer, DeployTerms
from orchestrate.runs.hosting.deployment import deployer_of
from orchestrate.types import Deployment, DeploymentOffer

if TYPE_CHECKING:
    from orchestrate.runs.tracked import TrackedRun
    from orchestrate.store.ledger import Limit
    from orchestrate.workspace import Workspace


def offer(ws: Workspace, run: TrackedRun, to: str | None, terms: DeployTerms) -> DeploymentOffer:
    """Return the price and limits for deploying a run. See `RunHandle.deployment_offer`."""
    return _deployer(ws, run, to).offer(run.record, terms)


def deploy(
    ws: Workspace,
    run: TrackedRun,
    to: str | None,
    terms: DeployTerms,
    progress: Progress | None = None,
    limits: Sequence[Limit] = (),
) -> Deployment:
    """Deploy a run's tuned model. See `RunHandle.deploy`. `limits` apply in addition to the budget."""
    deployer = _deployer(ws, run, to, progress)
    privacy.require_own(run.record, deployer.provider)
    ws.settings.require_to_spend(deployer.provider)
    terms = replace(terms, made_by=terms.made_by or ws.settings.made_by or None)
    return deployer.deploy(run.record, terms, budget_usd=ws.settings.budget_usd, limits=limits)


def _deployer(ws: Workspace, run: TrackedRun, to: str | None, progress: Progress | None = None) -> Deployer:
    """Return the deployer of the tuned model on its own host, or of its adapter on another. Raises
    `UsageError` for anything but an adapter, and `Unsupported` for a host that takes none."""
    if to is None or to == run.record.provider:
        capability(run.provider, Deploys)
        return deployer_of(ws, run.record.provider)
    capability(ws.provider(to), TakesAdapters)
    return Deployer(ws.store, ws.provider(to), adapter=tuned.adapter_of(ws, run), progress=progress)
