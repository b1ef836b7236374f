"""What is looked at and judged from pages: tokens, rows, answers, checkpoints, and evaluations with their
sum."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from html import unescape
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from starlette.testclient import TestClient
from tests.paths import BUNDLED
from tests.reviewing import answered, desk_of
from tests.unit.ui.conftest import MARKUP, MakeRun, ended
from tests.unit.ui.page import Parsed

from orchestrate import JobSpec, Orchestrator
from orchestrate.api.run import RunHandle
from orchestrate.runs.data import RowReview
from orchestrate.runs.evaluation import reviews
from orchestrate.runs.evaluation.held_out import EvaluationOrder, PreparedEvaluation
from orchestrate.sandbox.server import Sandbox
from orchestrate.text import money
from orchestrate.ui.server import app
from orchestrate.ui.site import Site


@pytest.fixture
def hosts(sandbox: Sandbox) -> Mapping[str, str]:
    return sandbox.env


def trained(ft: Orchestrator, rows: Path, backend: str, model: str) -> RunHandle:
    run = ft.submit(JobSpec(model=model, train=str(rows), epochs=2), backend)
    run.wait(poll_s=0.02)
    return run


def tokens(html: str, tag: str) -> list[str]:
    """The texts of each row's tokens of this kind, put together."""
    rows = re.findall(r"<pre tabindex=\"0\">(.*?)</pre>", html, re.DOTALL)
    return [unescape("".join(re.findall(rf"<{tag}[ >][^>]*>([^<]*)</{tag}>", row))) for row in rows]


def test_the_trained_tokens_of_a_file_are_marked(web: TestClient, rows: Path) -> None:
    html = web.get("/data/tokens", params={"path": str(rows), "model": str(BUNDLED / "tiny-chat")}).text
    assert tokens(html, "b") == ["It ships today.<|im_end|>"] * 3
    assert tokens(html, "i")[0].startswith("<|im_start|>user\nWhere is it?<|im_end|>")
    later = web.get(
        "/data/tokens", params={"path": str(rows), "model": str(BUNDLED / "tiny-chat"), "row": 39}
    )
    assert [one.split()[1] for one in re.findall(r"<h2>(Row \d+)", later.text)] == ["39", "40"]
    missing = web.get("/data/tokens", params={"path": str(rows), "model": "no-such-model"}).text
    assert 'role="alert"' in missing and "no-such-model" in missing
    assert "start at 1" in web.get("/data/tokens", params={"row": "0"}).text


def test_the_rows_of_a_run_are_those_that_its_host_shows(
    web: TestClient, ft: Orchestrator, rows: Path
) -> None:
    run = trained(ft, rows, "fireworks", "qwen3-8b")
    assert f"/runs/{run.id}/tokens" in Parsed(web.get(f"/runs/{run.id}").text).links
    html = web.get(f"/runs/{run.id}/tokens").text
    assert tokens(html, "b") == ["".join(t.text for t in r.tokens if t.weight) for r in run.rendered()[:3]]


def test_rows_are_reviewed_on_the_page_of_the_command(web: TestClient, rows: Path, site: Site) -> None:
    page = Parsed(web.get("/data", params={"path": str(rows)}).text)
    assert "/data/review" in page.posts and page.fields["path"] == str(rows)
    assert web.post("/data/review", data={"path": str(rows)}).status_code == 403, (
        "without the word of the forms"
    )
    opened = web.post("/data/review", data={"word": site.word, "path": str(rows)})
    assert "/data/review/" in str(opened.url) and 'href="/data?path=' in opened.text
    shown = web.post(opened.url.path, content=json.dumps({"action": "rejected", "index": 0})).json()
    assert shown["counts"] == {"rows": 40, "pending": 39, "accepted": 0, "edited": 0, "rejected": 1}
    assert RowReview(str(rows)).counts().rejected == 1, "as `orchestrate data review` goes on with it"
    assert web.get("/data/review/none/").status_code == 404
    gone = web.post("/data/review", data={"word": site.word, "path": str(rows.with_name("none"))})
    assert gone.status_code == 422 and "none" in gone.text


