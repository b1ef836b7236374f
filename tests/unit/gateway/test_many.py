"""Two hundred clients at once; GATEWAY_LOAD_S=120 repeats what docs/gateway.md tells."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable

import httpx
import pytest
from tests.unit.gateway.conftest import ASKED, Gateway, rows, until

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("GATEWAY_LOAD_S", "12"))
CLIENTS = 200


def test_two_hundred_clients_are_all_answered(
    gateway: Gateway, record_property: Callable[[str, object], None]
) -> None:
    statuses: Counter[int] = Counter()
    made: list[str] = []
    waits: list[float] = []

    async def client(number: int, http: httpx.AsyncClient, file: str, end: float) -> None:
        body = {"model": ASKED, "training_file": file, "suffix": f"many{number}"}
        if number % 10 == 0:
            answer = await http.post("fine_tuning/jobs", json=body)
            statuses[answer.status_code] += 1
            made.append(answer.json()["id"])
        paths = ["fine_tuning/jobs?limit=5", "models", f"files/{file}", "files?limit=5"]
        paths += [f"fine_tuning/jobs/{id}" for id in made[-1:]]
        while time.monotonic() < end:
            for path in paths:
                begun = time.monotonic()
                statuses[(await http.get(path)).status_code] += 1
                waits.append(time.monotonic() - begun)
                await asyncio.sleep(0.5)

    async def all_of_them(file: str) -> None:
        headers, limits = {"authorization": "Bearer any"}, httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(
            base_url=f"{gateway.url}/", headers=headers, limits=limits, timeout=240
        ) as http:
            end = time.monotonic() + SECONDS
            await asyncio.gather(*(client(n, http, file, end) for n in range(CLIENTS)))

    with gateway.client() as openai:
        file = openai.files.create(file=("t.jsonl", rows(mark="load")), purpose="fine-tune").id
        asyncio.run(all_of_them(file))
        assert set(statuses) == {200} and sum(statuses.values()) > CLIENTS, statuses
        assert len(set(made)) == CLIENTS // 10
        until(lambda: all(openai.fine_tuning.jobs.retrieve(id).status == "succeeded" for id in made))
    median, late = statistics.median(waits), statistics.quantiles(waits, n=20)[-1]
    told = (
        f"{len(waits) / SECONDS:.0f} answers a second; half within {median:.2f} s, 95 of 100 in {late:.2f} s"
    )
    record_property("load", told)
    print(told)
    suffixes = [str(run.record.spec.get("suffix")) for run in gateway.ft.runs(limit=1000)]
    assert sum(suffix.startswith("many") for suffix in suffixes) == len(made)
