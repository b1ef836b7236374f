"""How to train: the methods and adapters of a spec, and its further parts."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Part(BaseModel):
    """Frozen, and without fields that there are not."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class SFT(Part):
    """Supervised fine-tuning. The loss falls on assistant tokens only, unless `train_on_inputs`."""

    type: Literal["sft"] = "sft"
    train_on_inputs: bool | None = None


class DPO(Part):
    """Direct preference optimisation over preference pairs; ORPO, which needs no reference model; and KTO,
    over unpaired answers with a label."""

    type: Literal["dpo"] = "dpo"
    loss: Literal["dpo", "orpo", "kto"] | None = None
    beta: Float | None = Field(default=None, gt=0, le=10)
    """Up to 2; of SimPO, whose likelihoods are means over the tokens, up to 10. Of ORPO: the weight of the
    odds ratio beside the loss of the preferred answer."""
    normalize_by_length: bool | None = None
    rpo_alpha: Float | None = Field(default=None, ge=0)
    simpo_gamma: Float | None = Field(default=None, ge=0)
    desirable_weight: Float | None = Field(default=None, gt=0)
    """Of KTO, as `undesirable_weight`: the weight of the loss of the answers with this label."""
    undesirable_weight: Float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_loss(self) -> DPO:
        if self.beta is not None and self.beta > 2 and self.simpo_gamma is None:
            raise ValueError("beta must be at most 2; with simpo_gamma, at most 10")
        for name in ("normalize_by_length", "rpo_alpha", "simpo_gamma"):
            if self.loss in ("orpo", "kto") and getattr(self, name):
                raise ValueError(f"{name} belongs to other losses than {self.loss}: leave one of them out")
        for name in ("desirable_weight", "undesirable_weight"):
            if self.loss != "kto" and getattr(self, name) is not None:
                raise ValueError(f"{name} belongs to the loss kto: add  loss: kto  or leave it out")
        return self


class RFT(Part):
    """Reinforcement fine-tuning: answers are sampled and a grader scores them."""

    type: Literal["rft"] = "rft"
    grader: dict[str, Any] = Field(default_factory=dict)
    """OpenAI and this machine: a grader object. Fireworks: `{"evaluator":
    "accounts/.../evaluators/..."}`."""
    reasoning_effort: Literal["default", "low", "medium", "high"] | None = None
    compute_multiplier: Float | None = Field(default=None, gt=0, le=10)
    samples_per_prompt: Int | None = Field(default=None, ge=1)
    kl_beta: Float | None = Field(default=None, ge=0)
    """Weight of the divergence from the model as the run began."""


class LoRA(Part):
    """Low-rank adapters on a frozen base. `alpha` scales by alpha/r; hosts default to 2r."""

    type: Literal["lora"] = "lora"
    r: Int | None = Field(default=None, ge=1, le=512)
    alpha: Float | None = Field(default=None, gt=0)
    dropout: Float | None = Field(default=None, ge=0, lt=1)
    targets: str | tuple[str, ...] | None = None
    """`all-linear`, or module names."""
    dora: bool = False
    rslora: bool = False


class QLoRA(LoRA):
    """LoRA over a base held in 4 bits (NF4, double quantisation). Hosts do not tell their base's precision;
    on a hosted backend this is LoRA, and the plan says so."""

    type: Literal["qlora"] = "qlora"  # type: ignore[assignment]  # narrows the tag of the union


class Full(Part):
    """All weights are trained."""

    type: Literal["full"] = "full"


class EarlyStopping(Part):
    """Stop when the validation loss has not improved by `min_delta` for `patience` evaluations."""

    patience: Int = Field(default=2, ge=1)
    min_delta: Float = Field(default=0.0, ge=0)


class WandB(Part):
    """Weights & Biases settings that are passed on to the host. The key comes from the environment, never
    from here."""

    project: str
    name: str | None = None
    entity: str | None = None
    tags: tuple[str, ...] = ()


def method_word(method: SFT | DPO | RFT) -> str:
    """`kto` where its rows are wanted, else the method's type."""
    return "kto" if isinstance(method, DPO) and method.loss == "kto" else method.type


def _tagged(default: str) -> BeforeValidator:
    """`method: sft` and `method: {type: sft}` are the same; without a type it is the default."""

    def tagged(value: Any) -> Any:
        word = cast("dict[str, Any]", value).get("type") if isinstance(value, dict) else value
        if word in ("kto", "orpo"):
            raise ValueError(f"{word} is a loss of dpo: write {{type: dpo, loss: {word}}}")
        if isinstance(value, str):
            return {"type": value}
        if isinstance(value, dict):
            return {"type": default, **cast("dict[str, Any]", value)}
        return value

    return BeforeValidator(tagged)


def _number(value: Any) -> Any:
    """YAML reads yes, no, on and off as booleans, which Python would take as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not yes or no")  # noqa: TRY004  pydantic reports ValueError
    return value


def _money(value: Any) -> Any:
    """A YAML float keeps the digits that were written: 0.1 is ten cents, not 0.1000000000000000055."""
    return Decimal(str(value)) if isinstance(value, float) else value


Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float, BeforeValidator(_number)]
Method = Annotated[SFT | DPO | RFT, Field(discriminator="type"), _tagged("sft")]
Adapter = Annotated[LoRA | QLoRA | Full, Field(discriminator="type"), _tagged("lora")]
Usd = Annotated[Decimal, BeforeValidator(_money), Field(ge=0)]
