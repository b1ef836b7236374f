"""The data inspector: what is in a file, what is wrong with it, what a repair would change, what is
nearly the same. It reads what its user may read, so pages for reading only have none of it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrate.errors import DataError
from orchestrate.types import Problem, Severity
from orchestrate.ui.site import Copy, Site

if TYPE_CHECKING:
    from orchestrate.service.records import InspectReport

_SHOWN = 60
_NEAR = ("near-duplicate", "duplicate")


@dataclass(frozen=True)
class Looked:
    """All that was found in one file."""

    facts: InspectReport
    most: int
    """The highest bar of its lengths."""
    problems: list[Problem]
    total: int
    near: list[Problem]
    changes: list[dict[str, Any]]
    changed: int
    unlooked: list[str]


def routes(site: Site) -> list[Route]:
    def page(request: Request) -> Response:
        path = request.query_params.get("path", "").strip()
        told: dict[str, Any] = {
            "looked": None,
            "error": None,
            "models": [one.name for one in site.ft.models()],
        }
        if path:
            try:
                told["looked"] = _look(site, path)
            except DataError as error:
                told["error"] = error
        copy = Copy(
            command=f"orchestrate data check {path or 'FILE'}",
            python="from orchestrate.service.data.files import check\n\n"
            f"for problem in check({{'train': {path or 'FILE'!r}}}).problems:\n    print(problem)",
        )
        return site.page(request, "data.html", here="data", copy=copy, path=path, **told)

    return [] if site.read_only else [Route("/data", page, methods=["GET"])]


def _look(site: Site, path: str) -> Looked:
    """Raises `DataError` for what cannot be read."""
    from orchestrate.service.data import files

    facts = files.inspect(path)
    near = all(find_spec(package) for package in ("numpy", "rensa"))
    options, unlooked = files.check_options(site.ft.settings, {"train": path}, files.Wanted(near=near))
    if not near:
        unlooked.append("nearly equal rows are not looked for: pip install 'orchestrate-ft[data]'")
    report = files.check({"train": path}, options)
    order = list(Severity)
    problems = sorted(report.problems, key=lambda p: (order.index(p.severity), p.row or 0))
    changes = _changes(path)
    return Looked(
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
    """What `data check --fix` would do; its copy is thrown away."""
    from orchestrate.service.data import files

    with tempfile.TemporaryDirectory() as folder:
        report = files.fix(path, Path(folder, "fixed.jsonl"))
        lines = Path(report.log).read_bytes().splitlines()
        return [msgspec.json.decode(line, type=dict[str, Any]) for line in lines]
