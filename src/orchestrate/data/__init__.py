"""Read training data in any known format, check it, split it, and write it for each host.

`Dataset.open(path)` reads one file once. `TrainingData` joins the files of a spec. Both are imported lazily,
so using one module doesn't load the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate.core import late

if TYPE_CHECKING:
    from orchestrate.data.dataset import Dataset, TokenCount, TrainingData

__all__ = ["Dataset", "TokenCount", "TrainingData"]


__getattr__ = late(__name__, dict.fromkeys(__all__, "dataset"))
