"""The commands `eval` and `compare`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import typer

from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import (
    note,
    orchestrator,
    out,
    print_text,
    require_unpriced,
    resumable,
    warn,
)
from orchestrate.commands.terminal.options import (
    IgnoreOpt,
    KeyVariableOpt,
    MapOpt,
    MaxTokensOpt,
    MetricsOpt,
    PayOpt,
    SkipFailedOpt,
    TemperatureOpt,
    columns_read,
)
from orchestrate.core.amounts import amount
from orchestrate.core.files import inside
from orchestrate.core.underway import work
from orchestrate.data.response_formats import read_format
from orchestrate.errors import UsageError
from orchestrate.text import SANDBOX_MARK, count, money, span
from orchestrate.types import Evaluation, Sampling

if TYPE_CHECKING:
    from orchestrate.reports import Comparison, EvaluationReport
    from orchestrate.reports.regressions import RegressionReport
    from orchestrate.runs.evaluation.held_out import EvaluationOrder, EvaluationPlan

JunitOpt = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the verdicts as JUnit XML.")]
ReportOpt = Annotated[
    Path | None, typer.Option("-o", "--output", help="Write a report: .html, .md, .json, .txt, .xml.")
]
FORMATS = ("table", "md", "html", "csv", "json")


@dataclass(frozen=True, kw_only=True)
class ContenderOptions:
    """Options for models to evaluate in addition to the runs."""

    base: Annotated[
        bool, typer.Option("--base/--no-base", help="Also evaluate the base model of each run.")
    ] = True
    base_precision: Annotated[
        Literal["16-bit", "nf4", "both"],
        typer.Option(
            help="Precision of the base on this machine. `both` also measures the effect of 4-bit "
            "quantization."
        ),
    ] = "16-bit"
    shots: Annotated[
        int,
        typer.Option(
            min=0, metavar="K", help="Also evaluate the base with K few-shot examples from the training data."
        ),
    ] = 0
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="MODEL[ as NAME]",
            help="Additional model: MODEL, HOST=MODEL, https://ADDRESS/v1=MODEL, record:ID.",
        ),
    ] = None
    key_variable: KeyVariableOpt = None
    against: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Model to compare all others with. Default: each run's own base."),
    ] = None
    on: Annotated[
        str,
        typer.Option(
            help="Where to run the model: host (its endpoint), here (its adapter), auto, or the name of "
            "the host it is deployed on."
        ),
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class TestRowOptions:
    """Options for the test rows and for querying the models."""

    test: Annotated[
        str | None, typer.Option("--test", help="Held-out rows. Default: the spec's test file.")
    ] = None
    columns: MapOpt = None
    ignored: IgnoreOpt = None
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N rows.")] = None
    cluster: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column that groups dependent rows, such as a customer id."),
    ] = None
    slices: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Also score slices by column, length or label, comma-separated."),
    ] = ""
    max_tokens: MaxTokensOpt = 512
    samples: Annotated[int, typer.Option(min=1, max=64, help="Answers per row.")] = 1
    temperature: TemperatureOpt = 0.0
    seed: Annotated[int, typer.Option(min=0, help="Seed for sampling answers.")] = 0
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows per batch on this machine. 1 gives the same answers as orchestrate chat."
        ),
    ] = None
    response_format: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Structured output: the API's response_format, or a JSON Schema file."
        ),
    ] = None
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Request all answers again, to detect whether the host changed the model."
        ),
    ] = False
    skip_failed: SkipFailedOpt = False
    yes: PayOpt = False


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Options for metrics, required scores, the cost limit and the report."""

    metrics: MetricsOpt = None
    rubric: Annotated[Path | None, typer.Option(help="YAML rubric for judge:MODEL and judge_pair:MODEL.")] = (
        None
    )
    rated: Annotated[
        str | None,
        typer.Option(
            "--calibrate",
            metavar="RATED",
            help="Human ratings to compare judges with: a .jsonl file, or a review's id.",
        ),
    ] = None
    target: Annotated[float | None, typer.Option(help="Score to reach, such as 0.9.")] = None
    margin: Annotated[
        float,
        typer.Option(
            help="Minimum lead over the baseline. -0.02 accepts a score up to 2 percentage points lower."
        ),
    ] = 0.0
    gate: Annotated[
        bool, typer.Option("--gate", help="Exit with code 1 unless every verdict is `ship`. For CI.")
    ] = False
    max_cost: Annotated[
        str | None, typer.Option(metavar="USD", help="Cost limit for all answers of this evaluation.")
    ] = None
    traffic: Annotated[
        str | None,
        typer.Option(
            help='Expected traffic, such as "20k req/day, 900 in, 150 out". Converts hourly prices to a cost '
            "per answer."
        ),
    ] = None
    junit: JunitOpt = None
    output: ReportOpt = None
    open_it: Annotated[bool, typer.Option("--open", help="Show the report in the browser.")] = False
    show: Annotated[int, typer.Option(min=0, help="Number of regressed and fixed rows to print.")] = 3


