"""Request bodies of the Fireworks gateway, with the ranges that its documentation gives.

Fields that the current trainer rejects (`batchSize`, `gradientAccumulationSteps`, `jinjaTemplate`, `mtp...`,
`earlyStop`) are known and refused with their own message.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrate.sandbox.host import Body

Rank = Literal[1, 2, 4, 8, 16, 32]
_REJECTED = (
    "batchSize",
    "gradientAccumulationSteps",
    "jinjaTemplate",
    "mtpEnabled",
    "mtpNumDraftTokens",
    "mtpFreezeBaseModel",
    "earlyStop",
)


class WandB(Body):
    enabled: bool = False
    apiKey: str | None = None
    project: str | None = None
    entity: str | None = None
    runId: str | None = None


class Decay(Body):
    minLrRatio: Annotated[float, Field(ge=0, le=1)] | None = None
    decayRatio: Annotated[float, Field(ge=0, le=1)] | None = None


class Schedule(Body):
    constant: dict[str, Any] | None = None
    linear: Decay | None = None
    cosine: Decay | None = None

    @model_validator(mode="after")
    def _one(self) -> Schedule:
        if len(self.model_fields_set) != 1:
            raise ValueError("exactly one of constant, linear and cosine must be given")
        return self


class Training(Body):
    """What supervised jobs have at the top level and the others under `trainingConfig`."""

    baseModel: str | None = None
    warmStartFrom: str | None = None
    outputModel: str | None = None
    epochs: Annotated[int, Field(ge=1)] = 1
    learningRate: Annotated[float, Field(gt=0)] | None = None
    learningRateWarmupSteps: Annotated[int, Field(ge=0)] | None = None
    loraRank: Rank = 8
    maxContextLength: Annotated[int, Field(ge=1)] | None = None
    batchSizeSamples: Annotated[int, Field(ge=1)] | None = None
    optimizerWeightDecay: Annotated[float, Field(ge=0)] | None = None
    samplerCheckpointSaveIntervalSteps: Annotated[int, Field(ge=0)] | None = None
    region: str | None = None
    lrScheduler: Schedule | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_taken_any_more(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for name in _REJECTED:
                if name in values:
                    raise ValueError(f"{name} is not supported by Training V2")
        return values  # pyright: ignore[reportUnknownVariableType]

    @model_validator(mode="after")
    def _one_start(self) -> Training:
        if (self.baseModel is None) == (self.warmStartFrom is None):
            raise ValueError("exactly one of baseModel and warmStartFrom must be specified")
        return self


class OwnTraining(Training):
    """`trainingConfig`."""

    loraAlpha: Annotated[int, Field(ge=0)] | None = None
    loraDropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    loraTargetModules: list[str] | None = None
    trainerShardingScheme: dict[str, Any] | None = None


class Common(Body):
    dataset: str
    displayName: str | None = None
    wandbConfig: WandB | None = None
    reservationTarget: str | None = None
    useReservation: bool | None = None
    purpose: Literal["PURPOSE_UNSPECIFIED", "PURPOSE_PILOT"] | None = None
    awsS3Config: dict[str, Any] | None = None
    azureBlobStorageConfig: dict[str, Any] | None = None


class SupervisedJob(Training, Common):
    evaluationDataset: str | None = None
    evalAutoCarveout: bool | None = None
    isTurbo: bool | None = None
    nodes: int | None = None
    metricsFileSignedUrl: str | None = None
    rendererHuggingFaceRepoId: str | None = None
    usePurpose: str | None = None

    def training(self) -> Training:
        return self


class DpoConfig(Body):
    beta: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    refCacheConcurrency: int | None = None
    refCacheBatchSize: int | None = None


class OrpoConfig(Body):
    # The host's word for it is one of Python's own.
    weight: float | None = Field(default=None, alias="lambda", ge=0)


class LossConfig(Body):
    method: Literal["METHOD_UNSPECIFIED", "GRPO", "DAPO", "DPO", "ORPO", "GSPO_TOKEN"] = "METHOD_UNSPECIFIED"
    dpo: DpoConfig | None = None
    orpo: OrpoConfig | None = None
    klBeta: float | None = None


class DpoJob(Common):
    trainingConfig: OwnTraining
    rendererHuggingFaceRepoId: str | None = None
    lossConfig: LossConfig | None = None

    @property
    def evaluationDataset(self) -> str | None:
        return None

    def training(self) -> Training:
        return self.trainingConfig


class InferenceParameters(Body):
    maxOutputTokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    topP: Annotated[float, Field(ge=0, le=1)] | None = None
    topK: Annotated[int, Field(ge=0)] | None = None
    responseCandidatesCount: Annotated[int, Field(ge=1)] | None = None
    extraBody: str | None = None


class ReinforcementJob(Common):
    evaluator: str
    trainingConfig: OwnTraining
    lossConfig: LossConfig | None = None
    evaluationDataset: str | None = None
    evalAutoCarveout: bool | None = None
    inferenceParameters: InferenceParameters | None = None
    chunkSize: int | None = None
    maxConcurrentRollouts: int | None = None
    maxConcurrentEvaluations: int | None = None
    maxInferenceReplicaCount: int | None = None
    mcpServer: str | None = None
    nodeCount: int | None = None

    def training(self) -> Training:
        return self.trainingConfig


class Dataset(Body):
    displayName: str | None = None
    exampleCount: str | int | None = None
    userUploaded: dict[str, Any] | None = None
    format: Literal["FORMAT_UNSPECIFIED", "CHAT", "COMPLETION", "RL"] | None = None
    externalUrl: str | None = None
    evalProtocol: Any = None
    evaluationResult: Any = None
    sourceJobName: str | None = None
    splitted: Any = None
    transformed: Any = None


class CreateDataset(Body):
    datasetId: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
    dataset: Dataset
    sourceDatasetId: str | None = None


class UploadEndpoint(Body):
    filenameToSize: Annotated[dict[str, str | int], Field(min_length=1)]
    readMask: str | None = None