@pytest.mark.slow
def test_an_evaluation_names_its_sum_and_its_answers_are_judged(
    web: TestClient, ft: Orchestrator, rows: Path, site: Site
) -> None:
    run = trained(ft, rows, "openai", "gpt-4.1-mini-2025-04-14")
    path = f"/runs/{run.id}/evaluate"
    assert path in Parsed(web.get(f"/runs/{run.id}").text).links
    asked = Parsed(web.get(path, params={"test": str(rows)}).text)
    with PreparedEvaluation(ft, [run.id], EvaluationOrder(test=str(rows))) as prepared:
        high = sum((one.high_usd or Decimal(0) for one in prepared.plan().asked), Decimal(0))
    assert high and f"at most {money(high)}" in asked.text and asked.fields["max_cost_usd"] == str(high)
    assert web.post(path, data=asked.fields | {"word": ""}).status_code == 403
    unsaid = web.post(path, data=asked.fields | {"max_cost_usd": ""})
    assert unsaid.status_code == 404 and "price was not confirmed" in unsaid.text
    assert not ft.evaluations(run.id)
    dear = web.post(path, data=asked.fields | {"max_cost_usd": "0.0000001"})
    assert "exceeds" in dear.text and not ft.evaluations(run.id), "the sum that was agreed to is its limit"
    assert web.post(path, data=asked.fields).status_code == 200
    [found] = ft.evaluations(run.id)
    page = Parsed(web.get(f"/runs/{run.id}").text)
    assert found.items == 40 and f"/runs/{run.id}/review" in page.posts
    told = web.post(f"/runs/{run.id}/review", data={"word": site.word}).text
    assert "identical" in Parsed(told).text, "a stand-in that was not trained answers as its base"


def test_answers_are_judged_on_the_page_of_the_command(
    web: TestClient, ft: Orchestrator, make_run: MakeRun
) -> None:
    run = make_run(**ended())
    rows = answered(("Where is it?", MARKUP, "Not known."), ("And that?", "It ships today.", "Not known."))
    review = desk_of(ft.store, ft.settings.home, rows, run_ids=(run.id,)).review.id
    path = f"/reviews/{review}/"
    assert path in Parsed(web.get(f"/runs/{run.id}").text).links
    page = web.get(path)
    assert f'href="/runs/{run.id}"' in page.text and "nonce-" in page.headers["content-security-policy"]
    task = web.post(path, content=json.dumps({"action": "show", "rater": "Ann"})).json()
    said = {"action": "rate", "rater": "Ann", "task": task["task"], "choice": "left"}
    assert web.post(path, content=json.dumps(said)).json()["done"] == 1
    desk = reviews.opened(ft, [review])
    assert reviews.result(ft, desk).raters == {"Ann": 1}, "as `orchestrate review --results` tells it"
    [sentence] = reviews.said(ft, desk)
    assert sentence in Parsed(web.get(f"/runs/{run.id}").text).text
    assert web.get("/reviews/rev-none/").status_code == 404


def test_each_checkpoint_is_evaluated_downloaded_and_continued(
    web: TestClient, ft: Orchestrator, rows: Path
) -> None:
    run = ft.submit(
        JobSpec(model="qwen3-8b", train=str(rows), epochs=2, checkpoints=2, learning_rate=2e-5), "together"
    )
    run.wait(poll_s=0.02)
    links = Parsed(web.get(f"/runs/{run.id}").text).links
    one = run.checkpoints()[0]
    asked = {name: parse_qs(urlsplit(link).query) for link in links for name in [urlsplit(link).path]}
    assert f"/runs/{run.id}/do/deploy" in asked
    paths = [urlsplit(link).path for link in links if f"checkpoint={one.id.partition(':')[0]}%3A" in link]
    assert {f"/runs/{run.id}/evaluate", f"/runs/{run.id}/do/download"} == set(paths)
    onward = [link for link in links if link.startswith("/new?")]
    assert one.model and [
        link for link in onward if parse_qs(urlsplit(link).query)["continue_from"] == [one.model]
    ]
    end = next(link for link in onward if parse_qs(urlsplit(link).query)["continue_from"] == [run.id])
    form = Parsed(web.get(end).text)
    assert "Ready." in form.text and (form.fields["learning_rate"], form.fields["continue_from"]) == (
        "2e-05",
        run.id,
    )
    with TestClient(app(Site(ft, read_only=True))) as reading:
        page = Parsed(reading.get(f"/runs/{run.id}").text)
        assert not [link for link in page.links if "/do/" in link or "/evaluate" in link or "/new" in link]
        for path in (f"/runs/{run.id}/evaluate", f"/runs/{run.id}/tokens", "/data/tokens", "/reviews/rev-1/"):
            assert reading.get(path).status_code == 404, path
        for path in (f"/runs/{run.id}/review", "/data/review", f"/runs/{run.id}/evaluate", "/reviews/rev-1/"):
            assert reading.post(path, data={}).status_code in (404, 405), path
