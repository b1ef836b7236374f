"""What a sync found."""

from __future__ import annotations

import msgspec

from orchestrate.errors import OrchestrateError
from orchestrate.text import count
from orchestrate.types import Event

_NAMED = (
    "adopted",
    "not_made",
    "unsettled",
    "unsent",
    "elsewhere",
    "gone",
    "uncancelled",
    "paused",
    "changed",
    "ended",
    "capped",
)

_WORDS = {"elsewhere": "in another account, or this key has no right to see them"}


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A host that could not be asked; its runs stay as they are."""

    provider: str
    message: str
    retryable: bool
    retry_after_s: float | None = None


class SyncReport(msgspec.Struct, kw_only=True):
    """What a sync found. Runs are named by id."""

    checked: int = 0
    adopted: list[str] = []
    """Runs whose job was found by its ref."""
    not_made: list[str] = []
    """Runs that were settled: the host has no job of theirs. They can be sent again."""
    unsettled: list[str] = []
    """Runs of which it is too early to tell."""
    unsent: list[str] = []
    """Runs whose submit was interrupted before anything was sent. They can be sent again."""
    elsewhere: list[str] = []
    """Runs of another account than that of the key, or that the key has no right to see: nothing was
    concluded about them."""
    gone: list[str] = []
    """Runs whose job their host no longer has."""
    uncancelled: list[str] = []
    """Runs whose job goes on though their host was asked to end it; it was asked again."""
    paused: list[str] = []
    changed: list[str] = []
    ended: list[str] = []
    capped: list[str] = []
    """Runs that passed their cap and were told to end."""
    alarms: list[Event] = []
    hosting: list[str] = []
    """What is to be told of deployments, a sentence each."""
    ending: list[str] = []
    """Runs whose deployment is to end, and that the host still has."""
    failures: list[Failure] = []
    asked: int = 0
    """Requests to hosts, about: the pages of their lists and what was asked one by one."""

    def failed(self, provider: str, error: OrchestrateError) -> None:
        failure = Failure(
            provider=provider,
            message=error.message,
            retryable=error.retryable,
            retry_after_s=getattr(error, "retry_after_s", None),
        )
        if failure not in self.failures:
            self.failures.append(failure)

    def __str__(self) -> str:
        parts = [f"{count(self.checked, 'open run')} checked"]
        for name in _NAMED:
            if runs := getattr(self, name):
                what = _WORDS.get(name, name.replace("_", " "))
                parts.append(f"{what}: {', '.join(runs)}")
        parts += self.hosting
        if self.ending:
            parts.append(f"asked to end, and still up: {', '.join(self.ending)}")
        parts += [f"ALARM: {alarm.message}" for alarm in self.alarms]
        parts += [f"{failure.provider} could not be asked: {failure.message}" for failure in self.failures]
        return "\n".join(parts)
