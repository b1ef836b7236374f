"""`provider_options.local`: the engine's own settings, and what the machine makes of those it chooses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from orchestrate.errors import ConfigError, SetupError
from orchestrate.local.model import engines
from orchestrate.local.plan import states
from orchestrate.settings.keys import masked
from orchestrate.spec import method_word
from orchestrate.spec.methods import OPTIMIZERS
from orchestrate.types import Outcome, Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from orchestrate.spec import JobSpec


class Option(NamedTuple):
    kind: type | tuple[type, ...]
    least: float | None = None
    """The smallest value."""
    above: float | None = None
    """What the value must exceed."""
    words: tuple[str, ...] = ()
    rft_only: bool = False
    in_hyper: bool = True
    """Whether the engine has it among the settings of training."""


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
    "neftune_alpha": Option(NUMBER, above=0),
    "router_aux_loss": Option(NUMBER, least=0),
    "nan_policy": Option(str, words=("stop", "skip")),
    "spike_factor": Option(NUMBER, above=1),
    "recovery_seconds": Option(NUMBER, least=0),
    "max_new_tokens": Option(int, least=1, rft_only=True),
    "grader_seconds": Option(NUMBER, above=0, rft_only=True),
}


def answered(
    spec: JobSpec, body: Mapping[str, Any], gpu_elsewhere: bool, capability: float | None = None
) -> tuple[list[Setting], dict[str, Any]]:
    """(a row for each option, the body with them). `gpu_elsewhere`: the job is planned for a GPU that this
    machine need not have, of this `capability` where it is known."""
    rows: dict[str, Setting] = {}
    body = {**body, "hyper": dict(body.get("hyper", {}))}
    for key, value in spec.provider_options.get("local", {}).items():
        name = f"provider_options.{key}"
        if reason := problem(key, value, spec.method.type) or _said_otherwise(key, value, spec):
            told = masked(value, name)
            rows[key] = Setting(name=name, asked=told, outcome=Outcome.REFUSED, rule=reason)
            continue
        inside = OPTIONS[key].in_hyper
        wire = f"hyper.{key}" if inside else key
        rows[key] = Setting(name=name, asked=value, outcome=Outcome.KEPT, sent=value, wire=wire)
        (body["hyper"] if inside else body)[key] = value
    device = engines.expected_device(body.get("device") or ("cuda" if gpu_elsewhere else None))
    full = spec.adapter.type == "full"
    choices: dict[str, Callable[[Any], engines.Choice]] = {
        "engine": lambda asked: engines.choose(asked, device),
        "precision": lambda asked: engines.precision(asked, device, full=full, capability=capability),
    }
    for key, choose in choices.items():
        asked = rows.pop(key, None)
        if asked is None or asked.outcome is not Outcome.REFUSED:
            asked = _chosen(key, body.get(key), choose)
        rows[key] = asked
    # Settled here: a run that goes on where the CPU is another one must not change it.
    body["precision"] = rows["precision"].sent
    return list(rows.values()), body


def _said_otherwise(key: str, value: Any, spec: JobSpec) -> str | None:
    if key == "micro_batch" and spec.gradient_accumulation is not None:
        return f"the spec says  gradient_accumulation: {spec.gradient_accumulation}; leave one of them out"
    if key == "processes" and value > 1 and (method_word(spec.method) in ("kto", "rft")):
        return "the answers of a batch are compared with one another there: one process"
    if key != "optimizer":
        return None
    if spec.optimizer is not None and spec.optimizer.type != value:
        return f"the spec says  optimizer: {spec.optimizer.type}; leave one of them out"
    return missing_optimizer(value)


def missing_optimizer(name: str) -> str | None:
    """Why this machine has no such optimiser, with the line that installs it."""
    try:
        states.require(name)
    except states.OptimizerMissing as error:
        return f"{error.message}: {error.fix}"
    return None


def of_machine(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that the configuration sets for all jobs. Raises `ConfigError` for a value that does not do."""
    found = {name: options[name] for name in ("threads", "device") if options.get(name) is not None}
    for name, value in found.items():
        if reason := problem(name, value):
            raise ConfigError(f"local.{name} {reason}", fix="correct it in orchestrate.toml")
    return found


def device_of(spec: JobSpec, options: Mapping[str, Any]) -> str:
    """On which the run is expected to train, by the spec, the configuration and this machine."""
    asked = spec.provider_options.get("local", {}).get("device") or options.get("device")
    return engines.expected_device(asked or ("cuda" if options.get("gpu_memory_gib") is not None else None))


def problem(key: str, value: Any, method: str = "sft") -> str | None:
    """Why the engine does not take this value."""
    option = OPTIONS.get(key)
    if key == "run_grader_code":
        return (
            "a spec cannot allow the code that it brings; leave it out and allow it yourself: "
            "orchestrate --allow-grader-code ..."
        )
    if option is None:
        return f"the local engine has no such option; it has {', '.join(sorted(OPTIONS))}"
    if not isinstance(value, option.kind) or (isinstance(value, bool) and option.kind is not bool):
        kinds = option.kind if isinstance(option.kind, tuple) else (option.kind,)
        return f"must be {'/'.join(k.__name__ for k in kinds)}, got {value!r}"
    if option.words and value not in option.words:
        return f"must be one of {', '.join(option.words)}, got {value!r}"
    if option.rft_only and method != "rft":
        return "reinforcement fine-tuning only: no answers are drawn otherwise"
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, got {value!r}"
    if option.least is not None and value < option.least:
        return f"must be at least {option.least:g}, got {value!r}"
    if option.above is not None and value <= option.above:
        return f"must be more than {option.above:g}, got {value!r}"
    if key == "router_aux_loss" and method == "rft":
        return "not of reinforcement fine-tuning: its loss is over drawn answers alone"
    if key == "spike_factor" and method == "rft":
        return (
            "the loss of reinforcement fine-tuning is about 0 at every step; there is no spike to see in it"
        )
    return None


def _chosen(name: str, asked: Any, choose: Callable[[Any], engines.Choice]) -> Setting:
    """What the machine will use, and why; refused where it does not have what was asked for. The engine is
    chosen again by the worker, which knows the number of tokens."""
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
