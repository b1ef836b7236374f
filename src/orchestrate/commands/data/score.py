"""The commands `data score` and `data select`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrate.commands.data.judge import (
    CalibrateOpt,
    JudgeCostOpt,
    KeyVariableOpt,
    RubricOpt,
    UncalibratedOpt,
    print_plan,
)
from orchestrate.commands.data.options import FileArg, OutputOpt, ReadOptions, engine
from orchestrate.commands.evaluation.judge import answer_progress
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import note, orchestrator, out, require_agreed, table
from orchestrate.commands.terminal.options import IgnoreOpt, MapOpt, PayOpt, SkipFailedOpt, columns_read
from orchestrate.core.amounts import amount
from orchestrate.text import count, money

if TYPE_CHECKING:
    from orchestrate.data.operations.score import ScoreReport, SelectReport

_PAIRS_SHOWN = 5
_CHARACTERS = 60


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Options for the judge, as in `data judge`."""

    judge: Annotated[
        str | None,
        typer.Option(help="Let a model rate the rows: MODEL, HOST=MODEL or https://ADDRESS/v1=MODEL."),
    ] = None
    rubric: RubricOpt = None
    rated: CalibrateOpt = None
    uncalibrated: UncalibratedOpt = False
    key_variable: KeyVariableOpt = None
    max_cost: JudgeCostOpt = None
    skip_failed: SkipFailedOpt = False


@command
def score(
    context: typer.Context,
    file: FileArg,
    *,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Also compute loss, spread and prompt scores with this local model."),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Also compute the loss of this run's model, tuned on these rows."),
    ] = None,
    judged: JudgeOptions,
    output: OutputOpt = None,
    reading: ReadOptions,
    yes: PayOpt = False,
) -> Output[ScoreReport]:
    """Score each row for duplicates, length and label problems. Also finds contradictory answers. Options add
    the loss of each row under a model, or a judge's ratings.

    Only --judge costs money, and its price is shown first. Scores are written to FILE.scores.jsonl. To
    add scores, run the command again with other options.
    """
    from orchestrate.runs.data import scoring
    from orchestrate.runs.evaluation.judges import JudgeTerms

    terms = (
        None
        if judged.judge is None
        else JudgeTerms(
            model=judged.judge,
            rubric=judged.rubric,
            rated=judged.rated,
            uncalibrated=judged.uncalibrated,
            key_variable=judged.key_variable,
            max_cost_usd=amount(judged.max_cost, "--max-cost"),
            skip_failed=judged.skip_failed,
        )
    )
    order = scoring.ScoreOrder(
        model=model,
        after=after,
        judge=terms,
        columns=columns_read(reading.columns, reading.ignored),
        workers=reading.workers,
    )
    with (
        engine(reading.engine, reading.workers),
        orchestrator(context) as ft,
        scoring.prepared(ft, file, order, output) as prepared,
    ):
        if (plan := prepared.plan()) is not None:
            print_plan(plan)
            question = f"Send {count(plan.questions, 'request')} to {judged.judge}?"
            high, limited = plan.high_usd, judged.max_cost is not None
            require_agreed(question, high_usd=high, unpriced=plan.unpriced, limited=limited, yes=yes)
        with answer_progress(plan.questions) if plan else nullcontext() as progress:
            report = prepared.run(progress)
    return Output(report, _show)


def _show(report: ScoreReport) -> None:
    from orchestrate.data.operations.score import SIGNALS

    shown = table("signal", "rows", "about", right=("rows",), fold=("about",))
    for name, rows in report.signals.items():
        shown.add_row(name, f"{rows:,}", SIGNALS[name].about)
    out.print(shown)
    found = [
        (report.duplicates, "identical or nearly identical to an earlier one"),
        (report.long_or_short, "with an unusually long or short answer"),
        (report.contradicting_rows, "with a different answer to the same question"),
        (report.label_issues, "with a doubtful label"),
    ]
    for rows, what in found:
        if rows:
            out.print(f"{count(rows, 'row')} of {report.rows:,} {what}")
    for pair in report.contradictions[:_PAIRS_SHOWN]:
        out.print(f"rows {pair.row:,} and {pair.other:,}: {shorten(pair.question, _CHARACTERS)}")
        for answer in (pair.answer, pair.other_answer):
            out.print(f"    {shorten(answer, _CHARACTERS)}", style="dim")
    if (more := len(report.contradictions) - _PAIRS_SHOWN) > 0:
        note(f"{more:,} more pairs: --json")
    for line in report.missing:
        note(line)
    if report.left_out:
        note(
            f"{count(report.left_out, 'row')} with errors were not scored. To list them: "
            f"orchestrate data check {report.path}"
        )
    cost = "" if report.usd is None else f"; {money(report.usd)}"
    note(f"written: {report.output}{cost}")
    note(f"orchestrate data select {quote(report.path)} --keep 0.5 --by {next(reversed(report.signals))}")


@command
def select(
    file: FileArg,
    *,
    by: Annotated[
        str,
        typer.Option(
            metavar="SIGNAL",
            help="Signal to rank by: duplicate, length, contradiction, label, loss, spread, prompt, "
            "loss-after or judge.",
        ),
    ],
    keep: Annotated[float, typer.Option(metavar="FRACTION", help="Fraction of the rows to keep.")] = 0.5,
    scores: Annotated[Path | None, typer.Option(help="Score file. Default: FILE.scores.jsonl.")] = None,
    output: OutputOpt = None,
    columns: MapOpt = None,
    ignored: IgnoreOpt = None,
) -> Output[SelectReport]:
    """Keep the rows that rank best on one signal of `data score`. Writes the other rows, each with its
    reason, to a second file. Neither output file may exist yet."""
    from orchestrate.data.operations import score
    from orchestrate.runs import data

    report = score.select(
        file,
        output or data.beside(file, "selected.jsonl"),
        keep=keep,
        by=by,
        scores=scores,
        columns=columns_read(columns, ignored),
    )
    return Output(report, partial(_show_selected, by=by))


def _show_selected(report: SelectReport, by: str) -> None:
    out.print(f"{report.output}: {count(report.kept, 'row')} of {report.rows:,}", soft_wrap=True)
    note(f"{count(report.left_out, 'row')} left out. Rows and reasons: {report.left_out_file}")
    if report.tied:
        note(f"of these, {report.tied:,} tied with the last row kept (earlier rows are kept first)")
    if report.errors:
        note(f"of the rows left out, {report.errors:,} had errors")
