"""The commands `import` and `migrate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrate import text
from orchestrate.commands.evaluation.judge import answer_progress, print_plan
from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.command import Output, command, for_people, shown_already
from orchestrate.commands.terminal.console import (
    confirm,
    err,
    mark_sandbox,
    note,
    orchestrator,
    out,
    require_unpriced,
    resumable,
    table,
    warn,
)
from orchestrate.commands.terminal.options import (
    MaxTokensOpt,
    MetricsOpt,
    ServingOptions,
    models_given,
    require_used,
)
from orchestrate.commands.training.submit import (
    SpendingOptions,
    SubmitOptions,
    require_agreement,
    submit_each,
)
from orchestrate.core import days
from orchestrate.core.amounts import amount
from orchestrate.core.underway import ProgressCallback, work
from orchestrate.errors import UsageError
from orchestrate.paid.consent import require_consent
from orchestrate.types import Run, Sampling

if TYPE_CHECKING:
    from orchestrate import RunHandle
    from orchestrate.api.orchestrator import Orchestrator
    from orchestrate.costing import ServingUse
    from orchestrate.migration.account import Carried, PlannedMove
    from orchestrate.migration.account_import import AccountImport, Inventory, InventoryRun
    from orchestrate.migration.migrations import MigrationOrder, PreparedMigration
    from orchestrate.migration.parity import Migration
    from orchestrate.migration.proposals import Proposal
    from orchestrate.runs.preparing.prepared import Prepared


@dataclass(frozen=True, kw_only=True)
class ParityOptions:
    """Options for judging parity."""

    test: Annotated[
        str | None,
        typer.Option(
            "--test",
            metavar="FILE",
            help="Held-out rows. Default: the run's own, or the ones in its recording.",
        ),
    ] = None
    old: Annotated[
        str,
        typer.Option(
            "--old",
            help="Source of the old model's answers: live (query it), recorded (use its recording) or auto.",
        ),
    ] = "auto"
    metrics: MetricsOpt = None
    margin: Annotated[
        float, typer.Option(help="Largest drop that counts as parity: 0.05 means 5 percentage points.")
    ] = 0.05
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N rows.")] = None
    max_tokens: MaxTokensOpt = 512
    on: Annotated[str, typer.Option(help="Where to run the model: host, here or auto (as in eval).")] = "auto"
    probes: Annotated[
        str,
        typer.Option(
            metavar="NAMES", help="Forgetting probes, as in regress: all, none, or comma-separated."
        ),
    ] = "all"
    proof: Annotated[
        bool, typer.Option("--proof/--no-proof", help="Compare the new model with the old one.")
    ] = True
    max_answers: Annotated[
        str | None,
        typer.Option(
            "--max-answers-cost", metavar="USD", help="Cost limit for all answers of the parity test."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class MigrationSteps:
    """Options that control the migration's steps and its report."""

    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only propose, translate and quote. Nothing is sent.")
    ] = False
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until the new models are trained, then compare.")
    ] = True
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the report: .html, .md, .json, .txt.")
    ] = None
    gate: Annotated[
        bool,
        typer.Option("--gate", help="Exit with code 1 unless the test shows parity. For CI."),
    ] = False


@dataclass(frozen=True, kw_only=True)
class MigrationOptions:
    """Options for the target backends, for one run or for all runs in a plan."""

    to: Annotated[str, typer.Option("--to", metavar="BACKENDS", help="Comma-separated target backends.")] = ""
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Model, or BACKEND=MODEL, to use instead of the proposed one."),
    ] = None
    train: Annotated[
        str | None,
        typer.Option("--train", metavar="FILE", help="Training rows to use if the run's own are lost."),
    ] = None
    every: Annotated[
        bool,
        typer.Option("--all", help="With --plan: include every run whose model will be shut down."),
    ] = False
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="FILE",
            help="With --all: write the plan to this file. Otherwise: run this plan.",
        ),
    ] = None


