"""The commands that follow a crash, as their users run them: resume, sync, worker, recover."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import command
from tests.faults.submitting import submit_once, write_rows
from tests.paths import ROOT

from orchestrate import sandbox
from orchestrate.sandbox.jobs import Durations


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with sandbox.running(
        home=tmp_path_factory.mktemp("sandbox"), train=False, speed=50, waits=Durations(file=0.0)
    ) as running:
        yield running


class Shell:
    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_BASE_URL"))}
        own = {"ORCHESTRATE_HOME": str(folder / "home"), "ORCHESTRATE_KEYS": str(folder / "keys.toml")}
        self.env = kept | env | own | {"HOME": str(folder), "COLUMNS": "160"}
        self.rows = write_rows(folder / "rows.jsonl")
        self.store = f"sqlite:///{folder}/home/runs.sqlite3"

    def run(self, *arguments: str, code: int = 0) -> str:
        done = command.run([*arguments], cwd=self.folder, env=self.env)
        out, err = done.out.decode(), done.err.decode()
        assert "Traceback" not in err, err
        assert done.code == code, (out, err)
        return out

    def crash(self, provider: str, point: str) -> None:
        marks = self.folder / f"marks-{time.monotonic_ns()}"
        arguments = [self.store, provider, str(self.rows), str(marks), point, "kill"]
        ended = command.run(arguments, cwd=ROOT, env=self.env, program=submit_once)
        assert ended.code == -signal.SIGKILL, ended.err


@pytest.fixture
def shell(tmp_path: Path, hosts: Any) -> Shell:
    return Shell(tmp_path, hosts.env)


def runs(shell: Shell) -> list[dict[str, Any]]:
    return json.loads(shell.run("runs", "--json"))


@pytest.mark.slow
def test_a_crashed_submit_is_resumed_watched_to_its_end_and_told_once(shell: Shell, hosts: Any) -> None:
    told = shell.folder / "told"
    command = f"{sys.executable} -c \"import sys; open('{told}', 'a').write(sys.stdin.read() + chr(10))\""
    shell.run("worker", "--until-idle", "--notify-command", command)
    shell.crash("together", "after-uploaded")
    shell.crash("openai", "after-post")
    time.sleep(1.5)  # the leases of the dead
    shell.run("sync")
    unsent = next(run for run in runs(shell) if run["phase"] == "uploaded")
    shell.run("resume", unsent["id"])
    assert [run["phase"] for run in runs(shell)] == ["submitted", "submitted"]

    hosts.skip(3600)
    for _ in range(2):
        shell.run("worker", "--until-idle", "--notify-command", command)
    assert {run["status"] for run in runs(shell)} == {"succeeded"}
    lines = [json.loads(line)["run"] for line in told.read_text().splitlines()]
    assert sorted(lines) == sorted(run["id"] for run in runs(shell))


def test_runs_tell_how_far_their_submit_came(shell: Shell) -> None:
    told = {
        "after-uploaded": "not sent",
        "after-submitting": "outcome unknown",
        "after-submitted": "submitted",
    }
    for point in told:
        shell.crash("openai", point)
    lines = shell.run("runs").splitlines()[1:]
    assert [next(word for word in told.values() if word in line) for line in lines] == [*told.values()][::-1]
    newest_first = [run["id"] for run in runs(shell)]
    assert "outcome unknown" in shell.run("show", newest_first[1], "--offline")


@pytest.mark.slow
def test_a_deleted_store_is_recovered_from_the_hosts(shell: Shell) -> None:
    shell.crash("fireworks", "after-submitted")
    before = runs(shell)
    for file in (shell.folder / "home").glob("runs.sqlite3*"):
        file.unlink()
    shell.run("recover", "--provider", "openai,together,fireworks", "--all")
    after = {run["id"]: run["job_id"] for run in runs(shell)}
    assert after[before[0]["id"]] == before[0]["job_id"]


@pytest.mark.slow
def test_a_worker_ends_when_asked_and_says_that_the_runs_go_on(shell: Shell) -> None:
    shell.crash("together", "after-submitted")
    worker = subprocess.Popen(
        [sys.executable, "-m", "orchestrate.cli", "worker"],
        cwd=shell.folder,
        env=shell.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    assert worker.stdout.readline(), "it tells what moved"
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=240)
    assert worker.returncode == 0
    assert "The runs continue" in errors
