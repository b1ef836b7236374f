"""Translation of a spec for the local engine. The engine accepts nearly every setting as requested and
rejects the settings that it does not support."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from orchestrate import catalog
from orchestrate.data.tokens import counters, tokenizer_files
from orchestrate.data.tokens.chat_templates import reads, require_template
from orchestrate.errors import ConfigError, DataError, SetupError, SpecError, UsageError
from orchestrate.local import model as engines
from orchestrate.local.job import DEFAULT_SAMPLES, LEARNING_RATES, Hyper
from orchestrate.local.model import files
from orchestrate.local.objectives import graders, isolation
from orchestrate.local.plan import memory as states
from orchestrate.local.plan import memory_fit
from orchestrate.local.plan.memory import LION_RATE
from orchestrate.providers.local.adapter_settings import adapter
from orchestrate.providers.settings import Rows
from orchestrate.settings import masked
from orchestrate.spec import RFT, EarlyStopping, JobSpec, method_word
from orchestrate.spec.methods import OPTIMIZERS
from orchestrate.spec.specfile import template_text
from orchestrate.text import size
from orchestrate.types import MemoryPlan, Outcome, Setting, Translation

# `provider_options.local`: the engine's own settings, and the values chosen for this machine if none are set.


class Option(NamedTuple):
    kind: type | tuple[type, ...]
    least: float | None = None
    """Smallest allowed value."""
    above: float | None = None
    """Exclusive lower bound."""
    words: tuple[str, ...] = ()
    rft_only: bool = False
    in_hyper: bool = True
    """True if the option is one of the engine's training settings."""


NUMBER = (int, float)
OPTIONS: Mapping[str, Option] = {
    "threads": Option(int, least=1, in_hyper=False),
    "device": Option(str, words=("cpu", "cuda"), in_hyper=False),
    "engine": Option(str, words=engines.NAMES, in_hyper=False),
    "precision": Option(str, words=engines.PRECISIONS, in_hyper=False),
    "micro_batch": Option(int, least=1),
    "processes": Option(int, least=1),
    "sharded": Option(bool),
    "optimizer": Option(str, words=tuple(OPTIMIZERS)),
    "gradient_checkpointing": Option(bool),
    "deterministic": Option(bool),
    "neftune_alpha": Option(NUMBER, above=0),
    "router_aux_loss": Option(NUMBER, least=0),
    "nan_policy": Option(str, words=("stop", "skip")),
    "spike_factor": Option(NUMBER, above=1),
    "recovery_seconds": Option(NUMBER, least=0),
    "max_new_tokens": Option(int, least=1, rft_only=True),
    "grader_seconds": Option(NUMBER, above=0, rft_only=True),
}


def option_rows(
    spec: JobSpec, body: Mapping[str, Any], gpu_elsewhere: bool, capability: float | None = None
) -> tuple[list[Setting], dict[str, Any]]:
    """Return a translation row for each engine option, and the request body with the options added.
    `gpu_elsewhere` is True if the job is planned for another machine's GPU. `capability` is that GPU's
    compute capability, if known."""
    rows: dict[str, Setting] = {}
    body = {**body, "hyper": dict(body.get("hyper", {}))}
    for key, value in spec.provider_options.get("local", {}).items():
        name = f"provider_options.{key}"
        if reason := problem(key, value, spec.method.type) or _conflict(key, value, spec):
            shown = masked(value, name)
            rows[key] = Setting(name=name, asked=shown, outcome=Outcome.REFUSED, rule=reason)
            continue
        inside = OPTIONS[key].in_hyper
        wire = f"hyper.{key}" if inside else key
        rows[key] = Setting(name=name, asked=value, outcome=Outcome.KEPT, sent=value, wire=wire)
        (body["hyper"] if inside else body)[key] = value
    device = engines.expected_device(body.get("device") or ("cuda" if gpu_elsewhere else None))
    full = spec.adapter.type == "full"
    choices: dict[str, Callable[[Any], engines.SettingChoice]] = {
        "engine": lambda asked: engines.choose(asked, device),
        "precision": lambda asked: engines.precision(asked, device, full=full, capability=capability),
    }
    for key, choose in choices.items():
        asked = rows.pop(key, None)
        if asked is None or asked.outcome is not Outcome.REFUSED:
            asked = _chosen(key, body.get(key), choose)
        rows[key] = asked
    # Set the precision now, so it stays the same if the run continues on a machine with a different CPU.
    body["precision"] = rows["precision"].sent
    return list(rows.values()), body


