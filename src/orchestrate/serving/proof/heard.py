"""What a served model said, and what is asked of a place that serves one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrate.types import Canary, Probe

MORE_TOKENS = 16
"""Asked for beyond a canary's answer: a server that does not stop goes on."""


@dataclass(frozen=True)
class Heard:
    """An answer with all that the place tells of it."""

    text: str
    ended: bool | None = None
    ids: Sequence[int] | None = None
    """Of the answer, with the token that ended it where that is told."""
    pieces: Sequence[bytes] | None = None
    """Its tokens as they are written."""
    logprobs: Sequence[float] | None = None
    """Of each token of `ids` or `pieces`, in nats."""


@dataclass(frozen=True)
class Asked:
    """How a place sees a prompt: its ids, or only how many they are."""

    ids: Sequence[int] | None = None
    count: int | None = None
    refused: str | None = None
    """Why it does not take the prompt."""


class Place(Protocol):
    """Where a tuned model answers."""

    at: str
    model: str
    """The name by which the tuned model is asked."""
    notes: list[str]

    @property
    def engine(self) -> str: ...

    def prompts(self, probes: Sequence[Probe]) -> list[Asked]: ...

    def answers(self, canaries: Sequence[Canary], *, base: bool) -> list[Heard] | None:
        """The likeliest answers; `None` where the base does not answer there."""
        ...

    def scores(self, canaries: Sequence[Canary], *, base: bool) -> list[Sequence[float]] | None:
        """Nats of the ids of each canary's known answer, of its beginning where not all are told; `None`
        where the place tells none, and nothing has to be asked that `answers` did not."""
        ...


def along(heard: Heard, known: str, ids: Sequence[int]) -> Sequence[float]:
    """The log-probabilities of the tokens up to where the answer leaves the known one."""
    if heard.logprobs is None:
        return ()
    if heard.ids is not None:
        same = next((n for n, (a, b) in enumerate(zip(heard.ids, ids, strict=False)) if a != b), None)
        return heard.logprobs[: min(len(heard.ids), len(ids)) if same is None else same]
    if heard.pieces is None:
        return ()
    wanted, said, taken = known.encode(), b"", 0
    for piece in heard.pieces[: len(ids)]:
        said += piece
        if not wanted.startswith(said):
            break
        taken += 1
    return heard.logprobs[:taken]
