"""A sandbox of all hosts, and a workspace that uses it, for the sessions of one module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.paths import TINY
from tests.unit.sessions.homes import workspace

from orchestrate import Orchestrator
from orchestrate.sandbox import running
from orchestrate.sandbox.server import Sandbox


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, quick_python: None) -> Iterator[Sandbox]:
    home = tmp_path_factory.mktemp("sandbox")
    with running(home=home, model=str(TINY), train=False, speed=1000) as found:
        yield found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def ft(home: Path, sandbox: Sandbox) -> Iterator[Orchestrator]:
    with workspace(home, **sandbox.env) as ft:
        yield ft
    sandbox.clear_faults()
