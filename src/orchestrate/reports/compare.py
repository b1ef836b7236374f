"""Compare runs side by side, and check which of their results are comparable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

from msgspec.structs import replace

from orchestrate import costing
from orchestrate.costing.lines import MTOK
from orchestrate.errors import UsageError
from orchestrate.evaluation.pairs import Flips, Pairing
from orchestrate.evaluation.regression import Regression
from orchestrate.notebook import frame
from orchestrate.reports import documents, html
from orchestrate.reports.judgement import answer, findings, notes, reasons
from orchestrate.reports.records import (
    Compared,
    ComparedRuns,
    CurvePoint,
    RunDifference,
    RunScore,
    ended,
    priced_as,
)
from orchestrate.text import SANDBOX_MARK, inert, inert_json
from orchestrate.types import Evaluation, MetricPoint, Outcome, Proof, Run, Setting, Translation
from orchestrate.types.proof import badge

if TYPE_CHECKING:
    import pandas
    from rich.console import RenderableType

FORMATS = ("table", "md", "html", "csv", "json")
_POINTS = 300
"""Maximum number of points per curve in a report. Longer curves are averaged in groups."""
_BY_TOKEN = ("training", "usd_per_mtok")
_NOT_SETTINGS = {"train", "validation", "test", "suffix", "tags", "max_cost_usd", "model", "wandb"}


_ENDINGS = {".html": "html", ".htm": "html", ".md": "md", ".csv": "csv", ".json": "json", ".txt": "table"}


class Comparison(ComparedRuns, frozen=True, kw_only=True):
    """A comparison of runs, to show or save. Created by `compare`."""

    def table(self, *, whole: bool = False) -> RenderableType:
        """Return the comparison for a terminal. `whole` includes everything. Otherwise, only what helps to
        choose a run is shown."""
        return documents.comparison_table(self, whole=whole)

    def render(self, format: str) -> str:
        """Render the comparison as text without terminal control characters. `format` is table, md, html, csv
        or json. Raises `UsageError` for any other."""
        if format == "json":
            return inert_json(documents.json_text(self))
        return inert(self._document(format))

    def _document(self, format: str) -> str:
        if format == "html":
            return html.page(self)
        if format == "md":
            return documents.markdown(self)
        if format == "csv":
            return documents.csv_text(self)
        if format == "table":
            return documents.plain_text(self.table(whole=True))
        raise UsageError(f"the report format must be one of {', '.join(FORMATS)}, got {format!r}")

    def __str__(self) -> str:
        """Summarize in a few lines: the recommendation, and each run with its price and first score."""
        lines = [self.answer.sentence, *map(_line, self.runs)]
        lines += [f"not comparable in {reason.aspect}: {reason.text}" for reason in self.reasons]
        return inert("\n".join(lines))

    def _repr_html_(self) -> str:
        return documents.framed(self.render("html"))

    def to_pandas(self) -> pandas.DataFrame:
        """Return a data frame with one row per run: its properties, settings and latest scores. Raises
        `MissingExtra` if pandas is not installed."""
        return frame([_cells(one) for one in self.runs])

    def save(self, path: str | Path) -> Path:
        """Write the report in the format of the file extension: .html, .md, .csv, .json or .txt. Raises
        `UsageError` for any other."""
        return documents.save(path, _ENDINGS, self.render)


def _line(one: Compared) -> str:
    score = f", {one.scores[0].metric.name} {one.scores[0].score.value:.3g}" if one.scores else ""
    return f"  {one.label}: {one.run.status.value}, {priced_as(one)}{score}"


def _cells(one: Compared) -> dict[str, Any]:
    scores = {f"score.{s.metric.name}": s.score.value for s in one.scores}
    return {
        "label": one.label,
        **one.run.cells(),
        "seconds": one.seconds,
        "tokens_per_second": one.tokens_per_second,
        "train_loss": one.train_loss,
        "valid_loss": one.valid_loss,
        "reward": one.reward,
        **scores,
        **{f"settings.{name}": value for name, value in one.settings.items()},
    }


def compare(  # noqa: PLR0913  each is another part of the report
    runs: Sequence[Run],
    metrics: Mapping[str, Sequence[MetricPoint]] | None = None,
    evaluations: Mapping[str, Sequence[Evaluation]] | None = None,
    translations: Mapping[str, Translation] | None = None,
    *,
    between: Sequence[RunDifference] = (),
    answers: Mapping[str, tuple[Sequence[Flips], Sequence[Pairing]]] | None = None,
    regressions: Mapping[str, Regression] | None = None,
    people: Sequence[str] = (),
    silent: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare runs side by side.

    All mappings are keyed by run id. If a run has no entry, the report omits that part for the run.

    - `translations`: the settings sent to each backend, shown in addition to those that you requested.
    - `between`: paired differences between runs.
    - `answers`: the changed items in each run's newest evaluation, and its comparisons with earlier ones.
    - `regressions`: each run's regression test.
    - `people`: results of human reviews, as sentences.
    - `silent`: reasons why models can't be queried.

    Raises `UsageError` if there are no runs.
    """
    if not runs:
        raise UsageError("name the runs to compare", fix="to list them: orchestrate runs")
    unique = list({run.id: run for run in runs}.values())
    labels = _labels(unique)
    compared = tuple(
        _compared(
            run,
            labels[run.id],
            (metrics or {}).get(run.id, ()),
            (evaluations or {}).get(run.id, ()),
            (translations or {}).get(run.id),
        )
        for run in unique
    )
    compared = tuple(
        replace(_with_answers(c, answers or {}, regressions or {}), silent=(silent or {}).get(c.run.id))
        for c in compared
    )
    return Comparison(
        runs=compared,
        answer=answer(compared, between),
        reasons=tuple(reasons(compared)),
        findings=(*findings(compared, between), *people),
        notes=tuple(notes(compared)),
        between=tuple(between),
    )


