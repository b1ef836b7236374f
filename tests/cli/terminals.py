"""Commands on real terminals, which can be closed, and the watchers that they leave behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import sys
import threading
from pathlib import Path

from tests import command
from tests.waiting import until

from orchestrate.local import run

ORCHESTRATE = [sys.executable, "-m", "orchestrate.cli"]
PATIENCE_S = 240.0


class Terminal:
    """A command in a session of its own on a terminal of its own, which somebody reads: a full one would hold
    the command up."""

    def __init__(self, env: dict[str, str], cwd: Path, *words: str) -> None:
        self.shown = b""
        self._end, self._inside = pty.openpty()
        tty = Path(os.ttyname(self._inside))
        self._process = command.start(
            command.orchestrate, [*words], cwd=cwd, env=env, streams=[tty] * 3, terminal=True
        )
        self._closing = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        ended = self._process.sentinel
        while not self._closing.is_set():
            # Never in the middle of a read when it is closed: that would keep the terminal open.
            ready = select.select([self._end, ended], [], [], 0.05)[0]
            if self._end in ready:
                self.shown += os.read(self._end, 65536)
            elif ended in ready:
                return

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def until(self, word: bytes) -> None:
        until(lambda: word in self.shown, f"{word!r} on the terminal")

    def send(self, number: int) -> None:
        os.kill(self._process.pid or 0, number)

    def close(self) -> None:
        """As a terminal window is closed: the kernel sends SIGHUP."""
        self._closing.set()
        self.finish()

    def finish(self) -> int:
        """The command's exit code, the negative signal if one ended it."""
        self._reader.join()
        for side in (self._end, self._inside):
            os.close(side)
        return command.ended(self._process, PATIENCE_S)


def watchers(folder: Path, home: str = "home") -> list[int]:
    """Process ids of the background watchers of this home that live."""
    found: list[int] = []
    for file in (folder / home / "watchers").glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            watcher = json.loads(file.read_text())
            if run.started(watcher["pid"]) == watcher["started"]:
                found.append(watcher["pid"])
    return found


def started(folder: Path) -> list[int]:
    """Process ids of all that were started to be one, also of those that wait for the lock; of a fork the
    program that stands for it (`tests/forking.py`)."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if b"orchestrate.runs.watch" in (entry / "cmdline").read_bytes().split(b"\0"):
                home = f"ORCHESTRATE_HOME={folder / 'home'}".encode()
                if home in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def told(tmp_path: Path) -> list[str]:
    file = tmp_path / "told"
    return [json.loads(line)["run"] for line in file.read_text().splitlines()] if file.exists() else []
