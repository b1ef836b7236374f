"""The page of all runs: what it finds, what it says, and that it is as the command says."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.unit.ui.conftest import ESCAPES, MARKUP, MakeRun, ended
from tests.unit.ui.page import Parsed
from typer.testing import CliRunner

from orchestrate import Orchestrator
from orchestrate.cli import app as command
from orchestrate.types import JobStatus
from orchestrate.ui.site import Site


def shown(web: TestClient, query: str = "") -> Parsed:
    answer = web.get(f"/{query}")
    assert answer.status_code == 200, answer.text
    return Parsed(answer.text)


@pytest.fixture
def three(make_run: MakeRun) -> list[str]:
    tagged = {"tags": {"team": "search"}}
    return [
        make_run("tickets", step=3, total_steps=10).id,
        make_run("mails", settings=tagged, tags={"team": "search"}, **ended()).id,
        make_run("orders", settings={"model": "llama-3.1-8b"}, status=JobStatus.FAILED).id,
    ]


def test_filters_and_search_find_what_they_say(web: TestClient, three: list[str]) -> None:
    tickets, mails, orders = three
    assert shown(web).rows == [orders, mails, tickets], "newest first"
    assert shown(web, "?status=failed").rows == [orders]
    assert shown(web, "?q=QWEN+tick").rows == [tickets], "every word, in whatever names it"
    assert shown(web, "?tag=team").rows == shown(web, "?tag=team%3Dsearch").rows == [mails]
    assert shown(web, "?tag=team%3Dsupport").rows == []
    assert shown(web, "?limit=1").rows == [orders]
    assert "No run matches" in shown(web, "?q=nothing").text


def test_a_row_says_where_a_run_stands(web: TestClient, three: list[str]) -> None:
    page = shown(web)
    assert f"/runs/{three[0]}" in page.links
    for told in ("running", "3/10", "$0.60", "succeeded", "$2.50", "failed", "team=search"):
        assert told in page.texts, f"{told} of {page.texts}"


def test_the_command_on_the_page_finds_the_same_runs(
    web: TestClient, ft: Orchestrator, three: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = shown(web, "?status=succeeded&provider=local")
    line = next(text for text in page.texts if text.startswith("orchestrate runs"))
    monkeypatch.setenv("ORCHESTRATE_KEYS", str(tmp_path / "keys.toml"))
    args = ["--home", str(ft.settings.home), *line.split()[1:], "--json"]
    done = CliRunner().invoke(command, args)
    assert [run["id"] for run in json.loads(done.stdout)] == page.rows == [three[1]]
    python = next(text for text in page.texts if text.startswith("from orchestrate import"))
    monkeypatch.setenv("ORCHESTRATE_HOME", str(ft.settings.home))
    seen: list[object] = []
    exec(compile(python, "page", "exec"), {"print": seen.append})
    assert [run.id for run in seen] == page.rows  # type: ignore[attr-defined]


def test_a_page_comes_with_its_first_runs_and_asks_for_the_others(web: TestClient, make_run: MakeRun) -> None:
    made = [make_run(f"run-{n}").id for n in range(105)]
    page = shown(web)
    rest = Parsed(web.get(f"/rest?after={page.rows[-1]}").text)
    assert page.rows + rest.rows == made[::-1] and len(rest.rows) == 5
    assert "105 runs" in page.text and "Loading 5 more" in page.text
    [link] = [link for link in page.links if "after=" in link]
    assert shown(web, link.removeprefix("/")).rows == rest.rows, "without scripts, by a link"


def test_a_short_page_leads_to_the_next_one(web: TestClient, make_run: MakeRun) -> None:
    made = [make_run(f"run-{n}").id for n in range(5)][::-1]
    seen, query = list[str](), "?limit=2"
    while query:
        page = shown(web, query)
        seen += page.rows
        query = next((link.removeprefix("/") for link in page.links if f"after={seen[-1]}" in link), "")
    assert seen == made and "Loading" not in page.text


def test_an_empty_store_says_the_next_command(web: TestClient) -> None:
    assert "orchestrate sandbox run -- orchestrate submit" in shown(web).text


def test_runs_of_sandboxes_are_apart_and_marked(web: TestClient, make_run: MakeRun) -> None:
    play = make_run("play", sandbox=True).id
    assert "No runs but 1 run of sandboxes." in shown(web).text
    page = shown(web, "?sandbox=1")
    assert page.rows == [play] and "SANDBOX" in page.texts


def test_hostile_names_are_text(web: TestClient, make_run: MakeRun) -> None:
    tags = {"note": MARKUP, ESCAPES: "x"}
    make_run("mails", settings={"model": MARKUP}, model=MARKUP, tags=tags)
    page = shown(web)
    assert page.own == [] and MARKUP in page.text
    html = web.get("/").text
    assert "\x1b" not in html and "\u202e" not in html and "<img" not in html


def test_curves_in_rows_are_the_losses(web: TestClient, make_run: MakeRun) -> None:
    run = make_run(points=100)
    line, last = web.get("/sparks", params={"run": run.id}).json()[run.id]
    points = [tuple(map(float, pair.split(","))) for pair in line.split()]
    assert last == "1.0000" and points[0] == (0.0, 1.0) and points[-1] == (80.0, 15.0)
    assert [y for _, y in points] == sorted(y for _, y in points), "the loss falls from top to bottom"


def test_a_curve_of_one_point_is_seen(web: TestClient, make_run: MakeRun) -> None:
    run = make_run(points=1)
    line, last = web.get("/sparks", params={"run": run.id}).json()[run.id]
    (x0, y0), (x1, y1) = [tuple(map(float, pair.split(","))) for pair in line.split()]
    assert last == "1.9900" and x1 > x0 and y0 == y1


def test_a_wrong_filter_is_told(web: TestClient) -> None:
    answer = web.get("/?status=done")
    assert answer.status_code == 404 and "unknown status &#39;done&#39;. Known: not sent" in answer.text
    assert web.get("/?sort=record").status_code == web.get("/?col=spec.a'b").status_code == 404
    assert web.get("/?q=%00").status_code == web.get("/runs.json?q=a%00").status_code == 404


def test_the_head_sorts_and_the_address_says_how(web: TestClient, three: list[str]) -> None:
    tickets, mails, orders = three
    head = {link.rpartition("sort=")[2]: link for link in shown(web).links if "sort=" in link}
    assert {"name", "status", "-cost", "loss"} <= set(head)
    assert shown(web, head["name"].removeprefix("/")).rows == [mails, orders, tickets]
    page = shown(web, "?sort=name")
    assert "?sort=-name" in [link.removeprefix("/") for link in page.links], "a second click turns it round"
    assert shown(web, "?sort=-cost").rows == [mails, tickets, orders], "what is not known comes last"
    assert 'aria-sort="ascending"' in web.get("/?sort=name").text
    assert web.get("/?sort=name").text.count("data-fixed") == 1, "a new run has no place at its top"


def test_columns_and_groups_are_chosen_in_the_address(web: TestClient, three: list[str]) -> None:
    page = shown(web, "?col=status&col=spec.train&col=tag.team&group=status&sort=name")
    assert page.rows == [three[2], three[0], three[1]], "failed, running, succeeded"
    for told in ("status: failed", "1 run", "train", "rows.jsonl", "search"):
        assert told in page.texts, f"{told} of {page.texts}"
    assert "c-cost" not in web.get("/?col=status").text and "c-cost" in web.get("/").text
    assert page.fields["col"], "the choice can be changed without scripts"
    assert shown(web, "?group=tag.team").rows[0] == three[1], "runs without the tag come last"


def test_an_empty_tag_is_a_group_of_its_own(web: TestClient, make_run: MakeRun, three: list[str]) -> None:
    for name in ("one", "two"):
        make_run(name, tags={"plain": ""})
    heads = [
        head.split("</tr>")[0] for head in web.get("/?group=tag.plain").text.split('<tr class="group">')[1:]
    ]
    assert [Parsed(head).texts for head in heads] == [["plain", "2 runs"], ["plain: none", "3 runs"]]


def test_what_is_coming_is_what_is_missing(web: TestClient, make_run: MakeRun) -> None:
    for n in range(101):
        make_run(f"run-{n}")
    assert "Loading 1 more" in shown(web).text
    assert "Loading" not in shown(web, "?limit=100").text, "no more than were asked for"


def test_a_list_whose_runs_are_all_archived_says_so(web: TestClient, make_run: MakeRun) -> None:
    make_run("old", archived=True)
    assert "No runs but 1 archived run" in shown(web).text


def test_the_table_is_a_file(web: TestClient, make_run: MakeRun, three: list[str]) -> None:
    make_run(
        "alpha", settings={"learning_rate": 1e-4, "tags": {"=cmd": "@x"}}, tags={"=cmd": "@x"}, note="-2"
    )
    records = web.get("/runs.json?sort=name").json()
    assert [record["spec"]["suffix"] for record in records] == ["alpha", "mails", "orders", "tickets"]
    rows = list(csv.DictReader(io.StringIO(web.get("/runs.csv?sort=name").text)))
    assert [row["run"] for row in rows] == [record["id"] for record in records]
    assert rows[0]["spec.learning_rate"] == "0.0001" and rows[1]["tag.team"] == "search"
    assert rows[1]["billed_usd"] == "2.50"
    assert not [cell for cell in rows[0].values() if cell[:1] in ("=", "@", "-", "+")], "no formula"
    assert web.get("/runs.json?q=nothing").json() == []
    assert web.get("/runs.csv?q=nothing").text.startswith("run,name,"), "a table without rows has its head"


def test_runs_are_archived_after_a_page_that_names_them_and_put_back(
    web: TestClient, site: Site, ft: Orchestrator, three: list[str]
) -> None:
    tickets, mails, orders = three
    asked = Parsed(web.get("/archive", params={"run": [tickets, mails]}).text)
    assert "Archive 2 runs?" in asked.text and asked.posts == ["/archive"]
    form = {"run": [tickets, mails], "archived": "1"}
    assert web.post("/archive", data=form).status_code == 403, "without the word of the page"
    web.post("/archive", data={**form, "word": site.word})
    assert shown(web).rows == [orders] and shown(web, "?archived=1").rows == [mails, tickets]
    assert "Put back 1 run?" in Parsed(web.get("/archive", params={"run": [mails]}).text).text
    web.post("/archive", data={"run": [mails], "archived": "0", "word": site.word})
    assert shown(web).rows == [orders, mails]
    assert ft.run(tickets).record.archived and ft.store.runs.get(tickets).updated_at < ft.store.clock.now()


def test_a_note_is_kept_shown_and_found(web: TestClient, site: Site, three: list[str]) -> None:
    note = f"lower rate\r\n{MARKUP}"
    web.post(f"/runs/{three[0]}/note", data={"word": site.word, "note": note})
    page = Parsed(web.get(f"/runs/{three[0]}").text)
    assert page.own == [] and MARKUP in page.text and "lower rate" in page.text
    assert shown(web, "?q=lower").rows == [three[0]]
    assert MARKUP in shown(web, "?col=note").text
    web.post(f"/runs/{three[0]}/note", data={"word": site.word, "note": " "})
    assert shown(web, "?q=lower").rows == []
    assert web.post(f"/runs/{three[0]}/note", data={"word": site.word, "note": "x" * 2001}).status_code == 404
