"""Log runs to MLflow. The tag `orchestrate.run` identifies a run."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

import httpx

from orchestrate.core import needed
from orchestrate.errors import HostUnavailable, ProviderError
from orchestrate.runs.trackers.records import PROJECT, ExporterContext, Logged, Story, new
from orchestrate.types import JobStatus

T = TypeVar("T")

_STATUS = {JobStatus.SUCCEEDED: "FINISHED", JobStatus.FAILED: "FAILED", JobStatus.CANCELLED: "KILLED"}
_METRICS, _OTHERS = 1000, 100
"""Limits per request: the number of metrics, and the number of params or tags. See
https://docs.databricks.com/api/experiments/v1/log-batch."""
_LONGEST = 6000
"""Maximum length of a param's value, in characters. Tags may have up to 8,000."""
_PATIENCE_S = 10.0


def opened(at: str | None, project: str | None) -> MLflow:
    """Open an exporter to MLflow. `at` is a tracking URI, such as `http://host:5000` or
    `sqlite:///mlflow.db`. The default is `MLFLOW_TRACKING_URI` or, if that is not set, MLflow's own default.
    Raises `MissingExtra` if MLflow is not installed, and `HostUnavailable` if the server does not respond."""
    with needed("mlflow", "logging to MLflow", "mlflow-skinny"):
        client = _part("mlflow").MlflowClient(tracking_uri=at)
    _reachable(str(client.tracking_uri))
    return MLflow(client, project or PROJECT)


def _reachable(uri: str) -> None:
    """Check that the server responds, because MLflow's client retries for minutes. Raises
    `HostUnavailable`."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        httpx.get(uri, timeout=_PATIENCE_S)
    except httpx.HTTPError as error:
        raise HostUnavailable(
            "mlflow",
            f"{uri} did not respond: {error}",
            fix="start the server (mlflow server), or choose a different one with --at",
        ) from error


class MLflow(ExporterContext):
    def __init__(self, client: Any, experiment: str) -> None:
        self._client, self._experiment = client, experiment
        uri = str(client.tracking_uri)
        on_disk = "://" not in uri or uri.startswith(("file:", "sqlite:"))
        self.address = None if on_disk else uri
        self._ids: dict[str, str] = {}
        self._known: dict[str, set[tuple[str, int]]] = {}

    def write(self, story: Story) -> Logged:
        with _refusals():
            return self._write(story)

    def _write(self, story: Story) -> Logged:
        entities, run = _part("mlflow.entities"), story.run
        run_id = self._run(story)
        known = self._known[run_id]
        points = new(story, known)
        last = story.points[-1].step if story.points else 0
        ends = {_key(n): v for n, v in story.summary.items()}
        before = self._client.get_run(run_id).data
        values: list[Any] = [
            entities.Metric(_key(name), point.values[name], round(story.seconds(point) * 1000), step)
            for name, step, point in points
        ]
        ended = round((run.finished_at or run.updated_at).timestamp() * 1000)
        values += [entities.Metric(n, v, ended, last) for n, v in ends.items() if before.metrics.get(n) != v]
        params: list[Any] = [
            entities.Param(_key(n), v[:_LONGEST])
            for n, v in story.params.items()
            if _key(n) not in before.params
        ]
        tags: list[Any] = [entities.RunTag(_key(n), v[:_LONGEST]) for n, v in story.tags.items()]
        for part in _parts(params, _OTHERS):
            self._client.log_batch(run_id, params=part)
        for part in _parts(tags, _OTHERS):
            self._client.log_batch(run_id, tags=part)
        for part in _parts(values, _METRICS):
            self._client.log_batch(run_id, metrics=part)
        if run.status in _STATUS:
            self._client.set_terminated(run_id, _STATUS[run.status], ended)
        known |= {(name, step) for name, step, _ in points}
        return Logged(
            run_id=run.id, to="mlflow", where=f"run {run_id} of {self._experiment}", values=len(values)
        )

    def _run(self, story: Story) -> str:
        """Return the id of MLflow's run that is tagged with our run id, or create one."""
        run = story.run
        if run.id in self._ids:
            return self._ids[run.id]
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self._experiment)
        there = self._client.search_runs([experiment], f"tags.`orchestrate.run` = '{run.id}'")
        if there:
            made = there[0]
            known = {
                (n, m.step)
                for n in made.data.metrics
                for m in self._client.get_metric_history(made.info.run_id, n)
            }
        else:
            began = round((run.started_at or run.created_at).timestamp() * 1000)
            made = self._client.create_run(
                experiment, began, {"orchestrate.run": run.id}, run_name=story.name
            )
            known = set[tuple[str, int]]()
        run_id = str(made.info.run_id)
        names = {_key(n): n for p in story.points for n in p.values}
        self._ids[run.id] = run_id
        self._known[run_id] = {(names.get(n, n), step) for n, step in known}
        return run_id


def _part(name: str) -> Any:
    """Import a module of MLflow, which publishes few types."""
    return import_module(name)


def _key(name: str) -> str:
    """Replace characters that MLflow does not allow in a name. It allows letters, digits and `_-. /`."""
    return re.sub(r"[^\w\-. /]", "_", name)[:250].strip("/ ") or "_"


def _parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


@contextmanager
def _refusals() -> Generator[None]:
    try:
        yield
    except _part("mlflow.exceptions").MlflowException as error:
        raise ProviderError("mlflow", str(error), code=getattr(error, "error_code", None)) from error
