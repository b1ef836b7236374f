"""The page on which people rate, in a real browser: three raters, a phone and a desktop, hostile answers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, expect
from playwright.sync_api import Page as Tab
from tests import loopback
from tests.browsers import chromium, new_page
from tests.reviewing import ESCAPES, HUGE, MARKUP, answered, desk_of

from orchestrate.evaluation.review.server import ANYONE, ReviewPage, serving
from orchestrate.evaluation.review.session import ReviewSession, valid_ratings
from orchestrate.store.store import Store
from orchestrate.types import Criterion, Rating, Rubric

PHONE = {"width": 390, "height": 780}
DESKTOP = {"width": 1280, "height": 900}
LONG = "A longer answer that goes on for a while, so that it has to be broken into lines. " * 12
ROWS = answered(
    ("Where is my order?", "It ships tomorrow.", "I do not know."),
    ("Can I pay later?", MARKUP, "Yes, within 14 days of delivery."),
    ("Tell me all.", ESCAPES, LONG),
    ("And how long is it?", "Short.", HUGE),
    ("Same?", "Yes.", "Yes. "),
)
SINGLE = Rubric(
    name="support",
    criteria=(
        Criterion(name="correct", question="Is all of it right?", scale=("wrong", "partly", "right")),
        Criterion(name="tone", question="Would you say it so?", scale=5),
    ),
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/store.db") as opened:
        yield opened


@pytest.fixture
def desk(store: Store, tmp_path: Path) -> ReviewSession:
    return desk_of(store, tmp_path / "reviews", ROWS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


class Opened:
    """The page as one rater has it; asking another address, or a blocked script, is an error."""

    def __init__(self, browser: Browser, url: str, size: dict[str, int]) -> None:
        self.tab: Tab = new_page(browser, viewport=size)  # pyright: ignore[reportArgumentType]
        self.url = url
        self.asked: set[str] = set()
        self.errors: list[str] = []
        self.tab.on("request", lambda request: self.asked.add(request.url))
        self.tab.on("console", lambda message: self.errors.append(message.text))
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.goto(url)

    def at(self, place: int, done: int) -> None:
        expect(self.tab.locator("#counts")).to_have_text(re.compile(rf"^{place} of \d+, {done} rated$"))

    def answers(self) -> list[str]:
        return [box.inner_text() for box in self.tab.locator("#answers > .part pre:first-of-type").all()]

    def close(self) -> None:
        self.tab.close()
        assert {url for url in self.asked if not url.startswith("data:")} == {self.url}
        assert [e for e in self.errors if "422" not in e] == []


def held(desk: ReviewSession, store: Store) -> list[Rating]:
    return valid_ratings(store.reviews.ratings(desk.review.id))


def contender_of(desk: ReviewSession, shown: str) -> str:
    """Whose answer begins like what is shown; the raters never learn it."""
    for task in desk.tasks:
        for name, answer in zip(task.contenders, task.answers, strict=True):
            if answer.text[:15] == shown[:15]:
                return name
    raise AssertionError(shown)


@pytest.mark.slow
def test_three_raters_on_a_desktop_and_a_phone(browser: Browser, desk: ReviewSession, store: Store) -> None:
    with serving(desk, raters=("ann", "bo", "cy")) as page:
        assert list(page.links) == ["ann", "bo", "cy"] and len(set(page.links.values())) == 3
        ann = Opened(browser, page.links["ann"], DESKTOP)
        bo = Opened(browser, page.links["bo"], PHONE)
        cy = Opened(browser, page.links["cy"], DESKTOP)
        expected: dict[tuple[str, str], str] = {}
        for place in range(1, 5):  # by keyboard; the same answer twice is not asked about
            ann.at(place, place - 1)
            left, right = ann.answers()
            expected["ann", contender_of(desk, left)] = contender_of(desk, left)
            assert {contender_of(desk, left), contender_of(desk, right)} == {"tuned", "base"}
            ann.tab.keyboard.press("1")
        expect(ann.tab.locator("#end")).to_be_visible()
        bo.at(1, 0)
        for place, name in enumerate(("A is better", "B is better", "equally good", "both bad"), start=1):
            bo.at(place, place - 1)
            bo.tab.get_by_role("button", name=name).click()
        expect(bo.tab.locator("#end")).to_be_visible()
        cy.at(1, 0)
        cy.tab.keyboard.press("n")
        cy.tab.keyboard.type("12 = fine <b>")  # its digits are no commands
        cy.tab.keyboard.press("Escape")
        cy.tab.keyboard.press("4")
        cy.at(2, 1)
        cy.tab.keyboard.press("2")
        cy.at(3, 2)
        cy.tab.keyboard.press("u")
        cy.at(2, 1)
        cy.tab.keyboard.press("3")
        cy.at(3, 2)
        for one in (ann, bo, cy):
            one.close()
        assert desk.done() == {"ann": 4, "bo": 4, "cy": 2}
    ratings = held(desk, store)
    assert all(r.choice == "left" for r in ratings if r.rater == "ann")
    assert [r.choice for r in ratings if r.rater == "bo"] == ["left", "right", "tie", "both bad"]
    [first, second] = [r for r in ratings if r.rater == "cy"]
    assert (first.choice, first.note, second.choice) == ("both bad", "12 = fine <b>", "tie")
    assert first.seconds is not None and first.seconds > 0
    assert len(store.reviews.ratings(desk.review.id)) == 12  # nothing is ever taken out


def test_orders_differ_and_are_kept_and_no_contender_is_named(desk: ReviewSession) -> None:
    orders = {who: [(t.id, turned) for t, turned in desk.order(who)] for who in ("ann", "bo", "cy", "dee")}
    assert all(len({task for task, _ in order}) == 4 for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) > 1
    again = ReviewSession(desk.review, desk.tasks, desk._kept)  # pyright: ignore[reportPrivateUsage]
    assert [(t.id, turned) for t, turned in again.order("bo")] == orders["bo"]
    sides = Counter(turned for i in range(100) for _, turned in desk.order(f"rater {i}"))
    assert 150 < sides[True] < 250
    told = json.dumps([desk.shown("ann", at) for at in range(4)], default=str)
    assert not any(word in told for word in ("tuned", "base", "run-1", "few-shot"))


@pytest.mark.slow
def test_a_name_on_the_page_and_going_on_after_a_new_start(
    browser: Browser, desk: ReviewSession, store: Store
) -> None:
    with serving(desk) as page:
        port = urlsplit(page.links[ANYONE]).port or 0
        one = Opened(browser, page.links[ANYONE], PHONE)
        expect(one.tab.locator("#who")).to_be_visible()
        one.tab.locator("#rater").fill("  Dee   Lee ")
        one.tab.keyboard.press("Enter")
        one.at(1, 0)
        one.tab.keyboard.press("ArrowLeft")
        one.at(2, 1)
        one.tab.keyboard.press("k")
        one.at(1, 1)
        expect(one.tab.locator("#pairs .chosen")).to_have_text("1A is better")
        one.tab.keyboard.press("2")  # changed, not doubled
        one.at(2, 1)
    one.tab.keyboard.press("1")
    expect(one.tab.locator("#error")).to_contain_text("the review has ended")
    with serving(desk, port=port):
        one.tab.reload()
        one.at(2, 1)
        expect(one.tab.locator("#name")).to_have_text("Dee Lee")
        one.tab.get_by_role("button", name="Dee Lee").click()
        one.tab.locator("#rater").fill("Eve")
        one.tab.get_by_role("button", name="start").click()
        one.at(1, 0)
        one.tab.close()
    [rating] = held(desk, store)
    assert (rating.rater, rating.choice) == ("Dee Lee", "right")


def test_single_answers_by_a_rubric(browser: Browser, store: Store, tmp_path: Path) -> None:
    desk = desk_of(store, tmp_path / "reviews", ROWS[:2], kind="single", rubric=SINGLE)
    with serving(desk, raters=("ann",)) as page:
        ann = Opened(browser, page.links["ann"], PHONE)
        ann.at(1, 0)
        assert "wrong" in ann.tab.locator("#scales").inner_text()
        ann.tab.keyboard.press("9")  # no such point
        ann.tab.keyboard.press("3")
        ann.tab.keyboard.press("5")
        ann.at(2, 1)
        ann.tab.get_by_role("button", name="partly").click()
        ann.tab.locator(".scale").nth(1).get_by_role("button", name="4", exact=True).click()
        ann.at(3, 2)
        ann.tab.keyboard.press("Enter")  # not yet rated: told, and nothing is kept
        expect(ann.tab.locator("#error")).to_contain_text("rate correct, tone")
        assert ann.tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        ann.close()
    assert [r.scores for r in held(desk, store)] == [{"correct": 3, "tone": 5}, {"correct": 2, "tone": 4}]


@pytest.mark.slow
def test_hostile_answers_are_text_and_long_ones_are_opened_on_demand(
    browser: Browser, desk: ReviewSession
) -> None:
    with serving(desk, raters=("ann",)) as page:
        ann = Opened(browser, page.links["ann"], PHONE)
        texts: list[str] = []
        for place in range(1, 5):
            ann.at(place, 0)
            texts += ann.answers()
            assert ann.tab.locator("#answers img, #answers script, #answers b").count() == 0
            assert ann.tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            if (more := ann.tab.get_by_role("button", name="show all 1,000,000 characters")).count():
                more.click()
                shown = "[...document.querySelectorAll('#answers pre')].map(p => p.textContent.length)"
                assert ann.tab.evaluate(f"Math.max(...{shown})") == len(HUGE)
            if place < 4:
                ann.tab.keyboard.press("j")
        assert MARKUP in texts and not ann.tab.title().startswith("owned")
        assert max(map(len, texts)) <= 20_000
        ann.close()


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_it_fits(browser: Browser, desk: ReviewSession, size: dict[str, int]) -> None:
    """No sideways scrolling, the answers beside each other only where there is room, buttons as large as a
    finger on a phone, in light and dark."""
    with serving(desk, raters=("ann",)) as page:
        ann = Opened(browser, page.links["ann"], size)
        ann.at(1, 0)
        boxes = [box.bounding_box() for box in ann.tab.locator("#answers > .part").all()]
        assert boxes[0] is not None and boxes[1] is not None
        assert (boxes[0]["y"] == boxes[1]["y"]) == (size is DESKTOP)
        for button in ann.tab.locator("#pairs button").all():
            box = button.bounding_box()
            assert box is not None and (size is DESKTOP or (box["height"] >= 44 and box["width"] >= 150))
        for scheme, background in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 22, 26)")):
            ann.tab.emulate_media(color_scheme=scheme)  # pyright: ignore[reportArgumentType]
            assert (
                ann.tab.eval_on_selector("body", "node => getComputedStyle(node).backgroundColor")
                == background
            )
        ann.close()


# -- without a browser ---------------------------------------------------------------------------------------


@pytest.fixture
def page(desk: ReviewSession) -> Iterator[ReviewPage]:
    with serving(desk, raters=("ann", "bo")) as served:
        yield served


def test_raters_at_the_same_time_lose_nothing(desk: ReviewSession, store: Store) -> None:
    """Each of three raters sends all ratings at once, over one page that other machines reach too."""
    raters = ("ann", "bo", "cy")
    with serving(desk, raters=raters, host="0.0.0.0") as page, ThreadPoolExecutor(12) as pool:
        assert not any("0.0.0.0" in link for link in page.links.values())
        sent = [
            pool.submit(
                httpx.post,
                page.links[who],
                json={"action": "rate", "choice": "tie", "task": task.id},
                timeout=30,
            )
            for who in raters
            for task in desk.tasks
        ]
        assert [one.result().status_code for one in sent] == [200] * 12
    assert desk.done() == dict.fromkeys(raters, 4)


@pytest.mark.parametrize(
    "body",
    [
        {"action": "rate"},
        {"action": "rate", "choice": "left"},
        {"action": "rate", "choice": "left", "task": "nothing"},
        {"action": "rate", "choice": "best"},
        {"action": "rate", "choice": None, "task": "TASK"},
        {"action": "rate", "choice": "left", "task": "TASK", "note": "x" * 10_001},
        {"action": "rate", "choice": "left", "task": "TASK", "scores": {"quality": 3}},
        {"action": "show", "at": 4},
        {"action": "show", "at": -1},
        {"action": "undo"},
        {"action": "drop"},
        {},
    ],
)
def test_what_is_no_rating_is_refused_and_not_kept(
    page: ReviewPage, desk: ReviewSession, store: Store, body: dict[str, object]
) -> None:
    if body.get("task") == "TASK":
        body = body | {"task": desk.tasks[0].id}
    answer = loopback.post(page.links["ann"], json=body)
    assert answer.status_code == 422 and answer.json()["error"]
    assert store.reviews.ratings(desk.review.id) == []


@pytest.mark.slow
def test_a_link_is_one_raters_and_needs_its_token(
    page: ReviewPage, desk: ReviewSession, store: Store
) -> None:
    body = {"action": "rate", "choice": "left", "task": desk.tasks[0].id, "rater": "bo"}
    assert loopback.post(page.links["ann"], json=body).json()["rater"] == "ann"  # whatever the page says
    assert [rating.rater for rating in held(desk, store)] == ["ann"]
    root = page.links["ann"].rsplit("/", 2)[0]
    assert loopback.post(f"{root}/{'x' * 32}/", json=body).status_code == 404
    for name in ("", "   ", "x" * 41):
        with serving(desk) as open_page:
            asked = {"action": "show", "rater": name}
            assert loopback.post(open_page.links[ANYONE], json=asked).status_code == 422
