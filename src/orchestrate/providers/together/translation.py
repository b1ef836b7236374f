"""Translation of a spec into Together's create request.

The body has the same fields as the one that the SDK's `fine_tuning.create` sends (`FinetuneRequest` in
`together.lib.types.fine_tuning`). It contains the requested settings and a few of the SDK's defaults. For all
other settings, the host's defaults apply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrate import catalog, text
from orchestrate.catalog import ModelOnHost
from orchestrate.errors import TranslationRefused, UsageError
from orchestrate.providers.calls import integer, number, suffix_room, suffix_tag, table
from orchestrate.providers.settings import UNPAIRED, Fields, Rows
from orchestrate.providers.together import PROFILE
from orchestrate.spec import DPO, JobSpec
from orchestrate.types import Outcome, Setting, Translation

if TYPE_CHECKING:
    from orchestrate.data import TrainingData

SUFFIX_LIMIT = 40
"""Maximum length of a suffix. The user's suffix comes before Orchestrate's ref and is shortened to fit."""
BASE_LEARNING_RATE = 1e-5
"""The SDK's default learning rate. Used for all models, because Together does not publish a learning rate for
each model."""
DEFAULT_RANK = "the model's default rank"
RESERVED = (
    "training_file",
    "validation_file",
    "model",
    "from_checkpoint",
    "suffix",
    "wandb_key",
    "wandb_api_key",
    "wandb_base_url",
    "hf_api_token",
)
"""Fields that a spec may not set: Orchestrate fills them in, or they hold credentials or the URL that the
credentials are sent to."""
NO_RFT = (
    "Together has no RFT jobs, only training sessions that your own program drives. "
    "For RFT jobs, use Fireworks or local training"
)


def translate(spec: JobSpec, provider: str = PROFILE.kind) -> Translation:
    """Translate the spec for Together. `provider` is the name of the configured instance, by default the
    backend's own name."""
    rows = Rows(provider, spec, aliases=(PROFILE.kind,), fields=FIELDS)
    try:
        model = catalog.resolve(spec.model_for(provider), PROFILE.kind)
    except UsageError as error:
        rows.refuse("model", error.message)
        return rows.build(spec.model_for(provider), reserved=RESERVED)
    _files(rows, model)
    _method(rows, spec)
    _adapter(rows, spec, model)
    _optimizer(rows)
    _length(rows, spec, model)
    _evaluation(rows, spec)
    _names(rows)
    rows.refuse_if_set(
        {
            "eval_steps": "Together takes a number of evaluations per run: set `evals`",
            "checkpoint_steps": "Together takes a number of checkpoints per run: set `checkpoints`",
        }
    )
    rows.without_engine_settings("Together")
    return rows.build(model.id, reserved=RESERVED)


def tag(suffix: str | None, ref: str) -> str:
    """Return the request's `suffix`: as much of the user's suffix as fits, then the ref."""
    return suffix_tag(suffix, ref, SUFFIX_LIMIT)


# -- data, method and adapter ------------------------------------------------------------------------------


def _files(rows: Rows, model: ModelOnHost) -> None:
    rows.train("the file is uploaded and training_file is set to its id")
    if rows.given("validation"):
        rows.keep("validation", None, rule="the file is uploaded and validation_file is set to its id")
    if rows.given("continue_from"):
        # The host accepts either `from_checkpoint` or `model`, but not both.
        rows.keep(
            "continue_from", "from_checkpoint", rule="JOB_ID or output name, with :STEP for one checkpoint"
        )
    else:
        rows.send("model", model.id)


def _method(rows: Rows, spec: JobSpec) -> None:
    kind = spec.method.type
    if kind == "rft":
        rows.refuse("method", NO_RFT)
        rows.refuse("method.type", NO_RFT)
        return
    rows.keep("method.type", "training_method.method", kind)
    if kind == "sft":
        if rows.given("method.train_on_inputs") is not None:
            rows.keep("method.train_on_inputs", "training_method.train_on_inputs")
        else:
            rule = "prompts are masked in chat and prompt/completion rows, never in text rows"
            rows.default("method.train_on_inputs", "training_method.train_on_inputs", "auto", rule, send=True)
        return
    rows.plain_dpo(
        {
            "ipo": "Together does not support IPO. It offers DPO and SimPO",
            "orpo": "Together does not support ORPO. For a loss without a reference model, set simpo_gamma",
            "kto": f"Together does not support KTO. {UNPAIRED}",
        }
    )
    rows.offer("method.beta", "training_method.dpo_beta", 0.1)
    rows.offer("method.rpo_alpha", "training_method.rpo_alpha", None, "no NLL term")
    if isinstance(spec.method, DPO) and spec.method.simpo_gamma:
        rows.keep("method.simpo_gamma", "training_method.simpo_gamma", rule="SimPO: no reference model")
        rows.send("training_method.dpo_reference_free", True)
        if rows.given("method.normalize_by_length") is False:
            rows.refuse("method.normalize_by_length", "SimPO normalizes by length")
        else:
            rule = "SimPO normalizes by length"
            rows.default(
                "method.normalize_by_length",
                "training_method.dpo_normalize_logratios_by_length",
                True,
                rule,
                send=True,
            )
        return
    rows.offer("method.simpo_gamma", "training_method.simpo_gamma", None, "not SimPO")
    rows.offer("method.normalize_by_length", "training_method.dpo_normalize_logratios_by_length", False)


