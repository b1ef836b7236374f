"""Records of a job on its host, its results, the run that tracks it, and of runs that wait in the queue or
belong to a hyperparameter search."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from math import isfinite, nan
from typing import Any, Literal

from msgspec import Struct

from orchestrate.errors import UsageError
from orchestrate.text import SANDBOX_MARK
from orchestrate.types.plans import Bill, Quote
from orchestrate.types.record import Record


class JobStatus(StrEnum):
    """The status of a job, with the same values for all backends. `raw_status` has the host's own status."""

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
    """The progress of the submit protocol. See `orchestrate.runs.submitting.submit`."""

    INTENT = "intent"
    UPLOADED = "uploaded"
    SUBMITTING = "submitting"
    SUBMITTED = "submitted"
    OUTCOME_UNKNOWN = "outcome_unknown"
    REFUSED = "refused"


class Feature(StrEnum):
    """A feature that a backend may support. For each feature, a backend either declares support or gives a
    reason, shown to the user, why it doesn't support it."""

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


class RemoteDataset(Record, frozen=True, kw_only=True):
    """A dataset as stored by a backend: the ids to put into a create request."""

    provider: str
    digest: str
    train_id: str
    validation_id: str | None = None
    details: dict[str, Any] = {}


SESSION = "session"
"""Job kind of training sessions. In a session, a training loop runs each step: the caller's own loop, or a
built-in recipe."""
OWN_LOOP = "(your own loop)"
"""Placeholder for the training data in the spec of a session that the caller's own loop drives."""


class JobHandle(Record, frozen=True, kw_only=True):
    """The data needed to look up a job on its backend later."""

    provider: str
    job_id: str
    ref: str | None = None
    """Orchestrate's tag on the job. `None` if it could not be read back from the host."""
    kind: str | None = None
    """Collection that contains the job, on hosts with several collections (Fireworks: supervised, dpo,
    reinforcement)."""


class JobError(Record, frozen=True, kw_only=True):
    message: str
    code: str | None = None
    param: str | None = None


class Job(Record, frozen=True, kw_only=True):
    """The state of one job as its backend reports it."""

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
    epochs: int | None = None
    batch_size: int | None = None
    """Batch size that the host trains with. Like `epochs`, this is the requested value, or the host's own
    choice if none was requested."""
    epoch: float | None = None
    percent: float | None = None
    early_stopped: bool = False
    error: JobError | None = None
    cost_usd: Decimal | None = None
    """Cost of the entire job, regardless of its progress, if the host reports it."""
    cost_origin: str | None = None
    accelerator_seconds: dict[str, int] = {}
    """Seconds by GPU type, for a job that is billed by GPU time."""
    worked_seconds: float | None = None
    """Total working time of the job's workers, without pauses, if the workers report it."""
    payload: dict[str, Any] = {}
    """The host's response without secrets."""


class JobRecovery(Record, frozen=True, kw_only=True):
    """Details that a host reports about a job, in addition to its state. With these details, the job can be
    priced even if its spec and data are missing."""

    method: Literal["sft", "dpo", "rft"] = "sft"
    adapter: Literal["lora", "full"] = "lora"
    epochs: int | None = None
    """Number of epochs. `None` if left to the host or not reported."""
    evals: int = 0
    packing: bool = True
    max_length: int | None = None
    rows: int | None = None
    train_tokens: int | None = None
    """Tokens of one pass, as counted or estimated by the host."""
    train_bytes: int | None = None
    validation_bytes: int | None = None
    average_turns: float = 1.0
    usd_per_hour: Decimal | None = None
    """Hourly price of the job's machine, if the job is billed hourly."""
    price_source: str | None = None
    most_seconds: float | None = None
    """Time limit in seconds, after which the job's machine stops."""


class ReportedSettings(Record, frozen=True, kw_only=True):
    """A host's report on a job that was created without this store."""

    spec: dict[str, Any] = {}
    """Settings, keyed by the spec's field names."""
    files: dict[str, str] = {}
    """Ids of the training and validation files on the host."""
    left_out: dict[str, Any] = {}
    """Settings that a spec cannot hold, keyed by the host's field names."""
    dataset_digest: str | None = None
    """Digest of the training rows. If set, `spec` is the complete spec as submitted."""
    max_cost_usd: Decimal | None = None
    """The job's current cost limit."""


