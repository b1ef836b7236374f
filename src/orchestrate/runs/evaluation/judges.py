"""Judges: models that rate answers. A judge is calibrated against human ratings before its own ratings are
used."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from orchestrate import evaluation as rubric
from orchestrate.data.tokens.counters import batch_counter
from orchestrate.errors import DataError, UsageError
from orchestrate.evaluation.judges import LONGEST_ANSWER, USUAL_ANSWER, Judge, Kind, ScoreJudge, calibration
from orchestrate.evaluation.judges import calibration as rows
from orchestrate.evaluation.judges.calibration import Calibration as Calibration
from orchestrate.evaluation.judges.calibration import JudgedRow as JudgedRow
from orchestrate.evaluation.judges.calibration import JudgeReport as JudgeReport
from orchestrate.evaluation.judges.calibration import RatedAnswer
from orchestrate.paid.journal import RequestBudget
from orchestrate.paid.paid_requests import Asking, Progress, Question
from orchestrate.runs.evaluation.contenders import Contenders
from orchestrate.store.reviews import PREFIX
from orchestrate.types import Record, Rubric, Sampling

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class JudgeTerms:
    """Options for the judge, its rubric, and its calibration. `model` is named as in `eval --model`. `rated`
    is a file of rated answers or a review id. Without `rated`, the judge's latest calibration is used."""

    model: str
    rubric: Path | None = None
    key_variable: str | None = None
    rated: str | None = None
    uncalibrated: bool = False
    """True to use the judge without calibration."""
    max_cost_usd: Decimal | None = None
    skip_failed: bool = False
    """True to leave rows unrated if the judge does not answer, and continue."""


class JudgePlan(Record, frozen=True, kw_only=True):
    """Number of questions for the judge and their cost. Nothing has been sent yet."""

    rows: int
    rated: int
    """Number of human-rated answers for the calibration."""
    questions: int
    """Number of questions without a stored answer."""
    expected_usd: Decimal | None
    high_usd: Decimal | None
    unpriced: bool = False
    """True if the questions may be billed at an unknown price."""
    sandbox: bool = False
    """True if the judge is a sandbox's model. It bills nothing."""


class PreparedJudging:
    """Training rows that are ready to be rated by a judge. Nothing has been sent yet."""

    def __init__(
        self,
        ft: Workspace,
        path: str,
        output: Path,
        terms: JudgeTerms,
        keep: float,
        contenders: Contenders,
    ) -> None:
        self._ft, self._path, self._output, self._terms, self._keep = ft, path, output, terms, keep
        rows.outputs(path, output)
        self._rows = rows.read_rows(path)
        self._rubric = rubric.read(terms.rubric)
        self._rated = rated_answers(ft, terms.rated, self._rubric)
        if self._rated and len(self._rated[0].answers) == 2:
            raise UsageError(
                f"{terms.rated} contains pairs, but a judge that rates rows needs ratings of single answers",
                fix="orchestrate review RUN --single",
            )
        self._asking = asking_of(ft, terms, str(Path(path).resolve()))
        self._respondent = contenders.respondent(terms.model, LONGEST_ANSWER, 0.0)
        self._judge = Judge.by(self._respondent, self._asking, self._rubric)
        self._known = None if self._rated else known(ft, self._judge, "score")
        if not self._rated and self._known is None and not terms.uncalibrated:
            raise UsageError(
                "this judge has not been calibrated against human ratings, so it cannot filter rows",
                fix="use --calibrate RATED.jsonl  (from: review RUN --single --export), or --uncalibrated",
            )

    def plan(self) -> JudgePlan:
        """Plan the requests to the judge and return their cost."""
        judge = ScoreJudge(self._judge)
        asked = [row.asked for row in self._rows if row.asked is not None]
        asked += [calibration.judge_input(one) for one in self._rated]
        questions = {q.digest: q for q in (Question(messages=m) for m in judge.questions(asked))}
        kept = self._asking.kept(self._respondent, list(questions.values()))
        missing = [q for digest, q in questions.items() if digest not in kept]
        price = self._respondent.price
        expected = high = Decimal(0) if price is not None else None
        if price is not None:
            counts = batch_counter("o200k_base")(["\n".join(q.texts) for q in missing])
            expected = sum((price(n, USUAL_ANSWER) for n in counts), Decimal(0))
            most = [n + q.added_tokens for n, q in zip(counts, missing, strict=True)]
            high = sum((price(n, LONGEST_ANSWER) for n in most), Decimal(0))
        return JudgePlan(
            rows=len(self._rows),
            rated=len(self._rated),
            questions=len(missing),
            expected_usd=expected,
            high_usd=high,
            unpriced=self._respondent.unpriced and bool(missing),
            sandbox=self._respondent.sandbox,
        )

    def run(self, progress: Progress | None = None) -> JudgeReport:
        """Calibrate the judge against human ratings, then rate the rows and write the files. Continues an
        interrupted run. Raises `DataError` before any row is rated if the judge's agreement with human raters
        is too low, and `OverBudget` if the next answer could exceed the cost limit or the budget."""
        metric, found = self._metric(progress)
        report = rows.part(self._path, self._rows, metric, self._output, keep=self._keep, calibration=found)
        spent = self._asking.budget.spent_usd if self._respondent.price is not None else None
        lost = self._asking.budget.lost()
        return msgspec.structs.replace(report, usd=spent, lost_requests=lost.requests, lost_usd=lost.usd)

    def scores(
        self, progress: Progress | None = None
    ) -> tuple[list[tuple[rows.CalibrationRow, JudgedRow]], Decimal | None]:
        """Rate all rows like `run`, but write no files. Returns each row with its judgment, and the cost of
        all answers."""
        metric, _ = self._metric(progress)
        judged = rows.judged_rows(self._rows, metric, self._keep)
        spent = self._asking.budget.spent_usd if self._respondent.price is not None else None
        return list(zip(self._rows, judged, strict=True)), spent

    def _metric(self, progress: Progress | None) -> tuple[ScoreJudge, Calibration | None]:
        self._asking.progress = progress
        found = self._known
        if self._rated:
            found = measured(self._ft, self._judge, self._rated)
        unfit = None if found is None else found.unfit
        if unfit is not None and not self._terms.uncalibrated:
            raise DataError(
                unfit, fix="use another model or a clearer rubric. To use this judge anyway: --uncalibrated"
            )
        return ScoreJudge(self._judge, held=lambda judge, kind: found), found


