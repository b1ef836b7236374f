"""One submit in a process of its own, for tests that kill it. Also what those tests share.

    python -m tests.faults.submitting STORE_URL BACKEND ROWS MARKS POINT [ACTION]

It writes each point that it reaches into the file MARKS, and at POINT does ACTION to itself: `kill` (SIGKILL,
the default) or `stop` (SIGSTOP; whoever started it lets it go on).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from orchestrate import config
from orchestrate.data import TrainingData
from orchestrate.providers import registry
from orchestrate.providers.base import Provider
from orchestrate.spec import JobSpec
from orchestrate.tracking import Store, Timing
from orchestrate.tracking.submit import submit

CHILD = "tests.faults.submitting"
"""Its name as a module: `python -m`, started in `ROOT`."""
BACKENDS = ("openai", "together", "fireworks", "local")
MODELS = {
    "openai": "gpt-4.1-mini-2025-04-14",
    "together": "meta-llama/Meta-Llama-3.1-8B-Instruct-Reference",
    "fireworks": "accounts/fireworks/models/qwen3-8b",
    "local": "tiny-chat",
}
TIMING = {"kill": Timing(send_limit_s=60.0, lease_s=1.0), "stop": Timing(send_limit_s=2.0, lease_s=1.0)}
"""Of the child, by action: a busy machine must not count as one that slept, a stopped one must."""


def write_rows(path: Path, count: int = 12) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n} and {n}?"},
                {"role": "assistant", "content": f"It is {n + n}."},
            ]
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def spec_for(rows: Path) -> JobSpec:
    return JobSpec(model=MODELS, train=str(rows), epochs=1)


def backend(name: str, home: Path, env: Mapping[str, str]) -> Provider:
    settings = config.load(env={"ORCHESTRATE_KEYS": str(home / "none"), **env}, cwd=home, home=home)
    return registry.make(name, settings)


def main() -> None:
    url, name, rows, marks, point, action = [*sys.argv[1:], "kill"][:6]

    def reached(here: str) -> None:
        with Path(marks).open("a") as file:
            file.write(f"{here}\n")
        if here == point:
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[action])

    home = Path(marks).parent
    with Store.open(url) as store:
        provider = backend(name, home, os.environ)
        submit(
            store,
            provider,
            spec_for(Path(rows)),
            TrainingData.open(rows),
            timing=TIMING[action],
            reached=reached,
        )


if __name__ == "__main__":
    main()
