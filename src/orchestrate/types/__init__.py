"""Frozen records and enums that all packages share. This package does no I/O.

Records are `msgspec.Struct`: cheap to import, strictly decoded by `from_json`, and the source of the JSON
schemas for each command's `--json`. `JobSpec` is in `orchestrate.spec` instead. It is the only record that
users write by hand, so it uses pydantic, whose errors name the field and the allowed values.

Times are timezone-aware UTC. Money is `Decimal` US dollars with the unit in the name. Tokens, rows and steps
are counts.
"""

from __future__ import annotations

from orchestrate.types.allowance import Allowance as Allowance
from orchestrate.types.evaluation import Confusion as Confusion
from orchestrate.types.evaluation import Contender as Contender
from orchestrate.types.evaluation import Criterion as Criterion
from orchestrate.types.evaluation import Difference as Difference
from orchestrate.types.evaluation import Evaluation as Evaluation
from orchestrate.types.evaluation import Likelihood as Likelihood
from orchestrate.types.evaluation import Measure as Measure
from orchestrate.types.evaluation import Message as Message
from orchestrate.types.evaluation import MetricUsed as MetricUsed
from orchestrate.types.evaluation import Rating as Rating
from orchestrate.types.evaluation import Reply as Reply
from orchestrate.types.evaluation import Review as Review
from orchestrate.types.evaluation import Rubric as Rubric
from orchestrate.types.evaluation import Sampling as Sampling
from orchestrate.types.evaluation import Score as Score
from orchestrate.types.evaluation import Verdict as Verdict
from orchestrate.types.experiments import Arm as Arm
from orchestrate.types.experiments import DecisionRule as DecisionRule
from orchestrate.types.experiments import Evidence as Evidence
from orchestrate.types.experiments import EvidencePoint as EvidencePoint
from orchestrate.types.experiments import ExperimentDecision as ExperimentDecision
from orchestrate.types.experiments import ExperimentPhase as ExperimentPhase
from orchestrate.types.experiments import ExperimentPlan as ExperimentPlan
from orchestrate.types.experiments import ExperimentRecord as ExperimentRecord
from orchestrate.types.experiments import ExperimentReport as ExperimentReport
from orchestrate.types.experiments import Exposure as Exposure
from orchestrate.types.experiments import PlannedMetric as PlannedMetric
from orchestrate.types.gateway import AuditEntry as AuditEntry
from orchestrate.types.gateway import GatewayJob as GatewayJob
from orchestrate.types.gateway import GatewayKey as GatewayKey
from orchestrate.types.hosting import ADAPTER_JOB as ADAPTER_JOB
from orchestrate.types.hosting import Adapter as Adapter
from orchestrate.types.hosting import Age as Age
from orchestrate.types.hosting import BilledResource as BilledResource
from orchestrate.types.hosting import Billing as Billing
from orchestrate.types.hosting import Deployment as Deployment
from orchestrate.types.hosting import DeploymentOffer as DeploymentOffer
from orchestrate.types.hosting import DeploymentState as DeploymentState
from orchestrate.types.hosting import Storage as Storage
from orchestrate.types.hosting import StoredItem as StoredItem
from orchestrate.types.jobs import MIGRATED_FROM as MIGRATED_FROM
from orchestrate.types.jobs import OWN_LOOP as OWN_LOOP
from orchestrate.types.jobs import SESSION as SESSION
from orchestrate.types.jobs import Account as Account
from orchestrate.types.jobs import Artifact as Artifact
from orchestrate.types.jobs import ArtifactFile as ArtifactFile
from orchestrate.types.jobs import Checkpoint as Checkpoint
from orchestrate.types.jobs import Endpoint as Endpoint
from orchestrate.types.jobs import Event as Event
from orchestrate.types.jobs import Feature as Feature
from orchestrate.types.jobs import Job as Job
from orchestrate.types.jobs import JobError as JobError
from orchestrate.types.jobs import JobHandle as JobHandle
from orchestrate.types.jobs import JobRecovery as JobRecovery
from orchestrate.types.jobs import JobStatus as JobStatus
from orchestrate.types.jobs import MetricPoint as MetricPoint
from orchestrate.types.jobs import QueueEntry as QueueEntry
from orchestrate.types.jobs import QueueState as QueueState
from orchestrate.types.jobs import RemoteDataset as RemoteDataset
from orchestrate.types.jobs import ReportedSettings as ReportedSettings
from orchestrate.types.jobs import Run as Run
from orchestrate.types.jobs import RunRequest as RunRequest
from orchestrate.types.jobs import Search as Search
from orchestrate.types.jobs import SubmitPhase as SubmitPhase
from orchestrate.types.jobs import Trial as Trial
from orchestrate.types.jobs import TrialState as TrialState
from orchestrate.types.listing import Listing as Listing
from orchestrate.types.plans import Authority as Authority
from orchestrate.types.plans import Bill as Bill
from orchestrate.types.plans import Confidence as Confidence
from orchestrate.types.plans import MemoryPlan as MemoryPlan
from orchestrate.types.plans import Outcome as Outcome
from orchestrate.types.plans import PriceRange as PriceRange
from orchestrate.types.plans import Problem as Problem
from orchestrate.types.plans import Quote as Quote
from orchestrate.types.plans import QuoteLine as QuoteLine
from orchestrate.types.plans import Setting as Setting
from orchestrate.types.plans import Severity as Severity
from orchestrate.types.plans import TokensFrom as TokensFrom
from orchestrate.types.plans import Translation as Translation
from orchestrate.types.proof import NOT_PROVED as NOT_PROVED
from orchestrate.types.proof import Canary as Canary
from orchestrate.types.proof import Fingerprint as Fingerprint
from orchestrate.types.proof import Probe as Probe
from orchestrate.types.proof import Proof as Proof
from orchestrate.types.proof import ProofStage as ProofStage
from orchestrate.types.proof import Said as Said
from orchestrate.types.record import Record as Record
from orchestrate.types.serving import Export as Export
from orchestrate.types.serving import Merged as Merged
