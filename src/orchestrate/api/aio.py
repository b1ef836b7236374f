"""AsyncOrchestrator: the Python API for asyncio."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from orchestrate.api.orchestrator import Orchestrator
from orchestrate.api.run import RunHandle
from orchestrate.runs.hosting.deployment import DeploymentHandle
from orchestrate.types import Deployment, DeploymentState, Evaluation, JobStatus, Run

if TYPE_CHECKING:
    from orchestrate.costing import RateBook
    from orchestrate.evaluation.regression import Regression
    from orchestrate.evaluation.review.desk import Desk
    from orchestrate.providers.base import Provider
    from orchestrate.reports import Comparison
    from orchestrate.settings.config import Settings
    from orchestrate.store.store import Store

_P = ParamSpec("_P")
_T = TypeVar("_T")
_R = TypeVar("_R")
_Sync = TypeVar("_Sync")
_THREADS = 64
"""Calls at once; each run that is waited for is one."""


class _Threaded(Generic[_Sync]):
    """Calls an object that blocks in threads, so that the loop stays free."""

    def __init__(self, sync_api: _Sync, threads: ThreadPoolExecutor) -> None:
        self.sync_api = sync_api
        """What does the work; everything of it blocks."""
        self.threads = threads

    async def call(self, call: Callable[[], _T]) -> _T:
        """Run anything that blocks in a thread outside of the event loop."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self.threads, context.run, call)

    def _run(self, run: RunHandle) -> AsyncRunHandle:
        return AsyncRunHandle(run, self.threads)

    def _deployment(self, deployment: DeploymentHandle) -> AsyncDeploymentHandle:
        return AsyncDeploymentHandle(deployment, self.threads)

    def _maybe_deployment(self, deployment: DeploymentHandle | None) -> AsyncDeploymentHandle | None:
        return None if deployment is None else self._deployment(deployment)

    def _deployments(self, deployments: list[DeploymentHandle]) -> list[AsyncDeploymentHandle]:
        return [self._deployment(deployment) for deployment in deployments]

    def _runs(self, runs: list[RunHandle]) -> list[AsyncRunHandle]:
        return [self._run(run) for run in runs]


def _in_thread(
    method: Callable[Concatenate[_Sync, _P], _T],
) -> Callable[Concatenate[_Threaded[_Sync], _P], Coroutine[Any, Any, _T]]:
    """The method for asyncio, with the same parameters, result and errors."""
    return _then(method, lambda _, result: result)


def _then(
    method: Callable[Concatenate[_Sync, _P], _T], give: Callable[[_Threaded[_Sync], _T], _R]
) -> Callable[Concatenate[_Threaded[_Sync], _P], Coroutine[Any, Any, _R]]:
    @functools.wraps(method)
    async def threaded(self: _Threaded[_Sync], /, *args: _P.args, **options: _P.kwargs) -> _R:
        return give(self, await self.call(lambda: method(self.sync_api, *args, **options)))

    return threaded


class AsyncRunHandle(_Threaded[RunHandle]):
    """`RunHandle` for asyncio: the same members. Callbacks are called in the thread that does the work."""

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
        """Return an awaitable of the backend."""
        return self.call(lambda: self.sync_api.provider)

    refresh = _in_thread(RunHandle.refresh)
    wait = _in_thread(RunHandle.wait)
    check = _in_thread(RunHandle.check)
    events = _in_thread(RunHandle.events)
    metrics = _in_thread(RunHandle.metrics)
    checkpoints = _in_thread(RunHandle.checkpoints)
    rendered = _in_thread(RunHandle.rendered)
    cancel = _in_thread(RunHandle.cancel)
    abandon = _in_thread(RunHandle.abandon)
    annotate = _in_thread(RunHandle.annotate)
    pause = _in_thread(RunHandle.pause)
    resume = _in_thread(RunHandle.resume)
    download = _in_thread(RunHandle.download)
    downloaded = _in_thread(RunHandle.downloaded)
    deployment_offer = _in_thread(RunHandle.deployment_offer)
    deployment_price = _in_thread(RunHandle.deployment_price)
    deploy = _then(RunHandle.deploy, _Threaded[RunHandle]._deployment)
    deployment = _then(RunHandle.deployment, _Threaded[RunHandle]._maybe_deployment)
    deployments = _then(RunHandle.deployments, _Threaded[RunHandle]._deployments)
    undeploy = _then(RunHandle.undeploy, _Threaded[RunHandle]._maybe_deployment)
    chat = _in_thread(RunHandle.chat)
    evaluate = _in_thread(RunHandle.evaluate)
    log_to = _in_thread(RunHandle.log_to)
    export = _in_thread(RunHandle.export)
    verify = _in_thread(RunHandle.verify)
    proofs = _in_thread(RunHandle.proofs)