@command
def migrate(
    context: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="A succeeded run.", autocompletion=completion.runs),
    ] = None,
    *,
    where: MigrationOptions,
    serving: ServingOptions,
    spending: SpendingOptions,
    proof: ParityOptions,
    steps: MigrationSteps,
) -> (
    Output[Migration]
    | Output[Proposal]
    | Output[list[Run]]
    | Output[list[PlannedMove]]
    | Output[list[Carried]]
    | None
):
    """Move a tuned model to other backends and prove that the new model is as good.

    Proposes base models, translates each setting, shows a quote, asks for confirmation, trains, and compares
    old and new on held-out prompts. If interrupted, repeat the command to continue. Nothing is submitted or
    billed twice."""
    order = _order(where, serving.use(context), proof)
    if where.every or where.plan is not None:
        return _account(context, run, where, order, spending, steps)
    if run is None or not where.to:
        raise UsageError("name a run and its target backend", fix="orchestrate migrate RUN --to BACKEND")
    if steps.dry_run and steps.output is not None:
        raise UsageError(
            "--dry-run does not compare models, so there is no report to write to --output",
            fix="orchestrate migrate ... --dry-run > FILE, or --json",
        )
    with orchestrator(context, made_by=spending.by, rates=spending.rate) as ft:
        from orchestrate.migration.migrations import PreparedMigration
        from orchestrate.migration.parity import proposal_table, report

        prepared = PreparedMigration(ft, run, order)
        if prepared.prepared is not None:
            require_used(ft, spending.rate, prepared.prepared, serving=order.use is not None)
        if steps.dry_run:
            return Output(prepared.proposal, lambda found: out.print(proposal_table(found)))
        err.print(proposal_table(prepared.proposal))
        handles = _submit(ft, prepared, spending, steps)
        if not steps.wait:
            note("to continue from here and compare, run the same command without --no-wait")
            return Output([handle.record for _, handle in handles], shown_already)
        with resumable("submitted runs keep training. To resume and compare, run the same command again"):
            found = finish(ft, prepared, handles, yes=spending.yes)
    if steps.output is not None:
        report(found).save(steps.output)
        note(f"written: {steps.output}")
    failed = any(moved.problem and proof.proof for moved in found.moved) or (steps.gate and not found.parity)
    return Output(found, lambda found: out.print(report(found).table()), int(failed))


def _account(
    context: typer.Context,
    run: str | None,
    where: MigrationOptions,
    order: MigrationOrder,
    spending: SpendingOptions,
    steps: MigrationSteps,
) -> Output[list[PlannedMove]] | Output[list[Carried]] | None:
    if run is not None or where.plan is None or where.train is not None:
        raise UsageError(
            "--all needs --plan and cannot be combined with a run or --train",
            fix="orchestrate migrate --all --plan plan.yaml --to BACKENDS",
        )
    with orchestrator(context, made_by=spending.by, rates=spending.rate) as ft:
        if where.every:
            return _write_plan(ft, where.plan, order, rates=spending.rate)
        return _carry_out_plan(ft, where.plan, order, spending, rates=spending.rate, dry=steps.dry_run)


def _order(where: MigrationOptions, use: ServingUse | None, proof: ParityOptions) -> MigrationOrder:
    from orchestrate.migration.migrations import MigrationOrder

    if proof.old not in ("auto", "live", "recorded"):
        raise UsageError(f"--old must be auto, live or recorded, got {proof.old!r}")
    named = models_given(where.model)
    return MigrationOrder(
        to=[name.strip() for name in where.to.split(",") if name.strip()],
        models=named if isinstance(named, dict) else {"default": named} if named else {},
        train=where.train,
        use=use,
        test=proof.test,
        old=proof.old,
        metrics=proof.metrics or ["auto"],
        margin=proof.margin,
        limit=proof.limit,
        sampling=Sampling(max_tokens=proof.max_tokens),
        on=proof.on,
        probes=[name.strip() for name in proof.probes.split(",") if name.strip()],
        proof=proof.proof,
        max_cost_usd=amount(proof.max_answers, "--max-answers-cost"),
    )


