"""Continuation: training that begins with the model of an earlier run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate.errors import UsageError
from orchestrate.types import JobStatus

if TYPE_CHECKING:
    from orchestrate.service.orchestrator import Orchestrator
    from orchestrate.spec import JobSpec


def continued(ft: Orchestrator, spec: JobSpec, provider: str) -> JobSpec:
    """`continue_from` may name a run of this store: then its tuned model is what the backend is told."""
    if spec.continue_from is None or not ft.store.runs.exists(spec.continue_from):
        return spec
    earlier = ft.run(spec.continue_from).record
    if earlier.provider != provider:
        raise UsageError(
            f"run {earlier.id} was trained on {earlier.provider}; {provider} cannot continue from it",
            fix=f"submit to {earlier.provider}, or give a model that {provider} holds",
        )
    if earlier.status is not JobStatus.SUCCEEDED:
        raise UsageError(f"run {earlier.id} is {earlier.status}; training continues from a finished run only")
    return spec.model_copy(update={"continue_from": earlier.tuned_model or earlier.job_id})
