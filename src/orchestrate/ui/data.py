"""The data inspector: a file's contents, its problems, the effect of a repair, and near duplicates.

The inspector can read any file that its user can, so read-only pages don't include it.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrate.errors import DataError, OrchestrateError, Unsupported, UsageError
from orchestrate.runs import data as files
from orchestrate.runs.evaluation import reviews
from orchestrate.types import Problem, Severity
from orchestrate.ui.site import Copy, Form, Site, first

if TYPE_CHECKING:
    from orchestrate import RunHandle
    from orchestrate.data.operations.inspect import InspectReport
    from orchestrate.runs.data import PreviewReport, RowReview


_AT_ONCE = 3
"""Rows per page."""


def token_routes(site: Site) -> list[Route]:
    """Return the routes of the token pages. Read-only apps have none, because the token pages read files and
    contact hosts."""

    def shown(
        request: Request, read: Callable[[int], PreviewReport] | None, copy: Copy, **more: Any
    ) -> Response:
        row, report, error = _row(request), None, None
        try:
            report = read(row) if read else None
        except OrchestrateError as found:
            error = found
        values: dict[str, Any] = {"row": row, "report": report, "error": error, "at_once": _AT_ONCE, **more}
        return site.page(request, "tokens.html", copy=copy, **values)

    def of_file(request: Request) -> Response:
        path, model = (request.query_params.get(name, "").strip() for name in ("path", "model"))
        asked = f"{path or 'FILE'!r}, {model or 'MODEL'!r}, {_row(request)}, {_AT_ONCE}"
        copy = Copy(
            command=f"orchestrate data preview {path or 'FILE'} --model {model or 'MODEL'}"
            f" --row {_row(request)} --rows {_AT_ONCE}",
            python="from orchestrate.runs.data import read_preview\n\n"
            f"for row in read_preview({asked}, {{}}, {{}}).rows:\n    print(row.row, row.trained)",
        )
        read = partial(_of_file, path, model) if path and model else None
        models = [one.name for one in site.ft.models()]
        return shown(request, read, copy, here="data", run=None, path=path, model=model, models=models)

    def of_run(request: Request) -> Response:
        handle = site.ft.run(request.path_params["run"])
        copy = Copy(
            command=f"orchestrate data preview {handle.id} --row {_row(request)} --rows {_AT_ONCE}",
            python="from orchestrate import Orchestrator\n\nwith Orchestrator() as ft:\n"
            f"    for row in ft.run({handle.id!r}).rendered():\n        print(row.row, row.trained)",
        )
        return shown(request, partial(_of_run, site, handle), copy, here="runs", run=handle.record)

    pages = {"/data/tokens": of_file, "/runs/{run}/tokens": of_run}
    return [] if site.read_only else [Route(path, page, methods=["GET"]) for path, page in pages.items()]


def _row(request: Request) -> int:
    """Parse the row number. Raises `UsageError`."""
    written = request.query_params.get("row") or "1"
    if not (written.isascii() and written.isdecimal()) or len(written) > 9 or int(written) < 1:
        raise UsageError(f"row numbers start at 1, got {written!r}")
    return int(written)


def _of_file(path: str, model: str, row: int) -> PreviewReport:
    return files.read_preview(path, model, row, _AT_ONCE, {}, {})


def _of_run(site: Site, handle: RunHandle, row: int) -> PreviewReport:
    """Return the rows as the host's trainer saw them, or as this machine would encode them if the host
    doesn't show them."""
    try:
        return files.rows_of_run(site.ft, handle.id, row, _AT_ONCE)
    except Unsupported:
        spec = handle.record.spec
        train, method = spec.get("train"), dict[str, Any](spec.get("method") or {})
        if not isinstance(train, str):
            raise
        chat = {name: spec.get(name) for name in ("chat_template", "chat_template_kwargs")}
        masking = {name: spec.get(name) for name in ("max_seq_length", "truncation")} | method
        return files.read_preview(train, handle.record.model, row, _AT_ONCE, masking, {}, chat)


# Reviews of rows and of answers by people: the pages of `orchestrate data review` and `orchestrate review`,
# as part of this app.


def review_routes(site: Site) -> list[Route]:
    """Return the routes of the review pages. Read-only apps have none, because reviews store ratings."""
    return [] if site.read_only else [*_of_rows(site), *_of_answers(site)]


