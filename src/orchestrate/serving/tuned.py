"""A tuned model that lies on this machine, with what is known of how it came to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from orchestrate.catalog.licences import Licence, licence_of
from orchestrate.catalog.models import lookup
from orchestrate.errors import UsageError
from orchestrate.types import Artifact, Evaluation, Run


def hub_name(base: str) -> str:
    """As the hub calls a base model, where it has a name there."""
    known = lookup(base)
    return known.hub if known is not None and known.hub else base


@dataclass(frozen=True)
class Tuned:
    """`folder` holds an adapter, or a whole model; `base` is what `orchestrate.local` loads it on."""

    name: str
    """By which it is served, and called in what is written."""
    folder: Path
    base: str
    kind: str
    """adapter, merged or full."""
    run: Run | None = None
    evaluations: Sequence[Evaluation] = ()

    @classmethod
    def of(cls, run: Run, artifact: Artifact, evaluations: Sequence[Evaluation]) -> Tuned:
        """Raises `UsageError` when the files do not say which base they belong to."""
        folder = Path(artifact.folder)
        kind = "adapter" if (folder / "adapter_config.json").is_file() else artifact.kind
        base = artifact.base_model
        if base is None:
            raise UsageError(f"the tuned model in {folder} does not say which base it belongs to")
        return cls(str(run.spec.get("suffix") or run.id), folder, base, kind, run, evaluations)

    @property
    def adapter(self) -> bool:
        return self.kind == "adapter"

    @property
    def config(self) -> dict[str, Any]:
        """Of the adapter. Raises `UsageError` for a whole model."""
        try:
            return msgspec.json.decode(
                (self.folder / "adapter_config.json").read_bytes(), type=dict[str, Any]
            )
        except OSError as error:
            raise UsageError(
                f"{self.name} is a whole model, not an adapter on a base",
                fix="orchestrate export --to merged",
            ) from error
        except msgspec.MsgspecError as error:
            raise UsageError(
                f"the adapter_config.json in {self.folder} cannot be read: {error}",
                fix="download or export the adapter again",
            ) from error

    @property
    def rank(self) -> int:
        """The greatest of the adapter."""
        config = self.config
        pattern: dict[str, int] = config.get("rank_pattern") or {}
        return max(int(config["r"]), *pattern.values(), 1)

    @property
    def four_bit(self) -> bool:
        """Whether it was trained on the base in four bits."""
        adapter: dict[str, Any] = self.passport.get("adapter") or {}
        return adapter.get("type") == "qlora"

    @property
    def base_name(self) -> str:
        """As the hub calls it, where it has a name there."""
        return hub_name(self.base)

    @property
    def licence(self) -> Licence | None:
        return licence_of(self.base)

    @property
    def passport(self) -> dict[str, Any]:
        """What came with the weights, else what the run's record says."""
        try:
            return msgspec.json.decode((self.folder / "passport.json").read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.MsgspecError):
            pass
        if self.run is None:
            return {"base_model": self.base, "kind": self.kind}
        return {
            "ref": self.run.ref,
            "kind": self.kind,
            "base_model": self.base_name,
            "base_model_name": self.run.model,
            "dataset_digest": self.run.dataset_digest,
            "spec": self.run.spec,
            "backend": self.run.provider,
            "job_id": self.run.job_id,
            "finished_at": self.run.finished_at,
        }
