"""data from-review and data judge: what people, or a model in their place, said of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrate.commands.console import Json, note, orchestrator, out, print_json
from orchestrate.errors import UsageError
from orchestrate.text import count


def from_review(
    context: typer.Context,
    review: Annotated[str, typer.Argument(metavar="REVIEW", help="The id of a review, or of its run.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write.", show_default=False)],
    format: Annotated[
        str, typer.Option("--as", help="dpo: pairs of answers; kto: answers to give and to avoid.")
    ] = "dpo",
    agreement: Annotated[
        float, typer.Option(min=0.5, max=1, help="Share of an item's raters that must say the same.")
    ] = 0.6,
    json: Json = False,
) -> None:
    """What people said of answers, as training rows for preference tuning. What makes no row is counted."""
    from orchestrate.service import reviewing

    if format not in ("dpo", "kto"):
        raise UsageError(f"--as takes dpo or kto; got {format!r}")
    with orchestrator(context) as ft:
        done = reviewing.from_review(ft, review, output, format=format, agreement=agreement)  # pyright: ignore[reportArgumentType]
    if json:
        print_json(done)
        return
    out.print(f"{done.output}: {count(done.rows, 'row')} for {done.format}", soft_wrap=True)
    if done.left_out:
        note("left out: " + ", ".join(f"{why} {n:,}" for why, n in sorted(done.left_out.items())))
