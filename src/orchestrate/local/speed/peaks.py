"""Measure the memory that a training step uses, as counted by torch's allocator. Imports torch."""

# torch has incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from orchestrate.local.model.weights import held_of


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Measure the peak memory in bytes while `step` runs, in addition to the memory allocated before. On a
    CPU, this uses the profiler's record of every allocation, so the step takes several times longer. Memory
    from libraries' own allocators is not counted."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    moments = sorted(_allocations(profile.profiler.kineto_results.experimental_event_tree()))  # type: ignore[union-attr]
    if not moments:
        return 0
    _, total, size = moments[0]
    return max(0, max(t for _, t, _ in moments) - (total - size))


def _allocations(events: Iterable[Any]) -> Iterator[tuple[int, int, int]]:
    """Return (time, total bytes, bytes of this allocation), unordered."""
    for event in events:
        if event.tag.name == "Allocation":
            fields = event.extra_fields
            yield event.start_time_ns, fields.total_allocated, fields.alloc_size
        yield from _allocations(event.children)


def held_bytes(model: torch.nn.Module) -> int:
    """Sum the bytes of parameters, buffers and quantization state. Shared memory counts once."""
    found: dict[int, int] = {}
    held = [t for experts in held_of(model) for t in experts.tensors]
    for tensor in [*model.parameters(), *model.buffers(), *held]:
        for each in (tensor, *_quantisation(tensor)):
            storage = each.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def _quantisation(tensor: Tensor) -> Iterator[Tensor]:
    state = getattr(tensor, "quant_state", None)
    while state is not None:
        yield from (t for t in (state.absmax, state.code, state.offset) if isinstance(t, Tensor))
        state = state.state2
