"""Run a sweep: start, score and stop its trials, turn by turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_FLOOR, Decimal
from math import isnan, nan
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from orchestrate.costing.expenses import unpriced
from orchestrate.errors import AuthenticationFailed, DataError, OrchestrateError, OverBudget, SetupError
from orchestrate.evaluation.metrics import registry
from orchestrate.paid.limits import UnknownPrice, require_within
from orchestrate.runs import submit as submission
from orchestrate.runs.evaluation.held_out import EvaluationOrder, evaluate_runs
from orchestrate.runs.preparing.prepared import Prepared, training_data
from orchestrate.runs.queue import withdraw
from orchestrate.runs.sweep import space, trial_sampler
from orchestrate.runs.sweep.space import PROVIDER, Space
from orchestrate.runs.sweep.sweeps import EVAL, LOSS, prepared_trial
from orchestrate.runs.tracked import tracked
from orchestrate.spec import JobSpec, specfile
from orchestrate.store.database import Lease
from orchestrate.store.transitions import UNSENT, left
from orchestrate.types import JobStatus, MetricPoint, Quote, Run, Search, SubmitPhase, Trial, TrialState

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace

_LEASE_S = 30.0
_SOON_S = 15.0
_DIVERGED = "diverged: its last validation loss was not a finite number (NaN or infinite)"
_NOT_FINITE = "its validation loss was not a finite number (NaN or infinite)"
_WORSE = "other trials had a lower loss at the same step"
_SIXTH = Decimal("0.000001")


@dataclass
class Searching:
    """A running sweep. `run` calls `turn` until every trial has ended. A turn is short, because it does not
    wait for training."""

    ft: Workspace
    search: Search
    stopped: str | None = None
    """Reason why the remaining trials will not be started. `None` unless the sweep was stopped."""
    waits: str | None = None
    """Reason why the next trial has not started yet. Orchestrate retries on every turn."""
    _later: float = 0.0
    _lease: Lease | None = None
    _space: Space = field(init=False)

    def __post_init__(self) -> None:
        self._space = space.of(self.search)

    @property
    def maximise(self) -> bool:
        target = self.search.target
        return target != LOSS and registry.better(target.removeprefix(EVAL)) == "higher"

    @property
    def trials(self) -> list[Trial]:
        return self.ft.store.searches.trials(self.search.id)

    def ranked(self) -> list[Trial]:
        """List the trials that have a score, best first. Trials on all rows come before trials on a fraction
        of them."""
        scored = [trial for trial in self.trials if trial.state is TrialState.SCORED]
        sign = -1 if self.maximise else 1
        return sorted(scored, key=lambda trial: (-trial.share, sign * (trial.score or 0.0), trial.number))

    def best_spec(self) -> tuple[str, str] | None:
        """Return the best trial as (backend, spec), or `None` if no trial has a score yet. The spec is YAML
        and trains on all rows."""
        for trial in self.ranked()[:1]:
            values = space.applied(self.search.spec, trial.settings)
            text = specfile.yaml_text(values, sort_keys=False, allow_unicode=True)
            return self._provider(trial), f"# The best of {self.search.id}, trial {trial.number}.\n{text}"
        return None

    def run(
        self,
        watch: Callable[[], object],
        stop: threading.Event,
        on_turn: Callable[[list[Trial]], object] | None = None,
        pause_s: float = 1.0,
    ) -> list[Trial]:
        """Run the sweep until every trial has ended. Calls `watch` to update the runs before each turn.
        Raises `LeaseHeld` while another process runs the sweep, and `LeaseLost` if another process has taken
        it over."""
        leases = self.ft.store.leases
        with leases.hold(self.search.id, _LEASE_S) as self._lease:
            while not stop.is_set():
                watch()
                leases.check(self._lease, _LEASE_S)
                self.turn()
                trials = self.trials
                if on_turn is not None:
                    on_turn(trials)
                # Once the sweep has stopped, stored trials without a run are left for a later call.
                going = [t for t in trials if t.state is TrialState.OPEN and (t.run_id or not self.stopped)]
                if not going and self._next() is None:
                    break
                stop.wait(pause_s)
        return self.trials

    def turn(self) -> None:
        """Run one pass of the sweep: score trials that have ended, stop trials that perform poorly, and start
        new ones if slots are free."""
        for trial in self.trials:
            if trial.state is TrialState.OPEN and trial.run_id is not None:
                self._check(trial)
        if self.search.prune:
            self._prune()
        while not self.stopped and self.ft.store.clock.uptime().seconds >= self._later:
            is_open = [trial for trial in self.trials if trial.state is TrialState.OPEN]
            pending = [
                trial for trial in is_open if trial.run_id is None
            ]  # left by a process that was killed
            if len(is_open) - len(pending) >= self.search.max_parallel:
                return
            trial = pending[0] if pending else self._next()
            if trial is None or not self._start(trial):
                return

    # -- which trial comes next ----------------------------------------------------------------------------

    def _next(self) -> Trial | None:
        """Return the next trial, which is not stored yet, or `None` if there is none now."""
        if self.stopped:
            return None
        trials = self.trials
        first = [trial for trial in trials if trial.parent is None]
        if len(first) < self.search.trials:
            settings = trial_sampler.next_settings(
                self._space, self.search.sampler, self.search.seed, first, maximise=self.maximise
            )
            if settings is not None:
                return Trial(number=len(trials), settings=dict(settings), share=self.search.share)
        if self.search.share == 1 or any(trial.state is TrialState.OPEN for trial in first):
            return None
        again = {trial.parent for trial in trials if trial.parent is not None}
        best = [trial for trial in self.ranked() if trial.parent is None][: self.search.survivors]
        for trial in best:
            if trial.number not in again:
                return Trial(number=len(trials), settings=trial.settings, parent=trial.number)
        return None

    def _start(self, trial: Trial) -> bool:
        """Start a trial. Returns whether the next one may start immediately."""
        if known := self._sent(trial):
            self._set(trial, run_id=known.id)
            return True
        name, self.waits = self._provider(trial), None
        try:
            prepared = prepared_trial(self.ft, self.search, dict(trial.settings), name, trial.share)
            quote = prepared.offer(name).quote
            if self._changed(trial, prepared) or not self._affordable(trial, quote):
                return False
            trial, cap = replace(trial, high_usd=quote.held_usd), self._cap(trial, prepared, quote)
            self.ft.store.searches.propose(self.search.id, trial, lease=self._lease)
            key = self._key(trial)
            whole = self.ft.store.searches.limit(self.search, trial, then="No more trials were started")
            limits = () if whole is None else (whole,)
            asked = submission.of(
                self.ft, prepared, name, key=key, limit_usd=cap, limits=limits, patient=True
            )
            run = submission.send(self.ft, prepared, name, replace(asked, lease=self._lease))
        except OverBudget as error:
            self.stopped = error.message
            return False
        except OrchestrateError as error:
            return self._not_made(trial, error)
        self._set(trial, run_id=run.id, high_usd=quote.held_usd)
        return True

    def _not_made(self, trial: Trial, error: OrchestrateError) -> bool:
        """Record a trial that could not be submitted. Returns whether the next one may start immediately."""
        made = self.ft.store.runs.of_key(self._key(trial))
        if made is not None and made.phase not in UNSENT:
            # The host rejected it or its response was lost. Either way, the run may cost something.
            self._set(trial, run_id=made.id, high_usd=trial.high_usd)
            return True
        if error.retryable:
            self.waits, self._later = error.message, self.ft.store.clock.uptime().seconds + _SOON_S
            return False
        if isinstance(error, (SetupError, AuthenticationFailed)):  # every trial would fail
            self.stopped = error.message
            return False
        if made is not None:
            withdraw(self.ft, made, error.message)
        self.ft.store.searches.propose(self.search.id, trial, lease=self._lease)
        found = error.problems[:1] if isinstance(error, DataError) else ()
        note = ": ".join([error.message, *(problem.message for problem in found)])
        self._set(trial, state=TrialState.FAILED, note=note)
        return True

    def _key(self, trial: Trial) -> str:
        """Return the idempotency key of the trial's run. An interrupted submit is found by it and never
        repeated."""
        return f"{self.search.id}-{trial.number}"

    def _sent(self, trial: Trial) -> Run | None:
        """Return the run of the trial if a process ended before it recorded it, or if a host created it after
        refusing."""
        run = self.ft.store.runs.of_key(self._key(trial))
        return None if run is None or run.phase in {*UNSENT, SubmitPhase.REFUSED} else run

    def _changed(self, trial: Trial, prepared: Prepared) -> bool:
        """Check whether the training data has changed since the sweep started, including the data of trials
        on a fraction of the rows."""
        part = space.takes_part(trial.settings, trial.share)
        whole = prepared.data if not part else training_data(self.ft, JobSpec.parse(self.search.spec))
        if whole.digest == self.search.digest:
            return False
        self.stopped = "the training data changed after the sweep started"
        return True

    def _affordable(self, trial: Trial, quote: Quote) -> bool:
        """Return whether the trial fits into the limit. An unknown price exceeds every limit."""
        what, then = "the sweep's remaining limit", "No more trials were started"
        try:
            require_within(
                quote.provider,
                quote.held_usd,
                self.search.max_cost_usd,
                taken_usd=self.spent_usd(but=trial.number),
                unknown=None if quote.refused else unpriced(quote),
                what=what,
                then=then,
            )
        except UnknownPrice as error:
            self.stopped = error.message
        except OverBudget as error:
            if not self._under_way(trial):
                self.stopped = error.message
                return False
            # Retry later: most open trials will cost less than the amount reserved for them.
            self.waits, self._later = error.message, self.ft.store.clock.uptime().seconds + _SOON_S
            return False
        return self.stopped is None

    def _cap(self, trial: Trial, prepared: Prepared, quote: Quote) -> Decimal | None:
        """Return the run's cost limit. A run that is billed hourly may take longer than expected, so each
        gets an equal part of the remaining limit, counting the runs that may still start beside it."""
        name, limit_usd = self._provider(trial), self.search.max_cost_usd
        own = prepared.offer(name).spec.max_cost_usd
        if limit_usd is None or not self.ft.provider(name).profile.place:
            return own
        made = len([other for other in self.trials if other.number != trial.number])
        wanted = self.search.trials + (self.search.survivors if self.search.share < 1 else 0)
        beside = min(self.search.max_parallel - len(self._under_way(trial)), wanted - made)
        share = (limit_usd - self.spent_usd(but=trial.number)) / max(1, beside)
        cap = max(quote.held_usd, share.quantize(_SIXTH, ROUND_FLOOR))
        return cap if own is None else min(cap, own)

    def _under_way(self, trial: Trial) -> list[Trial]:
        """Return the other trials that are in progress."""
        going = [other for other in self.trials if other.state is TrialState.OPEN and other.run_id]
        return [other for other in going if other.number != trial.number]

    def spent_usd(self, *, but: int | None = None) -> Decimal:
        """Return the known cost of the sweep's runs plus the maximum that they may still cost."""
        return self.ft.store.searches.spent_usd(self.search.id, but=but)

    def _provider(self, trial: Trial) -> str:
        return str(trial.settings.get(PROVIDER, self.search.providers[0]))

    # -- what became of a trial ----------------------------------------------------------------------------

    def _run(self, trial: Trial) -> Run | None:
        found = [] if trial.run_id is None else self.ft.store.runs.of_ids([trial.run_id])
        return found[0] if found else None

    def _check(self, trial: Trial) -> None:
        run = self._run(trial)
        if run is None:
            self._set(trial, state=TrialState.FAILED, note="the run is not in this store")
        elif run.phase in UNSENT:  # its answer was lost, and it was not made: it is sent again
            self._set(trial, run_id=None)
        elif run.status is JobStatus.SUCCEEDED:
            self._score(trial, run)
        elif why := left(run):
            self._set(trial, state=TrialState.FAILED, note=why)
        elif run.status.terminal:
            note = f"its run has {run.status.value}" + (f": {run.error.message}" if run.error else "")
            self._set(trial, state=TrialState.FAILED, note=note)

    def _score(self, trial: Trial, run: Run) -> None:
        if self.search.target == LOSS:
            points = self.ft.store.history.metrics(run.id)
            # A run that keeps its best weights reports their loss beside that of the last step.
            losses = _losses(points, "result_valid_loss") or _losses(points)
            if losses and isnan(losses[-1][1]):
                self._set(trial, state=TrialState.FAILED, note=_DIVERGED)
            elif losses:
                self._set(trial, state=TrialState.SCORED, score=losses[-1][1])
            elif self.ft.store.runs.is_closed(run.id):  # nothing more will be told
                self._set(trial, state=TrialState.FAILED, note="the host reported no validation loss")
            return
        metric = self.search.target.removeprefix(EVAL)
        try:
            order = EvaluationOrder(test=self.search.test, metrics=[metric], base=False)
            evaluation = evaluate_runs(self.ft, [run.id], order)
        except OrchestrateError as error:
            if not error.retryable:
                self._set(trial, state=TrialState.FAILED, note=f"not evaluated: {error.message}")
            return
        score = evaluation.score(evaluation.contenders[0].name)
        if score is None:
            self._set(trial, state=TrialState.FAILED, note=f"no score for {metric}")
            return
        self._set(
            trial,
            state=TrialState.SCORED,
            score=score.value,
            score_low=score.low,
            score_high=score.high,
            note=f"n = {score.n}",
        )

    def _prune(self) -> None:
        trials = [trial for trial in self.trials if trial.run_id is not None]
        for share in {trial.share for trial in trials}:
            same = [trial for trial in trials if trial.share == share]
            curves = {trial.number: self._curve(trial) for trial in same}
            for trial in same:
                if trial.state is TrialState.OPEN and trial_sampler.given_up(curves, trial.number):
                    diverged = any(map(isnan, curves[trial.number].values()))
                    self._give_up(trial, _NOT_FINITE if diverged else _WORSE)

    def _curve(self, trial: Trial) -> dict[float, float]:
        """Return the validation loss by percent of the trial's steps."""
        run = self._run(trial)
        if run is None or not run.total_steps:
            return {}
        losses = _losses(self.ft.store.history.metrics(run.id))
        return {100 * step // run.total_steps: loss for step, loss in losses if step < run.total_steps}

    def _give_up(self, trial: Trial, why: str) -> None:
        try:
            run = tracked(self.ft, trial.run_id or "").cancel()
        except OrchestrateError as error:
            self._set(trial, note=f"not stopped early: {error.message}")
            return
        if run.status is JobStatus.SUCCEEDED:  # before it could be ended
            return
        self._set(trial, state=TrialState.PRUNED, note=f"stopped early because {why}")

    def _set(self, trial: Trial, **fields: Any) -> None:
        self.ft.store.searches.change(
            self.search.id, trial.number, lambda now: replace(now, **fields), lease=self._lease
        )


def _losses(points: Sequence[MetricPoint], name: str = "valid_loss") -> list[tuple[int, float]]:
    """Return (step, validation loss) of each evaluation. The loss is NaN if it was not finite."""
    return [
        (point.step, point.values.get(name, nan))
        for point in points
        if name in point.values or name in point.not_finite
    ]
