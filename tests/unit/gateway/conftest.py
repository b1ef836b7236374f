"""A gateway with a store of its own, over the sandbox's hosts and this machine."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from tests.paths import TINY
from tests.waiting import until

from orchestrate.api.orchestrator import Orchestrator
from orchestrate.gateway import server, terms
from orchestrate.providers.base import Deploys, capability
from orchestrate.runs import watch as watching
from orchestrate.runs.hosting.deployment import READY
from orchestrate.sandbox import running as sandbox_running
from orchestrate.sandbox.jobs import Durations
from orchestrate.sandbox.server import Sandbox
from orchestrate.settings import config

ASKED = "gpt-4o-mini-2024-07-18"
MODELS: dict[str, Any] = {
    ASKED: {"backend": "together", "model": "qwen3-8b"},
    "gpt-4.1-mini-2025-04-14": {"backend": "fireworks", "model": "qwen3-8b", "base_learning_rate": 1e-4},
    "gpt-4.1-nano-2025-04-14": {
        "backend": "local",
        "model": str(TINY),
        "settings": {"provider_options": {"local": {"threads": 1}}},
    },
}


@pytest.fixture(scope="module", autouse=True)
def forked(quick_python: None) -> None:
    """Models answer and train in processes that are up at once."""


@dataclass(frozen=True)
class Gateway:
    ft: Orchestrator
    url: str

    def client(self, key: str = "any", **more: Any) -> OpenAI:
        return OpenAI(base_url=self.url, api_key=key, **{"max_retries": 0, **more})

    def http(self, key: str = "any") -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=f"{self.url}/", headers=headers, timeout=240)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    home = tmp_path_factory.mktemp("hosts")
    with sandbox_running(home=home, train=False, speed=50, waits=Durations(file=0)) as found:
        yield found


@contextmanager
def gateway_of(
    home: Path,
    env: dict[str, str],
    table: dict[str, Any] | None = None,
    reached: Callable[[str], None] = lambda place: None,
    **more: Any,
) -> Iterator[Gateway]:
    own = {"ORCHESTRATE_HOME": str(home), "ORCHESTRATE_KEYS": str(home / "keys.toml")}
    settings = config.load(env={**env, **own}, cwd=home)
    with Orchestrator(settings) as ft:
        told = terms.read({"models": MODELS, **(table or {})}, home, "here", port=0, **more)
        with server.serve(ft, told, watching.watcher(ft), reached) as up:
            yield Gateway(ft, up.url)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox) -> Iterator[Gateway]:
    with gateway_of(tmp_path_factory.mktemp("gateway"), sandbox.env) as found:
        yield found


@pytest.fixture
def openai(gateway: Gateway) -> Iterator[OpenAI]:
    with gateway.client() as client:
        yield client


@pytest.fixture
def standing(sandbox: Sandbox) -> Iterator[None]:
    """No job that is made now ends by itself."""
    speed, sandbox.clock.speed = sandbox.clock.speed, 0.001
    yield
    sandbox.clock.speed = speed


@contextmanager
def own_port() -> Iterator[int]:
    """A port that nobody else gets, for a server that is killed and started again: while it is down, any
    program of this machine that asks for a free port could be given it."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))  # never listened on, so that the server may be bound to it too
        yield held.getsockname()[1]


def rows(n: int = 12, mark: str = "") -> bytes:
    turns = [
        {
            "messages": [
                {"role": "user", "content": f"q{mark} {i}"},
                {"role": "assistant", "content": f"a {i}"},
            ]
        }
        for i in range(n)
    ]
    return "".join(json.dumps(turn) + "\n" for turn in turns).encode()


def ended(client: OpenAI, id: str, patience_s: float = 240) -> Any:
    def look() -> Any:
        job = client.fine_tuning.jobs.retrieve(id)
        return job if job.status in ("succeeded", "failed", "cancelled") else None

    return until(look, patience_s=patience_s)


def deployed(gateway: Gateway, run_id: str) -> None:
    """Deploys the run's model, and returns once its host answers with it."""
    run = gateway.ft.run(run_id)
    run.deploy(accept_unknown_price=True)
    host = capability(gateway.ft.provider(run.record.provider), Deploys)

    def ready() -> bool:
        endpoint = host.endpoint(run.record.handle)
        return endpoint is not None and endpoint.state == READY

    until(ready, "the endpoint")
