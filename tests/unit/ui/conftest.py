"""Runs to show on pages, and the pages over a real store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from orchestrate import Orchestrator
from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations
from orchestrate.sandbox.server import Sandbox
from orchestrate.settings import config
from orchestrate.spec import JobSpec
from orchestrate.store.runs import Intent
from orchestrate.types import Bill, JobStatus, MetricPoint, Quote, Run, SubmitPhase
from orchestrate.ui.server import app
from orchestrate.ui.site import Site

BEGUN = datetime(2026, 11, 1, 12, tzinfo=UTC)
MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
ESCAPES = "\x1b]0;owned\x07\u202eesrever\u202c"
PRICE = Quote(
    provider="local",
    model="qwen3-8b",
    low_usd=Decimal(1),
    expected_usd=Decimal(2),
    high_usd=Decimal(3),
)
MakeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    home = tmp_path_factory.mktemp("sandbox")
    with running(home=home, train=False, speed=1000, waits=Durations(file=0.0)) as found:
        yield found


@pytest.fixture
def hosts() -> Mapping[str, str]:
    """The environment of the hosts that are asked; a module that asks a sandbox gives its own."""
    return {}


@pytest.fixture
def ft(hosts: Mapping[str, str], tmp_path: Path) -> Iterator[Orchestrator]:
    env = {**hosts, "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml")}
    with Orchestrator(config.load(env=env, cwd=tmp_path, home=tmp_path / "home")) as opened:
        yield opened


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A training file of forty rows."""
    path = tmp_path / "rows.jsonl"
    turn = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "It ships today."}]
    path.write_text("".join(json.dumps({"messages": turn, "n": n}) + "\n" for n in range(40)))
    return path


@pytest.fixture
def make_run(ft: Orchestrator) -> MakeRun:
    """A run in the store, of some settings, with a curve; further fields of the record as they are given."""

    def make(
        suffix: str = "tickets", *, settings: dict[str, Any] | None = None, points: int = 0, **fields: Any
    ) -> Run:
        asked: dict[str, Any] = {"model": "qwen3-8b", "train": "rows.jsonl", "suffix": suffix}
        spec = JobSpec.parse(asked | (settings or {}))
        intent = Intent(spec=spec, provider="local", dataset_digest="d" * 64, host="here", quote=PRICE)
        run = ft.store.runs.create(intent)
        changes = {"phase": SubmitPhase.SUBMITTED, "status": JobStatus.RUNNING, "job_id": run.id} | fields
        ft.store.history.add_metrics(run.id, curve(points))
        now = ft.store.clock.now()
        return ft.store.runs.apply(run.id, lambda r: msgspec.structs.replace(r, updated_at=now, **changes))

    return make


def curve(points: int) -> list[MetricPoint]:
    return [
        MetricPoint(
            step=step,
            values={"train_loss": 2 - step / 100, "learning_rate": 1e-4, "tokens": step * 512.0},
            at=BEGUN + timedelta(minutes=step),
        )
        for step in range(1, points + 1)
    ]


def ended(usd: str = "2.50") -> dict[str, Any]:
    bill = Bill(usd=Decimal(usd), origin="measured hours times the rate")
    return {
        "status": JobStatus.SUCCEEDED,
        "bill": bill,
        "started_at": BEGUN,
        "finished_at": BEGUN + timedelta(hours=1),
    }


@pytest.fixture
def site(ft: Orchestrator) -> Site:
    return Site(ft)


@pytest.fixture
def web(site: Site) -> Iterator[TestClient]:
    """The pages without the guard before them."""
    with TestClient(app(site), raise_server_exceptions=True) as client:
        yield client
