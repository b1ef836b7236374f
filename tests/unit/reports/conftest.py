"""Runs with a past: rows as the store would give them."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from orchestrate.types import (
    Bill,
    Contender,
    Difference,
    Evaluation,
    JobStatus,
    Measure,
    MetricPoint,
    MetricUsed,
    Quote,
    QuoteLine,
    Run,
    Score,
    SubmitPhase,
)

START = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)


def make_run(provider: str, *, id: str | None = None, minutes: int = 20, **changes: Any) -> Run:
    line = QuoteLine(
        component="training",
        quantity=Decimal("1.5"),
        unit="usd_per_mtok",
        usd_per_unit=Decimal("0.5"),
        usd_low=Decimal("0.70"),
        usd=Decimal("0.75"),
        usd_high=Decimal("0.80"),
        source="a price page",
        as_of="2026-10-08",
    )
    values: dict[str, Any] = {
        "id": id or f"run-{provider}",
        "ref": f"orch-{provider}",
        "provider": provider,
        "model": "qwen3.5-9b",
        "spec": {
            "model": "qwen3.5-9b",
            "train": "t.jsonl",
            "epochs": 3,
            "adapter": {"type": "lora", "r": 16},
        },
        "spec_hash": "0" * 64,
        "dataset_digest": "a1b2c3d4e5f6" + "0" * 52,
        "host": f"https://{provider}.example",
        "phase": SubmitPhase.SUBMITTED,
        "status": JobStatus.SUCCEEDED,
        "created_at": START,
        "updated_at": START,
        "started_at": START + timedelta(minutes=2),
        "finished_at": START + timedelta(minutes=2 + minutes),
        "total_steps": 200,
        "step": 200,
        "trained_tokens": 1_500_000,
        "quote": Quote(
            provider=provider,
            model="qwen3.5-9b",
            lines=(line,),
            low_usd=Decimal("0.70"),
            expected_usd=Decimal("0.75"),
            high_usd=Decimal("0.80"),
            billed_tokens=1_500_000,
        ),
        "bill": Bill(usd=Decimal("0.76"), origin="trained_tokens x rate"),
    }
    return Run(**(values | changes))


def make_metrics(*, scale: float = 1.0, steps: int = 200, tokens: bool = True) -> list[MetricPoint]:
    points: list[MetricPoint] = []
    for step in range(1, steps + 1):
        loss = scale * (0.6 + 1.9 * math.exp(-step / 40)) + 0.06 * math.sin(step * 1.7)
        values = {"train_loss": loss}
        if tokens:
            values |= {"tokens": 7500.0 * step, "tokens_per_second": 1200.0}
        if step % 20 == 0:
            values["valid_loss"] = scale * (0.68 + 1.9 * math.exp(-step / 42))
        points.append(MetricPoint(step=step, values=values))
    return points


def make_result(run: Run, tuned: float, base: float = 0.12, **changes: Any) -> Evaluation:
    contender = Contender(
        name=run.id,
        kind="tuned",
        model=run.model,
        provider=run.provider,
        served_by="the adapter on this machine",
        run_id=run.id,
        answers=200,
        usd=Decimal("0.40"),
        seconds=0.5,
        seconds_p95=0.9,
    )
    rival = replace(contender, name="base", kind="base", run_id=None)
    scores = {
        run.id: Score(value=tuned, low=tuned - 0.03, high=tuned + 0.025, n=200),
        "base": Score(value=base, low=base - 0.05, high=base + 0.06, n=200),
    }
    gap = tuned - base
    difference = Difference(
        contender=run.id,
        against="base",
        metric="exact_match",
        score=Score(value=gap, low=gap - 0.06, high=gap + 0.06, n=200),
        gained=160,
        lost=3,
        p_value=0.0001,
        p_corrected=0.0001,
    )
    values: dict[str, Any] = {
        "id": f"eval-{run.id}",
        "created_at": START,
        "dataset": "test.jsonl",
        "dataset_digest": "f" * 64,
        "items": 200,
        "items_digest": "f" * 64,
        "contenders": (contender, rival),
        "metrics": (MetricUsed(name="exact_match", kind="right-or-wrong"),),
        "measures": tuple(Measure(contender=c, metric="exact_match", score=s) for c, s in scores.items()),
        "differences": (difference,),
        "against": "base",
    }
    return Evaluation(**(values | changes))


@pytest.fixture
def run() -> Callable[..., Run]:
    return make_run


@pytest.fixture
def points() -> Callable[..., list[MetricPoint]]:
    return make_metrics


@pytest.fixture
def result() -> Callable[..., Evaluation]:
    return make_result
