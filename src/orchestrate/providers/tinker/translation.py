"""Translation of a spec for a recipe that runs in a session at Tinker. Settings that sessions don't support
are rejected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrate import catalog
from orchestrate.errors import UsageError
from orchestrate.local.job import DEFAULT_SAMPLES, LEARNING_RATES, Hyper
from orchestrate.local.objectives import graders
from orchestrate.providers.sessions import OBJECTIVES
from orchestrate.providers.settings import KTO_ONLY, UNPAIRED, Rows
from orchestrate.providers.tinker import PROFILE
from orchestrate.spec import RFT, JobSpec
from orchestrate.types import Translation

RANK, ALPHA = 32, 32
"""Default rank of adapters, and the alpha of all adapters. With a fixed alpha, the same learning rate suits
all ranks (Thinking Machines, "LoRA Without Regret", 2025)."""
BATCH, EPOCHS = 16, 3
OPTIONS: Mapping[str, tuple[str, type | tuple[type, ...]]] = {
    "objective": ("objective", str),
    "max_new_tokens": ("hyper.max_new_tokens", int),
    "grader_seconds": ("hyper.grader_seconds", (int, float)),
    "recovery_seconds": ("hyper.recovery_seconds", (int, float)),
}
"""Maps each option in `provider_options.tinker` to its path in the request body and its type."""
RFT_ONLY = ("objective", "max_new_tokens", "grader_seconds")
_WITHOUT: Mapping[str, str] = {
    "adapter.dropout": "Tinker does not support adapter dropout",
    "adapter.targets": "Tinker adapts all linear layers",
    "adapter.dora": "Tinker does not support DoRA",
    "adapter.rslora": "Tinker's adapters have a fixed scale",
    "batch_tokens": "recipes count batches in examples. Use batch_size",
    "chat_template": "rows are rendered with the model's own template",
    "chat_template_kwargs": "rows are rendered with the model's own template",
    "continue_from": "to continue from earlier weights, use your own loop with ft.session",
    "early_stopping": "the recipe runs all steps. Watch its metrics and cancel it yourself",
    "keep_best": "the recipe returns the weights of the last step",
    "gradient_accumulation": "Tinker splits batches automatically",
    "learning_rate_multiplier": "Tinker has no base rate to multiply. Set learning_rate",
    "method.compute_multiplier": "Tinker recipes set the amount of exploration with samples_per_prompt",
    "method.kl_beta": "needs the initial model during training, but a session only holds the trained model",
    "method.reasoning_effort": "open models have no such training setting",
    "optimizer.momentum": "sessions train with AdamW, which has betas instead of momentum",
    "packing": "Tinker batches rows automatically",
    "wandb": "metrics are stored in the run directory and not sent anywhere",
}


def translate(spec: JobSpec, provider: str, options: Mapping[str, Any]) -> Translation:
    """Translate a spec for Tinker. `options` are the options in the host's configuration."""
    own = {**spec.provider_options.get(PROFILE.kind, {}), **spec.provider_options.get(provider, {})}
    without = {k: v for k, v in spec.provider_options.items() if k not in (PROFILE.kind, provider)}
    rows = Rows(provider, spec.model_copy(update={"provider_options": without}))
    name = spec.model_for(provider)
    try:
        found = catalog.resolve(name, PROFILE)
        model, context = found.id, found.context(spec.method.type)
    except UsageError as error:
        rows.refuse("model", error.message)
        model, context = name, None
    _method(rows, spec, code=options.get("allow_grader_code") is True)
    _adapter(rows, spec)
    _steps(rows, spec)
    _optimizer(rows, spec)
    _data(rows, spec, context)
    for key, value in own.items():
        _option(rows, spec, key, value)
    rows.refuse_if_set(_WITHOUT)
    rows.without_engine_settings(PROFILE.title)
    return rows.build(model)


