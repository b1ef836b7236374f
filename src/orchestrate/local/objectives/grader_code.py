"""A user's `def grade(sample, item) -> float`, in a process of its own (`grader_process.py`), as far from
everything else as `isolation` can have it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, cast

from orchestrate.child import Child, Ended, TooLate
from orchestrate.local.objectives.isolation import Isolation

_LONGEST_BYTES = 64 << 10
STARTUP_SECONDS = 30.0
"""For Python and the code's own imports, beside the limit for one answer."""


class GraderCode:
    """Starts the process with the first answer to grade, and again when an answer killed it."""

    def __init__(self, source: str, seconds: float, isolation: Isolation) -> None:
        self._source, self._seconds, self._isolation = source, seconds, isolation
        self._child: Child | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._broken: dict[str, Any] | None = None

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """`{"score": ...}` or `{"error": ...}`."""
        if self._broken is None and self._child is None:
            self._start()
        if self._broken is not None:
            return self._broken
        return self._exchange(question, self._seconds)

    def close(self) -> None:
        self._stop()
        if self._folder is not None:
            self._folder.cleanup()

    def _start(self) -> None:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="grader-")
        script = Path(__file__).resolve().with_name("grader_process.py")
        self._child = Child(
            self._isolation.command(script, Path(self._folder.name)),
            env=self._isolation.environment(),
            name="the code's process",
            cwd=self._folder.name,
            keeps_words=False,
            longest_bytes=_LONGEST_BYTES,
        )
        said = self._exchange(self._source, STARTUP_SECONDS + self._seconds)
        self._broken = said or None

    def _exchange(self, line: Any, seconds: float) -> dict[str, Any]:
        assert self._child is not None  # noqa: S101  started by `ask`
        try:
            answer = self._child.exchange(json.dumps(line).encode(), seconds)
        except TooLate:
            self._stop()
            return {"error": f"the code took longer than {seconds:g} s"}
        except Ended as ended:
            self._stop()
            return {"error": f"the code's process ended with {ended.code}"}
        if (said := _said(answer)) is None:
            self._stop()
            return {"error": "the code wrote into its own answers; it was ended"}
        return said

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close(0)


def _said(answer: bytes) -> dict[str, Any] | None:
    """An answer as our part of the process writes it, `None` for all that the code wrote itself."""
    try:
        said: Any = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    match said:
        case {"score": int() | float()} | {"error": str()}:
            return cast("dict[str, Any]", said) if len(cast("dict[str, Any]", said)) == 1 else None
        case dict() if not said:
            return {}
        case _:
            return None
