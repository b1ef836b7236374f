"""Jobs that are cancelled, paused and resumed, where the host does it and where it does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.unit.gateway.conftest import ASKED, Gateway, ended, gateway_of, rows, until

from orchestrate.sandbox import running as sandbox_running
from orchestrate.sandbox.jobs import Durations
from orchestrate.sandbox.server import Sandbox

PAUSES = "gpt-4.1-mini"
"""Asked of a host that can pause."""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Sandbox]]:
    home = tmp_path_factory.mktemp("slow")
    with sandbox_running(home=home / "hosts", train=False, speed=0.001, waits=Durations(file=0)) as hosts:
        table = {
            "models": {
                PAUSES: {"backend": "openai", "model": "gpt-4.1-mini"},
                ASKED: {"backend": "together", "model": "qwen3-8b"},
            }
        }
        (home / "orchestrate.toml").write_text("[hosts.together.options]\nretry_budget_s = 0.5\n")
        with gateway_of(home, hosts.env, table) as found:
            yield found, hosts


def started(gateway: Gateway, hosts: Sandbox, model: str, mark: str) -> str:
    """A job that its host has, and has validated."""

    def at_host() -> str | None:
        job = gateway.ft.store.gateway_jobs.get(id)
        return job and job.run_id and gateway.ft.run(job.run_id).record.job_id

    with gateway.http() as http:
        upload = {"file": ("t.jsonl", rows(mark=mark))}
        file = http.post("files", files=upload, data={"purpose": "fine-tune"}).json()["id"]
        id = http.post("fine_tuning/jobs", json={"model": model, "training_file": file}).json()["id"]
        until(at_host)
        hosts.skip(1500)  # at this speed it is validated after 1000 seconds and runs after 2000
        until(lambda: http.get(f"fine_tuning/jobs/{id}").json()["status"] in ("queued", "running"))
    return id


@pytest.mark.slow
def test_a_job_is_paused_and_goes_on(slow: tuple[Gateway, Sandbox]) -> None:
    gateway, hosts = slow
    id = started(gateway, hosts, PAUSES, "pause")
    with gateway.client() as client:
        until(lambda: hosts.skip(100) or client.fine_tuning.jobs.retrieve(id).status == "running")
        assert client.fine_tuning.jobs.pause(id).status == "queued", "its clients know six words"
        [run] = [run for run in gateway.ft.runs() if run.record.provider == "openai"]
        # The watcher may write down yet what it was told before.
        until(lambda: gateway.ft.run(run.id).record.raw_status == "paused")
        assert client.fine_tuning.jobs.resume(id).status in ("queued", "running")
        hosts.skip(100_000)
        assert ended(client, id).status == "succeeded"
    with gateway.http() as http:
        late = http.post(f"fine_tuning/jobs/{id}/pause")
        assert (late.status_code, late.json()["error"]["code"]) == (422, "invalid_job_status")


def test_a_cancel_that_the_host_refuses_leaves_the_job_as_it_is(slow: tuple[Gateway, Sandbox]) -> None:
    gateway, hosts = slow
    id = started(gateway, hosts, ASKED, "refused cancel")
    hosts.fault("together", "error", method="POST", path="cancel", status=403, message="not yours", count=0)
    with gateway.http() as http:
        refused = http.post(f"fine_tuning/jobs/{id}/cancel")
        assert (refused.status_code, refused.headers["x-should-retry"]) == (403, "false"), refused.text
        assert http.get(f"fine_tuning/jobs/{id}").json()["status"] in ("queued", "running")
        hosts.clear_faults()
        assert http.post(f"fine_tuning/jobs/{id}/cancel").json()["status"] == "cancelled"


@pytest.mark.slow
def test_a_cancel_that_does_not_reach_the_host_is_sent_again(slow: tuple[Gateway, Sandbox]) -> None:
    gateway, hosts = slow
    id = started(gateway, hosts, ASKED, "unreached cancel")
    hosts.fault("together", "error", method="POST", path="cancel", status=503, count=0)
    with gateway.http() as http:
        answer = http.post(f"fine_tuning/jobs/{id}/cancel")
        assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "true"), answer.text
        shown = http.get(f"fine_tuning/jobs/{id}").json()["status"]
        assert shown in ("queued", "running"), "the host may yet finish it"
        hosts.clear_faults()
        until(lambda: http.get(f"fine_tuning/jobs/{id}").json()["status"] == "cancelled")
    job = gateway.ft.store.gateway_jobs.get(id)
    assert job is not None and job.run_id is not None
    assert gateway.ft.run(job.run_id).refresh().status.value in ("cancelling", "cancelled")
