"""Code shared by simulated hosts of training sessions: session handling with the tiny model, and faults."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from starlette.responses import JSONResponse, Response

from orchestrate.sandbox.accounts import here
from orchestrate.sandbox.host import Host

if TYPE_CHECKING:
    from orchestrate.local.session_server import SessionsApi
    from orchestrate.local.session_server.service import SessionService

D = TypeVar("D", bound="SessionService")
PAUSES = ("paused_capacity", "paused_rate_limit")
"""Faults that delay a result. The host returns the fault's name as the reason."""
FAULTS = frozenset({*PAUSES, "session_expired"})


def session_service(host: Host, kind: type[D], takes: Callable[[str], bool]) -> D:
    """Create the manager of a host's sessions. The model is loaded when the first session needs it."""
    model = host.trainer.model
    return kind(
        host.state.home / host.name,
        {"base": model, "threads": host.trainer.threads, "precision": "fp32"},
        (Path(model).name,),
        takes=takes,
        now=host.clock.now,
    )


async def suffer(api: SessionsApi | None, kind: str, delay_s: float) -> Response | None:
    """Inject one of `FAULTS`. See `Host.suffer`."""
    if kind in PAUSES:
        await asyncio.sleep(delay_s)  # the client asks again at once
        why = "injected by a sandbox fault"
        body = {"type": "try_again", "queue_state": kind, "queue_state_reason": why}
        return JSONResponse(body, 408)
    if api is not None:
        for caller in [one for one in api.service.callers.values() if one.owner == here()]:
            api.service.end(caller, keeps=False)
    return None
