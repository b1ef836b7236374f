"""The page of one run, with the most important parts first: verdict, proof, cost, curves, host messages,
settings, and files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrate import DeploymentHandle, RunHandle
from orchestrate.errors import OrchestrateError, UsageError
from orchestrate.http import web
from orchestrate.runs.hosting.deployment import NOT_DEPLOYED, uses_of_checkpoint
from orchestrate.runs.syncing.stalls import EVENT as STALLED
from orchestrate.settings import masked
from orchestrate.types import Checkpoint, Event, Feature, JobStatus, Outcome, Run, Setting
from orchestrate.types.proof import newest
from orchestrate.types.serving import Merged
from orchestrate.ui import actions, new
from orchestrate.ui.curves import AXES, READ, charts
from orchestrate.ui.runs import repeated, stream_event
from orchestrate.ui.site import ActionNote, Copy, Site

_EVENTS = 300
"""The number of recent events to show."""


@dataclass(frozen=True)
class RunHeader:
    """The parts of a run that change while its page is open."""

    run: Run
    notes: list[ActionNote]
    verbs: list[actions.Verb]
    deployments: list[DeploymentHandle]
    events: list[Event]
    stalled: str | None = None
    """The reason why the run counts as stalled, or `None`."""
    ready: bool = False
    """True if the run's model can be queried and exported from this page."""


def routes(site: Site) -> list[Route]:
    def page(request: Request) -> Response:
        handle = site.ft.run(request.path_params["run"])
        run = handle.record
        return site.page(
            request,
            "run.html",
            here="runs",
            copy=_copy(run),
            head=head_of(site, handle),
            evaluation=_evaluation_summary(site, handle),
            reviews=_reviews(site, run),
            proofs=newest(handle.proofs()),
            axes=AXES,
            settings=_settings(site, run),
            kept=_kept(site, handle),
            uses=_uses(handle),
            artifact=handle.downloaded(),
            lineage=_lineage(site, run),
            since=site.ft.store.clock.now().isoformat(),
        )

    def curves(request: Request) -> Response:
        axis = request.query_params.get("axis", AXES[0])
        if axis not in AXES:
            raise UsageError(f"unknown axis {axis!r}; known: {', '.join(AXES)}")
        handle = site.ft.run(request.path_params["run"])
        points = site.ft.store.history.sampled([handle.id], READ)
        return web.json_answer(charts({handle.id: points[handle.id]}, axis))

    def stream(request: Request) -> Response:
        return web.event_stream(_changes(request, site, site.ft.run(request.path_params["run"])))

    return [
        Route("/runs/{run}", page, methods=["GET"]),
        Route("/runs/{run}/curves", curves, methods=["GET"]),
        Route("/runs/{run}/changes", stream, methods=["GET"]),
    ]


def head_of(site: Site, handle: RunHandle) -> RunHeader:
    run, events = handle.record, site.ft.store.history.events(handle.id, limit=_EVENTS)
    stalls = [one.message for one in events if one.type == STALLED and one.id.startswith("orchestrate-")]
    return RunHeader(
        run,
        site.work.notes(run.id),
        [] if site.read_only else actions.possible(site, handle),
        handle.deployments(),
        events,
        stalls[-1] if stalls and run.id in site.ft.store.watching.stalled() else None,
        not site.read_only and run.status is JobStatus.SUCCEEDED,
    )


async def _changes(request: Request, site: Site, handle: RunHandle) -> AsyncIterator[str]:
    """Yield the changing parts of the page whenever one of them changes."""
    seen: tuple[Any, ...] | None = None
    base = request.scope.get("root_path", "")

    def look() -> str | None:
        nonlocal seen
        handle.record = site.ft.store.runs.get(handle.id)
        run, notes = handle.record, site.work.notes(handle.id)
        last = site.ft.store.history.events(run.id, limit=1)
        stalled = run.id in site.ft.store.watching.stalled()
        now = (run, notes, last, [d.record for d in site.ft.deployments()], stalled)
        if now == seen:
            return None
        moved = seen is None or seen[0].step != run.step
        seen = now
        head, at = head_of(site, handle), datetime.now(UTC)
        parts = ("status", "money", "events")
        html = "".join(site.part("run_parts.html", part, head, base, at) for part in parts)
        return stream_event(html=html, points=moved)

    async for event in repeated(request, site, look):
        yield event


@dataclass(frozen=True)
class _EvaluationSummary:
    """The newest evaluation of a run, as described in reports."""

    name: str
    verdicts: Markup
    broken: int
    flips: Markup
    whole: Markup


