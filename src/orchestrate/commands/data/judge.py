"""The commands `data from-review` and `data judge`: rows rated by human raters or by a judge model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from orchestrate.commands.data.options import FileArg, OutputOpt
from orchestrate.commands.evaluation.judge import answer_progress
from orchestrate.commands.terminal.command import HostOutput, Output, command
from orchestrate.commands.terminal.console import (
    mark_sandbox,
    note,
    orchestrator,
    out,
    require_agreed,
    warn,
    warn_lost,
)
from orchestrate.commands.terminal.options import KeyVariableOpt, PayOpt, SkipFailedOpt
from orchestrate.core.amounts import amount
from orchestrate.text import count, money, score, span

if TYPE_CHECKING:
    from orchestrate.runs.evaluation.judges import JudgePlan, JudgeReport
    from orchestrate.runs.evaluation.reviews import FromReview

RubricOpt = Annotated[Path | None, typer.Option(help="YAML file with the question, guidelines and criteria.")]
CalibrateOpt = Annotated[
    str | None,
    typer.Option(
        "--calibrate",
        metavar="RATED",
        help="Human ratings to compare the judge with: a .jsonl file, or a review's id.",
    ),
]
UncalibratedOpt = Annotated[
    bool,
    typer.Option(
        "--uncalibrated", help="Allow a judge that isn't sufficiently calibrated against human ratings."
    ),
]
JudgeCostOpt = Annotated[
    str | None, typer.Option(metavar="USD", help="Maximum total cost of the judge's answers.")
]


@dataclass(frozen=True, kw_only=True)
class JudgeAndRubric:
    """Options for the judge and its rubric."""

    model: Annotated[
        str,
        typer.Option(
            "--model", help="Judge: MODEL, HOST=MODEL or https://ADDRESS/v1=MODEL.", show_default=False
        ),
    ]
    rubric: RubricOpt = None
    rated: CalibrateOpt = None
    uncalibrated: UncalibratedOpt = False
    key_variable: KeyVariableOpt = None
    max_cost: JudgeCostOpt = None
    skip_failed: SkipFailedOpt = False


@command
def judge(
    context: typer.Context,
    file: FileArg,
    *,
    judge_options: JudgeAndRubric,
    keep: Annotated[
        float, typer.Option(min=0, max=1, help="Keep the rows with at least this score, 0 to 1.")
    ] = 0.8,
    output: OutputOpt = None,
    yes: PayOpt = False,
) -> HostOutput[JudgeReport]:
    """Let a model rate rows by a rubric. Writes accepted rows to one file, and rejected rows with
    reasons to another.

    The judge is first calibrated against human ratings, and must agree with them. The price is shown first.
    If interrupted, repeat the command to continue. You don't pay twice."""
    from orchestrate.runs import data
    from orchestrate.runs.evaluation import judges

    given: dict[str, Any] = {
        **vars(judge_options),
        "max_cost_usd": amount(judge_options.max_cost, "--max-cost"),
    }
    del given["max_cost"]
    terms = judges.JudgeTerms(**given)
    target = output or data.beside(file, "judged.jsonl")
    with orchestrator(context) as ft, judges.prepared(ft, file, target, terms, keep=keep) as prepared:
        plan = prepared.plan()
        print_plan(plan)
        question, limited = (
            f"Send {count(plan.questions, 'request')} to {judge_options.model}?",
            judge_options.max_cost is not None,
        )
        high, unpriced = plan.high_usd, plan.unpriced
        require_agreed(question, high_usd=high, unpriced=unpriced, limited=limited, yes=yes)
        with answer_progress(plan.questions) as progress:
            report = prepared.run(progress)
    return HostOutput(report, _show, sandbox=plan.sandbox, labeled=True)


def print_plan(plan: JudgePlan) -> None:
    """Print the number of requests to the judge, and the price."""
    if plan.expected_usd is None or plan.high_usd is None:
        price = "the price per token is unknown"
    else:
        price = f"about {span(plan.expected_usd, plan.high_usd)}" if plan.high_usd else "costs nothing"
    mark_sandbox(plan.sandbox)
    held = f" and {count(plan.rated, 'rated answer')}" if plan.rated else ""
    note(f"{count(plan.rows, 'row')}{held}: {count(plan.questions, 'request')} to send; {price}")


def _show(report: JudgeReport) -> None:
    out.print(f"{report.output}: {count(report.kept, 'row')} of {report.rows:,}", soft_wrap=True)
    note(f"rejected: {report.rejected:,}, in {report.rejected_file}")
    if report.not_judged_file:
        warn(f"{count(report.not_judged, 'row')} could not be judged. See {report.not_judged_file}")
    found = report.calibration
    if found is None:
        warn("the judge has not been calibrated against human ratings")
    elif found.unfit:
        warn(found.unfit)
    else:
        same = f"identical scores for {found.same.value:.0%} of {found.n} rated answers"
        note(f"the judge agrees with human raters: kappa {score(found.kappa)}, {same}")
    mean = "" if report.mean is None else f"mean score {report.mean:.2f}; "
    cost = "" if report.usd is None else f"; {money(report.usd)}"
    warn_lost(report.lost_requests, report.lost_usd)
    note(f"{mean}each row's score and reason: {report.log}{cost}")


@command
def from_review(
    context: typer.Context,
    review: Annotated[str, typer.Argument(metavar="REVIEW", help="Id of a review or of its run.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Output file.", show_default=False)],
    format: Annotated[
        Literal["dpo", "kto", "sft"] | None,
        typer.Option(
            "--as",
            help="dpo (answer pairs), kto (desirable and undesirable answers) or sft (rows written by "
            "people). Default: sft if people wrote rows, otherwise dpo.",
            show_default=False,
        ),
    ] = None,
    agreement: Annotated[
        float, typer.Option(min=0.5, max=1, help="Fraction of each item's raters who must agree.")
    ] = 0.6,
) -> Output[FromReview]:
    """Convert human ratings to rows for preference tuning. Reports how many ratings yield no row."""
    from orchestrate.runs.evaluation import reviews

    with orchestrator(context) as ft:
        done = reviews.from_review(ft, review, output, format=format, agreement=agreement)
    return Output(done, _show_rows)


def _show_rows(done: FromReview) -> None:
    out.print(f"{done.output}: {count(done.rows, 'row')} for {done.format}", soft_wrap=True)
    if done.left_out:
        note("left out: " + ", ".join(f"{why} {n:,}" for why, n in sorted(done.left_out.items())))
