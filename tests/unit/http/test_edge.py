"""The same attacks on every server that speaks an API: each stands behind the one edge."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests import loopback
from tests.unit.ab.test_proxy import PLAN

from orchestrate import Orchestrator, sandbox
from orchestrate.ab.experiment import Experiment
from orchestrate.ab.proxy import Proxy, Upstream
from orchestrate.gateway import server as gateway
from orchestrate.http.web import edge, serving
from orchestrate.serving.server.app import Api
from orchestrate.serving.server.engine import EngineClient
from orchestrate.serving.server.keys import Clients
from orchestrate.serving.server.load import ServerLoad
from orchestrate.settings import config
from orchestrate.types import GatewayKey

HOSTS = ("openai", "together", "fireworks", "tinker")
KINDS = ["gateway", "serve", "ab serve", *(f"sandbox {host}" for host in HOSTS)]


@dataclass(frozen=True)
class Front:
    url: str
    key: str
    path: str
    """Something that is served there."""

    def __call__(self, method: str = "GET", path: str | None = None, **headers: str) -> Any:
        named = {"authorization": f"Bearer {self.key}", **headers}
        given = {name.encode(): value.encode("latin-1") for name, value in named.items()}
        return loopback.request(method, self.url + (path or self.path), headers=given)


@pytest.fixture(scope="module")
def fronts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Front]]:
    folder = tmp_path_factory.mktemp("edges")
    with ExitStack() as ending:
        ft = ending.enter_context(Orchestrator(config.load(env={}, cwd=folder, home=folder / "home")))
        keys = ft.store.gateway_keys
        one = keys.add(GatewayKey(name="one", created_at=ft.store.clock.now()), by="me")
        two = keys.add(GatewayKey(name="two", created_at=ft.store.clock.now(), opens="serve"), by="me")

        async def models(request: Request) -> Response:
            return Response("{}", media_type="application/json")

        nowhere = Upstream("http://127.0.0.1:9/v1", "base"), Upstream("http://127.0.0.1:9/v1", "tuned")
        serve_keys = Clients(ft.store, "serve")
        apps = {
            "gateway": (
                gateway.app(ft, [Route("/v1/models", models)], Clients(ft.store, "gateway"), ()),
                one,
            ),
            "serve": (
                Api(EngineClient({}), base_name="base", load=ServerLoad(1, 1), clients=serve_keys).app(),
                two,
            ),
            "ab serve": (Proxy(Experiment.begin(PLAN, ft.store), *nowhere, clients=serve_keys).app(), two),
        }
        made: dict[str, Front] = {}
        for name, (app, key) in apps.items():
            url = ending.enter_context(serving(app, lifespan=name == "ab serve"))
            made[name] = Front(url, key, "/v1/models")
        box = ending.enter_context(sandbox.running(home=folder / "sandbox", train=False))
        paths = {
            "openai": "/v1/fine_tuning/jobs",
            "together": "/v1/fine-tunes",
            "fireworks": f"/v1/accounts/{box.env['FIREWORKS_ACCOUNT_ID']}/supervisedFineTuningJobs",
            "tinker": "/api/v1/healthz",
        }
        for name, url in box.urls.items():
            made[f"sandbox {name}"] = Front(url, box.env[f"{name.upper()}_API_KEY"], paths[name])
        yield made


@pytest.fixture(params=KINDS)
def front(request: pytest.FixtureRequest, fronts: dict[str, Front]) -> Front:
    return fronts[request.param]


def test_pages_of_other_sites_do_nothing_here(front: Front) -> None:
    """Not with a key either: a browser may have it from the page that is open beside."""
    assert front().status_code == 200
    strange = ({"origin": "http://["}, {"sec-fetch-site": "cross-site"})
    for page in ({"origin": "https://evil.example"}, {"origin": "null"}, *strange):
        assert front("POST", **page).status_code == 403, page
    for name in ("evil.example", "127.0.0.1.evil.example", "", "[::1", "[evil]"):
        assert front(host=name).status_code == 404, name


def test_the_sandbox_s_own_switches_are_behind_it_too(fronts: dict[str, Front]) -> None:
    for name in KINDS[-len(HOSTS) :]:
        page = {"origin": "https://evil.example"}
        assert fronts[name]("POST", "/_sandbox/account", **page).status_code == 403
        assert fronts[name]("GET", "/_sandbox/requests", host="evil.example").status_code == 404
        assert fronts[name]("GET", "/_sandbox/requests").status_code == 200


def test_who_has_no_key_learns_nothing(front: Front) -> None:
    for path in (front.path, "/v1/files/file-1", "/none", "/v1//models"):
        for key in ("", "Bearer", "Bearer none", f"Basic {front.key}", f"Bearer {front.key}x", "Bearer \xff"):
            if key.endswith("x") and "sandbox" in front.key:
                continue  # a stand-in takes every key of a sandbox: each has an account of its own
            assert front(path=path, authorization=key).status_code == 401, (path, key)


def test_what_is_not_served_is_said_as_the_api_says_it(front: Front) -> None:
    for method, path in (("GET", "/none"), ("DELETE", front.path), ("PATCH", "/v1/%00/%e9")):
        answer = front(method, path)
        assert answer.status_code in (404, 405), (method, path)
        said = answer.json()
        assert said.get("error") or said.get("message") or said.get("detail"), said


def test_a_body_beyond_the_limit_and_half_a_head_are_refused(front: Front) -> None:
    at = urlsplit(front.url)
    head = f"POST {front.path} HTTP/1.1\r\nHost: {at.netloc}\r\nAuthorization: Bearer {front.key}\r\n"
    for length, status in (
        (1 << 40, b"413"),
        ("x", b"400"),
    ):
        with socket.create_connection((str(at.hostname), at.port or 0)) as sock:
            sock.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
            assert status in sock.recv(200).split(b"\r\n")[0]
    assert front().status_code == 200


def test_what_breaks_is_told_by_its_kind_alone(tmp_path: Path) -> None:
    async def broken(request: Request) -> Response:
        raise KeyError("a secret of the server")

    with serving(edge([Route("/broken", broken)], max_body=10)) as url:
        answer = loopback.get(f"{url}/broken")
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert "KeyError" in answer.text and "secret" not in answer.text
