"""The fully resolved settings of a local job, as stored in `job.json`. Torch-free."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from orchestrate.profile import this_machine
from orchestrate.types import Record

CLIP_LOW, CLIP_HIGH = 0.8, 1.2
"""Default bounds for clipping the probability ratio in a session's `ppo`, `cispo` and `gspo` losses."""
DRO_BETA = 0.05
LEARNING_RATES = {"sft": 2e-4, "dpo": 2e-5, "rft": 1e-5}
"""Default learning rate of an adapter, by method."""
DEFAULT_SAMPLES = 8
"""Default number of answers sampled for each prompt in reinforcement fine-tuning, as in TRL."""


def option(name: str) -> str:
    """Return the dotted name that a spec uses for an engine setting."""
    return f"provider_options.{this_machine().kind}.{name}"


class Supervised(Record, frozen=True, kw_only=True, tag_field="type", tag="sft", omit_defaults=True):
    train_on_inputs: bool | None = None
    earlier_thinking: Literal["train", "split", "untrained"] | None = None
    ignore_empty_think: bool | None = None
    train_on: Literal["all", "last"] | tuple[str, ...] | None = None

    @property
    def word(self) -> str:
        """Name of the method or its loss. Speed estimates use it to find similar runs."""
        return "sft"


class Preferences(Record, frozen=True, kw_only=True, tag_field="type", tag="dpo", omit_defaults=True):
    """Settings for preference training: DPO and ORPO train on pairs, KTO on unpaired answers. Unset fields
    get the defaults of the loss."""

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
        """Number of answers sampled for each prompt."""
        return self.samples_per_prompt or DEFAULT_SAMPLES


Method = Supervised | Preferences | Reinforcement
"""The method as written in the spec: `{"type": "dpo", "loss": "kto"}`."""


AdapterKind = Literal["lora", "qlora", "full"]


