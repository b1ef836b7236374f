"""A local job: the contents of `job.json`, with every setting resolved. Torch-free."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from orchestrate.profile import this_machine
from orchestrate.types import Record

DEFAULT_SAMPLES = 8
"""Answers to each prompt in reinforcement fine-tuning, as TRL draws."""


def option(name: str) -> str:
    """Format the name of an engine setting as it is written in the spec."""
    return f"provider_options.{this_machine().kind}.{name}"


class Supervised(Record, frozen=True, kw_only=True, tag_field="type", tag="sft", omit_defaults=True):
    train_on_inputs: bool | None = None
    earlier_thinking: Literal["train", "split", "untrained"] | None = None
    ignore_empty_think: bool | None = None
    train_on: Literal["all", "last"] | tuple[str, ...] | None = None

    @property
    def word(self) -> str:
        """The method's name, which determines the work per row."""
        return "sft"


class Preferences(Record, frozen=True, kw_only=True, tag_field="type", tag="dpo", omit_defaults=True):
    """DPO and ORPO over pairs, KTO over unpaired answers. Unset settings have the default of their loss."""

    loss: Literal["dpo", "ipo", "orpo", "kto"] | None = None
    beta: float | None = None
    label_smoothing: float | None = None
    normalize_by_length: bool | None = None
    rpo_alpha: float | None = None
    simpo_gamma: float | None = None
    desirable_weight: float | None = None
    undesirable_weight: float | None = None

    @property
    def word(self) -> str:
        return "simpo" if self.simpo_gamma is not None and self.loss in (None, "dpo") else self.loss or "dpo"

    @property
    def unpaired(self) -> bool:
        return self.loss == "kto"


class Reinforcement(Record, frozen=True, kw_only=True, tag_field="type", tag="rft", omit_defaults=True):
    grader: dict[str, Any] = {}  # noqa: RUF012  msgspec copies an empty default
    samples_per_prompt: int | None = None
    kl_beta: float | None = None

    @property
    def word(self) -> str:
        return "rft"

    @property
    def samples(self) -> int:
        """Answers sampled for each prompt."""
        return self.samples_per_prompt or DEFAULT_SAMPLES


Method = Supervised | Preferences | Reinforcement
"""As the spec writes it: `{"type": "dpo", "loss": "kto"}`."""


AdapterKind = Literal["lora", "qlora", "full"]


