"""The command `data curve`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import replace

from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.command import HostOutput, Output, command
from orchestrate.commands.terminal.console import note, orchestrator, out, table, warn
from orchestrate.commands.terminal.options import AimOptions, SpecOptions
from orchestrate.core.amounts import amount
from orchestrate.core.files import inside
from orchestrate.errors import UsageError
from orchestrate.text import money

if TYPE_CHECKING:
    from orchestrate.api.orchestrator import Orchestrator
    from orchestrate.commands.training.sweep import SweepPlan
    from orchestrate.runs.sweep.best_rows import BestRows
    from orchestrate.runs.sweep.curve import LearningCurve
    from orchestrate.spec import JobSpec
    from orchestrate.types import Search


@dataclass(frozen=True, kw_only=True)
class CurvePoints:
    """Options for the numbers of rows to train on, and for the subsets to compare."""

    shares: Annotated[
        str,
        typer.Option(
            metavar="S1,S2",
            help="Fractions of the training rows, up to 1. Each subset includes all smaller ones.",
        ),
    ] = "0.125,0.25,0.5,1"
    seeds: Annotated[
        int, typer.Option(min=1, max=20, help="Runs per fraction. Their spread is included in the intervals.")
    ] = 1
    more: Annotated[int, typer.Option(min=1, help="Project the score for this many additional rows.")] = 1000
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="best,random,all", help="Compare the best rows with random rows or with all rows."
        ),
    ] = None
    by: Annotated[str, typer.Option(metavar="SIGNAL", help="With --compare: signal that ranks the rows.")] = (
        "loss"
    )
    keep: Annotated[
        float, typer.Option(metavar="FRACTION", help="With --compare: fraction of the rows to keep.")
    ] = 0.5


@command
def curve(
    context: typer.Context,
    *,
    spec_options: SpecOptions,
    provider: Annotated[
        str, typer.Option("--provider", "-p", help="Backend to train on.", autocompletion=completion.backend)
    ],
    points: CurvePoints,
    aim: AimOptions,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.html", help="Write an HTML page with the plot."),
    ] = None,
) -> Iterator[HostOutput[LearningCurve] | HostOutput[BestRows] | Output[SweepPlan]]:
    """Estimate how much additional rows would help. Trains on fractions of the data, and evaluates every
    model on the same held-out rows. The runs form a sweep with one budget. The price is shown before the
    first run is submitted. Repeat the command to resume.

    --compare best,random compares the best half of the rows (by a `data score` signal) with a random half.
    """
    from orchestrate.commands.training.sweep import begin, carry_out
    from orchestrate.runs.preparing.prepared import training_data
    from orchestrate.runs.sweep import best_rows, trials
    from orchestrate.runs.sweep import curve as curves

    if output is not None and output.suffix.lower() != ".html":
        raise UsageError(f"{output.name}: the plot must be an HTML page (.html)", fix="-o curve.html")
    if points.compare is not None and output is not None:
        raise UsageError("--compare has no plot: use -o or --compare, not both")
    with orchestrator(context, rates=aim.rate) as ft, TemporaryDirectory() as scratch:
        spec = spec_options.read(provider)
        search, selected = _search(ft, spec, provider, points, aim, Path(scratch))
        rows = training_data(ft, spec).train.rows
        if planned := begin(ft, search, aim, priced=_from_scratch(search, selected, scratch)):
            yield planned
            return
        carried = trials.Searching(ft, search)
        carry_out(ft, carried)
        if carried.stopped:
            warn(carried.stopped)
            note(f"spent so far: {money(carried.spent_usd())}. To continue, rerun with a higher limit")
        if selected:
            best = best_rows.best_rows(carried, rows, points.by, points.keep, selected)
            code = 0 if best.over and not carried.stopped else 1
            yield HostOutput(best, _show_best, code, sandbox=search.sandbox, labeled=True)
            return
        found = curves.curve(carried, rows, points.more)
        if output is not None and found.sizes:
            inside(output).write_text(curves.page(found), encoding="utf-8")
            note(f"written: {output}")
        code = 0 if found.more is not None and not carried.stopped else 1
        yield HostOutput(found, _show, code, sandbox=search.sandbox, labeled=True)


def _search(
    ft: Orchestrator, spec: JobSpec, provider: str, points: CurvePoints, aim: AimOptions, scratch: Path
) -> tuple[Search, str]:
    """Return the sweep that trains the points, and the file of the best rows if they are compared. In a dry
    run, that file is only in `scratch`."""
    from orchestrate.runs.sweep import best_rows, sweeps
    from orchestrate.runs.sweep import curve as curves

    selected = ""
    if points.compare is None:
        space = curves.space_of(_shares(points.shares), points.seeds)
    else:
        folder = ft.settings.home / "selections"
        name = best_rows.selection(spec, scratch if aim.dry_run else folder, points.keep, points.by).name
        selected = str(folder / name)
        space = best_rows.space_of(points.compare.split(","), selected, points.keep, points.seeds)
    order = sweeps.SweepOrder(
        space=space,
        target=aim.target,
        test=aim.test,
        max_parallel=aim.max_parallel,
        max_cost_usd=amount(aim.max_cost, "--max-cost"),
    )
    return sweeps.plan(ft, spec, ft.backends(provider), order), selected


def _from_scratch(search: Search, selected: str, scratch: str) -> Search:
    """Return the sweep with the best rows from `scratch` if they are there."""
    written = Path(scratch, Path(selected).name)
    if not selected or not written.exists():
        return search
    choices = {
        name: tuple(str(written) if value == selected else value for value in values)
        for name, values in search.choices.items()
    }
    return replace(search, choices=choices)


def _shares(given: str) -> list[float]:
    try:
        return [float(one) for one in given.split(",")]
    except ValueError:
        raise UsageError(f"--shares must be comma-separated numbers, got {given!r}") from None


def _show(found: LearningCurve) -> None:
    from orchestrate.runs.sweep import curve as curves

    shown = table(*curves.HEAD, right=curves.HEAD[:5])
    for row in curves.cells(found):
        shown.add_row(*row)
    out.print(shown)
    for line in curves.summary(found):
        out.print(line)
    for remark in found.remarks:
        note(remark)


def _show_best(found: BestRows) -> None:
    from orchestrate.runs.sweep import best_rows

    shown = table(*best_rows.HEAD, right=("rows", "score"))
    for one in found.compared:
        interval = "" if one.low is None or one.high is None else f"{one.low:.3f} to {one.high:.3f}"
        shown.add_row(f"{one.rows:,}", one.which, f"{one.score:.4g}", interval, ", ".join(one.runs))
    out.print(shown)
    for line in best_rows.summary(found):
        out.print(line)
    for remark in found.remarks:
        note(remark)