def with_proofs(comparison: Comparison, proofs: Mapping[str, Sequence[Proof]]) -> Comparison:
    """Add the proof badge of each run that succeeded. `proofs` maps run ids to proofs, oldest first."""
    runs = [replace(c, proof=badge(proofs.get(c.run.id, ())) if ended(c) else None) for c in comparison.runs]
    return replace(comparison, runs=tuple(runs))


def _with_answers(
    c: Compared,
    answers: Mapping[str, tuple[Sequence[Flips], Sequence[Pairing]]],
    regressions: Mapping[str, Regression],
) -> Compared:
    changed, again = answers.get(c.run.id, ((), ()))
    probed = regressions.get(c.run.id)
    return replace(c, flips=tuple(changed), asked_again=tuple(again), regression=probed)


def _labels(runs: Sequence[Run]) -> dict[str, str]:
    """Return a unique label for each run: the backend, if that is unique, or else with the model or the run's
    id. If some runs are not in a sandbox, labels of sandbox runs end with `SANDBOX_MARK`, so every table,
    chart and sentence shows it."""
    labels = _distinct(runs)
    if len({run.sandbox for run in runs}) == 1:
        return labels
    return {run.id: labels[run.id] + SANDBOX_MARK * run.sandbox for run in runs}


def _distinct(runs: Sequence[Run]) -> dict[str, str]:
    plain = [run.provider for run in runs]
    if len(set(plain)) == len(runs):
        return {run.id: run.provider for run in runs}
    with_model = [f"{run.provider} {_short(run.model)}" for run in runs]
    if len(set(with_model)) == len(runs):
        return {run.id: label for run, label in zip(runs, with_model, strict=True)}
    return {run.id: f"{run.provider} {run.id}" for run in runs}


def _short(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1]


def _compared(
    run: Run,
    label: str,
    points: Sequence[MetricPoint],
    results: Sequence[Evaluation],
    translation: Translation | None,
) -> Compared:
    ordered = sorted(points, key=lambda p: p.step)
    trained, billed = run.trained_tokens or _last_tokens(ordered), _billed_tokens(run)
    axis = _axis(ordered, trained or (run.quote.billed_tokens if run.quote else None), run.total_steps)
    train, valid = _curve(ordered, "train_loss", axis), _curve(ordered, "valid_loss", axis)
    reward = _curve(ordered, "valid_reward", axis) or _curve(ordered, "train_reward", axis)
    return Compared(
        run=run,
        label=label,
        seconds=(run.finished_at - run.created_at).total_seconds() if run.finished_at else None,
        trained_tokens=trained,
        billed_tokens=billed,
        tokens_per_second=_speed(run, ordered),
        train_loss=train[-1].value if train else None,
        valid_loss=_result(ordered, "valid_loss", valid),
        reward=_result(ordered, "valid_reward", reward),
        train_curve=_thinned(train),
        valid_curve=_thinned(valid),
        tokens_known=any("tokens" in p.values for p in ordered),
        settings=_settings(run, translation),
        chosen=_chosen(run, translation),
        reconciliation=costing.reconcile(run),
        scores=_latest(run, results),
        serving=costing.serving_terms(run.provider, run.model),
    )


def _speed(run: Run, points: Sequence[MetricPoint]) -> float | None:
    """Return tokens per second, as reported or from the run's total time."""
    reported = [p.values["tokens_per_second"] for p in points if "tokens_per_second" in p.values]
    if reported:
        return fmean(reported)
    if not (run.trained_tokens and run.finished_at and run.started_at):
        return None
    seconds = (run.finished_at - run.started_at).total_seconds()
    return run.trained_tokens / seconds if seconds > 0 else None


