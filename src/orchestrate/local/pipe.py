"""JSON between a command and a helper process of its own, whose standard output holds the answers and nothing
else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from orchestrate import errors
from orchestrate.errors import OrchestrateError, RunFailed

_KNOWN = (errors.UsageError, errors.ConfigError, errors.DataError, errors.SetupError)
_PATIENCE_S = 5


def answering() -> Callable[[Mapping[str, Any]], None]:
    """In the process: takes standard output for the answers, so that what libraries print goes to standard
    error. Gives what sends one, from any thread."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    writing = threading.Lock()

    def send(message: Mapping[str, Any]) -> None:
        with writing:
            answers.write(msgspec.json.encode(message) + b"\n")
            answers.flush()

    return send


def failure(error: Exception) -> dict[str, Any]:
    """In the process: the answer that tells of an error, whose traceback goes to standard error."""
    with suppress(OSError):  # no room for it
        traceback.print_exception(error)
    fix = error.fix if isinstance(error, OrchestrateError) else None
    return {"error": f"{error}" or type(error).__name__, "kind": type(error).__name__, "fix": fix}


def raised(answer: Mapping[str, Any]) -> OrchestrateError:
    """In the command: the error of which a `failure` tells."""
    kind = getattr(errors, str(answer.get("kind")), None)
    return (kind if kind in _KNOWN else RunFailed)(str(answer["error"]), fix=answer.get("fix"))


def end(process: subprocess.Popen[bytes]) -> None:
    """In the command: nothing more is asked; a process that does not end by itself is killed."""
    assert process.stdin is not None  # noqa: S101  opened as a pipe
    with suppress(OSError):  # it may have ended before
        process.stdin.close()
    try:
        process.wait(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
