"""What a process for work with weights does: tasks from standard input, their answers to standard output."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from orchestrate.local import pipe


def serve(tasks: Mapping[str, Callable[..., Any]]) -> int:
    """Runs the tasks that standard input names. What libraries print goes to standard error."""
    send = pipe.answering()
    try:
        asked = msgspec.json.decode(sys.stdin.buffer.read(), type=dict[str, Any])
        if threads := asked["threads"]:
            import torch

            torch.set_num_threads(threads)
        answer: dict[str, Any] = {"results": [tasks[one.pop("task")](**one) for one in asked["tasks"]]}
    except Exception as error:  # noqa: BLE001  the asking process gets it
        answer = pipe.failure(error)
    send(answer)
    return 0
