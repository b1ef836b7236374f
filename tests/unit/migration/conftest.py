"""A sandbox whose jobs are not trained, a store, and runs as a team has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrate import JobSpec, Orchestrator, RunHandle
from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations
from orchestrate.sandbox.server import Sandbox
from orchestrate.settings import config


@pytest.fixture(scope="module", autouse=True)
def forked(quick_python: None) -> None:
    """Models answer and train in processes that are up at once."""


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    waits = Durations(file=0, deploying=0, training=900)
    with running(home=tmp_path / "hosts", train=False, speed=50, waits=waits) as found:
        yield found


@pytest.fixture
def own_env(tmp_path: Path, sandbox: Sandbox) -> dict[str, str]:
    own = {"ORCHESTRATE_HOME": str(tmp_path / "home"), "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml")}
    return {**sandbox.env, **own}


@pytest.fixture
def ft(tmp_path: Path, own_env: dict[str, str]) -> Iterator[Orchestrator]:
    with Orchestrator(config.load(env=own_env, cwd=tmp_path)) as found:
        yield found


def chat_rows(path: Path, first: int, last: int) -> str:
    """Long enough to differ, with a system text that all of them share."""
    rows = [
        {
            "messages": [
                {"role": "system", "content": "You name colours."},
                {"role": "user", "content": f"Which colour has thing {i} of {i * 7919 % 1000}?"},
                {"role": "assistant", "content": ("blue", "red", "green")[i % 3]},
            ]
        }
        for i in range(first, last)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def old(ft: Orchestrator, sandbox: Sandbox, tmp_path: Path) -> RunHandle:
    """A run that succeeded, with held-out rows of its own."""
    spec = JobSpec(
        model="gpt-4o-mini",
        train=chat_rows(tmp_path / "train.jsonl", 0, 12),
        test=chat_rows(tmp_path / "test.jsonl", 100, 130),
        epochs=2,
        batch_size=4,
        learning_rate_multiplier=1.8,
        suffix="colours",
        seed=7,
    )
    run = ft.submit(spec, "openai")
    sandbox.skip(3600)
    run.refresh()
    return run
