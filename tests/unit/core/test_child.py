"""A child process on its worst days: killed, silent, flooding, deaf, with children, a fork bomb, orphaned.
The one test of all that, for all who start one (`tests/unit/test_one_way.py` lists them)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.waiting import until

from orchestrate.core import child
from orchestrate.core.child import Child, Ended, TooLate
from orchestrate.errors import DataError, RunFailed
from orchestrate.local.run import started

ECHO = """
from orchestrate.core import child
send = child.answering()
print("a library prints")
for asked in child.questions():
    try:
        if "raise" in asked:
            from orchestrate.errors import DataError
            raise DataError(asked["raise"], fix="mend it")
        send({"got": asked})
    except Exception as error:
        send(child.failure(error))
"""
LONG_S = 60


def running(script: str, **more: Any) -> Child:
    return Child([sys.executable, "-c", script], env=dict(os.environ), name="the process", **more)


def test_what_libraries_print_is_no_answer_and_errors_keep_their_kind() -> None:
    with running(ECHO) as one:
        assert one.ask({"n": 1}) == {"got": {"n": 1}}
        with pytest.raises(DataError, match="no rows") as told:
            one.ask({"raise": "no rows"})
        assert told.value.fix == "mend it"
        assert one.ask({"n": 2}, seconds=LONG_S) == {"got": {"n": 2}}
    assert one.process.returncode == 0, "it ends when its input does"


def test_a_process_that_dies_says_its_last_words() -> None:
    with running("import sys; sys.exit('no room on the disk')") as one:
        with pytest.raises(Ended, match="the process ended with 1:\nno room on the disk") as told:
            one.receive()
        assert told.value.code == 1
        with pytest.raises(Ended):
            one.ask({})
    assert not one.running


def test_a_killed_process_is_told_and_half_a_line_is_no_answer() -> None:
    script = "import os, sys; print('{\"half\"', end='', flush=True); os.kill(os.getpid(), 9)"
    with running(script) as one, pytest.raises(Ended) as told:
        one.receive()
    assert told.value.code == -signal.SIGKILL


def test_silence_ends_at_the_limit_with_all_that_was_started(tmp_path: Path) -> None:
    """Also what holds its output open, and one that reads nothing of a long question."""
    file = tmp_path / "pid"
    script = (
        "import subprocess, sys, time\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(file)!r}, 'w').write(str(other.pid)); time.sleep(600)"
    )
    with running(script) as one:
        until(lambda: file.exists() and file.read_text())
        with pytest.raises(TooLate):
            one.ask({"long": "x" * (1 << 20)}, seconds=0.1)
    assert one.process.returncode == -signal.SIGKILL
    until(lambda: started(int(file.read_text())) is None)


def test_its_last_words_are_asked_for_while_it_is_closed() -> None:
    """By the thread that sends, say, which sees the end while another closes it."""
    one, failed, over = running("import sys; sys.exit(3)"), list[Exception](), threading.Event()

    def ask() -> None:
        try:
            while not over.is_set():
                one.words()
        except Exception as error:
            failed.append(error)

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    one.close()
    over.set()
    for thread in asking:
        thread.join()
    assert failed == [] and one.words() == ""


def test_what_has_left_the_group_holds_nobody_up() -> None:
    script = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(4)'], start_new_session=True)"
    )
    begun = time.monotonic()
    with running(script, keeps_words=False) as one:
        until(lambda: one.process.poll() is not None)
    with pytest.raises(Ended):
        one.receive(LONG_S)
    assert time.monotonic() - begun < LONG_S


@pytest.mark.slow
def test_a_flood_fills_no_memory_and_a_long_line_comes_in_parts() -> None:
    with running("while True: print('x' * 999, flush=True)", longest_bytes=100) as one:
        assert len(one.receive(LONG_S)) == 100
        until(lambda: one._lines.full())
        assert one._lines.qsize() == child.AHEAD
        one.close(0)
    assert one.process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("pipe", [0, 1])
def test_a_process_that_closes_a_pipe_and_goes_on_is_ended(
    pipe: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "PATIENCE_S", 0.1)
    script = (
        f"import os, time; print(1, flush=True); os.close({pipe}); print(2, file=__import__('sys').stderr)"
    )
    with running(f"{script}; time.sleep(600)") as one:
        assert one.receive(LONG_S) == b"1\n"
        until(lambda: one.words() == "2")
        with pytest.raises(Ended) as told:
            one.ask({"long": "x" * (1 << 20)})
        assert told.value.code == -signal.SIGKILL and not one.running


BOMBS = {
    "all at once": "for _ in range(6): os.fork()\nready(); time.sleep(600)",
    "each in the place of the one before": "ready()\nwhile True:\n  if os.fork(): os._exit(0)",
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("by", ["limit", "close", "error"])
def test_a_fork_bomb_ends_with_its_process(bomb: str, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "PATIENCE_S", 0.1)
    script = f"import os, time\ndef ready():\n  os.write(1, b'1\\n')\n{BOMBS[bomb]}"
    with suppress(ZeroDivisionError), running(script) as one:
        assert one.receive(LONG_S) == b"1\n"
        if by == "limit":
            with suppress(TooLate, Ended):
                while True:
                    one.receive(0.1)
        elif by == "error":
            raise ZeroDivisionError
    group = one.process.pid
    until(lambda: f" {group} " not in _alive())


def _alive() -> str:
    """The groups of all processes that run."""
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True, check=True)
    return "".join(f" {line.split()[0]} " for line in listed.stdout.splitlines() if line.split()[1][0] != "Z")


def test_closing_amid_a_question_wakes_who_waits() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with running("import time; time.sleep(600)") as one, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(one.receive)
        one.close(0)
        with pytest.raises(RunFailed, match="was closed during a request"):
            waiting.result(LONG_S)


def test_an_orphan_ends(tmp_path: Path) -> None:
    """Its parent was killed while it works: nobody waits for the answer."""
    file = tmp_path / "pid"
    script = (
        "import os, time\nfrom orchestrate.core import child\nchild.answering()\n"
        f"open({str(file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    )
    parent = (
        "import os, sys, time\nfrom orchestrate.core.child import Child\n"
        f"Child([sys.executable, '-c', {script!r}], env=dict(os.environ), name='it'); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        until(lambda: file.exists() and file.read_text())
        process.kill()
    until(lambda: started(int(file.read_text())) is None)
