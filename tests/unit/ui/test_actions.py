"""Acts from pages, on hosts of a sandbox: asked about first with the sum, done once, refused to strangers."""

from __future__ import annotations

import html
import re
import socket
import time
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from urllib.parse import unquote

import pytest
from msgspec.structs import replace
from starlette.testclient import TestClient
from tests.unit.ui.page import Parsed

from orchestrate import JobSpec, JobStatus, Orchestrator
from orchestrate.gateway import launch as gateway
from orchestrate.sandbox.server import Sandbox
from orchestrate.settings import config
from orchestrate.store.runs import Intent
from orchestrate.text import money, rate
from orchestrate.types import SubmitPhase
from orchestrate.ui import money as pages_of_money
from orchestrate.ui import site
from orchestrate.ui.server import app
from orchestrate.ui.site import Site


@pytest.fixture
def hosts(sandbox: Sandbox) -> Mapping[str, str]:
    return sandbox.env


@pytest.fixture
def ready(ft: Orchestrator, rows: Path) -> str:
    """A run that has succeeded."""
    run = ft.submit(JobSpec(model="qwen3-8b", train=str(rows), epochs=1), "fireworks")
    assert run.wait(poll_s=0.02).status is JobStatus.SUCCEEDED
    return run.id


def done(web: TestClient, path: str, **more: str) -> str:
    """Asks, agrees, and gives the page that follows."""
    asked = Parsed(web.get(path).text)
    assert asked.posts == [path.partition("?")[0]]
    answer = web.post(asked.posts[0], data=asked.fields | more)
    assert answer.status_code == 200, answer.text
    return answer.text


@pytest.mark.slow
def test_a_deployment_names_its_price_and_is_ended_again(
    web: TestClient, ft: Orchestrator, ready: str
) -> None:
    page = Parsed(web.get(f"/runs/{ready}").text)
    assert f"/runs/{ready}/do/deploy" in page.links and "SANDBOX" in page.texts
    price = ft.run(ready).deployment_price()
    asked = Parsed(web.get(f"/runs/{ready}/do/deploy").text)
    assert price is not None and f"${price:.2f} per hour" in asked.text
    assert ft.deployments() == [], "asking is not doing"
    limited = Parsed(web.get(f"/runs/{ready}/do/deploy?max_hours=12.5&max_cost_usd=40").text)
    assert (limited.fields["max_hours"], limited.fields["max_cost_usd"]) == ("12.5", "40")
    assert "--max-cost 40 --max-hours 12.5" in limited.text and "at most $40.00" in limited.text
    page = Parsed(done(web, f"/runs/{ready}/do/deploy", max_hours="2", max_cost_usd=""))
    assert ft.deployments() == [], "nobody has seen yet what two hours cost"
    model = ft.run(ready).record.tuned_model
    for part in ("SANDBOX", model, "Fireworks", f"${price:.2f} per hour", f"at most ${2 * price:.2f}"):
        assert part is not None and part in page.text, part
    html = done(web, f"/runs/{ready}/do/deploy?max_hours=2&max_cost_usd=")
    [up] = ft.deployments()
    assert up.record.run_id == ready and up.record.max_hours == 2 and up.record.max_usd_per_hour == price
    assert up.id in html and f"/runs/{ready}/do/undeploy" in Parsed(html).links
    done(web, f"/runs/{ready}/do/undeploy")
    assert ft.deployments() == []


def test_a_download_is_shown_with_its_files(web: TestClient, ft: Orchestrator, ready: str) -> None:
    html = done(web, f"/runs/{ready}/do/download")
    artifact = ft.run(ready).downloaded()
    assert artifact is not None and artifact.files[0].sha256[:16] in html


def test_a_run_is_cancelled(web: TestClient, ft: Orchestrator, rows: Path, sandbox: Sandbox) -> None:
    sandbox.clock.speed = 0.001
    try:
        run = ft.submit(JobSpec(model="qwen3-8b", train=str(rows), epochs=2), "together").id
        assert "cancelling" in done(web, f"/runs/{run}/do/cancel")
    finally:
        sandbox.clock.speed = 1000
        sandbox.skip(1_000_000)
    assert ft.run(run).wait(poll_s=0.02).status is JobStatus.CANCELLED


@pytest.mark.slow
def test_what_a_host_refuses_is_told_with_the_way_out(web: TestClient, ready: str, site: Site) -> None:
    answer = web.post(f"/runs/{ready}/do/cancel", data={"word": site.word})
    assert answer.status_code == 200 and "succeeded" in answer.text, "a run that has ended stays so"
    answer = web.post(f"/runs/{ready}/do/deploy", data={"word": site.word, "max_hours": "many"})
    assert answer.status_code == 404 and "must be a number" in answer.text
    assert "unknown action" in web.post(f"/runs/{ready}/do/burn", data={"word": site.word}).text


def test_forms_without_the_word_do_nothing(web: TestClient, ft: Orchestrator, ready: str) -> None:
    for fields in ({}, {"word": ""}, {"word": "x" * 32}):
        answer = web.post(f"/runs/{ready}/do/deploy", data=fields)
        assert answer.status_code == 403 and "an earlier session" in answer.text
    assert ft.deployments() == []


def test_pages_for_reading_show_no_button_and_do_nothing(ft: Orchestrator, ready: str) -> None:
    site = Site(ft, read_only=True)
    with TestClient(app(site)) as web:
        page = Parsed(web.get(f"/runs/{ready}").text)
        assert page.posts == [] and not [
            link for link in page.links if "/do/" in link or link.endswith("/new")
        ]
        assert Parsed(web.get(f"/runs/{ready}/do/deploy").text).posts == []
        answer = web.post(f"/runs/{ready}/do/deploy", data={"word": site.word})
        assert answer.status_code == 403 and ft.deployments() == []


