"""Runs told to the trackers, read back by the trackers' own readers."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.unit.reports.conftest import START, make_metrics, make_result, make_run

from orchestrate.errors import HostUnavailable, UsageError
from orchestrate.runs import trackers as exporters
from orchestrate.runs.trackers.records import Story
from orchestrate.types import JobStatus, MetricPoint

ODD = 'a|b/c:"<script>`\u202e'


def story(steps: int = 50, **changes: Any) -> Story:
    run = make_run("together", **changes)
    points = [replace(p, at=START + timedelta(seconds=p.step)) for p in make_metrics(steps=steps)]
    return Story(run=run, points=tuple(points), evaluations=(make_result(run, 0.8),))


def going(steps: int) -> Story:
    return story(steps, status=JobStatus.RUNNING, finished_at=None, bill=None)


def told(found: Story, name: str) -> list[tuple[int, float]]:
    return [(p.step, p.values[name]) for p in found.points if name in p.values]


def approximately(pairs: list[tuple[int, float]]) -> list[tuple[int, Any]]:
    """TensorBoard keeps 32 bits."""
    return [(step, pytest.approx(value, rel=1e-6)) for step, value in pairs]


def test_an_unknown_tracker_and_a_file_for_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown tracker"):
        exporters.opened("comet")
    (tmp_path / "file").write_text("")
    for to in ("tensorboard", "wandb"):
        with pytest.raises(UsageError, match="is not a folder"):
            exporters.opened(to, str(tmp_path / "file"))


def leveldb_log(data: bytes) -> list[bytes]:
    """The records of a log in the format of LevelDB, after the seven bytes that wandb puts first
    (https://github.com/google/leveldb/blob/main/doc/log_format.md)."""
    assert data.startswith(b":W&B")
    at, parts, found = 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(parts)
            parts = b""
    return found


class TestTensorBoard:
    def read(self, folder: Path) -> Any:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
        found.Reload()
        return found

    def scalars(self, folder: Path, name: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in self.read(folder).Scalars(name)]

    def test_a_finished_run(self, tmp_path: Path) -> None:
        given = story()
        with exporters.opened("tensorboard", str(tmp_path)) as tracker:
            logged = tracker.write(given)
        folder = tmp_path / given.run.id
        assert logged.where == str(folder)
        for name in ("train_loss", "valid_loss", "tokens"):
            assert self.scalars(folder, name) == approximately(told(given, name)), name
        assert self.scalars(folder, "cost_usd") == approximately([(50, 0.76)])
        assert self.scalars(folder, "eval/exact_match") == approximately([(50, 0.8)])
        walls = [event.wall_time for event in self.read(folder).Scalars("train_loss")]
        assert walls == [START.timestamp() + step for step in range(1, 51)]
        [shown] = self.read(folder).Tensors("settings")
        table = shown.tensor_proto.string_val[0].decode()
        assert "| adapter.r | 16 |" in table and f"| orchestrate.run | {given.run.id} |" in table

    def test_what_is_there_is_not_put_there_again(self, tmp_path: Path) -> None:
        for steps, new in ((20, True), (20, False), (50, True)):
            with exporters.opened("tensorboard", str(tmp_path)) as tracker:
                assert bool(tracker.write(going(steps)).values) is new
        with exporters.opened("tensorboard", str(tmp_path)) as tracker:
            tracker.write(going(60))
            tracker.write(story(70))
            assert tracker.write(story(70)).values == 0
        folder = tmp_path / story().run.id
        assert self.scalars(folder, "train_loss") == approximately(told(story(70), "train_loss"))
        assert len(self.read(folder).Tensors("settings")) == 1

    def test_texts_of_others_are_cells(self, tmp_path: Path) -> None:
        given = story(3, tags={"odd": "a|b\nc"}, model=ODD)
        with exporters.opened("tensorboard", str(tmp_path), "project") as tracker:
            tracker.write(given)
        [shown] = self.read(tmp_path / "project" / given.run.id).Tensors("settings")
        assert "| odd | a\\|b c |" in shown.tensor_proto.string_val[0].decode()


@pytest.mark.slow  # its database is made by dozens of migrations
@pytest.mark.filterwarnings("ignore")  # of MLflow, about itself
class TestMLflow:
    @pytest.fixture(scope="class")
    def uri(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        folder = tmp_path_factory.mktemp("mlflow")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        yield f"sqlite:///{folder}/mlflow.db"

    def run(self, uri: str, project: str) -> Any:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(project)
        assert experiment is not None
        [run] = client.search_runs([experiment.experiment_id])
        return client, run

    def history(self, uri: str, project: str, name: str) -> list[tuple[int, float]]:
        client, run = self.run(uri, project)
        return sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, name))

    def test_a_run_followed_and_finished(self, uri: str) -> None:
        for part in (going(20), going(20), going(50), story(60), story(60)):
            with exporters.opened("mlflow", uri, "followed") as tracker:
                logged = tracker.write(part)
        assert logged.values == 0, "all of it was there"
        for name in ("train_loss", "valid_loss"):
            assert self.history(uri, "followed", name) == told(story(60), name)
        _, run = self.run(uri, "followed")
        assert (run.info.status, run.info.run_name) == ("FINISHED", story().name)
        assert run.info.start_time == int((START + timedelta(minutes=2)).timestamp() * 1000)
        assert run.data.params["adapter.r"] == "16" and run.data.params["epochs"] == "3"
        assert run.data.tags["orchestrate.run"] == story().run.id
        assert run.data.metrics["cost_usd"] == 0.76 and run.data.metrics["eval/exact_match"] == 0.8

    def test_more_than_a_request_takes_and_odd_names(self, uri: str) -> None:
        points = [MetricPoint(step=n, values={"train_loss": 1.0, ODD: 2.0}) for n in range(1, 1502)]
        settings = {f"s{n}": n for n in range(150)} | {"long": "x" * 10_000, ODD: ODD}
        run = make_run("openai", spec=settings, tags={ODD: ODD}, status=JobStatus.FAILED)
        for new in (3000, 0):
            with exporters.opened("mlflow", uri, "odd") as tracker:
                logged = tracker.write(Story(run=run, points=tuple(points)))
            assert (logged.values > new) is (new > 0)
        client, found = self.run(uri, "odd")
        assert found.info.status == "FAILED" and len(found.data.params) == 152
        odd = next(name for name in found.data.metrics if name.startswith("a_b"))
        assert len(client.get_metric_history(found.info.run_id, odd)) == 1501

    def test_a_server_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(HostUnavailable, match="did not respond"):
            exporters.opened("mlflow", "http://127.0.0.1:9")


