"""Tickets and mails, one message a row, become conversations."""

from __future__ import annotations

import csv
import json
import mailbox
from email.message import EmailMessage
from pathlib import Path

import pytest

from orchestrate.data import Dataset
from orchestrate.data.operations.threads import Columns, join
from orchestrate.data.rows import ChatExample
from orchestrate.errors import DataError, UsageError

TICKETS = [
    (
        "T-1",
        "agent",
        "2026-03-02T10:05:00Z",
        "Please hold the button for ten seconds.\n\nBest regards,\nAnna\nAtlas Support",
    ),
    ("T-2", "customer", "2026-03-02T10:01:00Z", "Where is my parcel?"),
    ("T-1", "customer", "2026-03-02T10:00:00Z", "My lamp does not start."),
    (
        "T-1",
        "customer",
        "2026-03-02T10:09:00Z",
        "It works. Thank you!\n\nOn Mon, 2 Mar 2026 at 10:05, Anna <anna@atlas.example> wrote:\n"
        "> Please hold the button for ten seconds.",
    ),
    ("T-3", "customer", "2026-03-03T09:00:00Z", "Can I return it?"),
    ("T-3", "agent", "2026-03-03T09:10:00Z", "Within 30 days."),
    ("T-3", "agent", "2026-03-03T09:11:00Z", "The label is in your account."),
]


def talks(path: Path) -> list[list[tuple[str, str]]]:
    data = Dataset.open(path)
    assert data.problems == () or {p.code for p in data.problems} <= {"few-rows"}
    return [[(m.role, m.text) for m in e.messages] for e in data.examples() if isinstance(e, ChatExample)]


def test_tickets_become_conversations_in_order_of_time(tmp_path: Path) -> None:
    file, out = tmp_path / "tickets.csv", tmp_path / "out.jsonl"
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["ticket", "author_type", "created_at", "body"])
        writer.writerows(TICKETS)
    report = join(str(file), Columns("ticket", "author_type", ("agent",)), out)
    assert talks(out) == [
        [("user", "My lamp does not start."), ("assistant", "Please hold the button for ten seconds.")],
        [
            ("user", "Can I return it?"),
            ("assistant", "Within 30 days.\n\nThe label is in your account."),
        ],
    ]
    assert (report.messages, report.threads, report.written) == (7, 3, 2)
    assert (report.open, report.shown["open"]) == (1, ("T-2",))
    assert (report.unanswered_ends, report.shown["unanswered_ends"]) == (1, ("T-1",))
    assert (report.time, report.unread, report.unthreaded) == ("created_at", (), 0)


def test_what_is_left_out_of_messages_is_told(tmp_path: Path) -> None:
    """Messages without a thread are not one conversation, and a column that is not read is told."""
    file, out = tmp_path / "tickets.csv", tmp_path / "out.jsonl"
    answer = "It ships today.\n\n> Where is it?\n\n--\nBo\nSupport"
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(
            [
                ("ticket", "who", "body", "channel"),
                ("1", "ann", "Where is it?", ""),
                ("1", "bot [ai]", answer, "mail"),
                ("", "ann", "A question of nobody", ""),
                ("", "bot [ai]", "An answer to nobody", ""),
            ]
        )
    report = join(str(file), Columns("ticket", "who", ("Bot [AI]",), user=("ann",)), out)
    assert talks(out) == [[("user", "Where is it?"), ("assistant", "It ships today.")]]
    assert (report.messages, report.unthreaded, report.unread, report.time) == (2, 2, ("channel",), None)


NOTE = "Do not tell her that we lost it."
TICKET = [("ann", "Where is it?"), ("bo", NOTE), ("bo", "It ships today.")]


@pytest.mark.parametrize(
    ("column", "seen", "internal"),
    [
        ("public", True, False),
        ("jsdPublic", "true", "false"),
        ("is_private", 0, 1),
        ("private", False, True),
        ("internal", "", "yes"),
        ("type", "reply", "note"),
        ("part_type", "comment", "Internal note"),
        ("visibility", "public", "internal"),
    ],
)
def test_what_only_colleagues_saw_is_no_answer(
    tmp_path: Path, column: str, seen: object, internal: object
) -> None:
    file, out = tmp_path / "tickets.jsonl", tmp_path / "out.jsonl"
    rows = [
        {"t": 1, "who": who, "text": said, column: internal if said == NOTE else seen} for who, said in TICKET
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = join(str(file), Columns("t", "who", ("bo",), user=("*",)), out)
    assert talks(out) == [[("user", "Where is it?"), ("assistant", "It ships today.")]]
    assert (report.internal, report.internal_by, report.unread) == (1, (column,), ())
    everything = join(str(file), Columns("t", "who", ("bo",), ignored=frozenset({column}), user=("*",)), out)
    assert talks(out)[0][1] == ("assistant", f"{NOTE}\n\nIt ships today.")
    assert (everything.internal, everything.unread) == (0, ())


def test_a_column_that_may_hide_messages_is_not_guessed(tmp_path: Path) -> None:
    file, out = tmp_path / "tickets.jsonl", tmp_path / "out.jsonl"
    rows = [{"t": 1, "who": who, "text": said, "internal": "team B"} for who, said in TICKET]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="whether the message was public") as refused:
        join(str(file), Columns("t", "who", ("bo",), user=("*",)), out)
    assert "--ignore internal" in (refused.value.fix or "")


def mail(box: mailbox.mbox, who: str, at: str, text: str, id: str, answers: str | None = None) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = who, "someone@shop.example", "Re: parcel"
    message["Date"], message["Message-ID"] = at, id
    if answers:
        message["In-Reply-To"] = answers
    message.set_content(text)
    box.add(message)


