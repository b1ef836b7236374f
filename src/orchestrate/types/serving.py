"""A tuned model as it was written out for others."""

from __future__ import annotations

from orchestrate.types.jobs import ArtifactFile
from orchestrate.types.proof import Proof
from orchestrate.types.record import Record


class Export(Record, frozen=True, kw_only=True):
    """A folder that serves a tuned model elsewhere."""

    form: str
    """peft, merged, gguf, gguf-lora, ollama, vllm or hub."""
    folder: str
    files: tuple[ArtifactFile, ...]
    base_model: str
    licence: str | None = None
    commands: tuple[str, ...]
    """Commands that serve it there, one per line."""
    notes: tuple[str, ...] = ()
    """What is different there, and what to check."""
    proof: Proof | None = None
    """Proof of the folder, if it could be tried on this machine."""


class AdapterCost(Record, frozen=True, kw_only=True):
    """The cost of an adapter in addition to its base, measured on the machine that answers, as a server
    starts or at the end of an evaluation."""

    model: str
    load_s: float
    """Once."""
    token_s: float
    """Seconds per token."""
    base_token_s: float
    """Seconds per token of its base alone."""

    def __str__(self) -> str:
        more = 1000 * (self.token_s - self.base_token_s)
        share = self.token_s / self.base_token_s - 1
        return (
            f"{self.model}: loading the adapter took {1000 * self.load_s:.0f} ms, once; a token takes "
            f"{1000 * self.token_s:.1f} ms, {more:+.1f} ms ({share:+.0%}) compared with the base alone"
        )


class Merged(Record, frozen=True, kw_only=True):
    """One adapter merged from several of one base, or one model from several of one architecture."""

    folder: str
    files: tuple[ArtifactFile, ...]
    base_model: str
    method: str
    """The method that was used: `ties_svd` if ranks differ."""
    parts: tuple[str, ...]
    weights: tuple[float, ...]
    ranks: tuple[int, ...]
    rank: int | None
    """`None` for complete models, which have none."""
    error: float | None
    """Relative distance of an adapter from the weighted sum of its parts, over all adapted matrices."""
    notes: tuple[str, ...] = ()
    proof: Proof | None = None