@pytest.mark.slow  # it starts a service for each run
@pytest.mark.filterwarnings("ignore")  # of W&B's client, about Python's and its own
class TestWandB:
    def read(self, folder: Path) -> list[Any]:
        """All records of all files that `wandb sync` would send, by wandb's own descriptions."""
        from wandb.proto import wandb_internal_pb2

        found = []
        for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
            for data in leveldb_log(file.read_bytes()):
                record = wandb_internal_pb2.Record()
                record.ParseFromString(data)
                found.append(record)
        return found

    def history(self, folder: Path, name: str) -> list[tuple[int, float]]:
        rows = []
        for record in self.read(folder):
            if record.WhichOneof("record_type") == "history":
                row = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item}
                if name in row:
                    rows.append((record.history.step.num, row[name]))
        return rows

    def test_a_run_written_to_a_folder_for_sync(self, tmp_path: Path) -> None:
        given = story(40)
        for part, new in ((going(20), True), (given, True), (given, False)):
            with exporters.opened("wandb", str(tmp_path), "tickets") as tracker:
                logged = tracker.write(part)
            assert bool(logged.values) is new
        assert self.history(tmp_path, "train_loss") == told(given, "train_loss")
        assert self.history(tmp_path, "valid_loss") == told(given, "valid_loss")
        runs = [r.run for r in self.read(tmp_path) if r.WhichOneof("record_type") == "run"]
        assert {(run.run_id, run.project) for run in runs} == {(given.run.id, "tickets")}
        settings = {item.key: item.value_json for item in runs[0].config.update}
        assert settings["adapter.r"] == '"16"'
        assert "wandb sync" in logged.notes[0] and given.run.id in logged.notes[0]
