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


def close(logits: Tensor) -> list[bool]:
    """[rows, vocabulary] of each row, whether its likeliest token was barely ahead of the next one."""
    scores = logits.float()
    two = scores.topk(2, dim=-1).values
    return ((two[:, 0] - two[:, 1]) / scores.std(dim=-1) < CLOSE).tolist()


def rounds(model: Any, device: torch.device) -> bool:
    """Whether the model computes in 16 bits."""
    return model.dtype != torch.float32 or torch.is_autocast_enabled(device.type)


def otherwise_alone(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, share: bool
) -> list[bool]:
    """Of each answer, whether it has a token that is not the likeliest one when its row is read alone, in one
    pass; with `share` what all prompts begin with is read once."""
    begins = in_common(prompts) if share else 0
    cache = read_once(model, prompts[0][:begins]) if begins else None
    begins = 0 if cache is None else begins
    name, only_last = takes(model)
    read = {} if cache is None else {name: cache}
    found: list[bool] = []
    for prompt, ids in zip(prompts, answers, strict=True):
        row = torch.tensor([[*prompt[begins:], *ids[:-1]]], device=model.device)
        more = {"logits_to_keep": len(ids)} if only_last else {}
        logits = model(input_ids=row, **read, **more).logits[0, -len(ids) :]
        found.append(bool((logits.argmax(dim=-1) != torch.tensor(ids, device=logits.device)).any()))
        if cache is not None:
            cache.crop(-row.shape[1])
    return found
