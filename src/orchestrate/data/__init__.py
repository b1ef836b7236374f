"""Any input -> canonical examples, digest, problems, splits and provider files.

`Dataset.open(path)` reads one file once; `TrainingData` joins the files of a spec.
"""

from orchestrate.data.dataset import Dataset, TokenCount, TrainingData

__all__ = ["Dataset", "TokenCount", "TrainingData"]
