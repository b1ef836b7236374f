"""Before a run: the calculator against a quote of real rows, the data inspector against the command, and the
form to the run that it makes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from threading import Barrier

import httpx
import pytest
from starlette.testclient import TestClient
from tests import loopback
from tests.unit.ui.conftest import MARKUP
from tests.unit.ui.page import Parsed
from typer.testing import CliRunner

from orchestrate import JobSpec, Orchestrator
from orchestrate.cli import app as command
from orchestrate.runs.preparing import pricing
from orchestrate.sandbox.server import Sandbox
from orchestrate.ui.new import fields
from orchestrate.ui.server import app, serving
from orchestrate.ui.site import Site


@pytest.fixture
def hosts(sandbox: Sandbox) -> Mapping[str, str]:
    return sandbox.env


def test_the_calculator_agrees_with_a_quote_of_such_rows(ft: Orchestrator, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    turn = [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "answer " * 100}]
    path.write_text("".join(json.dumps({"messages": turn}) + "\n" for _ in range(2000)))
    spec = JobSpec(model="qwen3-8b", train=str(path), epochs=3)
    data = ft.data(spec)
    tokens = round(data.train.tokens("o200k").tokens / 2000)
    real = {quote.provider: quote for quote in ft.quote(spec, "together,fireworks")}
    for found in pricing.assumed(ft, spec, 2000, tokens):
        if found.provider in real:
            exact = real[found.provider].counted_usd
            assert found.low_usd <= exact <= found.high_usd and abs(found.counted_usd / exact - 1) < Decimal(
                "0.1"
            )
        else:
            assert found.unavailable


def test_the_calculator_recomputes_and_counts_serving(web: TestClient) -> None:
    few, many = (
        web.get("/quote", params={"rows": n, "row_tokens": 4000, "epochs": 10}).text for n in (2000, 20000)
    )
    assert few != many and "Training and 6 months of serving" in Parsed(few).text
    assert (
        "of serving"
        not in Parsed(web.get("/quote", params={"requests": 0}).text).text.split("Months of serving")[1]
    )
    unknown = web.get("/quote", params={"model": "x" * 3000})
    assert unknown.status_code == 200, "a name that no path can have is an unknown model"
    answer = web.get("/quote", params={"rows": "lots"})
    assert answer.status_code == 404 and "rows must be an integer" in answer.text


def test_the_inspector_says_what_the_commands_say(web: TestClient, ft: Orchestrator, tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": MARKUP}]}
        for n in range(20)
    ]
    words = [f"w{n}" for n in range(200)]
    for text in (words, [*words[:100], "changed", *words[101:]]):
        rows.append(
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " ".join(text)}]}
        )
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, rows[0], {"messages": []}]) + "{broken\n"
    )
    html = web.get("/data", params={"path": str(path)}).text
    page = Parsed(html)
    assert not list(tmp_path.glob("*fixed*")), "the preview leaves no file"
    done = CliRunner().invoke(command, ["data", "check", str(path), "--json"])
    told = json.loads(done.stdout)
    wrong = [p for p in told["report"]["problems"] if p["severity"] == "error"]
    assert wrong and all(p["message"] in page.text for p in wrong), wrong
    fixed = json.loads(CliRunner().invoke(command, ["data", "check", str(path), "--fix", "--json"]).stdout)[
        "fix"
    ]
    changes = [json.loads(line) for line in Path(fixed["log"]).read_text().splitlines()]
    assert f"What a repair would change: {len(changes)} line" in page.text
    assert all(change["detail"] in page.text for change in changes)
    assert "identical to row 1" in page.text and "near-duplicate" in page.texts
    assert page.own == [] and "<img" not in html


def test_what_a_forged_form_says_is_told(web: TestClient, site: Site, rows: Path) -> None:
    spec = json.dumps({"model": "qwen3-8b", "train": str(rows)})
    sent = {"word": site.word, "spec": spec, "provider": "together"}
    for more, status, told in (
        ({"max_cost_usd": "all"}, 404, "must be a number"),
        ({"max_cost_usd": "-1"}, 404, "must be a number"),
        ({"max_cost_usd": ""}, 404, "price was not confirmed"),
        ({"max_cost_usd": "5", "provider": ""}, 404, "specify a backend"),
        ({"max_cost_usd": "5", "spec": "[1]"}, 422, "not valid"),
        ({"max_cost_usd": "5", "spec": "{"}, 404, "start again"),
    ):
        answer = web.post("/new", data=sent | more)
        assert answer.status_code == status and told in answer.text, (more, answer.text)
    for query in ("limit=0", "limit=x"):
        answer = web.get(f"/?{query}")
        assert answer.status_code == 404 and "must be an integer" in answer.text, query


def test_a_file_that_cannot_be_read_is_told(web: TestClient, tmp_path: Path) -> None:
    assert "level-error" not in web.get("/data").text
    page = Parsed(web.get("/data", params={"path": str(tmp_path / "none.jsonl")}).text)
    assert "none.jsonl" in page.text and page.text.count("Problems") == 0


def form(rows: Path, **more: str) -> dict[str, str]:
    return {"provider": "fireworks", "model": "qwen3-8b", "train": str(rows), "epochs": "2", **more}


def test_the_form_has_every_setting_of_the_spec(web: TestClient) -> None:
    names = Parsed(web.get("/new").text).fields.keys()
    html = web.get("/new").text
    for name in JobSpec.model_fields:
        assert name in names or f'name="{name}"' in html or f'name="{name}.type"' in html, name
    assert 'name="adapter.r"' in html and 'name="method.beta"' in html


def test_fields_offer_what_the_spec_takes() -> None:
    common, others = fields()
    found = {one.name: one for one in [*common, *others]}
    assert found["method.train_on"].table is found["truncation"].table is False
    assert found["truncation"].words == ("right", "left", "drop")
    assert "warmup_stable_decay" in found["schedule"].words and "adamw" in found["optimizer"].words
    assert found["warmup_steps"].kind == found["save_total_limit"].kind == "number"
    assert found["method.ignore_empty_think"].words == ("true", "false")
    assert found["early_stopping"].table and found["adapter.rank_pattern"].table and found["tags"].table


def test_what_becomes_of_it_and_what_it_costs_stand_beside(
    web: TestClient, ft: Orchestrator, rows: Path
) -> None:
    spec = JobSpec.parse(
        {"model": "qwen3-8b", "train": str(rows), "epochs": 2, "adapter": {"type": "lora", "r": 16}}
    )
    [offer] = ft.prepare(spec, "fireworks").offers
    page = Parsed(web.get("/new", params=form(rows, **{"adapter.r": "16"})).text)
    assert "adapter.r" in page.texts and "Ready." in page.texts
    assert all(line.component in page.texts for line in offer.quote.lines)
    assert "SANDBOX: play money" in page.texts
    own = Parsed(web.get("/new", params=form(rows) | {"provider": "local", "model": "tiny-chat"}).text)
    assert "SANDBOX: play money" not in own.texts, "sandbox keys of other backends change nothing here"
    wrong = Parsed(web.get("/new", params=form(rows, epochs="many")).text)
    assert "epochs: must be an integer, got 'many'" in wrong.text
    nowhere = Parsed(web.get("/new", params=form(rows) | {"train": "none.jsonl"}).text)
    assert "none.jsonl" in nowhere.text and "Ready." not in nowhere.texts


def test_agreed_to_once_it_is_submitted_once(web: TestClient, ft: Orchestrator, rows: Path) -> None:
    asked = web.get("/new/confirm", params=form(rows, suffix="tickets", max_cost_usd="5"))
    page = Parsed(asked.text)
    assert page.posts == ["/new"] and "at most $5.00" in page.text and "SANDBOX" in page.texts
    assert ft.runs() == [], "asking is not doing"
    fields = {name: value for name, value in page.fields.items() if name != "again"}
    answer = web.post("/new", data=fields)
    assert answer.status_code == 200 and "tickets" in answer.text, answer.text
    assert "is identical" in web.post("/new", data=fields).text
    [run] = ft.runs()
    assert (run.record.max_cost_usd, run.record.spec["epochs"], run.record.provider) == (5, 2, "fireworks")
    for _ in range(2):
        assert web.post("/new", data={**fields, "again": "1"}).status_code == 200
    assert len(ft.runs()) == 2, "another one was agreed to once"


@pytest.mark.parametrize("shared", [True, False], ids=["one form", "a form each"])
def test_two_browsers_that_send_at_once_make_one_run(ft: Orchestrator, rows: Path, shared: bool) -> None:
    ready = Barrier(2)
    with serving(ft) as url:

        def opened() -> dict[str, str]:
            asked = loopback.get(f"{url}new/confirm", params=form(rows, max_cost_usd="5"))
            return {name: value for name, value in Parsed(asked.text).fields.items() if name != "again"}

        def sent(fields: dict[str, str]) -> httpx.Response:
            ready.wait(240)
            return loopback.post(f"{url}new", data=fields)

        forms = [opened()] * 2 if shared else [opened(), opened()]
        with ThreadPoolExecutor(2) as browsers:
            answers = list(browsers.map(sent, forms))
        [run] = ft.runs()
        codes = sorted(answer.status_code for answer in answers)
        assert codes[0] == 303 and codes[1] < 500, [answer.text for answer in answers]
        for answer in answers:
            assert run.id in (answer.headers.get("location", "") or answer.text)


def test_above_the_limit_nothing_is_sent(web: TestClient, ft: Orchestrator, rows: Path) -> None:
    page = Parsed(web.get("/new/confirm", params=form(rows)).text)
    fields = {name: value for name, value in page.fields.items() if name != "again"}
    answer = web.post("/new", data=fields | {"max_cost_usd": "0.0000001"})
    assert answer.status_code == 422 and "Nothing was sent" in answer.text and ft.runs() == []
    assert "price was not confirmed" in web.post("/new", data=fields | {"max_cost_usd": ""}).text


def test_pages_for_reading_read_no_files_and_make_no_runs(ft: Orchestrator, rows: Path, site: Site) -> None:
    with TestClient(app(Site(ft, read_only=True))) as web:
        links = Parsed(web.get("/").text).links
        assert not {"/data", "/new"} & {*links} and "/quote" in links
        for path in ("/data", "/new", "/new/confirm"):
            assert web.get(path, params={"path": str(rows)}).status_code == 404
        assert web.post("/new", data={"word": site.word}).status_code == 404
