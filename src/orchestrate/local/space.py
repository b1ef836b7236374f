"""Room on the disk: looked at before the first step, and told from other errors afterwards. Torch-free."""

from __future__ import annotations

from orchestrate.core.files import FULL as FULL
from orchestrate.errors import RunFailed
from orchestrate.text import count, size

_SPARE = 16 << 20
"""Metrics, events, logs."""


class DiskFull(RunFailed):
    """The run can go on when there is room again."""


def require(free: int, *, result: int, checkpoint: int, kept: int) -> str | None:
    """A warning when the checkpoints that are to be kept do not all fit; raises `DiskFull` when there is no
    room for the result and a checkpoint to go on from. All in bytes; `checkpoint` with all its state.
    """
    least = result + 2 * checkpoint + _SPARE  # a new one is whole before the old one goes
    if free < least:
        raise DiskFull(f"the disk has {size(free)} free; the result and one checkpoint need {size(least)}")
    whole = least + max(0, kept - 1) * checkpoint
    if free >= whole:
        return None
    return (
        f"the disk has {size(free)} free; {count(kept, 'checkpoint')} need {size(whole)}: when the disk "
        "is full, training continues without new checkpoints"
    )


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a write failed for want of room, or of quota."""
    while error is not None:
        if isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in FULL):
            return True
        if type(error).__name__ == "SafetensorError":  # around the system's error; here it is met in writing
            return True
        error = error.__cause__
    return False
