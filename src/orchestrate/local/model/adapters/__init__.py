"""Adapters for a frozen model: choice of modules, and initialization."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from orchestrate.core.tensors import tensors
from orchestrate.local.job import AdapterSettings
from orchestrate.types import Record

# Find adapter settings that match no module or parameter of the model. Torch-free, so that plans and checks
# can do this before training. The worker checks again.


V = TypeVar("V")
ALL_LINEAR = "all-linear"
_MESSAGES = {
    "targets": "the model has no layer {}",
    "target_parameters": "the model has no parameter {}",
    "modules_to_save": "the model has no module {} to save",
    "exclude_modules": "no target matches {}",
    "rank_pattern": "no target matches {}",
    "alpha_pattern": "no target matches {}",
}


class ModuleNames(Record, frozen=True):
    """Fully qualified module names of a model as built by transformers."""

    modules: tuple[str, ...]
    linear: tuple[str, ...]
    """Linear layers of the language model, which get an adapter by default."""
    language: str = ""
    """The common prefix of the language model's module names. Empty if the language model is the entire
    model."""
    head: str | None = None
    """Name of the output layer."""
    parameters: tuple[str, ...] = ()
    """Names of the language model's parameters with two or three dimensions."""
    experts: tuple[str, ...] = ()
    """Names of the fused expert parameters. Each holds the weights of all experts in a layer as one
    tensor."""

    def asked(self, targets: str | Sequence[str]) -> list[str]:
        """Return the names of the language model's modules that an adapter's `targets` select."""
        if targets == ALL_LINEAR:
            return list(self.linear)
        inside = [n for n in self.modules if n.startswith(self.language) or n == self.head]
        return [name for name in inside if name and matches(targets, name)]


@dataclass(frozen=True)
class Misnamed:
    """Names in an adapter setting that match nothing in the model."""

    field: str
    """The setting's name, as in the spec under `adapter`."""
    useless: bool
    """True if the setting would have no effect or cannot be applied."""
    message: str
    fix: str


def misnamed(names: ModuleNames, adapter: AdapterSettings) -> list[Misnamed]:
    """Find adapter settings with names that match nothing in the model. Returns one entry per setting. All
    regular expressions must be valid."""
    asked = adapter.targets or ALL_LINEAR
    chosen = names.asked(asked)
    found = [
        _unfit("targets", asked, chosen, names.linear),
        _parameters(names, adapter.target_parameters or ()),
        _saved(names, adapter.modules_to_save or ()),
    ]
    if chosen:
        found.append(_unfit("exclude_modules", adapter.exclude_modules, chosen, chosen))
        left = narrowed(chosen, adapter)
        if not left and not adapter.target_parameters:
            field = "layers_to_transform" if adapter.layers_to_transform else "exclude_modules"
            found.append(
                Misnamed(
                    field, True, f"adapter.{field} excludes every target", "exclude fewer modules or layers"
                )
            )
        for field, patterns in _patterns(adapter):
            fitting = fitting_keys(patterns, left)
            unfit = [key for key in patterns if key not in fitting]
            found.append(_misnamed(field, unfit, len(unfit) == len(patterns), left))
    return [one for one in found if one is not None]


def narrowed(names: Sequence[str], adapter: AdapterSettings) -> list[str]:
    """Remove the names of modules and layers that the adapter excludes."""
    excluded, layers = adapter.exclude_modules, adapter.layers_to_transform
    if excluded is not None:
        names = [name for name in names if not matches(excluded, name)]
    if layers is not None:
        names = [name for name in names if layer_of(name) in layers]
    return list(names)


def matches(asked: str | Sequence[str], name: str) -> bool:
    """Return whether a module name matches `asked` according to peft's rules. A string is a regular
    expression that must match the full name. A list contains full names or suffixes."""
    if isinstance(asked, str):
        return re.fullmatch(asked, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in asked)


def layer_of(name: str) -> int | None:
    """Return the layer number in a module's full name."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found.group(1)) if found else None


def fitting_keys(patterns: Mapping[str, V] | None, names: Sequence[str]) -> dict[str, V]:
    """Return the entries of peft's `rank_pattern` or `alpha_pattern` that match at least one module. Keys are
    regular expressions for the end of a module's name."""
    expressions = {key: re.compile(rf"(.*\.)?({key})$") for key in patterns or {}}
    return {
        key: value
        for key, value in (patterns or {}).items()
        if any(expressions[key].match(name) for name in names)
    }


def no_pattern(adapter: AdapterSettings) -> tuple[str, str] | None:
    """Return (setting, reason) for the first setting with an invalid regular expression, or `None` if all are
    valid."""
    texts = [("targets", adapter.targets), ("exclude_modules", adapter.exclude_modules)]
    texts += [(field, key) for field, patterns in _patterns(adapter) for key in patterns]
    for field, text in texts:
        try:
            re.compile(text if isinstance(text, str) else "")
        except re.error as error:
            return field, f"{text!r} is not a valid regular expression: {error}"
    return None


