"""Which modules and parameters of a model an adapter is put on.

Text is what is trained on, so nothing outside the language model gets one. Of all linear layers those are
left out that choose among experts, and those that peft or a kernel does not read through their module.
"""

# torch, transformers and peft describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from orchestrate.errors import RunFailed
from orchestrate.local.job import Adapter
from orchestrate.local.model.loaded import decoder_of

V = TypeVar("V")
ALL_LINEAR = "all-linear"
ROUTERS = re.compile(r"(.*\.)?(gate|router|shared_expert_gate)(\.\w+)?")
"""Names of layers that choose and weigh experts: they stay as they are, so that no token moves to others."""


@dataclass(frozen=True)
class Targets:
    modules: tuple[str, ...]
    """Whole names."""
    parameters: tuple[str, ...]
    """Of experts, each in one tensor: whole names."""
    left_out: tuple[str, ...]
    """For the user: what was left out, and why."""


def targets_of(inner: Any, adapter: Adapter, config_of: Callable[[Sequence[str]], Any]) -> Targets:
    """`config_of` gives peft's configuration for a list of modules. Raises `RunFailed` when a name fits
    nothing."""
    prefix, head = _prefix(inner), inner.get_output_embeddings()
    every = list(inner.named_modules())
    inside = [
        name
        for name, module in every
        if (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")
        and name.startswith(prefix)
        and module is not head
    ]
    experts = expert_parameters(inner)
    asked = adapter.targets or ALL_LINEAR
    told: list[str] = []
    if asked == ALL_LINEAR:
        routers = {name for name in inside if experts and ROUTERS.fullmatch(name)}
        chosen = _without(told, inside, routers, "what chooses the experts stays as it is")
        chosen = _without(told, chosen, _mixers(inner, chosen), "a state-space kernel reads them itself")
    else:
        named = [(name, module) for name, module in every if matches(asked, name)]
        chosen = [name for name, module in named if name.startswith(prefix) or module is head]
        if len(chosen) < len(named):
            told.append(f"{len(named) - len(chosen)} modules outside the language model: text is trained on")
        told += [f"{one}: the model has no such layer" for one in _unmatched(asked, [n for n, _ in named])]
    chosen = _narrowed(told, chosen, adapter)
    chosen = _without(
        told, chosen, _taken_for_experts(inner, config_of(chosen)), "peft would take them for experts"
    )
    parameters = _parameters(inner, adapter.target_parameters or (), prefix)
    if experts and not parameters and asked == ALL_LINEAR:
        told.append(
            f"the experts ({', '.join(_ends(experts))}): adapter.target_parameters names those that get one"
        )
    if not chosen and not parameters:
        raise RunFailed(
            f"the adapter does not fit the model: it has no {_words(asked)} in its language model",
            fix=_fix(inside, experts),
        )
    return Targets(tuple(chosen), tuple(parameters), tuple(told))


def _narrowed(told: list[str], names: list[str], adapter: Adapter) -> list[str]:
    """Without the modules and layers that are not to be adapted."""
    excluded, layers = adapter.exclude_modules, adapter.layers_to_transform
    if excluded is not None:
        found = [name for name in names if matches(excluded, name)]
        told += [f"exclude_modules {one}: no target has this name" for one in _unmatched(excluded, found)]
        if isinstance(excluded, str) and not found:
            told.append(f"exclude_modules {excluded}: no target fits it")
        names = [name for name in names if name not in set(found)]
    if layers is not None:
        names = [name for name in names if layer_of(name) in layers]
    for field, patterns in (("rank_pattern", adapter.rank_pattern), ("alpha_pattern", adapter.alpha_pattern)):
        fitting = fitting_keys(patterns, names)
        told += [f"{field} {key}: no target fits it" for key in patterns or {} if key not in fitting]
    return names


def layer_of(name: str) -> int | None:
    """The number of the layer in a module's whole name."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found.group(1)) if found else None


def fitting_keys(patterns: Mapping[str, V] | None, names: Sequence[str]) -> dict[str, V]:
    """Those of peft's `rank_pattern` or `alpha_pattern` that some module fits: a key is a regular expression
    of the end of its name."""
    expressions = {key: re.compile(rf"(.*\.)?({key})$") for key in patterns or {}}
    return {
        key: value
        for key, value in (patterns or {}).items()
        if any(expressions[key].match(name) for name in names)
    }


def require_saved(inner: Any, adapter: Adapter) -> None:
    """Raises `RunFailed` for one of `modules_to_save` that the model does not have; peft passes over it."""
    names = [name for name, _ in inner.named_modules()]
    for wanted in adapter.modules_to_save or ():
        if not any(name.endswith(wanted) for name in names):
            raise RunFailed(
                f"the adapter does not fit the model: it has no module {wanted} to save",
                fix="adapter.modules_to_save: such as embed_tokens, lm_head, or a layer's whole name",
            )


def matches(asked: str | Sequence[str], name: str) -> bool:
    """As peft matches: a pattern for the whole name, or names that it is or ends in."""
    if isinstance(asked, str):
        return re.fullmatch(asked, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in asked)


def expert_parameters(inner: Any) -> list[str]:
    """Whole names of the weights of experts that are one tensor each."""
    return [
        name for name, p in inner.named_parameters() if p.ndim == 3 and re.search(r"(^|\.)\w*experts\.", name)
    ]


def _prefix(inner: Any) -> str:
    """Of the names of the language model's modules; empty when it is all there is."""
    if (
        getattr(inner.config, "vision_config", None) is None
        and getattr(inner.config, "audio_config", None) is None
    ):
        return ""
    decoder = decoder_of(inner)
    return next((f"{name}." for name, module in inner.named_modules() if module is decoder and name), "")


def _mixers(inner: Any, names: Iterable[str]) -> set[str]:
    """Output layers of Mamba's mixers, whose weights fused kernels take as an argument."""
    found: set[str] = set()
    for name in names:
        parent, _, leaf = name.rpartition(".")
        mixer = inner.get_submodule(parent)
        if leaf == "out_proj" and hasattr(mixer, "A_log") and hasattr(mixer, "D"):
            found.add(name)
    return found


def _taken_for_experts(inner: Any, config: Any) -> set[str]:
    """Modules whose names, by peft's table for checkpoints of older libraries, mean the experts: of shared
    experts and dense layers in a mixture of experts."""
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:
        return set()
    asked = set(config.target_modules)
    convert_peft_config_for_transformers(config, model=inner, conversions=None)
    return asked - set(config.target_modules)


def _without(told: list[str], names: list[str], dropped: set[str], reason: str) -> list[str]:
    if dropped:
        told.append(f"{', '.join(_ends(sorted(dropped)))}: {reason}")
    return [name for name in names if name not in dropped]


def _unmatched(asked: str | Sequence[str], names: Sequence[str]) -> list[str]:
    if isinstance(asked, str):
        return []
    return [one for one in asked if not any(matches([one], name) for name in names)]


def _parameters(inner: Any, asked: Sequence[str], prefix: str) -> list[str]:
    names = [name for name, p in inner.named_parameters() if name.startswith(prefix) and p.ndim in (2, 3)]
    chosen: set[str] = set()
    for target in asked:
        found = {name for name in names if matches([target], name)}
        if not found:
            some = ", ".join(_ends(expert_parameters(inner)))
            raise RunFailed(
                f"the adapter does not fit the model: it has no parameter {target}",
                fix=f"adapter.target_parameters: some of {some}" if some else "leave target_parameters out",
            )
        chosen |= found
    return sorted(chosen)


def _ends(names: Sequence[str]) -> list[str]:
    """The names without their layer, each once."""
    return list(dict.fromkeys(re.split(r"\.\d+\.", name)[-1] for name in names))


def _words(asked: str | Sequence[str]) -> str:
    return asked if isinstance(asked, str) else ", ".join(asked)


def _fix(inside: Sequence[str], experts: Sequence[str]) -> str:
    ends = sorted({name.rpartition(".")[2] for name in inside})
    more = f"; for experts adapter.target_parameters: {', '.join(_ends(experts))}" if experts else ""
    return f"adapter.targets: {ALL_LINEAR}, or some of {', '.join(ends)}{more}"
