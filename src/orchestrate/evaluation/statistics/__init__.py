"""Intervals, tests and power; 95% throughout, and the same input gives the same numbers."""

from orchestrate.evaluation.statistics.means import mean, mean_test
from orchestrate.evaluation.statistics.power import DISCORDANT, REACH, detectable, rows_for, standard_error
from orchestrate.evaluation.statistics.proportions import mcnemar, paired_interval, wilson
from orchestrate.evaluation.statistics.resampling import ratio, ratio_difference
from orchestrate.evaluation.statistics.several import holm, wider, wider_difference

__all__ = [
    "DISCORDANT",
    "REACH",
    "detectable",
    "holm",
    "mcnemar",
    "mean",
    "mean_test",
    "paired_interval",
    "ratio",
    "ratio_difference",
    "rows_for",
    "standard_error",
    "wider",
    "wider_difference",
    "wilson",
]