def _evaluation_summary(site: Site, handle: RunHandle) -> _EvaluationSummary | None:
    found = site.ft.evaluations(handle.id)
    if not found:
        return None
    from orchestrate.reports import html
    from orchestrate.runs.evaluation.comparison import flips_of

    try:
        flips = flips_of(found[-1], handle.id)
    except OrchestrateError:  # the answers were cleared away; the scores are kept with the run
        flips = []
    return _EvaluationSummary(
        found[-1].id,
        Markup(html.verdicts(found[-1])),  # noqa: S704  reports escape what came from outside
        sum(one.broken_count for one in flips),
        Markup("".join(map(html.flipped, flips))),  # noqa: S704
        Markup(html.evaluation(found[-1], (), charted=False)),  # noqa: S704
    )


def _settings(site: Site, run: Run) -> tuple[list[Setting], list[Setting]]:
    """Return the requested settings, and the backend's own."""
    from orchestrate.runs.evaluation.comparison import sent

    found = sent(site.ft, run)
    rows: Sequence[Setting] = () if found is None else found.settings
    shown = [Setting.from_dict(masked(row.to_dict())) for row in rows]
    own = [row for row in shown if row.outcome is Outcome.DEFAULTED]
    return [row for row in shown if row.outcome is not Outcome.DEFAULTED], own


@dataclass(frozen=True)
class _Kept:
    """A checkpoint or the final model, and its actions as (label, path)."""

    checkpoint: Checkpoint | None
    acts: list[tuple[str, str]]


def _kept(site: Site, handle: RunHandle) -> list[_Kept]:
    """List checkpoints, and last the final model of a successful run, which is what gets deployed."""
    run, ended = handle.record, handle.record.status is JobStatus.SUCCEEDED
    names = [] if site.read_only else [verb.name for verb in actions.possible(site, handle)]
    onward = False
    if not site.read_only:
        with suppress(OrchestrateError):  # its backend is not configured any more
            onward = Feature.CONTINUE_FROM in handle.provider.features
    found: list[_Kept] = []
    for one in [*handle.checkpoints(), *([None] if ended else [])]:
        query = f"?{urlencode({'checkpoint': one.id})}" if one else ""
        acts = [("Download", f"do/download{query}")] if "download" in names else []
        if ended and not site.read_only:
            acts.append(("Evaluate", f"evaluate{query}"))
        if one is None and "deploy" in names:
            acts.append(("Deploy", "do/deploy"))
        acts = [(label, f"/runs/{run.id}/{path}") for label, path in acts]
        origin = run.id if one is None else one.model
        if ended and onward and origin:
            acts.append(("Continue", f"/new?{urlencode(new.continued(run, origin))}"))
        found.append(_Kept(one, acts))
    return found


def _uses(handle: RunHandle) -> tuple[list[tuple[str, str]], str]:
    """Return further uses of the last checkpoint, each with its command, and a note on what is not
    possible."""
    found = handle.checkpoints()
    if not found or handle.record.status is not JobStatus.SUCCEEDED:
        return [], ""
    try:
        provider = handle.provider
    except OrchestrateError:  # not configured any more
        return [], ""
    not_deployed = NOT_DEPLOYED if Feature.DEPLOY in provider.features else ""
    return uses_of_checkpoint(provider, handle.id, found[-1].id), not_deployed


def _reviews(site: Site, run: Run) -> list[tuple[str, list[str]]]:
    """Return the id of each review of the run's answers, with a summary of its ratings."""
    from orchestrate.runs.evaluation import reviews

    return [
        (session.review.id, reviews.said(site.ft, session)) for session in reviews.of_run(site.ft, run.id)
    ]


@dataclass(frozen=True)
class _Lineage:
    parent: str | None
    parent_id: str | None
    children: list[Run]
    alike: list[Run]
    """Other runs with the same data."""
    merges: list[Merged]
    """Merged adapters that contain this run's adapter."""


def _lineage(site: Site, run: Run) -> _Lineage:
    from orchestrate.runs import serving as tuned

    parent = run.spec.get("continue_from")
    others = [one.record for one in site.ft.runs(limit=1000, sandbox=run.sandbox) if one.id != run.id]
    names = {run.id, run.tuned_model, run.job_id} - {None}
    parent_id = next((one.id for one in others if parent in (one.id, one.tuned_model, one.job_id)), None)
    return _Lineage(
        parent,
        parent_id if parent else None,
        [one for one in others if one.spec.get("continue_from") in names],
        [one for one in others if one.dataset_digest == run.dataset_digest][:8],
        tuned.merges(site.ft, run.id),
    )


def _copy(run: Run) -> Copy:
    end = "" if run.status is not JobStatus.SUCCEEDED else f"\n    print(ft.compare([{run.id!r}]).findings)"
    return Copy(
        command=f"orchestrate show {run.id} --offline",
        python="from orchestrate import Orchestrator\n\nwith Orchestrator() as ft:\n"
        f"    run = ft.run({run.id!r})\n    print(run.record, run.metrics()[-1:]){end}",
    )