def _method(rows: Rows, spec: JobSpec, *, code: bool) -> None:
    method = spec.method
    rows.keep("method.type", "method.type", method.type)
    if isinstance(method, RFT):
        if reason := graders.refusal(method.grader, allow_code=code):
            rows.refuse("method.grader", reason)
        else:
            rows.keep("method.grader", "method.grader", method.grader, rule="the grader runs on this machine")
            rows.send("hyper.run_grader_code", graders.runs_code(method.grader))
        if method.samples_per_prompt == 1:
            rows.refuse(
                "method.samples_per_prompt",
                "must be at least 2, because answers are compared with each other",
            )
        else:
            rule = "answers sampled per prompt and epoch"
            rows.offer("method.samples_per_prompt", "method.samples_per_prompt", DEFAULT_SAMPLES, rule)
    elif method.type == "sft":
        rows.offer(
            "method.train_on_inputs", "method.train_on_inputs", False, "loss only on the assistant's tokens"
        )
        rule = "answers are rendered by the model's chat template, with or without reasoning"
        rows.offer("method.earlier_thinking", "method.earlier_thinking", "train", rule)
        rows.offer("method.ignore_empty_think", "method.ignore_empty_think", False)
        rows.offer("method.train_on", "method.train_on", "all", "every assistant message")
    elif method.loss == "kto":
        rows.refuse("method.loss", f"no recipe supports KTO. {UNPAIRED}", instead="dpo")
        rows.refuse_if_set({f"method.{one}": "part of KTO" for one in KTO_ONLY})
    else:
        rows.offer("method.loss", "method.loss", "dpo")
        rows.offer("method.beta", "method.beta", 0.1)
        for name, default in (("label_smoothing", 0.0), ("normalize_by_length", False)):
            rows.offer(f"method.{name}", f"method.{name}", default)
        for name in ("rpo_alpha", "simpo_gamma"):
            rows.offer(f"method.{name}", f"method.{name}")


def _adapter(rows: Rows, spec: JobSpec) -> None:
    kind = spec.adapter.type
    if kind == "lora":
        rows.keep("adapter.type", None, kind)
    else:
        rows.refuse("adapter.type", f"Tinker trains LoRA adapters, not {kind}", instead="lora")
    if rows.given("adapter.r") is None:
        rows.default("adapter.r", "lora.rank", RANK, "Tinker's own default", send=True)
    else:
        rows.keep("adapter.r", "lora.rank")
    alpha = rows.given("adapter.alpha")
    if alpha is None:
        rows.default("adapter.alpha", None, ALPHA, "Tinker uses the same alpha for all ranks")
    elif alpha == ALPHA:
        rows.keep("adapter.alpha", None, rule="Tinker's fixed value")
    else:
        rows.refuse("adapter.alpha", f"alpha is always {ALPHA} at Tinker", instead=ALPHA)


def _steps(rows: Rows, spec: JobSpec) -> None:
    if spec.max_steps is not None and spec.epochs is None:
        rows.keep("max_steps", "hyper.max_steps")
        rows.default("epochs", None, None, "the number that max_steps requires")
        rows.send("hyper.epochs", None)
    else:
        if spec.max_steps is not None:
            rows.keep("max_steps", "hyper.max_steps", rule="or after all epochs, whichever comes first")
        rows.offer("epochs", "hyper.epochs", EPOCHS)
    epochs = None if spec.max_steps is not None else spec.epochs or EPOCHS
    for steps, number in (("eval_steps", "evals"), ("checkpoint_steps", "checkpoints")):
        needless = number == "evals" and spec.validation is None
        if needless and (rows.given(steps) is not None or rows.given(number)):
            rows.refuse(steps if rows.given(steps) is not None else number, "there is no validation data")
        elif rows.given(steps) is not None:
            rows.keep(steps, f"hyper.{steps}", rule="also after the last step")
        elif not needless or rows.given(number) is not None:
            rows.offer(number, f"hyper.{number}", epochs, "one per epoch")


