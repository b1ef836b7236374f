"""Who may see the pages and act through them: over a real socket, as strangers would come."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta

import httpx
import msgspec
import pytest
from tests.unit.ui.conftest import MakeRun

from orchestrate import Orchestrator
from orchestrate.errors import UsageError
from orchestrate.types import JobStatus
from orchestrate.ui.server import serving


@pytest.fixture
def url(ft: Orchestrator) -> Iterator[str]:
    with serving(ft) as found:
        yield found


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(verify=False, timeout=240) as opened:
        yield opened


def test_without_the_link_there_is_nothing(url: str, client: httpx.Client, make_run: MakeRun) -> None:
    run = make_run()
    root, token = url.rstrip("/").rsplit("/", 1)
    assert len(token) >= 32
    other = token[:-1] + ("y" if token.endswith("x") else "x")
    inside = client.get(url)
    assert run.id in inside.text
    for path in ("/", "/runs", f"/{other}/", f"/{token}", "/static/1/app.js", f"/runs/{run.id}"):
        answer = client.get(root + path)
        assert answer.status_code == 404 and "<h1>not found</h1>" in answer.text, path
        assert "orchestrate ui" in answer.text and token not in answer.text and run.id not in answer.text, (
            path
        )


def test_other_sites_and_names_are_refused(url: str, client: httpx.Client) -> None:
    assert client.get(url, headers={"host": "evil.example"}).status_code == 404
    for header in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert client.post(url, headers=header).status_code == 403, header


def test_pages_load_nothing_from_elsewhere_and_are_not_kept(url: str, client: httpx.Client) -> None:
    answer = client.get(url)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and answer.headers["cache-control"] == "no-store"
    assert "http" not in answer.text.replace(url.rstrip("/").rpartition("/")[0], "").replace("http-equiv", "")


@pytest.mark.slow
def test_an_open_page_is_told_of_changes_and_let_go_at_the_end(
    ft: Orchestrator, client: httpx.Client, make_run: MakeRun
) -> None:
    run = make_run()
    since = (run.updated_at - timedelta(seconds=1)).isoformat()
    got: list[dict[str, str]] = []
    ended = threading.Event()

    def listen(url: str) -> None:
        with client.stream("GET", f"{url}changes", params={"since": since}, timeout=240) as answer:
            for line in answer.iter_lines():
                if line.startswith('data: {"html"') or '"html"' in line:
                    got.append(json.loads(line.removeprefix("data: ")))
                    seen.set()
        ended.set()

    seen = threading.Event()
    with serving(ft) as url:
        reader = threading.Thread(target=listen, args=(url,))
        reader.start()
        assert seen.wait(240), "what had changed before is told at once"
        seen.clear()
        later = run.updated_at + timedelta(seconds=5)
        ft.store.runs.apply(
            run.id, lambda r: msgspec.structs.replace(r, step=7, total_steps=9, updated_at=later)
        )
        assert seen.wait(240)
    assert ended.wait(240), "the stream ends with the server"
    reader.join()
    assert f'id="{run.id}"' in got[0]["html"] and "7/9" in got[-1]["html"]


def test_other_machines_see_pages_that_only_show(ft: Orchestrator) -> None:
    with (
        pytest.raises(UsageError, match=r"pages that can spend money are only served to this machine .not"),
        serving(ft, host="0.0.0.0"),
    ):
        raise AssertionError
    with serving(ft, host="0.0.0.0", read_only=True) as url:
        assert url.startswith("http://0.0.0.0:")


def test_an_open_list_drops_what_it_no_longer_lists_and_misses_nothing(
    ft: Orchestrator, client: httpx.Client, make_run: MakeRun
) -> None:
    made = [make_run(f"run-{n}") for n in range(105)]
    since = (made[0].updated_at - timedelta(seconds=1)).isoformat()
    ft.store.runs.apply(made[0].id, lambda r: msgspec.structs.replace(r, status=JobStatus.SUCCEEDED))
    seen, gone = set[str](), set[str]()
    query = {"since": since, "status": "running"}
    with serving(ft) as url, client.stream("GET", f"{url}changes", params=query) as answer:
        for line in answer.iter_lines():
            event = json.loads(line.removeprefix("data: ") or "{}")
            seen |= {run.id for run in made if run.id in event.get("html", "")}
            gone |= {*event.get("gone", ())}
            if len(seen | gone) == len(made):
                break
    assert gone == {made[0].id} and seen == {run.id for run in made[1:]}
