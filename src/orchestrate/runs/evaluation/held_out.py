"""Evaluate runs, base models and other models on held-out rows. Evaluations are planned first, then run, then
stored with the runs."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from msgspec.structs import replace

from orchestrate import evaluation as rubric
from orchestrate.core.files import private_folder
from orchestrate.costing import Traffic
from orchestrate.data import Dataset
from orchestrate.data.dataset_reader import applicable_columns, columns_if_matching
from orchestrate.data.files import require_writable
from orchestrate.errors import OrchestrateError, UsageError
from orchestrate.evaluation import contenders as making
from orchestrate.evaluation import recordings
from orchestrate.evaluation.contenders import Candidate
from orchestrate.evaluation.evaluate import (
    ContenderPlan,
    EvaluationPlan,
    EvaluationTerms,
    Subject,
    evaluate,
    plan,
    require_terms,
)
from orchestrate.evaluation.held_out import HeldOut, held_out
from orchestrate.evaluation.judges import PairJudge, ScoreJudge
from orchestrate.evaluation.metrics import Context, registry
from orchestrate.evaluation.pairs import flips
from orchestrate.evaluation.verdict import Demand
from orchestrate.paid.journal import RequestBudget
from orchestrate.paid.limits import require_within
from orchestrate.paid.paid_requests import Asking, Progress
from orchestrate.reports import EvaluationReport
from orchestrate.reports.evaluations import format_of
from orchestrate.reports.judgement import repeat_note
from orchestrate.runs.evaluation import judges, verdicts
from orchestrate.runs.evaluation.comparison import paired_with_earlier
from orchestrate.runs.evaluation.contenders import PLACES, BasePrecision, Contenders, other_host
from orchestrate.runs.hosting.deployment import used
from orchestrate.runs.tracked import TrackedRun, tracked
from orchestrate.settings import is_masked, masked_url
from orchestrate.spec import renaming_of
from orchestrate.text import count
from orchestrate.types import Evaluation, Sampling
from orchestrate.types.serving import AdapterCost

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class EvaluationOrder:
    """Options of an evaluation: models, rows, metrics, sampling and limits."""

    test: str | Path | None = None
    """Held-out rows. Default: the test file of the first run."""
    columns: Mapping[str, str] | None = None
    """Maps fields to columns of the rows, like `--map`. Default: the spec's mapping if the rows have these
    columns."""
    metrics: Sequence[str] = ("auto",)
    """Metrics from `orchestrate.evaluation.metrics.registry`. The first one decides the verdict."""
    base: bool = True
    """True to also evaluate the base model of each run."""
    base_precision: BasePrecision = "16-bit"
    """Precision of the base model on this machine. `both` evaluates the base model in 16 bits and in NF4 (4
    bits), to measure the effect of quantization."""
    shots: int = 0
    """Number of few-shot examples. If above 0, the base model is also evaluated with this many training
    examples in the prompt."""
    examples: str | None = None
    """File with example rows for few-shot prompts to `models`."""
    models: Sequence[str] = ()
    """Other models to evaluate: `MODEL`, `HOST=MODEL` or `https://ADDRESS/v1=MODEL`, each optionally followed
    by ` as NAME`."""
    key_variable: str | None = None
    """Environment variable that contains the key for models at a URL. If not set, no key is sent."""
    against: str | None = None
    """Contender that the others are compared with. By default, each tuned model is compared with its own base
    model, which gets few-shot examples if there are any."""
    on: str = "auto"
    """Where to run the models: `host`, `here`, `auto`, or a backend on which an adapter was deployed."""
    limit: int | None = None
    cluster: str | None = None
    """Column that groups related rows."""
    slices: Sequence[str] = ()
    """Slices to score separately: column names, `length`, `label`."""
    sampling: Sampling = field(default_factory=Sampling)
    target: float | None = None
    margin: float = 0.0
    rubric: Path | None = None
    """Rubric for judges, as YAML. See `orchestrate.evaluation`."""
    rated: str | None = None
    """Human ratings to compare judges with: a file or a review id."""
    traffic: str | None = None
    """Expected traffic, such as "20k req/day, 900 in, 150 out", to compute the cost per answer on hosts that
    bill hours instead of tokens."""
    max_cost_usd: Decimal | None = None
    """Cost limit for all answers of this evaluation, including the judges' answers."""
    fresh: bool = False
    """True to ignore stored answers and query the models again, for example to detect whether the host
    changed a model."""
    skip_failed: bool = False
    """True to count questions that get no answer as failed, and continue."""
    parity: bool = False
    """True to test whether each of the other models can replace the reference model (`against`)."""


