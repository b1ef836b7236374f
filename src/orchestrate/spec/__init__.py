"""JobSpec: what to train, independent of any backend. The fields are the same in YAML and in Python. `None`
means "not set": the backend's own default applies, and `orchestrate plan` shows it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from orchestrate.errors import SpecError
from orchestrate.spec.methods import DPO as DPO
from orchestrate.spec.methods import RFT as RFT
from orchestrate.spec.methods import SFT as SFT
from orchestrate.spec.methods import (
    Adapter,
    Float,
    Int,
    Method,
    OptimizerChoice,
    Overrides,
    SpecPart,
    TemplateSettings,
    Train,
    Usd,
    merged,
    spec_errors,
    table_of,
)
from orchestrate.spec.methods import EarlyStopping as EarlyStopping
from orchestrate.spec.methods import Full as Full
from orchestrate.spec.methods import LoRA as LoRA
from orchestrate.spec.methods import Optimizer as Optimizer
from orchestrate.spec.methods import QLoRA as QLoRA
from orchestrate.spec.methods import TrainFile as TrainFile
from orchestrate.spec.methods import WandB as WandB
from orchestrate.spec.methods import method_word as method_word
from orchestrate.text import meant


def _no_ref(suffix: str) -> str:
    if found := re.search(r"orc[-_.][0-9a-z]{12}", suffix.lower()):
        raise ValueError(
            f"it contains {found.group()!r}, which looks like the tag that links a job to its run"
        )
    return suffix


Suffix = Annotated[
    str, Field(max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"), AfterValidator(_no_ref)
]


SpecGiven: TypeAlias = "JobSpec | str | PathLike[str] | Mapping[str, Any]"
"""A spec, the path of a spec file, or a mapping of its fields."""


def renaming_of(columns: Mapping[str, str | None] | None) -> dict[str, str]:
    """Convert a spec's `columns` to {field: column} for file readers. A field that is mapped to `None` gets
    an empty string as its column, so that readers ignore the field."""
    return {field: column or "" for field, column in (columns or {}).items()}


class JobSpec(SpecPart):
    """Specification of a job: model, data, method and settings. Raises `SpecError` for invalid values."""

    model: str | dict[str, str] = Field(
        description=(
            "Base model: a canonical name (orchestrate models), a host's model id, a Hugging Face Hub id, a "
            "folder, or a mapping with one entry per backend"
        )
    )
    train: Train = Field(
        description="Training data: a path, a URL, or a list to mix: [{path: a.jsonl, weight: 2}, b.jsonl]"
    )
    validation: str | None = Field(default=None, description="Validation data: path or URL")
    test: str | None = Field(
        default=None, description="Held-out test data, used only for evaluation and leakage checks"
    )
    columns: dict[str, Annotated[str, Field(min_length=1)] | None] | None = Field(
        default=None,
        description="Column mapping. FIELD: COLUMN reads a column as a field. COLUMN: null ignores a column",
    )
    method: Method = Field(
        default=SFT(), description="Training method: a name, or a mapping with its settings"
    )
    adapter: Adapter = Field(
        default=LoRA(), description="What to train: a name, or a mapping with its settings"
    )

    added_tokens: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        default=None,
        min_length=1,
        description="Strings to add to the vocabulary as single tokens, which are trained with the adapter",
    )
    chat_template: str | None = Field(
        default=None,
        min_length=1,
        description="Chat template to use instead of the model's own: a file, or the Jinja text itself",
    )
    chat_template_kwargs: TemplateSettings | None = Field(
        default=None, description="Variables for the chat template, as in {enable_thinking: false}"
    )
    epochs: Int | None = Field(default=None, ge=1, le=100, description="Passes over the training data")
    max_steps: Int | None = Field(
        default=None,
        ge=1,
        description=(
            "Maximum number of optimizer steps. If epochs is also set, training ends at the first limit "
            "reached"
        ),
    )
    learning_rate: Float | None = Field(
        default=None, gt=0, description="Peak learning rate (the rate itself, not a multiplier)"
    )
    learning_rate_multiplier: Float | None = Field(
        default=None, gt=0, description="Multiplier of the host's own base learning rate"
    )
    optimizer: OptimizerChoice | None = Field(
        default=None, description="Optimizer: a name, or a mapping with its parameters"
    )
    batch_size: Int | Literal["max"] | None = Field(
        default=None,
        description="Examples per optimizer step. Some backends accept max: the largest batch that fits",
    )
    batch_tokens: Int | None = Field(
        default=None,
        ge=1,
        description="Tokens per optimizer step, for hosts that set the batch size in tokens",
    )
    gradient_accumulation: Int | None = Field(
        default=None, ge=1, description="Forward and backward passes per optimizer step"
    )
    warmup_ratio: Float | None = Field(
        default=None, ge=0, lt=1, description="Fraction of the steps used for learning rate warm-up"
    )
    warmup_steps: Int | None = Field(
        default=None, ge=0, description="Warm-up in optimizer steps, instead of warmup_ratio"
    )
    schedule: Literal["constant", "linear", "cosine", "polynomial", "warmup_stable_decay"] | None = Field(
        default=None, description="Learning rate schedule after warm-up"
    )
    min_lr_ratio: Float | None = Field(
        default=None, ge=0, le=1, description="Final learning rate as a fraction of the peak"
    )
    decay_ratio: Float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Fraction of the steps used for decay, with schedule: warmup_stable_decay",
    )
    schedule_power: Float | None = Field(default=None, gt=0, description="Exponent for schedule: polynomial")
    weight_decay: Float | None = Field(default=None, ge=0, description="Weight decay of the optimizer")
    max_grad_norm: Float | None = Field(
        default=None, gt=0, description="Gradient norm above which gradients are clipped"
    )
    max_seq_length: Int | None = Field(
        default=None, ge=8, description="Maximum tokens per row. Longer rows are truncated and reported"
    )
    truncation: Literal["right", "left", "drop"] | None = Field(
        default=None,
        description="How to treat rows over max_seq_length: cut the end, cut the start, or drop the row",
    )
    packing: bool | None = Field(default=None, description="Whether to pack several rows into one sequence")
    evals: Int | None = Field(
        default=None, ge=0, description="Number of evaluations on the validation data per run"
    )
    eval_steps: Int | None = Field(
        default=None, ge=1, description="Optimizer steps between evaluations, instead of evals"
    )
    keep_best: bool | None = Field(
        default=None, description="Keep the weights with the best validation loss instead of the last ones"
    )
    checkpoints: Int | None = Field(default=None, ge=1, description="Number of checkpoints per run")
    checkpoint_steps: Int | None = Field(
        default=None, ge=1, description="Optimizer steps between checkpoints, instead of checkpoints"
    )
    save_total_limit: Int | None = Field(
        default=None, ge=1, description="Number of checkpoints to keep (the latest)"
    )
    early_stopping: EarlyStopping | None = Field(
        default=None, description="Stop early if the validation loss no longer improves"
    )
    seed: Int | None = Field(default=None, ge=0, le=2**31 - 1, description="Random seed")

    suffix: Suffix | None = Field(default=None, description="Suffix of the tuned model's name")
    continue_from: str | None = Field(
        default=None, description="A run, checkpoint or tuned model to continue training from"
    )
    max_cost_usd: Usd | None = Field(
        default=None,
        description="Cost limit in US dollars. A run is not submitted if the high end of its quote is above "
        "the limit. If the host reports the cost so far, a run that exceeds the limit is canceled (paused "
        "on a rented machine)",
    )
    private: bool | None = Field(default=None, description="Allow only your own machine as a backend")
    tags: dict[str, str] = Field(default_factory=dict, description="Your own labels, to filter runs by")
    wandb: WandB | None = Field(default=None, description="Let the backend log to Weights & Biases")
    overrides: Overrides = Field(
        default_factory=dict,
        description=(
            "Overrides of this spec, keyed by backend name. Mappings are merged field by field, a name such "
            "as qlora changes only the type, and null removes a setting. Lists and graders are replaced"
        ),
    )
    provider_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Additional fields for a backend's create request, keyed by backend name",
    )

    @model_validator(mode="after")
    def _consistent(self) -> JobSpec:
        if self.learning_rate is not None and self.learning_rate_multiplier is not None:
            raise ValueError("set either learning_rate or learning_rate_multiplier, not both")
        if not self.model or (isinstance(self.model, dict) and not all(self.model.values())):
            raise ValueError("model must not be empty")
        if isinstance(self.batch_size, int) and self.batch_size < 1:
            raise ValueError("batch_size must be at least 1")
        for count, steps in (("evals", "eval_steps"), ("checkpoints", "checkpoint_steps")):
            if getattr(self, count) is not None and getattr(self, steps) is not None:
                raise ValueError(f"set either {steps} or {count}, not both")
        for name in ("early_stopping", "eval_steps", "keep_best"):
            if getattr(self, name) and self.validation is None:
                raise ValueError(f"{name} needs validation data")
        if self.keep_best is False and self.early_stopping is not None:
            raise ValueError("early stopping already keeps the best weights: remove keep_best")
        if self.added_tokens is not None and len(set(self.added_tokens)) < len(self.added_tokens):
            raise ValueError("added_tokens contains a duplicate token")
        for provider, fields in self.overrides.items():
            if wrong := sorted(set(fields) & _SHARED):
                raise ValueError(
                    f"overrides.{provider} cannot change {wrong[0]}: "
                    + (
                        "it must be the same for all backends"
                        if wrong[0] == "overrides"
                        else "all runs of a spec must use the same data and the same privacy setting"
                    )
                )
            known = list(JobSpec.model_fields)
            if unknown := sorted(set(fields) - set(known)):
                hint = meant(unknown[0], known)
                raise ValueError(
                    f"overrides.{provider}.{unknown[0]}: unknown field{hint}; allowed: {', '.join(known)}"
                )
        if self.method.type == "rft" and not self.method.grader:
            raise ValueError("method rft needs a grader")
        return self

    @model_validator(mode="after")
    def _one_schedule(self) -> JobSpec:
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError("set either warmup_steps or warmup_ratio, not both")
        if self.min_lr_ratio is not None and self.schedule == "constant":
            raise ValueError(
                "min_lr_ratio: a constant schedule stays at the peak rate, so remove min_lr_ratio"
            )
        for name, schedule in (("decay_ratio", "warmup_stable_decay"), ("schedule_power", "polynomial")):
            if getattr(self, name) is not None and self.schedule != schedule:
                raise ValueError(f"{name} only applies to  schedule: {schedule}. Remove it")
        if (self.warmup_ratio or 0) + (self.decay_ratio or 0) > 1:
            raise ValueError(
                "warmup_ratio and decay_ratio are fractions of the same steps, so their sum must be at most 1"
            )
        return self

    def model_for(self, provider: str) -> str:
        """Return the base model for one backend. Raises `SpecError` if `model` is a mapping with no entry for
        the backend."""
        if isinstance(self.model, str):
            return self.model
        if provider in self.model:
            return self.model[provider]
        if "default" in self.model:
            return self.model["default"]
        raise SpecError(
            f"the spec has no model for {provider}. It has one for {', '.join(sorted(self.model))}",
            fix=f"add  {provider}: <model>  under  model:  (list models with: orchestrate models "
            f"--provider {provider})",
        )

    def names_model_for(self, provider: str) -> bool:
        return isinstance(self.model, str) or bool({provider, "default"} & self.model.keys())

    def on(self, provider: str) -> JobSpec:
        """Return the spec for one backend, with its own model and its `overrides` applied.

        Raises `SpecError` if the spec has no model for the backend, or if an override is invalid.
        """
        return JobSpec.parse(overridden(self, provider, self.model_for(provider)))

    def asked(self) -> dict[str, Any]:
        """Return the settings that were explicitly set, as JSON-serializable values. `parse` converts them
        back to an equal spec."""
        given = self.model_dump(mode="json", exclude_unset=True)
        parts = {name: getattr(self, name) for name in given}
        return given | {name: table_of(part) for name, part in parts.items() if isinstance(part, SpecPart)}

    def _repr_html_(self) -> str:
        from orchestrate import notebook

        return notebook.spec(self.asked())

    def canonical(self) -> dict[str, Any]:
        """Return all fields as JSON-serializable values. Fields added by later versions are omitted if they
        are unset, so that the result for an older spec doesn't change."""
        values = self.model_dump(mode="json")
        tables = (values, values["method"], values["adapter"])
        for table, names in zip(tables, (_LATER, _LATER_METHOD, _LATER_ADAPTER), strict=True):
            for name in names & table.keys():
                if table[name] is None:
                    del table[name]
        return values

    def hash(self) -> str:
        """Return the SHA-256 hash of the spec's canonical JSON. It does not depend on how the YAML is
        written."""
        canonical = json.dumps(self.canonical(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def train_files(self) -> tuple[TrainFile, ...]:
        """The training data files, as a tuple even if there is only one."""
        return (TrainFile(path=self.train),) if isinstance(self.train, str) else self.train

    @property
    def renaming(self) -> dict[str, str]:
        """The mapping from fields to columns. See `renaming_of`."""
        return renaming_of(self.columns)

    @property
    def train_description(self) -> str:
        """A one-line description of the training data, such as `a.jsonl x 2 + b.jsonl x 0.5 (seed 0)`."""
        return (
            self.train if isinstance(self.train, str) else " + ".join(file.description for file in self.train)
        )

    @classmethod
    def load(cls, path: str | PathLike[str]) -> JobSpec:
        """Read a spec file the way the commands do. Relative paths are resolved against the file's folder.
        Raises `SpecError` with the line of each mistake."""
        from orchestrate.spec import specfile

        return specfile.load(Path(path))

    @classmethod
    def of(cls, given: SpecGiven) -> JobSpec:
        """Return a spec unchanged, or build one from a file or plain values. Raises `SpecError` if a value is
        invalid."""
        if isinstance(given, JobSpec):
            return given
        if isinstance(given, (str, PathLike)):
            return cls.load(given)
        if not isinstance(given, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            kind = type(given).__name__
            raise SpecError(f"a spec must be a JobSpec, the path of a spec file, or a mapping (got {kind})")
        from orchestrate.spec import specfile

        return specfile.build(given)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> JobSpec:
        """Validate values like `model_validate`, but raise `SpecError` with one readable line for each
        mistake."""
        from pydantic import ValidationError

        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SpecError("the spec is not valid:", errors=spec_errors(error, cls)) from error


def overridden(spec: JobSpec, provider: str, model: str) -> dict[str, Any]:
    """Return the spec's values for one backend and its model, with `overrides` applied but not validated."""
    values = merged(spec.asked() | {"model": model}, spec.overrides.get(provider, {}))
    # A null for a field that the spec doesn't set has nothing to remove.
    return {name: value for name, value in values.items() if name != "overrides" and value is not None}


_SHARED = frozenset({"overrides", "train", "validation", "test", "columns", "private"})
"""Fields that cannot be overridden per backend."""
_LATER = frozenset(
    {
        "columns",
        "added_tokens",
        "chat_template",
        "chat_template_kwargs",
        "max_steps",
        "optimizer",
        "eval_steps",
        "keep_best",
        "checkpoint_steps",
        "private",
        "warmup_steps",
        "min_lr_ratio",
        "decay_ratio",
        "schedule_power",
        "truncation",
        "save_total_limit",
    }
)
_LATER_METHOD = frozenset({"earlier_thinking", "label_smoothing", "ignore_empty_think", "train_on"})
_LATER_ADAPTER = frozenset(
    {
        "init_lora_weights",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "exclude_modules",
        "target_parameters",
        "modules_to_save",
        "loraplus_lr_ratio",
    }
)
"""Fields that earlier versions lack. If unset, they are omitted from the canonical form."""
