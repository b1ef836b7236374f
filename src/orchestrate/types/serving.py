"""Records of exported and merged models, and of the cost of adapters."""

from __future__ import annotations

from orchestrate.types.jobs import ArtifactFile
from orchestrate.types.proof import Proof
from orchestrate.types.record import Record


class Export(Record, frozen=True, kw_only=True):
    """A folder with everything needed to serve a tuned model elsewhere."""

    form: str
    """Format of the export: peft, merged, gguf, gguf-lora, ollama, vllm or hub."""
    folder: str
    files: tuple[ArtifactFile, ...]
    base_model: str
    license: str | None = None
    commands: tuple[str, ...]
    """Commands that serve the export, one per line."""
    notes: tuple[str, ...] = ()
    """Notes on what differs in this format and what to check."""
    proof: Proof | None = None
    """Proof of the folder, if it could be tested on this machine."""


class AdapterCost(Record, frozen=True, kw_only=True):
    """The extra time that an adapter needs compared with its base model alone. Measured on the serving
    machine when a server starts, or at the end of an evaluation."""

    model: str
    load_s: float
    """Time to load the adapter, in seconds. Loading happens once."""
    token_s: float
    """Seconds per token with the adapter."""
    base_token_s: float
    """Seconds per token with the base model alone."""

    def __str__(self) -> str:
        more = 1000 * (self.token_s - self.base_token_s)
        share = self.token_s / self.base_token_s - 1
        return (
            f"{self.model}: loading the adapter took {1000 * self.load_s:.0f} ms once. Each token "
            f"takes {1000 * self.token_s:.1f} ms ({more:+.1f} ms, {share:+.0%} relative to the base alone)"
        )


class Merged(Record, frozen=True, kw_only=True):
    """An adapter merged from several adapters of one base model, or a model merged from several models of one
    architecture."""

    folder: str
    files: tuple[ArtifactFile, ...]
    base_model: str
    method: str
    """Merge method that was used, such as `ties_svd` if ranks differ."""
    parts: tuple[str, ...]
    weights: tuple[float, ...]
    ranks: tuple[int, ...]
    rank: int | None
    """Rank of the merged adapter. `None` for full models."""
    error: float | None
    """Relative error of the merged adapter: its distance from the weighted sum of its parts, over all adapted
    matrices."""
    notes: tuple[str, ...] = ()
    proof: Proof | None = None
