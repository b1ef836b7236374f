"""The process that runs a user's `def grade(sample, item) -> float`. This script uses only the standard
library, because the sandbox contains no other code. It writes one line for each line that it reads: `{}` for
the source, `{"score": ...}` for a sample, and `{"error": ...}` if the code fails."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

MEMORY_BYTES = 4 << 30
FILE_BYTES = 64 << 20
PROCESSES = 512
"""Maximum number of processes. Some systems count all of the user's processes."""


def limit() -> None:
    """Set the resource limits of this process. The grader's code cannot raise these limits."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NPROC: PROCESSES,
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_CORE: 0,
    }
    for which, size in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a lower one is in force
            resource.setrlimit(which, (size, size))


def serve() -> None:
    limit()
    # Send what the code prints to stderr, so it can't mix with the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    me = os.getpid()
    names: dict[str, Any] = {"__name__": "grader"}
    for number, line in enumerate(sys.stdin.buffer):
        answer: dict[str, Any]
        try:
            if number == 0:
                exec(compile(json.loads(line), "grader", "exec"), names)  # noqa: S102  what it is for
                there = callable(names.get("grade"))
                answer = {} if there else {"error": "the code does not define grade(sample, item)"}
            else:
                answer = {"score": float(names["grade"](**json.loads(line)))}
        except Exception as error:  # noqa: BLE001  whatever the code does is its answer
            answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
        if os.getpid() != me:
            os._exit(0)  # a copy that the code made of this process has no say
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    serve()