def _adapter(rows: Rows, spec: JobSpec, model: ModelOnHost) -> None:
    adapter = spec.adapter
    offered = model.host.adapters if model.host else ()
    if adapter.type == "full":
        if offered and "full" not in offered:
            rows.refuse("adapter.type", f"Together trains {model.name} with LoRA only", instead="lora")
        else:
            rows.keep("adapter.type", "training_type.type", "Full")
        return
    requested = [name for name in rows.requested if name.startswith("adapter.")]
    # If the spec doesn't mention the adapter, the field is omitted. The host then uses LoRA, or the type of
    # the job that this one continues from.
    if adapter.type == "qlora":
        rule = "trained with LoRA, because Together does not publish the precision of its base models"
        rows.map("adapter.type", "training_type.type", "Lora", rule, exact=False)
    elif requested:
        rows.keep("adapter.type", "training_type.type", "Lora")
    else:
        rows.default("adapter.type", "training_type.type", "Lora")
    most = model.host.max_rank if model.host else None
    if adapter.r is not None and most is not None and adapter.r > most:
        rows.refuse("adapter.r", f"at most {most} for {model.name}", instead=most)
    else:
        rows.offer("adapter.r", "training_type.lora_r", DEFAULT_RANK)
    if adapter.alpha is not None and adapter.alpha != int(adapter.alpha):
        rows.refuse("adapter.alpha", "Together requires an integer", instead=round(adapter.alpha) or None)
    elif adapter.alpha is not None:
        rows.keep("adapter.alpha", "training_type.lora_alpha", int(adapter.alpha))
    elif adapter.r is not None:
        rows.default("adapter.alpha", "training_type.lora_alpha", 2 * adapter.r, "2 x r", send=True)
    else:
        rows.default("adapter.alpha", "training_type.lora_alpha", "2 x r")
    rows.offer("adapter.dropout", "training_type.lora_dropout", 0.0)
    if isinstance(adapter.targets, tuple):
        rows.keep("adapter.targets", "training_type.lora_trainable_modules", ",".join(adapter.targets))
    else:
        rows.offer("adapter.targets", "training_type.lora_trainable_modules", "all-linear")
    for name, on in (("dora", adapter.dora), ("rslora", adapter.rslora)):
        if on:
            rows.refuse(f"adapter.{name}", "Together trains plain LoRA")
        elif rows.given(f"adapter.{name}") is not None:
            rows.keep(f"adapter.{name}", None, rule="always off here")


# -- how ---------------------------------------------------------------------------------------------------


def _optimizer(rows: Rows) -> None:
    rows.offer("epochs", "n_epochs", 1)
    multiplier = rows.given("learning_rate_multiplier")
    if multiplier is not None:
        rule = f"multiplier times {BASE_LEARNING_RATE:g}, the default for all models at Together"
        rate = multiplier * BASE_LEARNING_RATE
        rows.map("learning_rate_multiplier", "learning_rate", rate, rule, exact=False)
    else:
        rows.offer("learning_rate", "learning_rate", BASE_LEARNING_RATE)
    _batch(rows)
    rows.offer("warmup_ratio", "warmup_ratio", 0.0)
    rows.offer("weight_decay", "weight_decay", 0.0)
    rows.offer("max_grad_norm", "max_grad_norm", 1.0)
    rows.offer("packing", "packing", True)
    rows.offer("seed", "random_seed", 42)
    rows.refuse_if_set({"batch_tokens": "Together counts batches in rows: set batch_size"})
    if rows.given("warmup_steps") == 0:
        rows.map("warmup_steps", "warmup_ratio", 0.0, "no warm-up")
    rows.refuse_if_set({"warmup_steps": "Together expects a fraction of the steps: set warmup_ratio"})
    _schedule(rows)