class AdapterSettings(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The weights to train: low-rank matrices (`lora`), low-rank matrices on a 4-bit base (`qlora`), or all
    weights (`full`)."""

    type: AdapterKind
    r: int | None = None
    alpha: float | None = None
    dropout: float | None = None
    targets: str | tuple[str, ...] | None = None
    """Names of the modules to adapt. `None` means all linear layers."""
    target_parameters: tuple[str, ...] | None = None
    """Names of expert weights that also get an adapter. `None` adapts none."""
    dora: bool = False
    rslora: bool = False
    init_lora_weights: str | None = None
    """Name of the initialization method, as in peft. `None` is peft's default."""
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    layers_to_transform: tuple[int, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None
    loraplus_lr_ratio: float | None = None

    @property
    def changes_base(self) -> bool:
        """True if the adapter's initial weights are subtracted from the base's weights."""
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
    """The fully resolved settings of a training run. No setting falls back to another library's default."""

    epochs: int | None = 3
    """Number of epochs. `None` trains for `max_steps`."""
    max_steps: int | None = None
    learning_rate: float = 2e-4
    batch_size: int = 16
    """Examples per optimizer step, over all micro-batches."""
    micro_batch: int | None = None
    """Examples per forward pass. `None` lets the engine choose, and halve its choice if memory runs out."""
    processes: int = 1
    """Number of processes that share the work of each step. Each process has its own GPU and, unless
    `sharded` is set, the full model."""
    sharded: bool = False
    """True if each process holds a shard of every weight instead of the full model."""
    warmup_ratio: float = 0.03
    warmup_steps: int | None = None
    """Number of warm-up steps. Overrides `warmup_ratio`."""
    schedule: str = "cosine"
    min_lr_ratio: float = 0.0
    """Final learning rate as a fraction of the peak."""
    decay_ratio: float = 0.1
    """Fraction of the steps over which the `warmup_stable_decay` schedule lowers the learning rate."""
    schedule_power: float = 1.0
    """Exponent of the `polynomial` schedule."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_seq_length: int | None = None
    """Maximum row length in tokens. `None` means the model's context."""
    truncation: Literal["right", "left", "drop"] = "right"
    """The part of longer rows to drop: the end (`right`), the start (`left`), or the entire row (`drop`)."""
    packing: bool = False
    evals: int | None = None
    """Number of evaluations, spread evenly over the run and including a final one. `None` means one per
    epoch."""
    eval_steps: int | None = None
    """Number of steps between evaluations. Overrides `evals`. The last step is always evaluated."""
    keep_best: bool = False
    """True to return the weights with the best evaluation result. Early stopping implies it."""
    checkpoints: int | None = None
    """Number of regular checkpoints, spread evenly over the run. `None` means one per epoch."""
    checkpoint_steps: int | None = None
    """Number of steps between checkpoints. Overrides `checkpoints`. The last step always gets one."""
    save_total_limit: int | None = None
    """Maximum number of checkpoints to keep. Older ones are removed."""
    recovery_seconds: float = 60.0
    """Maximum seconds between recovery checkpoints. Only the newest one is kept."""
    early_stopping_patience: int | None = None
    early_stopping_min_delta: float = 0.0
    optimizer: str = "adamw"
    betas: tuple[float, float] | None = None
    """The optimizer's betas. `None` for `betas`, `eps` or `momentum` means the optimizer's default."""
    eps: float | None = None
    momentum: float | None = None
    gradient_checkpointing: bool = False
    deterministic: bool = False
    """True to use deterministic algorithms on a GPU. A resumed run then gives the same weights as an
    uninterrupted one, bit for bit."""
    neftune_alpha: float | None = None
    router_aux_loss: float | None = None
    """Weight of the load-balancing loss in a mixture of experts. `None` means the value from the model's
    configuration in full fine-tuning, and 0 for adapters."""
    nan_policy: str = "stop"
    """Action if a step's loss or gradient is not finite: `stop` the run, or `skip` the step."""
    spike_factor: float | None = None
    """Skip steps whose loss exceeds this multiple of the running mean. `None` disables this check."""
    max_new_tokens: int = 256
    """Maximum number of tokens in a sampled answer."""
    run_grader_code: bool = False
    """True if the user allowed the grader's Python code to run on this machine."""
    grader_seconds: float = 5.0
    """Time limit in seconds for grading one answer with code. If grading takes longer, the answer gets 0."""

    def steps(self, per_epoch: int) -> int:
        """Return the total number of optimizer steps, given the number of steps per epoch."""
        whole = None if self.epochs is None else self.epochs * per_epoch
        return min(n for n in (whole, self.max_steps) if n is not None)

    def passes(self, per_epoch: int) -> int:
        """Return the number of epochs, rounded up."""
        return -(-self.steps(per_epoch) // per_epoch)

    @property
    def holds_best(self) -> bool:
        return self.keep_best or self.early_stopping_patience is not None


class LocalJob(Record, frozen=True, kw_only=True):
    """The job that the worker runs."""

    ref: str
    model: str
    """A model folder or a Hub id."""
    model_name: str
    """The model's name as the user wrote it."""
    train: str
    """File of canonical rows, one JSON object per line (`Dataset.write(target="local")`)."""
    validation: str | None = None
    dataset_digest: str = ""
    method: Method
    adapter: AdapterSettings
    hyper: Hyper = Hyper()
    added_tokens: tuple[str, ...] = ()
    """Strings to add to the vocabulary as single tokens, each with its own embedding row."""
    chat_template: str | None = None
    """A chat template that replaces the model's own."""
    chat_template_kwargs: dict[str, Any] = {}  # noqa: RUF012  msgspec copies an empty default
    """Default values for the chat template's variables."""
    seed: int = 0
    threads: int | None = None
    device: str | None = None
    """`cpu` or `cuda`. `None` uses a GPU if there is one."""
    engine: str | None = None
    """One of `local.model.NAMES`. `None` means auto."""
    precision: str | None = None
    """Precision of matmuls, one of `local.model.PRECISIONS`. `None` lets the device decide."""
    continue_from: str | None = None
    """Folder of an adapter to continue from."""
    spec: dict[str, Any] = {}  # noqa: RUF012  msgspec copies an empty default
    paces: str | None = None
    """File to which the worker appends the run's speed (`MeasuredPace`)."""
    resources: dict[str, Any] = {}  # noqa: RUF012  msgspec copies an empty default
    """Resources of the remote machine that runs the worker (`places.base.Resources`)."""
    session: dict[str, Any] | None = None
    """Settings of a training session. If `train` is set, a recipe runs the training loop. Otherwise the
    caller does."""
    objective: str | None = None
    """Name of the session's loss for sampled answers."""
    created_at: datetime

    @property
    def precision_requested(self) -> bool:
        """True if the user set `precision`. Otherwise the device determined it."""
        options: dict[str, dict[str, Any]] = self.spec.get("provider_options") or {}
        return "precision" in options.get("local", {})
