"""The pages of the queue, of sweeps and of deployments, and what their buttons do."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

import pytest
from msgspec.structs import replace
from starlette.testclient import TestClient
from tests.unit.ui.conftest import MakeRun, ended
from tests.unit.ui.page import Parsed

from orchestrate import JobSpec, Orchestrator
from orchestrate.runs import queue as queueing
from orchestrate.runs.hosting.deployment import hourly
from orchestrate.runs.sweep import space, sweeps
from orchestrate.sandbox.server import Sandbox
from orchestrate.settings import config
from orchestrate.types import QueueState, Search, Trial, TrialState
from orchestrate.ui.server import app
from orchestrate.ui.site import Site


@pytest.fixture
def hosts(sandbox: Sandbox) -> Mapping[str, str]:
    return sandbox.env


def shown(web: TestClient, path: str) -> Parsed:
    answer = web.get(path)
    assert answer.status_code == 200, answer.text
    page = Parsed(answer.text)
    assert page.own == []
    return page


def test_the_queue_is_held_resumed_and_emptied(
    web: TestClient, site: Site, ft: Orchestrator, rows: Path
) -> None:
    spec = JobSpec(model="qwen3-8b", train=str(rows), suffix="waits", max_cost_usd=Decimal(5))
    prepared = ft.prepare(spec, "together")
    entry = queueing.add(ft, prepared, "together")
    page = shown(web, "/queue")
    assert {"waits", "together", "SANDBOX", "qwen3-8b", "waiting", "$5.00"} <= set(page.texts), page.texts
    assert "$5.00 confirmed for waiting entries" in page.text
    settings = config.load(env={}, cwd=rows.parent, home=ft.settings.home)
    with Orchestrator(settings) as real, TestClient(app(Site(real))) as pages:
        others = shown(pages, "/queue")
    assert "SANDBOX" in others.texts and "confirmed" not in others.text, "play money is no real commitment"
    act = f"/queue/{entry.id}"
    assert {f"{act}/hold", f"{act}/remove", "/queue/all/pause"} == set(page.posts)
    assert web.post(f"{act}/hold", data={}).status_code == 403
    for verb, state in (
        ("hold", QueueState.HELD),
        ("resume", QueueState.WAITING),
        ("remove", QueueState.REMOVED),
    ):
        assert web.post(f"{act}/{verb}", data={"word": site.word}).status_code == 200
        assert ft.store.queue.get(entry.id).state is state
    web.post("/queue/all/pause", data={"word": site.word})
    assert ft.store.queue.paused and "waits" not in shown(web, "/queue").texts
    assert {"waits", "removed"} <= set(shown(web, "/queue?all=1").texts)
    assert web.post(f"{act}/eat", data={"word": site.word}).status_code == 404


def test_a_sweep_shows_its_trials_the_best_first(
    web: TestClient, ft: Orchestrator, make_run: MakeRun
) -> None:
    assert "No sweeps yet." in shown(web, "/sweeps").text
    search = Search(
        id="sweep-1",
        created_at=ft.store.clock.now(),
        spec={"model": "qwen3-8b", "train": "rows.jsonl", "validation": "rows.jsonl"},
        providers=("local",),
        choices={"learning_rate": (1e-4, 2e-4)},
        ranges={},
        sampler="grid",
        trials=2,
        max_cost_usd=Decimal(9),
    )
    ft.store.searches.add(search)
    ids = [make_run(f"t{n}", **ended("1.25")).id for n in range(2)]
    for n, (score, rate) in enumerate(((0.9, 1e-4), (0.4, 2e-4))):
        settings = {"learning_rate": rate}
        ft.store.searches.propose(
            "sweep-1",
            Trial(number=n, settings=settings, run_id=ids[n], state=TrialState.SCORED, score=score),
        )
    listed = shown(web, "/sweeps")
    assert "/sweeps/sweep-1" in listed.links and {"$2.50", "$9.00", "2 of 2"} <= set(listed.texts), (
        listed.texts
    )
    page = shown(web, "/sweeps/sweep-1")
    runs = [link.rpartition("/")[2] for link in page.links if link.startswith("/runs/")]
    assert runs == ids[::-1], "a lower loss is better"
    assert f"/compare?run={ids[1]}&run={ids[0]}" in page.links
    assert web.get("/sweeps/none").status_code == 404


def test_a_sweep_in_a_sandbox_is_marked_and_leads_to_its_runs(
    web: TestClient, ft: Orchestrator, make_run: MakeRun, rows: Path
) -> None:
    spec = JobSpec(model="qwen3-8b", train=str(rows), validation=str(rows))
    order = sweeps.SweepOrder(space=space.parse(["epochs=1,2"], []))
    search = sweeps.begin(ft, spec, ["together"], order)
    run = make_run("tried", sandbox=True, tags={"sweep": search.id})
    ft.store.searches.propose(search.id, Trial(number=0, settings={"epochs": 1}, run_id=run.id))
    settings = config.load(env={}, cwd=rows.parent, home=ft.settings.home)
    with Orchestrator(settings) as real, TestClient(app(Site(real))) as pages:
        assert "SANDBOX" in shown(pages, "/sweeps").texts
        page = shown(pages, f"/sweeps/{search.id}")
        assert "SANDBOX: play money" in page.texts
        [link] = [link for link in page.links if "tag=sweep" in link]
        assert shown(pages, link).rows == [run.id]


def test_a_deployment_is_stopped_after_a_page_that_names_it(
    web: TestClient, site: Site, ft: Orchestrator, rows: Path
) -> None:
    assert "no active deployments" in shown(web, "/deployments").text
    run = ft.submit(JobSpec(model="qwen3-8b", train=str(rows), epochs=1, suffix="stands"), "fireworks")
    run.wait(poll_s=0.02)
    up = run.deploy(max_hours=2)
    price = up.record.usd_per_hour
    page = shown(web, "/deployments")
    assert f"1 deployment, ${price:.2f} per hour of play money" in page.text
    rented = replace(up.record, id="dep-real", sandbox=False, usd_per_hour=Decimal(3))
    both = hourly([up.record, rented])
    assert both == f"1 deployment, $3.00 per hour; 1 deployment, ${price:.2f} per hour of play money"
    assert {"SANDBOX", "fireworks", "after 2 h"} <= set(page.texts), page.texts
    end = f"/deployments/{up.id}/end"
    assert end in page.links
    asked = shown(web, end)
    for told in (
        "stands (qwen3-8b)",
        "fireworks",
        "SANDBOX",
        f"${price:.2f} per hour",
        "so far",
        "after 2 h",
    ):
        assert told in asked.text, told
    assert asked.posts == [end]
    assert not ft.deployments()[0].state.over, "nothing has happened yet"
    assert web.post(end, data={}).status_code == 403
    assert web.post(end, data={"word": site.word}).status_code == 200
    assert ft.deployments() == [] and ft.deployments(over=True)[0].id == up.id
    assert web.get("/deployments/none/end").status_code == 404


def test_read_only_pages_have_no_buttons(ft: Orchestrator, rows: Path) -> None:
    run = ft.submit(JobSpec(model="qwen3-8b", train=str(rows), epochs=1, suffix="wall"), "fireworks")
    run.wait(poll_s=0.02)
    up = run.deploy(max_hours=2)
    with TestClient(app(Site(ft, read_only=True))) as wall:
        for path in ("/queue", "/sweeps", "/deployments", f"/deployments/{up.id}/end"):
            assert shown(wall, path).posts == [], path
        assert wall.post(f"/deployments/{up.id}/end", data={}).status_code == 403
    up.undeploy()
