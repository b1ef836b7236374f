"""A workspace with a home of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrate import Orchestrator
from orchestrate.settings import config


@contextmanager
def workspace(home: Path, **env: str) -> Iterator[Orchestrator]:
    own = {"ORCHESTRATE_HOME": str(home), "ORCHESTRATE_KEYS": str(home / "keys.toml"), **env}
    with Orchestrator(config.load(env={**os.environ, **own}, cwd=home)) as ft:
        yield ft
