"""Turn any input into canonical examples, a digest, problems, splits and provider files.

`Dataset.open(path)` reads one file once. `TrainingData` joins the files of a spec. Both are imported on first
use, so callers that need only one module don't load the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate.core import late

if TYPE_CHECKING:
    from orchestrate.data.dataset import Dataset, TokenCount, TrainingData

__all__ = ["Dataset", "TokenCount", "TrainingData"]


__getattr__ = late(__name__, dict.fromkeys(__all__, "dataset"))
