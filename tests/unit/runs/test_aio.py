"""The API for asyncio has all of the sync one, and leaves the loop free."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrate import AsyncOrchestrator, Orchestrator
from orchestrate.api.aio import AsyncDeploymentHandle, AsyncRunHandle
from orchestrate.api.run import RunHandle
from orchestrate.errors import UsageError
from orchestrate.runs.hosting.deployment import DeploymentHandle
from orchestrate.settings import config

ASYNC_ONLY = {"sync_api", "threads", "call"}
PAIRS = [
    (Orchestrator, AsyncOrchestrator),
    (RunHandle, AsyncRunHandle),
    (DeploymentHandle, AsyncDeploymentHandle),
]


def members(kind: type) -> dict[str, Any]:
    return {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize(("sync", "asynchronous"), PAIRS)
def test_both_have_the_same_members(sync: type, asynchronous: type) -> None:
    wanted = set(members(sync)) | {"settings"} if sync is Orchestrator else set(members(sync)) | {"record"}
    assert set(members(asynchronous)) - ASYNC_ONLY == wanted


@pytest.mark.parametrize(
    ("method", "threaded"),
    [
        pytest.param(method, getattr(asynchronous, name), id=f"{asynchronous.__name__}.{name}")
        for sync, asynchronous in PAIRS
        for name, method in members(sync).items()
        if inspect.isfunction(method)
    ],
)
def test_methods_have_the_same_parameters(method: Callable[..., Any], threaded: Callable[..., Any]) -> None:
    def shown(call: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(call).parameters.values()]

    assert inspect.iscoroutinefunction(threaded)
    assert shown(threaded) == shown(method)
    assert threaded.__doc__


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> config.Settings:
    monkeypatch.setenv("ORCHESTRATE_KEYS", str(tmp_path / "keys.toml"))
    return config.load(home=tmp_path / "home")


def test_the_loop_goes_on_while_calls_block(settings: config.Settings) -> None:
    """Each call waits until the loop has turned since it began; a loop that it held could never turn."""

    async def main() -> None:
        turned = threading.Event()

        def blocking() -> str:
            assert turned.wait(240)
            return "done"

        async with AsyncOrchestrator(settings) as ft:
            calls = [asyncio.create_task(ft.call(blocking)) for _ in range(20)]
            names = await ft.backends()  # others are served meanwhile
            assert names and not any(call.done() for call in calls)
            turned.set()
            assert await asyncio.gather(*calls) == ["done"] * 20

    asyncio.run(main())


def test_members_give_what_the_sync_ones_give(settings: config.Settings) -> None:
    async def main() -> None:
        async with AsyncOrchestrator(settings) as ft:
            assert await ft.runs() == []
            assert (await ft.provider("local")).name == "local"
            assert (await ft.store).place == (await ft.store).place
            assert ft.settings is settings
            with pytest.raises(UsageError):
                await ft.run("nothing")
            with pytest.raises(UsageError):
                await ft.backends("nowhere")

    asyncio.run(main())
