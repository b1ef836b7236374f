"""Progress display: a bar on a terminal, and an occasional line elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from rich.console import Console

from orchestrate.core.underway import BYTES, ProgressCallback
from orchestrate.text import duration, size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

EVERY_S = 30.0
SHOWN_AFTER_S = 0.7
"""Seconds before a progress bar appears."""


class WaitingTask(Struct):
    """A task in progress."""

    what: str
    unit: str
    begun: float
    done: float = 0.0
    total: float | None = None
    detail: str = ""
    task: TaskID | None = None

    def progress_text(self) -> str:
        """Format the progress, such as `3 of 10`. Returns an empty string if it is unknown."""
        of = f" of {self._amount(self.total)}" if self.total else ""
        parts = [f"{self._amount(self.done)}{of}" if self.done or of else "", self.detail]
        return ", ".join(part for part in parts if part)

    def time_text(self, now: float) -> str:
        taken = now - self.begun
        if not self.total or not self.done:
            return f"{duration(taken)} so far"
        return f"about {duration(taken * max(0.0, self.total - self.done) / self.done)} left"

    def line(self, now: float) -> str:
        return (
            f"{self.what}: {', '.join(part for part in (self.progress_text(), self.time_text(now)) if part)}"
        )

    def _amount(self, value: float) -> str:
        return size(int(value)) if self.unit == BYTES else f"{value:,.0f}"


class Bars(Struct):
    """Progress bars for all tasks of a command. Each thread and each nested task has its own line."""

    console: Console
    clock: Callable[[], float] = time.monotonic
    _open: list[WaitingTask] = msgspec.field(default_factory=list[WaitingTask])
    _lock: threading.RLock = msgspec.field(default_factory=threading.RLock)
    _shown: Progress | None = None
    _ended: threading.Event = msgspec.field(default_factory=threading.Event)
    _printed_at: float = 0.0

    @contextmanager
    def __call__(self, what: str, unit: str = "") -> Generator[ProgressCallback]:
        now = self.clock()
        mine = WaitingTask(what, unit, now)
        with self._lock:
            if not self._open:
                self._printed_at, self._ended = now, threading.Event()
                threading.Thread(target=self._tick, args=(self._ended,), daemon=True).start()
            self._open.append(mine)

        def update(done: float, total: float | None = None, detail: str = "", /) -> None:
            mine.done, mine.total, mine.detail = done, total if total else mine.total, detail or mine.detail

        try:
            yield update
        finally:
            with self._lock:
                self._open.remove(mine)
                self.refresh()
                if not self._open:
                    self._ended.set()
                    self._hide()

    def refresh(self) -> None:
        """Show the current progress."""
        with self._lock:
            now = self.clock()
            if self.console.is_terminal:
                self._draw(now)
            elif now - self._printed_at >= EVERY_S:
                self._printed_at = now
                for one in self._open:
                    self.console.print(one.line(now), style="dim", soft_wrap=True)

    def _tick(self, ended: threading.Event) -> None:
        while not ended.wait(0.2):
            self.refresh()

    def _draw(self, now: float) -> None:
        due = [one for one in self._open if now - one.begun >= SHOWN_AFTER_S]
        if due and self._shown is None:
            self._shown = _bars(self.console)
        if self._shown is None:
            return
        known = {one.task for one in self._open}
        for task in [task for task in self._shown.task_ids if task not in known]:
            self._shown.remove_task(task)
        for one in due:
            if one.task is None:
                one.task = self._shown.add_task(one.what, total=None, far="", long="")
            self._shown.update(
                one.task,
                completed=one.done,
                total=one.total,
                far=one.progress_text(),
                long=one.time_text(now),
            )
        self._shown.start()
        self._shown.refresh()

    def _hide(self) -> None:
        shown, self._shown = self._shown, None
        if shown is not None:
            shown.stop()


def _bars(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress

    columns = ("{task.description}", BarColumn(bar_width=24), "{task.fields[far]}", "{task.fields[long]}")
    # Other code writes data to stdout directly, so rich must not redirect it through the progress display.
    return Progress(*columns, console=console, transient=True, auto_refresh=False, redirect_stdout=False)