class Event(Record, frozen=True, kw_only=True):
    """One event of a job. `id` is the same whenever the event is read, so reading a job's events again adds
    no duplicates."""

    id: str
    at: datetime
    level: str
    """Level of the event: info, warning or error."""
    message: str
    type: str = "message"
    step: int | None = None
    data: dict[str, Any] = {}

    def __str__(self) -> str:
        level = "" if self.level == "info" else f"{self.level}: "
        return f"{self.at:%H:%M:%S}  {level}{self.message}"

    def cells(self) -> dict[str, Any]:
        return {
            "at": self.at,
            "level": self.level,
            "type": self.type,
            "message": self.message,
            "step": self.step,
            "id": self.id,
        }


class MetricPoint(Record, frozen=True, kw_only=True):
    """Metrics at one optimizer step, as `{name: value}`.

    Names: train_loss, valid_loss, train_accuracy and valid_accuracy (per token), train_reward, valid_reward,
    learning_rate, grad_norm, tokens (trained so far), tokens_per_second. If the final weights come from an
    earlier step, also result_step and result_valid_loss. Other metrics keep the host's names.
    """

    step: int
    values: dict[str, float]
    at: datetime | None = None
    epoch: float | None = None
    not_finite: tuple[str, ...] = ()
    """Metrics whose value was NaN or infinite, which JSON can't represent."""

    def updated(self, later: MetricPoint) -> MetricPoint:
        """Return the point with what was reported later for the same step. Moves the names of values that are
        not finite to `not_finite`."""
        values = dict.fromkeys(self.not_finite, nan) | self.values
        values |= dict.fromkeys(later.not_finite, nan) | later.values
        finite = {name: value for name, value in values.items() if isfinite(value)}
        return MetricPoint(
            step=self.step,
            values=finite,
            at=later.at or self.at,
            epoch=self.epoch if later.epoch is None else later.epoch,
            not_finite=tuple(sorted(values.keys() - finite.keys())),
        )

    def __str__(self) -> str:
        return f"step {self.step}  " + "  ".join(f"{k} {v:.6g}" for k, v in self.values.items())

    def cells(self) -> dict[str, Any]:
        return {"step": self.step, "epoch": self.epoch, **self.values, "at": self.at}


class Checkpoint(Record, frozen=True, kw_only=True):
    id: str
    step: int | None = None
    created_at: datetime | None = None
    model: str | None = None
    """Model id or path for using this checkpoint directly, if the backend supports that."""
    metrics: dict[str, float] = {}

    def __str__(self) -> str:
        return f"{self.id}  step {self.step}" if self.step is not None else self.id


class ArtifactFile(Record, frozen=True, kw_only=True):
    path: str
    """Path relative to the artifact's folder."""
    bytes: int
    sha256: str


class Artifact(Record, frozen=True, kw_only=True):
    """A tuned model on this machine."""

    kind: str
    """Kind of the model: adapter, merged or full."""
    folder: str
    files: tuple[ArtifactFile, ...]
    base_model: str | None = None
    provider: str
    job_id: str


class Endpoint(Record, frozen=True, kw_only=True):
    """The endpoint of a deployed tuned model. `usd_per_hour` is the hourly cost while it is up, idle or
    not."""

    provider: str
    id: str
    model: str
    state: str
    base_url: str | None = None
    usd_per_hour: Decimal | None = None
    payload: dict[str, Any] = {}


class Account(Record, frozen=True, kw_only=True):
    """The account that a backend's key belongs to."""

    id: str
    """The account's id: `organization o, project p` if the host reports it, otherwise the key's fingerprint,
    such as `key 0123456789abcdef`."""
    reported: bool
    """True if the host reported the id. A different reported id means a different account. A different
    fingerprint may be a new key of the same account."""


MIGRATED_FROM = "migrated_from"
"""Tag on each run that a migration created. Its value is the id of the old run."""


