"""A model as training holds it. Imports torch."""

# torch describes its types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from orchestrate.local.model.engines import PLAIN, Choice
from orchestrate.local.model.head import Head

T = TypeVar("T")
BF16 = Choice("bf16", "asked for by name")


@dataclass
class TrainedOnly:
    """The last layer's MLP, for the trained places alone: nobody looks at the others after it."""

    places: torch.Tensor | None = None


def decoder_of(inner: Any) -> Any:
    """The layers of the language model, between the embeddings and the output layer, of a transformers model
    with or without other parts (vision, audio)."""
    found = inner.get_decoder()
    while found is inner or found.get_output_embeddings() is not None:
        deeper = getattr(found, "model", None)
        if deeper is None:
            return found
        found = deeper
    return found


@dataclass
class Loaded:
    """`model` is what is trained (a peft model unless all weights are), `inner` the transformers model inside
    it."""

    model: Any
    inner: Any
    head: Head
    device: torch.device
    choice: Choice = PLAIN
    precision: Choice = BF16
    loss_scale: float = 1.0
    """By which the loss is multiplied before its gradient is taken, for products in fp16."""
    line_limit: int = 0
    """Tokens up to which rows may lie in one line; 0 when the model does not bear it."""
    shares: bool = False
    """What rows of a line have in common may be computed once: no dropout or noise would differ."""
    trained_only: TrainedOnly | None = None
    packs: bool = False
    """Whether rows that lie one behind the other, with positions that begin at 0 in each, stay apart."""
    turned_on: list[str] = field(default_factory=list[str])
    """Shortcuts that are in use, for the user."""
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    """Shortcuts that the model does not bear, each with the reason, for the user."""
    without_adapter: tuple[str, ...] = ()
    """Modules and parameters that got no adapter, each with the reason, for the user."""
    taken_out: Path | None = None
    """The folder of the adapter's first weights, where these were taken out of the base."""
    balancing: float = 0.0
    """Weight of the loss that spreads tokens over the experts of a mixture; with it `hidden` leaves what the
    routers said in `routed`."""
    routed: tuple[torch.Tensor, ...] | None = None
    """Of each layer with experts: [tokens, experts]"""
    root: Any = None
    """Of a model whose weights are spread over several processes: what brings them together."""
    own_logits: bool = False
    """The architecture does something between its layers and its logits that we do not know: `hidden` gives
    its logits, and the head leaves them as they are."""

    @property
    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """By name, in a fixed order."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @property
    def parameters(self) -> int:
        """Of the whole model; a weight that is packed in 4 bits counts as what it is expanded to."""
        packed = ((p, getattr(p, "quant_state", None)) for p in self.model.parameters())
        return sum(p.numel() if state is None else state.shape.numel() for p, state in packed)

    def computed(self, compute: Callable[[], T]) -> T:
        """What is computed with the model's weights, its output layer's too."""
        return compute() if self.root is None else self.root(compute)

    @contextmanager
    def judging(self) -> Generator[None]:
        """Without dropout and noise; afterwards as before."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)

    def hidden(self, ids: torch.Tensor, places: torch.Tensor | None = None, **inputs: Any) -> torch.Tensor:
        """[rows, tokens] -> [rows, tokens, hidden], before the output layer. With `places` (flat) only
        those are right."""
        if "layout" in inputs:
            # A mask of four dimensions is taken as it is; our attention looks at the layout instead.
            inputs["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        if self.balancing:
            inputs["output_router_logits"] = True
        if self.own_logits:
            out = self.inner(input_ids=ids, use_cache=False, **inputs)
            self.routed = getattr(out, "router_logits", None)
            return out.logits
        if self.trained_only is not None:
            self.trained_only.places = places
        try:
            out = decoder_of(self.inner)(input_ids=ids, use_cache=False, **inputs)
            self.routed = getattr(out, "router_logits", None)
            return out.last_hidden_state
        finally:
            if self.trained_only is not None:
                self.trained_only.places = None


class OwnLogits(torch.nn.Module):
    """Stands for the output layer where the model applies its own."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits
