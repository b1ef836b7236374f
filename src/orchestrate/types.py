"""The words of the project as frozen records and enums; no input or output happens here.

Records are `msgspec.Struct`: cheap to import, strictly decoded by `from_json`, and the source of the JSON
schemas that each command's `--json` follows. The one record that people write by hand, `JobSpec`, lives in
`orchestrate.spec`, where pydantic gives every error a field and the values that are allowed.

Times are timezone-aware UTC. Money is `Decimal` US dollars with the unit in the name. Tokens, rows, steps
are counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Self

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every record: immutable, keyword-only, convertible to and from JSON without loss."""

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values: `Decimal` and times become strings."""
        return msgspec.to_builtins(self)

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """Raises `msgspec.ValidationError` or `msgspec.DecodeError` when the bytes are not such a record."""
        return msgspec.json.decode(data, type=cls)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return msgspec.convert(data, type=cls, strict=False)


class JobStatus(StrEnum):
    """Where a job stands, in one vocabulary for all backends. `raw_status` keeps the host's own word beside
    it."""

    SUBMITTING = "submitting"
    VALIDATING = "validating"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"

    @property
    def terminal(self) -> bool:
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class SubmitPhase(StrEnum):
    """How far the submit protocol got; see `orchestrate.tracking.submit`."""

    INTENT = "intent"
    UPLOADED = "uploaded"
    SUBMITTING = "submitting"
    SUBMITTED = "submitted"
    OUTCOME_UNKNOWN = "outcome_unknown"
    REFUSED = "refused"


class Feature(StrEnum):
    """What a backend may offer. A backend lists what it has; each absent one carries the reason shown to the
    user."""

    SFT = "sft"
    DPO = "dpo"
    KTO = "kto"
    RFT = "rft"
    LORA = "lora"
    QLORA = "qlora"
    FULL = "full"
    TOOLS = "tools"
    MESSAGE_WEIGHTS = "message_weights"
    REASONING = "reasoning"
    VISION = "vision"
    CONTINUE_FROM = "continue_from"
    WANDB = "wandb"
    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    DELETE = "delete"
    EVENTS = "events"
    METRICS = "metrics"
    CHECKPOINTS = "checkpoints"
    DOWNLOAD = "download"
    DEPLOY = "deploy"
    CHAT = "chat"
    LIVE_PRICE = "live_price"


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Problem(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One thing wrong with a dataset or a spec. `row` is the 1-based record number, `None` for the whole
    file."""

    code: str
    message: str
    severity: Severity
    row: int | None = None
    field: str | None = None
    providers: tuple[str, ...] = ()
    """Backends concerned; empty means all."""
    fix: str | None = None
    source: str | None = None
    """The file or URL in which it was found."""


class Outcome(StrEnum):
    KEPT = "kept"
    MAPPED = "mapped"
    DEFAULTED = "defaulted"
    REFUSED = "refused"


class Setting(Record, frozen=True, kw_only=True):
    """What one setting of the spec becomes on one backend."""

    name: str
    asked: Any = None
    outcome: Outcome
    sent: Any = None
    wire: str | None = None
    """The field of the request body that carries it, dotted; `None` when nothing is sent."""
    rule: str | None = None
    """How it was mapped, or why it was refused."""
    exact: bool = True
    """Whether the mapped value means the same thing; an inexact one is refused under `--strict`."""


class MemoryPlan(Record, frozen=True, kw_only=True):
    """What training needs of a device's memory at its worst moment, by part, and what to do about it."""

    parts: dict[str, int]
    """Bytes."""
    total_bytes: int
    peak: str
    """The moment of a step at which it is reached."""
    available_bytes: int | None
    """Of the device; `None` when it is not known."""
    device: str
    fits: bool | None
    rows: int
    """Side by side in one forward pass; each of a pair's two counts."""
    longest: int
    """Tokens of the longest of them."""
    advice: tuple[str, ...] = ()
    """What to change where it does not fit, each with the total that it leads to, one on top of the other."""
    notes: tuple[str, ...] = ()
    """What was assumed, and what makes it less exact than measured cases were."""


