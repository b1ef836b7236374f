"""The command `log`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import note, orchestrator, out
from orchestrate.errors import UsageError
from orchestrate.text import count

if TYPE_CHECKING:
    from orchestrate.runs.trackers.records import Logged


@command
def log(
    context: typer.Context,
    to: Annotated[str, typer.Option("--to", help="mlflow, wandb or tensorboard.")],
    run: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Runs to log.", autocompletion=completion.runs),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Log every run in the store that has a job.")] = False,
    at: Annotated[
        str | None,
        typer.Option(
            help="URL of a tracking server, or a folder for tensorboard or offline wandb. Default: the "
            "tracker's own settings."
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(help="Name of the experiment or project in the tracker. Default: orchestrate."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep logging until the runs end.")] = False,
) -> Output[list[Logged]]:
    """Log active or ended runs to an experiment tracker: settings, metrics, outcome, cost, scores. Skips data
    that the tracker already has."""
    from orchestrate.runs import log as logging

    if bool(run) == every:
        raise UsageError("name the runs, or pass --all", fix=f"orchestrate log RUN --to {to}   (or --all)")
    with orchestrator(context) as ft:
        found = [ft.run(name) for name in run or ()] or [
            r for r in ft.runs(limit=1_000_000) if r.record.job_id
        ]
        with logging.opened(to, at, project) as tracker:
            if watch:
                logged = logging.follow(
                    ft,
                    found,
                    tracker,
                    on_values=lambda one: note(f"{one.run_id}  {count(one.values, 'value')}"),
                )
            else:
                logged = logging.log(ft, found, tracker)
    return Output(logged, _show)


def _show(logged: list[Logged]) -> None:
    for one in logged:
        out.print(f"{one.run_id}  {count(one.values, 'new value')}  {one.where}", soft_wrap=True)
    for line in dict.fromkeys(line for one in logged for line in one.notes):
        note(line)