class AsyncDeploymentHandle(_Threaded[DeploymentHandle]):
    """`DeploymentHandle` for asyncio: the same members."""

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

    abandon = _in_thread(DeploymentHandle.abandon)
    refresh = _in_thread(DeploymentHandle.refresh)
    answers = _in_thread(DeploymentHandle.answers)
    undeploy = _in_thread(DeploymentHandle.undeploy)


class AsyncOrchestrator(_Threaded[Orchestrator]):
    """`Orchestrator` for asyncio: the same members, each call run in a thread so that the loop stays free.
    Runs may be waited for side by side: `await asyncio.gather(*(run.wait() for run in runs))`."""

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(Orchestrator(settings), ThreadPoolExecutor(_THREADS, "orchestrate"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the orchestrator. See `Orchestrator.close`. Work that is still running in a thread
        finishes on its own."""
        await self.call(self.sync_api.close)
        self.threads.shutdown(wait=False)

    @property
    def settings(self) -> Settings:
        return self.sync_api.settings

    @property
    def store(self) -> Coroutine[Any, Any, Store]:
        """Return an awaitable of the store."""
        return self.call(lambda: self.sync_api.store)

    @property
    def rates(self) -> Coroutine[Any, Any, RateBook]:
        """Return an awaitable of the rates."""
        return self.call(lambda: self.sync_api.rates)

    backends = _in_thread(Orchestrator.backends)
    provider = _in_thread(Orchestrator.provider)
    ready = _in_thread(Orchestrator.ready)
    models = _in_thread(Orchestrator.models)
    model_changes = _in_thread(Orchestrator.model_changes)
    advise = _in_thread(Orchestrator.advise)
    data = _in_thread(Orchestrator.data)
    prepare = _in_thread(Orchestrator.prepare)
    plan = _in_thread(Orchestrator.plan)
    suggest = _in_thread(Orchestrator.suggest)
    check = _in_thread(Orchestrator.check)
    quote = _in_thread(Orchestrator.quote)
    submit = _then(Orchestrator.submit, _Threaded[Orchestrator]._run)
    rerun = _then(Orchestrator.rerun, _Threaded[Orchestrator]._run)
    earlier = _in_thread(Orchestrator.earlier)
    require = _in_thread(Orchestrator.require)
    preflight = _in_thread(Orchestrator.preflight)
    run = _then(Orchestrator.run, _Threaded[Orchestrator]._run)
    runs = _then(Orchestrator.runs, _Threaded[Orchestrator]._runs)
    active_runs = _then(Orchestrator.active_runs, _Threaded[Orchestrator]._runs)
    home_of = _in_thread(Orchestrator.home_of)
    record = _in_thread(Orchestrator.record)
    spending = _in_thread(Orchestrator.spending)
    orphans = _in_thread(Orchestrator.orphans)
    end_orphans = _in_thread(Orchestrator.end_orphans)
    deployments = _then(Orchestrator.deployments, _Threaded[Orchestrator]._deployments)
    sync = _in_thread(Orchestrator.sync)
    bill = _in_thread(Orchestrator.bill)
    evaluations = _in_thread(Orchestrator.evaluations)
    judge = _in_thread(Orchestrator.judge)
    calibrate = _in_thread(Orchestrator.calibrate)
    rate = _in_thread(Orchestrator.rate)
    rated = _in_thread(Orchestrator.rated)

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
        """Test whether a run forgot abilities of its base. See `Orchestrator.regress`."""
        return await self.call(lambda: self.sync_api.regress(_blocking(run), **order))

    async def review(self, runs: Sequence[AsyncRunHandle | RunHandle | str] | str = (), **order: Any) -> Desk:
        """Open a review of the runs' answers. See `Orchestrator.review`."""
        given = runs if isinstance(runs, str) else [_blocking(run) for run in runs]
        return await self.call(lambda: self.sync_api.review(given, **order))


def _blocking(run: AsyncRunHandle | _T) -> RunHandle | _T:
    return run.sync_api if isinstance(run, AsyncRunHandle) else run
