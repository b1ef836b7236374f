"""Fine-tuning jobs in the sandbox, and their state at a given time.

A job stores the time of each change of its state. If the local engine trains the job, these times are added
as they occur. Otherwise, all are set when the job is created. A job's phase depends only on these times and
the clock, so ten thousand jobs use no CPU time until they are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from orchestrate.types import decoding

BROUGHT = "brought"
"""Object kind under which uploaded adapters are stored. They are placeholder jobs, and the separate kind
keeps them out of the host's lists of real jobs."""

SLOTS = 3
"""Default number of concurrent training runs: one for each host that has jobs, so one host's jobs don't delay
another's."""


def brought_at(runs: Path, host: str, id: str) -> Path:
    """Return the folder with the files of an uploaded adapter."""
    return runs / f"{host}-{id}" / "adapter"


class Phase(StrEnum):
    """The phase of a job, independent of the hosts' names for it."""

    VALIDATING = "validating"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)


class Durations(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in seconds at speed 1. The real hosts take minutes to hours."""

    file: float = 0.5
    """Time from the upload until a file is validated."""
    validating: float = 1.0
    queued: float = 1.0
    training: float = 6.0
    """Duration of the training phase for jobs whose training is only simulated. For all other jobs, the phase
    lasts until training ends."""
    finalizing: float = 1.0
    cancelling: float = 1.0
    deploying: float = 1.5


class JobFailure(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Error of a failed job, in the host's format."""

    message: str
    code: str | None = None
    param: str | None = None


DEFAULT_BETA = 0.1
"""Beta of the preference loss for jobs that don't set one. The same on all simulated hosts."""


class SandboxJob(msgspec.Struct, kw_only=True):
    """A job. Times are Unix times in seconds on the sandbox's clock, and `None` until they are known."""

    id: str
    host: str
    kind: str
    """Method of the job: sft, dpo or rft."""
    model: str
    base: str
    """Base model, if `model` is a tuned model."""
    body: dict[str, Any]
    """Body of the accepted create request, without API keys."""
    training_file: str
    validation_file: str | None = None
    trained: bool
    """True if the local engine trains the job. Otherwise the job only passes through its states."""
    seed: int = 0
    epochs: int = 1
    batch_size: int = 8
    learning_rate: float = 1e-5
    """Learning rate as the host defines it: absolute, or a multiplier."""
    lora_rank: int = 8
    preference: dict[str, Any] = {}
    """Settings of the preference loss, under the names that the local engine uses."""
    train_on_inputs: bool = False
    checkpoints: int = 1
    evals: int = 0
    examples: int = 0
    tokens: int = 0
    """Number of tokens in the training file (one epoch)."""
    validation_tokens: int = 0
    price_usd: str | None = None
    output: str
    """The tuned model's name on the host."""
    continues: str | None = None
    """Job whose adapter is the starting point of this job."""
    continues_step: int | None = None
    created_at: float
    validated_at: float
    started_at: float | None = None
    trained_at: float | None = None
    finished_at: float | None = None
    cancel_at: float | None = None
    cancelled_at: float | None = None
    paused_at: float | None = None
    failed_at: float | None = None
    trouble: JobFailure | None = None
    early_stopped: bool = False
    engine_steps: int | None = None
    """Total number of steps according to the engine, or `None` while unknown."""
    engine_step: int | None = None
    engine_epoch: float | None = None

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps in the entire run."""
        if self.engine_steps is not None:
            return self.engine_steps
        return max(1, -(-self.examples // max(1, self.batch_size)) * self.epochs)

    def phase(self, now: float) -> Phase:
        if self.cancel_at is not None:
            return Phase.CANCELLED if now >= (self.cancelled_at or 0) else Phase.CANCELLING
        if self.failed_at is not None and now >= self.failed_at:
            return Phase.FAILED
        if now < self.validated_at:
            return Phase.VALIDATING
        if self.paused_at is not None:
            return Phase.PAUSED
        if self.started_at is None or now < self.started_at:
            return Phase.QUEUED
        if self.trained_at is None or now < self.trained_at:
            return Phase.RUNNING
        if self.finished_at is None or now < self.finished_at:
            return Phase.FINALIZING
        return Phase.SUCCEEDED

    def fraction(self, now: float) -> float:
        """Return the completed fraction of the training, from 0 to 1."""
        held = self.cancel_at or self.paused_at
        if held is not None:  # what was planned for later does not come
            now = min(now, held)
        if self.started_at is None or now < self.started_at:
            return 0.0
        if self.trained_at is not None and now >= self.trained_at:
            return 1.0
        if self.trained:
            return min(1.0, (self.engine_step or 0) / self.total_steps)
        duration = max(1e-9, (self.trained_at or now) - self.started_at)
        return max(0.0, min(1.0, (now - self.started_at) / duration))

    def step(self, now: float) -> int:
        return int(self.fraction(now) * self.total_steps)

    def ended_at(self, now: float) -> float | None:
        """Return the time when the job reached its final state, or `None` if it is still active."""
        phase = self.phase(now)
        if not phase.ended:
            return None
        return {
            Phase.CANCELLED: self.cancelled_at,
            Phase.FAILED: self.failed_at,
            Phase.SUCCEEDED: self.finished_at,
        }[phase]

    def plan(self, waits: Durations, speed: float, *, stalls: bool = False) -> None:
        """Schedule all state changes of a job that is not trained. With `stalls`, the job never ends."""
        self.started_at = self.validated_at + waits.queued / speed
        self.trained_at = self.started_at + (1e9 if stalls else waits.training / speed)
        self.finished_at = self.trained_at + waits.finalizing / speed

    def cancel(self, now: float, takes_s: float) -> bool:
        """Cancel the job. Returns False if it has already ended."""
        if self.phase(now).ended:
            return False
        if self.cancel_at is None:
            self.cancel_at, self.cancelled_at = now, now + takes_s
        return True

    def pause(self, now: float) -> bool:
        """Pause the job. Returns False if it is not in a state that can be paused."""
        if self.phase(now) not in (Phase.QUEUED, Phase.RUNNING):
            return False
        self.paused_at = now
        return True

    def resume(self, now: float) -> bool:
        """Resume the job, and shift its schedule by the length of the pause. Returns False if it was not
        paused."""
        if self.paused_at is None:
            return False
        shift, self.paused_at = now - self.paused_at, None
        if not self.trained:
            self.started_at = (self.started_at or now) + (
                shift if (self.started_at or now) > now - shift else 0
            )
            self.trained_at = (self.trained_at or now) + shift
            self.finished_at = (self.finished_at or now) + shift
        return True

    def to_dict(self) -> dict[str, Any]:
        return msgspec.to_builtins(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SandboxJob:
        return decoding.convert(values, cls)


@dataclass
class SandboxSettings:
    """Settings of a sandbox. See `orchestrate.sandbox.running`."""

    train: bool = True
    waits: Durations = field(default_factory=Durations)
    credit_usd: float = 1000.0
    """The account's credit limit at Together. Jobs with a higher estimated price are not allowed to
    proceed."""
    reports_account: bool = True
    """True if OpenAI and Together report which account a key belongs to. Fireworks' resource names always
    contain the account."""
