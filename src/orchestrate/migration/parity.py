"""Test the parity of a migration: compare the old and new models on the same prompts, measure forgetting, and
build the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from orchestrate.errors import OrchestrateError, RunFailed
from orchestrate.evaluation import Item, recordings
from orchestrate.evaluation.evaluate import EvaluationPlan, read_items
from orchestrate.evaluation.held_out import MOST_LABELS
from orchestrate.migration.migrations import usable_rows
from orchestrate.migration.proposals import Migration as Migration
from orchestrate.migration.proposals import MovedModel
from orchestrate.migration.report import MigrationReport as MigrationReport
from orchestrate.migration.report import parts, same_answers
from orchestrate.migration.report import proposal_table as proposal_table
from orchestrate.paid.journal import RequestBudget
from orchestrate.paid.paid_requests import Progress
from orchestrate.runs.evaluation import verdicts
from orchestrate.runs.evaluation.held_out import EvaluationOrder, PreparedEvaluation
from orchestrate.runs.evaluation.regression import PreparedRegression, RegressionOrder
from orchestrate.runs.tracked import TrackedRun, tracked
from orchestrate.types import Evaluation, JobStatus, decoding

if TYPE_CHECKING:
    from orchestrate.evaluation.regression import Regression
    from orchestrate.migration.migrations import PreparedMigration
    from orchestrate.workspace import Workspace

KIND = "migration"
"""Record kind for the results of migrations. The store keeps them with the old run."""
_FEW_LABELS = 2


class PreparedProof:
    """A prepared comparison of the old and new models. Nothing has been sent yet. Use it as a context
    manager, like `PreparedEvaluation`."""

    def __init__(
        self, ft: Workspace, migration: PreparedMigration, runs: Sequence[tuple[str, TrackedRun]]
    ) -> None:
        """Prepare the comparison. `runs` are backends and ended runs."""
        self._ft, self._migration = ft, migration
        self._runs = [(name, handle) for name, handle in runs]
        good = [handle for _, handle in runs if handle.status is JobStatus.SUCCEEDED]
        held = migration.proposal.held_out
        self.old = ""
        names = [migration.old.id, *(handle.id for _, handle in runs)]
        self._budget = RequestBudget(
            migration.order.max_cost_usd,
            scope=f"parity of {names}",
            account=ft.store.ledger.account("parity", ft.settings),
        )
        self._evaluation: PreparedEvaluation | None = None
        if held is None or not good:
            return
        recorded = held.recording is not None
        self.old = f"{recordings.WRITTEN}{held.recording}" if recorded else migration.old.id
        order = migration.order
        wanted = EvaluationOrder(
            test=held.path,
            metrics=order.metrics,
            base=False,
            models=[self.old] if recorded else [],
            against=self.old,
            on=order.on,
            limit=order.limit,
            slices=_slices(usable_rows(held.path, migration.old, order.limit).items),
            sampling=recordings.find(ft.store, self.old).sampling if recorded else order.sampling,
            margin=-order.margin,
            parity=True,
            max_cost_usd=order.max_cost_usd,
        )
        self._evaluation = PreparedEvaluation(
            ft, [*good] if recorded else [tracked(ft, migration.old), *good], wanted, budget=self._budget
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._evaluation is not None:
            self._evaluation.__exit__(None, None, None)

    def plan(self) -> EvaluationPlan | None:
        """Plan the requests and their cost, excluding the probes for forgetting. Returns `None` if there is
        nothing to compare."""
        return self._evaluation.plan() if self._evaluation is not None else None

    def run(self, progress: Progress | None = None) -> Migration:
        """Query and compare the models, and store the result with the old run. Uses stored answers if
        available. Raises the same errors as an evaluation."""
        measured = self._evaluation.measure(progress) if self._evaluation is not None else None
        notes: list[str] = []
        forgotten = [] if measured is None else self._forgotten(notes, progress)
        # Measure forgetting before this, because it is part of the verdict.
        evaluation = None if measured is None else verdicts.joined(self._ft, [measured])[0]
        found = Migration(
            at=self._ft.store.clock.now(),
            proposal=self._migration.proposal,
            moved=tuple(self._moved(name, handle, measured, evaluation) for name, handle in self._runs),
            old=self.old,
            evaluation=evaluation,
            forgotten=tuple(forgotten),
            notes=tuple(notes),
        )
        self._ft.store.history.add_record(self._migration.old.id, KIND, found)
        return found

    def _forgotten(self, notes: list[str], progress: Progress | None) -> list[Regression]:
        order, found = self._migration.order, list["Regression"]()
        if list(order.probes) == ["none"]:
            return found
        for name, handle in self._runs:
            if handle.status is not JobStatus.SUCCEEDED:
                continue
            asked = RegressionOrder(probes=order.probes, on=order.on, max_cost_usd=order.max_cost_usd)
            try:
                with PreparedRegression(self._ft, handle, asked, budget=self._budget) as prepared:
                    found.append(prepared.run(progress))
            except OrchestrateError as error:
                notes.append(f"could not measure forgetting on {name}: {error.message}")
        return found

    def _moved(
        self, name: str, handle: TrackedRun, measured: Evaluation | None, evaluation: Evaluation | None
    ) -> MovedModel:
        """Build the result of one new model. `evaluation` is `measured` with its verdicts combined."""
        run = handle.record
        moved = MovedModel(
            provider=name,
            model=run.model,
            run_id=run.id,
            status=run.status,
            cost_usd=run.bill.usd if run.bill is not None else None,
        )
        if run.status is not JobStatus.SUCCEEDED:
            try:
                handle.check()
            except RunFailed as error:
                return msgspec.structs.replace(moved, problem=error.message)
        if measured is None or evaluation is None:
            return msgspec.structs.replace(moved, problem="the new model was not compared with the old one")
        verdict = next((v for v in evaluation.verdicts if v.contender == run.id), None)
        answered = read_items(Path(evaluation.items_file or ""))
        return msgspec.structs.replace(
            moved,
            metric=evaluation.metrics[0].name,
            parts=tuple(parts(measured, self.old, run.id, self._migration.order.margin)),
            decision=verdict.decision if verdict is not None else "",
            reasons=verdict.reasons if verdict is not None else (),
            same_answers=same_answers(answered, self.old, run.id),
            prompts=len(answered),
        )


def _slices(items: Sequence[Item]) -> list[str]:
    """Return the slices: the length of the question, and the answer if there are few different ones."""
    labels = {item.expected.strip() for item in items}
    few = _FEW_LABELS <= len(labels) <= min(MOST_LABELS, len(items) // 5)
    return ["length", *(["label"] if few else [])]


def results(ft: Workspace, run_id: str) -> list[Migration]:
    """List the results of a run's migrations, oldest first."""
    found = ft.store.history.records(KIND, [run_id])
    return [decoding.convert(record.data, Migration, strict=False) for record in found]


def report(migration: Migration) -> MigrationReport:
    """Build the report of a migration, including the items whose results changed."""
    from orchestrate.evaluation.pairs import flips

    changed = flips(migration.evaluation) if migration.evaluation is not None else []
    return MigrationReport(migration=migration, flips=tuple(changed))
