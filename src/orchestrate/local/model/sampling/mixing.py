"""Each row of a batch with its own adapter, at little more than the base's cost.

PEFT mixes adapters too, by hooks that it puts on every module for each forward pass; on short steps that
took more time than the model. Here its layers are told once to leave the adapters away, and one hook on
each adds what the rows' own adapters add. Imports torch."""

# torch and peft describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn.functional import linear

PLAIN = ("Linear", "Linear4bit", "Linear8bitLt")
"""PEFT's layers whose adapter is a product of two matrices that is added to what the base says."""

Matrices = tuple[Tensor, Tensor, float]
"""A, B, and the scale of their product."""


class Mixing:
    """Of one model with adapters. Its layers stay without adapters of their own until `end`."""

    def __init__(self, model: Any) -> None:
        self.adapters = frozenset(model.peft_config)
        self._layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self._groups: list[tuple[str, Tensor]] = []
        self._hooks: list[Any] = []
        for layer in self._layers:
            layer._disable_adapters = True  # as `enable_adapters(False)`, without its pass over gradients
            self._hooks.append(layer.register_forward_hook(_Adding(self, _matrices(layer))))

    def end(self) -> None:
        """Gives the layers back as PEFT knows them."""
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers:
            layer._disable_adapters = False

    def rows(self, names: Sequence[str], device: torch.device) -> None:
        """The adapters of the rows of the next forward pass; a name that is none of them is the base's."""
        places: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            if name in self.adapters:
                places.setdefault(name, []).append(place)
        self._groups = [(name, torch.tensor(found, device=device)) for name, found in places.items()]

    def add(self, matrices: dict[str, Matrices], given: Tensor, said: Tensor) -> Tensor:
        for name, index in self._groups:
            found = matrices.get(name)
            if found is None:
                continue
            a, b, scale = found
            # Added up as PEFT does, before it is rounded: an evaluation's answers are the server's.
            every = len(index) == len(said)
            more = linear(linear((given if every else given[index]).to(a.dtype), a), b) * scale
            if every:
                said = (said + more).to(said.dtype)
            else:
                said.index_copy_(0, index, (said[index] + more).to(said.dtype))
        return said


class _Adding:
    """The hook of one layer."""

    def __init__(self, mixing: Mixing, matrices: dict[str, Matrices]) -> None:
        self._mixing, self._matrices = mixing, matrices

    def __call__(self, layer: Any, given: tuple[Any, ...], said: Tensor) -> Tensor:
        del layer
        return self._mixing.add(self._matrices, given[0], said)


def able(model: Any) -> bool:
    """Whether all of a model's adapters are of the kind that is added here."""
    if not hasattr(model, "peft_config"):
        return False
    return all(_is_plain(layer) for layer in model.modules() if isinstance(layer, LoraLayer))


def _is_plain(layer: Any) -> bool:
    if type(layer).__name__ not in PLAIN or layer.merged or getattr(layer, "lora_variant", None):
        return False
    return all(b.bias is None for b in layer.lora_B.values())


def _matrices(layer: Any) -> dict[str, Matrices]:
    return {
        name: (layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name]))
        for name in layer.lora_A
    }
