"""The page of all runs: a live table with filters, and curves that load as rows scroll into view."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec.structs import replace
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from orchestrate.errors import UsageError
from orchestrate.http import web
from orchestrate.store.run_lists import STATUSES, RunQuery
from orchestrate.types import MetricPoint, Run
from orchestrate.ui.site import Form, Site, first
from orchestrate.ui.table import DEFAULT, RunTableQuery, as_csv, as_json, choices, groups_of, headings

_AT_ONCE = 100
"""Number of runs on the first page. The browser loads the remaining runs after rendering that page."""
_LOOK_S = 1.0
"""Seconds between two checks of the store while a page is open."""
_SPARKED, _SPARK = 128, 32
"""Points per sparkline of a table row: `_SPARKED` are read, then averaged to the `_SPARK` that are drawn."""
_WIDTH, _HEIGHT = 80.0, 16.0


def routes(site: Site) -> list[Route]:
    listing = site.ft.store.listing

    def page(request: Request) -> Response:
        # Taken before the runs are read, so the stream reports what changes while the page is built.
        since = site.ft.store.clock.now().isoformat()
        wanted = RunTableQuery.of(request)
        shown = _part(site, wanted, min(_AT_ONCE, wanted.limit))
        found, tags = shown["runs"], listing.tags()
        offered = choices(found, tags, wanted)
        elsewhere = 0 if found or wanted.sandbox else listing.count(RunQuery(sandbox=True))
        kept = 0 if found or wanted.archived else listing.count(replace(wanted.of_site(site), archived=True))
        return site.page(
            request,
            "runs.html",
            here="runs",
            copy=wanted.copy,
            **shown,
            total=listing.count(wanted.of_site(site)),
            offered=offered,
            default=DEFAULT,
            groups=groups_of(offered),
            statuses=STATUSES,
            providers=sorted({run.provider for run in found} | {*site.ft.backends()}),
            tags=sorted(f"{name}={value}" if value else name for name, value in tags),
            elsewhere=elsewhere,
            kept=kept,
            since=since,
        )

    def rest(request: Request) -> Response:
        """Return the rows after those already on the page."""
        wanted = RunTableQuery.of(request)
        before = listing.page(wanted.of_site(site), limit=1, ids=[wanted.after])
        more = max(0, wanted.limit - _AT_ONCE)
        return site.page(request, "rest.html", **_part(site, wanted, more, before[0] if before else None))

    def sparks(request: Request) -> Response:
        ids = request.query_params.getlist("run")[:200]
        points = site.ft.store.history.sampled(ids, _SPARKED)
        return web.json_answer({run_id: spark(points[run_id]) for run_id in ids})

    def stream(request: Request) -> Response:
        wanted, since = RunTableQuery.of(request), since_of(request)
        return web.event_stream(_changes(request, site, wanted, since))

    return [
        Route("/", page, methods=["GET"]),
        Route("/rest", rest, methods=["GET"]),
        Route("/sparks", sparks, methods=["GET"]),
        Route("/changes", stream, methods=["GET"]),
        *_files(site),
        *_archive(site),
    ]


def _part(site: Site, wanted: RunTableQuery, limit: int, before: Run | None = None) -> dict[str, Any]:
    """Return a part of the table with its headings. `before` is the run in the row above."""
    query, listing = wanted.of_site(site), site.ft.store.listing
    found = listing.page(query, limit=limit, after=wanted.after)
    numbers = listing.groups(query) if wanted.group else []
    return {
        "wanted": wanted,
        "columns": wanted.shown(),
        "runs": found,
        "headings": headings(found, wanted.group, numbers, before),
    }


def _files(site: Site) -> list[Route]:
    """Return the routes of the table as CSV and JSON, with the filters and the order from the URL."""

    def as_file(request: Request, kind: str) -> Response:
        query = RunTableQuery.of(request).of_site(site)
        content = as_csv(site, query) if kind == "csv" else as_json(site.ft.store.listing.each(query))
        return StreamingResponse(
            content,
            media_type="text/csv; charset=utf-8" if kind == "csv" else "application/json",
            headers={"content-disposition": f'attachment; filename="runs.{kind}"'},
        )

    def as_table(request: Request) -> Response:
        return as_file(request, "csv")

    def as_records(request: Request) -> Response:
        return as_file(request, "json")

    return [
        Route("/runs.csv", as_table, methods=["GET"]),
        Route("/runs.json", as_records, methods=["GET"]),
    ]


def _archive(site: Site) -> list[Route]:
    """Return the routes for archiving selected runs, with a confirmation page, and for notes."""

    def confirm(request: Request) -> Response:
        ids = list(dict.fromkeys(request.query_params.getlist("run")))
        runs = site.ft.store.runs.of_ids(ids)
        return site.page(
            request,
            "archive.html",
            here="runs",
            copy=None,
            runs=runs,
            back=bool(runs) and all(run.archived for run in runs),
        )

    def act(_: Request, form: Form) -> str:
        for run_id in form.get("run", ()):
            site.ft.run(run_id).annotate(archived=first(form, "archived") == "1")
        return "/"

    def write(request: Request, form: Form) -> str:
        handle = site.ft.run(request.path_params["run"])
        handle.annotate(note=first(form, "note").replace("\r\n", "\n"))
        return f"/runs/{handle.id}"

    return [
        Route("/archive", confirm, methods=["GET"]),
        site.action("/archive", act),
        site.action("/runs/{run}/note", write),
    ]


def since_of(request: Request) -> datetime:
    """Parse the time from which a stream reports changes. Raises `UsageError` if it is not in ISO 8601
    format."""
    try:
        at = datetime.fromisoformat(request.query_params.get("since", ""))
    except ValueError as error:
        raise UsageError("`since` must be a time in ISO 8601 format") from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)


async def _changes(
    request: Request, site: Site, wanted: RunTableQuery, since: datetime
) -> AsyncIterator[str]:
    """Yield changed rows, and the ids of runs that no longer match, whenever runs have changed."""
    query, columns = wanted.of_site(site), wanted.shown()
    total: int | None = None

    def look() -> str | None:
        nonlocal since, total
        changed = site.ft.store.watching.changed(since)
        if not changed:
            return None
        since = changed[:_AT_ONCE][-1].updated_at  # the others come with the next look
        some = [run.id for run in changed if run.updated_at <= since]
        shown = site.ft.store.listing.page(query, limit=len(some), ids=some)[::-1]
        gone = sorted({*some} - {run.id for run in shown})
        base, now = request.scope.get("root_path", ""), datetime.now(UTC)
        points = site.ft.store.history.sampled([run.id for run in shown], _SPARKED)
        sparked = [(run, spark(points[run.id])) for run in shown]
        rows = [site.part("rows.html", "row", run, base, now, columns, *drawn) for run, drawn in sparked]
        if total != (total := site.ft.store.listing.count(query)):
            rows.append(site.part("rows.html", "total", total))
        return stream_event(html="".join(rows), gone=gone, since=since.isoformat())

    async for event in repeated(request, site, look):
        yield event


async def repeated(request: Request, site: Site, look: Any) -> AsyncIterator[str]:
    """Call `look` once a second until the client disconnects or the server closes. Yields an empty event
    first, and then each result that is not `None`."""
    yield stream_event()
    while not site.closing.is_set() and not await request.is_disconnected():
        if (event := await run_in_threadpool(look)) is not None:
            yield event
        await asyncio.sleep(_LOOK_S)


def stream_event(**values: Any) -> str:
    return msgspec.json.encode(values).decode()


def spark(points: Sequence[MetricPoint]) -> tuple[str, str]:
    """Compute a sparkline for a table row. Returns the points of a line in an 80 by 16 box, and the last
    value as text.

    Plots the first of these metrics that the run has: reward, training loss, validation loss. Returns empty
    strings if it has none of them.
    """
    for name in ("train_reward", "train_loss", "valid_loss"):
        values = [p.values[name] for p in points if name in p.values]
        finite = [v for v in values if v == v and abs(v) != float("inf")]
        if finite:
            break
    else:
        return "", ""
    size = max(1, -(-len(finite) // _SPARK))
    cells = [sum(c) / len(c) for c in (finite[i : i + size] for i in range(0, len(finite), size))]
    if len(cells) == 1:  # a line of one point would not be seen
        return (
            f"{_WIDTH / 2 - 3:.1f},{_HEIGHT / 2:.1f} {_WIDTH / 2 + 3:.1f},{_HEIGHT / 2:.1f}",
            f"{finite[-1]:.4f}",
        )
    low, span = min(cells), (max(cells) - min(cells)) or 1.0
    step = _WIDTH / max(1, len(cells) - 1)
    line = " ".join(
        f"{i * step:.1f},{(1 - (v - low) / span) * (_HEIGHT - 2) + 1:.1f}" for i, v in enumerate(cells)
    )
    return line, f"{finite[-1]:.4f}"
