"""Gateways on one Postgres: two processes make each job once, and what Postgres cannot store is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests import command
from tests.postgres_server import Postgres
from tests.unit.gateway import worker
from tests.unit.gateway.conftest import ASKED, gateway_of, own_port, rows, until

from orchestrate.api.orchestrator import Orchestrator
from orchestrate.sandbox.server import Sandbox
from orchestrate.settings import config

pytestmark = pytest.mark.slow

ASKS = 12


def test_two_gateways_make_each_job_once(
    postgres: Postgres, sandbox: Sandbox, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    url, folder = postgres.store(), tmp_path / "files"
    homes = [tmp_path / name for name in ("one", "two")]
    ending, processes = ExitStack(), []
    ports = [ending.enter_context(own_port()) for _ in homes]
    for home, port in zip(homes, ports, strict=True):
        home.mkdir()
        own = {"ORCHESTRATE_HOME": str(home), "ORCHESTRATE_KEYS": str(home / "keys.toml")}
        others = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATE")}
        env = {**others, **sandbox.env, **own, "ORCHESTRATE_STORE": url}
        streams = [home / name for name in ("in", "out", "err")]
        streams[0].touch()
        words = [str(home), str(port), "nowhere", str(folder)]
        processes.append(command.start(worker.main, words, cwd=home, env=env, streams=streams))
    try:
        for home in homes:
            until((home / "up").exists)
        urls = [f"http://127.0.0.1:{port}/v1/" for port in ports]
        with httpx.Client(timeout=120) as http, ThreadPoolExecutor(6) as pool:
            upload = {"file": ("t.jsonl", rows(mark="two"))}
            file = http.post(f"{urls[0]}files", files=upload, data={"purpose": "fine-tune"}).json()["id"]

            def ask(number: int) -> str:
                """Once of each gateway, the second time as a client does whose answer did not come."""
                body = {"model": ASKED, "training_file": file, "suffix": f"two{number}"}
                first, second = urls if number % 2 else urls[::-1]
                headers = {"idempotency-key": f"k{number}"} if number % 3 == 0 else {}
                found: set[str] = set()
                for base, count in ((first, "0"), (second, "1"), (first, "2")):
                    told = {**headers, "x-stainless-retry-count": count}
                    answer = http.post(f"{base}fine_tuning/jobs", json=body, headers=told)
                    assert answer.status_code == 200, answer.text
                    found.add(answer.json()["id"])
                [id] = found
                return id

            ids = list(pool.map(ask, range(ASKS)))
            assert len(set(ids)) == ASKS

            def state(number: int) -> str:
                return http.get(f"{urls[number % 2]}fine_tuning/jobs/{ids[number]}").json()["status"]

            until(lambda: {state(n) for n in range(ASKS)} == {"succeeded"})
    finally:
        for process in processes:
            process.kill()
            process.join()
        ending.close()
    own = {"ORCHESTRATE_HOME": str(homes[0]), "ORCHESTRATE_STORE": url}
    with Orchestrator(config.load(env={**sandbox.env, **own}, cwd=homes[0])) as ft:
        refs = {run.record.ref for run in ft.runs(limit=1000)}
        jobs = [job for job in ft.provider("together").list() if job.handle.ref in refs]
        counts = {"runs": len(refs), "jobs": len(jobs), "alarms": 0}
        told = {"fault": "two gateways on one Postgres", "where": "together", **counts}
        record_property("jobs", {**told, "lost": ASKS - len(refs), "doubled": len(jobs) - len(refs)})
        assert len(refs) == len(jobs) == ASKS


def test_the_character_0_is_stored_or_refused(postgres: Postgres, sandbox: Sandbox, tmp_path: Path) -> None:
    """Postgres has it in no text."""
    own = {"ORCHESTRATE_STORE": postgres.store()}
    with gateway_of(tmp_path, {**sandbox.env, **own}) as gateway, gateway.http() as http:
        upload = {"file": ("t\0.jsonl", rows(mark="0"))}
        made = http.post("files", files=upload, data={"purpose": "fine-tune"})
        assert made.status_code == 200, made.text
        file = made.json()["id"]
        job: dict[str, Any] = {"model": ASKED, "training_file": file}
        asked: list[tuple[str, str, Any]] = [
            ("GET", "files/%00", None),
            ("GET", "fine_tuning/jobs/%00/events", None),
            ("GET", "models/ft:%00", None),
            ("GET", "files?after=%00&purpose=%00", None),
            ("GET", "fine_tuning/jobs?metadata[%00]=%00", None),
            ("POST", "fine_tuning/jobs", {**job, "model": "ft:a\0"}),
            ("POST", "fine_tuning/jobs", {**job, "training_file": "\0"}),
            ("POST", "fine_tuning/jobs", {**job, "suffix": "a\0b"}),
            ("POST", "fine_tuning/jobs", {**job, "metadata": {"a\0": "b\0"}}),
            ("POST", "chat/completions", {"model": "\0", "messages": [{"role": "user", "content": "\0"}]}),
            ("POST", "uploads", {"bytes": 1, "filename": "\0.jsonl", "mime_type": "text/jsonl"}),
        ]
        for method, path, body in asked:
            answer = http.request(method, path, json=body)
            assert answer.status_code in (200, 404, 422), (path, answer.text)
            if answer.status_code != 200:
                assert answer.headers["x-should-retry"] == "false"
        for one in http.get("fine_tuning/jobs").json()["data"]:
            until(lambda id=one["id"]: http.get(f"fine_tuning/jobs/{id}").json()["status"] == "succeeded")
