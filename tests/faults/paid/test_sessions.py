"""Training sessions at a sandboxed host whose caller, server or worker is killed at each step: nothing is
billed twice, what the host bills is in the run's bill, and nothing goes on billing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from tests.paths import ROOT
from tests.unit.sandbox.test_server import end, start
from tests.unit.sessions.homes import workspace
from tests.waiting import until

from orchestrate import sandbox
from orchestrate.sandbox.server import Sandbox
from orchestrate.sandbox.tinker.host import TinkerHost
from orchestrate.types import JobStatus, Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEP = 14
"""Tokens of a step."""
USD = Decimal("2e-6")
"""Of a trained token, in the sandbox."""
Tally = Callable[..., None]
_STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, quick_python: None) -> Iterator[Sandbox]:
    with sandbox.running(home=tmp_path_factory.mktemp("sandbox")) as running:
        yield running


def account(env: Mapping[str, str], name: str) -> dict[str, str]:
    """Variables for an account of its own: what it is billed is of one test."""
    return {**env, "TINKER_API_KEY": f"tml-sandbox-{name.replace(' ', '')}"}


def started(home: Path, env: Mapping[str, str], run: str, killed: str = "nowhere") -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    command = ["-m", "tests.unit.sessions.loop", str(home), run, "4", "2", killed]
    process = subprocess.Popen(
        [sys.executable, *command],
        env={**clean, **env},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def _none_left() -> Iterator[None]:
    yield
    while _STARTED:
        process = _STARTED.pop()
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
    out, err = process.communicate(timeout=1200)
    assert (process.returncode == code) if code <= 0 else (process.returncode > 0), err[-3000:]
    said: dict[str, Any] = {"loss": [], "err": err}
    for one in map(json.loads, out.splitlines()):
        if one["what"] == "loss":
            said["loss"].append(one["value"])
        else:
            said[one["what"]] = one["value"]
    return said


def host_tokens(env: Mapping[str, str]) -> int:
    """Trained tokens that the host has billed to the account."""
    window = {"starting_on": "2020-01-01T00:00:00Z", "ending_before": "2100-01-01T00:00:00Z"}
    url = f"{env['TINKER_BASE_URL']}/api/v1/billing/usage/events"
    events = httpx.get(url, params=window, headers={"x-api-key": env["TINKER_API_KEY"]}).json()["data"]
    assert {one["event_info"]["type"] for one in events} <= {"training"}
    return sum(one["event_info"]["token_count"] for one in events)


def paused(home: Path, env: Mapping[str, str]) -> Run:
    with workspace(home, **env) as ft:
        [run] = ft.runs()
        until(lambda: run.refresh().status is JobStatus.PAUSED, "the end of the session")
        ft.sync()
        return run.refresh()


def usd(run: Run) -> Decimal:
    assert run.bill is not None
    return run.bill.usd


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, box: Sandbox) -> list[float]:
    env = account(box.env, "undisturbed")
    losses = ended(started(tmp_path_factory.mktemp("undisturbed"), env, "new at tinker"))["loss"]
    assert len(losses) == 4 and host_tokens(env) == 4 * STEP
    return losses


@pytest.mark.parametrize(
    ("killed", "step", "unanswered"),
    [
        ("before it is sent", 2, 1),
        ("after it is billed", 2, 0),
        ("amid a step", 2, 0),
        ("amid a save", 0, 0),
        ("after a save", 2, 0),
    ],
)
def test_a_killed_caller(
    tmp_path: Path,
    box: Sandbox,
    undisturbed: list[float],
    tally: Tally,
    killed: str,
    step: int,
    unanswered: int,
) -> None:
    """`step`: of its last save; `unanswered`: requests that the run counts and the host never got."""
    env = account(box.env, killed)
    ended(started(tmp_path, env, "new at tinker", killed), -signal.SIGKILL)
    run, there = paused(tmp_path, env), host_tokens(env)
    assert run.error is not None and run.error.code == "caller_gone"
    assert usd(run) == (there + unanswered * STEP) * USD, "all that may have been billed"
    again = ended(started(tmp_path, env, run.id))
    assert again["step"] == step
    assert again["loss"] == pytest.approx(undisturbed[step:], rel=1e-6)
    with workspace(tmp_path, **env) as ft:
        [one] = ft.runs()
        record = one.refresh()
        assert record.status is JobStatus.SUCCEEDED
        total = host_tokens(env)
        assert total == there + (4 - step) * STEP, "nothing was billed twice"
        assert usd(record) == (total + unanswered * STEP) * USD
    box.skip(1000)
    host = cast("TinkerHost", box.fronts["tinker"].host)
    until(lambda: not host.open_sessions(), "the end of the killed caller's session at its host")
    assert host_tokens(env) == total
    tally(f"caller of a session killed {killed}", "tinker", {"runs": 1, "jobs": 1, "lost": 0, "doubled": 0})


def kill_worker() -> None:
    """The process that trains, of the sandbox in this process."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended since
            child = stat.read_text().rpartition(")")[2].split()[1] == str(os.getpid())
            if child and b"orchestrate.local.sessions.process" in (stat.parent / "cmdline").read_bytes():
                os.kill(int(stat.parent.name), signal.SIGKILL)


