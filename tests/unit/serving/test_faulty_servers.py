"""The proof of a server that does something else than was trained, though its weights are right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.paths import TINY
from tests.unit.serving.conftest import Known, serve

from orchestrate.serving.proof.url import UrlPlace
from orchestrate.serving.proof.verify import verify
from orchestrate.serving.server.server_process import ServerSettings, ServingApp
from orchestrate.serving.tuned import TunedModel

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
BASE = str(TINY)


@pytest.fixture(scope="module")
def served(known: Known, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingApp]:
    tuned = [
        TunedModel("one", known.adapter, BASE, "adapter"),
        TunedModel("other", known.other, BASE, "adapter"),
    ]
    home: Path = tmp_path_factory.mktemp("faulty")
    with serve(tuned, home, ServerSettings(port=0, threads=1, four_bit=False)) as up:
        yield up


def never_ends(path: str, body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "logit_bias": {"2": -100}} if path.endswith("completions") else body


def other_template(path: str, body: dict[str, Any]) -> dict[str, Any]:
    messages = [{**m, "content": f"\n{m.get('content') or ''}"} for m in body.get("messages", ())]
    return {**body, "messages": messages}


def base_in_its_place(path: str, body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "model": TINY.name} if body.get("model") == "one" else body


def swapped(path: str, body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "model": "other"} if body.get("model") == "one" else body


@pytest.mark.parametrize(
    ("fault", "stage"),
    [
        (never_ends, "stop"),
        (other_template, "tokens"),
        (base_in_its_place, "answers"),
        (swapped, "answers"),
    ],
)
def test_each_fault_of_a_server_is_caught_in_its_stage(
    fault: Callable[[str, dict[str, Any]], dict[str, Any]], stage: str, served: ServingApp, known: Known
) -> None:
    """Something between the client and the weights does it."""
    wire = httpx.Client(timeout=240)

    def between(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        changed = fault(request.url.path, body) if body is not None and body["model"] == "one" else body
        done = wire.request(request.method, request.url, json=changed)
        return httpx.Response(done.status_code, json=done.json(), request=request)

    place = UrlPlace(served.url, model="one", client=httpx.Client(transport=httpx.MockTransport(between)))
    proof = verify(known.fingerprint, place, run_id="r")
    place.close()
    wire.close()
    states = {s.name: s.state for s in proof.stages}
    assert proof.state == "failed" and states[stage] == "failed", proof
    assert stage in proof.badge


@pytest.mark.slow
@pytest.mark.parametrize("refused", [(), ("return_token_ids",), ("logprobs",)])
def test_a_front_that_passes_on_the_api_alone_is_not_taken_for_a_fault(
    refused: tuple[str, ...], served: ServingApp, known: Known
) -> None:
    """A gateway or a proxy before the server: the server's own routes are not there, its models are. What it
    rejects is left out, and nothing else."""
    wire = httpx.Client(timeout=240)

    def front(request: httpx.Request) -> httpx.Response:
        if not request.url.path.startswith("/v1/"):
            return httpx.Response(404, json={"detail": "Not Found"}, request=request)
        body = json.loads(request.content) if request.content else None
        if any(name in (body or {}) for name in refused):
            return httpx.Response(422, json={"detail": "extra fields not permitted"}, request=request)
        done = wire.request(request.method, request.url, json=body)
        return httpx.Response(done.status_code, json=done.json(), request=request)

    for model, state in (("one", "in part"), ("other", "failed")):
        place = UrlPlace(served.url, model=model, client=httpx.Client(transport=httpx.MockTransport(front)))
        proof = verify(known.fingerprint, place, run_id="r")
        canaries = known.fingerprint.canaries
        scored, [first, *_] = place.scores(canaries, base=False), place.answers(canaries, base=False) or ()
        assert (scored is None) == ("logprobs" in refused)
        assert (first.ids is None) == ("return_token_ids" in refused)
        place.close()
        assert proof.state == state, proof
        states = {s.name: s.state for s in proof.stages}
        assert states.pop("tokens") == "unknown", "counts are compared, ids are not shown"
        assert set(states.values()) == {"passed"} or model == "other", proof
    wire.close()
