"""review: decisions that last, what is exported, and the page in a real browser."""

from __future__ import annotations

import http.client
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, expect
from playwright.sync_api import Page as Tab
from tests.browsers import chromium, new_page
from tests.paths import DATASETS

from orchestrate.data import Dataset
from orchestrate.data.operations.review import ReviewCounts, RowReview, beside, require, unreviewed
from orchestrate.data.operations.review_server import RowReviewPage, serving
from orchestrate.errors import DataError, SetupError, UsageError

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def chat(question: str, answer: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages})


ROWS = [chat("one?", "1"), chat("two?", EVIL), chat("three?", "3"), chat("four?", "4\n\nand more")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{row}\n" for row in ROWS))
    return path


def exported(review: RowReview, output: Path) -> list[str]:
    review.export(output)
    return output.read_text().splitlines()


# -- decisions -----------------------------------------------------------------------------------------------


def test_decisions_are_exported_and_the_file_is_kept(file: Path, tmp_path: Path) -> None:
    before = file.read_bytes()
    review = RowReview(str(file))
    review.decide(0, "accepted")
    review.decide(1, "rejected")
    review.decide(2, "edited", json.dumps(json.loads(chat("three?", "three")), indent=2))
    assert review.counts() == ReviewCounts(rows=4, pending=1, accepted=1, edited=1, rejected=1)
    again = RowReview(str(file))
    assert again.counts() == review.counts() and again.first_pending() == 3
    lines = exported(again, tmp_path / "out.jsonl")
    assert lines[0] == ROWS[0] and [json.loads(line) for line in lines[1:]] == [
        json.loads(chat("three?", "three"))
    ]
    assert Dataset.open(tmp_path / "out.jsonl").rows == 2 and file.read_bytes() == before


def test_undo_goes_back_step_by_step_also_in_a_later_session(file: Path) -> None:
    review = RowReview(str(file))
    review.decide(0, "accepted")
    review.decide(2, "edited", chat("a?", "b"))
    review.decide(2, "rejected")
    assert review.undo() == 2 and review.row(2).text == chat("a?", "b").replace(": ", ":").replace(", ", ",")
    later = RowReview(str(file))
    assert later.undo() == 2 and later.row(2).text == ROWS[2] and later.row(2).state == "pending"
    assert later.undo() == 0 and later.undo() is None
    assert RowReview(str(file)).counts().pending == 4


def test_decisions_follow_rows_that_move_and_equal_rows_are_told_apart(file: Path) -> None:
    review = RowReview(str(file))
    review.decide(3, "rejected")
    file.write_text("".join(f"{row}\n" for row in [ROWS[3], "", ROWS[3], chat("new?", "row")]))
    moved = RowReview(str(file))
    assert [moved.row(i).state for i in range(3)] == ["rejected", "pending", "pending"]
    assert moved.counts() == ReviewCounts(rows=3, pending=2, accepted=0, edited=0, rejected=1)


def test_a_torn_decision_is_as_if_it_was_not_made(file: Path) -> None:
    review = RowReview(str(file))
    review.decide(0, "accepted")
    review.decide(1, "accepted")
    journal = beside(file)
    journal.write_bytes(journal.read_bytes()[:-5])
    torn = RowReview(str(file))
    assert torn.counts().accepted == 1
    torn.decide(1, "rejected")
    assert RowReview(str(file)).counts() == ReviewCounts(rows=4, pending=2, accepted=1, edited=0, rejected=1)


@pytest.mark.parametrize("text", ["", "{", "[]", chat("only a question", ""), '{"messages": "\\ud800"}'])
def test_a_bad_row_is_not_accepted(file: Path, text: str) -> None:
    review = RowReview(str(file))
    with pytest.raises(DataError):
        review.decide(0, "edited", text)
    assert review.counts().pending == 4 and not beside(file).exists()
    file.write_text(ROWS[0] + "\n" + json.dumps({"messages": [{"role": "user", "content": "x"}]}) + "\n")
    broken = RowReview(str(file))
    with pytest.raises(DataError, match="assistant"):
        broken.decide(1, "accepted")
    assert broken.row(1).problems and broken.row(0).problems == ()


def test_other_formats_keep_theirs(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("question,answer\nwho?,me\nwhat?,this\n")
    review = RowReview(str(file))
    review.decide(1, "accepted")
    assert [json.loads(line) for line in exported(review, tmp_path / "o.jsonl")] == [
        {"question": "what?", "answer": "this"}
    ]


def test_only_marked_files_wait_for_review(file: Path) -> None:
    RowReview(str(file)).decide(0, "accepted")
    assert unreviewed(str(file)) == 0
    require(file)
    require(file)
    assert unreviewed(str(file)) == 3 and beside(file).read_text().count("required") == 1


def test_export_never_overwrites_what_is_reviewed(file: Path, tmp_path: Path) -> None:
    review = RowReview(str(file))
    for target in (file, beside(file)):
        with pytest.raises(UsageError):
            review.export(target)
    with pytest.raises(UsageError):
        review.decide(4, "accepted")
    with pytest.raises(UsageError, match="not a file"):
        RowReview(str(tmp_path))


# -- the server ----------------------------------------------------------------------------------------------


@pytest.fixture
def page(file: Path) -> Iterator[RowReviewPage]:
    with serving(str(file)) as found:
        yield found


def send(
    page: RowReviewPage, method: str, path: str | None = None, body: str = "", **headers: str
) -> tuple[int, str]:
    parts = urlsplit(page.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 0, timeout=240)
    try:
        connection.request(method, path or parts.path, body.encode() or None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_nothing_is_answered_without_the_token_or_to_another_name(page: RowReviewPage) -> None:
    token = urlsplit(page.url).path.strip("/")
    assert len(token) >= 32 and urlsplit(page.url).hostname == "127.0.0.1"
    body = json.dumps({"action": "accepted", "index": 0})
    for path in ("/", "/x/", f"/{token}", f"/{token}/more", f"/{token[:-1]}/"):
        assert send(page, "GET", path)[0] == 404 and send(page, "POST", path, body)[0] == 404
    assert send(page, "POST", None, body, Host="evil.example")[0] == 404
    assert page.review.counts().accepted == 0
    assert send(page, "POST", None, body)[0] == 200 and page.review.counts().accepted == 1


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        '{"action": "destroy"}',
        '{"action": "accepted"}',
        '{"action": "show", "index": 99}',
        "\xff",
    ],
)
def test_bad_requests_are_refused_in_words(page: RowReviewPage, body: str) -> None:
    status, answer = send(page, "POST", None, body)
    assert status in (413, 422) and json.loads(answer)["error"]


def test_a_taken_port_is_said(page: RowReviewPage, file: Path) -> None:
    with pytest.raises(SetupError, match="port"), serving(str(file), port=urlsplit(page.url).port or 0):
        pass


# -- in a browser --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def tab(browser: Browser, page: RowReviewPage) -> Iterator[Tab]:
    """The page, opened; asking another address, or a blocked script, fails the test."""
    asked: list[str] = []
    errors: list[str] = []
    opened = new_page(browser, viewport={"width": 900, "height": 800})
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: errors.append(message.text))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(page.url)
    expect(opened).to_have_title(re.compile("^0/4 "))
    yield opened
    opened.close()
    assert {url for url in asked if not url.startswith("data:")} == {page.url}
    assert [e for e in errors if "422" not in e] == []