@command
def evaluate(
    context: typer.Context,
    run: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...", help="Succeeded runs, or RUN@CHECKPOINT.", autocompletion=completion.runs
        ),
    ] = None,
    *,
    contenders: ContenderOptions,
    rows: TestRowOptions,
    decision: Decision,
    list_metrics: Annotated[bool, typer.Option("--list", help="List the metrics.")] = False,
) -> Iterator[Output[Evaluation] | Output[list[str]]]:
    """Evaluate runs, their base and other models on held-out rows. Prints scores, regressed rows and a
    verdict for each run: ship or not.

    Shows the price and the smallest detectable difference before it starts. Answers are saved. If
    interrupted, repeat the command to continue without sending requests again. Exit code 6 if --max-cost is
    reached."""
    from orchestrate.runs.evaluation.held_out import PreparedEvaluation, metric_names, require_reports

    if list_metrics:
        yield Output(metric_names(), lambda names: print_text("\n".join(names)))
        return
    order = _order(contenders, rows, decision)
    require_reports(decision.output, decision.junit)
    with orchestrator(context) as ft, PreparedEvaluation(ft, run or [], order) as prepared:
        plan = prepared.plan()
        print_plan(plan)
        require_unpriced(plan.unpriced, yes=rows.yes)
        with answer_progress(sum(a.questions for a in plan.asked), fresh=rows.fresh) as progress:
            found = prepared.run(progress)
        page = decision.output or (report_page(ft.settings.home, found.id) if decision.open_it else None)
    write_reports(partial(_report, found), page, decision.junit)
    if page is not None and decision.open_it:
        open_page(page)
    failed = decision.gate and (not found.verdicts or any(v.decision != "ship" for v in found.verdicts))
    yield Output(found, partial(_show, rows=decision.show), int(failed))
    if failed and not found.verdicts:
        warn("--gate needs a verdict: set --target, or evaluate another model to compare with")


def _order(contenders: ContenderOptions, rows: TestRowOptions, decision: Decision) -> EvaluationOrder:
    from orchestrate.runs.evaluation.held_out import EvaluationOrder

    return EvaluationOrder(
        test=rows.test,
        columns=columns_read(rows.columns, rows.ignored) or None,
        metrics=decision.metrics or ["auto"],
        base=contenders.base,
        base_precision=contenders.base_precision,
        shots=contenders.shots,
        models=contenders.model or [],
        key_variable=contenders.key_variable,
        against=contenders.against,
        on=contenders.on,
        limit=rows.limit,
        cluster=rows.cluster,
        slices=[name.strip() for name in rows.slices.split(",") if name.strip()],
        sampling=Sampling(
            samples=rows.samples,
            temperature=rows.temperature,
            max_tokens=rows.max_tokens,
            seed=rows.seed,
            batch=rows.batch,
            response_format=None if rows.response_format is None else read_format(rows.response_format),
        ),
        rubric=decision.rubric,
        rated=decision.rated,
        target=decision.target,
        margin=decision.margin,
        traffic=decision.traffic,
        max_cost_usd=amount(decision.max_cost, "--max-cost"),
        fresh=rows.fresh,
        skip_failed=rows.skip_failed,
    )