class Translation(Record, frozen=True, kw_only=True):
    """A JobSpec in the words of one backend. Nothing is dropped silently: every asked-for setting has a
    row."""

    provider: str
    model: str
    """The backend's own id of the base model."""
    settings: tuple[Setting, ...]
    body: dict[str, Any]
    """The create request without what only the upload knows (file ids) and without the ref."""
    memory: MemoryPlan | None = None
    """Of a backend that trains on hardware of the user's."""

    @property
    def refused(self) -> tuple[Setting, ...]:
        return tuple(s for s in self.settings if s.outcome is Outcome.REFUSED)

    @property
    def inexact(self) -> tuple[Setting, ...]:
        return tuple(s for s in self.settings if s.outcome is Outcome.REFUSED or not s.exact)


class Confidence(StrEnum):
    """How a rate is known: quoted by the host, inferred by a stated rule, or quoted once and not seen
    since."""

    QUOTED = "quoted"
    INFERRED = "inferred"
    OLD = "old"


class QuoteLine(Record, frozen=True, kw_only=True):
    """`usd = quantity x usd_per_unit`, with the band of the quantity's uncertainty around it."""

    component: str
    """training, evaluation, minimum, hosting, serving, storage, electricity ..."""
    quantity: Decimal
    unit: str
    """The unit of the rate, for example `usd_per_mtok` or `usd_per_gpu_hour`; quantity is in its
    denominator."""
    usd_per_unit: Decimal
    usd_low: Decimal
    usd: Decimal
    usd_high: Decimal
    note: str | None = None
    source: str | None = None
    as_of: str | None = None
    confidence: Confidence = Confidence.QUOTED


class Quote(Record, frozen=True, kw_only=True):
    """The price of a spec on one backend before anything is uploaded. `unavailable` says why there is
    none."""

    provider: str
    model: str
    lines: tuple[QuoteLine, ...] = ()
    assumptions: tuple[str, ...] = ()
    low_usd: Decimal = Decimal(0)
    expected_usd: Decimal = Decimal(0)
    high_usd: Decimal = Decimal(0)
    billed_tokens: int | None = None
    train_seconds: float | None = None
    """Modelled or measured time to train; `None` where nothing is known."""
    unavailable: str | None = None
    warnings: tuple[str, ...] = ()


class Bill(Record, frozen=True, kw_only=True):
    """What a run did cost, and from where that is known. `final` is false while the host may still change
    it."""

    usd: Decimal
    origin: str
    """For example `trained_tokens x rate`, `total_price`, `estimatedCost`, `measured hours x rate`."""
    lines: tuple[QuoteLine, ...] = ()
    final: bool = True


class RemoteDataset(Record, frozen=True, kw_only=True):
    """A dataset as a backend holds it: the ids to put into a create request."""

    provider: str
    digest: str
    train_id: str
    validation_id: str | None = None
    details: dict[str, Any] = {}


class JobHandle(Record, frozen=True, kw_only=True):
    """What is needed to ask a backend about one job again."""

    provider: str
    job_id: str
    ref: str | None = None
    """Our tag on the job, when it could be read back."""
    kind: str | None = None
    """The host's own collection, where it has several (Fireworks: supervised, dpo, reinforcement)."""


class JobError(Record, frozen=True, kw_only=True):
    message: str
    code: str | None = None
    param: str | None = None


class Job(Record, frozen=True, kw_only=True):
    """The state of one job as its backend tells it."""

    handle: JobHandle
    status: JobStatus
    raw_status: str
    model: str | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    estimated_finish: datetime | None = None
    tuned_model: str | None = None
    trained_tokens: int | None = None
    step: int | None = None
    total_steps: int | None = None
    epoch: float | None = None
    percent: float | None = None
    early_stopped: bool = False
    error: JobError | None = None
    cost_usd: Decimal | None = None
    """The host's own word on the price, when it gives one."""
    cost_origin: str | None = None
    payload: dict[str, Any] = {}
    """The host's answer, secrets removed."""


class Event(Record, frozen=True, kw_only=True):
    """`id` is stable for one provider and job, so that a repeated read adds nothing."""

    id: str
    at: datetime
    level: str
    """info, warning or error."""
    message: str
    type: str = "message"
    step: int | None = None
    data: dict[str, Any] = {}


