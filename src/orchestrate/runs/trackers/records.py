"""The data of a run that a tracker receives, and the result of logging it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol, Self

from orchestrate.types import Evaluation, JobStatus, MetricPoint, Record, Run
from orchestrate.types.record import flat

PROJECT = "orchestrate"
"""Default project in the tracker."""


class Story(Record, frozen=True, kw_only=True):
    """The data of a run that is sent to a tracker."""

    run: Run
    points: tuple[MetricPoint, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()

    @property
    def params(self) -> dict[str, str]:
        """The requested settings, keyed by dotted name."""
        return {name: _text(value) for name, value in flat(self.run.spec) if value is not None}

    @property
    def tags(self) -> dict[str, str]:
        run = self.run
        known = {
            "orchestrate.run": run.id,
            "orchestrate.provider": run.provider,
            "orchestrate.status": run.status.value,
            "orchestrate.data": run.dataset_digest,
            "orchestrate.job": run.job_id,
            "orchestrate.tuned_model": run.tuned_model,
            "orchestrate.sandbox": "yes" if run.sandbox else None,
            "orchestrate.error": run.error.message if run.error else None,
        }
        return {name: value for name, value in known.items() if value} | run.tags

    @property
    def name(self) -> str:
        return f"{self.run.provider} {self.run.model} {self.run.id}"

    @property
    def summary(self) -> dict[str, float]:
        """Summary values of an ended run: cost, and the latest score for each metric."""
        run = self.run
        if not run.status.terminal:
            return {}
        found = {
            f"eval/{m.metric}": m.score.value for e in self.evaluations for m in e.measures if self._own(e, m)
        }
        quote = run.quote.expected_usd if run.quote else None
        for name, usd in (("quote_usd", quote), ("cost_usd", run.bill.usd if run.bill else None)):
            if usd is not None:
                found[name] = float(usd)
        if run.finished_at and run.started_at:
            found["seconds"] = (run.finished_at - run.started_at).total_seconds()
        return found

    def _own(self, evaluation: Evaluation, measure: Any) -> bool:
        """Return whether a score is of the run's own model, not of a checkpoint or a slice."""
        return not measure.slice and any(
            c.name == measure.contender and c.run_id == self.run.id and c.checkpoint is None
            for c in evaluation.contenders
        )

    def seconds(self, point: MetricPoint) -> float:
        """Return the Unix time of a metric point in seconds. If the host did not report a time, return the
        run's start time."""
        return (point.at or self.run.started_at or self.run.created_at).timestamp()

    @property
    def failed(self) -> bool:
        return self.run.status is JobStatus.FAILED


class Logged(Record, frozen=True, kw_only=True):
    """The result of logging one run to a tracker."""

    run_id: str
    to: str
    where: str
    """The run's URL, folder or id in the tracker."""
    values: int
    """Number of new values that were sent."""
    notes: tuple[str, ...] = ()


class Exporter(Protocol):
    """An open tracker."""

    address: str | None
    """URL of the tracker's server. `None` means files on this machine."""

    def write(self, story: Story) -> Logged:
        """Write a run's data to the tracker. Raises `ProviderError` if the tracker rejects it or cannot be
        reached."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class ExporterContext:
    """An exporter as a context manager."""

    def close(self) -> None:
        """Release open resources."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def new(
    story: Story, known: Sequence[tuple[str, int]] | set[tuple[str, int]]
) -> list[tuple[str, int, MetricPoint]]:
    """List the values that the tracker does not have yet as (name, step, point), sorted by step."""
    return [
        (name, point.step, point)
        for point in story.points
        for name in point.values
        if (name, point.step) not in known
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
