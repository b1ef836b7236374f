"""A loop at a host that is killed after its first step: `left.py HOME PROVIDER MODEL USD OPTIONS`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.paths import ROOT
from tests.unit.sessions.homes import workspace
from tests.unit.sessions.loop import LORA, die, rows, say

from orchestrate.sandbox.server import Sandbox

MODEL = "Qwen/Qwen3-8B"


def killed(home: Path, sandbox: Sandbox, provider: str, *given: str) -> str:
    """Run the loop in a process of its own and return its run's id. `given`: model, limit, options."""
    own = {"ORCHESTRATE_HOME": str(home), "ORCHESTRATE_KEYS": str(home / "keys.toml")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.sessions.left", str(home), provider, *given],
        env={**os.environ, **sandbox.env, **own},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == -9, done.stderr[-3000:]
    return str(json.loads(done.stdout.splitlines()[0])["value"])


def main(home: str, provider: str, model: str = MODEL, usd: str = "25", options: str = "{}") -> None:
    given = {"lora": LORA, "max_cost_usd": usd, "options": json.loads(options)}
    with workspace(Path(home)) as ft, ft.session(model, provider=provider, **given) as s:
        say("id", s.id)
        s.forward_backward(rows())
        s.optim_step({"learning_rate": 5e-3})
        s.save("kept")
        s.forward_backward(rows())
        die()


if __name__ == "__main__":
    main(*sys.argv[1:])