def _optimizer(rows: Rows, spec: JobSpec) -> None:
    kind = spec.optimizer.type if spec.optimizer else None
    if kind is None:
        rows.default("optimizer", None, "adamw")
    elif kind == "adamw":
        rows.keep("optimizer", None, kind)
        for name in ("betas", "eps"):
            if rows.given(f"optimizer.{name}") is not None:
                rows.keep(f"optimizer.{name}", f"hyper.{name}")
    else:
        rows.refuse("optimizer", "sessions train only with AdamW", instead="adamw")
    if spec.learning_rate is not None:
        rows.keep("learning_rate", "hyper.learning_rate")
    else:
        base = LEARNING_RATES[spec.method.type]
        rows.default(
            "learning_rate", "hyper.learning_rate", base, "the same as for local training", send=True
        )
    if spec.batch_size == "max":
        rows.refuse("batch_size", "Tinker has no maximum batch size. Set a number of examples")
    else:
        rows.offer("batch_size", "hyper.batch_size", BATCH)
    rows.offer("schedule", "hyper.schedule", "cosine")
    for name, default in (("min_lr_ratio", 0.0), ("decay_ratio", 0.1), ("schedule_power", 1.0)):
        if rows.given(name) is not None:
            rows.offer(name, f"hyper.{name}", default)
    if spec.warmup_steps is not None:
        rows.keep("warmup_steps", "hyper.warmup_steps")
    else:
        rows.offer("warmup_ratio", "hyper.warmup_ratio", 0.03)
    rows.offer("weight_decay", "hyper.weight_decay", 0.0)
    rows.offer("max_grad_norm", "hyper.max_grad_norm", 1.0)
    rows.offer("seed", "seed", 0)


def _data(rows: Rows, spec: JobSpec, context: int | None) -> None:
    rows.train("read on this machine and sent batch by batch as token ids")
    if spec.validation is not None:
        rows.keep("validation", None, rule="read on this machine and sent as token ids")
    if spec.max_seq_length is not None or context is None:
        rows.offer("max_seq_length", "hyper.max_seq_length", None, "the host's limit")
    else:
        rows.default("max_seq_length", "hyper.max_seq_length", context, "the model's context", send=True)
    if spec.method.type != "rft":
        rows.offer("truncation", "hyper.truncation", "right", "longer rows are truncated at the end")
    elif spec.truncation is not None and spec.truncation != "drop":
        rows.refuse(
            "truncation",
            "recipes always drop prompts that leave no room for an answer. Set truncation to drop",
        )
    elif spec.truncation is not None:
        rows.keep("truncation", None, rule="prompts that are too long are always dropped")
    if spec.suffix is not None:
        rows.keep("suffix", None, rule="stored with the run, because the result is a tinker:// path")


def _option(rows: Rows, spec: JobSpec, key: str, value: Any) -> None:
    name = f"provider_options.{key}"
    wire, kind = OPTIONS.get(key, ("", object))
    if not wire:
        rows.refuse(name, f"Tinker sessions have no such option. Available: {', '.join(sorted(OPTIONS))}")
    elif not isinstance(value, kind) or isinstance(value, bool):
        rows.refuse(name, f"must be a {'string' if kind is str else 'number'}, got {value!r}")
    elif key in RFT_ONLY and spec.method.type != "rft":
        rows.refuse(name, "only for RFT, because other methods sample no answers")
    elif key == "objective" and value not in OBJECTIVES:
        rows.refuse(name, f"must be one of {', '.join(OBJECTIVES)}, got {value!r}")
    elif kind is not str and float(value) <= 0:
        rows.refuse(name, f"must be above 0, got {value!r}")
    else:
        rows.keep(name, wire, value)


def most_new_tokens(body: Mapping[str, Any]) -> int:
    """Return the maximum number of tokens in a sampled answer."""
    return int(body.get("hyper", {}).get("max_new_tokens", Hyper().max_new_tokens))
