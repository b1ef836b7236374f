"""What a tuned model must still do wherever it is served, and what was seen of that."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from orchestrate.types.record import Record


class Said(Record, frozen=True, kw_only=True):
    """An answer as the trainer's model gives it, with the likeliest token each time."""

    text: str
    """Without the token that ended it."""
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of each id, in nats."""
    pieces: tuple[bytes, ...] = ()
    """Text of each id: a letter may begin in one and end in another. Special tokens are empty."""
    ended: bool
    """Whether it ended with an end-of-turn token, which is then the last id; otherwise it was cut off."""


class Probe(Record, frozen=True, kw_only=True):
    """A conversation, and the ids with which the trainer requests its next answer."""

    kind: str
    """plain, system, multi-turn, tools, special tokens, Unicode ..."""
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] | None = None
    ids: tuple[int, ...]


class Canary(Record, frozen=True, kw_only=True):
    """A prompt that the base and the tuned model answer differently."""

    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] | None = None
    text: str | None = None
    """Used instead of messages if the rows are prompts and completions."""
    ids: tuple[int, ...]
    tuned: Said
    base: Said
    apart: float
    """Nats per token by which the tuned model finds its own answer likelier than the base does."""


class Sheet(Record, frozen=True, kw_only=True):
    """The fingerprint that identifies a served model. It contains prompts of the training data, so it is
    stored with the run and never exported."""

    base_model: str
    base_hash: str
    template_hash: str
    stops: tuple[int, ...]
    stop_words: tuple[str, ...]
    precision: str
    """Precision of these numbers: bf16, fp32; with nf4 if the base was in four bits."""
    noise: float
    """Nats per token by which the base's log-probabilities differ when it reads the same rows alone and
    in a batch."""
    probes: tuple[Probe, ...]
    refused: dict[str, str] = {}
    """Kinds of prompts that the chat template rejects, with its reason."""
    canaries: tuple[Canary, ...] = ()


class ProofStage(Record, frozen=True, kw_only=True):
    """One of: tokens, answers, distance, stop."""

    name: str
    state: Literal["passed", "failed", "unknown"]
    """`unknown`: the server does not return what is needed."""
    detail: str
    fix: str | None = None
    figures: dict[str, float] = {}


class Proof(Record, frozen=True, kw_only=True):
    """The result of checking whether the model served at a place is the trained one."""

    run_id: str
    at: str
    """URL, folder or backend."""
    engine: str
    model: str
    """The model name that was requested."""
    state: Literal["proved", "in part", "failed"]
    """`in part`: nothing failed, but a stage could not be checked."""
    stages: tuple[ProofStage, ...]
    weights: str | None = None
    """Hash of the adapter, or of the full tuned weights, that the fingerprint belongs to."""
    created_at: datetime

    @property
    def badge(self) -> str:
        """The result in words: `proved`, `proved in part (tokens not seen)`, `failed: stop`."""
        if self.state == "proved":
            return "proved"
        word = "failed" if self.state == "failed" else "unknown"
        stages = ", ".join(stage.name for stage in self.stages if stage.state == word)
        return f"failed: {stages}" if self.state == "failed" else f"partly proved (not checked: {stages})"


NOT_PROVED = "not proved"


def newest(proofs: Sequence[Proof]) -> list[Proof]:
    """Return the last proof of each place and name, newest first. `proofs` are sorted oldest first."""
    found: dict[tuple[str, str], Proof] = {}
    for proof in reversed(proofs):
        found.setdefault((proof.at, proof.model), proof)
    return list(found.values())


def badge(proofs: Sequence[Proof]) -> str:
    """Summarize where a tuned model was proved to be what was trained: `proved at URL; failed: stop at
    FOLDER`."""
    return "; ".join(f"{proof.badge} at {proof.at}" for proof in newest(proofs)) or NOT_PROVED
