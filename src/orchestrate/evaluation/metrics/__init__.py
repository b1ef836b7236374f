"""Score answers. `registry.make` creates metrics by name."""

from orchestrate.evaluation.metrics.base import Context as Context
from orchestrate.evaluation.metrics.base import Metric as Metric
from orchestrate.evaluation.metrics.base import PairMetric as PairMetric
