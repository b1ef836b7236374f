"""AsyncOrchestrator: the Python API for asyncio."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from orchestrate.api.orchestrator import Orchestrator
from orchestrate.api.run import RunHandle
from orchestrate.api.threads import Threaded, in_thread, then
from orchestrate.runs.hosting.deployment import DeploymentHandle
from orchestrate.types import Deployment, DeploymentState, Evaluation, JobStatus, Run

if TYPE_CHECKING:
    from orchestrate.api.session import AsyncTrainingSession
    from orchestrate.costing import RateBook
    from orchestrate.evaluation.regression import Regression
    from orchestrate.evaluation.review.session import ReviewSession
    from orchestrate.providers.base import Provider
    from orchestrate.reports import Comparison
    from orchestrate.sessions.session import TrainingSession
    from orchestrate.settings.config import Settings
    from orchestrate.store.store import Store

_T = TypeVar("_T")
_THREADS = 64
"""Maximum number of concurrent calls, including every pending `run.wait()`."""


def _run(caller: Threaded[Any], run: RunHandle) -> AsyncRunHandle:
    return AsyncRunHandle(run, caller.threads)


def _runs(caller: Threaded[Any], runs: list[RunHandle]) -> list[AsyncRunHandle]:
    return [_run(caller, run) for run in runs]


def _deployment(caller: Threaded[Any], deployment: DeploymentHandle) -> AsyncDeploymentHandle:
    return AsyncDeploymentHandle(deployment, caller.threads)


def _maybe_deployment(
    caller: Threaded[Any], deployment: DeploymentHandle | None
) -> AsyncDeploymentHandle | None:
    return None if deployment is None else _deployment(caller, deployment)


def _deployments(caller: Threaded[Any], deployments: list[DeploymentHandle]) -> list[AsyncDeploymentHandle]:
    return [_deployment(caller, deployment) for deployment in deployments]


def _session(caller: Threaded[Any], session: TrainingSession) -> AsyncTrainingSession:
    from orchestrate.api.session import AsyncTrainingSession

    return AsyncTrainingSession(session, caller.threads)


class AsyncRunHandle(Threaded[RunHandle]):
    """`RunHandle` for asyncio, with the same members. Callbacks run in a worker thread."""

    def __repr__(self) -> str:
        return f"<Async{repr(self.sync_api)[1:]}"

    @property
    def id(self) -> str:
        return self.sync_api.id

    @property
    def status(self) -> JobStatus:
        return self.sync_api.status

    @property
    def record(self) -> Run:
        return self.sync_api.record

    @property
    def provider(self) -> Coroutine[Any, Any, Provider]:
        """Return an awaitable that resolves to the backend."""
        return self.call(lambda: self.sync_api.provider)

    refresh = in_thread(RunHandle.refresh)
    wait = in_thread(RunHandle.wait)
    check = in_thread(RunHandle.check)
    events = in_thread(RunHandle.events)
    metrics = in_thread(RunHandle.metrics)
    checkpoints = in_thread(RunHandle.checkpoints)
    rendered = in_thread(RunHandle.rendered)
    cancel = in_thread(RunHandle.cancel)
    abandon = in_thread(RunHandle.abandon)
    annotate = in_thread(RunHandle.annotate)
    pause = in_thread(RunHandle.pause)
    resume = in_thread(RunHandle.resume)
    download = in_thread(RunHandle.download)
    downloaded = in_thread(RunHandle.downloaded)
    deployment_offer = in_thread(RunHandle.deployment_offer)
    deployment_price = in_thread(RunHandle.deployment_price)
    deploy = then(RunHandle.deploy, _deployment)
    deployment = then(RunHandle.deployment, _maybe_deployment)
    deployments = then(RunHandle.deployments, _deployments)
    undeploy = then(RunHandle.undeploy, _maybe_deployment)
    chat = in_thread(RunHandle.chat)
    evaluate = in_thread(RunHandle.evaluate)
    log_to = in_thread(RunHandle.log_to)
    export = in_thread(RunHandle.export)
    verify = in_thread(RunHandle.verify)
    proofs = in_thread(RunHandle.proofs)


class AsyncDeploymentHandle(Threaded[DeploymentHandle]):
    """`DeploymentHandle` for asyncio, with the same members."""

    def __repr__(self) -> str:
        return f"<Async{repr(self.sync_api)[1:]}"

    @property
    def id(self) -> str:
        return self.sync_api.id

    @property
    def state(self) -> DeploymentState:
        return self.sync_api.state

    @property
    def record(self) -> Deployment:
        return self.sync_api.record

    @property
    def spent_usd(self) -> Decimal | None:
        return self.sync_api.spent_usd

    @property
    def settles_in_s(self) -> float:
        return self.sync_api.settles_in_s

    abandon = in_thread(DeploymentHandle.abandon)
    refresh = in_thread(DeploymentHandle.refresh)
    answers = in_thread(DeploymentHandle.answers)
    undeploy = in_thread(DeploymentHandle.undeploy)


class AsyncOrchestrator(Threaded[Orchestrator]):
    """`Orchestrator` for asyncio, with the same members. Each call runs in a thread and doesn't block the
    event loop. To wait for several runs, use `await asyncio.gather(*(run.wait() for run in runs))`."""

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(Orchestrator(settings), ThreadPoolExecutor(_THREADS, "orchestrate"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the orchestrator. Calls that are still running in a thread are not interrupted. See
        `Orchestrator.close`."""
        await self.call(self.sync_api.close)
        self.threads.shutdown(wait=False)

    @property
    def settings(self) -> Settings:
        return self.sync_api.settings

    @property
    def store(self) -> Coroutine[Any, Any, Store]:
        """Return an awaitable that resolves to the store."""
        return self.call(lambda: self.sync_api.store)

    @property
    def rates(self) -> Coroutine[Any, Any, RateBook]:
        """Return an awaitable that resolves to the rates."""
        return self.call(lambda: self.sync_api.rates)

    backends = in_thread(Orchestrator.backends)
    provider = in_thread(Orchestrator.provider)
    ready = in_thread(Orchestrator.ready)
    models = in_thread(Orchestrator.models)
    model_changes = in_thread(Orchestrator.model_changes)
    advise = in_thread(Orchestrator.advise)
    data = in_thread(Orchestrator.data)
    prepare = in_thread(Orchestrator.prepare)
    plan = in_thread(Orchestrator.plan)
    suggest = in_thread(Orchestrator.suggest)
    check = in_thread(Orchestrator.check)
    quote = in_thread(Orchestrator.quote)
    submit = then(Orchestrator.submit, _run)
    session = then(Orchestrator.session, _session)
    rerun = then(Orchestrator.rerun, _run)
    earlier = in_thread(Orchestrator.earlier)
    require = in_thread(Orchestrator.require)
    preflight = in_thread(Orchestrator.preflight)
    run = then(Orchestrator.run, _run)
    runs = then(Orchestrator.runs, _runs)
    active_runs = then(Orchestrator.active_runs, _runs)
    backend_of = in_thread(Orchestrator.backend_of)
    home_of = in_thread(Orchestrator.home_of)
    record = in_thread(Orchestrator.record)
    spending = in_thread(Orchestrator.spending)
    orphans = in_thread(Orchestrator.orphans)
    end_orphans = in_thread(Orchestrator.end_orphans)
    deployments = then(Orchestrator.deployments, _deployments)
    sync = in_thread(Orchestrator.sync)
    bill = in_thread(Orchestrator.bill)
    evaluations = in_thread(Orchestrator.evaluations)
    judge = in_thread(Orchestrator.judge)
    calibrate = in_thread(Orchestrator.calibrate)
    rate = in_thread(Orchestrator.rate)
    rated = in_thread(Orchestrator.rated)

    async def compare(self, runs: Iterable[AsyncRunHandle | RunHandle | Run | str]) -> Comparison:
        """Compare runs. See `Orchestrator.compare`."""
        given = [_blocking(run) for run in runs]
        return await self.call(lambda: self.sync_api.compare(given))

    async def evaluate(
        self,
        runs: Sequence[AsyncRunHandle | RunHandle | str],
        test: str | Path | None = None,
        *,
        metrics: Sequence[str] = ("auto",),
        **order: Any,
    ) -> Evaluation:
        """Evaluate runs on held-out rows. See `Orchestrator.evaluate`."""
        given = [_blocking(run) for run in runs]
        return await self.call(lambda: self.sync_api.evaluate(given, test, metrics=metrics, **order))

    async def regress(self, run: AsyncRunHandle | RunHandle | str, **order: Any) -> Regression:
        """Test a run for regressions against its base model. See `Orchestrator.regress`."""
        return await self.call(lambda: self.sync_api.regress(_blocking(run), **order))

    async def review(
        self, runs: Sequence[AsyncRunHandle | RunHandle | str] | str = (), **order: Any
    ) -> ReviewSession:
        """Open a human review of the runs' answers. See `Orchestrator.review`."""
        given = runs if isinstance(runs, str) else [_blocking(run) for run in runs]
        return await self.call(lambda: self.sync_api.review(given, **order))


def _blocking(run: AsyncRunHandle | _T) -> RunHandle | _T:
    return run.sync_api if isinstance(run, AsyncRunHandle) else run
