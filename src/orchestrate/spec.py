"""JobSpec: what to train, free of any backend. The same fields in YAML and in Python.

`None` means "not asked for": the backend's own default applies and is shown by `orchestrate plan`.
"""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from orchestrate.errors import SpecError


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class SFT(_Part):
    """Supervised fine-tuning. The loss falls on assistant tokens only, unless `train_on_inputs`."""

    type: Literal["sft"] = "sft"
    train_on_inputs: bool | None = None


class DPO(_Part):
    """Direct preference optimisation over preference pairs."""

    type: Literal["dpo"] = "dpo"
    beta: float | None = Field(default=None, gt=0, le=2)
    normalize_by_length: bool | None = None
    rpo_alpha: float | None = Field(default=None, ge=0)
    simpo_gamma: float | None = Field(default=None, ge=0)


class RFT(_Part):
    """Reinforcement fine-tuning: the host samples answers and a grader scores them."""

    type: Literal["rft"] = "rft"
    grader: dict[str, Any] = Field(default_factory=dict)
    """OpenAI: a grader object. Fireworks: `{"evaluator": "accounts/.../evaluators/..."}`."""
    reasoning_effort: Literal["default", "low", "medium", "high"] | None = None
    compute_multiplier: float | None = Field(default=None, gt=0, le=10)
    samples_per_prompt: int | None = Field(default=None, ge=1)


class LoRA(_Part):
    """Low-rank adapters on a frozen base. `alpha` scales by alpha/r; hosts default to 2r."""

    type: Literal["lora"] = "lora"
    r: int | None = Field(default=None, ge=1, le=512)
    alpha: float | None = Field(default=None, gt=0)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    targets: str | tuple[str, ...] | None = None
    """`all-linear`, or module names."""
    dora: bool = False
    rslora: bool = False


class QLoRA(LoRA):
    """LoRA over a base held in 4 bits (NF4, double quantisation). Hosts do not tell their base's precision;
    on a hosted backend this is LoRA, and the plan says so."""

    type: Literal["qlora"] = "qlora"  # type: ignore[assignment]  # narrows the tag of the union


class Full(_Part):
    """All weights are trained."""

    type: Literal["full"] = "full"


class EarlyStopping(_Part):
    """Stop when the validation loss has not improved by `min_delta` for `patience` evaluations."""

    patience: int = Field(default=2, ge=1)
    min_delta: float = Field(default=0.0, ge=0)


class WandB(_Part):
    """Weights & Biases settings that are passed on to the host. The key comes from the environment, never
    from here."""

    project: str
    name: str | None = None
    entity: str | None = None
    tags: tuple[str, ...] = ()


def _tagged(value: Any) -> Any:
    """`method: sft` and `method: {type: sft}` are the same."""
    return {"type": value} if isinstance(value, str) else value


def _money(value: Any) -> Any:
    """A YAML float keeps the digits that were written: 0.1 is ten cents, not 0.1000000000000000055."""
    return Decimal(str(value)) if isinstance(value, float) else value


Method = Annotated[SFT | DPO | RFT, Field(discriminator="type"), BeforeValidator(_tagged)]
Adapter = Annotated[LoRA | QLoRA | Full, Field(discriminator="type"), BeforeValidator(_tagged)]
Usd = Annotated[Decimal, BeforeValidator(_money), Field(ge=0)]


