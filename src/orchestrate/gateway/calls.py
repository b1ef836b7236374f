"""A client request: its key, and what the key allows."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrate.data.rows import file_of
from orchestrate.errors import (
    DataError,
    NotFound,
    OrchestrateError,
    OtherAccount,
    OutcomeUnknown,
    OverBudget,
    PermissionRefused,
    RateLimited,
    SetupError,
    StoreError,
    TrainingClosed,
    Unsupported,
)
from orchestrate.http.wire import HostError
from orchestrate.http.wire.openai import error_body, no_place
from orchestrate.store.gateway import NoSuchPlace
from orchestrate.types import GatewayJob, GatewayKey, Problem, Severity

# Rejections. Their status and a header tell the client whether to retry.
#
# The official clients retry after 408, 409, 429 and 5xx, and another popular client retries forever after a
# 400. So errors that a retry cannot fix get status 403, 404 or 422.

_BEFORE_PATHS = frozenset(" \t\n'\"`(")
_SHOWN = 10
"""The maximum number of invalid rows to report."""


def answer(error: HostError) -> JSONResponse:
    passes = error.status in (408, 429) or error.status >= 500
    status = 422 if error.status in (400, 409) else error.status
    headers = {"x-should-retry": "true" if passes else "false", **error.headers}
    return JSONResponse(error_body(error), status, headers=headers)


def refusal_of(error: OrchestrateError) -> HostError:
    """Convert an error to the API's format, with the fix in its message."""
    message = sentence(error)
    status, code = _kind(error)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    wait = getattr(error, "retry_after_s", None)
    headers = {"retry-after": str(max(1, math.ceil(wait)))} if isinstance(wait, int | float) else {}
    return HostError(status, message, code=code, type=kind, headers=headers)


def sentence(error: OrchestrateError) -> str:
    """Format an error as a single string: what is wrong, where, and what to do."""
    if not isinstance(error, DataError):
        return error.message if error.fix is None else f"{error.message}\n{error.fix}"
    wrong = [problem for problem in error.problems if problem.severity is Severity.ERROR]
    return "\n".join([error.message, *map(_problem, wrong[:_SHOWN])])


def with_file_names(message: str, names: Mapping[str, str]) -> str:
    """Replace each content hash (sha256) in a message with the client's file name, because messages must not
    disclose paths on this machine."""
    for sha256, name in names.items():
        stored, at = f"{sha256}.jsonl", 0
        while (found := message.find(stored, at)) >= 0:
            start = found
            while start > at and message[start - 1] not in _BEFORE_PATHS:
                start -= 1
            message = message[:start] + name + message[found + len(stored) :]
            at = start + len(name)
    return message


def _problem(problem: Problem) -> str:
    file = file_of(problem)
    row = "" if problem.row is None else f"row {problem.row}"
    place = ", ".join(part for part in (file, row) if part)
    field = f"{problem.field}: " if problem.field else ""
    fix = f" ({problem.fix})" if problem.fix else ""
    return f"  {place}{': ' if place else ''}{field}{problem.message}{fix}"


def _kind(error: OrchestrateError) -> tuple[int, str]:
    if isinstance(error, RateLimited):
        return 429, "rate_limit_exceeded"
    if error.retryable or (isinstance(error, StoreError)):
        return 503, "unavailable"
    match error:
        case OverBudget():
            return 403, "over_budget"
        case TrainingClosed():
            return 403, "training_closed"
        case PermissionRefused() | OtherAccount() | SetupError():
            return 403, "backend_refused"
        case NotFound():
            return 404, "not_found"
        case OutcomeUnknown():
            return 503, "outcome_unknown"
        case Unsupported():
            return 422, "unsupported"
        case _:
            return 422, "invalid_request"


def no_file(id: str, param: str = "id") -> HostError:
    return HostError(404, f"No such File object: {id}", param=param, code="file_not_found")


def no_job(id: str) -> HostError:
    message = f"Could not find fine tune: {id}"
    return HostError(404, message, code="fine_tune_not_found", param="fine_tuning_job_id")


