"""Observed answers of a served model, and the interface that endpoints implement for the proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from orchestrate.types import Canary, Probe, Said

MORE_TOKENS = 16
"""Number of tokens to request beyond the length of a canary's answer, to detect servers that don't stop at
its end."""


@dataclass(frozen=True)
class ObservedAnswer:
    """An answer, with all details that the endpoint reports."""

    text: str
    ended: bool | None = None
    ids: Sequence[int] | None = None
    """Tokens of the answer, including the end-of-turn token if the endpoint reports it."""
    pieces: Sequence[bytes] | None = None
    """The bytes of each token. If the endpoint only reports complete characters, tokens that share a
    character are joined."""
    logprobs: Sequence[float] | None = None
    """The log-probability in nats of each token of `ids`, or of the last token in each of `pieces`."""


@dataclass(frozen=True)
class PromptView:
    """A prompt as the endpoint tokenizes it: its token ids, or only their number."""

    ids: Sequence[int] | None = None
    count: int | None = None
    refused: str | None = None
    """The reason why the endpoint rejected the prompt. `None` if it was accepted."""


class TunedEndpoint(Protocol):
    """An endpoint that serves a tuned model."""

    at: str
    model: str
    """Name of the tuned model in requests."""
    notes: list[str]

    @property
    def engine(self) -> str: ...

    def prompts(self, probes: Sequence[Probe]) -> list[PromptView]: ...

    def answers(self, canaries: Sequence[Canary], *, base: bool) -> list[ObservedAnswer] | None:
        """Return the answers to the canaries at temperature 0, from the base model if `base` is set. Returns
        `None` if the endpoint does not serve the base model."""
        ...

    def scores(self, canaries: Sequence[Canary], *, base: bool) -> list[Sequence[float | None]] | None:
        """Return the log-probability, in nats, of each token of each canary's known answer, as one list per
        canary. A list may be shorter than the answer, and missing values are `None`. Returns `None` instead
        of lists if the endpoint reports no log-probabilities."""
        ...


def along(observed: ObservedAnswer, known: Said) -> Sequence[float | None]:
    """Return the log-probabilities of the known answer's tokens, up to the first token that differs in the
    observed answer. The value is `None` for a token that the endpoint reports as one piece with the next
    token."""
    if observed.logprobs is None:
        return ()
    if observed.ids is not None:
        pairs = enumerate(zip(observed.ids, known.ids, strict=False))
        same = next((n for n, (a, b) in pairs if a != b), None)
        return observed.logprobs[: min(len(observed.ids), len(known.ids)) if same is None else same]
    return _by_bytes(observed.pieces or (), observed.logprobs, known)


def _by_bytes(pieces: Sequence[bytes], logprobs: Sequence[float], known: Said) -> Sequence[float | None]:
    """Match answer and tokens by bytes. A server that only reports complete characters, such as llama.cpp's,
    joins tokens that share a character and reports the log-probability of the last one."""
    wanted = b"".join(known.pieces) or known.text.encode()
    lengths = accumulate(len(piece) for piece in known.pieces)
    places = {end: place for place, end in reversed(list(enumerate(lengths)))}
    found: list[float | None] = []
    said = b""
    for piece, value in zip(pieces, logprobs, strict=True):
        said += piece
        if not wanted.startswith(said) or len(found) == len(known.ids):
            break
        if not piece:  # the end of a turn, which is not shown
            continue
        if not known.pieces and not piece.isascii():
            break  # which tokens an entry is made of is not known of answers kept without their pieces
        place = places.get(len(said)) if known.pieces else len(found)
        if place is None:
            break  # other tokens than the trainer's
        found += [None] * (place - len(found))
        found.append(value)
    return found
