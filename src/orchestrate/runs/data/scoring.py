"""Score training rows with a model on this machine, a tuned model, or a judge."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Raw
from msgspec.structs import replace

from orchestrate.core.underway import work
from orchestrate.data.dialects import canonical_line
from orchestrate.data.files import beside, require_writable
from orchestrate.data.operations import score
from orchestrate.data.operations.score import ScoredFile, ScoreReport, Scores
from orchestrate.data.shapes.row_reader import canonical, reading
from orchestrate.errors import UsageError
from orchestrate.paid.paid_requests import Progress
from orchestrate.profile import this_machine
from orchestrate.runs.evaluation import judges
from orchestrate.runs.evaluation.contenders import Contenders
from orchestrate.runs.evaluation.judges import JudgePlan, JudgeTerms
from orchestrate.runs.tracked import tracked
from orchestrate.types import Likelihood, Sampling

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace

_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class ScoreOrder:
    """Options for scoring rows. Set one of `model` (a base model on this machine), `after` (a tuned run) or
    `judge` (a model that rates the rows by a rubric)."""

    model: str | None = None
    after: str | None = None
    judge: JudgeTerms | None = None
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    workers: int | None = None


class PreparedScoring:
    """Rows that are ready to be scored. Nothing has been sent yet."""

    def __init__(
        self,
        ft: Workspace,
        path: str,
        output: Path | None,
        order: ScoreOrder,
        judged: judges.PreparedJudging | None,
    ) -> None:
        self._ft, self._path, self._order, self._judged = ft, path, order, judged
        self._output = output or score.place(path)
        require_writable(self._output, path)
        self._read = score.opened(path, order.columns, order.workers)
        data = self._read.facts
        found = score.kept(path, data, self._output)
        head = ScoredFile(scores_of=path, digest=data.digest) if found is None else found.head
        self.scores = Scores(head, {} if found is None else found.rows)

    def plan(self) -> JudgePlan | None:
        """Return the judge's cost, or `None` without a judge. Scoring with other models is free, because it
        runs on this machine."""
        return None if self._judged is None else self._judged.plan()

    def run(self, progress: Progress | None = None) -> ScoreReport:
        """Score the rows and write the file. Rows that already have scores are not scored again."""
        scores, order = self.scores, self._order
        missing = score.of_rows(self._read, scores, order.workers)
        if order.model is not None:
            self._put_losses(f"{this_machine().kind}={order.model}", self._put_loss)
            scores.head = replace(scores.head, model=order.model)
        if order.after is not None:
            self._put_losses(order.after, self._put_loss_after)
            scores.head = replace(scores.head, after=order.after)
        score.write(scores, self._output)  # fail before anything is billed if the file can't be written
        usd = None
        if self._judged is not None and order.judge is not None:
            usd = self._put_judged(self._judged, progress)
            scores.head = replace(scores.head, judge=order.judge.model)
            score.write(scores, self._output)
        report = score.report(self._read, scores, self._output, missing)
        return replace(report, usd=usd)

    def _put_losses(self, name: str, put: Callable[[int, Likelihood, Likelihood], None]) -> None:
        """Add the losses of a model. `name` is a model on this machine or a run."""
        contenders = Contenders(self._ft, Sampling(), "here")
        data = self._read.facts
        try:
            if "=" in name:
                candidate = contenders.of_model(name)
            else:
                [candidate] = contenders.of_run(tracked(self._ft, name), None, base=False)
            if candidate.likelihood is None:
                raise UsageError(f"{name} returns no log-probabilities", fix="use a model on this machine")
            rows = [(number, Raw(canonical_line(example))) for number, example in data.numbered()]
            with work(f"scoring by {candidate.contender.name}", "row") as advance:
                for start in range(0, len(rows), _BATCH):
                    part = rows[start : start + _BATCH]
                    asked = [{"example": row, "alone": alone} for alone in (False, True) for _, row in part]
                    found = candidate.likelihood(asked)
                    for (number, _), one, alone in zip(
                        part, found[: len(part)], found[len(part) :], strict=True
                    ):
                        put(number, one, alone)
                    advance(start + len(part), len(rows))
        finally:
            contenders.close()

    def _put_loss(self, row: int, found: Likelihood, alone: Likelihood) -> None:
        if not found.tokens:
            return
        prompt = found.nats / alone.nats if alone.tokens and alone.nats > 0 else None
        self.scores.put(
            row, tokens=found.tokens, loss=found.nats / found.tokens, spread=found.spread, prompt=prompt
        )

    def _put_loss_after(self, row: int, found: Likelihood, alone: Likelihood) -> None:
        del alone
        if found.tokens:
            self.scores.put(row, tokens=found.tokens, loss_after=found.nats / found.tokens)

    def _put_judged(self, judged: judges.PreparedJudging, progress: Progress | None) -> Decimal | None:
        marks, usd = judged.scores(progress)
        read = reading(self._read.facts.format, self._read.facts.columns).read
        by_row: dict[bytes, judges.JudgedRow] = {}
        for row, one in marks:
            example = read(row.line).example
            if example is not None and one.score is not None:
                by_row[canonical(example)] = one
        for number, example in self._read.facts.numbered():
            if (one := by_row.get(canonical(example))) is not None:
                self.scores.put(number, judge=one.score, reason=one.reason)
        return usd


@contextmanager
def prepared(
    ft: Workspace, path: str, order: ScoreOrder, output: Path | None = None
) -> Generator[PreparedScoring]:
    """Read the rows, the rubric and the rated answers. Raises `DataError` for files that cannot be read, and
    `UsageError` for options that can't be combined. Errors from looking up the judge are passed on."""
    if order.judge is None:
        yield PreparedScoring(ft, path, output, order, None)
        return
    if order.columns:
        raise UsageError(
            "--judge rates the rows as they are in the file, so it cannot be combined with --map or --ignore"
        )
    with judges.prepared(ft, path, beside(path, "judged.jsonl"), order.judge, keep=0.0) as judged:
        yield PreparedScoring(ft, path, output, order, judged)
