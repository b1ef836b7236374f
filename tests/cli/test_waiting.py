"""What a log is told of a long work: little, and what is true by the clock."""

from __future__ import annotations

from orchestrate.commands.terminal.waiting import EVERY_S, Lines


def test_a_line_now_and_then_with_what_is_left() -> None:
    now, written = [0.0], list[str]()
    lines = Lines(written.append, lambda: now[0])
    for second in range(101):  # a steady work of 200 seconds, seen for half of it
        now[0] = float(second)
        lines.tell("reading", second * 5, 1000)
    assert written == [
        "reading: 15%, about 2m 50s left",
        "reading: 30%, about 2m 20s left",
        "reading: 45%, about 1m 50s left",
    ]


def test_of_a_work_without_a_known_end_only_the_time_is_told() -> None:
    now, written = [0.0], list[str]()
    lines = Lines(written.append, lambda: now[0])
    now[0] = EVERY_S - 1
    lines.tell("asking", 3, None)
    assert not written, "short works are silent"
    now[0] = EVERY_S
    lines.tell("asking", 3, None)
    assert written == ["asking: 30s so far"]
