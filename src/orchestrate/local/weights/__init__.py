"""Merge, export and check weights, in separate processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrate.core import child
from orchestrate.local.run import NO_COMPILER
from orchestrate.local.run.launcher import require_packages, worker_environment

# Tasks run in a separate process, whose entry point is `serve`. This module is torch-free.


def ask(task: str, *, threads: int | None = None, module: str = "worker", **fields: Any) -> dict[str, Any]:
    """Run a task of `orchestrate.local.weights.<module>` in a separate process and return its result. Errors
    of the task propagate. Raises `RunFailed` with the process's output if the process crashes."""
    return ask_all([{"task": task, **fields}], threads=threads, module=module)[0]


def ask_all(
    tasks: Sequence[dict[str, Any]], *, threads: int | None = None, module: str = "worker"
) -> list[dict[str, Any]]:
    """Run several tasks in order, like `ask`, but in a single process, because starting a process takes
    seconds."""
    require_packages("working with weights on this machine")
    command = child.python(f"orchestrate.local.weights.{module}")
    env = {**worker_environment(threads), NO_COMPILER: "1"}
    with child.Child(command, env=env, name=", ".join(str(task["task"]) for task in tasks)) as process:
        return process.ask({"tasks": tasks})["results"]


def serve(tasks: Mapping[str, Callable[..., Any]]) -> int:
    """Run the tasks in the request on standard input. This is the entry point of the process."""
    send = child.answering()
    try:
        asked = next(child.questions())
        send({"results": [tasks[one.pop("task")](**one) for one in asked["tasks"]]})
    except Exception as error:  # noqa: BLE001  the asking process gets it
        send(child.failure(error))
    return 0