def _submit(
    ft: Orchestrator, prepared: PreparedMigration, spending: SpendingOptions, steps: MigrationSteps
) -> list[tuple[str, RunHandle]]:
    """Submit one run to each backend that accepts it."""
    for target in prepared.proposal.targets:
        if target.refused is not None:
            warn(f"{target.provider} is skipped: {target.refused}")
    names = prepared.ready
    if not names or prepared.prepared is None:
        raise UsageError(
            "no target backend would accept the run unchanged",
            fix="set --model BACKEND=MODEL, or choose other backends in --to",
        )
    earlier = [prepared.earlier(name, again=spending.again) for name in names]
    new = [found for found in earlier if found.may_send]
    how = SubmitOptions(spending, strict=False, watch=False)
    caps = require_agreement(ft, prepared.prepared, new, how)
    runs: list[RunHandle] = []
    failures = submit_each(ft, prepared.prepared, earlier, caps, runs, strict=False)
    if failures and not runs:
        raise typer.Exit(max(failure.exit_code for failure in failures))
    return [(handle.record.provider, handle) for handle in runs]


def finish(
    ft: Orchestrator, prepared: PreparedMigration, handles: list[tuple[str, RunHandle]], *, yes: bool
) -> Migration:
    """Wait until the new models are trained, show the price of the comparison with the old model, and
    compare."""
    from orchestrate.migration.parity import PreparedProof

    for name, handle in handles:
        if not handle.status.terminal:
            note(f"{name}: waiting for run {handle.id}. If interrupted, repeat the command to continue")
        handle.wait()
        note(f"{name}: run {handle.id} {handle.status.value}")
    with PreparedProof(ft, prepared, handles) as proof:
        plan = proof.plan()
        if plan is not None:
            print_plan(plan)
            require_unpriced(plan.unpriced, yes=yes)
        with answer_progress(sum(a.questions for a in plan.asked) if plan is not None else 0) as progress:
            return proof.run(progress)


_PRINT_EVERY = 25


def _write_plan(
    ft: Orchestrator, path: Path, order: MigrationOrder, *, rates: list[str] | None
) -> Output[list[PlannedMove]]:
    """Write the plan for all runs. Sends nothing."""
    from orchestrate.migration import account

    if not order.to:
        raise UsageError("name the target backends", fix="orchestrate migrate --all --plan F --to BACKENDS")
    if path.exists():
        # If the file already exists, raise the error before reading any data.
        account.write_plan(ft, path, [], order.margin)
    prepared: list[Prepared] = []
    planned = account.proposed(ft, order, _quiet(), prepared.append)
    if prepared:
        require_used(ft, rates, *prepared, serving=order.use is not None)
    account.write_plan(ft, path, planned, order.margin)

    def view(planned: list[PlannedMove]) -> None:
        moved = [one for one in planned if one.high_usd or (one.proposal and not one.skipped)]
        note(f"{path}: {text.count(len(planned), 'run')}, {len(moved):,} of which can be migrated")
        note(f"edit the plan, then run: orchestrate migrate --plan {path}")

    return Output(planned, view)


