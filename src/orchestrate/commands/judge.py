"""eval, compare: what the tuning was worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from orchestrate.commands.console import Json, note, orchestrator, out, print_json, print_text, table, warn
from orchestrate.commands.options import grouped
from orchestrate.errors import UsageError
from orchestrate.text import count
from orchestrate.types import EvaluationResult, Score

FORMATS = ("table", "md", "html", "csv", "json")


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How the models are asked."""

    on: Annotated[str, typer.Option(help="host: its endpoint; here: the adapter on this machine; auto.")] = (
        "auto"
    )
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="On this machine: rows answered together; 1 answers as chat does."),
    ] = None


@grouped
def evaluate(
    context: typer.Context,
    run: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs that succeeded.")],
    test: Annotated[
        str | None, typer.Option("--test", help="Held-out rows; default: the spec's test file.")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="auto, exact_match, json_match, json_fields, contains, token_f1.")
    ] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Only this many rows, from the first.")] = None,
    *,
    asking: Asking,
    json: Json = False,
) -> None:
    """Base against tuned on held-out rows, with 95% intervals and the rows that flipped."""
    results: list[EvaluationResult] = []
    with orchestrator(context) as ft:
        handles = [ft.run(name) for name in run]
        for handle in handles:
            handle.check()
        for handle in handles:
            note(f"{handle.record.provider}: asking base and tuned model of {handle.id}")
            result = handle.evaluate(
                test,
                metric=metric,
                limit=limit,
                on=asking.on,
                max_tokens=asking.max_tokens,
                batch=asking.batch,
            )
            results.append(result)
    if json:
        print_json(results)
        return
    shown = table(
        "run",
        "backend",
        "metric",
        "base",
        "tuned",
        "difference",
        "gained",
        "lost",
        "p",
        right=("gained", "lost", "p"),
        fold=("base", "tuned", "difference"),
    )
    for r in results:
        p = "" if r.p_value is None else ("<0.0001" if r.p_value < 0.0001 else f"{r.p_value:.4f}")
        shown.add_row(
            r.run_id,
            r.provider,
            r.metric,
            _score(r.base),
            _score(r.tuned),
            _score(r.difference),
            str(r.gained),
            str(r.lost),
            p,
        )
    out.print(shown)
    for r in results:
        note(
            f"{r.run_id}: {count(r.tuned.n, 'row')}, answered by {r.served_by}; each answer in {r.items_file}"
        )
        for told in r.notes:
            warn(f"{r.run_id}: {told}")


def compare(
    context: typer.Context,
    run: Annotated[list[str], typer.Argument(metavar="RUN...")],
    format: Annotated[str, typer.Option("--format", help=", ".join(FORMATS))] = "table",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write to this file; its ending decides.")
    ] = None,
    json: Json = False,
) -> None:
    """Runs side by side: settings, cost, loss, scores; says when they are not comparable, and why."""
    if format not in FORMATS:
        raise UsageError(f"--format takes {', '.join(FORMATS)}; got {format!r}")
    with orchestrator(context) as ft:
        comparison = ft.compare(run)
    if output is not None:
        comparison.save(output)
        if json:
            print_json({"output": str(output)})
        else:
            print_text(str(output))
    elif json or format == "json":
        print_text(comparison.render("json"))
    elif format == "table":
        out.print(comparison.table())
    else:
        print_text(comparison.render(format))


def _score(score: Score | None) -> Text:
    if score is None:
        return Text()
    return Text.assemble(f"{score.value:.3f} ", (f"({score.low:.3f} to {score.high:.3f})", "dim"))
