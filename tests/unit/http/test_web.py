"""The ground of the local servers: who is let in, how much, how streams and the end of the server go."""

from __future__ import annotations

import asyncio
import http.client
import json
import select
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from tests import loopback

from orchestrate.errors import SetupError, UsageError
from orchestrate.http import web
from orchestrate.http.web import RequestGuard, holder
from orchestrate.http.wire import HostError

MOST = 1000


class Asked(msgspec.Struct):
    number: int


class Desk:
    """An app with what an app may have: a read, an action, a stream, a slow answer."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(8)
        self.more = threading.Event()
        self.slow = threading.Event()
        self.done: list[str] = []
        self.app = Starlette(
            routes=[
                Route("/", lambda request: PlainTextResponse(f"hello {request.scope.get('holder', '')}")),
                web.action("/act", Asked, self.act),
                web.action("/together", Asked, lambda asked, _: self.barrier.wait(240)),
                Route("/raw", self.raw, methods=["POST"]),
                Route("/stream", lambda _: web.event_stream(self.events())),
                Route("/slow", self.wait),
            ]
        )

    def act(self, asked: Asked, request: Request) -> Any:
        if asked.number < 0:
            raise UsageError("no such row")
        return {"twice": 2 * asked.number, "who": holder(request.scope)}

    async def raw(self, request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def events(self) -> AsyncIterator[str]:
        yield "first\nline"
        while not self.more.is_set():
            await asyncio.sleep(0.01)
        yield "second"

    async def wait(self, request: Request) -> Response:
        self.slow.set()
        await asyncio.sleep(0.3)
        self.done.append("slow")
        return PlainTextResponse("at last")


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def url(desk: Desk) -> Iterator[str]:
    tokens = {"a" * 32: "ann", "b" * 32: "bo"}
    guard = RequestGuard(
        desk.app, tokens=tokens, names=["Box.example"], origins=["https://app.example"], max_body=MOST
    )
    with web.serving(guard) as root:
        yield root


ANN = "/" + "a" * 32


def test_a_token_says_who_comes_and_without_one_nothing_is_answered(url: str) -> None:
    assert loopback.get(f"{url}{ANN}/").text == "hello ann"
    assert loopback.get(f"{url}/{'b' * 32}/").text == "hello bo"
    for path in ("/", ANN, f"{ANN}a/", f"{ANN[:-1]}/", "/act", f"/x{ANN}/", f"{ANN}/none", "/%ff/", "/é/"):
        assert loopback.get(url + path).status_code == 404, path


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("127.0.0.1:9", 200),
        ("[::1]:8", 200),
        ("192.168.1.7:8000", 200),  # an address leads where it says; only names can be turned to us
        ("box.example", 200),
        ("evil.example", 404),
        ("127.0.0.1.evil.example", 404),
        ("localhost.evil.example", 404),
        ("", 404),
    ],
)
def test_only_under_a_name_of_its_own(url: str, name: str, status: int) -> None:
    assert loopback.get(f"{url}{ANN}/", headers={"host": name}).status_code == status


def test_pages_of_other_sites_send_nothing_here(url: str) -> None:
    def post(**headers: str) -> int:
        return loopback.post(f"{url}{ANN}/act", json={"number": 1}, headers=headers).status_code

    assert post() == 200 and post(origin=url) == 200 and post(origin="https://app.example") == 200
    for origin in (
        "null",
        "https://evil.example",
        "http://127.0.0.1:1",
        "https://app.example.evil.example",
        "",
    ):
        assert post(origin=origin) == 403, origin
    assert (
        post(**{"sec-fetch-site": "cross-site"}) == 403 and post(**{"sec-fetch-site": "same-origin"}) == 200
    )


def test_a_page_of_an_allowed_site_may_ask_and_read() -> None:
    """As a browser does it: first without a key whether it may, then with the key."""
    site, asked = "https://app.example", "authorization,content-type,x-stainless-lang"

    async def answer(_: Request) -> Response:
        return PlainTextResponse("read me")

    async def admit(scope: Any) -> None:
        if web.bearer(scope) != "a-key":
            raise HostError(401, "no key")

    def behind(app: Any) -> Any:
        return web.Keyed(app, admit)

    def front(*origins: str) -> httpx.AsyncClient:
        app = web.edge(
            [Route("/v1/models", answer, methods=["POST"])], door=behind, origins=origins, max_body=MOST
        )
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000")

    async def ask(client: httpx.AsyncClient, origin: str) -> tuple[httpx.Response, httpx.Response]:
        wish = {"access-control-request-method": "POST", "access-control-request-headers": asked}
        first = await client.options("/v1/models", headers={"origin": origin, **wish})
        given = {"origin": origin, "authorization": "Bearer a-key"}
        return first, await client.post("/v1/models", headers=given)

    first, second = asyncio.run(ask(front(f"{site}/"), site))
    assert (first.status_code, second.status_code, second.text) == (200, 200, "read me")
    assert {one.headers["access-control-allow-origin"] for one in (first, second)} == {site}
    assert first.headers["access-control-allow-headers"] == asked
    for client in (front(site), front()):
        first, second = asyncio.run(ask(client, "https://evil.example"))
        assert first.status_code >= 400 and second.status_code == 403
        assert not any("access-control-allow-origin" in one.headers for one in (first, second))


def test_a_body_has_a_limit_told_or_not(url: str) -> None:
    def post(body: bytes) -> int:
        return loopback.post(f"{url}{ANN}/raw", content=body).status_code

    def untold(size: int) -> httpx.Response:
        parts = (b"x" * 100 for _ in range(size // 100))
        return loopback.post(f"{url}{ANN}/raw", content=parts)

    assert post(b"x" * MOST) == 200 and post(b"x" * (MOST + 1)) == 413
    assert untold(MOST).text == str(MOST)
    assert untold(MOST + 100).status_code == 413 and "1,000 bytes" in untold(MOST + 100).json()["error"]
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=240) as wire:
        wire.sendall(
            f"POST {ANN}/raw HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999\r\n\r\n".encode()
        )
        assert b" 413 " in wire.recv(200)  # before any of it came


class Impatient(web.Patient):
    body_s, least_rate = 0.3, 1000.0


POST = b"POST /raw HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n"


def test_a_body_that_stalls_or_drips_is_given_up(desk: Desk) -> None:
    with (
        closing(web.listen(0)) as taking,
        web.running([(RequestGuard(desk.app, max_body=1 << 20), taking)], protocol=Impatient),
    ):
        place = taking.getsockname()
        slow = [socket.create_connection(place, timeout=240) for _ in range(20)]
        try:
            for one in slow:
                one.sendall(POST + b"\r\nabc")
            waiting = list(slow)
            while waiting:
                for one in waiting:  # a byte every now and then is no body either
                    with suppress(OSError):
                        one.sendall(b"x")
                ready, _, _ = select.select(waiting, [], [], 0.05)
                waiting = [one for one in waiting if one not in ready]
            for one in slow:
                got = b""
                with suppress(ConnectionResetError):
                    while part := one.recv(4096):
                        got += part
                assert got.startswith(b"HTTP/1.1 408"), got
                assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_stalled"
        finally:
            for one in slow:
                one.close()
        root = f"http://127.0.0.1:{place[1]}"
        assert loopback.post(f"{root}/raw", content=b"x" * 900_000).text == "900000"


@pytest.mark.slow
def test_a_body_that_the_server_does_not_read_yet_is_waited_for() -> None:
    """As where its threads are busy: the client is at no fault."""

    class Patience(Impatient):
        body_s = 4.0

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(9)  # more than twice what a body may take
        Patience.body_s = 240  # from here on the client may be slow
        came = len(await Request(scope, receive).body())
        Patience.body_s = 4.0
        await PlainTextResponse(str(came))(scope, receive, send)

    with (
        closing(web.listen(0)) as taking,
        web.running([(late, taking)], protocol=Patience),
        closing(socket.create_connection(taking.getsockname(), timeout=240)) as patient,
    ):
        root = f"http://127.0.0.1:{taking.getsockname()[1]}"
        assert loopback.post(root, content=b"x" * 1_000_000).text == "1000000"
        patient.sendall(POST + b"expect: 100-continue\r\n\r\n")
        assert patient.recv(200).startswith(b"HTTP/1.1 100")
        patient.sendall(b"x" * 1_000_000)
        assert b" 200 " in patient.recv(200)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"number": "x"}', b"\xff", b'{"number": -1}'])
def test_what_is_wrong_with_an_action_is_said(url: str, body: bytes) -> None:
    answer = loopback.post(f"{url}{ANN}/act", content=body)
    assert answer.status_code == 422 and answer.json()["error"]


def test_each_answer_is_kept_by_nobody_and_runs_nothing(url: str) -> None:
    for answer in (
        loopback.get(f"{url}{ANN}/"),
        loopback.get(url),
        loopback.post(f"{url}{ANN}/act", json={"number": 1}),
    ):
        headers = answer.headers
        assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer" and "server" not in headers


def test_requests_run_side_by_side(url: str) -> None:
    """Each of the eight waits for the seven others."""
    with ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(loopback.post, f"{url}{ANN}/together", json={"number": 1}) for _ in range(8)]
        assert [one.result().status_code for one in sent] == [200] * 8


def test_a_stream_is_sent_as_it_comes(url: str, desk: Desk) -> None:
    with loopback.stream("GET", f"{url}{ANN}/stream", timeout=240) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(3)] == ["data: first", "data: line", ""]
        desk.more.set()
        assert list(lines) == ["data: second", ""]


@pytest.mark.slow
def test_the_end_waits_for_what_is_under_way_and_cuts_what_does_not_end(desk: Desk) -> None:
    with web.serving(desk.app, grace_s=5) as root, ThreadPoolExecutor(2) as pool:
        endless = http.client.HTTPConnection(urlsplit(root).netloc, timeout=240)
        endless.request("GET", "/stream")
        stream = endless.getresponse()
        assert stream.readline() == b"data: first\n"
        slow = pool.submit(loopback.get, f"{root}/slow", timeout=240)
        assert desk.slow.wait(240)
    stream.close()
    endless.close()
    assert desk.done == ["slow"] and slow.result().text == "at last"
    with pytest.raises(httpx.ConnectError):
        loopback.get(root)


def test_a_port_that_cannot_be_had_is_said(url: str) -> None:
    for port in (urlsplit(url).port or 0, 99999):
        with (
            pytest.raises(SetupError, match=f"could not use port {port}"),
            web.serving(Starlette(), port=port),
        ):
            pass
    with pytest.raises(SetupError), web.serving(Starlette(), host="203.0.113.1"):
        pass


def test_no_part_of_an_answer_waits_until_the_part_before_it_is_acknowledged() -> None:
    with web.listen(0) as sock, socket.create_connection(sock.getsockname()):
        taken, _ = sock.accept()
        with taken:
            assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_page_holds_the_shared_parts_and_another_nonce_each_time() -> None:
    app = Starlette(routes=[web.page("/", "orchestrate.data.operations", "review_rows.html")])
    with web.serving(app) as root:
        first, second = loopback.get(root), loopback.get(root)
    assert "LOOK" not in first.text and "SHARED" not in first.text and "function ask(" in first.text
    policies = [answer.headers["content-security-policy"] for answer in (first, second)]
    assert policies[0] != policies[1] and "NONCE" not in first.text
    nonce = policies[0].split("'nonce-")[1].split("'")[0]
    assert first.text.count(f'nonce="{nonce}"') == 2
