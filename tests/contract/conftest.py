"""The backends and their hosts, for every file of the suite.

The API descriptions that the hosts publish are in `published/`, cut to what is used, as far as their licenses
allow. Fireworks' has no license that is known: what it judges is skipped, and says so, unless
`fireworks.yaml` and `fireworks-sft-5.10.yaml` lie in `../shared/specs` beside the checkout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.contract.backends import BACKENDS, DESCRIBED, HOSTED, Backend, data_files
from tests.unit.sessions.homes import workspace

from orchestrate import Orchestrator
from orchestrate import sandbox as sandboxes
from orchestrate.providers.base import Provider
from orchestrate.sandbox.jobs import Durations
from orchestrate.sandbox.server import Sandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    waits = Durations(file=0, training=60)
    with sandboxes.running(train=False, speed=50, waits=waits, also=DESCRIBED) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def forked(quick_python: None) -> None:
    """The local engine trains and answers in processes that are up at once."""


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return data_files(tmp_path_factory.mktemp("data"))


@pytest.fixture
def driving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Orchestrator]:
    """A workspace at a sandbox that trains."""
    with sandboxes.running(home=tmp_path / "sandbox") as running:
        for name, value in {**running.env, "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml")}.items():
            monkeypatch.setenv(name, value)  # the process that drives the session reads it
        with workspace(tmp_path) as ft:
            yield ft


@pytest.fixture
def standing(sandbox: Sandbox) -> Iterator[None]:
    """Jobs that are made now move only when they are skipped on, on a busy machine too."""
    speed, sandbox.clock.speed = sandbox.clock.speed, 0.001
    yield
    sandbox.clock.speed = speed


@pytest.fixture
def no_faults_left(sandbox: Sandbox) -> Iterator[None]:
    yield
    sandbox.clear_faults()


@pytest.fixture(params=BACKENDS, ids=lambda b: b.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


@pytest.fixture(params=HOSTED, ids=lambda b: b.name)
def hosted(request: pytest.FixtureRequest) -> Backend:
    return request.param


@pytest.fixture
def make(sandbox: Sandbox, no_faults_left: None, tmp_path: Path) -> Iterator[Callable[[Backend], Provider]]:
    made: list[Provider] = []

    def maker(backend: Backend) -> Provider:
        asks = backend.hosted or backend.driven
        made.append(backend.make(sandbox.env if asks else {}, tmp_path))
        return made[-1]

    yield maker
    for provider in made:
        provider.close()
