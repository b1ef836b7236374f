"""Verdicts on runs: an evaluation's own verdict, combined with all other results for the same model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from orchestrate.errors import OrchestrateError
from orchestrate.evaluation.regression import Regression
from orchestrate.evaluation.review.results import ReviewResult
from orchestrate.evaluation.verdict import VerdictReason, with_parts
from orchestrate.runs.evaluation import reviews
from orchestrate.runs.evaluation.regression import regressions
from orchestrate.text import joined as listed
from orchestrate.types import Checkpoint, Contender, Evaluation, JobStatus, Run

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace


def evaluations(ws: Workspace, run_id: str) -> list[Evaluation]:
    """Return a run's stored evaluations, oldest first. Each verdict takes into account regression tests,
    reviews and other results that were added after the evaluation."""
    return joined(ws, ws.store.history.evaluations(run_id))


def joined(ws: Workspace, found: Sequence[Evaluation]) -> list[Evaluation]:
    """Combine each verdict on a run with the run's regression tests, parity tests, reviews and proofs."""
    known: dict[str, _RunFacts] = {}
    return [_joined(ws, one, known) for one in found]


class SameModels:
    """Lookup of which checkpoint names of a run refer to the same model. A name is a checkpoint's id or step,
    or `None` for the run's final model. The final model is the checkpoint of the last step, unless the run
    keeps its best weights."""

    def __init__(self, ws: Workspace, run: Run) -> None:
        self._run, self._kept = run, ws.store.history.checkpoints(run.id)
        self._ends_with_best = bool(run.spec.get("keep_best") or run.spec.get("early_stopping"))

    def same(self, one: str | None, other: str | None) -> bool:
        return self._model(one) == self._model(other)

    def merged(self, found: Sequence[Regression], checkpoint: str | None = None) -> Regression | None:
        """Merge the regression tests of the model at `checkpoint` (default: the run's final model), using the
        latest result of each probe. `found` must be sorted from oldest to newest."""
        return _merged([one for one in found if self.same(one.tuned.checkpoint, checkpoint)])

    def _model(self, checkpoint: str | None) -> str | None:
        """Return a canonical name of a model. `None` is the run's own model."""
        if checkpoint is None:
            return None
        known = (one for one in self._kept if checkpoint in (one.id, str(one.step)))
        kept = next(known, None) or Checkpoint(id=checkpoint, step=_step(checkpoint))
        if kept.model is not None and kept.model == self._run.tuned_model:
            return None
        last = self._run.step is not None and kept.step == self._run.step
        if last and not self._ends_with_best and self._run.status is JobStatus.SUCCEEDED:
            return None
        return kept.id if kept.step is None else str(kept.step)


def regression(ws: Workspace, run: Run) -> Regression | None:
    """Merge the regression tests of a run's own model, using the latest result of each probe."""
    return SameModels(ws, run).merged(regressions(ws, run.id))


def _step(checkpoint: str) -> int | None:
    """Return the step of a checkpoint that the store does not have, from its name on this machine."""
    number = checkpoint.removeprefix("step-")
    return int(number) if number.isascii() and number.isdecimal() else None


def _merged(mine: Sequence[Regression]) -> Regression | None:
    if not mine:
        return None
    results = {result.probe: result for one in mine for result in one.results}
    advice = next((one.advice for one in reversed(mine) if one.advice), ())
    lost = any(result.decision == "forgot" for result in results.values())
    return replace(mine[-1], results=tuple(results.values()), advice=advice if lost else ())


class _RunFacts:
    """Facts about a run besides one evaluation."""

    def __init__(self, ws: Workspace, run_id: str) -> None:
        self.models = SameModels(ws, ws.store.runs.get(run_id))
        self.regressions = regressions(ws, run_id)
        self.parities = [e for e in ws.store.history.evaluations(run_id) if e.parity]
        self.reviews: list[ReviewResult] = []
        for review in ws.store.reviews.matching(run_ids=[run_id]):  # newest first
            with suppress(OrchestrateError):  # if the review's answers were deleted
                self.reviews.append(reviews.result(ws, reviews.opened(ws, [review.id])))


