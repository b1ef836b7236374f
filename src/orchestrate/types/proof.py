"""Records of a tuned model's expected behavior on any server, and of the checks that verify it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from orchestrate.types.record import Record


class Said(Record, frozen=True, kw_only=True):
    """An answer of the trained model, decoded greedily, for comparison with a server's answer."""

    text: str
    """Text without the end-of-turn token."""
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of each token, in nats."""
    margins: tuple[float, ...] = ()
    """Log-probability of each token minus that of the most likely other token, in nats. Empty in fingerprints
    of earlier versions."""
    pieces: tuple[bytes, ...] = ()
    """Bytes of each token's text. A character may span several tokens. Special tokens are empty."""
    ended: bool
    """True if the answer ended with an end-of-turn token, which is then the last id. Otherwise, the answer
    was cut off."""


class Probe(Record, frozen=True, kw_only=True):
    """A conversation, and the token ids of the prompt that the trainer renders from it."""

    kind: str
    """Kind of conversation, such as plain, system, multi-turn, tools, special tokens or Unicode."""
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] | None = None
    ids: tuple[int, ...]


class Canary(Record, frozen=True, kw_only=True):
    """A prompt that the base and the tuned model answer differently."""

    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] | None = None
    text: str | None = None
    """Prompt text, used instead of `messages` if the training rows consist of prompts and completions."""
    ids: tuple[int, ...]
    tuned: Said
    base: Said
    apart: float
    """Log-likelihood of the tuned model's answer under the tuned model minus that under the base model, in
    nats per token."""


class Fingerprint(Record, frozen=True, kw_only=True):
    """The fingerprint that identifies a served model. A fingerprint contains prompts from the training data,
    so it is stored with the run and never exported."""

    base_model: str
    base_hash: str
    template_hash: str
    stops: tuple[int, ...]
    stop_words: tuple[str, ...]
    precision: str
    """Precision used to compute the fingerprint: bf16 or fp32. Also names nf4 if the base model was loaded in
    4 bits."""
    noise: float
    """Numerical noise, in nats per token: the difference between the base model's log-probabilities when rows
    are processed one by one and in batches."""
    probes: tuple[Probe, ...]
    refused: dict[str, str] = {}
    """Kinds of prompts that the chat template rejects, each with the template's reason."""
    canaries: tuple[Canary, ...] = ()


class ProofStage(Record, frozen=True, kw_only=True):
    """One stage of a proof: tokens, answers, distance or stop."""

    name: str
    state: Literal["passed", "failed", "unknown"]
    """Result. `unknown` means that the server does not return the necessary data."""
    detail: str
    fix: str | None = None
    figures: dict[str, float] = {}


class Proof(Record, frozen=True, kw_only=True):
    """The result of checking whether a served model is the trained one."""

    run_id: str
    at: str
    """URL, folder or backend that serves the model."""
    engine: str
    model: str
    """Model name as requested."""
    state: Literal["proved", "in part", "failed"]
    """Result. `in part` means that nothing failed, but a stage could not be checked."""
    stages: tuple[ProofStage, ...]
    weights: str | None = None
    """Hash of the adapter, or of the full tuned weights, that the fingerprint belongs to."""
    created_at: datetime

    @property
    def badge(self) -> str:
        """The result in words, such as `proved`, `partly proven (not checked: tokens)` or `failed: stop`."""
        if self.state == "proved":
            return "proved"
        word = "failed" if self.state == "failed" else "unknown"
        stages = ", ".join(stage.name for stage in self.stages if stage.state == word)
        return f"failed: {stages}" if self.state == "failed" else f"partly proven (not checked: {stages})"


NOT_PROVED = "not proved"


def newest(proofs: Sequence[Proof]) -> list[Proof]:
    """Return the latest proof for each combination of location (`at`) and model name, newest first. `proofs`
    must be sorted oldest first."""
    found: dict[tuple[str, str], Proof] = {}
    for proof in reversed(proofs):
        found.setdefault((proof.at, proof.model), proof)
    return list(found.values())


def badge(proofs: Sequence[Proof]) -> str:
    """Summarize where a tuned model was proven to be the trained one, such as `proved at URL; failed: stop at
    FOLDER`."""
    return "; ".join(f"{proof.badge} at {proof.at}" for proof in newest(proofs)) or NOT_PROVED
