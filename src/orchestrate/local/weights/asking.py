"""Asks a process of its own for work with weights; no torch here."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import msgspec

from orchestrate.errors import RunFailed
from orchestrate.local import pipe
from orchestrate.local.run.launching import require_packages, worker_environment
from orchestrate.local.run.process import NO_COMPILER


def ask(task: str, *, threads: int | None = None, module: str = "worker", **fields: Any) -> dict[str, Any]:
    """What a task of `orchestrate.local.weights.<module>` answers. Raises the error that it raised, or
    `RunFailed` with what it printed when it died."""
    return ask_all([{"task": task, **fields}], threads=threads, module=module)[0]


def ask_all(
    tasks: Sequence[dict[str, Any]], *, threads: int | None = None, module: str = "worker"
) -> list[dict[str, Any]]:
    """As `ask`, several tasks in one process, in order: it takes seconds to start."""
    require_packages("work with weights on this machine")
    with tempfile.TemporaryFile() as log:
        done = subprocess.run(
            [sys.executable, "-P", "-m", f"orchestrate.local.weights.{module}"],
            input=msgspec.json.encode({"tasks": tasks, "threads": threads}),
            stdout=subprocess.PIPE,
            stderr=log,
            env={**worker_environment(threads), NO_COMPILER: "1"},
            check=False,
        )
        log.seek(0)
        said = log.read()[-3000:].decode(errors="replace").strip()
    try:
        answer = msgspec.json.decode(done.stdout, type=dict[str, Any])
    except msgspec.MsgspecError:
        names = ", ".join(str(task["task"]) for task in tasks)
        raise RunFailed(f"{names} ended with {done.returncode}:\n{said}", fix="orchestrate doctor") from None
    if "error" in answer:
        raise pipe.raised(answer)
    return answer["results"]
