"""When something happens in a run, and the random state at that moment."""

# torch describes its types in part only.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import torch


def spread(count: int | None, total: int, every: int) -> set[int]:
    """Steps after which something happens `count` times, evenly, the last step included; `None` is after
    `every` so many steps, and after the last."""
    if count is None:
        return {*range(every, total + 1, every), total}
    return {round(total * k / count) for k in range(1, count + 1)} - {0}


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    cuda = {"random.cuda": torch.cuda.get_rng_state()} if device.type == "cuda" else {}
    return {"random.cpu": torch.get_rng_state(), **cuda}


def set_random_state(tensors: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
