"""Request bodies of OpenAI's fine-tuning API. Values are limited to the documented ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from orchestrate.http.wire import Body

JSONL = ("text/jsonl", "application/jsonl", "application/x-ndjson")
ERRORS = (
    "formula_parse_error",
    "invalid_variable_error",
    "model_grader_parse_error",
    "model_grader_refusal_error",
    "model_grader_server_error",
    "other_error",
    "python_grader_runtime_error",
    "python_grader_server_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
)
_DETAILS = (
    "model_grader_server_error_details",
    "python_grader_runtime_error_details",
    "python_grader_server_error_type",
)


def graded(
    grader: Mapping[str, Any], reward: float, errors: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """Build the response to a grader run. `errors` may contain flags from `ERRORS`, which are false by
    default, and error details."""
    return {
        "reward": reward,
        "sub_rewards": {},
        "model_grader_token_usage_per_model": {},
        "metadata": {
            "name": str(grader.get("name") or ""),
            "type": str(grader.get("type")),
            "errors": {**dict.fromkeys(ERRORS, False), **dict.fromkeys(_DETAILS), **errors},
            "execution_time": seconds,
            "scores": {},
            "token_usage": None,
            "sampled_model_name": None,
        },
    }


Auto = Literal["auto"]


class SupervisedHyperparameters(Body):
    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = "auto"
    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0)] = "auto"


class Dpo(SupervisedHyperparameters):
    beta: Auto | Annotated[float, Field(gt=0, le=2)] = "auto"


class ReinforcementHyperparameters(SupervisedHyperparameters):
    compute_multiplier: Auto | Annotated[float, Field(gt=1e-5, le=10)] = "auto"
    eval_interval: Auto | Annotated[int, Field(ge=1)] = "auto"
    eval_samples: Auto | Annotated[int, Field(ge=1)] = "auto"
    reasoning_effort: Literal["default", "low", "medium", "high"] = "default"


class SupervisedMethod(Body):
    hyperparameters: SupervisedHyperparameters = SupervisedHyperparameters()


class DpoMethod(Body):
    hyperparameters: Dpo = Dpo()


class ReinforcementMethod(Body):
    grader: dict[str, Any]
    hyperparameters: ReinforcementHyperparameters = ReinforcementHyperparameters()
    response_format: dict[str, Any] | None = None


class Method(Body):
    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: SupervisedMethod | None = None
    dpo: DpoMethod | None = None
    reinforcement: ReinforcementMethod | None = None


class WandBIntegration(Body):
    project: str
    name: str | None = None
    entity: str | None = None
    tags: list[str] | None = None


class Integration(Body):
    type: Literal["wandb"]
    wandb: WandBIntegration


class CreateJob(Body):
    model: str
    training_file: str
    validation_file: str | None = None
    method: Method | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=2147483647)] | None = None
    integrations: Annotated[list[Integration], Field(max_length=5)] | None = None
    metadata: (
        Annotated[
            dict[
                Annotated[str, Field(max_length=64)],
                Annotated[str, Field(max_length=512)],
            ],
            Field(max_length=16),
        ]
        | None
    ) = None
    hyperparameters: SupervisedHyperparameters | None = None

    def kind(self) -> str:
        return {"supervised": "sft", "dpo": "dpo", "reinforcement": "rft"}[
            self.method.type if self.method else "supervised"
        ]

    def hyper(self) -> SupervisedHyperparameters:
        """Return the hyperparameters of the selected method."""
        if self.method is None:
            return self.hyperparameters or SupervisedHyperparameters()
        match self.method.type:
            case "dpo":
                return (self.method.dpo or DpoMethod()).hyperparameters
            case "reinforcement":
                return (
                    self.method.reinforcement.hyperparameters
                    if self.method.reinforcement
                    else ReinforcementHyperparameters()
                )
            case _:
                return (self.method.supervised or SupervisedMethod()).hyperparameters


class ExpiresAfter(Body):
    """The time after which a file is deleted automatically."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2592000)]


class CreateUpload(Body):
    bytes: Annotated[int, Field(ge=1, le=8589934592)]
    filename: str
    mime_type: str
    purpose: Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
    expires_after: ExpiresAfter | None = None

    @model_validator(mode="after")
    def _type_of_the_purpose(self) -> CreateUpload:
        if self.purpose == "fine-tune" and self.mime_type not in JSONL:
            raise ValueError(f"mime_type of files for fine-tune must be one of {JSONL}")
        return self


class CompleteUpload(Body):
    part_ids: Annotated[list[str], Field(min_length=1)]
    md5: str | None = None


class Permit(Body):
    """A request that permits projects to use a checkpoint."""

    project_ids: list[str] = Field(min_length=1)


class RunGrader(Body):
    grader: dict[str, Any]
    model_sample: str
    item: dict[str, Any] | None = None


class ValidateGrader(Body):
    grader: dict[str, Any]


class _VerbatimBody(Body):
    """Base class of bodies whose values are returned to the client exactly as received."""

    model_config = ConfigDict(extra="allow", strict=True)


class GraderSampling(_VerbatimBody):
    seed: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class GraderInput(_VerbatimBody):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | dict[str, Any] | list[Any]


class ScoreModelGrader(_VerbatimBody):
    """Required fields of a grader that queries a model."""

    type: Literal["score_model"]
    name: str
    model: str
    input: list[GraderInput]
    range: list[float] = Field(default_factory=list[float])
    sampling_params: GraderSampling = GraderSampling()


class LabelModelGrader(_VerbatimBody):
    type: Literal["label_model"]
    name: str
    model: str
    input: list[GraderInput]
    labels: list[str]
    passing_labels: list[str]
