"""The commands `record` and `data from-record`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrate.commands.evaluation.judge import answer_progress
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import (
    confirm,
    mark_sandbox,
    note,
    orchestrator,
    out,
    require_agreed,
    table,
    warn,
    warn_lost,
)
from orchestrate.commands.terminal.options import (
    KeyVariableOpt,
    MaxTokensOpt,
    PayOpt,
    SkipFailedOpt,
    TemperatureOpt,
)
from orchestrate.core import days
from orchestrate.core.amounts import amount
from orchestrate.errors import UsageError
from orchestrate.text import SANDBOX_MARK, count, money, span
from orchestrate.types import Sampling

if TYPE_CHECKING:
    from orchestrate.migration.recordings import Due, FromRecord, Recording, RecordPlan


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """Options for the prompts and for querying the model."""

    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Held-out rows, or a request log. Default: the run's test file."),
    ] = None
    n: Annotated[
        int | None,
        typer.Option(
            "--n", min=1, help="Number of prompts, chosen to cover every kind of prompt in the file."
        ),
    ] = None
    max_tokens: MaxTokensOpt = 512
    samples: Annotated[int, typer.Option(min=1, max=64, help="Answers per prompt.")] = 1
    temperature: TemperatureOpt = 0.0
    on: Annotated[str, typer.Option(help="Where to run the model: host, here or auto (as in eval).")] = "auto"
    key_variable: KeyVariableOpt = None


@dataclass(frozen=True, kw_only=True)
class RecordView:
    """Options that show existing recordings instead of creating one."""

    calendar: Annotated[
        bool, typer.Option("--calendar", help="List each model's shutdown date and what has been recorded.")
    ] = False
    listed: Annotated[bool, typer.Option("--list", help="List the recordings.")] = False


@command
def record(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN|MODEL", help="A run, or a model as HOST=MODEL or https://ADDRESS/v1=MODEL."
        ),
    ] = None,
    *,
    asked: RecordOptions,
    shown: RecordView,
    max_cost: Annotated[str | None, typer.Option(metavar="USD", help="Cost limit for all answers.")] = None,
    skip_failed: SkipFailedOpt = False,
    yes: PayOpt = False,
) -> Output[Recording] | Output[list[Recording]] | Output[list[Due]]:
    """Record a model's answers before it is shut down, with log-probabilities if the host provides them. Use
    the answers later to prove that a replacement model is as good.

    Shows the price first. If interrupted, repeat the command to continue. You don't pay twice. Evaluate
    the recording like a model: eval --model record:ID.
    """
    from orchestrate.migration import recordings

    with orchestrator(context) as ft:
        if shown.calendar:
            return Output(recordings.calendar(ft), _show_calendar)
        if shown.listed:
            return Output(recordings.all_recordings(ft), _show_list)
        if name is None:
            raise UsageError("name a run or a model to record", fix="orchestrate record --calendar")
        sampling = Sampling(samples=asked.samples, temperature=asked.temperature, max_tokens=asked.max_tokens)
        order = recordings.RecordOrder(
            prompts=asked.prompts,
            most=asked.n,
            sampling=sampling,
            on=asked.on,
            key_variable=asked.key_variable,
            max_cost_usd=amount(max_cost, "--max-cost"),
            skip_failed=skip_failed,
        )
        with recordings.PreparedRecording(ft, name, order) as prepared:
            plan = prepared.plan()
            _print_plan(plan)
            high, unpriced, limited = plan.asked.high_usd, plan.asked.unpriced, max_cost is not None
            require_agreed("Record?", high_usd=high, unpriced=unpriced, limited=limited, yes=yes)
            with answer_progress(plan.asked.questions) as progress:
                done = prepared.run(progress)
    return Output(done, _show)


def _print_plan(plan: RecordPlan) -> None:
    dropped = [
        (plan.equal, "equal"),
        (plan.near, "nearly equal"),
        *((n, w) for w, n in plan.left_out.items()),
    ]
    more = ", ".join(f"{n:,} {why}" for n, why in dropped if n)
    note(f"{plan.source}: {count(plan.prompts, 'prompt')}" + (f"; left out: {more}" if more else ""))
    for column in plan.unread:
        warn(f"column {column} is not used: no prompt contains its text, which differs in most rows")
    if plan.taken < plan.prompts - plan.equal - plan.near:
        kinds = f" of {count(plan.clusters, 'kind')}" if plan.clusters else ""
        note(f"selected {count(plan.taken, 'prompt')}{kinds} to represent the file")
    asked = plan.asked
    mark_sandbox(asked.sandbox)
    if asked.expected_usd is None or asked.high_usd is None:
        price = "the price per token is unknown"
    else:
        price = f"about {span(asked.expected_usd, asked.high_usd)}" if asked.high_usd else "costs nothing"
    kept = f", {asked.kept:,} answered before" if asked.kept else ""
    note(f"{plan.model}: {count(asked.questions, 'request')}{kept}; {price}")
    if plan.silent_on is not None:
        note(f"{plan.model} {days.shutdown(plan.silent_on)}")


def _show(done: Recording) -> None:
    out.print(f"{done.id}: {count(done.answered, 'answer')} of {done.prompts:,}", soft_wrap=True)
    if done.refused:
        warn(f"the host did not answer {count(done.refused, 'prompt')}")
    warn_lost(done.contender.lost_requests, done.contender.lost_usd)
    for line in done.notes:
        note(line)
    given = f"{done.with_logprobs:,} with log-probabilities" if done.with_logprobs else "no log-probabilities"
    cost = "" if done.usd is None else f"; {money(done.usd)}"
    note(f"{given}; {done.answers_file}{cost}")
    name = f"record:{done.id}"
    note(f"orchestrate eval NEW-RUN --model {name} --against {name} --test {done.rows_file}")


def _show_list(found: list[Recording]) -> None:
    if not found:
        note("no recordings yet. To see what to record: orchestrate record --calendar")
        return
    rows = table("recording", "model", "created", "answers", "of", "log-probabilities", "source")
    for one in found:
        name = one.contender.run_id or one.contender.name
        rows.add_row(
            one.id,
            name + SANDBOX_MARK * one.sandbox,
            f"{one.at:%Y-%m-%d}",
            f"{one.answered:,}",
            f"{one.prompts:,}",
            f"{one.with_logprobs:,}",
            one.source,
        )
    out.print(rows)


def _show_calendar(found: list[Due]) -> None:
    for day, dues in groupby(found, key=lambda due: due.silent_on):
        _show_day(day, list(dues))
    for name, day in {due.provider: due.no_new_jobs_after for due in found}.items():
        if day is not None:
            note(f"{name} accepts no new jobs from {day} on")
    if not found:
        note("no tuned model in this store has an announced shutdown date")
        note("to import an account's past jobs: orchestrate import PROVIDER")
    elif any(due.command for due in found):
        note(
            "runs without prompts of their own need --prompts. To record a run's answers: "
            "orchestrate record RUN [--prompts FILE]"
        )


def _show_day(day: date, dues: list[Due]) -> None:
    left = dues[0].days_left
    rows = table("run", "recorded", "prompts", "tuned model", fold=("tuned model",))
    for due in dues:
        kept = f"{due.recorded:,} in {due.recording}" if due.recording else "no"
        rows.add_row(due.run_id, kept, "its own" if due.prompts else "FILE", due.tuned_model)
    out.print(
        f"record by {day}, in {count(left, 'day')}" if left >= 0 else days.shutdown(day, left),
        style="bold",
    )
    out.print(rows)
    out.print()


@command
def from_record(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="RECORDING", help="Id of a recording.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Output file. Default: RECORDING.jsonl.")
    ] = None,
    accept_terms: Annotated[
        bool,
        typer.Option(
            "--accept-terms",
            help="Confirm that you have read the host's terms and are allowed to train on these answers.",
        ),
    ] = False,
) -> Output[FromRecord]:
    """Write a recording as training rows. Shows the terms of the model's host, which you must accept."""
    from orchestrate.migration import recordings

    with orchestrator(context) as ft:
        found = recordings.terms(ft, recordings.named(ft, name))
        for line in found:
            warn(line)
        if not confirm("Are you allowed to train on these answers?", yes=accept_terms):
            raise UsageError("nothing was written because you did not accept the terms", fix="--accept-terms")
        done = recordings.from_record(ft, name, output or Path(f"{name}.jsonl"))
    return Output(done, _show_rows)


def _show_rows(done: FromRecord) -> None:
    out.print(f"{done.output}: {count(done.rows, 'row')}", soft_wrap=True)
    if done.left_out:
        note("left out: " + ", ".join(f"{why} {n:,}" for why, n in sorted(done.left_out.items())))
