"""RunHandle: a run, its model, and the actions on both."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from orchestrate.core.amounts import amount
from orchestrate.providers.base import Progress
from orchestrate.runs.hosting.deployment import DeploymentHandle
from orchestrate.runs.tracked import TrackedRun
from orchestrate.types import DeploymentOffer, Evaluation, Export, Proof


class RunHandle(TrackedRun):
    """One run and the actions on it. `record` is its last known state. `refresh` queries the backend."""

    def deployment_price(self, to: str | None = None, **options: Any) -> Decimal | None:
        """Return the hourly price, in US dollars, of a deployment with these options, or `None` if it is
        unknown."""
        return self.deployment_offer(to, **options).usd_per_hour

    def deployment_offer(
        self,
        to: str | None = None,
        *,
        max_cost_usd: Decimal | float | str | None = None,
        max_hours: Decimal | float | str | None = None,
        **options: Any,
    ) -> DeploymentOffer:
        """Return the price and limits that `deploy` would apply with the same arguments, including limits set
        by an earlier call. Sends nothing. Raises the same errors as `deploy`."""
        from orchestrate.runs.hosting import deployments

        terms = deployments.DeployTerms(
            options=options,
            max_cost_usd=amount(max_cost_usd, "max_cost_usd"),
            max_hours=amount(max_hours, "max_hours", "hours"),
            accept_unknown_price=True,
        )
        return deployments.offer(self._ws, self, to, terms)

    def deploy(
        self,
        to: str | None = None,
        *,
        max_usd_per_hour: Decimal | float | str | None = None,
        max_cost_usd: Decimal | float | str | None = None,
        max_hours: Decimal | float | str | None = None,
        accept_unknown_price: bool = False,
        made_by: str | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> DeploymentHandle:
        """Deploy the tuned model on its host's GPUs, or upload its adapter and deploy it on another host
        (`to`). You are billed hourly until `undeploy`. Call it again to complete an interrupted deployment.

        At `max_cost_usd` or `max_hours`, a watcher (`orchestrate worker`, `watch`) or the next `sync` ends
        the deployment. `options` are specific to the backend, such as `shape`, `min_replicas`, `max_replicas`
        and `idle_minutes`. If you call this again, limits and options that you leave out stay unchanged.
        Limits count from the deployment's creation. Options that differ from those of a running deployment
        are rejected.

        Before anything is sent, raises `OverBudget` if the budget or a limit does not cover the deployment,
        `ProjectNotTrusted` for a project that you have not trusted, and `UsageError` if the price is unknown
        and `accept_unknown_price` is not set. Raises `OutcomeUnknown` if the response was lost. To resolve
        this, call `sync` or repeat the call.
        """
        from orchestrate.runs.hosting import deployments

        terms = deployments.DeployTerms(
            options=options,
            max_usd_per_hour=amount(max_usd_per_hour, "max_usd_per_hour"),
            max_cost_usd=amount(max_cost_usd, "max_cost_usd"),
            max_hours=amount(max_hours, "max_hours", "hours"),
            accept_unknown_price=accept_unknown_price,
            made_by=made_by,
        )
        record = deployments.deploy(self._ws, self, to, terms, progress)
        return DeploymentHandle(self._ws, record)

    def evaluate(
        self, test: str | Path | None = None, *, metrics: Sequence[str] = ("auto",), **order: Any
    ) -> Evaluation:
        """Evaluate the base and the tuned model on held-out rows (`test`, by default the spec's test file),
        and store the result with the run. `order` contains the fields of
        `orchestrate.runs.evaluation.held_out.EvaluationOrder`, such as `limit` or `on`."""
        from orchestrate.runs.evaluation.held_out import EvaluationOrder, evaluate_runs

        return evaluate_runs(self._ws, [self], EvaluationOrder(test=test, metrics=metrics, **order))

    def export(self, form: str, folder: str | Path, **options: Any) -> Export:
        """Export the tuned model. See `orchestrate.runs.tuned.export`."""
        from orchestrate.runs import tuned

        return tuned.export(self._ws, self, form, Path(folder), **options)

    def verify(self, at: str | None = None, **asking: Any) -> Proof:
        """Verify that a served model is the one that was trained. See
        `orchestrate.runs.tuned.verify`. `asking` contains the fields of
        `orchestrate.runs.tuned.EndpointNames`."""
        from orchestrate.runs import tuned

        return tuned.verify(self._ws, self, at, tuned.EndpointNames(**asking))
