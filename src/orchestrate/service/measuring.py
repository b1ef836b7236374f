"""The part of the public Python API that says what a tuned model is worth: by metrics, judges and people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from orchestrate.handles.run import RunHandle
from orchestrate.types import Evaluation, Listing, Rating, Run

if TYPE_CHECKING:
    from orchestrate.evaluation.judges.calibration import Calibration
    from orchestrate.evaluation.judges.rows import JudgeReport
    from orchestrate.evaluation.regression.regress import Regression
    from orchestrate.evaluation.review.desk import Desk
    from orchestrate.evaluation.review.results import ReviewResult
    from orchestrate.reports import Comparison
    from orchestrate.service.orchestrator import Orchestrator


class Measuring:
    """A part of `Orchestrator`, which alone inherits it."""

    @property
    def _ft(self) -> Orchestrator:
        return cast("Orchestrator", self)

    def compare(self, runs: Iterable[RunHandle | Run | str]) -> Comparison:
        """Runs side by side; `.save("report.html")` writes it, by the file's ending as html, md, csv or
        json."""
        from orchestrate.service.evaluation.comparison import compare

        return compare(self._ft, runs)

    def evaluate(
        self,
        runs: Sequence[RunHandle | str],
        test: str | Path | None = None,
        *,
        metrics: Sequence[str] = ("auto",),
        **order: Any,
    ) -> Evaluation:
        """Runs (`RUN`, `RUN@CHECKPOINT`), their bases and other models on held-out rows, scored and compared
        with one another, and kept with the runs. `order`: the further fields of
        `orchestrate.service.evaluation.held_out.EvaluationOrder`."""
        from orchestrate.service.evaluation.held_out import EvaluationOrder, PreparedEvaluation

        wanted = EvaluationOrder(test=test, metrics=metrics, **order)
        with PreparedEvaluation(self._ft, runs, wanted) as prepared:
            return prepared.run()

    def evaluations(self, run_id: str) -> Listing[Evaluation]:
        """Those of one run, oldest first."""
        return Listing(self._ft.store.history.evaluations(run_id))

    def regress(self, run: RunHandle | str, **order: Any) -> Regression:
        """What a run still does that its base does, and what it forgot; kept with it. `order`: the fields
        of `orchestrate.service.evaluation.regression.RegressionOrder`."""
        from orchestrate.service.evaluation.regression import PreparedRegression, RegressionOrder

        with PreparedRegression(self._ft, run, RegressionOrder(**order)) as prepared:
            return prepared.run()

    def judge(
        self,
        file: str | Path,
        model: str,
        output: str | Path | None = None,
        *,
        keep: float = 0.8,
        **terms: Any,
    ) -> JudgeReport:
        """Training rows rated by a model, and parted by it: those with a score of at least `keep`, 0 to 1, in
        `output`, the others beside it. `terms`: the further fields of
        `orchestrate.service.evaluation.judging.JudgeTerms`, as `rubric`. Raises `UsageError` for a
        judge that was never held against people, `DataError` for one that agrees too little, `OverBudget`."""
        from orchestrate.service.data import files as data
        from orchestrate.service.evaluation import judging

        target = data.beside(str(file), "judged.jsonl") if output is None else Path(output)
        asked = judging.JudgeTerms(model=model, **terms)
        with judging.prepared(self._ft, str(file), target, asked, keep=keep) as prepared:
            return prepared.run()

    def calibrate(self, model: str, rated: str | Path, **terms: Any) -> Calibration:
        """Holds a judge against what people said, in a file or in a review by its id, and remembers how far
        they agree: `unfit` says why it may not decide. `terms`: as for `judge`."""
        from orchestrate.service.evaluation import judging

        return judging.calibrated(self._ft, judging.JudgeTerms(model=model, rated=str(rated), **terms))

    def review(self, runs: Sequence[RunHandle | str] | str, **order: Any) -> Desk:
        """What people are to rate: answers of runs, or a review by its id; made where there is none such yet.
        `orchestrate.service.evaluation.reviewing.serving` puts it on a page. `order`: the fields of
        `orchestrate.service.evaluation.reviewing.ReviewOrder`."""
        from orchestrate.service.evaluation import reviewing

        names = [runs] if isinstance(runs, str) else [r if isinstance(r, str) else r.id for r in runs]
        return reviewing.opened(self._ft, names, reviewing.ReviewOrder(**order))

    def rate(self, review: str, ratings: Sequence[Rating]) -> int:
        """Adds what people said of a review's tasks elsewhere, all of it or nothing, and gives how many that
        were. Raises `UsageError`."""
        from orchestrate.service.evaluation import reviewing

        return reviewing.record(self._ft, reviewing.opened(self._ft, [review]), ratings)

    def rated(self, review: str) -> ReviewResult:
        """What was said in a review so far: preferences with intervals, agreement, notes."""
        from orchestrate.service.evaluation import reviewing

        return reviewing.result(self._ft, reviewing.opened(self._ft, [review]))
