"""advise: prompt, few-shot, retrieval or tuning, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrate.commands.console import Json, note, orchestrator, out, print_json, warn
from orchestrate.commands.options import grouped
from orchestrate.text import count

if TYPE_CHECKING:
    from orchestrate.quoting import Ownership
    from orchestrate.reports.advice import Advice
    from orchestrate.service import Orchestrator


@dataclass(frozen=True, kw_only=True)
class Money:
    """What serving is priced by."""

    traffic: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help='"20k req/day, 900 in, 150 out": weigh the cost of serving too.'),
    ] = None
    months: Annotated[int, typer.Option(min=1, help="Of serving; with --traffic.")] = 6
    model: Annotated[str, typer.Option(help="The open model that would be tuned; with --traffic.")] = (
        "qwen3.5-9b"
    )
    compare_with: Annotated[
        str, typer.Option(metavar="MODEL", help="The model that would be prompted instead; with --traffic.")
    ] = "gpt-4.1"
    saved_tokens: Annotated[int, typer.Option(min=0, help="Prompt tokens that a tuned model can drop.")] = 0


@dataclass(frozen=True, kw_only=True)
class NeedOptions:
    """What the answers must be."""

    private: Annotated[bool, typer.Option("--private", help="The data may not leave your machines.")] = False
    latency_ms: Annotated[int | None, typer.Option(min=1, help="Longest time to an answer.")] = None
    changing: Annotated[bool, typer.Option("--changing", help="The facts in the answers change often.")] = (
        False
    )
    own_gpu: Annotated[bool, typer.Option("--own-gpu", help="You have a GPU to train on.")] = False
    evaluated: Annotated[
        str | None, typer.Option("--eval", metavar="RUN", help="Take the base model's score from this run.")
    ] = None


@grouped
def advise(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Examples of the task, as for training.")],
    *,
    money: Money,
    needed: NeedOptions,
    json: Json = False,
) -> None:
    """Prompt, few-shot, retrieval, or tuning? From the data and your needs, with reasons and thresholds.
    Offline."""
    from orchestrate.service import advice

    with orchestrator(context) as ft:
        needs = advice.Needs(
            private=needed.private,
            latency_ms=needed.latency_ms,
            changing=needed.changing,
            own_gpu=needed.own_gpu,
            base_score=advice.base_score(ft, needed.evaluated) if needed.evaluated else None,
        )
        totals = _totals(ft, file, money.traffic, money) if money.traffic and not needed.private else []
        found = ft.advise(file, needs, totals)
    if json:
        print_json(found)
    else:
        _show(found, Path(file).name)


def _totals(ft: Orchestrator, file: str, traffic: str, money: Money) -> list[Ownership]:
    from orchestrate import quoting
    from orchestrate.spec import JobSpec

    spec = JobSpec.parse({"model": money.model, "train": file, "epochs": 3})
    return quoting.ownership(
        ft,
        spec,
        ft.quote(spec),
        traffic=quoting.Traffic.parse(traffic),
        months=money.months,
        compare_with=money.compare_with,
        saved_tokens=money.saved_tokens,
    )


def _show(found: Advice, name: str) -> None:
    f = found.facts
    out.print(
        f"{name}: {count(f.rows, f'{f.kind} row')}, on average {f.prompt_tokens:,.0f} tokens of prompt and "
        f"{f.answer_tokens:,.0f} of answer; {count(f.distinct_answers, 'distinct answer')}; "
        f"{f.copied_share:.0%} of their words are in the prompts; {f.json_share:.0%} are JSON; "
        f"{f.duplicate_share:.0%} of the rows repeat",
    )
    for text in found.warnings:
        warn(text)
    close = ", but it is close" if found.close else ""
    out.print()
    out.print(found.best.way, style="bold", end="")
    out.print(close)
    for choice in found.choices:
        mark = f"out: {choice.excluded}" if choice.excluded else f"{choice.points:+d}"
        out.print(f"  {choice.way.value}  {mark}")
        for reason in choice.reasons:
            out.print(f"      {reason}", style="dim")
    if found.would_change:
        out.print("\nWhat would change this: " + "; ".join(found.would_change))
    note(
        "a rule of thumb for a first decision; an evaluation of the base model on held-out rows outweighs it"
    )
