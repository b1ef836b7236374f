"""Chat with a run and its export from its page: what is billed is shown first, reserved, and asked once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from html import unescape
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.chat_host import ChatHost, Lost, chat_host
from tests.unit.ui.conftest import MARKUP, MakeRun, ended
from tests.unit.ui.page import Parsed

from orchestrate import JobSpec, Orchestrator
from orchestrate.paid.paid_requests import Price
from orchestrate.runs.evaluation.contenders import Contenders
from orchestrate.sandbox.server import Sandbox
from orchestrate.settings import config
from orchestrate.types import Run
from orchestrate.ui.server import app
from orchestrate.ui.site import Site

MODEL = "gpt-4.1-mini-2025-04-14"


@pytest.fixture
def host() -> Iterator[ChatHost]:
    with chat_host() as opened:
        opened.writes = lambda *_: "It ships today."
        yield opened


@pytest.fixture
def hosts(host: ChatHost, tmp_path: Path) -> Mapping[str, str]:
    named = tmp_path / "own.toml"
    named.write_text('[hosts.openai.options]\nprices = "openai"\n')
    return {
        "OPENAI_API_KEY": "key-of-the-tests",
        "OPENAI_BASE_URL": host.url,
        "ORCHESTRATE_CONFIG": str(named),
    }


@pytest.fixture
def tuned(make_run: MakeRun, host: ChatHost) -> Run:
    name = f"ft:{MODEL}:acme:tickets:1"
    host.jobs["ftjob-1"] = {
        "id": "ftjob-1",
        "object": "fine_tuning.job",
        "model": MODEL,
        "status": "succeeded",
        "fine_tuned_model": name,
        "created_at": 1,
        "finished_at": 2,
        "training_file": "file-1",
        "result_files": [],
        "hyperparameters": {},
        "organization_id": "org-1",
        "seed": 1,
    }
    spec = {"model": MODEL}
    return make_run(
        "tuned", settings=spec, model=MODEL, provider="openai", tuned_model=name, job_id="ftjob-1", **ended()
    )


def send(web: TestClient, site: Site, run: Run, **form: str) -> tuple[Parsed, dict[str, str]]:
    answer = web.post(f"/runs/{run.id}/chat", data={"word": site.word, **form})
    assert answer.status_code == 200, answer.text
    page = Parsed(answer.text)
    assert page.own == []
    return page, page.fields


def test_a_billed_answer_is_agreed_to_first_and_counted(
    web: TestClient, site: Site, ft: Orchestrator, host: ChatHost, tuned: Run
) -> None:
    assert f"/runs/{tuned.id}/chat" in Parsed(web.get(f"/runs/{tuned.id}").text).links
    assert Parsed(web.get(f"/runs/{tuned.id}/chat").text).posts == [f"/runs/{tuned.id}/chat"]
    page, form = send(web, site, tuned, message=MARKUP)
    assert len(host.billed) == 0 and "at most $" in page.text and "Nothing was sent yet." in page.text
    worst = Decimal(form["agreed_usd"])
    longer, _ = send(web, site, tuned, message=MARKUP * 50, agreed_usd=str(worst))
    assert len(host.billed) == 0 and "Nothing was sent yet." in longer.text, (
        "another message has another price"
    )
    for _ in range(2):  # a form that is sent twice is billed once
        page, form = send(web, site, tuned, message=MARKUP, agreed_usd=str(worst))
        assert len(host.billed) == 1 and MARKUP in page.text
    [spent] = [one for one in ft.store.ledger.answers() if one.purpose == "chat"]
    assert 0 < spent.spent_usd <= worst
    assert unescape(form["kept"]).count('"role"') == 2, "the conversation goes on"


def test_an_answer_that_costs_nothing_is_not_asked_about(
    web: TestClient, site: Site, host: ChatHost, tuned: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of this machine: its price is known, and is nothing."""

    def nothing(prompt: int, completion: int) -> Decimal:
        return Decimal(0 * (prompt + completion))

    def price(*_: object) -> Price:
        return nothing

    monkeypatch.setattr(Contenders, "_host_price", price)
    page, _ = send(web, site, tuned, message="Where is it?")
    assert "It ships today." in page.text and "billed: at most" not in page.text
    assert len(host.billed) == 1


