"""The training engine of this machine. Its workers run in processes of their own and alone import torch.

`launch` starts a job, `RunDir` reads and steers it, `Generator` asks a model; all three need no torch here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate.attributes import late

if TYPE_CHECKING:
    from orchestrate.local.answers.generation import Generator
    from orchestrate.local.job import Adapter, Hyper, LocalJob
    from orchestrate.local.run.launching import launch, resume
    from orchestrate.local.run.rundir import RunDir, State

__all__ = ["Adapter", "Generator", "Hyper", "LocalJob", "RunDir", "State", "launch", "resume"]

_HOMES = {
    "Generator": "answers.generation",
    "launch": "run.launching",
    "resume": "run.launching",
    "Adapter": "job",
    "Hyper": "job",
    "LocalJob": "job",
    "RunDir": "run.rundir",
    "State": "run.rundir",
}


__getattr__ = late(__name__, _HOMES)
