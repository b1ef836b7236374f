"""Training options: methods, adapters and other parts of a spec, and validation errors that quote the
YAML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from keyword import iskeyword
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from orchestrate.core.amounts import MOST
from orchestrate.errors import SpecError
from orchestrate.text import meant

if TYPE_CHECKING:
    _Part = BaseModel
else:

    class _ReadableErrors(type(BaseModel)):
        """Raises `SpecError`, with one readable line per mistake, if a part is created in Python with invalid
        values. Nested parts of parsed specs are not created by a call, so their errors keep their
        location."""

        def __call__(cls, *args, **values):
            try:
                return super().__call__(*args, **values)
            except ValidationError as error:
                mistakes = spec_errors(error, cls)
                raise SpecError(f"{cls.__name__} is not valid:", errors=mistakes) from None

    class _Part(BaseModel, metaclass=_ReadableErrors):
        pass


class SpecPart(_Part):
    """A frozen part of a spec. Rejects unknown fields."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        # Most commands never use most of these classes, so each is built only when first used.
        defer_build=True,
    )

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Return only the fields that were set, because all fields together would fill a screen."""
        return [(name, value) for name, value in super().__repr_args__() if name in self.model_fields_set]

    def __str__(self) -> str:
        return repr(self)


class SFT(SpecPart):
    """Supervised fine-tuning. Only assistant tokens contribute to the loss, unless `train_on_inputs` is
    set."""

    type: Literal["sft"] = "sft"
    train_on_inputs: bool | None = Field(
        default=None,
        description="True to train on every token, including the prompt. Default: only on answers",
    )
    earlier_thinking: Literal["train", "split", "untrained"] | None = Field(
        default=None,
        description=(
            "How to train on earlier assistant turns, if the chat template drops their reasoning. train: "
            "train on them without reasoning. split: put each in its own row, with its reasoning. "
            "untrained: use them only as context"
        ),
    )
    ignore_empty_think: bool | None = Field(
        default=None,
        description=(
            "True to exclude empty reasoning blocks from the loss. Chat templates insert them before answers "
            "without reasoning, and a model that is trained on them learns to stop reasoning"
        ),
    )
    train_on: Literal["all", "last"] | tuple[Role, ...] | None = Field(
        default=None,
        min_length=1,
        description=(
            "Messages to train on: all assistant messages, only the last one, or those with the listed "
            "roles, such as [assistant, tool]. Only on this machine, rented machines and Tinker. Elsewhere, "
            "set weight: 0 on messages"
        ),
    )

    @model_validator(mode="after")
    def _one_target(self) -> SFT:
        if self.train_on_inputs and self.train_on not in (None, "all"):
            raise ValueError("train_on_inputs trains on everything, so remove train_on_inputs or train_on")
        if isinstance(self.train_on, tuple) and len(set(self.train_on)) < len(self.train_on):
            raise ValueError("train_on contains a duplicate role")
        return self


class DPO(SpecPart):
    """Direct preference optimization on preference pairs, with the DPO or the IPO loss. Also ORPO, which
    needs no reference model, and KTO, which uses unpaired answers with a label."""

    type: Literal["dpo"] = "dpo"
    loss: Literal["dpo", "ipo", "orpo", "kto"] | None = Field(
        default=None, description="Loss function. kto needs unpaired rows"
    )
    beta: Float | None = Field(
        default=None,
        gt=0,
        le=10,
        description=(
            "Strength of the KL penalty: at most 2, or at most 10 for SimPO. For IPO, this is tau. For ORPO, "
            "this is the weight of the odds ratio relative to the loss on the preferred answer"
        ),
    )
    label_smoothing: Float | None = Field(
        default=None,
        ge=0,
        lt=0.5,
        description="Assumed fraction of pairs with flipped labels (conservative DPO)",
    )
    normalize_by_length: bool | None = Field(
        default=None, description="True to divide log-likelihoods by the answer length in tokens"
    )
    rpo_alpha: Float | None = Field(
        default=None, ge=0, description="RPO: weight of an additional loss on the preferred answer"
    )
    simpo_gamma: Float | None = Field(
        default=None,
        ge=0,
        description="SimPO: target margin between the two answers. Setting it selects SimPO",
    )
    desirable_weight: Float | None = Field(default=None, gt=0, description="KTO: weight of desirable answers")
    undesirable_weight: Float | None = Field(
        default=None, gt=0, description="KTO: weight of undesirable answers"
    )

    @model_validator(mode="after")
    def _one_loss(self) -> DPO:
        if self.beta is not None and self.beta > 2 and self.simpo_gamma is None:
            raise ValueError("beta must be at most 2 (or 10 with simpo_gamma)")
        for name in ("normalize_by_length", "rpo_alpha", "simpo_gamma", "label_smoothing"):
            if self.loss in ("ipo", "orpo", "kto") and getattr(self, name):
                raise ValueError(
                    f"{name} does not apply to the loss {self.loss}: remove {name} or change the loss"
                )
        for name in ("desirable_weight", "undesirable_weight"):
            if self.loss != "kto" and getattr(self, name) is not None:
                raise ValueError(f"{name} only applies to the loss kto: add  loss: kto  or remove it")
        return self


class RFT(SpecPart):
    """Reinforcement fine-tuning: a grader scores answers that are sampled from the model."""

    type: Literal["rft"] = "rft"
    grader: dict[str, Any] = Field(
        default_factory=dict,
        description=(
            "The grader: a grader object, or {evaluator: accounts/.../evaluators/...} on hosts that store "
            "evaluators"
        ),
    )
    reasoning_effort: Literal["default", "low", "medium", "high"] | None = Field(
        default=None, description="Reasoning effort of the sampled answers, on hosts that support it"
    )
    compute_multiplier: Float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="Multiplier for the compute spent on exploring answers, on hosts that support it",
    )
    samples_per_prompt: Int | None = Field(
        default=None, ge=1, description="Answers to sample and grade for each prompt"
    )
    kl_beta: Float | None = Field(
        default=None, ge=0, description="Weight of the KL divergence from the initial model"
    )


class LoRA(SpecPart):
    """Low-rank adapters on a frozen base model, scaled by alpha/r. For training on a host, `alpha` defaults
    to 2r."""

    type: Literal["lora"] = "lora"
    r: Int | None = Field(default=None, ge=1, le=512, description="Rank of the adapter")
    alpha: Float | None = Field(
        default=None, gt=0, description="Scale of the adapter, which is divided by the rank"
    )
    dropout: Float | None = Field(default=None, ge=0, lt=1, description="Dropout probability of the adapter")
    targets: str | tuple[str, ...] | None = Field(
        default=None, description="Modules to adapt: all-linear, or module names"
    )
    target_parameters: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description=(
            "Additional parameters to adapt, for models that store the weights of all experts in one tensor. "
            "Each is the end of a parameter name, such as experts.down_proj"
        ),
    )
    dora: bool = Field(default=False, description="DoRA: also train the magnitudes of the weights")
    rslora: bool = Field(
        default=False, description="Rank-stabilized LoRA: divide alpha by the square root of the rank"
    )
    init_lora_weights: Start | None = Field(
        default=None,
        description=(
            "Initialization of the matrices: one of the methods of peft. By default, A is random and B is 0"
        ),
    )
    rank_pattern: dict[str, Rank] | None = Field(
        default=None,
        min_length=1,
        description="Ranks by module name, or by a regular expression that matches the end of the name",
    )
    alpha_pattern: dict[str, Alpha] | None = Field(
        default=None, min_length=1, description="Values of alpha by module name, as in rank_pattern"
    )
    layers_to_transform: tuple[Layer, ...] | None = Field(
        default=None, min_length=1, description="Indices of the layers to adapt, starting at 0. Default: all"
    )
    exclude_modules: str | tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Modules to exclude from targets: names, or one regular expression",
    )
    modules_to_save: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Modules to train fully and save with the adapter"
    )
    loraplus_lr_ratio: Float | None = Field(
        default=None, ge=1, description="LoRA+: ratio of the learning rate of B to that of A"
    )

    @property
    def changes_base(self) -> bool:
        """True if the initialization modifies the base model's weights: it subtracts the initial adapter from
        them."""
        return bool(self.init_lora_weights) and self.init_lora_weights.startswith(("pissa", "olora"))

    @model_validator(mode="after")
    def _one_start(self) -> LoRA:
        if self.dora and (self.changes_base or self.init_lora_weights == "loftq"):
            raise ValueError(
                f"dora does not support init_lora_weights: {self.init_lora_weights}. Remove one of them"
            )
        return self


class QLoRA(LoRA):
    """LoRA on a 4-bit base model (NF4, double quantization). Hosts don't publish the precision of their base
    models, so on hosts this is the same as LoRA. `orchestrate plan` shows this."""

    type: Literal["qlora"] = "qlora"  # type: ignore[assignment]  # narrows the tag of the union


class Full(SpecPart):
    """Full fine-tuning: trains all weights."""

    type: Literal["full"] = "full"


Constants = Literal["betas", "eps", "momentum"]
OPTIMIZERS: Mapping[str, tuple[Constants, ...]] = {
    "adamw": ("betas", "eps"),
    "adamw_8bit": ("betas", "eps"),
    "paged_adamw": ("betas", "eps"),
    "paged_adamw_8bit": ("betas", "eps"),
    "adafactor": (),
    "lion": ("betas",),
    "lion_8bit": ("betas",),
    "paged_lion": ("betas",),
    "paged_lion_8bit": ("betas",),
    "muon": ("momentum", "betas", "eps"),
    "schedule_free_adamw": ("betas", "eps"),
}
"""Allowed parameters of each optimizer, keyed by its name. Muon only updates weight matrices. AdamW, with
`betas` and `eps`, updates all other parameters."""


class Optimizer(SpecPart):
    """An optimizer and its parameters. Unset parameters use the optimizer's defaults."""

    type: Literal[
        "adamw",
        "adamw_8bit",
        "paged_adamw",
        "paged_adamw_8bit",
        "adafactor",
        "lion",
        "lion_8bit",
        "paged_lion",
        "paged_lion_8bit",
        "muon",
        "schedule_free_adamw",
    ] = "adamw"
    betas: tuple[Decay, Decay] | None = Field(
        default=None, description="Decay rates of the gradient averages"
    )
    eps: Float | None = Field(
        default=None, gt=0, description="Constant added to the denominator for numerical stability"
    )
    momentum: Decay | None = Field(default=None, description="Momentum (Muon)")

    @model_validator(mode="after")
    def _own_constants(self) -> Optimizer:
        for name in ("betas", "eps", "momentum"):
            if getattr(self, name) is not None and name not in OPTIMIZERS[self.type]:
                raise ValueError(f"{name} is not a parameter of {self.type}: remove it")
        if self.type == "schedule_free_adamw" and self.betas and not self.betas[0]:
            raise ValueError(
                "betas: the first beta must be above 0 for schedule_free_adamw, which uses it for averaging"
            )
        return self


