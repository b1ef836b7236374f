"""Read-only tools. Their results are short to save an agent's context."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel, ConfigDict, Field

from orchestrate.api.orchestrator import Orchestrator
from orchestrate.core.progress import cost_so_far
from orchestrate.errors import OrchestrateError, UsageError
from orchestrate.settings import hide
from orchestrate.spec import JobSpec, specfile
from orchestrate.text import inert
from orchestrate.types import JobStatus, Problem, Quote, Run, Severity

_MOST_PROBLEMS = 20
_LAST = 10
_HOST_S = 30.0
"""Seconds to wait for a host. Most clients end a call after a minute."""


class SpecGiven(BaseModel):
    """The spec to train: a file, a set of fields, or a file with fields that override its values."""

    model_config = ConfigDict(extra="forbid")

    file: str | None = Field(
        default=None, description="Path of a YAML spec, such as the one that `orchestrate init` writes."
    )
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of the spec by dotted name: model, train, validation, epochs, adapter.r ...",
    )

    def read(self) -> JobSpec:
        """Read the spec. Raises `SpecError` if it is invalid."""
        if self.file is not None:
            return specfile.load(Path(self.file), self.settings)
        values: dict[str, Any] = {}
        for name, value in self.settings.items():
            specfile.put(values, name, value)
        return specfile.build(values)


class ReadTools:
    """The read-only tools, one per method. Agents read the methods' docstrings."""

    def __init__(self, ft: Orchestrator) -> None:
        self._ft = ft

    def list_runs(
        self,
        provider: str | None = None,
        status: JobStatus | None = None,
        sandbox: bool = False,
        limit: Annotated[int, Field(ge=1, le=1000)] = 20,
    ) -> list[dict[str, Any]]:
        """List fine-tuning runs, newest first, in their last known state."""
        found = self._ft.runs(provider=provider, status=status, limit=limit, sandbox=sandbox or None)
        if provider is not None and not found:  # a backend that is no longer configured may have runs
            self._ft.backends(provider)
        return [run_line(run.record) for run in found]

    def show_run(self, run: str) -> dict[str, Any]:
        """Show one run: settings, progress, cost, last events and metrics, evaluations, deployment. `run` is
        a run id, the start of one, or `last`. Queries the host while the run is active."""
        handle = self._ft.run(run)
        record = handle.record if handle.record.status.terminal else handle.refresh()
        deployment = handle.deployment()
        return {
            **run_line(record),
            "spec": record.spec,
            "error": record.error.message if record.error else None,
            "quote": None if record.quote is None else quote_line(record.quote),
            "bill_usd": record.bill.usd if record.bill else None,
            "events": [event.message for event in handle.events()[-_LAST:]],
            "metrics": [point.to_dict() for point in handle.metrics()[-_LAST:]],
            "evaluations": [
                {"id": e.id, "items": e.items, "measures": [m.to_dict() for m in e.measures if not m.slice]}
                for e in self._ft.evaluations(record.id)
            ],
            "deployment": None if deployment is None else deployment.record.to_dict(),
        }

    def list_backends(self) -> list[dict[str, Any]]:
        """List the backends that can train, their features, and whether each has a key."""
        backends = [self._ft.provider(name) for name in self._ft.backends()]
        return [
            {
                "name": backend.config.name,
                "title": backend.profile.title,
                "sandbox": backend.config.sandbox,
                "features": sorted(feature.value for feature in backend.features),
                "ready": backend.profile.keyless or backend.config.api_key is not None,
            }
            for backend in backends
        ]

    def list_models(self, query: str = "", provider: str | None = None) -> list[dict[str, Any]]:
        """List base models that can be fine-tuned and whose names match `query`. Works offline."""
        return [{"name": model.name, "ids": model.ids} for model in self._ft.models(query, provider)]

    def check(self, spec: SpecGiven, provider: str = "all") -> dict[str, Any]:
        """List every reason why a backend would reject the spec or the data. Works offline."""
        return problems(self._ft.check(spec.read(), provider))

    def plan(self, spec: SpecGiven, provider: str = "all") -> list[dict[str, Any]]:
        """Show what each setting becomes on each backend: kept, mapped, defaulted or rejected. Works
        offline."""
        return [plan.to_dict() for plan in self._ft.plan(spec.read(), provider)]

    def quote(self, spec: SpecGiven, provider: str = "all") -> list[dict[str, Any]]:
        """Quote a run on each backend, cheapest first, with the assumptions. Works offline."""
        return [quote_line(quote) for quote in self._ft.quote(spec.read(), provider)]

    def compare(self, runs: list[str]) -> str:
        """Compare runs side by side, as Markdown: settings, cost, loss, scores."""
        if not runs:
            raise UsageError("name at least one run")
        return self._ft.compare(runs).render("md")

    def spending(self, month: str | None = None) -> dict[str, Any]:
        """Show what was spent and committed, and query every account for resources that are still billed.
        `month` has the format YYYY-MM, such as 2026-11."""
        return self._ft.spending(month=month, patience_s=_HOST_S).to_dict()


def run_line(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "provider": run.provider,
        "model": run.model,
        "status": run.status.value,
        "sandbox": run.sandbox,
        "step": run.step,
        "total_steps": run.total_steps,
        "cost_usd": cost_so_far(run),
        "created_at": run.created_at,
        "tags": run.tags,
    }


def quote_line(quote: Quote) -> dict[str, Any]:
    return {
        "provider": quote.provider,
        "model": quote.model,
        "sandbox": quote.sandbox,
        "low_usd": quote.low_usd,
        "expected_usd": quote.expected_usd,
        "high_usd": quote.high_usd,
        "unavailable": quote.unavailable,
        "refused": quote.refused,
        "assumptions": list(quote.assumptions),
        "warnings": list(quote.warnings),
    }


def problems(found: list[Problem]) -> dict[str, Any]:
    """Return the problems, errors first, and how many were omitted to keep the list short."""
    ordered = sorted(found, key=lambda one: one.severity is not Severity.ERROR)
    return {
        "errors": sum(one.severity is Severity.ERROR for one in found),
        "problems": [one.to_dict() for one in ordered[:_MOST_PROBLEMS]],
        "left_out": max(0, len(found) - _MOST_PROBLEMS),
    }


def safe_tool(tool: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a tool so its errors say what failed and what to do. Removes control characters, invisible text
    and secrets from its results and errors."""

    @functools.wraps(tool)
    def run(*args: Any, **given: Any) -> Any:
        try:
            return _plain(tool(*args, **given))
        except OrchestrateError as error:
            next_step = f"\nWhat to do: {error.fix}" if error.fix else ""
            raise ToolError(_plain(f"{error}{next_step}")) from error

    return run


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return inert(hide(value))
    if isinstance(value, dict):
        return {_plain(name): _plain(one) for name, one in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in cast("list[Any]", value)]
    return value
