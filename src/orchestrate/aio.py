"""AsyncOrchestrator: the Python API for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, Self

from orchestrate.service import Backends, Orchestrator
from orchestrate.types import Event, Problem, Quote, Run, Translation

if TYPE_CHECKING:
    from orchestrate.config import Settings
    from orchestrate.handle import RunHandle
    from orchestrate.reports import Comparison
    from orchestrate.spec import JobSpec
    from orchestrate.tracking import SyncReport


class AsyncOrchestrator:
    """`Orchestrator` for asyncio: the same methods, each run in a thread so that the loop stays free."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.sync_api = Orchestrator(settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await asyncio.to_thread(self.sync_api.close)

    async def plan(self, spec: JobSpec, provider: Backends = "all") -> list[Translation]:
        return await asyncio.to_thread(self.sync_api.plan, spec, provider)

    async def check(self, spec: JobSpec, provider: Backends = "all") -> list[Problem]:
        return await asyncio.to_thread(self.sync_api.check, spec, provider)

    async def quote(self, spec: JobSpec, provider: Backends = "all") -> list[Quote]:
        return await asyncio.to_thread(self.sync_api.quote, spec, provider)

    async def submit(
        self,
        spec: JobSpec,
        provider: str,
        *,
        max_cost_usd: Decimal | float | str | None = None,
        strict: bool = False,
    ) -> RunHandle:
        return await asyncio.to_thread(
            self.sync_api.submit, spec, provider, max_cost_usd=max_cost_usd, strict=strict
        )

    async def wait(self, run: RunHandle, *, on_event: Callable[[Event], object] | None = None) -> Run:
        """Runs may be waited for side by side: `await asyncio.gather(*(ft.wait(r) for r in runs))`."""
        return await asyncio.to_thread(run.wait, on_event=on_event)

    async def sync(self) -> SyncReport:
        return await asyncio.to_thread(self.sync_api.sync)

    async def compare(self, runs: Iterable[RunHandle | Run | str]) -> Comparison:
        return await asyncio.to_thread(self.sync_api.compare, list(runs))
