"""The pages of the queue, sweeps and deployments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrate.errors import UsageError
from orchestrate.runs import queue as queueing
from orchestrate.runs.hosting.deployment import hourly, limits
from orchestrate.runs.sweep.trials import Searching
from orchestrate.text import money, rate
from orchestrate.types import QueueEntry, Run, Search, Trial, TrialState
from orchestrate.ui.site import Copy, Form, Site

if TYPE_CHECKING:
    from orchestrate import DeploymentHandle

_IMPORT = "from orchestrate import Orchestrator\n\nwith Orchestrator() as ft:\n"


def routes(site: Site) -> list[Route]:
    return [*_queue(site), *_sweeps(site), *_deployments(site)]


# -- the queue -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Waiting:
    """A queue entry and its buttons."""

    entry: QueueEntry
    most_usd: Decimal | None
    about: str
    acts: tuple[str, ...]


_CHANGES: dict[str, Callable[[Site, str], object]] = {
    "hold": lambda site, name: queueing.hold(site.ft, name),
    "resume": lambda site, name: queueing.release(site.ft, name),
    "remove": lambda site, name: queueing.remove(site.ft, name),
}
_ACTS = {"waiting": ("hold", "remove"), "held": ("resume", "remove")}


def _queue(site: Site) -> list[Route]:
    def page(request: Request) -> Response:
        ended = bool(request.query_params.get("all"))
        found = queueing.entries(site.ft, ended=ended)
        shown = [
            Waiting(one, queueing.most_usd(one), queueing.about(one), _ACTS.get(one.state.value, ()))
            for one in found
        ]
        own = [one for one in shown if one.entry.sandbox is site.ft.settings.hosts.sandboxed]
        known = [one.most_usd for one in own if one.acts and one.most_usd is not None]
        return site.page(
            request,
            "queue.html",
            here="queue",
            copy=Copy(
                command=f"orchestrate queue ls{' --all' if ended else ''}",
                python=f"from orchestrate.runs import queue\n{_IMPORT}"
                f"    print(queue.entries(ft, ended={ended}))",
            ),
            entries=shown,
            paused=site.ft.store.queue.paused,
            ended=ended,
            total_usd=sum(known, Decimal(0)),
        )

    def change(request: Request, _: Form) -> str:
        verb, name = request.path_params["verb"], request.path_params["entry"]
        if verb not in _CHANGES:
            raise UsageError(f"unknown action: {verb!r}", fix="orchestrate queue --help")
        _CHANGES[verb](site, name)
        return "/queue"

    def pause(request: Request, _: Form) -> str:
        site.ft.store.queue.pause(request.path_params["verb"] == "pause")
        return "/queue"

    return [
        Route("/queue", page, methods=["GET"]),
        site.action("/queue/all/{verb}", pause),
        site.action("/queue/{entry}/{verb}", change),
    ]


# -- sweeps --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Swept:
    """A sweep with its trials, for the list and for its own page."""

    search: Search
    trials: list[Trial]
    ranked: list[Trial]
    spent_usd: Decimal
    runs: dict[str, Run]

    @property
    def names(self) -> list[str]:
        return sorted({name for trial in self.trials for name in trial.settings})

    @property
    def ordered(self) -> list[Trial]:
        """Trials with a score, best first, then trials without a score."""
        return [*self.ranked, *(trial for trial in self.trials if trial not in self.ranked)]

    @property
    def going(self) -> int:
        return sum(trial.state is TrialState.OPEN for trial in self.trials)

    @property
    def compare(self) -> str:
        """The URL query of the page that compares the sweep's runs."""
        return urlencode([("run", trial.run_id) for trial in self.ordered if trial.run_id])


def _swept(site: Site, search: Search) -> Swept:
    found = Searching(site.ft, search)
    trials = found.trials
    ids = [trial.run_id for trial in trials if trial.run_id]
    runs = {run.id: run for run in site.ft.store.runs.of_ids(ids)}
    return Swept(search, trials, found.ranked(), found.spent_usd(), runs)