class PreparedEvaluation:
    """An evaluation that is ready to start. Nothing has been sent yet. Use it as a context manager: on exit,
    it stops the processes it started on this machine."""

    def __init__(
        self,
        ft: Workspace,
        runs: Sequence[TrackedRun | str],
        order: EvaluationOrder,
        *,
        budget: RequestBudget | None = None,
    ) -> None:
        registry.check(order.metrics)
        if (host := other_host(order.on)) is not None:
            try:
                ft.provider(host)
            except UsageError as error:
                places = ", ".join(PLACES)
                raise UsageError(f"--on must be one of {places} or a backend: {error.message}") from error
        if not runs and not order.models:
            raise UsageError("choose a run or a --model to evaluate", fix="list runs with: orchestrate runs")
        if order.sampling.samples > 1 and order.sampling.temperature == 0:
            raise UsageError(
                "at temperature 0 all samples are identical", fix="use --temperature 0.7, or a single sample"
            )
        self._ft, self._order = ft, order
        named = [_named(ft, run) for run in runs]
        handles = [handle for handle, _ in named]
        test = _test_file(order.test, handles)
        columns = order.columns
        if columns is None and handles:
            columns = _renaming(handles[0], test, named=order.test is None)
        dataset = Dataset.open(test, columns=columns)
        self._subject = _subject(dataset, order)
        self._handles = handles
        for handle in self._handles:
            handle.check()
        self._asking = Asking(
            ft.settings.home / "evaluations" / "answers",
            budget
            or RequestBudget(
                order.max_cost_usd,
                scope=_scope(runs, dataset.digest, order),
                account=ft.store.ledger.account("evaluation", ft.settings),
            ),
            fresh=order.fresh,
            skip_failed=order.skip_failed,
        )
        self._contenders = Contenders(
            ft,
            order.sampling,
            order.on,
            order.key_variable,
            stream=registry.needs(order.metrics, "stream"),
            limit_usd=order.max_cost_usd,
        )
        try:
            self._prepare(named)
        except BaseException:
            self._contenders.close()
            raise

    def _prepare(self, named: Sequence[tuple[TrackedRun, str | None]]) -> None:
        order, items = self._order, self._subject.items
        candidates: dict[str, Candidate] = {}
        own: dict[str, str] = {}
        for handle, checkpoint in named:
            tuned, *bases = self._contenders.of_run(
                handle,
                checkpoint,
                base=order.base or order.shots > 0,
                base_precision=order.base_precision,
            )
            _add(candidates, tuned)
            plain = [_add(candidates, base) for base in bases if order.base]
            if plain:
                own[tuned.contender.name] = plain[0]
                own |= dict.fromkeys(plain[1:], plain[0])
            if bases and order.shots:
                shown = making.with_shots(bases[0], self._examples_of(handle), order.shots)
                own[tuned.contender.name] = _add(candidates, shown)
        for model in order.models:
            _add(candidates, plain := self._contenders.of_model(model))
            if order.examples is not None and order.shots:
                examples = self._examples(order.examples, order.columns)
                _add(candidates, making.with_shots(plain, examples, order.shots))
        per_hour = None if order.traffic is None else Traffic.parse(order.traffic).requests_per_day / 24
        self.candidates = [making.at_traffic(one, per_hour) for one in candidates.values()]
        asked_by = rubric.read(order.rubric)
        context = Context(
            items=items,
            asking=self._asking,
            respondent=self._contenders.respondent,
            embed=partial(self._contenders.embed, asking=self._asking),
            rubric=asked_by,
            held=judges.held_against(self._ft, order.rated, asked_by),
            allow_code=self._ft.settings.allow_grader_code,
        )
        self._terms = EvaluationTerms(
            metrics=registry.make(order.metrics, context),
            sampling=order.sampling,
            rivals=_rivals(list(candidates), own, order.against),
            demand=Demand(order.target, order.margin),
            parity=order.parity,
        )
        require_terms(self._terms)
        self._judges = [m for m in self._terms.metrics if isinstance(m, ScoreJudge | PairJudge)]
        if order.rated is not None and not self._judges:
            raise UsageError(
                "--calibrate compares a judge with human ratings, but none of the metrics is a judge",
                fix="use --metrics judge:MODEL or judge_pair:MODEL",
            )

    def _examples_of(self, handle: TrackedRun) -> tuple[making.Message, ...]:
        train = handle.record.spec.get("train")
        if not isinstance(train, str) or is_masked(train):
            raise UsageError(
                f"--shots selects examples from training rows, but those of run {handle.id} are unknown"
            )
        return self._examples(train, _renaming(handle, train))

    def _examples(self, train: str, columns: Mapping[str, str] | None) -> tuple[making.Message, ...]:
        rows = held_out(Dataset.open(train, columns=columns), limit=10_000)
        wanted, asked = self._order.shots, self._subject.items
        there = len(making.examples_of(rows.items, asked))
        if there < wanted:
            raise UsageError(
                f"--shots is {wanted}, but {train} has only {count(there, 'usable row')}",
                fix=f"--shots {there}" if there else "leave out --shots",
            )
        return making.shots_of(rows.items, wanted, asked, self._order.sampling.seed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._contenders.close()

    def plan(self) -> EvaluationPlan:
        """Plan the evaluation: its questions, their cost, and the smallest difference it can detect."""
        samples, items = self._order.sampling.samples, self._subject.items
        found = plan(items, self.candidates, samples, self._asking)
        sides = {"score": len(self.candidates), "pair": 2 * len(self._terms.rivals)}
        asked = [
            ContenderPlan(
                contender=judge.used.name,
                questions=len(items) * samples * sides[judge.kind],
                kept=0,
                expected_usd=judge.estimate([*items] * samples * sides[judge.kind]),
                high_usd=judge.estimate([*items] * samples * sides[judge.kind], most=True),
                unpriced=judge.judge.unpriced,
            )
            for judge in self._judges
        ]
        return replace(found, asked=(*found.asked, *asked))

    def run(self, progress: Progress | None = None) -> Evaluation:
        """Query and score the contenders. The verdicts also take into account other stored results of the
        runs, such as regression tests. Raises the same errors as `measure`."""
        [found] = verdicts.joined(self._ft, [self.measure(progress)])
        return found

    def measure(self, progress: Progress | None = None) -> Evaluation:
        """Query and score the contenders, continuing an interrupted evaluation. The verdicts are based on
        this evaluation alone. Raises `OverBudget` before anything is sent if the expected price is above the
        limit, and during the evaluation if the next answer could exceed it."""
        plan, limit = self.plan(), self._order.max_cost_usd
        expected = plan.expected_usd
        if expected is not None:
            require_within("this evaluation", expected, limit, figure="the expected price", fix=_CHEAPER)
        self._asking.progress = progress
        id = f"eval-{self._ft.store.clock.now():%Y%m%d}-{secrets.token_hex(4)}"
        folder = private_folder(self._ft.settings.home / "evaluations" / id)
        found = evaluate(
            id, self._subject, self.candidates, self._terms, self._asking, folder / "items.jsonl"
        )
        if self._order.fresh:
            found = replace(found, notes=(*found.notes, *self._repeated_answers(found)))
        found = self._with_adapter_costs(found, {a.contender for a in plan.asked if a.kept < a.questions})
        self._ft.store.history.add_evaluation(found)
        for handle in self._handles:
            used(self._ft, handle.id, other_host(self._order.on))
        return found

    def _with_adapter_costs(self, found: Evaluation, anew: set[str]) -> Evaluation:
        """Add the costs of adapters that answered on this machine together with their base. If all answers of
        a model are from earlier evaluations (it is not in `anew`), its cost is also taken from there, and the
        model is not loaded."""
        costs: list[AdapterCost] = []
        notes: list[str] = []
        for one in self.candidates if any(c.kind == "base" for c in found.contenders) else ():
            name, run = one.contender.name, one.contender.run_id
            if one.adapter_cost is None:
                continue
            if name not in anew:
                earlier = self._ft.store.history.evaluations(run or "")
                costs += [c for e in earlier for c in e.adapter_costs if c.model == name][-1:]
                continue
            try:
                measured = one.adapter_cost(name)
            except OrchestrateError as error:
                notes.append(f"{name}: could not measure the latency that its adapter adds: {error.message}")
            else:
                costs += [] if measured is None else [measured]
        return replace(found, adapter_costs=tuple(costs), notes=(*found.notes, *notes))

    def _repeated_answers(self, found: Evaluation) -> Iterator[str]:
        """Compare new answers with the earlier ones, for contenders that were queried again."""
        earlier = self._ft.store.history.evaluations()
        for contender in found.contenders:
            pairing = paired_with_earlier(earlier, found, contender.name)
            if pairing is not None:
                yield repeat_note(contender.name, pairing)


def _scope(runs: Sequence[TrackedRun | str], digest: str, order: EvaluationOrder) -> str:
    names = [run if isinstance(run, str) else run.id for run in runs]
    same = dataclasses.replace(order, max_cost_usd=None, skip_failed=False)
    return f"evaluation of {names} on {digest}: {same}"


_CHEAPER = "raise --max-cost, or evaluate fewer rows with --limit"


def _named(ft: Workspace, run: TrackedRun | str) -> tuple[TrackedRun, str | None]:
    """Split `RUN` or `RUN@CHECKPOINT` into the run and the checkpoint."""
    if not isinstance(run, str):
        return run, None
    name, at, checkpoint = run.partition("@")
    if at and not checkpoint:
        raise UsageError(f"{run} has no checkpoint name after the @", fix=f"orchestrate checkpoints {name}")
    return tracked(ft, name), checkpoint or None


def _test_file(test: str | Path | None, handles: Sequence[TrackedRun]) -> str | Path:
    if test is not None:
        return test
    path = handles[0].record.spec.get("test") if handles else None
    if path is None:
        why = "the spec has no test file" if handles else "models passed with --model have no test file"
        raise UsageError(f"choose the held-out rows: {why}", fix="orchestrate eval RUN --test FILE")
    if is_masked(path):
        raise UsageError(
            "the URL of the spec's test file contains credentials, which are not stored",
            fix=f"choose the held-out rows: orchestrate eval {handles[0].id} --test FILE",
        )
    return str(path)


def _subject(dataset: Dataset, order: EvaluationOrder) -> Subject:
    # For a recorded model, only the last answer of each row is known.
    recorded = any(model.startswith(recordings.WRITTEN) for model in order.models)
    found = held_out(
        dataset,
        limit=order.limit,
        cluster=order.cluster,
        slices=order.slices,
        turns=not recorded and not order.parity,
    )
    return Subject(
        items=found.items,
        dataset=masked_url(dataset.path),
        digest=dataset.digest,
        cluster=order.cluster,
        notes=tuple(left_out_notes(found)),
    )


def _renaming(handle: TrackedRun, path: str | Path, *, named: bool = True) -> dict[str, str]:
    """Return the column mapping that the run's spec uses for this file. An unnamed file (`named=False`) gets
    it only if it has the columns."""
    columns = renaming_of(handle.record.spec.get("columns"))
    return applicable_columns(str(path), columns) if named else columns_if_matching(str(path), columns)


def left_out_notes(found: HeldOut) -> list[str]:
    """Describe the rows of a file that models can't be asked, and those that repeat."""
    notes = [f"{count(n, 'row')} left out: {why}" for why, n in sorted(found.left_out.items())]
    if found.repeated:
        same = count(found.repeated, "row")
        notes.append(f"{same} repeated. All are scored, but repetitions add no statistical evidence")
    return notes


def _add(candidates: dict[str, Candidate], one: Candidate) -> str:
    """Add a candidate and return its name. A candidate with the same model and settings is added once. A
    different candidate with the same name gets a number."""
    key = (one.respondent.key, one.shots)
    for name, known in candidates.items():
        if (known.respondent.key, known.shots) == key:
            return name
    name, number = one.contender.name, 2
    while name in candidates:
        name, number = f"{one.contender.name} ({number})", number + 1
    candidates[name] = making.renamed(one, name)
    return name


def _rivals(names: Sequence[str], own: Mapping[str, str], against: str | None) -> dict[str, str]:
    """Map each contender to its rival: the one of `against`, otherwise its own base. A contender without a
    base gets the first contender's rival."""
    if against is not None:
        fit = making.called(against, names)
        if len(fit) != 1:
            raise UsageError(
                f"--against {against} matches {'none' if not fit else 'several'} of the contenders",
                fix=f"one of: {', '.join(names)}",
            )
        return {name: fit[0] for name in names if name != fit[0]}
    default = next(iter(own.values()), names[0] if len(names) > 1 else None)
    found = {name: own.get(name, default) for name in names}
    return {name: rival for name, rival in found.items() if rival is not None and rival != name}


def metric_names() -> list[str]:
    """List the names of all metrics."""
    return ["auto", *registry.names()]


def require_reports(output: Path | None, junit: Path | None) -> None:
    """Raise `UsageError` if the report cannot be written. Call this before anything that costs money."""
    if output is not None:
        format_of(output)
    for path in (output, junit):
        if path is not None:
            require_writable(path, stream=True)


def report(evaluation: Evaluation) -> EvaluationReport:
    """Build the report of an evaluation, including the items whose results changed."""
    return EvaluationReport(evaluation=evaluation, flips=tuple(flips(evaluation)))


def evaluate_runs(ws: Workspace, runs: Sequence[TrackedRun | str], order: EvaluationOrder) -> Evaluation:
    """Evaluate runs on held-out rows. See `Orchestrator.evaluate`."""
    with PreparedEvaluation(ws, runs, order) as prepared:
        return prepared.run()
