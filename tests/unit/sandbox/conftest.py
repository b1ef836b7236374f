"""Sandboxes and official clients for the tests: instant jobs unless a test asks for training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fireworks import Fireworks
from openai import OpenAI
from tests import waiting
from together import Together

from orchestrate.sandbox import running
from orchestrate.sandbox.server import Sandbox

Until = Callable[[Callable[[], Any]], Any]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with running(home=tmp_path_factory.mktemp("sandbox"), train=False, speed=30) as found:
        yield found


@pytest.fixture(autouse=True)
def _no_faults_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "sandbox" in request.fixturenames:
        request.getfixturevalue("sandbox").clear_faults()


@contextmanager
def slowed(sandbox: Sandbox) -> Iterator[Callable[[], None]]:
    """Waits that begin within it take hours, so that a state can be looked at on a busy machine too. What it
    gives goes on by a little, by less than any state lasts."""
    before, sandbox.clock.speed = sandbox.clock.speed, 0.0001
    try:
        yield lambda: sandbox.skip(0.2 / 0.0001)
    finally:
        sandbox.clock.speed = before


@pytest.fixture
def slow_clock(sandbox: Sandbox) -> Iterator[Sandbox]:
    with slowed(sandbox):
        yield sandbox


def openai_client(env: dict[str, str]) -> OpenAI:
    return OpenAI(base_url=env["OPENAI_BASE_URL"], api_key=env["OPENAI_API_KEY"], max_retries=0)


def together_client(env: dict[str, str]) -> Together:
    return Together(
        base_url=env["TOGETHER_BASE_URL"],
        api_key=env["TOGETHER_API_KEY"],
        project_id=env["TOGETHER_PROJECT_ID"],
        max_retries=0,
    )


def fireworks_client(env: dict[str, str]) -> Fireworks:
    return Fireworks(
        base_url=env["FIREWORKS_BASE_URL"],
        api_key=env["FIREWORKS_API_KEY"],
        account_id=env["FIREWORKS_ACCOUNT_ID"],
        max_retries=0,
    )


@pytest.fixture
def clients() -> dict[str, Callable[[dict[str, str]], Any]]:
    """Makers of the official clients, for sandboxes that a test starts itself."""
    return {"openai": openai_client, "together": together_client, "fireworks": fireworks_client}


@pytest.fixture
def openai(sandbox: Sandbox) -> Iterator[OpenAI]:
    with openai_client(sandbox.env) as client:
        yield client


@pytest.fixture
def together(sandbox: Sandbox) -> Iterator[Together]:
    with together_client(sandbox.env) as client:
        yield client


@pytest.fixture
def fireworks(sandbox: Sandbox) -> Iterator[Fireworks]:
    with fireworks_client(sandbox.env) as client:
        yield client


@pytest.fixture
def until() -> Until:
    return waiting.until


def chat_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is item {n}?"},
                {"role": "assistant", "content": f"Item {n} is a chair."},
            ]
        }
        for n in range(start, start + count)
    ]


def preference_rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "input": {"messages": [{"role": "user", "content": f"Name item {n}"}]},
            "preferred_output": [{"role": "assistant", "content": f"chair {n}"}],
            "non_preferred_output": [{"role": "assistant", "content": "no"}],
        }
        for n in range(count)
    ]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows to a JSONL file; plain numbers ask for that many chat rows."""

    def to_file(rows: int | list[Any], name: str = "train.jsonl") -> Path:
        found = chat_rows(rows) if isinstance(rows, int) else rows
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
        return path

    return to_file


@pytest.fixture
def preferences() -> Callable[[int], list[dict[str, Any]]]:
    return preference_rows
