"""Sessions at a sandboxed host through its official client: what is trained, billed and labelled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.paths import ROOT
from tests.unit.sessions.homes import workspace

from orchestrate import sandbox
from orchestrate.costing import PLAY_MONEY, built_in
from orchestrate.sandbox.server import Sandbox

pytestmark = pytest.mark.slow
STEP = 14
"""Tokens of a step."""
CAP = 2.5 * STEP * 2e-6
"""Two steps and a half, at the sandbox's price."""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, quick_python: None) -> Iterator[Sandbox]:
    with sandbox.running(home=tmp_path_factory.mktemp("sandbox")) as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def said(box: Sandbox, home: Path) -> dict[str, Any]:
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.sessions.sandboxed", str(home), str(CAP)],
        env={**clean, **box.env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {one["what"]: one["value"] for one in map(json.loads, done.stdout.splitlines())}


def price(kind: str) -> Decimal:
    [rate] = [one for one in built_in() if one.provider == PLAY_MONEY and one.method == f"session_{kind}"]
    assert "play money" in rate.source
    return rate.usd


@pytest.mark.parametrize("day", ["there", "lost answers", "busy"])
def test_each_request_is_trained_and_billed_once(said: dict[str, Any], day: str) -> None:
    assert said["faults left"] == [], "a fault befell nothing"
    run, host = said[day], said[f"host {day}"]
    assert run["losses"] == pytest.approx(said["here"], rel=1e-6), "the same losses as on this machine"
    assert run["status"] == "succeeded" and run["steps"] == [1, 2, 3]
    prompt = 4 + 4 + run["drawn"] - 1  # of the sample, and the row of the log-probabilities
    by_hand = {"training": 3 * STEP, "sampling_prefill": prompt, "sampling_sample": run["drawn"]}
    assert host["tokens"] == by_hand
    usd = sum(
        tokens * price(kind)
        for tokens, kind in zip(by_hand.values(), ("train", "prefill", "sample"), strict=True)
    )
    assert run["bill"] == pytest.approx(float(usd / 1_000_000))
    assert host["usd"] == pytest.approx(run["bill"]), "the run's bill is the host's"


def test_a_session_that_expires_amid_a_step_goes_on_from_its_save(said: dict[str, Any]) -> None:
    assert "expiry" in said and said["expired"]["status"] == "paused"
    after = said["after the expiry"]
    assert after["status"] == "succeeded" and after["steps"] == [1, 2, 3]
    assert after["losses"] == pytest.approx(said["here"], rel=1e-6)
    host = said["host expired"]
    assert host["tokens"]["training"] == 4 * STEP, "the step that was lost was carried out, too"
    assert after["bill"] == pytest.approx(host["usd"])


def test_a_limit_that_is_reached_amid_a_step_ends_the_session_within_it(said: dict[str, Any]) -> None:
    run, host = said["capped"], said["host capped"]
    assert (run["status"], run["code"], run["steps"]) == ("paused", "limit", [1, 2])
    assert host["tokens"]["training"] == 2 * STEP and host["usd"] <= CAP
    assert run["bill"] == pytest.approx(host["usd"])


def test_its_runs_are_marked_and_take_nothing_of_a_budget(
    said: dict[str, Any], box: Sandbox, home: Path
) -> None:
    id = said["there"]["id"]
    assert said["there"]["committed"] == 0
    with workspace(home) as ft:
        assert id not in {run.id for run in ft.runs()}
        marked = {run.id: run.record for run in ft.runs(sandbox=True)}
        assert marked[id].sandbox and marked[id].host == box.urls["tinker"]
        assert ft.spending(offline=True).total.spent_usd == 0
        assert ft.spending(offline=True, sandbox=True).total.spent_usd > 0
    with workspace(home, **box.env) as ft:
        assert id in {run.id for run in ft.runs()}
        assert ft.provider("tinker").config.sandbox


def test_another_account_sees_nothing_of_it(said: dict[str, Any], box: Sandbox) -> None:
    window = {"starting_on": "2020-01-01T00:00:00Z", "ending_before": "2100-01-01T00:00:00Z"}
    paths = {"checkpoints": "checkpoints", "billing/usage/events": "data"}
    for key, seen in ((box.env["TINKER_API_KEY"], True), ("tml-sandbox-of-another-team", False)):
        for path, field in paths.items():
            answer = httpx.get(
                f"{box.urls['tinker']}/api/v1/{path}", params=window, headers={"x-api-key": key}
            ).raise_for_status()
            assert bool(answer.json()[field]) is seen, (key, path)
            assert answer.headers["x-orchestrate-sandbox"] == "1"
    real = httpx.get(f"{box.urls['tinker']}/api/v1/checkpoints", headers={"x-api-key": "tml-a-real-key"})
    assert real.status_code == 401


def test_without_training_it_says_that_it_has_no_sessions(tmp_path: Path) -> None:
    with sandbox.running(home=tmp_path, train=False) as idle:
        url, key = idle.urls["tinker"], {"x-api-key": idle.env["TINKER_API_KEY"]}
        answer = httpx.post(f"{url}/api/v1/client/config", json={}, headers=key)
        assert answer.status_code == 400 and "without training" in answer.json()["detail"]
        assert httpx.get(f"{url}/api/v1/healthz", headers=key).status_code == 200
        wrong = {"kind": "session_expired"}
        assert httpx.post(f"{idle.urls['openai']}/_sandbox/faults", json=wrong).status_code == 400
