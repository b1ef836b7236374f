"""What is refused, and that no client tries it again for ever."""

from __future__ import annotations

import hashlib
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from tests.unit.gateway.conftest import ASKED, Gateway, ended, gateway_of, rows, until

from orchestrate.gateway import terms
from orchestrate.sandbox.server import Sandbox
from orchestrate.types import GatewayKey


@pytest.fixture(scope="module")
def file(gateway: Gateway) -> str:
    with gateway.client() as client:
        return client.files.create(file=("train.jsonl", rows()), purpose="fine-tune").id


WRONG: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "gpt-5"}, 404, "gpt-4o-mini-2024-07-18"),
    ({"training_file": "file-none"}, 404, "file-none"),
    ({"validation_file": "file-none"}, 404, "file-none"),
    ({"model": f"ft:{ASKED}:orchestrate::none"}, 404, "does not exist"),
    ({"colour": "red"}, 422, "colour"),
    ({"hyperparameters": {"n_epochs": 0}}, 422, "n_epochs"),
    ({"model": 3}, 422, "model"),
    ({"method": {"type": "reinforcement"}}, 422, "grader"),
    ({"method": {"type": "dpo"}}, 422, "prefer"),
    (
        {"model": "gpt-4.1-mini-2025-04-14", "integrations": [{"type": "wandb", "wandb": {}}]},
        422,
        "integrations",
    ),
]


@pytest.mark.parametrize(("body", "status", "told"), WRONG, ids=[str(n) for n in range(len(WRONG))])
def test_a_wrong_job_is_refused_for_good(
    gateway: Gateway, file: str, body: dict[str, Any], status: int, told: str
) -> None:
    with gateway.http() as http:
        answer = http.post("fine_tuning/jobs", json={"model": ASKED, "training_file": file, **body})
        before = http.get("fine_tuning/jobs").json()["data"]
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert told in error["message"] and set(error) == {"message", "type", "param", "code"}
    assert answer.headers["x-should-retry"] == "false"
    assert not [job for job in before if job["status"] != "succeeded" and job["training_file"] == "file-none"]


def test_rows_that_cannot_be_trained_on_are_refused_with_their_row(gateway: Gateway, openai: OpenAI) -> None:
    bad = openai.files.create(file=("t.jsonl", rows() + b'{"messages": []}\n'), purpose="fine-tune")
    with gateway.http() as http:
        answer = http.post("fine_tuning/jobs", json={"model": ASKED, "training_file": bad.id})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "invalid_training_file")
    assert "13" in error["message"], error


@pytest.mark.parametrize(
    "content",
    [
        b"\n",
        b"\0\0\0",
        bytes(range(256)),
        b'{"messages": NaN}\n',
        b"[1]\n" * 12,
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}\n',
        rows() + b'{"colour": 1}\n',
        rows() + b'{"messages": []}\n',
    ],
)
def test_bad_rows_are_told_by_the_clients_own_file_and_not_where_it_lies(
    gateway: Gateway, openai: OpenAI, content: bytes
) -> None:
    bad = openai.files.create(file=("my rows.jsonl", content), purpose="fine-tune")
    with gateway.http() as http:
        answer = http.post("fine_tuning/jobs", json={"model": ASKED, "training_file": bad.id})
    assert answer.status_code == 422, answer.text
    assert (
        str(gateway.ft.settings.home) not in answer.text and gateway.ft.settings.home.name not in answer.text
    )
    assert hashlib.sha256(content).hexdigest() not in answer.text
    assert "my rows.jsonl" in answer.text


@pytest.mark.slow
def test_a_file_that_its_host_refuses_is_told_by_the_clients_own_name(
    gateway: Gateway, openai: OpenAI, sandbox: Sandbox
) -> None:
    file = openai.files.create(file=("my rows.jsonl", rows(mark="refused there")), purpose="fine-tune")
    sandbox.fault(
        "fireworks", "error", method="POST", path="validateUpload", status=400, message="no", count=0
    )
    try:
        job = openai.fine_tuning.jobs.create(model="gpt-4.1-mini-2025-04-14", training_file=file.id)
        failed = ended(openai, job.id)
    finally:
        sandbox.clear_faults()
    assert failed.status == "failed" and "my rows.jsonl" in failed.error.message, failed.error
    told = failed.error.message + str(openai.fine_tuning.jobs.list_events(job.id, limit=100).data)
    assert gateway.ft.settings.home.name not in told


def test_more_requests_than_fit_are_told_to_come_later(sandbox: Sandbox, tmp_path: Path) -> None:
    with gateway_of(tmp_path, sandbox.env, most_requests=3) as few, few.http() as http:
        place = httpx.URL(few.url)
        head = b"POST /v1/fine_tuning/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n"
        slow = [socket.create_connection((place.host, place.port), timeout=240) for _ in range(3)]
        try:
            for one in slow:
                one.sendall(head)
            late = until(lambda: (answer := http.get("models")).status_code == 429 and answer)
            assert late.headers["x-should-retry"] == "true" and int(late.headers["retry-after"]) >= 1
            assert late.json()["error"]["code"] == "queue_full"
            assert http.get(f"http://localhost:{place.port}/health").status_code == 200
            for one in slow:
                one.sendall(b"[1, 2, 3]")
                assert one.recv(100).startswith(b"HTTP/1.1 422")
            assert http.get("models").status_code == 200
        finally:
            for one in slow:
                one.close()