def test_what_was_lost_is_sent_again_once_that_was_agreed_to_too(
    web: TestClient, site: Site, ft: Orchestrator, host: ChatHost, tuned: Run
) -> None:
    host.writes = lambda number, _: Lost() if number == 1 else "It ships today."
    _, form = send(web, site, tuned, message="Where is it?")
    first = form["agreed_usd"]
    page, _ = send(web, site, tuned, message="Where is it?", agreed_usd=first)
    assert len(host.billed) == 1 and "may have been billed" in page.text and "--max-cost" not in page.text
    page, form = send(web, site, tuned, message="Where is it?", agreed_usd=first)
    assert len(host.billed) == 1 and "which got no answer" in page.text, "the same form agrees to one send"
    assert Decimal(form["agreed_usd"]) == 2 * Decimal(first)
    for _ in range(2):
        page, _ = send(web, site, tuned, message="Where is it?", agreed_usd=form["agreed_usd"])
        assert len(host.billed) == 2 and "It ships today." in page.text
    page, _ = send(web, site, tuned, message="Where is it?")
    assert len(host.billed) == 2 and "It ships today." in page.text, "what is known needs no price"
    [spent] = ft.store.ledger.answers()
    assert Decimal(first) < spent.spent_usd <= 2 * Decimal(first) and spent.held_usd == 0


def test_a_budget_that_is_used_up_refuses_and_keeps_the_message(
    hosts: Mapping[str, str], host: ChatHost, tuned: Run, ft: Orchestrator, tmp_path: Path
) -> None:
    env = {**hosts, "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml"), "ORCHESTRATE_BUDGET_USD": "0.000001"}
    with Orchestrator(config.load(env=env, cwd=tmp_path, home=ft.settings.home)) as poor:
        site = Site(poor)
        with TestClient(app(site)) as web:
            page, form = send(web, site, tuned, message="Where is it?")
            page, _ = send(web, site, tuned, message="Where is it?", agreed_usd=form["agreed_usd"])
    assert len(host.billed) == 0 and "Where is it?" in page.text and "budget" in page.text


def test_what_no_form_of_ours_says_is_refused(
    web: TestClient, site: Site, tuned: Run, make_run: MakeRun
) -> None:
    path = f"/runs/{tuned.id}/chat"
    for wrong in ({"kept": "{"}, {"kept": '[{"role": "tool", "content": "x"}]'}, {"on": "elsewhere"}):
        assert web.post(path, data={"word": site.word, "message": "x", **wrong}).status_code == 404
    assert web.post(path, data={"word": site.word, "message": "x" * 100_001}).status_code == 404
    assert web.post(path, data={"message": "x"}).status_code == 403
    going = make_run("going")
    assert web.get(f"/runs/{going.id}/chat").status_code == 404
    with TestClient(app(Site(site.ft, read_only=True))) as wall:
        assert wall.get(path).status_code == 404 and wall.get(f"/runs/{tuned.id}/export").status_code == 404


def test_an_export_is_begun_from_the_page(sandbox: Sandbox, tmp_path: Path, rows: Path) -> None:
    env = {**sandbox.env, "ORCHESTRATE_KEYS": str(tmp_path / "none.toml")}
    with Orchestrator(config.load(env=env, cwd=tmp_path, home=tmp_path / "other")) as ft:
        run = ft.submit(JobSpec(model="qwen3-8b", train=str(rows), epochs=1), "together")
        run.wait(poll_s=0.02)
        site = Site(ft)
        with TestClient(app(site)) as web:
            page = Parsed(web.get(f"/runs/{run.id}/export").text)
            assert page.posts == [f"/runs/{run.id}/export"] and "gguf" in page.texts
            form = {"word": site.word, "form": "merged", "folder": str(tmp_path / "out")}
            answer = web.post(f"/runs/{run.id}/export", data=form)
            told = answer.text + web.get(f"/runs/{run.id}").text
            assert "was not trained" in unescape(told) and not (tmp_path / "out").exists()


def test_a_conversation_keeps_each_character_of_its_messages(
    web: TestClient, site: Site, host: ChatHost, tuned: Run
) -> None:
    """A form shows a message a second time, with its price, and sends what it shows."""
    message = "\n\u200fשלום\u200e a\u2028b"
    form = {"word": site.word, "kept": "[]", "on": "auto", "message": message}
    asked = web.post(f"/runs/{tuned.id}/chat", data=form)
    [typed] = re.findall(r"<textarea[^>]*>\n(.*?)</textarea>", asked.text, re.DOTALL)
    assert unescape(typed) == message and host.bodies == []
    agreed = {**Parsed(asked.text).fields, "message": unescape(typed), "on": "auto"}
    said = Parsed(web.post(f"/runs/{tuned.id}/chat", data=agreed).text)
    assert json.loads(said.fields["kept"])[0]["content"] == message
