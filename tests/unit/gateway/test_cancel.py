"""A cancel that comes while its job is being submitted: it wins, or the create does; what clients are told
stays."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai import UnprocessableEntityError
from tests.unit.gateway.conftest import ASKED, Gateway, gateway_of, rows, until

from orchestrate.sandbox.server import Sandbox
from orchestrate.types import JobStatus

FINAL = ("succeeded", "failed", "cancelled")


@pytest.mark.parametrize("place", ["before-submit", "prepared"])
def test_a_job_that_is_cancelled_on_its_way_to_the_host_is_not_made_there(
    sandbox: Sandbox, tmp_path: Path, place: str
) -> None:
    here, ids = threading.Event(), list[str]()
    cancelled = threading.Event()

    def reached(now: str) -> None:
        if now == place:
            here.set()
            assert cancelled.wait(60)

    with (
        gateway_of(tmp_path, sandbox.env, reached=reached) as gateway,
        gateway.client() as openai,
        ThreadPoolExecutor(1) as pool,
    ):
        file = openai.files.create(file=("t.jsonl", rows(mark=place)), purpose="fine-tune")
        made = pool.submit(openai.fine_tuning.jobs.create, model=ASKED, training_file=file.id)
        assert here.wait(60)
        ids += [job.id for job in openai.fine_tuning.jobs.list()]
        assert openai.fine_tuning.jobs.cancel(ids[0]).status == "cancelled"
        cancelled.set()
        assert made.result().id == ids[0]
        until(lambda: gateway.ft.store.gateway_jobs.get(ids[0]).ended_at)  # type: ignore[union-attr]
        assert openai.fine_tuning.jobs.retrieve(ids[0]).status == "cancelled"
        assert gateway.ft.runs() == [], "there was nothing to be sent"
        assert _at_host(gateway, ids[0]) == []


@pytest.mark.slow
def test_a_terminal_status_that_was_given_out_stays(sandbox: Sandbox, tmp_path: Path) -> None:
    """Twelve jobs on a host that trains in no time, each cancelled a bit later than the one before."""
    speed, sandbox.clock.speed = sandbox.clock.speed, 10_000
    try:
        with gateway_of(tmp_path, sandbox.env) as gateway, gateway.client() as openai:
            file = openai.files.create(file=("t.jsonl", rows(mark="race")), purpose="fine-tune").id

            def race(after_s: float) -> tuple[str, str]:
                with gateway.client() as client:
                    id = client.fine_tuning.jobs.create(model=ASKED, training_file=file).id
                    threading.Event().wait(after_s)
                    try:
                        return id, client.fine_tuning.jobs.cancel(id).status
                    except UnprocessableEntityError:  # it had ended
                        return id, client.fine_tuning.jobs.retrieve(id).status

            with ThreadPoolExecutor(4) as pool:
                told = dict(pool.map(race, [0.05 * n for n in range(12)]))
            jobs = gateway.ft.store.gateway_jobs
            for id, status in told.items():
                until(lambda id=id: jobs.get(id).ended_at)  # type: ignore[union-attr]
                now = openai.fine_tuning.jobs.retrieve(id).status
                assert now in FINAL and (now == status or status not in FINAL), (status, now)
                run = gateway.ft.store.runs.of_key(id)
                if now == "cancelled" and run is not None:
                    assert run.status is JobStatus.CANCELLED or run.job_id is not None
                assert len(_at_host(gateway, id)) == (0 if run is None or run.job_id is None else 1)
    finally:
        sandbox.clock.speed = speed


def _at_host(gateway: Gateway, id: str) -> list[str]:
    """The host's jobs of one job."""
    run = gateway.ft.store.runs.of_key(id)
    listed = gateway.ft.provider("together").list()
    return [job.handle.job_id for job in listed if run is not None and job.handle.ref == run.ref]
