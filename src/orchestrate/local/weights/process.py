"""What a process for work with weights does: tasks from standard input, their answers to standard output."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from orchestrate.errors import OrchestrateError


def serve(tasks: Mapping[str, Callable[..., Any]]) -> int:
    """Runs the tasks that standard input names. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        asked = msgspec.json.decode(sys.stdin.buffer.read(), type=dict[str, Any])
        if threads := asked["threads"]:
            import torch

            torch.set_num_threads(threads)
        answer: dict[str, Any] = {"results": [tasks[one.pop("task")](**one) for one in asked["tasks"]]}
    except Exception as error:  # noqa: BLE001  the asking process gets it
        traceback.print_exc()
        fix = error.fix if isinstance(error, OrchestrateError) else None
        answer = {"error": f"{error}" or type(error).__name__, "kind": type(error).__name__, "fix": fix}
    answers.write(msgspec.json.encode(answer))
    answers.flush()
    return 0
