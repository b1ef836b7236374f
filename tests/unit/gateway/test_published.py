"""Answers and refusals against OpenAI's published description of its API."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import httpx
from jsonschema import Draft202012Validator
from tests.contract.known_fields import read
from tests.unit.gateway.conftest import ASKED, Gateway, ended, rows


@cache
def described() -> dict[str, Any]:
    return read("openai.yaml")


def wrong(answer: httpx.Response) -> list[str]:
    """What of an answer the description does not allow."""
    method, path = answer.request.method.lower(), answer.request.url.path.removeprefix("/v1")
    schema: dict[str, Any] = {"$ref": "#/components/schemas/ErrorResponse"}
    if answer.status_code < 300:
        found = [
            operations[method]
            for template, operations in described()["paths"].items()
            if re.fullmatch(re.sub(r"\\\{[^/]+\\\}", "[^/]+", re.escape(template)), path)
            and method in operations
        ]
        schema = found[0]["responses"]["200"]["content"]["application/json"]["schema"]
    whole = {"components": described()["components"], **schema}
    return [
        f"{path} {list(error.path)}: {error.message}"
        for error in Draft202012Validator(whole).iter_errors(answer.json())
    ]


def test_every_answer_is_as_published(gateway: Gateway) -> None:
    answers: list[httpx.Response] = []
    with gateway.http() as http, gateway.client() as client:
        http.event_hooks["response"] = [lambda answer: answers.append(answer)]
        upload = {"file": ("t.jsonl", rows(mark="spec"))}
        file = http.post("files", files=upload, data={"purpose": "fine-tune"}).json()["id"]
        body = {"model": ASKED, "training_file": file, "metadata": {"a": "b"}, "validation_file": None}
        job = http.post("fine_tuning/jobs", json=body).json()["id"]
        ended(client, job)
        root = f"fine_tuning/jobs/{job}"
        done = http.get(root).json()
        for path in ("fine_tuning/jobs", f"{root}/events", f"{root}/checkpoints", "files", "models"):
            http.get(path)
        http.get(f"models/{done['fine_tuned_model']}")
        http.get(f"files/{done['result_files'][0]}")
        http.get(f"files/{file}")
        permissions = f"fine_tuning/checkpoints/{done['fine_tuned_model']}/permissions"
        made = http.post(permissions, json={"project_ids": ["p"]}).json()["data"][0]["id"]
        http.get(permissions)
        http.delete(f"{permissions}/{made}")
        http.post(f"{root}/cancel")
        http.post(f"{root}/pause")
        told = {"bytes": 2, "filename": "a.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
        part_of = http.post("uploads", json=told).json()["id"]
        http.post(f"uploads/{part_of}/parts", files={"data": b"{}"})
        http.post(f"uploads/{part_of}/cancel")
        http.get("files/none")
        http.post("fine_tuning/jobs", json={})
        http.post("fine_tuning/jobs", content=b"{")
        http.delete(f"files/{file}")
        http.delete(f"models/{done['fine_tuned_model']}")
        for answer in answers:
            answer.read()
    assert [line for answer in answers for line in wrong(answer)] == []
    assert sum(answer.status_code < 300 for answer in answers) >= 18
    for answer in answers:  # it is really looked at
        if isinstance(body := answer.json(), dict) and "object" in body and answer.status_code == 200:
            answer._content = b"{}"
            assert wrong(answer)