def _sweeps(site: Site) -> list[Route]:
    def page(request: Request) -> Response:
        return site.page(
            request,
            "sweeps.html",
            here="sweeps",
            copy=Copy(
                command="orchestrate sweep --list",
                python=f"{_IMPORT}    for search in ft.store.searches.all():\n        print(search)",
            ),
            sweeps=[_swept(site, search) for search in site.ft.store.searches.all()],
        )

    def one(request: Request) -> Response:
        found = _swept(site, site.ft.store.searches.get(request.path_params["sweep"]))
        name = found.search.id
        return site.page(
            request,
            "sweep.html",
            here="sweeps",
            copy=Copy(
                command=f"orchestrate sweep --show {name}",
                python=f"{_IMPORT}    for trial in ft.store.searches.trials({name!r}):\n        print(trial)",
            ),
            swept=found,
        )

    return [Route("/sweeps", page, methods=["GET"]), Route("/sweeps/{sweep}", one, methods=["GET"])]


# -- deployments ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deployed:
    """A deployment, its run, and its limits."""

    handle: DeploymentHandle
    run: Run | None
    ends: str

    @property
    def model(self) -> str:
        """The model's name as the user knows it."""
        name = self.run.spec.get("suffix") if self.run else None
        model = self.run.model if self.run else self.handle.record.model or self.handle.record.run_id
        return f"{name} ({model})" if name else str(model)

    @property
    def price(self) -> str:
        """Price and cost so far, such as `$5.49 per hour, $16.47 so far`."""
        record, spent = self.handle.record, self.handle.spent_usd
        parts = [
            "an unknown price" if record.usd_per_hour is None else f"{rate(record.usd_per_hour)} per hour"
        ]
        return ", ".join([*parts, *([] if spent is None else [f"about {money(spent)} so far"])])


def _deployed(site: Site, *, over: bool | None) -> list[Deployed]:
    found = site.ft.deployments(over=over)
    runs = {run.id: run for run in site.ft.store.runs.of_ids([one.record.run_id for one in found])}
    return [
        Deployed(one, runs.get(one.record.run_id), limits(one.record.max_cost_usd, one.record.max_hours))
        for one in found
    ]


def _deployments(site: Site) -> list[Route]:
    def of(request: Request) -> Deployed:
        name = request.path_params["deployment"]
        found = [one for one in _deployed(site, over=None) if one.handle.id == name]
        if not found:
            raise UsageError(f"unknown deployment {name}", fix="orchestrate deployments --all")
        return found[0]

    def page(request: Request) -> Response:
        every = bool(request.query_params.get("all"))
        found = _deployed(site, over=None if every else False)
        flag, argument = (" --all", "over=None") if every else ("", "")
        return site.page(
            request,
            "deployments.html",
            here="deployments",
            copy=Copy(
                command=f"orchestrate deployments{flag}",
                python=f"{_IMPORT}    for one in ft.deployments({argument}):\n"
                "        print(one, one.spent_usd)",
            ),
            deployments=found,
            every=every,
            hourly=hourly([one.handle.record for one in found if not one.handle.state.over]),
            notes={one.handle.id: site.work.notes(one.handle.record.run_id) for one in found},
        )

    def confirm(request: Request) -> Response:
        found = of(request)
        run_id, at = found.handle.record.run_id, found.handle.record.provider
        return site.page(
            request,
            "end.html",
            here="deployments",
            copy=Copy(
                command=f"orchestrate undeploy {run_id} --at {at}",
                python=f"{_IMPORT}    ft.run({run_id!r}).undeploy({at!r})",
            ),
            one=found,
        )

    def act(request: Request, _: Form) -> str:
        handle = of(request).handle

        def end() -> str:
            return f"{handle.id} is {handle.undeploy().state.value}"

        site.work.begin(handle.record.run_id, "take down", end)
        return "/deployments?all=1"

    return [
        Route("/deployments", page, methods=["GET"]),
        Route("/deployments/{deployment}/end", confirm, methods=["GET"]),
        site.action("/deployments/{deployment}/end", act),
    ]
