"""Jobs on the three sandboxes, through the official SDKs: each bill is within one per cent of its quote."""

from __future__ import annotations

import os
import time
from decimal import Decimal
from pathlib import Path

import pytest
from tests.paths import BUNDLED
from tests.workers import Nursery

from orchestrate import costing
from orchestrate.api.orchestrator import Orchestrator
from orchestrate.runs.preparing import pricing
from orchestrate.sandbox import running
from orchestrate.settings import config
from orchestrate.spec import JobSpec

pytestmark = pytest.mark.slow

ORDERS = BUNDLED / "orders"
HOSTS = ("openai", "together", "fireworks")


def test_three_hosts(tmp_path: Path, nursery: Nursery) -> None:
    for name, rows in (("train", 60), ("validation", 10)):
        lines = (ORDERS / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[:rows]))
    spec = JobSpec.parse(
        {
            "model": {"openai": "gpt-4o-mini", "default": "qwen3.5-9b"},
            "train": str(tmp_path / "train.jsonl"),
            "validation": str(tmp_path / "validation.jsonl"),
            "epochs": 2,
            "overrides": {"together": {"evals": 1}},
        }
    )
    with running(start=nursery.start) as box:
        settings = config.load(env={**os.environ, **box.env}, home=tmp_path / "home")
        with Orchestrator(settings) as ft:
            live = {p.provider: p for p in pricing.live_prices(ft, ft.prepare(spec, HOSTS))}
            runs = [ft.submit(spec, name).id for name in HOSTS]
            deadline = time.monotonic() + 400
            while any(ft.store.runs.get(id).bill is None for id in runs) and time.monotonic() < deadline:
                ft.sync()
                time.sleep(1)
            done = [ft.store.runs.get(id) for id in runs]
            report = ft.compare(runs)
    origins = {run.provider: run.bill.origin if run.bill else None for run in done}
    assert origins == {
        "openai": "trained_tokens x rate",
        "together": "total_price",
        "fireworks": "estimatedCost",
    }
    for run in done:
        quoted, billed = run.quote, run.bill
        assert quoted is not None and billed is not None
        assert abs(quoted.expected_usd - billed.usd) / billed.usd < Decimal("0.01"), run.provider
        # What a host calls an estimate says nothing of how good a quote was.
        assert billed.final == (costing.reconcile(run) is not None) == (run.provider != "fireworks")
    for name in ("together", "fireworks"):
        assert live[name].within_band, live[name]
    assert live["openai"].reason is not None
    assert [(a.provider, a.sandbox) for a in costing.accuracy(done)] == [("openai", True), ("together", True)]
    assert report.sandbox and "SANDBOX" in report.render("html")
