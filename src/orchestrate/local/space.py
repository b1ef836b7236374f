"""Check disk space before training, and recognize errors caused by a full disk. Torch-free."""

from __future__ import annotations

from orchestrate.core.files import FULL as FULL
from orchestrate.errors import RunFailed
from orchestrate.text import count, size

_SPARE = 16 << 20
"""Bytes reserved for metrics, events and logs."""


class DiskFull(RunFailed):
    """Raised if the disk is full. The run can resume once there is enough space."""


def require(free: int, *, result: int, checkpoint: int, kept: int) -> str | None:
    """Check that `free` bytes of disk space are enough for a run. All sizes are in bytes. `checkpoint` is the
    size of one checkpoint with the entire state, and `kept` is the number of checkpoints to keep.

    Raises `DiskFull` if there is not enough space for the result and for replacing one checkpoint. Returns a
    warning if that fits but not all checkpoints do, and `None` if everything fits."""
    least = result + 2 * checkpoint + _SPARE  # a new one is whole before the old one goes
    if free < least:
        raise DiskFull(
            f"the disk has {size(free)} free, but the result and one checkpoint need {size(least)}"
        )
    whole = least + max(0, kept - 1) * checkpoint
    if free >= whole:
        return None
    return (
        f"the disk has {size(free)} free, but the result and {count(kept, 'checkpoint')} need {size(whole)}. "
        f"If the disk fills up, training continues without new checkpoints"
    )


def disk_is_full(error: BaseException | None) -> bool:
    """Return whether an error was caused by a full disk or an exceeded quota."""
    while error is not None:
        if isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in FULL):
            return True
        if type(error).__name__ == "SafetensorError":  # around the system's error; here it is met in writing
            return True
        error = error.__cause__
    return False
