"""Translation of a spec into OpenAI's create request.

Field names and ranges come from the SDK's `openai.types.fine_tuning.JobCreateParams` and from OpenAI's
guides. Only requested settings are sent. For all others, the host's `auto` applies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orchestrate.catalog import ModelOnHost
from orchestrate.providers.settings import UNPAIRED, Fields, Rows
from orchestrate.spec import JobSpec
from orchestrate.types import Translation

METHODS = {"sft": "supervised", "dpo": "dpo", "rft": "reinforcement"}
EPOCHS = 50
BATCH = 256
CONTEXT = 65_536
"""Maximum number of tokens in a row for all models, according to OpenAI's guide to supervised fine-tuning."""
RESERVED = ("model", "training_file", "validation_file", "metadata", "hyperparameters")
"""Request fields that Orchestrate fills in. `hyperparameters` is the deprecated form of the fields in
`method`."""

HOST_DECIDES = "not sent, because OpenAI chooses the adapter settings and does not publish them"
_NO_RATE = (
    "OpenAI publishes no base rate, so this rate cannot be converted to a multiplier. Use "
    "learning_rate_multiplier"
)
REFUSED: Mapping[str, str] = {
    "learning_rate": _NO_RATE,
    "batch_tokens": "OpenAI counts batches in examples. Use batch_size",
    "warmup_ratio": "OpenAI sets the warm-up automatically",
    "schedule": "OpenAI sets the learning rate schedule automatically",
    "weight_decay": "OpenAI sets the weight decay automatically",
    "max_grad_norm": "OpenAI sets gradient clipping automatically",
    "packing": "OpenAI does not document whether it packs rows",
    "early_stopping": "OpenAI always trains all epochs",
    "method.normalize_by_length": "OpenAI's DPO supports only the beta setting",
    "method.rpo_alpha": "OpenAI's DPO supports only the beta setting",
    "method.simpo_gamma": "OpenAI's DPO supports only the beta setting",
    "method.samples_per_prompt": "OpenAI sets the number of samples through compute_multiplier",
    "method.kl_beta": "OpenAI does not publish its KL penalty",
    "adapter.r": "OpenAI chooses the adapter's rank and does not publish it",
    "adapter.alpha": "OpenAI chooses the adapter's scale and does not publish it",
    "adapter.dropout": "OpenAI chooses the adapter's dropout and does not publish it",
    "adapter.targets": "OpenAI chooses the adapted modules and does not publish them",
}


def translate(provider: str, spec: JobSpec, model: ModelOnHost, aliases: Iterable[str] = ()) -> Translation:
    rows = Rows(provider, spec, aliases=aliases, fields=FIELDS)
    _files(rows)
    _continue(rows, spec, model)
    _method(rows, spec)
    _adapter(rows, spec)
    _numbers(rows, spec)
    _checkpoints(rows, spec)
    _as_always(rows, spec)
    rows.offer("seed", "seed", rule="chosen by the host")
    rows.offer("suffix", "suffix", rule="none")
    _wandb(rows, spec)
    rows.refuse_if_set(REFUSED)
    rows.without_engine_settings("OpenAI")
    return rows.build(model.id, reserved=RESERVED)


def _files(rows: Rows) -> None:
    rows.train("the file is uploaded and training_file is set to its id")
    if rows.given("validation"):
        rows.keep("validation", None, rule="the file is uploaded and validation_file is set to its id")


def _continue(rows: Rows, spec: JobSpec, model: ModelOnHost) -> None:
    tuned = spec.continue_from
    if tuned is None:
        rows.send("model", model.id)
        return
    base = _base(tuned)
    if model.model is not None and base is None:
        rows.refuse("continue_from", "must be a tuned model from OpenAI (ft:...), or a run that succeeded")
    elif base is not None and base != _base(model.id) and base != model.id:
        rows.refuse("continue_from", f"this model is based on {base}, but the spec's model is {model.id}")
    else:
        rows.keep("continue_from", "model", rule="the tuned model replaces the base model")


def _base(name: str) -> str | None:
    """Return the base model in the name of a tuned one, or `None` for any other name."""
    parts = name.split(":")
    return parts[1] if parts[0] == "ft" and len(parts) > 2 else None


def _method(rows: Rows, spec: JobSpec) -> None:
    kind = METHODS[spec.method.type]
    rows.map("method.type", "method.type", kind, f"{spec.method.type} is called {kind}")
    if spec.method.type == "sft":
        _inputs(rows)
    elif spec.method.type == "dpo":
        rows.offer("method.beta", "method.dpo.hyperparameters.beta", "auto")
        reason = "OpenAI only supports the original DPO loss"
        rows.plain_dpo({"ipo": reason, "orpo": reason, "kto": f"{reason}. {UNPAIRED}"})
    else:
        inside = "method.reinforcement"
        rows.keep("method.grader", f"{inside}.grader", spec.method.grader)
        rows.offer("method.reasoning_effort", f"{inside}.hyperparameters.reasoning_effort", "default")
        rows.offer("method.compute_multiplier", f"{inside}.hyperparameters.compute_multiplier", "auto")
        if rows.given("eval_steps") is not None:
            rows.keep("eval_steps", f"{inside}.hyperparameters.eval_interval")


