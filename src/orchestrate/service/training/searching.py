"""Searches of settings: trials are runs as any other, each made once, within one budget.

    search = searching.begin(ft, spec, ["local"], Order(space=...))
    searching.Searching(ft, search).run()

The same search begun again goes on: its id is made of what is searched.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from orchestrate import specfile
from orchestrate.errors import DataError, OrchestrateError, OverBudget, UsageError
from orchestrate.evaluation.metrics import registry
from orchestrate.keys import is_masked, masked
from orchestrate.search import sampling, space
from orchestrate.search.space import PROVIDER, Space
from orchestrate.spec import JobSpec
from orchestrate.types import Feature, JobStatus, MetricPoint, Run, Search, SubmitPhase, Trial, TrialState

if TYPE_CHECKING:
    from orchestrate.prepared import Prepared
    from orchestrate.service.orchestrator import Orchestrator

LOSS = "validation_loss"
_EVAL = "eval:"
_LEASE_S = 30.0
_MOST_PRICED = 32
"""Combinations of a search that are priced before it begins; of more, so many of them."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is searched for, and within which limits."""

    space: Space
    sampler: str = "grid"
    trials: int = 0
    """At most; of a grid all, without a number."""
    target: str = LOSS
    """`validation_loss`, or `eval:METRIC` on held-out rows."""
    test: str | None = None
    share: float = 1.0
    survivors: int = 0
    prune: bool = False
    max_parallel: int = 1
    max_cost_usd: Decimal | None = None
    seed: int = 0


class Price(NamedTuple):
    """Of a whole search before it begins, in US dollars; the high end holds whichever trials are made."""

    expected_usd: Decimal
    high_usd: Decimal
    unpriced: list[str]
    """Combinations without a price, and why."""


