"""Migrate an entire account: write a plan for all runs, then run it within its budget. Safe to repeat."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate import text
from orchestrate.core.files import write_whole
from orchestrate.errors import OrchestrateError, SpecError, UsageError
from orchestrate.migration import parity
from orchestrate.migration.inventory import shutdown
from orchestrate.migration.migrations import NOT_COMPARED, MigrationOrder, PreparedMigration
from orchestrate.migration.proposals import Migration, MigrationTarget, Proposal
from orchestrate.paid.limits import require_price, require_within
from orchestrate.runs.tracked import TrackedRun, tracked
from orchestrate.spec import JobSpec
from orchestrate.spec.specfile import parse, yaml_text
from orchestrate.text import joined
from orchestrate.types import MIGRATED_FROM, JobStatus, Record, Run, SubmitPhase, decoding
from orchestrate.workspace import scope_of

if TYPE_CHECKING:
    from orchestrate.runs.preparing.prepared import Prepared
    from orchestrate.workspace import Workspace

# The plan by which a whole account moves: a YAML file that is written once, edited by a person, then
# carried out.


MOST_USD = Decimal(10**12)
SKIP = "skip"
"""Value of `to` for runs that the plan skips."""
_HEAD = """\
# Written by: orchestrate migrate --all --plan {name}
# Edit this file, then run:  orchestrate migrate --plan {name}
# You can safely rerun the command. Nothing is submitted twice.
#
# to: the backend to train on, or skip.
# model: the model to train there.
# budget_usd: cost limit for training. It must cover the maximum prices of all quotes below and the cost of
#   earlier migrations of these runs. Serving and the answers for the parity tests are not included. To limit
#   the cost of each run's answers, use --max-answers-cost.
# margin: the largest accepted drop in the first metric."""


