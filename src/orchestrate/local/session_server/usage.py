"""Token usage of a session server's callers, by hour, session and base model. Usage is written to disk
immediately, so a crash loses nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec

from orchestrate.core.files import Journal, private_folder, write_whole
from orchestrate.types import Record

HOUR_S = 3600
KINDS = ("train", "prefill", "sample")


class UsageBucket(Record, frozen=True, kw_only=True):
    """The key under which tokens are counted: caller, session, base model, kind of use and hour."""

    owner: str
    session: str
    base: str
    kind: str
    """Kind of use, one of `KINDS`."""
    hour: int
    """Hours since 1970-01-01 UTC."""


class UsageLine(Record, frozen=True, kw_only=True):
    """A line of the usage file, with the tokens of one request."""

    bucket: UsageBucket
    tokens: int


class UsageBook:
    def __init__(self, path: Path) -> None:
        """Open the usage file. Raises `DataError` if the file cannot be read."""
        private_folder(path.parent)
        self._journal = Journal[UsageLine](path, UsageLine)
        self._tokens: Counter[UsageBucket] = Counter()
        for line in self._journal.entries:
            self._tokens[line.bucket] += line.tokens
        if len(self._journal.entries) > 2 * len(self._tokens):  # one line for each bucket
            lines = (UsageLine(bucket=one, tokens=tokens) for one, tokens in self._tokens.items())
            write_whole(path, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
            self._journal = Journal[UsageLine](path, UsageLine)
        self._journal.entries.clear()

    def add(self, session: str, owner: str, base: str, at: float, used: dict[str, int]) -> None:
        """Record the tokens of an executed request. `used` maps kinds of use to numbers of tokens."""
        for kind, tokens in used.items():
            if tokens:
                bucket = UsageBucket(
                    owner=owner, session=session, base=base, kind=kind, hour=int(at // HOUR_S)
                )
                self._journal.append(UsageLine(bucket=bucket, tokens=tokens))
                self._journal.entries.clear()
                self._tokens[bucket] += tokens

    def between(self, owner: str, start: float, end: float) -> list[tuple[UsageBucket, int]]:
        """Return the owner's hourly usage for all hours that start within a time span, oldest first. Within
        an hour, the largest count comes first."""
        found = [
            (one, tokens)
            for one, tokens in self._tokens.items()
            if one.owner == owner and start <= one.hour * HOUR_S < end
        ]
        return sorted(found, key=lambda each: (each[0].hour, -each[1]))
