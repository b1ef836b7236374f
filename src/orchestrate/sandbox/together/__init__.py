"""The simulated Together."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrate.catalog import resolve
from orchestrate.sandbox.host import Body
from orchestrate.sandbox.uploads import AcceptedRows

# Request bodies of Together's fine-tuning API. The SDK sends `wandb_key`, but the published API description
# has `wandb_api_key`. Both are accepted.


class LoraType(Body):
    type: Literal["Lora"]
    lora_r: Annotated[int, Field(ge=1)]
    lora_alpha: Annotated[int, Field(ge=1)] | None = None
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    lora_trainable_modules: str = "all-linear"


class FullType(Body):
    type: Literal["Full"]


class Sft(Body):
    method: Literal["sft"]
    train_on_inputs: bool | Literal["auto"] = "auto"


class TogetherDpo(Body):
    method: Literal["dpo"]
    dpo_beta: Annotated[float, Field(ge=0)] | None = None
    dpo_normalize_logratios_by_length: bool = False
    dpo_reference_free: bool = False
    rpo_alpha: Annotated[float, Field(ge=0)] | None = None
    simpo_gamma: Annotated[float, Field(ge=0)] | None = None


class SchedulerArgs(Body):
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] | None = 0.0
    num_cycles: Annotated[float, Field(gt=0)] | None = None


class Scheduler(Body):
    lr_scheduler_type: Literal["linear", "cosine"]
    lr_scheduler_args: SchedulerArgs | None = None


class Multimodal(Body):
    train_vision: bool = False


TrainingType = Annotated[LoraType | FullType, Field(discriminator="type")]
TrainingMethod = Annotated[Sft | TogetherDpo, Field(discriminator="method")]


class TogetherCreateJob(Body):
    training_file: str
    validation_file: str | None = None
    packing: bool = True
    model: str | None = None
    n_epochs: Annotated[int, Field(ge=1)] = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    lr_scheduler: Scheduler | None = None
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    n_checkpoints: Annotated[int, Field(ge=1)] = 1
    n_evals: Annotated[int, Field(ge=0)] = 0
    max_seq_length: Annotated[int, Field(ge=1)] | None = None
    batch_size: int | Literal["max"] = "max"
    gradient_accumulation_steps: Annotated[int, Field(ge=0)] | None = None
    suffix: Annotated[str, Field(max_length=40)] | None = None
    wandb_key: str | None = None
    wandb_api_key: str | None = None
    wandb_base_url: str | None = None
    wandb_project_name: str | None = None
    wandb_name: str | None = None
    wandb_entity: str | None = None
    random_seed: Annotated[int, Field(ge=0)] | None = None
    early_stopping_enabled: bool = False
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    early_stopping_min_delta: Annotated[float, Field(ge=0)] | None = None
    early_stopping_warmup_evals: Annotated[int, Field(ge=0)] | None = None
    training_type: TrainingType | None = None
    training_method: TrainingMethod = Sft(method="sft")
    from_checkpoint: str | None = None
    multimodal_params: Multimodal | None = None
    from_hf_model: str | None = None
    hf_model_revision: str | None = None
    hf_api_token: str | None = None
    hf_output_repo_name: str | None = None
    train_on_inputs: bool | Literal["auto"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Treat an empty string as absent. Together's own command line sends one for each option that was not
        given."""
        return {name: value for name, value in values.items() if value != ""}

    @model_validator(mode="after")
    def _one_start(self) -> TogetherCreateJob:
        if (self.model is None) == (self.from_checkpoint is None):
            raise ValueError("specify exactly one of model and from_checkpoint")
        if self.early_stopping_enabled:
            patience = 2 if self.early_stopping_patience is None else self.early_stopping_patience
            warmup = 1 if self.early_stopping_warmup_evals is None else self.early_stopping_warmup_evals
            if not self.validation_file or self.n_evals < patience + warmup + 1:
                raise ValueError("early stopping requires a validation_file and a sufficiently large n_evals")
        if self.n_evals and not self.validation_file:
            raise ValueError("n_evals requires a validation_file")
        return self


class EstimatePrice(Body):
    training_file: str
    validation_file: str | None = None
    model: str | None = None
    from_checkpoint: str | None = None
    n_epochs: Annotated[int, Field(ge=1)] = 1
    n_evals: Annotated[int, Field(ge=0)] = 0
    training_type: TrainingType | None = None
    training_method: TrainingMethod = Sft(method="sft")


class Preview(Body):
    model: str
    training_file: str
    top_k: Annotated[int, Field(ge=1, le=100)] = 5
    train_on_inputs: bool = False
    training_method: Literal["sft"] = "sft"


class Initiate(Body):
    file_name: str
    file_size: Annotated[int, Field(ge=1)]
    num_parts: Annotated[int, Field(ge=1, le=250)]
    purpose: str
    file_type: str
    checksum: str | None = None


class Complete(Body):
    upload_id: str
    file_id: str
    parts: list[dict[str, Any]]


class Abort(Body):
    upload_id: str
    file_id: str


# The limits that `fine-tunes/models/limits` returns for a base model, and the rows that Together accepts.


DEFAULT_CONTEXT = 32768
TAKEN = AcceptedRows(
    message_fields=frozenset({"reasoning", "reasoning_content"}),
    text=True,
    mixed_fields=False,
    any_first_role=False,
)


