"""When memory runs out: how it shows, and how what the failed pass held is given back. Imports torch."""

# torch describes its types in part only.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def out_of_memory(error: BaseException) -> bool:
    # On a CPU torch has no class of its own for it, and oneDNN another message.
    said = ("DefaultCPUAllocator", "bad_alloc", "could not create a memory", "could not create a primitive")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(s in str(error) for s in said)


def give_back(device: torch.device) -> None:
    """To be called when the error is gone: its traceback holds the tensors of the pass that failed.

    Autograd's graph is a circle, which only the collector ends; and what is free inside the C library's heap
    cannot be had by oneDNN, which asks the kernel for its own. Without either the retry fails as well.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)


def halving(rows: int, device: torch.device, compute: Callable[[int], T]) -> tuple[T, int]:
    """What `compute` gives for so many rows at once, for half as many where memory runs out, and so on; and
    how many it was. One row that does not fit raises."""
    while True:
        try:
            return compute(rows), rows
        except (RuntimeError, MemoryError) as error:
            if rows <= 1 or not out_of_memory(error):
                raise
        give_back(device)
        rows //= 2
