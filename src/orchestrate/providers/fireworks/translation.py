"""Translation of a spec into Fireworks' create requests.

SFT jobs have hyperparameters at the top level, DPO and RFT jobs in `trainingConfig`. `FIELDS` lists the
source of each field. Only DPO and RFT jobs have settings for LoRA's alpha, dropout and modules. The trainer
("Training V2") rejects `batchSize`, `gradientAccumulationSteps` and `earlyStop`."""

from __future__ import annotations

import re
from math import ceil
from typing import Any

from orchestrate import catalog
from orchestrate.catalog import ModelOnHost
from orchestrate.errors import UsageError
from orchestrate.providers.calls import table, text
from orchestrate.providers.fireworks import PROFILE
from orchestrate.providers.settings import KTO_ONLY, UNPAIRED, Fields, Rows
from orchestrate.spec import JobSpec, LoRA
from orchestrate.types import Translation

ID_LIMIT = 63
MOST_RANK = 32
DEFAULT_RANK = 8
DEFAULT_BATCH = {"sft": 32, "dpo": 4, "rft": None}
MOST_BETA = 0.5
RESERVED = ("dataset", "evaluationDataset", "outputModel", "evaluator", "baseModel", "warmStartFrom")
_CARVED = "evalAutoCarveout"
_NOT_OF_SFT = "the published API of Fireworks' SFT jobs has no such field. The trainer sets its own value"
_BY_STEPS = "computed at upload from the number of rows"


def translate(spec: JobSpec, provider: str = PROFILE.kind) -> Translation:
    """Translate the spec for Fireworks. `provider` is the name of the configured instance, by default the
    backend's own name."""
    rows = Rows(provider, spec, aliases=(PROFILE.kind,), fields=FIELDS[spec.method.type])
    try:
        model = catalog.resolve(spec.model_for(provider), PROFILE.kind)
    except UsageError as error:
        rows.refuse("model", error.message)
        return rows.build(spec.model_for(provider), reserved=RESERVED)
    inside = "" if spec.method.type == "sft" else "trainingConfig."
    _files(rows, spec, model, inside)
    _method(rows, spec)
    _adapter(rows, spec, model, inside)
    _optimizer(rows, spec, inside)
    _steps(rows, spec)
    _length(rows, spec, model, inside)
    _names(rows, inside)
    if spec.packing:
        rows.keep("packing", None, rule="always on here")
    elif spec.packing is False:
        rows.refuse("packing", "Fireworks always packs rows")
    if spec.early_stopping is not None:
        rows.refuse("early_stopping", "Fireworks' trainer does not support early stopping")
    rows.refuse_if_set(
        {
            "max_grad_norm": "Fireworks sets gradient clipping automatically",
            "seed": "Fireworks has no seed setting",
            "batch_tokens": "Fireworks' trainer measures batches in rows. Set batch_size instead",
            "eval_steps": "Fireworks decides when to evaluate",
        }
    )
    rows.without_engine_settings("Fireworks")
    return rows.build(model.id, reserved=RESERVED)


def job_id_of(ref: str) -> str:
    """Convert a ref to a resource id: lowercase letters, digits and hyphens, starting with a letter, at most
    63 characters."""
    return slug(ref)[:ID_LIMIT].strip("-")