def _inputs(rows: Rows) -> None:
    rule = "the loss only covers assistant messages"
    if rows.given("method.train_on_inputs") is True:
        rows.refuse("method.train_on_inputs", f"at OpenAI, {rule}")
    elif rows.given("method.train_on_inputs") is False:
        rows.keep("method.train_on_inputs", None, rule=rule)
    else:
        rows.default("method.train_on_inputs", None, False, rule)


def _adapter(rows: Rows, spec: JobSpec) -> None:
    asked = "adapter" in spec.model_fields_set
    if spec.adapter.type == "full":
        reason = "OpenAI does not let you choose the adapter. Use LoRA, the default"
        rows.refuse("adapter.type", reason, instead="lora")
    elif asked:
        rows.map("adapter.type", None, "host decides", HOST_DECIDES, exact=False)
    else:
        rows.default("adapter.type", None, "host decides", HOST_DECIDES)
    for name in ("adapter.dora", "adapter.rslora"):
        if rows.given(name) is True:
            rows.refuse(name, HOST_DECIDES)
        elif rows.given(name) is False:
            rows.map(name, None, None, HOST_DECIDES, exact=False)


def _numbers(rows: Rows, spec: JobSpec) -> None:
    inside = f"method.{METHODS[spec.method.type]}.hyperparameters"
    if (spec.epochs or 0) > EPOCHS:
        rows.refuse("epochs", f"OpenAI trains at most {EPOCHS} epochs", instead=EPOCHS)
    else:
        rows.offer("epochs", f"{inside}.n_epochs", "auto")
    rows.offer("learning_rate_multiplier", f"{inside}.learning_rate_multiplier", "auto")
    if spec.batch_size == "max":
        rule = (
            f"OpenAI has no setting for the largest batch that fits. By default, it derives the batch size "
            f"from the file size, up to {BATCH}"
        )
        rows.map("batch_size", f"{inside}.batch_size", "auto", rule, exact=False)
    elif (spec.batch_size or 0) > BATCH:
        rows.refuse("batch_size", f"OpenAI allows at most {BATCH} examples", instead=BATCH)
    else:
        rows.offer("batch_size", f"{inside}.batch_size", "auto")


def _checkpoints(rows: Rows, spec: JobSpec) -> None:
    rule = "one after each epoch. OpenAI keeps the last three"
    if spec.checkpoints is None:
        rows.default("checkpoints", None, 3, rule)
    elif spec.epochs is not None and spec.checkpoints == min(3, spec.epochs):
        rows.keep("checkpoints", None, rule=rule)
    else:
        rows.refuse("checkpoints", f"OpenAI creates {rule}")


def _as_always(rows: Rows, spec: JobSpec) -> None:
    """Translate settings for which OpenAI has no field. Keeps a value that matches what it always does."""
    fixed = {
        "gradient_accumulation": ("OpenAI splits batches automatically. Use batch_size", 1),
        "max_seq_length": (f"OpenAI truncates rows at the model's own limit ({CONTEXT:,} tokens)", CONTEXT),
        "evals": ("OpenAI evaluates on its own schedule", 0 if spec.validation is None else None),
    }
    for name, (rule, always) in fixed.items():
        if rows.given(name) is None:
            continue
        if rows.given(name) == always:
            rows.keep(name, None, rule="always on here")
        else:
            rows.refuse(name, rule)


def _wandb(rows: Rows, spec: JobSpec) -> None:
    if spec.wandb is None:
        return
    settings = spec.wandb.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    value = [{"type": "wandb", "wandb": settings}]
    rows.keep("wandb", "integrations", value, rule="the W&B key is stored at OpenAI")


# -- the fields of the create request ----------------------------------------------------------------------
# The fields of the SDK's `JobCreateParams` (openai 3.57.0). The guide to reinforcement fine-tuning mentions
# `response_format`, but neither the SDK nor the API specification has that field.


FIELDS = Fields(
    sdk="""
        model training_file hyperparameters.batch_size hyperparameters.learning_rate_multiplier
        hyperparameters.n_epochs integrations metadata method.type method.dpo.hyperparameters.batch_size
        method.dpo.hyperparameters.beta method.dpo.hyperparameters.learning_rate_multiplier
        method.dpo.hyperparameters.n_epochs method.reinforcement.grader
        method.reinforcement.hyperparameters.batch_size
        method.reinforcement.hyperparameters.compute_multiplier
        method.reinforcement.hyperparameters.eval_interval method.reinforcement.hyperparameters.eval_samples
        method.reinforcement.hyperparameters.learning_rate_multiplier
        method.reinforcement.hyperparameters.n_epochs method.reinforcement.hyperparameters.reasoning_effort
        method.supervised.hyperparameters.batch_size
        method.supervised.hyperparameters.learning_rate_multiplier
        method.supervised.hyperparameters.n_epochs seed suffix validation_file
    """,
    documentation="method.reinforcement.response_format",
)
