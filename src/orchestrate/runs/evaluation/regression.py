"""Regression tests: compare a tuned model with its base on probes, your own test sets and lm-eval tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from orchestrate.data import Dataset
from orchestrate.errors import UsageError
from orchestrate.evaluation import regression as harness
from orchestrate.evaluation import regression as probes
from orchestrate.evaluation.evaluate import EvaluationPlan, plan
from orchestrate.evaluation.held_out import held_out
from orchestrate.evaluation.metrics import Context, Metric, registry
from orchestrate.evaluation.regression import (
    POINTS_MARGIN,
    ProbeResult,
    RegressionProbe,
    answer_probes,
    compared,
    probed,
    regression,
)
from orchestrate.evaluation.regression import Regression as Regression
from orchestrate.paid.journal import RequestBudget
from orchestrate.paid.paid_requests import Asking, Progress
from orchestrate.runs.evaluation import judges
from orchestrate.runs.evaluation.contenders import Contenders, other_host
from orchestrate.runs.hosting.deployment import used
from orchestrate.runs.tracked import TrackedRun, tracked
from orchestrate.text import count, meant
from orchestrate.types import Sampling, decoding

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace

KIND = "regression"


@dataclass(frozen=True, kw_only=True)
class RegressionOrder:
    """Options for a regression test. `sets` are files with held-out rows. The metric is chosen automatically
    for each file unless you specify one, as in `rows.jsonl=token_f1`."""

    probes: Sequence[str] = ("all",)
    """Names of built-in probes, or `all`. Empty for none."""
    sets: Sequence[str] = ()
    tasks: Sequence[str] = ()
    """lm-eval tasks to run, if lm-eval is installed."""
    tasks_folder: Path | None = None
    margin: float | None = None
    """Non-inferiority margin: smaller drops in score do not count as forgetting. Scores range from 0 to 1.
    Default: 0.1 for probes and sets. Probes of general text have their own margin, in nats."""
    limit: int | None = None
    """Maximum number of items per set and of documents per lm-eval task."""
    on: str = "auto"
    base_precision: Literal["16-bit", "nf4"] = "16-bit"
    """Precision of the base model on this machine."""
    max_tokens: int = 200
    max_cost_usd: Decimal | None = None
    fresh: bool = False
    skip_failed: bool = False


def probe_names() -> list[str]:
    return list(probes.names())


class PreparedRegression:
    """A prepared regression test, like `PreparedEvaluation`. Nothing has been sent yet."""

    def __init__(
        self,
        ft: Workspace,
        run: TrackedRun | str,
        order: RegressionOrder,
        *,
        budget: RequestBudget | None = None,
    ) -> None:
        """Prepare the test. `run` is a run, or RUN@CHECKPOINT. `budget` is a shared budget in place of the
        order's limit. Raises `UsageError` and `DataError` for anything that cannot be probed."""
        name, _, checkpoint = run.partition("@") if isinstance(run, str) else (run, "", "")
        self._handle = tracked(ft, name) if isinstance(name, str) else name
        self._ft, self._order, self.notes = ft, order, list[str]()
        sampling = Sampling(max_tokens=order.max_tokens)
        same = replace(order, max_cost_usd=None, skip_failed=False)
        self._asking = Asking(
            ft.settings.home / "evaluations" / "answers",
            budget
            or RequestBudget(
                order.max_cost_usd,
                scope=f"regression of {self._handle.id} {checkpoint}: {same}",
                account=ft.store.ledger.account("regression", ft.settings),
            ),
            fresh=order.fresh,
            skip_failed=order.skip_failed,
        )
        self._contenders = Contenders(ft, sampling, order.on, limit_usd=order.max_cost_usd)
        wanted = _built_in(order)
        own = [self._own(written) for written in order.sets]
        self._handle.check()
        try:
            self._tuned, self._base = self._contenders.of_run(
                self._handle, checkpoint or None, base=True, base_precision=order.base_precision
            )
        except BaseException:
            self._contenders.close()
            raise
        self.probes = [p for p in (*wanted, *own) if self._possible(p)]
        if not self.probes and not order.tasks:
            self._contenders.close()
            raise UsageError("; ".join(("no probes to run", *self.notes)), fix="--set FILE, or --probes all")

    def _possible(self, probe: RegressionProbe) -> bool:
        if probe.needs == "likelihood" and None in (self._tuned.likelihood, self._base.likelihood):
            where = self._tuned.contender.served_by
            self.notes.append(
                f"skipped {probe.name}: it needs log-probabilities, which {where} does not return"
            )
            return False
        return True

    def _own(self, written: str) -> RegressionProbe:
        path, _, metric = written.partition("=")
        found = held_out(Dataset.open(path), limit=self._order.limit)
        self.notes += [f"{path}: {count(n, 'row')} left out: {why}" for why, n in found.left_out.items()]
        context = Context(
            items=found.items,
            asking=self._asking,
            respondent=self._contenders.respondent,
            embed=partial(self._contenders.embed, asking=self._asking),
            held=lambda judge, kind: judges.known(self._ft, judge, kind),
            allow_code=self._ft.settings.allow_grader_code,
        )
        [made] = registry.make([metric or "auto"], context)
        used = made.used
        if not isinstance(made, Metric) or used.kind == "amount" or used.better == "neither":
            raise UsageError(
                f"{written}: a test set needs a metric that scores each answer, but {used.name} does not"
            )
        title = f"{count(len(found.items), 'row')} of {path}, by {made.used.name}"
        return RegressionProbe(Path(path).stem, title, found.items, made, self._margin)

    @property
    def _margin(self) -> float:
        return POINTS_MARGIN if self._order.margin is None else self._order.margin

    def __enter__(self) -> PreparedRegression:
        return self

    def __exit__(self, *_: object) -> None:
        self._contenders.close()

    def plan(self) -> EvaluationPlan:
        """Plan the questions of all probes and sets. Excludes lm-eval tasks."""
        items = [item for p in self.probes if p.needs == "answers" for item in p.items]
        return plan(items, [self._tuned, self._base], 1, self._asking)

    def run(self, progress: Progress | None = None) -> Regression:
        """Query both models, score their answers, and store the result with the run."""
        self._asking.progress = progress
        # Query the models one by one: on this machine, each may need the base in a different precision.
        sides = [answer_probes(one, self.probes, self._asking) for one in (self._tuned, self._base)]
        results = [probed(*each) for each in zip(self.probes, *sides, strict=True)]
        results += self._tasks()
        found = regression(
            self._handle.id,
            self._ft.store.clock.now(),
            (self._tuned, self._base),
            sides,
            results,
            self._asking,
            self._handle.record.spec,
            self.notes,
        )
        self._ft.store.history.add_record(self._handle.id, KIND, found)
        used(self._ft, self._handle.id, other_host(self._order.on))
        return found

    def _tasks(self) -> list[ProbeResult]:
        order = self._order
        if not order.tasks:
            return []
        each = [
            harness.run(c, order.tasks, order.tasks_folder, order.limit, self._asking)
            for c in (self._tuned, self._base)
        ]
        names = (self._tuned.contender.name, self._base.contender.name)
        return [compared(task, each[0][task], each[1][task], names, self._margin) for task in order.tasks]


def _built_in(order: RegressionOrder) -> list[RegressionProbe]:
    known = {probe.name: probe for probe in probes.built_in()}
    wanted = list(known) if "all" in order.probes else [name for name in order.probes if name != "none"]
    for name in wanted:
        if name not in known:
            raise UsageError(
                f"unknown probe {name!r}{meant(name, known)}. Known probes: all, none, {', '.join(known)}"
            )
    margin = order.margin
    found = [known[name] for name in wanted]
    return [
        p if margin is None or p.metric.used.kind == "amount" else replace(p, margin=margin) for p in found
    ]


def regressions(ft: Workspace, *run_ids: str) -> list[Regression]:
    """Return the stored regression tests of a run, oldest first."""
    return [
        decoding.convert(record.data, Regression, strict=False)
        for record in ft.store.history.records(KIND, run_ids or None)
    ]
