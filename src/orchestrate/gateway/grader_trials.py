"""Test a client's grader on one answer. The test runs in a separate process with limits, because a formula, a
template or a comparison of long texts can take unbounded time and memory."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec

from orchestrate.core import child
from orchestrate.errors import RunFailed
from orchestrate.local.objectives.graders import Grade, Grader
from orchestrate.local.run.launcher import worker_environment

SECONDS = 10
MEMORY_BYTES = 1 << 30


class TrialFailed(ValueError):
    """The grader returned no grade."""


def tried(
    grader: Mapping[str, Any], sample: str, item: Mapping[str, Any], *, seconds: float = SECONDS
) -> Grade:
    """Grade one answer with a validated grader. Raises `TrialFailed` if the trial takes too long, uses too
    much memory or crashes. The grader's own errors propagate."""
    command = child.python("orchestrate.gateway.grader_trials")
    asked = {"grader": grader, "sample": sample, "item": item}
    try:
        with child.Child(command, env=worker_environment(1), name="grading", keeps_words=False) as process:
            answer = process.ask(asked, seconds)
    except child.TooLate:
        raise TrialFailed(f"grading took longer than {seconds:g} s") from None
    except (child.Ended, msgspec.MsgspecError):
        raise TrialFailed("the grader crashed or took too much time or memory") from None
    if "broke" in answer:
        raise TrialFailed(answer["broke"])
    return Grade(answer["score"], answer["error"])


def main() -> int:
    """Run a grader once in this process, within limits of memory and CPU time. Returns the exit code."""
    send = child.answering()
    try:
        with suppress(ImportError):  # Windows
            import resource

            # Processes that the grader starts inherit these limits. They may outlive this process.
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        asked = next(child.questions())
        with Grader(asked["grader"]) as grader:
            [grade] = grader.grade([asked["sample"]], [asked["item"]])
        send({"score": grade.score, "error": grade.error})
    except RunFailed as error:
        send(child.failure(error))
    except (TypeError, ValueError, AttributeError, RecursionError, MemoryError) as error:
        send({"broke": f"{type(error).__name__}: {error}"[:500]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