def _carry_out_plan(
    ft: Orchestrator,
    path: Path,
    order: MigrationOrder,
    spending: SpendingOptions,
    *,
    rates: list[str] | None,
    dry: bool,
) -> Output[list[PlannedMove]] | Output[list[Carried]]:
    """Carry out the plan within its budget. Exits with 1 if an entry failed. A dry run only proposes."""
    from orchestrate.migration.account import PreparedPlan, cost_usd
    from orchestrate.types import MIGRATED_FROM

    plan = PreparedPlan(ft, path, order, again=spending.again)
    if prepared := [step.migration.prepared for step in plan.steps if step.migration.prepared]:
        require_used(ft, rates, *prepared, serving=order.use is not None)
    shown = table("run", "to", "model", "at most", "", fold=("model",))
    for step in plan.steps:
        [target] = step.migration.proposal.targets
        high = target.quote.high_usd if target.quote is not None else None
        state = f"run {step.known.id}, {step.known.status.value}" if step.known is not None else "new"
        shown.add_row(step.entry.run, step.entry.to, target.model or "-", text.money(high), state)
    for run in plan.strays:
        shown.add_row(
            run.tags[MIGRATED_FROM],
            run.provider,
            run.model,
            text.money(cost_usd(run)),
            f"submitted earlier: {run.id}",
        )
    (out if dry and for_people(shown) else err).print(shown)
    note(f"at most {text.money(plan.high_usd)} (budget: {text.money(plan.plan.budget_usd)})")
    plan.require_budget()
    if dry:
        return Output(plan.moves, shown_already)
    if plan.new:
        agreed = partial(confirm, f"Submit {text.count(len(plan.new), 'run')}?", yes=spending.yes)
        require_consent(plan.high_usd or None, agreed, otherwise="nothing was submitted", fix="add --yes")
    with resumable(
        "submitted runs continue. To resume, run the same command again. Nothing is submitted twice"
    ):
        done = plan.run(path.with_suffix(".reports"), note)
    return Output(done, _show_carried, 1 if any(one.problem for one in done) else 0)


def _show_carried(done: list[Carried]) -> None:
    rows = table("run", "to", "new run", "status", "parity", "report", fold=("report",))
    for one in done:
        status = one.status.value if one.status is not None else "-"
        rows.add_row(
            one.run_id, one.provider, one.new_run or "-", status, one.parity or "-", one.report or "-"
        )
    out.print(rows)
    for one in done:
        if one.problem:
            warn(f"{one.run_id}: {one.problem}")
    if any(one.problem for one in done):
        note("to retry the rest, run the same command again. Nothing is submitted twice")


def _quiet() -> Callable[[str], None]:
    """Return a function that prints every 25th progress note."""
    seen = 0

    def report_every(message: str) -> None:
        nonlocal seen
        seen += 1
        if seen % _PRINT_EVERY == 0:
            note(message)

    return report_every


SHOWN = 20


@command
def take(
    context: typer.Context,
    providers: Annotated[
        list[str],
        typer.Argument(metavar="PROVIDER...", help="Backends to import jobs from, such as together."),
    ],
    since: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"], help="Import only jobs created on or after this date (YYYY-MM-DD, UTC)."
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Include failed and canceled jobs.")] = False,
    files: Annotated[
        bool, typer.Option(help="Download training and validation files, if the host allows downloads.")
    ] = True,
    details: Annotated[bool, typer.Option(help="Fetch events, metrics and checkpoints.")] = True,
) -> Output[list[AccountImport]]:
    """Import an account's past jobs into the store, with settings, files, metrics, events, checkpoints, tuned
    model and cost. Changes nothing on the host. Then lists each model's shutdown date and whether you can
    retrain the model. If interrupted, repeat the command to continue. Runs from an earlier import get the
    settings that they lack."""
    from orchestrate.migration import account_import

    at = since.replace(tzinfo=UTC) if since else None
    kept = "imported jobs are saved. To continue, run the same command again"
    with orchestrator(context) as ft, resumable(kept):
        taken: list[AccountImport] = []
        for name in ft.backends(providers):
            with work(f"importing from {name}") as report:

                def report_step(what: str, done: int, of: int, report: ProgressCallback = report) -> None:
                    report(done, of, what)

                taken.append(
                    account_import.take(
                        ft, name, since=at, every=every, details=details, files=files, on_step=report_step
                    )
                )
    return Output(taken, _show_imports, 4 if any(one.problems for one in taken) else 0)


