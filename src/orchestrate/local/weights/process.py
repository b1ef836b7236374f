"""What a process for work with weights does: tasks from standard input, their answers to standard output."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from orchestrate.local import pipe


def serve(tasks: Mapping[str, Callable[..., Any]]) -> int:
    """Runs the tasks that standard input names. What libraries print goes to standard error."""
    send = pipe.answering()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
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


def _end_with(parent: int) -> None:
    """Nobody waits for the answers of a command that was killed, and what it wrote is in its way."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