def _schedule(rows: Rows) -> None:
    schedule, least = rows.given("schedule"), rows.given("min_lr_ratio")
    if schedule in ("polynomial", "warmup_stable_decay"):
        rows.refuse(
            "schedule",
            "Together supports the schedules linear, cosine and constant",
        )
        rows.refuse_if_set({"min_lr_ratio": "applies only to a schedule that Together does not support"})
        return
    if least is not None:
        rows.keep("min_lr_ratio", "lr_scheduler.lr_scheduler_args.min_lr_ratio")
    if schedule is None and least is None:
        rows.default("schedule", "lr_scheduler", "cosine", "half a cosine cycle, down to 0")
    elif schedule == "constant":
        flat = {"lr_scheduler_type": "linear", "lr_scheduler_args": {"min_lr_ratio": 1.0}}
        rows.map(
            "schedule",
            "lr_scheduler",
            flat,
            "a linear schedule that ends at 1.0 times the peak rate stays flat",
        )
    else:
        args: dict[str, Any] = {"min_lr_ratio": least or 0.0}
        if schedule != "linear":
            args["num_cycles"] = 0.5
        value = {"lr_scheduler_type": schedule or "cosine", "lr_scheduler_args": args}
        if schedule is None:
            rows.default("schedule", "lr_scheduler", value, "one half cycle", send=True)
        else:
            rows.keep("schedule", "lr_scheduler", value)


def _batch(rows: Rows) -> None:
    """Translate the rows per step. In a spec, `batch_size` counts all of them, and accumulation splits them.
    Together's `gradient_accumulation_steps` multiplies its `batch_size` instead ("increases effective
    batch size", the help of its CLI)."""
    size, steps = rows.given("batch_size"), rows.given("gradient_accumulation")
    wire = "gradient_accumulation_steps"
    if isinstance(size, int) and steps and steps > 1:
        part, rest = divmod(size, steps)
        rule = (
            f"{text.count(max(part, 1), 'row')} times {steps} accumulated steps = "
            f"{max(part, 1) * steps} rows per step"
        )
        rows.map("batch_size", "batch_size", max(part, 1), rule, exact=part > 0 and not rest)
        rows.keep("gradient_accumulation", wire)
        return
    rows.offer("batch_size", "batch_size", "max", "the largest batch that fits, which depends on packing")
    if steps is None or steps == 1:
        rows.offer("gradient_accumulation", wire, None, "the model's default")
    else:
        rule = f"each optimizer step accumulates {steps} of Together's batches"
        rows.map("gradient_accumulation", wire, steps, rule, exact=False)


def _length(rows: Rows, spec: JobSpec, model: ModelOnHost) -> None:
    most = model.context(spec.method.type) if model.host and model.host.context else None
    if spec.max_seq_length is not None and most is not None and spec.max_seq_length > most:
        reason = f"at most {most:,} tokens for {model.name} with {spec.method.type}"
        rows.refuse("max_seq_length", reason, instead=most)
    else:
        rows.offer("max_seq_length", "max_seq_length", most, "the model's maximum")


def _evaluation(rows: Rows, spec: JobSpec) -> None:
    stop = spec.early_stopping
    needed = stop.patience + 2 if stop else 0
    evals = spec.evals
    if evals and spec.validation is None:
        rows.refuse("evals", "evaluations need validation data")
    elif evals is not None:
        rows.keep("evals", "n_evals")
    elif spec.validation is None:
        rows.default("evals", "n_evals", 0)
    elif stop is None:
        rows.default(
            "evals",
            "n_evals",
            0,
            "Together bills the tokens of each evaluation. To request evaluations, set evals",
            send=True,
        )
    else:
        evals = needed
        rows.default(
            "evals",
            "n_evals",
            evals,
            "the number that early stopping needs. Together bills each evaluation",
            send=True,
        )
    rows.offer("checkpoints", "n_checkpoints", 1)
    if stop is None:
        return
    if (evals or 0) < needed:
        reason = f"with patience {stop.patience}, evals must be at least {needed}"
        rows.refuse("early_stopping", reason)
        return
    rows.keep("early_stopping", "early_stopping_enabled", True)
    rows.keep("early_stopping.patience", "early_stopping_patience", stop.patience)
    rows.keep("early_stopping.min_delta", "early_stopping_min_delta", stop.min_delta)


def _names(rows: Rows) -> None:
    suffix = rows.given("suffix")
    room = suffix_room(SUFFIX_LIMIT)
    if suffix is not None:
        cut = f". The suffix is shortened to {room} characters" if len(suffix) > room else ""
        rule = f"sent as <suffix>-<ref>, because the ref identifies the job{cut}"
        rows.map("suffix", None, f"{suffix[:room]}-<ref>", rule, exact=not cut)
    for name in ("project", "name", "entity"):
        if rows.given(f"wandb.{name}") is not None:
            wire = "wandb_project_name" if name == "project" else f"wandb_{name}"
            rows.keep(f"wandb.{name}", wire)
    rows.refuse_if_set({"wandb.tags": "Together does not pass tags to W&B"})