def _show_imports(taken: list[AccountImport]) -> None:
    for one in taken:
        _show_import(one)


def _show_import(taken: AccountImport) -> None:
    found = taken.inventory
    mark_sandbox(taken.sandbox)
    for day, rows in groupby(found.rows[:SHOWN], key=lambda row: row.silent_on):
        _show_day(day, list(rows))
    if len(found.rows) > SHOWN:
        note(f"and {len(found.rows) - SHOWN:,} more. To list them: --json")
    _show_ways(found)
    if not found.rows:
        note(f"no jobs in {taken.account}: a key can only read its own project or account")
        return
    note(f"{taken.imported:,} imported, {taken.known:,} already known, from {taken.account}")
    if taken.left_out:
        jobs = text.count(taken.left_out, "job without a model is", "jobs without a model are")
        note(f"{jobs} left out. To include them: --all")
    for day, models in found.silent:
        warn(f"{taken.provider}: {text.count(models, 'tuned model')} {days.shutdown(day)}")
    if ours := len(taken.unrecovered):
        jobs = text.count(ours, "job was", "jobs were")
        warn(
            f"{jobs} created by Orchestrate. Until you recover yours, their bills don't count toward the "
            f"budget and repeats of them are not refused:  orchestrate recover -p {taken.provider}"
        )
    if taken.completed:
        runs = text.count(len(taken.completed), "run")
        note(f"{runs} that were imported earlier now have more of the host's settings")
    if taken.settings_left_out:
        warn(text.left_out(taken.settings_left_out))
    for run_id, settings in list(taken.settings_differing.items())[:5]:
        differing = ", ".join(f"{n} ({own}, {there} at the host)" for n, (own, there) in settings.items())
        warn(f"{run_id} has other settings than its job. They were kept: {differing}")
    unknown = f"; unknown for {found.uncosted:,}" if found.uncosted else ""
    note(f"total cost: {text.money(found.cost_usd)}{unknown}")
    note(f"training data: available for {text.count(found.data_here, 'run')}, lost for {found.data_gone:,}")
    for name, problem in list(taken.problems.items())[:5]:
        warn(f"{name}: {problem}")
    if taken.problems:
        partly = text.count(len(taken.problems), "job")
        note(f"{partly} not fully imported. To finish, run the same command again")
    elif found.silent:
        note("to see what to record before the shutdown: orchestrate record --calendar")


def _show_day(day: date | None, rows: list[InventoryRun]) -> None:
    title = "no shutdown date announced" if day is None else days.shutdown(day, rows[0].days_left)
    used = any(row.last_use for row in rows)  # as seen by this store: the hosts do not report it
    shown = table("run", "cost", "data", *(["last used"] if used else []), "model", fold=("model",))
    for row in rows:
        cost = text.money(row.cost_usd) if row.cost_usd is not None else "-"
        last = [f"{row.last_use:%Y-%m-%d}" if row.last_use else "-"] if used else []
        data = row.data.partition(":")[0]
        shown.add_row(row.run_id, cost, data, *last, row.tuned_model or f"none: {row.status.value}")
    out.print(title, style="bold")
    out.print(shown)
    out.print()


def _show_ways(found: Inventory) -> None:
    """Show how each base can be retrained, and which training data is lost."""
    ways = {row.model: row.rebuild for row in found.rows if row.data == "here"}
    if ways:
        shown = table("base", "can be retrained", fold=("can be retrained",))
        for model, way in sorted(ways.items())[:SHOWN]:
            shown.add_row(model, way)
        out.print(shown)
        out.print()
    lost = [row for row in found.rows if row.data.startswith("gone")]
    for row in lost[:5]:
        warn(f"{row.run_id}: the training rows are {row.data}. To retrain, supply your own copy")
    if len(lost) > 5:
        note(f"and {len(lost) - 5:,} more without training rows")
