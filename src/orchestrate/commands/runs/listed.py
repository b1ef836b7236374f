"""The command `runs`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, cast

import typer
from rich.text import Text

from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import SANDBOX, filled, note, orchestrator, out, stage_text
from orchestrate.core.progress import cost_so_far, seconds_taken
from orchestrate.errors import UsageError
from orchestrate.runs.hosting.deployment import DeploymentHandle, hourly
from orchestrate.store.run_lists import STATUSES
from orchestrate.text import among, count, duration, meant, money
from orchestrate.types import JobStatus, Run

_REASONS = 5
"""Maximum number of failed runs whose reason is shown below the table."""
_MOST_ELSEWHERE = 1000
"""Maximum number of hidden runs (sandbox or archived) to count when the list is empty."""
StatusOpt = Annotated[
    str | None,
    typer.Option(
        metavar="WORD",
        help="Show only runs with this status, for example running or 'not sent'.",
        autocompletion=completion.statuses,
    ),
]
SearchOpt = Annotated[
    str | None,
    typer.Option(
        metavar="WORDS", help="Show only runs with this text in their id, name, model, job, tags or note."
    ),
]


@command
def runs(  # noqa: PLR0913  each is an option
    context: typer.Context,
    provider: Annotated[
        str | None,
        typer.Option(
            "--provider", "-p", help="Show only runs on this backend.", autocompletion=completion.backend
        ),
    ] = None,
    status: StatusOpt = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Show only runs whose model name contains this text.", autocompletion=completion.models
        ),
    ] = None,
    tag: Annotated[
        str | None, typer.Option(metavar="NAME[=VALUE]", help="Show only runs with this tag.")
    ] = None,
    search: SearchOpt = None,
    sort: Annotated[
        str,
        typer.Option(
            metavar="COLUMN",
            help="Column to sort by: created, name, backend, model, status, cost, updated, loss, spec.NAME "
            "or tag.NAME. Prefix with - for descending order.",
        ),
    ] = "-created",
    archived: Annotated[bool, typer.Option("--archived", help="Show archived runs instead.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows.")] = 30,
    sandbox: Annotated[bool, typer.Option("--sandbox", help="Show sandbox runs instead.")] = False,
) -> Output[list[Run]]:
    """List runs in their last known state, newest first. To update them, run `orchestrate sync`."""
    if status is not None and status not in STATUSES:
        raise UsageError(f"unknown status {status!r}{among(status, STATUSES)}")
    narrowed = any((status, model, tag, search, archived))
    with orchestrator(context) as ft:
        matching = partial(
            ft.runs,
            provider=provider,
            status=status,
            model=model or "",
            tag=tag or "",
            search=search or "",
            archived=archived,
        )
        found = [run.record for run in matching(limit=limit, sort=sort, sandbox=sandbox or None)]
        elsewhere = 0 if found or sandbox else len(matching(limit=_MOST_ELSEWHERE, sandbox=True))
        alone = found or elsewhere or narrowed or provider
        kept = 0 if alone else len(ft.runs(archived=True, limit=_MOST_ELSEWHERE, sandbox=sandbox or None))
        deployed = ft.deployments()

    def view(_: list[Run]) -> None:
        if found:
            _show(found, deployed, sandbox=sandbox)
        else:
            note(_nothing(provider, elsewhere, kept, narrowed=narrowed))

    return Output(found, view)


def _nothing(provider: str | None, elsewhere: int, kept: int, *, narrowed: bool) -> str:
    least = "at least " if _MOST_ELSEWHERE in (elsewhere, kept) else ""
    for number, kind, lister in (
        (elsewhere, "sandbox run", "orchestrate runs --sandbox"),
        (kept, "archived run", "orchestrate runs --archived"),
    ):
        if number:
            return f"no runs except {least}{count(number, kind)}. To list them: {lister}"
    if provider is None and not narrowed:
        return "no runs yet. To submit one: orchestrate submit"
    guess = meant(provider, completion.backend("")) if provider else ""
    return f"no run matches{guess}. To list all: orchestrate runs"


def _show(found: Sequence[Run], deployed: Sequence[DeploymentHandle], *, sandbox: bool) -> None:
    if sandbox:
        out.print(SANDBOX)
    cells = _cells(found, chips=not sandbox)
    out.print(filled(cells, right=("step", "took", "cost"), fold=("model", "tags")))
    failed = [run for run in found if run.status is JobStatus.FAILED and run.error is not None]
    for run in failed[:_REASONS]:
        note(f"{run.id} failed: {run.error.message if run.error else ''}")
    if len(failed) > _REASONS:
        note(f"and {len(failed) - _REASONS:,} more failed. To see why: orchestrate show RUN")
    if deployed:
        note(f"{hourly([one.record for one in deployed])}: orchestrate deployments")


def _cells(found: Sequence[Run], *, chips: bool) -> dict[str, list[str | Text]]:
    """Return the cells by column, without empty columns. Columns that don't fit go below their row."""
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
