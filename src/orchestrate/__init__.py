"""Orchestrate: one dataset, one spec, any backend. Public names are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate.core import late

__version__ = "0.1.0"

if TYPE_CHECKING:
    from orchestrate.api.aio import AsyncOrchestrator as AsyncOrchestrator
    from orchestrate.api.orchestrator import Orchestrator as Orchestrator
    from orchestrate.api.run import RunHandle as RunHandle
    from orchestrate.errors import AlreadySubmitted as AlreadySubmitted
    from orchestrate.errors import ArtifactRefused as ArtifactRefused
    from orchestrate.errors import AuthenticationFailed as AuthenticationFailed
    from orchestrate.errors import ConfigError as ConfigError
    from orchestrate.errors import Conflict as Conflict
    from orchestrate.errors import DataError as DataError
    from orchestrate.errors import HostUnavailable as HostUnavailable
    from orchestrate.errors import InvalidRequest as InvalidRequest
    from orchestrate.errors import KeyElsewhere as KeyElsewhere
    from orchestrate.errors import KeyTaken as KeyTaken
    from orchestrate.errors import MissingExtra as MissingExtra
    from orchestrate.errors import MissingKey as MissingKey
    from orchestrate.errors import NotFound as NotFound
    from orchestrate.errors import OrchestrateError as OrchestrateError
    from orchestrate.errors import OtherAccount as OtherAccount
    from orchestrate.errors import OutcomeUnknown as OutcomeUnknown
    from orchestrate.errors import OverBudget as OverBudget
    from orchestrate.errors import PermissionRefused as PermissionRefused
    from orchestrate.errors import ProjectNotTrusted as ProjectNotTrusted
    from orchestrate.errors import ProviderError as ProviderError
    from orchestrate.errors import QuotaExceeded as QuotaExceeded
    from orchestrate.errors import RateLimited as RateLimited
    from orchestrate.errors import RunFailed as RunFailed
    from orchestrate.errors import SetupError as SetupError
    from orchestrate.errors import SpecError as SpecError
    from orchestrate.errors import StoreError as StoreError
    from orchestrate.errors import TrainingClosed as TrainingClosed
    from orchestrate.errors import TranslationRefused as TranslationRefused
    from orchestrate.errors import UnexpectedAnswer as UnexpectedAnswer
    from orchestrate.errors import Unsupported as Unsupported
    from orchestrate.errors import UsageError as UsageError
    from orchestrate.runs.hosting.deployment import DeploymentHandle as DeploymentHandle
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
    "DeploymentHandle": "runs.hosting.deployment",
    "RunHandle": "api.run",
    "Orchestrator": "api.orchestrator",
    "AsyncOrchestrator": "api.aio",
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
    "AlreadySubmitted": "errors",
    "ArtifactRefused": "errors",
    "AuthenticationFailed": "errors",
    "ConfigError": "errors",
    "Conflict": "errors",
    "DataError": "errors",
    "HostUnavailable": "errors",
    "InvalidRequest": "errors",
    "KeyElsewhere": "errors",
    "KeyTaken": "errors",
    "MissingExtra": "errors",
    "MissingKey": "errors",
    "NotFound": "errors",
    "OrchestrateError": "errors",
    "OtherAccount": "errors",
    "OutcomeUnknown": "errors",
    "OverBudget": "errors",
    "PermissionRefused": "errors",
    "ProjectNotTrusted": "errors",
    "ProviderError": "errors",
    "QuotaExceeded": "errors",
    "RateLimited": "errors",
    "RunFailed": "errors",
    "SetupError": "errors",
    "SpecError": "errors",
    "StoreError": "errors",
    "TrainingClosed": "errors",
    "TranslationRefused": "errors",
    "UnexpectedAnswer": "errors",
    "Unsupported": "errors",
    "UsageError": "errors",
}

__all__ = [*_PUBLIC, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]  resolved by __getattr__


__getattr__ = late(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return sorted(__all__)