class JobSpec(_Part):
    """What to train. Raises `SpecError` (from `JobSpec.parse`) or `pydantic.ValidationError` when built
    wrongly."""

    model: str | dict[str, str] = Field(
        description="Canonical name (orchestrate models), a host's id, a hub id or a folder; "
        "or a mapping with one for each backend"
    )
    train: str = Field(min_length=1, description="Training data: path or URL")
    validation: str | None = Field(default=None, description="Validation data: path or URL")
    test: str | None = Field(
        default=None, description="Held-out rows; read by evaluation and leakage checks only"
    )
    method: Method = Field(default=SFT())
    adapter: Adapter = Field(default=LoRA())

    epochs: int | None = Field(default=None, ge=1, le=100)
    learning_rate: float | None = Field(default=None, gt=0, description="Absolute peak learning rate")
    learning_rate_multiplier: float | None = Field(
        default=None, gt=0, description="Of the host's own base rate"
    )
    batch_size: int | Literal["max"] | None = Field(
        default=None, description="Examples per optimiser step, or max"
    )
    batch_tokens: int | None = Field(
        default=None, ge=1, description="Tokens per optimiser step, where the host counts so"
    )
    gradient_accumulation: int | None = Field(default=None, ge=1)
    warmup_ratio: float | None = Field(default=None, ge=0, lt=1)
    schedule: Literal["constant", "linear", "cosine"] | None = None
    weight_decay: float | None = Field(default=None, ge=0)
    max_grad_norm: float | None = Field(default=None, gt=0)
    max_seq_length: int | None = Field(
        default=None, ge=8, description="Tokens; longer rows are truncated and reported"
    )
    packing: bool | None = None
    evals: int | None = Field(default=None, ge=0, description="Evaluations on the validation data per run")
    checkpoints: int | None = Field(default=None, ge=1, description="Checkpoints per run")
    early_stopping: EarlyStopping | None = None
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)

    suffix: str | None = Field(default=None, max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    continue_from: str | None = Field(
        default=None, description="A run, a checkpoint or a tuned model to go on from"
    )
    max_cost_usd: Usd | None = Field(
        default=None, description="Refuse when the quote's high end is above this"
    )
    tags: dict[str, str] = Field(default_factory=dict)
    wandb: WandB | None = None
    overrides: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Fields of this spec that differ on one backend, by backend name"
    )
    provider_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Fields for one backend's create request, by backend name"
    )

    @model_validator(mode="after")
    def _consistent(self) -> JobSpec:
        if self.learning_rate is not None and self.learning_rate_multiplier is not None:
            raise ValueError("learning_rate and learning_rate_multiplier exclude each other: give one")
        if not self.model or (isinstance(self.model, dict) and not all(self.model.values())):
            raise ValueError("model must not be empty")
        if isinstance(self.batch_size, int) and self.batch_size < 1:
            raise ValueError("batch_size must be at least 1")
        if self.early_stopping is not None and self.validation is None:
            raise ValueError("early_stopping needs validation data")
        for provider, fields in self.overrides.items():
            if wrong := sorted(set(fields) & {"overrides", "train", "validation", "test"}):
                raise ValueError(
                    f"overrides.{provider} cannot change {wrong[0]}: runs of one spec share their data"
                )
            known = list(JobSpec.model_fields)
            if unknown := sorted(set(fields) - set(known)):
                hint = _suggest(unknown[0], known)
                raise ValueError(f"overrides.{provider}.{unknown[0]}: unknown field{hint}")
        if self.method.type == "rft" and not self.method.grader:
            raise ValueError("method rft needs a grader")
        return self

    def model_for(self, provider: str) -> str:
        """The base model on one backend. Raises `SpecError` when `model` is a mapping that does not name
        it."""
        if isinstance(self.model, str):
            return self.model
        if provider in self.model:
            return self.model[provider]
        if "default" in self.model:
            return self.model["default"]
        raise SpecError(
            f"the spec names no model for {provider}; it has one for {', '.join(sorted(self.model))}",
            fix=f"add  {provider}: <model>  under  model:  (orchestrate models --provider {provider})",
        )

    def on(self, provider: str) -> JobSpec:
        """The spec as one backend gets it: its own model, and its `overrides` over the rest.

        Raises `SpecError` when there is no model for it or an override is wrong.
        """
        values = self.asked() | {"model": self.model_for(provider)} | self.overrides.get(provider, {})
        return JobSpec.parse({name: value for name, value in values.items() if name != "overrides"})

    def asked(self) -> dict[str, Any]:
        """The settings that the user gave, JSON-ready; defaults that were not asked for are left out. `parse`
        makes the same spec of it again."""
        given = self.model_dump(mode="json", exclude_unset=True)
        for name, value in given.items():
            # `early_stopping: {}` asks for the part with its own defaults, which is more than nothing.
            if value == {} and isinstance(part := getattr(self, name), _Part):
                given[name] = part.model_dump(mode="json")
        for name, part in (("method", self.method), ("adapter", self.adapter)):
            if (
                name in given
            ):  # LoRA(r=8) leaves its tag unset, and without it the part could not be read back
                given[name] = {"type": part.type, **given[name]}
        return given

    def hash(self) -> str:
        """sha256 of the canonical JSON of the spec: equal specs have equal hashes, whatever the YAML looked
        like."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @classmethod
    def parse(cls, values: dict[str, Any]) -> JobSpec:
        """As `model_validate`, with one readable line per mistake. Raises `SpecError`."""
        from pydantic import ValidationError

        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SpecError("the spec is not valid:", errors=spec_errors(error)) from error


def spec_errors(error: Any, lines: dict[tuple[str, ...], int] | None = None) -> list[str]:
    """One line per mistake of a pydantic `ValidationError`: place, reason, allowed values.

    `lines` maps a field's path to its 1-based line in the YAML file, when there is one.
    """
    return [_describe(item, lines or {}) for item in error.errors()]


def _describe(item: dict[str, Any], lines: dict[tuple[str, ...], int]) -> str:
    # pydantic puts the tag of the union into the path of an error inside it; people do not write it.
    path = tuple(
        str(p)
        for i, p in enumerate(item["loc"])
        if not (i == 1 and p in ("sft", "dpo", "rft", "lora", "qlora", "full"))
    )
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    place = f"line {line}: " if line else ""
    field = ".".join(path) or "spec"
    reason = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        known = _fields_at(path[:-1])
        reason = (
            f"unknown field{_suggest(path[-1], known)}; allowed: {', '.join(known)}"
            if known
            else "unknown field"
        )
    elif item["type"] == "missing":
        reason = "required"
    elif item["type"] == "union_tag_invalid":
        reason = f"{item['ctx']['tag']!r} is not known; allowed: {item['ctx']['expected_tags']}"
    return f"  {place}{field}: {reason}"


def _fields_at(path: tuple[str, ...]) -> list[str]:
    parts: dict[tuple[str, ...], list[type[BaseModel]]] = {
        (): [JobSpec],
        ("method",): [SFT, DPO, RFT],
        ("adapter",): [LoRA, Full],
        ("early_stopping",): [EarlyStopping],
        ("wandb",): [WandB],
    }
    return sorted({name for part in parts.get(path, []) for name in part.model_fields})


def _suggest(word: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