@cache
def limits_of(model: str) -> dict[str, Any]:
    """Return a model's limits from the catalog. If the catalog has none, use the limits that apply to most
    models at Together."""
    resolved = resolve(model, "together")
    host = resolved.host
    rank = (host.max_rank if host else None) or 64
    full = host is not None and "full" in host.adapters
    sizes = {"max_batch_size": 64, "max_batch_size_dpo": 32, "min_batch_size": 1}
    none = dict.fromkeys(sizes, 0)
    return {
        "model_name": model,
        "max_num_epochs": 20,
        "max_num_evals": 100,
        "max_num_checkpoints": 100,
        "min_learning_rate": 1e-8,
        "max_learning_rate": 0.01,
        "max_seq_length_sft": resolved.context("sft") or DEFAULT_CONTEXT,
        "max_seq_length_dpo": resolved.context("dpo") or DEFAULT_CONTEXT,
        "min_max_seq_length": 64,
        "supports_vision": bool(resolved.model and resolved.model.vision),
        "supports_tools": True,
        "supports_reasoning": bool(resolved.model and resolved.model.reasoning),
        "supports_full_training": full,
        "merge_output_lora": True,
        "default_gradient_accumulation_steps": 1,
        "lora_training": {
            **sizes,
            "default_rank": min(8, rank),
            "max_rank": rank,
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        },
        "full_training": sizes if full else none,
        "sandbox": True,
    }


# -- request bodies for training sessions ----------------------------------------------------------------


ALPHA = 32
LOSSES = {
    f"LOSS_TYPE_{name.upper()}": (name, f"{name}_params")
    for name in ("cross_entropy", "importance_sampling", "ppo", "cispo", "dro")
}
"""The supported losses, which are the ones with published formulas, as {API name: (engine's name, parameter
field)}."""


class Compute(Body):
    gpu_type: Literal["B200-SXM"] = "B200-SXM"
    num_generator_replicas: Annotated[int, Field(ge=0)] = 1


class OptimizerChoice(Body):
    adam: dict[str, Any] | None = None


class CreateResources(Body):
    base_model: str
    compute_config: Compute = Compute()
    inactive_timeout: Annotated[int, Field(ge=300, le=86400)] = 3600
    lora_enabled: Literal[True] = True
    optimizer_config: OptimizerChoice = OptimizerChoice()


class ExtendExpiry(Body):
    seconds: Annotated[int, Field(ge=1, le=86400)]


class StopResources(Body):
    force: bool = False


class SessionLora(Body):
    rank: Annotated[int, Field(ge=1, le=128)] = 8
    alpha: Literal[32] = ALPHA
    dropout: Literal[0] = 0
    seed: int | None = None
    train_unembed: bool = True


class CreateTrainingSession(Body):
    model_resources_id: str
    display_name: str | None = None
    lora_config: SessionLora = SessionLora()
    resume_from_checkpoint_id: str | None = None
    load_optimizer: bool = True


class EncodedText(Body):
    tokens: list[int]


class InputChunk(Body):
    encoded_text: EncodedText


class SessionInput(Body):
    chunks: list[InputChunk]

    def ids(self) -> list[int]:
        return [id for chunk in self.chunks for id in chunk.encoded_text.tokens]


class SessionTensor(Body):
    data: list[float]
    dtype: Literal["int64", "float32"]
    shape: list[int] | None = None

    def sent(self) -> dict[str, Any]:
        import numpy as np

        array = np.asarray(self.data, dtype="<i8" if self.dtype == "int64" else "<f4")
        return {"data": array.tobytes(), "shape": [len(array)], "kind": array.dtype.str}


class SessionSample(Body):
    model_input: SessionInput
    loss_fn_inputs: dict[str, SessionTensor]

    def row(self, **more: SessionTensor) -> dict[str, Any]:
        inputs = {name: tensor.sent() for name, tensor in {**self.loss_fn_inputs, **more}.items()}
        return {"tokens": self.model_input.ids(), "inputs": inputs}


class LossChoice(Body):
    type: str
    cross_entropy_params: dict[str, float] | None = None
    ppo_params: dict[str, float] | None = None
    cispo_params: dict[str, float] | None = None
    dro_params: dict[str, float] | None = None


class ForwardBackward(Body):
    loss: LossChoice
    samples: Annotated[list[SessionSample], Field(min_length=1)]
    forward_only: bool = False
    return_loss_fn_outputs: bool = False


class LossGradient(Body):
    data: list[float]
    dtype: Literal["D_TYPE_FLOAT32"]


class CustomForwardBackward(Body):
    samples: Annotated[list[SessionSample], Field(min_length=1)]
    gradients: list[LossGradient]


class StepAdam(Body):
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 1.0


class OptimStep(Body):
    adam_params: StepAdam = StepAdam()


class Drawing(Body):
    max_tokens: Annotated[int, Field(ge=1)] = 256
    seed: int | None = None
    stop: tuple[str, ...] = ()
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_k: int = -1
    top_p: float = 1.0


class SampleSession(Body):
    model_inputs: Annotated[list[SessionInput], Field(min_length=1, max_length=1)]
    num_samples: Annotated[int, Field(ge=1)] = 1
    sampling_params: Drawing = Drawing()


class WeightsSync(Body):
    weight_sync_type: Literal["WEIGHT_SYNC_TYPE_SYNCHRONOUS"]


class Nothing(Body):
    pass


KINDS: dict[str, type[Body]] = {
    "forward-backward": ForwardBackward,
    "custom-forward-backward": CustomForwardBackward,
    "optim-step": OptimStep,
    "sample": SampleSession,
    "weights-sync": WeightsSync,
    "training-checkpoint": Nothing,
    "inference-checkpoint": Nothing,
}