class RunRequest(Struct, frozen=True, kw_only=True):
    """The fields that a submission stores in a run. Each is a field of `Run` with the same name."""

    quote: Quote | None = None
    max_cost_usd: Decimal | None = None
    allowed_usd: Decimal | None = None
    """Cost at which the run's rented machine stops, if it has such a limit. A budget reserves this amount."""
    idempotency_key: str | None = None
    made_by: str | None = None

    def kept(self) -> dict[str, Any]:
        """Return the fields of `RunRequest`, keyed by name. Leaves out the fields of subclasses."""
        return {name: getattr(self, name) for name in RunRequest.__struct_fields__}


class Run(Record, frozen=True, kw_only=True):
    """The tracked record of one JobSpec on one backend, from the intent to the artifact."""

    id: str
    ref: str
    """Tag that identifies the job on the host. Derived from `id`."""
    provider: str
    model: str
    """The model as the user wrote it."""
    spec: dict[str, Any]
    spec_hash: str
    dataset_digest: str
    host: str
    """Base URL of the backend that the run was sent to. For a backend without a URL, its name or folder.
    Distinguishes a sandbox from the real host."""
    account: str | None = None
    """Id of the `Account` that the run was sent to. `None` for runs from versions that did not store it."""
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
    expected_steps: int | None = None
    """Total steps if the host reports none: rows x epochs / batch."""
    epoch: float | None = None
    percent: float | None = None
    early_stopped: bool = False
    error: JobError | None = None
    quote: Quote | None = None
    bill: Bill | None = None
    estimate_usd: Decimal | None = None
    """The host's cost estimate, made before the job was created. It is not a bill."""
    max_cost_usd: Decimal | None = None
    max_hours: float | None = None
    """Hour limit for all of the run's workers together, if the user changed it after submission."""
    allowed_usd: Decimal | None = None
    """Maximum cost, set if a rented machine stops at this cost or if the user raised the cost limit. A budget
    reserves this amount."""
    tags: dict[str, str] = {}
    idempotency_key: str | None = None
    """The caller's own key. A submission with the same key returns this run."""
    made_by: str | None = None
    """`user@machine`, or the value of `--by`. `None` for recovered runs and runs from versions that did not
    store it."""

    imported: bool = False
    """True if the run was created without this store and recovered from the host's list. Budgets don't count
    it once it has ended."""
    released: bool = False
    """True if the submitting process ended before anything was sent. The run reserves no budget until it is
    sent."""
    abandoned: str | None = None
    """Reason why the user abandoned the run. An abandoned run is no longer polled, and budgets count only its
    last bill, unless its job is found later."""
    note: str | None = None
    """The user's note on the run."""
    archived: bool = False
    """True if lists hide the run by default. Budgets and bills still include it."""

    def __str__(self) -> str:
        backend = self.provider + SANDBOX_MARK * self.sandbox
        return f"{self.id}  {backend}  {self.model}  {self.status.value}"

    def _repr_html_(self) -> str:
        from orchestrate import notebook

        return notebook.run(self)

    def cells(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "provider": self.provider,
            "model": self.model,
            "status": self.status.value,
            "sandbox": self.sandbox,
            "created_at": self.created_at,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "step": self.step,
            "total_steps": self.total_steps,
            "trained_tokens": self.trained_tokens,
            "quote_usd": self.quote.expected_usd if self.quote else None,
            "bill_usd": self.bill.usd if self.bill else None,
            "tuned_model": self.tuned_model,
            "job_id": self.job_id,
            "dataset_digest": self.dataset_digest,
            "error": self.error.message if self.error else None,
            **{f"tags.{name}": value for name, value in self.tags.items()},
        }

    @property
    def dormant(self) -> bool:
        """True if this is a training session that no program drives. It has no further cost until it is
        resumed."""
        return self.job_kind == SESSION and self.status is JobStatus.PAUSED

    @property
    def own_loop(self) -> bool:
        """True if this is a training session that the caller's own loop drives."""
        return self.job_kind == SESSION and self.spec.get("train") == OWN_LOOP

    @property
    def handle(self) -> JobHandle:
        """Return the handle of the run's job. Raises `UsageError` while the run has no job on the host."""
        if self.job_id is None:
            raise UsageError(
                f"run {self.id} has no job on {self.provider} (its phase is {self.phase.value})",
                fix=f"see why with: orchestrate events {self.id}",
            )
        return JobHandle(provider=self.provider, job_id=self.job_id, ref=self.ref, kind=self.job_kind)