class MovePlanEntry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One entry of a plan, for one run."""

    run: str
    to: str
    model: str | None = None
    """Model to train. `None` means the proposed model."""
    test: str | None = None
    """File with held-out rows. `None` means the held-out rows of the run or its recording."""
    proof: bool = True

    @property
    def skipped(self) -> bool:
        return self.to == SKIP


class Plan(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    budget_usd: Decimal
    margin: float = 0.05
    runs: list[MovePlanEntry]


class PlannedMove(Record, frozen=True, kw_only=True):
    """Proposal for one run, or the reason why there is none. Written to the plan file as a
    `MovePlanEntry`."""

    run_id: str
    told: str
    proposal: Proposal | None = None
    skipped: str | None = None

    @property
    def high_usd(self) -> Decimal:
        target = _cheapest(self.proposal) if self.proposal is not None else None
        return target.quote.held_usd if target is not None and target.quote is not None else Decimal(0)


def write(path: Path, planned: Sequence[PlannedMove], margin: float, moved_usd: Decimal = Decimal(0)) -> None:
    """Write the migration plan to a file, with the reasons as comments. `moved_usd` is the cost so far of
    migrating these runs, in US dollars. Raises `UsageError` if the file exists, because you may have edited
    it."""
    if path.exists():
        raise UsageError(
            f"{path} already exists and may have been edited",
            fix="to run this plan, leave out --all. To write a new plan, choose another file",
        )
    budget = sum((one.high_usd for one in planned), moved_usd)
    lines = [_HEAD.format(name=path.name), f"budget_usd: {_up(budget)}", f"margin: {margin:g}", "runs:"]
    for one in planned:
        lines += _entry(one)
    write_whole(path, ("\n".join(lines) + "\n").encode())


def read(path: Path) -> Plan:
    """Read a migration plan. Raises `UsageError` for an invalid plan, with the position of the error."""
    try:
        values, _ = parse(path.read_text(encoding="utf-8"), path)
        plan = decoding.convert(values, Plan, strict=False)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}",
            fix=f"orchestrate migrate --all --plan {path} --to BACKENDS",
        ) from error
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is not a valid plan: {error}", fix="correct it, or create a new one"
        ) from error
    if not plan.budget_usd.is_finite() or not 0 <= plan.budget_usd < MOST_USD:
        raise UsageError(f"{path}: budget_usd must be an amount in US dollars, got {plan.budget_usd}")
    if not 0 < plan.margin < math.inf:
        raise UsageError(f"{path}: margin (the accepted drop) must be above 0, got {plan.margin:g}")
    twice = {entry.run for entry in plan.runs if sum(e.run == entry.run for e in plan.runs) > 1}
    if twice:
        raise UsageError(f"{path} names {text.joined(sorted(twice))} twice", fix="write one entry per run")
    return plan


def _entry(one: PlannedMove) -> list[str]:
    head = [f"  # {_comment(one.told)}"]
    proposal = one.proposal
    chosen = _cheapest(proposal) if proposal is not None else None
    if proposal is None or chosen is None:
        reasons = one.skipped or "; ".join(
            f"{t.provider}: {t.refused}" for t in (proposal.targets if proposal is not None else ())
        )
        return [*head, f"  # skipped: {_comment(reasons)}", *_fields({"run": one.run_id, "to": SKIP})]
    for target in proposal.targets:
        head += [f"  # {_comment(line)}" for line in _described(target)]
    many = len(proposal.targets) > 1
    months = text.count(proposal.months, "month")
    by = f"the cheapest to train and serve for {months}, " if many else ""
    head.append(f"  # {by}served at {_comment(proposal.traffic)}")
    head += [f"  # {_comment(note)}" for note in proposal.notes]
    held = proposal.held_out
    if held is not None:
        head.append(f"  # {_comment(f'judged by {held.rows:,} rows: {held.origin}')}")
    fields: dict[str, Any] = {"run": one.run_id, "to": chosen.provider, "model": chosen.model}
    if held is None:
        fields["proof"] = False
    return [*head, *_fields(fields)]


def _described(target: MigrationTarget) -> list[str]:
    """Return the prices of training and serving on a backend, and the settings that it drops."""
    named = target.quote.price if target.quote is not None else None
    price = "no price" if named is None else f"{text.span(named.low_usd, named.high_usd)} to train"
    monthly = (
        "no serving price" if target.monthly_usd is None else f"{text.money(target.monthly_usd)} a month"
    )
    served = f", {monthly} ({target.serving})" if target.model is not None else ""
    lines = [f"{target.provider}: {target.model}, {target.refused or price + served}"]
    if target.left_out and target.refused is None:
        each = "; ".join(f"{change.what} {change.was} ({change.why})" for change in target.left_out)
        lines.append(f"{target.provider} drops: {each}")
    return lines


def _cheapest(proposal: Proposal) -> MigrationTarget | None:
    """Return the cheapest backend for training and serving, among those that accept the run and have a price
    for training."""
    able = [
        target
        for target in proposal.targets
        if target.refused is None and target.model is not None and target.quote is not None
        if target.quote.high_usd is not None
    ]
    return min(able, key=lambda target: target.rank(proposal.months), default=None)


def _fields(values: dict[str, Any]) -> list[str]:
    lines = yaml_text(values, sort_keys=False, allow_unicode=True).splitlines()
    return [f"  {'- ' if place == 0 else '  '}{line}" for place, line in enumerate(lines)]


def _comment(words: str) -> str:
    """Return one line that YAML accepts. Hosts allow any character in the names that it may contain."""
    return text.inert(" ".join(words.split()))


def _up(usd: Decimal) -> str:
    """Round up to the next cent."""
    cents = (usd * 100).to_integral_value(rounding="ROUND_CEILING")
    return f"{cents / 100:.2f}"


MessageCallback = Callable[[str], object]
MOVED = "plan-moved"
"""Record kind for the runs that a plan has migrated. The records are keyed by a hash of the plan's path."""


class Carried(Record, frozen=True, kw_only=True):
    """The result of one entry of a plan."""

    run_id: str
    provider: str
    new_run: str | None = None
    status: JobStatus | None = None
    parity: str = ""
    """`holds`, `does not hold` or `not shown`. Empty if nothing was compared."""
    report: str | None = None
    problem: str | None = None
    """Reason why the entry is incomplete. Run the same command again to retry."""


