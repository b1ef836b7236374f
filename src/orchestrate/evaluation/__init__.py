"""Base model against tuned model on held-out rows: metrics, intervals, per-row flips."""

from orchestrate.evaluation.evaluate import Answers, Generate, evaluate, held_out
from orchestrate.evaluation.metrics import METRICS, choose_metric

__all__ = ["METRICS", "Answers", "Generate", "choose_metric", "evaluate", "held_out"]