@pytest.mark.slow
def test_pages_for_reading_ask_no_host(ft: Orchestrator, ready: str, sandbox: Sandbox) -> None:
    """Every page that can be reached from the first one, and every part that a page loads afterwards."""
    ft.run(ready).deploy(max_hours=2)
    with TestClient(app(Site(ft, read_only=True))) as web:
        sandbox.clear_requests()
        waiting, seen = ["/", "/money?sandbox=1", "/money/standing", "/money/standing?sandbox=1"], set[str]()
        while waiting:
            path = waiting.pop().partition("#")[0]
            if path in seen or not path.startswith("/") or path.startswith("/static"):
                continue
            seen.add(path)
            waiting += re.findall(r'(?:href|hx-get)="([^"]+)"', html.unescape(web.get(path).text))
    assert {"/money?sandbox=1", f"/runs/{ready}"} < seen and "/quote" in seen
    assert [entry for host in ("openai", "together", "fireworks") for entry in sandbox.requests(host)] == []
    ft.run(ready).undeploy()


def test_no_key_and_no_token_is_in_a_page(
    web: TestClient, ft: Orchestrator, ready: str, sandbox: Sandbox
) -> None:
    keys = [value for name, value in sandbox.env.items() if name.endswith("KEY")]
    assert keys
    for path in ("/", f"/runs/{ready}", f"/runs/{ready}/do/deploy", "/runs/none"):
        html = web.get(path).text
        assert not [key for key in keys if key in html], path


def test_money_by_month_and_what_still_bills_with_the_way_to_end_it(
    web: TestClient, ft: Orchestrator, ready: str
) -> None:
    report = ft.spending(["month"], sandbox=True, offline=True)
    page = Parsed(web.get("/money").text)
    assert money(report.total.spent_usd) in page.texts and report.breakdown[0].groups[0].key in page.texts
    assert "play money" in page.text
    up = ft.run(ready).deploy(max_cost_usd=40)
    standing = Parsed(web.get("/money/standing?sandbox=1").text)
    settings = config.load(env={"ORCHESTRATE_BUDGET_USD": "40"}, cwd=Path(), home=ft.settings.home)
    with Orchestrator(settings) as real, TestClient(app(Site(real))) as pages:
        assert up.id not in pages.get("/money").text, "a limit in play money is no budget"
    assert f"{rate(up.record.usd_per_hour)} per hour" in standing.text and up.record.usd_per_hour is not None
    assert f"/runs/{ready}/do/undeploy" in standing.links
    done(web, f"/runs/{ready}/do/undeploy")
    assert f"/runs/{ready}/do/undeploy" not in Parsed(web.get("/money/standing?sandbox=1").text).links


def test_a_host_that_never_answers_is_named_after_a_short_while(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (site, pages_of_money):
        monkeypatch.setattr(module, "HOST_PATIENCE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are accepted, and that is all
        env = {
            "FIREWORKS_API_KEY": "fw-key-of-a-silent-host",
            "FIREWORKS_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml"),
        }
        with Orchestrator(config.load(env=env, cwd=tmp_path, home=tmp_path / "home")) as ft:
            host = ft.provider("fireworks").host
            spec = JobSpec(model="qwen3-8b", train=str(rows))
            run = ft.store.runs.create(
                Intent(spec=spec, provider="fireworks", dataset_digest="d" * 64, host=host)
            )
            states = {"phase": SubmitPhase.SUBMITTED, "status": JobStatus.SUCCEEDED, "job_id": "a-job"}
            ft.store.runs.apply(run.id, lambda now: replace(now, **states))
            begun = time.monotonic()
            with TestClient(app(Site(ft))) as web:
                standing = Parsed(web.get("/money/standing").text)
                deploy = web.get(f"/runs/{run.id}/do/deploy")
                plan = Parsed(web.get(f"/runs/{run.id}/evaluate?test={rows}").text)
            assert time.monotonic() - begun < 20
    assert "no answer within 0.5 s. To wait longer: orchestrate spending" in standing.text
    assert "Fireworks" in standing.texts
    assert deploy.status_code == 502 and "no answer within 0.5 s" in deploy.text
    assert "no answer within 0.5 s" in plan.text


def test_budgets_are_told_with_what_is_left(tmp_path: Path) -> None:
    env = {"ORCHESTRATE_KEYS": str(tmp_path / "keys.toml"), "ORCHESTRATE_BUDGET_USD": "40"}
    with Orchestrator(config.load(env=env, cwd=tmp_path, home=tmp_path / "home")) as real:
        gateway.add_key(real, "team-a", budget_usd=Decimal("12.50"))
        with TestClient(app(Site(real))) as web:
            page = Parsed(web.get("/money").text)
    assert {"all runs and deployments", "$40.00", "the gateway's key team-a", "$12.50"} <= {*page.texts}


def test_a_checkpoint_is_downloaded_by_itself(web: TestClient, ft: Orchestrator, rows: Path) -> None:
    run = ft.submit(JobSpec(model="qwen3-8b", train=str(rows), epochs=2, checkpoints=2), "together")
    run.wait(poll_s=0.02)
    one = run.checkpoints()[0].id
    path = f"/runs/{run.id}/do/download"
    [link] = [
        link
        for link in Parsed(web.get(f"/runs/{run.id}").text).links
        if unquote(link) == f"{path}?checkpoint={one}"
    ]
    asked = Parsed(web.get(link).text)
    assert asked.fields["checkpoint"] == one
    assert " files in " in web.post(path, data=asked.fields).text
    assert ft.run(run.id).downloaded() is None, "what lies there is not the end of the run"
    assert list((ft.settings.home / "models").rglob("*.safetensors"))