def waits(process: subprocess.Popen[str]) -> list[str]:
    """Read what it says until it waits."""
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or '"waits"' not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], process.communicate()[1][-3000:]
    return lines


def test_a_killed_worker(tmp_path: Path, box: Sandbox, undisturbed: list[float], tally: Tally) -> None:
    env = account(box.env, "worker")
    process = started(tmp_path, env, "new at tinker", "waits")
    waits(process)
    kill_worker()
    (tmp_path / "go").touch()
    ended(process, 1)
    run = paused(tmp_path, env)
    assert run.error is not None and run.error.code == "loop_failed"
    again = ended(started(tmp_path, env, run.id))
    assert again["loss"] == pytest.approx(undisturbed[2:], rel=1e-6)
    assert host_tokens(env) == 4 * STEP
    with workspace(tmp_path, **env) as ft:
        assert usd(ft.run(run.id).refresh()) >= 4 * STEP * USD
    tally("worker of a session killed", "tinker", {"runs": 1, "jobs": 1, "lost": 0, "doubled": 0})


@pytest.fixture
def server(tmp_path: Path, quick_python: None) -> Iterator[Callable[[], dict[str, str]]]:
    """Starts the sandbox in a process of its own, killing the one before. Returns its variables."""
    up: list[subprocess.Popen[str]] = []

    def again() -> dict[str, str]:
        if up:
            assert end(up.pop(), signal.SIGKILL) == -signal.SIGKILL
        process, told = start(tmp_path / "server")
        up.append(process)
        return told["env"]

    yield again
    end(up.pop(), signal.SIGKILL)


def test_a_killed_server(tmp_path: Path, server: Callable[[], dict[str, str]], tally: Tally) -> None:
    env = server()
    process = started(tmp_path, env, "new at tinker", "waits")
    waits(process)
    assert server() == env, "the same ports"
    (tmp_path / "go").touch()
    ended(process, 1)
    run = paused(tmp_path, env)
    assert usd(run) >= host_tokens(env) * USD
    said = ended(started(tmp_path, env, run.id))
    assert said["step"] == 2 and len(said["loss"]) == 2
    assert host_tokens(env) == 4 * STEP
    tally("server of a session killed", "tinker", {"runs": 1, "jobs": 1, "lost": 0, "doubled": 0})


def test_a_host_that_is_gone(tmp_path: Path, quick_python: None, tally: Tally) -> None:
    server, told = start(tmp_path / "server")
    env: dict[str, str] = told["env"]
    process = started(tmp_path, env, "new at tinker", "waits")
    waits(process)
    assert end(server, signal.SIGKILL) == -signal.SIGKILL
    (tmp_path / "go").touch()
    with workspace(tmp_path, **env) as ft:
        [run] = ft.runs()
        run.cancel()
    assert "canceled" in ended(process, 1)["err"], "its caller does not wait for a host that is gone"
    with workspace(tmp_path, **env) as ft:
        record = ft.run(run.id).refresh()
        assert record.status is JobStatus.CANCELLED and usd(record) >= 2 * STEP * USD
    tally("host of a session gone", "tinker", {"runs": 1, "jobs": 1, "lost": 0, "doubled": 0})
