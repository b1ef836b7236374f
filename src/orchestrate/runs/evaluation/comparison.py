"""Compare runs side by side, with everything that the store knows about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from orchestrate.errors import DataError, OrchestrateError
from orchestrate.evaluation.pairs import Flips, Pairing, between, flips
from orchestrate.evaluation.review.results import describe
from orchestrate.reports.compare import Comparison, with_proofs
from orchestrate.reports.compare import compare as side_by_side
from orchestrate.reports.records import RunDifference
from orchestrate.runs.evaluation import reviews, verdicts
from orchestrate.spec import JobSpec
from orchestrate.types import Contender, Evaluation, Feature, Run, Translation

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace


def compare(ft: Workspace, runs: Iterable[Run | str]) -> Comparison:
    """Compare runs. See `Orchestrator.compare`."""
    records = [ft.record(run) if isinstance(run, str) else run for run in runs]
    metrics = {r.id: ft.store.history.metrics(r.id) for r in records}
    evaluations = {r.id: verdicts.evaluations(ft, r.id) for r in records}
    translated = {r.id: found for r in records if (found := sent(ft, r)) is not None}
    newest = {id: found[-1] for id, found in evaluations.items() if found}
    answers = {id: (flips_of(one, id), _repeated_answers(evaluations[id], id)) for id, one in newest.items()}
    probed = {r.id: one for r in records if (one := verdicts.regression(ft, r))}
    found = side_by_side(
        records,
        metrics,
        evaluations,
        translated,
        between=_between([r.id for r in records], newest),
        answers=answers,
        regressions=probed,
        people=_people(ft, {r.id for r in records}),
        silent={r.id: why for r in records if (why := _why_silent(ft, r))},
    )
    return with_proofs(found, {r.id: ft.store.history.proofs(r.id) for r in records})


def _why_silent(ft: Workspace, run: Run) -> str | None:
    backend = ft.backend_of(run)
    return None if backend is None else backend.missing.get(Feature.CHAT)


def _people(ft: Workspace, run_ids: set[str]) -> list[str]:
    """Return the findings of reviews of these runs, newest last."""
    found: list[str] = []
    for review in reversed(ft.store.reviews.matching()):
        if run_ids & set(review.run_ids):
            try:
                found += describe(reviews.result(ft, reviews.opened(ft, [review.id])))
            except DataError as error:
                found.append(f"{review.id}: {error.message}")
    return found


def flips_of(evaluation: Evaluation, run_id: str) -> list[Flips]:
    """Return the rows on which a run's result differs from that of the model it is compared with."""
    names = {c.name for c in evaluation.contenders if c.run_id == run_id}
    return [found for found in flips(evaluation) if found.contender in names]


def _repeated_answers(found: Sequence[Evaluation], run_id: str) -> list[Pairing]:
    mine = _contender(found[-1], run_id)
    pairing = None if mine is None else paired_with_earlier(found[:-1], found[-1], mine.name)
    return [] if pairing is None else [pairing]


def paired_with_earlier(earlier: Sequence[Evaluation], newest: Evaluation, name: str) -> Pairing | None:
    """Pair a contender's results in the newest evaluation with its results in the most recent earlier one on
    the same items. An earlier evaluation is skipped if it contains the same stored answers from the
    contender, or if the contender ran in another precision. Returns `None` if no earlier evaluation
    remains."""
    mine = newest.contender(name)
    for one in reversed(earlier):
        theirs = next((c for c in one.contenders if c.name == name), None)
        if theirs is None or theirs.precision != mine.precision:
            continue
        if not newest.items_digest or one.items_digest != newest.items_digest:
            continue
        if theirs.asked_at != mine.asked_at:
            return between((one, name), (newest, name))
    return None


def _between(run_ids: Sequence[str], newest: Mapping[str, Evaluation]) -> list[RunDifference]:
    """Pair every two runs on the items that both answered."""
    found: list[RunDifference] = []
    for first, second in combinations([id for id in dict.fromkeys(run_ids) if id in newest], 2):
        one, other = _contender(newest[first], first), _contender(newest[second], second)
        if one is not None and other is not None:
            pairing = between((newest[first], one.name), (newest[second], other.name))
            if pairing is not None:
                found.append(RunDifference(first=first, second=second, pairing=pairing))
    return found


def _contender(evaluation: Evaluation, run_id: str) -> Contender | None:
    """Return the run itself, not one of its checkpoints."""
    mine = (c for c in evaluation.contenders if c.run_id == run_id and c.checkpoint is None)
    return next(mine, None)


def sent(ft: Workspace, run: Run) -> Translation | None:
    """Return the translation of a run's settings to its backend, as stored at submission. For a run that was
    not submitted from here, translate its settings now. Returns `None` if its backend is no longer available
    or cannot translate them."""
    if (stored := ft.store.history.translation(run.id)) is not None:
        return stored
    try:
        return ft.provider(run.provider).translate(JobSpec.parse(run.spec))
    except OrchestrateError:
        return None