def _billed_tokens(run: Run) -> int | None:
    """Return the tokens on the bill if it is by tokens, otherwise on the quote."""
    for lines in (run.bill.lines if run.bill else (), run.quote.lines if run.quote else ()):
        counted = [line.quantity for line in lines if (line.component, line.unit) == _BY_TOKEN]
        if counted:
            return int(sum(counted) * MTOK)
    return None


def _last_tokens(points: Sequence[MetricPoint]) -> int | None:
    seen = [p.values["tokens"] for p in points if "tokens" in p.values]
    return int(max(seen)) if seen else None


def _axis(points: Sequence[MetricPoint], tokens: int | None, steps: int | None) -> dict[int, float]:
    """Map steps to tokens trained so far: as reported, or else the run's tokens spread evenly over its steps,
    or else the steps themselves."""
    reported = {p.step: p.values["tokens"] for p in points if "tokens" in p.values}
    last = max([p.step for p in points], default=0)
    total = max(steps or 0, last)
    per_step = tokens / total if tokens and total else 1.0
    return {p.step: reported.get(p.step, p.step * per_step) for p in points}


def _curve(points: Sequence[MetricPoint], name: str, axis: dict[int, float]) -> list[CurvePoint]:
    return [
        CurvePoint(tokens=axis[p.step], value=p.values[name])
        for p in points
        if name in p.values and abs(p.values[name]) != float("inf") and p.values[name] == p.values[name]
    ]


def _result(points: Sequence[MetricPoint], name: str, curve: Sequence[CurvePoint]) -> float | None:
    """Return the result of the saved weights: that of the best evaluation if the host reports it, or else the
    last one. `None` if the last one was not finite, because an earlier one is not that of the saved
    weights."""
    reported = [p.values[f"result_{name}"] for p in points if f"result_{name}" in p.values]
    last = next((p for p in reversed(points) if name in p.values or name in p.not_finite), None)
    if last is not None and name in last.not_finite and not reported:
        return None
    return reported[-1] if reported else curve[-1].value if curve else None


def _thinned(points: Sequence[CurvePoint]) -> tuple[CurvePoint, ...]:
    size = -(-len(points) // _POINTS)
    if size <= 1:
        return tuple(points)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return tuple(
        CurvePoint(tokens=fmean(p.tokens for p in group), value=fmean(p.value for p in group))
        for group in groups
    )


def _settings(run: Run, translation: Translation | None) -> dict[str, str]:
    if translation is not None:
        return {row.name: _shown(row) for row in translation.settings if row.name not in _NOT_SETTINGS}
    return _requested(run)


def _shown(row: Setting) -> str:
    value = row.sent if row.sent is not None else row.asked
    if value is None:
        return f"chosen by the host{_mark(row.outcome)}"
    return f"{_value(value)}{_mark(row.outcome)}"


def _chosen(run: Run, translation: Translation | None) -> tuple[str, ...]:
    if translation is None:
        return tuple(_requested(run))
    return tuple(row.name for row in translation.settings if row.asked is not None)


def _requested(run: Run) -> dict[str, str]:
    requested = {k: v for k, v in run.spec.items() if k not in _NOT_SETTINGS and v not in (None, {}, [])}
    return dict(_flat(requested))


def _mark(outcome: Outcome) -> str:
    return "" if outcome is Outcome.KEPT else f" ({outcome.value})"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = cast("Mapping[str, Any]", value)
            if set(inner) == {"type"}:
                yield f"{prefix}{name}", str(inner["type"])
            else:
                yield from _flat(inner, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", _value(value)


def _value(value: Any) -> str:
    """Format a value as in a spec."""
    if isinstance(value, Mapping):
        inner = cast("Mapping[str, Any]", value)
        return ", ".join(f"{name}={_value(part)}" for name, part in inner.items() if part is not None)
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in cast("Sequence[Any]", value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _latest(run: Run, results: Sequence[Evaluation]) -> tuple[RunScore, ...]:
    """Return the newest score of each metric on each set of items, excluding checkpoints."""
    newest: dict[tuple[str, str, int], RunScore] = {}
    for one in sorted(results, key=lambda r: r.created_at):
        for c in one.contenders:
            if c.run_id != run.id or c.checkpoint is not None:
                continue
            for metric in one.metrics:
                score = one.score(c.name, metric.name)
                if score is None:
                    continue
                apart = one.difference(c.name, metric.name)
                found = RunScore(
                    metric=metric,
                    score=score,
                    contender=c,
                    difference=apart,
                    rival_score=one.score(apart.against, metric.name) if apart else None,
                    evaluation=one,
                )
                newest[(metric.name, *found.rows)] = found
    return tuple(newest.values())
