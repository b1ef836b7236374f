"""An answer that is no list says nothing of what there is, and a list that never ends is left. The hosts here
are scripted, so that nothing of the sandbox's own idea of a list is in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scripted_host import Answer, Host, scripted_host

from orchestrate.errors import ProviderError, UnexpectedAnswer
from orchestrate.providers import registry
from orchestrate.providers.base import (
    Provider,
    host_account,
)
from orchestrate.providers.calls.hosted import Retry, Wire
from orchestrate.settings import config
from orchestrate.types import JobHandle

REF = "orc-1qrn0nq0kvxa"
LISTS = {
    "openai": "/v1/fine_tuning/jobs",
    "together": "/v1/fine-tunes",
    "fireworks": f"/v1/accounts/acme/supervisedFineTuningJobs/{REF}",
}
NO_LISTS: dict[str, Any] = {
    "an empty object": {},
    "no entries": {"data": None},
    "an object for entries": {"data": {"id": "1"}},
    "an error in a 200": {"error": {"message": "try later", "code": "overloaded"}},
    "a list of nothing known": {"object": "list"},
    "a page of a proxy": Answer("<html><h1>Welcome</h1></html>", type="text/html"),
}


@pytest.fixture
def host() -> Iterator[Host]:
    with scripted_host() as running:
        yield running


@pytest.fixture
def make(host: Host, tmp_path: Path) -> Iterator[Callable[[str], Provider]]:
    made: list[Provider] = []

    def maker(name: str) -> Provider:
        base = f"{host.url}/v1" if name == "openai" else host.url
        env = {f"{name.upper()}_API_KEY": "sandbox-lists", f"{name.upper()}_BASE_URL": base}
        env |= {"FIREWORKS_ACCOUNT_ID": "acme", "ORCHESTRATE_KEYS": str(tmp_path / "none")}
        provider = registry.make(name, config.load(env=env, cwd=tmp_path, home=tmp_path))
        wire: Wire = provider._wire  # type: ignore[attr-defined]
        wire.retry, wire._sleep = Retry(attempts=2), lambda _: None
        made.append(provider)
        return provider

    yield maker
    for provider in made:
        provider.close()


@pytest.mark.parametrize("answer", NO_LISTS.values(), ids=NO_LISTS)
@pytest.mark.parametrize("name", LISTS)
def test_what_is_no_list_never_says_that_there_is_no_job(
    host: Host, make: Callable[[str], Provider], name: str, answer: Any
) -> None:
    host.on("GET", LISTS[name], answer)
    with pytest.raises(UnexpectedAnswer) as caught:
        make(name).find(REF)
    assert not re.search(r"Error|Exception|NoneType|attribute|_set", str(caught.value)), (
        "the words are the user's"
    )
    assert len(host.sent) >= 2, "it is asked again before that"


@pytest.mark.parametrize("answer", NO_LISTS.values(), ids=NO_LISTS)
@pytest.mark.parametrize("name", LISTS)
def test_what_is_no_list_never_ends_a_sweep_as_an_empty_one(
    host: Host, make: Callable[[str], Provider], name: str, answer: Any
) -> None:
    kinds = ("supervisedFineTuningJobs", "dpoJobs", "reinforcementFineTuningJobs")
    paths = [f"/v1/accounts/acme/{kind}" for kind in kinds] if name == "fireworks" else [LISTS[name]]
    for path in paths:
        host.on("GET", path, answer)
    if name == "fireworks" and answer == {}:
        # As protobuf writes an empty list. Nothing is concluded there from what a list lacks.
        assert list(make(name).list()) == []
        return
    with pytest.raises(UnexpectedAnswer):
        list(make(name).list())


OPENAI_JOB = JobHandle(provider="openai", job_id="ftjob-1", ref=REF)
JOB = {"id": "ftjob-1", "object": "fine_tuning.job", "created_at": 1, "status": "running"}
ENTRY = {"id": "e1", "object": "fine_tuning.job.event", "created_at": 1, "level": "info", "message": "m"}
ENDLESS = {
    "jobs": ("/v1/fine_tuning/jobs", JOB, lambda p: list(p.list())),
    "one job by its ref": ("/v1/fine_tuning/jobs", JOB, lambda p: p.find(REF)),
    "events": ("/v1/fine_tuning/jobs/ftjob-1/events", ENTRY, lambda p: list(p.events(OPENAI_JOB))),
    "metrics": ("/v1/fine_tuning/jobs/ftjob-1/events", ENTRY, lambda p: p.metrics(OPENAI_JOB)),
    "checkpoints": (
        "/v1/fine_tuning/jobs/ftjob-1/checkpoints",
        {"id": "c", "step_number": 1, "created_at": 1},
        lambda p: p.checkpoints(OPENAI_JOB),
    ),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_list_whose_last_page_says_that_there_are_more_is_left(
    host: Host, make: Callable[[str], Provider], what: str
) -> None:
    """As in OpenAI's own published example, which gives `has_more: true` with its one page."""
    path, entry, act = ENDLESS[what]
    host.on("GET", "/v1/fine_tuning/jobs/ftjob-1", JOB)
    host.on("GET", path, {"object": "list", "data": [entry], "has_more": True})
    with pytest.raises(UnexpectedAnswer, match="never ends"):
        act(make("openai"))
    assert len(host.calls("GET", path)) == 2