# -- the fields of the create request ----------------------------------------------------------------------
# The fields of the SDK's `FinetuneRequest` (together 3.1.1), and additional ones from the published API
# specification (2026-04-28).


FIELDS = Fields(
    sdk="""
        training_file validation_file packing model n_epochs learning_rate lr_scheduler.lr_scheduler_type
        lr_scheduler.lr_scheduler_args.min_lr_ratio lr_scheduler.lr_scheduler_args.num_cycles warmup_ratio
        max_grad_norm weight_decay n_checkpoints n_evals max_seq_length batch_size
        gradient_accumulation_steps suffix wandb_key wandb_base_url wandb_project_name wandb_name
        wandb_entity random_seed early_stopping_enabled early_stopping_patience early_stopping_min_delta
        early_stopping_warmup_evals training_type.type training_type.lora_r training_type.lora_alpha
        training_type.lora_dropout training_type.lora_trainable_modules training_method.method
        training_method.train_on_inputs training_method.dpo_beta
        training_method.dpo_normalize_logratios_by_length training_method.dpo_reference_free
        training_method.rpo_alpha training_method.simpo_gamma from_checkpoint multimodal_params.train_vision
        from_hf_model hf_model_revision hf_api_token hf_output_repo_name
    """,
    specification="train_on_inputs wandb_api_key",
)


# -- a model's limits, as reported by the host -------------------------------------------------------------
# Compares a request body with the model's limits from Together (`/v1/fine-tunes/models/limits`).


FALLBACK_RANK = 8
"""Rank assumed for models whose default rank Together does not publish. It is the smallest rank in common
use."""


def default_rank(limits: Mapping[str, Any]) -> int:
    return integer(table(limits.get("lora_training")).get("default_rank")) or FALLBACK_RANK


def require_limits(body: Mapping[str, Any], limits: Mapping[str, Any], data: TrainingData) -> None:
    """Raise `TranslationRefused` with every setting that is outside the model's limits."""
    broken = [*_numbers(body, limits), *_adapter_limits(body, limits), *_content(limits, data)]
    if broken:
        raise TranslationRefused("together", broken)


def _numbers(body: Mapping[str, Any], limits: Mapping[str, Any]) -> list[Setting]:
    method = str(table(body.get("training_method")).get("method"))
    bounds = [
        ("epochs", "n_epochs", None, "max_num_epochs"),
        ("evals", "n_evals", None, "max_num_evals"),
        ("checkpoints", "n_checkpoints", None, "max_num_checkpoints"),
        ("learning_rate", "learning_rate", "min_learning_rate", "max_learning_rate"),
        ("max_seq_length", "max_seq_length", "min_max_seq_length", f"max_seq_length_{method}"),
    ]
    found: list[Setting] = []
    for name, wire, low, high in bounds:
        found += _outside(name, body.get(wire), limits.get(low) if low else None, limits.get(high))
    return found


def _adapter_limits(body: Mapping[str, Any], limits: Mapping[str, Any]) -> list[Setting]:
    chosen = table(body.get("training_type"))
    full = chosen.get("type") == "Full"
    if full and limits.get("supports_full_training") is False:
        return [_beyond("adapter.type", "full", "this model is trained with LoRA only")]
    bounds = table(limits.get("full_training" if full else "lora_training"))
    dpo = table(body.get("training_method")).get("method") == "dpo"
    most = bounds.get("max_batch_size_dpo" if dpo else "max_batch_size")
    batch = body.get("batch_size")
    found = [] if batch == "max" else _outside("batch_size", batch, bounds.get("min_batch_size"), most)
    return found + _outside("adapter.r", chosen.get("lora_r"), None, bounds.get("max_rank"))


def _content(limits: Mapping[str, Any], data: TrainingData) -> list[Setting]:
    content = data.train.content
    needs = [
        ("images", content.images, "supports_vision"),
        ("tools", content.tools, "supports_tools"),
        ("reasoning", content.reasoning, "supports_reasoning"),
    ]
    return [
        _beyond("train", data.train.path, f"the data contains {what}, which this model does not accept")
        for what, present, field in needs
        if present and limits.get(field) is False
    ]


def _outside(name: str, asked: Any, low: Any, high: Any) -> list[Setting]:
    value, least, most = number(asked), number(low), number(high)
    if value is None:
        return []
    if least is not None and value < least:
        return [_beyond(name, asked, f"at least {least:g} for this model")]
    if most is not None and value > most:
        return [_beyond(name, asked, f"at most {most:g} for this model")]
    return []


def _beyond(name: str, asked: Any, rule: str) -> Setting:
    return Setting(name=name, asked=asked, outcome=Outcome.REFUSED, rule=f"Together: {rule}")
