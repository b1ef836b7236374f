"""How far a work is where no bar can be shown: a line now and then, with what, how far and how long still."""

from __future__ import annotations

import time
from collections.abc import Callable

from orchestrate.commands.terminal.console import err, note
from orchestrate.text import duration

EVERY_S = 30.0


class Lines:
    """Into a log or a pipe; silent on a terminal, which has a bar."""

    def __init__(
        self, write: Callable[[str], None] = note, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._clock = write, clock
        self._begun = self._told = clock()

    def tell(self, what: str, done: float, total: float | None) -> None:
        """Both in one unit, whichever; `total` is `None` where it is not known."""
        now = self._clock()
        if now - self._told < EVERY_S:
            return
        self._told = now
        taken = now - self._begun
        if not total or not done:
            self._write(f"{what}: {duration(taken)} so far")
            return
        left = taken * max(0.0, total - done) / done
        self._write(f"{what}: {min(1.0, done / total):.0%}, about {duration(left)} left")


def lines() -> Lines | None:
    """`None` on a terminal."""
    return None if err.is_terminal else Lines()