def begin(ft: Orchestrator, spec: JobSpec, providers: Sequence[str], order: Order) -> Search:
    """Writes a search down, or finds the one that is the same. Nothing is sent. Raises `UsageError`."""
    _require(order)
    values = specfile.anchored(spec).asked()
    if is_masked(masked(values)):
        raise UsageError("the spec holds a secret, which a search must not keep")
    names = ft.backends(order.space.choices.get(PROVIDER, ()) or providers)
    total = len(order.space.combinations())
    wanted = min(order.trials or total, total) if order.sampler == "grid" else order.trials or 20
    survivors = order.survivors or (max(1, wanted // 3) if order.share < 1 else 0)
    first = JobSpec.parse(space.applied(values, {}))
    search = Search(
        id="",
        created_at=ft.store.clock.now(),
        spec=values,
        providers=tuple(names),
        choices={name: tuple(choice) for name, choice in order.space.choices.items()},
        ranges=dict(order.space.ranges),
        sampler=order.sampler,
        trials=wanted,
        seed=order.seed,
        target=order.target,
        test=order.test,
        digest=ft.data(first).digest,
        share=order.share,
        survivors=survivors,
        prune=order.prune,
        max_parallel=order.max_parallel,
        max_cost_usd=order.max_cost_usd,
    )
    for name in names:
        _require_target(ft, first, name, search)
    search = replace(search, id=f"sweep-{_digest(search)}")
    ft.store.searches.add(search)
    return replace(search, max_parallel=order.max_parallel, max_cost_usd=order.max_cost_usd)


def _digest(search: Search) -> str:
    """Of what is searched, not of the limits: with more money the same search goes on."""
    limits = ("id", "created_at", "max_parallel", "max_cost_usd")
    named = {name: value for name, value in search.to_dict().items() if name not in limits}
    return hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()[:10]


def _require(order: Order) -> None:
    if order.sampler not in sampling.SAMPLERS:
        raise UsageError(f"--sampler takes {', '.join(sampling.SAMPLERS)}; got {order.sampler!r}")
    if order.sampler == "grid" and order.space.ranges:
        raise UsageError("a grid has no ranges", fix="--sampler tpe or random, or --grid NAME=VALUES")
    if not 0 < order.share <= 1:
        raise UsageError(f"--first-share is above 0 and at most 1; got {order.share:g}")
    if order.survivors and order.share == 1:
        raise UsageError("--survivors are trained again on all rows: it goes with --first-share")
    if order.target.startswith(_EVAL):
        metric = order.target.removeprefix(_EVAL)
        registry.check([metric])
        if registry.better(metric) == "neither":
            raise UsageError(f"{metric} has no good end: it cannot be a target")
    elif order.target != LOSS:
        raise UsageError(f"--target is {LOSS} or eval:METRIC; got {order.target!r}")


def _require_target(ft: Orchestrator, spec: JobSpec, name: str, search: Search) -> None:
    """What a target needs. Raises `UsageError`."""
    if search.target == LOSS and spec.validation is None:
        raise UsageError(f"the target {LOSS} needs validation data: --validation FILE")
    if search.target != LOSS and (search.test or spec.test or spec.validation) is None:
        raise UsageError(f"the target {search.target} needs held-out rows: --test FILE")
    features = ft.provider(name).features
    if search.prune and Feature.CANCEL not in features:
        raise UsageError(f"{name} cannot end a run early, as --prune needs")


def price(ft: Orchestrator, search: Search) -> Price:
    """Before anything is sent. Without evaluations, whose answers cost as `eval` says. Offline."""
    combinations = space.of(search).combinations()
    ends = {name: high for name, (_, high, _) in search.ranges.items()}
    expected, high, full = list[Decimal](), list[Decimal](), list[Decimal]()
    unpriced: list[str] = []
    for settings in combinations[:_MOST_PRICED]:
        for name in _backends(search, settings):
            each = [_prepared(ft, search, {**settings, **ends}, name, share) for share in {search.share, 1.0}]
            quotes = [prepared.offer(name).quote for prepared in each]
            if why := next((quote.unavailable for quote in quotes if quote.unavailable), None):
                unpriced.append(f"{name} {_words(settings)}: {why}")
                continue
            small = min(quotes, key=lambda quote: quote.high_usd)
            expected.append(small.counted_usd)
            high.append(small.high_usd)
            full.append(max(quote.high_usd for quote in quotes))
    if not high:
        return Price(Decimal(0), Decimal(0), unpriced)
    each_usd, most_usd = sum(expected, Decimal(0)) / len(expected), max(high)
    again = search.survivors * max(full)
    if search.sampler == "grid" and len(combinations) == search.trials == len(high):
        return Price(sum(expected, Decimal(0)) + again, sum(high, Decimal(0)) + again, unpriced)
    return Price(each_usd * search.trials + again, most_usd * search.trials + again, unpriced)


def _backends(search: Search, settings: dict[str, Any]) -> list[str]:
    return [settings[PROVIDER]] if PROVIDER in settings else list(search.providers[:1])


def _prepared(
    ft: Orchestrator, search: Search, settings: dict[str, Any], provider: str, share: float
) -> Prepared:
    values = space.applied(search.spec, settings, share, search.seed)
    values["tags"] = {**(values.get("tags") or {}), "sweep": search.id or "new"}
    return ft.prepare(JobSpec.parse(values), provider)


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


@dataclass
class Searching:
    """A search as it is carried out. Turns are short: runs train elsewhere."""

    ft: Orchestrator
    search: Search
    stopped: str | None = None
    """Why no further trial is made, where that is not because all were."""
    _space: Space = field(init=False)

    def __post_init__(self) -> None:
        self._space = space.of(self.search)

    @property
    def maximise(self) -> bool:
        target = self.search.target
        return target != LOSS and registry.better(target.removeprefix(_EVAL)) == "higher"

    @property
    def trials(self) -> list[Trial]:
        return self.ft.store.searches.trials(self.search.id)

    def ranked(self) -> list[Trial]:
        """Those with a score, the best first: on all rows before those on a share of them."""
        scored = [trial for trial in self.trials if trial.state is TrialState.SCORED]
        sign = -1 if self.maximise else 1
        return sorted(scored, key=lambda trial: (-trial.share, sign * (trial.score or 0.0), trial.number))

    def best_spec(self) -> tuple[str, str] | None:
        """The backend and the spec, as YAML, of the best trial; on all rows."""
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
        """Until every trial has ended. `watch` brings the runs up to date before each turn. Raises
        `LeaseHeld` while another process carries it out."""
        with self.ft.store.leases.hold(self.search.id, _LEASE_S):
            while not stop.is_set():
                watch()
                self.turn()
                trials = self.trials
                if on_turn is not None:
                    on_turn(trials)
                if all(trial.state is not TrialState.OPEN for trial in trials) and self._next() is None:
                    break
                stop.wait(pause_s)
        return self.trials

    def turn(self) -> None:
        """Scores what has ended, gives up what falls behind, and makes trials while there is room."""
        for trial in self.trials:
            if trial.state is TrialState.OPEN and trial.run_id is not None:
                self._look(trial)
        if self.search.prune:
            self._prune()
        while True:
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
        """The next trial, not yet written down; `None` when there is none, or none for now."""
        if self.stopped:
            return None
        trials = self.trials
        first = [trial for trial in trials if trial.parent is None]
        if len(first) < self.search.trials:
            settings = sampling.next_settings(
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
        """Whether another one may follow at once."""
        name = self._provider(trial)
        try:
            prepared = _prepared(self.ft, self.search, dict(trial.settings), name, trial.share)
            high_usd = prepared.offer(name).quote.high_usd
            if self._changed(trial, prepared) or not self._affordable(trial, name, high_usd):
                return False
            trial = replace(trial, high_usd=high_usd)
            self.ft.store.searches.propose(self.search.id, trial)
            key = f"{self.search.id}-{trial.number}"
            run = self.ft.submit(prepared, name, idempotency_key=key, again=True).record
        except OverBudget as error:
            self.stopped = error.message
            return False
        except OrchestrateError as error:
            if error.retryable:
                return False
            self.ft.store.searches.propose(self.search.id, trial)
            found = error.problems[:1] if isinstance(error, DataError) else ()
            note = ": ".join([error.message, *(problem.message for problem in found)])
            self._set(trial, state=TrialState.FAILED, note=note)
            return True
        self._set(trial, run_id=run.id, high_usd=high_usd)
        return True

    def _changed(self, trial: Trial, prepared: Prepared) -> bool:
        if trial.share < 1 or prepared.data.digest == self.search.digest:
            return False
        self.stopped = "the training data have changed since the search began"
        return True

    def _affordable(self, trial: Trial, name: str, high_usd: Decimal) -> bool:
        limit_usd = self.search.max_cost_usd
        if limit_usd is None:
            return True
        left = limit_usd - self.spent_usd(but=trial.number)
        if high_usd <= left:
            return True
        left_of = "what is left of the sweep's limit,"
        self.stopped = OverBudget(
            name, high_usd, left, what=left_of, then="no further trial was made"
        ).message
        return False

    def spent_usd(self, *, but: int | None = None) -> Decimal:
        """What its runs have cost, as far as that is known, and may cost yet."""
        total = Decimal(0)
        for trial in self.trials:
            if trial.number != but:
                total += _cost(self._run(trial), trial)
        return total

    def _provider(self, trial: Trial) -> str:
        return str(trial.settings.get(PROVIDER, self.search.providers[0]))

    # -- what became of a trial ----------------------------------------------------------------------------

    def _run(self, trial: Trial) -> Run | None:
        found = [] if trial.run_id is None else self.ft.store.runs.of_ids([trial.run_id])
        return found[0] if found else None

    def _look(self, trial: Trial) -> None:
        run = self._run(trial)
        if run is None:
            self._set(trial, state=TrialState.FAILED, note="its run is not in this store")
        elif run.status is JobStatus.SUCCEEDED:
            self._score(trial, run)
        elif run.status.terminal:
            note = f"its run has {run.status.value}" + (f": {run.error.message}" if run.error else "")
            self._set(trial, state=TrialState.FAILED, note=note)

    def _score(self, trial: Trial, run: Run) -> None:
        if self.search.target == LOSS:
            losses = _losses(self.ft.store.history.metrics(run.id))
            if losses:
                self._set(trial, state=TrialState.SCORED, score=losses[-1][1])
            elif self.ft.store.runs.is_closed(run.id):  # nothing more will be told
                self._set(trial, state=TrialState.FAILED, note="its host told no validation loss")
            return
        metric = self.search.target.removeprefix(_EVAL)
        try:
            evaluation = self.ft.evaluate([run.id], self.search.test, metrics=[metric], base=False)
        except OrchestrateError as error:
            if not error.retryable:
                self._set(trial, state=TrialState.FAILED, note=f"not evaluated: {error.message}")
            return
        score = evaluation.score(evaluation.contenders[0].name)
        if score is None:
            self._set(trial, state=TrialState.FAILED, note=f"{metric} has no score for it")
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
                if trial.state is TrialState.OPEN and sampling.given_up(curves, trial.number):
                    self._give_up(trial)

    def _curve(self, trial: Trial) -> dict[float, float]:
        """Validation loss by the per cent of its steps."""
        run = self._run(trial)
        if run is None or not run.total_steps:
            return {}
        losses = _losses(self.ft.store.history.metrics(run.id))
        return {100 * step // run.total_steps: loss for step, loss in losses if step < run.total_steps}

    def _give_up(self, trial: Trial) -> None:
        try:
            run = self.ft.run(trial.run_id or "").cancel()
        except OrchestrateError as error:
            self._set(trial, note=f"not ended early: {error.message}")
            return
        if run.status is JobStatus.SUCCEEDED:  # before it could be ended
            return
        self._set(trial, state=TrialState.PRUNED, note="ended early: others were better at the same step")

    def _set(self, trial: Trial, **fields: Any) -> None:
        self.ft.store.searches.change(self.search.id, trial.number, lambda now: replace(now, **fields))


def _losses(points: Sequence[MetricPoint]) -> list[tuple[int, float]]:
    return [(point.step, point.values["valid_loss"]) for point in points if "valid_loss" in point.values]


def _cost(run: Run | None, trial: Trial) -> Decimal:
    """What a trial has cost, or may yet; the play money of a sandbox counts as money does."""
    if run is None or run.phase is SubmitPhase.REFUSED:
        return trial.high_usd if trial.state is TrialState.OPEN else Decimal(0)
    return run.bill.usd if run.bill is not None and run.status.terminal else trial.high_usd