def at(tab: Tab, row: int) -> Locator:
    expect(tab.locator("#place")).to_contain_text(f"row {row} of")
    return tab.locator("#row")


@pytest.mark.slow
def test_a_review_by_keyboard(tab: Tab, page: RowReviewPage, tmp_path: Path) -> None:
    tab.keyboard.press("j")
    at(tab, 2)
    tab.keyboard.press("k")
    at(tab, 1)
    tab.keyboard.press("a")
    at(tab, 2)
    tab.keyboard.press("r")
    at(tab, 3)
    tab.keyboard.press("e")
    editor = tab.locator("#editor")
    assert json.loads(editor.input_value()) == json.loads(ROWS[2])
    editor.fill(chat("three?", "jar")[:-1])
    tab.keyboard.press("Control+Enter")
    tab.wait_for_selector("#error:not([hidden])")
    assert "cannot be used" in tab.locator("#error").inner_text() and editor.is_visible()
    editor.fill(chat("three?", "jar"))  # its letters are no commands here
    tab.keyboard.press("Control+Enter")
    at(tab, 4)
    tab.keyboard.press("a")
    expect(tab).to_have_title(re.compile("^4/4 "))
    tab.keyboard.press("u")
    expect(tab).to_have_title(re.compile("^3/4 "))
    expect(tab.locator("#state")).to_have_text("pending")
    assert page.review.counts() == ReviewCounts(rows=4, pending=1, accepted=1, edited=1, rejected=1)
    assert [json.loads(line) for line in exported(page.review, tmp_path / "o.jsonl")] == [
        json.loads(ROWS[0]),
        json.loads(chat("three?", "jar")),
    ]


