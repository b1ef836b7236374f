"""One job for one request, however often it comes and whatever is killed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai import OpenAI
from tests import command
from tests.unit.gateway import worker
from tests.unit.gateway.conftest import ASKED, Gateway, ended, own_port, rows, until

from orchestrate import config
from orchestrate.sandbox.server import Sandbox
from orchestrate.service.orchestrator import Orchestrator
from orchestrate.types import Job

_STARTING = threading.Lock()
"""The fork server is asked by one thread at a time."""


def test_a_repeat_gives_the_first_answer(gateway: Gateway, openai: OpenAI) -> None:
    file = openai.files.create(file=("t.jsonl", rows(mark="once")), purpose="fine-tune")
    body = {"model": ASKED, "training_file": file.id, "suffix": "once"}
    with gateway.http() as http:

        def post(**headers: str) -> str:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            answer = http.post("fine_tuning/jobs", json=body, headers=named)
            assert answer.status_code == 200, answer.text
            return answer.json()["id"]

        held_up = post(x_stainless_retry_count="2")
        assert post(x_stainless_retry_count="0") == held_up, "it came behind its repeat"
        second = post(x_stainless_retry_count="0")
        assert second != held_up, "asked for twice"
        assert post(x_stainless_retry_count="1") == second
        named = post(idempotency_key="nightly")
        assert named not in (held_up, second) and post(idempotency_key="nightly") == named
        assert post() not in (held_up, second, named)
        other = {**body, "suffix": "other"}
        answer = http.post("fine_tuning/jobs", json=other, headers={"idempotency-key": "nightly"})
        assert answer.status_code == 422 and answer.headers["x-should-retry"] == "false"


def test_many_repeats_at_once_make_one_job(gateway: Gateway, openai: OpenAI) -> None:
    file = openai.files.create(file=("t.jsonl", rows(mark="many")), purpose="fine-tune")
    body = {"model": ASKED, "training_file": file.id, "suffix": "many"}
    with gateway.http() as http, ThreadPoolExecutor(8) as pool:

        def post(n: int) -> str:
            headers = {"x-stainless-retry-count": str(n)}
            while True:
                answer = http.post("fine_tuning/jobs", json=body, headers=headers)
                # Told to come again when the first has taken longer than one waits for it.
                if answer.headers.get("x-should-retry") != "true":
                    return answer.json()["id"]

        assert len(set(pool.map(post, range(8)))) == 1


@pytest.mark.slow
def test_kill_9_at_each_place_loses_and_doubles_nothing(
    sandbox: Sandbox, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    places = [*worker.BEFORE, *worker.BEHIND]
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda place: _killed_at(place, sandbox, tmp_path), places))
    counts = {"runs": len(places), "jobs": sum(map(len, found)), "alarms": 0}
    lost = sum(not jobs for jobs in found)
    doubled = sum(max(0, len(jobs) - 1) for jobs in found)
    told = {"fault": "kill -9 of the gateway", "where": "together", **counts}
    record_property("jobs", {**told, "lost": lost, "doubled": doubled})
    assert {place: len(jobs) for place, jobs in zip(places, found, strict=True)} == dict.fromkeys(places, 1)


def _killed_at(place: str, sandbox: Sandbox, folder: Path) -> list[Job]:
    with own_port() as port:
        return _killed_on(port, place, sandbox, folder)


def _killed_on(port: int, place: str, sandbox: Sandbox, folder: Path) -> list[Job]:
    """The jobs of the host that came of one request whose gateway was killed at a place and started again."""
    home = folder / place
    home.mkdir()
    own = {"ORCHESTRATE_HOME": str(home), "ORCHESTRATE_KEYS": str(home / "keys.toml")}
    env = {**{k: v for k, v in os.environ.items() if not k.startswith("ORCHESTRATE")}, **sandbox.env, **own}
    streams = [home / name for name in ("in", "out", "err")]
    streams[0].touch()

    def start() -> command.ForkServerProcess:
        (home / "up").unlink(missing_ok=True)
        words = [str(home), str(port), place]
        with _STARTING:
            process = command.start(worker.main, words, cwd=home, env=env, streams=streams)
        until((home / "up").exists, 120)
        return process

    process = start()
    url = f"http://127.0.0.1:{port}/v1"
    with OpenAI(base_url=url, api_key="no-key-here", max_retries=20) as client, ThreadPoolExecutor(1) as pool:
        file = client.files.create(file=("t.jsonl", rows(mark=place)), purpose="fine-tune")
        create = client.fine_tuning.jobs.create
        asked = pool.submit(lambda: create(model=ASKED, training_file=file.id, suffix=place))
        command.ended(process, 120)
        process = start()
        try:
            job = asked.result(120)
            assert ended(client, job.id, 180).status == "succeeded"
            assert [one.id for one in client.fine_tuning.jobs.list()] == [job.id]
        finally:
            process.kill()
            process.join()
    with Orchestrator(config.load(env={**sandbox.env, **own}, cwd=home)) as ft:
        [run] = ft.runs()
        refs = {run.record.ref}
        return [one for one in ft.provider("together").list() if one.handle.ref in refs]
