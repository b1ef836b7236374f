"""The live view at several widths: nothing that is read as another thing is ever cut."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrate.commands.terminal import live
from orchestrate.core.progress import cost_so_far, seconds_taken, share_done
from orchestrate.store import transitions
from orchestrate.types import Job, JobHandle, JobStatus, MetricPoint, Quote, Run, SubmitPhase

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)


def made(number: int = 0, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "id": f"run-{number:02d}xk2q9mf4z7p",
        "ref": "orch-1",
        "provider": "fireworks",
        "model": "accounts/fireworks/models/qwen3-8b",
        "spec": {},
        "spec_hash": "0" * 64,
        "dataset_digest": "a" * 64,
        "host": "https://host.example",
        "phase": SubmitPhase.SUBMITTED,
        "status": JobStatus.RUNNING,
        "job_id": "job-1",
        "created_at": NOW - timedelta(minutes=3),
        "updated_at": NOW,
        "started_at": NOW - timedelta(minutes=2),
        "expected_steps": 91,
        "quote": Quote(
            provider="fireworks", model="qwen3-8b", expected_usd=Decimal("1234.5"), rows=120, epochs=3
        ),
    }
    return Run(**(values | changes))


POINTS = [
    MetricPoint(step=s, values={"train_loss": 2 / s, "tokens_per_second": 1200.0}) for s in range(1, 41)
]


def drawn(content: Any, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, highlight=False).print(content)
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_table_of_many_shows_columns_whole_or_not_at_all(width: int) -> None:
    runs = [made(i, sandbox=i == 0) for i in range(4)]
    rows = [live.row(run, POINTS, NOW, chip=True) for run in runs]
    text = drawn(live.many(rows, width), width)
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for run in runs:
        [line] = [line for line in text.splitlines() if run.id in line]
        assert line.split()[-1] == "$542.64"  # 40 of 91 steps of $1,234.50, rounded up
        assert "40/91" in line.split()
    assert "SANDBOX" in text


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_panel_never_ends_a_line_within_a_fact(width: int) -> None:
    text = drawn(live.panel(made(), POINTS, (), NOW, width=width), width)
    for fact in ("step 40 of about 91", "1,200 tok/s", "cost $542.64 est.", "3m 00s, 2m 33s left"):
        assert any(fact in line for line in text.splitlines()), fact
    assert "[running]" in text, "the present stage is marked without colour too"


def test_the_clock_never_jumps_back() -> None:
    waiting = made(status=JobStatus.QUEUED, started_at=None)
    before = seconds_taken(waiting, NOW)
    after = seconds_taken(made(started_at=NOW), NOW)
    assert before == after == 180


def test_steps_come_of_rows_epochs_and_batch_where_the_host_tells_no_total() -> None:
    """120 rows in batches of 4 are 30 steps, three times."""

    def told(**facts: Any) -> Job:
        handle = JobHandle(provider="openai", job_id="job-1", ref="orch-1")
        return Job(handle=handle, status=JobStatus.RUNNING, raw_status="running", **facts)

    run = made(expected_steps=None)
    seen = transitions.observed(run, told(batch_size=4, epochs=3), NOW)
    assert seen.expected_steps == 90 and seen.total_steps is None
    assert transitions.observed(seen, told(batch_size=4, epochs=3), NOW) is seen
    assert share_done(seen, POINTS) == pytest.approx(40 / 90)
    assert cost_so_far(seen, POINTS) == pytest.approx(Decimal("548.67"), rel=Decimal("0.001"))
    assert transitions.observed(run, told(), NOW).expected_steps is None  # the batch is not known
    assert transitions.observed(run, told(batch_size=4, total_steps=77), NOW).expected_steps is None


PROGRAM = """
import time
from tests.cli.test_live_view import POINTS, made
from orchestrate.commands.terminal.live import LiveView
with LiveView(lambda run: POINTS, lambda run: []) as view:
    while True:
        for number in range(20):
            view.show(made(number))
        view.draw()
        time.sleep(0.05)
"""


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux, a real terminal that can be resized")
def test_a_resize_does_not_break_the_picture(tmp_path: Path) -> None:
    program = tmp_path / "view.py"
    program.write_text(PROGRAM)
    socket = str(tmp_path / "tmux")

    def tmux(*words: str) -> str:
        done = subprocess.run(["tmux", "-S", socket, *words], capture_output=True, text=True, check=True)
        return done.stdout

    root = Path(__file__).parents[2]
    shell = f"cd {root} && env -u COLUMNS -u LINES PYTHONPATH={root}/src:{root} {sys.executable} {program}"
    tmux("new-session", "-d", "-s", "view", "-x", "120", "-y", "40", shell)
    try:
        for width in (120, 70, 110):
            tmux("resize-window", "-t", "view", "-x", str(width))
            seen = settled(lambda: tmux("capture-pane", "-p", "-t", "view"))
            assert is_whole(seen), f"broken at {width} columns:\n{seen}"
    finally:
        subprocess.run(["tmux", "-S", socket, "kill-server"], check=False)


def settled(screen: Callable[[], str]) -> str:
    """The picture once it is whole, or what it is after a while."""
    until = time.monotonic() + 240
    while not is_whole(seen := screen()) and time.monotonic() < until:
        time.sleep(0.05)
    return seen


def is_whole(seen: str) -> bool:
    """Each run on one line, once."""
    lines = seen.splitlines()
    ids = [line.split()[0] for line in lines if line.startswith("run-")]
    return len(ids) == len(set(ids)) == 20 and sum(line.startswith("run ") for line in lines) == 1


DRAWN = """
import time
from tests.cli.test_live_view import POINTS, made
from orchestrate.commands.terminal.live import LiveView
with LiveView(lambda run: POINTS, lambda run: []) as view:
    for _ in range(3):
        view.show(made(7))
        view.draw()
        time.sleep(0.6)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pty")
def test_a_picture_is_repainted_in_place_and_only_when_there_is_a_new_one(tmp_path: Path) -> None:
    import pty

    end, inside = pty.openpty()
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": f"{root}/src:{root}", "TERM": "xterm-256color"}
    with subprocess.Popen([sys.executable, "-c", DRAWN], stdin=inside, stdout=inside, stderr=inside, env=env):
        os.close(inside)
        shown = b""
        with suppress(OSError):  # the terminal's end, once the program has ended
            while more := os.read(end, 65536):
                shown += more
    os.close(end)
    assert b"\x1b[2J" not in shown, "the screen is cleared"
    # The last picture stays, and may be painted once more for that.
    assert 3 <= shown.count(b"run-07xk2q9mf4z7p") <= 4
