"""How the hosted backends' calls are sent, over the official SDK clients and a real connection."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from tests.scripted_host import Answer, Host, scripted_host

from orchestrate.errors import (
    AuthenticationFailed,
    Conflict,
    HostUnavailable,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    PermissionRefused,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    TrainingClosed,
    UnexpectedAnswer,
)
from orchestrate.providers.calls import MASK, redact
from orchestrate.providers.calls.hosted import Retry, Wire, payload
from orchestrate.settings import Secret

JOBS = "/v1/fine_tuning/jobs"
HTML = Answer("<html><body><h1>Bad gateway</h1></body></html>", type="text/html")
PATIENCE = httpx.Timeout(240)


@pytest.fixture
def host() -> Iterator[Host]:
    with scripted_host() as running:
        yield running


def openai_create(url: str) -> Iterator[Callable[[], Any]]:
    from openai import OpenAI

    with OpenAI(base_url=f"{url}/v1", api_key="sandbox-key", max_retries=0, timeout=PATIENCE) as client:
        yield lambda: client.fine_tuning.jobs.create(model="m", training_file="file-1")


def together_create(url: str) -> Iterator[Callable[[], Any]]:
    from together import Together

    with Together(base_url=f"{url}/v1", api_key="sandbox-key", max_retries=0, timeout=PATIENCE) as client:
        yield lambda: client.post("/fine_tuning/jobs", cast_to=object, body={"model": "m"})


def fireworks_create(url: str) -> Iterator[Callable[[], Any]]:
    from fireworks import Fireworks

    with Fireworks(
        base_url=f"{url}/v1", api_key="sandbox-key", account_id="a", max_retries=0, timeout=PATIENCE
    ) as client:
        yield lambda: client.post("/fine_tuning/jobs", cast_to=object, body={"model": "m"})


@pytest.fixture(params=[openai_create, together_create, fireworks_create])
def create(request: pytest.FixtureRequest, host: Host) -> Iterator[Callable[[], Any]]:
    yield from request.param(host.url)


def read_id(answer: Any) -> str | None:
    return answer["id"] if isinstance(answer, dict) else answer.id


JOB = {"id": "ftjob-1", "object": "fine_tuning.job"}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Answer({"error": {"message": "oops"}}, 500), id="500"),
        pytest.param(Answer({"error": {"message": "late"}}, 504), id="504"),
        pytest.param(Answer({"error": {"message": "slow"}}, 408), id="408"),
        pytest.param(Answer("", 302, headers={"location": "/elsewhere"}), id="302"),
        pytest.param(HTML, id="html"),
        pytest.param(Answer("just words", type="application/json"), id="not-json"),
        pytest.param(Answer([], type="application/json"), id="list"),
        pytest.param(Answer({"object": "list", "data": [JOB]}), id="page"),
        pytest.param(Answer({}), id="empty-object"),
        pytest.param(Answer(JOB, fault="hang_up"), id="hang-up"),
        pytest.param(Answer(JOB, fault="half"), id="half-body"),
    ],
)
def test_create_whose_outcome_is_not_known(host: Host, create: Callable[[], Any], answer: Answer) -> None:
    host.on("POST", JOBS, answer)
    host.on("GET", "/elsewhere", {"object": "list", "data": []})
    with pytest.raises(OutcomeUnknown) as caught:
        Wire("host").send_once("orc-ref", create, read_id)
    assert caught.value.ref == "orc-ref"
    assert not caught.value.retryable
    assert len(host.calls("POST", JOBS)) == 1


@pytest.mark.parametrize("make", [openai_create, together_create, fireworks_create])
def test_create_that_is_not_answered_in_time(
    host: Host, make: Callable[[str], Iterator[Callable[[], Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been sent: only the answer is waited for in vain."""
    monkeypatch.setitem(globals(), "PATIENCE", httpx.Timeout(240, read=0.5))
    host.on("POST", JOBS, Answer(JOB, fault="stall"))
    for create in make(host.url):
        with pytest.raises(OutcomeUnknown) as caught:
            Wire("host").send_once("orc-ref", create, read_id)
        assert caught.value.ref == "orc-ref" and not caught.value.retryable
    while not (sent := host.calls("POST", JOBS)):
        time.sleep(0.01)
    assert len(sent) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (401, AuthenticationFailed),
        (402, QuotaExceeded),
        (403, PermissionRefused),
        (404, NotFound),
        (409, Conflict),
        (412, InvalidRequest),
        (422, InvalidRequest),
        (429, RateLimited),
    ],
)
def test_create_that_was_certainly_refused(
    host: Host, create: Callable[[], Any], status: int, kind: type[ProviderError]
) -> None:
    host.on(
        "POST",
        JOBS,
        Answer({"error": {"message": "no", "code": "because"}}, status, headers={"retry-after": "7"}),
    )
    with pytest.raises(kind) as caught:
        Wire("host").send_once("orc-ref", create, read_id)
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (status, "because", 7.0)
    assert len(host.calls("POST", JOBS)) == 1


