"""What a long work tells: a bar on a terminal, elsewhere little, and what is true by the clock."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from orchestrate.commands.terminal.progress import EVERY_S, SHOWN_AFTER_S, Bars
from orchestrate.core.underway import BYTES, listening, work


@pytest.fixture
def now() -> list[float]:
    return [0.0]


def bars(now: list[float], *, terminal: bool) -> tuple[Bars, Callable[[], str]]:
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=100, no_color=True)
    return Bars(console, clock=lambda: now[0]), written.getvalue


def test_a_line_now_and_then_with_what_is_left(now: list[float]) -> None:
    listener, written = bars(now, terminal=False)
    with listening(listener), work("reading a.jsonl", BYTES) as told:
        for second in range(101):  # a steady work of 200 seconds, seen for half of it
            now[0] = float(second)
            told(second * 5 << 20, 1000 << 20)
            listener.refresh()
    assert written().splitlines() == [
        "reading a.jsonl: 150 MiB of 1000 MiB, about 2m 50s left",
        "reading a.jsonl: 300 MiB of 1000 MiB, about 2m 20s left",
        "reading a.jsonl: 450 MiB of 1000 MiB, about 1m 50s left",
    ]


def test_of_a_work_without_a_known_end_only_the_time_is_told(now: list[float]) -> None:
    listener, written = bars(now, terminal=False)
    with listening(listener), work("asking"):
        now[0] = EVERY_S - 1
        listener.refresh()
        assert not written(), "short works are silent"
        now[0] = EVERY_S
        listener.refresh()
    assert written() == "asking: 30s so far\n"


def test_a_terminal_has_a_bar_for_what_takes_a_while(now: list[float]) -> None:
    listener, written = bars(now, terminal=True)
    with listening(listener), work("asking") as told:
        told(30, 120, "tuned")
        listener.refresh()
        assert not written(), "a short work has none"
        now[0] = max(10.0, SHOWN_AFTER_S)
        listener.refresh()
    assert "asking" in written() and "30 of 120, tuned" in written() and "about 30s left" in written()
    assert "\x1b[2K" in written().rpartition("left")[2], "it is taken away at the end"


def test_nobody_is_told_unless_somebody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    with work("reading") as told:
        told(1, 2)
    assert capsys.readouterr() == ("", "")
