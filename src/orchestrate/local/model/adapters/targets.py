"""Which modules and parameters of a model an adapter is put on.

Text is what is trained on, so nothing outside the language model gets one. Of all linear layers those are
left out that choose among experts, and those that peft or a kernel does not read through their module.
"""

# torch, transformers and peft describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from orchestrate.errors import RunFailed
from orchestrate.local.job import Adapter
from orchestrate.local.model.adapters.names import ALL_LINEAR, ModuleNames, ends, matches, misnamed, narrowed
from orchestrate.local.model.loaded import decoder_of

ROUTERS = re.compile(r"(.*\.)?(gate|router|shared_expert_gate)(\.\w+)?")
"""Names of layers that choose and weigh experts: they stay as they are, so that no token moves to others."""
_NEEDED = ("targets", "target_parameters", "modules_to_save")
"""What cannot be done where the names fit nothing. Others leave the adapter as it would be without them."""


@dataclass(frozen=True)
class Targets:
    modules: tuple[str, ...]
    """Whole names."""
    parameters: tuple[str, ...]
    """Of experts, each in one tensor: whole names."""
    left_out: tuple[str, ...]
    """For the user: what was left out, and why."""


def targets_of(inner: Any, adapter: Adapter, config_of: Callable[[Sequence[str]], Any]) -> Targets:
    """`config_of` gives peft's configuration for a list of modules. Raises `RunFailed` for what the model
    does not have: targets of which none is there, and any parameter or module to save."""
    told: list[str] = []
    names = names_of(inner, told)
    asked = adapter.targets or ALL_LINEAR
    if asked != ALL_LINEAR:
        everywhere = sum(matches(asked, name) for name in names.modules)
        told = []
        if outside := everywhere - len(names.asked(asked)):
            told.append(f"{outside} modules outside the language model: text is trained on")
    for one in misnamed(names, adapter):
        if one.useless and one.field in _NEEDED:
            raise RunFailed(f"the adapter does not fit the model: {one.told}", fix=one.fix)
        told.append(one.told)
    chosen = narrowed(names.asked(asked), adapter)
    chosen = _without(
        told, chosen, _taken_for_experts(inner, config_of(chosen)), "peft would take them for experts"
    )
    parameters = [name for name in names.parameters if matches(adapter.target_parameters or (), name)]
    if names.experts and not parameters and asked == ALL_LINEAR:
        those = ", ".join(ends(names.experts))
        told.append(f"the experts ({those}): adapter.target_parameters names those that get one")
    if not chosen and not parameters:
        raise RunFailed(
            "the adapter does not fit the model: no target is left", fix="see adapter in the spec"
        )
    return Targets(tuple(chosen), tuple(sorted(parameters)), tuple(told))


def names_of(inner: Any, told: list[str] | None = None) -> ModuleNames:
    """Of a transformers model, which may be on the meta device. `told` gets what of its linear layers is not
    adapted by default, and why."""
    told = [] if told is None else told
    prefix, head = _prefix(inner), inner.get_output_embeddings()
    every = list(inner.named_modules())
    linear = [
        name
        for name, module in every
        if _is_linear(module) and name.startswith(prefix) and module is not head
    ]
    experts = expert_parameters(inner)
    routers = {name for name in linear if experts and ROUTERS.fullmatch(name)}
    linear = _without(told, linear, routers, "what chooses the experts stays as it is")
    linear = _without(told, linear, _mixers(inner, linear), "a state-space kernel reads them itself")
    return ModuleNames(
        modules=tuple(name for name, _ in every),
        linear=tuple(linear),
        language=prefix,
        head=next((name for name, module in every if module is head), None),
        parameters=tuple(
            name for name, p in inner.named_parameters() if name.startswith(prefix) and p.ndim in (2, 3)
        ),
        experts=tuple(experts),
    )


def _is_linear(module: Any) -> bool:
    """Also those whose weight is held by groups in few bits (GPTQ, AWQ), which are classes of their own."""
    grouped = all(hasattr(module, name) for name in ("qweight", "scales", "in_features", "out_features"))
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D" or grouped


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
        told.append(f"{', '.join(ends(sorted(dropped)))}: {reason}")
    return [name for name in names if name not in dropped]
