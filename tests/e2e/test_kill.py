"""kill -9 of the command and of the local worker in the middle of a run: nothing is lost, nothing doubled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Cli
from tests.paths import BUNDLED
from tests.waiting import until

from orchestrate.local import RunDir

pytestmark = pytest.mark.slow
PATIENCE_S = 240


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """Long enough to be killed in the middle: a kill needs a few steps before and after it."""
    lines = (BUNDLED / "orders/train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[:240]))
    path = tmp_path / "finetune.yaml"
    path.write_text(
        f"model: {BUNDLED / 'tiny-chat'}\ntrain: train.jsonl\nadapter: qlora\nepochs: 2\n"
        "batch_size: 8\nlearning_rate: 0.002\ncheckpoints: 8\nprovider_options: {local: {threads: 1}}\n"
    )
    return path


def only_run_dir(tmp_path: Path) -> RunDir:
    [folder] = (tmp_path / "home" / "local" / "runs").iterdir()
    return RunDir(folder)


def test_killing_the_command_leaves_the_run_alone(
    cli: Cli, cli_env: dict[str, str], spec: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "orchestrate.cli", "submit", str(spec), "-p", "local", "--yes", "--watch"]
    command = subprocess.Popen(words, env=cli_env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: steps_of(tmp_path) >= 3, "the third step")
    command.send_signal(signal.SIGKILL)
    command.wait()
    assert cli("watch", "last").code == 0
    [run] = cli("runs", "--json").json
    assert (run["status"], run["step"]) == ("succeeded", run["total_steps"])


def test_a_killed_worker_goes_on_from_its_last_checkpoint(cli: Cli, spec: Path, tmp_path: Path) -> None:
    assert cli("submit", str(spec), "-p", "local", "--yes").code == 0
    until(lambda: steps_of(tmp_path) >= 20, "the twentieth step")
    kill_worker(only_run_dir(tmp_path))
    stopped = cli("show", "last", "--json").json
    assert stopped["status"] not in ("succeeded", "failed", "cancelled"), "an interrupted run has not ended"
    assert cli("watch", "last").code == 0, "watching starts a new worker"
    [run] = cli("runs", "--json").json
    assert (run["status"], run["step"]) == ("succeeded", run["total_steps"])
    steps = [
        point["step"] for point in cli("metrics", "last", "--json").json if "train_loss" in point["values"]
    ]
    assert steps == sorted(set(steps)) and steps[-1] == run["total_steps"], "each step is told once"
    said = [event["message"] for event in cli("events", "last", "--json").json]
    assert any(message.startswith("continuing from step") for message in said)


def steps_of(tmp_path: Path) -> int:
    """By its folder: a command takes longer than some steps."""
    return sum(len(RunDir(run).metrics()) for run in (tmp_path / "home" / "local" / "runs").glob("*"))


def kill_worker(rundir: RunDir) -> None:
    worker = json.loads((rundir.path / "worker.json").read_bytes())
    os.kill(worker["pid"], signal.SIGKILL)
    until(lambda: not rundir.alive(), "the worker's end")
