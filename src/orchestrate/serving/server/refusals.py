"""Convert errors of the engine and the queue to API errors."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from orchestrate.http.wire import HostError
from orchestrate.serving.server.engine import EngineLost, EngineRefused
from orchestrate.serving.server.load import ServerBusy

_STATUSES = {"model_not_found": 404, "no_numbers": 500, "no_memory": 500}


@contextmanager
def asking() -> Generator[None]:
    """Convert engine errors raised in the block to `HostError`."""
    try:
        yield
    except EngineRefused as error:
        raise refusal_of(error) from error
    except EngineLost as error:
        raise lost(error) from error


def refusal_of(error: EngineRefused) -> HostError:
    status = _STATUSES.get(error.code, 400)
    type = "server_error" if status == 500 else "invalid_request_error"
    return HostError(status, error.message, type=type, code=error.code)


def lost(error: EngineLost) -> HostError:
    """Convert an engine crash to an error that makes official clients retry automatically."""
    headers = {"retry-after": str(error.retry_s)}
    return HostError(503, error.message, type="server_error", code="engine_lost", headers=headers)


def full(error: ServerBusy) -> HostError:
    message = f"too many requests are waiting: {error}"
    headers = {"retry-after": str(error.retry_s)}
    return HostError(429, message, type="rate_limit_error", code="queue_full", headers=headers)
