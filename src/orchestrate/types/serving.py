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
    """That serve it there, one a line."""
    notes: tuple[str, ...] = ()
    """What is different there, and what to look at."""
    proof: Proof | None = None
    """Of the folder, where it could be tried on this machine."""


class Merged(Record, frozen=True, kw_only=True):
    """One adapter made of several of one base."""

    folder: str
    files: tuple[ArtifactFile, ...]
    base_model: str
    method: str
    """The form that was used: `ties_svd` where ranks differ."""
    parts: tuple[str, ...]
    weights: tuple[float, ...]
    ranks: tuple[int, ...]
    rank: int
    error: float
    """How far it is from the weighted sum of its parts, relative, over all adapted matrices."""
    notes: tuple[str, ...] = ()
    proof: Proof | None = None
