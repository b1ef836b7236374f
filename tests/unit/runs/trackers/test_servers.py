"""The trackers' own servers: what their pages would draw of a run is what the run has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests import outside
from tests.unit.runs.trackers.test_exporters import going, story, told

from orchestrate.runs import trackers as exporters


@contextmanager
def server(command: list[str], folder: Path, address: str) -> Iterator[str]:
    """A server's URL, which it prints."""
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, stdout=out, stderr=out, env=os.environ | {"PYTHONPATH": ""}
        )
        try:
            until = time.monotonic() + 300
            while not (found := re.search(address, log.read_text())):
                assert process.poll() is None and time.monotonic() < until, log.read_text()[-2000:]
                time.sleep(0.1)
            yield found[0]
        finally:
            process.terminate()
            process.wait()


def answer(url: str, **asked: Any) -> Any:
    """Of a server that has said that it is up, and may not be yet."""
    until = time.monotonic() + 240
    while True:
        try:
            found = httpx.request("POST" if asked.get("json") else "GET", url, timeout=60, **asked)
            found.raise_for_status()
            return found.json()
        except httpx.HTTPError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


@pytest.mark.slow
def test_tensorboard_draws_the_curves(tmp_path: Path) -> None:
    given = story(30)
    with exporters.opened("tensorboard", str(tmp_path / "logs")) as tracker:
        for part in (going(10), given):
            tracker.write(part)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path / "logs")]
    command += ["--port", "0", "--load_fast", "false", "--reload_interval", "0"]
    with server(command, tmp_path, r"http://[\w.]+:\d+/") as url:
        until = time.monotonic() + 240
        while not (tags := answer(f"{url}data/plugin/scalars/tags")):
            assert time.monotonic() < until
            time.sleep(0.2)
        assert {"train_loss", "valid_loss", "cost_usd"} <= set(tags[given.run.id])
        asked = {"run": given.run.id, "tag": "train_loss"}
        drawn = answer(f"{url}data/plugin/scalars/scalars", params=asked)
    assert [(step, pytest.approx(value)) for _, step, value in drawn] == [
        (step, pytest.approx(value)) for step, value in told(given, "train_loss")
    ]


@pytest.mark.outside
@pytest.mark.filterwarnings("ignore")  # of MLflow's client, about itself
def test_an_mlflow_server_has_the_run(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    command = [outside.program("mlflow", "mlflow"), "server", "--backend-store-uri", store, "--port", "5873"]
    with server(command, tmp_path, r"http://127.0.0.1:5873") as url:
        answer(f"{url}/api/2.0/mlflow/experiments/search", json={"max_results": 1})
        for part in (going(10), story(30), story(30)):
            with exporters.opened("mlflow", url) as tracker:
                logged = tracker.write(part)
        assert logged.values == 0
        wanted = {"filter": f"tags.`orchestrate.run` = '{story().run.id}'", "experiment_ids": ["1"]}
        [run] = answer(f"{url}/api/2.0/mlflow/runs/search", json=wanted)["runs"]
        asked = {"run_id": run["info"]["run_id"], "metric_key": "train_loss"}
        kept = answer(f"{url}/api/2.0/mlflow/metrics/get-history", params=asked)["metrics"]
    assert run["info"]["status"] == "FINISHED"
    assert [(m["step"], m["value"]) for m in kept] == told(story(30), "train_loss")
