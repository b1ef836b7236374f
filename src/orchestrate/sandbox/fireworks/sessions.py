"""Fireworks' training sessions, simulated by the server of `orchestrate sessions serve`: serverless, and on
dedicated trainers (`TrainerRoutes`).

The log-probabilities of samples are the model's own, before temperature.
"""

from __future__ import annotations

import json
import re
import secrets
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount

from orchestrate.local.answers.worker import array_of
from orchestrate.local.session_server import SessionsApi
from orchestrate.local.session_server.desk import Caller, SessionDesk
from orchestrate.sandbox.accounts import here
from orchestrate.sandbox.host import Body, HostError, json_body, parse, route

ROOT = "/training/v1/serverless"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
CROSS_JOB = "cross_job://"
"""Prefix of the path of a save on another trainer."""
Values = dict[str, Any]


class Completion(Body):
    """A request from the client's sampler. Prompt and streamed answer are token ids."""

    model: str
    prompt: Annotated[list[int], Field(min_length=1)]
    n: Literal[1] = 1
    max_tokens: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    seed: int | None = None
    stop: list[str] | str | None = None
    stream: Literal[True]
    logprobs: Literal[True]
    raw_output: Literal[True]
    perf_metrics_in_response: bool = False


class FireworksDesk(SessionDesk):
    """Names saved weights as Fireworks does: `account/run/name`, or only `name` on a trainer."""

    def path_of(self, owner: str, model: str, kind: str, name: str) -> str:
        run = model.partition(":")[0]
        return f"{owner}/{run}/{name}" if run.startswith("run-") else name

    def places(self, path: str, owner: str) -> list[Path]:
        run, _, name = path.removeprefix(CROSS_JOB).removeprefix(f"{owner}/").partition("/")
        if not NAME.fullmatch(run) or not NAME.fullmatch(name):
            return []
        root = self.place(owner, run, "weights", name).parents[2]
        return [
            one
            for kind in ("weights", "sampler_weights")
            for one in root.glob(f"{run}@train@*/{kind}/{name}")
        ]


class FireworksSessionsApi(SessionsApi):
    """Of the serverless kind."""

    desk: FireworksDesk

    def new_id(self) -> str:
        return f"ts-{secrets.token_hex(16)}"

    def model_id(self, caller: Caller, number: int) -> str:
        del caller
        return f"run-{secrets.token_hex(16)}:train:{number}"

    def mounted(self) -> list[BaseRoute]:
        sessions = "/v1/accounts/{account}/trainingSessions/{id}"
        return [
            Mount(ROOT, routes=[*self.routes(), route("/inference/v1/completions", "POST", self.complete)]),
            route(sessions, "DELETE", self.delete),
        ]

    async def delete(self, request: Request) -> Response:
        """End a session. Deleting an ended session is not an error."""
        caller = self.desk.callers.get(request.path_params["id"])
        if caller is not None and caller.owner == here():
            self.desk.end(caller, keeps=False)
        return JSONResponse({})

    async def complete(self, request: Request) -> Response:
        """Sample from weights saved for sampling, or from the base model of a session."""
        asked = parse(Completion, await json_body(request))
        session, _, path = asked.model.partition("/trainingSessions/")[2].partition("/checkpoints/")
        self.desk.caller(session, here())
        base, folder = asked.model, ""
        if path:
            found, saved = self.desk.found(path, here())
            base, folder = saved.base, str(found)
        stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        drawing = asked.model_dump(include={"prompt", "max_tokens", "temperature", "top_p", "top_k", "seed"})
        promise = self.desk.promise(here())
        write = self.desk.counted(session, here(), base, partial(_used, len(asked.prompt)), _stream)
        self.desk.ask(promise, "sample", {"folder": folder, "stop": stop, **drawing}, write)
        await promise.ready.wait()
        if not isinstance(promise.result, bytes):
            assert promise.result is not None  # noqa: S101  it is ready
            raise HostError(400, str(promise.result["error"]))
        return Response(promise.result, media_type="text/event-stream")


def _used(prompt: int, answer: Values) -> dict[str, int]:
    return {"prefill": prompt, "sample": sum(len(one["tokens"]) for one in answer["answers"])}


def _stream(answer: Values) -> bytes:
    """Write an answer as server-sent events."""
    [drawn] = answer["answers"]
    log_p = array_of(drawn["logprobs"]).tolist()
    content = [
        {"token_id": id, "logprob": value, "sampling_logprob": value}
        for id, value in zip(drawn["tokens"], log_p, strict=True)
    ]
    choice = {
        "index": 0,
        "text": "",
        "logprobs": {"content": content},
        "finish_reason": drawn["stop"],
        "raw_output": {"completion_token_ids": drawn["tokens"]},
    }
    event = {"id": f"cmpl-{secrets.token_hex(8)}", "choices": [choice], "sandbox": True}
    return f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode()
