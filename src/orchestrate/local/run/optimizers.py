"""Optimisers, and their state as plain tensors under the parameters' names."""

# torch and bitsandbytes describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

NUMBER = "#"
"""Ends the key of a state that is a plain number and not a tensor (the step count of bitsandbytes)."""


def make_optimizer(parameters: list[torch.nn.Parameter], kind: str, weight_decay: float) -> Any:
    """`adamw` in 32 bits, or `paged_adamw_8bit`; the learning rate is set before each step."""
    if kind == "adamw":
        return torch.optim.AdamW(parameters, weight_decay=weight_decay, fused=True)
    from bitsandbytes.optim.adamw import PagedAdamW8bit

    return PagedAdamW8bit(parameters, weight_decay=weight_decay)


def state_tensors(optimizer: Any, parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """All that the optimiser remembers, ready for safetensors."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                # bitsandbytes shares its quantisation maps between parameters; a file cannot.
                found[f"optimizer.{name}.{key}"] = value.clone() if key.startswith("qmap") else value
            else:
                found[f"optimizer.{name}.{key}{NUMBER}"] = torch.tensor(value)
    return found


def restore_state(
    optimizer: Any, parameters: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Puts back what `state_tensors` gave; rate and decay belong to the job."""
    for name, parameter in parameters.items():
        start = f"optimizer.{name}."
        state: dict[str, Any] = {}
        for key, value in tensors.items():
            if key.startswith(start):
                short = key.removeprefix(start)
                # The step count of torch's AdamW stays on the CPU, unless fused.
                number = short.endswith(NUMBER)
                state[short.removesuffix(NUMBER)] = value.item() if number else value.to(parameter.device)
        if state:
            optimizer.state[parameter] = state
