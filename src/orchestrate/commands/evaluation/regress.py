"""The command `regress`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrate.commands.evaluation.judge import JunitOpt, ReportOpt, answer_progress, write_reports
from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import note, orchestrator, out, print_text, require_unpriced
from orchestrate.commands.terminal.options import MaxTokensOpt, PayOpt, SkipFailedOpt
from orchestrate.core.amounts import amount
from orchestrate.errors import UsageError
from orchestrate.text import count, span

if TYPE_CHECKING:
    from orchestrate.runs.evaluation.regression import Regression


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Options for selecting the abilities to probe."""

    probes: Annotated[
        str,
        typer.Option(
            metavar="NAMES", help="Built-in probes, comma-separated: all, none, or names from --list."
        ),
    ] = "all"
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FILE[=METRIC]", help="Your own test set for an ability that must not regress."
        ),
    ] = None
    tasks: Annotated[str, typer.Option(metavar="NAMES", help="lm-eval tasks, comma-separated.")] = ""
    tasks_folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with your own lm-eval task files.")
    ] = None
    margin: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Non-inferiority margin: smaller drops don't count as forgetting (default 0.1).",
        ),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of rows per test set, and of documents per lm-eval task."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RegressionLimits:
    """Options and limits for querying the models."""

    on: Annotated[str, typer.Option(help="Where to run the model: host, here or auto (as in eval).")] = "auto"
    base_precision: Annotated[
        Literal["16-bit", "nf4"], typer.Option(help="Precision of the base on this machine.")
    ] = "16-bit"
    max_tokens: MaxTokensOpt = 200
    max_cost: Annotated[str | None, typer.Option(metavar="USD", help="Cost limit for all answers.")] = None
    fresh: Annotated[bool, typer.Option("--fresh", help="Ignore stored answers and request new ones.")] = (
        False
    )
    skip_failed: SkipFailedOpt = False
    yes: PayOpt = False
    gate: Annotated[
        bool, typer.Option("--gate", help="Exit with code 1 unless every ability was retained. For CI.")
    ] = False
    junit: JunitOpt = None
    output: ReportOpt = None


@command
def regress(
    context: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN", help="A succeeded run, or RUN@CHECKPOINT.", autocompletion=completion.runs
        ),
    ] = None,
    *,
    abilities: ProbeOptions,
    limits: RegressionLimits,
    list_probes: Annotated[bool, typer.Option("--list", help="List the built-in probes.")] = False,
) -> Output[Regression] | Output[list[str]]:
    """Check whether a tuned model has forgotten anything: compare it with its base on small probes, your own
    test sets, and lm-eval tasks.

    A confidence interval and a margin decide whether each ability was retained or forgotten. With too few
    rows, the result is inconclusive."""
    from orchestrate.reports.regressions import RegressionReport
    from orchestrate.runs.evaluation.held_out import require_reports
    from orchestrate.runs.evaluation.regression import PreparedRegression, RegressionOrder, probe_names

    if list_probes:
        return Output(probe_names(), lambda names: print_text("\n".join(names)))
    if run is None:
        raise UsageError("name the run to probe", fix="to list runs: orchestrate runs")
    order = RegressionOrder(
        probes=_names(abilities.probes),
        sets=abilities.sets or [],
        tasks=_names(abilities.tasks),
        tasks_folder=abilities.tasks_folder,
        margin=abilities.margin,
        limit=abilities.limit,
        on=limits.on,
        base_precision=limits.base_precision,
        max_tokens=limits.max_tokens,
        max_cost_usd=amount(limits.max_cost, "--max-cost"),
        fresh=limits.fresh,
        skip_failed=limits.skip_failed,
    )
    require_reports(limits.output, limits.junit)
    with orchestrator(context) as ft, PreparedRegression(ft, run, order) as prepared:
        plan = prepared.plan()
        for contender in plan.asked:
            price = "the price per token is unknown"
            if contender.high_usd is not None and contender.expected_usd is not None:
                price = "costs nothing"
            if contender.high_usd and contender.expected_usd is not None:
                price = f"about {span(contender.expected_usd, contender.high_usd)}"
            kept = f", {contender.kept:,} answered before" if contender.kept else ""
            note(f"{contender.contender}: {count(contender.questions, 'request')}{kept}; {price}")
        require_unpriced(plan.unpriced, yes=limits.yes)
        with answer_progress(sum(a.questions for a in plan.asked), fresh=limits.fresh) as progress:
            found = prepared.run(progress)
    report = RegressionReport(regression=found)
    write_reports(lambda: report, limits.output, limits.junit)
    return Output(found, lambda _: out.print(report.table()), 1 if limits.gate and not found.settled else 0)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
