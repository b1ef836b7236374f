"""The tutorial from a clean machine: every command of it, in its order, and what it says that one sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.documented import Done, commands, environment, run
from tests.paths import ROOT

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "tutorial.md"


def test_the_tutorial(tmp_path: Path) -> None:
    folder = tmp_path / "tutorial"
    folder.mkdir()
    env = environment(tmp_path)
    told: dict[str, Done] = {line: run(line, folder, env) for line in commands(PAGE)}
    assert len(told) > 12 and all(line.startswith("orchestrate ") for line in told)

    def out(beginning: str) -> str:
        return next(done.out for line, done in told.items() if line.startswith(beginning))

    assert "600" in out("orchestrate data inspect")
    assert all(name in out("orchestrate quote") for name in ("local", "openai", "together", "fireworks"))
    assert "train_loss" in out("orchestrate metrics")
    assert "SANDBOX" in out("orchestrate runs --sandbox") and "together" in out("orchestrate runs --sandbox")
    assert "together" not in out("orchestrate runs"), "a sandbox's runs are a scope of their own"
    evaluated = json.loads(run("orchestrate show last --json", folder, env).out)["evaluations"]
    [difference] = [d for d in evaluated[-1]["differences"] if not d["slice"]][:1]
    assert difference["score"]["low"] > 0, "it has learned something"
    assert (folder / "report.html").stat().st_size > 10_000
