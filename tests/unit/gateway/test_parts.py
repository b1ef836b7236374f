"""Uploads in parts, graders, and webhooks, by the official client."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from tests.http_server import Handler, serving
from tests.unit.gateway.conftest import ASKED, Gateway, ended, gateway_of, rows, until

from orchestrate.sandbox.server import Sandbox
from orchestrate.settings import Secret


@pytest.mark.usefixtures("standing")
def test_a_file_comes_in_parts(openai: OpenAI, gateway: Gateway) -> None:
    content = rows(300, "parts")
    upload = openai.uploads.upload_file_chunked(
        file=content,
        filename="t.jsonl",
        bytes=len(content),
        mime_type="text/jsonl",
        purpose="fine-tune",
        part_size=len(content) // 3,
    )
    assert upload.status == "completed" and upload.file is not None
    before = len(openai.files.list().data)
    repeat = openai.uploads.complete(
        upload.id, part_ids=["part_gone"], extra_headers={"x-stainless-retry-count": "1"}
    )
    assert repeat == upload and len(openai.files.list().data) == before  # its answer had not come
    assert openai.files.content(upload.file.id).read() == content
    job = openai.fine_tuning.jobs.create(model=ASKED, training_file=upload.file.id)
    assert openai.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    other = openai.uploads.create(bytes=4, filename="a.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    part = openai.uploads.parts.create(other.id, data=b"ab")
    with gateway.http() as http:
        short = http.post(f"uploads/{other.id}/complete", json={"part_ids": [part.id]})
        assert short.status_code == 422 and "4" in short.json()["error"]["message"]
        assert openai.uploads.cancel(other.id).status == "cancelled"
        late = http.post(f"uploads/{other.id}/complete", json={"part_ids": [part.id]})
        assert late.json()["error"]["code"] == "invalid_upload_status"


def test_graders_are_tried_out(openai: OpenAI, gateway: Gateway) -> None:
    grader = {
        "type": "string_check",
        "name": "same",
        "operation": "eq",
        "input": "{{sample.output_text}}",
        "reference": "{{item.answer}}",
    }
    run = openai.fine_tuning.alpha.graders.run
    right = run(grader=grader, model_sample="7", item={"answer": "7"})  # type: ignore[arg-type]
    wrong = run(grader=grader, model_sample="8", item={"answer": "7"})  # type: ignore[arg-type]
    assert (right.reward, wrong.reward) == (1.0, 0.0)
    assert openai.fine_tuning.alpha.graders.validate(grader=grader).grader  # type: ignore[arg-type]
    with gateway.http() as http:
        refused = http.post("fine_tuning/alpha/graders/validate", json={"grader": {"type": "no"}})
    assert refused.status_code == 422 and refused.json()["error"]["code"] == "invalid_grader"


LONG = "ab" * 400_000
HEAVY: dict[str, dict[str, Any]] = {
    "a template of braces": {"type": "string_check", "operation": "like", "input": "{{" + " " * 2000},
    "a template that grows": {"type": "string_check", "operation": "eq", "input": "{{item.answer}}" * 9000},
    "long texts": {"type": "text_similarity", "evaluation_metric": "fuzzy_match", "input": "{{item.answer}}"},
    "a formula": {
        "type": "multi",
        "graders": {"a": {"type": "string_check", "operation": "eq", "input": "", "reference": ""}},
        "calculate_output": "-" * 9000 + "a",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("what", HEAVY)
def test_a_grader_that_takes_its_time_holds_nobody_up(openai: OpenAI, gateway: Gateway, what: str) -> None:
    """Graded in a process of its own with an end, while other requests are answered at once."""
    grader = {"name": "heavy", "reference": LONG[::-1] + "b"} | HEAVY[what]
    body = {"grader": grader, "model_sample": "x", "item": {"answer": LONG}}
    answers = list[Any]()
    with gateway.http() as http:
        http.timeout = 120
        asking = threading.Thread(
            target=lambda: answers.append(http.post("fine_tuning/alpha/graders/run", json=body))
        )
        asking.start()
        listed = 0
        while asking.is_alive():
            openai.models.list()
            listed += 1
    [answer] = answers
    assert answer.status_code in (200, 422), answer.text
    assert listed >= 3 or what != "long texts", "nobody else was answered"


@pytest.mark.slow
def test_many_heavy_graders_are_told_to_come_back(gateway: Gateway) -> None:
    """Each takes its whole time; were all taken, no thread would be left for other requests."""
    long = {"answer": " ".join(f"w{n}" for n in range(20_000))}
    slots = "{{item.answer}} " * 40
    grader = {"name": "heavy", "type": "text_similarity", "evaluation_metric": "rouge_l", "input": slots}
    body = {"grader": grader | {"reference": slots + "x"}, "model_sample": "x", "item": long}
    with gateway.http() as http, ThreadPoolExecutor(12) as pool:
        http.timeout = 240
        asked = [pool.submit(http.post, "fine_tuning/alpha/graders/run", json=body) for _ in range(12)]
        answers = [one.result() for one in asked]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused and len(refused) < 12 and {a.status_code for a in answers} == {200, 429}
    assert all(int(a.headers["retry-after"]) > 0 and a.headers["x-should-retry"] == "true" for a in refused)


@pytest.mark.slow
@pytest.mark.parametrize("failures", [1])
def test_an_end_is_told_signed_until_it_is_taken(sandbox: Sandbox, tmp_path: Path, failures: int) -> None:
    taken: list[tuple[str, dict[str, str]]] = []

    class Receiver(Handler):
        def do_POST(self) -> None:
            taken.append((self.body().decode(), dict(self.headers.items())))
            self.answer(503 if len(taken) <= failures else 204)

    secret = "whsec_" + "c2VjcmV0IG9mIHRoZSB0ZXN0" * 2
    with (
        serving(Receiver) as url,
        gateway_of(
            tmp_path, sandbox.env, {"webhook_url": f"{url}/"}, webhook_secret=Secret(secret)
        ) as gateway,
        gateway.client() as client,
    ):
        file = client.files.create(file=("t.jsonl", rows(mark="hook")), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model=ASKED, training_file=file.id)
        assert ended(client, job.id).status == "succeeded"
        until(lambda: len(taken) > failures)
        events = [client.webhooks.unwrap(body, headers, secret=secret) for body, headers in taken]
    assert {event.type for event in events} == {"fine_tuning.job.succeeded"}
    assert {event.data.id for event in events} == {job.id}  # type: ignore[union-attr]
    assert len({event.id for event in events}) == 1, "a repeat is recognised"