def slug(words: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
    return words if words[:1].isalpha() else f"m-{words}"


def output_model(suffix: str, ref: str) -> str:
    """Return the tuned model's id: as much of the user's suffix as fits, then the ref."""
    tail = job_id_of(ref)
    return f"{slug(suffix)[: ID_LIMIT - len(tail) - 1].strip('-')}-{tail}"


def fill_steps(body: dict[str, Any], spec: JobSpec, examples: int) -> None:
    """Add the number of warm-up steps and the number of steps between checkpoints to the request body."""
    batch = spec.batch_size if isinstance(spec.batch_size, int) else DEFAULT_BATCH[spec.method.type]
    total = ceil(examples / (batch or 1)) * (spec.epochs or 1)
    place = body if spec.method.type == "sft" else body.setdefault("trainingConfig", {})
    if spec.warmup_ratio:
        place["learningRateWarmupSteps"] = round(spec.warmup_ratio * total)
    if spec.checkpoints is not None and spec.checkpoints > 1:
        place["samplerCheckpointSaveIntervalSteps"] = max(1, ceil(total / spec.checkpoints))


def needs_steps(spec: JobSpec) -> bool:
    return bool(spec.warmup_ratio) or (spec.checkpoints or 1) > 1


# -- data, base model and method -----------------------------------------------------------------------------


def _files(rows: Rows, spec: JobSpec, model: ModelOnHost, inside: str) -> None:
    rows.train("the file is uploaded and dataset is set to its name")
    if rows.given("validation"):
        if spec.method.type == "dpo":
            rule = (
                "kept on this machine for evaluation after the run, because Fireworks' DPO jobs "
                "accept no evaluation data"
            )
            rows.map("validation", None, None, rule, exact=False)
        else:
            rows.keep(
                "validation", None, rule="the file is uploaded and evaluationDataset is set to its name"
            )
    elif spec.method.type != "dpo" and not rows.in_options(_CARVED):
        rule = "all rows are used for training and none for evaluation"
        rows.default("validation", _CARVED, False, rule, send=True)
    if rows.given("continue_from"):
        # The host accepts exactly one of warmStartFrom and baseModel.
        rule = "an adapter trained by Fireworks: accounts/.../models/..., or its id"
        rows.keep("continue_from", f"{inside}warmStartFrom", rule=rule)
    else:
        rows.send(f"{inside}baseModel", model.id)


def _method(rows: Rows, spec: JobSpec) -> None:
    kind = spec.method.type
    rows.keep("method.type", None, kind, rule=f"creates the job in Fireworks' collection for {kind} jobs")
    if kind == "sft":
        if rows.given("method.train_on_inputs"):
            rows.refuse(
                "method.train_on_inputs",
                "training uses only assistant messages. To train on only some of them, set message weights",
            )
        elif rows.given("method.train_on_inputs") is False:
            rows.keep("method.train_on_inputs", None, rule="training uses only assistant messages")
    elif kind == "dpo":
        _preference(rows)
        reason = "Fireworks supports only standard DPO and ORPO"
        rows.refuse_if_set(
            {f"method.{n}": reason for n in ("normalize_by_length", "rpo_alpha", "simpo_gamma")}
        )
    else:
        _reinforcement(rows)


def _preference(rows: Rows) -> None:
    beta = rows.given("method.beta")
    if rows.given("method.loss") == "ipo":
        rows.refuse("method.loss", "Fireworks does not support IPO. It offers DPO and ORPO")
        return
    if rows.given("method.loss") == "kto":
        rows.refuse("method.loss", f"Fireworks does not support KTO. {UNPAIRED}")
        rows.refuse_if_set({f"method.{n}": "part of KTO" for n in KTO_ONLY})
        return
    if rows.given("method.loss") == "orpo":
        rows.keep("method.loss", "lossConfig.method", "ORPO")
        if beta is not None:
            rows.keep("method.beta", "lossConfig.orpo.lambda", rule="the weight of ORPO's odds-ratio term")
        return
    # Without this field, the host may choose another loss.
    if rows.given("method.loss") is not None:
        rows.keep("method.loss", "lossConfig.method", "DPO")
    else:
        rows.send("lossConfig.method", "DPO")
    if beta is not None and beta >= MOST_BETA:
        rows.refuse("method.beta", f"Fireworks requires a value below {MOST_BETA}")
    else:
        rows.offer("method.beta", "lossConfig.dpo.beta", None, "the host's default")


def _reinforcement(rows: Rows) -> None:
    grader = table(rows.given("method.grader"))
    evaluator = text(grader.get("evaluator"))
    if evaluator is None or len(grader) > 1:
        form = 'grader: {evaluator: "accounts/<account>/evaluators/<evaluator>"}'
        rows.refuse(
            "method.grader", f"Fireworks grades with an evaluator that is stored in your account. Set {form}"
        )
    else:
        rows.keep("method.grader", "evaluator", evaluator)
    rows.offer(
        "method.samples_per_prompt", "inferenceParameters.responseCandidatesCount", None, "the host's own"
    )
    rows.offer("method.kl_beta", "lossConfig.klBeta", None, "the host's own")
    rows.refuse_if_set(
        {
            "method.reasoning_effort": "Fireworks does not support this training setting",
            "method.compute_multiplier": "Fireworks has no such setting and bills RFT by GPU time",
        }
    )


def _adapter(rows: Rows, spec: JobSpec, model: ModelOnHost, inside: str) -> None:
    adapter = spec.adapter
    if adapter.type == "full":
        rows.refuse("adapter.type", "Fireworks' managed jobs train LoRA adapters", instead="lora")
        return
    if adapter.type == "qlora":
        rule = "trained as LoRA, because Fireworks does not publish the precision of its base models"
        rows.map("adapter.type", None, "lora", rule, exact=False)
    else:
        rows.keep("adapter.type", None, "lora", rule="all managed jobs train LoRA adapters")
    most = min(MOST_RANK, (model.host.max_rank if model.host else None) or MOST_RANK)
    if adapter.r is not None and (adapter.r > most or adapter.r & (adapter.r - 1)):
        nearest = min(most, 1 << (adapter.r.bit_length() - 1))
        rows.refuse("adapter.r", f"must be a power of two, at most {most}", instead=nearest)
    else:
        rows.offer("adapter.r", f"{inside}loraRank", DEFAULT_RANK)
    if spec.method.type == "sft":
        names = ("adapter.alpha", "adapter.dropout", "adapter.targets")
        rows.refuse_if_set(dict.fromkeys(names, _NOT_OF_SFT))
        for name in names:
            if rows.given(name) is None:
                rows.default(name, None, None, "the trainer's default")
    else:
        _scaling(rows, adapter, inside)
    for name, on in (("dora", adapter.dora), ("rslora", adapter.rslora)):
        if on:
            rows.refuse(f"adapter.{name}", "Fireworks trains plain LoRA")
        elif rows.given(f"adapter.{name}") is not None:
            rows.keep(f"adapter.{name}", None, rule="always off here")


def _scaling(rows: Rows, adapter: LoRA, inside: str) -> None:
    if adapter.alpha is not None and adapter.alpha != int(adapter.alpha):
        rows.refuse("adapter.alpha", "Fireworks requires an integer", instead=round(adapter.alpha) or None)
    elif adapter.alpha is not None:
        rows.keep("adapter.alpha", f"{inside}loraAlpha", int(adapter.alpha))
    else:
        rows.default("adapter.alpha", f"{inside}loraAlpha", None, "the trainer's own")
    rows.offer("adapter.dropout", f"{inside}loraDropout", 0.0)
    if isinstance(adapter.targets, tuple):
        rows.keep("adapter.targets", f"{inside}loraTargetModules", list(adapter.targets))
    elif adapter.targets is None:
        rows.default("adapter.targets", f"{inside}loraTargetModules", None, "the trainer's own")
    elif adapter.targets == "all-linear":
        rule = "not sent, because Fireworks chooses the modules and does not publish them"
        rows.map("adapter.targets", None, None, rule, exact=False)
    else:
        rows.keep("adapter.targets", f"{inside}loraTargetModules", [adapter.targets])


# -- how ---------------------------------------------------------------------------------------------------


def _optimizer(rows: Rows, spec: JobSpec, inside: str) -> None:
    rows.offer("epochs", f"{inside}epochs", 1)
    rows.offer("learning_rate", f"{inside}learningRate", None, "the model's default")
    rows.refuse_if_set(
        {"learning_rate_multiplier": "Fireworks does not publish a base rate to multiply. Set learning_rate"}
    )
    if spec.batch_size == "max":
        usual = DEFAULT_BATCH[spec.method.type]
        rows.refuse("batch_size", "Fireworks needs a batch size in rows", instead=usual)
    else:
        rows.offer("batch_size", f"{inside}batchSizeSamples", DEFAULT_BATCH[spec.method.type])
    if spec.gradient_accumulation == 1:
        rows.keep("gradient_accumulation", None, rule="always none here")
    elif spec.gradient_accumulation is not None:
        rows.refuse(
            "gradient_accumulation",
            "Fireworks' trainer rejects gradient accumulation. Raise batch_size instead",
        )
    rows.offer("weight_decay", f"{inside}optimizerWeightDecay", None, "the trainer's own")
    wire = f"{inside}lrScheduler"
    if spec.schedule in ("polynomial", "warmup_stable_decay"):
        rows.refuse("schedule", "Fireworks supports the schedules constant, linear and cosine")
        rows.refuse_if_set({"min_lr_ratio": "applies only to a schedule that Fireworks does not support"})
    elif spec.schedule is None:
        rows.default("schedule", wire, "constant")
        constant = "Fireworks' schedule is constant by default. Set schedule to cosine or linear"
        rows.refuse_if_set({"min_lr_ratio": constant})
    elif spec.schedule == "constant":
        rows.keep("schedule", wire, {"constant": {}})
    else:
        least = {} if spec.min_lr_ratio is None else {"minLrRatio": spec.min_lr_ratio}
        down = f"down to {spec.min_lr_ratio or 0:g} of the peak"
        rule = f"{down}, only for base models that Training V2 supports"
        rows.keep("schedule", wire, {spec.schedule: least}, rule=rule)
        if least:
            rows.keep("min_lr_ratio", f"{wire}.{spec.schedule}.minLrRatio")


def _steps(rows: Rows, spec: JobSpec) -> None:
    """Translate ratios and numbers per run that Fireworks counts in steps."""
    inside = "" if spec.method.type == "sft" else "trainingConfig."
    if spec.warmup_steps is not None:
        rows.keep("warmup_steps", f"{inside}learningRateWarmupSteps")
    elif spec.warmup_ratio:
        rule = f"the ratio times the number of optimizer steps, {_BY_STEPS}"
        rows.map("warmup_ratio", f"{inside}learningRateWarmupSteps", None, rule)
    elif spec.warmup_ratio is not None:
        rows.keep("warmup_ratio", f"{inside}learningRateWarmupSteps", 0)
    else:
        rows.default("warmup_ratio", f"{inside}learningRateWarmupSteps", 0.0)
    wire = f"{inside}samplerCheckpointSaveIntervalSteps"
    if spec.checkpoint_steps is not None and spec.method.type != "rft":
        rule = "Fireworks shows checkpoints only in its console"
        rows.map("checkpoint_steps", wire, spec.checkpoint_steps, rule, exact=False)
    elif spec.checkpoint_steps is not None:
        rows.refuse("checkpoint_steps", "Fireworks sets this automatically for RFT jobs")
    elif spec.checkpoints is None or spec.checkpoints == 1:
        name = "checkpoints"
        if spec.checkpoints is None:
            rows.default(name, wire, 1, "saves only the final model")
        else:
            rows.keep(name, None, rule="the final model")
    elif spec.method.type == "rft":
        rows.refuse("checkpoints", "Fireworks sets this automatically for RFT jobs")
    else:
        rule = (
            f"the number of optimizer steps divided by the number of checkpoints, {_BY_STEPS}. "
            "Fireworks shows checkpoints only in its console"
        )
        rows.map("checkpoints", wire, None, rule, exact=False)
    if spec.evals == 0 and spec.validation is None:
        rows.keep("evals", None, rule="no evaluation data")
    elif spec.evals is not None:
        rows.refuse("evals", "Fireworks decides when to evaluate")


def _length(rows: Rows, spec: JobSpec, model: ModelOnHost, inside: str) -> None:
    most = model.context(spec.method.type)
    if spec.max_seq_length is not None and most is not None and spec.max_seq_length > most:
        rows.refuse("max_seq_length", f"at most {most:,} tokens for {model.name}", instead=most)
    else:
        rows.offer("max_seq_length", f"{inside}maxContextLength", None, "the model's own")


def _names(rows: Rows, inside: str) -> None:
    suffix = rows.given("suffix")
    if suffix is not None:
        kept = slug(suffix)
        rule = f"the model is called {kept}-<ref>. Ids contain only lowercase letters, digits and hyphens"
        rows.map("suffix", f"{inside}outputModel", None, rule, exact=kept == suffix)
    if rows.given("wandb.project") is None:
        return
    rows.keep("wandb.project", "wandbConfig.project")
    rows.send("wandbConfig.enabled", True)
    if rows.given("wandb.entity") is not None:
        rows.keep("wandb.entity", "wandbConfig.entity")
    if rows.given("wandb.name") is not None:
        rule = "Fireworks accepts a W&B run id, but not a run name"
        rows.map("wandb.name", "wandbConfig.runId", rows.given("wandb.name"), rule, exact=False)
    rows.refuse_if_set({"wandb.tags": "Fireworks does not pass tags to W&B"})


# -- the fields of the create request ----------------------------------------------------------------------
# The fields for each of the three job types.
#
# Sources: the SDK `fireworks-ai` 1.2.30 and the gateway's API descriptions, 5.10.0 for supervised jobs and
# 4.259.0 for the others. The schedule fields of the others come from models generated from 5.10.0, because
# that description is not available.


_SHARED = """
    dataset displayName reservationTarget awsS3Config.credentialsSecret
    awsS3Config.iamRoleArn azureBlobStorageConfig.credentialsSecret
    azureBlobStorageConfig.managedIdentityClientId azureBlobStorageConfig.tenantId wandbConfig.apiKey
    wandbConfig.enabled wandbConfig.entity wandbConfig.project wandbConfig.runId
"""
_TRAINING = """
    baseModel batchSize batchSizeSamples samplerCheckpointSaveIntervalSteps epochs gradientAccumulationSteps
    jinjaTemplate learningRate learningRateWarmupSteps loraRank maxContextLength optimizerWeightDecay
    outputModel region warmStartFrom
"""
_LOSS = """
    lossConfig.dpo.beta lossConfig.dpo.refCacheConcurrency lossConfig.dpo.refCacheBatchSize
    lossConfig.klBeta lossConfig.method
"""
_ADAPTER = """
    trainingConfig.loraAlpha trainingConfig.loraDropout trainingConfig.loraTargetModules
"""


def _inside(names: str) -> str:
    return " ".join(f"trainingConfig.{name}" for name in names.split())


FIELDS = {
    "sft": Fields(
        sdk=f"""{_SHARED} {_TRAINING} earlyStop evalAutoCarveout evaluationDataset isTurbo mtpEnabled
            rendererHuggingFaceRepoId mtpFreezeBaseModel mtpNumDraftTokens nodes
            usePurpose useReservation metricsFileSignedUrl""",
        specification="""lrScheduler.constant lrScheduler.cosine.decayRatio
            lrScheduler.cosine.minLrRatio lrScheduler.linear.decayRatio lrScheduler.linear.minLrRatio
            purpose""",
    ),
    "dpo": Fields(
        sdk=f"{_SHARED} {_inside(_TRAINING)} {_LOSS} rendererHuggingFaceRepoId useReservation",
        specification=f"{_ADAPTER} lossConfig.orpo.lambda purpose",
        documentation="trainingConfig.lrScheduler",
    ),
    "rft": Fields(
        sdk=f"""{_SHARED} {_inside(_TRAINING)} {_LOSS} evaluator chunkSize evalAutoCarveout evaluationDataset
            inferenceParameters.extraBody inferenceParameters.maxOutputTokens
            inferenceParameters.responseCandidatesCount inferenceParameters.temperature
            inferenceParameters.topK inferenceParameters.topP maxConcurrentEvaluations maxConcurrentRollouts
            maxInferenceReplicaCount mcpServer nodeCount""",
        specification=f"{_ADAPTER} lossConfig.orpo.lambda purpose",
        documentation="trainingConfig.lrScheduler useReservation",
    ),
}
"""Maps the spec's methods to their request fields."""