def proposed(
    ft: Workspace,
    order: MigrationOrder,
    on_message: MessageCallback,
    priced: Callable[[Prepared], object] = lambda _: None,
) -> list[PlannedMove]:
    """Propose a migration for every successful run whose model has an announced shutdown date, earliest
    shutdown first. If several runs have the same settings and data, only the newest is migrated. Runs that
    have not ended, and models of an ending host without a known date, are listed as skipped. `priced` is
    called with each prepared spec. Works offline. Raises `ConfigError` for a backend that isn't
    configured."""
    for name in ft.backends(list(order.to)):
        ft.provider(name)  # it would be the reason to skip every run
    found: list[PlannedMove] = []
    seen: dict[tuple[str, str, str], str] = {}
    runs = ft.store.runs.matching(sandbox=scope_of(ft.settings))
    for run in _leaving(ft, runs):
        description = _description(run)
        key = (run.provider, run.dataset_digest, _settings(run))
        if run.dataset_digest and (same := seen.get(key)) is not None:
            found.append(PlannedMove(run_id=run.id, told=description, skipped=f"the same as {same}"))
            continue
        seen[key] = run.id
        found.append(_planned(ft, run, order, description, priced))
        on_message(f"{len(found):,} runs checked")
    return [*found, *_undecided(ft, runs)]


def _description(run: Run) -> str:
    return f"{run.tuned_model or run.id}: {run.model} on {run.provider}, created {run.created_at:%Y-%m-%d}"


def _settings(run: Run) -> str:
    """Return the settings by which two models differ. Compares settings because an imported run has no spec
    hash if the host reports only part of its spec. A run whose spec cannot be read equals no other run."""
    try:
        spec = JobSpec.parse(run.spec)
    except SpecError:
        return run.id
    return spec.model_dump_json(exclude={*NOT_COMPARED, "suffix"})


def _planned(
    ft: Workspace, run: Run, order: MigrationOrder, description: str, priced: Callable[[Prepared], object]
) -> PlannedMove:
    """Plan the migration of a run. A run without held-out rows can be migrated, but not compared."""
    try:
        try:
            prepared = PreparedMigration(ft, run.id, order)
        except UsageError:
            prepared = PreparedMigration(ft, run.id, replace(order, proof=False))
    except OrchestrateError as error:
        return PlannedMove(run_id=run.id, told=description, skipped=error.message)
    if prepared.prepared is not None:
        priced(prepared.prepared)
    return PlannedMove(run_id=run.id, told=description, proposal=prepared.proposal)


def _leaving(ft: Workspace, runs: Sequence[Run]) -> list[Run]:
    ended = [run for run in runs if run.status is JobStatus.SUCCEEDED]
    days = {run.id: shutdown(run.model, ft.provider(run.provider).profile) for run in ended}
    leaving = [run for run in ended if days[run.id] is not None and MIGRATED_FROM not in run.tags]
    return sorted(leaving, key=lambda run: (days[run.id], -run.created_at.timestamp()))  # pyright: ignore[reportArgumentType, reportCallIssue]  # days are known


def _undecided(ft: Workspace, runs: Sequence[Run]) -> list[PlannedMove]:
    """List what else may be lost, so that a plan never leaves out a model without a word."""
    found: list[PlannedMove] = []
    for run in runs:
        profile = ft.provider(run.provider).profile
        if profile.no_new_jobs_after is None or MIGRATED_FROM in run.tags:
            continue
        if not run.status.terminal and run.phase is SubmitPhase.SUBMITTED:
            why = f"the job is {run.status.value}. When it has ended, write a new plan"
        elif run.status is JobStatus.SUCCEEDED and shutdown(run.model, profile) is None:
            why = f"the day on which {run.provider} shuts down {run.model} is unknown"
        else:
            continue
        found.append(PlannedMove(run_id=run.id, told=_description(run), skipped=why))
    return found


@dataclass(frozen=True)
class _Step:
    entry: MovePlanEntry
    migration: PreparedMigration
    known: TrackedRun | None
    """The new run, if it already exists."""