class MetricPoint(Record, frozen=True, kw_only=True):
    """Values at one optimiser step. Names: train_loss, valid_loss, train_accuracy, valid_accuracy (of
    tokens), train_reward, valid_reward, learning_rate, grad_norm, tokens (trained so far), tokens_per_second;
    a host's other values keep the host's name."""

    step: int
    values: dict[str, float]
    at: datetime | None = None
    epoch: float | None = None


class Checkpoint(Record, frozen=True, kw_only=True):
    id: str
    step: int | None = None
    created_at: datetime | None = None
    model: str | None = None
    """An id or path that can be used as a model, where the backend allows it."""
    metrics: dict[str, float] = {}


class ArtifactFile(Record, frozen=True, kw_only=True):
    path: str
    """Relative to the artefact's folder."""
    bytes: int
    sha256: str


class Artifact(Record, frozen=True, kw_only=True):
    """A tuned model on this machine."""

    kind: str
    """adapter, merged or full."""
    folder: str
    files: tuple[ArtifactFile, ...]
    base_model: str | None = None
    provider: str
    job_id: str


class Endpoint(Record, frozen=True, kw_only=True):
    """A place where a tuned model answers. `usd_per_hour` is what it costs while it is up, idle included."""

    provider: str
    id: str
    model: str
    state: str
    base_url: str | None = None
    usd_per_hour: Decimal | None = None
    payload: dict[str, Any] = {}


class Message(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One chat message for `Provider.chat`."""

    role: str
    content: str


class Reply(Record, frozen=True, kw_only=True):
    """A model's answer with the token counts that the host reported, when it did."""

    content: str
    model: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None


class Score(Record, frozen=True, kw_only=True):
    """A mean over `n` rows with its 95% interval."""

    value: float
    low: float
    high: float
    n: int


class EvaluationResult(Record, frozen=True, kw_only=True):
    """Base model against tuned model on the same held-out rows."""

    run_id: str
    provider: str
    metric: str
    """exact_match, json_match, token_f1 ... (`orchestrate.evaluation.metrics`); higher is better."""
    dataset: str
    dataset_digest: str
    base: Score | None = None
    tuned: Score
    difference: Score | None = None
    """Tuned minus base, paired by row."""
    gained: int = 0
    """Rows that the base got wrong and the tuned model right."""
    lost: int = 0
    p_value: float | None = None
    """Exact McNemar test on the flips, for metrics that are right or wrong."""
    created_at: datetime
    items_file: str | None = None
    """JSONL with one line per row: prompt, expected, base answer, tuned answer, scores."""
    served_by: str = ""
    """What answered: the host's endpoint, or the downloaded adapter on this machine."""


class Run(Record, frozen=True, kw_only=True):
    """The tracked record of one JobSpec on one backend, from the intent to the artefact."""

    id: str
    ref: str
    """The tag under which the job is found on the host; derived from `id`."""
    provider: str
    model: str
    """As the user named it."""
    spec: dict[str, Any]
    spec_hash: str
    dataset_digest: str
    host: str
    """Base URL or place that the run was sent to; a sandbox is never taken for the real host."""
    sandbox: bool = False
    phase: SubmitPhase
    status: JobStatus
    raw_status: str | None = None
    job_id: str | None = None
    job_kind: str | None = None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    tuned_model: str | None = None
    trained_tokens: int | None = None
    step: int | None = None
    total_steps: int | None = None
    epoch: float | None = None
    percent: float | None = None
    early_stopped: bool = False
    error: JobError | None = None
    quote: Quote | None = None
    bill: Bill | None = None
    max_cost_usd: Decimal | None = None
    tags: dict[str, str] = {}

    @property
    def handle(self) -> JobHandle:
        """Raises `ValueError` while the run has no job on the host yet."""
        if self.job_id is None:
            raise ValueError(f"run {self.id} has no job on {self.provider} yet (phase {self.phase})")
        return JobHandle(provider=self.provider, job_id=self.job_id, ref=self.ref, kind=self.job_kind)
