"""A/B test a tuned model against its base with real users: a stable split, anytime-valid evidence, and a
rule set in advance.

    from orchestrate.ab import Experiment

    with Experiment.open("support-bot") as experiment:
        arm = experiment.assign(user_id).arm            # "base" or "tuned", the same every time
        experiment.record(user_id, "resolved", True)
        print(experiment.report().decision)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate.core import late
from orchestrate.types import DecisionRule as DecisionRule
from orchestrate.types import ExperimentPlan as ExperimentPlan
from orchestrate.types import ExperimentReport as ExperimentReport
from orchestrate.types import PlannedMetric as PlannedMetric

if TYPE_CHECKING:
    from orchestrate.ab.evidence import users_for as users_for
    from orchestrate.ab.experiment import Assignment as Assignment
    from orchestrate.ab.experiment import Experiment as Experiment
    from orchestrate.ab.experiment import OutcomesTaken as OutcomesTaken
    from orchestrate.ab.middleware import ABMiddleware as ABMiddleware
    from orchestrate.ab.middleware import ask as ask
    from orchestrate.ab.plan import read_plan as read_plan

_PUBLIC = {
    "ABMiddleware": "middleware",
    "ask": "middleware",
    "Assignment": "experiment",
    "Experiment": "experiment",
    "OutcomesTaken": "experiment",
    "read_plan": "plan",
    "users_for": "evidence",
}

__getattr__ = late(__name__, _PUBLIC)
