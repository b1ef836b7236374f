"""The `ab` commands: A/B tests on live traffic."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import typer

from orchestrate.commands.exports import AcceptOpt
from orchestrate.commands.servers.serve import ServeAddress
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import (
    confirm,
    ended_by_signal,
    note,
    orchestrator,
    out,
    print_text,
)
from orchestrate.errors import UsageError
from orchestrate.text import count

if TYPE_CHECKING:
    from orchestrate.ab.experiment import OutcomesTaken
    from orchestrate.types import ExperimentPlan, ExperimentReport

app = typer.Typer(
    no_args_is_help=True,
    help="Split live traffic between a tuned model and its base, and decide by a rule set in advance. Each "
    "user always gets the same model. The results are valid no matter how often you check them.",
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name or id of an experiment.")]


class ABServing(TypedDict):
    url: str
    model: str
    id: str
    share: float
    auto: bool


class ABListed(TypedDict):
    id: str
    name: str
    state: str
    share: float


class Sized(TypedDict):
    users: int
    tuned: int


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions:
    """Options for running the experiment."""

    auto: Annotated[
        bool, typer.Option("--auto/--no-auto", help="Apply the rule automatically: ramp, ship or roll back.")
    ] = False
    every_s: Annotated[
        float, typer.Option("--every", min=0.1, help="Seconds between evaluations of the rule.")
    ] = 60.0
    user_header: Annotated[
        str,
        typer.Option(
            help="Request header that identifies the user. Without it, the body's safety_identifier or "
            "user field is used."
        ),
    ] = "x-user-id"
    timeout_s: Annotated[
        float,
        typer.Option("--timeout", min=0.1, help="Seconds without output before a model counts as failed."),
    ] = 60.0


@app.command()
@command
def serve(
    context: typer.Context,
    *,
    plan: Annotated[
        str, typer.Argument(metavar="PLAN.yaml|NAME", help="A plan file, or a started experiment.")
    ],
    where: ServeAddress,
    options: ExperimentOptions,
    accept_license: AcceptOpt = None,
) -> Iterator[Output[ABServing]]:
    """Start or resume an A/B experiment. Runs a chat completions proxy in front of both models until
    interrupted. You can stop and restart it anytime."""
    from orchestrate.ab import launch as experiments

    terms = experiments.ABTerms(
        host=where.host,
        port=where.port,
        names=tuple(where.names or ()),
        origins=tuple(where.origins or ()),
        auto=options.auto,
        every_s=options.every_s,
        user_header=options.user_header,
        timeout_s=options.timeout_s,
    )

    def print_report(report: ExperimentReport) -> None:
        note(experiments.status_line(report))

    with orchestrator(context) as ft:
        experiment = experiments.begun(ft, plan, start=_require_every_outcome)
        licenses = tuple(accept_license or ())
        with (
            ended_by_signal() as ended,
            experiments.serve(ft, experiment, terms, accept_license=licenses, on_report=print_report) as up,
        ):
            name, phase = experiment.plan.name, experiment.phases()[-1]
            url = f"{up.url}/v1"
            shown = ABServing(url=url, model=name, id=experiment.id, share=phase.share, auto=options.auto)
            yield Output(shown, lambda shown: print_text(f"{shown['url']}\n  {shown['model']}"))
            header = options.user_header
            note(f"{phase.share:.0%} of users get the tuned model. Identify each user with {header}")
            note(f"to record outcomes: POST {url}/ab/outcomes, or  orchestrate ab record {name} FILE.jsonl")
            note(
                "Ctrl-C finishes open requests, then stops. To continue the experiment, run the command again"
            )
            ended.wait()


def _require_every_outcome(plan: ExperimentPlan) -> None:
    """Ask what a missing outcome means, or print a note without a terminal. Raises `UsageError` if the user
    answers no."""
    from orchestrate.ab import launch as experiments

    for name in experiments.recorded_sometimes(plan):
        note(
            f"{name}: only users with a recorded outcome count. If your application records only "
            "positive outcomes, add absent: 0 and window_h: HOURS to the plan. A started plan "
            "can't be changed."
        )
        question = f"Does your application record {name} for every user, both false and true?"
        if sys.stdin.isatty() and not confirm(question, yes=False):
            raise UsageError(
                f"not started: {name} needs `absent`, the value for users without an outcome",
                fix=f"in the plan: {{name: {name}, ..., of_user: any, window_h: 24, absent: 0}}",
            )


@app.command()
@command
def status(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Experiment name or id. Default: the only experiment, or a list if there are several.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write the report to this .html, .json or .txt file."
        ),
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Apply what the rule decides.")] = False,
) -> Output[ExperimentReport] | Output[list[ABListed]]:
    """Show the results so far and what the rule decides. You can check as often as you like."""
    from orchestrate.ab import launch as experiments

    with orchestrator(context) as ft:
        found = experiments.found(ft, name)
        if len(found) != 1:
            if apply or output is not None:
                raise UsageError("name the experiment", fix="to list experiments: orchestrate ab status")
            listed = [one.report() for one in found]
            shown = [ABListed(id=r.id, name=r.plan.name, state=r.state, share=r.share) for r in listed]
            return Output(shown, lambda _: _show_list(listed))
        report = found[0].step() if apply else found[0].report()
        if output is not None:
            note(f"written to {experiments.save(report, output)}")
    return Output(report, _show)


@app.command()
@command
def record(
    context: typer.Context,
    name: Name,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE.jsonl...", help="JSON Lines file with one outcome per line.")
    ],
) -> Output[OutcomesTaken]:
    """Record outcomes from JSON Lines files. One outcome per line: {"user": "u1", "metric": "resolved",
    "value": true}. You can pass a file again after appending to it. Nothing is counted twice."""
    from orchestrate.ab import launch as experiments

    with orchestrator(context) as ft:
        [experiment] = experiments.found(ft, name)
        taken = experiment.record_files(files)
    return Output(taken, _show_taken)


def _show_taken(taken: OutcomesTaken) -> None:
    print_text(f"{count(taken.recorded, 'outcome')} recorded, {taken.repeated:,} already known")
    if taken.unknown_users:
        note(f"{count(taken.unknown_users, 'outcome')} not counted: the user was never assigned a model")
    if taken.after_end:
        note(f"{count(taken.after_end, 'outcome')} not counted: the experiment had ended")


@app.command()
@command
def stop(
    context: typer.Context,
    name: Name,
    keep: Annotated[Literal["base", "tuned"], typer.Option(help="Model for all users.")] = ("base"),
) -> Output[ExperimentReport]:
    """End an experiment and send all users to one model. Run the command again to switch to the other model,
    for example from tuned back to base."""
    from orchestrate.ab import launch as experiments

    with orchestrator(context) as ft:
        [experiment] = experiments.found(ft, name)
        report = experiments.stop(experiment, keep)
    return Output(report, _show)


@app.command()
@command
def size(
    rate: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Current success rate of the base model, 0 to 1.")
    ] = None,
    deviation: Annotated[
        float | None, typer.Option(min=0.0, help="For a numeric metric: its standard deviation over users.")
    ] = None,
    gain: Annotated[float, typer.Option(help="Difference to detect.")] = 0.05,
    share: Annotated[
        float, typer.Option(min=0.1, max=99.9, help="Traffic share of the tuned model, in percent.")
    ] = 10.0,
    alpha: Annotated[float, typer.Option(min=0.0001, max=0.5, help="Significance level.")] = 0.05,
) -> Output[Sized]:
    """Estimate how many users you need to detect a difference. Assumes 80% power. Works offline."""
    from orchestrate.ab import launch as experiments

    if (rate is None) == (deviation is None):
        raise UsageError("set --rate for a right-or-wrong metric, or --deviation for a numeric one")
    if rate is not None:
        if not 0 < rate + gain < 1:
            raise UsageError(f"--rate plus --gain must be between 0 and 1 (got {rate + gain:g})")
        # The variances of the two arms add up, each divided by its number of users.
        tuned, part = rate + gain, share / 100
        deviation = math.sqrt(tuned * (1 - tuned) * (1 - part) + rate * (1 - rate) * part)
    if not gain or not deviation:
        raise UsageError("--gain and the metric's standard deviation must not be 0")
    users = experiments.users_for(gain, deviation, share / 100, alpha)
    return Output(Sized(users=users, tuned=round(users * share / 100)), _show_size)


def _show_size(size: Sized) -> None:
    print_text(f"{size['users']:,} users, {size['tuned']:,} of them with the tuned model")


def _show(report: ExperimentReport) -> None:
    from orchestrate.ab import launch as experiments

    out.print(experiments.table(report))


def _show_list(listed: Sequence[ExperimentReport]) -> None:
    from orchestrate.ab import launch as experiments

    for one in listed:
        out.print(experiments.status_line(one), soft_wrap=True)
    if not listed:
        note("no experiments yet. To start one: orchestrate ab serve PLAN.yaml")
