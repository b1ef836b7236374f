"""People write and correct training rows: who writes which, where two disagree, and what comes of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, expect
from tests.browsers import chromium, new_page
from tests.reviewing import ESCAPES, MARKUP

from orchestrate import Orchestrator
from orchestrate.data import Dataset
from orchestrate.errors import DataError, OrchestrateError, UsageError
from orchestrate.evaluation.review.server import serving
from orchestrate.evaluation.review.written_rows import RowDraft, WritingSession, result
from orchestrate.runs.evaluation import reviews, writing_reviews
from orchestrate.settings import config

SYSTEM = {"role": "system", "content": "Be brief."}


def row(question: str, answer: str | None = None, **more: Any) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [SYSTEM, {"role": "user", "content": question}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages, **more}


ROWS = [row("one?"), row("two?", "two"), row("three?", "three"), row(MARKUP, ESCAPES)]


@pytest.fixture
def ft(tmp_path: Path) -> Iterator[Orchestrator]:
    with Orchestrator(config.load(home=tmp_path / "home")) as opened:
        yield opened


def put(folder: Path, rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return str(path)


def made(
    ft: Orchestrator, folder: Path, rows: Sequence[dict[str, Any]] = ROWS, overlap: float = 1.0, **more: Any
) -> WritingSession:
    order = writing_reviews.WritingOrder(
        file=put(folder, rows), writers=("ann", "bo"), overlap=overlap, seed=1, **more
    )
    return writing_reviews.opened(ft, order).session


def save(desk: WritingSession, who: str, at: int, answer: str, question: str | None = None) -> dict[str, Any]:
    shown = desk.act(RowDraft(action="show", at=at), who)
    asked = RowDraft(
        action="save",
        task=shown["task"],
        question=question or shown["question"],
        answer=answer,
        revision=shown["revision"],
    )
    return desk.act(asked, who)


def show(desk: WritingSession, who: str, at: int | None = None) -> dict[str, Any]:
    return desk.act(RowDraft(action="show", at=at), who)


def exported(ft: Orchestrator, desk: WritingSession, folder: Path) -> list[dict[str, Any]]:
    """The rows that come of it, which `data check` takes without an error."""
    path = folder / f"out-{len(list(folder.glob('out-*')))}.jsonl"
    done = reviews.from_review(ft, desk.review.id, path, format=None, agreement=0.6)
    data = Dataset.open(path)
    assert done.format == "sft" and data.rows == done.rows
    assert not [
        problem for _, read in data.read() for problem in read.problems if problem.severity == "error"
    ]
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answers(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [one["messages"][-1]["content"] for one in rows]


# -- who writes what -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("writers", "overlap"), [(1, 0.5), (2, 0.0), (2, 1.0), (3, 0.2), (5, 0.5)])
def test_everybody_gets_as_many_rows_and_the_share_of_two_writers_is_kept(
    ft: Orchestrator, tmp_path: Path, writers: int, overlap: float
) -> None:
    file = put(tmp_path, [row(f"{n}?") for n in range(100)])
    names = [f"w{n}" for n in range(writers)]
    desk = writing_reviews.opened(
        ft, writing_reviews.WritingOrder(file=file, writers=names, overlap=overlap, seed=3)
    ).session
    twice = sum(len(who) == 2 for who in desk.assigned.values())
    assert twice == (round(100 * overlap) if writers > 1 else 0)
    load = Counter(who for names in desk.assigned.values() for who in names)
    assert sum(load.values()) == 100 + twice and max(load.values()) - min(load.values()) <= 1
    assert all(len(set(who)) == len(who) for who in desk.assigned.values())


def test_the_same_file_goes_on_with_the_same_rows_and_another_file_begins_anew(
    ft: Orchestrator, tmp_path: Path
) -> None:
    desk = made(ft, tmp_path)
    save(desk, "ann", 0, "written")
    again = made(ft, tmp_path)
    assert again.review.id == desk.review.id and again.assigned == desk.assigned
    assert again.done() == {"ann": 1, "bo": 0}
    other = put(tmp_path, ROWS[:2], "other.jsonl")
    assert (
        writing_reviews.opened(
            ft, writing_reviews.WritingOrder(file=other, writers=("ann",))
        ).session.review.id
        != desk.review.id
    )
    assert made(ft, tmp_path, new=True).review.id != desk.review.id


def test_the_open_rows_of_who_leaves_go_to_others_and_what_is_written_stays(
    ft: Orchestrator, tmp_path: Path
) -> None:
    desk = made(ft, tmp_path, overlap=0.0)
    mine = show(desk, "ann")["total"]
    save(desk, "ann", 0, "by ann")
    later = writing_reviews.reopened(ft, desk.review, ("bo", "cy"))
    load = Counter(who for names in later.assigned.values() for who in names)
    assert load["ann"] == 1 and load["bo"] + load["cy"] == 3 and load["cy"] >= mine - 1
    assert writing_reviews.reopened(ft, desk.review).assigned == later.assigned  # kept
    for who in ("bo", "cy"):
        while (shown := show(later, who))["done"] < shown["total"]:
            save(later, who, shown["at"], f"by {who}")
    assert Counter(answers(exported(ft, later, tmp_path))) == Counter(
        {"by ann": 1, "by bo": load["bo"], "by cy": load["cy"]}
    )


@pytest.mark.parametrize("names", [(), ("x" * 41,), ("  ",), ("settler",)])
def test_writers_have_names_and_nobody_settles_their_own_rows(
    ft: Orchestrator, tmp_path: Path, names: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError):
        writing_reviews.opened(ft, writing_reviews.WritingOrder(file=put(tmp_path, ROWS), writers=names))
    assert ft.store.reviews.matching() == []


# -- what can be written ---------------------------------------------------------------------------------


def test_rows_of_many_kinds_are_opened_and_what_is_not_text_is_counted(
    ft: Orchestrator, tmp_path: Path
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    rows = [
        row("open?"),
        row("with a column", "answer", kind="x", large=12345678901234567890),
        {
            "messages": [*row("calls")["messages"], {"role": "assistant", "tool_calls": [call]}],
            "tools": [tool],
        },
    ]
    opened = writing_reviews.opened(
        ft, writing_reviews.WritingOrder(file=put(tmp_path, rows), writers=("ann",))
    )
    assert opened.made is not None and opened.made.unread == ("kind", "large")
    assert opened.made.left_out == {"answers with tool calls or reasoning": 1}
    assert [one["answer"] for one in (show(opened.session, "ann", n) for n in range(2))] == ["", "answer"]
    prompts = put(tmp_path, [{"prompt": "p?"}, {"prompt": "q?", "completion": "a"}], "prompts.jsonl")
    desk = writing_reviews.opened(ft, writing_reviews.WritingOrder(file=prompts, writers=("ann",))).session
    save(desk, "ann", 0, "answered")
    assert exported(ft, desk, tmp_path) == [
        {"messages": [{"role": "user", "content": "p?"}, {"role": "assistant", "content": "answered"}]}
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no rows"),
        ('{"messages": []}\n', "row 1"),
        ('{"messages": [{"role": "user"', "no row could be read"),
    ],
)
def test_a_file_that_cannot_be_read_makes_no_review(
    ft: Orchestrator, tmp_path: Path, text: str, told: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(DataError, match=told):
        writing_reviews.opened(
            ft, writing_reviews.WritingOrder(file=str(tmp_path / "rows.jsonl"), writers=("ann",))
        )
    assert ft.store.reviews.matching() == []


def test_what_is_not_changed_of_a_row_stays_as_it_was(ft: Orchestrator, tmp_path: Path) -> None:
    turns = [SYSTEM, {"role": "user", "content": "a?"}, {"role": "assistant", "content": "a", "weight": 0}]
    whole = {"messages": [*turns, {"role": "user", "content": "b?"}, {"role": "assistant", "content": "b"}]}
    desk = made(ft, tmp_path, [whole], overlap=0.0)
    who = desk.writers[0]
    shown = show(desk, who)
    assert [m["content"] for m in shown["before"]] == ["Be brief.", "a?", "a"] and shown["question"] == "b?"
    save(desk, who, 0, "better", question="b, please?")
    [found] = exported(ft, desk, tmp_path)
    assert found["messages"][:3] == turns
    assert [m["content"] for m in found["messages"][3:]] == ["b, please?", "better"]


# -- writing, twice, at once, and back -----------------------------------------------------------------------


def test_writers_see_nothing_of_one_another(ft: Orchestrator, tmp_path: Path) -> None:
    desk = made(ft, tmp_path)
    for at in range(4):
        save(desk, "ann", at, "ann's secret", question="ann's question")
    assert not any("secret" in json.dumps(show(desk, "bo", at)) for at in range(4))
    save(desk, "bo", 0, "bo's own")
    told = show(desk, "settler")
    assert {one["answer"] for one in told["pair"]} == {"ann's secret", "bo's own"} and told["answer"] == ""
    assert not {"ann", "bo"} & set(re.findall(r"\w+", json.dumps([told["before"], told["task"]])))


def test_sent_twice_is_saved_once_and_an_older_window_overwrites_nothing(
    ft: Orchestrator, tmp_path: Path
) -> None:
    desk = made(ft, tmp_path)
    old = show(desk, "ann", 0)
    asked = RowDraft(action="save", task=old["task"], question="one?", answer="first", revision=0)
    for _ in range(2):  # its answer was lost
        desk.act(asked, "ann")
    assert len(ft.store.reviews.ratings(desk.review.id)) == 1
    stale = RowDraft(action="save", task=old["task"], question="one?", answer="other", revision=0)
    with pytest.raises(UsageError, match="another window"):
        desk.act(stale, "ann")
    fresh = show(desk, "ann", 0)
    assert (fresh["answer"], fresh["revision"], fresh["written"]) == ("first", 1, True)
    save(desk, "ann", 0, "other")
    assert show(desk, "ann", 0)["answer"] == "other"


def test_undo_goes_back_text_by_text(ft: Orchestrator, tmp_path: Path) -> None:
    desk = made(ft, tmp_path)
    save(desk, "ann", 1, "first")
    save(desk, "ann", 1, "second")
    save(desk, "ann", 0, "elsewhere")
    seen: list[tuple[int, str, bool]] = []
    for _ in range(3):
        back = desk.act(RowDraft(action="undo"), "ann")
        seen.append((back["at"], back["answer"], back["written"]))
    assert seen == [(0, "", False), (1, "first", True), (1, "two", False)]
    with pytest.raises(UsageError, match="nothing to undo"):
        desk.act(RowDraft(action="undo"), "ann")
    assert len(ft.store.reviews.ratings(desk.review.id)) == 6  # only added to
    save(desk, "ann", 1, "anew")
    assert desk.act(RowDraft(action="undo"), "ann")["answer"] == "two"


@pytest.mark.parametrize(
    "wrong",
    [
        {"answer": "  "},
        {"question": ""},
        {"task": "nothing"},
        {"note": "x" * 10_001},
        {"revision": 7},
    ],
)
def test_what_no_training_could_read_is_refused_and_not_kept(
    ft: Orchestrator, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    desk = made(ft, tmp_path)
    given = {"task": show(desk, "ann")["task"], "question": "q?", "answer": "a", **wrong}
    with pytest.raises(OrchestrateError):
        desk.act(RowDraft(action="save", **given), "ann")
    assert ft.store.reviews.ratings(desk.review.id) == []


def test_nobody_writes_the_rows_of_another(ft: Orchestrator, tmp_path: Path) -> None:
    desk = made(ft, tmp_path, overlap=0.0)
    hers = show(desk, "ann")["task"]
    for who in ("bo", "settler", "", "eve"):
        with pytest.raises(UsageError, match="assigned"):
            desk.act(RowDraft(action="save", task=hers, question="q", answer="a"), who)


def test_two_servers_and_many_windows_lose_nothing(ft: Orchestrator, tmp_path: Path) -> None:
    """Each writer sends all rows at once, through two servers over one store."""
    rows = [row(f"{n}?") for n in range(12)]
    desk = made(ft, tmp_path, rows)
    other = writing_reviews.reopened(ft, desk.review)
    with serving(desk, raters=desk.writers) as one, serving(other, raters=desk.writers) as two:
        assert one.links.keys() == two.links.keys()
        with ThreadPoolExecutor(8) as pool:
            sent = [
                pool.submit(
                    httpx.post,
                    (one, two)[n % 2].links[who],
                    json={"action": "save", "task": task, "question": "q", "answer": f"{who} {n}"},
                    timeout=120,
                )
                for n, task in enumerate(desk.rows)
                for who in desk.writers
            ]
            assert [answer.result().status_code for answer in sent] == [200] * 24
    assert desk.done() == other.done() == {"ann": 12, "bo": 12}


# -- agreement and settling ------------------------------------------------------------------------------


def test_agreement_by_hand(ft: Orchestrator, tmp_path: Path) -> None:
    """Labels of ten rows by two: 9 agree. Krippendorff's alpha by hand (2011, section C): of 20 values 11 are
    "a" and 9 "b", 2 coincidences differ, so 1 - 19 * 2 / (2 * 11 * 9)."""
    desk = made(ft, tmp_path, [row(f"{n}?") for n in range(10)])
    for n in range(10):
        save(desk, "ann", n, "a" if n < 6 else "b")
        save(desk, "bo", n, "a" if n < 5 else "b")
    found = result(desk)
    assert found.doubly == 10 and found.same is not None and found.same.value == pytest.approx(0.9)
    assert found.alpha is not None and found.alpha.value == pytest.approx(1 - 19 * 2 / (2 * 11 * 9))
    assert found.likeness is not None and found.likeness.value == pytest.approx(0.9)
    [apart] = found.disagreements
    assert (apart.row, apart.writers, apart.answers, apart.settled) == (6, ("ann", "bo"), ("a", "b"), None)


def test_likeness_of_free_answers_is_rouge_l(ft: Orchestrator, tmp_path: Path) -> None:
    """By hand: 3 words of 4 and of 5 in the same order, F1 = 2 * 3 / 9; the same text is 1."""
    desk = made(ft, tmp_path, ROWS[:2])
    save(desk, "ann", 0, "it ships on Monday")
    save(desk, "bo", 0, "it ships again next Monday")
    save(desk, "ann", 1, "Yes.")
    save(desk, "bo", 1, " Yes. ")
    found = result(desk)
    assert found.likeness is not None and found.likeness.value == pytest.approx((2 * 3 / 9 + 1) / 2)
    assert found.same is not None and (found.same.value, found.same.n) == (0.5, 2) and found.alpha is None
    assert found.to_settle == 1


def test_a_disagreement_is_settled_and_a_later_change_opens_it_again(
    ft: Orchestrator, tmp_path: Path
) -> None:
    desk = made(ft, tmp_path, ROWS[:2])
    for who in ("ann", "bo"):
        save(desk, who, 0, f"{who} says")
        save(desk, who, 1, "both say")
    assert answers(exported(ft, desk, tmp_path)) == ["both say"]
    shown = save(desk, "settler", 0, "a third text")
    assert (shown["done"], shown["total"]) == (1, 1)
    assert answers(exported(ft, desk, tmp_path)) == ["a third text", "both say"]
    [apart] = result(desk).disagreements
    assert apart.settled == "a third text" and (result(desk).to_settle, result(desk).settled) == (0, 1)
    save(desk, "bo", 0, "bo corrects")
    assert show(desk, "settler")["done"] == 0 and answers(exported(ft, desk, tmp_path)) == ["both say"]
    save(desk, "settler", 0, "ann says")
    desk.act(RowDraft(action="undo"), "settler")
    assert answers(exported(ft, desk, tmp_path)) == ["both say"]
    save(desk, "bo", 0, "ann says")  # they agree after all
    assert show(desk, "settler")["total"] == 0
    assert answers(exported(ft, desk, tmp_path)) == ["ann says", "both say"]


def test_written_rows_are_no_ratings(ft: Orchestrator, tmp_path: Path) -> None:
    desk = made(ft, tmp_path)
    with pytest.raises(DataError, match="no finished row"):
        reviews.from_review(ft, desk.review.id, tmp_path / "x.jsonl", format="sft", agreement=0.6)
    with pytest.raises(UsageError, match="written rows"):
        reviews.from_review(ft, desk.review.id, tmp_path / "x.jsonl", format="dpo", agreement=0.6)
    with pytest.raises(UsageError, match="for writing rows by hand"):
        reviews.opened(ft, [desk.review.id])
    assert not (tmp_path / "x.jsonl").exists()


# -- the page ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1280, 900), (390, 780)], ids=["desktop", "phone"])
def test_two_writers_and_who_settles_in_a_browser(
    browser: Browser, ft: Orchestrator, tmp_path: Path, size: tuple[int, int]
) -> None:
    guide = tmp_path / "guide.md"
    guide.write_text(f"# One sentence.\n{MARKUP}")
    desk = made(ft, tmp_path, guide=guide)
    raters = [*desk.writers, desk.settler]
    with serving(desk, raters=raters) as page:
        ann = new_page(browser, viewport={"width": size[0], "height": size[1]})
        errors: list[str] = []
        ann.on("pageerror", lambda error: errors.append(str(error)))
        ann.goto(page.links["ann"])
        expect(ann.locator("#guide")).to_contain_text("One sentence.")
        expect(ann.locator("#place")).to_have_text("Row 1 of 4")
        ann.locator("#answer").fill("It ships <b>today</b>.")
        ann.reload()  # before it was saved: nothing typed is lost
        expect(ann.locator("#restored")).to_be_visible()
        expect(ann.locator("#answer")).to_have_value("It ships <b>today</b>.")
        ann.keyboard.press("Control+Enter")
        expect(ann.locator("#place")).to_have_text("Row 2 of 4")
        second = new_page(browser)
        second.goto(page.links["ann"])
        expect(second.locator("#answer")).to_have_value("two")
        ann.locator("#answer").fill("two, of this window")
        ann.get_by_role("button", name="save").click()
        expect(ann.locator("#place")).to_have_text("Row 3 of 4")
        second.locator("#answer").fill("two, of the other")
        second.get_by_role("button", name="save").click()
        expect(second.locator("#error")).to_contain_text("another window")
        expect(second.locator("#answer")).to_have_value("two, of the other")
        second.close()
        ann.keyboard.press("Alt+u")
        expect(ann.locator("#place")).to_have_text("Row 2 of 4")
        expect(ann.locator("#answer")).to_have_value("two")
        ann.get_by_role("button", name="save").click()  # as it came
        expect(ann.locator("#counts")).to_have_text("2 written")
        ann.locator("#answer").fill("typed and not saved")
        assert ann.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        save(desk, "bo", 0, "Tomorrow.")
        eve = new_page(browser, viewport={"width": size[0], "height": size[1]})
        eve.goto(page.links[desk.settler])
        expect(eve.locator("#place")).to_have_text("Disagreement 1 of 1")
        assert eve.locator("#pair b").count() == 0
        texts = eve.locator("#pair > .part").all_inner_texts()
        take = next(n for n, text in enumerate(texts) if "Tomorrow." in text)
        if size[0] > 1000:
            eve.keyboard.press(f"Alt+{take + 1}")
        else:
            eve.get_by_role("button", name=f"take {'AB'[take]}").click()
        expect(eve.locator("#answer")).to_have_value("Tomorrow.")
        eve.keyboard.press("Control+Enter")
        expect(eve.locator("#end")).to_be_visible()
        port = urlsplit(page.links["ann"]).port or 0
    ann.keyboard.press("Control+Enter")
    expect(ann.locator("#error")).to_contain_text("the review has ended")
    with serving(desk, raters=raters, port=port):
        ann.reload()
        expect(ann.locator("#answer")).to_have_value("typed and not saved")
        assert errors == []
        ann.close()
        eve.close()
    assert answers(exported(ft, desk, tmp_path)) == ["Tomorrow.", "two"]
