"""From hidden states to logits. Imports torch."""

# torch describes its types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 25
"""Logits held at once: 128 MB in 32 bits."""


@dataclass(frozen=True)
class Head:
    """The output layer, and what the architecture does to its logits afterwards."""

    layer: Any
    multiplier: float = 1.0
    softcap: float | None = None
    block_elements: int = BLOCK_ELEMENTS

    @classmethod
    def of(cls, model: Any) -> Head:
        """Reads Gemma's soft cap, Granite's divisor and Cohere's factor from the model's configuration."""
        config = model.config.get_text_config()
        multiplier = float(getattr(config, "logit_scale", None) or 1.0)
        multiplier /= float(getattr(config, "logits_scaling", None) or 1.0)
        return cls(
            model.get_output_embeddings(), multiplier, getattr(config, "final_logit_softcapping", None)
        )

    @property
    def frozen(self) -> bool:
        bias = getattr(self.layer, "bias", None)
        return type(self.layer) is torch.nn.Linear and bias is None and not self.layer.weight.requires_grad

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> [n, vocabulary], 32 bits."""
        logits = self.layer(hidden).float()
        if self.multiplier != 1.0:
            logits = logits * self.multiplier
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    @property
    def block(self) -> int:
        return max(16, self.block_elements // int(self.layer.weight.shape[0]))
