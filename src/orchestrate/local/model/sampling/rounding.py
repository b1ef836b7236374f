"""Which answers hang on the rounding of 16 bits: a batch adds products up in another order, and where two
tokens are about as likely the other one wins. Imports torch."""

# torch describes its types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from orchestrate.local.model.sampling.caches import in_common, read_once, takes

CLOSE = 0.2
"""Of the standard deviation of all tokens' logits: rounding turns no greater lead of one over another."""


class Leads:
    """A logits processor that changes nothing: keeps how far the likeliest token of each step was ahead."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        del input_ids
        two = scores.topk(2, dim=-1).values
        self._steps.append((two[:, 0] - two[:, 1]) / scores.std(dim=-1))
        return scores

    def close(self, lengths: Sequence[int]) -> list[bool]:
        """Of each row, whether one of its first tokens, so many of each, was hardly ahead."""
        leads = torch.stack(self._steps)
        return [bool((leads[:length, row] < CLOSE).any()) for row, length in enumerate(lengths)]


def rounds(model: Any, device: torch.device) -> bool:
    """Whether the model computes in 16 bits."""
    return model.dtype != torch.float32 or torch.is_autocast_enabled(device.type)


def otherwise_alone(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, share: bool
) -> list[bool]:
    """Of each answer, whether it has a token that is not the likeliest one when its row is read alone, in one
    pass; with `share` what all prompts begin with is read once."""
    begins = in_common(prompts) if share else 0
    read = read_once(model, prompts[0][:begins], 1) if begins else {}
    begins = begins if read else 0
    found: list[bool] = []
    for prompt, ids in zip(prompts, answers, strict=True):
        row = torch.tensor([[*prompt[begins:], *ids[:-1]]], device=model.device)
        more = {"logits_to_keep": len(ids)} if takes(model)[1] else {}
        logits = model(input_ids=row, **read, **more).logits[0, -len(ids) :]
        found.append(bool((logits.argmax(dim=-1) != torch.tensor(ids, device=logits.device)).any()))
        for cache in read.values():
            cache.crop(-row.shape[1])
    return found