def _joined(ws: Workspace, one: Evaluation, known: dict[str, _RunFacts]) -> Evaluation:
    verdicts = list(one.verdicts)
    for i, verdict in enumerate(verdicts):
        contender = one.contender(verdict.contender)
        if contender.run_id is None:
            continue
        if contender.run_id not in known:
            known[contender.run_id] = _RunFacts(ws, contender.run_id)
        about = known[contender.run_id]
        parts = [
            *_forgotten(about, contender),
            *_parity(about, contender, one),
            *_people(about, contender, one),
            *_proved(contender),
        ]
        verdicts[i] = with_parts(verdict, parts)
    return replace(one, verdicts=tuple(verdicts))


def _forgotten(about: _RunFacts, contender: Contender) -> Iterator[VerdictReason]:
    found = about.models.merged(about.regressions, contender.checkpoint)
    if found is None:
        if about.regressions:
            yield _not_measured(about, contender)
        return
    open_ = [r.probe for r in found.results if r.decision == "inconclusive"]
    kept = [r.probe for r in found.results if r.decision == "kept"]
    for r in found.forgotten:
        yield VerdictReason("do not ship", f"the model regressed on {r.probe}: {r.reason}")
    if open_:
        why = f"unclear whether the model forgot {listed(open_)}: orchestrate regress {found.run_id}"
        yield VerdictReason("not enough evidence", why)
    if kept and not found.forgotten and not open_:
        yield VerdictReason("ship", f"the model kept {listed(kept)}")


def _not_measured(about: _RunFacts, contender: Contender) -> VerdictReason:
    """Explain that forgetting was not measured for this model. If other weights of the run show forgetting,
    this model may have it too."""
    own = about.models.merged(about.regressions)
    lost = contender.checkpoint is not None and own is not None and bool(own.forgotten)
    what = "this checkpoint" if contender.checkpoint else "the run's final model"
    why = f"forgetting was not measured for {what}: orchestrate regress {contender.name}"
    if lost:
        why = f"this run's final model shows forgetting, but {why}"
    return VerdictReason("not enough evidence" if lost else "ship", why)


def _parity(about: _RunFacts, contender: Contender, here: Evaluation) -> Iterator[VerdictReason]:
    mine = [
        (e, verdict)
        for e in about.parities
        for verdict in e.verdicts
        if _same(about, e.contender(verdict.contender), contender)
    ]
    if mine and mine[-1][0].id != here.id:
        found, verdict = mine[-1]
        yield VerdictReason(verdict.decision, f"parity in {found.id}: {'; '.join(verdict.reasons)}")


def _same(about: _RunFacts, one: Contender, other: Contender) -> bool:
    return one.run_id == other.run_id and about.models.same(one.checkpoint, other.checkpoint)


def _people(about: _RunFacts, contender: Contender, here: Evaluation) -> Iterator[VerdictReason]:
    """Return the result of the newest review that compares the contender with its rival."""
    rivals = {d.against for d in here.differences if d.contender == contender.name}
    for review in about.reviews:
        for pair in review.pairs:
            names, score = (pair.first, pair.second), pair.preference
            if contender.name not in names or not rivals & {*names} or not score.n:
                continue
            turned = pair.second == contender.name
            rival = pair.first if turned else pair.second
            low, high = (1 - score.high, 1 - score.low) if turned else (score.low, score.high)
            value = 1 - score.value if turned else score.value
            share = f"{value:.0%} ({low:.0%} to {high:.0%})"
            said = (
                f"raters preferred this model over {rival} in {share} of {score.n} items ({review.review.id})"
            )
            yield VerdictReason("do not ship" if high < 0.5 else "ship", said)
            return


def _proved(contender: Contender) -> Iterator[VerdictReason]:
    if contender.proof is not None and contender.proof.startswith("failed"):
        why = f"the model served at {contender.served_by} is not the one that was trained ({contender.proof})"
        yield VerdictReason("do not ship", why)
