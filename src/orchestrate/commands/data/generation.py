"""The commands `data generate` and `data review`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from orchestrate.commands.terminal.command import HostOutput, Output, command
from orchestrate.commands.terminal.console import (
    ended_by_signal,
    err,
    note,
    orchestrator,
    out,
    require_unpriced,
    resumable,
    warn_lost,
)
from orchestrate.commands.terminal.options import MaxTokensOpt, PayOpt
from orchestrate.core.amounts import amount
from orchestrate.core.underway import work
from orchestrate.errors import UsageError
from orchestrate.text import count, money

if TYPE_CHECKING:
    from orchestrate.data.operations.generate import GenerateReport
    from orchestrate.data.operations.review import ExportReport, ReviewCounts

_EXIT = {"rows": 0, "repeating": 1, "max-requests": 6, "max-cost": 6, "budget": 6}

OutputOpt = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", help="Output file. Default: next to SEEDS, named after it.", show_default=False
    ),
]
KeyVariableOpt = Annotated[
    str | None,
    typer.Option(help="Environment variable with the API key for --base-url. By default, no key is sent."),
]
MaxCostOpt = Annotated[
    str | None,
    typer.Option(metavar="USD", help="Cost limit across all runs. Requires a model with a known price."),
]


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """Options for the model that generates the rows, and its host."""

    host: Annotated[str | None, typer.Option(help="A configured host. Default: openai.")] = None
    base_url: Annotated[str | None, typer.Option(help="Use any OpenAI-compatible API instead.")] = None
    key_variable: KeyVariableOpt = None


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Options for the generated rows and for limits."""

    max_requests: Annotated[
        int, typer.Option(min=1, help="Request limit across all runs that write to this output.")
    ] = 100
    max_cost: MaxCostOpt = None
    instructions: Annotated[
        str, typer.Option(help="Instructions for the model, or @FILE to read them from a file.")
    ] = ""
    per_request: Annotated[int, typer.Option(min=1, max=100, help="Rows per request.")] = 10
    examples: Annotated[int, typer.Option(min=1, max=100, help="Example rows per request.")] = 5
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Concurrent requests.")] = 4
    max_tokens: MaxTokensOpt = 4096
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="Sampling temperature. Default: the host's.")
    ] = None
    threshold: Annotated[
        float,
        typer.Option(min=0.5, max=1.0, help="Rows at or above this similarity count as near-duplicates."),
    ] = 0.8
    hosts: Annotated[str, typer.Option("--for", help="Comma-separated backends to generate rows for.")] = (
        "all"
    )
    yes: PayOpt = False
    reasoning: Annotated[
        bool, typer.Option("--reasoning", help="Request the reasoning behind each answer, and store it.")
    ] = False
    for_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="With --reasoning: store it only if this model's chat template renders it."
        ),
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Seed for choosing the examples of each request.")] = 0


@command
def generate(
    context: typer.Context,
    seeds: Annotated[str, typer.Argument(metavar="SEEDS", help="Example rows to imitate.")],
    model: Annotated[
        str, typer.Option("--model", help="Model that generates the rows, by its id on the host.")
    ],
    output: OutputOpt = None,
    rows: Annotated[int, typer.Option(min=1, help="Target number of rows in the file.")] = 100,
    *,
    writer: TeacherOptions,
    options: GenerateOptions,
) -> HostOutput[GenerateReport]:
    """Generate rows in the format of SEEDS with a chat model. Checks and deduplicates the rows, and marks
    them for review.

    If interrupted, repeat the command to continue. Exit code 6 if a limit was reached, or 1 if the
    model only repeats itself."""
    from orchestrate.runs import data
    from orchestrate.runs.data import generation

    kept, why = generation.reasoning_of(options.for_model, wanted=options.reasoning)
    if options.for_model is not None and not options.reasoning:
        raise UsageError("--for-model needs --reasoning")
    if why:
        note(why)
    order = generation.GenerateOrder(
        rows=rows,
        max_requests=options.max_requests,
        max_cost_usd=amount(options.max_cost, "--max-cost", above_zero=True),
        max_tokens=options.max_tokens,
        rows_per_request=options.per_request,
        examples=options.examples,
        parallel=options.parallel,
        instructions=_text(options.instructions),
        threshold=options.threshold,
        seed=options.seed,
        reasoning=kept,
    )
    author = generation.TeacherModel(model=model, temperature=options.temperature, **vars(writer))
    target = output or data.beside(seeds, "generated.jsonl")
    with orchestrator(context) as ft:
        if generation.unpriced(ft.settings, author):
            require_unpriced([model], yes=options.yes)
        sandbox = author.place(ft.settings).sandbox
        kept = "the rows so far are saved. To continue, run the same command again"
        with resumable(kept), _progress(rows) as progress:
            report = generation.generate(
                ft, seeds, target, author, order, hosts=options.hosts, progress=progress
            )
    return HostOutput(report, _show, _EXIT[report.stopped], sandbox=sandbox)


