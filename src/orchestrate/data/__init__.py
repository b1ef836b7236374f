"""Any input -> canonical examples, digest, problems, splits and provider files.

`Dataset.open(path)` reads one file once; `TrainingData` joins the files of a spec. Both are imported when
first used: whoever needs one shelf does not load the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrate.data.dataset import Dataset, TokenCount, TrainingData

__all__ = ["Dataset", "TokenCount", "TrainingData"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from orchestrate.data import dataset

    return getattr(dataset, name)
