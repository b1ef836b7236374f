"""Translation of a spec's adapter settings for local training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import msgspec

from orchestrate.errors import OrchestrateError, SetupError
from orchestrate.local import weights
from orchestrate.local.job import AdapterSettings
from orchestrate.local.model import files
from orchestrate.local.model.adapters import (
    ALL_LINEAR,
    Misnamed,
    ModuleNames,
    ends,
    matches,
    misnamed,
    no_pattern,
)
from orchestrate.local.model.files import Quantised, expanded
from orchestrate.providers.settings import Rows
from orchestrate.spec import JobSpec
from orchestrate.spec.methods import LoRA, QLoRA
from orchestrate.text import count

# A run that continues from an adapter uses that adapter's settings.


PEFTS: Mapping[str, str] = {
    "r": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "dora": "use_dora",
    "rslora": "use_rslora",
    "target_parameters": "target_parameters",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "layers_to_transform": "layers_to_transform",
    "exclude_modules": "exclude_modules",
    "modules_to_save": "modules_to_save",
}
"""Maps Orchestrate's names for adapter settings to peft's names."""
OWN = "taken from the adapter that this run continues from"


def continue_from(rows: Rows, spec: JobSpec) -> None:
    if spec.continue_from is None:
        return
    config = config_of(spec.continue_from)
    if config is None:
        rows.refuse("continue_from", "must be an adapter folder on this machine (with adapter_config.json)")
    elif spec.adapter.type == "full":
        reason = "full fine-tuning cannot continue from an adapter. Set model to the merged model"
        rows.refuse("continue_from", f"{reason} (orchestrate export RUN DIR --to merged)")
    elif (kind := config.get("peft_type")) != "LORA":
        rows.refuse("continue_from", f"the engine can only continue from LoRA adapters, but this is {kind}")
    else:
        folder = str(Path(spec.continue_from).expanduser().resolve())
        rule = f"LoRA of rank {config.get('r')} on {config.get('base_model_name_or_path')}"
        rows.keep("continue_from", "continue_from", folder, rule=rule)


def config_of(folder: str) -> Mapping[str, Any] | None:
    """Read the adapter configuration in a folder, or return `None` if it has no adapter."""
    try:
        path = Path(folder).expanduser() / "adapter_config.json"
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError):
        return None


def settings(rows: Rows, lora: LoRA, config: Mapping[str, Any]) -> None:
    """Add the translation rows for the adapter settings of a run that continues from an existing adapter. If
    a requested value differs from the existing adapter's value, it is rejected, because peft would ignore
    it."""
    values = lora.model_dump(mode="json")
    for ours, theirs in PEFTS.items():
        row, given, own = f"adapter.{ours}", values[ours], config.get(theirs)
        if given is None or given is False:
            if own:
                rows.default(row, row, own, OWN, send=True)
        elif _plain(given) == _plain(own):
            rows.keep(row, row, given, rule=OWN)
        else:
            rows.refuse(row, f"the adapter that this run continues from has {_shown(own)}", instead=own)
    if lora.init_lora_weights is not None:
        rows.refuse("adapter.init_lora_weights", "already set by the adapter that this run continues from")
    _targets(rows, lora.targets, config.get("target_modules") or ())


def _targets(rows: Rows, given: str | Sequence[str] | None, own: str | Sequence[str]) -> None:
    row = "adapter.targets"
    shown = own if isinstance(own, str) else ", ".join(sorted(ends(own)))
    rule = f"{OWN}: {shown}" + ("" if isinstance(own, str) else f" ({count(len(own), 'module')})")
    if given is None:
        rows.default(row, None, shown, rule)
    elif isinstance(given, str):
        rows.map(row, None, shown, rule, exact=given == own)
    elif isinstance(own, str) or not _the_same(given, own):
        rows.refuse(row, f"the adapter that this run continues from has {shown}")
    else:
        rows.keep(row, None, rule=rule)
    rows.send(row, own if isinstance(own, str) else list(own))


def _the_same(given: Sequence[str], own: Sequence[str]) -> bool:
    return all(matches(given, name) for name in own) and all(
        any(matches([name], one) for one in own) for name in given
    )


def _plain(value: Any) -> Any:
    """Sort lists, because peft stores them as sets."""
    return sorted(cast("list[Any]", value)) if isinstance(value, list) else value or None


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, cast("list[Any]", value)))
    return "none" if value in (None, False, {}) else f"{value}"


# Checks that the modules named in the adapter settings exist in the model. This happens before a worker
# starts: the model is built from its configuration, without weights.


FIELDS = (
    "targets",
    "target_parameters",
    "exclude_modules",
    "layers_to_transform",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
)


def named(lora: LoRA) -> list[str]:
    """List the adapter settings that contain names of modules or parameters."""
    given = [field for field in FIELDS if getattr(lora, field) is not None]
    return [field for field in given if getattr(lora, field) != ALL_LINEAR]


def unmatched_names(spec: JobSpec, model: str) -> tuple[list[Misnamed], str | None]:
    """Find names in the adapter settings that match nothing in the model. Returns `(names, None)`, or `([],
    reason)` if the names could not be checked. `model` is a folder or a Hub id."""
    lora = spec.adapter
    adapter = AdapterSettings.from_dict(lora.model_dump(mode="json"))
    if not isinstance(lora, LoRA) or not named(lora) or no_pattern(adapter):
        return [], None
    config = files.config_of(model)
    if config is None:
        return [], "the model's configuration is not on this machine"
    names = _tensor_names(msgspec.json.encode(config, order="sorted"))
    if isinstance(names, str):
        return [], names
    return misnamed(names, adapter), None


@lru_cache(maxsize=32)
def _tensor_names(config: bytes) -> ModuleNames | str:
    """Return the names of the tensors, or why they are unknown."""
    given: Mapping[str, Any] = msgspec.json.decode(config)
    try:
        return ModuleNames.from_dict(weights.ask("names", module="module_names", config=given))
    except OrchestrateError as error:
        return error.message


_STRUCTURE = (
    "init_lora_weights",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "exclude_modules",
    "target_parameters",
    "modules_to_save",
)
"""peft's names for the settings that define an adapter's structure."""
_EXPANDED = {
    "qlora": "quantized to 4 bits (NF4)",
    "lora": "expanded to 16 bits",
    "full": "expanded to 32 bits",
}
"""Describes how low-precision weights are converted on loading, as {adapter type: description}."""


def adapter(rows: Rows, spec: JobSpec, model: str) -> None:
    """Add the rows for the settings of a new adapter. `model` is a folder or a Hub id."""
    config = {} if "model" in rows.refused else files.config_of(model) or {}
    held = Quantised.of(config)
    _kind(rows, spec, held, expanded(config))
    continue_from(rows, spec)
    if not isinstance(spec.adapter, LoRA):
        return
    lora = spec.adapter
    earlier = spec.continue_from and config_of(spec.continue_from)
    if earlier and "continue_from" not in rows.refused:
        settings(rows, lora, earlier)
    else:
        _sizes(rows, lora)
        _structure(rows, spec, lora, config, held)
        if "model" not in rows.refused:
            _names(rows, spec, model)
    if lora.loraplus_lr_ratio is not None:
        rule = "learning rate of the B matrices divided by that of the A matrices"
        rows.keep("adapter.loraplus_lr_ratio", "adapter.loraplus_lr_ratio", rule=rule)


def _sizes(rows: Rows, lora: LoRA) -> None:
    r = lora.r or 16
    if lora.r is None:
        rows.default("adapter.r", "adapter.r", r, send=True)
    else:
        rows.keep("adapter.r", "adapter.r")
    if lora.alpha is None:
        rows.default("adapter.alpha", "adapter.alpha", float(2 * r), "twice the rank", send=True)
    else:
        rows.keep("adapter.alpha", "adapter.alpha")
    rows.offer("adapter.dropout", "adapter.dropout", 0.0)
    rows.offer("adapter.targets", "adapter.targets", "all-linear")
    for flag in ("dora", "rslora"):
        if rows.given(f"adapter.{flag}") is not None:
            rows.keep(f"adapter.{flag}", f"adapter.{flag}")


def _kind(rows: Rows, spec: JobSpec, held: Quantised | None, packed: str | None) -> None:
    kind = spec.adapter.type
    by_default = rows.given("adapter.type") is None and "adapter" not in spec.model_fields_set
    if held is not None and kind == "full" and not by_default:
        reason = (
            f"the model's weights are stored in {held.description} and cannot be trained. Train an "
            "adapter instead"
        )
        rows.refuse("adapter.type", reason, instead="qlora")
        return
    sent = "qlora" if by_default else kind
    rule = None if packed is None else f"weights stored in {packed} are {_EXPANDED[sent]}"
    if held is not None:
        try:
            held.require()
        except SetupError as error:
            rows.refuse("model", f"{error.message}: {error.fix}")
        rule = f"the base model keeps the precision of its files, {held.description}"
        put = rows.default if by_default else rows.map
        put("adapter.type", "adapter.type", sent, rule)
        rows.send("adapter.type", sent)
    elif by_default:
        rule = rule or "the base model is quantized to 4 bits (NF4)"
        rows.default("adapter.type", "adapter.type", sent, rule, send=True)
    else:
        rows.keep("adapter.type", "adapter.type", kind, rule=rule)


def _structure(
    rows: Rows, spec: JobSpec, lora: LoRA, config: Mapping[str, Any], held: Quantised | None
) -> None:
    given = lora.model_dump(mode="json")
    for name in _STRUCTURE:
        value: Any = getattr(lora, name)
        if value is None:
            continue
        row = f"adapter.{name}"
        if name == "init_lora_weights" and value == "eva" and spec.method.type == "rft":
            rows.refuse(
                row, "EVA computes its initialization from training rows, but RFT trains on sampled answers"
            )
        elif reason := _unfit(name, lora, config, held):
            rows.refuse(row, reason)
        else:
            rows.keep(row, row, given[name], rule=_RULES.get(name))


def _names(rows: Rows, spec: JobSpec, model: str) -> None:
    """Check settings that name modules. Rejects those that match nothing and notes partial matches."""
    given = spec.adapter.model_dump(mode="json")
    adapter = AdapterSettings.from_dict(given)
    if wrong := no_pattern(adapter):
        field, reason = wrong
        rows.refuse(f"adapter.{field}", reason)
        return
    found, unseen = unmatched_names(spec, model)
    for one in found:
        row = f"adapter.{one.field}"
        if row in rows.refused:
            continue
        if one.useless:
            rows.refuse(row, f"{one.message}; {one.fix}")
        else:
            rows.map(row, row, given[one.field], one.message, exact=False)
    if unseen is not None and isinstance(spec.adapter, LoRA):
        for field in named(spec.adapter):
            rows.annotate(f"adapter.{field}", f"names not checked: {unseen}")


_RULES = {
    "target_parameters": "expert weights, adapted one expert at a time",
    "modules_to_save": "fully trained in fp32 and saved with the adapter",
    "exclude_modules": "excluded from the targets",
}


def _unfit(name: str, lora: LoRA, config: Mapping[str, Any], held: Quantised | None) -> str | None:
    """Return why the engine cannot do this with this model."""
    if name == "init_lora_weights":
        return _unfit_start(lora, held)
    if name == "target_parameters" and (lora.dropout or lora.dora):
        return (
            f"peft does not support {'dropout' if lora.dropout else 'DoRA'} with target_parameters. "
            "Remove one of the two"
        )
    text: Mapping[str, Any] = config.get("text_config") or config
    layers = text.get("num_hidden_layers")
    if name == "layers_to_transform" and isinstance(layers, int):
        wrong = [n for n in lora.layers_to_transform or () if n >= layers]
        if wrong:
            return f"the model has layers 0 to {layers - 1}, not {wrong[0]}"
    if name == "layers_to_transform" and isinstance(lora.targets, str) and lora.targets != "all-linear":
        return "cannot be combined with a regular expression in targets. Select the layers there instead"
    return None


def _unfit_start(lora: LoRA, held: Quantised | None) -> str | None:
    start, four_bit = lora.init_lora_weights, isinstance(lora, QLoRA)
    if lora.changes_base and (four_bit or held):
        return f"{start} changes the base weights, which must not be quantized. Use adapter: lora"
    if start == "loftq" and held is not None:
        return (
            "LoftQ compensates for 4-bit quantization, but the model's files are stored in "
            f"{held.description}"
        )
    if start == "loftq" and not four_bit:
        return (
            "LoftQ compensates for 4-bit quantization, but the base model is unquantized. Use adapter: qlora"
        )
    rank = lora.r or 16
    if start == "orthogonal" and (four_bit or held):
        return (
            "peft would compute this initialization from quantized weights, which are not precise enough. "
            "Use adapter: lora"
        )
    if start == "orthogonal" and (rank % 2 or any(n % 2 for n in (lora.rank_pattern or {}).values())):
        return "orthogonal initialization needs even ranks"
    return None
