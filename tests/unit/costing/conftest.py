"""Real data files and translations as a backend would give them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from orchestrate import catalog, costing
from orchestrate.costing import RateBook
from orchestrate.data import TrainingData
from orchestrate.profile import profile
from orchestrate.spec import JobSpec
from orchestrate.types import Outcome, Quote, Setting, Translation

TODAY = date(2026, 11, 25)


def write_rows(path: Path, rows: int, words: int = 40) -> Path:
    with path.open("w") as out:
        for i in range(rows):
            text = " ".join(f"word{(i * 7 + j) % 97}" for j in range(words))
            messages = [
                {"role": "user", "content": f"{i}: {text}"},
                {"role": "assistant", "content": f"yes {i}"},
            ]
            out.write(json.dumps({"messages": messages}) + "\n")
    return path


def write_pairs(path: Path, rows: int) -> Path:
    with path.open("w") as out:
        for i in range(rows):
            row = {
                "input": {"messages": [{"role": "user", "content": f"question {i}"}]},
                "preferred_output": [{"role": "assistant", "content": f"a good long answer {i}"}],
                "non_preferred_output": [{"role": "assistant", "content": f"bad {i}"}],
            }
            out.write(json.dumps(row) + "\n")
    return path


def translate(provider: str, model: str, **settings: Any) -> Translation:
    rows = tuple(
        Setting(name=name, asked=value, outcome=Outcome.KEPT, sent=value) for name, value in settings.items()
    )
    return Translation(provider=provider, model=model, settings=rows, body={})


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    """400 rows to train on and 40 to validate."""
    folder = tmp_path_factory.mktemp("rows")
    train = write_rows(folder / "train.jsonl", 400)
    return TrainingData.open(str(train), str(write_rows(folder / "validation.jsonl", 40)))


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return TrainingData.open(str(write_pairs(tmp_path_factory.mktemp("pairs") / "train.jsonl", 50)))


@pytest.fixture
def translated() -> Callable[..., Translation]:
    return translate


@pytest.fixture
def quote(data: TrainingData) -> Callable[..., Quote]:
    def make(
        provider: str,
        model: str,
        *,
        on: TrainingData | None = None,
        book: RateBook | None = None,
        today: date = TODAY,
        gpu_hours: Any = None,
        sandbox: bool = False,
        spec: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Quote:
        resolved = catalog.resolve(model, provider, today)
        job = JobSpec.parse({"model": model, "train": "t", "validation": "v", **(spec or {})})
        return costing.quote_tokens_job(
            costing.PlannedJob(
                provider,
                profile(provider),
                job,
                on or data,
                translate(provider, resolved.id, **settings),
                resolved,
            ),
            prices=costing.Prices(provider, book or costing.built_in(), today),
            gpu_hours=gpu_hours,
            sandbox=sandbox,
        )

    return make
