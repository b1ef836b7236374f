"""migrate --all --plan: a whole account, by a plan that a person edits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrate import text
from orchestrate.commands.terminal.command import Output
from orchestrate.commands.terminal.console import confirm, err, goes_on, note, out, table, warn
from orchestrate.commands.terminal.rates import require_used
from orchestrate.errors import UsageError

if TYPE_CHECKING:
    from orchestrate.preparing.prepared import Prepared
    from orchestrate.service import Orchestrator
    from orchestrate.service.migration.account import Carried
    from orchestrate.service.migration.migrating import MigrationOrder
    from orchestrate.service.records import PlannedMove

_TOLD_EVERY = 25


def write(
    ft: Orchestrator, path: Path, order: MigrationOrder, *, rates: list[str] | None
) -> Output[list[PlannedMove]]:
    """The plan of all runs. Nothing is sent."""
    from orchestrate.service.migration import account

    if not order.to:
        raise UsageError("say where the runs may go", fix="orchestrate migrate --all --plan F --to BACKENDS")
    if path.exists():
        # Says so before any data are read.
        account.write_plan(ft, path, [], order.margin)
    prepared: list[Prepared] = []
    planned = account.proposed(ft, order, _quiet(), prepared.append)
    if prepared:
        require_used(ft, rates, *prepared, serving=order.use is not None)
    account.write_plan(ft, path, planned, order.margin)

    def view(planned: list[PlannedMove]) -> None:
        moved = [one for one in planned if one.high_usd or (one.proposal and not one.skipped)]
        note(f"{path}: {text.count(len(planned), 'run')}, of which {len(moved):,} can be moved")
        note(f"edit it, then: orchestrate migrate --plan {path}")

    return Output(planned, view)


def carry_out(
    ft: Orchestrator,
    path: Path,
    order: MigrationOrder,
    *,
    rates: list[str] | None,
    yes: bool,
    again: bool,
    dry: bool,
) -> Output[list[Carried]] | None:
    """What the plan says, within its budget; exit code 1 where an entry is not done."""
    from orchestrate.service.migration.account import PreparedPlan, cost_usd
    from orchestrate.service.migration.migrating import TAG

    plan = PreparedPlan(ft, path, order, again=again)
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
            run.tags[TAG], run.provider, run.model, text.money(cost_usd(run)), f"made before: {run.id}"
        )
    err.print(shown)
    note(f"at most {text.money(plan.high_usd)} of the budget of {text.money(plan.plan.budget_usd)}")
    plan.require_budget()
    if dry:
        return None
    if plan.new and not confirm(f"Submit {text.count(len(plan.new), 'run')}?", yes=yes):
        raise UsageError("nothing was submitted: nobody agreed to the price", fix="add --yes")
    with goes_on("what was submitted goes on; the same command goes on from here, and submits nothing twice"):
        done = plan.run(path.with_suffix(".reports"), note)
    return Output(done, _show, 1 if any(one.problem for one in done) else 0)


def _show(done: list[Carried]) -> None:
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
        note("the same command goes on with those that are not done; nothing is submitted twice")


def _quiet() -> Callable[[str], None]:
    """Tells now and then."""
    told = 0

    def tell(words: str) -> None:
        nonlocal told
        told += 1
        if told % _TOLD_EVERY == 0:
            note(words)

    return tell
