"""How answers are scored: `registry.make` gives metrics by their names."""

from orchestrate.evaluation.metrics.base import Context as Context
from orchestrate.evaluation.metrics.base import Metric as Metric
from orchestrate.evaluation.metrics.base import PairMetric as PairMetric