def no_model(name: str, known: list[str]) -> HostError:
    message = f"The model `{name}` does not exist or you do not have access to it. {_some(known)}"
    return HostError(404, message, code="model_not_found", param="model")


def not_tuned(name: str, known: list[str]) -> HostError:
    message = (
        f"The model `{name}` can be fine-tuned here, but only tuned models can be queried. {_some(known)}"
    )
    return HostError(422, message, code="model_not_tuned", param="model")


def _some(names: list[str]) -> str:
    return f"Available models: {', '.join(names[:20]) or 'none'}"


def wrong_state(job: GatewayJob, status: str, verb: str) -> HostError:
    message = f"Job {job.id} has status {status} and cannot be {verb}"
    return HostError(422, message, code="invalid_job_status")


MAX_JSON = 8 << 20
"""Maximum size in bytes of a request body that is not a file."""


@dataclass
class GatewayRequest:
    """A request to the gateway. `subject` is the id of the created or changed object, for the audit log."""

    request: Request
    key: GatewayKey
    body: dict[str, Any] = field(default_factory=dict[str, Any])
    raw: bytes = b""

    @property
    def project(self) -> str:
        return self.key.project

    def path(self, name: str) -> str:
        return str(self.request.path_params[name])

    def query(self, name: str) -> str | None:
        """Return a query parameter. An empty parameter counts as missing."""
        return self.request.query_params.get(name) or None

    def about(self, id: str) -> None:
        self.request.state.subject = id


Act = Callable[[GatewayRequest], Any]


@contextmanager
def placed() -> Generator[None]:
    """Convert `NoSuchPlace` to `HostError` 404. `NoSuchPlace` means that the `after` id of a list request is
    not in the list. An empty page would make clients believe that there are no more entries."""
    try:
        yield
    except NoSuchPlace as error:
        raise no_place(str(error)) from error


def key_of(request: Request) -> GatewayKey:
    return cast("GatewayKey", request.scope["gateway_key"])


def retries(request: Request) -> int:
    """Return how many times the client has retried this request, as reported by official clients."""
    count = request.headers.get("x-stainless-retry-count", "0")
    return int(count) if count.isascii() and count.isdigit() and len(count) < 6 else 0


def endpoint(path: str, method: str, act: Act) -> Route:
    """Build a route for an endpoint. `act` runs in a thread, concurrently with other requests. Its result is
    sent as JSON, unless it is a `Response`."""

    async def answer(request: Request) -> Response:
        call = GatewayRequest(request, key_of(request))
        if method == "POST":
            call.raw = await read(request)
            call.body = parsed(call.raw)
        found = await run_in_threadpool(act, call)
        return found if isinstance(found, Response) else JSONResponse(found)

    return Route(path, answer, methods=[method])


def streamed(path: str, method: str, act: Callable[[GatewayRequest], Awaitable[Response]]) -> Route:
    """Build a route for an endpoint whose `act` reads the body itself or streams its response."""

    async def answer(request: Request) -> Response:
        return await act(GatewayRequest(request, key_of(request)))

    return Route(path, answer, methods=[method])


async def read(request: Request) -> bytes:
    """Read the body of a request. Raises `HostError` 413 if it is too large."""
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > MAX_JSON:
            raise HostError(
                413, f"Request body too large: at most {MAX_JSON:,} bytes (file uploads excepted)"
            )
    return bytes(found)


def parsed(raw: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises `HostError` 422 for any other body, and for lone surrogates, NaN and
    infinite numbers, which could not be sent back as JSON."""
    try:
        values: Any = msgspec.json.decode(raw or b"{}")
    except (ValueError, RecursionError) as error:
        raise HostError(422, f"We could not parse the JSON body of your request: {error}") from error
    if not isinstance(values, dict):
        raise HostError(422, "the JSON body of the request must be an object")
    return cast("dict[str, Any]", values)


def anonymous(at: datetime) -> GatewayKey:
    """Return the key used for local requests while no keys exist."""
    return GatewayKey(name="local", created_at=at)