def test_create_that_never_left_this_machine() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        for make in (openai_create, together_create, fireworks_create):
            for call in make(url):
                with pytest.raises(HostUnavailable) as caught:
                    Wire("host").send_once("orc-ref", call, read_id)
                assert caught.value.retryable


def test_create_that_succeeds_is_sent_once(host: Host, create: Callable[[], Any]) -> None:
    host.on("POST", JOBS, JOB)
    assert read_id(Wire("host").send_once("orc-ref", create, read_id)) == "ftjob-1"
    assert len(host.sent) == 1


# -- reads ----------------------------------------------------------------------------------------------


@pytest.fixture
def read(host: Host) -> Iterator[Callable[[], Any]]:
    from openai import OpenAI

    with OpenAI(base_url=f"{host.url}/v1", api_key="sandbox-key", max_retries=0, timeout=PATIENCE) as client:
        yield lambda: client.fine_tuning.jobs.retrieve("ftjob-1")


@pytest.mark.parametrize(
    "fault",
    [
        Answer({}, 500),
        Answer({}, 503),
        Answer({}, 408),
        Answer({}, 429),
        HTML,
        Answer("{", type="application/json"),
        Answer(JOB, fault="half"),
        Answer(JOB, fault="hang_up"),
    ],
    ids=["500", "503", "408", "429", "html", "broken-json", "half", "hang-up"],
)
def test_read_is_tried_again(host: Host, read: Callable[[], Any], fault: Answer) -> None:
    host.on("GET", f"{JOBS}/ftjob-1", fault, fault, JOB)
    waits: list[float] = []
    assert Wire("host", sleep=waits.append).read(read).id == "ftjob-1"
    assert len(host.sent) == 3
    assert len(waits) == 2
    assert all(0 < wait <= 8 for wait in waits)


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_read_that_is_refused_is_not_tried_again(host: Host, read: Callable[[], Any], status: int) -> None:
    host.on("GET", f"{JOBS}/ftjob-1", Answer({"error": {"message": "no"}}, status))
    with pytest.raises(ProviderError):
        Wire("host", sleep=lambda _: None).read(read)
    assert len(host.sent) == 1


def test_retry_after_is_kept(host: Host, read: Callable[[], Any]) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    host.on(
        "GET",
        f"{JOBS}/ftjob-1",
        Answer({}, 429, headers={"retry-after": "3"}),
        Answer({}, 429, headers={"retry-after-ms": "1500"}),
        Answer({}, 503, headers={"retry-after": date}),
        JOB,
    )
    waits: list[float] = []
    Wire("host", sleep=waits.append).read(read)
    assert waits[:2] == [3.0, 1.5]
    assert 15 < waits[2] <= 20


def test_retry_after_beyond_the_budget_is_told_at_once(host: Host, read: Callable[[], Any]) -> None:
    host.on("GET", f"{JOBS}/ftjob-1", Answer({}, 429, headers={"retry-after": "600"}))
    waits: list[float] = []
    with pytest.raises(RateLimited) as caught:
        Wire("host", sleep=waits.append).read(read)
    assert caught.value.retry_after_s == 600
    assert (waits, len(host.sent)) == ([], 1)


def test_tries_are_limited(host: Host, read: Callable[[], Any]) -> None:
    host.on("GET", f"{JOBS}/ftjob-1", Answer({}, 500))
    with pytest.raises(HostUnavailable):
        Wire("host", retry=Retry(attempts=4), sleep=lambda _: None).read(read)
    assert len(host.sent) == 4


def test_quota_is_not_waited_for(host: Host, read: Callable[[], Any]) -> None:
    host.on(
        "GET", f"{JOBS}/ftjob-1", Answer({"error": {"code": "insufficient_quota", "message": "pay"}}, 429)
    )
    with pytest.raises(QuotaExceeded):
        Wire("host", sleep=lambda _: None).read(read)
    assert len(host.sent) == 1


