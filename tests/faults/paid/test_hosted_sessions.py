"""Sessions at Fireworks and Together whose caller is killed: nothing is billed twice, what the host bills is
counted, and what is left up is seen and ends. At each point the host knows more than what is written down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.paths import ROOT, TINY
from tests.unit.sessions import test_at_hosts
from tests.unit.sessions.conftest import ft, home, sandbox
from tests.unit.sessions.homes import workspace
from tests.unit.sessions.loop import LORA, OPTIONS
from tests.unit.sessions.losses import trained

from orchestrate import JobStatus, Orchestrator
from orchestrate.providers import rented
from orchestrate.sandbox.server import Sandbox

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]
__all__ = ["ft", "home", "sandbox"]
RENTED = {
    "a trainer at fireworks": (test_at_hosts.FIREWORKS.up, test_at_hosts.FIREWORKS.machines),
    "together": (test_at_hosts.TOGETHER.up, test_at_hosts.TOGETHER.machines),
}
"""Hosts whose machines bill by the hour: which are up, and all of them, newest first."""
AWAY_S = 500


def killed(home: Path, sandbox: Sandbox, host: str, where: str) -> None:
    own = {"ORCHESTRATE_HOME": str(home), "ORCHESTRATE_KEYS": str(home / "keys.toml")}
    loop = ["-m", "tests.unit.sessions.loop", str(home), f"new at {host}", "4", "2", where]
    done = subprocess.run(
        [sys.executable, *loop],
        env={**os.environ, **sandbox.env, **own},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


def paused(ft: Orchestrator) -> Any:
    run = next(iter(ft.runs()))
    record = run.refresh()
    assert record.status is JobStatus.PAUSED and record.error and record.error.code == "caller_gone"
    return run


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> list[float]:
    with workspace(home) as here, here.session(str(TINY), lora=LORA, options=OPTIONS) as s:
        return trained(s, 4)


@pytest.mark.parametrize(("where", "step"), [("after it is billed", 2), ("amid a save", 0)])
def test_a_killed_caller_where_tokens_are_billed(
    ft: Orchestrator,
    home: Path,
    sandbox: Sandbox,
    undisturbed: list[float],
    tally: Callable[..., None],
    where: str,
    step: int,
) -> None:
    """`step`: of its last save."""
    before = test_at_hosts.host_tokens(sandbox)
    killed(home, sandbox, "fireworks", where)
    run, there = paused(ft), test_at_hosts.host_tokens(sandbox)
    with ft.session(resume=run.id) as s:
        assert s.step == step and trained(s, 4 - step) == pytest.approx(undisturbed[step:], rel=1e-5)
    total = test_at_hosts.host_tokens(sandbox)
    assert total["train"] - there["train"] == (4 - step) * test_at_hosts.STEP, "nothing was billed twice"
    assert run.refresh().status is JobStatus.SUCCEEDED
    assert float(run.record.bill.usd) == pytest.approx(test_at_hosts.host_usd(before, total))
    assert not ft.spending(sandbox=True).idle
    tally(f"caller of a session killed {where}", "fireworks", {"runs": 1, "jobs": 1, "lost": 0, "doubled": 0})


@pytest.mark.parametrize("host", RENTED)
@pytest.mark.parametrize(
    ("where", "clock_s"),
    [
        ("before its machine is known", AWAY_S),
        ("before its machine is known", -24 * 3600),  # it was set back
        ("amid a save", AWAY_S),
    ],
)
def test_a_killed_caller_where_a_machine_bills(
    ft: Orchestrator,
    home: Path,
    sandbox: Sandbox,
    undisturbed: list[float],
    tally: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    where: str,
    clock_s: int,
) -> None:
    up, machines = RENTED[host]
    before = len(machines(sandbox))
    killed(home, sandbox, host, where)
    run = paused(ft)
    [machine] = up(sandbox)
    assert [(one.item.id, one.run) for one in ft.spending(sandbox=True).idle] == [(machine, run.id)]
    sandbox.skip(AWAY_S)  # nobody does anything
    monkeypatch.setattr(rented, "now", lambda: datetime.now(UTC) + timedelta(seconds=clock_s))
    assert not up(sandbox), "its host ends it"
    with ft.session(resume=run.id) as s:
        assert float(s.cost_usd) >= usd(machines(sandbox)[1]) - 0.001 > 0, "what the host billed counts"
        assert s.step == 0 and trained(s, 4) == pytest.approx(undisturbed, rel=1e-5)
    assert len(machines(sandbox)) == before + 2 and not up(sandbox)
    assert run.refresh().status is JobStatus.SUCCEEDED
    tally(f"caller of a session killed {where}", host, {"runs": 1, "jobs": 1, "lost": 0, "doubled": 0})


def usd(machine: dict[str, Any]) -> float:
    return machine["sandboxUsd"] if "sandboxUsd" in machine else machine["sandbox_usd"]