class PreparedPlan:
    """A plan that is ready to run. Nothing new has been sent yet."""

    def __init__(self, ft: Workspace, path: Path, order: MigrationOrder, *, again: bool = False) -> None:
        """Read the plan and look up its steps. `order` says how parity is judged. Raises `UsageError` for an
        invalid plan, and for an entry that cannot be run."""
        self._ft, self._path, self._again = ft, path, again
        self.plan = read(path)
        # Read this before looking up the steps. Otherwise, a run that another process submits in between
        # would count as a stray.
        moved = self._moved()
        self.steps = [self._step(entry, order) for entry in self.plan.runs if not entry.skipped]
        ids = [step.migration.old.id for step in self.steps]
        if twice := sorted({id for id in ids if ids.count(id) > 1}):
            raise UsageError(f"{path} names {joined(twice)} twice", fix="write one entry per run")
        made = {step.known.id for step in self.steps if step.known is not None}
        self.strays = [run for run in moved if run.id not in made]
        """Runs left over from earlier versions of the plan: runs on a backend that the plan no longer names,
        runs that were retried, and runs whose entry is now skipped or deleted."""

    def _step(self, entry: MovePlanEntry, order: MigrationOrder) -> _Step:
        wanted = replace(
            order,
            to=[entry.to],
            models={entry.to: entry.model} if entry.model else {},
            test=entry.test,
            margin=self.plan.margin,
            proof=entry.proof and order.proof,
        )
        try:
            migration = PreparedMigration(self._ft, entry.run, wanted)
            _require_id(entry.run, migration.old)
            [target] = migration.proposal.targets
            if target.refused is not None:
                raise UsageError(f"{entry.to} would reject the run: {target.refused}")
            known = migration.earlier(entry.to, again=self._again).known
            return _Step(entry, migration, known and tracked(self._ft, known))
        except OrchestrateError as error:
            raise UsageError(
                f"{self._path}: {entry.run} to {entry.to}: {error.message}",
                fix=f"edit the plan, for example: to: {SKIP}",
            ) from error

    @property
    def moves(self) -> list[PlannedMove]:
        """What the plan would do for each of its runs."""
        return [
            PlannedMove(
                run_id=step.entry.run,
                told=_description(step.migration.old),
                proposal=None if step.known else step.migration.proposal,
                skipped=f"submitted earlier: {step.known.id}" if step.known else None,
            )
            for step in self.steps
        ]

    @property
    def new(self) -> list[_Step]:
        """The plan's migrations that have not been submitted yet."""
        return [step for step in self.steps if step.known is None]

    @property
    def high_usd(self) -> Decimal:
        """The maximum cost of the entire plan, including runs of its earlier versions. An existing run counts
        at its billed cost or, if it has no bill yet, at its quoted cost."""
        return sum((_high_usd(step) for step in self.steps), sum(map(cost_usd, self.strays), Decimal(0)))

    def require_budget(self) -> None:
        """Raise `OverBudget` before anything is sent if the quotes exceed the budget, and `UsageError`
        for a quote without a price."""
        for step in self.new:
            [target] = step.migration.proposal.targets
            why = target.quote.why_none or target.quote.open_end if target.quote else "no quote available"
            fix = "skip this run in the plan and migrate it separately"
            what = f"{step.entry.run} to {step.entry.to}"
            require_price(what, None if why else Decimal(0), self.plan.budget_usd, why, fix)
        require_within(
            str(self._path),
            self.high_usd,
            self.plan.budget_usd,
            what="its budget_usd",
            figure="the sum of its quotes' high ends",
            fix="skip some of its runs, choose cheaper backends, or raise budget_usd",
        )

    def run(self, folder: Path, on_message: MessageCallback) -> list[Carried]:
        """Submit the remaining runs, wait for them, compare the models, and write one report per run to
        `folder`. A failed entry doesn't stop the others. Local models are trained one at a time."""
        self.require_budget()
        self._note_moved()
        here = [step for step in self.steps if self._ft.provider(step.entry.to).profile.near]
        made: dict[str, TrackedRun] = {}
        problems: dict[str, str] = {}
        for step in [*(s for s in self.steps if s not in here), *here]:
            try:
                handle = step.known or self._submit(step)
                made[step.entry.run] = handle
                on_message(f"{step.entry.run}: run {handle.id} on {step.entry.to}, {handle.status.value}")
                if step in here:
                    handle.wait()
            except OrchestrateError as error:
                problems[step.entry.run] = error.message
        return [
            self._carried(step, made.get(step.entry.run), problems, folder, on_message) for step in self.steps
        ]

    def _moved(self) -> list[Run]:
        left = [self._ft.record(e.run).id for e in self.plan.runs if self._ft.store.runs.exists(e.run)]
        left += [str(r.data["run"]) for r in self._ft.store.history.records(MOVED, [self._mark])]
        rehearsed = {id: self._ft.record(id).sandbox for id in left if self._ft.store.runs.exists(id)}
        moved = [run for run in self._ft.store.runs.matching() if run.tags.get(MIGRATED_FROM) in rehearsed]
        return [run for run in moved if run.sandbox == rehearsed[run.tags[MIGRATED_FROM]]]

    @property
    def _mark(self) -> str:
        return hashlib.sha256(str(self._path.resolve()).encode()).hexdigest()

    def _note_moved(self) -> None:
        """Record the runs before anything is sent, so the cost of an entry that is deleted later still
        counts."""
        history = self._ft.store.history
        noted = {record.data["run"] for record in history.records(MOVED, [self._mark])}
        for step in self.steps:
            if step.migration.old.id not in noted:
                history.add_record(self._mark, MOVED, {"run": step.migration.old.id})

    def _submit(self, step: _Step) -> TrackedRun:
        [target] = step.migration.proposal.targets
        limit = target.quote.high_usd if target.quote is not None else None
        return step.migration.submit(step.entry.to, max_cost_usd=limit, again=self._again)

    def _carried(
        self,
        step: _Step,
        handle: TrackedRun | None,
        problems: dict[str, str],
        folder: Path,
        on_message: MessageCallback,
    ) -> Carried:
        found = Carried(run_id=step.migration.old.id, provider=step.entry.to)
        if handle is None:
            return _with(found, problem=problems.get(step.entry.run, "not submitted"))
        try:
            handle.wait()
            result = _known(self._ft, step, handle) or self._proved(step, handle)
        except OrchestrateError as error:
            return _with(found, new_run=handle.id, status=handle.status, problem=error.message)
        folder.mkdir(parents=True, exist_ok=True)
        report = parity.report(result).save(folder / f"{found.run_id}.html")
        moved = next(m for m in result.moved if m.run_id == handle.id)
        on_message(f"{found.run_id}: {moved.parts[0].parity if moved.parts else moved.problem}")
        return _with(
            found,
            new_run=handle.id,
            status=handle.status,
            parity=moved.parts[0].parity if moved.parts else "",
            report=str(report),
            problem=moved.problem if step.migration.order.proof else None,
        )

    def _proved(self, step: _Step, handle: TrackedRun) -> Migration:
        with parity.PreparedProof(self._ft, step.migration, [(step.entry.to, handle)]) as proof:
            return proof.run()


