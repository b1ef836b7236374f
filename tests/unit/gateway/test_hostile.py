"""Clients that are broken or mean harm: each gets an answer of its own kind, and the others are served."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import httpx
import pytest
from tests import loopback
from tests.unit.gateway.conftest import ASKED, Gateway, rows

from orchestrate.gateway.server import app
from orchestrate.http.web import Patient, listen, running
from orchestrate.serving.server.keys import Clients

NAMES = ["../../etc/passwd.jsonl", 'a"b\r\nx-evil: 1.jsonl', "é雪☃.jsonl", "a" * 5000 + ".jsonl", "\0.jsonl"]
PATHS = [
    ("POST", "files"),
    ("GET", "files/x"),
    ("DELETE", "files/x"),
    ("GET", "files/x/content"),
    ("POST", "uploads"),
    ("POST", "uploads/x/parts"),
    ("POST", "uploads/x/complete"),
    ("POST", "uploads/x/cancel"),
    ("POST", "fine_tuning/jobs"),
    ("GET", "fine_tuning/jobs?limit=-1"),
    ("GET", "fine_tuning/jobs?limit=1e3&after=x"),
    ("GET", "fine_tuning/jobs/x"),
    ("POST", "fine_tuning/jobs/x/cancel"),
    ("POST", "fine_tuning/jobs/x/pause"),
    ("POST", "fine_tuning/jobs/x/resume"),
    ("GET", "fine_tuning/jobs/x/events"),
    ("GET", "fine_tuning/jobs/x/checkpoints"),
    ("POST", "fine_tuning/alpha/graders/run"),
    ("POST", "fine_tuning/alpha/graders/validate"),
    ("POST", "fine_tuning/checkpoints/x/permissions"),
    ("GET", "fine_tuning/checkpoints/x/permissions?order=x"),
    ("GET", "models/x"),
    ("DELETE", "models/x"),
    ("POST", "chat/completions"),
    ("POST", "completions"),
    ("POST", "responses"),
    ("POST", "embeddings"),
    ("PATCH", "models"),
    ("POST", "nowhere"),
]
BODIES: list[tuple[str, bytes]] = [
    ("application/json", b""),
    ("application/json", b"{"),
    ("application/json", b"[1]"),
    ("application/json", b'{"model": NaN}'),
    ("application/json", b'{"model": "\\ud800", "training_file": "x", "input": "\\udfff"}'),
    ("application/json", b"[" * 100_000),
    ("application/json", b'{"metadata": {%s}}' % b",".join(b'"k%d": "v"' % n for n in range(100_000))),
    ("application/xml", b"<model/>"),
    ("multipart/form-data", b"x"),
    ("multipart/form-data; boundary=b", b"--b\r\n\r\nx"),
    ("multipart/form-data; boundary=b", b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n'),
    ("text/plain; charset=nothing", b"\xff\xfe"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_every_refusal_says_that_it_is_for_good(gateway: Gateway, method: str, path: str) -> None:
    with gateway.http() as http:
        for kind, body in BODIES if method == "POST" else [("", b"")]:
            answer = http.request(method, path, content=body, headers={"content-type": kind} if kind else {})
            told = (method, path, kind, body[:40], answer.status_code, answer.text[:300])
            assert answer.status_code in (403, 404, 405, 413, 422), told
            assert answer.headers["x-should-retry"] == "false", told
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, told


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_file_may_have_any_name(gateway: Gateway, name: str) -> None:
    content = rows(mark=name[:9])
    with gateway.http() as http:
        made = http.post("files", files={"file": (name, content)}, data={"purpose": "fine-tune"})
        assert made.status_code in (200, 422), made.text
        if made.status_code == 200:
            answer = http.get(f"files/{made.json()['id']}/content")
            assert answer.content == content and "x-evil" not in answer.headers
            assert "\n" not in answer.headers["content-disposition"]
    folder = gateway.ft.settings.home / "gateway"
    assert {path.parent for path in folder.rglob("*") if path.is_file()} <= {folder}


def test_a_field_of_a_form_is_not_held_in_memory_without_end(gateway: Gateway) -> None:
    with gateway.http() as http:
        purpose = {"purpose": (None, b"x" * 1_000_000), "file": ("a.jsonl", b"{}")}
        assert http.post("files", files=purpose).status_code == 422
        many = [("file", (f"{n}.jsonl", b"{}")) for n in range(50)]
        assert http.post("files", files=many, data={"purpose": "fine-tune"}).status_code == 422


def test_a_body_without_a_length_is_taken_bit_by_bit(gateway: Gateway) -> None:
    def bits() -> Iterator[bytes]:
        for byte in json.dumps({"grader": GRADER}).encode():
            yield bytes([byte])

    with gateway.http() as http:
        answer = http.post("fine_tuning/alpha/graders/validate", content=bits())
        assert answer.status_code == 200 and answer.json()["grader"] == GRADER


GRADER = {"type": "string_check", "name": "a", "input": "x", "reference": "y", "operation": "eq"}


def test_requests_that_come_one_behind_the_other_are_answered_in_order(gateway: Gateway) -> None:
    url = httpx.URL(gateway.url)
    with socket.create_connection((url.host, url.port)) as plain:  # type: ignore[arg-type]
        head = f"HTTP/1.1\r\nhost: {url.host}\r\n"
        paths = ("/v1/files/first", "/v1/files/second", "/v1/models")
        ends = ("", "", "connection: close\r\n")
        plain.sendall(
            b"".join(f"GET {p} {head}{end}\r\n".encode() for p, end in zip(paths, ends, strict=True))
        )
        plain.settimeout(240)
        got = b"".join(iter(lambda: plain.recv(65536), b"")).decode()
    assert got.count("HTTP/1.1 ") == 3
    assert got.index("first") < got.index("second") < got.index('"object":"list"')


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v1/files HTTP/1.1\r\n\r\n",  # without a host
        b"POST /v1/fine_tuning/jobs HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: x\r\n\r\n",
        b"GET /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\nx y: z\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",  # TLS where none is spoken
        b"GET /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"x" * 300_000,
    ],
    ids=["no-host", "length", "header", "tls", "endless"],
)
def test_what_is_no_request_is_refused_in_the_same_form(gateway: Gateway, sent: bytes) -> None:
    url = httpx.URL(gateway.url)
    with socket.create_connection((url.host, url.port)) as plain:  # type: ignore[arg-type]
        plain.settimeout(240)
        plain.sendall(sent)
        got = bytearray()
        with suppress(ConnectionResetError):  # it may hang up before it has read all
            while part := plain.recv(65536):
                got += part
    head, _, body = bytes(got).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and b"x-should-retry: false" in head
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


class Impatient(Patient):
    head_s = 1.0


@pytest.mark.slow
def test_clients_that_never_finish_a_request_are_cut_off_and_others_served(gateway: Gateway) -> None:
    door = app(gateway.ft, [], Clients(gateway.ft.store, "gateway"), ())
    with closing(listen(0)) as taking, running([(door, taking)], protocol=Impatient):
        place = taking.getsockname()
        slow = [socket.create_connection(place) for _ in range(60)]
        try:
            for n, one in enumerate(slow):
                one.sendall((b"", b"GET /v1/models HT", b"GET /v1/models HTTP/1.1\r\nhost: a\r\nx: ")[n % 3])
            health = f"http://127.0.0.1:{place[1]}/health"
            assert loopback.get(health).status_code == 200
            for one in slow:
                one.settimeout(240)
                assert one.recv(1) == b"", "hung up"
            assert loopback.get(health).status_code == 200
        finally:
            for one in slow:
                one.close()


@pytest.mark.slow
def test_one_body_twice_at_once_is_two_jobs_without_a_sign_and_one_with(gateway: Gateway) -> None:
    with gateway.http() as http, ThreadPoolExecutor(4) as pool:
        upload = {"file": ("t.jsonl", rows(mark="twice at once"))}
        file = http.post("files", files=upload, data={"purpose": "fine-tune"}).json()["id"]
        for headers, expected in (({}, 4), ({"idempotency-key": "at once"}, 1)):
            start = threading.Barrier(4)

            def post(_: int, headers: dict[str, str] = headers, start: threading.Barrier = start) -> str:
                start.wait()
                body = {"model": ASKED, "training_file": file}
                answer = http.post("fine_tuning/jobs", json=body, headers=headers)
                assert answer.status_code == 200, answer.text
                return answer.json()["id"]

            assert len(set(pool.map(post, range(4)))) == expected
