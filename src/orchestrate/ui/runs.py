"""The page of all runs: a live table with filters, and the curves in its rows as they come into view."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import urlencode

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrate.errors import UsageError
from orchestrate.http.web import pages
from orchestrate.types import JobStatus, MetricPoint, Run
from orchestrate.ui.site import Copy, Site

MOST = 1000
"""Runs on the page, unless more are asked for."""
_AT_ONCE = 100
"""Runs that the page comes with; it asks for the others once these are shown."""
_LOOK_S = 1.0
"""Between two looks into the store, for as long as a page is open."""
_SPARKED, _SPARK = 128, 32
"""Points that are read for a curve in a row, and the means that are drawn of them."""
_WIDTH, _HEIGHT = 80.0, 16.0


@dataclass(frozen=True)
class Wanted:
    """Which runs are shown."""

    words: str = ""
    status: str = ""
    provider: str = ""
    tag: str = ""
    sandbox: bool = False
    limit: int = MOST

    @classmethod
    def of(cls, request: Request) -> Self:
        """Raises `UsageError` for what is no filter."""
        given = request.query_params
        status, limit = given.get("status", ""), given.get("limit") or str(MOST)
        if status not in ("", *JobStatus):
            raise UsageError(f"runs have no status {status!r}; known: {', '.join(JobStatus)}")
        if not (limit.isascii() and limit.isdecimal() and int(limit[:9]) > 0):
            raise UsageError(f"the most runs that are shown is a whole number above 0; got {limit!r}")
        return cls(
            words=given.get("q", "").strip(),
            status=status,
            provider=given.get("provider", ""),
            tag=given.get("tag", ""),
            sandbox=bool(given.get("sandbox")),
            limit=int(limit[:9]),
        )

    def fits(self, run: Run) -> bool:
        """Whether it has all words, in any of what names it, and the tag, as `name` or `name=value`."""
        name, equals, value = self.tag.partition("=")
        if self.tag and (name not in run.tags or (equals and run.tags[name] != value)):
            return False
        if not self.words:
            return True
        tags = " ".join(f"{name}={value}" for name, value in run.tags.items())
        named = (run.id, run.provider, run.model, run.spec.get("suffix"), run.job_id, run.made_by, tags)
        hay = " ".join(str(part) for part in named if part).casefold()
        return all(word in hay for word in self.words.casefold().split())

    def shows(self, run: Run, *, sandboxed: bool) -> bool:
        """As `found` chooses them, of a run that has just changed."""
        if not self.fits(run) or (self.provider and run.provider != self.provider):
            return False
        if self.status and run.status.value != self.status:
            return False
        return run.sandbox if self.sandbox else sandboxed or not run.sandbox

    def found(self, site: Site) -> list[Run]:
        status = JobStatus(self.status) if self.status else None
        narrowed = bool(self.words or self.tag)
        handles = site.ft.runs(
            provider=self.provider or None,
            status=status,
            limit=max(self.limit, 100_000) if narrowed else self.limit,
            sandbox=self.sandbox or None,
        )
        return [handle.record for handle in handles if self.fits(handle.record)][: self.limit]

    @property
    def query(self) -> str:
        asked = {"q": self.words, "status": self.status, "provider": self.provider, "tag": self.tag}
        given = {name: value for name, value in asked.items() if value}
        if self.sandbox:
            given["sandbox"] = "1"
        if self.limit != MOST:
            given["limit"] = str(self.limit)
        return urlencode(given)

    @property
    def copy(self) -> Copy:
        flags, arguments = "", ""
        for name, value in (("provider", self.provider), ("status", self.status)):
            if value:
                flags += f" --{name} {value}"
                arguments += (
                    f"{name}=JobStatus.{value.upper()}, " if name == "status" else f"{name}={value!r}, "
                )
        if self.sandbox:
            flags, arguments = f"{flags} --sandbox", f"{arguments}sandbox=True, "
        imported = "JobStatus, Orchestrator" if self.status else "Orchestrator"
        return Copy(
            command=f"orchestrate runs{flags} --limit {self.limit}",
            python=f"from orchestrate import {imported}\n\nwith Orchestrator() as ft:\n"
            f"    for run in ft.runs({arguments}limit={self.limit}):\n        print(run)",
        )


def routes(site: Site) -> list[Route]:
    def page(request: Request) -> Response:
        wanted = Wanted.of(request)
        found = wanted.found(site)
        elsewhere = 0 if found or wanted.sandbox else len(site.ft.runs(sandbox=True))
        return site.page(
            request,
            "runs.html",
            here="runs",
            copy=wanted.copy,
            wanted=wanted,
            runs=found[:_AT_ONCE],
            total=len(found),
            statuses=[status.value for status in JobStatus],
            providers=sorted({run.provider for run in found} | {*site.ft.backends()}),
            tags=sorted({f"{name}={value}" for run in found for name, value in run.tags.items()}),
            elsewhere=elsewhere,
            since=site.ft.store.clock.now().isoformat(),
        )

    def rest(request: Request) -> Response:
        return site.page(request, "rest.html", runs=Wanted.of(request).found(site)[_AT_ONCE:])

    def sparks(request: Request) -> Response:
        ids = request.query_params.getlist("run")[:200]
        points = site.ft.store.history.sampled(ids, _SPARKED)
        return pages.json({run_id: spark(points[run_id]) for run_id in ids})

    def stream(request: Request) -> Response:
        wanted, since = Wanted.of(request), since_of(request)
        return pages.event_stream(_changes(request, site, wanted, since))

    return [
        Route("/", page, methods=["GET"]),
        Route("/rest", rest, methods=["GET"]),
        Route("/sparks", sparks, methods=["GET"]),
        Route("/changes", stream, methods=["GET"]),
    ]


def since_of(request: Request) -> datetime:
    """From when on a stream tells of changes. Raises `UsageError`."""
    try:
        at = datetime.fromisoformat(request.query_params.get("since", ""))
    except ValueError as error:
        raise UsageError("a stream begins at a time, as the page gives it") from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)


async def _changes(request: Request, site: Site, wanted: Wanted, since: datetime) -> AsyncIterator[str]:
    """The rows that changed, each time some did."""
    sandboxed = site.ft.settings.hosts.sandboxed

    def look() -> str | None:
        nonlocal since
        changed = site.ft.store.watching.changed(since)
        since = max([since, *(run.updated_at for run in changed)])
        shown = [run for run in changed if wanted.shows(run, sandboxed=sandboxed)]
        if not shown:
            return None
        base, now = request.scope.get("root_path", ""), datetime.now(UTC)
        points = site.ft.store.history.sampled([run.id for run in shown], _SPARKED)
        sparked = [(run, spark(points[run.id])) for run in shown]
        rows = [site.part("rows.html", "row", run, base, now, *drawn) for run, drawn in sparked]
        return told(html="".join(rows), since=since.isoformat())

    async for event in repeated(request, site, look):
        yield event


async def repeated(request: Request, site: Site, look: Any) -> AsyncIterator[str]:
    """What `look` finds, each time it finds something, until the page or the server has gone."""
    yield told()
    while not site.closing.is_set() and not await request.is_disconnected():
        if (event := await run_in_threadpool(look)) is not None:
            yield event
        await asyncio.sleep(_LOOK_S)


def told(**values: Any) -> str:
    return msgspec.json.encode(values).decode()


def spark(points: Sequence[MetricPoint]) -> tuple[str, str]:
    """A curve for a row: the points of a line in a box of 80 by 16, and the last value. The training loss, or
    the reward where there is one."""
    for name in ("train_reward", "train_loss", "valid_loss"):
        values = [p.values[name] for p in points if name in p.values]
        finite = [v for v in values if v == v and abs(v) != float("inf")]
        if finite:
            break
    else:
        return "", ""
    size = max(1, -(-len(finite) // _SPARK))
    cells = [sum(c) / len(c) for c in (finite[i : i + size] for i in range(0, len(finite), size))]
    low, span = min(cells), (max(cells) - min(cells)) or 1.0
    step = _WIDTH / max(1, len(cells) - 1)
    line = " ".join(
        f"{i * step:.1f},{(1 - (v - low) / span) * (_HEIGHT - 2) + 1:.1f}" for i, v in enumerate(cells)
    )
    return line, f"{finite[-1]:.4f}"