def test_files_are_refused_by_what_they_are(gateway: Gateway) -> None:
    with gateway.http() as http:
        post = {
            "no file": http.post("files", data={"purpose": "fine-tune"}),
            "no purpose": http.post("files", files={"file": ("a.jsonl", b"{}")}),
            "empty": http.post("files", files={"file": ("a.jsonl", b"")}, data={"purpose": "fine-tune"}),
            "no form": http.post("files", content=b"x", headers={"content-type": "multipart/form-data"}),
            "json": http.post("files", json={}),
        }
        assert {name: answer.status_code for name, answer in post.items()} == dict.fromkeys(post, 422)
        assert all(answer.json()["error"]["message"] for answer in post.values())
        assert http.get("files/file-none").status_code == http.delete("files/file-none").status_code == 404
        assert http.get("nothing").json()["error"]["code"] == "not_found"


GRADER = '{"type": "string_check", "name": "a%s", "input": "x", "reference": "y", "operation": "eq"%s}'


@pytest.mark.parametrize(
    "grader", [GRADER % ("\\ud800", ""), GRADER % ("", ', "z": NaN'), GRADER % ("", ', "z": 1e999')]
)
def test_what_json_cannot_say_is_refused(gateway: Gateway, grader: str) -> None:
    with gateway.http() as http:
        url = "fine_tuning/alpha/graders/validate"
        answer = http.post(url, content=f'{{"grader": {grader}}}')
    assert (answer.status_code, answer.headers["x-should-retry"]) == (422, "false"), answer.text


def test_files_that_are_refused_leave_nothing_behind(gateway: Gateway) -> None:
    folder = gateway.ft.settings.home / "gateway"
    with gateway.http() as http:
        for purpose, content in (("nothing of ours", b"left behind"), ("fine-tune", b"")):
            refused = http.post("files", files={"file": ("a.jsonl", content)}, data={"purpose": purpose})
            assert refused.status_code == 422
            assert not (folder / f"{hashlib.sha256(content).hexdigest()}.jsonl").exists()


def test_an_empty_parameter_is_as_none(gateway: Gateway, file: str) -> None:
    with gateway.http() as http:
        for query in ("after=", "purpose="):
            assert file in [one["id"] for one in http.get(f"files?{query}").json()["data"]], query


@pytest.mark.usefixtures("standing")
def test_what_was_cancelled_has_ended(openai: OpenAI, file: str) -> None:
    job = openai.fine_tuning.jobs.create(model=ASKED, training_file=file)
    assert openai.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert ended(openai, job.id).status == "cancelled"


@pytest.mark.slow
def test_what_has_ended_is_not_cancelled(openai: OpenAI, gateway: Gateway, file: str) -> None:
    done = openai.fine_tuning.jobs.create(model=ASKED, training_file=file, suffix="b")
    assert ended(openai, done.id).status == "succeeded"
    with gateway.http() as http:
        answer = http.post(f"fine_tuning/jobs/{done.id}/cancel")
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_job_status")
        assert http.post("fine_tuning/jobs/ftjob-none/cancel").status_code == 404


def test_a_key_that_sends_a_private_model_elsewhere_keeps_it_private() -> None:
    def private(asked: str, map: dict[str, str]) -> bool:
        key = GatewayKey(name="k", created_at=datetime(2026, 1, 1, tzinfo=UTC), map=map)
        found = terms.target_of(asked, models, key)
        return found is not None and found.settings.get("private") is True

    table = {"backend": "local", "model": "qwen3-4b"}
    marked = {**table, "settings": {"private": True}}
    models = {
        name: terms.MappedModel.model_validate(told)
        for name, told in {"secret-2026-01-01": marked, "open": table, "default": marked}.items()
    }
    away = "together:qwen3-8b"
    assert private("secret", {"secret": away}) and private("secret-2026-01-01", {"default": away})
    assert private("other", {"other": away}) and private("other", {})
    assert not private("open", {}) and not private("open", {"open": away})


def test_a_model_that_is_marked_private_stays_on_machines_of_ones_own(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    """Before the job is written down, and by every name that the map has for it; without the mark it is
    taken, and on the user's own host too."""
    private = {"settings": {"private": True}}
    models = {
        "away": {"backend": "together", "model": "qwen3-8b", **private},
        "own": {"backend": "fireworks", "model": "qwen3-8b", **private},
        "default": {"backend": "together", "model": "qwen3-8b", **private},
    }
    env = {**sandbox.env, "TOGETHER_BASE_URL": "https://together.invalid/v1"}
    with (
        gateway_of(tmp_path, env, {"models": models}) as found,
        found.http() as http,
        found.client() as openai,
    ):
        file = openai.files.create(file=("train.jsonl", rows()), purpose="fine-tune").id
        for name in ("away", "gpt-4.1-2025-04-14"):
            answer = http.post("fine_tuning/jobs", json={"model": name, "training_file": file})
            error = answer.json()["error"]
            assert (answer.status_code, answer.headers["x-should-retry"]) == (422, "false"), error
            assert "private" in error["message"] and "ORCHESTRATE_OWN_HOSTS=together" in error["message"]
        assert openai.fine_tuning.jobs.create(model="own", training_file=file).status
        assert [job.model for job in openai.fine_tuning.jobs.list()] == ["own"]
        assert [run.record.spec["private"] for run in until(lambda: list(found.ft.runs()))] == [True]