def _conflict(key: str, value: Any, spec: JobSpec) -> str | None:
    if key == "micro_batch" and spec.gradient_accumulation is not None:
        return (
            f"the spec also sets gradient_accumulation: {spec.gradient_accumulation}. Remove one of the two"
        )
    if key == "processes" and value > 1 and (method_word(spec.method) in ("kto", "rft")):
        word = method_word(spec.method).upper()
        return f"{word} compares the answers in a batch, so it only supports one process"
    if key != "optimizer":
        return None
    if spec.optimizer is not None and spec.optimizer.type != value:
        return f"the spec also sets optimizer: {spec.optimizer.type}. Remove one of the two"
    return missing_optimizer(value)


def missing_optimizer(name: str) -> str | None:
    """Return why the optimizer can't be used on this machine, and the command that installs it. Returns
    `None` if the optimizer can be used."""
    try:
        states.require(name)
    except states.OptimizerMissing as error:
        return f"{error.message}: {error.fix}"
    return None


def of_machine(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that the configuration sets for all jobs. Raises `ConfigError` for an invalid
    value."""
    found = {name: options[name] for name in ("threads", "device") if options.get(name) is not None}
    for name, value in found.items():
        if reason := problem(name, value):
            raise ConfigError(f"local.{name} {reason}", fix="correct it in orchestrate.toml")
    return found


def device_of(spec: JobSpec, options: Mapping[str, Any]) -> str:
    """Predict the device on which the run will train, based on the spec, the configuration and this machine's
    hardware."""
    asked = spec.provider_options.get("local", {}).get("device") or options.get("device")
    return engines.expected_device(asked or ("cuda" if options.get("gpu_memory_gib") is not None else None))


def problem(key: str, value: Any, method: str = "sft") -> str | None:
    """Return why the engine rejects this value, or `None` if it accepts the value."""
    option = OPTIONS.get(key)
    if key == "run_grader_code":
        return (
            "a spec cannot grant itself permission to run code. Remove this setting and pass the option "
            "yourself: orchestrate "
            "--allow-grader-code ..."
        )
    if option is None:
        return f"the local engine has no such option. Available: {', '.join(sorted(OPTIONS))}"
    if not isinstance(value, option.kind) or (isinstance(value, bool) and option.kind is not bool):
        kinds = option.kind if isinstance(option.kind, tuple) else (option.kind,)
        return f"must be {'/'.join(k.__name__ for k in kinds)}, got {value!r}"
    if option.words and value not in option.words:
        return f"must be one of {', '.join(option.words)}, got {value!r}"
    if option.rft_only and method != "rft":
        return "only for RFT, because other methods sample no answers"
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, got {value!r}"
    if option.least is not None and value < option.least:
        return f"must be at least {option.least:g}, got {value!r}"
    if option.above is not None and value <= option.above:
        return f"must be above {option.above:g}, got {value!r}"
    if key == "router_aux_loss" and method == "rft":
        return "not supported for RFT, whose loss covers only sampled answers"
    if key == "spike_factor" and method == "rft":
        return "not supported for RFT, whose loss is about 0 at every step and has no spikes"
    return None


def _chosen(name: str, asked: Any, choose: Callable[[Any], engines.SettingChoice]) -> Setting:
    """Return what the machine will use, and why. Rejected if the machine lacks what was requested. The
    worker, which knows the number of tokens, chooses the engine again."""
    row = Setting(name=f"provider_options.{name}", asked=asked, outcome=Outcome.REFUSED, wire=name)
    try:
        found = choose(asked)
    except SetupError as error:
        return msgspec.structs.replace(row, wire=None, rule=f"{error.message}: {error.fix}")
    sent = (asked or "auto") if name == "engine" else found.name
    return msgspec.structs.replace(
        row,
        outcome=Outcome.DEFAULTED if asked is None else Outcome.KEPT,
        sent=sent,
        rule=found.reason if sent == found.name else f"{found.name}: {found.reason}",
    )


# Several GPUs: each holds the full model (DDP) if it fits on one GPU, otherwise a shard of every weight
# (FSDP). A run that fits neither way is rejected.


NAME = "provider_options.sharded"
_ADAPTERS = {
    "dora": "DoRA needs unsharded weights",
    "init_lora_weights": "this initialization needs unsharded weights",
    "modules_to_save": "full copies of modules can only be trained with unsharded weights",
    "target_parameters": "a tensor that holds all experts cannot be sharded",
}


def settled(translation: Translation, plan: Callable[[Translation], MemoryPlan | None]) -> Translation:
    """Add the memory plan to the translation, and decide whether the processes shard the weights."""
    processes = translation.body.get("hyper", {}).get("processes", 1)
    asked = next((row for row in translation.settings if row.name == NAME), None)
    if translation.refused or (processes == 1 and asked is None):
        return msgspec.structs.replace(translation, memory=plan(translation))
    if asked is not None and asked.sent is not True:
        return msgspec.structs.replace(translation, memory=plan(translation))
    kept = Setting(name=NAME, asked=True, outcome=Outcome.KEPT, sent=True, wire="hyper.sharded")
    in_shares = _with(translation, kept)
    reason = unable(translation.body)
    if asked is not None:
        if reason:
            return _with(translation, _refused(reason, asked=True))
        return msgspec.structs.replace(in_shares, memory=plan(in_shares))
    whole, shared = plan(translation), None if reason else plan(in_shares)
    if whole is None or whole.fits is not False or whole.available_bytes is None:
        rule = "each GPU has the full model (DDP)"
        if whole is not None and whole.fits:
            rule += f" and needs {size(whole.total_bytes)} of its {size(whole.available_bytes or 0)}"
        row = Setting(name=NAME, outcome=Outcome.DEFAULTED, sent=False, rule=rule)
        return msgspec.structs.replace(_with(translation, row), memory=whole)
    sums = f"a full copy needs {size(whole.total_bytes)} (each GPU has {size(whole.available_bytes)})"
    if shared is None or not shared.fits:
        more = reason or f"a shard needs {size(shared.total_bytes if shared else 0)}"
        least = shared or whole
        fix = "; or ".join(["use more or larger GPUs", *least.advice])
        why = f"the run does not fit on {processes} GPUs: {sums}, {more}. To fix this: {fix}"
        row = _refused(why, asked=None)
        return msgspec.structs.replace(_with(translation, row), memory=whole)
    rule = f"each GPU has a shard of every weight (FSDP): {sums}, "
    rule += f"a shard only {size(shared.total_bytes)}"
    row = Setting(name=NAME, outcome=Outcome.DEFAULTED, sent=True, wire="hyper.sharded", rule=rule)
    return msgspec.structs.replace(_with(translation, row), memory=shared)


def spread(body: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """Return a copy of the request body that uses `processes` processes, each with a shard of every
    weight."""
    return {**body, "hyper": {**body.get("hyper", {}), "processes": processes, "sharded": True}}


def unable(body: Mapping[str, Any]) -> str | None:
    """Return why weights cannot be sharded for this job, or `None` if they can."""
    hyper, adapter = body.get("hyper", {}), body.get("adapter", {})
    optimizer, engine = hyper.get("optimizer", "adamw"), body.get("engine", "auto")
    if hyper.get("processes", 1) < 2:
        return "there is only one process. Set processes to the number of GPUs"
    if optimizer != "adamw":
        return f"optimizer {optimizer} does not support sharded weights. Use adamw"
    if engine not in ("auto", "plain", None):
        return f"engine {engine} does not support sharded weights. Use plain"
    for name, reason in _ADAPTERS.items():
        if adapter.get(name):
            return f"adapter.{name}: {reason}"
    if body.get("added_tokens") and adapter.get("type") != "full":
        return "added_tokens: training only the embeddings of new tokens needs unsharded weights"
    return None


def _refused(reason: str, *, asked: bool | None) -> Setting:
    return Setting(name=NAME, asked=asked, outcome=Outcome.REFUSED, rule=reason)


def _with(translation: Translation, row: Setting) -> Translation:
    rows = (*(one for one in translation.settings if one.name != NAME), row)
    hyper = {**translation.body.get("hyper", {}), "sharded": row.sent is True}
    return msgspec.structs.replace(translation, settings=rows, body={**translation.body, "hyper": hyper})


# The chat template that the spec sets, and the values of its variables.


GOES_ALONG = "stored with the result for chat, evaluation and export"


def chat_template(rows: Rows, spec: JobSpec, model: str) -> None:
    templates = _of(model)
    if spec.chat_template is not None:
        try:
            text = template_text(spec.chat_template)
            require_template(text)
        except (SpecError, DataError) as error:
            rows.refuse("chat_template", error.message)
            return
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        rows.keep("chat_template", "chat_template", text, rule=f"sha256 {digest}, {GOES_ALONG}")
        templates = text
    if settings := spec.chat_template_kwargs:
        if templates and (unread := [name for name in settings if not reads(templates, name)]):
            rows.refuse("chat_template_kwargs", f"the chat template has no variable called {unread[0]}")
        else:
            rule = f"the default, {GOES_ALONG}"
            rows.keep("chat_template_kwargs", "chat_template_kwargs", dict(settings), rule=rule)


def _of(model: str) -> object:
    """Return the model's own templates, if they are on this machine."""
    folder = model if Path(model).is_dir() else None
    name = counters.for_model(hub=None if folder else model, folder=folder)
    return tokenizer_files.chat_templates(counters.folder_of(name)) if name.startswith("hf:") else None


FULL_LEARNING_RATES = {"sft": 1e-5, "dpo": 1e-6, "rft": 1e-6}


def translate(spec: JobSpec, options: Mapping[str, Any]) -> Translation:
    """Translate the spec for the local engine. `options` contains the machine's own settings (threads,
    device, gpu_memory_gib) from the configuration."""
    # `provider_options.local` is checked here with types. `Rows` would merge it unchecked.
    others = {kind: given for kind, given in spec.provider_options.items() if kind != "local"}
    rows = Rows("local", spec.model_copy(update={"provider_options": others}))
    model = _model(rows, spec)
    _method(rows, spec, code=options.get("allow_grader_code") is True)
    adapter(rows, spec, model)
    chat_template(rows, spec, model)
    _steps(rows, spec)
    _optimizer(rows, spec)
    _data(rows, spec, options)
    for name, value in of_machine(options).items():
        rows.send(name, value)
    built = rows.build(model)
    elsewhere = options.get("gpu_memory_gib") is not None
    own, body = option_rows(spec, built.body, elsewhere, options.get("gpu_capability"))
    whole = msgspec.structs.replace(built, settings=(*built.settings, *own), body=body)
    return settled(whole, lambda planned: memory(spec, planned, options))


def memory(
    spec: JobSpec, translation: Translation, options: Mapping[str, Any], longest: int | None = None
) -> MemoryPlan | None:
    """Plan the memory for training. Returns `None` if it cannot be estimated. `longest` is the length of the
    longest row in tokens.

    Raises `ConfigError` for a `gpu_memory_gib` that is not a valid size.
    """
    size = options.get("gpu_memory_gib")
    if size is not None and (
        isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size < 1e5
    ):
        raise ConfigError(
            f"local.gpu_memory_gib must be a GPU memory size in GiB, got {size!r}", fix="for example 24"
        )
    if translation.refused:
        return None
    return memory_fit.of_job(
        translation.model,
        translation.body,
        billions=catalog.resolve(spec.model_for("local"), "local").params_b,
        longest=longest,
        gpu_bytes=None if size is None else int(size * 2**30),
    )


def _model(rows: Rows, spec: JobSpec) -> str:
    name = spec.model_for("local")
    try:
        found = catalog.resolve(name, "local")
        files.config_of(found.id)
    except (UsageError, ConfigError) as error:
        rows.refuse("model", error.message)
        return name
    path = Path(found.id).expanduser()
    return str(path.resolve()) if path.exists() else found.id


def _method(rows: Rows, spec: JobSpec, *, code: bool) -> None:
    method = spec.method
    rows.keep("method.type", "method.type", method.type)
    if isinstance(method, RFT):
        _reinforcement(rows, spec, method, code=code)
        return
    if method.type == "sft":
        rows.offer(
            "method.train_on_inputs", "method.train_on_inputs", False, "loss only on the assistant's tokens"
        )
        rule = "answers are rendered by the model's chat template, with or without reasoning"
        rows.offer("method.earlier_thinking", "method.earlier_thinking", "train", rule)
        rule = "training includes empty reasoning blocks before answers"
        rows.offer("method.ignore_empty_think", "method.ignore_empty_think", False, rule)
        if not method.train_on_inputs:
            rows.offer("method.train_on", "method.train_on", "all", "every assistant message")
        elif method.train_on == "all":
            rows.keep("method.train_on", None, rule="all messages, because train_on_inputs is set")
        return
    rows.offer("method.loss", "method.loss", "dpo")
    if method.loss == "orpo":
        rows.offer(
            "method.beta", "method.beta", 0.1, "weight of the odds-ratio loss, which needs no reference model"
        )
        _off(rows, "ORPO")
        return
    if method.loss == "ipo":
        rows.offer("method.beta", "method.beta", 0.1, "IPO's tau, with log-ratios averaged over tokens")
        _off(rows, "IPO")
        return
    if method.loss == "kto":
        _unpaired(rows)
        return
    rows.offer("method.beta", "method.beta", 0.1)
    rows.offer("method.label_smoothing", "method.label_smoothing", 0.0)
    rows.offer("method.normalize_by_length", "method.normalize_by_length", False)
    rows.offer("method.rpo_alpha", "method.rpo_alpha")
    rows.offer("method.simpo_gamma", "method.simpo_gamma")


def _unpaired(rows: Rows) -> None:
    rows.offer(
        "method.beta",
        "method.beta",
        0.1,
        "as in DPO. Reference log-probabilities are computed before the first step",
    )
    for name in ("desirable_weight", "undesirable_weight"):
        rows.offer(f"method.{name}", f"method.{name}", 1.0)
    _off(rows, "KTO")


def _off(rows: Rows, loss: str) -> None:
    for name in ("normalize_by_length", "rpo_alpha", "simpo_gamma", "label_smoothing"):
        if rows.given(f"method.{name}") is not None:
            rows.keep(f"method.{name}", None, rule=f"always off with {loss}")


def _reinforcement(rows: Rows, spec: JobSpec, method: RFT, *, code: bool) -> None:
    if reason := graders.refusal(method.grader, allow_code=code):
        rows.refuse("method.grader", reason)
    elif graders.runs_code(method.grader):
        rule = f"its code runs on this machine, as you allowed, {isolation().description}"
        rows.keep("method.grader", "method.grader", method.grader, rule=rule)
        rows.send("hyper.run_grader_code", True)
    else:
        rows.keep("method.grader", "method.grader", method.grader)
    if method.samples_per_prompt == 1:
        rows.refuse(
            "method.samples_per_prompt", "must be at least 2, because answers are compared with each other"
        )
    else:
        rule = "answers sampled per prompt and epoch"
        rows.offer("method.samples_per_prompt", "method.samples_per_prompt", DEFAULT_SAMPLES, rule)
    if method.kl_beta and spec.adapter.type == "full":
        reason = "needs a second copy of all weights. Train an adapter, or remove kl_beta"
        rows.refuse("method.kl_beta", reason)
    else:
        rows.offer("method.kl_beta", "method.kl_beta", 0.0)
    if method.compute_multiplier is not None:
        rows.refuse(
            "method.compute_multiplier",
            "local training sets the amount of exploration with samples_per_prompt",
        )
    rows.refuse_if_set({"method.reasoning_effort": "open models have no such training setting"})
    if spec.packing:
        rows.refuse("packing", "RFT samples new answers at each step, so there is nothing to pack")


def _steps(rows: Rows, spec: JobSpec) -> None:
    """Translate how long to train, and when to evaluate and save."""
    if spec.max_steps is not None:
        rule = "or after all epochs, whichever comes first" if spec.epochs else None
        rows.keep("max_steps", "hyper.max_steps", rule=rule)
    if spec.max_steps is not None and spec.epochs is None:
        rows.default("epochs", None, None, "the number that max_steps requires")
        rows.send("hyper.epochs", None)
    else:
        rows.offer("epochs", "hyper.epochs", 3)
    epochs = None if spec.max_steps is not None else spec.epochs or 3
    if spec.eval_steps is not None:
        rows.keep("eval_steps", "hyper.eval_steps", rule="also after the last step")
    elif spec.validation is None:
        if spec.evals:
            rows.refuse("evals", "there is no validation data")
    elif spec.evals is not None:
        rows.keep("evals", "hyper.evals")
    else:
        rows.default("evals", None, epochs, "one per epoch")
    if spec.checkpoint_steps is not None:
        rows.keep("checkpoint_steps", "hyper.checkpoint_steps", rule="also after the last step")
    else:
        rows.offer("checkpoints", "hyper.checkpoints", epochs, "one per epoch")
    rows.offer("save_total_limit", "hyper.save_total_limit", None, "keeps all checkpoints")
    if spec.early_stopping is not None:
        _early_stopping(rows, spec, spec.early_stopping)
    elif spec.keep_best and spec.evals == 0:
        rows.refuse("keep_best", "needs evaluations to find the best checkpoint, but evals is 0")
    elif spec.validation is not None or spec.keep_best is not None:
        rows.offer("keep_best", "hyper.keep_best", False, "the weights of the last step")


def _early_stopping(rows: Rows, spec: JobSpec, stop: EarlyStopping) -> None:
    needed = stop.patience + 1
    known = spec.evals
    if spec.max_steps is None and spec.evals is None and spec.eval_steps is None:
        known = spec.epochs or 3
    elif spec.max_steps is not None and spec.eval_steps is not None:
        known = -(-spec.max_steps // spec.eval_steps)
    if known is not None and known < needed:
        rows.refuse("early_stopping", f"with patience {stop.patience}, evals must be at least {needed}")
        return
    rows.keep("early_stopping.patience", "hyper.early_stopping_patience", stop.patience)
    rows.keep("early_stopping.min_delta", "hyper.early_stopping_min_delta", stop.min_delta)
    if spec.keep_best:
        rows.keep("keep_best", "hyper.keep_best", rule="always on with early stopping")
    else:
        rows.default("keep_best", None, True, "early stopping keeps the best weights")


def _optimizer(rows: Rows, spec: JobSpec) -> None:
    kind = spec.optimizer.type if spec.optimizer else None
    option = spec.provider_options.get("local", {}).get("optimizer")
    if kind is None and option is None:
        rows.default("optimizer", "hyper.optimizer", "adamw")
    elif kind is not None:
        if reason := missing_optimizer(kind):
            rows.refuse("optimizer.type", reason)
        else:
            rows.keep("optimizer.type", "hyper.optimizer", kind, rule=_OPTIMIZER_RULES.get(kind))
        for name in ("betas", "eps", "momentum"):
            if rows.given(f"optimizer.{name}") is not None:
                rows.keep(f"optimizer.{name}", f"hyper.{name}")
    _learning_rate(rows, spec, kind or str(option))
    if spec.batch_size == "max":
        rows.refuse("batch_size", "local training has no maximum batch size. Set a number of examples")
    elif spec.batch_size == 1 and method_word(spec.method) == "kto":
        rows.refuse(
            "batch_size", "must be at least 2, because KTO compares the answers in a batch with each other"
        )
    else:
        rows.offer("batch_size", "hyper.batch_size", 16)
    if spec.gradient_accumulation is not None:
        batch = spec.batch_size if isinstance(spec.batch_size, int) else 16
        rows.map(
            "gradient_accumulation",
            "hyper.micro_batch",
            max(1, -(-batch // spec.gradient_accumulation)),
            "examples per forward pass: batch_size / gradient_accumulation. A step still has batch_size "
            "examples",
        )
    if spec.warmup_steps is not None:
        rows.keep("warmup_steps", "hyper.warmup_steps")
    else:
        rows.offer("warmup_ratio", "hyper.warmup_ratio", 0.03)
    rows.offer("weight_decay", "hyper.weight_decay", 0.0)
    rows.offer("max_grad_norm", "hyper.max_grad_norm", 1.0)
    rows.offer("seed", "seed", 0)


_OPTIMIZER_RULES = {
    "adafactor": "uses the learning rate as given, without scaling it by weights or steps",
    "muon": "trains the weight matrices, with step sizes like AdamW's. AdamW trains all other weights",
    "schedule_free_adamw": "the averaged weights are evaluated, saved and exported",
}


def _learning_rate(rows: Rows, spec: JobSpec, optimizer: str) -> None:
    rates = FULL_LEARNING_RATES if spec.adapter.type == "full" else LEARNING_RATES
    base = rates.get(spec.method.type, 2e-4)
    rule = None
    if "lion" in optimizer:
        base *= LION_RATE
        rule = f"{LION_RATE:g} times AdamW's rate, because Lion's steps are larger"
    if spec.learning_rate_multiplier is not None:
        rows.map(
            "learning_rate_multiplier",
            "hyper.learning_rate",
            base * spec.learning_rate_multiplier,
            f"times the local base rate {base:g}",
        )
    elif spec.learning_rate is not None:
        rows.keep("learning_rate", "hyper.learning_rate")
    else:
        rows.default("learning_rate", "hyper.learning_rate", base, rule, send=True)
    _schedule(rows, spec, optimizer)


def _schedule(rows: Rows, spec: JobSpec, optimizer: str) -> None:
    if optimizer != "schedule_free_adamw":
        rows.offer("schedule", "hyper.schedule", "cosine")
        if spec.schedule != "constant":
            rows.offer("min_lr_ratio", "hyper.min_lr_ratio", 0.0)
        if spec.schedule == "warmup_stable_decay":
            rows.offer(
                "decay_ratio", "hyper.decay_ratio", 0.1, "decays along half a cosine at the end of the run"
            )
        if spec.schedule == "polynomial":
            rows.offer("schedule_power", "hyper.schedule_power", 1.0, "1 is linear, 2 falls faster at first")
        return
    reason = "the schedule-free optimizer uses a constant learning rate and averages weights"
    rows.refuse_if_set(dict.fromkeys(("min_lr_ratio", "decay_ratio", "schedule_power"), reason))
    if spec.schedule not in (None, "constant"):
        rows.refuse(
            "schedule",
            "the schedule-free optimizer averages weights instead of using a schedule. Use constant",
            instead="constant",
        )
    elif spec.schedule is None:
        rows.default(
            "schedule",
            "hyper.schedule",
            "constant",
            "the optimizer averages weights instead of using a schedule",
            send=True,
        )
    else:
        rows.keep("schedule", "hyper.schedule")


def _data(rows: Rows, spec: JobSpec, options: Mapping[str, Any]) -> None:
    rows.train("read from disk in the canonical format")
    if spec.validation is not None:
        rows.keep("validation", None, rule="read from disk in the canonical format")
    if spec.added_tokens is not None:
        _added_tokens(rows, spec)
    _length(rows, spec)
    if not (spec.packing and spec.method.type == "rft"):
        rows.offer("packing", "hyper.packing", False, "rows of similar length are batched together instead")
        if spec.packing and device_of(spec, options) == "cpu":
            rows.annotate("packing", engines.NO_PACKING)
    if spec.suffix is not None:
        rows.keep(
            "suffix", None, rule="stored with the run only. The trained model is a folder and has no suffix"
        )
    if spec.batch_tokens is not None:
        rows.refuse("batch_tokens", "local training counts batches in examples. Use batch_size")
    if spec.wandb is not None:
        rows.refuse("wandb", "metrics are stored in the run directory and not sent anywhere")


def _added_tokens(rows: Rows, spec: JobSpec) -> None:
    if spec.continue_from is not None:
        rows.refuse("added_tokens", "already set by the adapter that this run continues from")
        return
    rule = (
        "each token gets a row in the embeddings and the output layer, initialized to the mean of the others"
    )
    if spec.adapter.type != "full":
        rule += ". These rows are trained and saved with the adapter"
    rows.keep("added_tokens", "added_tokens", list(spec.added_tokens or ()), rule=rule)


def _length(rows: Rows, spec: JobSpec) -> None:
    if spec.method.type != "rft":
        rows.offer("max_seq_length", "hyper.max_seq_length", None, "the model's context")
        rows.offer(
            "truncation", "hyper.truncation", "right", "longer rows are truncated at the end and reported"
        )
        return
    if spec.truncation == "drop":
        rows.keep(
            "truncation",
            None,
            rule="local RFT always drops prompts that leave no room for an answer",
        )
    elif spec.truncation is not None:
        rows.refuse(
            "truncation",
            "local RFT always drops prompts that leave no room for an answer. Set truncation to drop",
            instead="drop",
        )
    answer = max_new_tokens(spec)
    if spec.max_seq_length is not None and spec.max_seq_length <= answer:
        room = "set provider_options.local.max_new_tokens"
        rows.refuse(
            "max_seq_length",
            f"the maximum answer length is {answer} tokens, which leaves no room for a prompt. To change it: "
            f"{room}",
        )
    else:
        rule = f"the model's context length, which must hold the prompt and an answer of {answer} tokens"
        rows.offer("max_seq_length", "hyper.max_seq_length", None, rule)


def max_new_tokens(spec: JobSpec) -> int:
    """Return the maximum number of tokens in an answer that is sampled for grading."""
    asked = spec.provider_options.get("local", {}).get("max_new_tokens")
    return asked if isinstance(asked, int) else Hyper().max_new_tokens
