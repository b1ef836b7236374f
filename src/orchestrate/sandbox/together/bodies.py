"""Request bodies of Together's training sessions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrate.sandbox.host import Body

ALPHA = 32
LOSSES = {
    f"LOSS_TYPE_{name.upper()}": (name, f"{name}_params")
    for name in ("cross_entropy", "importance_sampling", "ppo", "cispo", "dro")
}
"""Losses with published formulas."""


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