class Reviewing(TypedDict):
    url: str
    counts: ReviewCounts


@command
def review(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file on this machine.")],
    export: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Only export the rows accepted so far.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port. Default: any free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
) -> Iterator[Output[Reviewing] | Output[ExportReport]]:
    """Accept, edit or reject rows in the browser. Works with the keyboard. Press Ctrl-C to stop, and repeat
    the command to continue.

    FILE is never changed. Decisions are saved to FILE.review. --export OUT writes the accepted rows."""
    from orchestrate.runs import data

    if export is not None:
        report = data.RowReview(file).export(export)
        yield Output(report, _show_export)
        return
    with data.serving(file, port=port) as page, ended_by_signal() as ended:
        counts = page.review.counts()
        yield Output(
            Reviewing(url=page.url, counts=counts), lambda shown: out.print(shown["url"], soft_wrap=True)
        )
        note(f"{counts.pending:,} of {count(counts.rows, 'row')} to review. Ctrl-C ends the review")
        if browser and err.is_terminal:
            import webbrowser

            webbrowser.open(page.url)
        ended.wait()
        counts = page.review.counts()
    note(
        f"{counts.accepted + counts.edited:,} accepted, {counts.rejected:,} rejected, "
        f"{counts.pending:,} to review. To write the accepted ones: "
        f"orchestrate data review {file} --export OUT"
    )


def _show_export(report: ExportReport) -> None:
    out.print(f"{report.output}: {count(report.written, 'row')}")
    note(f"{report.counts.rejected:,} rejected, {report.counts.pending:,} not reviewed yet")


def _text(given: str) -> str:
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {given[1:]}: {error}") from error


def _show(report: GenerateReport) -> None:
    out.print(f"{report.output}: {count(report.rows, 'row')}, {report.new_rows:,} new")
    cost = f", {money(report.usd)}" if report.usd is not None else ""
    tokens = f"{report.prompt_tokens:,} + {report.completion_tokens:,} tokens"
    note(f"{count(report.requests, 'request')}, {report.failed_requests:,} failed; {tokens}{cost}")
    warn_lost(report.lost_requests, report.lost_usd)
    if report.last_error:
        note(f"last error: {report.last_error}")
    if report.refused:
        note("left out: " + ", ".join(f"{code} {n:,}" for code, n in sorted(report.refused.items())))
    if report.stopped != "rows":
        why = {
            "repeating": "the model repeats itself: change SEEDS, --instructions or --temperature",
            "budget": "the budget is used up. To continue, raise budget_usd and run the same command again",
        }
        note(f"stopped early: {why.get(report.stopped, f'--{report.stopped} was reached')}")
    if report.rows:
        note(f"to review the rows: orchestrate data review {report.output}")


@contextmanager
def _progress(rows: int) -> Generator[Callable[[int, int, Decimal], None]]:
    """Show the number of rows and requests, and the cost so far."""
    with work("generating") as report:

        def update(done: int, requests: int, usd: Decimal) -> None:
            report(done, rows, count(requests, "request") + (f", {money(usd)}" if usd else ""))

        yield update
