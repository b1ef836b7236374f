"""Checks and creates jobs on the Fireworks host, in its three collections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrate.sandbox.accounts import here
from orchestrate.sandbox.fireworks import short
from orchestrate.sandbox.fireworks.datasets import (
    DpoJob,
    FireworksDatasetRoutes,
    ReinforcementJob,
    SupervisedJob,
)
from orchestrate.sandbox.fireworks.models import FireworksModelRoutes
from orchestrate.sandbox.host import HostError, parse
from orchestrate.sandbox.jobs import SandboxJob
from orchestrate.sandbox.shared import StoredFile, base_model, context_of, tokenizer_of, training_usd

MIN_EXAMPLES = 3
MAX_EXAMPLES = 3_000_000


@dataclass(frozen=True)
class JobCollection:
    """One collection of jobs."""

    method: str
    collection: str
    id_field: str
    body: type[SupervisedJob] | type[DpoJob] | type[ReinforcementJob]
    batch: int


KINDS = {
    "supervisedFineTuningJobs": JobCollection(
        "sft", "supervisedFineTuningJobs", "supervisedFineTuningJobId", SupervisedJob, 32
    ),
    "dpoJobs": JobCollection("dpo", "dpoJobs", "dpoJobId", DpoJob, 4),
    "reinforcementFineTuningJobs": JobCollection(
        "rft", "reinforcementFineTuningJobs", "reinforcementFineTuningJobId", ReinforcementJob, 32
    ),
}
BY_METHOD = {kind.method: kind for kind in KINDS.values()}


class FireworksJobMaker:
    """Converts create bodies to jobs, or rejects them as the host does."""

    def __init__(self, datasets: FireworksDatasetRoutes, models: FireworksModelRoutes) -> None:
        self.datasets = datasets
        self.models = models
        self.host = datasets.host

    def make(self, kind: JobCollection, id: str, body: dict[str, Any]) -> SandboxJob:
        asked = parse(kind.body, body)
        training = asked.training()
        train = self._dataset(asked.dataset)
        valid = self._dataset(asked.evaluationDataset) if asked.evaluationDataset else None
        base, earlier = self._start_from(training.baseModel, training.warmStartFrom)
        context = context_of(base, self.host.name, kind.method)
        if training.maxContextLength and context and training.maxContextLength > context:
            raise HostError(400, f"max_context_length must be at most {context} for {base}")
        examples = train.report.examples if train.report else 0
        self._check_rows(kind, train, examples, training.epochs)
        tokenizer = tokenizer_of(base, self.host.name)
        tokens = self.datasets.files.tokens(train, tokenizer)
        validation_tokens = self.datasets.files.tokens(valid, tokenizer) if valid else 0
        now = self.host.clock.now()  # counting may have taken longer than some states do
        job = SandboxJob(
            id=id,
            host=self.host.name,
            kind=kind.method,
            model=training.baseModel or training.warmStartFrom or base,
            base=base,
            body=_without_key(body),
            training_file=train.id,
            validation_file=valid.id if valid else None,
            trained=self.host.settings.train and kind.method != "rft",
            epochs=training.epochs,
            batch_size=training.batchSizeSamples or kind.batch,
            learning_rate=training.learningRate or 1e-4,
            lora_rank=training.loraRank,
            preference=_preference(asked),
            evals=1 if valid else 0,
            examples=examples,
            tokens=tokens,
            validation_tokens=validation_tokens,
            output=f"accounts/{here()}/models/{short(training.outputModel or id)}",
            continues=earlier.id if earlier else None,
            created_at=now,
            validated_at=now + self.host.wait("validating"),
        )
        every = training.samplerCheckpointSaveIntervalSteps
        job.checkpoints = max(1, job.total_steps // every) if every else 1
        usd = training_usd(self.host.name, job)
        job.price_usd = str(usd) if usd is not None else None
        return job

    def _dataset(self, name: str) -> StoredFile:
        file = self.datasets.file_of(short(name))
        if file is None:
            raise HostError(404, f"dataset {name} was not found")
        if not self.datasets.is_ready(short(name)):
            raise HostError(400, f"dataset {name} is not READY")
        return file

    def _check_rows(self, kind: JobCollection, file: StoredFile, examples: int, epochs: int) -> None:
        report = file.report
        if report is None or report.error:
            raise HostError(400, f"the dataset is invalid: {report.error if report else 'no rows'}")
        if examples < MIN_EXAMPLES:
            raise HostError(
                400, f"the dataset has {examples} examples, but at least {MIN_EXAMPLES} are required"
            )
        if examples * epochs > MAX_EXAMPLES:
            raise HostError(400, f"examples times epochs must be at most {MAX_EXAMPLES}")
        if (report.format == "preference") != (kind.method == "dpo"):
            wanted = "preference pairs" if kind.method == "dpo" else "chat or completion rows"
            raise HostError(400, f"{kind.collection} need a dataset of {wanted}")

    def _start_from(self, base: str | None, warm: str | None) -> tuple[str, SandboxJob | None]:
        if warm is not None:
            job = self.models.job_of(warm)
            if job is None:
                raise HostError(404, f"model {warm} was not found or is not a PEFT addon")
            return job.base, job
        found = base_model(base or "", self.host.name)
        if found is None:
            if self.models.job_of(base or "") is not None:
                raise HostError(400, "HF_PEFT_ADDON is not a base model; use warmStartFrom")
            raise HostError(404, f"model {base} was not found")
        if found.tunable == "no":
            raise HostError(400, f"model {base} is not tunable")
        return found.id, None


def _preference(asked: SupervisedJob | DpoJob | ReinforcementJob) -> dict[str, Any]:
    loss = asked.lossConfig if isinstance(asked, DpoJob) else None
    if loss is None:
        return {}
    if loss.method == "ORPO":
        return {"loss": "orpo"} | ({"beta": loss.orpo.weight} if loss.orpo and loss.orpo.weight else {})
    return {"loss": "dpo"} | ({"beta": loss.dpo.beta} if loss.dpo and loss.dpo.beta else {})


def _without_key(body: dict[str, Any]) -> dict[str, Any]:
    if isinstance(body.get("wandbConfig"), dict):
        return {**body, "wandbConfig": {k: v for k, v in body["wandbConfig"].items() if k != "apiKey"}}
    return body
