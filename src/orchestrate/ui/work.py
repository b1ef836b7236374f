"""What pages have set going: it runs on in the background, and its run's page tells how it went."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from dataclasses import dataclass, field, replace

from orchestrate.errors import OrchestrateError, UsageError

_PATIENCE_S = 3.0
"""So long a page waits for what it has begun, before it shows that it goes on."""
_AT_ONCE = 4


@dataclass(frozen=True)
class Note:
    """One act on one run, and what came of it."""

    verb: str
    text: str = "under way"
    fix: str | None = None
    going: bool = True
    wrong: bool = False


@dataclass
class Work:
    """Of one server. Its acts end with it; what they began at a host goes on, as after any interruption."""

    _notes: dict[tuple[str, str], Note] = field(default_factory=dict[tuple[str, str], Note])
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_AT_ONCE, "ui-work"))

    def begin(self, run_id: str, verb: str, act: Callable[[], str]) -> None:
        """Does it, and returns when it is done, or goes on. What goes wrong at once is raised; later it is
        noted. Raises `UsageError` while the same is under way."""
        key = (run_id, verb)
        with self._lock:
            if (known := self._notes.get(key)) and known.going:
                raise UsageError(f"{verb} of {run_id} is under way already")
            self._notes[key] = Note(verb)
        done: Future[str] = self._threads.submit(act)
        done.add_done_callback(lambda future: self._ended(key, future))
        try:
            done.result(_PATIENCE_S)
        except TimeoutError:
            return

    def notes(self, run_id: str) -> list[Note]:
        with self._lock:
            return [note for (of, _), note in self._notes.items() if of == run_id]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self, key: tuple[str, str], future: Future[str]) -> None:
        with self._lock:
            note = replace(self._notes[key], going=False)
            error = None if future.cancelled() else future.exception()
            if isinstance(error, OrchestrateError):
                note = replace(note, text=error.message, fix=error.fix, wrong=True)
            elif error is not None or future.cancelled():
                note = replace(note, text=f"ended by a defect ({type(error).__name__})", wrong=True)
            else:
                note = replace(note, text=future.result())
            self._notes[key] = note
