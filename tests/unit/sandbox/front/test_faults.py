"""Faults, counters and the clock, through the control endpoints and as the clients see them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fireworks as fireworks_sdk
import openai as openai_sdk
import pytest
import together as together_sdk
from openai import OpenAI
from tests import loopback

from orchestrate.sandbox.server import Sandbox

pytestmark = pytest.mark.slow  # the tests under faults use each of them


MODEL = "gpt-4o-mini-2024-07-18"
Write = Callable[..., Path]
Until = Callable[[Callable[[], Any]], Any]
JOBS = "/fine_tuning/jobs$"


@pytest.fixture
def file(openai: OpenAI, write: Write, until: Until) -> str:
    made = openai.files.create(file=write(12), purpose="fine-tune")
    until(lambda: openai.files.retrieve(made.id).status == "processed")
    return made.id


@pytest.fixture
def create(openai: OpenAI, file: str) -> Callable[[str], Any]:
    return lambda ref: openai.fine_tuning.jobs.create(model=MODEL, training_file=file, metadata={"ref": ref})


@pytest.fixture
def made(openai: OpenAI) -> Callable[[str], list[str]]:
    """Ids of the jobs with a ref."""
    return lambda ref: [job.id for job in openai.fine_tuning.jobs.list(metadata={"ref": ref})]


def ask(sandbox: Sandbox, fault: Any, host: str = "openai") -> None:
    loopback.post(f"{sandbox.urls[host]}/_sandbox/faults", json=fault).raise_for_status()


def test_rate_limits_and_errors_come_as_the_host_says_them_and_do_nothing(
    sandbox: Sandbox, create: Callable[[str], Any], made: Callable[[str], list[str]]
) -> None:
    ask(sandbox, {"kind": "rate_limit", "method": "POST", "path": JOBS, "retry_after": 7})
    with pytest.raises(openai_sdk.RateLimitError) as limited:
        create("r1")
    assert limited.value.response.headers["retry-after"] == "7"
    assert limited.value.code == "rate_limit_exceeded"
    ask(sandbox, {"kind": "error", "path": JOBS, "method": "POST", "status": 503, "code": "busy"})
    with pytest.raises(openai_sdk.InternalServerError) as broken:
        create("r1")
    assert (broken.value.status_code, broken.value.code) == (503, "busy")
    ask(sandbox, {"kind": "training_closed", "method": "POST", "path": JOBS})
    with pytest.raises(openai_sdk.PermissionDeniedError) as closed:
        create("r1")
    assert closed.value.code == "training_not_available"
    ask(sandbox, {"kind": "lost_request", "method": "POST", "path": JOBS})
    with pytest.raises(openai_sdk.APIConnectionError):
        create("r1")
    assert made("r1") == []
    assert create("r1").id in made("r1")  # each fault befell one request


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("lost_answer", openai_sdk.APIConnectionError),
        ("half_body", openai_sdk.APIConnectionError),
        ("timeout", openai_sdk.InternalServerError),
    ],
)
def test_a_lost_answer_leaves_the_job_behind(
    sandbox: Sandbox,
    create: Callable[[str], Any],
    made: Callable[[str], list[str]],
    kind: str,
    error: type[Exception],
) -> None:
    ask(sandbox, {"kind": kind, "method": "POST", "path": JOBS})
    with pytest.raises(error):
        create(kind)
    assert len(made(kind)) == 1


def test_a_page_of_a_proxy_instead_of_a_job(
    sandbox: Sandbox, create: Callable[[str], Any], made: Callable[[str], list[str]]
) -> None:
    for kind, jobs in (("html", 0), ("html_after", 1)):
        ask(sandbox, {"kind": kind, "method": "POST", "path": JOBS})
        assert "<html>" in str(create("page"))  # the SDK gives the text back
        assert len(made("page")) == jobs


def test_a_late_commit_appears_after_its_answer_was_lost(
    sandbox: Sandbox, create: Callable[[str], Any], made: Callable[[str], list[str]], until: Until
) -> None:
    ask(sandbox, {"kind": "late_commit", "method": "POST", "path": JOBS, "delay_s": 0.5})
    with pytest.raises(openai_sdk.APIConnectionError):
        create("late")
    assert made("late") == []
    assert len(until(lambda: made("late"))) == 1


def test_a_request_that_arrives_twice_makes_two_jobs_unless_it_names_its_id(
    sandbox: Sandbox,
    create: Callable[[str], Any],
    made: Callable[[str], list[str]],
    fireworks: fireworks_sdk.Fireworks,
    write: Write,
    until: Until,
) -> None:
    ask(sandbox, {"kind": "duplicate", "method": "POST", "path": JOBS})
    create("twice")
    assert len(made("twice")) == 2

    fireworks.datasets.create(dataset_id="twice", dataset={"user_uploaded": {}})
    fireworks.datasets.upload("twice", file=("t.jsonl", write(5).read_bytes()))
    until(lambda: fireworks.datasets.get("twice").state == "READY")
    sandbox.fault("fireworks", "duplicate", method="POST", path="Jobs$")
    with pytest.raises(fireworks_sdk.ConflictError):
        fireworks.supervised_fine_tuning_jobs.create(
            supervised_fine_tuning_job_id="twice",
            dataset="accounts/sandbox/datasets/twice",
            base_model="accounts/fireworks/models/qwen3-8b",
        )
    assert len(list(fireworks.supervised_fine_tuning_jobs.list())) == 1


def test_unknown_words_slow_lists_and_lists_that_lag(
    sandbox: Sandbox, openai: OpenAI, create: Callable[[str], Any], made: Callable[[str], list[str]]
) -> None:
    job = create("odd")
    sandbox.fault("openai", "unknown_status", method="GET", path="/jobs", word="thawing", count=2)
    assert openai.fine_tuning.jobs.retrieve(job.id).status == "thawing"
    assert openai.fine_tuning.jobs.list(limit=1).data[0].status == "thawing"
    assert openai.fine_tuning.jobs.retrieve(job.id).status != "thawing"

    sandbox.fault("openai", "list_lag", method="GET", path=JOBS, delay_s=60, count=1)
    assert made("odd") == []
    assert made("odd") == [job.id]

    sandbox.fault("openai", "slow", method="GET", path=JOBS, delay_s=0.4)
    before = time.monotonic()
    assert made("odd") == [job.id]
    assert time.monotonic() - before >= 0.4
    sandbox.fault("openai", "slow", method="GET", path=JOBS, delay_s=30)
    with pytest.raises(openai_sdk.APITimeoutError):
        openai.with_options(timeout=0.3).fine_tuning.jobs.list()


def test_faults_skip_count_and_can_be_taken_back(sandbox: Sandbox, openai: OpenAI) -> None:
    url = f"{sandbox.urls['openai']}/_sandbox/faults"
    ask(sandbox, [{"kind": "error", "skip": 1, "count": 2}, {"kind": "rate_limit", "count": 0}])
    assert [fault["kind"] for fault in loopback.get(url).json()["faults"]] == ["error", "rate_limit"]
    seen: list[str] = []
    for _ in range(5):
        with pytest.raises(openai_sdk.APIStatusError) as failed:
            openai.models.list()
        seen.append(type(failed.value).__name__)
    # the first request passes by the first fault, and meets the second one
    assert seen == [
        "RateLimitError",
        "InternalServerError",
        "InternalServerError",
        "RateLimitError",
        "RateLimitError",
    ]
    assert loopback.delete(url).json()["faults"] == []
    openai.models.list()
    wrong = loopback.post(url, json={"kind": "gremlin"})
    assert wrong.status_code == 400 and "gremlin" in wrong.text
    assert loopback.post(url, json={"kind": "slow", "dealy_s": 1}).status_code == 400


def test_each_host_says_a_fault_in_its_own_form(
    sandbox: Sandbox, together: together_sdk.Together, fireworks: fireworks_sdk.Fireworks
) -> None:
    sandbox.fault("together", "rate_limit", retry_after=2)
    with pytest.raises(together_sdk.RateLimitError) as one:
        together.fine_tuning.list()
    assert one.value.body["error"]["code"] == "rate_limit_exceeded"  # type: ignore[index]
    sandbox.fault("fireworks", "rate_limit", retry_after=2)
    with pytest.raises(fireworks_sdk.RateLimitError) as other:
        fireworks.accounts.list()
    assert other.value.body["code"] == 8  # type: ignore[index]
    assert other.value.response.headers["retry-after"] == "2"


def test_the_counters_have_every_request_without_its_secrets(
    sandbox: Sandbox, openai: OpenAI, file: str
) -> None:
    url = f"{sandbox.urls['openai']}/_sandbox/requests"
    loopback.delete(url)
    openai.models.list()
    wandb: Any = [{"type": "wandb", "wandb": {"project": "p"}}]
    with pytest.raises(openai_sdk.BadRequestError):
        openai.fine_tuning.jobs.create(
            model=MODEL, training_file=file, integrations=wandb, extra_body={"api_key": "hush-a-secret"}
        )
    report = loopback.get(url).json()
    assert report["total"] == 2
    assert {(e["method"], e["path"]) for e in report["by"]} == {
        ("GET", "/v1/models"),
        ("POST", "/v1/fine_tuning/jobs"),
    }
    only = loopback.get(url, params={"method": "POST"}).json()
    assert only["total"] == 1
    assert only["recent"][0]["body"]["integrations"] == wandb
    assert "hush-a-secret" not in json.dumps(report)
    assert sandbox.count("openai") == 2


def test_the_clock_can_be_put_forward(sandbox: Sandbox, openai: OpenAI, create: Callable[[str], Any]) -> None:
    url = f"{sandbox.urls['openai']}/_sandbox/clock"
    before = loopback.get(url).json()
    loopback.post(url, json={"speed": 0.0001}).raise_for_status()
    job = create("clock")
    assert openai.fine_tuning.jobs.retrieve(job.id).status == "validating_files"
    now = loopback.post(url, json={"skip_s": 1e6, "speed": before["speed"]}).json()
    assert now["now"] >= before["now"] + 1e6
    ended = openai.fine_tuning.jobs.retrieve(job.id)
    assert ended.status == "succeeded"
    assert ended.finished_at is not None and ended.finished_at > job.created_at + 10000


@pytest.mark.slow
def test_jobs_in_bulk(sandbox: Sandbox, openai: OpenAI, file: str) -> None:
    bodies = [{"model": MODEL, "training_file": file, "metadata": {"bulk": str(n)}} for n in range(250)]
    url = f"{sandbox.urls['openai']}/_sandbox/jobs"
    ids = loopback.post(url, json=bodies).json()["ids"]
    assert len(set(ids)) == 250
    assert [job.id for job in openai.fine_tuning.jobs.list(limit=100)][:250] == ids[::-1]
    wrong = loopback.post(url, json=[bodies[0], {"model": MODEL}])
    assert wrong.status_code == 400
    assert openai.fine_tuning.jobs.list(limit=1).data[0].id == ids[-1]  # all or none