class QueueState(StrEnum):
    WAITING = "waiting"
    """The entry starts as soon as its backend has a free slot and the runs it depends on have succeeded."""
    HELD = "held"
    """The entry doesn't start automatically. Its note says why. `orchestrate queue resume` sets it to WAITING
    again."""
    SUBMITTING = "submitting"
    """A server is submitting the entry. If that server stopped in the meantime, the next one finishes the
    submission."""
    SUBMITTED = "submitted"
    """The entry's run exists and is tracked like any other run."""
    REMOVED = "removed"


class QueueEntry(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A run to be submitted once there is a free slot."""

    id: str
    provider: str
    spec: dict[str, Any]
    """The spec as requested, with absolute paths of its files."""
    host: str
    """Host of the backend when the entry was added, as in `Run.host`. Prevents a sandbox's entry from being
    sent to the real host."""
    account: str
    """Account of the API key that was configured when the entry was added. Prevents another account from
    being billed."""
    digest: str
    """Digest of the training data when the price was confirmed. Changed data is not submitted."""
    created_at: datetime
    position: int
    """Position in the queue. The entry with the lowest position starts first."""
    state: QueueState = QueueState.WAITING
    after: tuple[str, ...] = ()
    """Entries and runs that must succeed first."""
    agreed_usd: Decimal | None = None
    """Price that the user confirmed: the high end of the displayed quote, or the cost limit if that is
    higher. If the price later rises above this, the run is not submitted. `None` if there was no price."""
    max_cost_usd: Decimal | None = None
    run_id: str | None = None
    note: str | None = None
    made_by: str | None = None
    sandbox: bool = False
    """True if the backend was a sandbox when the entry was added. A sandbox bills nothing."""
    rates: tuple[str, ...] = ()
    """Your own prices for this entry, as `--rate` flags. They also apply when the run is submitted."""


class TrialState(StrEnum):
    OPEN = "open"
    """The trial has a run, or is about to get one."""
    SCORED = "scored"
    PRUNED = "pruned"
    """The trial was stopped early because it diverged or other trials were better at the same step."""
    FAILED = "failed"


class Trial(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One trial of a search: a value for each setting that varies, and the share of the training rows to
    train on."""

    number: int
    """Number of the trial, unique within the search."""
    settings: dict[str, Any]
    """Settings that differ from the search's spec, keyed by dotted name. `provider` is the backend."""
    share: float = 1.0
    """Share of the training rows."""
    parent: int | None = None
    """Number of the earlier trial whose settings this trial repeats on all rows. `None` for other trials."""
    state: TrialState = TrialState.OPEN
    run_id: str | None = None
    high_usd: Decimal = Decimal(0)
    """High end of the trial's quote. The budget reserves this amount until the bill is known."""
    score: float | None = None
    score_low: float | None = None
    score_high: float | None = None
    """High end of the score's confidence interval. `None` if the search's target has no interval."""
    note: str | None = None


class Search(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A hyperparameter search: a spec, the settings to vary, and the target."""

    id: str
    created_at: datetime
    spec: dict[str, Any]
    providers: tuple[str, ...]
    choices: dict[str, tuple[Any, ...]]
    """Values to choose from, keyed by the setting's dotted name."""
    ranges: dict[str, tuple[float, float, bool]]
    """Ranges as (low, high, log scale), keyed by the setting's dotted name."""
    sampler: str
    trials: int
    """Maximum number of trials on the first share of the data."""
    seed: int = 0
    target: str = "validation_loss"
    test: str | None = None
    """File with the rows used to score `eval:` targets. Default: the spec's test file."""
    digest: str = ""
    """Digest of the training data. A search is not continued on other data."""
    share: float = 1.0
    survivors: int = 0
    """Number of best trials to repeat on all rows. Only used if `share` is below 1."""
    prune: bool = False
    max_parallel: int = 1
    max_cost_usd: Decimal | None = None
    sandbox: bool = False
    """True if a backend is a sandbox. The same search outside of the sandbox is another one."""