def test_a_page_token_that_comes_again_is_left(host: Host, make: Callable[[str], Provider]) -> None:
    path = "/v1/accounts/acme/supervisedFineTuningJobs"
    host.on("GET", path, {"supervisedFineTuningJobs": [{"name": f"{path}/j"}], "nextPageToken": "again"})
    for kind in ("dpoJobs", "reinforcementFineTuningJobs"):
        host.on("GET", f"/v1/accounts/acme/{kind}", {kind: []})
    with pytest.raises(UnexpectedAnswer, match="never ends"):
        list(make("fireworks").list())
    assert len(host.calls("GET", path)) == 2


def test_pages_that_are_always_new_end_too(host: Host, make: Callable[[str], Provider]) -> None:
    wire: Wire = make("openai")._wire  # type: ignore[attr-defined]

    class Forever:
        class model_fields:
            @staticmethod
            def items() -> list[Any]:
                from pydantic.fields import FieldInfo

                return [("data", FieldInfo(annotation=list[int]))]

        def __init__(self, number: int = 0) -> None:
            self.data, self.number = [number], number

        def has_next_page(self) -> bool:
            return True

        def next_page_info(self) -> int:
            return self.number

        def get_next_page(self) -> Forever:
            return Forever(self.number + 1)

    with pytest.raises(UnexpectedAnswer, match="not ended after 5 pages"):
        list(wire.pages(Forever, most=5))


@pytest.mark.parametrize("newest_first", [True, False])
def test_a_list_that_comes_oldest_first_is_read_to_its_end(
    host: Host, make: Callable[[str], Provider], newest_first: bool
) -> None:
    from datetime import UTC, datetime

    times = [50, 40, 30, 20, 10] if newest_first else [10, 20, 30, 40, 50]
    jobs = [{**JOB, "id": f"ftjob-{at}", "created_at": at * 1000} for at in times]
    pages = [{"object": "list", "data": jobs[i : i + 2], "has_more": i < 4} for i in (0, 2, 4)]
    host.on("GET", "/v1/fine_tuning/jobs", *pages)
    found = make("openai").list(since=datetime.fromtimestamp(35_000, UTC))
    assert {job.handle.job_id for job in found} == {"ftjob-50", "ftjob-40"}
    assert len(host.sent) == (2 if newest_first else 3)


# -- whose account it is -------------------------------------------------------------------------------------

PROJECT = {"id": "proj-1", "name": "P", "slug": "p"}
WHO = {"type": "project_api_key", "organization": {"id": "org-1"}, "project": PROJECT, "api_key": {"id": "k"}}
TOLD: dict[str, tuple[str, Any, str]] = {
    "openai": (
        "/v1/fine_tuning/jobs",
        Answer(
            {"object": "list", "data": [], "has_more": False},
            headers={"openai-organization": "org-1", "openai-project": "proj-1"},
        ),
        "organization org-1, project proj-1",
    ),
    "together": ("/v3/whoami", WHO, "organization org-1, project proj-1"),
    "fireworks": ("/v1/accounts/acme", {"name": "accounts/acme"}, "account acme"),
}


@pytest.mark.parametrize("name", TOLD)
def test_the_account_is_what_the_host_tells(host: Host, make: Callable[[str], Provider], name: str) -> None:
    path, answer, wanted = TOLD[name]
    host.on("GET", path, answer)
    provider = make(name)
    account = host_account(provider)
    assert (account.id, account.reported) == (wanted, True)
    assert (host_account(provider), len(host.sent)) == (account, 1), "it is asked once"


@pytest.mark.parametrize("name", TOLD)
def test_a_host_that_does_not_tell_leaves_the_key_without_giving_it_away(
    host: Host, make: Callable[[str], Provider], name: str
) -> None:
    if name == "openai":
        host.on("GET", TOLD[name][0], {"object": "list", "data": [], "has_more": False})
    account = host_account(make(name))
    assert (account.id[:4], account.reported) == ("key ", False)
    assert "sandbox-lists" not in account.id
    assert host_account(make(name)) == account


@pytest.mark.parametrize("name", TOLD)
def test_an_account_that_cannot_be_asked_for_is_not_guessed(
    host: Host, make: Callable[[str], Provider], name: str
) -> None:
    host.on("GET", TOLD[name][0], Answer({"error": {"message": "down"}}, status=503))
    with pytest.raises(ProviderError):
        host_account(make(name))
