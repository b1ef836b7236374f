"""Rows as a model reads them, the trained tokens marked: of a file, and of a run's training data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrate.errors import OrchestrateError, Unsupported, UsageError
from orchestrate.service.data import files
from orchestrate.ui.site import Copy, Site

if TYPE_CHECKING:
    from orchestrate import RunHandle
    from orchestrate.service.data.files import PreviewReport

_AT_ONCE = 3
"""Rows on a page."""


def routes(site: Site) -> list[Route]:
    """None in pages for reading only: they read no file and ask no host."""

    def shown(
        request: Request, read: Callable[[int], PreviewReport] | None, copy: Copy, **more: Any
    ) -> Response:
        row, report, error = _row(request), None, None
        try:
            report = read(row) if read else None
        except OrchestrateError as found:
            error = found
        told: dict[str, Any] = {"row": row, "report": report, "error": error, "at_once": _AT_ONCE, **more}
        return site.page(request, "tokens.html", copy=copy, **told)

    def of_file(request: Request) -> Response:
        path, model = (request.query_params.get(name, "").strip() for name in ("path", "model"))
        asked = f"{path or 'FILE'!r}, {model or 'MODEL'!r}, {_row(request)}, {_AT_ONCE}"
        copy = Copy(
            command=f"orchestrate data preview {path or 'FILE'} --model {model or 'MODEL'}"
            f" --row {_row(request)} --rows {_AT_ONCE}",
            python="from orchestrate.service.data.files import read_preview\n\n"
            f"for row in read_preview({asked}, None, False, {{}}).rows:\n    print(row.row, row.trained)",
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
    """Raises `UsageError`."""
    written = request.query_params.get("row") or "1"
    if not (written.isascii() and written.isdecimal()) or len(written) > 9 or int(written) < 1:
        raise UsageError(f"rows are counted from 1; got {written!r}")
    return int(written)


def _of_file(path: str, model: str, row: int) -> PreviewReport:
    return files.read_preview(path, model, row, _AT_ONCE, None, False, {})


def _of_run(site: Site, handle: RunHandle, row: int) -> PreviewReport:
    """As its host's trainer saw them; where the host shows none, as this machine would encode them."""
    try:
        return files.rows_of_run(site.ft, handle.id, row, _AT_ONCE)
    except Unsupported:
        spec = handle.record.spec
        train, method = spec.get("train"), dict[str, Any](spec.get("method") or {})
        if not isinstance(train, str):
            raise
        chat = {name: spec.get(name) for name in ("chat_template", "chat_template_kwargs")}
        inputs, longest = bool(method.get("train_on_inputs")), spec.get("max_seq_length")
        return files.read_preview(train, handle.record.model, row, _AT_ONCE, longest, inputs, {}, chat)
