"""OpenAI's graders, tried out: `fine_tuning/alpha/graders/run` and `validate`.

Answers are graded by this machine's own graders. What those leave out (code, models behind an API) is
answered as the host answers when its grader fails: a reward of 0, and the error named in the metadata.
"""

from __future__ import annotations

import time
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from orchestrate.http.wire.openai.tuning import RunGrader, ValidateGrader, graded
from orchestrate.local.objectives.grading import ELSEWHERE, Grader, refusal, runs_code
from orchestrate.sandbox.host import HostError, json_answer, json_body, parse, route


def routes() -> list[BaseRoute]:
    graders = "/v1/fine_tuning/alpha/graders"
    return [route(f"{graders}/run", "POST", run), route(f"{graders}/validate", "POST", validate)]


async def validate(request: Request) -> Response:
    asked = parse(ValidateGrader, await json_body(request))
    _require(asked.grader)
    return json_answer({"grader": asked.grader})


async def run(request: Request) -> Response:
    asked = parse(RunGrader, await json_body(request))
    _require(asked.grader)
    return json_answer(await run_in_threadpool(_graded, asked))


def _require(grader: dict[str, Any]) -> None:
    """Raises `HostError` 400 for what is no grader."""
    if grader.get("type") in ELSEWHERE:
        return
    if reason := refusal(grader, allow_code=True):
        raise HostError(400, f"Invalid grader: {reason}", param="grader", code="invalid_grader")


def _graded(asked: RunGrader) -> dict[str, Any]:
    grader, started = asked.grader, time.monotonic()
    errors: dict[str, Any] = {}
    reward = 0.0
    if grader.get("type") in ELSEWHERE:
        errors |= {
            "model_grader_server_error": True,
            "model_grader_server_error_details": "the sandbox asks no model",
        }
    elif runs_code(grader):
        errors |= {
            "python_grader_server_error": True,
            "python_grader_server_error_type": "not run here",
        }
    else:
        with Grader(grader) as graders:
            [grade] = graders.grade([asked.model_sample], [asked.item or {}])
        reward, errors["invalid_variable_error"] = grade.score, grade.error is not None
    return graded(grader, reward, errors, time.monotonic() - started)