@pytest.mark.slow
def test_editing_keeps_numbers_that_javascript_would_round(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(chat("n?", "1")[:-1] + ', "weight": 0.5, "id": 12345678901234567890}\n')
    tab = new_page(browser)
    with serving(str(file)) as page:
        tab.goto(page.url)
        at(tab, 1)
        tab.keyboard.press("e")
        tab.keyboard.press("Control+Enter")
        expect(tab.locator("#state")).to_have_text("edited")
        assert '"id":12345678901234567890' in exported(page.review, tmp_path / "o.jsonl")[0]
    tab.close()


@pytest.mark.slow
def test_a_review_by_mouse_goes_on_after_a_reload(tab: Tab) -> None:
    tab.get_by_role("button", name="accept").click()
    at(tab, 2)
    tab.reload()
    at(tab, 2)
    tab.get_by_role("button", name="edit").click()
    tab.keyboard.press("Escape")
    assert tab.locator("#editor").is_hidden()
    tab.get_by_role("button", name="undo").click()
    at(tab, 1)
    expect(tab.locator("#counts")).to_have_text(re.compile("^4 to decide"))


def test_markup_in_rows_is_text(tab: Tab) -> None:
    tab.keyboard.press("j")
    assert EVIL in at(tab, 2).inner_text()
    assert tab.locator("#row img, #row script").count() == 0 and not tab.title().startswith("owned")
    assert tab.locator("main").screenshot()


def test_a_call_is_shown_as_one_and_its_tools_are_folded(browser: Browser, tmp_path: Path) -> None:
    good = DATASETS / "formats" / "good"
    file = Path(shutil.copy(good / "openai_tools.jsonl", tmp_path))
    tab = new_page(browser, viewport={"width": 900, "height": 900})
    with serving(str(file)) as page:
        tab.goto(page.url)
        shown = at(tab, 1).inner_text()
        assert 'weather({"city": "Oslo"})' in shown.replace('":"', '": "') and "tool · answers " in shown
        assert "properties" not in shown
        tab.get_by_text("tools: weather").click()
        assert '"properties"' in at(tab, 1).inner_text()
        # The buttons are where the window ends, however short the row.
        assert (
            tab.eval_on_selector("#reading", "node => innerHeight - node.getBoundingClientRect().bottom") == 0
        )
    tab.close()


def test_it_fits_a_narrow_window_in_light_and_dark(tab: Tab) -> None:
    tab.set_viewport_size({"width": 380, "height": 700})
    for scheme, background in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 22, 26)")):
        tab.emulate_media(color_scheme=scheme)  # pyright: ignore[reportArgumentType]
        assert tab.eval_on_selector("body", "node => getComputedStyle(node).backgroundColor") == background
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_end_of_the_server_is_told(browser: Browser, file: Path) -> None:
    tab = new_page(browser)
    with serving(str(file)) as page:
        tab.goto(page.url)
        at(tab, 1)
    tab.keyboard.press("a")
    tab.wait_for_selector("#error:not([hidden])")
    assert "the review has ended" in tab.locator("#error").inner_text()
    tab.close()
