"""What the engine and the queue refuse, in the API's form."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from orchestrate.serving.server.engine import EngineLost, EngineRefused
from orchestrate.serving.server.load import Full
from orchestrate.wire.bodies import HostError

_STATUSES = {"model_not_found": 404}


@contextmanager
def asking() -> Generator[None]:
    """Turns what the engine says of a request into `HostError`."""
    try:
        yield
    except EngineRefused as error:
        raise refusal_of(error) from error
    except EngineLost as error:
        raise lost() from error


def refusal_of(error: EngineRefused) -> HostError:
    return HostError(_STATUSES.get(error.code, 400), error.message, code=error.code)


def lost() -> HostError:
    """The process died; clients of the API ask again by themselves."""
    told = "the model's process ended while it answered; another one is being started"
    return HostError(503, told, type="server_error", code="engine_lost", headers={"retry-after": "2"})


def full(error: Full) -> HostError:
    told = f"too many requests wait already; {error}"
    headers = {"retry-after": str(error.retry_s)}
    return HostError(429, told, type="rate_limit_error", code="queue_full", headers=headers)