class AdapterSettings(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What is trained: low-rank matrices, on a 4-bit base for `qlora`, or all weights for `full`."""

    type: AdapterKind
    r: int | None = None
    alpha: float | None = None
    dropout: float | None = None
    targets: str | tuple[str, ...] | None = None
    """Module names; `None` means all linear layers."""
    target_parameters: tuple[str, ...] | None = None
    """Names of the experts' weights that get matrices besides; `None` means none."""
    dora: bool = False
    rslora: bool = False
    init_lora_weights: str | None = None
    """How the matrices begin, in peft's words; `None` is peft's default."""
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    layers_to_transform: tuple[int, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None
    loraplus_lr_ratio: float | None = None

    @property
    def changes_base(self) -> bool:
        """Whether its initial weights are subtracted from the base's weights."""
        return bool(self.init_lora_weights) and self.init_lora_weights.startswith(("pissa", "olora"))

    @property
    def full(self) -> bool:
        return self.type == "full"

    @property
    def rank(self) -> int:
        return self.r or 16

    @property
    def lora_alpha(self) -> float:
        return self.alpha or 2.0 * self.rank

    @property
    def modules(self) -> str | list[str]:
        targets = self.targets or "all-linear"
        return targets if isinstance(targets, str) else list(targets)


class Hyper(Record, frozen=True, kw_only=True):
    """Every setting of a training run, resolved. Nothing is left to another library's defaults."""

    epochs: int | None = 3
    """`None` is as many as `max_steps` take."""
    max_steps: int | None = None
    learning_rate: float = 2e-4
    batch_size: int = 16
    """Examples per optimiser step, all micro-batches together."""
    micro_batch: int | None = None
    """Examples per forward pass; `None` lets the engine choose, and halve it when memory runs out."""
    processes: int = 1
    """At work on each step, each with a GPU of its own and the whole model on it."""
    sharded: bool = False
    """Whether each of them has a share of every weight instead."""
    warmup_ratio: float = 0.03
    warmup_steps: int | None = None
    """In place of `warmup_ratio`."""
    schedule: str = "cosine"
    min_lr_ratio: float = 0.0
    """Share of the peak rate at which the schedule ends."""
    decay_ratio: float = 0.1
    """Share of the steps in which `warmup_stable_decay` lowers the rate."""
    schedule_power: float = 1.0
    """Exponent of `polynomial`."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_seq_length: int | None = None
    """Tokens; `None` means the model's context."""
    truncation: Literal["right", "left", "drop"] = "right"
    """What longer rows lose: their end, their beginning, or all of them."""
    packing: bool = False
    evals: int | None = None
    """Evaluations spread over the run, the one at the end included; `None` means one per epoch."""
    eval_steps: int | None = None
    """Steps between evaluations, in place of `evals`; there is one at the end too."""
    keep_best: bool = False
    """Whether the result has the weights of the best evaluation; stopping early implies it."""
    checkpoints: int | None = None
    """Checkpoints to keep, spread over the run; `None` means one per epoch."""
    checkpoint_steps: int | None = None
    """Steps between checkpoints, in place of `checkpoints`; there is one at the end too."""
    save_total_limit: int | None = None
    """The most checkpoints to keep; older ones are removed."""
    recovery_seconds: float = 60.0
    """A checkpoint to go on from is written at least this often; only the newest of them is kept."""
    early_stopping_patience: int | None = None
    early_stopping_min_delta: float = 0.0
    optimizer: str = "adamw"
    betas: tuple[float, float] | None = None
    """As `eps` and `momentum`: `None` is the optimiser's own."""
    eps: float | None = None
    momentum: float | None = None
    gradient_checkpointing: bool = False
    deterministic: bool = False
    """Whether a GPU adds in a fixed order, so that a resumed run ends, to the bit, as an unbroken one."""
    neftune_alpha: float | None = None
    router_aux_loss: float | None = None
    """Weight of the loss that spreads tokens over the experts of a mixture; `None`: where all weights are
    trained, as the model's configuration has it, else none."""
    nan_policy: str = "stop"
    """`stop`, or `skip` the optimiser step whose loss or gradient is not finite."""
    spike_factor: float | None = None
    """Skip a step whose loss exceeds this multiple of the running mean; `None` never does."""
    max_new_tokens: int = 256
    """Of an answer that is drawn to be graded."""
    run_grader_code: bool = False
    """Whether a grader's Python code may run here: what the user allowed at the submit."""
    grader_seconds: float = 5.0
    """For the code to grade one answer; after that the answer gets 0."""

    def steps(self, per_epoch: int) -> int:
        """Return the number of optimizer steps of the run, given the number of steps in an epoch."""
        whole = None if self.epochs is None else self.epochs * per_epoch
        return min(n for n in (whole, self.max_steps) if n is not None)

    def passes(self, per_epoch: int) -> int:
        """Return the number of epochs, counting a partial last one."""
        return -(-self.steps(per_epoch) // per_epoch)

    @property
    def holds_best(self) -> bool:
        return self.keep_best or self.early_stopping_patience is not None


class LocalJob(Record, frozen=True, kw_only=True):
    """The job that the worker runs."""

    ref: str
    model: str
    """A folder, or a hub id."""
    model_name: str
    """As the user named it."""
    train: str
    """Canonical rows, one JSON object per line (`Dataset.write(target="local")`)."""
    validation: str | None = None
    dataset_digest: str = ""
    method: Method
    adapter: AdapterSettings
    hyper: Hyper = Hyper()
    added_tokens: tuple[str, ...] = ()
    """Texts that the tokenizer gets as tokens, and the model a row of its embeddings for each."""
    chat_template: str | None = None
    """In the place of the model's own."""
    chat_template_kwargs: dict[str, Any] = {}  # noqa: RUF012  msgspec copies an empty default
    """What holds in the chat template where nobody says otherwise."""
    seed: int = 0
    threads: int | None = None
    device: str | None = None
    """`cpu` or `cuda`; `None` takes a GPU when there is one."""
    engine: str | None = None
    """One of `engines.NAMES`; `None` is auto."""
    precision: str | None = None
    """`bf16` or `fp32`; `None` takes what suits the device."""
    continue_from: str | None = None
    """Folder of an adapter to go on from."""
    spec: dict[str, Any] = {}  # noqa: RUF012  msgspec copies an empty default
    paces: str | None = None
    """The file to which the worker adds how fast the run was (`speed.paces`)."""
    resources: dict[str, Any] = {}  # noqa: RUF012  msgspec copies an empty default
    """Of the machine, for a worker that is not on this one (`places.base.Resources`)."""
    session: dict[str, Any] | None = None
    """Of a job that the caller's own loop trains, step by step: what was opened. No worker is ever started
    for it."""
    created_at: datetime

    @property
    def asks_precision(self) -> bool:
        """Whether the user set `precision`. Otherwise the machine decided it."""
        options: dict[str, dict[str, Any]] = self.spec.get("provider_options") or {}
        return "precision" in options.get("local", {})
