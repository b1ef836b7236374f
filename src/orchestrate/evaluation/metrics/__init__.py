"""How answers are scored: `registry.make` gives metrics by their names."""

from orchestrate.evaluation.metrics.base import Metric as Metric
from orchestrate.evaluation.metrics.base import PairMetric as PairMetric
from orchestrate.evaluation.metrics.context import Context as Context