def ends(names: Sequence[str]) -> list[str]:
    """Strip the layer prefixes from the names and remove duplicates."""
    return list(dict.fromkeys(re.split(r"\.\d+\.", name)[-1] for name in names))


def _patterns(adapter: AdapterSettings) -> list[tuple[str, Mapping[str, float]]]:
    both = (("rank_pattern", adapter.rank_pattern), ("alpha_pattern", adapter.alpha_pattern))
    return [(field, patterns) for field, patterns in both if patterns]


def _unfit(
    field: str, asked: str | Sequence[str] | None, there: Sequence[str], known: Sequence[str]
) -> Misnamed | None:
    """Find names that match none of the modules in `there`."""
    if asked is None or asked == ALL_LINEAR:
        return None
    if isinstance(asked, str):
        return None if any(matches(asked, name) for name in there) else _misnamed(field, [asked], True, known)
    unfit = [one for one in asked if not any(matches([one], name) for name in there)]
    return _misnamed(field, unfit, len(unfit) == len(asked), known)


def _parameters(names: ModuleNames, asked: Sequence[str]) -> Misnamed | None:
    unfit = [target for target in asked if not any(matches([target], name) for name in names.parameters)]
    found = _misnamed("target_parameters", unfit, True, names.experts)
    if found is None or names.experts:
        return found
    message, fix = (
        f"{found.message}: the model has no experts",
        "remove this setting. To adapt linear layers, use adapter.targets",
    )
    return replace(found, message=message, fix=fix)


def _saved(names: ModuleNames, asked: Sequence[str]) -> Misnamed | None:
    unfit = [wanted for wanted in asked if not any(name.endswith(wanted) for name in names.modules)]
    return _misnamed("modules_to_save", unfit, True, names.modules)


def _misnamed(field: str, unfit: Sequence[str], useless: bool, known: Sequence[str]) -> Misnamed | None:
    """Describe names that match nothing. `known` are the full names from which suggestions are made."""
    if not unfit:
        return None
    shown = ends(known) if field == "target_parameters" else _leaves(known)
    close = difflib.get_close_matches(unfit[0].rpartition(".")[2], shown, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    choice = f"{ALL_LINEAR}, or some of" if field == "targets" else "some of"
    message = f"adapter.{field}: {_MESSAGES[field].format(', '.join(unfit))}"
    return Misnamed(field, useless, message, f"{guess}{choice} {', '.join(shown)}")


def _leaves(names: Sequence[str]) -> list[str]:
    leaves = {name.rpartition(".")[2] for name in names}
    return sorted(leaf for leaf in leaves if leaf and not leaf.isdigit())


# Find out whether an adapter changes its base model.


_OWN = frozenset(
    {
        "peft_type",
        "task_type",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "peft_version",
        "r",
        "target_modules",
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "fan_in_fan_out",
        "use_rslora",
        "use_dora",
        "lora_bias",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "eva_config",
        "loftq_config",
        "corda_config",
        "megatron_core",
        "qalora_group_size",
    }
)
"""LoRA settings that `is_removable` ignores, because they affect only the LoRA layers or have no effect on
their own."""
_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Initializations that leave the base model unchanged. With any other (PiSSA, OLoRA, LoftQ and more), peft
subtracts the initial adapter from the base model each time it loads the adapter."""


def is_removable(folder: Path) -> bool:
    """Return whether removing the adapter restores the base model exactly. This is the case if the adapter
    consists only of its own LoRA layers. Returns False for unknown settings and unreadable files."""
    if (found := _read(folder)) is None:
        return False
    config, names = found
    others = {name: value for name, value in config.items() if name not in _OWN}
    start, bias = others.pop("init_lora_weights", True), others.pop("bias", "none")
    if config.get("peft_type") != "LORA" or start not in _STARTS or bias != "none" or any(others.values()):
        return False
    # Any other tensors, such as embeddings and biases, replace those of the base model.
    return all("lora_" in name for name in names)


def changes_base(folder: Path) -> bool:
    """Return whether loading the adapter changes the base model itself, so that disabling the adapter does
    not restore it. Returns False for unreadable files, because loading the adapter then raises the error."""
    if (found := _read(folder)) is None:
        return False
    config, names = found
    if config.get("peft_type") != "LORA":
        return False
    start, bias = config.get("init_lora_weights", True), config.get("bias", "none")
    if start not in _STARTS or bias != "none" or config.get("layer_replication"):
        return True
    saved = [*(config.get("modules_to_save") or ())]
    if saved and config.get("ensure_weight_tying"):
        saved += ["embed_tokens", "lm_head"]  # the one is saved as the other, too
    beside = ("lora_", "trainable_tokens", *(f"{name}." for name in saved))
    return not all(any(part in name for part in beside) for name in names)


def _read(folder: Path) -> tuple[dict[str, Any], list[str]] | None:
    """Read the settings and the names of the weights."""
    try:
        config = msgspec.json.decode((folder / "adapter_config.json").read_bytes(), type=dict[str, Any])
        return config, [*tensors(folder / "adapter_model.safetensors")]
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
