"""The command `advise`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import replace

from orchestrate.commands.evaluation.judge import answer_progress, print_plan
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import note, orchestrator, out, require_agreed, warn
from orchestrate.commands.terminal.options import IgnoreOpt, MapOpt, PayOpt, ServingOptions, columns_read
from orchestrate.core.amounts import amount
from orchestrate.data.goals import Goal
from orchestrate.errors import UsageError
from orchestrate.text import count

if TYPE_CHECKING:
    from orchestrate.api.orchestrator import Orchestrator
    from orchestrate.costing.latency import Latency
    from orchestrate.reports.advice import Advice
    from orchestrate.types import Score


@dataclass(frozen=True, kw_only=True)
class NeedOptions:
    """Options for your requirements."""

    private: Annotated[
        bool, typer.Option("--private", help="Recommend only options that keep the data on your machines.")
    ] = False
    latency_ms: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum response time in milliseconds. Also predicts the response time."),
    ] = None
    changing: Annotated[
        bool, typer.Option("--changing", help="Assume that the facts in the answers change often.")
    ] = False
    own_gpu: Annotated[bool, typer.Option("--own-gpu", help="Assume that you have a GPU to train on.")] = (
        False
    )
    evaluated: Annotated[
        str | None,
        typer.Option("--eval", metavar="RUN", help="Take the base model's score from this run's evaluation."),
    ] = None
    base_score: Annotated[
        float | None,
        typer.Option(metavar="SCORE", help="Score of the base model with your prompt, such as 0.86."),
    ] = None
    target: Annotated[
        float | None, typer.Option(metavar="SCORE", help="Score that is good enough, such as 0.9.")
    ] = None
    measure: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Evaluate this model with and without examples: HOST=MODEL, local=MODEL."
        ),
    ] = None
    test: Annotated[
        str | None, typer.Option(metavar="FILE", help="With --measure: held-out rows for the task.")
    ] = None
    metric: Annotated[str, typer.Option(help="With --measure: metric, as in eval.")] = "auto"
    shots: Annotated[
        int, typer.Option(min=0, metavar="K", help="With --measure: number of examples in the prompt.")
    ] = 5
    limit: Annotated[int | None, typer.Option(min=1, help="With --measure: use only the first N rows.")] = (
        None
    )
    max_cost: Annotated[
        str | None, typer.Option(metavar="USD", help="Cost limit for all answers of --measure.")
    ] = None
    goal: Annotated[
        Goal | None, typer.Option(help="What you want to teach. Default: inferred from the rows.")
    ] = None


@command
def advise(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Examples of the task in a training format.")],
    *,
    serving: ServingOptions,
    model: Annotated[str, typer.Option(help="Open-weight model to tune, for --traffic and --latency-ms.")] = (
        "qwen3.5-9b"
    ),
    needed: NeedOptions,
    columns: MapOpt = None,
    ignored: IgnoreOpt = None,
    yes: PayOpt = False,
) -> Output[Advice]:
    """Recommend prompting, few-shot, retrieval or tuning for your data and requirements, with reasons and
    thresholds.

    Works offline, except for --measure, which shows its price, queries a model and saves the answers.
    """
    from orchestrate.runs.preparing import advice

    given = [needed.evaluated, needed.base_score, needed.measure]
    if sum(one is not None for one in given) > 1:
        raise UsageError("use only one of --base-score, --eval and --measure")
    if (needed.measure is None) != (needed.test is None):
        raise UsageError("--measure needs held-out rows: add --test FILE")
    if needed.target is not None and all(one is None for one in given):
        raise UsageError("--target needs the base model's score: set --measure, --base-score or --eval")
    if needed.target is not None and not 0 < needed.target <= 1:
        raise UsageError(f"--target must be above 0 and at most 1, got {needed.target:g}")
    use = serving.use(context)
    with orchestrator(context) as ft:
        read = columns_read(columns, ignored)
        score = None if needed.base_score is None else advice.given_score(needed.base_score)
        few_shot = None
        if needed.measure is not None:
            score, few_shot = _measured(ft, file, needed, read, yes=yes)
        needs = advice.Needs(
            private=needed.private,
            latency_ms=needed.latency_ms,
            changing=needed.changing,
            own_gpu=needed.own_gpu,
            base_score=advice.base_score(ft, needed.evaluated) if needed.evaluated else score,
            few_shot_score=few_shot,
            target=needed.target,
            goal=needed.goal,
        )
        traffic = use.traffic if use else None
        needs = replace(
            needs,
            model=model,
            larger=serving.compare_with,
            tokens=(traffic.input_tokens, traffic.output_tokens) if traffic else None,
        )
        totals = advice.totals(ft, file, model, use, private=needed.private, columns=read) if use else []
        found = ft.advise(file, needs, totals, columns=read)
    return Output(found, partial(_show, name=Path(file).name))


def _measured(
    ft: Orchestrator, file: str, needed: NeedOptions, columns: dict[str, str], *, yes: bool
) -> tuple[Score, Score | None]:
    """Show the price, then evaluate the model with the prompt alone and with examples."""
    from orchestrate.runs.evaluation import prompt_scores

    wanted = prompt_scores.Measuring(
        model=needed.measure or "",
        test=needed.test or "",
        metric=needed.metric,
        shots=needed.shots,
        limit=needed.limit,
        columns=columns or None,
        max_cost_usd=amount(needed.max_cost, "--max-cost"),
    )
    with prompt_scores.prepared(ft, file, wanted, private=needed.private) as prepared:
        plan = prepared.plan()
        print_plan(plan)
        questions = sum(one.questions - one.kept for one in plan.asked)
        require_agreed(
            f"Send {count(questions, 'request')} to {needed.measure}?",
            high_usd=plan.high_usd,
            unpriced=bool(plan.unpriced),
            limited=needed.max_cost is not None,
            yes=yes,
        )
        with answer_progress(questions) as progress:
            return prompt_scores.scores(prepared.run(progress))


def _show(found: Advice, name: str) -> None:
    from orchestrate.reports import quotes as shown

    f = found.facts
    out.print(
        f"{name}: {count(f.rows, f'{f.kind} row')}, on average {f.prompt_tokens:,.0f} prompt tokens "
        f"and {f.answer_tokens:,.0f} answer tokens per row; "
        f"{count(f.distinct_answers, 'distinct answer')}; {f.copied_share:.0%} of the answers' words "
        f"occur in the prompts; {f.json_share:.0%} of the answers are JSON; {f.duplicate_share:.0%} of the "
        "rows are duplicates",
    )
    out.print(str(found.volume))
    if found.rule is not None:
        out.print(str(found.rule))
    else:
        note(
            "the 80% rule was not checked. It says not to fine-tune if prompting already reaches 80% of the "
            f"target. To check it: orchestrate advise {quote(name)} --measure MODEL --test FILE "
            "--target 0.9"
        )
    for text in found.warnings:
        warn(text)
    close = " (close to the next option)" if found.close else ""
    out.print()
    out.print(found.best.way, style="bold", end="")
    out.print(close)
    for choice in found.choices:
        mark = f"out: {choice.excluded}" if choice.excluded else f"{choice.points:+d}"
        limited = f"  ({choice.limited})" if choice.limited else ""
        out.print(f"  {choice.way.value}  {mark}{limited}")
        for reason in choice.reasons:
            out.print(f"      {reason}", style="dim")
    if found.would_change:
        out.print("\nWhat would change this advice: " + "; ".join(found.would_change))
    if found.latency:
        _show_latency(found.latency)
    if found.totals:
        out.print()
        out.print(shown.ownership_table(found.totals))
    note(
        "this is a rule of thumb for a first decision. For stronger evidence, evaluate the base model on "
        "held-out rows"
    )


def _show_latency(found: Sequence[Latency]) -> None:
    from orchestrate.core.tables import TextTable
    from orchestrate.costing.latency import SOURCE

    times = ("first token", "each token", "entire answer")
    shown = TextTable("model", "on", *times, right=times)
    for one in found:
        cells = (f"{ms:,.0f} ms" for ms in (one.first_token_ms, one.token_ms, one.answer_ms))
        shown.add_row(one.model, f"{one.gpus} x {one.device}", *cells)
    out.print()
    out.print(shown)
    first = found[0]
    note(
        f"predicted for one request at a time with {first.input_tokens:,} input tokens and "
        f"{first.output_tokens:,} output tokens, excluding queueing and network time. The true latency is "
        f"within a factor of {first.band:g} ({SOURCE}). Batching slows answers down. Prompt caching, 4-bit "
        "weights and speculative decoding speed them up"
    )