@contextmanager
def prepared(
    ft: Workspace, path: str, output: Path, terms: JudgeTerms, *, keep: float
) -> Generator[PreparedJudging]:
    """Read the rows, the rubric and the rated answers. Raises `DataError` for a file that cannot be read, and
    `UsageError` if the judge has never been calibrated. Errors from looking up the model are passed on."""
    contenders = Contenders(ft, Sampling(), "auto", terms.key_variable, limit_usd=terms.max_cost_usd)
    try:
        yield PreparedJudging(ft, path, output, terms, keep, contenders)
    finally:
        contenders.close()


def calibrated(ft: Workspace, terms: JudgeTerms) -> Calibration:
    """Calibrate the judge against `terms.rated`, which has ratings of single answers or of pairs. Raises
    `UsageError` if there are no ratings, `DataError` if they are invalid, and `OverBudget` if the next answer
    could exceed the cost limit or the budget."""
    by = rubric.read(terms.rubric)
    answers = rated_answers(ft, terms.rated, by)
    if not answers:
        raise UsageError("choose the human ratings to compare the judge with: a file, or the id of a review")
    with closing(
        Contenders(ft, Sampling(), "auto", terms.key_variable, limit_usd=terms.max_cost_usd)
    ) as contenders:
        respondent = contenders.respondent(terms.model, LONGEST_ANSWER, 0.0)
        return measured(ft, Judge.by(respondent, asking_of(ft, terms), by), answers)


def asking_of(ft: Workspace, terms: JudgeTerms, subject: str = "") -> Asking:
    """Set up the requests to a judge: the folder for stored answers, and the cost limit. `subject` identifies
    the items to judge, so earlier requests with the same subject and options count toward the limit."""
    same = replace(terms, max_cost_usd=None, skip_failed=False)
    return Asking(
        ft.settings.home / "evaluations" / "answers",
        RequestBudget(
            terms.max_cost_usd,
            scope=f"judging of {subject}: {same}",
            account=ft.store.ledger.account("judging", ft.settings),
        ),
        skip_failed=terms.skip_failed,
    )


def rated_answers(ft: Workspace, source: str | None, by: Rubric) -> list[RatedAnswer]:
    """Read rated answers from a file or a review id. Without a source, returns an empty list."""
    if source is None:
        return []
    if source.startswith(PREFIX) and not Path(source).exists():
        from orchestrate.runs.evaluation import reviews

        return reviews.rated_answers(ft, source)
    return calibration.read(Path(source), by)


def held_against(
    ft: Workspace, source: str | None, by: Rubric
) -> Callable[[Judge, Kind], Calibration | None]:
    """Return a function that calibrates a judge or looks up its stored calibration. The function takes a
    judge and a kind of rating (`score` or `pair`). If `source` contains human ratings of that kind, it
    calibrates the judge against them. Otherwise, it returns the judge's stored calibration, or `None` if
    there is none. Raises `DataError` or `UsageError` if the rated answers cannot be read."""
    answers = rated_answers(ft, source, by)
    rated_kind = "pair" if answers and len(answers[0].answers) == 2 else "score"

    def held(judge: Judge, kind: Kind) -> Calibration | None:
        return measured(ft, judge, answers) if answers and kind == rated_kind else known(ft, judge, kind)

    return held


def measured(ft: Workspace, judge: Judge, answers: Sequence[RatedAnswer]) -> Calibration:
    """Calibrate a judge. The judge rates answers that already have human ratings, and its agreement with
    these ratings is measured and stored."""
    found = calibration.calibrate(judge, answers)
    ft.store.reviews.calibrate(found.judge, found)
    return found


def known(ft: Workspace, judge: Judge, kind: Kind) -> Calibration | None:
    """Return the stored calibration of exactly this judge: the same model, host, prompt and rubric."""
    kept = ft.store.reviews.calibration(judge.digest(kind))
    return None if kept is None else Calibration.from_dict(kept)
