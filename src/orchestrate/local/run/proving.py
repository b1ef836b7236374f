"""What a run keeps so that its model can be known again wherever it is served. Imports torch."""

# torch, transformers and numpy describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from orchestrate.files import write_whole
from orchestrate.local.encoding.encoding import Template
from orchestrate.local.job import LocalJob
from orchestrate.local.model.files.models import ModelFolder
from orchestrate.local.model.loaded import Loaded
from orchestrate.local.model.sampling.sampling import Sampler
from orchestrate.local.objectives.grpo import padded_attention
from orchestrate.local.proof import finding, prompts
from orchestrate.local.run.rundir import RunDir

PATCHED = ("compile", "unsloth")
"""Engines that would compile anew for each length of an answer: their sheets are found when they are
needed."""


def keep_sheet(run: RunDir, job: LocalJob, loaded: Loaded, template: Template, folder: ModelFolder) -> bool:
    """Writes `proof.json` while base and tuned model are both here; False where one of them is not."""
    if job.adapter.full or loaded.choice.name in PATCHED:
        return False
    files = [Path(file) for file in (job.validation, job.train) if file]
    found = finding.find(
        finding.Models(_using(loaded), template, Sampler.of(template, folder, loaded.device)),
        next((p for p in (prompts.of_data(f, prompts.CANDIDATES) for f in files) if p), []),
        base_model=folder.hub_id or str(folder.path),
        base_hash=folder.fingerprint(),
        precision=loaded.precision.name + (" on nf4" if job.adapter.type == "qlora" else ""),
        context=folder.config.get("max_position_embeddings"),
    )
    write_whole(run.proof, found.to_json())
    return True


def _using(loaded: Loaded) -> Any:
    @contextmanager
    def using(base: bool) -> Generator[Any]:
        with loaded.judging(), torch.no_grad(), padded_attention(loaded.inner):
            if base:
                with loaded.model.disable_adapter():
                    yield loaded.model
            else:
                yield loaded.model

    return using
