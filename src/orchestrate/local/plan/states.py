"""What each optimiser keeps for a trained parameter, and what has to be installed for it. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from orchestrate.errors import SetupError

EIGHT_BIT = 1 + 4 / 256
"""Bytes of one state of bitsandbytes: a byte, and a 32-bit scale for each 256 of them."""
STATE_BYTES = {
    "adamw": 8.0,
    "adamw_8bit": 2 * EIGHT_BIT,
    "paged_adamw": 8.0,
    "paged_adamw_8bit": 2 * EIGHT_BIT,
    "adafactor": 0.0,
    "lion": 4.0,
    "lion_8bit": EIGHT_BIT,
    "paged_lion": 4.0,
    "paged_lion_8bit": EIGHT_BIT,
    "muon": 4.0,
    "schedule_free_adamw": 8.0,
}
"""Per parameter, by the name of the optimiser. Muon's is that of a matrix; what is none has AdamW's.
Adafactor keeps one number for each row and one for each column, which is little but for a matrix of few
rows."""
LION_RATE = 0.2
"""Lion's learning rate over AdamW's, whose steps are smaller: a third to a tenth is advised (Chen et al.
2023)."""
MUON_SINCE = "2.9"


class OptimizerMissing(SetupError):
    """The optimiser that was asked for cannot run here; `fix` is the line that installs it."""


def state_bytes(optimizer: str, rank: int | None) -> float:
    """Per trained parameter. `rank`: of an adapter, whose matrices have so many rows or columns."""
    return 4.0 / rank if optimizer == "adafactor" and rank else STATE_BYTES[optimizer]


def require(optimizer: str, find: Callable[[str], object | None] = find_spec) -> None:
    """Raises `OptimizerMissing`; imports nothing. `find`: of a package, whether it is installed."""
    if optimizer.startswith("schedule_free") and find("schedulefree") is None:
        raise OptimizerMissing(
            f"optimizer {optimizer} needs the package schedulefree, which is not installed",
            fix="pip install schedulefree",
        )
    if optimizer == "muon":
        from packaging.version import Version

        try:
            there = Version(version("torch"))
        except PackageNotFoundError:
            return  # said of training as a whole
        if there < Version(MUON_SINCE):
            raise OptimizerMissing(
                f"optimizer muon needs torch {MUON_SINCE} or later, and {there} is installed",
                fix=f"pip install 'torch>={MUON_SINCE}'",
            )
