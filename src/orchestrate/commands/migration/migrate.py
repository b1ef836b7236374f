"""migrate: the same data trained elsewhere, with proof that the new model does what the old one did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrate.amounts import amount
from orchestrate.commands.evaluation.judge import asking_bar, tell_plan
from orchestrate.commands.terminal import completing
from orchestrate.commands.terminal.command import Output, command, shown_already
from orchestrate.commands.terminal.console import (
    err,
    goes_on,
    note,
    orchestrator,
    out,
    require_unpriced,
    warn,
)
from orchestrate.commands.terminal.options import ServingOptions, models_given
from orchestrate.commands.terminal.rates import RateOpt, require_used
from orchestrate.commands.training.submit import Carrying, SpendingOptions, require_agreement, submit_each
from orchestrate.errors import UsageError
from orchestrate.types import Sampling

if TYPE_CHECKING:
    from orchestrate.handles.run import RunHandle
    from orchestrate.service import Orchestrator
    from orchestrate.service.migration.migrating import MigrationOrder, PreparedMigration
    from orchestrate.service.migration.parity import Migration
    from orchestrate.service.records import Carried, PlannedMove, Proposal
    from orchestrate.types import Run


@dataclass(frozen=True, kw_only=True)
class Proof:
    """By what parity is judged."""

    test: Annotated[
        str | None, typer.Option("--test", help="Held-out rows; default: the run's own, or its recording's.")
    ] = None
    old: Annotated[
        str, typer.Option("--old", help="live: ask the old model; recorded: its recording; auto.")
    ] = "auto"
    metrics: Annotated[
        list[str] | None, typer.Option("--metrics", metavar="NAMES", help="By commas; the first one decides.")
    ] = None
    margin: Annotated[
        float, typer.Option(help="How much worse is still as good: 0.05 is 5 points of a hundred.")
    ] = 0.05
    limit: Annotated[int | None, typer.Option(min=1, help="Only this many rows, from the first.")] = None
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512
    on: Annotated[str, typer.Option(help="host, here or auto, as for eval.")] = "auto"
    probes: Annotated[
        str, typer.Option(metavar="NAMES", help="Of forgetting, as for regress: all, none, or by commas.")
    ] = "all"
    proof: Annotated[bool, typer.Option("--proof/--no-proof", help="Compare with the old model.")] = True
    max_answers: Annotated[
        str | None, typer.Option("--max-answers-cost", metavar="USD", help="For all answers of the proof.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How far to go."""

    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Propose, translate and quote; send nothing.")
    ] = False
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Until the new models are trained, then compare.")
    ] = True
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the report: .html, .md, .json, .txt.")
    ] = None
    gate: Annotated[bool, typer.Option("--gate", help="Exit 1 unless parity is shown. For a CI.")] = False


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where to: one run, or by a plan a whole where."""

    to: Annotated[str, typer.Option("--to", metavar="BACKENDS", help="Backends, comma-separated.")] = ""
    model: Annotated[
        list[str] | None, typer.Option("--model", help="A model, or BACKEND=MODEL, in place of the proposal.")
    ] = None
    train: Annotated[
        str | None, typer.Option("--train", metavar="FILE", help="Rows, where those of the run are gone.")
    ] = None
    every: Annotated[
        bool, typer.Option("--all", help="Every run of the store whose model falls silent; with --plan.")
    ] = False
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="With --all: write it. Without: carry it out."),
    ] = None
    rate: RateOpt = None


@command
def migrate(
    context: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="A run that succeeded.", autocompletion=completing.runs),
    ] = None,
    *,
    where: Where,
    serving: ServingOptions,
    spending: SpendingOptions,
    proof: Proof,
    steps: Steps,
) -> (
    Output[Migration]
    | Output[Proposal]
    | Output[list[Run]]
    | Output[list[PlannedMove]]
    | Output[list[Carried]]
    | None
):
    """Move a tuned model to other backends, and prove that it does what it did.

    Proposes models, tells what becomes of each setting, quotes, asks, trains, then compares old and new on
    held-out prompts. The same command goes on where it was interrupted: nothing is submitted or asked twice.
    """
    order = _order(where, serving, proof)
    if where.every or where.plan is not None:
        return _account(context, run, where, order, spending, steps)
    if run is None or not where.to:
        raise UsageError("name a run and where it is to go", fix="orchestrate migrate RUN --to BACKEND")
    with orchestrator(context, made_by=spending.by, rates=where.rate) as ft:
        from orchestrate.service.migration.migrating import PreparedMigration
        from orchestrate.service.migration.parity import report

        prepared = PreparedMigration(ft, run, order)
        if prepared.prepared is not None:
            require_used(ft, where.rate, prepared.prepared, serving=order.use is not None)
        if steps.dry_run:
            return Output(prepared.proposal, _propose)
        _propose(prepared.proposal)
        handles = _submit(ft, prepared, spending, steps)
        if not steps.wait:
            note("the same command without --no-wait goes on from here, and compares")
            return Output([handle.record for _, handle in handles], shown_already)
        with goes_on("what was submitted goes on; the same command goes on from here, and compares"):
            found = finish(ft, prepared, handles, yes=spending.yes)
    if steps.output is not None:
        report(found).save(steps.output)
        note(f"written: {steps.output}")
    failed = any(moved.problem and proof.proof for moved in found.moved) or (steps.gate and not found.parity)
    return Output(found, lambda found: out.print(report(found).table()), int(failed))


def _account(
    context: typer.Context,
    run: str | None,
    where: Where,
    order: MigrationOrder,
    spending: SpendingOptions,
    steps: Steps,
) -> Output[list[PlannedMove]] | Output[list[Carried]] | None:
    from orchestrate.commands.migration import account as migrate_account

    if run is not None or where.plan is None or where.train is not None:
        raise UsageError(
            "--all needs --plan and takes neither a run nor --train",
            fix="orchestrate migrate --all --plan plan.yaml --to BACKENDS",
        )
    with orchestrator(context, made_by=spending.by, rates=where.rate) as ft:
        if where.every:
            return migrate_account.write(ft, where.plan, order, rates=where.rate)
        else:
            return migrate_account.carry_out(
                ft,
                where.plan,
                order,
                rates=where.rate,
                yes=spending.yes,
                again=spending.again,
                dry=steps.dry_run,
            )


def _order(where: Where, serving: ServingOptions, proof: Proof) -> MigrationOrder:
    from orchestrate.service.migration.migrating import MigrationOrder

    if proof.old not in ("auto", "live", "recorded"):
        raise UsageError(f"--old takes auto, live, recorded; got {proof.old!r}")
    named = models_given(where.model)
    return MigrationOrder(
        to=[name.strip() for name in where.to.split(",") if name.strip()],
        models=named if isinstance(named, dict) else {"default": named} if named else {},
        train=where.train,
        use=serving.use(),
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


def _propose(proposal: Proposal) -> None:
    from orchestrate.service.migration.parity import proposal_table

    err.print(proposal_table(proposal))


def _submit(
    ft: Orchestrator, prepared: PreparedMigration, spending: SpendingOptions, steps: Steps
) -> list[tuple[str, RunHandle]]:
    """One run on each backend that takes it, as `submit` makes them."""
    for target in prepared.proposal.targets:
        if target.refused is not None:
            warn(f"{target.provider} is left out: {target.refused}")
    names = prepared.ready
    if not names or prepared.prepared is None:
        raise UsageError(
            "no backend would take it as it is", fix="--model BACKEND=MODEL, or other backends in --to"
        )
    earlier = [prepared.earlier(name, again=spending.again) for name in names]
    new = [found for found in earlier if found.known is None]
    how = Carrying(spending, strict=False, watch=False)
    caps = require_agreement(ft, prepared.prepared, new, how)
    runs: list[RunHandle] = []
    failures = submit_each(ft, prepared.prepared, earlier, caps, runs, strict=False)
    if failures and not runs:
        raise typer.Exit(max(failure.exit_code for failure in failures))
    return [(handle.record.provider, handle) for handle in runs]


def finish(
    ft: Orchestrator, prepared: PreparedMigration, handles: list[tuple[str, RunHandle]], *, yes: bool
) -> Migration:
    """Waits for the new models, tells what comparing costs, and compares."""
    from orchestrate.service.migration.parity import PreparedProof

    for name, handle in handles:
        if not handle.status.terminal:
            note(f"{name}: waiting for run {handle.id}; interrupted, the same command goes on")
        handle.wait()
        note(f"{name}: run {handle.id} {handle.status.value}")
    with PreparedProof(ft, prepared, handles) as proof:
        plan = proof.plan()
        if plan is not None:
            tell_plan(plan)
            require_unpriced(plan.unpriced, yes=yes)
        with asking_bar(sum(a.questions for a in plan.asked) if plan is not None else 0) as progress:
            return proof.run(progress)
