"""Sessions at a sandboxed host on good and bad days, each result a line of JSON: `sandboxed.py HOME CAP`.
Runs as a separate process, because the official client leaves threads behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from tests.paths import TINY
from tests.unit.sessions.homes import workspace
from tests.unit.sessions.hosted import NAME, told, trained
from tests.unit.sessions.loop import IDS, LORA, OPTIONS, rows, say

from orchestrate import Orchestrator, OverBudget

# The client's futures have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

URL = os.environ["TINKER_BASE_URL"]
LIMIT = {"provider": "tinker", "lora": LORA, "max_cost_usd": 1}


def fault(kind: str, path: str, **fields: Any) -> None:
    given = {"kind": kind, "path": path, **fields}
    httpx.post(f"{URL}/_sandbox/faults", json=given).raise_for_status()


def host_bill() -> dict[str, dict[str, Any]]:
    """By the official client: tokens and dollars of each kind."""
    import tinker

    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    admin: Any = tinker.AdminClient()
    usage = admin.get_billing_usage(hour - timedelta(hours=1), hour + timedelta(hours=1)).result()
    found: dict[str, dict[str, Any]] = {}
    for event in usage.data:
        one = found.setdefault(event.event_info.type, {"tokens": 0, "usd": 0.0})
        one["tokens"] += event.event_info.token_count
        one["usd"] += event.estimated_cost_usd
    return found


@contextmanager
def billed(what: str) -> Iterator[None]:
    """Say what the host bills for a block."""
    before = host_bill()
    yield
    after = host_bill()
    tokens = {kind: one["tokens"] - before.get(kind, {"tokens": 0})["tokens"] for kind, one in after.items()}
    usd = sum(one["usd"] for one in after.values()) - sum(one["usd"] for one in before.values())
    say(f"host {what}", {"tokens": tokens, "usd": usd})


def loop(ft: Orchestrator, what: str, steps: int = 3) -> None:
    with billed(what):
        with ft.session(NAME, **LIMIT) as s:
            losses = trained(s, steps)
            drawn = s.sample(IDS[:4], 1, {"max_tokens": 4, "seed": 1, "stop": []}).sequences[0]
            s.logprobs([*IDS[:4], *drawn.tokens])
        say(what, {"losses": losses, "drawn": len(drawn.tokens), **told(ft, s.id), "id": s.id})


def expired(ft: Orchestrator) -> None:
    """The host ends the session between the two requests of a step."""
    with billed("expired"):
        try:
            with ft.session(NAME, **LIMIT) as s:
                losses = trained(s, 1)
                s.save("one")
                s.forward_backward(rows())
                fault("session_expired", "optim_step")
                s.optim_step({"learning_rate": 5e-3})
        except Exception as error:  # the client's kinds differ by version
            say("expiry", type(error).__name__)
        say("expired", {"losses": losses, **told(ft, s.id)})
        with ft.session(resume=s.id) as s:
            losses += trained(s, 2)
        say("after the expiry", {"losses": losses, **told(ft, s.id)})


def capped(ft: Orchestrator, usd: float) -> None:
    """The limit is reached amid the third step."""
    with billed("capped"):
        try:
            with ft.session(NAME, **{**LIMIT, "max_cost_usd": usd}) as s:
                trained(s, 5)
        except OverBudget:
            say("capped", told(ft, s.id))


def main(home: str, cap: str) -> None:
    with workspace(Path(home)) as ft:
        with ft.session(str(TINY), lora=LORA, options=OPTIONS) as s:
            say("here", trained(s, 3))
        loop(ft, "there")
        fault("lost_answer", "forward_backward", count=2, skip=1)
        fault("lost_answer", "optim_step")
        fault("lost_answer", "asample")
        fault("lost_answer", "retrieve_future", count=2, skip=3)
        loop(ft, "lost answers")
        fault("paused_capacity", "retrieve_future", count=2, delay_s=0.2)
        fault("paused_rate_limit", "retrieve_future", delay_s=0.2)
        fault("error", "forward_backward", status=503)
        fault("error", "optim_step", status=500, skip=1)
        fault("rate_limit", "asample", retry_after=0)
        loop(ft, "busy")
        say("faults left", httpx.get(f"{URL}/_sandbox/faults").json()["faults"])
        expired(ft)
        capped(ft, float(cap))


if __name__ == "__main__":
    main(*sys.argv[1:])
