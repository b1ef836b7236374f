"""The command with an environment of its own (`tests/command.py`): in this process, or, in tests that are
marked with `process` or `slow`, in one of its own as well."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests import command


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Result]


@pytest.fixture
def cli_env(tmp_path: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_BASE_URL"))}
    return kept | {
        "ORCHESTRATE_HOME": str(tmp_path / "home"),
        "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml"),
        "HOME": str(tmp_path),
        "COLUMNS": "160",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The process that commands are forked from is up. Its imports take seconds, which the first command of a
    session waits for."""
    command.run(["--version"], cwd=tmp_path_factory.mktemp("warm"), env=dict(os.environ))


@pytest.fixture
def cli(tmp_path: Path, cli_env: dict[str, str], request: pytest.FixtureRequest) -> Cli:
    own = any(request.node.get_closest_marker(name) for name in ("process", "slow"))
    way = command.run if own else command.here

    def run(*arguments: str, cwd: Path | None = None, stdin: str | None = None, **env: str) -> Result:
        done = way([*arguments], cwd=cwd or tmp_path, env=cli_env | env, stdin=(stdin or "").encode())
        encoding = env.get("PYTHONIOENCODING", "utf-8")
        err = done.err.decode(encoding)
        assert "Traceback" not in err, err
        return Result(done.code, done.out.decode(encoding), err)

    return run