def _of_rows(site: Site) -> list[Route]:
    """Return the routes of row reviews. A form starts a review, because that reads a file. An unfinished
    review is continued."""
    opened: dict[str, RowReview] = {}
    lock = threading.Lock()

    def begin(_: Request, form: Form) -> str:
        path = first(form, "path").strip()
        if not path:
            raise UsageError("choose a file to review")
        key = hashlib.sha256(path.encode()).hexdigest()[:16]
        with lock:
            opened[key] = files.RowReview(path)
        return f"/data/review/{key}/"

    def review_of(request: Request) -> RowReview:
        found = opened.get(request.path_params["key"])
        if found is None:
            raise UsageError("this review is no longer open", fix="reopen the review from the file's page")
        return found

    def back(request: Request) -> str:
        base = request.scope.get("root_path", "")
        return f"{base}/data?{urlencode({'path': str(review_of(request).path)})}"

    pages = files.review_routes("/data/review/{key}/", review_of, back)
    return [site.action("/data/review", begin), *pages]


def _of_answers(site: Site) -> list[Route]:
    sessions: dict[str, reviews.ReviewSession] = {}

    def begin(request: Request, _: Form) -> str:
        session = reviews.opened(site.ft, [site.ft.run(request.path_params["run"]).id])
        return f"/reviews/{session.review.id}/"

    def session_of(request: Request) -> reviews.ReviewSession:
        name = request.path_params["review"]
        if name not in sessions:
            if not name.startswith("rev-"):
                raise HTTPException(404, f"no review {name} is open")
            sessions[name] = reviews.opened(site.ft, [name])
        return sessions[name]

    def back(request: Request) -> str:
        runs = session_of(request).review.run_ids
        return f"{request.scope.get('root_path', '')}/" + (f"runs/{runs[0]}" if runs else "")

    pages = reviews.review_routes("/reviews/{review}/", session_of, back)
    return [site.action("/runs/{run}/review", begin), *pages]


_SHOWN = 60
_NEAR = ("near-duplicate", "duplicate")


@dataclass(frozen=True)
class FileReport:
    """Problems and statistics of one file."""

    facts: InspectReport
    most: int
    """Height of the highest bar in the length histogram."""
    problems: list[Problem]
    total: int
    near: list[Problem]
    changes: list[dict[str, Any]]
    changed: int
    unlooked: list[str]


def routes(site: Site) -> list[Route]:
    def page(request: Request) -> Response:
        path = request.query_params.get("path", "").strip()
        values: dict[str, Any] = {
            "looked": None,
            "error": None,
            "models": [one.name for one in site.ft.models()],
        }
        if path:
            try:
                values["looked"] = _inspect(site, path)
            except DataError as error:
                values["error"] = error
        copy = Copy(
            command=f"orchestrate data check {path or 'FILE'}",
            python="from orchestrate.runs.data import check\n\n"
            f"for problem in check({{'train': {path or 'FILE'!r}}}).problems:\n    print(problem)",
        )
        return site.page(request, "data.html", here="data", copy=copy, path=path, **values)

    return [] if site.read_only else [Route("/data", page, methods=["GET"])]


def _inspect(site: Site, path: str) -> FileReport:
    """Inspect a file. Raises `DataError` if it cannot be read."""
    from orchestrate.runs import data as files

    facts = files.inspect(path)
    near = all(find_spec(package) for package in ("numpy", "rensa"))
    options, unlooked = files.check_options(site.ft.settings, {"train": path}, files.FileCheck(near=near))
    if not near:
        unlooked.append("near-duplicates are not checked: pip install 'orchestrate-ft[data]'")
    report = files.check({"train": path}, options)
    order = list(Severity)
    problems = sorted(report.problems, key=lambda p: (order.index(p.severity), p.row or 0))
    changes = _changes(path)
    return FileReport(
        facts,
        max((part.count for part in facts.histogram), default=1),
        [p for p in problems if p.code not in _NEAR][:_SHOWN],
        len(problems),
        [p for p in problems if p.code in _NEAR][:_SHOWN],
        changes[:_SHOWN],
        len(changes),
        unlooked,
    )


def _changes(path: str) -> list[dict[str, Any]]:
    """Return the changes that `data check --fix` would make. Discards the repaired copy."""
    from orchestrate.runs import data as files

    with tempfile.TemporaryDirectory() as folder:
        report = files.fix(path, Path(folder, "fixed.jsonl"))
        lines = Path(report.log).read_bytes().splitlines()
        return [msgspec.json.decode(line, type=dict[str, Any]) for line in lines]
