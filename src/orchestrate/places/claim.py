"""Which worker has a run, of those that may have been started for it."""

from __future__ import annotations

import secrets

import msgspec

from orchestrate.places.depot import StoredRun
from orchestrate.types import Record


class Attempt(Record, frozen=True, kw_only=True):
    """`attempts/00000001.json`, by the worker that has it."""

    token: str
    used_s: float = 0.0
    """With the latest report."""


class Claim:
    """The newest attempt has the run: a worker that finds another above its own ends itself. So a second one
    that was started by mistake costs minutes, and never a run that is trained twice."""

    def __init__(self, stored: StoredRun) -> None:
        self.stored = stored
        earlier = _attempts(stored)
        self.number = len(earlier) + 1
        self.earlier_s = sum(one.used_s for one in earlier)
        self._mine = Attempt(token=secrets.token_hex(8))
        self.used(0.0)

    def used(self, seconds: float) -> None:
        self._mine = msgspec.structs.replace(self._mine, used_s=seconds)
        self.stored.write(f"attempts/{_name(self.number)}", self._mine.to_json())

    @property
    def holds(self) -> bool:
        names = self.stored.depot.names(f"{self.stored.folder}/attempts")
        data = self.stored.read(f"attempts/{_name(self.number)}")
        mine = data is not None and Attempt.from_json(data).token == self._mine.token
        return mine and names[-1:] == [_name(self.number)]


def used_s(stored: StoredRun) -> float:
    """By all attempts, as far as they could report."""
    return sum(one.used_s for one in _attempts(stored))


def attempts(stored: StoredRun) -> int:
    """How many have had the run."""
    return len(stored.depot.names(f"{stored.folder}/attempts"))


def _attempts(stored: StoredRun) -> list[Attempt]:
    names = stored.depot.names(f"{stored.folder}/attempts")
    return [
        Attempt.from_json(data) for name in names if (data := stored.read(f"attempts/{name}")) is not None
    ]


def _name(number: int) -> str:
    return f"{number:08d}.json"
