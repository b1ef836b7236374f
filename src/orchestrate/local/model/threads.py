"""How many threads a process takes on a CPU: as many as are fastest now, beside whatever else runs here.

In each product of matrices all threads wait for the last one. On a machine that others use, or with a small
model, one thread can be several times as fast as one for each core.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from orchestrate.core.files import write_whole

_FILE = "threads"
"""Of a run's folder: one that is gone on with takes as many as before, as sums depend on how many add."""
_ROUNDS = 20
_WORTH = 0.9
"""More threads are taken only where they need less than this share of the time."""


def of_run(folder: Path, asked: int | None, device: torch.device) -> int:
    """As `chosen`, and the same again when the run is gone on with."""
    try:
        before = int((folder / _FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        before = None
    found = chosen(asked or before, device)
    write_whole(folder / _FILE, str(found).encode())
    return found


def chosen(asked: int | None, device: torch.device) -> int:
    """What was asked for, by a setting or by OMP_NUM_THREADS; on a CPU else what is measured now."""
    if asked is not None:
        return asked
    most = torch.get_num_threads()
    if os.environ.get("OMP_NUM_THREADS") or device.type != "cpu":
        return most
    return fastest(most, _seconds)


def fastest(most: int, seconds: Callable[[int], float]) -> int:
    """The fewest of 1, 2, 4 ... `most` threads that more of them do not beat clearly."""
    counts = sorted({most, *(1 << n for n in range(most.bit_length()) if 1 << n <= most)})
    best, took = counts[0], seconds(counts[0])
    for count in counts[1:]:
        if (now := seconds(count)) < _WORTH * took:
            best, took = count, now
    return best


def _seconds(count: int) -> float:
    """For products as small models have them. The sum, not the least: what waits for a core counts."""
    torch.set_num_threads(count)
    rows, weights = torch.ones(512, 512), torch.ones(512, 512)
    torch.mm(rows, weights)  # starts the threads
    begun = time.perf_counter()
    for _ in range(_ROUNDS):
        torch.nn.functional.silu(torch.mm(rows, weights))
    return time.perf_counter() - begun