def print_plan(plan: EvaluationPlan) -> None:
    """Print the smallest detectable difference and the price before anything is sent."""
    more = " and ".join(f"{rows:,} for {100 * d:g} points" for d, rows in plan.rows_for[-2:])
    note(
        f"with {count(plan.items, 'row')} you can detect differences of {100 * plan.detectable:.0f} "
        f"points or more (assuming the models differ on {plan.assumed:.0%} of rows)"
        + (f"; it takes {more}" if more else "")
    )
    for asked in plan.asked:
        if asked.expected_usd is None or asked.high_usd is None:
            price = "the price per token is unknown"
        elif not asked.high_usd:
            price = "costs nothing"
        else:
            price = f"about {span(asked.expected_usd, asked.high_usd)}"
        kept = f", {asked.kept:,} answered before" if asked.kept else ""
        name = asked.contender + SANDBOX_MARK * asked.sandbox
        note(f"{name}: {count(asked.questions, 'request')}{kept}; {price}")


def write_reports(
    made: Callable[[], EvaluationReport | RegressionReport], page: Path | None, junit: Path | None
) -> None:
    """Write the report, and a file with its verdicts for CI."""
    if page is not None:
        made().save(page)
    if junit is not None:
        inside(junit).write_text(made().render("junit"), encoding="utf-8")
    for path in filter(None, (page, junit)):
        note(f"written: {path}")


def _report(found: Evaluation) -> EvaluationReport:
    from orchestrate.runs.evaluation.held_out import report

    return report(found)


def _show(found: Evaluation, rows: int) -> None:
    out.print(_report(found).table(rows))
    note(f"all answers: {found.items_file}")


def report_page(home: Path, name: str) -> Path:
    """Return the path where --open saves the report if -o is not passed."""
    from orchestrate.core.files import private_folder

    return private_folder(home / "reports") / f"{name}.html"


def open_page(page: Path) -> None:
    """Open a page in the browser named by `$BROWSER`, or in the default browser."""
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        warn(f"could not open a browser. The report is in {page}")


@contextmanager
def answer_progress(
    questions: int, *, fresh: bool = False
) -> Generator[Callable[[str, int, int, Decimal], None]]:
    """Show a progress bar with the number of answers, their cost, and the last model queried. If interrupted,
    print how to continue: with the option --fresh, the saved answers would not be used."""
    answers, again = dict[str, int](), " without --fresh" * fresh
    kept = f"the answers so far are saved. To continue, run the same command again{again}"
    with resumable(kept), work("querying") as report:

        def update(name: str, done: int, of: int, usd: Decimal) -> None:
            answers[name] = done
            spent = f", {money(usd)}" if usd else ""
            report(sum(answers.values()), questions, f"{name} {done:,} of {of:,}{spent}")

        yield update


class ReportFile(TypedDict):
    output: str


@command
def compare(
    context: typer.Context,
    run: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Runs to compare.", autocompletion=completion.runs),
    ],
    format: Annotated[str, typer.Option("--format", help=f"Output format: {', '.join(FORMATS)}.")] = "table",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Output file. Its extension sets the format.")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--all", help="Show all numbers and findings, not only the decisive ones.")
    ] = False,
    open_it: Annotated[bool, typer.Option("--open", help="Show the report in the browser.")] = False,
) -> Iterator[Output[Comparison] | Output[ReportFile]]:
    """Compare runs side by side and recommend one, with reasons and their certainty. If the runs can't be
    compared, the report says why."""
    if format not in FORMATS:
        raise UsageError(f"--format must be one of {', '.join(FORMATS)}, got {format!r}")
    with orchestrator(context) as ft:
        comparison = ft.compare(run)
        if open_it and output is None:
            output = report_page(ft.settings.home, "comparison")
    if output is not None:
        comparison.save(output)
        yield Output(ReportFile(output=str(output)), lambda written: print_text(written["output"]))
        if open_it:
            open_page(output)
    elif format == "table":
        yield Output(comparison, lambda comparison: out.print(comparison.table(whole=whole)))
    else:
        yield Output(comparison, lambda comparison: print_text(comparison.render(format)))
