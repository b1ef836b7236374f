"""Runs side by side on a page: only what differs, curves over one another, and as the report says."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient
from tests.unit.reports.conftest import make_result
from tests.unit.ui.conftest import MARKUP, MakeRun, ended
from tests.unit.ui.page import Parsed

from orchestrate import Orchestrator


def query(*ids: str) -> dict[str, list[str]]:
    return {"run": list(ids)}


def test_only_what_differs_is_shown_with_cost_loss_and_score(
    web: TestClient, ft: Orchestrator, make_run: MakeRun
) -> None:
    same = {"epochs": 3, "seed": 4}
    one = make_run("one", settings={**same, "adapter": {"type": "lora", "r": 8}}, points=20, **ended("1.25"))
    two = make_run("two", settings={**same, "adapter": {"type": "lora", "r": 32}}, points=30, **ended("4"))
    ft.store.history.add_evaluation(make_result(one, 0.8))
    page = Parsed(web.get("/compare", params=query(one.id, two.id)).text)
    for told in ("adapter.r", "8", "32", "$1.25", "$4.00", "1.8000", "1.7000", "0.800 (0.770 to 0.825)"):
        assert told in page.texts, f"{told} of {page.texts}"
    assert not {"epochs", "seed", "adapter.type"} & {*page.texts}
    for finding in ft.compare([one.id, two.id]).findings:
        assert finding in page.texts


def test_curves_lie_over_one_another(web: TestClient, make_run: MakeRun) -> None:
    one, two = make_run("one", points=20), make_run("two", points=30)
    loss = web.get("/compare/curves", params=query(one.id, two.id)).json()[0]
    assert loss["places"] == list(range(1, 31))
    assert [s["label"] for s in loss["series"]] == ["one, train", "two, train"]
    assert [s["values"].count(None) for s in loss["series"]] == [10, 0]


def test_a_run_of_a_sandbox_is_marked_in_its_row(web: TestClient, make_run: MakeRun) -> None:
    real, play = make_run("real", **ended()), make_run("play", sandbox=True, **ended())
    rows = web.get("/compare", params=query(real.id, play.id)).text.split("<tbody>")[-1].split("<tr>")[1:]
    assert ["SANDBOX" in row for row in rows] == [False, True]


def test_runs_of_one_name_are_told_apart(web: TestClient, make_run: MakeRun) -> None:
    ids = [make_run("same", points=2).id for _ in range(2)]
    loss = web.get("/compare/curves", params=query(*ids)).json()[0]
    assert [s["label"] for s in loss["series"]] == [f"{run_id}, train" for run_id in ids]


@pytest.mark.slow
def test_many_are_compared_by_their_settings_and_curves_alone(web: TestClient, make_run: MakeRun) -> None:
    ids = [make_run(f"run-{n}", settings={"seed": n}, points=300).id for n in range(13)]
    page = Parsed(web.get("/compare", params=query(*ids)).text)
    assert "seed" in page.texts and "Up to 12 runs" in page.text
    loss = web.get("/compare/curves", params=query(*ids)).json()[0]
    assert len(loss["series"]) == 13 and len(loss["places"]) <= 200


def test_curves_are_colored_by_a_setting(web: TestClient, make_run: MakeRun) -> None:
    rates = (2e-4, 1e-5, 2e-4)
    ids = [make_run(f"run-{n}", settings={"learning_rate": r}, points=2).id for n, r in enumerate(rates)]
    odd = make_run("odd", points=2, tags={"team": "search"}).id
    told = web.get("/compare/colors", params={**query(*ids, odd), "by": "learning_rate"}).json()
    assert told["values"] == {"run-0": "0.0002", "run-1": "1e-05", "run-2": "0.0002", "odd": ""}
    assert told["order"] == ["1e-05", "0.0002", ""], "by size, and what is not set last"
    loss = web.get("/compare/curves", params=query(*ids, odd)).json()[0]
    assert [s["run"] for s in loss["series"]] == list(told["values"])
    by_tag = web.get("/compare/colors", params={**query(*ids, odd), "by": "tag team"}).json()
    assert by_tag["order"] == ["search", ""]
    page = Parsed(web.get("/compare", params=query(*ids, odd)).text)
    assert {"learning_rate", "tag team"} <= set(page.texts)


def test_the_report_is_let_show_its_own_style_and_nothing_else(web: TestClient, make_run: MakeRun) -> None:
    ids = [make_run(MARKUP[:0] + name, model=MARKUP, **ended()).id for name in ("one", "two")]
    answer = web.get("/compare/report", params=query(*ids))
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    assert "<img" not in answer.text and "<script" not in answer.text


def test_nothing_selected_and_an_unknown_run(web: TestClient) -> None:
    assert "Select runs" in web.get("/compare").text
    assert web.get("/compare", params=query("run-none")).status_code == 404