def _known(ft: Workspace, step: _Step, handle: TrackedRun) -> Migration | None:
    """Return the result of an earlier comparison."""
    proved = [m for m in parity.results(ft, step.migration.old.id) if m.evaluation is not None]
    fit = [m for m in proved if any(one.run_id == handle.id for one in m.moved)]
    return fit[-1] if fit else None


def _high_usd(step: _Step) -> Decimal:
    if step.known is not None and step.known.record.status.terminal:
        return cost_usd(step.known.record)
    [target] = step.migration.proposal.targets
    return target.quote.held_usd if target.quote is not None else Decimal(0)


def _moved_usd(ft: Workspace, planned: Sequence[PlannedMove]) -> Decimal:
    """Return the cost of migrating these runs before the plan existed, which the plan's budget also
    counts."""
    old = {one.run_id: ft.record(one.run_id).sandbox for one in planned if one.skipped is None}
    moved = [run for run in ft.store.runs.matching() if run.tags.get(MIGRATED_FROM) in old]
    return sum((cost_usd(run) for run in moved if run.sandbox == old[run.tags[MIGRATED_FROM]]), Decimal(0))


def cost_usd(run: Run) -> Decimal:
    """Return the maximum cost of a run in US dollars: its bill if it has ended and has one, otherwise the
    high end of its quote. A rejected run costs 0. For a sandbox run, this is what the same run would cost on
    the real host."""
    if run.phase is SubmitPhase.REFUSED:
        return Decimal(0)
    if run.bill is not None and run.status.terminal:
        return run.bill.usd
    return run.quote.held_usd if run.quote is not None else Decimal(0)


def _with(found: Carried, **more: object) -> Carried:
    from msgspec.structs import replace as with_

    return with_(found, **more)  # pyright: ignore[reportArgumentType]


def write_plan(ft: Workspace, path: Path, planned: Sequence[PlannedMove], margin: float) -> None:
    """Write the plan. See `orchestrate.migration.account.write`."""
    write(path, planned, margin, _moved_usd(ft, planned))


def _require_id(name: str, run: Run) -> None:
    """Raise `UsageError` unless the run is named by an id. A plan is run repeatedly, and by then `last` or a
    suffix could refer to the migrated run, which would be migrated and billed again."""
    if name not in (run.id, run.ref, run.job_id):
        raise UsageError(
            f"use the run's id {run.id} in a plan, because its other names can refer to a different run later"
        )
