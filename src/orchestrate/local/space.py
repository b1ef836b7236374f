"""Check disk space before the first step, and recognize full-disk errors afterwards. Torch-free."""

from __future__ import annotations

from orchestrate.core.files import FULL as FULL
from orchestrate.errors import RunFailed
from orchestrate.text import count, size

_SPARE = 16 << 20
"""Bytes for metrics, events and logs."""


class DiskFull(RunFailed):
    """Raised if the disk is full. The run can resume once there is space again."""


def require(free: int, *, result: int, checkpoint: int, kept: int) -> str | None:
    """Check that there is enough disk space. Returns a warning if not all checkpoints will fit. Raises
    `DiskFull` if the result and one checkpoint do not fit. All sizes are in bytes. `checkpoint` includes the
    entire state."""
    least = result + 2 * checkpoint + _SPARE  # a new one is whole before the old one goes
    if free < least:
        raise DiskFull(
            f"the disk has {size(free)} free, but the result and one checkpoint need {size(least)}"
        )
    whole = least + max(0, kept - 1) * checkpoint
    if free >= whole:
        return None
    return (
        f"the disk has {size(free)} free, but {count(kept, 'checkpoint')} need {size(whole)}. If it fills "
        "up, training continues without new checkpoints"
    )


def disk_is_full(error: BaseException | None) -> bool:
    """Return whether a write failed because the disk was full or a quota was reached."""
    while error is not None:
        if isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in FULL):
            return True
        if type(error).__name__ == "SafetensorError":  # around the system's error; here it is met in writing
            return True
        error = error.__cause__
    return False