def test_code_says_more_than_the_status(host: Host, create: Callable[[], Any]) -> None:
    body = {"error": {"code": "training_not_available", "message": "closed", "type": "invalid_request_error"}}
    host.on("POST", JOBS, Answer(body, 403, headers={"x-request-id": "req_9"}))
    with pytest.raises(TrainingClosed) as caught:
        Wire("host").send_once("orc-ref", create, read_id)
    assert caught.value.request_id == "req_9"


def test_a_key_that_a_host_echoes_is_not_kept(host: Host, create: Callable[[], Any]) -> None:
    key = Secret("key-of-this-test-0123456789")
    body = {"error": {"code": f"bad {key.reveal()}", "message": f"no {key.reveal()}"}}
    host.on("POST", JOBS, Answer(body, 403, headers={"x-request-id": f"Bearer {key.reveal()}"}))
    with pytest.raises(PermissionRefused) as caught:
        Wire("host").send_once("orc-ref", create, read_id)
    told = " ".join(map(str, (caught.value, caught.value.code, caught.value.request_id)))
    assert key.reveal() not in told and told.count(MASK) == 4


def test_a_backend_adds_codes(host: Host, read: Callable[[], Any]) -> None:
    host.on("GET", f"{JOBS}/ftjob-1", Answer({"code": "GONE", "message": "x"}, 400))
    with pytest.raises(NotFound):
        Wire("host", codes={"gone": NotFound}).read(read)


def test_pages_are_read_as_they_are_asked_for(host: Host) -> None:
    from openai import OpenAI

    page = {"object": "list", "data": [{"id": "ftjob-1"}], "has_more": True}
    last = {"object": "list", "data": [{"id": "ftjob-2"}], "has_more": False}
    host.on("GET", JOBS, HTML, page, Answer({}, 500), last)
    with OpenAI(base_url=f"{host.url}/v1", api_key="sandbox-key", max_retries=0) as client:
        pages = Wire("host", sleep=lambda _: None).pages(lambda: client.fine_tuning.jobs.list(limit=1))
        assert [job.id for job in next(pages).data] == ["ftjob-1"]
        assert len(host.sent) == 2
        assert [job.id for page in pages for job in page.data] == ["ftjob-2"]
    assert host.sent[-1].query["after"] == "ftjob-1"


def test_text_where_an_object_was_expected(host: Host, read: Callable[[], Any]) -> None:
    host.on("GET", f"{JOBS}/ftjob-1", HTML)
    with pytest.raises(UnexpectedAnswer, match="Bad gateway"):
        Wire("host", retry=Retry(attempts=2), sleep=lambda _: None).read(read)
    assert len(host.sent) == 2


# -- secrets --------------------------------------------------------------------------------------------


def test_secrets_are_removed_and_the_rest_stays() -> None:
    raw = {
        "id": "ftjob-1",
        "wandb_api_key": "wandb-key-of-the-tests",
        "integrations": [{"wandb": {"project": "p", "apiKey": "abc"}}],
        "hf_api_token": "hf_x",
        "trained_tokens": 5,
        "prompt_tokens": 7,
        "key": "not one",
        "word": "sandbox_model_deleted",
        "note": "used sk-proj-abc4defghijklmnop to call",
        "url": "https://bucket.example/x?X-Amz-Signature=deadbeef&X-Amz-Date=1",
        "plain": "https://host.example/x?page=2",
        "max_tokens": None,
    }
    clean = redact(raw)
    text = str(clean)
    for secret in ("wandb-key-of-the-tests", "'abc'", "hf_x", "sk-proj-abc4defghijklmnop", "deadbeef"):
        assert secret not in text
    assert clean["wandb_api_key"] == MASK
    assert clean["url"].startswith("https://bucket.example/x?")
    assert (clean["trained_tokens"], clean["prompt_tokens"], clean["id"]) == (5, 7, "ftjob-1")
    assert clean["plain"] == raw["plain"]
    assert (clean["key"], clean["word"]) == ("not one", "sandbox_model_deleted")
    assert payload(raw) == clean


def test_errors_carry_no_secrets(host: Host, read: Callable[[], Any]) -> None:
    message = "Incorrect API key provided: sk-proj-abc4defghijklmnop"
    host.on("GET", f"{JOBS}/ftjob-1", Answer({"error": {"message": message}}, 401))
    with pytest.raises(AuthenticationFailed) as caught:
        Wire("host").read(read)
    assert "defghijklmnop" not in str(caught.value)
