"""runs: the tracked runs in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, cast

import typer
from rich.text import Text

from orchestrate.commands.terminal import completing
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import SANDBOX, filled, note, orchestrator, out, stage_text
from orchestrate.core.progress import cost_so_far, seconds_taken, stage
from orchestrate.errors import UsageError
from orchestrate.runs.hosting.deployment import DeploymentHandle, hourly
from orchestrate.text import among, count, duration, meant, money
from orchestrate.types import JobStatus, Run

_REASONS = 5
"""Failed runs below the table whose reason is shown."""


_ALL = 1_000_000
_WORDS = (
    "not sent",
    "outcome unknown",
    "submitted",
    *(s.value for s in JobStatus if s is not JobStatus.SUBMITTING),
)


@dataclass(frozen=True)
class _Wanted:
    """Which runs are listed, by what is shown of them."""

    status: str | None
    model: str | None
    tag: str | None

    def __post_init__(self) -> None:
        if self.status is not None and self.status not in _WORDS:
            raise UsageError(f"no status is called {self.status!r}{among(self.status, _WORDS)}")

    @property
    def any(self) -> bool:
        return any(value is not None for value in (self.status, self.model, self.tag))

    def fits(self, run: Run) -> bool:
        name, equals, value = (self.tag or "").partition("=")
        tags = cast("dict[str, str]", run.spec.get("tags") or {})
        tagged = self.tag is None or (name in tags and (not equals or str(tags[name]) == value))
        named = self.model is None or self.model.lower() in run.model.lower()
        return tagged and named and (self.status is None or stage(run) == self.status)


@command
def runs(
    context: typer.Context,
    provider: Annotated[
        str | None,
        typer.Option("--provider", "-p", help="Only this backend.", autocompletion=completing.backend),
    ] = None,
    status: Annotated[
        str | None,
        typer.Option(
            metavar="WORD", help="Only this status, as it is shown: running, failed, 'not sent' ..."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Only models with this in their name.", autocompletion=completing.models),
    ] = None,
    tag: Annotated[str | None, typer.Option(metavar="NAME[=VALUE]", help="Only with this tag.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 30,
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="The runs of sandboxes instead; inside one they are among all.")
    ] = False,
) -> Output[list[Run]]:
    """All runs, newest first, as last seen; `orchestrate sync` brings them up to date."""
    with orchestrator(context) as ft:
        wanted = _Wanted(status, model, tag)
        asked = partial(ft.runs, provider=provider, limit=_ALL if wanted.any else limit)
        found = [run.record for run in asked(sandbox=sandbox or None) if wanted.fits(run.record)][:limit]
        elsewhere = 0 if found or sandbox else sum(wanted.fits(r.record) for r in asked(sandbox=True))
        deployed = ft.deployments()

    def view(_: list[Run]) -> None:
        if found:
            _show(found, deployed, sandbox=sandbox)
        else:
            note(_nothing(provider, wanted, elsewhere))

    return Output(found, view)


def _nothing(provider: str | None, wanted: _Wanted, elsewhere: int) -> str:
    if elsewhere:
        return f"no runs but {count(elsewhere, 'run')} of sandboxes: orchestrate runs --sandbox"
    if provider is None and not wanted.any:
        return "no runs yet: orchestrate submit"
    guess = meant(provider, completing.backend("")) if provider else ""
    return f"no run matches{guess}; orchestrate runs  lists all"


def _show(found: Sequence[Run], deployed: Sequence[DeploymentHandle], *, sandbox: bool) -> None:
    if sandbox:
        out.print(SANDBOX)
    cells = _cells(found, chips=not sandbox)
    out.print(filled(cells, right=("step", "took", "cost"), fold=("model", "tags")))
    failed = [run for run in found if run.status is JobStatus.FAILED and run.error is not None]
    for run in failed[:_REASONS]:
        note(f"{run.id} failed: {run.error.message if run.error else ''}")
    if len(failed) > _REASONS:
        note(f"and {len(failed) - _REASONS:,} more failed: orchestrate show RUN  says why")
    if deployed:
        note(f"{hourly([one.record for one in deployed])}: orchestrate deployments")


def _cells(found: Sequence[Run], *, chips: bool) -> dict[str, list[str | Text]]:
    """The columns; none is empty from top to bottom. Those without room go below their row."""
    now = datetime.now(UTC)
    cells: dict[str, list[str | Text]] = {
        "run": [run.id for run in found],
        "backend": [run.provider for run in found],
        "model": [run.model for run in found],
        "status": [stage_text(run, chip=chips) for run in found],
        "step": [f"{run.step or 0}/{run.total_steps}" if run.total_steps else "" for run in found],
        "took": [_took(run, now) for run in found],
        "cost": [money(cost_so_far(run)) for run in found],
        "created": [_ago(run.created_at, now) for run in found],
        "tags": [_tags(run) for run in found],
    }
    if not any(cells["step"]):
        del cells["step"]
    if not any(cells["tags"]):
        del cells["tags"]
    return cells


def _took(run: Run, now: datetime) -> str:
    seconds = seconds_taken(run, now)
    return "" if seconds is None else duration(seconds)


def _tags(run: Run) -> str:
    tags = cast("dict[str, str]", run.spec.get("tags") or {})
    return ", ".join(f"{name}={value}" if value else name for name, value in tags.items())


def _ago(at: datetime, now: datetime) -> str:
    seconds = (now - at).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"
