"""Training sessions at a host through its official client, against a server of our own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.paths import ROOT, TINY
from tests.unit.sessions.homes import workspace
from tests.unit.sessions.hosted import NAME
from tests.waiting import until

from orchestrate import OverBudget, sessions
from orchestrate.types import JobStatus

pytestmark = pytest.mark.slow
RATE = "usd_per_mtok: 1000, source: mine, start: 2020-01-01, confidence: quoted"


def test_the_same_loop_here_and_at_a_host(tmp_path: Path, quick_python: None) -> None:
    (tmp_path / "server").mkdir()
    rates = "\n".join(f"- {{method: session_{what}, {RATE}}}" for what in ("train", "prefill", "sample"))
    (tmp_path / "rates.yaml").write_text(f"provider: tinker\nrates:\n{rates}\n")
    terms = sessions.SessionTerms(port=0, called=(NAME,), threads=1, precision="fp32")
    with workspace(tmp_path / "server") as server, sessions.serve(server, str(TINY), terms) as up:
        said = ran(up.url, "tests.unit.sessions.hosted", str(tmp_path))
    assert "set a limit" in said["unlimited"]
    assert said["there"] == pytest.approx(said["here"][:2], rel=1e-6), "the same model, the same losses"
    assert said["drawn"] == [4, 4]
    assert said["seen"][0] == pytest.approx(said["seen"][1], abs=1e-4)
    broken, done, capped = said["broken off"], said["done"], said["capped"]
    assert (broken["status"], broken["code"], broken["steps"]) == ("paused", "loop_failed", [1, 2])
    assert 0 < broken["costs"][0] < broken["costs"][1] < broken["bill"] == broken["committed"]
    assert said["again"][0] == 2 and said["held"] == 5
    assert said["again"][1] == pytest.approx(said["here"][2:], rel=1e-6)
    assert done["status"] == "succeeded" and done["steps"] == [1, 2, 3, 4] and done["committed"] == 0
    assert done["model"].startswith("tinker://") and done["checkpoints"][0].startswith("tinker://")
    rows = 14  # tokens of a step
    used = 4 * rows + 7 + 4 + 4  # trained; read for the log-probabilities; the sample's prompt and tokens
    assert done["bill"] == pytest.approx(used / 1000)
    assert (capped["status"], capped["code"], capped["steps"]) == ("paused", "limit", [1, 2])
    assert capped["costs"][-1] <= capped["cap"]


def test_what_a_killed_session_held_is_free_until_it_is_resumed(tmp_path: Path, quick_python: None) -> None:
    (tmp_path / "server").mkdir()
    rates = "\n".join(f"- {{method: session_{what}, {RATE}}}" for what in ("train", "prefill", "sample"))
    (tmp_path / "rates.yaml").write_text(f"provider: tinker\nrates:\n{rates}\n")
    terms = sessions.SessionTerms(port=0, called=(NAME,), threads=1, precision="fp32")
    with workspace(tmp_path / "server") as server, sessions.serve(server, str(TINY), terms) as up:
        killed = ["tests.unit.sessions.loop", str(tmp_path), "new at tinker", "4", "2", "after it is billed"]
        ran(up.url, *killed, code=-signal.SIGKILL)
        env = variables(up.url)
        with workspace(tmp_path, **env) as ft:
            [run] = ft.runs()
            assert ft.store.ledger.spending().committed_usd == 5
            until(lambda: ft.sync() and run.refresh().status is JobStatus.PAUSED, "the end of the session")
            cost = Decimal(3 * 14) / 1000  # two steps, and the request that nobody saw answered
            assert ft.store.ledger.spending().committed_usd == cost
            assert run.record.bill is not None and run.record.bill.usd == cost
        with workspace(tmp_path, **env, ORCHESTRATE_BUDGET_USD="4") as ft:
            with pytest.raises(OverBudget):
                ft.session(resume=run.id)
            assert ft.store.ledger.spending().committed_usd == cost
            ft.run(run.id).cancel()
            until(lambda: ft.run(run.id).refresh().status is JobStatus.CANCELLED, "the cancel")
            money = ft.store.ledger.spending()
            assert (money.spent_usd, money.committed_usd) == (cost, 0)


def variables(url: str) -> dict[str, str]:
    return {"TINKER_BASE_URL": url, "TINKER_API_KEY": "tml-key-of-the-test", "TINKER_TELEMETRY": "0"}


def ran(url: str, *command: str, code: int = 0) -> dict[str, Any]:
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env={**clean, **variables(url)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return {one["what"]: one["value"] for one in map(json.loads, done.stdout.splitlines())}
