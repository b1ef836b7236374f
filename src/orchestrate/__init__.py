"""Orchestrate: one dataset, one spec, any backend. The public names, imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate.attributes import late

__version__ = "0.1.0"

if TYPE_CHECKING:
    from orchestrate.aio import AsyncOrchestrator as AsyncOrchestrator
    from orchestrate.deployment import DeploymentHandle as DeploymentHandle
    from orchestrate.handle import RunHandle as RunHandle
    from orchestrate.service import Orchestrator as Orchestrator
    from orchestrate.spec import DPO as DPO
    from orchestrate.spec import RFT as RFT
    from orchestrate.spec import SFT as SFT
    from orchestrate.spec import Full as Full
    from orchestrate.spec import JobSpec as JobSpec
    from orchestrate.spec import LoRA as LoRA
    from orchestrate.spec import Optimizer as Optimizer
    from orchestrate.spec import QLoRA as QLoRA
    from orchestrate.spec import TrainFile as TrainFile
    from orchestrate.types import JobStatus as JobStatus

_PUBLIC = {
    "DeploymentHandle": "deployment",
    "RunHandle": "handle",
    "Orchestrator": "service",
    "AsyncOrchestrator": "aio",
    "JobSpec": "spec",
    "SFT": "spec",
    "DPO": "spec",
    "RFT": "spec",
    "LoRA": "spec",
    "QLoRA": "spec",
    "Full": "spec",
    "Optimizer": "spec",
    "TrainFile": "spec",
    "JobStatus": "types",
}

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]  resolved by __getattr__
    "DPO",
    "RFT",
    "SFT",
    "AsyncOrchestrator",
    "DeploymentHandle",
    "Full",
    "JobSpec",
    "JobStatus",
    "LoRA",
    "Optimizer",
    "Orchestrator",
    "QLoRA",
    "RunHandle",
    "TrainFile",
    "__version__",
]


__getattr__ = late(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return sorted(__all__)
