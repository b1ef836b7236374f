"""A tuned model on this machine, with its provenance."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from orchestrate.catalog.models import License, license_of, lookup
from orchestrate.core.tensors import tensors
from orchestrate.errors import UsageError
from orchestrate.local.answers.provenance import trained_in_four_bit
from orchestrate.local.model.files import local_folder
from orchestrate.types import Artifact, Evaluation, Run

_MOST_RANK = 65_536
_LONGEST = 100
"""The maximum length of a slug. It leaves room for the rest of a file name."""


def hub_name(base: str) -> str:
    """Return a base model's Hub id if it has one, else its name. Hosts have their own ids, such as
    `accounts/fireworks/models/qwen3-8b`."""
    known = None if local_folder(base) else lookup(base)
    return known.hub if known is not None and known.hub else base


def served_base(base: str) -> str:
    """Return the name under which a base model is served: its Hub id, or the name of its folder."""
    name = hub_name(base)
    return Path(name).resolve().name if Path(name).is_dir() else name


def table_of(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the table `name` from a provenance file. Returns an empty table if the value is missing or not a
    table, because a file from someone else may be invalid."""
    found = values.get(name)
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


@dataclass(frozen=True)
class TunedModel:
    """A tuned model. `folder` contains an adapter or a full model. `base` is the base model that
    `orchestrate.local` loads."""

    name: str
    """The name under which the model is served and shown."""
    folder: Path
    base: str
    kind: str
    """Kind of the model: adapter, merged or full."""
    run: Run | None = None
    evaluations: Sequence[Evaluation] = ()

    @classmethod
    def of(cls, run: Run, artifact: Artifact, evaluations: Sequence[Evaluation]) -> TunedModel:
        """Build the record of a run's tuned model from its files. Raises `UsageError` if the files do not
        name their base model."""
        folder = Path(artifact.folder)
        kind = "adapter" if (folder / "adapter_config.json").is_file() else artifact.kind
        base = artifact.base_model
        if base is None:
            raise UsageError(f"the files in {folder} do not name the tuned model's base model")
        return cls(str(run.spec.get("suffix") or run.id), folder, hub_name(base), kind, run, evaluations)

    @property
    def slug(self) -> str:
        """The model's name in a form that every engine, shell and file system accepts."""
        return re.sub(r"[^A-Za-z0-9._-]", "-", self.name)[:_LONGEST].strip("-.") or "tuned"

    @property
    def adapter(self) -> bool:
        return self.kind == "adapter"

    @property
    def config(self) -> dict[str, Any]:
        """Return the adapter's configuration. Raises `UsageError` for a full model."""
        try:
            return msgspec.json.decode(
                (self.folder / "adapter_config.json").read_bytes(), type=dict[str, Any]
            )
        except OSError as error:
            raise UsageError(
                f"{self.name} is a full model, not an adapter",
                fix="orchestrate export --to merged",
            ) from error
        except msgspec.MsgspecError as error:
            raise UsageError(
                f"could not read the adapter_config.json in {self.folder}: {error}",
                fix="download or export the adapter again",
            ) from error

    @property
    def rank(self) -> int:
        """The adapter's largest rank. Raises `UsageError` if its configuration has none."""
        config = self.config
        ranks = [config.get("r"), *table_of(config, "rank_pattern").values()]
        if not all(isinstance(rank, int) and 0 < rank <= _MOST_RANK for rank in ranks):
            raise UsageError(
                f"the adapter_config.json in {self.folder} has no rank (r, rank_pattern) between 1 and "
                f"{_MOST_RANK}",
                fix="download or export the adapter again",
            )
        return max(cast("list[int]", ranks))

    def require_readable(self) -> None:
        """Raise `UsageError` for an adapter whose weights are truncated or invalid."""
        try:
            tensors(self.folder / "adapter_model.safetensors")
        except (OSError, ValueError) as error:
            raise UsageError(
                f"could not read the adapter in {self.folder}: {error}",
                fix="download or export the adapter again",
            ) from error

    @property
    def four_bit(self) -> bool:
        """True if the model was trained on a 4-bit base model."""
        return bool(trained_in_four_bit(self.provenance))

    @property
    def base_name(self) -> str:
        """The base model's Hub id if it has one, else its name."""
        return hub_name(self.base)

    @property
    def license(self) -> License | None:
        return license_of(self.base)

    @property
    def provenance(self) -> dict[str, Any]:
        """Provenance of the model: the content of the file next to the weights or, if that cannot be read,
        values from the run's record."""
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
