"""The ten questions of docs/questions.md, by somebody who has the first page and follows links only."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from starlette.testclient import TestClient
from tests.paths import ROOT
from tests.unit.reports.conftest import make_result
from tests.unit.ui.conftest import MakeRun, ended
from tests.unit.ui.page import Parsed

from orchestrate import Orchestrator
from orchestrate.types import JobError, JobStatus, Verdict

PAGE = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
ANSWERS: dict[str, tuple[str, Sequence[str]]] = {
    # question -> the link of the first page that is followed, and what is then read
    "What is running, and how long will it take?": ("", ["running"]),
    "Was it worth it?": ("good", ["Evaluation", "ship", "it is better"]),
    "Why did it fail?": ("bad", ["the file has 3 rows"]),
    "What did it cost, and what was quoted?": ("good", ["Money", "$2.00", "$2.50"]),
    "How did the backend interpret my settings?": ("good", ["Settings", "epochs"]),
    "Which data and base model was it trained on?": (
        "good",
        ["Lineage", "dddddddd", "the base model"],
    ),
    "Which of two runs is better?": ("both", ["epochs", "$2.50"]),
    "What still bills?": ("/money", ["Querying the hosts"]),
    "What would it cost elsewhere, with serving?": ("/quote", ["Epochs", "Months"]),
    "What is wrong with my file?": ("/data", ["File"]),
}


def test_the_page_has_these_questions() -> None:
    asked = re.findall(r"^\| ([^|]+\?) \|", PAGE, re.MULTILINE)
    assert asked == list(ANSWERS) and len(asked) == 10


@pytest.mark.parametrize("question", ANSWERS)
def test_its_answer_is_two_clicks_away(
    question: str, web: TestClient, ft: Orchestrator, make_run: MakeRun
) -> None:
    good = make_run("good", settings={"epochs": 2}, points=9, **ended())
    verdict = Verdict(contender=good.id, decision="ship", reasons=("it is better",))
    ft.store.history.add_evaluation(make_result(good, 0.8, verdicts=(verdict,)))
    bad = make_run("bad", status=JobStatus.FAILED, error=JobError(message="the file has 3 rows"))
    make_run("going", step=5, total_steps=10)
    way, words = ANSWERS[question]
    first = Parsed(web.get("/").text)
    runs = {"good": f"/runs/{good.id}", "bad": f"/runs/{bad.id}"}
    if way == "both":  # two boxes and a button: a form that the first page has
        assert {good.id, bad.id} <= set(first.rows) and "run" in first.fields
        assert 'action="/compare"' in web.get("/").text
        page = Parsed(web.get("/compare", params=[("run", good.id), ("run", bad.id)]).text)
    elif way:
        link = runs.get(way, way)
        assert link in first.links, first.links
        page = Parsed(web.get(link).text)
    else:
        page = first
    text = page.text.lower()
    assert [word for word in words if word.lower() not in text] == []