class TrainFile(SpecPart):
    """One file of a mix. An integer `weight` repeats each row that many times. A fractional part adds a
    seeded sample of the rows."""

    path: str = Field(min_length=1, description="Path or URL of the file")
    weight: Float = Field(
        default=1,
        gt=0,
        le=100,
        description="Number of times to repeat the rows. A fractional part adds a random sample of the rows",
    )
    seed: Int = Field(default=0, ge=0, le=2**31 - 1, description="Seed of the sample")

    @property
    def description(self) -> str:
        """A one-line description of the file, such as `b.jsonl x 0.5 (seed 0)`."""
        times = "" if self.weight == 1 else f" x {self.weight:g}"
        return self.path + times + ("" if self.weight % 1 == 0 else f" (seed {self.seed})")

    @model_validator(mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class EarlyStopping(SpecPart):
    """Stop training once the validation loss has not improved by `min_delta` for `patience` evaluations."""

    patience: Int = Field(
        default=2, ge=1, description="Evaluations without an improvement before training stops"
    )
    min_delta: Float = Field(
        default=0.0,
        ge=0,
        description="Smallest decrease of the validation loss that counts as an improvement",
    )


class WandB(SpecPart):
    """Weights & Biases settings for the host. The key comes from the environment, never from the spec."""

    project: str = Field(description="Project to log to")
    name: str | None = Field(default=None, description="Name of the W&B run")
    entity: str | None = Field(default=None, description="User or team that owns the project")
    tags: tuple[str, ...] = Field(default=(), description="Tags of the W&B run")


def method_word(method: SFT | DPO | RFT) -> str:
    """Return the method's type, or `kto` for DPO with the KTO loss. KTO is listed separately because it needs
    unpaired rows."""
    return "kto" if isinstance(method, DPO) and method.loss == "kto" else method.type


def _tagged(default: str) -> BeforeValidator:
    """Accept `method: sft` as `method: {type: sft}`. Without a type, use the default."""

    def tagged(value: Any) -> Any:
        word = cast("dict[str, Any]", value).get("type") if isinstance(value, dict) else value
        if word in ("kto", "orpo"):
            raise ValueError(f"{word} is a loss of the dpo method: write {{type: dpo, loss: {word}}}")
        if isinstance(value, str):
            return {"type": value}
        if isinstance(value, dict):
            return {"type": default, **cast("dict[str, Any]", value)}
        return value

    return BeforeValidator(tagged)


def _number(value: Any) -> Any:
    """Reject booleans. YAML reads yes, no, on and off as booleans, which Python would accept as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not yes or no")  # noqa: TRY004  pydantic reports ValueError
    return value


def _money(value: Any) -> Any:
    """Convert a YAML float by its written digits: 0.1 is ten cents, not 0.1000000000000000055."""
    return Decimal(str(value)) if isinstance(value, float) else value


def _within(usd: Decimal) -> Decimal:
    if usd > MOST:
        raise ValueError(f"must be at most {MOST:,f}")
    return usd


def _start(word: str) -> str:
    if word not in STARTS and not re.fullmatch(r"pissa_niter_[1-9][0-9]{0,2}", word):
        raise ValueError(
            f"unknown value {word!r}; allowed: {', '.join(STARTS)}, pissa_niter_N (N from 1 to 999)"
        )
    return word


def _one_or_several(value: Any) -> str:
    return "several" if isinstance(value, list | tuple) else "one"


Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float, BeforeValidator(_number)]
STARTS = ("gaussian", "orthogonal", "pissa", "olora", "loftq", "eva")
Start = Annotated[str, AfterValidator(_start)]
Rank = Annotated[Int, Field(ge=1, le=512)]
Alpha = Annotated[Float, Field(gt=0)]
Layer = Annotated[Int, Field(ge=0)]
Decay = Annotated[Float, Field(ge=0, lt=1)]
Train = Annotated[
    Annotated[str, Field(min_length=1), Tag("one")]
    | Annotated[tuple[TrainFile, ...], Field(min_length=1), Tag("several")],
    Discriminator(_one_or_several),
]
OptimizerChoice = Annotated[Optimizer, _tagged("adamw")]
Method = Annotated[SFT | DPO | RFT, Field(discriminator="type"), _tagged("sft")]
Adapter = Annotated[LoRA | QLoRA | Full, Field(discriminator="type"), _tagged("lora")]
Usd = Annotated[Decimal, BeforeValidator(_money), Field(ge=0), AfterValidator(_within)]


_OF_TEMPLATES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "true", "false", "none"}
)
"""Variable names that are reserved in every chat template."""


def _template_settings(values: dict[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        if not name.isidentifier() or iskeyword(name) or name.startswith("_") or name in _OF_TEMPLATES:
            raise ValueError(f"{name!r} is not a valid name for a template variable")
        if not _of_json(value):
            raise ValueError(f"{name} must be a string, a number, true, false, or a list or mapping of these")
    return values


def _of_json(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_of_json, cast("list[object]", value)))
    if isinstance(value, dict):
        table = cast("dict[object, object]", value)
        return all(isinstance(key, str) for key in table) and all(map(_of_json, table.values()))
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and isfinite(value))


TemplateSettings = Annotated[dict[str, Any], Field(min_length=1), AfterValidator(_template_settings)]
"""Additional variables for the chat template, as `{name: value}`."""


# -- overrides -----------------------------------------------------------------------------------------------


TYPED = ("method", "adapter", "optimizer")
"""Fields that can be a name instead of a mapping with a type."""


def table_of(part: Any) -> Any:
    """Return the settings that a part of a spec sets, and its type: QLoRA(r=8) leaves `type` unset, but
    parsing needs it to choose the class. Other values are returned unchanged."""
    if not isinstance(part, SpecPart):
        return part
    kind = getattr(part, "type", None)
    given = ({"type": kind} if kind else {}) | part.model_dump(mode="json", exclude_unset=True)
    # `early_stopping: {}` turns early stopping on, so write its defaults: `{}` would look unset.
    return given or part.model_dump(mode="json")


def merged(base: Mapping[str, Any], given: Mapping[str, Any], under: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the values of a spec, or of its part at the path `under`, with the given ones applied.

    Mappings are merged field by field, a name such as `qlora` changes only the type, and `None` removes a
    field. Other values are replaced, as are graders. Fields that the new type lacks remain, so they
    are reported instead of dropped silently."""
    values = dict(base)
    for name, value in given.items():
        path = (*under, name)
        field = path[2:] if path[0] == "overrides" else path
        old, new = values.get(name), table_of(value)
        if len(field) == 1 and field[0] in TYPED:
            old, new = ({"type": word} if isinstance(word, str) else word for word in (old, new))
        if new is None and path[0] not in ("columns", "overrides") and (name in values or _of_a_type(path)):
            values.pop(name, None)
        elif isinstance(old, Mapping) and isinstance(new, Mapping) and field != ("method", "grader"):
            tables = cast("tuple[Mapping[str, Any], Mapping[str, Any]]", (old, new))
            values[name] = merged(*tables, path)
        else:
            values[name] = new
    return values


def _of_a_type(path: Sequence[str]) -> bool:
    """Return whether some method or adapter has this setting. If not, its name must be reported."""
    return (
        path[0] in TYPED and len(path) == 2 and any(path[1] in part.model_fields for part in _TAGS.values())
    )


def _tables(overrides: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {field: table_of(value) for field, value in own.items()} for name, own in overrides.items()}


Overrides = Annotated[dict[str, dict[str, Any]], AfterValidator(_tables)]


# -- mistakes ----------------------------------------------------------------------------------------------


def spec_errors(
    error: ValidationError,
    spec: type[BaseModel],
    lines: dict[tuple[str, ...], int] | None = None,
    under: tuple[str, ...] = (),
) -> list[str]:
    """Return one line for each mistake in a spec: location, reason, allowed values.

    For a spec from a YAML file, `lines` is {path of a field: its 1-based line number}. If only a part of the
    spec was validated, `under` is the path of that part.
    """
    found: dict[str, None] = {}
    for details in error.errors():
        item: dict[str, Any] = {**details}
        loc = tuple(str(p) for p in item["loc"])
        if item["type"] == "too_short" and item["input"]:
            continue  # what is missing was refused itself
        if loc and (expected := _UNIONS.get(loc[0])):
            # For a union, pydantic reports one error per member type. Replace them with one error.
            if isinstance(item["input"], dict):
                continue
            item = {**item, "type": "union", "msg": f"must be {expected}, got {_shown(item['input'])}"}
            loc = (loc[0], *loc[2:])
        found[_describe(item, loc, spec, lines or {}, under)] = None
    return list(found)


_UNIONS = {
    "model": "a name, or a mapping with a name for each backend",
    "batch_size": "an integer, or max",
}
_EXPECTED = {
    "string_type": "text",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a name, or a mapping with a type",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "decimal_type": "an amount in US dollars",
    "decimal_parsing": "an amount in US dollars",
    "finite_number": "a finite number",
}
"""Descriptions of valid values for error messages, keyed by pydantic's error type."""
_BOUNDS = frozenset(
    {
        "greater_than",
        "greater_than_equal",
        "less_than",
        "less_than_equal",
        "literal_error",
        "string_too_long",
        "string_pattern_mismatch",
    }
)
"""Pydantic error types for which the rejected value must be added to the message. Their messages only state
the allowed values."""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _describe(
    item: dict[str, Any],
    loc: tuple[str, ...],
    spec: type[BaseModel],
    lines: dict[tuple[str, ...], int],
    under: tuple[str, ...],
) -> str:
    # pydantic adds the union's tag to the path of an error, but the user's YAML has no such key.
    tag = loc[1] if loc[:1] in (("method",), ("adapter",)) and len(loc) > 1 else None
    of_union = tag or loc[:2] in (("train", "one"), ("train", "several"))
    own = tuple(p for i, p in enumerate(loc) if p != "[key]" and not (of_union and i == 1))
    path = (*under, *own)
    reason = item["msg"].removeprefix("Value error, ")
    # The error of a rule about several fields has no path, so its message begins with the field.
    named = path or tuple(reason.split()[0].rstrip(":").split("."))
    line = next((lines[named[:n]] for n in range(len(named), 0, -1) if named[:n] in lines), None)
    place = f"line {line}: " if line else ""
    if not path:
        return f"  {place}{reason}"
    field = ".".join(path)
    kind = "model_attributes_type" if path == ("optimizer",) else item["type"]  # also accepted as a word
    if item["type"] in _EXPECTED:
        reason = f"must be {_EXPECTED[kind]}, got {_shown(item['input'])}"
        if item["type"] == "string_type" and isinstance(item["input"], int | float | date):
            reason += "; put it in quotes"
    elif item["type"] == "too_short":
        reason = "must not be empty"
    elif item["type"] == "extra_forbidden":
        reason = _unknown(own, tag, spec)
    elif item["type"] == "missing":
        reason = "required"
    elif item["type"] == "union_tag_invalid":
        tag, tags = str(item["ctx"]["tag"]), str(item["ctx"]["expected_tags"])
        guess = meant(tag, re.findall("'(.*?)'", tags))
        reason = f"unknown value {tag!r}{guess}; allowed: {tags}"
    elif item["type"] in _BOUNDS:
        reason += f", got {_shown(item['input'])}"
    return f"  {place}{field}: {reason}"


def _unknown(path: Sequence[str], tag: str | None, spec: type[BaseModel]) -> str:
    *parents, name = path
    known = sorted(_PARTS[tag or parents[0]].model_fields if parents else spec.model_fields)
    owners = [t for t, part in _TAGS.items() if tag and name in part.model_fields]
    if owners:
        fix = "remove it, or set it to null where you change the type"
        return f"is a setting of {', '.join(owners)}, not of {tag}: {fix}"
    return f"unknown field{meant(name, known)}; allowed: {', '.join(known)}"


_TAGS: dict[str, type[BaseModel]] = {
    "sft": SFT,
    "dpo": DPO,
    "rft": RFT,
    "lora": LoRA,
    "qlora": QLoRA,
    "full": Full,
}
_PARTS: dict[str, type[BaseModel]] = {
    **_TAGS,
    "early_stopping": EarlyStopping,
    "optimizer": Optimizer,
    "train": TrainFile,
    "wandb": WandB,
}