def test_mails_become_conversations_by_what_they_answer(tmp_path: Path) -> None:
    file, out = tmp_path / "support.mbox", tmp_path / "out.jsonl"
    box = mailbox.mbox(file)
    bo, anna, eva = "Bo <bo@mail.example>", "Anna <anna@shop.example>", "Eva <eva@shop.example>"
    mail(box, bo, "Mon, 02 Mar 2026 10:00:00 +0000", "Where is my parcel?", "<1@m>")
    before = "On Mon, 2 Mar 2026 at 10:00, Bo <bo@mail.example> wrote:\n> Where is my parcel?\n"
    quoted = f"It left today.\n\n-- \nAnna\n\n{before}"
    mail(box, anna, "Mon, 02 Mar 2026 12:00:00 +0100", quoted, "<2@s>", "<1@m>")
    mail(box, bo, "Mon, 02 Mar 2026 11:30:00 +0000", "And the invoice?", "<3@m>", "<2@s>")
    mail(box, eva, "Mon, 02 Mar 2026 11:45:00 +0000", "It is attached.", "<4@s>", "<3@m>")
    box.close()
    report = join(str(file), Columns("thread", "sender", ("*@shop.example",)), out)
    assert talks(out) == [
        [
            ("user", "Where is my parcel?"),
            ("assistant", "It left today."),
            ("user", "And the invoice?"),
            ("assistant", "It is attached."),
        ]
    ]
    assert (report.several_agents, report.shown["several_agents"]) == (1, ("<1@m>",))


def test_a_tree_of_ranked_answers_is_followed_along_the_best(tmp_path: Path) -> None:
    """OASST's columns."""
    file, out = tmp_path / "oasst.jsonl", tmp_path / "out.jsonl"
    said = [
        ("a", None, "prompter", "Why is the sky blue?", None),
        ("b", "a", "assistant", "It is not.", 1),
        ("c", "a", "assistant", "Air scatters blue light most.", 0),
        ("d", "c", "prompter", "And at dusk?", 0),
        ("e", "d", "assistant", "The way is longer, so red is left.", 0),
    ]
    rows = [
        {
            "message_id": i,
            "parent_id": p,
            "role": r,
            "text": t,
            "rank": k,
            "message_tree_id": "a",
            "lang": "en",
        }
        for i, p, r, t, k in said
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = join(str(file), Columns("message_tree_id", "role", ("assistant",)), out)
    best = [[(r.replace("prompter", "user"), t) for _, _, r, t, _ in (said[0], *said[2:])]]
    assert talks(out) == best and (report.aside, report.unread) == (1, ("lang",))
    table = tmp_path / "oasst.csv"
    with table.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)  # no parent and no rank are empty cells, and ranks are texts
    assert join(str(table), Columns("message_tree_id", "role", ("assistant",)), out).aside == 1
    assert talks(out) == best
    data = Dataset.open(file)
    assert data.rows == 0 and {p.code for p in data.problems} >= {"lost-meaning"}


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    file, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    row = {"thread": 1, "who": "bo", "text": "Hi", "time": "yesterday"}
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(UsageError, match="no column ticket"):
        join(str(file), Columns("ticket", "who", ("anna",)), out)
    with pytest.raises(DataError, match="is not a valid time"):
        join(str(file), Columns("thread", "who", ("anna",)), out)
    file.write_text(json.dumps(row | {"time": 1}) + "\n")
    with pytest.raises(DataError, match="no thread") as refused:
        join(str(file), Columns("thread", "who", ("anna",)), out)
    assert "bo (1)" in (refused.value.fix or "")


COLLEAGUES = [
    ("1", "customer", "Where is my refund?"),
    ("1", "internal", "He is on the fraud list, do not tell him."),
    ("1", "supervisor", "Refuse it."),
    ("1", "agent", "We are looking into it."),
]


def test_who_is_neither_customer_nor_assistant_is_nobodys_to_guess(tmp_path: Path) -> None:
    file, out = tmp_path / "tickets.jsonl", tmp_path / "out.jsonl"
    rows = [{"ticket": t, "role": who, "text": said} for t, who, said in COLLEAGUES]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"'internal' \(1\), 'supervisor' \(1\)") as refused:
        join(str(file), Columns("ticket", "role", ("agent",)), out)
    assert "--leave-out internal" in (refused.value.fix or "") and not out.exists()
    report = join(str(file), Columns("ticket", "role", ("agent",), left_out=("internal", "super*")), out)
    assert talks(out) == [[("user", "Where is my refund?"), ("assistant", "We are looking into it.")]]
    assert report.other_speakers == 2
    assert report.speakers == {
        "user": ("customer",),
        "left out": ("internal", "supervisor"),
        "assistant": ("agent",),
    }


def test_a_star_leaves_those_who_are_named(tmp_path: Path) -> None:
    file, out = tmp_path / "tickets.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps({"t": 1, "who": w, "text": w}) + "\n" for w in ("customer", "eva")))
    join(str(file), Columns("t", "who", ("*",), user=("customer",)), out)
    assert talks(out) == [[("user", "customer"), ("assistant", "eva")]]


def test_a_colleagues_address_is_not_a_customers(tmp_path: Path) -> None:
    file, out = tmp_path / "tickets.jsonl", tmp_path / "out.jsonl"
    senders = ("ann@mail.example", "boss@shop.example", "eva@shop.example")
    rows = [{"t": 1, "who": who, "text": who} for who in senders]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"boss@shop\.example"):
        join(str(file), Columns("t", "who", ("eva@shop.example",)), out)
    join(str(file), Columns("t", "who", ("eva@shop.example",), left_out=("*@shop.example",)), out)
    assert [[role for role, _ in talk] for talk in talks(out)] == [["user", "assistant"]]
